//! What deleting a backup promises, on MariaDB and on SQLite, with a real repository that the stock restic judges.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use backup_core::catalog::{Catalog, Missing, Source};
use backup_core::config::{Config, Environment, Origin};
use backup_core::customer::{CustomerId, NewCustomer};
use backup_core::error::{Error, ErrorKind};
use backup_core::jobs::{CancelAnswer, Created, Job};
use backup_core::operations::{BackupReport, BackupRequest, Engine, RestoreRequest};
use backup_core::progress::{Cancel, Control};
use backup_core::repository::{BackupType, SnapshotId};
use backup_core::service::{BackupService, Deleted, RunHere};
use backup_core::store::Store;
use backup_core::worker::Stopping;
use sqlx::mysql::MySqlConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, MySqlConnection};
use tokio::sync::watch;
use xtask::mariadb::MariaDb;
use xtask::mount::Mount;
use xtask::restic::Restic;

const PASSWORD: &str = "correct horse";
const CUSTOMERS: [u32; 3] = [1, 2, 12];
const DEADLINE: Duration = Duration::from_secs(60);

/// A hosting server's directory, a repository on a local disk, and a database with customers.
struct World {
    scratch: tempfile::TempDir,
    server: Option<MariaDb>,
    config: Config,
    service: BackupService,
    engine: Arc<Engine>,
    restic: Restic,
}

