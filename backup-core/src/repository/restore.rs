//! Restoring a directory of a snapshot into a fresh private directory.
//!
//! rustic's own restore follows what a tenant planted, warns where it should fail, and holds the content in memory. This one
//! creates everything new below a directory that only we can write, relative to descriptors; contents come in sorted ranges by a few
//! threads; attributes are set last, from the leaves up, and every failure is one. Never: writing into anything that was there before.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use jiff::Timestamp;
use rustic_core::TreeId;
use rustic_core::repofile::{Metadata, Node, NodeType};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid};
use rustix::fs::{
    chmodat, chownat, ftruncate, linkat, mkdirat, mknodat, openat, symlinkat, syncfs, utimensat,
};
use rustix::io::Errno;

use super::blobs::{self, Wanted};
use super::index::Index;
use super::tree::is_entry_name;
use super::{Repository, Snapshot, mode};
use crate::error::{Error, ErrorKind, Result};
use crate::progress::{Cancel, Control};

impl Repository {
    /// Find out everything about a directory of a snapshot, given by its absolute path, that restoring it needs.
    /// [`ErrorKind::NotFound`] where there is no such directory.
    ///
    /// Memory is bounded by the number of files, not by their sizes. Hold a lock from here until the restore is done.
    pub fn plan_restore(
        &self,
        snapshot: &Snapshot,
        path: &Path,
        cancel: &Cancel,
    ) -> Result<RestorePlan> {
        let index = self.fresh_index()?;
        let root = self
            .node(&index, snapshot, path)?
            .filter(Node::is_dir)
            .ok_or_else(|| {
                Error::new(
                    ErrorKind::NotFound,
                    format!(
                        "the snapshot {} has no directory {}",
                        snapshot.id,
                        path.display()
                    ),
                )
            })?;
        RestorePlan::read(self, &index, root, cancel)
    }

    /// Restore a planned directory into `target`, with owner, mode, times, extended attributes and links as they were, also of the
    /// directory itself.
    ///
    /// `target` must be an empty directory that nobody else can get at. On an error, what was restored until then
    /// stays for the caller to remove; on success it is on the disk for good.
    pub fn restore(
        &self,
        plan: &RestorePlan,
        target: BorrowedFd<'_>,
        control: &Control,
    ) -> Result<()> {
        let staged = Staged { target, plan };
        staged.create(control)?;
        staged.fill(self, control)?;
        staged.set_attributes(control)?;
        syncfs(target)
            .map_err(|error| Error::io("cannot write the restored files to the disk", error.into()))
    }
}

/// Everything there is to restore below one directory.
pub struct RestorePlan {
    /// Parents before children.
    directories: Vec<Directory>,
    /// Everything else, by the directory it is in.
    entries: Vec<Entry>,
    contents: Vec<Wanted<Target>>,
    files: u64,
    bytes: u64,
}

impl std::fmt::Debug for RestorePlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RestorePlan")
            .field("files", &self.files)
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

struct Directory {
    /// The directory above; the first has none.
    above: Option<usize>,
    name: OsString,
    meta: Metadata,
}

struct Entry {
    directory: usize,
    name: OsString,
    kind: Kind,
    meta: Metadata,
}

enum Kind {
    File {
        bytes: u64,
    },
    /// Another name of the file at this place in `Plan::entries`.
    HardLink {
        of: usize,
    },
    Symlink {
        target: PathBuf,
    },
    Special {
        file_type: FileType,
        device: u64,
    },
}

/// Where a blob goes.
#[derive(Debug, Clone, Copy)]
struct Target {
    entry: usize,
    offset: u64,
}

impl RestorePlan {
    /// Regular files, every hard link counted.
    pub fn files(&self) -> u64 {
        self.files
    }

    /// Plain bytes of them, every hard link counted once.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes that it takes on a disk that gives out blocks of 4 KiB.
    pub fn bytes_on_disk(&self) -> u64 {
        const BLOCK: u64 = 4096;
        let files = self.entries.iter().map(|entry| match entry.kind {
            Kind::File { bytes } => bytes.next_multiple_of(BLOCK),
            _ => 0,
        });
        files.sum::<u64>() + self.directories.len() as u64 * BLOCK
    }

