//! `check`: of every configured repository.

use std::process::ExitCode;

use backup_core::config::Config;
use backup_core::error::Result;
use backup_core::operations::Engine;
use backup_core::progress::Cancel;
use serde_json::json;

use crate::output::{self, Output};

pub fn run(config: Config, read_data: bool, output: Output, cancel: &Cancel) -> Result<ExitCode> {
    let engine = Engine::new(config, cancel);
    let mut repositories = vec![("manual", engine.manual()?)];
    repositories.extend(engine.daily()?.map(|daily| ("daily", daily)));
    let mut reports = Vec::new();
    for (name, repository) in &repositories {
        let report = repository
            .check(read_data)
            .map_err(|e| e.context(format!("the {name} repository could not be checked")))?;
        for error in &report.errors {
            output::message(&format!("error: {name}: {error}"));
        }
        for warning in &report.warnings {
            output::message(&format!("warning: {name}: {warning}"));
        }
        reports.push((*name, report));
    }
    let sound = reports.iter().all(|(_, report)| report.errors.is_empty());
    let documents: Vec<_> = reports
        .iter()
        .map(|(name, report)| json!({ "name": name, "report": report }))
        .collect();
    output.result(
        &json!({ "success": sound, "repositories": documents }),
        || {
            reports
                .iter()
                .map(|(name, report)| match report.errors.len() {
                    0 => format!("{name}: {} snapshots, no errors\n", report.snapshots),
                    errors => format!("{name}: {} snapshots, {errors} errors\n", report.snapshots),
                })
                .collect()
        },
    );
    Ok(if sound {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
