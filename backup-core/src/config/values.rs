//! The kinds of values that the configuration has beyond plain ones: addresses with passwords, passwords kept
//! elsewhere, paths.

use std::fmt;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

use jiff::civil::{Date, Time};
use jiff::{Timestamp, Zoned};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Deserializer, de};
use url::{Host, Url};

use super::OwnersConfig;
use crate::error::{Error, ErrorKind, Result};

/// An address that may hold a password. [`fmt::Display`] and [`fmt::Debug`] never show the password.
#[derive(Clone)]
pub struct SecretUrl {
    whole: SecretString,
    shown: Url,
    has_password: bool,
}

impl SecretUrl {
    pub(super) fn parse(text: String, schemes: &[&str]) -> std::result::Result<Self, String> {
        // The text itself may not appear in a message: a slip in it does not make its password public.
        let mut shown = Url::parse(&text).map_err(|e| format!("not an address: {e}"))?;
        if !schemes.contains(&shown.scheme()) {
            return Err(format!(
                "the address must start with {}://",
                schemes.join(":// or ")
            ));
        }
        // Without `//` a password would be part of the path.
        if !shown.has_host() && shown.scheme() != "unix" {
            return Err("the address has no host".into());
        }
        let before_the_host = shown.password().is_some();
        if before_the_host && shown.set_password(Some("***")).is_err() {
            return Err("the address has a password but no host".into());
        }
        let pairs: Vec<(String, String)> = shown.query_pairs().into_owned().collect();
        let secret = |name: &str| matches!(name, "pass" | "password");
        let in_the_query = pairs.iter().any(|(name, _)| secret(name));
        if in_the_query {
            let hidden = pairs.iter().map(|(name, value)| match secret(name) {
                true => (name.as_str(), "***"),
                false => (name.as_str(), value.as_str()),
            });
            shown.query_pairs_mut().clear().extend_pairs(hidden);
        }
        Ok(Self {
            whole: text.into(),
            shown,
            has_password: before_the_host || in_the_query,
        })
    }

    /// The whole address, password and all.
    pub fn whole(&self) -> &SecretString {
        &self.whole
    }

    /// The user that it names; empty where it names none.
    pub(super) fn user(&self) -> String {
        decoded(self.shown.username())
    }

    /// The password before the host.
    pub(super) fn password(&self) -> Option<SecretString> {
        let whole = Url::parse(self.whole.expose_secret()).ok()?;
        whole.password().map(|password| decoded(password).into())
    }

    /// Whether it holds a password.
    pub fn has_password(&self) -> bool {
        self.has_password
    }

    /// The address with asterisks for the password.
    pub fn shown(&self) -> &Url {
        &self.shown
    }
}

impl fmt::Display for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.shown, f)
    }
}

impl fmt::Debug for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`", self.shown)
    }
}

/// What a part of an address stands for: the text with its `%xx` taken back.
pub(super) fn decoded(part: &str) -> String {
    let bytes = part.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let digits = part.get(at + 1..at + 3).filter(|_| *byte == b'%');
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(escaped) => {
                plain.push(escaped);
                at += 3;
            }
            None => {
                plain.push(*byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&plain).into_owned()
}

/// A Redis address (`redis://`, `unix://`).
pub(super) fn redis_url<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> std::result::Result<Option<SecretUrl>, D::Error> {
    let text = String::deserialize(deserializer)?;
    plain_redis_url(text).map(Some).map_err(de::Error::custom)
}

fn plain_redis_url(text: String) -> std::result::Result<SecretUrl, String> {
    if text.starts_with("rediss:") {
        return Err(
            "rediss:// (TLS) is not built in: use redis:// through a private network or a tunnel"
                .into(),
        );
    }
    let url = SecretUrl::parse(text, &["redis", "unix"])?;
    if !url.has_password() && !url.shown().username().is_empty() {
        return Err(
            "the address has a user but no password (a password alone is written redis://:PASSWORD@host)"
                .into(),
        );
    }
    // Its errors say what is wrong without quoting the address.
    redis::Client::open(url.whole().expose_secret()).map_err(|e| e.to_string())?;
    Ok(url)
}

