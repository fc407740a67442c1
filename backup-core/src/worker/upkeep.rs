//! What a worker does beside its jobs: forget what customers deleted, bring the catalogue in step with the repositories, remove activity that
//! is too old or too much, and prune the repositories that are ours in a quiet hour.
//!
//! All of it can be broken off and repeated. Never: a failure here in the way of a job.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use jiff::{Timestamp, ToSpan, Zoned};
use tokio::sync::{Notify, watch};

use super::repositories::{Away, Repositories};
use super::{Stopping, delete};
use crate::audit::Audit;
use crate::catalog::{Catalog, Missing, RepositoryName, Source, SyncReport};
use crate::customer::CustomerId;
use crate::error::{Error, ErrorKind, Result};
use crate::jobs::JobStore;
use crate::operations::{DailyReport, Engine};
use crate::repository::{PruneReport, Repository};

/// For how long after `worker.prune_at` a prune is tried.
const PRUNE_WINDOW_HOURS: i64 = 1;

/// How long a fault of the program keeps it from the next try.
pub(super) const AFTER_FAULT: Duration = Duration::from_secs(60);

/// Looks after catalogue and repositories.
#[derive(Debug, Clone)]
pub(crate) struct Upkeep {
    pub(crate) engine: Arc<Engine>,
    pub(crate) catalog: Catalog,
    pub(crate) jobs: JobStore,
    pub(crate) audit: Audit,
    /// Told when a job has ended.
    pub(crate) requested: Arc<Notify>,
    /// Told when a customer may have deleted something.
    pub(crate) woken: Arc<Notify>,
    /// How many jobs run: a prune would have to wait for them, and they for it.
    pub(crate) running: Arc<AtomicUsize>,
    /// The customers' own repositories that could not be pruned, and when the quiet hour began in which that was last tried.
    pub(crate) not_pruned: Arc<Mutex<BTreeMap<RepositoryName, Timestamp>>>,
    pub(crate) repositories: Repositories,
}

impl Upkeep {
    /// Until the worker is asked to end.
    pub(super) async fn keep_running(self, stopping: watch::Receiver<Stopping>) {
        begin_again("the upkeep", AFTER_FAULT, || {
            self.clone().run(stopping.clone())
        })
        .await;
    }

    async fn run(self, mut stopping: watch::Receiver<Stopping>) {
        let every = self.engine.config().worker.sync_every;
        let mut is_sync_due = true;
        let mut synced = Instant::now();
        while *stopping.borrow_and_update() == Stopping::No {
            if is_sync_due {
                self.sync_all().await;
                synced = Instant::now();
            } else {
                self.delete().await;
            }
            self.forget_old_activity().await;
            self.prune_if_due().await;
            let until_sync = every.saturating_sub(synced.elapsed());
            is_sync_due = tokio::select! {
                () = self.delete_when_woken() => true,
                () = tokio::time::sleep(until_sync.min(self.until_prune())) => true,
                // Of many repositories a job that has ended concerns but one, and has left it in step.
                () = self.requested.notified() => {
                    !self.engine.each_has_own() || synced.elapsed() >= every
                }
                asked = stopping.changed() => match asked {
                    Ok(()) => true,
                    Err(_) => return,
                },
            };
        }
    }

    async fn sync_all(&self) {
        match self.sync(Missing::Remember, None, None).await {
            Ok(reports) => {
                for failure in reports.iter().flat_map(|(_, report)| &report.failures) {
                    tracing::error!("{failure}");
                }
            }
            Err(error) => tracing::warn!(
                "the catalogue is not brought in step now: {}",
                error.chain()
            ),
        }
    }

    async fn forget_old_activity(&self) {
        let keep = self.engine.config().server.audit_keep;
        if let Err(error) = self.audit.forget(keep).await {
            tracing::warn!("old activity is not removed now: {}", error.chain());
        }
    }

    /// Does not end by itself. What fails is tried again by the next sync.
    async fn delete_when_woken(&self) {
        loop {
            self.woken.notified().await;
            self.delete().await;
        }
    }

    async fn delete(&self) {
        if let Err(error) = delete::carry_out(&self.engine, &self.catalog, None).await {
            tracing::warn!("deleted backups are not forgotten now: {}", error.chain());
        }
    }

