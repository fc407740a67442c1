//! `POST /login` and `POST /logout`.
//!
//! Never: an answer that tells whether there is an account of an address; a guess more than the limits allow.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{ConnectInfo, Extension, Request, State};
use axum::http::header::SET_COOKIE;
use axum::http::{HeaderMap, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Redirect, Response};
use backup_app::model::Outcome;
use backup_app::visit::TypedEmail;
use backup_core::error::{Error, ErrorKind};
use backup_core::login::Verdict;
use backup_core::service::BackupService;
use backup_core::session::SessionToken;
use secrecy::SecretString;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::acting::Acting;
use super::input::Input;
use super::refusal::Refusal;
use super::session::{self, SessionCookie};
use super::tries::Tries;
use super::{AppState, asks_for_page};

/// Of an address, whatever the accounts: many people may share one.
const OF_ADDRESS: (u32, Duration) = (30, Duration::from_secs(10));

/// Of an address at one account: what a person types wrong, and more; a program finds nothing with it.
pub const AT_ACCOUNT: (u32, Duration) = (10, Duration::from_secs(60));

/// Of an account, whatever the addresses: more than any few addresses get to, for it keeps out the owner, too.
const OF_ACCOUNT: (u32, Duration) = (200, Duration::from_secs(10));

/// An email address, as the table may compare it, in a space that does not grow.
type AccountKey = [u8; 32];

/// Failed tries to log in.
#[derive(Debug, Clone)]
pub struct Guesses {
    of_address: Arc<Tries<IpAddr>>,
    at_account: Arc<Tries<(IpAddr, AccountKey)>>,
    of_account: Arc<Tries<AccountKey>>,
}

impl Default for Guesses {
    fn default() -> Self {
        Self {
            of_address: Arc::new(Tries::new(OF_ADDRESS)),
            at_account: Arc::new(Tries::new(AT_ACCOUNT)),
            of_account: Arc::new(Tries::new(OF_ACCOUNT)),
        }
    }
}

impl Guesses {
    /// Err: how long it takes until there is one. Whom his address stops takes nothing of the account's, which is the owner's, too.
    pub fn take(&self, address: IpAddr, account: AccountKey) -> Result<(), Duration> {
        let network = network_of(address);
        self.of_address.take(network)?;
        self.at_account.take((network, account))?;
        self.of_account.take(account)
    }

    pub fn give_back(&self, address: IpAddr, account: AccountKey) {
        let network = network_of(address);
        self.of_address.give_back(&network);
        self.at_account.give_back(&(network, account));
        self.of_account.give_back(&account);
    }
}

/// What tries are counted of: one household or server has as many addresses of the newer kind as it likes.
fn network_of(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        address => address,
    }
}

/// Who somebody says he is.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Credentials {
    /// The address that the platform knows.
    email: String,
    /// The password.
    #[schema(value_type = String, format = Password)]
    password: SecretString,
}

/// Why somebody is not let in.
enum Problem {
    Wrong,
    Slow(Duration),
    Inactive,
    Unavailable(Refusal),
}

pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(log_in))
        .routes(routes!(log_out))
}

/// Log in: the answer brings the cookie that everything else needs.
#[utoipa::path(post, path = "/login", tag = "login", security(()),
    request_body(content((Credentials = "application/x-www-form-urlencoded"), (Credentials = "application/json"))),
    responses(
        (status = 200, body = Outcome, description = "The cookie is set."),
        (status = 303, description = "The same for a browser, or what is in the way, said by the page."),
        (status = 401, body = Outcome, description = "The email address or the password is wrong."),
        (status = 403, body = Outcome, description = "The account is not active, the request is of another site, or customers log in at the platform."),
        (status = 429, body = Outcome, description = "Too many tries: `Retry-After` says how long to wait."),
        (status = 503, body = Outcome, description = "The database is away."),
    ))]
