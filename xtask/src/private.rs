//! What makes a server private: it and its directory are gone when we are, however we end.
//!
//! Never: a process left running, or a directory left behind, by a test that was killed.

use std::io;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

/// A program that [`Tied::spawn`] started. Dropping it is `kill -9`.
pub(crate) struct Tied {
    child: Child,
    /// Ends the thread that the program is tied to.
    _parent: mpsc::Sender<()>,
}

impl Tied {
    /// Start a command that begins with `setpriv --pdeathsig KILL`, such as [`tie`] makes.
    pub(crate) fn spawn(mut command: Command) -> Result<Self> {
        // The program dies with the *thread* that started it, which may be that of one test: it gets one of its own.
        let (send_child, child) = mpsc::channel();
        let (parent, end) = mpsc::channel::<()>();
        thread::spawn(move || {
            if send_child.send(command.spawn()).is_ok() {
                // An error means that the sender is gone: that is what we wait for.
                let _ = end.recv();
            }
        });
        Ok(Self {
            child: child.recv()??,
            _parent: parent,
        })
    }

    /// How it ended, if it did.
    pub(crate) fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Send it a signal; an error if it is gone.
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.id())
            .ok()
            .and_then(Pid::from_raw)
            .context("the server has no process id")?;
        Ok(kill_process(pid, signal)?)
    }
}

impl Drop for Tied {
    fn drop(&mut self) {
        // Both fail only when it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The same command, killed when who starts it is gone. What it reads and writes is still to be said.
pub(crate) fn tie(command: &Command) -> Command {
    let mut tied = Command::new("setpriv");
    tied.args(["--pdeathsig", "KILL"])
        .arg(command.get_program())
        .args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => tied.env(name, value),
            None => tied.env_remove(name),
        };
    }
    if let Some(directory) = command.get_current_dir() {
        tied.current_dir(directory);
    }
    tied
}

/// Removes a directory when this process is gone without having done so itself: a `static` is never dropped.
pub(crate) struct Guard {
    child: Child,
    stdin: Option<ChildStdin>,
}

impl Guard {
    pub(crate) fn over(dir: &Path) -> Result<Self> {
        use std::os::unix::process::CommandExt;
        let mut child = Command::new("sh")
            .args([
                "-c",
                "read -r _; rm -rf -- \"$1\" || { sleep 1; rm -rf -- \"$1\"; }",
                "sh",
            ])
            .arg(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Not killed along by a Ctrl-C for us.
            .process_group(0)
            .spawn()?;
        let stdin = child.stdin.take();
        Ok(Self { child, stdin })
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.stdin = None;
        let _ = self.child.wait();
    }
}