    /// Bring the catalogue in step with all repositories, and forget what was deleted. The first failure is given, after all were tried; that of a
    /// single customer's repository is in the report. Of those only the one of `customer` is looked at, if he is given, and with a `source` no repository but
    /// where its backups are.
    pub(crate) async fn sync(
        &self,
        missing: Missing,
        customer: Option<CustomerId>,
        source: Option<Source>,
    ) -> Result<Vec<(&'static str, SyncReport)>> {
        let manual = async {
            match source {
                Some(Source::Daily) => Ok(None),
                _ => self.sync_manuals(missing, customer).await.map(Some),
            }
        };
        let daily = async {
            match source {
                Some(Source::Manual | Source::PreRestore) => Ok(None),
                _ => self.open_daily().await,
            }
        };
        // Opened beside the other, for that takes a processor a good part of a second; but synced after it.
        let (manual, daily) = tokio::join!(manual, daily);
        let daily = match daily {
            Ok(Some(repository)) => self.sync_daily_in(&repository, missing).await.map(Some),
            Ok(None) => Ok(None),
            Err(error) => Err(error),
        };
        let manual = manual?.map(|report| ("manual", report));
        let daily = daily?.map(|report| ("daily", report));
        Ok(manual.into_iter().chain(daily).collect())
    }

    async fn sync_manuals(
        &self,
        missing: Missing,
        customer: Option<CustomerId>,
    ) -> Result<SyncReport> {
        match (self.engine.each_has_own(), customer) {
            (false, _) => self.sync_manual(missing).await,
            (true, None) => self.sync_each(missing).await,
            (true, Some(customer)) => {
                let mut report = SyncReport::default();
                self.sync_own(customer, missing, &mut report).await?;
                Ok(report)
            }
        }
    }

    async fn sync_manual(&self, missing: Missing) -> Result<SyncReport> {
        let engine = Arc::clone(&self.engine);
        let repository = blocking(move || engine.manual()).await?;
        self.note_use(RepositoryName::Manual, &repository).await?;
        let deleted = delete::carry_out(&self.engine, &self.catalog, None).await;
        let report = self.catalog.sync_manual(&repository, missing).await?;
        deleted.map(|()| report)
    }

    /// The repositories of all customers, one after the other; together they make one report.
    async fn sync_each(&self, missing: Missing) -> Result<SyncReport> {
        let names = self.repositories.of_customers().await?;
        let mut report = SyncReport::default();
        let mut away = Away::default();
        for name in &names {
            let Some(customer) = name.customer() else {
                continue;
            };
            let synced = self.sync_own(customer, missing, &mut report).await;
            away.note(*name, &synced);
            match synced {
                Ok(()) => {}
                Err(error) if away.concerns(*name) => return Err(error),
                Err(error) => report.failures.push(not_looked_at(*name, &error)),
            }
        }
        self.repositories.forget_all_but(&names).await?;
        self.delete_of_who_moved(&names, &mut report).await?;
        Ok(report)
    }

    /// What was deleted of customers who are not among these any more and whose repositories are still looked after here.
    async fn delete_of_who_moved(
        &self,
        names: &[RepositoryName],
        report: &mut SyncReport,
    ) -> Result<()> {
        let server = &self.engine.config().worker.server;
        for customer in self.catalog.with_deletions(server).await? {
            let name = RepositoryName::ManualOf(customer);
            if names.contains(&name) {
                continue;
            }
            let deleted = delete::carry_out(&self.engine, &self.catalog, Some(customer)).await;
            if let Err(error) = deleted {
                report.failures.push(not_looked_at(name, &error));
            }
        }
        Ok(())
    }

    /// What is wrong with a customer's repository goes into the report, unless it cannot be reached: that may be so of the others as well.
    async fn sync_own(
        &self,
        customer: CustomerId,
        missing: Missing,
        report: &mut SyncReport,
    ) -> Result<()> {
        match self.try_sync_own(customer, missing).await {
            Ok(None) => {}
            Ok(Some(one)) => {
                report.added += one.added;
                report.removed += one.removed;
                report.missing += one.missing;
                let of_whom = |warning: String| format!("customer {customer}: {warning}");
                report
                    .warnings
                    .extend(one.warnings.into_iter().map(of_whom));
            }
            Err(error) if error.kind() == ErrorKind::Unreachable => return Err(error),
            Err(error) => {
                let name = RepositoryName::ManualOf(customer);
                report.failures.push(not_looked_at(name, &error));
            }
        }
        Ok(())
    }

