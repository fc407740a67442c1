//! Proving that backups can be restored: of each customer of this server, from each source, the newest that holds his files and the newest that holds his database,
//! mostly one and the same; one after the other, those that were tried the longest time ago first; by a command, or by a worker in its quiet hours, which also reads some packs of the repositories then.
//!
//! It has no job and takes nobody's turn: a backup or restore of the same customer goes on beside it, and all that it holds is a shared lock of the repository. Never: a
//! failure that is in the way of the next customer; a try that is written down although somebody stopped it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::{Timestamp, Zoned};
use serde::Serialize;
use tokio::sync::watch;
use tokio::task::spawn_blocking;

use super::repositories::{Away, Repositories};
use super::upkeep::{AFTER_FAULT, Upkeep, begin_again, blocking};
use super::{Stopping, tell_to_stop};
use crate::catalog::{Catalog, Proof, RepositoryName, Source, Tried};
use crate::customer::{Customer, CustomerId, CustomerStore};
use crate::error::{Error, ErrorKind, Result};
use crate::operations::{Engine, Expected, Proven};
use crate::progress::{Cancel, Control};
use crate::repository::SnapshotId;
use crate::site::Scratch;

/// How often a worker that has nothing to prove looks again.
const PAUSE: Duration = Duration::from_secs(60);

/// So long packs are read at once: half of the time in which others try to prune, who may have their hour at another time.
const SAMPLE_LIMIT: Duration = Duration::from_secs(30 * 60);

/// What was tried, and what came of it.
#[derive(Debug, Clone, Default, Serialize)]
#[non_exhaustive]
pub struct VerifyReport {
    /// Backups that were restored and are as they were saved.
    pub proven: Vec<Verified>,
    /// Backups that were not.
    pub failed: Vec<NotVerified>,
    /// What somebody should know.
    pub warnings: Vec<String>,
}

/// A backup that was proven.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Verified {
    /// Whose it is.
    pub customer: CustomerId,
    /// Where it is from.
    pub source: Source,
    /// Which it is.
    pub snapshot_id: SnapshotId,
    /// What was restored.
    #[serde(flatten)]
    pub restored: Proven,
}

/// A backup that was not proven.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct NotVerified {
    /// Whose it is.
    pub customer: CustomerId,
    /// Where it is from; None where it did not come to that.
    pub source: Option<Source>,
    /// Which it is; None where it did not come to that.
    pub snapshot_id: Option<SnapshotId>,
    /// Why.
    pub error: String,
}

/// Proves backups.
#[derive(Debug, Clone)]
pub(crate) struct Verification {
    pub(crate) engine: Arc<Engine>,
    pub(crate) catalog: Catalog,
    pub(crate) customers: CustomerStore,
    pub(crate) repositories: Repositories,
}

/// Some of a customer's backups.
#[derive(Debug, Clone)]
struct Target {
    customer: Customer,
    source: Source,
}

/// The place, held, and whose schemas are not to be taken for ours.
struct Held {
    scratch: Arc<Scratch>,
    of_customers: Arc<BTreeSet<String>>,
}

