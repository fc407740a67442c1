//! Deleting a backup beside the jobs of its customer.
//!
//! A deletion and the creation of a restore hold the row of the backup until their transactions end, so one comes first and is seen by the other.
//! Never: a backup deleted that a job of its customer is to restore.

use super::{Job, JobStore};
use crate::audit::{Action, Deed};
use crate::catalog::Catalog;
use crate::customer::CustomerId;
use crate::error::Result;
use crate::repository::{Origin, SnapshotId};
use crate::store::Tries;

/// What became of the wish to delete a backup.
#[derive(Debug)]
pub(crate) enum Deleting {
    /// It is marked.
    Done,
    /// It stays, because of this job of its customer.
    InTheWay(Box<Job>),
    /// The customer has no such backup of that origin in the catalogue.
    NotFound,
}

impl JobStore {
    /// Mark a backup of a customer's own as deleted, unless his active job is in the way of that.
    pub(crate) async fn delete_backup(
        &self,
        customer: CustomerId,
        origin: Origin,
        id: &SnapshotId,
        is_in_the_way: impl Fn(&Job) -> bool,
    ) -> Result<Deleting> {
        let mut tries = Tries::default();
        loop {
            let deleted = self.try_delete(customer, origin, id, &is_in_the_way).await;
            if !tries.is_to_repeat(&deleted).await {
                return deleted;
            }
        }
    }

    async fn try_delete(
        &self,
        customer: CustomerId,
        origin: Origin,
        id: &SnapshotId,
        is_in_the_way: impl Fn(&Job) -> bool,
    ) -> Result<Deleting> {
        let mut transaction = self.store.begin().await?;
        // First the mark, which holds the row: a restore of it is either queued by now, and is seen, or finds nothing to restore.
        if !Catalog::mark_deleted(&mut transaction, customer, origin, id).await? {
            return Ok(Deleting::NotFound);
        }
        let active = self.active_in(&mut transaction, customer).await?;
        if let Some(job) = active.filter(is_in_the_way) {
            return Ok(Deleting::InTheWay(Box::new(job)));
        }
        let deed = Deed::to(customer, Action::Delete).backup(origin.into(), id);
        self.audit.note_in(&mut transaction, &deed).await?;
        transaction.commit().await?;
        Ok(Deleting::Done)
    }
}
