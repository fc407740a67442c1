//! Forgetting, pruning and checking.
//!
//! Forgetting removes snapshot files and nothing else. Pruning removes packs that no snapshot needs: only under the exclusive lock, and
//! only from listings that were read under it. rustic's pruning beside a backup loses data; and where a listing lacks a snapshot, what
//! that one needs looks like waste: so whoever knows what must be there says so.

use std::collections::BTreeSet;

use rustic_core::{CheckOptions, LimitOption, PruneOptions};
use serde::Serialize;

use super::bridge::from_rustic;
use super::{Repository, SnapshotId, guarded};
use crate::error::{Error, ErrorKind, Result};
use crate::storage::FileKind;

/// What a prune did.
#[derive(Debug, Clone, Copy, Serialize)]
#[non_exhaustive]
pub struct PruneReport {
    /// Bytes in packs before.
    pub bytes_before: u64,
    /// Bytes in packs after.
    pub bytes_after: u64,
    /// Packs removed.
    pub packs_removed: u64,
}

/// What a check found.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct CheckReport {
    /// Snapshots that were looked at.
    pub snapshots: usize,
    /// Whether every pack was read and compared with its name.
    pub data_read: bool,
    /// What is damaged; empty for a sound repository.
    pub errors: Vec<String>,
    /// What is untidy but harms nothing.
    pub warnings: Vec<String>,
}

impl Repository {
    /// Forget snapshots by id. The commit point is each snapshot file's removal; one that is already gone is fine.
    pub fn forget(&self, ids: &[SnapshotId]) -> Result<()> {
        for id in ids {
            self.storage
                .remove(FileKind::Snapshot, &id.0)
                .map_err(|error| {
                    error.context(format!("the snapshot {id} could not be forgotten"))
                })?;
        }
        Ok(())
    }

    /// Remove the packs that no snapshot needs, and repack those that are mostly waste.
    ///
    /// Takes the exclusive lock; fails with [`ErrorKind::Busy`] when anybody uses the repository, and with [`ErrorKind::Damaged`], having removed
    /// nothing, when one of `must_be_there` is missing or any snapshot cannot be read. Cannot be cancelled: it removes only after everything
    /// that stays was written and indexed.
    pub fn prune(&self, must_be_there: &BTreeSet<SnapshotId>) -> Result<PruneReport> {
        let lock = self.lock_exclusive()?;
        self.require_listed(must_be_there)?;
        let packs_before = self.pack_sizes()?;
        let mut options = PruneOptions::default()
            .instant_delete(true)
            .keep_delete(jiff::Span::new());
        options.max_repack = LimitOption::Unlimited;
        let failed = |error| from_rustic("the repository could not be pruned", error);
        let plan = guarded(|| self.shared.opened.prune_plan(&options))?.map_err(failed)?;
        lock.require_held()?;
        guarded(|| self.shared.opened.prune(&options, plan))?.map_err(failed)?;
        let packs_after = self.pack_sizes()?;
        Ok(PruneReport {
            bytes_before: packs_before.values().sum(),
            bytes_after: packs_after.values().sum(),
            packs_removed: packs_before
                .keys()
                .filter(|id| !packs_after.contains_key(id))
                .count() as u64,
        })
    }

    /// Check that every snapshot's trees and blobs are there; with `read_data` also that every pack holds what its name says.
    ///
    /// Takes the shared lock. An error means that the check itself could not be made; damage is in the report.
    pub fn check(&self, read_data: bool) -> Result<CheckReport> {
        let _lock = self.lock_shared()?;
        let snapshots = self.snapshots()?;
        let trees: Vec<_> = snapshots.iter().map(|snapshot| snapshot.tree).collect();
        let options = CheckOptions::default()
            .trust_cache(true)
            .read_data(read_data);
        let results = guarded(|| self.shared.opened.check_with_trees(options, trees))?
            .map_err(|error| from_rustic("the repository could not be checked", error))?;
        let damaged = self.damaged_snapshots();
        let mut report = CheckReport {
            snapshots: snapshots.len() + damaged.len(),
            data_read: read_data,
            errors: damaged
                .iter()
                .map(|id| {
                    format!("the snapshot {id} is damaged: remove its file, and make a new backup")
                })
                .collect(),
            warnings: Vec::new(),
        };
        for (level, finding) in results.0 {
            // The type of the level has no public name.
            if format!("{level:?}") == "Error" {
                report.errors.push(finding.to_string());
            } else {
                report.warnings.push(finding.to_string());
            }
        }
        Ok(report)
    }

    fn require_listed(&self, must_be_there: &BTreeSet<SnapshotId>) -> Result<()> {
        let listed = self.snapshot_ids()?;
        let missing = must_be_there.difference(&listed).count();
        if missing == 0 {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Damaged,
            format!(
                "the catalogue knows {missing} of {} snapshots that the repository at {} does not list, so nothing was removed: \
                 if they were removed on purpose, run `sync`; if not, find out what became of them before anything is pruned",
                must_be_there.len(),
                self.location()
            ),
        ))
    }

    fn pack_sizes(&self) -> Result<std::collections::HashMap<crate::storage::FileId, u64>> {
        Ok(self.storage.list(FileKind::Pack)?.into_iter().collect())
    }
}
