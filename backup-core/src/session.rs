//! Sessions: who is logged in, as rows.
//!
//! The browser holds a random token, the table only its digest, so that whoever reads the table can be nobody. A session ends when it was idle or open
//! for too long, when its customer's password changes, and when the platform does not let him in any more. Never: a session found by anything
//! but its whole token; a token in a log.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};

use crate::audit::{Action, Actor, Audit, Deed};
use crate::config::ServerConfig;
use crate::customer::{Account, AccountRow, CustomerId};
use crate::error::{Error, ErrorKind, Result};
use crate::store::{Inserted, Store, Tries, values};

const TOKEN_BYTES: usize = 32;

/// Sessions that a customer can have at once: more browsers than anybody has.
const MOST_SESSIONS: usize = 20;

/// How old what is written of the last request may be: not every request shall write.
const SEEN_PRECISION: Duration = Duration::from_secs(60);

const DELETE: &str = "DELETE FROM backup_sessions WHERE session_key = ?";

/// The sessions of a database. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Sessions {
    store: Store,
    audit: Audit,
    idle: Duration,
    max: Duration,
}

/// What the browser holds.
#[derive(Debug, Clone)]
pub struct SessionToken(SecretString);

/// Who makes a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// Somebody who does something.
    Person,
    /// A page that looks by itself whether there is news: nobody need be there.
    Background,
}

/// A session that is open.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Session {
    /// Who is logged in.
    pub account: Account,
    /// What was left with [`Sessions::leave_flash`].
    pub flash: Option<String>,
}

impl SessionToken {
    /// What somebody holds, if it can be a token at all.
    pub fn from_text(text: &str) -> Option<Self> {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        (bytes.len() == TOKEN_BYTES).then(|| Self(text.into()))
    }

    /// To give to the browser, and to nobody else.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }

    fn new() -> Self {
        Self(
            URL_SAFE_NO_PAD
                .encode(rand::random::<[u8; TOKEN_BYTES]>())
                .into(),
        )
    }

    fn key(&self) -> String {
        digest(self.expose())
    }
}

impl Sessions {
    /// The sessions of a database, with the configured limits.
    pub fn new(store: &Store, config: &ServerConfig) -> Self {
        Self {
            store: store.clone(),
            audit: Audit::new(store),
            idle: config.session_idle,
            max: config.session_max,
        }
    }

    /// The same sessions. Who logs in and out from here is written down as this one.
    pub(crate) fn acting(&self, actor: &Arc<Actor>) -> Self {
        Self {
            audit: self.audit.acting(actor),
            ..self.clone()
        }
    }

    /// Log a customer in. What nobody came back to is removed by the way, and of too many sessions of his the one that was used the longest time ago.
    pub async fn open(&self, account: &Account) -> Result<SessionToken> {
        const REMOVE_EXPIRED: &str = "DELETE FROM backup_sessions WHERE seen_at < {now} - ?";
        let idle = values![milliseconds(self.idle)];
        self.store.execute(REMOVE_EXPIRED, idle).await?;
        self.make_room(account).await?;
        let token = SessionToken::new();
        let mut tries = Tries::default();
        loop {
            let opened = self.try_open(account, &token).await;
            if !tries.is_to_repeat(&opened).await {
                return opened.map(|()| token);
            }
        }
    }

    async fn try_open(&self, account: &Account, token: &SessionToken) -> Result<()> {
        const INSERT: &str = "INSERT INTO backup_sessions (session_key, customer_id, credential, created_at, seen_at)
            VALUES (?, ?, ?, {now}, {now})";
        let mut transaction = self.store.begin().await?;
        let values = values![token.key(), account.id.get(), credential(account)];
        if transaction.insert(INSERT, values).await? == Inserted::Conflict {
            return Err(Error::new(
                ErrorKind::Failed,
                "a random token came up twice",
            ));
        }
        let deed = Deed::to(account.id, Action::Login);
        self.audit.note_in(&mut transaction, &deed).await?;
        transaction.commit().await
    }

    async fn make_room(&self, account: &Account) -> Result<()> {
        const KEYS: &str = "SELECT session_key FROM backup_sessions WHERE customer_id = ? ORDER BY seen_at DESC, created_at DESC";
        let keys: Vec<(String,)> = self.store.rows(KEYS, values![account.id.get()]).await?;
        for (key,) in keys.into_iter().skip(MOST_SESSIONS - 1) {
            self.store.execute(DELETE, values![key]).await?;
        }
        Ok(())
    }

