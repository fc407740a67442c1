//! Reading the parent's directories before rustic asks for them.
//!
//! rustic reads a directory of the parent when the walk comes to it, one after the other, and each costs a round trip. Here those above all parts are
//! read before the run, and those of a part when its walk begins: level by level, for they lie side by side, and each range of a pack once, since
//! what lies below a directory is found beside it. The bridge hands rustic what is there, and rustic reads the rest itself. So
//! nothing depends on it, and what goes wrong here is nobody's error: on the way it ends the reading ahead of all parts that were not found by then,
//! below a part what is left of that one.
//!
//! A part is read ahead in the thread that walks, just before rustic asks for its root. So rustic never asks for a directory that is on its way: there
//! is nothing to wait for and nothing read twice. The levels cost about as many round trips as the part is deep.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use rustic_core::repofile::Node;
use rustic_core::{Id, TreeId};

use super::archive::{ArchiveRequest, names};
use super::blobs::{self, Blob, Ranges, Sorted};
use super::bridge::file_id;
use super::index::Index;
use super::seal::Sealer;
use super::shelf::{Reserved, Shelf};
use super::tree::Nodes;
use super::{Repository, SnapshotId};
use crate::error::{Error, ErrorKind, Result};
use crate::storage::{FileKind, Storage};

/// A directory that takes more, with some 100,000 entries, is left to rustic: its round trip is the least of what it costs.
const TREE_BYTES_MAX: u32 = 8 * 1024 * 1024;
/// What is read along before a range, where a level takes few of them: there lies what is below, and that is cheaper than another round trip.
const LEAD_BYTES: u32 = 256 * 1024;
/// A part of which so much was read has its directories all over the packs: what lies before a range is not what is below.
const LEADS_UNTIL_BYTES: usize = 2 * 1024 * 1024;
/// How many directories of one level are noted at most, before it is known what room they take. The notes are beside that room: some hundred bytes each.
const LEVEL_MAX: usize = 20_000;

/// The names on the way from the root to what is saved.
#[derive(Debug, Default)]
pub(super) struct Way {
    below: BTreeMap<OsString, Self>,
    /// Here a tree begins, which has this path.
    part: Option<PathBuf>,
}

impl Way {
    pub(super) fn to(request: &ArchiveRequest) -> Self {
        let mut way = Self::default();
        for tree in &request.trees {
            way.at(&tree.path).part = Some(tree.path.clone());
        }
        for directory in request.streams.iter().filter_map(|it| it.path.parent()) {
            way.at(directory);
        }
        way
    }

    fn at(&mut self, path: &Path) -> &mut Self {
        names(path).fold(self, |way, name| way.below.entry(name.into()).or_default())
    }
}

/// Whether the run is to end: then nothing is read ahead any more.
pub(super) type MustStop = Box<dyn Fn() -> bool + Send + Sync>;

/// The parent of one archive run. Dropping it forgets all that was read.
pub(super) struct ReadAhead {
    storage: Arc<dyn Storage>,
    sealer: Arc<Sealer>,
    index: Index,
    must_stop: MustStop,
    /// The parent's root.
    root: TreeId,
    /// Where the parts begin in the parent, by their paths.
    parts: HashMap<PathBuf, TreeId>,
    /// The directories above the parts.
    above: Shelf,
    /// Those of the part that is being walked.
    part: Option<Shelf>,
    /// What was read on the way: some of the first part is beside it.
    ranges: Ranges,
}

/// A directory of a level.
#[derive(Clone, Copy)]
struct Directory {
    tree: TreeId,
    /// How many times it stands there.
    times: u32,
}

impl ReadAhead {
    /// Nothing of its directories is read yet. None where there is no such parent.
    pub(super) fn of(
        repository: &Repository,
        index: &Index,
        parent: &SnapshotId,
        must_stop: MustStop,
    ) -> Option<Self> {
        let read = repository.read_snapshots(std::slice::from_ref(parent));
        let root = read.ok()?.snapshots.first()?.tree;
        Some(Self {
            storage: Arc::clone(&repository.storage),
            sealer: Arc::clone(&repository.shared.sealer),
            index: index.clone(),
            must_stop,
            root,
            parts: HashMap::new(),
            above: index.shelves().add(),
            part: None,
            ranges: Ranges::default(),
        })
    }

