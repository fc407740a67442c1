//! One SQL text for both kinds of database.

use std::time::{Duration, Instant};

use sqlx::mysql::MySqlRow;
use sqlx::sqlite::SqliteRow;
use sqlx::{AssertSqlSafe, MySql, Sqlite};

use super::{Pool, Store, is_contention, is_missing_table};
use crate::error::{ErrorKind, Result};

/// For how long a statement is tried again that others were in the way of; once more in any case. Of dozens of processes at the same rows, one
/// may be the victim of many deadlocks in a row.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a server may take to answer one statement: one that lost its power says nothing ever again.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// What is bound to a `?`.
#[derive(Debug, Clone)]
pub(crate) enum Value {
    Integer(Option<i64>),
    Text(Option<String>),
}

/// Values for the `?` of a statement.
macro_rules! values {
    ($($value:expr),* $(,)?) => { &[$($crate::store::Value::from($value)),*] };
}
pub(crate) use values;

impl From<i64> for Value {
    fn from(value: i64) -> Self {
        Self::Integer(Some(value))
    }
}

impl From<u32> for Value {
    fn from(value: u32) -> Self {
        Self::Integer(Some(i64::from(value)))
    }
}

/// What is larger than a column holds is stored as its largest: sizes and counts.
impl From<u64> for Value {
    fn from(value: u64) -> Self {
        Self::Integer(Some(i64::try_from(value).unwrap_or(i64::MAX)))
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Integer(Some(i64::from(value)))
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Self::Text(Some(value.to_owned()))
    }
}

impl From<String> for Value {
    fn from(value: String) -> Self {
        Self::Text(Some(value))
    }
}

impl<T> From<Option<T>> for Value
where
    T: Into<Self> + Absent,
{
    fn from(value: Option<T>) -> Self {
        value.map_or(T::ABSENT, Into::into)
    }
}

/// What NULL of a type is.
pub(crate) trait Absent {
    const ABSENT: Value;
}

impl Absent for u64 {
    const ABSENT: Value = Value::Integer(None);
}

impl Absent for u32 {
    const ABSENT: Value = Value::Integer(None);
}

impl Absent for i64 {
    const ABSENT: Value = Value::Integer(None);
}

impl Absent for &str {
    const ABSENT: Value = Value::Text(None);
}

impl Absent for String {
    const ABSENT: Value = Value::Text(None);
}

/// Read from a row of either database.
pub(crate) trait FromRow:
    Send + Unpin + for<'r> sqlx::FromRow<'r, MySqlRow> + for<'r> sqlx::FromRow<'r, SqliteRow>
{
}

impl<T> FromRow for T where
    T: Send + Unpin + for<'r> sqlx::FromRow<'r, MySqlRow> + for<'r> sqlx::FromRow<'r, SqliteRow>
{
}

/// What became of an INSERT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Inserted {
    /// With this number, where the table gives numbers.
    Done(u64),
    /// A unique index has such a row already.
    Conflict,
}

/// Several statements as one. Rolled back when it is dropped without [`Transaction::commit`].
pub(crate) struct Transaction {
    inner: Inner,
    store: Store,
}

