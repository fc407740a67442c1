//! What customers do: create, restore, cancel, dismiss. Forms and JSON alike.
//!
//! A program gets an [`Outcome`]; a browser is sent to the page it came from, which tells it. Never: an answer that differs between what does not
//! exist and what is another's.

use axum::extract::{Extension, FromRequestParts, Path};
use axum::http::request::Parts;
use axum::response::{IntoResponse, Redirect, Response};
use axum::{Json, RequestPartsExt};
use backup_app::model::{Flash, Outcome, Part};
use backup_app::visit::Visit;
use backup_core::catalog::{BackupEntry, Source};
use backup_core::customer::CustomerId;
use backup_core::error::ErrorKind;
use backup_core::jobs::{CancelAnswer, Created, Job, JobId, JobType};
use backup_core::operations::{BackupRequest, RestoreRequest};
use backup_core::repository::{BackupType, SnapshotId};
use backup_core::service::{BackupService, Deleted};
use serde::Deserialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::acting::Acting;
use super::input::{Input, checkbox, word};
use super::refusal::Refusal;
use super::{AppState, asks_for_page};

/// The page.
const ALL_BACKUPS: &str = "/backups";

pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(create))
        .routes(routes!(restore))
        .routes(routes!(delete))
        .routes(routes!(cancel))
        .routes(routes!(dismiss))
}

/// A backup to be made.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewBackup {
    /// What to back up.
    #[serde(deserialize_with = "word")]
    backup_type: Part,
    /// A few words for the list of backups: one line of at most 500 characters.
    note: Option<String>,
}

/// A backup to be put back.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewRestore {
    /// The word `RESTORE`.
    confirmation: String,
    /// What of the backup to put back.
    #[serde(deserialize_with = "word")]
    restore_type: Part,
    /// Whether the shop stays up while the backup is prepared, and is closed for the moment of the exchange alone. What is ordered meanwhile is replaced with
    /// the rest.
    #[serde(default, deserialize_with = "checkbox")]
    online: bool,
}

/// A backup to be deleted.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Deletion {
    /// The word `DELETE`.
    confirmation: String,
}

/// Nothing to say.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Nothing {}

/// Queue a backup.
#[utoipa::path(post, path = "/backups/create", tag = "backups",
    request_body(content((NewBackup = "application/x-www-form-urlencoded"), (NewBackup = "application/json"))),
    responses(
        (status = 503, body = Outcome, description = "The database is away: try again."),
        (status = 200, body = Outcome, description = "It is queued."),
        (status = 303, description = "The same for a browser, which is sent back to the page."),
        (status = 400, body = Outcome, description = "The request makes no sense."),
        (status = 409, body = Outcome, description = "Another job has not ended yet, or our team is still looking after a restore that is stuck."),
    ))]
async fn create(Acting(service): Acting, caller: Caller, Input(new): Input<NewBackup>) -> Response {
    let done = queue_backup(&service, caller.customer, new).await;
    caller.answer(done, ALL_BACKUPS)
}

async fn queue_backup(
    service: &BackupService,
    customer: CustomerId,
    new: NewBackup,
) -> Result<Outcome, Refusal> {
    let note = new.note.map(|note| note.trim().to_owned());
    let request = BackupRequest {
        backup_type: backup_type(new.backup_type),
        note: note.filter(|note| !note.is_empty()),
    };
    let created = service.create_backup(customer, &request).await;
    let created = created.map_err(|error| match error.kind() {
        ErrorKind::InvalidInput => Refusal::bad("A note is one line of at most 500 characters."),
        _ => error.into(),
    })?;
    queued(created, "Your backup is queued and starts in a moment.")
}

/// Queue a restore.
#[utoipa::path(post, path = "/backups/{id}/restore", tag = "backups",
    params(("id" = String, Path, description = "The backup's id.")),
    request_body(content((NewRestore = "application/x-www-form-urlencoded"), (NewRestore = "application/json"))),
    responses(
        (status = 503, body = Outcome, description = "The database is away: try again."),
        (status = 200, body = Outcome, description = "It is queued."),
        (status = 303, description = "The same for a browser, which is sent back to the page."),
        (status = 400, body = Outcome, description = "The request makes no sense, is not confirmed, or the backup does not hold that."),
        (status = 404, body = Outcome, description = "There is no such backup of this customer."),
        (status = 409, body = Outcome, description = "Another job has not ended yet, or our team is still looking after a restore that is stuck."),
    ))]
async fn restore(
    Acting(service): Acting,
    caller: Caller,
    Path(id): Path<String>,
    Input(new): Input<NewRestore>,
) -> Response {
    let customer = caller.customer;
    on_backup(&service, caller, &id, |found| {
        queue_restore(&service, customer, found, &new)
    })
    .await
}

