//! What is to be restored, read from the snapshot's trees.
//!
//! A tenant decides how much that is: so it is noted in files ([`Spool`]), and read from there in the order in which it is needed. Of directories
//! their names are in memory, for they are on the way to everything. Never: all the nodes of a directory, or of a level, or anything for each
//! file, in memory at once.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::ops::Range;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use rustic_core::repofile::{Metadata, Node, NodeType};
use rustic_core::{Id, TreeId};
use rustix::fs::FileType;

use super::super::blobs::Blob;
use super::super::index::{Index, Location};
use super::super::source::{DEPTH_MAX, PATH_BYTES_MAX};
use super::super::tree::is_entry_name;
use super::super::{Repository, mode, seal};
use super::rules::{Changes, Owner, RestoreRules, shown};
use super::spool::{Record, Records, Spool};
use crate::error::{Error, ErrorKind, Result};
use crate::progress::Cancel;

/// Names, targets of links and extended attributes together: a million files of a shop have 30 MB.
const TEXT_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// Names of directories together: a million have 10 MB.
const DIRECTORY_NAMES_BYTES_MAX: usize = 64 * 1024 * 1024;

/// So many directories of a level are read at once.
const DIRECTORIES_AT_ONCE: u32 = 16 * 1024;

/// Bytes of extended attributes that are remembered, because many files may have the same.
const REMEMBERED_BYTES_MAX: usize = 1024 * 1024;

/// Bytes of a block of a file system.
const BLOCK: u64 = 4096;

/// The attribute in which the kernel keeps the capabilities of a program.
pub(super) const CAPABILITIES: &str = "security.capability";

const SETUID: u32 = 0o4000;
const SETGID: u32 = 0o2000;

/// Everything there is to restore below one directory.
pub struct RestorePlan {
    /// Parents before children.
    pub(super) directories: Records<Directory>,
    /// Of each its place in the tree.
    places_in_tree: Vec<PlaceInTree>,
    /// Names of directories, one after the other.
    directory_names: Vec<u8>,
    /// Everything else, by the directory it is in.
    pub(super) entries: Records<Entry>,
    /// The contents of files, by entry and in order.
    pub(super) pieces: Records<Piece>,
    packs: Vec<Id>,
    /// Names of all others, targets of links and extended attributes, one after the other.
    text: Spool,
    files: u64,
    bytes: u64,
    bytes_on_disk: u64,
    warnings: Vec<String>,
}

impl std::fmt::Debug for RestorePlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RestorePlan")
            .field("files", &self.files)
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

/// A part of [`RestorePlan::text`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Text {
    start: u32,
    length: u32,
}

/// How a thing is to look in the end.
#[derive(Debug, Clone, Copy)]
pub(super) struct Look {
    pub user: u32,
    pub group: u32,
    pub permissions: u32,
    extended: Text,
    pub mtime: Timestamp,
}

/// Where a directory is.
#[derive(Debug, Clone, Copy)]
struct PlaceInTree {
    /// The directory above; the first is its own.
    above: u32,
    /// In [`RestorePlan::directory_names`].
    name_start: u32,
    name_length: u16,
}

pub(super) struct Directory {
    pub look: Look,
    depth: u16,
    path_bytes: u16,
    content: Id,
}

pub(super) struct Entry {
    pub directory: u32,
    pub name: Text,
    pub kind: Kind,
    pub look: Look,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    File(Content),
    /// Another name of the file at this place in [`RestorePlan::entries`].
    HardLink {
        of: u32,
    },
    Symlink {
        target: Text,
    },
    Special {
        file_type: FileType,
        device: u64,
    },
}

/// What is in a file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Content {
    pub bytes: u64,
    /// At this place in [`RestorePlan::pieces`].
    first_piece: u32,
    /// How many.
    pub pieces: u32,
}

impl Content {
    /// The numbers of its pieces.
    pub(super) fn numbers(&self) -> Range<u32> {
        self.first_piece..self.first_piece.saturating_add(self.pieces)
    }
}

/// A blob, and where it goes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece {
    pub id: Id,
    /// In [`RestorePlan::packs`].
    pack: u32,
    offset_in_pack: u32,
    length: u32,
    /// 0: it is not compressed.
    uncompressed_length: u32,
    pub entry: u32,
    /// In the file.
    pub offset: u64,
}

/// Where a piece lies: neighbours in the order of places are neighbours in the repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pack: u32,
    offset: u32,
    /// In [`RestorePlan::pieces`].
    pub piece: u32,
}

