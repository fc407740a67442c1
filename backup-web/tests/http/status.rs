//! `status`: what is wrong first, for people, programs and monitorings.

use serde_json::Value;

use crate::world::World;

/// Milliseconds before now, by the database's clock.
fn ago(hours: u32) -> String {
    format!("(UNIX_TIMESTAMP() - {hours} * 3600) * 1000")
}

fn add_backup(world: &World, customer: u32, source: &str, hours: u32) {
    add_backup_of(world, customer, source, hours, "both");
}

fn add_backup_of(world: &World, customer: u32, source: &str, hours: u32, of: &str) {
    world.sql(&format!(
        "INSERT INTO customer_backups (customer_id, source, snapshot_id, time, backup_type, bytes, bytes_added)
         VALUES ({customer}, '{source}', SHA2('{customer}{source}{hours}', 256), {}, '{of}', 4000000, 1000)",
        ago(hours)
    ));
}

fn customers(document: &Value) -> Vec<(u64, Vec<&str>)> {
    let customers = document["customers"].as_array().unwrap().iter();
    customers
        .map(|one| {
            let problems = one["problems"].as_array().unwrap().iter();
            (
                one["customer_id"].as_u64().unwrap(),
                problems.map(|word| word.as_str().unwrap()).collect(),
            )
        })
        .collect()
}

#[test]
fn status_tells_what_is_wrong_first_and_ends_with_a_status_of_its_own() {
    let world = World::new(1..=10);
    for (customer, source, hours) in [
        (1, "manual", 1),
        (1, "daily", 3),
        (2, "daily", 27),
        (3, "manual", 60),
        (4, "daily", 100),
        // What a restore replaced is no backup that anybody made.
        (5, "pre-restore", 1),
        (6, "daily", 2),
        (7, "manual", 20),
        (7, "manual", 30),
    ] {
        add_backup(&world, customer, source, hours);
    }
    // Files every night, and no dump for two months, or ever.
    add_backup_of(&world, 9, "daily", 3, "files");
    add_backup(&world, 9, "daily", 60 * 24);
    add_backup_of(&world, 10, "daily", 3, "files");
    // Nobody expects a backup of those whom the platform has suspended.
    world.sql("UPDATE customers SET status = 'suspended' WHERE id IN (4, 8)");
    world.sql(&format!(
        "INSERT INTO customer_backup_jobs (customer_id, job_type, backup_type, status, failure, started_at, finished_at, completed_at, created_at) VALUES
            (7, 'backup', 'both', 'failed', 'error', {a}, {a}, NOW(), NOW()), (7, 'backup', 'both', 'completed', NULL, {a}, {a}, NOW(), NOW()),
            (7, 'backup', 'both', 'failed', 'error', {a}, {a}, NOW(), NOW()), (7, 'backup', 'both', 'failed', 'cancelled', {a}, {a}, NOW(), NOW()),
            (7, 'backup', 'both', 'failed', 'timeout', {a}, {a}, NOW(), NOW()),
            (6, 'restore', 'both', 'failed', 'stuck', {a}, {a}, NOW() - INTERVAL 3 HOUR, NOW()),
            (1, 'backup', 'db', 'pending', NULL, NULL, NULL, NULL, NOW() - INTERVAL 1 HOUR)",
        a = ago(3)
    ));
    // The last try failed; the one before it had not.
    let id = "e".repeat(64);
    world.sql(&format!(
        "INSERT INTO backup_proofs (customer_id, source, snapshot_id, tried_at, failure, proven_at, proven_snapshot) VALUES
            (7, 'manual', '{id}', {}, 'it lacks a table', {}, '{id}'), (7, 'daily', '{id}', {at}, NULL, {at}, '{id}')",
        ago(1),
        ago(80),
        at = ago(30)
    ));

    let outcome = world.product.run("--json status");
    assert_eq!(outcome.code, Some(3), "{}", outcome.stderr);
    let document: Value = serde_json::from_str(&outcome.stdout).unwrap();
    assert_eq!(document["server"], "default");
    assert_eq!(document["needs_look"], true);
    assert_eq!(
        customers(&document),
        [
            (6, vec!["stuck_restore"]),
            (5, vec!["no_backup"]),
            (10, vec!["no_backup"]),
            (7, vec!["not_proven", "backups_fail"]),
            (3, vec!["backup_missed"]),
            (9, vec!["backup_missed"]),
            (1, vec!["waits_too_long"]),
            (2, vec!["backup_late"]),
            (4, vec![]),
            (8, vec![]),
        ]
    );
    let seven = &document["customers"][3];
    assert_eq!(seven["failures"], 2);
    assert_eq!(seven["last_failed_job"], 5);
    assert_eq!(seven["manual"]["count"], 2);
    assert_eq!(seven["manual"]["bytes"], 8_000_000);
    assert_eq!(seven["manual"]["bytes_added"], 2_000);
    let proven: jiff::Timestamp = seven["last_proven"].as_str().unwrap().parse().unwrap();
    let hours = jiff::Timestamp::now().duration_since(proven).as_hours();
    assert!((29..=30).contains(&hours), "{seven}");
    assert_eq!(document["customers"][0]["last_proven"], Value::Null);

    let outcome = world.product.run("status");
    assert_eq!(outcome.code, Some(3));
    let text = &outcome.stdout;
    let places: Vec<_> = [
        "8 of the 10 customers of the server default need a look:",
        "the restore that is job 6 has been stuck for 3 hours",
        "there is no good backup",
        "there is no good backup of his database",
        "his newest backup could not be restored when that was tried",
        "2 backups failed since the newest good one, the last is job 5",
        "the newest good backup is 60 hours old",
        "the newest good backup of his database is 60 days old",
        "job 7 has waited for 1 hour",
        "the newest good backup is 27 hours old",
        "own backup",
    ]
    .map(|words| {
        text.find(words)
            .unwrap_or_else(|| panic!("{words}: {text}"))
    })
    .to_vec();
    assert!(places.is_sorted(), "{text}");
}

