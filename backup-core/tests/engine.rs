//! What the procedures promise to a program that runs many of them: who has the last word, and how each one is told apart.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use backup_core::config::{Config, Environment};
use backup_core::customer::{Customer, CustomerStore};
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::operations::{
    BackupReport, BackupRequest, Engine, RestoreReport, RestoreRequest, Source, init_repository,
};
use backup_core::progress::{Cancel, Control, Gate, Monitor};
use backup_core::repository::{BackupType, SnapshotId};
use backup_core::store::Store;
use xtask::testbed::{self, TestBed};
use xtask::tree::TreeImage;

/// One customer, and an engine for his hosting server.
struct World {
    engine: Engine,
    customer: Customer,
    there: testbed::Customer,
    bed: TestBed,
}

impl World {
    /// With these `BACKUP__…` over the test bed's configuration.
    fn new(settings: &[(&str, &str)]) -> Self {
        let bed = TestBed::start().unwrap();
        let there = bed.add_customer(7).unwrap();
        bed.sql_as(
            &there,
            "CREATE TABLE orders (id INT PRIMARY KEY); INSERT INTO orders VALUES (1)",
        )
        .unwrap();
        let environment: Environment = settings
            .iter()
            .copied()
            .chain([("DB_PASSWORD", bed.platform_password())])
            .collect();
        let config = Config::load(Some(&bed.config_file()), &environment).unwrap();
        init_repository(&config.repositories.manual, &Cancel::new()).unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let customer = runtime.block_on(async {
            let store = Store::connect(&config).await.unwrap();
            let customers = CustomerStore::new(&store, &config);
            customers.get("7".parse().unwrap()).await.unwrap()
        });
        Self {
            engine: Engine::new(config, &Cancel::new()),
            customer,
            there,
            bed,
        }
    }

    fn back_up(&self, control: &Control) -> Result<BackupReport> {
        let request = BackupRequest {
            backup_type: BackupType::Both,
            note: None,
        };
        self.engine.backup(&self.customer, &request, control)
    }

    fn restore(
        &self,
        snapshot: SnapshotId,
        restore_type: BackupType,
        control: &Control,
    ) -> Result<RestoreReport> {
        let request = RestoreRequest {
            snapshot,
            source: Source::Manual,
            restore_type: Some(restore_type),
            online: false,
        };
        self.engine.restore(&self.customer, &request, control)
    }

    /// The site is not what the backup has.
    fn change(&self) {
        std::fs::write(self.there.site().join("new"), "since the backup").unwrap();
        self.bed
            .sql_as(&self.there, "INSERT INTO orders VALUES (2)")
            .unwrap();
    }

    fn evidence(&self) -> Evidence {
        Evidence {
            files: TreeImage::of(&self.there.site()).unwrap(),
            database: self.bed.dump(&self.there.database).unwrap(),
        }
    }

    #[track_caller]
    fn assert_unchanged(&self, before: &Evidence) {
        let now = self.evidence();
        let differences = before.files.differences(&now.files);
        assert!(differences.is_empty(), "{differences:?}");
        assert_eq!(before.database, now.database);
        assert!(!self.there.directory.join(".maintenance").exists());
        assert_eq!(
            self.bed
                .mariadb()
                .sql("SHOW DATABASES LIKE 'customer\\_%'")
                .unwrap(),
            "customer_7\n"
        );
        assert!(names(&self.bed.manual_repository().join("locks")).is_empty());
    }
}

struct Evidence {
    files: TreeImage,
    database: Vec<u8>,
}

fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.collect()
}

/// Writes down what it is asked.
#[derive(Default)]
struct Asked {
    refuses: bool,
    asked: Mutex<Vec<Option<String>>>,
}

impl Asked {
    fn gate(refuses: bool) -> (Arc<Self>, Control) {
        let gate = Arc::new(Self {
            refuses,
            ..Self::default()
        });
        let control = Control {
            gate: Some(Arc::clone(&gate) as _),
            ..Control::default()
        };
        (gate, control)
    }

    fn take(&self) -> Vec<Option<String>> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }
}

