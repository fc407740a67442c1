//! Saving: trees and streams into one snapshot, with the commit as a step of its own.
//!
//! [`Repository::archive`] writes packs and index files that nothing refers to; [`Uncommitted::commit`] writes the snapshot file, and
//! that is the commit point. Whatever happens before it leaves garbage that `prune` collects, and no snapshot. Never: a snapshot
//! that lacks a file which was there, or that says a size which is not the true one. [`Repository::archive_what_can_be`] may leave out a tree or a
//! stream, but only the whole of it.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use jiff::Zoned;
use rustic_core::repofile::{SnapshotFile, Tree};
use rustic_core::{BackupOptions, Id, ParentOptions, SnapshotOptions, StringList, TreeId};
use serde_json::json;

use super::ahead::{ReadAhead, Way};
use super::bridge::{IndexWatch, from_rustic};
use super::index::{ExtendedIndex, Index, Recent};
use super::locks::Lock;
use super::source::{Findings, MixedSource, OnFailure, StreamSource, TreeSource};
use super::{Repository, SnapshotId};
use crate::error::{Error, ErrorKind, Result};
use crate::progress::{Cancel, Control, Phase};
use crate::storage::FileKind;

/// What a cancelled run may take to finish the pieces that it is at: enough where the storage answers.
const CANCEL_PATIENCE: Duration = Duration::from_secs(5);
const CANCEL_POLL: Duration = Duration::from_millis(50);

/// Corrected directories are written once they have so many bytes.
const CORRECTED_BYTES: usize = if cfg!(test) { 8 << 10 } else { 8 << 20 };

/// What to save, and how the snapshot is to be labelled.
#[derive(Debug)]
pub struct ArchiveRequest {
    /// The directory trees, none inside another.
    pub trees: Vec<TreeSource>,
    /// The streams. One inside a tree is refused.
    pub streams: Vec<StreamSource>,
    /// What the snapshot says it holds; see [`super::Snapshot::paths`].
    pub paths: Vec<PathBuf>,
    /// The snapshot's tags.
    pub tags: Vec<String>,
    /// The snapshot's time.
    pub time: Zoned,
    /// The customer's note.
    pub note: Option<String>,
    /// A snapshot of the same trees: files that are as they were then, under the same paths in it, are not read again.
    pub parent: Option<SnapshotId>,
}

#[cfg(test)]
impl ArchiveRequest {
    /// These trees where they are, and nothing else of any kind.
    pub(super) fn of_trees(trees: &[&Path]) -> Self {
        let in_place = |tree: &&Path| TreeSource::in_place(tree.to_path_buf(), Vec::new());
        Self {
            trees: trees.iter().map(in_place).collect(),
            streams: Vec::new(),
            paths: trees.iter().map(|tree| tree.to_path_buf()).collect(),
            tags: Vec::new(),
            time: Zoned::now(),
            note: None,
            parent: None,
        }
    }
}

/// Everything is in the repository but the snapshot itself. Dropping it leaves no trace that anybody can see.
#[derive(Debug)]
pub struct Uncommitted<'a> {
    repository: &'a Repository,
    /// Held until after the commit: it keeps a prune away from the new packs.
    lock: Lock,
    snapshot: SnapshotFile,
    stream_bytes: u64,
    files: u64,
    entries: u64,
    warnings: Vec<String>,
}

/// What a backup saved.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Archived {
    /// The new snapshot.
    pub snapshot: SnapshotId,
    /// Regular files in it, streams not counted.
    pub files: u64,
    /// These and directories, links and whatever else there is below the roots of the trees.
    pub entries: u64,
    /// Plain bytes of all files and streams.
    pub bytes: u64,
    /// Bytes that the repository grew by.
    pub bytes_added: u64,
    /// Plain bytes of the streams.
    pub stream_bytes: u64,
    /// What did not fail the backup but should be known.
    pub warnings: Vec<String>,
}

