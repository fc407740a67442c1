//! Back up one customer.
//!
//! The commit point is the snapshot file. Before it nothing is visible, on no disk is a copy of the dump or of the files; after it nothing
//! can fail any more: forgetting older ones is a step of its own, which its caller takes.

use std::path::PathBuf;
use std::thread;

use jiff::{Timestamp, Zoned};
use serde::Serialize;

use super::{Engine, Noting, require_note};
use crate::catalog::BackupEntry;
use crate::customer::{Customer, CustomerId};
use crate::database::{self, Dump, Server};
use crate::error::{Error, ErrorKind, Result};
use crate::progress::{Control, Phase};
use crate::repository::{
    ArchiveRequest, BackupType, Lock, Origin, Repository, Snapshot, SnapshotId, StreamSource,
    TreeSource,
};
use crate::site::Site;

/// What to back up.
#[derive(Debug, Clone)]
pub struct BackupRequest {
    /// Database, files or both.
    pub backup_type: BackupType,
    /// The customer's note: one line.
    pub note: Option<String>,
}

/// What was backed up.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct BackupReport {
    /// The new snapshot.
    pub snapshot_id: SnapshotId,
    /// When it was made.
    #[serde(skip)]
    pub time: Timestamp,
    /// What it holds.
    pub backup_type: BackupType,
    /// Regular files, the dump not counted.
    pub files: u64,
    /// Plain bytes of files and dump.
    pub bytes: u64,
    /// Bytes that the repository grew by.
    pub bytes_added: u64,
    /// Bytes of the dump.
    pub database_bytes: u64,
    /// The tables and views that the database had while it was dumped, where that is known.
    #[serde(skip)]
    pub tables: Option<Vec<String>>,
    /// What somebody should know although the backup is good.
    pub warnings: Vec<String>,
}

impl BackupReport {
    /// The new backup as a list of backups has it.
    pub fn entry(&self, note: Option<String>) -> BackupEntry {
        BackupEntry {
            id: self.snapshot_id,
            time: self.time,
            backup_type: self.backup_type,
            note,
            bytes: Some(self.bytes),
            bytes_added: Some(self.bytes_added),
            database_bytes: self
                .backup_type
                .has_database()
                .then_some(self.database_bytes),
            files: Some(self.files),
            proven_at: None,
        }
    }
}

/// What goes into one snapshot of a customer.
pub(super) struct Saving {
    pub(super) origin: Origin,
    pub(super) backup_type: BackupType,
    pub(super) note: Option<String>,
    /// The moment that it is a picture of.
    pub(super) time: Zoned,
    pub(super) trees: Vec<TreeSource>,
    pub(super) dump: Option<Dump>,
    /// Files that are as they were in it are not read again.
    pub(super) parent: Option<Snapshot>,
}

impl Engine {
    /// Back up a customer. Older ones stay: see [`Self::beyond_retention`].
    ///
    /// An error means that there is no new backup. Cancelling works up to the commit.
    pub fn backup(
        &self,
        customer: &Customer,
        request: &BackupRequest,
        control: &Control,
    ) -> Result<BackupReport> {
        let (control, noting) = Noting::under(control);
        let control = &control;
        control.monitor.phase(Phase::Preparing);
        request.note.as_deref().map_or(Ok(()), require_note)?;
        let has_files = request.backup_type.has_files();
        let site = match Site::open(&self.config, customer) {
            Ok(site) => Some(site),
            // A database alone needs none.
            Err(error) if error.kind() == ErrorKind::NotFound && !has_files => None,
            Err(error) => return Err(error),
        };
        // A restore would exchange files and tables under us.
        let _claim = site.as_ref().map(|site| site.claim(false)).transpose()?;
        self.require_no_interrupted_restore(customer.id)?;
        let site = site.filter(|_| has_files);
        if let Some(site) = &site {
            self.require_site_dirs(site)?;
        }

        let repository = self.manual_for(customer.id, &control.cancel)?;
        let lock = repository.lock_shared()?;
        let previous = read_in(&repository, customer.id, has_files)?;

        control.monitor.phase(Phase::Saving);
        // What it was last time is the best guess of what it will be; of a dump alone that says nothing.
        if let Some(bytes) = previous.as_ref().and_then(|snapshot| snapshot.bytes) {
            control.monitor.bytes_total(bytes);
        }
        let dump = match request.backup_type.has_database() {
            true => Some(self.start_dump(&self.server(customer)?, customer, control)?),
            false => None,
        };
        let exclude = || self.config.customers.exclude.clone();
        let tree = site.map(|site| TreeSource::in_place(site.path().to_owned(), exclude()));
        let saving = Saving {
            origin: Origin::Manual,
            backup_type: request.backup_type,
            note: request.note.clone(),
            time: Zoned::now(),
            trees: tree.into_iter().collect(),
            dump,
            parent: previous,
        };
        let mut report = self.save(customer, &repository, lock, saving, control)?;
        report.warnings = noting.warnings();
        Ok(report)
    }

