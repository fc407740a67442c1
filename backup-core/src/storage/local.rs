//! A repository in a directory of this machine.
//!
//! Never: a file under its final name before all of it is on the disk; a directory that cannot be read taken for an
//! empty one.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind as IoKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use super::{
    FileId, FileKind, Location, Storage, Trial, all_directories, describe, temporary, trial,
};
use crate::error::{Error, ErrorKind, Result};
use crate::progress::Cancel;

const DIRECTORY_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;

/// A repository in a local directory.
#[derive(Debug, Clone)]
pub(super) struct LocalStorage {
    location: Location,
    root: PathBuf,
}

impl LocalStorage {
    /// Remembers the directory and removes what crashed runs left in it long ago; whether it exists shows when it is used.
    pub(super) fn open(location: &Location, root: PathBuf) -> Self {
        let storage = Self {
            location: location.clone(),
            root,
        };
        storage.remove_abandoned();
        storage
    }

    fn directory(&self, kind: FileKind, id: &FileId) -> PathBuf {
        // Joining an empty path would leave a slash at the end.
        match kind.directory_of(id) {
            directory if directory.is_empty() => self.root.clone(),
            directory => self.root.join(directory),
        }
    }

    fn path(&self, kind: FileKind, id: &FileId) -> PathBuf {
        self.directory(kind, id).join(kind.file_name(id))
    }

    /// Entries of one directory with their sizes. A directory that does not exist is [`ErrorKind::NotFound`].
    fn list_directory(&self, directory: &Path, found: &mut Vec<(FileId, u64)>) -> Result<()> {
        let failed = |error| Error::io(format!("cannot list {}", directory.display()), error);
        for entry in fs::read_dir(directory).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let Some(id) = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok())
            else {
                continue;
            };
            match fs::metadata(entry.path()) {
                Ok(metadata) if metadata.is_file() => found.push((id, metadata.len())),
                Ok(_) => {}
                // Removed by somebody since we read its name.
                Err(error) if error.kind() == IoKind::NotFound => {}
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(())
    }

    fn open_file(&self, kind: FileKind, id: &FileId) -> Result<(File, u64)> {
        let path = self.path(kind, id);
        let failed = |error| Error::io(format!("cannot open {}", path.display()), error);
        let file = File::open(&path).map_err(failed)?;
        let size = file.metadata().map_err(failed)?.len();
        Ok((file, size))
    }

    /// Best effort: what stays is only in the way of free space.
    fn remove_abandoned(&self) {
        let now = SystemTime::now();
        let directories = all_directories().map(|directory| self.root.join(directory));
        for directory in std::iter::once(self.root.clone()).chain(directories) {
            let Ok(entries) = fs::read_dir(&directory) else {
                continue;
            };
            for entry in entries.flatten() {
                let abandoned = entry.file_name().to_str().is_some_and(temporary::is_ours)
                    && entry
                        .metadata()
                        .and_then(|metadata| metadata.modified())
                        .is_ok_and(|modified| {
                            now.duration_since(modified)
                                .is_ok_and(|age| age > temporary::ABANDONED_AFTER)
                        });
                if abandoned && fs::remove_file(entry.path()).is_ok() {
                    tracing::info!(path = %entry.path().display(), "removed an abandoned temporary file");
                }
            }
        }
    }
}

impl Storage for LocalStorage {
    fn location(&self) -> &str {
        self.location.as_str()
    }

    fn create(&self) -> Result<()> {
        create_directory(&self.root, true)?;
        for directory in all_directories() {
            create_directory(&self.root.join(directory), false)?;
        }
        sync_directory(&self.root)?;
        sync_directory(&self.root.join("data"))?;
        self.remove_abandoned();
        Ok(())
    }

