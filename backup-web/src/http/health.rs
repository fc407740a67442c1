//! `/healthz` and `/readyz`: for whoever watches the service. No login.

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use backup_core::service::BackupService;

use super::AppState;
use super::refusal::Refusal;

pub fn router() -> Router<AppState> {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
}

/// Whether requests can be answered: the database is there.
async fn readyz(State(service): State<BackupService>) -> Result<&'static str, Refusal> {
    match service.ready().await {
        Ok(()) => Ok("ok\n"),
        Err(error) => {
            tracing::warn!("not ready: {}", error.chain());
            Err(Refusal::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "The database cannot be reached.",
            ))
        }
    }
}
