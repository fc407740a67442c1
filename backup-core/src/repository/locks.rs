//! Restic's lock files: ours are written, others' are honoured, so that no program removes what another is using.
//!
//! A shared lock is taken by everything that reads or adds, an exclusive one by what removes packs. A lock is written first and
//! the others are looked at afterwards: of two that start at once, at least one sees the other. Never: a commit, or the start of a
//! removal, under a lock that is gone or that others may call stale.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use rustix::process::Pid;
use serde::{Deserialize, Serialize};

use super::blobs::in_parallel;
use super::seal::Sealer;
use super::stragglers::Stragglers;
use crate::error::{Error, ErrorKind, Result};
use crate::storage::{FileId, FileKind, Storage};

/// Restic refreshes every five minutes and calls a lock stale after thirty.
const REFRESH_EVERY: Duration = Duration::from_secs(5 * 60);
const STALE_AFTER: SignedDuration = SignedDuration::from_mins(30);
/// How long a lock file may be half written.
const UNREADABLE_PAUSE: Duration = Duration::from_secs(2);
/// How often the locks are listed while one that just came is gone again each time.
const LOOKS_MAX: usize = 8;
/// A lock of ours that is older is not trusted at a commit: what it protected may be gone.
const TRUSTED_FOR: Duration = Duration::from_secs(25 * 60);

/// What a lock file says.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[non_exhaustive]
pub struct LockInfo {
    /// When it was made or last refreshed.
    pub time: Timestamp,
    /// Whether nobody else may use the repository meanwhile.
    pub exclusive: bool,
    /// The machine it was made on.
    #[serde(default)]
    pub hostname: String,
    /// The user who made it.
    #[serde(default)]
    pub username: String,
    /// The process that holds it.
    #[serde(default)]
    pub pid: i64,
    /// The user id of that process.
    #[serde(default)]
    pub uid: u32,
    /// The group id of that process.
    #[serde(default)]
    pub gid: u32,
}

impl LockInfo {
    fn of_this_process(exclusive: bool) -> Self {
        Self {
            time: Timestamp::now(),
            exclusive,
            hostname: super::hostname(),
            username: super::username(),
            pid: rustix::process::getpid().as_raw_nonzero().get().into(),
            uid: rustix::process::getuid().as_raw(),
            gid: rustix::process::getgid().as_raw(),
        }
    }

    /// Whether its owner is surely gone: too old, or a process of this machine that does not exist.
    pub fn is_stale(&self) -> bool {
        if Timestamp::now().duration_since(self.time) > STALE_AFTER {
            return true;
        }
        self.hostname == super::hostname() && !process_exists(self.pid)
    }
}

impl fmt::Display for LockInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.exclusive {
            "exclusive"
        } else {
            "shared"
        };
        let stale = if self.is_stale() { ", stale" } else { "" };
        write!(
            f,
            "{kind} lock of process {} of {} on {} since {}{stale}",
            self.pid, self.username, self.hostname, self.time
        )
    }
}

fn process_exists(pid: i64) -> bool {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
        return false;
    };
    // No permission to signal it: it is there.
    !matches!(
        rustix::process::test_kill_process(pid),
        Err(rustix::io::Errno::SRCH)
    )
}

/// A lock that is held until it is dropped, and refreshed meanwhile.
#[derive(Debug)]
pub struct Lock {
    held: Arc<Held>,
    refresher: Option<JoinHandle<()>>,
}

/// Who removes a lock when its own operation is not to wait for that any more.
#[derive(Debug, Clone)]
pub(super) struct Patient {
    /// Waits an outage out.
    pub(super) storage: Arc<dyn Storage>,
    pub(super) stragglers: Stragglers,
}

#[derive(Debug)]
struct Held {
    storage: Arc<dyn Storage>,
    patient: Patient,
    sealer: Arc<Sealer>,
    exclusive: bool,
    current: Mutex<Current>,
    released: AtomicBool,
    wake: Condvar,
}

