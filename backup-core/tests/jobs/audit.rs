//! Who did what: written with the thing itself, kept for a time, and nobody else's to read.

use std::net::IpAddr;
use std::time::Duration;

use backup_core::audit::{Action, Actor, AuditEntry, Who};
use backup_core::catalog::Source;
use backup_core::jobs::CancelAnswer;
use backup_core::operations::{BackupRequest, RestoreRequest};
use backup_core::repository::BackupType;
use backup_core::service::{BackupService, Deleted};

use crate::databases::{Database, Kind, config, created, customer, on_both};

on_both!(
    what_is_done_is_written_with_it_and_what_is_not_done_is_not,
    two_at_once_write_what_they_did_and_nothing_twice,
    what_failed_to_be_written_was_not_done,
    a_page_of_what_a_later_version_did_is_not_the_last_one,
    of_a_customer_the_newest_of_each_kind_are_kept_whatever_he_does_all_the_time,
);

const CUSTOMERS: &str =
    "CREATE TABLE customers (id INT PRIMARY KEY, email VARCHAR(64), status VARCHAR(16));";

async fn service(database: &Database) -> BackupService {
    if database.kind() == Kind::MariaDb {
        database.run(CUSTOMERS).await;
    }
    let config = config(&database.url, &database.password);
    let service = BackupService::connect(config).await.unwrap();
    for id in 1..=2 {
        let insert = format!("INSERT INTO customers (id, status) VALUES ({id}, 'active')");
        database.run(&insert).await;
    }
    service
}

fn a_backup() -> BackupRequest {
    BackupRequest {
        backup_type: BackupType::Db,
        note: Some("never written down there".into()),
    }
}

async fn of(service: &BackupService, number: u32) -> Vec<AuditEntry> {
    let page = service.activity(customer(number), None, 100).await.unwrap();
    assert_eq!(page.next, None);
    page.entries
}

async fn what_is_done_is_written_with_it_and_what_is_not_done_is_not(database: &Database) {
    let service = service(database).await;
    let snapshot = "ab".repeat(32).parse().unwrap();
    database
        .run(&format!(
            "INSERT INTO customer_backups (customer_id, source, snapshot_id, time, backup_type) VALUES
                (1, 'manual', '{snapshot}', 1700000000000, 'both'), (1, 'pre-restore', '{snapshot}', 1700000000000, 'both')"
        ))
        .await;
    let address: IpAddr = "203.0.113.7".parse().unwrap();
    let he = service.acting(Actor::customer().at(address, "request-1"));
    let operator = service.acting(Actor::operator("alice as root"));

    let job = created(he.create_backup(customer(1), &a_backup()).await.unwrap());
    // In the way, so nothing is done.
    he.create_backup(customer(1), &a_backup()).await.unwrap();
    assert!(matches!(
        he.delete_backup(customer(1), &snapshot).await.unwrap(),
        Deleted::InTheWay(_)
    ));
    let cancel = async |service: &BackupService| service.cancel(None, job.id).await.unwrap();
    assert_eq!(cancel(&operator).await, CancelAnswer::Cancelled);
    assert_eq!(cancel(&operator).await, CancelAnswer::Ended);
    for _ in 0..2 {
        assert!(he.dismiss(customer(1), job.id).await.unwrap());
    }
    let undo = RestoreRequest {
        snapshot,
        source: Source::PreRestore,
        restore_type: None,
        online: false,
    };
    let restore = created(service.restore(customer(1), &undo).await.unwrap());
    assert!(!he.dismiss(customer(1), restore.id).await.unwrap());
    he.cancel(Some(customer(1)), restore.id).await.unwrap();
    he.delete_backup(customer(1), &snapshot).await.unwrap();
    he.delete_backup(customer(1), &snapshot).await.unwrap_err();

    let entries = of(&service, 1).await;
    let told: Vec<_> = entries
        .iter()
        .map(|entry| (entry.who, entry.action))
        .collect();
    assert_eq!(
        told,
        [
            (Who::Customer, Action::Delete),
            (Who::Customer, Action::Cancel),
            (Who::Service, Action::Restore),
            (Who::Customer, Action::Dismiss),
            (Who::Operator, Action::Cancel),
            (Who::Customer, Action::Backup),
        ]
    );
    let first = entries.last().unwrap();
    assert_eq!(first.job_id, Some(job.id.get()));
    assert_eq!(first.backup_type, Some(BackupType::Db));
    assert_eq!(first.address.as_deref(), Some("203.0.113.7"));
    assert_eq!(first.request_id.as_deref(), Some("request-1"));
    assert_eq!(entries[2].source, Some(Source::PreRestore));
    assert_eq!(entries[1].source, Some(Source::PreRestore));
    assert_eq!(entries[0].snapshot_id, Some(snapshot.to_string()));
    // What an operator is called is for operators.
    assert_eq!(entries[4].name, None);
    let all = service.activity_of_all(100).await.unwrap();
    assert_eq!(all[4].name.as_deref(), Some("alice as root"));
    assert!(of(&service, 2).await.is_empty());
    let rows: Vec<(String,)> = database
        .rows("SELECT CAST(CONCAT_WS(' ', who, name, action, source, backup_type, snapshot_id, address, request_id) AS CHAR) FROM backup_audit")
        .await;
    assert!(rows.iter().all(|(row,)| !row.contains("never")), "{rows:?}");
    // The part of the list that is older than one of it.
    let before = service
        .activity(customer(1), Some(entries[3].id), 2)
        .await
        .unwrap();
    assert_eq!(before.entries, entries[4..6]);
    assert_eq!(before.next, None);
    service.close().await;
}

