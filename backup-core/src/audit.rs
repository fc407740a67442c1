//! Who did what to which backup, from where and when: what customers read as their activity, and operators when somebody asks.
//!
//! A row is written in the transaction of the thing itself, so there is neither without the other. Rows are never changed; they go when they are too old, or
//! when a customer has too many.
//! Never: a password, a note or any other text that somebody typed; a row of one customer shown to another.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Serialize, Serializer};

use crate::catalog::Source;
use crate::customer::CustomerId;
use crate::error::Result;
use crate::repository::BackupType;
use crate::store::{Store, Transaction, Value, values};

/// As long as the columns for names and requests.
const LONGEST_NAME: usize = 64;

/// Refused logins of an account that are written down in an hour: whoever guesses shall not fill the table.
const REFUSED_AN_HOUR: usize = 20;
const AN_HOUR: Duration = Duration::from_secs(60 * 60);

/// Rows that one statement removes, so that nobody has to wait for it.
const FORGOTTEN_AT_ONCE: u32 = 500;

/// Rows that are kept of a customer of each kind (refused logins, logins and logouts, all else): whatever somebody does all the time, the table does not
/// grow with it.
pub const KEPT_OF_CUSTOMER: u32 = 1_000;

/// What takes room from its like alone: who is refused all the time, or logs in and out, pushes nothing out that was done to backups.
const KINDS: [&str; 3] = [
    "action = 'login_refused'",
    "action IN ('login', 'logout')",
    "action NOT IN ('login_refused', 'login', 'logout')",
];

const INSERT: &str = "INSERT INTO backup_audit
    (at, customer_id, who, name, action, source, backup_type, snapshot_id, job_id, address, request_id)
    VALUES ({now}, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)";
const COLUMNS: &str = "id, at, customer_id, who, name, action, source, backup_type, snapshot_id, job_id, address, request_id";

/// Who acts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// The customer, in his dashboard or by its API.
    Customer,
    /// An operator, by the command line or on his own pages.
    Operator,
    /// The program by itself, or another service that uses this library.
    Service,
}

impl Who {
    const ALL: [Self; 3] = [Self::Customer, Self::Operator, Self::Service];

    /// As it is stored.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Customer => "customer",
            Self::Operator => "operator",
            Self::Service => "service",
        }
    }
}

impl Serialize for Who {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// A backup was asked for.
    Backup,
    /// A restore was asked for; of what an earlier one replaced, it undoes that one.
    Restore,
    /// A job was cancelled, or asked to stop.
    Cancel,
    /// The customer has seen how a job failed.
    Dismiss,
    /// A backup was deleted; by the program itself, because newer ones took its place.
    Delete,
    /// Somebody logged in.
    Login,
    /// Somebody logged out.
    Logout,
    /// Somebody who knew the account's name was not let in.
    LoginRefused,
    /// The account has a new password.
    Password,
    /// The customer was added.
    Added,
    /// The daily backup of a whole hosting server was begun.
    Daily,
    /// The catalogue was brought in step with the repositories, and what is missing there was accepted.
    Sync,
    /// Space was to be freed in the repositories.
    Prune,
    /// Interrupted restores were to be brought to their end.
    Recover,
    /// Locks of dead processes were to be removed from the repositories.
    Unlock,
    /// The newest backups were to be restored apart from the shops, to prove that they can be.
    Verify,
}

impl Action {
    const ALL: [Self; 16] = [
        Self::Backup,
        Self::Restore,
        Self::Cancel,
        Self::Dismiss,
        Self::Delete,
        Self::Login,
        Self::Logout,
        Self::LoginRefused,
        Self::Password,
        Self::Added,
        Self::Daily,
        Self::Sync,
        Self::Prune,
        Self::Recover,
        Self::Unlock,
        Self::Verify,
    ];

    /// As it is stored.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Backup => "backup",
            Self::Restore => "restore",
            Self::Cancel => "cancel",
            Self::Dismiss => "dismiss",
            Self::Delete => "delete",
            Self::Login => "login",
            Self::Logout => "logout",
            Self::LoginRefused => "login_refused",
            Self::Password => "password",
            Self::Added => "added",
            Self::Daily => "daily",
            Self::Sync => "sync",
            Self::Prune => "prune",
            Self::Recover => "recover",
            Self::Unlock => "unlock",
            Self::Verify => "verify",
        }
    }
}

impl Serialize for Action {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// Who acts, and from where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Actor {
    who: Who,
    name: Option<String>,
    address: Option<IpAddr>,
    request_id: Option<String>,
}