#[derive(Debug)]
struct Current {
    id: FileId,
    written: Instant,
    /// The same moment by the clock that others judge by: it goes on while this machine sleeps.
    written_at: Timestamp,
}

impl Current {
    fn now(id: FileId) -> Self {
        Self {
            id,
            written: Instant::now(),
            written_at: Timestamp::now(),
        }
    }
}

impl Lock {
    /// Take a lock, or fail with [`ErrorKind::Busy`] naming who is in the way.
    pub(super) fn acquire(
        storage: &Arc<dyn Storage>,
        patient: Patient,
        sealer: &Arc<Sealer>,
        exclusive: bool,
    ) -> Result<Self> {
        let mine = LockInfo::of_this_process(exclusive);
        let id = write(&**storage, sealer, &mine)?;
        let mut lock = Self {
            held: Arc::new(Held {
                storage: Arc::clone(storage),
                patient,
                sealer: Arc::clone(sealer),
                exclusive,
                current: Mutex::new(Current::now(id)),
                released: AtomicBool::new(false),
                wake: Condvar::new(),
            }),
            refresher: None,
        };
        // From here on a failure removes it: the guard is dropped.
        refuse_if_taken(&**storage, sealer, &id, exclusive)?;
        let held = Arc::clone(&lock.held);
        let refresher = std::thread::Builder::new()
            .name("lock-refresh".into())
            .spawn(move || held.keep_fresh())
            .map_err(|error| Error::io("cannot start the thread that refreshes the lock", error))?;
        lock.refresher = Some(refresher);
        Ok(lock)
    }

    /// Fails when the lock is gone, or was not refreshed for so long that others may have ignored it.
    pub(super) fn require_held(&self) -> Result<()> {
        let (id, unrefreshed) = {
            let current = self.held.current();
            let asleep = Timestamp::now()
                .duration_since(current.written_at)
                .unsigned_abs();
            (current.id, current.written.elapsed().max(asleep))
        };
        let is_there = self
            .held
            .storage
            .list(FileKind::Lock)?
            .iter()
            .any(|(listed, _)| *listed == id);
        if unrefreshed > TRUSTED_FOR || !is_there {
            return Err(Error::new(
                ErrorKind::Unreachable,
                "the repository's lock was lost or could not be refreshed for 25 minutes, so others may have removed data \
                 that is needed: start again",
            ));
        }
        Ok(())
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        {
            // Under the mutex, or the refresher could miss it between its look and its wait.
            let _current = self.held.current();
            self.held.released.store(true, Ordering::Release);
        }
        self.held.wake.notify_all();
        if let Some(refresher) = self.refresher.take() {
            let _ = refresher.join();
        }
        let id = self.held.current().id;
        match self.held.storage.remove(FileKind::Lock, &id) {
            Err(error) if error.kind() == ErrorKind::Cancelled => {
                let Patient {
                    storage,
                    stragglers,
                } = self.held.patient.clone();
                let removed = stragglers.run(move || {
                    warn_if_left(&id, storage.remove(FileKind::Lock, &id));
                });
                warn_if_left(&id, removed);
            }
            removed => warn_if_left(&id, removed),
        }
    }
}

fn warn_if_left(id: &FileId, removed: Result<()>) {
    if let Err(error) = removed {
        tracing::warn!(
            "the lock {id} could not be removed and stays until it is stale: {}",
            error.chain()
        );
    }
}

