//! Operators: who may look at all customers, by a file that root writes. They are no customers, and no customer is one.
//!
//! The file is read at each login and for each request, so that a line which is removed or changed ends what was begun with it. Never: a file that anybody
//! else can read or change; an answer that tells an unknown name from a wrong password, by its words or by its time; an operator whom others keep out by
//! trying all the time, of a browser in which he has logged in before.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use hmac::{Hmac, KeyInit, Mac};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::hash::PasswordHash;
use super::{LONGEST_PASSWORD, Turns, hash_password};
use crate::config::ServerConfig;
use crate::error::{Error, ErrorKind, Result};

const LONGEST_NAME: usize = 32;
const MOST_OPERATORS: usize = 100;
const MOST_BYTES: u64 = 64 * 1024;

/// The operators of `server.admins_file`. Cheap to clone; clones share their turns.
#[derive(Debug, Clone)]
pub struct Operators {
    file: Arc<Path>,
    /// Of whoever comes.
    turns: Turns,
    /// Of those who come with a mark.
    turns_of_marked: Turns,
}

/// Somebody who has proven that he is one.
#[derive(Debug, Clone)]
pub struct Operator {
    name: String,
    /// Of what his password was when he logged in.
    credential: [u8; 32],
}

/// What became of an operator's try to log in. Which of the last two it was is told to nobody but the log.
#[derive(Debug, Clone)]
pub enum OperatorVerdict {
    /// It is this one.
    Proven(Operator),
    /// There is such a one, and the password is wrong.
    Wrong,
    /// There is none of that name.
    Unknown,
}

impl Operator {
    /// What he is called.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Operators {
    /// Those of the file that is configured; None where none is. [`ErrorKind::Configuration`] where it cannot be used.
    pub fn read(config: &ServerConfig) -> Result<Option<Self>> {
        let Some(file) = &config.admins_file else {
            return Ok(None);
        };
        let operators = Self {
            file: file.as_path().into(),
            turns: Turns::new(1),
            turns_of_marked: Turns::new(1),
        };
        operators.lines()?;
        Ok(Some(operators))
    }

    /// Who these are. Whoever comes with a mark of this name ([`Self::knows`]) does not wait for those who come without one. [`ErrorKind::Busy`]
    /// where others try all the time.
    pub async fn verify(
        &self,
        name: &str,
        password: &SecretString,
        is_marked: bool,
    ) -> Result<OperatorVerdict> {
        let turns = match is_marked {
            true => &self.turns_of_marked,
            false => &self.turns,
        };
        let (operators, name, password) = (self.clone(), name.to_owned(), password.clone());
        turns
            .take(move || operators.prove(&name, password.expose_secret()))
            .await?
    }

    /// What a browser may keep in which this operator has logged in. It opens nothing: it only shows there, until his line is changed, that he was here before.
    pub fn mark(&self, operator: &Operator) -> String {
        let nonce = hex::encode(rand::random::<[u8; 16]>());
        let mac = mac_of_mark(&operator.credential, &operator.name, &nonce);
        format!("{nonce}.{}", mac.unwrap_or_default())
    }

    /// Whether this is a mark of the operator of this name.
    pub fn knows(&self, name: &str, mark: &str) -> Result<bool> {
        let Some((nonce, mac)) = mark.split_once('.') else {
            return Ok(false);
        };
        let lines = self.lines()?;
        let line = lines.iter().find(|line| line.name == name);
        let made = line.and_then(|line| mac_of_mark(&line.credential, name, nonce));
        // Letter by letter, so that one mark has one spelling.
        Ok(made.is_some_and(|made| made.as_bytes().ct_eq(mac.as_bytes()).into()))
    }

    fn prove(&self, name: &str, password: &str) -> Result<OperatorVerdict> {
        let lines = self.lines()?;
        let known = lines.iter().find(|line| line.name == name);
        // The same work for a stranger.
        let hash = match known {
            Some(line) => Some(line.hash.clone()),
            None => lines.first().map(|line| line.hash.clone().without_digest()),
        };
        let is_right = password.len() <= LONGEST_PASSWORD
            && hash.is_some_and(|hash| hash.is_of(password.as_bytes()));
        Ok(match known {
            Some(line) if is_right => OperatorVerdict::Proven(Operator {
                name: line.name.clone(),
                credential: line.credential,
            }),
            Some(_) => OperatorVerdict::Wrong,
            None => OperatorVerdict::Unknown,
        })
    }

