//! A customer's MySQL or MariaDB database: dumped as a stream, imported into a shadow schema, swapped in.
//!
//! Everything goes through the client programs, so that a server on this host and one in a container are reached in
//! the same way. Never: a password in an argument; a dump on disk or whole in memory; SQL that a tenant wrote run by
//! an account with rights outside that tenant's schemas; a live schema that is neither as it was nor as the dump says.
//!
//! # Rights that the account of [`Server`] needs
//!
//! To dump: `SELECT, SHOW VIEW, TRIGGER, EVENT, LOCK TABLES` on the customers' schemas, and to see routines `SELECT` on
//! `mysql.proc` (MariaDB) or `SHOW_ROUTINE` (MySQL). To restore: all rights on the customers' schemas and on those
//! whose names begin with theirs, `WITH GRANT OPTION`; `CREATE USER` to import as an account that has rights on the shadow schema alone (without
//! it, an import runs as the customer's own account, and is refused after it has changed something outside of the shadow schema); `SUPER`
//! or `SET USER` to put back a definer that is not the customer when a swap is undone (without it the customer becomes the definer).
//! `PROCESS` and `CONNECTION ADMIN` (before MariaDB 10.5 and MySQL 8.0 `SUPER`) to end sessions that keep a shadow schema from being dropped;
//! without them it is waited for a minute, then the drop fails.
//!
//! # What differs between the servers
//!
//! On MariaDB from 10.6 on, what a tenant wrote is created by `EXECUTE IMMEDIATE` of a literal: no client program reads it, and
//! the server takes one statement only. MySQL cannot prepare triggers, routines and events: there the client program is given each
//! alone, up to a delimiter that nobody can guess, as the tenant; hence an object of another definer cannot be put
//! back with that definer there, and becomes the tenant's, with a warning.

mod accounts;
mod client;
mod definitions;
mod dump;
mod names;
mod proof;
mod replaced;
mod rewrite;
mod sessions;
mod shadow;
mod surroundings;
mod swap;
mod trial;

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use secrecy::{ExposeSecret, SecretString};

use crate::error::Result;
use crate::progress::Cancel;

pub use accounts::ImportAccount;
pub use dump::{Dump, DumpReport, dump};
pub(crate) use proof::has_tables;
pub use proof::{
    discard_proof, import_for_proof, prepare_proof, proof_name, remove_proof, scratch_schemas,
};
pub use replaced::dump_replaced;
pub use shadow::{
    DataDisk, Inventory, Shadow, data_disk, discard, import, prepare_shadow, remove_leftovers,
    verify,
};
pub use swap::{Replaced, ReplacedState, drop_replaced, find_replaced, resume, swap, swap_back};
pub use trial::{Facts, MissingRight, facts, try_dump, try_restore};

/// How a server is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// By TCP; without a port, `localhost` means the client's default socket, as everywhere with MySQL.
    Host {
        /// Name or address.
        host: String,
        /// The server's port; 3306 when absent.
        port: Option<u16>,
    },
    /// By a Unix socket.
    Socket(PathBuf),
}

/// A customer's database server: where it is and the account that dumps from it and prepares imports. Clones share
/// what was found out about the client programs, and the one that is kept for some seconds for the next question.
#[derive(Clone)]
pub struct Server {
    endpoint: Endpoint,
    exec: Vec<String>,
    account: Account,
    tools: Arc<OnceLock<client::Tools>>,
    resting: Arc<client::Resting>,
}

/// A name and a password.
#[derive(Clone)]
pub(crate) struct Account {
    pub(crate) user: String,
    pub(crate) password: SecretString,
}

impl Server {
    /// A server at `endpoint`, as seen by programs that are run with the argument array `exec` before them: empty for
    /// programs on this host, `["docker", "exec", "-i", "customer-7-db"]` for those in a container.
    pub fn new(
        endpoint: Endpoint,
        exec: Vec<String>,
        user: impl Into<String>,
        password: SecretString,
    ) -> Self {
        Self {
            endpoint,
            exec,
            account: Account {
                user: user.into(),
                password,
            },
            tools: Arc::default(),
            resting: Arc::default(),
        }
    }

    /// Whether it is reached in the same way, by the same account with the same password.
    pub(crate) fn is_as(&self, other: &Self) -> bool {
        let (ours, theirs) = (&self.account, &other.account);
        self.endpoint == other.endpoint
            && self.exec == other.exec
            && ours.user == theirs.user
            && ours.password.expose_secret() == theirs.password.expose_secret()
    }

    /// Log in, unless somebody who did so in the last seconds is still answered. Errors as those of [`dump`](fn@dump).
    pub fn ping(&self) -> Result<()> {
        self.query("SELECT 1;", &Cancel::new())?;
        Ok(())
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("endpoint", &self.endpoint)
            .field("exec", &self.exec)
            .field("user", &self.account.user)
            .finish_non_exhaustive()
    }
}

/// The server, for a message.
impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.endpoint {
            Endpoint::Host {
                host,
                port: Some(port),
            } => write!(f, "{host}:{port}")?,
            Endpoint::Host { host, port: None } => f.write_str(host)?,
            Endpoint::Socket(path) => write!(f, "{}", path.display())?,
        }
        if !self.exec.is_empty() {
            write!(f, " through `{}`", self.exec.join(" "))?;
        }
        Ok(())
    }
}
