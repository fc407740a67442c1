//! The one error type of the library.
//!
//! An error says what failed, on what, and what to do, in one sentence for an operator; its cause is kept for
//! the log. No secret may ever enter a message or a cause.

use std::error::Error as StdError;
use std::fmt;

use serde::{Deserialize, Serialize};

/// The library's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What sort of failure an [`Error`] is: decides the exit code, whether a retry is sensible, and what a customer is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ErrorKind {
    /// The caller asked for something that makes no sense (a malformed id, a type that does not exist).
    InvalidInput,
    /// The configuration is wrong or incomplete.
    Configuration,
    /// The thing that was named does not exist, or is not this customer's.
    NotFound,
    /// Somebody else is using it: a lock is held.
    Busy,
    /// The other side said no for good: wrong password, key or host key, missing permission.
    Refused,
    /// The other side could not be reached, or went away and did not come back in time.
    Unreachable,
    /// A disk is full.
    NoSpace,
    /// Something took longer than its limit.
    Timeout,
    /// The caller cancelled.
    Cancelled,
    /// Whoever ran it died, again and again.
    Interrupted,
    /// Data is not what it must be: an incomplete dump, a damaged repository.
    Damaged,
    /// What was restored did not work, and what was there before is back.
    RolledBack,
    /// An operation failed and could not be undone by itself: an operator is needed.
    Stuck,
    /// Anything else.
    #[serde(other)]
    Failed,
}

/// A failure: its kind, one sentence for the operator, and the cause.
pub struct Error {
    kind: ErrorKind,
    message: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

#[cfg(test)]
impl ErrorKind {
    /// Every one, for tests of what is said of them.
    pub(crate) const ALL: [Self; 14] = [
        Self::InvalidInput,
        Self::Configuration,
        Self::NotFound,
        Self::Busy,
        Self::Refused,
        Self::Unreachable,
        Self::NoSpace,
        Self::Timeout,
        Self::Cancelled,
        Self::Interrupted,
        Self::Damaged,
        Self::RolledBack,
        Self::Stuck,
        Self::Failed,
    ];
}

impl Error {
    /// An error without a deeper cause.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            source: None,
        }
    }

    /// An error with the cause that the log shall show.
    pub fn caused(
        kind: ErrorKind,
        message: impl Into<String>,
        source: impl Into<Box<dyn StdError + Send + Sync>>,
    ) -> Self {
        Self {
            kind,
            message: message.into(),
            source: Some(source.into()),
        }
    }

    /// An input/output error, with its kind read off the operating system's code.
    pub fn io(message: impl Into<String>, source: std::io::Error) -> Self {
        Self::caused(kind_of_io(&source), message, source)
    }

    /// The same failure seen from one level up: keeps the kind, says what it was in the way of.
    #[must_use]
    pub fn context(self, message: impl Into<String>) -> Self {
        Self {
            kind: self.kind,
            message: message.into(),
            source: Some(Box::new(self)),
        }
    }

    /// What sort of failure this is.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The message and every cause below it, joined by `: `, for the log.
    pub fn chain(&self) -> String {
        let mut text = self.message.clone();
        let mut cause = self.source();
        while let Some(error) = cause {
            let message = error.to_string();
            // Many causes repeat the text of theirs; once is enough.
            if !text.ends_with(&message) {
                text.push_str(": ");
                text.push_str(&message);
            }
            cause = error.source();
        }
        text
    }

    /// A plain sentence for the customer: no path, no host, no SQL.
    pub fn customer_message(&self) -> &'static str {
        match self.kind {
            ErrorKind::InvalidInput => "That request could not be understood.",
            ErrorKind::NotFound => {
                "That backup does not exist, or does not hold what was asked for."
            }
            ErrorKind::Busy => {
                "Another job for your shop is running, or the backup system is being maintained. \
                 Please try again in a few minutes."
            }
            ErrorKind::Unreachable => {
                "The database of your shop or the backup system could not be reached. Please try again in a few minutes."
            }
            ErrorKind::NoSpace => {
                "There is not enough space left. Our team has to make room first."
            }
            ErrorKind::Timeout => "It took too long and was stopped. Please try again later.",
            ErrorKind::Cancelled => "It was cancelled.",
            ErrorKind::Stuck => {
                "Something went wrong on our side and our team has been told. \
                 Please do not change anything in the meantime."
            }
            ErrorKind::RolledBack => {
                "Your shop did not start with what was restored, so everything was put back."
            }
            ErrorKind::Interrupted => "It was interrupted on our side. Please try again.",
            ErrorKind::Configuration
            | ErrorKind::Refused
            | ErrorKind::Damaged
            | ErrorKind::Failed => "Something went wrong on our side. Please contact support.",
        }
    }
}

fn kind_of_io(error: &std::io::Error) -> ErrorKind {
    use std::io::ErrorKind as Io;
    // One of ours that came through a reader.
    if let Some(ours) = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<Error>())
    {
        return ours.kind;
    }
    match error.kind() {
        Io::NotFound => ErrorKind::NotFound,
        Io::PermissionDenied => ErrorKind::Refused,
        Io::StorageFull | Io::QuotaExceeded => ErrorKind::NoSpace,
        Io::TimedOut => ErrorKind::Timeout,
        _ => ErrorKind::Failed,
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.kind, self.chain())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chain_names_every_cause_once() {
        let error = Error::io("cannot read /a", std::io::Error::other("disk on fire"))
            .context("the backup failed");
        assert_eq!(
            error.chain(),
            "the backup failed: cannot read /a: disk on fire"
        );
        assert_eq!(error.to_string(), "the backup failed");
    }

    #[test]
    fn a_customer_is_told_what_he_can_do_and_nothing_of_machines_or_commands() {
        for kind in ErrorKind::ALL {
            let cause = std::io::Error::other("SELECT password FROM /etc/shadow ON 10.0.0.5");
            let error = Error::caused(kind, "see `jobs`, or run `doctor` for customer 7", cause);
            let sentence = error.customer_message();
            let is_plain = |c: char| c.is_ascii_alphabetic() || " .,".contains(c);
            assert!(sentence.chars().all(is_plain), "{kind:?}: {sentence}");
            assert!(sentence.ends_with('.') && sentence.starts_with(char::is_uppercase));
            // A database is what he can choose to back up.
            for word in [
                "repository",
                "snapshot",
                "lock",
                "worker",
                "queue",
                "server",
                "disk",
                "customer",
                "operator",
                "doctor",
                "run ",
                "configuration",
            ] {
                assert!(!sentence.contains(word), "{kind:?}: {word}: {sentence}");
            }
        }
    }

    #[test]
    fn an_error_that_comes_through_a_reader_keeps_its_kind() {
        let read = std::io::Error::other(Error::new(ErrorKind::Cancelled, "cancelled"));
        assert_eq!(Error::io("cannot read", read).kind(), ErrorKind::Cancelled);
    }

    #[test]
    fn a_full_disk_is_told_from_other_failures() {
        let full = std::io::Error::from_raw_os_error(28);
        assert_eq!(Error::io("cannot write", full).kind(), ErrorKind::NoSpace);
    }
}
