//! Restoring a directory of a snapshot into a fresh private directory.
//!
//! rustic's own restore follows what a tenant planted, warns where it should fail, and holds the content in memory. This one
//! creates everything new below a directory that only we can write, relative to descriptors; contents come in sorted ranges by a few
//! threads; attributes are set last, from the leaves up, and every failure is one. Never: writing into anything that was there before.

mod below;
mod check;
mod live;
#[cfg(test)]
mod memory;
mod plan;
mod rules;
mod spool;
mod stage;

use std::os::fd::BorrowedFd;
use std::path::Path;

use rustic_core::repofile::Node;

pub use plan::RestorePlan;
pub use rules::{Owner, OwnerRule, RestoreRules};

use super::{Repository, Snapshot};
use crate::error::{Error, ErrorKind, Result};
use crate::progress::{Cancel, Control};
use stage::Staged;

impl Repository {
    /// Find out everything about a directory of a snapshot, given by its absolute path, that restoring it under these rules needs.
    /// [`ErrorKind::NotFound`] where there is no such directory; [`ErrorKind::Refused`] where it holds more than the rules allow.
    ///
    /// What it finds it notes in files without names ([`Repository::with_scratch`]), about 150 bytes and the name for each file: neither the
    /// number of files nor their sizes decide how much memory it takes. One directory is an exception, which is in memory as it is stored, about
    /// 70 bytes for each file in it. Hold a lock from here until the restore is done.
    pub fn plan_restore(
        &self,
        snapshot: &Snapshot,
        path: &Path,
        rules: &RestoreRules,
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
        RestorePlan::read(self, &index, root, rules, cancel)
    }

    /// Restore a planned directory into `target`, with owner, mode, times, extended attributes and links as they were, also of the
    /// directory itself, as far as the rules of the plan let them be; what they did not is a warning.
    ///
    /// Files that `live` has with the same size and time are taken from there as far as they have the same content; nothing is
    /// changed there, and whoever changes it meanwhile changes nothing of what is restored.
    ///
    /// `target` must be an empty directory that nobody else can get at. On an error, what was restored until then
    /// stays for the caller to remove; on success it is on the disk for good.
    pub fn restore(
        &self,
        plan: &RestorePlan,
        target: BorrowedFd<'_>,
        live: Option<BorrowedFd<'_>>,
        control: &Control,
    ) -> Result<()> {
        for warning in plan.warnings() {
            control.monitor.warning(warning);
        }
        Staged { target, plan }.restore(self, live, control)
    }
}

