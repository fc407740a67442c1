//! The platform's own session: the cookie of its Flask application, which says who has logged in there, with whatever second factor it asks for.
//!
//! Such a session is no row anywhere: it is the cookie, signed with the platform's secret key as itsdangerous does. Never: anything of a cookie read
//! before its signature is proven; one that expands without bounds; a customer of anything but his plain number; a cookie or a key in a log or an error.

use std::fmt;
use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use flate2::read::ZlibDecoder;
use hmac::{Hmac, KeyInit, Mac};
use jiff::{SignedDuration, Timestamp};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Map, Value};
use sha1::Sha1;
use sha2::Sha256;

use crate::config::{LoginConfig, ServerConfig};
use crate::customer::CustomerId;
use crate::error::{Error, ErrorKind};

/// What Flask sets its sessions apart with from all else that the platform signs.
const SESSION_SALT: &str = "cookie-session";

/// What sets our own messages apart from all that the platform signs.
const MESSAGE_SALT: &str = "shophosting-backup message";

/// What a browser keeps of a cookie.
const LONGEST_COOKIE: usize = 4096;

/// Far more than a session that fits into a cookie expands to.
const MOST_BYTES: u64 = 64 * 1024;

/// By how much the platform's clock may be ahead of ours.
const CLOCKS_DIFFER: SignedDuration = SignedDuration::from_secs(60);

/// Shorter ones can be guessed.
const SHORTEST_KEY: usize = 16;

/// Each is tried for each cookie.
const MOST_KEYS: usize = 8;

/// Proves sessions of the platform. Cheap to clone.
#[derive(Clone)]
pub struct PlatformSessions {
    /// One of them signed a session: the platform changes its key now and then.
    session_macs: Arc<[Hmac<Sha1>]>,
    message_mac: Hmac<Sha256>,
    longest: SignedDuration,
}

/// Why cookies let nobody in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unproven {
    /// There is none.
    #[error("there is none")]
    Absent,
    /// It is longer than any that a browser keeps.
    #[error("it is too long")]
    TooLong,
    /// It is no session of Flask, or the signature is of another key.
    #[error("it is not signed with the platform's secret key")]
    Foreign,
    /// It is older than a session may be.
    #[error("it is older than server.platform_session_max")]
    Expired,
    /// It is of a time that has not come.
    #[error("its time has not come: the clocks of this machine and the platform's differ")]
    Early,
    /// It is signed, and yet is no session, or a bomb.
    #[error("it is signed, but holds no session that can be read")]
    Unreadable,
    /// Nobody is logged in, or not yet: the second factor may be to come.
    #[error("nobody is logged in at the platform")]
    LoggedOut,
    /// Somebody is, who is no customer.
    #[error("who is logged in at the platform is no customer")]
    NoCustomer,
    /// Several are valid and do not say the same.
    #[error("there are several that contradict each other")]
    Contradictory,
}

impl PlatformSessions {
    /// With the keys in the file that is configured; None where customers log in by password. [`ErrorKind::Configuration`] where the keys
    /// cannot be had or are none.
    pub fn read(config: &ServerConfig) -> crate::error::Result<Option<Self>> {
        match config.login {
            LoginConfig::Password => Ok(None),
            LoginConfig::Platform => {
                let (file, text) = config.read_platform_secret_key()?;
                let refused = |reason: &str| {
                    let file = file.display();
                    let message = format!("the platform_secret_key_file {file} {reason}");
                    Error::new(ErrorKind::Configuration, message)
                };
                Self::new(&text, config.platform_session_max)
                    .map(Some)
                    .map_err(refused)
            }
        }
    }

