//! What the repository room promises, judged by the stock restic program.

use std::collections::BTreeSet;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use backup_core::error::{Error, ErrorKind, Result};
use backup_core::progress::{Cancel, Control, Gate, Monitor};
use backup_core::repository::{
    ArchiveRequest, Archived, BackupType, Hold, Origin, OwnerRule, Repository, RestoreRules,
    Snapshot, StreamSource, TreeSource, Uncommitted,
};
use backup_core::storage::{self, FileId, FileKind, Location, Storage};
use bytes::Bytes;
use jiff::Zoned;
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use xtask::init::Init;
use xtask::mount::Mount;
use xtask::restic::Restic;
use xtask::tree::{
    add_privileged_entries, add_socket, add_what_old_restic_loses, assert_same_tree,
    build_nasty_tree,
};

const PASSWORD: &str = "correct horse";
const DUMP: &str = "/tmp/customer-backup-7/customer_7.sql";

static INIT: Init = Init::new();

struct Bench {
    scratch: tempfile::TempDir,
    repository: Arc<Repository>,
    restic: Restic,
}

impl Bench {
    fn new() -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("repository");
        let password = PASSWORD.to_owned().into();
        INIT.make(&[(&path, PASSWORD)], || {
            Repository::init(storage_at(&path), &password)?;
            Ok(())
        })
        .unwrap();
        let repository = Repository::open(storage_at(&path), &password).unwrap();
        let restic = Restic::new(&path, PASSWORD).unwrap();
        Self {
            scratch,
            repository: Arc::new(repository),
            restic,
        }
    }

    fn path(&self) -> PathBuf {
        self.scratch.path().join("repository")
    }

    fn site(&self) -> PathBuf {
        self.scratch.path().join("customer-7")
    }

    fn backup(&self, stream: Option<Box<dyn Read + Send>>, with_files: bool) -> Result<Archived> {
        self.backup_under(stream, with_files, &Control::default())
    }

    fn backup_under(
        &self,
        stream: Option<Box<dyn Read + Send>>,
        with_files: bool,
        control: &Control,
    ) -> Result<Archived> {
        let lock = self.repository.lock_shared()?;
        let parent = self
            .repository
            .snapshots()?
            .into_iter()
            .rev()
            .find(|snapshot| snapshot.paths.contains(&self.site()));
        let mut paths = Vec::new();
        let mut tags = vec![
            "customer-7".to_owned(),
            "manual".to_owned(),
            "2026-01-02-030405".to_owned(),
        ];
        tags.extend(
            BackupType::of(stream.is_some(), with_files).map(|backup_type| backup_type.to_string()),
        );
        if stream.is_some() {
            paths.push(PathBuf::from("/tmp/customer-backup-7"));
        }
        if with_files {
            paths.push(self.site());
        }
        let request = ArchiveRequest {
            trees: with_files
                .then(|| {
                    TreeSource::in_place(self.site(), vec!["mysql".into(), "volumes/db".into()])
                })
                .into_iter()
                .collect(),
            streams: stream
                .map(|reader| StreamSource {
                    path: DUMP.into(),
                    reader,
                })
                .into_iter()
                .collect(),
            paths,
            tags,
            time: Zoned::now(),
            note: Some("before the sale".to_owned()),
            parent: parent.map(|snapshot| snapshot.id),
        };
        self.repository
            .archive(lock, request, control)?
            .commit(control)
    }

    /// A backup of the files up to its commit.
    fn archive_files(&self) -> Uncommitted<'_> {
        let request = ArchiveRequest {
            trees: vec![TreeSource::in_place(self.site(), Vec::new())],
            streams: Vec::new(),
            paths: vec![self.site()],
            tags: vec!["customer-7".into()],
            time: Zoned::now(),
            note: None,
            parent: None,
        };
        let lock = self.repository.lock_shared().unwrap();
        self.repository
            .archive(lock, request, &Control::default())
            .unwrap()
    }

    fn last(&self) -> Snapshot {
        self.repository.snapshots().unwrap().pop().unwrap()
    }

    /// Restore the site with our own restore and give where it is.
    fn restore(&self, snapshot: &Snapshot, name: &str) -> PathBuf {
        let staging = self.scratch.path().join(format!("staging-{name}"));
        let target = directory(&staging);
        let plan = self
            .repository
            .plan_restore(
                snapshot,
                &self.site(),
                &RestoreRules::everything(),
                &Cancel::new(),
            )
            .unwrap();
        self.repository
            .restore(&plan, target.as_fd(), None, &Control::default())
            .unwrap();
        staging
    }
}

/// A new private directory, open.
fn directory(path: &Path) -> std::fs::File {
    std::fs::create_dir(path).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700)).unwrap();
    std::fs::File::open(path).unwrap()
}

fn storage_at(path: &Path) -> Arc<dyn Storage> {
    let location: Location = path.to_str().unwrap().parse().unwrap();
    storage::open(&location, &storage::StorageOptions::default()).unwrap()
}

/// Bytes that neither compress nor repeat, the same every time.
fn noise(bytes: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..bytes)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect()
}

fn dump(bytes: usize) -> Box<dyn Read + Send> {
    Box::new(std::io::Cursor::new(noise(bytes, 42)))
}

#[derive(Default)]
struct Counting {
    done: AtomicU64,
    files: AtomicU64,
    cancel_at: Option<(u64, Cancel)>,
    warnings: Mutex<Vec<String>>,
}

impl Monitor for Counting {
    fn bytes_done(&self, bytes: u64) {
        let done = self.done.fetch_add(bytes, Ordering::SeqCst) + bytes;
        if let Some((limit, cancel)) = &self.cancel_at
            && done >= *limit
        {
            cancel.cancel();
        }
    }
    fn files_done(&self, files: u64) {
        self.files.fetch_add(files, Ordering::SeqCst);
    }
    fn warning(&self, text: &str) {
        self.warnings.lock().unwrap().push(text.to_owned());
    }
}

#[test]
fn restic_restores_and_verifies_what_we_wrote_three_backups_deep() {
    let bench = Bench::new();
    build_nasty_tree(&bench.site()).unwrap();
    for round in 0..3 {
        std::fs::write(
            bench.site().join(format!("new in round {round}")),
            noise(3_000_000, round),
        )
        .unwrap();
        let content = noise(2_500_000 + round as usize, round);
        let archived = bench
            .backup(Some(Box::new(std::io::Cursor::new(content.clone()))), true)
            .unwrap();
        assert_eq!(archived.stream_bytes, content.len() as u64);
        assert!(archived.warnings.is_empty(), "{:?}", archived.warnings);

        let id = archived.snapshot.to_string();
        let target = bench.scratch.path().join(format!("restic-{round}"));
        bench.restic.restore(&id, &target).unwrap();
        assert_same_tree(
            bench.site(),
            target.join(bench.site().strip_prefix("/").unwrap()),
        );
        assert_eq!(std::fs::read(target.join(&DUMP[1..])).unwrap(), content);
        assert_eq!(bench.restic.dump(&id, DUMP).unwrap(), content);
    }
    bench.restic.check_read_data().unwrap();
}

#[test]
fn snapshots_say_what_the_contract_says() {
    let bench = Bench::new();
    std::fs::create_dir(bench.site()).unwrap();
    std::os::unix::fs::symlink("nowhere", bench.site().join("link")).unwrap();
    let archived = bench.backup(Some(dump(10)), true).unwrap();
    let snapshots = bench.restic.snapshots().unwrap();
    let snapshot = &snapshots[0];
    assert_eq!(snapshot["id"], archived.snapshot.to_string());
    assert_eq!(
        snapshot["paths"],
        serde_json::json!([bench.site(), "/tmp/customer-backup-7"])
    );
    assert_eq!(
        snapshot["tags"],
        serde_json::json!(["2026-01-02-030405", "both", "customer-7", "manual"])
    );
    assert_eq!(snapshot["hostname"], rustix_hostname().as_str());
    assert!(
        snapshot["username"]
            .as_str()
            .is_some_and(|name| !name.is_empty())
    );

    let ours = bench.last();
    assert_eq!((ours.files, archived.files), (Some(0), 0));
    assert_eq!(ours.bytes, Some(archived.bytes));
    assert_eq!(ours.bytes_added, Some(archived.bytes_added));
    assert_eq!(ours.owner(), Some("7".parse().unwrap()));
    assert_eq!(ours.origin(), Some(Origin::Manual));
    assert_eq!(ours.backup_type(), Some(BackupType::Both));
    assert_eq!(ours.note.as_deref(), Some("before the sale"));
}

fn rustix_hostname() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .unwrap()
        .trim()
        .to_owned()
}

