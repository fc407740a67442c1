//! The table of customers: the platform's, or a small one of our own where there is no platform.

use std::str::FromStr;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use sqlx::mysql::{MySqlConnectOptions, MySqlPool, MySqlPoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool, SqlitePoolOptions};
use sqlx::{ColumnIndex, ConnectOptions, Connection, Decode, Row, Type};

use super::{Customer, CustomerId, DatabaseName};
use crate::config::{Config, CustomerDatabaseConfig, DatabaseUrl};
use crate::error::{Error, ErrorKind, Result};

/// Where customers are looked up. Cheap to clone.
#[derive(Debug, Clone)]
pub struct CustomerStore {
    pool: Pool,
    shown: String,
    /// The platform's own schema, which can be no customer's.
    platform_schema: Option<String>,
    naming: CustomerDatabaseConfig,
}

#[derive(Debug, Clone)]
enum Pool {
    MySql(MySqlPool),
    Sqlite(SqlitePool),
}

/// A line of the list of customers.
#[derive(Debug, Clone, serde::Serialize)]
#[non_exhaustive]
pub struct CustomerSummary {
    /// His number.
    pub id: CustomerId,
    /// What the platform calls his state.
    pub status: Option<String>,
    /// His domain or company, where the table has them.
    pub name: Option<String>,
}

/// A customer to be added to the embedded store.
#[derive(Debug, Clone, Default)]
pub struct NewCustomer {
    /// His number; the next free one where there is none.
    pub id: Option<CustomerId>,
    /// The domain of his shop.
    pub domain: Option<String>,
    /// His database schema, where it is not the one that `customer_database.name` gives.
    pub db_name: Option<DatabaseName>,
    /// His own database account.
    pub db_user: Option<String>,
    /// Its password.
    pub db_password: Option<SecretString>,
    /// The local port that his site answers on.
    pub web_port: Option<u16>,
}

impl CustomerStore {
    /// Connect to the platform's database. A SQLite file that is not there yet is created, with an empty table of
    /// customers; a MySQL database is never altered.
    pub async fn connect(config: &Config) -> Result<Self> {
        let url = &config.database.url;
        let shown = url.to_string();
        let (pool, platform_schema) = match url {
            DatabaseUrl::MySql(url) => {
                // sqlx's own error might quote the address.
                let mut options = MySqlConnectOptions::from_str(url.whole().expose_secret())
                    .map_err(|_| {
                        Error::new(
                            ErrorKind::Configuration,
                            format!("database.url: {shown} cannot be used"),
                        )
                    })?;
                if let (false, Some(password)) = (url.has_password(), &config.database.password) {
                    options = options.password(password.expose_secret());
                }
                let schema = url.shown().path().trim_matches('/').to_owned();
                (
                    Pool::MySql(connect_mysql(options, &shown).await?),
                    Some(schema),
                )
            }
            DatabaseUrl::Sqlite(path) => (Pool::Sqlite(open_sqlite(path, &shown).await?), None),
        };
        Ok(Self {
            pool,
            shown,
            platform_schema,
            naming: config.customer_database.clone(),
        })
    }

