//! The one façade: what a dashboard, a command line and other services do with customers' backups.
//!
//! It needs the database and nothing else: no repository, no password of one, no root. Only what is given an [`Engine`] touches repositories and sites.
//! Never: an answer that tells one customer of another's backups or jobs.
//!
//! ```no_run
//! # async fn example() -> backup_core::error::Result<()> {
//! use backup_core::config::{Config, Environment};
//! use backup_core::jobs::Created;
//! use backup_core::operations::BackupRequest;
//! use backup_core::repository::BackupType;
//! use backup_core::service::BackupService;
//!
//! let config = Config::load(None, &Environment::of_process())?;
//! let service = BackupService::connect(config).await?;
//! let request = BackupRequest { backup_type: BackupType::Both, note: None };
//! match service.create_backup("7".parse()?, &request).await? {
//!     Created::Job(job) => println!("job {} is queued", job.id),
//!     Created::InTheWay(job) => println!("job {} is still {}", job.id, job.status),
//! }
//! # Ok(())
//! # }
//! ```

mod status;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::Notify;
use tokio::task::spawn_blocking;

use crate::audit::{Action, Actor, Audit, AuditEntry, AuditPage, Deed, Who};
use crate::catalog::{
    BackupEntry, BackupList, Catalog, Missing, ProofFigures, RepositoryName, Sampled, Source,
    SyncReport, Synced, no_such_backup,
};
use crate::config::Config;
use crate::customer::{Customer, CustomerId, CustomerStore};
use crate::error::{Error, ErrorKind, Result};
use crate::jobs::{
    CancelAnswer, Created, Deleting, Failure, Job, JobCount, JobId, JobStatus, JobStore, JobStream,
    JobType, NewJob, Queue, Watcher, owner_of_this_process,
};
use crate::login::Login;
use crate::notify::{self, NotificationCount, NotificationsWaiting};
use crate::operations::{
    BackupReport, BackupRequest, DailyReport, Engine, Interrupted, RestoreReport, RestoreRequest,
    require_note,
};
use crate::progress::{Cancel, Control};
use crate::repository::{Origin, PruneReport, Repository, SnapshotId};
use crate::session::Sessions;
use crate::store::{Migrated, Store};
use crate::worker::{
    Ended, Recovery, Repositories, Runner, Upkeep, Verification, VerifyReport, Wish, Worker,
    never_stopping,
};

pub use status::{CustomerStatus, Kept, OpenJob, Problem, RepositoryStatus, Status};

/// Backups of customers, as jobs. Cheap to clone.
#[derive(Debug, Clone)]
pub struct BackupService {
    config: Arc<Config>,
    store: Store,
    customers: CustomerStore,
    login: Login,
    sessions: Sessions,
    jobs: JobStore,
    catalog: Catalog,
    audit: Audit,
    queue: Queue,
    watcher: Watcher,
}

/// What a monitoring wants to know of all customers together. All times are by the database's clock.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Figures {
    /// Jobs by type, state and failure; what there is none of is left out.
    pub jobs: Vec<JobCount>,
    /// Restores that could be neither finished nor undone: their shops are closed.
    pub stuck: u64,
    /// For how long the oldest job waits that nobody has taken up.
    pub oldest_pending: Option<Duration>,
    /// When the newest backup of each source was made. Of the manual ones also such as were deleted since.
    pub newest_backups: Vec<(Source, Timestamp)>,
    /// When each hosting server's repositories were last looked at.
    pub synced: Vec<Synced>,
    /// Which backups were restored to prove that they can be.
    pub proofs: Vec<ProofFigures>,
    /// What was found when some packs of the repositories were read.
    pub sampled: Vec<Sampled>,
    /// How many notifications were sent, and given up, since the tables were made.
    pub notifications: Vec<NotificationCount>,
    /// Those that are still to be told, by channel.
    pub notifications_waiting: Vec<NotificationsWaiting>,
}

