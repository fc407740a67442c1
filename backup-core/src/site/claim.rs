//! Who is at work on a customer: any number of backups, or one restore.
//!
//! A lock of the kernel on a file that only root can reach: it goes with the process that holds it, however that ends. The file
//! stays, for one that is removed could be locked by two. Never: a wait for somebody else.

use std::os::fd::OwnedFd;

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::{Site, staging};
use crate::error::{Error, ErrorKind, Result};

/// A customer that nobody else restores, or, if it is exclusive, that nobody else is at work on at all, for as long as this lives.
#[derive(Debug)]
#[must_use = "the customer is given up when this is dropped"]
pub struct Claim {
    _lock: OwnedFd,
}

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
            Ok(()) => Ok(Self { _lock: lock }),
            Err(Errno::WOULDBLOCK) => Err(Error::new(
                ErrorKind::Busy,
                format!("{others} of customer {} is running", site.customer),
            )),
            Err(other) => Err(failed(other)),
        }
    }
}
