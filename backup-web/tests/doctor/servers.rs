//! What is broken at the servers: accounts that lack a right, other families, hosts that are not who they were, a web server without the rule.

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use xtask::mariadb::MariaDb;
use xtask::port;
use xtask::redis::Redis;
use xtask::sshd::{Sshd, make_key};
use xtask::testbed::{Customer, PLATFORM_SCHEMA, TestBed};

use crate::diagnosis::{Patient, listing};

/// The tables that an account of the platform's database has to be let write to.
const OUR_TABLES: [&str; 11] = [
    "customer_backup_jobs",
    "customer_backups",
    "backup_snapshots",
    "backup_repositories",
    "backup_repository_users",
    "backup_proofs",
    "backup_sessions",
    "backup_audit",
    "backup_notifications",
    "backup_notification_counts",
    "backup_migrations",
];

struct World {
    bed: TestBed,
    shop: Customer,
}

impl World {
    /// A shop with all that a schema can have, both repositories, and nothing to complain about.
    fn new() -> Self {
        let bed = TestBed::start().unwrap();
        let shop = bed.add_customer(1).unwrap();
        bed.sql_as(
            &shop,
            "CREATE TABLE orders (id INT PRIMARY KEY, note TEXT); INSERT INTO orders VALUES (1, 'one');
             CREATE VIEW notes AS SELECT note FROM orders;
             CREATE PROCEDURE p() SELECT 1;
             CREATE TRIGGER t BEFORE INSERT ON orders FOR EACH ROW SET NEW.note = TRIM(NEW.note);
             CREATE EVENT e ON SCHEDULE EVERY 1 DAY DO DELETE FROM orders WHERE id = 0;",
        )
        .unwrap();
        let world = Self { bed, shop };
        world.sql("SET GLOBAL max_allowed_packet = 67108864");
        for line in ["init", "migrate"] {
            let output = world.product().args(line.split(' ')).output().unwrap();
            assert!(output.status.success(), "{output:?}");
        }
        world.bed.back_up_daily("2026-01-31").unwrap();
        world
    }

    #[track_caller]
    fn sql(&self, sql: &str) -> String {
        self.bed.mariadb().sql(sql).unwrap()
    }

    /// An account with these grants and the platform's password.
    fn account(&self, name: &str, grants: &[&str]) {
        let word = self.bed.platform_password();
        self.sql(&format!("CREATE USER {name}@'%' IDENTIFIED BY '{word}'"));
        for grant in grants {
            let (rights, option) = grant
                .split_once(" WITH ")
                .map_or((*grant, ""), |(rights, _)| (rights, "WITH GRANT OPTION"));
            self.sql(&format!("GRANT {rights} TO {name}@'%' {option}"));
        }
    }

    /// The platform's database, by this account.
    fn platform_as(&self, name: &str) -> String {
        let (word, port) = (self.bed.platform_password(), self.bed.mariadb().port());
        format!("mysql://{name}:{word}@127.0.0.1:{port}/{PLATFORM_SCHEMA}")
    }

    /// All that a doctor could leave behind.
    fn evidence(&self) -> (String, BTreeSet<(PathBuf, u64)>) {
        let schemas = self.sql(
            "SHOW DATABASES; SELECT User, Host FROM mysql.user ORDER BY 1, 2; SELECT Db, User FROM mysql.db ORDER BY 1, 2",
        );
        let tables = self.bed.table_checksums(PLATFORM_SCHEMA).unwrap();
        let shop = self.bed.table_checksums(&self.shop.database).unwrap();
        (schemas + &tables + &shop, listing(self.bed.scratch()))
    }
}

impl Patient for World {
    fn product(&self) -> Command {
        let mut command = self.bed.product(env!("CARGO_BIN_EXE_shophosting-backup"));
        command
            .env("BACKUP__SERVER__PUBLIC_URL", "https://backups.example")
            .env("BACKUP__REPOSITORIES__MANUAL__RETRY_FOR", "2s")
            .env("BACKUP__REPOSITORIES__DAILY__RETRY_FOR", "2s");
        command
    }

    fn secrets(&self) -> Vec<&str> {
        vec![self.bed.platform_password(), &self.shop.password]
    }
}

