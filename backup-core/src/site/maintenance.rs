//! The file that makes the web server answer "maintenance".
//!
//! Ours begins with a mark, and has its name only once it is whole: one without, be it empty, is somebody else's. Never: such a file
//! overwritten or removed; a link followed.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::dirs;
use crate::error::{Error, Result};
use crate::fault;

/// How the file begins when it is ours.
const MARK: &str = "shophosting-backup ";

/// What is added to its name while it is written, before a number.
const DRAFT: &str = "draft";

/// How often something that comes into the way meanwhile is moved out of it.
const MOST_TRIES: usize = 5;

/// Whether maintenance is on, and whose doing that is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Maintenance {
    /// The site is open.
    Off,
    /// A restore closed it.
    Ours,
    /// Somebody else did.
    Others,
}

pub(super) fn look(site: BorrowedFd<'_>, file: &Path) -> Result<Maintenance> {
    let io = |e: std::io::Error| Error::io(file.display().to_string(), e);
    let dir = match dirs::open_parent(site, file, false) {
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(Maintenance::Off),
        other => other.map_err(|e| io(e.into()))?,
    };
    let name = dirs::last_name(file).map_err(|e| io(e.into()))?;
    let found = dirs::stat(&dir, name).map_err(|e| io(e.into()))?;
    Ok(match found.as_ref().map(dirs::file_type) {
        None => Maintenance::Off,
        Some(FileType::RegularFile) if is_ours(&dir, name).map_err(io)? => Maintenance::Ours,
        Some(_) => Maintenance::Others,
    })
}

pub(super) fn on(site: BorrowedFd<'_>, file: &Path, why: &str) -> Result<bool> {
    let io = |e: std::io::Error| Error::io(file.display().to_string(), e);
    let dir = dirs::open_parent(site, file, true).map_err(|e| io(e.into()))?;
    let name = dirs::last_name(file).map_err(|e| io(e.into()))?;
    let text = format!("{MARK}{why}, since {}\n", jiff::Timestamp::now());
    for _ in 0..MOST_TRIES {
        match dirs::stat(&dir, name)
            .map_err(|e| io(e.into()))?
            .as_ref()
            .map(dirs::file_type)
        {
            None => {
                if publish(&dir, name, &text).map_err(io)? {
                    return Ok(true);
                }
            }
            Some(FileType::RegularFile) => return is_ours(&dir, name).map_err(io),
            Some(_) => {
                // The customer's, or an intruder's: no reason to fail his restore, none to destroy it either.
                let aside = beside(name, "moved");
                match rustix::fs::renameat_with(&dir, name, &dir, &aside, RenameFlags::NOREPLACE) {
                    Ok(()) | Err(Errno::NOENT) => {}
                    Err(other) => return Err(io(other.into())),
                }
            }
        }
    }
    Err(io(Errno::EXIST.into()))
}

/// Write the file under another name and give it its own where nothing has that; false where something has, or where the
/// customer put something else in its place meanwhile.
fn publish(dir: &OwnedFd, name: &OsStr, text: &str) -> std::io::Result<bool> {
    let draft = beside(name, DRAFT);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut created = File::from(rustix::fs::openat(
        dir,
        &draft,
        flags,
        Mode::from_raw_mode(0o644),
    )?);
    let published = created
        .write_all(text.as_bytes())
        .and_then(|()| created.sync_all())
        .and_then(|()| {
            fault::point("in closing").map_err(std::io::Error::other)?;
            match rustix::fs::renameat_with(dir, &draft, dir, name, RenameFlags::NOREPLACE) {
                Ok(()) => {}
                Err(Errno::EXIST) => return Ok(false),
                Err(other) => return Err(other.into()),
            }
            rustix::fs::fsync(dir)?;
            let written = rustix::fs::fstat(&created)?;
            let there = dirs::stat(dir, name)?;
            Ok(there.is_some_and(|there| there.st_ino == written.st_ino))
        });
    if !matches!(published, Ok(true)) {
        // Best effort: nobody takes it for anything.
        let _ = rustix::fs::unlinkat(dir, &draft, AtFlags::empty());
    }
    published
}

/// A name that nobody has, for something of ours or something in our way.
fn beside(name: &OsStr, what: &str) -> OsString {
    let mut beside = name.to_owned();
    beside.push(format!(".{what}-{:016x}", rand::random::<u64>()));
    beside
}

pub(super) fn off(site: BorrowedFd<'_>, file: &Path) -> Result<()> {
    let io = |e: Errno| Error::io(file.display().to_string(), e.into());
    let dir = match dirs::open_parent(site, file, false) {
        // Without the directory there is no file.
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
        other => other.map_err(io)?,
    };
    let name = dirs::last_name(file).map_err(io)?;
    remove_drafts(&dir, name).map_err(io)?;
    let is_file = dirs::stat(&dir, name)
        .map_err(io)?
        .is_some_and(|stat| dirs::file_type(&stat) == FileType::RegularFile);
    if !is_file || !is_ours(&dir, name).map_err(|e| Error::io(file.display().to_string(), e))? {
        return Ok(());
    }
    match rustix::fs::unlinkat(&dir, name, AtFlags::empty()) {
        // Or it would be back after a power cut, when nobody knows of it any more.
        Ok(()) => rustix::fs::fsync(&dir).map_err(io),
        Err(Errno::NOENT) => Ok(()),
        Err(other) => Err(io(other)),
    }
}