    /// Reads what lies on the way. Call it before the run.
    pub(super) fn read_way(&mut self, way: &Way) {
        let mut parts = HashMap::new();
        let mut ranges = Ranges::default();
        if let Err(error) = self.find_parts(way, &mut parts, &mut ranges) {
            note(&error);
        }
        (self.parts, self.ranges) = (parts, ranges);
    }

    /// The walk of the tree that has this path begins. rustic is through with the one before.
    pub(super) fn begin(&mut self, path: &Path) {
        self.part = None;
        let ranges = std::mem::take(&mut self.ranges);
        let Some(root) = self.parts.remove(path) else {
            return;
        };
        let shelf = self.index.shelves().add();
        if let Err(error) = self.read_below(root, ranges, &shelf) {
            note(&error);
        }
        self.part = Some(shelf);
    }

    /// Where the parts begin, and what was read to find them.
    fn find_parts(
        &self,
        way: &Way,
        parts: &mut HashMap<PathBuf, TreeId>,
        ranges: &mut Ranges,
    ) -> Result<()> {
        let mut level = HashMap::from([(self.root, vec![way])]);
        while !level.is_empty() {
            let (directories, ways): (Vec<_>, Vec<_>) = level
                .into_iter()
                .map(|(tree, ways)| {
                    let times = count(ways.len());
                    (Directory { tree, times }, ways)
                })
                .unzip();
            let find = |at: usize, node: &Node, below: TreeId, found: &mut Vec<_>| {
                let name = node.name();
                let next = ways[at].iter().filter_map(|way| way.below.get(&*name));
                found.extend(next.map(|way| (way, below)));
            };
            let found = self.read_level(&self.above, ranges, &directories, find)?;
            level = HashMap::new();
            for (way, tree) in found {
                match &way.part {
                    Some(path) => {
                        parts.insert(path.clone(), tree);
                    }
                    None => level.entry(tree).or_default().push(way),
                }
            }
        }
        Ok(())
    }

    /// All that is below a directory, as far as there is room for it.
    fn read_below(&self, root: TreeId, mut ranges: Ranges, shelf: &Shelf) -> Result<()> {
        let mut level = HashMap::from([(root, 1)]);
        while !level.is_empty() {
            let directories: Vec<Directory> = level
                .drain()
                .map(|(tree, times)| Directory { tree, times })
                .collect();
            let find = |at: usize, _: &Node, tree: TreeId, found: &mut Vec<_>| {
                let times = directories[at].times;
                found.push(Directory { tree, times });
            };
            for found in self.read_level(shelf, &mut ranges, &directories, find)? {
                let times: &mut u32 = level.entry(found.tree).or_default();
                *times = times.saturating_add(found.times);
            }
        }
        Ok(())
    }

