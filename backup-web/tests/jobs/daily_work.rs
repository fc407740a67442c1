//! What goes on around jobs: retention, pruning, progress.

use std::collections::BTreeSet;
use std::fs;
use std::thread;
use std::time::Duration;

use backup_core::jobs::JobStatus;
use backup_core::repository::BackupType;
use serde_json::Value;
use xtask::mount::Mount;

use crate::world::{MIB, World, add_noise, eventually, until_log};

#[test]
fn the_newest_five_of_mixed_types_stay_in_repository_and_catalogue_and_nothing_else_is_touched() {
    let world = World::new([1, 12]);
    let daily = world.product.bed.back_up_daily("2026-01-31").unwrap();
    let settings = [("RETENTION__MANUAL", "5"), ("WORKER__SYNC_EVERY", "1s")];
    let mut worker = world.worker(&settings);
    let others = world.completed(world.queue(12, BackupType::Both));
    let types = [
        BackupType::Both,
        BackupType::Db,
        BackupType::Files,
        BackupType::Db,
        BackupType::Both,
        BackupType::Files,
    ];
    let made: Vec<String> = types
        .into_iter()
        .map(|backup_type| world.completed(world.queue(1, backup_type)))
        .collect();
    let newest = |made: &[String]| {
        made[made.len() - 5..]
            .iter()
            .cloned()
            .collect::<BTreeSet<_>>()
    };
    let mut there = newest(&made);
    there.insert(others.clone());
    eventually("the oldest is forgotten", || world.snapshots() == there);
    assert_eq!(world.catalogued(1), newest(&made));
    assert_eq!(world.catalogued(12), [others.clone()].into());

    // What cannot be forgotten now is forgotten later; the backup is made.
    let oldest = &made[1];
    let file = world
        .product
        .bed
        .manual_repository()
        .join("snapshots")
        .join(oldest);
    let busy = Mount::bind(&file, &file).unwrap();
    let mut made = made.clone();
    made.push(world.completed(world.queue(1, BackupType::Files)));
    until_log(&mut worker, "older backups could not be removed");
    assert!(world.snapshots().contains(oldest));
    assert_eq!(world.catalogued(1), newest(&made));
    drop(busy);
    made.push(world.completed(world.queue(1, BackupType::Files)));
    let mut there = newest(&made);
    there.insert(others);
    eventually("both are forgotten", || world.snapshots() == there);
    assert_eq!(world.catalogued(1), newest(&made));
    for id in ["1", "12"] {
        let line = format!("--json list {id}");
        let listed = world
            .product
            .run_command(world.command(&line, &[]))
            .document();
        assert_eq!(listed["daily"][0]["id"], daily.as_str(), "{listed}");
        assert_eq!(listed["daily"].as_array().unwrap().len(), 1);
    }
    world.end(worker);
    assert_eq!(
        world
            .product
            .bed
            .daily_restic()
            .unwrap()
            .snapshots()
            .unwrap()
            .len(),
        1
    );
    world.assert_sound();
}

