//! The program among its servers, as an operator has it: run it, and compare everything that it could have changed.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use serde_json::Value;
use xtask::mariadb::MariaDb;
use xtask::testbed::{Customer, PLATFORM_SCHEMA, PLATFORM_USER, TestBed};
use xtask::tree::TreeImage;

/// Longer than anything here takes on a busy machine.
const DEADLINE: Duration = Duration::from_secs(120);

/// How often a condition is looked at again.
const PAUSE: Duration = Duration::from_millis(5);

#[track_caller]
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "never happened: {what}");
        std::thread::sleep(PAUSE);
    }
}

pub struct World {
    /// Where the customers' database server is one of their containers.
    container: Option<Container>,
    pub bed: TestBed,
    pub customers: Vec<Customer>,
    hooks: PathBuf,
}

/// How a command ended.
#[derive(Debug)]
pub struct Outcome {
    pub status: Option<i32>,
    pub document: Value,
    stderr: String,
}

impl Outcome {
    #[track_caller]
    pub fn good(self) -> Value {
        assert_eq!(self.status, Some(0), "{}", self.stderr);
        self.document
    }

    /// The one sentence that it failed with; with status 1 unless it was the command line that was wrong.
    #[track_caller]
    pub fn failed(self, status: i32) -> String {
        assert_eq!(self.status, Some(status), "{}", self.stderr);
        assert_eq!(self.document["success"], false, "{self:?}");
        let error = self.document["error"].as_str().expect("no sentence");
        assert!(!error.is_empty());
        error.to_owned()
    }
}

impl World {
    /// These customers, each with a small shop; both repositories.
    pub fn new(ids: &[u32]) -> Self {
        Self::on(TestBed::start().unwrap(), ids)
    }

    pub fn on(bed: TestBed, ids: &[u32]) -> Self {
        let hooks = bed.scratch().join("hooks");
        fs::create_dir(&hooks).unwrap();
        let customers = ids.iter().map(|id| bed.add_customer(*id).unwrap());
        let world = Self {
            customers: customers.collect(),
            hooks,
            container: None,
            bed,
        };
        for customer in &world.customers {
            world.fill(customer);
        }
        world
            .bed
            .init(env!("CARGO_BIN_EXE_shophosting-backup"))
            .unwrap();
        world
    }

    /// These customers, whose database server is one of their containers: it can be reached by programs that are run inside alone, and only while
    /// the site runs.
    pub fn in_container(ids: &[u32]) -> Self {
        let mut world = Self::new(ids);
        world.container = Some(Container::of(&world.bed, &world.hooks));
        world
    }

    pub fn customer(&self, id: u32) -> &Customer {
        self.customers.iter().find(|one| one.id == id).unwrap()
    }

    /// A bit of everything that a schema can hold, and a few files.
    fn fill(&self, customer: &Customer) {
        let id = customer.id;
        self.sql_as(
            customer,
            &format!(
                "CREATE TABLE orders (id INT AUTO_INCREMENT PRIMARY KEY, total DECIMAL(10,2), note TEXT, raw VARBINARY(16));
                 CREATE TABLE order_lines (order_id INT, line INT, article VARCHAR(40), PRIMARY KEY (order_id, line),
                     FOREIGN KEY (order_id) REFERENCES orders (id) ON DELETE CASCADE);
                 CREATE TABLE audit (what TEXT);
                 INSERT INTO orders (total, note, raw) SELECT seq, CONCAT('shop {id}; ü ☃ ''', seq), UNHEX(MD5(seq)) FROM seq_1_to_50;
                 INSERT INTO order_lines SELECT seq, 1, 'shirt' FROM seq_1_to_50;
                 CREATE VIEW revenue AS SELECT SUM(total) AS total FROM orders;
                 CREATE PROCEDURE count_orders(OUT n INT) SELECT COUNT(*) INTO n FROM orders;
                 CREATE TRIGGER leave_trace AFTER UPDATE ON orders FOR EACH ROW INSERT INTO audit VALUES (CONCAT('changed ', NEW.id));
                 CREATE EVENT tidy ON SCHEDULE EVERY 1 DAY DO DELETE FROM audit;"
            ),
        );
        let site = customer.site();
        fs::create_dir_all(site.join("wp-content/uploads")).unwrap();
        fs::write(site.join("marker"), format!("shop {id}\n")).unwrap();
        for number in 0..5 {
            let picture = site.join(format!("wp-content/uploads/{number}.jpg"));
            fs::write(picture, format!("{id}-{number} ").repeat(30_000)).unwrap();
        }
        chown(&site, 33);
    }

