//! What was done to a customer's backups and account: a page without script, and JSON.
//!
//! Never: a row of another customer; the name or the address of an operator.

use axum::extract::{Extension, Query, State};
use axum::http::header::CONTENT_SECURITY_POLICY;
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use backup_app::model::Outcome;
use backup_app::plain::{ActivityPage, sentence};
use backup_app::visit::Visit;
use backup_core::audit::{AuditEntry, AuditPage};
use backup_core::service::BackupService;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::AppState;
use super::headers::STYLE_ALONE;
use super::refusal::{Refusal, Stylesheet};

/// What a page has.
const ENTRIES: u32 = 50;

const SECONDS_A_DAY: u64 = 24 * 60 * 60;

pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(activity))
}

/// The page.
pub fn page() -> Router<AppState> {
    Router::new().route("/activity", get(show))
}

/// Which part of it.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct Asked {
    /// Only what is older than the entry of this number: `next` of the page before.
    before: Option<u64>,
}

/// What was done, newest first.
#[derive(Serialize, ToSchema)]
struct Activity {
    /// At most 50.
    entries: Vec<ActivityEntry>,
    /// What to ask for next with `before`; null where there is nothing older.
    next: Option<u64>,
}

/// Something that was done.
#[derive(Serialize, ToSchema)]
struct ActivityEntry {
    /// Its number.
    id: u64,
    /// When: ISO 8601 in UTC.
    time: String,
    /// `customer`, `operator`, or `service` for what the program does by itself.
    who: &'static str,
    /// `backup`, `restore`, `cancel`, `dismiss`, `delete`, `login`, `logout`, `login_refused`, `password`, `added`, `verify`.
    action: &'static str,
    /// In one plain sentence.
    message: String,
    /// Where the backup is from that it was done with: `manual`, `daily`, `pre-restore`.
    source: Option<&'static str>,
    /// What was backed up or restored: `db`, `files`, `both`.
    backup_type: Option<String>,
    /// The id of the backup that it was done with.
    snapshot_id: Option<String>,
    /// The number of the job that was made or meant.
    job_id: Option<u64>,
    /// The address that it was done from.
    address: Option<String>,
}

impl From<AuditEntry> for ActivityEntry {
    fn from(entry: AuditEntry) -> Self {
        Self {
            message: format!("{}.", sentence(&entry)),
            id: entry.id,
            time: entry.at.to_string(),
            who: entry.who.as_str(),
            action: entry.action.as_str(),
            source: entry.source.map(|source| source.as_str()),
            backup_type: entry.backup_type.map(|part| part.to_string()),
            snapshot_id: entry.snapshot_id,
            job_id: entry.job_id,
            address: entry.address,
        }
    }
}

/// What was done to the backups and the account, by whom and from where.
#[utoipa::path(get, path = "/api/activity", tag = "activity", params(Asked),
    responses(
        (status = 503, body = Outcome, description = "The database is away: try again."),
        (status = 200, body = Activity),
        (status = 400, body = Outcome, description = "`before` is no number."),
        (status = 401, body = Outcome, description = "Nobody is logged in."),
    ))]
async fn activity(
    State(service): State<BackupService>,
    Extension(visit): Extension<Visit>,
    Query(asked): Query<Asked>,
) -> Result<Json<Activity>, Refusal> {
    let AuditPage { entries, next, .. } = load(&service, &visit, &asked).await?;
    Ok(Json(Activity {
        entries: entries.into_iter().map(Into::into).collect(),
        next,
    }))
}

async fn show(
    State(service): State<BackupService>,
    State(Stylesheet(stylesheet)): State<Stylesheet>,
    Extension(visit): Extension<Visit>,
    Query(asked): Query<Asked>,
) -> Result<Response, Refusal> {
    let AuditPage { entries, next, .. } = load(&service, &visit, &asked).await?;
    let page = ActivityPage {
        visit: &visit,
        entries: &entries,
        is_later: asked.before.is_some(),
        next,
        days_kept: service.config().server.audit_keep.as_secs() / SECONDS_A_DAY,
        stylesheet: stylesheet.as_deref(),
    };
    let policy = [(CONTENT_SECURITY_POLICY, STYLE_ALONE)];
    Ok((policy, Html(page.render())).into_response())
}

async fn load(service: &BackupService, visit: &Visit, asked: &Asked) -> Result<AuditPage, Refusal> {
    let page = service.activity(visit.customer, asked.before, ENTRIES);
    Ok(page.await?)
}
