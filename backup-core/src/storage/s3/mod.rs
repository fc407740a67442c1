//! A repository in a bucket of an S3-compatible object store.
//!
//! An object is there whole or not at all, so there are no temporary names: one request publishes a file, and its commit point is the answer. A call
//! that fails for a passing reason is done again from the start, until one deadline. Never: an object whose content the store did not confirm taken for
//! published; a `config` that is there written over; a listing that ends early without an error; an access key, or a signed address, in a message.

mod client;
mod fault;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;

use self::client::Client;
use self::fault::Fault;
use super::location::S3Place;
use super::{
    FileId, FileKind, Location, Storage, StorageOptions, Trial, check_range, describe, is_made_of,
    made_by_another, temporary, trial,
};
use crate::error::{Error, ErrorKind, Result};
use crate::progress::Cancel;

/// The first pause after a fault; each next one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// How often a pause looks whether it is to end.
const STOP_POLL: Duration = Duration::from_millis(100);

/// The most that a file that is read whole may be: a `config`, a key and a lock are a few hundred bytes, index files some millions, and the largest
/// packs that restic makes 128 MiB.
const SMALL_BYTES_MAX: u64 = 1 << 20;
const BYTES_MAX: u64 = 512 << 20;

/// The most parts, of a thousand objects each, that a listing may have: ten million packs are 160 TB.
const PAGES_MAX: usize = 10_000;

fn bytes_max(kind: FileKind) -> u64 {
    match kind {
        FileKind::Config | FileKind::Key | FileKind::Lock => SMALL_BYTES_MAX,
        FileKind::Snapshot | FileKind::Index | FileKind::Pack => BYTES_MAX,
    }
}

/// A repository in a bucket.
#[derive(Clone)]
pub(super) struct S3Storage {
    location: Location,
    prefix: String,
    /// Whoever may stop it ends the waiting, too.
    client: Client,
    retry_for: Duration,
}

impl S3Storage {
    /// Ask the store for something once, so that what is wrong for good shows at once.
    pub(super) fn open(
        location: &Location,
        place: &S3Place,
        options: &StorageOptions,
    ) -> Result<Self> {
        let storage = Self {
            location: location.clone(),
            prefix: place.prefix.clone(),
            client: Client::new(place, options)?,
            retry_for: options.retry_for,
        };
        let opening = storage.stoppable(&options.stop_opening);
        let config = storage.key(FileKind::Config, &FileId::default());
        opening.run(format!("cannot reach {location}"), |client| {
            client.list(&config, None).map(drop)
        })?;
        Ok(storage)
    }

    /// See [`super::try_out`].
    pub(super) fn try_out(&self) -> Result<Trial> {
        let key = self.below("locks", &temporary::new_name());
        let content = [Bytes::from_static(b"a trial\n")];
        let (before, after, stamp) =
            self.run(format!("cannot try out {}", self.location), |client| {
                let before = SystemTime::now();
                let stamp = client.put(&key, &content, false)?;
                let after = SystemTime::now();
                let read = client.get(&key, SMALL_BYTES_MAX);
                client.delete(&key)?;
                if read? != content[0] {
                    return Err(Fault::Permanent(Error::new(
                        ErrorKind::Damaged,
                        "the object store gives back something else than what it was given",
                    )));
                }
                Ok((before, after, stamp))
            })?;
        Ok(Trial {
            bytes_available: None,
            can_replace: true,
            can_sync: true,
            clock_ahead: stamp.map(|stamp| trial::clock_ahead(before, stamp, after)),
        })
    }

    fn stoppable(&self, stop: &Cancel) -> Self {
        Self {
            client: self.client.with_stop(stop),
            ..self.clone()
        }
    }

    /// The name of an object in a directory of the repository.
    fn below(&self, directory: &str, name: &str) -> String {
        let parts = [self.prefix.as_str(), directory, name];
        let parts: Vec<_> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        parts.join("/")
    }

    fn key(&self, kind: FileKind, id: &FileId) -> String {
        self.below(&kind.directory_of(id), &kind.file_name(id))
    }

    /// Ask the store for something, again and again while it fails for a reason that passes.
    fn run<T>(
        &self,
        purpose: String,
        work: impl Fn(&Client) -> std::result::Result<T, Fault>,
    ) -> Result<T> {
        self.retry(work).map_err(|error| error.context(purpose))
    }

