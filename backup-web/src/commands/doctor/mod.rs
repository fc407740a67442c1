//! `doctor`: try every part of the configuration for real, and say how to mend what is wrong.
//!
//! Never: a trace left behind, whatever fails; a site that is stopped or closed; a customer's file, row or account changed; a password shown.

mod configuration;
mod customers;
mod databases;
mod nginx;
mod notify;
mod platform;
mod report;
mod repositories;
mod sites;

use std::process::ExitCode;

use backup_core::config::Config;
use backup_core::customer::{CustomerId, DatabaseName};
use backup_core::error::Result;
use backup_core::operations::Engine;
use backup_core::progress::Cancel;
use tokio::runtime::Runtime;

use crate::output::Output;
use customers::Customers;
use report::Report;

/// What is asked of each customer's servers and programs is asked for so many of them.
const TRIED_MAX: usize = 20;

/// Less than this is worth a word.
const LITTLE_SPACE: u64 = 1 << 30;

/// Whose sites and databases are tried, and with what.
struct Examined<'a> {
    config: &'a Config,
    engine: &'a Engine,
    customers: &'a Customers,
    /// Of all customers, whosever server they are on.
    databases: &'a [DatabaseName],
    cancel: &'a Cancel,
}

pub fn run(
    config: &Config,
    only: Option<CustomerId>,
    output: Output,
    runtime: &Runtime,
    cancel: &Cancel,
) -> Result<ExitCode> {
    let mut report = Report::default();
    let engine = Engine::new(config.clone(), cancel);
    configuration::check(config, &mut report);
    cancel.check()?;
    // From here on in the order in which somebody who begins needs them.
    let found = runtime.block_on(platform::check(config, &mut report));
    let customers = Customers::choose(config, found.customers, only, &mut report);
    runtime.block_on(platform::check_queue(config, &mut report));
    runtime.block_on(notify::check(config, &mut report));
    cancel.check()?;
    let is_here = |(id, _): &(CustomerId, u64)| customers.find(*id).is_some();
    let largest = found.largest.into_iter().find(is_here);
    sites::check_root(config, largest, &mut report);
    let examined = Examined {
        config,
        engine: &engine,
        customers: &customers,
        databases: &found.databases,
        cancel,
    };
    sites::check(&examined, &mut report)?;
    nginx::check(config, &customers, cancel, &mut report);
    cancel.check()?;
    databases::check(&examined, &mut report)?;
    repositories::check(config, &customers, cancel, &mut report)?;

    let good = !report.any_failed();
    output.result(
        &serde_json::json!({ "success": good, "checks": report.checks() }),
        || report.text(),
    );
    Ok(if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// How far a clock may be off before somebody should know, and before it does harm: locks are called stale after half an hour.
const CLOCK_WORTH_A_WORD: u64 = 10;
const CLOCK_HARMFUL: u64 = 5 * 60;

/// Judge how far the clock of `whose` is ahead of this machine's, in seconds.
fn check_clock(name: &str, whose: &str, ahead: i64, report: &mut Report) {
    let off = ahead.unsigned_abs();
    let direction = if ahead < 0 { "behind" } else { "ahead of" };
    let message = format!("the clock of {whose} is {off} s {direction} that of this machine");
    const REMEDY: &str =
        "let both machines take the time from the network (chrony or systemd-timesyncd)";
    match off {
        CLOCK_HARMFUL.. => report.failed(
            name,
            format!("{message}: locks that are held are taken for stale, and times are wrong"),
            REMEDY,
        ),
        CLOCK_WORTH_A_WORD.. => report.warning(name, message, REMEDY),
        _ => report.ok(name, format!("as that of {whose}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_off_is_told_and_one_that_does_harm_fails() {
        for (ahead, status, said) in [
            (0, "ok", "as that of"),
            (-9, "ok", "as that of"),
            (10, "warning", "10 s ahead of"),
            (-299, "warning", "299 s behind"),
            (300, "failed", "stale"),
            (-4_000, "failed", "4000 s behind"),
        ] {
            let mut report = Report::default();
            check_clock("clock", "the backup server", ahead, &mut report);
            let checks = serde_json::to_value(report.checks()).unwrap();
            assert_eq!(checks[0]["status"], status, "{ahead}");
            assert!(checks[0]["message"].to_string().contains(said), "{checks}");
        }
    }
}
