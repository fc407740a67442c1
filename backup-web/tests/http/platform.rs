//! Who is let in where the platform logs customers in: by cookies that its real Flask made.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use serde_json::json;

use crate::client::Client;
use crate::flask::{self, KEY, Order, gives_password, logs_in};
use crate::world::{PASSWORD, Server, World, credentials};

use Told::{Expired, NoCustomer, SentThere};

const PLACE: &str = "https://shophosting.example/login";

/// The server of a platform that has this key, or these.
#[track_caller]
fn serve(world: &mut World, keys: &str, more: &[(&str, &str)]) -> Server {
    world.product.keep_secret("the platform's key", KEY);
    let file = world.product.bed.scratch().join("platform-secret-key");
    fs::write(&file, keys).unwrap();
    fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
    let mut settings = settings(file.to_str().unwrap());
    settings.extend(more);
    world.serve_with("serve", &settings)
}

fn settings(file: &str) -> Vec<(&str, &str)> {
    vec![
        ("SERVER__LOGIN", "platform"),
        ("SERVER__PLATFORM_SECRET_KEY_FILE", file),
        ("SERVER__PLATFORM_LOGIN_URL", PLACE),
    ]
}

fn with(server: &Server, cookie: &str) -> Client {
    server.client().with("Cookie", &format!("session={cookie}"))
}

/// What people see who are not let in.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Told {
    /// They are sent to the platform, which asks them who they are.
    SentThere,
    /// The platform may take them for logged in, and would send them back: a page.
    Expired,
    NoCustomer,
}

/// Nobody is let in: programs are told, browsers sent to the platform unless they have a session of it, and forms not.
#[track_caller]
fn assert_nobody(client: &Client, told: Told) {
    client.get("/api/backups").refusal(401);
    client.get("/api/backups/events").refusal(401);
    assert_eq!(client.get("/api/page/backups").is(401).json(), "LoggedOut");
    client
        .post("/backups/create", "backup_type=files")
        .refusal(401);
    client.post("/logout", "").refusal(401);
    for path in [
        "/",
        "/backups",
        "/login",
        "/login?problem=expired",
        "/nothing",
    ] {
        let page = client.browser().get(path);
        let sentence = match told {
            SentThere => {
                page.leads_to(PLACE);
                continue;
            }
            Expired => "Your sign-in at shophosting.example has expired; sign in there again.",
            NoCustomer => "signed in with at shophosting.example has no backups here",
        };
        let text = page.is(401).text();
        assert!(text.contains(sentence), "{text}");
        assert!(text.contains(&format!("href=\"{PLACE}\"")), "{text}");
        assert!(
            !text.contains("<script") && !text.contains("http-equiv"),
            "{text}"
        );
        assert_eq!(page.header("set-cookie"), None);
        assert_eq!(page.header("location"), None);
    }
    let form = client
        .browser()
        .post("/backups/create", "backup_type=files");
    assert!(
        form.is(401).text().contains("Please log in"),
        "{}",
        form.text()
    );
}

#[test]
fn a_session_of_the_platform_logs_its_customer_in_and_no_other() {
    let mut world = World::new([1, 2]);
    let others = world.back_up(2);
    let server = serve(&mut world, KEY, &[]);
    let large = json!({ "cart": "Grüße 🛒 ".repeat(200), "seen": { " d": "Tue, 01 Sep 2026 10:00:00 GMT" } });
    let alone = logs_in("1").with("places", json!([]));
    let [plain, permanent, large, short, as_number, second] = flask::cookies([
        logs_in("1"),
        logs_in("1").with("permanent", true),
        logs_in("1").keeping(large),
        alone.keeping(json!({ "_user_id": "1" })),
        // flask-login makes text of it.
        logs_in(1),
        logs_in("2"),
    ])
    .map(Option::unwrap);
    // Flask compresses what is shorter then.
    assert!(
        large.starts_with('.') && !short.starts_with('.'),
        "{large} {short}"
    );
    for cookie in [&plain, &permanent, &large, &short, &as_number] {
        let client = with(&server, cookie);
        let page = client.browser().get("/backups");
        let text = page.is(200).text();
        assert!(
            text.contains("Shop 1") && !text.contains("Shop 2"),
            "{text}"
        );
        // There is nothing here to log out of.
        assert!(text.contains(PLACE) && !text.contains("/logout"), "{text}");
        assert_eq!(page.header("set-cookie"), None);
        assert!(!client.get("/api/backups").is(200).text().contains(&others));
        client.get("/api/page/backups").is(200);
        client.browser().get("/login").leads_to("/backups");
    }
    let (one, two) = (with(&server, &plain), with(&server, &second));
    assert!(two.get("/api/backups").text().contains(&others));
    let restore = format!("/backups/{others}/restore");
    one.post(&restore, "confirmation=RESTORE&restore_type=files")
        .refusal(404);
    two.post(&restore, "confirmation=RESTORE&restore_type=files")
        .is(200);
    one.get("/api/backups/events").is(204);
    let mut events = two.events("/api/backups/events");
    assert_eq!(events.next().unwrap()["customer_id"], 2);
    drop(events);
    let job = two.get("/api/backups/status").json()["job"]["id"].to_string();
    one.post(&format!("/backups/jobs/{job}/cancel"), "")
        .refusal(404);
    for cookie in [plain, second] {
        world
            .product
            .keep_secret("a session of the platform", &cookie);
    }
    world.stop(server);
    // The platform has a new key, and for a while knows the old one, too.
    let new = "a-key-that-is-new-at-the-platform";
    let server = serve(&mut world, &format!("{new}\n{KEY}\n"), &[]);
    for order in [logs_in("1"), logs_in("1").with("key", new)] {
        with(&server, &order.cookie()).get("/api/backups").is(200);
    }
    world.stop(server);
}

