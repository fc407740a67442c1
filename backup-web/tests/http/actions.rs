//! What customers do, and what nobody can make the server do.

use std::sync::Barrier;

use crate::client::{Answer, Client, assert_plain};
use crate::world::{PASSWORD, World, credentials};

fn statuses(mut answers: Vec<Answer>) -> Vec<u16> {
    answers.sort_by_key(|answer| answer.status);
    answers.iter().map(|answer| answer.status).collect()
}

#[test]
fn of_many_clicks_at_once_one_makes_a_job_and_the_others_are_told() {
    let world = World::new([1]);
    let server = world.serve();
    let client = server.customer(1);
    for round in 1..=5 {
        let gate = Barrier::new(4);
        let answers = std::thread::scope(|scope| {
            let clicks: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        gate.wait();
                        client.post("/backups/create", "backup_type=both")
                    })
                })
                .collect();
            clicks
                .into_iter()
                .map(|click| click.join().unwrap())
                .collect::<Vec<_>>()
        });
        for refused in answers.iter().filter(|answer| answer.status != 200) {
            refused.refusal(409);
        }
        assert_eq!(statuses(answers), [200, 409, 409, 409]);
        let status = client.get("/api/backups/status").json();
        assert_eq!(status["has_active_job"], true);
        assert_eq!(
            world.sql("SELECT COUNT(*) FROM customer_backup_jobs"),
            format!("{round}\n")
        );
        let id = &status["job"]["id"];
        client
            .post(&format!("/backups/jobs/{id}/cancel"), "")
            .is(200);
        client
            .post(&format!("/backups/jobs/{id}/cancel"), "")
            .refusal(409);
    }
    world.stop(server);
}

#[test]
fn a_form_that_is_sent_twice_is_told_once_on_the_next_page() {
    let world = World::new([1]);
    let server = world.serve();
    let browser = server.customer(1).browser();
    browser
        .post("/backups/create", "backup_type=db&note=")
        .leads_to("/backups");
    // What a script of the page reads meanwhile does not take the message.
    server.customer(1).get("/api/page/backups").is(200);
    let queued = "Your backup is queued";
    assert!(browser.get("/backups").is(200).text().contains(queued));
    assert!(!browser.get("/backups").is(200).text().contains(queued));
    browser
        .post("/backups/create", "backup_type=db&note=")
        .leads_to("/backups");
    let refused = "A backup is running already";
    assert!(browser.get("/backups").is(200).text().contains(refused));
    assert_eq!(
        world.sql("SELECT COUNT(*) FROM customer_backup_jobs"),
        "1\n"
    );
    world.stop(server);
}