/// What became of the wish to delete a backup.
#[derive(Debug, Clone)]
pub enum Deleted {
    /// It is shown no longer, and cannot be restored. A worker removes it from the repository.
    Done,
    /// It stays, because this job of the customer's has not ended yet.
    InTheWay(Box<Job>),
}

/// What a job that was run on the spot gave.
#[derive(Debug)]
pub enum RunHere<T> {
    /// It is done.
    Done {
        /// Its job.
        job: JobId,
        /// What was done.
        report: T,
    },
    /// It was not begun: this job of the customer's has not ended yet, or is a stuck restore.
    InTheWay(Box<Job>),
}

impl BackupService {
    /// Connect to the database. Its tables are created where there are none at all; where they are of an earlier version,
    /// [`ErrorKind::Configuration`] asks for [`Self::migrate`].
    pub async fn connect(config: Config) -> Result<Self> {
        let store = Store::connect(&config).await?;
        store.require_customers().await?;
        store.require_migrated().await?;
        let jobs = JobStore::new(&store, config.worker.lease).with_notifications(&config.notify);
        let customers = CustomerStore::new(&store, &config);
        Ok(Self {
            login: Login::new(&customers),
            sessions: Sessions::new(&store, &config.server),
            customers,
            catalog: Catalog::new(&store),
            audit: Audit::new(&store),
            queue: Queue::new(&config.queue)?,
            watcher: Watcher::new(&jobs),
            config: Arc::new(config),
            store,
            jobs,
        })
    }

    /// The same service. What is asked of it from here is written down as this one's; without it, as [`Actor::service`]'s.
    #[must_use]
    pub fn acting(&self, actor: Actor) -> Self {
        let actor = Arc::new(actor);
        Self {
            customers: self.customers.acting_as(&actor),
            login: self.login.acting(&actor),
            sessions: self.sessions.acting(&actor),
            jobs: self.jobs.acting(&actor),
            audit: self.audit.acting(&actor),
            ..self.clone()
        }
    }

    /// Write down what is done elsewhere than in the database, and to no single customer.
    pub async fn note(&self, action: Action) -> Result<()> {
        self.audit.note(&Deed::to_nobody(action)).await
    }

    /// The same of what is done to this customer's things. [`ErrorKind::NotFound`] where there is no such customer.
    pub async fn note_to(&self, customer: CustomerId, action: Action) -> Result<()> {
        let customer = self.customers.get(customer).await?;
        self.audit.note(&Deed::to(customer.id, action)).await
    }

    /// What was done to a customer's account and backups, by whom and from where, newest first: what is older than the entry `before`. It is for
    /// the customer: what an operator is called, and where he is, is left out.
    pub async fn activity(
        &self,
        customer: CustomerId,
        before: Option<u64>,
        at_most: u32,
    ) -> Result<AuditPage> {
        let mut page = self.audit.of_customer(customer, before, at_most).await?;
        let entries = page.entries.iter_mut();
        for entry in entries.filter(|entry| entry.who != Who::Customer) {
            entry.name = None;
            entry.address = None;
            entry.request_id = None;
        }
        Ok(page)
    }

    /// Remove what was done longer ago than `server.audit_keep` says, and of each customer what is more than is kept
    /// ([`crate::audit::KEPT_OF_CUSTOMER`]), a little at a time, as workers do; the number of entries.
    pub async fn forget_old_activity(&self) -> Result<u64> {
        self.audit.forget(self.config.server.audit_keep).await
    }

    /// What was done to anything, newest first.
    pub async fn activity_of_all(&self, at_most: u32) -> Result<Vec<AuditEntry>> {
        self.audit.newest(at_most).await
    }

    /// Create or upgrade the tables.
    pub async fn migrate(config: &Config) -> Result<Migrated> {
        let store = Store::connect(config).await?;
        let migrated = store.migrate().await;
        store.close().await;
        migrated
    }

