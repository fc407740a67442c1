//! The key file of a new repository: its master key, sealed under the password.
//!
//! What a guess at the password costs is what restic asks for: as much work as rustic would ask for, on a quarter of the memory, which every opening of the
//! repository needs as well. Never: a master key written in the clear.

use bytes::Bytes;
use jiff::Zoned;
use rand::RngExt;
use rustic_core::repofile::{KeyFile, MasterKey};
use secrecy::{ExposeSecret, SecretString};

use super::seal::{Sealer, file_id};
use super::{hostname, username};
use crate::error::{Error, ErrorKind, Result};
use crate::storage::FileId;

/// 32 MiB, gone through four times.
const LOG_N: u8 = 15;
const R: u32 = 8;
const P: u32 = 4;
const SALT_BYTES: usize = 64;

/// A key file that opens `master` with `password`, and its name.
pub(super) fn seal_key(master: &MasterKey, password: &SecretString) -> Result<(FileId, Bytes)> {
    let failed = |error: String| {
        Error::caused(
            ErrorKind::Failed,
            "the key of the new repository cannot be made",
            error,
        )
    };
    let salt: [u8; SALT_BYTES] = rand::rng().random();
    let params = scrypt::Params::new(LOG_N, R, P).map_err(|error| failed(error.to_string()))?;
    let mut derived = [0; 64];
    scrypt::scrypt(
        password.expose_secret().as_bytes(),
        &salt,
        &params,
        &mut derived,
    )
    .map_err(|error| failed(error.to_string()))?;
    let (encrypt, mac) = derived.split_at(32);
    let (k, r) = mac.split_at(16);
    let json = serde_json::to_vec(master).map_err(|error| failed(error.to_string()))?;
    let key = KeyFile {
        hostname: Some(hostname()),
        username: Some(username()),
        created: Some(Zoned::now()),
        kdf: "scrypt".to_owned(),
        n: 1 << LOG_N,
        r: R,
        p: P,
        data: Sealer::new(encrypt, k, r)?.seal(&json)?,
        salt: salt.to_vec(),
    };
    let content = serde_json::to_vec(&key).map_err(|error| failed(error.to_string()))?;
    Ok((file_id(&content), content.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_password_alone_opens_a_key_and_a_guess_costs_what_restic_asks_for() {
        let master = MasterKey::new();
        let (_, content) = seal_key(&master, &"right".to_owned().into()).unwrap();
        let key: KeyFile = serde_json::from_slice(&content).unwrap();
        assert!(key.key_from_password(&"wrong").is_err());
        assert!(key.key_from_password(&"right").is_ok());
        assert_eq!((key.n, key.r, key.p), (32_768, 8, 4));
        let text = String::from_utf8(content.to_vec()).unwrap();
        let secret = serde_json::to_value(&master).unwrap();
        assert!(!text.contains(secret["encrypt"].as_str().unwrap()));
    }
}
