//! Making a repository where none is.
//!
//! Several may do so at the same place at once, and each may stand still for any time between two steps. Never: success told of a repository that cannot
//! be opened from what is stored; the key of a repository that is there removed; a repository taken back that somebody uses.
//!
//! A repository is made in memory first: a key file, and a `config` that this key alone opens. Then:
//!
//! 1. *Claim.* Whoever sees neither a `config` nor a key writes his key, and goes on once it is the only one that is listed. Of two who write at once
//!    the later one to list sees both; the one whose key has the larger name takes it back, the other waits for that. So one goes on; the rest see his
//!    key and wait, then his `config`, and give way.
//! 2. *Stale keys.* A key that stays alone for [`STALE_AFTER`] is what an `init` left that was interrupted: it would open the new repository with a
//!    master key that does not fit, so it goes. Its owner may be slow, not dead: a look for his `config` comes right before, and another right after the
//!    removal. If it came between the two, the key goes back to its place; if it comes later, step 4 of its owner finds the key missing.
//! 3. *Commit.* The `config` is written where none is. The storage lets one do that, however late: a second one, whose key was taken for stale, gives way.
//! 4. *Proof.* Whoever wrote the `config` writes his key again if it was taken for stale, waits until those who came late have taken theirs back, and
//!    opens what is stored. Only then success is told.
//!
//! From the commit on others may open the repository, add keys of theirs and write backups, while its proof is still under way:
//!
//! - A key of another that stays for [`STALE_AFTER`] is tried with our `config`, in memory. It goes if our password opens it and the `config` does not open
//!   with it, or if it is no key at all: that is what one left who came late and died, and it keeps everybody out. Any other stays: one that fits is of
//!   somebody who opened the repository, and one of another password may be; neither is in the way.
//! - What is stored and cannot be opened is taken back only where nobody can have opened it, as far as can be told: our key is not as it was written, no key
//!   of another stays, and there is no snapshot, index, pack or lock. Otherwise nothing is removed, and the error says why. What is left is somebody who
//!   opened the repository before our key was spoilt, and takes his first lock after that look.
//!
//! Where a storage cannot write a file only if there is none (some object stores), step 1 alone keeps two apart: it does, unless the commit of one
//! takes longer than [`STALE_AFTER`]. And a late key whose owner dies before he takes it back stays.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustic_core::repofile::MasterKey;
use rustic_core::{ConfigOptions, Credentials, KeyOptions};
use secrecy::SecretString;

use super::bridge::{Bridge, from_rustic};
use super::key::seal_key;
use super::{PACK_BYTES, Repository, connect, guarded};
use crate::error::{Error, ErrorKind, Result};
use crate::progress::Cancel;
use crate::storage::{FileId, FileKind, Storage};

/// How long a key may be there without a `config`: from the one to the other an `init` takes three requests.
const STALE_AFTER: Duration = Duration::from_secs(5);

/// How often whoever waits for others looks again.
const POLL: Duration = Duration::from_millis(50);

/// How often it is tried to open what was made.
const TRIES: u32 = 3;

/// See [`Repository::init`].
pub(super) fn init(storage: Arc<dyn Storage>, password: &SecretString) -> Result<Repository> {
    refuse_beside_a_config(&*storage)?;
    refuse_beside_backups(&*storage)?;
    let founder = Founder::new(storage, password)?;
    founder.storage.create()?;
    founder.claim()?;
    founder.commit()?;
    founder.prove(password)
}

fn refuse_beside_a_config(storage: &dyn Storage) -> Result<()> {
    match Repository::exists(storage)? {
        true => Err(there_is_one(storage)),
        false => Ok(()),
    }
}

fn there_is_one(storage: &dyn Storage) -> Error {
    Error::new(
        ErrorKind::Busy,
        format!("there is a repository at {} already", storage.location()),
    )
}