    #[track_caller]
    pub fn sql_as(&self, customer: &Customer, sql: &str) -> String {
        self.bed.sql_as(customer, sql).unwrap()
    }

    #[track_caller]
    pub fn sql(&self, sql: &str) -> String {
        self.bed.mariadb().sql(sql).unwrap()
    }

    /// The program, ready for this line of words, with a site that can be stopped and started.
    pub fn command(&self, line: &str) -> Command {
        let mut command = self.bed.product(env!("CARGO_BIN_EXE_shophosting-backup"));
        command.arg("--json").args(line.split_whitespace());
        let script = self.hooks.join("site.sh");
        if !script.exists() {
            let hooks = self.hooks.display();
            let text = format!(
                "maintenance=off\n[ -f .maintenance ] && maintenance=on\n\
                 echo \"$1, maintenance $maintenance, $(cat wordpress/marker)\" >> '{hooks}/log'\n\
                 if [ -e '{hooks}/fail-'$1 ]; then rm '{hooks}/fail-'$1; echo 'the containers do not listen' >&2; exit 7; fi"
            );
            xtask::script::write(&script, &text).unwrap();
        }
        for action in ["stop", "start"] {
            let array = format!("[{:?}, {action:?}]", script.display().to_string());
            command.env(format!("BACKUP__SITE__{}", action.to_uppercase()), array);
        }
        if let Some(container) = &self.container {
            container.configure(&self.bed, &mut command);
        }
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// The next stop (or start) of a site fails.
    pub fn let_fail(&self, action: &str) {
        fs::write(self.hooks.join(format!("fail-{action}")), "").unwrap();
    }

    /// The stops and starts since the last call.
    pub fn stops_and_starts(&self) -> Vec<String> {
        let log = self.hooks.join("log");
        let text = fs::read_to_string(&log).unwrap_or_default();
        let _ = fs::remove_file(&log);
        text.lines().map(str::to_owned).collect()
    }

    #[track_caller]
    pub fn run(&self, line: &str) -> Outcome {
        self.run_command(&mut self.command(line))
    }

    #[track_caller]
    pub fn run_command(&self, command: &mut Command) -> Outcome {
        self.finish(command.spawn().unwrap())
    }

    /// Wait for its end; nothing that it said may hold a secret.
    #[track_caller]
    pub fn finish(&self, child: Child) -> Outcome {
        let output = child.wait_with_output().unwrap();
        let stdout = String::from_utf8(output.stdout).unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        for secret in self.secrets() {
            assert!(
                !stdout.contains(&secret) && !stderr.contains(&secret),
                "a secret is in what the program said"
            );
        }
        let document = match stdout.trim() {
            "" => Value::Null,
            text => serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}")),
        };
        Outcome {
            status: output.status.code(),
            document,
            stderr,
        }
    }

    /// Everything that must never be seen.
    pub fn secrets(&self) -> Vec<String> {
        let mut secrets = vec![
            self.bed.platform_password().to_owned(),
            self.bed.mariadb().root_password().to_owned(),
        ];
        secrets.extend(self.customers.iter().map(|one| one.password.clone()));
        for name in ["manual", "daily"] {
            let file = format!("{name}-repository-password");
            let password = fs::read_to_string(self.bed.scratch().join(file)).unwrap();
            secrets.push(password.trim().to_owned());
        }
        let key = fs::read_to_string(self.bed.sshd().client_key()).unwrap();
        secrets.extend(key.lines().nth(2).map(str::to_owned));
        secrets
    }