#[test]
fn our_restore_brings_everything_back_also_what_restic_loses() {
    let bench = Bench::new();
    build_nasty_tree(&bench.site()).unwrap();
    add_what_old_restic_loses(&bench.site()).unwrap();
    add_privileged_entries(&bench.site()).unwrap();
    add_socket(&bench.site()).unwrap();
    bench.backup(None, true).unwrap();
    let restored = bench.restore(&bench.last(), "site");
    assert_same_tree(bench.site(), restored);
    bench.restic.check_read_data().unwrap();
}

/// As a shop's own: user 33, groups 33 and 50, nobody else.
fn rules_of_a_shop() -> RestoreRules {
    RestoreRules {
        devices: false,
        setuid: false,
        owners: OwnerRule::Only {
            users: [33].into(),
            groups: [33, 50].into(),
        },
        max_files: 0,
        max_bytes: 0,
    }
}

#[test]
fn what_gives_power_over_the_machine_is_not_restored_unless_allowed() {
    use std::os::unix::fs::{MetadataExt, chown};
    let bench = Bench::new();
    let site = bench.site();
    std::fs::create_dir(&site).unwrap();
    add_privileged_entries(&site).unwrap();
    add_socket(&site).unwrap();
    std::os::unix::fs::symlink("/etc/shadow", site.join("link")).unwrap();
    for (name, mode) in [("su", 0o4755), ("sg", 0o2755), ("plain", 0o644)] {
        std::fs::write(site.join(name), name).unwrap();
        std::fs::set_permissions(site.join(name), std::fs::Permissions::from_mode(mode)).unwrap();
    }
    std::fs::create_dir(site.join("shared")).unwrap();
    for (name, user, group) in [(".", 33, 33), ("plain", 1234, 50), ("shared", 33, 33)] {
        chown(site.join(name), Some(user), Some(group)).unwrap();
    }
    std::fs::set_permissions(site.join("shared"), std::fs::Permissions::from_mode(0o2775)).unwrap();
    std::fs::hard_link(site.join("su"), site.join("su again")).unwrap();
    bench.backup(None, true).unwrap();

    let restore = |name: &str, rules: &RestoreRules| {
        let staging = bench.scratch.path().join(name);
        let target = directory(&staging);
        let plan = bench
            .repository
            .plan_restore(&bench.last(), &site, rules, &Cancel::new())
            .unwrap();
        let monitor = Arc::new(Counting::default());
        let control = Control {
            monitor: Arc::clone(&monitor) as _,
            ..Control::default()
        };
        let restored = bench
            .repository
            .restore(&plan, target.as_fd(), None, &control);
        restored.unwrap();
        let warnings = monitor.warnings.lock().unwrap().clone();
        (staging, warnings)
    };
    let (restored, warnings) = restore("careful", &rules_of_a_shop());
    let look = |name: &str| {
        let found = std::fs::symlink_metadata(restored.join(name)).unwrap();
        (found.mode() & 0o7777, found.uid(), found.gid())
    };
    for device in ["privileged/null", "privileged/disk"] {
        assert!(!restored.join(device).exists(), "{device}");
    }
    assert_eq!(look("su"), (0o755, 33, 33));
    assert_eq!(look("su again"), (0o755, 33, 33));
    assert_eq!(look("sg"), (0o755, 33, 33));
    assert_eq!(look("plain"), (0o644, 33, 50));
    assert_eq!(look("shared"), (0o2775, 33, 33));
    assert_eq!(look("link"), (0o777, 33, 33));
    assert_eq!((look(".").1, look(".").2), (33, 33));
    let capabilities = xattr_of(&restored.join("privileged/capable"));
    assert_eq!(capabilities, None);
    assert_eq!(warnings.len(), 3, "{warnings:?}");
    for (warning, starts, names) in [
        (&warnings[0], "2 device nodes", "privileged/disk"),
        (&warnings[1], "4 files", "(the first: sg)"),
        (&warnings[2], "8 entries", "(the first: link)"),
    ] {
        assert!(warning.starts_with(starts), "{warning}");
        assert!(warning.contains(names), "{warning}");
    }

    // A site that was given away comes back as its own.
    chown(&site, Some(33), Some(50)).unwrap();
    let mut rules = rules_of_a_shop();
    rules.owners = OwnerRule::Only {
        users: [0].into(),
        groups: [0].into(),
    };
    bench.backup(None, true).unwrap();
    let (restored, _) = restore("given away", &rules);
    let look = |name: &str| {
        let found = std::fs::symlink_metadata(restored.join(name)).unwrap();
        (found.uid(), found.gid())
    };
    assert_eq!(look("."), (33, 50));
    assert_eq!(look("plain"), (33, 50));
    assert_eq!(look("su"), (0, 0));

    let (restored, warnings) = restore("careless", &RestoreRules::everything());
    assert_eq!(warnings, [] as [&str; 0]);
    assert_same_tree(&site, restored);
}

fn xattr_of(path: &Path) -> Option<Vec<u8>> {
    let mut value = [0; 64];
    match rustix::fs::getxattr(path, "security.capability", &mut value[..]) {
        Ok(length) => Some(value[..length].to_vec()),
        Err(rustix::io::Errno::NODATA) => None,
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn a_restore_of_more_than_the_limits_allow_is_refused_before_it_begins() {
    let bench = Bench::new();
    std::fs::create_dir_all(bench.site().join("a/b")).unwrap();
    std::fs::write(bench.site().join("a/file"), noise(1000, 1)).unwrap();
    std::fs::write(bench.site().join("a/b/file"), noise(500, 2)).unwrap();
    bench.backup(None, true).unwrap();
    let plan = |max_files, max_bytes| {
        let rules = RestoreRules {
            max_files,
            max_bytes,
            ..RestoreRules::everything()
        };
        let snapshot = bench.last();
        let cancel = Cancel::new();
        bench
            .repository
            .plan_restore(&snapshot, &bench.site(), &rules, &cancel)
    };
    for (max_files, max_bytes, key) in [
        (3, 0, "restore.max_files"),
        (1, 1500, "restore.max_files"),
        (0, 1499, "restore.max_bytes"),
        (4, 1, "restore.max_bytes"),
    ] {
        let error = plan(max_files, max_bytes).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused);
        assert!(error.to_string().contains(key), "{error}");
    }
    assert_eq!(plan(4, 1500).unwrap().files(), 2);
}

#[test]
fn excluded_directories_are_left_out_by_whole_components() {
    let bench = Bench::new();
    for directory in [
        "mysql",
        "mysql2",
        "wordpress/mysql",
        "volumes/db",
        "volumes/files",
    ] {
        std::fs::create_dir_all(bench.site().join(directory)).unwrap();
        std::fs::write(bench.site().join(directory).join("file"), "x").unwrap();
    }
    bench.backup(None, true).unwrap();
    let restored = bench.restore(&bench.last(), "site");
    assert!(!restored.join("mysql").exists());
    assert!(!restored.join("volumes/db").exists());
    for kept in ["mysql2/file", "wordpress/mysql/file", "volumes/files/file"] {
        assert!(restored.join(kept).exists(), "{kept}");
    }
}

#[test]
fn an_unchanged_site_is_not_read_again() {
    let bench = Bench::new();
    std::fs::create_dir(bench.site()).unwrap();
    for n in 0..20 {
        std::fs::write(bench.site().join(format!("file {n}")), noise(200_000, n)).unwrap();
    }
    let first = bench.backup(None, true).unwrap();
    assert!(first.bytes_added > 4_000_000);
    // Unreadable content shows whether it is read.
    let second = bench.backup(None, true).unwrap();
    assert_eq!(second.files, 20);
    assert_eq!(second.bytes, first.bytes);
    assert!(second.bytes_added < 10_000, "{second:?}");
    std::fs::write(bench.site().join("file 3"), noise(200_000, 99)).unwrap();
    let third = bench.backup(None, true).unwrap();
    assert!((200_000..300_000).contains(&third.bytes_added), "{third:?}");
    bench.restic.check_read_data().unwrap();
}

/// How often the content of a file in these directories was read since the last asking.
struct Reads(OwnedFd);

impl Reads {
    fn watch(directories: &[PathBuf]) -> Self {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).unwrap();
        for directory in directories {
            inotify::add_watch(&inotify, directory, WatchFlags::ACCESS).unwrap();
        }
        Self(inotify)
    }

    fn take(&self) -> usize {
        let mut buffer = [std::mem::MaybeUninit::uninit(); 64 * 1024];
        let mut events = inotify::Reader::new(&self.0, &mut buffer);
        let mut reads = 0;
        // Until there is no more: then it would block. Listing a directory is no reading of a file.
        while let Ok(event) = events.next() {
            reads += usize::from(!event.events().contains(ReadFlags::ISDIR));
        }
        reads
    }
}

