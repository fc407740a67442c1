//! What the operator decides: one TOML file, any key of it overridden from the environment.
//!
//! Everything that can be judged without touching the machine is judged when it is read, with one error that names
//! the key and where it came from. Never: a default that could send a customer's data somewhere nobody chose; an
//! unknown key ignored; a password shown.

mod load;
mod template;
#[cfg(test)]
mod tests;
mod values;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::civil::Time;
use secrecy::SecretString;
use serde::Deserialize;
use url::Url;

use crate::customer::{Customer, CustomerId, DEFAULT_SERVER, DatabaseName};
use crate::error::{Error, ErrorKind, Result};
use crate::storage::Location;

pub use load::{Environment, Origin};
use template::Part;
pub use template::{Placeholder, Template};
pub use values::{AccessKey, DatabaseUrl, Hours, PasswordSource, Sample, SecretUrl};

/// What stands in a location for `customer-N`, where each customer has a repository of his own.
const CUSTOMER: &str = "{customer}";

/// The whole configuration. Read it with [`Config::load`]; it does not change afterwards.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Config {
    /// Where it was read from.
    #[serde(skip)]
    pub origin: Origin,
    /// `[server]`: the dashboard.
    #[serde(default)]
    pub server: ServerConfig,
    /// `[database]`: the platform's database.
    pub database: DatabaseConfig,
    /// `[queue]`: how workers are woken.
    #[serde(default)]
    pub queue: QueueConfig,
    /// `[worker]`: who runs the jobs, and for how long.
    #[serde(default)]
    pub worker: WorkerConfig,
    /// `[repositories]`: where backups are.
    pub repositories: RepositoriesConfig,
    /// `[customers]`: where customers' files are.
    #[serde(default)]
    pub customers: CustomersConfig,
    /// `[customer_database]`: where customers' databases are.
    #[serde(default)]
    pub customer_database: CustomerDatabaseConfig,
    /// `[site]`: how a customer's site is stopped, started and checked.
    #[serde(default)]
    pub site: SiteConfig,
    /// `[restore]`: what of a customer's files is restored.
    #[serde(default)]
    pub restore: RestoreConfig,
    /// `[retention]`: how many backups are kept.
    #[serde(default)]
    pub retention: RetentionConfig,
    /// `[verify]`: how backups are proven to be restorable.
    #[serde(default)]
    pub verify: VerifyConfig,
    /// `[daily]`: that the daily backups are ours to make, and how. Absent where the platform's own script makes them, or nobody.
    pub daily: Option<DailyConfig>,
    /// `[notify]`: who is told that a job has ended. Nobody, where neither of its sections is there.
    #[serde(default)]
    pub notify: NotifyConfig,
}

/// `[server]`: the dashboard.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct ServerConfig {
    /// The address to listen on. Default `127.0.0.1:3000`.
    pub listen: SocketAddr,
    /// The address that customers' browsers use: for Origin checks and Secure cookies.
    #[serde(deserialize_with = "values::web_url")]
    pub public_url: Option<Url>,
    /// What customers log in with: `password` or `platform`. Default `password`.
    pub login: LoginConfig,
    /// With `platform`: a file that holds the `SECRET_KEY` of the platform's Flask application; below it, one a line, those that it had before.
    #[serde(deserialize_with = "values::optional_absolute_path")]
    pub platform_secret_key_file: Option<PathBuf>,
    /// With `platform`: where a browser is sent that brings no session of the platform.
    #[serde(deserialize_with = "values::web_url")]
    pub platform_login_url: Option<Url>,
    /// With `platform`: the name of its cookie, Flask's `SESSION_COOKIE_NAME`. Default `session`.
    pub platform_cookie: String,
    /// With `platform`: how old its cookie may be, at least `1m`: Flask's `PERMANENT_SESSION_LIFETIME`. Default `31d`, which is Flask's.
    #[serde(deserialize_with = "values::duration")]
    pub platform_session_max: Duration,
    /// With `password`: how long a customer stays logged in without a request, at least `1m`. Default `2h`.
    #[serde(deserialize_with = "values::duration")]
    pub session_idle: Duration,
    /// With `password`: how long a customer stays logged in at most, at least `1m`. Default `24h`.
    #[serde(deserialize_with = "values::duration")]
    pub session_max: Duration,
    /// How long it is kept who did what to which backup, at least `1d`. Default `400d`.
    #[serde(deserialize_with = "values::duration")]
    pub audit_keep: Duration,
    /// A file of the operators who may look at all customers on `/admin`: lines `name:hash`, each as `operator-line` prints it. Without one there is no such page.
    #[serde(deserialize_with = "values::optional_absolute_path")]
    pub admins_file: Option<PathBuf>,
    /// An address on which `/metrics` is answered, and nothing else. Without one it is at `listen`, for this machine alone.
    pub metrics_listen: Option<SocketAddr>,
}

