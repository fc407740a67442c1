//! What a cancelled operation leaves behind during an outage of the storage: it does not wait, but somebody has to.
//!
//! Archive runs that write through the storage that all share, and locks that could not be removed. Never: a repository closed before they
//! ended; a straggler that outlives the lock which protects what it writes.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use crate::error::{Error, Result};

/// The threads that wait an outage out. Clones share them.
#[derive(Clone, Default)]
pub(super) struct Stragglers(Arc<Mutex<Vec<JoinHandle<()>>>>);

impl fmt::Debug for Stragglers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Stragglers(…)")
    }
}

impl Stragglers {
    /// A thread that nobody else waits for any more.
    pub(super) fn add(&self, thread: JoinHandle<()>) {
        let mut threads = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        threads.retain(|thread| !thread.is_finished());
        threads.push(thread);
    }

    /// Do something on a thread of its own that nobody waits for.
    pub(super) fn run(&self, work: impl FnOnce() + Send + 'static) -> Result<()> {
        let thread = std::thread::Builder::new()
            .name("straggler".into())
            .spawn(work)
            .map_err(|error| Error::io("cannot start a thread to tidy up", error))?;
        self.add(thread);
        Ok(())
    }

    /// Wait for all of them. Not in a destructor of their own: a straggler may be the last that knows the others.
    pub(super) fn join(&self) {
        let next = || {
            let mut threads = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            threads.pop()
        };
        while let Some(thread) = next() {
            // It has nobody to tell that it broke off.
            let _ = thread.join();
        }
    }
}
