//! Which faults pass.
//!
//! Everything that goes wrong on the way to the store is sorted here, once. Never: a refused key tried again; a cut connection taken for the store's last
//! word; text of the store, or of a signed address, in a message.

use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use ureq::http::{Response, StatusCode};

use crate::error::{Error, ErrorKind};

/// Stores refuse requests that were signed at another time than it is for them; Amazon's does from here on.
const CLOCK_MAY_BE_OFF: Duration = Duration::from_secs(15 * 60);

/// What went wrong, by what to do about it.
#[derive(Debug)]
pub(super) enum Fault {
    /// The connection is lost or was never made, or the store asks for patience. Another try may do.
    Passing(Error),
    /// The store's word, or a mistake on our side. It would be the same next time.
    Permanent(Error),
}

impl Fault {
    /// A fault of the connection, or of the network below it.
    pub(super) fn network(store: &str, error: ureq::Error) -> Self {
        match error {
            ureq::Error::Rustls(error) => Self::tls(store, error),
            ureq::Error::Io(error) => match error
                .get_ref()
                .and_then(|inner| inner.downcast_ref::<rustls::Error>())
            {
                Some(inner) => Self::tls(store, inner.clone()),
                None => Self::Passing(Error::caused(
                    ErrorKind::Unreachable,
                    format!("the connection to {store} is lost or cannot be made"),
                    error,
                )),
            },
            ureq::Error::HostNotFound => Self::Passing(Error::new(
                ErrorKind::Unreachable,
                format!("the name of {store} is not known"),
            )),
            error @ (ureq::Error::Timeout(_)
            | ureq::Error::ConnectionFailed
            | ureq::Error::Protocol(_)
            | ureq::Error::ConnectProxyFailed(_)) => Self::Passing(Error::caused(
                ErrorKind::Unreachable,
                format!("{store} does not answer as it must"),
                error.to_string(),
            )),
            // Their texts may hold the signed address.
            _ => Self::Permanent(Error::new(
                ErrorKind::Failed,
                format!("no request can be made to {store}, or its answer is none"),
            )),
        }
    }

    fn tls(store: &str, error: rustls::Error) -> Self {
        let message = match &error {
            rustls::Error::InvalidCertificate(_) => format!(
                "the certificate of {store} is not to be trusted: correct the location, or name the file of its certificate authority in s3_ca_file"
            ),
            _ => format!("no encrypted connection to {store} can be made"),
        };
        Self::Permanent(Error::caused(ErrorKind::Refused, message, error))
    }
}

/// An answer other than success.
pub(super) struct Refusal {
    status: StatusCode,
    /// What the store calls it; empty where it does not say.
    code: String,
    /// Where the bucket is, where that is the reason.
    region: Option<String>,
    date: Option<SystemTime>,
}

impl Refusal {
    pub(super) fn new<B>(answer: &Response<B>, document: &str) -> Self {
        let is_plain = |text: &&str| {
            text.len() <= 64 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        };
        let said = |name: &str| element(document, name).filter(is_plain);
        Self {
            status: answer.status(),
            code: said("Code").unwrap_or_default().to_owned(),
            region: header(answer, "x-amz-bucket-region")
                .filter(is_plain)
                .or_else(|| said("Region"))
                .map(str::to_owned),
            date: date_of(answer),
        }
    }

    /// There is an object of that name already.
    pub(super) fn is_of_an_object_that_is_there(&self) -> bool {
        self.code == "PreconditionFailed" || self.status == StatusCode::PRECONDITION_FAILED
    }

    /// The store does not know how to write on a condition.
    pub(super) fn is_of_a_condition(&self) -> bool {
        self.code == "NotImplemented" || self.status == StatusCode::NOT_IMPLEMENTED
    }

    /// The object ends before the part that was asked for.
    pub(super) fn is_of_a_range(&self) -> bool {
        self.code == "InvalidRange" || self.status == StatusCode::RANGE_NOT_SATISFIABLE
    }

