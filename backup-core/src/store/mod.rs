//! The SQL database that customers, jobs and the catalogue are in: the platform's MySQL or MariaDB, or a SQLite file of our own.
//!
//! One SQL text serves both: `?` binds, numbers and text only, and `{now}` for the database's clock in milliseconds since 1970. All times that
//! machines compare are the database's own. Never: a table of the platform altered, except the jobs' by [`Store::migrate`]; an
//! address with its password in an error.

mod connect;
mod migrate;
mod query;
mod trial;

use std::time::Duration;

use sqlx::mysql::MySqlPool;
use sqlx::sqlite::SqlitePool;

use crate::config::{Config, DatabaseUrl};
use crate::error::{Error, ErrorKind, Result};

pub use migrate::Migrated;
pub(crate) use query::{Inserted, Transaction, Tries, Value, values};

/// The database. Cheap to clone; clones share their connections.
#[derive(Debug, Clone)]
pub struct Store {
    pool: Pool,
    /// Its address without the password.
    shown: String,
    schema: Option<String>,
}

#[derive(Debug, Clone)]
enum Pool {
    MySql(MySqlPool),
    Sqlite(SqlitePool),
}

impl Store {
    /// Connect. A SQLite file that is not there yet is created, with its tables; a MySQL database is left as it is.
    pub async fn connect(config: &Config) -> Result<Self> {
        let shown = config.database.url.to_string();
        match &config.database.url {
            DatabaseUrl::MySql(url) => {
                let password = config.database.password.as_ref();
                let options = connect::mysql_options(url, password, &shown)?;
                Ok(Self {
                    pool: Pool::MySql(connect::mysql(options, &shown).await?),
                    shown,
                    schema: Some(url.shown().path().trim_matches('/').to_owned()),
                })
            }
            DatabaseUrl::Sqlite(path) => {
                let store = Self {
                    pool: Pool::Sqlite(connect::sqlite(path, &shown).await?),
                    shown,
                    schema: None,
                };
                if !store.is_migrated().await? {
                    store.migrate().await?;
                }
                Ok(store)
            }
        }
    }

    /// Close the connections. Without it they are closed some time after the last clone is dropped.
    pub async fn close(&self) {
        match &self.pool {
            Pool::MySql(pool) => pool.close().await,
            Pool::Sqlite(pool) => pool.close().await,
        }
    }

    /// That the database answers, and at once.
    pub(crate) async fn require_answer(&self) -> Result<()> {
        const LIMIT: Duration = Duration::from_secs(2);
        let answer = self.row::<(i64,)>("SELECT 1", &[]);
        match tokio::time::timeout(LIMIT, answer).await {
            Ok(answer) => answer.map(drop),
            Err(_) => Err(Error::new(
                ErrorKind::Unreachable,
                format!("the database {} does not answer at once", self.shown),
            )),
        }
    }

    /// Its address without the password, for messages.
    pub fn shown(&self) -> &str {
        &self.shown
    }

    /// The schema of a MySQL database; None for a SQLite file.
    pub(crate) fn schema(&self) -> Option<&str> {
        self.schema.as_deref()
    }

    /// Whether the platform owns the customers.
    pub(crate) fn is_platforms(&self) -> bool {
        matches!(self.pool, Pool::MySql(_))
    }

    fn failed(&self, error: sqlx::Error) -> Error {
        explain(&self.shown, error)
    }
}

const ACCESS_DENIED: [u16; 3] = [1044, 1045, 1698];
const COMMAND_DENIED: [u16; 2] = [1142, 1143];

