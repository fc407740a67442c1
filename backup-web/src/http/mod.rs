//! What is answered over HTTP: the dashboard, the API, and whether the service is there.
//!
//! It knows the façade and the database behind it, no repository and no site. Never: an answer to somebody who is not logged in, but for what
//! is merged here as open; another customer's anything.

mod acting;
mod activity;
mod admin;
mod api;
mod backups;
mod guard;
mod headers;
mod health;
mod input;
mod login;
mod metrics;
mod observe;
mod page_data;
mod platform;
mod refusal;
mod session;
pub mod site;
mod tries;

use axum::Router;
use axum::extract::{FromRef, Request};
use axum::http::header::ACCEPT;
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::{from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Redirect};
use axum::routing::get;
use backup_app::{App, shell};
use backup_core::error::Result;
use backup_core::service::BackupService;
use backup_core::worker::Stopping;
use leptos::config::LeptosOptions;
use leptos::context::provide_context;
use leptos_axum::{LeptosRoutes, generate_route_list, render_app_async_with_context};
use tokio::sync::watch;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;

use admin::Admins;
use api::Streams;
use headers::HasTls;
use login::Guesses;
use metrics::Metrics;
use refusal::{Refusal, Stylesheet};
use session::SessionCookie;
use site::Site;

pub use platform::PlatformLogin;

/// What every handler can ask for.
#[derive(Debug, Clone, FromRef)]
struct AppState {
    service: BackupService,
    leptos: LeptosOptions,
    cookie: SessionCookie,
    platform: Option<PlatformLogin>,
    guesses: Guesses,
    streams: Streams,
    metrics: Metrics,
    stylesheet: Stylesheet,
}

/// What is answered, and where.
pub struct Routers {
    /// At `server.listen`.
    pub dashboard: Router,
    /// At `server.metrics_listen`, where that is configured.
    pub metrics: Option<Router>,
}

/// All routes.
pub fn routers(
    service: BackupService,
    platform: Option<PlatformLogin>,
    Site {
        options: leptos,
        has_script,
    }: Site,
    stopping: watch::Receiver<Stopping>,
) -> Result<Routers> {
    let config = &service.config().server;
    let same_site = guard::same_site(config)?;
    let own_origin = guard::OwnOrigin::new(config);
    let has_tls = HasTls(config.has_tls());
    let has_own_listener = config.metrics_listen.is_some();
    let admins = Admins::read(config, has_tls)?;
    let stylesheet = Stylesheet(site::stylesheet(&leptos).map(Into::into));
    let state = AppState {
        cookie: SessionCookie::new(has_tls),
        platform,
        guesses: Guesses::default(),
        streams: Streams::new(stopping),
        metrics: Metrics::new(),
        stylesheet: stylesheet.clone(),
        service,
        leptos,
    };
    let open = health::router().merge(site::router(&state.leptos));
    let open = if has_own_listener {
        open
    } else {
        open.merge(metrics::beside_dashboard())
    };
    // The last comes first.
    let closed: Router = closed(&state, has_script)
        .layer(from_fn(page_data::answer))
        .layer(from_fn_with_state(state.clone(), session::admit))
        .with_state(state.clone());
    let admin = admins.map(|admins| admin::router(state.clone(), admins, closed.clone()));
    let dashboard = closed
        .merge(open.with_state(state.clone()))
        .merge(admin.unwrap_or_default())
        .layer(same_site)
        .layer(from_fn_with_state(own_origin, guard::own_origin))
        .layer(guard::size())
        .layer(guard::time())
        .layer(guard::panics())
        .layer(from_fn_with_state(stylesheet.clone(), refusal::render))
        .layer(from_fn_with_state(has_tls, headers::set))
        .layer(from_fn_with_state(state.metrics.clone(), observe::observe));
    let metrics = metrics::on_own_listener()
        .layer(guard::time())
        .layer(guard::panics())
        .layer(from_fn_with_state(stylesheet, refusal::render));
    Ok(Routers {
        dashboard,
        metrics: has_own_listener.then(|| metrics.with_state(state)),
    })
}

/// What a login is needed for; also what does not exist, for that is nobody's business either.
fn closed(state: &AppState, has_script: bool) -> Router<AppState> {
    let context = {
        let service = state.service.clone();
        move || {
            provide_context(service.clone());
            headers::allow_scripts_of_page();
        }
    };
    let document = {
        let leptos = state.leptos.clone();
        move || shell(leptos.clone(), has_script)
    };
    let (described, description) = OpenApiRouter::with_openapi(api::Description::openapi())
        .merge(login::router())
        .merge(backups::router())
        .merge(api::router())
        .merge(activity::router())
        .split_for_parts();
    let not_found = render_app_async_with_context(context.clone(), document.clone());
    Router::new()
        .route("/", get(|| async { Redirect::to("/backups") }))
        .merge(described)
        .merge(api::description(description))
        .merge(activity::page())
        .leptos_routes_with_context(state, generate_route_list(App), context, document)
        .fallback(move |request: Request| {
            let page = is_for_people(&request).then(|| not_found(request));
            async {
                match page {
                    Some(page) => (StatusCode::NOT_FOUND, page.await).into_response(),
                    None => Refusal::from(StatusCode::NOT_FOUND).into_response(),
                }
            }
        })
}

/// Whether an answer to this is looked at: what is below `/api/` is for programs, whatever they accept.
fn is_for_people(request: &Request) -> bool {
    asks_for_page(request.headers()) && !request.uri().path().starts_with("/api/")
}

/// Whether somebody looks at a page, or a program asks.
fn asks_for_page(headers: &HeaderMap) -> bool {
    headers
        .get_all(ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .any(|value| value.contains("text/html"))
}
