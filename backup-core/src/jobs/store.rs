//! The table of jobs.
//!
//! Each change of state is one statement that names the state it starts from, so of two that want it one gets it. Commit points: a job exists with its
//! row; it is a worker's when the claim matched a row; it ended when the last UPDATE matched.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

#[cfg(doc)]
use super::owner_of_this_process;
use super::{Failure, Job, JobId, JobStatus, JobType, Progress, notice, owner};
use crate::audit::{Action, Actor, Audit, Deed};
use crate::catalog::{Catalog, Source, no_such_backup};
use crate::config::NotifyConfig;
use crate::customer::CustomerId;
use crate::error::{Error, ErrorKind, Result};
use crate::notify::Outbox;
use crate::progress::Phase;
use crate::repository::{BackupType, SnapshotId};
use crate::store::{Inserted, Store, Transaction, Tries, Value, values};

/// Jobs in SQL. Cheap to clone.
#[derive(Debug, Clone)]
pub struct JobStore {
    pub(super) store: Store,
    pub(super) audit: Audit,
    lease: Duration,
    outbox: Outbox,
}

/// A job to be created.
#[derive(Debug, Clone)]
pub struct NewJob {
    /// Whose it is.
    pub customer: CustomerId,
    /// The hosting server that it has to run on.
    pub server: String,
    /// What it does.
    pub job_type: JobType,
    /// What is backed up or restored.
    pub backup_type: BackupType,
    /// The snapshot to restore, and where it is from.
    pub snapshot: Option<(Source, SnapshotId)>,
    /// Whether the site stays up until the exchange.
    pub online: bool,
    /// The customer's note.
    pub note: Option<String>,
}

/// What became of the wish for a job.
#[derive(Debug, Clone)]
pub enum Created {
    /// The new job.
    Job(Box<Job>),
    /// There is none, because this one of the customer's has not ended yet, or is a stuck restore.
    InTheWay(Box<Job>),
}

/// What an owner of a running job writes with: the job and the number of the attempt that it was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    job: JobId,
    attempt: u32,
}

impl Lease {
    /// The job.
    pub fn job(self) -> JobId {
        self.job
    }
}

/// A job that now is the caller's to run.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Claimed {
    /// The job.
    pub job: Job,
    /// To write with.
    pub lease: Lease,
    /// Whether another worker had it and died.
    pub is_taken_over: bool,
    /// The snapshot that an earlier attempt was about to write when it was last heard of: it may be there.
    pub intended: Option<SnapshotId>,
}

/// How things are with a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// It is held: go on.
    Held,
    /// It is held, but somebody wants the job to stop.
    CancelRequested,
    /// Somebody else has the job, or it ended: write nothing more.
    Lost,
}

/// What the new owner of a job made of a snapshot of the former one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// The job was completed with it.
    Used,
    /// The new owner has not looked yet.
    Undecided,
    /// It will never be looked at.
    Unwanted,
}

/// What became of a wish to cancel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CancelAnswer {
    /// It waited, and is cancelled.
    Cancelled,
    /// It runs, and was asked to stop.
    Requested,
    /// It runs and has begun to commit: it will end by itself.
    TooLate,
    /// It had ended already.
    Ended,
}

const CANCELLED: &str = "It was cancelled.";

/// What a [`JobRow`] is read from. The casts make one type of what differs between the platform's table, one made by hand, and SQLite.
const COLUMNS: &str = "CAST(id AS SIGNED) AS id, CAST(customer_id AS SIGNED) AS customer_id, CAST(job_type AS CHAR) AS job_type,
    CAST(backup_type AS CHAR) AS backup_type, CAST(snapshot_id AS CHAR) AS snapshot_id, CAST(status AS CHAR) AS status,
    CAST(error_message AS CHAR) AS error_message, CAST(created_at AS CHAR) AS created_at, CAST(completed_at AS CHAR) AS completed_at,
    source, online, note, server, attempts, cancel_requested, committing, intended_snapshot, failure, phase, bytes_done, bytes_total,
    files_done, bytes_per_second, started_at, finished_at, dismissed_at, kept_snapshot, recovered, lease_owner, (COALESCE(lease_until, 0) < {now}) AS is_expired";

/// By the column: a bare `id` would be the number that [`COLUMNS`] make of it, which no index has in order.
const RECENT: &str = "ORDER BY customer_backup_jobs.id DESC LIMIT ?";
const OF_CUSTOMER: &str = "WHERE customer_id = ? ORDER BY customer_backup_jobs.id DESC LIMIT ?";
const PENDING_ON: &str = "WHERE server = ? AND status = 'pending' AND customer_backup_jobs.id > ?
    ORDER BY customer_backup_jobs.id LIMIT ?";

const IS_RUNNING_ON: &str = "WHERE server = ? AND status = 'running'";
const STUCK: &str = "WHERE status = 'failed' AND failure = 'stuck'";

/// The customer's job that has no true end yet: one at most, unless the table is from a time when others could be made beside a stuck one.
const OPEN_OF_CUSTOMER: &str = "WHERE customer_id = ? AND (status IN ('pending', 'running') OR (status = 'failed' AND failure = 'stuck'))
    ORDER BY customer_backup_jobs.id DESC LIMIT 1";
const STUCK_OF_CUSTOMER: &str = "WHERE customer_id = ? AND status = 'failed' AND failure = 'stuck'
    ORDER BY customer_backup_jobs.id DESC LIMIT 1";

/// What a lease writes under. The status as an expression: MariaDB would go through the index of all that run, and lock what lies beside.
const IS_HELD: &str = "id = ? AND attempts = ? AND COALESCE(status, '') = 'running'";

/// A restore that could be neither finished nor undone: how it ends is still open.
const IS_STUCK: &str = "id = ? AND COALESCE(status, '') = 'failed' AND failure = 'stuck'";

