//! Where the files of a repository live.
//!
//! One trait, one file a kind. Knows the layout of a restic repository (which directory holds what) and nothing of
//! what is in the files. Never: a file under its final name that is not whole; a listing that leaves something out
//! without an error; a password or key in a message.

mod local;
mod location;
mod options;
#[cfg(feature = "object-storage")]
mod s3;
mod sftp;
mod temporary;
mod trial;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;

use crate::error::{Error, ErrorKind, Result};
use crate::progress::Cancel;

pub use crate::config::AccessKey;
pub use location::Location;
pub use options::StorageOptions;
pub use trial::Trial;

/// Reach the storage of a repository.
///
/// An SFTP server or an object store is asked at once, so that a wrong key, host key, bucket or address shows here: see [`Storage`] for the kinds
/// of errors. Whether there is a repository yet is not looked at.
pub fn open(location: &Location, options: &StorageOptions) -> Result<Arc<dyn Storage>> {
    Ok(match location.place() {
        location::Place::Local(path) => Arc::new(local::LocalStorage::open(location, path.clone())),
        location::Place::Sftp(place) => {
            Arc::new(sftp::SftpStorage::open(location, place, options)?)
        }
        #[cfg(feature = "object-storage")]
        location::Place::S3(place) => Arc::new(s3::S3Storage::open(location, place, options)?),
        #[cfg(not(feature = "object-storage"))]
        location::Place::S3(_) => return Err(not_built()),
    })
}

/// Try out, in the storage of a repository that exists, all that publishing a file takes: a file is written, synced, renamed and removed beside its
/// locks (an object store has no temporary names and no disk: there it is written, read and removed), under names that nobody takes for one of the
/// repository's. Errors as those of [`Storage::write`].
pub fn try_out(location: &Location, options: &StorageOptions) -> Result<Trial> {
    match location.place() {
        location::Place::Local(path) => local::try_out(path),
        location::Place::Sftp(place) => {
            sftp::SftpStorage::open(location, place, options)?.try_out()
        }
        #[cfg(feature = "object-storage")]
        location::Place::S3(place) => s3::S3Storage::open(location, place, options)?.try_out(),
        #[cfg(not(feature = "object-storage"))]
        location::Place::S3(_) => Err(not_built()),
    }
}

/// Whether there is a directory at this location, with something in it unless it `may_be_empty`. An object store has none and needs none.
pub(crate) fn has_directory(
    location: &Location,
    may_be_empty: bool,
    options: &StorageOptions,
) -> Result<bool> {
    match location.place() {
        location::Place::Local(path) => local::has_directory(path, may_be_empty),
        location::Place::Sftp(place) => {
            sftp::SftpStorage::open(location, place, options)?.has_directory(may_be_empty)
        }
        location::Place::S3(_) => Ok(true),
    }
}

#[cfg(not(feature = "object-storage"))]
fn not_built() -> Error {
    Error::new(
        ErrorKind::Configuration,
        "this program was built without object storage: build it with the feature `object-storage`",
    )
}

/// The kinds of files in a repository, each in a place of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FileKind {
    /// The one file `config`.
    Config,
    /// `keys/`
    Key,
    /// `locks/`
    Lock,
    /// `snapshots/`
    Snapshot,
    /// `index/`
    Index,
    /// `data/xx/`
    Pack,
}

impl FileKind {
    /// The directory of the kind, below that of the repository. [`FileKind::Config`] has none.
    pub(crate) fn directory(self) -> Option<&'static str> {
        match self {
            Self::Config => None,
            Self::Key => Some("keys"),
            Self::Lock => Some("locks"),
            Self::Snapshot => Some("snapshots"),
            Self::Index => Some("index"),
            Self::Pack => Some("data"),
        }
    }

    /// The directory that holds a file, below that of the repository; empty for the top.
    fn directory_of(self, id: &FileId) -> String {
        match (self, self.directory()) {
            (Self::Pack, _) => format!("data/{:02x}", id.0[0]),
            (_, directory) => directory.unwrap_or_default().to_owned(),
        }
    }

    /// The name of a file in its directory.
    fn file_name(self, id: &FileId) -> String {
        match self {
            Self::Config => "config".to_owned(),
            _ => id.to_string(),
        }
    }
}

/// Every directory of a repository below its own, parents first.
fn all_directories() -> impl Iterator<Item = String> {
    ["keys", "locks", "snapshots", "index", "data"]
        .into_iter()
        .map(str::to_owned)
        .chain((0..=u8::MAX).map(|first| format!("data/{first:02x}")))
}

/// How a file of a repository is called in messages.
fn describe(kind: FileKind, id: &FileId) -> String {
    match kind.directory_of(id) {
        directory if directory.is_empty() => kind.file_name(id),
        directory => format!("{directory}/{}", kind.file_name(id)),
    }
}

/// Where a `config` was to be written, and one of somebody else's is.
fn made_by_another(name: impl fmt::Display) -> Error {
    Error::new(
        ErrorKind::Busy,
        format!("somebody else has just made {name}"),
    )
}

/// Whether a file is just these pieces.
fn is_made_of(mut file: &[u8], pieces: &[Bytes]) -> bool {
    let all = pieces
        .iter()
        .all(|piece| match file.strip_prefix(&piece[..]) {
            Some(rest) => {
                file = rest;
                true
            }
            None => false,
        });
    all && file.is_empty()
}

