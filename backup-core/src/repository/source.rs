//! What a backup reads: directory trees and streams, as one sequence of entries in path order.
//!
//! A tree belongs to a tenant who may change it while we read it as root. So no path is ever looked up twice: every directory is
//! opened relative to the one above it, no link is followed, and what an entry says of a file comes from the descriptor that its
//! content is read from. rustic drops what fails and goes on; therefore nothing fails towards rustic: every finding is written down here and
//! judged by [`super::archive`] before the commit. Each tree and each stream is a part of its own, so that it can be told which one failed.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{BufReader, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine;
use jiff::Timestamp;
use rustic_core::repofile::{Metadata, Node, NodeType};
use rustic_core::{
    ErrorKind as RusticKind, ReadSource, ReadSourceEntry, ReadSourceOpen, RusticError, RusticResult,
};
use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, fstat, open, openat, readlinkat, statat,
};
use rustix::io::Errno;
use xattr::FileExt;

use super::ahead::{MustStop, ReadAhead, Way};
use super::mode;
use crate::error::{Error, ErrorKind, Result};
use crate::progress::Control;

/// The deepest directory and the longest path that are saved and restored; no shop comes near.
pub(super) const DEPTH_MAX: usize = 4096;
pub(super) const PATH_BYTES_MAX: usize = 32 * 1024;

/// How often something is looked at again that becomes something else meanwhile.
const LOOKS_MAX: usize = 1000;

/// What is read from the system at once.
const BUFFER_BYTES: usize = 256 * 1024;

/// A directory tree to read.
#[derive(Debug)]
pub struct TreeSource {
    /// The directory that is read, absolute, with everything below it. It may not be a link.
    pub root: PathBuf,
    /// The absolute path it gets in the snapshot; warnings and errors name it, too.
    pub path: PathBuf,
    /// Paths relative to `root` that are left out, with everything below them.
    pub exclude: Vec<PathBuf>,
    /// What has to be held while the tree is read.
    pub hold: Option<Hold>,
    /// The longest that reading it may take; what is over it cannot be read. The time in which it waits for what comes before it does not count.
    pub limit: Option<Duration>,
}

impl TreeSource {
    /// A directory that is called in the snapshot what it is called on disk.
    pub fn in_place(root: PathBuf, exclude: Vec<PathBuf>) -> Self {
        Self {
            path: root.clone(),
            root,
            exclude,
            hold: None,
            limit: None,
        }
    }
}

/// What is taken just before a tree is read, and given back when all of it was: as a rule a lock. If it cannot be had, the tree cannot be read. The
/// streams that come before the tree were read to their ends by then.
pub struct Hold(Box<dyn FnOnce() -> Result<Held> + Send>);

type Held = Box<dyn Any + Send + Sync>;

impl Hold {
    /// What `take` gives is dropped when it is no longer needed. It may wait, but has to look at the flag that cancels meanwhile.
    pub fn new<T: Send + Sync + 'static>(
        take: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Self {
        Self(Box::new(|| Ok(Box::new(take()?) as Held)))
    }
}

impl std::fmt::Debug for Hold {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hold")
    }
}

/// A stream to store as a file.
pub struct StreamSource {
    /// The absolute path it gets in the snapshot. Nothing needs to be there on disk.
    pub path: PathBuf,
    /// The content, read once to its end, one stream after the other or several at once. An error of the reader fails the part; where that is
    /// an [`Error`] of ours in an [`std::io::Error`], it is the one that is told.
    pub reader: Box<dyn Read + Send>,
}

impl std::fmt::Debug for StreamSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StreamSource")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

/// What becomes of a part that cannot be read as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OnFailure {
    /// Nothing is saved.
    Fail,
    /// It is not in the snapshot at all; the others are.
    LeaveOut,
}

/// What was noticed while reading.
#[derive(Debug, Default)]
pub(super) struct Findings {
    /// The first thing that makes the backup worthless.
    pub failure: Option<Error>,
    /// The parts that are to be left out, by their paths in the snapshot, each with the first thing that makes it worthless.
    pub left_out: BTreeMap<PathBuf, Error>,
    /// Files that were there when their directory was listed, and not when they were read.
    pub vanished: Vec<PathBuf>,
    /// Entries whose stored size differs from what was read: streams that were read to their ends, and files that were cut short meanwhile.
    pub true_sizes: BTreeMap<PathBuf, u64>,
    /// Other things worth telling.
    pub warnings: Vec<String>,
    /// Bytes of the streams that are in the snapshot.
    pub stream_bytes: u64,
    /// Regular files that are in it, streams not counted.
    pub files: u64,
    /// These and directories, links and whatever else lies below the roots of trees.
    pub entries: u64,
    /// Streams that are in it.
    pub streams: u64,
    /// Bytes of all files and streams that are in it.
    pub bytes: u64,
}