const COMPLETE: &str = "UPDATE customer_backup_jobs SET snapshot_id = COALESCE(?, snapshot_id), kept_snapshot = ?, recovered = ?,
    error_message = NULL, failure = NULL, completed_at = CURRENT_TIMESTAMP, finished_at = {now}, lease_until = NULL,
    intended_snapshot = NULL, phase = NULL, bytes_per_second = NULL, bytes_done = COALESCE(?, bytes_done),
    bytes_total = COALESCE(?, bytes_total), status = 'completed'";

/// What a job came to that ended well.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Completion {
    /// The snapshot that a backup made.
    pub(crate) made: Option<SnapshotId>,
    /// The snapshot that a restore made of what it replaced.
    pub(crate) kept: Option<SnapshotId>,
    /// Whether it was interrupted, and carried to its end later.
    pub(crate) recovered: bool,
    /// What was saved or restored, as far as that is known.
    pub(crate) bytes: Option<u64>,
}

impl Completion {
    fn values(&self) -> Vec<Value> {
        values![
            self.made.map(|id| id.to_string()),
            self.kept.map(|id| id.to_string()),
            self.recovered,
            self.bytes,
            self.bytes,
        ]
        .to_vec()
    }
}

impl JobStore {
    /// The jobs of a database. A running job whose owner has not written for `lease` may be taken over by others.
    pub fn new(store: &Store, lease: Duration) -> Self {
        Self {
            store: store.clone(),
            audit: Audit::new(store),
            lease,
            outbox: Outbox::default(),
        }
    }

    /// The same jobs. What is done to them from here is written down as this one's.
    pub(crate) fn acting(&self, actor: &Arc<Actor>) -> Self {
        Self {
            audit: self.audit.acting(actor),
            ..self.clone()
        }
    }

    /// The same, and whoever is configured is told how jobs end. Workers do that.
    pub fn with_notifications(mut self, config: &NotifyConfig) -> Self {
        self.outbox = Outbox::new(config);
        self
    }

    /// What is to be told.
    pub(crate) fn outbox(&self) -> &Outbox {
        &self.outbox
    }

    /// How long a job stays its owner's without a sign of life.
    pub fn lease(&self) -> Duration {
        self.lease
    }

    /// Create a job that waits for a worker. [`ErrorKind::NotFound`] where it is to restore what the catalogue does not show of this customer: of a
    /// restore and a deletion at the same moment one comes first.
    pub async fn create(&self, new: &NewJob) -> Result<Created> {
        self.insert(new, None).await
    }

    /// As [`Self::create`], a job that the caller runs himself, from now on. `owner` is the caller, as [`owner_of_this_process`] names him. Err: the job of
    /// the customer's that is in the way.
    pub async fn create_claimed(
        &self,
        new: &NewJob,
        owner: &str,
    ) -> Result<std::result::Result<Claimed, Box<Job>>> {
        let owner = owner::of_claim(owner);
        Ok(match self.insert(new, Some(&owner)).await? {
            Created::Job(job) => Ok(Claimed {
                lease: Lease {
                    job: job.id,
                    attempt: 1,
                },
                job: *job,
                is_taken_over: false,
                intended: None,
            }),
            Created::InTheWay(job) => Err(job),
        })
    }

    async fn insert(&self, new: &NewJob, owner: Option<&str>) -> Result<Created> {
        const INSERT: &str = "INSERT INTO customer_backup_jobs
            (customer_id, job_type, backup_type, snapshot_id, status, source, online, note, server, created_at)
            VALUES (?, ?, ?, ?, 'pending', ?, ?, ?, ?, CURRENT_TIMESTAMP)";
        const INSERT_CLAIMED: &str = "INSERT INTO customer_backup_jobs
            (customer_id, job_type, backup_type, snapshot_id, status, source, online, note, server, created_at, attempts, started_at, lease_owner, lease_until)
            VALUES (?, ?, ?, ?, 'running', ?, ?, ?, ?, CURRENT_TIMESTAMP, 1, {now}, ?, {now} + ?)";
        let (source, snapshot) = new.snapshot.unzip();
        let common = values![
            new.customer.get(),
            new.job_type.as_str(),
            new.backup_type.to_string(),
            snapshot.map(|id| id.to_string()),
            source.map(Source::as_str),
            new.online,
            new.note.clone(),
            new.server.as_str(),
        ];
        // Between looking for the job in the way and inserting, one may come, and it may have ended when it is looked for again.
        const TRIES: usize = 5;
        for _ in 0..TRIES {
            // The transaction decides. This spares it the most of the wishes that it would refuse, each of which costs locks and a number.
            if let Some(job) = self.open(new.customer).await? {
                return Ok(Created::InTheWay(Box::new(job)));
            }
            let inserted = match owner {
                None => self.insert_row(new, INSERT, common).await?,
                Some(owner) => {
                    let claim = values![owner, self.lease_milliseconds()];
                    let values = [&common[..], &claim[..]].concat();
                    self.insert_row(new, INSERT_CLAIMED, &values).await?
                }
            };
            if let Some(id) = inserted {
                let job = self.require(JobId(id)).await?;
                return Ok(Created::Job(Box::new(job)));
            }
        }
        Err(Error::new(
            ErrorKind::Busy,
            format!("jobs of customer {} come and go: try again", new.customer),
        ))
    }

    /// The number of the new row; none where another job is in the way.
    async fn insert_row(&self, new: &NewJob, sql: &str, values: &[Value]) -> Result<Option<u64>> {
        let mut tries = Tries::default();
        loop {
            let inserted = self.try_insert(new, sql, values).await;
            if !tries.is_to_repeat(&inserted).await {
                return inserted;
            }
        }
    }

    async fn try_insert(&self, new: &NewJob, sql: &str, values: &[Value]) -> Result<Option<u64>> {
        let customer = new.customer;
        let mut transaction = self.store.begin().await?;
        if let Some((source, snapshot)) = &new.snapshot
            && !Catalog::hold(&mut transaction, customer, *source, snapshot).await?
        {
            return Err(no_such_backup(customer, &snapshot.to_string()));
        }
        let Inserted::Done(id) = transaction.insert(sql, values).await? else {
            return Ok(None);
        };
        // Only now: what was active until the index let the row in may have ended as a stuck one, and is seen; from here on none can become that.
        let stuck = Self::one_in(&mut transaction, STUCK_OF_CUSTOMER, customer).await?;
        if stuck.is_some() {
            return Ok(None);
        }
        self.audit
            .note_in(&mut transaction, &asked_for(new, id))
            .await?;
        transaction.commit().await?;
        Ok(Some(id))
    }

