//! The way to the backup server, of a certain length and width, on which everything is counted.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use tempfile::TempDir;
use xtask::proxy::Proxy;
use xtask::restic::Restic;
use xtask::sshd::Sshd;

/// What a line is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    pub name: &'static str,
    pub round_trip: Duration,
    pub bytes_per_second: Option<u64>,
}

pub const KINDS: [Kind; 3] = [
    Kind {
        name: "0 ms",
        round_trip: Duration::ZERO,
        bytes_per_second: None,
    },
    Kind {
        name: "20 ms",
        round_trip: Duration::from_millis(20),
        bytes_per_second: None,
    },
    Kind {
        name: "100 Mbit/s",
        round_trip: Duration::ZERO,
        bytes_per_second: Some(12_500_000),
    },
];

/// An SSH server of the benchmark's own, behind a proxy.
pub struct Line {
    sshd: Sshd,
    proxy: Proxy,
    known_hosts: TempDir,
    requests: Option<TempDir>,
}

impl Line {
    pub fn new(kind: Kind) -> Result<Self> {
        Self::to(Sshd::start()?, kind, None)
    }

    /// Without delay, to a server that writes down every request. That takes its time: nothing is timed on it.
    pub fn counting() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let server = directory.path().join("server");
        xtask::script::write(
            &server,
            &format!(
                "exec /usr/lib/openssh/sftp-server -e -l DEBUG3 2>{}/$$.log",
                directory.path().display()
            ),
        )?;
        let force = format!("ForceCommand {}", server.display());
        Self::to(Sshd::start_with(&[&force])?, KINDS[0], Some(directory))
    }

    fn to(sshd: Sshd, kind: Kind, requests: Option<TempDir>) -> Result<Self> {
        let proxy = Proxy::start(sshd.port())?;
        proxy.set_delay(kind.round_trip / 2);
        proxy.set_bytes_per_second(kind.bytes_per_second);
        let known_hosts = tempfile::tempdir()?;
        let line = format!("[127.0.0.1]:{} {}", proxy.port(), sshd.host_key()?);
        fs::write(known_hosts.path().join("known_hosts"), line)?;
        Ok(Self {
            sshd,
            proxy,
            known_hosts,
            requests,
        })
    }

    /// Let a command of the product find one of its repositories (`MANUAL`, `DAILY`) in this directory of the server.
    pub fn lead(&self, name: &str, repository: &Path, command: &mut Command) {
        let key = |key: &str| format!("BACKUP__REPOSITORIES__{name}__{key}");
        command
            .env(
                key("LOCATION"),
                self.sshd.location_at(self.proxy.port(), repository),
            )
            .env(key("SSH_KEY"), self.sshd.client_key())
            .env(
                key("KNOWN_HOSTS"),
                self.known_hosts.path().join("known_hosts"),
            );
    }

    /// restic on a directory of the server.
    pub fn restic(&self, repository: &Path, password: &str) -> Result<Restic> {
        let command = self.sshd.ssh_command(self.proxy.port());
        Ok(Restic::new(self.sshd.location(repository), password)?.sftp_command(&command))
    }

    /// Bytes to the server and from it so far.
    pub fn bytes(&self) -> (u64, u64) {
        (self.proxy.bytes_to_target(), self.proxy.bytes_from_target())
    }

    /// Requests to the server so far, of a line that counts them.
    pub fn requests(&self) -> Result<Option<u64>> {
        let Some(directory) = &self.requests else {
            return Ok(None);
        };
        let mut requests = 0;
        for entry in fs::read_dir(directory.path())? {
            let log = fs::read(entry?.path())?;
            let log = String::from_utf8_lossy(&log);
            let mut ids: Vec<&str> = log
                .lines()
                .filter_map(|line| line.split_once("request ")?.1.split_once(':'))
                .map(|(id, _)| id)
                .collect();
            // One session never gives two requests the same number.
            ids.sort_unstable();
            ids.dedup();
            requests += u64::try_from(ids.len())?;
        }
        Ok(Some(requests))
    }
}
