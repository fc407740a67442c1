//! `cancel`.

use std::process::ExitCode;

use backup_core::config::Config;
use backup_core::error::Result;
use backup_core::jobs::{CancelAnswer, JobId};
use serde_json::json;
use tokio::runtime::Runtime;

use crate::output::Output;

pub fn run(config: Config, job: JobId, output: Output, runtime: &Runtime) -> Result<ExitCode> {
    let answer = super::with_service(config, runtime, async |service| {
        service.cancel(None, job).await
    })?;
    let (word, text) = match answer {
        CancelAnswer::Cancelled => ("cancelled", format!("job {job} is cancelled")),
        CancelAnswer::Requested => ("requested", format!("job {job} was asked to stop")),
        CancelAnswer::TooLate => (
            "too_late",
            format!("job {job} is past the point where it can be cancelled: it ends by itself"),
        ),
        CancelAnswer::Ended => ("ended", format!("job {job} has ended already")),
    };
    output.result(&json!({ "job_id": job, "result": word }), || text);
    Ok(match answer {
        CancelAnswer::Cancelled | CancelAnswer::Requested => ExitCode::SUCCESS,
        CancelAnswer::TooLate | CancelAnswer::Ended => ExitCode::FAILURE,
    })
}
