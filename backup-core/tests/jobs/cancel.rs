//! A job can be cancelled until it commits, and one that ended has ended.

use backup_core::jobs::{CancelAnswer, Failure, JobStatus, Kept};

use crate::databases::{Database, LONG, SERVER, claim, create, create_claimed, get, on_both};

on_both!(
    a_waiting_job_is_cancelled_at_once,
    a_running_job_is_asked_to_stop_until_it_commits,
    of_a_commit_and_a_cancellation_at_once_exactly_one_wins,
    of_a_claim_and_a_cancellation_at_once_both_tell_the_truth,
);

async fn a_waiting_job_is_cancelled_at_once(database: &Database) {
    let jobs = database.jobs(LONG).await;
    let id = create(&jobs, 1).await.id;
    assert!(get(&jobs, id).await.cancellable);
    assert_eq!(jobs.cancel(id).await.unwrap(), CancelAnswer::Cancelled);
    let job = get(&jobs, id).await;
    assert_eq!(
        (job.status, job.failure, job.cancellable),
        (JobStatus::Failed, Some(Failure::Cancelled), false)
    );
    assert_eq!(job.error_message.as_deref(), Some("It was cancelled."));
    assert!(job.completed_at.is_some() && job.started_at.is_none());
    assert!(jobs.claim(SERVER, "w").await.unwrap().is_none());
    assert_eq!(jobs.cancel(id).await.unwrap(), CancelAnswer::Ended);
    assert_eq!(get(&jobs, id).await, job);
}

async fn a_running_job_is_asked_to_stop_until_it_commits(database: &Database) {
    let jobs = database.jobs(LONG).await;
    let id = create(&jobs, 1).await.id;
    let lease = claim(&jobs).await.lease;
    assert!(get(&jobs, id).await.cancellable);
    // Whoever asks twice gets the same answer.
    for _ in 0..2 {
        assert_eq!(jobs.cancel(id).await.unwrap(), CancelAnswer::Requested);
    }
    let job = get(&jobs, id).await;
    assert_eq!(
        (job.status, job.cancel_requested, job.cancellable),
        (JobStatus::Running, true, false)
    );
    let kept = jobs.keep(lease, &Default::default()).await.unwrap();
    assert_eq!(kept, Kept::CancelRequested);
    let commit = jobs.begin_commit(lease, None).await.unwrap();
    assert_eq!(commit, Kept::CancelRequested);
    let failed = jobs.fail(lease, Failure::Cancelled, "It was cancelled.");
    assert!(failed.await.unwrap());
    assert_eq!(jobs.cancel(id).await.unwrap(), CancelAnswer::Ended);

    let id = create(&jobs, 1).await.id;
    let lease = claim(&jobs).await.lease;
    assert_eq!(jobs.begin_commit(lease, None).await.unwrap(), Kept::Held);
    assert!(!get(&jobs, id).await.cancellable);
    assert_eq!(jobs.cancel(id).await.unwrap(), CancelAnswer::TooLate);
    assert_eq!(jobs.look(lease).await.unwrap(), Kept::Held);
}

async fn of_a_commit_and_a_cancellation_at_once_exactly_one_wins(database: &Database) {
    let jobs = database.jobs(LONG).await;
    for number in 1..=60 {
        let mine = create_claimed(&jobs, number).await;
        let (id, lease) = (mine.job.id, mine.lease);
        let (a, b) = (jobs.clone(), jobs.clone());
        let commit = tokio::spawn(async move { a.begin_commit(lease, None).await.unwrap() });
        let cancel = tokio::spawn(async move { b.cancel(id).await.unwrap() });
        let answers = (commit.await.unwrap(), cancel.await.unwrap());
        match answers {
            (Kept::Held, CancelAnswer::TooLate) => {
                assert_eq!(jobs.look(lease).await.unwrap(), Kept::Held);
            }
            (Kept::CancelRequested, CancelAnswer::Requested) => {
                assert_eq!(jobs.look(lease).await.unwrap(), Kept::CancelRequested);
            }
            other => panic!("both or neither: {other:?}"),
        }
    }
}

async fn of_a_claim_and_a_cancellation_at_once_both_tell_the_truth(database: &Database) {
    let jobs = database.jobs(LONG).await;
    for number in 1..=60 {
        let id = create(&jobs, number).await.id;
        let (a, b) = (jobs.clone(), jobs.clone());
        let claim = tokio::spawn(async move { a.claim(SERVER, "w").await.unwrap() });
        let cancel = tokio::spawn(async move { b.cancel(id).await.unwrap() });
        match (claim.await.unwrap(), cancel.await.unwrap()) {
            (None, CancelAnswer::Cancelled) => {
                assert_eq!(get(&jobs, id).await.status, JobStatus::Failed);
            }
            (Some(claimed), CancelAnswer::Requested) => {
                let seen = jobs.look(claimed.lease).await.unwrap();
                assert_eq!(seen, Kept::CancelRequested);
                let failed = jobs.fail(claimed.lease, Failure::Cancelled, "It was cancelled.");
                assert!(failed.await.unwrap());
            }
            (claimed, answer) => panic!("{answer:?}, and claimed is {claimed:?}"),
        }
    }
}