impl Piece {
    fn location(&self, pack: Id) -> Location {
        Location {
            pack,
            offset: self.offset_in_pack,
            length: self.length,
            uncompressed_length: (self.uncompressed_length > 0).then_some(self.uncompressed_length),
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.location(Id::default()).plain_bytes()
    }

    pub(super) fn place(&self, number: u32) -> Place {
        Place {
            pack: self.pack,
            offset: self.offset_in_pack,
            piece: number,
        }
    }
}

/// Two numbers as one.
fn pair(high: u32, low: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

/// The other way round.
fn halves(word: u64) -> [u32; 2] {
    [(word >> 32) as u32, word as u32]
}

impl Text {
    fn to_word(self) -> u64 {
        pair(self.start, self.length)
    }

    fn from_word(word: u64) -> Self {
        let [start, length] = halves(word);
        Self { start, length }
    }
}

impl Look {
    fn to_words(self) -> [u64; 5] {
        let nanoseconds = self.mtime.as_nanosecond();
        [
            pair(self.user, self.group),
            self.permissions.into(),
            self.extended.to_word(),
            (nanoseconds >> 64) as u64,
            nanoseconds as u64,
        ]
    }

    fn from_words([owner, permissions, extended, high, low]: [u64; 5]) -> Self {
        let [user, group] = halves(owner);
        let nanoseconds = i128::from(high as i64) << 64 | i128::from(low);
        Self {
            user,
            group,
            permissions: permissions as u32,
            extended: Text::from_word(extended),
            mtime: Timestamp::from_nanosecond(nanoseconds).unwrap_or(Timestamp::UNIX_EPOCH),
        }
    }
}

/// The words of an id.
fn id_words(id: &Id) -> [u64; 4] {
    let bytes = seal::id_bytes(id);
    std::array::from_fn(|word| {
        let bytes = bytes[word * 8..].first_chunk().copied();
        u64::from_le_bytes(bytes.unwrap_or_default())
    })
}

fn id_of(words: [u64; 4]) -> Id {
    let mut bytes = [0; 32];
    for (place, word) in bytes.chunks_exact_mut(8).zip(words) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    Id::new(bytes)
}

impl Record for Directory {
    type Words = [u64; 10];

    fn to_words(&self) -> Self::Words {
        let [owner, permissions, extended, high, low] = self.look.to_words();
        let depth = pair(self.depth.into(), self.path_bytes.into());
        let [a, b, c, d] = id_words(&self.content);
        [owner, permissions, extended, high, low, depth, a, b, c, d]
    }

    fn from_words(words: Self::Words) -> Self {
        let [owner, permissions, extended, high, low, depth, a, b, c, d] = words;
        let [depth, path_bytes] = halves(depth);
        Self {
            look: Look::from_words([owner, permissions, extended, high, low]),
            depth: depth as u16,
            path_bytes: path_bytes as u16,
            content: id_of([a, b, c, d]),
        }
    }
}

impl Record for Entry {
    type Words = [u64; 9];

    fn to_words(&self) -> Self::Words {
        let [owner, permissions, extended, high, low] = self.look.to_words();
        let (kind, first, second) = match self.kind {
            Kind::File(content) => {
                let pieces = pair(content.first_piece, content.pieces);
                (0, content.bytes, pieces)
            }
            Kind::HardLink { of } => (1, of.into(), 0),
            Kind::Symlink { target } => (2, target.to_word(), 0),
            Kind::Special { file_type, device } => (3, device, file_type.as_raw_mode().into()),
        };
        [
            pair(self.directory, kind),
            self.name.to_word(),
            first,
            second,
            owner,
            permissions,
            extended,
            high,
            low,
        ]
    }

    fn from_words(words: Self::Words) -> Self {
        let [
            directory,
            name,
            first,
            second,
            owner,
            permissions,
            extended,
            high,
            low,
        ] = words;
        let [directory, kind] = halves(directory);
        let [first_piece, pieces] = halves(second);
        let kind = match kind {
            0 => Kind::File(Content {
                bytes: first,
                first_piece,
                pieces,
            }),
            1 => Kind::HardLink { of: first as u32 },
            2 => Kind::Symlink {
                target: Text::from_word(first),
            },
            _ => special(FileType::from_raw_mode(second as u32), first),
        };
        Self {
            directory,
            name: Text::from_word(name),
            kind,
            look: Look::from_words([owner, permissions, extended, high, low]),
        }
    }
}

impl Record for Piece {
    type Words = [u64; 8];

    fn to_words(&self) -> Self::Words {
        let [a, b, c, d] = id_words(&self.id);
        [
            a,
            b,
            c,
            d,
            pair(self.pack, self.offset_in_pack),
            pair(self.length, self.uncompressed_length),
            self.entry.into(),
            self.offset,
        ]
    }

    fn from_words([a, b, c, d, place, lengths, entry, offset]: Self::Words) -> Self {
        let [pack, offset_in_pack] = halves(place);
        let [length, uncompressed_length] = halves(lengths);
        Self {
            id: id_of([a, b, c, d]),
            pack,
            offset_in_pack,
            length,
            uncompressed_length,
            entry: entry as u32,
            offset,
        }
    }
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

    /// What the rules keep from being restored as the snapshot says: a few sentences, whatever there is.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Bytes that it takes on a disk that gives out blocks of 4 KiB.
    pub fn bytes_on_disk(&self) -> u64 {
        self.bytes_on_disk
    }

    /// Reads the tree level by level.
    pub(super) fn read(
        repository: &Repository,
        index: &Index,
        root: Node,
        rules: &RestoreRules,
        cancel: &Cancel,
    ) -> Result<Self> {
        let planning = Planning::new(index, rules, &root, &repository.scratch);
        let planning = Mutex::new(planning);
        let has_content = lock(&planning).add_root(root)?;
        let mut level: Range<u32> = if has_content { 0..1 } else { 0..0 };
        while !level.is_empty() {
            for first in level.clone().step_by(DIRECTORIES_AT_ONCE as usize) {
                let last = level.end.min(first.saturating_add(DIRECTORIES_AT_ONCE));
                let ids = lock(&planning).plan.contents(first..last)?;
                repository.visit_nodes(index, &ids, cancel, |at, nodes| {
                    // The entries of a directory stay together.
                    let mut planning = lock(&planning);
                    let directory = first + number(at)?;
                    nodes.for_each(|node| {
                        cancel.check()?;
                        planning.add(directory, node)
                    })
                })?;
            }
            level = level.end..lock(&planning).plan.directories.count();
        }
        let planning = planning
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        Ok(planning.finish())
    }

    /// What is in these directories.
    fn contents(&self, directories: Range<u32>) -> Result<Vec<TreeId>> {
        let directories = self.directories.range(directories);
        directories
            .map(|directory| Ok(TreeId::from(directory?.1.content)))
            .collect()
    }

    fn bytes_of(&self, text: Text) -> Result<Vec<u8>> {
        let mut bytes = vec![0; text.length as usize];
        self.text.read(text.start.into(), &mut bytes)?;
        Ok(bytes)
    }

    pub(super) fn name(&self, text: Text) -> Result<OsString> {
        self.bytes_of(text).map(OsString::from_vec)
    }

    /// Names and values.
    pub(super) fn extended(&self, look: &Look) -> Result<Vec<(String, Vec<u8>)>> {
        Ok(unpack(&self.bytes_of(look.extended)?))
    }

    pub(super) fn blob(&self, piece: &Piece) -> Blob {
        Blob {
            location: piece.location(self.packs[piece.pack as usize]),
            id: piece.id,
        }
    }

    /// The directory above; the first has none.
    pub(super) fn above(&self, directory: u32) -> Option<u32> {
        let above = self.places_in_tree[directory as usize].above;
        (directory > 0).then_some(above)
    }

    pub(super) fn directory_name(&self, directory: u32) -> &OsStr {
        let place = &self.places_in_tree[directory as usize];
        let start = place.name_start as usize;
        let end = start + usize::from(place.name_length);
        OsStr::from_bytes(&self.directory_names[start..end])
    }

    pub(super) fn path(&self, directory: u32) -> PathBuf {
        let mut names = Vec::new();
        let mut at = directory;
        while let Some(above) = self.above(at) {
            names.push(self.directory_name(at));
            at = above;
        }
        names.into_iter().rev().collect()
    }

    pub(super) fn entry_path(&self, entry: &Entry) -> Result<PathBuf> {
        Ok(self.path(entry.directory).join(self.name(entry.name)?))
    }
}

/// A plan in the making.
struct Planning<'a> {
    index: &'a Index,
    rules: &'a RestoreRules,
    /// Who owns the directory that is restored, as the snapshot says.
    top: Owner,
    plan: RestorePlan,
    /// The first names of files with several. 25 bytes for each place in the table, so 52 MB (79 for the moment in which it grows) where all 1,500,000 that
    /// `restore.max_files` allows by default are such files. It is gone before contents are fetched, which takes 16 bytes for each of them.
    links: HashMap<(u64, u64), u32>,
    numbers_of_packs: HashMap<Id, u32>,
    /// Some extended attributes, and where they are noted.
    remembered: HashMap<Vec<u8>, Text>,
    remembered_bytes: usize,
    changes: Changes,
}

impl<'a> Planning<'a> {
    fn new(index: &'a Index, rules: &'a RestoreRules, root: &Node, scratch: &Path) -> Self {
        Self {
            index,
            rules,
            top: Owner {
                user: root.meta.uid.unwrap_or(0),
                group: root.meta.gid.unwrap_or(0),
            },
            plan: RestorePlan {
                directories: Records::new(scratch),
                places_in_tree: Vec::new(),
                directory_names: Vec::new(),
                entries: Records::new(scratch),
                pieces: Records::new(scratch),
                packs: Vec::new(),
                text: Spool::new(scratch),
                files: 0,
                bytes: 0,
                bytes_on_disk: 0,
                warnings: Vec::new(),
            },
            links: HashMap::new(),
            numbers_of_packs: HashMap::new(),
            remembered: HashMap::new(),
            remembered_bytes: 0,
            changes: Changes::default(),
        }
    }

