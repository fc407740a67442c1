//! The tables come about whatever was there before, and nothing that was there is lost.

use std::collections::BTreeSet;

use backup_core::config::Config;
use backup_core::error::ErrorKind;
use backup_core::jobs::{CancelAnswer, JobStatus, JobStore};
use backup_core::store::{Migrated, Store};
use xtask::testbed::JOBS_BY_HAND as BY_HAND;

use crate::databases::{
    Database, Kind, LONG, MARIADB, backup_of, claim, config, create, created, customer, get,
    on_both,
};
use crate::processes::{Processes, at_the_gate, store_of_parent};

on_both!(
    a_fresh_database_gets_the_tables_and_a_second_time_changes_nothing,
    eight_processes_migrate_at_once,
    eight_processes_that_find_nothing_all_find_the_tables,
    tables_of_a_newer_version_are_refused,
);

/// The version of the tables.
const NEWEST: i64 = 7;

const FIRST: &str = include_str!("../../../migrations/mysql/0001_jobs_and_catalogue.sql");
const SECOND: &str = include_str!("../../../migrations/mysql/0002_sessions.sql");
const THIRD: &str = include_str!("../../../migrations/mysql/0003_deletions.sql");
const FOURTH: &str = include_str!("../../../migrations/mysql/0004_kept.sql");
const FIFTH: &str = include_str!("../../../migrations/mysql/0005_proven.sql");
const SIXTH: &str = include_str!("../../../migrations/mysql/0006_audit.sql");
const SEVENTH: &str = include_str!("../../../migrations/mysql/0007_notifications.sql");

/// As the platform's own migration makes them.
const PLATFORM: &str = "
CREATE TABLE customers (id INT PRIMARY KEY AUTO_INCREMENT, email VARCHAR(255) UNIQUE, status ENUM('active', 'failed') DEFAULT 'active');
INSERT INTO customers (id, email) VALUES (7, 'a@x'), (8, 'b@x'), (9, 'c@x');
CREATE TABLE servers (id INT PRIMARY KEY, name VARCHAR(64));
INSERT INTO servers VALUES (1, 'north');";

/// Two active ones of one customer, and both ends of what a job can be.
const ROWS: &str = "
INSERT INTO customer_backup_jobs (id, customer_id, job_type, backup_type, snapshot_id, status, error_message, created_at, completed_at) VALUES
    (1, 7, 'backup', 'both', 'a1b2c3d4', 'completed', NULL, '2026-01-02 03:04:05', '2026-01-02 03:09:10'),
    (2, 7, 'restore', 'db', 'a1b2c3d4', 'failed', 'It did not work.', '2026-01-03 00:00:00', '2026-01-03 00:00:01'),
    (3, 7, 'backup', 'files', NULL, 'running', NULL, '2026-01-04 10:00:00', NULL),
    (4, 7, 'backup', 'db', NULL, 'pending', NULL, '2026-01-04 10:00:01', NULL),
    (40, 8, 'backup', 'both', NULL, 'pending', NULL, '2026-01-05 23:59:59', NULL);";

/// What of those rows nobody may change.
const KEPT: &str = "SELECT CAST(id AS CHAR), CAST(customer_id AS CHAR), CAST(job_type AS CHAR), CAST(backup_type AS CHAR),
    COALESCE(CAST(snapshot_id AS CHAR), '-'), CAST(created_at AS CHAR) FROM customer_backup_jobs ORDER BY id";

type Row = (String, String, String, String, String, String);

async fn migrate(database: &Database) -> Migrated {
    database.store().await.migrate().await.unwrap()
}

