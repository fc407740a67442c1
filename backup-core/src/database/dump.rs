//! The dump of one database as a stream.
//!
//! Never: a dump program's early death that looks like the end of the dump; a temporary file; more than a buffer in memory.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fmt;
use std::io::{self, Read};
use std::process::ChildStdout;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::database::Server;
use crate::database::accounts::GRANTEE;
use crate::database::client::{Family, Tools, explain, literal, name_from_hex};
use crate::error::{Error, ErrorKind, Result};
use crate::process::Running;
use crate::progress::{Cancel, Control};

/// The last line of a dump that is whole.
pub(super) const TRAILER: &[u8] = b"-- Dump completed";

/// A dump that runs. Its reader is to be read to the end, then [`Dump::finish`] says whether it is whole. Dropping it kills
/// the dump program.
pub struct Dump {
    shared: Arc<Shared>,
    reader: Option<Box<dyn Read + Send>>,
}

/// What a finished dump came to.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DumpReport {
    /// The length of the dump.
    pub bytes: u64,
    /// The tables and views that the server had in the database when the dump began and when it ended: a dump that lacks one of them is not whole, whatever
    /// its program says. None where they are not known.
    pub tables: Option<Vec<String>>,
}

/// Start dumping `database`: tables with their rows as of one moment (those of transactional engines), views,
/// triggers, routines and events. An unchanged database gives the same bytes again.
///
/// What the account cannot see and the dump program would silently leave out is told to the monitor as a warning.
///
/// # Errors
/// [`ErrorKind::NotFound`] when there is no such database, [`ErrorKind::Configuration`] when the client programs are
/// missing, [`ErrorKind::Refused`] and [`ErrorKind::Unreachable`] as the server has it. `limit` and cancelling
/// kill the dump program; the reader then gives an error and never an end.
pub fn dump(server: &Server, database: &str, limit: Duration, control: &Control) -> Result<Dump> {
    check(server, database, control)?;
    let everything = ["--routines", "--triggers", "--events"];
    let before = table_names(server, database, &control.cancel)?;
    let dump = start(
        server,
        database,
        everything,
        |stdout| Box::new(stdout),
        limit,
        control,
    )?;
    dump.shared.lock().tables = Some(before);
    Ok(dump)
}

/// The tables and views of a schema, as the server lists them.
pub(super) fn table_names(
    server: &Server,
    schema: &str,
    cancel: &Cancel,
) -> Result<BTreeSet<String>> {
    let rows = server.query(
        &format!(
            "SELECT HEX(TABLE_NAME) FROM information_schema.TABLES WHERE TABLE_SCHEMA = {};",
            literal(schema)
        ),
        cancel,
    )?;
    rows.iter().map(|row| name_from_hex(row.first())).collect()
}

/// What is to be known of a database before it is dumped.
pub(super) fn check(server: &Server, database: &str, control: &Control) -> Result<()> {
    let tools = server.tools(&control.cancel)?;
    check_database(server, database, control)?;
    check_rights(server, database, control)?;
    check_events(server, database, control)?;
    check_family(server, tools, database, control)
}

/// Start dumping `database` with `options` besides those that every dump is made with. What the program prints is read through
/// what `edit` makes of it, and its end is judged by what comes out there.
pub(super) fn start<I>(
    server: &Server,
    database: &str,
    options: I,
    edit: impl FnOnce(ChildStdout) -> Box<dyn Read + Send>,
    limit: Duration,
    control: &Control,
) -> Result<Dump>
where
    I: IntoIterator,
    I::Item: Into<OsString>,
{
    let tools = server.tools(&control.cancel)?;
    let program = server
        .program(&tools.dump, &server.account, Some(limit))?
        .args(common_options(tools.family))
        .args(options)
        .arg("--")
        .arg(database);
    server.end_resting();
    let mut running = program.spawn(limit, &control.cancel)?;
    drop(running.take_stdin());
    running.widen();
    let stdout = running
        .take_stdout()
        .ok_or_else(|| Error::new(ErrorKind::Failed, "the dump program has no output"))?;
    let shared = Arc::new(Shared {
        server: server.clone(),
        database: database.to_owned(),
        running,
        state: Mutex::default(),
    });
    Ok(Dump {
        reader: Some(Box::new(Reader {
            source: edit(stdout),
            shared: Arc::clone(&shared),
        })),
        shared,
    })
}