    fn list(&self, kind: FileKind) -> Result<Vec<(FileId, u64)>> {
        let mut found = Vec::new();
        let Some(directory) = kind.directory() else {
            let path = self.root.join("config");
            return match fs::metadata(&path) {
                Ok(metadata) => Ok(vec![(FileId::default(), metadata.len())]),
                Err(error) if error.kind() == IoKind::NotFound => Ok(found),
                Err(error) => Err(Error::io(
                    format!("cannot look at {}", path.display()),
                    error,
                )),
            };
        };
        let directory = self.root.join(directory);
        if kind != FileKind::Pack {
            self.list_directory(&directory, &mut found)?;
            return Ok(found);
        }
        // A repository without any pack has `data` at least: if that is gone, so is the repository.
        fs::read_dir(&directory)
            .map_err(|error| Error::io(format!("cannot list {}", directory.display()), error))?;
        for first in 0..=u8::MAX {
            match self.list_directory(&directory.join(format!("{first:02x}")), &mut found) {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                outcome => outcome?,
            }
        }
        Ok(found)
    }

    fn read(&self, kind: FileKind, id: &FileId) -> Result<Bytes> {
        let (mut file, size) = self.open_file(kind, id)?;
        let mut content = Vec::with_capacity(usize::try_from(size).unwrap_or_default());
        file.read_to_end(&mut content).map_err(|error| {
            Error::io(
                format!("cannot read {}", self.path(kind, id).display()),
                error,
            )
        })?;
        Ok(content.into())
    }

    fn read_range(&self, kind: FileKind, id: &FileId, offset: u64, length: u64) -> Result<Bytes> {
        let (mut file, size) = self.open_file(kind, id)?;
        // Before the memory for it is taken.
        super::check_range(kind, id, offset, length, size)?;
        let failed = |error| {
            Error::io(
                format!("cannot read {}", self.path(kind, id).display()),
                error,
            )
        };
        file.seek(SeekFrom::Start(offset)).map_err(failed)?;
        let mut content = Vec::with_capacity(usize::try_from(length).unwrap_or_default());
        file.take(length)
            .read_to_end(&mut content)
            .map_err(failed)?;
        super::check_range(kind, id, offset, length, offset + content.len() as u64)?;
        Ok(content.into())
    }

    fn write(&self, kind: FileKind, id: &FileId, content: &[Bytes]) -> Result<()> {
        let directory = self.directory(kind, id);
        let target = self.path(kind, id);
        let unfinished = match Unfinished::create(&directory) {
            // Repositories of other programs make the directories below `data` when they are first needed.
            Err(error) if kind == FileKind::Pack && error.kind() == ErrorKind::NotFound => {
                create_directory(&directory, false)?;
                sync_directory(&self.root.join("data"))?;
                Unfinished::create(&directory)?
            }
            outcome => outcome?,
        };
        unfinished.publish(content, &target, kind == FileKind::Config)?;
        sync_directory(&directory)
    }

    fn remove(&self, kind: FileKind, id: &FileId) -> Result<()> {
        match fs::remove_file(self.path(kind, id)) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == IoKind::NotFound => Ok(()),
            Err(error) => Err(Error::io(
                format!(
                    "cannot remove {} from {}",
                    describe(kind, id),
                    self.root.display()
                ),
                error,
            )),
        }
    }

    /// There are no outages that could be waited out.
    fn with_stop(&self, _stop: &Cancel) -> Arc<dyn Storage> {
        Arc::new(self.clone())
    }
}

/// See [`super::try_out`].
pub(super) fn try_out(root: &Path) -> Result<Trial> {
    let directory = root.join("locks");
    let failed = |error| Error::io(format!("cannot try out {}", directory.display()), error);
    let before = SystemTime::now();
    let unfinished = Unfinished::create(&directory)?;
    let target = directory.join(temporary::new_name());
    unfinished.publish(&[Bytes::from_static(b"a trial\n")], &target, false)?;
    let stamped = fs::metadata(&target).and_then(|metadata| metadata.modified());
    let after = SystemTime::now();
    let synced = sync_directory(&directory);
    fs::remove_file(&target).map_err(failed)?;
    synced?;
    let space = rustix::fs::statvfs(&directory).map_err(|error| failed(error.into()))?;
    Ok(Trial {
        bytes_available: Some(space.f_bavail.saturating_mul(space.f_frsize)),
        can_replace: true,
        can_sync: true,
        clock_ahead: Some(trial::clock_ahead(before, stamped.map_err(failed)?, after)),
    })
}

