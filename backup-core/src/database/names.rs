//! The names of the schemas that restores make: beside the live one's, and by them known for what they are.
//!
//! Never: a name that is taken for one of ours and is another tenant's.

use sha2::{Digest, Sha256};

use crate::database::Server;
use crate::database::client::name_from_hex;
use crate::error::Result;
use crate::progress::Cancel;

/// MySQL's longest name of a schema, in characters.
const LONGEST_NAME: usize = 64;
pub(super) const SHADOW_MARK: &str = "__restore_";
pub(super) const REPLACED_MARK: &str = "__replaced_";
/// Of a schema that a backup is tried in: see [`super::prepare_proof`].
pub(super) const PROOF_MARK: &str = "__proof_";
/// Of a schema that nobody's data is in: see [`super::try_restore`].
pub(super) const TRIAL_MARK: &str = "__trial_";
const RANDOM_DIGITS: usize = 8;

/// A new name beside `live`.
pub(super) fn beside(live: &str, mark: &str) -> String {
    format!(
        "{}{mark}{:0RANDOM_DIGITS$x}",
        stem(live, mark),
        rand::random::<u32>()
    )
}

/// The name for what the shadow schema `shadow` of `live` replaces: with the same digits.
pub(super) fn replaced_name(live: &str, shadow: &str) -> String {
    let digits = shadow.rsplit('_').next().unwrap_or_default();
    format!("{}{REPLACED_MARK}{digits}", stem(live, REPLACED_MARK))
}

/// The name of the shadow that `replaced` was named after.
pub(super) fn shadow_name(live: &str, replaced: &str) -> String {
    let digits = replaced.rsplit('_').next().unwrap_or_default();
    format!("{}{SHADOW_MARK}{digits}", stem(live, SHADOW_MARK))
}

/// The begin of the names beside `live`: itself, or when that would be too long, its begin and a hash of it.
fn stem(live: &str, mark: &str) -> String {
    let room = LONGEST_NAME - mark.len() - RANDOM_DIGITS;
    if live.chars().count() <= room {
        return live.to_owned();
    }
    let hash = short_hash(live);
    let begin: String = live.chars().take(room - hash.len() - 1).collect();
    format!("{begin}_{hash}")
}

pub(super) fn short_hash(text: &str) -> String {
    let mut hash = hex::encode(Sha256::digest(text));
    hash.truncate(16);
    hash
}

pub(super) fn is_beside(schema: &str, live: &str, mark: &str) -> bool {
    schema
        .strip_prefix(stem(live, mark).as_str())
        .and_then(|rest| rest.strip_prefix(mark))
        .is_some_and(is_random)
}

/// Whether it is a name beside that of any schema.
pub(super) fn has_mark(schema: &str, mark: &str) -> bool {
    schema
        .rsplit_once(mark)
        .is_some_and(|(stem, digits)| !stem.is_empty() && is_random(digits))
}

fn is_random(digits: &str) -> bool {
    digits.len() == RANDOM_DIGITS
        && digits
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// The schemas with names beside `live`.
pub(super) fn schemas_beside(
    server: &Server,
    live: &str,
    mark: &str,
    cancel: &Cancel,
) -> Result<Vec<String>> {
    schemas(server, |schema| is_beside(schema, live, mark), cancel)
}

/// The schemas with names beside that of any.
pub(super) fn marked_schemas(server: &Server, mark: &str, cancel: &Cancel) -> Result<Vec<String>> {
    schemas(server, |schema| has_mark(schema, mark), cancel)
}

fn schemas(
    server: &Server,
    is_wanted: impl Fn(&str) -> bool,
    cancel: &Cancel,
) -> Result<Vec<String>> {
    let rows = server.query(
        "SELECT HEX(SCHEMA_NAME) FROM information_schema.SCHEMATA;",
        cancel,
    )?;
    let mut found = Vec::new();
    for row in &rows {
        let schema = name_from_hex(row.first())?;
        if is_wanted(&schema) {
            found.push(schema);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_beside_a_schema_are_told_from_those_of_others() {
        for live in ["customer_1", "ä".repeat(64).as_str(), "a`b"] {
            let name = beside(live, SHADOW_MARK);
            assert!(name.chars().count() <= LONGEST_NAME);
            assert!(is_beside(&name, live, SHADOW_MARK));
            assert!(has_mark(&name, SHADOW_MARK) && !has_mark(&name, PROOF_MARK));
            assert!(!has_mark(live, SHADOW_MARK));
            assert!(!is_beside(&name, live, REPLACED_MARK));
            assert!(!is_beside(live, live, SHADOW_MARK));
        }
        let name = beside("customer_12", SHADOW_MARK);
        assert!(!is_beside(&name, "customer_1", SHADOW_MARK));
        assert!(!is_beside(
            "customer_1__restore_0123456",
            "customer_1",
            SHADOW_MARK
        ));
        assert!(!is_beside(
            "customer_1__restore_0123456x",
            "customer_1",
            SHADOW_MARK
        ));
        let long = "x".repeat(60);
        assert!(!is_beside(
            &beside(&format!("{long}1"), SHADOW_MARK),
            &format!("{long}2"),
            SHADOW_MARK
        ));
    }

    #[test]
    fn a_replaced_schema_is_named_after_its_shadow() {
        let shadow = "customer_7__restore_00c0ffee";
        let replaced = replaced_name("customer_7", shadow);
        assert_eq!(replaced, "customer_7__replaced_00c0ffee");
        assert_eq!(shadow_name("customer_7", &replaced), shadow);
    }
}