    /// Files and dump into one snapshot, whose writing is the commit point.
    pub(super) fn save(
        &self,
        customer: &Customer,
        repository: &Repository,
        lock: Lock,
        saving: Saving,
        control: &Control,
    ) -> Result<BackupReport> {
        let backup_type = saving.backup_type;
        let (archive, dump) = self.archive_request(customer, saving)?;
        let time = archive.time.timestamp();
        let archived = repository.archive(lock, archive, control);
        // The dump's own failure says more than that of the reader it fed.
        let (uncommitted, tables) = match (archived, dump) {
            (Ok(uncommitted), Some(dump)) => {
                let tables = require_whole_dump(dump, uncommitted.stream_bytes())?;
                (uncommitted, tables)
            }
            (Ok(uncommitted), None) => (uncommitted, None),
            (Err(error), dump) => return Err(better_cause(error, dump)),
        };

        let archived = uncommitted.commit(control)?;

        for warning in &archived.warnings {
            control.monitor.warning(warning);
        }
        self.warn_of_too_many(archived.entries, control);
        Ok(BackupReport {
            snapshot_id: archived.snapshot,
            time,
            backup_type,
            files: archived.files,
            bytes: archived.bytes,
            bytes_added: archived.bytes_added,
            database_bytes: archived.stream_bytes,
            tables,
            warnings: Vec::new(),
        })
    }

    /// Better known today than on the day of the restore.
    fn warn_of_too_many(&self, entries: u64, control: &Control) {
        let most = self.config.restore.max_files;
        if most > 0 && entries > most {
            control.monitor.warning(&format!(
                "the backup has {entries} files, directories and links, and a site directory with more than {most} is not restored: raise restore.max_files, if there is \
                 the memory for it"
            ));
        }
    }

    /// One of a customer's own backups, as the repository itself has it; None where there is none of this id and origin that is his.
    pub fn find_own(
        &self,
        customer: CustomerId,
        origin: Origin,
        id: &SnapshotId,
    ) -> Result<Option<BackupEntry>> {
        let Some(snapshot) = self.manual_of(customer)?.snapshot(id)? else {
            return Ok(None);
        };
        let is_his = snapshot.owner() == Some(customer) && snapshot.origin() == Some(origin);
        let entry = snapshot.backup_type().map(|backup_type| BackupEntry {
            id: snapshot.id,
            time: snapshot.time,
            backup_type,
            note: snapshot.note,
            bytes: snapshot.bytes,
            bytes_added: snapshot.bytes_added,
            database_bytes: None,
            files: snapshot.files,
            proven_at: None,
        });
        Ok(entry.filter(|_| is_his))
    }

    pub(super) fn start_dump(
        &self,
        server: &Server,
        customer: &Customer,
        control: &Control,
    ) -> Result<Dump> {
        let limit = self.config.dump_timeout();
        database::dump(server, customer.db_name.as_str(), limit, control)
    }

