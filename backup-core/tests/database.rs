//! Databases dumped from and restored into a real server.

use std::io::Read;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

use backup_core::database::{
    self, Dump, Endpoint, ImportAccount, Inventory, Replaced, Server, Shadow,
};
use backup_core::error::{Error, ErrorKind};
use backup_core::progress::{Cancel, Control, Monitor};
use secrecy::SecretString;
use xtask::mariadb::MariaDb;
use xtask::mount::Mount;

const LIMIT: Duration = Duration::from_secs(120);

static MARIADB: LazyLock<MariaDb> =
    LazyLock::new(|| MariaDb::start_with(&["--event-scheduler=ON"]).unwrap());

fn socket() -> Endpoint {
    Endpoint::Socket(MARIADB.socket())
}

fn server_as(user: &str, password: &str) -> Server {
    Server::new(socket(), Vec::new(), user, SecretString::from(password))
}

fn server() -> Server {
    server_as("root", MARIADB.root_password())
}

/// The server through a prefix.
fn server_through(exec: &[&str]) -> Server {
    let exec = exec.iter().map(|&arg| arg.to_owned()).collect();
    Server::new(
        socket(),
        exec,
        "root",
        SecretString::from(MARIADB.root_password()),
    )
}

/// The server with an account that has the rights that it needs for the restores of `tenant`, but may not create accounts.
fn server_without_accounts(tenant: &Tenant) -> Server {
    let (name, pattern) = (tenant.name, tenant.name.replace('_', "\\_"));
    sql(&format!(
        "CREATE USER for_{name}@localhost IDENTIFIED BY '{PASSWORD}';
         GRANT ALL ON `{pattern}`.* TO for_{name}@localhost WITH GRANT OPTION;
         GRANT ALL ON `{pattern}\\_\\_re%`.* TO for_{name}@localhost WITH GRANT OPTION;
         GRANT SELECT ON mysql.* TO for_{name}@localhost;
         GRANT PROCESS, CONNECTION ADMIN, SET USER ON *.* TO for_{name}@localhost;"
    ));
    server_as(&format!("for_{name}"), PASSWORD)
}

/// A monitor that keeps the warnings, and lets nobody count the bytes of a dump, which its reader counts.
#[derive(Default)]
struct Warnings(Mutex<Vec<String>>);

impl Monitor for Warnings {
    fn bytes_done(&self, bytes: u64) {
        panic!("{bytes} bytes of a dump would be counted twice");
    }

    fn warning(&self, text: &str) {
        self.0.lock().unwrap().push(text.to_owned());
    }
}

impl Warnings {
    fn text(&self) -> String {
        self.0.lock().unwrap().join("\n")
    }
}

fn control() -> (Control, Arc<Warnings>) {
    let warnings = Arc::new(Warnings::default());
    let control = Control {
        monitor: Arc::clone(&warnings) as Arc<dyn Monitor>,
        ..Control::default()
    };
    (control, warnings)
}

fn quiet() -> Control {
    control().0
}

fn sql(sql: &str) -> String {
    MARIADB.sql(sql).unwrap()
}

fn dump_of(database: &str) -> Vec<u8> {
    try_dump(&server(), database, LIMIT, &quiet()).unwrap()
}

fn try_dump(
    server: &Server,
    database: &str,
    limit: Duration,
    control: &Control,
) -> Result<Vec<u8>, Error> {
    read_whole(database::dump(server, database, limit, control)?)
}

fn read_whole(mut dump: Dump) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    let read = dump.take_reader().unwrap().read_to_end(&mut bytes);
    let finished = dump.finish();
    assert_eq!(
        read.is_err(),
        finished.is_err(),
        "the reader and the end agree"
    );
    assert_eq!(finished?.bytes, bytes.len() as u64);
    Ok(bytes)
}

#[track_caller]
fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A session of its own that holds what it holds until it is dropped.
struct Session(std::process::Child);

impl Session {
    fn open(sql: &str) -> Self {
        Self::open_as("root", MARIADB.root_password(), sql)
    }

