//! File modes as the restic format has them (those of the Go language) and as Unix has them.

use rustix::fs::FileType;

const GO_DIR: u32 = 1 << 31;
const GO_SYMLINK: u32 = 1 << 27;
const GO_DEVICE: u32 = 1 << 26;
const GO_FIFO: u32 = 1 << 25;
const GO_SOCKET: u32 = 1 << 24;
const GO_SETUID: u32 = 1 << 23;
const GO_SETGID: u32 = 1 << 22;
const GO_CHARDEV: u32 = 1 << 21;
const GO_STICKY: u32 = 1 << 20;

const SETUID: u32 = 0o4000;
const SETGID: u32 = 0o2000;
const STICKY: u32 = 0o1000;

/// From `st_mode`.
pub(super) fn to_go(mode: u32) -> u32 {
    let kind = match FileType::from_raw_mode(mode) {
        FileType::Directory => GO_DIR,
        FileType::Symlink => GO_SYMLINK,
        FileType::BlockDevice => GO_DEVICE,
        FileType::CharacterDevice => GO_DEVICE | GO_CHARDEV,
        FileType::Fifo => GO_FIFO,
        FileType::Socket => GO_SOCKET,
        _ => 0,
    };
    let mut go = (mode & 0o777) | kind;
    for (unix, bit) in [
        (SETUID, GO_SETUID),
        (SETGID, GO_SETGID),
        (STICKY, GO_STICKY),
    ] {
        if mode & unix != 0 {
            go |= bit;
        }
    }
    go
}

/// The permission bits for `chmod`, with setuid, setgid and sticky.
pub(super) fn permissions_from_go(go: u32) -> u32 {
    let mut mode = go & 0o777;
    for (unix, bit) in [
        (SETUID, GO_SETUID),
        (SETGID, GO_SETGID),
        (STICKY, GO_STICKY),
    ] {
        if go & bit != 0 {
            mode |= unix;
        }
    }
    mode
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_permission_survives_the_way_through_the_format() {
        for permissions in 0..0o10000 {
            for kind in [FileType::Directory, FileType::RegularFile, FileType::Fifo] {
                assert_eq!(
                    permissions_from_go(to_go(kind.as_raw_mode() | permissions)),
                    permissions
                );
            }
        }
    }
}
