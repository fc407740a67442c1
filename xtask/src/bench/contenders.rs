//! Who is measured: the product by its command line, and the script that it replaces, made of mysqldump, restic, mv and mysql.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;
use xtask::restic::Restic;
use xtask::testbed::{Customer, TestBed};

use super::data::Shop;
use super::line::Line;
use crate::demo_cli::text;
use crate::measure::{self, Usage};

/// Of the script's repository.
pub const PASSWORD: &str = "benchmark";

/// What is measured of a shop, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    First,
    Unchanged,
    Changed,
    List,
    Sync,
    RestoreChanged,
    RestoreUnchanged,
    RestoreFiles,
    RestoreDatabase,
    RestoreWhole,
    RestoreOnline,
}

impl Step {
    pub const ALL: [Self; 11] = [
        Self::First,
        Self::Unchanged,
        Self::Changed,
        Self::List,
        Self::Sync,
        Self::RestoreChanged,
        Self::RestoreUnchanged,
        Self::RestoreFiles,
        Self::RestoreDatabase,
        Self::RestoreWhole,
        Self::RestoreOnline,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::First => "first backup",
            Self::Unchanged => "backup, nothing changed",
            Self::Changed => "backup, 1 % changed",
            Self::List => "list",
            Self::Sync => "sync of the catalogue",
            Self::RestoreChanged => "restore, 1 % changed since",
            Self::RestoreUnchanged => "restore, nothing changed since",
            Self::RestoreFiles => "restore of lost files",
            Self::RestoreDatabase => "restore of a lost database",
            Self::RestoreWhole => "restore of a lost shop",
            Self::RestoreOnline => "restore with --online, 1 % changed since",
        }
    }

    /// What the shop goes through before; and the disk has nothing left to do from before that.
    pub fn prepare(self, bed: &TestBed, shop: &Shop) -> Result<()> {
        match self {
            Self::Changed | Self::RestoreOnline => shop.change(bed)?,
            Self::RestoreFiles | Self::RestoreDatabase | Self::RestoreWhole => shop.wreck(bed)?,
            Self::First
            | Self::Unchanged
            | Self::List
            | Self::Sync
            | Self::RestoreChanged
            | Self::RestoreUnchanged => {}
        }
        rustix::fs::sync();
        Ok(())
    }

    /// Whether the shop has to be afterwards what it was when it was made.
    const fn brings_all_back(self) -> bool {
        matches!(
            self,
            Self::RestoreChanged
                | Self::RestoreUnchanged
                | Self::RestoreWhole
                | Self::RestoreOnline
        )
    }
}

/// What a step took.
#[derive(Debug, Clone, Copy, Default)]
pub struct Taken {
    /// Of all programs, one after the other.
    pub all: Usage,
    /// Of restic among them, by itself: `restic backup`, `restic restore`.
    pub restic: Option<Usage>,
    pub sent: u64,
    pub received: u64,
    /// Bytes of this machine's disk that were in use at the worst moment and not before, the repository's own not counted.
    pub disk: u64,
    /// How long visitors saw the maintenance page.
    pub closed: Duration,
    /// Requests to the server, on a line that counts them.
    pub requests: Option<u64>,
}

/// Take a shop through all steps, on a repository of its own.
pub fn take_through(
    bed: &TestBed,
    shop: &Shop,
    line: &Line,
    contender: &mut dyn Contender,
) -> Result<Vec<(Step, Taken)>> {
    contender.begin()?;
    let mut results = Vec::new();
    for step in Step::ALL {
        measure::check_interrupted()?;
        step.prepare(bed, shop)?;
        let before = line.bytes();
        let requests = line.requests()?;
        let watch = Watch::begin(bed.scratch(), contender.repository(), &shop.customer)?;
        let (all, restic) = contender.take(step).context(step.name())?;
        let (disk, closed) = watch.end()?;
        let after = line.bytes();
        let requests = line
            .requests()?
            .zip(requests)
            .map(|(after, before)| after - before);
        if step.brings_all_back() {
            shop.ensure_as_made(bed).context(step.name())?;
        }
        results.push((
            step,
            Taken {
                all,
                restic,
                sent: after.0 - before.0,
                received: after.1 - before.1,
                disk,
                closed,
                requests,
            },
        ));
    }
    Ok(results)
}

/// A way to back up and restore one shop.
pub trait Contender {
    /// Where its repository is.
    fn repository(&self) -> &Path;
    /// Make an empty repository.
    fn begin(&mut self) -> Result<()>;
    /// Do it; what all programs took, and restic alone.
    fn take(&mut self, step: Step) -> Result<(Usage, Option<Usage>)>;
}

/// The product.
pub struct Ours<'a> {
    pub bed: &'a TestBed,
    pub binary: &'a Path,
    pub line: &'a Line,
    pub first: Option<String>,
    pub repository: PathBuf,
}

impl<'a> Ours<'a> {
    pub fn new(bed: &'a TestBed, binary: &'a Path, line: &'a Line) -> Self {
        Self {
            bed,
            binary,
            line,
            first: None,
            repository: bed.manual_repository(),
        }
    }

