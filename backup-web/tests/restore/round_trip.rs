//! What was backed up comes back, and nothing else changes.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use xtask::tree::{TreeImage, add_privileged_entries, build_nasty_tree};

use crate::world::{Gate, World, chown, half_way};

/// Everything below a directory with its inode and the times of its content and of the inode itself: equal only where nothing was
/// written, replaced, or written back.
fn inodes(directory: &Path) -> BTreeMap<PathBuf, (u64, i64, i64, i64, i64)> {
    let mut found = BTreeMap::new();
    let mut pending: Vec<PathBuf> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    while let Some(path) = pending.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        if meta.is_dir() {
            pending.extend(
                fs::read_dir(&path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
        }
        let times = (
            meta.mtime(),
            meta.mtime_nsec(),
            meta.ctime(),
            meta.ctime_nsec(),
        );
        found.insert(path, (meta.ino(), times.0, times.1, times.2, times.3));
    }
    found
}

fn wreck_files(site: &Path) {
    fs::remove_dir_all(site.join("wp-content")).unwrap();
    fs::write(site.join("marker"), "defaced").unwrap();
    fs::write(site.join("backdoor.php"), "<?php system($_GET['c']);").unwrap();
    fs::remove_dir_all(site.join("nasty/links")).unwrap();
    chown(site, 1000);
}

const WRECK_DATABASE: &str =
    "DROP TABLE order_lines; DROP PROCEDURE count_orders; DROP EVENT tidy; UPDATE orders SET total = 0;
     CREATE TABLE ransom_note (text TEXT); CREATE VIEW mine AS SELECT * FROM orders; ALTER TABLE audit ADD more INT;";

#[test]
fn what_was_wrecked_comes_back_and_of_a_part_only_that_part() {
    let world = World::new(&[1, 12]);
    let customer = world.customer(1);
    let site = customer.site();
    build_nasty_tree(&site.join("nasty")).unwrap();
    add_privileged_entries(&site.join("nasty")).unwrap();
    // The top directory has attributes of its own.
    rustix::fs::chmod(&site, rustix::fs::Mode::from_raw_mode(0o2751)).unwrap();
    rustix::fs::lsetxattr(&site, "user.top", b"yes", rustix::fs::XattrFlags::empty()).unwrap();
    let before = world.evidence();
    let snapshot = world.back_up("1");
    // This customer is trusted with all that he has.
    let restore = |options: &str| {
        let mut command = world.command(&format!("restore 1 {snapshot} {options} --yes"));
        command
            .env("BACKUP__RESTORE__OWNERS", "any")
            .env("BACKUP__RESTORE__DEVICES", "true")
            .env("BACKUP__RESTORE__SETUID", "true");
        world.run_command(&mut command)
    };

    for online in ["", "--online"] {
        wreck_files(&site);
        world.sql_as(customer, WRECK_DATABASE);
        assert!(before.changes(&world.evidence()).len() > 10);
        world.stops_and_starts();
        let report = restore(online).good();
        assert_eq!(report["restore_type"], "both");
        assert_eq!(report["snapshot_id"], snapshot.as_str());
        assert_eq!(report["tables"], 4, "three tables and a view");
        world.assert_unchanged(&before);
        assert_eq!(
            world.stops_and_starts(),
            [
                "stop, maintenance on, defaced",
                "start, maintenance on, shop 1"
            ]
        );
    }

    // What the snapshot does not have, and what no backup has, stays.
    let lacking = customer.directory.join("volumes/files/pub/media");
    fs::create_dir_all(&lacking).unwrap();
    fs::write(lacking.join("new.jpg"), "newer than the backup").unwrap();
    fs::write(customer.directory.join("mysql/ibdata1"), "live data").unwrap();
    fs::write(
        customer.directory.join("docker-compose.yml"),
        "name: moved\n",
    )
    .unwrap();
    let outside_of_site = |tree: &BTreeMap<PathBuf, (u64, i64, i64, i64, i64)>| {
        let mut tree = tree.clone();
        tree.retain(|path, _| !path.starts_with(&site));
        tree
    };
    let inodes_before = inodes(&customer.directory);

    // Files alone, while the shop goes on taking orders.
    wreck_files(&site);
    world.sql_as(customer, WRECK_DATABASE);
    let dump = |world: &World| world.bed.dump(&customer.database).unwrap();
    let wrecked_dump = dump(&world);
    restore("--type files").good();
    assert!(dump(&world) == wrecked_dump, "a table was touched");
    let done = AtomicBool::new(false);
    let placed = std::thread::scope(|scope| {
        let orders = scope.spawn(|| {
            let mut placed = 0;
            while !done.load(Ordering::Relaxed) || placed == 0 {
                world.sql_as(
                    customer,
                    "INSERT INTO orders (note) VALUES ('while restoring')",
                );
                placed += 1;
            }
            placed
        });
        wreck_files(&site);
        let restored = restore("--type files --online");
        done.store(true, Ordering::Relaxed);
        restored.good();
        orders.join().unwrap()
    });
    let found = world.sql_as(
        customer,
        "SELECT COUNT(*) FROM orders WHERE note = 'while restoring'",
    );
    assert_eq!(found, format!("{placed}\n"), "an order was lost");
    world.sql_as(
        customer,
        "DELETE FROM orders WHERE note = 'while restoring'",
    );
    let auto_increment = |dump: &[u8]| {
        let text = String::from_utf8_lossy(dump);
        let lines = text
            .lines()
            .filter(|line| !line.contains("AUTO_INCREMENT="));
        lines.collect::<Vec<_>>().join("\n")
    };
    assert_eq!(auto_increment(&dump(&world)), auto_increment(&wrecked_dump));
    let inodes_after = inodes(&customer.directory);
    assert_eq!(
        outside_of_site(&inodes_after),
        outside_of_site(&inodes_before)
    );

    // The database alone touches no file.
    let inodes_before = inodes(&customer.directory);
    for online in ["", "--online"] {
        restore(&format!("--type db {online}")).good();
        assert_eq!(inodes(&customer.directory), inodes_before);
    }
    // Now the whole is as it was, but for what was put beside the site.
    fs::remove_dir_all(customer.directory.join("volumes/files")).unwrap();
    let changes = before.changes(&world.evidence());
    let beside = ["mysql", "docker-compose.yml", "volumes"];
    let unexpected: Vec<_> = changes
        .iter()
        .filter(|line| {
            !beside
                .iter()
                .any(|name| line.starts_with(&format!("customer 1: \"{name}")))
        })
        .collect();
    assert!(unexpected.is_empty(), "{unexpected:#?}");
    world.assert_nothing_left();
}

#[test]
fn the_site_is_in_maintenance_while_it_is_restored_or_only_at_the_exchange() {
    let world = World::new(&[1]);
    let customer = world.customer(1);
    let before = world.evidence();
    let snapshot = world.daily_with(customer, |dump| half_way(&dump, Gate::STATEMENT));
    for (online, in_maintenance) in [("", true), ("--online", false)] {
        fs::write(customer.site().join("marker"), "defaced\n").unwrap();
        let gate = Gate::close(&world);
        let line = format!("restore 1 {snapshot} --source daily {online} --yes");
        let child = world.command(&line).spawn().unwrap();
        gate.wait_for_import(&world);
        assert_eq!(world.in_maintenance(customer), in_maintenance);
        assert_eq!(
            fs::read_to_string(customer.site().join("marker")).unwrap(),
            "defaced\n",
            "it is not done yet"
        );
        assert_eq!(world.stops_and_starts(), [] as [&str; 0]);
        drop(gate);
        world.finish(child).good();
        assert_eq!(
            world.stops_and_starts(),
            [
                "stop, maintenance on, defaced",
                "start, maintenance on, shop 1"
            ]
        );
        world.assert_unchanged(&before);
    }
}

#[test]
fn a_customer_without_an_account_of_his_own_is_restored_and_gains_none() {
    let world = World::new(&[1, 12]);
    let customer = world.customer(1);
    let plain = "DROP VIEW revenue; DROP PROCEDURE count_orders; DROP TRIGGER leave_trace; DROP EVENT tidy;";
    world
        .sql("UPDATE shophosting_db.customers SET db_user = NULL, db_password = NULL WHERE id = 1");
    let with_definers = world.back_up("1 --type db");
    let dump = world.bed.dump(&customer.database).unwrap();

    // Nothing needs a definer: nothing stays.
    world.sql_as(customer, plain);
    let before = world.evidence();
    let snapshot = world.back_up("1 --type db");
    world.sql_as(
        customer,
        "DROP TABLE order_lines; CREATE TABLE ransom_note (text TEXT)",
    );
    world.run(&format!("restore 1 {snapshot} --yes")).good();
    world.assert_unchanged(&before);

    // Otherwise the one that is their definer stays, locked, with rights on this schema alone.
    world
        .run(&format!("restore 1 {with_definers} --yes"))
        .good();
    world.assert_nothing_left();
    let strange = world.sql("SELECT User, JSON_VALUE(Priv, '$.account_locked') FROM mysql.global_priv WHERE User LIKE 'shb%'");
    let strange: Vec<_> = strange.trim().split('\t').collect();
    assert_eq!(strange[1..], ["1"], "{strange:?}");
    let rights = world.sql("SELECT Db FROM mysql.db WHERE User LIKE 'shb%'");
    assert_eq!(rights, "customer\\\\_1\n");
    let restored = String::from_utf8(world.bed.dump(&customer.database).unwrap()).unwrap();
    let restored = restored.replace(&format!("`{}`@`%`", strange[0]), "`customer_1`@`%`");
    assert!(restored.as_bytes() == dump, "{restored}");
}

/// What a restore may hold at once, whatever it restores.
const MEMORY_MAX: u64 = 256_000_000;

#[test]
fn backup_and_restore_of_a_large_shop_hold_little_memory() {
    let world = World::new(&[1]);
    // Their passwords are as slow to guess as those of real ones, which takes memory as well.
    for repository in [world.bed.manual_repository(), world.bed.daily_repository()] {
        fs::remove_dir_all(repository).unwrap();
    }
    world.run("init").good();
    let customer = world.customer(1);
    let media = customer.site().join("media");
    fs::create_dir(&media).unwrap();
    let mut bytes = vec![0; 5 << 20];
    for number in 0..60 {
        rand::fill(&mut bytes[..]);
        fs::write(media.join(format!("{number}.jpg")), &bytes).unwrap();
    }
    world.sql_as(
        customer,
        "CREATE TABLE large (id INT PRIMARY KEY, x LONGTEXT);
         INSERT INTO large SELECT seq, REPEAT(SHA2(RAND(), 512), 800) FROM seq_1_to_1000;",
    );
    let files = TreeImage::of(&customer.site()).unwrap();
    let checksums = world.bed.table_checksums(&customer.database).unwrap();

    let (backup, memory) = watched(&world, "backup 1");
    println!("a backup of 400 MB held {} MB", memory / 1_000_000);
    assert!(memory < 2 * MEMORY_MAX, "the backup held {memory} bytes");
    assert!(backup["bytes"].as_u64().unwrap() > 400_000_000);
    fs::remove_dir_all(&media).unwrap();
    world.sql_as(customer, "DROP TABLE large");
    let line = format!(
        "restore 1 {} --yes",
        backup["snapshot_id"].as_str().unwrap()
    );
    let (_, memory) = watched(&world, &line);
    println!("its restore held {} MB", memory / 1_000_000);
    assert!(memory < MEMORY_MAX, "the restore held {memory} bytes");
    assert_eq!(
        files.differences(&TreeImage::of(&customer.site()).unwrap()),
        [] as [&str; 0]
    );
    assert_eq!(
        checksums,
        world.bed.table_checksums(&customer.database).unwrap()
    );
}

/// What a command printed, and the most bytes of memory that it held.
fn watched(world: &World, line: &str) -> (serde_json::Value, u64) {
    let child = world.command(line).spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let peak = scope.spawn(|| {
            let mut peak = 0;
            while !done.load(Ordering::Relaxed) {
                let text = fs::read_to_string(&status).unwrap_or_default();
                let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
                let kibibytes = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
                peak = kibibytes.map_or(peak, |kibibytes: u64| kibibytes * 1024);
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            peak
        });
        let document = world.finish(child).good();
        done.store(true, Ordering::Relaxed);
        let peak = peak.join().unwrap();
        assert!(peak > 0, "it was not watched");
        (document, peak)
    })
}

#[test]
fn a_restore_needs_no_repository_but_the_one_that_its_backup_is_in() {
    let world = World::new(&[1]);
    let [manual, daily] = [world.bed.manual_repository(), world.bed.daily_repository()];
    let from_manual = world.back_up("1");
    let from_daily = world.bed.back_up_daily("2026-01-31").unwrap();
    world.run("sync").good();
    let lost = |repository: &Path| repository.with_extension("lost");

    fs::rename(&daily, lost(&daily)).unwrap();
    world.run("list 1").failed(1);
    world.run(&format!("restore 1 {from_manual} --yes")).good();
    fs::rename(lost(&daily), &daily).unwrap();

    fs::rename(&manual, lost(&manual)).unwrap();
    let report = world
        .run(&format!("restore 1 {from_daily} --source daily --yes"))
        .good();
    // What it replaced waits for a place.
    assert_eq!(report["kept_snapshot"], serde_json::Value::Null);
    fs::rename(lost(&manual), &manual).unwrap();
    world.run("recover").good();
    assert_eq!(world.listed(1, "pre_restore").len(), 2);
}
