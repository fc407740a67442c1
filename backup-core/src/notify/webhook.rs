//! The webhook: one POST, signed as Standard Webhooks has it.
//!
//! Signed is `id.timestamp.body` by HMAC-SHA256. Never: a redirect followed, for it would take the customer's data elsewhere; more read of an answer than
//! its head.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use http_body_util::Full;
use hyper::client::conn::http1;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use secrecy::{ExposeSecret, SecretString};
use sha2::Sha256;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::rustls::pki_types::ServerName;
use url::{Host, Position, Url};

use super::{Refusal, tls};
use crate::config::WebhookConfig;
use crate::error::{Error, ErrorKind, Result};

/// How long the receiver may take until its answer begins.
const LIMIT: Duration = Duration::from_secs(15);

/// More than the head of any sensible answer.
const LONGEST_HEAD: usize = 64 * 1024;

/// Each signs each time.
const MOST_SECRETS: usize = 8;

/// What Standard Webhooks asks for, in bytes.
const SECRET_SIZES: std::ops::RangeInclusive<usize> = 24..=64;

/// Any connection that bytes go over.
trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

/// Tell it.
pub(crate) async fn post(
    config: &WebhookConfig,
    id: &str,
    body: &str,
) -> std::result::Result<(), Refusal> {
    let told = async {
        let secrets = read_secrets(config)?;
        let request = request(config, &secrets, id, body)?;
        send(&config.url, request).await
    };
    let status = timeout(LIMIT, told)
        .await
        .unwrap_or_else(|_| Err(silent(&config.url)))
        .map_err(Refusal::Passing)?;
    let refused = || {
        Error::new(
            ErrorKind::Refused,
            format!("the webhook at {} answers {status}", place(&config.url)),
        )
    };
    match status {
        _ if status.is_success() => Ok(()),
        StatusCode::GONE => Err(Refusal::Final(refused())),
        _ => Err(Refusal::Passing(refused())),
    }
}

/// All but the request.
pub(super) async fn try_out(config: &WebhookConfig) -> Result<()> {
    read_secrets(config)?;
    timeout(LIMIT, connect(&config.url))
        .await
        .unwrap_or_else(|_| Err(silent(&config.url)))
        .map(drop)
}

fn request(
    config: &WebhookConfig,
    secrets: &[SecretString],
    id: &str,
    body: &str,
) -> Result<Request<Full<Bytes>>> {
    let url = &config.url;
    let timestamp = Timestamp::now().as_second();
    let signed = format!("{id}.{timestamp}.{body}");
    let signatures: Vec<String> = secrets
        .iter()
        .map(|secret| signature(secret, signed.as_bytes()))
        .collect::<Result<_>>()?;
    Request::builder()
        .method(Method::POST)
        .uri(&url[Position::BeforePath..Position::AfterQuery])
        .header("host", &url[Position::BeforeHost..Position::AfterPort])
        .header("content-type", "application/json")
        .header(
            "user-agent",
            concat!("shophosting-backup/", env!("CARGO_PKG_VERSION")),
        )
        .header("webhook-id", id)
        .header("webhook-timestamp", timestamp)
        .header("webhook-signature", signatures.join(" "))
        .body(Full::new(Bytes::from(body.to_owned())))
        .map_err(|e| {
            Error::caused(
                ErrorKind::Configuration,
                "notify.webhook.url cannot be asked for",
                e,
            )
        })
}

/// `v1,` and the MAC in base64.
fn signature(secret: &SecretString, signed: &[u8]) -> Result<String> {
    let key = key_of(secret.expose_secret()).map_err(|reason| {
        Error::new(
            ErrorKind::Configuration,
            format!("a secret of notify.webhook {reason}"),
        )
    })?;
    let mac = <Hmac<Sha256> as KeyInit>::new_from_slice(&key)
        .map_err(|e| Error::caused(ErrorKind::Failed, "nothing can be signed", e))?
        .chain_update(signed)
        .finalize();
    Ok(format!("v1,{}", STANDARD.encode(mac.into_bytes())))
}

