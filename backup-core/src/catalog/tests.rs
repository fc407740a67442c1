//! The rows, on both kinds of database.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use xtask::mariadb::MariaDb;
use xtask::restic::Restic;

use super::deletions::DELETIONS;
use super::figures::NEWEST;
use super::*;
use crate::config::{Config, Environment, Origin as ConfigOrigin};
use crate::repository::{Repository, SnapshotId};
use crate::storage::{self, Location, StorageOptions};

const REPOSITORY: &str = "1111111111111111111111111111111111111111111111111111111111111111";
const ELSEWHERE: &str = "2222222222222222222222222222222222222222222222222222222222222222";
const MONTH: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// The same test on SQLite and on MariaDB.
async fn on_both(test: impl AsyncFn(Store)) {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("backup.db");
    let store = connect(&format!("sqlite://{}", file.display())).await;
    println!("on SQLite");
    test(store.clone()).await;
    store.close().await;

    let server = MariaDb::start().unwrap();
    server
        .sql(
            "CREATE DATABASE platform; CREATE USER app@localhost IDENTIFIED BY 's3cret';
             GRANT ALL ON platform.* TO app@localhost",
        )
        .unwrap();
    let url = format!("mysql://app:s3cret@127.0.0.1:{}/platform", server.port());
    let store = connect(&url).await;
    println!("on MariaDB");
    test(store.clone()).await;
    store.close().await;
}

async fn connect(url: &str) -> Store {
    let text = format!(
        "[database]\nurl = '{url}'\n[repositories.manual]\nlocation = '/r'\npassword_file = '/p'\n"
    );
    let origin = ConfigOrigin::File("test".into());
    let config = Config::read(origin, &text, &Environment::default()).unwrap();
    let store = Store::connect(&config).await.unwrap();
    store.migrate().await.unwrap();
    store
}

/// A new repository, and the stock program that writes into it.
fn repository_at(path: &Path) -> (Arc<Repository>, Restic) {
    let location: Location = path.to_str().unwrap().parse().unwrap();
    let storage = storage::open(&location, &StorageOptions::default()).unwrap();
    let password = "a password".to_owned().into();
    let repository = Arc::new(Repository::init(storage, &password).unwrap());
    (repository, Restic::new(path, "a password").unwrap())
}

fn customer(number: u32) -> CustomerId {
    CustomerId::new(number).unwrap()
}

fn id(digits: &str) -> SnapshotId {
    format!("{digits:0<64}").parse().unwrap()
}

fn entry(digits: &str, seconds_ago: i64) -> BackupEntry {
    let now = Timestamp::now().as_second();
    BackupEntry {
        id: id(digits),
        time: Timestamp::from_second(now - seconds_ago).unwrap(),
        backup_type: BackupType::Both,
        note: Some("vor dem Verkauf 🎉".to_owned()),
        bytes: Some(4_000_000_000_000),
        bytes_added: Some(0),
        database_bytes: None,
        files: Some(7),
        proven_at: None,
    }
}

async fn record(
    store: &Store,
    repository_id: &str,
    whose: u32,
    source: Source,
    entry: &BackupEntry,
) {
    let mut tries = Tries::default();
    loop {
        let recorded = try_record(store, repository_id, whose, source, entry).await;
        if !tries.is_to_repeat(&recorded).await {
            return recorded.unwrap();
        }
    }
}

async fn try_record(
    store: &Store,
    repository_id: &str,
    whose: u32,
    source: Source,
    entry: &BackupEntry,
) -> Result<()> {
    let mut transaction = store.begin().await?;
    Catalog::new(store)
        .record(
            &mut transaction,
            repository_id,
            customer(whose),
            source,
            entry,
        )
        .await?;
    transaction.commit().await
}