/// `--single-transaction` gives the rows of one moment without locking anybody out, and rules out `LOCK TABLES`;
/// `--hex-blob` keeps binary data whole through any character set; without the date, an unchanged database
/// gives an unchanged dump, which the repository then stores once; the large packet is for large rows.
fn common_options(family: Family) -> Vec<&'static str> {
    let mut options = vec![
        "--single-transaction",
        "--quick",
        "--hex-blob",
        "--default-character-set=utf8mb4",
        "--no-tablespaces",
        "--skip-dump-date",
        "--comments",
        "--max-allowed-packet=1G",
    ];
    if family == Family::MySql {
        options.extend(["--set-gtid-purged=OFF", "--column-statistics=0"]);
    }
    options
}

fn check_database(server: &Server, database: &str, control: &Control) -> Result<()> {
    let found = server.query(
        &format!(
            "SELECT 1 FROM information_schema.SCHEMATA WHERE SCHEMA_NAME = {};",
            literal(database)
        ),
        &control.cancel,
    )?;
    if found.is_empty() {
        return Err(Error::new(
            ErrorKind::NotFound,
            format!(
                "there is no database {database} on the server at {server}, or the account may not see it"
            ),
        ));
    }
    Ok(())
}

/// Routines and triggers that the account may not see are missing from a dump without a word.
fn check_rights(server: &Server, database: &str, control: &Control) -> Result<()> {
    let rights = server.query(
        &format!(
            "SELECT 'global', PRIVILEGE_TYPE FROM information_schema.USER_PRIVILEGES WHERE GRANTEE = {GRANTEE}
             UNION ALL SELECT 'schema', PRIVILEGE_TYPE FROM information_schema.SCHEMA_PRIVILEGES WHERE GRANTEE = {GRANTEE} AND {} LIKE TABLE_SCHEMA;
             SELECT 'version', VERSION();",
            literal(database)
        ),
        &control.cancel,
    )?;
    let has = |scopes: &[&str], right: &str| {
        rights.iter().any(|row| {
            matches!(row.as_slice(), [scope, name] if scopes.iter().any(|s| s.as_bytes() == scope) && name == right.as_bytes())
        })
    };
    let is_mariadb = rights
        .iter()
        .any(|row| String::from_utf8_lossy(&row.concat()).contains("MariaDB"));
    let user = &server.account.user;
    if !has(&["global", "schema"], "TRIGGER") {
        control.monitor.warning(&format!(
            "the account {user} may not see triggers: a dump of {database} holds none; GRANT TRIGGER on the database to it"
        ));
    }
    let sees_routines = has(&["global"], "SELECT")
        || has(&["global"], "SHOW_ROUTINE")
        || has(&["global", "schema"], "SHOW CREATE ROUTINE")
        || (is_mariadb
            && server
                .query("SELECT 1 FROM mysql.proc LIMIT 0;", &control.cancel)
                .is_ok());
    if !sees_routines {
        let grant = if is_mariadb {
            "SELECT ON mysql.proc"
        } else {
            "SHOW_ROUTINE ON *.*"
        };
        control.monitor.warning(&format!(
            "the account {user} may not see routines of others: a dump of {database} may lack some; GRANT {grant} to it"
        ));
    }
    Ok(())
}

