//! `/admin`: how all customers are, for operators, behind a login of their own. There is no such page unless `server.admins_file` is set.
//!
//! An operator's session is no customer's and a customer's is no operator's: each opens nothing of the other. Sessions are kept in memory and end with the
//! server. Never: anything that can be changed here; an answer to a customer that says that there is such a page.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{Extension, Query, Request, State};
use axum::http::header::{CONTENT_SECURITY_POLICY, SET_COOKIE};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{AppendHeaders, Html, IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use backup_app::plain::{AdminLoginPage, AdminPage};
use backup_core::audit::{Action, Actor};
use backup_core::config::ServerConfig;
use backup_core::error::{ErrorKind, Result};
use backup_core::login::{Operator, OperatorVerdict, Operators};
use backup_core::service::{BackupService, CustomerStatus};
use secrecy::SecretString;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tower::Service;

use super::acting::{self, at};
use super::headers::{HasTls, STYLE_ALONE};
use super::input::Input;
use super::login::{AT_ACCOUNT, Guesses};
use super::refusal::{Refusal, Stylesheet};
use super::tries::Tries;
use super::{AppState, asks_for_page, session};

const LOGIN: &str = "/admin/login";
const PAGE: &str = "/admin";

/// More than any team has open at once.
const MOST_SESSIONS: usize = 1_000;

/// Customers on a page: of more than that one searches.
const MOST_SHOWN: usize = 200;

/// What was done last.
const ACTIVITY: u32 = 20;

/// Refused logins that are written down: whoever guesses shall not fill the table.
const REFUSED: (u32, Duration) = (20, Duration::from_secs(3 * 60));

/// For how long a browser is known in which an operator logged in; of more than 400 days browsers make that.
const MARKED_FOR: &str = "; Max-Age=34560000";

/// The digest of what a browser holds.
type Key = [u8; 32];

/// The operators, and who of them is logged in. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Admins {
    operators: Operators,
    sessions: Arc<Mutex<HashMap<Key, Session>>>,
    guesses: Guesses,
    /// Tries of browsers in which an operator has logged in before: whatever others do, they count by themselves.
    guesses_of_marked: Arc<Tries<Key>>,
    refused: Arc<Tries<()>>,
    idle: Duration,
    max: Duration,
    has_tls: bool,
}

#[derive(Debug)]
struct Session {
    operator: Operator,
    opened: Instant,
    seen: Instant,
}

impl Admins {
    /// As it is configured; None where there are none.
    pub fn read(config: &ServerConfig, HasTls(has_tls): HasTls) -> Result<Option<Self>> {
        let operators = Operators::read(config)?;
        Ok(operators.map(|operators| Self {
            operators,
            sessions: Arc::default(),
            guesses: Guesses::default(),
            guesses_of_marked: Arc::new(Tries::new(AT_ACCOUNT)),
            refused: Arc::new(Tries::new(REFUSED)),
            idle: config.session_idle,
            max: config.session_max,
            has_tls,
        }))
    }

