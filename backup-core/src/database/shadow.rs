//! The shadow schema: a dump is imported beside the live schema, by an account that can do no harm elsewhere.
//!
//! Its name is the live one's with `__restore_` and eight random digits: a stale one is known by that. Never: an import as the server's own
//! account; an import taken for good that changed something elsewhere; an event of a dump that runs while it is staged; a schema, an account or
//! a right that stays behind.

use std::ffi::OsString;
use std::fmt;
use std::io::{ErrorKind as IoErrorKind, Read};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::database::Server;
use crate::database::accounts::{
    Identity, ImportAccount, drop_importer, grant, grantees, importer_definer, open_importer,
    open_tenant, revoke, settle_account,
};
use crate::database::client::{SqlError, explain, from_hex, identifier, literal, name_from_hex};
use crate::database::dump::table_names;
use crate::database::names::{SHADOW_MARK, beside, is_beside, schemas_beside};
use crate::database::rewrite::{Definer, Findings, Rewriter};
use crate::database::sessions::Sessions;
use crate::database::surroundings::Surroundings;
use crate::error::{Error, ErrorKind, Result};
use crate::fault;
use crate::progress::{Cancel, Control};

const BUFFER_BYTES: usize = 256 << 10;
/// What a server accepts for the time that a session may do nothing: a year.
const MOST_WAIT_SECONDS: u64 = 365 * 24 * 60 * 60;
/// The table of a shadow schema that is empty once its server was restarted.
pub(super) const WITNESS: &str = "~shophosting backup: run";

/// A schema that somebody holds on to is dropped in so many tries of so many seconds.
const DROP_TRIES: u32 = 12;
const DROP_LOCK_SECONDS: u32 = 5;
/// So many of them end transactions only; after that every session of the tenant has to go.
const DROP_PATIENCE: u32 = 2;
const BUSY: u16 = 1205;
/// That there is a schema of this name.
const EXISTS: u16 = 1007;

/// A schema beside the live one. It outlives this value: it is either swapped in and then discarded, or only discarded.
pub struct Shadow {
    pub(super) live: String,
    pub(super) schema: String,
    /// Who imports.
    pub(super) importer: Identity,
    /// Who creates in the live schema and is the definer there.
    pub(super) tenant: Identity,
    pub(super) findings: Findings,
}

impl Shadow {
    /// The shadow schema's name, for a journal: [`discard`] needs no more.
    pub fn schema(&self) -> &str {
        &self.schema
    }

    /// The live schema's name.
    pub fn live(&self) -> &str {
        &self.live
    }
}

impl fmt::Debug for Shadow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Shadow({} of {})", self.schema, self.live)
    }
}

/// What a shadow schema holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Inventory {
    /// Tables and sequences.
    pub tables: u64,
    /// Views.
    pub views: u64,
    /// Triggers.
    pub triggers: u64,
    /// Stored procedures, functions and packages.
    pub routines: u64,
    /// Events.
    pub events: u64,
}

/// Create an empty shadow schema for `live`, with its character set, and an account to import with that has rights on nothing else. Where the
/// server's account may not create one, the customer's own is given rights on it.
///
/// # Errors
/// [`ErrorKind::Refused`] when the customer's password is wrong or the server's account lacks a right. Nothing is left behind.
pub fn prepare_shadow(
    server: &Server,
    live: &str,
    account: &ImportAccount,
    control: &Control,
) -> Result<Shadow> {
    let cancel = &control.cancel;
    let tenant = open_tenant(server, live, account, cancel)?;
    let schema = beside(live, SHADOW_MARK);
    let warn = |text: &str| control.monitor.warning(text);
    let opened = match create_schema(server, live, &schema, cancel) {
        Err(error) => Err((error, settle_account(server, live))),
        Ok(()) => open_shadow(server, &schema, &tenant, cancel)
            .map_err(|error| (error, discard_shadow(server, live, &schema, &warn))),
    };
    let importer = opened.map_err(|(error, removed)| {
        let error = error.context(format!("cannot prepare the restore of the database {live}"));
        match removed {
            Ok(()) => error,
            Err(second) => {
                error.context(format!("what was prepared could not be removed: {second}"))
            }
        }
    })?;
    Ok(Shadow {
        live: live.to_owned(),
        schema,
        importer,
        tenant,
        findings: Findings::default(),
    })
}