    /// Puts by those of these directories for which there is room, each for as many times as it stands there, and gives what `find`, which is asked for
    /// each directory below, found in them. One that was put by before is not looked into again.
    fn read_level<F: Send>(
        &self,
        shelf: &Shelf,
        ranges: &mut Ranges,
        directories: &[Directory],
        find: impl Fn(usize, &Node, TreeId, &mut Vec<F>) + Sync,
    ) -> Result<Vec<F>> {
        let mut wanted = Vec::with_capacity(directories.len());
        for (at, Directory { tree, times }) in directories.iter().enumerate() {
            // What the index lacks is rustic's to tell.
            let Ok(location) = self.index.locate(tree) else {
                continue;
            };
            if location.length <= TREE_BYTES_MAX && !shelf.want_again(&location.into(), *times) {
                let blob = Blob {
                    location,
                    id: **tree,
                };
                wanted.push((blob, at));
            }
        }
        wanted.sort_unstable();
        let reserved = Mutex::new(self.fetch(shelf, ranges, &wanted)?);
        let noted = AtomicUsize::new(0);
        let found = blobs::in_parallel(&wanted, |(blob, at)| {
            self.check()?;
            let mut found = Vec::new();
            let Some(sealed) = ranges.get(&blob.location) else {
                return Ok(found);
            };
            let look = |node: Node| {
                if let Some(below) = node.subtree
                    && noted.load(Ordering::Relaxed) < LEVEL_MAX
                {
                    let before = found.len();
                    find(*at, &node, below, &mut found);
                    noted.fetch_add(found.len() - before, Ordering::Relaxed);
                }
                Ok(())
            };
            if self.look_into(blob, &sealed, look).is_err() {
                // A damaged one, too, is rustic's to tell: it reads it itself.
                return Ok(Vec::new());
            }
            let room = reserved
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .pop();
            // There is none reserved for what was read along with something else. What is below may be put by all the same.
            if let Some(room) = room.or_else(|| shelf.reserve_piece()) {
                shelf.put(blob.location.into(), sealed, directories[*at].times, room);
            }
            Ok(found)
        })?;
        Ok(found.into_iter().flatten().collect())
    }

    /// Only when it is Ok what was seen is right.
    fn look_into(
        &self,
        blob: &Blob,
        sealed: &[u8],
        look: impl FnMut(Node) -> Result<()>,
    ) -> Result<()> {
        let opened = &self.sealer.open(sealed)?;
        Nodes { blob, opened }.for_each(look)
    }

    /// Reads the ranges that hold these blobs, if they were not read before and there is room for them; gives the room to put the blobs by.
    fn fetch(
        &self,
        shelf: &Shelf,
        ranges: &mut Ranges,
        wanted: &[(Blob, usize)],
    ) -> Result<Vec<Reserved>> {
        let missing: Vec<Blob> = wanted
            .iter()
            .map(|(blob, _)| *blob)
            .filter(|blob| ranges.get(&blob.location).is_none())
            .collect();
        let sorted = Sorted {
            count: missing.len(),
            get: |at: usize| Ok(missing[at]),
        };
        let mut joined = Vec::new();
        let mut at = 0;
        while at < missing.len() {
            let range = sorted.range_from(at)?;
            at = range.end;
            joined.push(range);
        }
        let has_lead = joined.len() <= blobs::THREADS && ranges.bytes() < LEADS_UNTIL_BYTES;
        let lead = if has_lead { LEAD_BYTES } else { 0 };
        let fetched = blobs::in_parallel(&joined, |range| {
            self.check()?;
            self.fetch_range(shelf, &missing[range.clone()], lead)
        })?;
        let mut reserved = Vec::new();
        for fetched in fetched.into_iter().flatten() {
            ranges.add(fetched.pack, fetched.start, fetched.bytes);
            reserved.extend(fetched.pieces);
        }
        Ok(reserved)
    }

    /// Reads neighbours, or the first of them where there is no room for all.
    fn fetch_range(
        &self,
        shelf: &Shelf,
        mut blobs: &[Blob],
        mut lead: u32,
    ) -> Result<Option<Fetched>> {
        while let [first, .., last] | [first @ last] = blobs {
            let (first, last) = (&first.location, &last.location);
            let start = first.offset.saturating_sub(lead);
            let length = blobs::end(last) - u64::from(start);
            if let Some((room, pieces)) = shelf.reserve(length, blobs.len()) {
                let pack = file_id(&first.pack);
                let bytes = self
                    .storage
                    .read_range(FileKind::Pack, &pack, start.into(), length)?;
                return Ok(Some(Fetched {
                    pack: first.pack,
                    start,
                    bytes: room.hold(bytes),
                    pieces,
                }));
            }
            match lead {
                0 => blobs = &blobs[..blobs.len() / 2],
                _ => lead = 0,
            }
        }
        Ok(None)
    }

