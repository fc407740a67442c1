//! Opening what lies below a directory: at any depth, and through no link.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;

/// Open a path below a directory, however long it is, and follow no link on the way.
pub(super) fn open_below(
    top: BorrowedFd<'_>,
    path: &Path,
    flags: OFlags,
) -> Result<OwnedFd, Errno> {
    /// Below the kernel's limit for one path.
    const STEP_BYTES: usize = 3000;
    let through = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut above: Option<OwnedFd> = None;
    let mut step = PathBuf::new();
    for name in path.components() {
        if !step.as_os_str().is_empty()
            && step.as_os_str().len() + name.as_os_str().len() >= STEP_BYTES
        {
            above = Some(open_step(above.as_ref(), top, &step, through)?);
            step.clear();
        }
        step.push(name);
    }
    if step.as_os_str().is_empty() {
        step.push(".");
    }
    open_step(above.as_ref(), top, &step, flags)
}

fn open_step(
    above: Option<&OwnedFd>,
    top: BorrowedFd<'_>,
    step: &Path,
    flags: OFlags,
) -> Result<OwnedFd, Errno> {
    let at = above.map_or(top, AsFd::as_fd);
    openat2(
        at,
        step,
        flags,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
    )
}
