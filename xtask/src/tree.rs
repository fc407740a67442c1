//! Directory trees with everything that is awkward to back up, and a comparison that overlooks nothing.
//!
//! Building takes root: owners, trusted attributes and device nodes cannot be made otherwise. Nothing here follows
//! a symbolic link.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags,
};
use sha2::{Digest, Sha256};

/// Everything about a tree that a restore has to bring back. Taken before and after, and compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreeImage(BTreeMap<PathBuf, EntryImage>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct EntryImage {
    kind: Kind,
    mode: u32,
    uid: u32,
    gid: u32,
    modified: (i64, i64),
    xattrs: BTreeMap<OsString, Vec<u8>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    Directory,
    File {
        size: u64,
        sha256: [u8; 32],
    },
    /// Another name of the file at this path, which comes earlier in the order of paths.
    HardLink {
        first: PathBuf,
    },
    Symlink {
        target: PathBuf,
    },
    Fifo,
    Socket,
    Device {
        block: bool,
        number: u64,
    },
}

impl TreeImage {
    /// The image of the tree at `root`, with `root` itself as the empty path.
    pub fn of(root: &Path) -> Result<Self> {
        let mut entries = BTreeMap::new();
        let mut first_names = HashMap::new();
        let mut pending = vec![PathBuf::new()];
        // Depth first in byte order, so that of several hard links the same one always counts as the first.
        while let Some(path) = pending.pop() {
            let full = full_path(root, &path);
            let entry = EntryImage::of(&full, &path, &mut first_names)
                .with_context(|| format!("cannot look at {}", full.display()))?;
            if entry.kind == Kind::Directory {
                let mut names = fs::read_dir(&full)
                    .and_then(|list| {
                        list.map(|entry| Ok(entry?.file_name()))
                            .collect::<Result<Vec<_>, _>>()
                    })
                    .with_context(|| format!("cannot list {}", full.display()))?;
                names.sort_unstable_by(|a, b| b.cmp(a));
                pending.extend(names.iter().map(|name| path.join(name)));
            }
            entries.insert(path, entry);
        }
        Ok(Self(entries))
    }

    /// How many files, directories, links and other things the tree holds, the top directory included.
    pub fn entries(&self) -> usize {
        self.0.len()
    }

    /// The bytes of all files, each hard-linked file counted once.
    pub fn bytes(&self) -> u64 {
        let sizes = self.0.values().map(|entry| match entry.kind {
            Kind::File { size, .. } => size,
            _ => 0,
        });
        sizes.sum()
    }

    /// What is not the same in the other tree, one line each; empty when nothing differs.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let mut lines = Vec::new();
        for (path, ours) in &self.0 {
            match other.0.get(path) {
                None => lines.push(format!("{path:?}: missing")),
                Some(theirs) => ours.differences(theirs, path, &mut lines),
            }
        }
        let extra = other.0.keys().filter(|path| !self.0.contains_key(*path));
        lines.extend(extra.map(|path| format!("{path:?}: not expected")));
        lines
    }
}

