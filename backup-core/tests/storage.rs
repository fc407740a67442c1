//! What storage promises, kept by every kind of it, and what SFTP promises besides.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::time::{Duration, Instant, SystemTime};

use backup_core::config::{Config, Environment, Origin};
use backup_core::error::{Error, ErrorKind};
use backup_core::operations::init_repository;
use backup_core::progress::Cancel;
use backup_core::repository::Repository;
use backup_core::storage::{self, AccessKey, FileId, FileKind, Location, Storage, StorageOptions};
use bytes::Bytes;
use tempfile::TempDir;
use xtask::certificate::make_certificate;
use xtask::mount::Mount;
use xtask::nginx::Nginx;
use xtask::proxy::Proxy;
use xtask::restic::Restic;
use xtask::s3::{BUCKET, S3};
use xtask::sshd::{Sshd, make_key, make_key_of};

const KINDS: [FileKind; 5] = [
    FileKind::Key,
    FileKind::Lock,
    FileKind::Snapshot,
    FileKind::Index,
    FileKind::Pack,
];

/// A repository directory and the storage that leads to it.
struct Bed {
    // Dropped in this order: the connections before the server.
    storage: Arc<dyn Storage>,
    _sshd: Option<Sshd>,
    s3: Option<S3>,
    directory: TempDir,
}

impl Bed {
    fn local() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let storage = open_local(&root_of(&directory));
        storage.create().unwrap();
        Self {
            storage,
            _sshd: None,
            s3: None,
            directory,
        }
    }

    fn sftp() -> Self {
        Self::sftp_with(&[])
    }

    fn sftp_with(settings: &[&str]) -> Self {
        let sshd = Sshd::start_with(settings).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let storage = open(&sshd, sshd.port(), &root_of(&directory), PATIENCE).unwrap();
        storage.create().unwrap();
        Self {
            storage,
            _sshd: Some(sshd),
            s3: None,
            directory,
        }
    }

    fn s3() -> Self {
        let s3 = S3::start().unwrap();
        let storage = open_bucket(&s3, s3.port(), PATIENCE).unwrap();
        storage.create().unwrap();
        Self {
            storage,
            _sshd: None,
            s3: Some(s3),
            directory: tempfile::tempdir().unwrap(),
        }
    }

    fn root(&self) -> PathBuf {
        match &self.s3 {
            Some(s3) => s3.bucket().join(PREFIX),
            None => root_of(&self.directory),
        }
    }
}

/// That of the repository in its bucket.
const PREFIX: &str = "the repository";

const PATIENCE: Duration = Duration::from_secs(10);

fn root_of(directory: &TempDir) -> PathBuf {
    directory.path().join("the repository")
}

fn open_local(root: &Path) -> Arc<dyn Storage> {
    storage::open(&Location::from(root), &StorageOptions::default()).unwrap()
}

fn options(sshd: &Sshd, retry_for: Duration) -> StorageOptions {
    StorageOptions {
        ssh_key: Some(sshd.client_key()),
        known_hosts: Some(sshd.known_hosts()),
        retry_for,
        ..StorageOptions::default()
    }
}

fn open(
    sshd: &Sshd,
    port: u16,
    path: &Path,
    retry_for: Duration,
) -> Result<Arc<dyn Storage>, Error> {
    let mut options = options(sshd, retry_for);
    if port != sshd.port() {
        // The key of the server behind the proxy.
        let file = sshd.known_hosts().with_extension(port.to_string());
        let line = format!("[127.0.0.1]:{port} {}", sshd.host_key().unwrap());
        fs::write(&file, line).unwrap();
        options.known_hosts = Some(file);
    }
    storage::open(&sshd.location_at(port, path).parse().unwrap(), &options)
}

fn bucket_options(s3: &S3, retry_for: Duration) -> StorageOptions {
    StorageOptions {
        access_key: Some(access_key(s3.key_id(), s3.secret())),
        retry_for,
        ..StorageOptions::default()
    }
}

fn access_key(id: &str, secret: &str) -> AccessKey {
    AccessKey {
        id: id.to_owned(),
        secret: secret.into(),
        session_token: None,
    }
}

fn open_bucket(s3: &S3, port: u16, retry_for: Duration) -> Result<Arc<dyn Storage>, Error> {
    let location = s3.location_at(port, PREFIX).parse().unwrap();
    storage::open(&location, &bucket_options(s3, retry_for))
}

fn id(n: u32) -> FileId {
    let mut id = [7; 32];
    // The first byte says in which directory a pack is.
    id[..4].copy_from_slice(&n.to_le_bytes());
    FileId(id)
}

fn content(n: u32, length: usize) -> Bytes {
    let mut state = u64::from(n) * 2 + 1;
    let mut content = Vec::with_capacity(length + 8);
    while content.len() < length {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        content.extend((state >> 16).to_le_bytes());
    }
    content.truncate(length);
    content.into()
}

fn path_of(root: &Path, kind: FileKind, id: &FileId) -> PathBuf {
    let name = id.to_string();
    match kind {
        FileKind::Config => root.join("config"),
        FileKind::Pack => root.join("data").join(&name[..2]).join(name),
        kind => root.join(directory_of(kind)).join(name),
    }
}

fn directory_of(kind: FileKind) -> &'static str {
    match kind {
        FileKind::Config => "",
        FileKind::Key => "keys",
        FileKind::Lock => "locks",
        FileKind::Snapshot => "snapshots",
        FileKind::Index => "index",
        FileKind::Pack => "data",
    }
}

/// Every file below a directory.
fn files_below(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    // A store has no directory without an object.
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return found,
        entries => entries.unwrap(),
    };
    for entry in entries {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(files_below(&path)),
            false => found.push(path),
        }
    }
    found
}

