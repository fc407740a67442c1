//! Who is let in.

use xtask::product::wait_until;

use crate::client::{Answer, Client};
use crate::world::{PASSWORD, World, credentials, email};

/// All of `correct horse`, made by werkzeug 3.1.8, the last by `customer set-password`.
const HASHES: [&str; 5] = [
    "scrypt:32768:8:1$b2veI9bMDf7k5rQx$9f9b0c2d684949a5c810d674de713048ded5d1a1bdfa7e754b10f7272f4d01cad203c0f19984430e4c1718b7787fa3cbd90288fd9f888e5ce8e2e2a1a063bb66",
    "pbkdf2:sha256:50000$f0Bozf6XnT6H8hVk$7262d41699cffd078c01227c401b9a0a9519f34b3b1972e24ba57f76febc66f3",
    "pbkdf2:sha1:50000$1kxcexwXGpmN5C7C$947ce64966020f7b2319be83a3c9d260c9572183",
    "pbkdf2:sha512:50000$a4UHZ6N2ELM0u83J$52cc55a80f9fef8554ec3927e330d95538d55d669e0c038db628215c00ac9bc48556ae0760e9435478dc1757ae6f05e7232ed3c8c54174baecfc90e1377ad7c8",
    "$argon2id$v=19$m=19456,t=2,p=1$yWI8T6db9esb3LMdKhWtbA$BMcm6JpAFOFnmsGNNUKEaJa3ethzL/nVmF+uJI+ITDc",
];

fn log_in(client: &Client, customer: u32, password: &str) -> Answer {
    client.post("/login", &credentials(customer, password))
}

/// Guess until none is let through for so many seconds: up to then a try may come back at any moment. How many were refused, and how the last one
/// was stopped.
fn guess_until_stopped(seconds: u32, mut guess: impl FnMut(u32) -> Answer) -> (u32, Answer) {
    let mut refused = 0;
    for number in 0.. {
        let answer = guess(number);
        if answer.status == 429 {
            let wait: u32 = answer.header("retry-after").unwrap().parse().unwrap();
            if wait >= seconds {
                return (refused, answer);
            }
        } else {
            answer.refusal(401);
            refused += 1;
            assert!(refused < 400, "it is never stopped");
        }
    }
    unreachable!("there are numbers enough")
}

#[test]
fn every_kind_of_hash_that_platforms_keep_logs_its_customer_in() {
    let world = World::new(1..=5);
    for (customer, hash) in (1..).zip(HASHES) {
        world.sql(&format!(
            "UPDATE customers SET password_hash = '{hash}' WHERE id = {customer}"
        ));
    }
    let server = world.serve();
    for customer in 1..=5 {
        log_in(&server.client(), customer, "correct horsf").refusal(401);
        let answer = log_in(&server.client(), customer, PASSWORD);
        answer.is(200);
        assert_eq!(answer.json()["success"], true);
        let page = server
            .client()
            .browser()
            .with("Cookie", &answer.cookie())
            .get("/backups");
        assert!(page.is(200).text().contains(&format!("Shop {customer}")));
    }
    // As JSON, and with the address as people spell it.
    let json = serde_json::json!({ "email": " OWNER@Shop-1.example ", "password": PASSWORD });
    server
        .client()
        .post_json("/login", &json.to_string())
        .is(200);
    world.stop(server);
}

#[test]
fn a_stranger_learns_nothing_of_who_is_a_customer() {
    let world = World::new([1, 2]);
    world.sql("UPDATE customers SET status = 'suspended' WHERE id = 2; INSERT INTO customers (id, email, password_hash, company_name, domain, platform, status, server_id) VALUES (3, 'empty@shop.example', '', 'E', 'e', 'magento', 'active', 1)");
    let server = world.serve();
    let client = server.client();
    let wrong = log_in(&client, 1, "wrong");
    for other in [
        log_in(&client, 99, PASSWORD),
        log_in(&client, 2, "wrong"),
        client.post("/login", "email=empty@shop.example&password="),
        client.post("/login", "email=&password="),
        client.post("/login", "email=%00&password=%00"),
        // What the table takes for the same letter is another address.
        client.post(
            "/login",
            &credentials(1, PASSWORD).replace("owner", "%C3%B6wner"),
        ),
        client.post(
            "/login",
            &format!("email={}&password={}", "' OR 1=1 --", PASSWORD),
        ),
        client.post(
            "/login",
            &format!("email={}&password={}", email(1), "x".repeat(5000)),
        ),
    ] {
        assert_eq!(other.refusal(401), wrong.refusal(401));
        assert_eq!(other.header("set-cookie"), None);
    }
    // Who knows the password may know that it is of no use now.
    log_in(&client, 2, PASSWORD).refusal(403);
    let browser = client.browser();
    log_in(&browser, 1, "wrong").leads_to("/login?problem=wrong");
    log_in(&browser, 2, PASSWORD).leads_to("/login?problem=inactive");
    for status in ["pending", "provisioning", "failed"] {
        world.sql(&format!(
            "UPDATE customers SET status = '{status}' WHERE id = 2"
        ));
        log_in(&client, 2, PASSWORD).refusal(403);
    }
    for form in [
        "",
        "email=a",
        "email=a&password=b&email=c",
        "email=a&password=b&next=//evil",
    ] {
        client.post("/login", form).refusal(400);
    }
    world.stop(server);
}

