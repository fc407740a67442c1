//! How a worker ends, how long a job may take, and the service that needs no configuration.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use backup_core::config::{Config, Environment};
use backup_core::jobs::{Created, Failure, JobStatus};
use backup_core::operations::BackupRequest;
use backup_core::repository::BackupType;
use backup_core::service::BackupService;
use rustix::process::{Pid, Signal, kill_process};

use crate::world::{MIB, World, add_noise, assert_plain, eventually, until_log};

#[test]
fn a_worker_that_is_asked_to_end_finishes_what_runs_and_takes_nothing_more() {
    let world = World::new([1, 12]);
    add_noise(world.customer(1), "noise", 6 * MIB);
    let proxy = world.proxy();
    proxy.set_bytes_per_second(Some(2 * MIB));
    let settings = [("WORKER__CONCURRENCY", "1")];
    let worker = world.worker_through(&proxy, &settings);
    let first = world.queue(1, BackupType::Files);
    world.until_running(first);
    let second = world.queue(12, BackupType::Files);
    let log = world.end(worker);
    assert!(log.contains("finishing the running jobs"), "{log}");
    world.completed(first);
    let waits = world.job(second);
    assert_eq!((waits.status, waits.attempts), (JobStatus::Pending, 0));
    world.completed({
        let other = world.worker(&settings);
        world.completed(second);
        world.end(other);
        second
    });
    world.assert_truthful();
}