/// The lines of the file, the newest first.
fn read_secrets(config: &WebhookConfig) -> Result<Vec<SecretString>> {
    let text = config.read_secrets()?;
    let lines = text.expose_secret().lines().map(str::trim);
    let secrets: Vec<&str> = lines.filter(|line| !line.is_empty()).collect();
    let refused = |reason: &str| {
        let file = config.secret_file.display();
        Error::new(
            ErrorKind::Configuration,
            format!("the secret_file of notify.webhook {file} {reason}"),
        )
    };
    if secrets.len() > MOST_SECRETS {
        return Err(refused("has more than 8 lines"));
    }
    for secret in &secrets {
        key_of(secret).map_err(|reason| refused(&format!("has a line that {reason}")))?;
    }
    Ok(secrets.into_iter().map(SecretString::from).collect())
}

fn key_of(secret: &str) -> std::result::Result<Vec<u8>, &'static str> {
    const FORM: &str = "is no secret of Standard Webhooks: `whsec_` and 24 to 64 bytes in base64, as `echo whsec_$(openssl rand -base64 32)` makes it";
    let encoded = secret.strip_prefix("whsec_").unwrap_or(secret);
    let key = STANDARD.decode(encoded).map_err(|_| FORM)?;
    match SECRET_SIZES.contains(&key.len()) {
        true => Ok(key),
        false => Err(FORM),
    }
}

/// The status that it answers. What else it says is not read.
async fn send(url: &Url, request: Request<Full<Bytes>>) -> Result<StatusCode> {
    let connection = connect(url).await?;
    let failed = |e: hyper::Error| {
        Error::caused(
            ErrorKind::Unreachable,
            format!("the webhook at {} did not answer", place(url)),
            e,
        )
    };
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(LONGEST_HEAD)
        .handshake(TokioIo::new(connection))
        .await
        .map_err(failed)?;
    let answer = sender.send_request(request);
    tokio::pin!(answer);
    tokio::pin!(connection);
    tokio::select! {
        biased;
        answer = &mut answer => return answer.map(|it| it.status()).map_err(failed),
        ended = &mut connection => ended.map_err(failed)?,
    }
    // The answer came with the end of the connection, or that there is none is told.
    answer.await.map(|it| it.status()).map_err(failed)
}

async fn connect(url: &Url) -> Result<Box<dyn Connection>> {
    let unreachable = |e: std::io::Error| {
        Error::caused(
            ErrorKind::Unreachable,
            format!("the webhook at {} cannot be reached", place(url)),
            e,
        )
    };
    let nowhere = || Error::new(ErrorKind::Configuration, "notify.webhook.url names no host");
    let host = match url.host().ok_or_else(nowhere)? {
        Host::Domain(name) => name.to_owned(),
        Host::Ipv4(address) => address.to_string(),
        Host::Ipv6(address) => address.to_string(),
    };
    let port = url.port_or_known_default().ok_or_else(nowhere)?;
    let stream = TcpStream::connect((host.as_str(), port))
        .await
        .map_err(unreachable)?;
    if url.scheme() != "https" {
        return Ok(Box::new(stream));
    }
    let name = ServerName::try_from(host).map_err(|e| {
        Error::caused(
            ErrorKind::Configuration,
            "notify.webhook.url names a host that can have no certificate",
            e,
        )
    })?;
    let connector = tls::connector().await?;
    let stream = connector.connect(name, stream).await.map_err(unreachable)?;
    Ok(Box::new(stream))
}

fn silent(url: &Url) -> Error {
    Error::new(
        ErrorKind::Timeout,
        format!(
            "the webhook at {} does not answer within {} s",
            place(url),
            LIMIT.as_secs()
        ),
    )
}

/// The address without what may be secret in it.
fn place(url: &Url) -> &str {
    &url[..Position::AfterPort]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_that_of_standard_webhooks() {
        // The example of its reference implementations.
        let secret = SecretString::from("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw");
        let signed = b"msg_p5jXN8AQM9LWM0D4loKWxJek.1614265330.{\"test\": 2432232314}";
        assert_eq!(
            signature(&secret, signed).unwrap(),
            "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
        );
    }

    #[test]
    fn a_secret_that_could_be_guessed_is_none() {
        let long = STANDARD.encode([7; 64]);
        assert!(key_of(&long).is_ok() && key_of(&format!("whsec_{long}")).is_ok());
        for bad in [
            "",
            "whsec_",
            "secret",
            "whsec_c2hvcnQ=",
            &STANDARD.encode([7; 65]),
        ] {
            assert!(key_of(bad).is_err(), "{bad}");
        }
    }
}