    /// Reads the tree level by level.
    fn read(repository: &Repository, index: &Index, root: Node, cancel: &Cancel) -> Result<Self> {
        let mut plan = Self {
            directories: vec![Directory {
                above: None,
                name: OsString::from("."),
                meta: root.meta,
            }],
            entries: Vec::new(),
            contents: Vec::new(),
            files: 0,
            bytes: 0,
        };
        let mut links = HashMap::new();
        let mut level: Vec<(usize, TreeId)> = root.subtree.map(|id| (0, id)).into_iter().collect();
        while !level.is_empty() {
            cancel.check()?;
            let ids: Vec<TreeId> = level.iter().map(|(_, id)| *id).collect();
            let trees = repository.read_trees(index, &ids, cancel)?;
            let mut next = Vec::new();
            for ((directory, _), tree) in level.into_iter().zip(trees) {
                for node in tree.nodes {
                    plan.add(index, directory, node, &mut next, &mut links)?;
                }
            }
            level = next;
        }
        Ok(plan)
    }

    fn add(
        &mut self,
        index: &Index,
        directory: usize,
        node: Node,
        next: &mut Vec<(usize, TreeId)>,
        links: &mut HashMap<(u64, u64), usize>,
    ) -> Result<()> {
        let name = node.name().into_owned();
        if !is_entry_name(&name) {
            return Err(Error::new(
                ErrorKind::Damaged,
                format!("the snapshot has an entry that cannot be a file name: {name:?}"),
            ));
        }
        let kind = match &node.node_type {
            NodeType::Dir => {
                let id = node.subtree.ok_or_else(|| {
                    Error::new(
                        ErrorKind::Damaged,
                        format!("the directory {name:?} of the snapshot has no content"),
                    )
                })?;
                next.push((self.directories.len(), id));
                self.directories.push(Directory {
                    above: Some(directory),
                    name,
                    meta: node.meta,
                });
                return Ok(());
            }
            NodeType::File => self.add_content(index, &node, links)?,
            NodeType::Symlink { .. } => Kind::Symlink {
                target: node.node_type.to_link().to_owned(),
            },
            NodeType::Dev { device } => special(FileType::BlockDevice, *device),
            NodeType::Chardev { device } => special(FileType::CharacterDevice, *device),
            NodeType::Fifo => special(FileType::Fifo, 0),
            NodeType::Socket => special(FileType::Socket, 0),
        };
        self.entries.push(Entry {
            directory,
            name,
            kind,
            meta: node.meta,
        });
        Ok(())
    }

    fn add_content(
        &mut self,
        index: &Index,
        node: &Node,
        links: &mut HashMap<(u64, u64), usize>,
    ) -> Result<Kind> {
        let entry = self.entries.len();
        self.files += 1;
        if node.meta.links > 1 {
            let identity = (node.meta.device_id, node.meta.inode);
            if let Some(first) = links.get(&identity) {
                return Ok(Kind::HardLink { of: *first });
            }
            links.insert(identity, entry);
        }
        let mut bytes = 0;
        for id in node.content.iter().flatten() {
            let location = index.locate(id)?;
            self.contents.push(Wanted {
                location,
                id: **id,
                purpose: Target {
                    entry,
                    offset: bytes,
                },
            });
            bytes += location.plain_bytes();
        }
        self.bytes += bytes;
        Ok(Kind::File { bytes })
    }

    fn path(&self, directory: usize) -> PathBuf {
        let mut names = Vec::new();
        let mut at = directory;
        while let Some(above) = self.directories[at].above {
            names.push(&self.directories[at].name);
            at = above;
        }
        names.into_iter().rev().collect()
    }
}

fn special(file_type: FileType, device: u64) -> Kind {
    Kind::Special { file_type, device }
}

/// The plan on its way to the disk.
struct Staged<'a> {
    target: BorrowedFd<'a>,
    plan: &'a RestorePlan,
}

