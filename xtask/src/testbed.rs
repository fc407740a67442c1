//! A hosting server and its backup server in one scratch directory: the one place that starts and stops them.
//!
//! The platform's database with its customers, their schemas, accounts and directories, an SFTP server with room for
//! two repositories, and a configuration of the product that ties it together. Takes root, as the real thing does.

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::init::Init;
use crate::mariadb::MariaDb;
use crate::proxy::Proxy;
use crate::restic::Restic;
use crate::sshd::Sshd;

/// The platform's own schema.
pub const PLATFORM_SCHEMA: &str = "shophosting_db";
/// The platform's account, which may do everything.
pub const PLATFORM_USER: &str = "shophosting_app";

/// The table of jobs as an earlier deployment made it by hand, beside the platform's `customers`.
pub const JOBS_BY_HAND: &str = "
CREATE TABLE customer_backup_jobs (
    id INT AUTO_INCREMENT PRIMARY KEY,
    customer_id INT NOT NULL,
    job_type ENUM('backup', 'restore') NOT NULL,
    backup_type ENUM('db', 'files', 'both') NOT NULL,
    snapshot_id VARCHAR(64),
    status ENUM('pending', 'running', 'completed', 'failed') DEFAULT 'pending',
    error_message TEXT,
    created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP,
    completed_at TIMESTAMP NULL,
    FOREIGN KEY (customer_id) REFERENCES customers(id) ON DELETE CASCADE,
    INDEX idx_customer_status (customer_id, status)
);";

/// The tables that the product keeps in the platform's schema.
const PRODUCT_TABLES: [&str; 11] = [
    "backup_audit",
    "backup_migrations",
    "backup_notification_counts",
    "backup_notifications",
    "backup_proofs",
    "backup_repositories",
    "backup_repository_users",
    "backup_sessions",
    "backup_snapshots",
    "customer_backup_jobs",
    "customer_backups",
];

const WORDPRESS: &str = "/usr/share/wordpress";
const WORDPRESS_CONTENT: &str = include_str!("wordpress.php");

/// Two private servers and what is on them. All of it is gone when this is dropped: keep it in the test that uses it (it
/// starts in less than a second), as a `static` is never dropped.
pub struct TestBed {
    mariadb: MariaDb,
    sshd: Sshd,
    platform_password: String,
    manual_password: String,
    daily_password: String,
    // Dropped last: the servers go before what they serve.
    scratch: TempDir,
}

/// One customer of the test bed.
#[derive(Debug, Clone)]
pub struct Customer {
    /// The number that everything of his is named after.
    pub id: u32,
    /// `{customers.root}/customer-N`.
    pub directory: PathBuf,
    /// `customer_N`, his schema.
    pub database: String,
    /// His account, with rights on his schema only.
    pub user: String,
    /// The password of his account.
    pub password: String,
}

impl Customer {
    /// The directory that holds his site and that a restore of files replaces.
    pub fn site(&self) -> PathBuf {
        self.directory.join("wordpress")
    }
}

impl TestBed {
    /// Start both servers, with the platform's schema and no customer.
    pub fn start() -> Result<Self> {
        Self::start_with(MariaDb::start()?)
    }

    /// The same with a database server of the test's choice, on which nothing is yet.
    pub fn start_with(mariadb: MariaDb) -> Result<Self> {
        ensure!(
            rustix::process::geteuid().is_root(),
            "the test bed takes root: files of many owners, private servers"
        );
        let scratch = tempfile::Builder::new().prefix("shophosting-").tempdir()?;
        // The database server and PHP may run as somebody else and have to get through.
        fs::set_permissions(scratch.path(), Permissions::from_mode(0o755))?;
        let bed = Self {
            mariadb,
            sshd: Sshd::start()?,
            platform_password: random_password(),
            manual_password: random_password(),
            daily_password: random_password(),
            scratch,
        };
        for directory in [
            "customers",
            "state",
            "backup-server",
            "shophosting-db-dumps",
        ] {
            fs::create_dir(bed.scratch.path().join(directory))?;
        }
        bed.create_platform_schema()?;
        bed.write_configuration()?;
        Ok(bed)
    }