/// That `length` bytes from `offset` are in a file of `size` bytes.
fn check_range(kind: FileKind, id: &FileId, offset: u64, length: u64, size: u64) -> Result<()> {
    if offset.checked_add(length).is_none_or(|end| end > size) {
        return Err(Error::new(
            ErrorKind::Damaged,
            format!(
                "{} has {size} bytes, too few for {length} bytes from {offset}",
                describe(kind, id)
            ),
        ));
    }
    Ok(())
}

/// The name of a file: 32 bytes, in hexadecimal digits on disk (the SHA-256 of what the file holds).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct FileId(pub [u8; 32]);

impl fmt::Display for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for FileId {
    type Err = Error;

    /// Exactly 64 lower-case hexadecimal digits.
    fn from_str(text: &str) -> Result<Self> {
        let mut id = [0; 32];
        if text.bytes().any(|b| b.is_ascii_uppercase())
            || hex::decode_to_slice(text, &mut id).is_err()
        {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!(
                    "`{}` is not an id of 64 hexadecimal digits",
                    text.escape_debug()
                ),
            ));
        }
        Ok(Self(id))
    }
}

/// The files of one repository. Blocking; called from many threads at once. Never call it from an async task: use
/// a blocking thread.
///
/// Every call either succeeds or fails for good: passing faults are retried inside, under one deadline. Errors are
/// [`ErrorKind::NotFound`] for a file that is not there, [`ErrorKind::Refused`] for what will not change by waiting,
/// [`ErrorKind::NoSpace`] where the other side says so, [`ErrorKind::Unreachable`] once the deadline is over.
pub trait Storage: fmt::Debug + Send + Sync + 'static {
    /// The location as an operator wrote it, without any secret.
    fn location(&self) -> &str;

    /// Create the directories of an empty repository, where there are such. Safe to repeat.
    fn create(&self) -> Result<()>;

    /// All files of a kind with their sizes in bytes. Names that are not ids (temporary files) are left out; a directory that
    /// cannot be read is an error. For [`FileKind::Config`]: one entry with a zero id where it exists.
    fn list(&self, kind: FileKind) -> Result<Vec<(FileId, u64)>>;

    /// A whole file. The id is ignored for [`FileKind::Config`], here and below.
    fn read(&self, kind: FileKind, id: &FileId) -> Result<Bytes>;

    /// `length` bytes from `offset`; fewer is an error.
    fn read_range(&self, kind: FileKind, id: &FileId, offset: u64, length: u64) -> Result<Bytes>;

    /// Publish a file: after Ok it is whole and durable under its name (as far as the other side offers that); before,
    /// nothing is visible under it. A file that is already there is replaced, but for the `config`: of several who make a repository there at once one
    /// does, as far as the other side can tell, and the others get [`ErrorKind::Busy`].
    fn write(&self, kind: FileKind, id: &FileId, content: &[Bytes]) -> Result<()>;

    /// Remove a file. One that is already gone is fine.
    fn remove(&self, kind: FileKind, id: &FileId) -> Result<()>;

    /// The same storage by the same connections, for one operation: once `stop` is set, a call that meets an outage does not wait it out,
    /// but fails with [`ErrorKind::Cancelled`]. A call that meets none is done all the same, so that what was begun can be tidied up.
    fn with_stop(&self, stop: &Cancel) -> Arc<dyn Storage>;
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_file_has_the_place_that_restic_gives_it() {
        let id = FileId([0xab; 32]);
        let name = "ab".repeat(32);
        for (kind, place) in [
            (FileKind::Config, "config".to_owned()),
            (FileKind::Key, format!("keys/{name}")),
            (FileKind::Lock, format!("locks/{name}")),
            (FileKind::Snapshot, format!("snapshots/{name}")),
            (FileKind::Index, format!("index/{name}")),
            (FileKind::Pack, format!("data/ab/{name}")),
        ] {
            assert_eq!(describe(kind, &id), place);
        }
        let directories: BTreeSet<_> = all_directories().collect();
        assert_eq!(directories.len(), 5 + 256);
        assert!(directories.contains("data/00") && directories.contains("data/ff"));
    }

    proptest! {
        #[test]
        fn an_id_is_read_back_as_written(bytes: [u8; 32]) {
            let id = FileId(bytes);
            prop_assert_eq!(id.to_string().parse::<FileId>().unwrap(), id);
        }

        #[test]
        fn nothing_else_is_an_id(text in "[0-9a-fA-Fg./-]{0,66}") {
            let valid = text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
            prop_assert_eq!(text.parse::<FileId>().is_ok(), valid);
        }

        #[test]
        fn a_file_is_made_of_its_pieces_and_of_no_others(bytes: Vec<u8>, at: prop::sample::Index, more: u8) {
            let at = at.index(bytes.len() + 1);
            let file = Bytes::from(bytes);
            let pieces = [file.slice(..at), Bytes::new(), file.slice(at..)];
            prop_assert!(is_made_of(&file, &pieces));
            let longer = [&file[..], &[more]].concat();
            prop_assert!(!is_made_of(&longer, &pieces));
            prop_assert!(!is_made_of(&file, &[longer.into()]));
        }

        #[test]
        fn a_range_is_inside_the_file_or_refused(offset: u64, length: u64, size: u64) {
            let inside = u128::from(offset) + u128::from(length) <= u128::from(size);
            prop_assert_eq!(check_range(FileKind::Pack, &FileId::default(), offset, length, size).is_ok(), inside);
        }
    }
}
