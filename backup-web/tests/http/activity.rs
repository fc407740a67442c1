//! What was done to a customer's backups and account, as he reads it, and as operators do.

use serde_json::Value;
use xtask::product::wait_until;

use crate::client::Client;
use crate::world::{PASSWORD, World, credentials};

fn entries(client: &Client) -> Vec<Value> {
    let document = client.get("/api/activity").is(200).json();
    document["entries"].as_array().unwrap().clone()
}

fn words(entries: &[Value], key: &str) -> Vec<String> {
    let word = |entry: &Value| entry[key].as_str().unwrap_or("-").to_owned();
    entries.iter().map(word).collect()
}

#[test]
fn a_customer_reads_who_did_what_from_where_and_nothing_of_another() {
    let world = World::new([1, 2]);
    world.sql("UPDATE customers SET company_name = 'Bolt and Nut' WHERE id = 2");
    let snapshot = world.back_up(1);
    world.back_up(2);
    let server = world.serve();
    let proxied = server
        .client()
        .with("X-Forwarded-For", "10.9.9.9, 2001:db8:1:2:3:4:5:6");
    let refused = proxied.post("/login", &credentials(1, "not the password"));
    refused.refusal(401);
    let answer = proxied.post("/login", &credentials(1, PASSWORD));
    let a = proxied
        .with("Cookie", &answer.is(200).cookie())
        .with("X-Request-Id", "request-7");
    let b = server.customer(2);
    let note = "a-note-that-is-nobody's-concern";
    let created = a.post("/backups/create", &format!("backup_type=db&note={note}"));
    let job = created.is(200).json()["job_id"].to_string();
    for _ in 0..3 {
        a.post(&format!("/backups/jobs/{job}/cancel"), "");
        a.post(&format!("/backups/jobs/{job}/dismiss"), "").is(200);
    }
    let restore = format!("/backups/{snapshot}/restore");
    a.post(&restore, "confirmation=RESTORE&restore_type=files")
        .is(200);
    let restoring = a.get("/api/backups/status").json()["job"]["id"].to_string();
    let line = format!("cancel {restoring}");
    world.product.run(&line).done();
    a.post(
        &format!("/backups/{snapshot}/delete"),
        "confirmation=DELETE",
    )
    .is(200);
    // The refused one is written down beside its answer.
    wait_until("the refused login is seen", || {
        words(&entries(&a), "action").contains(&"login_refused".to_owned())
    });

    let all = entries(&a);
    let mut actions = words(&all, "action");
    let refused = actions
        .iter()
        .position(|action| action == "login_refused")
        .unwrap();
    actions.remove(refused);
    assert_eq!(
        actions,
        [
            "delete", "cancel", "restore", "dismiss", "cancel", "backup", "login", "backup"
        ]
    );
    let mut messages = words(&all, "message");
    assert_eq!(
        messages.remove(refused),
        "Somebody tried to sign in from 2001:db8:1:2:3:4:5:6 and was refused."
    );
    assert_eq!(
        messages,
        [
            "You deleted a backup.",
            "An operator cancelled a restore of the files.",
            "You started a restore of the files.",
            "You put away the message of a backup that failed.",
            "You cancelled a backup of the database.",
            "You started a backup of the database.",
            "Signed in from 2001:db8:1:2:3:4:5:6.",
            "An operator started a backup of the files.",
        ]
    );
    let deleted = &all[0];
    assert_eq!(deleted["snapshot_id"], snapshot.as_str());
    assert_eq!(deleted["source"], "manual");
    assert_eq!(deleted["address"], "2001:db8:1:2:3:4:5:6");

    // The others' are the others'.
    let theirs = entries(&b);
    assert_eq!(words(&theirs, "action"), ["login", "backup"]);
    let page = a.browser().get("/activity");
    let page = page.is(200).text();
    assert!(!page.contains("<script"), "{page}");
    for words in [
        "You deleted a backup",
        "An operator cancelled a restore",
        "Signed in from 2001:db8:1:2:3:4:5:6",
    ] {
        assert!(page.contains(words), "{words}: {page}");
    }
    for secret in ["Bolt and Nut", "root", note, PASSWORD, "request-7"] {
        assert!(!page.contains(secret), "{secret}: {page}");
    }
    let rows = world.sql("SELECT * FROM backup_audit");
    for secret in [note, PASSWORD, "not the password"] {
        assert!(!rows.contains(secret), "{secret}: {rows}");
    }
    // Operators find the request and the account of the system in the table.
    for known in ["request-7", "root", "2001:db8:1:2:3:4:5:6"] {
        assert!(rows.contains(known), "{known}: {rows}");
    }
    a.post("/logout", "").is(200);
    let out =
        world.sql("SELECT COUNT(*) FROM backup_audit WHERE action = 'logout' AND customer_id = 1");
    assert_eq!(out, "1\n");
    world.stop(server);
}