struct Shared {
    control: Control,
    on_failure: OnFailure,
    findings: Mutex<Findings>,
    /// Streams that were handed out and not read to their ends yet.
    open_streams: AtomicUsize,
    /// The parts that were begun and not read to their ends yet, in their order.
    begun: Mutex<BTreeSet<PathBuf>>,
}

impl Shared {
    fn begun(&self) -> MutexGuard<'_, BTreeSet<PathBuf>> {
        self.begun.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn findings(&self) -> MutexGuard<'_, Findings> {
        self.findings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn must_stop(&self) -> bool {
        self.control.cancel.is_cancelled() || self.findings().failure.is_some()
    }
}

/// A part that is being read. It is dropped when the last of it was.
struct Reading {
    shared: Arc<Shared>,
    /// The part's path in the snapshot.
    path: PathBuf,
    is_stream: bool,
    has_failed: AtomicBool,
    counts: Counts,
    limit: Option<Duration>,
    /// When it was seen for the first time that nothing before it is being read any more.
    since: OnceLock<Instant>,
    _held: Option<Held>,
}

/// What there is in a part.
#[derive(Default)]
struct Counts {
    files: AtomicU64,
    entries: AtomicU64,
    streams: AtomicU64,
    bytes: AtomicU64,
    stream_bytes: AtomicU64,
}

impl Reading {
    fn tree(
        shared: &Arc<Shared>,
        path: &Path,
        held: Option<Held>,
        limit: Option<Duration>,
    ) -> Arc<Self> {
        Self::begin(shared, path, held, limit, false)
    }

    fn stream(shared: &Arc<Shared>, path: &Path) -> Arc<Self> {
        shared.open_streams.fetch_add(1, Ordering::AcqRel);
        Self::begin(shared, path, None, None, true)
    }

    fn begin(
        shared: &Arc<Shared>,
        path: &Path,
        held: Option<Held>,
        limit: Option<Duration>,
        is_stream: bool,
    ) -> Arc<Self> {
        shared.begun().insert(path.to_owned());
        Arc::new(Self {
            shared: Arc::clone(shared),
            path: path.to_owned(),
            is_stream,
            has_failed: AtomicBool::new(false),
            counts: Counts::default(),
            limit,
            since: OnceLock::new(),
            _held: held,
        })
    }

    fn findings(&self) -> MutexGuard<'_, Findings> {
        self.shared.findings()
    }

    fn fail(&self, error: Error) {
        self.has_failed.store(true, Ordering::Release);
        let mut findings = self.findings();
        match self.shared.on_failure {
            OnFailure::Fail => {
                findings.failure.get_or_insert(error);
            }
            OnFailure::LeaveOut => {
                findings.left_out.entry(self.path.clone()).or_insert(error);
            }
        }
    }

    fn must_stop(&self) -> bool {
        self.has_failed.load(Ordering::Acquire) || self.shared.must_stop() || self.is_over_limit()
    }

    /// rustic stores entries in their order, and asks for those of the next part while it is at a file of this one. So the clock of a part begins when
    /// all before it are read: who comes next shall not pay for somebody's file that does not end.
    fn is_over_limit(&self) -> bool {
        let Some(limit) = self.limit else {
            return false;
        };
        let since = match self.since.get() {
            Some(since) => since,
            None if self.shared.begun().first() != Some(&self.path) => return false,
            None => self.since.get_or_init(Instant::now),
        };
        let is_over = since.elapsed() > limit;
        if is_over {
            self.fail(Error::new(
                ErrorKind::Timeout,
                format!(
                    "reading {} took longer than {} seconds and was stopped: see whether a file in it has no end, or raise daily.customer_timeout",
                    self.path.display(),
                    limit.as_secs()
                ),
            ));
        }
        is_over
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.shared.begun().remove(&self.path);
        if self.is_stream {
            self.shared.open_streams.fetch_sub(1, Ordering::AcqRel);
        }
        if self.has_failed.load(Ordering::Acquire) {
            return;
        }
        let count = |count: &AtomicU64| count.load(Ordering::Acquire);
        let mut findings = self.findings();
        findings.files += count(&self.counts.files);
        findings.entries += count(&self.counts.entries);
        findings.streams += count(&self.counts.streams);
        findings.bytes += count(&self.counts.bytes);
        findings.stream_bytes += count(&self.counts.stream_bytes);
    }
}

