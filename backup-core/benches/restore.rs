//! How long a restore takes and how much memory, with everything fetched and with a live site that has it all.
//!
//! `cargo bench -p backup-core --bench restore` measures a shop of 25000 files with 1000 MB, and a million tiny files in many directories and in one, and
//! writes docs/benchmarks-restore.md; with `-- shop FILES MEGABYTES`, `-- spread FILES` or `-- flat FILES` it prints what that takes. A dump of a quarter of the
//! bytes is restored along. The stock restic restores the same. What comes back is compared with what was saved. Every restore is a process of its own.
//! It fails where one of ours holds more memory than any may.

use std::env;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use backup_core::progress::Control;
use backup_core::repository::{ArchiveRequest, Repository, RestoreRules, StreamSource, TreeSource};
use backup_core::storage::{self, SftpOptions, Storage};
use jiff::Zoned;
use xtask::machine::{self, bytes};
use xtask::proxy::Proxy;
use xtask::restic::Restic;
use xtask::sshd::Sshd;
use xtask::tree::TreeImage;

const PASSWORD: &str = "correct horse";
const DUMP: &str = "/tmp/dump.sql";
/// What a restore may hold at once.
const MEMORY_MAX: u64 = 256_000_000;
/// Tells a process that it is to restore, and nothing else.
const CHILD: &str = "BENCH_RESTORE_CHILD";

fn main() -> Result<()> {
    if let Ok(task) = env::var(CHILD) {
        return restore(&serde_json::from_str(&task)?);
    }
    // Without it cargo only wants to know that this can be run.
    if !env::args().any(|argument| argument == "--bench") {
        return Ok(());
    }
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let wanted = arguments.iter().copied().filter(|text| *text != "--bench");
    let site = match wanted.collect::<Vec<_>>()[..] {
        ["shop", files, megabytes] => {
            Site::shop(files.parse()?, megabytes.parse::<u64>()? * 1_000_000)
        }
        ["spread", files] => Site::spread(files.parse()?),
        ["flat", files] => Site::flat(files.parse()?),
        _ => return write_report(),
    };
    println!("{}", measure(&site)?);
    Ok(())
}

fn write_report() -> Result<()> {
    let restic = Command::new("restic").arg("version").output()?.stdout;
    let restic = String::from_utf8_lossy(&restic);
    let report = format!(
        "# Benchmarks of restoring\n\nWritten by `make bench`.\n\n- Machine: {}, {}.\n- The repository: a directory, or one behind a private SSH server, \
         without delay and with 20 ms. The live site: empty, or with all the files of the backup unchanged.\n- What came back was compared with \
         what went in. Memory is the most that the process held, the index of the repository included; it fails above {}.\n\n{}\n{}\n{}",
        machine::describe()?,
        restic.split(" compiled").next().unwrap_or_default().trim(),
        bytes(MEMORY_MAX),
        measure(&Site::shop(25_000, 1_000_000_000))?,
        measure(&Site::spread(1_000_000))?,
        measure(&Site::flat(1_000_000))?,
    );
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    fs::write(docs.join("benchmarks-restore.md"), &report)?;
    println!("{report}\nWritten to docs/benchmarks-restore.md.");
    Ok(())
}

/// What is restored.
struct Site {
    name: &'static str,
    files: u64,
    bytes: u64,
    shape: Shape,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// One file in ten is large, half of the bytes are in those.
    Shop,
    /// Tiny files, a hundred in each directory.
    Spread,
    /// Tiny files, all in one directory.
    Flat,
}

impl Site {
    fn shop(files: u64, bytes: u64) -> Self {
        Self {
            name: "A shop",
            files,
            bytes,
            shape: Shape::Shop,
        }
    }

    fn spread(files: u64) -> Self {
        Self {
            name: "Tiny files in many directories",
            files,
            bytes: files * 8,
            shape: Shape::Spread,
        }
    }

    fn flat(files: u64) -> Self {
        Self {
            name: "Tiny files in one directory",
            files,
            bytes: files * 8,
            shape: Shape::Flat,
        }
    }