impl World {
    async fn new(server: Option<MariaDb>) -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let place = scratch.path().display().to_string();
        let url = match &server {
            Some(server) => {
                server
                    .sql(
                        "CREATE DATABASE platform;
                         CREATE TABLE platform.customers (id INT PRIMARY KEY, status VARCHAR(20));
                         INSERT INTO platform.customers VALUES (1, 'active'), (2, 'active'), (12, 'active');
                         CREATE USER app@localhost IDENTIFIED BY 's3cret';
                         GRANT ALL ON platform.* TO app@localhost",
                    )
                    .unwrap();
                format!("mysql://app:s3cret@127.0.0.1:{}/platform", server.port())
            }
            None => format!("sqlite://{place}/backup.db"),
        };
        fs::write(scratch.path().join("password"), PASSWORD).unwrap();
        let text = format!(
            "[database]\nurl = '{url}'\n\
             [worker]\nsync_every = '1h'\nstate_dir = '{place}/state'\n\
             [repositories.manual]\nlocation = '{place}/manual'\npassword_file = '{place}/password'\n\
             [customers]\nroot = '{place}/customers'\n"
        );
        let origin = Origin::File("test".into());
        let config = Config::read(origin, &text, &Environment::default()).unwrap();
        let restic = Restic::new(scratch.path().join("manual"), PASSWORD).unwrap();
        restic.init().unwrap();
        let service = BackupService::connect(config.clone()).await.unwrap();
        for id in CUSTOMERS {
            let site = scratch
                .path()
                .join(format!("customers/customer-{id}/wordpress"));
            fs::create_dir_all(&site).unwrap();
            fs::write(site.join("index.php"), "<?php").unwrap();
            if server.is_none() {
                let new = NewCustomer {
                    id: Some(customer(id)),
                    ..NewCustomer::default()
                };
                service.customers().add(&new).await.unwrap();
            }
        }
        Self {
            engine: Arc::new(Engine::new(config.clone(), &Cancel::new())),
            scratch,
            server,
            config,
            service,
            restic,
        }
    }

    /// What another machine would have: its own connections, and nothing in memory.
    async fn another(&self) -> (BackupService, Arc<Engine>) {
        let service = BackupService::connect(self.config.clone()).await.unwrap();
        let engine = Engine::new(self.config.clone(), &Cancel::new());
        (service, Arc::new(engine))
    }

    /// Something in the repository, which the catalogue knows after the next sync.
    fn save(&self, tags: &[&str]) -> SnapshotId {
        let something = self.scratch.path().join("customers/customer-1");
        let made = self.restic.backup([something], tags);
        made.unwrap().parse().unwrap()
    }

    async fn back_up(&self, id: u32) -> BackupReport {
        let request = BackupRequest {
            backup_type: BackupType::Files,
            note: None,
        };
        let made = self
            .service
            .backup_here(&self.engine, customer(id), &request, &Control::default())
            .await;
        match made.unwrap() {
            RunHere::Done { report, .. } => report,
            RunHere::InTheWay(job) => panic!("in the way: {job:?}"),
        }
    }

    async fn sync(&self) {
        let synced = self.service.sync(&self.engine, Missing::Remember).await;
        synced.unwrap();
    }

    /// The catalogue alone, as a worker would bring it in step that does not come to deletions.
    async fn catalog(&self) -> Catalog {
        Catalog::new(&Store::connect(&self.config).await.unwrap())
    }

    async fn delete(&self, id: u32, snapshot: &SnapshotId) -> Result<Deleted, Error> {
        self.service.delete_backup(customer(id), snapshot).await
    }

    async fn deleted(&self, id: u32, snapshot: &SnapshotId) {
        let answer = self.delete(id, snapshot).await.unwrap();
        assert!(matches!(answer, Deleted::Done), "{answer:?}");
    }

    /// The manual backups that a customer sees.
    async fn shown(&self, id: u32) -> BTreeSet<SnapshotId> {
        let list = self.service.list(customer(id)).await.unwrap();
        list.manual.iter().map(|entry| entry.id).collect()
    }

    /// What restic finds in the repository.
    fn saved(&self) -> BTreeSet<SnapshotId> {
        let snapshots = self.restic.snapshots().unwrap();
        snapshots
            .iter()
            .map(|snapshot| snapshot["id"].as_str().unwrap().parse().unwrap())
            .collect()
    }

    async fn known(&self) -> BTreeSet<SnapshotId> {
        let id = self.engine.manual().unwrap().id();
        self.catalog().await.known(&id).await.unwrap()
    }

    fn snapshot_file(&self, id: &SnapshotId) -> PathBuf {
        let snapshots = self.scratch.path().join("manual/snapshots");
        snapshots.join(id.to_string())
    }

    /// Write past the library.
    async fn sql(&self, sql: String) {
        match &self.server {
            Some(server) => drop(server.sql(&format!("USE platform; {sql}")).unwrap()),
            None => {
                let file = self.scratch.path().join("backup.db");
                let url = format!("sqlite://{}", file.display());
                let pool = sqlx::SqlitePool::connect(&url).await.unwrap();
                pool.execute(AssertSqlSafe(sql)).await.unwrap();
                pool.close().await;
            }
        }
    }

    /// Rows of customers' backups, those that nobody sees included.
    async fn rows(&self) -> i64 {
        const COUNT: &str = "SELECT COUNT(*) FROM customer_backups";
        match &self.server {
            Some(server) => {
                let counted = server.sql(&format!("USE platform; {COUNT}")).unwrap();
                counted.trim().parse().unwrap()
            }
            None => {
                let file = self.scratch.path().join("backup.db");
                let url = format!("sqlite://{}", file.display());
                let pool = sqlx::SqlitePool::connect(&url).await.unwrap();
                let counted = sqlx::query_scalar(COUNT).fetch_one(&pool).await.unwrap();
                pool.close().await;
                counted
            }
        }
    }

    /// A backup that was deleted is as it was before.
    async fn take_back(&self, id: &SnapshotId) {
        let update =
            format!("UPDATE customer_backups SET deleted_at = NULL WHERE snapshot_id = '{id}'");
        self.sql(update).await;
    }

    async fn cancel(&self, job: &Job) {
        let cancelled = self.service.cancel(None, job.id).await.unwrap();
        assert_eq!(cancelled, CancelAnswer::Cancelled);
    }

    /// Nobody can see, find, name or restore it.
    async fn assert_invisible(&self, id: u32, snapshot: &SnapshotId) {
        assert!(!self.shown(id).await.contains(snapshot));
        let (whose, manual) = (customer(id), Source::Manual);
        let found = self.service.find(whose, snapshot).await.unwrap();
        assert_eq!(found, None);
        let found = self.service.backup(whose, manual, snapshot).await.unwrap();
        assert_eq!(found, None);
        for text in [snapshot.to_string(), snapshot.to_string()[..8].to_owned()] {
            let resolved = self.service.resolve(whose, manual, &text).await;
            assert_eq!(resolved.unwrap_err().kind(), ErrorKind::NotFound);
        }
        let refused = self.service.restore(whose, &restore_of(snapshot)).await;
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::NotFound);
        let again = self.delete(id, snapshot).await;
        assert_eq!(again.unwrap_err().kind(), ErrorKind::NotFound);
    }
}

