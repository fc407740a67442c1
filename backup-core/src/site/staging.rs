//! Where restored files wait, and how they take the place of what is there.
//!
//! `{customers.root}/.shophosting-backup/restore-N-…`: on the file system of the sites, so that the exchange is one
//! rename, and closed to everybody but root, so that nobody can plant a link in what is being restored. After the
//! exchange what was replaced waits in it; only [`Staging::remove`] destroys that.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::{Site, dirs, open_root, remove};
use crate::config::Config;
use crate::customer::CustomerId;
use crate::error::{Error, ErrorKind, Result};

/// The directory of all staging directories and locks, in the root of all customers.
const BASE: &str = ".shophosting-backup";

/// In a staging directory: the files, under the same relative paths as in the site.
const FILES: &str = "files";

/// In a staging directory once an exchange has begun: from then on it may hold the only copy of what the site was.
const EXCHANGED: &str = "exchanged";

/// How often an exchange is tried while a customer puts things into its way and takes them out again.
const MOST_TRIES: usize = 20;

/// A private directory for one restore. Held locked, so that nobody takes it for a leftover. Dropping it removes nothing.
#[derive(Debug)]
pub struct Staging {
    base: OwnedFd,
    dir: OwnedFd,
    files: OwnedFd,
    name: String,
    path: PathBuf,
    site_path: PathBuf,
    same_file_system: bool,
}

/// A site directory that is staged whole and can be swapped in. Small and serializable: a journal keeps it, and what it
/// says suffices to repeat or undo the swap after a crash at any instruction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Staged {
    /// The site directory, relative to the customer's.
    site_dir: PathBuf,
    /// The inode of the new directory: tells old and new apart after a crash.
    inode: u64,
    /// How many directories on the way to it the site lacked when it was staged.
    missing_parents: usize,
}

impl Staged {
    /// Which site directory it is for, relative to the customer's directory.
    pub fn site_dir(&self) -> &Path {
        &self.site_dir
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // As `Claim` does, and for the same reason; what cannot be given up now goes with the process.
        let _ = rustix::fs::flock(&self.dir, FlockOperation::Unlock);
    }
}

impl Staging {
    pub(super) fn create(site: &Site, name: &str) -> Result<Self> {
        require_name(site, name)?;
        let (base, path) = open_or_make_base(site)?;
        let io = |e: Errno| {
            Error::io(
                format!("cannot make a staging directory in {}", path.display()),
                e.into(),
            )
        };
        // Looking for others and making our own must be one step.
        alone(&base, &path, || {
            Self::create_alone(site, &base, &path, name, io)
        })
    }

    fn create_alone(
        site: &Site,
        base: &OwnedFd,
        path: &Path,
        name: &str,
        io: impl Fn(Errno) -> Error + Copy,
    ) -> Result<Self> {
        for other in all(base).map_err(io)? {
            if other.customer == site.customer && other.in_use {
                return Err(busy(site.customer));
            }
        }
        dirs::spread(base);
        rustix::fs::mkdirat(base, name, Mode::RWXU).map_err(io)?;
        let dir = dirs::open_dir(base, name).map_err(io)?;
        lock(&dir, site.customer)?;
        rustix::fs::mkdirat(&dir, FILES, Mode::RWXU).map_err(io)?;
        Self::assemble(site, base, dir, name.to_owned(), path, io)
    }

    pub(super) fn reopen(site: &Site, name: &str) -> Result<Self> {
        let path = site.root_path().join(BASE);
        require_name(site, name)?;
        let base = open_base(site.root(), &path)?;
        let io = |e: Errno| {
            Error::io(
                format!(
                    "cannot open the staging directory {name} in {}",
                    path.display()
                ),
                e.into(),
            )
        };
        let dir = dirs::open_dir(&base, name).map_err(io)?;
        alone(&base, &path, || lock(&dir, site.customer))?;
        match rustix::fs::mkdirat(&dir, FILES, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(other) => return Err(io(other)),
        }
        Self::assemble(site, &base, dir, name.to_owned(), &path, io)
    }

    fn assemble(
        site: &Site,
        base: &OwnedFd,
        dir: OwnedFd,
        name: String,
        path: &Path,
        io: impl Fn(Errno) -> Error,
    ) -> Result<Self> {
        let files = dirs::open_dir(&dir, FILES).map_err(&io)?;
        let here = rustix::fs::fstat(&files).map_err(&io)?.st_dev;
        let there = rustix::fs::fstat(site.dir()).map_err(&io)?.st_dev;
        Ok(Self {
            base: base
                .try_clone()
                .map_err(|e| Error::io("cannot hold the staging directory open", e))?,
            dir,
            files,
            path: path.join(&name),
            name,
            site_path: site.path().to_owned(),
            same_file_system: here == there,
        })
    }

    /// Its name, for a journal; [`Site::reopen_staging`] takes it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it is. Only root can go there.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The bytes that are free in it.
    pub fn bytes_available(&self) -> Result<u64> {
        dirs::bytes_available(&self.dir).map_err(|e| {
            Error::io(
                format!("cannot tell the free space of {}", self.path.display()),
                e.into(),
            )
        })
    }

    /// Make the empty directory that a site directory is to be restored into; the path of it. The content and the
    /// attributes of the directory itself are the caller's to restore. [`ErrorKind::Configuration`] where the site is
    /// on a file system of its own.
    pub fn place(&self, site_dir: &Path) -> Result<PathBuf> {
        if !self.same_file_system {
            let root = self.site_path.parent().unwrap_or(&self.site_path);
            return Err(other_file_system(&self.site_path, root));
        }
        let path = self.place_path(site_dir);
        let io = |e: Errno| {
            Error::io(
                format!("cannot make the directory {}", path.display()),
                e.into(),
            )
        };
        let parent = self.open_slot_parent(site_dir, true).map_err(io)?;
        let name = dirs::last_name(site_dir).map_err(io)?;
        rustix::fs::mkdirat(&parent, name, Mode::RWXU).map_err(io)?;
        Ok(path)
    }

