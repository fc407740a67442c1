//! A switch for tests: at a named point the process dies, or what it is at fails.
//!
//! It is there in builds with debug assertions only. Never: a point that does anything unless the environment names it.

use crate::error::{Error, ErrorKind, Result};

/// Named by [`DIE_AT`], the process is killed here as by `kill -9`; named by [`FAIL_AT`], this is an error.
pub(crate) fn point(name: &str) -> Result<()> {
    if cfg!(debug_assertions) {
        if is_named(DIE_AT, name) {
            let _ = rustix::process::kill_process(
                rustix::process::getpid(),
                rustix::process::Signal::KILL,
            );
        }
        if is_named(FAIL_AT, name) {
            return Err(Error::new(
                ErrorKind::Failed,
                format!("it was to fail at `{name}`"),
            ));
        }
    }
    Ok(())
}

const DIE_AT: &str = "SHOPHOSTING_BACKUP_DIE_AT";
const FAIL_AT: &str = "SHOPHOSTING_BACKUP_FAIL_AT";

fn is_named(variable: &str, name: &str) -> bool {
    std::env::var(variable).is_ok_and(|point| point == name)
}
