//! Backups that their customers deleted.
//!
//! The mark in the row is the commit point: from then on nobody sees it. It stays until the snapshot is forgotten, or missing for so long that nothing
//! else is remembered of it either. A restore that is queued and a deletion hold the same row, so one of the two comes first. Never: a mark that is taken back.

use super::{Catalog, Source, in_list, unreadable};
use crate::customer::CustomerId;
use crate::error::Result;
use crate::repository::{Origin, SnapshotId};
use crate::store::{Transaction, values};

pub(super) const DELETIONS: &str =
    "SELECT b.customer_id, b.source, b.snapshot_id FROM customer_backups b
    JOIN backup_snapshots s ON s.snapshot_id = b.snapshot_id AND s.repository_id = ?
    WHERE b.source IN ('manual', 'pre-restore') AND b.deleted_at > 0";

/// A backup that is to be forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Deletion {
    pub(crate) customer: CustomerId,
    pub(crate) origin: Origin,
    pub(crate) snapshot: SnapshotId,
}

impl Catalog {
    /// Mark a backup of a customer's own as deleted; false where he has none of this id. Until the transaction ends nobody can
    /// [`Self::hold`] it.
    pub(crate) async fn mark_deleted(
        transaction: &mut Transaction,
        customer: CustomerId,
        origin: Origin,
        id: &SnapshotId,
    ) -> Result<bool> {
        const UPDATE: &str = "UPDATE customer_backups SET deleted_at = {now}
            WHERE customer_id = ? AND source = ? AND snapshot_id = ? AND deleted_at IS NULL";
        let source = Source::from(origin).as_str();
        let values = values![customer.get(), source, id.to_string()];
        Ok(transaction.execute(UPDATE, values).await? > 0)
    }

    /// Make sure that a backup of a customer is there and is not deleted until the transaction ends; false where there is none.
    pub(crate) async fn hold(
        transaction: &mut Transaction,
        customer: CustomerId,
        source: Source,
        id: &SnapshotId,
    ) -> Result<bool> {
        // It changes nothing, and locks the row in either kind of database.
        const UPDATE: &str = "UPDATE customer_backups SET deleted_at = NULL
            WHERE customer_id = ? AND source = ? AND snapshot_id = ? AND deleted_at IS NULL";
        let values = values![customer.get(), source.as_str(), id.to_string()];
        Ok(transaction.execute(UPDATE, values).await? > 0)
    }

    /// What was deleted and is not forgotten yet, of the backups in a repository; of one customer, or of all.
    pub(crate) async fn deletions(
        &self,
        repository_id: &str,
        customer: Option<CustomerId>,
    ) -> Result<Vec<Deletion>> {
        let rows: Vec<(i64, String, String)> = match customer {
            None => self.store.rows(DELETIONS, values![repository_id]).await?,
            Some(customer) => {
                let query = format!("{DELETIONS} AND b.customer_id = ?");
                let values = values![repository_id, customer.get()];
                self.store.rows(&query, values).await?
            }
        };
        let read = |(customer, source, snapshot): (i64, String, String)| {
            Ok(Deletion {
                customer: customer.to_string().parse()?,
                origin: match source.parse()? {
                    Source::PreRestore => Origin::PreRestore,
                    Source::Manual | Source::Daily => Origin::Manual,
                },
                snapshot: snapshot.parse()?,
            })
        };
        rows.into_iter()
            .map(|row| read(row).map_err(unreadable))
            .collect()
    }

    /// Remove the row of a deletion of something that is not that customer's. Whose it is keeps it.
    pub(crate) async fn remove_false(&self, deletion: &Deletion) -> Result<()> {
        const DELETE: &str = "DELETE FROM customer_backups
            WHERE customer_id = ? AND source = ? AND snapshot_id = ? AND deleted_at IS NOT NULL";
        let values = values![
            deletion.customer.get(),
            Source::from(deletion.origin).as_str(),
            deletion.snapshot.to_string()
        ];
        self.store.execute(DELETE, values).await.map(drop)
    }
}

/// Remove the marks on those of these snapshots of a repository that are remembered no longer: nobody would come back to them.
pub(super) async fn drop_forgotten(
    transaction: &mut Transaction,
    repository_id: &str,
    ids: &[SnapshotId],
) -> Result<()> {
    let (places, mut values) = in_list(ids);
    let delete = format!(
        "DELETE FROM customer_backups WHERE snapshot_id IN ({places}) AND deleted_at IS NOT NULL
             AND NOT EXISTS (SELECT 1 FROM backup_snapshots s
                 WHERE s.repository_id = ? AND s.snapshot_id = customer_backups.snapshot_id)"
    );
    values.push(repository_id.into());
    transaction.execute(&delete, &values).await.map(drop)
}

/// Whether a snapshot is one that its customer deleted.
pub(super) async fn is_marked(transaction: &mut Transaction, id: &SnapshotId) -> Result<bool> {
    const QUERY: &str =
        "SELECT COUNT(*) FROM customer_backups WHERE snapshot_id = ? AND deleted_at IS NOT NULL";
    let found: Option<(i64,)> = transaction.row(QUERY, values![id.to_string()]).await?;
    Ok(found.is_some_and(|(marks,)| marks > 0))
}
