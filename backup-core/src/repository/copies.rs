//! Copies of index and snapshot files on this machine's disk: whoever opens a repository reads from its server only what is new there.
//!
//! The name of such a file is the hash of what is in it, so a copy is as good as the file, and sealed as it is. Copies of what the repository has no more go with
//! the next listing. Never: a copy used that is not what its name says, or of a file that was not just listed at the server with the same size: it tells
//! nothing of what is there; a check of the repository that looks at copies; an operation that fails because there are none.

use std::collections::BTreeSet;
use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use rustix::fs::{OFlags, statvfs};
use sha2::{Digest, Sha256};

use crate::error::Result;
use crate::storage::{FileId, FileKind};

/// So much stays free of the disk: what else is kept there matters more.
const FREE_BYTES: u64 = if cfg!(test) { 32 << 20 } else { 1 << 30 };

/// The copies of one repository's files.
#[derive(Debug)]
pub(super) struct Copies {
    directory: PathBuf,
}

impl Copies {
    /// Nobody else may read or write in `directory`. It need not be there yet.
    pub(super) fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// The copy of a file that was just listed with this size, or what `read` gives, of which a copy is kept.
    pub(super) fn read(
        &self,
        kind: FileKind,
        id: &FileId,
        size: u64,
        read: impl FnOnce() -> Result<Bytes>,
    ) -> Result<Bytes> {
        if let Some(copy) = self.find(kind, id, size) {
            return Ok(copy);
        }
        let content = read()?;
        self.keep(kind, id, &content);
        Ok(content)
    }

    /// Keep a copy, if there is room for it.
    pub(super) fn keep(&self, kind: FileKind, id: &FileId, content: &[u8]) {
        if hash_of(content) != *id {
            return;
        }
        if let Err(error) = self.write(kind, id, content) {
            tracing::debug!(
                "no copy of {id} is kept in {}: {error}",
                self.directory.display()
            );
        }
    }

