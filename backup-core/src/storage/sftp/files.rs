//! Whole operations on files over one connection.
//!
//! Round trips are what costs, so requests that do not depend on each other are on their way together. Never: a file under
//! its final name whose size was not seen to be right; a listing that ends early without an error.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{Bytes, BytesMut};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use russh_sftp::client::error::Error as SftpError;
use russh_sftp::protocol::{File, FileAttributes, OpenFlags, Packet, StatusCode};

use super::fault::{Fault, is_status};
use super::handles::RemoteHandle;
use super::session::Session;
use crate::error::{Error, ErrorKind};
use crate::storage::{Trial, is_made_of, made_by_another, temporary, trial};

/// How much one request carries: every server takes as much.
const REQUEST_BYTES: usize = 32 << 10;

/// How many of them one file has on its way.
const REQUESTS_IN_FLIGHT: usize = 64;

/// How many directories are listed or made at once.
const DIRECTORIES_IN_FLIGHT: usize = 64;

/// How many parts of a listing are asked for at once.
const LISTING_REQUESTS_IN_FLIGHT: usize = 4;

const DIRECTORY_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;

/// An entry of a directory.
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) size: u64,
}

/// Where a file goes.
pub(super) struct Upload {
    /// The directory that holds it.
    pub(super) directory: String,
    /// Its final name there.
    pub(super) name: String,
    /// Its temporary name there, of this attempt alone: a connection that was given up may still act on its own.
    pub(super) temporary: String,
    /// Make the directory if it does not exist.
    pub(super) make_directory: bool,
    /// Unless there is a file of that name with something else in it.
    pub(super) only_new: bool,
}

impl Upload {
    fn target(&self) -> String {
        join(&self.directory, &self.name)
    }

    fn temporary_path(&self) -> String {
        join(&self.directory, &self.temporary)
    }
}

/// A path below a directory.
pub(super) fn join(directory: &str, name: &str) -> String {
    match (directory, name) {
        (directory, "") => directory.to_owned(),
        (directory, name) if directory.ends_with('/') => format!("{directory}{name}"),
        (directory, name) => format!("{directory}/{name}"),
    }
}

impl Session {
    /// Write a file under a temporary name, verify it, and give it its final name.
    pub(super) async fn upload(&self, upload: &Upload, content: &[Bytes]) -> Result<(), Fault> {
        let target = upload.target();
        let handle = match self.create_file(&upload.temporary_path()).await {
            Err(error) if upload.make_directory && is_status(&error, StatusCode::NoSuchFile) => {
                self.make_directory(&upload.directory).await?;
                self.create_file(&upload.temporary_path()).await
            }
            outcome => outcome,
        };
        let size = content.iter().map(|piece| piece.len() as u64).sum();
        let handle = match handle {
            Ok(handle) => handle,
            Err(error) => return Err(self.write_fault(upload, size, error).await),
        };
        let outcome = async {
            self.write_content(upload, handle, content, size).await?;
            self.publish(upload, content).await
        }
        .await;
        if let Err(Fault::Permanent(_)) = &outcome {
            // The connection is good: leave nothing behind.
            self.remove_quietly(&upload.temporary_path()).await;
        }
        self.cache.forget(&target);
        outcome
    }

    /// Publish a file under a name that is taken for a temporary one, look at it and remove it.
    pub(super) async fn try_out(&self, directory: String) -> Result<Trial, Fault> {
        let before = SystemTime::now();
        let upload = Upload {
            directory,
            name: temporary::new_name(),
            temporary: temporary::new_name(),
            make_directory: false,
            only_new: false,
        };
        let target = upload.target();
        self.upload(&upload, &[Bytes::from_static(b"a trial\n")])
            .await?;
        let after = SystemTime::now();
        let found = self.sftp.stat(target.as_str()).await;
        self.remove(&target).await?;
        let stamp = found
            .map_err(|error| Fault::sftp(format!("cannot look at {target}"), error))?
            .attrs
            .mtime;
        let space = match self.extensions.statvfs {
            true => self.sftp.statvfs(upload.directory.as_str()).await.ok(),
            false => None,
        };
        Ok(Trial {
            bytes_available: space.map(|disk| disk.blocks_avail.saturating_mul(disk.fragment_size)),
            can_replace: self.extensions.posix_rename,
            can_sync: self.extensions.fsync,
            clock_ahead: stamp.map(|seconds| {
                let stamp = UNIX_EPOCH + Duration::from_secs(seconds.into());
                trial::clock_ahead(before, stamp, after)
            }),
        })
    }

