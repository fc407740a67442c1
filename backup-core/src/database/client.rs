//! The client programs: which there are, how they are called, how SQL is asked through them.
//!
//! A client costs more than most of what it is asked. So the server's own account has one that is kept for the next question: each is followed by a word
//! that nobody can guess, with which the answer ends. An error ends the client, as the end of the input does that of a script. Before it is asked again it
//! has to give a sign of life, for the server may have been restarted since: so a question is as little lost as with a client of its own, and none is ever
//! asked twice. What sets anything in its session, needs that to end, or opens what a tenant made, which may do so, has a client of its own; so has every
//! other account.
//!
//! Never: a password in an argument; an option file of somebody else that changes what a client does; a session that is not as a new one would be; a
//! client that outlives its [`Server`], or is kept for longer than some seconds.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};

use crate::database::{Account, Endpoint, Server};
use crate::error::{Error, ErrorKind, Result};
use crate::process::{Kept, Program};
use crate::progress::Cancel;

/// For a question or a small change.
pub(super) const QUERY_LIMIT: Duration = Duration::from_secs(120);
/// For a change that may have to move hundreds of tables.
pub(super) const CHANGE_LIMIT: Duration = Duration::from_secs(900);
const PROBE_LIMIT: Duration = Duration::from_secs(30);
/// How long a client is kept that nobody asks anything.
const REST: Duration = Duration::from_secs(5);
/// For the sign of life of one that was kept: after that a new one is quicker.
const WAKE_LIMIT: Duration = Duration::from_secs(5);
const MAX_ANSWER: usize = 256 << 20;

/// Whose programs, or whose server: they differ in options and in what they understand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    MariaDb,
    MySql,
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::MariaDb => "MariaDB",
            Self::MySql => "MySQL",
        })
    }
}

/// The programs of one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tools {
    pub(super) family: Family,
    pub(super) dump: String,
    pub(super) client: String,
    /// Options for a client that reads a script.
    pub(super) script_options: Vec<&'static str>,
    /// Behind a prefix, a signal may not reach the program (`docker exec` passes none on): it gets its limit from `timeout`.
    pub(super) timeout: bool,
}

/// A failure of SQL: the server's error number when it gave one.
#[derive(Debug)]
pub(super) struct SqlError {
    pub(super) code: Option<u16>,
    pub(super) error: Error,
}

impl From<Error> for SqlError {
    fn from(error: Error) -> Self {
        Self { code: None, error }
    }
}

impl From<SqlError> for Error {
    fn from(error: SqlError) -> Self {
        error.error
    }
}

/// What a query selected: rows of columns, as the server sent them. A NULL is the text `NULL`.
pub(super) type Rows = Vec<Vec<Vec<u8>>>;

/// The client that rests. More than one are not kept: an operation asks one question after the other.
#[derive(Default)]
pub(super) struct Resting(Mutex<Option<Kept>>);

impl Resting {
    fn take(&self) -> Option<Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn put(&self, mut client: Kept) {
        client.rest(REST);
        let surplus = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .replace(client);
        // Its end is waited for: not under the lock.
        drop(surplus);
    }
}

impl Server {
    /// The client programs, looked for once.
    pub(super) fn tools(&self, cancel: &Cancel) -> Result<&Tools> {
        if let Some(tools) = self.tools.get() {
            return Ok(tools);
        }
        let found = self.find_tools(cancel)?;
        Ok(self.tools.get_or_init(|| found))
    }

