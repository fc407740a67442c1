//! Going through directories that somebody else may change: one name at a time, no link followed.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, IFlags, Mode, OFlags, Stat};
use rustix::io::Errno;
use rustix::path::Arg;

/// Open the directory of this name; [`Errno::NOTDIR`] or [`Errno::LOOP`] for anything else. Never blocks.
pub(super) fn open_dir(dir: impl AsFd, name: impl Arg) -> Result<OwnedFd, Errno> {
    const FLAGS: OFlags = OFlags::RDONLY
        .union(OFlags::DIRECTORY)
        .union(OFlags::NOFOLLOW)
        .union(OFlags::CLOEXEC);
    rustix::fs::openat(dir, name, FLAGS, Mode::empty())
}

/// Have what is made in it from now on put where there is room on the disk, and not beside it. Beside it may be what was just removed: ext4 gives no number of a
/// removed file to a new one for some minutes, and looks at all of them again for each. It is only faster: where this is not to be had, all stays as it was.
pub(super) fn spread(dir: impl AsFd) {
    let flags = rustix::fs::ioctl_getflags(&dir);
    if let Ok(flags) = flags
        && !flags.contains(IFlags::TOPDIR)
    {
        let _ = rustix::fs::ioctl_setflags(&dir, flags | IFlags::TOPDIR);
    }
}

/// Open the directory that holds the last name of a relative path; with `make`, those on the way that are missing are made,
/// belonging to whom the top belongs to.
pub(super) fn open_parent(top: impl AsFd, path: &Path, make: bool) -> Result<OwnedFd, Errno> {
    let owner = rustix::fs::fstat(&top)?;
    let mut dir = top
        .as_fd()
        .try_clone_to_owned()
        .map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
    for name in parents(path) {
        let next = match open_dir(&dir, name) {
            Err(Errno::NOENT) if make => {
                make_dir(&dir, name, &owner)?;
                open_dir(&dir, name)
            }
            other => other,
        };
        dir = next?;
    }
    Ok(dir)
}

fn make_dir(dir: &OwnedFd, name: &OsStr, owner: &Stat) -> Result<(), Errno> {
    let uid = rustix::fs::Uid::from_raw(owner.st_uid);
    let gid = rustix::fs::Gid::from_raw(owner.st_gid);
    match rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(0o755)) {
        Ok(()) => rustix::fs::chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW),
        Err(Errno::EXIST) => Ok(()),
        Err(other) => Err(other),
    }
}

/// The names of a relative path before its last.
pub(super) fn parents(path: &Path) -> impl Iterator<Item = &OsStr> {
    path.parent().unwrap_or(Path::new("")).iter()
}

/// The last name of a relative path. The configuration has none without.
pub(super) fn last_name(path: &Path) -> Result<&OsStr, Errno> {
    path.file_name().ok_or(Errno::INVAL)
}

/// What has this name, itself and not what it points to; `None` where nothing has.
pub(super) fn stat(dir: impl AsFd, name: impl Arg) -> Result<Option<Stat>, Errno> {
    match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(other) => Err(other),
    }
}

/// The type that a [`stat`] tells.
pub(super) fn file_type(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// The names in a directory, without `.` and `..`.
pub(super) fn names(
    dir: impl AsFd,
) -> Result<impl Iterator<Item = Result<OsString, Errno>>, Errno> {
    use std::os::unix::ffi::OsStringExt;
    let entries = Dir::read_from(dir)?.filter_map(|entry| match entry {
        Ok(entry) => {
            let name = entry.file_name().to_bytes();
            (name != b"." && name != b"..").then(|| Ok(OsString::from_vec(name.to_vec())))
        }
        Err(e) => Some(Err(e)),
    });
    Ok(entries)
}

/// The bytes that are free for anybody on a directory's file system.
pub(super) fn bytes_available(dir: impl AsFd) -> Result<u64, Errno> {
    let space = rustix::fs::fstatvfs(dir)?;
    Ok(space.f_bavail.saturating_mul(space.f_frsize))
}
