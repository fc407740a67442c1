//! A repository on an SFTP server.
//!
//! Calls are blocking; the connections live on a runtime of their own. A call that fails for a passing reason is done
//! again from the start on a fresh connection, until one deadline. Never: an error that would pass handed to the caller
//! before that; one that would not pass tried again.

mod fault;
mod files;
mod handles;
mod keys;
mod known_hosts;
mod pool;
mod session;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Runtime;
use tokio::time::{Instant, sleep_until};

use self::fault::Fault;
use self::files::{Upload, join};
use self::pool::Pool;
use self::session::{Session, Target};
use super::location::SftpPlace;
use super::{
    FileId, FileKind, Location, Storage, StorageOptions, Trial, all_directories, describe,
    temporary,
};
use crate::error::{Error, ErrorKind, Result};
use crate::progress::Cancel;

/// More would be turned away by a server that sets `MaxStartups` as OpenSSH does.
const CONNECTIONS_MAX: usize = 8;

/// The first pause after a fault; each next one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// How often a pause looks whether it is to end.
const STOP_POLL: Duration = Duration::from_millis(100);

/// A connection is lost when nothing arrives for so long: not more than this, and not much more than the caller would wait.
const STALL_LIMIT: Duration = Duration::from_secs(30);
const STALL_LIMIT_MIN: Duration = Duration::from_secs(3);

/// A repository on an SFTP server.
#[derive(Clone)]
pub(super) struct SftpStorage {
    location: Location,
    root: String,
    pool: Arc<Pool>,
    retry_for: Duration,
    /// Any of them ends the waiting.
    stops: Vec<Cancel>,
    runtime: Arc<Threads>,
}

/// The threads that the connections live on, until nobody uses the storage any more.
struct Threads(Option<Runtime>);

