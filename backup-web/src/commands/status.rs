//! `status`: how all customers are, what is wrong first.

use std::process::ExitCode;

use backup_core::config::Config;
use backup_core::error::Result;
use backup_core::jiff::Timestamp;
use backup_core::service::{CustomerStatus, Kept, RepositoryStatus, Status};
use indicatif::HumanBytes;
use serde::Serialize;
use tokio::runtime::Runtime;

use crate::output::Output;

/// Something needs a look: apart from what failed (1) and from wrong usage (2).
const NEEDS_LOOK: u8 = 3;

#[derive(Serialize)]
struct Document<'a> {
    /// The hosting server; null for all.
    server: Option<&'a str>,
    needs_look: bool,
    #[serde(flatten)]
    status: &'a Status,
}

pub fn run(config: Config, all: bool, output: Output, runtime: &Runtime) -> Result<ExitCode> {
    let server = config.worker.server.clone();
    let server = (!all).then_some(server.as_str());
    let status = super::with_service(config, runtime, async |service| {
        service.status(server).await
    })?;
    let document = Document {
        server,
        needs_look: status.needs_look(),
        status: &status,
    };
    output.result(&document, || text(&status, server));
    Ok(if status.needs_look() {
        ExitCode::from(NEEDS_LOOK)
    } else {
        ExitCode::SUCCESS
    })
}

fn text(status: &Status, server: Option<&str>) -> String {
    let mut text = headline(status, server);
    for one in status.repositories.iter().filter(|one| one.is_unseen) {
        text.push_str(&unseen(one, status.at));
    }
    for customer in &status.customers {
        for problem in &customer.problems {
            text.push_str(&format!(
                "  customer {:<6} {}  {}\n",
                customer.customer_id,
                name(customer),
                customer.sentence(*problem, status.at)
            ));
        }
    }
    if !status.customers.is_empty() {
        text.push_str(&format!(
            "\n{:>8}  {:<30}  {:<12}  {:<20}  {:<10}  {:>6}  {:>12}  {:<12}  now\n",
            "customer", "shop", "server", "own backup", "daily", "failed", "kept", "last proven"
        ));
        text.extend(status.customers.iter().map(|one| line(one, status.at)));
    }
    text
}

fn headline(status: &Status, server: Option<&str>) -> String {
    let all = status.customers.len();
    let place = match server {
        Some(server) => format!("of the server {server}"),
        None => "of all servers".to_owned(),
    };
    match status.troubled() {
        0 if all == 0 => format!("there are no customers {place}\n"),
        0 => format!("all {all} customers {place} are well\n"),
        troubled => format!("{troubled} of the {all} customers {place} need a look:\n"),
    }
}

fn unseen(one: &RepositoryStatus, now: Timestamp) -> String {
    format!(
        "  the worker of the server {} has not looked at its {} repository for {}: is it there?\n",
        one.server,
        one.source,
        ago(Some(one.synced_at), now)
    )
}

fn line(customer: &CustomerStatus, now: Timestamp) -> String {
    let Kept {
        newest,
        newest_bytes,
        ..
    } = &customer.manual;
    let size = newest_bytes.map_or_else(String::new, |bytes| format!(", {}", HumanBytes(bytes)));
    let kept = customer.manual.bytes + customer.pre_restore.bytes;
    let job = customer.job.as_ref().map_or_else(String::new, |job| {
        let stuck = if job.is_stuck {
            "stuck"
        } else {
            job.status.as_str()
        };
        format!("{} {} {stuck}", job.job_type, job.id)
    });
    let server = customer.server.as_deref().unwrap_or("?");
    let line = format!(
        "{:>8}  {:<30}  {:<12}  {:<20}  {:<10}  {:>6}  {:>12}  {:<12}  {job}",
        customer.customer_id,
        name(customer),
        server.escape_debug().to_string(),
        format!("{}{size}", ago(*newest, now)),
        ago(customer.daily.newest, now),
        customer.failures,
        HumanBytes(kept).to_string(),
        customer
            .last_proven
            .map_or_else(|| "never".to_owned(), |at| ago(Some(at), now)),
    );
    format!("{}\n", line.trim_end())
}

fn name(customer: &CustomerStatus) -> String {
    let name = customer.name.as_deref().unwrap_or("-");
    name.escape_debug().to_string()
}

/// `12m`, `27h`, `3d`: as short as a table wants it.
fn ago(then: Option<Timestamp>, now: Timestamp) -> String {
    let Some(then) = then else {
        return "none".to_owned();
    };
    let minutes = now.duration_since(then).as_mins().max(0);
    match minutes {
        ..120 => format!("{minutes}m"),
        120..4320 => format!("{}h", minutes / 60),
        _ => format!("{}d", minutes / 1440),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_is_told_in_the_unit_that_matters() {
        let now: Timestamp = "2026-11-28T12:00:00Z".parse().unwrap();
        for (then, words) in [
            ("2026-11-28T11:58:00Z", "2m"),
            ("2026-11-28T10:00:00Z", "2h"),
            ("2026-11-26T10:00:00Z", "50h"),
            ("2026-11-25T12:00:00Z", "3d"),
            // A clock that is ahead.
            ("2026-11-29T12:00:00Z", "0m"),
        ] {
            assert_eq!(ago(Some(then.parse().unwrap()), now), words, "{then}");
        }
        assert_eq!(ago(None, now), "none");
    }
}