    fn open_as(user: &str, password: &str, sql: &str) -> Self {
        let child = std::process::Command::new("mariadb")
            .args(["--no-defaults", "--user", user, "--execute"])
            .arg(format!("{sql}; SELECT SLEEP(1000)"))
            .arg(format!("--socket={}", MARIADB.socket().display()))
            .env("MYSQL_PWD", password)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        Self(child)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// A schema with a table of some megabytes, so that a dump of it cannot be over before it is looked at.
fn large_schema(name: &str) {
    sql(&format!(
        "CREATE DATABASE {name}; USE {name}; CREATE TABLE t (id INT PRIMARY KEY, x LONGTEXT);
         INSERT INTO t SELECT seq, REPEAT('x', 100000) FROM seq_1_to_200;"
    ));
}

#[test]
fn an_unchanged_database_gives_the_same_dump_again() {
    sql("CREATE DATABASE same; CREATE TABLE same.t (id INT); INSERT INTO same.t VALUES (1), (2);");
    let dump = dump_of("same");
    assert!(dump.ends_with(b"-- Dump completed\n"));
    assert_eq!(dump, dump_of("same"));
}

#[test]
fn a_database_that_does_not_exist_is_not_found() {
    let error = try_dump(&server(), "no_such_database", LIMIT, &quiet()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error:?}");
    assert!(error.to_string().contains("no_such_database"), "{error}");
}

#[test]
fn a_wrong_password_is_refused_and_stays_out_of_the_error() {
    let endpoint = Endpoint::Host {
        host: "127.0.0.1".to_owned(),
        port: Some(MARIADB.port()),
    };
    let server = Server::new(
        endpoint,
        Vec::new(),
        "root",
        SecretString::from("wr0ng-p4ssword"),
    );
    let error = try_dump(&server, "mysql", LIMIT, &quiet()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused, "{error:?}");
    assert!(!error.chain().contains("wr0ng"), "{error:?}");
}

#[test]
fn a_server_that_is_not_there_is_unreachable() {
    let endpoint = Endpoint::Socket("/no/such/my.sock".into());
    let server = Server::new(endpoint, Vec::new(), "root", SecretString::from("x"));
    let error = try_dump(&server, "x", LIMIT, &quiet()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error:?}");
}

#[test]
fn what_is_told_of_a_server_is_what_it_says() {
    let ask = |what: &str| sql(&format!("SELECT @@GLOBAL.{what}")).trim().to_owned();
    let facts = database::facts(&server(), &Cancel::new()).unwrap();
    let timeout: u64 = ask("net_write_timeout").parse().unwrap();
    assert_eq!(facts.write_timeout, Duration::from_secs(timeout));
    assert_eq!(
        facts.max_allowed_packet.to_string(),
        ask("max_allowed_packet")
    );
    assert_eq!(facts.server, ask("version"));
    assert!(!facts.names_ignore_case && !facts.is_program_older);
    assert!(facts.missing_rights.is_empty(), "{facts:?}");
}

#[test]
fn a_trial_of_dump_and_import_leaves_no_schema_and_removes_what_killed_ones_left() {
    let list = || sql("SHOW DATABASES LIKE 'tried%'");
    sql("CREATE DATABASE tried; CREATE TABLE tried.t (a INT); INSERT INTO tried.t VALUES (1)");
    let before = list();
    database::try_dump(&server(), "tried", LIMIT, &quiet()).unwrap();
    let account = ImportAccount::Temporary;
    database::try_restore(&server(), "tried", &account, LIMIT, &quiet()).unwrap();
    assert_eq!(list(), before);
    assert_eq!(sql("SELECT * FROM tried.t"), "1\n");

    // What a trial that was killed left goes with the next one, once it is surely nobody's.
    sql(
        "CREATE DATABASE tried__trial_00c0ffee; CREATE DATABASE tried__trial_00c0ffee7;
         CREATE DATABASE tried__trial_1111abcd; CREATE TABLE tried__trial_1111abcd.of_now (a INT)",
    );
    database::try_restore(&server(), "tried", &account, LIMIT, &quiet()).unwrap();
    let left = sql("SHOW DATABASES LIKE 'tried\\_%'");
    assert_eq!(left, "tried__trial_00c0ffee7\ntried__trial_1111abcd\n");
}

#[test]
fn of_scratch_schemas_just_what_was_made_is_removed_by_its_name_alone() {
    let server = server();
    sql("CREATE DATABASE proven_1");
    let name = database::proof_name("proven_1");
    let of = |name: &str| sql(&format!("SHOW DATABASES LIKE '{name}'"));
    // One of this name is there already, with somebody's data.
    sql(&format!(
        "CREATE DATABASE {name}; CREATE TABLE {name}.t (id INT)"
    ));
    database::prepare_proof(&server, "proven_1", &name, &quiet()).unwrap_err();
    database::remove_proof(&server, &name, false).unwrap();
    assert_eq!(sql(&format!("SHOW TABLES FROM {name}")), "t\n");
    sql(&format!("DROP DATABASE {name}"));

    // As a grant has it, where `_` would stand for any letter.
    let rights = |name: &str| {
        let pattern = name.replace('_', "\\\\_");
        sql(&format!(
            "SELECT COUNT(*) FROM mysql.db WHERE Db = '{pattern}'"
        ))
    };
    for is_made in [false, true] {
        let name = database::proof_name("proven_1");
        database::prepare_proof(&server, "proven_1", &name, &quiet()).unwrap();
        assert_eq!(rights(&name), "1\n");
        let there = database::scratch_schemas(&server, &Cancel::new());
        assert!(there.unwrap().contains(&name));
        if is_made {
            sql(&format!("CREATE TABLE {name}.imported (id INT)"));
        }
        // That it is gone already is fine.
        for _ in 0..2 {
            database::remove_proof(&server, &name, is_made).unwrap();
            assert_eq!((of(&name).as_str(), rights(&name).as_str()), ("", "0\n"));
        }
    }
    let error = database::remove_proof(&server, "proven_1", true).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert_eq!(of("proven\\_1"), "proven_1\n");

    // Where names are kept in lower case.
    let other = MariaDb::start_with(&["--lower-case-table-names=1"]).unwrap();
    let word = SecretString::from(other.root_password());
    let server = Server::new(Endpoint::Socket(other.socket()), Vec::new(), "root", word);
    let name = database::proof_name("Proven_1");
    let mut scratch = database::prepare_proof(&server, "Proven_1", &name, &quiet()).unwrap();
    let dump = format!("CREATE TABLE `t` (id INT);{TRAILER}");
    let dump = Box::new(std::io::Cursor::new(dump));
    let found = database::import_for_proof(&server, &mut scratch, dump, LIMIT, &quiet());
    assert_eq!(found.unwrap().len(), 1);
    database::remove_proof(&server, &name, true).unwrap();
    assert_eq!(other.sql("SHOW DATABASES LIKE '%proof%'").unwrap(), "");
}

#[test]
fn passwords_of_any_characters_work_by_file_and_by_environment() {
    let password = "a b#c\"d'e\\f;g\tä$(h)";
    sql(&format!(
        "CREATE DATABASE anyword; CREATE TABLE anyword.t (i INT); CREATE USER anyword@localhost IDENTIFIED BY '{}';
         GRANT ALL ON anyword.* TO anyword@localhost;",
        password.replace('\\', "\\\\").replace('\'', "''")
    ));
    for exec in [Vec::new(), vec!["env".to_owned(), "--".to_owned()]] {
        let server = Server::new(socket(), exec, "anyword", SecretString::from(password));
        try_dump(&server, "anyword", LIMIT, &quiet()).unwrap();
    }
}

#[test]
fn a_connection_cut_half_way_gives_an_error_and_no_end() {
    large_schema("cut");
    let mut dump = database::dump(&server(), "cut", LIMIT, &quiet()).unwrap();
    let mut reader = dump.take_reader().unwrap();
    reader.read_exact(&mut [0; 4096]).unwrap();
    let find = "SELECT ID FROM information_schema.PROCESSLIST WHERE DB = 'cut'";
    eventually("the dump's connection is seen", || !sql(find).is_empty());
    sql(&format!("KILL {}", sql(find).trim()));
    assert!(reader.read_to_end(&mut Vec::new()).is_err());
    let error = dump.finish().unwrap_err();
    assert!(error.chain().contains("exit status 3"), "{error:?}");
}

#[test]
fn the_deadline_ends_a_dump_that_hangs() {
    sql("CREATE DATABASE hangs; CREATE TABLE hangs.t (i INT);");
    let _locker = Session::open("LOCK TABLES hangs.t WRITE");
    eventually("the table is locked", || {
        !sql("SHOW OPEN TABLES FROM hangs WHERE In_use > 0").is_empty()
    });
    let started = Instant::now();
    let error = try_dump(&server(), "hangs", Duration::from_secs(1), &quiet()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error:?}");
    assert!(started.elapsed() < Duration::from_secs(60));
}

#[test]
fn an_event_that_would_hang_the_dump_program_is_named_at_once() {
    sql(
        "CREATE DATABASE semicolons; CREATE TABLE semicolons.t (i INT);
         CREATE EVENT semicolons.bad ON SCHEDULE EVERY 1 DAY DO SET @a = ';;';",
    );
    let error = try_dump(&server(), "semicolons", LIMIT, &quiet()).unwrap_err();
    assert!(error.to_string().contains("the event bad"), "{error:?}");
}

#[test]
fn cancelling_ends_a_dump() {
    large_schema("cancelled");
    let control = quiet();
    let mut dump = database::dump(&server(), "cancelled", LIMIT, &control).unwrap();
    let mut reader = dump.take_reader().unwrap();
    reader.read_exact(&mut [0; 100]).unwrap();
    control.cancel.cancel();
    assert!(reader.read_to_end(&mut Vec::new()).is_err());
    assert_eq!(dump.finish().unwrap_err().kind(), ErrorKind::Cancelled);
}

#[test]
fn dropping_a_dump_ends_its_program() {
    large_schema("dropped");
    let mut dump = database::dump(&server(), "dropped", LIMIT, &quiet()).unwrap();
    let mut reader = dump.take_reader().unwrap();
    reader.read_exact(&mut [0; 100]).unwrap();
    drop(dump);
    assert!(reader.read_to_end(&mut Vec::new()).is_err());
}

#[test]
fn a_dump_that_was_not_read_to_its_end_is_not_whole() {
    sql("CREATE DATABASE unread; CREATE TABLE unread.t (i INT);");
    let mut dump = database::dump(&server(), "unread", LIMIT, &quiet()).unwrap();
    dump.take_reader()
        .unwrap()
        .read_exact(&mut [0; 100])
        .unwrap();
    dump.finish().unwrap_err();
}

/// Dump with a dump program that behaves as told.
fn dump_with_program(behaviour: &str) -> Error {
    sql("CREATE DATABASE IF NOT EXISTS programs");
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("mariadb-dump");
    let script = format!(
        "case \"$*\" in *--version*) exec /usr/bin/mariadb-dump \"$@\";; esac\n{behaviour}"
    );
    xtask::script::write(&program, &script).unwrap();
    let path = format!("PATH={}:/usr/bin:/bin", dir.path().display());
    try_dump(
        &server_through(&["env", &path]),
        "programs",
        LIMIT,
        &quiet(),
    )
    .unwrap_err()
}

#[test]
fn a_dump_program_that_prints_nothing_fails() {
    let error = dump_with_program("exit 0");
    assert_eq!(error.kind(), ErrorKind::Damaged, "{error:?}");
    assert!(error.to_string().contains("is empty"), "{error}");
}

#[test]
fn a_dump_without_its_last_line_fails() {
    let error = dump_with_program("echo 'CREATE TABLE t (i INT);'; exit 0");
    assert!(error.to_string().contains("cut off"), "{error}");
}

#[test]
fn a_dump_program_that_fails_after_its_last_line_fails() {
    let error = dump_with_program("echo '-- Dump completed'; echo 'went wrong' >&2; exit 3");
    assert!(error.chain().contains("went wrong"), "{error:?}");
}

#[test]
fn missing_client_programs_are_a_clear_configuration_error() {
    let server = server_through(&["env", "PATH=/nonexistent"]);
    let error = try_dump(&server, "mysql", LIMIT, &quiet()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Configuration, "{error:?}");
    assert!(error.to_string().contains("mariadb-dump"), "{error}");
    let error = try_dump(
        &server_through(&["no-docker-here"]),
        "mysql",
        LIMIT,
        &quiet(),
    )
    .unwrap_err();
    assert!(
        error.chain().contains("no-docker-here was not found"),
        "{error:?}"
    );
}

#[test]
fn what_the_account_cannot_see_is_told() {
    sql(
        "CREATE DATABASE blind; CREATE TABLE blind.t (i INT); CREATE PROCEDURE blind.p() SELECT 1;
         CREATE USER blind@localhost IDENTIFIED BY 'x';
         GRANT SELECT, SHOW VIEW, EVENT, LOCK TABLES ON blind.* TO blind@localhost;",
    );
    let server = server_as("blind", "x");
    let (control, warnings) = control();
    let dump = try_dump(&server, "blind", LIMIT, &control).unwrap();
    assert!(
        !String::from_utf8_lossy(&dump).contains("PROCEDURE"),
        "the server hides it without a word"
    );
    assert!(
        warnings.text().contains("SELECT ON mysql.proc"),
        "{}",
        warnings.text()
    );
    assert!(
        warnings.text().contains("GRANT TRIGGER"),
        "{}",
        warnings.text()
    );
    sql(
        "GRANT SELECT ON mysql.proc TO blind@localhost; GRANT TRIGGER ON blind.* TO blind@localhost",
    );
    let (control, warnings) = self::control();
    let dump = try_dump(&server, "blind", LIMIT, &control).unwrap();
    assert!(String::from_utf8_lossy(&dump).contains("PROCEDURE"));
    assert_eq!(warnings.text(), "");
}

// Restores.

/// A customer with a schema and an account of his own.
struct Tenant {
    name: &'static str,
}

const PASSWORD: &str = "t3nant-passw0rd";

impl Tenant {
    fn new(name: &'static str) -> Self {
        sql(&format!(
            "CREATE DATABASE {name}; CREATE USER {name}@'%' IDENTIFIED BY '{PASSWORD}';
             GRANT ALL ON `{}`.* TO {name}@'%';",
            name.replace('_', "\\_")
        ));
        Self { name }
    }

    fn account(&self) -> ImportAccount {
        ImportAccount::Customer {
            user: self.name.to_owned(),
            password: SecretString::from(PASSWORD),
        }
    }

    /// Run SQL in his schema as himself.
    fn sql(&self, sql: &str) {
        use std::io::Write;
        let mut client = std::process::Command::new("mariadb")
            .args(["--no-defaults", "--batch", "--comments", "--binary-mode"])
            .args(["--user", self.name, "--database", self.name])
            .arg(format!("--socket={}", MARIADB.socket().display()))
            .env("MYSQL_PWD", PASSWORD)
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        client
            .stdin
            .take()
            .unwrap()
            .write_all(sql.as_bytes())
            .unwrap();
        assert!(client.wait().unwrap().success());
    }

    fn dump(&self) -> Vec<u8> {
        dump_of(self.name)
    }

    /// Restore as `account`; everything but what was replaced is cleaned up.
    fn restore_as(
        &self,
        account: &ImportAccount,
        dump: &[u8],
        control: &Control,
    ) -> Result<(Inventory, Replaced), Error> {
        self.restore_on(&server(), account, dump, control)
    }

    fn restore_on(
        &self,
        server: &Server,
        account: &ImportAccount,
        dump: &[u8],
        control: &Control,
    ) -> Result<(Inventory, Replaced), Error> {
        let mut shadow = database::prepare_shadow(server, self.name, account, control)?;
        let restored = (|| {
            database::import(server, &mut shadow, reader(dump), LIMIT, control)?;
            let inventory = database::verify(server, &shadow, control)?;
            Ok((inventory, database::swap(server, &shadow, control)?))
        })();
        database::discard(server, self.name, shadow.schema())?;
        database::discard(server, self.name, shadow.schema())?;
        assert_eq!(
            sql(&format!(
                "SELECT User FROM mysql.global_priv WHERE User = CONCAT('shb_', LEFT(SHA2('{}', 256), 16))",
                shadow.schema()
            )),
            ""
        );
        restored
    }

    fn restore(&self, dump: &[u8]) -> Result<(Inventory, Replaced), Error> {
        self.restore_as(&self.account(), dump, &quiet())
    }

    /// No schema, right or account of ours is left.
    #[track_caller]
    fn assert_nothing_staged(&self) {
        let name = self.name;
        assert_eq!(sql(&format!("SHOW DATABASES LIKE '{name}\\_\\_re%'")), "");
        assert_eq!(
            sql(&format!(
                "SELECT Db FROM mysql.db WHERE User NOT IN ('{name}', 'for_{name}') AND Db LIKE '{name}%'"
            )),
            ""
        );
        assert_eq!(
            sql(&format!("SELECT Db FROM mysql.db WHERE User = '{name}'"))
                .lines()
                .count(),
            1
        );
    }
}

fn reader(dump: &[u8]) -> Box<dyn Read + Send> {
    Box::new(std::io::Cursor::new(dump.to_vec()))
}

/// One of everything that a dump can hold and that is hard to bring back.
fn fill(tenant: &Tenant) {
    tenant.sql(
        r#"
SET NAMES utf8mb4;
CREATE TABLE `posts` (id INT PRIMARY KEY AUTO_INCREMENT, title VARCHAR(200), body LONGTEXT, words INT AS (LENGTH(body) - LENGTH(REPLACE(body, ' ', '')) + 1) STORED,
  first CHAR(1) AS (LEFT(title, 1)) VIRTUAL, FULLTEXT (body)) CHARACTER SET utf8mb4;
INSERT INTO posts (title, body) VALUES ('a', 'one; two'), ('ü ☃ 😀', '-- three\nCREATE DEFINER=`somebody`@`localhost` x'), ('quote''s', 'DELIMITER ;;\nUSE `mysql`;\n\\! id');
CREATE TABLE every_byte (b BLOB, c CHAR(3) CHARACTER SET latin1, bits BIT(9), g GEOMETRY, j JSON) ENGINE=MyISAM;
INSERT INTO every_byte VALUES (UNHEX(CONCAT('000102030405060708090A0B0C0D0E0F1A1B5C27225C5C60FFFE80C0', HEX('\Z'))), 'äöü', b'101010101', ST_GeomFromText('POINT(1 2)'), '{"a": 1}');
CREATE TABLE aria_table (id INT) ENGINE=Aria; INSERT INTO aria_table VALUES (7);
CREATE TABLE `-- leading dash` (`a b` INT, `c``d` INT); INSERT INTO `-- leading dash` VALUES (1, 2);
CREATE TABLE `it's; ``quoted`` "x" tábla ☃` (id INT); INSERT INTO `it's; ``quoted`` "x" tábla ☃` VALUES (3);
CREATE TABLE `two
lines; \! id -- /* '"` (id INT); INSERT INTO `two
lines; \! id -- /* '"` VALUES (4);
CREATE TABLE hen (id INT PRIMARY KEY, egg INT); CREATE TABLE egg (id INT PRIMARY KEY, hen INT, FOREIGN KEY (hen) REFERENCES hen (id) ON DELETE CASCADE);
ALTER TABLE hen ADD FOREIGN KEY (egg) REFERENCES egg (id);
INSERT INTO hen VALUES (1, NULL); INSERT INTO egg VALUES (1, 1); UPDATE hen SET egg = 1;
CREATE TABLE parts (id INT, PRIMARY KEY (id)) PARTITION BY HASH (id) PARTITIONS 3; INSERT INTO parts VALUES (1), (2), (3);
CREATE SEQUENCE counter START WITH 5; SELECT NEXTVAL(counter);
CREATE TABLE audit (what VARCHAR(50));
CREATE VIEW z_base AS SELECT id, title FROM posts WHERE title <> 'ü';
CREATE VIEW a_on_top AS SELECT * FROM z_base;
CREATE VIEW counted AS SELECT COUNT(*) AS n FROM a_on_top;
CREATE SQL SECURITY INVOKER VIEW invoked AS SELECT 1 AS one;
DELIMITER $$
CREATE FUNCTION twice(x INT) RETURNS INT DETERMINISTIC COMMENT 'it''s; ;' RETURN x * 2$$
CREATE PROCEDURE many(OUT n INT)
BEGIN
  -- a comment; with ;; in it
  SELECT COUNT(*) INTO n FROM posts; /* and
  another */
END$$
SET sql_mode = 'ANSI_QUOTES,NO_BACKSLASH_ESCAPES,PIPES_AS_CONCAT'$$
CREATE PROCEDURE odd() SELECT '\' || 'x' AS "odd name"$$
SET sql_mode = 'ORACLE'$$
CREATE PACKAGE pack AS FUNCTION one RETURN INT; END$$
CREATE PACKAGE BODY pack AS FUNCTION one RETURN INT AS BEGIN RETURN 1; END; END$$
SET sql_mode = DEFAULT$$
CREATE TRIGGER second_one BEFORE INSERT ON audit FOR EACH ROW SET NEW.what = CONCAT(NEW.what, ' 1') /* note */ $$
CREATE TRIGGER first_one BEFORE INSERT ON audit FOR EACH ROW PRECEDES second_one SET NEW.what = CONCAT(NEW.what, ' 0')$$
CREATE EVENT hourly ON SCHEDULE EVERY 1 HOUR STARTS '2035-01-01 00:00:00' COMMENT 'DISABLE' DO BEGIN INSERT INTO audit VALUES ('event'); END$$
CREATE EVENT sleeping ON SCHEDULE EVERY 1 DAY STARTS '2035-01-01 00:00:00' DISABLE DO SET @a = 1$$
CREATE EVENT `odd ON COMPLETION name` ON SCHEDULE AT '2035-01-01 00:00:00' ON COMPLETION PRESERVE DO SET @a = 1$$
DELIMITER ;
CREATE VIEW uses_function AS SELECT twice(id) AS t FROM posts;
SET NAMES latin1;
CREATE PROCEDURE in_latin1() SELECT 'ä' AS a;
"#,
    );
}

fn checksums(tenant: &Tenant) -> String {
    tables(tenant.name)
        .iter()
        .map(|table| {
            sql(&format!(
                "CHECKSUM TABLE `{}`.`{}` EXTENDED",
                tenant.name,
                table.replace('`', "``")
            ))
        })
        .collect()
}

fn tables(schema: &str) -> Vec<String> {
    let rows = sql(&format!(
        "SELECT TABLE_NAME FROM information_schema.TABLES WHERE TABLE_SCHEMA = '{schema}' AND TABLE_TYPE <> 'VIEW' ORDER BY 1"
    ));
    rows.lines().map(str::to_owned).collect()
}

#[test]
fn a_restore_brings_back_exactly_what_the_dump_holds() {
    let tenant = Tenant::new("whole_1");
    fill(&tenant);
    let (dump, sums) = (tenant.dump(), checksums(&tenant));
    tenant.sql(
        "DROP TABLE parts; DELETE FROM posts; UPDATE hen SET egg = NULL; DELETE FROM egg; CREATE TABLE extra (id INT); CREATE VIEW extra_view AS SELECT 1; DROP VIEW counted;
         DROP PROCEDURE odd; CREATE PROCEDURE extra_procedure() SELECT 1; DROP TRIGGER first_one; DROP EVENT hourly;
         CREATE TRIGGER extra_trigger BEFORE INSERT ON extra FOR EACH ROW SET @a = 1; DROP TABLE aria_table; CREATE VIEW aria_table AS SELECT 1;
         CREATE EVENT extra_event ON SCHEDULE EVERY 1 HOUR DO SET @a = 1;",
    );
    let wrecked = tenant.dump();
    let (inventory, replaced) = tenant.restore(&dump).unwrap();
    assert_eq!(
        inventory,
        Inventory {
            tables: 11,
            views: 5,
            triggers: 2,
            routines: 6,
            events: 3
        }
    );
    assert_same(&tenant.dump(), &dump);
    assert_eq!(checksums(&tenant), sums);
    // The foreign keys work, and within the schema.
    tenant.sql("UPDATE hen SET egg = NULL; DELETE FROM hen; INSERT INTO audit VALUES ('x');");
    assert_eq!(
        sql(
            "SELECT COUNT(*) FROM whole_1.egg; SELECT what FROM whole_1.audit; SELECT NEXTVAL(whole_1.counter) > 5"
        ),
        "0\nx 0 1\n1\n"
    );

    // And back again.
    database::swap_back(&server(), &replaced, &tenant.account(), &quiet()).unwrap();
    assert_same(&tenant.dump(), &wrecked);
    tenant.assert_nothing_staged();
}

#[track_caller]
fn assert_same(now: &[u8], before: &[u8]) {
    if now != before {
        let (now, before) = (
            String::from_utf8_lossy(now),
            String::from_utf8_lossy(before),
        );
        let different = now
            .lines()
            .zip(before.lines())
            .find(|(now, before)| now != before);
        panic!(
            "the dumps differ, first in: {different:?}, {} and {} bytes",
            now.len(),
            before.len()
        );
    }
}

#[test]
fn without_an_account_of_the_customer_a_confined_one_is_used_and_stays_locked_as_definer() {
    let tenant = Tenant::new("noaccount_1");
    fill(&tenant);
    let dump = tenant.dump();
    let (control, warnings) = control();
    let (_, replaced) = tenant
        .restore_as(&ImportAccount::Temporary, &dump, &control)
        .unwrap();
    database::drop_replaced(&server(), &replaced, &quiet()).unwrap();
    database::drop_replaced(&server(), &replaced, &quiet()).unwrap();
    assert!(
        warnings
            .text()
            .contains("becomes the definer in place of noaccount_1@%"),
        "{}",
        warnings.text()
    );
    tenant.sql("INSERT INTO audit VALUES ('x'); SELECT * FROM counted; CALL many(@n);");
    let account = sql(
        "SELECT DISTINCT DEFINER FROM information_schema.VIEWS WHERE TABLE_SCHEMA = 'noaccount_1'",
    );
    let user = account.trim().strip_suffix("@%").unwrap();
    assert_eq!(
        sql(&format!(
            "SELECT JSON_VALUE(Priv, '$.account_locked') FROM mysql.global_priv WHERE User = '{user}'"
        )),
        "1\n"
    );
    assert_eq!(
        sql(&format!("SELECT Db FROM mysql.db WHERE User = '{user}'")),
        "noaccount\\\\_1\n"
    );
    // Restored again, from a dump with nothing that needs a definer, it goes.
    tenant.sql("DROP DATABASE noaccount_1; CREATE DATABASE noaccount_1; USE noaccount_1; CREATE TABLE t (i INT);");
    let (_, replaced) = tenant
        .restore_as(&ImportAccount::Temporary, &tenant.dump(), &quiet())
        .unwrap();
    database::drop_replaced(&server(), &replaced, &quiet()).unwrap();
    assert_eq!(
        sql(&format!(
            "SELECT COUNT(*) FROM mysql.global_priv WHERE User = '{user}'"
        )),
        "0\n"
    );
}

#[test]
fn foreign_definers_become_the_customer_and_come_back_when_a_swap_is_undone() {
    let tenant = Tenant::new("foreign_1");
    fill(&tenant);
    sql("USE foreign_1; CREATE VIEW roots AS SELECT 1 AS one; CREATE PROCEDURE roots() SELECT CURRENT_USER();
         CREATE TRIGGER roots AFTER INSERT ON posts FOR EACH ROW SET @a = 1 /* root's */;
         CREATE EVENT roots ON SCHEDULE EVERY 1 HOUR STARTS '2035-01-01 00:00:00' DO SET @a = 1;
         CREATE DEFINER = gone@nowhere FUNCTION ghost() RETURNS INT RETURN 1;");
    let before = tenant.dump();
    let (control, warnings) = control();
    let (_, replaced) = tenant
        .restore_as(&tenant.account(), &before, &control)
        .unwrap();
    assert!(
        warnings.text().contains("root@localhost"),
        "{}",
        warnings.text()
    );
    assert!(
        warnings.text().contains("gone@nowhere"),
        "{}",
        warnings.text()
    );
    let after = String::from_utf8_lossy(&tenant.dump()).into_owned();
    for line in after.lines() {
        assert!(
            !line.contains("DEFINER=`root`") && !line.contains("DEFINER=`gone`"),
            "{line}"
        );
    }
    assert_eq!(
        after,
        String::from_utf8_lossy(&before)
            .replace("`root`@`localhost`", "`foreign_1`@`%`")
            .replace("`gone`@`nowhere`", "`foreign_1`@`%`")
    );
    database::swap_back(&server(), &replaced, &tenant.account(), &quiet()).unwrap();
    assert_same(&tenant.dump(), &before);
}

/// A restore that must fail: the live schema is as it was and nothing is left.
#[track_caller]
fn assert_fails_clean(tenant: &Tenant, dump: &[u8]) -> Error {
    let before = tenant.dump();
    let error = tenant.restore(dump).unwrap_err();
    assert_same(&tenant.dump(), &before);
    tenant.assert_nothing_staged();
    error
}

const TRAILER: &str = "\n-- Dump completed\n";

#[test]
fn an_import_that_fails_half_way_leaves_the_live_schema_as_it_was() {
    let tenant = Tenant::new("halfway_1");
    fill(&tenant);
    let mut dump = tenant.dump();
    let at = dump
        .windows(9)
        .rposition(|window| window == b"-- Dump c")
        .unwrap();
    dump.splice(
        at..at,
        b"INSERT INTO no_such_table VALUES ('a secret row');\n"
            .iter()
            .copied(),
    );
    let error = assert_fails_clean(&tenant, &dump);
    assert!(error.chain().contains("1146"), "{error:?}");
    assert!(!error.chain().contains("secret row"), "{error:?}");
}

/// Tables of a few megabytes, so that each takes several statements of a dump, among what is hard to bring back.
fn fill_with_many_rows(tenant: &Tenant) {
    fill(tenant);
    tenant.sql(
        "CREATE TABLE large (id INT PRIMARY KEY, parent INT, body TEXT, KEY (body(20)), UNIQUE KEY (parent, id), FOREIGN KEY (parent) REFERENCES large (id));
         SET foreign_key_checks = 0; INSERT INTO large SELECT seq, 20001 - seq, REPEAT(SHA2(seq, 512), 2) FROM seq_1_to_20000; SET foreign_key_checks = 1;
         CREATE TABLE larger (a CHAR(32), b INT, body TEXT, PRIMARY KEY (a, b)); INSERT INTO larger SELECT MD5(body), id, body FROM large;
         CREATE TABLE no_order (id INT, body TEXT); INSERT INTO no_order SELECT 20001 - id, body FROM large;
         CREATE TABLE not_transactional (id INT PRIMARY KEY, body TEXT) ENGINE=Aria; INSERT INTO not_transactional SELECT id, body FROM large;
         CREATE TABLE written_by_trigger (id INT PRIMARY KEY);
         CREATE TRIGGER writes AFTER INSERT ON large FOR EACH ROW INSERT INTO written_by_trigger VALUES (NEW.id);",
    );
}

#[test]
fn rows_of_large_tables_come_back_whole_and_in_their_order() {
    let tenant = Tenant::new("many_rows_1");
    fill_with_many_rows(&tenant);
    let (dump, sums) = (tenant.dump(), checksums(&tenant));
    tenant.sql("DELETE FROM no_order; DROP TABLE larger; SET foreign_key_checks = 0; DELETE FROM large WHERE id % 2 = 0;");
    let wrecked = tenant.dump();
    let (_, replaced) = tenant.restore(&dump).unwrap();
    assert_same(&tenant.dump(), &dump);
    assert_eq!(checksums(&tenant), sums);
    assert_eq!(
        sql("SELECT COUNT(*) FROM many_rows_1.written_by_trigger"),
        "0\n"
    );
    database::swap_back(&server(), &replaced, &tenant.account(), &quiet()).unwrap();
    assert_same(&tenant.dump(), &wrecked);
    tenant.assert_nothing_staged();
}

#[test]
fn a_row_that_either_session_cannot_import_leaves_the_live_schema_as_it_was() {
    let tenant = Tenant::new("bad_row_1");
    fill_with_many_rows(&tenant);
    let dump = String::from_utf8(tenant.dump()).unwrap();
    let statements: Vec<usize> = dump
        .match_indices("INSERT INTO `large` VALUES\n")
        .map(|(at, _)| at)
        .collect();
    assert!(statements.len() > 4, "{}", statements.len());
    for at in &statements[1..4] {
        for (row, code) in [("(1,1,'a secret row')", "1062"), ("(1,1)", "1136")] {
            let (before, after) = dump.split_at(*at);
            let bad = format!("{before}INSERT INTO `large` VALUES\n{row};\n{after}");
            let error = assert_fails_clean(&tenant, bad.as_bytes());
            assert!(error.chain().contains(code), "{error:?}");
            assert!(!error.chain().contains("secret row"), "{error:?}");
        }
    }
}

#[test]
fn a_dump_that_is_cut_off_or_empty_is_refused() {
    let tenant = Tenant::new("cutoff_1");
    fill(&tenant);
    let dump = tenant.dump();
    for length in [0, 1, dump.len() / 2, dump.len() - 20] {
        let error = assert_fails_clean(&tenant, &dump[..length]);
        assert!(error.chain().contains("cut off"), "{length}: {error:?}");
    }
    let unclosed = format!("/* {TRAILER}");
    let error = assert_fails_clean(&tenant, unclosed.as_bytes());
    assert_eq!(error.kind(), ErrorKind::Damaged, "{error:?}");
}

#[test]
fn a_dump_that_cannot_be_read_to_its_end_is_refused() {
    struct Broken(bool);
    impl Read for Broken {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            if std::mem::replace(&mut self.0, true) {
                return Err(std::io::Error::other("the repository is gone"));
            }
            buffer[..16].copy_from_slice(b"CREATE TABLE t (");
            Ok(16)
        }
    }
    let tenant = Tenant::new("broken_1");
    let server = server();
    let mut shadow =
        database::prepare_shadow(&server, tenant.name, &tenant.account(), &quiet()).unwrap();
    let error = database::import(
        &server,
        &mut shadow,
        Box::new(Broken(false)),
        LIMIT,
        &quiet(),
    )
    .unwrap_err();
    assert!(
        error.chain().contains("the repository is gone"),
        "{error:?}"
    );
    assert_eq!(
        database::remove_leftovers(&server, tenant.name, &quiet()).unwrap(),
        [shadow.schema()]
    );
    tenant.assert_nothing_staged();
}

#[test]
fn cancelling_and_the_deadline_end_an_import() {
    let tenant = Tenant::new("endless_1");
    let server = server();
    for (limit, cancels, kind) in [
        (LIMIT, true, ErrorKind::Cancelled),
        (Duration::from_secs(1), false, ErrorKind::Timeout),
    ] {
        let control = quiet();
        let mut shadow =
            database::prepare_shadow(&server, tenant.name, &tenant.account(), &control).unwrap();
        let (cancel, name) = (control.cancel.clone(), shadow.schema().to_owned());
        std::thread::scope(|scope| {
            let import = scope.spawn(|| {
                let dump = format!("SELECT SLEEP(100);{TRAILER}");
                database::import(
                    &server,
                    &mut shadow,
                    reader(dump.as_bytes()),
                    limit,
                    &control,
                )
            });
            if cancels {
                let find = format!(
                    "SELECT 1 FROM information_schema.PROCESSLIST WHERE DB = '{name}' AND STATE = 'User sleep'"
                );
                eventually("it sleeps", || !sql(&find).is_empty());
                cancel.cancel();
            }
            let error = import.join().unwrap().unwrap_err();
            assert_eq!(error.kind(), kind, "{error:?}");
        });
        database::discard(&server, tenant.name, &name).unwrap();
        tenant.assert_nothing_staged();
    }
}

/// The schemas of others, as far as an attack would show.
fn state_of_others() -> String {
    sql("SELECT TABLE_SCHEMA, TABLE_NAME, CREATE_TIME FROM information_schema.TABLES WHERE TABLE_SCHEMA IN ('platform', 'mysql') ORDER BY 1, 2;
         SELECT * FROM platform.customers;
         SELECT Host, User, Priv FROM mysql.global_priv WHERE User IN ('root', 'attacker_1', 'victim_1') ORDER BY 1, 2;")
}

#[test]
fn a_hostile_dump_changes_nothing_outside_its_schema_and_runs_no_command() {
    let tenant = Tenant::new("attacker_1");
    sql("CREATE DATABASE platform; CREATE TABLE platform.customers (id INT, secret TEXT); INSERT INTO platform.customers VALUES (1, 'x');
         CREATE USER victim_1@localhost IDENTIFIED BY 'y';");
    let before = state_of_others();
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("host-secret"), "root:x\n").unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let evil = format!(
        ";; create table platform.pwned(i int) ;;\n\\! touch {0}\nsystem touch {0};\n insert into platform.customers values (2, 'y') ;;\n grant all on *.* to attacker_1@'%' ;;\n /*",
        path("pwned")
    );
    tenant.sql(&format!(
        "CREATE TABLE t (id INT);
         DELIMITER $$
         CREATE TRIGGER tr BEFORE INSERT ON t FOR EACH ROW set @a=1 /* x */ + length('*/ */ {evil}')$$
         CREATE PROCEDURE p() BEGIN /* x */ SELECT '*/ */ {evil}'; END$$
         CREATE FUNCTION f() RETURNS INT RETURN /* x */ LENGTH('*/ */ {evil}')$$
         CREATE VIEW v AS SELECT '*/ */ {evil}' AS evil$$"
    ).replace("'y'", "\"y\"").replace("'%'", "\"%\""));
    // As a customer's own dump holds it.
    let dump = tenant.dump();
    let _ = tenant.restore(&dump);
    assert_eq!(state_of_others(), before);
    assert!(!std::path::Path::new(&path("pwned")).exists());
    // Straight into the stream.
    for line in [
        evil.clone(),
        format!("\\! touch {}\n", path("pwned")),
        format!("system touch {};\n", path("pwned")),
        format!("tee {}\n", path("pwned")),
        format!("pager touch {}\nSELECT 1;\n", path("pwned")),
        format!("source {}\n", path("host-secret")),
        "CREATE TABLE platform.pwned (i INT);\n".to_owned(),
        "DELIMITER ;;\nCREATE EVENT e ON SCHEDULE EVERY 1 SECOND DO INSERT INTO platform.customers VALUES (3, 'z') ;;\nDELIMITER ;\n".to_owned(),
        "INSERT INTO platform.customers VALUES (2, 'y');\n".to_owned(),
        "GRANT ALL ON *.* TO attacker_1@'%';\n".to_owned(),
        "SET GLOBAL max_connections = 1;\n".to_owned(),
        format!("SELECT 1 INTO OUTFILE '{}';\n", path("pwned")),
        "CREATE DEFINER=`root`@`localhost` PROCEDURE r() INSERT INTO platform.customers VALUES (4, 'r'); CALL r();\n".to_owned(),
        "DELIMITER ;;\nCREATE DEFINER=`root`@`localhost` PROCEDURE r() INSERT INTO platform.customers VALUES (4, 'r') ;;\nCALL r() ;;\nDELIMITER ;\n".to_owned(),
    ] {
        let restored = tenant.restore(format!("CREATE TABLE `t2` (i INT);\n{line}{TRAILER}").as_bytes());
        assert_eq!(state_of_others(), before, "{line}: {restored:?}");
        assert!(!std::path::Path::new(&path("pwned")).exists(), "{line}");
    }
    // A file of this host must not come into a table of the customer's.
    let load = format!(
        "CREATE TABLE `loot` (x TEXT);\nLOAD DATA LOCAL INFILE '{}' INTO TABLE loot;\n{TRAILER}",
        path("host-secret")
    );
    tenant.restore(load.as_bytes()).unwrap_err();
    assert_eq!(state_of_others(), before);
}

#[test]
fn an_account_reaches_only_the_schema_it_was_given_and_none_with_a_name_alike() {
    let tenant = Tenant::new("wild_1");
    sql(
        "CREATE DATABASE wildX1; CREATE TABLE wildX1.t (i INT); CREATE DATABASE wild_1xxrestore_00000000; CREATE TABLE wild_1xxrestore_00000000.t (i INT);",
    );
    let server = server();
    for account in [tenant.account(), ImportAccount::Temporary] {
        let mut shadow =
            database::prepare_shadow(&server, tenant.name, &account, &quiet()).unwrap();
        for schema in ["wildX1", "wild_1xxrestore_00000000", "mysql"] {
            let dump = format!(
                "CREATE TABLE `t` (i INT);\nINSERT INTO `{schema}`.t VALUES (1);\n{TRAILER}"
            );
            let error = database::import(
                &server,
                &mut shadow,
                reader(dump.as_bytes()),
                LIMIT,
                &quiet(),
            )
            .unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Refused, "{schema}: {error:?}");
            sql(&format!("DROP TABLE `{}`.t", shadow.schema()));
        }
        let alike = shadow.schema().replace('_', "x");
        sql(&format!(
            "CREATE DATABASE {alike}; CREATE TABLE {alike}.t (i INT);"
        ));
        let dump = format!("INSERT INTO `{alike}`.t VALUES (1);\n{TRAILER}");
        let error = database::import(
            &server,
            &mut shadow,
            reader(dump.as_bytes()),
            LIMIT,
            &quiet(),
        )
        .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused, "{error:?}");
        sql(&format!("DROP DATABASE {alike}"));
        database::discard(&server, tenant.name, shadow.schema()).unwrap();
    }
    sql("DROP DATABASE wildX1; DROP DATABASE wild_1xxrestore_00000000;");
    tenant.assert_nothing_staged();
    let error = database::discard(&server, "wild_1", "mysql").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
}

#[test]
fn events_do_not_run_while_they_are_staged_and_run_after_the_swap() {
    let tenant = Tenant::new("events_1");
    tenant.sql("CREATE TABLE log (i INT); CREATE EVENT every_second ON SCHEDULE EVERY 1 SECOND DO INSERT INTO log VALUES (1);");
    let dump = tenant.dump();
    tenant.sql("DROP EVENT every_second; TRUNCATE log");
    let server = server();
    let mut shadow =
        database::prepare_shadow(&server, tenant.name, &tenant.account(), &quiet()).unwrap();
    database::import(&server, &mut shadow, reader(&dump), LIMIT, &quiet()).unwrap();
    let states = format!(
        "SELECT STATUS FROM information_schema.EVENTS WHERE EVENT_SCHEMA = '{}'",
        shadow.schema()
    );
    assert_eq!(sql(&states), "SLAVESIDE_DISABLED\n");
    database::swap(&server, &shadow, &quiet()).unwrap();
    database::discard(&server, tenant.name, shadow.schema()).unwrap();
    assert_eq!(
        sql("SELECT STATUS FROM information_schema.EVENTS WHERE EVENT_SCHEMA = 'events_1'"),
        "ENABLED\n"
    );
    eventually("the event runs", || {
        sql("SELECT COUNT(*) FROM events_1.log") != "0\n"
    });
    tenant.sql("DROP EVENT every_second");
}

#[test]
fn a_transaction_that_keeps_a_table_in_use_makes_the_swap_fail_and_not_hang() {
    let tenant = Tenant::new("loaded_1");
    fill(&tenant);
    let dump = tenant.dump();
    let session = Session::open("USE loaded_1; BEGIN; SELECT * FROM posts");
    // Not by INNODB_TRX: who asks for that ten times a second is told the same for ever.
    let sleeps = "SELECT 1 FROM information_schema.PROCESSLIST WHERE DB = 'loaded_1' AND STATE = 'User sleep'";
    eventually("the transaction is open", || !sql(sleeps).is_empty());
    let started = Instant::now();
    let error = assert_fails_clean(&tenant, &dump);
    assert_eq!(error.kind(), ErrorKind::Busy, "{error:?}");
    assert!(started.elapsed() < Duration::from_secs(180));
    drop(session);
    eventually("the swap works", || tenant.restore(&dump).is_ok());
    assert_same(&tenant.dump(), &dump);
}

#[test]
fn what_fails_after_the_commit_is_reversed() {
    let tenant = Tenant::new("reversed_1");
    fill(&tenant);
    let dump = tenant.dump();
    tenant.sql(
        "DROP TRIGGER first_one; DROP VIEW counted; INSERT INTO posts (title) VALUES ('new');",
    );
    // Enough to import with, for that is granted, but not to create triggers in the live schema.
    sql(
        "REVOKE TRIGGER ON `reversed\\_1`.* FROM reversed_1@'%'; DROP TRIGGER reversed_1.second_one;",
    );
    let error = assert_fails_clean(&tenant, &dump);
    assert_eq!(error.kind(), ErrorKind::Refused, "{error:?}");
    assert!(
        error.chain().contains("cannot create the trigger"),
        "{error:?}"
    );
}

#[test]
fn a_foreign_key_from_another_schema_is_refused_before_anything_changes() {
    let tenant = Tenant::new("keyed_1");
    fill(&tenant);
    sql(
        "CREATE DATABASE keyed_other; CREATE TABLE keyed_other.child (id INT, FOREIGN KEY (id) REFERENCES keyed_1.posts (id));",
    );
    let error = assert_fails_clean(&tenant, &tenant.dump());
    assert_eq!(error.kind(), ErrorKind::Refused, "{error:?}");
    assert!(error.chain().contains("keyed_other.child"), "{error:?}");
    sql("DROP DATABASE keyed_other");
}

/// What a tenant does to keep a shadow schema of his from being dropped: keys from and to it, and locks.
fn hold_on_to(tenant: &Tenant, shadow: &str) -> [Session; 2] {
    tenant.sql(&format!(
        "CREATE TABLE hanging (id BIGINT UNSIGNED, CONSTRAINT hung FOREIGN KEY (id) REFERENCES {shadow}.parent (id));
         ALTER TABLE {shadow}.parent ADD CONSTRAINT back FOREIGN KEY (id) REFERENCES parent (id);"
    ));
    let name = tenant.name;
    let sessions = [
        Session::open_as(
            name,
            PASSWORD,
            &format!("USE {name}; BEGIN; SELECT * FROM {shadow}.parent"),
        ),
        Session::open_as(
            name,
            PASSWORD,
            &format!("USE {name}; LOCK TABLES {shadow}.other READ"),
        ),
    ];
    eventually("both sleep", || {
        sql(&format!(
            "SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE USER = '{name}' AND INFO LIKE '%SLEEP%'"
        )) == "2\n"
    });
    sessions
}

#[test]
fn a_shadow_schema_that_its_tenant_holds_on_to_is_removed() {
    let tenant = Tenant::new("holding_1");
    tenant.sql("CREATE TABLE parent (id BIGINT UNSIGNED PRIMARY KEY); INSERT INTO parent VALUES (1); CREATE TABLE other (i INT);");
    let dump = tenant.dump();
    let server = server_without_accounts(&tenant);
    for crashed in [false, true] {
        let (control, warnings) = control();
        let mut shadow =
            database::prepare_shadow(&server, tenant.name, &tenant.account(), &control).unwrap();
        database::import(&server, &mut shadow, reader(&dump), LIMIT, &control).unwrap();
        let _sessions = hold_on_to(&tenant, shadow.schema());
        if crashed {
            sql(&format!(
                "REVOKE ALL ON `{}`.* FROM holding_1@'%'",
                shadow.schema().replace('_', "\\_")
            ));
            let removed = database::remove_leftovers(&server, tenant.name, &control).unwrap();
            assert_eq!(removed, [shadow.schema()]);
            let warnings = warnings.text();
            assert!(warnings.contains("the foreign key hung"), "{warnings}");
        } else {
            database::discard(&server, tenant.name, shadow.schema()).unwrap();
        }
        tenant.assert_nothing_staged();
        tenant.sql("INSERT INTO hanging VALUES (77); DROP TABLE hanging;");
        assert_same(&tenant.dump(), &dump);
    }
    tenant.restore(&dump).unwrap();
    assert_same(&tenant.dump(), &dump);
}

#[test]
fn a_key_into_the_shadow_schema_is_gone_with_what_a_swap_replaced() {
    let tenant = Tenant::new("hung_1");
    tenant.sql("CREATE TABLE parent (id INT PRIMARY KEY); INSERT INTO parent VALUES (1);");
    let dump = tenant.dump();
    let server = server_without_accounts(&tenant);
    let mut shadow =
        database::prepare_shadow(&server, tenant.name, &tenant.account(), &quiet()).unwrap();
    database::import(&server, &mut shadow, reader(&dump), LIMIT, &quiet()).unwrap();
    tenant.sql(&format!(
        "CREATE TABLE hanging (id INT, FOREIGN KEY (id) REFERENCES {}.parent (id));",
        shadow.schema()
    ));
    let first = database::swap(&server, &shadow, &quiet()).unwrap();
    database::discard(&server, tenant.name, shadow.schema()).unwrap();
    // What the first replaced has a key into the live schema now.
    let (_, second) = tenant.restore(&dump).unwrap();
    database::drop_replaced(&server, &second, &quiet()).unwrap();
    database::drop_replaced(&server, &first, &quiet()).unwrap();
    tenant.assert_nothing_staged();
    assert_same(&tenant.dump(), &dump);
}

#[test]
fn an_empty_database_and_one_that_was_dropped_can_be_restored() {
    let tenant = Tenant::new("empty_1");
    let empty = tenant.dump();
    fill(&tenant);
    let full = tenant.dump();
    let (inventory, replaced) = tenant.restore(&empty).unwrap();
    assert_eq!(inventory, Inventory::default());
    assert_same(&tenant.dump(), &empty);
    database::drop_replaced(&server(), &replaced, &quiet()).unwrap();
    tenant.sql("DROP DATABASE empty_1");
    let (_, replaced) = tenant.restore(&full).unwrap();
    assert_same(&tenant.dump(), &full);
    database::swap_back(&server(), &replaced, &tenant.account(), &quiet()).unwrap();
    assert_eq!(sql("SHOW DATABASES LIKE 'empty%'"), "");
    tenant.assert_nothing_staged();
}

#[test]
fn a_trigger_that_was_typed_with_its_schema_is_restored() {
    let tenant = Tenant::new("typed_1");
    tenant.sql("CREATE TABLE t (i INT); CREATE TRIGGER typed_1.tr BEFORE INSERT ON `typed_1`.`t` FOR EACH ROW SET @a = 1;");
    let dump = tenant.dump();
    let (_, replaced) = tenant.restore(&dump).unwrap();
    assert_eq!(
        sql(
            "SELECT TRIGGER_NAME FROM information_schema.TRIGGERS WHERE TRIGGER_SCHEMA = 'typed_1'"
        ),
        "tr\n"
    );
    database::swap_back(&server(), &replaced, &tenant.account(), &quiet()).unwrap();
    assert_same(&tenant.dump(), &dump);
}

#[test]
fn a_view_whose_definer_is_gone_is_restored_as_the_customers() {
    let tenant = Tenant::new("goneview_1");
    tenant.sql(
        "CREATE TABLE t (id INT); INSERT INTO t VALUES (1); CREATE FUNCTION f() RETURNS INT RETURN 5;
         CREATE VIEW called AS SELECT id, f() AS five FROM t;",
    );
    sql("USE goneview_1; CREATE DEFINER = gone@nowhere VIEW orphan AS
         SELECT *, '`goneview_1`.' AS text, f() AS five FROM t WHERE EXISTS (SELECT 1 FROM goneview_1.t u WHERE u.id = t.id);");
    let dump = tenant.dump();
    let (control, warnings) = control();
    let (_, replaced) = tenant
        .restore_as(&tenant.account(), &dump, &control)
        .unwrap();
    assert!(
        warnings.text().contains("gone@nowhere"),
        "{}",
        warnings.text()
    );
    assert_eq!(
        sql("SELECT * FROM goneview_1.orphan; SELECT * FROM goneview_1.called"),
        "1\t`goneview_1`.\t5\n1\t5\n"
    );
    assert_eq!(
        sql(
            "SELECT DISTINCT DEFINER FROM information_schema.VIEWS WHERE TABLE_SCHEMA = 'goneview_1'"
        ),
        "goneview_1@%\n"
    );
    let now = tenant.dump();
    assert!(!String::from_utf8_lossy(&now).contains("__restore_"));
    database::swap_back(&server(), &replaced, &tenant.account(), &quiet()).unwrap();
    assert_same(&tenant.dump(), &dump);
}

#[test]
fn a_live_schema_with_broken_views_can_be_restored_over() {
    let tenant = Tenant::new("brokenview_1");
    fill(&tenant);
    let dump = tenant.dump();
    tenant.sql("SET foreign_key_checks = 0; DROP TABLE posts, egg, hen");
    let (_, replaced) = tenant.restore(&dump).unwrap();
    assert_same(&tenant.dump(), &dump);
    let (control, warnings) = control();
    database::swap_back(&server(), &replaced, &tenant.account(), &control).unwrap();
    assert!(
        warnings.text().contains("broken view z_base"),
        "{}",
        warnings.text()
    );
}

#[test]
fn a_wrong_password_of_the_customer_is_told_before_anything_is_made() {
    let tenant = Tenant::new("forgot_1");
    let account = ImportAccount::Customer {
        user: tenant.name.to_owned(),
        password: SecretString::from("wr0ng-p4ssword"),
    };
    let error = tenant
        .restore_as(&account, &tenant.dump(), &quiet())
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(!error.chain().contains("wr0ng"), "{error:?}");
    tenant.assert_nothing_staged();
}

#[test]
fn no_password_shows_in_the_list_of_processes() {
    let tenant = Tenant::new("ps_1");
    fill(&tenant);
    let passwords = [PASSWORD.to_owned(), MARIADB.root_password().to_owned()];
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let looker = scope.spawn(|| {
            let mut clients = 0;
            while !done.load(std::sync::atomic::Ordering::Acquire) {
                for process in std::fs::read_dir("/proc").unwrap().flatten() {
                    let cmdline = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
                    let cmdline = String::from_utf8_lossy(&cmdline);
                    clients += usize::from(
                        cmdline.contains("--defaults-file=/proc/self/fd/")
                            || cmdline.contains("--user=root"),
                    );
                    assert!(
                        !passwords
                            .iter()
                            .any(|password| cmdline.contains(password.as_str())),
                        "{cmdline}"
                    );
                }
            }
            clients
        });
        let dump = tenant.dump();
        tenant.restore(&dump).unwrap();
        try_dump(
            &server_through(&["env", "--"]),
            tenant.name,
            LIMIT,
            &quiet(),
        )
        .unwrap();
        done.store(true, std::sync::atomic::Ordering::Release);
        assert!(looker.join().unwrap() > 0, "no client program was seen");
    });
}