impl Held {
    fn current(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep_fresh(&self) {
        let mut current = self.current();
        loop {
            let (guard, timeout) = self
                .wake
                .wait_timeout_while(current, REFRESH_EVERY, |_| {
                    !self.released.load(Ordering::Acquire)
                })
                .unwrap_or_else(PoisonError::into_inner);
            current = guard;
            if !timeout.timed_out() {
                return;
            }
            let old = current.id;
            drop(current);
            // The new one first: at no moment is there none.
            match write(
                &*self.storage,
                &self.sealer,
                &LockInfo::of_this_process(self.exclusive),
            ) {
                Ok(id) => {
                    *self.current() = Current::now(id);
                    if let Err(error) = self.storage.remove(FileKind::Lock, &old) {
                        tracing::warn!("the lock {old} could not be replaced: {}", error.chain());
                    }
                }
                Err(error) => {
                    tracing::warn!("the lock {old} could not be refreshed: {}", error.chain())
                }
            }
            current = self.current();
        }
    }
}

fn write(storage: &dyn Storage, sealer: &Sealer, info: &LockInfo) -> Result<FileId> {
    let (id, content) = sealer.seal_json(info)?;
    storage
        .write(FileKind::Lock, &id, &[content])
        .map_err(|error| error.context("cannot lock the repository"))?;
    Ok(id)
}

fn refuse_if_taken(
    storage: &dyn Storage,
    sealer: &Sealer,
    mine: &FileId,
    exclusive: bool,
) -> Result<()> {
    for (id, info) in others(storage, sealer, mine)? {
        let info = match info {
            Ok(info) => info,
            // Unreadable: it may say anything, also that we must keep out.
            Err(error) => {
                return Err(
                    error.context(format!("the lock {id} of the repository cannot be read"))
                );
            }
        };
        if exclusive || info.exclusive {
            let advice = if info.is_stale() {
                "its owner is gone: remove it with `unlock`"
            } else {
                "try again when it is done"
            };
            return Err(Error::new(
                ErrorKind::Busy,
                format!("the repository is in use ({info}); {advice}"),
            ));
        }
    }
    Ok(())
}

/// All locks but this one. One that vanishes while we look is of somebody who is done, or was refreshed: under a new name, which was there before the old one
/// went, and which whoever lists once more finds.
fn others(
    storage: &dyn Storage,
    sealer: &Sealer,
    mine: &FileId,
) -> Result<Vec<(FileId, Result<LockInfo>)>> {
    let mut seen = BTreeSet::from([*mine]);
    let mut others = Vec::new();
    for _ in 0..LOOKS_MAX {
        let mut unseen = storage.list(FileKind::Lock)?;
        unseen.retain(|(id, _)| seen.insert(*id));
        let read = read_all(storage, sealer, &unseen)?;
        let has_one_vanished = read.len() < unseen.len();
        others.extend(read);
        if !has_one_vanished {
            return Ok(others);
        }
    }
    Err(Error::new(
        ErrorKind::Busy,
        "the locks of the repository come and go faster than they can be read: try again",
    ))
}

/// All locks. One that vanishes while we look is left out.
pub(super) fn list(
    storage: &dyn Storage,
    sealer: &Sealer,
) -> Result<Vec<(FileId, Result<LockInfo>)>> {
    read_all(storage, sealer, &storage.list(FileKind::Lock)?)
}

fn read_all(
    storage: &dyn Storage,
    sealer: &Sealer,
    listed: &[(FileId, u64)],
) -> Result<Vec<(FileId, Result<LockInfo>)>> {
    let locks = in_parallel(listed, |(id, _)| match storage.read(FileKind::Lock, id) {
        Ok(sealed) => Ok(Some((*id, sealer.open_json(&sealed)))),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    })?;
    Ok(locks.into_iter().flatten().collect())
}

/// Remove the stale ones, and those that nobody can read; gives their descriptions.
pub(super) fn remove_stale(storage: &dyn Storage, sealer: &Sealer) -> Result<Vec<String>> {
    let mut removed = Vec::new();
    let mut unreadable = Vec::new();
    for (id, info) in list(storage, sealer)? {
        match info {
            Ok(info) if info.is_stale() => {
                storage.remove(FileKind::Lock, &id)?;
                removed.push(info.to_string());
            }
            Ok(_) => {}
            Err(_) => unreadable.push(id),
        }
    }
    if !unreadable.is_empty() {
        // restic does not publish its files in one step: give it the time to finish one.
        std::thread::sleep(UNREADABLE_PAUSE);
        let still_there = list(storage, sealer)?;
        for (id, _) in still_there
            .iter()
            .filter(|(id, info)| info.is_err() && unreadable.contains(id))
        {
            storage.remove(FileKind::Lock, id)?;
            removed.push(format!("damaged lock {id}"));
        }
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::progress::Cancel;
    use crate::storage;

    #[test]
    fn a_lock_of_a_running_process_is_not_stale() {
        assert!(!LockInfo::of_this_process(false).is_stale());
    }

    #[test]
    fn a_lock_is_stale_after_thirty_minutes_or_when_its_process_is_gone() {
        let mut old = LockInfo::of_this_process(true);
        old.time = Timestamp::now() - SignedDuration::from_mins(31);
        assert!(old.is_stale());

        let mut child = std::process::Command::new("true").spawn().unwrap();
        let mut orphaned = LockInfo::of_this_process(true);
        orphaned.pid = child.id().into();
        child.wait().unwrap();
        assert!(orphaned.is_stale());

        // The same number on another machine says nothing.
        orphaned.hostname = "elsewhere".into();
        assert!(!orphaned.is_stale());
    }

    /// Somebody refreshes his exclusive lock between a look at the list and one at his file.
    #[derive(Debug)]
    struct Refreshing {
        inner: Arc<dyn Storage>,
        sealer: Sealer,
        old: Mutex<Option<FileId>>,
    }

    impl Storage for Refreshing {
        fn location(&self) -> &str {
            self.inner.location()
        }
        fn create(&self) -> Result<()> {
            self.inner.create()
        }
        fn list(&self, kind: FileKind) -> Result<Vec<(FileId, u64)>> {
            let listed = self.inner.list(kind)?;
            if let Some(old) = self.old.lock().unwrap().take() {
                let refreshed = LockInfo::of_this_process(true);
                write(&*self.inner, &self.sealer, &refreshed)?;
                self.inner.remove(FileKind::Lock, &old)?;
            }
            Ok(listed)
        }
        fn read(&self, kind: FileKind, id: &FileId) -> Result<Bytes> {
            self.inner.read(kind, id)
        }
        fn read_range(
            &self,
            kind: FileKind,
            id: &FileId,
            offset: u64,
            length: u64,
        ) -> Result<Bytes> {
            self.inner.read_range(kind, id, offset, length)
        }
        fn write(&self, kind: FileKind, id: &FileId, content: &[Bytes]) -> Result<()> {
            self.inner.write(kind, id, content)
        }
        fn remove(&self, kind: FileKind, id: &FileId) -> Result<()> {
            self.inner.remove(kind, id)
        }
        fn with_stop(&self, stop: &Cancel) -> Arc<dyn Storage> {
            self.inner.with_stop(stop)
        }
    }

    #[test]
    fn a_lock_that_is_refreshed_while_another_looks_is_seen() {
        let scratch = tempfile::tempdir().unwrap();
        let location = storage::Location::from(scratch.path());
        let inner = storage::open(&location, &Default::default()).unwrap();
        inner.create().unwrap();
        let sealer = || Sealer::new(&[7; 32], &[8; 16], &[9; 16]).unwrap();
        let old = write(&*inner, &sealer(), &LockInfo::of_this_process(true)).unwrap();
        let mine = write(&*inner, &sealer(), &LockInfo::of_this_process(false)).unwrap();
        let storage = Refreshing {
            inner,
            sealer: sealer(),
            old: Mutex::new(Some(old)),
        };
        let refused = refuse_if_taken(&storage, &sealer(), &mine, false).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Busy);
        assert!(refused.to_string().contains("exclusive lock"), "{refused}");
    }
}
