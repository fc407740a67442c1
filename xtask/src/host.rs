//! This machine as one that things are installed on: the same programs and libraries, with changes that nobody else sees.
//!
//! A mount namespace in which a layer in memory lies over the directories that an installation writes to, and in which all else of this
//! machine can only be read. Never: a file, a mount or a setting of this machine changed; anything left when the value is dropped.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::private::{Guard, Tied, tie};

/// Where services find programs.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

const START_LIMIT: Duration = Duration::from_secs(20);

/// Lays the layers, says that they lie, and keeps the namespace. Of this machine's `/tmp` and `/run` nothing is left in it. No file may be opened for
/// writing on the way: what somebody writes to cannot be made read-only.
const KEEPER: &str = r#"
scratch=$1
shift
mount -t tmpfs -o mode=755 layers "$scratch/layers"
for directory in /etc /opt /root /usr /var; do
    layer="$scratch/layers$directory"
    mkdir -p "$layer/upper" "$layer/work"
    chmod --reference="$directory" "$layer/upper"
    mount -t overlay -o "lowerdir=$directory,upperdir=$layer/upper,workdir=$layer/work" overlay "$directory"
done
while [ $# -gt 0 ]; do
    mkdir -p "$2"
    mount --bind "$1" "$2"
    shift 2
done
cd /
mount -t tmpfs -o mode=1777 tmp /tmp
mount -t tmpfs -o mode=755 run /run
mount --bind /proc/sys /proc/sys
for place in / /dev /proc/sys /sys; do mount -o remount,bind,ro "$place"; done
echo ready
exec sleep infinity
"#;

/// What is installed on it is gone when this is dropped.
pub struct Host {
    keeper: Tied,
    // Dropped after the one whose mounts are in it.
    _scratch: TempDir,
    _guard: Guard,
}

impl Host {
    /// As this machine is, with some of its directories, which can be written to as what they are, at other places.
    pub fn start(shared: &[(&Path, &str)]) -> Result<Self> {
        let scratch = tempfile::Builder::new().prefix("host-").tempdir()?;
        let guard = Guard::over(scratch.path())?;
        fs::create_dir(scratch.path().join("layers"))?;
        let said = scratch.path().join("said");
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--propagation", "private", "--"])
            .args(["sh", "-e", "-c", KEEPER, "sh"])
            .arg(scratch.path());
        for (directory, place) in shared {
            command.arg(directory).arg(place);
        }
        let mut command = tie(&command);
        let ready = scratch.path().join("ready");
        command
            .stdin(Stdio::null())
            .stdout(fs::File::create(&ready)?)
            .stderr(fs::File::create(&said)?);
        let mut keeper = Tied::spawn(command)?;
        let deadline = Instant::now() + START_LIMIT;
        while fs::metadata(&ready).map_or(0, |ready| ready.len()) == 0 {
            if keeper.ended()?.is_some() || Instant::now() > deadline {
                bail!(
                    "no layers can be laid over this machine's directories (it takes root): {}",
                    fs::read_to_string(&said)?.trim()
                );
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(Self {
            keeper,
            _scratch: scratch,
            _guard: guard,
        })
    }

    /// A program on it, in `/`, with nothing in its environment but where programs are, and root's files.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--mount=/proc/{}/ns/mnt", self.keeper.id()))
            .arg("--")
            .arg(program)
            .env_clear()
            .env("PATH", PATH)
            .env("HOME", "/root")
            .stdin(Stdio::null());
        command
    }

    /// Run lines of a shell in `directory`, until the first that fails; what they printed.
    pub fn shell(&self, directory: &str, lines: &str) -> Result<String> {
        let mut command = self.command("sh");
        command
            .args(["-e", "-u", "-c"])
            .arg(format!("cd \"$1\"\n{lines}"))
            .arg("sh")
            .arg(directory);
        let output = command.output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "this failed: {lines}\n{}",
            said.trim()
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// A file with this mode, and the directories on the way to it.
    pub fn write(&self, file: &str, mode: &str, text: &str) -> Result<()> {
        let mut child = self
            .command("install")
            .args(["-D", "-m", mode, "/dev/stdin", file])
            .stdin(Stdio::piped())
            .spawn()?;
        let mut input = child.stdin.take().context("no standard input")?;
        input.write_all(text.as_bytes())?;
        drop(input);
        ensure!(child.wait()?.success(), "{file} cannot be written");
        Ok(())
    }

    /// The text of a file.
    pub fn read(&self, file: &str) -> Result<String> {
        let output = self.command("cat").arg(file).output()?;
        ensure!(output.status.success(), "{file} cannot be read");
        Ok(String::from_utf8(output.stdout)?)
    }
}
