//! Password hashes: werkzeug's `scrypt:N:r:p$salt$hex` and `pbkdf2:digest:rounds$salt$hex`, and `$argon2id$…`.

use argon2::password_hash::phc;
use argon2::password_hash::{PasswordHasher, PasswordVerifier};
use argon2::{Algorithm, Argon2, Params, Version};
use pbkdf2::pbkdf2_hmac;
use secrecy::{ExposeSecret, SecretString};
use sha1::Sha1;
use sha2::{Sha256, Sha512};
use subtle::ConstantTimeEq;

use crate::error::{Error, ErrorKind, Result};

/// Of all kinds: the most memory that a hash may take.
const MOST_KIB: u64 = 128 * 1024;

/// What scrypt may cost: N × r × p, eight times werkzeug's own choice.
const MOST_SCRYPT_BLOCKS: u64 = 1 << 21;

/// What argon2 may cost: KiB × passes.
const MOST_ARGON2_BLOCKS: u64 = 1 << 20;

const MOST_ROUNDS: u32 = 5_000_000;

/// Bytes of a digest: fewer prove too little.
const DIGEST: std::ops::RangeInclusive<usize> = 16..=64;

/// What werkzeug makes now, of a password that nobody has.
const NOBODY_OF_WERKZEUG: &str = "scrypt:32768:8:1$nobodynobodynobo$\
    0000000000000000000000000000000000000000000000000000000000000000\
    0000000000000000000000000000000000000000000000000000000000000000";

/// What [`hash_password`] makes.
const NOBODY_OF_OURS: &str = "$argon2id$v=19$m=19456,t=2,p=1$bm9ib2R5bm9ib2R5bm9ibw$\
    AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

/// What a password is compared with.
#[derive(Clone)]
pub(super) enum PasswordHash {
    Scrypt {
        params: scrypt::Params,
        salt: String,
        digest: Vec<u8>,
    },
    Pbkdf2 {
        function: HashFunction,
        rounds: u32,
        salt: String,
        digest: Vec<u8>,
    },
    Argon2(Box<phc::PasswordHash>),
}

#[derive(Clone, Copy)]
pub(super) enum HashFunction {
    Sha1,
    Sha256,
    Sha512,
}

impl PasswordHash {
    /// None for what is of another kind, broken, or costs more than any honest one.
    pub(super) fn parse(text: &str) -> Option<Self> {
        if text.starts_with("$argon2id$") {
            return Self::parse_argon2(text);
        }
        let mut parts = text.split('$');
        let (method, salt, hex) = (parts.next()?, parts.next()?, parts.next()?);
        let digest = hex::decode(hex).ok()?;
        if parts.next().is_some() || salt.is_empty() || !DIGEST.contains(&digest.len()) {
            return None;
        }
        let salt = salt.to_owned();
        let words: Vec<&str> = method.split(':').collect();
        match words[..] {
            ["scrypt", n, r, p] => Some(Self::Scrypt {
                params: scrypt_params(n.parse().ok()?, r.parse().ok()?, p.parse().ok()?)?,
                salt,
                digest,
            }),
            ["pbkdf2", function, rounds] => Some(Self::Pbkdf2 {
                function: match function {
                    "sha1" => HashFunction::Sha1,
                    "sha256" => HashFunction::Sha256,
                    "sha512" => HashFunction::Sha512,
                    _ => return None,
                },
                rounds: rounds
                    .parse()
                    .ok()
                    .filter(|rounds| (1..=MOST_ROUNDS).contains(rounds))?,
                salt,
                digest,
            }),
            _ => None,
        }
    }

    fn parse_argon2(text: &str) -> Option<Self> {
        let hash = phc::PasswordHash::new(text).ok()?;
        let params = Params::try_from(&hash).ok()?;
        let memory = u64::from(params.m_cost());
        let is_honest = memory <= MOST_KIB
            && memory * u64::from(params.t_cost()) <= MOST_ARGON2_BLOCKS
            && hash
                .hash
                .as_ref()
                .is_some_and(|digest| DIGEST.contains(&digest.len()));
        is_honest.then(|| Self::Argon2(Box::new(hash)))
    }

