//! `jobs`.

use std::process::ExitCode;

use backup_core::config::Config;
use backup_core::customer::CustomerId;
use backup_core::error::Result;
use backup_core::jobs::{Job, JobStatus};
use indicatif::HumanBytes;
use jiff::tz::TimeZone;
use serde_json::json;
use tokio::runtime::Runtime;

use crate::output::Output;

const SHOWN: u32 = 50;

pub fn run(
    config: Config,
    customer: Option<CustomerId>,
    output: Output,
    runtime: &Runtime,
) -> Result<ExitCode> {
    let jobs = super::with_service(config, runtime, async |service| {
        service.jobs(customer, SHOWN).await
    })?;
    output.result(&json!({ "jobs": jobs }), || {
        if jobs.is_empty() {
            return "no jobs".into();
        }
        jobs.iter().map(line).collect()
    });
    Ok(ExitCode::SUCCESS)
}

fn line(job: &Job) -> String {
    let created = job.created_at.map_or_else(String::new, |at| {
        let time = at.to_zoned(TimeZone::system());
        time.strftime("%Y-%m-%d %H:%M:%S").to_string()
    });
    format!(
        "{:>8}  customer {:<8}  {created:<19}  {:<7}  {:<5}  {:<9}  {}\n",
        job.id,
        job.customer_id,
        job.job_type.as_str(),
        job.backup_type.to_string(),
        job.status.as_str(),
        remark(job),
    )
}

fn remark(job: &Job) -> String {
    match job.status {
        JobStatus::Pending => format!("waits for a worker of the server {}", job.server),
        JobStatus::Running => {
            let phase = job
                .phase
                .map_or_else(String::new, |phase| phase.to_string());
            let done = HumanBytes(job.bytes_done);
            match job.bytes_total {
                Some(total) => format!("{phase}, {done} of {}", HumanBytes(total)),
                None => format!("{phase}, {done}"),
            }
        }
        JobStatus::Completed => match (job.started_at, job.completed_at) {
            (Some(started), Some(completed)) => {
                let seconds = completed.duration_since(started).as_secs_f64();
                format!("{seconds:.1} s")
            }
            _ => String::new(),
        },
        JobStatus::Failed => job
            .error_message
            .as_deref()
            .unwrap_or("")
            .escape_debug()
            .to_string(),
    }
}
