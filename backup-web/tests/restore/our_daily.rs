//! The daily backup that the program makes itself: to customers it is no other than the platform's, and what is wrong with one of them is his alone.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{Mode, OFlags};
use rustix::process::Signal;
use serde_json::{Value, json};
use xtask::proxy::Proxy;
use xtask::restic::Restic;
use xtask::testbed::Customer;
use xtask::tree::{TreeImage, assert_same_tree, build_nasty_tree};

use crate::world::{Gate, Outcome, World, chown, eventually, names, signal};

const MIB: u64 = 1 << 20;

/// As where the daily backups are ours.
fn command(world: &World, line: &str) -> Command {
    let mut command = world.command(line);
    command
        .env("BACKUP__DAILY__KEEP", "30")
        .env("BACKUP__DAILY__WAIT", "60s");
    command
}

fn run(world: &World, line: &str) -> Outcome {
    world.run_command(&mut command(world, line))
}

fn restic(world: &World) -> Restic {
    world.bed.daily_restic().unwrap()
}

fn dump_file(world: &World, database: &str) -> PathBuf {
    world.bed.daily_dumps().join(format!("{database}.sql"))
}

/// The ids of the daily snapshots, oldest first.
fn snapshots(world: &World) -> Vec<String> {
    let found = restic(world).snapshots().unwrap();
    let ids = found.iter().map(|one| one["id"].as_str().unwrap());
    ids.map(str::to_owned).collect()
}

fn id(document: &Value) -> String {
    document["snapshot_id"].as_str().expect("no id").to_owned()
}

/// What failed, as customer and part.
fn failed(document: &Value) -> BTreeSet<(Option<u64>, String)> {
    let failures = document["failed"].as_array().expect("no list of failures");
    let one = |failure: &Value| {
        assert!(!failure["error"].as_str().unwrap().is_empty());
        let part = failure["part"].as_str().unwrap().to_owned();
        (failure["customer"].as_u64(), part)
    };
    failures.iter().map(one).collect()
}

#[track_caller]
fn assert_failed(outcome: &Outcome, expected: &[(u64, &str)]) {
    assert_eq!(outcome.status, Some(1), "{outcome:?}");
    let expected: BTreeSet<_> = expected
        .iter()
        .map(|(id, part)| (Some(*id), (*part).to_owned()))
        .collect();
    assert_eq!(failed(&outcome.document), expected, "{outcome:?}");
}

/// Sound to the stock restic, and nobody holds it.
#[track_caller]
fn assert_sound(world: &World) {
    restic(world).check_read_data().unwrap();
    let mut locks = names(&world.bed.daily_repository().join("locks"));
    // One that was being written when its writer was killed locks nothing.
    locks.retain(|lock| lock.file_name().is_some_and(|name| name.len() == 64));
    assert_eq!(locks, [] as [PathBuf; 0]);
}

/// What the newest daily backup holds of a customer, as he sees it.
#[track_caller]
fn newest_type(world: &World, customer: u32) -> Value {
    run(world, &format!("list {customer}")).good()["daily"][0]["backup_type"].clone()
}

/// The paths in a snapshot.
fn listing(world: &World, snapshot: &str) -> BTreeSet<PathBuf> {
    let nodes = restic(world).list(snapshot).unwrap();
    let path = |node: &Value| PathBuf::from(node["path"].as_str().unwrap());
    nodes.iter().map(path).collect()
}

fn wreck(world: &World, customer: &Customer) {
    fs::remove_dir_all(customer.site().join("wp-content")).unwrap();
    fs::write(customer.site().join("marker"), "defaced").unwrap();
    world.sql_as(
        customer,
        "DROP TABLE order_lines; DROP PROCEDURE count_orders; CREATE TABLE ransom_note (text TEXT)",
    );
}

struct Mounted(PathBuf);

