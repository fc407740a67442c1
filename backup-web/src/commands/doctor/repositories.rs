//! The repositories: reached, opened, and written to.

use std::time::Duration;

use backup_core::config::{Config, Origin, RepositoryConfig};
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::operations::{open_storage, try_storage};
use backup_core::progress::Cancel;
use backup_core::repository::Repository;
use backup_core::storage::Trial;
use jiff::{SignedDuration, Timestamp};

use super::customers::Customers;
use super::report::Report;
use super::{LITTLE_SPACE, check_clock};
use crate::commands::repositories;

/// The longest that passing faults of a backup server are retried here.
const PATIENCE: Duration = Duration::from_secs(10);

/// The version of the format that all is made and tested for.
const FORMAT_VERSION: u32 = 2;

/// The newest daily backup of a platform that makes one each night is not older.
const DAILY_AGE: SignedDuration = SignedDuration::from_hours(26);

pub(super) fn check(
    config: &Config,
    customers: &Customers,
    cancel: &Cancel,
    report: &mut Report,
) -> Result<()> {
    let (mut manual, mut daily) = (Vec::new(), None);
    for (name, repository) in repositories(config) {
        cancel.check()?;
        let section = format!("repositories.{name}");
        let mut repository = repository.clone();
        // Somebody waits for the answer.
        repository.retry_for = repository.retry_for.min(PATIENCE);
        let ours = name == "manual" || config.origin == Origin::Embedded || config.daily.is_some();
        if repository.is_for_each_customer() {
            // Most of it is the same for all of them.
            for customer in customers.tried(config) {
                cancel.check()?;
                let name = format!("{section} of customer {}", customer.id);
                let own = repository.of_customer(customer.id);
                manual.extend(check_one(&name, &own, Whose::OfCustomer, cancel, report));
            }
            continue;
        }
        let whose = match ours {
            true => Whose::Ours,
            false => Whose::Platforms,
        };
        let id = check_one(&section, &repository, whose, cancel, report);
        match name {
            "manual" => manual.extend(id),
            _ => daily = id,
        }
    }
    if daily.is_some_and(|daily| manual.contains(&daily)) {
        report.failed(
            "repositories.daily",
            "it is the same repository as repositories.manual: pruning the one by our rules would remove backups of the other",
            "correct the location of one of them",
        );
    }
    Ok(())
}

/// Who makes a repository.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Whose {
    Ours,
    /// One of a customer's own.
    OfCustomer,
    Platforms,
}

/// Gives the repository's id, where it can be opened.
fn check_one(
    name: &str,
    config: &RepositoryConfig,
    whose: Whose,
    cancel: &Cancel,
    report: &mut Report,
) -> Option<String> {
    let ours = whose != Whose::Platforms;
    let opened = match open(config, cancel) {
        Ok(Some(opened)) => opened,
        Ok(None) => {
            report.warning(
                name,
                format!("there is no repository at {} yet", config.location),
                match whose {
                    Whose::Ours => "create it: shophosting-backup init",
                    Whose::OfCustomer => {
                        "the customer's first backup makes it, or shophosting-backup init; if he has backups, it is gone: bring it back"
                    }
                    Whose::Platforms => {
                        "the platform's own script makes it; remove the section if there are no daily backups"
                    }
                },
            );
            return None;
        }
        Err(e) => {
            report.error(name, &e, remedy(&e));
            return None;
        }
    };
    let version = opened.format_version();
    if version != FORMAT_VERSION {
        report.failed(
            name,
            format!("it is of version {version} of the format, and nothing but version {FORMAT_VERSION} is known to work"),
            "upgrade it, with no other program at work on it: restic migrate upgrade_repo_v2",
        );
    }
    match look(&opened, ours) {
        Ok(found) => {
            report.ok(
                name,
                format!("{}, {} backups", config.location, found.snapshots),
            );
            for lock in found.stale {
                report.warning(
                    name,
                    format!("{lock}: it is in the way"),
                    "when nothing runs any more, remove it: shophosting-backup unlock",
                );
            }
            if name == "repositories.daily" {
                check_age(name, found.newest, ours, report);
            }
        }
        Err(e) if e.kind() == ErrorKind::Busy => {
            report.warning(name, e.chain(), "try again when that is done");
        }
        Err(e) => report.error(name, &e, remedy(&e)),
    }
    match try_storage(config, cancel) {
        Ok(trial) => check_storage(name, config, &trial, report),
        Err(e) => report.error(
            &format!("{name} writing"),
            &e,
            match e.kind() {
                ErrorKind::NoSpace => "make room on the backup server's disk",
                _ => "let the account there write to the repository, locks included, and see that its disk is mounted read-write",
            },
        ),
    }
    Some(opened.id())
}

