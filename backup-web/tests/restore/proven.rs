//! A backup is proven by restoring it where nobody sees it: what is damaged, cut or lacking is found and named, and nothing is touched or left behind.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;
use serde_json::Value;

use crate::world::{Evidence, Gate, Outcome, World, eventually, half_way, names, signal};

/// Where backups are restored to.
fn scratch(world: &World) -> PathBuf {
    world.bed.scratch().join("state/verify")
}

fn scratch_schemas(world: &World) -> String {
    world.sql("SHOW DATABASES LIKE '%\\_\\_proof\\_%'")
}

/// All is as it was, and nothing of a proof is left.
#[track_caller]
fn assert_untouched(world: &World, before: &Evidence) {
    world.assert_unchanged(before);
    assert_eq!(names(&scratch(world)), [] as [PathBuf; 0]);
    assert_eq!(scratch_schemas(world), "");
    assert_eq!(world.stops_and_starts(), [] as [&str; 0]);
}

/// Customer and source of each entry.
fn whose(document: &Value, list: &str) -> BTreeSet<(u64, String)> {
    let entries = document[list].as_array().expect("no list");
    let one = |entry: &Value| {
        let source = entry["source"].as_str().unwrap_or_default().to_owned();
        (entry["customer"].as_u64().unwrap(), source)
    };
    entries.iter().map(one).collect()
}

fn of<const N: usize>(entries: [(u64, &str); N]) -> BTreeSet<(u64, String)> {
    let owned = entries.map(|(customer, source)| (customer, source.to_owned()));
    owned.into()
}

/// The one failure: its sentence, which names the snapshot elsewhere.
#[track_caller]
fn failure(outcome: &Outcome, customer: u64, snapshot: &str) -> String {
    assert_eq!(outcome.status, Some(1), "{outcome:?}");
    let failed = outcome.document["failed"].as_array().expect("no list");
    let [failure] = failed.as_slice() else {
        panic!("{failed:?}")
    };
    assert_eq!(failure["customer"], customer);
    assert_eq!(failure["snapshot_id"], snapshot);
    failure["error"].as_str().unwrap().to_owned()
}

/// When a customer's backup was proven, as his list has it.
fn proven_at(world: &World, customer: u32, list: &str, id: &str) -> Value {
    let document = world.run(&format!("list {customer}")).good();
    let entries = document[list].as_array().unwrap();
    let entry = entries.iter().find(|entry| entry["id"] == id);
    entry.expect("no such backup")["proven_at"].clone()
}

fn packs(world: &World) -> BTreeSet<PathBuf> {
    let directories = names(&world.bed.manual_repository().join("data"));
    directories.iter().flat_map(|one| names(one)).collect()
}

#[test]
fn a_good_backup_is_proven_and_nothing_is_touched_or_left() {
    let world = World::new(&[1, 12]);
    let manual = world.back_up("1");
    let files = world.back_up("12 --type files");
    world.bed.back_up_daily("2026-01-31").unwrap();
    let before = world.evidence();
    assert_eq!(proven_at(&world, 1, "manual", &manual), Value::Null);

    let document = world.run("verify").good();
    assert_eq!(whose(&document, "failed"), of([]));
    let all = of([(1, "manual"), (1, "daily"), (12, "manual"), (12, "daily")]);
    assert_eq!(whose(&document, "proven"), all);
    let proven = document["proven"].as_array().unwrap();
    let entry = proven.iter().find(|one| one["snapshot_id"] == manual);
    let entry = entry.unwrap();
    let listed = world.run("list 1").good();
    assert_eq!(entry["files"], listed["manual"][0]["files"]);
    // Three tables and a view.
    assert_eq!(entry["tables"], 4);
    assert!(entry["database_bytes"].as_u64() > Some(1000));
    assert_untouched(&world, &before);
    assert!(proven_at(&world, 1, "manual", &manual).is_string());
    assert!(proven_at(&world, 12, "manual", &files).is_string());

    let document = world.run("verify 12").good();
    let his = of([(12, "manual"), (12, "daily")]);
    assert_eq!(whose(&document, "proven"), his);
    world.run("verify 13").failed(1);
    assert_untouched(&world, &before);
}