    /// Keys are lines, the newest first.
    fn new(keys: &SecretString, longest: Duration) -> Result<Self, &'static str> {
        let keys: Vec<&[u8]> = keys
            .expose_secret()
            .lines()
            .map(|line| line.trim().as_bytes())
            .filter(|line| !line.is_empty())
            .collect();
        let newest = *keys.first().ok_or("is empty")?;
        if keys.len() > MOST_KEYS {
            return Err(
                "has more than 8 lines: it shall hold the platform's secret key, and at most those that it had before, one a line",
            );
        }
        if keys.iter().any(|key| key.len() < SHORTEST_KEY) {
            return Err(
                "has a key of less than 16 characters, which could be guessed: give the platform a longer SECRET_KEY",
            );
        }
        let newest = mac::<Hmac<Sha256>>(newest)?.chain_update(MESSAGE_SALT);
        Ok(Self {
            session_macs: keys
                .into_iter()
                .map(session_mac)
                .collect::<Result<_, _>>()?,
            message_mac: mac(&newest.finalize().into_bytes())?,
            longest: SignedDuration::try_from(longest).unwrap_or(SignedDuration::MAX),
        })
    }

    /// Who is logged in at the platform, by the cookies of its name that a browser sent.
    ///
    /// What nobody signed does not count, for a neighbour's site may have planted it. All that the platform signed must say the same: which of
    /// them is the newer nobody knows, and one may be of before a logout.
    pub fn whose<'c>(
        &self,
        cookies: impl IntoIterator<Item = &'c str>,
        now: Timestamp,
    ) -> Result<CustomerId, Unproven> {
        let mut said = None;
        let mut reason = Unproven::Absent;
        for cookie in cookies {
            match self.signed(cookie, now) {
                Ok(payload) => {
                    let who = customer_of(payload);
                    if said.is_some_and(|before| before != who) {
                        return Err(Unproven::Contradictory);
                    }
                    said = Some(who);
                }
                Err(other) => reason = other,
            }
        }
        said.unwrap_or(Err(reason))
    }

    /// What the platform signed, and not too long ago: `payload.time.signature`.
    fn signed<'c>(&self, cookie: &'c str, now: Timestamp) -> Result<&'c str, Unproven> {
        if cookie.len() > LONGEST_COOKIE {
            return Err(Unproven::TooLong);
        }
        let (value, signature) = cookie.rsplit_once('.').ok_or(Unproven::Foreign)?;
        let signature = decode(signature).ok_or(Unproven::Foreign)?;
        let is_of = |mac: &Hmac<Sha1>| {
            let mac = mac.clone().chain_update(value);
            mac.verify_slice(&signature).is_ok()
        };
        if !self.session_macs.iter().any(is_of) {
            return Err(Unproven::Foreign);
        }
        let (payload, time) = value.rsplit_once('.').ok_or(Unproven::Unreadable)?;
        let signed_at = time_of(time).ok_or(Unproven::Unreadable)?;
        let age = now.duration_since(signed_at);
        if age > self.longest {
            return Err(Unproven::Expired);
        }
        if age < -CLOCKS_DIFFER {
            return Err(Unproven::Early);
        }
        Ok(payload)
    }

    /// Sign a text that the browser of this customer is to keep for a moment.
    pub fn seal(&self, customer: CustomerId, text: &str) -> String {
        let mac = self.mac_of(customer, text).finalize().into_bytes();
        let [text, mac] = [text.as_bytes(), &mac].map(|part| URL_SAFE_NO_PAD.encode(part));
        format!("{text}.{mac}")
    }

    /// A text that was sealed for this customer.
    pub fn unseal(&self, customer: CustomerId, sealed: &str) -> Option<String> {
        let (text, mac) = sealed.split_once('.')?;
        let text = String::from_utf8(decode(text)?).ok()?;
        let is_ours = self.mac_of(customer, &text).verify_slice(&decode(mac)?);
        is_ours.is_ok().then_some(text)
    }

    fn mac_of(&self, customer: CustomerId, text: &str) -> Hmac<Sha256> {
        let whole = format!("{customer}.{text}");
        self.message_mac.clone().chain_update(whole)
    }
}