    /// A customer. [`ErrorKind::NotFound`] where there is none of this number; [`ErrorKind::Configuration`] where
    /// what the table says of him cannot be used.
    pub async fn get(&self, id: CustomerId) -> Result<Customer> {
        // All columns, for which of them exist differs between platforms.
        const QUERY: &str = "SELECT * FROM customers WHERE id = ?";
        let raw = match &self.pool {
            Pool::MySql(pool) => {
                let row = sqlx::query(QUERY).bind(id.get()).fetch_optional(pool).await;
                row.map_err(|e| self.failed(e))?
                    .map(|row| RawCustomer::read(&row))
            }
            Pool::Sqlite(pool) => {
                let row = sqlx::query(QUERY).bind(id.get()).fetch_optional(pool).await;
                row.map_err(|e| self.failed(e))?
                    .map(|row| RawCustomer::read(&row))
            }
        };
        let raw = raw
            .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("there is no customer {id}")))?;
        self.understand(id, raw)
    }

    /// All customers by number.
    pub async fn list(&self) -> Result<Vec<CustomerSummary>> {
        const QUERY: &str = "SELECT * FROM customers ORDER BY id";
        let raw: Vec<RawCustomer> = match &self.pool {
            Pool::MySql(pool) => {
                let rows = sqlx::query(QUERY)
                    .fetch_all(pool)
                    .await
                    .map_err(|e| self.failed(e))?;
                rows.iter().map(RawCustomer::read).collect()
            }
            Pool::Sqlite(pool) => {
                let rows = sqlx::query(QUERY)
                    .fetch_all(pool)
                    .await
                    .map_err(|e| self.failed(e))?;
                rows.iter().map(RawCustomer::read).collect()
            }
        };
        let summary = |raw: RawCustomer| {
            let id = raw
                .id
                .and_then(|id| u32::try_from(id).ok())
                .and_then(|id| CustomerId::new(id).ok());
            Some(CustomerSummary {
                id: id?,
                status: raw.status,
                name: raw.domain.or(raw.company_name),
            })
        };
        Ok(raw.into_iter().filter_map(summary).collect())
    }

    /// Add a customer to the embedded store. [`ErrorKind::InvalidInput`] where his number is taken, or where the
    /// platform owns the table.
    pub async fn add(&self, new: &NewCustomer) -> Result<CustomerId> {
        let Pool::Sqlite(pool) = &self.pool else {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!(
                    "the customers of {} are the platform's: add them there",
                    self.shown
                ),
            ));
        };
        const INSERT: &str =
            "INSERT INTO customers (id, domain, status, db_name, db_user, db_password, web_port)
             VALUES (?, ?, 'active', ?, ?, ?, ?)";
        let done = sqlx::query(INSERT)
            .bind(new.id.map(CustomerId::get))
            .bind(&new.domain)
            .bind(new.db_name.as_ref().map(DatabaseName::as_str))
            .bind(&new.db_user)
            .bind(new.db_password.as_ref().map(ExposeSecret::expose_secret))
            .bind(new.web_port)
            .execute(pool)
            .await
            .map_err(|e| match (&e, new.id) {
                (sqlx::Error::Database(refusal), Some(id)) if refusal.is_unique_violation() => {
                    Error::new(
                        ErrorKind::InvalidInput,
                        format!("there is a customer {id} already"),
                    )
                }
                _ => self.failed(e),
            })?;
        let id = u32::try_from(done.last_insert_rowid()).map_err(|e| {
            Error::caused(ErrorKind::Failed, "the numbers of customers are used up", e)
        })?;
        CustomerId::new(id)
    }

    /// Close the connections. Without it they are closed some time after the store is dropped.
    pub async fn close(&self) {
        match &self.pool {
            Pool::MySql(pool) => pool.close().await,
            Pool::Sqlite(pool) => pool.close().await,
        }
    }

    fn understand(&self, id: CustomerId, raw: RawCustomer) -> Result<Customer> {
        let unusable = |what: &str, e: Error| {
            Error::caused(
                ErrorKind::Configuration,
                format!("{what} of customer {id} cannot be used: {e}"),
                e,
            )
        };
        let db_name = match raw.db_name {
            Some(name) => name.parse().map_err(|e| unusable("the db_name", e))?,
            None => self
                .naming
                .default_name(id)
                .map_err(|e| unusable("the database name", e))?,
        };
        // A container has a server of its own, where the name clashes with nothing.
        let clashes = self
            .platform_schema
            .as_deref()
            .is_some_and(|own| own.eq_ignore_ascii_case(db_name.as_str()));
        if clashes && !self.naming.is_in_container() {
            return Err(Error::new(
                ErrorKind::Configuration,
                format!("the db_name of customer {id} is the platform's own database {db_name}"),
            ));
        }
        let web_port = match raw.web_port {
            None | Some(0) => None,
            Some(port) => Some(u16::try_from(port).map_err(|e| {
                let message = format!("the web_port of customer {id}, {port}, is not a port");
                Error::caused(ErrorKind::Configuration, message, e)
            })?),
        };
        Ok(Customer {
            id,
            status: raw.status,
            db_name,
            db_user: raw.db_user,
            db_password: raw.db_password,
            web_port,
            server_id: raw.server_id,
        })
    }

    fn failed(&self, error: sqlx::Error) -> Error {
        explain(&self.shown, error)
    }
}

async fn connect_mysql(options: MySqlConnectOptions, shown: &str) -> Result<MySqlPool> {
    const LIMIT: Duration = Duration::from_secs(5);
    // One try by hand: the pool would keep trying a server that refuses for the whole of its limit.
    let tried = tokio::time::timeout(LIMIT, options.connect()).await;
    let connection = tried
        .unwrap_or(Err(sqlx::Error::PoolTimedOut))
        .map_err(|e| explain(shown, e))?;
    if let Err(e) = connection.close().await {
        tracing::debug!("closing a connection to {shown}: {e}");
    }
    let pool = MySqlPoolOptions::new()
        .max_connections(4)
        .acquire_timeout(LIMIT);
    Ok(pool.connect_lazy_with(options))
}

