//! Two owners do anything in any order; a naive copy in memory says what has to come of it.

use backup_core::jobs::{
    CancelAnswer, Created, Failure, JobId, JobStatus, JobStore, Kept, Lease, Progress,
};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use tokio::runtime::Handle;

use crate::databases::{Database, Kind, LONG, backup_of, customer, get, on_both};

on_both!(any_sequence_of_operations_does_what_a_naive_copy_does);

#[derive(Debug, Clone, Copy)]
enum Operation {
    Create,
    CreateClaimed(usize),
    Claim(usize),
    Keep(usize),
    Look(usize),
    BeginCommit(usize),
    Fail(usize),
    Release(usize),
    Cancel,
    /// The lease of the job runs out.
    Expire,
}

fn operation() -> impl Strategy<Value = Operation> {
    let owner = 0..2_usize;
    prop_oneof![
        3 => Just(Operation::Create),
        1 => owner.clone().prop_map(Operation::CreateClaimed),
        4 => owner.clone().prop_map(Operation::Claim),
        2 => owner.clone().prop_map(Operation::Keep),
        1 => owner.clone().prop_map(Operation::Look),
        2 => owner.clone().prop_map(Operation::BeginCommit),
        2 => owner.clone().prop_map(Operation::Fail),
        2 => owner.prop_map(Operation::Release),
        2 => Just(Operation::Cancel),
        3 => Just(Operation::Expire),
    ]
}

/// What is known of the newest job of the customer.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Naive {
    status: JobStatus,
    attempts: u32,
    cancel_requested: bool,
    committing: bool,
    expired: bool,
}

/// A lease, and the attempt that it is for.
type Held = (Lease, u32);

impl Naive {
    fn is_held(&self, id: JobId, (lease, attempt): Held) -> bool {
        lease.job() == id && self.status == JobStatus::Running && self.attempts == attempt
    }

    fn kept(&self) -> Kept {
        if self.cancel_requested {
            Kept::CancelRequested
        } else {
            Kept::Held
        }
    }
}

async fn any_sequence_of_operations_does_what_a_naive_copy_does(database: &Database) {
    let jobs = database.jobs(LONG).await;
    let cases = match database.kind() {
        Kind::MariaDb => 40,
        Kind::Sqlite => 60,
    };
    let mut number = 0;
    // Failures are told with their sequence; there is no file of them.
    let config = Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    };
    let case = std::cell::RefCell::new(&mut number);
    tokio::task::block_in_place(|| {
        let operations = prop::collection::vec(operation(), 1..40);
        TestRunner::new(config)
            .run(&operations, |operations| {
                let number = {
                    let mut case = case.borrow_mut();
                    **case += 1;
                    **case
                };
                Handle::current().block_on(play(database, &jobs, number, &operations));
                Ok(())
            })
            .unwrap();
    });
    let history = database.history().await;
    assert!(history.iter().any(|event| event.attempts > 2));
    let ghost = history
        .iter()
        .find(|event| event.status.contains("after its end"));
    assert!(ghost.is_none(), "{ghost:?}");
}