    fn finish(mut self) -> RestorePlan {
        self.plan.warnings = self.changes.warnings();
        self.plan
    }

    /// Gives whether there is anything in it.
    fn add_root(&mut self, root: Node) -> Result<bool> {
        let content = root.subtree;
        let look = self.look(None, root)?;
        let directory = Directory {
            look,
            depth: 0,
            path_bytes: 0,
            content: content.map(|id| *id).unwrap_or_default(),
        };
        self.push_directory(0, OsStr::new("."), &directory)?;
        Ok(content.is_some())
    }

    fn push_directory(&mut self, above: u32, name: &OsStr, directory: &Directory) -> Result<()> {
        let plan = &mut self.plan;
        let name_start = number(plan.directory_names.len())?;
        let name_length = u16::try_from(name.len()).map_err(|_| too_long())?;
        if plan.directory_names.len() + name.len() > DIRECTORY_NAMES_BYTES_MAX {
            return Err(Error::new(
                ErrorKind::Refused,
                format!(
                    "the names of the directories of the snapshot have more than {DIRECTORY_NAMES_BYTES_MAX} bytes: restore it by hand with restic"
                ),
            ));
        }
        plan.directory_names.extend_from_slice(name.as_bytes());
        plan.places_in_tree.push(PlaceInTree {
            above,
            name_start,
            name_length,
        });
        plan.bytes_on_disk += BLOCK;
        plan.directories.push(directory)
    }