#[test]
fn a_source_has_one_spelling() {
    for source in [Source::Manual, Source::Daily, Source::PreRestore] {
        let text = source.to_string();
        assert_eq!(text.parse::<Source>().unwrap(), source);
        let json = format!("\"{text}\"");
        assert_eq!(serde_json::to_string(&source).unwrap(), json);
        assert_eq!(serde_json::from_str::<Source>(&json).unwrap(), source);
    }
    let error = "Daily".parse::<Source>().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_is_listed_as_its_job_wrote_it_down() {
    on_both(async |store| {
        let catalog = Catalog::new(&store);
        let (old, new) = (entry("aa", 60), entry("bb", 1));
        let (daily, replaced) = (entry("cc", 5), entry("dd", 6));
        record(&store, REPOSITORY, 1, Source::Manual, &old).await;
        record(&store, REPOSITORY, 1, Source::Manual, &new).await;
        record(&store, REPOSITORY, 1, Source::Daily, &daily).await;
        record(&store, REPOSITORY, 1, Source::PreRestore, &replaced).await;
        record(&store, REPOSITORY, 12, Source::Manual, &entry("ee", 1)).await;
        let expected = BackupList {
            manual: vec![new.clone(), old],
            daily: vec![daily],
            pre_restore: vec![replaced],
        };
        assert_eq!(catalog.list(customer(1), MONTH).await.unwrap(), expected);
        let found = catalog.find(customer(1), Source::Manual, &new.id).await;
        assert_eq!(found.unwrap(), Some(new));
        assert_eq!(
            catalog.list(customer(2), MONTH).await.unwrap(),
            BackupList::default()
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn daily_backups_are_shown_for_their_time_and_kept_longer() {
    on_both(async |store| {
        let catalog = Catalog::new(&store);
        let old = entry("aa", 2 * 60 * 60);
        record(&store, REPOSITORY, 1, Source::Daily, &old).await;
        let newer = entry("cc", 60);
        record(&store, REPOSITORY, 1, Source::Daily, &newer).await;
        record(
            &store,
            REPOSITORY,
            1,
            Source::Manual,
            &entry("bb", 2 * 60 * 60),
        )
        .await;
        let hour = Duration::from_secs(60 * 60);
        let list = catalog.list(customer(1), hour).await.unwrap();
        assert_eq!(list.daily, std::slice::from_ref(&newer));
        assert_eq!(list.manual.len(), 1);
        for longer in [3 * hour, Duration::MAX] {
            let list = catalog.list(customer(1), longer).await.unwrap();
            assert_eq!(list.daily, [newer.clone(), old.clone()]);
        }
        let found = catalog.find(customer(1), Source::Daily, &old.id).await;
        assert_eq!(found.unwrap(), Some(old));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_daily_backup_of_files_and_of_a_database_is_shown_and_kept_however_old_it_is() {
    on_both(async |store| {
        let catalog = Catalog::new(&store);
        let of = |digits: &str, days: i64, backup_type| BackupEntry {
            backup_type,
            ..entry(digits, days * 24 * 60 * 60)
        };
        let (both, files, db) = (BackupType::Both, BackupType::Files, BackupType::Db);
        for (whose, backup) in [
            (1, of("a60", 60, both)),
            (1, of("a50", 50, files)),
            (1, of("a01", 1, files)),
            (2, of("a60", 60, db)),
            (2, of("a50", 50, both)),
            (2, of("a40", 40, db)),
            (3, of("a60", 60, both)),
            (3, of("a01", 1, both)),
            // Whom the table does not have any more, or not here.
            (4, of("a70", 70, both)),
        ] {
            record(&store, REPOSITORY, whose, Source::Daily, &backup).await;
        }
        let ids = |digits: &[&str]| digits.iter().map(|digits| id(digits)).collect::<Vec<_>>();
        for (whose, shown) in [
            (1, &["a01", "a60"][..]),
            (2, &["a40", "a50"]),
            (3, &["a01"]),
            (4, &["a70"]),
        ] {
            let list = catalog.list(customer(whose), MONTH).await.unwrap();
            let listed: Vec<_> = list.daily.iter().map(|entry| entry.id).collect();
            assert_eq!(listed, ids(shown), "customer {whose}");
        }
        let newest_first = ids(&["a01", "a40", "a50", "a60", "a70"]);
        let last_of = async |customers: &[u32]| {
            let customers = customers.iter().copied().map(customer).collect();
            let last = catalog.last_of_each_part(&newest_first, &customers).await;
            last.unwrap()
        };
        for (customers, kept) in [
            (&[1, 2, 3][..], &["a01", "a40", "a50", "a60"][..]),
            (&[1], &["a01", "a60"]),
            (&[2], &["a40", "a50"]),
            (&[3], &["a01"]),
            (&[], &[]),
        ] {
            let kept: BTreeSet<_> = ids(kept).into_iter().collect();
            assert_eq!(last_of(customers).await, kept, "{customers:?}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_beginning_of_an_id_leads_to_anothers_backup() {
    on_both(async |store| {
        let catalog = Catalog::new(&store);
        record(
            &store,
            REPOSITORY,
            1,
            Source::Manual,
            &entry("aaaaaaaa1", 1),
        )
        .await;
        record(
            &store,
            REPOSITORY,
            12,
            Source::Manual,
            &entry("aaaaaaaa2", 1),
        )
        .await;
        record(
            &store,
            REPOSITORY,
            12,
            Source::Manual,
            &entry("aaaaaaaa3", 1),
        )
        .await;
        record(&store, REPOSITORY, 1, Source::Daily, &entry("bbbbbbbb", 1)).await;
        let resolve = async |whose, source, text: &str| {
            let resolved = catalog.resolve(customer(whose), source, text).await;
            resolved.map_err(|e| e.kind())
        };
        let (manual, daily) = (Source::Manual, Source::Daily);
        let own = id("aaaaaaaa1");
        assert_eq!(resolve(1, manual, "aaaaaaaa").await, Ok(own));
        assert_eq!(resolve(1, manual, &own.to_string()).await, Ok(own));
        assert_eq!(resolve(12, manual, "aaaaaaaa2").await, Ok(id("aaaaaaaa2")));
        let several = resolve(12, manual, "aaaaaaaa").await;
        assert_eq!(several, Err(ErrorKind::InvalidInput));
        for (whose, source, text) in [
            (12, manual, own.to_string()),
            (12, manual, "aaaaaaaa1".to_owned()),
            (2, manual, "aaaaaaaa".to_owned()),
            (1, daily, own.to_string()),
            (1, manual, "bbbbbbbb".to_owned()),
            (12, daily, "bbbbbbbb".to_owned()),
        ] {
            let resolved = resolve(whose, source, &text).await;
            assert_eq!(resolved, Err(ErrorKind::NotFound), "{whose} {text}");
        }
        for text in [
            "", "aaaaaaa", "AAAAAAAA", "aaaaaaa%", "aaaaaaag", "--------",
        ] {
            let resolved = resolve(1, manual, text).await;
            assert_eq!(resolved, Err(ErrorKind::InvalidInput), "{text}");
        }
        let found = catalog.find(customer(12), manual, &own).await.unwrap();
        assert_eq!(found, None);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_is_rolled_back_leaves_no_backup() {
    on_both(async |store| {
        let catalog = Catalog::new(&store);
        let mut transaction = store.begin().await.unwrap();
        let entry = entry("aa", 1);
        catalog
            .record(
                &mut transaction,
                REPOSITORY,
                customer(1),
                Source::Manual,
                &entry,
            )
            .await
            .unwrap();
        drop(transaction);
        let list = catalog.list(customer(1), MONTH).await.unwrap();
        assert_eq!(list, BackupList::default());
        assert!(catalog.known(REPOSITORY).await.unwrap().is_empty());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_retention_forgot_is_gone_and_missed_by_nobody() {
    on_both(async |store| {
        let catalog = Catalog::new(&store);
        let many: Vec<SnapshotId> = (0..250).map(|n| id(&format!("a{n:03}"))).collect();
        for id in &many {
            let backup = BackupEntry {
                id: *id,
                ..entry("aa", 1)
            };
            record(&store, REPOSITORY, 1, Source::Manual, &backup).await;
        }
        record(&store, REPOSITORY, 1, Source::Manual, &entry("bb", 1)).await;
        catalog.remove(ELSEWHERE, &[]).await.unwrap();
        // One that is gone already is fine.
        for _ in 0..2 {
            catalog.remove(REPOSITORY, &many).await.unwrap();
        }
        let list = catalog.list(customer(1), MONTH).await.unwrap();
        assert_eq!(list.manual.len(), 1);
        let known = catalog.known(REPOSITORY).await.unwrap();
        assert_eq!(known, BTreeSet::from([id("bb")]));
        assert!(catalog.known(ELSEWHERE).await.unwrap().is_empty());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_note_that_another_program_wrote_may_be_too_long() {
    on_both(async |store| {
        let backup = BackupEntry {
            note: Some("ü".repeat(2_000)),
            ..entry("aa", 1)
        };
        record(&store, REPOSITORY, 1, Source::Manual, &backup).await;
        let list = Catalog::new(&store).list(customer(1), MONTH).await.unwrap();
        assert_eq!(list.manual[0].note, Some("ü".repeat(500)));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_question_looks_at_all_of_350_000_rows() {
    // 10,000 customers with 5 manual and 30 daily backups each. No function that only one of the databases has.
    const FILL: &str = "INSERT INTO customer_backups (customer_id, source, snapshot_id, time, backup_type, bytes)
        WITH d(i) AS (SELECT 0 UNION ALL SELECT 1 UNION ALL SELECT 2 UNION ALL SELECT 3 UNION ALL SELECT 4
                UNION ALL SELECT 5 UNION ALL SELECT 6 UNION ALL SELECT 7 UNION ALL SELECT 8 UNION ALL SELECT 9)
        SELECT 1 + a.i + 10 * b.i + 100 * c.i + 1000 * e.i,
            CASE WHEN f.i = 3 THEN 'manual' ELSE 'daily' END,
            SUBSTR(CONCAT('0000000000000000000000000000000000000000000000000000000000000000',
                CASE WHEN f.i = 3 THEN a.i + 10 * b.i + 100 * c.i + 1000 * e.i ELSE 0 END, f.i, g.i), -64),
            {now} - 1000 * (f.i * 10 + g.i), 'both', 1
        FROM d AS a, d AS b, d AS c, d AS e, d AS f, d AS g WHERE f.i < 3 OR (f.i = 3 AND g.i < 5)";
    on_both(async |store| {
        let filled = store.execute(FILL, &[]).await.unwrap();
        assert_eq!(filled, 350_000);
        let list = Catalog::new(&store)
            .list(customer(4_711), MONTH)
            .await
            .unwrap();
        assert_eq!((list.manual.len(), list.daily.len()), (5, 30));

        let (zeros, zs) = ("0".repeat(8), "z".to_owned());
        for (query, values) in [
            (
                LIST,
                values![4_711_u32, 1_000_000_000_u32, 4_711_u32, 4_711_u32].as_slice(),
            ),
            (FIND, values![4_711_u32, "daily", id("00").to_string()]),
            (
                BEGINNING,
                values![4_711_u32, "daily", zeros.clone(), zs.clone()],
            ),
        ] {
            if store.is_platforms() {
                #[derive(Debug, sqlx::FromRow)]
                struct Plan {
                    key: Option<String>,
                }
                let plan: Vec<Plan> = store
                    .rows(&format!("EXPLAIN {query}"), values)
                    .await
                    .unwrap();
                assert_eq!(plan[0].key.as_deref(), Some("PRIMARY"), "{query}: {plan:?}");
            } else {
                let plan: Vec<(i64, i64, i64, String)> = store
                    .rows(&format!("EXPLAIN QUERY PLAN {query}"), values)
                    .await
                    .unwrap();
                let step = &plan[0].3;
                assert!(
                    step.starts_with("SEARCH customer_backups USING PRIMARY KEY (customer_id=?"),
                    "{query}: {plan:?}"
                );
            }
        }

        // What is asked of all customers together does not look at all rows.
        const SNAPSHOTS: &str = "INSERT INTO backup_snapshots (repository_id, snapshot_id)
            SELECT DISTINCT ?, snapshot_id FROM customer_backups";
        let known = store.execute(SNAPSHOTS, values![REPOSITORY]).await.unwrap();
        assert_eq!(known, 50_030);
        let mut transaction = store.begin().await.unwrap();
        let marked = Catalog::mark_deleted(
            &mut transaction,
            customer(4_711),
            Origin::Manual,
            &list.manual[0].id,
        );
        assert!(marked.await.unwrap());
        transaction.commit().await.unwrap();
        for (query, values) in [
            (NEWEST, values!["daily"].as_slice()),
            (DELETIONS, values![REPOSITORY]),
        ] {
            if store.is_platforms() {
                let before = rows_read(&store).await;
                let explained: Vec<(i64,)> = store
                    .rows(
                        &format!("SELECT COUNT(*) FROM ({query}) AS all_of_it"),
                        values,
                    )
                    .await
                    .unwrap();
                assert_eq!(explained.len(), 1);
                let read = rows_read(&store).await - before;
                assert!(read < 100, "{query}: {read} rows");
            } else {
                let plan: Vec<(i64, i64, i64, String)> = store
                    .rows(&format!("EXPLAIN QUERY PLAN {query}"), values)
                    .await
                    .unwrap();
                let uses = |step: &(i64, i64, i64, String)| {
                    step.3
                        .contains("INDEX backups_of_source (source=? AND deleted_at")
                };
                assert!(plan.iter().any(uses), "{query}: {plan:?}");
            }
        }
    })
    .await;
}

/// Rows that the server has read so far, for whoever asks.
async fn rows_read(store: &Store) -> i64 {
    const QUERY: &str = "SELECT CAST(SUM(variable_value) AS SIGNED) FROM information_schema.global_status
        WHERE variable_name IN ('HANDLER_READ_NEXT', 'HANDLER_READ_PREV', 'HANDLER_READ_RND_NEXT', 'HANDLER_READ_KEY')";
    let read: Option<(i64,)> = store.row(QUERY, &[]).await.unwrap();
    read.unwrap().0
}

#[tokio::test(flavor = "multi_thread")]
async fn what_its_job_knows_of_a_backup_stays_beside_any_sync() {
    on_both(async |store| {
        let scratch = tempfile::tempdir().unwrap();
        let (repository, restic) = repository_at(&scratch.path().join("repository"));
        std::fs::write(scratch.path().join("x"), "something").unwrap();
        let catalog = Catalog::new(&store);
        for beside in [
            "sync first",
            "record first",
            "at once",
            "at once",
            "at once",
        ] {
            let tags = ["customer-1", "manual", "both"];
            let made = restic.backup([scratch.path().join("x")], &tags);
            let backup = BackupEntry {
                id: made.unwrap().parse().unwrap(),
                database_bytes: Some(42),
                ..entry("", 1)
            };
            let sync = async || {
                let synced = catalog.sync_manual(&repository, Missing::Remember);
                let report = synced.await.unwrap();
                assert_eq!((report.removed, report.missing), (0, 0), "{beside}");
            };
            let record =
                async || record(&store, &repository.id(), 1, Source::Manual, &backup).await;
            match beside {
                "sync first" => {
                    sync().await;
                    record().await;
                }
                "record first" => {
                    record().await;
                    sync().await;
                }
                _ => {
                    tokio::join!(sync(), record());
                }
            }
            let found = catalog.find(customer(1), Source::Manual, &backup.id).await;
            assert_eq!(found.unwrap(), Some(backup), "{beside}");
        }
        let list = catalog.list(customer(1), MONTH).await.unwrap();
        assert_eq!(list.manual.len(), 5);
        assert_eq!(catalog.known(&repository.id()).await.unwrap().len(), 5);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn backups_in_a_repository_that_nobody_has_any_more_are_shown_no_longer() {
    on_both(async |store| {
        let catalog = Catalog::new(&store);
        let (old, new) = ("1".repeat(64), "2".repeat(64));
        let backup = entry("ab", 1);
        let shown = async || {
            let list = catalog.list(customer(1), MONTH).await.unwrap();
            list.manual.len()
        };
        for server in ["north", "south"] {
            let noted = catalog.note_use(server, RepositoryName::Manual, &old).await;
            noted.unwrap();
        }
        record(&store, &old, 1, Source::Manual, &backup).await;
        for (server, left) in [("north", 1), ("south", 0)] {
            for _ in 0..2 {
                let noted = catalog.note_use(server, RepositoryName::Manual, &new).await;
                noted.unwrap();
                assert_eq!(shown().await, left, "{server}");
            }
        }
        assert_eq!(catalog.known(&old).await.unwrap().len(), 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_deleted_stays_so_while_its_repository_is_away() {
    on_both(async |store| {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("repository");
        let (repository, restic) = repository_at(&path);
        let made = restic.backup([&path.join("config")], &["customer-1", "manual", "files"]);
        let deletion = Deletion {
            origin: Origin::Manual,
            customer: customer(1),
            snapshot: made.unwrap().parse().unwrap(),
        };
        let catalog = Catalog::new(&store);
        let id = repository.id();
        let (manual, remember) = (RepositoryName::Manual, Missing::Remember);
        catalog.note_use("north", manual, &id).await.unwrap();
        let synced = catalog.sync_manual(&repository, remember).await.unwrap();
        assert_eq!(synced.added, 1);
        let mut transaction = store.begin().await.unwrap();
        let marked = Catalog::mark_deleted(
            &mut transaction,
            customer(1),
            Origin::Manual,
            &deletion.snapshot,
        );
        assert!(marked.await.unwrap());
        transaction.commit().await.unwrap();
        let left = async || catalog.deletions(&id, None).await.unwrap();
        assert_eq!(left().await, [deletion]);

        catalog.note_use("north", manual, ELSEWHERE).await.unwrap();
        assert_eq!(left().await, []);
        catalog.note_use("north", manual, &id).await.unwrap();
        let synced = catalog.sync_manual(&repository, remember).await.unwrap();
        assert_eq!(synced.added, 1);
        let list = catalog.list(customer(1), MONTH).await.unwrap();
        assert_eq!(list, BackupList::default());
        assert_eq!(left().await, [deletion]);
        let of_another = catalog.deletions(&id, Some(customer(2))).await;
        assert_eq!(of_another.unwrap(), []);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_for_each_customer_is_known_by_him() {
    on_both(async |store| {
        let catalog = Catalog::new(&store);
        let of = |id| RepositoryName::ManualOf(customer(id));
        let id = |digit: &str| digit.repeat(64);
        let shown = async |id| {
            let list = catalog.list(customer(id), MONTH).await.unwrap();
            list.manual.len()
        };
        let largest = u32::try_from(i32::MAX).unwrap();
        let names = [of(1), of(2), of(largest)];
        for (name, digit) in names.into_iter().zip(["1", "2", "3"]) {
            assert!(!catalog.has_used("north", name).await.unwrap());
            let noted = catalog.note_use("north", name, &id(digit)).await;
            noted.unwrap();
            assert!(catalog.has_used("north", name).await.unwrap());
            assert!(!catalog.has_used("south", name).await.unwrap());
            catalog.note_pruned(&id(digit)).await.unwrap();
            const SYNCED: &str =
                "UPDATE backup_repositories SET synced_at = {now} WHERE repository_id = ?";
            let synced = store.execute(SYNCED, values![id(digit)]).await;
            synced.unwrap();
        }
        let daily = RepositoryName::Daily;
        catalog.note_use("north", daily, &id("d")).await.unwrap();
        let in_use = catalog.in_use("north").await.unwrap();
        let mut found: Vec<RepositoryName> = in_use.iter().map(|one| one.name).collect();
        found.sort_unstable();
        let expected = [of(1), of(2), of(largest), RepositoryName::Daily];
        assert_eq!(found, expected);
        let is_pruned = |one: &&InUse| one.pruned_at.is_some() && one.sampled_at.is_none();
        assert_eq!(in_use.iter().filter(is_pruned).count(), 3);
        // However many there are, monitorings see one of each kind.
        let synced = catalog.syncs().await.unwrap();
        assert_eq!((synced.len(), synced[0].source.as_str()), (1, "manual"));
        for (digit, errors) in [("1", 2), ("2", 3)] {
            let noted = catalog.note_sample(&id(digit), Some(errors)).await;
            noted.unwrap();
        }
        let samples = catalog.samples().await.unwrap();
        assert_eq!((samples.len(), samples[0].errors), (1, 5));
        // One that is begun and not read to its end takes nothing of that back.
        let since = Timestamp::MAX;
        assert!(catalog.claim_sample(&id("1"), since).await.unwrap());
        catalog.note_sample(&id("1"), None).await.unwrap();
        assert_eq!(catalog.samples().await.unwrap()[0].errors, 5);

        let backup = entry("ab", 1);
        record(&store, &id("1"), 1, Source::Manual, &backup).await;
        record(&store, &id("2"), 2, Source::Manual, &entry("cd", 2)).await;
        let mut transaction = store.begin().await.unwrap();
        let (one, manual) = (customer(1), Origin::Manual);
        let marked = Catalog::mark_deleted(&mut transaction, one, manual, &backup.id);
        assert!(marked.await.unwrap());
        transaction.commit().await.unwrap();
        assert_eq!(catalog.with_deletions("north").await.unwrap(), [one]);
        assert_eq!(catalog.with_deletions("south").await.unwrap(), []);

        // Of whom has moved the backups are shown until he has another repository there; of whom is nowhere they go.
        let leaves = async |server, now_on| {
            let noted = catalog.note_left(server, customer(2), now_on).await;
            noted.unwrap();
            (
                catalog.has_used(server, of(2)).await.unwrap(),
                shown(2).await,
            )
        };
        assert_eq!(leaves("north", Some("south")).await, (true, 1));
        catalog.note_use("south", of(2), &id("2")).await.unwrap();
        assert_eq!(leaves("north", Some("south")).await, (false, 1));
        catalog.note_use("west", of(2), &id("4")).await.unwrap();
        assert_eq!(leaves("south", Some("west")).await, (false, 0));
        let other = catalog.other_user("north", of(2)).await.unwrap();
        assert_eq!(other.as_deref(), Some("west"));
        assert_eq!(catalog.other_user("west", of(2)).await.unwrap(), None);
        record(&store, &id("4"), 2, Source::Manual, &entry("ef", 2)).await;
        assert_eq!(shown(2).await, 1);
        assert_eq!(leaves("west", None).await, (false, 0));

        // One for all takes the place of those for each.
        let all = RepositoryName::Manual;
        catalog.note_use("north", all, &id("a")).await.unwrap();
        let in_use = catalog.in_use("north").await.unwrap();
        let mut found: Vec<RepositoryName> = in_use.iter().map(|one| one.name).collect();
        found.sort_unstable();
        assert_eq!(found, [RepositoryName::Manual, RepositoryName::Daily]);
        catalog.note_use("north", of(1), &id("1")).await.unwrap();
        assert!(!catalog.has_used("north", all).await.unwrap());
    })
    .await;
}