/// What customers log in with: `server.login`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum LoginConfig {
    /// Here, with the email address and the password that the platform knows.
    Password,
    /// At the platform: its session counts here, too, and no password does.
    Platform,
}

/// `[database]`: the platform's database, with customers, jobs and the catalogue.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct DatabaseConfig {
    /// `mysql://user[:password]@host[:port]/schema` or `sqlite:///path`. Falls back to the platform's `DB_HOST` and
    /// `DB_USER`, schema `shophosting_db`.
    pub url: DatabaseUrl,
    /// `DB_PASSWORD` as it was when the configuration was read; used where the address holds no password.
    #[serde(skip)]
    pub password: Option<SecretString>,
}

/// `[queue]`: how workers are woken.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct QueueConfig {
    /// A Redis server, 6.0 or later: `redis://[[user]:password@]host[:port][/database]` or
    /// `unix:///path[?pass=password]`; without one the queue is embedded. Falls back to the platform's `REDIS_HOST`.
    #[serde(deserialize_with = "values::redis_url")]
    pub redis_url: Option<SecretUrl>,
    /// The queue's name. Default `backups`.
    pub name: String,
}

/// `[worker]`: who runs the jobs, and for how long.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct WorkerConfig {
    /// The hosting server whose customers this worker serves. Default `default`.
    pub server: String,
    /// Jobs that run at once, at least 1. Default 2.
    pub concurrency: u32,
    /// The directory of restore journals; root only. Default `/var/lib/shophosting-backup`.
    #[serde(deserialize_with = "values::absolute_path")]
    pub state_dir: PathBuf,
    /// The longest a backup may take. Default `10m`.
    #[serde(deserialize_with = "values::duration")]
    pub backup_timeout: Duration,
    /// The longest a restore may take. Default `20m`.
    #[serde(deserialize_with = "values::duration")]
    pub restore_timeout: Duration,
    /// How long a job stays a worker's without a sign of life, at least `1s`; the sign is given four times as often.
    /// Default `60s`.
    #[serde(deserialize_with = "values::duration")]
    pub lease: Duration,
    /// How often the catalogue is brought in step with the repositories, at least `1s`. Default `5m`.
    #[serde(deserialize_with = "values::duration")]
    pub sync_every: Duration,
    /// The local time of day, such as `03:30`, from which on, for an hour, the worker prunes the manual repository, and
    /// with a section `[daily]` the daily one, once a day. Default: never.
    #[serde(deserialize_with = "values::optional_time_of_day")]
    pub prune_at: Option<Time>,
}

/// `[repositories]`: where backups are.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct RepositoriesConfig {
    /// Backups that customers make, and those made before a restore. Ours to write.
    pub manual: RepositoryConfig,
    /// The daily backups of everybody. Only read while the platform's own script makes them; with a section `[daily]` ours to write. Absent where
    /// there are none.
    pub daily: Option<RepositoryConfig>,
}