/// A server that does not sync each commit has lost the last ones once it died; nothing else would tell that rows of the import are missing. What
/// a table in memory holds tells that it is still the same run of the server; it goes with the question.
pub(super) fn require_same_server_run(
    server: &Server,
    shadow: &Shadow,
    cancel: &Cancel,
) -> Result<()> {
    let witness = witness(&shadow.schema);
    let rows = server.query_apart(&format!("SELECT COUNT(*) FROM {witness};"), cancel)?;
    if rows.concat() != [b"1"] {
        return Err(Error::new(
            ErrorKind::Unreachable,
            "the database server was restarted since the dump was imported, and may have lost some of it",
        ));
    }
    server.query(&format!("DROP TABLE {witness};"), cancel)?;
    Ok(())
}

fn witness(schema: &str) -> String {
    format!("{}.{}", identifier(schema), identifier(WITNESS))
}

/// The schema before the account, which is known by it.
fn open_shadow(
    server: &Server,
    schema: &str,
    tenant: &Identity,
    cancel: &Cancel,
) -> Result<Identity> {
    let importer = open_importer(server, schema, tenant, cancel)?;
    open_schema(server, &importer, schema, cancel)?;
    Ok(importer)
}

/// Fails where there is one of this name, which is somebody else's and stays. Of its own nothing is left where it fails.
pub(super) fn create_schema(
    server: &Server,
    live: &str,
    schema: &str,
    cancel: &Cancel,
) -> Result<()> {
    let like = match default_charset(server, live, cancel)? {
        Some((charset, collation)) => format!("CHARACTER SET {charset} COLLATE {collation}"),
        None => String::new(),
    };
    let witness = witness(schema);
    let created = server.query_apart(
        &format!(
            "CREATE DATABASE {} {like};
             CREATE TABLE {witness} (i INT) ENGINE = MEMORY; INSERT INTO {witness} VALUES (1);",
            identifier(schema)
        ),
        cancel,
    );
    match created {
        Ok(_) => Ok(()),
        Err(error) if error.code == Some(EXISTS) => Err(error.into()),
        // How far it had come, whoever is cancelled is not told.
        Err(error) => match drop_unused(server, schema) {
            Ok(()) => Err(error.into()),
            Err(second) => Err(Error::from(error).context(format!(
                "the schema {schema} could not be removed: {second}"
            ))),
        },
    }
}

/// Drop a schema that no dump was imported into yet. One that has more in it than we had made is none of ours.
pub(super) fn drop_unused(server: &Server, schema: &str) -> Result<()> {
    let cancel = &Cancel::new();
    if default_charset(server, schema, cancel)?.is_none() {
        return Ok(());
    }
    let mut tables = table_names(server, schema, cancel)?;
    tables.remove(WITNESS);
    if tables.is_empty() {
        server.query(
            &format!("DROP DATABASE IF EXISTS {};", identifier(schema)),
            cancel,
        )?;
    }
    Ok(())
}

/// Let whoever imports into the schema.
pub(super) fn open_schema(
    server: &Server,
    importer: &Identity,
    schema: &str,
    cancel: &Cancel,
) -> Result<()> {
    grant(server, importer, schema, cancel)?;
    importer.check_login(server, schema, cancel)
}

/// A schema's default character set and collation; `None` when there is no such schema.
pub(super) fn default_charset(
    server: &Server,
    schema: &str,
    cancel: &Cancel,
) -> Result<Option<(String, String)>> {
    let rows = server.query(
        &format!(
            "SELECT DEFAULT_CHARACTER_SET_NAME, DEFAULT_COLLATION_NAME FROM information_schema.SCHEMATA WHERE SCHEMA_NAME = {};",
            literal(schema)
        ),
        cancel,
    )?;
    let Some(row) = rows.first() else {
        return Ok(None);
    };
    match row.as_slice() {
        [charset, collation] => Ok(Some((plain_name(charset)?, plain_name(collation)?))),
        _ => Err(Error::new(
            ErrorKind::Failed,
            "the database server did not tell a schema's character set",
        )),
    }
}

