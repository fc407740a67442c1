//! The section on installing is followed to the letter, and what comes of it works, with the rights that its units give.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use backup_app::BUILD;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use xtask::host::Host;
use xtask::product::wait_until;
use xtask::redis::Redis;
use xtask::testbed::{Customer, TestBed};
use xtask::unit::Unit;

use crate::client::Client;
use crate::world::{PASSWORD, PASSWORD_HASH, address_in, credentials};

const WEB: &str = "shophosting-backup-web.service";
const WORKER: &str = "shophosting-backup-worker.service";
const DAILY: &str = "shophosting-backup-daily.service";
/// Where somebody put the archive.
const DOWNLOADED: &str = "/root/downloaded";
/// Of the account that the section on installing makes.
const WEB_PASSWORD: &str = "the new password";

/// What only root may read.
const SECRETS: [&str; 5] = [
    "/opt/shophosting/.manual-restic-password",
    "/root/.restic-password",
    "/root/.ssh/id_ed25519",
    "/etc/shophosting/worker.env",
    "/etc/shophosting/web.env",
];

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The blocks of one kind in a section of the page on operations.
fn blocks(section: &str, kind: &str) -> Vec<String> {
    let page = fs::read_to_string(workspace().join("docs/operations.md")).unwrap();
    let start = page.find(&format!("\n## {section}\n")).unwrap();
    let section = &page[start + 1..];
    let section = section.find("\n## ").map_or(section, |end| &section[..end]);
    let begin = format!("```{kind}\n");
    let parts = section.split(&begin).skip(1);
    parts
        .map(|part| part.split("```").next().unwrap().to_owned())
        .collect()
}

/// A service that a unit describes. Dropping it kills it.
struct Service {
    child: Child,
    log: PathBuf,
}