/// One repository: `[repositories.manual]` or `[repositories.daily]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct RepositoryConfig {
    /// In restic's syntax: `sftp:user@host:/path`, `sftp://user@host:port//path`, `s3:https://host/bucket/prefix` or a directory. In what was read
    /// `{server}` has become the name of the hosting server, `worker.server`. That of `repositories.manual` may hold `{customer}`: see
    /// [`Self::of_customer`].
    pub location: String,
    /// A file that holds the repository's password. This or `password_env`.
    #[serde(default, deserialize_with = "values::optional_absolute_path")]
    password_file: Option<PathBuf>,
    /// The name of an environment variable that holds it.
    password_env: Option<String>,
    /// The private key for SFTP; without one, an agent is asked.
    #[serde(default, deserialize_with = "values::optional_absolute_path")]
    pub ssh_key: Option<PathBuf>,
    /// The file of known host keys for SFTP. Default: the user's own.
    #[serde(default, deserialize_with = "values::optional_absolute_path")]
    pub known_hosts: Option<PathBuf>,
    /// SFTP connections at once, 1 to 8 (a server lets 10 log in at the same time). Default 2.
    #[serde(default = "default_connections")]
    pub connections: u32,
    /// A file with the access key of the object store: the lines `AWS_ACCESS_KEY_ID=…` and `AWS_SECRET_ACCESS_KEY=…`. Without one these
    /// variables of the environment count.
    #[serde(default, deserialize_with = "values::optional_absolute_path")]
    pub s3_key_file: Option<PathBuf>,
    /// The region of the bucket. Falls back to `AWS_DEFAULT_REGION`, then to what the location says, then to `us-east-1`.
    pub s3_region: Option<String>,
    /// A file of the certificate authorities that are trusted for the object store. Default: those of the system.
    #[serde(default, deserialize_with = "values::optional_absolute_path")]
    pub s3_ca_file: Option<PathBuf>,
    /// How long passing faults are retried. Default `5m`.
    #[serde(default = "default_retry_for", deserialize_with = "values::duration")]
    pub retry_for: Duration,
    /// Where the password comes from, out of the two keys above.
    #[serde(skip)]
    pub password: PasswordSource,
    /// The access key of the environment, as it was when the configuration was read.
    #[serde(skip)]
    access_key: Option<AccessKey>,
}

/// `[customers]`: where customers' files are.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct CustomersConfig {
    /// Customer N lives in `{root}/customer-N`. Default `/var/customers`.
    #[serde(deserialize_with = "values::absolute_path")]
    pub root: PathBuf,
    /// What a files restore replaces, of these what the snapshot has; paths below the customer's directory, none
    /// inside another. Default `wordpress`, `volumes/files`.
    #[serde(deserialize_with = "values::relative_paths")]
    pub site_dirs: Vec<PathBuf>,
    /// What a backup leaves out, with all that is below; paths below the customer's directory. Default: the raw data
    /// of the containers, logs and the maintenance file.
    #[serde(deserialize_with = "values::relative_paths")]
    pub exclude: Vec<PathBuf>,
}

/// `[customer_database]`: where customers' databases are.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct CustomerDatabaseConfig {
    /// The schema of a customer for whom the platform's table names none. Default `customer_{id}`.
    pub name: Template,
    /// The server's host; falls back to the platform's `DB_HOST` (unless `socket` or `exec` is set), then to `localhost`.
    pub host: Option<String>,
    /// The server's TCP port. Default: that of the client program.
    pub port: Option<u16>,
    /// The server's socket, instead of `host` and `port`. With `exec`: inside the container.
    #[serde(deserialize_with = "values::optional_absolute_path")]
    pub socket: Option<PathBuf>,
    /// The account that dumps, and that prepares and swaps what is restored. Falls back to `DB_USER`, then to `root`.
    pub user: String,
    /// A file that holds its password. This or `password_env`.
    #[serde(deserialize_with = "values::optional_absolute_path")]
    password_file: Option<PathBuf>,
    /// The name of an environment variable that holds it. With neither: `DB_PASSWORD` where set, else no password.
    password_env: Option<String>,
    /// The words before the client programs for a server in a container, as in `["docker", "exec", "-i",
    /// "customer-{id}-db"]`. Default none.
    exec: Vec<Template>,
    /// Where the dump is inside manual snapshots. Default `/tmp/customer-backup-{id}/{database}.sql`.
    dump_path: Template,
    /// Where it is inside daily snapshots. Default `/tmp/shophosting-db-dumps/{database}.sql`.
    daily_dump_path: Template,
    /// The longest a dump may take. Default: `worker.backup_timeout`.
    #[serde(deserialize_with = "values::optional_duration")]
    dump_timeout: Option<Duration>,
    /// The longest an import may take; the files are fetched beside it. Default: `worker.restore_timeout`.
    #[serde(deserialize_with = "values::optional_duration")]
    import_timeout: Option<Duration>,
    /// Where the password comes from, out of the two keys above.
    #[serde(skip)]
    pub password: PasswordSource,
}

