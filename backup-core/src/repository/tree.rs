//! Looking into snapshots: what lies at a path, and whole subtrees read level by level.

use std::collections::HashMap;
use std::collections::hash_map::Entry::{Occupied, Vacant};
use std::ffi::OsStr;
use std::path::{Component, Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustic_core::TreeId;
use rustic_core::repofile::{Node, NodeType, Tree};

use super::blobs::{self, Wanted};
use super::index::{Index, parse_tree};
use super::{Repository, Snapshot, View};
use crate::error::{Error, ErrorKind, Result};
use crate::progress::Cancel;

/// What a path in a snapshot is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    /// A directory.
    Directory,
    /// A regular file of so many bytes.
    File {
        /// Plain bytes.
        bytes: u64,
    },
    /// Anything else.
    Other,
}

impl View<'_> {
    /// What lies at each of these absolute paths of a snapshot; None where nothing does. Compares whole components.
    pub fn entries(
        &self,
        snapshot: &Snapshot,
        paths: &[PathBuf],
    ) -> Result<Vec<Option<EntryKind>>> {
        // The paths have their upper directories in common.
        let mut read = HashMap::new();
        let mut entries = Vec::with_capacity(paths.len());
        for path in paths {
            let node = self
                .repository
                .walk(&self.index, snapshot, path, &mut read)?;
            entries.push(node.map(|node| match node.node_type {
                NodeType::Dir => EntryKind::Directory,
                NodeType::File => EntryKind::File {
                    bytes: node.meta.size,
                },
                _ => EntryKind::Other,
            }));
        }
        Ok(entries)
    }
}

impl Repository {
    pub(super) fn node(
        &self,
        index: &Index,
        snapshot: &Snapshot,
        path: &Path,
    ) -> Result<Option<Node>> {
        self.walk(index, snapshot, path, &mut HashMap::new())
    }

    fn walk(
        &self,
        index: &Index,
        snapshot: &Snapshot,
        path: &Path,
        read: &mut HashMap<TreeId, Tree>,
    ) -> Result<Option<Node>> {
        let mut below = Some(snapshot.tree);
        let mut found = None;
        for component in path.components() {
            let name = match component {
                Component::RootDir => continue,
                Component::Normal(name) => name,
                _ => return Ok(None),
            };
            let Some(id) = below else { return Ok(None) };
            let tree = match read.entry(id) {
                Occupied(tree) => tree.into_mut(),
                Vacant(place) => place.insert(self.read_tree(index, id)?),
            };
            let Some(node) = tree.nodes.iter().find(|node| node.name() == name) else {
                return Ok(None);
            };
            below = node.subtree;
            found = Some(node.clone());
        }
        Ok(found)
    }

    fn read_tree(&self, index: &Index, id: TreeId) -> Result<Tree> {
        let mut trees = self.read_trees(index, &[id], &Cancel::new())?;
        trees.pop().ok_or_else(|| {
            Error::new(
                ErrorKind::Damaged,
                "a directory of the repository is missing",
            )
        })
    }

    /// Trees by their ids, in the order of the ids. Trees of one snapshot lie side by side, so a whole level costs few round trips.
    pub(super) fn read_trees(
        &self,
        index: &Index,
        ids: &[TreeId],
        cancel: &Cancel,
    ) -> Result<Vec<Tree>> {
        let mut wanted = Vec::with_capacity(ids.len());
        for (at, id) in ids.iter().enumerate() {
            wanted.push(Wanted {
                location: index.locate(id)?,
                id: **id,
                purpose: at,
            });
        }
        let trees: Mutex<Vec<Option<Tree>>> = Mutex::new(vec![None; ids.len()]);
        blobs::fetch(&*self.storage, &self.sealer, wanted, cancel, |at, json| {
            let tree = parse_tree(json)?;
            trees.lock().unwrap_or_else(PoisonError::into_inner)[*at] = Some(tree);
            Ok(())
        })?;
        let trees = trees.into_inner().unwrap_or_else(PoisonError::into_inner);
        Ok(trees.into_iter().flatten().collect())
    }
}

/// Whether a node's name can be the name of a directory entry: a snapshot made elsewhere may say anything.
pub(super) fn is_entry_name(name: &OsStr) -> bool {
    use std::os::unix::ffi::OsStrExt;
    let bytes = name.as_bytes();
    !bytes.is_empty()
        && bytes != b"."
        && bytes != b".."
        && !bytes.contains(&b'/')
        && !bytes.contains(&0)
}
