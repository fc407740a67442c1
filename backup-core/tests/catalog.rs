//! What the catalogue promises beside real repositories, on MariaDB and on SQLite.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use backup_core::catalog::{BackupEntry, BackupList, Catalog, Missing, Source, SyncReport};
use backup_core::config::{Config, Environment, Origin};
use backup_core::customer::{CustomerId, CustomerStore, NewCustomer};
use backup_core::error::{ErrorKind, Result};
use backup_core::operations::{BackupRequest, Engine, init_repository};
use backup_core::progress::{Cancel, Control};
use backup_core::repository::{BackupType, Repository, SnapshotId};
use backup_core::storage::{self, FileId, FileKind, Location, Storage, StorageOptions};
use backup_core::store::Store;
use bytes::Bytes;
use tokio::runtime::Handle;
use xtask::mariadb::MariaDb;
use xtask::restic::Restic;
use xtask::testbed::TestBed;

const PASSWORD: &str = "correct horse";
const MONTH: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// A hosting server's directories, two repositories on a local disk, and a database.
struct World {
    scratch: tempfile::TempDir,
    server: Option<MariaDb>,
    config: Config,
    store: Store,
    catalog: Catalog,
    manual: Shelf,
    daily: Shelf,
}

/// A repository that is seen by us, through a storage that counts, and by restic.
struct Shelf {
    path: PathBuf,
    repository: Arc<Repository>,
    reads: Arc<Reads>,
    restic: Restic,
}

impl World {
    async fn new(scratch: tempfile::TempDir, server: Option<MariaDb>) -> Self {
        for directory in ["customers", "dumps"] {
            fs::create_dir(scratch.path().join(directory)).unwrap();
        }
        let url = match &server {
            Some(server) => {
                server
                    .sql(
                        "CREATE DATABASE platform;
                         CREATE TABLE platform.customers (id INT PRIMARY KEY, status VARCHAR(20), db_name VARCHAR(64), server_id INT);
                         CREATE USER app@localhost IDENTIFIED BY 's3cret';
                         GRANT ALL ON platform.* TO app@localhost",
                    )
                    .unwrap();
                format!("mysql://app:s3cret@127.0.0.1:{}/platform", server.port())
            }
            None => format!("sqlite://{}", scratch.path().join("backup.db").display()),
        };
        let config = config(scratch.path(), &url);
        let store = Store::connect(&config).await.unwrap();
        store.migrate().await.unwrap();
        Self {
            manual: Shelf::new(scratch.path().join("manual")),
            daily: Shelf::new(scratch.path().join("daily")),
            catalog: Catalog::new(&store),
            scratch,
            server,
            config,
            store,
        }
    }

    async fn add_customer(&self, id: u32, db_name: Option<&str>) {
        match &self.server {
            Some(server) => {
                let name = db_name.map_or("NULL".to_owned(), |name| format!("'{name}'"));
                let insert =
                    format!("INSERT INTO platform.customers VALUES ({id}, 'active', {name}, 1)");
                server.sql(&insert).unwrap();
            }
            None => {
                let new = NewCustomer {
                    id: Some(customer(id)),
                    db_name: db_name.map(|name| name.parse().unwrap()),
                    ..NewCustomer::default()
                };
                let customers = CustomerStore::new(&self.store, &self.config);
                customers.add(&new).await.unwrap();
            }
        }
    }

    fn site(&self, id: u32) -> PathBuf {
        let directory = self.scratch.path().join(format!("customers/customer-{id}"));
        fs::create_dir_all(&directory).unwrap();
        directory
    }

    fn add_files(&self, id: u32) {
        fs::create_dir(self.site(id).join("wordpress")).unwrap();
        fs::write(self.site(id).join("wordpress/index.php"), "<?php").unwrap();
    }

    fn add_dump(&self, database: &str, content: &str) {
        let dump = self.scratch.path().join(format!("dumps/{database}.sql"));
        fs::write(dump, content).unwrap();
    }

