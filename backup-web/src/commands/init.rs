//! `init`: the repositories, and for those of the built-in configuration their password.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use backup_core::config::{Config, Origin};
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::operations::{init_repository, open_storage};
use backup_core::progress::Cancel;
use backup_core::repository::Repository;
use serde_json::json;

use crate::output::Output;

pub fn run(config: &Config, output: Output, cancel: &Cancel) -> Result<ExitCode> {
    let (password_file, done) = create_missing(config, cancel)?;
    let document: Vec<_> = done
        .iter()
        .map(|(name, location, created)| {
            json!({ "name": name, "location": location, "created": created })
        })
        .collect();
    let document = json!({ "repositories": document, "password_file_created": password_file });
    output.result(&document, || {
        let mut text = String::new();
        if let Some(path) = &password_file {
            text.push_str(&keep_a_copy(path));
            text.push('\n');
        }
        for (name, location, created) in &done {
            let what = if *created {
                "created"
            } else {
                "is there already"
            };
            text.push_str(&format!("{name}: {location} {what}\n"));
        }
        text
    });
    Ok(ExitCode::SUCCESS)
}

/// Which repositories there are, and whether they were created.
type Created<'a> = Vec<(&'static str, &'a str, bool)>;

/// Create what does not exist yet: also the path of the password file if it was made.
fn create_missing<'a>(
    config: &'a Config,
    cancel: &Cancel,
) -> Result<(Option<PathBuf>, Created<'a>)> {
    let password_file = create_password(config, cancel)?;
    let mut done = Vec::new();
    for (name, repository) in super::repositories(config) {
        let created = init_repository(repository, cancel)
            .map_err(|e| e.context(format!("the {name} repository could not be created")))?;
        done.push((name, repository.location.as_str(), created));
    }
    Ok((password_file, done))
}

/// Create what does not exist yet of the built-in configuration, as soon as something is to be kept there; what to tell whoever runs this.
pub fn on_first_use(config: &Config, cancel: &Cancel) -> Result<Option<String>> {
    if config.origin != Origin::Embedded {
        return Ok(None);
    }
    let (password_file, _) = create_missing(config, cancel)?;
    Ok(password_file.map(|path| keep_a_copy(&path)))
}

/// Say what to do where the built-in configuration keeps nothing yet.
pub fn require(config: &Config) -> Result<()> {
    if config.origin != Origin::Embedded {
        return Ok(());
    }
    let manual = open_storage(&config.repositories.manual, &Cancel::new())?;
    // What cannot be looked at is not missing.
    if matches!(Repository::exists(&*manual), Ok(false)) {
        return Err(Error::new(
            ErrorKind::Configuration,
            "there are no backups here yet, nor repositories for them: `backup CUSTOMER`, `serve` or `init` makes them",
        ));
    }
    Ok(())
}

fn keep_a_copy(password_file: &Path) -> String {
    format!(
        "password: {} created; keep a copy elsewhere, for without it no backup can be read",
        password_file.display()
    )
}

/// The path of the password file if it was made.
fn create_password(config: &Config, cancel: &Cancel) -> Result<Option<PathBuf>> {
    if config.origin != Origin::Embedded {
        return Ok(None);
    }
    for (_, repository) in super::repositories(config) {
        // Another password would not open it, and would hide that its own is lost.
        if Repository::exists(&*open_storage(repository, cancel)?)? {
            return Ok(None);
        }
    }
    config.create_embedded_password()
}
