//! The library from end to end, with nothing installed: a SQLite file, a repository in a local directory, no MySQL and no Redis.
//!
//! ```text
//! cargo run -p backup-core --example quickstart [DIR [COMMAND [ARGUMENT…]]]
//! ```
//!
//! Everything is put below DIR (default: a scratch directory that is removed). First a customer's site is backed up, damaged
//! and restored by jobs, as a dashboard would do it. Then a directory and what COMMAND prints, whatever it is, are backed up together, as
//! a service would do it whose data are not a shop. Both are in one repository, which the restic program reads, too.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use backup_core::config::{Config, Environment, Origin};
use backup_core::customer::{CustomerId, NewCustomer};
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::jobs::{Created, JobStatus};
use backup_core::operations::{BackupRequest, Engine, RestoreRequest, Source, init_repository};
use backup_core::process::Program;
use backup_core::progress::{Cancel, Control};
use backup_core::repository::{ArchiveRequest, BackupType, RestoreRules, StreamSource, TreeSource};
use backup_core::service::BackupService;
use backup_core::worker::Stopping;
use futures_util::StreamExt;
use jiff::Zoned;
use tokio::runtime::Runtime;
use tokio::sync::watch;

/// In earnest: a random one, with a copy kept elsewhere, for without it no backup can be read.
pub const PASSWORD: &str = "correct horse battery staple";

fn main() -> Result<()> {
    let scratch = tempfile::tempdir().map_err(|e| Error::io("there is no scratch directory", e))?;
    let mut arguments = env::args_os().skip(1);
    let dir = arguments
        .next()
        .map_or_else(|| scratch.path().to_owned(), PathBuf::from);
    let mut command: Vec<OsString> = arguments.collect();
    if command.is_empty() {
        command.extend(["seq", "100000"].map(OsString::from));
    }
    run(&dir, command)
}

/// Everything below `dir`; `command` is any program that prints a dump.
pub fn run(dir: &Path, command: Vec<OsString>) -> Result<()> {
    let dir = std::path::absolute(dir).map_err(|e| Error::io("DIR is not a path", e))?;
    write(&dir.join("password"), PASSWORD)?;

    // What `backup.toml` says otherwise; all that is not said has a default.
    let dir_name = dir.display();
    let text = format!(
        "[database]
         url = 'sqlite://{dir_name}/backup.db'
         [repositories.manual]
         location = '{dir_name}/repository'
         password_file = '{dir_name}/password'
         [worker]
         state_dir = '{dir_name}/state'
         [customers]
         root = '{dir_name}/customers'
         [site]
         stop = []
         start = []"
    );
    let config = Config::read(
        Origin::File("quickstart.toml".into()),
        &text,
        &Environment::default(),
    )?;

    // The engine opens the repository when it is first needed. Whoever only queues jobs and shows them needs none.
    let cancel = Cancel::new();
    init_repository(&config.repositories.manual, &cancel)?;
    let engine = Arc::new(Engine::new(config.clone(), &cancel));

    let runtime = Runtime::new().map_err(|e| Error::io("there are no threads", e))?;
    runtime.block_on(with_jobs(config, Arc::clone(&engine)))?;
    without_jobs(&engine, &dir, command)
}

/// The service: customers, jobs, and the list of backups.
async fn with_jobs(config: Config, engine: Arc<Engine>) -> Result<()> {
    let site_of = |customer| config.customers.dir(customer).join("wordpress");
    let service = BackupService::connect(config.clone()).await?;
    let shop = NewCustomer {
        domain: Some("shop.example".into()),
        ..NewCustomer::default()
    };
    let customer = service.customers().add(&shop).await?;
    let page = site_of(customer).join("index.php");
    write(&page, "<?php echo 'Welcome';")?;
    write(&site_of(customer).join("uploads/cat.txt"), "a cat")?;

    // A worker may as well run in another process, on another machine; any number of them share the jobs.
    let (stop, stopping) = watch::channel(Stopping::No);
    let worker = tokio::spawn(service.worker(engine).run(stopping));

    let request = BackupRequest {
        backup_type: BackupType::Files,
        note: Some("before the sale".into()),
    };
    let queued = service.create_backup(customer, &request).await?;
    follow(&service, customer, queued).await?;

    write(&page, "<?php echo 'You have been hacked';")?;

    // The list comes from the database alone: it costs a millisecond, however far away the repository is.
    let list = service.list(customer).await?;
    for backup in &list.manual {
        println!(
            "backup {} of {}: {}, {} files",
            backup.id,
            backup.time,
            backup.note.as_deref().unwrap_or("-"),
            backup.files.unwrap_or(0)
        );
    }
    let newest = list
        .manual
        .first()
        .ok_or_else(|| broken("the backup is not listed"))?;
    let request = RestoreRequest {
        snapshot: newest.id,
        source: Source::Manual,
        restore_type: None,
        online: false,
    };
    let queued = service.restore(customer, &request).await?;
    follow(&service, customer, queued).await?;
    let restored = fs::read_to_string(&page).map_err(|e| Error::io("the page is gone", e))?;
    println!("the page is back: {restored}");

    // Take no more jobs, finish those that run, end.
    stop.send_replace(Stopping::Finish);
    worker
        .await
        .map_err(|e| Error::caused(ErrorKind::Failed, "the worker broke off", e))?;
    service.close().await;
    Ok(())
}

