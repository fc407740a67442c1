//! Repositories in restic format, version 2: everything that knows rustic and the format.
//!
//! Made so that the stock restic program reads all that we write, and we all that it writes. Commit points: a backup is there when
//! its snapshot file is ([`Uncommitted::commit`]); a snapshot is gone when its file is ([`Repository::forget`]). Never: removing
//! a pack without the exclusive lock, or trusting an index older than the lock that is held.

mod ahead;
mod archive;
mod blobs;
mod bridge;
mod copies;
mod index;
mod init;
mod key;
mod locks;
mod maintenance;
mod mode;
mod nodes;
mod restore;
mod seal;
mod shelf;
mod snapshot;
mod source;
mod stragglers;
mod stream;
mod tree;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use rustic_core::repofile::{ConfigFile, SnapshotFile};
use rustic_core::{Credentials, OpenStatus, ReadBackend, RepositoryBackends, RepositoryOptions};
use secrecy::{ExposeSecret, SecretString};

pub use archive::{ArchiveRequest, Archived, Uncommitted};
use locks::Patient;
pub use locks::{Lock, LockInfo};
pub use maintenance::{CheckReport, PruneReport, SampleReport};
pub use restore::{Owner, OwnerRule, RestorePlan, RestoreRules};
pub use snapshot::{BackupType, Origin, Snapshot, SnapshotId};
pub use source::{Hold, StreamSource, TreeSource};
pub use tree::EntryKind;

use crate::error::{Error, ErrorKind, Result};
use crate::progress::Cancel;
use crate::storage::{FileId, FileKind, Storage};
use bridge::{Bridge, from_rustic};
use copies::Copies;
use index::Index;
use seal::Sealer;
use shelf::Shelves;
use stragglers::Stragglers;

/// Large enough for fast uploads, small enough that nobody needs much memory to restore.
const PACK_BYTES: u64 = 16 * 1024 * 1024;

/// Index files up to this size are read before rustic asks for them,
const SMALL_INDEX_BYTES: u64 = 256 * 1024;
/// so many bytes of them,
const INDEXES_AHEAD_BYTES: u64 = 16 * 1024 * 1024;
/// so many at once: what two connections carry.
const INDEXES_AT_ONCE: usize = 8;

/// Key files up to this size are read before rustic asks for them: restic's have half a kilobyte,
const KEY_BYTES: u64 = 16 * 1024;
/// so many of them: few repositories have more than one.
const KEYS_AHEAD: usize = 8;

/// An open repository. Opening costs a third of a second of key derivation, so keep it; it may be used from many threads at once.
/// All methods block; call them from a thread that may.
pub struct Repository {
    /// With the flag that [`Self::with_stop`] gave.
    storage: Arc<dyn Storage>,
    stop: Cancel,
    scratch: PathBuf,
    copies: Option<Arc<Copies>>,
    shared: Arc<Shared>,
}

/// What all uses of one open repository have in common.
struct Shared {
    /// Without the flag of any one operation.
    storage: Arc<dyn Storage>,
    sealer: Arc<Sealer>,
    opened: rustic_core::Repository<OpenStatus>,
    index: Mutex<Option<Index>>,
    /// What was read ahead for rustic: the room for it is one, however often the index is read anew.
    shelves: Arc<Shelves>,
    /// Held by whoever reads the index: one reads it for all.
    reading: Mutex<()>,
    /// Snapshot files never change: each is read once.
    snapshots: Mutex<Snapshots>,
    stragglers: Stragglers,
}

/// What is known of the snapshot files.
#[derive(Debug, Default)]
struct Snapshots {
    /// Those that there were when they were last listed, with the sizes of their files.
    listed: BTreeMap<SnapshotId, u64>,
    read: BTreeMap<SnapshotId, Snapshot>,
    /// Those that cannot be read.
    damaged: BTreeSet<SnapshotId>,
}

