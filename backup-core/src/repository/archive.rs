//! Saving: trees and a stream into one snapshot, with the commit as a step of its own.
//!
//! [`Repository::archive`] writes packs and index files that nothing refers to; [`Uncommitted::commit`] writes the snapshot file, and
//! that is the commit point. Whatever happens before it leaves garbage that `prune` collects, and no snapshot. Never: a snapshot
//! that lacks a file which was there, or that says a size which is not the true one.

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

use super::bridge::{IndexWatch, from_rustic};
use super::index::{ExtendedIndex, Index};
use super::locks::Lock;
use super::source::{Findings, MixedSource, StreamSource, TreeSource};
use super::{Repository, SnapshotId};
use crate::error::{Error, ErrorKind, Result};
use crate::progress::{Cancel, Control, Phase};
use crate::storage::FileKind;

/// What a cancelled run may take to finish the pieces that it is at: enough where the storage answers.
const CANCEL_PATIENCE: Duration = Duration::from_secs(5);
const CANCEL_POLL: Duration = Duration::from_millis(50);

/// What to save, and how the snapshot is to be labelled.
#[derive(Debug)]
pub struct ArchiveRequest {
    /// The directory trees, none inside another.
    pub trees: Vec<TreeSource>,
    /// The stream, if any.
    pub stream: Option<StreamSource>,
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

/// Everything is in the repository but the snapshot itself. Dropping it leaves no trace that anybody can see.
#[derive(Debug)]
pub struct Uncommitted<'a> {
    repository: &'a Repository,
    /// Held until after the commit: it keeps a prune away from the new packs.
    lock: Lock,
    snapshot: SnapshotFile,
    stream_bytes: u64,
    files: u64,
    warnings: Vec<String>,
}

/// What a backup saved.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Archived {
    /// The new snapshot.
    pub snapshot: SnapshotId,
    /// Regular files in it, the stream not counted.
    pub files: u64,
    /// Plain bytes of all files and of the stream.
    pub bytes: u64,
    /// Bytes that the repository grew by.
    pub bytes_added: u64,
    /// Plain bytes of the stream.
    pub stream_bytes: u64,
    /// What did not fail the backup but should be known.
    pub warnings: Vec<String>,
}

impl Repository {
    /// Save trees and a stream, but not yet the snapshot.
    ///
    /// Blocks until all is read. Fails when anything could not be read (a file that vanished meanwhile is a warning), when the
    /// stream's reader fails, when the storage fails, and on cancellation.
    pub fn archive(
        &self,
        lock: Lock,
        request: ArchiveRequest,
        control: &Control,
    ) -> Result<Uncommitted<'_>> {
        control.cancel.check()?;
        let index = self.fresh_index()?;
        let draft = draft(&request)?;
        let options = options(request.parent.as_ref());
        let source = Arc::new(MixedSource::new(
            request.trees,
            request.stream,
            control.clone(),
        )?);

        let watch = index.watch();
        let run = {
            let (index, source) = (index.clone(), Arc::clone(&source));
            move || run_rustic(&index, &options, &source, draft, &request.paths)
        };
        let (result, lock) = self.run_apart(lock, run, &control.cancel)?;
        let findings = source.take_findings();
        let mut snapshot = judge(result, &findings, control)?;
        if let Some(summary) = &mut snapshot.summary {
            // As restic counts; rustic counts links and pipes, too.
            summary.total_files_processed = findings.files + findings.streams;
        }

        control.monitor.phase(Phase::Committing);
        let warnings = warnings(&findings);
        let snapshot = self.with_true_sizes(&index, &watch, snapshot, findings.true_sizes)?;
        Ok(Uncommitted {
            repository: self,
            lock,
            snapshot,
            stream_bytes: findings.stream_bytes,
            files: findings.files,
            warnings,
        })
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

    /// rustic stores a stream with the size 0, which the restic program would restore as an empty file. So the trees on the way to
    /// it are written again with the true size, in a pack of their own.
    fn with_true_sizes(
        &self,
        index: &Index,
        watch: &IndexWatch<'_>,
        mut snapshot: SnapshotFile,
        true_sizes: BTreeMap<PathBuf, u64>,
    ) -> Result<SnapshotFile> {
        if true_sizes.is_empty() {
            return Ok(snapshot);
        }
        let index = ExtendedIndex::new(index, &self.shared.sealer, &watch.written())?;
        let mut correction = Correction {
            repository: self,
            index: &index,
            trees: Vec::new(),
        };
        snapshot.tree = correction.tree(snapshot.tree, &Change::by_directory(true_sizes))?;
        self.write_tree_pack(&correction.trees)?;
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
    /// Plain bytes of the stream, as they were read and stored.
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

/// What is to change below one directory.
enum Change {
    Size(u64),
    Below(BTreeMap<OsString, Change>),
}

impl Change {
    fn by_directory(true_sizes: BTreeMap<PathBuf, u64>) -> BTreeMap<OsString, Self> {
        let mut root = BTreeMap::new();
        for (path, size) in true_sizes {
            let names: Vec<&OsStr> = names(&path).collect();
            let mut below = &mut root;
            for (depth, name) in names.iter().enumerate() {
                let entry = below.entry((*name).to_owned());
                if depth + 1 == names.len() {
                    entry.or_insert(Self::Size(size));
                    break;
                }
                match entry.or_insert_with(|| Self::Below(BTreeMap::new())) {
                    Self::Below(next) => below = next,
                    Self::Size(_) => break,
                }
            }
        }
        root
    }
}

/// The names on the way from the root to `path`.
fn names(path: &Path) -> impl Iterator<Item = &OsStr> {
    path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name),
        _ => None,
    })
}

/// Writes trees again with changes.
struct Correction<'a> {
    repository: &'a Repository,
    index: &'a ExtendedIndex<'a>,
    /// The new trees with their ids.
    trees: Vec<(Id, Vec<u8>)>,
}

impl Correction<'_> {
    fn tree(&mut self, id: TreeId, changes: &BTreeMap<OsString, Change>) -> Result<TreeId> {
        let mut tree = self.index.read_tree(
            &*self.repository.storage,
            &self.repository.shared.sealer,
            &id,
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
        self.trees.push((*id, json));
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
        let node = tree
            .nodes
            .iter_mut()
            .find(|node| node.name() == name)
            .ok_or_else(lost)?;
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
    use super::*;

    #[test]
    fn changes_meet_in_common_directories() {
        let sizes = BTreeMap::from([
            (PathBuf::from("/tmp/a/x.sql"), 1),
            (PathBuf::from("/tmp/a/y.log"), 2),
            (PathBuf::from("/var/z"), 3),
        ]);
        let root = Change::by_directory(sizes);
        assert_eq!(root.len(), 2);
        let Some(Change::Below(tmp)) = root.get(OsStr::new("tmp")) else {
            panic!("tmp is a directory");
        };
        let Some(Change::Below(a)) = tmp.get(OsStr::new("a")) else {
            panic!("a is a directory");
        };
        assert_eq!(a.len(), 2);
    }
}
