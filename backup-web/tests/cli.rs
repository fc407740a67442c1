//! The program as an operator meets it: its exit status, and what it prints where.

use std::io::Read;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use backup_core::config::{Config, Environment};
use backup_core::operations;
use serde_json::Value;
use xtask::testbed::TestBed;

struct Bed {
    dir: tempfile::TempDir,
}

impl Bed {
    /// An empty working directory, and a configuration that is good but for the platform database, which is not there yet.
    fn new() -> Self {
        let bed = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        std::fs::create_dir(bed.path("customers")).unwrap();
        std::fs::write(bed.path("password"), "s3cret\n").unwrap();
        std::fs::set_permissions(bed.path("password"), std::fs::Permissions::from_mode(0o600))
            .unwrap();
        bed.configure("");
        bed
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn configure(&self, more: &str) {
        self.configure_site("stop = ['true']\nstart = ['true']", more);
    }

    fn configure_site(&self, site: &str, more: &str) {
        let dir = self.dir.path().display();
        let text = format!(
            "[database]\nurl = 'sqlite://{dir}/backup.db'\n[repositories.manual]\nlocation = '{dir}/repository'\n\
             password_file = '{dir}/password'\n[customers]\nroot = '{dir}/customers'\n\
             [worker]\nstate_dir = '{dir}/state'\n[site]\nnginx = []\n{site}\n{more}"
        );
        std::fs::write(self.path("backup.toml"), text).unwrap();
    }

    fn init(&self) {
        let file = self.path("backup.toml");
        let config = Config::load(Some(&file), &Environment::default()).unwrap();
        assert!(
            operations::init_repository(
                &config.repositories.manual,
                &backup_core::progress::Cancel::new()
            )
            .unwrap()
        );
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_shophosting-backup"));
        command
            .args(line.split_whitespace())
            .current_dir(self.dir.path());
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap());
        command
    }

    fn run(&self, line: &str) -> Output {
        self.command(line).output().unwrap()
    }

    /// Run it with `--json`; the exit status and the one document.
    fn json(&self, line: &str) -> (i32, Value) {
        let output = self.run(&format!("--json {line}"));
        let document = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|e| panic!("{line}: {e}: {output:?}"));
        (output.status.code().unwrap(), document)
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn help_and_version_are_no_failure() {
    let bed = Bed::new();
    for line in ["--help", "--version", "customer add --help"] {
        let output = bed.run(line);
        assert_eq!(output.status.code(), Some(0), "{line}");
        assert!(
            output.stderr.is_empty() && !output.stdout.is_empty(),
            "{line}"
        );
    }
}

#[test]
fn wrong_usage_ends_with_2_and_leaves_standard_output_to_results() {
    let bed = Bed::new();
    for line in [
        "frobnicate",
        "backup 07",
        "restore 7 abcdef01",
        "customer add --id 0",
    ] {
        let output = bed.run(line);
        assert_eq!(output.status.code(), Some(2), "{line}");
        assert!(
            output.stdout.is_empty() && !output.stderr.is_empty(),
            "{line}"
        );
        let (status, document) = bed.json(line);
        assert_eq!(
            (status, &document["success"]),
            (2, &Value::Bool(false)),
            "{line}"
        );
        assert!(
            document["error"]
                .as_str()
                .is_some_and(|error| !error.is_empty()),
            "{line}"
        );
    }
}

#[test]
fn a_wrong_configuration_ends_with_2_and_names_the_key() {
    let bed = Bed::new();
    bed.configure("[retention]\nmanual = 0\n");
    let output = bed.run("customer list");
    assert_eq!(output.status.code(), Some(2));
    assert!(
        text(&output.stderr).contains("retention.manual"),
        "{output:?}"
    );
    let output = bed.run("--config /nowhere.toml customer list");
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("/nowhere.toml"));
    let (status, document) = bed.json("customer list");
    assert_eq!(status, 2);
    assert!(
        document["error"]
            .as_str()
            .unwrap()
            .contains("retention.manual")
    );
}

#[test]
fn the_environment_lies_over_the_file() {
    let bed = Bed::new();
    let mut command = bed.command("customer list");
    let output = command
        .env("BACKUP__RETENTION__MANUEL", "4")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("BACKUP__RETENTION__MANUEL"));
    let elsewhere = format!("sqlite://{}", bed.path("elsewhere.db").display());
    let output = bed
        .command("customer add")
        .env("BACKUP__DATABASE__URL", elsewhere)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(bed.path("elsewhere.db").exists() && !bed.path("backup.db").exists());
}

#[test]
fn without_any_file_all_is_under_data() {
    let bed = Bed::new();
    std::fs::remove_file(bed.path("backup.toml")).unwrap();
    // Whatever this machine has in /etc must not be used.
    if !Path::new("/etc/shophosting/backup.toml").exists() {
        assert_eq!(bed.run("customer add").status.code(), Some(0));
        assert!(bed.path("data/backup.db").exists());
    }
}

