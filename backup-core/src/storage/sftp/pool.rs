//! The few connections that all calls share.
//!
//! A call takes the connection with the fewest calls on it. One that is missing is made beside those that are there, which serve
//! all until then; only where there is none does a call wait for it. Never: more connections than configured; a call that waits for
//! a connection while it holds one.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::fault::Fault;
use super::session::{Session, Target};
use crate::error::{Error, ErrorKind};

/// How many calls use one connection at once; the others wait.
const CALLS_PER_CONNECTION: usize = 4;

/// Where one more connection was not to be had, it is not tried again for so long: others do the work.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(5);

pub(super) struct Pool {
    target: Arc<Target>,
    turns: Arc<Semaphore>,
    slots: Vec<Arc<Slot>>,
}

#[derive(Default)]
struct Slot {
    calls: AtomicUsize,
    connection: Mutex<Connection>,
}

#[derive(Default)]
struct Connection {
    session: Option<Arc<Session>>,
    failed: Option<Failed>,
}

/// Why the last try to connect failed, for those who were waiting for it.
struct Failed {
    at: Instant,
    passing: bool,
    kind: ErrorKind,
    text: String,
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
        if slot.session().is_none()
            && let Some(lease) = self.lease_connected()
        {
            slot.connect_meanwhile(&self.target);
            return Ok(lease);
        }
        let counted = Counted::new(slot);
        let since = Instant::now();
        let mut connection = slot.connection.lock().await;
        // Whoever waited while somebody else tried in vain has had his try.
        if let Some(failed) = connection
            .failed
            .as_ref()
            .filter(|failed| failed.at >= since)
        {
            return Err(failed.fault());
        }
        Ok(counted.lease(connection.session(&self.target).await?))
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
            if let Ok(connection) = slot.connection.try_lock()
                && let Some(session) = &connection.session
            {
                session.cache.forget(path);
            }
        }
    }
}

impl Slot {
    fn load(&self) -> usize {
        self.calls.load(Ordering::Relaxed)
    }

    /// Its connection, if it is there and nobody is just making one.
    fn session(&self) -> Option<Arc<Session>> {
        self.connection.try_lock().ok()?.usable()
    }

    /// Connect on a task of its own, unless somebody is at it, or has just failed. Whoever needs this slot alone tries for himself.
    fn connect_meanwhile(self: &Arc<Self>, target: &Arc<Target>) {
        let (slot, target) = (Arc::clone(self), Arc::clone(target));
        tokio::spawn(async move {
            let Ok(mut connection) = slot.connection.try_lock() else {
                return;
            };
            let failed = connection.failed.as_ref();
            if failed.is_some_and(|failed| failed.at.elapsed() < PAUSE_AFTER_FAILURE) {
                return;
            }
            if let Err(fault) = connection.session(&target).await {
                tracing::warn!(
                    "{} is used with fewer connections than configured: {}",
                    target.server(),
                    fault.into_error().chain()
                );
            }
        });
    }
}

impl Connection {
    fn usable(&self) -> Option<Arc<Session>> {
        self.session.clone().filter(|session| session.is_usable())
    }

    /// The session that is there, or a new one.
    async fn session(&mut self, target: &Target) -> Result<Arc<Session>, Fault> {
        if let Some(session) = self.usable() {
            return Ok(session);
        }
        self.session = None;
        match Session::connect(target).await {
            Ok(session) => {
                self.failed = None;
                Ok(Arc::clone(self.session.insert(Arc::new(session))))
            }
            Err(fault) => {
                self.failed = Some(Failed::new(&fault));
                Err(fault)
            }
        }
    }
}

impl Failed {
    fn new(fault: &Fault) -> Self {
        let (Fault::Passing(error) | Fault::Permanent(error)) = fault;
        Self {
            at: Instant::now(),
            passing: matches!(fault, Fault::Passing(_)),
            kind: error.kind(),
            text: error.chain(),
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