/// Where there is anything but keys, the config was lost, and the key is all there is to get the rest back.
fn refuse_beside_backups(storage: &dyn Storage) -> Result<()> {
    for kind in [FileKind::Snapshot, FileKind::Index, FileKind::Pack] {
        if !list(storage, kind)?.is_empty() {
            return Err(Error::new(
                ErrorKind::Damaged,
                format!(
                    "there are backups at {} but the file `config` is missing: bring it back from a copy",
                    storage.location()
                ),
            ));
        }
    }
    Ok(())
}

fn is_away(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Unreachable | ErrorKind::Cancelled)
}

fn list(storage: &dyn Storage, kind: FileKind) -> Result<BTreeSet<FileId>> {
    match storage.list(kind) {
        Ok(files) => Ok(files.into_iter().map(|(id, _)| id).collect()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(BTreeSet::new()),
        Err(error) => Err(error),
    }
}

/// Whoever makes a repository, with what he will write.
struct Founder {
    storage: Arc<dyn Storage>,
    /// That of the repository.
    id: String,
    key_id: FileId,
    key: Bytes,
    config: Bytes,
}

impl Founder {
    fn new(storage: Arc<dyn Storage>, password: &SecretString) -> Result<Self> {
        let failed = || format!("cannot create a repository at {}", storage.location());
        let config = ConfigOptions::default()
            .set_version(2u32)
            .set_datapack_size(bytesize::ByteSize(PACK_BYTES))
            .set_datapack_growfactor(0u32)
            .set_treepack_growfactor(0u32);
        let draft = Arc::new(Draft::default());
        let rustic = connect(&Arc::new(Bridge::new(
            Arc::clone(&draft) as _,
            Arc::default(),
        )))?;
        let master = MasterKey::new();
        let (key_id, key) = seal_key(&master, password)?;
        let credentials = Credentials::Masterkey(master);
        let made = guarded(|| rustic.init(&credentials, &KeyOptions::default(), &config))?
            .map_err(|error| from_rustic(failed(), error))?;
        let written = draft.written();
        let [(FileKind::Config, _, config)] = written.as_slice() else {
            return Err(Error::new(ErrorKind::Failed, failed()));
        };
        Ok(Self {
            storage,
            id: made.config().id.to_hex().as_str().to_owned(),
            key_id,
            key,
            config: config.clone(),
        })
    }

    /// Until ours is the only key.
    fn claim(&self) -> Result<()> {
        let mut strangers = Strangers::default();
        loop {
            let (is_ours_there, others) = self.keys()?;
            self.give_way_to_a_config()?;
            match (is_ours_there, others.first()) {
                (true, None) => return Ok(()),
                (false, None) => {
                    self.write_key()?;
                    continue;
                }
                (true, Some(other)) if *other < self.key_id => self.take_key_back()?,
                _ => {}
            }
            for stale in strangers.stale(&others) {
                self.remove_stale(&stale)?;
            }
            thread::sleep(POLL);
        }
    }

    fn commit(&self) -> Result<()> {
        let written = self.storage.write(
            FileKind::Config,
            &FileId::default(),
            std::slice::from_ref(&self.config),
        );
        match written {
            Err(error) if error.kind() == ErrorKind::Busy => {
                self.take_key_back()?;
                Err(there_is_one(&*self.storage))
            }
            // It may be there all the same, or come yet: the key stays, as that of an `init` that was interrupted.
            outcome => outcome,
        }
    }

    /// Open what is stored. Ours is the `config`: so other keys than ours are of those who come late, of the dead, or of those who use the repository already.
    fn prove(&self, password: &SecretString) -> Result<Repository> {
        let mut strangers = Strangers::default();
        let mut harmless: BTreeSet<FileId> = BTreeSet::new();
        let mut tries = 0;
        loop {
            let (is_ours_there, mut others) = self.keys()?;
            if !self.is_config_ours()? {
                self.take_key_back()?;
                return Err(there_is_one(&*self.storage));
            }
            if !is_ours_there {
                self.write_key()?;
                continue;
            }
            others.retain(|id| !harmless.contains(id));
            for stale in strangers.stale(&others) {
                let Some(key) = self.read_key(&stale)? else {
                    continue;
                };
                if self.is_in_the_way(&stale, key, password) {
                    self.storage.remove(FileKind::Key, &stale)?;
                } else {
                    harmless.insert(stale);
                }
            }
            if others.is_empty() {
                tries += 1;
                match Repository::open(Arc::clone(&self.storage), password) {
                    Ok(repository) if repository.id() == self.id => return Ok(repository),
                    // Somebody else's: it shows above.
                    Ok(_) => {}
                    // The key of one who is late may have come since.
                    Err(error) if tries < TRIES && !is_away(&error) => {}
                    Err(error) => return Err(self.failed(error, !harmless.is_empty())),
                }
            }
            thread::sleep(POLL);
        }
    }

    /// Whether somebody who opens the repository with our password may come to this key, which does not open it.
    fn is_in_the_way(&self, id: &FileId, key: Bytes, password: &SecretString) -> bool {
        let config = (FileKind::Config, FileId::default(), self.config.clone());
        let draft = Draft(Mutex::new(vec![config, (FileKind::Key, *id, key)]));
        match Repository::open(Arc::new(draft), password) {
            Ok(_) => false,
            // It is of another password, so nobody with ours comes any further with it.
            Err(error) => error.kind() != ErrorKind::Refused,
        }
    }

    /// What is merely away will be there again; what is wrong is taken back, unless it may be of use to somebody.
    fn failed(&self, error: Error, has_guests: bool) -> Error {
        let stays = match is_away(&error) {
            true => Ok(None),
            false => self.take_all_back(has_guests),
        };
        let stays = stays.unwrap_or_else(|problem| {
            tracing::warn!(
                "what was made of a repository stays behind: {}",
                problem.chain()
            );
            None
        });
        let location = self.storage.location();
        error.context(match stays {
            None => format!("the new repository at {location} cannot be opened: run `init` again"),
            Some(why) => format!(
                "the new repository at {location} cannot be opened, and nothing of it was removed, for {why}: mend what is named, then run `init` again"
            ),
        })
    }

    /// The config first: without its key it would be in the way. Or why all of it stays.
    fn take_all_back(&self, has_guests: bool) -> Result<Option<&'static str>> {
        let why = self.why_it_stays(has_guests)?;
        if why.is_none() {
            if self.is_config_ours()? {
                self.storage.remove(FileKind::Config, &FileId::default())?;
            }
            self.take_key_back()?;
        }
        Ok(why)
    }

    /// The lock is looked for last: whoever begins to use the repository meanwhile has it.
    fn why_it_stays(&self, has_guests: bool) -> Result<Option<&'static str>> {
        if has_guests {
            return Ok(Some("others have keys there"));
        }
        if self.read_key(&self.key_id)?.as_ref() == Some(&self.key) {
            return Ok(Some(
                "its key is as it was written, so others may have opened it",
            ));
        }
        for (kind, why) in [
            (FileKind::Snapshot, "there are snapshots in it"),
            (FileKind::Index, "there are index files in it"),
            (FileKind::Pack, "there are packs in it"),
            (FileKind::Lock, "somebody has locked it"),
        ] {
            if !list(&*self.storage, kind)?.is_empty() {
                return Ok(Some(why));
            }
        }
        Ok(None)
    }

    fn give_way_to_a_config(&self) -> Result<()> {
        refuse_beside_a_config(&*self.storage).or_else(|refused| {
            if refused.kind() == ErrorKind::Busy {
                self.take_key_back()?;
            }
            Err(refused)
        })
    }

    /// Whether our key is there, and all others.
    fn keys(&self) -> Result<(bool, BTreeSet<FileId>)> {
        let mut keys = list(&*self.storage, FileKind::Key)?;
        let is_ours_there = keys.remove(&self.key_id);
        Ok((is_ours_there, keys))
    }

    fn is_config_ours(&self) -> Result<bool> {
        match self.storage.read(FileKind::Config, &FileId::default()) {
            Ok(config) => Ok(config == self.config),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// None: it was taken back since it was listed.
    fn read_key(&self, id: &FileId) -> Result<Option<Bytes>> {
        match self.storage.read(FileKind::Key, id) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            read => read.map(Some),
        }
    }

    fn write_key(&self) -> Result<()> {
        let key = std::slice::from_ref(&self.key);
        self.storage.write(FileKind::Key, &self.key_id, key)
    }

    /// It fits our config alone, which is not there and will not come.
    fn take_key_back(&self) -> Result<()> {
        self.storage.remove(FileKind::Key, &self.key_id)
    }

    /// Remove the key of an interrupted `init`, unless its config comes at the last moment.
    fn remove_stale(&self, id: &FileId) -> Result<()> {
        let Some(key) = self.read_key(id)? else {
            return Ok(());
        };
        self.give_way_to_a_config()?;
        self.storage.remove(FileKind::Key, id)?;
        match Repository::exists(&*self.storage) {
            Ok(false) => Ok(()),
            there_or_unknown => {
                self.storage.write(FileKind::Key, id, &[key])?;
                there_or_unknown?;
                self.give_way_to_a_config()
            }
        }
    }
}

