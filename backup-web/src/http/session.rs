//! Who asks: the cookie, and the gate that everything but the login is behind.
//!
//! Behind it only `/login` is open; a route that nobody thought of is closed. Where the platform logs customers in, [`super::platform`] is the gate
//! in its place. Never: a customer taken from anything but the session.

use axum::Json;
use axum::extract::{Request, State};
use axum::http::header::{COOKIE, SET_COOKIE};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Redirect, Response};
use backup_app::data::PageError;
use backup_app::model::Flash;
use backup_app::visit::Visit;
use backup_core::error::Result;
use backup_core::service::BackupService;
use backup_core::session::{Presence, SessionToken};
use jiff::tz::TimeZone;

use super::headers::HasTls;
use super::refusal::Refusal;
use super::{AppState, is_for_people, login, page_data};

/// The browser says his time zone with this one.
const ZONE_COOKIE: &str = "tz";

/// What was typed as an email address is kept in this one.
const TYPED_COOKIE: &str = "typed-email";
const LONGEST_EMAIL: usize = 254;

/// What the next page tells, where there is no session of ours to leave it in.
const MESSAGE_COOKIE: &str = "backup-message";

/// The cookie that a session is held with.
#[derive(Debug, Clone, Copy)]
pub struct SessionCookie {
    is_secure: bool,
}

impl SessionCookie {
    pub fn new(HasTls(is_secure): HasTls) -> Self {
        Self { is_secure }
    }

    /// The prefix makes a browser refuse a cookie of this name that a neighbour host or a page without TLS sets.
    fn name(self) -> &'static str {
        if self.is_secure {
            "__Host-shophosting"
        } else {
            "shophosting"
        }
    }

    /// For as long as the browser is open.
    pub fn holding(self, token: &SessionToken) -> HeaderValue {
        let mut cookie = self.with_attributes(&format!("{}={}", self.name(), token.expose()));
        cookie.set_sensitive(true);
        cookie
    }

    pub fn removed(self) -> HeaderValue {
        self.with_attributes(&format!("{}=; Max-Age=0", self.name()))
    }

    /// What somebody typed who was not let in: for the next page alone, and at most a minute.
    pub fn keeping_typed(self, email: &str) -> Option<HeaderValue> {
        // What would have to be spelled in another way is not kept.
        let is_plain = |b: u8| b.is_ascii_graphic() && !matches!(b, b'"' | b',' | b';' | b'\\');
        if !(1..=LONGEST_EMAIL).contains(&email.len()) || !email.bytes().all(is_plain) {
            return None;
        }
        let mut cookie = self.with_attributes(&format!("{TYPED_COOKIE}={email}; Max-Age=60"));
        cookie.set_sensitive(true);
        Some(cookie)
    }

    pub fn without_typed(self) -> HeaderValue {
        self.with_attributes(&format!("{TYPED_COOKIE}=; Max-Age=0"))
    }

    /// For the next page alone, and at most a minute.
    pub fn keeping_message(self, sealed: &str) -> HeaderValue {
        self.with_attributes(&format!("{MESSAGE_COOKIE}={sealed}; Max-Age=60"))
    }

    pub fn without_message(self) -> HeaderValue {
        self.with_attributes(&format!("{MESSAGE_COOKIE}=; Max-Age=0"))
    }

    fn with_attributes(self, cookie: &str) -> HeaderValue {
        let secure = if self.is_secure { "; Secure" } else { "" };
        let text = format!("{cookie}; Path=/; HttpOnly; SameSite=Lax{secure}");
        // Made of letters, digits and the signs above.
        HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static(""))
    }

    /// Whether the browser holds one at all, and the token in it if it can be one.
    fn of(self, headers: &HeaderMap) -> Option<Option<SessionToken>> {
        cookie(headers, self.name()).map(SessionToken::from_text)
    }
}

/// Let those in who are logged in, and tell the handlers who it is.
pub async fn admit(State(state): State<AppState>, request: Request, next: Next) -> Response {
    match &state.platform {
        Some(platform) => platform.admit(&state, request, next).await,
        None => admit_session(&state, request, next).await,
    }
}

async fn admit_session(state: &AppState, mut request: Request, next: Next) -> Response {
    let is_login = request.uri().path() == "/login";
    let held = state.cookie.of(request.headers());
    let token = held.clone().flatten();
    let presence = presence(&request);
    let session = match &token {
        Some(token) => match state.service.sessions().find(token, presence).await {
            Ok(session) => session,
            // Whoever is at the login anyway is told there.
            Err(_) if is_login => None,
            Err(error) => return Refusal::from(error).into_response(),
        },
        None => None,
    };
    let is_reading = [Method::GET, Method::HEAD].contains(request.method());
    let is_page = request.method() == Method::GET && is_for_people(&request);
    let zone = zone(request.headers());
    match (session, token) {
        (Some(_), _) if is_login && is_reading => Redirect::to("/backups").into_response(),
        (Some(session), Some(token)) => {
            let flash = match session.flash {
                Some(text) if is_page => taken(&state.service, &token, &text).await,
                _ => None,
            };
            request.extensions_mut().insert(Visit {
                customer: session.account.id,
                name: session.account.name,
                flash,
                zone,
                account_page: None,
            });
            request.extensions_mut().insert(token.clone());
            let response = next.run(request).await;
            leave(&state.service, &token, response).await
        }
        _ if is_login => login::recall(state.cookie, request, next).await,
        _ => {
            let place = if held.is_some() {
                "/login?problem=expired"
            } else {
                "/login"
            };
            let mut response = refuse(&request, place);
            if held.is_some() {
                let removed = state.cookie.removed();
                response.headers_mut().append(SET_COOKIE, removed);
            }
            response
        }
    }
}

