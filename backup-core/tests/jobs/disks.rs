//! A SQLite file on a disk that is full, and one that is none.

use std::fs;
use std::io::Write;

use backup_core::error::ErrorKind;
use backup_core::jobs::JobStore;
use backup_core::store::Store;
use xtask::mount::Mount;

use crate::databases::{LONG, backup_of, config, connect, created, get};

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_named_and_once_there_is_room_jobs_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let _small = Mount::tmpfs(dir.path(), "size=1m").unwrap();
    let url = format!("sqlite://{}/backup.db", dir.path().display());
    let jobs = JobStore::new(&connect(&url, "").await, LONG);

    let stuffing = dir.path().join("stuffing");
    {
        let mut file = fs::File::create(&stuffing).unwrap();
        while file.write_all(&[0; 4096]).is_ok() {}
    }
    let mut made = Vec::new();
    let error = loop {
        // There is room in pages that the file has already.
        let customer = 1 + u32::try_from(made.len()).unwrap();
        match jobs.create(&backup_of(customer)).await {
            Ok(answer) => made.push(created(answer)),
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error:?}");
    let sentence = error.to_string();
    assert!(sentence.contains("is full: make room"), "{sentence}");
    // SQLite may have ended a transaction by itself. No connection is kept that does not know of that.
    for _ in 0..20 {
        let customer = 1 + u32::try_from(made.len()).unwrap();
        match jobs.create(&backup_of(customer)).await {
            Ok(answer) => made.push(created(answer)),
            Err(error) => assert_eq!(error.kind(), ErrorKind::NoSpace, "{error:?}"),
        }
    }

    fs::remove_file(stuffing).unwrap();
    let next = 1 + u32::try_from(made.len()).unwrap();
    let answer = jobs.create(&backup_of(next)).await.unwrap();
    made.push(created(answer));
    for job in &made {
        assert_eq!(get(&jobs, job.id).await, *job);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_no_database_is_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("backup.db");
    let content = "Dear diary, this is no database.\n".repeat(100);
    fs::write(&file, &content).unwrap();
    let config = config(&format!("sqlite://{}", file.display()), "");
    let error = Store::connect(&config).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged, "{error:?}");
    assert_eq!(fs::read_to_string(&file).unwrap(), content);
}
