//! An empty database of either kind for a test, and a look into it past the library.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use backup_core::config::{Config, Environment, Origin};
use backup_core::customer::CustomerId;
use backup_core::jobs::{Claimed, Created, Job, JobId, JobStore, JobType, NewJob};
use backup_core::repository::BackupType;
use backup_core::store::Store;
use sqlx::mysql::{MySqlConnectOptions, MySqlPool, MySqlPoolOptions, MySqlRow};
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool, SqlitePoolOptions, SqliteRow};
use sqlx::{AssertSqlSafe, Executor};
use tempfile::TempDir;
use xtask::mariadb::MariaDb;

/// Impatient, so that what waits for a lock is seen to try again. Fifty processes have several connections each.
pub static MARIADB: LazyLock<MariaDb> = LazyLock::new(|| {
    let options = ["--innodb-lock-wait-timeout=1", "--max-connections=1000"];
    MariaDb::start_with(&options).unwrap()
});

pub const LONG: Duration = Duration::from_secs(3600);
pub const SHORT: Duration = Duration::from_millis(300);
pub const SERVER: &str = "default";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    MariaDb,
    Sqlite,
}

/// One test body on both kinds of database.
macro_rules! on_both {
    ($($name:ident),+ $(,)?) => {$(
        mod $name {
            use crate::databases::{Database, Kind};

            #[tokio::test(flavor = "multi_thread")]
            async fn on_mariadb() {
                super::$name(&Database::empty(Kind::MariaDb)).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn on_sqlite() {
                super::$name(&Database::empty(Kind::Sqlite)).await;
            }
        }
    )+};
}
pub(crate) use on_both;

pub struct Database {
    pub url: String,
    pub password: String,
    raw: Raw,
    _dir: Option<TempDir>,
}

enum Raw {
    MySql(MySqlPool),
    Sqlite(SqlitePool),
}

/// Read from either kind.
pub trait FromRow:
    Send + Unpin + for<'r> sqlx::FromRow<'r, MySqlRow> + for<'r> sqlx::FromRow<'r, SqliteRow>
{
}

impl<T> FromRow for T where
    T: Send + Unpin + for<'r> sqlx::FromRow<'r, MySqlRow> + for<'r> sqlx::FromRow<'r, SqliteRow>
{
}

impl Database {
    /// Without a table in it.
    pub fn empty(kind: Kind) -> Self {
        match kind {
            Kind::MariaDb => Self::on(&MARIADB),
            Kind::Sqlite => {
                let dir = tempfile::tempdir().unwrap();
                let path = dir.path().join("backup.db");
                let options = SqliteConnectOptions::new()
                    .filename(&path)
                    .create_if_missing(true)
                    .busy_timeout(Duration::from_secs(30));
                Self {
                    url: format!("sqlite://{}", path.display()),
                    password: String::new(),
                    raw: Raw::Sqlite(SqlitePoolOptions::new().connect_lazy_with(options)),
                    _dir: Some(dir),
                }
            }
        }
    }

    /// A new schema of a server.
    pub fn on(server: &MariaDb) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let schema = format!("jobs_{}", COUNT.fetch_add(1, Ordering::Relaxed));
        server.sql(&format!("CREATE DATABASE {schema}")).unwrap();
        let password = server.root_password().to_owned();
        let options = MySqlConnectOptions::new()
            .socket(server.socket())
            .username("root")
            .password(&password)
            .database(&schema);
        Self {
            url: format!("mysql://root@127.0.0.1:{}/{schema}", server.port()),
            password,
            raw: Raw::MySql(MySqlPoolOptions::new().connect_lazy_with(options)),
            _dir: None,
        }
    }

    pub fn kind(&self) -> Kind {
        match self.raw {
            Raw::MySql(_) => Kind::MariaDb,
            Raw::Sqlite(_) => Kind::Sqlite,
        }
    }

    pub fn schema(&self) -> &str {
        self.url.rsplit('/').next().unwrap()
    }

    pub fn mysql(&self) -> &MySqlPool {
        match &self.raw {
            Raw::MySql(pool) => pool,
            Raw::Sqlite(_) => panic!("not a MySQL database"),
        }
    }

    pub fn sqlite(&self) -> &SqlitePool {
        match &self.raw {
            Raw::Sqlite(pool) => pool,
            Raw::MySql(_) => panic!("not a SQLite database"),
        }
    }

    pub async fn store(&self) -> Store {
        connect(&self.url, &self.password).await
    }

    /// With its tables made, and the history of its jobs written down from now on.
    pub async fn jobs(&self, lease: Duration) -> JobStore {
        let store = self.store().await;
        store.require_migrated().await.unwrap();
        self.record_history().await;
        JobStore::new(&store, lease)
    }

    /// Run statements past the library.
    pub async fn run(&self, sql: &str) {
        let sql = AssertSqlSafe(sql.to_owned());
        match &self.raw {
            Raw::MySql(pool) => drop(pool.execute(sql).await.unwrap()),
            Raw::Sqlite(pool) => drop(pool.execute(sql).await.unwrap()),
        }
    }

    pub async fn rows<T: FromRow>(&self, sql: &str) -> Vec<T> {
        let sql = AssertSqlSafe(sql.to_owned());
        match &self.raw {
            Raw::MySql(pool) => sqlx::query_as(sql).fetch_all(pool).await.unwrap(),
            Raw::Sqlite(pool) => sqlx::query_as(sql).fetch_all(pool).await.unwrap(),
        }
    }

    pub async fn count(&self, what: &str) -> i64 {
        let rows: Vec<(i64,)> = self.rows(&format!("SELECT COUNT(*) FROM {what}")).await;
        rows[0].0
    }

    /// Triggers write down each change of a job's state, in the order in which they become true: a row is numbered after the unique index has
    /// let its change through, and before others can see the change.
    async fn record_history(&self) {
        const INSERT: &str = "INSERT INTO history (job, customer, status, attempts)";
        const VALUES: &str = "NEW.id, NEW.customer_id, CASE WHEN OLD.status IN ('completed', 'failed') THEN 'changed after its end' ELSE NEW.status END, NEW.attempts";
        const CHANGED: &str = "OLD.status <> NEW.status OR OLD.attempts <> NEW.attempts OR OLD.status IN ('completed', 'failed')";
        if self.has_history().await {
            return;
        }
        let columns = "job BIGINT NOT NULL, customer BIGINT NOT NULL, status VARCHAR(32) NOT NULL, attempts BIGINT NOT NULL";
        let (key, created, changed) = match self.kind() {
            Kind::MariaDb => (
                "BIGINT AUTO_INCREMENT PRIMARY KEY",
                format!("{INSERT} VALUES (NEW.id, NEW.customer_id, NEW.status, NEW.attempts)"),
                format!("FOR EACH ROW {INSERT} SELECT {VALUES} FROM DUAL WHERE {CHANGED}"),
            ),
            Kind::Sqlite => (
                "INTEGER PRIMARY KEY AUTOINCREMENT",
                format!(
                    "BEGIN {INSERT} VALUES (NEW.id, NEW.customer_id, NEW.status, NEW.attempts); END"
                ),
                format!("FOR EACH ROW WHEN {CHANGED} BEGIN {INSERT} SELECT {VALUES}; END"),
            ),
        };
        for sql in [
            format!("CREATE TABLE history (n {key}, {columns})"),
            format!(
                "CREATE TRIGGER job_created AFTER INSERT ON customer_backup_jobs FOR EACH ROW {created}"
            ),
            format!("CREATE TRIGGER job_changed AFTER UPDATE ON customer_backup_jobs {changed}"),
        ] {
            self.run(&sql).await;
        }
    }

    async fn has_history(&self) -> bool {
        let table = match self.kind() {
            Kind::MariaDb => {
                "information_schema.tables WHERE table_schema = DATABASE() AND table_name = 'history'"
            }
            Kind::Sqlite => "sqlite_master WHERE name = 'history'",
        };
        self.count(table).await > 0
    }

    /// What happened to the jobs of each customer, in order.
    pub async fn history(&self) -> Vec<Event> {
        self.rows("SELECT job, customer, status, attempts FROM history ORDER BY n")
            .await
    }
}

