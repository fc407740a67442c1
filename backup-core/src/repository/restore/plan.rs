//! What is to be restored, read from the snapshot's trees.
//!
//! A tenant decides how much that is: so an entry costs about 50 bytes and its name, a piece of content 64, and attributes that many have are
//! held once. Never: all the nodes of a directory, or of a level, in memory at once.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use rustic_core::repofile::{Metadata, Node, NodeType};
use rustic_core::{Id, TreeId};
use rustix::fs::FileType;

use super::super::blobs::Blob;
use super::super::index::{Index, Location};
use super::super::source::{DEPTH_MAX, PATH_BYTES_MAX};
use super::super::tree::is_entry_name;
use super::super::{Repository, mode};
use super::rules::{Changes, Owner, RestoreRules, shown};
use crate::error::{Error, ErrorKind, Result};
use crate::progress::Cancel;

/// Names, targets of links and extended attributes together: a million files of a shop have 30 MB.
const TEXT_BYTES_MAX: usize = 256 * 1024 * 1024;

/// The attribute in which the kernel keeps the capabilities of a program.
pub(super) const CAPABILITIES: &str = "security.capability";

const SETUID: u32 = 0o4000;
const SETGID: u32 = 0o2000;

/// Everything there is to restore below one directory.
pub struct RestorePlan {
    /// Parents before children.
    pub(super) directories: Vec<Directory>,
    /// Everything else, by the directory it is in.
    pub(super) entries: Vec<Entry>,
    /// The contents of files, by entry and in order.
    pub(super) pieces: Vec<Piece>,
    packs: Vec<Id>,
    /// Names and targets of links, one after the other.
    text: Vec<u8>,
    attributes: Vec<Arc<Attributes>>,
    files: u64,
    bytes: u64,
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
    length: u16,
}

/// How a thing is to look in the end.
#[derive(Debug, Clone, Copy)]
pub(super) struct Look {
    /// In [`RestorePlan::attributes`].
    attributes: u32,
    pub mtime: Timestamp,
}

/// What many entries have in common.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Attributes {
    pub user: u32,
    pub group: u32,
    pub permissions: u32,
    pub extended: Vec<(String, Vec<u8>)>,
}

pub(super) struct Directory {
    /// The directory above; the first has none.
    pub above: Option<u32>,
    pub name: Text,
    pub look: Look,
    depth: u16,
    path_bytes: u16,
}

pub(super) struct Entry {
    pub directory: u32,
    pub name: Text,
    pub kind: Kind,
    pub look: Look,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    /// Its content begins at this place in [`RestorePlan::pieces`].
    File {
        bytes: u64,
        pieces_from: u32,
    },
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

    /// Neighbours in this order are neighbours in the repository.
    pub(super) fn place(&self) -> (u32, u32) {
        (self.pack, self.offset_in_pack)
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
        const BLOCK: u64 = 4096;
        let files = self.entries.iter().map(|entry| match entry.kind {
            Kind::File { bytes, .. } => bytes.next_multiple_of(BLOCK),
            _ => 0,
        });
        files.sum::<u64>() + self.directories.len() as u64 * BLOCK
    }

    /// Reads the tree level by level.
    pub(super) fn read(
        repository: &Repository,
        index: &Index,
        root: Node,
        rules: &RestoreRules,
        cancel: &Cancel,
    ) -> Result<Self> {
        let planning = Mutex::new(Planning::new(index, rules, &root));
        let mut level: Vec<(u32, TreeId)> = Vec::new();
        level.extend(lock(&planning).add_root(root)?);
        while !level.is_empty() {
            let ids: Vec<TreeId> = level.iter().map(|(_, id)| *id).collect();
            repository.visit_nodes(index, &ids, cancel, |at, nodes| {
                // The entries of a directory stay together.
                let mut planning = lock(&planning);
                nodes.for_each(|node| {
                    cancel.check()?;
                    planning.add(level[at].0, node)
                })
            })?;
            level = std::mem::take(&mut lock(&planning).below);
        }
        let planning = planning
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        Ok(planning.finish())
    }

    pub(super) fn name(&self, text: Text) -> &OsStr {
        let start = text.start as usize;
        OsStr::from_bytes(&self.text[start..start + usize::from(text.length)])
    }

