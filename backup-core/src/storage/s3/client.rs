//! Single requests to the store, and what their answers mean.
//!
//! Requests are signed in their address, for a few minutes. Never: a body that is shorter than was announced taken for whole; more read of an answer than
//! was asked for; an answer waited for that comes drop by drop.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use md5::{Digest, Md5};
use rusty_s3::actions::{ListObjectsV2, S3Action};
use rusty_s3::{Bucket, Credentials, UrlStyle};
use secrecy::ExposeSecret;
use ureq::http::{Response, StatusCode};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body, Proxy, ProxyProtocol, SendBody};
use url::Host;

use super::fault::{Fault, Refusal, date_of, header};
use crate::error::{Error, ErrorKind, Result};
use crate::progress::Cancel;
use crate::storage::location::S3Place;
use crate::storage::{AccessKey, StorageOptions, is_made_of};

/// How long a signature is good: as long as a request may wait for its turn, and no longer.
const SIGNED_FOR: Duration = Duration::from_secs(10 * 60);

const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// A connection is lost when nothing moves for so long: not more than this, and not much more than the caller would wait.
const STALL_LIMIT: Duration = Duration::from_secs(30);
const STALL_LIMIT_MIN: Duration = Duration::from_secs(3);

/// Connections that are kept for the next request: as many as there are calls at once.
const IDLE_CONNECTIONS_MAX: usize = 16;

/// What is sent or received is to be faster than this, but for a while at its beginning: the time that a body may take grows with its size.
const BYTES_PER_SECOND_MIN: u64 = 32 << 10;

/// The most that a listing of a thousand objects may take, and the description of an error.
const LISTING_BYTES_MAX: u64 = 16 << 20;
const ERROR_BYTES_MAX: u64 = 64 << 10;

/// How much of a body is read at once.
const PIECE_BYTES: usize = 64 << 10;

/// Where systems keep the certificate authorities that they trust.
const SYSTEM_CA_FILES: [&str; 3] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
];

type Outcome<T> = std::result::Result<T, Fault>;

/// One bucket, and who we are there. Clones share their connections.
#[derive(Clone)]
pub(super) struct Client {
    agent: Agent,
    bucket: Bucket,
    credentials: Credentials,
    store: String,
    /// How long nothing may move.
    stall: Duration,
    /// Once any of them is set, a body gets no longer than that.
    stops: Vec<Cancel>,
    /// The store has said so.
    knows_no_conditions: Arc<AtomicBool>,
}

/// A part of a listing.
pub(super) struct Page {
    pub(super) objects: Vec<(String, u64)>,
    /// What to ask for the next part with.
    pub(super) next: Option<String>,
}

/// A part of an object.
pub(super) struct Part {
    pub(super) content: Bytes,
    /// Where it ends; before the end that was asked for, if the object ends there.
    pub(super) end: u64,
}