impl Repository {
    /// Save trees and streams, but not yet the snapshot.
    ///
    /// Blocks until all is read. Fails when anything could not be read (a file that vanished meanwhile is a warning), when a
    /// stream's reader fails, when the storage fails, and on cancellation.
    pub fn archive(
        &self,
        lock: Lock,
        request: ArchiveRequest,
        control: &Control,
    ) -> Result<Uncommitted<'_>> {
        let (uncommitted, _) = self.archive_parts(lock, request, OnFailure::Fail, control)?;
        Ok(uncommitted)
    }

    /// The same, but a tree or a stream that could not be read does not fail the others: the whole of it is left out of the snapshot, and told with
    /// the cause by its path.
    pub fn archive_what_can_be(
        &self,
        lock: Lock,
        request: ArchiveRequest,
        control: &Control,
    ) -> Result<(Uncommitted<'_>, BTreeMap<PathBuf, Error>)> {
        self.archive_parts(lock, request, OnFailure::LeaveOut, control)
    }

    fn archive_parts(
        &self,
        lock: Lock,
        request: ArchiveRequest,
        on_failure: OnFailure,
        control: &Control,
    ) -> Result<(Uncommitted<'_>, BTreeMap<PathBuf, Error>)> {
        control.cancel.check()?;
        let index = self.fresh_index()?;
        let draft = draft(&request)?;
        let options = options(request.parent.as_ref());
        let streams: Vec<PathBuf> = request
            .streams
            .iter()
            .map(|stream| stream.path.clone())
            .collect();
        let way = Way::to(&request);
        let source = MixedSource::new(request.trees, request.streams, on_failure, control.clone())?;
        let ahead = request
            .parent
            .and_then(|parent| ReadAhead::of(self, &index, &parent, source.must_stop()));
        let source = Arc::new(source);

        let watch = index.watch();
        let run = {
            let (index, source) = (index.clone(), Arc::clone(&source));
            move || {
                if let Some(ahead) = ahead {
                    source.read_ahead(ahead, &way);
                }
                run_rustic(&index, &options, &source, draft, &request.paths)
            }
        };
        let (result, lock) = self.run_apart(lock, run, &control.cancel)?;
        let mut findings = source.take_findings();
        let mut snapshot = judge(result, &findings, control)?;
        require_read_to_the_end(&streams, &mut findings, on_failure)?;
        if let Some(summary) = &mut snapshot.summary {
            // As restic counts; rustic counts links and pipes, too, and what is left out.
            summary.total_files_processed = findings.files + findings.streams;
            summary.total_bytes_processed = findings.bytes;
        }

        control.monitor.phase(Phase::Committing);
        let snapshot = self.corrected(&index, &watch, snapshot, &findings)?;
        let uncommitted = Uncommitted {
            repository: self,
            lock,
            snapshot,
            stream_bytes: findings.stream_bytes,
            files: findings.files,
            entries: findings.entries,
            warnings: warnings(&findings),
        };
        Ok((uncommitted, findings.left_out))
    }

    /// Run the archiver on a thread of its own. All archive runs share the index, and with it the storage that does not know of this run's
    /// cancellation: so during an outage a cancelled run is left to itself. It reads nothing any more, and holds the lock until it ends.
    fn run_apart<T: Send + 'static>(
        &self,
        lock: Lock,
        run: impl FnOnce() -> T + Send + 'static,
        cancel: &Cancel,
    ) -> Result<(T, Lock)> {
        let (sender, receiver) = sync_channel(1);
        let thread = std::thread::Builder::new()
            .name("archive".into())
            .spawn(move || {
                let result = run();
                // The lock goes back, or is released here where nobody waits any more.
                let _ = sender.send((result, lock));
            })
            .map_err(|error| Error::io("cannot start the thread that saves", error))?;
        let mut cancelled = None;
        loop {
            match receiver.recv_timeout(CANCEL_POLL) {
                Ok(done) => return Ok(done),
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Error::new(ErrorKind::Failed, "saving the files broke off"));
                }
                Err(RecvTimeoutError::Timeout) if !cancel.is_cancelled() => {}
                Err(RecvTimeoutError::Timeout) => {
                    if cancelled.get_or_insert_with(Instant::now).elapsed() > CANCEL_PATIENCE {
                        self.shared.stragglers.add(thread);
                        return Err(Error::new(
                            ErrorKind::Cancelled,
                            "the backup was cancelled while its repository was away",
                        ));
                    }
                }
            }
        }
    }

    /// rustic stores a stream with the size 0, which the restic program would restore as an empty file, and of a tree that broke off what it
    /// had until then. So the trees on the way there are written again with the true size, or without what is left out, in a pack of their own.
    fn corrected(
        &self,
        index: &Index,
        watch: &IndexWatch<'_>,
        mut snapshot: SnapshotFile,
        findings: &Findings,
    ) -> Result<SnapshotFile> {
        let changes = changes(findings);
        if changes.is_empty() {
            return Ok(snapshot);
        }
        let index = ExtendedIndex::new(index, &self.shared.sealer, &watch.written())?;
        let mut correction = Correction {
            repository: self,
            index: &index,
            recent: Recent::default(),
            trees: Vec::new(),
            bytes: 0,
        };
        snapshot.tree = correction.tree(snapshot.tree, &changes)?;
        correction.write()?;
        Ok(snapshot)
    }

    /// One pack of trees and the index file that makes it known.
    pub(super) fn write_tree_pack(&self, trees: &[(Id, Vec<u8>)]) -> Result<()> {
        let pack = self.shared.sealer.seal_tree_pack(trees)?;
        self.storage
            .write(FileKind::Pack, &pack.id, &[pack.content])?;
        let blobs: Vec<_> = pack
            .trees
            .iter()
            .map(|tree| {
                json!({
                    "id": tree.id,
                    "type": "tree",
                    "offset": tree.offset,
                    "length": tree.length,
                    "uncompressed_length": tree.uncompressed_length,
                })
            })
            .collect();
        let (id, content) = self
            .shared
            .sealer
            .seal_json(&json!({"packs": [{"id": pack.id.to_string(), "blobs": blobs}]}))?;
        self.storage.write(FileKind::Index, &id, &[content])
    }
}

