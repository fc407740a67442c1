//! One job from its claim to its end.
//!
//! Commit points: the operation's own (the snapshot file, the exchange), which a job asks the table for ([`CommitGate`]); then one transaction that ends the job and puts the
//! backup into the catalogue. Dying between the two loses nothing: the snapshot that was about to be written is noted, and whoever takes the job up looks for it first.
//! Never: anything written for a job whose lease is lost, a snapshot left in the repository that no job and no list knows of.

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::{JoinError, JoinHandle};
use tokio::time::MissedTickBehavior;

use super::{Recovery, Repositories, Stopping, Wish, delete, sentence};
use crate::catalog::{BackupEntry, Catalog, Source};
use crate::customer::{Customer, CustomerStore};
use crate::error::{Error, ErrorKind, Result};
use crate::jobs::{
    Claimed, Completion, Deleting, Failure, Fate, Job, JobStatus, JobStore, JobType, Kept, Lease,
    Progress, Tracker,
};
use crate::operations::{BackupReport, BackupRequest, Engine, RestoreReport, RestoreRequest};
use crate::progress::{Cancel, Control, Gate};
use crate::repository::{Origin, SnapshotId};
use crate::site::{Claim, Site};
use crate::store::{Store, Transaction};

/// How often a backup is begun, when its workers die.
const ATTEMPTS_MAX: u32 = 3;

/// The pause before the database is tried again.
const PAUSE: Duration = Duration::from_millis(500);

/// Runs jobs that were claimed.
#[derive(Debug, Clone)]
pub(crate) struct Runner {
    pub(crate) engine: Arc<Engine>,
    pub(crate) store: Store,
    pub(crate) jobs: JobStore,
    pub(crate) catalog: Catalog,
    pub(crate) customers: CustomerStore,
    pub(crate) repositories: Repositories,
    /// Once it says [`Stopping::Abort`], what is cancelled is not the customer's wish.
    pub(crate) stopping: watch::Receiver<Stopping>,
    /// A worker waits for a database that is away, and for others who use the customer or the repository, for as long as it takes. Somebody who
    /// watches is told.
    pub(crate) is_worker: bool,
}

/// How the run of a job ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// A backup was made.
    Backup(Box<BackupReport>),
    /// A backup was put back.
    Restore(Box<RestoreReport>),
    /// An earlier attempt had made the backup, and was not able to say so.
    Found(SnapshotId),
    /// It failed, and the job says so.
    Failed(Error),
    /// How it ended could not be written down: whoever takes the job up will find out.
    Unwritten(Error),
    /// Another worker shall run it.
    Released,
    /// Another worker has it.
    Lost,
}

/// A snapshot that a job made, and that belongs into the catalogue.
#[derive(Debug, Clone)]
pub(super) struct Made {
    origin: Origin,
    entry: BackupEntry,
    /// What the database had while it was dumped, where that is known.
    tables: Option<Vec<String>>,
}

impl Made {
    fn backup(entry: BackupEntry, tables: Option<Vec<String>>) -> Self {
        Self {
            origin: Origin::Manual,
            entry,
            tables,
        }
    }

    pub(super) fn of_restore(report: &RestoreReport) -> Option<Self> {
        Some(Self {
            origin: Origin::PreRestore,
            entry: report.kept.clone()?,
            tables: None,
        })
    }
}

/// What the operation of a job gave.
enum Work {
    Backup(Box<BackupReport>),
    Restore(Box<RestoreReport>),
    Found(Box<BackupEntry>),
}

/// What the keeper of a lease and the work under it tell each other.
#[derive(Debug, Default)]
struct Shared {
    why: Mutex<Option<Why>>,
    /// The operation is over: from here on the lease is only renewed.
    is_settling: AtomicBool,
}

impl Shared {
    fn why(&self) -> MutexGuard<'_, Option<Why>> {
        self.why.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why we stopped a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    Requested,
    TimedOut,
    Lost,
}

