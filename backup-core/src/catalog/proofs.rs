//! Which backups were restored to prove that they can be, and what is known of a backup to compare that with.
//!
//! What a database held when it was dumped is in the row of the backup, and so goes with it. How the last try ended is kept for each customer and
//! source, whatever becomes of the backup. Never: a backup that is said to be proven after it was found to be damaged.

use std::time::Duration;

use jiff::Timestamp;

use super::{Catalog, Source, unreadable};
use crate::customer::CustomerId;
use crate::error::{Error, ErrorKind, Result};
use crate::repository::SnapshotId;
use crate::store::{Inserted, Transaction, Value, values};

/// What the column of a failure holds.
const FAILURE_CHARACTERS_MAX: usize = 4_000;

const PROOFS: &str = "SELECT p.source, COUNT(*), COUNT(p.failure), MIN(p.proven_at), MAX(p.proven_at) FROM backup_proofs p
    WHERE EXISTS (SELECT 1 FROM customer_backups b WHERE b.customer_id = p.customer_id AND b.source = p.source AND b.deleted_at IS NULL)
    GROUP BY p.source";

/// The proofs of one source, of all customers who have a backup from there. All times are by the database's clock.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProofFigures {
    /// Where the backups are from.
    pub source: Source,
    /// Customers whose last try succeeded.
    pub proven: u64,
    /// Customers whose last try failed.
    pub failed: u64,
    /// When the customer was proven who was so the longest time ago.
    pub oldest: Option<Timestamp>,
    /// When one was proven last.
    pub newest: Option<Timestamp>,
}

/// Source, customers, failures, oldest and newest.
type FiguresRow = (String, i64, i64, Option<i64>, Option<i64>);

/// Customer, source, age of the last try, whether it failed, the last one that did not.
type ProofRow = (i64, String, i64, i64, Option<i64>);

/// How the last try of a customer's backups from one source ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Proof {
    pub(crate) customer: CustomerId,
    pub(crate) source: Source,
    pub(crate) tried_ago: Duration,
    pub(crate) has_failed: bool,
    /// When one succeeded last.
    pub(crate) proven_at: Option<Timestamp>,
}

/// How a try ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Tried {
    Proven,
    /// Why it could not be tried to its end; what was proven earlier still is.
    Failed(String),
    /// What is wrong with the backup.
    Disproved(String),
}

impl Catalog {
    /// Write down what a database held while it was dumped for a backup, in the transaction that writes the backup down.
    pub(crate) async fn record_tables(
        transaction: &mut Transaction,
        customer: CustomerId,
        source: Source,
        id: &SnapshotId,
        tables: &[String],
    ) -> Result<()> {
        let values = tables_of(customer, source, id, tables)?;
        transaction.execute(NOTE_TABLES, &values).await.map(drop)
    }

    /// The same for a backup that is in the catalogue already.
    pub(crate) async fn note_tables(
        &self,
        customer: CustomerId,
        source: Source,
        id: &SnapshotId,
        tables: &[String],
    ) -> Result<()> {
        let values = tables_of(customer, source, id, tables)?;
        self.store.execute(NOTE_TABLES, &values).await.map(drop)
    }

    /// What a database held while it was dumped for a backup; None where nobody wrote it down.
    pub(crate) async fn recorded_tables(
        &self,
        customer: CustomerId,
        source: Source,
        id: &SnapshotId,
    ) -> Result<Option<Vec<String>>> {
        const QUERY: &str = "SELECT database_tables FROM customer_backups
            WHERE customer_id = ? AND source = ? AND snapshot_id = ?";
        let values = values![customer.get(), source.as_str(), id.to_string()];
        let row: Option<(Option<String>,)> = self.store.row(QUERY, values).await?;
        let Some(text) = row.and_then(|(text,)| text) else {
            return Ok(None);
        };
        serde_json::from_str(&text).map(Some).map_err(|e| {
            unreadable(Error::caused(
                ErrorKind::Damaged,
                "a list of tables that is none",
                e,
            ))
        })
    }

    /// How the last try of everybody ended.
    pub(crate) async fn proofs(&self) -> Result<Vec<Proof>> {
        const QUERY: &str = "SELECT customer_id, source, {now} - tried_at, CASE WHEN failure IS NULL THEN 0 ELSE 1 END, proven_at FROM backup_proofs";
        let rows: Vec<ProofRow> = self.store.rows(QUERY, &[]).await?;
        let read = |(customer, source, age, has_failed, proven_at): ProofRow| {
            Ok(Proof {
                customer: customer.to_string().parse()?,
                source: source.parse()?,
                tried_ago: Duration::from_millis(u64::try_from(age).unwrap_or(0)),
                has_failed: has_failed > 0,
                proven_at: proven_at.and_then(|at| Timestamp::from_millisecond(at).ok()),
            })
        };
        rows.into_iter()
            .map(|row| read(row).map_err(unreadable))
            .collect()
    }