    /// What customers get now, of no password.
    pub(super) fn usual(is_platforms: bool) -> Option<Self> {
        Self::parse(if is_platforms {
            NOBODY_OF_WERKZEUG
        } else {
            NOBODY_OF_OURS
        })
    }

    /// The same work, and nothing that it proves.
    pub(super) fn without_digest(mut self) -> Self {
        match &mut self {
            Self::Scrypt { digest, .. } | Self::Pbkdf2 { digest, .. } => digest.fill(0),
            Self::Argon2(hash) => {
                let length = hash.hash.as_ref().map_or(0, |digest| digest.len());
                hash.hash = phc::Output::new(&vec![0; length]).ok();
            }
        }
        self
    }

    /// Takes a tenth of a second or so.
    pub(super) fn is_of(&self, password: &[u8]) -> bool {
        match self {
            Self::Scrypt {
                params,
                salt,
                digest,
            } => {
                let mut found = vec![0; digest.len()];
                scrypt::scrypt(password, salt.as_bytes(), params, &mut found).is_ok()
                    && bool::from(found.ct_eq(digest))
            }
            Self::Pbkdf2 {
                function,
                rounds,
                salt,
                digest,
            } => {
                let mut found = vec![0; digest.len()];
                let salt = salt.as_bytes();
                match function {
                    HashFunction::Sha1 => pbkdf2_hmac::<Sha1>(password, salt, *rounds, &mut found),
                    HashFunction::Sha256 => {
                        pbkdf2_hmac::<Sha256>(password, salt, *rounds, &mut found);
                    }
                    HashFunction::Sha512 => {
                        pbkdf2_hmac::<Sha512>(password, salt, *rounds, &mut found);
                    }
                }
                bool::from(found.ct_eq(digest))
            }
            Self::Argon2(hash) => Argon2::default()
                .verify_password(password, hash.as_ref())
                .is_ok(),
        }
    }
}

fn scrypt_params(n: u64, r: u32, p: u32) -> Option<scrypt::Params> {
    let blocks = n.checked_mul(u64::from(r))?;
    // A block is 128 bytes.
    let is_honest = n.is_power_of_two()
        && blocks / 8 <= MOST_KIB
        && blocks.checked_mul(u64::from(p))? <= MOST_SCRYPT_BLOCKS;
    let log_n = u8::try_from(n.checked_ilog2()?).ok()?;
    is_honest.then(|| scrypt::Params::new(log_n, r, p).ok())?
}

