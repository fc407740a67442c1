//! A private MariaDB server: a socket and a free port, a data directory of its own, nothing kept.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::port;
use crate::private::{Guard, Tied};

const START_LIMIT: Duration = Duration::from_secs(60);
/// What the server prints once it serves.
const READY: &str = "ready for connections";
const STOP_LIMIT: Duration = Duration::from_secs(60);

/// A running server. Dropping it kills the server and removes its data; so does the end of this process, however it ends.
pub struct MariaDb {
    power: Power,
    root_password: String,
    // Before the guard: the directory is removed by us if we live, by the guard if not.
    dir: TempDir,
    _guard: Guard,
}

impl MariaDb {
    /// A new, empty server with the one account `root@localhost`.
    pub fn start() -> Result<Self> {
        Self::start_with(&[])
    }

    /// As [`MariaDb::start`], with more options for the server.
    pub fn start_with(options: &[&str]) -> Result<Self> {
        Self::start_in(&std::env::temp_dir(), options)
    }

    /// As [`MariaDb::start_with`], with the data in a new directory below `parent`: on a file system of the test's choice.
    pub fn start_in(parent: &Path, options: &[&str]) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("mariadb-")
            .tempdir_in(parent)?;
        let guard = Guard::over(dir.path())?;
        give_to_server_user(dir.path())?;
        let tmp = dir.path().join("tmp");
        let made = as_server_user("mkdir").arg(&tmp).status()?;
        ensure!(made.success(), "cannot create {}", tmp.display());
        // On a disk that a test fills up the server's log must have its room from the start.
        let sparse = match parent == std::env::temp_dir() {
            true => "--sparse=always",
            false => "--sparse=never",
        };
        let copied = Command::new("cp")
            .args(["-aT", sparse])
            .arg(installed()?)
            .arg(dir.path().join("data"))
            .status()?;
        ensure!(copied.success(), "cannot copy the data of a new server");
        let mut this = Self {
            power: Power::first_on(dir.path(), options)?,
            root_password: String::new(),
            dir,
            _guard: guard,
        };
        let password = format!("{:032x}", rand::random::<u128>());
        this.sql(&format!(
            "DELETE FROM mysql.global_priv WHERE NOT (User = 'root' AND Host = 'localhost') AND User <> 'mariadb.sys';
             FLUSH PRIVILEGES;
             ALTER USER root@localhost IDENTIFIED BY '{password}';"
        ))?;
        this.root_password = password;
        Ok(this)
    }

    /// Start it again after [`MariaDb::stop`] or [`MariaDb::kill`], on the same data and port.
    pub fn restart(&mut self) -> Result<()> {
        self.power.on()
    }

    /// Shut it down in order. Nothing happens if it does not run.
    pub fn stop(&mut self) -> Result<()> {
        self.power.off()
    }

    /// `kill -9`. Nothing happens if it does not run.
    pub fn kill(&mut self) {
        *self.power.server() = None;
    }

    /// To stop and start it while others use this value.
    pub fn power(&self) -> Power {
        self.power.clone()
    }

    /// `kill -9` while others use this value; [`MariaDb::kill`] has to follow before a restart.
    pub fn signal_kill(&self) {
        if let Some(server) = &*self.power.server() {
            // It fails only when the server is gone already; it is not reaped before `kill`.
            let _ = server.child.signal(Signal::KILL);
        }
    }

    /// Run SQL as root; what it selects, a line per row, tabs between columns, escaped as the client's `--batch` does.
    pub fn sql(&self, sql: &str) -> Result<String> {
        let printed = self.sql_bytes(sql.as_bytes())?;
        String::from_utf8(printed).context("the answer is not UTF-8")
    }

    /// [`MariaDb::sql`] for any bytes.
    pub fn sql_bytes(&self, sql: &[u8]) -> Result<Vec<u8>> {
        let mut client = Command::new("mariadb")
            .args([
                "--no-defaults",
                "--user=root",
                "--batch",
                "--skip-column-names",
                "--binary-mode",
            ])
            .arg("--default-character-set=utf8mb4")
            .arg(format!("--socket={}", self.socket().display()))
            .env("MYSQL_PWD", &self.root_password)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot run mariadb; is the package mariadb-client installed?")?;
        let mut stdin = client.stdin.take().context("no standard input")?;
        let output = thread::scope(|scope| {
            // A client that fails stops reading; its exit status tells.
            scope.spawn(move || drop(stdin.write_all(sql)));
            client.wait_with_output()
        })?;
        if !output.status.success() {
            bail!(
                "the SQL failed: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(output.stdout)
    }

    /// Lock a table (`schema.table`) against reading and writing, until the lock is dropped.
    pub fn lock_table(&self, table: &str) -> Result<TableLock> {
        let mut client = Command::new("mariadb")
            .args([
                "--no-defaults",
                "--user=root",
                "--batch",
                "--skip-column-names",
                "--unbuffered",
            ])
            .arg(format!("--socket={}", self.socket().display()))
            .env("MYSQL_PWD", &self.root_password)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let (mut stdin, stdout) = (client.stdin.take(), client.stdout.take());
        let script = format!("LOCK TABLES {table} WRITE;\nSELECT 'locked';\n");
        if let Some(stdin) = &mut stdin {
            stdin.write_all(script.as_bytes())?;
        }
        let lock = TableLock { client, stdin };
        let mut answer = String::new();
        BufReader::new(stdout.context("no standard output")?).read_line(&mut answer)?;
        ensure!(answer == "locked\n", "the table {table} cannot be locked");
        Ok(lock)
    }

    /// The connections that wait for such a lock.
    pub fn waiting_for_table(&self) -> Result<Vec<u64>> {
        let ids = self.sql(
            "SELECT id FROM information_schema.processlist WHERE state LIKE 'Waiting for table%'",
        )?;
        Ok(ids.lines().map(str::parse).collect::<Result<_, _>>()?)
    }

    /// The TCP port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.power.port
    }

    /// The Unix socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("my.sock")
    }

    /// The password of `root@localhost`.
    pub fn root_password(&self) -> &str {
        &self.root_password
    }

    /// What the server wrote to its log.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