#[test]
fn without_any_file_a_directory_is_backed_up_and_restored() {
    let bed = Bed::new();
    std::fs::remove_file(bed.path("backup.toml")).unwrap();
    // Whatever this machine has in /etc must not be used.
    if Path::new("/etc/shophosting/backup.toml").exists() {
        return;
    }
    let password = bed.path("data/repository-password");
    let (status, before) = bed.json("doctor");
    assert_eq!(status, 0, "nothing is wrong yet: {before:#}");
    for part in [
        "platform database",
        "customers.root",
        "repositories.manual password",
        "repositories.manual",
        "repositories.daily",
    ] {
        let (status, _) = worst(&before, part);
        assert_eq!(status, "warning", "{before:#}");
    }
    let added = text(&bed.run("customer add").stdout);
    let site = bed.path("data/customers/customer-1/wordpress");
    assert!(added.contains(site.to_str().unwrap()), "{added}");
    assert!(added.contains("customer set-password 1 --email"), "{added}");
    // Nothing is made for a command that only reads, or for a customer who does not exist.
    for line in ["list 1", "restore 1 abcdef01 --yes"] {
        let output = bed.run(line);
        assert_eq!(output.status.code(), Some(2), "{line}");
        assert!(
            text(&output.stderr).contains("`backup CUSTOMER`"),
            "{output:?}"
        );
    }
    assert_eq!(bed.run("backup 2").status.code(), Some(1));
    assert!(!password.exists());

    std::fs::create_dir_all(&site).unwrap();
    let page = site.join("index.php");
    std::fs::write(&page, "shop").unwrap();
    let output = bed.run("--json backup 1 --type files");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(text(&output.stderr).contains("keep a copy"), "{output:?}");
    let backup: Value = serde_json::from_slice(&output.stdout).unwrap();
    let mode = password.metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let (status, again) = bed.json("init");
    assert_eq!((status, &again["password_file_created"]), (0, &Value::Null));
    let (_, jobs) = bed.json("jobs 1");
    assert_eq!(jobs["jobs"].as_array().unwrap().len(), 1, "{jobs:#}");

    std::fs::write(&page, "broken").unwrap();
    let id = backup["snapshot_id"].as_str().unwrap();
    let (status, restored) = bed.json(&format!("restore 1 {id} --yes"));
    assert_eq!(status, 0, "{restored:#}");
    assert_eq!(std::fs::read(&page).unwrap(), b"shop");

    // What is there is encrypted with the password that was lost; another one would be of no use.
    std::fs::remove_file(&password).unwrap();
    assert_eq!(bed.run("init").status.code(), Some(2));
    assert!(!password.exists());
}

#[test]
fn a_password_file_that_an_operator_named_is_not_made_for_him() {
    let bed = Bed::new();
    std::fs::remove_file(bed.path("password")).unwrap();
    let output = bed.run("init");
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("password"), "{output:?}");
    assert!(!bed.path("password").exists());
}

#[test]
fn customers_are_added_and_listed() {
    let bed = Bed::new();
    assert_eq!(
        bed.json("customer list"),
        (0, serde_json::json!({ "customers": [] }))
    );
    assert_eq!(
        bed.json("customer add --domain a.example --email Owner@a.example"),
        (0, serde_json::json!({ "customer_id": 1 }))
    );
    let password = bed.path("password");
    let line = format!(
        "customer add --id 12 --db-user u --db-password-file {} --web-port 8012",
        password.display()
    );
    assert_eq!(
        bed.json(&line),
        (0, serde_json::json!({ "customer_id": 12 }))
    );
    let again = bed.run("customer add --id 12");
    assert_eq!(again.status.code(), Some(2));
    assert!(text(&again.stderr).contains("there is a customer 12 already"));
    let (_, listed) = bed.json("customer list");
    let ids: Vec<_> = listed["customers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| c["id"].as_u64().unwrap())
        .collect();
    assert_eq!(ids, [1, 12]);
    assert_eq!(listed["customers"][0]["name"], "a.example");
    assert!(!listed.to_string().contains("s3cret"));
    assert_eq!(listed["customers"][0]["email"], "owner@a.example");
    let shown = text(&bed.run("customer list").stdout);
    assert!(
        shown.contains(" a.example ") && shown.contains(" owner@a.example"),
        "{shown}"
    );
    for email in ["nobody", "a@b@c"] {
        let output = bed.run(&format!("customer add --email {email}"));
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert!(text(&output.stderr).contains("no email address"));
    }
}

#[test]
fn doctor_finds_nothing_wrong_with_a_good_configuration() {
    let bed = Bed::new();
    bed.run("customer add");
    bed.init();
    let (status, document) = bed.json("doctor");
    assert_eq!(
        (status, &document["success"]),
        (0, &Value::Bool(true)),
        "{document:#}"
    );
    let locks = std::fs::read_dir(bed.path("repository/locks")).unwrap();
    assert_eq!(locks.count(), 0);
    assert_eq!(std::fs::read_dir(bed.path("customers")).unwrap().count(), 0);
}

/// The check that notices it, with what status, and how it is brought about.
type Fault<'a> = (&'a str, &'a str, &'a dyn Fn(&Bed));

