//! Logging in: whose an email address and a password are, or a session of the platform; and who is an operator.
//!
//! Passwords are proven against the hashes that the platform keeps, and hashed for the embedded store. Never: an answer that tells an unknown
//! address from a wrong password, by its words or by its time; a hash from the table that costs whatever memory and time it says.

mod hash;
mod nobody;
mod operators;
mod platform;

use std::sync::Arc;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use tokio::sync::Semaphore;

use crate::audit::{Actor, Audit};
use crate::customer::{Account, CustomerStore};
use crate::error::{Error, ErrorKind, Result};
use hash::PasswordHash;
use nobody::Nobody;

pub use hash::hash_password;
pub use operators::{Operator, OperatorVerdict, Operators, operator_line};
pub use platform::{PlatformSessions, Unproven};

/// Passwords that are proven at once: each takes a processor and tens of megabytes for a tenth of a second.
const AT_ONCE: usize = 2;

/// How long a try waits for its turn.
const PATIENCE: Duration = Duration::from_secs(10);

/// Longer ones are nobody's.
const LONGEST_PASSWORD: usize = 1024;

/// Lets customers in. Cheap to clone; clones share their turns.
#[derive(Debug, Clone)]
pub struct Login {
    customers: CustomerStore,
    audit: Audit,
    turns: Turns,
    nobody: Arc<Nobody>,
}

/// Passwords are proven in turns: however many try, that takes a known part of the machine. Clones share their turns.
#[derive(Debug, Clone)]
struct Turns(Arc<Semaphore>);

/// What became of a try to log in.
#[derive(Debug, Clone)]
pub enum Verdict {
    /// It is this customer.
    Proven(Box<Account>),
    /// The password is right, but the platform does not let him in just now.
    Inactive,
    /// The address is unknown or the password is wrong: which of them is not told.
    Wrong,
}

impl Login {
    /// For the customers of a database.
    pub fn new(customers: &CustomerStore) -> Self {
        Self {
            customers: customers.clone(),
            audit: customers.audit().clone(),
            turns: Turns::new(AT_ONCE),
            nobody: Arc::default(),
        }
    }

    /// The same, with the same turns. Whom it refuses is written down as this one's try.
    pub(crate) fn acting(&self, actor: &Arc<Actor>) -> Self {
        Self {
            audit: self.audit.acting(actor),
            ..self.clone()
        }
    }

    /// Whose these are. [`ErrorKind::Busy`] where too many try at the same time.
    pub async fn verify(&self, email: &str, password: &SecretString) -> Result<Verdict> {
        let nobodys = self.nobody.hash(&self.customers, email).await?;
        let account = self.customers.account(email).await?;
        let known = account.as_ref().and_then(|account| {
            let text = account.password_hash.as_ref()?.expose_secret();
            let hash = PasswordHash::parse(text);
            if hash.is_none() {
                tracing::warn!(customer = %account.id, "the password hash of this customer is of no kind that is known here");
            }
            hash
        });
        let is_known = known.is_some();
        // The same work for a stranger.
        let is_right = self.is_right(known.or(nobodys), password.clone()).await? && is_known;
        if let Some(account) = &account
            && !(is_right && account.is_active)
        {
            self.audit.note_refused_login(account.id);
        }
        Ok(match account {
            Some(account) if is_right && account.is_active => Verdict::Proven(Box::new(account)),
            Some(_) if is_right => Verdict::Inactive,
            _ => Verdict::Wrong,
        })
    }

    async fn is_right(&self, hash: Option<PasswordHash>, password: SecretString) -> Result<bool> {
        let proof = move || {
            let password = password.expose_secret();
            password.len() <= LONGEST_PASSWORD
                && hash.is_some_and(|hash| hash.is_of(password.as_bytes()))
        };
        self.turns.take(proof).await
    }
}

impl Turns {
    fn new(at_once: usize) -> Self {
        Self(Arc::new(Semaphore::new(at_once)))
    }

    /// What the proof gives, once it had its turn. [`ErrorKind::Busy`] where that does not come in time.
    async fn take<T: Send + 'static>(
        &self,
        proof: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T> {
        let turn = Arc::clone(&self.0).acquire_owned();
        let Ok(Ok(turn)) = tokio::time::timeout(PATIENCE, turn).await else {
            return Err(Error::new(
                ErrorKind::Busy,
                "too many try to log in at the same time",
            ));
        };
        let proof = tokio::task::spawn_blocking(move || {
            let proven = proof();
            // Whoever asked may be gone: the turn is over when the work is.
            drop(turn);
            proven
        });
        proof
            .await
            .map_err(|e| Error::caused(ErrorKind::Failed, "a password could not be checked", e))
    }
}