impl Client {
    pub(super) fn new(place: &S3Place, options: &StorageOptions) -> Result<Self> {
        let store = place.endpoint.origin().ascii_serialization();
        let key = options.access_key.as_ref().ok_or_else(|| {
            configuration(format!(
                "there is no access key for {store}: name a file with one in s3_key_file, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            ))
        })?;
        let amazon = amazon_region(&place.endpoint);
        let region = match (&options.region, &amazon) {
            (Some(region), _) | (None, Some(region)) => region.clone(),
            (None, None) => "us-east-1".to_owned(),
        };
        // A certificate for `*.s3.amazonaws.com` does not cover a bucket with a dot.
        let style = match amazon {
            Some(_) if !place.bucket.contains('.') => UrlStyle::VirtualHost,
            _ => UrlStyle::Path,
        };
        let bucket = Bucket::new(place.endpoint.clone(), style, place.bucket.clone(), region)
            .map_err(|error| {
                Error::caused(
                    ErrorKind::Configuration,
                    format!(
                        "`{}` cannot be the name of a bucket at {store}",
                        place.bucket
                    ),
                    error,
                )
            })?;
        let stall = options.retry_for.clamp(STALL_LIMIT_MIN, STALL_LIMIT);
        Ok(Self {
            agent: agent(place, options, stall)?,
            bucket,
            credentials: credentials(key),
            store,
            stall,
            stops: vec![options.stop.clone()],
            knows_no_conditions: Arc::default(),
        })
    }

    /// The same, for one operation.
    pub(super) fn with_stop(&self, stop: &Cancel) -> Self {
        let mut client = self.clone();
        client.stops.push(stop.clone());
        client
    }

    /// Whether somebody asked to stop.
    pub(super) fn is_stopped(&self) -> bool {
        self.stops.iter().any(Cancel::is_cancelled)
    }

    /// What messages call the store.
    pub(super) fn store(&self) -> &str {
        &self.store
    }

    /// Up to a thousand objects whose names begin so.
    pub(super) fn list(&self, prefix: &str, token: Option<&str>) -> Outcome<Page> {
        let mut action = self.bucket.list_objects_v2(Some(&self.credentials));
        action.with_prefix(prefix);
        if let Some(token) = token {
            action.with_continuation_token(token);
        }
        let mut answer = self.accept(self.agent.get(sign(&action)).call())?;
        let text = self.document(answer.body_mut(), LISTING_BYTES_MAX)?;
        let unreadable = |error| {
            Fault::Permanent(Error::caused(
                ErrorKind::Failed,
                format!("{} gives no listing that can be read", self.store),
                error,
            ))
        };
        let listing =
            ListObjectsV2::parse_response(&text).map_err(|error| unreadable(error.to_string()))?;
        let next = listing.next_continuation_token;
        if next.is_some() && next.as_deref() == token {
            return Err(unreadable("it does not go on".to_owned()));
        }
        let objects = listing.contents.into_iter();
        let objects: Option<Vec<_>> = objects
            .map(|entry| Some((entry.key, entry.size?)))
            .collect();
        Ok(Page {
            objects: objects.ok_or_else(|| unreadable("a size is missing".to_owned()))?,
            next,
        })
    }

    /// A whole object, of not more than `limit` bytes.
    pub(super) fn get(&self, key: &str, limit: u64) -> Outcome<Bytes> {
        let action = self.bucket.get_object(Some(&self.credentials), key);
        let mut answer = self.accept(self.agent.get(sign(&action)).call())?;
        self.whole(answer.body_mut(), limit)
    }

    /// What there is of a part of an object.
    pub(super) fn get_range(&self, key: &str, offset: u64, length: u64) -> Outcome<Part> {
        let last = length
            .checked_sub(1)
            .and_then(|length| offset.checked_add(length));
        // Nothing, or more than there can be.
        let Some(last) = last else {
            return self.no_part(key, offset);
        };
        let action = self.bucket.get_object(Some(&self.credentials), key);
        let request = self.agent.get(sign(&action));
        let answer = request.header("range", format!("bytes={offset}-{last}"));
        let mut answer = match self.ask(answer.call())? {
            Err(refusal) if refusal.is_of_a_range() => return self.no_part(key, offset),
            outcome => self.or_fault(outcome)?,
        };
        // By this header, for some stores call a part a success like any other; some know no ranges and send everything.
        let range = header(&answer, "content-range");
        let is_a_part = range.is_some();
        let begin = match (range, answer.status()) {
            (Some(range), _) => begin_of(range),
            (None, StatusCode::PARTIAL_CONTENT) => None,
            (None, _) => Some(0),
        };
        let other_part = || {
            Fault::Permanent(Error::new(
                ErrorKind::Failed,
                format!("{} sends another part than was asked for", self.store),
            ))
        };
        let before = begin.and_then(|begin| offset.checked_sub(begin));
        let (Some(begin), Some(before)) = (begin, before) else {
            return Err(other_part());
        };
        let body = self.read(answer.body_mut(), before, length)?;
        if body.goes_on && is_a_part {
            return Err(other_part());
        }
        Ok(Part {
            content: body.content,
            end: begin.saturating_add(body.read),
        })
    }

    fn no_part(&self, key: &str, offset: u64) -> Outcome<Part> {
        Ok(Part {
            content: Bytes::new(),
            end: self.size_of(key)?.min(offset),
        })
    }

    /// Make an object of these pieces; with `only_new`, unless there is one of that name, as far as the store knows how to: whoever wants to be sure looks
    /// what is there. Tells the time of the store.
    pub(super) fn put(
        &self,
        key: &str,
        content: &[Bytes],
        only_new: bool,
    ) -> Outcome<Option<SystemTime>> {
        let on_condition = only_new && !self.knows_no_conditions.load(Ordering::Relaxed);
        let mut digest = Md5::new();
        content.iter().for_each(|piece| digest.update(piece));
        let digest = digest.finalize();
        // The store compares it with what arrives.
        let checksum = STANDARD.encode(&digest[..]);
        let size: u64 = content.iter().map(|piece| piece.len() as u64).sum();

        let mut action = self.bucket.put_object(Some(&self.credentials), key);
        action.headers_mut().insert("content-md5", checksum.clone());
        if on_condition {
            action.headers_mut().insert("if-none-match", "*");
        }
        let mut request = self
            .agent
            .put(sign(&action))
            .header("content-md5", checksum)
            .header("content-length", size.to_string());
        if on_condition {
            request = request.header("if-none-match", "*");
        }
        let mut pieces = Pieces::of(content, self.pace());
        let limit = self.limit_for(size);
        let request = request.config().timeout_send_body(Some(limit)).build();
        let answer = self.ask(request.send(SendBody::from_reader(&mut pieces)))?;
        let answer = match answer {
            Err(refusal) if on_condition && refusal.is_of_an_object_that_is_there() => {
                return Ok(None);
            }
            Err(refusal) if on_condition && refusal.is_of_a_condition() => {
                if !self.knows_no_conditions.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        "{} does not know how to write an object only if there is none: do not make one repository from two machines at the same time",
                        self.store
                    );
                }
                return self.put(key, content, only_new);
            }
            outcome => self.or_fault(outcome)?,
        };
        // The checksum again.
        let is_confirmed = header(&answer, "etag")
            .is_some_and(|tag| tag.trim_matches('"') == hex::encode(&digest[..]));
        // What is written only where none is may be somebody else's, and is looked at by whoever writes it.
        if !is_confirmed && !only_new {
            self.confirm(key, content, size, has_other_tags(&answer))?;
        }
        Ok(date_of(&answer))
    }