    /// The directory that holds everything; for a test's own files too.
    pub fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    /// The database server, of platform and customers.
    pub fn mariadb(&self) -> &MariaDb {
        &self.mariadb
    }

    /// The database server, to stop or kill it.
    pub fn mariadb_mut(&mut self) -> &mut MariaDb {
        &mut self.mariadb
    }

    /// The backup server.
    pub fn sshd(&self) -> &Sshd {
        &self.sshd
    }

    /// The backup server, to stop it or to cut its connections.
    pub fn sshd_mut(&mut self) -> &mut Sshd {
        &mut self.sshd
    }

    /// `customers.root`.
    pub fn customers_root(&self) -> PathBuf {
        self.scratch.path().join("customers")
    }

    /// Where the dumps of the daily backup lie.
    pub fn daily_dumps(&self) -> PathBuf {
        self.scratch.path().join("shophosting-db-dumps")
    }

    /// The product's configuration. Any key can be changed by environment: `BACKUP__…`.
    pub fn config_file(&self) -> PathBuf {
        self.scratch.path().join("backup.toml")
    }

    /// The product, ready for a command and its arguments.
    pub fn product(&self, binary: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(binary);
        let own_settings = std::env::vars_os().map(|(name, _)| name);
        for name in own_settings.filter(|name| name.to_string_lossy().starts_with("BACKUP__")) {
            command.env_remove(name);
        }
        for name in [
            "DB_HOST",
            "DB_USER",
            "REDIS_HOST",
            "SHOPHOSTING_BACKUP_CONFIG",
        ] {
            command.env_remove(name);
        }
        command
            .env("DB_PASSWORD", &self.platform_password)
            .arg("--config")
            .arg(self.config_file())
            .stdin(Stdio::null());
        command
    }

    /// Both repositories as the product's `init` makes them: the first in this process for real ([`Init`]).
    pub fn init(&self, binary: impl AsRef<OsStr>) -> Result<()> {
        static INIT: Init = Init::new();
        let repositories: [(&Path, &str); 2] = [
            (&self.manual_repository(), &self.manual_password),
            (&self.daily_repository(), &self.daily_password),
        ];
        INIT.make(&repositories, || {
            run(self.product(binary).arg("init")).map(drop)
        })
    }

    /// Let a command reach the manual repository through a proxy, and give up an outage after two seconds.
    pub fn through(&self, proxy: &Proxy, command: &mut Command) -> Result<()> {
        self.reroute("MANUAL", &self.manual_repository(), proxy, command)
    }

    /// The same for the repository of the daily backups.
    pub fn daily_through(&self, proxy: &Proxy, command: &mut Command) -> Result<()> {
        self.reroute("DAILY", &self.daily_repository(), proxy, command)
    }

    fn reroute(
        &self,
        name: &str,
        repository: &Path,
        proxy: &Proxy,
        command: &mut Command,
    ) -> Result<()> {
        let known_hosts = self
            .scratch
            .path()
            .join(format!("known_hosts-{}", proxy.port()));
        let line = format!("[127.0.0.1]:{} {}", proxy.port(), self.sshd.host_key()?);
        fs::write(&known_hosts, line)?;
        let location = self.sshd.location_at(proxy.port(), repository);
        let key = |key: &str| format!("BACKUP__REPOSITORIES__{name}__{key}");
        command
            .env(key("LOCATION"), location)
            .env(key("KNOWN_HOSTS"), known_hosts)
            .env(key("RETRY_FOR"), "2s");
        Ok(())
    }

    /// The password of [`PLATFORM_USER`].
    pub fn platform_password(&self) -> &str {
        &self.platform_password
    }