    /// Take a backup whose owner died, else the oldest job of a hosting server that waits. `owner` is the caller, as
    /// [`owner_of_this_process`] names him.
    pub async fn claim(&self, server: &str, owner: &str) -> Result<Option<Claimed>> {
        const AT_ONCE: u32 = 16;
        for seen in self.abandoned(IS_RUNNING_ON, server).await? {
            if seen.job.job_type == JobType::Backup
                && let Some(claimed) = self.take(&seen, owner).await?
            {
                return Ok(Some(claimed));
            }
        }
        let mut looked_at = 0;
        loop {
            let values = values![server, looked_at, AT_ONCE];
            let rows = self.select(PENDING_ON, values).await?;
            let Some(last) = rows.iter().map(|row| row.id).max() else {
                return Ok(None);
            };
            for seen in sensible(rows) {
                if let Some(claimed) = self.take(&seen, owner).await? {
                    return Ok(Some(claimed));
                }
                // Somebody was faster.
            }
            if last <= looked_at {
                // Numbers too large for us come as negative ones.
                return Ok(None);
            }
            looked_at = last;
        }
    }

    /// Running restores of a hosting server whose owners died.
    pub async fn abandoned_restores(&self, server: &str) -> Result<Vec<Job>> {
        let abandoned = self.abandoned(IS_RUNNING_ON, server).await?;
        let jobs = abandoned.into_iter().map(|seen| seen.job);
        Ok(jobs
            .filter(|job| job.job_type == JobType::Restore)
            .collect())
    }

    /// Take a running job over whose owner died. A restore may only be taken by whoever has made sure that no process works on it any
    /// more. None: its owner lives, or somebody was faster.
    pub async fn take_over(&self, id: JobId, owner: &str) -> Result<Option<Claimed>> {
        let which = "WHERE id = ? AND status = 'running'";
        match self.abandoned(which, id.get()).await?.first() {
            Some(seen) => self.take(seen, owner).await,
            None => Ok(None),
        }
    }

    /// Those running jobs whose owners have been silent for a whole lease, or are dead for sure.
    async fn abandoned(&self, which: &str, value: impl Into<Value>) -> Result<Vec<Seen>> {
        let mut jobs = sensible(self.select(which, &[value.into()]).await?);
        jobs.retain(|seen| seen.row.is_expired != 0 || seen.row.dead_owner().is_some());
        Ok(jobs)
    }

    /// Compare and set: only as it was seen. A job that its owner gave back since then is at the same attempt.
    ///
    /// What fails in passing may have happened all the same, and the job would be running with nobody to run it. So the same is tried once more,
    /// under the same name, which tells whether it was us.
    async fn take(&self, seen: &Seen, owner: &str) -> Result<Option<Claimed>> {
        const PATIENCE: Duration = Duration::from_secs(10);
        const PAUSE: Duration = Duration::from_millis(250);
        let owner = owner::of_claim(owner);
        let (begun, mut tried) = (Instant::now(), 1);
        loop {
            let error = match self.try_take(seen, &owner, tried == 1).await {
                Err(e) if matches!(e.kind(), ErrorKind::Unreachable | ErrorKind::Busy) => e,
                done => return done,
            };
            if tried > 1 && begun.elapsed() >= PATIENCE {
                return Err(error);
            }
            tracing::debug!(job = %seen.job.id, "taking it once more: {}", error.chain());
            tokio::time::sleep(PAUSE).await;
            tried += 1;
        }
    }

    async fn try_take(&self, seen: &Seen, owner: &str, is_first: bool) -> Result<Option<Claimed>> {
        const UPDATE: &str = "UPDATE customer_backup_jobs SET attempts = attempts + 1, lease_owner = ?, lease_until = {now} + ?,
                started_at = COALESCE(started_at, {now}), committing = 0, phase = NULL, bytes_done = 0, bytes_total = NULL, files_done = 0,
                bytes_per_second = NULL, status = 'running'
            WHERE id = ? AND attempts = ? AND server = ? AND status = ?
                AND (status = 'pending' OR lease_owner = ? OR COALESCE(lease_until, 0) < {now})";
        let job = &seen.job;
        let values = values![
            owner,
            self.lease_milliseconds(),
            job.id.get(),
            job.attempts,
            job.server.as_str(),
            job.status.as_str(),
            seen.row.dead_owner(),
        ];
        if self.store.execute(UPDATE, values).await? == 0 && is_first {
            return Ok(None);
        }
        let lease = Lease {
            job: job.id,
            attempt: job.attempts.saturating_add(1),
        };
        let rows = self.select("WHERE id = ?", values![job.id.get()]).await?;
        let Some(row) = rows.into_iter().next() else {
            return Ok(None);
        };
        let now = row.seen?;
        let is_ours =
            now.job.attempts == lease.attempt && now.row.lease_owner.as_deref() == Some(owner);
        Ok(is_ours.then(|| Claimed {
            lease,
            is_taken_over: job.status == JobStatus::Running,
            // As its last owner left it, who may have been at work since it was seen.
            intended: now.row.intended(),
            job: now.job,
        }))
    }

    /// Renew the lease and write the progress down; says whether to go on.
    pub async fn keep(&self, lease: Lease, progress: &Progress) -> Result<Kept> {
        let update = format!(
            "UPDATE customer_backup_jobs SET lease_until = {{now}} + ?, phase = ?, bytes_done = ?, bytes_total = ?, files_done = ?,
                 bytes_per_second = ? WHERE {IS_HELD}"
        );
        let values = values![
            self.lease_milliseconds(),
            progress.phase.map(Phase::as_str),
            progress.bytes_done,
            progress.bytes_total,
            progress.files_done,
            progress.bytes_per_second,
            lease.job.get(),
            lease.attempt,
        ];
        if self.store.execute(&update, values).await? == 0 {
            return Ok(Kept::Lost);
        }
        self.look(lease).await
    }