    /// Say that a site directory has been restored whole into its place. Nothing in the site changes yet.
    pub fn staged(&self, site: &Site, site_dir: &Path) -> Result<Staged> {
        let path = self.place_path(site_dir);
        let io = |e: Errno| {
            Error::io(
                format!("cannot look at the staged {}", path.display()),
                e.into(),
            )
        };
        let parent = self.open_slot_parent(site_dir, false).map_err(io)?;
        let stat = dirs::stat(&parent, dirs::last_name(site_dir).map_err(io)?).map_err(io)?;
        let stat = stat
            .filter(|stat| dirs::file_type(stat) == FileType::Directory)
            .ok_or_else(|| {
                Error::new(
                    ErrorKind::Damaged,
                    format!("the staged {} is not a directory", path.display()),
                )
            })?;
        let (missing_parents, device) = nearest(site, site_dir)?;
        if device != stat.st_dev {
            return Err(other_file_system(
                &site.path().join(site_dir),
                site.root_path(),
            ));
        }
        Ok(Staged {
            site_dir: site_dir.to_owned(),
            inode: stat.st_ino,
            missing_parents,
        })
    }

    /// Put what is staged in the place of the site's directory, in one step; what was there is now in this staging
    /// directory. Whatever is there is exchanged, even a link, which is not followed. Safe to repeat: what is in its place
    /// already stays there.
    pub fn swap(&self, site: &Site, staged: &Staged) -> Result<()> {
        let what = || {
            format!(
                "cannot exchange {}",
                site.path().join(&staged.site_dir).display()
            )
        };
        let io = |e: Errno| explain(e, &what());
        let name = dirs::last_name(&staged.site_dir).map_err(io)?;
        let slot = self.open_slot_parent(&staged.site_dir, false).map_err(io)?;
        self.mark_exchanged().map_err(io)?;
        let live = dirs::open_parent(site.dir(), &staged.site_dir, true).map_err(io)?;
        if inode(&slot, name).map_err(io)? != Some(staged.inode) {
            if inode(&live, name).map_err(io)? == Some(staged.inode) {
                return sync(&[&slot, &live]).map_err(io);
            }
            let message = format!("{}: what was staged is gone", what());
            return Err(Error::new(ErrorKind::Damaged, message));
        }
        exchange(&slot, &live, name).map_err(io)?;
        sync(&[&live, &slot]).map_err(io)
    }

    /// Undo [`Self::swap`]: what was there is there again, and what was restored is aside. Safe to repeat, and where
    /// nothing was swapped.
    pub fn swap_back(&self, site: &Site, staged: &Staged) -> Result<()> {
        let io = |e: Errno| {
            let path = site.path().join(&staged.site_dir);
            explain(
                e,
                &format!("cannot bring back the former {}", path.display()),
            )
        };
        let name = dirs::last_name(&staged.site_dir).map_err(io)?;
        let slot = self.open_slot_parent(&staged.site_dir, false).map_err(io)?;
        let here = inode(&slot, name).map_err(io)?;
        if here == Some(staged.inode) {
            return Ok(());
        }
        let live = match dirs::open_parent(site.dir(), &staged.site_dir, here.is_some()) {
            // Nothing was there before and nothing is there now.
            Err(Errno::NOENT) => return Ok(()),
            other => other.map_err(io)?,
        };
        if here.is_some() {
            self.put_back(&slot, &live, name, staged.inode)
                .map_err(io)?;
        } else if inode(&live, name).map_err(io)? == Some(staged.inode) {
            rustix::fs::renameat_with(&live, name, &slot, name, RenameFlags::NOREPLACE)
                .map_err(io)?;
        }
        sync(&[&live, &slot]).map_err(io)?;
        drop(live);
        remove_made_parents(site, staged).map_err(io)
    }

    /// What waits in the slot goes back to its place, and what is there goes aside, whatever it is: what was restored, or what somebody put there since.
    /// Not by one exchange: so what is still in the slot is always what was there before, however often this is interrupted.
    fn put_back(
        &self,
        slot: &OwnedFd,
        live: &OwnedFd,
        name: &OsStr,
        restored: u64,
    ) -> std::result::Result<(), Errno> {
        for _ in 0..MOST_TRIES {
            let aside = format!("aside-{:016x}", rand::random::<u64>());
            match rustix::fs::renameat_with(live, name, &self.dir, &aside, RenameFlags::NOREPLACE) {
                Ok(()) | Err(Errno::NOENT) => sync(&[live, &self.dir])?,
                Err(other) => return Err(other),
            }
            match rustix::fs::renameat_with(slot, name, live, name, RenameFlags::NOREPLACE) {
                // Somebody was faster.
                Err(Errno::EXIST) => continue,
                other => other?,
            }
            sync(&[live, slot])?;
            if inode(&self.dir, OsStr::new(&aside))? == Some(restored) {
                rustix::fs::renameat_with(&self.dir, &aside, slot, name, RenameFlags::NOREPLACE)?;
            }
            return Ok(());
        }
        Err(Errno::BUSY)
    }

    /// Where the directory that a swap replaced is now; `None` where the site had none.
    pub fn replaced(&self, staged: &Staged) -> Result<Option<PathBuf>> {
        let path = self.place_path(&staged.site_dir);
        let io = |e: Errno| Error::io(format!("cannot look at {}", path.display()), e.into());
        let slot = self.open_slot_parent(&staged.site_dir, false).map_err(io)?;
        let name = dirs::last_name(&staged.site_dir).map_err(io)?;
        let here = inode(&slot, name).map_err(io)?;
        Ok(here
            .is_some_and(|inode| inode != staged.inode)
            .then_some(path))
    }

