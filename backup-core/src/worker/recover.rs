//! Restores that were interrupted: the site first, then what the tables say of it.
//!
//! A journal is enough to bring a site to its end ([`Engine::recover`]); that the table of jobs and the catalogue tell of it may come later. The journal goes
//! last. Never: a restore recovered that a process is still at; a job that tells of a site what is not so.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::sync::watch;

use super::run::{Made, completion};
use super::{Ended, Runner, Stopping, sentence};
use crate::error::{Error, ErrorKind, Result};
use crate::jobs::{Claimed, Failure, Job, JobId, JobStatus, JobType};
use crate::operations::{Interrupted, Recovered, RestoreReport};
use crate::progress::Control;

/// How often journals are looked for.
const EVERY: Duration = Duration::from_secs(2);

/// How long one is left alone that can be brought to neither end.
const PATIENCE: Duration = Duration::from_secs(60);

/// [`PATIENCE`]; in builds with debug assertions as many seconds as a test wants.
fn patience() -> Duration {
    let wanted = match cfg!(debug_assertions) {
        true => std::env::var("SHOPHOSTING_BACKUP_PATIENCE").ok(),
        false => None,
    };
    let seconds = wanted.and_then(|seconds| seconds.parse().ok());
    seconds.map_or(PATIENCE, Duration::from_secs)
}

/// A restore that could not be recovered.
struct Failed {
    kind: ErrorKind,
    at: Instant,
}

impl Failed {
    fn is_left_alone(&self) -> bool {
        let takes_time = matches!(self.kind, ErrorKind::Stuck | ErrorKind::Failed);
        takes_time && self.at.elapsed() < patience()
    }
}

/// What became of an interrupted restore.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Recovery {
    /// Its site is as the backup has it.
    Restored,
    /// Its site is as it was.
    Undone,
    /// Nothing: somebody is at work on its customer.
    InUse,
}

impl Runner {
    /// Recover what was interrupted on this server, until the worker is to end.
    pub(super) async fn recover_all(self, owner: String, mut stopping: watch::Receiver<Stopping>) {
        let mut failed = HashMap::new();
        let mut is_told = false;
        let mut looked_for_lost: Option<Instant> = None;
        while *stopping.borrow_and_update() == Stopping::No {
            match self.blocking(|engine| engine.interrupted()).await {
                Ok(mut found) => {
                    // First those that visitors see.
                    found.sort_by_key(|one| one.as_ref().is_ok_and(|one| one.is_site_open));
                    for found in found {
                        self.recover_once(found, &owner, &mut failed).await;
                    }
                    is_told = false;
                }
                Err(error) if is_told => drop(error),
                Err(error) => {
                    is_told = true;
                    tracing::error!(
                        "interrupted restores cannot be looked for: {}",
                        error.chain()
                    );
                }
            }
            // After the sites: the table may be away, which takes a while to find out.
            if looked_for_lost.is_none_or(|at| at.elapsed() >= PATIENCE) {
                looked_for_lost = Some(Instant::now());
                if let Err(error) = self.end_lost(false).await {
                    tracing::debug!("stuck restores cannot be looked for: {}", error.chain());
                }
            }
            tokio::select! {
                () = tokio::time::sleep(EVERY) => {}
                asked = stopping.changed() => if asked.is_err() { return },
            }
        }
    }

    async fn recover_once(
        &self,
        found: Result<Interrupted>,
        owner: &str,
        failed: &mut HashMap<String, Failed>,
    ) {
        let job = found.as_ref().ok().and_then(|found| found.job);
        let (name, recovered) = match found {
            Err(error) => (error.to_string(), Err(error)),
            Ok(interrupted) => {
                let name = interrupted.journal.display().to_string();
                if failed.get(&name).is_some_and(Failed::is_left_alone) {
                    return;
                }
                let recovered = match self.recover(&interrupted, owner).await {
                    Ok(Recovery::InUse) if self.is_abandoned(&interrupted).await => Err(silent()),
                    other => other,
                };
                (name, recovered)
            }
        };
        let Err(error) = recovered else {
            failed.remove(&name);
            return;
        };
        let kind = error.kind();
        let before = failed.insert(
            name,
            Failed {
                kind,
                at: Instant::now(),
            },
        );
        if before.is_none_or(|before| before.kind != kind) {
            tracing::error!(
                job,
                "an interrupted restore is not recovered: {}",
                error.chain()
            );
        }
    }