/// The source of one archive run. Its entries can be taken once.
pub(super) struct MixedSource {
    parts: Mutex<Vec<Part>>,
    ahead: Mutex<Option<ReadAhead>>,
    shared: Arc<Shared>,
}

enum Part {
    Tree(TreeSource),
    Stream(StreamSource),
}

impl Part {
    fn path(&self) -> &Path {
        match self {
            Self::Tree(tree) => &tree.path,
            Self::Stream(stream) => &stream.path,
        }
    }

    fn require_outside(&self, other: &Self) -> Result<()> {
        if !self.path().starts_with(other.path()) {
            return Ok(());
        }
        let advice = match (self, other) {
            (Self::Tree(_), Self::Tree(_)) => "change customers.site_dirs",
            _ => "change customer_database.dump_path",
        };
        Err(Error::new(
            ErrorKind::Configuration,
            format!(
                "{} and {} are saved together, but lie inside each other: {advice}",
                other.path().display(),
                self.path().display()
            ),
        ))
    }
}

impl MixedSource {
    pub(super) fn new(
        trees: Vec<TreeSource>,
        streams: Vec<StreamSource>,
        on_failure: OnFailure,
        control: Control,
    ) -> Result<Self> {
        let trees = trees.into_iter().map(Part::Tree);
        let streams = streams.into_iter().map(Part::Stream);
        let mut parts: Vec<Part> = trees.chain(streams).collect();
        for part in &parts {
            require_plain_absolute(part.path())?;
        }
        // rustic builds directories from a sorted sequence. By components, so what lies inside another comes right behind it.
        parts.sort_by(|a, b| a.path().cmp(b.path()));
        for neighbours in parts.windows(2) {
            neighbours[1].require_outside(&neighbours[0])?;
        }
        Ok(Self {
            parts: Mutex::new(parts),
            ahead: Mutex::default(),
            shared: Arc::new(Shared {
                control,
                on_failure,
                findings: Mutex::default(),
                open_streams: AtomicUsize::new(0),
                begun: Mutex::default(),
            }),
        })
    }

    /// What rustic will read of the parent is read before: what lies on the way here, what is below a tree when rustic comes to it.
    pub(super) fn read_ahead(&self, mut ahead: ReadAhead, way: &Way) {
        ahead.read_way(way);
        *self.ahead.lock().unwrap_or_else(PoisonError::into_inner) = Some(ahead);
    }

    /// To be asked whether the run is cancelled or failed: then it reads nothing any more.
    pub(super) fn must_stop(&self) -> MustStop {
        let shared = Arc::clone(&self.shared);
        Box::new(move || shared.must_stop())
    }

    /// What was noticed until now.
    pub(super) fn take_findings(&self) -> Findings {
        std::mem::take(&mut *self.shared.findings())
    }
}

impl ReadSource for MixedSource {
    type Open = Open;
    type Iter = Entries;

    fn size(&self) -> RusticResult<Option<u64>> {
        Ok(None)
    }

    fn entries(&self) -> Entries {
        let parts = std::mem::take(&mut *self.parts.lock().unwrap_or_else(PoisonError::into_inner));
        Entries {
            shared: Arc::clone(&self.shared),
            parts: parts.into_iter(),
            ahead: self
                .ahead
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take(),
            ancestors: Vec::new().into_iter(),
            last_ancestor: PathBuf::from("/"),
            part: None,
            walk: None,
            walk_told: None,
            is_behind_stream: false,
        }
    }
}

/// The entries of a [`MixedSource`].
pub(super) struct Entries {
    shared: Arc<Shared>,
    parts: std::vec::IntoIter<Part>,
    ahead: Option<ReadAhead>,
    /// The directories above the current part that still have to be told.
    ancestors: std::vec::IntoIter<PathBuf>,
    last_ancestor: PathBuf,
    part: Option<Part>,
    walk: Option<Walk>,
    /// The last entry was the root of this tree.
    walk_told: Option<PathBuf>,
    /// The last entry was a stream's.
    is_behind_stream: bool,
}

type Entry = ReadSourceEntry<Open>;

impl Iterator for Entries {
    type Item = RusticResult<Entry>;