impl Staged<'_> {
    /// Everything but contents and attributes, private to us.
    fn create(&self, control: &Control) -> Result<()> {
        let mut open = OpenDirectories::new(self);
        for (at, directory) in self.plan.directories.iter().enumerate() {
            control.cancel.check()?;
            let Some(above) = directory.above else {
                continue;
            };
            mkdirat(open.get(above)?, &directory.name, Mode::RWXU)
                .map_err(|error| self.failed("create the directory", &self.plan.path(at), error))?;
        }
        for entry in &self.plan.entries {
            let directory = open.get(entry.directory)?;
            let private = Mode::RUSR | Mode::WUSR;
            match &entry.kind {
                Kind::File { bytes } => {
                    let flags = OFlags::WRONLY
                        | OFlags::CREATE
                        | OFlags::EXCL
                        | OFlags::NOFOLLOW
                        | OFlags::CLOEXEC;
                    openat(directory, &entry.name, flags, private)
                        .and_then(|file| ftruncate(&file, *bytes))
                }
                Kind::Symlink { target } => symlinkat(target, directory, &entry.name),
                Kind::Special { file_type, device } => {
                    mknodat(directory, &entry.name, *file_type, private, *device)
                }
                // Its first name may come later in the order of directories.
                Kind::HardLink { .. } => continue,
            }
            .map_err(|error| self.failed("create", &self.entry_path(entry), error))?;
        }
        for entry in &self.plan.entries {
            if let Kind::HardLink { of } = entry.kind {
                let first = &self.plan.entries[of];
                let to = open.open(entry.directory)?;
                let from = open.get(first.directory)?;
                linkat(from, &first.name, &to, &entry.name, AtFlags::empty())
                    .map_err(|error| self.failed("link", &self.entry_path(entry), error))?;
            }
        }
        Ok(())
    }

    fn fill(&self, repository: &Repository, control: &Control) -> Result<()> {
        let contents = self.plan.contents.clone();
        // How many pieces of each file are still to come.
        let mut missing: Vec<AtomicUsize> = Vec::new();
        missing.resize_with(self.plan.entries.len(), AtomicUsize::default);
        let mut unfinished = 0;
        for blob in &contents {
            let missing = missing[blob.purpose.entry].get_mut();
            unfinished += u64::from(*missing == 0);
            *missing += 1;
        }
        // Empty ones and further names are whole already.
        control
            .monitor
            .files_done(self.plan.files.saturating_sub(unfinished));
        blobs::fetch(
            &*repository.storage,
            &repository.shared.sealer,
            contents,
            &control.cancel,
            |target, plain| {
                // The file has its full length already: a hole stays one.
                if plain.iter().any(|byte| *byte != 0) {
                    self.write_at(&self.plan.entries[target.entry], target.offset, plain)?;
                }
                control.monitor.bytes_done(plain.len() as u64);
                if missing[target.entry].fetch_sub(1, Ordering::Relaxed) == 1 {
                    control.monitor.files_done(1);
                }
                Ok(())
            },
        )
    }

    fn write_at(&self, entry: &Entry, offset: u64, plain: &[u8]) -> Result<()> {
        let path = self.entry_path(entry);
        let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = open_below(self.target, &path, flags)
            .map_err(|error| self.failed("open", &path, error))?;
        std::fs::File::from(file)
            .write_all_at(plain, offset)
            .map_err(|error| Error::io(format!("cannot write {}", path.display()), error))
    }

    /// Files first, then directories from the deepest up: what is done below a directory changes its time.
    fn set_attributes(&self, control: &Control) -> Result<()> {
        let mut open = OpenDirectories::new(self);
        for entry in &self.plan.entries {
            control.cancel.check()?;
            if matches!(entry.kind, Kind::HardLink { .. }) {
                continue;
            }
            let is_symlink = matches!(entry.kind, Kind::Symlink { .. });
            let directory = open.get(entry.directory)?;
            set_attributes(directory, &entry.name, &entry.meta, is_symlink)
                .map_err(|error| error.context(self.attributes_of(&self.entry_path(entry))))?;
        }
        for (at, directory) in self.plan.directories.iter().enumerate().rev() {
            let above = match directory.above {
                None => self.target,
                Some(above) => open.get(above)?,
            };
            set_attributes(above, &directory.name, &directory.meta, false)
                .map_err(|error| error.context(self.attributes_of(&self.plan.path(at))))?;
        }
        Ok(())
    }

    fn entry_path(&self, entry: &Entry) -> PathBuf {
        self.plan.path(entry.directory).join(&entry.name)
    }

    fn attributes_of(&self, path: &Path) -> String {
        format!("cannot restore the attributes of {}", path.display())
    }

    fn failed(&self, what: &str, path: &Path, error: Errno) -> Error {
        Error::io(
            format!("cannot {what} {} in the staging directory", path.display()),
            error.into(),
        )
    }
}

