//! New repositories as `init` makes them, for tests that need many.
//!
//! A password is made slow to guess: deriving a key from it takes a third of a second for whoever creates or opens a repository, a test with a
//! hundred runs of a program half a minute. So `init` runs once in a process for real, and every further repository is what that made with an id and a
//! key of its own; all of them are opened by a key file like any other, but for a derivation that is next to nothing. Never: two repositories with the same id or key.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use aes256ctr_poly1305aes::aead::AeadInPlace;
use aes256ctr_poly1305aes::{Aes256CtrPoly1305Aes, Key, Nonce, Tag};
use anyhow::{Context, Result, anyhow, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const NONCE_BYTES: usize = 16;
const TAG_BYTES: usize = 16;
/// The least that every program takes.
const CHEAP_N: u64 = 2;

/// One way to make repositories, such as `restic init`.
#[derive(Debug, Default)]
pub struct Init(Mutex<Option<Made>>);

/// What it made, but for what is each repository's own.
#[derive(Debug, Clone)]
struct Made {
    /// As it is before encryption.
    config: Value,
    key_file: Value,
    directories: Vec<PathBuf>,
}

impl Init {
    /// A way that was not gone yet.
    pub const fn new() -> Self {
        Self(Mutex::new(None))
    }

    /// New repositories in these directories, with these passwords; `init` makes them there for real.
    pub fn make(
        &self,
        repositories: &[(&Path, &str)],
        init: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let mut made = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if made.is_none() {
            init()?;
            let (repository, password) = repositories.first().context("nothing to make")?;
            *made = Some(Made::read(repository, password)?);
            for (repository, _) in repositories {
                fs::remove_dir_all(repository)?;
            }
        }
        let made = made.as_ref().context("nothing was made")?;
        repositories
            .iter()
            .try_for_each(|(repository, password)| made.write(repository, password))
    }
}

impl Made {
    fn read(repository: &Path, password: &str) -> Result<Self> {
        let (key_file, master) = open_key(repository, password)?;
        let config = master.open(&fs::read(repository.join("config"))?)?;
        let mut directories = Vec::new();
        list_directories(repository, Path::new(""), &mut directories)?;
        Ok(Self {
            config: serde_json::from_slice(&config)?,
            key_file,
            directories,
        })
    }

    fn write(&self, repository: &Path, password: &str) -> Result<()> {
        for directory in &self.directories {
            let mut builder = fs::DirBuilder::new();
            builder.recursive(true).mode(0o700);
            builder.create(repository.join(directory))?;
        }
        let text = |bytes: &[u8]| STANDARD.encode(bytes);
        let master = json!({
            "encrypt": text(&rand::random::<[u8; 32]>()),
            "mac": { "k": text(&rand::random::<[u8; 16]>()), "r": text(&rand::random::<[u8; 16]>()) },
        });
        let mut key_file = self.key_file.clone();
        key_file["N"] = CHEAP_N.into();
        key_file["r"] = 1.into();
        key_file["p"] = 1.into();
        key_file["salt"] = text(&rand::random::<[u8; 64]>()).into();
        let sealed = derive(&key_file, password)?.seal(master.to_string().as_bytes())?;
        key_file["data"] = text(&sealed).into();
        let key_file = key_file.to_string();
        let id: String = Sha256::digest(&key_file)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        fs::write(repository.join("keys").join(id), key_file)?;
        let mut config = self.config.clone();
        config["id"] = format!(
            "{:032x}{:032x}",
            rand::random::<u128>(),
            rand::random::<u128>()
        )
        .into();
        let config = Cipher::of_master(&master)?.seal(config.to_string().as_bytes())?;
        Ok(fs::write(repository.join("config"), config)?)
    }
}

fn list_directories(root: &Path, below: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    found.push(below.to_owned());
    for entry in fs::read_dir(root.join(below))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            list_directories(root, &below.join(entry.file_name()), found)?;
        }
    }
    Ok(())
}

/// The first key file of a repository, and the cipher of its master key.
pub(crate) fn open_key(repository: &Path, password: &str) -> Result<(Value, Cipher)> {
    let mut keys = fs::read_dir(repository.join("keys"))?;
    let key = keys.next().context("a repository without a key")??;
    let key_file: Value = serde_json::from_slice(&fs::read(key.path())?)?;
    let master = derive(&key_file, password)?.open(&base64(&key_file["data"])?)?;
    let master = Cipher::of_master(&serde_json::from_slice(&master)?)?;
    Ok((key_file, master))
}

/// Restic's envelope: nonce, ciphertext, tag.
pub(crate) struct Cipher(Aes256CtrPoly1305Aes);

/// The key that a key file and its password give.
fn derive(key_file: &Value, password: &str) -> Result<Cipher> {
    let number = |name: &str| {
        key_file[name]
            .as_u64()
            .with_context(|| format!("a key file without {name}"))
    };
    let log_n = u8::try_from(number("N")?.ilog2())?;
    let params = scrypt::Params::new(
        log_n,
        u32::try_from(number("r")?)?,
        u32::try_from(number("p")?)?,
    )?;
    let mut key = [0; 64];
    scrypt::scrypt(
        password.as_bytes(),
        &base64(&key_file["salt"])?,
        &params,
        &mut key,
    )?;
    Ok(Cipher::new(&key))
}

fn base64(value: &Value) -> Result<Vec<u8>> {
    Ok(STANDARD.decode(value.as_str().context("no text")?)?)
}

impl Cipher {
    fn new(key: &[u8]) -> Self {
        Self(Aes256CtrPoly1305Aes::new(Key::from_slice(key)))
    }

    fn of_master(master: &Value) -> Result<Self> {
        let parts = [&master["encrypt"], &master["mac"]["k"], &master["mac"]["r"]];
        let parts: Vec<_> = parts.into_iter().map(base64).collect::<Result<_>>()?;
        let key = parts.concat();
        ensure!(key.len() == 64, "a master key of {} bytes", key.len());
        Ok(Self::new(&key))
    }

    pub(crate) fn open(&self, sealed: &[u8]) -> Result<Vec<u8>> {
        let (nonce, rest) = sealed.split_at_checked(NONCE_BYTES).context("too short")?;
        let end = rest.len().checked_sub(TAG_BYTES).context("too short")?;
        let (content, tag) = rest.split_at(end);
        let mut content = content.to_vec();
        self.0
            .decrypt_in_place_detached(
                Nonce::from_slice(nonce),
                &[],
                &mut content,
                Tag::from_slice(tag),
            )
            .map_err(|_| anyhow!("the key does not fit"))?;
        Ok(content)
    }

    pub(crate) fn seal(&self, content: &[u8]) -> Result<Vec<u8>> {
        let nonce: [u8; NONCE_BYTES] = rand::random();
        let mut sealed = content.to_vec();
        let tag = self
            .0
            .encrypt_in_place_detached(Nonce::from_slice(&nonce), &[], &mut sealed)
            .map_err(|_| anyhow!("it cannot be encrypted"))?;
        Ok([&nonce[..], &sealed, &tag].concat())
    }
}
