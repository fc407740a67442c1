//! What is broken on the hosting server itself: configuration, files, disks, and repositories in its own directories.

use std::fs::{self, Permissions};
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use xtask::receiver::Receiver;
use xtask::restic::Restic;
use xtask::s3::{BUCKET, S3};
use xtask::smtp::{Manners, Smtp};

use crate::diagnosis::{Diagnosis, Mount, Patient, listing};

const PASSWORD: &str = "s3cret of the repositories";

struct Machine {
    dir: tempfile::TempDir,
}

impl Machine {
    /// All is well but for the customers' database server, which is not there.
    fn new() -> Self {
        let machine = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        let dir = machine.dir.path().display();
        let text = format!(
            "[server]\npublic_url = 'https://backups.example'\n[database]\nurl = 'sqlite://{dir}/backup.db'\n\
             [worker]\nstate_dir = '{dir}/state'\n[customers]\nroot = '{dir}/customers'\n\
             [repositories.manual]\nlocation = '{dir}/manual'\npassword_file = '{dir}/password'\n\
             [repositories.daily]\nlocation = '{dir}/daily'\npassword_file = '{dir}/password'\n\
             [customer_database]\nsocket = '{dir}/none.sock'\n[site]\nstop = ['true']\nstart = ['true']\nnginx = []\n"
        );
        fs::write(machine.path("backup.toml"), text).unwrap();
        write_secret(&machine.path("password"), PASSWORD);
        fs::create_dir(machine.path("state")).unwrap();
        fs::set_permissions(machine.path("state"), Permissions::from_mode(0o700)).unwrap();
        fs::create_dir_all(machine.path("customers/customer-1/wordpress")).unwrap();
        fs::write(
            machine.path("customers/customer-1/wordpress/index.php"),
            "shop",
        )
        .unwrap();
        for line in ["init", "customer add"] {
            let output = machine.product().args(line.split(' ')).output().unwrap();
            assert!(output.status.success(), "{output:?}");
        }
        machine
            .daily()
            .backup([machine.path("customers")], &["daily"])
            .unwrap();
        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn daily(&self) -> Restic {
        Restic::new(self.path("daily"), PASSWORD).unwrap()
    }
}

impl Patient for Machine {
    fn product(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_shophosting-backup"));
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .current_dir(self.dir.path());
        command
    }

