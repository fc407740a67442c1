//! What a worker does beside its jobs: forget what customers deleted, bring the catalogue in step with the repositories, remove activity that
//! is too old or too much, and prune the repositories that are ours in a quiet hour.
//!
//! All of it can be broken off and repeated. Never: a failure here in the way of a job.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use jiff::{Timestamp, ToSpan, Zoned};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use super::{Stopping, delete};
use crate::audit::Audit;
use crate::catalog::{Catalog, Missing, Source, SyncReport};
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
        while *stopping.borrow_and_update() == Stopping::No {
            if let Err(error) = self.sync(Missing::Remember).await {
                tracing::warn!(
                    "the catalogue is not brought in step now: {}",
                    error.chain()
                );
            }
            self.forget_old_activity().await;
            self.prune_if_due().await;
            tokio::select! {
                () = self.delete_when_woken() => {}
                () = tokio::time::sleep(every.min(self.until_prune())) => {}
                () = self.requested.notified() => {}
                asked = stopping.changed() => if asked.is_err() { return },
            }
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
            if let Err(error) = delete::carry_out(&self.engine, &self.catalog, None).await {
                tracing::warn!("deleted backups are not forgotten now: {}", error.chain());
            }
        }
    }

    /// Bring the catalogue in step with all repositories, and forget what was deleted. The first failure is given, after all were tried.
    pub(crate) async fn sync(&self, missing: Missing) -> Result<Vec<(&'static str, SyncReport)>> {
        let manual = self.sync_manual(missing).await;
        let daily = self.sync_daily(missing).await;
        let mut reports = vec![("manual", manual?)];
        reports.extend(daily?.map(|report| ("daily", report)));
        Ok(reports)
    }

    async fn sync_manual(&self, missing: Missing) -> Result<SyncReport> {
        let engine = Arc::clone(&self.engine);
        let repository = blocking(move || engine.manual()).await?;
        self.note_use(Source::Manual, &repository).await?;
        let deleted = delete::carry_out(&self.engine, &self.catalog, None).await;
        let report = self.catalog.sync_manual(&repository, missing).await?;
        deleted.map(|()| report)
    }

    async fn sync_daily(&self, missing: Missing) -> Result<Option<SyncReport>> {
        let engine = Arc::clone(&self.engine);
        let Some(repository) = blocking(move || engine.daily()).await? else {
            return Ok(None);
        };
        self.note_use(Source::Daily, &repository).await?;
        // Also where the platform's own script forgets there: another server's daily backups may be ours, and its prune goes by the catalogue.
        let config = self.engine.config();
        self.catalog
            .sync_daily(&repository, config, missing)
            .await
            .map(Some)
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

    async fn note_use(&self, source: Source, repository: &Repository) -> Result<()> {
        let server = &self.engine.config().worker.server;
        self.catalog
            .note_use(server, source, &repository.id())
            .await
    }

    /// Remove what no snapshot needs from the repositories that are ours. Each is tried, whatever becomes of the others.
    pub(crate) async fn prune(&self) -> Vec<(Source, Result<PruneReport>)> {
        let mut reports = Vec::new();
        for source in self.ours() {
            let pruned = match self.repository(source).await {
                Ok(repository) => self.prune_one(&repository).await,
                Err(error) => Err(error),
            };
            reports.push((source, pruned));
        }
        reports
    }

    /// The repositories that nobody else prunes.
    fn ours(&self) -> Vec<Source> {
        let daily = self.engine.config().daily.as_ref();
        std::iter::once(Source::Manual)
            .chain(daily.map(|_| Source::Daily))
            .collect()
    }

    async fn repository(&self, source: Source) -> Result<Arc<Repository>> {
        let engine = Arc::clone(&self.engine);
        blocking(move || match source {
            Source::Manual | Source::PreRestore => engine.manual(),
            Source::Daily => engine.daily()?.ok_or_else(|| {
                Error::new(
                    ErrorKind::Configuration,
                    "there is no repository for daily backups: set repositories.daily",
                )
            }),
        })
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
        for source in self.ours() {
            if self.running.load(Ordering::Acquire) > 0 {
                return;
            }
            match self.try_prune(source, since).await {
                Ok(None) => {}
                Ok(Some(report)) => tracing::info!(
                    "the {source} repository is pruned: {} packs removed, {} bytes freed",
                    report.packs_removed,
                    report.bytes_before.saturating_sub(report.bytes_after)
                ),
                Err(error) if error.kind() == ErrorKind::Busy => {
                    tracing::info!(
                        "the {source} repository is not pruned now: {}",
                        error.chain()
                    );
                }
                Err(error) => {
                    tracing::error!("the {source} repository is not pruned: {}", error.chain());
                }
            }
        }
    }

    async fn try_prune(&self, source: Source, since: Timestamp) -> Result<Option<PruneReport>> {
        let repository = self.repository(source).await?;
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

    /// Whether a repository of ours waits to be pruned, in the quiet hour. What cannot be told is no reason to wait.
    pub(super) async fn is_prune_due(&self) -> bool {
        let Some(since) = self.prune_window() else {
            return false;
        };
        for source in self.ours() {
            let Ok(repository) = self.repository(source).await else {
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

/// What breaks off inside the program, until it comes to its end. Whoever drops this stops it.
pub(super) async fn begin_again<F: Future<Output = ()> + Send + 'static>(
    what: &str,
    pause: Duration,
    begin: impl Fn() -> F,
) {
    let mut task = JoinSet::new();
    task.spawn(begin());
    while let Some(Err(error)) = task.join_next().await {
        tracing::error!("{what} broke off inside the program and begins again: {error}");
        tokio::time::sleep(pause).await;
        task.spawn(begin());
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