#[test]
fn what_the_accounts_at_the_database_servers_lack_is_told_and_nothing_is_left() {
    let world = World::new();
    let right_of_all =
        |right: &str| OUR_TABLES.map(|table| format!("{right} ON {PLATFORM_SCHEMA}.{table}"));
    let mut narrow = vec![format!("SELECT ON {PLATFORM_SCHEMA}.customers")];
    narrow.extend(right_of_all("SELECT, INSERT, DELETE"));
    narrow.extend(
        right_of_all("UPDATE")
            .into_iter()
            .filter(|grant| !grant.ends_with(".customer_backups")),
    );
    let narrow: Vec<&str> = narrow.iter().map(String::as_str).collect();
    world.account("narrow", &narrow);
    world.account(
        "reader",
        &["SELECT, SHOW VIEW, EVENT, LOCK TABLES ON `customer\\_1`.*"],
    );
    world.account(
        "no_events",
        &["SELECT, SHOW VIEW, TRIGGER ON `customer\\_1`.*"],
    );
    world.account(
        "no_accounts",
        &[
            "ALL ON `customer\\_1%`.* WITH GRANT OPTION",
            "SELECT ON mysql.*",
            "PROCESS, CONNECTION ADMIN, SET USER ON *.*",
        ],
    );
    let before = world.evidence();

    let good = world.doctor();
    good.has_nothing_to_say();
    good.finds("customer_database import", &["came back whole"])
        .finds("repositories.manual writing", &["removed"])
        .finds("repositories.daily age", &["0 h ago"])
        .finds("clock of the platform database", &[])
        .finds("repositories.manual clock", &[]);
    assert_eq!(world.evidence(), before);

    let url = world.platform_as("narrow");
    let keys = [("DATABASE__URL", url.as_str())];
    world.doctor_with(&keys).fails(
        "rights in the platform database",
        &["UPDATE on customer_backups", "SELECT on servers"],
    );
    // A clock of its own, for accounts that are no administrators.
    world.sql("SET GLOBAL init_connect = 'SET timestamp = UNIX_TIMESTAMP() + 3600'");
    let ahead = world.doctor_with(&keys);
    world.sql("SET GLOBAL init_connect = 'SET timestamp = UNIX_TIMESTAMP() - 60'");
    let behind = world.doctor_with(&keys);
    world.sql("SET GLOBAL init_connect = ''");
    ahead.fails("clock of the platform database", &["s ahead of"]);
    behind.warns("clock of the platform database", &["s behind"]);
    let stranger = world.platform_as("stranger");
    world
        .doctor_with(&[("DATABASE__URL", &stranger)])
        .fails("platform database", &["refuses the account"]);
    let elsewhere = world
        .platform_as("shophosting_app")
        .replace(PLATFORM_SCHEMA, "customer_1");
    world
        .doctor_with(&[("DATABASE__URL", &elsewhere)])
        .fails("platform database", &["no table `customers`"]);

    let migrations = format!("{PLATFORM_SCHEMA}.backup_migrations");
    let newest = world.sql(&format!("SELECT MAX(version) FROM {migrations}"));
    let newest = newest.trim();
    world.sql(&format!(
        "UPDATE {migrations} SET success = FALSE WHERE version = {newest}"
    ));
    world
        .doctor()
        .fails("platform tables", &["this program needs version"]);
    world.sql(&format!(
        "UPDATE {migrations} SET success = TRUE, version = version + 100 WHERE version = {newest}"
    ));
    world
        .doctor()
        .fails("platform tables", &["no more than version"]);
    world.sql(&format!(
        "UPDATE {migrations} SET version = {newest} WHERE version = {newest} + 100"
    ));

    let database = "database of customer 1";
    let reader = world.doctor_with(&[("CUSTOMER_DATABASE__USER", "reader")]);
    reader
        .warns(database, &["may not see triggers"])
        .warns(database, &["may not see routines"])
        .fails("customer_database import", &["cannot be made"]);
    for right in ["CREATE USER", "PROCESS", "CONNECTION ADMIN", "SET USER"] {
        reader.warns("customer_database rights", &[right]);
    }
    world
        .doctor_with(&[("CUSTOMER_DATABASE__USER", "no_events")])
        .fails(database, &["denies something"]);
    // The first is the database of a customer, whatever it is called.
    let customers = format!("{PLATFORM_SCHEMA}.customers");
    world.sql(&format!(
        "CREATE DATABASE customer_9__proof_00000000; CREATE DATABASE customer_9__proof_0123abcd; CREATE DATABASE customer_9__proof_of_work;
         INSERT INTO {customers} (id, email, password_hash, company_name, domain, platform, status, server_id, db_name)
         VALUES (9, 'nine@example', '', '', '', 'magento', 'suspended', 1, 'customer_9__proof_00000000')"
    ));
    world.doctor().warns(
        "customer_database scratch schemas",
        &["proofs: customer_9__proof_0123abcd"],
    );
    world.sql(&format!(
        "DELETE FROM {customers} WHERE id = 9; DROP DATABASE customer_9__proof_00000000;
         DROP DATABASE customer_9__proof_0123abcd; DROP DATABASE customer_9__proof_of_work"
    ));
    // Then a dump is imported as the customer himself.
    world
        .doctor_with(&[("CUSTOMER_DATABASE__USER", "no_accounts")])
        .warns("customer_database rights", &["CREATE USER"])
        .finds("customer_database import", &["came back whole"]);
    world
        .doctor_with(&[("CUSTOMER_DATABASE__USER", "stranger")])
        .fails(database, &["denies something"]);
    world.sql(&format!("UPDATE {customers} SET db_password = 'x'"));
    world
        .doctor()
        .fails(database, &["his own account cannot log in"]);
    world.sql(&format!(
        "UPDATE {customers} SET db_password = '{}', db_name = 'a/b'",
        world.shop.password
    ));
    world.doctor().warns("customer 1", &["db_name"]);
    world.sql(&format!("UPDATE {customers} SET db_name = 'none_such'"));
    world.doctor().fails(database, &["no database none_such"]);
    world.sql(&format!("UPDATE {customers} SET db_name = 'customer_1'"));
    world.sql("SET GLOBAL max_allowed_packet = 16777216");
    world
        .doctor()
        .warns("customer_database max_allowed_packet", &["16 MiB", "8 MiB"]);
    world.sql("SET GLOBAL max_allowed_packet = 67108864");
    let port = port::free().unwrap().to_string();
    world
        .doctor_with(&[("CUSTOMER_DATABASE__PORT", &port)])
        .fails(database, &["cannot be reached"]);

    world.doctor().has_nothing_to_say();
    assert_eq!(world.evidence(), before);
}

