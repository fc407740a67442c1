//! Which backups exist, as SQL rows: what the dashboard reads, without any repository at hand.
//!
//! The repositories are the truth. [`Catalog::sync_manual`] and [`Catalog::sync_daily`] bring the rows in step with them, from any number of
//! processes at once; a backup's own job records it at once. Never: a row of a customer for a backup that is not his; a row of a
//! customer for a snapshot that the last listing did not have; a backup shown that its customer deleted.

mod contents;
mod deletions;
mod figures;
mod parts;
mod proofs;
mod repositories;
mod sync;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::customer::CustomerId;
use crate::error::{Error, ErrorKind, Result};
use crate::repository::{BackupType, Origin, SnapshotId};
use crate::store::{Inserted, Store, Transaction, Tries, Value, values};

pub(crate) use contents::{Contents, Place, contents};
pub(crate) use deletions::Deletion;
pub(crate) use figures::Held;
pub use figures::{Sampled, Synced};
pub use proofs::ProofFigures;
pub(crate) use proofs::{Proof, Tried};
pub(crate) use repositories::InUse;
pub use repositories::RepositoryName;
pub use sync::{Missing, SyncReport};

/// What the columns of a note hold.
const NOTE_CHARACTERS_MAX: usize = 500;
/// Snapshots named by one statement.
const SNAPSHOTS_A_STATEMENT: usize = 100;
/// Customers' rows inserted by one statement: SQLite binds at most 32,766 values.
const ROWS_A_STATEMENT: usize = 500;

const LIST: &str =
    "SELECT source, snapshot_id, time, backup_type, note, bytes, bytes_added, database_bytes, files, proven_at
    FROM customer_backups
    WHERE customer_id = ? AND deleted_at IS NULL AND (source <> 'daily' OR time >= {now} - ?
        OR backup_type <> 'db' AND time >= (SELECT MAX(time) FROM customer_backups
            WHERE customer_id = ? AND source = 'daily' AND backup_type <> 'db' AND deleted_at IS NULL)
        OR backup_type <> 'files' AND time >= (SELECT MAX(time) FROM customer_backups
            WHERE customer_id = ? AND source = 'daily' AND backup_type <> 'files' AND deleted_at IS NULL))
    ORDER BY time DESC, snapshot_id DESC";
const FIND: &str =
    "SELECT source, snapshot_id, time, backup_type, note, bytes, bytes_added, database_bytes, files, proven_at
    FROM customer_backups WHERE customer_id = ? AND source = ? AND snapshot_id = ? AND deleted_at IS NULL";
const FIND_ANYWHERE: &str =
    "SELECT source, snapshot_id, time, backup_type, note, bytes, bytes_added, database_bytes, files, proven_at
    FROM customer_backups WHERE customer_id = ? AND snapshot_id = ? AND deleted_at IS NULL
    ORDER BY source DESC LIMIT 1";
// No LIKE: SQLite would not use the key for it.
const BEGINNING: &str = "SELECT snapshot_id FROM customer_backups
    WHERE customer_id = ? AND source = ? AND snapshot_id >= ? AND snapshot_id < ? AND deleted_at IS NULL LIMIT 2";

/// Where a backup is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// Among the customer's manual backups.
    Manual,
    /// Among the platform's daily backups.
    Daily,
    /// Among those made of what a restore replaced.
    PreRestore,
}

impl Source {
    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Manual => "manual",
            Self::Daily => "daily",
            Self::PreRestore => "pre-restore",
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Source {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        [Self::Manual, Self::Daily, Self::PreRestore]
            .into_iter()
            .find(|source| source.as_str() == text)
            .ok_or_else(|| {
                Error::new(
                    ErrorKind::InvalidInput,
                    format!(
                        "`{}` is not a source: use manual, daily or pre-restore",
                        text.escape_debug()
                    ),
                )
            })
    }
}

impl From<Origin> for Source {
    fn from(origin: Origin) -> Self {
        match origin {
            Origin::Manual => Self::Manual,
            Origin::PreRestore => Self::PreRestore,
        }
    }
}

/// One backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct BackupEntry {
    /// Its snapshot.
    pub id: SnapshotId,
    /// When it was made.
    pub time: Timestamp,
    /// What it holds of the customer.
    pub backup_type: BackupType,
    /// The customer's note.
    pub note: Option<String>,
    /// Plain bytes; None for a daily one, which says only what it holds of all customers together.
    pub bytes: Option<u64>,
    /// Bytes that the repository grew by, where that is known.
    pub bytes_added: Option<u64>,
    /// Plain bytes of the dump, where that is known.
    pub database_bytes: Option<u64>,
    /// Regular files, where that is known.
    pub files: Option<u64>,
    /// When it was last restored to prove that it can be; None where it was not, or where that has failed since.
    pub proven_at: Option<Timestamp>,
}