/// An `http://` or `https://` address.
pub(super) fn web_url<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> std::result::Result<Option<Url>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let url = Url::parse(&text).map_err(de::Error::custom)?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(de::Error::custom("must be an http:// or https:// address"));
    }
    Ok(Some(url))
}

/// Where a webhook is told: over TLS, unless it stays on this machine.
pub(super) fn webhook_url<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> std::result::Result<Url, D::Error> {
    let text = String::deserialize(deserializer)?;
    plain_webhook_url(&text).map_err(de::Error::custom)
}

fn plain_webhook_url(text: &str) -> std::result::Result<Url, String> {
    let url = Url::parse(text).map_err(|e| format!("is not an address: {e}"))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err("may hold no user and no password: what is sent is signed".into());
    }
    let is_here = match url.host() {
        Some(Host::Domain(name)) => is_this_machine(name),
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    };
    match url.scheme() {
        "https" => Ok(url),
        "http" if is_here => Ok(url),
        _ => Err("must be an https:// address (http:// for this machine alone)".into()),
    }
}

/// Whether nothing that is sent to it leaves this machine.
pub(super) fn is_this_machine(host: &str) -> bool {
    let address: Option<IpAddr> = host.parse().ok();
    host.eq_ignore_ascii_case("localhost") || address.is_some_and(|it| it.is_loopback())
}

/// An email address, with a name before it or alone.
pub(super) fn mailbox<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> std::result::Result<String, D::Error> {
    let text = String::deserialize(deserializer)?;
    match text.parse::<lettre::message::Mailbox>() {
        Ok(_) => Ok(text),
        Err(e) => Err(de::Error::custom(format!("is no email address: {e}"))),
    }
}

/// Where the platform's database is.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "String")]
pub enum DatabaseUrl {
    /// A MySQL or MariaDB server: `mysql://user[:password]@host[:port]/schema`.
    MySql(SecretUrl),
    /// A file: `sqlite:///absolute/path` (`sqlite://path` from the working directory).
    Sqlite(PathBuf),
}

impl TryFrom<String> for DatabaseUrl {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<Self, String> {
        if let Some(path) = text.strip_prefix("sqlite:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            if path.is_empty() || path.starts_with(':') || path.contains(['?', '\0']) {
                return Err(
                    "a SQLite address is sqlite:// and the path of a file, nothing else".into(),
                );
            }
            let path = std::path::absolute(path)
                .map_err(|e| format!("the path has no meaning here: {e}"))?;
            return Ok(Self::Sqlite(path));
        }
        let url = SecretUrl::parse(text, &["mysql", "mariadb"])
            .map_err(|e| format!("{e} (or sqlite://)"))?;
        if url.shown().path().trim_matches('/').is_empty() {
            return Err("the address names no schema: mysql://user@host/SCHEMA".into());
        }
        Ok(Self::MySql(url))
    }
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MySql(url) => fmt::Display::fmt(url, f),
            Self::Sqlite(path) => write!(f, "sqlite://{}", path.display()),
        }
    }
}

/// Where a password comes from.
#[derive(Debug, Clone, Default)]
pub enum PasswordSource {
    /// There is none.
    #[default]
    None,
    /// A file, read each time it is needed.
    File(PathBuf),
    /// An environment variable, as it was when the configuration was read.
    Environment {
        /// The variable's name.
        name: String,
        /// Its value; `None` when it was not set.
        value: Option<SecretString>,
    },
}

impl PasswordSource {
    /// The password; `None` where none is configured. White space around a password in a file does not count (as
    /// the restic program has it, whose password files these may be). [`ErrorKind::Configuration`] when it cannot
    /// be had, with what to do.
    pub fn read(&self) -> Result<Option<SecretString>> {
        match self {
            Self::None => Ok(None),
            Self::File(path) => read_secret_file("password file", path).map(Some),
            Self::Environment {
                value: Some(value), ..
            } if !value.expose_secret().is_empty() => Ok(Some(value.clone())),
            Self::Environment { name, .. } => Err(Error::new(
                ErrorKind::Configuration,
                format!("the environment variable {name} shall hold a password but is not set"),
            )),
        }
    }