/// What reading some snapshots gave.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct ReadSnapshots {
    /// Those that could be read, oldest first.
    pub snapshots: Vec<Snapshot>,
    /// Those whose files are damaged, for good: reading them again gives the same.
    pub damaged: Vec<SnapshotId>,
}

/// What the repository holds at one moment: for looking at many things without reading its index again for each.
#[derive(Debug)]
pub struct View<'a> {
    repository: &'a Repository,
    index: Index,
}

impl fmt::Debug for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Repository")
            .field("storage", &self.storage)
            .finish_non_exhaustive()
    }
}

impl Repository {
    /// Create a repository of format version 2 where none is. The commit point is its `config` file; what is returned was opened from what is stored.
    ///
    /// Fails with [`ErrorKind::Busy`] where one exists already, or where somebody else makes one at the same time. Takes some seconds longer where
    /// an `init` was interrupted.
    pub fn init(storage: Arc<dyn Storage>, password: &SecretString) -> Result<Self> {
        init::init(storage, password)
    }

    /// Whether there is a repository at this storage.
    pub fn exists(storage: &dyn Storage) -> Result<bool> {
        match storage.list(FileKind::Config) {
            Ok(files) => Ok(!files.is_empty()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Open a repository.
    ///
    /// Fails with [`ErrorKind::NotFound`] where there is none and [`ErrorKind::Refused`] for a wrong password.
    pub fn open(storage: Arc<dyn Storage>, password: &SecretString) -> Result<Self> {
        Self::open_with_stop(storage, password, &Cancel::new())
    }

    /// As [`Self::open`], for one operation: once `stop` is set, no outage is waited out. What was opened knows nothing of it.
    pub fn open_with_stop(
        storage: Arc<dyn Storage>,
        password: &SecretString,
        stop: &Cancel,
    ) -> Result<Self> {
        Self::open_if_there(Arc::clone(&storage), password, stop)?.ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                format!(
                    "there is no repository at {}: create it with `init`",
                    storage.location()
                ),
            )
        })
    }

    /// As [`Self::open_with_stop`], where it is not said what to do if there is none: that is None.
    pub(crate) fn open_if_there(
        storage: Arc<dyn Storage>,
        password: &SecretString,
        stop: &Cancel,
    ) -> Result<Option<Self>> {
        let stoppable = storage.with_stop(stop);
        let bridge = Arc::new(Bridge::new(Arc::clone(&stoppable), Arc::default()));
        let both = [FileKind::Config, FileKind::Key];
        let read = blobs::in_parallel_by(both.len(), &both, |kind| match kind {
            FileKind::Key => read_keys(&*stoppable, &bridge),
            _ => {
                bridge.put_config(stoppable.read(*kind, &FileId::default())?);
                Ok(())
            }
        });
        match read {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            read => read?,
        };
        let opened = match open_by(&bridge, password) {
            // Its keys may have been read before the `config` of one that was just being made.
            Err(error) if matches!(error.kind(), ErrorKind::Refused | ErrorKind::Failed) => {
                bridge.forget_at_hand();
                open_by(&bridge, password)?
            }
            opened => opened?,
        };
        bridge.use_storage(Arc::clone(&storage));
        bridge.forget_at_hand();
        Self::assemble(storage, opened).map(Some)
    }

    fn assemble(
        storage: Arc<dyn Storage>,
        opened: rustic_core::Repository<OpenStatus>,
    ) -> Result<Self> {
        let key = opened.key();
        let sealer = Arc::new(Sealer::new(&key.encrypt, &key.mac.k, &key.mac.r)?);
        Ok(Self {
            storage: Arc::clone(&storage),
            stop: Cancel::new(),
            scratch: std::env::temp_dir(),
            copies: None,
            shared: Arc::new(Shared {
                storage,
                sealer,
                opened,
                index: Mutex::new(None),
                shelves: Arc::default(),
                reading: Mutex::default(),
                snapshots: Mutex::default(),
                stragglers: Stragglers::default(),
            }),
        })
    }

