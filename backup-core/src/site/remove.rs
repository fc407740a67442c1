//! Removing a tree whose content is hostile: deeper than any path or descriptor limit, with names of any bytes, and
//! changed meanwhile by somebody who still has a directory of it open.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{AtFlags, RenameFlags};
use rustix::io::Errno;

use super::dirs;
use crate::fault;

/// How often a directory that fills while it is emptied is emptied again.
const MOST_PASSES: usize = 1_000;

/// Remove what has this name, with all that is below. Nothing there is fine. No link is followed and nothing mounted is
/// entered. What can be removed is, even when something cannot; the first failure is reported.
///
/// Directories that are not empty are moved up to the top of the tree before they are emptied, so no more than two are
/// open at a time, however deep the tree is.
pub(super) fn remove_tree(parent: impl AsFd, name: &OsStr) -> Result<(), Errno> {
    let parent = parent.as_fd();
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        // The second is what POSIX has for a directory.
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(other) => return Err(other),
    }
    let top = match dirs::open_dir(parent, name) {
        Err(Errno::NOENT) => return Ok(()),
        other => other?,
    };
    let mut removal = Removal::new(top.as_fd());
    for _ in 0..MOST_PASSES {
        removal.empty_top();
        match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::NOTEMPTY | Errno::EXIST) if removal.failure.is_none() => {}
            Err(other) => return Err(removal.failure.unwrap_or(other)),
        }
    }
    Err(Errno::NOTEMPTY)
}

struct Removal<'fd> {
    top: BorrowedFd<'fd>,
    /// Directories right in the top that are not empty.
    full: Vec<OsString>,
    moved: u64,
    failure: Option<Errno>,
}

impl<'fd> Removal<'fd> {
    fn new(top: BorrowedFd<'fd>) -> Self {
        Self {
            top,
            full: Vec::new(),
            moved: 0,
            failure: None,
        }
    }

    fn empty_top(&mut self) {
        let top = self.top;
        self.each_name(top, |removal, name| {
            if removal.unlink(top, name) {
                removal.full.push(name.to_owned());
            }
        });
        while let Some(name) = self.full.pop() {
            self.remove_dir(&name);
            if fault::point("in removing a tree").is_err() {
                self.fail(Errno::IO);
            }
        }
    }

