//! What the product does, as procedures that read as their steps: back up a customer, back up everybody, forget backups, restore a customer, prove that
//! a backup can be restored.
//!
//! Each procedure names its commit point. Before it a failure leaves no trace; whatever the way out, maintenance is off, what was
//! stopped is started, and what was staged is gone.

mod backup;
mod daily;
mod forget;
mod repositories;
mod restore;
mod state;
mod trial;
mod verify;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use secrecy::SecretString;

use crate::config::{Config, RepositoryConfig};
use crate::customer::Customer;
use crate::database::{Endpoint, Server};
use crate::error::{Error, ErrorKind, Result};
use crate::progress::{Cancel, Control, Monitor, Phase};
use crate::repository::Repository;
use crate::storage::{self, Location, Storage, StorageOptions, Trial};

pub use crate::catalog::{BackupEntry, BackupList, RepositoryName, Source};
pub use backup::{BackupReport, BackupRequest};
pub use daily::{DailyFailure, DailyPart, DailyReport};
pub use forget::Forgetting;
use repositories::{Kept, Manual, no_customer};
pub use restore::{Interrupted, Recovered, RestoreReport, RestoreRequest};
pub(crate) use verify::Expected;
pub use verify::Proven;

/// The configuration, and the repositories that it names, opened when they are first needed and then kept.
/// All methods block; call them from a thread that may.
#[derive(Debug)]
pub struct Engine {
    config: Config,
    stop: Cancel,
    manual: Manual,
    daily: Kept,
}

impl Engine {
    /// Nothing is opened or looked at yet. Once `stop` is set (the process is to end), no outage of a repository is waited
    /// out any more; what is cancelled one by one has a flag of its own in its [`crate::progress::Control`].
    pub fn new(config: Config, stop: &Cancel) -> Self {
        Self {
            manual: Manual::new(&config.repositories.manual),
            daily: Mutex::default(),
            config,
            stop: stop.clone(),
        }
    }