    fn add(&mut self, directory: u32, node: Node) -> Result<()> {
        let name = node.name().into_owned();
        if !is_entry_name(&name) {
            return Err(damaged(format!(
                "the snapshot has an entry that cannot be a file name: {}",
                self.shown(directory, &name)
            )));
        }
        let is_device = matches!(
            node.node_type,
            NodeType::Dev { .. } | NodeType::Chardev { .. }
        );
        if is_device && !self.rules.devices {
            let plan = &self.plan;
            let path = || plan.path(directory).join(&name);
            self.changes.devices.add(path);
            return Ok(());
        }
        self.require_room_for_one_more()?;
        if node.is_dir() {
            return self.add_directory(directory, &name, node);
        }
        let kind = match &node.node_type {
            NodeType::File => self.add_content(&node)?,
            NodeType::Symlink { .. } => Kind::Symlink {
                target: self.text(node.node_type.to_link().as_os_str().as_bytes())?,
            },
            NodeType::Dev { device } => special(FileType::BlockDevice, *device),
            NodeType::Chardev { device } => special(FileType::CharacterDevice, *device),
            NodeType::Fifo => special(FileType::Fifo, 0),
            NodeType::Socket => special(FileType::Socket, 0),
            NodeType::Dir => return Ok(()),
        };
        let name = self.text(name.as_bytes())?;
        let look = self.look(Some(directory), node)?;
        self.plan.entries.push(&Entry {
            directory,
            name,
            kind,
            look,
        })
    }

