//! Each job is taken up by one worker, of its own hosting server.

use std::collections::{BTreeMap, HashSet};

use backup_core::error::ErrorKind;
use backup_core::jobs::{Failure, JobStatus, JobStore};
use xtask::mariadb::MariaDb;

use crate::databases::{
    Database, Kind, LONG, SERVER, SHORT, backup_of, claim, create, created, customer, get, on_both,
    wait_for,
};
use crate::processes::{Processes, at_the_gate, store_of_parent};

const JOBS: usize = 500;

on_both!(
    of_eight_processes_each_of_500_jobs_is_claimed_once_and_ends_once,
    jobs_of_other_servers_are_never_claimed,
    the_oldest_job_comes_first,
    rows_that_make_no_sense_keep_nobody_from_the_others,
);

async fn of_eight_processes_each_of_500_jobs_is_claimed_once_and_ends_once(database: &Database) {
    database.jobs(LONG).await;
    let rows: Vec<String> = (1..=JOBS)
        .map(|customer| format!("({customer}, 'backup', 'both', 'default')"))
        .collect();
    let insert =
        "INSERT INTO customer_backup_jobs (customer_id, job_type, backup_type, server) VALUES";
    database.run(&format!("{insert} {}", rows.join(", "))).await;
    database
        .run(&format!("{insert} (1001, 'backup', 'db', 'north')"))
        .await;

    let processes = Processes::spawn(8, "claims::one_of_eight", database);
    let printed = tokio::task::spawn_blocking(|| processes.finish())
        .await
        .unwrap();
    let claimed: Vec<&str> = printed
        .iter()
        .flat_map(|lines| {
            lines
                .lines()
                .filter_map(|line| line.strip_prefix("claimed "))
        })
        .collect();
    assert_eq!(claimed.len(), JOBS);
    assert_eq!(claimed.iter().collect::<HashSet<_>>().len(), JOBS);
    let mut lives: BTreeMap<i64, Vec<(String, i64)>> = BTreeMap::new();
    for event in database.history().await {
        let life = lives.entry(event.job).or_default();
        life.push((event.status, event.attempts));
    }
    let (_, northern) = lives.pop_last().unwrap();
    assert_eq!(northern, [("pending".to_owned(), 0)]);
    let whole = [("pending", 0), ("running", 1), ("failed", 1)];
    for (job, life) in &lives {
        let life: Vec<_> = life.iter().map(|(word, n)| (word.as_str(), *n)).collect();
        assert_eq!(life, whole, "job {job}");
    }
    assert_eq!(lives.len(), JOBS);
}

#[tokio::test]
#[ignore = "run as a process of the test above"]
async fn one_of_eight() {
    let jobs = JobStore::new(&store_of_parent().await, LONG);
    at_the_gate().await;
    // None means that there is nothing to do, not that others were faster.
    while let Some(claimed) = jobs.claim(SERVER, "one of eight").await.unwrap() {
        assert!(!claimed.is_taken_over);
        // A line of its own: the harness has begun one.
        println!("\nclaimed {}", claimed.job.id);
        let failed = jobs.fail(claimed.lease, Failure::Error, "It failed.").await;
        assert!(failed.unwrap());
    }
}

async fn jobs_of_other_servers_are_never_claimed(database: &Database) {
    let jobs = database.jobs(SHORT).await;
    let mut northern = backup_of(1);
    northern.server = "north".into();
    let id = created(jobs.create(&northern).await.unwrap()).id;
    assert!(jobs.claim(SERVER, "w").await.unwrap().is_none());
    assert!(jobs.claim("nort", "w").await.unwrap().is_none());
    assert!(jobs.claim("North", "w").await.unwrap().is_none());
    assert!(jobs.claim("", "w").await.unwrap().is_none());
    let claimed = jobs.claim("north", "w").await.unwrap().unwrap();
    assert_eq!(claimed.job.id, id);
    // Given to another server, it is that one's only.
    assert!(jobs.release(claimed.lease, "south").await.unwrap());
    assert!(jobs.claim("north", "w").await.unwrap().is_none());
    let claimed = jobs.claim("south", "w").await.unwrap().unwrap();
    assert_eq!((claimed.job.attempts, claimed.is_taken_over), (2, false));
    // Nor are those whose worker died.
    let other = create(&jobs, 2).await;
    wait_for("the southern lease to end", async || {
        let ours = jobs.claim(SERVER, "w").await.unwrap();
        assert!(ours.is_none_or(|ours| ours.job.id == other.id));
        jobs.claim("south", "w").await.unwrap()
    })
    .await;
}

