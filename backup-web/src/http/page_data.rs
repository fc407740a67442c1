//! `/api/page/*`: what the pages' own functions answer, with the status that it deserves.
//!
//! Never: a redirect to where the request says that it came from.

use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::http::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, REFERER};
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use backup_app::data::PageError;

use super::refusal::Refusal;

pub const PREFIX: &str = "/api/page/";

const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// Far more than an error says.
const MOST_BYTES: usize = 4 * 1024;

/// The framework calls every error a 500, and sends a browser back to its `Referer`.
pub async fn answer(mut request: Request, next: Next) -> Response {
    if !request.uri().path().starts_with(PREFIX) {
        return next.run(request).await;
    }
    request.headers_mut().remove(REFERER);
    request.headers_mut().insert(ACCEPT, JSON);
    let response = next.run(request).await;
    if response.status() != StatusCode::INTERNAL_SERVER_ERROR {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let error = to_bytes(body, MOST_BYTES).await.ok();
    let error = error.and_then(|text| serde_json::from_slice::<PageError>(&text).ok());
    let Some(error) = error else {
        return Refusal::from(StatusCode::INTERNAL_SERVER_ERROR).into_response();
    };
    parts.status = match error {
        PageError::LoggedOut => StatusCode::UNAUTHORIZED,
        PageError::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        // On this side of the network: what was sent cannot be understood.
        PageError::Unreachable => StatusCode::BAD_REQUEST,
    };
    parts.headers.remove(CONTENT_LENGTH);
    parts.headers.insert(CONTENT_TYPE, JSON);
    match serde_json::to_vec(&error) {
        Ok(text) => Response::from_parts(parts, Body::from(text)),
        Err(_) => Refusal::from(StatusCode::INTERNAL_SERVER_ERROR).into_response(),
    }
}
