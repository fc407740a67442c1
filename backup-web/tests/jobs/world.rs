//! A hosting server with customers, whose jobs are queued as a dashboard does it and run by worker processes.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use backup_core::catalog::Source;
use backup_core::config::{Config, Environment};
use backup_core::customer::CustomerId;
use backup_core::error::Result;
use backup_core::jobs::{Created, Job, JobId, JobStatus, JobType};
use backup_core::operations::{BackupRequest, RestoreRequest};
use backup_core::repository::BackupType;
use backup_core::service::BackupService;
use rustix::process::Signal;
use tokio::runtime::Runtime;
use xtask::product::{Outcome, Product, Running};
use xtask::proxy::Proxy;
use xtask::testbed::Customer;

pub const MIB: u64 = 1 << 20;

/// Longer than anything here takes on a busy machine.
const DEADLINE: Duration = Duration::from_secs(120);

/// How often a condition is looked at again.
const PAUSE: Duration = Duration::from_millis(10);

#[track_caller]
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "never happened: {what}");
        thread::sleep(PAUSE);
    }
}

pub struct World {
    pub service: BackupService,
    pub runtime: Runtime,
    pub product: Product,
    pub customers: Vec<Customer>,
}

/// What differs from the configuration of the test bed: `("WORKER__LEASE", "5s")`.
pub type Settings<'a> = &'a [(&'a str, &'a str)];

impl World {
    /// Both repositories, the tables, and these customers.
    pub fn new(customers: impl IntoIterator<Item = u32>) -> Self {
        Self::with(customers, &[])
    }

    /// The same, and jobs are queued with other settings.
    pub fn with(customers: impl IntoIterator<Item = u32>, settings: Settings) -> Self {
        let mut product = Product::start(env!("CARGO_BIN_EXE_shophosting-backup")).unwrap();
        let customers = customers
            .into_iter()
            .map(|id| product.add_customer(id).unwrap())
            .collect();
        product.run("migrate").done();
        product.init().unwrap();
        let runtime = Runtime::new().unwrap();
        let environment: Environment = settings
            .iter()
            .map(|(key, value)| (format!("BACKUP__{key}"), (*value).to_owned()))
            .chain([(
                "DB_PASSWORD".into(),
                product.bed.platform_password().to_owned(),
            )])
            .collect();
        let config = Config::load(Some(&product.bed.config_file()), &environment).unwrap();
        Self {
            service: runtime.block_on(BackupService::connect(config)).unwrap(),
            runtime,
            product,
            customers,
        }
    }

    pub fn customer(&self, id: u32) -> &Customer {
        self.customers.iter().find(|one| one.id == id).unwrap()
    }

    #[track_caller]
    pub fn sql(&self, sql: &str) -> String {
        self.product.bed.mariadb().sql(sql).unwrap()
    }

    /// A proxy before the backup server.
    pub fn proxy(&self) -> Proxy {
        Proxy::start(self.product.bed.sshd().port()).unwrap()
    }

    /// The program, with a short lease, and forgetting nothing unless told.
    pub fn command(&self, line: &str, settings: Settings) -> Command {
        let mut command = self.product.command(line);
        command
            .env("RUST_LOG", "info,rustic_core=error,sqlx=warn,russh=warn")
            .env("BACKUP__WORKER__LEASE", "2s")
            .env("BACKUP__RETENTION__MANUAL", "1000");
        for (key, value) in settings {
            command.env(format!("BACKUP__{key}"), value);
        }
        command
    }

    #[track_caller]
    pub fn worker(&self, settings: Settings) -> Running {
        self.start(self.command("worker", settings))
    }

    /// A worker that reaches the backup server through a proxy.
    #[track_caller]
    pub fn worker_through(&self, proxy: &Proxy, settings: Settings) -> Running {
        let mut command = self.command("worker", settings);
        self.product.through(proxy, &mut command).unwrap();
        self.start(command)
    }

    /// Start a worker and wait until it is at work: until then a signal is just its end.
    #[track_caller]
    pub fn start(&self, command: Command) -> Running {
        let mut worker = self.product.spawn(command);
        until_log(&mut worker, "jobs at once");
        worker
    }

    /// Let a worker finish what it runs, and end; what it logged.
    #[track_caller]
    pub fn end(&self, worker: Running) -> String {
        worker.signal(Signal::TERM).unwrap();
        let outcome = self.product.finish(worker);
        outcome.done();
        outcome.stderr
    }

    #[track_caller]
    pub fn kill(&self, worker: Running) -> Outcome {
        worker.signal(Signal::KILL).unwrap();
        let outcome = self.product.finish(worker);
        assert_eq!(outcome.code, None);
        outcome
    }

    pub fn try_queue(&self, customer: u32, backup_type: BackupType) -> Result<Created> {
        let request = BackupRequest {
            backup_type,
            note: None,
        };
        self.runtime.block_on(
            self.service
                .create_backup(CustomerId::new(customer).unwrap(), &request),
        )
    }

    /// Queue a backup.
    #[track_caller]
    pub fn queue(&self, customer: u32, backup_type: BackupType) -> JobId {
        self.created(self.try_queue(customer, backup_type))
    }

    /// Queue a restore of all that a manual backup holds.
    #[track_caller]
    pub fn queue_restore(&self, customer: u32, snapshot: &str) -> JobId {
        let request = RestoreRequest {
            snapshot: snapshot.parse().unwrap(),
            source: Source::Manual,
            restore_type: None,
            online: false,
        };
        let restore = self
            .service
            .restore(CustomerId::new(customer).unwrap(), &request);
        self.created(self.runtime.block_on(restore))
    }