    fn next(&mut self) -> Option<Self::Item> {
        // rustic passes an entry on, and reads what the parent has there, only with the next one in hand. So by now it is through with all that came
        // before the root: a dump among that is being read while this here waits. What the parent has at the root it asks for after this call.
        if let Some((path, ahead)) = self.walk_told.take().zip(self.ahead.as_mut()) {
            ahead.begin(&path);
        }
        loop {
            if self.shared.must_stop() {
                return None;
            }
            if let Some(directory) = self.ancestors.next() {
                let entry = ancestor_entry(&directory);
                self.last_ancestor = directory;
                self.is_behind_stream = false;
                return Some(Ok(entry));
            }
            if let Some(part) = self.part.take() {
                match part {
                    Part::Stream(stream) => {
                        self.is_behind_stream = true;
                        return Some(Ok(stream_entry(stream, &self.shared)));
                    }
                    Part::Tree(tree) => {
                        if let Some(root) = self.start_walk(tree) {
                            self.is_behind_stream = false;
                            return Some(Ok(root));
                        }
                    }
                }
            } else if let Some(entry) = self.walk.as_mut().and_then(Walk::next) {
                return Some(Ok(entry));
            } else {
                self.walk = None;
                let part = self.parts.next()?;
                self.ancestors = ancestors_of(part.path(), &self.last_ancestor).into_iter();
                self.part = Some(part);
            }
        }
    }
}

impl Entries {
    /// The root's entry; None where the tree cannot be read, which is noted.
    fn start_walk(&mut self, mut tree: TreeSource) -> Option<Entry> {
        if tree.hold.is_some() {
            self.wait_for_streams();
        }
        let held = match tree.hold.take().map(|hold| (hold.0)()).transpose() {
            Ok(held) => held,
            Err(error) => {
                Reading::tree(&self.shared, &tree.path, None, None).fail(error);
                return None;
            }
        };
        let reading = Reading::tree(&self.shared, &tree.path, held, tree.limit);
        match Walk::start(tree, Arc::clone(&reading)) {
            Ok((walk, root)) => {
                self.walk = Some(walk);
                self.walk_told = Some(root.path.clone());
                Some(root)
            }
            Err(error) => {
                reading.fail(error);
                None
            }
        }
    }

    /// rustic asks for entries far ahead of what it has read: what is held would be held all the time that streams take. It passes an entry on only
    /// with the next one in hand, so one that comes right before is not waited for.
    fn wait_for_streams(&self) {
        const POLL: Duration = Duration::from_millis(20);
        let not_waited_for = usize::from(self.is_behind_stream);
        while self.shared.open_streams.load(Ordering::Acquire) > not_waited_for
            && !self.shared.must_stop()
        {
            std::thread::sleep(POLL);
        }
    }
}

/// The directories above `path`, from the top, that are not already above or equal to `told`.
fn ancestors_of(path: &Path, told: &Path) -> Vec<PathBuf> {
    let mut ancestors: Vec<PathBuf> = path
        .ancestors()
        .skip(1)
        .filter(|above| above.parent().is_some() && !told.starts_with(above))
        .map(Path::to_owned)
        .collect();
    ancestors.reverse();
    ancestors
}

/// A directory above what is backed up. It need not exist: the dump's does not.
fn ancestor_entry(path: &Path) -> Entry {
    let meta = match statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
            metadata(&stat, &[])
        }
        _ => Metadata {
            mode: Some(mode::to_go(
                rustix::fs::FileType::Directory.as_raw_mode() | 0o700,
            )),
            mtime: Some(Timestamp::now()),
            uid: Some(rustix::process::geteuid().as_raw()),
            gid: Some(rustix::process::getegid().as_raw()),
            ..Metadata::default()
        },
    };
    Entry {
        path: path.to_owned(),
        node: Node::new_node(path.file_name().unwrap_or_default(), NodeType::Dir, meta),
        open: None,
    }
}

fn stream_entry(stream: StreamSource, shared: &Arc<Shared>) -> Entry {
    let meta = Metadata {
        mode: Some(mode::to_go(
            rustix::fs::FileType::RegularFile.as_raw_mode() | 0o600,
        )),
        mtime: Some(Timestamp::now()),
        uid: Some(rustix::process::geteuid().as_raw()),
        gid: Some(rustix::process::getegid().as_raw()),
        links: 1,
        ..Metadata::default()
    };
    Entry {
        node: Node::new_node(
            stream.path.file_name().unwrap_or_default(),
            NodeType::File,
            meta,
        ),
        open: Some(Open(Opening::Stream {
            reading: Reading::stream(shared, &stream.path),
            reader: stream.reader,
        })),
        path: stream.path,
    }
}

