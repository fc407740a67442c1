//! Lets rustic read and write through our storage, and keeps the commit point in our hands.
//!
//! rustic writes a snapshot file at the end of every archive run, however many files it had dropped on the way. That
//! write is answered here without being done: a snapshot becomes visible only by [`super::archive::Uncommitted::commit`].

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use bytes::Bytes;
use rustic_core::{
    BytesList, ErrorKind as RusticKind, FileType, Id, ReadBackend, RusticError, RusticResult,
    WriteBackend,
};

use super::copies::Copies;
use super::seal::id_bytes;
use super::shelf::{Place, Shelves};
use crate::error::{Error, ErrorKind};
use crate::storage::{FileId, FileKind, Storage};

/// rustic's view of a storage.
#[derive(Debug)]
pub(super) struct Bridge {
    storage: RwLock<Arc<dyn Storage>>,
    written: Mutex<Written>,
    shelves: Arc<Shelves>,
    at_hand: Mutex<AtHand>,
    copies: Option<Arc<Copies>>,
    /// Index files that were just listed, with their sizes: of these a copy will do.
    listed: BTreeMap<FileId, u64>,
}

/// What was read before rustic asks for it. Each is given once; what rustic asks for again is read again.
#[derive(Debug, Default)]
struct AtHand {
    lists: HashMap<FileKind, Vec<(FileId, u64)>>,
    files: HashMap<(FileKind, FileId), Bytes>,
}

/// The sealed index files that rustic wrote while somebody wanted to know: they say where new blobs lie.
#[derive(Debug, Default)]
struct Written {
    /// How many were forgotten: the position of the first that is kept.
    forgotten: u64,
    indexes: VecDeque<Bytes>,
    /// From which position on each watcher wants them.
    watchers: Vec<u64>,
}

impl Written {
    fn end(&self) -> u64 {
        self.forgotten + self.indexes.len() as u64
    }
}

/// As long as it lives, index files that rustic writes are remembered.
pub(super) struct IndexWatch<'a> {
    bridge: &'a Bridge,
    from: u64,
}

impl IndexWatch<'_> {
    /// The sealed index files written meanwhile (and perhaps some more, by other archive runs).
    pub(super) fn written(&self) -> Vec<Bytes> {
        let written = self.bridge.written();
        let skip =
            usize::try_from(self.from.saturating_sub(written.forgotten)).unwrap_or(usize::MAX);
        written.indexes.iter().skip(skip).cloned().collect()
    }
}

impl Drop for IndexWatch<'_> {
    fn drop(&mut self) {
        let mut written = self.bridge.written();
        if let Some(at) = written.watchers.iter().position(|from| *from == self.from) {
            written.watchers.swap_remove(at);
        }
        let needed_from = written
            .watchers
            .iter()
            .copied()
            .min()
            .unwrap_or(written.end());
        while written.forgotten < needed_from && written.indexes.pop_front().is_some() {
            written.forgotten += 1;
        }
    }
}

impl Bridge {
    pub(super) fn new(storage: Arc<dyn Storage>, shelves: Arc<Shelves>) -> Self {
        Self {
            storage: RwLock::new(storage),
            written: Mutex::default(),
            shelves,
            at_hand: Mutex::default(),
            copies: None,
            listed: BTreeMap::new(),
        }
    }

    /// Of index files that are written copies are kept, and of those that were just listed they will do.
    pub(super) fn with_copies(
        mut self,
        copies: Option<Arc<Copies>>,
        listed: &[(FileId, u64)],
    ) -> Self {
        self.copies = copies;
        self.listed = listed.iter().copied().collect();
        self
    }

    /// From now on by way of this storage.
    pub(super) fn use_storage(&self, storage: Arc<dyn Storage>) {
        *self.storage.write().unwrap_or_else(PoisonError::into_inner) = storage;
    }

    /// What is there, rustic need not read.
    pub(super) fn shelves(&self) -> &Arc<Shelves> {
        &self.shelves
    }

    /// Have a listing at hand for when rustic asks for it.
    pub(super) fn put_list(&self, kind: FileKind, listed: Vec<(FileId, u64)>) {
        self.at_hand().lists.insert(kind, listed);
    }

    /// Have a file at hand for when rustic asks for it.
    pub(super) fn put_file(&self, kind: FileKind, id: FileId, content: Bytes) {
        self.at_hand().files.insert((kind, id), content);
    }

    /// Have the one `config` at hand for when rustic asks for it.
    pub(super) fn put_config(&self, content: Bytes) {
        let id = FileId::default();
        self.put_list(FileKind::Config, vec![(id, content.len() as u64)]);
        self.put_file(FileKind::Config, id, content);
    }

    /// Forget what rustic has not asked for.
    pub(super) fn forget_at_hand(&self) {
        *self.at_hand() = AtHand::default();
    }