/// `[site]`: how a customer's site is stopped, started and checked.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct SiteConfig {
    /// The program and arguments that stop the site, run in the customer's directory without a shell; empty: nothing
    /// to stop. Default `docker compose stop`; without a configuration file nothing.
    pub stop: Vec<String>,
    /// The same to start it. Default `docker compose up -d`; without a configuration file nothing.
    pub start: Vec<String>,
    /// An `http://` address that answers when the site is up. Without one a started site counts as up.
    health_url: Option<Template>,
    /// The file that makes the web server answer "maintenance", below the customer's directory. Default `.maintenance`.
    #[serde(deserialize_with = "values::relative_path")]
    pub maintenance_file: PathBuf,
    /// The web server in front of the sites, where that is nginx: the program and arguments that it is run with, without its orders. `doctor`
    /// asks it for its configuration. Empty: not asked. Default `nginx`; without a configuration file nothing.
    pub nginx: Vec<String>,
    /// The longest that `stop` or `start` may take. Default `2m`.
    #[serde(deserialize_with = "values::duration")]
    pub command_timeout: Duration,
    /// The longest that a started site may take to answer. Default `60s`.
    #[serde(deserialize_with = "values::duration")]
    pub health_timeout: Duration,
}

/// `[restore]`: what of a customer's files is restored. A customer decides what is in his backups: what would give him power over the
/// server is not restored unless it is allowed here, and the restore says so in a warning.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct RestoreConfig {
    /// Whether device nodes are restored. Default no: they are left out.
    pub devices: bool,
    /// Whether files get back their setuid and setgid bits and their capabilities. Default no. Directories keep setgid.
    pub setuid: bool,
    /// The users and groups, by number, that may own what is restored besides those that own the customer's directory and his site
    /// directories at that time, and the site directory in the backup; `"any"` for all. Anybody else is replaced by the latter: so a
    /// site that was lost, or given away, comes back as its own. Default none.
    #[serde(deserialize_with = "values::owners")]
    pub owners: OwnersConfig,
    /// The most files, directories and links that a site directory may have; 0: any number. A million take about 65 MB
    /// of memory, the index of what they hold included, and 120 MB where they are all in one directory: with the default a restore stays below
    /// 256 MB. Default 1500000.
    pub max_files: u64,
    /// The most bytes that its files may have together; 0: any number. Default 0: the room on the disk is checked anyway.
    pub max_bytes: u64,
}

/// Who may own what is restored: `restore.owners`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OwnersConfig {
    /// Anybody.
    Any,
    /// These, each as a user and as a group.
    Only(Vec<u32>),
}

/// `[retention]`: how many backups are kept.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct RetentionConfig {
    /// The newest manual backups kept for a customer, whatever their type; at least 1. Default 5.
    pub manual: u32,
    /// The newest backups kept of what a restore replaced; at least 1. Default 3.
    pub pre_restore: u32,
    /// Daily backups older than this are not shown, but for the last of a customer's files and the last of his database. Default `30d`.
    #[serde(deserialize_with = "values::duration")]
    pub daily_shown: Duration,
}

/// `[daily]`: the daily backup of everybody. That the section is there, were it empty, says that the daily backups are ours: `daily` makes them and
/// forgets the old ones, and pruning includes their repository.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct DailyConfig {
    /// The days of which the newest backup is kept, at least 1: the newest days that have one. Beyond these the last one that holds a customer's files stays, and the last one that
    /// holds his dump. Default 30.
    pub keep: u32,
    /// Directories of the server that are saved besides what is the customers', such as `/etc/nginx/sites-available`. Default none.
    #[serde(deserialize_with = "values::absolute_paths")]
    pub paths: Vec<PathBuf>,
    /// Whether the platform's own database is saved as well, where it is a MySQL or MariaDB server. Default yes.
    pub platform_database: bool,
    /// How long it is waited for a repository that somebody else has locked, and for a customer who is being restored: after that
    /// the backup is made without him. Default `5m`.
    #[serde(deserialize_with = "values::duration")]
    pub wait: Duration,
    /// The longest that reading the files of one customer may take, at least `1s`: after that the backup is made without them. Dumps have
    /// `customer_database.dump_timeout`. Default `1h`.
    #[serde(deserialize_with = "values::duration")]
    pub customer_timeout: Duration,
}

