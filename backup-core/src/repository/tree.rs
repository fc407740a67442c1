//! Looking into snapshots: what lies at a path, and whole subtrees read level by level.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::path::{Component, Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustic_core::TreeId;
use rustic_core::repofile::{Node, NodeType, Tree};

use super::blobs::{self, Blob, Sorted};
use super::index::Index;
use super::nodes;
use super::seal;
use super::{Repository, Snapshot, View};
use crate::error::Result;
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
    ///
    /// The directories of one level are read together, whatever the number of paths: many paths at once cost few round trips.
    pub fn entries(
        &self,
        snapshot: &Snapshot,
        paths: &[PathBuf],
    ) -> Result<Vec<Option<EntryKind>>> {
        let paths: Vec<&Path> = paths.iter().map(PathBuf::as_path).collect();
        let kind = |node: &Node| match node.node_type {
            NodeType::Dir => EntryKind::Directory,
            NodeType::File => EntryKind::File {
                bytes: node.meta.size,
            },
            _ => EntryKind::Other,
        };
        self.repository.find(&self.index, snapshot, &paths, kind)
    }

    /// The paths of all that lies in a directory of a snapshot, without what is below that; none where there is no such directory.
    pub(crate) fn children(&self, snapshot: &Snapshot, directory: &Path) -> Result<Vec<PathBuf>> {
        let node = self.repository.node(&self.index, snapshot, directory)?;
        let Some(tree) = node.and_then(|node| node.subtree) else {
            return Ok(Vec::new());
        };
        let found = Mutex::new(Vec::new());
        self.repository
            .visit_nodes(&self.index, &[tree], &Cancel::new(), |_, nodes| {
                nodes.for_each(|node| {
                    if is_entry_name(&node.name()) {
                        lock(&found).push(directory.join(node.name()));
                    }
                    Ok(())
                })
            })?;
        Ok(found.into_inner().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The paths that go on below a directory, by their next name.
type Wanderers<'a> = HashMap<&'a OsStr, Vec<usize>>;

impl Repository {
    pub(super) fn node(
        &self,
        index: &Index,
        snapshot: &Snapshot,
        path: &Path,
    ) -> Result<Option<Node>> {
        let mut found = self.find(index, snapshot, &[path], Node::clone)?;
        Ok(found.pop().flatten())
    }

    /// What `keep` makes of the node at each path. Of a level's directories only a few are in memory at once.
    fn find<T: Send>(
        &self,
        index: &Index,
        snapshot: &Snapshot,
        paths: &[&Path],
        keep: impl Fn(&Node) -> T + Sync,
    ) -> Result<Vec<Option<T>>> {
        let mut found: Vec<Option<T>> = paths.iter().map(|_| None).collect();
        let names: Vec<Vec<&OsStr>> = paths.iter().map(|path| names(path)).collect();
        let mut level: HashMap<TreeId, Wanderers<'_>> = HashMap::new();
        for (path, names) in names.iter().enumerate() {
            if let Some(name) = names.first() {
                let directory = level.entry(snapshot.tree).or_default();
                directory.entry(name).or_default().push(path);
            }
        }
        let mut depth = 1;
        while !level.is_empty() {
            let (ids, directories): (Vec<TreeId>, Vec<Wanderers<'_>>) = level.into_iter().unzip();
            let arrived = Mutex::new(Vec::new());
            let gone_on = Mutex::new(Vec::new());
            self.visit_trees(index, &ids, &Cancel::new(), |at, tree| {
                for (node, wanderers) in first_of_each_name(&tree, &directories[at]) {
                    for path in wanderers {
                        if names[*path].len() == depth {
                            lock(&arrived).push((*path, keep(node)));
                        } else if let Some(below) = node.subtree {
                            lock(&gone_on).push((*path, below));
                        }
                    }
                }
                Ok(())
            })?;
            for (path, value) in arrived.into_inner().unwrap_or_else(PoisonError::into_inner) {
                found[path] = Some(value);
            }
            level = HashMap::new();
            for (path, below) in gone_on.into_inner().unwrap_or_else(PoisonError::into_inner) {
                let directory = level.entry(below).or_default();
                directory.entry(names[path][depth]).or_default().push(path);
            }
            depth += 1;
        }
        Ok(found)
    }

    /// Hands each tree to `visit` with its place in `ids`, in no order, from several threads.
    fn visit_trees(
        &self,
        index: &Index,
        ids: &[TreeId],
        cancel: &Cancel,
        visit: impl Fn(usize, Tree) -> Result<()> + Sync,
    ) -> Result<()> {
        self.visit_nodes(index, ids, cancel, |at, nodes| {
            let mut tree = Tree::default();
            nodes.for_each(|node| {
                tree.nodes.push(node);
                Ok(())
            })?;
            visit(at, tree)
        })
    }

    /// As [`Self::visit_trees`], without having all nodes of a directory in memory at once. Trees of one snapshot lie side by side, so a whole
    /// level costs few round trips.
    pub(super) fn visit_nodes(
        &self,
        index: &Index,
        ids: &[TreeId],
        cancel: &Cancel,
        visit: impl Fn(usize, Nodes<'_>) -> Result<()> + Sync,
    ) -> Result<()> {
        let mut wanted = Vec::with_capacity(ids.len());
        for (at, id) in ids.iter().enumerate() {
            let location = index.locate(id)?;
            wanted.push((Blob { location, id: **id }, at));
        }
        wanted.sort_unstable();
        let trees = Sorted {
            count: wanted.len(),
            get: |at: usize| Ok(wanted[at].0),
        };
        blobs::fetch_sealed(&*self.storage, &trees, cancel, |same, blob, sealed| {
            let opened = self.shared.sealer.open_in_place(sealed)?;
            same.into_iter()
                .try_for_each(|at| visit(wanted[at].1, Nodes { blob, opened }))
        })
    }
}

/// The nodes of one directory, still packed.
pub(super) struct Nodes<'a> {
    pub(super) blob: &'a Blob,
    pub(super) opened: &'a [u8],
}

impl Nodes<'_> {
    /// Hands out one after the other. That they are the right ones is certain only at the end: on an error forget them.
    pub(super) fn for_each(self, visit: impl FnMut(Node) -> Result<()>) -> Result<()> {
        let length = self.blob.location.uncompressed_length;
        seal::read_blob(self.opened, length, &self.blob.id, |json| {
            nodes::parse(json, visit)
        })
    }
}

/// The names on the way to a path; none for a path that is no plain one.
fn names(path: &Path) -> Vec<&OsStr> {
    let mut names = Vec::new();
    for component in path.components() {
        match component {
            Component::RootDir => {}
            Component::Normal(name) => names.push(name),
            _ => return Vec::new(),
        }
    }
    names
}

/// The nodes that somebody wants. A tree made elsewhere may have a name twice: the first counts.
fn first_of_each_name<'t, 'w>(
    tree: &'t Tree,
    wanted: &'w Wanderers<'_>,
) -> Vec<(&'t Node, &'w [usize])> {
    let mut seen = HashSet::new();
    let mut nodes = Vec::new();
    for node in &tree.nodes {
        if let Some((name, paths)) = wanted.get_key_value(&*node.name())
            && seen.insert(*name)
        {
            nodes.push((node, paths.as_slice()));
        }
    }
    nodes
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use proptest::strategy::ValueTree;

    use super::*;
    use crate::progress::Control;
    use crate::repository::ArchiveRequest;
    use crate::storage;

    const NAMES: [&str; 4] = ["a", "aa", "b", "ü "];

    /// A snapshot of a tree in which some of all paths of four names are there.
    struct Bench {
        scratch: tempfile::TempDir,
        repository: Repository,
        snapshot: Snapshot,
    }

    impl Bench {
        fn new() -> Self {
            let scratch = tempfile::tempdir().unwrap();
            let location = storage::Location::from(&*scratch.path().join("repository"));
            let storage = storage::open(&location, &Default::default()).unwrap();
            let repository = Repository::init(storage, &"password".to_owned().into()).unwrap();
            let site = scratch.path().join("site");
            std::fs::create_dir(&site).unwrap();
            fill(&site, 4, &mut 1);
            let request = ArchiveRequest::of_trees(&[&site]);
            let control = Control::default();
            let lock = repository.lock_shared().unwrap();
            let uncommitted = repository.archive(lock, request, &control).unwrap();
            uncommitted.commit(&control).unwrap();
            let snapshot = repository.snapshots().unwrap().remove(0);
            Self {
                scratch,
                repository,
                snapshot,
            }
        }
    }

    fn fill(directory: &Path, levels: u32, state: &mut u32) {
        for name in NAMES {
            *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let path = directory.join(name);
            match (*state >> 16) % 8 {
                0 => {}
                1 => std::fs::write(path, name.repeat(levels as usize)).unwrap(),
                2 => std::os::unix::fs::symlink("b", path).unwrap(),
                _ => {
                    std::fs::create_dir(&path).unwrap();
                    if levels > 1 {
                        fill(&path, levels - 1, state);
                    }
                }
            }
        }
    }

    /// One path after the other, one directory after the other.
    fn naive(view: &View<'_>, snapshot: &Snapshot, path: &Path) -> Option<EntryKind> {
        let mut below = Some(snapshot.tree);
        let mut found = None;
        for component in path.components() {
            let name = match component {
                Component::RootDir => continue,
                Component::Normal(name) => name,
                _ => return None,
            };
            let repository = view.repository;
            let tree = Mutex::new(Tree::default());
            repository
                .visit_trees(&view.index, &[below?], &Cancel::new(), |_, found| {
                    *lock(&tree) = found;
                    Ok(())
                })
                .unwrap();
            let nodes = tree.into_inner().unwrap().nodes;
            let node = nodes.into_iter().find(|node| node.name() == name)?;
            below = node.subtree;
            found = Some(match node.node_type {
                NodeType::Dir => EntryKind::Directory,
                NodeType::File => EntryKind::File {
                    bytes: node.meta.size,
                },
                _ => EntryKind::Other,
            });
        }
        found
    }

    #[test]
    fn many_paths_at_once_are_answered_as_one_after_the_other() {
        let bench = Bench::new();
        let view = bench.repository.view().unwrap();
        let site = bench.scratch.path().join("site");
        let mut kinds = BTreeSet::new();
        let part = prop_oneof![
            12 => prop::sample::select(&NAMES[..]).prop_map(str::to_owned),
            1 => prop::sample::select(&["..", ".", "", "c", "A"][..]).prop_map(str::to_owned),
        ];
        let paths = prop::collection::vec(
            (
                any::<prop::sample::Index>(),
                prop::collection::vec(part, 0..6),
            ),
            0..40,
        );
        let mut runner = proptest::test_runner::TestRunner::deterministic();
        let strategy = paths.prop_map(|paths| -> Vec<PathBuf> {
            let roots = [site.as_path(), Path::new("/"), Path::new(""), &site, &site];
            let path = |(root, parts): (prop::sample::Index, Vec<String>)| {
                let parts: PathBuf = parts.iter().collect();
                roots[root.index(roots.len())].join(parts)
            };
            paths.into_iter().map(path).collect()
        });
        for _ in 0..60 {
            let paths = strategy.new_tree(&mut runner).unwrap().current();
            let entries = view.entries(&bench.snapshot, &paths).unwrap();
            assert_eq!(entries.len(), paths.len());
            for (path, entry) in paths.iter().zip(entries) {
                assert_eq!(entry, naive(&view, &bench.snapshot, path), "{path:?}");
                kinds.insert(format!("{entry:?}").chars().take(9).collect::<String>());
            }
        }
        assert_eq!(
            kinds.len(),
            4,
            "nothing, directories, files, others: {kinds:?}"
        );
    }
}
