//! Looking into snapshots: what lies at a path, and whole subtrees read level by level.

use std::ffi::OsStr;
use std::path::{Component, Path};
use std::sync::{Mutex, PoisonError};

use rustic_core::TreeId;
use rustic_core::repofile::{Node, NodeType, Tree};

use super::blobs::{self, Wanted};
use super::index::{Index, parse_tree};
use super::{Repository, Snapshot};
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

impl Repository {
    /// What lies at an absolute path of a snapshot; None where nothing does. Compares whole components.
    pub fn entry(&self, snapshot: &Snapshot, path: &Path) -> Result<Option<EntryKind>> {
        let index = self.fresh_index()?;
        Ok(self
            .node(&index, snapshot, path)?
            .map(|node| match node.node_type {
                NodeType::Dir => EntryKind::Directory,
                NodeType::File => EntryKind::File {
                    bytes: node.meta.size,
                },
                _ => EntryKind::Other,
            }))
    }

    /// The names in a directory of a snapshot, with what they are; None where there is no such directory.
    pub fn directory(
        &self,
        snapshot: &Snapshot,
        path: &Path,
    ) -> Result<Option<Vec<(std::ffi::OsString, EntryKind)>>> {
        let index = self.fresh_index()?;
        let Some(node) = self.node(&index, snapshot, path)? else {
            return Ok(None);
        };
        let Some(subtree) = node.subtree else {
            return Ok(None);
        };
        let tree = self.read_tree(&index, subtree)?;
        Ok(Some(
            tree.nodes
                .into_iter()
                .map(|node| {
                    let kind = match node.node_type {
                        NodeType::Dir => EntryKind::Directory,
                        NodeType::File => EntryKind::File {
                            bytes: node.meta.size,
                        },
                        _ => EntryKind::Other,
                    };
                    (node.name().into_owned(), kind)
                })
                .collect(),
        ))
    }

    pub(super) fn node(
        &self,
        index: &Index,
        snapshot: &Snapshot,
        path: &Path,
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
            let tree = self.read_tree(index, id)?;
            let Some(node) = tree.nodes.into_iter().find(|node| node.name() == name) else {
                return Ok(None);
            };
            below = node.subtree;
            found = Some(node);
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
                location: index.locate_tree(id)?,
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