    /// The prefix makes a browser refuse a cookie of this name that a neighbour host or a page without TLS sets.
    fn cookie_name(&self) -> &'static str {
        if self.has_tls {
            "__Host-shophosting-operator"
        } else {
            "shophosting-operator"
        }
    }

    /// What a browser holds after the session, too.
    fn mark_name(&self) -> &'static str {
        if self.has_tls {
            "__Host-shophosting-operator-known"
        } else {
            "shophosting-operator-known"
        }
    }

    fn cookie(&self, value: &str) -> HeaderValue {
        let age = if value.is_empty() { "; Max-Age=0" } else { "" };
        self.named_cookie(self.cookie_name(), value, age)
    }

    fn named_cookie(&self, name: &str, value: &str, age: &str) -> HeaderValue {
        let secure = if self.has_tls { "; Secure" } else { "" };
        let text = format!("{name}={value}{age}; Path=/; HttpOnly; SameSite=Strict{secure}");
        // Made of letters, digits and the signs above.
        let cookie = HeaderValue::try_from(text);
        let mut cookie = cookie.unwrap_or_else(|_| HeaderValue::from_static(""));
        cookie.set_sensitive(true);
        cookie
    }

    fn held(&self, headers: &HeaderMap) -> Option<Key> {
        let token = session::cookies(headers, self.cookie_name()).next()?;
        (!token.is_empty()).then(|| Sha256::digest(token).into())
    }

    /// The digest of the mark that this operator's browser holds, if it is one.
    fn mark(&self, headers: &HeaderMap, name: &str) -> Result<Option<Key>> {
        let Some(mark) = session::cookies(headers, self.mark_name()).next() else {
            return Ok(None);
        };
        let is_his = self.operators.knows(name, mark)?;
        Ok(is_his.then(|| Sha256::digest(mark).into()))
    }

    /// What the browser is to hold from now on.
    fn open(&self, operator: Operator) -> String {
        let random = || format!("{:032x}", rand::random::<u128>());
        let token = random() + &random();
        let now = Instant::now();
        let mut sessions = self.sessions();
        sessions.retain(|_, session| !self.is_over(session, now));
        if sessions.len() >= MOST_SESSIONS {
            let oldest = sessions.iter().min_by_key(|(_, session)| session.seen);
            if let Some(oldest) = oldest.map(|(key, _)| *key) {
                sessions.remove(&oldest);
            }
        }
        let session = Session {
            operator,
            opened: now,
            seen: now,
        };
        sessions.insert(Sha256::digest(&token).into(), session);
        token
    }

    /// Who makes this request, if he still is an operator.
    fn of(&self, headers: &HeaderMap) -> Result<Option<Operator>> {
        let Some(key) = self.held(headers) else {
            return Ok(None);
        };
        let now = Instant::now();
        let operator = {
            let mut sessions = self.sessions();
            let Some(session) = sessions.get_mut(&key) else {
                return Ok(None);
            };
            if self.is_over(session, now) {
                sessions.remove(&key);
                return Ok(None);
            }
            session.seen = now;
            session.operator.clone()
        };
        if !self.operators.has(&operator)? {
            self.sessions().remove(&key);
            return Ok(None);
        }
        Ok(Some(operator))
    }

    fn close(&self, headers: &HeaderMap) {
        if let Some(key) = self.held(headers) {
            self.sessions().remove(&key);
        }
    }

    fn is_over(&self, session: &Session, now: Instant) -> bool {
        now - session.seen > self.idle || now - session.opened > self.max
    }

    fn sessions(&self) -> MutexGuard<'_, HashMap<Key, Session>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Behind their own gate. `missing` answers customers, as it answers for what does not exist.
pub fn router(state: AppState, admins: Admins, missing: Router) -> Router {
    let gate = Gate {
        state: state.clone(),
        admins,
        missing,
    };
    Router::new()
        .route(PAGE, get(show))
        .route(LOGIN, get(ask).post(log_in))
        .route("/admin/logout", post(log_out))
        .layer(from_fn_with_state(gate, admit))
        .with_state(state)
}

#[derive(Clone)]
struct Gate {
    state: AppState,
    admins: Admins,
    missing: Router,
}

/// Operators pass, customers find nothing here, and everybody else has to log in.
async fn admit(State(gate): State<Gate>, mut request: Request, next: Next) -> Response {
    let is_login = request.uri().path() == LOGIN;
    let is_reading = [Method::GET, Method::HEAD].contains(request.method());
    let operator = match gate.admins.of(request.headers()) {
        Ok(operator) => operator,
        Err(error) => return Refusal::from(error).into_response(),
    };
    match operator {
        Some(_) if is_login && is_reading => return Redirect::to(PAGE).into_response(),
        Some(operator) => {
            request.extensions_mut().insert(operator);
        }
        None => match session::is_customers(&gate.state, request.headers()).await {
            Ok(false) if is_login => {}
            Ok(false) => return session::refuse(&request, LOGIN),
            Ok(true) => {
                let mut missing = gate.missing;
                let answer = missing.call(request).await;
                return answer.unwrap_or_else(|never| match never {});
            }
            Err(error) => return Refusal::from(error).into_response(),
        },
    }
    request.extensions_mut().insert(gate.admins);
    next.run(request).await
}

/// What is searched for.
#[derive(Deserialize)]
struct Search {
    #[serde(default)]
    q: String,
}

async fn show(
    State(service): State<BackupService>,
    State(Stylesheet(stylesheet)): State<Stylesheet>,
    Extension(operator): Extension<Operator>,
    Query(search): Query<Search>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let status = service.status(None).await?;
    let activity = service.activity_of_all(ACTIVITY).await?;
    let search = search.q.trim().to_lowercase();
    let mut shown: Vec<usize> = (0..status.customers.len())
        .filter(|place| matches(&status.customers[*place], &search))
        .collect();
    let found = shown.len();
    shown.truncate(MOST_SHOWN);
    let page = AdminPage {
        operator: operator.name(),
        status: &status,
        shown: &shown,
        found,
        search: &search,
        activity: &activity,
        zone: &session::zone(&headers),
        stylesheet: stylesheet.as_deref(),
    };
    Ok(document(page.render()))
}

/// By number, name or hosting server; nothing is found in everybody.
fn matches(customer: &CustomerStatus, search: &str) -> bool {
    let has = |text: &Option<String>| {
        let text = text.as_deref().unwrap_or_default();
        text.to_lowercase().contains(search)
    };
    customer.customer_id.to_string() == search || has(&customer.name) || has(&customer.server)
}

