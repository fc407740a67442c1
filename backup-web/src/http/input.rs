//! What a POST says: a form or JSON, whichever the caller likes, and never much of it.

use axum::body::to_bytes;
use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};

use super::refusal::Refusal;

/// More than any form here has.
const MOST_BYTES: usize = 8 * 1024;

/// The fields of a POST. What is unknown, twice or not of its type is refused.
pub struct Input<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Input<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, _: &S) -> Result<Self, Refusal> {
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
        let body = to_bytes(request.into_body(), MOST_BYTES).await;
        let body = body.map_err(|_| {
            Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "That is too much at once.")
        })?;
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

/// `true` in JSON, or a box that is ticked in a form.
pub fn checkbox<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Said {
        Json(bool),
        Form(Tick),
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
