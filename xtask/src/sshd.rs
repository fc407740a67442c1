//! A private SSH server for SFTP, with keys of its own, on a port of its own.
//!
//! Never: a file of the machine's own sshd read or written; a process left running.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::port;

const START_LIMIT: Duration = Duration::from_secs(10);

/// A running (or stopped) sshd that serves SFTP to one key, for the user who runs this program.
pub struct Sshd {
    directory: TempDir,
    port: u16,
    server: Option<Child>,
}

impl Sshd {
    /// Make keys and start a server.
    pub fn start() -> Result<Self> {
        Self::start_with(&[])
    }

    /// The same, with more lines of `sshd_config`, which win over ours.
    pub fn start_with(settings: &[&str]) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("sshd-").tempdir()?;
        let path = |name: &str| directory.path().join(name);
        for name in ["host_key", "client_key"] {
            make_key(&path(name))?;
        }
        // Also other users of the machine may be logged in to: sshd reads the list as them.
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o711))?;
        fs::copy(path("client_key.pub"), path("authorized_keys"))?;
        let mut sshd = Self {
            directory,
            port: 0,
            server: None,
        };
        let mut tries = 0;
        loop {
            sshd.take_port(settings)?;
            match sshd.launch() {
                Ok(()) => return Ok(sshd),
                // Somebody else was faster.
                Err(_) if sshd.log().contains("Address already in use") && tries < 10 => tries += 1,
                Err(error) => return Err(error),
            }
        }
    }

    fn take_port(&mut self, settings: &[&str]) -> Result<()> {
        self.port = port::free()?;
        let line = format!("[127.0.0.1]:{} {}", self.port, self.host_key()?);
        fs::write(self.known_hosts(), line)?;
        self.write_config(settings)
    }

    fn write_config(&self, settings: &[&str]) -> Result<()> {
        let path = |name: &str| self.path(name).display().to_string();
        // The first value of a key counts.
        let mut lines: Vec<String> = settings.iter().map(|line| (*line).to_owned()).collect();
        lines.extend([
            format!("Port {}", self.port),
            "ListenAddress 127.0.0.1".into(),
            format!("HostKey {}", path("host_key")),
            format!("AuthorizedKeysFile {}", path("authorized_keys")),
            format!("PidFile {}", path("sshd.pid")),
            "PermitRootLogin yes".into(),
            "PasswordAuthentication no".into(),
            "KbdInteractiveAuthentication no".into(),
            "StrictModes no".into(),
            "UsePAM no".into(),
            "Subsystem sftp internal-sftp".into(),
            "ForceCommand internal-sftp".into(),
        ]);
        fs::write(self.path("sshd_config"), lines.join("\n") + "\n")?;
        Ok(())
    }

    fn launch(&mut self) -> Result<()> {
        // Started as root, sshd wants this directory, which only the machine's own service makes.
        if rustix::process::geteuid().is_root() {
            fs::create_dir_all("/run/sshd")?;
        }
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.path("log"))?;
        let mut server = Command::new("/usr/sbin/sshd")
            .arg("-D")
            .arg("-e")
            .arg("-f")
            .arg(self.path("sshd_config"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("cannot start /usr/sbin/sshd: is openssh-server installed?")?;
        let deadline = Instant::now() + START_LIMIT;
        while !self.greets() {
            if let Some(status) = server.try_wait()? {
                bail!("sshd ended ({status}): {}", self.log());
            }
            if Instant::now() > deadline {
                let _ = server.kill();
                let _ = server.wait();
                bail!("sshd does not answer: {}", self.log());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.server = Some(server);
        Ok(())
    }

    fn greets(&self) -> bool {
        let Ok(stream) = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)) else {
            return false;
        };
        let mut greeting = String::new();
        stream.set_read_timeout(Some(START_LIMIT)).is_ok()
            && BufReader::new(stream).read_line(&mut greeting).is_ok()
            && greeting.starts_with("SSH-")
    }

    /// Take no more connections and end those that there are.
    pub fn stop(&mut self) {
        if let Some(mut server) = self.server.take() {
            // Its children outlive it: find them first.
            let children = children_of(server.id());
            let _ = server.kill();
            let _ = server.wait();
            children.into_iter().for_each(kill);
        }
    }

    /// Start again on the same port, with the same keys.
    pub fn restart(&mut self) -> Result<()> {
        self.stop();
        self.launch()
    }

    /// Cut all connections; new ones are welcome.
    pub fn kill_connections(&self) {
        if let Some(server) = &self.server {
            children_of(server.id()).into_iter().for_each(kill);
        }
    }

    /// How many connections there are.
    pub fn connections(&self) -> usize {
        self.server
            .as_ref()
            .map_or(0, |server| direct_children(server.id()).len())
    }

    /// The port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The private key that may log in.
    pub fn client_key(&self) -> PathBuf {
        self.path("client_key")
    }

    /// Let one more public key log in.
    pub fn authorize(&self, public_key: &Path) -> Result<()> {
        let mut keys = fs::read(self.path("authorized_keys"))?;
        keys.extend(fs::read(public_key)?);
        Ok(fs::write(self.path("authorized_keys"), keys)?)
    }

    /// A known_hosts file that has this server's key.
    pub fn known_hosts(&self) -> PathBuf {
        self.path("known_hosts")
    }

    /// The server's public host key: kind and key, without a name.
    pub fn host_key(&self) -> Result<String> {
        Ok(fs::read_to_string(self.path("host_key.pub"))?)
    }

    /// Who logs in: the user who runs this program.
    pub fn user(&self) -> String {
        match rustix::process::geteuid().is_root() {
            true => "root".into(),
            false => std::env::var("USER").unwrap_or_default(),
        }
    }

    /// The repository location of a directory, in restic's syntax.
    pub fn location(&self, path: &Path) -> String {
        self.location_at(self.port, path)
    }

    /// The same by way of another port, such as that of a [`crate::proxy::Proxy`].
    pub fn location_at(&self, port: u16, path: &Path) -> String {
        format!("sftp://{}@127.0.0.1:{port}/{}", self.user(), path.display())
    }

    /// The command with which restic (`-o sftp.command=…`) reaches this server, through `port`.
    pub fn ssh_command(&self, port: u16) -> String {
        format!(
            "ssh -F none -o IdentitiesOnly=yes -o BatchMode=yes -o UserKnownHostsFile={} -o HostKeyAlias=[127.0.0.1]:{} -i {} -p {port} {}@127.0.0.1 -s sftp",
            self.known_hosts().display(),
            self.port,
            self.client_key().display(),
            self.user(),
        )
    }

    /// What the server said.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Make an ed25519 key pair without a passphrase: `path` and `path.pub`.
pub fn make_key(path: &Path) -> Result<()> {
    make_key_of(path, "ed25519", "")
}

/// Make a key pair of a kind that `ssh-keygen -t` knows, with a passphrase unless that is empty.
pub fn make_key_of(path: &Path, kind: &str, passphrase: &str) -> Result<()> {
    let outcome = Command::new("ssh-keygen")
        .args(["-q", "-t", kind, "-N", passphrase, "-C", "private", "-f"])
        .arg(path)
        .stdin(Stdio::null())
        .output()
        .context("cannot run ssh-keygen: is openssh-client installed?")?;
    if !outcome.status.success() {
        bail!(
            "ssh-keygen failed: {}",
            String::from_utf8_lossy(&outcome.stderr)
        );
    }
    Ok(())
}

fn direct_children(process: u32) -> Vec<u32> {
    // Empty for a process that is gone.
    let list =
        fs::read_to_string(format!("/proc/{process}/task/{process}/children")).unwrap_or_default();
    list.split_whitespace()
        .filter_map(|id| id.parse().ok())
        .collect()
}

fn children_of(process: u32) -> Vec<u32> {
    let mut found = direct_children(process);
    let mut at = 0;
    while at < found.len() {
        found.extend(direct_children(found[at]));
        at += 1;
    }
    found
}

fn kill(process: u32) {
    if let Some(process) = i32::try_from(process).ok().and_then(Pid::from_raw) {
        // It may have ended by itself.
        let _ = kill_process(process, Signal::KILL);
    }
}