impl EntryImage {
    fn of(
        full: &Path,
        path: &Path,
        first_names: &mut HashMap<(u64, u64), PathBuf>,
    ) -> Result<Self> {
        let meta = fs::symlink_metadata(full)?;
        let file_type = meta.file_type();
        let kind = if file_type.is_dir() {
            Kind::Directory
        } else if file_type.is_symlink() {
            Kind::Symlink {
                target: fs::read_link(full)?,
            }
        } else if file_type.is_fifo() {
            Kind::Fifo
        } else if file_type.is_socket() {
            Kind::Socket
        } else if file_type.is_file() {
            let inode = (meta.dev(), meta.ino());
            match first_names.get(&inode) {
                Some(first) => Kind::HardLink {
                    first: first.clone(),
                },
                None => {
                    first_names.insert(inode, path.to_owned());
                    Kind::File {
                        size: meta.len(),
                        sha256: hash(full)?,
                    }
                }
            }
        } else {
            Kind::Device {
                block: file_type.is_block_device(),
                number: meta.rdev(),
            }
        };
        Ok(Self {
            kind,
            mode: meta.mode() & 0o7777,
            uid: meta.uid(),
            gid: meta.gid(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            xattrs: xattrs(full)?,
        })
    }

    fn differences(&self, other: &Self, path: &Path, lines: &mut Vec<String>) {
        let mut differ = |what: &str, ours: &dyn std::fmt::Debug, theirs: &dyn std::fmt::Debug| {
            lines.push(format!("{path:?}: {what} {ours:?}, found {theirs:?}"));
        };
        if self.kind != other.kind {
            differ("should be", &self.kind, &other.kind);
        }
        if self.mode != other.mode {
            differ(
                "mode",
                &format_args!("{:o}", self.mode),
                &format_args!("{:o}", other.mode),
            );
        }
        if (self.uid, self.gid) != (other.uid, other.gid) {
            differ("owner", &(self.uid, self.gid), &(other.uid, other.gid));
        }
        if self.modified != other.modified {
            differ("modified", &self.modified, &other.modified);
        }
        if self.xattrs != other.xattrs {
            differ("extended attributes", &self.xattrs, &other.xattrs);
        }
    }
}

/// Panics with a list of what differs unless both trees hold the same: names, types, bytes, modes, owners, times to
/// the nanosecond, extended attributes, link structure, device numbers; of the top directories themselves too.
#[track_caller]
pub fn assert_same_tree(expected: impl AsRef<Path>, found: impl AsRef<Path>) {
    let (expected, found) = (expected.as_ref(), found.as_ref());
    let images = TreeImage::of(expected).and_then(|image| Ok((image, TreeImage::of(found)?)));
    let (expected_image, found_image) = match images {
        Ok(images) => images,
        Err(error) => panic!("{error:#}"),
    };
    let lines = expected_image.differences(&found_image);
    if !lines.is_empty() {
        let mut text = format!(
            "{} differs from {} in {} places:",
            found.display(),
            expected.display(),
            lines.len()
        );
        for line in lines.iter().take(30) {
            let _ = write!(text, "\n  {line}");
        }
        panic!("{text}");
    }
}

fn full_path(root: &Path, path: &Path) -> PathBuf {
    // Joining an empty path would append a slash, and a slash follows links.
    if path.as_os_str().is_empty() {
        root.to_owned()
    } else {
        root.join(path)
    }
}

fn hash(path: &Path) -> Result<[u8; 32]> {
    let mut file = File::from(rustix::fs::open(
        path,
        OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )?);
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 256 * 1024];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finalize().into()),
            length => hasher.update(&buffer[..length]),
        }
    }
}

fn xattrs(path: &Path) -> Result<BTreeMap<OsString, Vec<u8>>> {
    // The kernel's own limit for a list of names and for a value.
    let mut buffer = vec![0; 64 * 1024];
    let length = match rustix::fs::llistxattr(path, &mut buffer[..]) {
        Err(rustix::io::Errno::NOTSUP) => return Ok(BTreeMap::new()),
        length => length?,
    };
    let names = buffer[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty());
    let names: Vec<OsString> = names
        .map(|name| OsString::from_vec(name.to_vec()))
        .collect();
    names
        .into_iter()
        .map(|name| {
            let length = rustix::fs::lgetxattr(path, name.as_os_str(), &mut buffer[..])?;
            Ok((name, buffer[..length].to_vec()))
        })
        .collect()
}

