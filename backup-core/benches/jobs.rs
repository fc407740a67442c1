//! How fast the jobs' table, a customer's list, a monitoring's figures and the sync of the catalogue are, on MariaDB and on SQLite.
//!
//! `cargo bench -p backup-core --bench jobs` writes docs/benchmarks-jobs.md; with `-- --quick` a tenth of everything is measured, and printed only.

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use backup_core::catalog::{Catalog, Missing, SyncReport};
use backup_core::config::{Config, Environment, Origin};
use backup_core::customer::{CustomerId, DEFAULT_SERVER};
use backup_core::jobs::{Created, Failure, JobStore, JobType, NewJob, owner_of_this_process};
use backup_core::progress::Control;
use backup_core::repository::{ArchiveRequest, BackupType, Repository, TreeSource};
use backup_core::service::BackupService;
use backup_core::storage::{self, Storage, StorageOptions};
use backup_core::store::Store;
use jiff::Zoned;
use sqlx::sqlite::SqlitePool;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use xtask::machine;
use xtask::mariadb::MariaDb;
use xtask::proxy::Proxy;
use xtask::sshd::Sshd;

const LEASE: Duration = Duration::from_secs(60);
const MONTH: Duration = Duration::from_secs(30 * 24 * 60 * 60);
const PASSWORD: &str = "correct horse";
/// At once.
const TASKS: [u32; 2] = [1, 8];
/// With 5 manual and 30 daily backups each.
const CUSTOMERS: u32 = 10_000;
const ROWS: u32 = 35 * CUSTOMERS;
/// Jobs that ended long ago.
const HISTORY: u32 = 10 * CUSTOMERS;
/// Stands for the database's clock in milliseconds.
const NOW: &str = "{now}";

/// How much is measured.
struct Extent {
    jobs: u32,
    lists: u32,
    snapshots: u32,
}

fn main() -> Result<()> {
    // Without it cargo only wants to know that this can be run.
    if !env::args().any(|argument| argument == "--bench") {
        return Ok(());
    }
    let is_quick = env::args().any(|argument| argument == "--quick");
    let extent = match is_quick {
        true => Extent {
            jobs: 200,
            lists: 500,
            snapshots: 200,
        },
        false => Extent {
            jobs: 2_000,
            lists: 5_000,
            snapshots: 2_000,
        },
    };
    let runtime = Runtime::new()?;
    let bench = Bench {
        mariadb: MariaDb::start()?,
        scratch: tempfile::tempdir()?,
        extent,
    };
    let mut report = bench.preface()?;
    println!("{report}");
    for section in [
        bench.jobs(&runtime)?,
        bench.lists(&runtime)?,
        bench.syncs(&runtime)?,
    ] {
        println!("{section}");
        write!(report, "\n{section}")?;
    }
    if !is_quick {
        let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
        fs::write(docs.join("benchmarks-jobs.md"), report)?;
        println!("Written to docs/benchmarks-jobs.md.");
    }
    Ok(())
}

struct Bench {
    mariadb: MariaDb,
    scratch: TempDir,
    extent: Extent,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    MariaDb,
    Sqlite,
}

const KINDS: [Kind; 2] = [Kind::MariaDb, Kind::Sqlite];

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::MariaDb => "MariaDB",
            Self::Sqlite => "SQLite",
        }
    }
}

/// A database with its tables and nothing in them.
struct Database {
    config: Config,
    store: Store,
    raw: Raw,
}

enum Raw {
    Schema(String),
    File(PathBuf),
}

impl Bench {
    fn preface(&self) -> Result<String> {
        Ok(format!(
            "# Benchmarks of jobs and catalogue\n\nWritten by `make bench`.\n\n- Machine: {}; a write that has to reach its disk takes {}.\n\
             - MariaDB as it comes from Debian, on the same machine; SQLite as the embedded store has it. Both flush each commit to the disk.\n",
            machine::describe()?,
            milliseconds(self.flush_time()?)
        ))
    }

    /// The median of appending 4 KiB to a file and flushing it.
    fn flush_time(&self) -> Result<Duration> {
        let mut file = fs::File::create(self.scratch.path().join("flushed"))?;
        let mut times = Vec::new();
        for _ in 0..50 {
            let started = Instant::now();
            file.write_all(&[0; 4096])?;
            file.sync_all()?;
            times.push(started.elapsed());
        }
        Ok(percentile(&mut times, 50))
    }