async fn log_in(
    State(state): State<AppState>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    Acting(service): Acting,
    old: Option<Extension<SessionToken>>,
    headers: HeaderMap,
    Input(credentials): Input<Credentials>,
) -> Response {
    let address = address_of(peer.ip(), &headers);
    let let_in = let_in(&service, &state.guesses, address, &credentials).await;
    match let_in {
        Ok(token) => {
            if let Some(Extension(old)) = old {
                if let Err(error) = service.sessions().close(&old).await {
                    tracing::warn!(
                        "an earlier session stays until it ends by itself: {}",
                        error.chain()
                    );
                }
                state.streams.end_session(old);
            }
            let cookie = [(SET_COOKIE, state.cookie.holding(&token))];
            if asks_for_page(&headers) {
                return (cookie, Redirect::to("/backups")).into_response();
            }
            (cookie, Json(done("You are logged in."))).into_response()
        }
        Err(problem) if asks_for_page(&headers) => {
            let typed = state.cookie.keeping_typed(&credentials.email);
            let page = Redirect::to(&format!("/login?problem={}", problem.word()));
            (typed.map(|typed| [(SET_COOKIE, typed)]), page).into_response()
        }
        Err(problem) => problem.refusal().into_response(),
    }
}

/// Show the login with the address that was typed before, once.
pub async fn recall(cookie: SessionCookie, mut request: Request, next: Next) -> Response {
    let typed = session::typed(request.headers()).filter(|_| request.method() == Method::GET);
    let Some(typed) = typed.map(|email| TypedEmail(email.to_owned())) else {
        return next.run(request).await;
    };
    request.extensions_mut().insert(typed);
    let mut response = next.run(request).await;
    let told = cookie.without_typed();
    response.headers_mut().append(SET_COOKIE, told);
    response
}

async fn let_in(
    service: &BackupService,
    guesses: &Guesses,
    address: IpAddr,
    credentials: &Credentials,
) -> Result<SessionToken, Problem> {
    let Credentials { email, password } = credentials;
    let account: AccountKey = Sha256::digest(email.trim().to_lowercase()).into();
    guesses.take(address, account).map_err(Problem::Slow)?;
    match service.login().verify(email, password).await {
        Ok(Verdict::Proven(customer)) => {
            guesses.give_back(address, account);
            let token = service.sessions().open(&customer).await?;
            tracing::info!(customer = %customer.id, %address, "logged in");
            Ok(token)
        }
        Ok(Verdict::Inactive) => Err(Problem::Inactive),
        Ok(Verdict::Wrong) => {
            tracing::info!(%address, "a login was refused");
            Err(Problem::Wrong)
        }
        Err(error) => {
            guesses.give_back(address, account);
            Err(error.into())
        }
    }
}

/// Log out: the cookie is worth nothing from then on.
#[utoipa::path(post, path = "/logout", tag = "login",
    responses(
        (status = 200, body = Outcome, description = "The session has ended."),
        (status = 303, description = "The same for a browser."),
        (status = 403, body = Outcome, description = "Customers log out at the platform."),
    ))]
async fn log_out(
    State(state): State<AppState>,
    Acting(service): Acting,
    token: Option<Extension<SessionToken>>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    // There is no session of ours to end.
    let Some(Extension(token)) = token else {
        return Err(Refusal::at_platform());
    };
    service.sessions().close(&token).await?;
    state.streams.end_session(token);
    let cookie = [(SET_COOKIE, state.cookie.removed())];
    Ok(if asks_for_page(&headers) {
        (cookie, Redirect::to("/login")).into_response()
    } else {
        (cookie, Json(done("You are logged out."))).into_response()
    })
}

fn done(message: &str) -> Outcome {
    Outcome {
        success: true,
        message: message.into(),
        job_id: None,
    }
}