/// Fill the directory `root`, which is created if need be, with everything awkward that restic 0.14 can bring back
/// too: names of any bytes, owners, modes, times to the nanosecond, extended attributes, hard and symbolic links, a
/// FIFO, empty, sparse and large files, long names and paths. The same bytes every time. Takes root.
pub fn build_nasty_tree(root: &Path) -> Result<()> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "a tree with other people's files can only be built by root"
    );
    let mut random = SmallRng::seed_from_u64(0x6e61_7374_7920_7472);
    fs::create_dir_all(root)?;

    let names = root.join("names");
    for name in nasty_names() {
        write_file(&names.join(OsStr::from_bytes(&name)), &name)?;
    }
    fs::create_dir(names.join(OsStr::from_bytes(b"dir\xff\n\"\\")))?;
    write_file(
        &names.join(OsStr::from_bytes(b"dir\xff\n\"\\/inside")),
        b"inside",
    )?;

    let sizes = root.join("sizes");
    for size in [0, 1, 4095, 4096, 524_287, 5_242_881] {
        let mut bytes = vec![0; size];
        random.fill_bytes(&mut bytes);
        write_file(&sizes.join(format!("random-{size}")), &bytes)?;
    }
    write_file(&sizes.join("zeros"), &vec![0; 3 << 20])?;
    write_file(
        &sizes.join("text"),
        "all work and no play\n".repeat(50_000).as_bytes(),
    )?;
    write_file(
        &sizes.join("same-as-text"),
        "all work and no play\n".repeat(50_000).as_bytes(),
    )?;
    let mut sparse = File::create(sizes.join("sparse"))?;
    sparse.write_all(b"head")?;
    sparse.seek(SeekFrom::Start(9 << 20))?;
    sparse.write_all(b"middle")?;
    sparse.set_len(20 << 20)?;

    fs::create_dir_all(root.join("empty/also-empty"))?;
    let deep = (0..30).fold(root.join("deep"), |path, level| {
        path.join(format!("{level:02}-{}", "x".repeat(40)))
    });
    write_file(&deep.join("bottom"), b"far down")?;

    let links = root.join("links");
    write_file(&links.join("file"), b"three names")?;
    fs::hard_link(links.join("file"), links.join("again"))?;
    fs::hard_link(links.join("file"), root.join("sizes/third name of links"))?;
    symlink("file", links.join("relative"))?;
    symlink("../sizes", links.join("directory"))?;
    symlink("/etc/passwd", links.join("absolute"))?;
    symlink("no/such\nplace", links.join("dangling"))?;
    symlink("loop", links.join("loop"))?;
    symlink("/", links.join("to-the-top"))?;
    symlink("x".repeat(3000), links.join("long"))?;

    let modes = root.join("modes");
    for mode in [0o000, 0o400, 0o644, 0o777, 0o4755, 0o2755, 0o6711, 0o1666] {
        write_file(&modes.join(format!("{mode:04o}")), b"mode")?;
    }
    for mode in [0o000, 0o500, 0o1777, 0o2770] {
        fs::create_dir(modes.join(format!("dir-{mode:04o}")))?;
        write_file(&modes.join(format!("dir-{mode:04o}/file")), b"in it")?;
    }
    make_node(&modes.join("fifo"), FileType::Fifo, 0)?;

    let attributes = root.join("attributes");
    write_file(&attributes.join("file"), b"with attributes")?;
    set_xattr(&attributes.join("file"), "user.comment", b"plain text")?;
    set_xattr(
        &attributes.join("file"),
        "user.binary",
        &[0, 0xff, b'\n', b'"', 0],
    )?;
    set_xattr(&attributes.join("file"), "user.long", &[b'v'; 2000])?;
    set_xattr(&attributes, "user.on-directory", b"yes")?;

    for (number, name) in [
        "before-1970",
        "after-2038",
        "whole-second",
        "one-nanosecond",
    ]
    .iter()
    .enumerate()
    {
        write_file(
            &root.join("times").join(name),
            format!("{number}").as_bytes(),
        )?;
    }

    // Owners before modes, as a change of owner clears set-user-id; contents before times; directories last.
    let owners = [
        (0, 0),
        (33, 33),
        (1000, 33),
        (65534, 65534),
        (123_456, 7),
        (4_000_000_000, 4_000_000_001),
    ];
    let mut paths = all_paths(root)?;
    paths.reverse();
    for (number, path) in paths.iter().enumerate() {
        let (uid, gid) = owners[number % owners.len()];
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        rustix::fs::chownat(CWD, path, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        if let Some(mode) = mode_in_name(path) {
            rustix::fs::chmod(path, Mode::from_raw_mode(mode))?;
        }
        let time = match path.file_name().map(OsStr::as_bytes) {
            Some(b"before-1970") => (-123_456_789, 123_456_789),
            Some(b"after-2038") => (4_102_444_800, 999_999_999),
            Some(b"whole-second") => (1_500_000_000, 0),
            Some(b"one-nanosecond") => (1_500_000_000, 1),
            _ => (
                1_600_000_000 + 86_399 * number as i64,
                123_456_789 + 7 * number as i64,
            ),
        };
        set_modified(path, time)?;
    }
    Ok(())
}