#[test]
fn what_a_restore_replaced_is_saved_from_where_it_waits_as_if_it_were_in_its_place() {
    let bench = Bench::new();
    let site_dirs = ["volumes/files", "wordpress"];
    for site_dir in site_dirs {
        let site_dir = bench.site().join(site_dir);
        std::fs::create_dir_all(site_dir.parent().unwrap()).unwrap();
        build_nasty_tree(&site_dir).unwrap();
        std::fs::write(site_dir.join("shop"), noise(300_000, 3)).unwrap();
    }
    std::fs::write(bench.site().join("docker-compose.yml"), "not replaced").unwrap();
    let before = bench.backup(None, true).unwrap();

    let staging = bench.scratch.path().join("staging/files");
    std::fs::create_dir_all(staging.join("volumes")).unwrap();
    let waiting: Vec<PathBuf> = site_dirs.iter().map(|dir| staging.join(dir)).collect();
    for (site_dir, waiting) in site_dirs.iter().zip(&waiting) {
        std::fs::rename(bench.site().join(site_dir), waiting).unwrap();
    }
    std::fs::write(waiting[1].join("last second"), "an order").unwrap();
    std::fs::set_permissions(bench.site(), std::fs::Permissions::from_mode(0o710)).unwrap();

    let reads = Reads::watch(&waiting);
    let request = ArchiveRequest {
        // In no order.
        trees: [1, 0]
            .map(|n| TreeSource {
                root: waiting[n].clone(),
                path: bench.site().join(site_dirs[n]),
                exclude: Vec::new(),
                hold: None,
                limit: None,
            })
            .into(),
        streams: vec![StreamSource {
            path: DUMP.into(),
            reader: dump(100_000),
        }],
        paths: vec![bench.site()],
        tags: ["customer-7", "pre-restore", "both"]
            .map(String::from)
            .into(),
        time: Zoned::now(),
        note: None,
        parent: Some(before.snapshot),
    };
    let lock = bench.repository.lock_shared().unwrap();
    let control = Control::default();
    let archived = bench
        .repository
        .archive(lock, request, &control)
        .unwrap()
        .commit(&control)
        .unwrap();
    assert_eq!(reads.take(), 1, "only the file that is new is read");
    std::fs::read(waiting[0].join("shop")).unwrap();
    assert!(reads.take() > 0, "a read is seen");
    assert_eq!(bench.last().origin(), Some(Origin::PreRestore));
    assert_eq!(bench.last().owner(), Some("7".parse().unwrap()));

    let target = bench.scratch.path().join("restic");
    bench
        .restic
        .restore(&archived.snapshot.to_string(), &target)
        .unwrap();
    assert_eq!(
        std::fs::read(target.join(&DUMP[1..])).unwrap(),
        noise(100_000, 42)
    );
    let restored = target.join(bench.site().strip_prefix("/").unwrap());
    for (site_dir, waiting) in site_dirs.iter().zip(&waiting) {
        assert_same_tree(waiting, restored.join(site_dir));
    }
    assert!(!restored.join("docker-compose.yml").exists());
    let mode = |path: PathBuf| std::fs::metadata(path).unwrap().permissions().mode();
    assert_eq!(mode(restored.clone()), mode(bench.site()));
    assert_eq!(
        mode(restored.join("volumes")),
        mode(bench.site().join("volumes"))
    );
    bench.restic.check_read_data().unwrap();
}

#[test]
fn trees_inside_each_other_or_behind_a_link_are_refused() {
    let bench = Bench::new();
    std::fs::create_dir_all(bench.site().join("a/b")).unwrap();
    std::os::unix::fs::symlink("a", bench.site().join("link")).unwrap();
    let attempt = |trees: &[(&str, &str)], stream: Option<&str>| {
        let trees = trees.iter().map(|(root, path)| TreeSource {
            root: bench.site().join(root),
            path: path.into(),
            exclude: Vec::new(),
            hold: None,
            limit: None,
        });
        let request = ArchiveRequest {
            trees: trees.collect(),
            streams: stream
                .map(|path| StreamSource {
                    path: path.into(),
                    reader: dump(1),
                })
                .into_iter()
                .collect(),
            paths: vec![bench.site()],
            tags: Vec::new(),
            time: Zoned::now(),
            note: None,
            parent: None,
        };
        let lock = bench.repository.lock_shared().unwrap();
        let archived = bench.repository.archive(lock, request, &Control::default());
        archived.map(|_| ())
    };
    for (trees, stream) in [
        (&[("a", "/x"), ("a/b", "/x/y")][..], None),
        (&[("a", "/x"), ("a/b", "/x-"), ("a", "/x/y/z")], None),
        (&[("a", "/x"), ("a/b", "/x")], None),
        (&[("a", "/x")], Some("/x/dump.sql")),
        (&[("a", "/x/dump.sql/y")], Some("/x/dump.sql")),
        (&[("a", "/x/../y")], None),
        (&[("a", "x")], None),
    ] {
        let error = attempt(trees, stream).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Configuration, "{trees:?}: {error}");
    }
    attempt(&[("link", "/x")], None).unwrap_err();
    attempt(&[("a", "/x"), ("a/b", "/x-")], Some("/x.sql")).unwrap();
}

#[test]
fn backups_of_different_types_share_one_history() {
    let bench = Bench::new();
    std::fs::create_dir(bench.site()).unwrap();
    std::fs::write(bench.site().join("file"), noise(2_000_000, 1)).unwrap();
    bench.backup(None, true).unwrap();
    bench.backup(Some(dump(1000)), false).unwrap();
    let both = bench.backup(Some(dump(1000)), true).unwrap();
    assert!(both.bytes_added < 10_000, "{both:?}");
    assert_eq!((both.files, both.stream_bytes), (1, 1000));
}

/// A reader that gives some bytes and then fails, as a dump does whose program died.
struct Dying(usize);

impl Read for Dying {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.0 == 0 {
            return Err(std::io::Error::other("the dump program died"));
        }
        let count = buffer.len().min(self.0);
        buffer[..count].fill(b'x');
        self.0 -= count;
        Ok(count)
    }
}

#[test]
fn restics_snapshots_and_ours_spare_each_other_the_reading_of_what_is_unchanged() {
    let bench = Bench::new();
    std::fs::create_dir(bench.site()).unwrap();
    for number in 0..5 {
        let file = bench.site().join(format!("picture-{number}"));
        std::fs::write(file, noise(100_000, number)).unwrap();
    }
    let theirs = bench.restic.backup([bench.site()], &["daily"]).unwrap();
    let reads = Reads::watch(&[bench.site()]);
    let request = ArchiveRequest {
        trees: vec![TreeSource::in_place(bench.site(), Vec::new())],
        streams: Vec::new(),
        paths: vec![bench.site()],
        tags: vec!["daily".into()],
        time: Zoned::now(),
        note: None,
        parent: Some(theirs.parse().unwrap()),
    };
    let lock = bench.repository.lock_shared().unwrap();
    let control = Control::default();
    let archived = bench.repository.archive(lock, request, &control).unwrap();
    let ours = archived.commit(&control).unwrap().snapshot.to_string();
    assert_eq!(reads.take(), 0, "ours after theirs");

    let again = bench.restic.backup([bench.site()], &["daily"]).unwrap();
    assert_eq!(reads.take(), 0, "theirs after ours");
    std::fs::read(bench.site().join("picture-0")).unwrap();
    assert!(reads.take() > 0, "a read is seen");
    let described = bench.restic.snapshots().unwrap();
    let parent = |id: &str| {
        let of_id = described.iter().find(|snapshot| snapshot["id"] == id);
        of_id.unwrap()["parent"].clone()
    };
    assert_eq!(parent(&ours), theirs.as_str());
    assert_eq!(parent(&again), ours.as_str());
    bench.restic.check_read_data().unwrap();
}

/// Says an error of ours after so many bytes.
struct Refused(usize);

impl Read for Refused {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.0 == 0 {
            let refused = Error::new(ErrorKind::Refused, "the server does not let us in");
            return Err(std::io::Error::other(refused));
        }
        let count = buffer.len().min(self.0);
        buffer[..count].fill(b'y');
        self.0 -= count;
        Ok(count)
    }
}

/// A lock that is held as long as a tree is read.
struct Held(Arc<AtomicU64>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Notes how many are held when the last of it is read.
struct Observing(Box<dyn Read + Send>, Arc<AtomicU64>, Arc<AtomicU64>);

impl Read for Observing {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.0.read(buffer)?;
        if count == 0 {
            self.2
                .fetch_max(self.1.load(Ordering::SeqCst), Ordering::SeqCst);
        }
        Ok(count)
    }
}