/// Why somebody was not let in just before.
#[derive(Deserialize)]
struct Before {
    problem: Option<String>,
}

async fn ask(
    State(Stylesheet(stylesheet)): State<Stylesheet>,
    Query(before): Query<Before>,
) -> Response {
    let problem = match before.problem.as_deref() {
        Some("wrong") => Some("Name or password is not right. Please try again."),
        Some("slow") => Some("Too many tries. Please wait a few minutes, then try again."),
        Some("unavailable") => Some("Logging in does not work right now: see the log."),
        _ => None,
    };
    let page = AdminLoginPage {
        problem,
        stylesheet: stylesheet.as_deref(),
    };
    document(page.render())
}

fn document(page: String) -> Response {
    ([(CONTENT_SECURITY_POLICY, STYLE_ALONE)], Html(page)).into_response()
}

/// Who somebody says he is.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Credentials {
    name: String,
    password: SecretString,
}

async fn log_in(
    State(service): State<BackupService>,
    Extension(admins): Extension<Admins>,
    parts: Parts,
    Input(credentials): Input<Credentials>,
) -> Response {
    let done = let_in(&service, &admins, &parts, &credentials).await;
    let is_browser = asks_for_page(&parts.headers);
    match done {
        Ok(operator) => {
            // Another one of before ends with it.
            admins.close(&parts.headers);
            let mark = admins.operators.mark(&operator);
            let mark = admins.named_cookie(admins.mark_name(), &mark, MARKED_FOR);
            let session = admins.cookie(&admins.open(operator));
            let cookies = AppendHeaders([(SET_COOKIE, session), (SET_COOKIE, mark)]);
            (cookies, Redirect::to(PAGE)).into_response()
        }
        Err(refusal) if is_browser => {
            let word = match refusal.status {
                StatusCode::UNAUTHORIZED => "wrong",
                StatusCode::TOO_MANY_REQUESTS => "slow",
                _ => "unavailable",
            };
            Redirect::to(&format!("{LOGIN}?problem={word}")).into_response()
        }
        Err(refusal) => refusal.into_response(),
    }
}

async fn let_in(
    service: &BackupService,
    admins: &Admins,
    parts: &Parts,
    Credentials { name, password }: &Credentials,
) -> Result<Operator, Refusal> {
    let address = acting::address(parts);
    let account = Sha256::digest(name).into();
    let mark = admins.mark(&parts.headers, name)?;
    let slow = |wait: Duration| Refusal {
        retry_after: Some(wait.as_secs() + 1),
        ..Refusal::new(
            StatusCode::TOO_MANY_REQUESTS,
            "That were many tries. Please wait a moment and try again.",
        )
    };
    let taken = match mark {
        Some(mark) => admins.guesses_of_marked.take(mark),
        None => admins.guesses.take(address, account),
    };
    taken.map_err(slow)?;
    let give_back = || match &mark {
        Some(mark) => admins.guesses_of_marked.give_back(mark),
        None => admins.guesses.give_back(address, account),
    };
    let acting = || service.acting(at(Actor::operator(name), parts));
    let verdict = admins.operators.verify(name, password, mark.is_some());
    match verdict.await {
        Ok(OperatorVerdict::Proven(operator)) => {
            give_back();
            // Nobody looks whose coming is not written down.
            acting().note(Action::Login).await?;
            tracing::info!(operator = operator.name(), %address, "an operator logged in");
            Ok(operator)
        }
        Ok(verdict) => {
            tracing::warn!(%address, "a login of an operator was refused");
            if matches!(verdict, OperatorVerdict::Wrong) && admins.refused.take(()).is_ok() {
                note_beside(acting());
            }
            Err(Refusal::new(
                StatusCode::UNAUTHORIZED,
                "The name or the password is wrong.",
            ))
        }
        Err(error) => {
            give_back();
            match error.kind() {
                ErrorKind::Busy => Err(slow(Duration::from_secs(5))),
                _ => Err(error.into()),
            }
        }
    }
}

/// Beside the answer: how long it takes would tell a stranger that there is such an operator.
fn note_beside(service: BackupService) {
    tokio::spawn(async move {
        if let Err(error) = service.note(Action::LoginRefused).await {
            tracing::warn!("a refused login is not written down: {}", error.chain());
        }
    });
}

async fn log_out(
    State(service): State<BackupService>,
    Extension(admins): Extension<Admins>,
    Extension(operator): Extension<Operator>,
    parts: Parts,
) -> Result<Response, Refusal> {
    admins.close(&parts.headers);
    let actor = at(Actor::operator(operator.name()), &parts);
    service.acting(actor).note(Action::Logout).await?;
    let cookie = [(SET_COOKIE, admins.cookie(""))];
    Ok((cookie, Redirect::to(LOGIN)).into_response())
}