async fn the_oldest_job_comes_first(database: &Database) {
    let jobs = database.jobs(LONG).await;
    for number in [3, 1, 2] {
        create(&jobs, number).await;
    }
    for number in [3, 1, 2] {
        let claimed = claim(&jobs).await;
        assert_eq!(claimed.job.customer_id.get(), number);
        assert_eq!(
            (claimed.job.status, claimed.job.attempts),
            (JobStatus::Running, 1)
        );
        assert_eq!(get(&jobs, claimed.lease.job()).await, claimed.job);
    }
    assert!(jobs.claim(SERVER, "w").await.unwrap().is_none());
}

async fn rows_that_make_no_sense_keep_nobody_from_the_others(database: &Database) {
    // Words are not checked in every table that was made by hand.
    const BY_HAND: &str = "CREATE TABLE customer_backup_jobs (id BIGINT AUTO_INCREMENT PRIMARY KEY, customer_id BIGINT NOT NULL,
        job_type VARCHAR(20) NOT NULL, backup_type VARCHAR(10) NOT NULL, snapshot_id VARCHAR(64), status VARCHAR(20), error_message TEXT,
        created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP, completed_at TIMESTAMP NULL)";
    if database.kind() == Kind::MariaDb {
        database.run(BY_HAND).await;
        database.store().await.migrate().await.unwrap();
    }
    let jobs = database.jobs(LONG).await;
    // More than a worker looks at in one go.
    let mut rows: Vec<String> = (1..=40)
        .map(|n| format!("({n}, {n}, 'sync', 'both', 'pending', 0)"))
        .collect();
    rows.extend(
        [
            "(-5, 55, 'backup', 'both', 'pending', 0)",
            "(51, -3, 'backup', 'both', 'pending', 0)",
            "(52, 52, 'backup', 'mail', 'running', 0)",
            "(53, 53, 'restore', 'mail', 'running', 0)",
            "(54, 54, 'backup', 'both', 'queued', 0)",
            "(56, 56, 'backup', 'both', 'pending', -1)",
            "(57, 57, 'backup', 'both', 'pending', 2147483647)",
        ]
        .map(str::to_owned),
    );
    let insert = format!(
        "INSERT INTO customer_backup_jobs (id, customer_id, job_type, backup_type, status, attempts) VALUES {}",
        rows.join(", ")
    );
    match database.kind() {
        Kind::MariaDb => database.run(&insert).await,
        Kind::Sqlite => {
            let unreadable = "INSERT INTO customer_backup_jobs (id, customer_id, job_type, backup_type, bytes_done)
                VALUES (58, 58, 'backup', 'both', 'much')";
            let unchecked = format!(
                "PRAGMA ignore_check_constraints = ON; {insert}; {unreadable}; PRAGMA ignore_check_constraints = OFF"
            );
            database.run(&unchecked).await;
        }
    }
    let good = create(&jobs, 1000).await;

    assert_eq!(
        jobs.recent(1000).await.unwrap(),
        std::slice::from_ref(&good)
    );
    assert!(jobs.of_customer(customer(7), 9).await.unwrap().is_empty());
    assert!(jobs.abandoned_restores(SERVER).await.unwrap().is_empty());
    assert_eq!(claim(&jobs).await.job.id, good.id);
    assert!(jobs.claim(SERVER, "w").await.unwrap().is_none());
    let error = jobs.get("7".parse().unwrap()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Failed);
    assert!(error.to_string().contains("job 7"), "{error}");
    let touched = "customer_backup_jobs WHERE lease_owner IS NOT NULL";
    assert_eq!(database.count(touched).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_lists_and_claims_jobs_on_mariadb_sorts_nothing() {
    // Of its own: the server counts what it sorts for all.
    let server = MariaDb::start().unwrap();
    let database = Database::on(&server);
    let jobs = database.jobs(LONG).await;
    database
        .run("INSERT INTO customer_backup_jobs (customer_id, job_type, backup_type, status) SELECT seq % 50 + 1, 'backup', 'both', 'failed' FROM seq_1_to_5000")
        .await;
    database
        .run("INSERT INTO customer_backup_jobs (customer_id, job_type, backup_type) SELECT seq, 'backup', 'both' FROM seq_1_to_500")
        .await;
    let sorts = "SELECT SUM(variable_value) FROM information_schema.global_status WHERE variable_name IN ('Sort_scan', 'Sort_range')";
    let before = server.sql(sorts).unwrap();
    assert_eq!(jobs.recent(20).await.unwrap().len(), 20);
    assert_eq!(jobs.of_customer(customer(7), 20).await.unwrap().len(), 20);
    claim(&jobs).await;
    assert_eq!(server.sql(sorts).unwrap(), before);
}
