//! The product's program as an operator runs it, looked over from outside after every run.
//!
//! Whatever a run was about, nothing that is secret may be in what it printed (with everything logged), and nothing may be left
//! of it: no file in its temporary, home and working directories, no process.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::proxy::Proxy;
use crate::testbed::{Customer, TestBed};

/// The longest that anything in a test may take.
const LIMIT: Duration = Duration::from_secs(120);

/// The program on a test bed.
pub struct Product {
    /// The world around it.
    pub bed: TestBed,
    binary: PathBuf,
    scratch: TempDir,
    secrets: Vec<Secret>,
    runs: AtomicUsize,
}

struct Secret {
    name: &'static str,
    forms: Vec<String>,
}

/// A run that may still go on. Dropping it kills the program.
pub struct Running {
    child: Child,
    directory: PathBuf,
    line: String,
}

/// A run that has ended.
#[derive(Debug)]
pub struct Outcome {
    /// The exit status; None when a signal ended it.
    pub code: Option<i32>,
    /// What it printed on standard output.
    pub stdout: String,
    /// What it printed on standard error: messages and log.
    pub stderr: String,
    line: String,
}

impl Product {
    /// The program at `binary` on a test bed of its own.
    pub fn start(binary: impl Into<PathBuf>) -> Result<Self> {
        let bed = TestBed::start()?;
        let mut product = Self {
            binary: binary.into(),
            scratch: tempfile::Builder::new().prefix("product-").tempdir()?,
            secrets: Vec::new(),
            runs: AtomicUsize::new(0),
            bed,
        };
        let password = product.bed.platform_password().to_owned();
        product.keep_secret("the platform's password", &password);
        for (name, file) in [
            (
                "the manual repository's password",
                "manual-repository-password",
            ),
            (
                "the daily repository's password",
                "daily-repository-password",
            ),
        ] {
            let password = fs::read_to_string(product.bed.scratch().join(file))?;
            product.keep_secret(name, password.trim());
        }
        product.keep_key_secret()?;
        Ok(product)
    }

    /// [`TestBed::init`].
    pub fn init(&self) -> Result<()> {
        self.bed.init(&self.binary)
    }

    /// [`TestBed::add_customer`], whose password is a secret from now on.
    pub fn add_customer(&mut self, id: u32) -> Result<Customer> {
        let customer = self.bed.add_customer(id)?;
        self.keep_secret("a customer's password", &customer.password);
        Ok(customer)
    }

    /// No run may print this, nor show it in its arguments.
    pub fn keep_secret(&mut self, name: &'static str, secret: &str) {
        self.secrets.push(Secret {
            name,
            forms: forms(secret.as_bytes(), Some(secret)),
        });
    }

    /// The private key that logs in at the backup server: its text, line by line, and the number in it.
    fn keep_key_secret(&mut self) -> Result<()> {
        let file = self.bed.sshd().client_key();
        let pem = fs::read_to_string(&file)?;
        let lines: Vec<&str> = pem.lines().filter(|line| !line.starts_with('-')).collect();
        // What comes first is the same in every key.
        self.secrets.push(Secret {
            name: "the SSH key",
            forms: lines
                .iter()
                .skip(1)
                .map(|line| (*line).to_owned())
                .collect(),
        });
        let decoded = Command::new("sh")
            .args(["-c", "grep -v ^- \"$1\" | base64 -d", "sh"])
            .arg(&file)
            .output()?
            .stdout;
        let at = decoded
            .windows(4)
            .rposition(|window| window == [0, 0, 0, 64])
            .context("the SSH key is not of the kind ed25519")?;
        let seed = decoded
            .get(at + 4..at + 36)
            .context("the SSH key is too short")?;
        self.secrets.push(Secret {
            name: "the SSH key's number",
            forms: forms(seed, None),
        });
        Ok(())
    }

    /// Panics when there is a secret in the text.
    #[track_caller]
    pub fn assert_no_secret(&self, place: &str, text: &str) {
        for secret in &self.secrets {
            for form in &secret.forms {
                if let Some(at) = text.find(form) {
                    let start = text[..at].rfind('\n').map_or(0, |at| at + 1);
                    panic!("{} is in {place}, after: {}", secret.name, &text[start..at]);
                }
            }
        }
    }