#[test]
fn what_fails_is_left_out_whole_and_everything_else_is_saved() {
    const TREES: usize = 5;
    let bench = Bench::new();
    let root = bench.scratch.path().join("shops");
    for number in 0..TREES {
        let shop = root.join(number.to_string());
        std::fs::create_dir_all(shop.join("sub")).unwrap();
        std::fs::write(shop.join("sub/file"), noise(50_000, number as u64 + 1)).unwrap();
    }
    // Its files are read before it comes to light that it goes too deep.
    let mut deep = OwnedFd::from(std::fs::File::open(root.join("3/sub")).unwrap());
    for _ in 0..4200 {
        rustix::fs::mkdirat(&deep, "z", rustix::fs::Mode::RWXU).unwrap();
        let flags = rustix::fs::OFlags::DIRECTORY;
        deep = rustix::fs::openat(&deep, "z", flags, rustix::fs::Mode::empty()).unwrap();
    }
    let held = Arc::new(AtomicU64::new(0));
    let held_beside_streams = Arc::new(AtomicU64::new(0));
    let hold = |number: usize| {
        let held = Arc::clone(&held);
        Hold::new(move || {
            if number == 1 {
                return Err(Error::new(ErrorKind::Busy, "somebody is at it"));
            }
            held.fetch_add(1, Ordering::SeqCst);
            Ok(Held(held))
        })
    };
    let trees = (0..TREES).map(|number| TreeSource {
        hold: Some(hold(number)),
        ..TreeSource::in_place(root.join(number.to_string()), Vec::new())
    });
    let whole = |seed| -> Box<dyn Read + Send> {
        let content = Box::new(std::io::Cursor::new(noise(3_000_000, seed)));
        let observed = Arc::clone(&held_beside_streams);
        Box::new(Observing(content, Arc::clone(&held), observed))
    };
    // By their names in path order before the trees.
    let streams: Vec<(PathBuf, Box<dyn Read + Send>)> = vec![
        ("/0/a.sql".into(), whole(90)),
        ("/0/b.sql".into(), Box::new(Dying(3_000_000))),
        ("/0/c.sql".into(), whole(91)),
        ("/0/d.sql".into(), Box::new(Refused(0))),
        ("/0/e.sql".into(), whole(92)),
    ];
    let request = ArchiveRequest {
        trees: trees.collect(),
        streams: streams
            .into_iter()
            .map(|(path, reader)| StreamSource { path, reader })
            .collect(),
        paths: vec!["/0".into(), root.clone()],
        tags: vec!["daily".into()],
        time: Zoned::now(),
        note: None,
        parent: None,
    };
    let lock = bench.repository.lock_shared().unwrap();
    let control = Control::default();
    let (uncommitted, left_out) = bench
        .repository
        .archive_what_can_be(lock, request, &control)
        .unwrap();
    let told: Vec<(PathBuf, ErrorKind)> = left_out
        .iter()
        .map(|(path, error)| (path.clone(), error.kind()))
        .collect();
    let expected = [
        ("/0/b.sql".into(), ErrorKind::Failed),
        ("/0/d.sql".into(), ErrorKind::Refused),
        (root.join("1"), ErrorKind::Busy),
        (root.join("3"), ErrorKind::Failed),
    ];
    assert_eq!(told, expected);
    assert_eq!(held.load(Ordering::SeqCst), 0, "all is given back");
    assert_eq!(held_beside_streams.load(Ordering::SeqCst), 0);
    assert_eq!(uncommitted.stream_bytes(), 9_000_000);
    let archived = uncommitted.commit(&control).unwrap();
    assert_eq!((archived.files, archived.bytes), (3, 9_000_000 + 150_000));
    assert_eq!(bench.last().files, Some(6));
    assert_eq!(bench.last().bytes, Some(archived.bytes));

    bench.restic.check_read_data().unwrap();
    let target = bench.scratch.path().join("restic");
    bench
        .restic
        .restore(&archived.snapshot.to_string(), &target)
        .unwrap();
    for (name, seed) in [("a", 90), ("c", 91), ("e", 92)] {
        let restored = target.join(format!("0/{name}.sql"));
        assert!(std::fs::read(restored).unwrap() == noise(3_000_000, seed));
    }
    let names = |directory: PathBuf| -> BTreeSet<String> {
        let entries = std::fs::read_dir(directory).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    };
    assert_eq!(
        names(target.join("0")),
        ["a.sql", "c.sql", "e.sql"].map(String::from).into()
    );
    let restored = target.join(root.strip_prefix("/").unwrap());
    assert_eq!(
        names(restored.clone()),
        ["0", "2", "4"].map(String::from).into()
    );
    for number in [0, 2, 4] {
        assert_same_tree(
            root.join(number.to_string()),
            restored.join(number.to_string()),
        );
    }
    let removed = std::process::Command::new("rm")
        .arg("-rf")
        .arg(&root)
        .status();
    assert!(removed.unwrap().success());
}

#[test]
fn a_stream_that_fails_half_way_leaves_no_snapshot() {
    let bench = Bench::new();
    std::fs::create_dir(bench.site()).unwrap();
    let error = bench
        .backup(Some(Box::new(Dying(5_000_000))), true)
        .unwrap_err();
    assert!(
        error.chain().contains("the dump program died"),
        "{}",
        error.chain()
    );
    assert!(bench.repository.snapshots().unwrap().is_empty());
    assert!(bench.restic.snapshots().unwrap().is_empty());
    assert!(bench.repository.locks().unwrap().is_empty());
}

#[test]
fn an_uncommitted_backup_is_invisible() {
    let bench = Bench::new();
    std::fs::create_dir(bench.site()).unwrap();
    let uncommitted = bench.archive_files();
    assert!(bench.repository.snapshots().unwrap().is_empty());
    assert_eq!(bench.repository.locks().unwrap().len(), 1);
    drop(uncommitted);
    assert!(bench.repository.snapshots().unwrap().is_empty());
    assert!(bench.repository.locks().unwrap().is_empty());
}

#[test]
fn cancelling_ends_a_backup_without_a_snapshot() {
    let bench = Bench::new();
    std::fs::create_dir(bench.site()).unwrap();
    for n in 0..50 {
        std::fs::write(bench.site().join(format!("{n}")), noise(300_000, n)).unwrap();
    }
    let cancel = Cancel::new();
    let control = Control {
        monitor: Arc::new(Counting {
            cancel_at: Some((2_000_000, cancel.clone())),
            ..Counting::default()
        }),
        cancel,
        ..Control::default()
    };
    let error = bench.backup_under(None, true, &control).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    assert!(bench.repository.snapshots().unwrap().is_empty());
}

#[test]
fn progress_counts_every_byte_once_read_or_not() {
    let bench = Bench::new();
    std::fs::create_dir(bench.site()).unwrap();
    for n in 0..10 {
        std::fs::write(bench.site().join(format!("{n}")), noise(100_000, n)).unwrap();
    }
    for _ in 0..2 {
        let monitor = Arc::new(Counting::default());
        let control = Control {
            monitor: Arc::clone(&monitor) as _,
            ..Control::default()
        };
        bench
            .backup_under(Some(dump(50_000)), true, &control)
            .unwrap();
        assert_eq!(monitor.done.load(Ordering::SeqCst), 1_050_000);
        assert_eq!(monitor.files.load(Ordering::SeqCst), 10);
    }
}

#[test]
fn progress_counts_every_restored_file_once() {
    let bench = Bench::new();
    build_nasty_tree(&bench.site()).unwrap();
    std::fs::write(bench.site().join("large"), noise(9_000_000, 1)).unwrap();
    bench.backup(None, true).unwrap();
    let target = directory(&bench.scratch.path().join("out"));
    let plan = bench
        .repository
        .plan_restore(
            &bench.last(),
            &bench.site(),
            &RestoreRules::everything(),
            &Cancel::new(),
        )
        .unwrap();
    let monitor = Arc::new(Counting::default());
    let control = Control {
        monitor: Arc::clone(&monitor) as _,
        ..Control::default()
    };
    bench
        .repository
        .restore(&plan, target.as_fd(), None, &control)
        .unwrap();
    assert_eq!(monitor.files.load(Ordering::SeqCst), plan.files());
    assert_eq!(monitor.done.load(Ordering::SeqCst), plan.bytes());
}

/// Writes down what it is asked, with the snapshots that are there at that moment, and may refuse.
struct Asked {
    refuses: bool,
    snapshots: PathBuf,
    asked: Mutex<Vec<(Option<String>, usize)>>,
}

impl Gate for Asked {
    fn before_commit(&self, snapshot: Option<&str>) -> Result<()> {
        let there = std::fs::read_dir(&self.snapshots).unwrap().count();
        let mut asked = self.asked.lock().unwrap();
        asked.push((snapshot.map(str::to_owned), there));
        match self.refuses {
            true => Err(Error::new(ErrorKind::Busy, "the lease was lost")),
            false => Ok(()),
        }
    }
}