/// Like `assert_eq`, without printing megabytes.
#[track_caller]
fn assert_same(one: &[u8], other: &[u8]) {
    assert!(
        one == other,
        "{} bytes differ from {} bytes",
        one.len(),
        other.len()
    );
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

mod promises {
    use super::*;

    pub(super) fn what_was_written_is_read_back_whole_and_in_parts(bed: &Bed) {
        let lengths = [0, 1, 32 << 10, (32 << 10) + 1, 100_000, (5 << 20) + 17];
        for (n, length) in lengths.into_iter().enumerate() {
            let (id, whole) = (id(n as u32), content(n as u32, length));
            let half = length / 2;
            // No config, key or lock is that large, and none is read that is.
            let is_small = |kind| matches!(kind, FileKind::Config | FileKind::Key | FileKind::Lock);
            for kind in KINDS
                .into_iter()
                .filter(|kind| length <= 1 << 20 || !is_small(*kind))
            {
                let pieces = [whole.slice(..half), Bytes::new(), whole.slice(half..)];
                bed.storage.write(kind, &id, &pieces).unwrap();
                assert_same(&bed.storage.read(kind, &id).unwrap(), &whole);
                let on_disk = fs::read(path_of(&bed.root(), kind, &id)).unwrap();
                assert_same(&on_disk, &whole);
                for (from, to) in [
                    (0, length),
                    (half, length),
                    (length, length),
                    (length / 3, half),
                ] {
                    let part = bed
                        .storage
                        .read_range(kind, &id, from as u64, (to - from) as u64)
                        .unwrap();
                    assert_same(&part, &whole.slice(from..to));
                }
            }
        }
        let config = content(99, 155);
        bed.storage
            .write(FileKind::Config, &id(1), std::slice::from_ref(&config))
            .unwrap();
        let read = bed.storage.read(FileKind::Config, &FileId::default());
        assert_same(&read.unwrap(), &config);
        let listed = bed.storage.list(FileKind::Config).unwrap();
        assert_eq!(listed, [(FileId::default(), 155)]);
    }

    pub(super) fn a_listing_has_every_file_with_its_size_and_nothing_else(bed: &Bed) {
        let expected: BTreeSet<_> = (0..700).map(|n| (id(2 * n), u64::from(n) + 1)).collect();
        for (id, size) in &expected {
            // Many at once are tried elsewhere; this is about the listing.
            for kind in [FileKind::Pack, FileKind::Snapshot] {
                fs::write(path_of(&bed.root(), kind, id), vec![1; *size as usize]).unwrap();
            }
        }
        let snapshots = bed.root().join("snapshots");
        fs::write(snapshots.join(".tmp-1-0123456789abcdef"), "unfinished").unwrap();
        fs::write(snapshots.join("README"), "a stranger").unwrap();
        fs::create_dir(snapshots.join("ab".repeat(32))).unwrap();
        fs::write(snapshots.join(OsStr::from_bytes(b"\xff\xfe")), "no text").unwrap();
        let dangling = snapshots.join("cd".repeat(32));
        symlink("/nonexistent", dangling).unwrap();
        fs::remove_dir(bed.root().join("data/ff")).unwrap();
        // A file that an operator moved to another disk is still there.
        let moved = path_of(&bed.root(), FileKind::Pack, &id(20));
        fs::rename(&moved, bed.root().join("elsewhere")).unwrap();
        symlink(bed.root().join("elsewhere"), moved).unwrap();
        for kind in [FileKind::Pack, FileKind::Snapshot] {
            let listed = bed.storage.list(kind).unwrap();
            assert_eq!(listed.len(), expected.len());
            assert_eq!(listed.into_iter().collect::<BTreeSet<_>>(), expected);
        }
        assert_eq!(bed.storage.list(FileKind::Index).unwrap(), []);
        assert_eq!(bed.storage.list(FileKind::Config).unwrap(), []);
    }

    pub(super) fn a_directory_that_is_gone_is_not_an_empty_one(bed: &Bed) {
        for kind in KINDS {
            fs::remove_dir_all(bed.root().join(directory_of(kind))).unwrap();
            let error = bed.storage.list(kind).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NotFound, "{error:?}");
        }
        assert_eq!(bed.storage.list(FileKind::Config).unwrap(), []);
    }

    pub(super) fn what_is_not_there_is_not_found(bed: &Bed) {
        for kind in KINDS.into_iter().chain([FileKind::Config]) {
            let error = bed.storage.read(kind, &id(1)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NotFound);
            let error = bed.storage.read_range(kind, &id(1), 0, 1).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NotFound);
            bed.storage.remove(kind, &id(1)).unwrap();
        }
    }

    pub(super) fn a_range_beyond_the_end_is_damage_not_less(bed: &Bed) {
        let whole = content(1, 40_000);
        bed.storage.write(FileKind::Pack, &id(1), &[whole]).unwrap();
        for (offset, length) in [
            (0, 40_001),
            (39_999, 2),
            (40_001, 1),
            (50_000, 10),
            (0, 1 << 40),
            (u64::MAX, 2),
        ] {
            let error = bed
                .storage
                .read_range(FileKind::Pack, &id(1), offset, length)
                .unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Damaged, "{error:?}");
        }
    }

    pub(super) fn a_file_that_is_there_is_replaced(bed: &Bed) {
        for kind in KINDS {
            for n in [1, 2, 2] {
                bed.storage
                    .write(kind, &id(1), &[content(n, 70_000)])
                    .unwrap();
                // Also for whoever has read it before.
                let read = bed.storage.read_range(kind, &id(1), 0, 70_000).unwrap();
                assert_same(&read, &content(n, 70_000));
            }
            // A file that somebody truncated is mended by writing it again.
            fs::write(path_of(&bed.root(), kind, &id(1)), "short").unwrap();
            bed.storage
                .write(kind, &id(1), &[content(2, 70_000)])
                .unwrap();
            assert_same(
                &bed.storage.read(kind, &id(1)).unwrap(),
                &content(2, 70_000),
            );
            bed.storage.remove(kind, &id(1)).unwrap();
            let error = bed.storage.read_range(kind, &id(1), 0, 1).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NotFound);
        }
        assert_eq!(files_below(&bed.root()), [] as [PathBuf; 0]);
    }

    pub(super) fn a_config_is_made_once_by_whoever_comes_first(bed: &Bed) {
        let make = |n| {
            bed.storage
                .write(FileKind::Config, &id(0), &[content(n, 155)])
        };
        make(1).unwrap();
        let error = make(2).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Busy, "{error:?}");
        let config = bed.storage.read(FileKind::Config, &id(0)).unwrap();
        assert_same(&config, &content(1, 155));
        // Whoever made it and did not hear so has made it.
        make(1).unwrap();
        assert_eq!(files_below(&bed.root()), [bed.root().join("config")]);
        bed.storage.remove(FileKind::Config, &id(0)).unwrap();
        make(2).unwrap();
    }

    pub(super) fn of_many_inits_at_once_one_makes_a_repository_that_can_be_opened(bed: &Bed) {
        const INITS: usize = 6;
        let password = "correct horse".to_owned().into();
        let together = Barrier::new(INITS);
        let outcomes: Vec<_> = std::thread::scope(|scope| {
            let init = || {
                together.wait();
                Repository::init(Arc::clone(&bed.storage), &password)
            };
            let threads: Vec<_> = (0..INITS).map(|_| scope.spawn(init)).collect();
            let ended = threads.into_iter().map(|thread| thread.join().unwrap());
            ended.collect()
        });
        let mut told = Vec::new();
        for outcome in outcomes {
            match outcome {
                Ok(repository) => told.push(repository.id()),
                Err(error) => assert_eq!(error.kind(), ErrorKind::Busy, "{error:?}"),
            }
        }
        let opened = Repository::open(Arc::clone(&bed.storage), &password).unwrap();
        assert_eq!(told, [opened.id()]);
        // Whichever program tries its keys in whatever order.
        assert_eq!(bed.storage.list(FileKind::Key).unwrap().len(), 1);
    }

    pub(super) fn creating_is_safe_to_repeat_and_private(bed: &Bed) {
        let content = content(1, 10);
        bed.storage
            .write(FileKind::Pack, &id(1), &[content])
            .unwrap();
        bed.storage.create().unwrap();
        bed.storage.create().unwrap();
        assert_eq!(bed.storage.list(FileKind::Pack).unwrap(), [(id(1), 10)]);
        let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode(bed.root()), 0o700);
        assert_eq!(mode(bed.root().join("data/00")), 0o700);
        assert_eq!(mode(path_of(&bed.root(), FileKind::Pack, &id(1))), 0o600);
    }

    pub(super) fn a_pack_directory_that_is_missing_is_made(bed: &Bed) {
        fs::remove_dir(bed.root().join("data/01")).unwrap();
        bed.storage
            .write(FileKind::Pack, &id(1), &[content(1, 10)])
            .unwrap();
        assert_same(
            &bed.storage.read(FileKind::Pack, &id(1)).unwrap(),
            &content(1, 10),
        );
    }

    pub(super) fn abandoned_temporary_files_are_removed_and_fresh_ones_kept(bed: &Bed) {
        let old = |name: &str| {
            let path = bed.root().join(name);
            fs::write(&path, "left").unwrap();
            let file = fs::File::options().write(true).open(&path).unwrap();
            let yesterday = SystemTime::now() - Duration::from_secs(25 * 3600);
            file.set_modified(yesterday).unwrap();
            path
        };
        let ours = [
            ".tmp-17-0123456789abcdef",
            "data/0a/.tmp-17-0123456789abcdef",
            "index/.tmp-9-ffffffffffffffff",
        ]
        .map(old);
        let others = ["data/0a/.tmp-something", "index/backup~"].map(old);
        let fresh = bed.root().join("data/0a/.tmp-18-0123456789abcdef");
        fs::write(&fresh, "being written").unwrap();

        bed.storage.create().unwrap();
        bed.storage.list(FileKind::Pack).unwrap();
        bed.storage.list(FileKind::Index).unwrap();

        let left = files_below(&bed.root());
        assert!(ours.iter().all(|path| !path.exists()), "{left:?}");
        let mut kept = others.iter().chain([&fresh]);
        assert!(kept.all(|path| path.exists()), "{left:?}");
    }

    pub(super) fn twenty_threads_at_once_get_what_they_asked_for(bed: &Bed) {
        std::thread::scope(|scope| {
            for thread in 0..20_u32 {
                scope.spawn(move || {
                    for n in 0..6 {
                        let (id, whole) = (
                            id(thread * 100 + n),
                            content(thread * 100 + n, 60_000 * n as usize),
                        );
                        let (storage, kind) = (&bed.storage, FileKind::Pack);
                        storage
                            .write(kind, &id, std::slice::from_ref(&whole))
                            .unwrap();
                        assert_same(&storage.read(kind, &id).unwrap(), &whole);
                        let half = whole.len() / 2;
                        let part = storage.read_range(kind, &id, 0, half as u64).unwrap();
                        assert_same(&part, &whole.slice(..half));
                        if n == 3 {
                            storage.list(kind).unwrap();
                            storage.remove(kind, &id).unwrap();
                        }
                    }
                });
            }
        });
        assert_eq!(bed.storage.list(FileKind::Pack).unwrap().len(), 20 * 5);
        assert_eq!(files_below(&bed.root()).len(), 20 * 5);
    }
}

macro_rules! keeps {
    ($($promise:ident),* $(,)?) => {
        mod local {
            $(#[test] fn $promise() { super::promises::$promise(&super::Bed::local()); })*
        }
        mod sftp {
            $(#[test] fn $promise() { super::promises::$promise(&super::Bed::sftp()); })*
        }
    };
}

mod s3 {
    use super::{Bed, promises};

    macro_rules! keeps {
        ($($promise:ident),* $(,)?) => { $(#[test] fn $promise() { promises::$promise(&Bed::s3()); })* };
    }

    // The others are about directories.
    keeps!(
        what_was_written_is_read_back_whole_and_in_parts,
        what_is_not_there_is_not_found,
        a_range_beyond_the_end_is_damage_not_less,
        a_file_that_is_there_is_replaced,
        a_config_is_made_once_by_whoever_comes_first,
        of_many_inits_at_once_one_makes_a_repository_that_can_be_opened,
        twenty_threads_at_once_get_what_they_asked_for,
    );
}

keeps!(
    what_was_written_is_read_back_whole_and_in_parts,
    a_listing_has_every_file_with_its_size_and_nothing_else,
    a_directory_that_is_gone_is_not_an_empty_one,
    what_is_not_there_is_not_found,
    a_range_beyond_the_end_is_damage_not_less,
    a_file_that_is_there_is_replaced,
    a_config_is_made_once_by_whoever_comes_first,
    of_many_inits_at_once_one_makes_a_repository_that_can_be_opened,
    creating_is_safe_to_repeat_and_private,
    a_pack_directory_that_is_missing_is_made,
    abandoned_temporary_files_are_removed_and_fresh_ones_kept,
    twenty_threads_at_once_get_what_they_asked_for,
);

/// A call that something happens beside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Moment {
    BeforeWrite(FileKind),
    AfterWrite(FileKind),
    BeforeRemove(FileKind),
}

/// A directory in which somebody else does something at a moment of his choice.
#[derive(Clone)]
struct Meddled {
    inner: Arc<dyn Storage>,
    meddle: Arc<dyn Fn(Moment) + Send + Sync>,
}

impl Meddled {
    fn at(root: &Path, meddle: impl Fn(Moment) + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self {
            inner: open_local(root),
            meddle: Arc::new(meddle),
        })
    }
}

impl std::fmt::Debug for Meddled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.inner.fmt(f)
    }
}

impl Storage for Meddled {
    fn location(&self) -> &str {
        self.inner.location()
    }

    fn create(&self) -> Result<(), Error> {
        self.inner.create()
    }

