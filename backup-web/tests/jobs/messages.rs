//! What a customer is told of a job that failed, and what the log says of it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use backup_core::jobs::{Failure, JobStatus};
use backup_core::repository::BackupType;
use xtask::mount::Mount;

use crate::world::{MIB, Settings, World, add_noise, assert_plain};

/// Let a job fail under a worker that logs all that it can, and hold what is said against what may be said.
#[track_caller]
fn fails(world: &World, backup_type: BackupType, settings: Settings, words: &str) -> String {
    let job = world.queue(1, backup_type);
    let mut command = world.command("worker", settings);
    command.env("RUST_LOG", "trace");
    fails_under(world, job, command, words)
}

#[track_caller]
fn fails_under(
    world: &World,
    job: backup_core::jobs::JobId,
    command: Command,
    words: &str,
) -> String {
    let worker = world.start(command);
    let end = world.ended(job);
    assert_eq!(
        (end.status, end.failure),
        (JobStatus::Failed, Some(Failure::Error)),
        "{end:?}"
    );
    assert_plain(&end);
    let log = world.end(worker);
    let number = format!("job={job}");
    let line = log
        .lines()
        .find(|line| line.contains(" ERROR ") && line.contains(&number))
        .unwrap_or_else(|| panic!("nothing in the log: {end:?}"));
    assert!(line.contains(words), "no `{words}` in {line}");
    end.error_message.unwrap()
}

#[test]
fn a_customer_is_told_nothing_of_the_machines_and_the_log_everything_but_secrets() {
    let world = World::new([1]);
    let bed = &world.product.bed;
    let scratch = bed.scratch();
    let snapshot = world.back_up(1, BackupType::Both);

    let password = scratch.join("wrong-password");
    fs::write(&password, "wrong").unwrap();
    fs::set_permissions(&password, fs::Permissions::from_mode(0o600)).unwrap();
    let path = password.to_str().unwrap();
    let said = fails(
        &world,
        BackupType::Files,
        &[("REPOSITORIES__MANUAL__PASSWORD_FILE", path)],
        "password",
    );
    assert!(said.contains("support"), "{said}");

    let proxy = world.proxy();
    proxy.refuse(true);
    let job = world.queue(1, BackupType::Files);
    let mut command = world.command("worker", &[]);
    command.env("RUST_LOG", "trace");
    world.product.through(&proxy, &mut command).unwrap();
    let said = fails_under(&world, job, command, "127.0.0.1");
    assert!(said.contains("could not be reached"), "{said}");

    let small = scratch.join("backup-server/small");
    fs::create_dir(&small).unwrap();
    let mounted = Mount::tmpfs(&small, "size=8m").unwrap();
    let location = bed.sshd().location(&small.join("repository"));
    let full = [("REPOSITORIES__MANUAL__LOCATION", location.as_str())];
    world
        .product
        .run_command(world.command("init", &full))
        .done();
    let noise = add_noise(world.customer(1), "noise", 12 * MIB);
    let said = fails(&world, BackupType::Files, &full, "full");
    assert!(said.contains("not enough space"), "{said}");
    fs::remove_file(noise).unwrap();
    drop(mounted);

    let said = fails(
        &world,
        BackupType::Db,
        &[("CUSTOMER_DATABASE__USER", "nobody_here")],
        "nobody_here",
    );
    assert!(said.contains("support"), "{said}");

    let site = world.customer(1).site();
    let away = scratch.join("away");
    fs::rename(&site, &away).unwrap();
    let said = fails(&world, BackupType::Files, &[], "site");
    assert!(!said.contains("That backup does not exist"), "{said}");
    fs::rename(&away, &site).unwrap();

    // The workers of the other repository took the customer's backups of this one out of the catalogue.
    world.product.run_command(world.command("sync", &[])).done();
    let job = world.queue_restore(1, &snapshot);
    fs::remove_file(bed.manual_repository().join("snapshots").join(&snapshot)).unwrap();
    let mut command = world.command("worker", &[]);
    command.env("RUST_LOG", "trace");
    let said = fails_under(&world, job, command, &snapshot[..8]);
    assert!(said.contains("That backup does not exist"), "{said}");
    assert_eq!(world.snapshots().len(), 0);
}
