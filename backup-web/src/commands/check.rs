//! `check`: of every configured repository.

use std::process::ExitCode;
use std::sync::Arc;

use backup_core::catalog::RepositoryName;
use backup_core::config::{Config, Sample};
use backup_core::error::{Error, Result};
use backup_core::progress::Cancel;
use backup_core::repository::Repository;
use serde_json::json;
use tokio::runtime::Runtime;

use crate::output::{self, Output};

pub fn run(
    config: Config,
    read_data: bool,
    subset: Option<Sample>,
    output: Output,
    runtime: &Runtime,
    cancel: &Cancel,
) -> Result<ExitCode> {
    let mut reports = Vec::new();
    let check = |name: RepositoryName, repository: &Arc<Repository>| {
        let failed = |e: Error| e.context(format!("the {name} could not be checked"));
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
            output::message(&format!("error: {}: {error}", super::shown(name)));
        }
        for warning in &report.warnings {
            output::message(&format!("warning: {}: {warning}", super::shown(name)));
        }
        reports.push((name, report, sample));
        Ok(())
    };
    let are_all_checked = super::on_each_repository(config, runtime, cancel, check)?;
    let sound = are_all_checked
        && reports
            .iter()
            .all(|(_, report, _)| report.errors.is_empty());
    let documents: Vec<_> = reports
        .iter()
        .map(|(name, report, sample)| {
            let mut document = super::document_of(*name);
            document["report"] = json!(report);
            if let Some(sample) = sample {
                document["read"] = json!({ "packs": sample.packs, "bytes": sample.bytes });
            }
            document
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
                    let name = super::shown(*name);
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