    /// Back up; the id.
    #[track_caller]
    pub fn back_up(&self, line: &str) -> String {
        let document = self.run(&format!("backup {line}")).good();
        document["snapshot_id"].as_str().unwrap().to_owned()
    }

    /// The ids of a customer's backups in one of the lists.
    #[track_caller]
    pub fn listed(&self, customer: u32, list: &str) -> Vec<String> {
        let document = self.run(&format!("list {customer}")).good();
        let entries = document[list].as_array().unwrap();
        let ids = entries.iter().map(|entry| entry["id"].as_str().unwrap());
        ids.map(str::to_owned).collect()
    }

    /// A daily snapshot of the present files, and of a customer's present dump with a change to it.
    #[track_caller]
    pub fn daily_with(&self, customer: &Customer, change: impl FnOnce(String) -> String) -> String {
        let dump = self.bed.dump(&customer.database).unwrap();
        // What is no text in a column is hexadecimal in the dump.
        let dump = change(String::from_utf8(dump).unwrap());
        let file = self
            .bed
            .daily_dumps()
            .join(format!("{}.sql", customer.database));
        fs::write(file, dump).unwrap();
        self.daily()
    }

    /// A daily snapshot of what is in its directories now.
    pub fn daily(&self) -> String {
        let directories = [self.bed.daily_dumps(), self.bed.customers_root()];
        let restic = self.bed.daily_restic().unwrap();
        restic
            .backup(directories, &["daily", "2026-01-31"])
            .unwrap()
    }

    /// SQL on the platform's own schema.
    #[track_caller]
    pub fn platform_sql(&self, sql: &str) -> String {
        let platform = self.container.as_ref().map(|container| &container.platform);
        let server = platform.unwrap_or(self.bed.mariadb());
        server.sql(&format!("USE shophosting_db; {sql}")).unwrap()
    }

    pub fn evidence(&self) -> Evidence {
        // A container that is started need not be up yet.
        eventually("the database server is up", || {
            self.container.is_none() || self.bed.mariadb().sql("SELECT 1").is_ok()
        });
        let mut files = BTreeMap::new();
        for customer in &self.customers {
            files.insert(customer.id, TreeImage::of(&customer.directory).unwrap());
        }
        let mut databases = BTreeMap::new();
        for name in self.sql("SHOW DATABASES").lines() {
            let is_data =
                !["mysql", "information_schema", "performance_schema", "sys"].contains(&name);
            if is_data {
                databases.insert(name.to_owned(), self.bed.dump(name).unwrap());
            }
        }
        // Not what they logged in with last.
        let accounts = self.sql(
            "SELECT Host, User, JSON_REMOVE(Priv, '$.password_last_changed') FROM mysql.global_priv ORDER BY 1, 2;
             SELECT * FROM mysql.db ORDER BY Host, Db, User; SELECT * FROM mysql.tables_priv; SELECT * FROM mysql.procs_priv;",
        );
        Evidence {
            files,
            databases,
            accounts,
        }
    }

    /// Everything in the world is as it was, and nothing of a restore is left anywhere.
    #[track_caller]
    pub fn assert_unchanged(&self, before: &Evidence) {
        let changes = before.changes(&self.evidence());
        assert!(changes.is_empty(), "{}", changes.join("\n"));
        self.assert_nothing_left();
    }

    /// No maintenance, no staging directory, no schema, no lock.
    #[track_caller]
    pub fn assert_nothing_left(&self) {
        for customer in &self.customers {
            assert!(!self.in_maintenance(customer), "maintenance is still on");
        }
        assert_eq!(self.staging_directories(), [] as [PathBuf; 0]);
        assert_eq!(self.schemas_beside(), [] as [String; 0]);
        for repository in [self.bed.manual_repository(), self.bed.daily_repository()] {
            assert_eq!(names(&repository.join("locks")), [] as [PathBuf; 0]);
        }
    }

    pub fn in_maintenance(&self, customer: &Customer) -> bool {
        customer.directory.join(".maintenance").exists()
    }

    pub fn staging_directories(&self) -> Vec<PathBuf> {
        let mut names = names(&self.bed.customers_root().join(".shophosting-backup"));
        // The locks of customers stay.
        names.retain(|name| name.extension().is_none_or(|it| it != "lock"));
        names
    }