    fn secrets(&self) -> Vec<&str> {
        vec![PASSWORD]
    }
}

fn write_secret(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, Permissions::from_mode(0o600)).unwrap();
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

fn shown(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn what_is_broken_in_the_configuration_and_its_files_is_told() {
    let machine = Machine::new();
    let good = machine.doctor();
    assert_eq!(
        good.complaints().into_iter().collect::<Vec<_>>(),
        ["database of customer 1"]
    );
    good.fails("database of customer 1", &["cannot be reached"])
        .finds("configuration", &["backup.toml"])
        .finds("site of customer 1", &["customer-1"]);

    machine
        .doctor_with(&[("SERVER__PUBLIC_URL", "http://backups.example")])
        .warns("server.public_url", &["not https"])
        .finds("configuration", &["BACKUP__SERVER__PUBLIC_URL"]);
    machine
        .doctor_with(&[
            ("SITE__STOP", "['no-such-program']"),
            ("SITE__START", "['no-such-program']"),
        ])
        .fails("site.stop", &["no-such-program"])
        .fails("site.start", &["no-such-program"]);
    let mut without_programs = machine.product();
    without_programs.env("PATH", "/nonexistent");
    Diagnosis::of(&mut without_programs)
        .fails("dump program", &["mariadb-dump"])
        .fails("database client", &["mariadb"]);
    machine
        .doctor_with(&[("CUSTOMER_DATABASE__EXEC", "['no-such-program', 'exec']")])
        .fails("customer_database.exec", &["no-such-program"]);
    let absent = machine.path("absent");
    machine
        .doctor_with(&[("CUSTOMER_DATABASE__PASSWORD_FILE", shown(&absent))])
        .fails("customer_database password", &["absent"]);

    let platforms = machine.path("platform-secret-key");
    write_secret(&platforms, "a key of sixteen characters and more");
    let at_platform = [
        ("SERVER__LOGIN", "platform"),
        ("SERVER__PLATFORM_SECRET_KEY_FILE", shown(&platforms)),
        (
            "SERVER__PLATFORM_LOGIN_URL",
            "https://shophosting.example/login",
        ),
    ];
    // The dashboard is not root, and has to read it.
    for (group, mode, words) in [
        (0, 0o640, "nobody but root can read"),
        (12, 0o600, "nobody but root can read"),
        (12, 0o644, "every user can read"),
    ] {
        chown(&platforms, Some(0), Some(group)).unwrap();
        chmod(&platforms, mode);
        machine
            .doctor_with(&at_platform)
            .warns("server.login", &[words])
            .does_not_show("sixteen characters");
    }
    chmod(&platforms, 0o640);
    machine
        .doctor_with(&at_platform)
        .finds("server.login", &["platform, by the key"]);

    let key = machine.path("key");
    fs::write(&key, "no key").unwrap();
    chmod(&key, 0o644);
    machine
        .doctor_with(&[
            ("REPOSITORIES__MANUAL__SSH_KEY", shown(&key)),
            ("REPOSITORIES__DAILY__SSH_KEY", shown(&absent)),
            ("REPOSITORIES__DAILY__KNOWN_HOSTS", shown(&absent)),
        ])
        .warns("repositories.manual.ssh_key", &["others can read"])
        .fails("repositories.daily.ssh_key", &["cannot be read"])
        .fails("repositories.daily.known_hosts", &["cannot be read"]);

    chmod(&machine.path("password"), 0o644);
    machine
        .doctor()
        .warns("repositories.manual password", &["every user can read"]);
    chmod(&machine.path("password"), 0o600);

    let state = machine.path("state");
    chmod(&state, 0o777);
    machine
        .doctor()
        .fails("worker.state_dir", &["others than its owner"]);
    chmod(&state, 0o700);
    {
        let small = machine.path("small");
        let mounted = Mount::over(&small, "size=1m,mode=700");
        let keys = [("WORKER__STATE_DIR", shown(&small))];
        machine
            .doctor_with(&keys)
            .finds("worker.state_dir", &["small"]);
        mounted.remount("ro");
        machine
            .doctor_with(&keys)
            .fails("worker.state_dir", &["cannot be written"]);
    }
    fs::create_dir(state.join("restores")).unwrap();
    chmod(&state.join("restores"), 0o755);
    machine
        .doctor()
        .fails("interrupted restores", &["open to nobody"]);
    chmod(&state.join("restores"), 0o700);
    let journal = state.join("restores/customer-1-0123456789abcdef.json");
    fs::write(&journal, "{").unwrap();
    machine
        .doctor()
        .fails("interrupted restores", &["cannot be understood"]);
    fs::remove_file(&journal).unwrap();

    let database = machine.path("backup.db");
    fs::rename(&database, &absent).unwrap();
    machine
        .doctor()
        .warns("platform database", &["does not exist yet"]);
    fs::write(&database, "not a database, but long enough to be looked at").unwrap();
    machine
        .doctor()
        .fails("platform database", &["damaged or no database"]);
    fs::rename(&absent, &database).unwrap();
    assert_eq!(machine.doctor().complaints(), good.complaints());
}

#[test]
fn whether_those_who_are_told_of_jobs_can_be_reached_is_tried_and_nothing_is_told() {
    const SMTP_PASSWORD: &str = "pass of the smtp server";
    const SECRET: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
    let machine = Machine::new();
    let mut smtp = Smtp::start(Manners {
        tls: "none",
        user: "backups",
        password: SMTP_PASSWORD,
        ..Manners::default()
    })
    .unwrap();
    let receiver = Receiver::start().unwrap();
    let (secret, password) = (machine.path("secret"), machine.path("smtp-password"));
    write_secret(&secret, SECRET);
    write_secret(&password, SMTP_PASSWORD);
    let url = format!("http://127.0.0.1:{}/hooks", receiver.port());
    let port = smtp.port().to_string();
    let mut keys = vec![
        ("NOTIFY__WEBHOOK__URL", url.as_str()),
        ("NOTIFY__WEBHOOK__SECRET_FILE", shown(&secret)),
        ("NOTIFY__EMAIL__HOST", "localhost"),
        ("NOTIFY__EMAIL__PORT", &port),
        ("NOTIFY__EMAIL__TLS", "none"),
        ("NOTIFY__EMAIL__USER", "backups"),
        ("NOTIFY__EMAIL__PASSWORD_FILE", shown(&password)),
        ("NOTIFY__EMAIL__FROM", "backups@platform.example"),
    ];
    let (webhook, email) = ("notify.webhook", "notify.email");
    let good = machine.doctor_with(&keys);
    good.finds(webhook, &["can be reached"])
        .finds(email, &["localhost"])
        .finds("notify.webhook.secret_file", &["secret"])
        .finds("notify.email.password_file", &["smtp-password"]);
    assert!(receiver.told().is_empty() && smtp.mails().unwrap().is_empty());

    chmod(&secret, 0o644);
    write_secret(&password, "another");
    machine
        .doctor_with(&keys)
        .warns("notify.webhook.secret_file", &["others than root"])
        .fails(email, &["takes no mail", "535"])
        .does_not_show("another");
    write_secret(&secret, "guess me");
    write_secret(&password, SMTP_PASSWORD);
    machine
        .doctor_with(&keys)
        .fails(webhook, &["no secret of Standard Webhooks"])
        .finds(email, &[])
        .does_not_show("guess me")
        .does_not_show(SMTP_PASSWORD);
    write_secret(&secret, SECRET);
    smtp.kill();
    // There is no TLS at that port.
    let url = format!("https://127.0.0.1:{}/hooks", receiver.port());
    keys[0].1 = &url;
    machine
        .doctor_with(&keys)
        .fails(webhook, &["cannot be reached"])
        .fails(email, &["localhost"])
        .does_not_show(SECRET);
}

#[test]
fn what_is_broken_of_a_customers_site_is_told_and_only_that_customers_is_looked_at_on_demand() {
    let machine = Machine::new();
    let (root, directory) = (
        machine.path("customers"),
        machine.path("customers/customer-1"),
    );
    let site = "site of customer 1";

    let maintenance = directory.join(".maintenance");
    fs::write(
        &maintenance,
        "shophosting-backup restoring, since long ago\n",
    )
    .unwrap();
    machine.doctor().fails(site, &["no restore is under way"]);
    fs::write(&maintenance, "closed by hand\n").unwrap();
    machine.doctor().warns(site, &["not of a restore"]);
    assert_eq!(fs::read(&maintenance).unwrap(), b"closed by hand\n");
    fs::remove_file(&maintenance).unwrap();

    chmod(&directory, 0o777);
    machine
        .doctor()
        .warns(site, &["every user of this machine can write"]);
    chmod(&directory, 0o755);
    fs::rename(directory.join("wordpress"), directory.join("elsewhere")).unwrap();
    machine
        .doctor()
        .warns(site, &["has none of wordpress, volumes/files"]);
    fs::rename(directory.join("elsewhere"), directory.join("wordpress")).unwrap();
    let away = machine.path("away");
    fs::rename(&directory, &away).unwrap();
    machine.doctor().warns(site, &["no directory"]);
    symlink(&away, &directory).unwrap();
    machine.doctor().fails(site, &["a link is not followed"]);
    fs::remove_file(&directory).unwrap();
    fs::rename(&away, &directory).unwrap();

    // Whether or not docker is here, and has compose.
    fs::write(directory.join("docker-compose.yml"), "services: [").unwrap();
    let compose = machine.doctor_with(&[("SITE__START", "['docker', 'compose', 'up', '-d']")]);
    let has_docker = Command::new("docker").arg("--version").output().is_ok();
    match has_docker {
        true => compose.fails("containers of customer 1", &["docker compose config"]),
        false => compose.fails("site.start", &["docker"]),
    };
    fs::remove_file(directory.join("docker-compose.yml")).unwrap();

    let nobody = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        format!("http://{}/", listener.local_addr().unwrap())
    };
    machine
        .doctor_with(&[("SITE__HEALTH_URL", &nobody)])
        .fails("site.health_url of customer 1", &["does not answer"]);
    machine
        .doctor_with(&[("SITE__HEALTH_URL", "http://127.0.0.1:{web_port}/")])
        .warns("customer 1", &["web_port"]);

    chmod(&root, 0o777);
    machine
        .doctor()
        .fails("customers.root", &["others than its owner"]);
    chmod(&root, 0o755);
    let ours = root.join(".shophosting-backup");
    fs::create_dir(&ours).unwrap();
    chmod(&ours, 0o755);
    machine
        .doctor()
        .fails("exchange of directories", &["open to nobody"]);
    chmod(&ours, 0o700);
    fs::create_dir(ours.join("restore-1-0123456789abcdef")).unwrap();
    machine
        .doctor()
        .warns("interrupted restores", &["was killed and left"]);
    fs::remove_dir_all(&ours).unwrap();
    {
        let _elsewhere = Mount::over(&root.join("customer-2"), "size=1m");
        machine
            .doctor()
            .warns("customers.root", &["another file system"]);
    }
    fs::remove_dir(root.join("customer-2")).unwrap();
    {
        let small = machine.path("small");
        let mounted = Mount::over(&small, "size=16m");
        let keys = [("CUSTOMERS__ROOT", shown(&small))];
        machine
            .doctor_with(&keys)
            .warns("space for restores", &["MiB are free"])
            .finds("exchange of directories", &["works"]);
        mounted.remount("ro");
        machine
            .doctor_with(&keys)
            .fails("exchange of directories", &["cannot exchange"]);
    }
    let absent = machine.path("absent");
    machine
        .doctor_with(&[("CUSTOMERS__ROOT", shown(&absent))])
        .fails("customers.root", &["absent"]);

    let same = ["customer", "add", "--id", "12", "--db-name", "customer_1"];
    assert!(machine.product().args(same).status().unwrap().success());
    machine
        .doctor()
        .fails("customer 12", &["customer 1 has the same database"]);
    let twelve = Diagnosis::with(&mut machine.product(), &["--customer", "12"]);
    assert!(!twelve.looks_at(site) && !twelve.looks_at("database of customer 1"));
    twelve.warns("site of customer 12", &["no directory"]);
    Diagnosis::with(&mut machine.product(), &["--customer", "99"])
        .fails("customers", &["no customer 99"]);
}

#[test]
fn what_is_broken_of_a_repository_in_a_bucket_is_told_and_nothing_is_left_there() {
    let machine = Machine::new();
    let s3 = S3::start().unwrap();
    let (location, key) = (s3.location("{server}"), s3.key_file());
    let with = |keys: &[(&str, &str)]| {
        let mut all = vec![
            ("REPOSITORIES__MANUAL__LOCATION", location.as_str()),
            ("REPOSITORIES__MANUAL__S3_KEY_FILE", shown(&key)),
        ];
        all.extend(keys);
        let diagnosis = machine.doctor_with(&all);
        diagnosis.does_not_show(s3.secret());
        diagnosis
    };
    with(&[]).warns("repositories.manual", &["there is no repository"]);
    let output = machine
        .product()
        .arg("init")
        .env("BACKUP__REPOSITORIES__MANUAL__LOCATION", &location)
        .env("BACKUP__REPOSITORIES__MANUAL__S3_KEY_FILE", &key)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let before = listing(&s3.bucket());
    with(&[])
        .finds("repositories.manual", &["default, 0 backups"])
        .finds("repositories.manual s3_key_file", &[shown(&key)])
        .finds("repositories.manual writing", &["read back and removed"])
        .finds("repositories.manual clock", &[]);
    assert_eq!(listing(&s3.bucket()), before);

    chmod(&key, 0o644);
    with(&[]).warns("repositories.manual s3_key_file", &["every user"]);
    chmod(&key, 0o600);
    let wrong = machine.path("wrong-key");
    let text = format!(
        "AWS_ACCESS_KEY_ID={}\nAWS_SECRET_ACCESS_KEY=wr0ng",
        s3.key_id()
    );
    write_secret(&wrong, &text);
    with(&[("REPOSITORIES__MANUAL__S3_KEY_FILE", shown(&wrong))])
        .fails(
            "repositories.manual",
            &["secret of the access key is wrong"],
        )
        .does_not_show("wr0ng");
    write_secret(&wrong, "wr0ng");
    with(&[("REPOSITORIES__MANUAL__S3_KEY_FILE", shown(&wrong))])
        .fails("repositories.manual s3_key_file", &["AWS_ACCESS_KEY_ID"])
        .does_not_show("wr0ng");
    let nowhere = location.replace(&format!("/{BUCKET}/"), "/nowhere/");
    with(&[("REPOSITORIES__MANUAL__LOCATION", &nowhere)])
        .fails("repositories.manual", &["no bucket `nowhere`"]);
    machine
        .doctor_with(&[("REPOSITORIES__MANUAL__LOCATION", &location)])
        .fails("repositories.manual s3_key_file", &["no access key"]);
    assert_eq!(listing(&s3.bucket()), before);
}

#[test]
fn what_is_broken_of_a_repository_is_told() {
    let machine = Machine::new();
    let here =
        || ["manual", "daily", "customers", "state"].map(|name| listing(&machine.path(name)));
    let before = here();
    let wrong = machine.path("wrong-password");
    write_secret(&wrong, "wr0ng");
    machine
        .doctor_with(&[("REPOSITORIES__MANUAL__PASSWORD_FILE", shown(&wrong))])
        .fails("repositories.manual", &["password", "is wrong"])
        .does_not_show("wr0ng");
    fs::remove_file(&wrong).unwrap();
    machine
        .doctor_with(&[("REPOSITORIES__MANUAL__PASSWORD_FILE", shown(&wrong))])
        .fails("repositories.manual password", &["wrong-password"]);
    let nowhere = machine.path("nowhere");
    machine
        .doctor_with(&[
            ("REPOSITORIES__MANUAL__LOCATION", shown(&nowhere)),
            (
                "REPOSITORIES__DAILY__LOCATION",
                shown(&nowhere.join("daily")),
            ),
        ])
        .warns("repositories.manual", &["there is no repository"])
        .warns("repositories.daily", &["there is no repository"]);
    assert!(!nowhere.exists());
    let other_way = machine.path("other-way");
    symlink(machine.path("manual"), &other_way).unwrap();
    machine
        .doctor_with(&[("REPOSITORIES__DAILY__LOCATION", shown(&other_way))])
        .fails("repositories.daily", &["the same repository"]);
    fs::remove_file(&other_way).unwrap();
    assert_eq!(here(), before);

    let old = Restic::new(machine.path("old"), PASSWORD).unwrap();
    old.run(["init", "--repository-version", "1"]).unwrap();
    machine
        .doctor_with(&[(
            "REPOSITORIES__MANUAL__LOCATION",
            shown(&machine.path("old")),
        )])
        .fails("repositories.manual", &["version 1"]);

    // Night after night nothing comes.
    let empty = Restic::new(machine.path("empty"), PASSWORD).unwrap();
    empty.init().unwrap();
    let keys = [("REPOSITORIES__DAILY__LOCATION", machine.path("empty"))];
    let keys = keys.each_ref().map(|(key, path)| (*key, shown(path)));
    machine
        .doctor_with(&keys)
        .warns("repositories.daily age", &["no daily backup"]);
    // What another hosting server has there, or is no daily backup, is none of this one.
    for (tag, options) in [("daily", &["--host=elsewhere"][..]), ("weekly", &[])] {
        empty
            .backup_with([machine.path("customers")], &[tag], options)
            .unwrap();
    }
    machine
        .doctor_with(&keys)
        .warns("repositories.daily age", &["no daily backup"]);
    let long_ago = ["--time", "2026-01-31 00:15:00"];
    empty
        .backup_with([machine.path("customers")], &["daily"], &long_ago)
        .unwrap();
    machine
        .doctor_with(&keys)
        .warns("repositories.daily age", &["2026-01-3"]);
    empty
        .backup([machine.path("customers")], &["daily"])
        .unwrap();
    machine
        .doctor_with(&keys)
        .finds("repositories.daily age", &["0 h ago"]);

    // A program that dies leaves its lock.
    let manual = Restic::new(machine.path("manual"), PASSWORD).unwrap();
    let mut dying = manual.command(["backup", "--stdin"]);
    let mut dying = dying
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let locks = || {
        let names = fs::read_dir(machine.path("manual/locks")).unwrap();
        // Restic writes a lock under a longer name first.
        names
            .filter(|name| name.as_ref().unwrap().file_name().len() == 64)
            .count()
    };
    let deadline = Instant::now() + Duration::from_secs(60);
    while locks() == 0 {
        assert!(Instant::now() < deadline, "restic takes no lock");
        std::thread::sleep(Duration::from_millis(1));
    }
    dying.kill().unwrap();
    dying.wait().unwrap();
    machine.doctor().warns("repositories.manual", &["stale"]);
    assert_eq!(locks(), 1, "whose it is, the doctor leaves alone");
    assert!(machine.product().arg("unlock").status().unwrap().success());

    let small = machine.path("small");
    let mounted = Mount::over(&small, "size=8m");
    let repository = small.join("repository");
    Restic::new(&repository, PASSWORD).unwrap().init().unwrap();
    let keys = [("REPOSITORIES__MANUAL__LOCATION", shown(&repository))];
    machine
        .doctor_with(&keys)
        .warns("repositories.manual space", &["MiB are free"])
        .finds(
            "repositories.manual writing",
            &["written, synced, renamed and removed"],
        );
    mounted.remount("ro");
    machine
        .doctor_with(&keys)
        .fails("repositories.manual writing", &["Read-only"]);
    mounted.remount("rw");
    let _ = fs::write(small.join("all"), vec![b'x'; 8 << 20]);
    machine
        .doctor_with(&keys)
        .fails("repositories.manual writing", &["No space left"]);
    fs::write(small.join("all"), "").unwrap();
    let left = |kind: &str| fs::read_dir(repository.join(kind)).unwrap().count();
    assert_eq!(left("locks"), 0, "whatever failed");
    drop(mounted);
    machine
        .doctor()
        .finds("repositories.manual", &["0 backups"]);

    // More than there is room for, should it be restored.
    let big = machine.path("customers/customer-1/wordpress/big");
    fs::write(big, vec![0; 20 << 20]).unwrap();
    let backup = ["backup", "1", "--type", "files"];
    let output = machine.product().args(backup).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let sites = machine.path("sites");
    let _mounted = Mount::over(&sites, "size=16m");
    machine
        .doctor_with(&[("CUSTOMERS__ROOT", shown(&sites))])
        .fails("space for restores", &["customer 1", "cannot be restored"]);
}