    fn at_hand(&self) -> MutexGuard<'_, AtHand> {
        self.at_hand.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn storage(&self) -> Arc<dyn Storage> {
        Arc::clone(&self.storage.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn watch_indexes(&self) -> IndexWatch<'_> {
        let mut written = self.written();
        let from = written.end();
        written.watchers.push(from);
        drop(written);
        IndexWatch { bridge: self, from }
    }

    fn written(&self) -> MutexGuard<'_, Written> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ReadBackend for Bridge {
    fn location(&self) -> String {
        self.storage().location().to_owned()
    }

    fn list_with_size(&self, tpe: FileType) -> RusticResult<Vec<(Id, u32)>> {
        let at_hand = self.at_hand().lists.remove(&kind(tpe));
        let files = match at_hand {
            Some(files) => files,
            None => self.storage().list(kind(tpe)).map_err(into_rustic)?,
        };
        files
            .into_iter()
            .map(|(id, size)| match u32::try_from(size) {
                Ok(size) => Ok((Id::new(id.0), size)),
                Err(_) => Err(into_rustic(Error::new(
                    ErrorKind::Damaged,
                    format!("the file {id} of the repository is larger than any can be"),
                ))),
            })
            .collect()
    }

    fn read_full(&self, tpe: FileType, id: &Id) -> RusticResult<Bytes> {
        let file = (kind(tpe), file_id(id));
        if let Some(content) = self.at_hand().files.remove(&file) {
            return Ok(content);
        }
        let (kind, id) = file;
        let read = || self.storage().read(kind, &id);
        let content = match (&self.copies, self.listed.get(&id)) {
            (Some(copies), Some(size)) if kind == FileKind::Index => {
                copies.read(kind, &id, *size, read)
            }
            _ => read(),
        };
        content.map_err(into_rustic)
    }

    fn read_partial(
        &self,
        tpe: FileType,
        id: &Id,
        _cacheable: bool,
        offset: u32,
        length: u32,
    ) -> RusticResult<Bytes> {
        let place = Place {
            pack: *id,
            offset,
            length,
        };
        if tpe == FileType::Pack
            && let Some(sealed) = self.shelves.take(&place)
        {
            return Ok(sealed);
        }
        self.storage()
            .read_range(kind(tpe), &file_id(id), offset.into(), length.into())
            .map_err(into_rustic)
    }

    fn warmup_path(&self, tpe: FileType, id: &Id) -> String {
        format!("{}/{}", tpe.dirname(), id.to_hex().as_str())
    }
}

impl WriteBackend for Bridge {
    fn create(&self) -> RusticResult<()> {
        self.storage().create().map_err(into_rustic)
    }

    fn write_bytes(
        &self,
        tpe: FileType,
        id: &Id,
        _cacheable: bool,
        content: BytesList,
    ) -> RusticResult<()> {
        if tpe == FileType::Snapshot {
            return Ok(());
        }
        let content = content.into_vec();
        self.storage()
            .write(kind(tpe), &file_id(id), &content)
            .map_err(into_rustic)?;
        if tpe == FileType::Index {
            if let Some(copies) = &self.copies {
                copies.keep(FileKind::Index, &file_id(id), &content.concat());
            }
            let mut written = self.written();
            if !written.watchers.is_empty() {
                written.indexes.push_back(content.concat().into());
            }
        }
        Ok(())
    }

    fn remove(&self, tpe: FileType, id: &Id, _cacheable: bool) -> RusticResult<()> {
        self.storage()
            .remove(kind(tpe), &file_id(id))
            .map_err(into_rustic)
    }
}

fn kind(tpe: FileType) -> FileKind {
    match tpe {
        FileType::Config => FileKind::Config,
        FileType::Index => FileKind::Index,
        FileType::Key => FileKind::Key,
        FileType::Snapshot => FileKind::Snapshot,
        FileType::Pack => FileKind::Pack,
    }
}

pub(super) fn file_id(id: &Id) -> FileId {
    FileId(id_bytes(id))
}

fn into_rustic(error: Error) -> Box<RusticError> {
    RusticError::with_source(
        RusticKind::Backend,
        "the repository's storage failed",
        error,
    )
}

/// Our error for one of rustic's: the storage's own error where that was the cause, so that its kind and its advice are kept.
#[expect(clippy::boxed_local, reason = "rustic's results carry boxes")]
pub(super) fn from_rustic(message: impl Into<String>, error: Box<RusticError>) -> Error {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&*error);
    while let Some(inner) = cause {
        if let Some(ours) = inner.downcast_ref::<Error>() {
            return Error::caused(ours.kind(), message, ours.chain());
        }
        cause = inner.source();
    }
    let kind = if error.is_incorrect_password() {
        ErrorKind::Refused
    } else {
        ErrorKind::Failed
    };
    Error::caused(kind, message, error.display_log())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_sees_what_was_written_since_it_began_and_nothing_is_kept_for_nobody() {
        let scratch = tempfile::tempdir().unwrap();
        let location = crate::storage::Location::from(scratch.path());
        let storage = crate::storage::open(&location, &Default::default()).unwrap();
        let bridge = Bridge::new(storage, Arc::default());
        bridge.create().unwrap();
        let write = |byte: u8| {
            bridge
                .write_bytes(
                    FileType::Index,
                    &Id::new([byte; 32]),
                    false,
                    vec![byte].into(),
                )
                .unwrap();
        };
        write(1);
        let first = bridge.watch_indexes();
        write(2);
        let second = bridge.watch_indexes();
        write(3);
        assert_eq!(
            first.written(),
            [Bytes::from(vec![2]), Bytes::from(vec![3])]
        );
        assert_eq!(second.written(), [Bytes::from(vec![3])]);
        drop(first);
        assert_eq!(bridge.written().indexes.len(), 1);
        drop(second);
        assert!(bridge.written().indexes.is_empty());
    }

    #[test]
    fn the_kind_of_a_storage_error_survives_its_way_through_rustic() {
        let error = into_rustic(Error::new(
            ErrorKind::NoSpace,
            "the disk of the backup server is full",
        ));
        let back = from_rustic("cannot write a pack", error);
        assert_eq!(back.kind(), ErrorKind::NoSpace);
        assert_eq!(
            back.chain(),
            "cannot write a pack: the disk of the backup server is full"
        );
    }
}
