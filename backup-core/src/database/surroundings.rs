//! What the account that imports can reach besides the shadow schema: nothing, if it is one made for the import; else that is
//! looked at before and after.
//!
//! Never: an import taken for good in whose course a table, a view, a routine, a trigger or an event changed elsewhere. Rows are not looked at.

use crate::database::Server;
use crate::database::accounts::Identity;
use crate::database::client::{QUERY_LIMIT, Rows, literal, name_from_hex};
use crate::database::definitions::{Definition, collect};
use crate::error::{Error, ErrorKind, Result};
use crate::progress::Cancel;

/// The schemas that an account can reach, one excepted, as they were at a moment.
pub(super) struct Surroundings {
    schemas: Vec<Schema>,
}

#[derive(PartialEq)]
struct Schema {
    name: String,
    tables: Rows,
    definitions: Vec<Definition>,
}

impl Surroundings {
    /// What `importer` can reach besides `shadow`.
    pub(super) fn of(
        server: &Server,
        importer: &Identity,
        shadow: &str,
        cancel: &Cancel,
    ) -> Result<Self> {
        let mut schemas = Vec::new();
        for name in reach(server, importer, cancel)? {
            // The server may keep names in lower case.
            if !name.eq_ignore_ascii_case(shadow) {
                schemas.push(Schema {
                    tables: tables(server, &name, cancel)?,
                    definitions: collect(server, &name, cancel)?,
                    name,
                });
            }
        }
        Ok(Self { schemas })
    }

    /// Whether an import, before which it was so, left it so.
    pub(super) fn check_same(&self, after: &Self) -> Result<()> {
        let changed = self
            .schemas
            .iter()
            .filter(|schema| !after.schemas.contains(schema))
            .chain(
                after
                    .schemas
                    .iter()
                    .filter(|schema| !self.schemas.contains(schema)),
            )
            .next();
        match changed {
            Some(Schema { name, .. }) => Err(Error::new(
                ErrorKind::Damaged,
                format!(
                    "while the dump was imported, the database {name} was changed, which the importing account can reach; if nobody else did it, the dump did"
                ),
            )),
            None => Ok(()),
        }
    }
}

/// The server shows an account the schemas on which it has any right, whoever that was given to. On the whole server an account of ours was never given any.
fn reach(server: &Server, importer: &Identity, cancel: &Cancel) -> Result<Vec<String>> {
    let rows = server.ask(
        &importer.account,
        None,
        b"SELECT 'right', PRIVILEGE_TYPE FROM information_schema.USER_PRIVILEGES WHERE PRIVILEGE_TYPE <> 'USAGE' LIMIT 1;
          SELECT 'schema', HEX(SCHEMA_NAME) FROM information_schema.SCHEMATA
          WHERE SCHEMA_NAME NOT IN ('information_schema', 'performance_schema', 'mysql', 'sys') ORDER BY SCHEMA_NAME;",
        QUERY_LIMIT,
        cancel,
    )?;
    let (schemas, rights): (Vec<_>, Vec<_>) = rows
        .iter()
        .partition(|row| row.first().is_some_and(|what| what == b"schema"));
    if importer.temporary && !rights.is_empty() {
        return Err(Error::new(
            ErrorKind::Refused,
            format!(
                "the account {} has rights on the whole database server, which nothing here gave it",
                importer.definer.quoted()
            ),
        ));
    }
    schemas
        .iter()
        .map(|row| name_from_hex(row.get(1)))
        .collect()
}

/// Tables and their columns: one may be altered in the second in which it was created.
fn tables(server: &Server, schema: &str, cancel: &Cancel) -> Result<Rows> {
    let schema = literal(schema);
    let rows = server.change(
        &format!(
            "SELECT HEX(TABLE_NAME), TABLE_TYPE, CREATE_TIME FROM information_schema.TABLES WHERE TABLE_SCHEMA = {schema} ORDER BY TABLE_NAME;
             SELECT HEX(TABLE_NAME), HEX(COLUMN_NAME), HEX(COLUMN_TYPE) FROM information_schema.COLUMNS WHERE TABLE_SCHEMA = {schema}
                ORDER BY TABLE_NAME, ORDINAL_POSITION;"
        ),
        cancel,
    )?;
    Ok(rows)
}