    fn find_tools(&self, cancel: &Cancel) -> Result<Tools> {
        let mut last_error = None;
        for (dump, client) in [("mariadb-dump", "mariadb"), ("mysqldump", "mysql")] {
            // The first line of the help is the version.
            let told = self
                .version(dump, cancel)
                .and_then(|dump| Ok((dump, self.help(client, cancel)?)));
            let told = told.map(|(of_dump, help)| {
                let of_client = help.lines().next().unwrap_or_default().trim().to_owned();
                (of_dump, of_client, help)
            });
            match told {
                Ok((of_dump, of_client, help)) if family(&of_dump) == family(&of_client) => {
                    let newer = NEWER_SCRIPT_OPTIONS
                        .into_iter()
                        .filter(|(word, _)| help.contains(word))
                        .map(|(_, option)| option);
                    let timeout = !self.exec.is_empty()
                        && self
                            .probe(
                                &["timeout", "--foreground", "9", client, "--version"],
                                cancel,
                            )
                            .is_ok();
                    return Ok(Tools {
                        family: family(&of_dump),
                        dump: dump.to_owned(),
                        client: client.to_owned(),
                        script_options: SCRIPT_OPTIONS.into_iter().chain(newer).collect(),
                        timeout,
                    });
                }
                Ok((of_dump, of_client, _)) => {
                    last_error = Some(Error::new(
                        ErrorKind::Configuration,
                        format!(
                            "{dump} ({of_dump}) and {client} ({of_client}) are not of one family; install both of MariaDB or both of MySQL"
                        ),
                    ));
                }
                Err(error) if error.kind() == ErrorKind::Cancelled => return Err(error),
                Err(error) => {
                    last_error.get_or_insert(error);
                }
            }
        }
        let missing = format!(
            "no client programs of MariaDB or MySQL for the database server at {self}; install mariadb-dump and mariadb, or mysqldump and mysql, where they are run"
        );
        Err(match last_error {
            Some(error) => Error::caused(ErrorKind::Configuration, missing, error),
            None => Error::new(ErrorKind::Configuration, missing),
        })
    }

    pub(super) fn version(&self, program: &str, cancel: &Cancel) -> Result<String> {
        let printed = self.probe(&[program, "--no-defaults", "--version"], cancel)?;
        Ok(String::from_utf8_lossy(&printed).trim().to_owned())
    }

    fn help(&self, program: &str, cancel: &Cancel) -> Result<String> {
        let printed = self.probe(&[program, "--no-defaults", "--help"], cancel)?;
        Ok(String::from_utf8_lossy(&printed).into_owned())
    }

    fn probe(&self, argv: &[&str], cancel: &Cancel) -> Result<Vec<u8>> {
        let argv = self
            .exec
            .iter()
            .map(String::as_str)
            .chain(argv.iter().copied());
        Program::new(argv)?.output(b"", 100_000, PROBE_LIMIT, cancel)
    }

    /// `program` as `account` on this server, with `options` of its own to follow. `limit` is for one that streams.
    pub(super) fn program(
        &self,
        program: &str,
        account: &Account,
        limit: Option<Duration>,
    ) -> Result<Program> {
        let mut argv = self.exec.clone();
        if !argv.is_empty() {
            pass_password_variable(&mut argv);
        }
        if let (Some(limit), Some(Tools { timeout: true, .. })) = (limit, self.tools.get()) {
            argv.extend([
                "timeout".to_owned(),
                "--foreground".to_owned(),
                limit.as_secs().saturating_add(1).to_string(),
            ]);
        }
        argv.push(program.to_owned());
        let program = Program::new(argv)?.hide(&account.password);
        // The first option must be the one that says which option files count: ours or none.
        let program = if self.exec.is_empty() {
            program
                .secret_file_arg("--defaults-file=", option_file(account))
                // The one option file that MySQL's programs read all the same.
                .env("MYSQL_TEST_LOGIN_FILE", &SecretString::from("/dev/null"))
        } else {
            program
                .arg("--no-defaults")
                .arg(format!("--user={}", account.user))
                .env("MYSQL_PWD", &account.password)
        };
        Ok(match &self.endpoint {
            Endpoint::Socket(path) => {
                let mut socket = std::ffi::OsString::from("--socket=");
                socket.push(path);
                program.arg("--protocol=socket").arg(socket)
            }
            Endpoint::Host { host, port: None } if host == "localhost" => {
                program.arg("--host=localhost")
            }
            Endpoint::Host { host, port } => program
                .arg("--protocol=tcp")
                .arg(format!("--host={host}"))
                .arg(format!("--port={}", port.unwrap_or(3306))),
        })
    }

    /// Run SQL as `account` in a session of its own, in the schema `database` if given, and give what it selects.
    pub(super) fn ask(
        &self,
        account: &Account,
        database: Option<&str>,
        sql: &[u8],
        limit: Duration,
        cancel: &Cancel,
    ) -> Result<Rows, SqlError> {
        let program = self.asking(account, database, cancel)?;
        let printed = program
            .output(sql, MAX_ANSWER, limit, cancel)
            .map_err(|error| explain(self, account, error))?;
        Ok(parse_rows(&printed))
    }