    /// How things are with a lease, without renewing it.
    pub async fn look(&self, lease: Lease) -> Result<Kept> {
        let query = format!("SELECT cancel_requested FROM customer_backup_jobs WHERE {IS_HELD}");
        let found: Option<(i64,)> = self
            .store
            .row(&query, values![lease.job.get(), lease.attempt])
            .await?;
        Ok(match found {
            None => Kept::Lost,
            Some((0,)) => Kept::Held,
            Some(_) => Kept::CancelRequested,
        })
    }

    /// Ask for the right to commit. Where it is given ([`Kept::Held`]) cancelling comes too late, and `snapshot` is noted as what will be written.
    pub async fn begin_commit(&self, lease: Lease, snapshot: Option<&str>) -> Result<Kept> {
        let update = format!(
            "UPDATE customer_backup_jobs SET committing = 1, intended_snapshot = ?, lease_until = {{now}} + ?
             WHERE {IS_HELD} AND cancel_requested = 0"
        );
        let values = values![
            snapshot,
            self.lease_milliseconds(),
            lease.job.get(),
            lease.attempt
        ];
        match self.store.execute(&update, values).await? {
            0 => Ok(match self.look(lease).await? {
                Kept::Held => Kept::Lost,
                other => other,
            }),
            _ => Ok(Kept::Held),
        }
    }

    /// Note that the snapshot which an earlier attempt was about to write is not there, and will not be used if it comes. False where the lease is lost.
    pub(crate) async fn drop_intended(&self, lease: Lease) -> Result<bool> {
        let update =
            format!("UPDATE customer_backup_jobs SET intended_snapshot = NULL WHERE {IS_HELD}");
        let values = values![lease.job.get(), lease.attempt];
        Ok(self.store.execute(&update, values).await? > 0)
    }

    /// What became of a snapshot that was written under a lease which was lost meanwhile.
    pub(crate) async fn fate(&self, lease: Lease, snapshot: SnapshotId) -> Result<Fate> {
        const QUERY: &str = "SELECT CAST(status AS CHAR), CAST(snapshot_id AS CHAR), intended_snapshot FROM customer_backup_jobs WHERE id = ?";
        let row: Option<(String, Option<String>, Option<String>)> =
            self.store.row(QUERY, values![lease.job.get()]).await?;
        let Some((status, result, intended)) = row else {
            return Ok(Fate::Unwanted);
        };
        let snapshot = snapshot.to_string();
        let is_ours = |id: &Option<String>| id.as_deref() == Some(snapshot.as_str());
        Ok(match JobStatus::from_word(&status) {
            Some(JobStatus::Completed) if is_ours(&result) => Fate::Used,
            Some(JobStatus::Running | JobStatus::Pending) if is_ours(&intended) => Fate::Undecided,
            _ => Fate::Unwanted,
        })
    }

    /// End a job well, as part of a transaction; false where the lease is lost, and then nothing may be committed.
    pub(crate) async fn complete(
        &self,
        transaction: &mut Transaction,
        lease: Lease,
        completion: Completion,
    ) -> Result<bool> {
        let mut values = completion.values();
        values.extend_from_slice(values![lease.job.get(), lease.attempt]);
        let update = format!("{COMPLETE} WHERE {IS_HELD}");
        self.end_in(transaction, lease.job, &update, &values).await
    }

    /// End a job well that ended as a stuck one, as part of a transaction; false where it is none any more.
    pub(crate) async fn complete_stuck(
        &self,
        transaction: &mut Transaction,
        id: JobId,
        completion: Completion,
    ) -> Result<bool> {
        let mut values = completion.values();
        values.push(id.get().into());
        let update = format!("{COMPLETE} WHERE {IS_STUCK}");
        self.end_in(transaction, id, &update, &values).await
    }

    /// Say of a job that ended as a stuck one how it failed after all; false where it is none any more.
    pub(crate) async fn fail_stuck(
        &self,
        id: JobId,
        failure: Failure,
        message: &str,
    ) -> Result<bool> {
        let update = format!(
            "UPDATE customer_backup_jobs SET failure = ?, error_message = ?, completed_at = CURRENT_TIMESTAMP, finished_at = {{now}},
                 dismissed_at = NULL WHERE {IS_STUCK}"
        );
        let values = values![failure.as_str(), message, id.get()];
        self.end(id, &update, values).await
    }

    /// Note what a completed restore replaced, as part of a transaction, where that could be saved only later.
    pub(crate) async fn note_kept(
        &self,
        transaction: &mut Transaction,
        id: JobId,
        kept: SnapshotId,
    ) -> Result<()> {
        const UPDATE: &str = "UPDATE customer_backup_jobs SET kept_snapshot = ?
            WHERE id = ? AND COALESCE(status, '') = 'completed'";
        let values = values![kept.to_string(), id.get()];
        transaction.execute(UPDATE, values).await.map(drop)
    }

    /// End a job that failed, with a sentence for the customer; false where the lease is lost.
    pub async fn fail(&self, lease: Lease, failure: Failure, message: &str) -> Result<bool> {
        let update = format!(
            "UPDATE customer_backup_jobs SET failure = ?, error_message = ?, completed_at = CURRENT_TIMESTAMP, finished_at = {{now}},
                 lease_until = NULL, bytes_per_second = NULL, status = 'failed'
             WHERE {IS_HELD}"
        );
        let values = values![failure.as_str(), message, lease.job.get(), lease.attempt];
        self.end(lease.job, &update, values).await
    }

    /// Run the statement that ends a job, and write down with it what is to be told of that; false where it matched nothing.
    async fn end(&self, id: JobId, update: &str, values: &[Value]) -> Result<bool> {
        if self.outbox.is_off() {
            return Ok(self.store.execute(update, values).await? > 0);
        }
        let mut tries = Tries::default();
        loop {
            let ended = self.try_end(id, update, values).await;
            if !tries.is_to_repeat(&ended).await {
                return ended;
            }
        }
    }