    /// As the platform's script does it.
    fn back_up_daily(&self) -> SnapshotId {
        let paths = ["dumps", "customers"].map(|name| self.scratch.path().join(name));
        let made = self.daily.restic.backup(paths, &["daily", "2026-01-31"]);
        made.unwrap().parse().unwrap()
    }

    /// Something in the manual repository.
    fn back_up(&self, tags: &[&str]) -> SnapshotId {
        let something = self.scratch.path().join("something");
        fs::write(&something, "something").unwrap();
        let made = self.manual.restic.backup([something], tags);
        made.unwrap().parse().unwrap()
    }

    async fn sync_manual(&self, missing: Missing) -> SyncReport {
        let synced = self.catalog.sync_manual(&self.manual.repository, missing);
        synced.await.unwrap()
    }

    async fn try_sync_daily(&self, missing: Missing) -> Result<SyncReport> {
        let repository = &self.daily.repository;
        let synced = self.catalog.sync_daily(repository, &self.config, missing);
        synced.await
    }

    async fn sync_daily(&self, missing: Missing) -> SyncReport {
        self.try_sync_daily(missing).await.unwrap()
    }

    async fn list(&self, id: u32) -> BackupList {
        self.catalog.list(customer(id), MONTH).await.unwrap()
    }

    async fn known(&self, shelf: &Shelf) -> BTreeSet<SnapshotId> {
        self.catalog.known(&shelf.repository.id()).await.unwrap()
    }

    /// Pretend that what is missing has been so for longer.
    async fn age_missing(&self, by: Duration) {
        let update = format!(
            "UPDATE backup_snapshots SET missing_since = missing_since - {}",
            by.as_millis()
        );
        match &self.server {
            Some(server) => {
                server.sql(&format!("USE platform; {update}")).unwrap();
            }
            None => {
                let file = self.scratch.path().join("backup.db");
                let pool = sqlx::SqlitePool::connect(&format!("sqlite://{}", file.display()))
                    .await
                    .unwrap();
                sqlx::query(sqlx::AssertSqlSafe(update))
                    .execute(&pool)
                    .await
                    .unwrap();
                pool.close().await;
            }
        }
    }
}

impl Shelf {
    fn new(path: PathBuf) -> Self {
        let restic = Restic::new(&path, PASSWORD).unwrap();
        restic.init().unwrap();
        let (repository, reads) = open(&path);
        Self {
            path,
            repository,
            reads,
            restic,
        }
    }

    /// As another process, which has nothing in memory.
    fn open_again(&mut self) {
        (self.repository, self.reads) = open(&self.path);
        self.reads.take();
    }

    fn snapshot_file(&self, id: &SnapshotId) -> PathBuf {
        self.path.join("snapshots").join(id.to_string())
    }

    fn take_away(&self, id: &SnapshotId) {
        fs::rename(self.snapshot_file(id), self.path.join(id.to_string())).unwrap();
    }

    fn bring_back(&self, id: &SnapshotId) {
        fs::rename(self.path.join(id.to_string()), self.snapshot_file(id)).unwrap();
    }
}

fn open(path: &Path) -> (Arc<Repository>, Arc<Reads>) {
    let location: Location = path.to_str().unwrap().parse().unwrap();
    let reads = Arc::new(Reads::default());
    let storage = Counted {
        inner: storage::open(&location, &StorageOptions::default()).unwrap(),
        reads: Arc::clone(&reads),
    };
    let repository = Repository::open(Arc::new(storage), &PASSWORD.to_owned().into());
    (Arc::new(repository.unwrap()), reads)
}

/// What a storage was asked for, and what is to happen meanwhile.
#[derive(Default)]
struct Reads {
    snapshots: AtomicUsize,
    others: AtomicUsize,
    after_listing: Meanwhile,
    after_reading: Meanwhile,
}

