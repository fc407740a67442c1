//! Which of a customer's backups are beyond the newest few, and forgetting one.
//!
//! The commit point is the removal of the snapshot file; the data goes with the next prune. Never: a snapshot forgotten of somebody else, or one
//! that is not a manual one.

use super::Engine;
use super::backup::of_customer;
use crate::customer::CustomerId;
use crate::error::Result;
use crate::repository::{Origin, Snapshot, SnapshotId};

/// What became of the wish to forget a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forgetting {
    /// It was there, and is not any more.
    Done,
    /// It was not there. It may come back: only who removed it knows that it is gone for good.
    Missing,
    /// By its tags it is no manual backup of this customer: it stays.
    NotHis,
}

impl Engine {
    /// Forget a manual backup of a customer.
    pub fn forget(&self, customer: CustomerId, id: &SnapshotId) -> Result<Forgetting> {
        let repository = self.manual()?;
        let Some(snapshot) = repository.snapshot(id)? else {
            return Ok(Forgetting::Missing);
        };
        if !is_manual(&snapshot) || snapshot.owner() != Some(customer) {
            return Ok(Forgetting::NotHis);
        }
        repository.forget(&[*id])?;
        Ok(Forgetting::Done)
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