    fn run(&self, arguments: &[&str]) -> Result<(Value, Usage)> {
        let mut command = self.bed.product(self.binary);
        self.line.lead("MANUAL", &self.repository, &mut command);
        let (printed, usage) = measure::run(command.arg("--json").args(arguments))?;
        if printed.trim_ascii().is_empty() {
            return Ok((Value::Null, usage));
        }
        Ok((serde_json::from_slice(&printed)?, usage))
    }
}

impl Contender for Ours<'_> {
    fn repository(&self) -> &Path {
        &self.repository
    }

    fn begin(&mut self) -> Result<()> {
        remove(&self.repository)?;
        self.run(&["init"])?;
        // What the catalogue knows of is gone.
        self.run(&["sync"]).map(drop)
    }

    fn take(&mut self, step: Step) -> Result<(Usage, Option<Usage>)> {
        let first = self.first.clone().unwrap_or_default();
        let restore = |options: &[&str]| {
            let arguments = [&["restore", "1", &first, "--yes"], options].concat();
            self.run(&arguments).map(|(_, usage)| usage)
        };
        let usage = match step {
            Step::First => {
                let (printed, usage) = self.run(&["backup", "1"])?;
                self.first = Some(text(&printed, "snapshot_id")?);
                usage
            }
            Step::Unchanged | Step::Changed => self.run(&["backup", "1"])?.1,
            Step::List => self.run(&["list", "1"])?.1,
            Step::Sync => self.run(&["sync"])?.1,
            Step::RestoreFiles => restore(&["--type", "files"])?,
            Step::RestoreDatabase => restore(&["--type", "db"])?,
            Step::RestoreChanged | Step::RestoreUnchanged | Step::RestoreWhole => restore(&[])?,
            Step::RestoreOnline => restore(&["--online"])?,
        };
        Ok((usage, None))
    }
}

/// `mysqldump` to a file, `restic backup`, `restic snapshots`, `restic forget --keep-last 5 --prune`; to restore,
/// `restic restore` into a directory, `mv`, `mysql <`, behind the maintenance page.
pub struct Script<'a> {
    pub bed: &'a TestBed,
    pub customer: &'a Customer,
    restic: Restic,
    first: Option<String>,
    repository: PathBuf,
    prunes: bool,
}

impl<'a> Script<'a> {
    pub fn new(bed: &'a TestBed, customer: &'a Customer, line: &Line) -> Result<Self> {
        let repository = bed.scratch().join("backup-server/scripted");
        Ok(Self {
            bed,
            customer,
            restic: line.restic(&repository, PASSWORD)?,
            first: None,
            repository,
            prunes: true,
        })
    }

    /// Of a repository whose packs are not all there.
    pub fn without_prune(mut self) -> Self {
        self.prunes = false;
        self
    }

    fn dump(&self) -> PathBuf {
        self.bed.scratch().join("scripted-dump.sql")
    }

    fn back_up(&mut self) -> Result<(Usage, Option<Usage>)> {
        let mut program = database_program(self.bed, "mariadb-dump");
        program.args([
            "--single-transaction",
            "--quick",
            "--routines",
            "--triggers",
            "--events",
        ]);
        let dumped = measure::run_into(
            program.arg(&self.customer.database),
            File::create(self.dump())?,
        )?;
        let mut backup = self
            .restic
            .command(["backup", "--tag", "customer-1", "--tag", "manual"]);
        backup.args(
            ["mysql", "redis", "volumes", "logs"]
                .map(|part| format!("--exclude={}", self.customer.directory.join(part).display())),
        );
        let (_, restic) = measure::run(backup.arg(self.dump()).arg(&self.customer.directory))?;
        fs::remove_file(self.dump())?;
        let mut all = dumped.then(restic);
        let list = ["snapshots", "--json", "--tag", "customer-1"];
        all = all.then(measure::run(&mut self.restic.command(list))?.1);
        let forget = ["forget", "--tag", "customer-1", "--keep-last", "5"];
        let mut forget = self.restic.command(forget);
        forget.args(self.prunes.then_some("--prune"));
        all = all.then(measure::run(&mut forget)?.1);
        if self.first.is_none() {
            let snapshots = self.restic.snapshots()?;
            let first = snapshots.first().context("restic has no snapshot")?;
            self.first = Some(text(first, "id")?);
        }
        Ok((all, Some(restic)))
    }

