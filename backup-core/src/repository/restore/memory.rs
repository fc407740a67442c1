//! How much memory a restore takes for each file.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use super::super::{ArchiveRequest, Repository, seal};
use super::tests::{Forger, directory, file, restore_into, storage_at};
use crate::progress::Control;

/// Tells a process of its own, which has no other memory than that, what to restore.
const RESTORES: &str = "BACKUP_TEST_RESTORES";

/// A line of /proc/self/status in bytes.
fn memory(line: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|it| it.strip_prefix(line)).unwrap();
    line.trim()
        .strip_suffix(" kB")
        .unwrap()
        .parse::<u64>()
        .unwrap()
        * 1024
}

/// What restoring took at most, beyond what was there before.
fn watch_restore(scratch: &Path, root: &str) -> u64 {
    let storage = storage_at(&scratch.join("repository"));
    let repository = Repository::open(storage, &"password".to_owned().into()).unwrap();
    let out = tempfile::tempdir_in(scratch).unwrap();
    let before = memory("VmRSS:");
    // The peak begins anew: opening takes more than all that follows.
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    restore_into(out.path(), &repository.with_scratch(scratch), root).unwrap();
    let held = memory("VmHWM:");
    let restored = std::fs::read_dir(out.path().join("0")).unwrap();
    for file in restored.take(9) {
        let content = std::fs::read(file.unwrap().path()).unwrap();
        assert_eq!(content, b"tiny");
    }
    held.saturating_sub(before)
}

#[test]
fn a_file_more_to_restore_takes_hardly_any_memory() {
    const DIRECTORIES: [usize; 2] = [5, 30];
    const FILES: usize = 1000;
    if let Ok(task) = std::env::var(RESTORES) {
        let (scratch, root) = task.split_once(':').unwrap();
        println!("held:{}", watch_restore(Path::new(scratch), root));
        return;
    }
    let forger = Forger::new();
    let tiny = forger.scratch.path().join("tiny");
    std::fs::create_dir(&tiny).unwrap();
    std::fs::write(tiny.join("file"), "tiny").unwrap();
    let request = ArchiveRequest::of_trees(&[&tiny]);
    let lock = forger.repository.lock_shared().unwrap();
    let control = Control::default();
    let saved = forger.repository.archive(lock, request, &control).unwrap();
    saved.commit(&control).unwrap();
    let id = seal::hash(b"tiny");

    let held = DIRECTORIES.map(|directories| {
        let trees = (0..directories).map(|at| {
            let files = (0..FILES).map(|number| {
                let mut node = file(&format!("{at}-and-a-name-of-usual-length-{number}.jpg"));
                node["content"] = json!([id.to_hex().as_str()]);
                node["mtime"] = format!("2026-01-02T03:04:{:02}.{number:06}Z", at % 60).into();
                node
            });
            Value::Array(files.collect())
        });
        let of_each: Vec<_> = trees
            .map(|nodes| forger.directories([nodes]))
            .enumerate()
            .map(|(at, id)| directory(&at.to_string(), &id))
            .collect();
        let site = forger.directories([Value::Array(of_each)]);
        let root = forger.directories([json!([directory("site", &site)])]);
        let restored = || {
            let name =
                "repository::restore::memory::a_file_more_to_restore_takes_hardly_any_memory";
            let output = Command::new(std::env::current_exe().unwrap())
                .args([name, "--exact", "--nocapture"])
                .env(
                    RESTORES,
                    format!("{}:{root}", forger.scratch.path().display()),
                )
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&output.stdout);
            let held = said.lines().find_map(|line| line.split_once("held:"));
            let (_, held) = held.unwrap_or_else(|| panic!("{output:?}"));
            held.parse::<u64>().unwrap()
        };
        // What threads and the allocator take besides differs from run to run.
        (0..3).map(|_| restored()).min().unwrap()
    });
    let more = (DIRECTORIES[1] - DIRECTORIES[0]) * FILES;
    let each = held[1].saturating_sub(held[0]) / more as u64;
    println!("{each} bytes for each file: {held:?}");
    // With the plan in memory it was more than 200.
    assert!(each < 96, "{each} bytes for each file: {held:?}");
}
