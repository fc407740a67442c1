//! The plan on its way to the disk: everything is created empty and private, then filled, then gets its attributes.

use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use jiff::Timestamp;
use rustix::fs::{AtFlags, Gid, Mode, OFlags, Timespec, Timestamps, Uid};
use rustix::fs::{
    chmodat, chownat, ftruncate, linkat, mkdirat, mknodat, openat, symlinkat, syncfs, utimensat,
};
use rustix::io::Errno;

use super::super::Repository;
use super::super::blobs::{self, Sorted};
use super::below::open_below;
use super::plan::{Entry, Kind, Look, Piece, Place, RestorePlan};
use super::rules::shown;
use crate::error::{Error, ErrorKind, Result};
use crate::progress::{Cancel, Control, Monitor};

/// A plan, and where it goes.
pub(super) struct Staged<'a> {
    pub target: BorrowedFd<'a>,
    pub plan: &'a RestorePlan,
}

/// Counts what is filled.
pub(super) struct Progress<'a> {
    monitor: &'a dyn Monitor,
    /// How many pieces of each file are still to come.
    missing: Vec<AtomicU32>,
}

impl<'a> Progress<'a> {
    fn new(plan: &RestorePlan, monitor: &'a dyn Monitor) -> Result<Self> {
        let mut missing = Vec::with_capacity(plan.entries.count() as usize);
        let mut unfinished = 0;
        for entry in plan.entries.all() {
            let pieces = match entry?.1.kind {
                Kind::File(content) => content.pieces,
                _ => 0,
            };
            unfinished += u64::from(pieces > 0);
            missing.push(AtomicU32::new(pieces));
        }
        // Empty ones and further names are whole already.
        monitor.files_done(plan.files().saturating_sub(unfinished));
        Ok(Self { monitor, missing })
    }

    pub(super) fn done(&self, piece: &Piece) {
        self.monitor.bytes_done(piece.bytes());
        if self.missing[piece.entry as usize].fetch_sub(1, Ordering::Relaxed) == 1 {
            self.monitor.files_done(1);
        }
    }
}

