//! `prune`: of the manual repository or repositories, and of the daily one where the daily backups are ours. Otherwise the script that fills that prunes it.

use std::process::ExitCode;

use backup_core::audit::Action;
use backup_core::catalog::RepositoryName;
use backup_core::config::Config;
use backup_core::customer::CustomerId;
use backup_core::error::Result;
use backup_core::progress::Cancel;
use backup_core::repository::PruneReport;
use indicatif::HumanBytes;
use serde::Serialize;
use tokio::runtime::Runtime;

use super::Parts;
use crate::output::{self, Output};

/// That of the manual repository, and beside it that of the daily one; where each customer has one of his own, theirs.
#[derive(Serialize)]
struct Document {
    #[serde(flatten)]
    manual: Option<PruneReport>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    customers: Vec<OfCustomer>,
    #[serde(skip_serializing_if = "Option::is_none")]
    daily: Option<PruneReport>,
}

#[derive(Serialize)]
struct OfCustomer {
    customer: CustomerId,
    #[serde(flatten)]
    report: PruneReport,
}

pub fn run(config: Config, output: Output, runtime: &Runtime, cancel: &Cancel) -> Result<ExitCode> {
    let parts = Parts::connect(config, runtime, cancel)?;
    parts.note(Action::Prune);
    let mut pruned = Vec::new();
    let mut failures = Vec::new();
    for (name, outcome) in runtime.block_on(parts.service.prune(&parts.engine)) {
        match outcome {
            Ok(report) => pruned.push((name, report)),
            Err(error) => failures.push((name, error)),
        }
    }
    if let Some((name, error)) = failures.pop() {
        for (name, error) in failures {
            output::message(&format!("error: the {name}: {}", error.chain()));
        }
        for (name, report) in &pruned {
            output::message(&text(*name, report));
        }
        return Err(error.context(format!("the {name} is not pruned")));
    }
    let of = |wanted: RepositoryName| {
        let found = pruned.iter().find(|(name, _)| *name == wanted);
        found.map(|(_, report)| *report)
    };
    let of_customer = |(name, report): &(RepositoryName, PruneReport)| {
        Some(OfCustomer {
            customer: name.customer()?,
            report: *report,
        })
    };
    let document = Document {
        manual: of(RepositoryName::Manual),
        customers: pruned.iter().filter_map(of_customer).collect(),
        daily: of(RepositoryName::Daily),
    };
    output.result(&document, || {
        let lines = pruned.iter().map(|(name, report)| text(*name, report));
        lines.collect::<Vec<_>>().join("\n")
    });
    Ok(ExitCode::SUCCESS)
}

fn text(name: RepositoryName, report: &PruneReport) -> String {
    format!(
        "{}: {} packs removed, {} freed, {} left",
        super::shown(name),
        report.packs_removed,
        HumanBytes(report.bytes_before.saturating_sub(report.bytes_after)),
        HumanBytes(report.bytes_after),
    )
}
