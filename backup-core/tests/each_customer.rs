//! What a repository for each customer promises: everybody's backups are in his own, which the stock restic reads, and what befalls one is nothing to the
//! others.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
#[cfg(feature = "object-storage")]
use std::time::Duration;

use backup_core::catalog::{Missing, RepositoryName, SyncReport};
use backup_core::config::{Config, Environment, Origin};
use backup_core::customer::{CustomerId, DEFAULT_SERVER, NewCustomer};
use backup_core::error::{ErrorKind, Result};
use backup_core::operations::{BackupRequest, Engine, RestoreRequest, Source, init_repository};
use backup_core::progress::{Cancel, Control};
use backup_core::repository::{BackupType, SnapshotId};
#[cfg(feature = "object-storage")]
use backup_core::service::Problem;
use backup_core::service::{BackupService, Deleted, RunHere};
use backup_core::worker::VerifyReport;
use xtask::restic::Restic;

const PASSWORD: &str = "correct horse";

/// A hosting server whose customers' repositories are in directories of their own.
struct World {
    scratch: tempfile::TempDir,
    service: BackupService,
    engine: Arc<Engine>,
}

impl World {
    async fn new() -> Self {
        let scratch = tempfile::tempdir().unwrap();
        fs::write(scratch.path().join("password"), PASSWORD).unwrap();
        fs::create_dir(scratch.path().join("shops")).unwrap();
        let config = config(&scratch, DEFAULT_SERVER, "shops/{customer}");
        let world = Self {
            service: BackupService::connect(config.clone()).await.unwrap(),
            engine: Arc::new(Engine::new(config, &Cancel::new())),
            scratch,
        };
        for id in [1, 2, 12] {
            fs::create_dir_all(world.site(id)).unwrap();
            fs::write(world.site(id).join("index.php"), format!("<?php // {id}")).unwrap();
            let new = NewCustomer {
                id: Some(customer(id)),
                ..NewCustomer::default()
            };
            world.service.customers().add(&new).await.unwrap();
        }
        world
    }

    /// The same hosting server with another location, and nothing open.
    async fn moved(self, location: &str) -> Self {
        let config = config(&self.scratch, DEFAULT_SERVER, location);
        self.service.close().await;
        Self {
            service: BackupService::connect(config.clone()).await.unwrap(),
            engine: Arc::new(Engine::new(config, &Cancel::new())),
            scratch: self.scratch,
        }
    }

    /// As another process would: nothing is open.
    fn another_engine(&self) -> Arc<Engine> {
        Arc::new(Engine::new(self.engine.config().clone(), &Cancel::new()))
    }

    fn site(&self, id: u32) -> PathBuf {
        let site = format!("customers/customer-{id}/wordpress");
        self.scratch.path().join(site)
    }

    fn repository(&self, id: u32) -> PathBuf {
        self.scratch.path().join(format!("shops/customer-{id}"))
    }

    fn restic(&self, id: u32) -> Restic {
        Restic::new(self.repository(id), PASSWORD).unwrap()
    }

    async fn try_back_up(&self, engine: &Arc<Engine>, id: u32) -> Result<SnapshotId> {
        let request = BackupRequest {
            backup_type: BackupType::Files,
            note: None,
        };
        let made = self
            .service
            .backup_here(engine, customer(id), &request, &Control::default())
            .await?;
        match made {
            RunHere::Done { report, .. } => Ok(report.snapshot_id),
            RunHere::InTheWay(job) => panic!("{job:?}"),
        }
    }

    async fn back_up(&self, id: u32) -> SnapshotId {
        self.try_back_up(&self.engine, id).await.unwrap()
    }

    async fn restore(&self, id: u32, snapshot: SnapshotId) {
        let request = RestoreRequest {
            snapshot,
            source: Source::Manual,
            restore_type: None,
            online: false,
        };
        let restored = self
            .service
            .restore_here(&self.engine, customer(id), &request, &Control::default())
            .await;
        assert!(matches!(restored, Ok(RunHere::Done { .. })), "{restored:?}");
    }

    async fn sync(&self) -> SyncReport {
        let synced = self.service.sync(&self.engine, Missing::Remember).await;
        let mut reports = synced.unwrap();
        assert_eq!(reports.len(), 1);
        let (name, report) = reports.remove(0);
        assert_eq!(name, "manual");
        report
    }