impl SftpStorage {
    /// Connect once, so that what is wrong for good shows at once.
    pub(super) fn open(
        location: &Location,
        place: &SftpPlace,
        options: &StorageOptions,
    ) -> Result<Self> {
        if !(1..=CONNECTIONS_MAX).contains(&options.connections) {
            return Err(Error::new(
                ErrorKind::Configuration,
                format!(
                    "`connections` must be from 1 to {CONNECTIONS_MAX}, not {}",
                    options.connections
                ),
            ));
        }
        let target = Target {
            user: match &place.user {
                Some(user) => user.clone(),
                None => current_user()?,
            },
            place: place.clone(),
            ssh_key: options.ssh_key.clone(),
            known_hosts: options.known_hosts.clone(),
            stall_limit: options.retry_for.clamp(STALL_LIMIT_MIN, STALL_LIMIT),
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            // One thread for the cipher of each connection.
            .worker_threads(options.connections)
            .thread_name("sftp")
            .enable_io()
            .enable_time()
            .build()
            .map_err(|error| {
                Error::io("cannot start the threads of the SFTP connections", error)
            })?;
        let storage = Self {
            location: location.clone(),
            root: place.path.clone(),
            pool: Arc::new(Pool::new(target, options.connections)),
            retry_for: options.retry_for,
            stops: vec![options.stop.clone()],
            runtime: Arc::new(Threads(Some(runtime))),
        };
        let opening = storage.stoppable(&options.stop_opening);
        opening.run(format!("cannot reach {location}"), |_| async { Ok(()) })?;
        Ok(storage)
    }

    /// See [`super::try_out`].
    pub(super) fn try_out(&self) -> Result<Trial> {
        let directory = join(&self.root, "locks");
        self.run(
            format!("cannot try out {}", self.location),
            move |session| {
                let directory = directory.clone();
                async move { session.try_out(directory).await }
            },
        )
    }

    /// See [`super::has_directory`].
    pub(super) fn has_directory(&self, may_be_empty: bool) -> Result<bool> {
        let root = self.root.clone();
        self.run(
            format!("cannot look at {}", self.location),
            move |session| {
                let root = root.clone();
                async move { session.has_directory(&root, may_be_empty).await }
            },
        )
    }

    fn stoppable(&self, stop: &Cancel) -> Self {
        let mut storage = self.clone();
        storage.stops.push(stop.clone());
        storage
    }

    fn directory(&self, kind: FileKind, id: &FileId) -> String {
        join(&self.root, &kind.directory_of(id))
    }

    fn path(&self, kind: FileKind, id: &FileId) -> String {
        join(&self.directory(kind, id), &kind.file_name(id))
    }

    /// Do something with a connection, again and again while it fails for a reason that passes.
    fn run<T, W, F>(&self, purpose: String, work: W) -> Result<T>
    where
        T: Send + 'static,
        W: Fn(Arc<Session>) -> F + Send + Sync + 'static,
        F: Future<Output = Result<T, Fault>> + Send,
    {
        let Some(runtime) = &self.runtime.0 else {
            return Err(Error::new(ErrorKind::Failed, purpose));
        };
        let (pool, retry_for, stops) = (self.pool.clone(), self.retry_for, self.stops.clone());
        let (sender, receiver) = mpsc::sync_channel(1);
        // On the runtime's own threads: the caller's may be any, also one of another runtime.
        runtime.spawn(async move {
            let outcome = retry(&pool, retry_for, &stops, work).await;
            // The receiver waits below for as long as we run.
            let _ = sender.send(outcome);
        });
        match receiver.recv() {
            Ok(outcome) => outcome.map_err(|error| error.context(purpose)),
            Err(_) => Err(Error::new(
                ErrorKind::Failed,
                format!("{purpose}: the SFTP thread broke off"),
            )),
        }
    }
}

async fn retry<T, W, F>(pool: &Pool, retry_for: Duration, stops: &[Cancel], work: W) -> Result<T>
where
    W: Fn(Arc<Session>) -> F,
    F: Future<Output = Result<T, Fault>>,
{
    let mut deadline = None;
    let mut pause = FIRST_PAUSE;
    loop {
        let error = match attempt(pool, &work).await {
            Ok(value) => return Ok(value),
            Err(Fault::Permanent(error)) => return Err(error),
            Err(Fault::Passing(error)) => error,
        };
        if any_is_set(stops) {
            return Err(Error::caused(
                ErrorKind::Cancelled,
                format!("cancelled while {} was away", pool.target().server()),
                error,
            ));
        }
        let now = Instant::now();
        let deadline = *deadline.get_or_insert(now + retry_for);
        if now >= deadline {
            return Err(Error::caused(
                ErrorKind::Unreachable,
                format!(
                    "gave up {} after trying for {} seconds",
                    pool.target().server(),
                    retry_for.as_secs()
                ),
                error,
            ));
        }
        tracing::warn!(
            error = error.chain(),
            "trying again to use {}",
            pool.target().server()
        );
        // Not all callers at the same moment.
        let pause_now = pause
            .mul_f64(rand::random_range(0.75..1.25))
            .min(deadline - now);
        wait(pause_now, stops).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

fn any_is_set(stops: &[Cancel]) -> bool {
    stops.iter().any(Cancel::is_cancelled)
}

/// A pause that ends when somebody asks to stop.
async fn wait(pause: Duration, stops: &[Cancel]) {
    let end = Instant::now() + pause;
    while !any_is_set(stops) && Instant::now() < end {
        sleep_until(end.min(Instant::now() + STOP_POLL)).await;
    }
}

async fn attempt<T, W, F>(pool: &Pool, work: &W) -> Result<T, Fault>
where
    W: Fn(Arc<Session>) -> F,
    F: Future<Output = Result<T, Fault>>,
{
    // Not kept over a pause: those who wait for their turn shall find out about a fault at the same time.
    let _turn = pool.turn().await;
    let lease = pool.lease().await?;
    let outcome = lease.session.watch(work(lease.session.clone())).await;
    if let Err(Fault::Passing(_)) = &outcome {
        lease.session.give_up();
    }
    outcome
}

impl Storage for SftpStorage {
    fn location(&self) -> &str {
        self.location.as_str()
    }

    fn create(&self) -> Result<()> {
        let root = self.root.clone();
        self.run(
            format!("cannot create the directories of {}", self.location),
            move |session| {
                let root = root.clone();
                async move {
                    session.make_directory_path(&root).await?;
                    let (below_data, top): (Vec<_>, Vec<_>) =
                        all_directories().partition(|directory| directory.contains('/'));
                    let below_root = |directories: Vec<String>| {
                        directories
                            .iter()
                            .map(|directory| join(&root, directory))
                            .collect()
                    };
                    session.make_directories(below_root(top)).await?;
                    session.make_directories(below_root(below_data)).await?;
                    // Listing removes what was abandoned; the top is not listed otherwise.
                    session.list(&root).await.map(drop)
                }
            },
        )
    }

    fn list(&self, kind: FileKind) -> Result<Vec<(FileId, u64)>> {
        let root = self.root.clone();
        let purpose = format!(
            "cannot list {} of {}",
            kind.directory().unwrap_or("config"),
            self.location
        );
        let Some(directory) = kind.directory() else {
            let size = self.run(purpose, move |session| {
                let path = join(&root, "config");
                async move { session.size_of(&path).await }
            })?;
            return Ok(size
                .map(|size| (FileId::default(), size))
                .into_iter()
                .collect());
        };
        let directory = join(&root, directory);
        let entries = self.run(purpose, move |session| {
            let directory = directory.clone();
            async move {
                let entries = session.list(&directory).await?;
                if kind != FileKind::Pack {
                    return Ok(entries);
                }
                let directories = (0..=u8::MAX)
                    .map(|first| join(&directory, &format!("{first:02x}")))
                    .collect();
                session.list_existing(directories).await
            }
        })?;
        Ok(entries
            .into_iter()
            .filter_map(|entry| Some((entry.name.parse().ok()?, entry.size)))
            .collect())
    }

    fn read(&self, kind: FileKind, id: &FileId) -> Result<Bytes> {
        let path = self.path(kind, id);
        self.run(
            format!("cannot read {} from {}", describe(kind, id), self.location),
            move |session| {
                let path = path.clone();
                async move { session.download(&path).await }
            },
        )
    }

    fn read_range(&self, kind: FileKind, id: &FileId, offset: u64, length: u64) -> Result<Bytes> {
        let path = self.path(kind, id);
        self.run(
            format!("cannot read {} from {}", describe(kind, id), self.location),
            move |session| {
                let path = path.clone();
                async move {
                    session
                        .download_range(&path, kind == FileKind::Pack, offset, length)
                        .await
                }
            },
        )
    }

    fn write(&self, kind: FileKind, id: &FileId, content: &[Bytes]) -> Result<()> {
        let directory = self.directory(kind, id);
        let name = kind.file_name(id);
        let content: Arc<[Bytes]> = content.into();
        // What attempts that were cut off may have left, to be removed by the one that succeeds.
        let left_over = Arc::new(Mutex::new(Vec::<String>::new()));
        let outcome = self.run(
            format!("cannot write {} to {}", describe(kind, id), self.location),
            move |session| {
                let upload = Upload {
                    directory: directory.clone(),
                    name: name.clone(),
                    temporary: temporary::new_name(),
                    make_directory: kind == FileKind::Pack,
                    only_new: kind == FileKind::Config,
                };
                let (content, left_over) = (content.clone(), left_over.clone());
                async move {
                    let old = {
                        let mut left_over =
                            left_over.lock().unwrap_or_else(PoisonError::into_inner);
                        std::mem::replace(
                            &mut *left_over,
                            vec![join(&upload.directory, &upload.temporary)],
                        )
                    };
                    for path in &old {
                        session.remove_quietly(path).await;
                    }
                    session.upload(&upload, &content).await
                }
            },
        );
        self.pool.forget(&self.path(kind, id));
        outcome
    }

    fn remove(&self, kind: FileKind, id: &FileId) -> Result<()> {
        let path = self.path(kind, id);
        self.pool.forget(&path);
        self.run(
            format!(
                "cannot remove {} from {}",
                describe(kind, id),
                self.location
            ),
            move |session| {
                let path = path.clone();
                async move { session.remove(&path).await }
            },
        )
    }

    fn with_stop(&self, stop: &Cancel) -> Arc<dyn Storage> {
        Arc::new(self.stoppable(stop))
    }
}

impl fmt::Debug for SftpStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SftpStorage")
            .field("location", &self.location.as_str())
            .finish_non_exhaustive()
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            // Also from an async task, where waiting for its threads would panic.
            runtime.shutdown_background();
        }
    }
}

/// The user who runs this program, as `ssh` would take it.
fn current_user() -> Result<String> {
    ["USER", "LOGNAME"]
        .into_iter()
        .filter_map(|name| std::env::var(name).ok())
        .find(|user| !user.is_empty())
        .or_else(|| rustix::process::geteuid().is_root().then(|| "root".to_owned()))
        .ok_or_else(|| {
            Error::new(
                ErrorKind::Configuration,
                "the repository's location names no user and $USER is not set: write `sftp:user@host:/path`",
            )
        })
}