impl Staged<'_> {
    pub(super) fn restore(
        &self,
        repository: &Repository,
        live: Option<BorrowedFd<'_>>,
        control: &Control,
    ) -> Result<()> {
        self.create(control)?;
        let progress = Progress::new(self.plan, &*control.monitor)?;
        let missing = match live {
            Some(live) => self.take_from_live(live, &progress, &control.cancel)?,
            None => {
                let pieces = self.plan.pieces.all();
                let places = pieces.map(|piece| piece.map(|(number, piece)| piece.place(number)));
                places.collect::<Result<_>>()?
            }
        };
        self.fetch(repository, missing, &progress, &control.cancel)?;
        self.set_attributes(control)?;
        syncfs(self.target)
            .map_err(|error| Error::io("cannot write the restored files to the disk", error.into()))
    }

    /// Everything but contents and attributes, private to us.
    fn create(&self, control: &Control) -> Result<()> {
        let plan = self.plan;
        let mut open = OpenDirectories::new(self);
        for directory in 0..plan.directories.count() {
            control.cancel.check()?;
            let Some(above) = plan.above(directory) else {
                continue;
            };
            mkdirat(open.get(above)?, plan.directory_name(directory), Mode::RWXU)
                .map_err(|error| self.not_created(&plan.path(directory), error))?;
        }
        for entry in plan.entries.all() {
            control.cancel.check()?;
            let (_, entry) = entry?;
            let directory = open.get(entry.directory)?;
            let name = plan.name(entry.name)?;
            let private = Mode::RUSR | Mode::WUSR;
            match entry.kind {
                Kind::File(content) => {
                    let flags = OFlags::WRONLY
                        | OFlags::CREATE
                        | OFlags::EXCL
                        | OFlags::NOFOLLOW
                        | OFlags::CLOEXEC;
                    openat(directory, name, flags, private)
                        .and_then(|file| ftruncate(&file, content.bytes))
                }
                Kind::Symlink { target } => symlinkat(plan.name(target)?, directory, name),
                Kind::Special { file_type, device } => {
                    mknodat(directory, name, file_type, private, device)
                }
                // Its first name may come later in the order of directories.
                Kind::HardLink { .. } => continue,
            }
            .or_else(|error| Err(self.not_created(&plan.entry_path(&entry)?, error)))?;
        }
        for entry in plan.entries.all() {
            let (_, entry) = entry?;
            if let Kind::HardLink { of } = entry.kind {
                let first = plan.entries.get(of)?;
                let to = open.open(entry.directory)?;
                let from = open.get(first.directory)?;
                let (first, name) = (plan.name(first.name)?, plan.name(entry.name)?);
                linkat(from, first, &to, name, AtFlags::empty())
                    .or_else(|error| Err(self.not_created(&plan.entry_path(&entry)?, error)))?;
            }
        }
        Ok(())
    }

    fn fetch(
        &self,
        repository: &Repository,
        mut missing: Vec<Place>,
        progress: &Progress<'_>,
        cancel: &Cancel,
    ) -> Result<()> {
        let plan = self.plan;
        missing.sort_unstable();
        let piece = |at: usize| plan.pieces.get(missing[at].piece);
        let blobs = Sorted {
            count: missing.len(),
            get: |at: usize| Ok(plan.blob(&piece(at)?)),
        };
        let (storage, sealer) = (&*repository.storage, &repository.shared.sealer);
        blobs::fetch_sorted(storage, sealer, &blobs, cancel, |at, plain| {
            let piece = piece(at)?;
            // The file has its full length already: a hole stays one.
            if plain.iter().any(|byte| *byte != 0) {
                self.write_at(&plan.entries.get(piece.entry)?, piece.offset, plain)?;
            }
            progress.done(&piece);
            Ok(())
        })
    }

    fn write_at(&self, entry: &Entry, offset: u64, plain: &[u8]) -> Result<()> {
        let path = self.plan.entry_path(entry)?;
        let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = open_below(self.target, &path, flags)
            .map_err(|error| self.failed("open", &path, error))?;
        std::fs::File::from(file)
            .write_all_at(plain, offset)
            .map_err(|error| Error::io(format!("cannot write {}", shown(&path)), error))
    }

    /// Files first, then directories from the deepest up: what is done below a directory changes its time.
    fn set_attributes(&self, control: &Control) -> Result<()> {
        let plan = self.plan;
        let mut open = OpenDirectories::new(self);
        for entry in plan.entries.all() {
            control.cancel.check()?;
            let (_, entry) = entry?;
            if matches!(entry.kind, Kind::HardLink { .. }) {
                continue;
            }
            let is_symlink = matches!(entry.kind, Kind::Symlink { .. });
            let directory = open.get(entry.directory)?;
            self.set_attributes_of(directory, &plan.name(entry.name)?, &entry.look, is_symlink)
                .or_else(|error| Err(error.context(attributes_of(&plan.entry_path(&entry)?))))?;
        }
        for directory in plan.directories.all().rev() {
            let (number, directory) = directory?;
            let above = match plan.above(number) {
                None => self.target,
                Some(above) => open.get(above)?,
            };
            self.set_attributes_of(above, plan.directory_name(number), &directory.look, false)
                .map_err(|error| error.context(attributes_of(&plan.path(number))))?;
        }
        Ok(())
    }

    /// Owner before mode (a change of owner clears setuid), extended attributes before times.
    fn set_attributes_of(
        &self,
        directory: BorrowedFd<'_>,
        name: &OsStr,
        look: &Look,
        is_symlink: bool,
    ) -> Result<()> {
        let failed =
            |what: &str, error: Errno| Error::io(format!("cannot set the {what}"), error.into());
        let user = Some(Uid::from_raw(look.user));
        let group = Some(Gid::from_raw(look.group));
        chownat(directory, name, user, group, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| failed("owner", error))?;
        if !is_symlink {
            let mode = Mode::from_raw_mode(look.permissions);
            chmodat(directory, name, mode, AtFlags::empty())
                .map_err(|error| failed("mode", error))?;
        }
        let at = Path::new("/proc/self/fd")
            .join(directory.as_raw_fd().to_string())
            .join(name);
        for (name, value) in &self.plan.extended(look)? {
            xattr::set(&at, OsStr::from_bytes(name.as_bytes()), value).map_err(|error| {
                Error::io(format!("cannot set the extended attribute {name}"), error)
            })?;
        }
        let time = timespec(look.mtime);
        let times = Timestamps {
            last_access: time,
            last_modification: time,
        };
        utimensat(directory, name, &times, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| failed("times", error))
    }

    /// Everything is new there: what is in the way came from the snapshot itself.
    fn not_created(&self, path: &Path, error: Errno) -> Error {
        if error == Errno::EXIST {
            return Error::new(
                ErrorKind::Damaged,
                format!("the snapshot has two entries of the name {}", shown(path)),
            );
        }
        self.failed("create", path, error)
    }

    pub(super) fn failed(&self, what: &str, path: &Path, error: Errno) -> Error {
        Error::io(
            format!("cannot {what} {} in the staging directory", shown(path)),
            error.into(),
        )
    }
}

fn attributes_of(path: &Path) -> String {
    format!("cannot restore the attributes of {}", shown(path))
}

/// The directory that was used last, kept open: entries come in the order of their directories.
struct OpenDirectories<'a> {
    staged: &'a Staged<'a>,
    last: Option<(u32, OwnedFd)>,
}

impl<'a> OpenDirectories<'a> {
    fn new(staged: &'a Staged<'a>) -> Self {
        Self { staged, last: None }
    }

    fn get(&mut self, directory: u32) -> Result<BorrowedFd<'_>> {
        let opened = match self.last.take() {
            Some(last) if last.0 == directory => last,
            _ => (directory, self.open(directory)?),
        };
        Ok(self.last.insert(opened).1.as_fd())
    }

    fn open(&self, directory: u32) -> Result<OwnedFd> {
        let path = self.staged.plan.path(directory);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        open_below(self.staged.target, &path, flags)
            .map_err(|error| self.staged.failed("open the directory", &path, error))
    }
}

pub(super) fn timespec(time: Timestamp) -> Timespec {
    // Timestamps before 1970 have both parts negative; the kernel wants the nanoseconds positive.
    let nanoseconds = time.as_nanosecond();
    let seconds = nanoseconds.div_euclid(1_000_000_000);
    Timespec {
        tv_sec: i64::try_from(seconds).unwrap_or(i64::MAX),
        tv_nsec: i64::try_from(nanoseconds.rem_euclid(1_000_000_000)).unwrap_or(0),
    }
}
