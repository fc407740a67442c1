//! What programs read: lists, status, progress as events, and the description of all of it.

use std::collections::HashMap;
use std::future::pending;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::extract::{Extension, State};
use axum::http::StatusCode;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use backup_app::data::{job, part};
use backup_app::model::{self, Outcome};
use backup_app::visit::Visit;
use backup_core::catalog::BackupEntry;
use backup_core::customer::CustomerId;
use backup_core::jobs::{Job, JobStatus, JobStream};
use backup_core::service::BackupService;
use backup_core::session::{Presence, SessionToken};
use backup_core::worker::Stopping;
use futures_util::{Stream, StreamExt};
use serde::Serialize;
use tokio::sync::{broadcast, watch};
use utoipa::openapi::security::{ApiKey, ApiKeyValue, SecurityScheme};
use utoipa::{Modify, OpenApi, ToSchema, openapi};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::AppState;
use super::refusal::Refusal;

/// An event stream ends after that long, and the browser comes back for another one: so it is asked who it is again.
const STREAM_LIMIT: Duration = Duration::from_secs(5 * 60);

/// Proxies end connections on which nothing is said.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Streams that a customer may have open at once.
const STREAMS_OF_CUSTOMER: usize = 50;

pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(backups))
        .routes(routes!(status))
        .routes(routes!(events))
}

/// What there is to say before all routes.
#[derive(OpenApi)]
#[openapi(info(
    title = "ShopHosting Backups",
    description = "What a customer can do with his backups. `POST /login` sets the cookie that all the rest needs; every refusal is an `Outcome` with a \
        plain sentence. A browser, which accepts `text/html`, is sent on to a page instead."
), security(("session" = [])), modifiers(&Cookie))]
pub struct Description;

/// How callers show who they are.
struct Cookie;

impl Modify for Cookie {
    fn modify(&self, api: &mut openapi::OpenApi) {
        let cookie = ApiKey::Cookie(ApiKeyValue::with_description(
            "shophosting",
            "Set by `POST /login`. Its name begins with `__Host-` where `server.public_url` is https. Where the platform logs customers in (`server.login`), its own \
             session cookie is what shows who they are.",
        ));
        api.components
            .get_or_insert_default()
            .add_security_scheme("session", SecurityScheme::ApiKey(cookie));
    }
}

/// The description of everything that was registered with one.
pub fn description(api: openapi::OpenApi) -> Router<AppState> {
    let api = Arc::new(api);
    let describe = move || async move { Json(api.as_ref().clone()) };
    Router::new().route("/api/openapi.json", axum::routing::get(describe))
}

/// A job: times are ISO 8601 in UTC.
#[derive(Serialize, ToSchema)]
struct JobDocument {
    /// Whose it is.
    customer_id: u32,
    #[serde(flatten)]
    job: model::Job,
}

impl From<Job> for JobDocument {
    fn from(from: Job) -> Self {
        Self {
            customer_id: from.customer_id.get(),
            job: job(from),
        }
    }
}

/// Whether something is going on, and what went wrong last.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
enum Status {
    Active {
        /// `true`
        has_active_job: bool,
        /// The job that waits or runs.
        job: Box<JobDocument>,
    },
    Idle {
        /// `false`
        has_active_job: bool,
        /// The restore that is stuck; else the newest job, if it failed and was not dismissed.
        last_failed: Option<Box<JobDocument>>,
    },
}

/// The backups of a customer, newest first.
#[derive(Serialize, ToSchema)]
struct Lists {
    /// Those he made.
    manual: Vec<BackupDocument>,
    /// The platform's.
    daily: Vec<BackupDocument>,
    /// Those made of what a restore replaced: restoring one undoes that restore.
    pre_restore: Vec<BackupDocument>,
}

/// One backup.
#[derive(Serialize, ToSchema)]
struct BackupDocument {
    /// Its id.
    id: String,
    /// When it was made: ISO 8601 in UTC.
    time: String,
    /// What it holds.
    backup_type: model::Part,
    /// The customer's note.
    note: Option<String>,
    /// Plain bytes, where known.
    bytes: Option<u64>,
    /// Bytes that were new to the repository, where known.
    bytes_added: Option<u64>,
    /// Plain bytes of the dump, where known.
    database_bytes: Option<u64>,
    /// Regular files, where known.
    files: Option<u64>,
    /// When it was last restored, apart from the shop, to prove that it can be: ISO 8601 in UTC.
    proven_at: Option<String>,
}

impl From<BackupEntry> for BackupDocument {
    fn from(entry: BackupEntry) -> Self {
        Self {
            id: entry.id.to_string(),
            time: entry.time.to_string(),
            backup_type: part(entry.backup_type),
            note: entry.note,
            bytes: entry.bytes,
            bytes_added: entry.bytes_added,
            database_bytes: entry.database_bytes,
            files: entry.files,
            proven_at: entry.proven_at.map(|at| at.to_string()),
        }
    }
}

/// All backups.
#[utoipa::path(get, path = "/api/backups", tag = "backups",
    responses((status = 503, body = Outcome, description = "The database is away: try again."), (status = 200, body = Lists), (status = 401, body = Outcome, description = "Nobody is logged in.")))]
async fn backups(
    State(service): State<BackupService>,
    Extension(visit): Extension<Visit>,
) -> Result<Json<Lists>, Refusal> {
    let list = service.list(visit.customer).await?;
    let documents = |entries: Vec<BackupEntry>| entries.into_iter().map(Into::into).collect();
    Ok(Json(Lists {
        manual: documents(list.manual),
        daily: documents(list.daily),
        pre_restore: documents(list.pre_restore),
    }))
}