async fn open_sqlite(path: &std::path::Path, shown: &str) -> Result<SqlitePool> {
    if let Some(dir) = path.parent() {
        create_private_dir(dir)?;
    }
    // Passwords of databases are in it, and SQLite makes its files readable to all.
    create_private_file(path)?;
    let options = SqliteConnectOptions::new()
        .filename(path)
        .busy_timeout(Duration::from_secs(10));
    let pool = SqlitePoolOptions::new()
        .max_connections(4)
        .acquire_timeout(Duration::from_secs(20))
        .connect_with(options)
        .await
        .map_err(|e| explain(shown, e))?;
    const TABLE: &str = "CREATE TABLE IF NOT EXISTS customers (
        id INTEGER PRIMARY KEY CHECK (id BETWEEN 1 AND 4294967295),
        domain TEXT,
        status TEXT NOT NULL DEFAULT 'active',
        db_name TEXT,
        db_user TEXT,
        db_password TEXT,
        web_port INTEGER
    )";
    sqlx::query(TABLE)
        .execute(&pool)
        .await
        .map_err(|e| explain(shown, e))?;
    Ok(pool)
}

fn create_private_dir(dir: &std::path::Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|e| Error::io(format!("cannot create the directory {}", dir.display()), e))
}

fn create_private_file(path: &std::path::Path) -> Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map(drop)
        .map_err(|e| Error::io(format!("cannot open the database {}", path.display()), e))
}

/// What failed on the platform's database, and what to do.
fn explain(shown: &str, error: sqlx::Error) -> Error {
    const ACCESS_DENIED: [u16; 3] = [1044, 1045, 1698];
    const UNKNOWN_DATABASE: u16 = 1049;
    const COMMAND_DENIED: u16 = 1142;
    const NO_SUCH_TABLE: u16 = 1146;
    let (kind, message) = match &error {
        sqlx::Error::Database(refusal) => {
            let number = refusal
                .try_downcast_ref::<sqlx::mysql::MySqlDatabaseError>()
                .map(sqlx::mysql::MySqlDatabaseError::number);
            match number {
                Some(n) if ACCESS_DENIED.contains(&n) => (
                    ErrorKind::Refused,
                    format!(
                        "the platform's database {shown} refuses the account: check database.url and DB_PASSWORD"
                    ),
                ),
                Some(COMMAND_DENIED) => (
                    ErrorKind::Refused,
                    format!(
                        "the account may not read the table `customers` of {shown}: grant it SELECT"
                    ),
                ),
                Some(UNKNOWN_DATABASE) => (
                    ErrorKind::Configuration,
                    format!("there is no database {shown}: check database.url"),
                ),
                Some(NO_SUCH_TABLE) => (
                    ErrorKind::Configuration,
                    format!(
                        "{shown} has no table `customers`: check that database.url names the platform's database"
                    ),
                ),
                _ => (
                    ErrorKind::Failed,
                    format!("the platform's database {shown} failed"),
                ),
            }
        }
        sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut | sqlx::Error::Tls(_) => (
            ErrorKind::Unreachable,
            format!("the platform's database {shown} cannot be reached"),
        ),
        _ => (
            ErrorKind::Failed,
            format!("the platform's database {shown} failed"),
        ),
    };
    Error::caused(kind, message, error)
}

/// What a row says, whatever the types of its columns; `None` for a column that is absent, NULL or empty.
struct RawCustomer {
    id: Option<i64>,
    status: Option<String>,
    domain: Option<String>,
    company_name: Option<String>,
    db_name: Option<String>,
    db_user: Option<String>,
    db_password: Option<SecretString>,
    web_port: Option<i64>,
    server_id: Option<i64>,
}

