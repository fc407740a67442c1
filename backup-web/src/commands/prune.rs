//! `prune`: of the manual repository. The daily one is pruned by the script that fills it.

use std::collections::BTreeSet;
use std::process::ExitCode;

use backup_core::config::Config;
use backup_core::error::Result;
use backup_core::operations::Engine;
use backup_core::progress::Cancel;
use indicatif::HumanBytes;

use crate::output::Output;

pub fn run(config: Config, output: Output, cancel: &Cancel) -> Result<ExitCode> {
    let report = Engine::new(config, cancel)
        .manual()?
        .prune(&BTreeSet::new())?;
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