impl Uncommitted<'_> {
    /// Plain bytes of the streams, as they were read and stored.
    pub fn stream_bytes(&self) -> u64 {
        self.stream_bytes
    }

    /// Write the snapshot. This is the commit point: on an error there is no snapshot, on success it is there for good.
    ///
    /// The gate is told the id before the write, so that also one whose outcome nobody learns (a crash, a cut connection) can be looked for.
    /// Cancelling has no effect any more once the gate was asked.
    pub fn commit(self, control: &Control) -> Result<Archived> {
        let (id, content) = self.repository.shared.sealer.seal_json(&self.snapshot)?;
        self.lock.require_held()?;
        control.cancel.check()?;
        control.before_commit(Some(&id.to_string()))?;
        // By the storage that knows of no cancellation: nobody shall be left with half an answer.
        self.repository
            .shared
            .storage
            .write(FileKind::Snapshot, &id, &[content])
            .map_err(|error| {
                error.context("the snapshot could not be written, so there is no backup")
            })?;
        let summary = self.snapshot.summary.unwrap_or_default();
        Ok(Archived {
            snapshot: SnapshotId(id),
            files: self.files,
            entries: self.entries,
            bytes: summary.total_bytes_processed,
            bytes_added: summary.data_added_packed,
            stream_bytes: self.stream_bytes,
            warnings: self.warnings,
        })
    }
}

fn draft(request: &ArchiveRequest) -> Result<SnapshotFile> {
    let mut options = SnapshotOptions::default()
        .host(super::hostname())
        .time(request.time.clone())
        // The process's own arguments are nobody's business.
        .command("shophosting-backup".to_owned());
    options.description = request.note.clone();
    let mut snapshot = options
        .to_snapshot()
        .map_err(|error| from_rustic("cannot prepare the snapshot", error))?;
    let mut tags = StringList::default();
    for tag in &request.tags {
        tags.add(tag.clone());
    }
    snapshot.tags = tags;
    snapshot.username = super::username();
    snapshot.uid = rustix::process::getuid().as_raw();
    snapshot.gid = rustix::process::getgid().as_raw();
    snapshot.program_version = concat!("shophosting-backup ", env!("CARGO_PKG_VERSION")).to_owned();
    Ok(snapshot)
}

fn options(parent: Option<&SnapshotId>) -> BackupOptions {
    let parents = match parent {
        Some(id) => ParentOptions::default().parents(vec![id.to_string()]),
        None => ParentOptions::default().force(true),
    };
    BackupOptions::default().parent_opts(parents).no_scan(true)
}

fn run_rustic(
    index: &Index,
    options: &BackupOptions,
    source: &MixedSource,
    draft: SnapshotFile,
    paths: &[PathBuf],
) -> Result<SnapshotFile> {
    // rustic unwraps in places; a panic of its threads must not take the worker with it.
    let run = || index.repository().archive(options, source, draft, paths);
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(result) => result.map_err(|error| from_rustic("the files could not be saved", error)),
        Err(_) => Err(Error::new(
            ErrorKind::Failed,
            "saving the files broke off inside the archiver",
        )),
    }
}

/// What rustic reports as success may lack files: the findings decide.
fn judge(
    result: Result<SnapshotFile>,
    findings: &Findings,
    control: &Control,
) -> Result<SnapshotFile> {
    control.cancel.check()?;
    match &findings.failure {
        Some(failure) => Err(Error::caused(
            failure.kind(),
            failure.to_string(),
            failure.chain(),
        )),
        None => result,
    }
}