#[test]
fn rows_of_many_megabytes_pass() {
    let tenant = Tenant::new("rows_1");
    sql("SET GLOBAL max_allowed_packet = 64 * 1024 * 1024");
    tenant.sql("CREATE TABLE t (id INT PRIMARY KEY, b LONGBLOB, x LONGTEXT); INSERT INTO t SELECT 1, REPEAT(CHAR(0, 10, 92, 39), 1500000), REPEAT('x\\n;', 3000000);");
    let (dump, sums) = (tenant.dump(), checksums(&tenant));
    assert!(
        dump.split(|&byte| byte == b'\n')
            .any(|line| line.len() > 16 << 20)
    );
    tenant.sql("DROP TABLE t");
    tenant.restore(&dump).unwrap();
    assert_eq!(checksums(&tenant), sums);
}

// Imports that stray.

/// What a dump may try against the live schema, by name or by the client's own `use`.
fn strays(live: &str) -> Vec<String> {
    [
        format!("CREATE TABLE {live}.pwned (i INT);"),
        format!("use {live};\nCREATE TABLE pwned (i INT);"),
        format!("DROP TABLE {live}.t;"),
        format!("ALTER TABLE {live}.t ADD COLUMN pwned INT;"),
        format!("CREATE OR REPLACE VIEW {live}.v AS SELECT 'pwned';"),
        format!("create trigger {live}.pwned before insert on {live}.t for each row set @a = 1;"),
        format!("create procedure {live}.pwned() select 1;"),
        format!("DROP EVENT {live}.e;"),
        format!("ALTER EVENT {live}.e ENABLE;"),
    ]
    .iter()
    .map(|attack| format!("CREATE TABLE `t` (i INT);\n{attack}\n{TRAILER}"))
    .collect()
}