    async fn verify(&self) -> VerifyReport {
        let control = Control::default();
        let verified = self.service.verify(&self.engine, &[], &control).await;
        verified.unwrap()
    }

    async fn shown(&self, id: u32) -> Vec<SnapshotId> {
        let list = self.service.list(customer(id)).await.unwrap();
        list.manual.iter().map(|backup| backup.id).collect()
    }

    async fn pruned(&self) -> Vec<(u32, bool)> {
        let mut pruned = Vec::new();
        for (name, outcome) in self.service.prune(&self.engine).await {
            pruned.push((name.customer().unwrap().get(), outcome.is_ok()));
        }
        pruned
    }
}

fn config(scratch: &tempfile::TempDir, server: &str, location: &str) -> Config {
    let place = scratch.path().display();
    let text = format!(
        "[database]\nurl = 'sqlite://{place}/backup.db'\n\
         [worker]\nserver = '{server}'\nstate_dir = '{place}/state'\n\
         [repositories.manual]\nlocation = '{place}/{location}'\npassword_file = '{place}/password'\n\
         [customers]\nroot = '{place}/customers'\n\
         [site]\nstop = []\nstart = []\nnginx = []\n"
    );
    Config::read(Origin::File("test".into()), &text, &Environment::default()).unwrap()
}

fn customer(id: u32) -> CustomerId {
    CustomerId::new(id).unwrap()
}