/// `[verify]`: how backups are proven to be restorable, by restoring them where nobody sees it.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct VerifyConfig {
    /// The hours of the day, in local time, as in `02:00-05:00`, in which a worker does it by itself. Default: never.
    #[serde(deserialize_with = "values::optional_hours")]
    pub hours: Option<Hours>,
    /// How often the worker proves the newest backup of each customer and source, at least `1h`. One that failed is tried again in the next hours. Default `7d`.
    #[serde(deserialize_with = "values::duration")]
    pub every: Duration,
    /// The directory that backups are restored to, for the time that this takes; root only. Default: `verify` in `worker.state_dir`.
    #[serde(deserialize_with = "values::optional_absolute_path")]
    dir: Option<PathBuf>,
    /// The most bytes that a backup may take there and in the scratch schema together; 0: any number. A larger one counts as failed. Default 50000000000.
    pub max_bytes: u64,
    /// The longest that one backup may take. Default `1h`.
    #[serde(deserialize_with = "values::duration")]
    pub timeout: Duration,
    /// Which packs of each repository the worker reads once in these hours, to find damage: a share, as in `2%`, or a part, as in `1/12`. Default: none.
    #[serde(deserialize_with = "values::optional_sample")]
    pub read_data_subset: Option<Sample>,
}

/// `[notify]`: who is told that a job of a customer has ended.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct NotifyConfig {
    /// `[notify.webhook]`: a server that is told over HTTP.
    pub webhook: Option<WebhookConfig>,
    /// `[notify.email]`: the customer himself, at the address that the platform has of him.
    pub email: Option<EmailConfig>,
}

/// `[notify.webhook]`: a server that is told over HTTP.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct WebhookConfig {
    /// Where it is told: `https://`, or `http://` on this machine.
    #[serde(deserialize_with = "values::webhook_url")]
    pub url: Url,
    /// A file with the secret that it is signed with, in the form of Standard Webhooks: `whsec_` and 24 to 64 bytes in base64. Below it, one a
    /// line, those that it had before: each signs.
    #[serde(deserialize_with = "values::absolute_path")]
    pub secret_file: PathBuf,
    /// What it is told. Default: everything.
    #[serde(default = "NotifyEvent::all")]
    pub events: Vec<NotifyEvent>,
}

/// `[notify.email]`: the customer himself.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct EmailConfig {
    /// The SMTP server that takes our mail.
    pub host: String,
    /// Its port. Default: 465 with `tls`, 587 with `starttls`, 25 with `none`.
    port: Option<u16>,
    /// How the connection is encrypted. Default `tls`.
    #[serde(default)]
    pub tls: SmtpTls,
    /// The account that it is given to, where the server wants one.
    pub user: Option<String>,
    /// A file with the password of that account.
    #[serde(default, deserialize_with = "values::optional_absolute_path")]
    pub password_file: Option<PathBuf>,
    /// Who it is from: `Backups <backups@shophosting.example>`, or the address alone.
    #[serde(deserialize_with = "values::mailbox")]
    pub from: String,
    /// What the customer is told. Default: failures, and how restores ended, but not what he cancelled himself.
    #[serde(default = "NotifyEvent::worth_a_mail")]
    pub events: Vec<NotifyEvent>,
}

/// How the connection to an SMTP server is encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SmtpTls {
    /// From its beginning.
    #[default]
    Tls,
    /// After a few words, and never not.
    Starttls,
    /// Not at all: to this machine alone.
    None,
}

/// How a job can end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
pub enum NotifyEvent {
    /// A backup was made.
    #[serde(rename = "backup.completed")]
    BackupCompleted,
    /// A backup failed.
    #[serde(rename = "backup.failed")]
    BackupFailed,
    /// Somebody cancelled a backup.
    #[serde(rename = "backup.cancelled")]
    BackupCancelled,
    /// A backup was put back.
    #[serde(rename = "restore.completed")]
    RestoreCompleted,
    /// A restore failed, and the shop is as it was.
    #[serde(rename = "restore.failed")]
    RestoreFailed,
    /// Somebody cancelled a restore, and the shop is as it was.
    #[serde(rename = "restore.cancelled")]
    RestoreCancelled,
    /// A restore is stuck: an operator is needed. How it ends after all is told, too.
    #[serde(rename = "restore.stuck")]
    RestoreStuck,
}

impl NotifyEvent {
    /// As the configuration and receivers know it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BackupCompleted => "backup.completed",
            Self::BackupFailed => "backup.failed",
            Self::BackupCancelled => "backup.cancelled",
            Self::RestoreCompleted => "restore.completed",
            Self::RestoreFailed => "restore.failed",
            Self::RestoreCancelled => "restore.cancelled",
            Self::RestoreStuck => "restore.stuck",
        }
    }

    fn all() -> Vec<Self> {
        vec![
            Self::BackupCompleted,
            Self::BackupFailed,
            Self::BackupCancelled,
            Self::RestoreCompleted,
            Self::RestoreFailed,
            Self::RestoreCancelled,
            Self::RestoreStuck,
        ]
    }

    fn worth_a_mail() -> Vec<Self> {
        vec![
            Self::BackupFailed,
            Self::RestoreCompleted,
            Self::RestoreFailed,
            Self::RestoreStuck,
        ]
    }
}

