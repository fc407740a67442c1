//! `prune`: of the manual repository, and of the daily one where the daily backups are ours. Otherwise the script that fills that prunes it.

use std::process::ExitCode;

use backup_core::audit::Action;
use backup_core::catalog::Source;
use backup_core::config::Config;
use backup_core::error::Result;
use backup_core::progress::Cancel;
use backup_core::repository::PruneReport;
use indicatif::HumanBytes;
use serde::Serialize;
use tokio::runtime::Runtime;

use super::Parts;
use crate::output::{self, Output};

/// That of the manual repository, and beside it that of the daily one.
#[derive(Serialize)]
struct Document {
    #[serde(flatten)]
    manual: Option<PruneReport>,
    #[serde(skip_serializing_if = "Option::is_none")]
    daily: Option<PruneReport>,
}

pub fn run(config: Config, output: Output, runtime: &Runtime, cancel: &Cancel) -> Result<ExitCode> {
    let parts = Parts::connect(config, runtime, cancel)?;
    parts.note(Action::Prune);
    let mut pruned = Vec::new();
    let mut failures = Vec::new();
    for (source, outcome) in runtime.block_on(parts.service.prune(&parts.engine)) {
        match outcome {
            Ok(report) => pruned.push((source, report)),
            Err(error) => failures.push((source, error)),
        }
    }
    if let Some((source, error)) = failures.pop() {
        for (source, error) in failures {
            output::message(&format!(
                "error: the {source} repository: {}",
                error.chain()
            ));
        }
        for (source, report) in &pruned {
            output::message(&text(*source, report));
        }
        return Err(error.context(format!("the {source} repository is not pruned")));
    }
    let of = |wanted: Source| {
        let found = pruned.iter().find(|(source, _)| *source == wanted);
        found.map(|(_, report)| *report)
    };
    let document = Document {
        manual: of(Source::Manual),
        daily: of(Source::Daily),
    };
    output.result(&document, || {
        let lines = pruned.iter().map(|(source, report)| text(*source, report));
        lines.collect::<Vec<_>>().join("\n")
    });
    Ok(ExitCode::SUCCESS)
}

fn text(source: Source, report: &PruneReport) -> String {
    format!(
        "{source}: {} packs removed, {} freed, {} left",
        report.packs_removed,
        HumanBytes(report.bytes_before.saturating_sub(report.bytes_after)),
        HumanBytes(report.bytes_after),
    )
}
