//! Who runs a command, and `operator-line`. Never: a name that a caller can choose who is not root.

use std::fs;
use std::process::ExitCode;

use backup_core::audit::Actor;
use backup_core::error::Result;
use backup_core::login::operator_line;
use secrecy::ExposeSecret;
use serde_json::json;

use super::customer::read_password;
use crate::output::Output;

/// The account of the system that runs this, and, where root does, who became root by `sudo`.
pub fn actor() -> Actor {
    let own = account_name(rustix::process::getuid().as_raw());
    // Root may say what he likes anyway.
    let sudo = std::env::var("SUDO_USER").ok();
    match sudo.filter(|who| rustix::process::getuid().is_root() && !who.is_empty()) {
        Some(who) => Actor::operator(&format!("{who} as {own}")),
        None => Actor::operator(&own),
    }
}

/// By the table of this machine; a number where that has none.
fn account_name(uid: u32) -> String {
    let table = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = |line: &str| {
        let mut fields = line.split(':');
        let name = fields.next()?.to_owned();
        (fields.nth(1)?.parse() == Ok(uid)).then_some(name)
    };
    let found = table.lines().find_map(name);
    found.unwrap_or_else(|| format!("uid {uid}"))
}

pub fn line(name: &str, output: Output) -> Result<ExitCode> {
    let line = operator_line(name, &read_password()?)?;
    let line = line.expose_secret();
    output.result(&json!({ "line": line }), || line.to_owned());
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_is_named_by_the_table_or_by_its_number() {
        assert_eq!(account_name(0), "root");
        assert_eq!(account_name(4_000_000_001), "uid 4000000001");
    }
}
