//! The few connections that all calls share.
//!
//! A call takes the connection with the fewest calls on it. One that is missing is made beside those that are there, which serve
//! all until then; only where there is none does a call wait for it. Never: more connections than configured; a call that waits for
//! a connection while it holds one.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::fault::Fault;
use super::session::{Session, Target};
use crate::error::{Error, ErrorKind};

/// How many calls use one connection at once; the others wait.
const CALLS_PER_CONNECTION: usize = 4;

/// Where one more connection was not to be had, it is not tried again for so long, and each next time for twice as long: others do the work, and whoever tries to
/// log in all the time is shut out.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(5 * 60);

pub(super) struct Pool {
    target: Arc<Target>,
    turns: Arc<Semaphore>,
    slots: Vec<Arc<Slot>>,
}

#[derive(Default)]
struct Slot {
    calls: AtomicUsize,
    /// Locked for a moment, whoever connects.
    session: Mutex<Option<Arc<Session>>>,
    /// Locked by whoever connects.
    failed: tokio::sync::Mutex<Option<Failed>>,
}

/// Why the last try to connect failed, for those who were waiting for it.
struct Failed {
    at: Instant,
    passing: bool,
    kind: ErrorKind,
    text: String,
    /// How long it is not tried beside others.
    pause: Duration,
}

/// A connection in use by one call.
pub(super) struct Lease<'a> {
    pub(super) session: Arc<Session>,
    _counted: Counted<'a>,
}

impl Pool {
    pub(super) fn new(target: Target, connections: usize) -> Self {
        Self {
            target: Arc::new(target),
            turns: Arc::new(Semaphore::new(connections * CALLS_PER_CONNECTION)),
            slots: (0..connections).map(|_| Arc::default()).collect(),
        }
    }

    pub(super) fn target(&self) -> &Target {
        &self.target
    }

    /// Wait until it is this call's turn.
    pub(super) async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        // It is never closed.
        self.turns.clone().acquire_owned().await.ok()
    }

    /// A connection that works as far as anybody knows.
    pub(super) async fn lease(&self) -> Result<Lease<'_>, Fault> {
        let Some(slot) = self.slots.iter().min_by_key(|slot| slot.load()) else {
            return Err(Fault::Permanent(Error::new(
                ErrorKind::Configuration,
                "`connections` must be at least 1",
            )));
        };
        if let Some(session) = slot.session() {
            return Ok(Counted::new(slot).lease(session));
        }
        if let Some(lease) = self.lease_connected() {
            slot.connect_meanwhile(&self.target);
            return Ok(lease);
        }
        let counted = Counted::new(slot);
        let since = Instant::now();
        let mut failed = slot.failed.lock().await;
        // Whoever waited while somebody else tried in vain has had his try.
        if let Some(failed) = failed.as_ref().filter(|failed| failed.at >= since) {
            return Err(failed.fault());
        }
        let connected = slot.connect(&self.target, &mut failed, FIRST_PAUSE).await?;
        Ok(counted.lease(connected))
    }

    /// The connection with the fewest calls of those that are there.
    fn lease_connected(&self) -> Option<Lease<'_>> {
        let there = self
            .slots
            .iter()
            .filter_map(|slot| Some((slot, slot.session()?)));
        let (slot, session) = there.min_by_key(|(slot, _)| slot.load())?;
        Some(Counted::new(slot).lease(session))
    }

    /// A file is not what it was: nobody may read on from a handle of the old one.
    pub(super) fn forget(&self, path: &str) {
        for slot in &self.slots {
            if let Some(session) = slot.last_session().as_ref() {
                session.cache.forget(path);
            }
        }
    }
}

impl Slot {
    fn load(&self) -> usize {
        self.calls.load(Ordering::Relaxed)
    }

    fn last_session(&self) -> MutexGuard<'_, Option<Arc<Session>>> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its connection, if it is there and works as far as anybody knows.
    fn session(&self) -> Option<Arc<Session>> {
        let session = self.last_session().clone();
        session.filter(|session| session.is_usable())
    }

    /// Its connection, or a new one. `failed` is what it has locked.
    async fn connect(
        &self,
        target: &Target,
        failed: &mut Option<Failed>,
        pause: Duration,
    ) -> Result<Arc<Session>, Fault> {
        if let Some(session) = self.session() {
            return Ok(session);
        }
        *self.last_session() = None;
        match Session::connect(target).await {
            Ok(session) => {
                let session = Arc::new(session);
                *self.last_session() = Some(Arc::clone(&session));
                *failed = None;
                Ok(session)
            }
            Err(fault) => {
                *failed = Some(Failed::new(&fault, pause));
                Err(fault)
            }
        }
    }

    /// Connect on a task of its own, unless somebody is at it, or has just failed. Whoever needs this slot alone tries for himself.
    fn connect_meanwhile(self: &Arc<Self>, target: &Arc<Target>) {
        let (slot, target) = (Arc::clone(self), Arc::clone(target));
        tokio::spawn(async move {
            let Ok(mut failed) = slot.failed.try_lock() else {
                return;
            };
            let pause = match failed.as_ref() {
                Some(failed) if failed.at.elapsed() < failed.pause => return,
                Some(failed) => (failed.pause * 2).min(LONGEST_PAUSE),
                None => FIRST_PAUSE,
            };
            if let Err(fault) = slot.connect(&target, &mut failed, pause).await {
                let server = target.server();
                let cause = fault.into_error().chain();
                match pause {
                    FIRST_PAUSE => tracing::warn!(
                        "{server} is used with fewer connections than configured: {cause}"
                    ),
                    _ => tracing::debug!("{server} still gives no more connections: {cause}"),
                }
            }
        });
    }
}

impl Failed {
    fn new(fault: &Fault, pause: Duration) -> Self {
        let (Fault::Passing(error) | Fault::Permanent(error)) = fault;
        Self {
            at: Instant::now(),
            passing: matches!(fault, Fault::Passing(_)),
            kind: error.kind(),
            text: error.chain(),
            pause,
        }
    }

    fn fault(&self) -> Fault {
        let error = Error::new(self.kind, self.text.clone());
        match self.passing {
            true => Fault::Passing(error),
            false => Fault::Permanent(error),
        }
    }
}

/// Counts one call on a slot for as long as it lives, also while it waits to connect.
struct Counted<'a>(&'a Slot);

impl<'a> Counted<'a> {
    fn new(slot: &'a Slot) -> Self {
        slot.calls.fetch_add(1, Ordering::Relaxed);
        Self(slot)
    }

    fn lease(self, session: Arc<Session>) -> Lease<'a> {
        Lease {
            session,
            _counted: self,
        }
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.calls.fetch_sub(1, Ordering::Relaxed);
    }
}