/// The directory that was used last, kept open: entries come in the order of their directories.
struct OpenDirectories<'a> {
    staged: &'a Staged<'a>,
    last: Option<(usize, OwnedFd)>,
}

impl<'a> OpenDirectories<'a> {
    fn new(staged: &'a Staged<'a>) -> Self {
        Self { staged, last: None }
    }

    fn get(&mut self, directory: usize) -> Result<BorrowedFd<'_>> {
        use std::os::fd::AsFd;
        let opened = match self.last.take() {
            Some(last) if last.0 == directory => last,
            _ => (directory, self.open(directory)?),
        };
        Ok(self.last.insert(opened).1.as_fd())
    }

    fn open(&self, directory: usize) -> Result<OwnedFd> {
        let path = self.staged.plan.path(directory);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        open_below(self.staged.target, &path, flags)
            .map_err(|error| self.staged.failed("open the directory", &path, error))
    }
}

/// Open a path below a directory, however long it is, and follow no link on the way.
fn open_below(top: BorrowedFd<'_>, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    /// Below the kernel's limit for one path.
    const STEP_BYTES: usize = 3000;
    let through = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut above: Option<OwnedFd> = None;
    let mut step = PathBuf::new();
    for name in path.components() {
        if !step.as_os_str().is_empty()
            && step.as_os_str().len() + name.as_os_str().len() >= STEP_BYTES
        {
            above = Some(open_step(above.as_ref(), top, &step, through)?);
            step.clear();
        }
        step.push(name);
    }
    if step.as_os_str().is_empty() {
        step.push(".");
    }
    open_step(above.as_ref(), top, &step, flags)
}

fn open_step(
    above: Option<&OwnedFd>,
    top: BorrowedFd<'_>,
    step: &Path,
    flags: OFlags,
) -> Result<OwnedFd, Errno> {
    use rustix::fs::{ResolveFlags, openat2};
    use std::os::fd::AsFd;
    let at = above.map_or(top, AsFd::as_fd);
    openat2(
        at,
        step,
        flags,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
    )
}

/// Owner before mode (a change of owner clears setuid), extended attributes before times.
fn set_attributes(
    directory: BorrowedFd<'_>,
    name: &OsStr,
    meta: &Metadata,
    is_symlink: bool,
) -> Result<()> {
    let failed =
        |what: &str, error: Errno| Error::io(format!("cannot set the {what}"), error.into());
    let (uid, gid) = (meta.uid.map(Uid::from_raw), meta.gid.map(Gid::from_raw));
    chownat(directory, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|error| failed("owner", error))?;
    if !is_symlink {
        // restic leaves a mode of no permissions at all out of the tree.
        let mode = Mode::from_raw_mode(mode::permissions_from_go(meta.mode.unwrap_or(0)));
        chmodat(directory, name, mode, AtFlags::empty()).map_err(|error| failed("mode", error))?;
    }
    let at = Path::new("/proc/self/fd")
        .join(directory.as_raw_fd().to_string())
        .join(name);
    for attribute in &meta.extended_attributes {
        xattr::set(
            &at,
            OsStr::from_bytes(attribute.name.as_bytes()),
            attribute.value.as_deref().unwrap_or_default(),
        )
        .map_err(|error| {
            Error::io(
                format!("cannot set the extended attribute {}", attribute.name),
                error,
            )
        })?;
    }
    if let Some(mtime) = meta.mtime {
        let times = Timestamps {
            last_access: timespec(meta.atime.unwrap_or(mtime)),
            last_modification: timespec(mtime),
        };
        utimensat(directory, name, &times, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| failed("times", error))?;
    }
    Ok(())
}

fn timespec(time: Timestamp) -> Timespec {
    // Timestamps before 1970 have both parts negative; the kernel wants the nanoseconds positive.
    let nanoseconds = time.as_nanosecond();
    let seconds = nanoseconds.div_euclid(1_000_000_000);
    Timespec {
        tv_sec: i64::try_from(seconds).unwrap_or(i64::MAX),
        tv_nsec: i64::try_from(nanoseconds.rem_euclid(1_000_000_000)).unwrap_or(0),
    }
}
