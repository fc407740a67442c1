//! Forget backups: those beyond the newest few, and those that their customer deleted.
//!
//! The commit point is the removal of each snapshot file; the data goes with the next prune. Never: a snapshot forgotten of somebody else, or one that is not a manual one.

use super::Engine;
use super::backup::of_customer;
use crate::customer::CustomerId;
use crate::error::{Error, Result};
use crate::repository::{Origin, Snapshot, SnapshotId};

/// What retention did.
#[derive(Debug, Default)]
pub struct Forgotten {
    /// The snapshots that are gone.
    pub snapshots: Vec<SnapshotId>,
    /// Why others that should be gone are still there.
    pub failure: Option<Error>,
}

impl Engine {
    /// Forget a backup that its customer deleted; one that is gone already is fine. False where by its tags it is no manual backup of his: then
    /// it stays.
    pub fn forget_deleted(&self, customer: CustomerId, id: &SnapshotId) -> Result<bool> {
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

    /// Forget a customer's manual backups beyond the newest `retention.manual`, whatever their type; gives those that were forgotten.
    /// The one that was just made stays in any case: clocks go wrong.
    ///
    /// A failure leaves some of them for the next time and takes nothing from the backup that was made.
    pub fn forget_beyond_retention(&self, customer: CustomerId, made: SnapshotId) -> Forgotten {
        let mut forgotten = Forgotten::default();
        let done = self.excess(customer, made).and_then(|excess| {
            let repository = self.manual()?;
            for id in excess {
                repository.forget(&[id])?;
                forgotten.snapshots.push(id);
            }
            Ok(())
        });
        forgotten.failure = done.err();
        forgotten
    }

    fn excess(&self, customer: CustomerId, made: SnapshotId) -> Result<Vec<SnapshotId>> {
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
