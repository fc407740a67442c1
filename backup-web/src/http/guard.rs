//! What no handler has to think of: requests that another site had sent, that are too large, or that take too long, and panics.

use std::any::Any;
use std::time::Duration;

use axum::http::StatusCode;
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
    Ok(layer.with_rejection_response(|_| {
        Refusal::new(
            StatusCode::FORBIDDEN,
            "This request came from another site and was not carried out.",
        )
        .into_response()
    }))
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