    /// The directory of the customers' own backups on the backup server.
    pub fn manual_repository(&self) -> PathBuf {
        self.scratch.path().join("backup-server/manual-backups")
    }

    /// The directory of the platform's daily backups on the backup server.
    pub fn daily_repository(&self) -> PathBuf {
        self.scratch.path().join("backup-server/backups")
    }

    /// The password of the manual repository.
    pub fn manual_password(&self) -> &str {
        &self.manual_password
    }

    /// restic on the manual repository, from the backup server's own side.
    pub fn restic(&self) -> Result<Restic> {
        Restic::new(self.manual_repository(), &self.manual_password)
    }

    /// restic on the daily repository, from the backup server's own side.
    pub fn daily_restic(&self) -> Result<Restic> {
        Restic::new(self.daily_repository(), &self.daily_password)
    }

    /// restic on a directory of the backup server, through SFTP as an operator would run it.
    pub fn restic_over_sftp(&self, directory: &Path, password: &str) -> Result<Restic> {
        let repository = self.sshd.location(directory);
        let command = self.sshd.ssh_command(self.sshd.port());
        Ok(Restic::new(repository, password)?.sftp_command(&command))
    }

    /// A customer with a directory, a few files that do and a few that do not belong in a backup, an empty schema,
    /// an account, and his row in the platform's table.
    pub fn add_customer(&self, id: u32) -> Result<Customer> {
        let customer = Customer {
            id,
            directory: self.customers_root().join(format!("customer-{id}")),
            database: format!("customer_{id}"),
            user: format!("customer_{id}"),
            password: random_password(),
        };
        let Customer {
            directory,
            database,
            user,
            password,
            ..
        } = &customer;
        for part in ["wordpress", "mysql", "redis", "volumes/db", "logs"] {
            fs::create_dir_all(directory.join(part))?;
        }
        fs::write(
            directory.join("docker-compose.yml"),
            format!("name: customer-{id}\nservices: {{}}\n"),
        )?;
        fs::write(
            directory.join("wordpress/index.php"),
            format!("<?php echo 'shop {id}';\n"),
        )?;
        for excluded in [
            "mysql/ibdata1",
            "redis/dump.rdb",
            "volumes/db/ibdata1",
            "logs/access.log",
        ] {
            fs::write(directory.join(excluded), "belongs in no backup")?;
        }
        // An underscore in a GRANT stands for any character.
        let pattern = database.replace('_', "\\_");
        self.mariadb.sql(&format!(
            "CREATE DATABASE {database} CHARACTER SET utf8mb4;
             CREATE USER {user}@'%' IDENTIFIED BY '{password}';
             GRANT ALL ON `{pattern}`.* TO {user}@'%';
             INSERT INTO {PLATFORM_SCHEMA}.customers
                 (id, email, password_hash, company_name, domain, platform, status, web_port, server_id, db_name, db_user, db_password)
             VALUES ({id}, 'owner@shop-{id}.example', '', 'Shop {id}', 'shop-{id}.example', 'woocommerce', 'active',
                 {}, 1, '{database}', '{user}', '{password}');",
            10_000 + id
        ))?;
        Ok(customer)
    }

    /// A customer with a real shop: Debian's WordPress, its schema, posts, painted images, a view, a trigger, a procedure.
    pub fn add_wordpress_customer(&self, id: u32, posts: u32, images: u32) -> Result<Customer> {
        let customer = self.add_customer(id)?;
        let site = customer.site();
        fs::remove_dir_all(&site)?;
        // Debian's WordPress is full of links into other packages: a customer's is not.
        run(Command::new("cp")
            .args(["-rL", "--preserve=timestamps", WORDPRESS])
            .arg(&site))
        .context("cannot copy WordPress: is the package wordpress installed?")?;
        fs::write(
            site.join("wp-config.php"),
            self.wordpress_configuration(&customer),
        )?;
        fs::set_permissions(site.join("wp-config.php"), Permissions::from_mode(0o640))?;
        let script = self.scratch.path().join("wordpress.php");
        fs::write(&script, WORDPRESS_CONTENT)?;
        run(Command::new("php")
            .arg(&script)
            .current_dir(&site)
            .env("SHOP_NUMBER", id.to_string())
            .env("SHOP_POSTS", posts.to_string())
            .env("SHOP_IMAGES", images.to_string()))
        .context("cannot fill the shop: are php-cli, php-mysql and php-gd installed?")?;
        run(Command::new("chown").args(["-hR", "33:33"]).arg(&site))?;
        Ok(customer)
    }

