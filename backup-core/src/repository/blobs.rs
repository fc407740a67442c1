//! Reading many blobs at once: sorted by place, joined into ranges, fetched and opened by a few threads.
//!
//! The memory it holds is bounded by threads × range, whatever is read. The first error ends it and is the one returned.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use rustic_core::Id;

use super::bridge::file_id;
use super::index::Location;
use super::seal::Sealer;
use crate::error::{Error, ErrorKind, Result};
use crate::progress::Cancel;
use crate::storage::{FileKind, Storage};

/// Enough to keep two connections busy while others decompress.
const THREADS: usize = 4;
/// Larger ranges save round trips, smaller ones memory.
const RANGE_BYTES: u64 = 8 * 1024 * 1024;
/// A gap up to this is read along: cheaper than another round trip.
const GAP_BYTES: u64 = 256 * 1024;

/// A blob that is wanted, and what for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted<T> {
    pub location: Location,
    pub id: Id,
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
    wanted.sort_unstable_by_key(|blob| blob.location);
    let ranges = join(&wanted);
    in_parallel(&ranges, |range| {
        cancel.check()?;
        fetch_range(storage, sealer, &wanted[range.clone()], &deliver)
    })?;
    Ok(())
}

/// Which neighbours are read by one request.
fn join<T>(sorted: &[Wanted<T>]) -> Vec<Range<usize>> {
    let mut ranges: Vec<Range<usize>> = Vec::new();
    for (at, blob) in sorted.iter().enumerate() {
        if let Some(range) = ranges.last_mut() {
            let first = &sorted[range.start].location;
            let last = &sorted[range.end - 1].location;
            let gap = u64::from(blob.location.offset).saturating_sub(end(last));
            if first.pack == blob.location.pack
                && gap <= GAP_BYTES
                && end(&blob.location) - u64::from(first.offset) <= RANGE_BYTES
            {
                range.end = at + 1;
                continue;
            }
        }
        ranges.push(at..at + 1);
    }
    ranges
}

fn end(location: &Location) -> u64 {
    u64::from(location.offset) + u64::from(location.length)
}

fn fetch_range<T>(
    storage: &dyn Storage,
    sealer: &Sealer,
    blobs: &[Wanted<T>],
    deliver: &impl Fn(&T, &[u8]) -> Result<()>,
) -> Result<()> {
    let (Some(first), Some(last)) = (blobs.first(), blobs.last()) else {
        return Ok(());
    };
    let start = u64::from(first.location.offset);
    let pack = file_id(&first.location.pack);
    let bytes = storage.read_range(FileKind::Pack, &pack, start, end(&last.location) - start)?;
    for same in blobs.chunk_by(|a, b| a.location == b.location) {
        let Wanted { location, id, .. } = &same[0];
        let from = usize::try_from(u64::from(location.offset) - start).unwrap_or(usize::MAX);
        let sealed = from
            .checked_add(location.length as usize)
            .and_then(|to| bytes.get(from..to))
            .ok_or_else(|| {
                Error::new(
                    ErrorKind::Damaged,
                    format!("the pack {pack} is shorter than the index says"),
                )
            })?;
        let plain = sealer.open_blob(sealed, location.uncompressed_length, id)?;
        for blob in same {
            deliver(&blob.purpose, &plain)?;
        }
    }
    Ok(())
}

/// `work` on every item by a few threads; the results in the order of the items, or the first error.
pub(super) fn in_parallel<I: Sync, O: Send>(
    items: &[I],
    work: impl Fn(&I) -> Result<O> + Sync,
) -> Result<Vec<O>> {
    let next = AtomicUsize::new(0);
    let failed = AtomicBool::new(false);
    let done: Mutex<Vec<(usize, Result<O>)>> = Mutex::new(Vec::with_capacity(items.len()));
    let run = || {
        while !failed.load(Ordering::Acquire) {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(at) else { break };
            let result = work(item);
            if result.is_err() {
                failed.store(true, Ordering::Release);
            }
            done.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push((at, result));
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..THREADS.min(items.len()) {
            scope.spawn(run);
        }
        run();
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_unstable_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn blob(pack: u8, offset: u32, length: u32) -> Wanted<()> {
        Wanted {
            location: Location {
                pack: Id::new([pack; 32]),
                offset,
                length,
                uncompressed_length: None,
            },
            id: Id::default(),
            purpose: (),
        }
    }

    proptest! {
        #[test]
        fn every_blob_is_in_exactly_one_range_and_no_range_is_too_long(
            blobs in prop::collection::vec((0u8..3, 0u32..40_000_000, 32u32..8_000_000), 0..200)
        ) {
            let mut wanted: Vec<_> = blobs.into_iter().map(|(pack, offset, length)| blob(pack, offset, length)).collect();
            wanted.sort_unstable_by_key(|blob| blob.location);
            let ranges = join(&wanted);
            let mut next = 0;
            for range in ranges {
                prop_assert_eq!(range.start, next);
                prop_assert!(range.end > range.start);
                next = range.end;
                let first = &wanted[range.start].location;
                for blob in &wanted[range.clone()] {
                    prop_assert_eq!(blob.location.pack, first.pack);
                    prop_assert!(range.len() == 1 || end(&blob.location) - u64::from(first.offset) <= RANGE_BYTES);
                }
            }
            prop_assert_eq!(next, wanted.len());
        }
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
