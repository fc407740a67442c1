//! How long somebody stays logged in, and what ends it.

use crate::client::Client;
use crate::world::{PASSWORD, PASSWORD_HASH, Server, World, credentials};

/// Logged in, and then something happens that ends it: for programs and for browsers, and for good.
#[track_caller]
fn ends(server: &Server, customer: u32, what: impl FnOnce(&Client)) {
    let client = server.customer(customer);
    client.get("/api/backups").is(200);
    what(&client);
    client.get("/api/backups").refusal(401);
    client.get("/api/page/backups").is(401);
    let page = client.browser().get("/backups");
    // A browser that came with a cookie is told why, and rid of it.
    page.leads_to("/login?problem=expired");
    assert!(page.header("set-cookie").unwrap().contains("Max-Age=0"));
}

#[test]
fn a_session_ends_with_the_logout_for_whoever_kept_the_cookie() {
    let world = World::new([1]);
    let server = world.serve();
    ends(&server, 1, |client| {
        client.post("/logout", "").is(200);
    });
    ends(&server, 1, |client| {
        client.browser().post("/logout", "").leads_to("/login");
    });
    assert_eq!(world.sql("SELECT COUNT(*) FROM backup_sessions"), "0\n");
    world.stop(server);
}

#[test]
fn a_session_ends_when_nobody_comes_and_when_it_is_old() {
    let world = World::new([1]);
    let server = world.serve();
    let hours = |column: &str, hours: u32| {
        world.sql(&format!(
            "UPDATE backup_sessions SET {column} = {column} - {hours} * 3600000"
        ));
    };
    let client = server.customer(1);
    hours("seen_at", 1);
    client.get("/api/backups").is(200);
    ends(&server, 1, |_| hours("seen_at", 3));
    hours("created_at", 23);
    server.customer(1).get("/api/backups").is(200);
    ends(&server, 1, |_| hours("created_at", 25));
    // Whoever logs in sweeps away what has expired.
    world.sql("UPDATE backup_sessions SET seen_at = seen_at - 3 * 3600000");
    server.customer(1);
    assert_eq!(world.sql("SELECT COUNT(*) FROM backup_sessions"), "1\n");
    world.stop(server);
    // As the operator wants it.
    let short = world.serve_with(
        "serve",
        &[
            ("SERVER__SESSION_IDLE", "10m"),
            ("SERVER__SESSION_MAX", "1h"),
        ],
    );
    ends(&short, 1, |_| {
        world.sql("UPDATE backup_sessions SET seen_at = seen_at - 11 * 60000");
    });
    ends(&short, 1, |_| {
        world.sql("UPDATE backup_sessions SET created_at = created_at - 61 * 60000");
    });
    world.stop(short);
}

#[test]
fn all_sessions_of_a_customer_end_when_the_platform_changes_his_password_or_suspends_him() {
    let world = World::new([1, 2]);
    let server = world.serve();
    let other = server.customer(2);
    let kept = server.customer(1);
    ends(&server, 1, |_| {
        // The same password, hashed anew.
        let again = "pbkdf2:sha512:50000$a4UHZ6N2ELM0u83J$52cc55a80f9fef8554ec3927e330d95538d55d669e0c038db628215c00ac9bc48556ae0760e9435478dc1757ae6f05e7232ed3c8c54174baecfc90e1377ad7c8";
        world.sql(&format!(
            "UPDATE customers SET password_hash = '{again}' WHERE id = 1"
        ));
    });
    kept.get("/api/backups").refusal(401);
    ends(&server, 1, |_| {
        world.sql("UPDATE customers SET status = 'suspended' WHERE id = 1");
    });
    // What has ended does not come to life again.
    world.sql(&format!(
        "UPDATE customers SET status = 'active', password_hash = '{PASSWORD_HASH}' WHERE id = 1"
    ));
    kept.get("/api/backups").refusal(401);
    ends(&server, 1, |_| {
        world.sql("DELETE FROM customers WHERE id = 1");
    });
    other.get("/api/backups").is(200);
    world.stop(server);
}

#[test]
fn a_stolen_table_of_sessions_opens_nothing() {
    let mut world = World::new([1]);
    let server = world.serve();
    let cookie = server.log_in(1);
    let (name, token) = cookie.split_once('=').unwrap();
    let table = world.sql("SELECT * FROM backup_sessions");
    assert!(!table.contains(token));
    for stolen in table.split_whitespace() {
        let thief = server.client().with("Cookie", &format!("{name}={stolen}"));
        thief.get("/api/backups").refusal(401);
    }
    server
        .client()
        .with("Cookie", &cookie)
        .get("/api/backups")
        .is(200);
    // Nor is it in the log, however much is logged.
    world.product.keep_secret("a session", token);
    world.stop(server);
}

