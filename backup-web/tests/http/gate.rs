//! No request of one customer, whatever it carries, shows or changes anything of another's; nor of a stranger, of anybody's.

use std::collections::BTreeSet;

use backup_app::App;
use leptos::server_fn::axum::server_fn_paths;
use leptos_axum::generate_route_list;

use crate::client::{Answer, Client};
use crate::world::World;

const METHODS: [&str; 9] = [
    "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "FROB",
];

/// Beside those that are described: pages, their functions, and what needs no login.
const OTHERS: [&str; 13] = [
    "/",
    "/login",
    "/backups",
    "/backups/{id}",
    "/api/page/backups",
    "/api/page/backup?id={id}",
    "/api/openapi.json",
    "/activity",
    "/admin",
    "/admin/login",
    "/healthz",
    "/readyz",
    "/nothing/of/the/kind",
];

const OPEN: [&str; 3] = ["/login", "/healthz", "/readyz"];

/// What a form of each route holds when it is meant.
fn form(route: &str) -> &'static str {
    match route.rsplit('/').next() {
        Some("create") => "backup_type=files",
        Some("restore") => "confirmation=RESTORE&restore_type=files",
        Some("delete") => "confirmation=DELETE",
        _ => "",
    }
}

fn described(client: &Client) -> BTreeSet<String> {
    let document = client.get("/api/openapi.json").json();
    document["paths"]
        .as_object()
        .unwrap()
        .keys()
        .cloned()
        .collect()
}

#[test]
fn every_route_with_every_method_shows_and_changes_nothing_of_another_customer() {
    let world = World::new([1, 2]);
    world.sql("UPDATE customers SET company_name = 'Bolt and Nut' WHERE id = 2");
    world.back_up(1);
    let snapshot = world.back_up(2);
    let server = world.serve();
    let (a, b) = (server.customer(1), server.customer(2));
    b.post("/backups/create", "backup_type=files&note=ours+alone")
        .is(200);
    let job = b.get("/api/backups/status").json()["job"]["id"].to_string();
    let nobodys_snapshot = "ab".repeat(32);
    let nobodys_job = "999999";

    let routes: BTreeSet<String> = described(&a)
        .into_iter()
        .chain(OTHERS.map(Into::into))
        .collect();
    assert!(routes.len() > 15, "{routes:?}");
    // Whatever the pages and their functions are, they are walked, too.
    let pages = generate_route_list(App)
        .into_iter()
        .map(|page| page.path().to_owned());
    let functions = server_fn_paths().map(|(path, _)| path.to_owned());
    let bare: BTreeSet<&str> = routes
        .iter()
        .filter_map(|route| route.split('?').next())
        .collect();
    for route in pages.chain(functions) {
        assert!(
            bare.contains(route.as_str()) || route.contains('*'),
            "{route} is not walked"
        );
    }
    let state = || {
        world.sql("SELECT * FROM customer_backup_jobs WHERE customer_id = 2; SELECT * FROM customer_backups WHERE customer_id = 2; SELECT customer_id, flash FROM backup_sessions WHERE customer_id = 2")
    };
    let before = state();
    let secrets = [
        snapshot.as_str(),
        &snapshot[..8],
        "ours alone",
        "Bolt and Nut",
        "shop-2",
    ];
    let assert_nothing_of_b = |what: &str, answer: &Answer, asked: &str| {
        let said = format!("{:?} {}", answer.headers, answer.text()).replace(asked, "");
        for secret in secrets {
            assert!(!said.contains(secret), "{what}: {secret}: {said}");
        }
    };

    for route in &routes {
        let is_of_job = route.contains("/jobs/");
        let (bs, nobodys) = if is_of_job {
            (job.as_str(), nobodys_job)
        } else {
            (snapshot.as_str(), nobodys_snapshot.as_str())
        };
        let (path, elsewhere) = (route.replace("{id}", bs), route.replace("{id}", nobodys));
        for method in METHODS {
            let form = form(route);
            let kind = if form.is_empty() {
                ""
            } else {
                "application/x-www-form-urlencoded"
            };
            for (who, client) in [("stranger", server.client()), ("A", a.clone())] {
                for client in [client.clone(), client.browser()] {
                    // His own may be created, and would be in the way of the next; logging out is no matter here.
                    if who == "A"
                        && ["/logout", "/backups/create"].contains(&route.as_str())
                        && method == "POST"
                    {
                        continue;
                    }
                    let what = format!("{who}: {method} {path}");
                    let answer = client.send(method, &path, kind, form.as_bytes());
                    assert!(answer.status < 500, "{what}: {}", answer.text());
                    assert_nothing_of_b(&what, &answer, bs);
                    let is_open = OPEN.contains(&route.as_str());
                    if who == "stranger" && !is_open {
                        let is_refused =
                            answer.status == 401 || answer.header("location") == Some("/login");
                        assert!(is_refused, "{what}: {} {}", answer.status, answer.text());
                    }
                    if who == "A" {
                        // What was left for the next page would be in one of the two below.
                        a.browser().get("/backups").is(200);
                    }
                    if who == "A" && path != elsewhere {
                        // Flashes and pages name neither.
                        let other = client.send(method, &elsewhere, kind, form.as_bytes());
                        let plain = |answer: &Answer, id: &str| {
                            let varying = [
                                "x-request-id",
                                "date",
                                "content-security-policy",
                                "content-length",
                            ];
                            let headers: Vec<_> = answer
                                .headers
                                .iter()
                                .filter(|(name, _)| !varying.contains(&name.as_str()))
                                .cloned()
                                .collect();
                            (
                                answer.status,
                                headers,
                                without_what_varies(&answer.text().replace(id, "")),
                            )
                        };
                        assert_eq!(plain(&answer, bs), plain(&other, nobodys), "{what}");
                    }
                }
            }
        }
    }
    assert_eq!(state(), before);
    // All the while it was B's, and there.
    b.browser().get(&format!("/backups/{snapshot}")).is(200);
    assert!(b.get("/api/backups").text().contains(&snapshot));
    let cancelled = b.post(&format!("/backups/jobs/{job}/cancel"), "");
    cancelled.is(200);
    world.stop(server);
}

