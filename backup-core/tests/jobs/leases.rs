//! A running job is its owner's for as long as he gives a sign of life, and then never again.

use backup_core::jobs::{
    CancelAnswer, Claimed, Failure, JobStatus, JobStore, Kept, Lease, Progress,
};
use backup_core::progress::Phase;

use crate::databases::{
    Database, LONG, SERVER, SHORT, claim, create, create_claimed, get, on_both, wait_for,
};

on_both!(
    a_job_whose_owner_died_is_taken_over_and_the_attempt_is_counted,
    a_stale_owner_changes_nothing,
    a_lease_that_is_renewed_is_never_taken_over,
    a_job_that_is_given_back_is_claimed_anew,
    what_was_about_to_be_written_is_told_to_who_takes_over,
    progress_is_what_every_process_sees,
);

const SNAPSHOT: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

fn some_progress() -> Progress {
    Progress {
        phase: Some(Phase::Saving),
        bytes_done: 7,
        bytes_total: Some(u64::MAX),
        files_done: 3,
        bytes_per_second: Some(5),
    }
}

async fn taken_over(jobs: &JobStore) -> Claimed {
    let claimed = wait_for("the lease to end", async || {
        jobs.claim(SERVER, "second").await.unwrap()
    })
    .await;
    assert!(claimed.is_taken_over);
    claimed
}

/// Nothing that can be written with a lease is written with this one.
async fn assert_lost(jobs: &JobStore, lease: Lease) {
    let before = get(jobs, lease.job()).await;
    assert_eq!(
        jobs.keep(lease, &some_progress()).await.unwrap(),
        Kept::Lost
    );
    assert_eq!(jobs.look(lease).await.unwrap(), Kept::Lost);
    assert_eq!(
        jobs.begin_commit(lease, Some(SNAPSHOT)).await.unwrap(),
        Kept::Lost
    );
    assert!(!jobs.fail(lease, Failure::Error, "Stale.").await.unwrap());
    assert!(!jobs.release(lease, "elsewhere").await.unwrap());
    assert_eq!(get(jobs, lease.job()).await, before);
}

async fn a_job_whose_owner_died_is_taken_over_and_the_attempt_is_counted(database: &Database) {
    let jobs = database.jobs(SHORT).await;
    let id = create(&jobs, 1).await.id;
    let first = claim(&jobs).await;
    assert!(!first.is_taken_over);
    jobs.keep(first.lease, &some_progress()).await.unwrap();
    for attempt in 2..=4 {
        let next = taken_over(&jobs).await;
        assert_eq!((next.job.id, next.job.attempts), (id, attempt));
        assert_eq!(next.job.started_at, first.job.started_at);
        // It starts over.
        assert_eq!((next.job.phase, next.job.bytes_done), (None, 0));
        assert_eq!((next.job.bytes_total, next.job.files_done), (None, 0));
        assert!(next.job.bytes_per_second.is_none());
    }
    // One that its creator ran himself, too.
    let mine = create_claimed(&jobs, 2).await;
    let theirs = wait_for("the lease of a foreground job to end", async || {
        let claimed = jobs.claim(SERVER, "second").await.unwrap()?;
        (claimed.job.id == mine.job.id).then_some(claimed)
    })
    .await;
    assert_eq!((theirs.is_taken_over, theirs.job.attempts), (true, 2));
    assert_lost(&jobs, mine.lease).await;
}

async fn a_stale_owner_changes_nothing(database: &Database) {
    let jobs = database.jobs(SHORT).await;
    create(&jobs, 1).await;
    let old = claim(&jobs).await.lease;
    let new = taken_over(&JobStore::new(&database.store().await, LONG)).await;
    // While the new owner runs it, at his commit, when he has given it back, and when it has ended.
    assert_lost(&jobs, old).await;
    assert_eq!(
        jobs.begin_commit(new.lease, None).await.unwrap(),
        Kept::Held
    );
    assert_lost(&jobs, old).await;
    assert!(jobs.release(new.lease, SERVER).await.unwrap());
    assert_lost(&jobs, old).await;
    assert_lost(&jobs, new.lease).await;
    let last = claim(&JobStore::new(&database.store().await, LONG)).await;
    assert_lost(&jobs, new.lease).await;
    assert_eq!(jobs.look(last.lease).await.unwrap(), Kept::Held);
    let failed = jobs.fail(last.lease, Failure::Timeout, "It took too long.");
    assert!(failed.await.unwrap());
    for lease in [old, new.lease, last.lease] {
        assert_lost(&jobs, lease).await;
    }
    let job = get(&jobs, last.lease.job()).await;
    assert_eq!(
        (job.status, job.failure, job.error_message.as_deref()),
        (
            JobStatus::Failed,
            Some(Failure::Timeout),
            Some("It took too long.")
        )
    );
    assert!(job.completed_at >= job.started_at && job.started_at >= job.created_at);
}

