//! `init`.

use std::process::ExitCode;

use backup_core::config::Config;
use backup_core::error::Result;
use backup_core::operations::init_repository;
use backup_core::progress::Cancel;
use serde_json::json;

use crate::output::Output;

pub fn run(config: &Config, output: Output, cancel: &Cancel) -> Result<ExitCode> {
    let mut done = Vec::new();
    for (name, repository) in super::repositories(config) {
        let created = init_repository(repository, cancel)
            .map_err(|e| e.context(format!("the {name} repository could not be created")))?;
        done.push((name, &repository.location, created));
    }
    let document: Vec<_> = done
        .iter()
        .map(|(name, location, created)| {
            json!({ "name": name, "location": location, "created": created })
        })
        .collect();
    output.result(&json!({ "repositories": document }), || {
        done.iter()
            .map(|(name, location, created)| {
                let what = if *created {
                    "created"
                } else {
                    "is there already"
                };
                format!("{name}: {location} {what}\n")
            })
            .collect()
    });
    Ok(ExitCode::SUCCESS)
}