    /// Whether somebody who logged in before still is one, with the same password.
    pub fn has(&self, operator: &Operator) -> Result<bool> {
        let lines = self.lines()?;
        let is_he =
            |line: &Line| line.name == operator.name && line.credential == operator.credential;
        Ok(lines.iter().any(is_he))
    }

    fn lines(&self) -> Result<Vec<Line>> {
        let refused = |reason: &str| {
            Error::new(
                ErrorKind::Configuration,
                format!("the admins_file {} {reason}", self.file.display()),
            )
        };
        parse(&read(&self.file)?).map_err(|reason| refused(&reason))
    }
}

/// Made with what only who reads the file knows.
fn mac_of_mark(credential: &[u8; 32], name: &str, nonce: &str) -> Option<String> {
    let mac = <Hmac<Sha256> as KeyInit>::new_from_slice(credential).ok()?;
    let mac = mac.chain_update(format!("mark of a browser\n{name}\n{nonce}"));
    Some(hex::encode(mac.finalize().into_bytes()))
}

/// An operator as the file has him.
struct Line {
    name: String,
    hash: PasswordHash,
    credential: [u8; 32],
}

/// The line of an operator for the file. [`ErrorKind::InvalidInput`] for what is no name.
pub fn operator_line(name: &str, password: &SecretString) -> Result<SecretString> {
    if !is_name(name) {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            "the name of an operator has at most 32 letters, digits, and `.`, `-`, `_` or `@`",
        ));
    }
    let hash = hash_password(password)?;
    Ok(format!("{name}:{}", hash.expose_secret()).into())
}

/// What the file holds, if nobody can read or change it but its owner, who is root or we, and readers of one group.
fn read(path: &Path) -> Result<SecretString> {
    const OF_OTHERS: u32 = 0o027;
    let failed = |e: std::io::Error| {
        Error::caused(
            ErrorKind::Configuration,
            format!("cannot read the admins_file {}: {e}", path.display()),
            e,
        )
    };
    let refused = |reason: &str| {
        Error::new(
            ErrorKind::Configuration,
            format!("the admins_file {} {reason}", path.display()),
        )
    };
    let file = File::open(path).map_err(failed)?;
    let found = file.metadata().map_err(failed)?;
    let own = rustix::process::geteuid().as_raw();
    if !found.is_file() || ![0, own].contains(&found.uid()) {
        return Err(refused("has to be a file of root's"));
    }
    if found.mode() & OF_OTHERS != 0 {
        return Err(refused(
            "can be read or changed by others: chown it root:shophosting-backup, and chmod 640",
        ));
    }
    let mut text = String::new();
    file.take(MOST_BYTES)
        .read_to_string(&mut text)
        .map_err(failed)?;
    Ok(text.into())
}

/// Err: what is wrong with the file. Of a line only its number is told.
fn parse(text: &SecretString) -> std::result::Result<Vec<Line>, String> {
    let mut lines: Vec<Line> = Vec::new();
    for (number, line) in text.expose_secret().lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let understood = line.split_once(':').and_then(|(name, hash)| {
            let is_usual = is_name(name) && hash.starts_with("$argon2id$");
            Some((name, hash, PasswordHash::parse(hash).filter(|_| is_usual)?))
        });
        let Some((name, text, hash)) = understood else {
            return Err(format!(
                "has a line {} that is none: make it with `shophosting-backup operator-line NAME`",
                number + 1
            ));
        };
        if lines.iter().any(|line| line.name == name) {
            return Err(format!("names the operator of line {} twice", number + 1));
        }
        lines.push(Line {
            name: name.to_owned(),
            hash,
            credential: Sha256::digest(text).into(),
        });
    }
    if !(1..=MOST_OPERATORS).contains(&lines.len()) {
        return Err("names no operator, or more than 100".to_owned());
    }
    Ok(lines)
}

