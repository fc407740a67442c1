//! What is told of a job that has ended.

use super::{Failure, Job, JobStatus, JobType};
use crate::config::NotifyEvent;
use crate::notify::{Ended, Notice, done};

/// None of a job that has not ended.
pub(super) fn of(job: &Job) -> Option<Notice> {
    let event = match (job.job_type, job.status, job.failure) {
        (_, JobStatus::Pending | JobStatus::Running, _) => return None,
        (JobType::Backup, JobStatus::Completed, _) => NotifyEvent::BackupCompleted,
        (JobType::Restore, JobStatus::Completed, _) => NotifyEvent::RestoreCompleted,
        (JobType::Backup, JobStatus::Failed, Some(Failure::Cancelled)) => {
            NotifyEvent::BackupCancelled
        }
        (JobType::Restore, JobStatus::Failed, Some(Failure::Cancelled)) => {
            NotifyEvent::RestoreCancelled
        }
        (JobType::Restore, JobStatus::Failed, Some(Failure::Stuck)) => NotifyEvent::RestoreStuck,
        (JobType::Backup, JobStatus::Failed, _) => NotifyEvent::BackupFailed,
        (JobType::Restore, JobStatus::Failed, _) => NotifyEvent::RestoreFailed,
    };
    let message = match job.status {
        JobStatus::Completed => done(job.job_type == JobType::Restore, job.recovered).to_owned(),
        _ => job.error_message.clone().unwrap_or_default(),
    };
    Some(Notice {
        event,
        ended: Ended {
            job_id: job.id.get(),
            customer_id: job.customer_id.get(),
            job_type: job.job_type.to_string(),
            backup_type: job.backup_type.to_string(),
            status: job.status.to_string(),
            failure: job.failure.map(|failure| failure.to_string()),
            snapshot_id: job.snapshot_id.clone(),
            kept_snapshot: job.kept_snapshot.clone(),
            created_at: job.created_at,
            started_at: job.started_at,
            completed_at: job.completed_at,
            message,
        },
    })
}