    /// Whether it is a file that every user of the machine can read.
    pub fn is_world_readable(&self) -> bool {
        match self {
            Self::File(path) => path
                .metadata()
                .is_ok_and(|meta| meta.permissions().mode() & 0o004 != 0),
            _ => false,
        }
    }
}

/// What a file holds, without the white space around it. Errors call it `what`.
pub(super) fn read_secret_file(what: &str, path: &Path) -> Result<SecretString> {
    const LONGEST: u64 = 64 * 1024;
    let failed = |e: std::io::Error| {
        Error::caused(
            ErrorKind::Configuration,
            format!("cannot read the {what} {}: {e}", path.display()),
            e,
        )
    };
    let mut bytes = Vec::new();
    let read = File::open(path)
        .and_then(|file| file.take(LONGEST + 1).read_to_end(&mut bytes))
        .map_err(failed)?;
    let refused = |reason: &str| {
        Error::new(
            ErrorKind::Configuration,
            format!("the {what} {} {reason}", path.display()),
        )
    };
    if read as u64 > LONGEST {
        return Err(refused("is larger than 64 KiB: it is something else"));
    }
    // Not `from_utf8(bytes)`: its error would carry the bytes along.
    let text = std::str::from_utf8(&bytes).map_err(|_| refused("is not text in UTF-8"))?;
    let secret = text.trim();
    if secret.is_empty() {
        return Err(refused("is empty"));
    }
    if PasswordSource::File(path.to_owned()).is_world_readable() {
        tracing::warn!(
            "every user can read the {what} {}: chmod 600 it",
            path.display()
        );
    }
    Ok(secret.into())
}

/// The access key of an object store.
#[derive(Clone)]
pub struct AccessKey {
    /// Its id: `AWS_ACCESS_KEY_ID`.
    pub id: String,
    /// Its secret: `AWS_SECRET_ACCESS_KEY`.
    pub secret: SecretString,
    /// What a key that is good for a while comes with: `AWS_SESSION_TOKEN`.
    pub session_token: Option<SecretString>,
}

impl fmt::Debug for AccessKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AccessKey")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// The access key of an object store, from a file that a shell or systemd could read as well: `NAME=value`, one a line. What has another name, or is a
/// comment, does not count.
pub(super) fn read_access_key(path: &Path) -> Result<AccessKey> {
    let text = read_secret_file("s3_key_file", path)?;
    let value = |name: &str| {
        let lines = text.expose_secret().lines().map(str::trim);
        lines
            .filter_map(|line| {
                let line = line.strip_prefix("export ").unwrap_or(line).trim_start();
                let value = line.strip_prefix(name)?.trim_start().strip_prefix('=')?;
                Some(value.trim().trim_matches(['"', '\'']))
            })
            .next_back()
            .filter(|value| !value.is_empty())
    };
    let required = |name: &str| {
        value(name).ok_or_else(|| {
            Error::new(
                ErrorKind::Configuration,
                format!("the s3_key_file {} has no line `{name}=…`", path.display()),
            )
        })
    };
    Ok(AccessKey {
        id: required("AWS_ACCESS_KEY_ID")?.to_owned(),
        secret: required("AWS_SECRET_ACCESS_KEY")?.into(),
        session_token: value("AWS_SESSION_TOKEN").map(SecretString::from),
    })
}

/// Make a password file with a random password, for this user alone; false where there is one already, which is never touched.
pub(super) fn create_password_file(path: &Path) -> Result<bool> {
    let failed = |e: std::io::Error| {
        Error::io(
            format!("cannot make the password file {}", path.display()),
            e,
        )
    };
    let dir = path.parent().unwrap_or(Path::new("."));
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(failed)?;
    let created = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path);
    let mut file = match created {
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => return Ok(false),
        other => other.map_err(failed)?,
    };
    let password = SecretString::from(hex::encode(rand::random::<[u8; 32]>()));
    let written = writeln!(file, "{}", password.expose_secret())
        .and_then(|()| file.sync_all())
        .and_then(|()| File::open(dir)?.sync_all());
    if let Err(e) = written {
        // Half a password would be taken for a whole one.
        let _ = std::fs::remove_file(path);
        return Err(failed(e));
    }
    Ok(true)
}

