//! Contents that the site has as they were: taken from there, they need not be fetched.
//!
//! The live tree is a tenant's, who may change it at any instant. So nothing that was looked at there is believed: what ended up in the staged
//! file, which is ours alone, is compared with the ids of its blobs. Never: anything opened but a regular file, or through a link; an error of
//! the live tree that is more than a reason to fetch.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::{FallocateFlags, FileType, Mode, OFlags};
use rustix::fs::{copy_file_range, fallocate, fstat, ftruncate, open};
use rustix::io::Errno;

use super::super::blobs;
use super::super::seal;
use super::below::open_below;
use super::plan::{Content, Entry, Kind, Place, RestorePlan};
use super::stage::{Progress, Staged, timespec};
use crate::error::Result;
use crate::progress::Cancel;

impl Staged<'_> {
    /// Fill the files that are unchanged in `live`; gives the places of the others' pieces.
    pub(super) fn take_from_live(
        &self,
        live: BorrowedFd<'_>,
        progress: &Progress<'_>,
        cancel: &Cancel,
    ) -> Result<Vec<Place>> {
        let plan = self.plan;
        let taken = AtomicU32::new(0);
        let next = || {
            let entry = taken.fetch_add(1, Ordering::Relaxed);
            (entry < plan.entries.count()).then_some(entry)
        };
        let missing = Mutex::new(Vec::new());
        blobs::work_off(blobs::THREADS, next, |entry| {
            let entry = plan.entries.get(entry)?;
            let Kind::File(content) = entry.kind else {
                return Ok(());
            };
            if content.pieces == 0 {
                return Ok(());
            }
            cancel.check()?;
            let is_taken = self.take_file(live, &entry, &content)?;
            for piece in plan.pieces.range(content.numbers()) {
                let (number, piece) = piece?;
                if is_taken {
                    progress.done(&piece);
                } else {
                    let mut missing = missing.lock().unwrap_or_else(PoisonError::into_inner);
                    missing.push(piece.place(number));
                }
            }
            Ok(())
        })?;
        Ok(missing.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether the staged file has its content now; otherwise it is empty as before.
    fn take_file(&self, live: BorrowedFd<'_>, entry: &Entry, content: &Content) -> Result<bool> {
        let bytes = content.bytes;
        let path = self.plan.entry_path(entry)?;
        let Ok(Some(from)) = open_unchanged(live, &path, entry, bytes) else {
            return Ok(false);
        };
        let failed = |error| self.failed("fill", &path, error);
        let to = open_below(self.target, &path, OFlags::RDWR | OFlags::CLOEXEC).map_err(failed)?;
        let to = File::from(to);
        if copy(&from, &to, bytes).is_ok() && holds(&to, self.plan, content)? {
            return Ok(true);
        }
        ftruncate(&to, 0)
            .and_then(|()| ftruncate(&to, bytes))
            .map_err(failed)?;
        Ok(false)
    }
}

/// The regular file of this path, if it has the size and the time that the snapshot says.
fn open_unchanged(
    live: BorrowedFd<'_>,
    path: &Path,
    entry: &Entry,
    bytes: u64,
) -> Result<Option<File>, Errno> {
    // What opening does to a device or a pipe is not done to it.
    let found = open_below(
        live,
        path,
        OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
    )?;
    let stat = fstat(&found)?;
    let time = timespec(entry.look.mtime);
    let is_unchanged = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
        && u64::try_from(stat.st_size) == Ok(bytes)
        && stat.st_mtime == time.tv_sec
        && i64::try_from(stat.st_mtime_nsec) == Ok(time.tv_nsec);
    if !is_unchanged {
        return Ok(None);
    }
    let same = Path::new("/proc/self/fd").join(found.as_fd().as_raw_fd().to_string());
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    open(&same, flags, Mode::empty()).map(|file| Some(file.into()))
}

/// By the kernel, which shares the blocks where the file system can.
fn copy(from: &File, to: &File, bytes: u64) -> Result<(), Errno> {
    let (mut read, mut written) = (0, 0);
    while written < bytes {
        let left = usize::try_from(bytes - written).unwrap_or(usize::MAX);
        let count = copy_file_range(from, Some(&mut read), to, Some(&mut written), left)?;
        if count == 0 {
            // It became shorter.
            return Err(Errno::IO);
        }
    }
    Ok(())
}

/// Whether a file of ours has this content. What is nothing but zeros becomes a hole.
fn holds(file: &File, plan: &RestorePlan, content: &Content) -> Result<bool> {
    let mut found = Vec::new();
    for piece in plan.pieces.range(content.numbers()) {
        let (_, piece) = piece?;
        found.resize(usize::try_from(piece.bytes()).unwrap_or(usize::MAX), 0);
        let is_read = file.read_exact_at(&mut found, piece.offset).is_ok();
        if !is_read || seal::hash(&found) != piece.id {
            return Ok(false);
        }
        if found.iter().all(|byte| *byte == 0) {
            let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            // It saves room, nothing else.
            let _ = fallocate(file, hole, piece.offset, piece.bytes());
        }
    }
    Ok(true)
}