impl Runner {
    /// Run a job. `control` is the caller's: its monitor is told of everything, its flag cancels.
    pub(crate) async fn run(&self, claimed: Claimed, control: &Control) -> Ended {
        let job = &claimed.job;
        tracing::info!(
            job = %job.id, customer = %job.customer_id, attempt = job.attempts,
            "{} {}: running{}", job.job_type, job.backup_type,
            if claimed.is_taken_over { ", taken over from a worker that died" } else { "" }
        );
        let ended = self.run_to_its_end(&claimed, control).await;
        match &ended {
            Ended::Backup(report) => {
                tracing::info!(job = %job.id, "completed: snapshot {}", report.snapshot_id);
            }
            Ended::Found(snapshot) => {
                tracing::info!(job = %job.id, "completed: an earlier attempt had written the snapshot {snapshot}");
            }
            Ended::Restore(report) => {
                tracing::info!(job = %job.id, "completed: restored from the snapshot {}", report.snapshot_id);
            }
            Ended::Failed(error) => tracing::error!(job = %job.id, "failed: {}", error.chain()),
            Ended::Unwritten(error) => {
                tracing::error!(job = %job.id, "its end could not be written, it is left to whoever takes it up: {}", error.chain());
            }
            Ended::Released => tracing::info!(job = %job.id, "given back"),
            Ended::Lost => {
                tracing::warn!(job = %job.id, "lost to another worker; nothing of this attempt stays");
            }
        }
        ended
    }

    async fn run_to_its_end(&self, claimed: &Claimed, control: &Control) -> Ended {
        let (job, lease) = (&claimed.job, claimed.lease);
        let customer = match self.customer(job).await {
            Ok(customer) => customer,
            Err(error) => return self.fail(job, lease, Failure::Error, error).await,
        };
        let here = &self.engine.config().worker.server;
        if customer.server != *here {
            tracing::warn!(job = %job.id, "customer {} is on the server {} by now", customer.id, customer.server);
            return self.release(job, lease, &customer.server).await;
        }

        // The caller's flag may be that of many jobs.
        let cancel = control.cancel.child();
        let tracker = Arc::new(Tracker::over(Arc::clone(&control.monitor)));
        let gate = Arc::new(CommitGate::new(&self.jobs, lease, &cancel));
        let watched = Control {
            monitor: Arc::clone(&tracker) as _,
            cancel: cancel.clone(),
            gate: Some(Arc::clone(&gate) as _),
        };
        let shared = Shared::default();
        // A restore holds its customer until its end is written: nobody may take it for abandoned meanwhile.
        let held = Arc::new(Mutex::new(None));
        let work = self.start(claimed, &customer, watched, &tracker, &held);
        let ended = async {
            let result = work.await.unwrap_or_else(|e| broke_off(job.job_type, e));
            shared.is_settling.store(true, Ordering::Release);
            match result {
                Ok(work) => self.settle_success(job, lease, work, control).await,
                Err(error) => {
                    let why = *shared.why();
                    self.settle_failure(claimed, &gate, why, error).await
                }
            }
        };
        let ended = tokio::select! {
            ended = ended => ended,
            never = self.keep(job, lease, &tracker, &cancel, &shared) => match never {},
        };
        if matches!(ended, Ended::Restore(_) | Ended::Failed(_)) {
            self.close_journal(job).await;
        }
        ended
    }

    async fn settle_success(
        &self,
        job: &Job,
        lease: Lease,
        work: Work,
        control: &Control,
    ) -> Ended {
        let (made, bytes) = match &work {
            Work::Backup(report) => {
                let entry = report.entry(job.note.clone());
                let made = Made::backup(entry, report.tables.clone());
                (Some(made), Some(report.bytes))
            }
            Work::Found(entry) => {
                let made = Made::backup((**entry).clone(), None);
                (Some(made), entry.bytes)
            }
            Work::Restore(report) => (Made::of_restore(report), Some(report.bytes)),
        };
        match self.complete(job, lease, made.as_ref(), bytes).await {
            Ok(true) => {}
            Ok(false) => return Ended::Lost,
            // What was written is noted in the job: who takes it up finds it.
            Err(error) => return Ended::Unwritten(error),
        }
        match work {
            Work::Backup(mut report) => {
                let warning = self.forget_beyond_retention(job, made.as_ref()).await;
                if let Some(warning) = &warning {
                    control.monitor.warning(warning);
                }
                report.warnings.extend(warning);
                Ended::Backup(report)
            }
            Work::Found(entry) => {
                self.forget_beyond_retention(job, made.as_ref()).await;
                Ended::Found(entry.id)
            }
            Work::Restore(mut report) => {
                let warning = self.forget_beyond_retention(job, made.as_ref()).await;
                report.warnings.extend(warning);
                Ended::Restore(report)
            }
        }
    }