    /// That an object is what was sent, where the answer did not say so. Its name says what is in it: one that is anything else helps nobody, and goes.
    fn confirm(&self, key: &str, content: &[Bytes], size: u64, by_size: bool) -> Outcome<()> {
        let found = self.size_of(key)?;
        let is_right = found == size && (by_size || is_made_of(&self.get(key, size)?, content));
        if is_right {
            return Ok(());
        }
        self.delete(key)?;
        Err(Fault::Permanent(Error::new(
            ErrorKind::Damaged,
            match found == size {
                true => "it came out with something else in it; it was not kept".to_owned(),
                false => {
                    format!("it came out with {found} bytes instead of {size}; it was not kept")
                }
            },
        )))
    }

    /// Remove an object. One that is not there is fine.
    pub(super) fn delete(&self, key: &str) -> Outcome<()> {
        let action = self.bucket.delete_object(Some(&self.credentials), key);
        match self.accept(self.agent.delete(sign(&action)).call()) {
            Err(Fault::Permanent(error)) if error.kind() == ErrorKind::NotFound => Ok(()),
            outcome => outcome.map(drop),
        }
    }

    fn size_of(&self, key: &str) -> Outcome<u64> {
        let action = self.bucket.head_object(Some(&self.credentials), key);
        let answer = self.accept(self.agent.head(sign(&action)).call())?;
        header(&answer, "content-length")
            .and_then(|size| size.parse().ok())
            .ok_or_else(|| {
                Fault::Permanent(Error::new(
                    ErrorKind::Failed,
                    format!("{} does not say how large an object is", self.store),
                ))
            })
    }