/// A customer with one of everything, whose event changes nothing, enabled or not.
fn target(name: &'static str) -> Tenant {
    let tenant = Tenant::new(name);
    tenant.sql(
        "CREATE TABLE t (i INT); CREATE VIEW v AS SELECT 1 AS one; INSERT INTO t VALUES (1);
         CREATE EVENT e ON SCHEDULE EVERY 1 DAY STARTS '2035-01-01 00:00:00' DISABLE DO SET @a = 1;",
    );
    tenant
}

#[test]
fn an_import_cannot_touch_the_live_schema_of_its_own_customer() {
    let tenant = target("strayed_1");
    let rows = "use strayed_1;\nUPDATE t SET i = 2;";
    let reads = "CREATE TABLE `copy` AS SELECT * FROM strayed_1.t;";
    for attack in [rows, reads] {
        let error = assert_fails_clean(&tenant, format!("{attack}\n{TRAILER}").as_bytes());
        assert_eq!(error.kind(), ErrorKind::Refused, "{attack}: {error:?}");
    }
    for dump in strays(tenant.name) {
        let error = assert_fails_clean(&tenant, dump.as_bytes());
        assert_eq!(error.kind(), ErrorKind::Refused, "{dump}: {error:?}");
    }
}

#[test]
fn a_locked_definer_from_an_earlier_restore_lends_an_import_no_rights() {
    let tenant = target("lent_1");
    let restore = |dump: &[u8]| tenant.restore_as(&ImportAccount::Temporary, dump, &quiet());
    let (_, replaced) = restore(&tenant.dump()).unwrap();
    database::drop_replaced(&server(), &replaced, &quiet()).unwrap();
    let before = tenant.dump();
    for dump in strays(tenant.name) {
        let error = restore(dump.as_bytes()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused, "{dump}: {error:?}");
    }
    assert_same(&tenant.dump(), &before);
}

