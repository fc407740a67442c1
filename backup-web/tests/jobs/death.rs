//! Workers that are killed, or stopped for so long that others believe them dead.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use backup_core::jobs::{Failure, JobStatus};
use backup_core::repository::BackupType;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use rustix::process::Signal;
use xtask::proxy::Proxy;

use crate::world::{MIB, World, add_noise, assert_plain, eventually, until_log};

/// Puts each customer on a hosting server of his own, so that each has workers of his own.
fn separate(world: &World) {
    for customer in &world.customers {
        world.sql(&format!(
            "USE shophosting_db;
             INSERT INTO servers (name, hostname) VALUES ('lane-{0}', 'localhost');
             UPDATE customers SET server_id = LAST_INSERT_ID() WHERE id = {0};",
            customer.id
        ));
    }
}

fn traffic(proxy: &Proxy) -> u64 {
    proxy.bytes_to_target() + proxy.bytes_from_target()
}

/// How many of these rounds killed a worker before its job's end.
fn die_again_and_again(world: &World, id: u32, rounds: u32, random: &mut SmallRng) -> u32 {
    let server = format!("lane-{id}");
    let settings = [
        ("WORKER__SERVER", server.as_str()),
        ("WORKER__LEASE", "3s"),
        ("WORKER__SYNC_EVERY", "1s"),
    ];
    let proxy = world.proxy();
    proxy.set_bytes_per_second(Some(2 * MIB));
    // Stretches the commit, which is a few bytes and many answers.
    proxy.set_delay(Duration::from_millis(10));
    let customer = world.customer(id);
    let mut worker = world.worker_through(&proxy, &settings);
    world.completed(world.queue(id, BackupType::Both));
    add_noise(customer, "noise", 2 * MIB);
    let first = world.queue(id, BackupType::Both);
    world.until_running(first);
    let begun = traffic(&proxy);
    world.completed(first);
    let usual = traffic(&proxy) - begun;

    let mut deaths = 0;
    for round in 0..rounds {
        add_noise(customer, "noise", 2 * MIB);
        let job = world.queue(id, BackupType::Both);
        world.until_running(job);
        let has_ended = || !world.job(job).status.is_active();
        if round % 2 == 0 {
            let at = traffic(&proxy) + random.random_range(0..usual);
            eventually("the moment comes, or the end", || {
                traffic(&proxy) >= at || has_ended()
            });
        } else {
            eventually("it commits", || !world.job(job).cancellable);
            let at = Instant::now() + Duration::from_millis(random.random_range(0..200));
            eventually("the moment comes", || Instant::now() >= at);
        }
        world.kill(worker);
        let at_death = world.job(job);
        worker = world.worker_through(&proxy, &settings);
        world.completed(job);
        let end = world.job(job);
        if at_death.status == JobStatus::Completed {
            assert_eq!(end, at_death);
        } else {
            assert_eq!(end.attempts, 2, "{end:?}");
            deaths += 1;
        }
    }
    world.end(worker);
    deaths
}

#[test]
fn a_backup_whose_worker_is_killed_at_any_moment_is_made_once_by_another() {
    const ROUNDS: u32 = 4;
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let world = World::new(1..=5);
    separate(&world);
    for customer in &world.customers {
        world.sql(&format!(
            "USE {}; CREATE TABLE noise (id INT PRIMARY KEY, noise LONGBLOB);
             INSERT INTO noise SELECT seq, RANDOM_BYTES(1024) FROM seq_1_to_300;",
            customer.database
        ));
    }
    let deaths: u32 = thread::scope(|scope| {
        let lanes: Vec<_> = (1..=5)
            .map(|id| {
                let world = &world;
                let mut random = SmallRng::seed_from_u64(seed.wrapping_add(u64::from(id)));
                scope.spawn(move || die_again_and_again(world, id, ROUNDS, &mut random))
            })
            .collect();
        lanes.into_iter().map(|lane| lane.join().unwrap()).sum()
    });
    println!("{deaths} workers were killed before the end of their job");
    assert!(deaths >= 8, "only {deaths} were killed in time");
    assert_eq!(world.jobs().len(), 5 * (ROUNDS as usize + 2));
    world.assert_truthful();
    world.assert_sound();
}

/// Ends the connections that wait for a table, as a server does whose client is gone.
fn hang_up_who_waits(world: &World) {
    let mariadb = world.product.bed.mariadb();
    for connection in mariadb.waiting_for_table().unwrap() {
        world.sql(&format!("KILL {connection}"));
    }
}

fn waits_with(world: &World, statement: &str) -> bool {
    let query = format!(
        "SELECT COUNT(*) FROM information_schema.processlist
         WHERE state LIKE 'Waiting for table%' AND info LIKE '{statement}'"
    );
    world.sql(&query) != "0\n"
}