    /// Run SQL with a customer's own account in his own schema; what it selects, as [`MariaDb::sql`] gives it.
    pub fn sql_as(&self, customer: &Customer, sql: &str) -> Result<String> {
        let output = Command::new("mariadb")
            .args([
                "--no-defaults",
                "--batch",
                "--skip-column-names",
                "--binary-mode",
                "--default-character-set=utf8mb4",
            ])
            .arg(format!("--socket={}", self.mariadb.socket().display()))
            .arg(format!("--user={}", customer.user))
            .arg(format!("--execute={sql}"))
            .arg(&customer.database)
            .env("MYSQL_PWD", &customer.password)
            .stdin(Stdio::null())
            .output()?;
        ensure!(
            output.status.success(),
            "the SQL failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Everything in a schema as `mariadb-dump` writes it, with no date in it: two of these compare. Without the tables that
    /// the product itself keeps, where jobs come and go.
    pub fn dump(&self, database: &str) -> Result<Vec<u8>> {
        run(Command::new("mariadb-dump")
            .args([
                "--no-defaults",
                "--single-transaction",
                "--routines",
                "--triggers",
                "--events",
                "--hex-blob",
            ])
            .args([
                "--skip-dump-date",
                "--default-character-set=utf8mb4",
                "--user=root",
            ])
            .arg(format!("--socket={}", self.mariadb.socket().display()))
            .args(PRODUCT_TABLES.map(|table| format!("--ignore-table={database}.{table}")))
            .arg(database)
            .env("MYSQL_PWD", self.mariadb.root_password()))
    }

    /// The tables of a schema, a line each: name, number of rows, a sum over the values of all rows. Equal for equal
    /// content, whatever the schema's name. (`CHECKSUM TABLE` is not: in MariaDB 10.11 it gives two equal tables
    /// different sums as soon as they have a generated column.)
    pub fn table_checksums(&self, database: &str) -> Result<String> {
        self.mariadb.sql(&format!(
            "DELIMITER //
             BEGIN NOT ATOMIC
                 FOR one IN (
                     SELECT t.table_name AS name, GROUP_CONCAT(
                         CONCAT('IFNULL(HEX(CAST(`', REPLACE(column_name, '`', '``'), '` AS BINARY)), ''NULL'')')
                         ORDER BY ordinal_position) AS all_values
                     FROM information_schema.tables t JOIN information_schema.columns c USING (table_schema, table_name)
                     WHERE table_schema = '{database}' AND table_type = 'BASE TABLE' GROUP BY t.table_name ORDER BY t.table_name
                 ) DO
                     EXECUTE IMMEDIATE CONCAT(
                         'SELECT ', QUOTE(one.name), ', COUNT(*), IFNULL(SUM(CAST(CONV(LEFT(MD5(CONCAT_WS('','', ',
                         one.all_values, ')), 15), 16, 10) AS UNSIGNED)), 0) FROM `{database}`.`', REPLACE(one.name, '`', '``'), '`');
                 END FOR;
             END//"
        ))
    }

    /// What the platform's script does every night: dump all schemas, and back up the dumps and all customers as one
    /// snapshot with restic. The id of the snapshot.
    pub fn back_up_daily(&self, date: &str) -> Result<String> {
        self.back_up_daily_with(date, &[])
    }

    /// The same, as if it had been done at another time (`2026-01-31 00:15:00`).
    pub fn back_up_daily_at(&self, time: &str) -> Result<String> {
        let date = time.split(' ').next().unwrap_or(time);
        self.back_up_daily_with(date, &["--time", time])
    }

    fn back_up_daily_with(&self, date: &str, options: &[&str]) -> Result<String> {
        let restic = self.daily_restic()?;
        if !self.daily_repository().join("config").exists() {
            restic.init()?;
        }
        let databases = self.mariadb.sql("SHOW DATABASES LIKE 'customer\\_%'")?;
        for database in databases.lines().chain([PLATFORM_SCHEMA]) {
            let dump = run(Command::new("mysqldump")
                .args([
                    "--no-defaults",
                    "--single-transaction",
                    "--routines",
                    "--triggers",
                    "--user=root",
                ])
                .arg(format!("--socket={}", self.mariadb.socket().display()))
                .arg(database)
                .env("MYSQL_PWD", self.mariadb.root_password()))?;
            fs::write(self.daily_dumps().join(format!("{database}.sql")), dump)?;
        }
        restic.backup_with(
            [self.daily_dumps(), self.customers_root()],
            &["daily", date],
            options,
        )
    }

    fn create_platform_schema(&self) -> Result<()> {
        self.mariadb.sql(&format!(
            "CREATE DATABASE {PLATFORM_SCHEMA} CHARACTER SET utf8mb4;
             CREATE USER {PLATFORM_USER}@'%' IDENTIFIED BY '{}';
             GRANT ALL ON *.* TO {PLATFORM_USER}@'%' WITH GRANT OPTION;
             USE {PLATFORM_SCHEMA};
             CREATE TABLE servers (
                 id INT AUTO_INCREMENT PRIMARY KEY,
                 name VARCHAR(64) NOT NULL UNIQUE,
                 hostname VARCHAR(255) NOT NULL,
                 status ENUM('active','maintenance','offline') NOT NULL DEFAULT 'active',
                 redis_queue_name VARCHAR(64),
                 last_heartbeat TIMESTAMP NULL
             );
             INSERT INTO servers (name, hostname) VALUES ('default', 'localhost');
             CREATE TABLE customers (
                 id INT AUTO_INCREMENT PRIMARY KEY,
                 email VARCHAR(255) NOT NULL UNIQUE,
                 password_hash VARCHAR(255) NOT NULL,
                 company_name VARCHAR(255) NOT NULL,
                 domain VARCHAR(255) NOT NULL,
                 platform ENUM('woocommerce','magento') NOT NULL,
                 status ENUM('pending','provisioning','active','suspended','failed') NOT NULL DEFAULT 'pending',
                 web_port INT UNIQUE,
                 server_id INT,
                 db_name VARCHAR(64),
                 db_user VARCHAR(64),
                 db_password VARCHAR(255),
                 created_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP
             );",
            self.platform_password
        ))?;
        Ok(())
    }

    fn write_configuration(&self) -> Result<()> {
        let scratch = self.scratch.path();
        let mut text = format!(
            "[database]\nurl = \"mysql://{PLATFORM_USER}:{password}@127.0.0.1:{port}/{PLATFORM_SCHEMA}\"\n\n\
             [worker]\nstate_dir = {state:?}\n\n\
             [customers]\nroot = {root:?}\n\n\
             [customer_database]\nhost = \"127.0.0.1\"\nport = {port}\nuser = \"{PLATFORM_USER}\"\npassword_env = \"DB_PASSWORD\"\n\
             daily_dump_path = \"{dumps}/{{database}}.sql\"\n\n\
             [site]\nstop = []\nstart = []\nnginx = []\n",
            password = self.platform_password,
            port = self.mariadb.port(),
            state = scratch.join("state"),
            root = self.customers_root(),
            dumps = self.daily_dumps().display(),
        );
        let repositories = [
            ("manual", self.manual_repository(), &self.manual_password),
            ("daily", self.daily_repository(), &self.daily_password),
        ];
        for (name, directory, password) in repositories {
            let password_file = scratch.join(format!("{name}-repository-password"));
            write_secret(&password_file, password)?;
            text += &format!(
                "\n[repositories.{name}]\nlocation = {:?}\npassword_file = {password_file:?}\nssh_key = {:?}\nknown_hosts = {:?}\n",
                self.sshd.location(&directory),
                self.sshd.client_key(),
                self.sshd.known_hosts(),
            );
        }
        write_secret(&self.config_file(), &text)
    }

    fn wordpress_configuration(&self, customer: &Customer) -> String {
        let Customer {
            database,
            user,
            password,
            ..
        } = customer;
        format!(
            "<?php\ndefine('DB_NAME', '{database}');\ndefine('DB_USER', '{user}');\ndefine('DB_PASSWORD', '{password}');\n\
             define('DB_HOST', '127.0.0.1:{}');\ndefine('DB_CHARSET', 'utf8mb4');\ndefine('DB_COLLATE', '');\n\
             $table_prefix = 'wp_';\nif (!defined('ABSPATH')) {{\n    define('ABSPATH', __DIR__ . '/');\n}}\n\
             require_once ABSPATH . 'wp-settings.php';\n",
            self.mariadb.port()
        )
    }
}

fn random_password() -> String {
    format!("{:032x}", rand::random::<u128>())
}

fn write_secret(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text)?;
    Ok(fs::set_permissions(path, Permissions::from_mode(0o600))?)
}

/// Run a program to its end; what it printed.
fn run(command: &mut Command) -> Result<Vec<u8>> {
    let output = command.stdin(Stdio::null()).output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!(
            "{} failed ({}): {}",
            command.get_program().to_string_lossy(),
            output.status,
            said.trim()
        );
    }
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::{TreeImage, assert_same_tree};