impl WebhookConfig {
    /// The lines of the file of secrets. [`ErrorKind::Configuration`] when it cannot be had.
    pub(crate) fn read_secrets(&self) -> Result<SecretString> {
        values::read_secret_file("secret_file of notify.webhook", &self.secret_file)
    }
}

impl EmailConfig {
    /// The port of the SMTP server.
    pub fn port(&self) -> u16 {
        self.port.unwrap_or(match self.tls {
            SmtpTls::Tls => 465,
            SmtpTls::Starttls => 587,
            SmtpTls::None => 25,
        })
    }

    /// The account at the SMTP server and its password. [`ErrorKind::Configuration`] when that cannot be had.
    pub(crate) fn read_account(&self) -> Result<Option<(&str, SecretString)>> {
        let (Some(user), Some(file)) = (&self.user, &self.password_file) else {
            return Ok(None);
        };
        let password = values::read_secret_file("password_file of notify.email", file)?;
        Ok(Some((user, password)))
    }
}

impl Config {
    /// Where backups are restored to prove that they can be.
    pub fn verify_dir(&self) -> PathBuf {
        match &self.verify.dir {
            Some(dir) => dir.clone(),
            None => self.worker.state_dir.join("verify"),
        }
    }

    /// How long a dump may take.
    pub fn dump_timeout(&self) -> Duration {
        self.customer_database
            .dump_timeout
            .unwrap_or(self.worker.backup_timeout)
    }

    /// How long an import may take.
    pub fn import_timeout(&self) -> Duration {
        self.customer_database
            .import_timeout
            .unwrap_or(self.worker.restore_timeout)
    }
}

impl DatabaseConfig {
    /// The server of the platform's database and the name of its schema; `None` where it is a file.
    pub fn mysql(&self) -> Option<PlatformDatabase> {
        let DatabaseUrl::MySql(url) = &self.url else {
            return None;
        };
        let shown = url.shown();
        Some(PlatformDatabase {
            // An address of IPv6 stands in brackets there.
            host: shown
                .host_str()
                .unwrap_or("localhost")
                .trim_matches(['[', ']'])
                .to_owned(),
            port: shown.port(),
            user: url.user(),
            password: url.password().or_else(|| self.password.clone()),
            schema: values::decoded(shown.path().trim_matches('/')),
        })
    }
}

/// What the address of the platform's database says.
#[derive(Debug, Clone)]
pub struct PlatformDatabase {
    /// The server.
    pub host: String,
    /// Its port, where one is given.
    pub port: Option<u16>,
    /// The account; empty where none is given.
    pub user: String,
    /// Its password, where there is one.
    pub password: Option<SecretString>,
    /// The schema.
    pub schema: String,
}

impl ServerConfig {
    /// Whether customers' browsers use https.
    pub fn has_tls(&self) -> bool {
        let url = self.public_url.as_ref();
        url.is_some_and(|url| url.scheme() == "https")
    }

    /// The file of the platform's secret key, and what it holds. [`ErrorKind::Configuration`] when it cannot be had.
    pub(crate) fn read_platform_secret_key(&self) -> Result<(&Path, SecretString)> {
        let file = self.platform_secret_key_file.as_deref().ok_or_else(|| {
            Error::new(
                ErrorKind::Configuration,
                "server.platform_secret_key_file is missing",
            )
        })?;
        Ok((
            file,
            values::read_secret_file("platform_secret_key_file", file)?,
        ))
    }
}

impl RepositoryConfig {
    /// The repository's password. [`ErrorKind::Configuration`] when it cannot be had.
    pub fn read_password(&self) -> Result<SecretString> {
        self.password.read()?.ok_or_else(|| {
            Error::new(
                ErrorKind::Configuration,
                format!(
                    "the repository {} has neither password_file nor password_env",
                    self.location
                ),
            )
        })
    }
}

impl RepositoryConfig {
    /// Whether each customer has one of his own: its location holds `{customer}`.
    pub fn is_for_each_customer(&self) -> bool {
        self.location.contains(CUSTOMER)
    }