    pub(super) fn attributes(&self, look: &Look) -> &Attributes {
        &self.attributes[look.attributes as usize]
    }

    pub(super) fn blob(&self, piece: &Piece) -> Blob {
        Blob {
            location: piece.location(self.packs[piece.pack as usize]),
            id: piece.id,
        }
    }

    /// The pieces of the file at this place in `entries`.
    pub(super) fn pieces_of(&self, entry: u32) -> Range<usize> {
        let Kind::File { pieces_from, .. } = self.entries[entry as usize].kind else {
            return 0..0;
        };
        let start = pieces_from as usize;
        let count = self.pieces[start..]
            .iter()
            .take_while(|piece| piece.entry == entry)
            .count();
        start..start + count
    }

    /// The numbers of these pieces. All pieces have been counted in 32 bits.
    pub(super) fn numbers(&self, pieces: Range<usize>) -> impl Iterator<Item = u32> + use<> {
        (0..).skip(pieces.start).take(pieces.len())
    }

    pub(super) fn path(&self, directory: u32) -> PathBuf {
        self.directory_path(&self.directories[directory as usize])
    }

    pub(super) fn directory_path(&self, directory: &Directory) -> PathBuf {
        let mut names = Vec::new();
        let mut at = directory;
        while let Some(above) = at.above {
            names.push(self.name(at.name));
            at = &self.directories[above as usize];
        }
        names.into_iter().rev().collect()
    }

    pub(super) fn entry_path(&self, entry: &Entry) -> PathBuf {
        self.path(entry.directory).join(self.name(entry.name))
    }
}

/// A plan in the making.
struct Planning<'a> {
    index: &'a Index,
    rules: &'a RestoreRules,
    /// Who owns the directory that is restored, as the snapshot says.
    top: Owner,
    plan: RestorePlan,
    /// The directories that were found, with what is in them, but not looked into.
    below: Vec<(u32, TreeId)>,
    /// The first names of files with several.
    links: HashMap<(u64, u64), u32>,
    numbers_of_attributes: HashMap<Arc<Attributes>, u32>,
    numbers_of_packs: HashMap<Id, u32>,
    extended_bytes: usize,
    changes: Changes,
}

impl<'a> Planning<'a> {
    fn new(index: &'a Index, rules: &'a RestoreRules, root: &Node) -> Self {
        Self {
            index,
            rules,
            top: Owner {
                user: root.meta.uid.unwrap_or(0),
                group: root.meta.gid.unwrap_or(0),
            },
            plan: RestorePlan {
                directories: Vec::new(),
                entries: Vec::new(),
                pieces: Vec::new(),
                packs: Vec::new(),
                text: Vec::new(),
                attributes: Vec::new(),
                files: 0,
                bytes: 0,
                warnings: Vec::new(),
            },
            below: Vec::new(),
            links: HashMap::new(),
            numbers_of_attributes: HashMap::new(),
            numbers_of_packs: HashMap::new(),
            extended_bytes: 0,
            changes: Changes::default(),
        }
    }

    fn finish(mut self) -> RestorePlan {
        self.plan.warnings = self.changes.warnings();
        self.plan
    }

    /// Gives what is in it.
    fn add_root(&mut self, root: Node) -> Result<Option<(u32, TreeId)>> {
        let name = self.text(b".")?;
        let below = root.subtree.map(|id| (0, id));
        let look = self.look(None, root)?;
        self.plan.directories.push(Directory {
            above: None,
            name,
            look,
            depth: 0,
            path_bytes: 0,
        });
        Ok(below)
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
        self.plan.entries.push(Entry {
            directory,
            name,
            kind,
            look,
        });
        Ok(())
    }

    fn add_directory(&mut self, above: u32, name: &OsStr, node: Node) -> Result<()> {
        let content = node.subtree.ok_or_else(|| {
            damaged(format!(
                "the directory {} of the snapshot has no content",
                self.shown(above, name)
            ))
        })?;
        let parent = &self.plan.directories[above as usize];
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
        let number = number(self.plan.directories.len())?;
        let text = self.text(name.as_bytes())?;
        let look = self.look(Some(above), node)?;
        self.plan.directories.push(Directory {
            above: Some(above),
            name: text,
            look,
            depth: u16::try_from(depth).unwrap_or(u16::MAX),
            path_bytes: u16::try_from(path_bytes).unwrap_or(u16::MAX),
        });
        self.below.push((number, content));
        Ok(())
    }

