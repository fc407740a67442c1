//! A place apart from all sites, where backups are restored to see whether they can be.
//!
//! Only its owner can enter it. One process at a time holds it, by a lock of the kernel that ends with the process: so whatever is found in it by whoever has just taken
//! hold of it is of a process that died. Never: anything removed that was not made here; a link followed.

use std::ffi::OsStr;
use std::fs::{DirBuilder, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::{dirs, remove};
use crate::customer::CustomerId;
use crate::error::{Error, ErrorKind, Result};

/// In a room: what is restored. The room itself stays private, whatever becomes of the mode of this one.
const FILES: &str = "files";

/// In a room: the name of the schema that a dump is imported into, as a line. Written before there is one.
const SCHEMA: &str = "schema";

/// In a room: that schema was made here, so whatever is in it is ours.
const MADE: &str = "schema-made";

/// The place, held.
#[derive(Debug)]
pub struct Scratch {
    dir: OwnedFd,
    path: PathBuf,
}

/// A directory in it for one customer. Dropping it removes nothing.
#[derive(Debug)]
pub struct ScratchRoom {
    /// Its name.
    pub name: String,
    /// Whose backup it is for.
    pub customer: CustomerId,
}

/// A schema that was written down in a room.
#[derive(Debug, PartialEq, Eq)]
pub struct NotedSchema {
    /// Its name.
    pub name: String,
    /// Whether it is known that it was made here. Until then one of this name may be somebody else's.
    pub is_made: bool,
}

impl Scratch {
    /// Take hold of it; it is made where it is missing. [`ErrorKind::Busy`] while another process has it, [`ErrorKind::Refused`] where others can enter it.
    pub fn hold(path: &Path) -> Result<Self> {
        let failed = |e: std::io::Error| {
            Error::io(format!("cannot use the directory {}", path.display()), e)
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(failed)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = rustix::fs::open(path, flags, Mode::empty()).map_err(|e| failed(e.into()))?;
        let stat = rustix::fs::fstat(&dir).map_err(|e| failed(e.into()))?;
        if stat.st_uid != rustix::process::geteuid().as_raw() || stat.st_mode & 0o077 != 0 {
            return Err(Error::new(
                ErrorKind::Refused,
                format!(
                    "{} must be a directory that is open to nobody but the user this runs as (owner, mode 700)",
                    path.display()
                ),
            ));
        }
        match rustix::fs::flock(&dir, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self {
                dir,
                path: path.to_owned(),
            }),
            Err(Errno::WOULDBLOCK) => Err(Error::new(
                ErrorKind::Busy,
                format!(
                    "another process is proving backups in {}: wait until it has ended",
                    path.display()
                ),
            )),
            Err(other) => Err(failed(other.into())),
        }
    }

    /// What processes left that died.
    pub fn leftovers(&self) -> Result<Vec<ScratchRoom>> {
        let failed = |e: Errno| Error::io(format!("cannot read {}", self.path.display()), e.into());
        let mut found = Vec::new();
        for name in dirs::names(&self.dir).map_err(failed)? {
            let name = name.map_err(failed)?;
            let Some(name) = name.to_str() else { continue };
            if let Some(customer) = customer_of(name) {
                found.push(ScratchRoom {
                    name: name.to_owned(),
                    customer,
                });
            }
        }
        Ok(found)
    }

    /// A new room for a customer: from now on it is known that something of his may be there.
    pub fn make_room(&self, customer: CustomerId) -> Result<ScratchRoom> {
        let name = format!("{}-{:08x}", customer.tag(), rand::random::<u32>());
        let failed = |e: Errno| {
            Error::io(
                format!("cannot make a directory in {}", self.path.display()),
                e.into(),
            )
        };
        dirs::spread(&self.dir);
        rustix::fs::mkdirat(&self.dir, &name, Mode::RWXU).map_err(failed)?;
        rustix::fs::fsync(&self.dir).map_err(failed)?;
        Ok(ScratchRoom { name, customer })
    }

    /// The empty directory in a room that files are restored into.
    pub fn files(&self, room: &ScratchRoom) -> Result<OwnedFd> {
        dirs::open_dir(&self.dir, &room.name)
            .and_then(|dir| {
                rustix::fs::mkdirat(&dir, FILES, Mode::RWXU)?;
                dirs::open_dir(&dir, FILES)
            })
            .map_err(|e| self.failed(room, "use", e))
    }

    /// Write down, before it is made, what the schema is called that goes with a room.
    pub fn note_schema(&self, room: &ScratchRoom, schema: &str) -> Result<()> {
        self.note(room, SCHEMA, &format!("{schema}\n"))
    }

    /// Write down that it was made.
    pub fn note_schema_made(&self, room: &ScratchRoom) -> Result<()> {
        self.note(room, MADE, "")
    }

    fn note(&self, room: &ScratchRoom, name: &str, text: &str) -> Result<()> {
        const NEW: OFlags = OFlags::WRONLY
            .union(OFlags::CREATE)
            .union(OFlags::EXCL)
            .union(OFlags::CLOEXEC);
        let write = || {
            let dir = dirs::open_dir(&self.dir, &room.name)?;
            let note = rustix::fs::openat(&dir, name, NEW, Mode::RUSR | Mode::WUSR)?;
            let mut note = File::from(note);
            note.write_all(text.as_bytes())?;
            note.sync_all()?;
            Ok(rustix::fs::fsync(&dir)?)
        };
        write().map_err(|e: std::io::Error| self.failed(room, "use", e))
    }

    /// The schema that was written down in a room.
    pub fn noted_schema(&self, room: &ScratchRoom) -> Result<Option<NotedSchema>> {
        const EXISTING: OFlags = OFlags::RDONLY
            .union(OFlags::NOFOLLOW)
            .union(OFlags::CLOEXEC);
        let read = || {
            let dir = dirs::open_dir(&self.dir, &room.name)?;
            let note = match rustix::fs::openat(&dir, SCHEMA, EXISTING, Mode::empty()) {
                Err(Errno::NOENT) => return Ok(None),
                note => note?,
            };
            let mut text = String::new();
            File::from(note).read_to_string(&mut text)?;
            // Who died while he wrote it had not made one yet.
            let Some(name) = text.strip_suffix('\n') else {
                return Ok(None);
            };
            Ok(Some(NotedSchema {
                name: name.to_owned(),
                is_made: dirs::stat(&dir, MADE)?.is_some(),
            }))
        };
        read().map_err(|e: std::io::Error| self.failed(room, "look into", e))
    }

    /// Destroy a room with all that is in it.
    pub fn remove(&self, room: &ScratchRoom) -> Result<()> {
        remove::remove_tree(&self.dir, OsStr::new(&room.name))
            .map_err(|e| self.failed(room, "remove", e))
    }

    /// Destroy what is in a room, which itself stays for others to find.
    pub fn empty(&self, room: &ScratchRoom) -> Result<()> {
        dirs::open_dir(&self.dir, &room.name)
            .and_then(|dir| remove::remove_tree(&dir, OsStr::new(FILES)))
            .map_err(|e| self.failed(room, "remove what is in", e))
    }

    /// The bytes that are free there.
    pub fn bytes_available(&self) -> Result<u64> {
        dirs::bytes_available(&self.dir).map_err(|e| {
            Error::io(
                format!("cannot tell the free space of {}", self.path.display()),
                e.into(),
            )
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn failed(&self, room: &ScratchRoom, what: &str, error: impl Into<std::io::Error>) -> Error {
        Error::io(
            format!("cannot {what} {}", self.path.join(&room.name).display()),
            error.into(),
        )
    }
}

/// Of a name that was made here, and of no other.
fn customer_of(name: &str) -> Option<CustomerId> {
    let (customer, digits) = name.rsplit_once('-')?;
    let is_ours = digits.len() == 8
        && digits
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    CustomerId::from_tag(customer).filter(|_| is_ours)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn one_at_a_time_has_it_and_finds_what_the_dead_left_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state/verify");
        let scratch = Scratch::hold(&path).unwrap();
        assert_eq!(Scratch::hold(&path).unwrap_err().kind(), ErrorKind::Busy);
        let room = scratch.make_room(CustomerId::new(7).unwrap()).unwrap();
        drop(scratch.files(&room).unwrap());
        fs::write(path.join(&room.name).join("files/x"), "x").unwrap();
        for strange in [
            "customer-7",
            "customer-7-0123456",
            "mine",
            "customer-0-01234567",
        ] {
            fs::create_dir(path.join(strange)).unwrap();
        }
        drop(scratch);

        let scratch = Scratch::hold(&path).unwrap();
        let left = scratch.leftovers().unwrap();
        assert_eq!(left.len(), 1);
        assert_eq!(left[0].name, room.name);
        assert_eq!(scratch.noted_schema(&left[0]).unwrap(), None);
        let note = path.join(&room.name).join("schema");
        fs::write(&note, "customer_7__pr").unwrap();
        assert_eq!(scratch.noted_schema(&left[0]).unwrap(), None);
        fs::remove_file(&note).unwrap();
        let noted = |is_made| {
            let name = "customer_7__proof_0123abcd".to_owned();
            Some(NotedSchema { name, is_made })
        };
        scratch
            .note_schema(&left[0], "customer_7__proof_0123abcd")
            .unwrap();
        assert_eq!(scratch.noted_schema(&left[0]).unwrap(), noted(false));
        scratch.note_schema_made(&left[0]).unwrap();
        assert_eq!(scratch.noted_schema(&left[0]).unwrap(), noted(true));
        scratch.empty(&left[0]).unwrap();
        assert_eq!(scratch.leftovers().unwrap().len(), 1);
        scratch.remove(&left[0]).unwrap();
        assert!(scratch.leftovers().unwrap().is_empty());
        assert_eq!(fs::read_dir(&path).unwrap().count(), 4);
    }

    #[test]
    fn a_place_that_others_can_enter_or_a_link_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let open = dir.path().join("open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(Scratch::hold(&open).unwrap_err().kind(), ErrorKind::Refused);
        fs::set_permissions(&open, fs::Permissions::from_mode(0o700)).unwrap();
        symlink(&open, dir.path().join("link")).unwrap();
        Scratch::hold(&dir.path().join("link")).unwrap_err();
        Scratch::hold(&open).unwrap();
    }
}
