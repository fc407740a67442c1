//! What is answered over HTTP: the dashboard, the API, and whether the service is there.
//!
//! It knows the façade and the database behind it, no repository and no site. Never: an answer to somebody who is not logged in, but for what
//! says here that it needs no login; another customer's anything.

mod health;
mod input;
mod login;
mod refusal;
mod session;
pub mod site;
mod tries;

use axum::Router;
use axum::extract::{FromRef, Request};
use axum::http::header::ACCEPT;
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::{from_fn, from_fn_with_state};
use axum::response::Redirect;
use axum::routing::get;
use backup_app::{App, shell};
use backup_core::service::BackupService;
use leptos::config::LeptosOptions;
use leptos::context::provide_context;
use leptos_axum::{LeptosRoutes, generate_route_list, render_app_async_with_context};

use login::Guesses;
use session::SessionCookie;

/// What every handler can ask for.
#[derive(Debug, Clone, FromRef)]
struct AppState {
    service: BackupService,
    leptos: LeptosOptions,
    cookie: SessionCookie,
    guesses: Guesses,
}

/// All routes.
pub fn router(service: BackupService, leptos: LeptosOptions) -> Router {
    let state = AppState {
        cookie: SessionCookie::new(&service.config().server),
        guesses: Guesses::default(),
        service,
        leptos,
    };
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
        .route("/", get(|| async { Redirect::to("/backups") }))
        .merge(health::router())
        .merge(login::router())
        .merge(site::router(&state.leptos))
        .leptos_routes_with_context(&state, generate_route_list(App), context, document)
        .fallback(move |request: Request| {
            let page = not_found(request);
            async { (StatusCode::NOT_FOUND, page.await) }
        })
        .layer(from_fn_with_state(state.clone(), session::admit))
        .layer(from_fn(refusal::render))
        .with_state(state)
}

/// Whether somebody looks at a page, or a program asks.
fn asks_for_page(headers: &HeaderMap) -> bool {
    headers
        .get_all(ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .any(|value| value.contains("text/html"))
}