fn ids(restic: &Restic) -> Vec<SnapshotId> {
    let snapshots = restic.snapshots().unwrap();
    let id = |snapshot: &serde_json::Value| snapshot["id"].as_str().unwrap().parse().unwrap();
    snapshots.iter().map(id).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn everybodys_backups_are_in_a_repository_of_his_own_which_restic_reads() {
    let world = World::new().await;
    let (first, twelfth) = (world.back_up(1).await, world.back_up(12).await);
    for (id, backup) in [(1, first), (12, twelfth)] {
        let restic = world.restic(id);
        assert_eq!(ids(&restic), [backup]);
        restic.check_read_data().unwrap();
        assert_eq!(world.shown(id).await, [backup]);
    }
    // Nothing is made for whoever has no backup.
    assert_eq!(world.sync().await, SyncReport::default());
    assert!(!world.repository(2).exists());
    assert_ne!(
        world.engine.manual_of(customer(1)).unwrap().id(),
        world.engine.manual_of(customer(12)).unwrap().id()
    );
    let unnamed = world.engine.manual().unwrap_err();
    assert_eq!(unnamed.kind(), ErrorKind::Configuration);

    // What is made elsewhere is taken in for him alone whose tags it has, as anywhere.
    let tags = ["customer-12", "manual", "files", "2026-01-01-000000"];
    let made = world.restic(12).backup([world.site(12)], &tags).unwrap();
    assert_eq!(world.sync().await.added, 1);
    assert!(world.shown(12).await.contains(&made.parse().unwrap()));
    assert_eq!(world.shown(1).await, [first]);

    // Not where another's backups would be: he could not restore it.
    let tags = ["customer-1", "manual", "files", "2026-01-01-000001"];
    world.restic(12).backup([world.site(12)], &tags).unwrap();
    let report = world.sync().await;
    assert_eq!((report.added, report.warnings.len()), (1, 1), "{report:?}");
    let warning = &report.warnings[0];
    assert!(warning.contains("customer 12: 1 new"), "{warning}");
    assert_eq!(world.sync().await, SyncReport::default());
    assert_eq!(world.shown(1).await, [first]);
    assert_eq!(world.shown(12).await.len(), 2);

    fs::remove_file(world.site(1).join("index.php")).unwrap();
    world.restore(1, first).await;
    let index = fs::read_to_string(world.site(1).join("index.php")).unwrap();
    assert_eq!(index, "<?php // 1");
    // What it replaced is his, too.
    assert_eq!(ids(&world.restic(1)).len(), 2);

    let report = world.verify().await;
    assert!(report.failed.is_empty(), "{report:?}");
    let proven: Vec<u32> = report.proven.iter().map(|one| one.customer.get()).collect();
    assert_eq!(proven.len(), 2, "{proven:?}");

    let deleted = world.service.delete_backup(customer(12), &twelfth).await;
    assert!(matches!(deleted, Ok(Deleted::Done)));
    world.sync().await;
    assert_eq!(ids(&world.restic(12)).len(), 2);
    assert_eq!(world.pruned().await, [(1, true), (12, true)]);
    for id in [1, 12] {
        let repository = world.engine.manual_of(customer(id)).unwrap();
        assert_eq!(repository.check(true).unwrap().errors, [""; 0]);
        world.restic(id).check_read_data().unwrap();
    }
    // The sixth pushes the first out of his own.
    for number in 0..6 {
        fs::write(world.site(2).join("counter"), number.to_string()).unwrap();
        world.back_up(2).await;
    }
    assert_eq!(ids(&world.restic(2)).len(), 5);
    assert_eq!(ids(&world.restic(1)).len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_that_is_gone_or_damaged_concerns_its_customer_alone() {
    let world = World::new().await;
    let mut backups = Vec::new();
    for id in [1, 2, 12] {
        backups.push(world.back_up(id).await);
    }
    let aside = world.scratch.path().join("aside");
    fs::rename(world.repository(12), &aside).unwrap();
    fs::write(world.repository(2).join("config"), "nonsense").unwrap();
    let tags = ["customer-1", "manual", "files", "2026-01-01-000000"];
    world.restic(1).backup([world.site(1)], &tags).unwrap();

    let report = world.sync().await;
    assert_eq!((report.added, report.removed, report.missing), (1, 0, 0));
    let [of_second, of_twelfth] = &report.failures[..] else {
        panic!("{report:?}");
    };
    assert!(of_second.contains("customer 2 "), "{of_second}");
    assert!(
        of_twelfth.contains("customer 12 ") && of_twelfth.contains("is gone"),
        "{of_twelfth}"
    );
    // What it held is shown until somebody says that it is gone for good.
    assert_eq!(world.shown(12).await, [backups[2]]);
    assert_eq!(world.pruned().await, [(1, true), (2, false), (12, false)]);
    world.back_up(1).await;

    // Neither who had it open nor who comes new to it makes another in its place.
    for engine in [&world.engine, &world.another_engine()] {
        let error = world.try_back_up(engine, 12).await.unwrap_err();
        let said = error.chain();
        assert!(said.contains("was there before and is gone"), "{said}");
        assert!(!world.repository(12).exists());
        let error = world.try_back_up(engine, 2).await.unwrap_err();
        assert!(error.chain().contains("customer 2"), "{}", error.chain());
    }
    let report = world.verify().await;
    let of_twelfth = report.failed.iter().find(|one| one.customer.get() == 12);
    let said = &of_twelfth.unwrap().error;
    assert!(
        said.contains("bring it back") && !said.contains("`init"),
        "{said}"
    );
    let proven: Vec<u32> = report.proven.iter().map(|one| one.customer.get()).collect();
    let mut failed: Vec<u32> = report.failed.iter().map(|one| one.customer.get()).collect();
    failed.sort_unstable();
    assert_eq!((proven, failed), (vec![1], vec![2, 12]), "{report:?}");

    // Brought back, it is what it was.
    fs::rename(&aside, world.repository(12)).unwrap();
    assert_eq!(world.sync().await.failures.len(), 1);
    let again = world.back_up(12).await;
    assert_eq!(ids(&world.restic(12)).len(), 2);
    assert!(world.shown(12).await.contains(&again));

    // Gone for good: an operator says so, and what it held is shown no longer.
    fs::remove_dir_all(world.repository(12)).unwrap();
    let service = &world.service;
    let refused = service.make_repository(&world.engine, customer(12), false);
    assert_eq!(refused.await.unwrap_err().kind(), ErrorKind::NotFound);
    let other = world.another_engine();
    let made = service.make_repository(&other, customer(12), true);
    assert!(made.await.unwrap());
    assert_eq!(world.shown(12).await, []);
    assert_eq!(world.shown(1).await.len(), 3);
    // Who had the former one open finds the new one.
    let new = world.back_up(12).await;
    assert_eq!(ids(&world.restic(12)), [new]);
    world.restic(12).check_read_data().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_makes_no_repository_on_another_disk_nor_beside_one_on_another_server() {
    let world = World::new().await;
    let service = &world.service;
    let shops = world.scratch.path().join("shops");
    let aside = world.scratch.path().join("aside");
    let refused = async |id| {
        let error = world.try_back_up(&world.engine, id).await.unwrap_err();
        let said = error.chain();
        let is_named = said.contains(&shops.display().to_string());
        assert!(is_named && said.contains("mount it"), "{said}");
    };
    fs::remove_dir(&shops).unwrap();
    refused(1).await;
    assert!(!shops.exists());
    let made = service.make_repository(&world.engine, customer(1), false);
    assert!(made.await.unwrap());
    let backup = world.back_up(1).await;
    world.back_up(2).await;
    // Of a disk that is not mounted the directory may be there.
    fs::rename(&shops, &aside).unwrap();
    fs::create_dir(&shops).unwrap();
    refused(12).await;
    assert_eq!(fs::read_dir(&shops).unwrap().count(), 0);
    fs::remove_dir(&shops).unwrap();
    fs::rename(&aside, &shops).unwrap();
    world.back_up(12).await;

    let south = config(&world.scratch, "south", "south/{customer}");
    let south = Arc::new(Engine::new(south, &Cancel::new()));
    let made = service.make_repository(&south, customer(1), false).await;
    let said = made.unwrap_err().chain();
    assert!(
        said.contains("the server default") && said.contains("`init 1`"),
        "{said}"
    );
    assert!(!world.scratch.path().join("south").exists());
    let made = service.make_repository(&south, customer(1), true);
    assert!(made.await.unwrap());
    assert_eq!(world.shown(1).await, [backup]);
}

#[cfg(feature = "object-storage")]
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_away_is_no_result_of_any_proof() {
    let world = World::new().await;
    for id in [1, 2, 12] {
        world.back_up(id).await;
    }
    let key = world.scratch.path().join("key");
    fs::write(&key, "AWS_ACCESS_KEY_ID=a\nAWS_SECRET_ACCESS_KEY=b\n").unwrap();
    let mut config = world.engine.config().clone();
    let manual = &mut config.repositories.manual;
    // Nobody listens there.
    manual.location = "s3:http://127.0.0.1:1/shops/{customer}".to_owned();
    manual.s3_key_file = Some(key);
    manual.retry_for = Duration::from_millis(1);
    let away = Arc::new(Engine::new(config, &Cancel::new()));
    let control = Control::default();
    let report = world.service.verify(&away, &[], &control).await.unwrap();
    assert_eq!((report.proven.len(), report.failed.len()), (0, 3));
    let status = world.service.status(None).await.unwrap();
    for customer in &status.customers {
        let problems = &customer.problems;
        assert!(!problems.contains(&Problem::NotProven), "{problems:?}");
    }
    assert_eq!(world.verify().await.proven.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_configured_no_longer_is_shown_no_longer_whichever_way_it_goes() {
    let world = World::new().await.moved("all").await;
    let manual = &world.engine.config().repositories.manual;
    init_repository(manual, &Cancel::new()).unwrap();
    let (shared, of_another) = (world.back_up(1).await, world.back_up(2).await);

    let world = world.moved("shops/{customer}").await;
    assert_eq!(world.sync().await, SyncReport::default());
    assert_eq!(world.shown(2).await, [of_another]);
    let own = world.back_up(1).await;
    assert_eq!(world.shown(1).await, [own]);
    assert_eq!(world.shown(2).await, []);

    let world = world.moved("all").await;
    assert_eq!(world.sync().await.added, 2);
    assert_eq!(world.shown(1).await, [shared]);
    assert_eq!(world.shown(2).await, [of_another]);

    let world = world.moved("shops/{customer}").await;
    assert_eq!(world.sync().await.added, 1);
    assert_eq!(world.shown(1).await, [own]);
    let names = world.service.repositories(&world.engine).await.unwrap();
    let of = |id| RepositoryName::ManualOf(customer(id));
    assert_eq!(names, [of(1), of(2), of(12)]);
}