    fn archive_request(
        &self,
        customer: &Customer,
        saving: Saving,
    ) -> Result<(ArchiveRequest, Option<Dump>)> {
        let path = self.config.customer_database.dump_path(customer)?;
        let mut paths = Vec::new();
        if saving.dump.is_some() {
            paths.extend(path.parent().map(PathBuf::from));
        }
        if !saving.trees.is_empty() {
            paths.push(self.config.customers.dir(customer.id));
        }
        let mut dump = saving.dump;
        let reader = dump.as_mut().and_then(Dump::take_reader);
        let request = ArchiveRequest {
            trees: saving.trees,
            streams: reader
                .map(|reader| StreamSource { path, reader })
                .into_iter()
                .collect(),
            paths,
            tags: vec![
                customer.id.tag(),
                saving.origin.tag().to_owned(),
                saving.backup_type.to_string(),
                saving.time.strftime("%Y-%m-%d-%H%M%S").to_string(),
            ],
            time: saving.time,
            note: saving.note,
            parent: saving.parent.map(|snapshot| snapshot.id),
        };
        Ok((request, dump))
    }

    /// A backup of files that has none of what a restore would put back is none.
    fn require_site_dirs(&self, site: &Site) -> Result<()> {
        let site_dirs = &self.config.customers.site_dirs;
        if site.present_dirs(site_dirs)?.is_empty() {
            let names: Vec<String> = site_dirs
                .iter()
                .map(|dir| dir.display().to_string())
                .collect();
            return Err(Error::new(
                ErrorKind::NotFound,
                format!(
                    "{} has none of the directories that hold a site ({}; links do not count): mend it, or change customers.site_dirs",
                    site.path().display(),
                    names.join(", ")
                ),
            ));
        }
        Ok(())
    }
}

/// The customer's snapshots, oldest first.
pub(super) fn of_customer(repository: &Repository, customer: CustomerId) -> Result<Vec<Snapshot>> {
    let mut snapshots = repository.snapshots()?;
    snapshots.retain(|snapshot| snapshot.owner() == Some(customer));
    Ok(snapshots)
}

/// The index, before a dump starts: a server gives up on one that nobody reads. For a backup of files with it the newest snapshot that has some.
pub(super) fn read_in(
    repository: &Repository,
    customer: CustomerId,
    has_files: bool,
) -> Result<Option<Snapshot>> {
    let read_index = || repository.view().map(drop);
    thread::scope(|scope| {
        let index = thread::Builder::new().spawn_scoped(scope, read_index);
        let newest = match has_files {
            true => newest_with_files(repository, customer),
            false => Ok(None),
        };
        let broke_off = || Error::new(ErrorKind::Failed, "reading the index broke off");
        match index {
            Ok(index) => index.join().unwrap_or_else(|_| Err(broke_off()))?,
            // The system has no more threads: then one after the other.
            Err(_) => read_index()?,
        }
        newest
    })
}

/// Unchanged files need not be read again: they are as in this one.
fn newest_with_files(repository: &Repository, customer: CustomerId) -> Result<Option<Snapshot>> {
    let with_files =
        |snapshot: &Snapshot| snapshot.backup_type().is_some_and(BackupType::has_files);
    Ok(of_customer(repository, customer)?
        .into_iter()
        .rev()
        .find(with_files))
}

/// Gives the tables that the database had.
fn require_whole_dump(dump: Dump, stored: u64) -> Result<Option<Vec<String>>> {
    let report = dump.finish()?;
    if report.bytes != stored {
        return Err(Error::new(
            ErrorKind::Damaged,
            format!(
                "the dump has {} bytes but {stored} were stored",
                report.bytes
            ),
        ));
    }
    Ok(report.tables)
}

fn better_cause(error: Error, dump: Option<Dump>) -> Error {
    match dump.map(Dump::finish) {
        // A dump that was not read to its end has nothing to add: it was stopped because something else failed.
        Some(Err(cause))
            if !matches!(cause.kind(), ErrorKind::Failed)
                || error.chain().contains(&cause.to_string()) =>
        {
            cause
        }
        _ => error,
    }
}