    /// The same with this repository for the backups that customers make: for one whose files are in a [`Storage`] of the caller's own. What
    /// `repositories.manual` says of its place and password is then not looked at.
    #[must_use]
    pub fn with_manual(self, repository: Repository) -> Self {
        Self {
            manual: Manual::Shared(Mutex::new(Some(repository))),
            ..self
        }
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The customer's database server, seen by the account that dumps and restores.
    fn server(&self, customer: &Customer) -> Result<Server> {
        let config = &self.config.customer_database;
        let password = config
            .password
            .read()?
            .unwrap_or_else(|| SecretString::from(String::new()));
        self.server_as(customer, &config.user, password)
    }

    /// That which is known, if this customer's is the same: what its client programs are is known then. It is not once somebody has changed its password.
    fn known_server(&self, customer: &Customer, known: &mut Option<Server>) -> Result<Server> {
        let server = self.server(customer)?;
        match known {
            Some(known) if known.is_as(&server) => Ok(known.clone()),
            _ => Ok(known.insert(server).clone()),
        }
    }

    fn server_as(&self, customer: &Customer, user: &str, password: SecretString) -> Result<Server> {
        let config = &self.config.customer_database;
        let endpoint = match &config.socket {
            Some(socket) => Endpoint::Socket(socket.clone()),
            None => Endpoint::Host {
                host: config.host().to_owned(),
                port: config.port,
            },
        };
        Ok(Server::new(
            endpoint,
            config.exec(customer)?,
            user,
            password,
        ))
    }
}

/// Reach the storage of a configured repository, whether or not there is a repository yet. Once `stop` is set, no outage is
/// waited out any more.
pub fn open_storage(config: &RepositoryConfig, stop: &Cancel) -> Result<Arc<dyn Storage>> {
    open_storage_for(config, stop, &Cancel::new())
}

fn open_storage_for(
    config: &RepositoryConfig,
    stop: &Cancel,
    stop_opening: &Cancel,
) -> Result<Arc<dyn Storage>> {
    let location = location(config)?;
    storage::open(&location, &storage_options(config, stop, stop_opening)?)
}

fn location(config: &RepositoryConfig) -> Result<Location> {
    match config.is_for_each_customer() {
        // It would be one, of a strange name.
        true => Err(no_customer(config)),
        false => config.location.parse(),
    }
}

fn storage_options(
    config: &RepositoryConfig,
    stop: &Cancel,
    stop_opening: &Cancel,
) -> Result<StorageOptions> {
    Ok(StorageOptions {
        ssh_key: config.ssh_key.clone(),
        known_hosts: config.known_hosts.clone(),
        connections: usize::try_from(config.connections).unwrap_or(1),
        access_key: config.read_access_key()?,
        region: config.s3_region.clone(),
        ca_file: config.s3_ca_file.clone(),
        retry_for: config.retry_for,
        stop: stop.clone(),
        stop_opening: stop_opening.clone(),
    })
}

/// Try out the storage of a configured repository that exists, as [`storage::try_out`] does.
pub fn try_storage(config: &RepositoryConfig, stop: &Cancel) -> Result<Trial> {
    let location = location(config)?;
    storage::try_out(&location, &storage_options(config, stop, &Cancel::new())?)
}

/// Create a configured repository; false where there is one already.
pub fn init_repository(config: &RepositoryConfig, stop: &Cancel) -> Result<bool> {
    let password = config.read_password()?;
    let storage = open_storage(config, stop)?;
    if !Repository::exists(&*storage)? {
        match Repository::init(Arc::clone(&storage), &password) {
            Ok(_) => return Ok(true),
            // Somebody else was faster.
            Err(error) if error.kind() == ErrorKind::Busy => {
                return open_what_another_made(&storage, &password).map(|_| false);
            }
            Err(error) => return Err(error),
        }
    }
    // A wrong password shows now rather than at two in the morning.
    Repository::open(storage, &password)?;
    Ok(false)
}

/// Those who were too late like us may not have taken back their keys yet, which open nothing.
fn open_what_another_made(
    storage: &Arc<dyn Storage>,
    password: &SecretString,
) -> Result<Repository> {
    const PATIENCE: Duration = Duration::from_secs(5);
    const POLL: Duration = Duration::from_millis(50);
    let begun = Instant::now();
    loop {
        match Repository::open(Arc::clone(storage), password) {
            Err(error)
                if matches!(error.kind(), ErrorKind::Failed | ErrorKind::NotFound)
                    && begun.elapsed() < PATIENCE =>
            {
                std::thread::sleep(POLL);
            }
            outcome => return outcome,
        }
    }
}

/// Passes everything on and remembers the warnings, so that the report has them whoever noticed.
struct Noting {
    inner: Arc<dyn Monitor>,
    warnings: Mutex<Vec<String>>,
}

impl Noting {
    /// A control with the same flag and gate, and what remembers its warnings.
    fn under(control: &Control) -> (Control, Arc<Self>) {
        let noting = Arc::new(Self {
            inner: Arc::clone(&control.monitor),
            warnings: Mutex::default(),
        });
        let control = Control {
            monitor: Arc::clone(&noting) as _,
            ..control.clone()
        };
        (control, noting)
    }

    fn warnings(&self) -> Vec<String> {
        self.warnings
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Monitor for Noting {
    fn phase(&self, phase: Phase) {
        self.inner.phase(phase);
    }
    fn bytes_total(&self, bytes: u64) {
        self.inner.bytes_total(bytes);
    }
    fn bytes_done(&self, bytes: u64) {
        self.inner.bytes_done(bytes);
    }
    fn files_done(&self, files: u64) {
        self.inner.files_done(files);
    }
    fn warning(&self, text: &str) {
        self.warnings
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(text.to_owned());
        self.inner.warning(text);
    }
}

/// A note as it may be stored: one line of text, not too long.
pub(crate) fn require_note(note: &str) -> Result<()> {
    const CHARACTERS_MAX: usize = 500;
    if note.chars().count() > CHARACTERS_MAX || note.chars().any(char::is_control) {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            format!("a note is one line of at most {CHARACTERS_MAX} characters"),
        ));
    }
    Ok(())
}
