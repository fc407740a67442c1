//! Pieces of packs that were read before rustic asks for them.
//!
//! All archive runs of one open repository share the room, and each has a shelf of its own. Never: more held than [`BYTES_MAX`], whoever reads how much; a
//! piece handed out for another place than the one it was read from; anything left when the last shelf is gone.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use rustic_core::Id;

use super::index::Location;

/// Enough for the directories of a shop with 100,000 files in them, and little beside what a backup takes anyway.
const BYTES_MAX: usize = 32 * 1024 * 1024;
/// What a piece takes beside its bytes.
const PIECE_BYTES: usize = 160;

/// Where a piece was read from: what rustic asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Place {
    pub pack: Id,
    pub offset: u32,
    pub length: u32,
}

impl From<Location> for Place {
    fn from(location: Location) -> Self {
        Self {
            pack: location.pack,
            offset: location.offset,
            length: location.length,
        }
    }
}

/// All shelves of an open repository.
#[derive(Debug, Default)]
pub(super) struct Shelves {
    room: Arc<Room>,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    last: u64,
    shelves: BTreeMap<u64, HashMap<Place, Piece>>,
}

#[derive(Debug)]
struct Piece {
    sealed: Bytes,
    /// How many times it will be asked for: all empty directories of a snapshot are one and the same tree.
    times: u32,
    _room: Reserved,
}

impl Shelves {
    /// An empty one. What is on it goes with it.
    pub(super) fn add(self: &Arc<Self>) -> Shelf {
        let mut held = self.held();
        held.last += 1;
        let number = held.last;
        held.shelves.insert(number, HashMap::new());
        Shelf {
            shelves: Arc::clone(self),
            number,
        }
    }

    /// A piece, on whosever shelf: what lies at a place of a pack is the same for everybody. It is gone with the last time that it was to be asked for.
    pub(super) fn take(&self, place: &Place) -> Option<Bytes> {
        let mut held = self.held();
        let shelf = held
            .shelves
            .values_mut()
            .find(|shelf| shelf.contains_key(place))?;
        let piece = shelf.get_mut(place)?;
        piece.times -= 1;
        if piece.times > 0 {
            return Some(piece.sealed.clone());
        }
        shelf.remove(place).map(|piece| piece.sealed)
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one reader has put by.
#[derive(Debug)]
pub(super) struct Shelf {
    shelves: Arc<Shelves>,
    number: u64,
}

impl Shelf {
    /// Put a piece there that will be asked for so many times, in the room that was reserved for it.
    pub(super) fn put(&self, place: Place, sealed: Bytes, times: u32, room: Reserved) {
        let piece = Piece {
            sealed,
            times: times.max(1),
            _room: room,
        };
        let mut held = self.shelves.held();
        if let Some(shelf) = held.shelves.get_mut(&self.number) {
            shelf.insert(place, piece);
        }
    }

    /// Note that a piece will be asked for some more times; false where it is not there.
    pub(super) fn want_again(&self, place: &Place, times: u32) -> bool {
        let mut held = self.shelves.held();
        let shelf = held.shelves.get_mut(&self.number);
        let Some(piece) = shelf.and_then(|shelf| shelf.get_mut(place)) else {
            return false;
        };
        piece.times = piece.times.saturating_add(times);
        true
    }

    /// Room for a range that is about to be read, and for each of so many pieces of it; None where there is not so much left.
    pub(super) fn reserve(&self, bytes: u64, pieces: usize) -> Option<(Reserved, Vec<Reserved>)> {
        let bytes = usize::try_from(bytes).ok()?;
        let beside = pieces.checked_mul(PIECE_BYTES)?;
        let mut room = self.shelves.room.reserve(bytes.checked_add(beside)?)?;
        let pieces = (0..pieces).map(|_| room.split_off(PIECE_BYTES)).collect();
        Some((room, pieces))
    }

    /// Room for one more piece of what was read.
    pub(super) fn reserve_piece(&self) -> Option<Reserved> {
        self.shelves.room.reserve(PIECE_BYTES)
    }
}

impl Drop for Shelf {
    fn drop(&mut self) {
        self.shelves.held().shelves.remove(&self.number);
    }
}

#[derive(Debug, Default)]
struct Room {
    taken: AtomicUsize,
}

impl Room {
    fn reserve(self: &Arc<Self>, bytes: usize) -> Option<Reserved> {
        let more = |taken: usize| {
            let taken = taken.checked_add(bytes)?;
            (taken <= BYTES_MAX).then_some(taken)
        };
        self.taken
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, more)
            .ok()?;
        Some(Reserved {
            room: Arc::clone(self),
            bytes,
        })
    }
}

/// A part of the room, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Reserved {
    room: Arc<Room>,
    bytes: usize,
}

impl Reserved {
    fn split_off(&mut self, bytes: usize) -> Self {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        Self {
            room: Arc::clone(&self.room),
            bytes,
        }
    }