/// All that makes up the schema, without the counters of rows.
async fn shape(database: &Database) -> Vec<String> {
    let mut shape = Vec::new();
    if database.kind() == Kind::Sqlite {
        let query = "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name";
        shape.extend(
            database
                .rows::<(String,)>(query)
                .await
                .into_iter()
                .map(|row| row.0),
        );
        return shape;
    }
    let tables = "SELECT CAST(table_name AS CHAR) FROM information_schema.tables WHERE table_schema = DATABASE() ORDER BY 1";
    for (table,) in database.rows::<(String,)>(tables).await {
        let rows: Vec<(String, String)> =
            database.rows(&format!("SHOW CREATE TABLE {table}")).await;
        let made = rows.into_iter().map(|(_, made)| made).collect::<String>();
        let (columns, options) = made.rsplit_once("\n)").unwrap();
        let options: Vec<&str> = options
            .split_whitespace()
            .filter(|option| !option.starts_with("AUTO_INCREMENT="))
            .collect();
        shape.push(format!("{columns} {}", options.join(" ")));
    }
    shape
}

async fn a_fresh_database_gets_the_tables_and_a_second_time_changes_nothing(database: &Database) {
    let store = database.store().await;
    let migrated = store.migrate().await.unwrap();
    // A SQLite file gets them when it comes about.
    let from = match database.kind() {
        Kind::MariaDb => 0,
        Kind::Sqlite => NEWEST,
    };
    assert_eq!((migrated.from, migrated.to), (from, NEWEST));
    let jobs = JobStore::new(&store, LONG);
    let job = create(&jobs, 1).await;
    let before = shape(database).await;
    for _ in 0..2 {
        let again = migrate(database).await;
        assert_eq!((again.from, again.to), (NEWEST, NEWEST));
        store.require_migrated().await.unwrap();
    }
    assert_eq!(shape(database).await, before);
    assert_eq!(get(&jobs, job.id).await, job);
}

async fn eight_processes_migrate_at_once(database: &Database) {
    if database.kind() == Kind::MariaDb {
        database.run(&[PLATFORM, BY_HAND, ROWS].concat()).await;
    }
    let processes = Processes::spawn(8, "migrate::one_of_eight_that_migrate", database);
    let printed = tokio::task::spawn_blocking(|| processes.finish())
        .await
        .unwrap();
    if database.kind() == Kind::MariaDb {
        // Each in its turn, and the first did it.
        let did = printed
            .iter()
            .filter(|lines| lines.contains(&format!("migrated 0 to {NEWEST}")));
        assert_eq!(did.count(), 1, "{printed:?}");
    }
    assert_works(database).await;
    assert_eq!(database.count("backup_migrations").await, NEWEST);
}

#[tokio::test]
#[ignore = "run as a process of the test above"]
async fn one_of_eight_that_migrate() {
    at_the_gate().await;
    let migrated = store_of_parent().await.migrate().await.unwrap();
    println!("migrated {} to {}", migrated.from, migrated.to);
}

async fn eight_processes_that_find_nothing_all_find_the_tables(database: &Database) {
    let processes = Processes::spawn(8, "migrate::one_of_eight_that_require", database);
    tokio::task::spawn_blocking(|| processes.finish())
        .await
        .unwrap();
    assert_works(database).await;
}

#[tokio::test]
#[ignore = "run as a process of the test above"]
async fn one_of_eight_that_require() {
    at_the_gate().await;
    let store = store_of_parent().await;
    store.require_migrated().await.unwrap();
    let jobs = JobStore::new(&store, LONG);
    jobs.recent(1).await.unwrap();
}