    fn list(&self, kind: FileKind) -> Result<Vec<(FileId, u64)>, Error> {
        self.inner.list(kind)
    }

    fn read(&self, kind: FileKind, id: &FileId) -> Result<Bytes, Error> {
        self.inner.read(kind, id)
    }

    fn read_range(
        &self,
        kind: FileKind,
        id: &FileId,
        at: u64,
        length: u64,
    ) -> Result<Bytes, Error> {
        self.inner.read_range(kind, id, at, length)
    }

    fn write(&self, kind: FileKind, id: &FileId, content: &[Bytes]) -> Result<(), Error> {
        (self.meddle)(Moment::BeforeWrite(kind));
        self.inner.write(kind, id, content)?;
        (self.meddle)(Moment::AfterWrite(kind));
        Ok(())
    }

    fn remove(&self, kind: FileKind, id: &FileId) -> Result<(), Error> {
        (self.meddle)(Moment::BeforeRemove(kind));
        self.inner.remove(kind, id)
    }

    fn with_stop(&self, _stop: &Cancel) -> Arc<dyn Storage> {
        Arc::new(self.clone())
    }
}

#[test]
fn an_init_gives_back_the_key_of_one_that_was_slow_and_not_dead() {
    let directory = tempfile::tempdir().unwrap();
    let root = root_of(&directory);
    let password = "correct horse".to_owned().into();
    let slow = Repository::init(open_local(&root), &password).unwrap().id();
    let (config, aside) = (root.join("config"), root.join("not yet"));
    fs::rename(&config, &aside).unwrap();
    // It comes between the last look for it and the removal of its key.
    let meddled = Meddled::at(&root, move |moment| {
        if moment == Moment::BeforeRemove(FileKind::Key) && aside.exists() {
            fs::rename(&aside, &config).unwrap();
        }
    });
    let error = Repository::init(meddled, &password).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy, "{error:?}");
    assert_eq!(files_below(&root.join("keys")).len(), 1);
    let opened = Repository::open(open_local(&root), &password).unwrap();
    assert_eq!(opened.id(), slow);
}

#[test]
fn an_init_that_was_taken_for_dead_brings_its_key_back() {
    let directory = tempfile::tempdir().unwrap();
    let root = root_of(&directory);
    let password = "correct horse".to_owned().into();
    let keys = root.join("keys");
    let meddled = Meddled::at(&root, move |moment| {
        if moment == Moment::BeforeWrite(FileKind::Config) {
            for key in files_below(&keys) {
                fs::remove_file(key).unwrap();
            }
        }
    });
    let told = Repository::init(meddled, &password).unwrap().id();
    let opened = Repository::open(open_local(&root), &password).unwrap();
    assert_eq!(opened.id(), told);
}

#[test]
fn a_repository_that_cannot_be_opened_is_not_told_as_made_and_bars_no_other() {
    let directory = tempfile::tempdir().unwrap();
    let root = root_of(&directory);
    let password = "correct horse".to_owned().into();
    let keys = root.join("keys");
    let meddled = Meddled::at(&root, move |moment| {
        if moment == Moment::AfterWrite(FileKind::Key) {
            for key in files_below(&keys) {
                fs::write(key, "{}").unwrap();
            }
        }
    });
    let error = Repository::init(meddled, &password).unwrap_err();
    assert!(error.to_string().contains("run `init` again"), "{error:?}");
    assert_eq!(files_below(&root), [] as [PathBuf; 0]);
    Repository::init(open_local(&root), &password).unwrap();
}

#[test]
fn a_repository_that_cannot_be_opened_is_not_taken_back_from_whoever_uses_it() {
    let directory = tempfile::tempdir().unwrap();
    let root = root_of(&directory);
    let password = "correct horse".to_owned().into();
    let snapshot = path_of(&root, FileKind::Snapshot, &id(1));
    let keys = root.join("keys");
    let whole = directory.path().join("key");
    let aside = whole.clone();
    // Its key is spoilt once somebody has opened it.
    let meddled = Meddled::at(&root, move |moment| {
        if moment == Moment::AfterWrite(FileKind::Config) {
            fs::write(&snapshot, "a backup").unwrap();
            let key = files_below(&keys).remove(0);
            fs::rename(&key, &aside).unwrap();
            fs::write(&key, "{}").unwrap();
        }
    });
    let error = Repository::init(meddled, &password).unwrap_err();
    let said = error.to_string();
    assert!(said.contains("nothing of it was removed"), "{error:?}");
    assert!(said.contains("there are snapshots"), "{error:?}");
    assert_eq!(files_below(&root).len(), 3);
    let key = files_below(&root.join("keys")).remove(0);
    fs::rename(whole, key).unwrap();
    Repository::open(open_local(&root), &password).unwrap();
}

#[test]
fn a_key_that_somebody_adds_to_a_new_repository_stays_and_one_that_bars_it_goes() {
    let directory = tempfile::tempdir().unwrap();
    let root = root_of(&directory);
    let password = "correct horse".to_owned().into();
    let elsewhere = directory.path().join("elsewhere");
    drop(Repository::init(open_local(&elsewhere), &password).unwrap());
    let barring = files_below(&elsewhere.join("keys")).remove(0);
    let restic = Restic::new(&root, "correct horse").unwrap();
    let guest = Restic::new(&root, "battery staple").unwrap();
    let (keys, word) = (root.join("keys"), guest.password_file());
    let meddled = Meddled::at(&root, move |moment| {
        if moment == Moment::AfterWrite(FileKind::Config) {
            let word = word.to_str().unwrap();
            restic
                .run(["key", "add", "--new-password-file", word])
                .unwrap();
            fs::copy(&barring, keys.join(barring.file_name().unwrap())).unwrap();
        }
    });
    let told = Repository::init(meddled, &password).unwrap().id();
    assert_eq!(files_below(&root.join("keys")).len(), 2);
    guest.run(["snapshots"]).unwrap();
    let opened = Repository::open(open_local(&root), &password).unwrap();
    assert_eq!(opened.id(), told);
}

#[test]
fn whoever_is_late_to_init_a_repository_finds_it() {
    let directory = tempfile::tempdir().unwrap();
    let password_file = directory.path().join("password");
    fs::write(&password_file, "correct horse").unwrap();
    fs::set_permissions(&password_file, fs::Permissions::from_mode(0o600)).unwrap();
    let text = format!(
        "[database]\nurl = 'sqlite:///nowhere'\n\
         [repositories.manual]\nlocation = {:?}\npassword_file = {password_file:?}",
        root_of(&directory)
    );
    let origin = Origin::File(directory.path().join("backup.toml"));
    let config = Config::read(origin, &text, &Environment::default()).unwrap();
    let together = Barrier::new(3);
    let created: Vec<_> = std::thread::scope(|scope| {
        let init = || {
            together.wait();
            init_repository(&config.repositories.manual, &Cancel::new()).unwrap()
        };
        let threads: Vec<_> = (0..3).map(|_| scope.spawn(init)).collect();
        let ended = threads.into_iter().map(|thread| thread.join().unwrap());
        ended.collect()
    });
    assert_eq!(created.iter().filter(|created| **created).count(), 1);
}

fn a_full_disk_is_no_space_and_leaves_nothing(storage: &dyn Storage, root: &Path) {
    storage.create().unwrap();
    storage
        .write(FileKind::Pack, &id(1), &[content(1, 1 << 20)])
        .unwrap();
    let error = storage
        .write(FileKind::Pack, &id(2), &[content(2, 6 << 20)])
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error:?}");
    assert_eq!(files_below(root), [path_of(root, FileKind::Pack, &id(1))]);
    storage
        .write(FileKind::Pack, &id(3), &[content(3, 1 << 20)])
        .unwrap();
}

#[test]
fn a_full_local_disk_is_no_space_and_leaves_nothing() {
    let disk = tempfile::tempdir().unwrap();
    let _mount = Mount::tmpfs(disk.path(), "size=4m").unwrap();
    a_full_disk_is_no_space_and_leaves_nothing(&*open_local(disk.path()), disk.path());
}

#[test]
fn a_full_disk_of_the_server_is_no_space_and_leaves_nothing() {
    let disk = tempfile::tempdir().unwrap();
    let _mount = Mount::tmpfs(disk.path(), "size=4m").unwrap();
    let sshd = Sshd::start().unwrap();
    let storage = open(&sshd, sshd.port(), disk.path(), PATIENCE).unwrap();
    a_full_disk_is_no_space_and_leaves_nothing(&*storage, disk.path());
}

/// A server behind a proxy, and a repository on it.
struct Network {
    storage: Arc<dyn Storage>,
    proxy: Proxy,
    sshd: Sshd,
    directory: TempDir,
}

impl Network {
    fn start(retry_for: Duration) -> Self {
        let sshd = Sshd::start().unwrap();
        let proxy = Proxy::start(sshd.port()).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let storage = open(&sshd, proxy.port(), &root_of(&directory), retry_for).unwrap();
        storage.create().unwrap();
        Self {
            storage,
            proxy,
            sshd,
            directory,
        }
    }

    fn path_of(&self, kind: FileKind, id: &FileId) -> PathBuf {
        path_of(&root_of(&self.directory), kind, id)
    }
}

#[test]
fn a_cut_in_mid_upload_loses_nothing_and_leaves_nothing() {
    let network = Network::start(PATIENCE);
    let whole = content(1, 8 << 20);
    for (n, cut_after) in [1, 1000, 100_000, 3 << 20, 8 << 20].into_iter().enumerate() {
        let id = id(n as u32);
        network.proxy.cut_after(cut_after);
        network
            .storage
            .write(FileKind::Pack, &id, std::slice::from_ref(&whole))
            .unwrap();
        assert_same(
            &fs::read(network.path_of(FileKind::Pack, &id)).unwrap(),
            &whole,
        );
    }
    // A server that has not noticed the cut yet may still hold a file of the last attempt but one.
    let root = root_of(&network.directory);
    assert_eq!(files_below(&root).len(), 5, "{:?}", files_below(&root));
}