impl RawCustomer {
    fn read<R: Row>(row: &R) -> Self
    where
        for<'a> &'a str: ColumnIndex<R>,
        for<'r> Option<String>: Decode<'r, R::Database> + Type<R::Database>,
        for<'r> Option<Vec<u8>>: Decode<'r, R::Database> + Type<R::Database>,
        for<'r> Option<i64>: Decode<'r, R::Database> + Type<R::Database>,
        for<'r> Option<u32>: Decode<'r, R::Database> + Type<R::Database>,
    {
        let text = |column: &str| -> Option<String> {
            let text = match row.try_get::<Option<String>, _>(column) {
                Ok(text) => text,
                // Text of a binary collation.
                Err(_) => row
                    .try_get::<Option<Vec<u8>>, _>(column)
                    .ok()?
                    .and_then(|bytes| String::from_utf8(bytes).ok()),
            };
            text.filter(|text| !text.is_empty())
        };
        let integer = |column: &str| -> Option<i64> {
            if let Ok(number) = row.try_get::<Option<i64>, _>(column) {
                return number;
            }
            if let Ok(number) = row.try_get::<Option<u32>, _>(column) {
                return number.map(i64::from);
            }
            text(column)?.parse().ok()
        };
        Self {
            id: integer("id"),
            status: text("status"),
            domain: text("domain"),
            company_name: text("company_name"),
            db_name: text("db_name"),
            db_user: text("db_user"),
            db_password: text("db_password").map(SecretString::from),
            web_port: integer("web_port"),
            server_id: integer("server_id"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Environment, Origin};

    fn config(url: &str) -> Config {
        let text = format!(
            "[database]\nurl = '{url}'\n[repositories.manual]\nlocation = '/r'\npassword_file = '/p'\n"
        );
        Config::read(Origin::File("test".into()), &text, &Environment::default()).unwrap()
    }

    fn number(id: u32) -> CustomerId {
        CustomerId::new(id).unwrap()
    }

    #[tokio::test]
    async fn a_customer_that_was_added_is_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("new/backup.db");
        let config = config(&format!("sqlite://{}", file.display()));
        let store = CustomerStore::connect(&config).await.unwrap();
        let first = store.add(&NewCustomer::default()).await.unwrap();
        assert_eq!(first, number(1));
        let shop = NewCustomer {
            id: Some(number(12)),
            domain: Some("shop.example".into()),
            db_name: Some("shop".parse().unwrap()),
            db_user: Some("u".into()),
            db_password: Some("s3cret".into()),
            web_port: Some(8012),
        };
        store.add(&shop).await.unwrap();
        let again = store.add(&shop).await.unwrap_err();
        assert_eq!(again.kind(), ErrorKind::InvalidInput);
        store.close().await;

        let store = CustomerStore::connect(&config).await.unwrap();
        let one = store.get(first).await.unwrap();
        assert_eq!(
            (one.db_name.as_str(), one.db_user, one.web_port),
            ("customer_1", None, None)
        );
        let twelve = store.get(number(12)).await.unwrap();
        assert_eq!(twelve.db_name.as_str(), "shop");
        assert_eq!(twelve.web_port, Some(8012));
        assert_eq!(
            twelve.db_password.as_ref().unwrap().expose_secret(),
            "s3cret"
        );
        assert!(!format!("{twelve:?}").contains("s3cret"));
        let missing = store.get(number(2)).await.unwrap_err();
        assert_eq!(missing.kind(), ErrorKind::NotFound);
        assert_eq!(missing.to_string(), "there is no customer 2");
        let listed: Vec<_> = store
            .list()
            .await
            .unwrap()
            .iter()
            .map(|line| line.id.get())
            .collect();
        assert_eq!(listed, [1, 12]);
        store.close().await;
    }

    #[tokio::test]
    async fn the_embedded_store_is_private() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("data/backup.db");
        let store = CustomerStore::connect(&config(&format!("sqlite://{}", file.display())))
            .await
            .unwrap();
        store.close().await;
        for path in [file.as_path(), file.parent().unwrap()] {
            assert_eq!(path.metadata().unwrap().permissions().mode() & 0o077, 0);
        }
    }

    #[tokio::test]
    async fn what_the_table_says_is_not_believed_blindly() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("backup.db");
        let store = CustomerStore::connect(&config(&format!("sqlite://{}", file.display())))
            .await
            .unwrap();
        let Pool::Sqlite(pool) = &store.pool else {
            panic!("not SQLite")
        };
        for (id, column, value) in [
            (1, "db_name", "../../etc"),
            (2, "db_name", "mysql"),
            (3, "web_port", "70000"),
        ] {
            sqlx::query(sqlx::AssertSqlSafe(format!(
                "INSERT INTO customers (id, {column}) VALUES (?, ?)"
            )))
            .bind(id)
            .bind(value)
            .execute(pool)
            .await
            .unwrap();
            let error = store.get(number(id)).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Configuration);
            assert!(
                error.to_string().contains(&format!("customer {id}")),
                "{error}"
            );
        }
        store.close().await;
    }

    #[tokio::test]
    async fn a_table_with_few_columns_is_enough() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("backup.db");
        let pool = SqlitePool::connect_with(
            SqliteConnectOptions::new()
                .filename(&file)
                .create_if_missing(true),
        )
        .await
        .unwrap();
        sqlx::query("CREATE TABLE customers (id INTEGER PRIMARY KEY, email TEXT)")
            .execute(&pool)
            .await
            .unwrap();
        sqlx::query("INSERT INTO customers VALUES (7, 'a@b')")
            .execute(&pool)
            .await
            .unwrap();
        pool.close().await;
        let store = CustomerStore::connect(&config(&format!("sqlite://{}", file.display())))
            .await
            .unwrap();
        let seven = store.get(number(7)).await.unwrap();
        assert_eq!(seven.db_name.as_str(), "customer_7");
        assert_eq!((seven.status, seven.server_id), (None, None));
        store.close().await;
    }

    #[tokio::test]
    async fn an_unreachable_database_is_named_without_its_password() {
        // A port that was free a moment ago.
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let config = config(&format!("mysql://u:s3cret@127.0.0.1:{port}/platform"));
        let error = CustomerStore::connect(&config).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unreachable);
        assert!(error.to_string().contains("127.0.0.1"), "{error}");
        assert!(!error.chain().contains("s3cret"));
    }
}
