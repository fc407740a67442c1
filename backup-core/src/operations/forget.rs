//! Which of a customer's backups are beyond the newest few, and forgetting one.
//!
//! The commit point is the removal of the snapshot file; the data goes with the next prune. Never: a snapshot forgotten of somebody else, or one
//! that is not a manual one.

use super::Engine;
use super::backup::of_customer;
use crate::customer::CustomerId;
use crate::error::Result;
use crate::repository::{Origin, Snapshot, SnapshotId};

impl Engine {
    /// Forget a manual backup of a customer; one that is gone already is fine. False where by its tags it is no manual backup of his: then
    /// it stays.
    pub fn forget(&self, customer: CustomerId, id: &SnapshotId) -> Result<bool> {
        let repository = self.manual()?;
        let Some(snapshot) = repository.snapshot(id)? else {
            return Ok(true);
        };
        let is_his = is_manual(&snapshot) && snapshot.owner() == Some(customer);
        if is_his {
            repository.forget(&[*id])?;
        }
        Ok(is_his)
    }

    /// A customer's manual backups beyond the newest `retention.manual`, whatever their type, oldest first. The one that was just made is none
    /// of them in any case: clocks go wrong.
    pub fn beyond_retention(
        &self,
        customer: CustomerId,
        made: SnapshotId,
    ) -> Result<Vec<SnapshotId>> {
        let mut own = of_customer(&*self.manual()?, customer)?;
        own.retain(|snapshot| is_manual(snapshot) && snapshot.id != made);
        let keep = usize::try_from(self.config.retention.manual).unwrap_or(usize::MAX);
        let excess = own.len().saturating_sub(keep.saturating_sub(1));
        Ok(own[..excess].iter().map(|snapshot| snapshot.id).collect())
    }
}

fn is_manual(snapshot: &Snapshot) -> bool {
    snapshot.origin() == Some(Origin::Manual)
}