#[test]
fn a_cut_in_mid_download_loses_nothing() {
    let network = Network::start(PATIENCE);
    let whole = content(1, 8 << 20);
    network
        .storage
        .write(FileKind::Pack, &id(1), std::slice::from_ref(&whole))
        .unwrap();
    for cut_after in [1, 500, 2_000, 10_000] {
        network.proxy.cut_after(cut_after);
        assert_same(
            &network.storage.read(FileKind::Pack, &id(1)).unwrap(),
            &whole,
        );
        network.proxy.cut_after(cut_after);
        let part = network
            .storage
            .read_range(FileKind::Pack, &id(1), 100, 7 << 20);
        assert_same(&part.unwrap(), &whole.slice(100..100 + (7 << 20)));
    }
}

#[test]
fn an_upload_that_never_succeeds_leaves_nothing_under_the_final_name() {
    let network = Network::start(Duration::from_secs(1));
    network.proxy.cut_after(3 << 20);
    network.proxy.refuse(true);
    let begun = Instant::now();
    let error = network
        .storage
        .write(FileKind::Pack, &id(1), &[content(1, 8 << 20)])
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error:?}");
    assert!(begun.elapsed() >= Duration::from_secs(1));
    assert!(!network.path_of(FileKind::Pack, &id(1)).exists());
    network.proxy.refuse(false);
    assert_eq!(network.storage.list(FileKind::Pack).unwrap(), []);
}

#[test]
fn a_server_that_comes_back_in_time_is_waited_for() {
    let mut network = Network::start(PATIENCE);
    network.sshd.stop();
    let storage = network.storage.clone();
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..10)
            .map(|n| {
                let storage = &storage;
                scope.spawn(move || storage.write(FileKind::Index, &id(n), &[content(n, 100_000)]))
            })
            .collect();
        // Every one of them has failed at least once.
        let refused = network.proxy.connections_accepted();
        let proxy = &network.proxy;
        wait_until("they have tried", || {
            proxy.connections_accepted() > refused + 4
        });
        network.sshd.restart().unwrap();
        for writer in writers {
            writer.join().unwrap().unwrap();
        }
    });
    assert_eq!(storage.list(FileKind::Index).unwrap().len(), 10);
}

#[test]
fn one_that_is_told_to_stop_waits_out_no_outage_and_the_others_do() {
    let network = Network::start(Duration::from_secs(5 * 60));
    let stoppable = network.storage.with_stop(&Cancel::new());
    // It is the same storage, by the same connections.
    let connections = network.proxy.connections_accepted();
    stoppable
        .write(FileKind::Index, &id(1), &[content(1, 1000)])
        .unwrap();
    assert_same(
        &network.storage.read(FileKind::Index, &id(1)).unwrap(),
        &content(1, 1000),
    );
    let proxy = &network.proxy;
    assert!(proxy.connections_accepted() <= connections + 1);

    one_waits_for_it_and_one_that_is_told_to_stop_does_not(&network.storage, proxy);
}

/// Neither SFTP nor a store is waited for by an operation that is told to stop; `storage` has the file of an index.
fn one_waits_for_it_and_one_that_is_told_to_stop_does_not(
    storage: &Arc<dyn Storage>,
    proxy: &Proxy,
) {
    let stop = Cancel::new();
    let stoppable = storage.with_stop(&stop);
    let read = |storage: &Arc<dyn Storage>| storage.read(FileKind::Index, &id(1));
    std::thread::scope(|scope| {
        proxy.refuse(true);
        proxy.cut();
        let tried = proxy.connections_accepted();
        let stopped = scope.spawn(|| read(&stoppable));
        let waiting = scope.spawn(|| read(storage));
        wait_until("they have tried", || {
            proxy.connections_accepted() > tried + 2
        });
        stop.cancel();
        let error = stopped.join().unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Cancelled, "{error:?}");
        assert!(!waiting.is_finished());
        proxy.refuse(false);
        waiting.join().unwrap().unwrap();
    });
    // What meets no outage is done all the same: a lock can be removed.
    stoppable.remove(FileKind::Index, &id(1)).unwrap();
    assert!(storage.list(FileKind::Index).unwrap().is_empty());
}

#[test]
fn connections_that_the_server_ends_are_made_anew() {
    let network = Network::start(PATIENCE);
    for n in 0..5 {
        network
            .storage
            .write(FileKind::Key, &id(n), &[content(n, 1000)])
            .unwrap();
        network.sshd.kill_connections();
        assert_same(
            &network.storage.read(FileKind::Key, &id(n)).unwrap(),
            &content(n, 1000),
        );
    }
}

#[test]
fn a_server_that_is_down_for_good_is_unreachable_after_the_deadline() {
    let mut network = Network::start(Duration::from_secs(2));
    network.sshd.stop();
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for n in 0..20 {
            let storage = &network.storage;
            scope.spawn(move || {
                let error = storage.read(FileKind::Index, &id(n)).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Unreachable, "{error:?}");
            });
        }
    });
    // All of them together, not one after the other.
    assert!(begun.elapsed() >= Duration::from_secs(2));
    assert!(
        begun.elapsed() < Duration::from_secs(10),
        "{:?}",
        begun.elapsed()
    );
}

#[test]
fn a_connection_on_which_nothing_comes_any_more_is_lost() {
    let network = Network::start(Duration::from_secs(3));
    network.proxy.pause(true);
    let begun = Instant::now();
    let error = network.storage.list(FileKind::Pack).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error:?}");
    assert!(
        begun.elapsed() < Duration::from_secs(20),
        "{:?}",
        begun.elapsed()
    );
    network.proxy.pause(false);
    assert_eq!(network.storage.list(FileKind::Pack).unwrap(), []);
}

#[test]
fn an_upload_that_stalls_is_done_again() {
    let network = Network::start(Duration::from_secs(3));
    let (storage, proxy) = (&network.storage, &network.proxy);
    let whole = content(1, 8 << 20);
    let before = proxy.bytes_to_target();
    std::thread::scope(|scope| {
        let writer =
            scope.spawn(|| storage.write(FileKind::Pack, &id(1), std::slice::from_ref(&whole)));
        wait_until("the upload runs", || {
            proxy.bytes_to_target() > before + (1 << 20)
        });
        proxy.pause(true);
        let connections = proxy.connections_accepted();
        wait_until("it is given up", || {
            proxy.connections_accepted() > connections
        });
        assert!(!network.path_of(FileKind::Pack, &id(1)).exists());
        proxy.pause(false);
        writer.join().unwrap().unwrap();
    });
    assert_same(&storage.read(FileKind::Pack, &id(1)).unwrap(), &whole);
}

#[test]
fn a_call_from_an_async_task_does_not_panic() {
    let bed = Bed::sftp();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(async move {
        assert_eq!(bed.storage.list(FileKind::Index).unwrap(), []);
        drop(bed);
    });
}

#[test]
fn a_slow_connection_is_not_a_lost_one() {
    let network = Network::start(Duration::from_secs(3));
    // Longer than the limit for silence.
    network.proxy.set_bytes_per_second(Some(300_000));
    let whole = content(1, 1_300_000);
    network
        .storage
        .write(FileKind::Pack, &id(1), std::slice::from_ref(&whole))
        .unwrap();
    assert_eq!(
        network.proxy.connections_accepted(),
        1 + usize::from(network.proxy.connections_open() > 1)
    );
    assert_same(
        &network.storage.read(FileKind::Pack, &id(1)).unwrap(),
        &whole,
    );
}

#[test]
fn a_busy_server_is_waited_for() {
    let sshd = Sshd::start_with(&["MaxStartups 1:100:1"]).unwrap();
    let directory = tempfile::tempdir().unwrap();
    // Takes the only place for a login, and gives it back once somebody was turned away.
    let mut stranger = std::net::TcpStream::connect(("127.0.0.1", sshd.port())).unwrap();
    std::io::Read::read_exact(&mut stranger, &mut [0; 4]).unwrap();
    std::thread::scope(|scope| {
        let opened = scope.spawn(|| open(&sshd, sshd.port(), directory.path(), PATIENCE));
        wait_until("somebody is turned away", || {
            sshd.log().contains("MaxStartups")
        });
        drop(stranger);
        opened.join().unwrap().unwrap();
    });
}

#[test]
fn where_no_second_connection_is_to_be_had_the_first_one_serves_all() {
    // A fault that somebody meets is told at once.
    let network = Network::start(Duration::ZERO);
    let whole = content(1, 300_000);
    let written = network
        .storage
        .write(FileKind::Pack, &id(1), std::slice::from_ref(&whole));
    written.unwrap();
    let before = network.proxy.connections_accepted();
    let begun = Instant::now();
    network.proxy.refuse(true);
    std::thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| {
                for _ in 0..5 {
                    let read = network.storage.read(FileKind::Pack, &id(1));
                    assert_same(&read.unwrap(), &whole);
                }
            });
        }
    });
    // It was wanted, and not again and again.
    let tries = network.proxy.connections_accepted() - before;
    let most = 1 + begun.elapsed().as_secs() / 5;
    assert!(tries > 0 && tries as u64 <= most, "{tries} tries");
}

#[test]
fn never_more_connections_than_allowed() {
    let network = Network::start(PATIENCE);
    let most = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for n in 0..20 {
            let (network, most) = (&network, &most);
            scope.spawn(move || {
                for round in 0..5 {
                    let id = id(n * 10 + round);
                    let content = content(n, 200_000);
                    network
                        .storage
                        .write(FileKind::Pack, &id, &[content])
                        .unwrap();
                    most.fetch_max(network.proxy.connections_open(), Ordering::SeqCst);
                }
            });
        }
    });
    assert_eq!(most.load(Ordering::SeqCst), 2);
    assert_eq!(network.proxy.connections_accepted(), 2);
}