/// The keys of others, and since when they are known.
#[derive(Default)]
struct Strangers(BTreeMap<FileId, Instant>);

impl Strangers {
    /// Those of these that have been there for too long.
    fn stale(&mut self, keys: &BTreeSet<FileId>) -> Vec<FileId> {
        self.0.retain(|id, _| keys.contains(id));
        let mut stale = Vec::new();
        for id in keys {
            let since = self.0.entry(*id).or_insert_with(Instant::now);
            if since.elapsed() >= STALE_AFTER {
                stale.push(*id);
            }
        }
        stale
    }
}

/// A repository in memory alone. Takes what rustic writes of a new one, for us to write in our order, or has a `config` and a key, to see whether they fit.
#[derive(Default)]
struct Draft(Mutex<Vec<(FileKind, FileId, Bytes)>>);

impl Draft {
    fn written(&self) -> Vec<(FileKind, FileId, Bytes)> {
        let written = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        written.clone()
    }
}

impl fmt::Debug for Draft {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Draft").finish_non_exhaustive()
    }
}

impl Storage for Draft {
    fn location(&self) -> &str {
        "memory"
    }

    fn create(&self) -> Result<()> {
        Ok(())
    }

    fn list(&self, wanted: FileKind) -> Result<Vec<(FileId, u64)>> {
        let written = self.written().into_iter();
        Ok(written
            .filter(|(kind, ..)| *kind == wanted)
            .map(|(_, id, content)| (id, content.len() as u64))
            .collect())
    }

    fn read(&self, wanted: FileKind, id: &FileId) -> Result<Bytes> {
        let mut written = self.written().into_iter();
        written
            .find(|(kind, name, _)| *kind == wanted && name == id)
            .map(|(.., content)| content)
            .ok_or_else(nothing_there)
    }

    fn read_range(&self, _: FileKind, _: &FileId, _: u64, _: u64) -> Result<Bytes> {
        Err(nothing_there())
    }

    fn write(&self, kind: FileKind, id: &FileId, content: &[Bytes]) -> Result<()> {
        let mut written = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        written.push((kind, *id, content.concat().into()));
        Ok(())
    }

    fn remove(&self, _kind: FileKind, _id: &FileId) -> Result<()> {
        Err(nothing_there())
    }

    fn with_stop(&self, _stop: &Cancel) -> Arc<dyn Storage> {
        Arc::new(Self(Mutex::new(self.written())))
    }
}

fn nothing_there() -> Error {
    Error::new(
        ErrorKind::NotFound,
        "a repository in memory has no such file, and none to remove",
    )
}