#[test]
fn what_the_newest_backup_lacks_is_proven_of_the_newest_that_has_it() {
    let world = World::new(&[1]);
    let customer = world.customer(1);
    let both = world.back_up("1");
    let files = world.back_up("1 --type files");
    let proven = |document: &Value| -> Vec<String> {
        let proven = document["proven"].as_array().unwrap().iter();
        let ids = proven.map(|one| one["snapshot_id"].as_str().unwrap().to_owned());
        ids.collect()
    };
    let before = world.evidence();
    let document = world.run("verify").good();
    assert_eq!(proven(&document), [files.clone(), both.clone()]);
    assert_untouched(&world, &before);
    for id in [&files, &both] {
        assert!(proven_at(&world, 1, "manual", id).is_string());
    }
    // One that has no table would be a good one of an empty database, if nobody knows that it was none.
    let nothing = |dump: String| {
        let end = dump.rfind("-- Dump completed").unwrap();
        format!("-- MariaDB dump\n{}", &dump[end..])
    };
    let empty = world.daily_with(customer, nothing);
    let outcome = world.run("verify");
    let sentence = failure(&outcome, 1, &empty);
    assert!(sentence.contains("has no table"), "{sentence}");
    assert_eq!(proven(&outcome.document), [files, both]);
    // Without its last line it is none, whatever is in it.
    let cut = world.daily_with(customer, |_| "-- MariaDB dump\n".to_owned());
    let sentence = failure(&world.run("verify"), 1, &cut);
    assert!(sentence.contains("cut off"), "{sentence}");
    assert_untouched(&world, &before);
    world.sql(&format!(
        "DROP DATABASE {0}; CREATE DATABASE {0}",
        customer.database
    ));
    world.daily_with(customer, nothing);
    let document = world.run("verify 1").good();
    assert_eq!(whose(&document, "failed"), of([]));
}

#[test]
fn what_a_list_shows_of_a_backup_is_all_that_is_proven_or_restored_of_it() {
    let world = World::new(&[1, 12, 123]);
    // He has moved to where his database is called as somebody's is here. His directory stayed behind.
    world.platform_sql(
        "INSERT INTO servers (id, name, hostname) VALUES (7, 'north', 'north.example');
         UPDATE customers SET server_id = 7, db_name = 'customer_1' WHERE id = 12",
    );
    let north = |line: &str| {
        let mut command = world.command(line);
        command.env("BACKUP__WORKER__SERVER", "north");
        world.run_command(&mut command)
    };
    let daily = world.bed.back_up_daily("2026-01-31").unwrap();
    world.run("sync").good();
    let shown = |customer: u32| {
        let document = world.run(&format!("list {customer}")).good();
        document["daily"][0]["backup_type"].clone()
    };
    assert_eq!([1, 12].map(shown), ["both", "files"]);
    let before = world.evidence();
    let document = north("verify").good();
    assert_eq!(whose(&document, "proven"), of([(12, "daily")]));
    let proven = &document["proven"][0];
    assert_eq!(
        (&proven["tables"], &proven["database_bytes"]),
        (&0.into(), &0.into())
    );
    assert_untouched(&world, &before);

    let line = format!("restore 12 {daily} --source daily --yes");
    north(&format!("{line} --type both")).failed(1);
    let report = north(&line).good();
    assert_eq!(report["restore_type"], "files");
    world.assert_unchanged(&before);
}