/// An absolute path without `..`, written the one plain way.
pub(super) fn absolute_path<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> std::result::Result<PathBuf, D::Error> {
    plain_absolute(&String::deserialize(deserializer)?).map_err(de::Error::custom)
}

/// The same where the key may be missing.
pub(super) fn optional_absolute_path<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> std::result::Result<Option<PathBuf>, D::Error> {
    absolute_path(deserializer).map(Some)
}

/// A list of such paths.
pub(super) fn absolute_paths<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> std::result::Result<Vec<PathBuf>, D::Error> {
    let list: Vec<String> = Vec::deserialize(deserializer)?;
    list.iter()
        .map(|text| plain_absolute(text).map_err(de::Error::custom))
        .collect()
}

/// A path below a customer's directory: no leading `/`, no `..`.
pub(super) fn relative_path<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> std::result::Result<PathBuf, D::Error> {
    plain_relative(&String::deserialize(deserializer)?).map_err(de::Error::custom)
}

/// A list of such paths.
pub(super) fn relative_paths<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> std::result::Result<Vec<PathBuf>, D::Error> {
    let list: Vec<String> = Vec::deserialize(deserializer)?;
    list.iter()
        .map(|text| plain_relative(text).map_err(de::Error::custom))
        .collect()
}

/// A duration such as `10m`, longer than nothing.
pub(super) fn duration<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> std::result::Result<std::time::Duration, D::Error> {
    let duration: std::time::Duration = humantime_serde::deserialize(deserializer)?;
    if duration.is_zero() {
        return Err(de::Error::custom("must be longer than nothing"));
    }
    Ok(duration)
}

/// The same where the key may be missing.
pub(super) fn optional_duration<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> std::result::Result<Option<std::time::Duration>, D::Error> {
    duration(deserializer).map(Some)
}

/// A time of day such as `03:30`.
pub(super) fn optional_time_of_day<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> std::result::Result<Option<Time>, D::Error> {
    let text = String::deserialize(deserializer)?;
    time_of_day(&text)
        .map(Some)
        .ok_or_else(|| de::Error::custom("must be a time of day from `00:00` to `23:59`"))
}

fn time_of_day(text: &str) -> Option<Time> {
    let time = Time::strptime("%H:%M", text).ok()?;
    (text.len() == "HH:MM".len()).then_some(time)
}

/// Some hours of each day, by the clock of wherever it is asked; they may begin before midnight and end after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hours {
    begin: Time,
    end: Time,
}

impl Hours {
    /// When those began that it is now; None outside of them.
    pub fn current(&self, now: &Zoned) -> Option<Timestamp> {
        let at = |day: Date, time: Time| day.to_datetime(time).to_zoned(now.time_zone().clone());
        [now.date(), now.date().yesterday().ok()?]
            .into_iter()
            .find_map(|day| {
                let last_day = match self.begin < self.end {
                    true => day,
                    false => day.tomorrow().ok()?,
                };
                let begin = at(day, self.begin).ok()?;
                let is_now = begin <= *now && *now < at(last_day, self.end).ok()?;
                is_now.then(|| begin.timestamp())
            })
    }
}

/// Hours such as `02:00-05:00`.
pub(super) fn optional_hours<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> std::result::Result<Option<Hours>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let hours = text.split_once('-').and_then(|(begin, end)| {
        Some(Hours {
            begin: time_of_day(begin)?,
            end: time_of_day(end)?,
        })
    });
    match hours {
        Some(hours) if hours.begin != hours.end => Ok(Some(hours)),
        _ => Err(de::Error::custom(
            "must be two different times of day from `00:00` to `23:59`, as in `02:00-05:00`",
        )),
    }
}

/// A part of a repository's packs, as the restic program has it: a share that is chosen anew each time, or the n-th of t parts.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Sample {
    /// So many of a hundred, and one at least.
    Percent(f64),
    /// The n-th of t parts; all of them together are all packs.
    Part {
        /// From 1.
        n: u8,
        /// How many parts there are.
        t: u8,
    },
}