/// Do something with a backup of the caller's, and send him back to its page.
async fn on_backup<F: Future<Output = Result<Outcome, Refusal>>>(
    service: &BackupService,
    caller: Caller,
    id: &str,
    act: impl FnOnce((Source, BackupEntry)) -> F,
) -> Response {
    let found = find(service, caller.customer, id).await;
    let page = page_of(&found);
    let done = match found {
        Ok(found) => act(found).await,
        Err(refusal) => Err(refusal),
    };
    caller.answer(done, &page)
}

async fn queue_restore(
    service: &BackupService,
    customer: CustomerId,
    (source, entry): (Source, BackupEntry),
    new: &NewRestore,
) -> Result<Outcome, Refusal> {
    const CONFIRMATION: &str = "RESTORE";
    if new.confirmation != CONFIRMATION {
        return Err(Refusal::bad(
            "Nothing was changed: please type RESTORE in capital letters to confirm.",
        ));
    }
    let restore_type = backup_type(new.restore_type);
    if !entry.backup_type.includes(restore_type) {
        return Err(Refusal::bad("This backup does not hold that."));
    }
    let request = RestoreRequest {
        snapshot: entry.id,
        source,
        restore_type: Some(restore_type),
        online: new.online,
    };
    let created = service.restore(customer, &request).await?;
    queued(created, "Your restore is queued and starts in a moment.")
}

/// Delete a backup that the customer made himself.
#[utoipa::path(post, path = "/backups/{id}/delete", tag = "backups",
    params(("id" = String, Path, description = "The backup's id.")),
    request_body(content((Deletion = "application/x-www-form-urlencoded"), (Deletion = "application/json"))),
    responses(
        (status = 503, body = Outcome, description = "The database is away: try again."),
        (status = 200, body = Outcome, description = "It is deleted."),
        (status = 303, description = "The same for a browser, which is sent back to the page."),
        (status = 400, body = Outcome, description = "It is not confirmed, or not one that the customer made himself."),
        (status = 404, body = Outcome, description = "There is no such backup of this customer."),
        (status = 409, body = Outcome, description = "A job has not ended yet."),
    ))]
async fn delete(
    Acting(service): Acting,
    caller: Caller,
    Path(id): Path<String>,
    Input(deletion): Input<Deletion>,
) -> Response {
    let customer = caller.customer;
    on_backup(&service, caller, &id, |found| {
        delete_backup(&service, customer, found, &deletion)
    })
    .await
}

async fn delete_backup(
    service: &BackupService,
    customer: CustomerId,
    (source, entry): (Source, BackupEntry),
    deletion: &Deletion,
) -> Result<Outcome, Refusal> {
    const CONFIRMATION: &str = "DELETE";
    if source != Source::Manual {
        return Err(Refusal::bad(
            "Only backups that you made yourself can be deleted.",
        ));
    }
    if deletion.confirmation != CONFIRMATION {
        return Err(Refusal::bad(
            "Nothing was deleted: please type DELETE in capital letters to confirm.",
        ));
    }
    match service.delete_backup(customer, &entry.id).await? {
        Deleted::Done => Ok(done("The backup is deleted.", None)),
        Deleted::InTheWay(job) => Err(in_the_way(&job)),
    }
}

/// Cancel a job that waits, or that runs and is not past the point of no return.
#[utoipa::path(post, path = "/backups/jobs/{id}/cancel", tag = "jobs",
    params(("id" = String, Path, description = "The job's number.")),
    responses(
        (status = 503, body = Outcome, description = "The database is away: try again."),
        (status = 200, body = Outcome, description = "It is cancelled, or asked to stop."),
        (status = 303, description = "The same for a browser, which is sent back to the page."),
        (status = 404, body = Outcome, description = "There is no such job of this customer."),
        (status = 409, body = Outcome, description = "It is too late."),
    ))]
async fn cancel(
    Acting(service): Acting,
    caller: Caller,
    Path(id): Path<String>,
    Input(Nothing {}): Input<Nothing>,
) -> Response {
    let done = cancel_job(&service, caller.customer, &id).await;
    caller.answer(done, ALL_BACKUPS)
}

async fn cancel_job(
    service: &BackupService,
    customer: CustomerId,
    id: &str,
) -> Result<Outcome, Refusal> {
    let id = job_id(id)?;
    let answer = service.cancel(Some(customer), id).await;
    let message = match answer.map_err(of_job)? {
        CancelAnswer::Cancelled => "It is cancelled.",
        CancelAnswer::Requested => "It is being stopped.",
        CancelAnswer::TooLate => {
            return Err(Refusal::conflict(
                "It is almost done and cannot be cancelled any more.",
            ));
        }
        CancelAnswer::Ended => return Err(Refusal::conflict("It has ended already.")),
    };
    Ok(done(message, Some(id)))
}

