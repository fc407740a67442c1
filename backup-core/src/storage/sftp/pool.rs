//! The few connections that all calls share.
//!
//! A call takes the connection with the fewest calls on it; a connection that is missing is made by whoever needs it
//! first. Never: more connections than configured; a call that waits for a connection while it holds one.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::fault::Fault;
use super::session::{Session, Target};
use crate::error::{Error, ErrorKind};

/// How many calls use one connection at once; the others wait.
const CALLS_PER_CONNECTION: usize = 4;

pub(super) struct Pool {
    target: Target,
    turns: Arc<Semaphore>,
    slots: Vec<Slot>,
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
            target,
            turns: Arc::new(Semaphore::new(connections * CALLS_PER_CONNECTION)),
            slots: (0..connections).map(|_| Slot::default()).collect(),
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
        let Some(slot) = self
            .slots
            .iter()
            .min_by_key(|slot| slot.calls.load(Ordering::Relaxed))
        else {
            return Err(Fault::Permanent(Error::new(
                ErrorKind::Configuration,
                "`connections` must be at least 1",
            )));
        };
        let counted = Counted::new(slot);
        let since = Instant::now();
        let mut connection = slot.connection.lock().await;
        if let Some(session) = connection
            .session
            .as_ref()
            .filter(|session| session.is_usable())
        {
            return Ok(counted.lease(session.clone()));
        }
        connection.session = None;
        // Whoever waited while somebody else tried in vain has had his try.
        if let Some(failed) = connection
            .failed
            .as_ref()
            .filter(|failed| failed.at >= since)
        {
            return Err(failed.fault());
        }
        match Session::connect(&self.target).await {
            Ok(session) => {
                let session = Arc::new(session);
                connection.session = Some(session.clone());
                connection.failed = None;
                Ok(counted.lease(session))
            }
            Err(fault) => {
                connection.failed = Some(Failed::new(&fault));
                Err(fault)
            }
        }
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