#[test]
fn a_prune_waits_for_backups_and_for_an_explanation_of_what_is_missing() {
    let world = World::new([1]);
    let run = |line: &str| world.product.run_command(world.command(line, &[]));
    let customer = world.customer(1);
    add_noise(customer, "noise", 4 * MIB);
    let unwanted = world.back_up(1, BackupType::Files);
    add_noise(customer, "noise", 8 * MIB);
    let proxy = world.proxy();
    proxy.set_bytes_per_second(Some(4 * MIB));
    let worker = world.worker_through(&proxy, &[]);
    let job = world.queue(1, BackupType::Files);
    world.until_running(job);
    let sent = proxy.bytes_to_target();
    eventually("it saves", || proxy.bytes_to_target() > sent + MIB);
    // Until whoever prunes has come to it.
    proxy.set_bytes_per_second(Some(MIB / 4));
    let refused = run("--json prune").refusal(1);
    assert!(refused.contains("in use"), "{refused}");
    proxy.set_bytes_per_second(None);
    let wanted = world.completed(job);
    world.end(worker);

    fs::remove_file(
        world
            .product
            .bed
            .manual_repository()
            .join("snapshots")
            .join(&unwanted),
    )
    .unwrap();
    let refused = run("--json prune").refusal(1);
    for words in ["1 of 2 snapshots", "run `sync`", "nothing was removed"] {
        assert!(refused.contains(words), "{refused}");
    }
    // A worker that looks at the repository does not take it for granted either.
    let mut worker = world.worker(&[]);
    eventually("the customer does not see it any more", || {
        world.catalogued(1) == [wanted.clone()].into()
    });
    run("--json prune").refusal(1);

    // In its quiet hour it refuses, too.
    world.end(worker);
    let now = jiff::Zoned::now();
    let minute = now.strftime("%H:%M").to_string();
    let quiet = [
        ("WORKER__PRUNE_AT", minute.as_str()),
        ("WORKER__SYNC_EVERY", "1s"),
    ];
    worker = world.worker(&quiet);
    until_log(&mut worker, "the manual repository is not pruned");
    world.end(worker);

    let synced = run("--json sync").document();
    assert_eq!(synced["manual"]["removed"], 1, "{synced}");
    worker = world.worker(&quiet);
    let mut other = world.worker(&quiet);
    eventually("it is pruned", || {
        (worker.log() + &other.log()).contains("repository is pruned: ")
    });
    for one in [&mut worker, &mut other] {
        // It has looked again since.
        let looked = || world.sql("SELECT MAX(synced_at) FROM shophosting_db.backup_repositories");
        for _ in 0..2 {
            let before = looked();
            one.until("it looks again", || looked() != before);
        }
    }
    let log = world.end(worker) + &world.end(other);
    assert_eq!(log.matches("repository is pruned: ").count(), 1, "{log}");
    // What is under way at the end is broken off, and not told as a failure.
    assert!(!log.contains("closed pool"), "{log}");
    let again = run("--json prune").document();
    assert_eq!(again["packs_removed"], 0, "{again}");
    world.assert_sound();
}

#[test]
fn another_process_sees_a_backup_grow_and_it_is_written_down_once_a_second_at_most() {
    let world = World::new([1]);
    let customer = world.customer(1);
    add_noise(customer, "old", 12 * MIB);
    world.back_up(1, BackupType::Files);
    fs::remove_file(customer.site().join("old")).unwrap();
    // More than is ever on its way to the backup server.
    for number in 0..160 {
        add_noise(customer, &format!("noise-{number}"), MIB);
    }
    world.sql("SET GLOBAL log_output = 'TABLE'; SET GLOBAL general_log = 1");
    let proxy = world.proxy();
    proxy.set_bytes_per_second(Some(16 * MIB));
    let worker = world.worker_through(&proxy, &[("WORKER__LEASE", "60s")]);
    let job = world.queue(1, BackupType::Files);
    let mut seen: Vec<Value> = Vec::new();
    while world.job(job).status != JobStatus::Completed {
        let line = "--json jobs 1";
        let jobs = world
            .product
            .run_command(world.command(line, &[]))
            .document();
        let now = jobs["jobs"][0].clone();
        if seen.last() != Some(&now) {
            seen.push(now);
        }
        thread::sleep(Duration::from_millis(100));
    }
    world.end(worker);
    world.sql("SET GLOBAL general_log = 0");
    let saving: Vec<&Value> = seen.iter().filter(|job| job["phase"] == "saving").collect();
    let number = |job: &Value, key: &str| job[key].as_u64().unwrap_or(0);
    for key in ["bytes_done", "files_done"] {
        let mut numbers: Vec<u64> = saving.iter().map(|job| number(job, key)).collect();
        assert!(numbers.is_sorted(), "{key}: {numbers:?}");
        numbers.dedup();
        assert!(numbers.len() >= 3, "{key}: {seen:#?}");
    }
    assert!(saving.iter().any(|job| number(job, "bytes_per_second") > 0));
    // As much as last time is expected until it is more.
    for job in &saving {
        let done = number(job, "bytes_done");
        let total = job["bytes_total"].as_u64();
        assert!(
            total.is_none_or(|total| total >= 12 * MIB && done <= total),
            "{job}"
        );
    }
    assert!(saving.iter().any(|job| job["bytes_total"].is_null()));
    let end = world.job(job);
    let took = end
        .completed_at
        .unwrap()
        .duration_since(end.started_at.unwrap());
    let writes = world.sql(
        "SELECT COUNT(*) FROM mysql.general_log
         WHERE command_type = 'Execute' AND argument LIKE 'UPDATE customer_backup_jobs SET lease_until%'",
    );
    let writes: f64 = writes.trim().parse().unwrap();
    assert!(
        writes >= 3.0 && writes <= took.as_secs_f64() + 1.5,
        "{writes} in {took}"
    );
}