/// The data of a server that was never started. Making it takes seconds, copying it a moment: so it is made once in this process.
fn installed() -> Result<PathBuf> {
    static INSTALLED: Mutex<Option<(TempDir, Guard)>> = Mutex::new(None);
    let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((dir, _)) = &*installed {
        return Ok(dir.path().join("data"));
    }
    let dir = tempfile::Builder::new()
        .prefix("mariadb-installed-")
        .tempdir()?;
    // As a `static` it is never dropped.
    let guard = Guard::over(dir.path())?;
    give_to_server_user(dir.path())?;
    let data = dir.path().join("data");
    let output = as_server_user("mariadb-install-db")
        .env("TMPDIR", dir.path())
        .arg("--no-defaults")
        .arg(format!("--datadir={}", data.display()))
        .args(["--auth-root-authentication-method=normal", "--skip-test-db"])
        .stdin(Stdio::null())
        .output()
        .context("cannot run mariadb-install-db; is the package mariadb-server installed?")?;
    ensure!(
        output.status.success(),
        "mariadb-install-db failed: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    *installed = Some((dir, guard));
    Ok(data)
}

/// The server runs as its own user, and has to get through to its directory and to write there.
fn give_to_server_user(directory: &Path) -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let owner = Command::new("chown")
        .arg("mysql:")
        .arg(directory)
        .status()?;
    ensure!(
        owner.success(),
        "cannot give {} to the user mysql",
        directory.display()
    );
    Ok(fs::set_permissions(
        directory,
        fs::Permissions::from_mode(0o755),
    )?)
}

/// A table that nobody can use. Dropping it sets the table free.
pub struct TableLock {
    client: Child,
    stdin: Option<ChildStdin>,
}

impl Drop for TableLock {
    fn drop(&mut self) {
        // The end of its input ends the client, and its connection the lock.
        self.stdin = None;
        let _ = self.client.wait();
    }
}

impl Drop for MariaDb {
    fn drop(&mut self) {
        // Whoever still could turn it on again has nothing to turn on.
        self.kill();
    }
}