#[test]
fn doctor_says_what_is_wrong_and_how_to_mend_it() {
    let bed = Bed::new();
    let faults: [Fault; 12] = [
        ("repositories.manual", "warning", &|bed| bed.configure("")),
        ("repositories.manual", "failed", &|bed| {
            bed.init();
            std::fs::write(bed.path("password"), "wr0ng").unwrap();
        }),
        ("repositories.manual password", "failed", &|bed| {
            std::fs::remove_file(bed.path("password")).unwrap()
        }),
        ("repositories.manual password", "warning", &|bed| {
            std::fs::write(bed.path("password"), "s3cret").unwrap();
            std::fs::set_permissions(bed.path("password"), std::fs::Permissions::from_mode(0o644))
                .unwrap();
        }),
        ("site.stop", "failed", &|bed| {
            bed.configure_site("stop = ['no-such-program-here']\nstart = ['true']", "")
        }),
        ("customers.root", "failed", &|bed| {
            bed.configure("");
            std::fs::set_permissions(
                bed.path("customers"),
                std::fs::Permissions::from_mode(0o777),
            )
            .unwrap();
        }),
        ("interrupted restores", "warning", &|bed| {
            let ours = bed.path("customers/.shophosting-backup");
            let left = ours.join("restore-7-0123456789abcdef");
            std::fs::create_dir_all(left).unwrap();
            std::fs::set_permissions(ours, std::fs::Permissions::from_mode(0o700)).unwrap();
        }),
        ("platform database", "failed", &|bed| {
            std::fs::write(
                bed.path("backup.db"),
                "not a database, but long enough to be looked at",
            )
            .unwrap()
        }),
        ("server.login", "failed", &|bed| {
            let key = bed.path("platform-key");
            bed.configure(&format!(
                "[server]\nlogin = 'platform'\nplatform_secret_key_file = '{}'\nplatform_login_url = 'https://shop.example'",
                key.display()
            ));
        }),
        ("server.login", "failed", &|bed| {
            std::fs::write(bed.path("platform-key"), "s3cret").unwrap();
        }),
        ("server.login", "warning", &|bed| {
            let key = bed.path("platform-key");
            std::fs::write(&key, "s3cret-of-the-platform").unwrap();
            std::fs::set_permissions(key, std::fs::Permissions::from_mode(0o644)).unwrap();
        }),
        ("customers.root", "failed", &|bed| {
            std::fs::remove_dir_all(bed.path("customers")).unwrap()
        }),
    ];
    for (name, status, break_it) in faults {
        break_it(&bed);
        let (exit, document) = bed.json("doctor");
        let checks = document["checks"].as_array().unwrap();
        let found = checks
            .iter()
            .find(|check| check["name"] == name && check["status"] == status);
        let found = found.unwrap_or_else(|| panic!("{name}: {document:#}"));
        let length = |part: &str| found[part].as_str().unwrap_or_default().len();
        assert!(length("message") > 15 && length("remedy") > 10, "{found}");
        if status == "failed" {
            assert_eq!(exit, 1, "{name}");
        }
        assert!(!document.to_string().contains("s3cret"));
        assert!(!document.to_string().contains("wr0ng"));
        assert_eq!(bed.run("doctor").status.code(), Some(exit));
    }
}

#[test]
fn an_unreachable_platform_database_is_a_failure_without_its_password() {
    let bed = Bed::new();
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let url = format!("mysql://app:s3cret@127.0.0.1:{port}/platform");
    let output = bed
        .command("--json customer list")
        .env("BACKUP__DATABASE__URL", url)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stdout) + &text(&output.stderr);
    assert!(
        said.contains("cannot be reached") && !said.contains("s3cret"),
        "{said}"
    );
}

#[test]
fn signals_ask_and_do_not_kill() {
    assert_signals_answered("backup 1", ["cancelling…", "still cancelling"]);
}

#[test]
fn a_command_that_cannot_be_cancelled_says_so() {
    let sentence = "cannot be cancelled: it ends by itself\n";
    for line in ["list 1", "customer list"] {
        assert_signals_answered(line, [sentence, sentence]);
    }
}