/// Restore the site by a repository of this bench, taking from the live site what is unchanged.
fn restore_beside_live(bench: &Bench, repository: &Repository, name: &str) -> PathBuf {
    let staging = bench.scratch.path().join(name);
    let target = directory(&staging);
    let live = std::fs::File::open(bench.site()).unwrap();
    let rules = RestoreRules::everything();
    let plan = repository
        .plan_restore(&bench.last(), &bench.site(), &rules, &Cancel::new())
        .unwrap();
    let monitor = Arc::new(Counting::default());
    let control = Control {
        monitor: Arc::clone(&monitor) as _,
        ..Control::default()
    };
    repository
        .restore(&plan, target.as_fd(), Some(live.as_fd()), &control)
        .unwrap();
    assert_eq!(monitor.done.load(Ordering::SeqCst), plan.bytes());
    assert_eq!(monitor.files.load(Ordering::SeqCst), plan.files());
    staging
}

#[test]
fn what_is_unchanged_on_the_site_is_not_fetched() {
    use std::os::unix::fs::MetadataExt;
    let bench = Bench::new();
    build_nasty_tree(&bench.site()).unwrap();
    for n in 0..30 {
        std::fs::write(bench.site().join(format!("{n}")), noise(100_000, n)).unwrap();
    }
    let sparse = std::fs::File::create(bench.site().join("sparse")).unwrap();
    sparse.set_len(50_000_000).unwrap();
    bench.backup(None, true).unwrap();
    let storage = Counted::at(&bench.path());
    let repository = Repository::open(
        Arc::clone(&storage) as Arc<dyn Storage>,
        &PASSWORD.to_owned().into(),
    )
    .unwrap();
    let rules = RestoreRules::everything();
    let plan = || {
        let plan = repository.plan_restore(&bench.last(), &bench.site(), &rules, &Cancel::new());
        plan.unwrap()
    };
    plan();
    storage.take();
    plan();
    let (_, to_plan) = storage.take();
    let restored = restore_beside_live(&bench, &repository, "unchanged");
    assert_eq!(storage.take().1, to_plan);
    assert_same_tree(bench.site(), &restored);
    let blocks = std::fs::metadata(restored.join("sparse")).unwrap().blocks();
    assert!(blocks < 1000, "a hole stays a hole: {blocks} blocks");

    let content = std::fs::read(bench.site().join("7")).unwrap();
    std::fs::write(bench.site().join("7"), noise(100_000, 777)).unwrap();
    let restored = restore_beside_live(&bench, &repository, "one changed");
    assert_eq!(storage.take().1, to_plan + 1);
    assert_eq!(std::fs::read(restored.join("7")).unwrap(), content);
}

#[test]
fn nothing_on_the_site_can_make_a_restored_file_another() {
    let bench = Bench::new();
    let site = bench.site();
    let outside = bench.scratch.path().join("outside");
    for dir in ["moved", "swapped", "plain"] {
        std::fs::create_dir_all(site.join(dir)).unwrap();
        std::fs::write(site.join(dir).join("file"), noise(3_000_000, 1)).unwrap();
    }
    for name in [
        "forged",
        "holes",
        "short",
        "long",
        "pipe",
        "link",
        "socket",
        "directory",
        "gone",
    ] {
        std::fs::write(site.join(name), noise(2_000_000, 2)).unwrap();
    }
    std::fs::write(site.join("zeros"), vec![0; 2_000_000]).unwrap();
    bench.backup(None, true).unwrap();
    let expected = bench.restore(&bench.last(), "expected");

    let as_it_was = |name: &str| {
        let before = std::fs::metadata(expected.join(name)).unwrap();
        let file = std::fs::File::options().write(true).open(site.join(name));
        file.unwrap()
            .set_modified(before.modified().unwrap())
            .unwrap();
    };
    for (name, content) in [
        ("forged", noise(2_000_000, 3)),
        ("zeros", noise(2_000_000, 3)),
        ("holes", vec![0; 2_000_000]),
        ("short", noise(1_999_999, 2)),
        ("long", noise(2_000_001, 2)),
    ] {
        std::fs::write(site.join(name), content).unwrap();
        as_it_was(name);
    }
    for name in ["pipe", "link", "socket", "directory", "gone"] {
        std::fs::remove_file(site.join(name)).unwrap();
    }
    for (name, kind) in [
        ("pipe", rustix::fs::FileType::Fifo),
        ("socket", rustix::fs::FileType::Socket),
    ] {
        let mode = rustix::fs::Mode::from_raw_mode(0o666);
        rustix::fs::mknodat(rustix::fs::CWD, site.join(name), kind, mode, 0).unwrap();
    }
    std::os::unix::fs::symlink("forged", site.join("link")).unwrap();
    std::fs::create_dir(site.join("directory")).unwrap();
    std::fs::rename(site.join("moved"), &outside).unwrap();
    std::fs::remove_dir_all(site.join("swapped")).unwrap();
    std::os::unix::fs::symlink(&outside, site.join("moved")).unwrap();
    std::os::unix::fs::symlink(&outside, site.join("swapped")).unwrap();

    let reads = Reads::watch(&[outside]);
    let restored = restore_beside_live(&bench, &bench.repository, "restored");
    assert_eq!(reads.take(), 0, "nothing is read through a link");
    assert_same_tree(expected, restored);
}

#[test]
fn a_site_that_changes_all_the_time_changes_nothing_of_what_is_restored() {
    let bench = Bench::new();
    let site = bench.site();
    std::fs::create_dir(&site).unwrap();
    for n in 0..40 {
        std::fs::write(site.join(format!("{n}")), noise(300_000, n)).unwrap();
    }
    bench.backup(None, true).unwrap();
    let expected = bench.restore(&bench.last(), "expected");
    let wanted = |n: u64| std::fs::metadata(expected.join(format!("{n}"))).unwrap();
    let stop = AtomicBool::new(false);
    let changes = AtomicU64::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0_u64.. {
                let n = round % 40;
                if stop.load(Ordering::SeqCst) {
                    break;
                }
                let path = site.join(format!("{n}"));
                let beside = site.join("beside");
                match (round / 40) % 4 {
                    0 => std::fs::write(&path, noise(300_000, round)).unwrap(),
                    1 => std::fs::write(&path, noise(300_000, n)).unwrap(),
                    2 => {
                        rustix::fs::mknodat(
                            rustix::fs::CWD,
                            &beside,
                            rustix::fs::FileType::Fifo,
                            rustix::fs::Mode::from_raw_mode(0o666),
                            0,
                        )
                        .unwrap();
                        std::fs::rename(&beside, &path).unwrap();
                    }
                    _ => {
                        std::fs::write(&beside, noise(300_000, n)).unwrap();
                        std::fs::rename(&beside, &path).unwrap();
                    }
                }
                if (round / 40) % 4 != 2 {
                    let file = std::fs::File::options().write(true).open(&path).unwrap();
                    file.set_modified(wanted(n).modified().unwrap()).unwrap();
                }
                changes.fetch_add(1, Ordering::SeqCst);
            }
        });
        let _stop = StopAtEnd(&stop);
        for round in 0.. {
            let name = format!("restored {round}");
            let restored = restore_beside_live(&bench, &bench.repository, &name);
            assert_same_tree(&expected, &restored);
            std::fs::remove_dir_all(restored).unwrap();
            if round >= 20 && changes.load(Ordering::SeqCst) > 400 {
                break;
            }
        }
    });
}

/// Also when the test fails: otherwise it would wait for ever.
struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn the_gate_has_the_last_word_on_a_backup_and_is_told_its_id() {
    let bench = Bench::new();
    std::fs::create_dir(bench.site()).unwrap();
    std::fs::write(bench.site().join("file"), "x").unwrap();
    for refuses in [true, false] {
        let gate = Arc::new(Asked {
            refuses,
            snapshots: bench.path().join("snapshots"),
            asked: Mutex::default(),
        });
        let control = Control {
            gate: Some(Arc::clone(&gate) as _),
            ..Control::default()
        };
        let archived = bench.backup_under(Some(dump(1000)), true, &control);
        let asked = std::mem::take(&mut *gate.asked.lock().unwrap());
        let there: Vec<String> = bench
            .repository
            .snapshots()
            .unwrap()
            .iter()
            .map(|snapshot| snapshot.id.to_string())
            .collect();
        if refuses {
            assert_eq!(archived.unwrap_err().to_string(), "the lease was lost");
            assert!(there.is_empty());
        } else {
            assert_eq!(there, [archived.unwrap().snapshot.to_string()]);
            assert_eq!(asked, [(there.first().cloned(), 0)]);
        }
        assert_eq!(asked.len(), 1);
        assert!(bench.repository.locks().unwrap().is_empty());
    }
    bench.restic.check_read_data().unwrap();
}

