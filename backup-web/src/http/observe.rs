//! One line in the log and one count for each request, and the id that ties all lines of it together.
//!
//! Never: a path, a query, a cookie or a body in the log; only the route that matched.

use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use tracing::Instrument;

use super::metrics::Metrics;

const HEADER: HeaderName = HeaderName::from_static("x-request-id");

/// What a request is called: by the proxy before us, or by us.
#[derive(Debug, Clone)]
pub struct RequestId(pub String);

/// Outermost of all.
pub async fn observe(State(metrics): State<Metrics>, mut request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let id = id_of(request.headers());
    let method = request.method().clone();
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or_else(|| "-".to_owned(), |path| path.as_str().to_owned());
    let span = tracing::info_span!("request", id);
    request.extensions_mut().insert(RequestId(id.clone()));
    async {
        let mut response = next.run(request).await;
        let (status, took) = (response.status(), begun.elapsed());
        metrics.answered(&method, &route, status, took);
        tracing::info!(
            %method, route, status = status.as_u16(), ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            "answered"
        );
        if let Ok(value) = HeaderValue::try_from(id) {
            response.headers_mut().insert(HEADER, value);
        }
        response
    }
    .instrument(span)
    .await
}

fn id_of(headers: &HeaderMap) -> String {
    const LONGEST: usize = 64;
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    headers
        .get(HEADER)
        .and_then(|value| value.to_str().ok())
        .filter(|id| (1..=LONGEST).contains(&id.len()) && id.bytes().all(is_plain))
        .map_or_else(|| format!("{:032x}", rand::random::<u128>()), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_from_outside_is_taken_only_if_it_is_harmless() {
        let id = |said: &'static str| {
            id_of(&HeaderMap::from_iter([(
                HEADER,
                HeaderValue::from_static(said),
            )]))
        };
        assert_eq!(id("abc-123_x.y"), "abc-123_x.y");
        for bad in ["", "a b", "a\tb", "<b>", "a\"b"] {
            assert_eq!(id(bad).len(), 32, "{bad}");
        }
        assert_eq!(id_of(&HeaderMap::new()).len(), 32);
        assert_ne!(id_of(&HeaderMap::new()), id_of(&HeaderMap::new()));
    }
}