impl fmt::Debug for PlatformSessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PlatformSessions")
            .field("keys", &self.session_macs.len())
            .field("longest", &self.longest)
            .finish_non_exhaustive()
    }
}

/// Whom flask-login has let in.
fn customer_of(payload: &str) -> Result<CustomerId, Unproven> {
    let session = expand(payload).ok_or(Unproven::Unreadable)?;
    // Whatever else is in it, and however Flask tags it, is the platform's business.
    let session: Map<String, Value> =
        serde_json::from_slice(&session).map_err(|_| Unproven::Unreadable)?;
    match session.get("_user_id") {
        None | Some(Value::Null) => Err(Unproven::LoggedOut),
        Some(Value::String(id)) => id.parse().map_err(|_| Unproven::NoCustomer),
        Some(_) => Err(Unproven::NoCustomer),
    }
}

/// JSON, which a dot in front says to be compressed.
fn expand(payload: &str) -> Option<Vec<u8>> {
    let Some(compressed) = payload.strip_prefix('.') else {
        return decode(payload);
    };
    let compressed = decode(compressed)?;
    let mut plain = Vec::new();
    let mut reader = ZlibDecoder::new(compressed.as_slice()).take(MOST_BYTES + 1);
    reader.read_to_end(&mut plain).ok()?;
    (plain.len() as u64 <= MOST_BYTES).then_some(plain)
}

/// Seconds since 1970, in as many bytes as that takes.
fn time_of(text: &str) -> Option<Timestamp> {
    let bytes = decode(text)?;
    let mut whole = [0; size_of::<i64>()];
    let start = whole.len().checked_sub(bytes.len())?;
    whole[start..].copy_from_slice(&bytes);
    Timestamp::from_second(i64::from_be_bytes(whole)).ok()
}

fn decode(text: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text).ok()
}

/// Signs as Flask does, with a key that is derived from the platform's.
fn session_mac(key: &[u8]) -> Result<Hmac<Sha1>, &'static str> {
    let derived = mac::<Hmac<Sha1>>(key)?.chain_update(SESSION_SALT);
    mac(&derived.finalize().into_bytes())
}