impl Verification {
    /// The newest backups of these customers, or of all of this server.
    pub(crate) async fn run(
        &self,
        wanted: &[CustomerId],
        control: &Control,
    ) -> Result<VerifyReport> {
        let mut report = VerifyReport::default();
        let members = self.members(wanted, &mut report).await?;
        let (held, warnings) = self.hold().await?;
        report.warnings.extend(warnings);
        let mut away: BTreeMap<Source, String> = BTreeMap::new();
        let mut own = Away::default();
        for target in in_turn(self.targets(members), &self.catalog.proofs().await?) {
            let expected = match self.newest(&target).await {
                Ok(expected) => expected,
                // His row makes no sense: in nobody else's way.
                Err(error) if error.kind() == ErrorKind::Damaged => {
                    report.failed.push(NotVerified {
                        customer: target.customer.id,
                        source: Some(target.source),
                        snapshot_id: None,
                        error: error.chain(),
                    });
                    continue;
                }
                Err(error) => return Err(error),
            };
            if expected.is_empty() {
                continue;
            }
            let mut why = away.get(&target.source).cloned();
            if why.is_none()
                && let Err(error) = self.open(&target, &mut own).await
            {
                control.cancel.check()?;
                if self.concerns_all(&target, &own) {
                    away.insert(target.source, error.chain());
                }
                why = Some(error.chain());
            }
            if let Some(why) = why {
                for one in &expected {
                    report.note_failure(&target, one.entry.id, why.clone());
                }
                continue;
            }
            for (id, outcome) in self.prove(&held, &target, expected, None, control).await? {
                match outcome {
                    Ok(restored) => report.proven.push(Verified {
                        customer: target.customer.id,
                        source: target.source,
                        snapshot_id: id,
                        restored,
                    }),
                    Err(error) => report.note_failure(&target, id, error.chain()),
                }
            }
        }
        report.note_those_without(wanted);
        Ok(report)
    }

    /// Open the repository of a target, if it is not open yet. That it is away is found out once, not anew with each customer; it is no result of his.
    async fn open(&self, target: &Target, own: &mut Away) -> Result<()> {
        let engine = Arc::clone(&self.engine);
        let (customer, source) = (target.customer.id, target.source);
        let opened = blocking(move || match source {
            Source::Manual | Source::PreRestore => engine.manual_of(customer).map(drop),
            Source::Daily => engine.daily().map(drop),
        });
        let opened = opened.await;
        let name = self.repository_of(target);
        own.note(name, &opened);
        match opened {
            // What else is wrong with a repository of his own is a result of his.
            Err(error) if name.customer().is_some() && error.kind() != ErrorKind::Unreachable => {
                Ok(())
            }
            opened => opened,
        }
    }

    /// Whether the repository of a target that could not be opened is that of others as well, or the server that theirs are on is away.
    fn concerns_all(&self, target: &Target, own: &Away) -> bool {
        let name = self.repository_of(target);
        name.customer().is_none() || own.concerns(name)
    }

    fn repository_of(&self, target: &Target) -> RepositoryName {
        match target.source {
            Source::Manual | Source::PreRestore => self.engine.name_of_manual(target.customer.id),
            Source::Daily => RepositoryName::Daily,
        }
    }

    /// The sources whose newest backups are proven.
    fn sources(&self) -> Vec<Source> {
        let daily = self.engine.config().repositories.daily.as_ref();
        std::iter::once(Source::Manual)
            .chain(daily.map(|_| Source::Daily))
            .collect()
    }

    fn targets(&self, customers: Vec<Customer>) -> Vec<Target> {
        let sources = self.sources();
        let of_customer = |customer: Customer| -> Vec<Target> {
            let target = |source: &Source| Target {
                customer: customer.clone(),
                source: *source,
            };
            sources.iter().map(target).collect()
        };
        customers.into_iter().flat_map(of_customer).collect()
    }

    async fn members(
        &self,
        wanted: &[CustomerId],
        report: &mut VerifyReport,
    ) -> Result<Vec<Customer>> {
        let here = &self.engine.config().worker.server;
        let all = self.customers.of_server(here).await?;
        for id in wanted {
            if !all.iter().any(|(member, _)| member == id) {
                // Whether there is such a customer at all.
                let customer = self.customers.get(*id).await?;
                return Err(Error::new(
                    ErrorKind::InvalidInput,
                    format!(
                        "customer {id} is on the server {}, and this is {here} (worker.server): run it there",
                        customer.server
                    ),
                ));
            }
        }
        let mut members = Vec::new();
        for (id, customer) in all {
            if !wanted.is_empty() && !wanted.contains(&id) {
                continue;
            }
            match customer {
                Ok(customer) => members.push(customer),
                Err(error) => report.failed.push(NotVerified {
                    customer: id,
                    source: None,
                    snapshot_id: None,
                    error: error.chain(),
                }),
            }
        }
        Ok(members)
    }

