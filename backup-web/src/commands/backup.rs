//! `backup`.

use std::process::ExitCode;

use backup_core::config::Config;
use backup_core::error::Result;
use backup_core::operations::{BackupReport, BackupRequest, Engine};
use backup_core::progress::{Cancel, Phase};
use indicatif::HumanBytes;
use serde::Serialize;
use tokio::runtime::Runtime;

use crate::args::BackupArgs;
use crate::output::Output;

/// The report as the contract has it.
#[derive(Serialize)]
struct Document<'a> {
    /// There are no jobs behind this command.
    job_id: Option<u64>,
    #[serde(flatten)]
    report: &'a BackupReport,
}

pub fn run(
    config: Config,
    args: BackupArgs,
    output: Output,
    runtime: &Runtime,
    cancel: &Cancel,
) -> Result<ExitCode> {
    let customer = super::find_customer(&config, args.customer, runtime)?;
    let request = BackupRequest {
        backup_type: args.part.into(),
        note: args.note,
    };
    let report = {
        let control = super::control(cancel);
        let engine = Engine::new(config, cancel);
        let mut report = engine.backup(&customer, &request, &control)?;
        control.monitor.phase(Phase::CleaningUp);
        // The backup is good whatever becomes of the older ones.
        if let Err(error) = engine.forget_beyond_retention(customer.id, report.snapshot_id) {
            let warning = format!("older backups could not be removed: {}", error.chain());
            control.monitor.warning(&warning);
            report.warnings.push(warning);
        }
        report
    };
    let document = Document {
        job_id: None,
        report: &report,
    };
    output.result(&document, || {
        format!(
            "backup {} of customer {}: {}, {} files, {} in all, {} new in the repository",
            &report.snapshot_id.to_string()[..8],
            customer.id,
            report.backup_type,
            report.files,
            HumanBytes(report.bytes),
            HumanBytes(report.bytes_added),
        )
    });
    Ok(ExitCode::SUCCESS)
}
