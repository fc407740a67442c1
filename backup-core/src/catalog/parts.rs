//! Of a customer's files and of his database the newest backup: one for both, or for each another.
//!
//! Never: a backup of the one taken for one of the other.

use std::collections::BTreeSet;

use super::{BackupEntry, BackupRow, Catalog, Source, unreadable};
use crate::customer::CustomerId;
use crate::error::Result;
use crate::repository::{BackupType, SnapshotId};
use crate::store::values;

impl Catalog {
    /// A customer's newest backup from one source that holds his files, and the newest that holds his database: none, one, or two, the newer first.
    pub(crate) async fn newest_of_each_part(
        &self,
        customer: CustomerId,
        source: Source,
    ) -> Result<Vec<BackupEntry>> {
        const FILES: &str =
            "SELECT source, snapshot_id, time, backup_type, note, bytes, bytes_added, database_bytes, files, proven_at
            FROM customer_backups
            WHERE customer_id = ? AND source = ? AND backup_type <> 'db' AND deleted_at IS NULL
            ORDER BY time DESC, snapshot_id DESC LIMIT 1";
        const DATABASE: &str =
            "SELECT source, snapshot_id, time, backup_type, note, bytes, bytes_added, database_bytes, files, proven_at
            FROM customer_backups
            WHERE customer_id = ? AND source = ? AND backup_type <> 'files' AND deleted_at IS NULL
            ORDER BY time DESC, snapshot_id DESC LIMIT 1";
        let mut newest: Vec<BackupEntry> = Vec::new();
        for query in [FILES, DATABASE] {
            let values = values![customer.get(), source.as_str()];
            let row: Option<BackupRow> = self.store.row(query, values).await?;
            if let Some(row) = row {
                newest.push(row.read().map_err(unreadable)?.1);
            }
        }
        newest.sort_by_key(|entry| std::cmp::Reverse((entry.time, entry.id)));
        newest.dedup_by_key(|entry| entry.id);
        Ok(newest)
    }

    /// Of these daily snapshots, the newest first, those that are the last to hold somebody's files or somebody's database, of these customers.
    pub(crate) async fn last_of_each_part(
        &self,
        newest_first: &[SnapshotId],
        customers: &BTreeSet<CustomerId>,
    ) -> Result<BTreeSet<SnapshotId>> {
        const QUERY: &str = "SELECT customer_id, backup_type FROM customer_backups
            WHERE snapshot_id = ? AND source = 'daily' AND deleted_at IS NULL";
        let (mut files, mut databases) = (BTreeSet::new(), BTreeSet::new());
        let mut last = BTreeSet::new();
        for id in newest_first {
            let rows: Vec<(i64, String)> = self.store.rows(QUERY, values![id.to_string()]).await?;
            for (customer, held) in rows {
                let customer: CustomerId = customer.to_string().parse().map_err(unreadable)?;
                if !customers.contains(&customer) {
                    continue;
                }
                let held: BackupType = held.parse().map_err(unreadable)?;
                let is_last_of_files = held.has_files() && files.insert(customer);
                let is_last_of_database = held.has_database() && databases.insert(customer);
                if is_last_of_files || is_last_of_database {
                    last.insert(*id);
                }
            }
        }
        Ok(last)
    }
}