    pub(super) fn fault(self, store: &str, bucket: &str) -> Fault {
        let permanent = |kind, message: String| Fault::Permanent(Error::new(kind, message));
        match (self.code.as_str(), self.status.as_u16()) {
            ("NoSuchBucket", _) => permanent(
                ErrorKind::Refused,
                format!(
                    "there is no bucket `{bucket}` at {store}: create it there, or correct the location"
                ),
            ),
            ("NoSuchKey" | "", 404) => permanent(
                ErrorKind::NotFound,
                format!("it is not in the bucket `{bucket}`"),
            ),
            (
                "PermanentRedirect"
                | "AuthorizationHeaderMalformed"
                | "IllegalLocationConstraintException",
                _,
            )
            | (_, 301 | 307 | 308) => {
                permanent(ErrorKind::Refused, self.other_region(store, bucket))
            }
            ("RequestTimeTooSkewed" | "RequestExpired", _) | (_, 401 | 403) => {
                permanent(ErrorKind::Refused, self.refused(store, bucket))
            }
            ("QuotaExceeded" | "XMinioStorageFull" | "InsufficientStorage", _) | (_, 507) => {
                permanent(
                    ErrorKind::NoSpace,
                    format!("the bucket `{bucket}` at {store} is full"),
                )
            }
            (
                "RequestTimeout"
                | "SlowDown"
                | "IncompleteBody"
                | "BadDigest"
                | "ConditionalRequestConflict"
                | "OperationAborted",
                _,
            )
            | (_, 408 | 429 | 500 | 502..=506 | 508..=599) => Fault::Passing(Error::new(
                ErrorKind::Unreachable,
                format!("{store} asks for another try{}", self.words()),
            )),
            _ => permanent(
                ErrorKind::Failed,
                format!("{store} refuses the request{}", self.words()),
            ),
        }
    }

    fn words(&self) -> String {
        match self.code.as_str() {
            "" => format!(" ({})", self.status.as_u16()),
            code => format!(" ({} {code})", self.status.as_u16()),
        }
    }

    fn other_region(&self, store: &str, bucket: &str) -> String {
        match &self.region {
            Some(region) => format!(
                "the bucket `{bucket}` is in the region `{region}`: name it in s3_region, or in the location"
            ),
            None => format!(
                "{store} says that the bucket `{bucket}` is elsewhere: correct the location or s3_region"
            ),
        }
    }

    fn refused(&self, store: &str, bucket: &str) -> String {
        // They say nothing else when it is the clock that is wrong.
        if let Some(off) = self
            .date
            .and_then(|date| clock_off(SystemTime::now(), date))
        {
            return format!("{store} refuses what is signed at a wrong time: {off}; set it right");
        }
        match self.code.as_str() {
            "RequestTimeTooSkewed" | "RequestExpired" => {
                format!(
                    "{store} refuses what is signed at a wrong time: set the clock of this machine right"
                )
            }
            "InvalidAccessKeyId" => {
                format!(
                    "{store} does not know the access key: correct s3_key_file or AWS_ACCESS_KEY_ID"
                )
            }
            "SignatureDoesNotMatch" => format!(
                "{store} says that the secret of the access key is wrong: correct s3_key_file or AWS_SECRET_ACCESS_KEY, or s3_region"
            ),
            "ExpiredToken" | "InvalidToken" => {
                format!("{store} does not take the session token, or no longer: get a new one")
            }
            _ => format!(
                "{store} does not let this access key do that in the bucket `{bucket}`{}: allow it to list the bucket, and to get, put and delete objects",
                self.words()
            ),
        }
    }
}

/// What is in the one element of this name; None where there is none.
fn element<'a>(document: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = document.split_once(&format!("<{name}>"))?;
    let (text, _) = rest.split_once(&format!("</{name}>"))?;
    Some(text.trim())
}

/// How this machine's clock is wrong, if it is by so much that nothing is accepted.
fn clock_off(ours: SystemTime, theirs: SystemTime) -> Option<String> {
    let (apart, side) = match ours.duration_since(theirs) {
        Ok(ahead) => (ahead, "ahead of"),
        Err(behind) => (behind.duration(), "behind"),
    };
    (apart >= CLOCK_MAY_BE_OFF).then(|| {
        let minutes = apart.as_secs() / 60;
        format!("the clock of this machine is {minutes} minutes {side} its own")
    })
}