    /// An answer that means success.
    fn accept(
        &self,
        answer: std::result::Result<Response<Body>, ureq::Error>,
    ) -> Outcome<Response<Body>> {
        let answer = self.ask(answer)?;
        self.or_fault(answer)
    }

    fn ask(
        &self,
        answer: std::result::Result<Response<Body>, ureq::Error>,
    ) -> Outcome<std::result::Result<Response<Body>, Refusal>> {
        let mut answer = answer.map_err(|error| Fault::network(&self.store, error))?;
        if answer.status().is_success() {
            return Ok(Ok(answer));
        }
        // What cannot be read of it is told by the status alone.
        let document = self.document(answer.body_mut(), ERROR_BYTES_MAX);
        let document = document.unwrap_or_default();
        Ok(Err(Refusal::new(&answer, &document)))
    }

    fn or_fault<T>(&self, answer: std::result::Result<T, Refusal>) -> Outcome<T> {
        answer.map_err(|refusal| refusal.fault(&self.store, self.bucket.name()))
    }

    fn document(&self, body: &mut Body, limit: u64) -> Outcome<String> {
        let bytes = self.whole(body, limit)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// A body to its end, which is where it was announced.
    fn whole(&self, body: &mut Body, limit: u64) -> Outcome<Bytes> {
        let body = self.read(body, 0, limit)?;
        if body.goes_on {
            return Err(Fault::Permanent(Error::new(
                ErrorKind::Failed,
                format!(
                    "{} sends more than the {limit} bytes that this can be",
                    self.store
                ),
            )));
        }
        Ok(body.content)
    }

    /// `length` bytes of a body after the first `skip`, or what there is of them.
    fn read(&self, body: &mut Body, skip: u64, length: u64) -> Outcome<Excerpt> {
        let announced = body.content_length();
        let mut reader = body.with_config().limit(u64::MAX).reader();
        let mut pace = self.pace();
        let mut piece = vec![0; PIECE_BYTES];
        let (mut content, mut read) = (Vec::new(), 0);
        let end = skip.saturating_add(length);
        loop {
            let outcome = reader.read(&mut piece).and_then(|bytes| {
                pace.moved(bytes)?;
                Ok(bytes)
            });
            let bytes = outcome.map_err(|error| Fault::network(&self.store, error.into()))?;
            let at = |position: u64| {
                let at = position.saturating_sub(read);
                usize::try_from(at).unwrap_or(bytes).min(bytes)
            };
            content.extend_from_slice(&piece[at(skip)..at(end)]);
            read += bytes as u64;
            let goes_on = read > end;
            if bytes == 0 && announced.is_some_and(|announced| announced != read) {
                let cut = io::Error::from(io::ErrorKind::UnexpectedEof);
                return Err(Fault::network(&self.store, cut.into()));
            }
            if bytes == 0 || goes_on {
                return Ok(Excerpt {
                    content: content.into(),
                    read,
                    goes_on,
                });
            }
        }
    }

    /// How long a body of this size may take.
    fn limit_for(&self, bytes: u64) -> Duration {
        // To be sure that a connection stands still takes as long already.
        self.stall * 2 + Duration::from_secs(bytes / BYTES_PER_SECOND_MIN)
    }

    fn pace(&self) -> Pace<'_> {
        Pace {
            client: self,
            begun: None,
            moved: 0,
        }
    }
}

/// What was read of a body.
struct Excerpt {
    content: Bytes,
    /// With what was skipped.
    read: u64,
    /// There is more than was wanted.
    goes_on: bool,
}

/// Whether a body moves as it must.
struct Pace<'a> {
    client: &'a Client,
    begun: Option<Instant>,
    moved: u64,
}

impl Pace<'_> {
    /// So many bytes more have come, or gone.
    fn moved(&mut self, bytes: usize) -> io::Result<()> {
        self.moved += bytes as u64;
        let took = self.begun.get_or_insert_with(Instant::now).elapsed();
        let limit = match self.client.is_stopped() {
            true => self.client.stall,
            false => self.client.limit_for(self.moved),
        };
        if took <= limit {
            return Ok(());
        }
        Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!(
                "{} bytes took more than {} seconds",
                self.moved,
                limit.as_secs()
            ),
        ))
    }
}