#[test]
fn an_import_as_the_customer_that_changed_the_live_schema_is_refused() {
    let tenant = target("watched_1");
    let server = server_without_accounts(&tenant);
    let backup = tenant.dump();
    for dump in strays(tenant.name) {
        let error = tenant
            .restore_on(&server, &tenant.account(), dump.as_bytes(), &quiet())
            .expect_err(&dump);
        assert_eq!(error.kind(), ErrorKind::Damaged, "{dump}: {error:?}");
        assert!(
            error.chain().contains("the database watched_1 was changed"),
            "{error:?}"
        );
        import_by_hand(tenant.name, &backup);
    }
    let (_, replaced) = tenant
        .restore_on(&server, &tenant.account(), &backup, &quiet())
        .unwrap();
    database::drop_replaced(&server, &replaced, &quiet()).unwrap();
    assert_same(&tenant.dump(), &backup);
    tenant.assert_nothing_staged();
}

#[test]
fn an_import_that_changed_a_schema_open_to_everybody_is_refused() {
    let mariadb = MariaDb::start().unwrap();
    let password = SecretString::from(mariadb.root_password());
    let endpoint = Endpoint::Socket(mariadb.socket());
    let server = Server::new(endpoint, Vec::new(), "root", password);
    mariadb
        .sql("CREATE DATABASE everybodys; GRANT ALL ON everybodys.* TO PUBLIC;")
        .unwrap();
    for (attack, refused) in [
        ("CREATE TABLE everybodys.pwned (i INT);", true),
        ("", false),
    ] {
        let dump = format!("{attack}\n{TRAILER}");
        let account = ImportAccount::Temporary;
        let mut shadow = database::prepare_shadow(&server, "open_1", &account, &quiet()).unwrap();
        let imported = database::import(
            &server,
            &mut shadow,
            reader(dump.as_bytes()),
            LIMIT,
            &quiet(),
        );
        database::discard(&server, "open_1", shadow.schema()).unwrap();
        let error = imported.err();
        assert_eq!(
            error.as_ref().map(Error::kind),
            refused.then_some(ErrorKind::Damaged),
            "{error:?}"
        );
    }
}

