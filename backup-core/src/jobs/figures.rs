//! Jobs in numbers, for whoever watches the service.

use std::time::Duration;

use super::{JobStatus, JobStore, JobType, store::understand_time};
use crate::error::Result;

/// How jobs are doing.
#[derive(Debug, Clone, Default)]
pub struct JobFigures {
    /// By what they do and where they are in their lives.
    pub counts: Vec<JobCount>,
    /// How long the job has waited that has waited the longest.
    pub oldest_pending: Option<Duration>,
}

/// The jobs of a type that are in one state.
#[derive(Debug, Clone)]
pub struct JobCount {
    /// What they do.
    pub job_type: JobType,
    /// Where they are.
    pub status: JobStatus,
    /// How many there are.
    pub count: u64,
    /// How long those took that ended, all together.
    pub took: Duration,
}

impl JobStore {
    /// How all jobs are doing.
    pub async fn figures(&self) -> Result<JobFigures> {
        const COUNTS: &str = "SELECT CAST(job_type AS CHAR), CAST(status AS CHAR), COUNT(*),
                CAST(SUM(COALESCE(finished_at - started_at, 0)) AS SIGNED)
            FROM customer_backup_jobs GROUP BY job_type, status";
        const OLDEST: &str = "SELECT CAST(created_at AS CHAR), {now} FROM customer_backup_jobs WHERE status = 'pending'
            ORDER BY customer_backup_jobs.id LIMIT 1";
        let counts: Vec<(String, String, i64, i64)> = self.store().rows(COUNTS, &[]).await?;
        let oldest: Option<(String, i64)> = self.store().row(OLDEST, &[]).await?;
        let oldest_pending = oldest.and_then(|(created, now)| {
            let created = understand_time(&created)?.as_millisecond();
            Some(milliseconds(now - created))
        });
        let count = |(job_type, status, count, took): (String, String, i64, i64)| {
            Some(JobCount {
                job_type: JobType::from_word(&job_type)?,
                status: JobStatus::from_word(&status)?,
                count: u64::try_from(count).unwrap_or(0),
                took: milliseconds(took),
            })
        };
        Ok(JobFigures {
            counts: counts.into_iter().filter_map(count).collect(),
            oldest_pending,
        })
    }
}

fn milliseconds(number: i64) -> Duration {
    Duration::from_millis(u64::try_from(number).unwrap_or(0))
}
