//! What is answered over HTTP: the dashboard, the API, and whether the service is there.
//!
//! It knows the façade and the database behind it, no repository and no site. Never: an answer to somebody who is not logged in, but for what
//! says here that it needs no login; another customer's anything.

mod health;

use axum::Router;
use axum::extract::FromRef;
use backup_app::{App, shell};
use backup_core::service::BackupService;
use leptos::config::LeptosOptions;
use leptos::context::provide_context;
use leptos_axum::{LeptosRoutes, file_and_error_handler, generate_route_list};

/// What every handler can ask for.
#[derive(Debug, Clone, FromRef)]
struct AppState {
    service: BackupService,
    leptos: LeptosOptions,
}

/// All routes.
pub fn router(service: BackupService, leptos: LeptosOptions) -> Router {
    let state = AppState { service, leptos };
    let context = {
        let service = state.service.clone();
        move || provide_context(service.clone())
    };
    let document = {
        let leptos = state.leptos.clone();
        move || shell(leptos.clone())
    };
    Router::new()
        .merge(health::router())
        .leptos_routes_with_context(&state, generate_route_list(App), context, document)
        .fallback(file_and_error_handler::<AppState, _>(shell))
        .with_state(state)
}