#[test]
fn a_worker_killed_between_the_snapshot_and_the_end_of_its_job_has_made_the_backup() {
    let world = World::new([1]);
    // Once it is not even told that the snapshot is there, once it is in the middle of the transaction that ends the job.
    for (done, knows) in [false, true].into_iter().enumerate() {
        let proxy = world.proxy();
        // Slow enough for whoever looks on to be in time, also on a busy machine.
        proxy.set_delay(Duration::from_millis(100));
        let worker = world.worker_through(&proxy, &[]);
        let lock = knows.then(|| {
            let mariadb = world.product.bed.mariadb();
            mariadb
                .lock_table("shophosting_db.customer_backups")
                .unwrap()
        });
        let job = world.queue(1, BackupType::Files);
        eventually("it commits", || !world.job(job).cancellable);
        // Several answers away from the end.
        proxy.set_delay(Duration::from_secs(1));
        eventually("the snapshot is there", || {
            world.snapshots().len() == done + 1
        });
        if knows {
            eventually("it is at the end of its job", || {
                waits_with(&world, "%customer_backups%")
            });
        } else {
            proxy.pause(true);
        }
        let snapshots = world.snapshots();
        world.kill(worker);
        hang_up_who_waits(&world);
        drop(lock);
        assert_eq!(world.job(job).status, JobStatus::Running);

        let other = world.worker(&[]);
        let snapshot = world.completed(job);
        assert!(world.end(other).contains("an earlier attempt had written"));
        assert_eq!(world.job(job).attempts, 2);
        assert_eq!(world.snapshots(), snapshots, "no second one");
        assert!(snapshots.contains(&snapshot));
        world.assert_truthful();
    }
    world.assert_sound();
}

/// Where a worker is stopped.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Stopped {
    WhileSaving,
    BeforeItMayCommit,
    WhenItMayCommit,
}

#[test]
fn a_worker_stopped_for_longer_than_its_lease_changes_nothing_afterwards() {
    let world = World::new([1]);
    let mariadb = world.product.bed.mariadb();
    for place in [
        Stopped::WhileSaving,
        Stopped::BeforeItMayCommit,
        Stopped::WhenItMayCommit,
    ] {
        let proxy = world.proxy();
        proxy.set_bytes_per_second(Some(4 * MIB));
        add_noise(world.customer(1), "noise", 4 * MIB);
        let stale = world.worker_through(&proxy, &[]);
        let job = world.queue(1, BackupType::Files);
        world.until_running(job);
        let sent = proxy.bytes_to_target();
        eventually("it saves", || proxy.bytes_to_target() > sent + MIB);
        if place == Stopped::WhileSaving {
            stale.signal(Signal::STOP).unwrap();
        } else {
            let lock = mariadb
                .lock_table("shophosting_db.customer_backup_jobs")
                .unwrap();
            eventually("it asks whether it may commit", || {
                waits_with(&world, "%committing = 1%")
            });
            stale.signal(Signal::STOP).unwrap();
            if place == Stopped::BeforeItMayCommit {
                hang_up_who_waits(&world);
            }
            drop(lock);
        }

        let other = world.worker(&[]);
        world.completed(job);
        let end = world.job(job);
        assert_eq!(end.attempts, 2, "{place:?}");
        stale.signal(Signal::CONT).unwrap();
        let log = world.end(stale);
        assert!(log.contains("lost to another worker"), "{place:?}: {log}");
        assert_eq!(world.job(job), end, "{place:?}");
        world.end(other);
        world.assert_truthful();
    }
    world.assert_sound();
}

#[test]
fn a_restore_whose_worker_is_killed_is_undone_and_one_that_is_only_slow_is_left_alone() {
    let world = World::new([1, 12]);
    let customer = world.customer(1);
    let noise = add_noise(customer, "noise", 6 * MIB);
    let content = fs::read(&noise).unwrap();
    let snapshot = world.back_up(1, BackupType::Files);
    fs::write(&noise, "something else").unwrap();

    for is_killed in [true, false] {
        let proxy = world.proxy();
        proxy.set_bytes_per_second(Some(2 * MIB));
        let job = world.queue_restore(1, &snapshot);
        let first = world.worker_through(&proxy, &[]);
        world.until_running(job);
        let got = proxy.bytes_from_target();
        eventually("it fetches", || proxy.bytes_from_target() > got + 2 * MIB);
        if is_killed {
            world.kill(first);
            let mut other = world.worker(&[]);
            // Others are served meanwhile.
            let elses = world.queue(12, BackupType::Files);
            other.until("the restore is undone", || {
                !world.job(job).status.is_active()
            });
            world.completed(elses);
            let log = world.end(other);
            let end = world.job(job);
            assert_eq!(
                (end.status, end.failure),
                (JobStatus::Failed, Some(Failure::Interrupted))
            );
            assert_plain(&end);
            assert!(log.contains("was interrupted"), "{log}");
            assert_eq!(fs::read(&noise).unwrap(), b"something else");
        } else {
            first.signal(Signal::STOP).unwrap();
            let mut other = world.worker(&[]);
            let said = until_log(&mut other, "still holds the customer");
            assert!(said.contains(&format!("job={job}")), "{said}");
            let still = world.job(job);
            assert_eq!((still.status, still.attempts), (JobStatus::Running, 1));
            first.signal(Signal::CONT).unwrap();
            let end = world.ended(job);
            assert_eq!((end.status, end.attempts), (JobStatus::Completed, 1));
            assert!(fs::read(&noise).unwrap() == content);
            world.end(first);
            world.end(other);
        }
        assert!(!customer.directory.join(".maintenance").exists());
    }
}