/// Turns a server off and on again, from any thread.
#[derive(Clone)]
pub struct Power {
    server: Arc<Mutex<Option<Server>>>,
    dir: PathBuf,
    port: u16,
    options: Vec<String>,
}

impl Power {
    fn first_on(dir: &Path, options: &[&str]) -> Result<Self> {
        let mut tries = 0;
        loop {
            let power = Self {
                server: Arc::default(),
                dir: dir.to_owned(),
                port: port::free()?,
                options: options.iter().map(|&option| option.to_owned()).collect(),
            };
            match power.on() {
                Ok(()) => return Ok(power),
                // Somebody else took the port between our look and the server's.
                Err(_) if tries < 3 => tries += 1,
                Err(error) => return Err(error),
            }
        }
    }

    /// Start it on the same data and port. Nothing happens if it runs.
    pub fn on(&self) -> Result<()> {
        let mut server = self.server();
        if server.is_none() {
            *server = Some(Server::start(&self.dir, self.port, &self.options)?);
        }
        Ok(())
    }

    /// Shut it down in order. Nothing happens if it does not run.
    pub fn off(&self) -> Result<()> {
        match self.server().take() {
            Some(mut server) => server.stop(),
            None => Ok(()),
        }
    }

    fn server(&self) -> MutexGuard<'_, Option<Server>> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Server {
    child: Tied,
}

impl Server {
    fn start(dir: &Path, port: u16, options: &[String]) -> Result<Self> {
        let log = fs::File::create(dir.join("log"))?;
        let mut command = as_server_user("mariadbd");
        command
            // Of its own: a server that starts removes the temporary tables of all others from a shared one.
            .env("TMPDIR", dir.join("tmp"))
            .arg("--no-defaults")
            .arg(format!("--datadir={}", dir.join("data").display()))
            .arg(format!("--socket={}", dir.join("my.sock").display()))
            .arg(format!("--pid-file={}", dir.join("my.pid").display()))
            .arg(format!("--port={port}"))
            .args([
                "--bind-address=127.0.0.1",
                "--local-infile=0",
                // Nobody cuts the power here: what the kernel has is safe enough.
                "--innodb-flush-log-at-trx-commit=0",
                "--innodb-flush-method=nosync",
                "--innodb-doublewrite=0",
                "--sync-frm=0",
            ])
            .args(options)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let mut this = Self {
            child: Tied::spawn(command)
                .context("cannot run mariadbd; is the package mariadb-server installed?")?,
        };
        let deadline = Instant::now() + START_LIMIT;
        // It listens before it is ready, and never ends if it is told to in between.
        while !said(dir)?.contains(READY) {
            let ended = this.child.ended()?;
            if ended.is_some() || Instant::now() > deadline {
                bail!("mariadbd did not start: {}", said(dir)?);
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(this)
    }

    fn stop(&mut self) -> Result<()> {
        self.child.signal(Signal::TERM)?;
        let deadline = Instant::now() + STOP_LIMIT;
        while self.child.ended()?.is_none() {
            ensure!(Instant::now() < deadline, "mariadbd does not stop");
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }
}

/// What the server that started last printed.
fn said(dir: &Path) -> Result<String> {
    Ok(String::from_utf8_lossy(&fs::read(dir.join("log"))?).into_owned())
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// `program` as the user `mysql` if we are root (the server refuses root), tied to the life of the thread that starts it.
fn as_server_user(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    if is_root() {
        command.args(["--reuid=mysql", "--regid=mysql", "--init-groups"]);
    }
    command.args(["--pdeathsig", "KILL", program]);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_answers_restarts_on_its_data_and_leaves_nothing() {
        let mut server = MariaDb::start().unwrap();
        assert_eq!(server.sql("SELECT 1").unwrap(), "1\n");
        assert!(server.sql("SELECT nonsense").is_err());
        server.sql("CREATE DATABASE kept").unwrap();
        server.kill();
        server.restart().unwrap();
        assert_eq!(server.sql("SHOW DATABASES LIKE 'kept'").unwrap(), "kept\n");
        server.stop().unwrap();
        let dir = server.dir.path().to_owned();
        drop(server);
        assert!(!dir.exists());
    }
}