/// The name of a character set, a collation or a time zone: nothing that would need quoting.
pub(super) fn plain_name(name: &[u8]) -> Result<String> {
    match std::str::from_utf8(name) {
        Ok(name)
            if name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"_+-:/".contains(&byte)) =>
        {
            Ok(name.to_owned())
        }
        _ => Err(Error::new(
            ErrorKind::Failed,
            format!(
                "the database server gave the strange name {}",
                String::from_utf8_lossy(name)
            ),
        )),
    }
}

/// Read a dump into the shadow schema. `limit` is for the whole of it. The monitor is told no bytes here: whoever reads the dump
/// from where it lies counts them.
///
/// The dump's definers become the importing account, and with the swap the customer's (with a warning when one was another), its events do not run
/// before they are swapped in, and what it says of the live schema by name it says of the shadow.
///
/// # Errors
/// [`ErrorKind::Damaged`] when the dump is cut off, was made with `--databases` or changed something outside of the shadow schema, [`ErrorKind::Timeout`],
/// [`ErrorKind::Cancelled`], [`ErrorKind::Failed`] with what the server said. The shadow is to be discarded. The live schema is untouched, for the importing account has no
/// rights on it; where there is none but the customer's own, what a hostile dump changed there is only found out, unless it is rows, which are not compared.
pub fn import(
    server: &Server,
    shadow: &mut Shadow,
    dump: Box<dyn Read + Send>,
    limit: Duration,
    control: &Control,
) -> Result<()> {
    let failed = |error: Error| match error.kind() {
        ErrorKind::Cancelled => error,
        _ => error.context(format!("the import of the database {} failed", shadow.live)),
    };
    let (importer, tenant) = (&shadow.importer, &shadow.tenant);
    let before = Surroundings::of(server, importer, &shadow.schema, &control.cancel)?;
    let tools = server.tools(&control.cancel)?;
    let program = server
        .program(&tools.client, &importer.account, Some(limit))?
        .args(&tools.script_options)
        // In place of the one among those. A session waits while the other has something to do, for longer than a server may let it.
        .arg(format!(
            "--init-command=SET autocommit = 1, wait_timeout = {}",
            limit.as_secs().clamp(60, MOST_WAIT_SECONDS)
        ))
        .args(["--default-character-set=utf8mb4", "--quick", "--unbuffered"])
        .arg(format!("--database={}", shadow.schema));
    let began = Instant::now();
    let open = || program.spawn(limit.saturating_sub(began.elapsed()), &control.cancel);
    // The customer's own account may not be let in twice, or his site not any more.
    let sessions = Sessions::new(&open, importer.temporary)?;
    let rewriter = Rewriter::new(
        &importer.definer,
        &tenant.definer,
        &shadow.live,
        &shadow.schema,
    );
    let (findings, sessions) = stream(sessions, rewriter, dump, control).map_err(failed)?;
    let arrived = sessions
        .finish()
        .map_err(|error| failed(explain(server, &importer.account, error).error))?;
    if !arrived {
        return Err(failed(Error::new(
            ErrorKind::Damaged,
            "the client program did not take the end of the dump for what it is: some statement in it is not closed",
        )));
    }
    let after = Surroundings::of(server, importer, &shadow.schema, &control.cancel)?;
    before.check_same(&after).map_err(failed)?;
    if !findings.foreign_definers.is_empty() {
        control.monitor.warning(&format!(
            "in the database {}, {} becomes the definer in place of {}",
            shadow.live,
            tenant.definer.quoted(),
            findings.foreign_definers.join(", ")
        ));
    }
    shadow.findings = findings;
    Ok(())
}

