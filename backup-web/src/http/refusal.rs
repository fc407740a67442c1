//! What is refused or fails: a status, and one plain sentence. The cause goes to the log.
//!
//! Handlers return a [`Refusal`]; [`render`] makes a document of it, for programs JSON and for people a small page. Never: a cause, a path, a host
//! or SQL in an answer.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::header::{CONTENT_LENGTH, CONTENT_SECURITY_POLICY, CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{Html, IntoResponse, Response};
use backup_app::model::Outcome;
use backup_core::error::{Error, ErrorKind};
use serde::Serialize;

use super::observe::RequestId;
use super::{headers, is_for_people};

/// A request that is not done.
#[derive(Debug, Clone)]
pub struct Refusal {
    pub status: StatusCode,
    pub message: String,
    /// Seconds after which it may be tried again.
    pub retry_after: Option<u64>,
    /// What a page leads to, and what it calls that, where it is not the customer's backups.
    pub way_on: Option<(Arc<str>, &'static str)>,
}

impl Refusal {
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
            retry_after: None,
            way_on: None,
        }
    }

    pub fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// The same for one that does not exist and for another's.
    pub fn no_backup() -> Self {
        Self::new(StatusCode::NOT_FOUND, "There is no such backup.")
    }

    /// The same for one that does not exist and for another's.
    pub fn no_job() -> Self {
        Self::new(StatusCode::NOT_FOUND, "There is no such job.")
    }

    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, message)
    }

    pub fn logged_out() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "Please log in first.")
    }

    /// Of who it is there is no doubt, but the platform does not let him use what he has.
    pub fn inactive() -> Self {
        Self::new(
            StatusCode::FORBIDDEN,
            "This account is not active. Please contact support.",
        )
    }

    /// Where the platform does it, there is no logging in or out here.
    pub fn at_platform() -> Self {
        Self::new(
            StatusCode::FORBIDDEN,
            "Logging in and out is done in your hosting account, not here.",
        )
    }

    /// There is a session of the platform, which lets nobody in here. The platform may take it for a good one and send the browser straight back: so
    /// it is not led there by itself.
    pub fn session_of_platform(message: impl Into<String>, login: &Arc<str>) -> Self {
        Self {
            way_on: Some((Arc::clone(login), "Sign in there")),
            ..Self::new(StatusCode::UNAUTHORIZED, message)
        }
    }

    /// As it is told to programs, and to pages.
    pub fn outcome(&self) -> Outcome {
        Outcome {
            success: false,
            message: self.message.clone(),
            job_id: None,
        }
    }
}

/// With what there is to say of a status.
impl From<StatusCode> for Refusal {
    fn from(status: StatusCode) -> Self {
        Self::new(status, in_words(status))
    }
}

/// Failures of the library. What is not the caller's fault is logged here, once.
impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        let (status, message) = match error.kind() {
            ErrorKind::InvalidInput => (
                StatusCode::BAD_REQUEST,
                "That request could not be understood.",
            ),
            ErrorKind::NotFound => return Self::no_backup(),
            ErrorKind::Busy => (
                StatusCode::SERVICE_UNAVAILABLE,
                "Too much is going on just now. Please try again in a moment.",
            ),
            ErrorKind::Unreachable
            | ErrorKind::Timeout
            | ErrorKind::Refused
            | ErrorKind::NoSpace => (
                StatusCode::SERVICE_UNAVAILABLE,
                "Your backups cannot be looked up just now. They are safe; please try again in a minute.",
            ),
            _ => (
                StatusCode::INTERNAL_SERVER_ERROR,
                "Something went wrong on our side. Please contact support.",
            ),
        };
        if status.is_server_error() {
            tracing::error!("{}", error.chain());
        } else {
            tracing::debug!("{}", error.chain());
        }
        Self {
            status,
            message: message.to_owned(),
            retry_after: (status == StatusCode::SERVICE_UNAVAILABLE).then_some(10),
            way_on: None,
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(RETRY_AFTER, seconds.into());
        }
        response.extensions_mut().insert(self);
        response
    }
}