/// Run it, send it a signal twice, and hear what it says to each; it ends by itself.
fn assert_signals_answered(line: &str, answers: [&str; 2]) {
    let bed = Bed::new();
    // A server that never says a word, so that the program has to wait.
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("mysql://app@{}/platform", server.local_addr().unwrap());
    let mut child = bed
        .command(line)
        .env("BACKUP__DATABASE__URL", url)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (connection, _) = server.accept().unwrap();
    let pid = child.id().to_string();
    let send = |signal: &str| {
        let sent = Command::new("kill").args([signal, &pid]).status().unwrap();
        assert!(sent.success());
    };
    let mut stderr = child.stderr.take().unwrap();
    let mut said = String::new();
    let mut hear = |awaited: &str| {
        while !said.contains(awaited) {
            let mut piece = [0; 256];
            let n = stderr.read(&mut piece).unwrap();
            assert_ne!(n, 0, "it ended without saying `{awaited}`: {said}");
            said.push_str(&text(&piece[..n]));
        }
        said.clear();
    };
    send("-HUP");
    send("-TERM");
    hear(answers[0]);
    send("-INT");
    hear(answers[1]);
    assert!(child.try_wait().unwrap().is_none(), "it still runs");
    drop((connection, server));
    assert_eq!(child.wait().unwrap().code(), Some(1));
}

/// The status and what was found of the first check of this name that is not ok, else of the first.
fn worst<'a>(document: &'a Value, name: &str) -> (&'a str, &'a str) {
    let checks = document["checks"].as_array().unwrap();
    let of_name = || checks.iter().filter(|check| check["name"] == name);
    let check = of_name()
        .find(|check| check["status"] != "ok")
        .or_else(|| of_name().next());
    let check = check.unwrap_or_else(|| panic!("no check {name}: {document:#}"));
    (
        check["status"].as_str().unwrap(),
        check["message"].as_str().unwrap(),
    )
}

#[test]
fn doctor_goes_to_the_servers() {
    let mut bed = TestBed::start().unwrap();
    bed.add_customer(1).unwrap();
    let doctor = |bed: &TestBed, variables: &[(&str, &str)]| -> Value {
        let mut command = bed.product(env!("CARGO_BIN_EXE_shophosting-backup"));
        let output = command
            .args(["--json", "doctor"])
            .envs(variables.iter().copied())
            .output()
            .unwrap();
        let said = text(&output.stdout) + &text(&output.stderr);
        assert!(!said.contains(bed.platform_password()), "{said}");
        let document: Value =
            serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {said}"));
        assert_eq!(document["success"] == true, output.status.success());
        document
    };
    let before = doctor(&bed, &[]);
    assert_eq!(
        worst(&before, "repositories.manual").0,
        "warning",
        "{before:#}"
    );
    assert_eq!(worst(&before, "platform database").0, "ok", "{before:#}");

    let config = Config::load(Some(&bed.config_file()), &Environment::default()).unwrap();
    operations::init_repository(
        &config.repositories.manual,
        &backup_core::progress::Cancel::new(),
    )
    .unwrap();
    let good = doctor(&bed, &[]);
    assert_eq!(good["success"], true, "{good:#}");
    assert_eq!(worst(&good, "repositories.manual").0, "ok", "{good:#}");
    assert!(worst(&good, "platform database").1.contains("1 customers"));

    // As the server is set up, and as the product's default is.
    let (status, message) = worst(&good, "net_write_timeout");
    assert!(
        status == "warning" && message.contains("60 s") && message.contains("300 s"),
        "{message}"
    );
    let patient = [("BACKUP__REPOSITORIES__MANUAL__RETRY_FOR", "60s")];
    let patient = doctor(&bed, &patient);
    assert_eq!(worst(&patient, "net_write_timeout").0, "ok", "{patient:#}");

    let nobody = bed.scratch().join("empty_known_hosts");
    std::fs::write(&nobody, "").unwrap();
    let strange = doctor(
        &bed,
        &[(
            "BACKUP__REPOSITORIES__MANUAL__KNOWN_HOSTS",
            nobody.to_str().unwrap(),
        )],
    );
    let (status, message) = worst(&strange, "repositories.manual");
    assert!(status == "failed" && message.contains("known"), "{message}");

    bed.sshd_mut().stop();
    bed.mariadb_mut().stop().unwrap();
    let quick = ("BACKUP__REPOSITORIES__MANUAL__RETRY_FOR", "1s");
    let gone = doctor(
        &bed,
        &[quick, ("BACKUP__REPOSITORIES__DAILY__RETRY_FOR", "1s")],
    );
    assert_eq!(worst(&gone, "repositories.manual").0, "failed", "{gone:#}");
    assert_eq!(worst(&gone, "repositories.daily").0, "failed", "{gone:#}");
    assert_eq!(worst(&gone, "platform database").0, "failed", "{gone:#}");
}
