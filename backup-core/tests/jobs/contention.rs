//! Others in the way for a moment, and a database that goes away under load.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use backup_core::error::ErrorKind;
use backup_core::jobs::{CancelAnswer, Created, Failure, JobId, JobStore, Kept};
use backup_core::repository::BackupType;
use sqlx::{AssertSqlSafe, Executor, MySqlConnection};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use xtask::mariadb::MariaDb;

use crate::databases::{
    Database, Kind, LONG, MARIADB, SERVER, SHORT, backup_of, claim, connect, create, customer, get,
    wait_for,
};

/// The statements on this database that do not get on, by their numbers. (The server shows who waits for a row only to who asks seldom.)
async fn waiting(database: &Database) -> Vec<i64> {
    let query = format!(
        "SELECT query_id FROM information_schema.processlist
         WHERE db = '{}' AND info LIKE '%customer_backup_jobs%' AND info NOT LIKE '%processlist%' AND time_ms > 50",
        database.schema()
    );
    let rows: Vec<(i64,)> = database.rows(&query).await;
    rows.into_iter().map(|row| row.0).collect()
}

async fn wait_for_waiting(database: &Database, count: usize) {
    wait_for("a statement that waits for a row", async || {
        (waiting(database).await.len() == count).then_some(())
    })
    .await;
}

async fn begin(database: &Database) -> sqlx::Transaction<'static, sqlx::MySql> {
    database.mysql().begin().await.unwrap()
}