fn warnings(findings: &Findings) -> Vec<String> {
    const NAMED: usize = 20;
    let mut warnings: Vec<String> = findings
        .vanished
        .iter()
        .take(NAMED)
        .map(|path| format!("{} vanished while it was read", path.display()))
        .collect();
    if findings.vanished.len() > NAMED {
        warnings.push(format!(
            "{} more files vanished while they were read",
            findings.vanished.len() - NAMED
        ));
    }
    warnings.extend(findings.warnings.iter().take(NAMED).cloned());
    if findings.warnings.len() > NAMED {
        warnings.push(format!(
            "{} more warnings of this kind",
            findings.warnings.len() - NAMED
        ));
    }
    warnings
}

/// A stream is there with all that it gave, or not at all.
fn require_read_to_the_end(
    streams: &[PathBuf],
    findings: &mut Findings,
    on_failure: OnFailure,
) -> Result<()> {
    for path in streams {
        if findings.true_sizes.contains_key(path) || findings.left_out.contains_key(path) {
            continue;
        }
        let error = Error::new(
            ErrorKind::Failed,
            format!("{} was not read to its end", path.display()),
        );
        match on_failure {
            OnFailure::Fail => return Err(error),
            OnFailure::LeaveOut => findings.left_out.insert(path.clone(), error),
        };
    }
    Ok(())
}

/// What is to change in the root directory, and below it.
fn changes(findings: &Findings) -> BTreeMap<OsString, Change> {
    let mut root = BTreeMap::new();
    for path in findings.left_out.keys() {
        Change::note(&mut root, path, Change::Remove);
    }
    for (path, size) in &findings.true_sizes {
        Change::note(&mut root, path, Change::Size(*size));
    }
    root
}

/// What is to change below one directory.
#[derive(Debug, PartialEq, Eq)]
enum Change {
    Size(u64),
    Remove,
    Below(BTreeMap<OsString, Change>),
}

impl Change {
    /// What is noted first counts: nothing changes any more below what is removed.
    fn note(root: &mut BTreeMap<OsString, Self>, path: &Path, change: Self) {
        let mut names = names(path).peekable();
        let mut below = root;
        while let Some(name) = names.next() {
            let entry = below.entry(name.to_owned());
            if names.peek().is_none() {
                entry.or_insert(change);
                return;
            }
            match entry.or_insert_with(|| Self::Below(BTreeMap::new())) {
                Self::Below(next) => below = next,
                Self::Size(_) | Self::Remove => return,
            }
        }
    }

    /// What is not there need not be removed.
    fn only_removes(&self) -> bool {
        match self {
            Self::Size(_) => false,
            Self::Remove => true,
            Self::Below(changes) => changes.values().all(Self::only_removes),
        }
    }
}

/// The names on the way from the root to `path`.
pub(super) fn names(path: &Path) -> impl Iterator<Item = &OsStr> {
    path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name),
        _ => None,
    })
}

/// Writes trees again with changes.
struct Correction<'a> {
    repository: &'a Repository,
    index: &'a ExtendedIndex<'a>,
    /// What was read last of the old ones.
    recent: Recent,
    /// The new trees that are not written yet, with their ids: whoever changes files in many directories while they are read makes many.
    trees: Vec<(Id, Vec<u8>)>,
    /// How much that is.
    bytes: usize,
}