#[test]
fn activity_comes_in_pages_the_newest_first_in_the_readers_own_zone() {
    let world = World::new([1]);
    let server = world.serve();
    let customer = server.customer(1);
    world.sql(
        "INSERT INTO backup_audit (at, customer_id, who, action, backup_type)
         SELECT 1795140000000 + seq, 1, 'service', 'backup', 'both' FROM seq_1_to_120",
    );
    // A later version of this program did that, and after it an earlier one.
    world
        .sql("UPDATE backup_audit SET action = 'teleport' WHERE at % 10 = 5 AND action = 'backup'");
    let mut before = None;
    let (mut seen, mut nexts) = (Vec::new(), Vec::new());
    loop {
        let query = before.map_or_else(String::new, |id: u64| format!("?before={id}"));
        let document = customer
            .get(&format!("/api/activity{query}"))
            .is(200)
            .json();
        let entries = document["entries"].as_array().unwrap().clone();
        assert!(entries.len() <= 50);
        seen.extend(entries.iter().map(|entry| entry["id"].as_u64().unwrap()));
        before = document["next"].as_u64();
        let Some(next) = before else {
            break;
        };
        nexts.push(next);
    }
    assert_eq!(seen.len(), 121 - 12);
    assert!(seen.is_sorted_by(|later, earlier| later > earlier));
    let browser = customer.browser().with("Cookie", "tz=Asia/Tokyo");
    let page = browser.get("/activity").is(200).text();
    let last = nexts[0];
    assert!(page.contains(&format!("/activity?before={last}")), "{page}");
    assert!(
        page.contains("Asia/Tokyo") && page.contains("11:00"),
        "{page}"
    );
    let page = browser
        .get(&format!("/activity?before={last}"))
        .is(200)
        .text();
    assert!(page.contains("href=\"/activity\""), "{page}");
    customer.get("/api/activity?before=x").refusal(400);
    customer.get("/api/activity?before=-1").refusal(400);
    world.stop(server);
}

#[test]
fn what_operators_run_is_written_down_of_whom_it_concerns_and_what_only_looks_is_not() {
    let world = World::new([1, 2]);
    world.back_up(1);
    world.product.run("unlock").done();
    world.product.run("check").done();
    // There is nothing of his to prove, and nobody of the other number.
    world.product.run("verify 2");
    assert_ne!(world.product.run("verify 77").code, Some(0));
    // Locks are removed without the database, too.
    let mut command = world.product.command("unlock");
    command.env(
        "BACKUP__DATABASE__URL",
        "mysql://nobody@127.0.0.1:1/nowhere",
    );
    let outcome = world.product.run_command(command);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert!(
        outcome.stderr.contains("is not written down"),
        "{}",
        outcome.stderr
    );
    let rows = world.sql("SELECT who, name, action, customer_id FROM backup_audit WHERE action <> 'backup' ORDER BY id");
    assert_eq!(
        rows,
        "operator\troot\tunlock\tNULL\noperator\troot\tverify\t2\n"
    );
    let server = world.serve();
    let theirs = entries(&server.customer(2));
    assert_eq!(
        words(&theirs, "message")[1..],
        ["An operator tried whether backups can be restored."]
    );
    world.stop(server);
}

#[test]
fn whoever_guesses_a_password_does_not_fill_the_table() {
    let world = World::new([1]);
    world.sql(
        "INSERT INTO backup_audit (at, customer_id, who, action)
         SELECT UNIX_TIMESTAMP() * 1000, 1, 'customer', 'login_refused' FROM seq_1_to_19",
    );
    let server = world.serve();
    let count = || world.sql("SELECT COUNT(*) FROM backup_audit WHERE action = 'login_refused'");
    let guess = || {
        let wrong = server
            .client()
            .post("/login", &credentials(1, "not the password"));
        wrong.refusal(401);
    };
    guess();
    wait_until("the first is written down", || count() == "20\n");
    guess();
    guess();
    let unknown = server
        .client()
        .post("/login", "email=nobody@shop.example&password=nothing");
    unknown.refusal(401);
    server.customer(1);
    world.stop(server);
    assert_eq!(count(), "20\n");
}