    async fn database(&self, kind: Kind, name: &str) -> Result<Database> {
        let (url, raw) = match kind {
            Kind::MariaDb => {
                self.mariadb.sql(&format!(
                    "CREATE DATABASE {name}; CREATE TABLE {name}.customers (id INT PRIMARY KEY)"
                ))?;
                let url = format!("mysql://root@127.0.0.1:{}/{name}", self.mariadb.port());
                (url, Raw::Schema(name.to_owned()))
            }
            Kind::Sqlite => {
                let path = self.scratch.path().join(format!("{name}.db"));
                (format!("sqlite://{}", path.display()), Raw::File(path))
            }
        };
        let text = format!(
            "[database]\nurl = '{url}'\n[repositories.manual]\nlocation = '/r'\npassword_file = '/p'\n"
        );
        let password: Environment = [("DB_PASSWORD", self.mariadb.root_password())]
            .into_iter()
            .collect();
        let config = Config::read(Origin::File("bench".into()), &text, &password)?;
        let store = Store::connect(&config).await?;
        store.migrate().await?;
        Ok(Database { config, store, raw })
    }

    fn jobs(&self, runtime: &Runtime) -> Result<String> {
        let mut text = format!(
            "## Jobs\n\n{} jobs of as many customers, beside {HISTORY} that ended earlier, by so many tasks of one process. *Ended*: taken up, and ended.\n\n\
             | | tasks | created a second | ended a second |\n|---|---|---|---|\n",
            self.extent.jobs
        );
        for kind in KINDS {
            for tasks in TASKS {
                let name = format!("jobs_{tasks}");
                let (created, ended) = runtime.block_on(async {
                    let database = self.database(kind, &name).await?;
                    self.fill(&database).await?;
                    let jobs = JobStore::new(&database.store, LEASE);
                    let created = self.timed_tasks(tasks, |task| create(&jobs, task)).await?;
                    let ended = self.timed_tasks(tasks, |_| end_all(&jobs)).await?;
                    database.store.close().await;
                    anyhow::Ok((created, ended))
                })?;
                writeln!(
                    text,
                    "| {} | {tasks} | {created:.0} | {ended:.0} |",
                    kind.name()
                )?;
            }
        }
        Ok(text)
    }

    /// Jobs a second, when so many tasks do it; each is given its share of the customers, and says how many jobs it did.
    async fn timed_tasks<F>(&self, tasks: u32, run: impl Fn(Vec<u32>) -> F) -> Result<f64>
    where
        F: Future<Output = Result<u32>> + Send + 'static,
    {
        let share = |task| (1..=self.extent.jobs).filter(move |n| n % tasks == task);
        let mut running = JoinSet::new();
        let started = Instant::now();
        for task in 0..tasks {
            running.spawn(run(share(task).collect()));
        }
        let mut done = 0;
        while let Some(task) = running.join_next().await {
            done += task??;
        }
        let took = started.elapsed();
        ensure!(
            done == self.extent.jobs,
            "{done} jobs instead of {}",
            self.extent.jobs
        );
        Ok(f64::from(done) / took.as_secs_f64())
    }

    fn lists(&self, runtime: &Runtime) -> Result<String> {
        let mut text = format!(
            "## What a dashboard asks\n\n{ROWS} backups and {HISTORY} ended jobs of {CUSTOMERS} customers; {} questions of each kind, one after the other, a fiftieth for the figures.\n\n\
             | | | median | 99 of 100 |\n|---|---|---|---|\n",
            self.extent.lists
        );
        for kind in KINDS {
            let [lists, active, newest, figures] = runtime.block_on(self.list_times(kind))?;
            for (question, mut times) in [
                ("all backups of a customer", lists),
                ("his running job", active),
                ("his ten newest jobs", newest),
                ("all figures for a monitoring", figures),
            ] {
                writeln!(
                    text,
                    "| {} | {question} | {} | {} |",
                    kind.name(),
                    milliseconds(percentile(&mut times, 50)),
                    milliseconds(percentile(&mut times, 99)),
                )?;
            }
        }
        Ok(text)
    }

    async fn list_times(&self, kind: Kind) -> Result<[Vec<Duration>; 4]> {
        let database = self.database(kind, "lists").await?;
        self.fill(&database).await?;
        let catalog = Catalog::new(&database.store);
        let jobs = JobStore::new(&database.store, LEASE);
        let [mut lists, mut active, mut newest, mut figures] = <[Vec<Duration>; 4]>::default();
        for n in 0..self.extent.lists {
            // All over the table: both numbers have no common divisor.
            let customer = CustomerId::new(1 + n * 7919 % CUSTOMERS)?;
            let started = Instant::now();
            let list = catalog.list(customer, MONTH).await?;
            lists.push(started.elapsed());
            ensure!((list.manual.len(), list.daily.len()) == (5, 30), "{list:?}");

            let started = Instant::now();
            let running = jobs.active(customer).await?;
            active.push(started.elapsed());
            ensure!(running.is_none(), "{running:?}");

            let started = Instant::now();
            let ended = jobs.of_customer(customer, 10).await?;
            newest.push(started.elapsed());
            ensure!(ended.len() == 10, "{ended:?}");
        }
        let service = BackupService::connect(database.config.clone()).await?;
        for _ in 0..self.extent.lists / 50 {
            let started = Instant::now();
            let counted = service.figures().await?;
            figures.push(started.elapsed());
            let jobs: u64 = counted.jobs.iter().map(|count| count.jobs).sum();
            ensure!(jobs == u64::from(HISTORY), "{counted:?}");
        }
        service.close().await;
        database.store.close().await;
        Ok([lists, active, newest, figures])
    }