enum Inner {
    MySql(sqlx::Transaction<'static, MySql>),
    Sqlite(sqlx::Transaction<'static, Sqlite>),
}

macro_rules! bound {
    ($query:expr, $values:expr) => {{
        let mut query = $query;
        for value in $values {
            query = match value {
                Value::Integer(number) => query.bind(*number),
                Value::Text(text) => query.bind(text.clone()),
            };
        }
        query
    }};
}

/// Once more while others are in the way; nothing happened then.
macro_rules! retried {
    ($run:expr) => {{
        let (begun, mut tried) = (Instant::now(), 1);
        loop {
            match $run {
                Err(sqlx::Error::Database(e))
                    if is_contention(e.as_ref()) && (tried == 1 || begun.elapsed() < PATIENCE) =>
                {
                    pause_after(tried).await;
                    tried += 1;
                }
                other => break other,
            }
        }
    }};
}

impl Store {
    /// Rows that match.
    pub(crate) async fn rows<T: FromRow>(&self, sql: &str, values: &[Value]) -> Result<Vec<T>> {
        self.try_rows(sql, values).await.map_err(|e| self.failed(e))
    }

    /// The first row that matches.
    pub(crate) async fn row<T: FromRow>(&self, sql: &str, values: &[Value]) -> Result<Option<T>> {
        Ok(self.rows(sql, values).await?.into_iter().next())
    }

    /// The first row that matches, in a table that need not exist: None where it does not.
    pub(crate) async fn row_if_table<T: FromRow>(
        &self,
        sql: &str,
        values: &[Value],
    ) -> Result<Option<Option<T>>> {
        match self.try_rows(sql, values).await {
            Ok(rows) => Ok(Some(rows.into_iter().next())),
            Err(e) if is_missing_table(&e) => Ok(None),
            Err(e) => Err(self.failed(e)),
        }
    }

    pub(super) async fn try_rows<T: FromRow>(
        &self,
        sql: &str,
        values: &[Value],
    ) -> sqlx::Result<Vec<T>> {
        let sql = self.dialect(sql);
        match &self.pool {
            Pool::MySql(pool) => {
                let query = bound!(sqlx::query_as(AssertSqlSafe(sql)), values);
                in_time(query.fetch_all(pool)).await
            }
            Pool::Sqlite(pool) => {
                let query = bound!(sqlx::query_as(AssertSqlSafe(sql)), values);
                query.fetch_all(pool).await
            }
        }
    }

    /// Run one statement; the number of rows that matched.
    pub(crate) async fn execute(&self, sql: &str, values: &[Value]) -> Result<u64> {
        let done = self.try_execute(sql, values).await;
        done.map_err(|e| self.failed(e))
    }

    pub(super) async fn try_execute(&self, sql: &str, values: &[Value]) -> sqlx::Result<u64> {
        let sql = self.dialect(sql);
        match &self.pool {
            Pool::MySql(pool) => retried!(
                in_time(bound!(sqlx::query(AssertSqlSafe(sql.clone())), values).execute(pool))
                    .await
                    .map(|done| done.rows_affected())
            ),
            Pool::Sqlite(pool) => retried!(
                bound!(sqlx::query(AssertSqlSafe(sql.clone())), values)
                    .execute(pool)
                    .await
                    .map(|done| done.rows_affected())
            ),
        }
    }

    /// Insert one row.
    pub(crate) async fn insert(&self, sql: &str, values: &[Value]) -> Result<Inserted> {
        let sql = self.dialect(sql);
        let done = match &self.pool {
            Pool::MySql(pool) => retried!(
                in_time(bound!(sqlx::query(AssertSqlSafe(sql.clone())), values).execute(pool))
                    .await
                    .map(|done| done.last_insert_id())
            ),
            Pool::Sqlite(pool) => retried!(
                bound!(sqlx::query(AssertSqlSafe(sql.clone())), values)
                    .execute(pool)
                    .await
                    .map(|done| u64::try_from(done.last_insert_rowid()).unwrap_or(0))
            ),
        };
        self.inserted(done)
    }

    fn inserted(&self, done: sqlx::Result<u64>) -> Result<Inserted> {
        match done {
            Ok(id) => Ok(Inserted::Done(id)),
            Err(sqlx::Error::Database(e)) if e.is_unique_violation() => Ok(Inserted::Conflict),
            Err(e) => Err(self.failed(e)),
        }
    }

    /// Begin a transaction that will write. [`crate::error::ErrorKind::Busy`] from any of its statements means that others were in
    /// the way and nothing of it happened: begin again.
    pub(crate) async fn begin(&self) -> Result<Transaction> {
        let begun = match &self.pool {
            Pool::MySql(pool) => in_time(pool.begin()).await.map(Inner::MySql),
            Pool::Sqlite(pool) => pool.begin_with("BEGIN IMMEDIATE").await.map(Inner::Sqlite),
        };
        Ok(Transaction {
            inner: begun.map_err(|e| self.failed(e))?,
            store: self.clone(),
        })
    }

    fn dialect(&self, sql: &str) -> String {
        sql.replace(
            "{now}",
            match self.pool {
                Pool::MySql(_) => "CAST(UNIX_TIMESTAMP(NOW(3)) * 1000 AS SIGNED)",
                Pool::Sqlite(_) => "CAST(unixepoch('subsec') * 1000 AS INTEGER)",
            },
        )
    }
}

impl Transaction {
    /// The first row that matches, as it is committed or as this transaction made it.
    pub(crate) async fn row<T: FromRow>(
        &mut self,
        sql: &str,
        values: &[Value],
    ) -> Result<Option<T>> {
        let sql = self.store.dialect(sql);
        let rows: sqlx::Result<Vec<T>> = match &mut self.inner {
            Inner::MySql(transaction) => {
                let query = bound!(sqlx::query_as(AssertSqlSafe(sql)), values);
                in_time(query.fetch_all(&mut **transaction)).await
            }
            Inner::Sqlite(transaction) => {
                let query = bound!(sqlx::query_as(AssertSqlSafe(sql)), values);
                query.fetch_all(&mut **transaction).await
            }
        };
        let rows = rows.map_err(|e| self.store.failed(e))?;
        Ok(rows.into_iter().next())
    }

    /// Run one statement; the number of rows that matched.
    pub(crate) async fn execute(&mut self, sql: &str, values: &[Value]) -> Result<u64> {
        let sql = self.store.dialect(sql);
        let done = match &mut self.inner {
            Inner::MySql(transaction) => {
                in_time(bound!(sqlx::query(AssertSqlSafe(sql)), values).execute(&mut **transaction))
                    .await
                    .map(|done| done.rows_affected())
            }
            Inner::Sqlite(transaction) => bound!(sqlx::query(AssertSqlSafe(sql)), values)
                .execute(&mut **transaction)
                .await
                .map(|done| done.rows_affected()),
        };
        done.map_err(|e| self.store.failed(e))
    }

    /// Insert one row. After a conflict the transaction goes on.
    pub(crate) async fn insert(&mut self, sql: &str, values: &[Value]) -> Result<Inserted> {
        let sql = self.store.dialect(sql);
        let done = match &mut self.inner {
            Inner::MySql(transaction) => {
                in_time(bound!(sqlx::query(AssertSqlSafe(sql)), values).execute(&mut **transaction))
                    .await
                    .map(|done| done.last_insert_id())
            }
            Inner::Sqlite(transaction) => bound!(sqlx::query(AssertSqlSafe(sql)), values)
                .execute(&mut **transaction)
                .await
                .map(|done| u64::try_from(done.last_insert_rowid()).unwrap_or(0)),
        };
        self.store.inserted(done)
    }

    /// The commit point of all that was done in it.
    pub(crate) async fn commit(self) -> Result<()> {
        let done = match self.inner {
            Inner::MySql(transaction) => in_time(transaction.commit()).await,
            Inner::Sqlite(transaction) => transaction.commit().await,
        };
        done.map_err(|e| self.store.failed(e))
    }
}

/// Tries of a transaction that others may be in the way of.
#[derive(Debug)]
pub(crate) struct Tries {
    since: Instant,
    tried: u32,
}

impl Default for Tries {
    fn default() -> Self {
        Self {
            since: Instant::now(),
            tried: 0,
        }
    }
}

impl Tries {
    /// Whether to begin the transaction that ended so once more. Waits a moment before it says yes.
    pub(crate) async fn is_to_repeat<T>(&mut self, result: &Result<T>) -> bool {
        self.tried += 1;
        let is_busy = matches!(result, Err(e) if e.kind() == ErrorKind::Busy);
        let is_to_repeat = is_busy && (self.tried == 1 || self.since.elapsed() < PATIENCE);
        if is_to_repeat {
            pause_after(self.tried).await;
        }
        is_to_repeat
    }
}

/// What comes too late counts as not coming: whether it happened is then not known.
async fn in_time<T>(answer: impl Future<Output = sqlx::Result<T>>) -> sqlx::Result<T> {
    tokio::time::timeout(ANSWER_LIMIT, answer)
        .await
        .unwrap_or(Err(sqlx::Error::PoolTimedOut))
}

async fn pause_after(tried: u32) {
    const LONGEST: u32 = 20;
    let milliseconds = rand::random_range(1..=5 * u64::from(tried.min(LONGEST)));
    tokio::time::sleep(Duration::from_millis(milliseconds)).await;
}