    async fn create_file(&self, path: &str) -> Result<RemoteHandle, SftpError> {
        let flags = OpenFlags::WRITE | OpenFlags::CREATE | OpenFlags::EXCLUDE;
        RemoteHandle::open(&self.sftp, &self.handles, path, flags, mode(FILE_MODE)).await
    }

    async fn write_content(
        &self,
        upload: &Upload,
        handle: RemoteHandle,
        content: &[Bytes],
        size: u64,
    ) -> Result<(), Fault> {
        let name = handle.as_str();
        let pieces = pieces_of(content);
        let at_once = pieces.len() <= REQUESTS_IN_FLIGHT;
        let writes =
            stream::iter(pieces)
                .map(|(at, piece)| async move {
                    self.sftp.write(name, at, piece.to_vec()).await.map(drop)
                })
                .buffer_unordered(REQUESTS_IN_FLIGHT)
                .try_for_each(|()| async { Ok(()) });
        let sync = async {
            match self.extensions.fsync {
                true => self.sftp.fsync(name).await.map(drop),
                false => Ok(()),
            }
        };
        // Requests for one handle are served in the order in which they were sent, which is that of this list.
        let finish = async { tokio::join!(biased; self.sftp.fstat(name), sync, handle.close()) };
        let (written, (attributes, synced, closed)) = match at_once {
            true => tokio::join!(biased; writes, finish),
            false => (writes.await, finish.await),
        };
        if let Err(error) = written.and(synced).and(closed) {
            return Err(self.write_fault(upload, size, error).await);
        }
        let found = attributes
            .map_err(|error| Fault::sftp(format!("cannot verify {}", upload.target()), error))?
            .attrs
            .size;
        match found {
            Some(found) if found == size => Ok(()),
            found => {
                let found = found.map_or_else(
                    || "an unknown number of".to_owned(),
                    |found| found.to_string(),
                );
                Err(Fault::Permanent(Error::new(
                    self.kind_of_failed_write(upload, size).await,
                    format!(
                        "{} came out with {found} bytes instead of {size}; it was not kept",
                        upload.target()
                    ),
                )))
            }
        }
    }

    async fn publish(&self, upload: &Upload, content: &[Bytes]) -> Result<(), Fault> {
        let (temporary, target) = (upload.temporary_path(), upload.target());
        let failed = |error| Fault::sftp(format!("cannot publish {target}"), error);
        if self.extensions.posix_rename && !upload.only_new {
            return self.posix_rename(&temporary, &target).await.map_err(failed);
        }
        // A plain rename does not replace anything.
        let Err(refused) = self.sftp.rename(temporary.as_str(), target.as_str()).await else {
            return Ok(());
        };
        if self.size_of(&target).await?.is_none() {
            return Err(failed(refused));
        }
        if self.holds(&target, content).await? {
            // It was published before, perhaps by an attempt whose answer was lost.
            self.remove_quietly(&temporary).await;
            return Ok(());
        }
        if upload.only_new {
            return Err(Fault::Permanent(made_by_another(target)));
        }
        // What is there is not what it must be. It steps aside, and back again if its successor does not come.
        let aside = join(&upload.directory, &temporary::new_name());
        self.sftp
            .rename(target.as_str(), aside.as_str())
            .await
            .map_err(failed)?;
        if let Err(error) = self.sftp.rename(temporary.as_str(), target.as_str()).await {
            if let Err(error) = self.sftp.rename(aside.as_str(), target.as_str()).await {
                tracing::error!(%error, path = target, aside, "a file could not be put back under its name");
            }
            return Err(failed(error));
        }
        self.remove_quietly(&aside).await;
        Ok(())
    }

    /// Whether a file is just this.
    async fn holds(&self, path: &str, content: &[Bytes]) -> Result<bool, Fault> {
        let size = content.iter().map(|piece| piece.len() as u64).sum();
        if self.size_of(path).await? != Some(size) {
            return Ok(false);
        }
        Ok(is_made_of(&self.download(path).await?, content))
    }