impl FromStr for Sample {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let percent = || {
            let percent: f64 = text.strip_suffix('%')?.parse().ok()?;
            (percent > 0.0 && percent <= 100.0).then_some(Self::Percent(percent))
        };
        let part = || {
            let (n, t) = text.split_once('/')?;
            let (n, t) = (n.parse().ok()?, t.parse().ok()?);
            (1..=t).contains(&n).then_some(Self::Part { n, t })
        };
        percent().or_else(part).ok_or_else(|| {
            Error::new(
                ErrorKind::InvalidInput,
                "a subset is written as a share, `5%`, or as a part, `n/t` with n from 1 to t and t at most 255",
            )
        })
    }
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Percent(percent) => write!(f, "{percent}%"),
            Self::Part { n, t } => write!(f, "{n}/{t}"),
        }
    }
}

/// A part of a repository's packs.
pub(super) fn optional_sample<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> std::result::Result<Option<Sample>, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map(Some).map_err(de::Error::custom)
}

/// A list of numbers, or `any`.
pub(super) fn owners<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> std::result::Result<OwnersConfig, D::Error> {
    struct Owners;

    impl<'de> de::Visitor<'de> for Owners {
        type Value = OwnersConfig;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of user and group numbers, or `any`")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> std::result::Result<OwnersConfig, E> {
            match text {
                "any" => Ok(OwnersConfig::Any),
                other => Err(E::invalid_value(de::Unexpected::Str(other), &self)),
            }
        }

        fn visit_seq<A: de::SeqAccess<'de>>(
            self,
            mut list: A,
        ) -> std::result::Result<OwnersConfig, A::Error> {
            let mut ids = Vec::new();
            while let Some(id) = list.next_element()? {
                ids.push(id);
            }
            Ok(OwnersConfig::Only(ids))
        }
    }

    deserializer.deserialize_any(Owners)
}

pub(super) fn plain_absolute(text: &str) -> std::result::Result<PathBuf, String> {
    let path = plain(text)?;
    if !path.is_absolute() {
        return Err(format!(
            "`{text}` must be an absolute path, starting with /"
        ));
    }
    Ok(path)
}

pub(super) fn plain_relative(text: &str) -> std::result::Result<PathBuf, String> {
    let path = plain(text)?;
    if path.is_absolute() {
        return Err(format!(
            "`{text}` must be a path below the customer's directory, without a leading /"
        ));
    }
    if path.as_os_str().is_empty() {
        return Err(format!("`{text}` names the customer's directory itself"));
    }
    Ok(path)
}

