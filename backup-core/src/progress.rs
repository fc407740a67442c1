//! How a running operation is watched and stopped, and who has the last word before its commit.
//!
//! The ground floor: it knows nothing of what runs. A monitor may never slow an operation down or fail it.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};

/// The part of an operation that is running, in the order in which they come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Phase {
    /// Opening the repository, looking things up, checking.
    Preparing,
    /// Reading the database and the files into the repository.
    Saving,
    /// Checking what was saved and writing the snapshot.
    Committing,
    /// Bringing files from the repository to the staging directory.
    RestoringFiles,
    /// Importing the dump into the shadow schema.
    ImportingDatabase,
    /// Putting what was staged in the place of what was there.
    Swapping,
    /// Starting the site and waiting for it.
    Starting,
    /// Saving what a restore replaced; the site is up again.
    Keeping,
    /// Removing what is no longer needed.
    CleaningUp,
}

impl Phase {
    /// One word for machines.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Preparing => "preparing",
            Self::Saving => "saving",
            Self::Committing => "committing",
            Self::RestoringFiles => "restoring_files",
            Self::ImportingDatabase => "importing_database",
            Self::Swapping => "swapping",
            Self::Starting => "starting",
            Self::Keeping => "keeping",
            Self::CleaningUp => "cleaning_up",
        }
    }

    /// The phase that [`Self::as_str`] gives this word for.
    pub fn from_word(word: &str) -> Option<Self> {
        [
            Self::Preparing,
            Self::Saving,
            Self::Committing,
            Self::RestoringFiles,
            Self::ImportingDatabase,
            Self::Swapping,
            Self::Starting,
            Self::Keeping,
            Self::CleaningUp,
        ]
        .into_iter()
        .find(|phase| phase.as_str() == word)
    }
}

impl serde::Serialize for Phase {
    fn serialize<S: serde::Serializer>(
        &self,
        serializer: S,
    ) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Preparing => "preparing",
            Self::Saving => "saving",
            Self::Committing => "committing",
            Self::RestoringFiles => "restoring files",
            Self::ImportingDatabase => "importing the database",
            Self::Swapping => "swapping",
            Self::Starting => "starting the site",
            Self::Keeping => "keeping what was replaced",
            Self::CleaningUp => "cleaning up",
        })
    }
}

/// Watches an operation. All methods are called from the threads that do the work and must return at once.
pub trait Monitor: Send + Sync {
    /// A new phase began; the counts start over.
    fn phase(&self, _phase: Phase) {}
    /// The bytes that the running phase has to do, as far as is known.
    fn bytes_total(&self, _bytes: u64) {}
    /// So many bytes more were done in the running phase.
    fn bytes_done(&self, _bytes: u64) {}
    /// So many files more were done in the running phase.
    fn files_done(&self, _files: u64) {}
    /// Something that does not fail the operation but that somebody should know.
    fn warning(&self, _text: &str) {}
}

/// A monitor that looks away.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoMonitor;

impl Monitor for NoMonitor {}

/// A flag that asks an operation to stop. Clones share it. Operations look at it between pieces of work and end
/// with [`ErrorKind::Cancelled`], at the latest before their commit point; after that it has no effect.
#[derive(Debug, Clone, Default)]
pub struct Cancel {
    is_set: Arc<AtomicBool>,
    is_timed_out: Arc<AtomicBool>,
    /// Set for all of its children at once.
    parent: Option<Arc<Self>>,
}

impl Cancel {
    /// A flag that is not set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Ask to stop. Cannot be taken back.
    pub fn cancel(&self) {
        self.is_set.store(true, Ordering::Release);
    }

    /// Ask to stop because it takes longer than it may: what an operation ends with may come to be told much later.
    pub fn time_out(&self) {
        self.is_timed_out.store(true, Ordering::Release);
        self.cancel();
    }

    /// Whether somebody asked for that reason.
    pub fn is_timed_out(&self) -> bool {
        self.is_timed_out.load(Ordering::Acquire)
            || self
                .parent
                .as_ref()
                .is_some_and(|parent| parent.is_timed_out())
    }

    /// Whether somebody asked.
    pub fn is_cancelled(&self) -> bool {
        self.is_set.load(Ordering::Acquire)
            || self
                .parent
                .as_ref()
                .is_some_and(|parent| parent.is_cancelled())
    }

    /// A flag of its own that counts as set when this one is, too.
    #[must_use]
    pub fn child(&self) -> Self {
        Self {
            is_set: Arc::default(),
            is_timed_out: Arc::default(),
            parent: Some(Arc::new(self.clone())),
        }
    }

    /// Lock a mutex that somebody may hold for long; [`ErrorKind::Cancelled`] when asked to stop before it is free.
    pub(crate) fn lock<'a, T>(&self, mutex: &'a Mutex<T>) -> Result<MutexGuard<'a, T>> {
        const POLL: Duration = Duration::from_millis(50);
        loop {
            match mutex.try_lock() {
                Ok(guard) => return Ok(guard),
                Err(TryLockError::Poisoned(guard)) => return Ok(guard.into_inner()),
                Err(TryLockError::WouldBlock) => {
                    self.check()?;
                    std::thread::sleep(POLL);
                }
            }
        }
    }

    /// [`ErrorKind::Cancelled`] when somebody asked.
    pub fn check(&self) -> Result<()> {
        if self.is_cancelled() {
            return Err(Error::new(
                ErrorKind::Cancelled,
                "the operation was cancelled",
            ));
        }
        Ok(())
    }
}

/// Has the last word on whether an operation may commit: whoever runs it may have lost the right to, unnoticed by itself.
pub trait Gate: Send + Sync {
    /// Asked exactly once, immediately before the operation's commit point, when nothing else is left to check. On Ok the
    /// operation goes on at once, so an answer that was long in coming must be an error.
    ///
    /// `snapshot` is the full id of the snapshot that a backup is about to write; None for a restore.
    ///
    /// # Errors
    /// Nothing is committed, and the operation ends with this error as if it had been cancelled.
    fn before_commit(&self, snapshot: Option<&str>) -> Result<()>;
}

/// How an operation is watched and stopped: handed down from the caller to every room.
#[derive(Clone)]
pub struct Control {
    /// Told of progress.
    pub monitor: Arc<dyn Monitor>,
    /// Asked whether to go on.
    pub cancel: Cancel,
    /// Asked before the commit; None: there is nobody to ask.
    pub gate: Option<Arc<dyn Gate>>,
}

impl Control {
    /// Ask the gate, if there is one: see [`Gate::before_commit`].
    pub fn before_commit(&self, snapshot: Option<&str>) -> Result<()> {
        match &self.gate {
            Some(gate) => gate.before_commit(snapshot),
            None => Ok(()),
        }
    }
}

impl Default for Control {
    fn default() -> Self {
        Self {
            monitor: Arc::new(NoMonitor),
            cancel: Cancel::new(),
            gate: None,
        }
    }
}

impl fmt::Debug for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Control")
            .field("cancel", &self.cancel)
            .finish_non_exhaustive()
    }
}