#[test]
fn a_cancelled_backup_does_not_come_to_the_gate() {
    let bench = Bench::new();
    std::fs::create_dir(bench.site()).unwrap();
    let gate = Arc::new(Asked {
        refuses: false,
        snapshots: bench.path().join("snapshots"),
        asked: Mutex::default(),
    });
    let control = Control {
        gate: Some(Arc::clone(&gate) as _),
        ..Control::default()
    };
    let uncommitted = bench.archive_files();
    control.cancel.cancel();
    let error = uncommitted.commit(&control).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    assert!(gate.asked.lock().unwrap().is_empty());
}

#[test]
fn a_link_planted_in_a_files_place_is_not_followed() {
    let bench = Bench::new();
    std::fs::create_dir(bench.site()).unwrap();
    let secret = bench.scratch.path().join("secret");
    std::fs::write(&secret, "of another").unwrap();
    std::os::unix::fs::symlink(&secret, bench.site().join("link")).unwrap();
    std::os::unix::fs::symlink(bench.scratch.path(), bench.site().join("directory")).unwrap();
    bench.backup(None, true).unwrap();
    let restored = bench.restore(&bench.last(), "site");
    assert_eq!(std::fs::read_link(restored.join("link")).unwrap(), secret);
    assert!(
        restored
            .join("directory")
            .symlink_metadata()
            .unwrap()
            .is_symlink()
    );
}

#[test]
fn a_site_that_is_a_link_is_refused() {
    let bench = Bench::new();
    std::os::unix::fs::symlink("/etc", bench.site()).unwrap();
    bench.backup(None, true).unwrap_err();
    assert!(bench.repository.snapshots().unwrap().is_empty());
}

#[test]
fn one_file_streams_out_in_order() {
    let bench = Bench::new();
    let content = noise(40_000_000, 5);
    bench
        .backup(Some(Box::new(std::io::Cursor::new(content.clone()))), false)
        .unwrap();
    let mut stream = bench
        .repository
        .stream_file(&bench.last(), Path::new(DUMP), &Control::default())
        .unwrap();
    assert_eq!(stream.bytes, content.len() as u64);
    let mut read = Vec::new();
    stream.read_to_end(&mut read).unwrap();
    assert!(read == content);

    let missing = bench.repository.stream_file(
        &bench.last(),
        Path::new("/tmp/customer-backup-7"),
        &Control::default(),
    );
    assert_eq!(missing.unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn a_damaged_pack_fails_the_restore_and_the_check() {
    let bench = Bench::new();
    std::fs::create_dir(bench.site()).unwrap();
    std::fs::write(bench.site().join("file"), noise(3_000_000, 1)).unwrap();
    bench.backup(None, true).unwrap();
    assert!(bench.repository.check(true).unwrap().errors.is_empty());
    damage_largest_pack(&bench.path());
    assert!(!bench.repository.check(true).unwrap().errors.is_empty());
    let target = directory(&bench.scratch.path().join("out"));
    let plan = bench
        .repository
        .plan_restore(
            &bench.last(),
            &bench.site(),
            &RestoreRules::everything(),
            &Cancel::new(),
        )
        .unwrap();
    let error = bench
        .repository
        .restore(&plan, target.as_fd(), None, &Control::default())
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged);
}

fn damage_largest_pack(repository: &Path) {
    let packs = std::fs::read_dir(repository.join("data")).unwrap();
    let largest = packs
        .flat_map(|directory| std::fs::read_dir(directory.unwrap().path()).unwrap())
        .map(|file| file.unwrap().path())
        .max_by_key(|path| path.metadata().unwrap().len())
        .unwrap();
    let mut bytes = std::fs::read(&largest).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::set_permissions(&largest, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::write(&largest, bytes).unwrap();
}

#[test]
fn forgetting_and_pruning_keep_what_is_still_needed() {
    let bench = Bench::new();
    std::fs::create_dir(bench.site()).unwrap();
    let mut ids = Vec::new();
    for round in 0..3 {
        std::fs::write(bench.site().join("file"), noise(4_000_000, round)).unwrap();
        ids.push(
            bench
                .backup(Some(dump(500_000 + round as usize)), true)
                .unwrap()
                .snapshot,
        );
    }
    bench.repository.forget(&ids[..2]).unwrap();
    bench.repository.forget(&ids[..1]).unwrap();
    let report = bench.repository.prune(&BTreeSet::new()).unwrap();
    assert!(
        report.packs_removed > 0 && report.bytes_after < report.bytes_before,
        "{report:?}"
    );
    bench.restic.check_read_data().unwrap();
    assert_eq!(bench.last().id, ids[2]);
    assert_same_tree(bench.site(), bench.restore(&bench.last(), "after-prune"));
    // The index in memory is older than the prune; the next backup must notice.
    std::fs::write(bench.site().join("file"), noise(4_000_000, 0)).unwrap();
    bench.backup(Some(dump(500_000)), true).unwrap();
    bench.restic.check_read_data().unwrap();
    assert_same_tree(bench.site(), bench.restore(&bench.last(), "after-backup"));
}

#[test]
fn a_prune_refuses_while_a_snapshot_that_must_be_there_is_not() {
    let bench = Bench::new();
    std::fs::create_dir(bench.site()).unwrap();
    let mut made = BTreeSet::new();
    for round in 0..3 {
        std::fs::write(bench.site().join("file"), noise(2_000_000, round)).unwrap();
        made.insert(bench.backup(None, true).unwrap().snapshot);
    }
    let lost = *made.first().unwrap();
    let file = bench.path().join("snapshots").join(lost.to_string());
    let aside = bench.scratch.path().join("aside");
    std::fs::rename(&file, &aside).unwrap();

    let error = bench.repository.prune(&made).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged);
    for words in ["1 of 3 snapshots", "sync"] {
        assert!(error.to_string().contains(words), "{error}");
    }
    assert!(bench.repository.locks().unwrap().is_empty());
    // Nothing of it was removed: brought back, it is whole.
    std::fs::rename(&aside, &file).unwrap();
    bench.restic.check_read_data().unwrap();
    bench.repository.prune(&made).unwrap();

    // Forgotten on purpose, and the catalogue knows.
    bench.repository.forget(&[lost]).unwrap();
    made.remove(&lost);
    let report = bench.repository.prune(&made).unwrap();
    assert!(report.packs_removed > 0, "{report:?}");
    bench.restic.check_read_data().unwrap();
}

#[test]
fn another_process_pruning_between_two_backups_is_noticed() {
    let bench = Bench::new();
    std::fs::create_dir(bench.site()).unwrap();
    std::fs::write(bench.site().join("file"), noise(4_000_000, 1)).unwrap();
    let first = bench.backup(None, true).unwrap();
    bench
        .restic
        .run(["forget", "--prune", &first.snapshot.to_string()])
        .unwrap();
    bench.backup(None, true).unwrap();
    bench.restic.check_read_data().unwrap();
    assert_same_tree(bench.site(), bench.restore(&bench.last(), "site"));
}

#[test]
fn our_locks_keep_restic_out_and_restics_keep_us_out() {
    let bench = Bench::new();
    let shared = bench.repository.lock_shared().unwrap();
    assert!(bench.restic.run(["prune"]).is_err());
    bench.restic.run(["snapshots"]).unwrap();
    assert_eq!(
        bench.repository.lock_exclusive().unwrap_err().kind(),
        ErrorKind::Busy
    );
    assert_eq!(
        bench.repository.prune(&BTreeSet::new()).unwrap_err().kind(),
        ErrorKind::Busy
    );
    let second = bench.repository.lock_shared().unwrap();
    drop((shared, second));

    let exclusive = bench.repository.lock_exclusive().unwrap();
    let error = bench.restic.run(["check"]).unwrap_err().to_string();
    assert!(error.contains("locked exclusively"), "{error}");
    assert_eq!(
        bench.repository.lock_shared().unwrap_err().kind(),
        ErrorKind::Busy
    );
    drop(exclusive);
    bench.restic.run(["prune"]).unwrap();
    assert!(bench.repository.locks().unwrap().is_empty());
}

#[test]
fn a_running_restic_is_seen_and_a_dead_ones_lock_is_removed_by_unlock() {
    let bench = Bench::new();
    // restic reads its input while it holds a shared lock.
    let mut restic = bench
        .restic
        .command(["backup", "--stdin"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    wait_until(|| bench.repository.locks().unwrap().len() == 1);
    let info = bench.repository.locks().unwrap().remove(0);
    assert!(!info.exclusive && !info.is_stale());
    assert_eq!(
        bench.repository.prune(&BTreeSet::new()).unwrap_err().kind(),
        ErrorKind::Busy
    );
    assert!(bench.repository.unlock().unwrap().is_empty());

    restic.kill().unwrap();
    restic.wait().unwrap();
    assert_eq!(
        bench.repository.prune(&BTreeSet::new()).unwrap_err().kind(),
        ErrorKind::Busy
    );
    assert_eq!(bench.repository.unlock().unwrap().len(), 1);
    bench.repository.prune(&BTreeSet::new()).unwrap();
}

fn wait_until(condition: impl Fn() -> bool) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while !condition() {
        assert!(
            std::time::Instant::now() < deadline,
            "waited for 30 s in vain"
        );
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

#[test]
fn a_wrong_password_and_a_missing_repository_are_told_apart() {
    let bench = Bench::new();
    let wrong =
        Repository::open(storage_at(&bench.path()), &"wrong".to_owned().into()).unwrap_err();
    assert_eq!(wrong.kind(), ErrorKind::Refused);
    assert!(wrong.to_string().contains("password"), "{wrong}");
    assert!(!wrong.chain().contains(PASSWORD));
    let missing = Repository::open(
        storage_at(&bench.scratch.path().join("nothing")),
        &PASSWORD.to_owned().into(),
    );
    assert_eq!(missing.unwrap_err().kind(), ErrorKind::NotFound);
    let again = Repository::init(storage_at(&bench.path()), &PASSWORD.to_owned().into());
    assert_eq!(again.unwrap_err().kind(), ErrorKind::Busy);
}

#[test]
fn snapshots_made_by_restic_are_read_and_restored() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("repository");
    let restic = Restic::new(&path, PASSWORD).unwrap();
    restic.init().unwrap();
    let site = scratch.path().join("customer-1");
    build_nasty_tree(&site).unwrap();
    restic.backup([&site], &["daily"]).unwrap();
    let repository = Repository::open(storage_at(&path), &PASSWORD.to_owned().into()).unwrap();
    let snapshot = repository.snapshots().unwrap().remove(0);
    assert_eq!(snapshot.owner(), None);
    let target = directory(&scratch.path().join("out"));
    let plan = repository
        .plan_restore(
            &snapshot,
            &site,
            &RestoreRules::everything(),
            &Cancel::new(),
        )
        .unwrap();
    repository
        .restore(&plan, target.as_fd(), None, &Control::default())
        .unwrap();
    assert_same_tree(&site, scratch.path().join("out"));
}

/// Removes a file as soon as anything was read.
struct Removing(PathBuf);

impl Monitor for Removing {
    fn bytes_done(&self, _bytes: u64) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn a_file_that_vanishes_is_a_warning() {
    let bench = Bench::new();
    std::fs::create_dir(bench.site()).unwrap();
    // More files than the archiver reads ahead.
    for n in 0..5000 {
        std::fs::write(bench.site().join(format!("{n:04}")), [1]).unwrap();
    }
    let gone = bench.site().join("gone");
    std::fs::write(&gone, "x").unwrap();
    let control = Control {
        monitor: Arc::new(Removing(gone.clone())),
        ..Control::default()
    };
    let archived = bench.backup_under(None, true, &control).unwrap();
    assert_eq!(archived.files, 5000);
    assert_eq!(
        archived.warnings,
        [format!("{} vanished while it was read", gone.display())]
    );
    bench.restic.check_read_data().unwrap();
}

#[test]
fn a_file_that_is_replaced_while_it_is_saved_is_in_the_snapshot() {
    use std::sync::atomic::AtomicBool;
    let bench = Bench::new();
    std::fs::create_dir(bench.site()).unwrap();
    for n in 0..200 {
        std::fs::write(bench.site().join(format!("{n:04}")), noise(50_000, n)).unwrap();
    }
    let (config, new) = (bench.site().join("wp-config.php"), bench.site().join("new"));
    std::fs::write(&config, "settings").unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                std::fs::write(&new, "settings").unwrap();
                std::fs::rename(&new, &config).unwrap();
            }
        });
        for round in 0..5 {
            let archived = bench.backup(None, true).unwrap();
            let path = config.to_str().unwrap();
            let stored = bench
                .restic
                .dump(&archived.snapshot.to_string(), path)
                .unwrap();
            assert_eq!(stored, b"settings", "round {round}");
        }
        done.store(true, Ordering::Relaxed);
    });
}

