//! Where every blob of the repository lies.
//!
//! rustic's index is read whole and then kept; it is read again when the list of index files is not the one it was made from. An
//! index that is older than a prune would make a backup refer to blobs that are gone: so it is compared at the start of every
//! operation, under the operation's lock.

use std::collections::{BTreeSet, HashMap};
use std::ops::Deref;
use std::sync::Arc;

use bytes::Bytes;
use rustic_core::repofile::{IndexFile, Tree};
use rustic_core::{Id, IndexedFullStatus, PackedId, TreeId};

use super::blobs::{self, Ranges};
use super::bridge::{Bridge, IndexWatch, from_rustic};
use super::nodes;
use super::seal::Sealer;
use super::shelf::Shelves;
use crate::error::{Error, ErrorKind, Result};
use crate::storage::{FileId, FileKind, Storage};

/// An open repository of rustic's with its index in memory.
pub(super) type Indexed = rustic_core::Repository<IndexedFullStatus>;

/// The place of a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Location {
    pub pack: Id,
    pub offset: u32,
    /// Bytes in the pack, envelope included.
    pub length: u32,
    /// Bytes of the plain blob where it was compressed.
    pub uncompressed_length: Option<u32>,
}

impl Location {
    /// Bytes of the plain blob.
    pub(super) fn plain_bytes(&self) -> u64 {
        match self.uncompressed_length {
            Some(length) => length.into(),
            None => u64::from(self.length).saturating_sub(super::seal::ENVELOPE_BYTES as u64),
        }
    }
}

/// The index of one moment.
#[derive(Clone)]
pub(super) struct Index {
    files: BTreeSet<FileId>,
    repository: Arc<Indexed>,
    /// What rustic reads and writes by.
    bridge: Arc<Bridge>,
}

impl std::fmt::Debug for Index {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Index({} files)", self.files.len())
    }
}

impl Index {
    pub(super) fn new(files: BTreeSet<FileId>, repository: Indexed, bridge: Arc<Bridge>) -> Self {
        Self {
            files,
            repository: Arc::new(repository),
            bridge,
        }
    }

    /// Whether it was made from exactly these index files.
    pub(super) fn is_made_from(&self, files: &BTreeSet<FileId>) -> bool {
        self.files == *files
    }

    pub(super) fn repository(&self) -> &Indexed {
        &self.repository
    }

    /// See what index files are written by way of it from now on.
    pub(super) fn watch(&self) -> IndexWatch<'_> {
        self.bridge.watch_indexes()
    }

    /// What was read ahead for rustic, by all who use this repository.
    pub(super) fn shelves(&self) -> &Arc<Shelves> {
        self.bridge.shelves()
    }

    /// Where a blob of the kind that the id's type says lies.
    pub(super) fn locate<T: PackedId + Deref<Target = Id>>(&self, id: &T) -> Result<Location> {
        let entry = self
            .repository
            .get_index_entry(id)
            .map_err(|error| missing(id, error))?;
        let place = entry.location;
        Ok(location(
            *entry.pack,
            place.offset,
            place.length,
            place.uncompressed_length,
        ))
    }
}

/// What is read along before a tree that was just written, in the same request: there lie those below it.
const LEAD_BYTES: u32 = 32 * 1024;
/// What is kept of that: enough for the few directories above dumps, and for some files that were cut short.
const RECENT_BYTES: usize = 4 * 1024 * 1024;

/// What was read of the packs for trees that were just written. However many there are: no more than [`RECENT_BYTES`], or a single range.
pub(super) struct Recent {
    ranges: Ranges,
    lead_bytes: u32,
}

impl Default for Recent {
    fn default() -> Self {
        Self {
            ranges: Ranges::default(),
            lead_bytes: LEAD_BYTES,
        }
    }
}

impl Recent {
    fn add(&mut self, pack: Id, start: u32, bytes: Bytes) {
        if self.ranges.bytes() + bytes.len() > RECENT_BYTES {
            // So many trees lie apart: what is before the next ones is not asked for, either.
            *self = Self {
                ranges: Ranges::default(),
                lead_bytes: 0,
            };
        }
        self.ranges.add(pack, start, bytes);
    }
}

