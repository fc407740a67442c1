//! What the scripts of before have left: docs/migrating.md says what becomes of it.

use std::fs;

use serde_json::json;
use xtask::testbed::{JOBS_BY_HAND, PLATFORM_SCHEMA};

use crate::world::World;

#[test]
fn backups_that_scripts_made_are_listed_restored_and_counted_like_new_ones() {
    let world = World::new(&[7, 70]);
    let customer = world.customer(7);
    let restic = world.bed.restic().unwrap();
    // Where scripts put their dumps, below the scratch directory.
    let dumps = world.bed.scratch().join("tmp");
    let dump_path = format!(
        "{}/customer-backup-{{id}}/{{database}}.sql",
        dumps.display()
    );
    let run = |line: &str| {
        let mut command = world.command(line);
        command.env("BACKUP__CUSTOMER_DATABASE__DUMP_PATH", &dump_path);
        world.run_command(&mut command).good()
    };
    let directory = dumps.join("customer-backup-7");
    fs::create_dir_all(&directory).unwrap();
    fs::write(
        directory.join("customer_7.sql"),
        world.bed.dump("customer_7").unwrap(),
    )
    .unwrap();
    // The whole directory, raw data and all.
    let script = |tags: &[&str]| {
        restic
            .backup([&directory, &customer.directory], tags)
            .unwrap()
    };
    let before = world.evidence();
    let made: Vec<String> = ["db", "files", "both", "db", "files", "both"]
        .into_iter()
        .map(|kind| script(&["customer-7", "manual", kind, "2026-01-30-120000"]))
        .collect();
    let whole = made.last().unwrap();
    // With two owners, with none, of no type.
    script(&["customer-7", "customer-70", "manual", "both"]);
    script(&["customer-7x", "manual", "both"]);
    let forgotten = script(&["customer-7", "manual"]);
    world.sql(&format!(
        "USE {PLATFORM_SCHEMA}; {JOBS_BY_HAND}
         INSERT INTO customer_backup_jobs (id, customer_id, job_type, backup_type, snapshot_id, status) VALUES
             (3, 7, 'backup', 'both', '{}', 'completed'), (4, 7, 'restore', 'both', '{}', 'running');",
        &whole[..8],
        &whole[..8],
    ));

    run("migrate");
    run("sync");
    let listed = |id: u32| {
        let list = run(&format!("list {id}"));
        let ids = list["manual"].as_array().unwrap().iter();
        ids.map(|entry| entry["id"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    let newest_first: Vec<String> = made.iter().rev().cloned().collect();
    assert_eq!(listed(7), newest_first);
    assert_eq!(listed(70), [] as [&str; 0]);
    let jobs = run("jobs 7");
    let jobs = jobs["jobs"].as_array().unwrap_or_else(|| panic!("{jobs}"));
    assert_eq!(
        [&jobs[0]["status"], &jobs[1]["status"]],
        [&json!("failed"), &json!("completed")]
    );
    assert_eq!(jobs[1]["snapshot_id"], whole[..8]);
    let sentence = jobs[0]["error_message"].as_str().unwrap();
    assert!(sentence.contains("interrupted by an upgrade"), "{sentence}");

    // Only the site comes back from the whole directory, and the tables that the dump does not have are gone.
    fs::write(customer.directory.join("mysql/ibdata1"), "newer raw data").unwrap();
    let raw = customer.directory.join("mysql/ibdata1");
    fs::remove_dir_all(customer.site().join("wp-content")).unwrap();
    world.sql_as(
        customer,
        "DROP TABLE order_lines; CREATE TABLE ransom_note (text TEXT)",
    );
    let report = run(&format!("restore 7 {} --yes", &whole[..8]));
    assert_eq!(report["restore_type"], "both");
    assert_eq!(fs::read(&raw).unwrap(), b"newer raw data");
    fs::write(&raw, "belongs in no backup").unwrap();
    before.assert_same_but(
        &world.evidence(),
        &["customer 7: \"mysql", "the database shophosting_db"],
    );

    // A forgotten tag is mended with restic.
    restic
        .run(["tag", "--add", "both", &forgotten[..8]])
        .unwrap();
    run("sync");
    assert_eq!(listed(7).len(), 7);

    // The first new backup: five stay, whatever their type.
    let new = run("backup 7 --type files")["snapshot_id"].clone();
    let left = listed(7);
    assert_eq!(left.len(), 5, "{left:?}");
    assert_eq!(left[0], new.as_str().unwrap());
    assert!(!left.contains(&made[0]) && left.contains(whole), "{left:?}");
}