    /// None where he has no repository yet.
    async fn try_sync_own(
        &self,
        customer: CustomerId,
        missing: Missing,
    ) -> Result<Option<SyncReport>> {
        let name = RepositoryName::ManualOf(customer);
        let Some(repository) = self.repositories.open(name).await? else {
            return Ok(None);
        };
        self.note_use(name, &repository).await?;
        let deleted = delete::carry_out(&self.engine, &self.catalog, Some(customer)).await;
        let synced = self.catalog.sync_manual_of(&repository, customer, missing);
        let report = synced.await?;
        deleted.map(|()| Some(report))
    }

    async fn sync_daily(&self, missing: Missing) -> Result<Option<SyncReport>> {
        match self.open_daily().await? {
            Some(repository) => self.sync_daily_in(&repository, missing).await.map(Some),
            None => Ok(None),
        }
    }

    async fn open_daily(&self) -> Result<Option<Arc<Repository>>> {
        let engine = Arc::clone(&self.engine);
        blocking(move || engine.daily()).await
    }

    async fn sync_daily_in(
        &self,
        repository: &Arc<Repository>,
        missing: Missing,
    ) -> Result<SyncReport> {
        self.note_use(RepositoryName::Daily, repository).await?;
        // Also where the platform's own script forgets there: another server's daily backups may be ours, and its prune goes by the catalogue.
        let config = self.engine.config();
        self.catalog.sync_daily(repository, config, missing).await
    }

    /// What follows a daily backup of these customers: they see it, and the oldest ones are forgotten. It was made, whatever fails here: that is a warning.
    pub(crate) async fn after_daily(
        &self,
        customers: &BTreeSet<CustomerId>,
        report: &mut DailyReport,
    ) {
        match self.sync_daily(Missing::Remember).await {
            // Nothing older goes as long as it is not certain that the new one is seen, and seen to be whole.
            Err(error) => {
                report.warnings.push(format!(
                    "the new backup is not in the catalogue yet, the next sync takes it in, and no old one is forgotten: {}",
                    error.chain()
                ));
                return;
            }
            Ok(Some(synced)) if !synced.warnings.is_empty() => {
                report.warnings.extend(synced.warnings);
                return;
            }
            Ok(_) => {}
        }
        for (customer, tables) in std::mem::take(&mut report.tables) {
            let noted = self
                .catalog
                .note_tables(customer, Source::Daily, &report.snapshot_id, &tables)
                .await;
            if let Err(error) = noted {
                tracing::warn!(
                    "which tables the database of customer {customer} had is not written down: {}",
                    error.chain()
                );
            }
        }
        if let Err(error) = self.forget_old_daily(customers, report).await {
            report.warnings.push(format!(
                "old daily backups are not all forgotten yet, the next run does it: {}",
                error.chain()
            ));
        }
    }

    /// Of whom nothing could be saved for longer than backups are kept, the last that there is stays.
    async fn forget_old_daily(
        &self,
        customers: &BTreeSet<CustomerId>,
        report: &mut DailyReport,
    ) -> Result<()> {
        let made = report.snapshot_id;
        let engine = Arc::clone(&self.engine);
        let mut old = blocking(move || engine.beyond_daily_retention(made)).await?;
        if old.is_empty() {
            return Ok(());
        }
        let engine = Arc::clone(&self.engine);
        let newest_first = blocking(move || engine.daily_snapshots()).await?;
        let last = self.catalog.last_of_each_part(&newest_first, customers);
        let (last, wanted) = (last.await?, self.jobs.snapshots_to_restore().await?);
        old.retain(|id| !last.contains(id) && !wanted.contains(id));
        for id in old {
            let engine = Arc::clone(&self.engine);
            let repository_id = blocking(move || engine.forget_daily(&id)).await?;
            self.catalog.remove(&repository_id, &[id]).await?;
            report.forgotten.push(id);
        }
        Ok(())
    }