async fn a_lease_that_is_renewed_is_never_taken_over(database: &Database) {
    // Renewed ten times as often as it has to be: a busy machine may stand still for a while.
    let lease = std::time::Duration::from_secs(3);
    let jobs = database.jobs(lease).await;
    create(&jobs, 1).await;
    let mine = claim(&jobs).await.lease;
    let thief = async {
        loop {
            let taken = jobs.claim(SERVER, "thief").await.unwrap();
            assert!(taken.is_none(), "a job that is kept was taken");
            tokio::task::yield_now().await;
        }
    };
    let owner = async {
        let end = std::time::Instant::now() + 2 * lease;
        let mut turns = tokio::time::interval(lease / 10);
        while std::time::Instant::now() < end {
            turns.tick().await;
            let kept = jobs.keep(mine, &Progress::default()).await.unwrap();
            assert_eq!(kept, Kept::Held);
        }
        // The right to commit renews it, too.
        let held = jobs.begin_commit(mine, None).await.unwrap();
        assert_eq!(held, Kept::Held);
    };
    tokio::select! {
        () = owner => {}
        () = thief => {}
    }
    // A lease that is over but that nobody took is still its owner's.
    let impatient = JobStore::new(&database.store().await, std::time::Duration::ZERO);
    let mine = create_claimed(&impatient, 2).await.lease;
    assert_eq!(jobs.look(mine).await.unwrap(), Kept::Held);
    assert!(jobs.fail(mine, Failure::Error, "It failed.").await.unwrap());
}

async fn a_job_that_is_given_back_is_claimed_anew(database: &Database) {
    let jobs = database.jobs(LONG).await;
    let id = create(&jobs, 1).await.id;
    let first = claim(&jobs).await;
    jobs.keep(first.lease, &some_progress()).await.unwrap();
    jobs.begin_commit(first.lease, None).await.unwrap();
    assert!(jobs.release(first.lease, SERVER).await.unwrap());
    let waiting = get(&jobs, id).await;
    assert_eq!(waiting.status, JobStatus::Pending);
    assert!(waiting.cancellable && waiting.phase.is_none());
    assert_eq!((waiting.bytes_done, waiting.bytes_total), (0, None));
    let again = claim(&jobs).await;
    assert_eq!((again.job.id, again.job.attempts), (id, 2));
    assert!(!again.is_taken_over, "its owner lives");
    // The wish to stop is not forgotten on the way.
    jobs.cancel(id).await.unwrap();
    assert!(jobs.release(again.lease, SERVER).await.unwrap());
    let last = claim(&jobs).await;
    assert_eq!(jobs.look(last.lease).await.unwrap(), Kept::CancelRequested);
}

async fn what_was_about_to_be_written_is_told_to_who_takes_over(database: &Database) {
    let jobs = database.jobs(SHORT).await;
    create(&jobs, 1).await;
    let first = claim(&jobs).await;
    assert_eq!(first.intended, None);
    assert_eq!(
        jobs.begin_commit(first.lease, Some(SNAPSHOT))
            .await
            .unwrap(),
        Kept::Held
    );
    assert_eq!(
        jobs.cancel(first.job.id).await.unwrap(),
        CancelAnswer::TooLate
    );
    let second = taken_over(&jobs).await;
    assert_eq!(second.intended, Some(SNAPSHOT.parse().unwrap()));
    assert!(second.job.cancellable, "it is not at its commit yet");
}

async fn progress_is_what_every_process_sees(database: &Database) {
    let jobs = database.jobs(LONG).await;
    let id = create(&jobs, 1).await.id;
    let mine = claim(&jobs).await.lease;
    assert_eq!(jobs.keep(mine, &some_progress()).await.unwrap(), Kept::Held);
    let other = JobStore::new(&database.store().await, SHORT);
    let job = get(&other, id).await;
    assert_eq!((job.phase, job.bytes_done), (Some(Phase::Saving), 7));
    // More than the column holds is stored as the most that it does.
    let most = u64::try_from(i64::MAX).unwrap();
    assert_eq!((job.bytes_total, job.files_done), (Some(most), 3));
    assert_eq!(job.bytes_per_second, Some(5));
    // The same once more is no sign that the lease is lost.
    for _ in 0..3 {
        assert_eq!(jobs.keep(mine, &some_progress()).await.unwrap(), Kept::Held);
    }
}
