//! Scratch schemas: a dump is imported to see whether it can be, and what came of that is dropped.
//!
//! Unlike a shadow schema one is never swapped in, so the customer has no part in it: neither his account nor his sessions are touched, and a restore of his
//! may run at the same time. Never: an import by an account that has rights on anything else; a schema dropped that a customer has; a schema or an
//! account that stays behind and is not found.

use std::collections::BTreeSet;
use std::io::Read;
use std::time::Duration;

use super::accounts::{create_importer, drop_importer, importer_definer};
use super::client::{identifier, literal};
use super::dump::table_names;
use super::names::{PROOF_MARK, beside, is_beside, schemas_beside};
use super::rewrite::Findings;
use super::shadow::{
    WITNESS, against_sessions_of, create_schema, import, kill_sessions, open_schema, verify,
};
use super::{Server, Shadow};
use crate::error::{Error, ErrorKind, Result};
use crate::progress::{Cancel, Control};

/// Create an empty scratch schema beside `live`, with its character set, and an account to import with that has rights on nothing else.
///
/// # Errors
/// [`ErrorKind::Refused`] where the server's account may not create one: the customer's own would have rights on what is live. Nothing is left behind, unless
/// the error says so; [`remove_proofs`] finds it.
pub fn prepare_proof(server: &Server, live: &str, control: &Control) -> Result<Shadow> {
    let cancel = &control.cancel;
    let schema = beside(live, PROOF_MARK);
    create_schema(server, live, &schema, cancel)
        .and_then(|()| {
            let importer = create_importer(server, &schema, cancel)?.ok_or_else(|| {
                Error::new(
                    ErrorKind::Refused,
                    "the account of customer_database may not create accounts, and a backup is tried by one alone that has no other rights: \
                     GRANT CREATE USER to it",
                )
            })?;
            open_schema(server, &importer, &schema, cancel)?;
            Ok(Shadow {
                live: live.to_owned(),
                schema: schema.clone(),
                tenant: importer.clone(),
                importer,
                findings: Findings::default(),
            })
        })
        .map_err(|error| {
            let error = error.context(format!(
                "cannot prepare a scratch schema for a backup of the database {live}"
            ));
            match drop_proof(server, &schema) {
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
    if !is_beside(scratch.schema(), scratch.live(), PROOF_MARK) {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            format!("{} is no scratch schema", scratch.schema()),
        ));
    }
    drop_proof(server, scratch.schema())
}

/// Remove every scratch schema beside `live`, but for those that are customers' after all; the names of those that are gone. For whoever knows that nobody is at work on
/// one.
///
/// # Errors
/// What the server says.
pub fn remove_proofs(
    server: &Server,
    live: &str,
    of_customers: &BTreeSet<String>,
    cancel: &Cancel,
) -> Result<Vec<String>> {
    let mut stale = schemas_beside(server, live, PROOF_MARK, cancel)?;
    stale.retain(|schema| !of_customers.contains(schema));
    for schema in &stale {
        drop_proof(server, schema)?;
    }
    Ok(stale)
}

/// Nobody but its account has rights on it, and that has none elsewhere: so nothing outside can hang on it, and no session of the customer's is in the way.
fn drop_proof(server: &Server, schema: &str) -> Result<()> {
    let cancel = &Cancel::new();
    let importer = importer_definer(schema);
    drop_importer(server, schema, cancel)?;
    // An import that was killed may still be running on the server.
    kill_sessions(
        server,
        &format!(
            "SELECT ID FROM information_schema.PROCESSLIST WHERE (DB = {} OR USER = {}) AND ID <> CONNECTION_ID();",
            literal(schema),
            literal(&importer.user)
        ),
        cancel,
    );
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