    /// Close the connections to the database. Without it they are closed some time after the last clone is dropped.
    pub async fn close(&self) {
        self.store.close().await;
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Whether requests can be answered: fails with [`ErrorKind::Unreachable`] unless the database answers at once.
    pub async fn ready(&self) -> Result<()> {
        self.store.require_answer().await
    }

    /// Figures for a monitoring: cheap enough for every few seconds.
    pub async fn figures(&self) -> Result<Figures> {
        let jobs = self.jobs.counts().await?;
        let catalogued = self.catalog.newest().await?;
        Ok(Figures {
            stuck: stuck_of(&jobs),
            oldest_pending: self.jobs.oldest_pending().await?,
            newest_backups: with_deleted(catalogued, &jobs),
            synced: self.catalog.syncs().await?,
            proofs: self.catalog.proof_figures().await?,
            sampled: self.catalog.samples().await?,
            notifications: notify::counts(&self.store).await?,
            notifications_waiting: notify::waiting(&self.store).await?,
            jobs,
        })
    }

    /// The customers.
    pub fn customers(&self) -> &CustomerStore {
        &self.customers
    }

    /// To prove who somebody is.
    pub fn login(&self) -> &Login {
        &self.login
    }

    /// Who is logged in.
    pub fn sessions(&self) -> &Sessions {
        &self.sessions
    }

    /// Queue a backup. Which worker runs it is not for the caller to say: one of the customer's hosting server.
    ///
    /// [`ErrorKind::NotFound`] where there is no such customer, [`ErrorKind::InvalidInput`] for a note that is none.
    pub async fn create_backup(
        &self,
        customer: CustomerId,
        request: &BackupRequest,
    ) -> Result<Created> {
        let customer = self.customers.get(customer).await?;
        self.enqueue(&new_backup(&customer, request)?).await
    }

    /// Queue a restore. [`ErrorKind::NotFound`] where the catalogue knows no such backup of this customer, or it does not hold what is asked for;
    /// whether there is one of somebody else makes no difference.
    pub async fn restore(&self, customer: CustomerId, request: &RestoreRequest) -> Result<Created> {
        let customer = self.customers.get(customer).await?;
        let new = self.new_restore(&customer, request).await?;
        self.enqueue(&new).await
    }

    /// Delete a manual backup of a customer. From then on it is not shown, and no restore of it can be queued; a worker forgets its snapshot.
    ///
    /// [`ErrorKind::NotFound`] for one that is not there, is another's, or is not a manual one.
    pub async fn delete_backup(&self, customer: CustomerId, id: &SnapshotId) -> Result<Deleted> {
        let customer = self.customers.get(customer).await?;
        let deleting = self
            .jobs
            .delete_backup(customer.id, Origin::Manual, id, |_| true);
        match deleting.await? {
            Deleting::Done => {}
            Deleting::InTheWay(job) => return Ok(Deleted::InTheWay(job)),
            Deleting::NotFound => return Err(no_such_backup(customer.id, &id.to_string())),
        }
        tracing::info!(customer = %customer.id, "the backup {id} is deleted");
        self.queue.wake(&customer.server, 0).await;
        Ok(Deleted::Done)
    }

    /// The backups of a customer, newest first, from the catalogue alone.
    pub async fn list(&self, customer: CustomerId) -> Result<BackupList> {
        let daily_shown = self.config.retention.daily_shown;
        self.catalog.list(customer, daily_shown).await
    }

    /// One backup of a customer.
    pub async fn backup(
        &self,
        customer: CustomerId,
        source: Source,
        id: &SnapshotId,
    ) -> Result<Option<BackupEntry>> {
        self.catalog.find(customer, source, id).await
    }

    /// One backup of a customer and where it is from.
    pub async fn find(
        &self,
        customer: CustomerId,
        id: &SnapshotId,
    ) -> Result<Option<(Source, BackupEntry)>> {
        self.catalog.find_anywhere(customer, id).await
    }

    /// The full id of one of the customer's backups by its first digits, at least eight.
    pub async fn resolve(
        &self,
        customer: CustomerId,
        source: Source,
        text: &str,
    ) -> Result<SnapshotId> {
        self.catalog.resolve(customer, source, text).await
    }

    /// A job of this customer; with None, of any.
    pub async fn job(&self, customer: Option<CustomerId>, id: JobId) -> Result<Option<Job>> {
        let job = self.jobs.get(id).await?;
        Ok(job.filter(|job| customer.is_none_or(|customer| job.customer_id == customer)))
    }

    /// The newest jobs of a customer, newest first; with None, of all customers.
    pub async fn jobs(&self, customer: Option<CustomerId>, at_most: u32) -> Result<Vec<Job>> {
        match customer {
            Some(customer) => self.jobs.of_customer(customer, at_most).await,
            None => self.jobs.recent(at_most).await,
        }
    }

    /// The customer's job that has no true end yet: one that has not ended, or a restore that is stuck. No other can be created meanwhile.
    pub async fn open_job(&self, customer: CustomerId) -> Result<Option<Job>> {
        self.jobs.open(customer).await
    }

    /// The customer's job that has not ended.
    pub async fn active_job(&self, customer: CustomerId) -> Result<Option<Job>> {
        self.jobs.active(customer).await
    }

    /// Cancel a job of this customer; with None, of any. [`ErrorKind::NotFound`] where it is not his.
    pub async fn cancel(&self, customer: Option<CustomerId>, id: JobId) -> Result<CancelAnswer> {
        self.require_job(customer, id).await?;
        let answer = self.jobs.cancel(id).await?;
        match answer {
            CancelAnswer::Cancelled => tracing::info!(job = %id, "failed: it was cancelled"),
            CancelAnswer::Requested => tracing::info!(job = %id, "asked to stop"),
            CancelAnswer::TooLate | CancelAnswer::Ended => {}
        }
        Ok(answer)
    }

    /// Note that a customer has seen how a job of his failed; false where it has not. [`ErrorKind::NotFound`] where it is not his.
    pub async fn dismiss(&self, customer: CustomerId, id: JobId) -> Result<bool> {
        self.require_job(Some(customer), id).await?;
        self.jobs.dismiss(id).await
    }

    /// The states of a job of this customer (with None, of any) as they come, the last one its end. However many watch, the
    /// database is asked once a second.
    pub async fn progress(&self, customer: Option<CustomerId>, id: JobId) -> Result<JobStream> {
        let job = self.require_job(customer, id).await?;
        Ok(self.watcher.watch(job))
    }

    /// A worker for the jobs of the hosting server that the engine's configuration names.
    pub fn worker(&self, engine: Arc<Engine>) -> Worker {
        Worker::new(
            engine,
            &self.store,
            &self.jobs,
            &self.catalog,
            &self.customers,
            &self.queue,
        )
    }

    /// Make a backup here and now, as a job that no worker can take meanwhile. Cancelling works up to the commit.
    pub async fn backup_here(
        &self,
        engine: &Arc<Engine>,
        customer: CustomerId,
        request: &BackupRequest,
        control: &Control,
    ) -> Result<RunHere<BackupReport>> {
        let customer = self.customers.get(customer).await?;
        let new = new_backup(&customer, request)?;
        let (job, ended) = match self.run_here(engine, &customer, &new, control).await? {
            Ok(run) => run,
            Err(job) => return Ok(RunHere::InTheWay(job)),
        };
        match ended {
            Ended::Backup(report) => Ok(RunHere::Done {
                job,
                report: *report,
            }),
            other => Err(unexpected(job, other)),
        }
    }

    /// Put a backup back here and now, as a job that no worker can take meanwhile. Cancelling works up to the exchange.
    pub async fn restore_here(
        &self,
        engine: &Arc<Engine>,
        customer: CustomerId,
        request: &RestoreRequest,
        control: &Control,
    ) -> Result<RunHere<RestoreReport>> {
        let customer = self.customers.get(customer).await?;
        let new = self.new_restore(&customer, request).await?;
        let (job, ended) = match self.run_here(engine, &customer, &new, control).await? {
            Ok(run) => run,
            Err(job) => return Ok(RunHere::InTheWay(job)),
        };
        match ended {
            Ended::Restore(report) => Ok(RunHere::Done {
                job,
                report: *report,
            }),
            other => Err(unexpected(job, other)),
        }
    }

    /// Finish or undo the restores of this server that were interrupted, and end their jobs. Each with what became of it; of one that cannot be
    /// recovered now, or never because its journal is gone, why.
    pub async fn recover(
        &self,
        engine: &Arc<Engine>,
    ) -> Result<Vec<(Option<Interrupted>, Result<Recovery>)>> {
        let runner = self.runner(engine);
        let owner = owner_of_this_process();
        let mut recovered = Vec::new();
        for found in runner.blocking(|engine| engine.interrupted()).await? {
            recovered.push(match found {
                Ok(interrupted) => {
                    let recovery = runner.recover(&interrupted, &owner).await;
                    (Some(interrupted), recovery)
                }
                Err(error) => (None, Err(error)),
            });
        }
        match runner.end_lost(true).await {
            Ok(lost) => recovered.extend(lost.into_iter().map(|error| (None, Err(error)))),
            // What was recovered is told all the same.
            Err(error) => recovered.push((None, Err(error))),
        }
        Ok(recovered)
    }

    /// Bring the catalogue in step with the repositories; what was done, by their names in the configuration.
    pub async fn sync(
        &self,
        engine: &Arc<Engine>,
        missing: Missing,
    ) -> Result<Vec<(&'static str, SyncReport)>> {
        self.upkeep(engine).sync(missing, None, None).await
    }

    /// As [`Self::sync`], as far as a customer's backups may be there: where each has a repository of his own, the other customers' are not looked at. With a
    /// source no repository is but the one of its backups, which [`Source::Manual`] and [`Source::PreRestore`] share, and only that is in the result.
    pub async fn sync_of(
        &self,
        engine: &Arc<Engine>,
        customer: CustomerId,
        source: Option<Source>,
        missing: Missing,
    ) -> Result<Vec<(&'static str, SyncReport)>> {
        let upkeep = self.upkeep(engine);
        upkeep.sync(missing, Some(customer), source).await
    }

    /// The repositories of the hosting server that the engine's configuration names. Of customers' own also those that are not made yet.
    pub async fn repositories(&self, engine: &Arc<Engine>) -> Result<Vec<RepositoryName>> {
        self.repositories_of(engine).all().await
    }

    /// Open one of [`Self::repositories`]; None for a customer's own that is not made yet. One that was there before and is gone is
    /// [`ErrorKind::NotFound`].
    pub async fn open_repository(
        &self,
        engine: &Arc<Engine>,
        name: RepositoryName,
    ) -> Result<Option<Arc<Repository>>> {
        self.repositories_of(engine).open(name).await
    }

    /// Make the repository of a customer's own, as his first backup does, and the directories above it; false where there is one. One that was there
    /// before and is gone, or that he has on another hosting server and that cannot be reached from this one, is made anew only if it `may_be_lost`.
    pub async fn make_repository(
        &self,
        engine: &Arc<Engine>,
        customer: CustomerId,
        may_be_lost: bool,
    ) -> Result<bool> {
        let wish = match may_be_lost {
            true => Wish::InitNamed,
            false => Wish::Init,
        };
        self.repositories_of(engine)
            .make(customer, wish, &Cancel::new())
            .await
    }

    /// Free the space of backups that were forgotten, in the manual repositories and, where the daily backups are ours, in the daily one: what became of
    /// each. [`ErrorKind::Busy`] while anybody uses it, and [`ErrorKind::Damaged`] where the catalogue knows backups that the repository does not list.
    pub async fn prune(&self, engine: &Arc<Engine>) -> Vec<(RepositoryName, Result<PruneReport>)> {
        self.upkeep(engine).prune().await
    }

    /// Make the daily backup of all customers of the hosting server that the engine's configuration names, show it to them, and forget the oldest ones.
    ///
    /// An error means that there is no new backup; what of single customers could not be saved is in the report. Cancelling works up to the commit.
    pub async fn back_up_daily(
        &self,
        engine: &Arc<Engine>,
        control: &Control,
    ) -> Result<DailyReport> {
        let server = &engine.config().worker.server;
        let customers = self.customers.of_server(server).await?;
        let members = customers.iter().map(|(id, _)| *id).collect();
        let mut report = {
            let (engine, control) = (Arc::clone(engine), control.clone());
            let backup = spawn_blocking(move || engine.back_up_daily(customers, &control));
            backup.await.unwrap_or_else(|error| {
                Err(Error::caused(
                    ErrorKind::Failed,
                    "the daily backup broke off inside the program",
                    error,
                ))
            })?
        };
        let known = report.warnings.len();
        let upkeep = self.upkeep(engine);
        upkeep.after_daily(&members, &mut report).await;
        for warning in report.warnings.iter().skip(known) {
            control.monitor.warning(warning);
        }
        Ok(report)
    }

    /// Prove that the newest backups of these customers, or of all of the hosting server that the engine's configuration names, can be restored: by restoring
    /// each to a private place and a scratch schema, from which it is removed again. No site and no live database is touched, and no job is in the way.
    ///
    /// What is wrong with single backups is in the report. [`ErrorKind::Busy`] while another process is at it. Can be cancelled at any time.
    pub async fn verify(
        &self,
        engine: &Arc<Engine>,
        customers: &[CustomerId],
        control: &Control,
    ) -> Result<VerifyReport> {
        let verification = Verification {
            engine: Arc::clone(engine),
            catalog: self.catalog.clone(),
            customers: self.customers.clone(),
            repositories: self.repositories_of(engine),
        };
        verification.run(customers, control).await
    }

    async fn enqueue(&self, new: &NewJob) -> Result<Created> {
        let created = self.jobs.create(new).await?;
        if let Created::Job(job) = &created {
            tracing::info!(
                job = %job.id, customer = %job.customer_id,
                "{} {}: pending", job.job_type, job.backup_type
            );
            self.queue.wake(&new.server, job.id.get()).await;
        }
        Ok(created)
    }

    async fn new_restore(&self, customer: &Customer, request: &RestoreRequest) -> Result<NewJob> {
        let found = self
            .catalog
            .find(customer.id, request.source, &request.snapshot)
            .await?;
        let no_such_backup = || {
            Error::new(
                ErrorKind::NotFound,
                format!(
                    "customer {} has no {} backup {}",
                    customer.id, request.source, request.snapshot
                ),
            )
        };
        let entry = found.ok_or_else(no_such_backup)?;
        let restore_type = request.restore_type.unwrap_or(entry.backup_type);
        if !entry.backup_type.includes(restore_type) {
            return Err(Error::new(
                ErrorKind::NotFound,
                format!(
                    "the backup {} holds {}, not {restore_type}",
                    entry.id, entry.backup_type
                ),
            ));
        }
        Ok(NewJob {
            customer: customer.id,
            server: customer.server.clone(),
            job_type: JobType::Restore,
            backup_type: restore_type,
            snapshot: Some((request.source, request.snapshot)),
            online: request.online,
            note: None,
        })
    }

    async fn require_job(&self, customer: Option<CustomerId>, id: JobId) -> Result<Job> {
        let job = self.job(customer, id).await?;
        job.ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                format!("there is no job {id}: `jobs` lists them"),
            )
        })
    }

    /// Err: the job that is in the way.
    async fn run_here(
        &self,
        engine: &Arc<Engine>,
        customer: &Customer,
        new: &NewJob,
        control: &Control,
    ) -> Result<std::result::Result<(JobId, Ended), Box<Job>>> {
        let here = &engine.config().worker.server;
        if customer.server != *here {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!(
                    "customer {} is on the server {}, and this is {here} (worker.server): run it there",
                    customer.id, customer.server
                ),
            ));
        }
        let owner = owner_of_this_process();
        let runner = self.runner(engine);
        let mut created = self.jobs.create_claimed(new, &owner).await?;
        if let Err(job) = &created
            && (job.status == JobStatus::Running || job.is_stuck())
        {
            // There may be no worker that would find that its process is dead, or that its cause is mended.
            let ended = runner.end_abandoned(job, &owner).await;
            created = self.jobs.create_claimed(new, &owner).await?;
            if let (Err(error), Err(_)) = (ended, &created)
                && error.kind() != ErrorKind::Busy
            {
                return Err(error);
            }
        }
        let claimed = match created {
            Ok(claimed) => claimed,
            Err(job) => return Ok(Err(job)),
        };
        let id = claimed.job.id;
        let ended = runner.run(claimed, control).await;
        Ok(Ok((id, ended)))
    }

    fn runner(&self, engine: &Arc<Engine>) -> Runner {
        Runner {
            engine: Arc::clone(engine),
            store: self.store.clone(),
            // What follows from a job is nobody's wish.
            jobs: self.jobs.acting(&Arc::new(Actor::service())),
            catalog: self.catalog.clone(),
            customers: self.customers.clone(),
            repositories: self.repositories_of(engine),
            stopping: never_stopping(),
            is_worker: false,
        }
    }

    fn upkeep(&self, engine: &Arc<Engine>) -> Upkeep {
        Upkeep {
            engine: Arc::clone(engine),
            catalog: self.catalog.clone(),
            jobs: self.jobs.clone(),
            audit: self.audit.clone(),
            requested: Arc::new(Notify::new()),
            woken: Arc::default(),
            running: Arc::default(),
            not_pruned: Arc::default(),
            repositories: self.repositories_of(engine),
        }
    }

    fn repositories_of(&self, engine: &Arc<Engine>) -> Repositories {
        Repositories {
            engine: Arc::clone(engine),
            catalog: self.catalog.clone(),
            customers: self.customers.clone(),
        }
    }
}