async fn two_at_once_write_what_they_did_and_nothing_twice(database: &Database) {
    let service = service(database).await;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..12 {
        let he = service.acting(Actor::customer());
        tasks.spawn(async move {
            let request = a_backup();
            he.create_backup(customer(1), &request).await.unwrap();
            let open = he.open_job(customer(1)).await.unwrap();
            if let Some(job) = open {
                he.cancel(Some(customer(1)), job.id).await.unwrap();
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    let jobs = database.count("customer_backup_jobs").await;
    let cancelled = database
        .count("customer_backup_jobs WHERE failure = 'cancelled'")
        .await;
    assert!(jobs >= 1);
    assert_eq!(
        database.count("backup_audit WHERE action = 'backup'").await,
        jobs
    );
    assert_eq!(
        database.count("backup_audit WHERE action = 'cancel'").await,
        cancelled
    );
    service.close().await;
}

async fn what_failed_to_be_written_was_not_done(database: &Database) {
    let service = service(database).await;
    let job = created(
        service
            .create_backup(customer(1), &a_backup())
            .await
            .unwrap(),
    );
    database
        .run("ALTER TABLE backup_audit RENAME TO hidden")
        .await;
    service
        .create_backup(customer(2), &a_backup())
        .await
        .unwrap_err();
    service.cancel(None, job.id).await.unwrap_err();
    database
        .run("ALTER TABLE hidden RENAME TO backup_audit")
        .await;
    let jobs = service.jobs(None, 10).await.unwrap();
    let [only] = &jobs[..] else {
        panic!("{jobs:?}")
    };
    assert!(only.status.is_active() && !only.cancel_requested);
    service.cancel(None, job.id).await.unwrap();
    service.close().await;
}

async fn a_page_of_what_a_later_version_did_is_not_the_last_one(database: &Database) {
    let service = service(database).await;
    for action in [
        "login", "teleport", "logout", "teleport", "teleport", "login",
    ] {
        let insert = format!(
            "INSERT INTO backup_audit (at, customer_id, who, action) VALUES (1700000000000, 1, 'customer', '{action}')"
        );
        database.run(&insert).await;
    }
    let (mut before, mut pages) = (None, Vec::new());
    loop {
        let page = service.activity(customer(1), before, 2).await.unwrap();
        pages.push(page.entries.iter().map(|it| it.action).collect::<Vec<_>>());
        before = page.next;
        if before.is_none() {
            break;
        }
    }
    let (login, logout) = (Action::Login, Action::Logout);
    assert_eq!(pages, [vec![login], vec![logout], vec![login]]);
    service.close().await;
}

/// By the same way that the upkeep takes.
async fn of_a_customer_the_newest_of_each_kind_are_kept_whatever_he_does_all_the_time(
    database: &Database,
) {
    let service = service(database).await;
    let write = async |customer: u32, action: &str, count: u32| {
        database
            .run(&format!(
                "INSERT INTO backup_audit (at, customer_id, who, action)
                 WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count})
                 SELECT {}, {customer}, 'customer', '{action}' FROM n",
                now(database.kind())
            ))
            .await;
    };
    let count = async |what: &str| database.count(&format!("backup_audit WHERE {what}")).await;
    write(1, "delete", 3).await;
    write(2, "login", 900).await;
    write(1, "login", 400).await;
    write(1, "logout", 800).await;
    write(1, "login_refused", 999).await;
    assert_eq!(service.forget_old_activity().await.unwrap(), 200);
    for (what, left) in [
        ("action = 'delete'", 3),
        ("customer_id = 2", 900),
        ("customer_id = 1 AND action = 'login'", 200),
        ("action = 'logout'", 800),
        ("action = 'login_refused'", 999),
    ] {
        assert_eq!(count(what).await, left, "{what}");
    }
    assert_eq!(service.forget_old_activity().await.unwrap(), 0);
    // Whoever was looked at before is looked at again when more was done to him.
    write(1, "login_refused", 700).await;
    write(2, "login", 100).await;
    assert_eq!(service.forget_old_activity().await.unwrap(), 699);
    assert_eq!(count("action = 'login_refused'").await, 1000);
    assert_eq!(count("customer_id = 2").await, 1000);
    service.close().await;
}

fn now(kind: Kind) -> &'static str {
    match kind {
        Kind::MariaDb => "CAST(UNIX_TIMESTAMP(NOW(3)) * 1000 AS SIGNED)",
        Kind::Sqlite => "CAST(unixepoch('subsec') * 1000 AS INTEGER)",
    }
}

/// The upkeep removes what is too old; here by the same way that it takes.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_older_than_the_kept_time_is_removed_a_little_at_a_time() {
    for kind in [Kind::MariaDb, Kind::Sqlite] {
        let database = Database::empty(kind);
        let service = service(&database).await;
        let now = now(kind);
        let numbers =
            "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 900) SELECT";
        for (age, count) in [
            (400_u64 * 86_400_000 + 60_000, "900"),
            (399 * 86_400_000, "3"),
        ] {
            database
                .run(&format!(
                    "INSERT INTO backup_audit (at, customer_id, who, action) {numbers} {now} - {age}, 1, 'customer', 'login' FROM n LIMIT {count}"
                ))
                .await;
        }
        let kept = service.config().server.audit_keep;
        assert_eq!(kept, Duration::from_secs(400 * 86_400));
        assert_eq!(service.forget_old_activity().await.unwrap(), 900);
        assert_eq!(database.count("backup_audit").await, 3);
        assert_eq!(service.forget_old_activity().await.unwrap(), 0);
        service.close().await;
    }
}