#[test]
fn programs_that_do_not_fit_the_database_server_are_told() {
    let world = World::new();
    world.sql(&format!(
        "INSERT INTO {PLATFORM_SCHEMA}.customers (id, email, password_hash, company_name, domain, platform, status, server_id, db_name)
         VALUES (2, 'two@example', '', '', '', 'magento', 'suspended', 1, 'Customer_1')"
    ));
    world.doctor().has_nothing_to_say();
    // What a server says of itself decides. Where case says nothing, two names are one.
    for version in ["8.0.40", "99.1.2-MariaDB"] {
        let options = [
            format!("--version={version}"),
            "--lower-case-table-names=1".to_owned(),
        ];
        let other = MariaDb::start_with(&options.each_ref().map(String::as_str)).unwrap();
        let word = world.bed.platform_password();
        other
            .sql(&format!(
                "CREATE DATABASE customer_1; CREATE USER shophosting_app@'%' IDENTIFIED BY '{word}';
                 GRANT ALL ON *.* TO shophosting_app@'%' WITH GRANT OPTION"
            ))
            .unwrap();
        let port = other.port().to_string();
        let told = world.doctor_with(&[("CUSTOMER_DATABASE__PORT", &port)]);
        told.fails("customer 2", &["customer 1 has the same database"]);
        match version.contains("MariaDB") {
            true => told.warns("customer_database programs", &["older", version]),
            false => told.fails(
                "customer_database programs",
                &["of the other family", version],
            ),
        };
        assert_eq!(
            other.sql("SHOW DATABASES LIKE 'customer%'").unwrap(),
            "customer_1\n"
        );
    }
}

