//! `/metrics`, for Prometheus: requests as they are answered, jobs and backups out of the database when somebody looks.
//!
//! Never: a customer in it; an answer to anybody but this machine, or the listener that the operator chose for it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{ConnectInfo, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::jobs::{Failure, JobCount, JobStatus, JobType};
use backup_core::service::{BackupService, Figures};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric, Registry};
use tokio::sync::Mutex;

use super::AppState;
use super::refusal::Refusal;

/// Figures of the database are that old at most: however many look, it is asked no more often.
const FRESH: Duration = Duration::from_secs(5);

/// Seconds: from what is in memory to what hardly anybody waits for.
const BUCKETS: [f64; 10] = [0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What a job that was cancelled is counted as, apart from those that failed: that is what somebody wanted, and no fault.
const CANCELLED: &str = "cancelled";

type Labels<const N: usize> = [(&'static str, String); N];
type Whole = Gauge<i64>;
type Seconds = Gauge<f64, std::sync::atomic::AtomicU64>;

/// All that is counted. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    requests: Family<Labels<3>, Counter>,
    request_seconds: Family<Labels<1>, Histogram, fn() -> Histogram>,
    /// Without labels, so that it is there from the beginning: of a count that appears with its first value nobody sees that it grew.
    failures: Counter,
    of_database: OfDatabase,
    looked_at: Arc<Mutex<Option<Instant>>>,
}

#[derive(Debug, Clone)]
struct OfDatabase {
    is_up: Whole,
    jobs: Family<Labels<2>, Whole>,
    jobs_timed: Family<Labels<2>, Whole>,
    job_seconds: Family<Labels<2>, Seconds>,
    job_bytes: Family<Labels<2>, Whole>,
    stuck: Whole,
    queue_age: Seconds,
    last_backup: Family<Labels<1>, Seconds>,
    last_sync: Family<Labels<2>, Seconds>,
    proofs: Family<Labels<2>, Whole>,
    last_proof: Family<Labels<1>, Seconds>,
    oldest_proof: Family<Labels<1>, Seconds>,
    last_sample: Family<Labels<2>, Seconds>,
    sample_errors: Family<Labels<2>, Whole>,
    notifications: Family<Labels<2>, Whole>,
    notifications_waiting: Family<Labels<1>, Whole>,
    notification_age: Family<Labels<1>, Seconds>,
}

/// Beside the dashboard, for this machine alone: a proxy on it speaks for others, and says so.
pub fn beside_dashboard() -> Router<AppState> {
    async fn answer(
        State(state): State<AppState>,
        ConnectInfo(peer): ConnectInfo<SocketAddr>,
        headers: HeaderMap,
    ) -> Result<Response, Refusal> {
        const OF_PROXIES: [&str; 6] = [
            "forwarded",
            "via",
            "x-forwarded-for",
            "x-forwarded-host",
            "x-forwarded-proto",
            "x-real-ip",
        ];
        let is_forwarded = OF_PROXIES.iter().any(|name| headers.contains_key(*name));
        if !peer.ip().to_canonical().is_loopback() || is_forwarded {
            return Err(StatusCode::NOT_FOUND.into());
        }
        show(State(state)).await
    }
    Router::new().route("/metrics", get(answer))
}

/// On a listener of its own: whoever reaches that may look.
pub fn on_own_listener() -> Router<AppState> {
    Router::new().route("/metrics", get(show))
}

async fn show(State(state): State<AppState>) -> Result<Response, Refusal> {
    let text = state.metrics.text(&state.service).await?;
    Ok(([(CONTENT_TYPE, OPEN_METRICS)], text).into_response())
}

impl Metrics {
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("shophosting_backup");
        let requests = register(&mut registry, "http_requests", "Requests answered");
        let request_seconds: Family<_, _, fn() -> Histogram> =
            Family::new_with_constructor(|| Histogram::new(BUCKETS));
        let help = "Time until an answer began";
        registry.register("http_request_seconds", help, request_seconds.clone());
        let help = "Requests answered with an error that is ours";
        let failures = register(&mut registry, "http_failures", help);
        let of_database = OfDatabase::registered(&mut registry);
        Self {
            registry: Arc::new(registry),
            requests,
            request_seconds,
            failures,
            of_database,
            looked_at: Arc::default(),
        }
    }

    /// Count a request.
    pub fn answered(&self, method: &Method, route: &str, status: StatusCode, took: Duration) {
        // Anybody can make up methods.
        const KNOWN: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];
        let method = KNOWN.into_iter().find(|known| *known == method.as_str());
        let labels = [
            ("method", method.unwrap_or("other").to_owned()),
            ("route", route.to_owned()),
            ("status", status.as_u16().to_string()),
        ];
        self.requests.get_or_create(&labels).inc();
        if status.is_server_error() {
            self.failures.inc();
        }
        self.request_seconds
            .get_or_create(&[("route", route.to_owned())])
            .observe(took.as_secs_f64());
    }

    async fn text(&self, service: &BackupService) -> Result<String> {
        self.look(service).await;
        let mut text = String::new();
        encode(&mut text, &self.registry)
            .map_err(|e| Error::caused(ErrorKind::Failed, "the metrics cannot be written", e))?;
        Ok(text)
    }

    /// Those who come meanwhile wait for the one that asks.
    async fn look(&self, service: &BackupService) {
        let mut looked_at = self.looked_at.lock().await;
        if looked_at.is_some_and(|at| at.elapsed() < FRESH) {
            return;
        }
        match service.figures().await {
            Ok(figures) => self.of_database.set(&figures),
            Err(error) => {
                tracing::warn!(
                    "the metrics lack the figures of the database: {}",
                    error.chain()
                );
                self.of_database.forget();
            }
        }
        *looked_at = Some(Instant::now());
    }
}