/// Say that a failed job was seen: it is not shown as the last failure any more.
#[utoipa::path(post, path = "/backups/jobs/{id}/dismiss", tag = "jobs",
    params(("id" = String, Path, description = "The job's number.")),
    responses(
        (status = 503, body = Outcome, description = "The database is away: try again."),
        (status = 200, body = Outcome, description = "It is dismissed."),
        (status = 303, description = "The same for a browser, which is sent back to the page."),
        (status = 404, body = Outcome, description = "There is no such job of this customer."),
        (status = 409, body = Outcome, description = "It has not failed."),
    ))]
async fn dismiss(
    Acting(service): Acting,
    caller: Caller,
    Path(id): Path<String>,
    Input(Nothing {}): Input<Nothing>,
) -> Response {
    let done = dismiss_job(&service, caller.customer, &id).await;
    caller.answer(done, ALL_BACKUPS)
}

async fn dismiss_job(
    service: &BackupService,
    customer: CustomerId,
    id: &str,
) -> Result<Outcome, Refusal> {
    let id = job_id(id)?;
    if !service.dismiss(customer, id).await.map_err(of_job)? {
        return Err(Refusal::conflict("It has not failed."));
    }
    Ok(done("It will not be shown here again.", Some(id)))
}

/// Who asks, and how he is answered.
struct Caller {
    customer: CustomerId,
    is_browser: bool,
}

impl Caller {
    /// A browser is sent to a page of ours, with the outcome left for it: to the page of all backups, where what runs is seen, or where it was
    /// refused back to `page`. The gate knows where to leave it.
    fn answer(self, done: Result<Outcome, Refusal>, page: &str) -> Response {
        if !self.is_browser {
            return match done {
                Ok(outcome) => Json(outcome).into_response(),
                Err(refusal) => refusal.into_response(),
            };
        }
        let page = if done.is_ok() { ALL_BACKUPS } else { page };
        let outcome = done.unwrap_or_else(|refusal| refusal.outcome());
        let flash = Flash {
            success: outcome.success,
            message: outcome.message,
            undo: None,
            is_end: false,
        };
        (Extension(flash), Redirect::to(page)).into_response()
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refusal> {
        let visit = parts.extract::<Extension<Visit>>().await;
        let Extension(visit) = visit.map_err(|_| Refusal::logged_out())?;
        Ok(Self {
            customer: visit.customer,
            is_browser: asks_for_page(&parts.headers),
        })
    }
}

async fn find(
    service: &BackupService,
    customer: CustomerId,
    id: &str,
) -> Result<(Source, BackupEntry), Refusal> {
    let id: SnapshotId = id.parse().map_err(|_| Refusal::no_backup())?;
    let found = service.find(customer, &id).await?;
    found.ok_or_else(Refusal::no_backup)
}

/// Where a browser asked from.
fn page_of(found: &Result<(Source, BackupEntry), Refusal>) -> String {
    match found {
        Ok((_, entry)) => format!("{ALL_BACKUPS}/{}", entry.id),
        Err(_) => ALL_BACKUPS.to_owned(),
    }
}

fn job_id(id: &str) -> Result<JobId, Refusal> {
    id.parse().map_err(|_| Refusal::no_job())
}

fn of_job(error: backup_core::error::Error) -> Refusal {
    match error.kind() {
        ErrorKind::NotFound => Refusal::no_job(),
        _ => error.into(),
    }
}

fn queued(created: Created, message: &str) -> Result<Outcome, Refusal> {
    match created {
        Created::Job(job) => Ok(done(message, Some(job.id))),
        Created::InTheWay(job) => Err(in_the_way(&job)),
    }
}

fn in_the_way(job: &Job) -> Refusal {
    Refusal::conflict(match job.job_type {
        JobType::Restore if job.is_stuck() => {
            "Our team is still looking after your last restore. Please wait until your shop is open again."
        }
        JobType::Backup => "A backup is running already. Please wait until it has ended.",
        JobType::Restore => "A restore is running already. Please wait until it has ended.",
    })
}

fn done(message: &str, job: Option<JobId>) -> Outcome {
    Outcome {
        success: true,
        message: message.into(),
        job_id: job.map(JobId::get),
    }
}

fn backup_type(part: Part) -> BackupType {
    match part {
        Part::Db => BackupType::Db,
        Part::Files => BackupType::Files,
        Part::Both => BackupType::Both,
    }
}
