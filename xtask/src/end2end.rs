//! A real browser driven against the sandbox: what customers do, and pictures of what they see.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use xtask::sandbox::{Options, Sandbox};

use crate::measure;

const PAUSE: Duration = Duration::from_millis(50);

/// Run the tests of these projects of Playwright, one project after the other, against the product at `binary`, with more arguments for Playwright.
pub fn run(binary: &Path, projects: &[&str], arguments: &str) -> Result<()> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../end2end");
    install(&directory)?;
    let options = Options {
        port: None,
        customers: vec![1, 2, 3, 4, 5, 6, 7, 8],
        posts: 20,
        images: 4,
        daily: 9,
    };
    let sandbox = Sandbox::start(binary, &options, |_| measure::check_interrupted())?;
    sandbox.back_up(2, "both", "To look at")?;
    let facts = sandbox.bed().scratch().join("facts.json");
    write_secret(&facts, &sandbox.facts().to_string())?;
    let result = projects.iter().try_for_each(|project| {
        watch(
            Command::new(directory.join("node_modules/.bin/playwright"))
                .args(["test", "--pass-with-no-tests"])
                .arg(format!("--project={project}"))
                .args(arguments.split_whitespace())
                .current_dir(&directory)
                .env("SANDBOX", &facts),
        )
    });
    sandbox.check_alive()?;
    if result.is_err() {
        keep_logs(&sandbox, &directory.join("test-results"))?;
    }
    result
}

/// A new file that nobody else on the machine can read.
fn write_secret(path: &Path, content: &str) -> Result<()> {
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    Ok(file.write_all(content.as_bytes())?)
}

/// What the lock file names, unless it is there.
fn install(directory: &Path) -> Result<()> {
    let installed = directory.join("node_modules/.package-lock.json");
    let changed = |file: PathBuf| fs::metadata(file).and_then(|file| file.modified());
    let wanted = changed(directory.join("package-lock.json"))?;
    if changed(installed).is_ok_and(|installed| installed >= wanted) {
        return Ok(());
    }
    watch(
        Command::new("npm")
            .args(["ci", "--no-audit", "--no-fund"])
            .current_dir(directory)
            .env("PLAYWRIGHT_SKIP_BROWSER_DOWNLOAD", "1"),
    )
}

/// Run a program that prints for itself; it is asked to end when we are interrupted.
fn watch(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdin(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot run {program}"))?;
    let mut asked = false;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if !asked && measure::check_interrupted().is_err() {
            let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
            kill_process(pid.context("no process id")?, Signal::TERM)?;
            asked = true;
        }
        thread::sleep(PAUSE);
    };
    measure::check_interrupted()?;
    ensure!(status.success(), "{program} failed ({status})");
    Ok(())
}

fn keep_logs(sandbox: &Sandbox, directory: &Path) -> Result<()> {
    fs::create_dir_all(directory)?;
    for name in ["server.log", "worker.log"] {
        fs::write(directory.join(name), sandbox.log(name))?;
    }
    Ok(())
}