#[test]
fn what_is_broken_at_the_backup_server_and_at_redis_is_told() {
    let mut world = World::new();
    let manual = "repositories.manual";
    let restricted =
        Sshd::start_with(&["ForceCommand internal-sftp -P posix-rename,fsync,statvfs"]).unwrap();
    let (location, key, known) = (
        restricted.location(&world.bed.manual_repository()),
        restricted.client_key(),
        restricted.known_hosts(),
    );
    world
        .doctor_with(&[
            ("REPOSITORIES__MANUAL__LOCATION", &location),
            ("REPOSITORIES__MANUAL__SSH_KEY", key.to_str().unwrap()),
            ("REPOSITORIES__MANUAL__KNOWN_HOSTS", known.to_str().unwrap()),
        ])
        .warns("repositories.manual writing", &["posix-rename@openssh.com"])
        .warns("repositories.manual writing", &["fsync@openssh.com"])
        .finds("repositories.manual space", &["does not tell"]);
    // The other server's key at the address of this one.
    let changed = world.bed.scratch().join("changed");
    let line = format!(
        "[127.0.0.1]:{} {}",
        world.bed.sshd().port(),
        restricted.host_key().unwrap()
    );
    fs::write(&changed, line).unwrap();
    world
        .doctor_with(&[(
            "REPOSITORIES__MANUAL__KNOWN_HOSTS",
            changed.to_str().unwrap(),
        )])
        .fails(manual, &["CHANGED"]);
    let nobodys = world.bed.scratch().join("nobodys");
    make_key(&nobodys).unwrap();
    world
        .doctor_with(&[("REPOSITORIES__MANUAL__SSH_KEY", nobodys.to_str().unwrap())])
        .fails(manual, &["key"]);
    chmod(&world.bed.config_file(), 0o644);
    world.doctor().warns("configuration", &["holds a password"]);
    chmod(&world.bed.config_file(), 0o600);

    let mut redis = Redis::start().unwrap();
    let url = redis.url();
    let keys = [("QUEUE__REDIS_URL", url.as_str())];
    let queue = "queue.redis_url";
    let told = world.doctor_with(&keys);
    told.does_not_show(redis.password()).has_nothing_to_say();
    redis.command(&["RPUSH", "backups", "7"]).unwrap();
    world.doctor_with(&keys).has_nothing_to_say();
    assert_eq!(redis.command(&["KEYS", "*"]).unwrap(), "backups");
    assert_eq!(
        redis.command(&["LRANGE", "backups", "0", "-1"]).unwrap(),
        "7"
    );
    redis
        .command(&["SET", "backups", "something else"])
        .unwrap();
    world
        .doctor_with(&keys)
        .fails(queue, &["no list but a string"]);
    redis.command(&["DEL", "backups"]).unwrap();
    redis
        .command(&["ACL", "SETUSER", "default", "-blpop"])
        .unwrap();
    world.doctor_with(&keys).fails(queue, &["refuses wake-ups"]);
    let wrong = format!("redis://:wrong@127.0.0.1:{}", redis.port());
    world
        .doctor_with(&[("QUEUE__REDIS_URL", &wrong)])
        .fails(queue, &["Redis at"]);
    redis.kill();
    world
        .doctor_with(&keys)
        .fails(queue, &["cannot be reached"]);

    world.bed.sshd_mut().stop();
    world.doctor().fails(manual, &["cannot connect"]);
}

#[test]
fn a_restore_that_was_killed_is_told_until_it_is_recovered() {
    let world = World::new();
    let run = |line: &str, die_at: Option<&str>| {
        let mut command = world.product();
        command.args(line.split(' '));
        if let Some(point) = die_at {
            command.env("SHOPHOSTING_BACKUP_DIE_AT", point);
        }
        command.output().unwrap()
    };
    let backup = run("--json backup 1", None);
    let backup: serde_json::Value = serde_json::from_slice(&backup.stdout).unwrap();
    let restore = format!(
        "restore 1 {} --yes",
        backup["snapshot_id"].as_str().unwrap()
    );
    assert_eq!(run(&restore, Some("in exchange")).status.code(), None);
    let told = world.doctor();
    told.fails("interrupted restores", &["customer 1", "exchange"]);
    // The journal tells it all.
    assert!(!told.complaints().contains("site of customer 1"));
    assert!(run("recover", None).status.success());
    let told = world.doctor();
    told.finds("interrupted restores", &["none"]);
    assert!(!told.complaints().contains("site of customer 1"));
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// A web server in front of the shop, in its own directory.
struct Nginx {
    dir: PathBuf,
    port: u16,
    broken_port: u16,
    running: Option<Child>,
}

impl Nginx {
    /// With a shop that answers with an error.
    fn new(dir: PathBuf) -> Self {
        fs::create_dir(&dir).unwrap();
        Self {
            dir,
            port: port::free().unwrap(),
            broken_port: port::free().unwrap(),
            running: None,
        }
    }

    fn file(&self) -> PathBuf {
        self.dir.join("nginx.conf")
    }

    /// The configuration, with this in the shop's server.
    fn configure(&self, shop: &str) {
        let dir = self.dir.display();
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("{kind}_temp_path {dir}/{kind};\n"))
            .concat();
        let text = format!(
            "daemon off;\nmaster_process off;\npid {dir}/pid;\nerror_log {dir}/error.log;\nevents {{}}\n\
             http {{\naccess_log off;\n{temporary}server {{ listen 127.0.0.1:{}; server_name shop-1.example;\n{shop}\n}}\n\
             server {{ listen 127.0.0.1:{}; return 500; }}\n}}\n",
            self.port, self.broken_port
        );
        fs::write(self.file(), text).unwrap();
    }

    /// The value of `site.nginx`.
    fn words(&self) -> String {
        let (dir, file) = (self.dir.display(), self.file());
        format!(
            "['nginx', '-p', '{dir}', '-e', '{dir}/error.log', '-c', '{}']",
            file.display()
        )
    }

    fn start(&mut self) {
        self.stop();
        let running = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "nginx", "-p"])
            .arg(&self.dir)
            .arg("-e")
            .arg(self.dir.join("error.log"))
            .arg("-c")
            .arg(self.file())
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        self.running = Some(running.unwrap());
        let deadline = Instant::now() + Duration::from_secs(60);
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            assert!(Instant::now() < deadline, "nginx does not start");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn stop(&mut self) {
        if let Some(mut running) = self.running.take() {
            let _ = running.kill();
            let _ = running.wait();
        }
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        self.stop();
    }
}