async fn play(database: &Database, jobs: &JobStore, number: u32, operations: &[Operation]) {
    // A hosting server of its own, so that claims find nothing of other sequences.
    let server = format!("server-{number}");
    let mut new = backup_of(number);
    new.server.clone_from(&server);
    let mut newest: Option<(JobId, Naive)> = None;
    let mut held: [Option<Held>; 2] = [None; 2];
    for operation in operations {
        let active = newest.filter(|(_, naive)| naive.status.is_active());
        match *operation {
            Operation::Create | Operation::CreateClaimed(_) => {
                let answer = match *operation {
                    Operation::CreateClaimed(owner) => {
                        match jobs.create_claimed(&new, "o").await.unwrap() {
                            Ok(claimed) => {
                                held[owner] = Some((claimed.lease, 1));
                                Created::Job(Box::new(claimed.job))
                            }
                            Err(job) => Created::InTheWay(job),
                        }
                    }
                    _ => jobs.create(&new).await.unwrap(),
                };
                match (active, answer) {
                    (Some((id, _)), Created::InTheWay(job)) => assert_eq!(job.id, id),
                    (None, Created::Job(job)) => {
                        let is_claimed = matches!(operation, Operation::CreateClaimed(_));
                        let naive = Naive {
                            status: if is_claimed {
                                JobStatus::Running
                            } else {
                                JobStatus::Pending
                            },
                            attempts: u32::from(is_claimed),
                            cancel_requested: false,
                            committing: false,
                            expired: false,
                        };
                        newest = Some((job.id, naive));
                    }
                    other => panic!("{other:?}"),
                }
            }
            Operation::Claim(owner) => {
                let claimed = jobs.claim(&server, "o").await.unwrap();
                let free =
                    active.filter(|(_, naive)| naive.status == JobStatus::Pending || naive.expired);
                assert_eq!(
                    claimed.as_ref().map(|claimed| claimed.job.id),
                    free.map(|(id, _)| id)
                );
                if let (Some(claimed), Some((_, naive))) = (claimed, &mut newest) {
                    assert_eq!(claimed.is_taken_over, naive.status == JobStatus::Running);
                    naive.status = JobStatus::Running;
                    naive.attempts += 1;
                    naive.committing = false;
                    naive.expired = false;
                    held[owner] = Some((claimed.lease, naive.attempts));
                }
            }
            Operation::Keep(owner) | Operation::Look(owner) | Operation::BeginCommit(owner) => {
                let Some(mine) = held[owner] else { continue };
                let kept = match *operation {
                    Operation::Keep(_) => jobs.keep(mine.0, &Progress::default()).await,
                    Operation::Look(_) => jobs.look(mine.0).await,
                    _ => jobs.begin_commit(mine.0, None).await,
                };
                let expected = match &mut newest {
                    Some((id, naive)) if naive.is_held(*id, mine) => {
                        match operation {
                            Operation::Keep(_) => naive.expired = false,
                            Operation::BeginCommit(_) if !naive.cancel_requested => {
                                naive.committing = true;
                                naive.expired = false;
                            }
                            _ => {}
                        }
                        naive.kept()
                    }
                    _ => Kept::Lost,
                };
                assert_eq!(kept.unwrap(), expected);
            }
            Operation::Fail(owner) | Operation::Release(owner) => {
                let Some(mine) = held[owner] else { continue };
                let is_failure = matches!(operation, Operation::Fail(_));
                let done = if is_failure {
                    jobs.fail(mine.0, Failure::Error, "It failed.").await
                } else {
                    jobs.release(mine.0, &server).await
                };
                let was_held = newest.is_some_and(|(id, naive)| naive.is_held(id, mine));
                assert_eq!(done.unwrap(), was_held);
                if let (true, Some((_, naive))) = (was_held, &mut newest) {
                    if is_failure {
                        naive.status = JobStatus::Failed;
                    } else {
                        naive.status = JobStatus::Pending;
                        naive.committing = false;
                    }
                    naive.expired = false;
                }
            }
            Operation::Cancel => {
                let Some((id, naive)) = &mut newest else {
                    continue;
                };
                let expected = match naive.status {
                    JobStatus::Pending => {
                        naive.status = JobStatus::Failed;
                        naive.cancel_requested = true;
                        CancelAnswer::Cancelled
                    }
                    JobStatus::Running if naive.committing => CancelAnswer::TooLate,
                    JobStatus::Running => {
                        naive.cancel_requested = true;
                        CancelAnswer::Requested
                    }
                    JobStatus::Completed | JobStatus::Failed => CancelAnswer::Ended,
                };
                assert_eq!(jobs.cancel(*id).await.unwrap(), expected);
            }
            Operation::Expire => {
                let Some((id, naive)) = &mut newest else {
                    continue;
                };
                if naive.status == JobStatus::Running {
                    naive.expired = true;
                    let expire = "UPDATE customer_backup_jobs SET lease_until = 0 WHERE id =";
                    database.run(&format!("{expire} {id}")).await;
                }
            }
        }
        if let Some((id, naive)) = newest {
            let job = get(jobs, id).await;
            assert_eq!(
                (
                    job.status,
                    job.attempts,
                    job.cancel_requested,
                    job.cancellable
                ),
                (
                    naive.status,
                    naive.attempts,
                    naive.cancel_requested,
                    match naive.status {
                        JobStatus::Pending => true,
                        JobStatus::Running => !naive.committing && !naive.cancel_requested,
                        JobStatus::Completed | JobStatus::Failed => false,
                    }
                ),
                "after {operation:?} of {operations:?}"
            );
            assert_eq!(job.completed_at.is_none(), naive.status.is_active());
            let active = jobs.active(customer(number)).await.unwrap();
            assert_eq!(active.is_some(), naive.status.is_active());
        }
    }
}