    fn add_directory(&mut self, above: u32, name: &OsStr, node: Node) -> Result<()> {
        let Some(content) = node.subtree else {
            return Err(damaged(format!(
                "the directory {} of the snapshot has no content",
                self.shown(above, name)
            )));
        };
        let parent = self.plan.directories.get(above)?;
        let depth = usize::from(parent.depth) + 1;
        let path_bytes = usize::from(parent.path_bytes) + 1 + name.len();
        if depth > DEPTH_MAX || path_bytes > PATH_BYTES_MAX {
            return Err(Error::new(
                ErrorKind::Refused,
                format!(
                    "{} of the snapshot goes deeper than is restored ({DEPTH_MAX} directories, {PATH_BYTES_MAX} bytes of path)",
                    self.shown(above, name)
                ),
            ));
        }
        let look = self.look(Some(above), node)?;
        let directory = Directory {
            look,
            depth: u16::try_from(depth).unwrap_or(u16::MAX),
            path_bytes: u16::try_from(path_bytes).unwrap_or(u16::MAX),
            content: *content,
        };
        self.push_directory(above, name, &directory)
    }

    fn add_content(&mut self, node: &Node) -> Result<Kind> {
        let entry = self.plan.entries.count();
        self.plan.files += 1;
        let ids: Vec<Id> = node.content.iter().flatten().map(|id| **id).collect();
        let identity = (node.meta.device_id, node.meta.inode);
        if node.meta.links > 1 && identity.1 != 0 {
            match self.links.get(&identity) {
                // Its names were read one after the other: it may have changed between.
                Some(first) if self.plan.has_content(*first, &ids)? => {
                    return Ok(Kind::HardLink { of: *first });
                }
                Some(_) => {}
                None => {
                    self.links.insert(identity, entry);
                }
            }
        }
        let first_piece = self.plan.pieces.count();
        let mut bytes = 0;
        for id in node.content.iter().flatten() {
            let location = self.index.locate(id)?;
            let pack = self.number_of_pack(location.pack)?;
            self.plan.pieces.push(&Piece {
                id: **id,
                pack,
                offset_in_pack: location.offset,
                length: location.length,
                uncompressed_length: location.uncompressed_length.unwrap_or(0),
                entry,
                offset: bytes,
            })?;
            bytes += location.plain_bytes();
            self.plan.bytes += location.plain_bytes();
            self.require_room_for_bytes()?;
        }
        self.plan.bytes_on_disk += bytes.next_multiple_of(BLOCK);
        Ok(Kind::File(Content {
            bytes,
            first_piece,
            pieces: self.plan.pieces.count() - first_piece,
        }))
    }

    fn require_room_for_one_more(&self) -> Result<()> {
        let plan = &self.plan;
        let present = u64::from(plan.entries.count()) + u64::from(plan.directories.count());
        let most = self.rules.max_files;
        if most > 0 && present > most {
            return Err(Error::new(
                ErrorKind::Refused,
                format!("the snapshot has more than {most} files there: change restore.max_files"),
            ));
        }
        Ok(())
    }

    fn require_room_for_bytes(&self) -> Result<()> {
        let most = self.rules.max_bytes;
        if most > 0 && self.plan.bytes > most {
            return Err(Error::new(
                ErrorKind::Refused,
                format!(
                    "the files of the snapshot have more than {most} bytes there: change restore.max_bytes"
                ),
            ));
        }
        Ok(())
    }

    /// The final looks of a node, as far as the rules allow.
    fn look(&mut self, above: Option<u32>, node: Node) -> Result<Look> {
        let name = node.name().into_owned();
        let plan = &self.plan;
        let path = || match above {
            Some(above) => plan.path(above).join(&name),
            None => PathBuf::from("."),
        };
        let Metadata {
            uid,
            gid,
            mode,
            mtime,
            extended_attributes,
            ..
        } = node.meta;
        let owner = self.rules.owners.judge(uid, gid, self.top);
        let owner_is_kept =
            uid.is_none_or(|uid| uid == owner.user) && gid.is_none_or(|gid| gid == owner.group);
        if !owner_is_kept {
            self.changes.owners.add(path);
        }
        // restic leaves a mode of no permissions at all out of the tree.
        let mut permissions = mode::permissions_from_go(mode.unwrap_or(0));
        let mut extended: Vec<(String, Vec<u8>)> = extended_attributes
            .into_iter()
            .map(|attribute| (attribute.name, attribute.value.unwrap_or_default()))
            .collect();
        // Whose program it was, it may not run as another's.
        if node.node_type == NodeType::File && !(self.rules.setuid && owner_is_kept) {
            let is_privileged = permissions & (SETUID | SETGID) != 0
                || extended.iter().any(|(name, _)| name == CAPABILITIES);
            if is_privileged {
                permissions &= !(SETUID | SETGID);
                extended.retain(|(name, _)| name != CAPABILITIES);
                self.changes.setuid.add(path);
            }
        }
        Ok(Look {
            user: owner.user,
            group: owner.group,
            permissions,
            extended: self.extended(&extended)?,
            mtime: mtime.unwrap_or(Timestamp::UNIX_EPOCH),
        })
    }