/// Give every refusal its document, also those that have nothing but a status.
pub async fn render(
    State(stylesheet): State<Stylesheet>,
    request: Request,
    next: Next,
) -> Response {
    let is_for_people = is_for_people(&request);
    let is_shown_again = request.method() == Method::GET;
    let id = request.extensions().get::<RequestId>().cloned();
    let response = next.run(request).await;
    let is_refused = response.status().is_client_error() || response.status().is_server_error();
    // What the framework says of a path or a body that it does not understand is for programmers.
    let content_type = response.headers().get(CONTENT_TYPE);
    let is_bare = content_type.is_none_or(|is| is.as_bytes().starts_with(b"text/plain"));
    if !is_refused || !is_bare {
        return response;
    }
    let status = response.status();
    let (mut parts, _) = response.into_parts();
    let refusal = parts
        .extensions
        .remove::<Refusal>()
        .unwrap_or_else(|| Refusal::from(status));
    parts.headers.remove(CONTENT_LENGTH);
    parts.headers.remove(CONTENT_TYPE);
    let id = id.map(|RequestId(id)| id).unwrap_or_default();
    let document = if is_for_people {
        page(&refusal, is_shown_again, &id, &stylesheet)
    } else {
        let outcome = refusal.outcome();
        Json(Document {
            outcome,
            request_id: &id,
        })
        .into_response()
    };
    merge(document, status, parts.headers)
}

/// What people see. What they wanted to look at can be tried again, what they sent cannot: nobody knows what of it was done.
fn page(
    refusal: &Refusal,
    is_shown_again: bool,
    id: &str,
    Stylesheet(stylesheet): &Stylesheet,
) -> Response {
    let for_support = if refusal.status.is_server_error() {
        format!(
            "<p class=\"quiet\"><small>If you ask for help, please say this number: <code>{id}</code></small></p>"
        )
    } else {
        String::new()
    };
    let (place, name) = match (&refusal.way_on, refusal.status) {
        (Some((place, name)), _) => (place.replace('&', "&amp;"), *name),
        (None, StatusCode::SERVICE_UNAVAILABLE) if is_shown_again => (String::new(), "Try again"),
        (None, _) => ("/backups".to_owned(), "Go to your backups"),
    };
    let heading = match refusal.status {
        StatusCode::SERVICE_UNAVAILABLE => "This does not work right now",
        status => in_words(status).trim_end_matches('.'),
    };
    let message = if refusal.message.trim_end_matches('.') == heading {
        String::new()
    } else {
        format!("<p>{}</p>", refusal.message)
    };
    let style = stylesheet
        .as_ref()
        .map(|place| format!("<link rel=\"stylesheet\" href=\"{place}\">"))
        .unwrap_or_default();
    // Sentences, ids and the names of the bundle are without any sign that means something to HTML; of such signs an address has `&` alone.
    let page = Html(format!(
        "<!DOCTYPE html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <meta name=\"color-scheme\" content=\"light dark\">{style}\
         <title>{heading} · ShopHosting Backups</title></head><body><main id=\"main\" class=\"alone\">\
         <p class=\"brand\"><span>ShopHosting <b>Backups</b></span></p><section class=\"panel\">\
         <h1>{heading}</h1>{message}<p><a class=\"button primary\" href=\"{place}\">{name}</a></p>{for_support}</section></main></body></html>\n"
    ));
    ([(CONTENT_SECURITY_POLICY, headers::STYLE_ALONE)], page).into_response()
}

/// Where the style of pages is, if there is one.
#[derive(Debug, Clone)]
pub struct Stylesheet(pub Option<Arc<str>>);

/// What a program is told.
#[derive(Serialize)]
struct Document<'a> {
    #[serde(flatten)]
    outcome: Outcome,
    request_id: &'a str,
}

fn merge(mut document: Response, status: StatusCode, headers: HeaderMap) -> Response {
    *document.status_mut() = status;
    document.headers_mut().extend(headers);
    document
}

fn in_words(status: StatusCode) -> &'static str {
    match status {
        StatusCode::BAD_REQUEST => "That request could not be understood.",
        StatusCode::UNAUTHORIZED => "Please log in first.",
        StatusCode::FORBIDDEN => "That is not allowed.",
        StatusCode::NOT_FOUND => "There is nothing here.",
        StatusCode::METHOD_NOT_ALLOWED => "That cannot be done here.",
        StatusCode::REQUEST_TIMEOUT | StatusCode::GATEWAY_TIMEOUT => "It took too long.",
        StatusCode::PAYLOAD_TOO_LARGE => "That is too much at once.",
        StatusCode::TOO_MANY_REQUESTS => "Please wait a moment.",
        StatusCode::SERVICE_UNAVAILABLE => "Please try again in a moment.",
        _ if status.is_client_error() => "That request could not be understood.",
        _ => "Something went wrong on our side.",
    }
}