    /// Take hold of the place, and remove what processes left there that died; what could not be removed is told.
    async fn hold(&self) -> Result<(Held, Vec<String>)> {
        let engine = Arc::clone(&self.engine);
        let scratch = Arc::new(blocking(move || engine.hold_scratch()).await?);
        let names = self.customers.database_names().await?;
        let of_customers: BTreeSet<String> = names
            .into_iter()
            .map(|(_, name, _)| name.to_string())
            .collect();
        let held = Held {
            scratch,
            of_customers: Arc::new(of_customers),
        };
        let warnings = self.remove_leftovers(&held).await?;
        Ok((held, warnings))
    }

    async fn remove_leftovers(&self, held: &Held) -> Result<Vec<String>> {
        let scratch = Arc::clone(&held.scratch);
        let mut warnings = Vec::new();
        for room in blocking(move || scratch.leftovers()).await? {
            let name = room.name.clone();
            let customer = match self.customers.get(room.customer).await {
                // He is gone, or his row makes no sense; what was made for him is there all the same.
                Err(error)
                    if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Configuration) =>
                {
                    self.engine.former_customer(room.customer)
                }
                customer => customer,
            };
            let removed = match customer {
                Ok(customer) => {
                    let (engine, scratch) = (Arc::clone(&self.engine), Arc::clone(&held.scratch));
                    let of_customers = Arc::clone(&held.of_customers);
                    blocking(move || engine.remove_room(&scratch, &room, &customer, &of_customers))
                        .await
                }
                Err(error) => {
                    // Whoever he is, it takes no room any more.
                    let scratch = Arc::clone(&held.scratch);
                    blocking(move || scratch.empty(&room)).await.and(Err(error))
                }
            };
            match removed {
                Ok(()) => tracing::info!("what an interrupted proof left is removed: {name}"),
                Err(error) => warnings.push(format!(
                    "what an interrupted proof left ({name}) is not removed yet: {}",
                    error.chain()
                )),
            }
        }
        Ok(warnings)
    }

    /// What is to be proven of them: nothing, one backup, or two of which each holds what the other may lack.
    async fn newest(&self, target: &Target) -> Result<Vec<Expected>> {
        let (customer, source) = (target.customer.id, target.source);
        let mut expected = Vec::new();
        for entry in self.catalog.newest_of_each_part(customer, source).await? {
            let tables = self
                .catalog
                .recorded_tables(customer, source, &entry.id)
                .await?;
            expected.push(Expected {
                customer: target.customer.clone(),
                source,
                entry,
                tables,
            });
        }
        Ok(expected)
    }

    /// Prove these backups of a target and write down what came of them. One that was forgotten meanwhile is left out; an error where somebody stopped it, or it could
    /// not be written down. Where there is upkeep, no further one is begun once a prune is due; what is left then is no result.
    async fn prove(
        &self,
        held: &Held,
        target: &Target,
        backups: Vec<Expected>,
        upkeep: Option<&Upkeep>,
        control: &Control,
    ) -> Result<Vec<(SnapshotId, Result<Proven>)>> {
        let (customer, source) = (target.customer.id, target.source);
        let mut outcomes = Vec::new();
        let mut tries = Vec::new();
        for (nth, expected) in backups.into_iter().enumerate() {
            control.cancel.check()?;
            let id = expected.entry.id;
            if let Some(upkeep) = upkeep
                && nth > 0
                && upkeep.is_prune_due().await
            {
                tries.push((id, None));
                break;
            }
            let outcome = self.prove_in_time(held, expected, control).await;
            let tried = match &outcome {
                Ok(_) => Some(Tried::Proven),
                Err(error) => match error.kind() {
                    ErrorKind::Cancelled => return outcome.map(|_| Vec::new()),
                    // Somebody prunes: that says nothing of the backup.
                    ErrorKind::Busy => None,
                    ErrorKind::NotFound
                        if self.catalog.find(customer, source, &id).await?.is_none() =>
                    {
                        continue;
                    }
                    ErrorKind::NotFound | ErrorKind::Damaged => {
                        Some(Tried::Disproved(error.chain()))
                    }
                    _ => Some(Tried::Failed(error.chain())),
                },
            };
            if let Some(tried) = &tried {
                self.catalog
                    .note_tried(customer, source, &id, tried)
                    .await?;
            }
            tries.push((id, tried));
            outcomes.push((id, outcome));
        }
        if let Some((id, tried)) = together(tries) {
            self.catalog
                .note_proof(customer, source, &id, &tried)
                .await?;
        }
        Ok(outcomes)
    }

    async fn prove_in_time(
        &self,
        held: &Held,
        expected: Expected,
        control: &Control,
    ) -> Result<Proven> {
        let limit = self.engine.config().verify.timeout;
        let control = Control {
            cancel: control.cancel.child(),
            ..control.clone()
        };
        let cancel = control.cancel.clone();
        let (engine, scratch) = (Arc::clone(&self.engine), Arc::clone(&held.scratch));
        let of_customers = Arc::clone(&held.of_customers);
        let mut proof =
            spawn_blocking(move || engine.prove(&scratch, &expected, &of_customers, &control));
        let mut is_late = false;
        let ended = tokio::select! {
            ended = &mut proof => ended,
            () = tokio::time::sleep(limit) => {
                is_late = true;
                cancel.cancel();
                proof.await
            }
        };
        let proven = ended.unwrap_or_else(|e| {
            Err(Error::caused(
                ErrorKind::Failed,
                "the proof broke off inside the program",
                e,
            ))
        });
        match proven {
            Err(error) if is_late && error.kind() == ErrorKind::Cancelled => Err(Error::new(
                ErrorKind::Timeout,
                format!("it took longer than {} s (verify.timeout)", limit.as_secs()),
            )),
            other => other,
        }
    }

    /// In the quiet hours of a worker, until it is asked to end.
    pub(super) async fn keep_running(self, upkeep: Upkeep, stopping: watch::Receiver<Stopping>) {
        if self.engine.config().verify.hours.is_none() {
            return;
        }
        begin_again("the proving of backups", AFTER_FAULT, || {
            self.clone().work(upkeep.clone(), stopping.clone())
        })
        .await;
    }

    async fn work(self, upkeep: Upkeep, mut stopping: watch::Receiver<Stopping>) {
        let stop = Cancel::new();
        let _telling = tell_to_stop(&stop, stopping.clone());
        let mut own = Away::default();
        while *stopping.borrow_and_update() == Stopping::No {
            let has_worked = match self.take_turn(&upkeep, &mut own, &stop).await {
                Ok(has_worked) => has_worked,
                Err(error) if error.kind() == ErrorKind::Cancelled => return,
                Err(error) if error.kind() == ErrorKind::Busy => {
                    tracing::debug!("no backup is proven now: {}", error.chain());
                    false
                }
                Err(error) => {
                    tracing::error!("no backup is proven now: {}", error.chain());
                    false
                }
            };
            let pause = match has_worked {
                true => Duration::ZERO,
                false => PAUSE,
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                asked = stopping.changed() => if asked.is_err() { return },
            }
        }
    }

    /// One sample, or one proof, if one is due; whether there was anything to do.
    async fn take_turn(&self, upkeep: &Upkeep, own: &mut Away, stop: &Cancel) -> Result<bool> {
        let config = &self.engine.config().verify;
        let Some(since) = config.hours.and_then(|hours| hours.current(&Zoned::now())) else {
            return Ok(false);
        };
        if upkeep.is_prune_due().await {
            // It needs the repository for itself.
            upkeep.requested.notify_one();
            return Ok(false);
        }
        let limit = SAMPLE_LIMIT.min(upkeep.until_prune());
        match self.sample_one(since, limit, stop).await {
            Ok(true) => return Ok(true),
            Ok(false) => {}
            Err(error) if error.kind() == ErrorKind::Cancelled => return Err(error),
            Err(error) => tracing::error!("no packs are read now: {}", error.chain()),
        }
        let mut unusable = VerifyReport::default();
        let members = self.members(&[], &mut unusable).await?;
        let proofs = self.catalog.proofs().await?;
        let is_due = |target: &Target| is_due(target, &proofs, config.every, since);
        let due: Vec<Target> = in_turn(self.targets(members), &proofs)
            .into_iter()
            .filter(is_due)
            .collect();
        let mut away: BTreeSet<Source> = BTreeSet::new();
        for target in due {
            if away.contains(&target.source) {
                continue;
            }
            let expected = match self.newest(&target).await {
                Ok(expected) => expected,
                Err(error) if error.kind() == ErrorKind::Damaged => {
                    tracing::error!(
                        "no {} backup of customer {} is proven: {}",
                        target.source,
                        target.customer.id,
                        error.chain()
                    );
                    continue;
                }
                Err(error) => return Err(error),
            };
            if expected.is_empty() {
                continue;
            }
            if let Err(error) = self.open(&target, own).await {
                stop.check()?;
                if !self.concerns_all(&target, own) {
                    tracing::warn!(
                        "no {} backup of customer {} is proven now: {}",
                        target.source,
                        target.customer.id,
                        error.chain()
                    );
                    continue;
                }
                tracing::error!(
                    "no {} backup is proven now: {}",
                    target.source,
                    error.chain()
                );
                away.insert(target.source);
                continue;
            }
            let (held, warnings) = self.hold().await?;
            for warning in warnings {
                tracing::warn!("{warning}");
            }
            let control = Control {
                cancel: stop.child(),
                ..Control::default()
            };
            let proving = self.prove(&held, &target, expected, Some(upkeep), &control);
            for (id, outcome) in proving.await? {
                let whose = format!(
                    "the {} backup {id} of customer {}",
                    target.source, target.customer.id
                );
                match outcome {
                    Ok(proven) => tracing::info!(
                        "{whose} is proven: {} files, {} tables",
                        proven.files,
                        proven.tables
                    ),
                    Err(error) if error.kind() == ErrorKind::Busy => return Err(error),
                    Err(error) => tracing::error!("{whose} is not proven: {}", error.chain()),
                }
            }
            return Ok(true);
        }
        Ok(false)
    }

    /// Read some packs of one repository of which none were read in these hours, as many as there is time for; false where there is none.
    async fn sample_one(&self, since: Timestamp, limit: Duration, stop: &Cancel) -> Result<bool> {
        let Some(sample) = self.engine.config().verify.read_data_subset else {
            return Ok(false);
        };
        let all = self.repositories.all().await?;
        let due = self.repositories.due(all, since, |one| one.sampled_at);
        let mut away = Away::default();
        for name in due.await? {
            if away.concerns(name) {
                continue;
            }
            let opened = self.repositories.open(name).await;
            away.note(name, &opened);
            let repository = match opened {
                Ok(Some(repository)) => repository,
                Ok(None) => continue,
                Err(error) if error.kind() == ErrorKind::Cancelled => return Err(error),
                // The others are read all the same.
                Err(error) => {
                    match name.customer() {
                        // Each sync says so.
                        Some(_) => {
                            tracing::debug!("no packs of the {name} are read: {}", error.chain());
                        }
                        None => {
                            tracing::error!("no packs of the {name} are read: {}", error.chain());
                        }
                    }
                    continue;
                }
            };
            let id = repository.id();
            if !self.catalog.claim_sample(&id, since).await? {
                continue;
            }
            let cancel = stop.clone();
            let reading = repository.with_stop(stop);
            let read = blocking(move || reading.read_sample(sample, Some(limit), &cancel)).await;
            let report = match read {
                Ok(report) => report,
                Err(error) => {
                    // What failed is not begun anew in the same hours: it may be most of the repository each time.
                    if error.kind() == ErrorKind::Cancelled {
                        self.catalog.note_sample(&id, None).await?;
                    }
                    return Err(error);
                }
            };
            if report.packs == 0 && report.packs_left > 0 {
                // That says nothing, above all not that what was damaged is whole again.
                self.catalog.note_sample(&id, None).await?;
                return Ok(false);
            }
            let errors = Some(report.errors.len() as u64);
            self.catalog.note_sample(&id, errors).await?;
            for error in &report.errors {
                tracing::error!("the {name} is damaged: {error}");
            }
            tracing::info!(
                "of the {name} {} packs of {} bytes were read: {} are damaged; for {} more there was no time",
                report.packs,
                report.bytes,
                report.errors.len(),
                report.packs_left
            );
            return Ok(true);
        }
        Ok(false)
    }
}