    /// The schemas that restores made.
    pub fn schemas_beside(&self) -> Vec<String> {
        let names = self.sql("SHOW DATABASES LIKE 'customer\\_%\\_\\_re%'");
        names.lines().map(str::to_owned).collect()
    }
}

/// A database server that is stopped and started with a site. The platform has one of its own then.
struct Container {
    platform: MariaDb,
    socket: PathBuf,
    hook: PathBuf,
}

/// The program of `site.stop` and `site.start`.
const CONTAINER_HOOK: &str = "<?php
$container = stream_socket_client('unix://' . $argv[1]);
fwrite($container, $argv[2] . \"\\n\");
exit(stream_get_contents($container) === 'done' ? 0 : 1);
";

impl Container {
    fn of(bed: &TestBed, hooks: &Path) -> Self {
        let platform = MariaDb::start().unwrap();
        let schema = [
            format!(
                "CREATE USER {PLATFORM_USER}@'%' IDENTIFIED BY '{}';
                 GRANT ALL ON *.* TO {PLATFORM_USER}@'%' WITH GRANT OPTION;
                 CREATE DATABASE {PLATFORM_SCHEMA}; USE {PLATFORM_SCHEMA};\n",
                bed.platform_password()
            )
            .into_bytes(),
            bed.dump(PLATFORM_SCHEMA).unwrap(),
        ];
        platform.sql_bytes(&schema.concat()).unwrap();
        let hook = hooks.join("container.php");
        fs::write(&hook, CONTAINER_HOOK).unwrap();
        let socket = hooks.join("container.sock");
        let asked = UnixListener::bind(&socket).unwrap();
        let power = bed.mariadb().power();
        std::thread::spawn(move || {
            for connection in asked.incoming() {
                let mut connection = connection.unwrap();
                let mut action = String::new();
                BufReader::new(&connection).read_line(&mut action).unwrap();
                match action.as_str() {
                    "stop\n" => power.off().unwrap(),
                    "start\n" => {}
                    // The end of the world.
                    _ => return,
                }
                // Who asked may have been killed.
                let _ = connection.write_all(b"done");
                drop(connection);
                // As `docker compose up -d` does it: whoever needs the server has to wait for it.
                if action == "start\n" {
                    power.on().unwrap();
                }
            }
        });
        Self {
            platform,
            socket,
            hook,
        }
    }

    fn configure(&self, bed: &TestBed, command: &mut Command) {
        for action in ["stop", "start"] {
            let array = [
                "php".into(),
                self.hook.display().to_string(),
                self.socket.display().to_string(),
                action.to_owned(),
            ];
            command.env(
                format!("BACKUP__SITE__{}", action.to_uppercase()),
                format!("{array:?}"),
            );
        }
        let url = format!(
            "mysql://{PLATFORM_USER}:{}@127.0.0.1:{}/{PLATFORM_SCHEMA}",
            bed.platform_password(),
            self.platform.port()
        );
        // Programs in a container are nobody on the host.
        let exec = "[\"setpriv\", \"--reuid=nobody\", \"--regid=nogroup\", \"--clear-groups\"]";
        command
            .env("BACKUP__DATABASE__URL", url)
            .env("BACKUP__CUSTOMER_DATABASE__EXEC", exec);
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let ended = UnixStream::connect(&self.socket).map(drop);
        assert!(ended.is_ok() || std::thread::panicking());
    }
}

/// What could be changed: the directories of all customers, all schemas, all accounts and rights.
#[derive(Clone)]
pub struct Evidence {
    files: BTreeMap<u32, TreeImage>,
    databases: BTreeMap<String, Vec<u8>>,
    accounts: String,
}

impl Evidence {
    /// What differs, a line each. The time of a customer's own directory does not count: the maintenance file changes it.
    pub fn changes(&self, after: &Self) -> Vec<String> {
        let mut lines = Vec::new();
        for (id, before) in &self.files {
            let differences = before.differences(&after.files[id]);
            let differences = differences
                .iter()
                .filter(|line| !line.starts_with("\"\": modified"));
            lines.extend(differences.map(|line| format!("customer {id}: {line}")));
        }
        for name in self.databases.keys().chain(after.databases.keys()) {
            if self.databases.get(name) != after.databases.get(name) {
                let [old, new] = [self, after].map(|one| lines_of(one.databases.get(name)));
                let differs = |line: &&String, other: &[String]| !other.contains(line);
                let gone = old.iter().find(|line| differs(line, &new));
                let added = new.iter().find(|line| differs(line, &old));
                lines.push(format!("the database {name}: {gone:?} became {added:?}"));
            }
        }
        if self.accounts != after.accounts {
            lines.push(format!(
                "accounts and rights:\n{}\ninstead of\n{}",
                after.accounts, self.accounts
            ));
        }
        lines
    }

    /// Nothing differs but what begins with one of these.
    #[track_caller]
    pub fn assert_same_but(&self, after: &Self, beginnings: &[&str]) {
        let mut changes = self.changes(after);
        changes.retain(|line| !beginnings.iter().any(|begin| line.starts_with(begin)));
        assert!(changes.is_empty(), "{}", changes.join("\n"));
    }

    /// Nothing differs but what is this customer's.
    #[track_caller]
    pub fn assert_others_same(&self, after: &Self, customer: &Customer) {
        self.assert_same_but(
            after,
            &[
                &format!("customer {}:", customer.id),
                &format!("the database {}", customer.database),
            ],
        );
    }
}

fn lines_of(dump: Option<&Vec<u8>>) -> Vec<String> {
    let text = String::from_utf8_lossy(dump.map_or(&[], Vec::as_slice));
    text.lines().map(str::to_owned).collect()
}

/// Holds an import up at the statement [`Gate::STATEMENT`] of its dump, until it is dropped.
pub struct Gate {
    session: Child,
    stdin: Option<ChildStdin>,
}

impl Gate {
    pub const STATEMENT: &'static str = "DO GET_LOCK('the gate', 600);\n";

    pub fn close(world: &World) -> Self {
        let mariadb = world.bed.mariadb();
        let mut session = Command::new("mariadb")
            .args(["--no-defaults", "--user=root", "--batch"])
            .arg(format!("--socket={}", mariadb.socket().display()))
            .env("MYSQL_PWD", mariadb.root_password())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut stdin = session.stdin.take().unwrap();
        stdin
            .write_all(b"SELECT GET_LOCK('the gate', 600);\n")
            .unwrap();
        let gate = Self {
            session,
            stdin: Some(stdin),
        };
        eventually("the gate is closed", || {
            world.sql("SELECT IS_USED_LOCK('the gate')") != "NULL\n"
        });
        gate
    }

    /// Let go of it without the server, which is about to be gone.
    pub fn lose(mut self) {
        let _ = self.session.kill();
    }

    /// Wait until an import stands before the gate.
    pub fn wait_for_import(&self, world: &World) {
        eventually("an import comes to the gate", || {
            world.sql(
                "SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE STATE = 'User lock' AND (DB LIKE '%restore%' OR DB LIKE '%proof%')",
            ) != "0\n"
        });
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.stdin = None;
        let _ = self.session.wait();
    }
}

/// Put something behind the first table of a dump, where the dump is half done.
pub fn half_way(dump: &str, something: &str) -> String {
    let at = dump.find("UNLOCK TABLES;\n").unwrap() + "UNLOCK TABLES;\n".len();
    format!("{}{something}{}", &dump[..at], &dump[at..])
}

pub fn signal(child: &Child, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

pub fn chown(path: &Path, id: u32) {
    let done = Command::new("chown")
        .args(["-hR", &format!("{id}:{id}")])
        .arg(path)
        .status();
    assert!(done.unwrap().success());
}

pub fn names(directory: &Path) -> Vec<PathBuf> {
    match fs::read_dir(directory) {
        Ok(list) => list.map(|entry| entry.unwrap().path()).collect(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => panic!("{}: {error}", directory.display()),
    }
}
