//! `daily`.

use std::process::ExitCode;

use backup_core::audit::Action;
use backup_core::config::Config;
use backup_core::error::Result;
use backup_core::operations::{DailyFailure, DailyPart};
use backup_core::progress::Cancel;
use indicatif::HumanBytes;
use tokio::runtime::Runtime;

use super::{Parts, init};
use crate::output::{self, Output};

pub fn run(config: Config, output: Output, runtime: &Runtime, cancel: &Cancel) -> Result<ExitCode> {
    let parts = Parts::connect(config, runtime, cancel)?;
    parts.note(Action::Daily);
    if let Some(advice) = init::on_first_use(parts.service.config(), cancel)? {
        output::message(&advice);
    }
    let report = {
        let control = super::control(cancel);
        runtime.block_on(parts.service.back_up_daily(&parts.engine, &control))?
    };
    for failure in &report.failed {
        output::message(&format!("error: {}", sentence(failure)));
    }
    output.result(&report, || {
        format!(
            "daily backup {}: {} customers, {} failures, {} files, {} in all, {} new in the repository, {} old backups forgotten",
            &report.snapshot_id.to_string()[..8],
            report.customers,
            report.failed.len(),
            report.files,
            HumanBytes(report.bytes),
            HumanBytes(report.bytes_added),
            report.forgotten.len(),
        )
    });
    Ok(match report.failed.is_empty() {
        true => ExitCode::SUCCESS,
        // The backup of the others is there all the same.
        false => ExitCode::FAILURE,
    })
}

fn sentence(failure: &DailyFailure) -> String {
    let what = match failure.part {
        DailyPart::Customer => "nothing",
        DailyPart::Database => "the database",
        DailyPart::Files => "the files",
        DailyPart::PlatformDatabase => "the platform's own database",
        DailyPart::Path => "a directory of daily.paths",
    };
    let whose = match failure.customer {
        Some(id) => format!(" of customer {id}"),
        None => String::new(),
    };
    let is = match failure.part {
        DailyPart::Customer => "could be saved",
        DailyPart::Files => "are not saved",
        _ => "is not saved",
    };
    format!("{what}{whose} {is}: {}", failure.error)
}
