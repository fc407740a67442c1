//! One file of a snapshot as a stream, in order, fetched ahead by a bounded amount.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};

use rustic_core::repofile::NodeType;

use super::blobs::{self, Blob, Wanted};
use super::{Repository, Snapshot};
use crate::error::{Error, ErrorKind, Result};
use crate::progress::{Cancel, Control};

/// Plain bytes that are fetched at once. The one being read, one that waits and one being fetched are held, while files are restored beside it: as few
/// as keep an import from waiting for a server far away.
const BATCH_BYTES: u64 = 8 * 1024 * 1024;

/// The content of a file. Dropping it stops the fetching.
pub struct FileStream {
    batches: Receiver<Result<Vec<Vec<u8>>>>,
    batch: std::vec::IntoIter<Vec<u8>>,
    current: std::io::Cursor<Vec<u8>>,
    control: Control,
    read: u64,
    /// Plain bytes of the whole file.
    pub bytes: u64,
}

impl std::fmt::Debug for FileStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileStream")
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

impl Repository {
    /// Stream the file at an absolute path of a snapshot. [`ErrorKind::NotFound`] where there is no such file.
    ///
    /// What is read was checked blob by blob; a fetch that fails is an error of the reader, never an early end.
    pub fn stream_file(
        self: &Arc<Self>,
        snapshot: &Snapshot,
        path: &Path,
        control: &Control,
    ) -> Result<FileStream> {
        let index = self.fresh_index()?;
        let node = self
            .node(&index, snapshot, path)?
            .filter(|node| node.node_type == NodeType::File)
            .ok_or_else(|| {
                Error::new(
                    ErrorKind::NotFound,
                    format!(
                        "the snapshot {} has no file {}",
                        snapshot.id,
                        path.display()
                    ),
                )
            })?;
        let mut batches: Vec<Vec<Wanted<usize>>> = Vec::new();
        let (mut batch_bytes, mut bytes) = (u64::MAX, 0);
        for id in node.content.iter().flatten() {
            let location = index.locate(id)?;
            if batch_bytes >= BATCH_BYTES {
                batches.push(Vec::new());
                batch_bytes = 0;
            }
            batch_bytes += location.plain_bytes();
            bytes += location.plain_bytes();
            if let Some(batch) = batches.last_mut() {
                batch.push(Wanted {
                    blob: Blob { location, id: **id },
                    purpose: batch.len(),
                });
            }
        }
        // The index says what is there: a file stored with a wrong size is streamed whole all the same.
        let (sender, receiver) = sync_channel(1);
        let repository = Arc::clone(self);
        let cancel = control.cancel.clone();
        std::thread::Builder::new()
            .name("file-stream".into())
            .spawn(move || {
                for batch in batches {
                    let content = repository.fetch_in_order(batch, &cancel);
                    let failed = content.is_err();
                    if sender.send(content).is_err() || failed {
                        return;
                    }
                }
            })
            .map_err(|error| Error::io("cannot start the thread that fetches a file", error))?;
        Ok(FileStream {
            batches: receiver,
            batch: Vec::new().into_iter(),
            current: std::io::Cursor::default(),
            control: control.clone(),
            read: 0,
            bytes,
        })
    }

    fn fetch_in_order(&self, batch: Vec<Wanted<usize>>, cancel: &Cancel) -> Result<Vec<Vec<u8>>> {
        let parts: Vec<std::sync::Mutex<Vec<u8>>> =
            batch.iter().map(|_| std::sync::Mutex::default()).collect();
        blobs::fetch(
            &*self.storage,
            &self.shared.sealer,
            batch,
            cancel,
            |at, plain| {
                *parts[*at]
                    .lock()
                    .unwrap_or_else(std::sync::PoisonError::into_inner) = plain.to_vec();
                Ok(())
            },
        )?;
        let parts = parts.into_iter().map(|part| {
            part.into_inner()
                .unwrap_or_else(std::sync::PoisonError::into_inner)
        });
        Ok(parts.collect())
    }
}

impl Read for FileStream {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        loop {
            let count = self.current.read(buffer)?;
            if count > 0 || buffer.is_empty() {
                self.read += count as u64;
                self.control.monitor.bytes_done(count as u64);
                return Ok(count);
            }
            if let Some(part) = self.batch.next() {
                self.current = std::io::Cursor::new(part);
                continue;
            }
            match self.batches.recv() {
                Ok(Ok(batch)) => self.batch = batch.into_iter(),
                Ok(Err(error)) => return Err(std::io::Error::other(error)),
                Err(_) if self.read == self.bytes => return Ok(0),
                Err(_) => {
                    return Err(std::io::Error::other(
                        "the file could not be fetched to its end",
                    ));
                }
            }
        }
    }
}
