//! Where a repository is, in the syntax of restic.
//!
//! What an operator wrote is kept word for word, so that every message names the repository as he knows it. Never: a
//! password or an access key in a location, nor in the message that refuses one.

use std::fmt;
use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::Deserialize;
use url::{Host, Url};

use crate::error::{Error, ErrorKind, Result};

/// Kinds of repositories that restic and rustic know by these prefixes and that this program does not have yet.
const NOT_SUPPORTED: [&str; 7] = ["azure", "b2", "gs", "opendal", "rclone", "rest", "swift"];

/// Where a repository is: `sftp:user@host:/path`, `sftp://user@host:port//path`, `s3:https://host/bucket/prefix` or a local path.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Location {
    written: String,
    place: Place,
}

/// The parts of a [`Location`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    Local(PathBuf),
    Sftp(SftpPlace),
    S3(S3Place),
}

/// A prefix in a bucket of an S3-compatible object store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct S3Place {
    /// The store, without the bucket.
    pub(crate) endpoint: Url,
    pub(crate) bucket: String,
    /// Without slashes at its ends; empty: the bucket is all the repository's.
    pub(crate) prefix: String,
}

impl S3Place {
    /// Whether the store is reached without a network.
    #[cfg(feature = "object-storage")]
    pub(crate) fn is_on_this_machine(&self) -> bool {
        is_on_this_machine(&self.endpoint)
    }
}

fn is_on_this_machine(endpoint: &Url) -> bool {
    match endpoint.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

/// A directory on an SFTP server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SftpPlace {
    /// None: the user who runs this program, as `ssh` has it.
    pub(crate) user: Option<String>,
    /// A name or an address, without brackets.
    pub(crate) host: String,
    pub(crate) port: u16,
    /// Absolute, or relative to where the server puts us (the home directory).
    pub(crate) path: String,
}

impl Location {
    /// Whether the repository is in a directory of this machine.
    pub fn is_local(&self) -> bool {
        matches!(self.place, Place::Local(_))
    }

    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    /// Whether the two are on the same machine, by the same account, or in the same bucket.
    pub(crate) fn differs_in_path_alone(&self, other: &Self) -> bool {
        match (&self.place, &other.place) {
            (Place::Local(_), Place::Local(_)) => true,
            (Place::Sftp(one), Place::Sftp(two)) => {
                (&one.user, &one.host, one.port) == (&two.user, &two.host, two.port)
            }
            (Place::S3(one), Place::S3(two)) => {
                (&one.endpoint, &one.bucket) == (&two.endpoint, &two.bucket)
            }
            _ => false,
        }
    }

    /// The directory that everything of its path is in whose name holds this; None where it names none. An object store has no directories.
    pub(crate) fn directory_before(&self, part: &str) -> Option<Self> {
        let place = match &self.place {
            Place::Local(path) => Place::Local(directory_before(path.to_str()?, part)?.into()),
            Place::Sftp(place) => Place::Sftp(SftpPlace {
                path: directory_before(&place.path, part)?.to_owned(),
                ..place.clone()
            }),
            Place::S3(_) => return None,
        };
        Some(Self {
            written: directory_before(&self.written, part)?.to_owned(),
            place,
        })
    }

    /// What was written.
    pub fn as_str(&self) -> &str {
        &self.written
    }
}

impl FromStr for Location {
    type Err = Error;

    /// [`ErrorKind::Configuration`] for what cannot be understood or is not supported yet.
    fn from_str(text: &str) -> Result<Self> {
        Ok(Self {
            written: text.to_owned(),
            place: parse(text)?,
        })
    }
}

impl TryFrom<String> for Location {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<&Path> for Location {
    /// A local directory, whatever its name looks like.
    fn from(path: &Path) -> Self {
        Self {
            written: path.display().to_string(),
            place: Place::Local(path.to_owned()),
        }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.written)
    }
}

fn directory_before<'a>(path: &'a str, part: &str) -> Option<&'a str> {
    let (before, _) = path.split_once(part)?;
    match before.rsplit_once('/')? {
        ("", _) => Some("/"),
        (directory, _) => Some(directory),
    }
}

