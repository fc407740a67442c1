//! The examples of the library do what they say, and the stock restic agrees.

#[path = "../examples/quickstart.rs"]
#[allow(dead_code, reason = "its `main` is not ours")]
mod quickstart;

#[path = "../examples/own_storage.rs"]
#[allow(dead_code, reason = "its `main` is not ours")]
mod own_storage;

use std::fs;
use std::io::Read;

use serde_json::json;
use xtask::restic::Restic;
use xtask::tree::assert_same_tree;

#[test]
fn the_quickstart_backs_up_and_restores_what_restic_reads_as_well() {
    let dir = tempfile::tempdir().unwrap();
    let command = ["seq", "20000"].map(Into::into).to_vec();
    quickstart::run(dir.path(), command).unwrap();

    let page = dir.path().join("customers/customer-1/wordpress/index.php");
    assert_eq!(fs::read_to_string(page).unwrap(), "<?php echo 'Welcome';");

    let restic = Restic::new(dir.path().join("repository"), quickstart::PASSWORD).unwrap();
    restic.check_read_data().unwrap();
    let snapshots = restic.snapshots().unwrap();
    let [files, replaced, both] = snapshots.as_slice() else {
        panic!("{snapshots:?}");
    };
    assert!(
        files["tags"]
            .as_array()
            .unwrap()
            .contains(&json!("customer-1"))
    );
    assert!(
        replaced["tags"]
            .as_array()
            .unwrap()
            .contains(&json!("pre-restore"))
    );
    let id = both["id"].as_str().unwrap();
    let dump = restic.dump(id, "/dump/invoices.sql").unwrap();
    let expected: String = (1..=20_000).map(|line| format!("{line}\n")).collect();
    assert_eq!(dump, expected.as_bytes());
    assert_same_tree(
        dir.path().join("invoices"),
        dir.path().join("restored").join(id),
    );
}

#[test]
fn a_dump_command_that_fails_leaves_no_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    let command = ["sh", "-c", "echo half a dump; exit 3"]
        .map(Into::into)
        .to_vec();
    let error = quickstart::run(dir.path(), command).unwrap_err();
    assert!(error.to_string().contains("exit status 3"), "{error}");
    let snapshots = fs::read_dir(dir.path().join("repository/snapshots")).unwrap();
    // That of the files, and that of what the restore replaced.
    assert_eq!(snapshots.count(), 2);
}

#[test]
fn a_storage_of_ones_own_keeps_what_a_source_of_ones_own_gave_and_restic_reads_it() {
    let dir = tempfile::tempdir().unwrap();
    // It loses the packs of the first directory and reads on.
    own_storage::run(dir.path()).unwrap();

    let restic = Restic::new(dir.path().join("second"), own_storage::PASSWORD).unwrap();
    restic.check_read_data().unwrap();
    let snapshots = restic.snapshots().unwrap();
    let [orders] = snapshots.as_slice() else {
        panic!("{snapshots:?}");
    };
    assert_eq!(orders["tags"], json!(["orders"]));
    let mut expected = Vec::new();
    own_storage::Orders::new(20_000)
        .read_to_end(&mut expected)
        .unwrap();
    let id = orders["id"].as_str().unwrap();
    assert_eq!(restic.dump(id, own_storage::PATH).unwrap(), expected);
}
