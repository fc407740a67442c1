//! The file that makes the web server answer "maintenance".

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::BorrowedFd;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::dirs;
use crate::error::{Error, Result};

/// How the file begins when it is ours.
const MARK: &str = "shophosting-backup ";

/// How often something that comes into the way meanwhile is moved out of it.
const MOST_TRIES: usize = 5;

pub(super) fn on(site: BorrowedFd<'_>, file: &Path, why: &str) -> Result<bool> {
    let io = |e: Errno| Error::io(file.display().to_string(), e.into());
    let dir = dirs::open_parent(site, file, true).map_err(io)?;
    let name = dirs::last_name(file).map_err(io)?;
    for _ in 0..MOST_TRIES {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(&dir, name, flags, Mode::from_raw_mode(0o644)) {
            Ok(created) => {
                let text = format!("{MARK}{why}, since {}\n", jiff::Timestamp::now());
                return File::from(created)
                    .write_all(text.as_bytes())
                    .map(|()| true)
                    .map_err(|e| Error::io(file.display().to_string(), e));
            }
            Err(Errno::EXIST) => {}
            Err(other) => return Err(io(other)),
        }
        match dirs::stat(&dir, name)
            .map_err(io)?
            .as_ref()
            .map(dirs::file_type)
        {
            None => {}
            Some(FileType::RegularFile) => {
                return is_ours(&dir, name).map_err(|e| Error::io(file.display().to_string(), e));
            }
            Some(_) => {
                // The customer's, or an intruder's: no reason to fail his restore, none to destroy it either.
                let mut aside = name.to_owned();
                aside.push(format!(".moved-{:016x}", rand::random::<u64>()));
                match rustix::fs::renameat_with(&dir, name, &dir, &aside, RenameFlags::NOREPLACE) {
                    Ok(()) | Err(Errno::NOENT) => {}
                    Err(other) => return Err(io(other)),
                }
            }
        }
    }
    Err(io(Errno::EXIST))
}

pub(super) fn off(site: BorrowedFd<'_>, file: &Path) -> Result<()> {
    let io = |e: Errno| Error::io(file.display().to_string(), e.into());
    let dir = match dirs::open_parent(site, file, false) {
        // Without the directory there is no file.
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
        other => other.map_err(io)?,
    };
    let name = dirs::last_name(file).map_err(io)?;
    let is_file = dirs::stat(&dir, name)
        .map_err(io)?
        .is_some_and(|stat| dirs::file_type(&stat) == FileType::RegularFile);
    if !is_file || !is_ours(&dir, name).map_err(|e| Error::io(file.display().to_string(), e))? {
        return Ok(());
    }
    match rustix::fs::unlinkat(&dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(other) => Err(io(other)),
    }
}

fn is_ours(dir: &std::os::fd::OwnedFd, name: &std::ffi::OsStr) -> std::io::Result<bool> {
    // It may have become a FIFO meanwhile: that must not block.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::openat(dir, name, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(Errno::NOENT | Errno::LOOP) => return Ok(false),
        Err(other) => return Err(other.into()),
    };
    let mut start = Vec::new();
    file.take(MARK.len() as u64).read_to_end(&mut start)?;
    // One that is empty is ours too: a full disk, or a crash between creating and writing.
    Ok(start.is_empty() || start == MARK.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::fs::symlink;

    use super::*;

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
        std::fs::write(bed.path(), "moving house").unwrap();
        assert!(!bed.on());
        bed.off();
        assert_eq!(std::fs::read(bed.path()).unwrap(), b"moving house");
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
