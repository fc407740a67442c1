//! Programs of the shell, written by tests for others to run.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

/// Write a program, for its owner and everybody to run.
///
/// By another process: a file that is open for writing here may be so in whatever another thread starts at that moment, and for as long nobody can run it.
pub fn write(path: &Path, lines: &str) -> Result<()> {
    // Whoever finds it under its name can run it.
    let draft = path.with_extension(format!("{:08x}", rand::random::<u32>()));
    let mut install = Command::new("install")
        .args(["--mode=755", "/dev/stdin"])
        .arg(&draft)
        .stdin(Stdio::piped())
        .spawn()?;
    let mut input = install.stdin.take().context("no standard input")?;
    input.write_all(format!("#!/bin/sh\n{lines}\n").as_bytes())?;
    drop(input);
    ensure!(
        install.wait()?.success(),
        "{} cannot be written",
        path.display()
    );
    Ok(fs::rename(draft, path)?)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn it_can_be_run_at_once_whatever_else_is_started_meanwhile() {
        let scratch = tempfile::tempdir().unwrap();
        thread::scope(|scope| {
            for number in 0..8 {
                let directory = scratch.path();
                scope.spawn(move || {
                    for round in 0..20 {
                        let path = directory.join(format!("{number}-{round}"));
                        write(&path, "echo \"$1\"").unwrap();
                        let output = Command::new(&path).arg("it runs").output().unwrap();
                        assert_eq!(output.stdout, b"it runs\n");
                    }
                });
            }
        });
    }
}