/// A depth-first walk in name order that holds every directory it is in by a descriptor.
struct Walk {
    reading: Arc<Reading>,
    /// The root's path in the snapshot.
    top: PathBuf,
    exclude: Vec<PathBuf>,
    stack: Vec<OpenDirectory>,
}

struct OpenDirectory {
    descriptor: Arc<OwnedFd>,
    /// In the snapshot.
    path: PathBuf,
    /// Sorted backwards, so that the next one is at the end.
    names: Vec<OsString>,
}

impl Walk {
    /// Opens the root, whose entry comes first.
    fn start(tree: TreeSource, reading: Arc<Reading>) -> Result<(Self, Entry)> {
        let unreadable = |error: Errno| {
            Error::io(
                format!("cannot read the directory {}", tree.root.display()),
                error.into(),
            )
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let descriptor = open(&tree.root, flags, Mode::empty()).map_err(unreadable)?;
        let stat = fstat(&descriptor).map_err(unreadable)?;
        let mut walk = Self {
            reading,
            top: tree.path.clone(),
            exclude: tree.exclude,
            stack: Vec::new(),
        };
        let entry = walk.enter(descriptor, tree.path, &stat)?;
        Ok((walk, entry))
    }

    fn next(&mut self) -> Option<Entry> {
        loop {
            if self.reading.must_stop() {
                return None;
            }
            let directory = self.stack.last_mut()?;
            let Some(name) = directory.names.pop() else {
                self.stack.pop();
                continue;
            };
            let path = directory.path.join(&name);
            let above = Arc::clone(&directory.descriptor);
            if self.is_excluded(&path) {
                continue;
            }
            match self.look_at(&above, &name, &path) {
                Ok(Some(entry)) => {
                    self.reading.counts.entries.fetch_add(1, Ordering::AcqRel);
                    return Some(entry);
                }
                Ok(None) => {}
                Err(error) => self.reading.fail(error),
            }
        }
    }

    fn is_excluded(&self, path: &Path) -> bool {
        path.strip_prefix(&self.top)
            .is_ok_and(|relative| self.exclude.iter().any(|excluded| relative == excluded))
    }

    /// The entry of a name; None for what is not, or cannot be, in a snapshot.
    ///
    /// What is looked at may become something else before it is opened; then it is looked at again. So a file that is replaced
    /// by another, as programs do when they save, is in the snapshot in one form or the other.
    fn look_at(&mut self, above: &OwnedFd, name: &OsStr, path: &Path) -> Result<Option<Entry>> {
        for _ in 0..LOOKS_MAX {
            let stat = match statat(above, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(Errno::NOENT) => {
                    self.reading.findings().vanished.push(path.to_owned());
                    return Ok(None);
                }
                Err(error) => return Err(unreadable(path, error)),
            };
            let looked = match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => self.directory(above, name, path),
                FileType::RegularFile => self.file(above, name, path),
                FileType::Symlink => self.symlink(above, name, path, &stat),
                other => return self.special(above, name, path, &stat, other),
            };
            match looked {
                Err(Look::Changed) => {}
                Err(Look::Failed(error)) => return Err(error),
                Ok(entry) => return Ok(Some(entry)),
            }
        }
        Err(Error::new(
            ErrorKind::Failed,
            format!("{} changes so fast that it cannot be read", path.display()),
        ))
    }

    fn directory(&mut self, above: &OwnedFd, name: &OsStr, path: &Path) -> Result<Entry, Look> {
        self.refuse_too_deep(path)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let descriptor = openat(above, name, flags, Mode::empty())
            .map_err(|error| Look::from_errno(error, path))?;
        let stat = fstat(&descriptor).map_err(|error| Look::from_errno(error, path))?;
        Ok(self.enter(descriptor, path.to_owned(), &stat)?)
    }

    /// Every level that is open holds its path, here and in rustic: a tenant must not be able to fill our memory with that.
    fn refuse_too_deep(&self, path: &Path) -> Result<()> {
        if self.stack.len() < DEPTH_MAX && path.as_os_str().len() < PATH_BYTES_MAX {
            return Ok(());
        }
        let below: String = path.to_string_lossy().chars().take(200).collect();
        Err(Error::new(
            ErrorKind::Failed,
            format!(
                "{below}… goes deeper than can be saved ({DEPTH_MAX} directories, {PATH_BYTES_MAX} bytes of path): remove it, or exclude it"
            ),
        ))
    }