    #[track_caller]
    fn created(&self, created: Result<Created>) -> JobId {
        match created.unwrap() {
            Created::Job(job) => job.id,
            Created::InTheWay(job) => panic!("in the way: {job:?}"),
        }
    }

    #[track_caller]
    pub fn job(&self, id: JobId) -> Job {
        self.runtime
            .block_on(self.service.job(None, id))
            .unwrap()
            .unwrap()
    }

    pub fn jobs(&self) -> Vec<Job> {
        self.runtime
            .block_on(self.service.jobs(None, 100_000))
            .unwrap()
    }

    /// Wait until a job is as it shall be.
    #[track_caller]
    pub fn until(&self, id: JobId, what: &str, condition: impl Fn(&Job) -> bool) -> Job {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let job = self.job(id);
            if condition(&job) {
                return job;
            }
            assert!(
                Instant::now() < deadline && job.status.is_active(),
                "never happened: {what}: {job:?}"
            );
            thread::sleep(PAUSE);
        }
    }

    #[track_caller]
    pub fn until_running(&self, id: JobId) -> Job {
        self.until(id, "it runs", |job| job.status == JobStatus::Running)
    }

    #[track_caller]
    pub fn ended(&self, id: JobId) -> Job {
        self.until(id, "it ends", |job| !job.status.is_active())
    }

    #[track_caller]
    pub fn until_all_ended(&self) {
        eventually("every job ends", || {
            self.jobs().iter().all(|job| !job.status.is_active())
        });
    }

    /// Wait for a job's good end; its snapshot.
    #[track_caller]
    pub fn completed(&self, id: JobId) -> String {
        let job = self.ended(id);
        assert_eq!(job.status, JobStatus::Completed, "{job:?}");
        job.snapshot_id.unwrap()
    }

    /// Make a backup with a worker that is there for nothing else.
    #[track_caller]
    pub fn back_up(&self, customer: u32, backup_type: BackupType) -> String {
        let job = self.queue(customer, backup_type);
        let worker = self.worker(&[]);
        let snapshot = self.completed(job);
        self.end(worker);
        snapshot
    }

    /// The snapshots in the manual repository.
    pub fn snapshots(&self) -> BTreeSet<String> {
        self.product
            .repository_files("snapshots")
            .into_iter()
            .collect()
    }

    /// The manual backups that the catalogue has of a customer.
    #[track_caller]
    pub fn catalogued(&self, customer: u32) -> BTreeSet<String> {
        let list = self.service.list(CustomerId::new(customer).unwrap());
        let list = self.runtime.block_on(list).unwrap();
        list.manual
            .iter()
            .map(|entry| entry.id.to_string())
            .collect()
    }

    /// Repository, jobs and catalogue say the same: of every completed backup there is one snapshot, and no other one is there.
    #[track_caller]
    pub fn assert_truthful(&self) {
        let mut of_jobs = BTreeSet::new();
        for job in self.jobs() {
            let is_backup = job.job_type == JobType::Backup;
            match (job.status, &job.snapshot_id) {
                (JobStatus::Completed, Some(id)) if is_backup => {
                    assert!(of_jobs.insert(id.clone()), "twice: {job:?}");
                }
                (JobStatus::Failed, None) if is_backup => assert!(job.failure.is_some()),
                _ if is_backup => panic!("{job:?}"),
                _ => {}
            }
        }
        assert_eq!(self.snapshots(), of_jobs, "repository and jobs");
        let catalogued = self
            .customers
            .iter()
            .flat_map(|customer| self.catalogued(customer.id))
            .collect();
        assert_eq!(of_jobs, catalogued, "jobs and catalogue");
    }

    /// restic has nothing to complain of, once the locks of the dead are gone.
    #[track_caller]
    pub fn assert_sound(&self) {
        self.product.run_command(self.command("unlock", &[])).done();
        assert_eq!(self.product.repository_files("locks"), [] as [String; 0]);
        self.product
            .bed
            .restic()
            .unwrap()
            .check_read_data()
            .unwrap();
    }
}

/// Wait until a worker says something; the line.
#[track_caller]
pub fn until_log(worker: &mut Running, words: &str) -> String {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let log = worker.log();
        if let Some(line) = log.lines().find(|line| line.contains(words)) {
            return line.to_owned();
        }
        assert!(
            Instant::now() < deadline && worker.is_running(),
            "never said: {words}: {log}"
        );
        thread::sleep(PAUSE);
    }
}

/// A file of noise in a customer's site: nothing of it is compressed or stored twice.
pub fn add_noise(customer: &Customer, name: &str, bytes: u64) -> PathBuf {
    let path = customer.site().join(name);
    let random = fs::File::open("/dev/urandom").unwrap();
    let mut file = fs::File::create(&path).unwrap();
    std::io::copy(&mut random.take(bytes), &mut file).unwrap();
    path
}

/// What a customer is told holds nothing of the machines.
#[track_caller]
pub fn assert_plain(job: &Job) {
    let text = job.error_message.as_deref().unwrap();
    let is_plain = text
        .chars()
        .all(|c| c.is_ascii_alphabetic() || " .,'".contains(c));
    assert!(is_plain && text.ends_with('.'), "{text}");
    for word in [
        "SELECT",
        "UPDATE",
        "localhost",
        "customer",
        "root",
        "shophosting",
        "sftp",
        "mysql",
    ] {
        assert!(!text.contains(word), "{word}: {text}");
    }
}