impl Mounted {
    /// Root may read everything but what the kernel itself refuses to read.
    fn unreadable(file: &Path) -> Self {
        let mut mount = Command::new("mount");
        mount
            .args(["--bind", "/sys/bus/cpu/drivers_probe"])
            .arg(file);
        assert!(mount.status().unwrap().success());
        Self(file.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("-l").arg(&self.0).status();
        assert!(unmounted.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}

#[test]
fn customers_see_no_difference_between_restics_daily_backups_and_ours() {
    let world = World::new(&[1, 12, 123]);
    for id in [1, 12] {
        build_nasty_tree(&world.customer(id).site().join("nasty")).unwrap();
        chown(&world.customer(id).site(), 33);
    }
    let before = world.evidence();
    let first = run(&world, "daily").good();
    assert_eq!(
        (&first["customers"], &first["failed"]),
        (&json!(3), &json!([])),
        "{first}"
    );
    let ours = id(&first);
    assert_eq!(snapshots(&world), [ours.as_str()]);
    assert_sound(&world);

    // Stock restic reads it: as a whole, and each dump.
    let restic = restic(&world);
    let target = world.bed.scratch().join("target");
    restic.restore(&ours, &target).unwrap();
    for customer in &world.customers {
        let restored = target.join(customer.directory.strip_prefix("/").unwrap());
        assert_same_tree(customer.site(), restored.join("wordpress"));
        let compose = "docker-compose.yml";
        assert_eq!(
            fs::read(customer.directory.join(compose)).unwrap(),
            fs::read(restored.join(compose)).unwrap()
        );
        for excluded in ["mysql", "redis", "volumes/db", "logs"] {
            assert!(!restored.join(excluded).exists(), "{excluded}");
        }
    }
    let databases = [
        "customer_1",
        "customer_12",
        "customer_123",
        "shophosting_db",
    ];
    for database in databases {
        let file = dump_file(&world, database);
        let dump = restic.dump(&ours, file.to_str().unwrap()).unwrap();
        assert!(
            dump.trim_ascii_end().ends_with(b"-- Dump completed"),
            "{database}"
        );
        let restored = target.join(file.strip_prefix("/").unwrap());
        assert!(fs::read(restored).unwrap() == dump, "{database}");
        fs::write(file, dump).unwrap();
    }

    // The platform's script saves the same; what is unchanged since ours it does not read again.
    let directories = [world.bed.daily_dumps(), world.bed.customers_root()];
    let excludes: Vec<String> = [
        "mysql",
        "redis",
        "volumes/db",
        "logs",
        ".shophosting-backup",
    ]
    .map(|name| format!("--exclude={name}"))
    .into();
    let excludes: Vec<&str> = excludes.iter().map(String::as_str).collect();
    let theirs = restic
        .backup_with(&directories, &["daily", "2026-01-31"], &excludes)
        .unwrap();
    let described = restic.snapshots().unwrap();
    let of = |id: &str| described.iter().find(|one| one["id"] == id).unwrap();
    assert_eq!(of(&theirs)["parent"], ours.as_str());
    assert_eq!(of(&ours)["hostname"], of(&theirs)["hostname"]);
    let paths = |id: &str| {
        let paths = of(id)["paths"].as_array().unwrap();
        paths.iter().map(Value::to_string).collect::<BTreeSet<_>>()
    };
    assert_eq!(paths(&ours), paths(&theirs));
    assert_eq!(of(&ours)["tags"][1], "daily");
    let paths_of_ours = listing(&world, &ours);
    assert_eq!(paths_of_ours, listing(&world, &theirs));

    // One line each in everybody's list, alike but for id and time.
    run(&world, "sync").good();
    for customer in [1, 12, 123] {
        let list = run(&world, &format!("list {customer}")).good();
        let entries = list["daily"].as_array().unwrap();
        assert_eq!(entries.len(), 2, "{list}");
        for entry in entries {
            let mut alike = entry.clone();
            alike["id"] = entries[0]["id"].clone();
            alike["time"] = entries[0]["time"].clone();
            assert_eq!(alike, entries[0]);
            assert_eq!(entry["backup_type"], "both");
            let size = fs::metadata(dump_file(&world, &format!("customer_{customer}")));
            assert_eq!(entry["database_bytes"], size.unwrap().len());
        }
    }

    // And from either everything comes back.
    let customer = world.customer(12);
    let comes_back_from = |snapshot: &str, parts: &[&str]| {
        wreck(&world, customer);
        let wrecked = world.evidence();
        for part in parts {
            let line = format!("restore 12 {snapshot} --source daily --type {part} --yes");
            run(&world, &line).good();
        }
        wrecked.assert_others_same(&world.evidence(), customer);
        world.assert_unchanged(&before);
    };
    comes_back_from(&ours, &["db", "files"]);
    comes_back_from(&theirs, &["files", "db"]);

    // Ours again, with theirs as its parent; of a day the newest stays.
    let last = id(&run(&world, "daily").good());
    assert_eq!(snapshots(&world), [last.as_str()]);
    let described = restic.snapshots().unwrap();
    assert_eq!(described[0]["parent"], theirs.as_str());
    assert_eq!(paths_of_ours, listing(&world, &last));
    comes_back_from(&last, &["both"]);
    assert_sound(&world);
}

#[test]
fn what_is_wrong_with_one_customer_is_his_alone() {
    let world = World::new(&[1, 12, 123, 1234]);
    let everything = run(&world, "daily").good();
    assert_eq!(everything["customers"], 4);

    // His dump breaks off in the middle, at a view of what is gone.
    world.sql_as(
        world.customer(12),
        "CREATE TABLE gone (id INT); CREATE VIEW broken AS SELECT id FROM gone; DROP TABLE gone",
    );
    // One of his files cannot be read.
    let file = world.customer(123).site().join("wp-content/uploads/2.jpg");
    let unreadable = Mounted::unreadable(&file);
    // His database does not go on, and an event of his would hang the dump program for ever.
    let lock = world
        .bed
        .mariadb()
        .lock_table("customer_1234.orders")
        .unwrap();
    let mut hurried = command(&world, "daily");
    hurried.env("BACKUP__CUSTOMER_DATABASE__DUMP_TIMEOUT", "6s");
    let outcome = world.run_command(&mut hurried);
    assert_failed(
        &outcome,
        &[(12, "database"), (123, "files"), (1234, "database")],
    );
    assert_eq!(outcome.document["customers"], 1);
    drop(lock);
    let made = id(&outcome.document);
    assert_eq!(snapshots(&world).last(), Some(&made));
    assert_sound(&world);

    // What of him could not be saved is not there at all, and what could is whole.
    let paths = listing(&world, &made);
    for (customer, has_dump, has_files) in [
        (1, true, true),
        (12, false, true),
        (123, true, false),
        (1234, false, true),
    ] {
        let customer = world.customer(customer);
        assert_eq!(
            paths.contains(&dump_file(&world, &customer.database)),
            has_dump
        );
        let saved = paths
            .iter()
            .filter(|path| path.starts_with(&customer.directory));
        assert_eq!(saved.count() > 10, has_files, "{}", customer.id);
        assert_eq!(paths.contains(&customer.directory), has_files);
    }
    let types = [1, 12, 123, 1234].map(|customer| newest_type(&world, customer));
    assert_eq!(types, ["both", "files", "db", "files"]);
    let target = world.bed.scratch().join("target");
    restic(&world).restore(&made, &target).unwrap();
    for whole in [1, 12, 1234] {
        let site = world.customer(whole).site();
        assert_same_tree(&site, target.join(site.strip_prefix("/").unwrap()));
    }
    drop(unreadable);

    // An event that the dump programs would look at for ever is said at once.
    world.sql_as(world.customer(12), "DROP VIEW broken");
    world.sql_as(
        world.customer(1),
        "CREATE EVENT hang ON SCHEDULE EVERY 1 DAY DO SET @a = ';;'",
    );
    // A directory that goes too deep is as one that cannot be read.
    let deep = world.customer(12).site().join("deep");
    fs::create_dir(&deep).unwrap();
    let mut bottom = fs::File::open(&deep).unwrap();
    for _ in 0..4200 {
        rustix::fs::mkdirat(&bottom, "d", Mode::RWXU).unwrap();
        let below = rustix::fs::openat(&bottom, "d", OFlags::DIRECTORY, Mode::empty()).unwrap();
        bottom = below.into();
    }
    drop(bottom);
    let outcome = run(&world, "daily");
    assert_failed(&outcome, &[(1, "database"), (12, "files")]);
    assert_eq!(outcome.document["customers"], 2);
    let types = [1, 12, 123, 1234].map(|customer| newest_type(&world, customer));
    assert_eq!(types, ["files", "db", "both", "both"]);

    world.sql_as(world.customer(1), "DROP EVENT hang");
    assert!(
        Command::new("rm")
            .arg("-rf")
            .arg(&deep)
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(run(&world, "daily").good()["customers"], 4);
    assert_sound(&world);
}

#[test]
fn a_file_without_end_costs_its_owner_his_files_and_the_others_nothing() {
    let world = World::new(&[1, 12, 123]);
    let endless = world.customer(12).site().join("wp-content/endless");
    fs::File::create(&endless)
        .and_then(|file| file.set_len(8 << 40))
        .unwrap();
    let mut daily = command(&world, "daily");
    daily.env("BACKUP__DAILY__CUSTOMER_TIMEOUT", "6s");
    let outcome = world.run_command(&mut daily);
    assert_failed(&outcome, &[(12, "files")]);
    let cause = outcome.document["failed"][0]["error"].to_string();
    assert!(cause.contains("daily.customer_timeout"), "{cause}");
    assert_eq!(outcome.document["customers"], 2);
    // Those who come after him did not pay for it, and nothing of it is there.
    let made = id(&outcome.document);
    let paths = listing(&world, &made);
    assert!(!paths.contains(&world.customer(12).directory));
    for whole in [1, 123] {
        assert!(paths.contains(&world.customer(whole).site().join("marker")));
    }
    let types = [1, 12, 123].map(|customer| newest_type(&world, customer));
    assert_eq!(types, ["both", "db", "both"]);
    assert_sound(&world);
    fs::remove_file(&endless).unwrap();
    assert_eq!(run(&world, "daily").good()["customers"], 3);
}

#[test]
fn another_backup_of_a_day_takes_from_nobody_his_only_one() {
    let world = World::new(&[1, 12]);
    let first = id(&run(&world, "daily").good());
    let before = world.evidence();
    world.sql_as(
        world.customer(12),
        "CREATE TABLE gone (id INT); CREATE VIEW broken AS SELECT id FROM gone; DROP TABLE gone",
    );
    let again = || {
        let outcome = run(&world, "daily");
        assert_failed(&outcome, &[(12, "database")]);
        assert_eq!(outcome.document["customers"], 1);
        outcome.document
    };
    let second = again();
    assert_eq!(second["forgotten"], json!([]));
    // That one has nothing that the next has not.
    let third = again();
    assert_eq!(third["forgotten"], json!([id(&second)]));
    assert_eq!(snapshots(&world), [first.clone(), id(&third)]);
    assert_eq!(world.listed(12, "daily"), [id(&third), first.clone()]);
    let line = format!("restore 12 {first} --source daily --yes");
    run(&world, &line).good();
    world.assert_unchanged(&before);

    // His files are lost to the next one, and to the one after it nothing is.
    let elsewhere = world.bed.scratch().join("elsewhere");
    fs::rename(&world.customer(12).directory, &elsewhere).unwrap();
    let outcome = run(&world, "daily");
    assert_failed(&outcome, &[(12, "files")]);
    assert_eq!(outcome.document["forgotten"], json!([]));
    fs::rename(&elsewhere, &world.customer(12).directory).unwrap();
    let last = run(&world, "daily").good();
    let others = [first, id(&third), id(&outcome.document)];
    assert_eq!(last["forgotten"], json!(others));
    assert_eq!(snapshots(&world), [id(&last)]);
    assert_sound(&world);
}

#[test]
fn of_whom_nothing_could_be_saved_for_longer_than_backups_are_kept_the_last_one_stays() {
    let world = World::new(&[1, 12]);
    let last = world.bed.back_up_daily_at("2026-01-02 03:00:00").unwrap();
    world.sql_as(
        world.customer(12),
        "CREATE TABLE gone (id INT); CREATE VIEW broken AS SELECT id FROM gone; DROP TABLE gone",
    );
    let of_one_day = || {
        let mut daily = command(&world, "daily");
        daily.env("BACKUP__DAILY__KEEP", "1");
        world.run_command(&mut daily)
    };
    let outcome = of_one_day();
    assert_failed(&outcome, &[(12, "database")]);
    assert_eq!(outcome.document["forgotten"], json!([]));
    let without = id(&outcome.document);
    assert_eq!(snapshots(&world), [last.clone(), without.clone()]);
    // It is older than what is shown otherwise; who has newer ones does not see it.
    assert_eq!(world.listed(12, "daily"), [without.clone(), last.clone()]);
    assert_eq!(world.listed(1, "daily"), std::slice::from_ref(&without));
    let line = format!("restore 12 {last} --source daily --yes");
    run(&world, &line).good();
    assert!(!world.sql("SHOW TABLES FROM customer_12").contains("broken"));

    // As soon as there is a newer one it goes.
    let report = of_one_day().good();
    assert_eq!(report["forgotten"], json!([last, without]));
    assert_eq!(snapshots(&world), [id(&report)]);
    assert_sound(&world);
}

#[test]
fn a_backup_of_nobody_is_none() {
    let world = World::new(&[1]);
    run(&world, "daily").good();
    let before = snapshots(&world);
    let directory = &world.customer(1).directory;
    fs::rename(directory, world.bed.scratch().join("elsewhere")).unwrap();
    world.sql("DROP DATABASE customer_1");
    let error = run(&world, "daily").failed(1);
    assert!(error.contains("nothing of any customer"), "{error}");
    // A server that no customer is on is one whose name is wrong.
    let mut elsewhere = command(&world, "daily");
    elsewhere.env("BACKUP__WORKER__SERVER", "no-such-server");
    let error = world.run_command(&mut elsewhere).failed(1);
    assert!(error.contains("worker.server"), "{error}");
    // Whoever has not said that the daily backups are ours does not get any.
    let error = world.run("daily").failed(2);
    assert!(error.contains("[daily]"), "{error}");
    assert_eq!(snapshots(&world), before);
}

#[test]
fn what_else_there_is_of_the_server_is_saved_and_what_is_nobodys_is_told() {
    let mut world = World::new(&[1]);
    let customer = world.bed.add_customer(12).unwrap();
    fs::remove_dir_all(&customer.directory).unwrap();
    world.customers.push(world.bed.add_customer(123).unwrap());
    world.sql("DROP DATABASE customer_123");
    // A directory of somebody who has moved, and things that are no customer's.
    for name in ["customer-9", "customer-09", "lost+found"] {
        fs::create_dir(world.bed.customers_root().join(name)).unwrap();
    }
    let sites = world.bed.scratch().join("nginx/sites-available");
    fs::create_dir_all(&sites).unwrap();
    fs::write(sites.join("shop-1"), "server {}").unwrap();
    std::os::unix::fs::symlink("shop-1", sites.join("default")).unwrap();
    let gone = world.bed.scratch().join("nginx/gone");
    let with_paths = |paths: &[&Path]| {
        let mut command = command(&world, "daily");
        command.env("BACKUP__DAILY__PATHS", format!("{paths:?}"));
        world.run_command(&mut command)
    };

    // Of each of the two one part is not there: whom the platform serves is not backed up then.
    let outcome = with_paths(&[&sites]);
    assert_failed(&outcome, &[(12, "files"), (123, "database")]);
    assert_eq!(outcome.document["customers"], 1);
    world.platform_sql("UPDATE customers SET status = 'suspended' WHERE id IN (12, 123)");
    let report = with_paths(&[&sites]).good();
    assert_eq!(report["customers"], 3);
    let warnings = report["warnings"].to_string();
    for part in ["customer 12 has no directory", "customer_123", "customer-9"] {
        assert!(warnings.contains(part), "{part}: {warnings}");
    }
    assert!(
        !warnings.contains("customer-09") && !warnings.contains("lost"),
        "{warnings}"
    );
    let paths = listing(&world, &id(&report));
    assert!(paths.contains(&sites.join("shop-1")) && paths.contains(&sites.join("default")));
    assert!(paths.contains(&dump_file(&world, "shophosting_db")));
    assert!(paths.contains(&dump_file(&world, "customer_12")));
    assert!(!paths.contains(&world.bed.customers_root().join("customer-9")));
    let described = restic(&world).snapshots().unwrap().pop().unwrap();
    let mut expected = [
        world.bed.daily_dumps(),
        world.bed.customers_root(),
        sites.clone(),
    ];
    expected.sort();
    assert_eq!(described["paths"], json!(expected));
    assert_eq!(
        [1, 12, 123].map(|id| newest_type(&world, id)),
        ["both", "db", "files"]
    );

    let outcome = with_paths(&[&sites, &gone]);
    assert_eq!(outcome.status, Some(1));
    assert_eq!(
        failed(&outcome.document),
        [(None, "path".to_owned())].into()
    );
    let mut without = command(&world, "daily");
    without.env("BACKUP__DAILY__PLATFORM_DATABASE", "false");
    let report = world.run_command(&mut without).good();
    assert!(!listing(&world, &id(&report)).contains(&dump_file(&world, "shophosting_db")));
    let error = with_paths(&[&world.bed.customers_root().join("customer-1")]).failed(2);
    assert!(error.contains("daily.paths"), "{error}");
    assert_sound(&world);
}

#[test]
fn nobody_is_saved_in_the_middle_of_his_restore() {
    let world = World::new(&[1, 12, 123]);
    let customer = world.customer(12);
    let held = world.daily_with(customer, |dump| {
        crate::world::half_way(&dump, Gate::STATEMENT)
    });
    run(&world, "sync").good();
    let gate = Gate::close(&world);
    let line = format!("restore 12 {held} --source daily --type db --yes");
    let restore = world.command(&line).spawn().unwrap();
    gate.wait_for_import(&world);

    // It is waited for him, but not for ever.
    let mut hurried = command(&world, "daily");
    hurried.env("BACKUP__DAILY__WAIT", "1s");
    let outcome = world.run_command(&mut hurried);
    assert_failed(&outcome, &[(12, "database"), (12, "files")]);
    assert_eq!(outcome.document["customers"], 2);
    let before = names(&world.bed.daily_repository().join("locks")).len();
    let patient = command(&world, "daily").spawn().unwrap();
    let locks = world.bed.daily_repository().join("locks");
    eventually("the other one has begun", || names(&locks).len() > before);
    drop(gate);
    world.finish(restore).good();
    assert_eq!(world.finish(patient).good()["customers"], 3);

    // One whose restore comes between his dump and his files has but one of them: what comes later is not saved. Paths decide which that is.
    let scratch = world.bed.scratch().display();
    for (dumps, held_up, restored, lost) in [
        ("a", "customer_123", 1, "files"),
        ("z", "customer_12", 123, "database"),
    ] {
        // The one before is forgotten: it is of the same day.
        let newest = world.listed(1, "daily").remove(0);
        let table = format!("{held_up}.orders");
        let lock = world.bed.mariadb().lock_table(&table).unwrap();
        let mut daily = command(&world, "daily");
        daily.env(
            "BACKUP__CUSTOMER_DATABASE__DAILY_DUMP_PATH",
            format!("{scratch}/{dumps}/{{database}}.sql"),
        );
        let daily = daily.spawn().unwrap();
        eventually("the dump is held up", || {
            !world.bed.mariadb().waiting_for_table().unwrap().is_empty()
        });
        let line = format!("restore {restored} {newest} --source daily --type files --yes");
        world.run(&line).good();
        drop(lock);
        assert_failed(&world.finish(daily), &[(restored, lost)]);
    }
    world.assert_nothing_left();

    // One whose restore is stuck half-way is not touched.
    assert_eq!(run(&world, "daily").good()["customers"], 3);
    let newest = world.listed(12, "daily").remove(0);
    let mut stuck = world.command(&format!("restore 12 {newest} --source daily --yes"));
    stuck.env("SHOPHOSTING_BACKUP_DIE_AT", "in exchange");
    assert_eq!(world.run_command(&mut stuck).status, None);
    let outcome = run(&world, "daily");
    assert_failed(&outcome, &[(12, "database"), (12, "files")]);
    assert!(outcome.document["failed"].to_string().contains("recover"));
    world.run("recover").good();
    world.run("unlock").good();
    assert_eq!(run(&world, "daily").good()["customers"], 3);
    assert_sound(&world);
}

/// Something of a customer that is not in the repository yet.
fn add_noise(customer: &Customer, bytes: u64) {
    let file = fs::File::create(customer.site().join("noise")).unwrap();
    let mut source = std::io::Read::take(fs::File::open("/dev/urandom").unwrap(), bytes);
    std::io::copy(&mut source, &mut &file).unwrap();
}

#[test]
fn killed_at_any_moment_or_cut_off_it_leaves_no_half_backup() {
    let world = World::new(&[1, 12, 123]);
    run(&world, "daily").good();
    let proxy = Proxy::start(world.bed.sshd().port()).unwrap();
    proxy.set_bytes_per_second(Some(12 * MIB));
    let repository = world.bed.daily_repository();
    let count = |kind: &str| names(&repository.join(kind)).len();
    let through = || {
        let mut command = command(&world, "daily");
        world.bed.daily_through(&proxy, &mut command).unwrap();
        command
    };
    let mut killed = 0;
    for round in 0..7 {
        for customer in &world.customers {
            add_noise(customer, 8 * MIB);
        }
        let (before, sent) = (snapshots(&world), proxy.bytes_to_target());
        let (locks, indexes) = (count("locks"), count("index"));
        let mut daily = through().spawn().unwrap();
        eventually("the moment comes, or the end", || {
            let has_ended = daily.try_wait().unwrap().is_some();
            has_ended
                || match round {
                    0 => count("locks") > locks,
                    1 => proxy.bytes_to_target() > sent + MIB,
                    2 => proxy.bytes_to_target() > sent + 12 * MIB,
                    3 => proxy.bytes_to_target() > sent + 18 * MIB,
                    4 => count("index") > indexes,
                    5 => count("index") > indexes + 1,
                    _ => count("snapshots") > before.len(),
                }
        });
        signal(&daily, Signal::KILL);
        killed += usize::from(world.finish(daily).status.is_none());
        let after = snapshots(&world);
        assert!(
            after.len() - before.len() <= usize::from(round > 3),
            "round {round}"
        );
        // What is there, customers can see, and it is all of it.
        let newest = run(&world, "list 123").good()["daily"][0].clone();
        assert_eq!(newest["id"], after.last().unwrap().as_str());
        assert_eq!(newest["backup_type"], "both");
    }
    assert!(killed >= 5, "only {killed} were killed in time");
    run(&world, "unlock").good();
    restic(&world).check_read_data().unwrap();

    // The backup server goes away for good, and comes back.
    for customer in &world.customers {
        add_noise(customer, 8 * MIB);
    }
    let (before, sent) = (snapshots(&world), proxy.bytes_to_target());
    let daily = through().spawn().unwrap();
    eventually("something was sent", || {
        proxy.bytes_to_target() > sent + 10 * MIB
    });
    proxy.refuse(true);
    proxy.cut();
    let error = world.finish(daily).failed(1);
    assert!(error.contains("127.0.0.1"), "{error}");
    assert_eq!(snapshots(&world), before);
    eventually("no dump is left", || {
        world.sql("SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE INFO LIKE 'SELECT /*!40001%'")
            == "0\n"
    });
    proxy.refuse(false);

    // Cut off for a moment it goes on; cancelled it leaves nothing.
    let mut patient = through();
    patient.env("BACKUP__REPOSITORIES__DAILY__RETRY_FOR", "1m");
    let sent = proxy.bytes_to_target();
    let daily = patient.spawn().unwrap();
    eventually("something was sent", || {
        proxy.bytes_to_target() > sent + 2 * MIB
    });
    proxy.cut();
    assert_eq!(world.finish(daily).good()["customers"], 3);
    for customer in &world.customers {
        add_noise(customer, 8 * MIB);
    }
    let (before, sent) = (snapshots(&world), proxy.bytes_to_target());
    let daily = through().spawn().unwrap();
    eventually("something was sent", || {
        proxy.bytes_to_target() > sent + 2 * MIB
    });
    signal(&daily, Signal::TERM);
    let error = world.finish(daily).failed(1);
    assert!(error.contains("cancelled"), "{error}");
    assert_eq!(snapshots(&world), before);

    run(&world, "unlock").good();
    assert_eq!(run(&world, "daily").good()["customers"], 3);
    let kept = snapshots(&world);
    let pruned = run(&world, "prune").good();
    assert!(
        pruned["daily"]["packs_removed"].as_u64().unwrap() > 0,
        "{pruned}"
    );
    assert_eq!(snapshots(&world), kept);
    assert_sound(&world);
    let target = world.bed.scratch().join("target");
    restic(&world)
        .restore(kept.last().unwrap(), &target)
        .unwrap();
    let restored = target.join(world.bed.customers_root().strip_prefix("/").unwrap());
    for customer in &world.customers {
        let restored = restored.join(format!("customer-{}/wordpress", customer.id));
        assert!(TreeImage::of(&restored).unwrap().entries() > 5);
        assert_same_tree(customer.site(), restored);
    }
}

#[test]
fn the_days_that_are_kept_are_those_that_restic_would_keep_and_pruning_frees_the_rest() {
    let world = World::new(&[1, 12]);
    let restic = restic(&world);
    let root = world.bed.customers_root();
    let backup = |time: &str, tags: &[&str], options: &[&str]| {
        let time = format!("--time={time}");
        let options: Vec<&str> = std::iter::once(time.as_str())
            .chain(options.iter().copied())
            .collect();
        add_noise(world.customer(1), MIB);
        restic.backup_with([&root], tags, &options).unwrap()
    };
    let others = [
        backup("2026-01-02 03:00:00", &["daily"], &["--host=elsewhere"]),
        backup("2026-01-02 04:00:00", &["xdaily", "2026-01-02"], &[]),
        backup("2026-01-02 05:00:00", &["weekly"], &[]),
    ];
    for time in [
        "2026-01-02 03:00:00",
        "2026-01-02 23:59:59",
        "2026-01-03 00:00:00",
        "2026-01-05 03:00:00",
        "2026-01-05 04:00:00",
        "2026-01-06 03:00:00",
    ] {
        backup(time, &["daily", &time[..10]], &[]);
    }
    let keeping = |line: &str, keep: &str| {
        let mut command = command(&world, line);
        command.env("BACKUP__DAILY__KEEP", keep);
        world.run_command(&mut command).good()
    };
    let report = keeping("daily", "1000");
    let made = id(&report);
    // Twice on a day keeps the newer one only.
    let host = restic.snapshots().unwrap().pop().unwrap()["hostname"].clone();
    let host = format!("--host={}", host.as_str().unwrap());
    let output = restic
        .run([
            "forget",
            "--dry-run",
            "--json",
            "--tag=daily",
            "--group-by=host",
            &host,
            "--keep-daily=3",
        ])
        .unwrap();
    let groups: Value = serde_json::from_slice(&output.stdout).unwrap();
    let keep = groups[0]["keep"].as_array().unwrap().iter();
    let mut expected: BTreeSet<String> = keep
        .map(|one| one["id"].as_str().unwrap().to_owned())
        .collect();
    assert!(expected.remove(&made) && expected.len() == 2, "{groups}");
    expected.extend(others);
    let all = snapshots(&world);
    let report = keeping("daily", "3");
    expected.insert(id(&report));
    let there: BTreeSet<String> = snapshots(&world).into_iter().collect();
    assert_eq!(there, expected);
    let forgotten = report["forgotten"].as_array().unwrap();
    assert_eq!(
        forgotten.len(),
        all.len() - (expected.len() - 1),
        "{report}"
    );
    assert!(forgotten.contains(&json!(made)));

    // While the platform's script makes them, its repository is not pruned.
    let size = |world: &World| {
        let data = world.bed.daily_repository().join("data");
        let packs = names(&data)
            .into_iter()
            .flat_map(|directory| names(&directory));
        packs
            .map(|pack| pack.metadata().unwrap().len())
            .sum::<u64>()
    };
    let before = size(&world);
    assert_eq!(world.run("prune").good()["daily"], Value::Null);
    assert_eq!(size(&world), before);
    // Nor is it while one is missing that the catalogue knows.
    let newest = id(&report);
    let file = world.bed.daily_repository().join("snapshots").join(&newest);
    let aside = world.bed.scratch().join("aside");
    fs::rename(&file, &aside).unwrap();
    let error = run(&world, "prune").failed(1);
    assert!(error.contains("daily") && error.contains("sync"), "{error}");
    run(&world, "list 1").good();
    run(&world, "prune").failed(1);
    assert_eq!(size(&world), before);
    fs::rename(&aside, &file).unwrap();
    run(&world, "sync").good();
    let pruned = run(&world, "prune").good();
    assert!(
        pruned["daily"]["packs_removed"].as_u64().unwrap() > 0,
        "{pruned}"
    );
    assert!(size(&world) < before - 3 * MIB);
    assert_sound(&world);
    let there: BTreeSet<String> = snapshots(&world).into_iter().collect();
    assert_eq!(there, expected);
    let listed = world.listed(1, "daily");
    assert_eq!(listed[0], newest);
    let line = format!("restore 1 {newest} --source daily --yes");
    run(&world, &line).good();
}
