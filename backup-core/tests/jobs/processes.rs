//! This test program once more, as processes of their own that work on the database of a test.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use backup_core::store::Store;
use tempfile::TempDir;

use crate::databases::{Database, connect};

const URL: &str = "JOBS_TEST_URL";
const PASSWORD: &str = "JOBS_TEST_PASSWORD";
const GATE: &str = "JOBS_TEST_GATE";

/// Processes that run one ignored test each, all at once.
pub struct Processes {
    children: Vec<Child>,
    gate: TempDir,
}

impl Processes {
    /// They stop at [`at_the_gate`].
    pub fn spawn(count: usize, test: &str, database: &Database) -> Self {
        let gate = tempfile::tempdir().unwrap();
        let children = (0..count).map(|number| {
            Command::new(std::env::current_exe().unwrap())
                .args([test, "--exact", "--ignored", "--nocapture"])
                .env(URL, &database.url)
                .env(PASSWORD, &database.password)
                .env(GATE, gate.path().join(number.to_string()))
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        });
        Self {
            children: children.collect(),
            gate,
        }
    }

    /// Let them go on when the last one has come.
    pub fn open_gate(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(60);
        for number in 0..self.children.len() {
            while !self.gate.path().join(number.to_string()).exists() {
                let ended = self.children[number].try_wait().unwrap();
                assert!(
                    ended.is_none() && Instant::now() < deadline,
                    "process {number} does not come to the gate: {ended:?}"
                );
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        std::fs::write(self.gate.path().join("open"), "").unwrap();
    }

    /// Wait for all; what each printed.
    pub fn finish(mut self) -> Vec<String> {
        self.open_gate();
        let children = std::mem::take(&mut self.children);
        // The few lines that each prints fit the pipes.
        let printed = children.into_iter().map(|child| {
            let output = child.wait_with_output().unwrap();
            let stdout = String::from_utf8(output.stdout).unwrap();
            assert!(
                output.status.success() && stdout.contains("1 passed"),
                "a process failed: {stdout}{}",
                String::from_utf8_lossy(&output.stderr)
            );
            stdout
        });
        printed.collect()
    }

    /// `kill -9` for all.
    pub fn kill(mut self) {
        for child in &mut self.children {
            child.kill().unwrap();
        }
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        for child in &mut self.children {
            // They have ended already, or a test fails.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// In such a process: the database of the test.
pub async fn store_of_parent() -> Store {
    let url = std::env::var(URL).unwrap();
    connect(&url, &std::env::var(PASSWORD).unwrap()).await
}

/// In such a process: wait until all are there.
pub async fn at_the_gate() {
    let here = PathBuf::from(std::env::var(GATE).unwrap());
    std::fs::write(&here, "").unwrap();
    let open = here.with_file_name("open");
    while !open.exists() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