#[test]
fn dropping_the_storage_ends_its_connections() {
    let Network {
        storage,
        sshd,
        proxy: _proxy,
        directory: _directory,
    } = Network::start(PATIENCE);
    assert!(sshd.connections() > 0);
    drop(storage);
    wait_until("the connections are gone", || sshd.connections() == 0);
}

#[test]
fn new_session_keys_in_mid_transfer_lose_nothing() {
    let bed = Bed::sftp_with(&["RekeyLimit 1M"]);
    let whole = content(1, 12 << 20);
    bed.storage
        .write(FileKind::Pack, &id(1), std::slice::from_ref(&whole))
        .unwrap();
    assert_same(&bed.storage.read(FileKind::Pack, &id(1)).unwrap(), &whole);
    let log = bed._sshd.as_ref().unwrap().log();
    assert!(!log.contains("error"), "{log}");
}

#[test]
fn a_server_without_the_extensions_of_openssh_will_do() {
    let plain =
        || Bed::sftp_with(&["ForceCommand internal-sftp -P posix-rename,fsync,statvfs,limits"]);
    promises::a_file_that_is_there_is_replaced(&plain());
    promises::what_was_written_is_read_back_whole_and_in_parts(&plain());
    promises::twenty_threads_at_once_get_what_they_asked_for(&plain());
}

/// The error of opening, which must come at once although there is much time for trying again.
fn refusal(sshd: &Sshd, options: &StorageOptions) -> Error {
    let location = sshd.location(Path::new("/nowhere")).parse().unwrap();
    let begun = Instant::now();
    let error = storage::open(&location, options).unwrap_err();
    assert!(
        begun.elapsed() < Duration::from_secs(20),
        "it was tried again: {error:?}"
    );
    error
}

const FOR_EVER: Duration = Duration::from_secs(3600);

#[test]
fn an_unknown_or_changed_host_key_is_refused_at_once() {
    let sshd = Sshd::start().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("known_hosts");
    let options = StorageOptions {
        known_hosts: Some(file.clone()),
        ..options(&sshd, FOR_EVER)
    };

    let error = refusal(&sshd, &options);
    assert_eq!(error.kind(), ErrorKind::Configuration, "{error:?}");
    assert!(error.chain().contains(file.to_str().unwrap()), "{error:?}");

    fs::write(&file, "").unwrap();
    let error = refusal(&sshd, &options);
    assert_eq!(error.kind(), ErrorKind::Refused);
    let hint = format!(
        "ssh-keyscan -p {} -t ed25519 127.0.0.1 >> {}",
        sshd.port(),
        file.display()
    );
    assert!(error.chain().contains(&hint), "{error:?}");
    assert!(error.chain().contains("SHA256:"), "{error:?}");

    let other = Sshd::start().unwrap().host_key().unwrap();
    fs::write(&file, format!("[127.0.0.1]:{} {other}", sshd.port())).unwrap();
    let error = refusal(&sshd, &options);
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(error.chain().contains("CHANGED"), "{error:?}");

    // What the hint says does help, and so do the hashed names of `ssh-keygen -H`.
    let scanned = Command::new("ssh-keyscan")
        .args(["-p", &sshd.port().to_string(), "-t", "ed25519", "127.0.0.1"])
        .output()
        .unwrap();
    fs::write(&file, scanned.stdout).unwrap();
    let location = sshd.location(directory.path()).parse().unwrap();
    storage::open(&location, &options).unwrap();
    let hashed = Command::new("ssh-keygen")
        .arg("-H")
        .arg("-f")
        .arg(&file)
        .output()
        .unwrap();
    assert!(hashed.status.success());
    assert!(fs::read_to_string(&file).unwrap().starts_with("|1|"));
    storage::open(&location, &options).unwrap();
}

#[test]
fn the_host_key_that_is_known_is_asked_for() {
    let directory = tempfile::tempdir().unwrap();
    for kind in ["rsa", "ecdsa"] {
        let key = directory.path().join(kind);
        make_key_of(&key, kind, "").unwrap();
        let sshd = Sshd::start_with(&[&format!("HostKey {}", key.display())]).unwrap();
        let public = fs::read_to_string(key.with_extension("pub")).unwrap();
        fs::write(
            sshd.known_hosts(),
            format!("[127.0.0.1]:{} {public}", sshd.port()),
        )
        .unwrap();
        open(&sshd, sshd.port(), directory.path(), PATIENCE).unwrap();
    }
}

#[test]
fn a_client_key_that_will_not_do_is_refused_at_once() {
    let sshd = Sshd::start().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let with_key = |key: PathBuf| StorageOptions {
        ssh_key: Some(key),
        ..options(&sshd, FOR_EVER)
    };
    make_key(&path("stranger")).unwrap();
    make_key_of(&path("locked"), "ed25519", "hunter2").unwrap();
    fs::write(path("garbage"), "hunter2").unwrap();
    for (name, kind, says) in [
        ("stranger", ErrorKind::Refused, "authorized_keys"),
        ("locked", ErrorKind::Configuration, "passphrase"),
        ("garbage", ErrorKind::Configuration, "not a private ssh key"),
        ("missing", ErrorKind::Configuration, "cannot read"),
    ] {
        let error = refusal(&sshd, &with_key(path(name)));
        assert_eq!(error.kind(), kind, "{error:?}");
        assert!(error.chain().contains(says), "{error:?}");
        assert!(
            error.chain().contains(path(name).to_str().unwrap()),
            "{error:?}"
        );
        assert!(!error.chain().contains("hunter2"), "{error:?}");
    }
}

#[test]
fn keys_of_every_usual_kind_are_accepted() {
    let sshd = Sshd::start().unwrap();
    let directory = tempfile::tempdir().unwrap();
    for kind in ["ed25519", "ecdsa", "rsa"] {
        let key = directory.path().join(kind);
        make_key_of(&key, kind, "").unwrap();
        sshd.authorize(&key.with_extension("pub")).unwrap();
        let options = StorageOptions {
            ssh_key: Some(key),
            ..options(&sshd, PATIENCE)
        };
        storage::open(&sshd.location(directory.path()).parse().unwrap(), &options).unwrap();
    }
}

/// Runs in a process of its own, with an environment of its own: see the test below.
#[test]
#[ignore = "is started by keys_come_from_the_agent_and_the_home_directory"]
fn open_what_the_environment_says() {
    let location = std::env::var("TEST_LOCATION").unwrap().parse().unwrap();
    let options = StorageOptions {
        ssh_key: std::env::var_os("TEST_KEY").map(PathBuf::from),
        retry_for: PATIENCE,
        ..StorageOptions::default()
    };
    storage::open(&location, &options).unwrap();
}

#[test]
fn keys_come_from_the_agent_and_the_home_directory() {
    let sshd = Sshd::start().unwrap();
    let home = tempfile::tempdir().unwrap();
    let ssh = home.path().join(".ssh");
    fs::create_dir(&ssh).unwrap();
    fs::copy(sshd.known_hosts(), ssh.join("known_hosts")).unwrap();
    let socket = home.path().join("agent");
    let opens = |key: Option<&Path>, agent: bool| {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child
            .args(["--exact", "open_what_the_environment_says", "--ignored"])
            .env("HOME", home.path())
            .env("TEST_LOCATION", sshd.location(home.path()))
            .env_remove("SSH_AUTH_SOCK")
            .env_remove("TEST_KEY");
        if let Some(key) = key {
            child.env("TEST_KEY", key);
        }
        if agent {
            child.env("SSH_AUTH_SOCK", &socket);
        }
        let output = child.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains("running 1 test"), "{text}");
        output.status.success()
    };
    assert!(!opens(None, false));

    fs::copy(sshd.client_key(), ssh.join("id_ed25519")).unwrap();
    assert!(opens(None, false));
    fs::remove_file(ssh.join("id_ed25519")).unwrap();

    let locked = home.path().join("locked");
    make_key_of(&locked, "rsa", "hunter2").unwrap();
    let mut agent = Command::new("ssh-agent")
        .args(["-D", "-a"])
        .arg(&socket)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    wait_until("the agent listens", || socket.exists());
    let add = |key: &Path| {
        let added = Command::new("ssh-add")
            .arg("-q")
            .arg(key)
            .env("SSH_AUTH_SOCK", &socket)
            .status();
        assert!(added.unwrap().success());
    };
    assert!(!opens(None, true));
    add(&sshd.client_key());
    assert!(opens(None, true));
    // A configured key is the only one that is tried.
    assert!(!opens(Some(&locked), true));
    sshd.authorize(&locked.with_extension("pub")).unwrap();
    let plain = home.path().join("unlocked");
    fs::copy(&locked, &plain).unwrap();
    let unlocked = Command::new("ssh-keygen")
        .args(["-q", "-p", "-P", "hunter2", "-N", "", "-f"])
        .arg(&plain)
        .status();
    assert!(unlocked.unwrap().success());
    add(&plain);
    assert!(opens(Some(&locked), true));
    agent.kill().unwrap();
    agent.wait().unwrap();
}