impl OfDatabase {
    fn registered(registry: &mut Registry) -> Self {
        Self {
            is_up: register(registry, "database_up", "Whether the database answers"),
            jobs: register(registry, "jobs", "Jobs in the table"),
            jobs_timed: register(
                registry,
                "jobs_timed",
                "Jobs of which it is known what they took",
            ),
            job_seconds: register(
                registry,
                "job_seconds",
                "What ended jobs took, all together",
            ),
            job_bytes: register(
                registry,
                "job_bytes",
                "Bytes that jobs saved or restored, all together",
            ),
            stuck: register(
                registry,
                "stuck_restores",
                "Restores that could be neither finished nor undone",
            ),
            queue_age: register(
                registry,
                "queue_age_seconds",
                "How long the oldest job that waits has waited",
            ),
            last_backup: register(
                registry,
                "last_backup_timestamp_seconds",
                "When the newest backup was made",
            ),
            last_sync: register(
                registry,
                "last_sync_timestamp_seconds",
                "When the catalogue was last brought in step with a hosting server's repository",
            ),
            proofs: register(
                registry,
                "proofs",
                "Customers whose newest backup was restored to prove that it can be, by what came of it",
            ),
            last_proof: register(
                registry,
                "last_proof_timestamp_seconds",
                "When a backup was last proven",
            ),
            oldest_proof: register(
                registry,
                "oldest_proof_timestamp_seconds",
                "When the customer was last proven for whom that is the longest time ago",
            ),
            last_sample: register(
                registry,
                "last_sample_timestamp_seconds",
                "When some packs of a hosting server's repository were last read",
            ),
            sample_errors: register(
                registry,
                "sample_errors",
                "How many of the packs that were read last were damaged",
            ),
            notifications: register(
                registry,
                "notifications",
                "Notifications that were sent, and that were given up",
            ),
            notifications_waiting: register(
                registry,
                "notifications_waiting",
                "Notifications that are still to be sent",
            ),
            notification_age: register(
                registry,
                "notification_age_seconds",
                "How long the oldest notification that is still to be sent has waited",
            ),
        }
    }

