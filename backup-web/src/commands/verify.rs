//! `verify`.

use std::process::ExitCode;

use backup_core::audit::Action;
use backup_core::config::Config;
use backup_core::customer::CustomerId;
use backup_core::error::Result;
use backup_core::progress::Cancel;
use backup_core::worker::{NotVerified, Verified};
use indicatif::HumanBytes;
use tokio::runtime::Runtime;

use super::Parts;
use crate::output::{self, Output};

pub fn run(
    config: Config,
    customers: &[CustomerId],
    output: Output,
    runtime: &Runtime,
    cancel: &Cancel,
) -> Result<ExitCode> {
    let parts = Parts::connect(config, runtime, cancel)?;
    parts.note_to(customers, Action::Verify);
    parts.refresh()?;
    let report = {
        let control = super::control(cancel);
        runtime.block_on(parts.service.verify(&parts.engine, customers, &control))?
    };
    for warning in &report.warnings {
        output::message(&format!("warning: {warning}"));
    }
    for failure in &report.failed {
        output::message(&format!("error: {}", sentence(failure)));
    }
    output.result(&report, || {
        let lines = report.proven.iter().map(line);
        let all = format!(
            "{} backups proven, {} not",
            report.proven.len(),
            report.failed.len()
        );
        lines.chain([all]).collect::<Vec<_>>().join("\n")
    });
    Ok(match report.failed.is_empty() {
        true => ExitCode::SUCCESS,
        // The others are proven all the same.
        false => ExitCode::FAILURE,
    })
}

fn line(verified: &Verified) -> String {
    let restored = &verified.restored;
    format!(
        "customer {}: the {} backup {} is proven: {} files, {}, {} tables, {}",
        verified.customer,
        verified.source,
        &verified.snapshot_id.to_string()[..8],
        restored.files,
        HumanBytes(restored.bytes),
        restored.tables,
        HumanBytes(restored.database_bytes),
    )
}

fn sentence(failure: &NotVerified) -> String {
    let (customer, error) = (failure.customer, &failure.error);
    match (failure.source, failure.snapshot_id) {
        (Some(source), Some(id)) => {
            format!("customer {customer}: the {source} backup {id} is not proven: {error}")
        }
        _ => format!("customer {customer}: no backup is proven: {error}"),
    }
}