    /// End a job whose process died, without running it again: a backup that is there after all is completed, all else has failed. Of a restore that is stuck, the
    /// same once more. [`ErrorKind::Busy`] where the process may still be at it.
    pub(crate) async fn end_abandoned(&self, job: &Job, owner: &str) -> Result<()> {
        if job.server != self.engine.config().worker.server {
            return Err(Error::new(
                ErrorKind::Busy,
                format!("job {} runs on the server {}", job.id, job.server),
            ));
        }
        if job.job_type == JobType::Restore {
            let (customer, id) = (job.customer_id, job.id.get());
            let journal = self.blocking(move |engine| engine.journal_of(customer, id));
            if let Ok(Some(interrupted)) = journal.await {
                return match self.recover(&interrupted, owner).await? {
                    Recovery::InUse => Err(Error::new(
                        ErrorKind::Busy,
                        format!("somebody is at work on customer {}", job.customer_id),
                    )),
                    Recovery::Restored | Recovery::Undone => Ok(()),
                };
            }
            if job.is_stuck() {
                return match self.engine.has_journals() {
                    true => self.end_if_lost(job).await.map(drop),
                    false => Ok(()),
                };
            }
        }
        let _claim = match job.job_type {
            JobType::Backup => None,
            JobType::Restore => self.claim_customer(job).await?,
        };
        let Some(claimed) = self.jobs.take_over(job.id, owner).await? else {
            return Ok(());
        };
        if let Some(intended) = claimed.intended {
            let customer = job.customer_id;
            let found = self
                .blocking(move |engine| engine.find_own(customer, Origin::Manual, &intended))
                .await?;
            if let Some(found) = found {
                let bytes = found.bytes;
                let made = Made::backup(found, None);
                let completed = self.complete(&claimed.job, claimed.lease, Some(&made), bytes);
                if completed.await? {
                    self.forget_beyond_retention(&claimed.job, Some(&made))
                        .await;
                }
                tracing::info!(job = %job.id, "completed: its worker had died after writing the snapshot {intended}");
                return Ok(());
            }
        }
        // As it is now that nobody else writes it.
        let (customer, id) = (job.customer_id, job.id.get());
        let journal = self.blocking(move |engine| engine.journal_of(customer, id));
        match journal.await {
            _ if job.job_type == JobType::Backup => {}
            Ok(None) => {}
            // It is there after all; whoever recovers it ends the job.
            Ok(Some(_)) => return Ok(()),
            Err(error) => {
                tracing::error!(job = %job.id, "failed: {}", error.chain());
                let error = Error::new(ErrorKind::Stuck, error.chain());
                self.fail(&claimed.job, claimed.lease, Failure::Stuck, error)
                    .await;
                return Ok(());
            }
        }
        if job.job_type == JobType::Restore {
            let found = self.end_exchanges_of_lost(&claimed.job).await;
            if !matches!(&found, Ok(left) if left.is_empty()) {
                let said = found.map_or_else(|error| error.chain(), |left| left.join("; "));
                tracing::error!(job = %job.id, "failed: its journal is gone: {said}");
                let fail = || {
                    self.jobs
                        .fail(claimed.lease, Failure::Error, sentence::LOST)
                };
                return self.patiently(&claimed.job, fail).await.map(drop);
            }
        }
        let error = Error::new(
            ErrorKind::Interrupted,
            match job.job_type {
                JobType::Backup => "the backup was interrupted: its process died",
                // The journal is written before anything else is done, and no tables are found exchanged.
                JobType::Restore => {
                    "the restore was interrupted before it had changed anything: its process died"
                }
            },
        );
        tracing::error!(job = %job.id, "failed: {}", error.chain());
        self.fail(&claimed.job, claimed.lease, Failure::Interrupted, error)
            .await;
        Ok(())
    }

