//! What a worker does beside its jobs: forget what customers deleted, bring the catalogue in step with the repositories, and prune in a quiet hour.
//!
//! All of it can be broken off and repeated. Never: a failure here in the way of a job.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use jiff::{Timestamp, ToSpan, Zoned};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use super::{Stopping, delete};
use crate::catalog::{Catalog, Missing, Source, SyncReport};
use crate::error::{Error, ErrorKind, Result};
use crate::operations::Engine;
use crate::repository::{PruneReport, Repository};

/// For how long after `worker.prune_at` a prune is tried.
const PRUNE_WINDOW_HOURS: i64 = 1;

/// How long a fault of the program keeps it from the next try.
const AFTER_FAULT: Duration = Duration::from_secs(60);

/// Looks after catalogue and repositories.
#[derive(Debug, Clone)]
pub(crate) struct Upkeep {
    pub(crate) engine: Arc<Engine>,
    pub(crate) catalog: Catalog,
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
        begin_again(AFTER_FAULT, || self.clone().run(stopping.clone())).await;
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
            self.prune_if_due().await;
            tokio::select! {
                () = self.delete_when_woken() => {}
                () = tokio::time::sleep(every.min(self.until_prune())) => {}
                () = self.requested.notified() => {}
                asked = stopping.changed() => if asked.is_err() { return },
            }
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
        let daily = self.sync_daily().await;
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

    /// What is missing there is of no interest to anybody: its own script forgets and prunes.
    async fn sync_daily(&self) -> Result<Option<SyncReport>> {
        let engine = Arc::clone(&self.engine);
        let Some(repository) = blocking(move || engine.daily()).await? else {
            return Ok(None);
        };
        self.note_use(Source::Daily, &repository).await?;
        let config = self.engine.config();
        self.catalog
            .sync_daily(&repository, config, Missing::Accept)
            .await
            .map(Some)
    }

    async fn note_use(&self, source: Source, repository: &Repository) -> Result<()> {
        let server = &self.engine.config().worker.server;
        self.catalog
            .note_use(server, source, &repository.id())
            .await
    }

    /// Remove what no snapshot needs from the manual repository.
    pub(crate) async fn prune(&self) -> Result<PruneReport> {
        let engine = Arc::clone(&self.engine);
        let repository = blocking(move || engine.manual()).await?;
        let id = repository.id();
        let pruned = match self.prune_knowing(&repository, &id).await {
            // Something may have been forgotten between the look at the catalogue and the one at the repository.
            Err(error) if error.kind() == ErrorKind::Damaged => {
                self.prune_knowing(&repository, &id).await
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
        if self.running.load(Ordering::Acquire) > 0 {
            return;
        }
        match self.try_prune(since).await {
            Ok(None) => {}
            Ok(Some(report)) => tracing::info!(
                "pruned: {} packs removed, {} bytes freed",
                report.packs_removed,
                report.bytes_before.saturating_sub(report.bytes_after)
            ),
            Err(error) if error.kind() == ErrorKind::Busy => {
                tracing::info!("not pruned now: {}", error.chain());
            }
            Err(error) => tracing::error!("the repository is not pruned: {}", error.chain()),
        }
    }

    async fn try_prune(&self, since: Timestamp) -> Result<Option<PruneReport>> {
        let engine = Arc::clone(&self.engine);
        let repository = blocking(move || engine.manual()).await?;
        let id = repository.id();
        if !self.catalog.claim_prune(&id, since).await? {
            return Ok(None);
        }
        let pruned = self.prune_after_the_dead().await;
        if pruned.is_err() {
            self.catalog.release_prune(&id).await?;
        }
        pruned.map(Some)
    }

    /// A process that was killed leaves its lock, and nobody is here at this hour to remove it.
    async fn prune_after_the_dead(&self) -> Result<PruneReport> {
        let engine = Arc::clone(&self.engine);
        for lock in blocking(move || engine.manual()?.unlock()).await? {
            tracing::warn!("a lock of a dead process is removed: {lock}");
        }
        self.prune().await
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

    fn until_prune(&self) -> Duration {
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
async fn begin_again<F: Future<Output = ()> + Send + 'static>(
    pause: Duration,
    begin: impl Fn() -> F,
) {
    let mut task = JoinSet::new();
    task.spawn(begin());
    while let Some(Err(error)) = task.join_next().await {
        tracing::error!("the upkeep broke off inside the program and begins again: {error}");
        tokio::time::sleep(pause).await;
        task.spawn(begin());
    }
}

async fn blocking<T: Send + 'static>(
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
        begin_again(Duration::ZERO, || {
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