/// Where the part of a `Content-Range` begins: `bytes 200-299/1000`.
fn begin_of(range: &str) -> Option<u64> {
    range
        .strip_prefix("bytes ")?
        .split_once('-')?
        .0
        .parse()
        .ok()
}

/// Whether the store encrypts with a key that it is given or that a service keeps: the tag of an object is then no checksum of what was sent. It has compared
/// that with the one in the request, and to read everything back would double the traffic for nothing.
fn has_other_tags(answer: &Response<Body>) -> bool {
    let by_service = header(answer, "x-amz-server-side-encryption")
        .is_some_and(|how| how.starts_with("aws:kms"));
    by_service || header(answer, "x-amz-server-side-encryption-customer-algorithm").is_some()
}

fn sign<'a>(action: &impl S3Action<'a>) -> String {
    action.sign(SIGNED_FOR).into()
}

fn agent(place: &S3Place, options: &StorageOptions, stall: Duration) -> Result<Agent> {
    let mut config = Agent::config_builder()
        .http_status_as_error(false)
        .proxy(proxy(place)?)
        // A signature is for one address. What a redirection says is told.
        .max_redirects(0)
        .max_redirects_will_error(false)
        .user_agent(concat!("shophosting-backup/", env!("CARGO_PKG_VERSION")))
        .timeout_resolve(Some(CONNECT_LIMIT))
        .timeout_connect(Some(CONNECT_LIMIT))
        .timeout_recv_response(Some(stall))
        .timeout_per_read(Some(stall))
        .timeout_per_write(Some(stall))
        .max_idle_connections(IDLE_CONNECTIONS_MAX)
        .max_idle_connections_per_host(IDLE_CONNECTIONS_MAX);
    if place.endpoint.scheme() == "https" {
        let tls = TlsConfig::builder()
            .root_certs(authorities(options.ca_file.as_deref())?)
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()));
        config = config.tls_config(tls.build());
    }
    Ok(config.build().new_agent())
}

/// The proxy of the environment, as operators know it of other programs: it is for what is reached by https, and not for this machine.
fn proxy(place: &S3Place) -> Result<Option<Proxy>> {
    let named = ["ALL_PROXY", "all_proxy", "HTTPS_PROXY", "https_proxy"]
        .into_iter()
        .find(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty()));
    let Some(named) = named.filter(|_| !place.is_on_this_machine()) else {
        return Ok(None);
    };
    let proxy = Proxy::try_from_env()
        .filter(|proxy| matches!(proxy.protocol(), ProxyProtocol::Http | ProxyProtocol::Https));
    // Its text may hold a password.
    proxy.map(Some).ok_or_else(|| {
        configuration(format!(
            "{named} names no proxy that can be used: write `http://host:port`, or unset it"
        ))
    })
}

/// Whom to believe that a store is what it says: who is in this file, or whom the system believes.
fn authorities(file: Option<&Path>) -> Result<RootCerts> {
    let system = || {
        let known = SYSTEM_CA_FILES.map(Path::new);
        known.into_iter().find(|file| file.exists())
    };
    let file = file.or_else(system).map(PathBuf::from).ok_or_else(|| {
        configuration(
            "this machine has no certificate authorities: install the package ca-certificates, or name a file of them in s3_ca_file",
        )
    })?;
    let bytes = std::fs::read(&file).map_err(|error| {
        Error::caused(
            ErrorKind::Configuration,
            format!("cannot read the certificates in {}", file.display()),
            error,
        )
    })?;
    let certificates: Vec<_> = parse_pem(&bytes)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    if certificates.is_empty() {
        return Err(configuration(format!(
            "there is no certificate in {}",
            file.display()
        )));
    }
    Ok(RootCerts::from(certificates))
}

