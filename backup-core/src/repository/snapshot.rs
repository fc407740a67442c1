//! What a snapshot says of itself, and whose it is.
//!
//! Ownership is decided here and nowhere else: by one whole tag for the snapshots that we make, by whole components of tree paths for
//! the daily ones. Never by a prefix, a substring, or one of several tags.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use jiff::Timestamp;
use jiff::civil::Date;
use rustic_core::repofile::SnapshotFile;
use serde::{Deserialize, Serialize};

use crate::customer::CustomerId;
use crate::error::{Error, ErrorKind, Result};
use crate::storage::FileId;

/// The full id of a snapshot: 64 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SnapshotId(pub(crate) FileId);

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for SnapshotId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        text.parse().map(Self)
    }
}

impl Serialize for SnapshotId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SnapshotId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// What a customer's backup holds, or what of it is to be restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackupType {
    /// The database only.
    Db,
    /// The files only.
    Files,
    /// Database and files.
    Both,
}

impl BackupType {
    /// Of two answers; None where neither is there.
    pub fn of(database: bool, files: bool) -> Option<Self> {
        match (database, files) {
            (true, true) => Some(Self::Both),
            (true, false) => Some(Self::Db),
            (false, true) => Some(Self::Files),
            (false, false) => None,
        }
    }

    /// Whether the database is part of it.
    pub fn has_database(self) -> bool {
        self != Self::Files
    }

    /// Whether the files are part of it.
    pub fn has_files(self) -> bool {
        self != Self::Db
    }

    /// Whether all of `other` is part of it.
    pub fn includes(self, other: Self) -> bool {
        self == Self::Both || self == other
    }
}

impl fmt::Display for BackupType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Db => "db",
            Self::Files => "files",
            Self::Both => "both",
        })
    }
}

impl FromStr for BackupType {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "db" => Ok(Self::Db),
            "files" => Ok(Self::Files),
            "both" => Ok(Self::Both),
            _ => Err(Error::new(
                ErrorKind::InvalidInput,
                format!(
                    "`{}` is not a backup type: use db, files or both",
                    text.escape_debug()
                ),
            )),
        }
    }
}

/// Why one of our snapshots was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// A customer asked for it.
    Manual,
    /// It holds what a restore replaced.
    PreRestore,
}

impl Origin {
    /// The tag that says so.
    pub fn tag(self) -> &'static str {
        match self {
            Self::Manual => "manual",
            Self::PreRestore => "pre-restore",
        }
    }
}

/// A snapshot, as its file describes it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Snapshot {
    /// Its id.
    pub id: SnapshotId,
    /// When it was made.
    pub time: Timestamp,
    /// The day that it was then where it was made.
    pub date: Date,
    /// The machine it was made on.
    pub hostname: String,
    /// Its tags.
    pub tags: Vec<String>,
    /// What was named to be saved; what is in it may be less, and says more.
    pub paths: Vec<PathBuf>,
    /// The customer's note.
    pub note: Option<String>,
    /// Regular files, where the program that made it says so; the dump in a customer's backup does not count.
    pub files: Option<u64>,
    /// Plain bytes of all files, the dump included, where the program that made it says so.
    pub bytes: Option<u64>,
    /// Bytes that the repository grew by, where the program that made it says so.
    pub bytes_added: Option<u64>,
    /// The tree.
    pub(super) tree: rustic_core::TreeId,
}

impl Snapshot {
    pub(super) fn new(id: FileId, file: SnapshotFile) -> Self {
        let summary = file.summary;
        let mut snapshot = Self {
            id: SnapshotId(id),
            time: file.time.timestamp(),
            date: file.time.date(),
            hostname: file.hostname,
            tags: file.tags.iter().cloned().collect(),
            paths: file.paths.iter().map(PathBuf::from).collect(),
            note: file.description,
            files: summary
                .as_ref()
                .map(|summary| summary.total_files_processed),
            bytes: summary
                .as_ref()
                .map(|summary| summary.total_bytes_processed),
            bytes_added: summary.as_ref().map(|summary| summary.data_added_packed),
            tree: file.tree,
        };
        let has_dump = snapshot.origin().is_some()
            && snapshot.backup_type().is_some_and(BackupType::has_database);
        if has_dump && let Some(files) = &mut snapshot.files {
            *files = files.saturating_sub(1);
        }
        snapshot
    }

    /// Whose it is: the customer of its one tag `customer-N`. A snapshot with none, or with several, is nobody's.
    pub fn owner(&self) -> Option<CustomerId> {
        let mut owners = self.tags.iter().filter(|tag| tag.starts_with("customer-"));
        let owner = owners.next()?;
        if owners.next().is_some() {
            return None;
        }
        CustomerId::from_tag(owner)
    }

    /// Why it was made, by its tags; None for a snapshot that is not ours or says both.
    pub fn origin(&self) -> Option<Origin> {
        let has = |origin: Origin| self.tags.iter().any(|tag| tag == origin.tag());
        match (has(Origin::Manual), has(Origin::PreRestore)) {
            (true, false) => Some(Origin::Manual),
            (false, true) => Some(Origin::PreRestore),
            _ => None,
        }
    }

    /// Whether it is one of the daily backups of everybody: the platform's script tags them so.
    pub fn is_daily(&self) -> bool {
        self.tags.iter().any(|tag| tag == "daily")
    }

    /// Whether it was made on this machine.
    pub fn is_from_here(&self) -> bool {
        self.hostname == super::hostname()
    }

    /// What it holds, by its one type tag.
    pub fn backup_type(&self) -> Option<BackupType> {
        let mut types = self.tags.iter().filter_map(|tag| tag.parse().ok());
        match (types.next(), types.next()) {
            (Some(backup_type), None) => Some(backup_type),
            _ => None,
        }
    }
}

#[cfg(test)]
impl Snapshot {
    pub(crate) fn of_nobody() -> Self {
        Self {
            id: SnapshotId(FileId::default()),
            time: Timestamp::UNIX_EPOCH,
            date: Date::ZERO,
            hostname: String::new(),
            tags: Vec::new(),
            paths: Vec::new(),
            note: None,
            files: None,
            bytes: None,
            bytes_added: None,
            tree: rustic_core::TreeId::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tagged(tags: &[&str]) -> Snapshot {
        Snapshot {
            tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
            ..Snapshot::of_nobody()
        }
    }

    #[test]
    fn the_owner_is_one_whole_tag() {
        let id = |n: &str| Some(n.parse::<CustomerId>().unwrap());
        assert_eq!(tagged(&["customer-1", "manual"]).owner(), id("1"));
        assert_eq!(tagged(&["customer-12", "manual"]).owner(), id("12"));
        for nobody in [
            &["manual"][..],
            &["customer-1", "customer-2"],
            &["customer-"],
            &["customer-01"],
            &["customer-1 "],
            &["xcustomer-1"],
            &["customer-1,manual"],
            &["customer-+1"],
        ] {
            assert_eq!(tagged(nobody).owner(), None, "{nobody:?}");
        }
    }

    #[test]
    fn a_note_or_odd_tags_do_not_change_the_type() {
        assert_eq!(
            tagged(&["db", "manual"]).backup_type(),
            Some(BackupType::Db)
        );
        assert_eq!(tagged(&["db", "files"]).backup_type(), None);
        assert_eq!(tagged(&["manual", "pre-restore"]).origin(), None);
    }
}