/// A file that changes its length as soon as anything was read.
struct Resizing(PathBuf, u64);

impl Monitor for Resizing {
    fn bytes_done(&self, _bytes: u64) {
        std::fs::File::options()
            .write(true)
            .open(&self.0)
            .unwrap()
            .set_len(self.1)
            .unwrap();
    }
}

#[test]
fn files_are_cut_where_restic_cuts_them() {
    let bench = Bench::new();
    std::fs::create_dir(bench.site()).unwrap();
    for (name, bytes) in [("small", 1_000), ("large", 30_000_000)] {
        std::fs::write(bench.site().join(name), noise(bytes, bytes as u64)).unwrap();
    }
    bench.backup(None, true).unwrap();
    let mut backup = bench.restic.command(["backup", "--json", "--force"]);
    let output = backup.arg(bench.site()).output().unwrap();
    let summary = String::from_utf8(output.stdout).unwrap();
    let summary: serde_json::Value = serde_json::from_str(summary.lines().last().unwrap()).unwrap();
    assert_eq!(
        (&summary["files_new"], &summary["data_blobs"]),
        (&2.into(), &0.into()),
        "{summary}"
    );
}

#[test]
fn a_file_that_shrinks_or_grows_while_it_is_read_is_stored_consistently() {
    for (length, stored) in [(100_000, 100_000), (9_000_000, 4_000_000)] {
        let bench = Bench::new();
        std::fs::create_dir(bench.site()).unwrap();
        let path = bench.site().join("log");
        std::fs::write(&path, noise(4_000_000, 1)).unwrap();
        let control = Control {
            monitor: Arc::new(Resizing(path.clone(), length)),
            ..Control::default()
        };
        let archived = bench.backup_under(None, true, &control).unwrap();
        assert_eq!(
            archived.warnings.len(),
            usize::from(length < 4_000_000),
            "{:?}",
            archived.warnings
        );
        let target = bench.scratch.path().join("restic");
        bench
            .restic
            .restore(&archived.snapshot.to_string(), &target)
            .unwrap();
        let restored = target
            .join(path.strip_prefix("/").unwrap())
            .metadata()
            .unwrap()
            .len();
        assert!(restored >= stored && restored <= 4_000_000, "{restored}");
        assert_eq!(
            bench
                .restore(&bench.last(), "site")
                .join("log")
                .metadata()
                .unwrap()
                .len(),
            restored
        );
        bench.restic.check_read_data().unwrap();
    }
}

#[test]
fn an_unreadable_file_fails_the_backup() {
    let bench = Bench::new();
    std::fs::create_dir_all(bench.site().join("directory")).unwrap();
    std::fs::write(bench.site().join("directory/file"), "x").unwrap();
    // Root may read everything but what the kernel itself refuses to read.
    let write_only = Path::new("/sys/bus/cpu/drivers_probe");
    let bound = bench.site().join("directory/file");
    let mount = Mount::bind(write_only, &bound).unwrap();
    let result = bench.backup(Some(dump(10)), true);
    drop(mount);
    let error = result.unwrap_err();
    assert!(
        error.chain().contains("directory/file"),
        "{}",
        error.chain()
    );
    assert!(bench.repository.snapshots().unwrap().is_empty());
}

#[test]
fn a_damaged_snapshot_keeps_nobody_from_his_backups() {
    let bench = Bench::new();
    std::fs::create_dir(bench.site()).unwrap();
    let first = bench.backup(None, true).unwrap();
    let second = bench.backup(None, true).unwrap();
    let file = bench
        .path()
        .join("snapshots")
        .join(first.snapshot.to_string());
    let half = std::fs::read(&file).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::write(&file, &half[..half.len() / 2]).unwrap();

    let repository =
        Repository::open(storage_at(&bench.path()), &PASSWORD.to_owned().into()).unwrap();
    let ids: Vec<_> = repository
        .snapshots()
        .unwrap()
        .iter()
        .map(|snapshot| snapshot.id)
        .collect();
    assert_eq!(ids, [second.snapshot]);
    assert_eq!(repository.damaged_snapshots(), [first.snapshot]);
    let asked = [
        second.snapshot,
        first.snapshot,
        "ab".repeat(32).parse().unwrap(),
    ];
    let read = repository.read_snapshots(&asked).unwrap();
    assert_eq!(read.damaged, [first.snapshot]);
    assert_eq!(read.snapshots.len(), 1, "what is not there is left out");
    assert_eq!(read.snapshots[0].id, second.snapshot);
    let report = repository.check(false).unwrap();
    assert_eq!(report.errors.len(), 1, "{report:?}");
    assert!(report.errors[0].contains(&first.snapshot.to_string()));
    // Nobody can tell what it needs: so nothing is removed.
    repository.prune(&BTreeSet::new()).unwrap_err();
    bench.backup(None, true).unwrap();
}