#[test]
fn views_and_keys_into_other_schemas_and_a_dump_that_chooses_its_own_fail_cleanly() {
    let tenant = target("crossing_1");
    sql(
        "CREATE DATABASE crossed_1; CREATE TABLE crossed_1.parent (id INT PRIMARY KEY); INSERT INTO crossed_1.parent VALUES (1);",
    );
    let crossed = || dump_of("crossed_1");
    let before = crossed();
    for (attack, kind) in [
        (
            "CREATE VIEW `w` AS SELECT * FROM `crossed_1`.`parent`;",
            ErrorKind::Refused,
        ),
        (
            "/*!50001 CREATE ALGORITHM=UNDEFINED */\n/*!50013 DEFINER=`root`@`localhost` SQL SECURITY DEFINER */\n/*!50001 VIEW `w` AS select `crossed_1`.`parent`.`id` AS `id` from `crossed_1`.`parent` */;",
            ErrorKind::Refused,
        ),
        (
            "SET foreign_key_checks = 0;\nCREATE TABLE `c` (id INT, FOREIGN KEY (id) REFERENCES crossed_1.parent (id));",
            ErrorKind::Refused,
        ),
        (
            "CREATE TABLE `c` (id INT);\nALTER TABLE c ADD FOREIGN KEY (id) REFERENCES crossed_1.parent (id);",
            ErrorKind::Refused,
        ),
        (
            "CREATE TABLE `m` (id INT) ENGINE=MERGE UNION=(crossed_1.parent);",
            ErrorKind::Refused,
        ),
        (
            "CREATE TABLE `t` (i INT);\nRENAME TABLE t TO crossed_1.t;",
            ErrorKind::Refused,
        ),
        ("USE `crossed_1`;", ErrorKind::Damaged),
        (
            "use crossed_1;\nCREATE TABLE t (i INT);",
            ErrorKind::Refused,
        ),
        (
            "/*!40000 USE crossed_1*/;\nCREATE TABLE t (i INT);",
            ErrorKind::Refused,
        ),
        ("\\u crossed_1\nCREATE TABLE t (i INT);", ErrorKind::Failed),
        (
            "CREATE DATABASE crossing_1__restore_00000000;",
            ErrorKind::Damaged,
        ),
        (
            "create database crossing_1__restore_00000000;",
            ErrorKind::Refused,
        ),
    ] {
        let error = assert_fails_clean(&tenant, format!("{attack}\n{TRAILER}").as_bytes());
        assert_eq!(error.kind(), kind, "{attack}: {error:?}");
        assert_same(&crossed(), &before);
    }
    sql("DROP DATABASE crossed_1");
}