#[test]
fn a_missing_right_is_refused_at_once_and_never_taken_for_nothing() {
    let bed = Bed::sftp();
    let sshd = bed._sshd.as_ref().unwrap();
    for kind in [FileKind::Pack, FileKind::Snapshot] {
        bed.storage.write(kind, &id(1), &[content(1, 10)]).unwrap();
    }
    let location = sshd.location(&bed.root()).replace("//root@", "//nobody@");
    let storage = storage::open(&location.parse().unwrap(), &options(sshd, FOR_EVER)).unwrap();
    let open_to_all =
        |path: PathBuf| fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();

    open_to_all(bed.directory.path().into());
    let error = storage.list(FileKind::Config).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused, "{error:?}");
    open_to_all(bed.root());
    open_to_all(bed.root().join("data"));
    // Its directories below are still closed.
    for kind in [FileKind::Pack, FileKind::Snapshot] {
        for error in [
            storage.list(kind).map(drop).unwrap_err(),
            storage.read(kind, &id(1)).map(drop).unwrap_err(),
            storage
                .read_range(kind, &id(1), 0, 1)
                .map(drop)
                .unwrap_err(),
            storage.write(kind, &id(2), &[]).unwrap_err(),
            storage.remove(kind, &id(1)).unwrap_err(),
        ] {
            assert_eq!(error.kind(), ErrorKind::Refused, "{error:?}");
        }
    }
}

#[test]
fn the_number_of_connections_has_bounds() {
    let sshd = Sshd::start().unwrap();
    for connections in [0, 9] {
        let options = StorageOptions {
            connections,
            ..options(&sshd, FOR_EVER)
        };
        assert_eq!(refusal(&sshd, &options).kind(), ErrorKind::Configuration);
    }
}

/// A library for `LD_PRELOAD`: a disk that forgets the last piece of every file and says nothing.
const FORGETFUL_DISK: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/stat.h>
#include <unistd.h>
ssize_t write(int file, const void *bytes, size_t length) {
    struct stat about;
    if (length != 32768 && fstat(file, &about) == 0 && S_ISREG(about.st_mode)) return length;
    ssize_t (*genuine)(int, const void *, size_t) = dlsym(RTLD_NEXT, "write");
    return genuine(file, bytes, length);
}
"#;

#[test]
fn an_upload_that_the_server_cut_short_is_not_published() {
    let directory = tempfile::tempdir().unwrap();
    let (source, library) = (
        directory.path().join("disk.c"),
        directory.path().join("disk.so"),
    );
    fs::write(&source, FORGETFUL_DISK).unwrap();
    let compiled = Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .args([&library, &source])
        .arg("-ldl")
        .status();
    assert!(compiled.unwrap().success());
    let bed = Bed::sftp_with(&[&format!(
        "ForceCommand LD_PRELOAD={} /usr/lib/openssh/sftp-server",
        library.display()
    )]);
    let whole = content(1, 64 << 10);
    bed.storage
        .write(FileKind::Pack, &id(1), std::slice::from_ref(&whole))
        .unwrap();
    let error = bed
        .storage
        .write(FileKind::Pack, &id(2), &[content(2, 100_000)])
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Failed, "{error:?}");
    assert!(
        error.chain().contains("98304 bytes instead of 100000"),
        "{error:?}"
    );
    assert_eq!(
        files_below(&bed.root()),
        [path_of(&bed.root(), FileKind::Pack, &id(1))]
    );
}

#[test]
fn restic_finds_what_we_wrote_where_it_looks() {
    let bed = Bed::sftp();
    let sshd = bed._sshd.as_ref().unwrap();
    let origin = tempfile::tempdir().unwrap();
    let restic = |repository: &str, arguments: &[&str]| {
        let output = Command::new("restic")
            .args(["--no-cache", "-r", repository])
            .arg("-o")
            .arg(format!("sftp.command={}", sshd.ssh_command(sshd.port())))
            .args(arguments)
            .env("RESTIC_PASSWORD", "test")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "restic {arguments:?}: {text}");
        String::from_utf8(output.stdout).unwrap()
    };
    let local = origin.path().to_str().unwrap();
    restic(local, &["init"]);
    restic(local, &["backup", "/usr/lib/openssh"]);

    let from = open_local(origin.path());
    for kind in KINDS.into_iter().chain([FileKind::Config]) {
        for (id, size) in from.list(kind).unwrap() {
            let file = from.read(kind, &id).unwrap();
            assert_eq!(file.len() as u64, size);
            bed.storage.write(kind, &id, &[file]).unwrap();
        }
        let sorted = |storage: &dyn Storage| {
            let mut listed = storage.list(kind).unwrap();
            listed.sort();
            listed
        };
        assert_eq!(sorted(&*bed.storage), sorted(&*from));
    }
    // Left by a crash: in nobody's way.
    fs::write(bed.root().join("snapshots/.tmp-1-0123456789abcdef"), "x").unwrap();
    fs::write(bed.root().join("data/00/.tmp-1-0123456789abcdef"), "x").unwrap();
    let copy = sshd.location(&bed.root());
    restic(&copy, &["check", "--read-data"]);
    assert!(restic(&copy, &["snapshots", "--json"]).contains("/usr/lib/openssh"));
}

/// A store behind a proxy, and a repository in it.
struct Bucket {
    storage: Arc<dyn Storage>,
    proxy: Proxy,
    s3: S3,
}

impl Bucket {
    fn start(retry_for: Duration) -> Self {
        let s3 = S3::start().unwrap();
        let proxy = Proxy::start(s3.port()).unwrap();
        let storage = open_bucket(&s3, proxy.port(), retry_for).unwrap();
        Self { storage, proxy, s3 }
    }

    fn path_of(&self, kind: FileKind, id: &FileId) -> PathBuf {
        path_of(&self.s3.bucket().join(PREFIX), kind, id)
    }
}

#[test]
fn a_listing_of_a_bucket_has_every_object_with_its_size_and_nothing_else() {
    let bed = Bed::s3();
    let root = bed.root();
    let lay = |path: PathBuf, content: &[u8]| {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    };
    // More than a store tells at once.
    let expected: BTreeSet<_> = (0..2_300).map(|n| (id(n), u64::from(n % 7))).collect();
    for (id, size) in &expected {
        for kind in [FileKind::Pack, FileKind::Snapshot] {
            lay(path_of(&root, kind, id), &vec![1; *size as usize]);
        }
    }
    let stranger = "ab".repeat(32);
    for name in [
        "snapshots/README",
        "snapshots/.tmp-1-0123456789abcdef",
        &format!("snapshots/deeper/{stranger}"),
        &format!("data/{stranger}"),
        &format!("data/00/{stranger}"),
        &format!("snapshots-of-others/{stranger}"),
        "config-of-others",
    ] {
        lay(root.join(name), b"a stranger");
    }
    for kind in [FileKind::Pack, FileKind::Snapshot] {
        let mut listed = Vec::new();
        wait_until("the server sees what was laid there", || {
            listed = bed.storage.list(kind).unwrap();
            listed.len() == expected.len()
        });
        assert_eq!(listed.into_iter().collect::<BTreeSet<_>>(), expected);
    }
    assert_eq!(bed.storage.list(FileKind::Index).unwrap(), []);
    assert_eq!(bed.storage.list(FileKind::Config).unwrap(), []);
}

/// nginx with TLS in front of a store: with a certificate of its own, in the file that is given, and conditional writes, which the store has none of.
fn tls_in_front_of(s3: &S3, directory: &Path) -> (Nginx, String, PathBuf) {
    make_certificate(directory, "IP:127.0.0.1").unwrap();
    let (certificate, key) = (directory.join("certificate.pem"), directory.join("key.pem"));
    let port = xtask::port::free().unwrap();
    let rules = format!(
        "server {{ listen 127.0.0.1:{port} ssl; ssl_certificate {}; ssl_certificate_key {}; client_max_body_size 0;\n\
         set $refuse ''; if (-f {}$uri) {{ set $refuse 'there'; }} if ($http_if_none_match = '*') {{ set $refuse '$refuse and asked for'; }}\n\
         if ($refuse = 'there and asked for') {{ return 412; }}\n\
         location / {{ proxy_pass http://127.0.0.1:{}; proxy_set_header Host $http_host; }} }}\n",
        certificate.display(),
        key.display(),
        s3.bucket().parent().unwrap().display(),
        s3.port()
    );
    let nginx = Nginx::start(directory, &rules, &[port]).unwrap();
    let location = s3.location_at(port, PREFIX).replace("http://", "https://");
    (nginx, location, certificate)
}

#[test]
fn an_object_store_is_believed_by_its_certificate_and_a_repository_is_made_in_it_once() {
    let s3 = S3::start().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let (_nginx, location, certificate) = tls_in_front_of(&s3, directory.path());
    let location = location.parse().unwrap();
    let trusting = |ca_file| StorageOptions {
        ca_file,
        ..bucket_options(&s3, FOR_EVER)
    };
    // Nobody whom this machine trusts has signed it.
    let begun = Instant::now();
    let error = storage::open(&location, &trusting(None)).unwrap_err();
    assert!(begun.elapsed() < Duration::from_secs(20), "{error:?}");
    assert_eq!(error.kind(), ErrorKind::Refused, "{error:?}");
    assert!(error.chain().contains("s3_ca_file"), "{error:?}");
    let empty = directory.path().join("empty");
    fs::write(&empty, "").unwrap();
    for file in [empty, directory.path().join("missing")] {
        let error = storage::open(&location, &trusting(Some(file))).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Configuration, "{error:?}");
    }

    let storage = storage::open(&location, &trusting(Some(certificate))).unwrap();
    let whole = content(1, 5 << 20);
    for n in 0..3 {
        let piece = std::slice::from_ref(&whole);
        storage.write(FileKind::Pack, &id(n), piece).unwrap();
        assert_same(&storage.read(FileKind::Pack, &id(n)).unwrap(), &whole);
    }
    let part = storage.read_range(FileKind::Pack, &id(1), 1000, 2 << 20);
    assert_same(&part.unwrap(), &whole.slice(1000..1000 + (2 << 20)));
    assert_eq!(storage.list(FileKind::Pack).unwrap().len(), 3);

    let make = |n| storage.write(FileKind::Config, &id(0), &[content(n, 155)]);
    make(1).unwrap();
    let error = make(2).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy, "{error:?}");
    let config = storage.read(FileKind::Config, &id(0)).unwrap();
    assert_same(&config, &content(1, 155));
    // Whoever made it and did not hear so has made it.
    make(1).unwrap();
}

