//! Forgetting, pruning and checking.
//!
//! Forgetting removes snapshot files and nothing else. Pruning removes packs that no snapshot needs: only under the exclusive lock, and
//! only from listings that were read under it. rustic's pruning beside a backup loses data; and where a listing lacks a snapshot, what
//! that one needs looks like waste: so whoever knows what must be there says so.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rand::seq::SliceRandom;
use rustic_core::{CheckOptions, LimitOption, PruneOptions};
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::bridge::from_rustic;
use super::{ReadSnapshots, Repository, SnapshotId, blobs, guarded};
use crate::config::Sample;
use crate::error::{Error, ErrorKind, Result};
use crate::progress::Cancel;
use crate::storage::{FileId, FileKind};

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

/// What reading some packs found.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct SampleReport {
    /// Packs that were read.
    pub packs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Packs that were to be read, too, when the time was over.
    pub packs_left: u64,
    /// What is damaged.
    pub errors: Vec<String>,
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
        let ReadSnapshots { snapshots, damaged } = self.read_anew()?;
        let trees: Vec<_> = snapshots.iter().map(|snapshot| snapshot.tree).collect();
        let options = CheckOptions::default()
            .trust_cache(true)
            .read_data(read_data);
        let results = guarded(|| self.shared.opened.check_with_trees(options, trees))?
            .map_err(|error| from_rustic("the repository could not be checked", error))?;
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

    /// Read some packs, and all index files, and compare each with its name, which is the hash of all that is in it: what was damaged since it was written
    /// is found, whoever needs it. What of a snapshot is missing is not: see [`Self::check`].
    ///
    /// Takes the shared lock, which keeps everybody from pruning: with a limit it ends by then, and the report says how much it came to. An error means that it could
    /// not be done to the end; damage is in the report.
    pub fn read_sample(
        &self,
        sample: Sample,
        limit: Option<Duration>,
        cancel: &Cancel,
    ) -> Result<SampleReport> {
        let began = Instant::now();
        let is_over = || limit.is_some_and(|limit| began.elapsed() >= limit);
        let _lock = self.lock_shared()?;
        let mut packs = self.storage.list(FileKind::Pack)?;
        choose(&mut packs, sample);
        // Those that the time does not suffice for are others each time.
        packs.shuffle(&mut rand::rng());
        let chosen = packs.len();
        // Who has copies of these would not notice.
        let indexes = self.storage.list(FileKind::Index)?;
        let of_kind = |kind| move |(id, bytes): &(FileId, u64)| (kind, *id, *bytes);
        let files: Vec<_> = indexes
            .iter()
            .map(of_kind(FileKind::Index))
            .chain(packs.iter().map(of_kind(FileKind::Pack)))
            .collect();
        let read = blobs::in_parallel(&files, |(kind, id, bytes)| {
            let name = match kind {
                FileKind::Pack => "pack",
                _ => "index file",
            };
            let error = match self.hash_of(*kind, id, *bytes, &is_over, cancel) {
                Ok(None) => return Ok(None),
                Ok(Some(hash)) if hash == *id => None,
                Ok(Some(_)) => Some(format!(
                    "the {name} {id} is damaged: what is in it is not what its name says"
                )),
                Err(error) if matches!(error.kind(), ErrorKind::Damaged | ErrorKind::NotFound) => {
                    Some(format!("the {name} {id} cannot be read: {}", error.chain()))
                }
                Err(error) => return Err(error),
            };
            Ok(Some(((*kind == FileKind::Pack).then_some(*bytes), error)))
        })?;
        let (bytes, errors): (Vec<Option<u64>>, Vec<Option<String>>) =
            read.into_iter().flatten().unzip();
        let bytes: Vec<u64> = bytes.into_iter().flatten().collect();
        Ok(SampleReport {
            packs: bytes.len() as u64,
            bytes: bytes.iter().sum(),
            packs_left: (chosen - bytes.len()) as u64,
            errors: errors.into_iter().flatten().collect(),
        })
    }

    /// In pieces: other programs make packs of any size. None where the time was over before its end.
    fn hash_of(
        &self,
        kind: FileKind,
        id: &FileId,
        bytes: u64,
        is_over: &impl Fn() -> bool,
        cancel: &Cancel,
    ) -> Result<Option<FileId>> {
        const PIECE: u64 = 4 << 20;
        let mut hash = Sha256::new();
        let mut read = 0;
        while read < bytes {
            cancel.check()?;
            if is_over() {
                return Ok(None);
            }
            let piece = PIECE.min(bytes - read);
            hash.update(&self.storage.read_range(kind, id, read, piece)?);
            read += piece;
        }
        Ok(Some(FileId(hash.finalize().into())))
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

    fn pack_sizes(&self) -> Result<std::collections::HashMap<FileId, u64>> {
        Ok(self.storage.list(FileKind::Pack)?.into_iter().collect())
    }
}

