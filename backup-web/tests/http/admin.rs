//! The operators' page: who gets to it, what it shows, and that it opens nothing else.

use std::collections::BTreeSet;
use std::fs::Permissions;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Stdio;

use crate::client::{Answer, Client};
use crate::world::{PASSWORD, Server, World, credentials};

const SECRET: &str = "operators horse";
const FORM: &str = "name=ops&password=operators+horse";

/// The file of the operators, with one in it, made as an operator makes it.
fn admins_file(world: &World) -> PathBuf {
    let mut command = world.product.command("operator-line ops");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(format!("{SECRET}\n").as_bytes()).unwrap();
    drop(input);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    let file = world.product.bed.scratch().join("admins");
    std::fs::write(&file, output.stdout).unwrap();
    std::fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
    file
}

fn serve(world: &World) -> Server {
    let file = admins_file(world);
    world.serve_with("serve", &[("SERVER__ADMINS_FILE", file.to_str().unwrap())])
}

fn operator(server: &Server) -> Client {
    let answer = server.client().browser().post("/admin/login", FORM);
    answer.leads_to("/admin");
    server.client().with("Cookie", &answer.cookie())
}

const ROUTES: [&str; 3] = ["/admin", "/admin/login", "/admin/logout"];

#[test]
fn nobody_but_an_operator_sees_the_page_and_he_sees_nothing_else() {
    let world = World::new([1]);
    let snapshot = world.back_up(1);
    let server = serve(&world);
    let operator = operator(&server);
    let customer = server.customer(1);
    let stranger = server.client();
    let foreign = server.client().with(
        "Cookie",
        &format!("shophosting-operator={}", "ab".repeat(32)),
    );
    let page = operator.browser().get("/admin").is(200).text();
    // What was backed up is his files alone.
    let is_judged = page.contains("1 of 1 customer needs a look")
        && page.contains("There is no good backup of his database");
    assert!(page.contains("shop-1") && is_judged, "{page}");

    for route in ROUTES {
        for method in [
            "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "FROB",
        ] {
            let is_login = route == "/admin/login" && ["GET", "HEAD", "POST"].contains(&method);
            for client in [&stranger, &foreign] {
                let answer = client.send(method, route, "", b"");
                let page = client.browser().send(method, route, "", b"");
                assert!(!page.text().contains("shop-1"), "{method} {route}");
                if !is_login {
                    let is_refused = answer.status == 401 || answer.status == 405;
                    assert!(is_refused, "{method} {route}: {}", answer.status);
                    let is_sent_on = page.header("location") == Some("/admin/login");
                    assert!(is_sent_on || page.status == 405, "{method} {route}");
                }
            }
            // To a customer it is as what does not exist, to the letter.
            for client in [customer.clone(), customer.browser()] {
                let answer = client.send(method, route, "", b"");
                let missing = client.send(method, "/nothing", "", b"");
                assert_eq!(answer.status, 404, "{method} {route}");
                assert_eq!(plain(&answer), plain(&missing), "{method} {route}");
            }
        }
    }

    // His cookie opens none of the customers' routes.
    let document = customer.get("/api/openapi.json").json();
    let described = document["paths"].as_object().unwrap().keys().cloned();
    let others = [
        "/backups",
        "/activity",
        "/api/page/backups",
        "/api/openapi.json",
    ];
    let routes: BTreeSet<String> = described.chain(others.map(Into::into)).collect();
    assert!(routes.len() > 10, "{routes:?}");
    for route in routes.iter().filter(|route| *route != "/login") {
        let route = route.replace("{id}", &snapshot);
        for method in ["GET", "POST"] {
            let answer = operator.send(method, &route, "", b"");
            assert_eq!(answer.status, 401, "{method} {route}: {}", answer.text());
        }
    }
    world.stop(server);
}

/// Without what is another thing each time.
fn plain(answer: &Answer) -> (u16, String) {
    let mut text = answer.text();
    for mark in ["nonce=\"", "\"request_id\":\""] {
        while let Some(at) = text.find(mark) {
            let end = text[at + mark.len()..].find('"').unwrap() + at + mark.len() + 1;
            text.replace_range(at..end, "");
        }
    }
    (answer.status, text)
}

#[test]
fn a_session_of_an_operator_ends_with_his_logout_his_line_and_the_server() {
    let world = World::new([1]);
    let server = serve(&world);
    let first = operator(&server);
    let second = operator(&server);
    first.browser().get("/admin").is(200);
    let out = first.browser().post("/admin/logout", "");
    out.leads_to("/admin/login");
    assert!(out.header("set-cookie").unwrap().contains("Max-Age=0"));
    first.browser().get("/admin").leads_to("/admin/login");
    second.browser().get("/admin/login").leads_to("/admin");
    // Another line of his, of the same password.
    admins_file(&world);
    second.browser().get("/admin").leads_to("/admin/login");
    let third = operator(&server);
    third.browser().get("/admin").is(200);
    let rows = world.sql("SELECT who, name, action, customer_id FROM backup_audit WHERE who = 'operator' AND action LIKE 'log%' ORDER BY id");
    let line = |action: &str| format!("operator\tops\t{action}\tNULL\n");
    assert_eq!(
        rows,
        [line("login"), line("login"), line("logout"), line("login")].concat()
    );
    world.stop(server);

    // Others can read it: the server says so and does not start.
    let file = admins_file(&world);
    std::fs::set_permissions(&file, Permissions::from_mode(0o644)).unwrap();
    let mut command = world.product.command("serve");
    command
        .env("BACKUP__SERVER__LISTEN", "127.0.0.1:0")
        .env("BACKUP__SERVER__ADMINS_FILE", &file);
    let outcome = world.product.run_command(command);
    assert_eq!(outcome.code, Some(2), "{}", outcome.stderr);
    assert!(
        outcome.stderr.contains("can be read or changed by others"),
        "{}",
        outcome.stderr
    );
}