#[test]
fn a_dump_that_changes_the_password_of_the_importing_account_changes_nobody_elses() {
    let tenant = target("locksmith_1");
    let dump = format!("SET PASSWORD = PASSWORD('x');\n{TRAILER}");
    let error = assert_fails_clean(&tenant, dump.as_bytes());
    assert_eq!(error.kind(), ErrorKind::Refused, "{error:?}");
    tenant.sql("SELECT 1");
}

#[test]
fn an_error_in_the_last_statement_fails_cleanly() {
    let tenant = Tenant::new("lastword_1");
    fill(&tenant);
    let dump = tenant.dump();
    let trailer = TRAILER.len();
    let mut wrong = dump[..dump.len() - trailer].to_vec();
    wrong.extend_from_slice(format!("\nDROP TABLE `no such table`;\n{TRAILER}").as_bytes());
    let error = assert_fails_clean(&tenant, &wrong);
    assert!(error.chain().contains("1051"), "{error:?}");
}

#[test]
fn a_dump_that_leaves_a_prepared_transaction_is_refused_and_that_is_named_to_the_operator() {
    let tenant = target("prepared_1");
    let dump = format!(
        "CREATE TABLE `x` (i INT) ENGINE=InnoDB;\nXA START 'spite';\nINSERT INTO x VALUES (1);\nXA END 'spite';\nXA PREPARE 'spite';\n{TRAILER}"
    );
    let before = tenant.dump();
    let (server, control) = (server(), quiet());
    let mut shadow =
        database::prepare_shadow(&server, tenant.name, &tenant.account(), &control).unwrap();
    // Its rows are in no table.
    let dump = reader(dump.as_bytes());
    let error = database::import(&server, &mut shadow, dump, LIMIT, &control).unwrap_err();
    assert!(error.chain().contains("1399"), "{error:?}");
    let error = database::discard(&server, tenant.name, shadow.schema()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy, "{error:?}");
    assert!(error.chain().contains("XA ROLLBACK: 'spite'"), "{error:?}");
    assert_same(&tenant.dump(), &before);
    sql("XA ROLLBACK 'spite'");
    database::discard(&server, tenant.name, shadow.schema()).unwrap();
    tenant.assert_nothing_staged();
}

/// A server of its own that is harmed, with a customer's schema and a backup of it.
struct Harmed {
    mariadb: MariaDb,
    server: Server,
    live: Vec<u8>,
}

impl Harmed {
    const NAME: &str = "harmed_1";

    fn new(mariadb: MariaDb) -> Self {
        mariadb
            .sql("CREATE DATABASE harmed_1; USE harmed_1; CREATE TABLE t (i INT PRIMARY KEY, x TEXT); INSERT INTO t VALUES (1, 'kept'); CREATE VIEW v AS SELECT * FROM t;")
            .unwrap();
        let password = SecretString::from(mariadb.root_password());
        let endpoint = Endpoint::Socket(mariadb.socket());
        let server = Server::new(endpoint, Vec::new(), "root", password);
        let live = try_dump(&server, Self::NAME, LIMIT, &quiet()).unwrap();
        Self {
            mariadb,
            server,
            live,
        }
    }

    fn stage(&self) -> Shadow {
        database::prepare_shadow(
            &self.server,
            Self::NAME,
            &ImportAccount::Temporary,
            &quiet(),
        )
        .unwrap()
    }

    fn import(&self, shadow: &mut Shadow, dump: &str) -> Result<(), Error> {
        let dump = reader(format!("{dump}\n{TRAILER}").as_bytes());
        database::import(&self.server, shadow, dump, LIMIT, &quiet())
    }

    #[track_caller]
    fn assert_only_live_is_left(&self) {
        let left = "SHOW DATABASES LIKE 'harmed%'; SELECT User FROM mysql.global_priv WHERE User LIKE 'shb%'; SELECT Db FROM mysql.db;";
        assert_eq!(self.mariadb.sql(left).unwrap(), "harmed_1\n");
        assert_same(
            &try_dump(&self.server, Self::NAME, LIMIT, &quiet()).unwrap(),
            &self.live,
        );
    }
}

#[test]
fn the_rows_of_a_dump_that_does_not_say_that_it_commits_are_there() {
    let harmed = Harmed::new(MariaDb::start_with(&["--autocommit=0"]).unwrap());
    for begin in ["", "SET autocommit = 0;\n"] {
        let mut shadow = harmed.stage();
        let dump =
            format!("{begin}CREATE TABLE `t` (i INT) ENGINE=InnoDB;\nINSERT INTO `t` VALUES (1);");
        harmed.import(&mut shadow, &dump).unwrap();
        let rows = format!("SELECT i FROM `{}`.t", shadow.schema());
        assert_eq!(harmed.mariadb.sql(&rows).unwrap(), "1\n", "{begin}");
    }
}

#[test]
fn a_disk_that_fills_up_during_an_import_is_told_and_nothing_is_left() {
    let disk = tempfile::tempdir().unwrap();
    let _mount = Mount::tmpfs(disk.path(), "size=300m").unwrap();
    let harmed = Harmed::new(MariaDb::start_in(disk.path(), &[]).unwrap());
    let mut shadow = harmed.stage();
    let rows = "INSERT INTO big (x) SELECT REPEAT('x', 3000) FROM seq_1_to_1000;\n";
    let dump = format!(
        "CREATE TABLE `big` (i INT PRIMARY KEY AUTO_INCREMENT, x VARCHAR(4000)) ENGINE=InnoDB;\n{}",
        rows.repeat(200)
    );
    let error = harmed.import(&mut shadow, &dump).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error:?}");
    let staged = [shadow.schema().to_owned()];
    let removed = database::remove_leftovers(&harmed.server, Harmed::NAME, &quiet()).unwrap();
    assert_eq!(removed, staged);
    harmed.assert_only_live_is_left();
    // There is room again.
    let mut shadow = harmed.stage();
    harmed
        .import(&mut shadow, "CREATE TABLE `small` (i INT);")
        .unwrap();
    database::discard(&harmed.server, Harmed::NAME, shadow.schema()).unwrap();
    harmed.assert_only_live_is_left();
}