/// Pass the dump on, to its end or up to where a session takes no more.
fn stream<'a>(
    mut sessions: Sessions<'a>,
    mut rewriter: Rewriter,
    mut dump: Box<dyn Read + Send>,
    control: &Control,
) -> Result<(Findings, Sessions<'a>)> {
    let mut buffer = vec![0; BUFFER_BYTES];
    while !sessions.has_ended() {
        control.cancel.check()?;
        let n = match dump.read(&mut buffer) {
            Ok(n) => n,
            Err(error) if error.kind() == IoErrorKind::Interrupted => continue,
            Err(error) => return Err(Error::io("the dump could not be read", error)),
        };
        let Some(read) = buffer.get(..n).filter(|read| !read.is_empty()) else {
            break;
        };
        rewriter.feed(read, &mut sessions)?;
    }
    let findings = rewriter.finish(&mut sessions)?;
    if !findings.whole && !sessions.has_ended() {
        return Err(Error::new(
            ErrorKind::Damaged,
            "the dump is cut off: its last line, `-- Dump completed`, is missing",
        ));
    }
    Ok((findings, sessions))
}

/// Check that the import is whole, and count what it brought.
///
/// # Errors
/// [`ErrorKind::Damaged`] when there are not as many tables as the dump creates.
pub fn verify(server: &Server, shadow: &Shadow, control: &Control) -> Result<Inventory> {
    let schema = literal(&shadow.schema);
    let rows = server.query(
        &format!(
            "SELECT COALESCE(SUM(TABLE_TYPE <> 'VIEW'), 0), COALESCE(SUM(TABLE_TYPE = 'VIEW'), 0) FROM information_schema.TABLES WHERE TABLE_SCHEMA = {schema} AND TABLE_NAME <> '{WITNESS}';
             SELECT COUNT(*) FROM information_schema.TRIGGERS WHERE TRIGGER_SCHEMA = {schema};
             SELECT COUNT(*) FROM information_schema.ROUTINES WHERE ROUTINE_SCHEMA = {schema};
             SELECT COUNT(*) FROM information_schema.EVENTS WHERE EVENT_SCHEMA = {schema};"
        ),
        &control.cancel,
    )?;
    let counts: Option<Vec<u64>> = rows
        .concat()
        .iter()
        .map(|count| std::str::from_utf8(count).ok()?.parse().ok())
        .collect();
    let Some([tables, views, triggers, routines, events]) = counts.as_deref() else {
        return Err(Error::new(
            ErrorKind::Failed,
            "the database server did not tell what was imported",
        ));
    };
    if *tables != shadow.findings.tables {
        return Err(Error::new(
            ErrorKind::Damaged,
            format!(
                "the import of the database {} brought {tables} tables and not {}",
                shadow.live, shadow.findings.tables
            ),
        ));
    }
    Ok(Inventory {
        tables: *tables,
        views: *views,
        triggers: *triggers,
        routines: *routines,
        events: *events,
    })
}

/// The file system that a server keeps its data on.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DataDisk {
    /// The server's data directory.
    pub path: PathBuf,
    /// Which file system it is.
    pub device: u64,
    /// What is free there for whoever is not root.
    pub bytes_available: u64,
}

/// Where a server keeps its data, if that can be told from here: it is on this machine, not in a container, and we may look at the directory. What the
/// server does not answer here it does not answer to an import either, which says so.
pub fn data_disk(server: &Server, cancel: &Cancel) -> Option<DataDisk> {
    if !server.exec.is_empty() {
        return None;
    }
    let rows = server
        .query("SELECT HEX(@@hostname), HEX(@@datadir);", cancel)
        .ok()?;
    let row = rows.first()?;
    // Another machine may have a directory of the same name.
    let host = from_hex(row.first()).ok()?;
    if host != rustix::system::uname().nodename().to_bytes() {
        return None;
    }
    let path = PathBuf::from(OsString::from_vec(from_hex(row.get(1)).ok()?));
    let device = std::fs::metadata(&path).ok()?.dev();
    let space = rustix::fs::statvfs(&path).ok()?;
    Some(DataDisk {
        path,
        device,
        bytes_available: space.f_bavail.saturating_mul(space.f_frsize),
    })
}

/// Remove the shadow schema `schema` of `live`, every right on it, and the temporary account if there is one that
/// nothing needs any more, and the foreign keys that a tenant had put on its tables from outside. Safe to repeat, and whatever state a crash left. Not to be cancelled: it is what a cancelled restore ends with.
///
/// # Errors
/// [`ErrorKind::InvalidInput`] when `schema` is not the name of a shadow of `live`; what the server says.
pub fn discard(server: &Server, live: &str, schema: &str) -> Result<()> {
    discard_shadow(server, live, schema, &|text| tracing::warn!("{text}"))
}