    /// The same open repository, for one operation: once `stop` is set, it does not wait out an outage of the storage any more, but fails
    /// with [`ErrorKind::Cancelled`]; others that use the repository do. Takes the place of an earlier such flag and costs nothing.
    pub fn with_stop(&self, stop: &Cancel) -> Arc<Self> {
        Arc::new(Self {
            storage: self.shared.storage.with_stop(stop),
            stop: stop.clone(),
            scratch: self.scratch.clone(),
            copies: self.copies.clone(),
            shared: Arc::clone(&self.shared),
        })
    }

    /// The same open repository, with another directory for files that an operation needs for itself: they have no names, and are gone with it.
    /// Without this it is the system's for temporary files, which may be in memory.
    pub fn with_scratch(&self, directory: &Path) -> Arc<Self> {
        Arc::new(Self {
            storage: Arc::clone(&self.storage),
            stop: self.stop.clone(),
            scratch: directory.to_owned(),
            copies: self.copies.clone(),
            shared: Arc::clone(&self.shared),
        })
    }

    /// Keep copies of index and snapshot files below a directory, each repository's in one of its own, and read from the storage only those that there is no
    /// copy of. A copy is used only if it is what the file's name says and the file was just listed with its size; [`Self::check`] and [`Self::snapshot`] use none.
    /// Nobody else should be able to read or write there; all of it may be removed at any time, and is not filled where less than a gibibyte stays free.
    #[must_use]
    pub fn with_copies(self, directory: &Path) -> Self {
        let own = directory.join(self.id());
        Self {
            copies: Some(Arc::new(Copies::new(own))),
            ..self
        }
    }

    /// The id that the repository got when it was made: the same by whatever way it is reached, and another one for a repository that was
    /// made anew in its place.
    pub fn id(&self) -> String {
        self.shared.opened.config().id.to_hex().as_str().to_owned()
    }