#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Event {
    pub job: i64,
    pub customer: i64,
    pub status: String,
    pub attempts: i64,
}

pub fn config(url: &str, password: &str) -> Config {
    let text = format!(
        "[database]\nurl = '{url}'\n[repositories.manual]\nlocation = '/r'\npassword_file = '/p'\n"
    );
    let environment: Environment = [("DB_PASSWORD", password)].into_iter().collect();
    Config::read(Origin::File("test".into()), &text, &environment).unwrap()
}

pub async fn connect(url: &str, password: &str) -> Store {
    Store::connect(&config(url, password)).await.unwrap()
}

pub fn customer(number: u32) -> CustomerId {
    CustomerId::new(number).unwrap()
}

pub fn backup_of(number: u32) -> NewJob {
    NewJob {
        customer: customer(number),
        server: SERVER.into(),
        job_type: JobType::Backup,
        backup_type: BackupType::Both,
        snapshot: None,
        online: false,
        note: None,
    }
}

/// The job that was created; a panic where another was in the way.
pub fn created(answer: Created) -> Job {
    match answer {
        Created::Job(job) => *job,
        Created::InTheWay(job) => panic!("job {} is in the way", job.id),
    }
}

pub async fn create(jobs: &JobStore, number: u32) -> Job {
    created(jobs.create(&backup_of(number)).await.unwrap())
}

pub async fn create_claimed(jobs: &JobStore, number: u32) -> Claimed {
    let created = jobs.create_claimed(&backup_of(number), "me").await.unwrap();
    created.unwrap()
}

pub async fn claim(jobs: &JobStore) -> Claimed {
    jobs.claim(SERVER, "test").await.unwrap().unwrap()
}

pub async fn get(jobs: &JobStore, id: JobId) -> Job {
    jobs.get(id).await.unwrap().unwrap()
}

/// Ask until the answer is there.
pub async fn wait_for<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