fn discard_shadow(server: &Server, live: &str, schema: &str, warn: &dyn Fn(&str)) -> Result<()> {
    if !is_beside(schema, live, SHADOW_MARK) {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            format!("{schema} is not a schema that a restore of {live} made"),
        ));
    }
    remove_schema(server, live, schema, warn)
}

/// Remove every shadow schema that earlier, interrupted restores of `live` left; their names. What a swap replaced is not touched.
///
/// # Errors
/// What the server says.
pub fn remove_leftovers(server: &Server, live: &str, control: &Control) -> Result<Vec<String>> {
    let stale = schemas_beside(server, live, SHADOW_MARK, &control.cancel)?;
    let warn = |text: &str| control.monitor.warning(text);
    for schema in &stale {
        discard_shadow(server, live, schema, &warn)?;
    }
    settle_account(server, live)?;
    Ok(stale)
}

/// Drop a schema of ours and the rights on it, against the will of a tenant who had rights on it: the rights go first, then his sessions
/// in it and what he hung on it from outside. What had to be changed outside, or could not be, is a warning.
pub(super) fn remove_schema(
    server: &Server,
    live: &str,
    schema: &str,
    warn: &dyn Fn(&str),
) -> Result<()> {
    let cancel = &Cancel::new();
    let importer = importer_definer(schema);
    drop_importer(server, schema, cancel)?;
    let mut tenants = grantees(server, schema, cancel)?;
    for definer in &tenants {
        revoke(server, definer, schema, cancel)?;
    }
    // After a crash in what follows, nobody has rights on it any more, and the tenant is known by those on the live schema.
    tenants.extend(grantees(server, live, cancel)?);
    tenants.retain(|tenant| tenant.user != server.account.user);
    tenants.push(importer.clone());
    end_import(server, schema, &importer, cancel);
    drop_foreign_keys_into(server, schema, &tenants, warn, cancel)?;
    fault::point("in removing a schema")?;
    against_sessions_of(
        server,
        &tenants,
        &format!(
            "SET foreign_key_checks = 0; DROP DATABASE IF EXISTS {};",
            identifier(schema)
        ),
        cancel,
    )?;
    settle_account(server, live)
}

/// An import that was killed may still be running on the server.
pub(super) fn end_import(server: &Server, schema: &str, importer: &Definer, cancel: &Cancel) {
    kill_sessions(
        server,
        &format!(
            "SELECT ID FROM information_schema.PROCESSLIST WHERE (DB = {} OR USER = {}) AND ID <> CONNECTION_ID();",
            literal(schema),
            literal(&importer.user)
        ),
        cancel,
    );
}

/// As far as the account may see and end them; the others are waited for.
pub(super) fn kill_sessions(server: &Server, which: &str, cancel: &Cancel) {
    let sessions = server.query(which, cancel).unwrap_or_default();
    for session in sessions.concat() {
        if let Ok(id) = plain_name(&session) {
            let _ = server.query(&format!("KILL {id};"), cancel);
        }
    }
}

/// Make a change that has to be, and end the sessions of `tenants` that stand in its way.
pub(super) fn against_sessions_of(
    server: &Server,
    tenants: &[Definer],
    change: &str,
    cancel: &Cancel,
) -> Result<(), SqlError> {
    let options = format!(
        "SET lock_wait_timeout = {DROP_LOCK_SECONDS}, innodb_lock_wait_timeout = {DROP_LOCK_SECONDS};"
    );
    let users: Vec<String> = tenants.iter().map(|tenant| literal(&tenant.user)).collect();
    let users = users.join(", ");
    let mut tries = 1;
    loop {
        match server.change(&format!("{options} {change}"), cancel) {
            Err(error) if error.code == Some(BUSY) && tries < DROP_TRIES => {}
            Err(error) if error.code == Some(BUSY) => {
                return Err(name_prepared_transactions(server, error, cancel));
            }
            result => return result.map(drop),
        }
        if !users.is_empty() {
            let of_tenants = format!(
                "SELECT ID FROM information_schema.PROCESSLIST WHERE USER IN ({users}) AND ID <> CONNECTION_ID()"
            );
            // Locks are held without a transaction as well (LOCK TABLES), but not by the sessions of a site at work.
            let which = if tries > DROP_PATIENCE {
                format!("{of_tenants};")
            } else {
                format!(
                    "{of_tenants} AND ID IN (SELECT trx_mysql_thread_id FROM information_schema.INNODB_TRX);"
                )
            };
            kill_sessions(server, &which, cancel);
        }
        tries += 1;
    }
}

