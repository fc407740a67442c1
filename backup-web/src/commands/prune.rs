//! `prune`: of the manual repository. The daily one is pruned by the script that fills it.

use std::process::ExitCode;

use backup_core::config::Config;
use backup_core::error::Result;
use backup_core::progress::Cancel;
use indicatif::HumanBytes;
use tokio::runtime::Runtime;

use super::Parts;
use crate::output::Output;

pub fn run(config: Config, output: Output, runtime: &Runtime, cancel: &Cancel) -> Result<ExitCode> {
    let parts = Parts::connect(config, runtime, cancel)?;
    let report = runtime.block_on(parts.service.prune(&parts.engine))?;
    output.result(&report, || {
        format!(
            "{} packs removed, {} freed, {} left",
            report.packs_removed,
            HumanBytes(report.bytes_before.saturating_sub(report.bytes_after)),
            HumanBytes(report.bytes_after),
        )
    });
    Ok(ExitCode::SUCCESS)
}
