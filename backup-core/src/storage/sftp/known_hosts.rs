//! Which keys a server may show.
//!
//! Reads the known_hosts files that `ssh` reads, by the same rules: several names to a line, wildcards, hashed names,
//! `[host]:port`, `@revoked`. Certificate authorities are left out: a server must show a plain key. Never: a key trusted that
//! no file names; a file written.

use std::fs;
use std::path::{Path, PathBuf};

use hmac::{Hmac, KeyInit, Mac};
use russh::keys::ssh_key::known_hosts::HostPatterns;
use russh::keys::{Algorithm, HashAlg, PublicKey};
use sha1::Sha1;

use crate::error::{Error, ErrorKind, Result};

/// What the files say of one server.
#[derive(Debug)]
pub(super) struct KnownHost {
    host: String,
    port: u16,
    /// Where we looked; the first is where an operator would add the key.
    files: Vec<PathBuf>,
    trusted: Vec<PublicKey>,
    revoked: Vec<PublicKey>,
}

impl KnownHost {
    /// Look a server up in the configured file, else in the user's and the system's.
    pub(super) fn look_up(configured: Option<&Path>, host: &str, port: u16) -> Result<Self> {
        let mut known = Self {
            host: host.to_ascii_lowercase(),
            port,
            files: match configured {
                Some(file) => vec![file.to_owned()],
                None => default_files(),
            },
            trusted: Vec::new(),
            revoked: Vec::new(),
        };
        let mut lines = Vec::new();
        for file in &known.files {
            match fs::read(file) {
                Ok(text) => lines.extend(
                    String::from_utf8_lossy(&text)
                        .lines()
                        .filter_map(Line::parse),
                ),
                Err(error)
                    if error.kind() == std::io::ErrorKind::NotFound && configured.is_none() => {}
                Err(error) => {
                    return Err(Error::caused(
                        ErrorKind::Configuration,
                        format!("cannot read the known_hosts file {}", file.display()),
                        error,
                    ));
                }
            }
        }
        let with_port = format!("[{}]:{port}", known.host);
        known.collect(
            &lines,
            if port == 22 { &known.host } else { &with_port }
                .clone()
                .as_str(),
        );
        if known.trusted.is_empty() && port != 22 {
            // A key that is known for the host at large counts for its other ports too.
            known.collect(&lines, &known.host.clone());
        }
        Ok(known)
    }

    fn collect(&mut self, lines: &[Line], name: &str) {
        for line in lines.iter().filter(|line| line.matches(name)) {
            match line.marker {
                Marker::None => self.trusted.push(line.key.clone()),
                Marker::Revoked => self.revoked.push(line.key.clone()),
            }
        }
    }

    /// The host key algorithms to ask for, those of keys that we know first: a server with several keys shall show one of these.
    pub(super) fn algorithms(&self) -> Vec<Algorithm> {
        let mut algorithms = russh::Preferred::DEFAULT.key.to_vec();
        // Signatures with SHA-1 prove nothing any more.
        algorithms.retain(|algorithm| *algorithm != Algorithm::Rsa { hash: None });
        algorithms.sort_by_key(|algorithm| {
            !self
                .trusted
                .iter()
                .any(|key| same_family(&key.algorithm(), algorithm))
        });
        algorithms
    }

    /// Whether the server may show this key; if not, an error that says what to do.
    pub(super) fn check(&self, key: &PublicKey) -> Result<()> {
        let shown = format!("{} {}", key.algorithm(), key.fingerprint(HashAlg::Sha256));
        let server = &self.host;
        let port = self.port;
        if self
            .revoked
            .iter()
            .any(|revoked| revoked.key_data() == key.key_data())
        {
            return Err(Error::new(
                ErrorKind::Refused,
                format!(
                    "{server} port {port} showed the host key {shown}, which is marked @revoked in {}: somebody may be posing as the server",
                    self.named_files()
                ),
            ));
        }
        if self
            .trusted
            .iter()
            .any(|trusted| trusted.key_data() == key.key_data())
        {
            return Ok(());
        }
        if self.trusted.is_empty() {
            let file = self
                .files
                .first()
                .map(|file| file.display().to_string())
                .unwrap_or_default();
            return Err(Error::new(
                ErrorKind::Refused,
                format!(
                    "the host key of {server} port {port} is not known ({} does not have it): the server shows {shown}. \
                     Compare that with the server's own, then add it with `ssh-keyscan -p {port} -t {} {server} >> {file}`",
                    self.named_files(),
                    keyscan_name(&key.algorithm()),
                ),
            ));
        }
        Err(Error::new(
            ErrorKind::Refused,
            format!(
                "the host key of {server} port {port} has CHANGED: the server shows {shown}, which is not the key in {}. \
                 Somebody may be in the middle of the connection. Only if the server was set up anew: remove the old key with \
                 `ssh-keygen -R` and add the new one",
                self.named_files(),
            ),
        ))
    }