#[test]
fn an_operators_password_cannot_be_guessed_and_no_customers_counts() {
    let world = World::new([1]);
    let server = serve(&world);
    let client = server.client();
    let asks = |form: &str| client.post("/admin/login", form);
    let wrong = asks("name=ops&password=wrong").refusal(401);
    assert_eq!(asks("name=nobody&password=wrong").refusal(401), wrong);
    let email = credentials(1, PASSWORD).replace("email=", "name=");
    assert_eq!(asks(&email).refusal(401), wrong);
    asks("name=ops").refusal(400);
    asks(&format!("{FORM}&more=1")).refusal(400);
    // Nor is he a customer.
    client
        .post("/login", "email=ops&password=operators+horse")
        .refusal(401);
    let evil = client
        .with("Origin", "https://evil.example")
        .with("Sec-Fetch-Site", "cross-site");
    evil.post("/admin/login", FORM).refusal(403);
    for _ in 0..9 {
        asks("name=ops&password=wrong").refusal(401);
    }
    let slow = asks(FORM);
    slow.refusal(429);
    assert!(slow.header("retry-after").is_some());
    let slow = client.browser().post("/admin/login", FORM);
    slow.leads_to("/admin/login?problem=slow");
    let page = client
        .browser()
        .get("/admin/login?problem=slow")
        .is(200)
        .text();
    assert!(page.contains("Too many tries"), "{page}");
    // From elsewhere he still gets in.
    let elsewhere = client.with("X-Forwarded-For", "203.0.113.7");
    let answer = elsewhere.browser().post("/admin/login", FORM);
    let cookie = answer.leads_to("/admin").header("set-cookie").unwrap();
    for part in ["HttpOnly", "SameSite=Strict", "Path=/"] {
        assert!(cookie.contains(part), "{cookie}");
    }
    // And back here in a browser in which he has logged in before: who guesses does not keep him out, nor does he guess more with what it holds.
    let [_, mark] = &answer.cookies()[..] else {
        panic!("{:?}", answer.cookies())
    };
    let known = client.with("Cookie", mark);
    known.get("/admin").refusal(401);
    let forged = client.with("Cookie", &format!("{mark}00"));
    forged.post("/admin/login", FORM).refusal(429);
    known
        .browser()
        .post("/admin/login", FORM)
        .leads_to("/admin");
    known
        .post("/admin/login", "name=nobody&password=wrong")
        .refusal(401);
    for _ in 0..10 {
        known
            .post("/admin/login", "name=ops&password=wrong")
            .refusal(401);
    }
    known.post("/admin/login", FORM).refusal(429);
    let log = world.stop(server);
    assert!(!log.contains(SECRET), "{log}");
}

#[test]
fn the_page_says_what_is_wrong_finds_customers_and_runs_no_script() {
    let world = World::new([1, 2]);
    world.back_up(1);
    world.product.run("backup 1 --type db").done();
    world.sql("UPDATE customers SET domain = 'a<script>alert(1)</script>.example' WHERE id = 2");
    let server = serve(&world);
    let browser = operator(&server).browser();
    let page = browser.get("/admin");
    let policy = page.header("content-security-policy").unwrap();
    assert!(
        policy.contains("default-src 'none'") && !policy.contains("script-src"),
        "{policy}"
    );
    let text = page.is(200).text();
    assert!(!text.contains("<script"), "{text}");
    for words in [
        "1 of 2 customers needs a look",
        "There is no good backup",
        "a&lt;script&gt;alert(1)&lt;/script&gt;.example",
        "Customer 1: An operator started a backup of the files",
        "operator root",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
    assert!(
        text.find("Needs a look") < text.find("id=\"good-title\""),
        "{text}"
    );
    let found = browser.get("/admin?q=Shop-1").is(200).text();
    assert!(
        found.contains("Customer 1 on") && !found.contains("Customer 2 on"),
        "{found}"
    );
    let found = browser.get("/admin?q=ALERT").is(200).text();
    assert!(
        !found.contains("Customer 1 on") && found.contains("Customer 2 on"),
        "{found}"
    );
    let none = browser.get("/admin?q=%22%3E%3Cscript%3E").is(200).text();
    assert!(
        none.contains("No customer matches that.") && !none.contains("<script"),
        "{none}"
    );
    // It is read only.
    for path in ["/admin", "/admin?q=1"] {
        assert_eq!(browser.post(path, "").status, 405);
    }
    world.stop(server);
}

#[test]
fn without_a_file_of_operators_there_is_no_such_page() {
    let world = World::new([1]);
    let server = world.serve();
    for route in ROUTES {
        server.client().browser().get(route).leads_to("/login");
        server.customer(1).get(route).refusal(404);
        server.client().post(route, FORM).refusal(401);
    }
    world.stop(server);
}
