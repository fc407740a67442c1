//! What a monitoring is told of all jobs and backups.

use std::time::{Duration, Instant};

use backup_core::catalog::Source;
use backup_core::error::ErrorKind;
use backup_core::jobs::{Failure, JobStatus, JobType};
use backup_core::service::BackupService;
use xtask::proxy::Proxy;

use crate::databases::{Database, Kind, LONG, MARIADB, claim, config, create, on_both, wait_for};

on_both!(
    figures_tell_what_there_is_and_leave_out_what_there_is_not,
    whoever_asks_is_told_that_the_database_is_there,
);

const CUSTOMERS: &str = "CREATE TABLE customers (id INT PRIMARY KEY);";

async fn service(database: &Database) -> BackupService {
    if database.kind() == Kind::MariaDb {
        database.run(CUSTOMERS).await;
    }
    let config = config(&database.url, &database.password);
    BackupService::connect(config).await.unwrap()
}

async fn figures_tell_what_there_is_and_leave_out_what_there_is_not(database: &Database) {
    let service = service(database).await;
    let none = service.figures().await.unwrap();
    assert!(none.jobs.is_empty() && none.newest_backups.is_empty() && none.synced.is_empty());
    assert!(none.proofs.is_empty() && none.sampled.is_empty());
    assert_eq!(none.oldest_pending, None);

    let jobs = database.jobs(LONG).await;
    create(&jobs, 1).await;
    let failed = claim(&jobs).await;
    let sentence = "It failed.";
    let ended = jobs.fail(failed.lease, Failure::Error, sentence).await;
    assert!(ended.unwrap());
    create(&jobs, 5).await;
    let cancelled = claim(&jobs).await;
    let ended = jobs
        .fail(cancelled.lease, Failure::Cancelled, sentence)
        .await;
    assert!(ended.unwrap());
    create(&jobs, 2).await;
    claim(&jobs).await;
    let oldest = create(&jobs, 3).await;
    create(&jobs, 4).await;
    let long_ago = match database.kind() {
        Kind::MariaDb => "CURRENT_TIMESTAMP - INTERVAL 1000 SECOND",
        Kind::Sqlite => "DATETIME('now', '-1000 seconds')",
    };
    database
        .run(&format!(
            "UPDATE customer_backup_jobs SET created_at = {long_ago} WHERE id = {}",
            oldest.id
        ))
        .await;
    // The last one is from before there was a time of its beginning.
    database
        .run(
            "INSERT INTO customer_backup_jobs (customer_id, job_type, backup_type, status, started_at, finished_at, bytes_done) VALUES
                (5, 'restore', 'db', 'completed', 1700000000000, 1700000002500, 4000000000000),
                (5, 'restore', 'db', 'completed', 1700000000000, 1700000001000, 1),
                (6, 'restore', 'both', 'completed', NULL, NULL, 0)",
        )
        .await;
    database
        .run(
            "INSERT INTO customer_backups (customer_id, source, snapshot_id, time, backup_type, deleted_at) VALUES
                (1, 'manual', 'a', 1700000000001, 'db', NULL), (2, 'manual', 'b', 1700000000002, 'db', NULL),
                (2, 'manual', 'c', 1700000000003, 'db', 1700000000004), (1, 'daily', 'd', 1600000000000, 'db', NULL)",
        )
        .await;
    database
        .run("INSERT INTO backup_repository_users (server, source, repository_id) VALUES ('north', 'manual', 'r'), ('south', 'manual', 's')")
        .await;
    database
        .run("INSERT INTO backup_repositories (repository_id, synced_at, sampled_at, sample_errors) VALUES ('r', 1700000000005, 1700000000006, 2), ('s', NULL, 1700000000007, NULL)")
        .await;
    // Who has no backup any more does not count, and what was proven before it failed still does.
    database
        .run(
            "INSERT INTO backup_proofs (customer_id, source, snapshot_id, tried_at, failure, proven_at) VALUES
                (1, 'manual', 'a', 1700000000020, NULL, 1700000000020), (2, 'manual', 'b', 1700000000030, 'why', 1700000000010),
                (1, 'daily', 'd', 1700000000030, 'why', NULL), (9, 'manual', 'z', 1700000000001, 'why', 1700000000001)",
        )
        .await;

    let figures = service.figures().await.unwrap();
    let mut counted: Vec<_> = figures
        .jobs
        .iter()
        .map(|count| {
            let failure = count.failure.map(Failure::as_str);
            let (job_type, status) = (count.job_type.as_str(), count.status.as_str());
            (job_type, status, failure, count.jobs)
        })
        .collect();
    counted.sort_unstable();
    assert_eq!(
        counted,
        [
            ("backup", "failed", Some("cancelled"), 1),
            ("backup", "failed", Some("error"), 1),
            ("backup", "pending", None, 2),
            ("backup", "running", None, 1),
            ("restore", "completed", None, 3),
        ]
    );
    let restores = figures
        .jobs
        .iter()
        .find(|count| (count.job_type, count.status) == (JobType::Restore, JobStatus::Completed));
    let restores = restores.unwrap();
    assert_eq!(
        (restores.timed, restores.duration, restores.bytes),
        (2, Duration::from_millis(3_500), 4_000_000_000_001)
    );
    let waits = figures.oldest_pending.unwrap().as_secs();
    assert!((999..1_100).contains(&waits), "{waits}");
    let newest: Vec<_> = figures
        .newest_backups
        .iter()
        .map(|(source, time)| (*source, time.as_millisecond()))
        .collect();
    assert_eq!(
        newest,
        [
            (Source::Manual, 1_700_000_000_002),
            (Source::Daily, 1_600_000_000_000)
        ]
    );
    let [synced] = &figures.synced[..] else {
        panic!("{figures:?}")
    };
    assert_eq!(
        (synced.server.as_str(), synced.source.as_str()),
        ("north", "manual")
    );
    assert_eq!(synced.at.as_millisecond(), 1_700_000_000_005);

    let mut proofs: Vec<_> = figures
        .proofs
        .iter()
        .map(|of| {
            let time = |time: Option<jiff::Timestamp>| time.map(|time| time.as_millisecond());
            (
                of.source,
                of.proven,
                of.failed,
                time(of.oldest),
                time(of.newest),
            )
        })
        .collect();
    proofs.sort_unstable();
    let (oldest, newest) = (Some(1_700_000_000_010), Some(1_700_000_000_020));
    assert_eq!(
        proofs,
        [
            (Source::Manual, 1, 1, oldest, newest),
            (Source::Daily, 0, 1, None, None)
        ]
    );
    let [sampled] = &figures.sampled[..] else {
        panic!("{figures:?}")
    };
    assert_eq!((sampled.server.as_str(), sampled.errors), ("north", 2));
    assert_eq!(sampled.at.as_millisecond(), 1_700_000_000_006);

    // Its customer has deleted the newest one since, and it was made all the same.
    database
        .run(
            "INSERT INTO customer_backup_jobs (customer_id, job_type, backup_type, status, started_at, finished_at, bytes_done) VALUES
                (2, 'backup', 'db', 'completed', 1700000000003, 1700000000010, 1),
                (2, 'backup', 'db', 'failed', 1700000000003, 1700000000020, 1)",
        )
        .await;
    let figures = service.figures().await.unwrap();
    let (source, newest) = figures.newest_backups[0];
    assert_eq!(
        (source, newest.as_millisecond()),
        (Source::Manual, 1_700_000_000_010)
    );
    service.close().await;
}

async fn whoever_asks_is_told_that_the_database_is_there(database: &Database) {
    service(database).await.ready().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_asks_is_told_that_the_database_is_silent_or_away() {
    let database = Database::on(&MARIADB);
    database.run(CUSTOMERS).await;
    let proxy = Proxy::start(MARIADB.port()).unwrap();
    let url = database.url.replace(
        &format!(":{}/", MARIADB.port()),
        &format!(":{}/", proxy.port()),
    );
    let config = config(&url, &database.password);
    let service = BackupService::connect(config).await.unwrap();
    service.ready().await.unwrap();
    let refused = async || {
        let asked = Instant::now();
        let error = service.ready().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unreachable, "{error:?}");
        assert!(asked.elapsed() < Duration::from_secs(10));
    };
    proxy.pause(true);
    refused().await;
    proxy.pause(false);
    wait_for("the answer", async || service.ready().await.ok()).await;
    proxy.refuse(true);
    proxy.cut();
    refused().await;
}