/// Who is at the other end: behind a proxy on this machine, whom that one says it is.
pub fn address_of(peer: IpAddr, headers: &HeaderMap) -> IpAddr {
    let said = headers
        .get_all("x-forwarded-for")
        .iter()
        .next_back()
        .and_then(|value| forwarded(value.to_str().ok()?.rsplit(',').next()?.trim()));
    let address = match said {
        Some(said) if peer.to_canonical().is_loopback() => said,
        _ => peer,
    };
    address.to_canonical()
}

/// An address as proxies write it: some add the port, and brackets to what has colons.
fn forwarded(said: &str) -> Option<IpAddr> {
    let with_port = || Some(said.parse::<SocketAddr>().ok()?.ip());
    let in_brackets = || said.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    said.parse().ok().or_else(with_port).or_else(in_brackets)
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        match error.kind() {
            ErrorKind::Busy => Self::Slow(Duration::from_secs(5)),
            _ => Self::Unavailable(error.into()),
        }
    }
}

impl Problem {
    /// As the page of the login knows it.
    fn word(&self) -> &'static str {
        match self {
            Self::Wrong => "wrong",
            Self::Slow(_) => "slow",
            Self::Inactive => "inactive",
            Self::Unavailable(_) => "unavailable",
        }
    }

    fn refusal(self) -> Refusal {
        match self {
            Self::Wrong => Refusal::new(
                StatusCode::UNAUTHORIZED,
                "The email address or the password is wrong.",
            ),
            Self::Slow(wait) => Refusal {
                retry_after: Some(wait.as_secs() + 1),
                ..Refusal::new(
                    StatusCode::TOO_MANY_REQUESTS,
                    "That were many tries. Please wait a moment and try again.",
                )
            },
            Self::Inactive => Refusal::inactive(),
            Self::Unavailable(refusal) => refusal,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_proxy_on_this_machine_is_believed() {
        let address = |peer: &str, said: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("x-forwarded-for", said.parse().unwrap());
            address_of(peer.parse().unwrap(), &headers).to_string()
        };
        assert_eq!(address("127.0.0.1", "203.0.113.9"), "203.0.113.9");
        assert_eq!(address("::ffff:127.0.0.1", "203.0.113.9"), "203.0.113.9");
        // What the browser said of itself comes first.
        assert_eq!(address("127.0.0.1", "10.0.0.1, 203.0.113.9"), "203.0.113.9");
        assert_eq!(address("198.51.100.1", "203.0.113.9"), "198.51.100.1");
        for nonsense in [
            "nonsense",
            "",
            "203.0.113.9:",
            "203.0.113.9:99999",
            "[::1",
            "unknown",
        ] {
            assert_eq!(address("127.0.0.1", nonsense), "127.0.0.1", "{nonsense}");
        }
        // Whole, for it is written down who somebody was.
        let whole = "2001:db8:1:2:3:4:5:6";
        assert_eq!(address("::1", whole), whole);
    }

    #[test]
    fn a_network_of_the_newer_kind_is_one_that_tries() {
        let guesses = Guesses::default();
        let from = |address: &str| address.parse().unwrap();
        for host in 0..AT_ACCOUNT.0 {
            guesses
                .take(from(&format!("2001:db8:1:2::{host:x}")), [7; 32])
                .unwrap();
        }
        let another = from("2001:db8:1:2:ffff::1");
        assert!(guesses.take(another, [7; 32]).is_err());
        assert!(guesses.take(from("2001:db8:1:3::1"), [7; 32]).is_ok());
        guesses.give_back(another, [7; 32]);
        assert!(guesses.take(another, [7; 32]).is_ok());
    }

    #[test]
    fn an_address_is_understood_with_port_and_brackets() {
        let said = |said| forwarded(said).unwrap().to_string();
        assert_eq!(said("203.0.113.9:567"), "203.0.113.9");
        assert_eq!(said("[2001:db8::9]:80"), "2001:db8::9");
        assert_eq!(said("[2001:db8::9]"), "2001:db8::9");
        assert_eq!(said("2001:db8::9"), "2001:db8::9");
    }
}
