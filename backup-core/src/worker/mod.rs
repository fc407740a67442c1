//! Workers: take jobs of one hosting server, run them, and look after the catalogue and the repository meanwhile.
//!
//! A worker may die at any instruction: what it ran is taken up by another one. It takes nothing of another server, and nothing more once it is asked to end.
//! Never: two workers that both commit for one job; a restore taken over while the process that ran it may still be at it.

mod delete;
mod notify;
mod recover;
mod repositories;
mod run;
mod sentence;
mod upkeep;
mod verify;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use crate::audit::Audit;
use crate::catalog::Catalog;
use crate::customer::CustomerStore;
use crate::error::{Error, ErrorKind, Result};
use crate::jobs::{JobStore, Queue, owner_of_this_process};
use crate::operations::Engine;
use crate::progress::{Cancel, Control};
use crate::store::Store;
use notify::Notifier;

pub use recover::Recovery;
pub(crate) use repositories::{Repositories, Wish};
pub(crate) use run::{Ended, Runner};
pub(crate) use upkeep::Upkeep;
pub(crate) use verify::Verification;
pub use verify::{NotVerified, Verified, VerifyReport};

/// Jobs run within this time although no wake-up arrives.
const POLL: Duration = Duration::from_secs(2);

/// Every live owner of a job renews his lease within this time after the database is back.
const AFTER_OUTAGE: Duration = Duration::from_secs(3);

/// What a worker is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Stopping {
    /// Carry on.
    #[default]
    No,
    /// Take no more jobs, finish those that run.
    Finish,
    /// Stop those that run as well: backups go to another worker, restores are undone.
    Abort,
}

/// Runs the jobs of one hosting server. Made by [`crate::service::BackupService::worker`].
#[derive(Debug)]
pub struct Worker {
    runner: Runner,
    upkeep: Upkeep,
    verification: Verification,
    notifier: Notifier,
    queue: Queue,
    server: String,
    name: String,
    concurrency: usize,
    /// Set when running jobs shall stop.
    abort: Cancel,
    after_job: Arc<Notify>,
    /// How many jobs run.
    running: Arc<AtomicUsize>,
    /// Whether the table could not be asked the last time.
    is_away: AtomicBool,
}

impl Worker {
    pub(crate) fn new(
        engine: Arc<Engine>,
        store: &Store,
        jobs: &JobStore,
        catalog: &Catalog,
        customers: &CustomerStore,
        queue: &Queue,
    ) -> Self {
        let config = &engine.config().worker;
        let after_job = Arc::new(Notify::new());
        let running = Arc::new(AtomicUsize::new(0));
        let repositories = Repositories {
            engine: Arc::clone(&engine),
            catalog: catalog.clone(),
            customers: customers.clone(),
        };
        Self {
            server: config.server.clone(),
            name: owner_of_this_process(),
            concurrency: usize::try_from(config.concurrency).unwrap_or(1),
            queue: queue.clone(),
            abort: Cancel::new(),
            upkeep: Upkeep {
                engine: Arc::clone(&engine),
                catalog: catalog.clone(),
                jobs: jobs.clone(),
                audit: Audit::new(store),
                requested: Arc::clone(&after_job),
                woken: Arc::default(),
                running: Arc::clone(&running),
                not_pruned: Arc::default(),
                repositories: repositories.clone(),
            },
            verification: Verification {
                engine: Arc::clone(&engine),
                catalog: catalog.clone(),
                customers: customers.clone(),
                repositories: repositories.clone(),
            },
            notifier: Notifier {
                config: Arc::new(engine.config().clone()),
                outbox: jobs.outbox().clone(),
                store: store.clone(),
                customers: customers.clone(),
            },
            after_job,
            running,
            is_away: AtomicBool::new(false),
            runner: Runner {
                engine,
                store: store.clone(),
                jobs: jobs.clone(),
                catalog: catalog.clone(),
                customers: customers.clone(),
                repositories,
                stopping: never_stopping(),
                is_worker: true,
            },
        }
    }