    /// That of a customer: his `customer-N` takes the place of `{customer}`. Where the location does not hold that, it is the same for all.
    #[must_use]
    pub fn of_customer(&self, customer: CustomerId) -> Self {
        Self {
            location: self.location.replace(CUSTOMER, &customer.tag()),
            ..self.clone()
        }
    }

    /// The directory that holds all customers' repositories; None where the location names none, as in an object store.
    pub(crate) fn directory_of_customers(&self) -> Result<Option<Location>> {
        let location: Location = self.location.parse()?;
        Ok(location.directory_before(CUSTOMER))
    }

    /// Whether it is in an object store.
    pub fn is_object_storage(&self) -> bool {
        self.location.starts_with("s3:")
    }

    /// The access key of the object store; None where the repository is in none, or no key is given. [`ErrorKind::Configuration`] when it cannot
    /// be had.
    pub fn read_access_key(&self) -> Result<Option<AccessKey>> {
        if !self.is_object_storage() {
            return Ok(None);
        }
        match &self.s3_key_file {
            Some(file) => values::read_access_key(file).map(Some),
            None => Ok(self.access_key.clone()),
        }
    }
}

impl CustomersConfig {
    /// A customer's directory.
    pub fn dir(&self, customer: CustomerId) -> PathBuf {
        customer.dir(&self.root)
    }
}

impl CustomerDatabaseConfig {
    /// The server's host name. Not used where `socket` is set.
    pub fn host(&self) -> &str {
        self.host.as_deref().unwrap_or("localhost")
    }

    /// The schema of a customer for whom the platform's table names none.
    pub fn default_name(&self, customer: CustomerId) -> Result<DatabaseName> {
        let name = self.name.fill(|place| match place {
            Placeholder::Id => Ok(customer.to_string()),
            other => Err(Error::new(
                ErrorKind::Configuration,
                format!("customer_database.name cannot hold {other:?}"),
            )),
        })?;
        name.parse()
    }

    /// The words before the client programs; empty for a server that is reached directly.
    pub fn exec(&self, customer: &Customer) -> Result<Vec<String>> {
        self.exec.iter().map(|word| word.render(customer)).collect()
    }

    /// Whether the customers' servers are reached through a prefix.
    pub fn is_in_container(&self) -> bool {
        !self.exec.is_empty()
    }

    /// The program of the prefix; `None` for a server that is reached directly.
    pub fn exec_program(&self) -> Option<String> {
        self.exec.first().map(Template::to_string)
    }

    /// Where the customer's dump is inside manual snapshots.
    pub fn dump_path(&self, customer: &Customer) -> Result<PathBuf> {
        path_inside_snapshots(&self.dump_path, customer.id, &customer.db_name)
    }

    /// Where it is inside daily snapshots.
    pub fn daily_dump_path(
        &self,
        customer: CustomerId,
        database: &DatabaseName,
    ) -> Result<PathBuf> {
        path_inside_snapshots(&self.daily_dump_path, customer, database)
    }

    /// Whether the customer's number alone says where that is: by the path, or by the name of his database.
    pub fn is_daily_dump_by_number(
        &self,
        customer: CustomerId,
        database: &DatabaseName,
    ) -> Result<bool> {
        Ok(self.daily_dump_path.has(Placeholder::Id) || self.default_name(customer)? == *database)
    }

    /// Where the dump of the platform's own database is inside daily snapshots: where that of a customer with a database of that name would be. None
    /// where customers' numbers are part of the path.
    pub fn daily_dump_path_of_platform(&self, schema: &str) -> Result<Option<PathBuf>> {
        if self.daily_dump_path.has(Placeholder::Id) {
            return Ok(None);
        }
        let path = self.daily_dump_path.fill(|_| Ok(schema.to_owned()))?;
        let path = values::plain_absolute(&path)
            .map_err(|reason| Error::new(ErrorKind::Configuration, reason))?;
        Ok(Some(path))
    }
}

fn path_inside_snapshots(
    template: &Template,
    customer: CustomerId,
    database: &DatabaseName,
) -> Result<PathBuf> {
    let path = template.fill(|place| match place {
        Placeholder::Id => Ok(customer.to_string()),
        Placeholder::Database => Ok(database.to_string()),
        other @ Placeholder::WebPort => Err(Error::new(
            ErrorKind::Configuration,
            format!("the path of a dump cannot hold {other:?}"),
        )),
    })?;
    values::plain_absolute(&path).map_err(|reason| Error::new(ErrorKind::Configuration, reason))
}