/// See [`super::has_directory`].
pub(super) fn has_directory(path: &Path, may_be_empty: bool) -> Result<bool> {
    match fs::read_dir(path) {
        Ok(mut entries) => Ok(may_be_empty || entries.next().is_some()),
        Err(error) if error.kind() == IoKind::NotFound => Ok(false),
        Err(error) => Err(Error::io(format!("cannot list {}", path.display()), error)),
    }
}

/// A file under its temporary name; removed on drop unless it was published.
struct Unfinished {
    file: File,
    path: Option<PathBuf>,
}

impl Unfinished {
    fn create(directory: &Path) -> Result<Self> {
        let path = directory.join(temporary::new_name());
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(FILE_MODE)
            .open(&path)
            .map_err(|error| {
                Error::io(
                    format!("cannot create a file in {}", directory.display()),
                    error,
                )
            })?;
        Ok(Self {
            file,
            path: Some(path),
        })
    }

    /// With `only_new`, unless there is a file of that name with something else in it.
    fn publish(mut self, content: &[Bytes], target: &Path, only_new: bool) -> Result<()> {
        let failed = |error| Error::io(format!("cannot write {}", target.display()), error);
        let mut expected = 0;
        for piece in content {
            self.file.write_all(piece).map_err(failed)?;
            expected += piece.len() as u64;
        }
        let size = self.file.metadata().map_err(failed)?.len();
        if size != expected {
            return Err(Error::new(
                ErrorKind::Failed,
                format!(
                    "{} came out with {size} bytes instead of {expected}; it was not kept",
                    target.display()
                ),
            ));
        }
        self.file.sync_all().map_err(failed)?;
        if let Some(path) = &self.path {
            match only_new {
                true => match rename_to_new(path, target) {
                    Err(error) if error.kind() == IoKind::AlreadyExists => {
                        return match super::is_made_of(&fs::read(target).map_err(failed)?, content)
                        {
                            true => Ok(()),
                            false => Err(super::made_by_another(target.display())),
                        };
                    }
                    renamed => renamed.map_err(failed)?,
                },
                false => fs::rename(path, target).map_err(failed)?,
            }
        }
        self.path = None;
        Ok(())
    }
}

/// Rename a file; [`IoKind::AlreadyExists`] where there is one of the new name.
fn rename_to_new(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {}
        outcome => return Ok(outcome?),
    }
    // Over NFS, for one.
    match fs::hard_link(from, to) {
        Err(error) if matches!(error.kind(), IoKind::PermissionDenied | IoKind::Unsupported) => {}
        linked => return linked.and_then(|()| fs::remove_file(from)),
    }
    // Some file systems of programs know neither.
    match fs::symlink_metadata(to) {
        Ok(_) => Err(IoKind::AlreadyExists.into()),
        Err(error) if error.kind() == IoKind::NotFound => fs::rename(from, to),
        Err(error) => Err(error),
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(path) = &self.path
            && let Err(error) = fs::remove_file(path)
        {
            tracing::warn!(path = %path.display(), %error, "a temporary file stays behind");
        }
    }
}

fn create_directory(path: &Path, with_parents: bool) -> Result<()> {
    match DirBuilder::new()
        .recursive(with_parents)
        .mode(DIRECTORY_MODE)
        .create(path)
    {
        Err(error) if error.kind() == IoKind::AlreadyExists && path.is_dir() => Ok(()),
        outcome => outcome.map_err(|error| {
            Error::io(
                format!("cannot create the directory {}", path.display()),
                error,
            )
        }),
    }
}

fn sync_directory(path: &Path) -> Result<()> {
    File::open(path)
        .and_then(|directory| directory.sync_all())
        .map_err(|error| Error::io(format!("cannot make {} durable", path.display()), error))
}
