//! Which of a customer's backups are beyond the newest few, and forgetting one.
//!
//! The commit point is the removal of the snapshot file; the data goes with the next prune. Never: a snapshot forgotten of somebody else, or one
//! of another origin.

use super::Engine;
use super::backup::of_customer;
use crate::customer::CustomerId;
use crate::error::Result;
use crate::repository::{Origin, SnapshotId};

/// What became of the wish to forget a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forgetting {
    /// It was there, and is not any more.
    Done,
    /// It was not there. It may come back: only who removed it knows that it is gone for good.
    Missing,
    /// By its tags it is no backup of this customer, or of another origin: it stays.
    NotHis,
}

impl Engine {
    /// Forget a backup of a customer's own.
    pub fn forget(
        &self,
        customer: CustomerId,
        origin: Origin,
        id: &SnapshotId,
    ) -> Result<Forgetting> {
        let repository = self.manual_of(customer)?;
        let Some(snapshot) = repository.snapshot(id)? else {
            return Ok(Forgetting::Missing);
        };
        if snapshot.origin() != Some(origin) || snapshot.owner() != Some(customer) {
            return Ok(Forgetting::NotHis);
        }
        repository.forget(&[*id])?;
        Ok(Forgetting::Done)
    }

    /// A customer's backups of one origin beyond the newest few (`retention.manual`, `retention.pre_restore`), whatever their type, oldest first. The
    /// one that was just made is none of them in any case: clocks go wrong.
    pub fn beyond_retention(
        &self,
        customer: CustomerId,
        origin: Origin,
        made: SnapshotId,
    ) -> Result<Vec<SnapshotId>> {
        let mut own = of_customer(&*self.manual_of(customer)?, customer)?;
        own.retain(|snapshot| snapshot.origin() == Some(origin) && snapshot.id != made);
        let keep = match origin {
            Origin::Manual => self.config.retention.manual,
            Origin::PreRestore => self.config.retention.pre_restore,
        };
        let keep = usize::try_from(keep).unwrap_or(usize::MAX);
        let excess = own.len().saturating_sub(keep.saturating_sub(1));
        Ok(own[..excess].iter().map(|snapshot| snapshot.id).collect())
    }
}