/// The catalogue alone would go back in time when a customer deletes his newest one; the job that made it stays.
fn with_deleted(
    catalogued: Vec<(Source, Timestamp)>,
    jobs: &[JobCount],
) -> Vec<(Source, Timestamp)> {
    let made = jobs
        .iter()
        .filter(|count| count.job_type == JobType::Backup && count.status == JobStatus::Completed)
        .filter_map(|count| Some((Source::Manual, count.last_end?)));
    let mut newest = BTreeMap::new();
    for (source, time) in catalogued.into_iter().chain(made) {
        let known = newest.entry(source).or_insert(time);
        *known = time.max(*known);
    }
    newest.into_iter().collect()
}

/// How many restores are stuck.
fn stuck_of(jobs: &[JobCount]) -> u64 {
    let stuck = jobs
        .iter()
        .filter(|count| count.failure == Some(Failure::Stuck));
    stuck.map(|count| count.jobs).sum()
}

fn new_backup(customer: &Customer, request: &BackupRequest) -> Result<NewJob> {
    request.note.as_deref().map_or(Ok(()), require_note)?;
    Ok(NewJob {
        customer: customer.id,
        server: customer.server.clone(),
        job_type: JobType::Backup,
        backup_type: request.backup_type,
        snapshot: None,
        online: false,
        note: request.note.clone(),
    })
}

/// Of a job that was run here, and gave no report.
fn unexpected(job: JobId, ended: Ended) -> Error {
    match ended {
        Ended::Failed(error) | Ended::Unwritten(error) => error,
        Ended::Lost => Error::new(
            ErrorKind::Busy,
            format!("a worker has taken job {job} over: see `jobs`"),
        ),
        Ended::Found(snapshot) => Error::new(
            ErrorKind::Failed,
            format!(
                "the snapshot {snapshot} was written, although that seemed to fail: see `list`"
            ),
        ),
        Ended::Released | Ended::Backup(_) | Ended::Restore(_) => Error::new(
            ErrorKind::Failed,
            format!("the job {job} was given back: see `jobs`"),
        ),
    }
}