#[test]
fn a_worker_that_is_asked_twice_gives_its_backup_back_and_undoes_its_restore() {
    let world = World::new([1]);
    let customer = world.customer(1);
    let noise = add_noise(customer, "noise", 8 * MIB);
    let twice = |worker: &mut xtask::product::Running| {
        worker.signal(Signal::TERM).unwrap();
        until_log(worker, "once more to stop them");
        worker.signal(Signal::TERM).unwrap();
    };
    let proxy = world.proxy();
    proxy.set_bytes_per_second(Some(MIB));
    let mut worker = world.worker_through(&proxy, &[]);
    let backup = world.queue(1, BackupType::Files);
    world.until_running(backup);
    let sent = proxy.bytes_to_target();
    eventually("it saves", || proxy.bytes_to_target() > sent + MIB);
    twice(&mut worker);
    let log = world.product.finish(worker);
    log.done();
    assert!(log.stderr.contains("given back"), "{}", log.stderr);
    let job = world.job(backup);
    assert_eq!((job.status, job.attempts), (JobStatus::Pending, 1));
    assert_eq!(world.snapshots().len(), 0);
    assert_eq!(world.product.repository_files("locks"), [] as [String; 0]);
    let other = world.worker(&[]);
    let snapshot = world.completed(backup);
    world.end(other);

    fs::write(&noise, "something else").unwrap();
    let restore = world.queue_restore(1, &snapshot);
    let proxy = world.proxy();
    proxy.set_bytes_per_second(Some(MIB));
    let mut worker = world.worker_through(&proxy, &[]);
    world.until_running(restore);
    let got = proxy.bytes_from_target();
    eventually("it fetches", || proxy.bytes_from_target() > got + MIB);
    twice(&mut worker);
    world.product.finish(worker).done();
    let job = world.job(restore);
    assert_eq!(
        (job.status, job.failure),
        (JobStatus::Failed, Some(Failure::Interrupted))
    );
    assert_plain(&job);
    assert_eq!(fs::read(&noise).unwrap(), b"something else");
    assert!(!customer.directory.join(".maintenance").exists());
    let staged = world
        .product
        .bed
        .customers_root()
        .join(".shophosting-backup");
    let left: Vec<_> = fs::read_dir(staged)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .filter(|name| !name.to_string_lossy().ends_with(".lock"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(world.product.repository_files("locks"), [] as [String; 0]);
    world.assert_truthful();
}

#[test]
fn a_job_that_takes_longer_than_its_kind_may_is_stopped_and_leaves_nothing() {
    let world = World::new([1]);
    let customer = world.customer(1);
    let noise = add_noise(customer, "noise", 40 * MIB);
    let proxy = world.proxy();
    proxy.set_bytes_per_second(Some(2 * MIB));
    let settings = [
        ("WORKER__BACKUP_TIMEOUT", "1s"),
        ("WORKER__RESTORE_TIMEOUT", "2s"),
    ];
    let worker = world.worker_through(&proxy, &settings);
    let backup = world.queue(1, BackupType::Files);
    world.ended(backup);
    let mut log = world.end(worker);
    assert_eq!(world.snapshots().len(), 0);
    let snapshot = world.back_up(1, BackupType::Files);
    fs::write(&noise, "something else").unwrap();
    let worker = world.worker_through(&proxy, &settings);
    let restore = world.queue_restore(1, &snapshot);
    world.ended(restore);
    log += &world.end(worker);
    for id in [backup, restore] {
        let job = world.job(id);
        assert_eq!(
            (job.status, job.failure),
            (JobStatus::Failed, Some(Failure::Timeout))
        );
        assert_plain(&job);
        let line = log
            .lines()
            .find(|line| line.contains("failed: ") && line.contains(&format!("job={id}")));
        assert!(line.is_some_and(|line| line.contains("longer than it may")));
    }
    assert_eq!(fs::read(&noise).unwrap(), b"something else");
    assert!(!customer.directory.join(".maintenance").exists());
    assert_eq!(world.product.repository_files("locks"), [] as [String; 0]);
    world.assert_truthful();
    world.assert_sound();
}

fn get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn a_service_that_cannot_listen_takes_no_job() {
    let world = World::new([1]);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let job = world.queue(1, BackupType::Files);
    let serve = world.command("--json serve --worker", &[("SERVER__LISTEN", &address)]);
    let refused = world.product.run_command(serve).refusal(1);
    assert!(refused.contains("server.listen"), "{refused}");
    let waits = world.job(job);
    assert_eq!((waits.status, waits.attempts), (JobStatus::Pending, 0));
}

#[test]
fn the_service_runs_jobs_in_an_empty_directory_without_a_configuration() {
    let directory = tempfile::tempdir().unwrap();
    let program = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_shophosting-backup"));
        command
            .current_dir(directory.path())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            // The usual port may be somebody else's.
            .env("BACKUP__SERVER__LISTEN", "127.0.0.1:0")
            .stdin(Stdio::null());
        command
    };
    let log = directory.path().join("log");
    let mut service = program()
        .arg("serve")
        .stderr(fs::File::create(&log).unwrap())
        .spawn()
        .unwrap();
    let said = || fs::read_to_string(&log).unwrap();
    let address = || {
        let (_, rest) = said()
            .split_once("listening on http://")
            .map(|(a, b)| (a.to_owned(), b.to_owned()))?;
        rest.split_once('\n').map(|(address, _)| address.to_owned())
    };
    eventually("it listens", || address().is_some());
    let address = address().unwrap();
    for path in ["/healthz", "/readyz"] {
        let answer = get(&address, path);
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    assert!(get(&address, "/else").starts_with("HTTP/1.1 401"));

    let added = program().args(["customer", "add", "--id", "7"]).output();
    assert!(added.unwrap().status.success());
    let site = directory.path().join("data/customers/customer-7/wordpress");
    fs::create_dir_all(&site).unwrap();
    fs::write(site.join("index.php"), "<?php").unwrap();
    let data = directory.path().join("data");
    let url = format!("sqlite://{}", data.join("backup.db").display());
    assert!(
        data.join("backup.db").exists(),
        "{:?}",
        fs::read_dir(&data).unwrap().collect::<Vec<_>>()
    );
    let environment = Environment::from_iter([("BACKUP__DATABASE__URL", url)]);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let config = Config::load(None, &environment).unwrap();
        let client = BackupService::connect(config).await.unwrap();
        let request = BackupRequest {
            backup_type: BackupType::Files,
            note: None,
        };
        let Created::Job(job) = client
            .create_backup("7".parse().unwrap(), &request)
            .await
            .unwrap()
        else {
            panic!("a job is in the way")
        };
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        loop {
            let now = client.job(None, job.id).await.unwrap().unwrap();
            if !now.status.is_active() {
                assert_eq!(now.status, JobStatus::Completed, "{now:?}: {}", said());
                break;
            }
            assert!(std::time::Instant::now() < deadline, "{now:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        client.close().await;
    });
    // Whoever says nothing, or not all, holds nobody up.
    let _silent = TcpStream::connect(&address).unwrap();
    let mut slow = TcpStream::connect(&address).unwrap();
    slow.write_all(b"GET /healthz HTTP/1.1\r\n").unwrap();
    get(&address, "/healthz");
    let id = i32::try_from(service.id()).unwrap();
    kill_process(Pid::from_raw(id).unwrap(), Signal::TERM).unwrap();
    eventually("it ends", || service.try_wait().unwrap().is_some());
    assert_eq!(service.wait().unwrap().code(), Some(0), "{}", said());
}