/// What somebody else does, once, right after the snapshots were listed or one was read.
type Meanwhile = Mutex<Option<Box<dyn FnOnce() + Send>>>;

impl std::fmt::Debug for Reads {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Reads")
    }
}

fn happen(meanwhile: &Meanwhile) {
    let what = meanwhile.lock().unwrap().take();
    if let Some(what) = what {
        what();
    }
}

impl Reads {
    /// Since the last time: snapshot files, other files.
    fn take(&self) -> (usize, usize) {
        let take = |count: &AtomicUsize| count.swap(0, Ordering::SeqCst);
        (take(&self.snapshots), take(&self.others))
    }
}

#[derive(Debug)]
struct Counted {
    inner: Arc<dyn Storage>,
    reads: Arc<Reads>,
}

impl Counted {
    fn count(&self, kind: FileKind) {
        let count = match kind {
            FileKind::Snapshot => &self.reads.snapshots,
            _ => &self.reads.others,
        };
        count.fetch_add(1, Ordering::SeqCst);
    }
}

impl Storage for Counted {
    fn location(&self) -> &str {
        self.inner.location()
    }
    fn create(&self) -> Result<()> {
        self.inner.create()
    }
    fn list(&self, kind: FileKind) -> Result<Vec<(FileId, u64)>> {
        let listed = self.inner.list(kind);
        if kind == FileKind::Snapshot {
            happen(&self.reads.after_listing);
        }
        listed
    }
    fn read(&self, kind: FileKind, id: &FileId) -> Result<Bytes> {
        self.count(kind);
        let read = self.inner.read(kind, id);
        if kind == FileKind::Snapshot {
            happen(&self.reads.after_reading);
        }
        read
    }
    fn read_range(&self, kind: FileKind, id: &FileId, offset: u64, length: u64) -> Result<Bytes> {
        self.count(kind);
        self.inner.read_range(kind, id, offset, length)
    }
    fn write(&self, kind: FileKind, id: &FileId, content: &[Bytes]) -> Result<()> {
        self.inner.write(kind, id, content)
    }
    fn remove(&self, kind: FileKind, id: &FileId) -> Result<()> {
        self.inner.remove(kind, id)
    }
    fn with_stop(&self, stop: &Cancel) -> Arc<dyn Storage> {
        self.inner.with_stop(stop)
    }
}

fn config(scratch: &Path, url: &str) -> Config {
    let scratch = scratch.display();
    let text = format!(
        "[database]\nurl = '{url}'\n\
         [repositories.manual]\nlocation = '{scratch}/manual'\npassword_file = '/p'\n\
         [customers]\nroot = '{scratch}/customers'\n\
         [customer_database]\ndaily_dump_path = '{scratch}/dumps/{{database}}.sql'\n"
    );
    Config::read(Origin::File("test".into()), &text, &Environment::default()).unwrap()
}

fn customer(id: u32) -> CustomerId {
    CustomerId::new(id).unwrap()
}

fn ids(entries: &[BackupEntry]) -> Vec<SnapshotId> {
    entries.iter().map(|entry| entry.id).collect()
}

