//! What is told of the end of a job: plain words, the same in a webhook and in a mail, and the same as the dashboard's.
//!
//! Never: a word that a customer wrote, for it may be meant for somebody else's eyes; a path, a host or a cause, which only operators are told.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::config::NotifyEvent;

/// The end of a job.
#[derive(Debug, Clone)]
pub(crate) struct Notice {
    pub(crate) event: NotifyEvent,
    pub(crate) ended: Ended,
}

/// A job that has ended, as a receiver is told of it: the names are those of the API.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Ended {
    pub(crate) job_id: u64,
    pub(crate) customer_id: u32,
    pub(crate) job_type: String,
    pub(crate) backup_type: String,
    pub(crate) status: String,
    pub(crate) failure: Option<String>,
    pub(crate) snapshot_id: Option<String>,
    pub(crate) kept_snapshot: Option<String>,
    pub(crate) created_at: Option<Timestamp>,
    pub(crate) started_at: Option<Timestamp>,
    pub(crate) completed_at: Option<Timestamp>,
    /// As the customer sees it.
    pub(crate) message: String,
}

/// What is posted, and kept until then.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Payload {
    #[serde(rename = "type")]
    kind: String,
    timestamp: Option<Timestamp>,
    data: Ended,
}

impl Notice {
    /// As it is posted.
    pub(super) fn payload(&self) -> serde_json::Result<String> {
        serde_json::to_string(&Payload {
            kind: self.event.as_str().to_owned(),
            timestamp: self.ended.completed_at,
            data: self.ended.clone(),
        })
    }
}

impl Ended {
    /// What [`Notice::payload`] made.
    pub(super) fn of_payload(payload: &str) -> serde_json::Result<Self> {
        Ok(serde_json::from_str::<Payload>(payload)?.data)
    }

    /// What it was and how it ended: `Restore of the files: Done`.
    pub(super) fn title(&self) -> String {
        let what = match self.job_type.as_str() {
            "restore" => "Restore",
            _ => "Backup",
        };
        let of = match self.backup_type.as_str() {
            "db" => "the database",
            "files" => "the files",
            _ => "database & files",
        };
        let how = match (self.status.as_str(), self.failure.as_deref()) {
            ("completed", _) => "Done",
            (_, Some("cancelled")) => "Cancelled",
            (_, Some("rolled_back")) => "Rolled back",
            (_, Some("stuck")) => "Our team has been told",
            _ => "Failed",
        };
        format!("{what} of {of}: {how}")
    }
}

/// What is said of a job that is done.
pub(crate) fn done(is_restore: bool, is_recovered: bool) -> &'static str {
    match (is_restore, is_recovered) {
        (false, _) => "Your backup is done.",
        (true, false) => "Your shop is restored and open again.",
        (true, true) => {
            "Your shop is restored and open again. It was interrupted and finished on its own."
        }
    }
}

/// `Wed 18 Nov 2026, 03:12 UTC`: the dashboard says times in the zone of a browser, which a mail does not know.
pub(super) fn time_in_words(time: Timestamp) -> String {
    time.strftime("%a %-d %b %Y, %H:%M UTC").to_string()
}