pub(super) fn header<'a, B>(answer: &'a Response<B>, name: &str) -> Option<&'a str> {
    answer.headers().get(name)?.to_str().ok()
}

/// The store's time.
pub(super) fn date_of<B>(answer: &Response<B>) -> Option<SystemTime> {
    let date = jiff::fmt::rfc2822::parse(header(answer, "date")?).ok()?;
    Some(Timestamp::from(date).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(status: u16, headers: &[(&str, &str)], document: &str) -> Fault {
        let mut answer = Response::builder().status(status);
        for (name, value) in headers {
            answer = answer.header(*name, *value);
        }
        let answer = answer.body(()).unwrap();
        Refusal::new(&answer, document).fault("https://s3.example.com", "b")
    }

    fn refusal(status: u16, headers: &[(&str, &str)], document: &str) -> Error {
        match fault(status, headers, document) {
            Fault::Permanent(error) => error,
            other => panic!("{other:?}"),
        }
    }

    fn named(code: &str) -> String {
        format!(
            "<?xml version=\"1.0\"?>\n<Error><Code>{code}</Code><Message>hunter2</Message></Error>"
        )
    }

    #[test]
    fn what_a_store_says_for_good_is_one_sentence_that_says_what_to_do() {
        use ErrorKind::{Failed, NoSpace, NotFound, Refused};
        for (status, code, kind, says) in [
            (404, "NoSuchBucket", Refused, "create it there"),
            (404, "NoSuchKey", NotFound, "not in the bucket"),
            (404, "", NotFound, "not in the bucket"),
            (403, "InvalidAccessKeyId", Refused, "know the access key"),
            (403, "SignatureDoesNotMatch", Refused, "secret of the"),
            (403, "AccessDenied", Refused, "allow it to list"),
            (403, "RequestTimeTooSkewed", Refused, "clock of this"),
            (301, "PermanentRedirect", Refused, "s3_region"),
            (507, "", NoSpace, "is full"),
            (501, "NotImplemented", Failed, "501 NotImplemented"),
            (400, "<script>", Failed, "(400)"),
        ] {
            let error = refusal(status, &[], &named(code));
            assert_eq!(error.kind(), kind, "{code}: {error}");
            assert!(error.to_string().contains(says), "{code}: {error}");
            assert!(!error.chain().contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn what_passes_is_tried_again() {
        for (status, code) in [
            (503, "SlowDown"),
            (500, "InternalError"),
            (502, ""),
            (429, ""),
            (400, "RequestTimeout"),
            (400, "BadDigest"),
        ] {
            let fault = fault(status, &[], &named(code));
            assert!(matches!(fault, Fault::Passing(_)), "{code}: {fault:?}");
        }
    }

    #[test]
    fn the_region_of_a_bucket_that_is_elsewhere_is_told() {
        let error = refusal(301, &[("x-amz-bucket-region", "eu-north-1")], "");
        assert!(error.to_string().contains("`eu-north-1`"), "{error}");
        let document =
            "<Error><Code>AuthorizationHeaderMalformed</Code><Region>eu-west-3</Region></Error>";
        let error = refusal(400, &[], document);
        assert!(error.to_string().contains("`eu-west-3`"), "{error}");
    }

    #[test]
    fn a_wrong_clock_is_told_from_a_wrong_key() {
        let date = |seconds: i64| {
            let at = Timestamp::now().as_second() + seconds;
            let zoned = Timestamp::from_second(at)
                .unwrap()
                .to_zoned(jiff::tz::TimeZone::UTC);
            jiff::fmt::rfc2822::to_string(&zoned).unwrap()
        };
        for code in [
            "AccessDenied",
            "SignatureDoesNotMatch",
            "RequestTimeTooSkewed",
        ] {
            let error = refusal(403, &[("date", &date(3_660))], &named(code));
            assert!(
                error.to_string().contains("minutes behind its own"),
                "{error}"
            );
            let error = refusal(403, &[("date", &date(-3_660))], &named(code));
            assert!(
                error.to_string().contains("minutes ahead of its own"),
                "{error}"
            );
        }
        let error = refusal(403, &[("date", &date(60))], &named("SignatureDoesNotMatch"));
        assert!(
            error.to_string().contains("secret of the access key"),
            "{error}"
        );
    }
}
