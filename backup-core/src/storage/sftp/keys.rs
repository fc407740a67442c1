//! Which keys we show to a server.
//!
//! Those of `ssh`: the configured file and nothing else, or else the agent's and the user's default files. Never: a key
//! or a passphrase in a message.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use russh::client::{AuthResult, Handle, Handler};
use russh::keys::agent::client::AgentClient;
use russh::keys::{HashAlg, PrivateKey, PrivateKeyWithHashAlg, PublicKey, decode_secret_key};
use tokio::net::UnixStream;

use super::fault::Fault;
use crate::error::{Error, ErrorKind, Result};

/// Servers hang up after six tries by default; one is left for luck.
const TRIES_MAX: usize = 5;

/// Something that can prove who we are.
enum Identity {
    File { path: PathBuf, key: Arc<PrivateKey> },
    Agent(PublicKey),
}

/// Prove to the server that we may be `user`.
pub(super) async fn authenticate<H: Handler>(
    ssh: &mut Handle<H>,
    server: &str,
    user: &str,
    configured: Option<&Path>,
) -> Result<(), Fault> {
    let mut agent = connect_agent().await;
    let identities = match configured {
        Some(path) => vec![
            configured_identity(path, agent.as_mut())
                .await
                .map_err(Fault::Permanent)?,
        ],
        None => default_identities(agent.as_mut()).await,
    };
    if identities.is_empty() {
        return Err(Fault::Permanent(Error::new(
            ErrorKind::Configuration,
            format!(
                "there is no key to log in to {server} with: set `ssh_key`, or put a key into ~/.ssh or the ssh agent"
            ),
        )));
    }
    let rsa_hash = rsa_hash(ssh, &identities).await?;
    let mut tried = Vec::new();
    for identity in identities.into_iter().take(TRIES_MAX) {
        let outcome = match &identity {
            Identity::File { key, .. } => ssh
                .authenticate_publickey(user, PrivateKeyWithHashAlg::new(key.clone(), rsa_hash))
                .await
                .map_err(|error| Fault::ssh(format!("cannot log in to {server}"), error))?,
            Identity::Agent(key) => {
                let Some(agent) = agent.as_mut() else {
                    continue;
                };
                let hash = if key.algorithm().is_rsa() {
                    rsa_hash
                } else {
                    None
                };
                match ssh
                    .authenticate_publickey_with(user, key.clone(), hash, agent)
                    .await
                {
                    Ok(outcome) => outcome,
                    // The agent would not sign (a key that must be confirmed, a token that is gone): on to the next.
                    Err(error) => {
                        tracing::warn!(%error, "the ssh agent did not sign with one of its keys");
                        continue;
                    }
                }
            }
        };
        match outcome {
            AuthResult::Success => return Ok(()),
            // The answer of a connection that is gone looks the same.
            AuthResult::Failure { .. } if ssh.is_closed() => {
                return Err(Fault::Passing(Error::new(
                    ErrorKind::Unreachable,
                    format!("{server} closed the connection during the login"),
                )));
            }
            AuthResult::Failure { .. } => tried.push(identity.describe()),
        }
    }
    Err(Fault::Permanent(Error::new(
        ErrorKind::Refused,
        format!(
            "{server} does not accept our key for the user `{user}` (tried: {}): put the public key into that user's authorized_keys on the server",
            tried.join(", ")
        ),
    )))
}

impl Identity {
    fn describe(&self) -> String {
        match self {
            Self::File { path, key } => {
                format!("{} {}", path.display(), key.fingerprint(HashAlg::Sha256))
            }
            Self::Agent(key) => format!("from the agent {}", key.fingerprint(HashAlg::Sha256)),
        }
    }

    fn is_rsa(&self) -> bool {
        match self {
            Self::File { key, .. } => key.algorithm().is_rsa(),
            Self::Agent(key) => key.algorithm().is_rsa(),
        }
    }
}

/// How an RSA key signs for this server. Asked for only where there is one: the answer may take a second.
async fn rsa_hash<H: Handler>(
    ssh: &Handle<H>,
    identities: &[Identity],
) -> Result<Option<HashAlg>, Fault> {
    if !identities.iter().any(Identity::is_rsa) {
        return Ok(None);
    }
    let best = ssh.best_supported_rsa_hash().await.map_err(|error| {
        Fault::ssh(
            "cannot agree on an RSA signature with the server".into(),
            error,
        )
    })?;
    // A server that does not say is taken to be of this century.
    Ok(best.flatten().or(Some(HashAlg::Sha256)))
}