    #[test]
    fn a_shop_is_real_and_the_daily_backup_holds_every_customer() {
        let bed = TestBed::start().unwrap();
        let shop = bed.add_wordpress_customer(1, 20, 4).unwrap();
        let small = bed.add_customer(12).unwrap();

        let posts = bed
            .sql_as(
                &shop,
                "SELECT COUNT(*) FROM wp_posts WHERE post_type = 'post'",
            )
            .unwrap();
        assert_eq!(posts, "21\n", "WordPress's own first post and ours");
        assert!(TreeImage::of(&shop.site()).unwrap().entries() > 2500);
        assert!(
            shop.site()
                .join("wp-content/uploads/2024/01/product-000.png")
                .exists()
        );
        assert!(
            bed.table_checksums(&shop.database)
                .unwrap()
                .contains("shop_orders\t200\t")
        );
        let other = bed.sql_as(&small, "SELECT COUNT(*) FROM customer_1.wp_posts");
        assert!(other.unwrap_err().to_string().contains("denied"));

        let id = bed.back_up_daily("2026-01-31").unwrap();
        let restic = bed.daily_restic().unwrap();
        let target = bed.scratch().join("target");
        restic.restore(&id, &target).unwrap();
        assert_same_tree(
            bed.customers_root(),
            target.join(bed.customers_root().strip_prefix("/").unwrap()),
        );
        let dump = bed.daily_dumps().join("customer_12.sql");
        assert_eq!(
            restic.dump(&id, dump.to_str().unwrap()).unwrap(),
            fs::read(&dump).unwrap()
        );
    }

    #[test]
    fn restic_reaches_the_backup_server() {
        let bed = TestBed::start().unwrap();
        let restic = bed
            .restic_over_sftp(&bed.manual_repository(), "a password")
            .unwrap();
        restic.init().unwrap();
        assert!(bed.manual_repository().join("config").exists());
    }

    #[test]
    fn nothing_is_left_behind() {
        let bed = TestBed::start().unwrap();
        let scratch = bed.scratch().to_owned();
        drop(bed);
        assert!(!scratch.exists());
    }
}
