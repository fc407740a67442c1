//! How all customers are: the newest good backups of their files and databases, what failed since, what runs or is stuck, what is kept. For operators.
//!
//! A few queries, however many customers there are. Never: a look into a repository; a customer left out because his row makes no sense; a backup of his files alone taken
//! for one of his database.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use super::BackupService;
use crate::catalog::{Held, Source, Synced};
use crate::customer::{CustomerId, Placed};
use crate::error::Result;
use crate::jobs::{Failures, Job, JobStatus, JobType};

/// A good backup each day, and two hours for it to be made.
const LATE: Duration = Duration::from_secs(26 * 60 * 60);
/// A day without one.
const MISSED: Duration = Duration::from_secs(50 * 60 * 60);
/// Until a worker takes a job up he may be busy with others.
const QUEUED: Duration = Duration::from_secs(15 * 60);
/// A worker looks into its repositories every few minutes, or as `worker.sync_every` says.
const UNSEEN: Duration = Duration::from_secs(2 * 60 * 60);

/// All customers, those first who need a look, the worst of them first of all.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Status {
    /// When it was looked at, by the database's clock.
    pub at: Timestamp,
    /// The customers.
    pub customers: Vec<CustomerStatus>,
    /// Of each repository of a hosting server when its worker last looked at it.
    pub repositories: Vec<RepositoryStatus>,
}

/// How one customer is.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct CustomerStatus {
    /// His number.
    pub customer_id: CustomerId,
    /// His shop's domain or his company, where the table has them.
    pub name: Option<String>,
    /// His hosting server; None where the table names one that there is not.
    pub server: Option<String>,
    /// What the platform calls his state.
    pub status: Option<String>,
    /// What is wrong, the worst first.
    pub problems: Vec<Problem>,
    /// His own backups.
    pub manual: Kept,
    /// The daily ones.
    pub daily: Kept,
    /// What restores replaced.
    pub pre_restore: Kept,
    /// Backups that failed since his newest good one, within the last 30 days; those that were cancelled do not count.
    pub failures: u64,
    /// The last of them.
    pub last_failed_job: Option<u64>,
    /// His job that has not ended, or his restore that is stuck.
    pub job: Option<OpenJob>,
    /// When a backup of his was last proven by restoring it; None where that was never done.
    pub last_proven: Option<Timestamp>,
    /// Whether he is known to have a database: the table names one, or one of his backups holds its dump.
    pub has_database: bool,
}

/// What is kept of a customer from one source.
#[derive(Debug, Clone, Default, Serialize)]
#[non_exhaustive]
pub struct Kept {
    /// When the newest was made.
    pub newest: Option<Timestamp>,
    /// When the newest that holds his files was made.
    pub newest_files: Option<Timestamp>,
    /// When the newest that holds his database was made.
    pub newest_database: Option<Timestamp>,
    /// Its plain bytes, where known.
    pub newest_bytes: Option<u64>,
    /// How many are kept.
    pub count: u64,
    /// Their plain bytes together, as far as they are known.
    pub bytes: u64,
    /// What the repository grew by for them, as far as that is known.
    pub bytes_added: u64,
}

/// A job without its true end.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct OpenJob {
    /// Its number.
    pub id: u64,
    /// What it does.
    pub job_type: JobType,
    /// Whether it waits, runs, or has failed by getting stuck.
    pub status: JobStatus,
    /// Whether it is a restore that could be neither finished nor undone.
    pub is_stuck: bool,
    /// Since when it waits, runs, or is stuck.
    pub since: Option<Timestamp>,
}

/// A hosting server's repository, as its worker last saw it.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct RepositoryStatus {
    /// The hosting server.
    pub server: String,
    /// `manual` or `daily`.
    pub source: String,
    /// When its worker last looked.
    pub synced_at: Timestamp,
    /// Whether that is too long ago: the worker is gone, or cannot reach it.
    pub is_unseen: bool,
}