impl VerifyReport {
    fn note_failure(&mut self, target: &Target, id: SnapshotId, error: String) {
        self.failed.push(NotVerified {
            customer: target.customer.id,
            source: Some(target.source),
            snapshot_id: Some(id),
            error,
        });
    }

    /// Who was asked for by name and has no backup is not proven.
    fn note_those_without(&mut self, wanted: &[CustomerId]) {
        for id in wanted {
            let is_told = self.proven.iter().any(|one| one.customer == *id)
                || self.failed.iter().any(|one| one.customer == *id);
            if !is_told {
                self.failed.push(NotVerified {
                    customer: *id,
                    source: None,
                    snapshot_id: None,
                    error: "there is no backup".to_owned(),
                });
            }
        }
    }
}

/// What is said of several backups by one result: the worst, and that all are proven only where each is.
fn together(tries: Vec<(SnapshotId, Option<Tried>)>) -> Option<(SnapshotId, Tried)> {
    let worst = tries.into_iter().min_by_key(|(_, tried)| match tried {
        Some(Tried::Disproved(_)) => 0,
        Some(Tried::Failed(_)) => 1,
        // Nothing is known of it.
        None => 2,
        Some(Tried::Proven) => 3,
    });
    worst.and_then(|(id, tried)| Some((id, tried?)))
}