#[test]
fn a_damaged_pack_is_found_by_the_proof_of_whose_it_is_and_by_reading_all_packs() {
    let world = World::new(&[1, 12]);
    world.back_up("1");
    let shared = packs(&world);
    let mut bytes = vec![0; 1 << 20];
    rand::fill(&mut bytes[..]);
    fs::write(world.customer(12).site().join("large"), &bytes).unwrap();
    let his = world.back_up("12");
    let before = world.evidence();
    world.run("verify").good();
    assert!(proven_at(&world, 12, "manual", &his).is_string());
    world.run("check --read-data-subset 100%").good();

    let own: Vec<PathBuf> = packs(&world).difference(&shared).cloned().collect();
    let size = |path: &PathBuf| fs::metadata(path).unwrap().len();
    let largest = own.iter().max_by_key(|path| size(path)).unwrap();
    let good = fs::read(largest).unwrap();
    let mut bad = good.clone();
    bad[500_000] ^= 1;
    fs::set_permissions(largest, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(largest, bad).unwrap();

    let outcome = world.run("verify");
    failure(&outcome, 12, &his);
    assert_eq!(whose(&outcome.document, "proven"), of([(1, "manual")]));
    assert_eq!(proven_at(&world, 12, "manual", &his), Value::Null);
    assert_untouched(&world, &before);
    let checked = world.run("check --read-data-subset 100%");
    assert_eq!(checked.status, Some(1));
    let name = largest.file_name().unwrap().to_str().unwrap();
    assert!(checked.document.to_string().contains(name), "{checked:?}");
    let read = &checked.document["repositories"][0]["read"];
    assert_eq!(read["packs"], packs(&world).len());
    // Of two halves the one finds it.
    let halves = ["1/2", "2/2"].map(|part| world.run(&format!("check --read-data-subset {part}")));
    let found = halves.iter().filter(|one| one.status == Some(1)).count();
    assert_eq!(found, 1, "{halves:?}");

    fs::write(largest, good).unwrap();
    world.run("verify").good();
    assert!(proven_at(&world, 12, "manual", &his).is_string());
}

#[test]
fn a_dump_that_is_cut_is_found_whoever_made_the_backup() {
    let world = World::new(&[1, 12]);
    let customer = world.customer(1);
    // Where stock restic can save it under the path that the configuration says.
    let directory = world.bed.scratch().join("customer-backup-1");
    fs::create_dir(&directory).unwrap();
    let verify = |world: &World| {
        let mut command = world.command("verify");
        let path = world
            .bed
            .scratch()
            .join("customer-backup-{id}/{database}.sql");
        command.env("BACKUP__CUSTOMER_DATABASE__DUMP_PATH", path);
        world.run_command(&mut command)
    };
    let mut dump = world.bed.dump(&customer.database).unwrap();
    let save = |dump: &[u8]| {
        let file = directory.join(format!("{}.sql", customer.database));
        fs::write(file, dump).unwrap();
        let restic = manual_restic(&world);
        let tags = ["customer-1", "manual", "both", "2026-01-31-000000"];
        restic
            .backup([&directory, &customer.directory], &tags)
            .unwrap()
    };
    save(&dump);
    let before = world.evidence();
    let document = verify(&world).good();
    assert_eq!(whose(&document, "proven"), of([(1, "manual")]));

    dump.truncate(dump.len() / 2);
    let cut = save(&dump);
    let sentence = failure(&verify(&world), 1, &cut);
    assert!(sentence.contains("cut off"), "{sentence}");
    assert_untouched(&world, &before);

    let daily = world.daily_with(world.customer(12), |dump| dump[..dump.len() / 2].to_owned());
    let outcome = world.run("verify 12");
    let sentence = failure(&outcome, 12, &daily);
    assert!(sentence.contains("import"), "{sentence}");
    assert_untouched(&world, &before);
}

fn manual_restic(world: &World) -> xtask::restic::Restic {
    let password = fs::read_to_string(world.bed.scratch().join("manual-repository-password"));
    let repository = world.bed.manual_repository();
    xtask::restic::Restic::new(repository, password.unwrap().trim()).unwrap()
}

#[test]
fn a_table_that_a_dump_program_left_out_is_found_and_named() {
    let world = World::new(&[1]);
    let filter = world.bed.scratch().join("filter.sh");
    xtask::script::write(
        &filter,
        "for word; do case $word in *dump) \"$@\" | sed '/^-- Table structure for table `audit`/,/^UNLOCK TABLES/d'; exit;; esac; done\nexec \"$@\"",
    )
    .unwrap();
    let through_filter = |line: &str| -> Command {
        let mut command = world.command(line);
        let exec = format!("[{:?}]", filter.display().to_string());
        command.env("BACKUP__CUSTOMER_DATABASE__EXEC", exec);
        command
    };
    let before = world.evidence();
    // As long as nobody restores it, it is a backup like any other.
    let document = world.run_command(&mut through_filter("backup 1")).good();
    let snapshot = document["snapshot_id"].as_str().unwrap();
    let sentence = failure(&world.run("verify"), 1, snapshot);
    assert!(
        sentence.contains("lacks 1 of the 4 tables") && sentence.ends_with("audit"),
        "{sentence}"
    );
    assert_untouched(&world, &before);

    // What was dropped before a backup is missed by nobody.
    world.sql_as(world.customer(1), "DROP TABLE audit");
    world.back_up("1");
    world.run("verify").good();

    // So it is with the daily backup that is our own.
    let mut daily = through_filter("daily");
    daily.env("BACKUP__DAILY__KEEP", "30");
    world.sql_as(world.customer(1), "CREATE TABLE audit (what TEXT)");
    let document = world.run_command(&mut daily).good();
    let outcome = world.run("verify 1");
    let sentence = failure(&outcome, 1, document["snapshot_id"].as_str().unwrap());
    assert!(sentence.ends_with("audit"), "{sentence}");
    assert_eq!(whose(&outcome.document, "proven"), of([(1, "manual")]));
}

#[test]
fn a_proof_that_is_killed_hinders_nobody_and_the_next_one_removes_what_it_left() {
    let world = World::new(&[1, 12]);
    let good = world.back_up("1");
    let customer = world.customer(1);
    let goal = world.evidence();
    let held_up = world.daily_with(customer, |dump| half_way(&dump, Gate::STATEMENT));
    world.sql_as(
        customer,
        "INSERT INTO orders (note) VALUES ('since the backup')",
    );
    let gate = Gate::close(&world);
    let child = world.command("verify 1").spawn().unwrap();
    gate.wait_for_import(&world);

    // Another proof waits its turn; a backup and a restore of the same customer do not.
    let error = world.run("verify 12").failed(1);
    assert!(error.contains("another process is proving"), "{error}");
    world.back_up("1");
    world.run(&format!("restore 1 {good} --yes")).good();
    goal.assert_same_but(
        &world.evidence(),
        &["the database customer_1__proof_", "accounts"],
    );
    world.stops_and_starts();

    signal(&child, Signal::KILL);
    assert_eq!(world.finish(child).status, None);
    drop(gate);
    eventually("the import ends without its program", || {
        world.sql("SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE DB LIKE '%proof%'")
            == "0\n"
    });
    assert_eq!(scratch_schemas(&world).lines().count(), 1);
    assert_eq!(names(&scratch(&world)).len(), 1);
    let room = names(&scratch(&world)).remove(0);
    assert_eq!(
        fs::metadata(&room).unwrap().permissions().mode() & 0o777,
        0o700
    );
    // The next one may be of somebody else, and the customer gone by then: what was made for him is written down, not derived from what he is called.
    world.run("unlock").good();
    world.platform_sql("UPDATE customers SET id = 2, db_name = 'renamed' WHERE id = 1");
    world.run("verify 12").good();
    assert_eq!(names(&scratch(&world)), [] as [PathBuf; 0]);
    assert_eq!(scratch_schemas(&world), "");
    world.platform_sql("UPDATE customers SET id = 1, db_name = 'customer_1' WHERE id = 2");
    assert_untouched(&world, &goal);
    let document = world.run("verify 1").good();
    let daily = document["proven"].as_array().unwrap();
    assert!(daily.iter().any(|one| one["snapshot_id"] == held_up));
    assert_untouched(&world, &goal);
}

#[test]
fn a_proof_that_is_cancelled_or_too_slow_leaves_nothing() {
    let world = World::new(&[1]);
    let customer = world.customer(1);
    let snapshot = world.daily_with(customer, |dump| half_way(&dump, Gate::STATEMENT));
    let before = world.evidence();
    let gate = Gate::close(&world);
    for kind in [Signal::TERM, Signal::INT] {
        let child = world.command("verify").spawn().unwrap();
        gate.wait_for_import(&world);
        signal(&child, kind);
        let error = world.finish(child).failed(1);
        assert!(error.contains("cancelled"), "{error}");
        assert_untouched(&world, &before);
    }
    // That somebody stopped it says nothing of the backup.
    assert_eq!(
        world.platform_sql("SELECT COUNT(*) FROM backup_proofs"),
        "0\n"
    );
    let mut command = world.command("verify");
    command.env("BACKUP__VERIFY__TIMEOUT", "3s");
    let sentence = failure(&world.run_command(&mut command), 1, &snapshot);
    assert!(sentence.contains("longer than 3 s"), "{sentence}");
    assert_untouched(&world, &before);
}

#[test]
fn what_is_in_the_way_of_one_proof_is_not_in_the_way_of_the_others() {
    let mut world = World::in_container(&[1, 12]);
    // With a restart the server forgets how far ahead it had counted, which would look like a change.
    world.bed.mariadb_mut().stop().unwrap();
    world.bed.mariadb_mut().restart().unwrap();
    let both = world.back_up("1");
    world.back_up("12 --type db");
    let before = world.evidence();

    let mut command = world.command("verify");
    command.env("BACKUP__VERIFY__MAX_BYTES", "100000");
    let outcome = world.run_command(&mut command);
    let sentence = failure(&outcome, 1, &both);
    assert!(sentence.contains("verify.max_bytes"), "{sentence}");
    assert_untouched(&world, &before);

    world.back_up("12 --type files");
    world.bed.mariadb_mut().stop().unwrap();
    let outcome = world.run("verify");
    assert_eq!(outcome.status, Some(1));
    let each = of([(1, "manual"), (12, "manual")]);
    assert_eq!(whose(&outcome.document, "failed"), each);
    let failed = outcome.document["failed"].as_array().unwrap();
    for failure in failed {
        let sentence = failure["error"].as_str().unwrap();
        assert!(sentence.contains("cannot be reached"), "{sentence}");
    }
    // Of his files that is not said.
    assert_eq!(whose(&outcome.document, "proven"), of([(12, "manual")]));
    world.bed.mariadb_mut().restart().unwrap();
    let document = world.run("verify").good();
    assert_eq!(
        whose(&document, "proven"),
        of([(1, "manual"), (12, "manual")])
    );
    assert_untouched(&world, &before);
}

#[test]
fn a_hostile_dump_does_no_harm_to_a_proof_and_reaches_nothing_outside() {
    let world = World::new(&[1, 12]);
    let flag = Path::new(world.bed.scratch()).join("pwned");
    let before = world.evidence();
    for statement in [
        "INSERT INTO customer_1.orders (note) VALUES ('pwned');\n".to_owned(),
        "DROP TABLE customer_12.orders;\n".to_owned(),
        "CREATE TABLE shophosting_db.pwned (id INT);\n".to_owned(),
        format!("\\! touch {}\n", flag.display()),
        "USE customer_12;\n".to_owned(),
    ] {
        let snapshot = world.daily_with(world.customer(1), |dump| half_way(&dump, &statement));
        failure(&world.run("verify 1"), 1, &snapshot);
        assert_untouched(&world, &before);
        assert!(!flag.exists(), "{statement}");
    }
}

#[test]
fn a_worker_proves_backups_and_reads_packs_in_its_quiet_hours() {
    let world = World::new(&[1, 12]);
    world.back_up("1");
    world.back_up("12 --type db");
    let before = world.evidence();
    let zone = jiff::Zoned::now();
    let hour = |hours: i64| {
        let time = zone.checked_add(jiff::ToSpan::hours(hours)).unwrap();
        time.strftime("%H:%M").to_string()
    };
    let start = |hours: String| {
        let mut command = world.command("worker");
        command
            .env("BACKUP__VERIFY__HOURS", hours)
            .env("BACKUP__VERIFY__READ_DATA_SUBSET", "100%");
        command.spawn().unwrap()
    };
    let count = |query: &str| world.platform_sql(&format!("SELECT COUNT(*) FROM {query}"));
    let child = start(format!("{}-{}", hour(-1), hour(3)));
    eventually("both are proven", || {
        count("backup_proofs WHERE proven_at IS NOT NULL") == "2\n"
    });
    let sampled = "backup_repositories WHERE sampled_at IS NOT NULL AND sample_errors = 0";
    assert_eq!(count(sampled), "2\n", "of either repository");
    signal(&child, Signal::TERM);
    assert_eq!(world.finish(child).status, Some(0));
    assert_untouched(&world, &before);
}