/// Whether whoever makes this request is logged in as a customer.
pub async fn is_customers(state: &AppState, headers: &HeaderMap) -> Result<bool> {
    if let Some(platform) = &state.platform {
        return Ok(platform.account(&state.service, headers).await?.is_some());
    }
    let Some(token) = state.cookie.of(headers).flatten() else {
        return Ok(false);
    };
    let sessions = state.service.sessions();
    let session = sessions.find(&token, Presence::Background).await?;
    Ok(session.is_some())
}

/// Pages say of themselves when they only look for news; streams of events are nothing else.
fn presence(request: &Request) -> Presence {
    let is_background = request.headers().contains_key("x-background")
        || request.uri().path() == "/api/backups/events";
    if is_background {
        Presence::Background
    } else {
        Presence::Person
    }
}

/// Nobody is logged in: a browser is sent to `place`, where one logs in.
pub fn refuse(request: &Request, place: &str) -> Response {
    if request.uri().path().starts_with(page_data::PREFIX) {
        // As the pages' own functions answer.
        return (StatusCode::UNAUTHORIZED, Json(PageError::LoggedOut)).into_response();
    }
    if !is_for_people(request) {
        return Refusal::logged_out().into_response();
    }
    Redirect::to(place).into_response()
}

/// What a handler wants the next page to tell is left in the session.
async fn leave(service: &BackupService, token: &SessionToken, mut response: Response) -> Response {
    let Some(flash) = response.extensions_mut().remove::<Flash>() else {
        return response;
    };
    let Ok(text) = serde_json::to_string(&flash) else {
        return Refusal::from(StatusCode::INTERNAL_SERVER_ERROR).into_response();
    };
    match service.sessions().leave_flash(token, &text).await {
        Ok(()) => response,
        Err(error) => Refusal::from(error).into_response(),
    }
}

/// The message for the next page, told once.
async fn taken(service: &BackupService, token: &SessionToken, text: &str) -> Option<Flash> {
    match service.sessions().take_flash(token).await {
        Ok(is_ours) => is_ours.then(|| serde_json::from_str(text).ok()).flatten(),
        Err(error) => {
            tracing::warn!("a message stays for the next page: {}", error.chain());
            None
        }
    }
}

/// The zone that the browser says, if there is such a one.
pub fn zone(headers: &HeaderMap) -> String {
    const LONGEST: usize = 64;
    let said = cookie(headers, ZONE_COOKIE)
        .unwrap_or_default()
        .replace("%2F", "/");
    let is_name = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'_' | b'-' | b'+');
    let known = (said.len() <= LONGEST && said.bytes().all(is_name))
        .then(|| TimeZone::get(&said).ok())
        .flatten();
    known
        .as_ref()
        .and_then(TimeZone::iana_name)
        .unwrap_or("UTC")
        .to_owned()
}

/// What [`SessionCookie::keeping_typed`] kept.
pub fn typed(headers: &HeaderMap) -> Option<&str> {
    cookie(headers, TYPED_COOKIE).filter(|typed| !typed.is_empty())
}

/// What [`SessionCookie::keeping_message`] kept, and what a neighbour may have planted beside it.
pub fn messages(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    cookies(headers, MESSAGE_COOKIE)
}

fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    cookies(headers, name).next()
}

/// All of a name: a neighbour host may have set one more.
pub fn cookies<'a>(headers: &'a HeaderMap, name: &str) -> impl Iterator<Item = &'a str> {
    headers
        .get_all(COOKIE)
        .iter()
        // What a neighbour put beside it may be no ASCII, and is nothing to those of this name.
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b';'))
        .filter_map(|pair| std::str::from_utf8(pair).ok()?.trim().split_once('='))
        .filter_map(move |(found, value)| (found == name).then_some(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(cookies: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(COOKIE, HeaderValue::from_static(cookies))])
    }

    #[test]
    fn cookies_that_are_no_text_hide_no_other() {
        for bytes in [
            b"name=M\xc3\xbcller; shophosting=b".as_slice(),
            b"shophosting=b; x=\xff",
        ] {
            let value = HeaderValue::from_bytes(bytes).unwrap();
            let headers = HeaderMap::from_iter([(COOKIE, value)]);
            assert_eq!(cookie(&headers, "shophosting"), Some("b"));
        }
    }

    #[test]
    fn a_cookie_is_found_by_its_whole_name() {
        let headers = headers("xshophosting=a; shophosting=b; shophosting2=c");
        assert_eq!(cookie(&headers, "shophosting"), Some("b"));
        assert_eq!(cookie(&headers, "hosting"), None);
    }

    #[test]
    fn a_zone_is_believed_only_if_there_is_one() {
        for (said, is) in [
            ("tz=Europe/Berlin", "Europe/Berlin"),
            ("tz=Europe%2FBerlin", "Europe/Berlin"),
            ("a=b; tz=america/new_york", "America/New_York"),
            ("tz=../../etc/passwd", "UTC"),
            ("tz=/etc/localtime", "UTC"),
            ("tz=Mars/Olympus", "UTC"),
            ("tz=<script>", "UTC"),
            ("tz=", "UTC"),
            ("", "UTC"),
        ] {
            assert_eq!(zone(&headers(said)), is, "{said}");
        }
    }
}
