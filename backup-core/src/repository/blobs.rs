//! Reading many blobs at once: sorted by place, joined into ranges, fetched and opened by a few threads.
//!
//! The memory it holds is bounded by threads × range, whatever is read. The first error ends it and is the one returned.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use rustic_core::Id;

use super::bridge::file_id;
use super::index::Location;
use super::seal::Sealer;
use crate::error::{Error, ErrorKind, Result};
use crate::progress::Cancel;
use crate::storage::{FileKind, Storage};

/// Enough to keep two connections busy while others decompress.
pub(super) const THREADS: usize = 4;
/// Larger ranges save round trips, smaller ones memory.
const RANGE_BYTES: u64 = 8 * 1024 * 1024;
/// A gap up to this is read along: cheaper than another round trip.
const GAP_BYTES: u64 = 256 * 1024;

/// A blob, and where it lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Blob {
    pub location: Location,
    pub id: Id,
}

/// A blob that is wanted, and what for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted<T> {
    pub blob: Blob,
    pub purpose: T,
}

/// Reads all blobs and hands each to `deliver`, in no order, from several threads. A blob that is wanted several times is read once.
pub(super) fn fetch<T: Sync + Send>(
    storage: &dyn Storage,
    sealer: &Sealer,
    mut wanted: Vec<Wanted<T>>,
    cancel: &Cancel,
    deliver: impl Fn(&T, &[u8]) -> Result<()> + Sync,
) -> Result<()> {
    wanted.sort_unstable_by_key(|wanted| wanted.blob);
    let blobs = Sorted {
        count: wanted.len(),
        get: |at: usize| Ok(wanted[at].blob),
    };
    fetch_sorted(storage, sealer, &blobs, cancel, |at, plain| {
        deliver(&wanted[at].purpose, plain)
    })
}

/// Blobs in the order in which they lie, from wherever the caller keeps them: there may be more than he wants to keep twice.
pub(super) struct Sorted<F> {
    pub count: usize,
    pub get: F,
}

/// As [`fetch`], handing out the place in the order instead of a purpose.
pub(super) fn fetch_sorted(
    storage: &dyn Storage,
    sealer: &Sealer,
    blobs: &Sorted<impl Fn(usize) -> Result<Blob> + Sync>,
    cancel: &Cancel,
    deliver: impl Fn(usize, &[u8]) -> Result<()> + Sync,
) -> Result<()> {
    fetch_sealed(storage, blobs, cancel, |same, blob, sealed| {
        let plain = sealer.open_blob(sealed, blob.location.uncompressed_length, &blob.id)?;
        same.into_iter().try_for_each(|at| deliver(at, &plain))
    })
}

/// As [`fetch_sorted`], with what lies in the pack: the caller opens it, where it is if he likes, and checks it. Each blob comes once, with all
/// the places that want it.
pub(super) fn fetch_sealed(
    storage: &dyn Storage,
    blobs: &Sorted<impl Fn(usize) -> Result<Blob> + Sync>,
    cancel: &Cancel,
    deliver: impl Fn(Range<usize>, &Blob, &mut [u8]) -> Result<()> + Sync,
) -> Result<()> {
    let large = Mutex::new(());
    let taken = Mutex::new(0);
    let next = || {
        let mut taken = taken.lock().unwrap_or_else(PoisonError::into_inner);
        let range = match blobs.range_from(*taken) {
            Ok(range) => range,
            Err(error) => return Some(Err(error)),
        };
        *taken = range.end;
        (!range.is_empty()).then_some(Ok(range))
    };
    work_off(THREADS.min(blobs.count), next, |range| {
        cancel.check()?;
        let range = range?;
        // A single blob may be larger than any range: of those one is in memory at a time.
        let first = (blobs.get)(range.start)?.location;
        let is_large = u64::from(first.length) > RANGE_BYTES;
        let _alone = is_large.then(|| large.lock().unwrap_or_else(PoisonError::into_inner));
        blobs.fetch_range(storage, range, &deliver)
    })
}

