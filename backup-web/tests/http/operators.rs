//! What operators rely on: the log, the metrics, and that the server needs the database and nothing else.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use crate::world::{PASSWORD, Server, World, credentials};

#[test]
fn the_server_runs_without_root_and_without_a_repositorys_password() {
    let world = World::new([1]);
    let snapshot = world.back_up(1);
    let scratch = world.product.bed.scratch();
    for file in ["manual-repository-password", "daily-repository-password"] {
        std::fs::remove_file(scratch.join(file)).unwrap();
    }
    let configuration = world.product.bed.config_file();
    std::fs::set_permissions(&configuration, Permissions::from_mode(0o644)).unwrap();
    // Where nobody may look who is not root.
    for secret in ["state", "backup-server"] {
        std::fs::set_permissions(scratch.join(secret), Permissions::from_mode(0o700)).unwrap();
    }
    let binary = scratch.join("program");
    std::fs::copy(env!("CARGO_BIN_EXE_shophosting-backup"), &binary).unwrap();
    std::fs::set_permissions(&binary, Permissions::from_mode(0o755)).unwrap();
    let product = world.product.command("serve");
    let mut command = Command::new("setpriv");
    command
        .args([
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "--no-new-privs",
            "--inh-caps=-all",
            "--bounding-set=-all",
        ])
        .arg(&binary)
        .args(product.get_args())
        .env("RUST_LOG", "info")
        .env("BACKUP__SERVER__LISTEN", "127.0.0.1:0");
    for (name, value) in product
        .get_envs()
        .filter(|(name, _)| *name == "DB_PASSWORD")
    {
        command.env(name, value.unwrap());
    }
    let server = Server::start(world.product.spawn(command));
    let client = server.customer(1);
    assert!(client.get("/api/backups").text().contains(&snapshot));
    client.browser().get("/backups").is(200);
    client
        .browser()
        .get(&format!("/backups/{snapshot}"))
        .is(200);
    let restore = format!("/backups/{snapshot}/restore");
    client
        .post(&restore, "confirmation=RESTORE&restore_type=files")
        .is(200);
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.id())).unwrap();
    assert!(status.contains("Uid:\t65534"), "{status}");
    world.stop(server);
}

#[test]
fn a_request_has_one_id_in_its_answer_in_every_line_and_in_the_refusal() {
    let world = World::new([1]);
    let server = world.serve_with("serve --log-json", &[]);
    let id = "from-the-proxy-7";
    let client = server.customer(1).with("X-Request-Id", id);
    let answer = client.post("/backups/create", "backup_type=db&note=of+nobody's+concern");
    assert_eq!(answer.is(200).header("x-request-id"), Some(id));
    let refused = client.post("/backups/jobs/77777/cancel?token=of+nobody's+concern", "");
    assert_eq!(refused.json()["request_id"], id);
    let own = server
        .client()
        .with("X-Request-Id", "<b>\"")
        .get("/healthz");
    assert_eq!(own.header("x-request-id").unwrap().len(), 32);
    let log = world.stop(server);
    let lines: Vec<serde_json::Value> = log
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    let of_request: Vec<_> = lines
        .iter()
        .filter(|line| line["span"]["id"] == id)
        .collect();
    let said = |what: &str| {
        of_request
            .iter()
            .find(|line| line["fields"]["message"] == what)
            .unwrap_or_else(|| panic!("{what}: {log}"))
    };
    let answered = said("answered");
    assert_eq!(answered["fields"]["route"], "/backups/create");
    assert_eq!(answered["fields"]["status"], 200);
    assert!(answered["fields"]["ms"].is_u64());
    said("backup db: pending");
    // Routes are logged, not what is in them.
    for private in ["concern", "77777", PASSWORD] {
        assert!(!log.contains(private), "{private}: {log}");
    }
}

