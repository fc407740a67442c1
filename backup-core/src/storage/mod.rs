//! Where the files of a repository live.
//!
//! One trait, one file a kind. Knows the layout of a restic repository (which directory holds what) and nothing of
//! what is in the files. Never: a file under its final name that is not whole; a listing that leaves something out
//! without an error; a password or key in a message.

use std::fmt;
use std::str::FromStr;

use bytes::Bytes;

use crate::error::{Error, ErrorKind, Result};

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

    /// Create the directories of an empty repository. Safe to repeat.
    fn create(&self) -> Result<()>;

    /// All files of a kind with their sizes in bytes. Names that are not ids (temporary files) are left out; a directory that
    /// cannot be read is an error. For [`FileKind::Config`]: one entry with a zero id where it exists.
    fn list(&self, kind: FileKind) -> Result<Vec<(FileId, u64)>>;

    /// A whole file. The id is ignored for [`FileKind::Config`], here and below.
    fn read(&self, kind: FileKind, id: &FileId) -> Result<Bytes>;

    /// `length` bytes from `offset`; fewer is an error.
    fn read_range(&self, kind: FileKind, id: &FileId, offset: u64, length: u64) -> Result<Bytes>;

    /// Publish a file: after Ok it is whole and durable under its name (as far as the other side offers that); before,
    /// nothing is visible under it. A file that is already there is replaced.
    fn write(&self, kind: FileKind, id: &FileId, content: &[Bytes]) -> Result<()>;

    /// Remove a file. One that is already gone is fine.
    fn remove(&self, kind: FileKind, id: &FileId) -> Result<()>;
}