    /// End the stuck restores that have no journal any more, so that nothing can bring them to their true end and their customers could start nothing for
    /// ever; what is to be said of each. Those of this server; where an operator asks for it, also those of servers whose customers are on this one by now.
    pub(crate) async fn end_lost(&self, is_asked_for: bool) -> Result<Vec<Error>> {
        // A directory that is not there may be one that is not mounted yet.
        if !is_asked_for && !self.engine.has_journals() {
            return Ok(Vec::new());
        }
        let mut ended = Vec::new();
        for job in self.jobs.stuck().await? {
            let here = &self.engine.config().worker.server;
            let is_ours = job.server == *here
                || is_asked_for
                    && matches!(self.customers.get(job.customer_id).await, Ok(customer) if customer.server == *here);
            if !is_ours {
                continue;
            }
            match self.end_if_lost(&job).await {
                Ok(told) => ended.extend(told),
                // It is looked at again.
                Err(error) if is_asked_for => {
                    tracing::warn!(job = %job.id, "still stuck: {}", error.chain());
                }
                Err(error) => tracing::debug!(job = %job.id, "{}", error.chain()),
            }
        }
        Ok(ended)
    }

    /// The same with one; None where it has a journal, or its end was told meanwhile.
    pub(super) async fn end_if_lost(&self, job: &Job) -> Result<Option<Error>> {
        if self.has_journal(job).await {
            return Ok(None);
        }
        let _claim = self.claim_customer(job).await?;
        // As it is now that nobody else writes it.
        if self.has_journal(job).await {
            return Ok(None);
        }
        // First, for nobody looks at an ended job again.
        let tables: String = self
            .end_exchanges_of_lost(job)
            .await?
            .iter()
            .map(|said| format!("; {said}"))
            .collect();
        if !self
            .jobs
            .fail_stuck(job.id, Failure::Error, sentence::LOST)
            .await?
        {
            return Ok(None);
        }
        let error = Error::new(
            ErrorKind::Failed,
            format!(
                "the restore of customer {} (job {}) was stuck, and its journal is gone: its job has failed, and nothing is done to his site; look at it, \
                 for it may be closed or half-way, and at schemas and directories beside it that may hold what it was{tables}",
                job.customer_id, job.id
            ),
        );
        tracing::error!(job = %job.id, "no longer stuck: {}", error.chain());
        Ok(Some(error))
    }

