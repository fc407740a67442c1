//! What the procedures promise to a program that runs many of them: who has the last word, and how each one is told apart.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use backup_core::config::{Config, Environment};
use backup_core::customer::{Customer, CustomerId, CustomerStore};
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::operations::{
    BackupReport, BackupRequest, Engine, Forgetting, RestoreReport, RestoreRequest, Source,
    init_repository,
};
use backup_core::progress::{Cancel, Control, Gate, Monitor, Phase};
use backup_core::repository::{BackupType, Origin, SnapshotId};
use backup_core::store::Store;
use xtask::proxy::Proxy;
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
        let customer = customer(&config, 7);
        Self {
            engine: Engine::new(config, &Cancel::new()),
            customer,
            there,
            bed,
        }
    }

    fn back_up(&self, control: &Control) -> Result<BackupReport> {
        back_up(&self.engine, &self.customer, control)
    }

    /// Another engine, which reaches the repository through a proxy.
    fn engine_through(&self, proxy: &Proxy) -> Engine {
        let sshd = self.bed.sshd();
        let known_hosts = self.bed.scratch().join("known_hosts");
        let line = format!("[127.0.0.1]:{} {}", proxy.port(), sshd.host_key().unwrap());
        std::fs::write(&known_hosts, line).unwrap();
        let location = sshd.location_at(proxy.port(), &self.bed.manual_repository());
        let environment: Environment = [
            ("DB_PASSWORD", self.bed.platform_password()),
            ("BACKUP__REPOSITORIES__MANUAL__LOCATION", &location),
            (
                "BACKUP__REPOSITORIES__MANUAL__KNOWN_HOSTS",
                known_hosts.to_str().unwrap(),
            ),
        ]
        .into_iter()
        .collect();
        let config = Config::load(Some(&self.bed.config_file()), &environment).unwrap();
        Engine::new(config, &Cancel::new())
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
                .sql("SHOW DATABASES LIKE 'customer\\_7%'")
                .unwrap(),
            "customer_7\n"
        );
        assert!(names(&self.bed.manual_repository().join("locks")).is_empty());
    }
}

fn customer(config: &Config, id: u32) -> Customer {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let store = Store::connect(config).await.unwrap();
        let customers = CustomerStore::new(&store, config);
        customers.get(CustomerId::new(id).unwrap()).await.unwrap()
    })
}

