//! Scratch schemas: a dump is imported to see whether it can be, and what came of that is dropped.
//!
//! Unlike a shadow schema one is never swapped in, so the customer has no part in it: neither his account nor his sessions are touched, and a restore of his
//! may run at the same time. Never: an import by an account that has rights on anything else; a schema dropped that was not made here; a schema or an
//! account that stays behind and is not found: so its name is written down by the caller before it is made.

use std::collections::BTreeSet;
use std::io::Read;
use std::time::Duration;

use super::accounts::{create_importer, drop_importer, importer_definer};
use super::client::identifier;
use super::dump::table_names;
use super::names::{PROOF_MARK, beside, has_mark, is_beside, marked_schemas};
use super::rewrite::Findings;
use super::shadow::{
    WITNESS, against_sessions_of, create_schema, drop_unused, end_import, import, open_schema,
    verify,
};
use super::{Server, Shadow};
use crate::error::{Error, ErrorKind, Result};
use crate::progress::{Cancel, Control};

/// A new name for a scratch schema beside `live`.
pub fn proof_name(live: &str) -> String {
    beside(live, PROOF_MARK)
}

/// Create an empty scratch schema of such a name beside `live`, with its character set, and an account to import with that has rights on nothing else.
///
/// # Errors
/// [`ErrorKind::Refused`] where the server's account may not create one: the customer's own would have rights on what is live. Nothing is left behind, unless
/// the error says so. One of this name that was there before is left alone.
pub fn prepare_proof(
    server: &Server,
    live: &str,
    schema: &str,
    control: &Control,
) -> Result<Shadow> {
    let cancel = &control.cancel;
    require_scratch(is_beside(schema, live, PROOF_MARK), schema)?;
    let failed = |error: Error| {
        error.context(format!(
            "cannot prepare a scratch schema for a backup of the database {live}"
        ))
    };
    create_schema(server, live, schema, cancel).map_err(failed)?;
    create_importer(server, schema, cancel)
        .and_then(|importer| {
            let importer = importer.ok_or_else(|| {
                Error::new(
                    ErrorKind::Refused,
                    "the account of customer_database may not create accounts, and a backup is tried by one alone that has no other rights: \
                     GRANT CREATE USER to it",
                )
            })?;
            open_schema(server, &importer, schema, cancel)?;
            Ok(Shadow {
                live: live.to_owned(),
                schema: schema.to_owned(),
                tenant: importer.clone(),
                importer,
                findings: Findings::default(),
            })
        })
        .map_err(|error| {
            let error = failed(error);
            match drop_proof(server, schema) {
                Ok(()) => error,
                Err(second) => error.context(format!(
                    "what was prepared could not be removed yet: {}",
                    second.chain()
                )),
            }
        })
}

/// Read a dump into a scratch schema, as [`import`] does; the tables and views that came of it.
///
/// # Errors
/// Those of [`import`] and [`verify`].
pub fn import_for_proof(
    server: &Server,
    scratch: &mut Shadow,
    dump: Box<dyn Read + Send>,
    limit: Duration,
    control: &Control,
) -> Result<BTreeSet<String>> {
    import(server, scratch, dump, limit, control)?;
    verify(server, scratch, control)?;
    let mut names = table_names(server, scratch.schema(), &control.cancel)?;
    names.remove(WITNESS);
    Ok(names)
}

/// Whether there is any table or view in a schema.
pub(crate) fn has_tables(server: &Server, schema: &str, cancel: &Cancel) -> Result<bool> {
    Ok(!table_names(server, schema, cancel)?.is_empty())
}

/// Remove a scratch schema and its account. Safe to repeat, and not to be cancelled.
///
/// # Errors
/// [`ErrorKind::InvalidInput`] when `scratch` is no scratch schema; what the server says.
pub fn discard_proof(server: &Server, scratch: &Shadow) -> Result<()> {
    let is_scratch = is_beside(scratch.schema(), scratch.live(), PROOF_MARK);
    require_scratch(is_scratch, scratch.schema())?;
    drop_proof(server, scratch.schema())
}

/// Remove a scratch schema that somebody left who died, and its account. For whoever knows that nobody is at work on it, and, where `is_made`, that it was made for a proof:
/// of one that is only about to be made, what is there may be somebody else's, and goes only if nothing was imported into it.
///
/// # Errors
/// [`ErrorKind::InvalidInput`] when that is the name of no scratch schema; what the server says.
pub fn remove_proof(server: &Server, schema: &str, is_made: bool) -> Result<()> {
    require_scratch(has_mark(schema, PROOF_MARK), schema)?;
    if is_made {
        return drop_proof(server, schema);
    }
    drop_importer(server, schema, &Cancel::new())?;
    drop_unused(server, schema)
}

/// All schemas of a server that are named as scratch schemas are.
///
/// # Errors
/// What the server says.
pub fn scratch_schemas(server: &Server, cancel: &Cancel) -> Result<Vec<String>> {
    marked_schemas(server, PROOF_MARK, cancel)
}

fn require_scratch(is_scratch: bool, schema: &str) -> Result<()> {
    if !is_scratch {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            format!("{schema} is no scratch schema"),
        ));
    }
    Ok(())
}

/// Nobody but its account has rights on it, and that has none elsewhere: so nothing outside can hang on it, and no session of the customer's is in the way.
fn drop_proof(server: &Server, schema: &str) -> Result<()> {
    let cancel = &Cancel::new();
    let importer = importer_definer(schema);
    drop_importer(server, schema, cancel)?;
    end_import(server, schema, &importer, cancel);
    against_sessions_of(
        server,
        &[importer],
        &format!(
            "SET foreign_key_checks = 0; DROP DATABASE IF EXISTS {};",
            identifier(schema)
        ),
        cancel,
    )?;
    Ok(())
}