fn parse(text: &str) -> Result<Place> {
    if text.is_empty() {
        return Err(bad(
            "a repository location is empty: write `sftp:user@host:/path` or a local path",
        ));
    }
    if text.contains(['\0', '\n', '\r']) {
        return Err(bad("a repository location holds a control character"));
    }
    if let Some(url) = text.strip_prefix("sftp://") {
        return parse_url(url).map(Place::Sftp);
    }
    if let Some(rest) = text.strip_prefix("sftp:") {
        return parse_scp(rest).map(Place::Sftp);
    }
    if let Some(rest) = text.strip_prefix("s3:") {
        return parse_s3(rest).map(Place::S3);
    }
    if let Some(path) = text.strip_prefix("local:") {
        return match path {
            "" => Err(bad("the repository location `local:` names no directory")),
            path => Ok(Place::Local(path.into())),
        };
    }
    // Only the scheme is repeated: what follows it may hold an access key.
    if let Some((scheme, _)) = text.split_once(':')
        && NOT_SUPPORTED.contains(&scheme)
    {
        return Err(bad(format!(
            "repositories of the kind `{scheme}:` are not supported yet: use `sftp:user@host:/path`, `s3:https://host/bucket/prefix` or a local path"
        )));
    }
    if let Some((scheme, _)) = text.split_once("://")
        && scheme.bytes().all(|b| b.is_ascii_alphanumeric())
    {
        return Err(bad(format!(
            "`{scheme}://` is not a kind of repository: use `sftp://user@host:port//path` or a local path"
        )));
    }
    Ok(Place::Local(text.into()))
}

/// `user@host:path`, as scp has it. The host may be an IPv6 address in brackets.
fn parse_scp(text: &str) -> Result<SftpPlace> {
    // A user may hold an `@`, a host never does; a path may hold anything.
    let colon = text.find(':').unwrap_or(text.len());
    let end_of_host = match text[..colon].find('[') {
        Some(open) => text[open..].find(']').map(|close| open + close + 1),
        None => Some(colon),
    };
    let Some((authority, path)) =
        end_of_host.and_then(|end| Some((text.get(..end)?, text.get(end..)?.strip_prefix(':')?)))
    else {
        return Err(bad(
            "an SFTP location needs a host and a path: `sftp:user@host:/path`",
        ));
    };
    let (user, host) = match authority.rsplit_once('@') {
        Some((user, host)) => (Some(user), host),
        // `user:password@host:/path` would be a host called `user` by the letter.
        None if path
            .split('/')
            .next()
            .is_some_and(|start| start.contains('@') && start.ends_with(':')) =>
        {
            return Err(password_refused());
        }
        None => (None, authority),
    };
    finish(user.map(str::to_owned), host, 22, path.to_owned())
}

/// `user@host:port/path`: what follows the first slash is the path, so two slashes make it absolute.
fn parse_url(text: &str) -> Result<SftpPlace> {
    let Some((authority, path)) = text.split_once('/') else {
        return Err(bad(
            "an SFTP location needs a host and a path: `sftp://user@host:port//absolute/path`, with one slash for a path below the home directory",
        ));
    };
    let (user, host_and_port) = match authority.rsplit_once('@') {
        Some((user, rest)) => (Some(decode(user)?), rest),
        None => (None, authority),
    };
    let (host, port) = match host_and_port.rsplit_once(':') {
        // The last colon of `[::1]` is inside the brackets.
        Some((host, port)) if !port.contains(']') => {
            let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(|| {
                bad("the port of an SFTP location must be a number from 1 to 65535")
            })?;
            (host, port)
        }
        _ => (host_and_port, 22),
    };
    finish(user, host, port, decode(path)?)
}