impl Actor {
    /// The customer himself.
    pub fn customer() -> Self {
        Self::of(Who::Customer)
    }

    /// An operator of this name.
    pub fn operator(name: &str) -> Self {
        Self {
            name: Some(plain(name)),
            ..Self::of(Who::Operator)
        }
    }

    /// The program by itself, or another service.
    pub fn service() -> Self {
        Self::of(Who::Service)
    }

    /// From where: the address, and what the request is called in the log.
    #[must_use]
    pub fn at(self, address: IpAddr, request_id: &str) -> Self {
        Self {
            address: Some(address),
            request_id: Some(plain(request_id)).filter(|id| !id.is_empty()),
            ..self
        }
    }

    fn of(who: Who) -> Self {
        Self {
            who,
            name: None,
            address: None,
            request_id: None,
        }
    }
}

/// What names and ids of requests are made of; the rest is left out.
fn plain(text: &str) -> String {
    let is_plain = |c: &char| c.is_ascii_alphanumeric() || " -_.@".contains(*c);
    text.chars().filter(is_plain).take(LONGEST_NAME).collect()
}

/// Something that is done, to be written down.
#[derive(Debug, Clone)]
pub(crate) struct Deed {
    action: Action,
    customer: Option<CustomerId>,
    source: Option<Source>,
    backup_type: Option<BackupType>,
    snapshot: Option<String>,
    job: Option<u64>,
}

impl Deed {
    /// To a customer's account or things.
    pub(crate) fn to(customer: CustomerId, action: Action) -> Self {
        Self {
            customer: Some(customer),
            ..Self::to_nobody(action)
        }
    }

    /// To no single customer.
    pub(crate) fn to_nobody(action: Action) -> Self {
        Self {
            action,
            customer: None,
            source: None,
            backup_type: None,
            snapshot: None,
            job: None,
        }
    }

    /// By or to this job.
    #[must_use]
    pub(crate) fn job(self, number: u64) -> Self {
        Self {
            job: Some(number),
            ..self
        }
    }

    /// Of what is in a backup, where that is known.
    #[must_use]
    pub(crate) fn part(self, backup_type: Option<BackupType>) -> Self {
        Self {
            backup_type,
            ..self
        }
    }

    /// Of this backup.
    #[must_use]
    pub(crate) fn backup(self, source: Source, snapshot: &impl ToString) -> Self {
        Self {
            source: Some(source),
            snapshot: Some(snapshot.to_string()),
            ..self
        }
    }
}

/// Something that was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct AuditEntry {
    /// Its number: later ones have higher ones.
    pub id: u64,
    /// When, by the database's clock.
    pub at: Timestamp,
    /// Whose account or things it was done to; None where it concerns no single customer.
    pub customer: Option<CustomerId>,
    /// Who did it.
    pub who: Who,
    /// The operator's name.
    pub name: Option<String>,
    /// What was done.
    pub action: Action,
    /// Where the backup is from that it was done with.
    pub source: Option<Source>,
    /// What was backed up or restored.
    pub backup_type: Option<BackupType>,
    /// The backup that it was done with.
    pub snapshot_id: Option<String>,
    /// The job that was made or meant.
    pub job_id: Option<u64>,
    /// From where.
    pub address: Option<String>,
    /// What the request is called in the log.
    pub request_id: Option<String>,
}

/// Some of what was done, newest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct AuditPage {
    /// What a later version of this program wrote and this one does not understand is left out, so there may be fewer than asked for.
    pub entries: Vec<AuditEntry>,
    /// What the next page is `before`; None where there is nothing older.
    pub next: Option<u64>,
}

/// The rows of a database, and who writes them. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Audit {
    store: Store,
    actor: Arc<Actor>,
    /// The newest row when it was last looked for customers who have too many.
    looked_at: Arc<AtomicI64>,
}

impl Audit {
    /// What is written down is the service's, until somebody else acts.
    pub(crate) fn new(store: &Store) -> Self {
        Self {
            store: store.clone(),
            actor: Arc::new(Actor::service()),
            looked_at: Arc::default(),
        }
    }

    /// The same, written by another.
    pub(crate) fn acting(&self, actor: &Arc<Actor>) -> Self {
        Self {
            store: self.store.clone(),
            actor: Arc::clone(actor),
            looked_at: Arc::clone(&self.looked_at),
        }
    }

