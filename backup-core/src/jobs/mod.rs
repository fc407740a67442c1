//! Jobs: what customers asked for, who runs it, how far it is, and how it ended.
//!
//! The SQL table is the truth. One active job per customer is a unique index; who may write to a running job is decided by its attempt number in every
//! statement (a lease with fencing). Never: a job that ends twice, but for a stuck restore, which gets its true end; a job created beside
//! one of the same customer that has no true end; a state that an owner without the lease has written; a sentence for the customer with a path, a host
//! or SQL in it.

mod deletion;
mod figures;
mod notice;
mod owner;
mod queue;
mod store;
mod tracker;
mod watch;

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Serialize, Serializer};

use crate::catalog::Source;
use crate::customer::CustomerId;
use crate::error::{Error, ErrorKind, Result};
use crate::progress::Phase;
use crate::repository::BackupType;

pub(crate) use deletion::Deleting;
pub(crate) use figures::Failures;
pub use figures::JobCount;
pub use queue::Queue;
pub use store::{CancelAnswer, Claimed, Created, JobStore, Kept, Lease, NewJob};
pub(crate) use store::{Completion, Fate};
pub(crate) use tracker::Tracker;
pub use watch::JobStream;
pub(crate) use watch::Watcher;

/// The number of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct JobId(u64);

impl JobId {
    /// The bare number.
    pub fn get(self) -> u64 {
        self.0
    }

    /// What [`Self::get`] gave.
    pub(crate) fn from_number(number: u64) -> Self {
        Self(number)
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl FromStr for JobId {
    type Err = Error;

    /// Digits only, and none too many.
    fn from_str(text: &str) -> Result<Self> {
        let plain = (1..=18).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
        match text.parse() {
            Ok(number) if plain => Ok(Self(number)),
            _ => Err(Error::new(
                ErrorKind::InvalidInput,
                "a job is named by its number, as `jobs` shows it",
            )),
        }
    }
}

/// An enumeration that is stored, read and serialized as one word each.
macro_rules! words {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$doc])* $variant),+ }

        impl $name {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// As it is stored.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }

            fn from_word(word: &str) -> Option<Self> {
                match word { $($word => Some(Self::$variant),)+ _ => None }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }
    };
}

words! {
    /// What a job does.
    JobType {
        /// Makes a backup.
        Backup = "backup",
        /// Puts a backup back.
        Restore = "restore",
    }
}

words! {
    /// Where a job is in its life.
    JobStatus {
        /// Waits for a worker.
        Pending = "pending",
        /// Is being run.
        Running = "running",
        /// Ended, and what it was for is done.
        Completed = "completed",
        /// Ended otherwise; the job's [`Failure`] says how.
        Failed = "failed",
    }
}

words! {
    /// Why a job failed.
    Failure {
        /// Somebody cancelled it.
        Cancelled = "cancelled",
        /// It took longer than it may.
        Timeout = "timeout",
        /// Its worker died.
        Interrupted = "interrupted",
        /// What was restored did not come up, and the site is as it was.
        RolledBack = "rolled_back",
        /// It failed and could not be undone: an operator is needed.
        Stuck = "stuck",
        /// Anything else.
        Error = "error",
    }
}

/// What the table calls this process while it runs a job: exact enough for others to tell that it is gone.
pub fn owner_of_this_process() -> String {
    owner::of_this_process()
}

impl JobStatus {
    /// Whether the job still waits or runs.
    pub fn is_active(self) -> bool {
        matches!(self, Self::Pending | Self::Running)
    }
}

impl Job {
    /// Whether it has no true end yet: it waits, runs, or is a restore that is stuck.
    pub fn is_open(&self) -> bool {
        self.status.is_active() || self.is_stuck()
    }

    /// Whether it is a restore that could be neither finished nor undone.
    pub fn is_stuck(&self) -> bool {
        self.status == JobStatus::Failed && self.failure == Some(Failure::Stuck)
    }
}

/// A job, as every process sees it.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Job {
    /// Its number.
    pub id: JobId,
    /// Whose it is.
    pub customer_id: CustomerId,
    /// What it does.
    pub job_type: JobType,
    /// What is backed up or restored.
    pub backup_type: BackupType,
    /// The snapshot that is restored, or that a completed backup made. As stored: an earlier deployment may have written another form.
    pub snapshot_id: Option<String>,
    /// Where the snapshot to restore is from.
    pub source: Option<Source>,
    /// Whether the site stays up until the exchange.
    pub online: bool,
    /// The backup that a completed restore made of what it replaced.
    pub kept_snapshot: Option<String>,
    /// Whether it was interrupted, and carried to its end later.
    pub recovered: bool,
    /// The customer's note.
    pub note: Option<String>,
    /// Where it is in its life.
    pub status: JobStatus,
    /// Why it failed.
    pub failure: Option<Failure>,
    /// What to tell the customer of a failure: one plain sentence.
    pub error_message: Option<String>,
    /// When it was asked for.
    pub created_at: Option<Timestamp>,
    /// When it was first taken up.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub completed_at: Option<Timestamp>,
    /// The hosting server that it runs on.
    pub server: String,
    /// How often it was taken up.
    pub attempts: u32,
    /// What is being done.
    pub phase: Option<Phase>,
    /// Bytes done in this phase.
    pub bytes_done: u64,
    /// Bytes to do in this phase, as far as is known.
    pub bytes_total: Option<u64>,
    /// Files done in this phase.
    pub files_done: u64,
    /// How fast it is just now.
    pub bytes_per_second: Option<u64>,
    /// Whether somebody asked to stop it.
    pub cancel_requested: bool,
    /// Whether it can still be cancelled: it waits, or runs and is not at its commit yet.
    pub cancellable: bool,
    /// Whether the customer has seen that it failed, and said so.
    pub dismissed: bool,
}

/// How far a job is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// What is being done.
    pub phase: Option<Phase>,
    /// Bytes done in this phase.
    pub bytes_done: u64,
    /// Bytes to do in this phase, as far as is known.
    pub bytes_total: Option<u64>,
    /// Files done in this phase.
    pub files_done: u64,
    /// How fast it is just now.
    pub bytes_per_second: Option<u64>,
}
