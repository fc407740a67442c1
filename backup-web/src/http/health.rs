//! `/healthz` and `/readyz`: for whoever watches the service. No login.

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use backup_core::service::BackupService;

use super::AppState;

pub fn router() -> Router<AppState> {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
}

/// Whether requests can be answered: the database is there.
async fn readyz(State(service): State<BackupService>) -> (StatusCode, &'static str) {
    match service.jobs(None, 1).await {
        Ok(_) => (StatusCode::OK, "ok\n"),
        Err(error) => {
            tracing::warn!("not ready: {}", error.chain());
            (
                StatusCode::SERVICE_UNAVAILABLE,
                "the database cannot be reached\n",
            )
        }
    }
}