impl Correction<'_> {
    fn write(&mut self) -> Result<()> {
        if !self.trees.is_empty() {
            self.repository.write_tree_pack(&self.trees)?;
        }
        self.trees = Vec::new();
        self.bytes = 0;
        Ok(())
    }

    fn tree(&mut self, id: TreeId, changes: &BTreeMap<OsString, Change>) -> Result<TreeId> {
        let mut tree = self.index.read_tree(
            &*self.repository.storage,
            &self.repository.shared.sealer,
            &id,
            &mut self.recent,
        )?;
        for (name, change) in changes {
            self.apply(&mut tree, name, change)?;
        }
        let (json, id) = tree.serialize().map_err(|error| {
            Error::caused(
                ErrorKind::Failed,
                "cannot write a directory",
                error.to_string(),
            )
        })?;
        self.bytes += json.len();
        self.trees.push((*id, json));
        if self.bytes >= CORRECTED_BYTES {
            self.write()?;
        }
        Ok(id)
    }

    fn apply(&mut self, tree: &mut Tree, name: &OsStr, change: &Change) -> Result<()> {
        let lost = || {
            Error::new(
                ErrorKind::Damaged,
                format!(
                    "{} was read but did not arrive in the repository",
                    name.display()
                ),
            )
        };
        if *change == Change::Remove {
            tree.nodes.retain(|node| node.name() != name);
            return Ok(());
        }
        let node = match tree.nodes.iter_mut().find(|node| node.name() == name) {
            Some(node) => node,
            None if change.only_removes() => return Ok(()),
            None => return Err(lost()),
        };
        match change {
            Change::Size(size) => {
                let mut stored = 0;
                for id in node.content.iter().flatten() {
                    stored += self.index.locate(id)?.plain_bytes();
                }
                if stored != *size {
                    return Err(lost());
                }
                node.meta.size = *size;
            }
            Change::Remove => {}
            Change::Below(changes) => {
                let below = node.subtree.ok_or_else(lost)?;
                node.subtree = Some(self.tree(below, changes)?);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::super::EntryKind;
    use super::*;
    use crate::storage;

    #[test]
    fn changes_meet_in_common_directories() {
        let failed = || Error::new(ErrorKind::Failed, "failed");
        let findings = Findings {
            true_sizes: [
                ("/tmp/a/x.sql", 1),
                ("/tmp/a/y.log", 2),
                ("/var/z/short", 3),
            ]
            .map(|(path, size)| (PathBuf::from(path), size))
            .into(),
            left_out: ["/tmp/a/w.sql", "/var/z"]
                .map(|path| (PathBuf::from(path), failed()))
                .into(),
            ..Findings::default()
        };
        let below = |changes: Vec<(&str, Change)>| {
            let changes = changes.into_iter();
            Change::Below(
                changes
                    .map(|(name, change)| (name.into(), change))
                    .collect(),
            )
        };
        let dumps = vec![
            ("w.sql", Change::Remove),
            ("x.sql", Change::Size(1)),
            ("y.log", Change::Size(2)),
        ];
        let expected = below(vec![
            ("tmp", below(vec![("a", below(dumps))])),
            ("var", below(vec![("z", Change::Remove)])),
        ]);
        assert_eq!(Change::Below(changes(&findings)), expected);
    }

    #[test]
    fn corrected_directories_are_written_in_pieces_and_all_of_them_are_there() {
        const STREAMS: u8 = 40;
        let scratch = tempfile::tempdir().unwrap();
        let location = storage::Location::from(&*scratch.path().join("repository"));
        let storage = storage::open(&location, &Default::default()).unwrap();
        let password = "password".to_owned().into();
        let repository = Repository::init(Arc::clone(&storage), &password).unwrap();
        let name = "a".repeat(250);
        let path = |number: u8| PathBuf::from(format!("/dumps/{number}/{name}"));
        let mut request = ArchiveRequest::of_trees(&[]);
        request.paths = vec!["/dumps".into()];
        request.streams = (1..=STREAMS)
            .map(|number| StreamSource {
                path: path(number),
                reader: Box::new(Cursor::new(vec![number; number.into()])),
            })
            .collect();
        let control = Control::default();
        let lock = repository.lock_shared().unwrap();
        let uncommitted = repository.archive(lock, request, &control).unwrap();
        let id = uncommitted.commit(&control).unwrap().snapshot;
        // rustic's, and those of more than one piece.
        assert!(storage.list(FileKind::Index).unwrap().len() > 2);

        let snapshot = repository.snapshot(&id).unwrap().unwrap();
        let paths: Vec<PathBuf> = (1..=STREAMS).map(path).collect();
        let view = repository.view().unwrap();
        let found = view.entries(&snapshot, &paths).unwrap();
        let of_bytes = |number: u8| {
            let bytes = number.into();
            Some(EntryKind::File { bytes })
        };
        assert_eq!(found, (1..=STREAMS).map(of_bytes).collect::<Vec<_>>());
    }

    #[test]
    fn a_stream_that_nobody_read_to_its_end_is_left_out_or_fails_all() {
        let paths = [PathBuf::from("/tmp/a/x.sql")];
        let mut findings = Findings::default();
        let strict = require_read_to_the_end(&paths, &mut findings, OnFailure::Fail);
        assert!(strict.unwrap_err().to_string().contains("x.sql"));
        require_read_to_the_end(&paths, &mut findings, OnFailure::LeaveOut).unwrap();
        assert!(findings.left_out.contains_key(&paths[0]));
    }
}