#[test]
fn a_server_that_is_killed_during_an_import_has_lost_nothing_when_it_is_back() {
    let mut harmed = Harmed::new(MariaDb::start().unwrap());
    let mut shadow = harmed.stage();
    let sleeping = "SELECT 1 FROM information_schema.PROCESSLIST WHERE STATE = 'User sleep'";
    std::thread::scope(|scope| {
        let import = scope.spawn(|| {
            let dump = "CREATE TABLE `t` (i INT);\nINSERT INTO t VALUES (1);\nSELECT SLEEP(100);";
            harmed.import(&mut shadow, dump)
        });
        eventually("it sleeps", || {
            !harmed.mariadb.sql(sleeping).unwrap().is_empty()
        });
        harmed.mariadb.signal_kill();
        let error = import.join().unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unreachable, "{error:?}");
    });
    database::discard(&harmed.server, Harmed::NAME, shadow.schema()).unwrap_err();
    harmed.mariadb.kill();
    harmed.mariadb.restart().unwrap();
    let staged = [shadow.schema().to_owned()];
    let removed = database::remove_leftovers(&harmed.server, Harmed::NAME, &quiet()).unwrap();
    assert_eq!(removed, staged);
    harmed.assert_only_live_is_left();
}

// What a swap replaced.

fn dump_of_replaced(replaced: &Replaced, control: &Control) -> Vec<u8> {
    read_whole(database::dump_replaced(&server(), replaced, LIMIT, control).unwrap()).unwrap()
}

/// Import into a new schema of the same name as anybody would by hand.
fn import_by_hand(database: &str, dump: &[u8]) {
    use std::io::Write;
    let (charset, collation) = ("DEFAULT_CHARACTER_SET_NAME", "DEFAULT_COLLATION_NAME");
    let like = sql(&format!(
        "SELECT CONCAT('CHARACTER SET ', {charset}, ' COLLATE ', {collation}) FROM information_schema.SCHEMATA WHERE SCHEMA_NAME = '{database}'"
    ));
    sql(&format!(
        "DROP DATABASE {database}; CREATE DATABASE {database} {like}"
    ));
    let mut client = std::process::Command::new("mariadb")
        .args(["--no-defaults", "--comments", "--user=root", database])
        .arg(format!("--socket={}", MARIADB.socket().display()))
        .env("MYSQL_PWD", MARIADB.root_password())
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    client.stdin.take().unwrap().write_all(dump).unwrap();
    assert!(client.wait().unwrap().success());
}

#[test]
fn what_a_swap_replaced_is_dumped_as_it_was_the_moment_before() {
    let tenant = Tenant::new("undone_1");
    fill(&tenant);
    let backup = tenant.dump();
    sql("ALTER DATABASE undone_1 COLLATE utf8mb4_bin; USE undone_1; SET NAMES utf8mb4;
         CREATE DEFINER = undone_1@'%' PROCEDURE collated() SELECT 1; ALTER DATABASE undone_1 COLLATE utf8mb4_general_ci;");
    tenant.sql(
        "DROP TABLE parts; DROP VIEW counted; DROP EVENT hourly; DROP TRIGGER first_one; CREATE TABLE since (id INT PRIMARY KEY AUTO_INCREMENT, x TEXT);
         CREATE VIEW z_later AS SELECT 1 AS id, 2 AS x; CREATE VIEW aa AS SELECT f.`id`, f.x AS `odd ``name` FROM z_later f; CREATE OR REPLACE VIEW z_later AS SELECT * FROM since;
         SET time_zone = '-07:00'; CREATE EVENT west ON SCHEDULE EVERY 2 DAY STARTS '2035-01-01 00:00:00' DO INSERT INTO since (x) VALUES ('DELIMITER ;');
         INSERT INTO since (x) VALUES ('the last order');",
    );
    let (before, sums) = (tenant.dump(), checksums(&tenant));
    let (_, replaced) = tenant.restore(&backup).unwrap();
    assert_same(&tenant.dump(), &backup);
    let undo = dump_of_replaced(&replaced, &quiet());
    assert!(undo.ends_with(b"\n-- Dump completed\n"));
    assert!(!String::from_utf8_lossy(&undo).contains("__replaced_"));

    let (_, second) = tenant.restore(&undo).unwrap();
    assert_same(&tenant.dump(), &before);
    assert_eq!(checksums(&tenant), sums);
    // The same state, replaced again, in another schema.
    let (_, third) = tenant.restore(&backup).unwrap();
    assert_same(&dump_of_replaced(&third, &quiet()), &undo);

    import_by_hand("undone_1", &undo);
    assert_same(&tenant.dump(), &before);
    assert_eq!(checksums(&tenant), sums);
    for replaced in [&replaced, &second, &third] {
        database::drop_replaced(&server(), replaced, &quiet()).unwrap();
        let gone = database::dump_replaced(&server(), replaced, LIMIT, &quiet());
        assert_eq!(gone.unwrap_err().kind(), ErrorKind::NotFound);
    }
    tenant.assert_nothing_staged();
}

#[test]
fn what_a_swap_replaced_comes_back_with_whatever_its_tenant_wrote() {
    let tenant = Tenant::new("spiteful_1");
    let backup = tenant.dump();
    tenant.sql(
        "CREATE TABLE t (id INT);
         DELIMITER $$
         CREATE TRIGGER tr BEFORE INSERT ON t FOR EACH ROW set @a=1 /* x */ + length('*/ */ ;; drop table t ;;\n\\! id\n /*')$$
         CREATE PROCEDURE p() BEGIN /* x */ SELECT ';; $$ \\'; -- it''s'; -- don't\n # nor here: '\n END$$
         CREATE VIEW v AS SELECT '*/ */ ;;' AS `/* ;; \\ ''`, '`spiteful_1`.' AS text$$
         CREATE EVENT e ON SCHEDULE EVERY 1 DAY STARTS '2035-01-01 00:00:00' DISABLE COMMENT ';;' DO SET @a = ';; ON COMPLETION NOT PRESERVE ENABLE'$$
         DELIMITER ;
         CREATE VIEW broken AS SELECT id FROM t; ALTER TABLE t CHANGE id i INT;",
    );
    // The dump program hangs on such an event and fails on such a view.
    let objects = "SELECT 'v', VIEW_DEFINITION FROM information_schema.VIEWS WHERE TABLE_SCHEMA = 'spiteful_1' AND TABLE_NAME = 'v';
         SHOW CREATE TRIGGER spiteful_1.tr; SHOW CREATE PROCEDURE spiteful_1.p; SHOW CREATE EVENT spiteful_1.e;";
    let without_times = |rows: String| -> Vec<String> {
        let is_time = |column: &&str| !column.starts_with("20");
        rows.lines()
            .map(|row| {
                row.split('\t')
                    .filter(is_time)
                    .collect::<Vec<_>>()
                    .join("\t")
            })
            .collect()
    };
    let before = without_times(sql(objects));
    let (_, replaced) = tenant.restore(&backup).unwrap();
    assert_same(&tenant.dump(), &backup);
    let (control, warnings) = control();
    let undo = dump_of_replaced(&replaced, &control);
    assert!(
        warnings.text().contains("broken view broken"),
        "{}",
        warnings.text()
    );
    let (_, second) = tenant.restore(&undo).unwrap();
    assert_eq!(without_times(sql(objects)), before);
    import_by_hand("spiteful_1", &undo);
    assert_eq!(without_times(sql(objects)), before);
    assert_eq!(tables("spiteful_1"), ["t"]);
    for replaced in [&replaced, &second] {
        database::drop_replaced(&server(), replaced, &quiet()).unwrap();
    }
}

#[test]
fn what_a_swap_replaced_keeps_its_definers() {
    let tenant = Tenant::new("owners_1");
    tenant.sql("CREATE TABLE t (id INT);");
    let backup = tenant.dump();
    sql("USE owners_1; CREATE VIEW roots AS SELECT 1 AS one; CREATE DEFINER = gone@nowhere PROCEDURE ghost() SELECT 1;
         CREATE TRIGGER roots BEFORE INSERT ON t FOR EACH ROW SET @a = 1;");
    let before = tenant.dump();
    let (_, replaced) = tenant.restore(&backup).unwrap();
    let undo = dump_of_replaced(&replaced, &quiet());
    import_by_hand("owners_1", &undo);
    assert_same(&tenant.dump(), &before);
    database::drop_replaced(&server(), &replaced, &quiet()).unwrap();
}

#[test]
fn where_there_was_no_live_schema_an_empty_one_is_dumped() {
    let tenant = Tenant::new("nothing_1");
    let empty = tenant.dump();
    tenant.sql("CREATE TABLE t (id INT); DROP DATABASE nothing_1;");
    let (_, replaced) = tenant.restore(&empty).unwrap();
    let undo = dump_of_replaced(&replaced, &quiet());
    tenant.sql("CREATE TABLE t (id INT)");
    let (inventory, second) = tenant.restore(&undo).unwrap();
    assert_eq!(inventory, Inventory::default());
    assert_same(&tenant.dump(), &empty);
    for replaced in [&replaced, &second] {
        database::drop_replaced(&server(), replaced, &quiet()).unwrap();
    }
}

#[test]
fn a_server_that_dies_under_the_dump_of_what_a_swap_replaced_gives_an_error_and_no_end() {
    let mut mariadb = MariaDb::start().unwrap();
    mariadb
        .sql(
            "CREATE DATABASE dies_1; USE dies_1; CREATE TABLE t (id INT PRIMARY KEY, x LONGTEXT);
             INSERT INTO t SELECT seq, REPEAT('x', 100000) FROM seq_1_to_200;",
        )
        .unwrap();
    let password = SecretString::from(mariadb.root_password());
    let server = Server::new(
        Endpoint::Socket(mariadb.socket()),
        Vec::new(),
        "root",
        password,
    );
    let control = quiet();
    let mut shadow =
        database::prepare_shadow(&server, "dies_1", &ImportAccount::Temporary, &control).unwrap();
    database::import(
        &server,
        &mut shadow,
        reader(TRAILER.as_bytes()),
        LIMIT,
        &control,
    )
    .unwrap();
    let replaced = database::swap(&server, &shadow, &control).unwrap();
    let mut dump = database::dump_replaced(&server, &replaced, LIMIT, &control).unwrap();
    let mut reader = dump.take_reader().unwrap();
    reader.read_exact(&mut [0; 4096]).unwrap();
    mariadb.signal_kill();
    let mut read = Vec::new();
    assert!(reader.read_to_end(&mut read).is_err());
    assert!(!read.ends_with(b"-- Dump completed\n"));
    assert!(dump.finish().is_err());
    mariadb.kill();
}