async fn set(connection: &mut MySqlConnection, job: JobId, what: &str) {
    let update = format!("UPDATE customer_backup_jobs SET {what} WHERE id = {job}");
    connection.execute(AssertSqlSafe(update)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_goes_to_another_server_while_it_is_claimed_is_not_claimed() {
    let database = Database::empty(Kind::MariaDb);
    let jobs = database.jobs(Duration::ZERO).await;
    let id = create(&jobs, 1).await.id;
    claim(&jobs).await;
    // Its lease is over. The claim has seen it when its owner, late, gives it away.
    let mut owner = begin(&database).await;
    set(&mut owner, id, "status = 'pending', server = 'north'").await;
    let claim = {
        let jobs = jobs.clone();
        tokio::spawn(async move { jobs.claim(SERVER, "w").await.unwrap() })
    };
    wait_for_waiting(&database, 1).await;
    owner.commit().await.unwrap();
    assert!(claim.await.unwrap().is_none(), "a job of the server north");
    let northern = jobs.claim("north", "w").await.unwrap().unwrap();
    assert_eq!((northern.job.id, northern.is_taken_over), (id, false));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_is_given_back_while_it_is_cancelled_is_cancelled() {
    let database = Database::empty(Kind::MariaDb);
    let jobs = database.jobs(LONG).await;
    let id = create(&jobs, 1).await.id;
    claim(&jobs).await;
    // So many that the server looks for the job by its number, where it has to wait.
    for number in 2..40 {
        create(&jobs, number).await;
        if number % 2 == 0 {
            claim(&jobs).await;
        }
    }
    let mut owner = begin(&database).await;
    set(&mut owner, id, "attempts = attempts").await;
    let cancel = {
        let jobs = jobs.clone();
        tokio::spawn(async move { jobs.cancel(id).await.unwrap() })
    };
    // It finds the job running, but before it can ask it to stop the job waits again.
    wait_for_waiting(&database, 1).await;
    let mut release = begin(&database).await;
    let released = async {
        set(&mut release, id, "status = 'pending'").await;
        wait_for_waiting(&database, 1).await;
        release.commit().await.unwrap();
    };
    let unlocked = async {
        wait_for_waiting(&database, 2).await;
        owner.commit().await.unwrap();
    };
    tokio::join!(released, unlocked);
    assert_eq!(cancel.await.unwrap(), CancelAnswer::Cancelled);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_is_about_to_be_created_while_another_gets_stuck_is_refused() {
    let database = Database::empty(Kind::MariaDb);
    let jobs = database.jobs(LONG).await;
    for (number, is_claimed) in [(1, false), (2, true)] {
        // Of one that comes and gets stuck after the look for such.
        let mut other = begin(&database).await;
        let insert = format!(
            "INSERT INTO customer_backup_jobs (customer_id, job_type, backup_type, status) VALUES ({number}, 'restore', 'both', 'running')"
        );
        other.execute(AssertSqlSafe(insert)).await.unwrap();
        let wish = {
            let jobs = jobs.clone();
            tokio::spawn(async move {
                let wish = backup_of(number);
                match is_claimed {
                    false => match jobs.create(&wish).await.unwrap() {
                        Created::Job(job) => panic!("{job:?} beside a stuck restore"),
                        Created::InTheWay(job) => job,
                    },
                    true => match jobs.create_claimed(&wish, "me").await.unwrap() {
                        Ok(claimed) => panic!("{claimed:?} beside a stuck restore"),
                        Err(job) => job,
                    },
                }
            })
        };
        wait_for_waiting(&database, 1).await;
        let stuck = format!(
            "UPDATE customer_backup_jobs SET status = 'failed', failure = 'stuck' WHERE customer_id = {number}"
        );
        other.execute(AssertSqlSafe(stuck)).await.unwrap();
        other.commit().await.unwrap();
        assert!(wish.await.unwrap().is_stuck());
    }
    assert_eq!(database.count("customer_backup_jobs").await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_too_long_for_a_row_tries_again() {
    let database = Database::empty(Kind::MariaDb);
    let jobs = database.jobs(LONG).await;
    let id = create(&jobs, 1).await.id;
    let mut other = begin(&database).await;
    set(&mut other, id, "attempts = attempts").await;
    let cancel = {
        let jobs = jobs.clone();
        tokio::spawn(async move { jobs.cancel(id).await })
    };
    let one = async || waiting(&database).await.pop();
    let first = wait_for("the first try", one).await;
    wait_for("the second try", async || {
        one().await.filter(|second| *second != first)
    })
    .await;
    other.commit().await.unwrap();
    assert_eq!(cancel.await.unwrap().unwrap(), CancelAnswer::Cancelled);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_victim_of_a_deadlock_tries_again() {
    let database = Database::empty(Kind::MariaDb);
    let jobs = database.jobs(LONG).await;
    database.run("CREATE TABLE much (n INT)").await;
    // It has written more than the store will have, so that the store is the victim.
    let mut other = begin(&database).await;
    for sql in [
        "INSERT INTO much SELECT seq FROM seq_1_to_1000",
        "INSERT INTO customer_backup_jobs (customer_id, job_type, backup_type) VALUES (1, 'backup', 'db')",
    ] {
        (&mut *other).execute(sql).await.unwrap();
    }
    let create = {
        let jobs = jobs.clone();
        tokio::spawn(async move { jobs.create(&backup_of(1)).await })
    };
    // The store's row waits for the other one, and the other one's writer waits for the store's.
    wait_for_waiting(&database, 1).await;
    let before = deadlocks();
    let all = "SELECT id FROM customer_backup_jobs WHERE id > 0 FOR UPDATE";
    (&mut *other).execute(all).await.unwrap();
    assert!(deadlocks() > before);
    other.commit().await.unwrap();
    let answer = create.await.unwrap().unwrap();
    assert!(matches!(answer, Created::InTheWay(job) if job.backup_type == BackupType::Db));
}

fn deadlocks() -> u32 {
    let status = "SELECT variable_value FROM information_schema.global_status WHERE variable_name = 'Innodb_deadlocks'";
    MARIADB.sql(status).unwrap().trim().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_finds_the_sqlite_file_locked_waits_for_it() {
    let database = Database::empty(Kind::Sqlite);
    let jobs = database.jobs(LONG).await;
    let id = create(&jobs, 1).await.id;
    let mut other = database
        .sqlite()
        .begin_with("BEGIN IMMEDIATE")
        .await
        .unwrap();
    let update = "UPDATE customer_backup_jobs SET note = 'other'";
    (&mut *other).execute(update).await.unwrap();
    let (done, is_done) = (Arc::new(AtomicBool::new(false)), jobs.clone());
    let cancel = {
        let done = Arc::clone(&done);
        tokio::spawn(async move {
            let answer = is_done.cancel(id).await;
            done.store(true, Ordering::Relaxed);
            answer
        })
    };
    // Reading waits for nobody.
    for _ in 0..20 {
        assert!(get(&jobs, id).await.note.is_none());
    }
    assert!(!done.load(Ordering::Relaxed));
    other.commit().await.unwrap();
    assert_eq!(cancel.await.unwrap().unwrap(), CancelAnswer::Cancelled);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_job_is_lost_or_doubled_while_the_server_is_killed_and_restarted() {
    const JOBS: u32 = 240;
    // What is committed survives the server's end, as on a server of a platform.
    let mut server = MariaDb::start_with(&[
        "--innodb-flush-log-at-trx-commit=2",
        "--innodb-doublewrite=1",
    ])
    .unwrap();
    let database = Database::on(&server);
    let jobs = database.jobs(SHORT).await;
    let created = Arc::new(Mutex::new(HashMap::new()));
    let ended = Arc::new(Mutex::new(HashMap::<JobId, u32>::new()));
    let tasks: Vec<_> = (0..8)
        .map(|task| {
            let (jobs, ended, created) = (jobs.clone(), Arc::clone(&ended), Arc::clone(&created));
            tokio::spawn(async move {
                let mut mine: Vec<u32> = (1..=JOBS).filter(|n| n % 8 == task).collect();
                while ended.lock().unwrap().len() < JOBS as usize {
                    if let Err(e) = step(&jobs, &mut mine, &created, &ended).await {
                        let kinds = [ErrorKind::Unreachable, ErrorKind::Busy];
                        assert!(kinds.contains(&e.kind()), "{e:?}");
                    }
                    tokio::task::yield_now().await;
                }
            })
        })
        .collect();
    for share in [JOBS / 4, JOBS / 2] {
        let share = usize::try_from(share).unwrap();
        wait_for("some jobs to end", async || {
            (ended.lock().unwrap().len() >= share).then_some(())
        })
        .await;
        server.kill();
        server.restart().unwrap();
    }
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(
        database.count("customer_backup_jobs").await,
        i64::from(JOBS)
    );
    let mut ends: HashMap<i64, u32> = HashMap::new();
    let mut claims: HashMap<(i64, i64), u32> = HashMap::new();
    for event in database.history().await {
        match event.status.as_str() {
            "pending" => {}
            "running" => *claims.entry((event.job, event.attempts)).or_default() += 1,
            "failed" => *ends.entry(event.job).or_default() += 1,
            other => panic!("a job {other}"),
        }
    }
    assert_eq!(ends.len(), JOBS as usize);
    assert!(ends.values().all(|&count| count == 1), "ended twice");
    assert!(claims.values().all(|&count| count == 1), "claimed twice");
    let told = ended.lock().unwrap();
    assert!(told.values().all(|&count| count <= 1), "told twice");
}

type Ended = Mutex<HashMap<JobId, u32>>;

/// Create a job, claim one, end it. Where the database went away nothing is known of the last statement.
async fn step(
    jobs: &JobStore,
    mine: &mut Vec<u32>,
    created: &Mutex<HashMap<u32, JobId>>,
    ended: &Ended,
) -> backup_core::error::Result<()> {
    if let Some(&number) = mine.last() {
        // It may have been created before, and the answer lost.
        let known = jobs.of_customer(customer(number), 1).await?;
        if known.is_empty() {
            let Created::Job(job) = jobs.create(&backup_of(number)).await? else {
                panic!("a job of a customer who has none is in the way");
            };
            created.lock().unwrap().insert(number, job.id);
        }
        mine.pop();
    }
    let Some(claimed) = jobs.claim(SERVER, "w").await? else {
        for job in jobs.recent(1000).await? {
            // Those whose end was not heard of.
            if !job.status.is_active() {
                ended.lock().unwrap().entry(job.id).or_default();
            }
        }
        return Ok(());
    };
    if jobs
        .fail(claimed.lease, Failure::Error, "It failed.")
        .await?
    {
        *ended.lock().unwrap().entry(claimed.job.id).or_default() += 1;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_whose_answer_is_lost_is_claimed_all_the_same() {
    const CLAIM: &str = "attempts = attempts + 1";
    const LOOK_AFTER_IT: &str = "FROM customer_backup_jobs WHERE id = ?";
    // A statement is prepared, and then executed.
    for (statement, nth) in [
        (CLAIM, 0),
        (CLAIM, 1),
        (LOOK_AFTER_IT, 0),
        (LOOK_AFTER_IT, 1),
    ] {
        let database = Database::empty(Kind::MariaDb);
        let id = create(&database.jobs(LONG).await, 1).await.id;
        let lost = Arc::new(AtomicBool::new(false));
        let port = losing_an_answer(MARIADB.port(), statement, nth, Arc::clone(&lost)).await;
        let server = format!(":{}/", MARIADB.port());
        let url = database.url.replace(&server, &format!(":{port}/"));
        let jobs = JobStore::new(&connect(&url, &database.password).await, LONG);

        let claimed = claim(&jobs).await;
        assert!(
            lost.load(Ordering::Relaxed),
            "answer {nth} to {statement} was not lost"
        );
        assert_eq!((claimed.job.id, claimed.job.attempts), (id, 1));
        assert!(!claimed.is_taken_over);
        assert_eq!(jobs.look(claimed.lease).await.unwrap(), Kept::Held);
        assert!(jobs.claim(SERVER, "test").await.unwrap().is_none());
        let lives: Vec<_> = database.history().await;
        let lives: Vec<_> = lives
            .iter()
            .map(|e| (e.status.as_str(), e.attempts))
            .collect();
        assert_eq!(
            lives,
            [("pending", 0), ("running", 1)],
            "answer {nth} to {statement}"
        );
    }
}

/// The port of a way to the server on which, once, the answer to the `nth` message after this part of a statement gets lost with its connection.
async fn losing_an_answer(
    server: u16,
    statement: &'static str,
    nth: u32,
    lost: Arc<AtomicBool>,
) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(("127.0.0.1", server)).await.unwrap();
            let lost = Arc::clone(&lost);
            tokio::spawn(async move { drop(relay(client, server, statement, nth, &lost).await) });
        }
    });
    port
}

async fn relay(
    mut client: TcpStream,
    mut server: TcpStream,
    statement: &str,
    nth: u32,
    lost: &AtomicBool,
) -> std::io::Result<()> {
    let statement = statement.as_bytes();
    let (mut asked, mut answered) = (vec![0; 65536], vec![0; 65536]);
    let mut since = None;
    loop {
        tokio::select! {
            length = client.read(&mut asked) => {
                let message = &asked[..length?];
                if message.is_empty() {
                    return Ok(());
                }
                since = match since {
                    Some(count) => Some(count + 1),
                    None => message.windows(statement.len()).any(|part| part == statement).then_some(0),
                };
                server.write_all(message).await?;
            }
            length = server.read(&mut answered) => {
                let answer = &answered[..length?];
                if answer.is_empty() {
                    return Ok(());
                }
                if since == Some(nth) && !lost.swap(true, Ordering::Relaxed) {
                    return Ok(());
                }
                client.write_all(answer).await?;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_can_only_be_read_is_waited_for() {
    let server = MariaDb::start().unwrap();
    let database = Database::on(&server);
    let schema = database.schema();
    create(&database.jobs(LONG).await, 1).await;
    // Root may write all the same.
    server
        .sql(&format!(
            "CREATE USER worker@localhost IDENTIFIED BY 's3cret'; GRANT ALL ON {schema}.* TO worker@localhost; SET GLOBAL read_only = ON"
        ))
        .unwrap();
    let url = database.url.replace("root@", "worker@");
    let jobs = JobStore::new(&connect(&url, "s3cret").await, LONG);
    let error = jobs.create(&backup_of(2)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error:?}");
    assert!(error.to_string().contains("only be read"), "{error}");
    server.sql("SET GLOBAL read_only = OFF").unwrap();
    assert_eq!(claim(&jobs).await.job.customer_id, customer(1));
}