fn is_name(name: &str) -> bool {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b".-_@".contains(&b);
    (1..=LONGEST_NAME).contains(&name.len()) && name.bytes().all(is_plain)
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn operators(dir: &tempfile::TempDir, text: &str, mode: u32) -> Result<Option<Operators>> {
        let file = dir.path().join("admins");
        std::fs::write(&file, text).unwrap();
        std::fs::set_permissions(&file, Permissions::from_mode(mode)).unwrap();
        Operators::read(&ServerConfig {
            admins_file: Some(file),
            ..ServerConfig::default()
        })
    }

    fn line(name: &str, password: &str) -> String {
        let line = operator_line(name, &password.into()).unwrap();
        format!("{}\n", line.expose_secret())
    }

    #[tokio::test]
    async fn an_operator_is_who_has_a_line_and_its_password_for_as_long_as_it_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let (ops, other) = (line("ops", "correct horse"), line("other@x", "other horse"));
        let known = operators(&dir, &format!("# who may look\n\n{ops}{other}"), 0o640);
        let known = known.unwrap().unwrap();
        let tried = async |name: &str, password: &str| {
            known.verify(name, &password.into(), false).await.unwrap()
        };
        let OperatorVerdict::Proven(proven) = tried("ops", "correct horse").await else {
            panic!("not let in");
        };
        assert_eq!(proven.name(), "ops");
        for (name, password) in [
            ("ops", "other horse"),
            ("ops", ""),
            ("other@x", "correct horse"),
        ] {
            assert!(matches!(
                tried(name, password).await,
                OperatorVerdict::Wrong
            ));
        }
        for name in ["", "nobody", "OPS", "ops:", "ops\n"] {
            let verdict = tried(name, "correct horse").await;
            assert!(matches!(verdict, OperatorVerdict::Unknown), "{name:?}");
        }
        assert!(known.has(&proven).unwrap());
        operators(
            &dir,
            &format!("{}{other}", line("ops", "correct horse")),
            0o640,
        )
        .unwrap();
        assert!(
            !known.has(&proven).unwrap(),
            "another hash of the same password"
        );
        operators(&dir, &other, 0o640).unwrap();
        assert!(!known.has(&proven).unwrap());
    }

    #[tokio::test]
    async fn whoever_tries_all_the_time_keeps_nobody_out_of_a_browser_that_he_has_used_before() {
        let dir = tempfile::tempdir().unwrap();
        let (ops, other) = (line("ops", "correct horse"), line("other@x", "other horse"));
        let known = operators(&dir, &format!("{ops}{other}"), 0o640);
        let known = known.unwrap().unwrap();
        let password = SecretString::from("correct horse");
        let OperatorVerdict::Proven(he) = known.verify("ops", &password, false).await.unwrap()
        else {
            panic!("not let in");
        };
        let mark = known.mark(&he);
        assert_ne!(mark, known.mark(&he));
        assert!(known.knows("ops", &mark).unwrap());
        for name in ["other@x", "nobody", ""] {
            assert!(!known.knows(name, &mark).unwrap(), "{name}");
        }
        let (nonce, mac) = mark.split_once('.').unwrap();
        for made in [
            String::new(),
            ".".to_owned(),
            nonce.to_owned(),
            format!("{nonce}."),
            format!("{nonce}.{}", &mac[2..]),
            format!("{nonce}.{}", mac.to_uppercase()),
            format!("{nonce}0.{mac}"),
            format!("{nonce}.{}", "00".repeat(32)),
        ] {
            assert!(!known.knows("ops", &made).unwrap(), "{made}");
        }

        // Others have all the turns that there are for whoever comes.
        let others = known.turns.0.acquire().await.unwrap();
        let verdict = known.verify("ops", &password, true).await.unwrap();
        assert!(matches!(verdict, OperatorVerdict::Proven(_)));
        let wrong = known.verify("ops", &"wrong".into(), true).await.unwrap();
        assert!(matches!(wrong, OperatorVerdict::Wrong));
        drop(others);
        operators(&dir, &line("ops", "correct horse"), 0o640).unwrap();
        assert!(!known.knows("ops", &mark).unwrap(), "another line of his");
    }

    #[test]
    fn a_file_that_others_can_read_or_change_or_that_makes_no_sense_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let ops = line("ops", "correct horse");
        for mode in [0o600, 0o640, 0o400] {
            assert!(operators(&dir, &ops, mode).unwrap().is_some());
        }
        for mode in [0o644, 0o660, 0o604, 0o602, 0o620, 0o601] {
            let refused = operators(&dir, &ops, mode).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Configuration);
            assert!(refused.to_string().contains("by others"), "{refused}");
        }
        for text in [
            "",
            "# nobody\n",
            "ops\n",
            "ops:plain password\n",
            "a b:$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHQ$AAAAAAAAAAAAAAAAAAAAAA\n",
            "ops:scrypt:32768:8:1$salt$00\n",
            &format!("{ops}{ops}"),
        ] {
            let refused = operators(&dir, text, 0o600).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Configuration, "{text}");
            assert!(!refused.chain().contains("plain password"), "{refused}");
        }
        assert!(operator_line("a b", &"correct horse".into()).is_err());
    }
}