/// The index of one moment, and what an archive run has added to it since.
pub(super) struct ExtendedIndex<'a> {
    index: &'a Index,
    added: HashMap<Id, Location>,
}

impl<'a> ExtendedIndex<'a> {
    /// With the blobs that these sealed index files list.
    pub(super) fn new(index: &'a Index, sealer: &Sealer, index_files: &[Bytes]) -> Result<Self> {
        let mut added = HashMap::new();
        for sealed in index_files {
            let file: IndexFile = sealer.open_json(sealed)?;
            for pack in file.packs {
                for blob in pack.blobs {
                    let place = blob.location;
                    added.insert(
                        *blob.id,
                        location(
                            *pack.id,
                            place.offset,
                            place.length,
                            place.uncompressed_length,
                        ),
                    );
                }
            }
        }
        Ok(Self { index, added })
    }

    pub(super) fn locate<T: PackedId + Deref<Target = Id>>(&self, id: &T) -> Result<Location> {
        match self.added.get(&**id) {
            Some(location) => Ok(*location),
            None => self.index.locate(id),
        }
    }

    /// Read one tree, unless it is in what was read before.
    pub(super) fn read_tree(
        &self,
        storage: &dyn Storage,
        sealer: &Sealer,
        id: &TreeId,
        recent: &mut Recent,
    ) -> Result<Tree> {
        let location = self.locate(id)?;
        let sealed = match recent.ranges.get(&location) {
            Some(sealed) => sealed,
            None => {
                let start = location.offset.saturating_sub(recent.lead_bytes);
                let bytes = storage.read_range(
                    FileKind::Pack,
                    &super::bridge::file_id(&location.pack),
                    start.into(),
                    blobs::end(&location) - u64::from(start),
                )?;
                let from = (location.offset - start) as usize;
                let sealed = bytes.slice(from.min(bytes.len())..);
                recent.add(location.pack, start, bytes);
                sealed
            }
        };
        parse_tree(&sealer.open_blob(&sealed, location.uncompressed_length, id)?)
    }
}

/// A tree from its JSON.
fn parse_tree(json: &[u8]) -> Result<Tree> {
    let mut tree = Tree::default();
    nodes::parse(json, |node| {
        tree.nodes.push(node);
        Ok(())
    })?;
    Ok(tree)
}

fn location(
    pack: Id,
    offset: u32,
    length: u32,
    uncompressed: Option<std::num::NonZeroU32>,
) -> Location {
    Location {
        pack,
        offset,
        length,
        uncompressed_length: uncompressed.map(Into::into),
    }
}