    /// Whether it is still where it was opened: not where it is gone, or another one was made in its place.
    pub(crate) fn is_there(&self) -> Result<bool> {
        let sealed = match self.storage.read(FileKind::Config, &FileId::default()) {
            Ok(sealed) => sealed,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        match self.shared.sealer.open_json::<ConfigFile>(&sealed) {
            Ok(config) => Ok(config.id == self.shared.opened.config().id),
            // Another one has another key.
            Err(error) if error.kind() == ErrorKind::Damaged => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The version of the format that it is in. What this program makes is of version 2.
    pub fn format_version(&self) -> u32 {
        self.shared.opened.config().version
    }

    /// Where it is, as an operator wrote it.
    pub fn location(&self) -> &str {
        self.storage.location()
    }

    /// Take the lock under which one reads and adds. Fails with [`ErrorKind::Busy`] beside an exclusive one.
    pub fn lock_shared(&self) -> Result<Lock> {
        self.lock(false)
    }

    /// Take the lock under which one removes packs. Fails with [`ErrorKind::Busy`] beside any other.
    pub fn lock_exclusive(&self) -> Result<Lock> {
        self.lock(true)
    }

    fn lock(&self, exclusive: bool) -> Result<Lock> {
        let patient = Patient {
            storage: Arc::clone(&self.shared.storage),
            stragglers: self.shared.stragglers.clone(),
        };
        Lock::acquire(&self.storage, patient, &self.shared.sealer, exclusive)
    }

    /// All locks that are held, ours and others'.
    pub fn locks(&self) -> Result<Vec<LockInfo>> {
        let locks = locks::list(&*self.storage, &self.shared.sealer)?;
        locks.into_iter().map(|(_, info)| info).collect()
    }

    /// Remove the locks whose owners are gone, and those that nobody can read; describes those that were removed.
    pub fn unlock(&self) -> Result<Vec<String>> {
        locks::remove_stale(&*self.storage, &self.shared.sealer)
    }

    /// All snapshots, oldest first. Only those not seen before are read. One that is damaged must not keep everybody from his backups:
    /// it is left out, and told by [`Self::damaged_snapshots`].
    pub fn snapshots(&self) -> Result<Vec<Snapshot>> {
        let listed: Vec<SnapshotId> = self.snapshot_ids()?.into_iter().collect();
        Ok(self.read_snapshots(&listed)?.snapshots)
    }

    /// The ids of all snapshots, damaged ones among them: one listing, and nothing is read.
    pub fn snapshot_ids(&self) -> Result<BTreeSet<SnapshotId>> {
        let files = self.storage.list(FileKind::Snapshot)?;
        if let Some(copies) = &self.copies {
            copies.retain(
                FileKind::Snapshot,
                &files.iter().map(|(id, _)| *id).collect(),
            );
        }
        let sizes: BTreeMap<SnapshotId, u64> = files
            .into_iter()
            .map(|(id, size)| (SnapshotId(id), size))
            .collect();
        let listed: BTreeSet<SnapshotId> = sizes.keys().copied().collect();
        let mut known = self.known_snapshots();
        known.read.retain(|id, _| listed.contains(id));
        known.damaged.retain(|id| listed.contains(id));
        known.listed = sizes;
        Ok(listed)
    }

    /// These snapshots, of which only those not seen before are read, by a few threads. One that is gone is left out; one that is damaged is named
    /// apart, so that the caller need not ask for it again.
    pub fn read_snapshots(&self, ids: &[SnapshotId]) -> Result<ReadSnapshots> {
        let mut seen = Vec::new();
        let mut unseen = Vec::new();
        {
            let known = self.known_snapshots();
            for id in ids.iter().collect::<BTreeSet<_>>() {
                match known.read.get(id) {
                    Some(snapshot) => seen.push(snapshot.clone()),
                    None => unseen.push((*id, known.listed.get(id).copied())),
                }
            }
        }
        let mut found = self.read_each(&unseen)?;
        found.snapshots.extend(seen);
        found
            .snapshots
            .sort_by_key(|snapshot| (snapshot.time, snapshot.id));
        Ok(found)
    }

    /// All snapshots, oldest first, as they are at the storage now, whatever was seen of them before.
    fn read_anew(&self) -> Result<ReadSnapshots> {
        let listed: Vec<_> = self.snapshot_ids()?.iter().map(|id| (*id, None)).collect();
        self.read_each(&listed)
    }

    /// Of those with a size, which they were listed with, a copy will do.
    fn read_each(&self, ids: &[(SnapshotId, Option<u64>)]) -> Result<ReadSnapshots> {
        let read = blobs::in_parallel(ids, |(id, size)| match self.read_snapshot(&id.0, *size) {
            Err(error) if error.kind() == ErrorKind::Damaged => {
                tracing::error!("{}", error.chain());
                Ok(Err(*id))
            }
            other => other.map(Ok),
        })?;
        let mut found = ReadSnapshots::default();
        let mut known = self.known_snapshots();
        for snapshot in read {
            match snapshot {
                Ok(Some(snapshot)) => {
                    known.damaged.remove(&snapshot.id);
                    known.read.insert(snapshot.id, snapshot.clone());
                    found.snapshots.push(snapshot);
                }
                // Forgotten since it was listed.
                Ok(None) => {}
                Err(damaged) => {
                    known.read.remove(&damaged);
                    known.damaged.insert(damaged);
                    found.damaged.push(damaged);
                }
            }
        }
        found
            .snapshots
            .sort_by_key(|snapshot| (snapshot.time, snapshot.id));
        Ok(found)
    }

    /// The snapshots, of those that are there, that could not be read when they were last looked at.
    pub fn damaged_snapshots(&self) -> Vec<SnapshotId> {
        self.known_snapshots().damaged.iter().copied().collect()
    }

    /// One snapshot by its full id; None where there is none. The storage is asked, whatever is known.
    pub fn snapshot(&self, id: &SnapshotId) -> Result<Option<Snapshot>> {
        self.read_snapshot(&id.0, None)
    }

    /// None: it was forgotten since it was listed.
    fn read_snapshot(&self, id: &FileId, size: Option<u64>) -> Result<Option<Snapshot>> {
        let sealed = match self.read_listed(FileKind::Snapshot, id, size) {
            Ok(sealed) => sealed,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let file: SnapshotFile = self.shared.sealer.open_json(&sealed).map_err(|error| {
            error.context(format!("the snapshot {id} cannot be read: run `check`"))
        })?;
        Ok(Some(Snapshot::new(*id, file)))
    }

    /// A file that never changes: of one that was just listed with a size a copy will do.
    fn read_listed(&self, kind: FileKind, id: &FileId, size: Option<u64>) -> Result<Bytes> {
        let read = || self.storage.read(kind, id);
        match (&self.copies, size) {
            (Some(copies), Some(size)) => copies.read(kind, id, size, read),
            _ => read(),
        }
    }

    fn known_snapshots(&self) -> MutexGuard<'_, Snapshots> {
        self.shared
            .snapshots
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// What the repository holds now; call it under a lock. Its index is read if need be: that is the slow part of the first operation.
    pub fn view(&self) -> Result<View<'_>> {
        Ok(View {
            repository: self,
            index: self.fresh_index()?,
        })
    }

    /// The index, read again when the repository has other index files than the one in memory was made from. Call it under a lock.
    fn fresh_index(&self) -> Result<Index> {
        let listed = self.storage.list(FileKind::Index)?;
        let files: BTreeSet<FileId> = listed.iter().map(|(id, _)| *id).collect();
        if let Some(index) = self.shared.index_made_from(&files) {
            return Ok(index);
        }
        let _reading = self.stop.lock(&self.shared.reading)?;
        if let Some(index) = self.shared.index_made_from(&files) {
            return Ok(index);
        }
        // rustic consumes what it indexes, so it opens the repository once more. With the `config` of now: where another repository was made in the
        // place of this one, its key fits no longer.
        let shelves = Arc::clone(&self.shared.shelves);
        let bridge = Bridge::new(Arc::clone(&self.storage), shelves);
        let bridge = Arc::new(bridge.with_copies(self.copies.clone(), &listed));
        if let Some(copies) = &self.copies {
            copies.retain(FileKind::Index, &files);
        }
        let rustic = connect(&bridge)?;
        let key = Credentials::Masterkey(self.shared.opened.key());
        self.read_ahead(&listed, &bridge)?;
        bridge.put_list(FileKind::Index, listed);
        let indexed = guarded(|| {
            rustic
                .open(&key)
                .and_then(rustic_core::Repository::to_indexed)
        })?
        .map_err(|error| from_rustic("the index of the repository cannot be read", error))?;
        // Others will use it, and whoever read it may be told to stop: that is nothing to them.
        bridge.use_storage(Arc::clone(&self.shared.storage));
        bridge.forget_at_hand();
        let index = Index::new(files, indexed, bridge);
        *self.shared.kept_index() = Some(index.clone());
        Ok(index)
    }

    /// The `config`, and the small index files: every backup adds one or two, and rustic reads as many at a time as there are cores, here as many as the
    /// connections carry. Large ones are few and take more memory once they are open.
    fn read_ahead(&self, listed: &[(FileId, u64)], bridge: &Bridge) -> Result<()> {
        let mut bytes = 0;
        let mut files = vec![(FileKind::Config, FileId::default(), 0)];
        for (id, size) in listed {
            if *size <= SMALL_INDEX_BYTES && bytes + size <= INDEXES_AHEAD_BYTES {
                bytes += size;
                files.push((FileKind::Index, *id, *size));
            }
        }
        let read = blobs::in_parallel_by(INDEXES_AT_ONCE, &files, |(kind, id, size)| {
            self.stop.check()?;
            match kind {
                FileKind::Config => bridge.put_config(self.storage.read(*kind, id)?),
                _ => bridge.put_file(*kind, *id, self.read_listed(*kind, id, Some(*size))?),
            }
            Ok(())
        });
        read_ahead_as_far(read.map(drop))
    }
}

impl Shared {
    fn kept_index(&self) -> MutexGuard<'_, Option<Index>> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn index_made_from(&self, files: &BTreeSet<FileId>) -> Option<Index> {
        let kept = self.kept_index();
        kept.as_ref()
            .filter(|index| index.is_made_from(files))
            .cloned()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.stragglers.join();
    }
}

/// Open a repository, with what is at hand of it.
fn open_by(
    bridge: &Arc<Bridge>,
    password: &SecretString,
) -> Result<rustic_core::Repository<OpenStatus>> {
    let rustic = connect(bridge)?;
    guarded(|| rustic.open(&credentials(password)))?.map_err(|error| {
        let wrong_password = error.is_incorrect_password();
        let location = bridge.location();
        let error = from_rustic(format!("cannot open the repository at {location}"), error);
        if wrong_password {
            error.context(format!(
                "the password of the repository at {location} is wrong: check its password_file"
            ))
        } else {
            error
        }
    })
}

/// Have the key files at hand, and that they are all.
fn read_keys(storage: &dyn Storage, bridge: &Bridge) -> Result<()> {
    let read = storage.list(FileKind::Key).and_then(|listed| {
        let small = listed.iter().filter(|(_, size)| *size <= KEY_BYTES);
        let ids: Vec<FileId> = small.map(|(id, _)| *id).take(KEYS_AHEAD).collect();
        blobs::in_parallel(&ids, |id| {
            bridge.put_file(FileKind::Key, *id, storage.read(FileKind::Key, id)?);
            Ok(())
        })?;
        bridge.put_list(FileKind::Key, listed);
        Ok(())
    });
    read_ahead_as_far(read)
}

/// An outage that was waited out is not waited out once more; all else that goes wrong before rustic asks is rustic's to meet, and to tell.
fn read_ahead_as_far(outcome: Result<()>) -> Result<()> {
    match outcome {
        Err(error)
            if !matches!(
                error.kind(),
                ErrorKind::Unreachable | ErrorKind::Cancelled | ErrorKind::Timeout
            ) =>
        {
            tracing::debug!("no more is read ahead: {}", error.chain());
            Ok(())
        }
        outcome => outcome,
    }
}

fn connect(bridge: &Arc<Bridge>) -> Result<rustic_core::Repository<()>> {
    let backends = RepositoryBackends::new(Arc::clone(bridge) as _, None);
    let mut options = RepositoryOptions::default();
    options.no_cache = true;
    rustic_core::Repository::new(&options, &backends)
        .map_err(|error| from_rustic("the repository cannot be used", error))
}

fn credentials(password: &SecretString) -> Credentials {
    Credentials::password(password.expose_secret())
}

/// rustic unwraps in places: what panics there is an error here.
fn guarded<T>(run: impl FnOnce() -> T) -> Result<T> {
    catch_unwind(AssertUnwindSafe(run)).map_err(|_| {
        Error::new(
            ErrorKind::Failed,
            "rustic broke off: see the log for what it said",
        )
    })
}

/// This machine's name, as restic would write it.
pub(crate) fn hostname() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned()
}

/// The user's name for lock files and snapshots: for humans only.
fn username() -> String {
    std::env::var("USER").unwrap_or_else(|_| {
        let uid = rustix::process::getuid();
        if uid.is_root() {
            "root".to_owned()
        } else {
            uid.as_raw().to_string()
        }
    })
}