    async fn note_use(&self, name: RepositoryName, repository: &Repository) -> Result<()> {
        let server = &self.engine.config().worker.server;
        self.catalog.note_use(server, name, &repository.id()).await
    }

    /// Remove what no snapshot needs from the repositories that are ours. Each is tried, whatever becomes of the others.
    pub(crate) async fn prune(&self) -> Vec<(RepositoryName, Result<PruneReport>)> {
        let names = match self.ours().await {
            Ok(names) => names,
            Err(error) => return vec![(RepositoryName::Manual, Err(error))],
        };
        let mut reports = Vec::new();
        let mut away = Away::default();
        for name in names {
            if away.concerns(name) {
                continue;
            }
            let pruned = match self.repositories.open(name).await {
                Ok(Some(repository)) => self.prune_one(&repository).await,
                Ok(None) => continue,
                Err(error) => Err(error),
            };
            away.note(name, &pruned);
            reports.push((name, pruned));
        }
        reports
    }

    /// The repositories that nobody else prunes.
    async fn ours(&self) -> Result<Vec<RepositoryName>> {
        let mut all = self.repositories.all().await?;
        let is_daily_ours = self.engine.config().daily.is_some();
        all.retain(|name| *name != RepositoryName::Daily || is_daily_ours);
        Ok(all)
    }

    /// Those of them that were not pruned since a moment, as far as can be told without opening them.
    async fn due(&self, since: Timestamp) -> Result<Vec<RepositoryName>> {
        let ours = self.ours().await?;
        self.repositories
            .due(ours, since, |one| one.pruned_at)
            .await
    }

    async fn prune_one(&self, repository: &Arc<Repository>) -> Result<PruneReport> {
        let id = repository.id();
        let pruned = match self.prune_knowing(repository, &id).await {
            // Something may have been forgotten between the look at the catalogue and the one at the repository.
            Err(error) if error.kind() == ErrorKind::Damaged => {
                self.prune_knowing(repository, &id).await
            }
            other => other,
        };
        let report = pruned?;
        self.catalog.note_pruned(&id).await?;
        Ok(report)
    }

    async fn prune_knowing(&self, repository: &Arc<Repository>, id: &str) -> Result<PruneReport> {
        let needed = self.catalog.needed(id).await?;
        let repository = Arc::clone(repository);
        blocking(move || repository.prune(&needed)).await
    }

    async fn prune_if_due(&self) {
        let Some(since) = self.prune_window() else {
            return;
        };
        let due = match self.due(since).await {
            Ok(due) => due,
            Err(error) => {
                tracing::error!("no repository is pruned: {}", error.chain());
                return;
            }
        };
        let mut away = Away::default();
        for (number, name) in due.into_iter().enumerate() {
            // Of many the last would be pruned long after the hour.
            if number > 0 && self.prune_window() != Some(since) {
                return;
            }
            if away.concerns(name) {
                continue;
            }
            if self.running.load(Ordering::Acquire) > 0 {
                return;
            }
            let pruned = self.try_prune(name, since).await;
            away.note(name, &pruned);
            if pruned.is_err() && name.customer().is_some() {
                self.not_pruned().insert(name, since);
            }
            match pruned {
                Ok(None) => {}
                Ok(Some(report)) => tracing::info!(
                    "the {name} is pruned: {} packs removed, {} bytes freed",
                    report.packs_removed,
                    report.bytes_before.saturating_sub(report.bytes_after)
                ),
                Err(error) if error.kind() == ErrorKind::Busy => {
                    tracing::info!("the {name} is not pruned now: {}", error.chain());
                }
                Err(error) => tracing::error!("the {name} is not pruned: {}", error.chain()),
            }
        }
    }

    async fn try_prune(
        &self,
        name: RepositoryName,
        since: Timestamp,
    ) -> Result<Option<PruneReport>> {
        let Some(repository) = self.repositories.open(name).await? else {
            return Ok(None);
        };
        let id = repository.id();
        if !self.catalog.claim_prune(&id, since).await? {
            return Ok(None);
        }
        let pruned = self.prune_after_the_dead(&repository).await;
        if pruned.is_err() {
            self.catalog.release_prune(&id).await?;
        }
        pruned.map(Some)
    }