    /// Write down how the try of one backup ended: in its row, which customers see.
    pub(crate) async fn note_tried(
        &self,
        customer: CustomerId,
        source: Source,
        id: &SnapshotId,
        tried: &Tried,
    ) -> Result<()> {
        let update = match tried {
            Tried::Proven => {
                "UPDATE customer_backups SET proven_at = {now} WHERE customer_id = ? AND source = ? AND snapshot_id = ?"
            }
            Tried::Disproved(_) => {
                "UPDATE customer_backups SET proven_at = NULL WHERE customer_id = ? AND source = ? AND snapshot_id = ?"
            }
            Tried::Failed(_) => return Ok(()),
        };
        let values = values![customer.get(), source.as_str(), id.to_string()];
        self.store.execute(update, values).await.map(drop)
    }

    /// Write down how the try of a customer's newest backups from one source ended, of whichever of them that is said.
    pub(crate) async fn note_proof(
        &self,
        customer: CustomerId,
        source: Source,
        id: &SnapshotId,
        tried: &Tried,
    ) -> Result<()> {
        let id = id.to_string();
        let of_customer = (customer.get(), source.as_str());
        match tried {
            Tried::Proven => {
                const UPDATE: &str = "UPDATE backup_proofs
                    SET snapshot_id = ?, tried_at = {now}, failure = NULL, proven_at = {now}, proven_snapshot = ?
                    WHERE customer_id = ? AND source = ?";
                const INSERT: &str = "INSERT INTO backup_proofs (snapshot_id, tried_at, proven_at, proven_snapshot, customer_id, source)
                    VALUES (?, {now}, {now}, ?, ?, ?)";
                let values = values![id.as_str(), id.as_str(), of_customer.0, of_customer.1];
                self.update_or_insert(UPDATE, INSERT, values).await
            }
            Tried::Failed(why) | Tried::Disproved(why) => {
                const UPDATE: &str =
                    "UPDATE backup_proofs SET snapshot_id = ?, tried_at = {now}, failure = ?
                    WHERE customer_id = ? AND source = ?";
                const INSERT: &str = "INSERT INTO backup_proofs (snapshot_id, tried_at, failure, customer_id, source)
                    VALUES (?, {now}, ?, ?, ?)";
                let why: String = why.chars().take(FAILURE_CHARACTERS_MAX).collect();
                let values = values![id.as_str(), why, of_customer.0, of_customer.1];
                self.update_or_insert(UPDATE, INSERT, values).await
            }
        }
    }

    async fn update_or_insert(&self, update: &str, insert: &str, values: &[Value]) -> Result<()> {
        if self.store.execute(update, values).await? == 0 {
            // Whoever was faster tried it, too.
            match self.store.insert(insert, values).await? {
                Inserted::Done(_) | Inserted::Conflict => {}
            }
        }
        Ok(())
    }

    /// The proofs by source, for a monitoring; a source that nothing was tried of is left out.
    pub(crate) async fn proof_figures(&self) -> Result<Vec<ProofFigures>> {
        let rows: Vec<FiguresRow> = self.store.rows(PROOFS, &[]).await?;
        let time = |at: Option<i64>| Timestamp::from_millisecond(at?).ok();
        let read = |(source, all, failed, oldest, newest): FiguresRow| {
            Ok(ProofFigures {
                source: source.parse()?,
                proven: u64::try_from(all - failed).unwrap_or(0),
                failed: u64::try_from(failed).unwrap_or(0),
                oldest: time(oldest),
                newest: time(newest),
            })
        };
        rows.into_iter()
            .map(|row| read(row).map_err(unreadable))
            .collect()
    }
}

const NOTE_TABLES: &str = "UPDATE customer_backups SET database_tables = ?
    WHERE customer_id = ? AND source = ? AND snapshot_id = ?";

/// The values of [`NOTE_TABLES`].
fn tables_of(
    customer: CustomerId,
    source: Source,
    id: &SnapshotId,
    tables: &[String],
) -> Result<[Value; 4]> {
    let tables = serde_json::to_string(tables).map_err(|e| {
        Error::caused(
            ErrorKind::Failed,
            "the list of tables cannot be written down",
            e,
        )
    })?;
    Ok([
        tables.into(),
        customer.get().into(),
        source.as_str().into(),
        id.to_string().into(),
    ])
}
