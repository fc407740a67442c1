//! Creating and upgrading the tables.
//!
//! Safe to repeat, at any point of an interruption, and from several processes at once. The platform's `customers` and `servers` are
//! never touched; its `customer_backup_jobs`, if an earlier deployment made it by hand, keeps its columns and its rows.

use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};
use sqlx::mysql::MySqlConnection;
use sqlx::sqlite::SqlitePool;
use sqlx::{AssertSqlSafe, Connection, Executor, SqlSafeStr};

use super::{Pool, Store, explain, is_denied, is_missing_table};
use crate::error::{Error, ErrorKind, Result};

/// Of our own: the platform may use sqlx, too.
const TABLE: &str = "backup_migrations";

const MYSQL: &[(i64, &str, &str)] = &[
    (
        1,
        "jobs and catalogue",
        include_str!("../../migrations/mysql/0001_jobs_and_catalogue.sql"),
    ),
    (
        2,
        "sessions",
        include_str!("../../migrations/mysql/0002_sessions.sql"),
    ),
    (
        3,
        "deletions",
        include_str!("../../migrations/mysql/0003_deletions.sql"),
    ),
    (
        4,
        "kept",
        include_str!("../../migrations/mysql/0004_kept.sql"),
    ),
    (
        5,
        "proven",
        include_str!("../../migrations/mysql/0005_proven.sql"),
    ),
    (
        6,
        "audit",
        include_str!("../../migrations/mysql/0006_audit.sql"),
    ),
    (
        7,
        "notifications",
        include_str!("../../migrations/mysql/0007_notifications.sql"),
    ),
];
const SQLITE: &[(i64, &str, &str)] = &[
    (
        1,
        "jobs and catalogue",
        include_str!("../../migrations/sqlite/0001_jobs_and_catalogue.sql"),
    ),
    (
        2,
        "sessions",
        include_str!("../../migrations/sqlite/0002_sessions.sql"),
    ),
    (
        3,
        "deletions",
        include_str!("../../migrations/sqlite/0003_deletions.sql"),
    ),
    (
        4,
        "kept",
        include_str!("../../migrations/sqlite/0004_kept.sql"),
    ),
    (
        5,
        "proven",
        include_str!("../../migrations/sqlite/0005_proven.sql"),
    ),
    (
        6,
        "audit",
        include_str!("../../migrations/sqlite/0006_audit.sql"),
    ),
    (
        7,
        "notifications",
        include_str!("../../migrations/sqlite/0007_notifications.sql"),
    ),
];

/// What [`Store::migrate`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct Migrated {
    /// The version of the tables before; 0 where there were none.
    pub from: i64,
    /// Their version now.
    pub to: i64,
}

/// The turn of this process to change the tables.
enum Turn {
    /// Has the lock, which is free when the connection ends, however that ends.
    MySql(MySqlConnection),
    /// The transaction of the migration will be the lock.
    Sqlite(SqlitePool),
}

impl Store {
    /// Create the tables, or bring them to this program's version.
    ///
    /// Fails with [`ErrorKind::Configuration`] where a newer program has been at them, and with [`ErrorKind::Refused`] where the account may not.
    pub async fn migrate(&self) -> Result<Migrated> {
        let turn = self.turn_to_migrate().await?;
        self.migrate_in(turn).await
    }

    async fn turn_to_migrate(&self) -> Result<Turn> {
        // MariaDB knows no endless wait, and MySQL no name of more than 64 characters.
        const LOCK: &str = "SELECT GET_LOCK(CONCAT('backup_migrations.', SHA1(DATABASE())), 600)";
        let pool = match &self.pool {
            Pool::MySql(pool) => pool,
            Pool::Sqlite(pool) => return Ok(Turn::Sqlite(pool.clone())),
        };
        // Not one that goes back to the pool.
        let mut connection = pool.acquire().await.map_err(|e| self.failed(e))?.detach();
        let locked: Option<i64> = sqlx::query_scalar(LOCK)
            .fetch_one(&mut connection)
            .await
            .map_err(|e| self.failed(e))?;
        if locked != Some(1) {
            return Err(Error::new(
                ErrorKind::Busy,
                format!(
                    "another process has been upgrading the tables of {} for ten minutes: see what it waits for, and try again",
                    self.shown
                ),
            ));
        }
        Ok(Turn::MySql(connection))
    }

    async fn migrate_in(&self, turn: Turn) -> Result<Migrated> {
        let from = self.version().await?;
        match turn {
            Turn::MySql(mut connection) => {
                // What was interrupted is repeated.
                let forget_interrupted = format!("DELETE FROM {TABLE} WHERE success = FALSE");
                let forgotten = connection.execute(AssertSqlSafe(forget_interrupted)).await;
                let result = match forgotten {
                    Err(e) if !is_missing_table(&e) => Err(e.into()),
                    _ => migrator(MYSQL).run(&mut connection).await,
                };
                result.map_err(|e| self.migration_failed(e))?;
                if let Err(e) = connection.close().await {
                    tracing::debug!("closing a connection to {}: {e}", self.shown);
                }
            }
            Turn::Sqlite(pool) => {
                use_write_ahead_log(&pool)
                    .await
                    .map_err(|e| self.failed(e))?;
                // One process at a time, and all of it or nothing.
                let mut transaction = pool
                    .begin_with("BEGIN IMMEDIATE")
                    .await
                    .map_err(|e| self.failed(e))?;
                migrator(SQLITE)
                    .run(&mut *transaction)
                    .await
                    .map_err(|e| self.migration_failed(e))?;
                transaction.commit().await.map_err(|e| self.failed(e))?;
            }
        }
        let to = self.version().await?;
        Ok(Migrated { from, to })
    }