    async fn posix_rename(&self, from: &str, to: &str) -> Result<(), SftpError> {
        let mut arguments = Vec::with_capacity(from.len() + to.len() + 8);
        for path in [from, to] {
            let length = u32::try_from(path.len())
                .map_err(|_| SftpError::Limited("a path is too long".into()))?;
            arguments.extend(length.to_be_bytes());
            arguments.extend(path.as_bytes());
        }
        match self
            .sftp
            .extended("posix-rename@openssh.com", arguments)
            .await?
        {
            Packet::Status(status) if status.status_code == StatusCode::Ok => Ok(()),
            Packet::Status(status) => Err(status.into()),
            _ => Err(SftpError::UnexpectedPacket),
        }
    }

    /// Servers say only "Failure" when a disk is full: look whether that is why.
    async fn write_fault(&self, upload: &Upload, size: u64, error: SftpError) -> Fault {
        let message = format!("cannot write {}", upload.target());
        if !is_status(&error, StatusCode::Failure) {
            return Fault::sftp(message, error);
        }
        match self.kind_of_failed_write(upload, size).await {
            ErrorKind::NoSpace => Fault::Permanent(Error::caused(
                ErrorKind::NoSpace,
                format!("{message}: the disk of the server is full"),
                error,
            )),
            kind => Fault::Permanent(Error::caused(
                kind,
                format!(
                    "{message}: the server says no more than that (a quota, a bad disk or a missing right?)"
                ),
                error,
            )),
        }
    }

    async fn kind_of_failed_write(&self, upload: &Upload, size: u64) -> ErrorKind {
        if !self.extensions.statvfs {
            return ErrorKind::Failed;
        }
        match self.sftp.statvfs(upload.directory.as_str()).await {
            Ok(disk)
                if disk.blocks_avail.saturating_mul(disk.fragment_size) < size
                    || (disk.inodes > 0 && disk.inodes_avail == 0) =>
            {
                ErrorKind::NoSpace
            }
            _ => ErrorKind::Failed,
        }
    }

    /// A whole file.
    pub(super) async fn download(&self, path: &str) -> Result<Bytes, Fault> {
        let handle = self.open_to_read(path).await?;
        // Most files are small: the first piece comes along with the size.
        let (attributes, first) = tokio::join!(
            self.sftp.fstat(handle.as_str()),
            self.sftp.read(handle.as_str(), 0, REQUEST_BYTES as u32)
        );
        let failed = |error| Fault::sftp(format!("cannot read {path}"), error);
        let size = attributes.map_err(failed)?.attrs.size.ok_or_else(|| {
            Fault::Permanent(Error::new(
                ErrorKind::Failed,
                format!("the server does not say how large {path} is"),
            ))
        })?;
        let first = match first {
            Ok(answer) => Bytes::from(answer.data),
            Err(error) if is_status(&error, StatusCode::Eof) => Bytes::new(),
            Err(error) => return Err(failed(error)),
        };
        if first.len() as u64 >= size {
            return Ok(first);
        }
        let rest = self
            .read_pieces(path, &handle, first.len() as u64, size - first.len() as u64)
            .await?;
        let mut content = BytesMut::from(first);
        content.unsplit(rest);
        Ok(content.freeze())
    }

    /// Part of a file. Packs that are read like this stay open for a while.
    pub(super) async fn download_range(
        &self,
        path: &str,
        keep_open: bool,
        offset: u64,
        length: u64,
    ) -> Result<Bytes, Fault> {
        let handle = match self.cache.get(path).filter(|_| keep_open) {
            Some(handle) => handle,
            None => {
                let handle = Arc::new(self.open_to_read(path).await?);
                if keep_open {
                    self.cache.put(path.to_owned(), handle.clone());
                }
                handle
            }
        };
        self.read_pieces(path, &handle, offset, length)
            .await
            .map(BytesMut::freeze)
    }

    async fn open_to_read(&self, path: &str) -> Result<RemoteHandle, Fault> {
        RemoteHandle::open(
            &self.sftp,
            &self.handles,
            path,
            OpenFlags::READ,
            FileAttributes::empty(),
        )
        .await
        .map_err(|error| Fault::sftp(format!("cannot open {path}"), error))
    }