    /// Empty a directory of the top, what is in it moving up, and remove it.
    fn remove_dir(&mut self, name: &OsStr) {
        let dir = match dirs::open_dir(self.top, name) {
            Ok(dir) => dir,
            // Somebody moved it away or put something else in its place: the next pass will see.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return,
            Err(other) => return self.fail(other),
        };
        self.each_name(dir.as_fd(), |removal, name| {
            if removal.unlink(dir.as_fd(), name) {
                removal.move_up(dir.as_fd(), name);
            }
        });
        match rustix::fs::unlinkat(self.top, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT | Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) => {}
            Err(other) => self.fail(other),
        }
    }

    fn each_name(&mut self, dir: BorrowedFd<'_>, mut visit: impl FnMut(&mut Self, &OsStr)) {
        let names = match dirs::names(dir) {
            Ok(names) => names,
            Err(e) => return self.fail(e),
        };
        for name in names {
            match name {
                Ok(name) => visit(self, &name),
                Err(e) => return self.fail(e),
            }
        }
    }

    /// Remove a name where that is one step; true when it is a directory with something in it.
    fn unlink(&mut self, dir: BorrowedFd<'_>, name: &OsStr) -> bool {
        match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => return false,
            Err(Errno::ISDIR) => {}
            Err(other) => {
                self.fail(other);
                return false;
            }
        }
        match rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR) {
            // It is no directory any more: the next pass will see.
            Ok(()) | Err(Errno::NOENT | Errno::NOTDIR) => false,
            Err(Errno::NOTEMPTY | Errno::EXIST) => true,
            Err(other) => {
                self.fail(other);
                false
            }
        }
    }

    fn move_up(&mut self, dir: BorrowedFd<'_>, name: &OsStr) {
        loop {
            let fresh = OsString::from(format!("removing-{}", self.moved));
            self.moved += 1;
            match rustix::fs::renameat_with(dir, name, self.top, &fresh, RenameFlags::NOREPLACE) {
                Ok(()) => return self.full.push(fresh),
                Err(Errno::EXIST) => {}
                Err(Errno::NOENT) => return,
                Err(other) => return self.fail(other),
            }
        }
    }

    fn fail(&mut self, failure: Errno) {
        self.failure.get_or_insert(failure);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use rustix::fs::{Mode, OFlags};

    use super::*;

    fn open(path: &Path) -> std::os::fd::OwnedFd {
        rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap()
    }

    #[test]
    fn a_tree_of_everything_goes_and_nothing_outside_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("precious"), "x").unwrap();
        let tree = dir.path().join("tree");
        std::fs::create_dir_all(tree.join("a/b/c")).unwrap();
        std::fs::create_dir(tree.join("removing-0")).unwrap();
        std::fs::write(tree.join("removing-0/x"), "x").unwrap();
        symlink(&outside, tree.join("a/link")).unwrap();
        symlink(&outside, tree.join("link")).unwrap();
        symlink("loop", tree.join("a/b/loop")).unwrap();
        std::fs::hard_link(outside.join("precious"), tree.join("a/b/hard")).unwrap();
        std::fs::write(tree.join(OsStr::from_bytes(b"a/\xff\n\x1b name")), "x").unwrap();
        let a = open(&tree.join("a"));
        rustix::fs::mknodat(&a, "fifo", rustix::fs::FileType::Fifo, Mode::RUSR, 0).unwrap();
        drop(a);
        for n in 0..3000 {
            std::fs::write(tree.join(format!("a/b/c/{n}")), "").unwrap();
        }
        remove_tree(open(dir.path()), OsStr::new("tree")).unwrap();
        assert!(!tree.exists());
        assert_eq!(std::fs::read(outside.join("precious")).unwrap(), b"x");
        remove_tree(open(dir.path()), OsStr::new("tree")).unwrap();
    }

    #[test]
    fn a_link_in_the_place_of_the_tree_is_what_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("outside")).unwrap();
        std::fs::write(dir.path().join("outside/precious"), "x").unwrap();
        symlink("outside", dir.path().join("tree")).unwrap();
        remove_tree(open(dir.path()), OsStr::new("tree")).unwrap();
        assert!(dir.path().join("tree").symlink_metadata().is_err());
        assert!(dir.path().join("outside/precious").exists());
    }

    #[test]
    fn a_tree_deeper_than_any_limit_goes() {
        let dir = tempfile::tempdir().unwrap();
        let mut at = open(dir.path());
        let name = "d".repeat(200);
        // 3,000 levels of 200 bytes: far longer than a path may be, with more levels than descriptors.
        rustix::fs::mkdirat(&at, "tree", Mode::RWXU).unwrap();
        at = dirs::open_dir(&at, "tree").unwrap();
        for _ in 0..3_000 {
            rustix::fs::mkdirat(&at, &name, Mode::RWXU).unwrap();
            at = dirs::open_dir(&at, &name).unwrap();
        }
        drop(at);
        remove_tree(open(dir.path()), OsStr::new("tree")).unwrap();
        assert!(!dir.path().join("tree").exists());
    }

    #[test]
    fn a_tree_that_is_filled_meanwhile_goes_all_the_same() {
        use std::sync::atomic::{AtomicBool, Ordering};
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("precious"), "x").unwrap();
        for round in 0..20 {
            let tree = dir.path().join(format!("tree{round}"));
            std::fs::create_dir_all(tree.join("a/b")).unwrap();
            let inside = open(&tree.join("a"));
            let done = AtomicBool::new(false);
            std::thread::scope(|scope| {
                // A tenant's process that still stands in the tree, exchanging directories for links.
                scope.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        let _ = rustix::fs::mkdirat(&inside, "x", Mode::RWXU);
                        let _ = rustix::fs::mkdirat(&inside, "x/y", Mode::RWXU);
                        let _ = rustix::fs::symlinkat(&outside, &inside, "l");
                        let _ = rustix::fs::renameat_with(
                            &inside,
                            "l",
                            &inside,
                            "x",
                            RenameFlags::EXCHANGE,
                        );
                    }
                });
                let removed = remove_tree(open(dir.path()), tree.file_name().unwrap());
                done.store(true, Ordering::Relaxed);
                removed.unwrap();
            });
            assert!(!tree.exists());
            assert!(outside.join("precious").exists());
        }
    }
}
