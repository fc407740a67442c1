//! What is to be told of the end of a job is written down with it, or not at all.

use backup_core::config::{Config, Environment, Origin};
use backup_core::jobs::{CancelAnswer, Failure, JobStore};
use serde_json::Value;

use crate::databases::{Database, LONG, claim, create, on_both};

on_both!(
    each_end_of_a_job_is_written_down_with_it,
    what_waits_of_one_customer_is_bounded_and_the_newest_stays,
);

/// Whoever is configured so is told of the ends of these jobs.
async fn jobs(database: &Database, sections: &str) -> JobStore {
    let text = format!(
        "[database]\nurl = 'sqlite:///b.db'\n[repositories.manual]\nlocation = '/r'\npassword_file = '/p'\n{sections}"
    );
    let config = Config::read(Origin::File("test".into()), &text, &Environment::default());
    let jobs = database.jobs(LONG).await;
    jobs.with_notifications(&config.unwrap().notify)
}

const BOTH: &str = "[notify.webhook]\nurl = 'https://a.example/'\nsecret_file = '/s'
[notify.email]\nhost = 'smtp.example'\nfrom = 'a@b.example'\n";

async fn written(database: &Database) -> Vec<(String, String)> {
    let query = "SELECT channel, payload FROM backup_notifications ORDER BY job_id, channel";
    let rows: Vec<(String, String)> = database.rows(query).await;
    rows.into_iter()
        .map(|(channel, payload)| {
            let payload: Value = serde_json::from_str(&payload).unwrap();
            (channel, payload["type"].as_str().unwrap().to_owned())
        })
        .collect()
}

async fn each_end_of_a_job_is_written_down_with_it(database: &Database) {
    let jobs = jobs(database, BOTH).await;
    create(&jobs, 1).await;
    let failed = claim(&jobs).await;
    assert!(written(database).await.is_empty());
    let stale = {
        let waiting = create(&jobs, 2).await;
        let answer = jobs.cancel(waiting.id).await.unwrap();
        assert_eq!(answer, CancelAnswer::Cancelled);
        let again = jobs.cancel(waiting.id).await.unwrap();
        assert_eq!(again, CancelAnswer::Ended);
        failed.lease
    };
    assert!(
        jobs.fail(failed.lease, Failure::Timeout, "It failed.")
            .await
            .unwrap()
    );
    assert!(!jobs.fail(stale, Failure::Error, "Late.").await.unwrap());
    let expected = [
        ("email", "backup.failed"),
        ("webhook", "backup.failed"),
        // No mail by default, for he did that himself.
        ("webhook", "backup.cancelled"),
    ];
    let expected = expected.map(|(channel, event)| (channel.to_owned(), event.to_owned()));
    assert_eq!(written(database).await, expected);
}

async fn what_waits_of_one_customer_is_bounded_and_the_newest_stays(database: &Database) {
    const MOST: i64 = 100;
    let jobs = jobs(database, BOTH).await;
    let mut newest = None;
    for customer in [1, 2] {
        for _ in 0..MOST / customer + 5 {
            let waiting = create(&jobs, u32::try_from(customer).unwrap()).await;
            jobs.cancel(waiting.id).await.unwrap();
            newest = newest.max(Some(waiting.id));
        }
    }
    for (customer, number) in [(1, MOST), (2, MOST / 2 + 5)] {
        let of_him = format!("backup_notifications WHERE customer_id = {customer}");
        assert_eq!(database.count(&of_him).await, number);
    }
    let last = format!("backup_notifications WHERE job_id = {}", newest.unwrap());
    assert_eq!(database.count(&last).await, 1);
    let given_up: Vec<(i64,)> = database
        .rows("SELECT number FROM backup_notification_counts WHERE channel = 'webhook' AND outcome = 'given_up'")
        .await;
    assert_eq!(given_up, [(5,)]);
}