/// Something that an operator has to look at; the worst come first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Problem {
    /// A restore could be neither finished nor undone: the shop is closed.
    StuckRestore,
    /// There is no good backup at all, or none of his files, or none of his database.
    NoBackup,
    /// A backup of his could not be restored when that was tried last.
    NotProven,
    /// The newest good backup of his files, or that of his database, is older than 50 hours.
    BackupMissed,
    /// A job runs for longer than it may.
    RunsTooLong,
    /// A job waits and no worker takes it up.
    WaitsTooLong,
    /// Backups failed since the newest good one.
    BackupsFail,
    /// The newest good backup of his files, or that of his database, is older than 26 hours.
    BackupLate,
    /// It cannot be told which hosting server he is on.
    NoServer,
}

impl Status {
    /// Whether an operator has to look at something.
    pub fn needs_look(&self) -> bool {
        self.troubled() > 0 || self.repositories.iter().any(|one| one.is_unseen)
    }

    /// The customers who need a look.
    pub fn troubled(&self) -> usize {
        let troubled = |customer: &&CustomerStatus| !customer.problems.is_empty();
        self.customers.iter().filter(troubled).count()
    }
}

impl CustomerStatus {
    /// His newest good backup, wherever it is from. What a restore replaced is none.
    pub fn newest(&self) -> Option<Timestamp> {
        self.manual.newest.max(self.daily.newest)
    }

    /// What of him was backed up the longest time ago, and when that was; None: never. Both the same where that is so of all that he has.
    fn most_behind(&self) -> (&'static str, Option<Timestamp>) {
        let files = self.manual.newest_files.max(self.daily.newest_files);
        let database = self.manual.newest_database.max(self.daily.newest_database);
        match files.cmp(&database) {
            _ if !self.has_database => ("", files),
            Ordering::Less => (" of his files", files),
            Ordering::Equal => ("", files),
            Ordering::Greater => (" of his database", database),
        }
    }

    /// A problem of his in one sentence for an operator, at the time at which it was seen.
    pub fn sentence(&self, problem: Problem, now: Timestamp) -> String {
        let job = self.job.as_ref();
        let number = job.map_or_else(|| "?".to_owned(), |job| job.id.to_string());
        let lasts = job
            .and_then(|job| job.since)
            .map_or_else(|| "?".to_owned(), |since| span(age(now, since)));
        let (of_what, newest) = self.most_behind();
        let old = newest.map_or_else(|| "?".to_owned(), |newest| span(age(now, newest)));
        match problem {
            Problem::StuckRestore => format!(
                "the restore that is job {number} has been stuck for {lasts}: mend its cause, then run recover"
            ),
            Problem::NoBackup => format!("there is no good backup{of_what}"),
            Problem::NotProven => {
                "his newest backup could not be restored when that was tried: run verify".to_owned()
            }
            Problem::BackupMissed | Problem::BackupLate => {
                format!("the newest good backup{of_what} is {old} old")
            }
            Problem::RunsTooLong => format!("job {number} has been running for {lasts}"),
            Problem::WaitsTooLong => {
                format!("job {number} has waited for {lasts}: no worker takes it up")
            }
            Problem::BackupsFail => {
                let last = self.last_failed_job.unwrap_or_default();
                match self.failures {
                    1 => format!("a backup failed since the newest good one: job {last}"),
                    many => format!(
                        "{many} backups failed since the newest good one, the last is job {last}"
                    ),
                }
            }
            Problem::NoServer => {
                "the table of customers names a hosting server that there is not".to_owned()
            }
        }
    }

    /// Whether the platform lets him use what he has.
    pub fn is_active(&self) -> bool {
        self.status.as_deref() == Some("active")
    }
}

/// What the queries gave, by customer.
struct Found {
    now: Timestamp,
    held: HashMap<CustomerId, BTreeMap<Source, Held>>,
    failures: HashMap<CustomerId, Failures>,
    open: HashMap<CustomerId, Job>,
    proven: HashMap<CustomerId, Timestamp>,
    /// Of whom the last proof failed.
    disproved: BTreeSet<CustomerId>,
}