    /// A process that was killed leaves its lock, and nobody is here at this hour to remove it.
    async fn prune_after_the_dead(&self, repository: &Arc<Repository>) -> Result<PruneReport> {
        let locked = Arc::clone(repository);
        for lock in blocking(move || locked.unlock()).await? {
            tracing::warn!("a lock of a dead process is removed: {lock}");
        }
        self.prune_one(repository).await
    }

    fn not_pruned(&self) -> MutexGuard<'_, BTreeMap<RepositoryName, Timestamp>> {
        self.not_pruned
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a repository of ours waits to be pruned, in the quiet hour. What cannot be told is no reason to wait, nor is a customer's own that could
    /// not be pruned in this hour: others' proofs are not in its way.
    pub(super) async fn is_prune_due(&self) -> bool {
        let Some(since) = self.prune_window() else {
            return false;
        };
        let mut away = Away::default();
        for name in self.due(since).await.unwrap_or_default() {
            let has_failed = self.not_pruned().get(&name) == Some(&since);
            if has_failed || away.concerns(name) {
                continue;
            }
            let opened = self.repositories.open(name).await;
            away.note(name, &opened);
            let Ok(Some(repository)) = opened else {
                continue;
            };
            let is_pruned = self.catalog.is_pruned_since(&repository.id(), since).await;
            if is_pruned.is_ok_and(|is_pruned| !is_pruned) {
                return true;
            }
        }
        false
    }

    /// When today's quiet hour began, if it is now.
    fn prune_window(&self) -> Option<Timestamp> {
        let at = self.engine.config().worker.prune_at?;
        let now = Zoned::now();
        // The hour may begin before midnight and end after it.
        [now.date(), now.date().yesterday().ok()?]
            .into_iter()
            .filter_map(|day| day.to_datetime(at).to_zoned(now.time_zone().clone()).ok())
            .find(|begin| {
                *begin <= now
                    && begin
                        .checked_add(PRUNE_WINDOW_HOURS.hours())
                        .is_ok_and(|end| now < end)
            })
            .map(|begin| begin.timestamp())
    }

    /// How long it is until the next quiet hour begins.
    pub(super) fn until_prune(&self) -> Duration {
        let Some(at) = self.engine.config().worker.prune_at else {
            return Duration::MAX;
        };
        let now = Zoned::now();
        let begin = |day: jiff::civil::Date| {
            day.to_datetime(at)
                .to_zoned(now.time_zone().clone())
                .ok()
                .filter(|begin| *begin > now)
        };
        begin(now.date())
            .or_else(|| begin(now.date().tomorrow().ok()?))
            .and_then(|begin| Duration::try_from(now.duration_until(&begin)).ok())
            .unwrap_or(Duration::MAX)
    }
}

fn not_looked_at(name: RepositoryName, error: &Error) -> String {
    format!("the {name} is not looked at: {}", error.chain())
}

/// What breaks off inside the program, until it comes to its end. Whoever drops this stops it: it runs on no task of its own, which would go on for a
/// while.
pub(super) async fn begin_again<F: Future<Output = ()>>(
    what: &str,
    pause: Duration,
    begin: impl Fn() -> F,
) {
    while let Err(fault) = AssertUnwindSafe(begin()).catch_unwind().await {
        let said = (fault.downcast_ref::<String>().map(String::as_str))
            .or_else(|| fault.downcast_ref::<&str>().copied())
            .unwrap_or("it says nothing more");
        tracing::error!("{what} broke off inside the program and begins again: {said}");
        tokio::time::sleep(pause).await;
    }
}

pub(super) async fn blocking<T: Send + 'static>(
    act: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(act).await.unwrap_or_else(|e| {
        Err(Error::caused(
            ErrorKind::Failed,
            "it broke off inside the program",
            e,
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_breaks_off_begins_again_until_it_is_done() {
        let tries = Arc::new(AtomicUsize::new(0));
        begin_again("the upkeep", Duration::ZERO, || {
            let tries = Arc::clone(&tries);
            async move {
                let number = tries.fetch_add(1, Ordering::AcqRel);
                assert!(number >= 2, "a fault of the program");
            }
        })
        .await;
        assert_eq!(tries.load(Ordering::Acquire), 3);
    }
}
