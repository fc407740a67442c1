//! What a customer is told of a job that failed: plain sentences made of nothing but the kinds of things.
//!
//! Never anything of an error's own text: that has paths, hosts and SQL in it, and goes to the log.

use crate::error::{Error, ErrorKind};
use crate::jobs::{Failure, JobType};

/// Of a stuck restore that nobody can bring to an end any more.
pub(super) const LOST: &str = "Something went wrong on our side, and we cannot tell any more whether all was put back. Please look at your shop, and contact support.";

/// The sentence for `customer_backup_jobs.error_message`.
pub(super) fn of(job_type: JobType, failure: Failure, error: &Error) -> String {
    let reason = match (failure, job_type) {
        (Failure::Cancelled, _) => "It was cancelled.",
        (Failure::Timeout, _) => "It took longer than it may and was stopped.",
        (Failure::Interrupted, JobType::Backup) => "It was interrupted on our side.",
        (Failure::Interrupted, JobType::Restore) => {
            "It was interrupted on our side before it was done, and undone."
        }
        // What is not found then is the shop itself.
        (Failure::Error, JobType::Backup) if error.kind() == ErrorKind::NotFound => {
            "Part of your shop that belongs in the backup was not found. Please contact support."
        }
        (Failure::Stuck | Failure::RolledBack | Failure::Error, _) => error.customer_message(),
    };
    let left = match (failure, job_type) {
        (Failure::Stuck, _) => return reason.into(),
        (_, JobType::Backup) => "Your shop and your other backups are as they were.",
        (_, JobType::Restore) => "Your shop is as it was before.",
    };
    format!("{reason} {left}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_customer_is_told_nothing_of_the_machines() {
        let failures = [
            Failure::Cancelled,
            Failure::Timeout,
            Failure::Interrupted,
            Failure::RolledBack,
            Failure::Stuck,
            Failure::Error,
        ];
        let is_plain = |sentence: &str| {
            // A column that an earlier deployment made may have no more.
            assert!(sentence.len() <= 255, "{sentence}");
            assert!(sentence.ends_with('.'), "{sentence}");
            for word in ["/", "10.", "SELECT", "password", "root", "customer"] {
                assert!(!sentence.contains(word), "{sentence}");
            }
        };
        is_plain(LOST);
        for kind in ErrorKind::ALL {
            let error = Error::caused(
                kind,
                "cannot read /var/customers/customer-7/secret on 10.0.0.5: SELECT password",
                "access denied for root@db",
            );
            for failure in failures {
                for job_type in [JobType::Backup, JobType::Restore] {
                    is_plain(&of(job_type, failure, &error));
                }
            }
        }
    }
}
