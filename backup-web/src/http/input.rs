//! What a POST says: a form or JSON, whichever the caller likes, and never much of it.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, FromRequest, Request};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use serde::de::{DeserializeOwned, IntoDeserializer};
use serde::{Deserialize, Deserializer};

use super::refusal::Refusal;

/// More than any form here has.
const MOST_BYTES: usize = 8 * 1024;

/// Until all of it is here, on the worst line.
const LONGEST: Duration = Duration::from_secs(10);

/// The fields of a POST. What is unknown, twice or not of its type is refused.
pub struct Input<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Input<T> {
    type Rejection = Refusal;

    async fn from_request(mut request: Request, state: &S) -> Result<Self, Refusal> {
        let content_type = request.headers().get(CONTENT_TYPE);
        let content_type = content_type
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default();
        let kind = content_type.split(';').next().unwrap_or_default().trim();
        let is_json = kind.eq_ignore_ascii_case("application/json");
        // Without a body there need not be a type of it.
        let is_form =
            kind.is_empty() || kind.eq_ignore_ascii_case("application/x-www-form-urlencoded");
        if !is_json && !is_form {
            return Err(Refusal::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "Please send a form or JSON.",
            ));
        }
        DefaultBodyLimit::max(MOST_BYTES).apply(&mut request);
        let body = tokio::time::timeout(LONGEST, Bytes::from_request(request, state)).await;
        let body = body.map_err(|_| Refusal::from(StatusCode::REQUEST_TIMEOUT))?;
        // Too much, or broken off in the middle.
        let body = body.map_err(|rejected| Refusal::from(rejected.status()))?;
        // Fields have names: serde would take a list of their values, too.
        let is_list = body.trim_ascii_start().first() == Some(&b'[');
        if is_json && is_list {
            return Err(Refusal::bad("That request could not be understood."));
        }
        let fields = if is_json {
            serde_json::from_slice(&body).map_err(|e| tracing::debug!("JSON: {e}"))
        } else {
            serde_urlencoded::from_bytes(&body).map_err(|e| tracing::debug!("a form: {e}"))
        };
        fields
            .map(Self)
            .map_err(|()| Refusal::bad("That request could not be understood."))
    }
}

/// One of the words of an enum. Serde would take an object for it, too: `{"files":null}`.
pub fn word<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    T::deserialize(String::deserialize(deserializer)?.into_deserializer())
}

/// `true` in JSON, or a box that is ticked in a form.
pub fn checkbox<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Said {
        Json(bool),
        Form(#[serde(deserialize_with = "word")] Tick),
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Tick {
        On,
        True,
        False,
    }
    Ok(match Said::deserialize(deserializer)? {
        Said::Json(is) => is,
        Said::Form(Tick::On | Tick::True) => true,
        Said::Form(Tick::False) => false,
    })
}