fn remedy(error: &Error) -> &'static str {
    match error.kind() {
        ErrorKind::Unreachable => "start that server, mend the way to it, or correct location",
        ErrorKind::Refused => {
            "correct what was refused: password_file, ssh_key, or known_hosts, once the backup server's operator confirms its host key; the access key or the bucket of an object store"
        }
        ErrorKind::Damaged => "see what is damaged: shophosting-backup check",
        ErrorKind::NotFound | ErrorKind::Configuration => "correct location, or what is named",
        _ => "mend what is named, and see that the account there can read the whole repository",
    }
}

fn open(config: &RepositoryConfig, cancel: &Cancel) -> Result<Option<Repository>> {
    let storage = open_storage(config, cancel)?;
    if !Repository::exists(&*storage)? {
        return Ok(None);
    }
    Repository::open(storage, &config.read_password()?).map(Some)
}

struct Found {
    snapshots: usize,
    /// When the newest daily backup of this machine was made.
    newest: Option<Timestamp>,
    stale: Vec<String>,
}

fn look(repository: &Repository, ours: bool) -> Result<Found> {
    let locks = repository.locks()?;
    let stale: Vec<_> = locks
        .iter()
        .filter(|lock| lock.is_stale())
        .map(ToString::to_string)
        .collect();
    // Where another program prunes by the clock, even a lock of a moment could be in its way.
    if ours && stale.is_empty() {
        drop(repository.lock_shared()?);
    }
    let snapshots = repository.snapshots()?;
    Ok(Found {
        snapshots: snapshots.len(),
        newest: snapshots
            .iter()
            .filter(|snapshot| snapshot.is_daily() && snapshot.is_from_here())
            .map(|snapshot| snapshot.time)
            .max(),
        stale,
    })
}

fn check_age(name: &str, newest: Option<Timestamp>, ours: bool, report: &mut Report) {
    let name = format!("{name} age");
    let remedy = if ours {
        "see why `daily` does not run or does not end: systemctl list-timers, journalctl -u shophosting-backup-daily"
    } else {
        "see why the platform's nightly backup does not run or does not end"
    };
    let Some(newest) = newest else {
        return report.warning(
            &name,
            "there is no daily backup of this server in it",
            remedy,
        );
    };
    let age = Timestamp::now().duration_since(newest);
    let message = format!(
        "the newest daily backup of this server is of {newest}, {} h ago",
        age.as_hours()
    );
    if age > DAILY_AGE {
        report.warning(&name, message, remedy);
    } else {
        report.ok(&name, message);
    }
}

fn check_storage(name: &str, config: &RepositoryConfig, trial: &Trial, report: &mut Report) {
    let writing = format!("{name} writing");
    if config.is_object_storage() {
        report.ok(&writing, "an object was written, read back and removed");
        return check_storage_clock(name, trial, report);
    }
    if !trial.can_replace {
        report.warning(
            &writing,
            "the server cannot let a file take the place of another in one step (posix-rename@openssh.com): a file that is written again is away for a moment",
            "let OpenSSH's internal-sftp serve this account, with that request allowed",
        );
    }
    if !trial.can_sync {
        report.warning(
            &writing,
            "the server cannot be asked to bring a file to its disk (fsync@openssh.com): a backup may be lost in a power cut there, though it was promised",
            "let OpenSSH's internal-sftp serve this account, with that request allowed",
        );
    }
    if trial.can_replace && trial.can_sync {
        report.ok(&writing, "a file was written, synced, renamed and removed");
    }
    let space = format!("{name} space");
    match trial.bytes_available {
        Some(bytes) if bytes < LITTLE_SPACE => report.warning(
            &space,
            format!("{} MiB are free there", bytes >> 20),
            "make room there; what was forgotten takes room until shophosting-backup prune",
        ),
        Some(bytes) => report.ok(&space, format!("{} GiB are free there", bytes >> 30)),
        None => report.ok(&space, "the server does not tell (statvfs@openssh.com)"),
    }
    check_storage_clock(name, trial, report);
}

fn check_storage_clock(name: &str, trial: &Trial, report: &mut Report) {
    if let Some(ahead) = trial.clock_ahead {
        check_clock(&format!("{name} clock"), "the backup server", ahead, report);
    }
}