    fn retry<T>(&self, work: impl Fn(&Client) -> std::result::Result<T, Fault>) -> Result<T> {
        let store = self.client.store();
        let mut deadline = None;
        let mut pause = FIRST_PAUSE;
        loop {
            let error = match work(&self.client) {
                Ok(value) => return Ok(value),
                Err(Fault::Permanent(error)) => return Err(error),
                Err(Fault::Passing(error)) => error,
            };
            if self.client.is_stopped() {
                return Err(Error::caused(
                    ErrorKind::Cancelled,
                    format!("cancelled while {store} was away"),
                    error,
                ));
            }
            let now = Instant::now();
            let deadline = *deadline.get_or_insert(now + self.retry_for);
            if now >= deadline {
                return Err(Error::caused(
                    ErrorKind::Unreachable,
                    format!(
                        "gave up {store} after trying for {} seconds",
                        self.retry_for.as_secs()
                    ),
                    error,
                ));
            }
            tracing::warn!(error = error.chain(), "trying again to use {store}");
            // Not all callers at the same moment.
            let pause_now = pause
                .mul_f64(rand::random_range(0.75..1.25))
                .min(deadline - now);
            self.wait(pause_now);
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// A pause that ends when somebody asks to stop.
    fn wait(&self, pause: Duration) {
        let end = Instant::now() + pause;
        while !self.client.is_stopped() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            std::thread::sleep(left.min(STOP_POLL));
        }
    }

    /// All objects whose names begin so, with their sizes.
    fn list_all(&self, purpose: &str, prefix: &str) -> Result<Vec<(String, u64)>> {
        let mut found = Vec::new();
        let mut token = None;
        for _ in 0..PAGES_MAX {
            // Page by page: an outage costs a page, not all that was listed before.
            let page = self.run(purpose.to_owned(), |client| {
                client.list(prefix, token.as_deref())
            })?;
            found.extend(page.objects);
            token = page.next;
            if token.is_none() {
                return Ok(found);
            }
            // Whoever tidies up needs no long listing.
            if self.client.is_stopped() {
                return Err(Error::new(
                    ErrorKind::Cancelled,
                    format!("{purpose}: cancelled in the middle of it"),
                ));
            }
        }
        Err(Error::new(
            ErrorKind::Failed,
            format!("{purpose}: the listing has no end"),
        ))
    }
}

/// Write the `config`, where there is none: it is the commit point of a new repository, and the one object whose name does not say what is in it. Some
/// stores do not know how to write on a condition, and some take the condition and do not heed it: so there is a look before, and another afterwards.
fn make_once(client: &Client, key: &str, content: &[Bytes]) -> std::result::Result<(), Fault> {
    let is_ours = |found: &Bytes| is_made_of(found, content);
    let made_by_another = || Fault::Permanent(made_by_another("config"));
    match client.get(key, SMALL_BYTES_MAX) {
        // By an attempt whose answer was lost.
        Ok(found) if is_ours(&found) => return Ok(()),
        Ok(_) => return Err(made_by_another()),
        Err(Fault::Permanent(error)) if error.kind() == ErrorKind::NotFound => {}
        Err(fault) => return Err(fault),
    }
    client.put(key, content, true)?;
    let found = client.get(key, SMALL_BYTES_MAX)?;
    if is_ours(&found) {
        return Ok(());
    }
    if !found.is_empty() && content.concat().starts_with(&found) {
        // Nobody else's begins like ours, and half of it would be in everybody's way.
        client.delete(key)?;
        return Err(Fault::Permanent(Error::new(
            ErrorKind::Damaged,
            "it came out cut short; it was not kept",
        )));
    }
    Err(made_by_another())
}

impl Storage for S3Storage {
    fn location(&self) -> &str {
        self.location.as_str()
    }

    /// There are no directories.
    fn create(&self) -> Result<()> {
        Ok(())
    }

    fn list(&self, kind: FileKind) -> Result<Vec<(FileId, u64)>> {
        let purpose = format!(
            "cannot list {} of {}",
            kind.directory().unwrap_or("config"),
            self.location
        );
        let Some(directory) = kind.directory() else {
            let config = self.key(kind, &FileId::default());
            let objects = self.list_all(&purpose, &config)?;
            return Ok(objects
                .into_iter()
                .filter(|(key, _)| *key == config)
                .map(|(_, size)| (FileId::default(), size))
                .collect());
        };
        let prefix = format!("{}/", self.below(directory, ""));
        let objects = self.list_all(&purpose, &prefix)?;
        Ok(objects
            .into_iter()
            .filter_map(|(key, size)| {
                let id: FileId = key.rsplit('/').next()?.parse().ok()?;
                // In its own place: what lies elsewhere is somebody else's.
                (self.key(kind, &id) == key).then_some((id, size))
            })
            .collect())
    }

    fn read(&self, kind: FileKind, id: &FileId) -> Result<Bytes> {
        let key = self.key(kind, id);
        self.run(
            format!("cannot read {} from {}", describe(kind, id), self.location),
            |client| client.get(&key, bytes_max(kind)),
        )
    }

    fn read_range(&self, kind: FileKind, id: &FileId, offset: u64, length: u64) -> Result<Bytes> {
        let key = self.key(kind, id);
        self.run(
            format!("cannot read {} from {}", describe(kind, id), self.location),
            |client| {
                let part = client.get_range(&key, offset, length)?;
                check_range(kind, id, offset, length, part.end).map_err(Fault::Permanent)?;
                Ok(part.content)
            },
        )
    }

    fn write(&self, kind: FileKind, id: &FileId, content: &[Bytes]) -> Result<()> {
        let key = self.key(kind, id);
        self.run(
            format!("cannot write {} to {}", describe(kind, id), self.location),
            |client| match kind {
                FileKind::Config => make_once(client, &key, content),
                _ => client.put(&key, content, false).map(drop),
            },
        )
    }

    fn remove(&self, kind: FileKind, id: &FileId) -> Result<()> {
        let key = self.key(kind, id);
        self.run(
            format!(
                "cannot remove {} from {}",
                describe(kind, id),
                self.location
            ),
            |client| client.delete(&key),
        )
    }

    fn with_stop(&self, stop: &Cancel) -> Arc<dyn Storage> {
        Arc::new(self.stoppable(stop))
    }
}

impl fmt::Debug for S3Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Storage")
            .field("location", &self.location.as_str())
            .finish_non_exhaustive()
    }
}