/// A new hash for the embedded store: argon2id, 19 MiB, two passes.
pub fn hash_password(password: &SecretString) -> Result<SecretString> {
    let failed = |e: argon2::password_hash::Error| {
        Error::caused(ErrorKind::Failed, "the password cannot be hashed", e)
    };
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, Params::default());
    let salt: [u8; 16] = rand::random();
    let hash = argon2
        .hash_password_with_salt(password.expose_secret().as_bytes(), &salt)
        .map_err(failed)?;
    Ok(hash.to_string().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made by werkzeug itself (3.1.8) of `correct horse`.
    const MADE_BY_WERKZEUG: [&str; 4] = [
        "scrypt:32768:8:1$b2veI9bMDf7k5rQx$9f9b0c2d684949a5c810d674de713048ded5d1a1bdfa7e754b10f7272f4d01cad203c0f19984430e4c1718b7787fa3cbd90288fd9f888e5ce8e2e2a1a063bb66",
        "pbkdf2:sha256:50000$f0Bozf6XnT6H8hVk$7262d41699cffd078c01227c401b9a0a9519f34b3b1972e24ba57f76febc66f3",
        "pbkdf2:sha1:50000$1kxcexwXGpmN5C7C$947ce64966020f7b2319be83a3c9d260c9572183",
        "pbkdf2:sha512:50000$a4UHZ6N2ELM0u83J$52cc55a80f9fef8554ec3927e330d95538d55d669e0c038db628215c00ac9bc48556ae0760e9435478dc1757ae6f05e7232ed3c8c54174baecfc90e1377ad7c8",
    ];

    #[test]
    fn what_werkzeug_made_is_understood() {
        for text in MADE_BY_WERKZEUG {
            let hash = PasswordHash::parse(text).unwrap_or_else(|| panic!("{text}"));
            assert!(hash.is_of(b"correct horse"), "{text}");
            assert!(!hash.is_of(b"correct horsf"), "{text}");
            assert!(!hash.is_of(b""), "{text}");
        }
    }

    #[test]
    fn our_own_is_understood_and_never_twice_the_same() {
        let password = SecretString::from("correct horse");
        let text = hash_password(&password).unwrap();
        let again = hash_password(&password).unwrap();
        assert_ne!(text.expose_secret(), again.expose_secret());
        let hash = PasswordHash::parse(text.expose_secret()).unwrap();
        assert!(hash.is_of(b"correct horse") && !hash.is_of(b"correct horsf"));
    }

    #[test]
    fn nobody_costs_as_much_as_somebody() {
        let of_platform = PasswordHash::usual(true).unwrap();
        let PasswordHash::Scrypt { params, digest, .. } = &of_platform else {
            panic!("not scrypt")
        };
        assert_eq!((params.log_n(), params.r(), params.p()), (15, 8, 1));
        assert_eq!(digest.len(), 64);
        let Some(PasswordHash::Argon2(hash)) = PasswordHash::usual(false) else {
            panic!("not argon2")
        };
        let params = Params::try_from(hash.as_ref()).unwrap();
        let ours = Params::default();
        assert_eq!(
            (params.m_cost(), params.t_cost(), params.p_cost()),
            (ours.m_cost(), ours.t_cost(), ours.p_cost())
        );
        assert!(!of_platform.is_of(b"") && !PasswordHash::Argon2(hash).is_of(b""));
    }

    #[test]
    fn a_hash_that_costs_too_much_or_is_none_is_refused_unread() {
        let digest = "ab".repeat(32);
        for text in [
            String::new(),
            "secret".into(),
            "$2b$12$abcdefghijklmnopqrstuv".into(),
            format!("scrypt:1073741824:8:1$salt${digest}"),
            format!("scrypt:32768:8:1000$salt${digest}"),
            format!("scrypt:32767:8:1$salt${digest}"),
            format!("scrypt:0:8:1$salt${digest}"),
            format!("scrypt:18446744073709551615:4294967295:1$salt${digest}"),
            format!("scrypt:32768:8:1$${digest}"),
            "scrypt:32768:8:1$salt$".into(),
            "scrypt:32768:8:1$salt$abcd".into(),
            format!("scrypt:32768:8:1$salt${digest}$more"),
            format!("pbkdf2:sha256:4294967295$salt${digest}"),
            format!("pbkdf2:sha256:0$salt${digest}"),
            format!("pbkdf2:md5:1000$salt${digest}"),
            format!("pbkdf2:sha256:1000$salt${}", "zz".repeat(32)),
            "$argon2id$v=19$m=4194304,t=3,p=1$c2FsdHNhbHRzYWx0$YWJjZGFiY2RhYmNkYWJjZA".into(),
            "$argon2id$v=19$m=65536,t=100000,p=1$c2FsdHNhbHRzYWx0$YWJjZGFiY2RhYmNkYWJjZA".into(),
            "$argon2id$v=19$m=65536,t=3,p=1$c2FsdHNhbHRzYWx0".into(),
        ] {
            assert!(PasswordHash::parse(&text).is_none(), "{text}");
        }
    }
}