    /// Where the file of this number is, and its size.
    fn file(&self, number: u64) -> (PathBuf, u64) {
        let large = (self.files / 10).max(1);
        let size = match (self.shape, number % 10) {
            (Shape::Spread | Shape::Flat, _) => self.bytes / self.files,
            (Shape::Shop, 0) => self.bytes / 2 / large,
            (Shape::Shop, _) => self.bytes / 2 / (self.files - large).max(1),
        };
        let directory = match self.shape {
            Shape::Flat => "uploads".to_owned(),
            _ => format!("uploads/{:04}/{:02}", number / 1000, number / 100 % 10),
        };
        (Path::new(&directory).join(format!("file-{number}")), size)
    }

    fn generate(&self, root: &Path) -> Result<()> {
        let mut made = PathBuf::new();
        for number in 0..self.files {
            let (path, size) = self.file(number);
            let path = root.join(path);
            if path.parent() != Some(&made) {
                made = path.parent().context("no directory")?.to_owned();
                fs::create_dir_all(&made)?;
            }
            let mut file = File::create(path)?;
            io::copy(&mut Content::new(number + 1).take(size), &mut file)?;
        }
        Ok(())
    }

    /// With a million files each way takes minutes, and what the line takes is seen with fewer.
    fn is_measured_over_sftp(&self) -> bool {
        self.shape == Shape::Shop
    }
}

/// What a process restores.
#[derive(serde::Serialize, serde::Deserialize)]
struct Task {
    location: String,
    ssh_key: Option<PathBuf>,
    known_hosts: Option<PathBuf>,
    site: PathBuf,
    is_live: bool,
    target: PathBuf,
}

/// What that took: seconds and bytes.
#[derive(serde::Serialize, serde::Deserialize)]
struct Took {
    planned: f64,
    restored: f64,
    streamed: f64,
    peak_memory: u64,
}

/// Restore it every way; a table.
fn measure(what: &Site) -> Result<String> {
    let scratch = tempfile::tempdir()?;
    let scratch = scratch.path();
    let site = scratch.join("site");
    what.generate(&site)?;
    let expected = TreeImage::of(&site)?;
    let repository = scratch.join("repository");
    archive(&repository, &site, what.bytes / 4)?;

    let sshd = Sshd::start()?;
    let proxy = Proxy::start(sshd.port())?;
    proxy.set_delay(Duration::from_millis(10));
    let known_hosts = scratch.join("known_hosts");
    let key = sshd.host_key()?;
    let hosts = [sshd.port(), proxy.port()].map(|port| format!("[127.0.0.1]:{port} {key}"));
    fs::write(&known_hosts, hosts.join("\n"))?;
    let mut table = format!(
        "## {}\n\n{} files, {}, a dump of {}\n\n| program | repository | live site | plan | files | dump | peak memory |\n|---|---|---|---:|---:|---:|---:|\n",
        what.name,
        what.files,
        bytes(what.bytes),
        bytes(what.bytes / 4)
    );
    let mut ways = vec![("directory", repository.display().to_string())];
    if what.is_measured_over_sftp() {
        ways.extend([
            ("SFTP", sshd.location_at(sshd.port(), &repository)),
            ("SFTP, 20 ms", sshd.location_at(proxy.port(), &repository)),
        ]);
    }
    let target = scratch.join("target");
    let mut peak = 0;
    for (name, location) in ways {
        for is_live in [false, true] {
            fs::create_dir(&target)?;
            let task = Task {
                location: location.clone(),
                ssh_key: Some(sshd.client_key()),
                known_hosts: Some(known_hosts.clone()),
                site: site.clone(),
                is_live,
                target: target.clone(),
            };
            let output = Command::new(env::current_exe()?)
                .env(CHILD, serde_json::to_string(&task)?)
                .output()?;
            ensure!(
                output.status.success(),
                "{}",
                String::from_utf8_lossy(&output.stderr)
            );
            let took: Took = serde_json::from_slice(&output.stdout)?;
            writeln!(
                table,
                "| ours | {name} | {} | {:.2} s | {:.2} s | {:.2} s | {} |",
                if is_live { "unchanged" } else { "empty" },
                took.planned,
                took.restored,
                took.streamed,
                bytes(took.peak_memory)
            )?;
            peak = peak.max(took.peak_memory);
            let differences = expected.differences(&TreeImage::of(&target)?);
            ensure!(differences.is_empty(), "{differences:?}");
            fs::remove_dir_all(&target)?;
        }
    }
    let restic = Restic::new(&repository, PASSWORD)?;
    let mut restore = restic.command(["restore", "latest", "--target"]);
    let begun = Instant::now();
    let child = restore.arg(&target).stdout(Stdio::null()).spawn()?;
    let held = watch(child)?;
    writeln!(
        table,
        "| restic | directory | empty | | {:.2} s with the dump | | {} |",
        begun.elapsed().as_secs_f64(),
        bytes(held)
    )?;
    let differences = expected.differences(&TreeImage::of(&target.join(site.strip_prefix("/")?))?);
    ensure!(differences.is_empty(), "restic: {differences:?}");
    ensure!(
        peak < MEMORY_MAX,
        "{table}\nthat is more than {}",
        bytes(MEMORY_MAX)
    );
    Ok(table)
}

