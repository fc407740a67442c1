//! What backups a customer has.
//!
//! Never a snapshot that is not wholly his: by its one tag, or, for the daily snapshots of everybody, by what its tree holds at his paths.

use std::path::PathBuf;

use jiff::Timestamp;
use serde::Serialize;

use super::Engine;
use super::backup::of_customer;
use crate::customer::Customer;
use crate::error::Result;
use crate::repository::{BackupType, EntryKind, Origin, Snapshot, SnapshotId, View};

/// One backup.
#[derive(Debug, Clone, Serialize)]
pub struct BackupEntry {
    /// Its snapshot.
    pub id: SnapshotId,
    /// When it was made.
    pub time: Timestamp,
    /// What it holds of the customer.
    pub backup_type: BackupType,
    /// The customer's note.
    pub note: Option<String>,
    /// Plain bytes; None for a daily one, which says only what it holds of all customers together.
    pub bytes: Option<u64>,
}

/// A customer's backups, newest first.
#[derive(Debug, Clone, Serialize)]
pub struct BackupList {
    /// Those he made.
    pub manual: Vec<BackupEntry>,
    /// Those that the platform made, of the last `retention.daily_shown`.
    pub daily: Vec<BackupEntry>,
    /// Those made of what a restore replaced.
    pub pre_restore: Vec<BackupEntry>,
}

impl Engine {
    /// All backups of a customer.
    pub fn list(&self, customer: &Customer) -> Result<BackupList> {
        let repository = self.manual()?;
        let own = of_customer(&repository, customer.id)?;
        let of_origin = |origin| {
            own.iter()
                .rev()
                .filter(|snapshot| snapshot.origin() == Some(origin))
                .filter_map(|snapshot| {
                    Some(entry(snapshot, snapshot.backup_type()?, snapshot.bytes))
                })
                .collect()
        };
        Ok(BackupList {
            manual: of_origin(Origin::Manual),
            daily: self.list_daily(customer)?,
            pre_restore: of_origin(Origin::PreRestore),
        })
    }

    fn list_daily(&self, customer: &Customer) -> Result<Vec<BackupEntry>> {
        let Some(repository) = self.daily()? else {
            return Ok(Vec::new());
        };
        let shown = jiff::SignedDuration::try_from(self.config.retention.daily_shown)
            .unwrap_or(jiff::SignedDuration::MAX);
        let now = Timestamp::now();
        // The platform's script prunes: what is looked into must stay.
        let _lock = repository.lock_shared()?;
        let view = repository.view()?;
        let mut entries = Vec::new();
        for snapshot in repository.snapshots()?.into_iter().rev() {
            if is_daily(&snapshot)
                && now.duration_since(snapshot.time) <= shown
                && let Some(backup_type) = self.daily_contents(&view, &snapshot, customer)?
            {
                entries.push(entry(&snapshot, backup_type, None));
            }
        }
        Ok(entries)
    }

    /// What a daily snapshot holds of a customer; None where nothing.
    pub(super) fn daily_contents(
        &self,
        view: &View<'_>,
        snapshot: &Snapshot,
        customer: &Customer,
    ) -> Result<Option<BackupType>> {
        let dump = self.config.customer_database.daily_dump_path(customer)?;
        let directory = self.config.customers.dir(customer.id);
        let contents = self.contents(view, snapshot, directory, dump)?;
        Ok(BackupType::of(
            contents.has_dump,
            !contents.site_dirs.is_empty(),
        ))
    }

    /// What a snapshot holds of a customer whose directory and dump were at these paths.
    pub(super) fn contents(
        &self,
        view: &View<'_>,
        snapshot: &Snapshot,
        directory: PathBuf,
        dump: PathBuf,
    ) -> Result<Contents> {
        let site_dirs = &self.config.customers.site_dirs;
        let mut paths = vec![dump];
        paths.extend(site_dirs.iter().map(|site_dir| directory.join(site_dir)));
        let mut entries = view.entries(snapshot, &paths)?.into_iter();
        let dump_entry = entries.next().flatten();
        Ok(Contents {
            directory,
            // The restic program stores an empty file for a dump that failed.
            has_dump: matches!(dump_entry, Some(EntryKind::File { bytes }) if bytes > 0),
            dump: paths.swap_remove(0),
            site_dirs: site_dirs
                .iter()
                .zip(entries)
                .filter(|(_, entry)| *entry == Some(EntryKind::Directory))
                .map(|(site_dir, _)| site_dir.clone())
                .collect(),
        })
    }
}

/// What there is to restore in a snapshot.
pub(super) struct Contents {
    /// Where the customer's directory was.
    pub directory: PathBuf,
    /// Where the dump would be.
    pub dump: PathBuf,
    pub has_dump: bool,
    /// The configured site directories that are there, relative to the customer's.
    pub site_dirs: Vec<PathBuf>,
}

/// The platform's script tags them so.
pub(super) fn is_daily(snapshot: &Snapshot) -> bool {
    snapshot.tags.iter().any(|tag| tag == "daily")
}

fn entry(snapshot: &Snapshot, backup_type: BackupType, bytes: Option<u64>) -> BackupEntry {
    BackupEntry {
        id: snapshot.id,
        time: snapshot.time,
        backup_type,
        note: snapshot.note.clone(),
        bytes,
    }
}
