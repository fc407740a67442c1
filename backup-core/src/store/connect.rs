//! Reaching the database, and making a SQLite file that nobody else can read.

use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use sqlx::mysql::{MySqlConnectOptions, MySqlPool, MySqlPoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool, SqlitePoolOptions};
use sqlx::{ConnectOptions, Connection};

use super::explain;
use crate::config::SecretUrl;
use crate::error::{Error, ErrorKind, Result};

pub(super) fn mysql_options(
    url: &SecretUrl,
    password: Option<&SecretString>,
    shown: &str,
) -> Result<MySqlConnectOptions> {
    // sqlx's own error might quote the address.
    let options = MySqlConnectOptions::from_str(url.whole().expose_secret()).map_err(|_| {
        Error::new(
            ErrorKind::Configuration,
            format!("database.url: {shown} cannot be used"),
        )
    })?;
    Ok(match (url.has_password(), password) {
        (false, Some(password)) => options.password(password.expose_secret()),
        _ => options,
    })
}

pub(super) async fn mysql(options: MySqlConnectOptions, shown: &str) -> Result<MySqlPool> {
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
        .max_connections(8)
        .acquire_timeout(LIMIT);
    Ok(pool.connect_lazy_with(options))
}

pub(super) async fn sqlite(path: &Path, shown: &str) -> Result<SqlitePool> {
    if let Some(dir) = path.parent() {
        create_private_dir(dir)?;
    }
    // Passwords of databases are in it, and SQLite makes its files readable to all.
    create_private_file(path)?;
    let options = SqliteConnectOptions::new()
        .filename(path)
        // Dozens of processes may take their turns.
        .busy_timeout(Duration::from_secs(30));
    SqlitePoolOptions::new()
        .max_connections(4)
        .acquire_timeout(Duration::from_secs(60))
        // SQLite ends a transaction by itself where the disk is full. Its connection believes to be in it for ever, and begins no other.
        .after_release(|connection, _| {
            Box::pin(async move {
                connection.ping().await?;
                Ok(!connection.is_in_transaction())
            })
        })
        .connect_with(options)
        .await
        .map_err(|e| explain(shown, e))
}

fn create_private_dir(dir: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|e| Error::io(format!("cannot create the directory {}", dir.display()), e))
}

fn create_private_file(path: &Path) -> Result<()> {
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