#[test]
fn what_the_platform_did_not_sign_just_so_lets_nobody_in() {
    let mut world = World::new([1, 2]);
    let server = serve(&mut world, KEY, &[("SERVER__PLATFORM_SESSION_MAX", "1h")]);
    let nobody = |cookie: &str, told| assert_nobody(&with(&server, cookie), told);
    assert_nobody(&server.client(), SentThere);
    let [
        good,
        other,
        wrong_salt,
        wrong_key,
        expired,
        nearly,
        early,
        half,
        left,
        bomb,
        long,
    ] = flask::cookies([
        logs_in("1"),
        logs_in("2"),
        logs_in("1").with("salt", "cookie-sessions"),
        logs_in("1").with("key", "another key of another platform"),
        logs_in("1").with("seconds", -3700),
        logs_in("1").with("seconds", -3000),
        logs_in("1").with("seconds", 3600),
        gives_password("1"),
        logs_in("1").then("/logout"),
        logs_in("1").keeping(json!({ "x": "a".repeat(1_000_000) })),
        logs_in("1").keeping(json!({ "x": (0..5000).map(|n| n * n).collect::<Vec<u64>>() })),
    ])
    .map(Option::unwrap);
    with(&server, &good).get("/api/backups").is(200);
    with(&server, &nearly).get("/api/backups").is(200);
    assert!(
        bomb.len() < 4000 && long.len() > 10_000,
        "{} {}",
        bomb.len(),
        long.len()
    );
    // Logged in, and yet out: what Flask keeps in a session beside that says nothing.
    for cookie in [half, left] {
        nobody(&cookie, SentThere);
    }
    for cookie in [wrong_salt, wrong_key, expired, early, bomb, long] {
        nobody(&cookie, Expired);
    }
    // What is compressed begins with a dot.
    let parts = |cookie: &str| {
        let mut parts = cookie.rsplitn(3, '.').map(str::to_owned);
        [(); 3].map(|()| parts.next().unwrap())
    };
    let ([my_mark, my_time, mine], [his_mark, _, his]) = (parts(&good), parts(&other));
    for forged in [
        // His session under my signature, and the other way round.
        format!("{his}.{my_time}.{my_mark}"),
        format!("{mine}.{my_time}.{his_mark}"),
        format!("{mine}.{my_time}."),
        format!("{mine}.{my_time}"),
        mine.clone(),
        format!("{good}="),
        format!(".{good}"),
        format!("\"{good}\""),
        "A".repeat(10_000),
        String::new(),
        "..".into(),
    ] {
        nobody(&forged, Expired);
    }
    // Signed by the platform, and yet no customer's number.
    let ids = [
        json!("0"),
        json!("-1"),
        json!("+1"),
        json!("01"),
        json!(" 1"),
        json!("1\n"),
        json!("1\0"),
        json!("../1"),
        json!("1/../2"),
        json!("1.0"),
        json!("1e0"),
        json!("٧"),
        json!("admin-1"),
        json!("1' OR '1'='1"),
        json!("4294967297"),
        json!("9".repeat(500)),
        json!(1),
        json!(true),
        json!(["1"]),
        json!({ " t": ["1"] }),
        json!({}),
        // Of nobody.
        json!("77"),
    ];
    let saying = |id| logs_in("1").keeping(json!({ "_user_id": id }));
    for cookie in flask::cookies(ids.map(saying)) {
        nobody(&cookie.unwrap(), NoCustomer);
    }
    nobody(&saying(json!(null)).cookie(), SentThere);
    // A neighbour's site can plant a second cookie.
    let both = |first: &str, second: &str| {
        let pair = format!("session={first}; tz=Europe/Berlin; session={second}");
        server.client().with("Cookie", &pair)
    };
    both("planted", &good).get("/api/backups").is(200);
    both(&good, "planted").get("/api/backups").is(200);
    assert_nobody(&both(&good, &other), Expired);
    assert_nobody(&both(&other, &good), Expired);
    let log = world.stop(server);
    // The operator is told what to look at.
    assert!(
        log.contains("it is not signed with the platform's secret key"),
        "{log}"
    );
}