/// A customer's backups, newest first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct BackupList {
    /// Those he made.
    pub manual: Vec<BackupEntry>,
    /// Those that the platform made, of the last `retention.daily_shown`, and the last of his files and of his database, however old they are.
    pub daily: Vec<BackupEntry>,
    /// Those made of what a restore replaced.
    pub pre_restore: Vec<BackupEntry>,
}

/// The backups of all customers. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Catalog {
    store: Store,
}

impl Catalog {
    /// The catalogue in a database.
    pub fn new(store: &Store) -> Self {
        Self {
            store: store.clone(),
        }
    }

    /// How many bytes the largest backup of each customer holds, the largest first. Looks at every row.
    pub async fn largest(&self) -> Result<Vec<(CustomerId, u64)>> {
        const LARGEST: &str = "SELECT customer_id, MAX(bytes) AS largest FROM customer_backups
            WHERE deleted_at IS NULL AND bytes IS NOT NULL GROUP BY customer_id ORDER BY largest DESC";
        let rows: Vec<(i64, i64)> = self.store.rows(LARGEST, &[]).await?;
        let largest = |(customer, bytes): (i64, i64)| {
            let customer = CustomerId::new(u32::try_from(customer).ok()?).ok()?;
            Some((customer, u64::try_from(bytes).ok()?))
        };
        Ok(rows.into_iter().filter_map(largest).collect())
    }

    /// All backups of a customer, without the daily ones that are older than `daily_shown`: but for the newest that holds his files and the newest that
    /// holds his database, which may be all that he has.
    pub async fn list(&self, customer: CustomerId, daily_shown: Duration) -> Result<BackupList> {
        // A century is all there is, and the database can subtract it.
        const MILLISECONDS_MAX: u64 = 100 * 365 * 24 * 60 * 60 * 1000;
        let daily_shown = u64::try_from(daily_shown.as_millis()).unwrap_or(u64::MAX);
        let (number, daily_shown) = (customer.get(), daily_shown.min(MILLISECONDS_MAX));
        let values = values![number, daily_shown, number, number];
        let rows: Vec<BackupRow> = self.store.rows(LIST, values).await?;
        let mut list = BackupList::default();
        for row in rows {
            let (source, entry) = row.read().map_err(unreadable)?;
            match source {
                Source::Manual => list.manual.push(entry),
                Source::Daily => list.daily.push(entry),
                Source::PreRestore => list.pre_restore.push(entry),
            }
        }
        Ok(list)
    }

    /// One of a customer's backups; None where it does not exist or is another's.
    pub async fn find(
        &self,
        customer: CustomerId,
        source: Source,
        id: &SnapshotId,
    ) -> Result<Option<BackupEntry>> {
        let values = values![customer.get(), source.as_str(), id.to_string()];
        let row: Option<BackupRow> = self.store.row(FIND, values).await?;
        row.map(|row| Ok(row.read().map_err(unreadable)?.1))
            .transpose()
    }

    /// One of a customer's backups, wherever it is from; None where it does not exist or is another's.
    pub async fn find_anywhere(
        &self,
        customer: CustomerId,
        id: &SnapshotId,
    ) -> Result<Option<(Source, BackupEntry)>> {
        let values = values![customer.get(), id.to_string()];
        let row: Option<BackupRow> = self.store.row(FIND_ANYWHERE, values).await?;
        row.map(|row| row.read().map_err(unreadable)).transpose()
    }