impl BackupService {
    /// How the customers of a hosting server are; with None, those of all.
    pub async fn status(&self, server: Option<&str>) -> Result<Status> {
        let found = self.found().await?;
        let is_here = |name: Option<&str>| match (server, name) {
            (Some(server), Some(name)) => name == server,
            // Who is nowhere may be here.
            _ => true,
        };
        let mut customers: Vec<CustomerStatus> = self
            .customers
            .placed()
            .await?
            .into_iter()
            .filter(|customer| is_here(customer.server.as_deref()))
            .map(|customer| self.judge(customer, &found))
            .collect();
        customers.sort_by_key(|customer| {
            let worst = customer.problems.first().copied();
            (worst.is_none(), worst, customer.customer_id)
        });
        let synced = self.catalog.syncs().await?;
        let unseen = UNSEEN.max(self.config.worker.sync_every * 3);
        // Of a hosting server that nobody is on any more nobody expects a worker.
        let servers: BTreeSet<&str> = customers
            .iter()
            .filter_map(|customer| customer.server.as_deref())
            .collect();
        let repositories = synced
            .into_iter()
            .filter(|one| servers.contains(one.server.as_str()))
            .map(|one| seen(one, found.now, unseen))
            .collect();
        Ok(Status {
            at: found.now,
            customers,
            repositories,
        })
    }

    async fn found(&self) -> Result<Found> {
        let mut held: HashMap<CustomerId, BTreeMap<Source, Held>> = HashMap::new();
        for one in self.catalog.held().await? {
            held.entry(one.customer)
                .or_default()
                .insert(one.source, one);
        }
        let mut proven: HashMap<CustomerId, Timestamp> = HashMap::new();
        let mut disproved = BTreeSet::new();
        for proof in self.catalog.proofs().await? {
            if proof.has_failed {
                disproved.insert(proof.customer);
            }
            let Some(at) = proof.proven_at else { continue };
            let newest = proven.entry(proof.customer).or_insert(at);
            *newest = at.max(*newest);
        }
        let failures = self.jobs.failures().await?;
        let open = self.jobs.open_of_all().await?;
        Ok(Found {
            now: self.store.now().await?,
            held,
            failures: failures
                .into_iter()
                .map(|one| (one.customer, one))
                .collect(),
            // The lowest number comes last: of several, what is stuck for the longest time.
            open: open.into_iter().map(|job| (job.customer_id, job)).collect(),
            proven,
            disproved,
        })
    }

    fn judge(&self, customer: Placed, found: &Found) -> CustomerStatus {
        let held = found.held.get(&customer.id);
        let kept = |source| {
            held.and_then(|held| held.get(&source))
                .map(Kept::of)
                .unwrap_or_default()
        };
        let failures = found.failures.get(&customer.id);
        let job = found.open.get(&customer.id);
        let mut status = CustomerStatus {
            customer_id: customer.id,
            name: customer.name,
            server: customer.server,
            status: customer.status,
            problems: Vec::new(),
            manual: kept(Source::Manual),
            daily: kept(Source::Daily),
            pre_restore: kept(Source::PreRestore),
            failures: failures.map_or(0, |failures| failures.count),
            last_failed_job: failures.map(|failures| failures.last.get()),
            job: job.map(OpenJob::of),
            last_proven: found.proven.get(&customer.id).copied(),
            has_database: customer.names_database
                || held
                    .is_some_and(|held| held.values().any(|held| held.newest_database.is_some())),
        };
        let age = |time: Timestamp| age(found.now, time);
        let mut problems = Vec::new();
        if let Some(job) = &status.job {
            let worker = &self.config.worker;
            let longest = match job.job_type {
                JobType::Backup => worker.backup_timeout,
                JobType::Restore => worker.restore_timeout,
            };
            let lasts = job.since.map(age).unwrap_or_default();
            match job.status {
                _ if job.is_stuck => problems.push(Problem::StuckRestore),
                JobStatus::Pending if lasts > QUEUED => problems.push(Problem::WaitsTooLong),
                // It may be carried to its end by another worker, after the first one's lease.
                JobStatus::Running if lasts > longest * 2 => problems.push(Problem::RunsTooLong),
                _ => {}
            }
        }
        // Of those whom the platform has suspended nobody expects a backup.
        if status.is_active() {
            match status.most_behind().1.map(age) {
                None => problems.push(Problem::NoBackup),
                Some(age) if age > MISSED => problems.push(Problem::BackupMissed),
                Some(age) if age > LATE => problems.push(Problem::BackupLate),
                Some(_) => {}
            }
        }
        if held.is_some() && found.disproved.contains(&customer.id) {
            problems.push(Problem::NotProven);
        }
        if status.failures > 0 {
            problems.push(Problem::BackupsFail);
        }
        if status.server.is_none() {
            problems.push(Problem::NoServer);
        }
        problems.sort_unstable();
        status.problems = problems;
        status
    }
}