/// The dump programs look for ever for a delimiter that is not in such an event: it is better said at once.
fn check_events(server: &Server, database: &str, control: &Control) -> Result<()> {
    let rows = server.query(
        &format!(
            "SELECT HEX(EVENT_NAME) FROM information_schema.EVENTS
             WHERE EVENT_SCHEMA = {} AND INSTR(CONCAT(EVENT_DEFINITION, EVENT_COMMENT, EVENT_NAME), ';;') > 0 LIMIT 1;",
            literal(database)
        ),
        &control.cancel,
    )?;
    match rows.first() {
        Some(row) => Err(Error::new(
            ErrorKind::Damaged,
            format!(
                "the event {} of the database {database} holds `;;`, which the dump programs cannot dump; change it",
                name_from_hex(row.first())?
            ),
        )),
        None => Ok(()),
    }
}

/// The dump programs of the one family write generated columns of the other's servers in a way that cannot be restored.
pub(super) fn check_family(
    server: &Server,
    tools: &Tools,
    database: &str,
    control: &Control,
) -> Result<()> {
    let (theirs, ours) = (server.server_family(&control.cancel)?, tools.family);
    if theirs == ours {
        return Ok(());
    }
    let advice = format!(
        "the server at {server} is of {theirs} and the dump program of {ours}; install the client programs of {theirs}"
    );
    let generated = server.query_apart(
        &format!(
            "SELECT 1 FROM information_schema.COLUMNS WHERE TABLE_SCHEMA = {} AND GENERATION_EXPRESSION <> '' LIMIT 1;",
            literal(database)
        ),
        &control.cancel,
    )?;
    if !generated.is_empty() {
        return Err(Error::new(
            ErrorKind::Configuration,
            format!("the database {database} has generated columns, {advice}"),
        ));
    }
    control.monitor.warning(&advice);
    Ok(())
}

impl Dump {
    /// What streams the dump, once; for another thread if wanted. It gives an error and not an end when the dump is not whole.
    pub fn take_reader(&mut self) -> Option<Box<dyn Read + Send>> {
        self.reader.take()
    }

    /// Whether the dump that was read is whole.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] when it is not; what the reader met: a failure of the dump program, [`ErrorKind::Timeout`],
    /// [`ErrorKind::Cancelled`]; [`ErrorKind::Failed`] when it was not read to its end.
    pub fn finish(self) -> Result<DumpReport> {
        let mut state = self.shared.lock();
        match state.outcome.take() {
            Some(Ok(())) => Ok(DumpReport {
                bytes: state.bytes,
                tables: state.tables.take().map(Vec::from_iter),
            }),
            Some(Err(error)) => Err(error),
            None => Err(Error::new(
                ErrorKind::Failed,
                format!(
                    "the dump of {} was not read to its end",
                    self.shared.database
                ),
            )),
        }
    }
}

impl Drop for Dump {
    fn drop(&mut self) {
        self.shared.running.kill();
    }
}

impl fmt::Debug for Dump {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Dump({})", self.shared.database)
    }
}

struct Shared {
    server: Server,
    database: String,
    running: Running,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    bytes: u64,
    /// The end of what was read so far, enough for the trailer.
    tail: Vec<u8>,
    outcome: Option<Result<()>>,
    /// What there was when it began, and once it has ended, of that what there still is: a shop makes and drops tables meanwhile.
    tables: Option<BTreeSet<String>>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A backup is as good without knowing it.
    fn look_again(&self) -> Option<BTreeSet<String>> {
        let before = self.lock().tables.take()?;
        match table_names(&self.server, &self.database, &Cancel::new()) {
            Ok(after) => Some(before.intersection(&after).cloned().collect()),
            Err(error) => {
                tracing::warn!(
                    "which tables the database {} has is not written down with its backup: {}",
                    self.database,
                    error.chain()
                );
                None
            }
        }
    }

