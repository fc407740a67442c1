//! Operators: who may look at all customers, by a file that root writes. They are no customers, and no customer is one.
//!
//! The file is read at each login and for each request, so that a line which is removed or changed ends what was begun with it. Never: a file that anybody
//! else can read or change; an answer that tells an unknown name from a wrong password, by its words or by its time.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;

use super::hash::PasswordHash;
use super::{LONGEST_PASSWORD, PATIENCE, hash_password};
use crate::config::ServerConfig;
use crate::error::{Error, ErrorKind, Result};

const LONGEST_NAME: usize = 32;
const MOST_OPERATORS: usize = 100;
const MOST_BYTES: u64 = 64 * 1024;

/// The operators of `server.admins_file`. Cheap to clone; clones share their turns.
#[derive(Debug, Clone)]
pub struct Operators {
    file: Arc<Path>,
    turns: Arc<Semaphore>,
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
            turns: Arc::new(Semaphore::new(1)),
        };
        operators.lines()?;
        Ok(Some(operators))
    }

    /// Who these are. [`ErrorKind::Busy`] where others try all the time.
    pub async fn verify(&self, name: &str, password: &SecretString) -> Result<OperatorVerdict> {
        let turn = Arc::clone(&self.turns).acquire_owned();
        let Ok(Ok(turn)) = tokio::time::timeout(PATIENCE, turn).await else {
            return Err(Error::new(
                ErrorKind::Busy,
                "too many operators try to log in at the same time",
            ));
        };
        let (operators, name, password) = (self.clone(), name.to_owned(), password.clone());
        let proof = tokio::task::spawn_blocking(move || {
            let verdict = operators.prove(&name, password.expose_secret());
            drop(turn);
            verdict
        });
        proof
            .await
            .map_err(|e| Error::caused(ErrorKind::Failed, "a password could not be checked", e))?
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
        let tried =
            async |name: &str, password: &str| known.verify(name, &password.into()).await.unwrap();
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