#[test]
fn a_store_that_knows_no_conditional_writes_gets_one_repository_all_the_same() {
    let s3 = S3::start().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let port = xtask::port::free().unwrap();
    let rules = format!(
        "server {{ listen 127.0.0.1:{port}; client_max_body_size 0; if ($http_if_none_match = '*') {{ return 501; }}\n\
         location / {{ proxy_pass http://127.0.0.1:{}; proxy_set_header Host $http_host; }} }}\n",
        s3.port()
    );
    let _nginx = Nginx::start(directory.path(), &rules, &[port]).unwrap();
    let storage = open_bucket(&s3, port, PATIENCE).unwrap();
    let password = "correct horse".to_owned().into();
    let made = Repository::init(Arc::clone(&storage), &password).unwrap();
    let error = Repository::init(Arc::clone(&storage), &password).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy, "{error:?}");
    let late = storage.write(FileKind::Config, &id(0), &[content(2, 155)]);
    assert_eq!(late.unwrap_err().kind(), ErrorKind::Busy);
    let opened = Repository::open(storage, &password).unwrap();
    assert_eq!(opened.id(), made.id());
}

#[test]
fn a_cut_on_the_way_to_a_bucket_loses_nothing_and_leaves_nothing() {
    let bucket = Bucket::start(PATIENCE);
    let (storage, proxy) = (&bucket.storage, &bucket.proxy);
    let whole = content(1, 8 << 20);
    for (n, cut_after) in [1, 1000, 100_000, 3 << 20, 8 << 20].into_iter().enumerate() {
        let id = id(n as u32);
        proxy.cut_after(cut_after);
        storage
            .write(FileKind::Pack, &id, std::slice::from_ref(&whole))
            .unwrap();
        assert_same(
            &fs::read(bucket.path_of(FileKind::Pack, &id)).unwrap(),
            &whole,
        );
    }
    assert_eq!(storage.list(FileKind::Pack).unwrap().len(), 5);
    for cut_after in [1, 300, 1_000] {
        proxy.cut_after(cut_after);
        assert_same(&storage.read(FileKind::Pack, &id(1)).unwrap(), &whole);
        proxy.cut_after(cut_after);
        let part = storage.read_range(FileKind::Pack, &id(1), 100, 7 << 20);
        assert_same(&part.unwrap(), &whole.slice(100..100 + (7 << 20)));
    }
}

#[test]
fn a_download_from_a_bucket_that_breaks_off_is_not_taken_for_whole() {
    let bucket = Bucket::start(PATIENCE);
    let (storage, proxy) = (&bucket.storage, &bucket.proxy);
    let whole = content(1, 8 << 20);
    storage
        .write(FileKind::Pack, &id(1), std::slice::from_ref(&whole))
        .unwrap();
    proxy.set_bytes_per_second(Some(8 << 20));
    std::thread::scope(|scope| {
        let before = proxy.bytes_from_target();
        let reader = scope.spawn(|| storage.read(FileKind::Pack, &id(1)));
        wait_until("the download runs", || {
            proxy.bytes_from_target() > before + (1 << 20)
        });
        proxy.cut();
        proxy.set_bytes_per_second(None);
        assert_same(&reader.join().unwrap().unwrap(), &whole);
    });
}

#[test]
fn an_upload_to_a_bucket_that_never_succeeds_leaves_nothing_under_the_final_name() {
    let bucket = Bucket::start(Duration::from_secs(1));
    bucket.proxy.cut_after(3 << 20);
    bucket.proxy.refuse(true);
    let begun = Instant::now();
    let error = bucket
        .storage
        .write(FileKind::Pack, &id(1), &[content(1, 8 << 20)])
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error:?}");
    assert!(begun.elapsed() >= Duration::from_secs(1));
    assert!(!bucket.path_of(FileKind::Pack, &id(1)).exists());
    bucket.proxy.refuse(false);
    assert_eq!(bucket.storage.list(FileKind::Pack).unwrap(), []);
}

#[test]
fn an_object_store_that_stalls_is_tried_again_and_one_that_stays_away_is_unreachable() {
    let mut bucket = Bucket::start(Duration::from_secs(3));
    let whole = content(1, 8 << 20);
    let (storage, proxy) = (&bucket.storage, &bucket.proxy);
    let before = proxy.bytes_to_target();
    std::thread::scope(|scope| {
        let writer =
            scope.spawn(|| storage.write(FileKind::Pack, &id(1), std::slice::from_ref(&whole)));
        wait_until("the upload runs", || {
            proxy.bytes_to_target() > before + (1 << 20)
        });
        proxy.pause(true);
        let connections = proxy.connections_accepted();
        wait_until("it is given up", || {
            proxy.connections_accepted() > connections
        });
        assert!(!bucket.path_of(FileKind::Pack, &id(1)).exists());
        proxy.pause(false);
        writer.join().unwrap().unwrap();
    });
    assert_same(&storage.read(FileKind::Pack, &id(1)).unwrap(), &whole);

    bucket.s3.stop();
    let begun = Instant::now();
    let error = bucket.storage.list(FileKind::Pack).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error:?}");
    assert!(begun.elapsed() >= Duration::from_secs(3));
    bucket.s3.restart().unwrap();
    assert_eq!(bucket.storage.list(FileKind::Pack).unwrap().len(), 1);
}

#[test]
fn one_that_is_told_to_stop_waits_for_no_object_store_and_the_others_do() {
    let bucket = Bucket::start(Duration::from_secs(5 * 60));
    let storage = &bucket.storage;
    storage
        .write(FileKind::Index, &id(1), &[content(1, 1000)])
        .unwrap();
    one_waits_for_it_and_one_that_is_told_to_stop_does_not(storage, &bucket.proxy);
}

#[test]
fn a_wrong_key_and_a_missing_bucket_are_refused_at_once_in_a_sentence() {
    let s3 = S3::start().unwrap();
    let good = || bucket_options(&s3, FOR_EVER);
    let with_key = |key| StorageOptions {
        access_key: key,
        ..good()
    };
    let here = s3.location(PREFIX);
    let elsewhere = here.replace(&format!("/{BUCKET}/"), "/nowhere/");
    for (location, options, kind, says) in [
        (
            &here,
            with_key(Some(access_key("stranger", "hunter2"))),
            ErrorKind::Refused,
            "does not know the access key",
        ),
        (
            &here,
            with_key(Some(access_key(s3.key_id(), "hunter2"))),
            ErrorKind::Refused,
            "secret of the access key is wrong",
        ),
        (
            &here,
            with_key(None),
            ErrorKind::Configuration,
            "s3_key_file",
        ),
        (&elsewhere, good(), ErrorKind::Refused, "create it there"),
    ] {
        let begun = Instant::now();
        let error = storage::open(&location.parse().unwrap(), &options).unwrap_err();
        assert!(
            begun.elapsed() < Duration::from_secs(20),
            "it was tried again: {error:?}"
        );
        assert_eq!(error.kind(), kind, "{error:?}");
        assert!(error.chain().contains(says), "{error:?}");
        for secret in ["hunter2", s3.secret(), "Signature="] {
            assert!(!error.chain().contains(secret), "{error:?}");
        }
    }
    let shown = format!("{:?} {:?}", open_bucket(&s3, s3.port(), PATIENCE), good());
    assert!(!shown.contains(s3.secret()), "{shown}");

    // And of a bucket that goes away later nothing is taken for empty.
    let storage = open_bucket(&s3, s3.port(), FOR_EVER).unwrap();
    fs::remove_dir_all(s3.bucket()).unwrap();
    wait_until("the server sees that it is gone", || {
        storage.list(FileKind::Config).is_err()
    });
    for error in [
        storage.list(FileKind::Config).map(drop).unwrap_err(),
        storage.list(FileKind::Snapshot).map(drop).unwrap_err(),
        storage
            .write(FileKind::Pack, &id(1), &[content(1, 10)])
            .unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Refused, "{error:?}");
    }
}

#[test]
fn an_object_store_that_is_not_there_is_unreachable_after_the_deadline() {
    let s3 = S3::start().unwrap();
    let port = xtask::port::free().unwrap();
    let begun = Instant::now();
    let error = open_bucket(&s3, port, Duration::from_secs(1)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error:?}");
    assert!(begun.elapsed() >= Duration::from_secs(1));
}

#[test]
fn a_proxy_of_the_environment_is_for_stores_elsewhere_and_for_none_on_this_machine() {
    // The environment is that of a whole process: of another run of this test.
    const LOCATION: &str = "STORAGE_TEST_LOCATION";
    const SECRET: &str = "STORAGE_TEST_SECRET";
    if let (Ok(location), Ok(secret)) = (std::env::var(LOCATION), std::env::var(SECRET)) {
        let options = StorageOptions {
            access_key: Some(access_key("private", &secret)),
            retry_for: Duration::ZERO,
            ..StorageOptions::default()
        };
        storage::open(&location.parse().unwrap(), &options).unwrap();
        return;
    }
    let s3 = S3::start().unwrap();
    assert_eq!(s3.key_id(), "private");
    let proxy = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    proxy.set_nonblocking(true).unwrap();
    let address = format!("http://{}", proxy.local_addr().unwrap());
    let name = "a_proxy_of_the_environment_is_for_stores_elsewhere_and_for_none_on_this_machine";
    let open = |location: &str| {
        let mut run = Command::new(std::env::current_exe().unwrap());
        run.args(["--exact", name])
            .env(LOCATION, location)
            .env(SECRET, s3.secret())
            .env_remove("NO_PROXY")
            .env_remove("no_proxy");
        for variable in ["ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY"] {
            run.env(variable, &address);
        }
        run.stdout(Stdio::null()).stderr(Stdio::null());
        run.spawn().unwrap()
    };
    assert!(open(&s3.location(PREFIX)).wait().unwrap().success());
    let unasked = proxy.accept().unwrap_err();
    assert_eq!(unasked.kind(), io::ErrorKind::WouldBlock);

    let mut elsewhere = open("s3:https://s3.example.com/backups/r");
    let mut asked = None;
    wait_until("the proxy is asked", || {
        asked = proxy.accept().ok();
        asked.is_some()
    });
    let (stream, _) = asked.unwrap();
    stream.set_nonblocking(false).unwrap();
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    assert!(line.starts_with("CONNECT s3.example.com:443 "), "{line}");
    assert!(!elsewhere.wait().unwrap().success());
}

