//! What this machine keeps for itself below `worker.state_dir`. Never: in a directory that anybody else can read or write.

use std::fs::DirBuilder;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::error::{Error, ErrorKind, Result};

/// Copies of what is on backup servers.
const COPIES: &str = "copies";

/// The directory for copies of what is on backup servers, which is there then; None where there cannot be one, for all works without.
pub(super) fn directory_of_copies(config: &Config) -> Option<PathBuf> {
    let directory = config.worker.state_dir.join(COPIES);
    match make_private(&directory) {
        Ok(()) => Some(directory),
        Err(error) if error.kind() == ErrorKind::Refused => {
            tracing::warn!("no copies are kept: {}", error.chain());
            None
        }
        // Who only looks at something may have no right to write there.
        Err(error) => {
            tracing::debug!("no copies are kept: {}", error.chain());
            None
        }
    }
}

/// Make a directory, if it is not there, that is only ours.
pub(super) fn make_private(directory: &Path) -> Result<()> {
    let failed = |e: std::io::Error| {
        Error::io(
            format!("cannot make the directory {}", directory.display()),
            e,
        )
    };
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(failed)?;
    let found = std::fs::symlink_metadata(directory).map_err(failed)?;
    let is_private = found.is_dir()
        && found.uid() == rustix::process::geteuid().as_raw()
        && found.mode() & 0o077 == 0;
    if !is_private {
        return Err(Error::new(
            ErrorKind::Refused,
            format!(
                "{} must be a directory that is open to nobody but the user this runs as (owner, mode 700)",
                directory.display()
            ),
        ));
    }
    Ok(())
}