#[test]
fn metrics_are_for_this_machine_or_for_a_listener_of_their_own() {
    let world = World::new([1]);
    let snapshot = world.back_up(1);
    world.sql(
        "INSERT INTO backup_proofs (customer_id, source, snapshot_id, tried_at, proven_at) VALUES (1, 'manual', 'a', 1700000000000, 1700000000000);
         INSERT INTO backup_repositories (repository_id, sampled_at, sample_errors)
             SELECT repository_id, 1700000000000, 2 FROM backup_repository_users WHERE source = 'manual'
             ON DUPLICATE KEY UPDATE sampled_at = 1700000000000, sample_errors = 2",
    );
    let server = world.serve();
    let client = server.customer(1);
    client.post("/backups/create", "backup_type=db").is(200);
    for (name, value) in [
        ("Forwarded", "for=203.0.113.9"),
        ("Via", "1.1 proxy"),
        ("X-Forwarded-For", "203.0.113.9"),
        ("X-Forwarded-Host", "backups.example"),
        ("X-Forwarded-Proto", "https"),
        ("X-Real-IP", "203.0.113.9"),
    ] {
        server
            .client()
            .with(name, value)
            .get("/metrics")
            .refusal(404);
    }
    let answer = server.client().get("/metrics");
    let text = answer.is(200).text();
    for line in [
        "shophosting_backup_jobs{type=\"backup\",status=\"completed\"} 1",
        "shophosting_backup_jobs{type=\"backup\",status=\"pending\"} 1",
        "shophosting_backup_jobs_timed{type=\"backup\",status=\"completed\"} 1",
        "shophosting_backup_database_up 1",
        "shophosting_backup_proofs{source=\"manual\",result=\"proven\"} 1",
        "shophosting_backup_proofs{source=\"manual\",result=\"failed\"} 0",
        "shophosting_backup_last_proof_timestamp_seconds{source=\"manual\"} 1700000000.0",
        "shophosting_backup_oldest_proof_timestamp_seconds{source=\"manual\"} 1700000000.0",
        "shophosting_backup_sample_errors{server=\"default\",source=\"manual\"} 2",
        "shophosting_backup_http_requests_total{method=\"POST\",route=\"/login\",status=\"200\"} 1",
        "shophosting_backup_http_requests_total{method=\"POST\",route=\"/backups/create\",status=\"200\"} 1",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}: {text}");
    }
    let value = |name: &str| -> f64 {
        let line = text
            .lines()
            .find(|line| line.starts_with(name))
            .unwrap_or_else(|| panic!("{name}: {text}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    assert!(value("shophosting_backup_job_seconds{type=\"backup\",status=\"completed\"}") > 0.0);
    assert!(value("shophosting_backup_job_bytes{type=\"backup\",status=\"completed\"}") > 0.0);
    let newest: f64 = world
        .sql("SELECT MAX(time) / 1000 FROM customer_backups")
        .trim()
        .parse()
        .unwrap();
    assert!(
        (value("shophosting_backup_last_backup_timestamp_seconds{source=\"manual\"}") - newest)
            .abs()
            < 1.0
    );
    assert!(text.contains("shophosting_backup_http_request_seconds_bucket"));
    for private in [snapshot.as_str(), "shop-1", "customer-1"] {
        assert!(!text.contains(private));
    }
    world.stop(server);

    let server = world.serve_with("serve", &[("SERVER__METRICS_LISTEN", "127.0.0.1:0")]);
    server.client().get("/metrics").refusal(401);
    let log = server.log();
    let address = log
        .split_once("metrics are at http://")
        .unwrap()
        .1
        .split_once("/metrics")
        .unwrap()
        .0;
    let own = crate::client::Client::new(address);
    assert!(
        own.with("X-Forwarded-For", "203.0.113.9")
            .get("/metrics")
            .is(200)
            .text()
            .contains("database_up 1")
    );
    // And nothing else there.
    own.post("/login", &credentials(1, PASSWORD)).refusal(404);
    own.get("/backups").refusal(404);
    world.stop(server);
}
