//! Databases dumped from and restored into a real server.

use std::io::Read;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

use backup_core::database::{self, Endpoint, Server};
use backup_core::error::{Error, ErrorKind};
use backup_core::progress::{Cancel, Control, Monitor};
use secrecy::SecretString;
use xtask::mariadb::MariaDb;

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

/// A monitor that keeps the warnings.
#[derive(Default)]
struct Warnings(Mutex<Vec<String>>);

impl Monitor for Warnings {
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
        cancel: Cancel::new(),
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
    let mut dump = database::dump(server, database, limit, control)?;
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
        std::thread::yield_now();
    }
}

/// A session of its own that holds what it holds until it is dropped.
struct Session(std::process::Child);

impl Session {
    fn open(sql: &str) -> Self {
        let child = std::process::Command::new("mariadb")
            .args(["--no-defaults", "--user=root", "--execute"])
            .arg(format!("{sql}; SELECT SLEEP(1000)"))
            .arg(format!("--socket={}", MARIADB.socket().display()))
            .env("MYSQL_PWD", MARIADB.root_password())
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
    assert!(started.elapsed() < Duration::from_secs(15));
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
    use std::os::unix::fs::PermissionsExt;
    sql("CREATE DATABASE IF NOT EXISTS programs");
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("mariadb-dump");
    let script = format!(
        "#!/bin/sh\ncase \"$*\" in *--version*) exec /usr/bin/mariadb-dump \"$@\";; esac\n{behaviour}\n"
    );
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
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
