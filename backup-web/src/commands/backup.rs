//! `backup`.

use std::process::ExitCode;

use backup_core::config::Config;
use backup_core::error::Result;
use backup_core::operations::{BackupReport, BackupRequest};
use backup_core::progress::Cancel;
use indicatif::HumanBytes;
use serde::Serialize;
use tokio::runtime::Runtime;

use super::{Parts, init};
use crate::args::BackupArgs;
use crate::output::{self, Output};

/// The report as the contract has it.
#[derive(Serialize)]
struct Document<'a> {
    job_id: u64,
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
    let request = BackupRequest {
        backup_type: args.part.into(),
        note: args.note,
    };
    let parts = Parts::connect(config, runtime, cancel)?;
    runtime.block_on(parts.service.customers().get(args.customer))?;
    if let Some(advice) = init::on_first_use(parts.service.config(), cancel)? {
        output::message(&advice);
    }
    let (job_id, report) = {
        let control = super::control(cancel);
        let run = parts
            .service
            .backup_here(&parts.engine, args.customer, &request, &control);
        super::done(runtime.block_on(run)?)?
    };
    let document = Document {
        job_id,
        report: &report,
    };
    output.result(&document, || {
        format!(
            "backup {} of customer {}: {}, {} files, {} in all, {} new in the repository",
            &report.snapshot_id.to_string()[..8],
            args.customer,
            report.backup_type,
            report.files,
            HumanBytes(report.bytes),
            HumanBytes(report.bytes_added),
        )
    });
    Ok(ExitCode::SUCCESS)
}
