//! Files and directories that are open at the server.
//!
//! Every handle is closed, in the background, by whoever drops it last. Packs that are read piece by piece stay open for
//! a while: it saves two of three round trips. Never: more handles than the server was promised.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use russh_sftp::client::RawSftpSession;
use russh_sftp::client::error::Error as SftpError;
use russh_sftp::protocol::{FileAttributes, OpenFlags};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// How many packs are kept open on a connection.
const CACHED_MAX: usize = 16;

/// How long an open pack is used again: a file that was replaced by another program shall not be read for ever.
const CACHED_FOR: Duration = Duration::from_secs(60);

/// Something open at the server, closed on drop.
pub(super) struct RemoteHandle {
    sftp: Arc<RawSftpSession>,
    handle: String,
    closed: AtomicBool,
    permit: Option<OwnedSemaphorePermit>,
}

impl RemoteHandle {
    /// Open a file, once a handle is free.
    pub(super) async fn open(
        sftp: &Arc<RawSftpSession>,
        handles: &Arc<Semaphore>,
        path: &str,
        flags: OpenFlags,
        attributes: FileAttributes,
    ) -> Result<Self, SftpError> {
        let permit = handles.clone().acquire_owned().await.ok();
        let handle = sftp.open(path, flags, attributes).await?.handle;
        Ok(Self {
            sftp: sftp.clone(),
            handle,
            closed: AtomicBool::new(false),
            permit,
        })
    }

    /// Open a directory, once a handle is free.
    pub(super) async fn open_directory(
        sftp: &Arc<RawSftpSession>,
        handles: &Arc<Semaphore>,
        path: &str,
    ) -> Result<Self, SftpError> {
        let permit = handles.clone().acquire_owned().await.ok();
        let handle = sftp.opendir(path).await?.handle;
        Ok(Self {
            sftp: sftp.clone(),
            handle,
            closed: AtomicBool::new(false),
            permit,
        })
    }

    /// Close it now, and hear what the server says: it may have kept back that it could not write.
    pub(super) async fn close(&self) -> Result<(), SftpError> {
        self.closed.store(true, Ordering::Relaxed);
        self.sftp.close(self.handle.as_str()).await.map(drop)
    }

    /// What the server calls it.
    pub(super) fn as_str(&self) -> &str {
        &self.handle
    }
}

impl Drop for RemoteHandle {
    fn drop(&mut self) {
        if self.closed.load(Ordering::Relaxed) {
            return;
        }
        // Outside the runtime the connection is about to end, and with it the handle.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        let (sftp, handle, permit) = (
            self.sftp.clone(),
            std::mem::take(&mut self.handle),
            self.permit.take(),
        );
        runtime.spawn(async move {
            if let Err(error) = sftp.close(handle).await {
                tracing::debug!(%error, "a file was not closed at the server");
            }
            drop(permit);
        });
    }
}

/// Packs that were read lately, open.
#[derive(Default)]
pub(super) struct HandleCache(Mutex<Vec<Cached>>);

struct Cached {
    path: String,
    handle: Arc<RemoteHandle>,
    opened: Instant,
}

impl HandleCache {
    /// The handle of a file that is open already.
    pub(super) fn get(&self, path: &str) -> Option<Arc<RemoteHandle>> {
        let mut cached = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        cached.retain(|entry| entry.opened.elapsed() < CACHED_FOR);
        let at = cached.iter().position(|entry| entry.path == path)?;
        // The one used last goes last, so that the first is the one to give up.
        let entry = cached.remove(at);
        let handle = entry.handle.clone();
        cached.push(entry);
        Some(handle)
    }

    /// Keep a file open, instead of the one that was not used for longest.
    pub(super) fn put(&self, path: String, handle: Arc<RemoteHandle>) {
        let mut cached = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        cached.retain(|entry| entry.path != path);
        if cached.len() >= CACHED_MAX {
            cached.remove(0);
        }
        cached.push(Cached {
            path,
            handle,
            opened: Instant::now(),
        });
    }

    /// What is open under this name is not the file of that name any more.
    pub(super) fn forget(&self, path: &str) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|entry| entry.path != path);
    }
}
