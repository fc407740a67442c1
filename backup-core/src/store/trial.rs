//! Whether the database would let this program do all that it has to, tried without a row being touched.

use jiff::{SignedDuration, Timestamp};

use super::{COMMAND_DENIED, Store, values};
use crate::error::Result;

/// The platform's tables, of which rows are read.
const READ: [(&str, &str); 2] = [("customers", "id"), ("servers", "id")];

/// Our tables, each with a column that may be written.
const WRITTEN: [(&str, &str); 11] = [
    ("customer_backup_jobs", "error_message"),
    ("customer_backups", "note"),
    ("backup_snapshots", "missing_since"),
    ("backup_repositories", "synced_at"),
    ("backup_repository_users", "source"),
    ("backup_proofs", "failure"),
    ("backup_sessions", "flash"),
    ("backup_audit", "name"),
    ("backup_notifications", "attempts"),
    ("backup_notification_counts", "number"),
    ("backup_migrations", "description"),
];

pub(super) fn our_tables() -> String {
    let names = WRITTEN.map(|(table, _)| table);
    names.join(", ")
}

impl Store {
    /// The version of the tables, 0 where there are none, and the one that this program wants.
    pub async fn versions(&self) -> Result<(i64, i64)> {
        Ok((self.version().await?, self.newest()))
    }

    /// The time by the database's clock.
    pub(crate) async fn now(&self) -> Result<Timestamp> {
        let row: Option<(i64,)> = self.row("SELECT {now}", &[]).await?;
        let now = row.and_then(|(now,)| Timestamp::from_millisecond(now).ok());
        Ok(now.unwrap_or_else(Timestamp::now))
    }

    /// How far the database's clock is ahead of ours; negative where it is behind.
    pub async fn clock_ahead(&self) -> Result<SignedDuration> {
        let before = Timestamp::now();
        let row: Option<(i64,)> = self.row("SELECT {now}", &[]).await?;
        let after = Timestamp::now();
        let theirs = row.and_then(|(now,)| Timestamp::from_millisecond(now).ok());
        Ok(match theirs {
            Some(theirs) if theirs > after => theirs.duration_since(after),
            Some(theirs) if theirs < before => theirs.duration_since(before),
            _ => SignedDuration::ZERO,
        })
    }

    /// The rights that the account lacks, as in `UPDATE on customer_backups`: every kind of statement is run on every table, where no row
    /// matches. A table that does not exist, as `servers` need not, is not told.
    pub async fn missing_rights(&self) -> Result<Vec<String>> {
        let mut missing = Vec::new();
        for (table, column) in READ {
            let read = format!("SELECT {column} FROM {table} WHERE 1 = 0");
            self.note_if_denied(&read, format!("SELECT on {table}"), &mut missing)
                .await?;
        }
        // Strict servers want every column to be given before they see that there is no row.
        let ignoring = if self.is_platforms() {
            "INSERT IGNORE"
        } else {
            "INSERT OR IGNORE"
        };
        for (table, column) in WRITTEN {
            for (right, statement) in [
                (
                    "SELECT",
                    format!("SELECT {column} FROM {table} WHERE 1 = 0"),
                ),
                (
                    "INSERT",
                    format!(
                        "{ignoring} INTO {table} ({column}) SELECT NULL FROM (SELECT 1 AS one) AS no_row WHERE 1 = 0"
                    ),
                ),
                (
                    "UPDATE",
                    format!("UPDATE {table} SET {column} = NULL WHERE 1 = 0"),
                ),
                ("DELETE", format!("DELETE FROM {table} WHERE 1 = 0")),
            ] {
                self.note_if_denied(&statement, format!("{right} on {table}"), &mut missing)
                    .await?;
            }
        }
        Ok(missing)
    }

    async fn note_if_denied(
        &self,
        statement: &str,
        right: String,
        missing: &mut Vec<String>,
    ) -> Result<()> {
        match self.try_execute(statement, values![]).await {
            Err(error) if is_command_denied(&error) => missing.push(right),
            Err(error) if super::is_missing_table(&error) => {}
            Err(error) => return Err(self.failed(error)),
            Ok(_) => {}
        }
        Ok(())
    }
}

/// As against an account that is refused altogether.
fn is_command_denied(error: &sqlx::Error) -> bool {
    let sqlx::Error::Database(refusal) = error else {
        return false;
    };
    let mysql = refusal.try_downcast_ref::<sqlx::mysql::MySqlDatabaseError>();
    mysql.is_some_and(|refusal| COMMAND_DENIED.contains(&refusal.number()))
}