#[test]
fn status_of_customers_who_are_well_is_fine_and_one_that_cannot_be_told_is_a_failure() {
    let mut world = World::new([1, 2]);
    world.sql(
        "INSERT INTO servers (id, name, hostname) VALUES (7, 'north', 'north.example');
         UPDATE customers SET server_id = 7 WHERE id = 2",
    );
    world.back_up(1);
    // Of his files alone that is half of what he has.
    let half = world.product.run("--json status");
    assert_eq!(half.code, Some(3));
    world.product.run("backup 1 --type db").done();
    let here = world.product.run("--json status").document();
    assert_eq!(here["needs_look"], false);
    assert_eq!(customers(&here), [(1, vec![])]);
    let text = world.product.run("status");
    assert!(
        text.done()
            .starts_with("all 1 customers of the server default are well")
    );
    let all = world.product.run("--json status --all");
    assert_eq!(all.code, Some(3));
    let all: Value = serde_json::from_str(&all.stdout).unwrap();
    assert_eq!(customers(&all), [(2, vec!["no_backup"]), (1, vec![])]);
    assert_eq!(all["server"], Value::Null);

    // As many queries of a thousand as of two.
    let questions = |world: &World| -> u64 {
        let count = || -> u64 {
            let line = world.sql("SHOW GLOBAL STATUS LIKE 'Com_select'");
            line.split_whitespace().last().unwrap().parse().unwrap()
        };
        let before = count();
        world.product.run("status --all");
        count() - before
    };
    let few = questions(&world);
    world.sql(
        "INSERT INTO customers (id, email, password_hash, company_name, domain, platform, status)
         SELECT seq, CONCAT(seq, '@shop.example'), 'x', 'x', CONCAT(seq, '.example'), 'woocommerce', 'active' FROM seq_100_to_1100",
    );
    let many = questions(&world);
    assert!(many <= few + 2, "{few} and {many}");

    world.product.bed.mariadb_mut().stop().unwrap();
    world.product.run("status").refusal(1);
}
