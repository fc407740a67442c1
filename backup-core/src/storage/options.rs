//! How the storage of a repository is reached.

use std::path::PathBuf;
use std::time::Duration;

use crate::config::AccessKey;
use crate::progress::Cancel;

/// How a storage is reached. What does not concern its kind is not looked at.
#[derive(Debug, Clone)]
pub struct StorageOptions {
    /// SFTP: the private key file, and no other key; None: the ssh agent's and the user's default ones.
    pub ssh_key: Option<PathBuf>,
    /// SFTP: the file of known host keys, and no other; None: the user's and the system's.
    pub known_hosts: Option<PathBuf>,
    /// SFTP: how many connections are used at once, from 1 to 8.
    pub connections: usize,
    /// Object storage: who we are there.
    pub access_key: Option<AccessKey>,
    /// Object storage: the region of the bucket; None: what its address says, else `us-east-1`.
    pub region: Option<String>,
    /// Object storage: the file of certificate authorities that are trusted, and no other; None: those of the system.
    pub ca_file: Option<PathBuf>,
    /// How long a call goes on trying after its first passing fault.
    pub retry_for: Duration,
    /// Once it is set, a passing fault is not waited out any more: a call that meets one fails with
    /// [`Cancelled`](crate::error::ErrorKind::Cancelled). A call that meets none is done all the same: what was begun can be tidied up.
    pub stop: Cancel,
    /// The same, but for the opening of the storage alone: whoever needs it first may be told to stop.
    pub stop_opening: Cancel,
}

impl Default for StorageOptions {
    fn default() -> Self {
        Self {
            ssh_key: None,
            known_hosts: None,
            connections: 2,
            access_key: None,
            region: None,
            ca_file: None,
            retry_for: Duration::from_secs(5 * 60),
            stop: Cancel::new(),
            stop_opening: Cancel::new(),
        }
    }
}