    /// The program with the words of `line` as its arguments, logging all that it can log.
    pub fn command(&self, line: &str) -> Command {
        let mut command = self.bed.product(&self.binary);
        command
            .args(line.split_whitespace())
            .env("RUST_LOG", "trace");
        command
    }

    /// Let a command reach the manual repository through a proxy, and give up an outage after two seconds.
    pub fn through(&self, proxy: &Proxy, command: &mut Command) -> Result<()> {
        self.bed.through(proxy, command)
    }

    /// Run `line` to its end.
    #[track_caller]
    pub fn run(&self, line: &str) -> Outcome {
        self.run_command(self.command(line))
    }

    /// Run a command to its end.
    #[track_caller]
    pub fn run_command(&self, command: Command) -> Outcome {
        let running = self.spawn(command);
        self.finish(running)
    }

    /// Start a command, in directories of its own.
    #[track_caller]
    pub fn spawn(&self, command: Command) -> Running {
        self.try_spawn(command)
            .unwrap_or_else(|error| panic!("the product does not start: {error:#}"))
    }

    fn try_spawn(&self, mut command: Command) -> Result<Running> {
        let number = self.runs.fetch_add(1, Ordering::Relaxed);
        let directory = self.scratch.path().join(format!("run-{number}"));
        for name in ["tmp", "home", "work"] {
            fs::create_dir_all(directory.join(name))?;
        }
        let line: Vec<_> = command
            .get_args()
            .skip(2)
            .map(|arg| arg.to_string_lossy().into_owned())
            .collect();
        command
            .env("TMPDIR", directory.join("tmp"))
            .env("HOME", directory.join("home"))
            .current_dir(directory.join("work"))
            .stdout(File::create(directory.join("stdout"))?)
            .stderr(File::create(directory.join("stderr"))?);
        Ok(Running {
            child: command.spawn()?,
            directory,
            line: line.join(" "),
        })
    }