#[test]
fn whether_nginx_would_show_the_maintenance_page_is_found_out_without_closing_a_site() {
    let world = World::new();
    let mut nginx = Nginx::new(world.bed.scratch().join("nginx"));
    let name = "maintenance page of customer 1";
    let page = nginx.dir.join("__maintenance.html");
    let deployed = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/nginx");
    fs::copy(deployed.join("__maintenance.html"), &page).unwrap();
    chmod(&page, 0o644);
    let snippet = fs::read_to_string(deployed.join("shophosting-maintenance.conf")).unwrap();
    let snippet = snippet.replace("/usr/share/shophosting-backup", nginx.dir.to_str().unwrap());
    fs::write(nginx.dir.join("maintenance.conf"), snippet).unwrap();
    let rule_for = |directory: &Path| {
        format!(
            "set $shop_directory {};\nset $shop_port 9;\ninclude maintenance.conf;",
            directory.display()
        )
    };
    let (rule, words) = (rule_for(&world.shop.directory), nginx.words());
    let keys = [("SITE__NGINX", words.as_str())];

    nginx.configure(&rule);
    world.doctor_with(&keys).fails(name, &["does not answer"]);
    nginx.start();
    let good = world.doctor_with(&keys);
    good.has_nothing_to_say();
    good.finds(name, &["in effect"]);
    chmod(&page, 0o600);
    world
        .doctor_with(&keys)
        .fails(name, &["cannot read the maintenance page"]);
    fs::remove_file(&page).unwrap();
    world
        .doctor_with(&keys)
        .fails(name, &["there is no maintenance page"]);
    fs::write(&page, "<h1>back soon</h1>").unwrap();
    chmod(&page, 0o644);
    let health = format!("http://127.0.0.1:{}/", nginx.broken_port);
    world
        .doctor_with(&[("SITE__HEALTH_URL", &health)])
        .warns("site.health_url of customer 1", &["error 500"]);

    // Another's directory; a rule without a page; no rule; a rule that the running nginx does not know yet.
    nginx.configure(&rule_for(
        &world.shop.directory.with_file_name("customer-12"),
    ));
    world
        .doctor_with(&keys)
        .fails(name, &["no server of nginx asks for"]);
    let file = world.shop.directory.join(".maintenance");
    nginx.configure(&format!(
        "location / {{ if (-f {}) {{ return 503; }} return 200; }}",
        file.display()
    ));
    world
        .doctor_with(&keys)
        .fails(name, &["no page for the status 503"]);
    nginx.configure("location / { return 200; }");
    world
        .doctor_with(&keys)
        .fails(name, &["no server of nginx asks for"]);
    nginx.start();
    nginx.configure(&rule);
    world
        .doctor_with(&keys)
        .fails(name, &["does not act on it"]);
    nginx.start();
    world.doctor_with(&keys).finds(name, &["in effect"]);

    nginx.configure("nonsense on;");
    world.doctor_with(&keys).fails("site.nginx", &["nginx"]);
    world
        .doctor_with(&[("SITE__NGINX", "['no-such-nginx']")])
        .warns("site.nginx", &["no program no-such-nginx"]);
    assert!(!file.exists());
}
