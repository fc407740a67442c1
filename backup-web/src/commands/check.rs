//! `check`: of every configured repository.

use std::process::ExitCode;

use backup_core::config::{Config, Sample};
use backup_core::error::{Error, Result};
use backup_core::operations::Engine;
use backup_core::progress::Cancel;
use serde_json::json;

use crate::output::{self, Output};

pub fn run(
    config: Config,
    read_data: bool,
    subset: Option<Sample>,
    output: Output,
    cancel: &Cancel,
) -> Result<ExitCode> {
    let engine = Engine::new(config, cancel);
    let mut repositories = vec![("manual", engine.manual()?)];
    repositories.extend(engine.daily()?.map(|daily| ("daily", daily)));
    let mut reports = Vec::new();
    for (name, repository) in &repositories {
        let failed = |e: Error| e.context(format!("the {name} repository could not be checked"));
        let mut report = repository.check(read_data).map_err(failed)?;
        let sample = match subset {
            Some(subset) => {
                let sample = repository
                    .read_sample(subset, None, cancel)
                    .map_err(failed)?;
                report.errors.extend(sample.errors.iter().cloned());
                Some(sample)
            }
            None => None,
        };
        for error in &report.errors {
            output::message(&format!("error: {name}: {error}"));
        }
        for warning in &report.warnings {
            output::message(&format!("warning: {name}: {warning}"));
        }
        reports.push((*name, report, sample));
    }
    let sound = reports
        .iter()
        .all(|(_, report, _)| report.errors.is_empty());
    let documents: Vec<_> = reports
        .iter()
        .map(|(name, report, sample)| match sample {
            None => json!({ "name": name, "report": report }),
            Some(sample) => {
                let read = json!({ "packs": sample.packs, "bytes": sample.bytes });
                json!({ "name": name, "report": report, "read": read })
            }
        })
        .collect();
    output.result(
        &json!({ "success": sound, "repositories": documents }),
        || {
            reports
                .iter()
                .map(|(name, report, sample)| {
                    let read = sample.as_ref().map(|sample| sample.packs);
                    let read = read.map_or(String::new(), |packs| format!(", {packs} packs read"));
                    let errors = match report.errors.len() {
                        0 => "no errors".to_owned(),
                        errors => format!("{errors} errors"),
                    };
                    format!("{name}: {} snapshots{read}, {errors}\n", report.snapshots)
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