    /// Write down what is done in this transaction.
    pub(crate) async fn note_in(&self, transaction: &mut Transaction, deed: &Deed) -> Result<()> {
        transaction.insert(INSERT, &self.row(deed)).await.map(drop)
    }

    /// Write down what is done elsewhere than in the database.
    pub(crate) async fn note(&self, deed: &Deed) -> Result<()> {
        self.store.insert(INSERT, &self.row(deed)).await.map(drop)
    }

    fn row(&self, deed: &Deed) -> Vec<Value> {
        values![
            deed.customer.map(CustomerId::get),
            self.actor.who.as_str(),
            self.actor.name.clone(),
            deed.action.as_str(),
            deed.source.map(Source::as_str),
            deed.backup_type.map(|part| part.to_string()),
            deed.snapshot.clone(),
            deed.job,
            self.actor.address.map(|address| address.to_string()),
            self.actor.request_id.clone(),
        ]
        .to_vec()
    }

    /// Write down that somebody was not let in, beside the answer: how long that takes would tell a stranger that there is such an account.
    pub(crate) fn note_refused_login(&self, customer: CustomerId) {
        let audit = self.clone();
        tokio::spawn(async move {
            if let Err(error) = audit.try_note_refused_login(customer).await {
                tracing::warn!(%customer, "a refused login is not written down: {}", error.chain());
            }
        });
    }

    async fn try_note_refused_login(&self, customer: CustomerId) -> Result<()> {
        const NEWEST: &str = "SELECT action, (at >= {now} - ?) FROM backup_audit WHERE customer_id = ? ORDER BY id DESC LIMIT 100";
        let values = values![milliseconds(AN_HOUR), customer.get()];
        let newest: Vec<(String, i64)> = self.store.rows(NEWEST, values).await?;
        let is_refused = |(action, is_recent): &&(String, i64)| {
            *is_recent != 0 && action == Action::LoginRefused.as_str()
        };
        if newest.iter().filter(is_refused).count() >= REFUSED_AN_HOUR {
            return Ok(());
        }
        self.note(&Deed::to(customer, Action::LoginRefused)).await
    }

    /// What was done to a customer's account and things, newest first: what is older than the row `before`.
    pub(crate) async fn of_customer(
        &self,
        customer: CustomerId,
        before: Option<u64>,
        at_most: u32,
    ) -> Result<AuditPage> {
        let query = format!(
            "SELECT {COLUMNS} FROM backup_audit WHERE customer_id = ? AND id < ? ORDER BY id DESC LIMIT ?"
        );
        let before = before.unwrap_or(u64::MAX);
        let and_one = at_most.saturating_add(1);
        let values = values![customer.get(), before, and_one];
        let mut rows: Vec<EntryRow> = self.store.rows(&query, values).await?;
        // Of what there is, and not of what is understood.
        let size = usize::try_from(at_most).unwrap_or(usize::MAX);
        let has_more = rows.len() > size;
        rows.truncate(size);
        let last = rows.last().filter(|_| has_more);
        Ok(AuditPage {
            next: last.and_then(|row| u64::try_from(row.id).ok()),
            entries: understood(rows),
        })
    }

    /// What was done to anything, newest first.
    pub(crate) async fn newest(&self, at_most: u32) -> Result<Vec<AuditEntry>> {
        let query = format!("SELECT {COLUMNS} FROM backup_audit ORDER BY id DESC LIMIT ?");
        Ok(understood(self.store.rows(&query, values![at_most]).await?))
    }

    /// Remove what is older than that, and what is more of a customer than [`KEPT_OF_CUSTOMER`]; the number of rows.
    pub(crate) async fn forget(&self, keep: Duration) -> Result<u64> {
        Ok(self.forget_older_than(keep).await? + self.forget_surplus().await?)
    }

    async fn forget_older_than(&self, keep: Duration) -> Result<u64> {
        // Rows are numbered as they come, so the oldest have the lowest numbers.
        const OLDEST: &str = "SELECT id, (at < {now} - ?) FROM backup_audit ORDER BY id LIMIT ?";
        let mut forgotten = 0;
        loop {
            let values = values![milliseconds(keep), FORGOTTEN_AT_ONCE];
            let oldest: Vec<(i64, i64)> = self.store.rows(OLDEST, values).await?;
            let old: Vec<i64> = oldest
                .iter()
                .take_while(|(_, is_old)| *is_old != 0)
                .map(|(id, _)| *id)
                .collect();
            if old.is_empty() {
                return Ok(forgotten);
            }
            forgotten += self.remove(&old).await?;
        }
    }