/// Wait for its end; the most memory that it held.
fn watch(mut child: Child) -> Result<u64> {
    let mut peak = 0;
    loop {
        peak = peak_memory(child.id()).unwrap_or(peak);
        if let Some(status) = child.try_wait()? {
            ensure!(status.success(), "restic failed: {status}");
            return Ok(peak);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn restore(task: &Task) -> Result<()> {
    let options = SftpOptions {
        ssh_key: task.ssh_key.clone(),
        known_hosts: task.known_hosts.clone(),
        ..SftpOptions::default()
    };
    let storage = storage::open(&task.location.parse()?, &options)?;
    let repository = Arc::new(Repository::open(storage, &PASSWORD.to_owned().into())?);
    let _lock = repository.lock_shared()?;
    let control = Control::default();
    let snapshots = repository.snapshots()?;
    let snapshot = snapshots.first().context("no snapshot")?;
    let begun = Instant::now();
    let rules = RestoreRules::everything();
    let plan = repository.plan_restore(snapshot, &task.site, &rules, &control.cancel)?;
    let planned = begun.elapsed();
    let target = File::open(&task.target)?;
    let live = File::open(&task.site)?;
    let live = task.is_live.then(|| live.as_fd());
    repository.restore(&plan, target.as_fd(), live, &control)?;
    let restored = begun.elapsed() - planned;
    let mut dump = repository.stream_file(snapshot, Path::new(DUMP), &control)?;
    io::copy(&mut dump, &mut io::sink())?;
    let streamed = begun.elapsed() - planned - restored;
    let took = Took {
        planned: planned.as_secs_f64(),
        restored: restored.as_secs_f64(),
        streamed: streamed.as_secs_f64(),
        peak_memory: peak_memory(std::process::id())?,
    };
    println!("{}", serde_json::to_string(&took)?);
    Ok(())
}

fn peak_memory(process: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let text = line.context("the kernel tells no peak")?;
    let kilobytes = text.trim_end_matches("kB").trim();
    Ok(kilobytes.parse::<u64>()? * 1024)
}

fn archive(repository: &Path, site: &Path, dump: u64) -> Result<()> {
    let location = repository.to_str().context("a path that is no text")?;
    let storage: Arc<dyn Storage> = storage::open(&location.parse()?, &SftpOptions::default())?;
    let repository = Repository::init(storage, &PASSWORD.to_owned().into())?;
    let request = ArchiveRequest {
        trees: vec![TreeSource::in_place(site.to_owned(), Vec::new())],
        streams: vec![StreamSource {
            path: DUMP.into(),
            reader: Box::new(Content::new(1).take(dump)),
        }],
        paths: vec![site.to_owned()],
        tags: Vec::new(),
        time: Zoned::now(),
        note: None,
        parent: None,
    };
    let control = Control::default();
    let lock = repository.lock_shared()?;
    repository
        .archive(lock, request, &control)?
        .commit(&control)?;
    Ok(())
}

/// Bytes without end that compress to about a half, other ones for every seed.
struct Content(u64);

impl Content {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }
}

impl Read for Content {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        for word in buffer.chunks_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            let random = (self.0 as u32).to_le_bytes();
            let (half, rest) = word.split_at_mut(word.len().min(4));
            half.copy_from_slice(&random[..half.len()]);
            rest.fill(b' ');
        }
        Ok(buffer.len())
    }
}