impl Gate for Asked {
    fn before_commit(&self, snapshot: Option<&str>) -> Result<()> {
        self.asked.lock().unwrap().push(snapshot.map(str::to_owned));
        match self.refuses {
            true => Err(Error::new(ErrorKind::Busy, "the lease was lost")),
            false => Ok(()),
        }
    }
}

#[test]
fn a_gate_that_refuses_leaves_no_backup_and_the_site_as_it_was() {
    // Tables are exchanged after the files, or before them where the database is one of the site's containers.
    for exec in ["[]", "[\"env\"]"] {
        let world = World::new(&[("BACKUP__CUSTOMER_DATABASE__EXEC", exec)]);
        let (gate, control) = Asked::gate(false);
        let made = world.back_up(&control).unwrap();
        assert_eq!(gate.take(), [Some(made.snapshot_id.to_string())]);

        let (gate, refusing) = Asked::gate(true);
        let error = world.back_up(&refusing).unwrap_err();
        assert_eq!(error.chain(), "the lease was lost");
        assert_eq!(gate.take().len(), 1);
        assert_eq!(
            names(&world.bed.manual_repository().join("snapshots")),
            [made.snapshot_id.to_string()]
        );

        world.change();
        let before = world.evidence();
        let types = [BackupType::Files, BackupType::Db, BackupType::Both];
        for restore_type in types {
            let refused = world.restore(made.snapshot_id, restore_type, &refusing);
            assert_eq!(refused.unwrap_err().chain(), "the lease was lost");
            assert_eq!(gate.take(), [None], "{restore_type}");
            world.assert_unchanged(&before);
        }
        let (gate, control) = Asked::gate(false);
        for restore_type in types {
            world
                .restore(made.snapshot_id, restore_type, &control)
                .unwrap();
            assert_eq!(gate.take(), [None], "{restore_type}");
        }
        assert!(!world.there.site().join("new").exists());
    }
}

/// Counts files, phase or no phase.
#[derive(Default)]
struct Files(AtomicU64);

impl Monitor for Files {
    fn files_done(&self, files: u64) {
        self.0.fetch_add(files, Ordering::Relaxed);
    }
}

#[test]
fn files_are_told_as_they_are_done() {
    let world = World::new(&[]);
    let files = Arc::new(Files::default());
    let control = Control {
        monitor: Arc::clone(&files) as _,
        ..Control::default()
    };
    let made = world.back_up(&control).unwrap();
    assert_eq!(files.0.swap(0, Ordering::Relaxed), made.files);
    let restored = world
        .restore(made.snapshot_id, BackupType::Both, &control)
        .unwrap();
    assert_eq!(files.0.load(Ordering::Relaxed), restored.files);
}

#[test]
fn what_is_forgotten_beyond_the_retention_is_told() {
    let world = World::new(&[("BACKUP__RETENTION__MANUAL", "2")]);
    let mut made = Vec::new();
    for _ in 0..4 {
        made.push(world.back_up(&Control::default()).unwrap().snapshot_id);
    }
    // A backup forgets nothing by itself.
    let snapshots = world.bed.manual_repository().join("snapshots");
    assert_eq!(names(&snapshots).len(), made.len());
    let told = world
        .engine
        .forget_beyond_retention(world.customer.id, made[3])
        .unwrap();
    assert_eq!(told, made[..2]);
    assert_eq!(names(&snapshots).len(), 2);
    let again = world
        .engine
        .forget_beyond_retention(world.customer.id, made[3])
        .unwrap();
    assert!(again.is_empty());
}

#[test]
fn a_restore_that_cannot_be_undone_asks_for_an_operator() {
    let world = World::new(&[
        ("BACKUP__SITE__STOP", "[\"true\"]"),
        ("BACKUP__SITE__START", "[\"false\"]"),
    ]);
    let made = world.back_up(&Control::default()).unwrap();
    let error = world
        .restore(made.snapshot_id, BackupType::Files, &Control::default())
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Stuck);
    assert!(error.to_string().contains("operator"), "{error}");
    assert!(error.customer_message().contains("our team has been told"));
}
