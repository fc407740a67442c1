//! The archive that operators install.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use tempfile::TempDir;
use xtask::dist::{Archive, pack};

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// A program, and what browsers load of it, written by somebody with these habits.
fn packed_by(mode: u32, changed: SystemTime) -> (TempDir, Archive) {
    let dir = tempfile::tempdir().unwrap();
    let site = dir.path().join("site");
    fs::create_dir_all(site.join("pkg")).unwrap();
    let binary = dir.path().join("built");
    for (file, text) in [
        (site.join("hash.txt"), "js: 1a\n"),
        (site.join("pkg/backup.1a.js"), "export default 1;\n"),
        (binary.clone(), "the program"),
    ] {
        fs::write(&file, text).unwrap();
        fs::set_permissions(&file, Permissions::from_mode(mode)).unwrap();
        let file = fs::File::options().append(true).open(&file).unwrap();
        file.set_modified(changed).unwrap();
    }
    fs::set_permissions(&binary, Permissions::from_mode(mode | 0o100)).unwrap();
    let archive = pack(&workspace(), &binary, &site, &dir.path().join("dist")).unwrap();
    (dir, archive)
}

fn run(program: &str, arguments: &[&str], dir: &Path) -> String {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(dir)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_same_files_make_the_same_archive_whoever_packs_them_and_when() {
    let (_one, first) = packed_by(0o644, SystemTime::now());
    let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    let (_other, second) = packed_by(0o600, long_ago);
    assert_eq!(first.file.file_name(), second.file.file_name());
    assert!(fs::read(&first.file).unwrap() == fs::read(&second.file).unwrap());
    assert_eq!(
        fs::read(&first.checksum).unwrap(),
        fs::read(&second.checksum).unwrap()
    );
}

#[test]
fn tar_unpacks_what_a_hosting_server_needs() {
    let (_dir, archive) = packed_by(0o600, SystemTime::now());
    let place = archive.file.parent().unwrap();
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    run("sha256sum", &["--check", &name(&archive.checksum)], place);
    let listed = run("tar", &["-tvzf", &name(&archive.file)], place);
    let names: Vec<_> = listed
        .lines()
        .map(|line| line.rsplit(' ').next().unwrap())
        .collect();
    assert!(names.is_sorted(), "{listed}");
    for line in listed.lines() {
        let is_plain = line.starts_with("drwxr-xr-x root/root ")
            || line.starts_with("-rw-r--r-- root/root ")
            || (line.starts_with("-rwxr-xr-x root/root ") && line.ends_with("/shophosting-backup"));
        // The zone of time is that of who looks.
        let is_of_one_time = [" 1999-12-31 ", " 2000-01-01 "]
            .iter()
            .any(|date| line.contains(date));
        assert!(is_plain && is_of_one_time, "{line}");
    }
    run("tar", &["-xzf", &name(&archive.file)], place);
    let top = place.join(name(&archive.file).replace(".tar.gz", ""));
    let read = |file: &str| fs::read_to_string(top.join(file)).unwrap();
    assert_eq!(read("shophosting-backup"), "the program");
    assert_eq!(read("share/site/pkg/backup.1a.js"), "export default 1;\n");
    assert!(read("share/Leptos.toml").contains("site-root = \"site\"\n"));
    for file in [
        "README.md",
        "LICENSE-MIT",
        "docs/operations.md",
        "deploy/backup.toml.example",
        "deploy/nginx/shophosting-dashboard.conf",
        "deploy/prometheus/alerts.yml",
        "deploy/systemd/shophosting-backup-worker.service",
        "deploy/sysusers.d/shophosting-backup.conf",
    ] {
        let original = fs::read_to_string(workspace().join(file)).unwrap();
        assert_eq!(read(file), original, "{file}");
    }
    assert!(!read("share/__maintenance.html").is_empty());
}

#[test]
fn an_archive_without_what_browsers_load_is_not_made() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("built"), "the program").unwrap();
    fs::create_dir(dir.path().join("site")).unwrap();
    let destination = dir.path().join("dist");
    let refused = pack(
        &workspace(),
        &dir.path().join("built"),
        &dir.path().join("site"),
        &destination,
    );
    assert!(refused.unwrap_err().to_string().contains("make bundle"));
    assert!(!destination.exists());
}