/// Add what restic 0.14 does not bring back but a restore of ours should: a link whose target is no UTF-8, an empty
/// extended attribute, one on a symbolic link. Takes root.
pub fn add_what_old_restic_loses(root: &Path) -> Result<()> {
    let directory = root.join("beyond-restic-0.14");
    fs::create_dir(&directory)?;
    symlink(
        OsStr::from_bytes(b"caf\xe9/\xff\xfe"),
        directory.join("invalid-utf8-target"),
    )?;
    write_file(&directory.join("file"), b"with an empty attribute")?;
    set_xattr(&directory.join("file"), "user.empty", b"")?;
    symlink("file", directory.join("link"))?;
    set_xattr(
        &directory.join("link"),
        "trusted.on-link",
        b"on the link itself",
    )?;
    for path in all_paths(&directory)?.iter().rev() {
        set_modified(path, (1_610_000_000, 5))?;
    }
    Ok(())
}

/// Add what only root can make and no customer has by honest means: device nodes, trusted attributes, capabilities.
pub fn add_privileged_entries(root: &Path) -> Result<()> {
    let directory = root.join("privileged");
    fs::create_dir(&directory)?;
    make_node(
        &directory.join("null"),
        FileType::CharacterDevice,
        rustix::fs::makedev(1, 3),
    )?;
    make_node(
        &directory.join("disk"),
        FileType::BlockDevice,
        rustix::fs::makedev(7, 77),
    )?;
    let file = directory.join("trusted");
    write_file(&file, b"trusted")?;
    set_xattr(&file, "trusted.note", b"only root sees this")?;
    let capable = directory.join("capable");
    write_file(&capable, b"#!/bin/sh\n")?;
    rustix::fs::chownat(
        CWD,
        &capable,
        Some(Uid::from_raw(33)),
        Some(Gid::from_raw(33)),
        AtFlags::empty(),
    )?;
    // Version 2, cap_net_bind_service permitted and effective.
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    set_xattr(&capable, "security.capability", &capability)?;
    for path in all_paths(&directory)?.iter().rev() {
        set_modified(path, (1_650_000_000, 987_654_321))?;
    }
    Ok(())
}

/// Add a socket that nobody listens on any more. Backup programs store it or leave it out; none may stumble.
pub fn add_socket(root: &Path) -> Result<()> {
    make_node(&root.join("socket"), FileType::Socket, 0)
}

fn nasty_names() -> Vec<Vec<u8>> {
    let mut names: Vec<Vec<u8>> = [
        &b"plain.txt"[..],
        b"caf\xe9.txt",
        b"\xff\xfe\x80",
        b"cut-off-\xe2\x82",
        b"line\nbreak",
        b"tab\tand\rreturn",
        b"escape\x1b[31mred",
        b"delete\x7f",
        b"\x01\x02\x03",
        b"single'quote",
        b"double\"quote",
        b"back\\slash",
        b"\\x41\\n\\u0041",
        b"-rf",
        b"--help",
        b" leading and trailing ",
        b" ",
        b"...",
        b".hidden",
        b"~",
        b"*?[a-z]",
        b"$(touch pwned)",
        b"`touch pwned`",
        b"; touch pwned #",
        b"%s%n",
        b"{a,b}",
        b"name:with:colons",
        b"CON",
        "e\u{301} decomposed".as_bytes(),
        "\u{e9} composed".as_bytes(),
        "日本語 🛒".as_bytes(),
        "right\u{202e}to-left".as_bytes(),
        "zero\u{200b}width".as_bytes(),
        "\u{feff}bom".as_bytes(),
    ]
    .iter()
    .map(|name| name.to_vec())
    .collect();
    names.push(vec![b'n'; 255]);
    names.push(vec![0xf0; 255]);
    names
}

/// `0644` and `dir-1777` are named after the modes that they get.
fn mode_in_name(path: &Path) -> Option<u32> {
    if path.parent()?.file_name()? != "modes" {
        return None;
    }
    let name = path.file_name()?.to_str()?;
    u32::from_str_radix(name.strip_prefix("dir-").unwrap_or(name), 8).ok()
}