    fn file(&self, above: &OwnedFd, name: &OsStr, path: &Path) -> Result<Entry, Look> {
        // Non-blocking: a FIFO that took the file's place must not hang us.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let descriptor = openat(above, name, flags, Mode::empty())
            .map_err(|error| Look::from_errno(error, path))?;
        let stat = fstat(&descriptor).map_err(|error| Look::from_errno(error, path))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Look::Changed);
        }
        let handle = File::from(descriptor);
        let xattrs = self.extended_attributes(&Place::Open(&handle), path)?;
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let counts = &self.reading.counts;
        counts.files.fetch_add(1, Ordering::AcqRel);
        counts.bytes.fetch_add(size, Ordering::AcqRel);
        Ok(Entry {
            path: path.to_owned(),
            node: Node::new_node(name, NodeType::File, metadata(&stat, &xattrs)),
            open: Some(Open(Opening::File(FileOpening {
                handle: Some(handle),
                path: path.to_owned(),
                size,
                reading: Arc::clone(&self.reading),
            }))),
        })
    }

    fn symlink(
        &self,
        above: &OwnedFd,
        name: &OsStr,
        path: &Path,
        stat: &Stat,
    ) -> Result<Entry, Look> {
        let target = match readlinkat(above, name, Vec::new()) {
            Ok(target) => target,
            Err(Errno::INVAL) => return Err(Look::Changed),
            Err(error) => return Err(Look::from_errno(error, path)),
        };
        let xattrs = self.extended_attributes(&Place::named(above, name), path)?;
        let node_type = NodeType::from_link(Path::new(OsStr::from_bytes(target.as_bytes())));
        Ok(Entry {
            path: path.to_owned(),
            node: Node::new_node(name, node_type, metadata(stat, &xattrs)),
            open: None,
        })
    }

    fn special(
        &self,
        above: &OwnedFd,
        name: &OsStr,
        path: &Path,
        stat: &Stat,
        file_type: FileType,
    ) -> Result<Option<Entry>> {
        let device = stat.st_rdev;
        let node_type = match file_type {
            FileType::Fifo => NodeType::Fifo,
            FileType::Socket => NodeType::Socket,
            FileType::CharacterDevice => NodeType::Chardev { device },
            FileType::BlockDevice => NodeType::Dev { device },
            _ => {
                self.reading.findings().warnings.push(format!(
                    "{} is of an unknown type and was left out",
                    path.display()
                ));
                return Ok(None);
            }
        };
        let xattrs = match self.extended_attributes(&Place::named(above, name), path) {
            Ok(xattrs) => xattrs,
            Err(Look::Changed) => Vec::new(),
            Err(Look::Failed(error)) => return Err(error),
        };
        Ok(Some(Entry {
            path: path.to_owned(),
            node: Node::new_node(name, node_type, metadata(stat, &xattrs)),
            open: None,
        }))
    }

    /// Go down into a directory; gives its entry.
    fn enter(&mut self, descriptor: OwnedFd, path: PathBuf, stat: &Stat) -> Result<Entry> {
        let unreadable = |error: Errno| {
            Error::io(
                format!("cannot list the directory {}", path.display()),
                error.into(),
            )
        };
        let mut names = Vec::new();
        for entry in Dir::read_from(&descriptor).map_err(unreadable)? {
            let entry = entry.map_err(unreadable)?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(OsString::from_vec(name.to_vec()));
            }
        }
        names.sort_unstable_by(|a, b| b.cmp(a));
        let xattrs =
            match self.extended_attributes(&Place::named(&descriptor, OsStr::new(".")), &path) {
                Ok(xattrs) => xattrs,
                Err(Look::Failed(error)) => return Err(error),
                Err(Look::Changed) => Vec::new(),
            };
        let entry = Entry {
            path: path.clone(),
            node: Node::new_node(
                path.file_name().unwrap_or_default(),
                NodeType::Dir,
                metadata(stat, &xattrs),
            ),
            open: None,
        };
        self.stack.push(OpenDirectory {
            descriptor: Arc::new(descriptor),
            path,
            names,
        });
        Ok(entry)
    }

    fn extended_attributes(&self, place: &Place<'_>, path: &Path) -> Result<Vec<Xattr>, Look> {
        let failed =
            |error: std::io::Error| match error.raw_os_error().map(Errno::from_raw_os_error) {
                Some(errno) => Look::from_errno(errno, path),
                None => Look::Failed(Error::io(format!("cannot read {}", path.display()), error)),
            };
        let names = match place.attribute_names() {
            Ok(names) => names,
            Err(error) if error.raw_os_error() == Some(Errno::NOTSUP.raw_os_error()) => {
                return Ok(Vec::new());
            }
            Err(error) => return Err(failed(error)),
        };
        let mut attributes = Vec::new();
        for name in names {
            // None: removed since the list was made.
            let Some(value) = place.attribute(&name).map_err(failed)? else {
                continue;
            };
            match name.into_string() {
                Ok(name) => attributes.push(Xattr { name, value }),
                Err(name) => self.reading.findings().warnings.push(format!(
                    "the extended attribute {name:?} of {} has a name that the format cannot hold and was left out",
                    path.display()
                )),
            }
        }
        Ok(attributes)
    }
}