    fn asking(
        &self,
        account: &Account,
        database: Option<&str>,
        cancel: &Cancel,
    ) -> Result<Program> {
        let tools = self.tools(cancel)?;
        let mut program = self
            .program(&tools.client, account, None)?
            .args(&tools.script_options)
            .arg("--default-character-set=utf8mb4");
        if let Some(database) = database {
            program = program.arg(format!("--database={database}"));
        }
        Ok(program)
    }

    /// Run SQL that holds a password, as the server's own account.
    pub(super) fn query_with(
        &self,
        password: &SecretString,
        sql: &str,
        cancel: &Cancel,
    ) -> Result<(), SqlError> {
        let program = self.asking(&self.account, None, cancel)?.hide(password);
        program
            .output(sql.as_bytes(), MAX_ANSWER, QUERY_LIMIT, cancel)
            .map_err(|error| explain(self, &self.account, error))?;
        Ok(())
    }

    /// Ask, or change a little, as the server's own account, over the client that is kept: whole statements that leave nothing in their session, and that open no
    /// table and no view that a tenant could have made. Those run what he wrote (a trigger, a view's function), and that may leave anything.
    pub(super) fn query(&self, sql: &str, cancel: &Cancel) -> Result<Rows, SqlError> {
        self.ask_kept(sql, QUERY_LIMIT, cancel)
    }

    /// The same in a session of its own, for all else.
    pub(super) fn query_apart(&self, sql: &str, cancel: &Cancel) -> Result<Rows, SqlError> {
        self.ask(&self.account, None, sql.as_bytes(), QUERY_LIMIT, cancel)
    }

    /// Run SQL that changes or opens much, as the server's own account in a session of its own.
    pub(super) fn change(&self, sql: &str, cancel: &Cancel) -> Result<Rows, SqlError> {
        self.ask(&self.account, None, sql.as_bytes(), CHANGE_LIMIT, cancel)
    }

    fn ask_kept(&self, sql: &str, limit: Duration, cancel: &Cancel) -> Result<Rows, SqlError> {
        debug_assert!(sql.trim_end().ends_with(';'), "not closed: {sql}");
        cancel.check()?;
        let mut client = match self.woken(cancel) {
            Some(client) => client,
            None => self.kept(limit, cancel)?,
        };
        let printed = ask_up_to_word(&mut client, sql, limit, cancel)
            .map_err(|error| explain(self, &self.account, error))?;
        self.resting.put(client);
        Ok(parse_rows(&printed))
    }

    /// End the client that rests, for whoever is about to need its connection: an account may have few.
    pub(super) fn end_resting(&self) {
        drop(self.resting.take());
    }

    /// The client that was kept, if it and its server are alive.
    fn woken(&self, cancel: &Cancel) -> Option<Kept> {
        let mut client = self.resting.take()?;
        if !client.wake(WAKE_LIMIT, cancel) {
            return None;
        }
        ask_up_to_word(&mut client, "", WAKE_LIMIT, cancel).ok()?;
        Some(client)
    }

    fn kept(&self, limit: Duration, cancel: &Cancel) -> Result<Kept, SqlError> {
        // Else its answers wait in it for more.
        let program = self
            .asking(&self.account, None, cancel)?
            .arg("--unbuffered");
        let mut client = program.keep(limit, cancel)?;
        // In a container it may not be told that its program has ended.
        ask_up_to_word(&mut client, "SET wait_timeout = 60;", limit, cancel)
            .map_err(|error| explain(self, &self.account, error))?;
        Ok(client)
    }

    /// Whose server it is; the programs may be of the other family.
    pub(super) fn server_family(&self, cancel: &Cancel) -> Result<Family> {
        let rows = self.query("SELECT VERSION();", cancel)?;
        Ok(family(&String::from_utf8_lossy(&rows.concat().concat())))
    }
}

/// The answer to `sql`, which is whole statements.
fn ask_up_to_word(
    client: &mut Kept,
    sql: &str,
    limit: Duration,
    cancel: &Cancel,
) -> Result<Vec<u8>> {
    let word = format!("{:032x}", rand::random::<u128>());
    let input = format!("{sql}\nSELECT '{word}';\n");
    let end = format!("{word}\n");
    client.ask(input.as_bytes(), end.as_bytes(), MAX_ANSWER, limit, cancel)
}