impl RestorePlan {
    /// Read what was restored into `target` back, and compare it with the snapshot: names, lengths, targets of links, and contents by the hashes that the
    /// snapshot names them by.
    ///
    /// [`ErrorKind::Damaged`] where something is not as it was saved.
    pub fn check_restored(&self, target: BorrowedFd<'_>, cancel: &Cancel) -> Result<()> {
        check::check(self, target, cancel)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::path::PathBuf;

    use rustic_core::TreeId;
    use serde_json::{Value, json};

    use super::super::seal;
    use super::*;
    use crate::storage::{self, Location};

    /// A repository in which somebody writes what no honest program does.
    pub(super) struct Forger {
        pub scratch: tempfile::TempDir,
        pub repository: Repository,
    }

    impl Forger {
        pub(super) fn new() -> Self {
            let scratch = tempfile::tempdir().unwrap();
            let storage = storage_at(&scratch.path().join("repository"));
            let repository = Repository::init(storage, &"password".to_owned().into()).unwrap();
            Self {
                scratch,
                repository,
            }
        }

        /// The id of a directory that holds these.
        pub(super) fn directories(&self, of: impl IntoIterator<Item = Value>) -> String {
            let trees: Vec<_> = of
                .into_iter()
                .map(|nodes| {
                    let json = serde_json::to_vec(&json!({ "nodes": nodes })).unwrap();
                    (seal::hash(&json), json)
                })
                .collect();
            self.repository.write_tree_pack(&trees).unwrap();
            trees.last().unwrap().0.to_hex().as_str().to_owned()
        }

        /// Restore `/site` of a snapshot whose root directory is this, and give what came of it.
        fn restore(&self, root: &str) -> Result<PathBuf> {
            let out = tempfile::tempdir_in(self.scratch.path()).unwrap().keep();
            restore_into(&out, &self.repository, root)?;
            Ok(out)
        }

        /// As [`Self::restore`], of a site that holds these.
        fn restore_site(&self, nodes: Value) -> Result<PathBuf> {
            let site = self.directories([nodes]);
            let root = self.directories([json!([directory("site", &site)])]);
            self.restore(&root)
        }
    }

    pub(super) fn storage_at(path: &Path) -> std::sync::Arc<dyn storage::Storage> {
        storage::open(&Location::from(path), &Default::default()).unwrap()
    }

    pub(super) fn restore_into(out: &Path, repository: &Repository, root: &str) -> Result<()> {
        let snapshot = Snapshot {
            tree: root.parse::<TreeId>().unwrap(),
            ..Snapshot::of_nobody()
        };
        let target = std::fs::File::open(out).unwrap();
        let rules = RestoreRules::everything();
        let path = Path::new("/site");
        let plan = repository.plan_restore(&snapshot, path, &rules, &Cancel::new())?;
        repository.restore(&plan, target.as_fd(), None, &Control::default())
    }

    pub(super) fn directory(name: &str, content: &str) -> Value {
        json!({"name": name, "type": "dir", "mode": 0x8000_01ed_u32, "uid": 0, "gid": 0, "subtree": content})
    }

    pub(super) fn file(name: &str) -> Value {
        json!({"name": name, "type": "file", "mode": 0o644, "uid": 0, "gid": 0, "content": []})
    }

    fn link(name: &str, target: &str) -> Value {
        json!({"name": name, "type": "symlink", "mode": 0o777, "uid": 0, "gid": 0, "linktarget": target})
    }

    #[test]
    fn an_entry_whose_name_is_no_name_ends_the_restore_before_it_begins() {
        let forger = Forger::new();
        let outside = forger.scratch.path().join("outside");
        for name in [
            "..",
            ".",
            "",
            "/",
            "a/b",
            "../outside",
            "/etc/passwd",
            r"nul\x00l",
        ] {
            for node in [file(name), link(name, "a")] {
                let error = forger.restore_site(json!([node])).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Damaged, "{name:?}: {error}");
            }
            let empty = forger.directories([json!([])]);
            let error = forger
                .restore_site(json!([directory(name, &empty)]))
                .unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Damaged, "{name:?}: {error}");
        }
        assert!(!outside.exists());
    }

    #[test]
    fn a_name_that_is_there_twice_is_written_through_by_nobody() {
        let forger = Forger::new();
        let outside = forger.scratch.path().join("outside");
        std::fs::create_dir(&outside).unwrap();
        let to_outside = link("a", outside.to_str().unwrap());
        let inner = forger.directories([json!([file("planted")])]);
        let hard_link = |inode| {
            let mut node = file("a");
            node["links"] = 2.into();
            node["inode"] = inode;
            node
        };
        for nodes in [
            json!([to_outside, directory("a", &inner)]),
            json!([directory("a", &inner), to_outside]),
            json!([to_outside, file("a")]),
            json!([file("a"), to_outside]),
            json!([file("a"), file("a")]),
            json!([directory("a", &inner), directory("a", &inner)]),
            json!([hard_link(5.into()), hard_link(5.into())]),
        ] {
            let error = forger.restore_site(nodes.clone()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Damaged, "{nodes}: {error}");
            assert!(error.to_string().contains("two entries"), "{error}");
        }
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
    }

    #[test]
    fn only_files_with_the_same_content_become_names_of_one() {
        use std::os::unix::fs::MetadataExt;
        let forger = Forger::new();
        let of_inode_5 = |mut node: Value| {
            node["links"] = 4.into();
            node["inode"] = 5.into();
            node
        };
        let nodes = [link("a", "b"), file("b"), file("c")].map(of_inode_5);
        let restored = forger.restore_site(json!(nodes)).unwrap();
        let look = |name: &str| std::fs::symlink_metadata(restored.join(name)).unwrap();
        assert!(look("a").is_symlink());
        assert_eq!(look("b").nlink(), 2);
        assert_eq!(look("b").ino(), look("c").ino());
    }

    #[test]
    fn directories_come_back_from_as_deep_as_they_are_saved_and_from_no_deeper() {
        let forger = Forger::new();
        let nested = |depth: usize, name: &str| {
            let mut below = seal::hash(br#"{"nodes":[]}"#).to_hex().as_str().to_owned();
            let mut trees = vec![json!([])];
            for _ in 0..depth {
                let nodes = json!([directory(name, &below)]);
                let json = serde_json::to_vec(&json!({ "nodes": nodes })).unwrap();
                below = seal::hash(&json).to_hex().as_str().to_owned();
                trees.push(nodes);
            }
            let site = forger.directories(trees);
            forger.directories([json!([directory("site", &site)])])
        };
        let restored = forger.restore(&nested(4096, "d")).unwrap();
        let mut deepest = std::fs::File::open(&restored).unwrap();
        for _ in 0..4096 {
            let flags = rustix::fs::OFlags::RDONLY;
            let next = rustix::fs::openat(&deepest, "d", flags, rustix::fs::Mode::empty());
            deepest = next.unwrap().into();
        }
        assert_eq!(rustix::fs::Dir::read_from(&deepest).unwrap().count(), 2);
        for (depth, name) in [(4097, "d"), (200, &*"long".repeat(50))] {
            let error = forger.restore(&nested(depth, name)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
            assert!(error.to_string().len() < 1000, "{error}");
        }
        // What removes it for a test goes by whole paths.
        let removed = std::process::Command::new("rm")
            .arg("-rf")
            .arg(&restored)
            .status();
        assert!(removed.unwrap().success());
    }

    #[test]
    fn a_directory_that_is_not_what_its_name_says_is_refused() {
        let forger = Forger::new();
        let nodes = serde_json::to_vec(&json!({ "nodes": [file("a")] })).unwrap();
        let wrong = seal::hash(b"something else");
        forger
            .repository
            .write_tree_pack(&[(wrong, nodes)])
            .unwrap();
        let root = forger.directories([json!([directory("site", wrong.to_hex().as_str())])]);
        let error = forger.restore(&root).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Damaged);
    }
}
