//! A private Redis server: a free port and a socket, a password, nothing kept.
//!
//! Never: a file or the port of the machine's own Redis touched; a process left running.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::port;
use crate::private::{Guard, Tied};

const START_LIMIT: Duration = Duration::from_secs(20);

/// A running server. Dropping it kills the server and removes its directory; so does the end of this process, however it ends.
pub struct Redis {
    server: Option<Tied>,
    port: u16,
    password: String,
    // Before the guard: the directory is removed by us if we live, by the guard if not.
    dir: TempDir,
    _guard: Guard,
}

impl Redis {
    /// A new, empty server.
    pub fn start() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("redis-").tempdir()?;
        let guard = Guard::over(dir.path())?;
        let mut this = Self {
            server: None,
            port: 0,
            // Every user of the machine reaches the port.
            password: format!("{:032x}", rand::random::<u128>()),
            dir,
            _guard: guard,
        };
        let mut tries = 0;
        loop {
            this.port = port::free()?;
            match this.restart() {
                Ok(()) => return Ok(this),
                // Somebody else was faster.
                Err(_) if this.log().contains("Address already in use") && tries < 10 => tries += 1,
                Err(error) => return Err(error),
            }
        }
    }

    /// Start it again after [`Redis::kill`], empty, on the same port and with the same password.
    pub fn restart(&mut self) -> Result<()> {
        ensure!(self.server.is_none(), "the server is running");
        let config = self.path("redis.conf");
        // Not by arguments: everybody sees those.
        let settings = [
            format!("port {}", self.port),
            "bind 127.0.0.1".into(),
            format!("unixsocket {}", self.socket().display()),
            format!("requirepass {}", self.password),
            format!("dir {}", self.dir.path().display()),
            "save \"\"".into(),
            "appendonly no".into(),
        ];
        fs::write(&config, settings.join("\n") + "\n")?;
        let log = fs::File::create(self.path("log"))?;
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "redis-server"])
            .arg(config)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let mut server = Tied::spawn(command)?;
        let deadline = Instant::now() + START_LIMIT;
        while !self.command(&["PING"]).is_ok_and(|said| said == "PONG") {
            if server.ended()?.is_some() || Instant::now() > deadline {
                bail!(
                    "redis-server did not start; is the package installed? {}",
                    self.log()
                );
            }
            thread::sleep(Duration::from_millis(5));
        }
        self.server = Some(server);
        Ok(())
    }

    /// `kill -9`. Nothing happens if it does not run.
    pub fn kill(&mut self) {
        self.server = None;
    }

    /// SIGSTOP: it still takes connections and reads what comes, but answers nothing.
    pub fn pause(&self) -> Result<()> {
        self.running()?.signal(Signal::STOP)
    }

    /// Go on after [`Redis::pause`].
    pub fn resume(&self) -> Result<()> {
        self.running()?.signal(Signal::CONT)
    }

    fn running(&self) -> Result<&Tied> {
        self.server.as_ref().context("the server does not run")
    }

    /// Run one command, as in `["LLEN", "backups"]`; what `redis-cli` prints, without the last line's end.
    pub fn command(&self, words: &[&str]) -> Result<String> {
        let output = Command::new("redis-cli")
            .args(["-e", "-h", "127.0.0.1", "-p", &self.port.to_string()])
            .args(words)
            .env("REDISCLI_AUTH", &self.password)
            .stdin(Stdio::null())
            .output()
            .context("cannot run redis-cli; is the package redis-tools installed?")?;
        let said = String::from_utf8(output.stdout).context("the answer is not UTF-8")?;
        ensure!(
            output.status.success(),
            "{} failed: {said}{}",
            words.join(" "),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(said.trim_end_matches('\n').to_owned())
    }

    /// Its address, password and all.
    pub fn url(&self) -> String {
        self.url_at(self.port)
    }

    /// The same by way of another port, such as that of a [`crate::proxy::Proxy`].
    pub fn url_at(&self, port: u16) -> String {
        format!("redis://:{}@127.0.0.1:{port}", self.password)
    }

    /// The password that every client has to give.
    pub fn password(&self) -> &str {
        &self.password
    }

    /// The TCP port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The Unix socket.
    pub fn socket(&self) -> PathBuf {
        self.path("redis.sock")
    }

    /// What the server said since its last start.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_answers_restarts_empty_on_its_port_and_leaves_nothing() {
        let mut server = Redis::start().unwrap();
        assert_eq!(server.command(&["LPUSH", "backups", "1"]).unwrap(), "1");
        assert!(server.command(&["NONSENSE"]).is_err());
        let url = server.url();
        server.kill();
        assert!(server.command(&["PING"]).is_err());
        server.restart().unwrap();
        assert_eq!(server.url(), url);
        assert_eq!(server.command(&["LLEN", "backups"]).unwrap(), "0");
        server.pause().unwrap();
        server.resume().unwrap();
        assert_eq!(server.command(&["PING"]).unwrap(), "PONG");
        let dir = server.dir.path().to_owned();
        drop(server);
        assert!(!dir.exists());
    }
}
