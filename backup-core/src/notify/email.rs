//! The mail to a customer: plain text, over a connection that nobody else can read.
//!
//! Whose address, name and domain they are is the customer's choice, and may be somebody else's. Never: anything of his in a header but an address that the
//! library has taken apart; a word of his in the text but a plain domain; his address in an error, which is logged.

use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use lettre::message::header::{ContentType, Header, HeaderName, HeaderValue, MIME_VERSION_1_0};
use lettre::message::{Mailbox, Message};
use lettre::transport::smtp::Error as SmtpError;
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::{Tls, TlsParameters};
use lettre::transport::smtp::extension::ClientId;
use lettre::{Address, AsyncSmtpTransport, AsyncTransport, Tokio1Executor};
use secrecy::ExposeSecret;
use tokio::time::timeout;
use url::Url;

use super::Refusal;
use super::notice::{Ended, time_in_words};
use crate::config::{EmailConfig, SmtpTls};
use crate::error::{Error, ErrorKind, Result};

type Transport = AsyncSmtpTransport<Tokio1Executor>;

/// How long a server may take with one mail.
const LIMIT: Duration = Duration::from_secs(60);

/// How long it may take with one answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);

/// A mail to a customer.
pub(crate) struct Mail<'a> {
    /// The notification's.
    pub(crate) id: &'a str,
    /// What it tells, as it was kept.
    pub(crate) payload: &'a str,
    /// His address, as the platform's table has it.
    pub(crate) address: &'a str,
    /// The domain of his shop, as the platform's table has it.
    pub(crate) domain: Option<&'a str>,
    /// `server.public_url`.
    pub(crate) dashboard: Option<&'a Url>,
}

impl Mail<'_> {
    /// Give it to the SMTP server.
    pub(crate) async fn send(&self, config: &EmailConfig) -> std::result::Result<(), Refusal> {
        let message = self.message(config).map_err(Refusal::Final)?;
        let transport = transport(config).map_err(Refusal::Passing)?;
        let sent = timeout(LIMIT, transport.send(message)).await;
        let Ok(sent) = sent else {
            return Err(Refusal::Passing(silent(config)));
        };
        sent.map(drop).map_err(|e| {
            // What is said of an address: not here, not local, not allowed.
            let is_of_address = e
                .status()
                .is_some_and(|code| ["550", "551", "553"].contains(&code.to_string().as_str()));
            let error = not_taken(config, e);
            match is_of_address {
                true => Refusal::Final(error),
                false => Refusal::Passing(error),
            }
        })
    }

    fn message(&self, config: &EmailConfig) -> Result<Message> {
        let unusable = |what: &str| Error::new(ErrorKind::InvalidInput, what.to_owned());
        let from: Mailbox = config
            .from
            .parse()
            .map_err(|e| Error::caused(ErrorKind::Configuration, "notify.email.from", e))?;
        // Not in the error: what it holds may be anything.
        let address: Address = self
            .address
            .trim()
            .parse()
            .map_err(|_| unusable("the customer's address is no email address"))?;
        let ended = Ended::of_payload(self.payload).map_err(|e| {
            Error::caused(ErrorKind::Failed, "what was kept of it cannot be read", e)
        })?;
        let message_id = format!("<{}@{}>", self.id, from.email.domain());
        Message::builder()
            .from(from)
            .to(Mailbox::new(None, address))
            .subject(ended.title())
            .date(SystemTime::now())
            .message_id(Some(message_id))
            .header(AutoSubmitted)
            .header(MIME_VERSION_1_0)
            .header(ContentType::TEXT_PLAIN)
            .body(self.text(&ended))
            .map_err(|e| Error::caused(ErrorKind::Failed, "the mail cannot be put together", e))
    }

    fn text(&self, ended: &Ended) -> String {
        let mut text = format!("{}\n\n{}\n\n", ended.title(), ended.message);
        let mut line = |name: &str, value: String| text.push_str(&format!("{name}: {value}\n"));
        if let Some(domain) = self.domain.filter(|domain| is_plain(domain)) {
            line("Shop", domain.to_owned());
        }
        let times: [(&str, Option<Timestamp>); 2] =
            [("Started", ended.started_at), ("Ended", ended.completed_at)];
        for (name, time) in times {
            if let Some(time) = time {
                line(name, time_in_words(time));
            }
        }
        line("Job", ended.job_id.to_string());
        if let Some(page) = self.dashboard.and_then(|url| url.join("/backups").ok()) {
            text.push_str(&format!("\nYour backups: {page}\n"));
        }
        text
    }
}

