//! What is answered over HTTP: the dashboard, the API, and whether the service is there.
//!
//! It knows the façade and the database behind it, no repository and no site. Never: an answer to somebody who is not logged in, but for what
//! says here that it needs no login; another customer's anything.

mod health;
pub mod site;

use axum::Router;
use axum::extract::{FromRef, Request};
use axum::http::StatusCode;
use backup_app::{App, shell};
use backup_core::service::BackupService;
use leptos::config::LeptosOptions;
use leptos::context::provide_context;
use leptos_axum::{LeptosRoutes, generate_route_list, render_app_async_with_context};

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
    let not_found = render_app_async_with_context(context.clone(), document.clone());
    Router::new()
        .merge(health::router())
        .merge(site::router(&state.leptos))
        .leptos_routes_with_context(&state, generate_route_list(App), context, document)
        .fallback(move |request: Request| {
            let page = not_found(request);
            async { (StatusCode::NOT_FOUND, page.await) }
        })
        .with_state(state)
}