#[test]
fn a_session_begins_anew_with_the_login() {
    let world = World::new([1, 2]);
    let server = world.serve();
    // A cookie that somebody else chose is never taken over.
    let planted = format!("shophosting={}", "A".repeat(43));
    let answer = server
        .client()
        .with("Cookie", &planted)
        .post("/login", &credentials(1, PASSWORD));
    assert_ne!(answer.cookie(), planted);
    server
        .client()
        .with("Cookie", &planted)
        .get("/api/backups")
        .refusal(401);
    let first = answer.cookie();
    let again = server
        .client()
        .with("Cookie", &first)
        .post("/login", &credentials(2, PASSWORD));
    assert_ne!(again.cookie(), first);
    server
        .client()
        .with("Cookie", &first)
        .get("/api/backups")
        .refusal(401);
    server
        .client()
        .with("Cookie", &again.cookie())
        .get("/api/backups")
        .is(200);
    for nonsense in [
        "",
        "x",
        &"A".repeat(42),
        &"A".repeat(44),
        &"A".repeat(10_000),
        "%00",
        "'; DROP TABLE backup_sessions; --",
    ] {
        let client = server
            .client()
            .with("Cookie", &format!("shophosting={nonsense}"));
        client.get("/api/backups").refusal(401);
    }
    world.stop(server);
}

#[test]
fn of_too_many_sessions_the_one_that_was_used_the_longest_time_ago_ends() {
    let world = World::new([1, 2]);
    let server = world.serve();
    let other = server.customer(2);
    let clients: Vec<Client> = (0..20).map(|_| server.customer(1)).collect();
    world.sql("UPDATE backup_sessions SET seen_at = seen_at - 120000");
    // All but the second are used again.
    let idle = &clients[1];
    for client in clients.iter().filter(|client| !std::ptr::eq(*client, idle)) {
        client.get("/api/backups").is(200);
    }
    let newest = server.customer(1);
    idle.get("/api/backups").refusal(401);
    for client in [&clients[0], &clients[2], &clients[19], &newest, &other] {
        client.get("/api/backups").is(200);
    }
    assert_eq!(
        world.sql("SELECT COUNT(*) FROM backup_sessions WHERE customer_id = 1"),
        "20\n"
    );
    world.stop(server);
}

#[test]
fn the_cookie_is_for_this_site_alone_and_for_no_script() {
    let world = World::new([1]);
    let server = world.serve();
    let plain = server.client().post("/login", &credentials(1, PASSWORD));
    let cookie = plain.header("set-cookie").unwrap();
    assert!(
        cookie.starts_with("shophosting=") && !cookie.contains("Secure"),
        "{cookie}"
    );
    assert_eq!(plain.header("strict-transport-security"), None);
    world.stop(server);

    let server = world.serve_with(
        "serve",
        &[("SERVER__PUBLIC_URL", "https://backups.example")],
    );
    let answer = server.client().post("/login", &credentials(1, PASSWORD));
    let cookie = answer.header("set-cookie").unwrap();
    assert!(cookie.starts_with("__Host-shophosting="), "{cookie}");
    for attribute in ["; Path=/", "; HttpOnly", "; SameSite=Lax", "; Secure"] {
        assert!(cookie.contains(attribute), "{cookie}");
    }
    assert!(!cookie.contains("Domain"));
    assert!(answer.header("strict-transport-security").is_some());
    server
        .client()
        .with("Cookie", &answer.cookie())
        .get("/api/backups")
        .is(200);
    // One without the prefix, which a neighbour could have set, is none.
    let without = answer.cookie().replace("__Host-", "");
    server
        .client()
        .with("Cookie", &without)
        .get("/api/backups")
        .refusal(401);
    world.stop(server);
}

#[test]
fn a_request_costs_one_query_for_the_session_and_writes_once_a_minute() {
    let world = World::new([1]);
    let server = world.serve();
    let client = server.customer(1);
    let seen = || world.sql("SELECT seen_at FROM backup_sessions");
    let before = seen();
    for _ in 0..20 {
        client.get("/api/backups").is(200);
    }
    assert_eq!(seen(), before);
    world.sql("UPDATE backup_sessions SET seen_at = seen_at - 61000");
    let aged = seen();
    client.get("/api/backups").is(200);
    assert_ne!(seen(), aged);
    // A page that is open somewhere and looks for news is not somebody who is there.
    world.sql("UPDATE backup_sessions SET seen_at = seen_at - 61000");
    let aged = seen();
    client.with("X-Background", "1").get("/api/backups").is(200);
    client.get("/api/backups/events").is(204);
    assert_eq!(seen(), aged);

    let queries = world.queries_of(|| {
        for _ in 0..10 {
            // There is no such job: the session is all that is looked up.
            client.post("/backups/jobs/x/cancel", "").refusal(404);
        }
    });
    assert_eq!(queries, 10);
    world.stop(server);
}

#[test]
fn who_is_logged_in_is_led_past_the_login() {
    let world = World::new([1]);
    let server = world.serve();
    let browser = server.customer(1).browser();
    browser.get("/login").leads_to("/backups");
    browser.get("/").leads_to("/backups");
    let stranger = server.client().browser();
    stranger.get("/").leads_to("/login");
    stranger.get("/backups").leads_to("/login");
    let login = stranger.get("/login");
    assert!(login.is(200).text().contains("<form"), "{}", login.text());
    world.stop(server);
}
