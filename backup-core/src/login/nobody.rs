//! What the password of somebody who is no customer is compared with.
//!
//! A table may hold hashes of several kinds and costs, and each customer's answer takes the time of his own. A stranger's address gets the cost of
//! one of them: always the same one, and in the shares that customers have them, so that the time of an answer says no more of a stranger than of
//! a customer. Never: a hash that any password proves.

use std::fmt;
use std::hash::{BuildHasher, RandomState};

use secrecy::ExposeSecret;
use tokio::sync::OnceCell;

use super::hash::PasswordHash;
use crate::customer::{CustomerStore, normal};
use crate::error::Result;

/// Hashes that are remembered: enough for the shares.
const MOST_HASHES: usize = 256;

/// What strangers are compared with, until the program ends.
#[derive(Default)]
pub(super) struct Nobody {
    /// Which address gets which, nobody outside can compute.
    key: RandomState,
    hashes: OnceCell<Vec<PasswordHash>>,
}

impl Nobody {
    /// The hash for an address. The first who asks pays for a look at the table, customer or not.
    pub(super) async fn hash(
        &self,
        customers: &CustomerStore,
        email: &str,
    ) -> Result<Option<PasswordHash>> {
        let hashes = self
            .hashes
            .get_or_try_init(|| like_those_of(customers))
            .await?;
        let number = self.key.hash_one(normal(email));
        let chosen = usize::try_from(number % hashes.len().max(1) as u64).unwrap_or_default();
        Ok(hashes.get(chosen).cloned())
    }
}

/// Those of customers, without what proves a password; where there are none yet, what they will have.
async fn like_those_of(customers: &CustomerStore) -> Result<Vec<PasswordHash>> {
    let known = customers.password_hashes().await?;
    let every = known.len().div_ceil(MOST_HASHES).max(1);
    let hashes = known.iter().step_by(every);
    let mut hashes: Vec<PasswordHash> = hashes
        .filter_map(|hash| PasswordHash::parse(hash.expose_secret()))
        .map(PasswordHash::without_digest)
        .collect();
    if hashes.is_empty() {
        hashes.extend(PasswordHash::usual(customers.is_platforms()));
    }
    Ok(hashes)
}

impl fmt::Debug for Nobody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Nobody").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::config::{Config, Environment, Origin};
    use crate::store::{Store, values};

    /// Of `correct horse`, made by werkzeug 3.1.8.
    const DIGEST: &str =
        "f0Bozf6XnT6H8hVk$7262d41699cffd078c01227c401b9a0a9519f34b3b1972e24ba57f76febc66f3";

    async fn open(directory: &tempfile::TempDir) -> (Store, CustomerStore) {
        let file = directory.path().join("backup.db");
        let text = format!(
            "[database]\nurl = 'sqlite://{}'\n[repositories.manual]\nlocation = '/r'\npassword_file = '/p'\n",
            file.display()
        );
        let config =
            Config::read(Origin::File("test".into()), &text, &Environment::default()).unwrap();
        let store = Store::connect(&config).await.unwrap();
        let customers = CustomerStore::new(&store, &config);
        (store, customers)
    }

    async fn hash_of(nobody: &Nobody, customers: &CustomerStore, email: &str) -> PasswordHash {
        nobody.hash(customers, email).await.unwrap().unwrap()
    }

    fn rounds(hash: &PasswordHash) -> u32 {
        match hash {
            PasswordHash::Pbkdf2 { rounds, .. } => *rounds,
            PasswordHash::Scrypt { .. } | PasswordHash::Argon2(_) => {
                panic!("of no customer's kind")
            }
        }
    }

    #[tokio::test]
    async fn a_stranger_costs_what_customers_cost_and_always_the_same() {
        let directory = tempfile::tempdir().unwrap();
        let (store, customers) = open(&directory).await;
        for (id, rounds) in (1_u32..).zip([50_000, 50_000, 50_000, 1000]) {
            let insert = "INSERT INTO customers (id, password_hash) VALUES (?, ?)";
            let hash = format!("pbkdf2:sha256:{rounds}${DIGEST}");
            store.execute(insert, values![id, hash]).await.unwrap();
        }
        let nobody = Nobody::default();
        let mut shares = BTreeMap::new();
        for n in 0..400 {
            let hash = hash_of(&nobody, &customers, &format!("somebody-{n}@shop.example")).await;
            let spelt = hash_of(&nobody, &customers, &format!(" Somebody-{n}@SHOP.example")).await;
            assert_eq!(rounds(&hash), rounds(&spelt));
            *shares.entry(rounds(&hash)).or_insert(0) += 1;
        }
        assert_eq!(shares.keys().collect::<Vec<_>>(), [&1000, &50_000]);
        // A quarter, give or take six standard deviations.
        assert!((48..=152).contains(&shares[&1000]), "{shares:?}");
        store.close().await;
    }

    #[tokio::test]
    async fn no_password_is_nobodys_not_even_a_customers() {
        let directory = tempfile::tempdir().unwrap();
        let (store, customers) = open(&directory).await;
        let insert = "INSERT INTO customers (id, password_hash) VALUES (1, ?)";
        let text = format!("pbkdf2:sha256:50000${DIGEST}");
        assert!(PasswordHash::parse(&text).unwrap().is_of(b"correct horse"));
        store.execute(insert, values![text]).await.unwrap();
        let hash = hash_of(&Nobody::default(), &customers, "a@shop.example").await;
        assert_eq!(rounds(&hash), 50_000);
        assert!(!hash.is_of(b"correct horse"));
        store.close().await;
    }

    #[tokio::test]
    async fn where_there_are_no_hashes_a_stranger_costs_what_they_will() {
        let directory = tempfile::tempdir().unwrap();
        let (store, customers) = open(&directory).await;
        let hash = hash_of(&Nobody::default(), &customers, "a@shop.example").await;
        assert!(matches!(hash, PasswordHash::Argon2(_)));
        store.close().await;
    }
}