/// What a process left that died while it wrote the file.
fn remove_drafts(dir: &OwnedFd, name: &OsStr) -> std::result::Result<(), Errno> {
    let beginning = [name.as_bytes(), b".", DRAFT.as_bytes(), b"-"].concat();
    let is_draft = |found: &OsStr| {
        let number = found.as_bytes().strip_prefix(beginning.as_slice());
        number.is_some_and(|number| number.len() == 16 && number.iter().all(u8::is_ascii_hexdigit))
    };
    for found in dirs::names(dir)? {
        let found = found?;
        let is_file = || -> std::result::Result<bool, Errno> {
            let stat = dirs::stat(dir, &found)?;
            Ok(stat.is_some_and(|stat| dirs::file_type(&stat) == FileType::RegularFile))
        };
        if is_draft(&found) && is_file()? {
            match rustix::fs::unlinkat(dir, &found, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT | Errno::ISDIR) => {}
                Err(other) => return Err(other),
            }
        }
    }
    Ok(())
}

fn is_ours(dir: &OwnedFd, name: &OsStr) -> std::io::Result<bool> {
    // It may have become a FIFO meanwhile: that must not block.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::openat(dir, name, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(Errno::NOENT | Errno::LOOP) => return Ok(false),
        Err(other) => return Err(other.into()),
    };
    let mut start = Vec::new();
    file.take(MARK.len() as u64).read_to_end(&mut start)?;
    Ok(start == MARK.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::fs::symlink;

    use super::super::staging::tests::Mounted;
    use super::*;
    use crate::error::ErrorKind;

    struct Bed {
        dir: tempfile::TempDir,
        fd: std::os::fd::OwnedFd,
        file: &'static Path,
    }

    impl Bed {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let fd = rustix::fs::open(dir.path(), OFlags::RDONLY, Mode::empty()).unwrap();
            Self {
                dir,
                fd,
                file: Path::new(".maintenance"),
            }
        }

        fn path(&self) -> std::path::PathBuf {
            self.dir.path().join(self.file)
        }

        fn names(&self) -> Vec<OsString> {
            let names = std::fs::read_dir(self.dir.path()).unwrap();
            names.map(|entry| entry.unwrap().file_name()).collect()
        }

        fn on(&self) -> bool {
            on(self.fd.as_fd(), self.file, "a restore").unwrap()
        }

        fn off(&self) {
            off(self.fd.as_fd(), self.file).unwrap();
        }
    }

    #[test]
    fn on_and_off_can_be_repeated() {
        let bed = Bed::new();
        bed.off();
        assert!(bed.on() && bed.on());
        let text = std::fs::read_to_string(bed.path()).unwrap();
        assert!(
            text.starts_with("shophosting-backup a restore, since 2"),
            "{text}"
        );
        bed.off();
        bed.off();
        assert!(!bed.path().exists());
    }

    #[test]
    fn what_an_operator_turned_on_stays_on() {
        let bed = Bed::new();
        for text in ["moving house", "", "shophosting"] {
            std::fs::write(bed.path(), text).unwrap();
            assert!(!bed.on());
            bed.off();
            assert_eq!(std::fs::read(bed.path()).unwrap(), text.as_bytes());
        }
    }

    #[test]
    fn nothing_but_the_file_is_left_beside_it() {
        let bed = Bed::new();
        assert!(bed.on());
        assert_eq!(bed.names(), [".maintenance"]);
        bed.off();
        assert!(bed.names().is_empty());
    }

    #[test]
    fn what_comes_into_its_place_meanwhile_is_not_replaced() {
        let bed = Bed::new();
        let dir = bed.fd.as_fd().try_clone_to_owned().unwrap();
        std::fs::write(bed.path(), "").unwrap();
        assert!(!publish(&dir, bed.file.as_os_str(), "ours").unwrap());
        assert_eq!(std::fs::read(bed.path()).unwrap(), b"");
        assert_eq!(bed.names(), [".maintenance"]);
    }

    #[test]
    fn a_full_disk_leaves_no_file_that_would_be_taken_for_an_operators() {
        let mut bed = Bed::new();
        let mounted = Mounted::on(bed.dir.path().to_owned());
        bed.fd = rustix::fs::open(bed.dir.path(), OFlags::RDONLY, Mode::empty()).unwrap();
        let mut filler = File::create(bed.dir.path().join("filler")).unwrap();
        while filler.write_all(&[0; 4096]).is_ok() {}
        let error = on(bed.fd.as_fd(), bed.file, "a restore").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoSpace);
        assert_eq!(bed.names(), ["filler"]);
        // What is open keeps it from being unmounted.
        drop(filler);
        bed.fd = rustix::fs::open("/", OFlags::RDONLY, Mode::empty()).unwrap();
        drop(mounted);
    }

    #[test]
    fn a_link_in_its_place_is_not_written_through() {
        let bed = Bed::new();
        let victim = bed.dir.path().join("victim");
        for target in [
            victim.as_path(),
            Path::new("/nowhere/at/all"),
            Path::new(".maintenance"),
        ] {
            std::fs::write(&victim, "precious").unwrap();
            symlink(target, bed.path()).unwrap();
            bed.off();
            assert!(bed.path().is_symlink(), "not ours to remove");
            assert!(bed.on());
            assert!(bed.path().symlink_metadata().unwrap().is_file());
            assert_eq!(std::fs::read(&victim).unwrap(), b"precious");
            bed.off();
        }
    }

    #[test]
    fn neither_a_directory_nor_a_fifo_in_its_place_stops_a_restore() {
        let bed = Bed::new();
        std::fs::create_dir_all(bed.path().join("x")).unwrap();
        assert!(bed.on());
        bed.off();
        rustix::fs::mknodat(&bed.fd, bed.file, FileType::Fifo, Mode::RUSR, 0).unwrap();
        bed.off();
        assert!(bed.on());
        bed.off();
        let moved = std::fs::read_dir(bed.dir.path()).unwrap().count();
        assert_eq!(moved, 2, "what was in the way is moved, not destroyed");
    }
}