fn mac<M: KeyInit>(key: &[u8]) -> Result<M, &'static str> {
    // Keys may have any length.
    M::new_from_slice(key).map_err(|_| "has a key that cannot be used")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: &str = "0123456789abcdef0123456789abcdef";

    /// Flask 3.1.3 made these with that key at that time, of customer 7.
    const PLAIN: &str =
        "eyJfdXNlcl9pZCI6IjciLCJfZnJlc2giOnRydWV9.arE7gA.k3alSFHz8btSLlCA7UGLBxev6ww";
    const COMPRESSED: &str = ".eJyrVoovLU4tis9MUbJSMlfSUYpPK0otzlCyKikqTQXxchKLM1KLlayiq5UUSoCUUmZeWj5QnXtRTKmBQVoyiExJS1WIKU2xME4BkqkpRgqjkqOSo5JUkFSKrY2tBQAWMzHH.arE7gA.zNsfprITJshz_zIMgN-VfZ0Y0iU";
    const MADE: i64 = 1_790_000_000;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn with_keys(keys: &str) -> Result<PlatformSessions, &'static str> {
        PlatformSessions::new(&keys.into(), Duration::from_secs(3600))
    }

    fn sessions() -> PlatformSessions {
        with_keys(KEY).unwrap()
    }

    fn whose(cookies: &[&str]) -> Result<u32, Unproven> {
        let who = sessions().whose(cookies.iter().copied(), at(MADE));
        who.map(CustomerId::get)
    }

    /// What Flask would make of a payload.
    fn signed(payload: &str) -> String {
        let time = URL_SAFE_NO_PAD.encode(u32::try_from(MADE).unwrap().to_be_bytes());
        let value = format!("{payload}.{time}");
        let mac = session_mac(KEY.as_bytes()).unwrap().chain_update(&value);
        let signature = URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes());
        format!("{value}.{signature}")
    }

    #[test]
    fn what_flask_signed_is_proven_for_as_long_as_it_lives() {
        assert_eq!(signed("eyJfdXNlcl9pZCI6IjciLCJfZnJlc2giOnRydWV9"), PLAIN);
        for cookie in [PLAIN, COMPRESSED] {
            assert_eq!(whose(&[cookie]), Ok(7));
            let when = |second| sessions().whose([cookie], at(second));
            assert!(when(MADE + 3600).is_ok() && when(MADE - 60).is_ok());
            assert_eq!(when(MADE + 3601), Err(Unproven::Expired));
            assert_eq!(when(MADE - 61), Err(Unproven::Early));
        }
    }

    #[test]
    fn any_change_of_a_cookie_makes_it_nobodys() {
        for cookie in [PLAIN, COMPRESSED] {
            for at in 0..cookie.len() {
                for other in ["A", "z", ".", "=", ""] {
                    let changed = format!("{}{other}{}", &cookie[..at], &cookie[at + 1..]);
                    if changed != cookie {
                        assert_eq!(whose(&[&changed]), Err(Unproven::Foreign), "{changed}");
                    }
                }
            }
            for added in [" ", ".", "=", "A", "\0"] {
                assert_eq!(
                    whose(&[&format!("{cookie}{added}")]),
                    Err(Unproven::Foreign)
                );
            }
        }
    }

    #[test]
    fn of_what_is_signed_only_the_plain_number_of_a_customer_is_one() {
        let who = |json: &str| whose(&[&signed(&URL_SAFE_NO_PAD.encode(json))]);
        assert_eq!(
            who(r#"{"_user_id":"12","x":{" t":[1,{" b":"AA=="}]}}"#),
            Ok(12)
        );
        for nobody in ["{}", r#"{"_user_id":null}"#, r#"{"user_id":"7"}"#] {
            assert_eq!(who(nobody), Err(Unproven::LoggedOut), "{nobody}");
        }
        for id in [
            "7",
            "true",
            "[7]",
            r#"["7"]"#,
            r#"{" t":["7"]}"#,
            r#""""#,
            r#""0""#,
            r#""-7""#,
            r#""+7""#,
            r#""07""#,
            r#"" 7""#,
            r#""7\n""#,
            r#""7\u0000""#,
            r#""../7""#,
            r#""7.0""#,
            r#""7e0""#,
            r#""٧""#,
            r#""admin-7""#,
            r#""4294967303""#,
        ] {
            let json = format!(r#"{{"_user_id":{id}}}"#);
            assert_eq!(who(&json), Err(Unproven::NoCustomer), "{json}");
        }
        for unreadable in [
            "",
            "7",
            r#"["7"]"#,
            r#"{"_user_id":"7""#,
            "\u{feff}{}",
            &"[".repeat(2000),
        ] {
            assert_eq!(who(unreadable), Err(Unproven::Unreadable), "{unreadable}");
        }
    }

    #[test]
    fn no_signed_cookie_expands_without_bounds() {
        let compressed = |json: &str| {
            let mut bytes = Vec::new();
            let mut reader =
                flate2::read::ZlibEncoder::new(json.as_bytes(), flate2::Compression::best());
            reader.read_to_end(&mut bytes).unwrap();
            whose(&[&signed(&format!(".{}", URL_SAFE_NO_PAD.encode(bytes)))])
        };
        let padded = |bytes: usize| format!(r#"{{"_user_id":"7","x":"{}"}}"#, "a".repeat(bytes));
        assert_eq!(compressed(&padded(60_000)), Ok(7));
        assert_eq!(compressed(&padded(66_000)), Err(Unproven::Unreadable));
        assert_eq!(compressed(&padded(2_000_000)), Err(Unproven::Unreadable));
        assert_eq!(compressed(&padded(10_000_000)), Err(Unproven::TooLong));
        assert_eq!(whose(&[&signed(".AAAA")]), Err(Unproven::Unreadable));
    }

    #[test]
    fn of_several_cookies_all_that_are_valid_must_say_the_same() {
        let other = signed(&URL_SAFE_NO_PAD.encode(r#"{"_user_id":"8"}"#));
        let nobody = signed(&URL_SAFE_NO_PAD.encode("{}"));
        assert_eq!(whose(&[]), Err(Unproven::Absent));
        assert_eq!(whose(&["planted", PLAIN, "", COMPRESSED, "x.y.z"]), Ok(7));
        for second in [other.as_str(), nobody.as_str()] {
            assert_eq!(whose(&[PLAIN, second]), Err(Unproven::Contradictory));
            assert_eq!(whose(&[second, PLAIN]), Err(Unproven::Contradictory));
        }
    }

    #[test]
    fn an_earlier_key_counts_for_as_long_as_it_is_listed() {
        let new = "another key of the platform";
        let who = |keys: &str| with_keys(keys).unwrap().whose([PLAIN], at(MADE));
        assert!(who(&format!("{new}\n{KEY}\n")).is_ok());
        assert!(who(&format!("\r\n {KEY} \r\n{new}")).is_ok());
        assert_eq!(who(new), Err(Unproven::Foreign));
        for bad in [
            "",
            "\n \n",
            "fifteen letters",
            &format!("{KEY}\nshort"),
            &[KEY; 9].join("\n"),
        ] {
            let reason = with_keys(bad).unwrap_err();
            assert!(
                !reason.contains("fifteen letters") && !reason.contains(KEY),
                "{reason}"
            );
        }
        assert!(!format!("{:?}", sessions()).contains("0123"));
    }

    #[test]
    fn a_sealed_message_is_read_by_its_customer_alone() {
        let [one, two] = [1, 2].map(|id| CustomerId::new(id).unwrap());
        let sealed = sessions().seal(one, "Grüße. 2.x");
        assert_eq!(
            sessions().unseal(one, &sealed).as_deref(),
            Some("Grüße. 2.x")
        );
        assert_eq!(sessions().unseal(two, &sealed), None);
        let other = with_keys("another key of the platform").unwrap();
        assert_eq!(other.unseal(one, &sealed), None);
        // What moves from the number into the text is another message.
        let twelve = CustomerId::new(12).unwrap();
        assert_eq!(
            sessions().unseal(twelve, &sessions().seal(one, "2.x")),
            None
        );
    }

    proptest! {
        #[test]
        fn no_bytes_are_a_session_or_break_anything(text in "\\PC{0,200}", a in "[A-Za-z0-9_.=-]{0,300}", b in "[A-Za-z0-9_-]{0,12}", c in "[A-Za-z0-9_-]{0,28}") {
            for cookie in [text.clone(), a.clone(), format!("{a}.{b}.{c}")] {
                prop_assert!(whose(&[&cookie]).is_err());
                prop_assert!(sessions().unseal(CustomerId::new(7).unwrap(), &cookie).is_none());
            }
        }

        #[test]
        fn no_signed_bytes_break_anything(bytes in proptest::collection::vec(any::<u8>(), 0..200), time in "[A-Za-z0-9_-]{0,16}", dot in "\\.?") {
            let payload = format!("{dot}{}", URL_SAFE_NO_PAD.encode(bytes));
            prop_assert!(whose(&[&signed(&payload)]).is_err());
            let value = format!("{payload}.{time}");
            let mac = session_mac(KEY.as_bytes()).unwrap().chain_update(&value);
            let signature = URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes());
            let cookie = format!("{value}.{signature}");
            prop_assert!(whose(&[&cookie]).is_err());
        }
    }
}