#[test]
fn who_typed_a_wrong_password_need_not_type_the_address_again() {
    let world = World::new([1]);
    let server = world.serve();
    let browser = server.client().browser();
    let page_after = |email: &str| {
        let refused = browser.post("/login", &format!("email={email}&password=wrong"));
        let page = refused.leads_to("/login?problem=wrong");
        let kept = page.header("set-cookie").map(|_| page.cookie());
        kept.map(|kept| browser.with("Cookie", &kept).get("/login?problem=wrong"))
    };
    let page = page_after("owner@shop-1.example").expect("it is kept");
    assert!(page.text().contains("value=\"owner@shop-1.example\""));
    // Told once: the cookie is taken away with the page.
    assert_eq!(page.cookie(), "typed-email=");
    assert!(page.header("set-cookie").unwrap().contains("Max-Age=0"));

    let page = page_after("\'><script>alert(1)</script>").expect("it is kept");
    assert!(!page.text().contains("<script>alert"), "{}", page.text());
    for not_kept in ["a%0D%0ASet-Cookie:x", "a;b", "", &"x".repeat(300)] {
        let page = page_after(not_kept);
        assert!(
            page.is_none_or(|page| !page.text().contains(" value=")),
            "{not_kept}"
        );
    }
    // A program is told; there is no page to show it on.
    let answer = server.client().post("/login", "email=a@b&password=wrong");
    assert_eq!(answer.header("set-cookie"), None);
    let log = world.stop(server);
    assert!(!log.contains("owner@shop-1.example"), "{log}");
}

#[test]
fn who_guesses_a_password_is_stopped_and_its_owner_is_not() {
    let world = World::new([1, 2]);
    let server = world.serve();
    let from = |address: &str| server.client().with("X-Forwarded-For", address);
    let (stranger, owner) = (from("198.51.100.1"), from("203.0.113.1"));
    for _ in 0..5 {
        log_in(&stranger, 1, "wrong").refusal(401);
    }
    log_in(&stranger, 1, PASSWORD).is(200);
    let (more, limited) = guess_until_stopped(30, |_| log_in(&stranger, 1, "wrong"));
    let refused = 5 + more;
    assert!(refused <= 14, "{refused}");
    let wait: u32 = limited.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=60).contains(&wait), "{wait}");
    limited.refusal(429);
    log_in(&stranger, 1, PASSWORD).refusal(429);
    log_in(&stranger.browser(), 1, PASSWORD).leads_to("/login?problem=slow");
    let spelt = credentials(1, PASSWORD).replace("owner", "OWNER");
    stranger.post("/login", &spelt).refusal(429);
    // He may be in the same house, and the owner elsewhere.
    log_in(&stranger, 2, PASSWORD).is(200);
    log_in(&owner, 1, PASSWORD).is(200);
    // What was turned away unread is written down nowhere.
    let written = || world.sql("SELECT COUNT(*) FROM backup_audit WHERE action = 'login_refused'");
    wait_until("all that was refused is written down", || {
        written() == format!("{refused}\n")
    });
    world.stop(server);
    assert_eq!(written(), format!("{refused}\n"));
}

#[test]
fn guessing_a_password_from_many_addresses_is_stopped_and_only_that_account_is() {
    let world = World::new([1, 2]);
    let server = world.serve();
    let from = |n: u32| {
        let address = format!("203.0.{}.{}", 113 + n / 250, n % 250);
        server.client().with("X-Forwarded-For", &address)
    };
    let (tried, _) = guess_until_stopped(5, |number| log_in(&from(number), 1, "wrong"));
    // Fewer addresses than that keep nobody out.
    assert!(tried >= 200, "{tried}");
    log_in(&from(30_000), 1, PASSWORD).refusal(429);
    log_in(&from(30_001), 2, PASSWORD).is(200);
    world.stop(server);
}

#[test]
fn guessing_addresses_is_stopped_and_only_from_that_place() {
    let world = World::new([1]);
    let server = world.serve();
    let from = |address: &str| server.client().with("X-Forwarded-For", address);
    let (tried, _) = guess_until_stopped(5, |number| {
        log_in(&from("198.51.100.1"), 1000 + number, "wrong")
    });
    assert!((20..60).contains(&tried), "{tried}");
    // Whatever he says of himself, the proxy says last.
    log_in(&from("203.0.113.1, 198.51.100.1"), 1, PASSWORD).refusal(429);
    log_in(&from("198.51.100.2"), 1, PASSWORD).is(200);
    world.stop(server);
}

#[test]
fn many_who_log_in_rightly_are_not_stopped() {
    let world = World::new([1]);
    let server = world.serve();
    for _ in 0..40 {
        log_in(&server.client(), 1, PASSWORD).is(200);
    }
    world.stop(server);
}

#[test]
fn a_database_that_is_away_is_said_and_waited_for() {
    let mut world = World::new([1]);
    let server = world.serve();
    let customer = server.customer(1);
    world.product.bed.mariadb_mut().stop().unwrap();
    log_in(&server.client(), 1, PASSWORD).refusal(503);
    log_in(&server.client().browser(), 1, PASSWORD).leads_to("/login?problem=unavailable");
    customer.get("/api/backups").refusal(503);
    customer
        .post("/backups/create", "backup_type=db")
        .refusal(503);
    let page = customer.browser().get("/backups");
    assert!(page.is(503).text().contains("try again"), "{}", page.text());
    server.client().get("/readyz").refusal(503);
    server.client().get("/healthz").is(200);
    world.product.bed.mariadb_mut().restart().unwrap();
    customer.get("/api/backups").is(200);
    server.client().get("/readyz").is(200);
    world.stop(server);
}