    async fn try_end(&self, id: JobId, update: &str, values: &[Value]) -> Result<bool> {
        let mut transaction = self.store.begin().await?;
        let ended = self.end_in(&mut transaction, id, update, values).await?;
        if ended {
            transaction.commit().await?;
        }
        Ok(ended)
    }

    /// As [`Self::end`], as part of a transaction.
    async fn end_in(
        &self,
        transaction: &mut Transaction,
        id: JobId,
        update: &str,
        values: &[Value],
    ) -> Result<bool> {
        if transaction.execute(update, values).await? == 0 {
            return Ok(false);
        }
        if self.outbox.is_off() {
            return Ok(true);
        }
        match Self::row_in(transaction, "WHERE id = ?", id.get()).await? {
            Some(Ok(seen)) => {
                if let Some(notice) = notice::of(&seen.job) {
                    self.outbox.write(transaction, &notice).await?;
                }
            }
            // It has ended all the same; there is nothing that could be said of it.
            Some(Err(error)) => tracing::error!("{}", error.chain()),
            None => {}
        }
        Ok(true)
    }

    /// Give a job back, so that another worker takes it up, on the hosting server `server`; false where the lease is lost.
    pub async fn release(&self, lease: Lease, server: &str) -> Result<bool> {
        let update = format!(
            "UPDATE customer_backup_jobs SET server = ?, lease_owner = NULL, lease_until = NULL, committing = 0, phase = NULL, bytes_done = 0,
                 bytes_total = NULL, files_done = 0, bytes_per_second = NULL, status = 'pending'
             WHERE {IS_HELD}"
        );
        let values = values![server, lease.job.get(), lease.attempt];
        Ok(self.store.execute(&update, values).await? > 0)
    }

    /// Cancel a job that waits, or ask one that runs to stop. [`ErrorKind::NotFound`] where there is none.
    pub async fn cancel(&self, id: JobId) -> Result<CancelAnswer> {
        const PENDING: &str = "UPDATE customer_backup_jobs SET cancel_requested = 1, failure = 'cancelled', error_message = ?,
                completed_at = CURRENT_TIMESTAMP, finished_at = {now}, status = 'failed'
            WHERE id = ? AND COALESCE(status, '') = 'pending'";
        const RUNNING: &str = "UPDATE customer_backup_jobs SET cancel_requested = 1
            WHERE id = ? AND COALESCE(status, '') = 'running' AND committing = 0 AND cancel_requested = 0";
        // Its owner may give it back between the two.
        const TRIES: usize = 5;
        for _ in 0..TRIES {
            let pending = values![CANCELLED, id.get()];
            if self.act(id, Action::Cancel, PENDING, pending).await? {
                return Ok(CancelAnswer::Cancelled);
            }
            let running = values![id.get()];
            if self.act(id, Action::Cancel, RUNNING, running).await? {
                return Ok(CancelAnswer::Requested);
            }
            let job = self.require(id).await?;
            match job.status {
                JobStatus::Completed | JobStatus::Failed => return Ok(CancelAnswer::Ended),
                // It was asked before, and so will not begin its commit.
                JobStatus::Running if job.cancel_requested => return Ok(CancelAnswer::Requested),
                JobStatus::Running if !job.cancellable => return Ok(CancelAnswer::TooLate),
                JobStatus::Running | JobStatus::Pending => {}
            }
        }
        Err(Error::new(
            ErrorKind::Busy,
            format!("the job {id} is taken up and given back all the time: try again"),
        ))
    }

    /// Note that the customer has seen how a job failed; false where it has not, or is stuck: how that ends is still open. Once is enough.
    pub async fn dismiss(&self, id: JobId) -> Result<bool> {
        const UPDATE: &str = "UPDATE customer_backup_jobs SET dismissed_at = {now}
            WHERE id = ? AND dismissed_at IS NULL AND COALESCE(status, '') = 'failed' AND COALESCE(failure, '') <> 'stuck'";
        if self
            .act(id, Action::Dismiss, UPDATE, values![id.get()])
            .await?
        {
            return Ok(true);
        }
        let job = self.get(id).await?;
        Ok(job.is_some_and(|job| job.status == JobStatus::Failed && job.dismissed))
    }

    /// Change a job as somebody asked for, and write down who; false where the statement matches no row.
    async fn act(&self, id: JobId, action: Action, sql: &str, values: &[Value]) -> Result<bool> {
        let mut tries = Tries::default();
        loop {
            let acted = self.try_act(id, action, sql, values).await;
            if !tries.is_to_repeat(&acted).await {
                return acted;
            }
        }
    }

    async fn try_act(
        &self,
        id: JobId,
        action: Action,
        sql: &str,
        values: &[Value],
    ) -> Result<bool> {
        const WHOSE: &str = "SELECT CAST(customer_id AS SIGNED), CAST(backup_type AS CHAR), source, CAST(snapshot_id AS CHAR)
            FROM customer_backup_jobs WHERE id = ?";
        let mut transaction = self.store.begin().await?;
        let is_done = match action {
            // What waits ends with it.
            Action::Cancel => self.end_in(&mut transaction, id, sql, values).await?,
            _ => transaction.execute(sql, values).await? > 0,
        };
        if !is_done {
            return Ok(false);
        }
        let found: Option<JobSubject> = transaction.row(WHOSE, values![id.get()]).await?;
        let customer = |number| CustomerId::new(u32::try_from(number).ok()?).ok();
        // A row that makes no sense is nobody's, and is changed all the same.
        if let Some((number, backup_type, source, snapshot)) = found
            && let Some(customer) = customer(number)
        {
            let deed = Deed::to(customer, action)
                .job(id.get())
                .part(backup_type.parse().ok());
            let source = source.and_then(|word| word.parse::<Source>().ok());
            let deed = match source.zip(snapshot) {
                Some((source, snapshot)) => deed.backup(source, &snapshot),
                None => deed,
            };
            self.audit.note_in(&mut transaction, &deed).await?;
        }
        transaction.commit().await?;
        Ok(true)
    }