    fn add_content(&mut self, node: &Node) -> Result<Kind> {
        let entry = number(self.plan.entries.len())?;
        self.plan.files += 1;
        let ids: Vec<Id> = node.content.iter().flatten().map(|id| **id).collect();
        let identity = (node.meta.device_id, node.meta.inode);
        if node.meta.links > 1 && identity.1 != 0 {
            match self.links.get(&identity) {
                // Its names were read one after the other: it may have changed between.
                Some(first) if self.plan.has_content(*first, &ids) => {
                    return Ok(Kind::HardLink { of: *first });
                }
                Some(_) => {}
                None => {
                    self.links.insert(identity, entry);
                }
            }
        }
        let pieces_from = number(self.plan.pieces.len())?;
        let mut bytes = 0;
        for id in node.content.iter().flatten() {
            let location = self.index.locate(id)?;
            let pack = self.number_of_pack(location.pack)?;
            self.plan.pieces.push(Piece {
                id: **id,
                pack,
                offset_in_pack: location.offset,
                length: location.length,
                uncompressed_length: location.uncompressed_length.unwrap_or(0),
                entry,
                offset: bytes,
            });
            bytes += location.plain_bytes();
            self.plan.bytes += location.plain_bytes();
            self.require_room_for_bytes()?;
        }
        Ok(Kind::File { bytes, pieces_from })
    }

    fn require_room_for_one_more(&self) -> Result<()> {
        let present = self.plan.entries.len() + self.plan.directories.len();
        let most = self.rules.max_files;
        if most > 0 && present as u64 > most {
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
        let attributes = self.number_of_attributes(Attributes {
            user: owner.user,
            group: owner.group,
            permissions,
            extended,
        })?;
        Ok(Look {
            attributes,
            mtime: mtime.unwrap_or(Timestamp::UNIX_EPOCH),
        })
    }

    fn number_of_attributes(&mut self, attributes: Attributes) -> Result<u32> {
        if let Some(number) = self.numbers_of_attributes.get(&attributes) {
            return Ok(*number);
        }
        for (name, value) in &attributes.extended {
            self.extended_bytes += name.len() + value.len();
        }
        self.require_room_for_text()?;
        let number = number(self.plan.attributes.len())?;
        let attributes = Arc::new(attributes);
        self.plan.attributes.push(Arc::clone(&attributes));
        self.numbers_of_attributes.insert(attributes, number);
        Ok(number)
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
        let start = number(self.plan.text.len())?;
        let length = u16::try_from(text.len()).map_err(|_| {
            damaged("the snapshot has a name or a link that is longer than any can be".into())
        })?;
        self.plan.text.extend_from_slice(text);
        self.require_room_for_text()?;
        Ok(Text { start, length })
    }

    fn require_room_for_text(&self) -> Result<()> {
        if self.plan.text.len() + self.extended_bytes > TEXT_BYTES_MAX {
            return Err(Error::new(
                ErrorKind::Refused,
                format!(
                    "the names, links and extended attributes of the snapshot have more than {TEXT_BYTES_MAX} bytes: restore it by hand with restic"
                ),
            ));
        }
        Ok(())
    }

    fn shown(&self, directory: u32, name: &OsStr) -> String {
        shown(&self.plan.path(directory).join(Path::new(name)))
    }
}

impl RestorePlan {
    fn has_content(&self, entry: u32, ids: &[Id]) -> bool {
        let pieces = &self.pieces[self.pieces_of(entry)];
        pieces.iter().map(|piece| piece.id).eq(ids.iter().copied())
    }
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

fn damaged(message: String) -> Error {
    Error::new(ErrorKind::Damaged, message)
}

fn lock<'a, 'b>(planning: &'a Mutex<Planning<'b>>) -> MutexGuard<'a, Planning<'b>> {
    planning.lock().unwrap_or_else(PoisonError::into_inner)
}