    /// None where the customer has no directory any more, so that nobody can be at it.
    pub(super) async fn claim_customer(&self, job: &Job) -> Result<Option<Claim>> {
        let customer = match self.customers.get(job.customer_id).await {
            Ok(customer) => customer,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        self.blocking(move |engine| match Site::open(engine.config(), &customer) {
            Ok(site) => site.claim(true).map(Some),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        })
        .await
    }

    async fn customer(&self, job: &Job) -> Result<Customer> {
        self.patiently(job, || self.customers.get(job.customer_id))
            .await
    }

    /// The operation, on a thread of its own.
    fn start(
        &self,
        claimed: &Claimed,
        customer: &Customer,
        control: Control,
        tracker: &Arc<Tracker>,
        held: &Arc<Mutex<Option<Claim>>>,
    ) -> JoinHandle<Result<Work>> {
        let this = self.clone();
        let claimed = claimed.clone();
        let customer = customer.clone();
        let held = Arc::clone(held);
        let tracker = Arc::clone(tracker);
        let runtime = Handle::current();
        tokio::task::spawn_blocking(move || match claimed.job.job_type {
            JobType::Backup => this.back_up(&claimed, &customer, &control, &tracker, &runtime),
            JobType::Restore => {
                let request = restore_request(&claimed.job)?;
                // What it replaces becomes a backup. Where that has no place, the restore will say so; a daily backup is not to be denied for it.
                if request.source == Source::Daily {
                    let made = this.make_repository(&customer, &control.cancel, &runtime);
                    if let Err(error) = made {
                        tracing::warn!(job = %claimed.job.id, "{}", error.chain());
                    }
                }
                let this_job = claimed.job.id.get();
                let mut held = held.lock().unwrap_or_else(PoisonError::into_inner);
                let claim = this.when_free(&claimed.job, &control.cancel, &tracker, || {
                    this.engine.claim_for_restore(&customer)
                })?;
                let claim = held.insert(claim);
                let report = this.when_free(&claimed.job, &control.cancel, &tracker, || {
                    let engine = &this.engine;
                    let job = Some(this_job);
                    engine.restore_under(claim, job, &customer, &request, &control)
                })?;
                Ok(Work::Restore(Box::new(report)))
            }
        })
    }

    /// Once more while somebody else uses the customer or the repository, as long as nothing was begun.
    fn when_free<T>(
        &self,
        job: &Job,
        cancel: &Cancel,
        tracker: &Tracker,
        act: impl Fn() -> Result<T>,
    ) -> Result<T> {
        let mut is_told = false;
        loop {
            match act() {
                Err(error)
                    if error.kind() == ErrorKind::Busy
                        && self.is_worker
                        && !tracker.has_begun() =>
                {
                    if cancel.is_cancelled() {
                        return Err(Error::caused(
                            ErrorKind::Cancelled,
                            "it had to end while it still waited for others",
                            error,
                        ));
                    }
                    if !is_told {
                        tracing::info!(job = %job.id, "waiting for others: {}", error.chain());
                    }
                    is_told = true;
                    std::thread::sleep(PAUSE);
                }
                other => return other,
            }
        }
    }

    /// The first backup of a customer makes his repository, where each has one of his own: nobody runs `init` for a new shop.
    fn make_repository(
        &self,
        customer: &Customer,
        cancel: &Cancel,
        runtime: &Handle,
    ) -> Result<()> {
        if !self.engine.each_has_own() {
            return Ok(());
        }
        let making = self.repositories.make(customer.id, Wish::Backup, cancel);
        if runtime.block_on(making)? {
            tracing::info!(customer = %customer.id, "his repository is made");
        }
        Ok(())
    }

    fn back_up(
        &self,
        claimed: &Claimed,
        customer: &Customer,
        control: &Control,
        tracker: &Tracker,
        runtime: &Handle,
    ) -> Result<Work> {
        let job = &claimed.job;
        if let Some(intended) = claimed.intended {
            if let Some(entry) = self
                .engine
                .find_own(customer.id, Origin::Manual, &intended)?
            {
                return Ok(Work::Found(Box::new(entry)));
            }
            // From here on the former owner knows that nobody will look for it again.
            if !runtime.block_on(self.jobs.drop_intended(claimed.lease))? {
                return Err(taken_over());
            }
        }
        if job.attempts > ATTEMPTS_MAX {
            return Err(Error::new(
                ErrorKind::Interrupted,
                format!(
                    "the backup was begun {ATTEMPTS_MAX} times, and each time its worker died: see the log of the workers"
                ),
            ));
        }
        self.make_repository(customer, &control.cancel, runtime)?;
        let request = BackupRequest {
            backup_type: job.backup_type,
            note: job.note.clone(),
        };
        let report = self.when_free(job, &control.cancel, tracker, || {
            self.engine.backup(customer, &request, control)
        })?;
        Ok(Work::Backup(Box::new(report)))
    }

    /// Keep the lease, write progress down, and stop the operation where it has to. Runs until it is dropped.
    async fn keep(
        &self,
        job: &Job,
        lease: Lease,
        tracker: &Tracker,
        cancel: &Cancel,
        shared: &Shared,
    ) -> Infallible {
        let config = &self.engine.config().worker;
        let limit = match job.job_type {
            JobType::Backup => config.backup_timeout,
            JobType::Restore => config.restore_timeout,
        };
        let renewal = self.jobs.lease() / 4;
        let mut ticks = tokio::time::interval(renewal.min(Duration::from_secs(1)));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let started = Instant::now();
        let mut written: Option<(Instant, Progress)> = None;
        let mut is_away = false;
        loop {
            ticks.tick().await;
            let progress = tracker.progress();
            let is_due = written
                .as_ref()
                .is_none_or(|(at, known)| *known != progress || at.elapsed() >= renewal);
            let kept = if is_due {
                self.jobs.keep(lease, &progress).await
            } else {
                self.jobs.look(lease).await
            };
            let reason = match kept {
                Ok(kept) => {
                    is_away = false;
                    if is_due {
                        written = Some((Instant::now(), progress));
                    }
                    match kept {
                        Kept::Lost => Some(Why::Lost),
                        Kept::CancelRequested => Some(Why::Requested),
                        Kept::Held => None,
                    }
                }
                // The work goes on; before it commits, the database must have confirmed that the job is still ours.
                Err(error) => {
                    if !is_away {
                        tracing::warn!(job = %job.id, "its progress cannot be written: {}", error.chain());
                    }
                    is_away = true;
                    None
                }
            };
            if shared.is_settling.load(Ordering::Acquire) {
                continue;
            }
            let timed_out = (started.elapsed() > limit).then_some(Why::TimedOut);
            let mut why = shared.why();
            if let Some(reason) = reason.or(timed_out)
                && (why.is_none() || reason == Why::Lost)
            {
                if *why != Some(reason) {
                    tracing::info!(job = %job.id, "stopping: {}", match reason {
                        Why::Requested => "it was cancelled",
                        Why::TimedOut => "it takes longer than it may",
                        Why::Lost => "another worker has it",
                    });
                }
                *why = Some(reason);
                match reason {
                    Why::TimedOut => cancel.time_out(),
                    Why::Requested | Why::Lost => cancel.cancel(),
                }
            }
        }
    }

    /// The job's end: its row and the catalogue's in one transaction. False where another worker has ended it otherwise; then the snapshot is gone.
    pub(super) async fn complete(
        &self,
        job: &Job,
        lease: Lease,
        made: Option<&Made>,
        bytes: Option<u64>,
    ) -> Result<bool> {
        let repository = match made {
            Some(_) => Some(self.own_repository(job).await?),
            None => None,
        };
        let recorded = made.zip(repository.as_deref());
        let since = Instant::now();
        loop {
            let done = self
                .patiently(job, || self.try_complete(job, lease, recorded, bytes))
                .await?;
            if done {
                return Ok(true);
            }
            // The answer to an earlier try may have been lost.
            if self.is_ended(job, JobStatus::Completed).await? {
                return Ok(true);
            }
            let Some((
                Made {
                    origin: Origin::Manual,
                    entry,
                    ..
                },
                repository,
            )) = recorded
            else {
                // What a restore replaced is the customer's whoever ends the job; a sync takes it in.
                return Ok(false);
            };
            match self
                .patiently(job, || self.jobs.fate(lease, entry.id))
                .await?
            {
                Fate::Used => return Ok(true),
                // It may be this very worker that has to look. The snapshot is there and noted: it can be left to that.
                Fate::Undecided if self.is_aborting() || since.elapsed() > self.jobs.lease() => {
                    return Ok(false);
                }
                Fate::Undecided => tokio::time::sleep(PAUSE).await,
                Fate::Unwanted => {
                    let unwanted = [entry.id];
                    let customer = job.customer_id;
                    self.blocking(move |engine| engine.manual_of(customer)?.forget(&unwanted))
                        .await?;
                    // A sync may have taken it in.
                    self.patiently(job, || self.catalog.remove(repository, &unwanted))
                        .await?;
                    return Ok(false);
                }
            }
        }
    }

    /// Where snapshots are that we make; the catalogue is told that it is in use.
    pub(super) async fn own_repository(&self, job: &Job) -> Result<String> {
        let customer = job.customer_id;
        let repository = self
            .blocking(move |engine| Ok(engine.manual_of(customer)?.id()))
            .await?;
        let server = &self.engine.config().worker.server;
        let name = self.engine.name_of_manual(customer);
        self.patiently(job, || self.catalog.note_use(server, name, &repository))
            .await?;
        Ok(repository)
    }

    async fn try_complete(
        &self,
        job: &Job,
        lease: Lease,
        recorded: Option<(&Made, &str)>,
        bytes: Option<u64>,
    ) -> Result<bool> {
        let mut transaction = self.store.begin().await?;
        let completion = completion(recorded.map(|(made, _)| made), bytes, false);
        if !self
            .jobs
            .complete(&mut transaction, lease, completion)
            .await?
        {
            return Ok(false);
        }
        self.record(&mut transaction, job, recorded).await?;
        transaction.commit().await?;
        Ok(true)
    }

    pub(super) async fn record(
        &self,
        transaction: &mut Transaction,
        job: &Job,
        recorded: Option<(&Made, &str)>,
    ) -> Result<()> {
        let Some((made, repository)) = recorded else {
            return Ok(());
        };
        let (customer, source, entry) = (job.customer_id, made.origin.into(), &made.entry);
        self.catalog
            .record(transaction, repository, customer, source, entry)
            .await?;
        match &made.tables {
            Some(tables) => {
                Catalog::record_tables(transaction, customer, source, &entry.id, tables).await
            }
            None => Ok(()),
        }
    }

    /// What this attempt of ours ended as, if its answer was lost.
    async fn is_ended(&self, job: &Job, status: JobStatus) -> Result<bool> {
        let now = self.patiently(job, || self.jobs.get(job.id)).await?;
        Ok(now.is_some_and(|now| now.status == status && now.attempts == job.attempts))
    }

    /// Gives what somebody should know.
    pub(super) async fn forget_beyond_retention(
        &self,
        job: &Job,
        made: Option<&Made>,
    ) -> Option<String> {
        let failure = self.try_forget_beyond_retention(job, made?).await.err()?;
        let warning = format!("older backups could not be removed: {}", failure.chain());
        tracing::warn!(job = %job.id, "{warning}");
        Some(warning)
    }

    async fn try_forget_beyond_retention(&self, job: &Job, made: &Made) -> Result<()> {
        let customer = job.customer_id;
        // What he deleted counts no more, and must not push out what he keeps.
        delete::carry_out(&self.engine, &self.catalog, Some(customer)).await?;
        let (origin, id) = (made.origin, made.entry.id);
        let excess = self.blocking(move |engine| engine.beyond_retention(customer, origin, id));
        for id in excess.await? {
            self.give_up(job, origin, id).await?;
        }
        delete::carry_out(&self.engine, &self.catalog, Some(customer)).await
    }

    /// Delete an older backup, unless its customer is just about to restore it: then it goes after the next backup.
    async fn give_up(&self, job: &Job, origin: Origin, id: SnapshotId) -> Result<()> {
        let customer = job.customer_id;
        let restores_it = |active: &Job| {
            active.job_type == JobType::Restore && active.snapshot_id == Some(id.to_string())
        };
        let delete = || {
            self.patiently(job, || {
                self.jobs.delete_backup(customer, origin, &id, restores_it)
            })
        };
        let mut deleting = delete().await?;
        if matches!(deleting, Deleting::NotFound) {
            // The catalogue does not have it yet. Forgotten past it, it could be taken in by others, and a restore of it queued, meanwhile.
            self.take_in(job, origin, id).await?;
            deleting = delete().await?;
        }
        if let Deleting::InTheWay(restore) = deleting {
            tracing::info!(job = %restore.id, "the snapshot {id} is kept for it");
        }
        Ok(())
    }

    /// Show a customer what is in the repository. Done already, or nothing, where others were faster.
    async fn take_in(&self, job: &Job, origin: Origin, id: SnapshotId) -> Result<()> {
        let customer = job.customer_id;
        let find = move |engine: &Engine| {
            let found = engine.find_own(customer, origin, &id)?;
            Ok((engine.manual_of(customer)?.id(), found))
        };
        let (repository, found) = self.blocking(find).await?;
        let Some(entry) = found else {
            return Ok(());
        };
        self.patiently(job, || {
            self.catalog
                .take_in_own(&repository, customer, origin, &entry)
        })
        .await
    }

    async fn settle_failure(
        &self,
        claimed: &Claimed,
        gate: &CommitGate,
        why: Option<Why>,
        error: Error,
    ) -> Ended {
        let (job, lease) = (&claimed.job, claimed.lease);
        if let Some(intended) = gate.intended() {
            // The one write of the commit failed: it may have arrived all the same.
            let customer = job.customer_id;
            match self
                .blocking(move |engine| engine.find_own(customer, Origin::Manual, &intended))
                .await
            {
                Ok(Some(entry)) => {
                    let work = Work::Found(Box::new(entry));
                    return self
                        .settle_success(job, lease, work, &Control::default())
                        .await;
                }
                Ok(None) => {}
                // Nobody can tell now. The job keeps its note; whoever takes it up looks again.
                Err(unknown) => {
                    return Ended::Unwritten(error.context(format!(
                        "whether the snapshot {intended} was written cannot be told now ({}): it will be looked for",
                        unknown.chain()
                    )));
                }
            }
        }
        let is_undecided = claimed.intended.is_some()
            && matches!(error.kind(), ErrorKind::Unreachable | ErrorKind::Busy)
            && job.attempts <= ATTEMPTS_MAX;
        match (error.kind(), why) {
            (_, Some(Why::Lost)) => Ended::Lost,
            _ if is_undecided => self.release(job, lease, &job.server).await,
            (ErrorKind::Cancelled, Some(Why::TimedOut)) => {
                let error = Error::caused(ErrorKind::Timeout, "it took longer than it may", error);
                self.fail(job, lease, Failure::Timeout, error).await
            }
            (ErrorKind::Cancelled, _) if self.is_aborting() => match job.job_type {
                JobType::Backup => self.release(job, lease, &job.server).await,
                JobType::Restore => self.fail(job, lease, Failure::Interrupted, error).await,
            },
            (ErrorKind::Cancelled, _) => self.fail(job, lease, Failure::Cancelled, error).await,
            (ErrorKind::Interrupted, _) => self.fail(job, lease, Failure::Interrupted, error).await,
            (ErrorKind::RolledBack, _) => self.fail(job, lease, Failure::RolledBack, error).await,
            (ErrorKind::Stuck, _) if self.has_journal(job).await => {
                self.fail(job, lease, Failure::Stuck, error).await
            }
            (ErrorKind::Timeout, _) => self.fail(job, lease, Failure::Timeout, error).await,
            _ => self.fail(job, lease, Failure::Error, error).await,
        }
    }

    /// End a job that failed.
    pub(super) async fn fail(
        &self,
        job: &Job,
        lease: Lease,
        failure: Failure,
        error: Error,
    ) -> Ended {
        let sentence = sentence::of(job.job_type, failure, &error);
        match self
            .patiently(job, || self.jobs.fail(lease, failure, &sentence))
            .await
        {
            Ok(true) => Ended::Failed(error),
            Ok(false) => match self.is_ended(job, JobStatus::Failed).await {
                Ok(true) => Ended::Failed(error),
                _ => Ended::Lost,
            },
            Err(unwritten) => Ended::Unwritten(error.context(unwritten.chain())),
        }
    }

    async fn release(&self, job: &Job, lease: Lease, server: &str) -> Ended {
        match self
            .patiently(job, || self.jobs.release(lease, server))
            .await
        {
            Ok(true) => Ended::Released,
            Ok(false) => Ended::Lost,
            Err(error) => Ended::Unwritten(error),
        }
    }

    fn is_aborting(&self) -> bool {
        *self.stopping.borrow() == Stopping::Abort
    }

    /// Again and again while the database is away; the end of a job must not be lost. It is not lost either where we give up: whoever takes the
    /// job up finds out.
    pub(super) async fn patiently<T, F>(&self, job: &Job, mut act: impl FnMut() -> F) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        const WATCHED_FOR: Duration = Duration::from_secs(60);
        let since = Instant::now();
        let mut is_told = false;
        loop {
            let goes_on = self.is_worker || since.elapsed() < WATCHED_FOR;
            match act().await {
                Err(error) if is_passing(&error) && goes_on && !self.is_aborting() => {
                    if !is_told {
                        tracing::warn!(job = %job.id, "waiting for the database: {}", error.chain());
                    }
                    is_told = true;
                    tokio::time::sleep(PAUSE).await;
                }
                other => return other,
            }
        }
    }

    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        act: impl FnOnce(&Engine) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let engine = Arc::clone(&self.engine);
        tokio::task::spawn_blocking(move || act(&engine))
            .await
            .unwrap_or_else(|e| broke_off(JobType::Backup, e))
    }
}