    /// A job by its number.
    pub async fn get(&self, id: JobId) -> Result<Option<Job>> {
        self.one("WHERE id = ?", values![id.get()]).await
    }

    pub(super) async fn get_some(&self, ids: &[JobId]) -> Result<Vec<Job>> {
        let places = vec!["?"; ids.len()].join(", ");
        let values: Vec<Value> = ids.iter().map(|id| Value::from(id.get())).collect();
        self.list(&format!("WHERE id IN ({places})"), &values).await
    }

    /// The customer's job that has not ended.
    pub async fn active(&self, customer: CustomerId) -> Result<Option<Job>> {
        self.one("WHERE active_customer = ?", values![customer.get()])
            .await
    }

    /// As [`Self::active`], as part of a transaction.
    pub(crate) async fn active_in(
        &self,
        transaction: &mut Transaction,
        customer: CustomerId,
    ) -> Result<Option<Job>> {
        Self::one_in(transaction, "WHERE active_customer = ?", customer).await
    }

    async fn one_in(
        transaction: &mut Transaction,
        which: &str,
        customer: CustomerId,
    ) -> Result<Option<Job>> {
        let row = Self::row_in(transaction, which, customer.get()).await?;
        Ok(row.transpose()?.map(|seen| seen.job))
    }

    async fn row_in(
        transaction: &mut Transaction,
        which: &str,
        value: impl Into<Value>,
    ) -> Result<Option<Result<Seen>>> {
        let query = format!("SELECT {COLUMNS} FROM customer_backup_jobs {which}");
        let row: Option<Row> = transaction.row(&query, &[value.into()]).await?;
        Ok(row.map(|row| row.seen))
    }

    /// The customer's job that has no true end yet: one that has not ended, or a restore that is stuck. No other can be created meanwhile.
    pub async fn open(&self, customer: CustomerId) -> Result<Option<Job>> {
        self.one(OPEN_OF_CUSTOMER, values![customer.get()]).await
    }

    /// The restores that are stuck.
    pub(crate) async fn stuck(&self) -> Result<Vec<Job>> {
        self.list(STUCK, &[]).await
    }

    /// The snapshots that restores want which have not ended.
    pub(crate) async fn snapshots_to_restore(&self) -> Result<BTreeSet<SnapshotId>> {
        const QUERY: &str = "SELECT CAST(snapshot_id AS CHAR) FROM customer_backup_jobs
            WHERE active_customer IS NOT NULL AND job_type = 'restore' AND snapshot_id IS NOT NULL";
        let ids: Vec<(String,)> = self.store.rows(QUERY, &[]).await?;
        // What is no id is no snapshot's.
        Ok(ids.iter().filter_map(|(id,)| id.parse().ok()).collect())
    }

    /// The newest jobs of a customer, newest first. Rows that make no sense are left out, and logged.
    pub async fn of_customer(&self, customer: CustomerId, at_most: u32) -> Result<Vec<Job>> {
        self.list(OF_CUSTOMER, values![customer.get(), at_most])
            .await
    }

    /// The newest jobs of all customers, newest first. Rows that make no sense are left out, and logged.
    pub async fn recent(&self, at_most: u32) -> Result<Vec<Job>> {
        self.list(RECENT, values![at_most]).await
    }

    async fn require(&self, id: JobId) -> Result<Job> {
        self.get(id).await?.ok_or_else(|| no_job(id))
    }

    async fn one(&self, which: &str, values: &[Value]) -> Result<Option<Job>> {
        let rows = self.select(which, values).await?;
        let first = rows.into_iter().next().map(|row| row.seen);
        Ok(first.transpose()?.map(|seen| seen.job))
    }

    pub(super) async fn list(&self, which: &str, values: &[Value]) -> Result<Vec<Job>> {
        let jobs = sensible(self.select(which, values).await?);
        Ok(jobs.into_iter().map(|seen| seen.job).collect())
    }

    async fn select(&self, which: &str, values: &[Value]) -> Result<Vec<Row>> {
        let query = format!("SELECT {COLUMNS} FROM customer_backup_jobs {which}");
        self.store.rows(&query, values).await
    }

    fn lease_milliseconds(&self) -> u64 {
        u64::try_from(self.lease.as_millis()).unwrap_or(u64::MAX)
    }
}

/// Whose a job is, what it works on, and, of a restore, which backup it puts back.
type JobSubject = (i64, String, Option<String>, Option<String>);

/// What is written down of a job that is created.
fn asked_for(new: &NewJob, number: u64) -> Deed {
    let action = match new.job_type {
        JobType::Backup => Action::Backup,
        JobType::Restore => Action::Restore,
    };
    let deed = Deed::to(new.customer, action)
        .job(number)
        .part(Some(new.backup_type));
    match &new.snapshot {
        Some((source, snapshot)) => deed.backup(*source, snapshot),
        None => deed,
    }
}

/// A job, with what only its row says.
struct Seen {
    job: Job,
    row: JobRow,
}

/// A row of the table. One that makes no sense, or cannot even be read, keeps nobody from the others.
struct Row {
    id: i64,
    seen: Result<Seen>,
}

impl<'r, R: sqlx::Row> sqlx::FromRow<'r, R> for Row
where
    &'static str: sqlx::ColumnIndex<R>,
    i64: sqlx::Decode<'r, R::Database> + sqlx::Type<R::Database>,
    JobRow: sqlx::FromRow<'r, R>,
{
    fn from_row(row: &'r R) -> sqlx::Result<Self> {
        let id = row.try_get("id")?;
        let seen = match JobRow::from_row(row) {
            Ok(row) => row.understand().map(|job| Seen { job, row }),
            Err(e) => Err(Error::caused(
                ErrorKind::Failed,
                makes_no_sense(id, "a column of it cannot be read"),
                e,
            )),
        };
        Ok(Self { id, seen })
    }
}

