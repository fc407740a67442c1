//! Who is at work on a customer: any number of backups, or one restore.
//!
//! A lock of the kernel on a file that only root can reach: it goes with the process that holds it, however that ends. The file
//! stays, for one that is removed could be locked by two. Never: a wait for somebody else.

use std::os::fd::OwnedFd;

use rustix::fs::{FlockOperation, Mode, OFlags, Timespec, Timestamps, UTIME_NOW};
use rustix::io::Errno;

use super::{Site, staging};
use crate::error::{Error, ErrorKind, Result};

/// A customer that nobody else restores, or, if it is exclusive, that nobody else is at work on at all, for as long as this lives.
#[derive(Debug)]
#[must_use = "the customer is given up when this is dropped"]
pub struct Claim {
    pub(super) lock: OwnedFd,
}

/// Which exclusive claim of a customer was the last one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LastExclusive(i64, i64);

impl Claim {
    pub(super) fn take(site: &Site, exclusive: bool) -> Result<Self> {
        let (base, path) = staging::open_or_make_base(site)?;
        let name = format!("{}.lock", site.customer.tag());
        let failed = |e: Errno| {
            Error::io(
                format!("cannot lock {}", path.join(&name).display()),
                e.into(),
            )
        };
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let lock =
            rustix::fs::openat(&base, &name, flags, Mode::RUSR | Mode::WUSR).map_err(failed)?;
        let (operation, others) = match exclusive {
            true => (
                FlockOperation::NonBlockingLockExclusive,
                "a backup or restore",
            ),
            false => (FlockOperation::NonBlockingLockShared, "a restore"),
        };
        match rustix::fs::flock(&lock, operation) {
            Ok(()) => {
                if exclusive {
                    note_exclusive(&lock).map_err(failed)?;
                }
                Ok(Self { lock })
            }
            Err(Errno::WOULDBLOCK) => Err(Error::new(
                ErrorKind::Busy,
                format!("{others} of customer {} is running", site.customer),
            )),
            Err(other) => Err(failed(other)),
        }
    }

    /// Which exclusive claim was the last one before this, or is this: two shared ones that say the same had no restore between them.
    pub fn last_exclusive(&self) -> Result<LastExclusive> {
        let stat = rustix::fs::fstat(&self.lock)
            .map_err(|e| Error::io("cannot look at the lock of a customer", e.into()))?;
        let nanoseconds = i64::try_from(stat.st_mtime_nsec).unwrap_or(0);
        Ok(LastExclusive(stat.st_mtime, nanoseconds))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // Closing is not enough: a program that is about to be started by another thread has the file, too, until it runs.
        if let Err(e) = rustix::fs::flock(&self.lock, FlockOperation::Unlock) {
            tracing::warn!("the lock of a customer was not given up at once: {e}");
        }
    }
}

/// The time of the file is that of the last exclusive claim.
fn note_exclusive(lock: &OwnedFd) -> Result<(), Errno> {
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: UTIME_NOW,
    };
    let times = Timestamps {
        last_access: now,
        last_modification: now,
    };
    rustix::fs::futimens(lock, &times)
}
