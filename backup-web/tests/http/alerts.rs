//! The alerts of `deploy/prometheus`: on what is really there, each with a place to read on.

use std::collections::BTreeSet;

use xtask::product::wait_until;

use crate::world::World;

const RULES: &str = include_str!("../../../deploy/prometheus/alerts.yml");
const RUNBOOK: &str = include_str!("../../../docs/operations.md");
const PREFIX: &str = "shophosting_backup_";

/// What stands behind a key, rule by rule.
fn values(key: &str) -> Vec<&'static str> {
    let behind = |line: &'static str| line.trim_start_matches([' ', '-']).strip_prefix(key);
    RULES.lines().filter_map(behind).map(str::trim).collect()
}

/// The metrics of an expression, and the labels that it chooses or divides them by.
fn named(expression: &str) -> Vec<(String, Vec<String>)> {
    let starts = expression.match_indices(PREFIX).map(|(at, _)| at);
    let is_of_name = |c: char| c.is_ascii_lowercase() || c == '_';
    let metric = |at: usize| {
        let rest = &expression[at..];
        let end = rest.find(|c| !is_of_name(c)).unwrap_or(rest.len());
        let (name, rest) = rest.split_at(end);
        let chosen = rest
            .strip_prefix('{')
            .and_then(|rest| rest.split('}').next());
        let labels = chosen.unwrap_or_default().split(',');
        let labels = labels.filter_map(|one| Some(one.split_once('=')?.0.trim().to_owned()));
        (name.to_owned(), labels.collect())
    };
    starts.map(metric).collect()
}

#[test]
fn every_alert_is_on_a_metric_that_there_is_with_the_labels_that_it_has() {
    let world = World::new([1]);
    world.back_up(1);
    world.product.run("sync").done();
    // As after a proof that failed, and packs that were read.
    world.sql(
        "INSERT INTO backup_proofs (customer_id, source, snapshot_id, tried_at, failure) VALUES (1, 'manual', 'e', 1, 'it lacks a table');
         UPDATE backup_repositories SET sampled_at = 1, sample_errors = 0",
    );
    let server = world.serve();
    server.customer(1).get("/api/backups").is(200);
    let shown = server.client().get("/metrics").is(200).text();
    let expressions = values("expr:");
    assert!(expressions.len() > 5, "{expressions:?}");
    for expression in expressions {
        let metrics = named(expression);
        assert!(!metrics.is_empty(), "{expression}");
        for (name, labels) in metrics {
            let is_it = |line: &&str| {
                let rest = line.strip_prefix(name.as_str());
                rest.is_some_and(|rest| rest.starts_with([' ', '{']))
            };
            let sample = shown.lines().find(is_it);
            let sample = sample.unwrap_or_else(|| panic!("{name} is not shown: {shown}"));
            for label in labels {
                assert!(sample.contains(&format!("{label}=\"")), "{label}: {sample}");
            }
        }
    }
    world.stop(server);
}

/// Else the first of them would make its series appear, and nobody sees that it grew.
#[test]
fn what_alerts_count_is_shown_before_the_first_of_it_and_what_was_cancelled_is_no_failure() {
    let world = World::new([1]);
    let server = world.serve();
    let shows = |line: &str| {
        let shown = server.client().get("/metrics").is(200).text();
        shown.lines().any(|found| found == line)
    };
    for job_type in ["backup", "restore"] {
        for status in ["pending", "running", "completed", "failed", "cancelled"] {
            let line =
                format!("shophosting_backup_jobs{{type=\"{job_type}\",status=\"{status}\"}} 0");
            assert!(shows(&line), "{line}");
        }
    }
    assert!(shows("shophosting_backup_http_failures_total 0"));
    world.sql(
        "INSERT INTO customer_backup_jobs (customer_id, job_type, backup_type, status, failure, started_at, finished_at) VALUES
            (1, 'backup', 'db', 'failed', 'cancelled', 1, 2), (1, 'backup', 'db', 'failed', 'cancelled', NULL, 2),
            (1, 'backup', 'db', 'failed', 'timeout', 1, 2), (1, 'backup', 'db', 'failed', 'error', 1, 2),
            (1, 'backup', 'db', 'failed', NULL, NULL, NULL), (1, 'restore', 'db', 'failed', 'stuck', 1, 2)",
    );
    for line in [
        "shophosting_backup_jobs{type=\"backup\",status=\"cancelled\"} 2",
        "shophosting_backup_jobs{type=\"backup\",status=\"failed\"} 3",
        "shophosting_backup_jobs_timed{type=\"backup\",status=\"failed\"} 2",
        "shophosting_backup_jobs{type=\"restore\",status=\"failed\"} 1",
        "shophosting_backup_stuck_restores 1",
    ] {
        // Figures of the database are some seconds old.
        wait_until(line, || shows(line));
    }
    // An answer with an error that is ours.
    let customer = server.customer(1);
    world.sql("RENAME TABLE customer_backup_jobs TO hidden");
    assert!(customer.get("/api/backups/status").status >= 500);
    assert!(shows("shophosting_backup_http_failures_total 1"));
    world.sql("RENAME TABLE hidden TO customer_backup_jobs");
    world.stop(server);
}

#[test]
fn every_alert_is_whole_and_leads_to_a_heading_of_the_runbook() {
    let alerts = values("alert:");
    let distinct: BTreeSet<_> = alerts.iter().collect();
    assert_eq!(distinct.len(), alerts.len());
    for key in ["expr:", "for:", "severity:", "summary:", "runbook_url:"] {
        assert_eq!(values(key).len(), alerts.len(), "{key}");
    }
    // What YAML would take for something else.
    assert!(!RULES.contains('\t'));
    for summary in values("summary:") {
        let is_quoted = summary.starts_with('"') && summary.ends_with('"');
        assert!(
            is_quoted || !(summary.starts_with('{') || summary.contains(": ")),
            "{summary}"
        );
    }
    let slug = |heading: &str| {
        let kept = heading
            .chars()
            .filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        kept.collect::<String>().to_lowercase().replace(' ', "-")
    };
    let headings: BTreeSet<String> = RUNBOOK
        .lines()
        .filter_map(|line| line.strip_prefix('#'))
        .map(|line| slug(line.trim_start_matches('#').trim()))
        .collect();
    for link in values("runbook_url:") {
        let place = "file:///usr/share/doc/shophosting-backup/operations.md#";
        let heading = link.strip_prefix(place).unwrap_or_else(|| panic!("{link}"));
        assert!(headings.contains(heading), "{heading}: {headings:?}");
    }
}