impl<F: Fn(usize) -> Result<Blob>> Sorted<F> {
    /// Which neighbours are read by one request.
    pub(super) fn range_from(&self, start: usize) -> Result<Range<usize>> {
        let mut range = start..start;
        if start >= self.count {
            return Ok(range);
        }
        let first = (self.get)(start)?.location;
        let mut end_before = end(&first);
        range.end += 1;
        while range.end < self.count {
            let next = (self.get)(range.end)?.location;
            let gap = u64::from(next.offset).saturating_sub(end_before);
            if next.pack != first.pack
                || gap > GAP_BYTES
                || end(&next) - u64::from(first.offset) > RANGE_BYTES
            {
                break;
            }
            end_before = end(&next);
            range.end += 1;
        }
        Ok(range)
    }

    fn fetch_range(
        &self,
        storage: &dyn Storage,
        range: Range<usize>,
        deliver: &impl Fn(Range<usize>, &Blob, &mut [u8]) -> Result<()>,
    ) -> Result<()> {
        let first = (self.get)(range.start)?.location;
        let last = (self.get)(range.end - 1)?.location;
        let start = u64::from(first.offset);
        let pack = file_id(&first.pack);
        let bytes = storage.read_range(FileKind::Pack, &pack, start, end(&last) - start)?;
        // Nobody else has it: that copies nothing.
        let mut bytes = Vec::from(bytes);
        let mut at = range.start;
        while at < range.end {
            let blob = (self.get)(at)?;
            let mut same = at..at + 1;
            while same.end < range.end && (self.get)(same.end)? == blob {
                same.end += 1;
            }
            at = same.end;
            let from =
                usize::try_from(u64::from(blob.location.offset) - start).unwrap_or(usize::MAX);
            let sealed = from
                .checked_add(blob.location.length as usize)
                .and_then(|to| bytes.get_mut(from..to))
                .ok_or_else(|| {
                    Error::new(
                        ErrorKind::Damaged,
                        format!("the pack {pack} is shorter than the index says"),
                    )
                })?;
            deliver(same, &blob, sealed)?;
        }
        Ok(())
    }
}

/// Where it ends in its pack.
pub(super) fn end(location: &Location) -> u64 {
    u64::from(location.offset) + u64::from(location.length)
}

/// What was read of the packs. Ranges may overlap.
#[derive(Default)]
pub(super) struct Ranges {
    /// By pack, and where they begin in it.
    ranges: BTreeMap<(Id, u32), Bytes>,
    bytes: usize,
}

impl Ranges {
    pub(super) fn add(&mut self, pack: Id, start: u32, bytes: Bytes) {
        self.bytes += bytes.len();
        if let Some(replaced) = self.ranges.insert((pack, start), bytes) {
            self.bytes -= replaced.len();
        }
    }

    /// What all of them hold.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// A blob, if it is in one of them.
    pub(super) fn get(&self, location: &Location) -> Option<Bytes> {
        // Where ranges overlap the blob may lie in one that begins some ranges before it. Only the nearest few are looked at, so that a look costs the
        // same however many there are; a blob that lies in none of them is read again.
        const LOOKS: usize = 4;
        let before = (location.pack, 0)..=(location.pack, location.offset);
        let mut before = self.ranges.range(before).rev().take(LOOKS);
        before.find_map(|((_, start), bytes)| {
            let from = (location.offset - start) as usize;
            let to = from.checked_add(location.length as usize)?;
            (to <= bytes.len()).then(|| bytes.slice(from..to))
        })
    }
}

/// `work` on every item by a few threads; the results in the order of the items, or the first error.
pub(super) fn in_parallel<I: Sync, O: Send>(
    items: &[I],
    work: impl Fn(&I) -> Result<O> + Sync,
) -> Result<Vec<O>> {
    in_parallel_by(THREADS, items, work)
}