    /// Run jobs until `stopping` asks to end, and then until the running ones have ended. A database or a Redis that is away is waited for.
    ///
    /// A `stopping` whose sender is gone counts as [`Stopping::Finish`].
    pub async fn run(mut self, mut stopping: watch::Receiver<Stopping>) {
        self.runner.stopping = stopping.clone();
        tracing::info!(
            "worker {} of the server {}: up to {} jobs at once",
            self.name,
            self.server,
            self.concurrency
        );
        let upkeep = tokio::spawn(self.upkeep.clone().keep_running(stopping.clone()));
        // Also how the jobs end that are running then is told.
        let (end_telling, telling) = watch::channel(Stopping::No);
        let notifier = tokio::spawn(self.notifier.clone().keep_running(telling));
        let recovery = self
            .runner
            .clone()
            .recover_all(self.name.clone(), stopping.clone());
        let recovery = tokio::spawn(recovery);
        let verification = self
            .verification
            .clone()
            .keep_running(self.upkeep.clone(), stopping.clone());
        let verification = tokio::spawn(verification);
        let woken = &self.upkeep.woken;
        let mut running = JoinSet::new();
        while *stopping.borrow_and_update() == Stopping::No {
            self.take_jobs(&mut running, &stopping).await;
            let is_full = running.len() >= self.concurrency;
            tokio::select! {
                is_woken = self.queue.wait(&self.server, POLL), if !is_full => {
                    if is_woken {
                        woken.notify_one();
                    }
                }
                Some(ended) = running.join_next() => self.note_end(ended),
                asked = stopping.changed() => if asked.is_err() { break },
            }
        }
        if !running.is_empty() {
            tracing::info!("ending: {} jobs are still running", running.len());
        }
        self.finish(running, stopping).await;
        // What it does can be broken off at any point. Nothing of it but what is at work in a repository goes on after this: the caller closes the connections
        // that the rest of it uses.
        upkeep.abort();
        let _ = upkeep.await;
        if let Err(error) = recovery.await {
            tracing::error!("recovering broke off inside the program: {error}");
        }
        if let Err(error) = verification.await {
            tracing::error!("proving backups broke off inside the program: {error}");
        }
        end_telling.send_replace(Stopping::Finish);
        if let Err(error) = notifier.await {
            tracing::error!("telling of ends broke off inside the program: {error}");
        }
        tracing::info!("worker {} ended", self.name);
    }

    async fn take_jobs(&self, running: &mut JoinSet<()>, stopping: &watch::Receiver<Stopping>) {
        if let Err(error) = self.end_abandoned_restores().await {
            self.note_away(&error);
            return;
        }
        if self.is_away.swap(false, Ordering::AcqRel) {
            tracing::info!("the table of jobs answers again");
            // Leases ran out meanwhile. First those who live shall say so.
            tokio::time::sleep(AFTER_OUTAGE).await;
        }
        while running.len() < self.concurrency && *stopping.borrow() == Stopping::No {
            let claimed = match self.runner.jobs.claim(&self.server, &self.name).await {
                Ok(Some(claimed)) => claimed,
                Ok(None) => return,
                Err(error) => {
                    self.note_away(&error);
                    return;
                }
            };
            let runner = self.runner.clone();
            let control = Control {
                cancel: self.abort.child(),
                ..Control::default()
            };
            self.running.fetch_add(1, Ordering::AcqRel);
            running.spawn(async move {
                runner.run(claimed, &control).await;
            });
        }
    }

    /// Once for each outage.
    fn note_away(&self, error: &Error) {
        if !self.is_away.swap(true, Ordering::AcqRel) {
            tracing::warn!("no jobs can be taken now: {}", error.chain());
        }
    }

    fn note_end(&self, ended: Result<(), tokio::task::JoinError>) {
        if let Err(error) = ended {
            tracing::error!("a job broke off inside the program: {error}");
        }
        self.running.fetch_sub(1, Ordering::AcqRel);
        self.after_job.notify_one();
    }

    async fn finish(&self, mut running: JoinSet<()>, mut stopping: watch::Receiver<Stopping>) {
        while !running.is_empty() {
            if *stopping.borrow_and_update() == Stopping::Abort {
                self.abort.cancel();
            }
            tokio::select! {
                Some(ended) = running.join_next() => self.note_end(ended),
                Ok(()) = stopping.changed() => {}
            }
        }
    }

    /// Restores whose process died before it had a journal; the others are recovered. While it may still be at it, it holds the customer, and the job stays as
    /// it is.
    async fn end_abandoned_restores(&self) -> Result<()> {
        for job in self.runner.jobs.abandoned_restores(&self.server).await? {
            let (customer, id) = (job.customer_id, job.id.get());
            let journal = self
                .runner
                .blocking(move |engine| engine.journal_of(customer, id));
            let ended = match journal.await {
                Ok(Some(_)) => continue,
                _ => self.runner.end_abandoned(&job, &self.name).await,
            };
            match ended {
                Err(error) if error.kind() == ErrorKind::Busy => {
                    tracing::warn!(job = %job.id, "no sign of life, but its process still holds the customer: {}", error.chain());
                }
                Err(error) => {
                    tracing::error!(job = %job.id, "an interrupted restore cannot be looked at: {}", error.chain());
                }
                Ok(()) => {}
            }
        }
        Ok(())
    }
}

/// Whatever ends it, no operation goes on without the one who keeps its lease: the threads of a process that ends would hold up its end.
impl Drop for Worker {
    fn drop(&mut self) {
        self.abort.cancel();
    }
}

/// Set a flag as soon as the worker is asked to end, however politely. As long as the value lives.
fn tell_to_stop(flag: &Cancel, mut stopping: watch::Receiver<Stopping>) -> JoinSet<()> {
    let flag = flag.clone();
    let mut telling = JoinSet::new();
    telling.spawn(async move {
        while *stopping.borrow_and_update() == Stopping::No {
            if stopping.changed().await.is_err() {
                break;
            }
        }
        flag.cancel();
    });
    telling
}

/// For what only the caller's own flag stops.
pub(crate) fn never_stopping() -> watch::Receiver<Stopping> {
    watch::channel(Stopping::No).1
}
