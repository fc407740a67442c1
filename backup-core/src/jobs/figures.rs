//! Figures of all jobs, for a monitoring that asks every few seconds.
//!
//! They are counted in an index that has all of it (`backup_jobs_counted`). Never: a look at each row of a table that grows for years.

use std::time::Duration;

use jiff::Timestamp;

use super::store::understand_time;
use super::{JobStatus, JobStore, JobType};
use crate::error::Result;

const COUNTS: &str = "SELECT CAST(job_type AS CHAR), CAST(status AS CHAR), COUNT(*), COUNT(finished_at - started_at),
        CAST(COALESCE(SUM(finished_at - started_at), 0) AS SIGNED), CAST(COALESCE(SUM(bytes_done), 0) AS SIGNED), MAX(finished_at)
    FROM customer_backup_jobs GROUP BY job_type, status";
const OLDEST_PENDING: &str = "SELECT CAST(MIN(created_at) AS CHAR), {now} FROM customer_backup_jobs WHERE status = 'pending'";

/// Type, state, jobs, those that are timed, their milliseconds, bytes, and the last end.
type CountRow = (String, String, i64, i64, i64, i64, Option<i64>);

/// How many jobs there are of a type in a state, and what they took.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct JobCount {
    /// What they do.
    pub job_type: JobType,
    /// Where they are in their lives.
    pub status: JobStatus,
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

impl JobStore {
    /// Counts of all jobs by type and state; what there is none of is left out.
    pub(crate) async fn counts(&self) -> Result<Vec<JobCount>> {
        let rows: Vec<CountRow> = self.store.rows(COUNTS, &[]).await?;
        let number = |number: i64| u64::try_from(number).unwrap_or(0);
        let count = |(job_type, status, jobs, timed, milliseconds, bytes, last_end): CountRow| {
            Some(JobCount {
                // What another program wrote there and nobody understands is no job of ours.
                job_type: JobType::from_word(&job_type)?,
                status: JobStatus::from_word(&status)?,
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