/// As [`in_parallel`], by so many threads.
pub(super) fn in_parallel_by<I: Sync, O: Send>(
    threads: usize,
    items: &[I],
    work: impl Fn(&I) -> Result<O> + Sync,
) -> Result<Vec<O>> {
    let taken = AtomicUsize::new(0);
    let done: Mutex<Vec<(usize, O)>> = Mutex::new(Vec::with_capacity(items.len()));
    let next = || {
        let at = taken.fetch_add(1, Ordering::Relaxed);
        items.get(at).map(|item| (at, item))
    };
    work_off(threads.min(items.len()), next, |(at, item)| {
        let result = work(item)?;
        done.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push((at, result));
        Ok(())
    })?;
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_unstable_by_key(|(at, _)| *at);
    Ok(done.into_iter().map(|(_, result)| result).collect())
}

/// `work` on what `next` gives by so many threads, or fewer where the system has no more, until it gives nothing more. The first error ends it.
pub(super) fn work_off<I>(
    threads: usize,
    next: impl Fn() -> Option<I> + Sync,
    work: impl Fn(I) -> Result<()> + Sync,
) -> Result<()> {
    let failure: Mutex<Option<Error>> = Mutex::new(None);
    let failed = AtomicBool::new(false);
    let run = || {
        while !failed.load(Ordering::Acquire) {
            let Some(item) = next() else { break };
            if let Err(error) = work(item) {
                failed.store(true, Ordering::Release);
                let mut failure = failure.lock().unwrap_or_else(PoisonError::into_inner);
                failure.get_or_insert(error);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            let started = std::thread::Builder::new().spawn_scoped(scope, run);
            if let Err(error) = started {
                tracing::debug!("fewer threads read than should: {error}");
                break;
            }
        }
        run();
    });
    match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn blob(pack: u8, offset: u32, length: u32) -> Blob {
        Blob {
            location: Location {
                pack: Id::new([pack; 32]),
                offset,
                length,
                uncompressed_length: None,
            },
            id: Id::default(),
        }
    }

    proptest! {
        #[test]
        fn every_blob_is_in_exactly_one_range_and_no_range_is_too_long(
            blobs in prop::collection::vec((0u8..3, 0u32..40_000_000, 32u32..8_000_000), 0..200)
        ) {
            let mut wanted: Vec<_> = blobs.into_iter().map(|(pack, offset, length)| blob(pack, offset, length)).collect();
            wanted.sort_unstable();
            let sorted = Sorted { count: wanted.len(), get: |at: usize| Ok(wanted[at]) };
            let mut next = 0;
            while next < wanted.len() {
                let range = sorted.range_from(next).unwrap();
                prop_assert_eq!(range.start, next);
                prop_assert!(range.end > range.start);
                next = range.end;
                let first = &wanted[range.start].location;
                for blob in &wanted[range.clone()] {
                    prop_assert_eq!(blob.location.pack, first.pack);
                    prop_assert!(range.len() == 1 || end(&blob.location) - u64::from(first.offset) <= RANGE_BYTES);
                }
            }
            prop_assert!(sorted.range_from(next).unwrap().is_empty());
            prop_assert_eq!(next, wanted.len());
        }
    }

    #[test]
    fn a_blob_is_found_in_what_was_read_and_its_bytes_are_counted_once() {
        let mut ranges = Ranges::default();
        let pack = Id::new([1; 32]);
        ranges.add(pack, 10, Bytes::from_static(b"0123456789"));
        ranges.add(pack, 15, Bytes::from_static(b"567"));
        ranges.add(pack, 15, Bytes::from_static(b"56"));
        assert_eq!(ranges.bytes(), 12);
        let get = |offset, length| ranges.get(&blob(1, offset, length).location);
        assert_eq!(get(15, 2).unwrap(), "56");
        assert_eq!(get(16, 4).unwrap(), "6789");
        assert_eq!(get(16, 5), None);
        assert_eq!(get(9, 2), None);
        assert_eq!(ranges.get(&blob(2, 15, 2).location), None);
    }

    #[test]
    fn the_first_error_ends_parallel_work() {
        let items: Vec<u32> = (0..1000).collect();
        let result = in_parallel(&items, |item| {
            if *item == 3 {
                return Err(Error::new(ErrorKind::Failed, "three"));
            }
            Ok(*item)
        });
        assert_eq!(result.unwrap_err().to_string(), "three");
        assert_eq!(in_parallel(&items, |item| Ok(*item)).unwrap(), items);
    }
}