/// A job can live its life.
async fn assert_works(database: &Database) {
    let jobs = database.jobs(LONG).await;
    let new = create(&jobs, 9).await;
    assert_eq!(new.server, "default");
    let claimed = claim(&jobs).await;
    assert_eq!(claimed.job.id, new.id);
    assert!(
        jobs.release(claimed.lease, "north").await.unwrap(),
        "it is not ours"
    );
    let answer = jobs.cancel(new.id).await.unwrap();
    assert_eq!(answer, CancelAnswer::Cancelled);
    let ended = get(&jobs, new.id).await;
    assert!(ended.completed_at >= ended.created_at);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_made_by_hand_keeps_its_rows() {
    const NO_KEY: &str =
        "    FOREIGN KEY (customer_id) REFERENCES customers(id) ON DELETE CASCADE,\n";
    let bare = BY_HAND.replace(NO_KEY, "");
    let variants = [
        ("as the platform has it", BY_HAND.to_owned()),
        ("without a foreign key", bare.clone()),
        ("unsigned", bare.replace("id INT ", "id INT UNSIGNED ")),
        (
            "large numbers",
            bare.replace("id INT ", "id BIGINT ")
                .replace("customer_id BIGINT ", "customer_id BIGINT UNSIGNED "),
        ),
        (
            "words as text",
            bare.replace("ENUM('backup', 'restore')", "VARCHAR(20)")
                .replace("ENUM('db', 'files', 'both')", "VARCHAR(10)")
                .replace(
                    "ENUM('pending', 'running', 'completed', 'failed')",
                    "VARCHAR(20)",
                ),
        ),
        (
            "times of day",
            bare.replace(
                "created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP",
                "created_at DATETIME NOT NULL",
            )
            .replace("completed_at TIMESTAMP NULL", "completed_at DATETIME(3)"),
        ),
        (
            "a short snapshot",
            bare.replace("snapshot_id VARCHAR(64)", "snapshot_id CHAR(8)"),
        ),
        (
            "a snapshot that must be there",
            bare.replace(
                "snapshot_id VARCHAR(64)",
                "snapshot_id VARCHAR(16) NOT NULL DEFAULT ''",
            ),
        ),
        (
            "the first timestamp changes by itself",
            format!(
                "SET SESSION explicit_defaults_for_timestamp = OFF; {} SET SESSION explicit_defaults_for_timestamp = ON;",
                BY_HAND.replace(
                    "created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP",
                    "created_at TIMESTAMP"
                )
            ),
        ),
        (
            "the second timestamp is never empty",
            format!(
                "SET SESSION explicit_defaults_for_timestamp = OFF, sql_mode = ''; {} SET SESSION explicit_defaults_for_timestamp = ON;",
                BY_HAND.replace("completed_at TIMESTAMP NULL", "completed_at TIMESTAMP")
            ),
        ),
        (
            "compared by bytes",
            format!(
                "{} ALTER TABLE customer_backup_jobs CONVERT TO CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;",
                BY_HAND
            ),
        ),
        (
            "latin1",
            format!(
                "{} ALTER TABLE customer_backup_jobs CONVERT TO CHARACTER SET latin1;",
                bare.replace(
                    "ENUM('pending', 'running', 'completed', 'failed')",
                    "VARCHAR(20)"
                )
            ),
        ),
    ];
    for (variant, table) in variants {
        let database = Database::empty(Kind::MariaDb);
        let rows = if variant.contains("must be") {
            ROWS.replace("'both', NULL", "'both', ''")
                .replace("'files', NULL", "'files', ''")
                .replace("'db', NULL", "'db', ''")
        } else {
            ROWS.to_owned()
        };
        println!("{variant}");
        let schema = database.schema();
        MARIADB
            .sql(&format!(
                "USE {schema}; SET time_zone = '+00:00'; {PLATFORM} {table} {rows}"
            ))
            .unwrap();
        let platforms = "CHECKSUM TABLE customers, servers; SHOW CREATE TABLE customers; SHOW CREATE TABLE servers";
        let platforms = || MARIADB.sql(&format!("USE {schema}; {platforms}")).unwrap();
        let untouched = platforms();
        database.run("SET time_zone = '+00:00'").await;
        let kept: Vec<Row> = database.rows(KEPT).await;

        let migrated = migrate(&database).await;
        assert_eq!((migrated.from, migrated.to), (0, NEWEST), "{variant}");
        assert_eq!(database.rows::<Row>(KEPT).await, kept, "{variant}");
        assert_eq!(platforms(), untouched, "{variant}");
        assert_old_jobs_are_read(&database, variant).await;
        assert_works(&database).await;
        // Running it does not change when a job was asked for.
        assert_eq!(
            database.rows::<Row>(KEPT).await[..kept.len()],
            kept,
            "{variant}"
        );
        assert_eq!(platforms(), untouched, "{variant}");
        if table.contains("ON DELETE CASCADE") {
            assert_leaves_with_its_customer(&database).await;
        }
    }
}

async fn assert_old_jobs_are_read(database: &Database, variant: &str) {
    let jobs = JobStore::new(&database.store().await, LONG);
    let all = jobs.recent(100).await.unwrap();
    let ids: Vec<u64> = all.iter().map(|job| job.id.get()).collect();
    assert_eq!(ids, [40, 4, 3, 2, 1], "{variant}");
    let [other, pending, running, failed, completed] = &all[..] else {
        unreachable!()
    };
    assert_eq!(completed.status, JobStatus::Completed);
    assert_eq!(completed.snapshot_id.as_deref(), Some("a1b2c3d4"));
    let at = |text: &str| Some(text.parse().unwrap());
    assert_eq!(
        completed.created_at,
        at("2026-01-02T03:04:05Z"),
        "{variant}"
    );
    assert_eq!(
        completed.completed_at,
        at("2026-01-02T03:09:10Z"),
        "{variant}"
    );
    assert_eq!(failed.error_message.as_deref(), Some("It did not work."));
    for interrupted in [other, pending, running] {
        assert_eq!(interrupted.status, JobStatus::Failed, "{variant}");
        let sentence = interrupted.error_message.as_deref().unwrap();
        assert!(sentence.contains("start it again"), "{sentence}");
        assert!(
            interrupted.completed_at > completed.completed_at,
            "{variant}"
        );
    }
    assert_eq!(running.created_at, at("2026-01-04T10:00:00Z"), "{variant}");
    assert_eq!(jobs.of_customer(customer(7), 9).await.unwrap().len(), 4);
    assert!(jobs.claim("default", "w").await.unwrap().is_none());
}

async fn assert_leaves_with_its_customer(database: &Database) {
    let jobs = JobStore::new(&database.store().await, LONG);
    let active = created(jobs.create(&backup_of(8)).await.unwrap());
    database.run("DELETE FROM customers WHERE id = 8").await;
    assert!(jobs.of_customer(customer(8), 9).await.unwrap().is_empty());
    assert!(jobs.get(active.id).await.unwrap().is_none());
    assert!(jobs.active(customer(8)).await.unwrap().is_none());
    database
        .run("INSERT INTO customers (id, email) VALUES (8, 'b@x')")
        .await;
    created(jobs.create(&backup_of(8)).await.unwrap());
}

/// The statements of a migration, one by one.
fn statements(text: &str) -> Vec<String> {
    let lines = text.lines().filter(|line| !line.starts_with("--"));
    let text = lines.collect::<Vec<_>>().join("\n");
    let statements = text.split(";\n").map(str::trim);
    statements
        .filter(|statement| !statement.is_empty())
        .map(|statement| format!("{};\n", statement.trim_end_matches(';')))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_that_was_interrupted_anywhere_is_finished() {
    const NOTED: &str = "CREATE TABLE IF NOT EXISTS backup_migrations (
        version BIGINT PRIMARY KEY,
        description TEXT NOT NULL,
        installed_on TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP,
        success BOOLEAN NOT NULL,
        checksum BLOB NOT NULL,
        execution_time BIGINT NOT NULL
    );
    INSERT INTO backup_migrations (version, description, success, checksum, execution_time) VALUES (1, 'jobs and catalogue', FALSE, 'x', -1);";
    let statements = statements(FIRST);
    assert!(statements.len() > 15, "{statements:?}");
    // Only where the steps do something is there a table of before: with and without a short snapshot the shapes are the same.
    let by_hand = BY_HAND
        .replace("snapshot_id VARCHAR(64)", "snapshot_id VARCHAR(8)")
        .replace(
            "created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP",
            "created_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP ON UPDATE CURRENT_TIMESTAMP",
        );
    for before in [String::new(), [PLATFORM, &by_hand, ROWS].concat()] {
        let mut shapes = BTreeSet::new();
        let mut contents = BTreeSet::new();
        for done in 0..=statements.len() {
            let database = Database::empty(Kind::MariaDb);
            let prefix = statements[..done].concat();
            let session = format!(
                "USE {}; SET time_zone = '+00:00'; {before} {NOTED} {prefix}",
                database.schema()
            );
            MARIADB.sql(&session).unwrap();
            let migrated = migrate(&database).await;
            assert_eq!((migrated.from, migrated.to), (0, NEWEST), "after {done}");
            shapes.insert(shape(&database).await);
            database.run("SET time_zone = '+00:00'").await;
            contents.insert(database.rows::<Row>(KEPT).await);
            let done = database.count("backup_migrations WHERE success").await;
            assert_eq!(done, NEWEST);
            let jobs = JobStore::new(&database.store().await, LONG);
            let old = jobs.recent(10).await.unwrap();
            assert_eq!(old.len(), if before.is_empty() { 0 } else { 5 });
            assert!(old.iter().all(|job| !job.status.is_active()));
        }
        assert_eq!(shapes.len(), 1, "{shapes:#?}");
        assert_eq!(contents.len(), 1, "{contents:#?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_that_was_interrupted_anywhere_is_finished() {
    // What takes back each version.
    const UNDO_SECOND: &str =
        "DROP TABLE backup_sessions; ALTER TABLE customer_backup_jobs DROP COLUMN dismissed_at;";
    const UNDO_THIRD: &str =
        "ALTER TABLE customer_backups DROP INDEX backups_of_source, DROP COLUMN deleted_at;
        ALTER TABLE customer_backup_jobs DROP INDEX backup_jobs_counted;";
    const UNDO_FOURTH: &str =
        "ALTER TABLE customer_backup_jobs DROP COLUMN kept_snapshot, DROP COLUMN recovered;";
    const UNDO_FIFTH: &str =
        "ALTER TABLE customer_backups DROP COLUMN database_tables, DROP COLUMN proven_at;
        DROP TABLE backup_proofs;
        ALTER TABLE backup_repositories DROP COLUMN sampled_at, DROP COLUMN sample_errors;";
    const UNDO_SIXTH: &str = "DROP TABLE backup_audit;";
    const UNDO_SEVENTH: &str = "DROP TABLE backup_notifications, backup_notification_counts;";
    // The newest first.
    const UNDO: [&str; 6] = [
        UNDO_SEVENTH,
        UNDO_SIXTH,
        UNDO_FIFTH,
        UNDO_FOURTH,
        UNDO_THIRD,
        UNDO_SECOND,
    ];
    let mut shapes = BTreeSet::new();
    let migrations = [SECOND, THIRD, FOURTH, FIFTH, SIXTH, SEVENTH];
    for (version, migration) in (2..).zip(migrations) {
        let since = usize::try_from(NEWEST + 1 - version).unwrap();
        let undo = UNDO[..since].concat();
        let statements = statements(migration);
        assert!(!statements.is_empty());
        for done in 0..=statements.len() {
            let database = Database::empty(Kind::MariaDb);
            migrate(&database).await;
            // As the version before left it, and then as far as it came.
            MARIADB
                .sql(&format!(
                    "USE {}; {undo} DELETE FROM backup_migrations WHERE version > {version};
                     UPDATE backup_migrations SET success = FALSE WHERE version = {version}; {}",
                    database.schema(),
                    statements[..done].concat()
                ))
                .unwrap();
            let migrated = migrate(&database).await;
            let expected = (version - 1, NEWEST);
            assert_eq!((migrated.from, migrated.to), expected, "after {done}");
            shapes.insert(shape(&database).await);
            assert_works(&database).await;
        }
    }
    assert_eq!(shapes.len(), 1, "{shapes:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_of_a_sqlite_file_that_is_killed_is_made_up_for() {
    for _ in 0..5 {
        let database = Database::empty(Kind::Sqlite);
        let mut processes = Processes::spawn(2, "migrate::one_of_eight_that_migrate", &database);
        processes.open_gate();
        processes.kill();
        assert_eq!(migrate(&database).await.to, NEWEST);
        assert_works(&database).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_without_the_rights_is_told_which() {
    let database = Database::empty(Kind::MariaDb);
    let schema = database.schema();
    let account = format!("weak_{schema}");
    MARIADB
        .sql(&format!(
            "USE {schema}; {PLATFORM} CREATE USER {account}@localhost IDENTIFIED BY 's3cret'; GRANT SELECT, INSERT, UPDATE, DELETE ON {schema}.* TO {account}@localhost;"
        ))
        .unwrap();
    let url = database.url.replace("root@", &format!("{account}@"));
    let weak: Config = config(&url, "s3cret");
    let store = Store::connect(&weak).await.unwrap();
    for error in [
        store.migrate().await.unwrap_err(),
        store.require_migrated().await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Refused);
        let sentence = error.to_string();
        for word in ["CREATE", "ALTER", "migrate"] {
            assert!(sentence.contains(word), "{sentence}");
        }
        assert!(!error.chain().contains("s3cret"));
    }
    // Where there is a table made by hand, too; and its jobs stay as they are.
    let pending = "customer_backup_jobs WHERE status IN ('pending', 'running')";
    database.run(&[BY_HAND, ROWS].concat()).await;
    let error = store.migrate().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(error.to_string().contains("ALTER"), "{error}");
    assert_eq!(database.count(pending).await, 3);
    // With the tables there, such an account is all that is needed.
    migrate(&database).await;
    store.require_migrated().await.unwrap();
    create(&JobStore::new(&store, LONG), 9).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_are_made_unasked_only_where_there_are_none() {
    let database = Database::empty(Kind::MariaDb);
    database.run(&[PLATFORM, BY_HAND, ROWS].concat()).await;
    let before = shape(&database).await;
    let store = database.store().await;
    let error = store.require_migrated().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Configuration);
    assert!(
        error
            .to_string()
            .contains("run `shophosting-backup migrate`")
    );
    assert_eq!(shape(&database).await, before);
    let unread = JobStore::new(&store, LONG).get("1".parse().unwrap()).await;
    assert_eq!(unread.unwrap_err().kind(), ErrorKind::Configuration);
    store.migrate().await.unwrap();
    store.require_migrated().await.unwrap();

    let fresh = Database::empty(Kind::MariaDb);
    fresh.run(PLATFORM).await;
    fresh.store().await.require_migrated().await.unwrap();
    assert_works(&fresh).await;
}

async fn tables_of_a_newer_version_are_refused(database: &Database) {
    let store = database.store().await;
    store.require_migrated().await.unwrap();
    database
        .run("INSERT INTO backup_migrations (version, description, success, checksum, execution_time) VALUES (99, 'newer', TRUE, 'x', 1)")
        .await;
    let mut errors = vec![
        store.require_migrated().await.unwrap_err(),
        store.migrate().await.unwrap_err(),
    ];
    // A SQLite file is looked at when it is opened.
    errors.extend(
        Store::connect(&config(&database.url, &database.password))
            .await
            .err(),
    );
    assert_eq!(
        errors.len(),
        2 + usize::from(database.kind() == Kind::Sqlite)
    );
    for error in errors {
        assert_eq!(error.kind(), ErrorKind::Configuration);
        assert!(error.to_string().contains("version"), "{error}");
    }
}