#[test]
fn nobody_walks_around_the_second_factor_with_a_password() {
    let mut world = World::new([1]);
    let before = world.serve();
    let earlier = before.log_in(1);
    let earlier = earlier.as_str();
    before
        .client()
        .with("Cookie", earlier)
        .get("/api/backups")
        .is(200);
    world.stop(before);

    let server = serve(&mut world, KEY, &[]);
    // That session is still in the table.
    assert_eq!(world.sql("SELECT COUNT(*) FROM backup_sessions"), "1\n");
    assert_nobody(&server.client().with("Cookie", earlier), SentThere);
    let client = server.client();
    let right = client.post("/login", &credentials(1, PASSWORD));
    let said = right.refusal(403);
    assert_eq!(right.header("set-cookie"), None);
    // Not even whether it is right, nor of whom.
    for other in [
        credentials(1, "wrong"),
        credentials(99, PASSWORD),
        String::new(),
        "x".repeat(20_000),
    ] {
        let answer = client.post("/login", &other);
        assert!([403, 413].contains(&answer.status), "{}", answer.status);
        assert!(answer.status == 413 || answer.refusal(403) == said);
    }
    let json = json!({ "email": "owner@shop-1.example", "password": PASSWORD });
    client.post_json("/login", &json.to_string()).refusal(403);
    let page = client.browser().post("/login", &credentials(1, PASSWORD));
    assert!(
        page.is(403).text().contains("hosting account"),
        "{}",
        page.text()
    );
    for method in ["PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "FROB"] {
        client.send(method, "/login", "", b"").refusal(403);
    }
    assert_eq!(world.sql("SELECT COUNT(*) FROM backup_sessions"), "1\n");
    // Nor by adding the one to the other.
    let foreign = logs_in("1")
        .with("key", "another key of another platform")
        .cookie();
    let both = client.with("Cookie", &format!("{earlier}; session={foreign}"));
    assert_nobody(&both, Expired);
    world.stop(server);
}

#[test]
fn a_session_of_the_platform_ends_here_when_it_ends_there() {
    let mut world = World::new([1, 2]);
    let server = serve(&mut world, KEY, &[]);
    let [one, two, left] =
        flask::cookies([logs_in("1"), logs_in("2"), logs_in("1").then("/logout")]);
    let (one, two, left) = (
        with(&server, &one.unwrap()),
        with(&server, &two.unwrap()),
        left.unwrap(),
    );
    one.get("/api/backups").is(200);
    // The platform gives the browser another cookie when somebody logs out, or takes it away.
    assert_nobody(&with(&server, &left), SentThere);
    assert_nobody(&server.client(), SentThere);
    // There is nothing here to log out of, and that is said.
    assert!(
        one.post("/logout", "")
            .refusal(403)
            .contains("hosting account")
    );
    one.browser().post("/logout", "").is(403);
    one.get("/api/backups").is(200);

    for status in ["suspended", "pending", "provisioning", "failed"] {
        world.sql(&format!(
            "UPDATE customers SET status = '{status}' WHERE id = 1"
        ));
        one.get("/api/backups").refusal(403);
        one.post("/backups/create", "backup_type=files")
            .refusal(403);
        one.get("/api/page/backups").is(401);
        // The platform would only send him back.
        for path in ["/backups", "/login", "/login?problem=expired"] {
            let page = one.browser().get(path);
            assert!(
                page.is(403).text().contains("not active"),
                "{}",
                page.text()
            );
        }
        two.get("/api/backups").is(200);
    }
    world.sql("UPDATE customers SET status = 'active' WHERE id = 1");
    one.get("/api/backups").is(200);
    world.sql("DELETE FROM customers WHERE id = 1");
    assert_nobody(&one, NoCustomer);
    two.get("/api/backups").is(200);
    assert_eq!(
        world.sql("SELECT COUNT(*) FROM customer_backup_jobs"),
        "0\n"
    );
    world.product.bed.mariadb_mut().stop().unwrap();
    two.get("/api/backups").refusal(503);
    assert!(
        two.browser()
            .get("/backups")
            .is(503)
            .text()
            .contains("try again")
    );
    server.client().browser().get("/backups").leads_to(PLACE);
    server.client().get("/healthz").is(200);
    world.stop(server);
}