    /// The session of a token, if it is open; seen now, if somebody is there.
    pub async fn find(&self, token: &SessionToken, presence: Presence) -> Result<Option<Session>> {
        // Whether the customer may still come in is looked up in the same breath.
        const QUERY: &str =
            "SELECT c.*, s.credential AS session_credential, s.flash AS session_flash,
                (s.seen_at < {now} - ?) AS session_is_stale
            FROM backup_sessions s JOIN customers c ON c.id = s.customer_id
            WHERE s.session_key = ? AND s.seen_at >= {now} - ? AND s.created_at >= {now} - ?";
        let values = values![
            milliseconds(SEEN_PRECISION),
            token.key(),
            milliseconds(self.idle),
            milliseconds(self.max),
        ];
        let Some(row) = self.store.row::<SessionRow>(QUERY, values).await? else {
            return Ok(None);
        };
        if !row.account.is_active || row.credential != credential(&row.account) {
            // It shall not come to life again when things are as they were.
            self.store.execute(DELETE, values![token.key()]).await?;
            return Ok(None);
        }
        if row.is_stale != 0 && presence == Presence::Person {
            const SEEN: &str = "UPDATE backup_sessions SET seen_at = {now} WHERE session_key = ?";
            self.store.execute(SEEN, values![token.key()]).await?;
        }
        Ok(Some(Session {
            account: row.account,
            flash: row.flash,
        }))
    }

    /// Log out. What was logged out before is no error.
    pub async fn close(&self, token: &SessionToken) -> Result<()> {
        let mut tries = Tries::default();
        loop {
            let closed = self.try_close(token).await;
            if !tries.is_to_repeat(&closed).await {
                return closed;
            }
        }
    }

    async fn try_close(&self, token: &SessionToken) -> Result<()> {
        const WHOSE: &str = "SELECT customer_id FROM backup_sessions WHERE session_key = ?";
        let mut transaction = self.store.begin().await?;
        let whose: Option<(i64,)> = transaction.row(WHOSE, values![token.key()]).await?;
        // Of two at the same time one removes it, and that one writes it down.
        let is_removed = transaction.execute(DELETE, values![token.key()]).await? > 0;
        let customer = whose.and_then(|(number,)| u32::try_from(number).ok());
        if let Some(customer) = customer.filter(|_| is_removed) {
            let deed = Deed::to(CustomerId::new(customer)?, Action::Logout);
            self.audit.note_in(&mut transaction, &deed).await?;
        }
        transaction.commit().await
    }

    /// Leave a text of at most 1,000 characters for the next page.
    pub async fn leave_flash(&self, token: &SessionToken, text: &str) -> Result<()> {
        const UPDATE: &str = "UPDATE backup_sessions SET flash = ? WHERE session_key = ?";
        self.store
            .execute(UPDATE, values![text, token.key()])
            .await?;
        Ok(())
    }

    /// Take the text away; false where somebody else has done so.
    pub async fn take_flash(&self, token: &SessionToken) -> Result<bool> {
        const UPDATE: &str =
            "UPDATE backup_sessions SET flash = NULL WHERE session_key = ? AND flash IS NOT NULL";
        Ok(self.store.execute(UPDATE, values![token.key()]).await? > 0)
    }
}

struct SessionRow {
    account: Account,
    credential: String,
    flash: Option<String>,
    is_stale: i64,
}

impl<'r, R: sqlx::Row> sqlx::FromRow<'r, R> for SessionRow
where
    &'static str: sqlx::ColumnIndex<R>,
    String: sqlx::Decode<'r, R::Database> + sqlx::Type<R::Database>,
    Option<String>: sqlx::Decode<'r, R::Database> + sqlx::Type<R::Database>,
    i64: sqlx::Decode<'r, R::Database> + sqlx::Type<R::Database>,
    AccountRow: sqlx::FromRow<'r, R>,
{
    fn from_row(row: &'r R) -> sqlx::Result<Self> {
        Ok(Self {
            account: AccountRow::from_row(row)?.0,
            credential: row.try_get("session_credential")?,
            flash: row.try_get("session_flash")?,
            is_stale: row.try_get("session_is_stale")?,
        })
    }
}

/// What the customer's password was when he logged in, as little as is needed to see that it is another one.
fn credential(account: &Account) -> String {
    let hash = account.password_hash.as_ref();
    digest(hash.map_or("", ExposeSecret::expose_secret))
}

fn digest(text: &str) -> String {
    hex::encode(Sha256::digest(text))
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