/// How a client reads a script: no command of its own but `DELIMITER`, comments kept (a trigger is not what it was without
/// them), no file of this host sent to a server, rows that can be told apart whatever they hold. What is changed stays, also where a server
/// takes back what is not said to be committed.
const SCRIPT_OPTIONS: [&str; 8] = [
    "--init-command=SET autocommit = 1",
    "--batch",
    "--skip-column-names",
    "--binary-mode",
    "--comments",
    "--local-infile=0",
    "--connect-timeout=20",
    "--max-allowed-packet=1G",
];

/// What only some clients know: the word in their help and the option. Giving up the client's own commands (running programs,
/// reading files) before the input is read; keeping statements, which hold customers' data, out of errors.
const NEWER_SCRIPT_OPTIONS: [(&str, &str); 2] = [
    ("--sandbox", "--sandbox"),
    ("print-query-on-error", "--skip-print-query-on-error"),
];

fn family(version: &str) -> Family {
    if version.contains("MariaDB") {
        Family::MariaDb
    } else {
        Family::MySql
    }
}

/// Container programs give a container only the variables that they are told to, here by name and not by value.
fn pass_password_variable(argv: &mut Vec<String>) {
    let container_program = argv
        .first()
        .and_then(|program| program.rsplit('/').next())
        .is_some_and(|program| ["docker", "podman", "nerdctl"].contains(&program));
    if let (true, Some(at)) = (container_program, argv.iter().position(|arg| arg == "exec")) {
        argv.splice(at + 1..at + 1, ["-e".to_owned(), "MYSQL_PWD".to_owned()]);
    }
}

fn option_file(account: &Account) -> SecretString {
    let quoted = |text: &str| {
        let mut quoted = String::with_capacity(text.len() + 2);
        quoted.push('"');
        for c in text.chars() {
            match c {
                '\\' => quoted.push_str("\\\\"),
                '"' => quoted.push_str("\\\""),
                '\n' => quoted.push_str("\\n"),
                '\r' => quoted.push_str("\\r"),
                '\t' => quoted.push_str("\\t"),
                c => quoted.push(c),
            }
        }
        quoted.push('"');
        quoted
    };
    SecretString::from(format!(
        "[client]\nuser={}\npassword={}\n",
        quoted(&account.user),
        quoted(account.password.expose_secret())
    ))
}

/// Read the server's error number off a client's failure and say what it means.
pub(super) fn explain(server: &Server, account: &Account, error: Error) -> SqlError {
    if error.kind() != ErrorKind::Failed {
        return SqlError { code: None, error };
    }
    let code = error_number(&error.to_string());
    let user = &account.user;
    let explained = match code {
        Some(1044 | 1045 | 1142 | 1143 | 1227 | 1370 | 1698) => Some((
            ErrorKind::Refused,
            format!(
                "the database server at {server} denies something to the account {user}; correct its password or grant it what the log names"
            ),
        )),
        Some(1130 | 1820 | 1862 | 3118 | 4150 | 4151) => Some((
            ErrorKind::Refused,
            format!(
                "the database server at {server} does not let the account {user} in: it is locked, its password has expired, or it may not come from this host; mend what the log names"
            ),
        )),
        Some(1040 | 1203 | 1226) => Some((
            ErrorKind::Unreachable,
            format!(
                "the database server at {server} lets the account {user} do no more now: it has as many connections as there may be, or has reached a limit of its own; raise what the log names"
            ),
        )),
        Some(1049) => Some((
            ErrorKind::NotFound,
            format!("the database does not exist on the server at {server}"),
        )),
        Some(1053 | 1317 | 1927 | 2002 | 2003 | 2005 | 2006 | 2013) => Some((
            ErrorKind::Unreachable,
            format!(
                "the database server at {server} cannot be reached or went away; check that it runs and its address"
            ),
        )),
        Some(1021 | 1114) => Some((
            ErrorKind::NoSpace,
            format!("the disk of the database server at {server} is full"),
        )),
        Some(1205) => Some((
            ErrorKind::Busy,
            format!(
                "a table is in use on the database server at {server}; try again when the site is quiet"
            ),
        )),
        Some(1153) => Some((
            ErrorKind::Failed,
            format!(
                "a row is larger than max_allowed_packet of the database server at {server}; raise it"
            ),
        )),
        Some(1419) => Some((
            ErrorKind::Refused,
            format!(
                "the database server at {server} lets no customer create triggers or functions; set log_bin_trust_function_creators = 1 there"
            ),
        )),
        _ => None,
    };
    let error = match explained {
        Some((kind, message)) => Error::caused(kind, message, error),
        None => error,
    };
    SqlError { code, error }
}