#[test]
fn a_backup_is_restored_only_as_it_is_and_only_when_it_is_meant() {
    let world = World::new([1]);
    let snapshot = world.back_up(1);
    let server = world.serve();
    let client = server.customer(1);
    let restore = format!("/backups/{snapshot}/restore");
    for form in [
        "restore_type=files",
        "confirmation=&restore_type=files",
        "confirmation=restore&restore_type=files",
        "confirmation=RESTORE+&restore_type=files",
        "confirmation=RESTORE",
        "confirmation=RESTORE&restore_type=everything",
        "confirmation=RESTORE&restore_type=db",
        "confirmation=RESTORE&restore_type=both",
        "confirmation=RESTORE&restore_type=files&online=maybe",
        "confirmation=RESTORE&confirmation=RESTORE&restore_type=files",
        "confirmation=RESTORE&restore_type=files&snapshot=other",
    ] {
        client.post(&restore, form).refusal(400);
    }
    client
        .post_json(&restore, r#" ["RESTORE","files",false]"#)
        .refusal(400);
    for form in ["", "confirmation=delete", "confirmation=RESTORE"] {
        client
            .post(&format!("/backups/{snapshot}/delete"), form)
            .refusal(400);
    }
    assert_eq!(
        world.sql("SELECT COUNT(*) FROM customer_backup_jobs WHERE job_type = 'restore'"),
        "0\n"
    );
    let browser = client.browser();
    browser
        .post(&restore, "confirmation=no&restore_type=files")
        .leads_to(&format!("/backups/{snapshot}"));
    let json = r#"{"confirmation":"RESTORE","restore_type":"files","online":true}"#;
    let queued = client.post_json(&restore, json);
    assert!(queued.is(200).json()["job_id"].is_u64());
    let job = client.get("/api/backups/status").json()["job"].clone();
    assert_eq!(
        (&job["job_type"], &job["snapshot_id"], &job["customer_id"]),
        (&"restore".into(), &snapshot.as_str().into(), &1.into())
    );
    client
        .post(
            &format!("/backups/{snapshot}/delete"),
            "confirmation=DELETE",
        )
        .refusal(409);
    client
        .post(&format!("/backups/jobs/{}/cancel", job["id"]), "")
        .is(200);
    client
        .post(
            &format!("/backups/{snapshot}/delete"),
            "confirmation=DELETE",
        )
        .is(200);
    client
        .post(&restore, "confirmation=RESTORE&restore_type=files")
        .refusal(404);
    assert_eq!(
        client.get("/api/backups").json()["manual"],
        serde_json::json!([])
    );
    world.stop(server);
}

#[test]
fn a_failed_job_is_shown_until_it_is_dismissed() {
    let world = World::new([1]);
    let server = world.serve();
    let client = server.customer(1);
    client.post("/backups/create", "backup_type=db").is(200);
    let id = client.get("/api/backups/status").json()["job"]["id"].to_string();
    let dismiss = format!("/backups/jobs/{id}/dismiss");
    client.post(&dismiss, "").refusal(409);
    client
        .post(&format!("/backups/jobs/{id}/cancel"), "")
        .is(200);
    let failed = client.get("/api/backups/status").json();
    assert_eq!(
        (&failed["has_active_job"], &failed["last_failed"]["id"]),
        (&false.into(), &id.parse::<u64>().unwrap().into())
    );
    assert_plain(failed["last_failed"]["error_message"].as_str().unwrap());
    for _ in 0..2 {
        client.post(&dismiss, "").is(200);
        let status = client.get("/api/backups/status").json();
        assert_eq!(
            status,
            serde_json::json!({ "has_active_job": false, "last_failed": null })
        );
    }
    world.stop(server);
}

/// A restore of customer 1 that is stuck, and a job that somebody made since when that was possible.
fn get_stuck(world: &World) {
    world.sql(
        "INSERT INTO customer_backup_jobs (customer_id, job_type, backup_type, status, failure, error_message, completed_at)
             VALUES (1, 'restore', 'both', 'failed', 'stuck', 'Something went wrong.', NOW());
         INSERT INTO customer_backup_jobs (customer_id, job_type, backup_type, status, completed_at) VALUES (1, 'backup', 'db', 'completed', NOW())",
    );
}

#[test]
fn while_a_restore_is_stuck_nothing_else_can_be_started_and_the_page_says_so() {
    let world = World::new([1, 2]);
    let snapshot = world.back_up(1);
    get_stuck(&world);
    let server = world.serve();
    let client = server.customer(1);
    let restore = format!("/backups/{snapshot}/restore");
    let wishes = [
        ("/backups/create", "backup_type=both"),
        (&restore, "confirmation=RESTORE&restore_type=files"),
    ];
    let looking = "Our team is still looking after your last restore.";
    for (address, form) in wishes {
        let sentence = client.post(address, form).refusal(409);
        assert!(sentence.starts_with(looking), "{sentence}");
    }
    let page = client.browser().get("/backups");
    for words in ["The restore needs our help", looking] {
        assert!(page.is(200).text().contains(words), "{words}");
    }
    let status = client.get("/api/backups/status").json();
    assert_eq!(status["last_failed"]["failure"], "stuck");
    let id = &status["last_failed"]["id"];
    client
        .post(&format!("/backups/jobs/{id}/dismiss"), "")
        .refusal(409);
    // It is nobody else's, and what he has he can delete.
    let other = server.customer(2);
    other.post("/backups/create", "backup_type=files").is(200);
    let deletion = format!("/backups/{snapshot}/delete");
    client.post(&deletion, "confirmation=DELETE").is(200);

    world.sql("UPDATE customer_backup_jobs SET failure = 'rolled_back' WHERE failure = 'stuck'");
    client.post("/backups/create", "backup_type=db").is(200);
    world.stop(server);
}

#[test]
fn nothing_that_is_sent_is_believed_or_breaks_anything() {
    let world = World::new([1]);
    let server = world.serve();
    let client = server.customer(1);
    let long = "a".repeat(10_000);
    let ids = [
        "x",
        "0",
        "-1",
        "1e3",
        "99999999999999999999",
        "..%2f..%2fetc%2fpasswd",
        "%00",
        "%ff%fe",
        "%0d%0aSet-Cookie:%20a=b",
        "1;DROP%20TABLE%20customers",
        "'%20OR%20'1'='1",
        "%3Cscript%3E",
        "%F0%9F%92%A9",
        &long,
    ];
    for id in ids {
        for (route, form) in [
            (
                format!("/backups/{id}/restore"),
                "confirmation=RESTORE&restore_type=files",
            ),
            (format!("/backups/{id}/delete"), "confirmation=DELETE"),
            (format!("/backups/jobs/{id}/cancel"), ""),
            (format!("/backups/jobs/{id}/dismiss"), ""),
        ] {
            let answer = client.post(&route, form);
            assert!(
                [400, 404].contains(&answer.status),
                "{id}: {}",
                answer.status
            );
            answer.refusal(answer.status);
            assert!(
                id.len() < 4 || !answer.text().contains(id),
                "{}",
                answer.text()
            );
        }
        let page = client.browser().get(&format!("/backups/{id}"));
        assert!(
            (200..500).contains(&page.status) && !page.text().contains("<script>alert"),
            "{id}: {}",
            page.status
        );
    }
    for path in [
        "/../../etc/passwd",
        "//backups",
        "/backups/../../etc/passwd",
        "/pkg/../../Cargo.toml",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/pkg/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    ] {
        let answer = client.get(path);
        assert!(
            (400..500).contains(&answer.status),
            "{path}: {}",
            answer.status
        );
        assert!(!answer.text().contains("root:"));
    }
    // What programs ask is answered for programs.
    for path in ["/api/none", "/api/", "/api/backups/none"] {
        client.browser().get(path).refusal(404);
    }
    let bomb = "[".repeat(6000);
    let deep = format!("{{\"backup_type\":{}", "{\"a\":".repeat(1000));
    for json in [
        "",
        "null",
        "[]",
        "1",
        "\"files\"",
        "{",
        "{}",
        "{\"backup_type\":1}",
        "{\"backup_type\":[\"db\"]}",
        "{\"backup_type\":{\"db\":null}}",
        "{\"backup_type\":\"all\"}",
        "{\"backup_type\":\"db\",\"backup_type\":\"files\"}",
        "{\"backup_type\":\"db\",\"customer_id\":2}",
        "{\"backup_type\":\"db\",\"note\":{}}",
        "\u{0}",
        &bomb,
        &deep,
    ] {
        client.post_json("/backups/create", json).refusal(400);
    }
    for json in [
        "{\"confirmation\":\"RESTORE\",\"restore_type\":{\"files\":null}}",
        "{\"confirmation\":\"RESTORE\",\"restore_type\":\"files\",\"online\":{\"true\":null}}",
    ] {
        let path = format!("/backups/{}/restore", "ab".repeat(32));
        client.post_json(&path, json).refusal(400);
    }
    for form in [
        "",
        "backup_type=",
        "backup_type=all",
        "backup_type=db&backup_type=files",
        "backup_type=db&customer=2",
        "backup_type[]=db",
        "%ff=%ff",
        "backup_type=db%00",
        "backup_type=db&note=a%00b",
        "backup_type=db&note=a%0ab",
        "backup_type=db&note=a%1b%5b31m",
    ] {
        client.post("/backups/create", form).refusal(400);
    }
    client
        .post(
            "/backups/create",
            &format!("backup_type=db&note={}", "x".repeat(501)),
        )
        .refusal(400);
    client
        .send("POST", "/backups/create", "text/xml", b"<a/>")
        .refusal(415);
    client
        .send(
            "POST",
            "/backups/create",
            "multipart/form-data; boundary=x",
            b"--x--",
        )
        .refusal(415);
    for bytes in [9_000, 70_000, 10_000_000] {
        let body = vec![b'a'; bytes];
        for kind in ["application/json", "application/x-www-form-urlencoded"] {
            client
                .send("POST", "/backups/create", kind, &body)
                .refusal(413);
            server
                .client()
                .send("POST", "/login", kind, &body)
                .refusal(413);
        }
    }
    assert_eq!(
        world.sql("SELECT COUNT(*) FROM customer_backup_jobs"),
        "0\n"
    );
    let log = world.stop(server);
    assert!(!log.contains("ERROR"), "{log}");
}

#[test]
fn a_body_that_breaks_off_or_never_ends_is_refused_as_what_it_is() {
    let world = World::new([1]);
    let server = world.serve();
    let customer = server.customer(1);
    let form = "application/x-www-form-urlencoded";
    let chunked = customer.with("Transfer-Encoding", "chunked");
    let send = |client: &Client, body: &[u8]| client.send("POST", "/backups/create", form, body);
    send(&chunked, b"zz\r\nbackup_type=db\r\n0\r\n\r\n").refusal(400);
    send(&chunked, b"ffffffffffffffffff\r\nbackup_type=db").refusal(400);
    let large = format!("4000\r\n{}\r\n0\r\n\r\n", "a".repeat(0x4000));
    send(&chunked, large.as_bytes()).refusal(413);
    let stalled = customer.with("Content-Length", "100");
    send(&stalled, b"backup_type=db").refusal(408);
    assert_eq!(
        world.sql("SELECT COUNT(*) FROM customer_backup_jobs"),
        "0\n"
    );
    send(&chunked, b"e\r\nbackup_type=db\r\n0\r\n\r\n").is(200);
    world.stop(server);
}

#[test]
fn another_site_can_make_a_browser_do_nothing() {
    let world = World::new([1]);
    let settings = [("SERVER__PUBLIC_URL", "https://backups.example")];
    let server = world.serve_with("serve", &settings);
    let client = server.customer(1);
    let snapshot = "ab".repeat(32);
    for path in [
        "/backups/create",
        "/login",
        "/logout",
        "/backups/jobs/1/cancel",
        &format!("/backups/{snapshot}/restore"),
    ] {
        for foreign in [
            client.with("Origin", "https://evil.example"),
            client.with("Origin", "null"),
            client.with("Origin", "http://backups.example"),
            client.with("Origin", "https://backups.example.evil.example"),
            client.with("Sec-Fetch-Site", "cross-site"),
            // A name of his own that leads here.
            client
                .with("Host", "evil.example")
                .with("Origin", "https://evil.example"),
            client
                .with("Host", "evil.example")
                .with("Origin", "http://evil.example")
                .with("Sec-Fetch-Site", "same-origin"),
            client
                .with("Sec-Fetch-Site", "same-site")
                .with("Origin", "https://shop.example"),
        ] {
            foreign.post(path, "backup_type=db").refusal(403);
            foreign.browser().post(path, "backup_type=db").is(403);
        }
    }
    assert_eq!(
        world.sql("SELECT COUNT(*) FROM customer_backup_jobs"),
        "0\n"
    );
    for own in [
        client.with("Origin", "https://backups.example"),
        client
            .with("Origin", "https://backups.example")
            .with("Sec-Fetch-Site", "same-origin"),
        client.with("Sec-Fetch-Site", "none"),
        // A script says nothing of the kind.
        client.clone(),
    ] {
        own.post("/backups/create", "backup_type=db").is(200);
        let id = own.get("/api/backups/status").json()["job"]["id"].to_string();
        own.post(&format!("/backups/jobs/{id}/cancel"), "").is(200);
    }
    let replayed = server.client().with("Origin", "https://evil.example");
    replayed
        .post("/login", &credentials(1, PASSWORD))
        .refusal(403);
    world.stop(server);
}