/// Print the states of a job until its end. The stream is the same in whatever process the job runs.
async fn follow(service: &BackupService, customer: CustomerId, queued: Created) -> Result<()> {
    let job = match queued {
        Created::Job(job) => job.id,
        // One job of a customer at a time: the database itself sees to it.
        Created::InTheWay(job) => return Err(broken(&format!("job {} is in the way", job.id))),
    };
    let mut states = service.progress(Some(customer), job).await?;
    let mut is_done = false;
    while let Some(job) = states.next().await {
        let phase = job.phase.map_or_else(String::new, |phase| {
            format!(", {phase}: {} bytes", job.bytes_done)
        });
        println!("job {}, {}: {}{phase}", job.id, job.job_type, job.status);
        if let Some(sentence) = &job.error_message {
            println!("{sentence}");
        }
        is_done = job.status == JobStatus::Completed;
    }
    is_done
        .then_some(())
        .ok_or_else(|| broken(&format!("job {job} has failed")))
}

/// The repository itself, for what is no shop: a directory and a dump become one snapshot, and come back. All of it blocks.
fn without_jobs(engine: &Engine, dir: &Path, command: Vec<OsString>) -> Result<()> {
    let invoices = dir.join("invoices");
    write(&invoices.join("2026/1.txt"), "1 cat: 20 coins")?;

    let repository = engine.manual()?;
    let control = Control::default();
    let limit = Duration::from_secs(600);
    let mut dump = Program::new(command)?.spawn(limit, &control.cancel)?;
    let output = dump
        .take_stdout()
        .ok_or_else(|| broken("the command has no output"))?;
    drop(dump.take_stdin());

    let dump_path = PathBuf::from("/dump/invoices.sql");
    let request = ArchiveRequest {
        paths: vec![dump_path.clone(), invoices.clone()],
        trees: vec![TreeSource::in_place(invoices.clone(), Vec::new())],
        // Read as it comes: on no disk is a copy of the dump.
        streams: vec![StreamSource {
            path: dump_path.clone(),
            reader: Box::new(output),
        }],
        // A snapshot without a customer's tag is nobody's: no customer ever sees it.
        tags: vec!["invoices".into()],
        time: Zoned::now(),
        note: None,
        parent: None,
    };
    // The lock keeps a prune away, be it ours or restic's.
    let uncommitted = repository.archive(repository.lock_shared()?, request, &control)?;
    // A command that failed has printed half a dump: then there is no snapshot.
    dump.wait()?;
    let archived = uncommitted.commit(&control)?;
    println!(
        "snapshot {}: {} files and a dump of {} bytes",
        archived.snapshot, archived.files, archived.stream_bytes
    );

    let snapshot = repository
        .snapshot(&archived.snapshot)?
        .ok_or_else(|| broken("the snapshot is not there"))?;
    let _lock = repository.lock_shared()?;
    let mut stream = repository.stream_file(&snapshot, &dump_path, &control)?;
    let bytes = io::copy(&mut stream, &mut io::sink())
        .map_err(|e| Error::io("the dump cannot be read back", e))?;
    let plan = repository.plan_restore(
        &snapshot,
        &invoices,
        &RestoreRules::everything(),
        &control.cancel,
    )?;
    let target = dir.join("restored").join(archived.snapshot.to_string());
    fs::create_dir_all(&target).map_err(|e| Error::io("no directory to restore into", e))?;
    let opened = fs::File::open(&target).map_err(|e| Error::io("no directory to open", e))?;
    repository.restore(&plan, opened.as_fd(), None, &control)?;
    println!("back again: {bytes} bytes and {} files", plan.files());
    Ok(())
}

fn write(file: &Path, content: &str) -> Result<()> {
    let dir = file.parent().unwrap_or(file);
    fs::create_dir_all(dir)
        .and_then(|()| fs::write(file, content))
        .map_err(|e| Error::io(format!("cannot write {}", file.display()), e))
}

fn broken(what: &str) -> Error {
    Error::new(ErrorKind::Failed, what)
}