/// A server that knows just enough of HTTP to lie, one request a connection.
struct Liar {
    port: u16,
    asked: Arc<Mutex<Vec<String>>>,
}

struct Request {
    /// `GET /backups/…?…`
    line: String,
    body: Vec<u8>,
}

impl Liar {
    fn start(
        answer: impl Fn(&Request, &mut TcpStream) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (lines, answer) = (Arc::clone(&asked), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (lines, answer) = (Arc::clone(&lines), Arc::clone(&answer));
                std::thread::spawn(move || -> io::Result<()> {
                    let mut stream = stream?;
                    let request = Request::read(&mut stream)?;
                    lines.lock().unwrap().push(request.line.clone());
                    // Whoever hangs up has heard enough.
                    answer(&request, &mut stream)
                });
            }
        });
        Self { port, asked }
    }

    fn open(&self, retry_for: Duration) -> Arc<dyn Storage> {
        let location = format!("s3:http://127.0.0.1:{}/{BUCKET}/{PREFIX}", self.port);
        let options = StorageOptions {
            access_key: Some(access_key("id", "secret")),
            retry_for,
            ..StorageOptions::default()
        };
        storage::open(&location.parse().unwrap(), &options).unwrap()
    }
}

impl Request {
    fn read(stream: &mut TcpStream) -> io::Result<Self> {
        let mut reader = BufReader::new(stream);
        let (mut line, mut length) = (String::new(), 0);
        reader.read_line(&mut line)?;
        let mut header = String::new();
        while reader.read_line(&mut header)? > 2 {
            if let Some(value) = header.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            header.clear();
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        Ok(Self { line, body })
    }

    fn is(&self, method: &str, part: &str) -> bool {
        self.line.starts_with(method) && self.line.contains(part)
    }
}

const EMPTY_LISTING: &str = "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n\
     <ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><IsTruncated>false</IsTruncated></ListBucketResult>";

#[test]
fn an_answer_without_an_end_is_refused_and_fills_no_memory() {
    let sent = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&sent);
    let liar = Liar::start(move |request, stream| {
        let head = match &request.line {
            line if line.contains("prefix=") && !line.contains("snapshots") => {
                return stream.write_all(EMPTY_LISTING.as_bytes());
            }
            line if line.contains("/keys/") => "HTTP/1.1 400 Bad Request\r\n\r\n",
            line if line.contains("/data/") => {
                "HTTP/1.1 206 Partial Content\r\ncontent-range: bytes 10-1009/5000\r\n\r\n"
            }
            _ => "HTTP/1.1 200 OK\r\n\r\n",
        };
        stream.write_all(head.as_bytes())?;
        loop {
            stream.write_all(&[b'x'; 4096])?;
            count.fetch_add(4096, Ordering::Relaxed);
        }
    });
    let storage = liar.open(FOR_EVER);
    for (outcome, says) in [
        (
            storage.read(FileKind::Config, &id(1)).map(drop),
            "sends more than",
        ),
        (
            storage.list(FileKind::Snapshot).map(drop),
            "sends more than",
        ),
        (
            storage
                .read_range(FileKind::Pack, &id(1), 10, 1000)
                .map(drop),
            "another part",
        ),
        (storage.read(FileKind::Key, &id(1)).map(drop), "(400)"),
    ] {
        let error = outcome.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Failed, "{error:?}");
        assert!(error.chain().contains(says), "{error:?}");
    }
    // A listing is the largest of what was read, and some is on its way.
    assert!(sent.load(Ordering::Relaxed) < 64 << 20);
}

#[test]
fn a_store_that_drips_is_given_up_and_at_once_by_whoever_is_told_to_stop() {
    let liar = Liar::start(|request, stream| {
        if request.line.contains("prefix=") {
            return stream.write_all(EMPTY_LISTING.as_bytes());
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n")?;
        loop {
            stream.write_all(b"x")?;
            std::thread::sleep(Duration::from_millis(200));
        }
    });
    let storage = liar.open(Duration::from_millis(1));
    let stop = Cancel::new();
    stop.cancel();
    let stopped = storage.with_stop(&stop);
    std::thread::scope(|scope| {
        for (storage, kind) in [
            (&storage, ErrorKind::Unreachable),
            (&stopped, ErrorKind::Cancelled),
        ] {
            scope.spawn(move || {
                let begun = Instant::now();
                let error = storage.read(FileKind::Config, &id(1)).unwrap_err();
                assert_eq!(error.kind(), kind, "{error:?}");
                assert!(error.chain().contains("took more than"), "{error:?}");
                assert!(begun.elapsed() < Duration::from_secs(60), "{error:?}");
            });
        }
    });
}

/// A store that tells no checksum of what it has, and has what `keep` makes of what it was given.
fn keeps_of_it(keep: fn(Vec<u8>) -> Vec<u8>) -> Liar {
    let kept = Mutex::new(None::<Vec<u8>>);
    Liar::start(move |request, stream| {
        if request.line.contains("prefix=") {
            return stream.write_all(EMPTY_LISTING.as_bytes());
        }
        let mut kept = kept.lock().unwrap();
        let nothing = "content-length: 0\r\nconnection: close\r\n\r\n";
        if request.is("PUT", "/data/") {
            *kept = Some(keep(request.body.clone()));
            return write!(stream, "HTTP/1.1 200 OK\r\n{nothing}");
        }
        if request.is("DELETE", "/data/") {
            *kept = None;
            return write!(stream, "HTTP/1.1 204 No Content\r\n{nothing}");
        }
        let Some(content) = &*kept else {
            return write!(stream, "HTTP/1.1 404 Not Found\r\n{nothing}");
        };
        let length = content.len();
        write!(
            stream,
            "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n"
        )?;
        match request.is("HEAD", "/data/") {
            true => Ok(()),
            false => stream.write_all(content),
        }
    })
}

#[test]
fn an_object_that_comes_out_wrong_does_not_keep_its_name() {
    let whole = content(1, 100_000);
    let good = keeps_of_it(|content| content);
    let storage = good.open(FOR_EVER);
    let write = |storage: &Arc<dyn Storage>| {
        storage.write(FileKind::Pack, &id(1), std::slice::from_ref(&whole))
    };
    write(&storage).unwrap();
    assert_same(&storage.read(FileKind::Pack, &id(1)).unwrap(), &whole);

    let other: fn(Vec<u8>) -> Vec<u8> = |mut content| {
        content[50_000] ^= 1;
        content
    };
    let shorter: fn(Vec<u8>) -> Vec<u8> = |content| content[..5].to_vec();
    for (keep, says) in [(other, "something else in it"), (shorter, "5 bytes")] {
        let liar = keeps_of_it(keep);
        let storage = liar.open(FOR_EVER);
        let error = write(&storage).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Damaged, "{error:?}");
        assert!(error.chain().contains(says), "{error:?}");
        let left = storage.read(FileKind::Pack, &id(1)).unwrap_err();
        assert_eq!(left.kind(), ErrorKind::NotFound, "{:?}", liar.asked);
    }
}

#[test]
fn what_trying_out_a_bucket_shows_leaves_nothing_in_it() {
    let bed = Bed::s3();
    let s3 = bed.s3.as_ref().unwrap();
    let location = s3.location(PREFIX).parse().unwrap();
    let trial = storage::try_out(&location, &bucket_options(s3, PATIENCE)).unwrap();
    assert!(trial.can_replace && trial.can_sync);
    assert_eq!(trial.clock_ahead, Some(0));
    assert_eq!(files_below(&bed.root()), [] as [PathBuf; 0]);
}

#[test]
fn restic_finds_in_a_bucket_what_we_wrote_there_and_we_what_it_wrote() {
    let bed = Bed::s3();
    let s3 = bed.s3.as_ref().unwrap();
    let origin = tempfile::tempdir().unwrap();
    let local = Restic::new(origin.path(), "test").unwrap();
    local.init().unwrap();
    local.run(["backup", "/usr/lib/openssh"]).unwrap();
    let from = open_local(origin.path());
    let sorted = |storage: &dyn Storage, kind| {
        let mut listed = storage.list(kind).unwrap();
        listed.sort();
        listed
    };
    for kind in KINDS.into_iter().chain([FileKind::Config]) {
        for (id, _) in from.list(kind).unwrap() {
            let file = from.read(kind, &id).unwrap();
            bed.storage.write(kind, &id, &[file]).unwrap();
        }
        assert_eq!(sorted(&*bed.storage, kind), sorted(&*from, kind));
    }
    let restic = Restic::new(s3.location(PREFIX), "test")
        .unwrap()
        .access_key(s3.key_id(), s3.secret());
    restic.check_read_data().unwrap();
    assert_eq!(restic.snapshots().unwrap().len(), 1);
    restic.run(["backup", "/usr/lib/openssh"]).unwrap();
    assert_eq!(bed.storage.list(FileKind::Snapshot).unwrap().len(), 2);
}
