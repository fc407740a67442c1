//! Redis and the database going away under load, and many workers at once.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use backup_core::jobs::{Job, JobStatus};
use backup_core::repository::BackupType;
use xtask::proxy::Proxy;
use xtask::redis::Redis;

use crate::world::{MIB, World, add_noise, eventually};

/// Queue backups of all customers again and again, whatever goes wrong, while `act` runs; then every job ends.
fn under_load<T>(world: &World, act: impl FnOnce() -> T) -> T {
    let is_done = AtomicBool::new(false);
    let done = thread::scope(|scope| {
        scope.spawn(|| {
            while !is_done.load(Ordering::Relaxed) {
                let queued = world.customers.iter();
                for customer in queued.take_while(|_| !is_done.load(Ordering::Relaxed)) {
                    // One that has a job already gets none, and without a database nobody does.
                    let _ = world.try_queue(customer.id, BackupType::Files);
                }
                thread::sleep(Duration::from_millis(100));
            }
        });
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(act));
        is_done.store(true, Ordering::Relaxed);
        done
    });
    match done {
        Ok(done) => done,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Wait until so many more jobs have been completed.
fn until_more(world: &World, more: usize) {
    let completed = || {
        let jobs = world.jobs();
        let is_completed = |job: &&Job| job.status == JobStatus::Completed;
        jobs.iter().filter(is_completed).count()
    };
    let before = completed();
    eventually("more jobs are completed", || completed() >= before + more);
}

#[track_caller]
fn assert_each_ran_once(jobs: &[Job]) {
    for job in jobs {
        assert_eq!(
            (job.status, job.attempts),
            (JobStatus::Completed, 1),
            "{job:?}"
        );
    }
}

#[test]
fn redis_killed_restarted_and_emptied_under_load_costs_no_job_and_doubles_none() {
    let mut redis = Redis::start().unwrap();
    let url = redis.url();
    let settings = [("QUEUE__REDIS_URL", url.as_str()), ("WORKER__LEASE", "30s")];
    let mut world = World::with(1..=12, &settings);
    world
        .product
        .keep_secret("the password of Redis", redis.password());
    let workers = [world.worker(&settings), world.worker(&settings)];
    under_load(&world, || {
        until_more(&world, 6);
        redis.kill();
        until_more(&world, 6);
        redis.restart().unwrap();
        until_more(&world, 6);
        redis.command(&["FLUSHALL"]).unwrap();
        until_more(&world, 6);
        redis.pause().unwrap();
        until_more(&world, 6);
        redis.resume().unwrap();
        until_more(&world, 3);
    });
    world.until_all_ended();

    // At once while Redis is there, and soon without it.
    redis.kill();
    let alone = world.queue(1, BackupType::Files);
    world.completed(alone);
    let job = world.job(alone);
    let waited = job
        .started_at
        .unwrap()
        .duration_since(job.created_at.unwrap());
    assert!(waited.as_secs_f64() < 20.0, "{waited}");
    // Its time of creation is in whole seconds.
    redis.restart().unwrap();
    let jobs = world.jobs();
    assert_each_ran_once(&jobs);
    for worker in workers {
        world.end(worker);
    }
    world.assert_truthful();
}

#[test]
fn a_database_killed_and_restarted_under_load_costs_no_job_and_doubles_none() {
    let mut world = World::new(1..=12);
    // What was committed must be there after a kill.
    let durable = "SET GLOBAL innodb_flush_log_at_trx_commit = 2";
    world.sql(durable);
    let settings = [("WORKER__CONCURRENCY", "3"), ("WORKER__SYNC_EVERY", "1s")];
    let mut workers = [world.worker(&settings), world.worker(&settings)];
    let mut made = BTreeSet::new();
    for is_killed in [true, false] {
        under_load(&world, || {
            until_more(&world, 5);
            let shutdown = Instant::now();
            if is_killed {
                world.product.bed.mariadb().signal_kill();
            } else {
                world.sql("SHUTDOWN");
            }
            // Longer than the lease.
            eventually("leases have ended", || {
                shutdown.elapsed() > Duration::from_secs(4)
            });
        });
        let mariadb = world.product.bed.mariadb_mut();
        mariadb.kill();
        mariadb.restart().unwrap();
        world.sql(durable);
        under_load(&world, || until_more(&world, 5));
        world.until_all_ended();
        for worker in &mut workers {
            assert!(worker.is_running());
        }
        let jobs = world.jobs();
        let numbers: BTreeSet<_> = jobs.iter().map(|job| job.id).collect();
        assert!(numbers.is_superset(&made), "a job is gone");
        made = numbers;
        for job in &jobs {
            assert_eq!(job.status, JobStatus::Completed, "{job:?}");
        }
    }
    for worker in workers {
        world.end(worker);
    }
    world.assert_truthful();
    world.assert_sound();
}

#[test]
fn a_database_that_falls_silent_holds_no_worker_up_for_ever() {
    let world = World::new([1]);
    let bed = &world.product.bed;
    let database = Proxy::start(bed.mariadb().port()).unwrap();
    let url = format!(
        "mysql://shophosting_app@127.0.0.1:{}/shophosting_db",
        database.port()
    );
    let settings = [("DATABASE__URL", url.as_str())];
    let storage = world.proxy();
    storage.set_bytes_per_second(Some(2 * MIB));
    add_noise(world.customer(1), "noise", 4 * MIB);
    let worker = world.worker_through(&storage, &settings);
    let job = world.queue(1, BackupType::Files);
    world.until_running(job);
    let sent = storage.bytes_to_target();
    eventually("it saves", || storage.bytes_to_target() > sent + MIB);
    // Its machine is gone without a word; another one answers at its address.
    database.mute();
    world.completed(job);
    world.completed(world.queue(1, BackupType::Files));
    world.end(worker);
    world.assert_truthful();
}

#[test]
fn eight_workers_run_each_of_sixty_jobs_once() {
    let world = World::new(1..=60);
    for customer in &world.customers {
        world.queue(customer.id, BackupType::Files);
    }
    let settings = [("WORKER__LEASE", "30s")];
    let workers: Vec<_> = (0..8).map(|_| world.worker(&settings)).collect();
    world.until_all_ended();
    let jobs = world.jobs();
    assert_eq!(jobs.len(), 60);
    assert_each_ran_once(&jobs);
    for worker in workers {
        world.end(worker);
    }
    assert_eq!(world.snapshots().len(), 60);
    world.assert_truthful();
}

#[test]
fn a_worker_runs_the_jobs_of_its_own_server_only() {
    let redis = Redis::start().unwrap();
    let url = redis.url();
    let queue = ("QUEUE__REDIS_URL", url.as_str());
    let mut world = World::with([1, 12], &[queue]);
    world
        .product
        .keep_secret("the password of Redis", redis.password());
    world.sql(
        "USE shophosting_db; INSERT INTO servers (name, hostname) VALUES ('second', 'localhost');
         UPDATE customers SET server_id = LAST_INSERT_ID() WHERE id = 12;",
    );
    let elses = world.queue(12, BackupType::Files);
    assert_eq!(redis.command(&["LLEN", "backups:second"]).unwrap(), "1");
    assert_eq!(redis.command(&["LLEN", "backups"]).unwrap(), "0");
    let here = world.worker(&[queue]);
    world.completed(world.queue(1, BackupType::Files));
    world.completed(world.queue(1, BackupType::Files));
    let waits = world.job(elses);
    assert_eq!(
        (waits.status, waits.attempts, waits.server.as_str()),
        (JobStatus::Pending, 0, "second")
    );
    let second = world.worker(&[queue, ("WORKER__SERVER", "second")]);
    world.completed(elses);
    world.end(here);
    world.end(second);
    assert_eq!(redis.command(&["LLEN", "backups:second"]).unwrap(), "0");

    let refused = world
        .product
        .run_command(world.command("--json backup 12 --type files", &[]))
        .refusal(2);
    for words in ["customer 12", "server second", "worker.server"] {
        assert!(refused.contains(words), "{refused}");
    }
    world.assert_truthful();
}
