//! What storage promises, kept by every kind of it, and what SFTP promises besides.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use backup_core::error::{Error, ErrorKind};
use backup_core::storage::{self, FileId, FileKind, Location, SftpOptions, Storage};
use bytes::Bytes;
use tempfile::TempDir;
use xtask::sshd::Sshd;

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
            directory,
        }
    }

    fn root(&self) -> PathBuf {
        root_of(&self.directory)
    }
}

const PATIENCE: Duration = Duration::from_secs(10);

fn root_of(directory: &TempDir) -> PathBuf {
    directory.path().join("the repository")
}

fn open_local(root: &Path) -> Arc<dyn Storage> {
    storage::open(&Location::from(root), &SftpOptions::default()).unwrap()
}

fn options(sshd: &Sshd, retry_for: Duration) -> SftpOptions {
    SftpOptions {
        ssh_key: Some(sshd.client_key()),
        known_hosts: Some(sshd.known_hosts()),
        retry_for,
        ..SftpOptions::default()
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
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(files_below(&path)),
            false => found.push(path),
        }
    }
    found
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
            for kind in KINDS {
                let pieces = [whole.slice(..half), Bytes::new(), whole.slice(half..)];
                bed.storage.write(kind, &id, &pieces).unwrap();
                assert_eq!(bed.storage.read(kind, &id).unwrap(), whole);
                let on_disk = fs::read(path_of(&bed.root(), kind, &id)).unwrap();
                assert_eq!(on_disk, whole);
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
                    assert_eq!(part, whole.slice(from..to));
                }
            }
        }
        let config = content(99, 155);
        bed.storage
            .write(FileKind::Config, &id(1), std::slice::from_ref(&config))
            .unwrap();
        let read = bed.storage.read(FileKind::Config, &FileId::default());
        assert_eq!(read.unwrap(), config);
        let listed = bed.storage.list(FileKind::Config).unwrap();
        assert_eq!(listed, [(FileId::default(), 155)]);
    }

    pub(super) fn a_listing_has_every_file_with_its_size_and_nothing_else(bed: &Bed) {
        let expected: BTreeSet<_> = (0..300).map(|n| (id(2 * n), u64::from(n) + 1)).collect();
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
        fs::remove_dir(bed.root().join("data/ff")).unwrap();
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
        for kind in KINDS.into_iter().chain([FileKind::Config]) {
            for n in [1, 2, 2] {
                bed.storage
                    .write(kind, &id(1), &[content(n, 70_000)])
                    .unwrap();
                // Also for whoever has read it before.
                let read = bed.storage.read_range(kind, &id(1), 0, 70_000).unwrap();
                assert_eq!(read, content(n, 70_000));
            }
            // A file that somebody truncated is mended by writing it again.
            fs::write(path_of(&bed.root(), kind, &id(1)), "short").unwrap();
            bed.storage
                .write(kind, &id(1), &[content(2, 70_000)])
                .unwrap();
            assert_eq!(bed.storage.read(kind, &id(1)).unwrap(), content(2, 70_000));
            bed.storage.remove(kind, &id(1)).unwrap();
            let error = bed.storage.read_range(kind, &id(1), 0, 1).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NotFound);
        }
        assert_eq!(files_below(&bed.root()), [] as [PathBuf; 0]);
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
        assert_eq!(
            bed.storage.read(FileKind::Pack, &id(1)).unwrap(),
            content(1, 10)
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
                        assert_eq!(storage.read(kind, &id).unwrap(), whole);
                        let half = whole.len() / 2;
                        let part = storage.read_range(kind, &id, 0, half as u64).unwrap();
                        assert_eq!(part, whole.slice(..half));
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

keeps!(
    what_was_written_is_read_back_whole_and_in_parts,
    a_listing_has_every_file_with_its_size_and_nothing_else,
    a_directory_that_is_gone_is_not_an_empty_one,
    what_is_not_there_is_not_found,
    a_range_beyond_the_end_is_damage_not_less,
    a_file_that_is_there_is_replaced,
    creating_is_safe_to_repeat_and_private,
    a_pack_directory_that_is_missing_is_made,
    abandoned_temporary_files_are_removed_and_fresh_ones_kept,
    twenty_threads_at_once_get_what_they_asked_for,
);