    /// The full id of one of the customer's backups by that id or the first digits of it, at least eight.
    ///
    /// Looks among this customer's backups only, so that no beginning of an id leads to another's. [`ErrorKind::NotFound`] where none is
    /// named so, [`ErrorKind::InvalidInput`] where several are, or where the text can be no id.
    pub async fn resolve(
        &self,
        customer: CustomerId,
        source: Source,
        text: &str,
    ) -> Result<SnapshotId> {
        let is_beginning = (8..=64).contains(&text.len())
            && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if !is_beginning {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                "a backup is named by its id as `list` shows it: 64 hexadecimal digits, or at least the first 8",
            ));
        }
        // The first text that no longer begins so: `g` follows the last digit.
        let end = format!("{text}g");
        let values = values![customer.get(), source.as_str(), text, end];
        let found: Vec<(String,)> = self.store.rows(BEGINNING, values).await?;
        match found.as_slice() {
            [(id,)] => id.parse().map_err(unreadable),
            [] => Err(no_such_backup(customer, text)),
            _ => Err(Error::new(
                ErrorKind::InvalidInput,
                format!(
                    "several backups of customer {customer} begin with {text}: give more digits"
                ),
            )),
        }
    }

    /// Write a backup down in the transaction that ends its job.
    ///
    /// A sync may have taken the same snapshot in just before; what its own job knows of it says more.
    pub(crate) async fn record(
        &self,
        transaction: &mut Transaction,
        repository_id: &str,
        customer: CustomerId,
        source: Source,
        entry: &BackupEntry,
    ) -> Result<()> {
        match remember(transaction, repository_id, &entry.id).await? {
            Remembered::New => {}
            Remembered::Again | Remembered::Already => {
                const DELETE: &str = "DELETE FROM customer_backups
                    WHERE customer_id = ? AND source = ? AND snapshot_id = ?";
                let values = values![customer.get(), source.as_str(), entry.id.to_string()];
                transaction.execute(DELETE, values).await?;
            }
        }
        let row = Row {
            customer,
            source,
            entry: entry.clone(),
        };
        insert_rows(transaction, &[row]).await
    }

    /// Remove what was forgotten on purpose, as retention does: it is missed by nobody.
    pub async fn remove(&self, repository_id: &str, ids: &[SnapshotId]) -> Result<()> {
        self.remove_rows(repository_id, ids, Rows::All).await
    }

    async fn remove_rows(
        &self,
        repository_id: &str,
        ids: &[SnapshotId],
        which: Rows,
    ) -> Result<()> {
        for ids in ids.chunks(SNAPSHOTS_A_STATEMENT) {
            let mut tries = Tries::default();
            loop {
                let removed = self.try_remove(repository_id, ids, which).await;
                if !tries.is_to_repeat(&removed).await {
                    removed?;
                    break;
                }
            }
        }
        Ok(())
    }

    async fn try_remove(&self, repository_id: &str, ids: &[SnapshotId], which: Rows) -> Result<()> {
        let (places, values) = in_list(ids);
        let mut transaction = self.store.begin().await?;
        // In the same order everywhere, so that two do not wait for each other.
        let delete = format!(
            "DELETE FROM backup_snapshots WHERE repository_id = ? AND snapshot_id IN ({places})"
        );
        transaction
            .execute(&delete, &of_repository(repository_id, &values))
            .await?;
        delete_rows(&mut transaction, ids, which).await?;
        transaction.commit().await
    }

    /// The snapshots of a repository that must be there before data counts as unused: all that are known, without those that were deleted. They
    /// may be forgotten by now, by somebody who died before he could say so.
    pub(crate) async fn needed(&self, repository_id: &str) -> Result<BTreeSet<SnapshotId>> {
        const QUERY: &str = "SELECT snapshot_id FROM backup_snapshots WHERE repository_id = ?
            AND snapshot_id NOT IN (SELECT snapshot_id FROM customer_backups
                WHERE source IN ('manual', 'pre-restore') AND deleted_at > 0)";
        self.snapshots(QUERY, values![repository_id]).await
    }

    /// All snapshots of a repository that the catalogue knows, also those that the last listings lacked and nobody has
    /// accepted as gone.
    pub async fn known(&self, repository_id: &str) -> Result<BTreeSet<SnapshotId>> {
        const QUERY: &str = "SELECT snapshot_id FROM backup_snapshots WHERE repository_id = ?";
        self.snapshots(QUERY, values![repository_id]).await
    }

    async fn snapshots(&self, query: &str, values: &[Value]) -> Result<BTreeSet<SnapshotId>> {
        let ids: Vec<(String,)> = self.store.rows(query, values).await?;
        ids.iter()
            .map(|(id,)| id.parse().map_err(unreadable))
            .collect()
    }
}

/// What the catalogue knew of a snapshot that is to be remembered.
enum Remembered {
    /// Nothing.
    New,
    /// That it was missing.
    Again,
    /// That it is there: others have taken it in.
    Already,
}

/// Note that a snapshot is there. Whoever is told [`Remembered::New`] or [`Remembered::Again`] is the only one, and inserts the rows.
async fn remember(
    transaction: &mut Transaction,
    repository_id: &str,
    id: &SnapshotId,
) -> Result<Remembered> {
    const INSERT: &str = "INSERT INTO backup_snapshots (repository_id, snapshot_id) VALUES (?, ?)";
    const UPDATE: &str = "UPDATE backup_snapshots SET missing_since = NULL
        WHERE repository_id = ? AND snapshot_id = ? AND missing_since IS NOT NULL";
    let id = id.to_string();
    let values = values![repository_id, id.as_str()];
    // Inserted first: to look for what is not there would lock the gap that others insert into.
    match transaction.insert(INSERT, values).await? {
        Inserted::Done(_) => Ok(Remembered::New),
        Inserted::Conflict => match transaction.execute(UPDATE, values).await? {
            0 => Ok(Remembered::Already),
            _ => Ok(Remembered::Again),
        },
    }
}

