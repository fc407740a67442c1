//! What pages show: plain data that the server sends and the browser reads.

use serde::{Deserialize, Serialize};

/// What a backup holds, a job works on, or a customer asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "ssr", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// The database alone.
    Db,
    /// The files alone.
    Files,
    /// Both.
    Both,
}

/// Where a backup is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "ssr", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// The customer made it.
    Manual,
    /// The platform made it.
    Daily,
    /// It holds what a restore replaced.
    PreRestore,
}

/// What a job does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "ssr", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum JobType {
    /// Makes a backup.
    Backup,
    /// Puts one back.
    Restore,
}

/// Where a job is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "ssr", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum JobStatus {
    /// Waits for a worker.
    Pending,
    /// Is being run.
    Running,
    /// Ended well.
    Completed,
    /// Ended otherwise.
    Failed,
}

/// A job, as `/api/backups/status` and `/api/backups/events` tell it. Times are ISO 8601 in UTC.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "ssr", derive(utoipa::ToSchema))]
pub struct Job {
    /// Its number.
    pub id: u64,
    /// What it does.
    pub job_type: JobType,
    /// What it works on.
    pub backup_type: Part,
    /// The snapshot that is restored, or that a completed backup made.
    pub snapshot_id: Option<String>,
    /// Where the snapshot to restore is from.
    pub source: Option<Source>,
    /// Where it is in its life.
    pub status: JobStatus,
    /// Whether a restore keeps the shop online while the backup is prepared.
    pub online: bool,
    /// The backup that a completed restore made of what it replaced: restoring that one undoes the restore.
    pub kept_snapshot: Option<String>,
    /// Whether it was interrupted, and carried to its end later.
    pub recovered: bool,
    /// Why it failed: `cancelled`, `timeout`, `interrupted` (a restore is undone then), `rolled_back` (the restored shop did not start, and is put back as
    /// it was), `stuck` (the shop is behind its maintenance page until somebody has helped; the job may end otherwise later), `error`.
    pub failure: Option<String>,
    /// What to tell the customer of a failure.
    pub error_message: Option<String>,
    /// When it was asked for.
    pub created_at: Option<String>,
    /// When it was taken up.
    pub started_at: Option<String>,
    /// When it ended.
    pub completed_at: Option<String>,
    /// What is being done, in a word (`backup_core::progress::Phase`).
    pub phase: Option<String>,
    /// Bytes done in this phase.
    pub bytes_done: u64,
    /// Bytes to do in this phase, where that is known.
    pub bytes_total: Option<u64>,
    /// Files done in this phase.
    pub files_done: u64,
    /// How fast it is just now.
    pub bytes_per_second: Option<u64>,
    /// Whether it was asked to stop.
    pub cancel_requested: bool,
    /// Whether it can still be cancelled.
    pub cancellable: bool,
    /// Whether the customer has seen that it failed, and said so.
    pub dismissed: bool,
}

/// One backup.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Backup {
    /// Its snapshot.
    pub id: String,
    /// Where it is from.
    pub source: Source,
    /// When it was made: milliseconds since 1970, UTC.
    pub time: i64,
    /// What it holds.
    pub holds: Part,
    /// The customer's note.
    pub note: Option<String>,
    /// Plain bytes, where known.
    pub bytes: Option<u64>,
    /// Bytes that were new to the repository, where known.
    pub bytes_added: Option<u64>,
    /// Bytes of the dump, where known.
    pub database_bytes: Option<u64>,
    /// Regular files, where known.
    pub files: Option<u64>,
    /// When it was last restored, apart from the shop, to prove that it can be: milliseconds since 1970, UTC.
    pub proven: Option<i64>,
}

/// What became of a form that was sent without JavaScript.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Flash {
    /// Whether it was done.
    pub success: bool,
    /// In one plain sentence.
    pub message: String,
    /// The backup that undoes what is told of, if there is one.
    #[serde(default)]
    pub undo: Option<String>,
    /// Whether it tells how a job ended.
    #[serde(default)]
    pub is_end: bool,
}

/// The answer to every action, also to refused ones.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "ssr", derive(utoipa::ToSchema))]
pub struct Outcome {
    /// Whether it was done.
    pub success: bool,
    /// In one plain sentence.
    pub message: String,
    /// The job that was queued.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job_id: Option<u64>,
}

/// What every page knows of who looks at it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Viewer {
    /// How he is addressed.
    pub name: String,
    /// His time zone (IANA).
    pub zone: String,
    /// When the page was made: milliseconds since 1970, UTC.
    pub now: i64,
    /// What became of the form that was sent just before.
    pub flash: Option<Flash>,
    /// Where he logs out, if that is not here.
    pub account_page: Option<String>,
}

/// The page `/backups`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BackupsPage {
    /// Who looks at it.
    pub viewer: Viewer,
    /// The backups the customer made, newest first.
    pub manual: Vec<Backup>,
    /// Those made of what a restore replaced.
    pub pre_restore: Vec<Backup>,
    /// The platform's, newest first.
    pub daily: Vec<Backup>,
    /// Whether the platform's backups are kept here at all.
    pub has_daily: bool,
    /// How many days of them are shown.
    pub daily_days: u64,
    /// How many manual ones are kept.
    pub kept: u32,
    /// How many of those are kept that were made of what a restore replaced.
    pub replaced_kept: u32,
    /// The customer's newest jobs, newest first; one that has not ended is the first. One that is stuck is among them, however old it is.
    pub jobs: Vec<Job>,
}

/// The page `/backups/{id}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BackupPage {
    /// Who looks at it.
    pub viewer: Viewer,
    /// The backup; None where this customer has no such backup.
    pub backup: Option<Backup>,
    /// How many backups are kept that were made of what a restore replaced.
    pub replaced_kept: u32,
    /// The customer's newest jobs, newest first; one that has not ended is the first. One that is stuck is among them, however old it is.
    pub jobs: Vec<Job>,
}

impl Job {
    /// Whether it is a restore that somebody has to help.
    pub fn is_stuck(&self) -> bool {
        self.failure.as_deref() == Some("stuck")
    }

    /// Whether it has no true end yet: no other can be started then.
    pub fn is_open(&self) -> bool {
        self.status.is_active() || self.is_stuck()
    }
}

impl JobStatus {
    /// Whether the job still waits or runs.
    pub fn is_active(self) -> bool {
        matches!(self, Self::Pending | Self::Running)
    }
}

impl Part {
    /// Whether the database belongs to it.
    pub fn has_database(self) -> bool {
        matches!(self, Self::Db | Self::Both)
    }

    /// Whether the files belong to it.
    pub fn has_files(self) -> bool {
        matches!(self, Self::Files | Self::Both)
    }
}