    fn extended(&mut self, attributes: &[(String, Vec<u8>)]) -> Result<Text> {
        let packed = pack(attributes)?;
        if let Some(text) = self.remembered.get(&packed) {
            return Ok(*text);
        }
        let text = self.note(&packed)?;
        let bytes = self.remembered_bytes + packed.len();
        if bytes <= REMEMBERED_BYTES_MAX {
            self.remembered_bytes = bytes;
            self.remembered.insert(packed, text);
        }
        Ok(text)
    }

    fn number_of_pack(&mut self, pack: Id) -> Result<u32> {
        if let Some(number) = self.numbers_of_packs.get(&pack) {
            return Ok(*number);
        }
        let number = number(self.plan.packs.len())?;
        self.plan.packs.push(pack);
        self.numbers_of_packs.insert(pack, number);
        Ok(number)
    }

    fn text(&mut self, text: &[u8]) -> Result<Text> {
        if text.len() > usize::from(u16::MAX) {
            return Err(too_long());
        }
        self.note(text)
    }

    fn note(&mut self, bytes: &[u8]) -> Result<Text> {
        let plan = &mut self.plan;
        if plan.text.len() + bytes.len() as u64 > TEXT_BYTES_MAX {
            return Err(Error::new(
                ErrorKind::Refused,
                format!(
                    "the names, links and extended attributes of the snapshot have more than {TEXT_BYTES_MAX} bytes: restore it by hand with restic"
                ),
            ));
        }
        let length = number(bytes.len())?;
        let start = plan.text.append(bytes)?;
        Ok(Text {
            // No more than what was just compared.
            start: start as u32,
            length,
        })
    }

    fn shown(&self, directory: u32, name: &OsStr) -> String {
        shown(&self.plan.path(directory).join(Path::new(name)))
    }
}

impl RestorePlan {
    fn has_content(&self, entry: u32, ids: &[Id]) -> Result<bool> {
        let Kind::File(content) = self.entries.get(entry)?.kind else {
            return Ok(false);
        };
        if content.pieces as usize != ids.len() {
            return Ok(false);
        }
        for (piece, id) in self.pieces.range(content.numbers()).zip(ids) {
            if piece?.1.id != *id {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Extended attributes as bytes: of each the lengths of its name and its value, and these.
fn pack(attributes: &[(String, Vec<u8>)]) -> Result<Vec<u8>> {
    let mut packed = Vec::new();
    for (name, value) in attributes {
        packed.extend_from_slice(&number(name.len())?.to_le_bytes());
        packed.extend_from_slice(&number(value.len())?.to_le_bytes());
        packed.extend_from_slice(name.as_bytes());
        packed.extend_from_slice(value);
    }
    Ok(packed)
}

fn unpack(mut packed: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut attributes = Vec::new();
    while let Some((lengths, rest)) = packed.split_first_chunk() {
        let [value, name] = halves(u64::from_le_bytes(*lengths)).map(|length| length as usize);
        let (name, rest) = rest.split_at(name);
        let (value, rest) = rest.split_at(value);
        attributes.push((String::from_utf8_lossy(name).into_owned(), value.to_vec()));
        packed = rest;
    }
    attributes
}

fn special(file_type: FileType, device: u64) -> Kind {
    Kind::Special { file_type, device }
}

/// So many that 32 bits do not suffice are more than fit into any memory.
fn number(count: usize) -> Result<u32> {
    u32::try_from(count).map_err(|_| {
        Error::new(
            ErrorKind::Refused,
            "the snapshot has more files than can be restored at once",
        )
    })
}

fn too_long() -> Error {
    damaged("the snapshot has a name or a link that is longer than any can be".into())
}

fn damaged(message: String) -> Error {
    Error::new(ErrorKind::Damaged, message)
}

fn lock<'a, 'b>(planning: &'a Mutex<Planning<'b>>) -> MutexGuard<'a, Planning<'b>> {
    planning.lock().unwrap_or_else(PoisonError::into_inner)
}