/// Connect and log in, and say goodbye.
pub(super) async fn try_out(config: &EmailConfig) -> Result<()> {
    let transport = transport(config)?;
    match timeout(LIMIT, transport.test_connection()).await {
        Ok(Ok(true)) => Ok(()),
        Ok(Ok(false)) => Err(Error::new(
            ErrorKind::Refused,
            format!("the SMTP server {} takes no commands", place(config)),
        )),
        Ok(Err(e)) => Err(refused(config, e)),
        Err(_) => Err(silent(config)),
    }
}

fn transport(config: &EmailConfig) -> Result<Transport> {
    let parameters = || {
        TlsParameters::new(config.host.clone())
            .map_err(|e| Error::caused(ErrorKind::Configuration, "TLS cannot be set up", e))
    };
    let tls = match config.tls {
        SmtpTls::Tls => Tls::Wrapper(parameters()?),
        SmtpTls::Starttls => Tls::Required(parameters()?),
        SmtpTls::None => Tls::None,
    };
    let mut builder = Transport::builder_dangerous(&config.host)
        .port(config.port())
        .tls(tls)
        .timeout(Some(ANSWER_LIMIT))
        .hello_name(hello_name());
    if let Some((user, password)) = config.read_account()? {
        let password = password.expose_secret().to_owned();
        builder = builder.credentials(Credentials::new(user.to_owned(), password));
    }
    Ok(builder.build())
}

/// The name of this machine, where it is one that can be said.
fn hello_name() -> ClientId {
    let system = rustix::system::uname();
    match system.nodename().to_str() {
        Ok(name) if is_plain(name) => ClientId::Domain(name.to_owned()),
        _ => ClientId::default(),
    }
}

/// A name of hosts, and nothing that could be anything else.
fn is_plain(name: &str) -> bool {
    let is_of_name = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.');
    (1..=253).contains(&name.len()) && name.bytes().all(is_of_name)
}

/// Without the words of an answer: most servers repeat the customer's address in it.
fn not_taken(config: &EmailConfig, error: SmtpError) -> Error {
    let answers = match error.status() {
        Some(code) => code.to_string() + &enhanced_code(&error),
        None if error.is_response() => "what is no SMTP".to_owned(),
        None => return refused(config, error),
    };
    let place = place(config);
    Error::new(
        ErrorKind::Refused,
        format!("the SMTP server {place} takes no mail: it answers {answers}"),
    )
}

/// ` 5.1.1`, where the answer begins with such a code (RFC 2034): what is of digits and dots is no address.
fn enhanced_code(error: &SmtpError) -> String {
    let words = std::error::Error::source(error).map(ToString::to_string);
    let first = words
        .as_deref()
        .and_then(|words| words.split_whitespace().next());
    let is_code = |word: &&str| {
        let parts: Vec<&str> = word.split('.').collect();
        let is_number =
            |part: &&str| (1..=3).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_digit());
        parts.len() == 3 && parts.iter().all(is_number)
    };
    let code = first.filter(is_code);
    code.map_or_else(String::new, |code| format!(" {code}"))
}

fn refused(config: &EmailConfig, error: SmtpError) -> Error {
    Error::caused(
        ErrorKind::Unreachable,
        format!("the SMTP server {} takes no mail", place(config)),
        error,
    )
}

fn silent(config: &EmailConfig) -> Error {
    Error::new(
        ErrorKind::Timeout,
        format!(
            "the SMTP server {} takes no mail within {} s",
            place(config),
            LIMIT.as_secs()
        ),
    )
}

fn place(config: &EmailConfig) -> String {
    format!("{}:{}", config.host, config.port())
}

/// Says that nobody wrote it, so that nobody's holiday answers (RFC 3834).
#[derive(Debug, Clone)]
struct AutoSubmitted;

impl Header for AutoSubmitted {
    fn name() -> HeaderName {
        HeaderName::new_from_ascii_str("Auto-Submitted")
    }

    fn parse(_: &str) -> std::result::Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        Ok(Self)
    }

    fn display(&self) -> HeaderValue {
        HeaderValue::new(Self::name(), "auto-generated".to_owned())
    }
}