/// What extended attributes are read of.
enum Place<'a> {
    Open(&'a File),
    /// By way of the descriptor of its directory, so that none above can be swapped for a link; no link is followed at the end either.
    Named(PathBuf),
}

impl Place<'_> {
    fn named(above: &OwnedFd, name: &OsStr) -> Self {
        Self::Named(
            Path::new("/proc/self/fd")
                .join(above.as_raw_fd().to_string())
                .join(name),
        )
    }

    fn attribute_names(&self) -> std::io::Result<xattr::XAttrs> {
        match self {
            Self::Open(file) => file.list_xattr(),
            Self::Named(path) => xattr::list(path),
        }
    }

    fn attribute(&self, name: &OsStr) -> std::io::Result<Option<Vec<u8>>> {
        match self {
            Self::Open(file) => file.get_xattr(name),
            Self::Named(path) => xattr::get(path, name),
        }
    }
}

/// Why a look gave no entry.
enum Look {
    /// It is no longer what it was: look again.
    Changed,
    Failed(Error),
}

impl Look {
    fn from_errno(error: Errno, path: &Path) -> Self {
        match error {
            Errno::NOENT | Errno::LOOP | Errno::NOTDIR | Errno::NXIO | Errno::STALE => {
                Self::Changed
            }
            error => Self::Failed(unreadable(path, error)),
        }
    }
}

impl From<Error> for Look {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

fn unreadable(path: &Path, error: Errno) -> Error {
    Error::io(format!("cannot read {}", path.display()), error.into())
}

/// An extended attribute as it is written in a tree. rustic does not export its own type, but reads it from this form.
#[derive(serde::Serialize)]
struct Xattr {
    name: String,
    #[serde(serialize_with = "as_base64")]
    value: Vec<u8>,
}

fn as_base64<S: serde::Serializer>(value: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&base64::engine::general_purpose::STANDARD.encode(value))
}

fn metadata(stat: &Stat, xattrs: &[Xattr]) -> Metadata {
    let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
    let is_regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    let mtime = timestamp(stat.st_mtime, stat.st_mtime_nsec);
    Metadata {
        mode: Some(mode::to_go(stat.st_mode)),
        mtime,
        // As restic: the true access time would make every directory differ after every read.
        atime: mtime,
        ctime: timestamp(stat.st_ctime, stat.st_ctime_nsec),
        uid: Some(stat.st_uid),
        gid: Some(stat.st_gid),
        user: None,
        group: None,
        inode: stat.st_ino,
        // Tells hard links apart; anywhere else it would only make equal files differ.
        device_id: if stat.st_nlink > 1 && !is_directory {
            stat.st_dev
        } else {
            0
        },
        size: if is_regular {
            u64::try_from(stat.st_size).unwrap_or(0)
        } else {
            0
        },
        links: if is_directory { 0 } else { stat.st_nlink },
        extended_attributes: serde_json::to_value(xattrs)
            .and_then(serde_json::from_value)
            .unwrap_or_default(),
    }
}

fn timestamp(seconds: i64, nanoseconds: impl TryInto<i32>) -> Option<Timestamp> {
    Timestamp::new(seconds, nanoseconds.try_into().unwrap_or(0)).ok()
}

/// What rustic opens when it finds that the content is needed.
pub(super) struct Open(Opening);

enum Opening {
    File(FileOpening),
    Stream {
        reading: Arc<Reading>,
        reader: Box<dyn Read + Send>,
    },
}