/// `ERROR 1045 (28000)…` of a client, `Got error: 1045:`, `Error 2013:` and `… (1045)` of a dump program.
fn error_number(said: &str) -> Option<u16> {
    ["ERROR ", "Got error: ", "Error ", "errno: ", "("]
        .iter()
        .find_map(|before| {
            said.match_indices(before).find_map(|(at, _)| {
                let digits: String = said
                    .get(at + before.len()..)?
                    .chars()
                    .take_while(char::is_ascii_digit)
                    .collect();
                digits
                    .parse()
                    .ok()
                    .filter(|code| (1_000..10_000).contains(code))
            })
        })
}

/// What a client prints with `--batch`: a line per row, a tab between columns, both escaped inside.
fn parse_rows(printed: &[u8]) -> Rows {
    let mut lines: Vec<&[u8]> = printed.split(|&byte| byte == b'\n').collect();
    lines.pop(); // what comes after the last line's end: nothing
    lines
        .into_iter()
        .map(|line| line.split(|&byte| byte == b'\t').map(unescape).collect())
        .collect()
}

fn unescape(column: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(column.len());
    let mut bytes = column.iter();
    while let Some(&byte) = bytes.next() {
        if byte != b'\\' {
            plain.push(byte);
            continue;
        }
        match bytes.next() {
            Some(b'n') => plain.push(b'\n'),
            Some(b't') => plain.push(b'\t'),
            Some(b'0') => plain.push(0),
            Some(&other) => plain.push(other),
            None => plain.push(b'\\'),
        }
    }
    plain
}

/// An identifier in backticks.
pub(super) fn identifier(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}

/// A text literal that no SQL mode and no character set can misread.
pub(super) fn literal(text: &str) -> String {
    format!("CONVERT({} USING utf8mb4)", hex_literal(text.as_bytes()))
}

/// Bytes as a literal.
pub(super) fn hex_literal(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        "''".to_owned()
    } else {
        format!("0x{}", hex::encode(bytes))
    }
}

/// Bytes that the server sent in hexadecimal.
pub(super) fn from_hex(column: Option<&Vec<u8>>) -> Result<Vec<u8>> {
    column
        .and_then(|column| hex::decode(column).ok())
        .ok_or_else(|| {
            Error::new(
                ErrorKind::Failed,
                "the database server gave an answer that cannot be understood",
            )
        })
}