impl Kept {
    fn of(held: &Held) -> Self {
        Self {
            newest: Some(held.newest),
            newest_files: held.newest_files,
            newest_database: held.newest_database,
            newest_bytes: held.newest_bytes,
            count: held.count,
            bytes: held.bytes,
            bytes_added: held.bytes_added,
        }
    }
}

impl OpenJob {
    fn of(job: &Job) -> Self {
        Self {
            id: job.id.get(),
            job_type: job.job_type,
            status: job.status,
            is_stuck: job.is_stuck(),
            since: match job.status {
                JobStatus::Pending => job.created_at,
                JobStatus::Running => job.started_at,
                JobStatus::Completed | JobStatus::Failed => job.completed_at,
            },
        }
    }
}

fn seen(synced: Synced, now: Timestamp, unseen: Duration) -> RepositoryStatus {
    RepositoryStatus {
        is_unseen: age(now, synced.at) > unseen,
        server: synced.server,
        source: synced.source,
        synced_at: synced.at,
    }
}

/// `45 minutes`, `27 hours`, `3 days`.
fn span(duration: Duration) -> String {
    const MINUTE: u64 = 60;
    const HOUR: u64 = 60 * MINUTE;
    const DAY: u64 = 24 * HOUR;
    let (number, unit) = match duration.as_secs() {
        seconds @ ..HOUR => (seconds / MINUTE, "minute"),
        // Between one day and three the hours still matter.
        seconds if seconds < 3 * DAY => (seconds / HOUR, "hour"),
        seconds => (seconds / DAY, "day"),
    };
    match number {
        1 => format!("1 {unit}"),
        many => format!("{many} {unit}s"),
    }
}

/// Nothing is older than nothing, whatever the clocks say.
fn age(now: Timestamp, then: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(then)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_customer_is_as_well_as_the_older_of_his_files_and_his_database() {
        let now: Timestamp = "2026-11-28T12:00:00Z".parse().unwrap();
        let at =
            |hours: Option<i64>| hours.map(|hours| now - jiff::SignedDuration::from_hours(hours));
        let kept = |files, database| Kept {
            newest: at(files).max(at(database)),
            newest_files: at(files),
            newest_database: at(database),
            ..Kept::default()
        };
        let status = |manual, daily, has_database| CustomerStatus {
            customer_id: CustomerId::new(7).unwrap(),
            name: None,
            server: None,
            status: None,
            problems: Vec::new(),
            manual,
            daily,
            pre_restore: Kept::default(),
            failures: 0,
            last_failed_job: None,
            job: None,
            last_proven: None,
            has_database,
        };
        let none = Kept::default;
        for (manual, daily, has_database, said) in [
            (
                none(),
                kept(Some(60), Some(60)),
                true,
                "backup is 60 hours old",
            ),
            (
                none(),
                kept(Some(3), Some(1440)),
                true,
                "backup of his database is 60 days old",
            ),
            (
                kept(Some(1), None),
                kept(Some(60), Some(70)),
                true,
                "backup of his database is 70 hours old",
            ),
            (
                kept(None, Some(1)),
                kept(Some(60), Some(70)),
                true,
                "backup of his files is 60 hours old",
            ),
            // Who has none has all that he has in his files.
            (
                none(),
                kept(Some(60), None),
                false,
                "backup is 60 hours old",
            ),
        ] {
            let status = status(manual, daily, has_database);
            let sentence = status.sentence(Problem::BackupMissed, now);
            assert_eq!(sentence, format!("the newest good {said}"));
        }
        for (daily, said) in [
            (none(), "there is no good backup"),
            (
                kept(Some(1), None),
                "there is no good backup of his database",
            ),
            (kept(None, Some(1)), "there is no good backup of his files"),
        ] {
            let status = status(none(), daily, true);
            assert_eq!(status.most_behind().1, None);
            assert_eq!(status.sentence(Problem::NoBackup, now), said);
        }
    }
}
