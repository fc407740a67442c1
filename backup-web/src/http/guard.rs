//! What no handler has to think of: requests that another site had sent, that are too large, or that take too long, and panics.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::header::ORIGIN;
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use backup_core::config::ServerConfig;
use backup_core::error::{Error, ErrorKind, Result};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::csrf::{CsrfLayer, ProtectionError};
use tower_http::limit::RequestBodyLimitLayer;
use tower_http::timeout::TimeoutLayer;

use super::refusal::Refusal;

/// Far more than any request here says.
const MOST_BYTES: usize = 64 * 1024;

/// Until an answer begins; what an event stream says later is no matter of this.
const LONGEST: Duration = Duration::from_secs(30);

type Refuse<E> = fn(E) -> Response;

/// Refuse what another site makes a browser send. What says nothing of where it is from is no browser.
pub fn same_site(config: &ServerConfig) -> Result<CsrfLayer<Refuse<ProtectionError>>> {
    let layer = CsrfLayer::new();
    let layer = match &config.public_url {
        None => layer,
        Some(url) => layer
            .add_trusted_origin(url.origin().ascii_serialization())
            .map_err(|e| {
                Error::caused(
                    ErrorKind::Configuration,
                    "server.public_url cannot be used for the check of origins",
                    e,
                )
            })?,
    };
    Ok(layer.with_rejection_response(|_| of_another_site()))
}

/// Where browsers reach us, if that is configured.
#[derive(Debug, Clone)]
pub struct OwnOrigin(Option<Arc<str>>);

impl OwnOrigin {
    pub fn new(config: &ServerConfig) -> Self {
        let url = config.public_url.as_ref();
        Self(url.map(|url| url.origin().ascii_serialization().into()))
    }
}

/// Where it is known which origin is ours, no other is: a `Host` that agrees with the `Origin` proves nothing, for a name of anybody's may lead here.
pub async fn own_origin(State(own): State<OwnOrigin>, request: Request, next: Next) -> Response {
    let is_reading = [Method::GET, Method::HEAD, Method::OPTIONS].contains(request.method());
    let mut origins = request.headers().get_all(ORIGIN).iter();
    match own.0 {
        Some(own) if !is_reading && origins.any(|origin| origin != &*own) => of_another_site(),
        _ => next.run(request).await,
    }
}

fn of_another_site() -> Response {
    Refusal::new(
        StatusCode::FORBIDDEN,
        "This request came from another site and was not carried out.",
    )
    .into_response()
}

pub fn size() -> RequestBodyLimitLayer {
    RequestBodyLimitLayer::new(MOST_BYTES)
}

pub fn time() -> TimeoutLayer {
    TimeoutLayer::with_status_code(StatusCode::SERVICE_UNAVAILABLE, LONGEST)
}

/// A fault of ours is one request's, not the server's.
pub fn panics() -> CatchPanicLayer<Refuse<Box<dyn Any + Send>>> {
    CatchPanicLayer::custom(|_| {
        tracing::error!("a request met a fault in the program");
        Refusal::from(StatusCode::INTERNAL_SERVER_ERROR).into_response()
    })
}