/// Every path of a tree, each directory before what is in it.
fn all_paths(root: &Path) -> Result<Vec<PathBuf>> {
    let mut paths = vec![root.to_owned()];
    let mut next = 0;
    while let Some(path) = paths.get(next).cloned() {
        next += 1;
        if fs::symlink_metadata(&path)?.is_dir() {
            let mut entries = fs::read_dir(&path)?
                .map(|entry| Ok(entry?.path()))
                .collect::<Result<Vec<_>>>()?;
            entries.sort_unstable();
            paths.extend(entries);
        }
    }
    Ok(paths)
}

fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let Some(parent) = path.parent() else {
        bail!("{} has no directory", path.display())
    };
    fs::create_dir_all(parent)?;
    fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}

fn set_xattr(path: &Path, name: &str, value: &[u8]) -> Result<()> {
    rustix::fs::lsetxattr(path, name, value, XattrFlags::empty())
        .with_context(|| format!("cannot set {name} on {}", path.display()))
}

fn set_modified(path: &Path, (tv_sec, tv_nsec): (i64, i64)) -> Result<()> {
    let time = Timespec { tv_sec, tv_nsec };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    Ok(rustix::fs::utimensat(
        CWD,
        path,
        &times,
        AtFlags::SYMLINK_NOFOLLOW,
    )?)
}

fn make_node(path: &Path, kind: FileType, device: u64) -> Result<()> {
    rustix::fs::mknodat(CWD, path, kind, Mode::from_raw_mode(0o640), device)
        .with_context(|| format!("cannot make {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nasty() -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        build_nasty_tree(&directory.path().join("tree")).unwrap();
        directory
    }

    #[test]
    fn two_nasty_trees_are_the_same() {
        let (one, two) = (nasty(), nasty());
        for tree in [&one, &two] {
            add_what_old_restic_loses(&tree.path().join("tree")).unwrap();
            add_privileged_entries(&tree.path().join("tree")).unwrap();
            add_socket(&tree.path().join("tree")).unwrap();
        }
        for tree in [&one, &two] {
            // These have the time at which they were made.
            for changed in ["tree/socket", "tree"] {
                set_modified(&tree.path().join(changed), (1, 1)).unwrap();
            }
        }
        assert_same_tree(one.path().join("tree"), two.path().join("tree"));
    }

    #[test]
    fn every_change_is_seen() {
        let directory = nasty();
        let tree = directory.path().join("tree");
        let before = TreeImage::of(&tree).unwrap();
        let file = tree.join("attributes/file");
        let changes: [(&str, &dyn Fn()); 9] = [
            ("\"attributes/file\": modified", &|| {
                set_modified(&file, (1, 2)).unwrap()
            }),
            ("\"attributes/file\": should be", &|| {
                fs::write(&file, "with attributeS").unwrap()
            }),
            ("\"attributes/file\": extended", &|| {
                set_xattr(&file, "user.comment", b"plain texT").unwrap()
            }),
            ("\"modes/4755\": mode 4755, found 755", &|| {
                rustix::fs::chmod(tree.join("modes/4755"), Mode::from_raw_mode(0o755)).unwrap();
            }),
            ("\"links/long\": owner", &|| {
                let nobody = Some(Uid::from_raw(42));
                rustix::fs::chownat(
                    CWD,
                    tree.join("links/long"),
                    nobody,
                    None,
                    AtFlags::SYMLINK_NOFOLLOW,
                )
                .unwrap();
            }),
            ("\"links/file\": should be HardLink", &|| {
                fs::copy(tree.join("links/again"), tree.join("links/copy")).unwrap();
                fs::rename(tree.join("links/copy"), tree.join("links/file")).unwrap();
            }),
            ("\"names/-rf\": missing", &|| {
                fs::remove_file(tree.join("names/-rf")).unwrap()
            }),
            ("\"names/new\": not expected", &|| {
                fs::write(tree.join("names/new"), "").unwrap()
            }),
            ("\"links/loop\": should be Symlink", &|| {
                fs::remove_file(tree.join("links/loop")).unwrap();
                symlink("elsewhere", tree.join("links/loop")).unwrap();
            }),
        ];
        for (expected, change) in changes {
            change();
            let lines = before.differences(&TreeImage::of(&tree).unwrap());
            assert!(
                lines.iter().any(|line| line.starts_with(expected)),
                "{expected} is not in {lines:#?}"
            );
        }
    }
}