    /// Only customers to whom something was done since the last time are looked at; the first time, all.
    async fn forget_surplus(&self) -> Result<u64> {
        const NEWEST: &str = "SELECT COALESCE(MAX(id), 0) FROM backup_audit";
        const CUSTOMERS: &str = "SELECT CAST(customer_id AS SIGNED) FROM backup_audit
            WHERE customer_id IN (SELECT customer_id FROM backup_audit WHERE id > ?)
            GROUP BY customer_id HAVING COUNT(*) > ?";
        let newest: Option<(i64,)> = self.store.row(NEWEST, &[]).await?;
        let since = self.looked_at.load(Ordering::Acquire);
        let values = values![since, KEPT_OF_CUSTOMER];
        let customers: Vec<(i64,)> = self.store.rows(CUSTOMERS, values).await?;
        let mut forgotten = 0;
        for (customer,) in customers {
            for kind in KINDS {
                forgotten += self.forget_surplus_of(customer, kind).await?;
            }
        }
        if let Some((newest,)) = newest {
            self.looked_at.store(newest, Ordering::Release);
        }
        Ok(forgotten)
    }

    async fn forget_surplus_of(&self, customer: i64, kind: &str) -> Result<u64> {
        let query = format!(
            "SELECT id FROM backup_audit WHERE customer_id = ? AND {kind} ORDER BY id DESC LIMIT ? OFFSET ?"
        );
        let mut forgotten = 0;
        loop {
            let values = values![customer, FORGOTTEN_AT_ONCE, KEPT_OF_CUSTOMER];
            let surplus: Vec<(i64,)> = self.store.rows(&query, values).await?;
            if surplus.is_empty() {
                return Ok(forgotten);
            }
            let surplus: Vec<i64> = surplus.into_iter().map(|(id,)| id).collect();
            forgotten += self.remove(&surplus).await?;
        }
    }

    async fn remove(&self, rows: &[i64]) -> Result<u64> {
        let places = vec!["?"; rows.len()].join(", ");
        let delete = format!("DELETE FROM backup_audit WHERE id IN ({places})");
        let rows: Vec<Value> = rows.iter().map(|id| Value::from(*id)).collect();
        self.store.execute(&delete, &rows).await
    }
}

/// A row as it is stored.
#[derive(sqlx::FromRow)]
struct EntryRow {
    id: i64,
    at: i64,
    customer_id: Option<i64>,
    who: String,
    name: Option<String>,
    action: String,
    source: Option<String>,
    backup_type: Option<String>,
    snapshot_id: Option<String>,
    job_id: Option<i64>,
    address: Option<String>,
    request_id: Option<String>,
}

/// Those that a later version of this program wrote may not be.
fn understood(rows: Vec<EntryRow>) -> Vec<AuditEntry> {
    rows.into_iter().filter_map(EntryRow::understand).collect()
}

impl EntryRow {
    fn understand(self) -> Option<AuditEntry> {
        let who = Who::ALL.into_iter().find(|who| who.as_str() == self.who)?;
        let mut actions = Action::ALL.into_iter();
        let customer = |number: i64| CustomerId::new(u32::try_from(number).ok()?).ok();
        Some(AuditEntry {
            id: u64::try_from(self.id).ok()?,
            at: Timestamp::from_millisecond(self.at).ok()?,
            customer: self.customer_id.and_then(customer),
            who,
            name: self.name,
            action: actions.find(|action| action.as_str() == self.action)?,
            source: self.source.and_then(|word| word.parse().ok()),
            backup_type: self.backup_type.and_then(|word| word.parse().ok()),
            snapshot_id: self.snapshot_id,
            job_id: self.job_id.and_then(|number| u64::try_from(number).ok()),
            address: self.address,
            request_id: self.request_id,
        })
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_stored_as_one_and_understood_again() {
        let words: std::collections::BTreeSet<_> =
            Action::ALL.iter().map(|action| action.as_str()).collect();
        assert_eq!(words.len(), Action::ALL.len());
        assert!(words.iter().all(|word| word.len() <= 16));
    }

    #[test]
    fn a_name_is_of_plain_signs_and_fits_its_column() {
        assert_eq!(plain("alice as root"), "alice as root");
        assert_eq!(plain("<b>\"\n\u{202e}x"), "bx");
        assert_eq!(plain(&"a".repeat(1000)).len(), LONGEST_NAME);
    }
}