/// The job that waits or runs, or how the last one failed.
#[utoipa::path(get, path = "/api/backups/status", tag = "jobs",
    responses((status = 503, body = Outcome, description = "The database is away: try again."), (status = 200, body = Status), (status = 401, body = Outcome, description = "Nobody is logged in.")))]
async fn status(
    State(service): State<BackupService>,
    Extension(visit): Extension<Visit>,
) -> Result<Json<Status>, Refusal> {
    let newest = match service.open_job(visit.customer).await? {
        Some(open) => Some(open),
        None => newest_job(&service, visit.customer).await?,
    };
    let is_active = newest.as_ref().is_some_and(|job| job.status.is_active());
    Ok(Json(match newest {
        Some(job) if is_active => Status::Active {
            has_active_job: true,
            job: Box::new(job.into()),
        },
        newest => Status::Idle {
            has_active_job: false,
            last_failed: newest
                .filter(|job| job.status == JobStatus::Failed && !job.dismissed)
                .map(|job| Box::new(job.into())),
        },
    }))
}

/// Progress, as server-sent events named `job`: the job as it is now, then at each change, until it has ended; of a restore that is stuck, until it has
/// its true end. It ends earlier with a logout, and at the latest after five minutes: come back then. A session that ended otherwise is found out by then.
#[utoipa::path(get, path = "/api/backups/events", tag = "jobs",
    responses(
        (status = 503, body = Outcome, description = "The database is away: try again."),
        (status = 200, body = JobDocument, content_type = "text/event-stream"),
        (status = 204, description = "No job waits or runs, and no restore is stuck."),
        (status = 401, body = Outcome, description = "Nobody is logged in."),
        (status = 429, body = Outcome, description = "Too many streams are open."),
    ))]
async fn events(
    State(service): State<BackupService>,
    State(streams): State<Streams>,
    Extension(visit): Extension<Visit>,
    token: Option<Extension<SessionToken>>,
) -> Result<Response, Refusal> {
    let Some(open) = service.open_job(visit.customer).await? else {
        return Ok(StatusCode::NO_CONTENT.into_response());
    };
    let place = streams.take_place(visit.customer)?;
    // A session of the platform ends without a word to us.
    let token = token.map(|Extension(token)| token);
    // From here on a logout is heard; one of just before is seen.
    let end = streams.end(token.clone());
    if let Some(token) = token {
        let session = service
            .sessions()
            .find(&token, Presence::Background)
            .await?;
        session.ok_or_else(Refusal::logged_out)?;
    }
    let jobs = service.progress(Some(visit.customer), open.id).await?;
    let events = events_of(jobs, place).take_until(end);
    let keep_alive = KeepAlive::new().interval(KEEP_ALIVE);
    Ok(Sse::new(events).keep_alive(keep_alive).into_response())
}

fn events_of(
    jobs: JobStream,
    place: Place,
) -> impl Stream<Item = Result<Event, axum::Error>> + Send {
    jobs.enumerate().map(move |(number, job)| {
        // Held for as long as the stream is.
        let Place { .. } = &place;
        let id = format!("{}-{number}", job.id);
        Event::default()
            .id(id)
            .event("job")
            .json_data(JobDocument::from(job))
    })
}

async fn newest_job(service: &BackupService, customer: CustomerId) -> Result<Option<Job>, Refusal> {
    Ok(service.jobs(Some(customer), 1).await?.into_iter().next())
}

/// The event streams that are open.
#[derive(Debug, Clone)]
pub struct Streams {
    open: Arc<Mutex<HashMap<CustomerId, usize>>>,
    logged_out: broadcast::Sender<SessionToken>,
    stopping: watch::Receiver<Stopping>,
}

/// One of a customer's streams, until it is dropped.
struct Place {
    streams: Streams,
    customer: CustomerId,
}

impl Streams {
    pub fn new(stopping: watch::Receiver<Stopping>) -> Self {
        Self {
            open: Arc::default(),
            logged_out: broadcast::Sender::new(64),
            stopping,
        }
    }

    /// End the streams of a session.
    pub fn end_session(&self, token: SessionToken) {
        // An error means that there is no stream.
        let _ = self.logged_out.send(token);
    }

    fn take_place(&self, customer: CustomerId) -> Result<Place, Refusal> {
        let mut open = self.open();
        let count = open.entry(customer).or_default();
        if *count >= STREAMS_OF_CUSTOMER {
            return Err(Refusal {
                retry_after: Some(STREAM_LIMIT.as_secs()),
                ..Refusal::new(
                    StatusCode::TOO_MANY_REQUESTS,
                    "Too many pages are open at once.",
                )
            });
        }
        *count += 1;
        Ok(Place {
            streams: self.clone(),
            customer,
        })
    }

    /// When a stream of this session is over, whatever the job does.
    fn end(&self, token: Option<SessionToken>) -> impl Future<Output = ()> + Send + use<> {
        let mut stopping = self.stopping.clone();
        let mut logged_out = self.logged_out.subscribe();
        async move {
            let logged_out = async {
                let Some(token) = token else {
                    return pending().await;
                };
                // Whoever misses one might have missed this one.
                while let Ok(ended) = logged_out.recv().await {
                    if ended.expose() == token.expose() {
                        break;
                    }
                }
            };
            tokio::select! {
                () = tokio::time::sleep(STREAM_LIMIT) => {}
                _ = stopping.wait_for(|asked| *asked != Stopping::No) => {}
                () = logged_out => {}
            }
        }
    }

    fn open(&self) -> MutexGuard<'_, HashMap<CustomerId, usize>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.streams.open();
        if let Some(count) = open.get_mut(&self.customer) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.customer);
            }
        }
    }
}
