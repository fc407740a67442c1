//! Comparing what was restored with the snapshot, as it can be read back.
//!
//! Never: anything changed; a difference that is not an error.

use std::fs::File;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::{FileType, OFlags, fstat, readlinkat};

use super::super::{blobs, seal};
use super::below::open_below;
use super::plan::{Content, Entry, Kind, RestorePlan};
use super::rules::shown;
use crate::error::{Error, ErrorKind, Result};
use crate::progress::Cancel;

/// That all of a plan is below `target`: every file with its length, and each piece of it with the hash that is its id; every link with its target.
pub(super) fn check(plan: &RestorePlan, target: BorrowedFd<'_>, cancel: &Cancel) -> Result<()> {
    let taken = AtomicU32::new(0);
    let next = || {
        let entry = taken.fetch_add(1, Ordering::Relaxed);
        (entry < plan.entries.count()).then_some(entry)
    };
    blobs::work_off(blobs::THREADS, next, |number| {
        cancel.check()?;
        let entry = plan.entries.get(number)?;
        let path = plan.entry_path(&entry)?;
        if is_as_planned(plan, &entry, &path, target, cancel)? {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Damaged,
            format!(
                "{} was restored, but is not what the backup has",
                shown(&path)
            ),
        ))
    })
}

fn is_as_planned(
    plan: &RestorePlan,
    entry: &Entry,
    path: &Path,
    target: BorrowedFd<'_>,
    cancel: &Cancel,
) -> Result<bool> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    match entry.kind {
        Kind::File(content) => {
            let file = open_below(target, path, flags).map_err(|e| unreadable(path, e.into()))?;
            let stat = fstat(&file).map_err(|e| unreadable(path, e.into()))?;
            if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile
                || u64::try_from(stat.st_size) != Ok(content.bytes)
            {
                return Ok(false);
            }
            has_content(plan, &content, &File::from(file), path, cancel)
        }
        Kind::Symlink { target: wanted } => {
            let parent = path.parent().unwrap_or(Path::new(""));
            let through = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let directory =
                open_below(target, parent, through).map_err(|e| unreadable(path, e.into()))?;
            let found = readlinkat(directory, plan.name(entry.name)?, Vec::new())
                .map_err(|e| unreadable(path, e.into()))?;
            Ok(found.as_bytes() == plan.name(wanted)?.as_bytes())
        }
        // A name of a file that is looked at anyway; and what has no content.
        Kind::HardLink { .. } | Kind::Special { .. } => {
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            open_below(target, path, flags).map_err(|e| unreadable(path, e.into()))?;
            Ok(true)
        }
    }
}

fn has_content(
    plan: &RestorePlan,
    content: &Content,
    file: &File,
    path: &Path,
    cancel: &Cancel,
) -> Result<bool> {
    let mut found = Vec::new();
    for piece in plan.pieces.range(content.numbers()) {
        cancel.check()?;
        let (_, piece) = piece?;
        found.resize(usize::try_from(piece.bytes()).unwrap_or(usize::MAX), 0);
        file.read_exact_at(&mut found, piece.offset)
            .map_err(|error| unreadable(path, error))?;
        if seal::hash(&found) != piece.id {
            return Ok(false);
        }
    }
    Ok(true)
}

fn unreadable(path: &Path, error: std::io::Error) -> Error {
    Error::io(format!("cannot read the restored {}", shown(path)), error)
}