    /// Exactly so many bytes.
    async fn read_pieces(
        &self,
        path: &str,
        handle: &RemoteHandle,
        offset: u64,
        length: u64,
    ) -> Result<BytesMut, Fault> {
        let too_early = |end: u64| {
            Fault::Permanent(Error::new(
                ErrorKind::Damaged,
                format!("{path} ends at {end}, too early for {length} bytes from {offset}"),
            ))
        };
        let end = offset
            .checked_add(length)
            .ok_or_else(|| too_early(offset))?;
        let mut pieces = stream::iter((offset..end).step_by(REQUEST_BYTES))
            .map(|at| {
                self.read_piece(
                    handle,
                    at,
                    REQUEST_BYTES.min(usize::try_from(end - at).unwrap_or(REQUEST_BYTES)),
                )
            })
            .buffered(REQUESTS_IN_FLIGHT);
        // Grows as the bytes come: the length may be a lie of a damaged index.
        let mut content = BytesMut::new();
        while let Some(piece) = pieces.next().await {
            let piece = piece.map_err(|error| Fault::sftp(format!("cannot read {path}"), error))?;
            content.extend_from_slice(&piece);
            let expected =
                (content.len() as u64).div_ceil(REQUEST_BYTES as u64) * REQUEST_BYTES as u64;
            if (content.len() as u64) < expected.min(length) || piece.is_empty() {
                return Err(too_early(offset + content.len() as u64));
            }
        }
        Ok(content)
    }

    /// Up to so many bytes; fewer only at the end of the file.
    async fn read_piece(
        &self,
        handle: &RemoteHandle,
        offset: u64,
        length: usize,
    ) -> Result<Bytes, SftpError> {
        let mut piece = Vec::new();
        while piece.len() < length {
            let missing = u32::try_from(length - piece.len()).unwrap_or(u32::MAX);
            match self
                .sftp
                .read(handle.as_str(), offset + piece.len() as u64, missing)
                .await
            {
                Ok(answer) if answer.data.is_empty() => break,
                Ok(answer) if piece.is_empty() => piece = answer.data,
                Ok(answer) => piece.extend_from_slice(&answer.data),
                Err(error) if is_status(&error, StatusCode::Eof) => break,
                Err(error) => return Err(error),
            }
        }
        piece.truncate(length);
        Ok(piece.into())
    }

    /// The size of a file, if it exists.
    pub(super) async fn size_of(&self, path: &str) -> Result<Option<u64>, Fault> {
        match self.sftp.stat(path).await {
            Ok(answer) => Ok(Some(answer.attrs.size.unwrap_or_default())),
            Err(error) if is_status(&error, StatusCode::NoSuchFile) => Ok(None),
            Err(error) => Err(Fault::sftp(format!("cannot look at {path}"), error)),
        }
    }

    /// The regular files of a directory. What uploads that crashed long ago left there is removed on the way.
    pub(super) async fn list(&self, directory: &str) -> Result<Vec<Entry>, Fault> {
        let files = self.read_directory(directory).await?;
        let mut entries = Vec::with_capacity(files.len());
        for file in files {
            let path = join(directory, &file.filename);
            if temporary::is_ours(&file.filename) {
                if is_abandoned(&file.attrs) {
                    tracing::info!(path, "removing an abandoned temporary file");
                    self.remove_quietly(&path).await;
                }
                continue;
            }
            let kind = file.attrs.file_type();
            let size = match file.attrs.size {
                _ if kind.is_dir() || kind.is_other() && file.attrs.permissions.is_some() => {
                    continue;
                }
                Some(size) if !kind.is_symlink() => size,
                // Listings tell of links, not of what they point to.
                _ => match self.size_of(&path).await? {
                    Some(size) => size,
                    None => continue,
                },
            };
            entries.push(Entry {
                name: file.filename,
                size,
            });
        }
        Ok(entries)
    }

    /// The regular files of those of the directories that exist.
    pub(super) async fn list_existing(
        &self,
        directories: Vec<String>,
    ) -> Result<Vec<Entry>, Fault> {
        let lists: Vec<Vec<Entry>> = stream::iter(directories)
            .map(|directory| async move {
                match self.list(&directory).await {
                    Err(Fault::Permanent(error)) if error.kind() == ErrorKind::NotFound => {
                        Ok(Vec::new())
                    }
                    outcome => outcome,
                }
            })
            .buffer_unordered(DIRECTORIES_IN_FLIGHT)
            .try_collect()
            .await?;
        Ok(lists.into_iter().flatten().collect())
    }

    async fn read_directory(&self, directory: &str) -> Result<Vec<File>, Fault> {
        let failed = |error| Fault::sftp(format!("cannot list {directory}"), error);
        let handle = RemoteHandle::open_directory(&self.sftp, &self.handles, directory)
            .await
            .map_err(failed)?;
        let mut files = Vec::new();
        loop {
            let answers = stream::iter(0..LISTING_REQUESTS_IN_FLIGHT)
                .map(|_| self.sftp.readdir(handle.as_str()))
                .buffered(LISTING_REQUESTS_IN_FLIGHT)
                .collect::<Vec<_>>()
                .await;
            for answer in answers {
                match answer {
                    Ok(mut part) => files.append(&mut part.files),
                    Err(error) if is_status(&error, StatusCode::Eof) => return Ok(files),
                    Err(error) => return Err(failed(error)),
                }
            }
        }
    }