/// `https://host[:port]/bucket/prefix`, as restic has it; also with `//` or nothing in place of `https://`.
fn parse_s3(text: &str) -> Result<S3Place> {
    let (scheme, rest) = match text.split_once("://") {
        Some((scheme @ ("http" | "https"), rest)) => (scheme, rest),
        Some(_) => {
            return Err(bad(
                "an object store is reached by https: `s3:https://host/bucket/prefix`",
            ));
        }
        None => ("https", text.strip_prefix("//").unwrap_or(text)),
    };
    // Every message does without the text: somebody may have written his access key into it.
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    if authority.contains('@') {
        return Err(bad(
            "an object storage location must not hold an access key: use `s3_key_file`, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        ));
    }
    let endpoint = Url::parse(&format!("{scheme}://{authority}/"))
        .ok()
        .filter(|url| url.path() == "/" && url.query().is_none() && url.fragment().is_none())
        .ok_or_else(|| {
            bad("an object storage location needs a host: `s3:https://host/bucket/prefix`")
        })?;
    if scheme == "http" && !is_on_this_machine(&endpoint) {
        return Err(bad(
            "an object store is reached by `s3:http://` on this machine alone: use `s3:https://host/bucket/prefix`",
        ));
    }
    let (bucket, prefix) = path.split_once('/').unwrap_or((path, ""));
    let is_of_bucket = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    if bucket.is_empty() || !bucket.bytes().all(is_of_bucket) || bucket.starts_with('.') {
        return Err(bad(
            "an object storage location needs the name of a bucket after the host: `s3:https://host/bucket/prefix`",
        ));
    }
    let prefix = prefix.trim_end_matches('/');
    let is_plain = |part: &str| !matches!(part, "" | "." | "..");
    // What restic would decode, tidy up or take for something else.
    if !prefix.is_empty()
        && (!prefix.split('/').all(is_plain)
            || prefix.contains(|c: char| c.is_control() || "%?#\\".contains(c)))
    {
        return Err(bad(
            "the prefix of an object storage location has a part that is empty, `.` or `..`, or one of the characters % ? # \\",
        ));
    }
    Ok(S3Place {
        endpoint,
        bucket: bucket.to_owned(),
        prefix: prefix.to_owned(),
    })
}

fn finish(user: Option<String>, host: &str, port: u16, path: String) -> Result<SftpPlace> {
    if let Some(user) = &user {
        if user.contains(':') {
            return Err(password_refused());
        }
        if user.is_empty() || user.contains(char::is_control) {
            return Err(bad(
                "the user of an SFTP location is empty or holds a control character",
            ));
        }
    }
    let host = match host.strip_prefix('[') {
        Some(rest) => {
            let address = rest.strip_suffix(']').unwrap_or_default();
            // A zone (`fe80::1%eth0`) is for the resolver; the address in front of it must be one.
            let (plain, _zone) = address.split_once('%').unwrap_or((address, ""));
            if plain.parse::<Ipv6Addr>().is_err() {
                return Err(bad(
                    "what is in the brackets of an SFTP location must be an IPv6 address",
                ));
            }
            address
        }
        None => host,
    };
    if host.is_empty()
        || host.starts_with('-')
        || host.contains(|c: char| c.is_whitespace() || c.is_control() || "/[]@".contains(c))
    {
        return Err(bad(
            "the host of an SFTP location is empty or not a host name",
        ));
    }
    if path.is_empty() {
        return Err(bad(
            "an SFTP location needs a path after the host: `sftp:user@host:/path`",
        ));
    }
    if path.contains('\0') {
        return Err(bad(
            "the path of an SFTP location holds a control character",
        ));
    }
    if path.starts_with('~') {
        return Err(bad(
            "servers do not understand `~` in an SFTP path: write a relative path, which starts at the home directory",
        ));
    }
    Ok(SftpPlace {
        user,
        host: host.to_owned(),
        port,
        path,
    })
}

/// Undo the percent encoding of URLs.
fn decode(text: &str) -> Result<String> {
    let malformed = || {
        bad("a `%` in an sftp:// location must be followed by two hexadecimal digits of UTF-8 text")
    };
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let mut byte = [0];
        let digits = rest.get(..2).ok_or_else(malformed)?;
        hex::decode_to_slice(digits, &mut byte).map_err(|_| malformed())?;
        bytes.push(byte[0]);
        rest = &rest[2..];
    }
    String::from_utf8(bytes).map_err(|_| malformed())
}

fn password_refused() -> Error {
    bad("an SFTP location must not hold a password: use a key (`ssh_key`, or the ssh agent)")
}

fn bad(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Configuration, message)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sftp(text: &str) -> SftpPlace {
        match text.parse::<Location>().unwrap().place {
            Place::Sftp(place) => place,
            other => panic!("{text} became {other:?}"),
        }
    }

    fn s3(text: &str) -> S3Place {
        match text.parse::<Location>().unwrap().place {
            Place::S3(place) => place,
            other => panic!("{text} became {other:?}"),
        }
    }

    fn place(user: Option<&str>, host: &str, port: u16, path: &str) -> SftpPlace {
        SftpPlace {
            user: user.map(Into::into),
            host: host.into(),
            port,
            path: path.into(),
        }
    }

    #[test]
    fn every_form_of_restic_is_understood() {
        assert_eq!(sftp("sftp:u@h:/a/b"), place(Some("u"), "h", 22, "/a/b"));
        assert_eq!(sftp("sftp:h:a/b"), place(None, "h", 22, "a/b"));
        assert_eq!(
            sftp("sftp:u@domain@h:/a:b@c"),
            place(Some("u@domain"), "h", 22, "/a:b@c")
        );
        assert_eq!(sftp("sftp:u@[::1]:/a"), place(Some("u"), "::1", 22, "/a"));
        assert_eq!(
            sftp("sftp:[fe80::1%eth0]:a"),
            place(None, "fe80::1%eth0", 22, "a")
        );
        assert_eq!(sftp("sftp:h:/a[1]"), place(None, "h", 22, "/a[1]"));
        assert_eq!(
            sftp("sftp://u@h:2222//a/b"),
            place(Some("u"), "h", 2222, "/a/b")
        );
        assert_eq!(
            sftp("sftp://u@h:2222/a/b"),
            place(Some("u"), "h", 2222, "a/b")
        );
        assert_eq!(sftp("sftp://h//a%20b"), place(None, "h", 22, "/a b"));
        assert_eq!(sftp("sftp://[::1]:2222//a"), place(None, "::1", 2222, "/a"));
        assert_eq!(sftp("sftp://u@[::1]//a"), place(Some("u"), "::1", 22, "/a"));
    }

    #[test]
    fn everything_else_is_a_local_path() {
        for (text, path) in [
            ("/srv/a", "/srv/a"),
            ("a/b", "a/b"),
            ("local:s3:x", "s3:x"),
            ("./s3:x", "./s3:x"),
            ("C:x", "C:x"),
        ] {
            let location: Location = text.parse().unwrap();
            assert_eq!(location.place(), &Place::Local(path.into()));
            assert!(location.is_local());
            assert_eq!(location.to_string(), text);
        }
    }

    #[test]
    fn every_form_that_restic_has_of_a_bucket_is_understood() {
        let place = |endpoint: &str, bucket: &str, prefix: &str| S3Place {
            endpoint: endpoint.parse().unwrap(),
            bucket: bucket.into(),
            prefix: prefix.into(),
        };
        let store = "https://s3.example.com";
        for (text, expected) in [
            ("s3:https://s3.example.com/b/a/c", place(store, "b", "a/c")),
            ("s3:s3.example.com/b/a/c/", place(store, "b", "a/c")),
            ("s3://s3.example.com/b", place(store, "b", "")),
            ("s3:https://s3.example.com/b/", place(store, "b", "")),
            (
                "s3:https://h:9000/my-bucket/a b",
                place("https://h:9000", "my-bucket", "a b"),
            ),
            (
                "s3:http://127.0.0.1:9000/b/p",
                place("http://127.0.0.1:9000", "b", "p"),
            ),
            (
                "s3:http://[::1]:9000/b",
                place("http://[::1]:9000", "b", ""),
            ),
            ("s3:http://localhost/b", place("http://localhost", "b", "")),
        ] {
            assert_eq!(s3(text), expected, "{text}");
        }
    }

    #[test]
    fn what_holds_all_that_have_a_name_is_known_where_there_are_directories() {
        let before = |text: &str| {
            let location: Location = text.parse().unwrap();
            location.directory_before("{customer}")
        };
        for (text, directory) in [
            ("/mnt/nas/{customer}", "/mnt/nas"),
            ("/mnt/nas/x-{customer}/b/{customer}", "/mnt/nas"),
            ("/{customer}", "/"),
            ("local:shops/{customer}", "local:shops"),
            ("sftp:u@h:/srv/{customer}", "sftp:u@h:/srv"),
            (
                "sftp://u@h:2222//a%20b/{customer}",
                "sftp://u@h:2222//a%20b",
            ),
        ] {
            let found = before(text).unwrap();
            assert_eq!(found.as_str(), directory);
            let parsed: Location = directory.parse().unwrap();
            assert_eq!(found.place(), parsed.place(), "{text}");
        }
        for text in [
            "{customer}",
            "sftp:u@h:{customer}",
            "s3:https://h/b/x/{customer}",
            "/srv/all",
        ] {
            assert_eq!(before(text), None, "{text}");
        }
    }

    #[test]
    fn an_object_store_elsewhere_is_reached_by_https_alone() {
        for text in [
            "s3:http://s3.example.com/b",
            "s3:http://10.0.0.5:9000/b",
            "s3:http://localhost.example.com/b",
            "s3:http://127.0.0.1.example.com/b",
            "s3:ftp://127.0.0.1/b",
        ] {
            let error = text.parse::<Location>().unwrap_err();
            assert!(error.to_string().contains("https"), "{text}: {error}");
        }
    }

    #[test]
    fn other_object_storage_is_refused_by_name_and_without_its_key() {
        for text in [
            "b2:bucket:hunter2",
            "rest:https://u:hunter2@h/",
            "azure:hunter2:/",
        ] {
            let error = text.parse::<Location>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Configuration);
            assert!(error.to_string().contains("not supported yet"), "{error}");
            assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
        }
    }

    #[test]
    fn a_password_is_refused_and_not_repeated() {
        for text in [
            "sftp://u:hunter2@h//a",
            "sftp:u:hunter2@h:/a",
            "http://u:hunter2@h/",
            "s3:https://key:hunter2@h/b",
            "s3:key:hunter2@h/b",
            "s3://hunter2@h/b",
            "s3:hunter2://h/b",
        ] {
            let error = match text.parse::<Location>() {
                Err(error) => error,
                Ok(location) => panic!("{location:?}"),
            };
            assert_eq!(error.kind(), ErrorKind::Configuration);
            assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
        }
    }

    #[test]
    fn nonsense_is_a_configuration_error() {
        for text in [
            "",
            "local:",
            "sftp:",
            "sftp:h",
            "sftp:h:",
            "sftp:@h:/a",
            "sftp::/a",
            "sftp://",
            "sftp://h",
            "sftp://h/",
            "sftp://h:0//a",
            "sftp://h:x//a",
            "sftp://h:99999//a",
            "sftp:[nonsense]:/a",
            "sftp:[::1:/a",
            "sftp:h:~/a",
            "sftp:-oProxyCommand=x:/a",
            "sftp://h//a%2",
            "sftp://h//a%ff",
            "sftp://h//a%00",
            "ftp://h/a",
            "s3:",
            "s3:h",
            "s3:https://",
            "s3:https:///b",
            "s3:https://h/",
            "s3:https://h//p",
            "s3:https://h/..",
            "s3:https://h/b c/p",
            "s3:https://h/b//p",
            "s3:https://h/b/../c",
            "s3:https://h/b/a%20b",
            "s3:https://h/b/a?x",
            "s3:https://h:x/b",
            "s3:https://h?/b",
            "a\nb",
        ] {
            match text.parse::<Location>() {
                Err(error) => assert_eq!(error.kind(), ErrorKind::Configuration, "{text}"),
                Ok(location) => panic!("{text} became {location:?}"),
            }
        }
    }

    proptest! {
        #[test]
        fn no_text_panics_and_what_is_accepted_is_shown_as_written(text in "(sftp:|sftp://|s3:|s3:https://|local:|)[a-z@:/\\[\\]%~. é0-9-]{0,24}") {
            if let Ok(location) = text.parse::<Location>() {
                prop_assert_eq!(location.to_string(), text);
            }
        }

        #[test]
        fn both_sftp_forms_mean_the_same_place(
            user in proptest::option::of("[a-z][a-z0-9_-]{0,8}"),
            host in "[a-z0-9][a-z0-9.-]{0,12}",
            path in "/?[a-zA-Z0-9._ :é-][a-zA-Z0-9._/ :é-]{0,20}",
        ) {
            let at = user.as_ref().map(|user| format!("{user}@")).unwrap_or_default();
            let scp = sftp(&format!("sftp:{at}{host}:{path}"));
            prop_assert_eq!(&scp, &sftp(&format!("sftp://{at}{host}/{path}")));
            prop_assert_eq!(&scp, &place(user.as_deref(), &host, 22, &path));
        }
    }
}