async fn insert_rows(transaction: &mut Transaction, rows: &[Row]) -> Result<()> {
    for rows in rows.chunks(ROWS_A_STATEMENT) {
        let places = vec!["(?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"; rows.len()].join(", ");
        let insert = format!(
            "INSERT INTO customer_backups
                 (customer_id, source, snapshot_id, time, backup_type, note, bytes, bytes_added, database_bytes, files)
             VALUES {places}"
        );
        let values: Vec<Value> = rows.iter().flat_map(Row::values).collect();
        transaction.execute(&insert, &values).await?;
    }
    Ok(())
}

/// That a snapshot holds something of a customer.
struct Row {
    customer: CustomerId,
    source: Source,
    entry: BackupEntry,
}

impl Row {
    fn values(&self) -> [Value; 10] {
        let entry = &self.entry;
        // Another program may have written a longer one.
        let note = entry
            .note
            .as_ref()
            .map(|note| note.chars().take(NOTE_CHARACTERS_MAX).collect::<String>());
        [
            self.customer.get().into(),
            self.source.as_str().into(),
            entry.id.to_string().into(),
            entry.time.as_millisecond().into(),
            entry.backup_type.to_string().into(),
            note.into(),
            entry.bytes.into(),
            entry.bytes_added.into(),
            entry.database_bytes.into(),
            entry.files.into(),
        ]
    }
}

/// Which rows of a snapshot go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rows {
    /// Every one: nobody will see it again.
    All,
    /// Not those that their customers deleted: should the snapshot come back, they are still deleted.
    Undeleted,
}

async fn delete_rows(transaction: &mut Transaction, ids: &[SnapshotId], which: Rows) -> Result<()> {
    let (places, values) = in_list(ids);
    let but = match which {
        Rows::All => "",
        Rows::Undeleted => "AND deleted_at IS NULL",
    };
    let delete = format!("DELETE FROM customer_backups WHERE snapshot_id IN ({places}) {but}");
    transaction.execute(&delete, &values).await.map(drop)
}

/// The places and values of an `IN (…)`.
fn in_list(ids: &[SnapshotId]) -> (String, Vec<Value>) {
    let values = ids.iter().map(|id| id.to_string().into()).collect();
    (vec!["?"; ids.len()].join(", "), values)
}

fn of_repository(repository_id: &str, values: &[Value]) -> Vec<Value> {
    let mut all = vec![Value::from(repository_id)];
    all.extend_from_slice(values);
    all
}

/// A customer's row.
#[derive(Debug, sqlx::FromRow)]
struct BackupRow {
    source: String,
    snapshot_id: String,
    time: i64,
    backup_type: String,
    note: Option<String>,
    bytes: Option<i64>,
    bytes_added: Option<i64>,
    database_bytes: Option<i64>,
    files: Option<i64>,
    proven_at: Option<i64>,
}

impl BackupRow {
    fn read(self) -> Result<(Source, BackupEntry)> {
        let number = |number: Option<i64>| number.and_then(|number| u64::try_from(number).ok());
        let time = Timestamp::from_millisecond(self.time)
            .map_err(|e| Error::caused(ErrorKind::Damaged, "a time that is none", e))?;
        let entry = BackupEntry {
            id: self.snapshot_id.parse()?,
            time,
            backup_type: self.backup_type.parse()?,
            note: self.note,
            bytes: number(self.bytes),
            bytes_added: number(self.bytes_added),
            database_bytes: number(self.database_bytes),
            files: number(self.files),
            proven_at: self
                .proven_at
                .and_then(|at| Timestamp::from_millisecond(at).ok()),
        };
        Ok((self.source.parse()?, entry))
    }
}

/// What is wrong with a row is nothing that whoever asked for it said.
fn unreadable(error: Error) -> Error {
    Error::caused(
        ErrorKind::Damaged,
        "the catalogue has a row that cannot be read: was it written by a newer version?",
        error,
    )
}

/// The same for a backup that does not exist and for one that is another's.
pub(crate) fn no_such_backup(customer: CustomerId, named: &str) -> Error {
    Error::new(
        ErrorKind::NotFound,
        format!("customer {customer} has no such backup {named}: see `list {customer}`"),
    )
}