/// Of any packs one is read at least.
fn choose(packs: &mut Vec<(FileId, u64)>, sample: Sample) {
    match sample {
        Sample::Percent(percent) => {
            packs.shuffle(&mut rand::rng());
            // As many as a repository has are far within what a float holds exactly.
            let wanted = (packs.len() as f64 * percent / 100.0).ceil() as usize;
            packs.truncate(wanted.max(1));
        }
        // As the restic program does it.
        Sample::Part { n, t } => packs.retain(|(id, _)| id.0[0] % t == n - 1),
    }
}

#[cfg(test)]
mod tests {
    use xtask::restic::Restic;

    use super::*;
    use crate::storage;

    #[test]
    fn a_sample_ends_when_its_time_is_over_and_says_how_much_of_it_was_read() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("repository");
        let location = storage::Location::from(&*path);
        let storage = storage::open(&location, &Default::default()).unwrap();
        let repository = Repository::init(storage, &"password".to_owned().into()).unwrap();
        let restic = Restic::new(&path, "password").unwrap();
        let file = scratch.path().join("something");
        for content in ["one", "two", "three"] {
            std::fs::write(&file, content).unwrap();
            restic.backup([&file], &["any"]).unwrap();
        }
        let packs = repository.pack_sizes().unwrap();
        let (count, bytes) = (packs.len() as u64, packs.values().sum::<u64>());
        assert!(count > 3);
        let hour = Duration::from_secs(60 * 60);
        for (limit, wanted) in [
            (None, (count, 0, bytes)),
            (Some(hour), (count, 0, bytes)),
            (Some(Duration::ZERO), (0, count, 0)),
        ] {
            let sample = "100%".parse().unwrap();
            let report = repository.read_sample(sample, limit, &Cancel::new());
            let report = report.unwrap();
            assert!(report.errors.is_empty());
            let read = (report.packs, report.packs_left, report.bytes);
            assert_eq!(read, wanted, "{limit:?}");
        }
        // Nobody has to wait for its lock any more.
        drop(repository.lock_exclusive().unwrap());
    }

    fn packs(count: u8) -> Vec<(FileId, u64)> {
        (0..count).map(|n| (FileId([n; 32]), 1)).collect()
    }

    fn chosen(count: u8, sample: &str) -> Vec<u8> {
        let mut packs = packs(count);
        choose(&mut packs, sample.parse().unwrap());
        packs.iter().map(|(id, _)| id.0[0]).collect()
    }

    #[test]
    fn a_share_is_never_nothing_and_all_parts_together_are_all() {
        for (count, sample, wanted) in [
            (200, "5%", 10),
            (200, "100%", 200),
            (199, "0.5%", 1),
            (3, "1%", 1),
            (0, "50%", 0),
        ] {
            let mut some = chosen(count, sample);
            some.sort_unstable();
            some.dedup();
            assert_eq!(some.len(), wanted, "{sample} of {count}");
        }
        let mut all = [1, 2, 3].map(|n| chosen(200, &format!("{n}/3"))).concat();
        assert_eq!(chosen(200, "2/3")[..2], [1, 4]);
        all.sort_unstable();
        assert_eq!(all, (0..200).collect::<Vec<u8>>());
    }

    #[test]
    fn what_is_no_subset_is_refused() {
        for bad in [
            "", "5", "0%", "-1%", "101%", "NaN%", "0/3", "4/3", "1/0", "1/256", "1/2/3", "all",
            "10G",
        ] {
            assert!(bad.parse::<Sample>().is_err(), "{bad}");
        }
        for good in ["5%", "0.5%", "100%", "1/1", "255/255"] {
            assert_eq!(good.parse::<Sample>().unwrap().to_string(), good);
        }
    }
}