/// Those that were never tried first, then those that were tried the longest time ago.
fn in_turn(mut targets: Vec<Target>, proofs: &[Proof]) -> Vec<Target> {
    let ago: BTreeMap<(CustomerId, Source), Duration> = proofs
        .iter()
        .map(|proof| ((proof.customer, proof.source), proof.tried_ago))
        .collect();
    targets.sort_by_key(|target| {
        let ago = ago.get(&(target.customer.id, target.source));
        std::cmp::Reverse(ago.copied().unwrap_or(Duration::MAX))
    });
    targets
}

/// What failed is tried again once in each night's hours: what was in the way may be gone.
fn is_due(target: &Target, proofs: &[Proof], every: Duration, since: Timestamp) -> bool {
    let last = proofs
        .iter()
        .find(|proof| proof.customer == target.customer.id && proof.source == target.source);
    let Some(last) = last else { return true };
    let of_now = Duration::try_from(Timestamp::now().duration_since(since)).unwrap_or_default();
    last.tried_ago >= every || (last.has_failed && last.tried_ago > of_now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_several_backups_the_worst_is_told_and_none_is_proven_before_all_are() {
        let id = |number: u8| -> SnapshotId { format!("{number:064x}").parse().unwrap() };
        let failed = |why: &str| Some(Tried::Failed(why.to_owned()));
        let damaged = |why: &str| Some(Tried::Disproved(why.to_owned()));
        let proven = || Some(Tried::Proven);
        for (first, second, told) in [
            (proven(), proven(), Some((1, proven()))),
            (proven(), failed("too slow"), Some((2, failed("too slow")))),
            (damaged("cut"), proven(), Some((1, damaged("cut")))),
            (failed("slow"), damaged("cut"), Some((2, damaged("cut")))),
            (failed("a"), failed("b"), Some((1, failed("a")))),
            (proven(), None, None),
            (None, damaged("cut"), Some((2, damaged("cut")))),
            (None, None, None),
        ] {
            let told = told.map(|(number, tried)| (id(number), tried.unwrap()));
            let tries = vec![(id(1), first), (id(2), second)];
            assert_eq!(together(tries), told);
        }
        assert_eq!(together(Vec::new()), None);
    }
}