#[test]
fn what_became_of_a_form_is_told_once_to_whoever_sent_it_and_costs_one_query() {
    let mut world = World::new([1, 2]);
    let url = ("SERVER__PUBLIC_URL", "https://backups.shophosting.example");
    let server = serve(&mut world, KEY, &[url]);
    let browser = |order: Order| with(&server, &order.cookie()).browser();
    let (one, two) = (browser(logs_in("1")), browser(logs_in("2")));
    // Another site, also one beside it that some customer has, can make a browser do nothing.
    for (name, value) in [
        ("Origin", "https://shop-2.shophosting.example"),
        ("Origin", "https://shophosting.example"),
        ("Sec-Fetch-Site", "same-site"),
        ("Sec-Fetch-Site", "cross-site"),
    ] {
        one.with(name, value)
            .post("/backups/create", "backup_type=files")
            .is(403);
    }
    let own = one.with("Origin", "https://backups.shophosting.example");
    let answer = own.post("/backups/create", "backup_type=files");
    answer.leads_to("/backups");
    let kept = answer.header("set-cookie").unwrap();
    for attribute in [
        "; Path=/",
        "; HttpOnly",
        "; SameSite=Lax",
        "; Secure",
        "; Max-Age=60",
    ] {
        assert!(kept.contains(attribute), "{kept}");
    }
    let message = answer.cookie();
    const TOLD: &str = "Your backup is queued";
    let page = one.with("Cookie", &message).get("/backups");
    assert!(page.is(200).text().contains(TOLD), "{}", page.text());
    assert_eq!(page.cookie(), "backup-message=");
    assert!(page.header("set-cookie").unwrap().contains("Max-Age=0"));
    assert!(!one.get("/backups").text().contains(TOLD));
    // Nobody can plant one, nor is it of use to another.
    let text = "eyJzdWNjZXNzIjp0cnVlLCJtZXNzYWdlIjoiQ2FsbCAwMTIzIiwidW5kbyI6bnVsbH0";
    for planted in [
        text.to_owned(),
        format!("{text}."),
        format!("{text}.{text}"),
        String::new(),
    ] {
        let page = one
            .with("Cookie", &format!("backup-message={planted}"))
            .get("/backups");
        assert!(!page.is(200).text().contains("Call 0123"));
    }
    let page = two.with("Cookie", &message).get("/backups");
    assert!(!page.is(200).text().contains(TOLD), "{}", page.text());

    let queries = world.queries_of(|| {
        for _ in 0..10 {
            // There is no such job: who asks is all that is looked up.
            own.post("/backups/jobs/x/cancel", "").leads_to("/backups");
        }
    });
    assert_eq!(queries, 10);
    assert_eq!(world.sql("SELECT COUNT(*) FROM backup_sessions"), "0\n");
    world.stop(server);
}

#[test]
fn a_server_without_a_key_that_can_be_used_says_so_and_does_not_start() {
    let mut world = World::new([1]);
    world.product.keep_secret("the platform's key", KEY);
    let file = world.product.bed.scratch().join("platform-secret-key");
    let shown = file.to_str().unwrap();
    let refusal = || {
        let mut command = world.product.command("serve");
        for (key, value) in settings(shown) {
            command.env(format!("BACKUP__{key}"), value);
        }
        world.product.run_command(command).refusal(2)
    };
    let mut said = vec![refusal()];
    for content in [
        "",
        " \n\n",
        "fifteen letters\n",
        &format!("{KEY}\nshort\n"),
        &KEY.repeat(3000),
    ] {
        fs::write(&file, content).unwrap();
        said.push(refusal());
    }
    fs::write(&file, b"0123456789abcdef\xff").unwrap();
    said.push(refusal());
    for error in said {
        assert!(
            error.contains("platform_secret_key_file") && error.contains(shown),
            "{error}"
        );
        assert!(!error.contains("fifteen"), "{error}");
    }
}
