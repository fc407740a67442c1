//! Who asks, where customers log in at the platform: its cookie, proven at each request. The gate in the place of our own.
//!
//! Nothing is kept of a session of the platform, so it ends here when it ends there: with the cookie. Never: a password that counts; a session of ours
//! that does; a form that is answered by a redirect to the platform, for browsers let our pages post to nobody else; a browser sent to the platform with a
//! session that counts there and not here, for it would be sent back and forth.

use std::sync::Arc;

use axum::extract::Request;
use axum::http::header::SET_COOKIE;
use axum::http::{HeaderMap, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Redirect, Response};
use backup_app::model::Flash;
use backup_app::visit::Visit;
use backup_core::config::ServerConfig;
use backup_core::customer::{Account, CustomerId};
use backup_core::error::Result;
use backup_core::login::{PlatformSessions, Unproven};
use backup_core::service::BackupService;
use jiff::Timestamp;

use super::refusal::Refusal;
use super::session::{self, SessionCookie};
use super::{AppState, is_for_people, page_data};

/// How customers log in at the platform.
#[derive(Debug, Clone)]
pub struct PlatformLogin {
    sessions: PlatformSessions,
    /// The name of its cookie.
    cookie: Arc<str>,
    /// Where they do it.
    place: Arc<str>,
    /// What people call that.
    host: Arc<str>,
}

/// Whom the platform has let in.
enum Admitted {
    Customer(Account),
    /// Nobody, and it would say so itself.
    Nobody,
    /// Somebody, perhaps: there is a session of it, which does not count here.
    Unproven,
    /// Somebody who is no customer.
    Stranger,
}

impl PlatformLogin {
    /// As it is configured; None where customers log in here.
    pub fn read(config: &ServerConfig) -> Result<Option<Self>> {
        let sessions = PlatformSessions::read(config)?;
        let place = config.platform_login_url.as_ref();
        Ok(sessions.zip(place).map(|(sessions, place)| Self {
            sessions,
            cookie: config.platform_cookie.as_str().into(),
            host: place.host_str().unwrap_or_default().into(),
            place: place.as_str().into(),
        }))
    }

    /// Let those in whom the platform has let in, and tell the handlers who it is.
    pub(super) async fn admit(
        &self,
        state: &AppState,
        mut request: Request,
        next: Next,
    ) -> Response {
        let is_login = request.uri().path() == "/login";
        let is_reading = [Method::GET, Method::HEAD].contains(request.method());
        if is_login && !is_reading {
            return Refusal::at_platform().into_response();
        }
        let admitted = match self.admitted(&state.service, request.headers()).await {
            Ok(admitted) => admitted,
            Err(error) => return Refusal::from(error).into_response(),
        };
        match admitted {
            Admitted::Customer(account) if !account.is_active => refuse_inactive(&request),
            Admitted::Customer(_) if is_login => Redirect::to("/backups").into_response(),
            Admitted::Customer(account) => {
                let customer = account.id;
                let is_page = request.method() == Method::GET && is_for_people(&request);
                let (is_told, flash) = {
                    let messages = session::messages(request.headers()).filter(|_| is_page);
                    let mut messages = messages.peekable();
                    let is_told = messages.peek().is_some();
                    (
                        is_told,
                        messages.find_map(|sealed| self.told(customer, sealed)),
                    )
                };
                let visit = Visit {
                    customer,
                    name: account.name,
                    flash,
                    zone: session::zone(request.headers()),
                    account_page: Some(self.place.to_string()),
                };
                request.extensions_mut().insert(visit);
                let mut response = next.run(request).await;
                if is_told {
                    let told = state.cookie.without_message();
                    response.headers_mut().append(SET_COOKIE, told);
                }
                self.leave(state.cookie, customer, response)
            }
            Admitted::Nobody if is_reading && (is_login || is_for_people(&request)) => {
                Redirect::to(&self.place).into_response()
            }
            Admitted::Unproven if is_reading && is_for_people(&request) => self.refuse(format!(
                "Your sign-in at {} has expired; sign in there again.",
                self.host
            )),
            Admitted::Stranger if is_reading && is_for_people(&request) => self.refuse(format!(
                "The account that you are signed in with at {} has no backups here.",
                self.host
            )),
            _ if is_for_people(&request) => Refusal::logged_out().into_response(),
            _ => session::refuse(&request, &self.place),
        }
    }

    fn refuse(&self, message: String) -> Response {
        Refusal::session_of_platform(message, &self.place).into_response()
    }

    /// Whom the platform has let in, if he is still a customer.
    pub(super) async fn account(
        &self,
        service: &BackupService,
        headers: &HeaderMap,
    ) -> Result<Option<Account>> {
        Ok(match self.admitted(service, headers).await? {
            Admitted::Customer(account) => Some(account),
            Admitted::Stranger | Admitted::Unproven | Admitted::Nobody => None,
        })
    }

    async fn admitted(&self, service: &BackupService, headers: &HeaderMap) -> Result<Admitted> {
        let cookies = session::cookies(headers, &self.cookie);
        let reason = match self.sessions.whose(cookies, Timestamp::now()) {
            Ok(customer) => {
                let account = service.customers().account_of(customer).await?;
                return Ok(account.map_or(Admitted::Stranger, Admitted::Customer));
            }
            Err(Unproven::Absent | Unproven::LoggedOut) => return Ok(Admitted::Nobody),
            Err(reason) => reason,
        };
        tracing::info!("a session of the platform was refused: {reason}");
        Ok(match reason {
            Unproven::NoCustomer => Admitted::Stranger,
            _ => Admitted::Unproven,
        })
    }

    fn told(&self, customer: CustomerId, sealed: &str) -> Option<Flash> {
        serde_json::from_str(&self.sessions.unseal(customer, sealed)?).ok()
    }

    /// What a handler wants the next page to tell is left with the browser, signed: a neighbour's site could plant another.
    fn leave(
        &self,
        cookie: SessionCookie,
        customer: CustomerId,
        mut response: Response,
    ) -> Response {
        let Some(flash) = response.extensions_mut().remove::<Flash>() else {
            return response;
        };
        let Ok(text) = serde_json::to_string(&flash) else {
            return Refusal::from(StatusCode::INTERNAL_SERVER_ERROR).into_response();
        };
        let kept = cookie.keeping_message(&self.sessions.seal(customer, &text));
        response.headers_mut().append(SET_COOKIE, kept);
        response
    }
}

/// The platform would only send him back.
fn refuse_inactive(request: &Request) -> Response {
    if request.uri().path().starts_with(page_data::PREFIX) {
        // The page goes to the login, where he is told.
        return session::refuse(request, "/login");
    }
    Refusal::inactive().into_response()
}