    fn restore(&self, files: bool, database: bool) -> Result<(Usage, Option<Usage>)> {
        let target = self.bed.scratch().join("scripted-target");
        let restored =
            |path: &Path| -> Result<PathBuf> { Ok(target.join(path.strip_prefix("/")?)) };
        let first = self.first.as_deref().context("there is no backup")?;
        let closed = self.customer.directory.join(".maintenance");
        fs::write(&closed, "")?;
        let mut restore = self.restic.command(["restore", first, "--target"]);
        restore.arg(&target);
        if !files {
            restore.arg("--include").arg(self.dump());
        }
        if !database {
            restore.arg("--exclude").arg(self.dump());
        }
        let (_, restic) = measure::run(&mut restore)?;
        let mut all = restic;
        if files {
            let site = self.customer.site();
            let before = self.bed.scratch().join("scripted-before");
            for (from, to) in [(&site, &before), (&restored(&site)?, &site)] {
                all = all.then(measure::run(Command::new("mv").arg(from).arg(to))?.1);
            }
            all = all.then(measure::run(Command::new("rm").arg("-rf").arg(&before))?.1);
        }
        if database {
            let mut import = database_program(self.bed, "mariadb");
            import
                .arg(&self.customer.database)
                .stdin(File::open(restored(&self.dump())?)?);
            all = all.then(measure::run(&mut import)?.1);
        }
        all = all.then(measure::run(Command::new("rm").arg("-rf").arg(&target))?.1);
        fs::remove_file(&closed)?;
        Ok((all, Some(restic)))
    }
}

impl Contender for Script<'_> {
    fn repository(&self) -> &Path {
        &self.repository
    }

    fn begin(&mut self) -> Result<()> {
        remove(&self.repository)?;
        self.restic.init()
    }

    fn take(&mut self, step: Step) -> Result<(Usage, Option<Usage>)> {
        match step {
            Step::First | Step::Unchanged | Step::Changed => self.back_up(),
            // A catalogue is what restic has in its cache: it looks at the repository for every list.
            Step::List | Step::Sync => {
                let line = ["snapshots", "--json", "--tag", "customer-1"];
                let (_, usage) = measure::run(&mut self.restic.command(line))?;
                Ok((usage, Some(usage)))
            }
            Step::RestoreFiles => self.restore(true, false),
            Step::RestoreDatabase => self.restore(false, true),
            Step::RestoreChanged
            | Step::RestoreUnchanged
            | Step::RestoreWhole
            | Step::RestoreOnline => self.restore(true, true),
        }
    }
}

fn remove(directory: &Path) -> Result<()> {
    if directory.exists() {
        fs::remove_dir_all(directory)?;
    }
    Ok(())
}

fn database_program(bed: &TestBed, name: &str) -> Command {
    let mut program = Command::new(name);
    program.args(["--no-defaults", "--user=root"]);
    program.arg(format!("--socket={}", bed.mariadb().socket().display()));
    program
        .env("MYSQL_PWD", bed.mariadb().root_password())
        .stdin(Stdio::null());
    program
}

/// Looks at the disk and at the shop's maintenance page while something runs.
struct Watch {
    ended: std::sync::Arc<AtomicBool>,
    watcher: thread::JoinHandle<Result<(u64, Duration)>>,
    repository: PathBuf,
    repository_before: u64,
    used_before: u64,
}

impl Watch {
    const PAUSE: Duration = Duration::from_millis(5);

    fn begin(scratch: &Path, repository: &Path, customer: &Customer) -> Result<Self> {
        let ended = std::sync::Arc::new(AtomicBool::new(false));
        let until = ended.clone();
        let repository_before = size_of(repository)?;
        let used_before = used(scratch)?;
        let scratch = scratch.to_owned();
        let page = customer.directory.join(".maintenance");
        let watcher = thread::spawn(move || {
            let (mut most, mut closed, mut since) = (0, Duration::ZERO, None);
            while !until.load(Ordering::Acquire) {
                most = most.max(used(&scratch)?);
                match (page.exists(), since) {
                    (true, None) => since = Some(Instant::now()),
                    (false, Some(begun)) => {
                        closed += Instant::elapsed(&begun);
                        since = None;
                    }
                    _ => {}
                }
                thread::sleep(Self::PAUSE);
            }
            closed += since.map_or(Duration::ZERO, |begun| Instant::elapsed(&begun));
            Ok((most, closed))
        });
        Ok(Self {
            ended,
            watcher,
            repository: repository.to_owned(),
            repository_before,
            used_before,
        })
    }

    fn end(self) -> Result<(u64, Duration)> {
        self.ended.store(true, Ordering::Release);
        let watched = self.watcher.join();
        let (most, closed) = watched.map_err(|_| anyhow::anyhow!("the watcher panicked"))??;
        let grown = size_of(&self.repository)?.saturating_sub(self.repository_before);
        Ok((
            most.saturating_sub(self.used_before).saturating_sub(grown),
            closed,
        ))
    }
}

fn used(path: &Path) -> Result<u64> {
    let stat = rustix::fs::statvfs(path)?;
    Ok((stat.f_blocks - stat.f_bfree) * stat.f_frsize)
}

/// What the files below a directory take on the disk.
fn size_of(directory: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        bytes += if entry.file_type()?.is_dir() {
            size_of(&entry.path())?
        } else {
            std::os::unix::fs::MetadataExt::blocks(&entry.metadata()?) * 512
        };
    }
    Ok(bytes)
}