async fn configured_identity(
    path: &Path,
    agent: Option<&mut AgentClient<UnixStream>>,
) -> Result<Identity> {
    let text = read_key_file(path)?;
    match parse_key(&text) {
        ParsedKey::Plain(key) => Ok(Identity::File {
            path: path.to_owned(),
            key: Arc::new(*key),
        }),
        ParsedKey::Encrypted(public) => {
            if let (Some(public), Some(agent)) = (public, agent)
                && agent_keys(agent)
                    .await
                    .iter()
                    .any(|key| key.key_data() == public.key_data())
            {
                return Ok(Identity::Agent(*public));
            }
            Err(Error::new(
                ErrorKind::Configuration,
                format!(
                    "the ssh key {} is protected by a passphrase: put it into the ssh agent, or use a key without one that only this program can read",
                    path.display()
                ),
            ))
        }
        ParsedKey::Unreadable => Err(Error::new(
            ErrorKind::Configuration,
            format!(
                "{} is not a private ssh key of a kind that is supported (ed25519, ecdsa, rsa)",
                path.display()
            ),
        )),
    }
}

async fn default_identities(agent: Option<&mut AgentClient<UnixStream>>) -> Vec<Identity> {
    let mut identities: Vec<_> = match agent {
        Some(agent) => agent_keys(agent)
            .await
            .into_iter()
            .map(Identity::Agent)
            .collect(),
        None => Vec::new(),
    };
    let Some(home) = std::env::home_dir() else {
        return identities;
    };
    for name in ["id_ed25519", "id_ecdsa", "id_rsa"] {
        let path = home.join(".ssh").join(name);
        // What is not there or not usable is passed over: nobody asked for it by name.
        if let Ok(text) = read_key_file(&path)
            && let ParsedKey::Plain(key) = parse_key(&text)
        {
            identities.push(Identity::File {
                path,
                key: Arc::new(*key),
            });
        }
    }
    identities
}

fn read_key_file(path: &Path) -> Result<secrecy::SecretString> {
    std::fs::read_to_string(path).map(Into::into).map_err(|error| {
        Error::caused(
            ErrorKind::Configuration,
            format!("cannot read the ssh key {}: check that it exists and that this program may read it", path.display()),
            error,
        )
    })
}

enum ParsedKey {
    Plain(Box<PrivateKey>),
    /// With its public half where the file shows it.
    Encrypted(Option<Box<PublicKey>>),
    Unreadable,
}

fn parse_key(text: &secrecy::SecretString) -> ParsedKey {
    use secrecy::ExposeSecret;
    let text = text.expose_secret();
    if let Ok(key) = PrivateKey::from_openssh(text) {
        return match key.is_encrypted() {
            true => ParsedKey::Encrypted(Some(Box::new(key.public_key().clone()))),
            false => ParsedKey::Plain(Box::new(key)),
        };
    }
    match decode_secret_key(text, None) {
        Ok(key) => ParsedKey::Plain(Box::new(key)),
        Err(russh::keys::Error::KeyIsEncrypted) => ParsedKey::Encrypted(None),
        Err(_) if text.contains("ENCRYPTED") => ParsedKey::Encrypted(None),
        Err(_) => ParsedKey::Unreadable,
    }
}

/// None where there is no agent; like `ssh`, we then do without.
async fn connect_agent() -> Option<AgentClient<UnixStream>> {
    let socket = std::env::var_os("SSH_AUTH_SOCK").filter(|socket| !socket.is_empty())?;
    match AgentClient::connect_uds(&socket).await {
        Ok(agent) => Some(agent),
        Err(error) => {
            tracing::warn!(%error, "the ssh agent of SSH_AUTH_SOCK does not answer");
            None
        }
    }
}

async fn agent_keys(agent: &mut AgentClient<UnixStream>) -> Vec<PublicKey> {
    use russh::keys::agent::AgentIdentity;
    match agent.request_identities().await {
        Ok(identities) => identities
            .into_iter()
            .filter_map(|identity| match identity {
                AgentIdentity::PublicKey { key, .. } => Some(key),
                AgentIdentity::Certificate { .. } => None,
            })
            .collect(),
        Err(error) => {
            tracing::warn!(%error, "the ssh agent does not list its keys");
            Vec::new()
        }
    }
}
