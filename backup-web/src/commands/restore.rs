//! `restore`.

use std::process::ExitCode;

use backup_core::config::Config;
use backup_core::error::Result;
use backup_core::operations::{RestoreReport, RestoreRequest};
use backup_core::progress::Cancel;
use indicatif::HumanBytes;
use serde::Serialize;
use tokio::runtime::Runtime;

use super::Parts;
use crate::args::RestoreArgs;
use crate::output::Output;

#[derive(Serialize)]
struct Document<'a> {
    job_id: u64,
    #[serde(flatten)]
    report: &'a RestoreReport,
}

pub fn run(
    config: Config,
    args: RestoreArgs,
    output: Output,
    runtime: &Runtime,
    cancel: &Cancel,
) -> Result<ExitCode> {
    let parts = Parts::connect(config, runtime, cancel)?;
    runtime.block_on(parts.service.customers().get(args.customer))?;
    let source = args.source.into();
    parts.refresh_of(args.customer, Some(source))?;
    let resolved = parts.service.resolve(args.customer, source, &args.snapshot);
    let request = RestoreRequest {
        snapshot: runtime.block_on(resolved)?,
        source,
        restore_type: args.part.map(Into::into),
        online: args.online,
    };
    let (job_id, report) = {
        let control = super::control(cancel);
        let run = parts
            .service
            .restore_here(&parts.engine, args.customer, &request, &control);
        super::done(runtime.block_on(run)?)?
    };
    let document = Document {
        job_id,
        report: &report,
    };
    output.result(&document, || {
        format!(
            "customer {} is as backup {} has it: {}, {} files, {} of files, {} tables and views",
            args.customer,
            &report.snapshot_id.to_string()[..8],
            report.restore_type,
            report.files,
            HumanBytes(report.bytes),
            report.tables,
        )
    });
    Ok(ExitCode::SUCCESS)
}