fn credentials(key: &AccessKey) -> Credentials {
    let secret = key.secret.expose_secret();
    match &key.session_token {
        Some(token) => Credentials::new_with_token(&key.id, secret, token.expose_secret()),
        None => Credentials::new(&key.id, secret),
    }
}

/// The region that is in an address of Amazon's; None for all other stores.
fn amazon_region(endpoint: &url::Url) -> Option<String> {
    let Some(Host::Domain(host)) = endpoint.host() else {
        return None;
    };
    let rest = host
        .strip_suffix(".amazonaws.com")
        .or_else(|| host.strip_suffix(".amazonaws.com.cn"))?;
    let region = rest
        .rsplit('.')
        .next()
        .filter(|region| !matches!(*region, "s3" | "dualstack" | "s3-accelerate"));
    let region = region.map(|region| region.strip_prefix("s3-").unwrap_or(region));
    Some(region.unwrap_or("us-east-1").to_owned())
}

fn configuration(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Configuration, message)
}

/// Reads one piece after the other, without a copy of them all.
struct Pieces<'a> {
    left: &'a [Bytes],
    /// How much of the first of them was read.
    read: usize,
    pace: Pace<'a>,
}

impl<'a> Pieces<'a> {
    fn of(content: &'a [Bytes], pace: Pace<'a>) -> Self {
        Self {
            left: content,
            read: 0,
            pace,
        }
    }
}

impl Read for Pieces<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let [first, rest @ ..] = self.left {
            let unread = &first[self.read..];
            if !unread.is_empty() {
                let length = unread.len().min(buffer.len());
                self.pace.moved(length)?;
                buffer[..length].copy_from_slice(&unread[..length]);
                self.read += length;
                return Ok(length);
            }
            (self.left, self.read) = (rest, 0);
        }
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_read_in_their_order_and_to_their_end() {
        let location: crate::storage::Location = "s3:http://127.0.0.1:9/b/r".parse().unwrap();
        let crate::storage::location::Place::S3(place) = location.place() else {
            panic!("{location}");
        };
        let options = StorageOptions {
            access_key: Some(AccessKey {
                id: "id".to_owned(),
                secret: "secret".into(),
                session_token: None,
            }),
            ..StorageOptions::default()
        };
        let client = Client::new(place, &options).unwrap();
        let pieces = ["", "abc", "", "d", "efghij", ""].map(Bytes::from);
        for step in 1..12 {
            let mut reader = Pieces::of(&pieces, client.pace());
            let mut read = Vec::new();
            let mut buffer = vec![0; step];
            while let Ok(length @ 1..) = reader.read(&mut buffer) {
                read.extend_from_slice(&buffer[..length]);
            }
            assert_eq!(read, b"abcdefghij");
        }
        let mut nothing = Pieces::of(&[], client.pace());
        assert_eq!(nothing.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn a_part_begins_where_its_header_says() {
        assert_eq!(begin_of("bytes 200-299/1000"), Some(200));
        assert_eq!(begin_of("bytes 0-0/*"), Some(0));
        for other in [
            "",
            "bytes */1000",
            "bytes -5/10",
            "lines 1-2/3",
            "bytes x-5/10",
        ] {
            assert_eq!(begin_of(other), None, "{other}");
        }
    }

    #[test]
    fn an_address_of_amazons_says_its_region() {
        for (host, region) in [
            ("s3.amazonaws.com", Some("us-east-1")),
            ("s3.eu-central-1.amazonaws.com", Some("eu-central-1")),
            ("s3.dualstack.eu-west-1.amazonaws.com", Some("eu-west-1")),
            ("s3-eu-west-1.amazonaws.com", Some("eu-west-1")),
            ("s3.cn-north-1.amazonaws.com.cn", Some("cn-north-1")),
            ("s3.example.com", None),
            ("amazonaws.com.example.com", None),
            ("127.0.0.1", None),
        ] {
            let endpoint = format!("https://{host}").parse().unwrap();
            assert_eq!(amazon_region(&endpoint).as_deref(), region, "{host}");
        }
    }
}