fn plain(text: &str) -> std::result::Result<PathBuf, String> {
    if text.is_empty() || text.contains('\0') {
        return Err(format!("`{}` is not a path", text.escape_debug()));
    }
    let mut path = PathBuf::new();
    for component in Path::new(text).components() {
        match component {
            Component::ParentDir => return Err(format!("`{text}` may not hold `..`")),
            Component::CurDir => {}
            part => path.push(part),
        }
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hours_may_go_past_midnight_and_are_told_by_when_they_began() {
        let hours = |begin: &str, end: &str| Hours {
            begin: time_of_day(begin).unwrap(),
            end: time_of_day(end).unwrap(),
        };
        for (hours, now, began) in [
            (hours("02:00", "05:00"), "2026-03-10T01:59:59", None),
            (
                hours("02:00", "05:00"),
                "2026-03-10T02:00:00",
                Some("2026-03-10T02:00:00"),
            ),
            (hours("02:00", "05:00"), "2026-03-10T05:00:00", None),
            (hours("23:00", "01:00"), "2026-03-10T22:59:00", None),
            (
                hours("23:00", "01:00"),
                "2026-03-10T23:30:00",
                Some("2026-03-10T23:00:00"),
            ),
            (
                hours("23:00", "01:00"),
                "2026-03-10T00:30:00",
                Some("2026-03-09T23:00:00"),
            ),
            (hours("23:00", "01:00"), "2026-03-10T01:00:00", None),
        ] {
            let at = |time: &str| -> Zoned { format!("{time}+01:00[+01:00]").parse().unwrap() };
            let began = began.map(|began| at(began).timestamp());
            assert_eq!(hours.current(&at(now)), began, "{now}");
        }
    }

    #[test]
    fn an_address_never_shows_its_password() {
        let url = SecretUrl::parse("mysql://u:s3cret@h/db".into(), &["mysql"]).unwrap();
        assert!(url.has_password());
        for text in [
            format!("{url}"),
            format!("{url:?}"),
            url.shown().to_string(),
        ] {
            assert!(!text.contains("s3cret"), "{text}");
            assert!(text.contains("u:***@h/db"), "{text}");
        }
        assert_eq!(url.whole().expose_secret(), "mysql://u:s3cret@h/db");
        let url = plain_redis_url("unix:///run/redis.sock?db=1&pass=s3cret".into()).unwrap();
        assert!(url.has_password());
        assert_eq!(url.to_string(), "unix:///run/redis.sock?db=1&pass=***");
        for bad in [
            "mysql://u:s3cret@h:99999/db",
            "u:s3cret@h/db",
            "pg://u:s3cret@h/db",
            "mysql://u:s3cret@/",
            "mysql://u:s3cret@h",
        ] {
            let error = DatabaseUrl::try_from(bad.to_owned()).unwrap_err();
            assert!(!error.contains("s3cret"), "{error}");
        }
    }

    #[test]
    fn an_address_says_user_and_password_as_they_are() {
        let url = SecretUrl::parse(
            "mysql://a%40b:p%2Bs+%26%25x%C3%BC&=z@h/s".to_owned(),
            &["mysql"],
        );
        let url = url.unwrap();
        assert_eq!(url.user(), "a@b");
        assert_eq!(url.password().unwrap().expose_secret(), "p+s+&%xü&=z");
        assert_eq!(decoded("100%"), "100%");
        assert_eq!(decoded("%zz%4"), "%zz%4");
        let url = SecretUrl::parse("mysql://h/s".to_owned(), &["mysql"]).unwrap();
        assert_eq!(
            (url.user(), url.password().is_none()),
            (String::new(), true)
        );
    }

    #[test]
    fn a_sqlite_address_is_a_path() {
        let path = |text: &str| match DatabaseUrl::try_from(text.to_owned()) {
            Ok(DatabaseUrl::Sqlite(path)) => path,
            other => panic!("{text}: {other:?}"),
        };
        assert_eq!(path("sqlite:///var/lib/b.db"), Path::new("/var/lib/b.db"));
        assert_eq!(
            path("sqlite://data/b.db"),
            std::env::current_dir().unwrap().join("data/b.db")
        );
        for bad in [
            "sqlite:",
            "sqlite://",
            "sqlite::memory:",
            "sqlite:///x?mode=ro",
        ] {
            assert!(DatabaseUrl::try_from(bad.to_owned()).is_err(), "{bad}");
        }
    }

    #[test]
    fn paths_are_plain_and_without_a_way_up() {
        assert_eq!(
            plain_absolute("/var//customers/").unwrap(),
            Path::new("/var/customers")
        );
        assert_eq!(
            plain_relative("volumes/./files/").unwrap(),
            Path::new("volumes/files")
        );
        for bad in ["", "var", "./var", "/var/../etc", "/..", "a\0"] {
            assert!(plain_absolute(bad).is_err(), "{bad:?}");
        }
        for bad in ["", ".", "/wordpress", "../x", "a/../../b", "./"] {
            assert!(plain_relative(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_password_file_is_read_as_restic_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("password");
        let read = |content: &[u8]| {
            std::fs::write(&path, content).unwrap();
            PasswordSource::File(path.clone()).read()
        };
        for content in ["s3cret", "s3cret\n", "s3cret\r\n", " s3cret \n\n"] {
            assert_eq!(
                read(content.as_bytes()).unwrap().unwrap().expose_secret(),
                "s3cret"
            );
        }
        assert_eq!(
            read(b"two words\n").unwrap().unwrap().expose_secret(),
            "two words"
        );
        for bad in [&b""[..], b"\n", b"s3cret\xff", &[b'x'; 70_000]] {
            let error = read(bad).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Configuration);
            assert!(!error.chain().contains("s3cret"));
        }
        let error = PasswordSource::File(dir.path().join("none"))
            .read()
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Configuration);
        assert!(error.to_string().contains("none"));
    }

    #[test]
    fn an_access_key_is_read_from_what_a_shell_could_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let read = |content: &str| {
            std::fs::write(&path, content).unwrap();
            read_access_key(&path)
        };
        for content in [
            "AWS_ACCESS_KEY_ID=AKID\nAWS_SECRET_ACCESS_KEY=s3/cr+et=\n",
            "# for restic, too\nexport AWS_SECRET_ACCESS_KEY='s3/cr+et='\nexport AWS_ACCESS_KEY_ID=\"AKID\"\nRESTIC_PASSWORD=x\n",
            "AWS_ACCESS_KEY_ID=old\nAWS_ACCESS_KEY_ID = AKID\r\nAWS_SECRET_ACCESS_KEY = s3/cr+et=\r\n",
        ] {
            let key = read(content).unwrap();
            assert_eq!(key.id, "AKID");
            assert_eq!(key.secret.expose_secret(), "s3/cr+et=");
            assert!(key.session_token.is_none());
            assert!(!format!("{key:?}").contains("cr+et"));
        }
        let key = read("AWS_ACCESS_KEY_ID=a\nAWS_SECRET_ACCESS_KEY=b\nAWS_SESSION_TOKEN=c");
        assert_eq!(key.unwrap().session_token.unwrap().expose_secret(), "c");
        for (content, missing) in [
            ("AKID\ns3cret\n", "AWS_ACCESS_KEY_ID"),
            (
                "AWS_ACCESS_KEY_ID=a\nAWS_SECRET_ACCESS_KEY=\n",
                "AWS_SECRET_ACCESS_KEY",
            ),
            (
                "AWS_ACCESS_KEY_ID_OLD=a\nAWS_SECRET_ACCESS_KEY=s3cret",
                "AWS_ACCESS_KEY_ID",
            ),
        ] {
            let error = read(content).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Configuration);
            assert!(error.to_string().contains(missing), "{error}");
            assert!(!error.chain().contains("s3cret"), "{error}");
        }
    }

    #[test]
    fn a_password_file_is_made_once_and_for_nobody_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data/password");
        assert!(create_password_file(&path).unwrap());
        let source = PasswordSource::File(path.clone());
        let password = source.read().unwrap().unwrap();
        assert_eq!(password.expose_secret().len(), 64);
        for (made, mode) in [(path.as_path(), 0o600), (path.parent().unwrap(), 0o700)] {
            assert_eq!(made.metadata().unwrap().permissions().mode() & 0o777, mode);
        }
        assert!(!create_password_file(&path).unwrap());
        let again = source.read().unwrap().unwrap();
        assert_eq!(again.expose_secret(), password.expose_secret());
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(dir.path().join("elsewhere"), &path).unwrap();
        assert!(!create_password_file(&path).unwrap());
        assert!(!dir.path().join("elsewhere").exists());
    }

    #[test]
    fn a_password_everybody_can_read_is_noticed() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let source = PasswordSource::File(file.path().to_owned());
        assert!(!source.is_world_readable());
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(source.is_world_readable());
    }

    #[test]
    fn a_missing_variable_is_named_and_a_set_one_never_shown() {
        let unset = PasswordSource::Environment {
            name: "DB_PASSWORD".into(),
            value: None,
        };
        assert!(
            unset
                .read()
                .unwrap_err()
                .to_string()
                .contains("DB_PASSWORD")
        );
        let set = PasswordSource::Environment {
            name: "DB_PASSWORD".into(),
            value: Some("s3cret".into()),
        };
        assert!(!format!("{set:?}").contains("s3cret"));
        assert_eq!(set.read().unwrap().unwrap().expose_secret(), "s3cret");
    }
}