    /// Put what a swap replaced, which is no directory and so cannot be a backup, into the customer's directory, under a name that this gives.
    pub fn set_aside(&self, site: &Site, staged: &Staged) -> Result<String> {
        let path = self.place_path(&staged.site_dir);
        let io = |e: Errno| Error::io(format!("cannot set {} aside", path.display()), e.into());
        let slot = self.open_slot_parent(&staged.site_dir, false).map_err(io)?;
        let name = dirs::last_name(&staged.site_dir).map_err(io)?;
        let flat = staged.site_dir.to_string_lossy().replace('/', "-");
        let aside = format!("{flat}.replaced-{:08x}", rand::random::<u32>());
        rustix::fs::renameat_with(&slot, name, site.dir(), &aside, RenameFlags::NOREPLACE)
            .and_then(|()| rustix::fs::fsync(site.dir()))
            .and_then(|()| rustix::fs::fsync(&slot))
            .map_err(io)?;
        Ok(aside)
    }

    /// Destroy it with all that is in it: what was staged before a swap, what was replaced after one.
    pub fn remove(self) -> Result<()> {
        remove::remove_tree(&self.base, OsStr::new(&self.name))
            .map_err(|e| Error::io(format!("cannot remove {}", self.path.display()), e.into()))
    }

    fn mark_exchanged(&self) -> std::result::Result<(), Errno> {
        match rustix::fs::mkdirat(&self.dir, EXCHANGED, Mode::RWXU) {
            Ok(()) => sync(&[&self.dir]),
            Err(Errno::EXIST) => Ok(()),
            Err(other) => Err(other),
        }
    }

    fn place_path(&self, site_dir: &Path) -> PathBuf {
        self.path.join(FILES).join(site_dir)
    }

    fn open_slot_parent(&self, site_dir: &Path, make: bool) -> std::result::Result<OwnedFd, Errno> {
        dirs::open_parent(&self.files, site_dir, make)
    }
}

/// A staging directory that is there, of a restore that runs or of one that was killed.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Leftover {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
    /// Whose restore it was.
    pub customer: CustomerId,
    /// Whether that restore still runs.
    pub in_use: bool,
    /// Whether it came to exchanging files: then this may be the only copy of what it replaced.
    pub exchanged: bool,
}

/// All staging directories. One that is not in use is of a restore that was killed.
pub fn leftovers(config: &Config) -> Result<Vec<Leftover>> {
    let Some((base, path)) = open_base_if_any(config)? else {
        return Ok(Vec::new());
    };
    let io = |e: Errno| Error::io(format!("cannot read {}", path.display()), e.into());
    let mut found = alone(&base, &path, || all(&base).map_err(io))?;
    for leftover in &mut found {
        leftover.path = path.join(&leftover.name);
    }
    found.sort_by(|a, b| (a.customer, &a.name).cmp(&(b.customer, &b.name)));
    Ok(found)
}

/// Destroy a leftover with all that is in it. [`ErrorKind::Busy`] while its restore runs. Safe to repeat.
pub fn remove_leftover(config: &Config, leftover: &Leftover) -> Result<()> {
    let Some((base, path)) = open_base_if_any(config)? else {
        return Ok(());
    };
    let io = |e: Errno| {
        Error::io(
            format!("cannot remove {}", path.join(&leftover.name).display()),
            e.into(),
        )
    };
    let dir = match dirs::open_dir(&base, &leftover.name) {
        Err(Errno::NOENT) => return Ok(()),
        other => other.map_err(io)?,
    };
    alone(&base, &path, || lock(&dir, leftover.customer))?;
    remove::remove_tree(&base, OsStr::new(&leftover.name)).map_err(io)
}

/// What the file system of the sites is like.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Ground {
    /// The bytes that are free.
    pub bytes_available: u64,
    /// Whether a copy of a file there can share its blocks.
    pub has_reflinks: bool,
}

/// Try, beside the sites, whether this file system can exchange two directories, and leave nothing behind.
/// [`ErrorKind::Configuration`] where it cannot.
pub fn try_exchange(config: &Config) -> Result<Ground> {
    // Without a place of our own as yet, a name that nobody has will do.
    let (base, path) = match open_base_if_any(config)? {
        Some(base) => base,
        None => (open_root(config)?, config.customers.root.clone()),
    };
    let io = |e: Errno| {
        explain(
            e,
            &format!("cannot exchange two directories in {}", path.display()),
        )
    };
    let name = format!(".shophosting-check-{:016x}", rand::random::<u64>());
    rustix::fs::mkdirat(&base, &name, Mode::RWXU).map_err(io)?;
    let tried = try_exchange_in(&base, &name).map_err(io);
    remove::remove_tree(&base, OsStr::new(&name)).map_err(io)?;
    tried
}

fn try_exchange_in(base: &OwnedFd, name: &str) -> std::result::Result<Ground, Errno> {
    let dir = dirs::open_dir(base, name)?;
    for side in ["a", "b"] {
        rustix::fs::mkdirat(&dir, side, Mode::RWXU)?;
    }
    rustix::fs::renameat_with(&dir, "a", &dir, "b", RenameFlags::EXCHANGE)?;
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let file = |name: &str| rustix::fs::openat(&dir, name, flags, Mode::RUSR | Mode::WUSR);
    let (original, copy) = (file("original")?, file("copy")?);
    rustix::io::write(&original, b"a trial")?;
    Ok(Ground {
        bytes_available: dirs::bytes_available(&dir)?,
        has_reflinks: rustix::fs::ioctl_ficlone(&copy, &original).is_ok(),
    })
}

/// The private directory of all that is ours beside the sites, and its path.
pub(super) fn open_or_make_base(site: &Site) -> Result<(OwnedFd, PathBuf)> {
    let path = site.root_path().join(BASE);
    Ok((make_base(site.root(), &path)?, path))
}