#[test]
fn unlock_removes_a_lock_that_nobody_can_read() {
    let bench = Bench::new();
    let lock = bench.path().join("locks").join("ab".repeat(32));
    std::fs::write(&lock, "half").unwrap();
    assert_eq!(
        bench.repository.lock_shared().unwrap_err().kind(),
        ErrorKind::Damaged
    );
    assert_eq!(bench.repository.unlock().unwrap().len(), 1);
    bench.repository.lock_exclusive().unwrap();
}

#[test]
fn a_backup_whose_lock_was_removed_does_not_commit() {
    let bench = Bench::new();
    std::fs::create_dir(bench.site()).unwrap();
    let uncommitted = bench.archive_files();
    bench.restic.run(["unlock", "--remove-all"]).unwrap();
    uncommitted.commit(&Control::default()).unwrap_err();
    assert!(bench.repository.snapshots().unwrap().is_empty());
}

#[test]
fn init_can_be_repeated_after_it_was_interrupted() {
    let bench = Bench::new();
    std::fs::remove_file(bench.path().join("config")).unwrap();
    let password = PASSWORD.to_owned().into();
    drop(Repository::init(storage_at(&bench.path()), &password).unwrap());
    Repository::open(storage_at(&bench.path()), &password).unwrap();
    bench.restic.check_read_data().unwrap();
    // In whatever order keys are tried.
    let keys = std::fs::read_dir(bench.path().join("keys")).unwrap();
    assert_eq!(keys.count(), 1);
}

#[test]
fn init_refuses_a_repository_that_lost_its_config() {
    let bench = Bench::new();
    std::fs::create_dir(bench.site()).unwrap();
    bench.backup(None, true).unwrap();
    std::fs::remove_file(bench.path().join("config")).unwrap();
    let error =
        Repository::init(storage_at(&bench.path()), &PASSWORD.to_owned().into()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged);
    assert_eq!(
        std::fs::read_dir(bench.path().join("keys"))
            .unwrap()
            .count(),
        1
    );
}

#[test]
fn a_tree_that_is_too_deep_is_refused_before_it_fills_the_memory() {
    use rustix::fs::{Mode, OFlags, mkdirat, openat};
    let bench = Bench::new();
    std::fs::create_dir(bench.site()).unwrap();
    let mut at = std::os::fd::OwnedFd::from(std::fs::File::open(bench.site()).unwrap());
    let name = "e".repeat(250);
    for _ in 0..200 {
        mkdirat(&at, &name, Mode::RWXU).unwrap();
        at = openat(
            &at,
            &name,
            OFlags::RDONLY | OFlags::DIRECTORY,
            Mode::empty(),
        )
        .unwrap();
    }
    drop(at);
    let error = bench.backup(None, true).unwrap_err();
    assert!(
        error.chain().contains("deeper than can be saved"),
        "{}",
        error.chain()
    );
    assert!(bench.repository.snapshots().unwrap().is_empty());
}

/// A storage that counts what is asked of it.
#[derive(Debug)]
struct Counted {
    inner: Arc<dyn Storage>,
    lists: AtomicU64,
    reads: AtomicU64,
}

impl Counted {
    fn at(path: &Path) -> Arc<Self> {
        Arc::new(Self {
            inner: storage_at(path),
            lists: AtomicU64::new(0),
            reads: AtomicU64::new(0),
        })
    }

    /// Listings and reads since the last call.
    fn take(&self) -> (u64, u64) {
        let take = |count: &AtomicU64| count.swap(0, Ordering::SeqCst);
        (take(&self.lists), take(&self.reads))
    }
}

impl Storage for Counted {
    fn location(&self) -> &str {
        self.inner.location()
    }
    fn create(&self) -> Result<()> {
        self.inner.create()
    }
    fn list(&self, kind: FileKind) -> Result<Vec<(FileId, u64)>> {
        self.lists.fetch_add(1, Ordering::SeqCst);
        self.inner.list(kind)
    }
    fn read(&self, kind: FileKind, id: &FileId) -> Result<Bytes> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        self.inner.read(kind, id)
    }
    fn read_range(&self, kind: FileKind, id: &FileId, offset: u64, length: u64) -> Result<Bytes> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        self.inner.read_range(kind, id, offset, length)
    }
    fn write(&self, kind: FileKind, id: &FileId, content: &[Bytes]) -> Result<()> {
        self.inner.write(kind, id, content)
    }
    fn remove(&self, kind: FileKind, id: &FileId) -> Result<()> {
        self.inner.remove(kind, id)
    }
    fn with_stop(&self, stop: &Cancel) -> Arc<dyn Storage> {
        self.inner.with_stop(stop)
    }
}

#[test]
fn only_snapshots_not_seen_before_are_read() {
    let bench = Bench::new();
    std::fs::create_dir(bench.site()).unwrap();
    let made: Vec<_> = (0..5)
        .map(|_| bench.backup(None, true).unwrap().snapshot)
        .collect();
    let storage = Counted::at(&bench.path());
    let repository =
        Repository::open(Arc::clone(&storage) as _, &PASSWORD.to_owned().into()).unwrap();
    storage.take();

    let listed = repository.snapshot_ids().unwrap();
    assert_eq!(listed, made.iter().copied().collect());
    assert_eq!(storage.take(), (1, 0));
    let read = repository.read_snapshots(&made[1..3]).unwrap();
    let ids: Vec<_> = read.snapshots.iter().map(|snapshot| snapshot.id).collect();
    assert_eq!(ids, made[1..3]);
    assert_eq!(storage.take(), (0, 2));
    assert_eq!(repository.read_snapshots(&made).unwrap().snapshots.len(), 5);
    assert_eq!(storage.take(), (0, 3));

    let new = bench.backup(None, true).unwrap().snapshot;
    bench.repository.forget(&made[..1]).unwrap();
    let snapshots = repository.snapshots().unwrap();
    assert_eq!(storage.take(), (1, 1));
    assert_eq!(snapshots.len(), 5);
    assert_eq!(snapshots[4].id, new);
}

#[test]
fn the_id_of_a_repository_is_restics_and_stays() {
    let bench = Bench::new();
    let config = bench.restic.run(["cat", "config"]).unwrap().stdout;
    let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
    let id = bench.repository.id();
    assert_eq!(config["id"], id.as_str());
    let password = PASSWORD.to_owned().into();
    let again = Repository::open(storage_at(&bench.path()), &password).unwrap();
    assert_eq!(again.id(), id);
    assert_ne!(Bench::new().repository.id(), id);
}

#[test]
fn what_a_daily_snapshot_holds_of_everybody_costs_few_reads() {
    const CUSTOMERS: usize = 400;
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("repository");
    let restic = Restic::new(&path, PASSWORD).unwrap();
    restic.init().unwrap();
    let customers = scratch.path().join("customers");
    let dumps = scratch.path().join("dumps");
    std::fs::create_dir_all(&dumps).unwrap();
    for n in 0..CUSTOMERS {
        let site = customers.join(format!("customer-{n}/wordpress"));
        std::fs::create_dir_all(&site).unwrap();
        std::fs::write(site.join("index.php"), format!("{n}")).unwrap();
        std::fs::write(dumps.join(format!("customer_{n}.sql")), format!("{n}")).unwrap();
    }
    restic.backup([&customers, &dumps], &["daily"]).unwrap();

    let storage = Counted::at(&path);
    let repository =
        Repository::open(Arc::clone(&storage) as _, &PASSWORD.to_owned().into()).unwrap();
    let snapshot = repository.snapshots().unwrap().remove(0);
    let view = repository.view().unwrap();
    let paths: Vec<PathBuf> = (0..2 * CUSTOMERS)
        .flat_map(|n| {
            [
                customers.join(format!("customer-{n}/wordpress")),
                dumps.join(format!("customer_{n}.sql")),
            ]
        })
        .collect();
    storage.take();
    let entries = view.entries(&snapshot, &paths).unwrap();
    assert!(entries[..2 * CUSTOMERS].iter().all(Option::is_some));
    assert!(entries[2 * CUSTOMERS..].iter().all(Option::is_none));
    // One or two a level: the directories above, those of the customers, and their sites are side by side.
    let (lists, reads) = storage.take();
    assert!(lists == 0 && reads <= 16, "{lists} lists, {reads} reads");
}
