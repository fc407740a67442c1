//! Whether dumps and imports would work on a server, tried with a schema of our own that nobody's data is in.
//!
//! Never: a row of a customer read or changed; a schema or an account that stays behind, whatever fails.

use std::io;
use std::time::Duration;

use super::accounts::{GRANTEE, settle_account};
use super::client::{Family, SqlError, identifier, literal};
use super::dump;
use super::names::{TRIAL_MARK, beside, schemas_beside};
use super::{
    ImportAccount, Inventory, Server, discard, import, prepare_shadow, remove_leftovers, verify,
};
use crate::error::{Error, ErrorKind, Result};
use crate::progress::{Cancel, Control};

/// What a server and the client programs for it are like.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Facts {
    /// The server's version, as it says it.
    pub server: String,
    /// The dump program's version, as it says it.
    pub program: String,
    /// Whether the programs are of MariaDB and the server of MySQL, or the other way round.
    pub is_other_family: bool,
    /// Whether the dump program is older than the server, so that it may not know all that is there.
    pub is_program_older: bool,
    /// How long the server waits for a client that does not take what it asked for (`net_write_timeout`): after that it drops
    /// the connection, of a dump too.
    pub write_timeout: Duration,
    /// The largest statement that the server takes, in bytes: of a dump too.
    pub max_allowed_packet: u64,
    /// Whether two names of schemas that differ in case alone are the same.
    pub names_ignore_case: bool,
    /// The rights on the whole server that the account lacks.
    pub missing_rights: Vec<MissingRight>,
}

impl Facts {
    /// Whether an import can have an account of its own.
    pub fn may_create_accounts(&self) -> bool {
        self.missing_rights
            .iter()
            .all(|missing| missing.right != CREATE_USER)
    }
}

/// A right that the account lacks, without which not everything fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct MissingRight {
    /// As it is granted.
    pub right: &'static str,
    /// What goes wrong without it.
    pub effect: &'static str,
}

/// The rights on the whole server that restores make use of: each by the names that servers have for it.
const GLOBAL_RIGHTS: [(&[&str], &str); 4] = [
    (
        &[CREATE_USER],
        "dumps are imported as the customer's own account, and a customer who has none cannot be restored",
    ),
    (
        &["PROCESS"],
        "a session that keeps a restored schema from being removed is not found",
    ),
    (
        &["CONNECTION ADMIN", "CONNECTION_ADMIN", "SUPER"],
        "a session that keeps a restored schema from being removed cannot be ended",
    ),
    (
        &["SET USER", "SET_ANY_DEFINER", "SET_USER_ID", "SUPER"],
        "where a restore is undone, views, triggers, routines and events of other definers become the customer's",
    ),
];
const CREATE_USER: &str = "CREATE USER";

/// Ask a server what matters for dumps and restores. Errors as those of [`super::dump`].
pub fn facts(server: &Server, cancel: &Cancel) -> Result<Facts> {
    let tools = server.tools(cancel)?;
    let program = server.version(&tools.dump, cancel)?;
    let rows = server.query(
        "SELECT VERSION(), @@GLOBAL.net_write_timeout, @@GLOBAL.max_allowed_packet, @@GLOBAL.lower_case_table_names;",
        cancel,
    )?;
    let answer = rows.first().map(Vec::as_slice);
    let Some([version, write_timeout, max_allowed_packet, names]) = answer else {
        return Err(not_told(server));
    };
    let number = |told: &[u8]| {
        let told = std::str::from_utf8(told).ok();
        told.and_then(|told| told.parse().ok())
            .ok_or_else(|| not_told(server))
    };
    let version = String::from_utf8_lossy(version).into_owned();
    Ok(Facts {
        is_other_family: server.server_family(cancel)? != tools.family,
        is_program_older: is_older(&program, &version),
        write_timeout: Duration::from_secs(number(write_timeout)?),
        max_allowed_packet: number(max_allowed_packet)?,
        names_ignore_case: names != b"0",
        missing_rights: missing_rights(server, tools.family, cancel)?,
        server: version,
        program,
    })
}

fn not_told(server: &Server) -> Error {
    Error::new(
        ErrorKind::Failed,
        format!("the database server at {server} did not tell what it is like"),
    )
}

