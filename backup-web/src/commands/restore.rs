//! `restore`.

use std::process::ExitCode;

use backup_core::config::Config;
use backup_core::error::Result;
use backup_core::operations::{Engine, RestoreRequest};
use backup_core::progress::Cancel;
use indicatif::HumanBytes;
use tokio::runtime::Runtime;

use crate::args::RestoreArgs;
use crate::output::Output;

pub fn run(
    config: Config,
    args: RestoreArgs,
    output: Output,
    runtime: &Runtime,
    cancel: &Cancel,
) -> Result<ExitCode> {
    let customer = super::find_customer(&config, args.customer, runtime)?;
    let source = args.source.into();
    let report = {
        let control = super::control(cancel);
        let engine = Engine::new(config, cancel);
        let request = RestoreRequest {
            snapshot: engine.resolve(&customer, source, &args.snapshot)?,
            source,
            restore_type: args.part.map(Into::into),
            online: args.online,
        };
        engine.restore(&customer, &request, &control)?
    };
    output.result(&report, || {
        format!(
            "customer {} is as backup {} has it: {}, {} files, {} of files, {} tables and views",
            customer.id,
            &report.snapshot_id.to_string()[..8],
            report.restore_type,
            report.files,
            HumanBytes(report.bytes),
            report.tables,
        )
    });
    Ok(ExitCode::SUCCESS)
}