/// Those that make sense; of the others the log tells.
fn sensible(rows: Vec<Row>) -> Vec<Seen> {
    let tell = |error: &Error| tracing::error!("{}", error.chain());
    rows.into_iter()
        .filter_map(|row| row.seen.inspect_err(tell).ok())
        .collect()
}

/// A row as it is stored.
#[derive(sqlx::FromRow)]
struct JobRow {
    id: i64,
    customer_id: i64,
    job_type: String,
    backup_type: String,
    snapshot_id: Option<String>,
    status: String,
    error_message: Option<String>,
    created_at: Option<String>,
    completed_at: Option<String>,
    source: Option<String>,
    online: i64,
    note: Option<String>,
    server: String,
    attempts: i64,
    cancel_requested: i64,
    committing: i64,
    intended_snapshot: Option<String>,
    failure: Option<String>,
    phase: Option<String>,
    bytes_done: i64,
    bytes_total: Option<i64>,
    files_done: i64,
    bytes_per_second: Option<i64>,
    started_at: Option<i64>,
    finished_at: Option<i64>,
    dismissed_at: Option<i64>,
    kept_snapshot: Option<String>,
    recovered: i64,
    lease_owner: Option<String>,
    is_expired: i64,
}

impl JobRow {
    /// Its owner, if he cannot speak any more.
    fn dead_owner(&self) -> Option<&str> {
        self.lease_owner
            .as_deref()
            .filter(|owner| owner::is_dead(owner))
    }

    fn intended(&self) -> Option<SnapshotId> {
        self.intended_snapshot.as_deref()?.parse().ok()
    }

    fn odd(&self, what: &str) -> Error {
        Error::new(ErrorKind::Failed, makes_no_sense(self.id, what))
    }

    fn understand(&self) -> Result<Job> {
        let id = u64::try_from(self.id).map_err(|_| self.odd("its number is out of range"))?;
        let customer = u32::try_from(self.customer_id)
            .ok()
            .and_then(|number| CustomerId::new(number).ok());
        // One more must fit the column.
        let attempts = u32::try_from(self.attempts)
            .ok()
            .filter(|attempts| *attempts < i32::MAX.unsigned_abs());
        let status = JobStatus::from_word(&self.status).ok_or_else(|| self.odd("its status"))?;
        let count = |number: i64| u64::try_from(number).unwrap_or(0);
        let milliseconds = |at: i64| Timestamp::from_millisecond(at).ok();
        Ok(Job {
            id: JobId(id),
            customer_id: customer.ok_or_else(|| self.odd("its customer"))?,
            job_type: JobType::from_word(&self.job_type).ok_or_else(|| self.odd("its type"))?,
            backup_type: self
                .backup_type
                .parse()
                .map_err(|_| self.odd("its backup type"))?,
            source: self.source.as_deref().and_then(|word| word.parse().ok()),
            online: self.online != 0,
            status,
            failure: self.failure.as_deref().and_then(Failure::from_word),
            created_at: self.created_at.as_deref().and_then(understand_time),
            started_at: self.started_at.and_then(milliseconds),
            // To the millisecond where we ended it.
            completed_at: self
                .finished_at
                .and_then(milliseconds)
                .or_else(|| understand_time(self.completed_at.as_deref()?)),
            attempts: attempts.ok_or_else(|| self.odd("its attempts"))?,
            bytes_done: count(self.bytes_done),
            bytes_total: self.bytes_total.map(count),
            files_done: count(self.files_done),
            bytes_per_second: self.bytes_per_second.map(count),
            cancel_requested: self.cancel_requested != 0,
            cancellable: match status {
                JobStatus::Pending => true,
                JobStatus::Running => self.committing == 0 && self.cancel_requested == 0,
                JobStatus::Completed | JobStatus::Failed => false,
            },
            dismissed: self.dismissed_at.is_some(),
            kept_snapshot: self.kept_snapshot.clone(),
            recovered: self.recovered != 0,
            snapshot_id: self.snapshot_id.clone(),
            note: self.note.clone(),
            error_message: self.error_message.clone(),
            server: self.server.clone(),
            phase: self.phase.as_deref().and_then(Phase::from_word),
        })
    }
}

fn makes_no_sense(id: i64, what: &str) -> String {
    format!("the job {id} in customer_backup_jobs makes no sense: {what}")
}

fn no_job(id: JobId) -> Error {
    Error::new(
        ErrorKind::NotFound,
        format!("there is no job {id}: `jobs` lists them"),
    )
}

