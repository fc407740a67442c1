//! How long a restore takes and how much memory, with everything fetched and with a live site that has it all.
//!
//! `cargo bench --bench restore -- [FILES] [MEGABYTES]` prints it: of so many files with so many bytes and a dump of a quarter of them; without
//! numbers of 25000 files with 1000 MB. What comes back is compared with what was saved. Every restore is a process of its own.

use std::env;
use std::fs::{self, File};
use std::io::{self, Read, Write as _};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use backup_core::progress::Control;
use backup_core::repository::{ArchiveRequest, Repository, RestoreRules, StreamSource, TreeSource};
use backup_core::storage::{self, Storage, StorageOptions};
use jiff::Zoned;
use xtask::machine::bytes;
use xtask::proxy::Proxy;
use xtask::sshd::Sshd;
use xtask::tree::TreeImage;

const PASSWORD: &str = "correct horse";
const DUMP: &str = "/tmp/dump.sql";
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
    let numbers: Vec<u64> = env::args().filter_map(|text| text.parse().ok()).collect();
    let files = numbers.first().copied().unwrap_or(25_000);
    let megabytes = numbers.get(1).copied().unwrap_or(1_000);
    let scratch = tempfile::tempdir()?;
    measure(scratch.path(), files, megabytes * 1_000_000)
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

fn measure(scratch: &Path, files: u64, total: u64) -> Result<()> {
    let site = scratch.join("site");
    generate(&site, files, total)?;
    let expected = TreeImage::of(&site)?;
    let repository = scratch.join("repository");
    archive(&repository, &site, total / 4)?;

    let sshd = Sshd::start()?;
    let proxy = Proxy::start(sshd.port())?;
    proxy.set_delay(Duration::from_millis(10));
    let known_hosts = scratch.join("known_hosts");
    let key = sshd.host_key()?;
    let hosts = [sshd.port(), proxy.port()].map(|port| format!("[127.0.0.1]:{port} {key}"));
    fs::write(&known_hosts, hosts.join("\n"))?;
    println!(
        "{files} files, {}, a dump of {}",
        bytes(total),
        bytes(total / 4)
    );
    println!("| repository | live site | plan | files | dump | peak memory |");
    println!("|---|---|---:|---:|---:|---:|");
    for (name, location) in [
        ("directory", repository.display().to_string()),
        ("SFTP", sshd.location_at(sshd.port(), &repository)),
        ("SFTP, 20 ms", sshd.location_at(proxy.port(), &repository)),
    ] {
        for is_live in [false, true] {
            let target = scratch.join("target");
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
            let live = if is_live { "unchanged" } else { "-" };
            print!(
                "| {name} | {live} {}",
                String::from_utf8_lossy(&output.stdout)
            );
            let differences = expected.differences(&TreeImage::of(&target)?);
            ensure!(differences.is_empty(), "{differences:?}");
            fs::remove_dir_all(&target)?;
        }
    }
    Ok(())
}

fn restore(task: &Task) -> Result<()> {
    let options = StorageOptions {
        ssh_key: task.ssh_key.clone(),
        known_hosts: task.known_hosts.clone(),
        ..StorageOptions::default()
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
    println!(
        "| {:.2} s | {:.2} s | {:.2} s | {} |",
        planned.as_secs_f64(),
        restored.as_secs_f64(),
        streamed.as_secs_f64(),
        bytes(peak_memory()?)
    );
    Ok(())
}

fn peak_memory() -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let text = line.context("the kernel tells no peak")?;
    let kilobytes = text.trim_end_matches("kB").trim();
    Ok(kilobytes.parse::<u64>()? * 1024)
}

fn archive(repository: &Path, site: &Path, dump: u64) -> Result<()> {
    let location = repository.to_str().context("a path that is no text")?;
    let storage: Arc<dyn Storage> = storage::open(&location.parse()?, &StorageOptions::default())?;
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

/// One file in ten is large, half of the bytes are in those.
fn generate(site: &Path, files: u64, total: u64) -> Result<()> {
    let large = (files / 10).max(1);
    for number in 0..files {
        let directory = site.join(format!(
            "uploads/{:03}/{:02}",
            number / 1000,
            number / 100 % 10
        ));
        fs::create_dir_all(&directory)?;
        let size = match number % 10 {
            0 => total / 2 / large,
            _ => total / 2 / (files - large).max(1),
        };
        let mut file = File::create(directory.join(format!("file-{number}")))?;
        io::copy(&mut Content::new(number).take(size), &mut file)?;
        file.flush()?;
    }
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
