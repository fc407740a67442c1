//! One active job per customer, whoever asks and however many at once.

use std::collections::HashMap;

use backup_core::error::ErrorKind;
use backup_core::jobs::{Created, Failure, JobStatus, JobStore};

use crate::databases::{
    Database, LONG, SERVER, backup_of, claim, create, create_claimed, customer, on_both,
};
use crate::processes::{Processes, at_the_gate, store_of_parent};

const CUSTOMERS: u32 = 10;
const ROUNDS: u32 = 12;

on_both!(
    of_fifty_processes_never_two_have_an_active_job_of_one_customer,
    a_second_job_of_a_customer_is_told_which_one_is_in_the_way,
    a_job_in_the_way_gives_no_lease,
    beside_a_stuck_restore_no_job_is_created_until_it_has_its_true_end,
);

async fn of_fifty_processes_never_two_have_an_active_job_of_one_customer(database: &Database) {
    database.jobs(LONG).await;
    let mut processes = Processes::spawn(50, "active::one_of_fifty", database);
    processes.open_gate();
    let all = tokio::task::spawn_blocking(|| processes.finish());
    let mut looks = 0;
    while !all.is_finished() {
        let twice = database
            .count(
                "(SELECT customer_id FROM customer_backup_jobs WHERE status IN ('pending', 'running')
                  GROUP BY customer_id HAVING COUNT(*) > 1) AS twice",
            )
            .await;
        assert_eq!(twice, 0);
        looks += 1;
    }
    assert!(looks > 10, "nobody looked while they ran");
    let printed = all.await.unwrap();

    // Of one customer the ends and the beginnings alternate.
    let mut active: HashMap<i64, i64> = HashMap::new();
    let mut jobs = 0;
    for event in database.history().await {
        match event.status.as_str() {
            "pending" => {
                jobs += 1;
                let other = active.insert(event.customer, event.job);
                assert_eq!(other, None, "{event:?} beside another");
            }
            "running" => assert_eq!(active.get(&event.customer), Some(&event.job), "{event:?}"),
            "failed" => assert_eq!(active.remove(&event.customer), Some(event.job), "{event:?}"),
            other => panic!("a job {other}"),
        }
    }
    let told: usize = printed
        .iter()
        .map(|lines| lines.matches("created").count())
        .sum();
    assert_eq!(told, jobs, "who was told of a job has one, and nobody else");
    // How many of those who try at once are too late is chance.
    assert!(jobs > 50, "only {jobs} jobs came about");
    // The times say the same: nothing is taken up before the one before it has ended.
    let overlaps = database
        .count(
            "customer_backup_jobs a JOIN customer_backup_jobs b ON a.customer_id = b.customer_id AND a.id <> b.id
             WHERE a.started_at < b.started_at AND b.started_at < a.finished_at",
        )
        .await;
    assert_eq!(overlaps, 0);
}

#[tokio::test]
#[ignore = "run as a process of the test above"]
async fn one_of_fifty() {
    let jobs = JobStore::new(&store_of_parent().await, LONG);
    at_the_gate().await;
    for round in 0..ROUNDS {
        let number = (std::process::id() + round) % CUSTOMERS + 1;
        match jobs.create(&backup_of(number)).await.unwrap() {
            Created::Job(job) => {
                assert_eq!(job.customer_id, customer(number));
                println!("created {}", job.id);
            }
            Created::InTheWay(job) => assert_eq!(job.customer_id, customer(number)),
        }
        if let Some(claimed) = jobs.claim(SERVER, "one of fifty").await.unwrap() {
            let sentence = "It was only a test.";
            assert!(
                jobs.fail(claimed.lease, Failure::Error, sentence)
                    .await
                    .unwrap()
            );
        }
    }
}

async fn a_second_job_of_a_customer_is_told_which_one_is_in_the_way(database: &Database) {
    let jobs = database.jobs(LONG).await;
    let first = create(&jobs, 1).await;
    let Created::InTheWay(other) = jobs.create(&backup_of(1)).await.unwrap() else {
        panic!("two jobs");
    };
    assert_eq!(*other, first);
    let running = claim(&jobs).await;
    let Created::InTheWay(other) = jobs.create(&backup_of(1)).await.unwrap() else {
        panic!("two jobs");
    };
    assert_eq!((other.id, other.status), (first.id, JobStatus::Running));
    // Others are not in its way, and it is in nobody's when it has ended.
    create(&jobs, 11).await;
    let failed = jobs
        .fail(running.lease, Failure::Error, "It failed.")
        .await
        .unwrap();
    assert!(failed);
    let second = create(&jobs, 1).await;
    assert!(second.id > first.id);
    assert_eq!(jobs.active(customer(1)).await.unwrap(), Some(second));
    let missing = jobs.cancel("999999".parse().unwrap()).await.unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
}

async fn a_job_in_the_way_gives_no_lease(database: &Database) {
    let jobs = database.jobs(LONG).await;
    let mine = create_claimed(&jobs, 1).await;
    assert_eq!(
        (mine.job.status, mine.job.attempts),
        (JobStatus::Running, 1)
    );
    let theirs = jobs.create_claimed(&backup_of(1), "others").await.unwrap();
    assert_eq!(theirs.unwrap_err().id, mine.job.id);
    let ended = jobs.fail(mine.lease, Failure::Error, "It failed.").await;
    assert!(ended.unwrap());
}

async fn beside_a_stuck_restore_no_job_is_created_until_it_has_its_true_end(database: &Database) {
    let jobs = database.jobs(LONG).await;
    let stuck = create_claimed(&jobs, 1).await;
    let failed = jobs.fail(stuck.lease, Failure::Stuck, "It is stuck.").await;
    assert!(failed.unwrap());
    // One of before there was this rule, which is over.
    database
        .run("INSERT INTO customer_backup_jobs (customer_id, job_type, backup_type, status) VALUES (1, 'backup', 'db', 'completed')")
        .await;
    let Created::InTheWay(other) = jobs.create(&backup_of(1)).await.unwrap() else {
        panic!("a job beside a stuck restore");
    };
    assert!(other.id == stuck.job.id && other.is_stuck() && other.is_open());
    let claimed = jobs.create_claimed(&backup_of(1), "me").await.unwrap();
    assert_eq!(claimed.unwrap_err().id, stuck.job.id);
    assert_eq!(jobs.open(customer(1)).await.unwrap(), Some(*other));
    assert_eq!(jobs.active(customer(1)).await.unwrap(), None);
    // Others are not in its way.
    create(&jobs, 11).await;
    database
        .run("UPDATE customer_backup_jobs SET failure = 'rolled_back' WHERE failure = 'stuck'")
        .await;
    let next = create(&jobs, 1).await;
    assert_eq!(jobs.open(customer(1)).await.unwrap(), Some(next));
}
