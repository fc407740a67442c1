//! What backups a customer has.
//!
//! Never a snapshot that is not wholly his: by its one tag, or, for the daily snapshots of everybody, by what its tree holds at his paths.

use jiff::Timestamp;

use super::Engine;
use super::backup::of_customer;
use crate::catalog::{BackupEntry, BackupList, Contents, Place, contents, is_daily};
use crate::customer::Customer;
use crate::error::Result;
use crate::repository::{BackupType, Origin, Snapshot, View};

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
    fn daily_contents(
        &self,
        view: &View<'_>,
        snapshot: &Snapshot,
        customer: &Customer,
    ) -> Result<Option<BackupType>> {
        let config = &self.config;
        let place = Place {
            directory: config.customers.dir(customer.id),
            dump: config
                .customer_database
                .daily_dump_path(customer.id, &customer.db_name)?,
        };
        let held = contents(view, snapshot, &config.customers.site_dirs, vec![place])?;
        Ok(held.first().and_then(Contents::backup_type))
    }
}

fn entry(snapshot: &Snapshot, backup_type: BackupType, bytes: Option<u64>) -> BackupEntry {
    BackupEntry {
        id: snapshot.id,
        time: snapshot.time,
        backup_type,
        note: snapshot.note.clone(),
        bytes,
        bytes_added: bytes.and(snapshot.bytes_added),
        database_bytes: None,
        files: bytes.and(snapshot.files),
    }
}
