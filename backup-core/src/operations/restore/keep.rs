//! What a restore replaced, as a backup of its own.
//!
//! It is a picture of the moment of the exchange: the former directories, which nobody writes to any more, and the former tables with all that belonged to
//! them. The commit point is the snapshot file, whose id the journal has before it is written. Never: the replaced state removed before that.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};

use super::journal::Journal;
use super::steps::Restore;
use crate::catalog::BackupEntry;
use crate::database::{self, Dump};
use crate::error::{Error, Result};
use crate::fault;
use crate::operations::backup::{Saving, read_in};
use crate::progress::{Control, Gate, Phase};
use crate::repository::{BackupType, Origin, SnapshotId, TreeSource};

impl Restore<'_> {
    /// None where nothing was replaced.
    pub(super) fn keep_replaced(&mut self) -> Result<Option<BackupEntry>> {
        if let Some(kept) = self.find_kept()? {
            return Ok(Some(kept));
        }
        self.control.monitor.phase(Phase::Keeping);
        // No longer the caller's to stop: only the end of the process is.
        let control = Control {
            cancel: self.engine.stop.child(),
            ..self.control.clone()
        };
        let repository = self.engine.manual_for(self.customer.id, &control.cancel)?;
        let lock = repository.lock_shared()?;
        let trees = self.replaced_trees()?;
        let parent = read_in(&repository, self.customer.id, !trees.is_empty())?;
        let dump = self.replaced_dump(&control)?;
        let Some(backup_type) = BackupType::of(dump.is_some(), !trees.is_empty()) else {
            return Ok(None);
        };
        let exchanged = self.journal.record().exchanged;
        let saving = Saving {
            origin: Origin::PreRestore,
            backup_type,
            note: None,
            time: Zoned::new(exchanged.unwrap_or_else(Timestamp::now), TimeZone::system()),
            parent,
            trees,
            dump,
        };
        fault::point("in keep")?;
        let gate = Arc::new(JournalGate(Mutex::new(self.journal.clone())));
        let control = Control {
            gate: Some(Arc::clone(&gate) as _),
            ..control
        };
        let saved = self
            .engine
            .save(self.customer, &repository, lock, saving, &control);
        self.journal = gate.journal().clone();
        Ok(Some(saved?.entry(None)))
    }

    /// A process that died may have written it.
    pub(super) fn find_kept(&self) -> Result<Option<BackupEntry>> {
        match self.journal.record().kept {
            Some(id) => self
                .engine
                .find_own(self.customer.id, Origin::PreRestore, &id),
            None => Ok(None),
        }
    }

    fn replaced_trees(&mut self) -> Result<Vec<TreeSource>> {
        let staged = self.journal.record().staged.clone();
        let site = self.site.path().to_owned();
        let mut trees = Vec::new();
        self.staging()?;
        if let Some(staging) = &self.staging {
            for one in staged {
                let Some(root) = staging.replaced(&one)? else {
                    continue;
                };
                let found = root
                    .symlink_metadata()
                    .map_err(|e| Error::io(format!("cannot look at {}", root.display()), e))?;
                match found.is_dir() {
                    true => trees.push(TreeSource {
                        root,
                        path: site.join(one.site_dir()),
                        exclude: Vec::new(),
                        hold: None,
                        limit: None,
                    }),
                    // A backup of it could not be restored.
                    false => {
                        let aside = staging.set_aside(&self.site, &one)?;
                        self.warn(&format!(
                            "in the place of {} was no directory but a link or a file, which is called {aside} now",
                            one.site_dir().display()
                        ));
                    }
                }
            }
        }
        Ok(trees)
    }

    fn replaced_dump(&self, control: &Control) -> Result<Option<Dump>> {
        if self.journal.record().replaced.is_none() {
            return Ok(None);
        }
        let server = self.server()?;
        self.wait_for_database(&server)?;
        let Some(replaced) = self.replaced(&server)? else {
            return Ok(None);
        };
        let limit = self.engine.config.dump_timeout();
        database::dump_replaced(&server, &replaced, limit, control).map(Some)
    }
}

/// Writes the snapshot's id down before the snapshot is written.
struct JournalGate(Mutex<Journal>);

impl JournalGate {
    fn journal(&self) -> MutexGuard<'_, Journal> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Gate for JournalGate {
    fn before_commit(&self, snapshot: Option<&str>) -> Result<()> {
        let id: Option<SnapshotId> = snapshot.map(str::parse).transpose()?;
        self.journal().note(|record| record.kept = id)
    }
}