    fn named_files(&self) -> String {
        let names: Vec<_> = self
            .files
            .iter()
            .map(|file| file.display().to_string())
            .collect();
        names.join(", ")
    }
}

fn default_files() -> Vec<PathBuf> {
    std::env::home_dir()
        .map(|home| home.join(".ssh/known_hosts"))
        .into_iter()
        .chain([PathBuf::from("/etc/ssh/ssh_known_hosts")])
        .collect()
}

#[derive(Debug)]
enum Marker {
    None,
    Revoked,
}

#[derive(Debug)]
struct Line {
    marker: Marker,
    names: HostPatterns,
    key: PublicKey,
}

impl Line {
    /// None for comments, for certificate authorities, and for what cannot be read, as `ssh` does.
    fn parse(text: &str) -> Option<Self> {
        let mut fields = text.split_ascii_whitespace().peekable();
        let marker = match fields.next_if(|field| field.starts_with('@')) {
            None => Marker::None,
            Some("@revoked") => Marker::Revoked,
            Some(_) => return None,
        };
        let names = fields
            .next()
            .filter(|names| !names.starts_with('#'))?
            .parse()
            .ok()?;
        let (kind, key) = (fields.next()?, fields.next()?);
        let key = PublicKey::from_openssh(&format!("{kind} {key}")).ok()?;
        Some(Self { marker, names, key })
    }

    fn matches(&self, name: &str) -> bool {
        match &self.names {
            HostPatterns::HashedName { salt, hash } => Hmac::<Sha1>::new_from_slice(salt)
                .is_ok_and(|hmac| hmac.chain_update(name).verify_slice(hash).is_ok()),
            HostPatterns::Patterns(patterns) => {
                let mut found = false;
                for pattern in patterns {
                    match pattern.strip_prefix('!') {
                        // An exception beats every match of the line.
                        Some(exception) if matches_pattern(exception, name) => return false,
                        Some(_) => {}
                        None => found |= matches_pattern(pattern, name),
                    }
                }
                found
            }
        }
    }
}

/// `*` is any number of characters, `?` is one; upper and lower case are the same.
fn matches_pattern(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.as_bytes(), name.as_bytes());
    let (mut at_pattern, mut at_name) = (0, 0);
    // Where to go on when the last `*` must swallow one more character.
    let mut retry = None;
    while at_name < name.len() {
        match pattern.get(at_pattern) {
            Some(b'*') => {
                retry = Some((at_pattern, at_name));
                at_pattern += 1;
            }
            Some(wanted) if *wanted == b'?' || wanted.eq_ignore_ascii_case(&name[at_name]) => {
                at_pattern += 1;
                at_name += 1;
            }
            _ => match retry {
                Some((star, from)) => {
                    retry = Some((star, from + 1));
                    at_pattern = star + 1;
                    at_name = from + 1;
                }
                None => return false,
            },
        }
    }
    pattern[at_pattern..].iter().all(|b| *b == b'*')
}

fn same_family(known: &Algorithm, offered: &Algorithm) -> bool {
    match (known, offered) {
        (Algorithm::Rsa { .. }, Algorithm::Rsa { .. }) => true,
        (known, offered) => known == offered,
    }
}