impl Service {
    #[track_caller]
    fn start(mut command: Command, log: &Path) -> Self {
        let child = command
            .stdout(Stdio::null())
            .stderr(File::create(log).unwrap())
            .spawn()
            .unwrap();
        Self {
            child,
            log: log.to_owned(),
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    #[track_caller]
    fn until(&mut self, what: &str, mut condition: impl FnMut(&str) -> bool) {
        wait_until(what, || {
            let log = self.log();
            let holds = condition(&log);
            let runs = matches!(self.child.try_wait(), Ok(None));
            assert!(holds || runs, "it ended before this: {what}: {log}");
            holds
        });
    }

    /// End it as systemd does.
    #[track_caller]
    fn stop(mut self) {
        let id = Pid::from_child(&self.child);
        kill_process(id, Signal::TERM).unwrap();
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}: {}", self.log());
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What `make dist` does, with the program as tests have it.
fn pack(scratch: &Path) {
    let site = scratch.join("site");
    fs::create_dir_all(site.join("pkg")).unwrap();
    let hashes = format!("build: {BUILD}\njs: 1a\nwasm: 2b\ncss: 3c\n");
    fs::write(site.join("hash.txt"), hashes).unwrap();
    fs::write(site.join("pkg/backup.3c.css"), "main {}").unwrap();
    // What describes the program to a debugger is most of it, and would be packed for long.
    let binary = scratch.join("program");
    let stripped = Command::new("strip")
        .args(["--strip-all", "-o"])
        .arg(&binary)
        .arg(env!("CARGO_BIN_EXE_shophosting-backup"))
        .status()
        .unwrap();
    assert!(stripped.success());
    xtask::dist::pack(&workspace(), &binary, &site, &scratch.join("dist")).unwrap();
}

/// A machine without any of it, beside a platform, with the archive in a directory.
struct Machine {
    host: Host,
    bed: TestBed,
    redis: Redis,
    customer: Customer,
    scratch: TempDir,
}

impl Machine {
    fn new() -> Self {
        let bed = TestBed::start().unwrap();
        let customer = bed.add_customer(1).unwrap();
        bed.sql_as(
            &customer,
            "CREATE TABLE orders (id INT PRIMARY KEY); INSERT INTO orders VALUES (1), (2)",
        )
        .unwrap();
        // What nobody but its owner may see.
        let site = customer.site();
        for (path, mode) in [(site.join("index.php"), 0o600), (site, 0o2700)] {
            chown(&path, Some(33), Some(33)).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        }
        bed.mariadb()
            .sql(&format!(
                "UPDATE shophosting_db.customers SET password_hash = '{PASSWORD_HASH}'"
            ))
            .unwrap();

        let scratch = tempfile::tempdir().unwrap();
        pack(scratch.path());
        let host = Host::start(&[
            (&bed.customers_root(), "/var/customers"),
            (&scratch.path().join("dist"), DOWNLOADED),
        ])
        .unwrap();
        let known_hosts = format!(
            "[127.0.0.1]:{} {}",
            bed.sshd().port(),
            bed.sshd().host_key().unwrap()
        );
        let key = fs::read_to_string(bed.sshd().client_key()).unwrap();
        for (file, text) in [
            ("/opt/shophosting/.platform", "the platform\n"),
            ("/root/.restic-password", "of the daily repository\n"),
            ("/root/.ssh/id_ed25519", key.as_str()),
            ("/root/.ssh/known_hosts", known_hosts.as_str()),
        ] {
            host.write(file, "600", text).unwrap();
        }
        Self {
            host,
            redis: Redis::start().unwrap(),
            bed,
            customer,
            scratch,
        }
    }

    /// The unpacked archive.
    fn unpacked(&self) -> String {
        let found = self.host.shell(DOWNLOADED, "ls -d \"$PWD\"/*/").unwrap();
        found.trim().to_owned()
    }

    /// What a person writes into the files of `/etc/shophosting`.
    fn configure(&self) {
        let database = self.bed.mariadb().port();
        let place = format!("127.0.0.1:{database}/shophosting_db");
        let mut text = self.host.read("/etc/shophosting/backup.toml").unwrap();
        let manual = self.bed.sshd().location(&self.bed.manual_repository());
        let daily = self.bed.sshd().location(&self.bed.daily_repository());
        for (line, changed) in [
            (
                "#listen = \"127.0.0.1:3000\"",
                "listen = \"127.0.0.1:0\"".to_owned(),
            ),
            (
                "location = \"sftp:sh-backup@203.0.113.5:/home/sh-backup/manual-backups\"",
                format!("location = \"{manual}\""),
            ),
            (
                "location = \"sftp:sh-backup@203.0.113.5:/home/sh-backup/backups\"",
                format!("location = \"{daily}\""),
            ),
            (
                "url = \"mysql://shophosting_app@localhost/shophosting_db\"",
                format!("url = \"mysql://shophosting_app@{place}\""),
            ),
            ("#host = \"localhost\"", "host = \"127.0.0.1\"".to_owned()),
            ("#port = 3306", format!("port = {database}")),
            (
                "#stop = [\"docker\", \"compose\", \"stop\"]",
                "stop = []".to_owned(),
            ),
            (
                "#start = [\"docker\", \"compose\", \"up\", \"-d\"]",
                "start = []".to_owned(),
            ),
        ] {
            assert!(text.contains(&format!("\n{line}")), "{line}");
            text = text.replace(&format!("\n{line}"), &format!("\n{changed}"));
        }
        self.change("/etc/shophosting/backup.toml", &text);
        let redis = format!("BACKUP__QUEUE__REDIS_URL={}\n", self.redis.url());
        let password = self.bed.platform_password();
        self.change(
            "/etc/shophosting/worker.env",
            &format!("DB_PASSWORD={password}\n{redis}"),
        );
        self.change(
            "/etc/shophosting/web.env",
            &format!("DB_PASSWORD={WEB_PASSWORD}\nBACKUP__DATABASE__URL=mysql://shophosting_web@{place}\n{redis}"),
        );
    }

    /// As an editor does, which leaves owner and mode of the file as they are.
    fn change(&self, file: &str, text: &str) {
        let new = "/root/edited";
        self.host.write(new, "600", text).unwrap();
        let lines = format!("cat {new} >{file}\nrm {new}");
        self.host.shell("/", &lines).unwrap();
    }

    fn unit(&self, name: &str) -> Unit {
        Unit::installed(&self.host, name).unwrap()
    }

    #[track_caller]
    fn start(&self, name: &str) -> Service {
        let command = self.unit(name).command(&self.host).unwrap();
        Service::start(command, &self.scratch.path().join(name))
    }

    /// Whether a program ends well as the service of this unit; and what it said.
    fn as_service(&self, name: &str, words: &[&str]) -> (bool, String) {
        let mut command = self.unit(name).command_of(&self.host, words).unwrap();
        let output = command.output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        (
            output.status.success(),
            String::from_utf8_lossy(&said).into_owned(),
        )
    }

    #[track_caller]
    fn finish_job(&self, client: &Client) {
        wait_until("the job ends", || {
            let status = client.get("/api/backups/status").json();
            let failed = &status["last_failed"];
            assert!(failed.is_null(), "{status}");
            status["has_active_job"] == false
        });
    }
}

#[test]
fn the_section_on_installing_leads_to_a_machine_that_backs_up_and_restores_over_http() {
    let machine = Machine::new();
    let shell = blocks("Install", "sh");
    let [install, first_time, prepare, start, nginx] = &shell[..] else {
        panic!("the section on installing has other steps: {shell:#?}")
    };
    let host = &machine.host;
    host.shell(DOWNLOADED, install).unwrap();
    let unpacked = machine.unpacked();
    host.shell(&unpacked, first_time).unwrap();
    machine.configure();
    host.shell(&unpacked, prepare).unwrap();
    let [accounts] = &blocks("Install", "sql")[..] else {
        panic!("not one block of SQL")
    };
    assert!(accounts.contains(WEB_PASSWORD));
    machine.bed.mariadb().sql(accounts).unwrap();
    // Who starts units and nginx is not here.
    let copies: Vec<_> = nginx
        .lines()
        .filter(|line| line.starts_with("install "))
        .collect();
    assert_eq!(copies.len(), 2);
    host.shell(&unpacked, &copies.join("\n")).unwrap();
    assert!(
        start.contains(&format!("enable --now {WORKER} {WEB}")),
        "{start}"
    );
    let mut worker = machine.start(WORKER);
    worker.until("the worker runs", |log| log.contains("jobs at once"));
    let mut web = machine.start(WEB);
    let mut address = None;
    web.until("the server listens", |log| {
        address = address_in(log);
        address.is_some()
    });
    assert!(
        !web.log().contains("neither script nor style"),
        "{}",
        web.log()
    );
    // The page is found with its style, and the maintenance page is where nginx looks.
    let stranger = Client::new(&address.unwrap());
    let page = stranger.browser().get("/login");
    assert!(page.is(200).text().contains("/pkg/backup.3c.css"));
    stranger.get("/pkg/backup.3c.css").is(200);
    host.read("/usr/share/shophosting-backup/__maintenance.html")
        .unwrap();

    let answer = stranger.post("/login", &credentials(1, PASSWORD));
    let client = stranger.with("Cookie", &answer.is(200).cookie());
    client.post("/backups/create", "backup_type=both").is(200);
    machine.finish_job(&client);
    let list = client.get("/api/backups").json();
    let id = list["manual"][0]["id"].as_str().unwrap().to_owned();
    let site = machine.customer.site();
    let index = site.join("index.php");
    let original = fs::read(&index).unwrap();
    fs::write(&index, "wrecked").unwrap();
    machine
        .bed
        .sql_as(&machine.customer, "DELETE FROM orders")
        .unwrap();
    client
        .post(
            &format!("/backups/{id}/restore"),
            "confirmation=RESTORE&restore_type=both",
        )
        .is(200);
    machine.finish_job(&client);
    assert_eq!(fs::read(&index).unwrap(), original);
    let orders = machine
        .bed
        .sql_as(&machine.customer, "SELECT COUNT(*) FROM orders");
    assert_eq!(orders.unwrap().trim(), "2");
    for (path, mode) in [(&site, 0o2700), (&index, 0o600)] {
        let meta = fs::metadata(path).unwrap();
        let found = (meta.uid(), meta.gid(), meta.mode() & 0o7777);
        assert_eq!(found, (33, 33, mode), "{}", path.display());
    }
    web.stop();
    worker.stop();

    // With the rights of the daily run, too, a customer's files can be read whole.
    let line = [
        "/usr/bin/shophosting-backup",
        "--config",
        "/etc/shophosting/backup.toml",
        "backup",
        "1",
    ];
    let (is_done, said) = machine.as_service(DAILY, &line);
    assert!(is_done, "{said}");
    what_the_units_keep_from_their_services(&machine);
}

#[track_caller]
fn what_the_units_keep_from_their_services(machine: &Machine) {
    let (is_read, _) = machine.as_service(WEB, &["cat", "/etc/shophosting/backup.toml"]);
    assert!(is_read);
    for secret in SECRETS {
        let (is_read, said) = machine.as_service(WEB, &["cat", secret]);
        assert!(!is_read, "{secret}: {said}");
        let (is_read, said) = machine.as_service(WORKER, &["cat", secret]);
        assert!(is_read, "{secret}: {said}");
        let mode = format!("stat -c '%a %U' {secret}");
        assert_eq!(machine.host.shell("/", &mode).unwrap(), "600 root\n");
    }
    for (name, place) in [
        (WEB, "/var/customers"),
        (WEB, "/var/lib/shophosting-backup"),
        (WEB, "/etc"),
        (WORKER, "/etc"),
        (WORKER, "/usr/bin"),
        (WORKER, "/root/.ssh"),
        (DAILY, "/etc"),
    ] {
        let file = format!("{place}/written");
        let (is_written, _) = machine.as_service(name, &["touch", &file]);
        assert!(!is_written, "{name}: {file}");
    }
    for (name, capabilities) in [
        (WEB, "0000000000000000"),
        // chown, dac_override, fowner and fsetid.
        (WORKER, "000000000000001b"),
        // dac_read_search.
        (DAILY, "0000000000000004"),
    ] {
        let (_, status) = machine.as_service(name, &["cat", "/proc/self/status"]);
        let line = format!("CapBnd:\t{capabilities}\n");
        assert!(status.contains(&line), "{name}: {status}");
    }
}