/// Of the platform's columns: a text without a zone, in UTC.
pub(super) fn understand_time(text: &str) -> Option<Timestamp> {
    let time: DateTime = text.parse().ok()?;
    Some(time.to_zoned(TimeZone::UTC).ok()?.timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Environment, Origin};

    /// The public ways are tested from outside, on both kinds of database; only the library itself completes a job.
    async fn jobs(dir: &tempfile::TempDir, lease: Duration) -> JobStore {
        let text = format!(
            "[database]\nurl = 'sqlite://{}/b.db'\n[repositories.manual]\nlocation = '/r'\npassword_file = '/p'\n",
            dir.path().display()
        );
        let config = Config::read(Origin::File("test".into()), &text, &Environment::default());
        let store = Store::connect(&config.unwrap()).await.unwrap();
        JobStore::new(&store, lease)
    }

    fn a_backup() -> NewJob {
        NewJob {
            customer: CustomerId::new(7).unwrap(),
            server: "default".into(),
            job_type: JobType::Backup,
            backup_type: BackupType::Both,
            snapshot: None,
            online: false,
            note: None,
        }
    }

    async fn create_claimed(jobs: &JobStore, owner: &str) -> Lease {
        let created = jobs.create_claimed(&a_backup(), owner).await.unwrap();
        created.unwrap().lease
    }

    async fn complete(jobs: &JobStore, lease: Lease, snapshot: Option<SnapshotId>) -> bool {
        let mut transaction = jobs.store.begin().await.unwrap();
        let done = jobs
            .complete(
                &mut transaction,
                lease,
                Completion {
                    made: snapshot,
                    bytes: Some(4_711),
                    ..Completion::default()
                },
            )
            .await;
        transaction.commit().await.unwrap();
        done.unwrap()
    }

    #[tokio::test]
    async fn a_job_is_completed_once_and_by_its_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let jobs = jobs(&dir, Duration::ZERO).await;
        let old = create_claimed(&jobs, "old").await;
        let new = loop {
            // Over as soon as the clock has moved on.
            if let Some(claimed) = jobs.claim("default", "new").await.unwrap() {
                break claimed.lease;
            }
        };
        let snapshot: SnapshotId = "ab".repeat(32).parse().unwrap();
        assert!(!complete(&jobs, old, Some(snapshot)).await);
        let running = jobs.require(new.job).await.unwrap();
        assert_eq!(
            (running.status, running.snapshot_id),
            (JobStatus::Running, None)
        );

        assert!(complete(&jobs, new, Some(snapshot)).await);
        let ended = jobs.require(new.job).await.unwrap();
        assert_eq!(ended.status, JobStatus::Completed);
        assert_eq!(ended.snapshot_id, Some(snapshot.to_string()));
        assert_eq!((ended.bytes_done, ended.bytes_total), (4_711, Some(4_711)));
        assert!(ended.completed_at >= ended.started_at && ended.error_message.is_none());
        for lease in [old, new] {
            assert!(!complete(&jobs, lease, None).await);
            assert!(!jobs.fail(lease, Failure::Error, "Late.").await.unwrap());
        }
        assert_eq!(jobs.cancel(new.job).await.unwrap(), CancelAnswer::Ended);
        assert_eq!(jobs.require(new.job).await.unwrap(), ended);
    }

    #[tokio::test]
    async fn what_lists_jobs_on_sqlite_sorts_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let jobs = jobs(&dir, Duration::ZERO).await;
        for which in [RECENT, OF_CUSTOMER, OPEN_OF_CUSTOMER, PENDING_ON] {
            let explain =
                format!("EXPLAIN QUERY PLAN SELECT {COLUMNS} FROM customer_backup_jobs {which}");
            let values = vec![Value::from(1_i64); which.matches('?').count()];
            let plan: Vec<(i64, i64, i64, String)> =
                jobs.store.rows(&explain, &values).await.unwrap();
            assert!(!plan.is_empty());
            assert!(
                plan.iter().all(|step| !step.3.contains("TEMP B-TREE")),
                "{plan:?}"
            );
        }
    }

    #[tokio::test]
    async fn what_is_to_be_told_is_there_with_the_end_of_a_job_and_not_without() {
        let text = "[database]\nurl = 'sqlite:///b.db'\n[repositories.manual]\nlocation = '/r'\npassword_file = '/p'\n[notify.webhook]
            url = 'https://a.example/'\nsecret_file = '/s'\n";
        let config = Config::read(Origin::File("test".into()), text, &Environment::default());
        let dir = tempfile::tempdir().unwrap();
        let jobs = jobs(&dir, Duration::from_secs(60)).await;
        let jobs = jobs.with_notifications(&config.unwrap().notify);
        let told = async || -> Vec<String> {
            let query = "SELECT payload FROM backup_notifications ORDER BY created_at, due_at";
            let rows: Vec<(String,)> = jobs.store.rows(query, &[]).await.unwrap();
            let kind = |(payload,): (String,)| {
                let payload: serde_json::Value = serde_json::from_str(&payload).unwrap();
                format!("{} {}", payload["type"], payload["data"]["message"]).replace('"', "")
            };
            let mut told: Vec<String> = rows.into_iter().map(kind).collect();
            told.sort();
            told
        };

        let lease = create_claimed(&jobs, "me").await;
        let mut transaction = jobs.store.begin().await.unwrap();
        let completion = Completion::default();
        assert!(
            jobs.complete(&mut transaction, lease, completion)
                .await
                .unwrap()
        );
        drop(transaction);
        assert!(told().await.is_empty());
        assert!(complete(&jobs, lease, None).await);
        assert!(!complete(&jobs, lease, None).await);
        assert_eq!(told().await, ["backup.completed Your backup is done."]);

        // A restore that gets stuck is told, and how it ended after all.
        jobs.store
            .execute("DELETE FROM backup_notifications", &[])
            .await
            .unwrap();
        let restore = "UPDATE customer_backup_jobs SET job_type = 'restore'";
        for is_mended in [false, true] {
            let lease = create_claimed(&jobs, "me").await;
            jobs.store.execute(restore, &[]).await.unwrap();
            assert!(
                jobs.fail(lease, Failure::Stuck, "It is stuck.")
                    .await
                    .unwrap()
            );
            if is_mended {
                let mut transaction = jobs.store.begin().await.unwrap();
                let completion = Completion {
                    recovered: true,
                    ..Completion::default()
                };
                let completed = jobs.complete_stuck(&mut transaction, lease.job, completion);
                assert!(completed.await.unwrap());
                transaction.commit().await.unwrap();
            } else {
                let failed = jobs.fail_stuck(lease.job, Failure::RolledBack, "It is back.");
                assert!(failed.await.unwrap());
            }
            assert!(
                !jobs
                    .fail_stuck(lease.job, Failure::Error, "Late.")
                    .await
                    .unwrap()
            );
        }
        assert_eq!(
            told().await,
            [
                "restore.completed Your shop is restored and open again. It was interrupted and finished on its own.",
                "restore.failed It is back.",
                "restore.stuck It is stuck.",
                "restore.stuck It is stuck.",
            ]
        );
    }

    #[tokio::test]
    async fn a_transaction_that_is_dropped_completes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let jobs = jobs(&dir, Duration::from_secs(60)).await;
        let lease = create_claimed(&jobs, "me").await;
        let mut transaction = jobs.store.begin().await.unwrap();
        let completed = jobs.complete(&mut transaction, lease, Completion::default());
        let completed = completed.await;
        assert!(completed.unwrap());
        drop(transaction);
        assert_eq!(jobs.look(lease).await.unwrap(), Kept::Held);
        assert!(complete(&jobs, lease, None).await);
    }
}