/// Ids of requests, nonces and times.
fn without_what_varies(text: &str) -> String {
    let mut plain = String::new();
    let mut rest = text;
    while let Some(at) = ["\"request_id\":\"", "nonce=\"", "\\\"now\\\":", "\"now\":"]
        .iter()
        .filter_map(|mark| rest.find(mark).map(|at| at + mark.len()))
        .min()
    {
        plain.push_str(&rest[..at]);
        rest = rest[at..]
            .trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_');
    }
    plain + rest
}

#[test]
fn the_functions_of_the_pages_refuse_nonsense_and_lead_nowhere() {
    let mut world = World::new([1]);
    let server = world.serve();
    let customer = server.customer(1);
    let baited = customer.browser().with("Referer", "https://evil.example/x");
    for path in [
        "/api/page/backup",
        "/api/page/backup?id[a][b]=1",
        "/api/page/backup?id=1&id=2",
    ] {
        for client in [&customer, &baited] {
            let answer = client.get(path);
            assert_eq!(answer.is(400).json(), "Unreachable", "{path}");
            assert_eq!(answer.header("location"), None);
        }
    }
    for path in ["/api/page/backups", "/api/page/backup?id=x"] {
        assert_eq!(baited.get(path).is(200).header("location"), None);
        assert_eq!(baited.post(path, "").header("location"), None);
    }
    // The database goes away after the gate.
    world.sql("RENAME TABLE customer_backup_jobs TO hidden");
    let missing = customer.get("/api/page/backups");
    assert_eq!(missing.is(503).json(), "Unavailable");
    world.sql("RENAME TABLE hidden TO customer_backup_jobs");
    customer.get("/api/page/backups").is(200);
    world.product.bed.mariadb_mut().stop().unwrap();
    customer.get("/api/page/backups").refusal(503);
    world.stop(server);
}

#[test]
fn the_description_that_is_committed_is_the_one_that_is_served() {
    let world = World::new([1]);
    let server = world.serve();
    let served = server.customer(1).get("/api/openapi.json").json();
    let committed = include_str!("../../../docs/openapi.json");
    let committed: serde_json::Value = serde_json::from_str(committed).unwrap();
    assert_eq!(
        served, committed,
        "write what is served to docs/openapi.json"
    );
    world.stop(server);
}

#[test]
fn every_answer_tells_the_browser_to_trust_and_keep_nothing() {
    let world = World::new([1]);
    let server = world.serve();
    let customer = server.customer(1);
    let browser = customer.browser();
    let mut nonces = BTreeSet::new();
    for answer in [
        browser.get("/backups"),
        browser.get("/backups"),
        server.client().browser().get("/login"),
        browser.get("/nothing"),
        browser.get("/activity"),
        browser.get(&format!("/backups/{}", "ab".repeat(32))),
        customer.get("/api/backups"),
        customer.get("/api/page/backups"),
        customer.post("/backups/create", "backup_type=x"),
        server.client().get("/backups"),
        server.client().get("/healthz"),
    ] {
        let header = |name: &str| {
            answer
                .header(name)
                .unwrap_or_else(|| panic!("{name}: {answer:?}"))
        };
        assert_eq!(header("x-content-type-options"), "nosniff");
        assert_eq!(header("referrer-policy"), "same-origin");
        assert_eq!(header("cache-control"), "no-store");
        assert_eq!(header("cross-origin-opener-policy"), "same-origin");
        assert_eq!(header("cross-origin-resource-policy"), "same-origin");
        assert!(header("permissions-policy").contains("camera=()"));
        let policy = header("content-security-policy");
        for part in [
            "default-src 'none'",
            "frame-ancestors 'none'",
            "base-uri 'none'",
            "form-action 'self'",
        ] {
            assert!(policy.contains(part), "{policy}");
        }
        assert!(
            !policy.contains("unsafe-inline") && !policy.contains('*'),
            "{policy}"
        );
        let text = answer.text();
        // Every script that is in the page carries the nonce of this answer.
        for script in text.match_indices("<script").map(|(at, _)| &text[at..]) {
            let nonce = policy
                .split_once("'nonce-")
                .unwrap()
                .1
                .split_once('\'')
                .unwrap()
                .0;
            assert!(
                script
                    .split_once('>')
                    .unwrap()
                    .0
                    .contains(&format!("nonce=\"{nonce}\"")),
                "{script}"
            );
            nonces.insert(nonce.to_owned());
        }
    }
    assert!(nonces.len() >= 4, "{nonces:?}");
    world.stop(server);
}