impl SiteConfig {
    /// The address that answers when the customer's site is up; `None` where none is configured.
    pub fn health_url(&self, customer: &Customer) -> Result<Option<Url>> {
        let Some(template) = &self.health_url else {
            return Ok(None);
        };
        let text = template.render(customer)?;
        Url::parse(&text).map(Some).map_err(|e| {
            Error::caused(
                ErrorKind::Configuration,
                format!("site.health_url: `{text}` is not an address"),
                e,
            )
        })
    }
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 3000)),
            public_url: None,
            login: LoginConfig::Password,
            platform_secret_key_file: None,
            platform_login_url: None,
            platform_cookie: "session".into(),
            platform_session_max: Duration::from_secs(31 * 24 * 60 * 60),
            session_idle: Duration::from_secs(2 * 60 * 60),
            session_max: Duration::from_secs(24 * 60 * 60),
            audit_keep: Duration::from_secs(400 * 24 * 60 * 60),
            admins_file: None,
            metrics_listen: None,
        }
    }
}

impl Default for QueueConfig {
    fn default() -> Self {
        Self {
            redis_url: None,
            name: "backups".into(),
        }
    }
}

impl Default for WorkerConfig {
    fn default() -> Self {
        Self {
            server: DEFAULT_SERVER.into(),
            concurrency: 2,
            state_dir: "/var/lib/shophosting-backup".into(),
            backup_timeout: Duration::from_secs(10 * 60),
            restore_timeout: Duration::from_secs(20 * 60),
            lease: Duration::from_secs(60),
            sync_every: Duration::from_secs(5 * 60),
            prune_at: None,
        }
    }
}

fn default_connections() -> u32 {
    2
}

fn default_retry_for() -> Duration {
    Duration::from_secs(5 * 60)
}

impl Default for CustomersConfig {
    fn default() -> Self {
        Self {
            root: "/var/customers".into(),
            site_dirs: ["wordpress", "volumes/files"].map(PathBuf::from).to_vec(),
            exclude: ["mysql", "redis", "volumes/db", "logs", ".maintenance"]
                .map(PathBuf::from)
                .to_vec(),
        }
    }
}

impl Default for CustomerDatabaseConfig {
    fn default() -> Self {
        Self {
            name: Template::of([Part::text("customer_"), Part::Place(Placeholder::Id)]),
            host: None,
            port: None,
            socket: None,
            user: "root".into(),
            password_file: None,
            password_env: None,
            exec: Vec::new(),
            dump_path: Template::of([
                Part::text("/tmp/customer-backup-"),
                Part::Place(Placeholder::Id),
                Part::text("/"),
                Part::Place(Placeholder::Database),
                Part::text(".sql"),
            ]),
            daily_dump_path: Template::of([
                Part::text("/tmp/shophosting-db-dumps/"),
                Part::Place(Placeholder::Database),
                Part::text(".sql"),
            ]),
            dump_timeout: None,
            import_timeout: None,
            password: PasswordSource::None,
        }
    }
}

impl Default for SiteConfig {
    fn default() -> Self {
        Self {
            stop: ["docker", "compose", "stop"].map(String::from).to_vec(),
            start: ["docker", "compose", "up", "-d"].map(String::from).to_vec(),
            health_url: None,
            maintenance_file: ".maintenance".into(),
            nginx: vec!["nginx".into()],
            command_timeout: Duration::from_secs(2 * 60),
            health_timeout: Duration::from_secs(60),
        }
    }
}

impl Default for RestoreConfig {
    fn default() -> Self {
        Self {
            devices: false,
            setuid: false,
            owners: OwnersConfig::Only(Vec::new()),
            max_files: 1_500_000,
            max_bytes: 0,
        }
    }
}

impl Default for DailyConfig {
    fn default() -> Self {
        Self {
            keep: 30,
            paths: Vec::new(),
            platform_database: true,
            wait: Duration::from_secs(5 * 60),
            customer_timeout: Duration::from_secs(60 * 60),
        }
    }
}

impl Default for VerifyConfig {
    fn default() -> Self {
        Self {
            hours: None,
            every: Duration::from_secs(7 * 24 * 60 * 60),
            dir: None,
            max_bytes: 50_000_000_000,
            timeout: Duration::from_secs(60 * 60),
            read_data_subset: None,
        }
    }
}

impl Default for RetentionConfig {
    fn default() -> Self {
        Self {
            manual: 5,
            pre_restore: 3,
            daily_shown: Duration::from_secs(30 * 24 * 60 * 60),
        }
    }
}