/// The same test on SQLite and on MariaDB.
async fn on_both(test: impl AsyncFn(World)) {
    println!("on SQLite");
    test(World::new(None).await).await;
    println!("on MariaDB");
    test(World::new(Some(MariaDb::start().unwrap())).await).await;
}

fn customer(id: u32) -> CustomerId {
    CustomerId::new(id).unwrap()
}

fn restore_of(snapshot: &SnapshotId) -> RestoreRequest {
    RestoreRequest {
        snapshot: *snapshot,
        source: Source::Manual,
        restore_type: None,
        online: false,
    }
}

async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition().await {
        assert!(Instant::now() < deadline, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A file that cannot be removed as long as this is there.
fn pin(file: &Path) -> Mount {
    Mount::bind(file, file).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_backup_is_invisible_at_once_and_the_next_sync_forgets_it_and_nothing_else() {
    on_both(async |world| {
        let gone = world.save(&["customer-1", "manual", "files"]);
        let stays = world.save(&["customer-1", "manual", "files"]);
        let others = world.save(&["customer-12", "manual", "files"]);
        world.sync().await;

        world.deleted(1, &gone).await;
        world.assert_invisible(1, &gone).await;
        assert_eq!(world.shown(1).await, [stays].into());
        assert_eq!(world.saved(), [gone, stays, others].into());

        world.sync().await;
        world.assert_invisible(1, &gone).await;
        assert_eq!(world.saved(), [stays, others].into());
        assert_eq!(world.known().await, [stays, others].into());
        assert_eq!(world.shown(12).await, [others].into());
        // Its data can go, and nobody misses it.
        for (_, pruned) in world.service.prune(&world.engine).await {
            pruned.unwrap();
        }
        world.restic.check_read_data().unwrap();
        world.service.close().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_his_own_manual_backups_are_a_customers_to_delete() {
    on_both(async |world| {
        let own = world.save(&["customer-1", "manual", "files"]);
        let others = world.save(&["customer-12", "manual", "files"]);
        let replaced = world.save(&["customer-1", "pre-restore", "files"]);
        let nobodys = world.save(&["customer-1", "customer-12", "manual", "files"]);
        world.sync().await;
        let daily: SnapshotId = "da".repeat(32).parse().unwrap();
        world
            .sql(format!(
                "INSERT INTO customer_backups (customer_id, source, snapshot_id, time, backup_type)
                 VALUES (1, 'daily', '{daily}', 1700000000000, 'both')"
            ))
            .await;
        let missing: SnapshotId = "ab".repeat(32).parse().unwrap();
        let like_missing = |error: &Error, id: &SnapshotId| {
            let text = error.chain().replace(&id.to_string(), "ID");
            (error.kind(), text)
        };
        let expected = world.delete(1, &missing).await.unwrap_err();
        let expected = like_missing(&expected, &missing);
        assert_eq!(expected.0, ErrorKind::NotFound);
        for id in [others, replaced, nobodys, daily] {
            let error = world.delete(1, &id).await.unwrap_err();
            assert_eq!(like_missing(&error, &id), expected);
        }
        let nobody = world.delete(3, &own).await.unwrap_err();
        assert_eq!(nobody.kind(), ErrorKind::NotFound);
        world.sync().await;
        assert_eq!(world.saved(), [own, others, replaced, nobodys].into());
        let list = world.service.list(customer(1)).await.unwrap();
        assert_eq!((list.manual.len(), list.pre_restore.len()), (1, 1));
        assert_eq!(world.shown(12).await, [others].into());
        world.service.close().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_deleted_while_a_job_of_the_customer_is_active() {
    on_both(async |world| {
        let (restored, idle) = (
            world.save(&["customer-1", "manual", "files"]),
            world.save(&["customer-1", "manual", "files"]),
        );
        let others = world.save(&["customer-12", "manual", "files"]);
        world.sync().await;
        let queued = world
            .service
            .restore(customer(1), &restore_of(&restored))
            .await;
        let Created::Job(job) = queued.unwrap() else {
            panic!("something is in the way")
        };
        for id in [restored, idle] {
            match world.delete(1, &id).await.unwrap() {
                Deleted::InTheWay(other) => assert_eq!(other.id, job.id),
                Deleted::Done => panic!("{id} is deleted"),
            }
        }
        assert_eq!(world.shown(1).await, [restored, idle].into());
        world.deleted(12, &others).await;
        world.cancel(&job).await;
        world.deleted(1, &restored).await;
        world.service.close().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_dies_on_the_way_another_finishes_and_nothing_comes_back() {
    on_both(async |world| {
        let ids: Vec<SnapshotId> = (0..4)
            .map(|_| world.save(&["customer-1", "manual", "files"]))
            .collect();
        let [marked, forgotten, flickering, stays] = ids[..] else {
            unreachable!()
        };
        world.sync().await;
        for id in [&marked, &forgotten, &flickering] {
            world.deleted(1, id).await;
        }
        // One worker died after it had forgotten this, before it could say so.
        world
            .restic
            .run(["forget".to_owned(), forgotten.to_string()])
            .unwrap();
        // A listing lacks another one, which is there again later.
        let away = world.scratch.path().join("away");
        fs::rename(world.snapshot_file(&flickering), &away).unwrap();
        let (service, engine) = world.another().await;
        for _ in 0..2 {
            service.sync(&engine, Missing::Remember).await.unwrap();
            assert_eq!(world.saved(), [stays].into());
            // Whether they are gone for good nobody can tell yet.
            assert_eq!(world.known().await, [forgotten, flickering, stays].into());
            for id in [&marked, &forgotten, &flickering] {
                world.assert_invisible(1, id).await;
            }
        }
        // Nobody waits for them before he frees space.
        for (_, pruned) in service.prune(&engine).await {
            pruned.unwrap();
        }

        fs::rename(&away, world.snapshot_file(&flickering)).unwrap();
        for _ in 0..2 {
            world.sync().await;
            assert_eq!(world.saved(), [stays].into());
            assert_eq!(world.known().await, [forgotten, stays].into());
            assert_eq!(world.shown(1).await, [stays].into());
        }
        let two_days = 2 * 24 * 60 * 60 * 1000;
        world
            .sql(format!(
                "UPDATE backup_snapshots SET missing_since = missing_since - {two_days}"
            ))
            .await;
        world.sync().await;
        assert_eq!(world.known().await, [stays].into());
        assert_eq!(world.rows().await, 1);
        assert_eq!(world.shown(1).await, [stays].into());
        world.service.close().await;
        service.close().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_forgotten_now_stays_deleted_and_is_forgotten_later() {
    on_both(async |world| {
        let pinned = world.save(&["customer-1", "manual", "files"]);
        let gone = world.save(&["customer-1", "manual", "files"]);
        let others = world.save(&["customer-2", "manual", "files"]);
        world.sync().await;
        let pin = pin(&world.snapshot_file(&pinned));
        for (id, snapshot) in [(1, &pinned), (1, &gone), (2, &others)] {
            world.deleted(id, snapshot).await;
        }
        for _ in 0..2 {
            let synced = world.service.sync(&world.engine, Missing::Remember).await;
            let error = synced.unwrap_err();
            assert!(error.chain().contains(&pinned.to_string()), "{error:?}");
            world.assert_invisible(1, &pinned).await;
            assert_eq!(world.saved(), [pinned].into());
        }
        drop(pin);
        world.sync().await;
        assert_eq!(world.saved(), [].into());
        assert_eq!(world.known().await, [].into());
        world.service.close().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_row_that_says_so_makes_a_worker_forget_what_is_anothers() {
    on_both(async |world| {
        let own = world.save(&["customer-1", "manual", "files"]);
        let others = world.save(&["customer-12", "manual", "files"]);
        let replaced = world.save(&["customer-1", "pre-restore", "files"]);
        world.sync().await;
        for id in [&others, &replaced] {
            world
                .sql(format!(
                    "INSERT INTO customer_backups (customer_id, source, snapshot_id, time, backup_type, deleted_at)
                     VALUES (1, 'manual', '{id}', 1700000000000, 'files', 1700000000000)"
                ))
                .await;
        }
        let synced = world.service.sync(&world.engine, Missing::Remember).await;
        assert_eq!(synced.unwrap_err().kind(), ErrorKind::Damaged);
        // Told once: the rows are gone, and those who own the backups still have theirs.
        world.sync().await;
        assert_eq!(world.saved(), [own, others, replaced].into());
        assert_eq!(world.shown(1).await, [own].into());
        assert_eq!(world.shown(12).await, [others].into());
        let list = world.service.list(customer(1)).await.unwrap();
        assert_eq!(list.pre_restore.len(), 1);
        world.service.close().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_backup_neither_counts_among_the_newest_five_nor_pushes_one_out() {
    on_both(async |world| {
        let mut made = Vec::new();
        for _ in 0..5 {
            made.push(world.back_up(1).await.snapshot_id);
        }
        // The newest of them goes, and all others stay beside the next one.
        world.deleted(1, &made[4]).await;
        let sixth = world.back_up(1).await;
        assert_eq!(sixth.warnings, [] as [String; 0]);
        let mut kept = BTreeSet::from([made[0], made[1], made[2], made[3], sixth.snapshot_id]);
        assert_eq!(world.saved(), kept);
        assert_eq!(world.shown(1).await, kept);

        // One that cannot be forgotten now keeps retention from the rest, not the backup from being made.
        let pin = pin(&world.snapshot_file(&sixth.snapshot_id));
        world.deleted(1, &sixth.snapshot_id).await;
        let seventh = world.back_up(1).await;
        let [warning] = &seventh.warnings[..] else {
            panic!("{seventh:?}")
        };
        assert!(warning.contains("could not be removed"), "{warning}");
        kept.insert(seventh.snapshot_id);
        assert_eq!(world.saved(), kept);
        kept.remove(&sixth.snapshot_id);
        assert_eq!(world.shown(1).await, kept);

        drop(pin);
        let eighth = world.back_up(1).await;
        kept.remove(&made[0]);
        kept.insert(eighth.snapshot_id);
        assert_eq!(world.saved(), kept);
        assert_eq!(world.shown(1).await, kept);
        world.service.close().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_restore_is_queued_of_stays_although_it_is_the_sixth() {
    on_both(async |world| {
        for _ in 0..5 {
            world.back_up(1).await;
        }
        let (other, _) = world.another().await;
        let mut kept = 0;
        for _ in 0..5 {
            let list = world.service.list(customer(1)).await.unwrap();
            let (oldest, newest) = (list.manual.last().unwrap().id, list.manual[0].id);
            let restore = async {
                let whose = customer(1);
                eventually("the backup is being made, or is", async || {
                    other.active_job(whose).await.unwrap().is_some()
                        || other.list(whose).await.unwrap().manual[0].id != newest
                })
                .await;
                // As soon as the backup's own job lets it.
                loop {
                    match other.restore(whose, &restore_of(&oldest)).await {
                        Ok(Created::InTheWay(_)) => tokio::task::yield_now().await,
                        other => return other,
                    }
                }
            };
            let (restored, made) = tokio::join!(restore, world.back_up(1));
            assert_eq!(made.warnings, [] as [String; 0]);
            match restored {
                Ok(Created::Job(job)) => {
                    kept += 1;
                    assert!(world.saved().contains(&oldest));
                    assert!(world.shown(1).await.contains(&oldest));
                    world.cancel(&job).await;
                }
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::NotFound, "{error:?}");
                    assert!(!world.saved().contains(&oldest));
                }
                Ok(Created::InTheWay(job)) => unreachable!("{job:?}"),
            }
        }
        println!("the restore came first in {kept} of 5");
        world.back_up(1).await;
        assert_eq!(world.saved().len(), 5);
        assert_eq!(world.saved(), world.shown(1).await);
        world.service.close().await;
        other.close().await;
    })
    .await;
}

/// A worker of another server may have made them, or a catalogue that was lost.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_catalogue_does_not_know_yet_is_no_restores_to_lose() {
    on_both(async |world| {
        for _ in 0..5 {
            world.back_up(1).await;
        }
        let (other, its_engine) = world.another().await;
        let (mut kept, mut gone) = (0, 0);
        for _ in 0..4 {
            let list = world.service.list(customer(1)).await.unwrap();
            let oldest = list.manual.last().unwrap().id;
            world
                .sql(format!(
                    "DELETE FROM customer_backups WHERE snapshot_id = '{oldest}';
                     DELETE FROM backup_snapshots WHERE snapshot_id = '{oldest}'"
                ))
                .await;
            let whose = customer(1);
            let jobs = async || other.jobs(Some(whose), 100).await.unwrap().len();
            let before = jobs().await;
            let made = tokio::spawn({
                let (service, engine) = (world.service.clone(), Arc::clone(&world.engine));
                let request = BackupRequest {
                    backup_type: BackupType::Files,
                    note: None,
                };
                async move {
                    let control = Control::default();
                    let made = service.backup_here(&engine, whose, &request, &control);
                    made.await.unwrap()
                }
            });
            // Its job first: it does not wait for a restore's.
            while jobs().await == before && !made.is_finished() {
                tokio::task::yield_now().await;
            }
            // From when its own job lets it until there is nothing to restore.
            let restored = loop {
                let is_made = made.is_finished();
                other.sync(&its_engine, Missing::Remember).await.unwrap();
                match other.restore(whose, &restore_of(&oldest)).await {
                    Ok(Created::Job(job)) => break Some(job),
                    Ok(Created::InTheWay(_)) => {}
                    Err(error) if is_made => {
                        assert_eq!(error.kind(), ErrorKind::NotFound, "{error:?}");
                        break None;
                    }
                    Err(error) => assert_eq!(error.kind(), ErrorKind::NotFound, "{error:?}"),
                }
            };
            let RunHere::Done { report, .. } = made.await.unwrap() else {
                panic!("in the way")
            };
            assert_eq!(report.warnings, [] as [String; 0]);
            match restored {
                Some(job) => {
                    kept += 1;
                    assert!(world.saved().contains(&oldest));
                    assert!(world.shown(1).await.contains(&oldest));
                    world.cancel(&job).await;
                    world.back_up(1).await;
                }
                None => gone += 1,
            }
            assert!(!world.saved().contains(&oldest));
            assert_eq!(world.saved().len(), 5);
            assert_eq!(world.saved(), world.shown(1).await);
        }
        println!("the restore came first in {kept}, the retention in {gone}");
        world.service.close().await;
        other.close().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn retention_counts_and_forgets_what_the_catalogue_does_not_know_yet() {
    on_both(async |world| {
        let mut unknown: Vec<SnapshotId> = (0..5)
            .map(|_| world.save(&["customer-1", "manual", "files"]))
            .collect();
        let made = world.back_up(1).await;
        assert_eq!(made.warnings, [] as [String; 0]);
        let oldest = unknown.remove(0);
        unknown.push(made.snapshot_id);
        assert_eq!(world.saved(), unknown.into_iter().collect());
        world.sync().await;
        assert_eq!(world.shown(1).await, world.saved());
        assert_eq!(world.known().await, world.saved());
        world.assert_invisible(1, &oldest).await;
        world.service.close().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_is_woken_to_forget_what_was_deleted() {
    on_both(async |world| {
        let gone = world.save(&["customer-1", "manual", "files"]);
        let stays = world.save(&["customer-1", "manual", "files"]);
        let (stop, stopping) = watch::channel(Stopping::No);
        let worker = world.service.worker(Arc::clone(&world.engine));
        let worker = tokio::spawn(worker.run(stopping));
        eventually("the worker takes in what is there", async || {
            world.shown(1).await == [gone, stays].into()
        })
        .await;
        // The next sync is an hour away.
        world.deleted(1, &gone).await;
        eventually("the snapshot and its row are gone", async || {
            !world.snapshot_file(&gone).exists() && world.known().await == [stays].into()
        })
        .await;
        stop.send_replace(Stopping::Finish);
        worker.await.unwrap();
        assert_eq!(world.saved(), [stays].into());
        world.service.close().await;
    })
    .await;
}

/// Of a restore and a deletion of one backup, at the same moment.
fn assert_one_came_first(
    restored: Result<Created, Error>,
    deleted: Result<Deleted, Error>,
) -> Option<Box<Job>> {
    match (restored, deleted) {
        (Ok(Created::Job(job)), Ok(Deleted::InTheWay(other))) => {
            assert_eq!(job.id, other.id);
            Some(job)
        }
        (Err(error), Ok(Deleted::Done)) => {
            assert_eq!(error.kind(), ErrorKind::NotFound, "{error:?}");
            None
        }
        other => panic!("both, or neither: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_restore_and_a_deletion_at_once_one_comes_first() {
    const ROUNDS: u32 = 100;
    on_both(async |world| {
        let id = world.save(&["customer-1", "manual", "files"]);
        world.sync().await;
        let (other, _) = world.another().await;
        let mut deletions = 0;
        for round in 0..ROUNDS {
            // A restore has more to look up before it comes to the row.
            let (restore_waits, delete_waits) = match round % 2 {
                0 => (0, rand::random_range(0..2_000)),
                _ => (rand::random_range(0..20), 0),
            };
            let restoring = tokio::spawn({
                let service = world.service.clone();
                async move {
                    for _ in 0..restore_waits {
                        tokio::task::yield_now().await;
                    }
                    service.restore(customer(1), &restore_of(&id)).await
                }
            });
            let deleting = tokio::spawn({
                let service = other.clone();
                async move {
                    for _ in 0..delete_waits {
                        tokio::task::yield_now().await;
                    }
                    service.delete_backup(customer(1), &id).await
                }
            });
            let (restored, deleted) = (restoring.await.unwrap(), deleting.await.unwrap());
            match assert_one_came_first(restored, deleted) {
                Some(job) => world.cancel(&job).await,
                None => {
                    deletions += 1;
                    world.take_back(&id).await;
                }
            }
        }
        println!("the deletion came first in {deletions} of {ROUNDS}");
        world.service.close().await;
        other.close().await;
    })
    .await;
}

/// Both have looked, found nothing in their way, and wait for the same row.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_restore_or_a_deletion_saw_before_the_other_does_not_count() {
    let world = World::new(Some(MariaDb::start().unwrap())).await;
    let server = world.server.as_ref().unwrap();
    let id = world.save(&["customer-1", "manual", "files"]);
    world.sync().await;
    let mut row = MySqlConnectOptions::new()
        .socket(server.socket())
        .username("root")
        .password(server.root_password())
        .database("platform")
        .connect()
        .await
        .unwrap();
    for restore_is_first in [true, false, true, false] {
        let mut holding = row.begin().await.unwrap();
        let hold = format!("UPDATE customer_backups SET note = 'x' WHERE snapshot_id = '{id}'");
        (&mut *holding).execute(AssertSqlSafe(hold)).await.unwrap();
        let restore = || {
            let service = world.service.clone();
            tokio::spawn(async move { service.restore(customer(1), &restore_of(&id)).await })
        };
        let delete = || {
            let service = world.service.clone();
            tokio::spawn(async move { service.delete_backup(customer(1), &id).await })
        };
        let (restoring, deleting);
        if restore_is_first {
            restoring = restore();
            until_waiting(&mut holding, 1).await;
            deleting = delete();
        } else {
            deleting = delete();
            until_waiting(&mut holding, 1).await;
            restoring = restore();
        }
        until_waiting(&mut holding, 2).await;
        holding.commit().await.unwrap();
        let (restored, deleted) = (restoring.await.unwrap(), deleting.await.unwrap());
        match assert_one_came_first(restored, deleted) {
            Some(job) => {
                assert!(restore_is_first);
                world.cancel(&job).await;
            }
            None => {
                assert!(!restore_is_first);
                world.take_back(&id).await;
            }
        }
    }
    row.close().await.unwrap();
    world.service.close().await;
}

/// As many statements wait for a row of the catalogue. (The server shows who waits only to who asks seldom.)
async fn until_waiting(connection: &mut MySqlConnection, count: i64) {
    const QUERY: &str = "SELECT COUNT(*) FROM information_schema.processlist
        WHERE info LIKE 'UPDATE customer_backups SET deleted_at%' AND time_ms > 20";
    let deadline = Instant::now() + DEADLINE;
    loop {
        let waiting: i64 = sqlx::query_scalar(QUERY)
            .fetch_one(&mut *connection)
            .await
            .unwrap();
        if waiting == count {
            return;
        }
        assert!(Instant::now() < deadline, "never {count} who wait");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