/// What a dump may leave behind to spite us: a transaction that was prepared with `XA PREPARE` outlives its session and its account. Whose
/// it is no server tells, so that ending it is for a person.
fn name_prepared_transactions(server: &Server, error: SqlError, cancel: &Cancel) -> SqlError {
    let prepared = server.query("XA RECOVER FORMAT = 'SQL';", cancel);
    let names: Vec<String> = prepared
        .unwrap_or_default()
        .iter()
        .filter_map(|row| row.last())
        .map(|name| String::from_utf8_lossy(name).into_owned())
        .collect();
    if names.is_empty() {
        return error;
    }
    SqlError {
        code: error.code,
        error: error.error.context(format!(
            "a prepared transaction may hold it; end the one that nobody waits for with XA ROLLBACK: {}",
            names.join("; ")
        )),
    }
}

/// A foreign key, by the table that has it.
pub(super) struct ForeignKey {
    pub(super) schema: String,
    pub(super) table: String,
    constraint: String,
}

/// The foreign keys that tables of other schemas have into this one.
pub(super) fn foreign_keys_into(
    server: &Server,
    schema: &str,
    cancel: &Cancel,
) -> Result<Vec<ForeignKey>> {
    let name = literal(schema);
    // MariaDB opens every table of every schema for the second query; the first, which needs PROCESS, does not, but
    // gives names as files have them: it tells only whether there are any, and of a schema with a plain name.
    let plain = schema
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    let any = format!(
        "SELECT 1 FROM information_schema.INNODB_SYS_FOREIGN
         WHERE SUBSTRING_INDEX(REF_NAME, '/', 1) = {name} AND SUBSTRING_INDEX(FOR_NAME, '/', 1) <> {name} LIMIT 1;"
    );
    if plain && server.query(&any, cancel).is_ok_and(|rows| rows.is_empty()) {
        return Ok(Vec::new());
    }
    let rows = server.change(
        &format!(
            "SELECT DISTINCT HEX(TABLE_SCHEMA), HEX(TABLE_NAME), HEX(CONSTRAINT_NAME) FROM information_schema.KEY_COLUMN_USAGE
             WHERE REFERENCED_TABLE_SCHEMA = {name} AND TABLE_SCHEMA <> {name};"
        ),
        cancel,
    )?;
    rows.iter()
        .map(|row| {
            Ok(ForeignKey {
                schema: name_from_hex(row.first())?,
                table: name_from_hex(row.get(1))?,
                constraint: name_from_hex(row.get(2))?,
            })
        })
        .collect()
}

/// A key into a schema that only a restore had made, while it ran, is not part of any state that anybody wants back, and
/// without the table that it refers to, its own could not be written.
fn drop_foreign_keys_into(
    server: &Server,
    schema: &str,
    tenants: &[Definer],
    warn: &dyn Fn(&str),
    cancel: &Cancel,
) -> Result<()> {
    for key in foreign_keys_into(server, schema, cancel)? {
        let what = format!(
            "the foreign key {} of the table {}.{} into {schema}, which a restore made",
            key.constraint, key.schema, key.table
        );
        let dropped = against_sessions_of(
            server,
            tenants,
            &format!(
                "ALTER TABLE {}.{} DROP FOREIGN KEY {};",
                identifier(&key.schema),
                identifier(&key.table),
                identifier(&key.constraint)
            ),
            cancel,
        );
        match dropped {
            Ok(()) => warn(&format!("{what}, was dropped")),
            Err(error) => {
                tracing::warn!("{}", error.error.chain());
                warn(&format!(
                    "{what}, could not be dropped and refers to nothing; drop it by hand"
                ));
            }
        }
    }
    Ok(())
}