fn make_base(root: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd> {
    match rustix::fs::mkdirat(root, BASE, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => open_base(root, path),
        Err(e) => Err(Error::io(
            format!("cannot make the directory {}", path.display()),
            e.into(),
        )),
    }
}

fn open_base(root: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd> {
    let base = dirs::open_dir(root, BASE).map_err(|e| match e {
        Errno::NOTDIR | Errno::LOOP => Error::new(
            ErrorKind::Refused,
            format!(
                "{} is not a directory; a link is not followed",
                path.display()
            ),
        ),
        other => Error::io(
            format!("cannot open the directory {}", path.display()),
            other.into(),
        ),
    })?;
    insist_on_private(&base, path)?;
    Ok(base)
}

fn open_base_if_any(config: &Config) -> Result<Option<(OwnedFd, PathBuf)>> {
    let path = config.customers.root.join(BASE);
    match open_base(open_root(config)?.as_fd(), &path) {
        Ok(base) => Ok(Some((base, path))),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// What is restored into a directory that others can write could be led anywhere.
fn insist_on_private(dir: &OwnedFd, path: &Path) -> Result<()> {
    let stat = rustix::fs::fstat(dir)
        .map_err(|e| Error::io(format!("cannot look at {}", path.display()), e.into()))?;
    if stat.st_uid != rustix::process::geteuid().as_raw() || stat.st_mode & 0o077 != 0 {
        return Err(Error::new(
            ErrorKind::Refused,
            format!(
                "{} must be open to nobody but the user this runs as (owner, mode 700)",
                path.display()
            ),
        ));
    }
    Ok(())
}

/// Do something while nobody else looks at the locks of the staging directories: looking takes them for a moment.
fn alone<T>(base: &OwnedFd, path: &Path, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let io = |e: Errno| Error::io(format!("cannot lock {}", path.display()), e.into());
    rustix::fs::flock(base, FlockOperation::LockExclusive).map_err(io)?;
    let done = work();
    rustix::fs::flock(base, FlockOperation::Unlock).map_err(io)?;
    done
}

fn all(base: &OwnedFd) -> std::result::Result<Vec<Leftover>, Errno> {
    let mut found = Vec::new();
    for name in dirs::names(base)? {
        let name = name?;
        let Some(name) = name.to_str() else { continue };
        let Some(customer) = customer_of(name) else {
            continue;
        };
        let dir = match dirs::open_dir(base, name) {
            Ok(dir) => dir,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
            Err(other) => return Err(other),
        };
        let in_use = match rustix::fs::flock(&dir, FlockOperation::NonBlockingLockShared) {
            // Given up by name, as in `Claim`: who is about to start a program may have it longer than we.
            Ok(()) => {
                rustix::fs::flock(&dir, FlockOperation::Unlock)?;
                false
            }
            Err(Errno::WOULDBLOCK) => true,
            Err(other) => return Err(other),
        };
        found.push(Leftover {
            name: name.to_owned(),
            path: PathBuf::new(),
            customer,
            in_use,
            exchanged: dirs::stat(&dir, EXCHANGED)?.is_some(),
        });
    }
    Ok(found)
}

pub(super) fn new_name(customer: CustomerId) -> String {
    format!("restore-{customer}-{:016x}", rand::random::<u64>())
}

fn require_name(site: &Site, name: &str) -> Result<()> {
    if customer_of(name) == Some(site.customer) {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::InvalidInput,
        format!(
            "`{}` is no staging directory of customer {}",
            name.escape_debug(),
            site.customer
        ),
    ))
}

/// `restore-N-` and 16 hexadecimal digits.
fn customer_of(name: &str) -> Option<CustomerId> {
    let (customer, random) = name.strip_prefix("restore-")?.split_once('-')?;
    let random = random.len() == 16
        && random
            .bytes()
            .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    customer.parse().ok().filter(|_| random)
}

fn lock(dir: &OwnedFd, customer: CustomerId) -> Result<()> {
    match rustix::fs::flock(dir, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(()),
        Err(Errno::WOULDBLOCK) => Err(busy(customer)),
        Err(e) => Err(Error::io("cannot lock the staging directory", e.into())),
    }
}

fn busy(customer: CustomerId) -> Error {
    Error::new(
        ErrorKind::Busy,
        format!("another restore of customer {customer} is running"),
    )
}

fn other_file_system(path: &Path, root: &Path) -> Error {
    Error::new(
        ErrorKind::Configuration,
        format!(
            "{} is on another file system than {}, so its files cannot be exchanged in one step",
            path.display(),
            root.display()
        ),
    )
}

/// How many directories on the way to a site directory are missing, and the device of the last that is there, or of the
/// site directory itself.
fn nearest(site: &Site, site_dir: &Path) -> Result<(usize, u64)> {
    let io = |e: Errno| {
        explain(
            e,
            &format!("cannot go to {}", site.path().join(site_dir).display()),
        )
    };
    let mut dir = dirs::open_parent(site.dir(), Path::new("."), false).map_err(io)?;
    let parents = dirs::parents(site_dir).count();
    for (n, name) in dirs::parents(site_dir).enumerate() {
        dir = match dirs::open_dir(&dir, name) {
            Err(Errno::NOENT) => {
                return Ok((parents - n, rustix::fs::fstat(&dir).map_err(io)?.st_dev));
            }
            other => other.map_err(io)?,
        };
    }
    let itself = dirs::stat(&dir, dirs::last_name(site_dir).map_err(io)?).map_err(io)?;
    let device = match itself {
        Some(stat) => stat.st_dev,
        None => rustix::fs::fstat(&dir).map_err(io)?.st_dev,
    };
    Ok((0, device))
}

/// Exchange the two things of this name, or move the one where the other is missing.
fn exchange(slot: &OwnedFd, live: &OwnedFd, name: &OsStr) -> std::result::Result<(), Errno> {
    for _ in 0..MOST_TRIES {
        match rustix::fs::renameat_with(slot, name, live, name, RenameFlags::EXCHANGE) {
            Err(Errno::NOENT) => {}
            other => return other,
        }
        match rustix::fs::renameat_with(slot, name, live, name, RenameFlags::NOREPLACE) {
            // It came back in between.
            Err(Errno::EXIST) => {}
            other => return other,
        }
    }
    Err(Errno::BUSY)
}

/// Remove the directories that a swap made on the way to a site directory, as far as they are empty.
fn remove_made_parents(site: &Site, staged: &Staged) -> std::result::Result<(), Errno> {
    let mut path = staged.site_dir.as_path();
    for _ in 0..staged.missing_parents {
        let Some(parent) = path.parent() else { break };
        path = parent;
        let dir = match dirs::open_parent(site.dir(), path, false) {
            Ok(dir) => dir,
            Err(Errno::NOENT) => continue,
            Err(other) => return Err(other),
        };
        match rustix::fs::unlinkat(&dir, dirs::last_name(path)?, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => {}
            // The customer keeps something in it by now, or made something else of it.
            Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) => break,
            Err(other) => return Err(other),
        }
    }
    Ok(())
}

fn inode(dir: &OwnedFd, name: &OsStr) -> std::result::Result<Option<u64>, Errno> {
    Ok(dirs::stat(dir, name)?.map(|stat| stat.st_ino))
}

/// Make a rename survive a power cut.
fn sync(changed: &[&OwnedFd]) -> std::result::Result<(), Errno> {
    changed
        .iter()
        .try_for_each(|dir| rustix::fs::fsync(dir.as_fd()))
}

fn explain(error: Errno, what: &str) -> Error {
    match error {
        Errno::NOTDIR | Errno::LOOP => Error::new(
            ErrorKind::Refused,
            format!(
                "{what}: something on the way to it is not a directory; a link is not followed"
            ),
        ),
        Errno::XDEV => Error::new(
            ErrorKind::Configuration,
            format!("{what}: it is on another file system than the staging directory"),
        ),
        Errno::BUSY => Error::caused(
            ErrorKind::Busy,
            format!("{what}: it is in use, or something is mounted on it"),
            error,
        ),
        Errno::INVAL | Errno::NOSYS => Error::caused(
            ErrorKind::Configuration,
            format!("{what}: this file system cannot exchange two directories in one step"),
            error,
        ),
        other => Error::io(what, other.into()),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;
    use crate::config::{Environment, Origin};
    use crate::customer::Customer;

    /// A root of customers with customer 7, who has a file in each site directory.
    struct Bed {
        dir: tempfile::TempDir,
        config: Config,
    }

    impl Bed {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let text = format!(
                "[database]\nurl = 'sqlite:///x.db'\n[repositories.manual]\nlocation = '/r'\npassword_file = '/p'\n\
                 [customers]\nroot = '{}'\n[site]\nstop = ['touch', 'stopped']\nstart = ['touch', 'started']\n",
                dir.path().display()
            );
            let config = Config::read(Origin::Embedded, &text, &Environment::default()).unwrap();
            let bed = Self { dir, config };
            bed.write("customer-7/wordpress/index.php", "old");
            bed.write("customer-7/volumes/files/index.php", "old");
            bed
        }

        fn path(&self, path: &str) -> PathBuf {
            self.dir.path().join(path)
        }

        fn write(&self, path: &str, text: &str) {
            let path = self.path(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }

        fn read(&self, path: &str) -> String {
            std::fs::read_to_string(self.path(path)).unwrap()
        }

        fn customer(&self, id: u32) -> Customer {
            Customer {
                id: CustomerId::new(id).unwrap(),
                status: None,
                db_name: "x".parse().unwrap(),
                db_user: None,
                db_password: None,
                web_port: None,
                server: "default".into(),
            }
        }

        fn site(&self) -> Site {
            Site::open(&self.config, &self.customer(7)).unwrap()
        }

        /// Stage a new version of a site directory.
        fn stage(&self, staging: &Staging, site_dir: &str) -> Staged {
            let place = staging.place(Path::new(site_dir)).unwrap();
            std::fs::write(place.join("index.php"), "new").unwrap();
            std::fs::set_permissions(&place, std::fs::Permissions::from_mode(0o755)).unwrap();
            staging.staged(&self.site(), Path::new(site_dir)).unwrap()
        }
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn what_is_staged_is_not_put_among_the_places_of_what_was_just_removed() {
        let bed = Bed::new();
        let image = tempfile::tempdir().unwrap();
        let (file, ext4) = (image.path().join("ext4"), bed.path(""));
        std::fs::File::create(&file)
            .unwrap()
            .set_len(64 << 20)
            .unwrap();
        let made = std::process::Command::new("mkfs.ext4")
            .args(["-q", "-F"])
            .arg(&file)
            .status();
        if !made.is_ok_and(|status| status.success()) {
            println!(
                "SKIPPED: mkfs.ext4 (package e2fsprogs) is not here, so no file system that has places"
            );
            return;
        }
        let mount = match xtask::mount::Mount::image(&file, &ext4) {
            Ok(mount) => mount,
            Err(error) => {
                println!("SKIPPED: an image of ext4 cannot be mounted by a loop device: {error}");
                return;
            }
        };
        bed.write("customer-7/wordpress/index.php", "old");
        let staging = bed.site().stage(&bed.site().new_staging_name()).unwrap();
        let flags = rustix::fs::ioctl_getflags(&staging.base).unwrap();
        assert!(flags.contains(rustix::fs::IFlags::TOPDIR), "{flags:?}");
        staging.remove().unwrap();
        drop(mount);
    }

    #[test]
    fn a_swap_can_be_repeated_and_undone_and_leaves_nothing() {
        for site_dir in ["wordpress", "volumes/files"] {
            let bed = Bed::new();
            let site = bed.site();
            let live = format!("customer-7/{site_dir}/index.php");
            let staging = site.stage(&site.new_staging_name()).unwrap();
            let staged = bed.stage(&staging, site_dir);
            assert_eq!(bed.read(&live), "old", "staging changes nothing");
            staging.swap_back(&site, &staged).unwrap();
            assert_eq!(
                bed.read(&live),
                "old",
                "undoing what was not done changes nothing"
            );
            for _ in 0..2 {
                staging.swap(&site, &staged).unwrap();
                assert_eq!(bed.read(&live), "new");
                let replaced = staging.replaced(&staged).unwrap().unwrap();
                assert_eq!(
                    std::fs::read_to_string(replaced.join("index.php")).unwrap(),
                    "old"
                );
            }
            for _ in 0..2 {
                staging.swap_back(&site, &staged).unwrap();
                assert_eq!(bed.read(&live), "old");
                assert_eq!(staging.replaced(&staged).unwrap(), None);
            }
            staging.swap(&site, &staged).unwrap();
            staging.remove().unwrap();
            assert_eq!(bed.read(&live), "new");
            assert_eq!(names(&bed.path(BASE)), Vec::<String>::new());
        }
    }

    #[test]
    fn what_was_there_comes_back_although_something_else_took_its_place_since() {
        for site_dir in ["wordpress", "volumes/files"] {
            let bed = Bed::new();
            let site = bed.site();
            let place = bed.path(&format!("customer-7/{site_dir}"));
            let staging = site.stage(&site.new_staging_name()).unwrap();
            let staged = bed.stage(&staging, site_dir);
            staging.swap(&site, &staged).unwrap();
            // A deploy tool, or the customer himself, puts another in the place of what was restored.
            std::fs::rename(&place, bed.path("customer-7/elsewhere")).unwrap();
            std::fs::create_dir(&place).unwrap();
            std::fs::write(place.join("index.php"), "other").unwrap();
            for _ in 0..3 {
                staging.swap_back(&site, &staged).unwrap();
                assert_eq!(std::fs::read(place.join("index.php")).unwrap(), b"old");
            }
            staging.remove().unwrap();
            assert_eq!(std::fs::read(place.join("index.php")).unwrap(), b"old");
        }
    }

    #[test]
    fn a_crash_between_any_two_steps_can_be_taken_up_from_what_a_journal_keeps() {
        let bed = Bed::new();
        let site = bed.site();
        let staging = site.stage(&site.new_staging_name()).unwrap();
        let staged = bed.stage(&staging, "volumes/files");
        let journal = (
            staging.name().to_owned(),
            serde_json::to_string(&staged).unwrap(),
        );
        staging.swap(&site, &staged).unwrap();
        assert_eq!(
            site.reopen_staging(&journal.0).unwrap_err().kind(),
            ErrorKind::Busy
        );
        drop(staging);
        let staging = site.reopen_staging(&journal.0).unwrap();
        let staged: Staged = serde_json::from_str(&journal.1).unwrap();
        staging.swap(&site, &staged).unwrap();
        assert_eq!(bed.read("customer-7/volumes/files/index.php"), "new");
        staging.swap_back(&site, &staged).unwrap();
        assert_eq!(bed.read("customer-7/volumes/files/index.php"), "old");
        staging.remove().unwrap();
        for junk in ["restore-8-0123456789abcdef", "../../etc", "restore-7-x", ""] {
            assert_eq!(
                site.reopen_staging(junk).unwrap_err().kind(),
                ErrorKind::InvalidInput
            );
        }
    }

    #[test]
    fn a_site_directory_that_was_deleted_comes_and_goes_with_the_ones_above_it() {
        let bed = Bed::new();
        std::fs::remove_dir_all(bed.path("customer-7/volumes")).unwrap();
        let site = bed.site();
        let staging = site.stage(&site.new_staging_name()).unwrap();
        let staged = bed.stage(&staging, "volumes/files");
        for _ in 0..2 {
            staging.swap(&site, &staged).unwrap();
            assert_eq!(bed.read("customer-7/volumes/files/index.php"), "new");
            assert_eq!(staging.replaced(&staged).unwrap(), None);
        }
        let made = bed.path("customer-7/volumes").metadata().unwrap();
        let above = bed.path("customer-7").metadata().unwrap();
        assert_eq!(
            (made.uid(), made.gid(), made.mode() & 0o777),
            (above.uid(), above.gid(), 0o755)
        );
        for _ in 0..2 {
            staging.swap_back(&site, &staged).unwrap();
            assert!(!bed.path("customer-7/volumes").exists());
        }
        staging.remove().unwrap();
    }

    #[test]
    fn a_link_in_the_place_of_a_site_directory_is_replaced_and_not_followed() {
        let bed = Bed::new();
        bed.write("outside/index.php", "precious");
        std::fs::remove_dir_all(bed.path("customer-7/wordpress")).unwrap();
        symlink(bed.path("outside"), bed.path("customer-7/wordpress")).unwrap();
        let site = bed.site();
        let staging = site.stage(&site.new_staging_name()).unwrap();
        let staged = bed.stage(&staging, "wordpress");
        staging.swap(&site, &staged).unwrap();
        assert_eq!(bed.read("outside/index.php"), "precious");
        assert!(!bed.path("customer-7/wordpress").is_symlink());
        staging.swap_back(&site, &staged).unwrap();
        assert!(bed.path("customer-7/wordpress").is_symlink());
        staging.swap(&site, &staged).unwrap();
        staging.remove().unwrap();
        assert_eq!(bed.read("outside/index.php"), "precious");
        assert_eq!(bed.read("customer-7/wordpress/index.php"), "new");
    }

    #[test]
    fn a_link_on_the_way_is_refused_and_nothing_changes() {
        let bed = Bed::new();
        bed.write("outside/files/index.php", "precious");
        let site = bed.site();
        let staging = site.stage(&site.new_staging_name()).unwrap();
        let staged = bed.stage(&staging, "volumes/files");
        std::fs::rename(bed.path("customer-7/volumes"), bed.path("customer-7/moved")).unwrap();
        symlink(bed.path("outside"), bed.path("customer-7/volumes")).unwrap();
        assert_eq!(
            staging.swap(&site, &staged).unwrap_err().kind(),
            ErrorKind::Refused
        );
        let late = staging
            .staged(&site, Path::new("volumes/files"))
            .unwrap_err();
        assert_eq!(late.kind(), ErrorKind::Refused);
        assert_eq!(bed.read("outside/files/index.php"), "precious");
        assert_eq!(bed.read("customer-7/moved/files/index.php"), "old");
        staging.remove().unwrap();
    }

    #[test]
    fn a_customer_who_exchanges_directories_for_links_meanwhile_gains_nothing() {
        use std::sync::atomic::{AtomicBool, Ordering};
        let bed = Bed::new();
        bed.write("outside/files/index.php", "precious");
        symlink(bed.path("outside"), bed.path("customer-7/link")).unwrap();
        let site = bed.site();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let dir = site.dir();
                while !done.load(Ordering::Relaxed) {
                    let _ = rustix::fs::renameat_with(
                        dir,
                        "link",
                        dir,
                        "volumes",
                        RenameFlags::EXCHANGE,
                    );
                }
            });
            for _ in 0..300 {
                let staging = site.stage(&site.new_staging_name()).unwrap();
                let place = staging.place(Path::new("volumes/files")).unwrap();
                std::fs::write(place.join("index.php"), "new").unwrap();
                if let Ok(staged) = staging.staged(&site, Path::new("volumes/files"))
                    && staging.swap(&site, &staged).is_ok()
                {
                    // The undo may meet the link; a customer who is stopped cannot keep that up.
                    while staging.swap_back(&site, &staged).is_err() {}
                }
                staging.remove().unwrap();
            }
            done.store(true, Ordering::Relaxed);
        });
        assert_eq!(bed.read("outside/files/index.php"), "precious");
        assert_eq!(names(&bed.path("outside")), ["files"]);
    }

    /// A file system of its own on a directory, for as long as this lives. Takes root, as the product does.
    pub(crate) struct Mounted(PathBuf);

    impl Mounted {
        pub(crate) fn on(dir: PathBuf) -> Self {
            let mount = std::process::Command::new("mount")
                .args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"])
                .arg(&dir)
                .status();
            assert!(mount.unwrap().success());
            Self(dir)
        }
    }

    impl Drop for Mounted {
        fn drop(&mut self) {
            let unmounted = std::process::Command::new("umount").arg(&self.0).status();
            assert!(unmounted.is_ok_and(|status| status.success()));
        }
    }

    #[test]
    fn a_site_on_another_file_system_is_refused_before_anything_changes() {
        let bed = Bed::new();
        let site = bed.site();
        {
            let staging = site.stage(&site.new_staging_name()).unwrap();
            let place = staging.place(Path::new("wordpress")).unwrap();
            let _mounted = Mounted::on(bed.path("customer-7/wordpress"));
            let error = staging.staged(&site, Path::new("wordpress")).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Configuration);
            assert!(error.to_string().contains("another file system"), "{error}");
            assert!(place.exists());
            staging.remove().unwrap();
        }
        {
            let staging = site.stage(&site.new_staging_name()).unwrap();
            let staged = bed.stage(&staging, "wordpress");
            let _mounted = Mounted::on(bed.path("customer-7/wordpress"));
            assert_eq!(
                staging.swap(&site, &staged).unwrap_err().kind(),
                ErrorKind::Busy
            );
            staging.swap_back(&site, &staged).unwrap();
            staging.remove().unwrap();
        }
        assert_eq!(bed.read("customer-7/wordpress/index.php"), "old");
        let _mounted = Mounted::on(bed.path("customer-7"));
        let staging = bed.site().stage(&bed.site().new_staging_name()).unwrap();
        let error = staging.place(Path::new("wordpress")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Configuration);
        staging.remove().unwrap();
        assert!(leftovers(&bed.config).unwrap().is_empty());
    }

    #[test]
    fn what_is_mounted_in_a_tree_is_not_destroyed_with_it() {
        let bed = Bed::new();
        let site = bed.site();
        let staging = site.stage(&site.new_staging_name()).unwrap();
        let place = staging.place(Path::new("wordpress")).unwrap();
        std::fs::create_dir_all(place.join("a/mounted")).unwrap();
        let mounted = Mounted::on(place.join("a/mounted"));
        std::fs::write(place.join("a/mounted/precious"), "x").unwrap();
        std::fs::write(place.join("a/other"), "x").unwrap();
        let name = staging.name().to_owned();
        assert!(staging.remove().is_err());
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let point = table
            .lines()
            .filter_map(|line| line.split(' ').nth(4))
            .find(|point| point.contains(&name))
            .map(PathBuf::from);
        let point = point.expect("still mounted");
        assert_eq!(std::fs::read(point.join("precious")).unwrap(), b"x");
        // The directory above it may have been moved.
        std::mem::forget(mounted);
        drop(Mounted(point));
        site.reopen_staging(&name).unwrap().remove().unwrap();
    }

    #[test]
    fn only_one_restore_of_a_customer_stages_at_a_time() {
        let bed = Bed::new();
        let site = bed.site();
        std::fs::create_dir(bed.path("customer-77")).unwrap();
        let staging = site.stage(&site.new_staging_name()).unwrap();
        assert_eq!(
            site.stage(&site.new_staging_name()).unwrap_err().kind(),
            ErrorKind::Busy
        );
        let other = Site::open(&bed.config, &bed.customer(77)).unwrap();
        other
            .stage(&other.new_staging_name())
            .unwrap()
            .remove()
            .unwrap();
        staging.remove().unwrap();
        site.stage(&site.new_staging_name())
            .unwrap()
            .remove()
            .unwrap();
    }

    #[test]
    fn a_customer_who_is_given_up_is_free_at_once_also_while_a_program_is_started() {
        let bed = Bed::new();
        let claim = bed.site().claim(true).unwrap();
        // As a program has it between its fork and its exec.
        let inherited = rustix::io::dup(&claim.lock).unwrap();
        drop(claim);
        let _next = bed.site().claim(true).unwrap();
        drop(inherited);
    }

    #[test]
    fn a_customer_has_many_backups_or_one_restore_at_a_time() {
        let bed = Bed::new();
        let site = bed.site();
        let refused = |exclusive| {
            let error = bed.site().claim(exclusive).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Busy);
            error.to_string()
        };
        let backups = [site.claim(false).unwrap(), bed.site().claim(false).unwrap()];
        assert_eq!(
            refused(true),
            "a backup or restore of customer 7 is running"
        );
        drop(backups);
        let restore = site.claim(true).unwrap();
        assert_eq!(
            refused(true),
            "a backup or restore of customer 7 is running"
        );
        assert_eq!(refused(false), "a restore of customer 7 is running");
        std::fs::create_dir(bed.path("customer-77")).unwrap();
        let other = Site::open(&bed.config, &bed.customer(77)).unwrap();
        let _other = other.claim(true).unwrap();
        // The restore itself stages, and nobody takes its lock for something that was left.
        site.stage(&site.new_staging_name())
            .unwrap()
            .remove()
            .unwrap();
        assert!(leftovers(&bed.config).unwrap().is_empty());
        drop(restore);
        let _backup = site.claim(false).unwrap();
    }

    #[test]
    fn only_root_can_reach_the_lock_of_a_customer_and_no_link_leads_it_away() {
        let bed = Bed::new();
        drop(bed.site().claim(true).unwrap());
        let lock = bed.path(BASE).join("customer-7.lock");
        assert_eq!(lock.metadata().unwrap().mode() & 0o777, 0o600);
        std::fs::remove_file(&lock).unwrap();
        symlink(bed.path("elsewhere"), &lock).unwrap();
        bed.site().claim(true).unwrap_err();
        assert!(!bed.path("elsewhere").exists());
        std::fs::set_permissions(bed.path(BASE), std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(
            bed.site().claim(true).unwrap_err().kind(),
            ErrorKind::Refused
        );
    }

    #[test]
    fn only_real_directories_are_present() {
        let bed = Bed::new();
        let all = ["wordpress", "volumes/files"].map(PathBuf::from);
        let present = || bed.site().present_dirs(&all).unwrap();
        assert_eq!(present(), all);
        bed.write("outside/files/index.php", "x");
        std::fs::remove_dir_all(bed.path("customer-7/volumes")).unwrap();
        assert_eq!(present(), all[..1]);
        symlink(bed.path("outside"), bed.path("customer-7/volumes")).unwrap();
        assert_eq!(present(), all[..1], "a link on the way");
        std::fs::remove_dir_all(bed.path("customer-7/wordpress")).unwrap();
        symlink(bed.path("outside"), bed.path("customer-7/wordpress")).unwrap();
        assert!(present().is_empty(), "a link itself");
        std::fs::remove_file(bed.path("customer-7/wordpress")).unwrap();
        bed.write("customer-7/wordpress", "a file");
        assert!(present().is_empty());
    }

    #[test]
    fn a_killed_restore_leaves_what_can_be_told_and_removed() {
        let bed = Bed::new();
        assert!(leftovers(&bed.config).unwrap().is_empty());
        let site = bed.site();
        let staging = site.stage(&site.new_staging_name()).unwrap();
        let found = leftovers(&bed.config).unwrap();
        assert!(found.len() == 1 && found[0].in_use && found[0].path == staging.path());
        let staged = bed.stage(&staging, "wordpress");
        assert!(!leftovers(&bed.config).unwrap()[0].exchanged);
        staging.swap(&site, &staged).unwrap();
        assert!(leftovers(&bed.config).unwrap()[0].exchanged);
        assert_eq!(
            remove_leftover(&bed.config, &found[0]).unwrap_err().kind(),
            ErrorKind::Busy
        );
        drop(staging);
        let found = leftovers(&bed.config).unwrap();
        assert!(!found[0].in_use && found[0].customer.get() == 7);
        for _ in 0..2 {
            remove_leftover(&bed.config, &found[0]).unwrap();
        }
        assert!(leftovers(&bed.config).unwrap().is_empty());
    }

    #[test]
    fn a_staging_directory_that_others_can_enter_is_refused() {
        let bed = Bed::new();
        std::fs::create_dir(bed.path(BASE)).unwrap();
        std::fs::set_permissions(bed.path(BASE), std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(
            bed.site()
                .stage(&bed.site().new_staging_name())
                .unwrap_err()
                .kind(),
            ErrorKind::Refused
        );
        std::fs::remove_dir(bed.path(BASE)).unwrap();
        symlink("/tmp", bed.path(BASE)).unwrap();
        assert_eq!(
            bed.site()
                .stage(&bed.site().new_staging_name())
                .unwrap_err()
                .kind(),
            ErrorKind::Refused
        );
        assert_eq!(
            try_exchange(&bed.config).unwrap_err().kind(),
            ErrorKind::Refused
        );
    }

    #[test]
    fn trying_an_exchange_leaves_nothing() {
        let bed = Bed::new();
        let before = names(&bed.config.customers.root);
        assert!(try_exchange(&bed.config).unwrap().bytes_available > 0);
        assert_eq!(names(&bed.config.customers.root), before);
        std::fs::create_dir(bed.path(BASE)).unwrap();
        std::fs::set_permissions(bed.path(BASE), std::fs::Permissions::from_mode(0o700)).unwrap();
        try_exchange(&bed.config).unwrap();
        assert_eq!(names(&bed.path(BASE)), Vec::<String>::new());
    }

    #[test]
    fn the_directories_of_others_are_never_a_customers() {
        let bed = Bed::new();
        let open = |id: u32| Site::open(&bed.config, &bed.customer(id));
        let missing = open(70).unwrap_err();
        assert_eq!(missing.kind(), ErrorKind::NotFound);
        assert!(
            missing
                .to_string()
                .starts_with("customer 70 has no directory /"),
            "{missing}"
        );
        symlink("customer-7", bed.path("customer-8")).unwrap();
        assert_eq!(open(8).unwrap_err().kind(), ErrorKind::Refused);
        bed.write("customer-9", "a file");
        assert_eq!(open(9).unwrap_err().kind(), ErrorKind::Refused);
    }

    #[test]
    fn a_site_is_stopped_and_started_in_its_directory() {
        use crate::progress::Cancel;
        let bed = Bed::new();
        let site = bed.site();
        site.stop(&Cancel::new()).unwrap();
        assert!(bed.path("customer-7/stopped").exists());
        let cancelled = Cancel::new();
        cancelled.cancel();
        assert_eq!(
            site.stop(&cancelled).unwrap_err().kind(),
            ErrorKind::Cancelled
        );
        site.start().unwrap();
        assert!(bed.path("customer-7/started").exists());
        assert!(site.bytes_available().unwrap() > 0);
    }
}