    /// What a platform has after a while.
    async fn fill(&self, database: &Database) -> Result<()> {
        const DIGITS: &str = "d(i) AS (SELECT 0 UNION ALL SELECT 1 UNION ALL SELECT 2 UNION ALL SELECT 3 UNION ALL SELECT 4
                UNION ALL SELECT 5 UNION ALL SELECT 6 UNION ALL SELECT 7 UNION ALL SELECT 8 UNION ALL SELECT 9)";
        // Each daily snapshot holds all customers, as the platform's own does.
        let backups = format!(
            "INSERT INTO customer_backups (customer_id, source, snapshot_id, time, backup_type, bytes, files)
             WITH {DIGITS},
                 n(customer, tens, ones) AS (SELECT 1 + a.i + 10 * b.i + 100 * c.i + 1000 * e.i, f.i, g.i
                     FROM d AS f, d AS g, d AS a, d AS b, d AS c, d AS e WHERE f.i < 3 OR (f.i = 3 AND g.i < 5))
             SELECT customer, CASE tens WHEN 3 THEN 'manual' ELSE 'daily' END,
                 SUBSTR(CONCAT(REPLACE('00000000', '0', '00000000'), CASE tens WHEN 3 THEN customer ELSE 0 END, tens, ones), -64),
                 {NOW} - 1000 * (tens * 10 + ones), 'both', 100000000, 5000
             FROM n"
        );
        let jobs = format!(
            "INSERT INTO customer_backup_jobs (customer_id, job_type, backup_type, snapshot_id, status, created_at, completed_at, attempts,
                 started_at, finished_at, bytes_done)
             WITH {DIGITS}
             SELECT 1 + a.i + 10 * b.i + 100 * c.i + 1000 * e.i, 'backup', 'both', REPLACE('00000000', '0', '00000000'),
                 CASE f.i WHEN 3 THEN 'failed' ELSE 'completed' END, '2026-01-01 00:00:00', '2026-01-01 00:01:00', 1,
                 {NOW} - 61000, {NOW} - 1000, 100000000
             FROM d AS f, d AS a, d AS b, d AS c, d AS e"
        );
        for statement in [backups, jobs] {
            match &database.raw {
                Raw::Schema(name) => {
                    let now = "CAST(UNIX_TIMESTAMP(NOW(3)) * 1000 AS SIGNED)";
                    let statement = statement.replace(NOW, now);
                    self.mariadb.sql(&format!("USE {name}; {statement}"))?;
                }
                Raw::File(path) => {
                    let now = "CAST(unixepoch('subsec') * 1000 AS INTEGER)";
                    let statement = statement.replace(NOW, now);
                    let pool = SqlitePool::connect(&path.display().to_string()).await?;
                    sqlx::query(sqlx::AssertSqlSafe(statement))
                        .execute(&pool)
                        .await?;
                    pool.close().await;
                }
            }
        }
        Ok(())
    }

    fn syncs(&self, runtime: &Runtime) -> Result<String> {
        let path = self.scratch.path().join("repository");
        let writer = Repository::init(open_local(&path)?, &PASSWORD.to_owned().into())?;
        for number in 0..self.extent.snapshots {
            self.archive(&writer, number)?;
        }
        let mut text = format!(
            "## Sync\n\nA repository of {} small snapshots, on the local disk and behind SFTP. *Nothing new*: the median of five.\n\n\
             | | | first time | nothing new | one new |\n|---|---|---|---|---|\n",
            self.extent.snapshots
        );
        let server = Server::start(&path)?;
        let ways = [
            ("local", None),
            ("SFTP", Some(Duration::ZERO)),
            ("SFTP, 20 ms round trip", Some(Duration::from_millis(20))),
        ];
        for (number, (way, round_trip)) in ways.into_iter().enumerate() {
            for kind in KINDS {
                let storage = match round_trip {
                    None => open_local(&path)?,
                    Some(round_trip) => server.open(round_trip)?,
                };
                let repository = Arc::new(Repository::open(storage, &PASSWORD.to_owned().into())?);
                let database = runtime.block_on(self.database(kind, &format!("sync_{number}")))?;
                let catalog = Catalog::new(&database.store);
                let sync = |added: usize| -> Result<Duration> {
                    let started = Instant::now();
                    let report =
                        runtime.block_on(catalog.sync_manual(&repository, Missing::Remember))?;
                    let took = started.elapsed();
                    let expected = SyncReport {
                        added: added as u64,
                        ..SyncReport::default()
                    };
                    ensure!(report == expected, "{report:?} instead of {expected:?}");
                    Ok(took)
                };
                let first = sync(repository.snapshot_ids()?.len())?;
                let mut nothing = (0..5).map(|_| sync(0)).collect::<Result<Vec<_>>>()?;
                self.archive(&writer, 0)?;
                let one = sync(1)?;
                runtime.block_on(database.store.close());
                writeln!(
                    text,
                    "| {way} | {} | {} | {} | {} |",
                    kind.name(),
                    milliseconds(first),
                    milliseconds(percentile(&mut nothing, 50)),
                    milliseconds(one)
                )?;
            }
        }
        Ok(text)
    }

    /// One more small snapshot, of one customer of some.
    fn archive(&self, repository: &Repository, number: u32) -> Result<()> {
        let root = self.scratch.path().join("site");
        fs::create_dir_all(&root)?;
        let customer = CustomerId::new(1 + number / 5)?;
        let request = ArchiveRequest {
            trees: vec![TreeSource::in_place(root.clone(), Vec::new())],
            streams: Vec::new(),
            paths: vec![root],
            tags: vec![customer.tag(), "manual".into(), "files".into()],
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
}

fn create(jobs: &JobStore, customers: Vec<u32>) -> impl Future<Output = Result<u32>> + use<> {
    let jobs = jobs.clone();
    async move {
        let mut done = 0;
        for customer in customers {
            let new = NewJob {
                customer: CustomerId::new(customer)?,
                server: DEFAULT_SERVER.into(),
                job_type: JobType::Backup,
                backup_type: BackupType::Both,
                snapshot: None,
                online: false,
                note: None,
            };
            let created = jobs.create(&new).await?;
            ensure!(matches!(created, Created::Job(_)), "{created:?}");
            done += 1;
        }
        Ok(done)
    }
}

fn end_all(jobs: &JobStore) -> impl Future<Output = Result<u32>> + use<> {
    let jobs = jobs.clone();
    async move {
        let owner = owner_of_this_process();
        let mut done = 0;
        while let Some(claimed) = jobs.claim(DEFAULT_SERVER, &owner).await? {
            let ended = jobs
                .fail(claimed.lease, Failure::Error, "It is measured.")
                .await?;
            ensure!(ended, "{claimed:?}");
            done += 1;
        }
        Ok(done)
    }
}

/// A backup server, seen through a network of some length.
struct Server {
    proxy: Proxy,
    sshd: Sshd,
    dir: TempDir,
    repository: PathBuf,
}

impl Server {
    fn start(repository: &Path) -> Result<Self> {
        let sshd = Sshd::start()?;
        let proxy = Proxy::start(sshd.port())?;
        let dir = tempfile::tempdir()?;
        let line = format!("[127.0.0.1]:{} {}", proxy.port(), sshd.host_key()?);
        fs::write(dir.path().join("known_hosts"), line)?;
        Ok(Self {
            proxy,
            sshd,
            dir,
            repository: repository.to_owned(),
        })
    }

    fn open(&self, round_trip: Duration) -> Result<Arc<dyn Storage>> {
        self.proxy.set_delay(round_trip / 2);
        let location = self
            .sshd
            .location_at(self.proxy.port(), &self.repository)
            .parse()?;
        let options = StorageOptions {
            ssh_key: Some(self.sshd.client_key()),
            known_hosts: Some(self.dir.path().join("known_hosts")),
            ..StorageOptions::default()
        };
        Ok(storage::open(&location, &options)?)
    }
}

fn open_local(path: &Path) -> Result<Arc<dyn Storage>> {
    let location = path.to_str().context("a path that is no text")?.parse()?;
    Ok(storage::open(&location, &StorageOptions::default())?)
}

fn percentile(times: &mut [Duration], percent: usize) -> Duration {
    times.sort();
    times[(times.len() - 1) * percent / 100]
}

fn milliseconds(time: Duration) -> String {
    let milliseconds = time.as_secs_f64() * 1e3;
    match milliseconds {
        ..100.0 => format!("{milliseconds:.2} ms"),
        100.0..1_000.0 => format!("{milliseconds:.0} ms"),
        _ => format!("{:.1} s", milliseconds / 1e3),
    }
}
