//! Cancelling, and what is in each other's way.

use backup_core::jobs::{Failure, JobStatus};
use backup_core::repository::BackupType;
use serde_json::{Value, json};
use xtask::product::Outcome;

use crate::world::{MIB, World, add_noise, assert_plain, eventually};

fn run(world: &World, line: &str) -> Outcome {
    world.product.run_command(world.command(line, &[]))
}

/// What `cancel` answers, and its exit status.
fn cancel(world: &World, job: impl std::fmt::Display) -> (String, i32) {
    let outcome = run(world, &format!("--json cancel {job}"));
    let document: Value = serde_json::from_str(&outcome.stdout).unwrap();
    assert_eq!(document["job_id"].to_string(), job.to_string());
    let word = document["result"].as_str().unwrap().to_owned();
    (word, outcome.code.unwrap())
}

fn answer(word: &str, code: i32) -> (String, i32) {
    (word.to_owned(), code)
}

#[test]
fn a_job_is_cancelled_while_it_waits_and_while_it_runs_but_not_once_it_commits() {
    let world = World::new([1]);
    let waiting = world.queue(1, BackupType::Both);
    assert_eq!(cancel(&world, waiting), answer("cancelled", 0));
    assert_eq!(cancel(&world, waiting), answer("ended", 1));

    let proxy = world.proxy();
    proxy.set_bytes_per_second(Some(2 * MIB));
    let worker = world.worker_through(&proxy, &[]);
    add_noise(world.customer(1), "noise", 40 * MIB);
    let running = world.queue(1, BackupType::Files);
    world.until_running(running);
    let sent = proxy.bytes_to_target();
    eventually("it saves", || proxy.bytes_to_target() > sent + MIB);
    assert_eq!(cancel(&world, running), answer("requested", 0));
    assert!(world.job(running).cancel_requested || !world.job(running).status.is_active());
    let begun = std::time::Instant::now();
    world.ended(running);
    assert!(begun.elapsed() < std::time::Duration::from_secs(10));

    for job in [waiting, running] {
        let job = world.job(job);
        assert_eq!(
            (job.status, job.failure, &job.snapshot_id),
            (JobStatus::Failed, Some(Failure::Cancelled), &None)
        );
        assert!(job.completed_at.is_some());
        assert_plain(&job);
    }
    assert_eq!(world.snapshots().len(), 0);
    eventually("no lock is left", || {
        world.product.repository_files("locks").is_empty()
    });

    std::fs::remove_file(world.customer(1).site().join("noise")).unwrap();
    proxy.set_delay(std::time::Duration::from_millis(100));
    let committing = world.queue(1, BackupType::Files);
    eventually("it commits", || !world.job(committing).cancellable);
    // Several answers away from the end.
    proxy.set_delay(std::time::Duration::from_secs(1));
    assert_eq!(cancel(&world, committing), answer("too_late", 1));
    proxy.set_delay(std::time::Duration::ZERO);
    world.completed(committing);
    world.end(worker);
    let unknown = run(&world, "--json cancel 999").refusal(1);
    assert!(unknown.contains("999"), "{unknown}");
    world.assert_truthful();
}

#[test]
fn a_foreground_backup_and_a_queued_one_are_in_each_others_way_and_both_can_be_cancelled() {
    let world = World::new([1]);
    let queued = world.queue(1, BackupType::Both);
    let refused = run(&world, "--json backup 1 --type files").refusal(1);
    for words in [
        "customer 1".to_owned(),
        format!("job {queued}"),
        format!("cancel {queued}"),
    ] {
        assert!(refused.contains(&words), "{refused}");
    }
    assert_eq!(cancel(&world, queued), answer("cancelled", 0));

    add_noise(world.customer(1), "noise", 40 * MIB);
    let proxy = world.proxy();
    proxy.set_bytes_per_second(Some(2 * MIB));
    let lease = [("WORKER__LEASE", "30s")];
    let mut command = world.command("--json backup 1 --type files", &lease);
    world.product.through(&proxy, &mut command).unwrap();
    let mut foreground = world.product.spawn(command);
    foreground.until("it saves", || proxy.bytes_to_target() > MIB);
    // No worker takes it, and nobody else begins.
    let worker = world.worker(&[]);
    let in_the_way = match world.try_queue(1, BackupType::Files).unwrap() {
        backup_core::jobs::Created::InTheWay(job) => job,
        backup_core::jobs::Created::Job(job) => panic!("{job:?}"),
    };
    assert_eq!(
        (in_the_way.status, in_the_way.attempts),
        (JobStatus::Running, 1)
    );
    assert_eq!(cancel(&world, in_the_way.id), answer("requested", 0));
    let error = world.product.finish(foreground).refusal(1);
    assert!(error.contains("cancelled"), "{error}");
    let job = world.job(in_the_way.id);
    assert_eq!(
        (job.status, job.failure, job.attempts),
        (JobStatus::Failed, Some(Failure::Cancelled), 1)
    );
    world.end(worker);
    assert_eq!(world.snapshots().len(), 0);

    std::fs::remove_file(world.customer(1).site().join("noise")).unwrap();
    let made = run(&world, "--json backup 1 --type files").document();
    let jobs = run(&world, "--json jobs 1").document();
    assert_eq!(jobs["jobs"][0]["id"], made["job_id"]);
    assert_eq!(jobs["jobs"][0]["snapshot_id"], made["snapshot_id"]);
    assert_eq!(jobs["jobs"][0]["status"], json!("completed"));
    world.assert_truthful();
}