fn missing_rights(server: &Server, family: Family, cancel: &Cancel) -> Result<Vec<MissingRight>> {
    let rows = server.query(
        &format!("SELECT PRIVILEGE_TYPE FROM information_schema.USER_PRIVILEGES WHERE GRANTEE = {GRANTEE};"),
        cancel,
    )?;
    let granted = rows.concat();
    let has = |right: &str| granted.iter().any(|one| one == right.as_bytes());
    let missing = GLOBAL_RIGHTS
        .into_iter()
        .filter(|(names, _)| !names.iter().any(|name| has(name)))
        .filter_map(|(names, effect)| {
            let of_the_family = match family {
                Family::MariaDb => names.first(),
                Family::MySql => names.get(1).or(names.first()),
            };
            let right = *of_the_family?;
            Some(MissingRight { right, effect })
        });
    Ok(missing.collect())
}

/// By major and minor version; what cannot be told is not older.
fn is_older(program: &str, server: &str) -> bool {
    matches!((release(program), release(server)), (Some(program), Some(server)) if program < server)
}

/// The first number of three parts: what comes before it in the answer of a program is the version of the program itself, which says nothing.
fn release(version: &str) -> Option<(u32, u32)> {
    version
        .split(|c: char| !c.is_ascii_digit() && c != '.')
        .find_map(|word| {
            let mut parts = word.split('.').map(str::parse);
            match (parts.next(), parts.next(), parts.next()) {
                (Some(Ok(major)), Some(Ok(minor)), Some(Ok::<u32, _>(_))) => Some((major, minor)),
                _ => None,
            }
        })
}

/// Dump all of `database` but its rows, to the end, and keep nothing: so every right shows that a dump of it takes. What it would
/// lack all the same is told to the monitor. Errors as those of [`super::dump`].
pub fn try_dump(server: &Server, database: &str, limit: Duration, control: &Control) -> Result<()> {
    dump::check(server, database, control)?;
    // Unlike a dump without data, one without rows reads every table.
    let options = ["--routines", "--triggers", "--events", "--where=FALSE"];
    let mut dump = dump::start(
        server,
        database,
        options,
        |stdout| Box::new(stdout),
        limit,
        control,
    )?;
    if let Some(mut reader) = dump.take_reader() {
        // Why it fails, the dump itself tells best.
        let _ = io::copy(&mut reader, &mut io::sink());
    }
    dump.finish().map(drop)
}

/// Dump a small schema with all that a schema can have, and import it: as a restore of `live` does, beside which it is made. The customer's
/// account is used where no account may be made for the import.
///
/// # Errors
/// What a dump or an import would fail with, and [`ErrorKind::Damaged`] where something is missing in the end. Nothing is left behind, unless
/// the error says so.
pub fn try_restore(
    server: &Server,
    live: &str,
    account: &ImportAccount,
    limit: Duration,
    control: &Control,
) -> Result<()> {
    drop_stale(server, live, &control.cancel)?;
    let schema = beside(live, TRIAL_MARK);
    let name = identifier(&schema);
    server
        .query(
            &format!("CREATE DATABASE {name} CHARACTER SET utf8mb4;"),
            &control.cancel,
        )
        .map_err(no_schema)?;
    let tried = try_schema(server, &schema, account, limit, control);
    match drop_schema(server, &schema) {
        Ok(()) => tried,
        Err(error) => Err(error.context(format!(
            "the schema {schema}, which was made to try a dump and an import, could not be removed: drop it by hand"
        ))),
    }
}

fn try_schema(
    server: &Server,
    schema: &str,
    account: &ImportAccount,
    limit: Duration,
    control: &Control,
) -> Result<()> {
    let name = identifier(schema);
    server
        .query_apart(
            &format!(
                "USE {name};
                 CREATE TABLE t (id INT PRIMARY KEY, text VARCHAR(40), bytes BLOB) ENGINE = InnoDB;
                 INSERT INTO t VALUES (1, 'ü ☃ \\\\ ;', 0x00ff0a27), (2, NULL, '');
                 CREATE VIEW v AS SELECT id FROM t;
                 CREATE TRIGGER b BEFORE INSERT ON t FOR EACH ROW SET NEW.text = TRIM(NEW.text);
                 CREATE PROCEDURE p() SELECT COUNT(*) FROM t;
                 CREATE FUNCTION f() RETURNS INT DETERMINISTIC RETURN 1;
                 CREATE EVENT e ON SCHEDULE EVERY 1 DAY DISABLE DO SET @nothing = 1;"
            ),
            &control.cancel,
        )
        .map_err(no_schema)?;
    // What is to be said of the programs and the account was said of the customer's own schema.
    let quiet = Control {
        cancel: control.cancel.clone(),
        ..Control::default()
    };
    let mut dump = dump::dump(server, schema, limit, &quiet)?;
    let Some(reader) = dump.take_reader() else {
        return Err(Error::new(ErrorKind::Failed, "the dump has no output"));
    };
    let mut shadow = prepare_shadow(server, schema, account, &quiet)?;
    let imported = import(server, &mut shadow, reader, limit, &quiet)
        .and_then(|()| dump.finish())
        .and_then(|_| verify(server, &shadow, &quiet))
        .and_then(|found| compare(server, schema, shadow.schema(), &found, &quiet.cancel));
    let discarded = discard(server, schema, shadow.schema());
    imported.and(discarded)
}