fn back_up(engine: &Engine, customer: &Customer, control: &Control) -> Result<BackupReport> {
    let request = BackupRequest {
        backup_type: BackupType::Both,
        note: None,
    };
    engine.backup(customer, &request, control)
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

/// Counts files, whatever the phase; not those that are kept of what a restore replaced.
#[derive(Default)]
struct Files(AtomicU64, AtomicBool);

impl Monitor for Files {
    fn phase(&self, phase: Phase) {
        self.1.store(phase == Phase::Keeping, Ordering::Relaxed);
    }

    fn files_done(&self, files: u64) {
        if !self.1.load(Ordering::Relaxed) {
            self.0.fetch_add(files, Ordering::Relaxed);
        }
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
fn a_backup_of_more_files_than_are_restored_says_so_when_it_is_made() {
    let world = World::new(&[("BACKUP__RESTORE__MAX_FILES", "3")]);
    let (site, control) = (world.there.site(), Control::default());
    let many = site.join("many");
    std::fs::create_dir(&many).unwrap();
    for name in ["a", "b", "c"] {
        std::os::unix::fs::symlink("nowhere", many.join(name)).unwrap();
    }
    let restore =
        |made: &BackupReport| world.restore(made.snapshot_id, BackupType::Files, &control);
    let made = world.back_up(&control).unwrap();
    let told = made.warnings.join("\n");
    assert!(told.contains("restore.max_files"), "{told}");
    let error = restore(&made).unwrap_err();
    assert!(error.to_string().contains("restore.max_files"), "{error}");
    std::fs::remove_dir_all(&world.there.directory).unwrap();
    std::fs::create_dir_all(&site).unwrap();
    std::fs::write(site.join("few"), "few").unwrap();
    let made = world.back_up(&control).unwrap();
    assert_eq!(made.warnings, [] as [String; 0]);
    restore(&made).unwrap();
}

#[test]
fn what_is_beyond_the_retention_is_told_and_forgotten_if_it_is_his() {
    let world = World::new(&[("BACKUP__RETENTION__MANUAL", "2")]);
    let mut made = Vec::new();
    for _ in 0..4 {
        made.push(world.back_up(&Control::default()).unwrap().snapshot_id);
    }
    // A backup forgets nothing by itself.
    let snapshots = world.bed.manual_repository().join("snapshots");
    assert_eq!(names(&snapshots).len(), made.len());
    let (engine, customer) = (&world.engine, world.customer.id);
    let excess = engine
        .beyond_retention(customer, Origin::Manual, made[3])
        .unwrap();
    assert_eq!(excess, made[..2]);
    // Of two, and the one that was just made is one of them.
    let excess_after_the_first = engine
        .beyond_retention(customer, Origin::Manual, made[0])
        .unwrap();
    assert_eq!(excess_after_the_first, made[1..3]);
    let another = CustomerId::new(customer.get() + 1).unwrap();
    assert_eq!(
        engine.forget(another, Origin::Manual, &made[0]).unwrap(),
        Forgetting::NotHis
    );
    assert_eq!(names(&snapshots).len(), made.len());
    for id in &excess {
        assert_eq!(
            engine.forget(customer, Origin::Manual, id).unwrap(),
            Forgetting::Done
        );
        assert_eq!(
            engine.forget(customer, Origin::Manual, id).unwrap(),
            Forgetting::Missing
        );
    }
    assert_eq!(names(&snapshots).len(), 2);
    assert_eq!(
        engine
            .beyond_retention(customer, Origin::Manual, made[3])
            .unwrap(),
        []
    );
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

/// Counts bytes of all phases.
#[derive(Default)]
struct Bytes(AtomicU64);

impl Monitor for Bytes {
    fn bytes_done(&self, bytes: u64) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < deadline, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A large file of noise in a customer's site.
fn add_noise(customer: &testbed::Customer) {
    let mut noise = vec![0; 40 << 20];
    rand::fill(&mut noise[..]);
    std::fs::write(customer.site().join("noise"), noise).unwrap();
}

#[test]
fn one_that_is_cancelled_waits_out_no_outage_and_the_others_do() {
    let world = World::new(&[]);
    let eight = world.bed.add_customer(8).unwrap();
    let customer_8 = customer(world.engine.config(), 8);
    add_noise(&world.there);
    let made = world.back_up(&Control::default()).unwrap();
    let proxy = Proxy::start(world.bed.sshd().port()).unwrap();
    let engine = world.engine_through(&proxy);
    for is_restore in [false, true] {
        add_noise(&world.there);
        add_noise(&eight);
        let before = world.evidence();
        let snapshots = engine.manual().unwrap().snapshot_ids().unwrap();
        let watched = || {
            let bytes = Arc::new(Bytes::default());
            let control = Control {
                monitor: Arc::clone(&bytes) as _,
                ..Control::default()
            };
            (bytes, control)
        };
        let ((bytes_7, control_7), (bytes_8, control_8)) = (watched(), watched());
        proxy.set_bytes_per_second(Some(8 << 20));
        let survivor = std::thread::scope(|scope| {
            let cancelled = scope.spawn(|| {
                if is_restore {
                    let request = RestoreRequest {
                        snapshot: made.snapshot_id,
                        source: Source::Manual,
                        restore_type: None,
                        online: false,
                    };
                    let restored = engine.restore(&world.customer, &request, &control_7);
                    restored.map(drop)
                } else {
                    back_up(&engine, &world.customer, &control_7).map(drop)
                }
            });
            let survivor = scope.spawn(|| back_up(&engine, &customer_8, &control_8));
            wait_until("both are on their way", || {
                let done = |bytes: &Bytes| bytes.0.load(Ordering::Relaxed);
                done(&bytes_7) > 4 << 20 && done(&bytes_8) > 4 << 20
            });
            proxy.refuse(true);
            proxy.cut();
            control_7.cancel.cancel();
            let since = Instant::now();
            let error = cancelled.join().unwrap().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Cancelled, "{error:?}");
            // Far less than the five minutes that an outage is waited out.
            assert!(since.elapsed() < Duration::from_secs(60), "{error:?}");
            assert!(!survivor.is_finished());
            proxy.set_bytes_per_second(None);
            proxy.refuse(false);
            survivor.join().unwrap().unwrap()
        });
        let mut expected = snapshots;
        expected.insert(survivor.snapshot_id);
        assert_eq!(engine.manual().unwrap().snapshot_ids().unwrap(), expected);
        let locks = world.bed.manual_repository().join("locks");
        wait_until("no lock is left", || names(&locks).is_empty());
        world.assert_unchanged(&before);
    }
    drop(engine);
    world.bed.restic().unwrap().check_read_data().unwrap();
}

#[test]
fn one_that_needs_the_repository_first_can_be_cancelled_while_it_is_away() {
    let world = World::new(&[]);
    let proxy = Proxy::start(world.bed.sshd().port()).unwrap();
    let engine = world.engine_through(&proxy);
    proxy.refuse(true);
    let controls = [Control::default(), Control::default()];
    std::thread::scope(|scope| {
        let [first, second] = &controls;
        let run = |control| back_up(&engine, &world.customer, control);
        let first_run = scope.spawn(move || run(first));
        let second_run = scope.spawn(move || run(second));
        wait_until("somebody tries to connect", || {
            proxy.connections_accepted() > 0
        });
        let since = Instant::now();
        first.cancel.cancel();
        let error = first_run.join().unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Cancelled, "{error:?}");
        assert!(since.elapsed() < Duration::from_secs(60), "{error:?}");
        assert!(!second_run.is_finished());
        proxy.refuse(false);
        second_run.join().unwrap().unwrap();
    });
    assert_eq!(engine.manual().unwrap().snapshot_ids().unwrap().len(), 1);
}
