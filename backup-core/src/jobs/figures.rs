//! Figures of all jobs, for a monitoring that asks every few seconds and for operators.
//!
//! Those for the monitoring are counted in an index that has all of it (`backup_jobs_counted`), but of the jobs that failed, which are few. Never: a look
//! at each row of a table that grows for years.

use std::time::Duration;

use jiff::Timestamp;

use super::store::understand_time;
use super::{Failure, Job, JobId, JobStatus, JobStore, JobType};
use crate::customer::CustomerId;
use crate::error::Result;
use crate::store::values;

const TOTALS: &str = "COUNT(*), COUNT(finished_at - started_at), CAST(COALESCE(SUM(finished_at - started_at), 0) AS SIGNED),
        CAST(COALESCE(SUM(bytes_done), 0) AS SIGNED), MAX(finished_at)";
const OLDEST_PENDING: &str = "SELECT CAST(MIN(created_at) AS CHAR), {now} FROM customer_backup_jobs WHERE status = 'pending'";

/// Of a month, which is more than anybody waits with a look; the index of what is counted has the rows by their beginning.
const RECENT_DAYS: u64 = 30;
const FAILURES: &str = "SELECT CAST(j.customer_id AS SIGNED), COUNT(*), CAST(MAX(j.id) AS SIGNED) FROM customer_backup_jobs j
    LEFT JOIN (SELECT customer_id, MAX(id) AS id FROM customer_backup_jobs
        WHERE job_type = 'backup' AND status = 'completed' AND started_at >= {now} - ? GROUP BY customer_id) good
        ON good.customer_id = j.customer_id
    WHERE j.job_type = 'backup' AND j.status = 'failed' AND j.started_at >= {now} - ?
        AND COALESCE(j.failure, '') <> 'cancelled' AND j.id > COALESCE(good.id, 0)
    GROUP BY j.customer_id";

/// The highest number first.
const OPEN: &str = "WHERE active_customer IS NOT NULL OR (status = 'failed' AND failure = 'stuck')
    ORDER BY customer_backup_jobs.id DESC";

/// Type, state, failure, jobs, those that are timed, their milliseconds, bytes, and the last end.
type CountRow = (
    String,
    String,
    Option<String>,
    i64,
    i64,
    i64,
    i64,
    Option<i64>,
);

/// How many jobs there are of a type in a state, and what they took. Those that failed are counted for each [`Failure`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct JobCount {
    /// What they do.
    pub job_type: JobType,
    /// Where they are in their lives.
    pub status: JobStatus,
    /// Why they failed, where they did and that is known.
    pub failure: Option<Failure>,
    /// How many.
    pub jobs: u64,
    /// How many of them have ended so that it is known how long they took.
    pub timed: u64,
    /// How long those took together, from when they were first taken up to their end.
    pub duration: Duration,
    /// Bytes that they have done together: of those that completed, all that they saved or restored.
    pub bytes: u64,
    /// When the last of them ended.
    pub last_end: Option<Timestamp>,
}

/// Backups of a customer that failed since his newest good one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Failures {
    pub(crate) customer: CustomerId,
    pub(crate) count: u64,
    pub(crate) last: JobId,
}

impl JobStore {
    /// Of each customer the backups that failed since his newest good one, within the last month. Who has none is left out.
    pub(crate) async fn failures(&self) -> Result<Vec<Failures>> {
        let month = RECENT_DAYS * 24 * 60 * 60 * 1000;
        let rows: Vec<(i64, i64, i64)> = self.store.rows(FAILURES, values![month, month]).await?;
        let failures = |(customer, count, last): (i64, i64, i64)| {
            Some(Failures {
                customer: CustomerId::new(u32::try_from(customer).ok()?).ok()?,
                count: u64::try_from(count).ok()?,
                last: JobId::from_number(u64::try_from(last).ok()?),
            })
        };
        Ok(rows.into_iter().filter_map(failures).collect())
    }

    /// The jobs of all customers that have no true end yet, the newest first. Rows that make no sense are left out, and logged.
    pub(crate) async fn open_of_all(&self) -> Result<Vec<Job>> {
        self.list(OPEN, &[]).await
    }

    /// Counts of all jobs by type, state and failure; what there is none of is left out.
    pub(crate) async fn counts(&self) -> Result<Vec<JobCount>> {
        // Why a job failed is not in the index. In one statement, so that each job is counted once.
        let query = format!(
            "SELECT CAST(job_type AS CHAR), CAST(status AS CHAR), CAST(NULL AS CHAR), {TOTALS}
                FROM customer_backup_jobs WHERE status <> 'failed' GROUP BY job_type, status
            UNION ALL SELECT CAST(job_type AS CHAR), CAST(status AS CHAR), CAST(failure AS CHAR), {TOTALS}
                FROM customer_backup_jobs WHERE status = 'failed' GROUP BY job_type, status, failure"
        );
        let rows: Vec<CountRow> = self.store.rows(&query, &[]).await?;
        let number = |number: i64| u64::try_from(number).unwrap_or(0);
        let count = |row: CountRow| {
            let (job_type, status, failure, jobs, timed, milliseconds, bytes, last_end) = row;
            Some(JobCount {
                // What another program wrote there and nobody understands is no job of ours.
                job_type: JobType::from_word(&job_type)?,
                status: JobStatus::from_word(&status)?,
                failure: failure.and_then(|word| Failure::from_word(&word)),
                jobs: number(jobs),
                timed: number(timed),
                duration: Duration::from_millis(number(milliseconds)),
                bytes: number(bytes),
                last_end: last_end.and_then(|time| Timestamp::from_millisecond(time).ok()),
            })
        };
        Ok(rows.into_iter().filter_map(count).collect())
    }

    /// For how long the oldest job waits that nobody has taken up; None where none waits.
    pub(crate) async fn oldest_pending(&self) -> Result<Option<Duration>> {
        let row: Option<(Option<String>, i64)> = self.store.row(OLDEST_PENDING, &[]).await?;
        let Some((Some(created), now)) = row else {
            return Ok(None);
        };
        let waits = |created: Timestamp| {
            let milliseconds = now.saturating_sub(created.as_millisecond());
            Duration::from_millis(u64::try_from(milliseconds).unwrap_or(0))
        };
        Ok(understand_time(&created).map(waits))
    }
}