fn no_schema(error: SqlError) -> Error {
    Error::from(error)
        .context("a schema beside the customers' cannot be made and filled, as a restore does")
}

fn compare(
    server: &Server,
    schema: &str,
    shadow: &str,
    found: &Inventory,
    cancel: &Cancel,
) -> Result<()> {
    let lacking = [
        (found.tables, 1, "tables"),
        (found.views, 1, "views"),
        (found.triggers, 1, "triggers"),
        (found.routines, 2, "routines"),
        (found.events, 1, "events"),
    ];
    let rows = |schema: &str| {
        let question = format!(
            "SELECT id, HEX(text), HEX(bytes) FROM {}.t ORDER BY id;",
            identifier(schema)
        );
        server.query_apart(&question, cancel)
    };
    let lacking = lacking
        .into_iter()
        .find_map(|(found, made, what)| (found != made).then_some(what));
    let lacking = match lacking {
        None if rows(schema)? != rows(shadow)? => Some("rows"),
        other => other,
    };
    match lacking {
        None => Ok(()),
        Some(what) => Err(Error::new(
            ErrorKind::Damaged,
            format!("of a small schema that was dumped and imported, not all {what} came back"),
        )),
    }
}

fn drop_schema(server: &Server, schema: &str) -> Result<()> {
    let cancel = &Cancel::new();
    let name = identifier(schema);
    // First the account, which owns nothing in it: without the schema nobody would find it any more.
    settle_account(server, schema)?;
    server.query_apart(
        &format!("SET lock_wait_timeout = 10; DROP DATABASE IF EXISTS {name};"),
        cancel,
    )?;
    Ok(())
}

/// What trials left that were killed: one takes seconds, not an hour.
fn drop_stale(server: &Server, live: &str, cancel: &Cancel) -> Result<()> {
    for schema in schemas_beside(server, live, TRIAL_MARK, cancel)? {
        let young = server.query_apart(
            &format!(
                "SELECT 1 FROM information_schema.TABLES
                 WHERE TABLE_SCHEMA = {} AND CREATE_TIME > NOW() - INTERVAL 1 HOUR LIMIT 1;",
                literal(&schema)
            ),
            cancel,
        )?;
        if young.is_empty() {
            remove_leftovers(server, &schema, &Control::default())?;
            drop_schema(server, &schema)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_read_off_all_kinds_of_versions() {
        for (version, is) in [
            (
                "mysqldump  Ver 10.19 Distrib 10.11.19-MariaDB, for debian-linux-gnu (x86_64)",
                (10, 11),
            ),
            (
                "mariadb-dump from 11.8.2-MariaDB, client 10.19 for debian-linux-gnu",
                (11, 8),
            ),
            (
                "mysqldump  Ver 8.0.46 for Linux on x86_64 (MySQL Community Server - GPL)",
                (8, 0),
            ),
            ("10.11.19-MariaDB-0+deb12u1", (10, 11)),
            ("8.4.3", (8, 4)),
        ] {
            assert_eq!(release(version), Some(is), "{version}");
        }
        assert!(is_older(
            "mysqldump Ver 10.19 Distrib 10.11.19-MariaDB",
            "11.4.2-MariaDB"
        ));
        assert!(!is_older(
            "mariadb-dump from 11.8.2-MariaDB",
            "10.11.19-MariaDB"
        ));
        assert!(!is_older(
            "mariadb-dump from the future",
            "10.11.19-MariaDB"
        ));
    }
}