    fn check(&self) -> Result<()> {
        match (self.must_stop)() {
            true => Err(Error::new(ErrorKind::Cancelled, "the run is to end")),
            false => Ok(()),
        }
    }
}

/// A range that was read.
struct Fetched {
    pack: Id,
    start: u32,
    bytes: Bytes,
    /// The room for each blob that it was read for.
    pieces: Vec<Reserved>,
}

fn count(times: usize) -> u32 {
    u32::try_from(times).unwrap_or(u32::MAX)
}

fn note(error: &Error) {
    tracing::debug!(
        "the parent's directories are not read ahead any further: {}",
        error.chain()
    );
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;
    use rustic_core::{ReadSource, ReadSourceOpen};

    use crate::progress::{Cancel, Control};
    use crate::repository::shelf::Shelves;
    use crate::repository::source::{MixedSource, OnFailure};
    use crate::repository::{Snapshot, StreamSource};
    use crate::storage::{self, FileId, Location as Place};

    /// What is wrong with the packs.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Fault {
        Away,
        /// The next request alone.
        AwayOnce,
        /// Bytes of it at certain places are changed.
        Damaged,
    }

    #[derive(Debug, Default)]
    struct Watch {
        /// Requests for parts of packs.
        requests: AtomicUsize,
        fault: Mutex<Option<Fault>>,
    }

    /// A storage that counts what rustic and we read of packs, and may get it wrong.
    #[derive(Debug)]
    struct Watched {
        inner: Arc<dyn Storage>,
        watch: Arc<Watch>,
    }

    impl Storage for Watched {
        fn location(&self) -> &str {
            self.inner.location()
        }
        fn create(&self) -> Result<()> {
            self.inner.create()
        }
        fn list(&self, kind: FileKind) -> Result<Vec<(FileId, u64)>> {
            self.inner.list(kind)
        }
        fn read(&self, kind: FileKind, id: &FileId) -> Result<Bytes> {
            self.inner.read(kind, id)
        }
        fn read_range(
            &self,
            kind: FileKind,
            id: &FileId,
            offset: u64,
            length: u64,
        ) -> Result<Bytes> {
            assert_eq!(kind, FileKind::Pack);
            self.watch.requests.fetch_add(1, Ordering::SeqCst);
            let mut fault = self.watch.fault.lock().unwrap();
            let now = *fault;
            if now == Some(Fault::AwayOnce) {
                *fault = None;
            }
            drop(fault);
            let mut bytes = self.inner.read_range(kind, id, offset, length)?.to_vec();
            match now {
                None => {}
                Some(Fault::Damaged) => {
                    for at in (0..length).filter(|at| (offset + at) % 3000 == 1000) {
                        bytes[usize::try_from(at).unwrap()] ^= 1;
                    }
                }
                Some(Fault::Away | Fault::AwayOnce) => {
                    return Err(Error::new(ErrorKind::Unreachable, "away"));
                }
            }
            Ok(bytes.into())
        }
        fn write(&self, kind: FileKind, id: &FileId, content: &[Bytes]) -> Result<()> {
            self.inner.write(kind, id, content)
        }
        fn remove(&self, kind: FileKind, id: &FileId) -> Result<()> {
            self.inner.remove(kind, id)
        }
        fn with_stop(&self, stop: &Cancel) -> Arc<dyn Storage> {
            Arc::new(Self {
                inner: self.inner.with_stop(stop),
                watch: Arc::clone(&self.watch),
            })
        }
    }

    struct Bench {
        scratch: tempfile::TempDir,
        watch: Arc<Watch>,
        repository: Repository,
    }

    impl Bench {
        fn new() -> Self {
            let scratch = tempfile::tempdir().unwrap();
            let place = Place::from(&*scratch.path().join("repository"));
            let watch = Arc::<Watch>::default();
            let storage = Arc::new(Watched {
                inner: storage::open(&place, &Default::default()).unwrap(),
                watch: Arc::clone(&watch),
            });
            Self {
                repository: Repository::init(storage, &"password".to_owned().into()).unwrap(),
                watch,
                scratch,
            }
        }

        /// With so many directories side by side, and some others.
        fn site(&self, name: &str, directories: usize) -> PathBuf {
            let site = self.scratch.path().join("customers").join(name);
            for at in 0..directories {
                let directory = site.join(format!("side-by-side/{at}"));
                std::fs::create_dir_all(&directory).unwrap();
                std::fs::write(directory.join("file"), format!("{name} {at}")).unwrap();
            }
            for below in ["a/b/c/d", "a/empty", "empty", "z/empty"] {
                std::fs::create_dir_all(site.join(below)).unwrap();
            }
            site
        }

        fn archive(&self, request: ArchiveRequest, control: &Control) -> Result<Snapshot> {
            let lock = self.repository.lock_shared()?;
            let uncommitted = self.repository.archive(lock, request, control)?;
            let id = uncommitted.commit(control)?.snapshot;
            Ok(self.repository.snapshot(&id)?.unwrap())
        }

        fn save(&self, sites: &[&Path], parent: Option<&Snapshot>) -> Snapshot {
            let request = request(sites, parent);
            self.archive(request, &Control::default()).unwrap()
        }

        /// As [`Self::save`] with a parent, and how many requests it took.
        fn save_counted(&self, sites: &[&Path], parent: &Snapshot) -> (Snapshot, usize) {
            // The index is read by then.
            self.shelves();
            self.watch.requests.store(0, Ordering::SeqCst);
            let snapshot = self.save(sites, Some(parent));
            (snapshot, self.watch.requests.swap(0, Ordering::SeqCst))
        }

        /// Those of the next run.
        fn shelves(&self) -> Arc<Shelves> {
            Arc::clone(self.repository.fresh_index().unwrap().shelves())
        }

        /// While it is held the next run has no room to read ahead.
        fn no_room(&self) -> Reserved {
            self.shelves().leave(0)
        }

        fn ahead(&self, parent: &Snapshot) -> ReadAhead {
            let index = self.repository.fresh_index().unwrap();
            let never = Box::new(|| false);
            ReadAhead::of(&self.repository, &index, &parent.id, never).unwrap()
        }

        fn fault(&self, fault: Option<Fault>) {
            *self.watch.fault.lock().unwrap() = fault;
        }

        /// The directory of a site in a snapshot. Those above it change while others make their own directories there.
        fn tree(&self, snapshot: &Snapshot, site: &Path) -> TreeId {
            let index = self.repository.fresh_index().unwrap();
            let node = self.repository.node(&index, snapshot, site).unwrap();
            node.unwrap().subtree.unwrap()
        }
    }

    fn request(sites: &[&Path], parent: Option<&Snapshot>) -> ArchiveRequest {
        ArchiveRequest {
            parent: parent.map(|snapshot| snapshot.id),
            ..ArchiveRequest::of_trees(sites)
        }
    }

    #[test]
    fn the_number_of_requests_does_not_grow_with_the_number_of_directories() {
        for directories in [20, 2000] {
            let bench = Bench::new();
            let site = bench.site("customer-1", directories);
            let first = bench.save(&[&site], None);
            let (ahead, requests) = bench.save_counted(&[&site], &first);
            assert!(requests <= 8, "{requests} requests");

            let room = bench.no_room();
            let (alone, requests) = bench.save_counted(&[&site], &first);
            drop(room);
            assert!(requests > directories, "{requests} requests");
            assert_eq!(bench.tree(&ahead, &site), bench.tree(&alone, &site));
            assert_eq!(bench.tree(&ahead, &site), bench.tree(&first, &site));
        }
    }

    #[test]
    fn what_changed_is_saved_as_without_reading_ahead() {
        let bench = Bench::new();
        let site = bench.site("customer-1", 30);
        let mut parent = bench.save(&[&site], None);
        for round in 0..5 {
            std::fs::remove_dir_all(site.join(format!("side-by-side/{}", round * 3))).unwrap();
            std::fs::write(site.join(format!("side-by-side/{}/new", 20 + round)), "new").unwrap();
            std::fs::create_dir_all(site.join(format!("new/{round}"))).unwrap();
            // Its directories are in more and more packs.
            let (ahead, requests) = bench.save_counted(&[&site], &parent);
            assert!(requests <= 20, "{requests} requests");
            let alone = bench.save(&[&site], None);
            assert_eq!(bench.tree(&ahead, &site), bench.tree(&alone, &site));
            parent = ahead;
        }
    }

    #[test]
    fn each_part_is_read_ahead_and_nothing_of_anybody_else() {
        const PARTS: usize = 6;
        let bench = Bench::new();
        let sites: Vec<_> = (0..PARTS)
            .map(|at| bench.site(&format!("customer-{at}"), 50))
            .collect();
        let sites: Vec<_> = sites.iter().map(PathBuf::as_path).collect();
        let first = bench.save(&sites, None);
        let (second, requests) = bench.save_counted(&sites, &first);
        assert!(requests <= 8 + 2 * PARTS, "{requests} requests");
        for site in &sites {
            assert_eq!(bench.tree(&first, site), bench.tree(&second, site));
        }

        let shelves = bench.shelves();
        let way = Way::to(&request(&sites[1..2], None));
        let mut ahead = bench.ahead(&second);
        ahead.read_way(&way);
        let above = sites[1].ancestors().skip(1).count();
        assert_eq!(shelves.kept().0, above);
        ahead.begin(sites[0]);
        assert_eq!(shelves.kept().0, above);
        ahead.begin(sites[1]);
        // Itself, what lies side by side and above that, a/b/c, and one that is empty four times.
        assert_eq!(shelves.kept().0, above + 1 + 51 + 4 + 1);
        drop(ahead);
        assert_eq!(shelves.kept(), (0, 0));
    }

    /// As a restore saves what it replaced, beside a dump.
    #[test]
    fn what_lies_elsewhere_now_is_read_ahead_under_the_path_it_has_in_the_parent() {
        let bench = Bench::new();
        let site = bench.site("customer-1", 300);
        let first = bench.save(&[&site], None);
        let path = site.join("side-by-side");
        let replaced = bench.scratch.path().join("replaced");
        std::fs::rename(&path, &replaced).unwrap();
        let mut request = request(&[&path], Some(&first));
        request.trees[0].root = replaced;
        request.streams.push(StreamSource {
            path: bench.scratch.path().join("dumps/a.sql"),
            reader: Box::new(&b"a dump"[..]),
        });
        bench.shelves();
        bench.watch.requests.store(0, Ordering::SeqCst);
        let second = bench.archive(request, &Control::default()).unwrap();
        let requests = bench.watch.requests.swap(0, Ordering::SeqCst);
        assert!(requests <= 10, "{requests} requests");
        assert_eq!(bench.tree(&first, &path), bench.tree(&second, &path));
    }

    #[test]
    fn nothing_is_kept_when_the_run_is_over_however_it_ends() {
        struct Ends(Option<Cancel>);
        impl Read for Ends {
            fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
                match &self.0 {
                    Some(cancel) => cancel.cancel(),
                    None => return Err(std::io::Error::other("broke off")),
                }
                Ok(0)
            }
        }
        let bench = Bench::new();
        let site = bench.site("customer-1", 50);
        let first = bench.save(&[&site], None);
        // Found in the parent, and never asked for.
        std::fs::remove_dir_all(site.join("side-by-side")).unwrap();
        let shelves = bench.shelves();
        bench.save(&[&site], Some(&first));
        assert_eq!(shelves.kept(), (0, 0));

        let cancelled = Control::default();
        for (reader, control, kind) in [
            (Ends(None), Control::default(), ErrorKind::Failed),
            (
                Ends(Some(cancelled.cancel.clone())),
                cancelled,
                ErrorKind::Cancelled,
            ),
        ] {
            let mut request = request(&[&site], Some(&first));
            request.streams.push(StreamSource {
                path: bench.scratch.path().join("a.sql"),
                reader: Box::new(reader),
            });
            let shelves = bench.shelves();
            let error = bench.archive(request, &control).unwrap_err();
            assert_eq!(error.kind(), kind, "{}", error.chain());
            assert_eq!(shelves.kept(), (0, 0));
        }
    }

    #[test]
    fn where_there_is_room_for_some_the_others_are_read_one_by_one() {
        let bench = Bench::new();
        let site = bench.site("customer-1", 200);
        let first = bench.save(&[&site], None);
        let shelves = bench.shelves();
        let room = shelves.leave(70_000);
        let full = shelves.kept().1 + 70_000;
        let (second, requests) = bench.save_counted(&[&site], &first);
        assert!((10..200).contains(&requests), "{requests} requests");
        assert!(shelves.kept().1 < full);
        drop(room);
        assert_eq!(shelves.kept(), (0, 0));
        assert_eq!(bench.tree(&first, &site), bench.tree(&second, &site));
    }

    #[test]
    fn where_there_is_little_room_nothing_is_read_that_cannot_be_put_by() {
        let bench = Bench::new();
        let site = bench.site("customer-1", 0);
        let mut parent = None;
        // Each in a pack of its own.
        for at in 0..24 {
            let directory = site.join(format!("side-by-side/{at}"));
            std::fs::create_dir_all(&directory).unwrap();
            std::fs::write(directory.join("file"), "content").unwrap();
            parent = Some(bench.save(&[&site], parent.as_ref()));
        }
        let parent = parent.unwrap();
        let way = Way::to(&request(&[&site], None));
        let shelves = bench.shelves();
        let put_by = |room: usize| {
            let mut ahead = bench.ahead(&parent);
            ahead.read_way(&way);
            let above = shelves.kept().0;
            let _room = shelves.leave_of_the_rest(room);
            bench.watch.requests.store(0, Ordering::SeqCst);
            ahead.begin(&site);
            let requests = bench.watch.requests.swap(0, Ordering::SeqCst);
            (shelves.kept().0 - above, requests)
        };
        let (all, _) = put_by(1_000_000);
        assert!(all > 24, "{all}");
        let (some, requests) = put_by(5_000);
        assert!((5..all).contains(&some), "{some} of {all}");
        assert!(requests <= some, "{requests} requests for {some}");
    }

    #[test]
    fn the_room_is_the_same_however_often_the_index_is_read_anew() {
        let bench = Bench::new();
        let site = bench.site("customer-1", 1);
        let before = bench.shelves();
        bench.save(&[&site], None);
        assert!(Arc::ptr_eq(&before, &bench.shelves()));
    }

    /// The source of a run that saves a dump right before a tree.
    fn dump_and_site(bench: &Bench, dump: impl Read + Send + 'static) -> (MixedSource, PathBuf) {
        let site = bench.site("customer-1", 20);
        let first = bench.save(&[&site], None);
        let mut request = request(&[&site], Some(&first));
        request.streams.push(StreamSource {
            path: site.with_file_name("a.sql"),
            reader: Box::new(dump),
        });
        let way = Way::to(&request);
        let (trees, streams) = (request.trees, request.streams);
        let source = MixedSource::new(trees, streams, OnFailure::Fail, Control::default()).unwrap();
        let mut ahead = bench.ahead(&first);
        ahead.must_stop = source.must_stop();
        source.read_ahead(ahead, &way);
        (source, site)
    }

    #[test]
    fn a_dump_right_before_a_tree_does_not_wait_for_what_is_read_ahead() {
        let bench = Bench::new();
        let (source, site) = dump_and_site(&bench, &b"a dump"[..]);
        let shelves = bench.shelves();
        let above = shelves.kept().0;
        // With the root in hand rustic passes the dump on.
        let mut entries = source.entries().map(std::result::Result::unwrap);
        entries.find(|entry| entry.path == site).unwrap();
        assert_eq!(shelves.kept().0, above);
        entries.next().unwrap();
        assert!(shelves.kept().0 > above + 20);
    }

    #[test]
    fn nothing_more_is_read_ahead_when_a_dump_failed() {
        struct Fails;
        impl Read for Fails {
            fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
                Err(std::io::Error::other("broke off"))
            }
        }
        let bench = Bench::new();
        let (source, site) = dump_and_site(&bench, Fails);
        let mut entries = source.entries().map(std::result::Result::unwrap);
        let dump = entries.find_map(|entry| entry.open).unwrap();
        let root = entries.next().unwrap();
        assert_eq!(root.path, site);
        let mut content = Vec::new();
        let mut reader = dump.open().unwrap();
        reader.read_to_end(&mut content).unwrap_err();
        bench.watch.requests.store(0, Ordering::SeqCst);
        assert!(entries.next().is_none());
        assert_eq!(bench.watch.requests.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn a_fault_does_no_more_than_without_reading_ahead() {
        let bench = Bench::new();
        let site = bench.site("customer-1", 100);
        let first = bench.save(&[&site], None);
        for fault in [Fault::Damaged, Fault::Away, Fault::AwayOnce] {
            let saved = [true, false].map(|has_room| {
                let room = (!has_room).then(|| bench.no_room());
                bench.fault(Some(fault));
                let (saved, requests) = bench.save_counted(&[&site], &first);
                bench.fault(None);
                drop(room);
                (bench.tree(&saved, &site), requests)
            });
            let [(ahead, with), (alone, without)] = saved;
            assert_eq!(ahead, alone, "{fault:?}");
            assert_eq!(ahead, bench.tree(&first, &site), "{fault:?}");
            // What could not be read ahead rustic reads, as far as it goes on without it.
            assert!(
                with.max(without) < 120,
                "{fault:?}: {with}, {without} requests"
            );
        }
    }

    #[test]
    fn a_parent_that_is_not_there_does_no_more_than_without_reading_ahead() {
        let bench = Bench::new();
        let site = bench.site("customer-1", 100);
        let first = bench.save(&[&site], None);
        let index = bench.repository.fresh_index().unwrap();
        let pack = index.locate(&first.tree).unwrap().pack;
        let storage = &bench.repository.storage;
        storage.remove(FileKind::Pack, &file_id(&pack)).unwrap();
        let [ahead, alone] = [true, false].map(|has_room| {
            let _room = (!has_room).then(|| bench.no_room());
            bench.save(&[&site], Some(&first))
        });
        assert_eq!(ahead.files, alone.files);
        assert_eq!(ahead.bytes, alone.bytes);

        bench.repository.forget(&[first.id]).unwrap();
        bench.save(&[&site], Some(&first));
        let nobody = SnapshotId(FileId::default());
        let none = ReadAhead::of(&bench.repository, &index, &nobody, Box::new(|| false));
        assert!(none.is_none());
    }

    #[test]
    fn runs_at_the_same_time_do_not_disturb_each_other() {
        let bench = Bench::new();
        let sites = [1, 2, 3].map(|at| bench.site(&format!("customer-{at}"), 100));
        let firsts = sites.each_ref().map(|site| bench.save(&[site], None));
        let shelves = bench.shelves();
        let seconds: Vec<Snapshot> = std::thread::scope(|scope| {
            let runs: Vec<_> = std::iter::zip(&sites, &firsts)
                .map(|(site, first)| scope.spawn(|| bench.save(&[site], Some(first))))
                .collect();
            runs.into_iter().map(|run| run.join().unwrap()).collect()
        });
        assert_eq!(shelves.kept(), (0, 0));
        for ((site, first), second) in std::iter::zip(&sites, &firsts).zip(&seconds) {
            assert_eq!(bench.tree(first, site), bench.tree(second, site));
        }
    }
}