    fn set(&self, figures: &Figures) {
        self.forget();
        self.is_up.set(1);
        for labels in outcomes() {
            // What there is none of is there as 0: an alert is on what it grows by.
            self.jobs.get_or_create(&labels).set(0);
        }
        for count in &figures.jobs {
            let labels = labels_of(count);
            // Those that failed are several counts.
            self.jobs.get_or_create(&labels).inc_by(whole(count.jobs));
            self.jobs_timed
                .get_or_create(&labels)
                .inc_by(whole(count.timed));
            self.job_seconds
                .get_or_create(&labels)
                .inc_by(count.duration.as_secs_f64());
            self.job_bytes
                .get_or_create(&labels)
                .inc_by(whole(count.bytes));
        }
        self.stuck.set(whole(figures.stuck));
        let age = figures.oldest_pending.unwrap_or_default();
        self.queue_age.set(age.as_secs_f64());
        for (source, newest) in &figures.newest_backups {
            self.last_backup
                .get_or_create(&[("source", source.to_string())])
                .set(newest.as_duration().as_secs_f64());
        }
        for synced in &figures.synced {
            let labels = [
                ("server", synced.server.clone()),
                ("source", synced.source.clone()),
            ];
            self.last_sync
                .get_or_create(&labels)
                .set(synced.at.as_duration().as_secs_f64());
        }
        for proofs in &figures.proofs {
            let source = [("source", proofs.source.to_string())];
            for (result, count) in [("proven", proofs.proven), ("failed", proofs.failed)] {
                let [source] = source.clone();
                let labels = [source, ("result", result.to_owned())];
                self.proofs.get_or_create(&labels).set(whole(count));
            }
            for (metric, time) in [
                (&self.last_proof, proofs.newest),
                (&self.oldest_proof, proofs.oldest),
            ] {
                if let Some(time) = time {
                    metric
                        .get_or_create(&source)
                        .set(time.as_duration().as_secs_f64());
                }
            }
        }
        for sampled in &figures.sampled {
            let labels = [
                ("server", sampled.server.clone()),
                ("source", sampled.source.clone()),
            ];
            self.last_sample
                .get_or_create(&labels)
                .set(sampled.at.as_duration().as_secs_f64());
            self.sample_errors
                .get_or_create(&labels)
                .set(whole(sampled.errors));
        }
        for count in &figures.notifications {
            let labels = [
                ("channel", count.channel.clone()),
                ("outcome", count.outcome.clone()),
            ];
            self.notifications
                .get_or_create(&labels)
                .set(whole(count.number));
            // So that an age is there also while none waits.
            let channel = [("channel", count.channel.clone())];
            self.notifications_waiting.get_or_create(&channel).set(0);
            self.notification_age.get_or_create(&channel).set(0.0);
        }
        for waiting in &figures.notifications_waiting {
            let channel = [("channel", waiting.channel.clone())];
            self.notifications_waiting
                .get_or_create(&channel)
                .set(whole(waiting.number));
            self.notification_age
                .get_or_create(&channel)
                .set(waiting.oldest.as_secs_f64());
        }
    }

    /// Better nothing than what is not so any more.
    fn forget(&self) {
        self.is_up.set(0);
        self.jobs.clear();
        self.jobs_timed.clear();
        self.job_seconds.clear();
        self.job_bytes.clear();
        self.stuck.set(0);
        self.queue_age.set(0.0);
        self.last_backup.clear();
        self.last_sync.clear();
        self.proofs.clear();
        self.last_proof.clear();
        self.oldest_proof.clear();
        self.last_sample.clear();
        self.sample_errors.clear();
        self.notifications.clear();
        self.notifications_waiting.clear();
        self.notification_age.clear();
    }
}

/// All labels that jobs are counted by.
fn outcomes() -> impl Iterator<Item = Labels<2>> {
    JobType::ALL.iter().flat_map(|job_type| {
        let statuses = JobStatus::ALL.iter().map(|status| status.as_str());
        let labels = move |status| labels(*job_type, status);
        statuses.chain([CANCELLED]).map(labels)
    })
}

fn labels_of(count: &JobCount) -> Labels<2> {
    match count.failure {
        Some(Failure::Cancelled) => labels(count.job_type, CANCELLED),
        _ => labels(count.job_type, count.status.as_str()),
    }
}

fn labels(job_type: JobType, status: &str) -> Labels<2> {
    [
        ("type", job_type.to_string()),
        ("status", status.to_owned()),
    ]
}

/// A new one, under this name.
fn register<M: Metric + Clone + Default>(registry: &mut Registry, name: &str, help: &str) -> M {
    let metric = M::default();
    registry.register(name, help, metric.clone());
    metric
}

fn whole(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