    fn judge(&self) -> Result<()> {
        let database = &self.database;
        self.running.wait().map_err(|error| {
            let error = Error::from(explain(&self.server, &self.server.account, error));
            match error.kind() {
                ErrorKind::Cancelled => error,
                _ => error.context(format!("the dump of the database {database} failed")),
            }
        })?;
        let state = self.lock();
        if state.bytes == 0 {
            return Err(Error::new(
                ErrorKind::Damaged,
                format!("the dump of the database {database} is empty"),
            ));
        }
        if !ends_with_trailer(&state.tail) {
            return Err(Error::new(
                ErrorKind::Damaged,
                format!("the dump of the database {database} is cut off: its last line is missing"),
            ));
        }
        Ok(())
    }
}

const TAIL_BYTES: usize = 256;

fn keep_tail(tail: &mut Vec<u8>, read: &[u8]) {
    tail.extend_from_slice(
        read.get(read.len().saturating_sub(TAIL_BYTES)..)
            .unwrap_or(read),
    );
    let surplus = tail.len().saturating_sub(TAIL_BYTES);
    tail.drain(..surplus);
}

fn ends_with_trailer(tail: &[u8]) -> bool {
    let last_line = tail.trim_ascii_end().rsplit(|&byte| byte == b'\n').next();
    last_line.is_some_and(|line| line.starts_with(TRAILER))
}

struct Reader {
    source: Box<dyn Read + Send>,
    shared: Arc<Shared>,
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let n = self.source.read(buffer)?;
        if let (Some(read), true) = (buffer.get(..n), n > 0) {
            let mut state = self.shared.lock();
            state.bytes += n as u64;
            keep_tail(&mut state.tail, read);
            return Ok(n);
        }
        let known = self.shared.lock().outcome.is_some();
        if !known {
            let outcome = self.shared.judge();
            let tables = outcome.is_ok().then(|| self.shared.look_again()).flatten();
            let mut state = self.shared.lock();
            state.tables = tables;
            state.outcome = Some(outcome);
        }
        match &self.shared.lock().outcome {
            Some(Err(error)) => Err(io::Error::other(error.to_string())),
            _ => Ok(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use secrecy::SecretString;
    use xtask::mariadb::MariaDb;

    use super::*;
    use crate::database::Endpoint;

    #[test]
    fn the_trailer_is_found_at_the_very_end_only() {
        let mut tail = Vec::new();
        for piece in [
            &[b'x'; 1000][..],
            b"\n-- Dump com",
            b"pleted on 2026-11-22\n",
        ] {
            keep_tail(&mut tail, piece);
        }
        assert!(ends_with_trailer(&tail));
        keep_tail(&mut tail, b"x");
        assert!(!ends_with_trailer(&tail));
        assert!(!ends_with_trailer(b""));
    }

    #[test]
    fn options_that_only_one_family_knows_go_to_that_family() {
        assert!(common_options(Family::MySql).contains(&"--set-gtid-purged=OFF"));
        assert!(
            !common_options(Family::MariaDb)
                .iter()
                .any(|option| option.contains("gtid") || option.contains("statistics"))
        );
    }

    #[test]
    fn the_deadline_ends_a_dump_program_that_an_event_hangs() {
        let mariadb = MariaDb::start().unwrap();
        mariadb
            .sql("CREATE DATABASE x; CREATE EVENT x.e ON SCHEDULE EVERY 1 DAY DO SET @a = ';;'")
            .unwrap();
        let password = SecretString::from(mariadb.root_password());
        let server = Server::new(
            Endpoint::Socket(mariadb.socket()),
            Vec::new(),
            "root",
            password,
        );
        let control = Control::default();
        let (limit, started) = (Duration::from_secs(1), Instant::now());
        let mut dump = start(
            &server,
            "x",
            ["--events"],
            |stdout| Box::new(stdout),
            limit,
            &control,
        )
        .unwrap();
        let mut read = Vec::new();
        dump.take_reader()
            .unwrap()
            .read_to_end(&mut read)
            .unwrap_err();
        assert_eq!(dump.finish().unwrap_err().kind(), ErrorKind::Timeout);
        assert!(started.elapsed() < Duration::from_secs(20));
    }
}