    /// Create the tables if there are none at all; upgrading what is there takes an explicit [`Self::migrate`].
    ///
    /// [`ErrorKind::Configuration`] where they are of another version.
    pub async fn require_migrated(&self) -> Result<()> {
        if self.is_migrated().await? {
            return Ok(());
        }
        // Others that found nothing may be creating them just now.
        let turn = self.turn_to_migrate().await?;
        let version = self.version().await?;
        if version == self.newest() {
            return Ok(());
        }
        if version > self.newest() {
            return Err(Error::new(
                ErrorKind::Configuration,
                format!(
                    "the tables of {} are of a newer version of this program: use that one",
                    self.shown
                ),
            ));
        }
        if version == 0 && !self.has_jobs().await? {
            self.migrate_in(turn).await?;
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Configuration,
            format!(
                "the tables of {} are of an earlier version: run `shophosting-backup migrate`",
                self.shown
            ),
        ))
    }

    pub(super) async fn is_migrated(&self) -> Result<bool> {
        Ok(self.version().await? == self.newest())
    }

    pub(super) fn newest(&self) -> i64 {
        let migrations = match &self.pool {
            Pool::MySql(_) => MYSQL,
            Pool::Sqlite(_) => SQLITE,
        };
        migrations.last().map_or(0, |(version, ..)| *version)
    }

    /// 0: no table, or nothing in it.
    pub(super) async fn version(&self) -> Result<i64> {
        const QUERY: &str =
            "SELECT COALESCE(MAX(version), 0) FROM backup_migrations WHERE success = TRUE";
        let found = self.row_if_table::<(i64,)>(QUERY, &[]).await?.flatten();
        Ok(found.map_or(0, |(version,)| version))
    }

    /// That it is the platform's database at all: another shall not get tables by the way.
    pub(crate) async fn require_customers(&self) -> Result<()> {
        const QUERY: &str = "SELECT COUNT(*) FROM customers WHERE id = 0";
        self.row::<(i64,)>(QUERY, &[]).await.map(drop)
    }

    async fn has_jobs(&self) -> Result<bool> {
        const QUERY: &str = "SELECT COUNT(*) FROM customer_backup_jobs";
        let found = self.row_if_table::<(i64,)>(QUERY, &[]).await?;
        Ok(found.is_some())
    }

    fn migration_failed(&self, error: MigrateError) -> Error {
        match error {
            MigrateError::Execute(e) | MigrateError::ExecuteMigration(e, _) if is_denied(&e) => {
                Error::caused(
                    ErrorKind::Refused,
                    format!(
                        "the account may not create and alter tables in {}: run `shophosting-backup migrate` once with one that has CREATE, \
                         ALTER, INDEX, SELECT, INSERT, UPDATE and DELETE there; the rest of the time none needs the first three",
                        self.shown
                    ),
                    e,
                )
            }
            MigrateError::Execute(e) | MigrateError::ExecuteMigration(e, _) => {
                explain(&self.shown, e)
            }
            MigrateError::VersionMissing(_) | MigrateError::VersionMismatch(_) => Error::caused(
                ErrorKind::Configuration,
                format!(
                    "the tables of {} are of another version of this program: use that one",
                    self.shown
                ),
                error,
            ),
            other => Error::caused(
                ErrorKind::Failed,
                format!("the tables of {} could not be upgraded", self.shown),
                other,
            ),
        }
    }
}

fn migrator(migrations: &'static [(i64, &'static str, &'static str)]) -> Migrator {
    let migrations = migrations.iter().map(|(version, description, sql)| {
        Migration::new(
            *version,
            (*description).into(),
            MigrationType::Simple,
            sql.into_sql_str(),
            false,
        )
    });
    let mut migrator = Migrator::with_migrations(migrations.collect());
    migrator.dangerous_set_table_name(TABLE);
    // We hold a lock of our own, which SQLite's has not.
    migrator.set_locking(false);
    migrator
}

/// Readers and a writer do not wait for each other. The file remembers it.
async fn use_write_ahead_log(pool: &SqlitePool) -> sqlx::Result<()> {
    loop {
        // The one statement that does not wait for others by itself.
        match sqlx::query("PRAGMA journal_mode = WAL").execute(pool).await {
            Err(sqlx::Error::Database(e)) if super::is_contention(e.as_ref()) => {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
            other => return other.map(drop),
        }
    }
}