/// A name that the server sent in hexadecimal.
pub(super) fn name_from_hex(column: Option<&Vec<u8>>) -> Result<String> {
    String::from_utf8(from_hex(column)?).map_err(|error| {
        Error::caused(
            ErrorKind::Failed,
            "the database server gave a name that is not UTF-8",
            error,
        )
    })
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;
    use std::time::Instant;

    use xtask::mariadb::MariaDb;

    use super::*;

    fn account() -> Account {
        Account {
            user: "o'brien".to_owned(),
            password: SecretString::from("pa#ss\"w\\or'd\n"),
        }
    }

    fn tools(timeout: bool) -> Tools {
        Tools {
            family: Family::MySql,
            dump: "mysqldump".to_owned(),
            client: "mysql".to_owned(),
            script_options: SCRIPT_OPTIONS.to_vec(),
            timeout,
        }
    }

    #[test]
    fn the_password_is_in_no_argument() {
        let host = Endpoint::Host {
            host: "db.example".to_owned(),
            port: Some(3307),
        };
        let local = Server::new(host.clone(), Vec::new(), "x", SecretString::from("y"));
        let text = local
            .program("mysql", &account(), None)
            .unwrap()
            .to_string();
        assert_eq!(
            text,
            "mysql --defaults-file=… --protocol=tcp --host=db.example --port=3307"
        );
        let exec = ["docker", "exec", "-i", "customer-7-db"]
            .map(str::to_owned)
            .to_vec();
        let inside = Server::new(host, exec, "x", SecretString::from("y"));
        inside.tools.set(tools(true)).unwrap();
        let text = inside
            .program("mysql", &account(), Some(Duration::from_secs(60)))
            .unwrap()
            .to_string();
        assert!(
            text.starts_with("docker exec -e MYSQL_PWD -i customer-7-db timeout --foreground 61 mysql --no-defaults --user=o'brien"),
            "{text}"
        );
    }

    #[test]
    fn the_option_file_quotes_what_option_files_interpret() {
        assert_eq!(
            option_file(&account()).expose_secret(),
            "[client]\nuser=\"o'brien\"\npassword=\"pa#ss\\\"w\\\\or'd\\n\"\n"
        );
    }

    #[test]
    fn families_are_told_by_their_version() {
        assert_eq!(
            family("mysqldump  Ver 8.0.46 for Linux on x86_64 (MySQL Community Server - GPL)"),
            Family::MySql
        );
        assert_eq!(
            family("mysqldump  Ver 10.19 Distrib 10.11.19-MariaDB, for debian-linux-gnu"),
            Family::MariaDb
        );
    }

    #[test]
    fn rows_come_back_as_they_were() {
        assert_eq!(
            parse_rows(b"a\\tb\\\\n\tc\\n\\0\n\td\n"),
            vec![
                vec![b"a\tb\\n".to_vec(), b"c\n\0".to_vec()],
                vec![Vec::new(), b"d".to_vec()]
            ]
        );
        assert!(parse_rows(b"").is_empty());
    }

    #[test]
    fn error_numbers_are_read_off_clients_and_dump_programs() {
        assert_eq!(
            error_number("`mariadb` failed with exit status 1: ERROR 1205 (HY000) at line 2: Lock"),
            Some(1205)
        );
        assert_eq!(
            error_number("mysqldump: Got error: 1045: \"Access denied\" when trying to connect"),
            Some(1045)
        );
        assert_eq!(
            error_number("mariadb-dump: Error 2013: Lost connection to server during query"),
            Some(2013)
        );
        assert_eq!(
            error_number("mysqldump: Couldn't execute 'SHOW': no such view (1356)"),
            Some(1356)
        );
        assert_eq!(error_number("`mysqldump` failed with exit status 2"), None);
    }

    static MARIADB: LazyLock<MariaDb> = LazyLock::new(|| MariaDb::start().unwrap());

    fn server_of(mariadb: &MariaDb) -> Server {
        let password = SecretString::from(mariadb.root_password());
        Server::new(
            Endpoint::Socket(mariadb.socket()),
            Vec::new(),
            "root",
            password,
        )
    }

    fn number(server: &Server, sql: &str) -> u64 {
        let rows = server.query(sql, &Cancel::new()).unwrap();
        std::str::from_utf8(&rows[0][0]).unwrap().parse().unwrap()
    }

    /// Whoever answers: the same number is the same client.
    fn session(server: &Server) -> u64 {
        number(server, "SELECT CONNECTION_ID();")
    }

    /// The processes of clients of this server.
    fn clients_of(mariadb: &MariaDb) -> Vec<rustix::process::Pid> {
        let socket = format!("--socket={}", mariadb.socket().display());
        let processes = std::fs::read_dir("/proc").unwrap();
        let numbers =
            processes.filter_map(|process| process.ok()?.file_name().to_str()?.parse().ok());
        numbers
            .filter(|number: &i32| {
                let command = std::fs::read_to_string(format!("/proc/{number}/cmdline"));
                command.is_ok_and(|command| {
                    command.starts_with("mariadb\0") && command.contains(&socket)
                })
            })
            .filter_map(rustix::process::Pid::from_raw)
            .collect()
    }

    #[track_caller]
    fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !condition() {
            assert!(Instant::now() < deadline, "never happened: {what}");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_kept_client_gives_the_answers_of_one_that_is_started_for_each_question() {
        let (server, cancel) = (server_of(&MARIADB), Cancel::new());
        let long = format!(
            "SELECT '{}', LENGTH('{}');",
            "x".repeat(3_000_000),
            "y".repeat(5_000_000)
        );
        let many = format!("{} SELECT 'last';", "SELECT 1, NULL;".repeat(2_000));
        for sql in [
            "SELECT NULL, 'NULL', '';",
            "SELECT 'a\tb', 'a\nb', 'a\r\nb', 'a\\\\b', 'ä☃';",
            "SELECT UNHEX(REPLACE(HEX(RPAD('', 300, UNHEX('00FF0A090D5C27'))), 'z', ''));",
            "SELECT 1 FROM DUAL WHERE FALSE;",
            "DO 1;",
            "SELECT 1 FROM DUAL WHERE FALSE; SELECT 2; SELECT 3 UNION SELECT 4;",
            "SELECT 'one';\n-- a comment\n/* and */ SELECT 'two' ; ",
            "SHOW DATABASES;",
            &long,
            &many,
        ] {
            let kept = server.query(sql, &cancel).unwrap();
            assert_eq!(kept, server.query_apart(sql, &cancel).unwrap());
        }
    }

    #[test]
    fn questions_share_a_client_and_see_nothing_of_what_a_script_did_to_its_session() {
        let (server, cancel) = (server_of(&MARIADB), Cancel::new());
        let state = "SELECT @@sql_mode, @@lock_wait_timeout, @@foreign_key_checks, @@character_set_results, @a, DATABASE(), CONNECTION_ID();";
        let before = server.query(state, &cancel).unwrap();
        let script = format!(
            "SET sql_mode = 'ANSI_QUOTES', lock_wait_timeout = 1, foreign_key_checks = 0, character_set_results = binary, @a = 1; USE mysql; {state}"
        );
        let within = server.query_apart(&script, &cancel).unwrap();
        for (ours, theirs) in before[0].iter().zip(&within[0]) {
            assert_ne!(ours, theirs);
        }
        assert_eq!(server.clone().query(state, &cancel).unwrap(), before);
    }

    #[test]
    fn an_error_is_the_one_of_a_script_and_the_next_question_is_answered() {
        let (server, cancel) = (server_of(&MARIADB), Cancel::new());
        for sql in [
            "SELECT 1; SELECT nonsense; SELECT 2;",
            "DROP DATABASE not_there;",
        ] {
            let before = session(&server);
            let kept = server.query(sql, &cancel).unwrap_err();
            let own = server.query_apart(sql, &cancel).unwrap_err();
            assert!(kept.code.is_some());
            assert_eq!(kept.code, own.code);
            assert_eq!(kept.error.kind(), own.error.kind());
            assert_ne!(session(&server), before);
        }
        let stranger = Server::new(
            Endpoint::Socket(MARIADB.socket()),
            Vec::new(),
            "root",
            SecretString::from("not it"),
        );
        let error = stranger.query("SELECT 1;", &cancel).unwrap_err();
        assert_eq!(
            (error.code, error.error.kind()),
            (Some(1045), ErrorKind::Refused)
        );
        assert!(!error.error.chain().to_string().contains("not it"));
    }

    #[test]
    fn a_question_has_its_limit_and_can_be_called_off() {
        let (server, cancel) = (server_of(&MARIADB), Cancel::new());
        let before = session(&server);
        let sleep = "SELECT SLEEP(600), 'called off';";
        let error = server.ask_kept(sleep, Duration::from_millis(200), &cancel);
        assert_eq!(error.unwrap_err().error.kind(), ErrorKind::Timeout);
        let second = session(&server);
        assert_ne!(second, before);
        std::thread::scope(|scope| {
            let asked = scope.spawn(|| server.query(sleep, &cancel));
            let asleep = format!(
                "SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE ID = {second} AND STATE = 'User sleep'"
            );
            eventually("it sleeps", || MARIADB.sql(&asleep).unwrap() == "1\n");
            cancel.cancel();
            let error = asked.join().unwrap().unwrap_err();
            assert_eq!(error.error.kind(), ErrorKind::Cancelled);
        });
        let error = server.query("SELECT 1;", &cancel).unwrap_err();
        assert_eq!(error.error.kind(), ErrorKind::Cancelled);
        assert_ne!(session(&server), second);
    }

    #[test]
    fn two_threads_ask_at_once_and_one_client_is_kept() {
        let mariadb = MariaDb::start().unwrap();
        let server = server_of(&mariadb);
        mariadb
            .sql("CREATE DATABASE x; CREATE TABLE x.t (i INT); INSERT INTO x.t VALUES (1);")
            .unwrap();
        let lock = mariadb.lock_table("x.t").unwrap();
        let sessions = std::thread::scope(|scope| {
            let ask = || number(&server, "SELECT CONNECTION_ID() FROM x.t;");
            let asked = [scope.spawn(ask), scope.spawn(ask)];
            eventually("both wait", || {
                mariadb.waiting_for_table().unwrap().len() == 2
            });
            drop(lock);
            asked.map(|one| one.join().unwrap())
        });
        assert_ne!(sessions[0], sessions[1]);
        assert_eq!(clients_of(&mariadb).len(), 1);
        assert!(sessions.contains(&session(&server)));
    }

    #[test]
    fn a_client_whose_server_or_self_has_died_is_replaced_and_nothing_is_done_twice() {
        // What is committed stays when it is killed.
        let mut mariadb = MariaDb::start_with(&["--innodb-flush-log-at-trx-commit=1"]).unwrap();
        let (server, cancel) = (server_of(&mariadb), Cancel::new());
        server
            .query(
                "CREATE DATABASE x; CREATE TABLE x.t (i INT); INSERT INTO x.t VALUES (0);",
                &cancel,
            )
            .unwrap();
        let mut count = 1;
        let mut after = |what: &str, mariadb: &mut MariaDb, act: &dyn Fn(&mut MariaDb)| {
            let before = session(&server);
            act(mariadb);
            server
                .query("INSERT INTO x.t VALUES (1);", &cancel)
                .unwrap();
            count += 1;
            assert_eq!(
                number(&server, "SELECT COUNT(*) FROM x.t;"),
                count,
                "{what}"
            );
            assert_eq!(clients_of(mariadb).len(), 1, "{what}");
            before
        };
        after("a server that is started again", &mut mariadb, &|mariadb| {
            mariadb.stop().unwrap();
            mariadb.restart().unwrap();
        });
        after("a server that was killed", &mut mariadb, &|mariadb| {
            mariadb.kill();
            mariadb.restart().unwrap();
        });
        let before = after("a session that was ended", &mut mariadb, &|mariadb| {
            let others = "SELECT ID FROM information_schema.PROCESSLIST WHERE USER = 'root' AND ID <> CONNECTION_ID()";
            let id = mariadb.sql(others).unwrap();
            mariadb.sql(&format!("KILL {id}")).unwrap();
        });
        assert_ne!(session(&server), before);
        let before = after("a client that was killed", &mut mariadb, &|mariadb| {
            for client in clients_of(mariadb) {
                rustix::process::kill_process(client, rustix::process::Signal::KILL).unwrap();
            }
        });
        assert_ne!(session(&server), before);
        mariadb.stop().unwrap();
        let error = server.query("SELECT 1;", &cancel).unwrap_err();
        assert_eq!(error.error.kind(), ErrorKind::Unreachable);
        mariadb.restart().unwrap();
        assert_eq!(number(&server, "SELECT COUNT(*) FROM x.t;"), count);
    }

    #[test]
    fn a_kept_client_ends_with_the_last_who_has_its_server() {
        let mariadb = MariaDb::start().unwrap();
        let server = server_of(&mariadb);
        let first = session(&server);
        let other = server.clone();
        drop(server);
        assert_eq!(session(&other), first);
        assert_eq!(clients_of(&mariadb).len(), 1);
        drop(other);
        assert!(clients_of(&mariadb).is_empty());
        let sessions = "SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE USER = 'root' AND ID <> CONNECTION_ID()";
        eventually("no session is left", || {
            mariadb.sql(sessions).unwrap() == "0\n"
        });
        assert_eq!(
            mariadb
                .sql("SHOW GLOBAL STATUS LIKE 'Aborted_clients'")
                .unwrap(),
            "Aborted_clients\t0\n"
        );
    }

    #[test]
    fn nothing_stays_in_use_of_what_was_asked_where_a_server_begins_transactions_by_itself() {
        let mariadb = MariaDb::start_with(&["--autocommit=0"]).unwrap();
        let (server, cancel) = (server_of(&mariadb), Cancel::new());
        server
            .query(
                "CREATE DATABASE x; CREATE TABLE x.t (i INT); INSERT INTO x.t VALUES (1);",
                &cancel,
            )
            .unwrap();
        assert_eq!(number(&server, "SELECT COUNT(*) FROM x.t;"), 1);
        mariadb
            .sql("SET lock_wait_timeout = 0; RENAME TABLE x.t TO x.u;")
            .unwrap();
        assert_eq!(number(&server, "SELECT COUNT(*) FROM x.u;"), 1);
        // Whoever asks: what was changed stays when its client ends.
        server.change("UPDATE x.u SET i = 2;", &cancel).unwrap();
        assert_eq!(number(&server, "SELECT i FROM x.u;"), 2);
    }

    #[test]
    fn identifiers_and_literals_hold_anything() {
        assert_eq!(identifier("a`b"), "`a``b`");
        assert_eq!(literal("ä"), "CONVERT(0xc3a4 USING utf8mb4)");
    }
}