/// The same test on SQLite and on MariaDB.
async fn on_both(test: impl AsyncFn(World)) {
    println!("on SQLite");
    test(World::new(tempfile::tempdir().unwrap(), None).await).await;
    println!("on MariaDB");
    let server = MariaDb::start().unwrap();
    test(World::new(tempfile::tempdir().unwrap(), Some(server)).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daily_snapshot_is_everybodys_of_whom_it_holds_something() {
    on_both(async |world| {
        for id in [1, 2, 3, 4, 12, 123] {
            world.add_customer(id, None).await;
        }
        world.add_customer(5, Some("shop")).await;
        world.add_customer(6, Some("shop_6")).await;
        // Both.
        world.add_files(1);
        world.add_dump("customer_1", "CREATE TABLE a (b INT);");
        // Neither: an empty dump is a dump that failed.
        world.site(2);
        world.add_dump("customer_2", "");
        // Neither: a link is no directory, a directory is no dump.
        symlink("../customer-1/wordpress", world.site(3).join("wordpress")).unwrap();
        fs::create_dir_all(world.scratch.path().join("dumps/customer_3.sql/x")).unwrap();
        // Nothing at all of customer 4. Only a database.
        world.add_dump("customer_12", "-- 12");
        // Only files.
        fs::create_dir_all(world.site(123).join("volumes/files")).unwrap();
        // A database of another name, which is his beside his directory alone: it may have been somebody else's before.
        world.add_dump("shop", "-- shop");
        world.add_dump("shop_6", "-- shop 6");
        world.site(6);
        // Somebody whom the table does not have.
        world.add_files(1_234);
        world.add_dump("customer_1234", "-- 1234");
        let daily = world.back_up_daily();
        // The same, but not the platform's daily backup.
        let paths = ["dumps", "customers"].map(|name| world.scratch.path().join(name));
        let other = world.daily.restic.backup(paths, &["weekly"]).unwrap();

        let report = world.sync_daily(Missing::Remember).await;
        assert_eq!((report.added, report.removed, report.missing), (2, 0, 0));
        assert!(report.warnings.is_empty(), "{report:?}");
        let both = BTreeSet::from([daily, other.parse().unwrap()]);
        assert_eq!(world.known(&world.daily).await, both);
        for (id, expected) in [
            (1, Some((BackupType::Both, Some(23)))),
            (2, None),
            (3, None),
            (4, None),
            (5, None),
            (6, Some((BackupType::Db, Some(9)))),
            (12, Some((BackupType::Db, Some(5)))),
            (123, Some((BackupType::Files, None))),
            (1_234, None),
        ] {
            let list = world.list(id).await;
            assert!(list.manual.is_empty() && list.pre_restore.is_empty());
            let held = list.daily.first();
            let held = held.map(|entry| (entry.backup_type, entry.database_bytes));
            assert_eq!(held, expected, "customer {id}");
            assert!(list.daily.len() <= 1);
            let named = daily.to_string();
            let resolved = world.catalog.resolve(customer(id), Source::Daily, &named);
            assert_eq!(resolved.await.is_ok(), expected.is_some());
        }
        assert_eq!(world.list(1).await.daily[0].id, daily);
        world.store.close().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dump_is_his_alone_on_whose_hosting_server_it_was_made() {
    on_both(async |world| {
        // Customers of two hosting servers whose databases have the same names.
        for (id, database) in [
            (1, Some("shop")),
            (2, Some("shop")),
            (3, None),
            (4, Some("customer_3")),
        ] {
            world.add_customer(id, database).await;
        }
        for id in [1, 4] {
            world.add_files(id);
        }
        world.add_dump("shop", "-- 1");
        world.add_dump("customer_3", "-- 4");
        let of_one_server = world.back_up_daily();
        for id in [1, 4] {
            fs::remove_dir_all(world.site(id)).unwrap();
        }
        world.add_files(2);
        world.add_dump("shop", "-- 2, and longer");
        let of_the_other = world.back_up_daily();
        world.sync_daily(Missing::Remember).await;
        for (id, expected) in [
            (1, Some((of_one_server, 4))),
            (2, Some((of_the_other, 16))),
            (3, None),
            (4, Some((of_one_server, 4))),
        ] {
            let list = world.list(id).await;
            assert!(list.daily.len() <= 1, "customer {id}: {list:?}");
            let held = list.daily.first().map(|entry| {
                assert_eq!(entry.backup_type, BackupType::Both);
                (entry.id, entry.database_bytes.unwrap())
            });
            assert_eq!(held, expected, "customer {id}");
        }

        // He has moved to the other server, where somebody has a database of that name as well. His directory stayed behind.
        if let Some(server) = &world.server {
            server
                .sql("UPDATE platform.customers SET server_id = 2 WHERE id = 2")
                .unwrap();
            for id in [1, 4] {
                world.add_files(id);
            }
            let made = world.back_up_daily();
            world.sync_daily(Missing::Remember).await;
            let types = async |id| {
                let list = world.list(id).await;
                let entry = list.daily.iter().find(|entry| entry.id == made);
                entry.map(|entry| entry.backup_type)
            };
            assert_eq!(types(1).await, Some(BackupType::Both));
            assert_eq!(types(2).await, Some(BackupType::Files));
        }
        world.store.close().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manual_snapshot_is_his_whom_its_one_tag_names() {
    on_both(async |world| {
        let own = world.back_up(&["customer-1", "manual", "files"]);
        let replaced = world.back_up(&["customer-1", "pre-restore", "db"]);
        let other = world.back_up(&["customer-12", "manual", "both"]);
        let nobodys = [
            world.back_up(&["customer-1", "customer-12", "manual", "both"]),
            world.back_up(&["customer-1", "manual"]),
            world.back_up(&["customer-1", "both"]),
            world.back_up(&["manual", "both"]),
            world.back_up(&["daily"]),
        ];
        let report = world.sync_manual(Missing::Remember).await;
        assert_eq!(report.added, 8);
        let list = world.list(1).await;
        assert_eq!(ids(&list.manual), [own]);
        assert_eq!(list.manual[0].backup_type, BackupType::Files);
        assert_eq!(ids(&list.pre_restore), [replaced]);
        assert_eq!(list.pre_restore[0].backup_type, BackupType::Db);
        assert_eq!(list.daily, []);
        assert_eq!(ids(&world.list(12).await.manual), [other]);
        let known = world.known(&world.manual).await;
        assert_eq!(known.len(), 8);
        assert!(nobodys.iter().all(|id| known.contains(id)));
        world.store.close().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_is_new_is_read() {
    on_both(async |mut world| {
        world.add_customer(1, None).await;
        world.add_files(1);
        world.back_up(&["customer-1", "manual", "files"]);
        world.back_up(&["nobody"]);
        world.back_up_daily();
        world.sync_manual(Missing::Remember).await;
        world.sync_daily(Missing::Remember).await;

        world.manual.open_again();
        world.daily.open_again();
        let unchanged = SyncReport::default();
        assert_eq!(world.sync_manual(Missing::Remember).await, unchanged);
        assert_eq!(world.sync_daily(Missing::Remember).await, unchanged);
        assert_eq!(world.manual.reads.take(), (0, 0));
        assert_eq!(world.daily.reads.take(), (0, 0));

        world.back_up(&["customer-1", "manual", "files"]);
        assert_eq!(world.sync_manual(Missing::Remember).await.added, 1);
        assert_eq!(world.manual.reads.take(), (1, 0));
        world.back_up_daily();
        assert_eq!(world.sync_daily(Missing::Remember).await.added, 1);
        assert_eq!(world.daily.reads.take().0, 1);
        let list = world.list(1).await;
        assert_eq!((list.manual.len(), list.daily.len()), (2, 2));
        world.store.close().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_removed_is_hidden_at_once_and_forgotten_when_that_is_accepted() {
    on_both(async |world| {
        let gone = world.back_up(&["customer-1", "manual", "files"]);
        let back = world.back_up(&["customer-1", "manual", "files"]);
        let stays = world.back_up(&["customer-1", "manual", "files"]);
        world.sync_manual(Missing::Remember).await;
        let all = BTreeSet::from([gone, back, stays]);

        world.manual.take_away(&gone);
        world.manual.take_away(&back);
        for _ in 0..2 {
            let report = world.sync_manual(Missing::Remember).await;
            assert_eq!((report.added, report.removed, report.missing), (0, 0, 2));
            assert_eq!(ids(&world.list(1).await.manual), [stays]);
            assert_eq!(world.known(&world.manual).await, all);
        }
        let found = world.catalog.find(customer(1), Source::Manual, &gone).await;
        assert_eq!(found.unwrap(), None);

        world.manual.bring_back(&back);
        let report = world.sync_manual(Missing::Remember).await;
        assert_eq!((report.added, report.removed, report.missing), (1, 0, 1));
        assert_eq!(ids(&world.list(1).await.manual), [stays, back]);

        world.age_missing(Duration::from_secs(23 * 60 * 60)).await;
        let report = world.sync_manual(Missing::Remember).await;
        assert_eq!((report.removed, report.missing), (0, 1));
        world.age_missing(Duration::from_secs(60 * 60)).await;
        let report = world.sync_manual(Missing::Remember).await;
        assert_eq!((report.removed, report.missing), (1, 0));
        assert_eq!(
            world.known(&world.manual).await,
            BTreeSet::from([back, stays])
        );

        world.manual.take_away(&back);
        let report = world.sync_manual(Missing::Accept).await;
        assert_eq!((report.removed, report.missing), (1, 0));
        assert_eq!(world.known(&world.manual).await, BTreeSet::from([stays]));
        assert_eq!(ids(&world.list(1).await.manual), [stays]);

        // Forgotten for good, and there again all the same.
        world.manual.bring_back(&gone);
        assert_eq!(world.sync_manual(Missing::Remember).await.added, 1);
        assert_eq!(ids(&world.list(1).await.manual), [stays, gone]);
        world.store.close().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_committed_while_the_repository_is_listed_is_not_taken_for_removed() {
    on_both(async |world| {
        let old = world.back_up(&["customer-1", "manual", "files"]);
        let new = world.back_up(&["customer-1", "manual", "files"]);
        world.manual.take_away(&new);
        let there = world.manual.snapshot_file(&new);
        let away = world.manual.path.join(new.to_string());
        let (another, _) = open(&world.manual.path);
        let (catalog, runtime) = (world.catalog.clone(), Handle::current());
        *world.manual.reads.after_listing.lock().unwrap() = Some(Box::new(move || {
            fs::rename(away, there).unwrap();
            let synced = runtime.block_on(catalog.sync_manual(&another, Missing::Remember));
            assert_eq!(synced.unwrap().added, 2);
        }));
        let report = world.sync_manual(Missing::Accept).await;
        assert_eq!(report, SyncReport::default());
        assert_eq!(ids(&world.list(1).await.manual), [new, old]);
        world.store.close().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_forgotten_while_it_is_taken_in_does_not_stay() {
    on_both(async |world| {
        let gone = world.back_up(&["customer-1", "manual", "files"]);
        let file = world.manual.snapshot_file(&gone);
        let (catalog, runtime) = (world.catalog.clone(), Handle::current());
        let repository_id = world.manual.repository.id();
        *world.manual.reads.after_reading.lock().unwrap() = Some(Box::new(move || {
            fs::remove_file(file).unwrap();
            let removed = runtime.block_on(catalog.remove(&repository_id, &[gone]));
            removed.unwrap();
        }));
        let report = world.sync_manual(Missing::Remember).await;
        assert_eq!(report, SyncReport::default());
        assert_eq!(world.list(1).await, BackupList::default());
        assert!(world.known(&world.manual).await.is_empty());
        world.store.close().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn several_syncs_at_once_take_each_snapshot_in_once() {
    const CUSTOMERS: u32 = 1_200;
    on_both(async |world| {
        for id in 1..=CUSTOMERS {
            if world.server.is_none() {
                world.add_customer(id, None).await;
            }
            world.add_dump(&format!("customer_{id}"), "-- dump");
        }
        if let Some(server) = &world.server {
            let rows: Vec<String> = (1..=CUSTOMERS).map(|id| format!("({id})")).collect();
            let insert = format!(
                "INSERT INTO platform.customers (id) VALUES {}",
                rows.join(",")
            );
            server.sql(&insert).unwrap();
        }
        let daily: Vec<SnapshotId> = (0..3).map(|_| world.back_up_daily()).collect();
        for id in 1..=4 {
            world.back_up(&[&format!("customer-{id}"), "manual", "files"]);
        }
        let mut running = Vec::new();
        for _ in 0..4 {
            // A process of its own would have its own connections.
            let store = Store::connect(&world.config).await.unwrap();
            let catalog = Catalog::new(&store);
            let config = world.config.clone();
            let (manual, daily) = (open(&world.manual.path).0, open(&world.daily.path).0);
            running.push(tokio::spawn(async move {
                let by_tags = catalog
                    .sync_manual(&manual, Missing::Remember)
                    .await
                    .unwrap();
                let by_tree = catalog
                    .sync_daily(&daily, &config, Missing::Remember)
                    .await
                    .unwrap();
                assert!(by_tags.warnings.is_empty() && by_tree.warnings.is_empty());
                (by_tags.added, by_tree.added)
            }));
        }
        let mut added = (0, 0);
        for sync in running {
            let (by_tags, by_tree) = sync.await.unwrap();
            added = (added.0 + by_tags, added.1 + by_tree);
        }
        assert_eq!(added, (4, 3));
        for id in [1, 500, 501, 1_000, 1_001, CUSTOMERS] {
            let list = world.list(id).await;
            assert_eq!(list.daily.len(), 3, "customer {id}");
            assert_eq!(list.manual.len(), usize::from(id <= 4));
        }
        world.daily.take_away(&daily[0]);
        let report = world.sync_daily(Missing::Accept).await;
        assert_eq!((report.added, report.removed), (0, 1));
        assert_eq!(
            ids(&world.list(CUSTOMERS).await.daily),
            [daily[2], daily[1]]
        );
        world.store.close().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_snapshot_keeps_nobody_from_the_others() {
    on_both(async |world| {
        world.add_customer(1, None).await;
        world.add_files(1);
        let whole = world.back_up(&["customer-1", "manual", "files"]);
        let damaged = world.back_up(&["customer-1", "manual", "files"]);
        let file = world.manual.snapshot_file(&damaged);
        let content = fs::read(&file).unwrap();
        fs::write(&file, &content[..content.len() / 2]).unwrap();
        for _ in 0..2 {
            let report = world.sync_manual(Missing::Remember).await;
            let [warning] = report.warnings.as_slice() else {
                panic!("{report:?}")
            };
            assert!(warning.contains(&damaged.to_string()), "{warning}");
            assert_eq!(ids(&world.list(1).await.manual), [whole]);
            assert_eq!(world.known(&world.manual).await, BTreeSet::from([whole]));
        }
        // Mended, it is there.
        fs::write(&file, content).unwrap();
        let report = world.sync_manual(Missing::Remember).await;
        assert_eq!((report.added, report.warnings.len()), (1, 0));

        // Of a daily one the directories are gone.
        let packs = |path: &Path| -> BTreeSet<PathBuf> {
            let directories = fs::read_dir(path.join("data")).unwrap();
            directories
                .flat_map(|directory| fs::read_dir(directory.unwrap().path()).unwrap())
                .map(|pack| pack.unwrap().path())
                .collect()
        };
        let broken = world.back_up_daily();
        for pack in packs(&world.daily.path) {
            fs::write(pack, "").unwrap();
        }
        fs::write(world.site(1).join("wordpress/new.php"), "<?php").unwrap();
        let paths = ["dumps", "customers"].map(|name| world.scratch.path().join(name));
        let mut arguments = vec![
            "backup".into(),
            "--force".into(),
            "--tag".into(),
            "daily".into(),
        ];
        arguments.extend(paths.map(PathBuf::into_os_string));
        world.daily.restic.run(["rebuild-index"]).unwrap();
        world.daily.restic.run(arguments).unwrap();
        let report = world.sync_daily(Missing::Remember).await;
        assert_eq!((report.added, report.warnings.len()), (1, 1), "{report:?}");
        assert!(report.warnings[0].contains(&broken.to_string()));
        let list = world.list(1).await;
        assert!(list.daily.len() == 1 && list.daily[0].id != broken);
        world.store.close().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn beside_a_prune_what_is_gone_is_hidden_and_what_is_new_waits() {
    on_both(async |world| {
        world.add_customer(1, None).await;
        world.add_files(1);
        let gone = world.back_up_daily();
        world.sync_daily(Missing::Remember).await;
        let new = world.back_up_daily();
        world.daily.take_away(&gone);

        let lock = open(&world.daily.path).0.lock_exclusive().unwrap();
        let busy = world.try_sync_daily(Missing::Remember).await.unwrap_err();
        assert_eq!(busy.kind(), ErrorKind::Busy, "{busy:?}");
        assert_eq!(world.list(1).await.daily, []);
        drop(lock);
        assert_eq!(world.sync_daily(Missing::Remember).await.added, 1);
        assert_eq!(ids(&world.list(1).await.daily), [new]);
        world.store.close().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_platforms_own_daily_backup_and_our_own_are_taken_in_over_sftp() {
    let bed = TestBed::start().unwrap();
    for id in [1, 12] {
        bed.add_customer(id).unwrap();
    }
    let daily: SnapshotId = bed.back_up_daily("2026-01-31").unwrap().parse().unwrap();
    bed.add_customer(123).unwrap();
    let environment = [("DB_PASSWORD", bed.platform_password())];
    let environment = environment.into_iter().collect();
    let config = Config::load(Some(&bed.config_file()), &environment).unwrap();
    let store = Store::connect(&config).await.unwrap();
    store.migrate().await.unwrap();
    let twelve = CustomerStore::new(&store, &config)
        .get(customer(12))
        .await
        .unwrap();

    let for_thread = config.clone();
    let (manual, of_everybody, report) = tokio::task::spawn_blocking(move || {
        init_repository(&for_thread.repositories.manual, &Cancel::new()).unwrap();
        let engine = Engine::new(for_thread, &Cancel::new());
        let request = BackupRequest {
            backup_type: BackupType::Both,
            note: Some("before the sale".to_owned()),
        };
        let report = engine
            .backup(&twelve, &request, &Control::default())
            .unwrap();
        (
            engine.manual().unwrap(),
            engine.daily().unwrap().unwrap(),
            report,
        )
    })
    .await
    .unwrap();
    let catalog = Catalog::new(&store);
    let taken_in = catalog
        .sync_manual(&manual, Missing::Remember)
        .await
        .unwrap();
    assert_eq!(taken_in.added, 1);
    let taken_in = catalog
        .sync_daily(&of_everybody, &config, Missing::Remember)
        .await
        .unwrap();
    assert_eq!(taken_in.added, 1);

    for (id, expected) in [(1, vec![daily]), (12, vec![daily]), (123, vec![])] {
        let list = catalog.list(customer(id), MONTH).await.unwrap();
        assert_eq!(ids(&list.daily), expected, "customer {id}");
        assert_eq!(list.manual.len(), usize::from(id == 12));
    }
    let list = catalog.list(customer(12), MONTH).await.unwrap();
    let dump = fs::metadata(bed.daily_dumps().join("customer_12.sql")).unwrap();
    assert_eq!(list.daily[0].backup_type, BackupType::Both);
    assert_eq!(list.daily[0].database_bytes, Some(dump.len()));
    let own = &list.manual[0];
    assert_eq!(
        (own.id, own.backup_type),
        (report.snapshot_id, BackupType::Both)
    );
    assert_eq!(own.note.as_deref(), Some("before the sale"));
    assert_eq!(own.bytes, Some(report.bytes));
    assert_eq!(own.bytes_added, Some(report.bytes_added));
    assert_eq!(own.files, Some(report.files));
    store.close().await;
}