/// Asks the table for the right to commit, and waits while the database is away.
struct CommitGate {
    runtime: Handle,
    jobs: JobStore,
    lease: Lease,
    cancel: Cancel,
    intended: Mutex<Option<SnapshotId>>,
}

impl CommitGate {
    fn new(jobs: &JobStore, lease: Lease, cancel: &Cancel) -> Self {
        Self {
            runtime: Handle::current(),
            jobs: jobs.clone(),
            lease,
            cancel: cancel.clone(),
            intended: Mutex::default(),
        }
    }

    /// The snapshot for which the right was given.
    fn intended(&self) -> Option<SnapshotId> {
        *self.intended.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Gate for CommitGate {
    fn before_commit(&self, snapshot: Option<&str>) -> Result<()> {
        let intended = snapshot.map(str::parse).transpose()?;
        let mut is_told = false;
        loop {
            let asked = Instant::now();
            let answer = self.jobs.begin_commit(self.lease, snapshot);
            match self.runtime.block_on(answer) {
                // It was long in coming: somebody may have taken the job since it was given.
                Ok(Kept::Held) if asked.elapsed() > self.jobs.lease() / 2 => {}
                Ok(Kept::Held) => {
                    *self.intended.lock().unwrap_or_else(PoisonError::into_inner) = intended;
                    return Ok(());
                }
                Ok(Kept::CancelRequested) => {
                    return Err(Error::new(ErrorKind::Cancelled, "the job was cancelled"));
                }
                Ok(Kept::Lost) => return Err(taken_over()),
                Err(error) if is_passing(&error) => {
                    self.cancel.check()?;
                    if !is_told {
                        tracing::warn!(job = %self.lease.job(), "waiting with the commit for the database: {}", error.chain());
                    }
                    is_told = true;
                    std::thread::sleep(PAUSE);
                }
                Err(error) => {
                    return Err(error.context("the right to commit could not be had"));
                }
            }
        }
    }
}

pub(super) fn completion(made: Option<&Made>, bytes: Option<u64>, recovered: bool) -> Completion {
    let id = |origin| {
        made.filter(|made| made.origin == origin)
            .map(|made| made.entry.id)
    };
    Completion {
        made: id(Origin::Manual),
        kept: id(Origin::PreRestore),
        recovered,
        bytes,
    }
}

fn restore_request(job: &Job) -> Result<RestoreRequest> {
    let snapshot = job.snapshot_id.as_deref().map(str::parse).transpose()?;
    let (Some(snapshot), Some(source)) = (snapshot, job.source) else {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            format!("the job {} does not say what to restore", job.id),
        ));
    };
    Ok(RestoreRequest {
        snapshot,
        source,
        restore_type: Some(job.backup_type),
        online: job.online,
    })
}

/// Whether the database may answer if it is asked again.
fn is_passing(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Unreachable | ErrorKind::Busy)
}

fn taken_over() -> Error {
    Error::new(
        ErrorKind::Cancelled,
        "another worker has taken the job over",
    )
}

/// A restore that broke off may have left anything.
fn broke_off<T>(job_type: JobType, error: JoinError) -> Result<T> {
    let kind = match job_type {
        JobType::Backup => ErrorKind::Failed,
        JobType::Restore => ErrorKind::Stuck,
    };
    Err(Error::caused(
        kind,
        "the operation broke off inside the program",
        error,
    ))
}