    /// Wait for the end of a run and look it over.
    #[track_caller]
    pub fn finish(&self, mut running: Running) -> Outcome {
        let line = running.line.clone();
        wait_until(&format!("`{line}` ends"), || !running.is_running());
        let read = |name: &str| {
            let bytes = fs::read(running.directory.join(name)).unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let outcome = Outcome {
            code: running.child.wait().ok().and_then(|status| status.code()),
            stdout: read("stdout"),
            stderr: read("stderr"),
            line,
        };
        self.assert_no_secret(&format!("what `{}` printed", outcome.line), &outcome.stdout);
        self.assert_no_secret(
            &format!("what `{}` printed and logged", outcome.line),
            &outcome.stderr,
        );
        for name in ["tmp", "home", "work"] {
            let left = names_in(&running.directory.join(name));
            assert!(left.is_empty(), "`{}` left {left:?}", outcome.line);
        }
        let marker = format!("TMPDIR={}", running.directory.join("tmp").display());
        wait_until(
            &format!("the processes of `{}` are gone", outcome.line),
            || processes_with(&marker).is_empty(),
        );
        outcome
    }

    /// Names of the files of one kind in the manual repository: `snapshots`, `locks`, …; not of those still being written.
    pub fn repository_files(&self, kind: &str) -> Vec<String> {
        let mut names = names_in(&self.bed.manual_repository().join(kind));
        names.retain(|name| !name.starts_with(".tmp-"));
        names
    }
}

impl Running {
    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed on standard error so far.
    pub fn log(&self) -> String {
        let bytes = fs::read(self.directory.join("stderr")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Send it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let id = i32::try_from(self.child.id())?;
        let process = Pid::from_raw(id).context("no process id")?;
        Ok(kill_process(process, signal)?)
    }

    /// Wait until something has come true while it runs.
    #[track_caller]
    pub fn until(&mut self, what: &str, mut condition: impl FnMut() -> bool) {
        wait_until(what, || {
            let holds = condition();
            assert!(
                holds || self.is_running(),
                "`{}` ended before this: {what}: {}",
                self.line,
                messages(&fs::read_to_string(self.directory.join("stderr")).unwrap_or_default())
            );
            holds
        });
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Outcome {
    /// It went well: gives standard output.
    #[track_caller]
    pub fn done(&self) -> &str {
        assert_eq!(self.code, Some(0), "`{}`: {}", self.line, self.messages());
        &self.stdout
    }

    /// It went well with `--json`: gives the document.
    #[track_caller]
    pub fn document(&self) -> Value {
        let text = self.done();
        serde_json::from_str(text).unwrap_or_else(|e| panic!("`{}`: {e}: {text}", self.line))
    }

    /// It failed with this status and one clear error, the same on both outputs where `--json` was asked for. Gives the error.
    #[track_caller]
    pub fn refusal(&self, code: i32) -> String {
        assert_eq!(
            self.code,
            Some(code),
            "`{}`: {}",
            self.line,
            self.messages()
        );
        let errors: Vec<&str> = self
            .stderr
            .lines()
            .filter_map(|line| line.strip_prefix("error: "))
            .collect();
        let [error] = errors.as_slice() else {
            panic!("`{}`: not one error but {errors:#?}", self.line)
        };
        assert!(error.len() > 20, "`{}`: {error}", self.line);
        if self.line.contains("--json") {
            let document: Value = serde_json::from_str(&self.stdout)
                .unwrap_or_else(|e| panic!("`{}`: {e}: {}", self.line, self.stdout));
            assert_eq!(
                document,
                serde_json::json!({ "success": false, "error": error }),
                "`{}`",
                self.line
            );
        } else {
            assert_eq!(self.stdout, "", "`{}`", self.line);
        }
        (*error).to_owned()
    }

    /// What it said to people: standard error without the log.
    pub fn messages(&self) -> String {
        messages(&self.stderr)
    }
}

fn messages(stderr: &str) -> String {
    // A line of the log begins with a time.
    let is_message = |line: &&str| !(line.starts_with("20") && line.contains('Z'));
    let lines: Vec<&str> = stderr.lines().filter(is_message).collect();
    lines.join("\n")
}

/// Wait for a condition; panics when it does not come true in time.
#[track_caller]
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// What `ps` shows to everybody: the arguments of all processes.
pub fn arguments_of_all_processes() -> Result<String> {
    let ps = Command::new("ps")
        .arg("auxww")
        .stdin(Stdio::null())
        .output()
        .context("cannot run ps")?;
    ensure!(ps.status.success(), "ps failed");
    let mut text = String::from_utf8_lossy(&ps.stdout).into_owned();
    for process in processes() {
        // Empty for a process that is gone.
        let line = fs::read(process.join("cmdline")).unwrap_or_default();
        text.push('\n');
        text.extend(String::from_utf8_lossy(&line).chars().map(|c| match c {
            '\0' => ' ',
            c => c,
        }));
    }
    Ok(text)
}

fn processes() -> Vec<PathBuf> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter(|entry| {
            entry
                .file_name()
                .as_encoded_bytes()
                .iter()
                .all(u8::is_ascii_digit)
        })
        .map(|entry| entry.path())
        .collect()
}

/// The processes that have `marker` in their environment.
fn processes_with(marker: &str) -> Vec<PathBuf> {
    let mut found = processes();
    found.retain(|process| {
        let environment = fs::read(process.join("environ")).unwrap_or_default();
        environment
            .split(|byte| *byte == 0)
            .any(|variable| variable == marker.as_bytes())
    });
    found
}

fn names_in(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// How a secret may be printed: as it is, in hexadecimal, as the numbers of its bytes.
fn forms(secret: &[u8], text: Option<&str>) -> Vec<String> {
    let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
    let numbers: Vec<String> = secret.iter().map(u8::to_string).collect();
    let mut forms = vec![
        hex.to_uppercase(),
        hex,
        numbers.join(", "),
        numbers.join(","),
    ];
    forms.extend(text.map(str::to_owned));
    forms
}
