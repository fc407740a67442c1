//! `sync`.

use std::process::ExitCode;

use backup_core::audit::Action;
use backup_core::catalog::Missing;
use backup_core::config::Config;
use backup_core::error::Result;
use backup_core::progress::Cancel;
use serde_json::{Map, Value, json};
use tokio::runtime::Runtime;

use super::Parts;
use crate::output::{self, Output};

pub fn run(config: Config, output: Output, runtime: &Runtime, cancel: &Cancel) -> Result<ExitCode> {
    let parts = Parts::connect(config, runtime, cancel)?;
    parts.note(Action::Sync);
    // An operator who removed snapshots by hand says so with this.
    let reports = runtime.block_on(parts.service.sync(&parts.engine, Missing::Accept))?;
    for (name, report) in &reports {
        for warning in &report.warnings {
            output::message(&format!("warning: {name}: {warning}"));
        }
        for failure in &report.failures {
            output::message(&format!("error: {failure}"));
        }
    }
    let document: Map<String, Value> = reports
        .iter()
        .map(|(name, report)| ((*name).to_owned(), json!(report)))
        .collect();
    output.result(&document, || {
        let line = |(name, report): &(&str, backup_core::catalog::SyncReport)| {
            format!(
                "{name}: {} added, {} removed\n",
                report.added, report.removed
            )
        };
        reports.iter().map(line).collect()
    });
    let is_whole = reports.iter().all(|(_, report)| report.failures.is_empty());
    Ok(match is_whole {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}