    /// The tables at least can be brought to an end without a journal; what there is to say of that. For whoever holds the customer.
    ///
    /// An error where it cannot be told now whether any were exchanged.
    pub(super) async fn end_exchanges_of_lost(&self, job: &Job) -> Result<Vec<String>> {
        let customer = match self.customers.get(job.customer_id).await {
            Ok(customer) => customer,
            // Then he has no database here.
            Err(error)
                if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Configuration) =>
            {
                return Ok(Vec::new());
            }
            Err(error) => return Err(error),
        };
        let ended = self
            .blocking(move |engine| engine.end_exchanges_of_lost(&customer))
            .await;
        match ended {
            Err(error)
                if !matches!(
                    error.kind(),
                    ErrorKind::Unreachable | ErrorKind::Timeout | ErrorKind::Busy
                ) =>
            {
                Ok(vec![error.chain()])
            }
            ended => ended,
        }
    }

    /// Whether its job has no owner that lives, as far as the table tells.
    async fn is_abandoned(&self, interrupted: &Interrupted) -> bool {
        let server = &self.engine.config().worker.server;
        let abandoned = self.jobs.abandoned_restores(server).await;
        abandoned
            .unwrap_or_default()
            .iter()
            .any(|job| Some(job.id.get()) == interrupted.job)
    }

    /// Bring one to its end, and write down how it ended.
    ///
    /// [`ErrorKind::Stuck`] when its site can be brought to neither now, and whatever keeps its end from being written down.
    pub(crate) async fn recover(&self, interrupted: &Interrupted, owner: &str) -> Result<Recovery> {
        let one = interrupted.clone();
        let recovered = self
            .blocking(move |engine| engine.recover(&one, &Control::default()))
            .await;
        let (recovery, told) = match recovered {
            Ok(Recovered::Gone) => return Ok(Recovery::InUse),
            Err(error) if error.kind() == ErrorKind::Busy => return Ok(Recovery::InUse),
            Ok(Recovered::Restored(report)) => {
                let told = self.tell_restored(interrupted, &report, owner).await;
                (Ok(Recovery::Restored), told)
            }
            Ok(Recovered::Untold(error)) => return Err(error),
            Ok(Recovered::Undone(error)) => {
                let told = self.tell_failed(interrupted, error, owner).await;
                (Ok(Recovery::Undone), told)
            }
            Err(error) => {
                let told = Error::new(ErrorKind::Stuck, error.chain());
                let told = self.tell_failed(interrupted, told, owner);
                (Err(error), told.await)
            }
        };
        match (recovery, told) {
            (Ok(recovery), Ok(true)) => {
                let one = interrupted.clone();
                let closed = self.blocking(move |engine| engine.close_journal(&one));
                match closed.await? {
                    true => Ok(recovery),
                    false => Err(not_tidy(interrupted, recovery)),
                }
            }
            (Ok(recovery), Ok(false)) => Ok(recovery),
            // Its site is not brought to an end: that says more.
            (Err(error), _) | (Ok(_), Err(error)) => Err(error),
        }
    }

    /// The journal of a job whose row tells how it ended; what is left in it is left to [`Self::recover_all`].
    pub(super) async fn close_journal(&self, job: &Job) {
        if job.job_type != JobType::Restore {
            return;
        }
        let (customer, id) = (job.customer_id, job.id.get());
        let closed = self.blocking(move |engine| match engine.journal_of(customer, id)? {
            Some(interrupted) => engine.close_journal(&interrupted),
            None => Ok(true),
        });
        if let Err(error) = closed.await {
            tracing::warn!(job = %job.id, "its journal stays: {}", error.chain());
        }
    }

    /// Whether a restore is stuck itself, and not only in the way of one that is: it has a journal then, which somebody will recover.
    pub(super) async fn has_journal(&self, job: &Job) -> bool {
        let (customer, id) = (job.customer_id, job.id.get());
        let journal = self
            .blocking(move |engine| engine.has_journal_of(customer, id))
            .await;
        // Who cannot look must not promise that all is well.
        job.job_type == JobType::Restore && !matches!(journal, Ok(false))
    }

    /// False where nobody can be told yet.
    async fn tell_restored(
        &self,
        interrupted: &Interrupted,
        report: &RestoreReport,
        owner: &str,
    ) -> Result<bool> {
        let Some(job) = self.job_of(interrupted).await? else {
            return Ok(true);
        };
        let made = Made::of_restore(report);
        let completion = completion(made.as_ref(), Some(report.bytes), true);
        let told = match self.ending(&job, owner).await? {
            Ending::Open => return Ok(false),
            Ending::Ours(claimed) => {
                tracing::info!(job = %job.id, "completed: it had been interrupted, and is carried to its end");
                self.settle(&job, made.as_ref(), async |transaction, jobs| {
                    jobs.complete(transaction, claimed.lease, completion).await
                })
                .await?
            }
            Ending::Stuck => {
                tracing::info!(job = %job.id, "completed: it is no longer stuck");
                self.settle(&job, made.as_ref(), async |transaction, jobs| {
                    jobs.complete_stuck(transaction, job.id, completion).await
                })
                .await?
            }
            Ending::Told => {
                if let Some(kept) = report.kept.as_ref().map(|kept| kept.id) {
                    self.settle(&job, made.as_ref(), async |transaction, jobs| {
                        jobs.note_kept(transaction, job.id, kept).await?;
                        Ok(true)
                    })
                    .await?;
                }
                true
            }
        };
        if told {
            self.forget_beyond_retention(&job, made.as_ref()).await;
        }
        Ok(told)
    }

    async fn tell_failed(
        &self,
        interrupted: &Interrupted,
        error: Error,
        owner: &str,
    ) -> Result<bool> {
        let Some(job) = self.job_of(interrupted).await? else {
            return Ok(true);
        };
        // What it failed of before its process died, or before it got stuck on its way back: that is what there is to tell.
        let failure = match error.kind() {
            ErrorKind::Stuck => Failure::Stuck,
            ErrorKind::RolledBack => Failure::RolledBack,
            ErrorKind::Timeout => Failure::Timeout,
            ErrorKind::Cancelled if job.cancel_requested => Failure::Cancelled,
            ErrorKind::Cancelled | ErrorKind::Interrupted => Failure::Interrupted,
            _ => Failure::Error,
        };
        match self.ending(&job, owner).await? {
            Ending::Open => return Ok(false),
            Ending::Ours(claimed) => {
                tracing::error!(job = %job.id, "failed: {}", error.chain());
                let ended = self.fail(&job, claimed.lease, failure, error).await;
                return Ok(matches!(ended, Ended::Failed(_)));
            }
            Ending::Stuck if failure != Failure::Stuck => {
                let sentence = sentence::of(job.job_type, failure, &error);
                self.jobs.fail_stuck(job.id, failure, &sentence).await?;
                tracing::info!(job = %job.id, "no longer stuck: {}", error.chain());
            }
            Ending::Stuck | Ending::Told => {}
        }
        Ok(true)
    }

    async fn job_of(&self, interrupted: &Interrupted) -> Result<Option<Job>> {
        match interrupted.job {
            Some(id) => self.jobs.get(JobId::from_number(id)).await,
            None => Ok(None),
        }
    }

    /// Where a job stands whose restore has ended.
    async fn ending(&self, job: &Job, owner: &str) -> Result<Ending> {
        match (job.status, job.failure) {
            (JobStatus::Running, _) => match self.jobs.take_over(job.id, owner).await? {
                Some(claimed) => Ok(Ending::Ours(Box::new(claimed))),
                None => Ok(Ending::Open),
            },
            (JobStatus::Failed, Some(Failure::Stuck)) => Ok(Ending::Stuck),
            (JobStatus::Pending | JobStatus::Completed | JobStatus::Failed, _) => Ok(Ending::Told),
        }
    }

    /// A job's end and what it made, in one transaction.
    async fn settle(
        &self,
        job: &Job,
        made: Option<&Made>,
        end: impl AsyncFnOnce(&mut crate::store::Transaction, &crate::jobs::JobStore) -> Result<bool>,
    ) -> Result<bool> {
        let repository = match made {
            Some(_) => Some(self.own_repository(job).await?),
            None => None,
        };
        let mut transaction = self.store.begin().await?;
        if !end(&mut transaction, &self.jobs).await? {
            return Ok(false);
        }
        let recorded = made.zip(repository.as_deref());
        self.record(&mut transaction, job, recorded).await?;
        transaction.commit().await?;
        Ok(true)
    }
}

fn not_tidy(interrupted: &Interrupted, recovery: Recovery) -> Error {
    let state = match recovery {
        Recovery::Restored => "is as the backup has it, but what was replaced is not put away yet",
        Recovery::Undone | Recovery::InUse => {
            "is as it was, but what was staged is not removed yet"
        }
    };
    Error::new(
        ErrorKind::Failed,
        format!(
            "the site of customer {} {state}: see the warnings of the log",
            interrupted.customer
        ),
    )
}

fn silent() -> Error {
    Error::new(
        ErrorKind::Busy,
        "no sign of life, but its process still holds the customer",
    )
}

/// Where a job stands whose restore has ended.
enum Ending {
    /// It runs, and is ours to end.
    Ours(Box<Claimed>),
    /// It counts as running, and its owner may be about to end it.
    Open,
    /// It ended as a stuck one.
    Stuck,
    /// It ended.
    Told,
}