    /// Make directories that do not depend on each other.
    pub(super) async fn make_directories(&self, directories: Vec<String>) -> Result<(), Fault> {
        stream::iter(directories)
            .map(|directory| async move { self.make_directory(&directory).await })
            .buffer_unordered(DIRECTORIES_IN_FLIGHT)
            .try_collect()
            .await
    }

    /// Make a directory, and those above it, unless it exists.
    pub(super) async fn make_directory_path(&self, path: &str) -> Result<(), Fault> {
        let mut missing = Vec::new();
        let mut rest = path.trim_end_matches('/');
        while !rest.is_empty() && !self.is_directory(rest).await? {
            missing.push(rest.to_owned());
            rest = rest
                .rsplit_once('/')
                .map_or("", |(parent, _)| parent)
                .trim_end_matches('/');
        }
        for directory in missing.iter().rev() {
            self.make_directory(directory).await?;
        }
        Ok(())
    }

    async fn make_directory(&self, path: &str) -> Result<(), Fault> {
        let Err(error) = self.sftp.mkdir(path, mode(DIRECTORY_MODE)).await else {
            return Ok(());
        };
        // Servers say only "Failure" where there is one already.
        match is_status(&error, StatusCode::Failure) && self.is_directory(path).await? {
            true => Ok(()),
            false => Err(Fault::sftp(
                format!("cannot create the directory {path}"),
                error,
            )),
        }
    }

    async fn is_directory(&self, path: &str) -> Result<bool, Fault> {
        match self.sftp.stat(path).await {
            Ok(answer) => Ok(answer.attrs.file_type().is_dir()),
            Err(error) if is_status(&error, StatusCode::NoSuchFile) => Ok(false),
            Err(error) => Err(Fault::sftp(format!("cannot look at {path}"), error)),
        }
    }

    /// Whether there is a directory, with something in it unless it `may_be_empty`.
    pub(super) async fn has_directory(
        &self,
        path: &str,
        may_be_empty: bool,
    ) -> Result<bool, Fault> {
        let is_there = self.is_directory(path).await?;
        if !is_there || may_be_empty {
            return Ok(is_there);
        }
        let files = self.read_directory(path).await?;
        Ok(files
            .iter()
            .any(|file| !matches!(file.filename.as_str(), "." | "..")))
    }

    /// Remove a file. One that is not there is fine.
    pub(super) async fn remove(&self, path: &str) -> Result<(), Fault> {
        self.cache.forget(path);
        match self.sftp.remove(path).await {
            Ok(_) => Ok(()),
            Err(error) if is_status(&error, StatusCode::NoSuchFile) => Ok(()),
            Err(error) => Err(Fault::sftp(format!("cannot remove {path}"), error)),
        }
    }

    /// Remove a temporary file of ours, best effort: what stays is only in the way of free space, until it is a day old.
    pub(super) async fn remove_quietly(&self, path: &str) {
        if let Err(fault) = self.remove(path).await {
            tracing::warn!(
                path,
                error = fault.into_error().chain(),
                "a temporary file stays behind"
            );
        }
    }
}

/// What each write request carries, with its offset.
fn pieces_of(content: &[Bytes]) -> Vec<(u64, Bytes)> {
    let mut pieces = Vec::new();
    let mut offset = 0;
    for part in content {
        let mut rest = part.clone();
        while !rest.is_empty() {
            let piece = rest.split_to(rest.len().min(REQUEST_BYTES));
            let length = piece.len() as u64;
            pieces.push((offset, piece));
            offset += length;
        }
    }
    pieces
}

fn is_abandoned(attributes: &FileAttributes) -> bool {
    attributes.mtime.is_some_and(|seconds| {
        SystemTime::now()
            .duration_since(UNIX_EPOCH + Duration::from_secs(seconds.into()))
            .is_ok_and(|age| age > temporary::ABANDONED_AFTER)
    })
}

fn mode(mode: u32) -> FileAttributes {
    FileAttributes {
        permissions: Some(mode),
        ..FileAttributes::empty()
    }
}