    /// What was read into it: it is given back when nobody holds a slice of that any more, rustic included.
    pub(super) fn hold(self, bytes: Bytes) -> Bytes {
        // Nobody else has it: that copies nothing. A buffer that grew as the bytes came is larger than they are.
        let mut content = Vec::from(bytes);
        content.shrink_to_fit();
        Bytes::from_owner(Kept {
            content,
            _room: self,
        })
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.room.taken.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

struct Kept {
    content: Vec<u8>,
    _room: Reserved,
}

impl AsRef<[u8]> for Kept {
    fn as_ref(&self) -> &[u8] {
        &self.content
    }
}

#[cfg(test)]
impl Shelves {
    /// Leave room for no more than so many bytes, as long as what it gives is held.
    pub(super) fn leave(&self, bytes: usize) -> Reserved {
        self.room.reserve(BYTES_MAX - bytes).unwrap()
    }

    /// The same where something is held already.
    pub(super) fn leave_of_the_rest(&self, bytes: usize) -> Reserved {
        let taken = self.room.taken.load(Ordering::Acquire);
        self.room.reserve(BYTES_MAX - taken - bytes).unwrap()
    }

    /// How many pieces there are, and what they take.
    pub(super) fn kept(&self) -> (usize, usize) {
        let pieces = self.held().shelves.values().map(HashMap::len).sum();
        (pieces, self.room.taken.load(Ordering::Acquire))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(offset: u32) -> Place {
        Place {
            pack: Id::default(),
            offset,
            length: 3,
        }
    }

    fn read_and_put(shelf: &Shelf, place: Place, bytes: &'static [u8]) {
        let (room, mut pieces) = shelf.reserve(bytes.len() as u64, 1).unwrap();
        let sealed = room.hold(Bytes::from_static(bytes));
        shelf.put(place, sealed, 1, pieces.pop().unwrap());
    }

    #[test]
    fn a_piece_is_there_as_often_as_it_is_wanted_and_then_gone() {
        let shelves = Arc::new(Shelves::default());
        let shelf = shelves.add();
        assert!(!shelf.want_again(&place(1), 1));
        read_and_put(&shelf, place(1), b"one");
        assert!(shelf.want_again(&place(1), 1));
        assert_eq!(shelves.take(&place(2)), None);
        for _ in 0..2 {
            assert_eq!(shelves.take(&place(1)).unwrap(), "one");
        }
        assert_eq!(shelves.take(&place(1)), None);
        assert_eq!(shelves.kept(), (0, 0));
    }

    #[test]
    fn each_takes_back_only_his_own() {
        let shelves = Arc::new(Shelves::default());
        let (mine, his) = (shelves.add(), shelves.add());
        read_and_put(&mine, place(1), b"one");
        read_and_put(&his, place(1), b"one");
        read_and_put(&his, place(2), b"two");
        assert_eq!(shelves.kept().0, 3);
        drop(mine);
        assert_eq!(shelves.take(&place(1)).unwrap(), "one");
        assert_eq!(shelves.take(&place(2)).unwrap(), "two");
        drop(his);
        assert_eq!(shelves.kept(), (0, 0));
    }

    #[test]
    fn what_was_read_has_the_room_to_be_put_by() {
        let shelves = Arc::new(Shelves::default());
        let (shelf, his) = (shelves.add(), shelves.add());
        let others = shelves.leave(6 + 2 * PIECE_BYTES + 2);
        let (room, pieces) = shelf.reserve(6, 2).unwrap();
        assert!(his.reserve(3, 0).is_none());
        let range = room.hold(Bytes::from_static(b"onetwo"));
        for (at, room) in pieces.into_iter().enumerate() {
            let sealed = range.slice(at * 3..at * 3 + 3);
            shelf.put(place(u32::try_from(at).unwrap()), sealed, 1, room);
        }
        drop(range);
        drop(others);
        assert_eq!(shelves.kept(), (2, 6 + 2 * PIECE_BYTES));
        assert_eq!(shelves.take(&place(0)).unwrap(), "one");
        assert_eq!(shelves.take(&place(1)).unwrap(), "two");
        assert_eq!(shelves.kept(), (0, 0));
    }

    #[test]
    fn no_more_is_held_than_there_is_room_for() {
        let shelves = Arc::new(Shelves::default());
        let shelf = shelves.add();
        let others = shelves.leave(PIECE_BYTES + 4);
        assert!(shelf.reserve(PIECE_BYTES as u64 + 5, 0).is_none());
        assert!(shelf.reserve(5, 1).is_none());
        assert!(shelf.reserve(0, usize::MAX).is_none());
        assert!(shelf.reserve(u64::MAX, 1).is_none());
        read_and_put(&shelf, place(1), b"one");
        assert!(shelf.reserve_piece().is_none());
        // Whoever was given it has it longer than the shelf.
        let taken = shelves.take(&place(1)).unwrap();
        drop(others);
        drop(shelf);
        assert_eq!(shelves.kept(), (0, 3));
        drop(taken);
        assert_eq!(shelves.kept(), (0, 0));
    }
}