/// What failed on the database, and what to do.
fn explain(shown: &str, error: sqlx::Error) -> Error {
    let (kind, message) = match &error {
        sqlx::Error::Database(refusal) => explain_refusal(shown, refusal.as_ref()),
        sqlx::Error::Io(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed
        | sqlx::Error::Protocol(_)
        | sqlx::Error::Tls(_) => (
            ErrorKind::Unreachable,
            format!("the database {shown} cannot be reached"),
        ),
        _ => (ErrorKind::Failed, format!("the database {shown} failed")),
    };
    Error::caused(kind, message, error)
}

fn explain_refusal(shown: &str, refusal: &dyn sqlx::error::DatabaseError) -> (ErrorKind, String) {
    const TOO_MANY_CONNECTIONS: [u16; 2] = [1040, 1203];
    const SHUTTING_DOWN: [u16; 3] = [1053, 1927, 1317];
    // While an operator or a failover has it so.
    const READ_ONLY: [u16; 2] = [1290, 1836];
    const DISK_FULL: [u16; 2] = [1021, 1114];
    const UNKNOWN_DATABASE: u16 = 1049;
    const UNKNOWN_COLUMN: u16 = 1054;
    let number = refusal
        .try_downcast_ref::<sqlx::mysql::MySqlDatabaseError>()
        .map(sqlx::mysql::MySqlDatabaseError::number);
    let lacks_table = names_missing_table(refusal);
    if is_contention(refusal) {
        return (
            ErrorKind::Busy,
            format!("others use the same rows of {shown} all the time: try again"),
        );
    }
    let message = refusal.message();
    // The name of the schema is in it, too.
    let lacks_customers = message.contains(".customers'") || message.ends_with(": customers");
    if lacks_table && lacks_customers {
        return (
            ErrorKind::Configuration,
            format!(
                "{shown} has no table `customers`: check that database.url names the platform's database"
            ),
        );
    }
    if lacks_table {
        return (
            ErrorKind::Configuration,
            format!("{shown} lacks tables of the backups: run `shophosting-backup migrate`"),
        );
    }
    if number == Some(UNKNOWN_COLUMN) {
        return (
            ErrorKind::Configuration,
            format!(
                "{shown} has tables that are not as this program knows them: run `shophosting-backup migrate`"
            ),
        );
    }
    if number.is_none()
        && let Some(explained) = explain_sqlite(shown, refusal)
    {
        return explained;
    }
    match number {
        Some(n) if DISK_FULL.contains(&n) => (
            ErrorKind::NoSpace,
            format!("the disk of the database {shown} is full: make room on it"),
        ),
        Some(n) if TOO_MANY_CONNECTIONS.contains(&n) || SHUTTING_DOWN.contains(&n) => (
            ErrorKind::Unreachable,
            format!("the database {shown} takes no more work now"),
        ),
        Some(n) if READ_ONLY.contains(&n) => (
            ErrorKind::Unreachable,
            format!("the database {shown} can only be read now"),
        ),
        Some(n) if ACCESS_DENIED.contains(&n) => (
            ErrorKind::Refused,
            format!("the database {shown} refuses the account: check database.url and DB_PASSWORD"),
        ),
        Some(n) if COMMAND_DENIED.contains(&n) => (
            ErrorKind::Refused,
            format!(
                "the account lacks rights in {shown}: grant it SELECT on customers and servers, and SELECT, INSERT, UPDATE and \
                 DELETE on {}",
                trial::our_tables()
            ),
        ),
        Some(UNKNOWN_DATABASE) => (
            ErrorKind::Configuration,
            format!("there is no database {shown}: check database.url"),
        ),
        _ => (ErrorKind::Failed, format!("the database {shown} failed")),
    }
}

/// What a SQLite file says is wrong with it, or with the disk that it is on.
fn explain_sqlite(
    shown: &str,
    refusal: &dyn sqlx::error::DatabaseError,
) -> Option<(ErrorKind, String)> {
    const PERMISSION: u32 = 3;
    const READ_ONLY: u32 = 8;
    const IO_ERROR: u32 = 10;
    const CORRUPT: u32 = 11;
    const FULL: u32 = 13;
    const CANNOT_OPEN: u32 = 14;
    const NOT_A_DATABASE: u32 = 26;
    Some(match sqlite_code(refusal)? {
        FULL => (
            ErrorKind::NoSpace,
            format!("the disk that has {shown} is full: make room on it"),
        ),
        READ_ONLY | PERMISSION | CANNOT_OPEN => (
            ErrorKind::Refused,
            format!(
                "{shown} cannot be written or opened: check whose it is, and that its disk is not mounted read-only"
            ),
        ),
        IO_ERROR => (
            ErrorKind::Failed,
            format!("the disk that has {shown} fails: see the log of the system"),
        ),
        CORRUPT | NOT_A_DATABASE => (
            ErrorKind::Damaged,
            format!(
                "{shown} is damaged or no database: bring it back from a copy; the backups themselves do not depend on it"
            ),
        ),
        _ => return None,
    })
}

/// The kind of a failure of SQLite; its extended codes say more in the higher bits.
fn sqlite_code(refusal: &dyn sqlx::error::DatabaseError) -> Option<u32> {
    refusal.try_downcast_ref::<sqlx::sqlite::SqliteError>()?;
    let code: u32 = refusal.code()?.parse().ok()?;
    Some(code & 0xff)
}

/// Whether somebody else was in the way for a moment: the same again may succeed.
fn is_contention(refusal: &dyn sqlx::error::DatabaseError) -> bool {
    const LOCK_WAIT_TIMEOUT: u16 = 1205;
    const DEADLOCK: u16 = 1213;
    // MariaDB: a row changed since the transaction read it.
    const RECORD_CHANGED: u16 = 1020;
    if let Some(mysql) = refusal.try_downcast_ref::<sqlx::mysql::MySqlDatabaseError>() {
        return [LOCK_WAIT_TIMEOUT, DEADLOCK, RECORD_CHANGED].contains(&mysql.number());
    }
    const BUSY: u32 = 5;
    const LOCKED: u32 = 6;
    sqlite_code(refusal).is_some_and(|code| matches!(code, BUSY | LOCKED))
}

/// Whether the account may not do that.
fn is_denied(error: &sqlx::Error) -> bool {
    let sqlx::Error::Database(refusal) = error else {
        return false;
    };
    let mysql = refusal.try_downcast_ref::<sqlx::mysql::MySqlDatabaseError>();
    mysql.is_some_and(|refusal| {
        let number = refusal.number();
        ACCESS_DENIED.contains(&number) || COMMAND_DENIED.contains(&number)
    })
}

fn is_missing_table(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Database(refusal) if names_missing_table(refusal.as_ref()))
}

fn names_missing_table(refusal: &dyn sqlx::error::DatabaseError) -> bool {
    const NO_SUCH_TABLE: u16 = 1146;
    match refusal.try_downcast_ref::<sqlx::mysql::MySqlDatabaseError>() {
        Some(mysql) => mysql.number() == NO_SUCH_TABLE,
        None => refusal.message().contains("no such table"),
    }
}