    /// Remove all but the copies of these files.
    pub(super) fn retain(&self, kind: FileKind, files: &BTreeSet<FileId>) {
        let Ok(entries) = std::fs::read_dir(self.directory_of(kind)) else {
            return;
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let id = name.to_str().and_then(|name| name.parse().ok());
            if id.is_none_or(|id| !files.contains(&id)) {
                // What is still there next time is removed then.
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }

    fn find(&self, kind: FileKind, id: &FileId, size: u64) -> Option<Bytes> {
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(flags.bits().cast_signed())
            .open(self.path(kind, id))
            .ok()?;
        let found = file.metadata().ok()?;
        if !found.is_file() || found.len() != size {
            return None;
        }
        let mut content = Vec::new();
        file.take(size).read_to_end(&mut content).ok()?;
        (hash_of(&content) == *id).then(|| content.into())
    }

    /// Not synced: what a power cut leaves of it is no copy.
    fn write(&self, kind: FileKind, id: &FileId, content: &[u8]) -> io::Result<()> {
        let directory = self.directory_of(kind);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory)?;
        if !has_room(&directory, content.len() as u64)? {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let draft = directory.join(format!("draft-{:016x}", rand::random::<u64>()));
        let written = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
            .open(&draft)
            .and_then(|mut file| file.write_all(content))
            .and_then(|()| std::fs::rename(&draft, self.path(kind, id)));
        if written.is_err() {
            // Who removes copies of what is gone removes it otherwise.
            let _ = std::fs::remove_file(&draft);
        }
        written
    }

    fn directory_of(&self, kind: FileKind) -> PathBuf {
        self.directory.join(kind.directory().unwrap_or_default())
    }

    fn path(&self, kind: FileKind, id: &FileId) -> PathBuf {
        self.directory_of(kind).join(id.to_string())
    }
}

fn has_room(directory: &Path, bytes: u64) -> io::Result<bool> {
    let space = statvfs(directory)?;
    Ok(space.f_bavail.saturating_mul(space.f_frsize) >= FREE_BYTES.saturating_add(bytes))
}

fn hash_of(content: &[u8]) -> FileId {
    FileId(Sha256::digest(content).into())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use xtask::mount::Mount;

    use super::*;
    use crate::error::{Error, ErrorKind};

    const KIND: FileKind = FileKind::Index;

    fn nothing() -> Result<Bytes> {
        Err(Error::new(ErrorKind::NotFound, "the server has none"))
    }

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap();
        let name = |entry: io::Result<fs::DirEntry>| entry.unwrap().file_name();
        let mut names: Vec<_> = entries
            .map(|entry| name(entry).into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_that_was_read_once_is_read_here_from_then_on_and_by_nobody_else() {
        let scratch = tempfile::tempdir().unwrap();
        let directory = scratch.path().join("copies/of one");
        let copies = Copies::new(directory.clone());
        let content = Bytes::from("an index");
        let id = hash_of(&content);
        copies.read(KIND, &id, 8, nothing).unwrap_err();
        let read = copies.read(KIND, &id, 8, || Ok(content.clone())).unwrap();
        assert_eq!(read, content);
        assert_eq!(copies.read(KIND, &id, 8, nothing).unwrap(), content);
        let another = Copies::new(directory.clone());
        assert_eq!(another.read(KIND, &id, 8, nothing).unwrap(), content);
        // One of another kind is another one.
        copies
            .read(FileKind::Snapshot, &id, 8, nothing)
            .unwrap_err();
        // What the server has of it is not whole: that is for whoever reads it there to say.
        copies.read(KIND, &id, 7, nothing).unwrap_err();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&directory), 0o700);
        assert_eq!(mode(&directory.join("index")), 0o700);
        assert_eq!(mode(&copies.path(KIND, &id)), 0o600);
    }

    #[test]
    fn what_is_not_what_its_name_says_is_no_copy_and_none_is_made_of_it() {
        let scratch = tempfile::tempdir().unwrap();
        let copies = Copies::new(scratch.path().join("copies"));
        let content = Bytes::from("an index");
        let id = hash_of(&content);
        let damaged = Bytes::from("an indeX");
        // The server's own may be damaged: that is for whoever unseals it to say.
        let read = copies.read(KIND, &id, 8, || Ok(damaged.clone())).unwrap();
        assert_eq!(read, damaged);
        copies.read(KIND, &id, 8, nothing).unwrap_err();
        copies.keep(KIND, &id, &content);
        let path = copies.path(KIND, &id);
        for broken in ["an indeX", "an ind", ""] {
            fs::write(&path, broken).unwrap();
            copies.read(KIND, &id, 8, nothing).unwrap_err();
        }
        // Nor is what lies elsewhere, or what nobody could read to its end.
        let elsewhere = scratch.path().join("elsewhere");
        fs::write(&elsewhere, &content).unwrap();
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &path).unwrap();
        copies.read(KIND, &id, 8, nothing).unwrap_err();
        fs::remove_file(&path).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RUSR).unwrap();
        copies.read(KIND, &id, 8, nothing).unwrap_err();
        let read = copies.read(KIND, &id, 8, || Ok(content.clone())).unwrap();
        assert_eq!(read, content);
        assert_eq!(copies.read(KIND, &id, 8, nothing).unwrap(), content);
    }

    #[test]
    fn copies_of_what_is_gone_go_and_so_does_what_a_dead_process_left() {
        let scratch = tempfile::tempdir().unwrap();
        let copies = Copies::new(scratch.path().join("copies"));
        // There may be none yet.
        copies.retain(KIND, &BTreeSet::new());
        let ids: Vec<FileId> = ["one", "another"]
            .map(|content| {
                let id = hash_of(content.as_bytes());
                copies.keep(KIND, &id, content.as_bytes());
                id
            })
            .into();
        fs::write(copies.directory_of(KIND).join("draft-1"), "half").unwrap();
        copies.retain(KIND, &ids.iter().copied().collect());
        assert_eq!(names(&copies.directory_of(KIND)).len(), 2);
        copies.retain(KIND, &BTreeSet::from([ids[0]]));
        assert_eq!(names(&copies.directory_of(KIND)), [ids[0].to_string()]);
    }

    #[test]
    fn where_there_is_little_room_nothing_is_kept_and_all_goes_on() {
        let scratch = tempfile::tempdir().unwrap();
        let small = Mount::tmpfs(scratch.path(), "size=16m,mode=700").unwrap();
        let copies = Copies::new(small.path().join("copies"));
        let content = Bytes::from("an index");
        let id = hash_of(&content);
        let read = copies.read(KIND, &id, 8, || Ok(content.clone())).unwrap();
        assert_eq!(read, content);
        copies.read(KIND, &id, 8, nothing).unwrap_err();
        assert_eq!(names(&copies.directory_of(KIND)), [] as [String; 0]);
    }
}