fn keyscan_name(algorithm: &Algorithm) -> &'static str {
    match algorithm {
        Algorithm::Rsa { .. } => "rsa",
        Algorithm::Ecdsa { .. } => "ecdsa",
        _ => "ed25519",
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;
    use russh::keys::PrivateKey;
    use russh::keys::ssh_key::private::Ed25519Keypair;

    use super::*;

    fn key(seed: u8) -> PublicKey {
        PrivateKey::from(Ed25519Keypair::from_seed(&[seed; 32]))
            .public_key()
            .clone()
    }

    fn text(key: &PublicKey) -> String {
        let line = key.to_openssh().unwrap();
        let mut fields = line.split(' ');
        format!("{} {}", fields.next().unwrap(), fields.next().unwrap())
    }

    fn look_up(content: &str, host: &str, port: u16) -> KnownHost {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(content.as_bytes()).unwrap();
        KnownHost::look_up(Some(file.path()), host, port).unwrap()
    }

    #[test]
    fn a_name_is_found_in_every_form_that_ssh_writes() {
        let k = text(&key(1));
        for line in [
            format!("backup.example {k}"),
            format!("other,backup.example,10.0.0.1\t{k} a comment"),
            format!("*.example,!db.example {k}"),
            format!("back?p.EXAMPLE {k}"),
            format!("[backup.example]:2222 {k}"),
        ] {
            let port = if line.contains("2222") { 2222 } else { 22 };
            assert!(
                look_up(&line, "Backup.example", port)
                    .check(&key(1))
                    .is_ok(),
                "{line}"
            );
        }
    }

    #[test]
    fn a_hashed_name_is_found() {
        let salt = [7u8; 20];
        for (name, port) in [("backup.example", 22), ("[backup.example]:2222", 2222)] {
            let hash: [u8; 20] = Hmac::<Sha1>::new_from_slice(&salt)
                .unwrap()
                .chain_update(name)
                .finalize()
                .into_bytes()
                .into();
            let names = HostPatterns::HashedName {
                salt: salt.to_vec(),
                hash,
            }
            .to_string();
            let known = look_up(
                &format!("{names} {}", text(&key(1))),
                "backup.example",
                port,
            );
            assert!(known.check(&key(1)).is_ok());
            let error = look_up(&format!("{names} {}", text(&key(1))), "evil.example", port)
                .check(&key(1))
                .unwrap_err();
            assert!(error.to_string().contains("not known"));
        }
    }

    #[test]
    fn a_key_known_for_the_host_counts_for_its_other_ports() {
        assert!(
            look_up(&format!("h {}", text(&key(1))), "h", 2222)
                .check(&key(1))
                .is_ok()
        );
        assert!(
            look_up(&format!("[h]:2222 {}", text(&key(1))), "h", 22)
                .check(&key(1))
                .is_err()
        );
    }

    #[test]
    fn an_unknown_host_is_refused_with_what_to_do() {
        let error = look_up("# h ssh-ed25519 AAAA\nnonsense\n!h,* \n", "h", 2222)
            .check(&key(1))
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused);
        let fingerprint = key(1).fingerprint(HashAlg::Sha256).to_string();
        for part in [
            "not known",
            "`ssh-keyscan -p 2222 -t ed25519 h >> ",
            &fingerprint,
        ] {
            assert!(error.to_string().contains(part), "{error}");
        }
    }

    #[test]
    fn a_changed_key_is_refused_as_a_danger() {
        let error = look_up(&format!("h {}", text(&key(2))), "h", 22)
            .check(&key(1))
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused);
        assert!(
            error.to_string().contains("CHANGED") && error.to_string().contains("in the middle"),
            "{error}"
        );
    }

    #[test]
    fn a_revoked_key_is_refused_even_if_another_line_trusts_it() {
        let k = text(&key(1));
        let error = look_up(&format!("h {k}\n@revoked * {k}"), "h", 22)
            .check(&key(1))
            .unwrap_err();
        assert!(error.to_string().contains("@revoked"), "{error}");
    }

    #[test]
    fn a_certificate_authority_is_not_taken_for_a_host_key() {
        assert!(
            look_up(&format!("@cert-authority * {}", text(&key(1))), "h", 22)
                .check(&key(1))
                .is_err()
        );
    }

    #[test]
    fn an_exception_beats_the_wildcard() {
        assert!(
            look_up(
                &format!("*.example,!db.example {}", text(&key(1))),
                "db.example",
                22
            )
            .check(&key(1))
            .is_err()
        );
    }

    #[test]
    fn the_kind_of_key_that_we_know_is_asked_for_first() {
        let rsa = Algorithm::Rsa {
            hash: Some(HashAlg::Sha512),
        };
        let known = look_up(&format!("h {}", text(&key(1))), "h", 22);
        assert_eq!(known.algorithms()[0], Algorithm::Ed25519);
        let mut known = look_up("", "h", 22);
        known.trusted.push(
            PublicKey::from_openssh("ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAQQC+rM4jmnTxHzjSLjHHzVmVoFpaUNl7Kd1Kfnm0Bw0Y6hVb2bbTmcpfZeKfrNIdWNVZT1XiHHXrAKFxvKPHLAyl").unwrap(),
        );
        assert_eq!(known.algorithms()[0], rsa);
        assert!(!known.algorithms().contains(&Algorithm::Rsa { hash: None }));
    }

    #[test]
    fn a_configured_file_that_is_missing_is_an_error() {
        let error =
            KnownHost::look_up(Some(Path::new("/nonexistent/known_hosts")), "h", 22).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Configuration);
        assert!(error.to_string().contains("/nonexistent/known_hosts"));
    }

    proptest! {
        #[test]
        fn a_pattern_agrees_with_the_obvious_definition(pattern in "[ab*?]{0,8}", name in "[ab]{0,8}") {
            fn obvious(pattern: &[u8], name: &[u8]) -> bool {
                match pattern {
                    [] => name.is_empty(),
                    [b'*', rest @ ..] => (0..=name.len()).any(|skip| obvious(rest, &name[skip..])),
                    [first, rest @ ..] => name.split_first().is_some_and(|(n, tail)| (*first == b'?' || first == n) && obvious(rest, tail)),
                }
            }
            prop_assert_eq!(matches_pattern(&pattern, &name), obvious(pattern.as_bytes(), name.as_bytes()));
        }
    }
}