/// A file that is open already: what is read is what its entry was made of.
struct FileOpening {
    /// None once it was handed to a reader.
    handle: Option<File>,
    path: PathBuf,
    size: u64,
    reading: Arc<Reading>,
}

impl Drop for FileOpening {
    fn drop(&mut self) {
        // Not read: unchanged since the parent snapshot, and so done.
        if self.handle.is_some() {
            let monitor = &self.reading.shared.control.monitor;
            monitor.bytes_done(self.size);
            monitor.files_done(1);
        }
    }
}

impl ReadSourceOpen for Open {
    type Reader = BufReader<SourceReader>;

    fn open(self) -> RusticResult<BufReader<SourceReader>> {
        let reader = self.into_reader()?;
        // The chunker asks for a few bytes at a time where it does not know the size.
        let capacity = match reader.content {
            Content::Stream(_) => BUFFER_BYTES,
            Content::File { size, .. } => usize::try_from(size)
                .unwrap_or(BUFFER_BYTES)
                .clamp(1, BUFFER_BYTES),
        };
        Ok(BufReader::with_capacity(capacity, reader))
    }
}

impl Open {
    fn into_reader(self) -> RusticResult<SourceReader> {
        match self.0 {
            Opening::Stream { reading, reader } => Ok(SourceReader {
                content: Content::Stream(reader),
                path: reading.path.clone(),
                read: 0,
                reading,
            }),
            Opening::File(mut file) => match file.handle.take() {
                Some(handle) => Ok(SourceReader {
                    content: Content::File {
                        // What was appended since the look belongs to the next backup: size and content stay in step.
                        handle: handle.take(file.size),
                        size: file.size,
                    },
                    path: file.path.clone(),
                    read: 0,
                    reading: Arc::clone(&file.reading),
                }),
                None => Err(RusticError::new(
                    RusticKind::Internal,
                    "a file was opened twice",
                )),
            },
        }
    }
}

/// The content of one entry.
pub(super) struct SourceReader {
    content: Content,
    path: PathBuf,
    read: u64,
    reading: Arc<Reading>,
}

enum Content {
    File {
        handle: std::io::Take<File>,
        size: u64,
    },
    Stream(Box<dyn Read + Send>),
}

impl Read for SourceReader {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.reading.must_stop() {
            return Err(std::io::Error::other("the backup was stopped"));
        }
        let result = match &mut self.content {
            Content::File { handle, .. } => handle.read(buffer),
            Content::Stream(reader) => reader.read(buffer),
        };
        match result {
            Ok(0) if !buffer.is_empty() => {
                self.note_true_size();
                Ok(0)
            }
            Ok(count) => {
                self.read += count as u64;
                let monitor = &self.reading.shared.control.monitor;
                monitor.bytes_done(count as u64);
                Ok(count)
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => Err(error),
            Err(error) => {
                let text = error.to_string();
                let failure = error.downcast::<Error>().unwrap_or_else(|error| {
                    let message = format!("cannot read {} to its end", self.path.display());
                    Error::io(message, error)
                });
                self.reading.fail(failure);
                Err(std::io::Error::other(text))
            }
        }
    }
}

impl Drop for SourceReader {
    fn drop(&mut self) {
        if matches!(self.content, Content::File { .. }) {
            self.reading.shared.control.monitor.files_done(1);
        }
    }
}

impl SourceReader {
    fn note_true_size(&self) {
        let counts = &self.reading.counts;
        let mut findings = self.reading.findings();
        match self.content {
            Content::Stream(_) => {
                counts.streams.store(1, Ordering::Release);
                counts.stream_bytes.store(self.read, Ordering::Release);
                counts.bytes.store(self.read, Ordering::Release);
                findings.true_sizes.insert(self.path.clone(), self.read);
            }
            Content::File { size, .. } if self.read < size => {
                findings.warnings.push(format!(
                    "{} became shorter while it was read",
                    self.path.display()
                ));
                let known = findings.true_sizes.insert(self.path.clone(), self.read);
                if known.is_none() {
                    counts.bytes.fetch_sub(size - self.read, Ordering::AcqRel);
                }
            }
            Content::File { .. } => {}
        }
    }
}

fn require_plain_absolute(path: &Path) -> Result<()> {
    use std::path::Component;
    let plain = path.is_absolute()
        && path.file_name().is_some()
        && path
            .components()
            .all(|component| matches!(component, Component::RootDir | Component::Normal(_)));
    if plain {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Configuration,
        format!("{} is not an absolute path without `..`", path.display()),
    ))
}