fn missing(id: &Id, error: Box<rustic_core::RusticError>) -> Error {
    let error = from_rustic("the index has no such blob", error);
    Error::caused(
        ErrorKind::Damaged,
        format!(
            "the repository lacks the blob {}: run `check`",
            id.to_hex().as_str()
        ),
        error,
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::os::unix::fs::PermissionsExt;
    use std::path::{Path, PathBuf};
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, Ordering};

    use secrecy::SecretString;

    use super::*;
    use crate::progress::{Cancel, Control};
    use crate::repository::{ArchiveRequest, Repository};
    use crate::storage;

    /// Counts how often each file is read whole; one read of an index file fails if that is wanted.
    #[derive(Debug)]
    struct Counting {
        inner: Arc<dyn Storage>,
        reads: Mutex<BTreeMap<(FileKind, FileId), u32>>,
        fails: AtomicBool,
    }

    impl Counting {
        fn new(inner: &Arc<dyn Storage>, fails: bool) -> Arc<Self> {
            Arc::new(Self {
                inner: Arc::clone(inner),
                reads: Mutex::default(),
                fails: AtomicBool::new(fails),
            })
        }

        /// How many files of a kind were read, and how often that was, since this was last asked for one of them.
        fn reads_of(&self, kind: FileKind) -> (usize, u32) {
            let mut reads = self.reads.lock().unwrap();
            let of_kind: Vec<u32> = reads
                .extract_if(.., |(of, _), _| *of == kind)
                .map(|(_, count)| count)
                .collect();
            (of_kind.len(), of_kind.iter().sum())
        }
    }

    #[derive(Debug, Clone)]
    struct Counted(Arc<Counting>);

    impl Storage for Counted {
        fn location(&self) -> &str {
            self.0.inner.location()
        }
        fn create(&self) -> Result<()> {
            self.0.inner.create()
        }
        fn list(&self, kind: FileKind) -> Result<Vec<(FileId, u64)>> {
            self.0.inner.list(kind)
        }
        fn read(&self, kind: FileKind, id: &FileId) -> Result<Bytes> {
            *self.0.reads.lock().unwrap().entry((kind, *id)).or_default() += 1;
            if kind == FileKind::Index && self.0.fails.swap(false, Ordering::SeqCst) {
                return Err(Error::new(ErrorKind::Failed, "not now"));
            }
            self.0.inner.read(kind, id)
        }
        fn read_range(
            &self,
            kind: FileKind,
            id: &FileId,
            offset: u64,
            length: u64,
        ) -> Result<Bytes> {
            self.0.inner.read_range(kind, id, offset, length)
        }
        fn write(&self, kind: FileKind, id: &FileId, content: &[Bytes]) -> Result<()> {
            self.0.inner.write(kind, id, content)
        }
        fn remove(&self, kind: FileKind, id: &FileId) -> Result<()> {
            self.0.inner.remove(kind, id)
        }
        fn with_stop(&self, _: &Cancel) -> Arc<dyn Storage> {
            Arc::new(self.clone())
        }
    }

    /// A repository with this many backups of a site, and how it is opened.
    struct Bed {
        scratch: tempfile::TempDir,
        inner: Arc<dyn Storage>,
        password: SecretString,
    }

    impl Bed {
        fn new(backups: u32) -> Self {
            let scratch = tempfile::tempdir().unwrap();
            let location = storage::Location::from(&*scratch.path().join("repository"));
            let bed = Self {
                inner: storage::open(&location, &Default::default()).unwrap(),
                password: "password".to_owned().into(),
                scratch,
            };
            let repository = Repository::init(Arc::clone(&bed.inner), &bed.password).unwrap();
            std::fs::create_dir(bed.site()).unwrap();
            for _ in 0..backups {
                bed.back_up(&repository);
            }
            bed
        }

        fn site(&self) -> PathBuf {
            self.scratch.path().join("site")
        }

        fn back_up(&self, repository: &Repository) {
            let content = rand::random::<u64>().to_string();
            std::fs::write(self.site().join("file"), content).unwrap();
            let request = ArchiveRequest::of_trees(&[&self.site()]);
            let control = Control::default();
            let lock = repository.lock_shared().unwrap();
            let uncommitted = repository.archive(lock, request, &control).unwrap();
            uncommitted.commit(&control).unwrap();
        }

        fn open(&self, fails: bool) -> (Repository, Arc<Counting>) {
            let counting = Counting::new(&self.inner, fails);
            let storage = Arc::new(Counted(Arc::clone(&counting)));
            let repository = Repository::open(storage, &self.password).unwrap();
            (repository, counting)
        }

        /// Look into every snapshot.
        fn look(&self, repository: &Repository) {
            let view = repository.view().unwrap();
            for snapshot in repository.snapshots().unwrap() {
                let path = self.site().join("file");
                assert!(view.entries(&snapshot, &[path]).unwrap()[0].is_some());
            }
        }
    }

    #[test]
    fn every_index_file_is_read_once_and_one_that_could_not_be_read_ahead_is_read_again() {
        const BACKUPS: u32 = 20;
        let bed = Bed::new(BACKUPS);
        for fails in [false, true] {
            let (repository, counting) = bed.open(fails);
            bed.look(&repository);
            let expected = (BACKUPS as usize, BACKUPS + u32::from(fails));
            assert_eq!(counting.reads_of(FileKind::Index), expected);
        }
    }

    #[test]
    fn of_what_there_are_copies_the_server_is_asked_for_nothing_but_by_a_check() {
        const BACKUPS: usize = 3;
        let bed = Bed::new(3);
        let directory = bed.scratch.path().join("copies");
        let open = || {
            let (repository, counting) = bed.open(false);
            (repository.with_copies(&directory), counting)
        };
        let read = |counting: &Counting| {
            [FileKind::Index, FileKind::Snapshot].map(|kind| counting.reads_of(kind).0)
        };

        let (first, counting) = open();
        bed.look(&first);
        assert_eq!(read(&counting), [BACKUPS, BACKUPS]);
        // It keeps copies of what it writes, too, as far as that is worth it.
        bed.back_up(&first);
        assert_eq!(read(&counting), [0, 0]);

        let (second, counting) = open();
        bed.look(&second);
        assert_eq!(read(&counting), [0, 1]);
        // Though all was looked at before.
        let report = second.check(false).unwrap();
        assert_eq!(report.errors, [] as [String; 0]);
        assert_eq!(read(&counting), [BACKUPS + 1, BACKUPS + 1]);

        // What is damaged at the server harms nobody who has a copy, and a check tells it.
        let place = |kind: FileKind, id: &FileId| {
            let directory = kind.directory().unwrap();
            bed.scratch
                .path()
                .join(format!("repository/{directory}/{id}"))
        };
        let write = |path: &Path, content: &[u8]| {
            let mode = std::fs::Permissions::from_mode(0o600);
            std::fs::set_permissions(path, mode).unwrap();
            std::fs::write(path, content).unwrap();
        };
        let damage = |path: &Path| {
            let mut content = std::fs::read(path).unwrap();
            content[0] ^= 1;
            write(path, &content);
        };
        let snapshot = second.snapshots().unwrap()[0].id;
        let path = place(FileKind::Snapshot, &snapshot.0);
        damage(&path);
        let (third, counting) = open();
        bed.look(&third);
        assert_eq!(read(&counting), [0, 0]);
        third.snapshot(&snapshot).unwrap_err();
        let errors = third.check(false).unwrap().errors.join("\n");
        assert!(errors.contains(&snapshot.to_string()), "{errors}");
        damage(&path);
        let index = bed.inner.list(FileKind::Index).unwrap()[0].0;
        let path = place(FileKind::Index, &index);
        damage(&path);
        let (fourth, counting) = open();
        bed.look(&fourth);
        assert_eq!(read(&counting), [0, 0]);
        match fourth.check(false) {
            Ok(report) => assert_ne!(report.errors, [] as [String; 0]),
            Err(error) => assert_ne!(error.kind(), ErrorKind::Busy, "{error:?}"),
        }
        // One that is cut off is noticed by everybody.
        let whole = std::fs::read(&path).unwrap();
        write(&path, &whole[1..]);
        open().0.view().unwrap_err();
        write(&path, &whole);

        // What is gone is gone, whatever there is a copy of; and the next listing removes that.
        bed.inner.remove(FileKind::Snapshot, &snapshot.0).unwrap();
        assert!(fourth.snapshot(&snapshot).unwrap().is_none());
        let copies = directory.join(first.id()).join("snapshots");
        let kept = || std::fs::read_dir(&copies).unwrap().count();
        assert_eq!(kept(), BACKUPS + 1);
        fourth.snapshot_ids().unwrap();
        assert_eq!(kept(), BACKUPS);
    }

    #[test]
    fn however_many_trees_are_read_little_of_them_is_kept() {
        let mut recent = Recent::default();
        let range = Bytes::from(vec![0; LEAD_BYTES as usize]);
        for pack in 0..=u8::MAX {
            let start = u32::from(pack);
            recent.add(Id::new([pack; 32]), start, range.clone());
            assert!(recent.ranges.bytes() <= RECENT_BYTES);
            let is_first = recent.lead_bytes == LEAD_BYTES;
            assert_eq!(
                is_first,
                (usize::from(pack) + 1) * range.len() <= RECENT_BYTES
            );
        }
        let large = Bytes::from(vec![0; RECENT_BYTES + 1]);
        recent.add(Id::default(), 0, large.clone());
        assert_eq!(recent.ranges.bytes(), large.len());
    }
}
