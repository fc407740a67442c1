//! What a backup promises, through the program and over SFTP: the stock restic reads what was written, and whatever goes wrong
//! leaves no backup, no lock, no process and no file, but a sentence that helps.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use xtask::mount::Mount;
use xtask::product::{Outcome, Product, Running, arguments_of_all_processes, wait_until};
use xtask::proxy::Proxy;
use xtask::restic::Restic;
use xtask::testbed::Customer;
use xtask::tree::{TreeImage, assert_same_tree, build_nasty_tree};

const MIB: u64 = 1 << 20;

/// A hosting server with an initialized pair of repositories.
fn product() -> Product {
    let product = Product::start(env!("CARGO_BIN_EXE_shophosting-backup")).unwrap();
    product.init().unwrap();
    product
}

/// Tables (the last one in the dump's order is `z_last`), a view, a trigger, a routine and an event, and awkward data.
fn fill_database(product: &Product, customer: &Customer) {
    let schema = &customer.database;
    product
        .bed
        .mariadb()
        .sql(&format!(
            "USE {schema};
             CREATE TABLE a_posts (id INT PRIMARY KEY AUTO_INCREMENT, title VARCHAR(200), body LONGBLOB);
             INSERT INTO a_posts (title, body) SELECT CONCAT('Grüße ', seq, ' 🛒'), RANDOM_BYTES(2000) FROM seq_1_to_300;
             INSERT INTO a_posts (title, body) VALUES ('quo''te \\\\ \\n \\t', NULL), ('', '');
             CREATE TABLE z_last (id INT PRIMARY KEY, price DECIMAL(10,2), total DECIMAL(10,2) AS (price * 2) STORED);
             INSERT INTO z_last (id, price) SELECT seq, seq / 7 FROM seq_1_to_50;
             CREATE VIEW cheap AS SELECT id FROM z_last WHERE price < 3;
             CREATE PROCEDURE discount() UPDATE z_last SET price = price * 0.9;
             CREATE EVENT nightly ON SCHEDULE EVERY 1 DAY STARTS '2037-01-01' DO DELETE FROM a_posts WHERE id < 0;
             DELIMITER //
             CREATE TRIGGER keep_price BEFORE UPDATE ON z_last FOR EACH ROW BEGIN /* a note */ SET NEW.price = ABS(NEW.price); END//"
        ))
        .unwrap();
}

/// A file of noise in the site: nothing of it is compressed or stored twice.
fn add_noise(customer: &Customer, name: &str, bytes: u64) -> PathBuf {
    let path = customer.site().join(name);
    let mut random = fs::File::open("/dev/urandom").unwrap();
    let mut file = fs::File::create(&path).unwrap();
    std::io::copy(&mut std::io::Read::take(&mut random, bytes), &mut file).unwrap();
    path
}

/// Noise in the database, in the table `m_noise`, between the others.
fn add_noise_to_database(product: &Product, customer: &Customer, mebibytes: u64) {
    let sql = format!(
        "USE {0};
         CREATE TABLE m_noise (id INT PRIMARY KEY, noise LONGBLOB);
         INSERT INTO m_noise SELECT seq, RANDOM_BYTES(1024) FROM seq_1_to_{1};",
        customer.database,
        mebibytes * 1024
    );
    product.bed.mariadb().sql(&sql).unwrap();
}

/// A dump to compare with: without the line that says by which name the server was reached.
fn comparable(dump: &[u8]) -> Vec<&[u8]> {
    dump.split(|byte| *byte == b'\n')
        .filter(|line| !line.starts_with(b"-- Host: "))
        .collect()
}

fn ids(snapshots: &[Value]) -> Vec<String> {
    let id = |snapshot: &Value| snapshot["id"].as_str().unwrap().to_owned();
    snapshots.iter().map(id).collect()
}

/// Everything that a failed backup must not change.
#[derive(Debug, PartialEq)]
struct Unchanged {
    snapshots: Vec<String>,
    locks: Vec<String>,
    customers: TreeImage,
}

impl Unchanged {
    fn of(product: &Product) -> Self {
        Self {
            snapshots: product.repository_files("snapshots"),
            locks: product.repository_files("locks"),
            customers: TreeImage::of(&product.bed.customers_root()).unwrap(),
        }
    }

    #[track_caller]
    fn assert(&self, product: &Product) {
        let now = Self::of(product);
        assert_eq!(self.snapshots, now.snapshots);
        assert_eq!(self.locks, now.locks);
        assert!(
            self.customers.differences(&now.customers).is_empty(),
            "{:?}",
            self.customers.differences(&now.customers)
        );
        assert!(no_dump_on_disk());
    }
}

/// The paths that dumps have in snapshots are on no disk.
fn no_dump_on_disk() -> bool {
    let entries = fs::read_dir("/tmp").unwrap().flatten();
    let names: Vec<_> = entries.map(|entry| entry.file_name()).collect();
    !names
        .iter()
        .any(|name| name.to_string_lossy().starts_with("customer-backup-"))
}

/// Every file under a final name is what its name says, and restic has nothing to complain of.
#[track_caller]
fn assert_sound(product: &Product) {
    let repository = product.bed.manual_repository();
    let mut directories = vec![
        repository.join("index"),
        repository.join("snapshots"),
        repository.join("locks"),
    ];
    let packs = fs::read_dir(repository.join("data")).unwrap().flatten();
    directories.extend(packs.map(|entry| entry.path()));
    for path in directories
        .iter()
        .flat_map(|directory| fs::read_dir(directory).unwrap().flatten())
        .map(|entry| entry.path())
    {
        let name = path.file_name().unwrap().to_str().unwrap();
        if !name.starts_with(".tmp-") {
            let hash = Sha256::digest(fs::read(&path).unwrap());
            let hash: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(name, hash, "{}", path.display());
        }
    }
    product.bed.restic().unwrap().check_read_data().unwrap();
}

/// Nobody writes there any more, and no attempt left its temporary file.
#[track_caller]
fn assert_no_temporary_files(product: &Product) {
    let found = Command::new("find")
        .arg(product.bed.manual_repository())
        .args(["-name", ".tmp-*"])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8(found.stdout).unwrap(), "");
}

#[track_caller]
fn assert_says(outcome: &Outcome, code: i32, words: &[&str]) {
    let error = outcome.refusal(code);
    for word in words {
        assert!(error.contains(word), "no `{word}` in: {error}");
    }
}

#[test]
fn the_stock_restic_reads_and_restores_what_was_backed_up() {
    let mut product = Product::start(env!("CARGO_BIN_EXE_shophosting-backup")).unwrap();
    let customer = product.add_customer(7).unwrap();
    fill_database(&product, &customer);
    fs::remove_dir_all(customer.site()).unwrap();
    build_nasty_tree(&customer.site()).unwrap();

    assert_says(
        &product.run("--json list 7"),
        1,
        &["there is no repository", "init"],
    );
    let created = product.run("init --json").document();
    assert_eq!(created["repositories"][0]["created"], true);
    let again = product.run("init --json").document();
    assert_eq!(again["repositories"][0]["created"], false);
    assert_eq!(
        again["repositories"][1],
        json!({ "name": "daily", "location": product.bed.sshd().location(&product.bed.daily_repository()), "created": false })
    );
    assert!(product.run("list 7").done().contains("no backups"));

    // Four backups deep, of mixed types, with changes in between.
    let mut made = Vec::new();
    let mut last_job = None;
    for (backup_type, note) in [
        ("both", None),
        ("db", Some("before the sale – 50 %")),
        ("files", None),
        ("both", Some("last")),
    ] {
        let round = made.len();
        product
            .bed
            .mariadb()
            .sql(&format!(
                "INSERT INTO {}.a_posts (title) VALUES ('round {round}')",
                customer.database
            ))
            .unwrap();
        fs::write(customer.site().join("round"), format!("{round}")).unwrap();
        let before = std::time::SystemTime::now();
        let mut command = product.command("--json backup 7 --type");
        command.arg(backup_type);
        if let Some(note) = note {
            command.args(["--note", note]);
        }
        let report = product.run_command(command).document();
        assert_eq!(report["backup_type"], backup_type);
        assert!(report["job_id"].as_u64() > last_job, "{report}");
        last_job = report["job_id"].as_u64();
        assert_eq!(report["warnings"], json!([]));
        let keys: BTreeSet<&str> = report
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect();
        assert_eq!(
            keys,
            BTreeSet::from([
                "job_id",
                "snapshot_id",
                "backup_type",
                "files",
                "bytes",
                "bytes_added",
                "database_bytes",
                "warnings"
            ])
        );
        made.push((
            report,
            note,
            before,
            TreeImage::of(&customer.site()).unwrap(),
            product.bed.dump(&customer.database).unwrap(),
        ));
    }
    assert!(product.repository_files("locks").is_empty());
    assert_sound(&product);
    assert_no_temporary_files(&product);

    // As the backup server's operator sees it, and over SFTP.
    let password = fs::read_to_string(product.bed.restic().unwrap().password_file()).unwrap();
    let restic = product
        .bed
        .restic_over_sftp(&product.bed.manual_repository(), &password)
        .unwrap();
    let snapshots = restic.snapshots().unwrap();
    let made_ids: Vec<_> = made
        .iter()
        .map(|(report, ..)| report["snapshot_id"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(ids(&snapshots), made_ids);
    let hostname = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    for (snapshot, (report, _, before, image, dump)) in snapshots.iter().zip(&made) {
        let backup_type = report["backup_type"].as_str().unwrap();
        let (has_database, has_files) = (backup_type != "files", backup_type != "db");
        let id = report["snapshot_id"].as_str().unwrap();

        assert_eq!(snapshot["hostname"], hostname.trim());
        let time: jiff::Timestamp = snapshot["time"].as_str().unwrap().parse().unwrap();
        assert!(
            time >= jiff::Timestamp::try_from(*before).unwrap() && time <= jiff::Timestamp::now()
        );
        let local = time.to_zoned(jiff::tz::TimeZone::system());
        let mut tags: Vec<&str> = snapshot["tags"]
            .as_array()
            .unwrap()
            .iter()
            .map(|tag| tag.as_str().unwrap())
            .collect();
        tags.sort_unstable();
        let when = local.strftime("%Y-%m-%d-%H%M%S").to_string();
        let mut expected = ["customer-7", "manual", backup_type, when.as_str()];
        expected.sort_unstable();
        assert_eq!(tags, expected);
        let mut paths = Vec::new();
        if has_database {
            paths.push(json!("/tmp/customer-backup-7"));
        }
        if has_files {
            paths.push(json!(customer.directory));
        }
        assert_eq!(snapshot["paths"], Value::Array(paths));

        let nodes = restic.list(id).unwrap();
        let files = nodes.iter().filter(|node| node["type"] == "file").count();
        assert_eq!(
            report["files"].as_u64().unwrap(),
            (files - usize::from(has_database)) as u64
        );
        let bytes: u64 = nodes.iter().filter_map(|node| node["size"].as_u64()).sum();
        assert_eq!(report["bytes"], bytes, "{report}");
        let below: BTreeSet<&str> = nodes
            .iter()
            .filter_map(|node| node["path"].as_str())
            .filter_map(|path| path.strip_prefix(customer.directory.to_str().unwrap()))
            .filter(|path| !path.starts_with("/wordpress/"))
            .collect();
        let expected = match has_files {
            true => BTreeSet::from(["", "/docker-compose.yml", "/volumes", "/wordpress"]),
            false => BTreeSet::new(),
        };
        assert_eq!(below, expected, "what is excluded is not there");

        let target = product.bed.scratch().join(format!("restored-{}", &id[..8]));
        restic.restore(id, &target).unwrap();
        let restored = target.join(customer.directory.strip_prefix("/").unwrap());
        assert_eq!(restored.exists(), has_files);
        if has_files {
            let differences =
                image.differences(&TreeImage::of(&restored.join("wordpress")).unwrap());
            assert!(differences.is_empty(), "{differences:#?}");
            assert_same_tree(
                customer.directory.join("docker-compose.yml"),
                restored.join("docker-compose.yml"),
            );
        }
        let path = "/tmp/customer-backup-7/customer_7.sql";
        let restored = target.join(&path[1..]);
        assert_eq!(restored.exists(), has_database);
        if has_database {
            let dumped = match backup_type {
                "db" => restic.dump(id, path).unwrap(),
                _ => fs::read(&restored).unwrap(),
            };
            assert!(
                comparable(&dumped) == comparable(dump),
                "the dump is not what mysqldump streams"
            );
            assert!(fs::read(restored).unwrap() == dumped);
            assert_eq!(report["database_bytes"], dumped.len());
        } else {
            assert_eq!(report["database_bytes"], 0);
        }
    }
    let added = |index: usize| made[index].0["bytes_added"].as_u64().unwrap();
    assert!(
        added(2) < added(0) / 4 && added(3) < added(0) / 4,
        "only what changed is stored"
    );

    let listed = product.run("list 7 --json").document();
    let shown: Vec<[&Value; 5]> = listed["manual"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| ["id", "time", "backup_type", "note", "bytes"].map(|key| &entry[key]))
        .collect();
    let expected: Vec<[Value; 5]> = made
        .iter()
        .zip(&snapshots)
        .rev()
        .map(|((report, note, ..), snapshot)| {
            let time: jiff::Timestamp = snapshot["time"].as_str().unwrap().parse().unwrap();
            let time = jiff::Timestamp::from_millisecond(time.as_millisecond()).unwrap();
            [
                report["snapshot_id"].clone(),
                json!(time),
                report["backup_type"].clone(),
                json!(note),
                report["bytes"].clone(),
            ]
        })
        .collect();
    let expected: Vec<[&Value; 5]> = expected.iter().map(|entry| entry.each_ref()).collect();
    assert_eq!(shown, expected, "the catalogue keeps milliseconds");
    assert_eq!(
        (&listed["daily"], &listed["pre_restore"]),
        (&json!([]), &json!([]))
    );
    let text = product.run("list 7");
    let lines: Vec<&str> = text.done().lines().collect();
    assert_eq!((lines.len(), lines[0]), (5, "manual:"));
    assert!(lines[3].contains(&made_ids[1][..8]) && lines[3].contains("before the sale – 50 %"));

    no_secret_in_the_repository(&product);
}

/// The backup server is curious: what is written there is encrypted, every byte of it.
fn no_secret_in_the_repository(product: &Product) {
    let found = Command::new("grep")
        .args([
            "-rlaF",
            "-e",
            "CREATE TABLE",
            "-e",
            "customer_7",
            "-e",
            "before the sale",
        ])
        .arg(product.bed.manual_repository())
        .output()
        .unwrap();
    assert_eq!(String::from_utf8(found.stdout).unwrap(), "");
}

#[test]
fn the_newest_five_of_a_customer_stay_and_nothing_else_is_touched() {
    let mut product = product();
    for id in [1, 12] {
        let customer = product.add_customer(id).unwrap();
        fill_database(&product, &customer);
    }
    let restic = product.bed.restic().unwrap();
    // Whatever its tags are made to look like, none of these is a manual backup of customer 1 alone.
    let site = product.bed.customers_root().join("customer-1/wordpress");
    let mut others: Vec<String> = [
        &["daily", "2020-01-01"][..],
        &["customer-1", "pre-restore", "both", "2020-01-01-000000"],
        &[
            "customer-1",
            "customer-12",
            "manual",
            "both",
            "2020-01-01-000000",
        ],
        &["customer-12", "manual", "both", "2020-01-01-000000"],
        &["customer-11", "manual", "both", "2020-01-01-000000"],
        &["manual"],
        &["customer-1"],
        &[],
    ]
    .iter()
    .map(|tags| restic.backup([&site], tags).unwrap())
    .collect();
    let back_up = |line: &str| {
        let report = product.run(line).document();
        report["snapshot_id"].as_str().unwrap().to_owned()
    };
    let mut own = Vec::new();
    for (round, backup_type) in ["both", "db", "files", "both", "db", "db", "files"]
        .iter()
        .enumerate()
    {
        own.push(back_up(&format!("--json backup 1 --type {backup_type}")));
        if round == 2 {
            others.push(back_up("--json backup 12"));
        }
    }
    let left: BTreeSet<String> = ids(&restic.snapshots().unwrap()).into_iter().collect();
    let expected: BTreeSet<String> = own[2..].iter().cloned().chain(others).collect();
    assert_eq!(left, expected);
    let listed = product.run("--json list 1").document();
    let mut listed = ids(listed["manual"].as_array().unwrap());
    listed.reverse();
    assert_eq!(listed, own[2..]);

    // The clock was wrong when these were made: a backup of today is not forgotten on the spot for it.
    for _ in 0..6 {
        let tags = "customer-1,manual,both,2033-01-01-000000";
        let mut backup: Vec<&OsStr> = ["backup", "--time", "2033-01-01 00:00:00", "--tag", tags]
            .map(OsStr::new)
            .into();
        backup.push(site.as_os_str());
        restic.run(backup).unwrap();
    }
    let newest = back_up("--json backup 1");
    let left = ids(&restic.snapshots().unwrap());
    assert!(left.contains(&newest));
    assert_eq!(left.len(), expected.len());

    // What was forgotten is garbage that a prune collects; what stays is whole.
    product.run("prune").done();
    assert_sound(&product);
    assert_eq!(ids(&restic.snapshots().unwrap()).len(), expected.len());
}

#[test]
fn a_dump_that_is_not_whole_is_no_backup() {
    let mut product = product();
    let customer = product.add_customer(7).unwrap();
    fill_database(&product, &customer);
    product.run("backup 7").done();
    let before = Unchanged::of(&product);
    let (bed, mariadb) = (&product.bed, product.bed.mariadb());

    // Its connection dies after the first tables, before the last.
    let lock = mariadb.lock_table("customer_7.z_last").unwrap();
    let mut running = product.spawn(product.command("--json backup 7"));
    let mut waiting = Vec::new();
    running.until("the dump waits for the last table", || {
        waiting = mariadb.waiting_for_table().unwrap();
        !waiting.is_empty()
    });
    // Nobody learns a password from `ps` meanwhile.
    let shown = arguments_of_all_processes().unwrap();
    assert!(shown.contains("mariadb-dump --defaults-file="), "{shown}");
    product.assert_no_secret("the arguments of the processes", &shown);
    mariadb.sql(&format!("KILL {}", waiting[0])).unwrap();
    assert_says(
        &product.finish(running),
        1,
        &["dump of the database customer_7 failed", "went away"],
    );
    drop(lock);
    before.assert(&product);

    // It dies in the middle of a table that streams.
    add_noise_to_database(&product, &customer, 64);
    let proxy = Proxy::start(bed.sshd().port()).unwrap();
    proxy.set_bytes_per_second(Some(4 * MIB));
    let mut command = product.command("--json backup 7 --type db");
    product.through(&proxy, &mut command).unwrap();
    let mut running = product.spawn(command);
    let mut streaming = String::new();
    running.until("the dump streams the large table", || {
        let sql = "SELECT id FROM information_schema.processlist
             WHERE db = 'customer_7' AND state = 'Writing to net' AND info LIKE '%m_noise%'";
        streaming = mariadb.sql(sql).unwrap();
        !streaming.is_empty() && proxy.bytes_to_target() > 2 * MIB
    });
    mariadb.sql(&format!("KILL {streaming}")).unwrap();
    proxy.set_bytes_per_second(None);
    assert_says(
        &product.finish(running),
        1,
        &["dump of the database customer_7 failed", "went away"],
    );
    before.assert(&product);
    mariadb.sql("DROP TABLE customer_7.m_noise").unwrap();

    // It hangs.
    let lock = mariadb.lock_table("customer_7.z_last").unwrap();
    let mut command = product.command("--json backup 7");
    command.env("BACKUP__CUSTOMER_DATABASE__DUMP_TIMEOUT", "2s");
    assert_says(
        &product.run_command(command),
        1,
        &["dump of the database customer_7 failed", "2"],
    );
    drop(lock);
    before.assert(&product);

    // The customer made an event that hangs the dump program.
    bed.sql_as(
        &customer,
        "DELIMITER //
         CREATE EVENT trap ON SCHEDULE EVERY 1 DAY STARTS '2037-01-01' DO BEGIN SELECT ';;'; END//",
    )
    .unwrap();
    assert_says(
        &product.run("--json backup 7"),
        1,
        &["event trap", "customer_7", ";;", "change it"],
    );
    before.assert(&product);
    bed.sql_as(&customer, "DROP EVENT trap").unwrap();

    // A dump program that is not what it should be.
    let real = "case \"$*\" in *--version*) exec /usr/bin/mariadb-dump \"$@\";; esac\n";
    for (script, words) in [
        ("exit 0", &["customer_7", "is empty"][..]),
        ("exit 3", &["customer_7", "failed"]),
        (
            "echo; echo '-- Dump completed'; exit 3",
            &["customer_7", "failed"],
        ),
        (
            "/usr/bin/mariadb-dump \"$@\" | head -n -1",
            &["customer_7", "cut off"],
        ),
        (
            "/usr/bin/mariadb-dump \"$@\" | head -c 30000; kill -9 $$",
            &["customer_7", "failed"],
        ),
        (
            "/usr/bin/mariadb-dump \"$@\"; echo oops: disk full >&2; exit 1",
            &["customer_7", "oops: disk full"],
        ),
        // It wants neither to end nor to be asked to, nor do those that it starts.
        (
            "trap '' TERM HUP INT; (trap '' TERM; sleep 600) & sleep 600",
            &["customer_7", "2"],
        ),
        (
            "/usr/bin/mariadb-dump \"$@\"; exec >&-; sleep 600",
            &["customer_7", "2"],
        ),
    ] {
        let mut command = product.command("--json backup 7");
        let programs = programs_before(&product, &[("mariadb-dump", &format!("{real}{script}"))]);
        command.env("PATH", &programs);
        command.env("BACKUP__CUSTOMER_DATABASE__DUMP_TIMEOUT", "2s");
        let outcome = product.run_command(command);
        assert_says(&outcome, 1, words);
        before.assert(&product);
    }

    // None at all: that is a matter of how the machine is set up.
    let mut command = product.command("--json backup 7");
    let nothing = bed.scratch().join("nothing");
    fs::create_dir_all(&nothing).unwrap();
    command.env("PATH", &nothing);
    assert_says(
        &product.run_command(command),
        2,
        &["no client programs", "install", "mariadb-dump"],
    );
    before.assert(&product);

    // The account's password is wrong; the server is away; there is no such database.
    let mut command = product.command("--json backup 7");
    command.env("DB_PASSWORD", "not it");
    assert_says(&product.run_command(command), 1, &["denies", "password"]);
    let mut command = product.command("--json backup 7");
    let nobody = xtask::port::free().unwrap().to_string();
    command.env("BACKUP__CUSTOMER_DATABASE__PORT", nobody);
    assert_says(&product.run_command(command), 1, &["cannot be reached"]);
    mariadb
        .sql("UPDATE shophosting_db.customers SET db_name = 'customer_8' WHERE id = 7")
        .unwrap();
    assert_says(
        &product.run("--json backup 7"),
        1,
        &["no database customer_8"],
    );
    mariadb
        .sql("UPDATE shophosting_db.customers SET db_name = 'customer_7' WHERE id = 7")
        .unwrap();
    before.assert(&product);

    assert_no_temporary_files(&product);
    product.run("backup 7").done();
    assert_sound(&product);
}

/// A search path that finds these shell scripts before the real programs.
fn programs_before(product: &Product, scripts: &[(&str, &str)]) -> String {
    let directory = tempfile::Builder::new()
        .prefix("programs-")
        .tempdir_in(product.bed.scratch())
        .unwrap()
        .keep();
    for (name, script) in scripts {
        xtask::script::write(&directory.join(name), script).unwrap();
    }
    format!("{}:/usr/bin:/bin", directory.display())
}

#[test]
fn a_repository_that_fails_gets_no_backup_and_works_afterwards() {
    let mut product = product();
    let customer = product.add_customer(7).unwrap();
    fill_database(&product, &customer);
    let scratch = product.bed.scratch().to_owned();
    product.run("backup 7").done();
    add_noise(&customer, "noise", 40 * MIB);
    let before = Unchanged::of(&product);
    let with = |name: &str, value: &Path| {
        let mut command = product.command("--json backup 7");
        command.env(format!("BACKUP__REPOSITORIES__MANUAL__{name}"), value);
        command
    };
    let file = |name: &str, content: &str| {
        let path = scratch.join(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    };

    // Root may read everything but what the kernel itself refuses to read.
    {
        let bound = customer.site().join("unreadable");
        fs::write(&bound, "x").unwrap();
        let _mounted = Mount::bind(Path::new("/sys/bus/cpu/drivers_probe"), &bound).unwrap();
        assert_says(
            &product.run("--json backup 7"),
            1,
            &["wordpress/unreadable", "read"],
        );
    }
    fs::remove_file(customer.site().join("unreadable")).unwrap();
    assert_eq!(before.snapshots, product.repository_files("snapshots"));
    let before = Unchanged::of(&product);

    // What no second try mends is said at once, though tries may go on for five minutes.
    let wrong_password = with("PASSWORD_FILE", &file("wrong-password", "not it\n"));
    assert_says(
        &product.run_command(wrong_password),
        1,
        &["password", "wrong", "password_file"],
    );
    let other_key = scratch.join("other-key");
    xtask::sshd::make_key(&other_key).unwrap();
    let name = format!("[127.0.0.1]:{}", product.bed.sshd().port());
    let public = fs::read_to_string(other_key.with_extension("pub")).unwrap();
    let changed = with(
        "KNOWN_HOSTS",
        &file("other-known-hosts", &format!("{name} {public}")),
    );
    assert_says(
        &product.run_command(changed),
        1,
        &["CHANGED", "ssh-keygen -R"],
    );
    let unknown = with("KNOWN_HOSTS", &file("no-known-hosts", ""));
    assert_says(
        &product.run_command(unknown),
        1,
        &["not known", "ssh-keyscan"],
    );
    assert_says(
        &product.run_command(with("SSH_KEY", &other_key)),
        1,
        &["authorized_keys"],
    );
    let missing = with("SSH_KEY", &scratch.join("no-such-key"));
    assert_says(&product.run_command(missing), 2, &["no-such-key"]);
    let elsewhere = product
        .bed
        .sshd()
        .location(&scratch.join("backup-server/elsewhere"));
    assert_says(
        &product.run_command(with("LOCATION", Path::new(&elsewhere))),
        1,
        &["no repository", "init"],
    );
    before.assert(&product);

    // It vanishes in the middle of the upload and does not come back.
    let proxy = Proxy::start(product.bed.sshd().port()).unwrap();
    let mut command = product.command("--json backup 7");
    product.through(&proxy, &mut command).unwrap();
    proxy.set_bytes_per_second(Some(8 * MIB));
    let mut running = product.spawn(command);
    running.until("something was sent", || proxy.bytes_to_target() > 10 * MIB);
    proxy.refuse(true);
    proxy.cut();
    assert_says(&product.finish(running), 1, &["127.0.0.1", "port"]);
    assert_eq!(before.snapshots, product.repository_files("snapshots"));
    // The lock could not be taken away any more. Nobody holds it, which `unlock` sees.
    assert_eq!(product.repository_files("locks").len(), 1);
    let unlocked = product.run("--json unlock").document();
    assert_eq!(
        unlocked["removed"].as_array().unwrap().len(),
        1,
        "{unlocked}"
    );
    before.assert(&product);

    // It is not there at all.
    let mut command = product.command("--json backup 7");
    product.through(&proxy, &mut command).unwrap();
    assert_says(&product.run_command(command), 1, &["127.0.0.1"]);
    before.assert(&product);

    // It is cut off three times and comes back.
    proxy.refuse(false);
    let mut command = product.command("--json backup 7");
    product.through(&proxy, &mut command).unwrap();
    command.env("BACKUP__REPOSITORIES__MANUAL__RETRY_FOR", "1m");
    let mut running = product.spawn(command);
    let start = proxy.bytes_to_target();
    for cut in 1..=3 {
        running.until("more was sent", || {
            proxy.bytes_to_target() > start + cut * 10 * MIB
        });
        proxy.refuse(true);
        let refused = proxy.connections_accepted();
        proxy.cut();
        let cut = Instant::now();
        running.until("it tries again", || proxy.connections_accepted() > refused);
        assert!(
            cut.elapsed() < Duration::from_secs(15),
            "the cut was noticed late"
        );
        proxy.refuse(false);
    }
    product.finish(running).document();
    assert!(product.repository_files("locks").is_empty());
    assert_sound(&product);

    // Its disk is full.
    let small = scratch.join("backup-server/small");
    fs::create_dir(&small).unwrap();
    let mounted = Mount::tmpfs(&small, "size=20m").unwrap();
    let location = product.bed.sshd().location(&small.join("repository"));
    let there = |line: &str| {
        let mut command = product.command(line);
        command.env("BACKUP__REPOSITORIES__MANUAL__LOCATION", &location);
        product.run_command(command)
    };
    there("init").done();
    assert_says(&there("--json backup 7"), 1, &["full"]);
    for kind in ["snapshots", "locks"] {
        let left = fs::read_dir(small.join("repository").join(kind))
            .unwrap()
            .count();
        assert_eq!(left, 0, "{kind}");
    }
    mounted.remount("size=200m").unwrap();
    there("backup 7").done();
    let password = fs::read_to_string(product.bed.restic().unwrap().password_file()).unwrap();
    let restic = xtask::restic::Restic::new(small.join("repository"), &password).unwrap();
    restic.check_read_data().unwrap();
    assert_eq!(restic.snapshots().unwrap().len(), 1);
}

#[test]
fn a_backup_killed_at_any_moment_leaves_nothing_half_done() {
    let mut product = product();
    let customer = product.add_customer(7).unwrap();
    fill_database(&product, &customer);
    product.run("backup 7").done();
    let repository = product.bed.manual_repository();
    let restic = product.bed.restic().unwrap();
    let proxy = Proxy::start(product.bed.sshd().port()).unwrap();
    proxy.set_bytes_per_second(Some(12 * MIB));
    let count = |kind: &str| product.repository_files(kind).len();
    let packs = || {
        let directories = fs::read_dir(repository.join("data")).unwrap().flatten();
        directories
            .map(|entry| fs::read_dir(entry.path()).unwrap().count())
            .sum::<usize>()
    };
    let mut killed = 0;
    for round in 0..10 {
        add_noise(&customer, "noise", 36 * MIB);
        let snapshots = product.repository_files("snapshots");
        let (sent, packs_before, indexes) = (proxy.bytes_to_target(), packs(), count("index"));
        let moment: Box<dyn Fn() -> bool + '_> = match round {
            0 => Box::new(|| count("locks") > 0),
            1 => Box::new(|| proxy.bytes_to_target() > sent + MIB),
            2 => Box::new(|| packs() > packs_before),
            3 => Box::new(|| packs() > packs_before + 1),
            4 => Box::new(|| proxy.bytes_to_target() > sent + 20 * MIB),
            5 => Box::new(|| proxy.bytes_to_target() > sent + 32 * MIB),
            6 => Box::new(|| count("index") > indexes),
            7 => Box::new(|| count("index") > indexes + 1),
            8 => Box::new(|| count("snapshots") > snapshots.len()),
            _ => Box::new(|| proxy.bytes_to_target() > sent + 10 * MIB),
        };
        let mut command = product.command("backup 7");
        product.through(&proxy, &mut command).unwrap();
        command.env("RUST_LOG", "warn");
        let mut running = product.spawn(command);
        wait_until("the moment comes, or the end", || {
            moment() || !running.is_running()
        });
        running.signal(Signal::KILL).unwrap();
        killed += usize::from(product.finish(running).code.is_none());

        // What is there is whole, and the next one is not in the way of the lock that was left.
        let after = product.repository_files("snapshots");
        assert!(
            after.len() - snapshots.len() <= usize::from(round > 5),
            "round {round}"
        );
        product.run("--json list 7").document();
        if round % 4 == 3 {
            product.run("unlock").done();
            assert_sound(&product);
            product.run("--json backup 7 --type files").document();
        }
    }
    assert!(killed >= 7, "only {killed} were killed in time");
    assert!(count("locks") > 0);
    // A prune has to wait for somebody to say that they are gone.
    let busy = product.run("--json prune").refusal(1);
    assert!(busy.contains("unlock"), "{busy}");
    product.run("unlock").done();
    assert_eq!(count("locks"), 0);
    product.run("--json backup 7").document();
    let before = restic.snapshots().unwrap().len();
    product.run("prune").done();
    assert_sound(&product);
    assert_eq!(restic.snapshots().unwrap().len(), before);
    let newest = ids(&restic.snapshots().unwrap()).pop().unwrap();
    let target = product.bed.scratch().join("target");
    restic.restore(&newest, &target).unwrap();
    assert_same_tree(
        customer.site(),
        target.join(customer.site().strip_prefix("/").unwrap()),
    );
}

#[test]
fn a_signal_ends_a_backup_in_order() {
    let mut product = product();
    let customer = product.add_customer(7).unwrap();
    fill_database(&product, &customer);
    product.run("backup 7").done();
    add_noise(&customer, "noise", 40 * MIB);
    let before = Unchanged::of(&product);
    let proxy = Proxy::start(product.bed.sshd().port()).unwrap();
    let mariadb = product.bed.mariadb();

    // While the dump waits for the database.
    let lock = mariadb.lock_table("customer_7.z_last").unwrap();
    let mut running = product.spawn(product.command("--json backup 7"));
    running.until("the dump waits", || {
        !mariadb.waiting_for_table().unwrap().is_empty()
    });
    // That is how other backup programs ask whether the owner of a lock lives.
    running.signal(Signal::HUP).unwrap();
    let looked = product.bed.restic().unwrap();
    assert_eq!(looked.snapshots().unwrap().len(), 1);
    assert!(running.is_running());
    running.signal(Signal::TERM).unwrap();
    assert_says(&product.finish(running), 1, &["cancelled"]);
    drop(lock);
    before.assert(&product);

    // While files are sent.
    proxy.set_bytes_per_second(Some(8 * MIB));
    for signal in [Signal::TERM, Signal::INT] {
        // What was sent before would not be sent again.
        add_noise(&customer, "noise", 40 * MIB);
        let before = Unchanged::of(&product);
        let mut command = product.command("--json backup 7");
        product.through(&proxy, &mut command).unwrap();
        let sent = proxy.bytes_to_target();
        let mut running = product.spawn(command);
        running.until("something was sent", || {
            proxy.bytes_to_target() > sent + 5 * MIB
        });
        running.signal(signal).unwrap();
        assert_says(&product.finish(running), 1, &["cancelled"]);
        before.assert(&product);
    }

    // While the repository is away and would be waited for longer than anybody likes.
    let mut command = product.command("--json backup 7");
    product.through(&proxy, &mut command).unwrap();
    command.env("BACKUP__REPOSITORIES__MANUAL__RETRY_FOR", "5m");
    add_noise(&customer, "noise", 40 * MIB);
    let before = Unchanged::of(&product);
    let sent = proxy.bytes_to_target();
    let mut running = product.spawn(command);
    running.until("something was sent", || {
        proxy.bytes_to_target() > sent + 5 * MIB
    });
    proxy.refuse(true);
    proxy.cut();
    let refused = proxy.connections_accepted();
    running.until("it tries again", || proxy.connections_accepted() > refused);
    running.signal(Signal::TERM).unwrap();
    assert_says(&product.finish(running), 1, &["cancelled"]);
    product.run("unlock").done();
    before.assert(&product);

    assert_no_temporary_files_but_of_the_outage(&product);
    product.run("backup 7").done();
    assert_sound(&product);
}

/// Those whose connection was cut cannot be removed; there are no more of them than connections.
fn assert_no_temporary_files_but_of_the_outage(product: &Product) {
    let found = Command::new("find")
        .arg(product.bed.manual_repository())
        .args(["-name", ".tmp-*"])
        .output()
        .unwrap();
    let found = String::from_utf8(found.stdout).unwrap();
    assert!(found.lines().count() <= 2, "{found}");
}

#[test]
fn a_request_that_makes_no_sense_changes_nothing() {
    let mut product = product();
    let customer = product.add_customer(7).unwrap();
    fill_database(&product, &customer);
    product.add_customer(8).unwrap();
    fs::remove_dir_all(product.bed.customers_root().join("customer-8")).unwrap();
    product.run("backup 7").done();
    let before = Unchanged::of(&product);
    for (line, code, words) in [
        ("backup 9", 1, &["no customer 9"][..]),
        ("list 9", 1, &["no customer 9"]),
        ("backup 8", 1, &["customer-8"]),
        ("backup 8 --type files", 1, &["customer-8"]),
        ("restore 9 abcdef01 --yes", 1, &["no customer 9"]),
        ("restore 7 abcdef01 --yes", 1, &["abcdef01"]),
        ("restore 7 nonsense --yes", 2, &["hexadecimal", "`list`"]),
        (
            "restore 7 ../../etc/passwd --yes",
            2,
            &["hexadecimal", "`list`"],
        ),
        ("restore 7 latest --yes", 2, &["hexadecimal", "`list`"]),
    ] {
        let outcome = product.run(&format!("--json {line}"));
        assert_says(&outcome, code, words);
        assert_says(&product.run(line), code, words);
    }
    for line in [
        "backup 7 --type everything",
        "backup 07",
        "backup -- -7",
        "backup customer-7",
        "backup 4294967296",
        "backup",
        "backup 7 8",
        "restore 7 abcdef01",
    ] {
        let outcome = product.run(&format!("--json {line}"));
        assert_eq!(outcome.code, Some(2), "{line}");
        let document: Value = serde_json::from_str(&outcome.stdout).unwrap();
        assert_eq!(document["success"], false, "{line}");
        assert!(
            document["error"].as_str().unwrap().len() > 10,
            "{line}: {document}"
        );
    }
    let long = "x".repeat(501);
    for note in ["two\nlines", "a\u{7}bell", "\u{1b}[2Jscreen", &long] {
        let mut command = product.command("--json backup 7 --note");
        command.arg(note);
        assert_says(&product.run_command(command), 2, &["note", "500"]);
    }
    before.assert(&product);
    // A customer without a directory may still have a database.
    let report = product.run("--json backup 8 --type db").document();
    assert_eq!(
        (&report["backup_type"], &report["files"]),
        (&json!("db"), &json!(0))
    );
}

#[test]
fn backups_run_side_by_side_and_a_prune_waits_its_turn() {
    let mut product = product();
    let customers = [1, 12].map(|id| product.add_customer(id).unwrap());
    for customer in &customers {
        fill_database(&product, customer);
        add_noise(customer, "noise", 8 * MIB);
    }
    let mariadb = product.bed.mariadb();
    // Garbage, so that a prune has something to remove.
    for _ in 0..6 {
        add_noise(&customers[0], "noise", 8 * MIB);
        product.run("backup 1 --type files").done();
    }

    let locks =
        ["customer_1.z_last", "customer_12.z_last"].map(|table| mariadb.lock_table(table).unwrap());
    let mut running: Vec<Running> = [1, 12]
        .map(|id| product.spawn(product.command(&format!("--json backup {id}"))))
        .into();
    for one in &mut running {
        one.until("both dumps wait", || {
            mariadb.waiting_for_table().unwrap().len() == 2
        });
    }
    assert_eq!(product.repository_files("locks").len(), 2);
    let busy = product.run("--json prune");
    assert_says(&busy, 1, &["in use", "shared lock", "try again"]);
    let restic = product.bed.restic().unwrap();
    assert!(restic.run(["prune"]).is_err(), "restic honours our locks");
    assert!(restic.run(["unlock"]).is_ok());
    let unlocked = product.run("--json unlock").document();
    assert_eq!(unlocked["removed"], json!([]));
    assert_eq!(unlocked["left"].as_array().unwrap().len(), 2);
    assert_eq!(
        product.repository_files("locks").len(),
        2,
        "those in use stay"
    );
    drop(locks);
    let reports: Vec<Value> = running
        .into_iter()
        .map(|one| product.finish(one).document())
        .collect();
    assert!(product.repository_files("locks").is_empty());

    // The stock restic is at work: we wait as well.
    let mut backup = restic.command(["backup", "--stdin"]);
    let mut backup = backup
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    begin_to_read(&mut backup);
    assert_says(
        &product.run("--json prune"),
        1,
        &["in use", "shared lock", &backup.id().to_string()],
    );
    product.run("--json backup 1 --type db").document();
    backup
        .stdin
        .take()
        .unwrap()
        .write_all(b"something")
        .unwrap();
    assert!(backup.wait().unwrap().success());

    let pruned = product.run("--json prune").document();
    assert!(pruned["packs_removed"].as_u64().unwrap() > 0, "{pruned}");
    assert!(pruned["bytes_after"].as_u64() < pruned["bytes_before"].as_u64());
    assert_sound(&product);
    for (customer, report) in customers.iter().zip(&reports) {
        let target = product
            .bed
            .scratch()
            .join(format!("target-{}", customer.id));
        restic
            .restore(report["snapshot_id"].as_str().unwrap(), &target)
            .unwrap();
        let site = customer.site();
        assert_same_tree(&site, target.join(site.strip_prefix("/").unwrap()));
        let listed = product
            .run(&format!("--json list {}", customer.id))
            .document();
        assert!(
            ids(listed["manual"].as_array().unwrap())
                .iter()
                .any(|id| *id == report["snapshot_id"])
        );
    }
}

#[test]
fn the_database_is_reached_by_tcp_by_socket_and_behind_a_prefix() {
    let mut product = product();
    let customer = product.add_customer(7).unwrap();
    fill_database(&product, &customer);
    let dump = product.bed.dump(&customer.database).unwrap();
    let restic = product.bed.restic().unwrap();
    let file = product.bed.config_file();
    let tcp = fs::read_to_string(&file).unwrap();
    let endpoint = format!(
        "host = \"127.0.0.1\"\nport = {}\n",
        product.bed.mariadb().port()
    );
    assert!(tcp.contains(&endpoint));
    let socket = format!("socket = {:?}\n", product.bed.mariadb().socket());
    let prefix = "exec = [\"unshare\", \"--mount\", \"--ipc\", \"--uts\", \"--\"]\n";
    for (config, started) in [
        (tcp.clone(), "mariadb-dump --defaults-file="),
        (tcp.replace(&endpoint, &socket), "--protocol=socket"),
        (
            tcp.replace(&endpoint, &(endpoint.clone() + prefix)),
            "mariadb-dump --no-defaults --user=shophosting_app",
        ),
        (
            tcp.replace(&endpoint, &(socket.clone() + prefix)),
            "--protocol=socket",
        ),
    ] {
        fs::write(&file, config).unwrap();
        let lock = product
            .bed
            .mariadb()
            .lock_table("customer_7.z_last")
            .unwrap();
        let mut running = product.spawn(product.command("--json backup 7 --type db"));
        running.until("the dump waits", || {
            !product
                .bed
                .mariadb()
                .waiting_for_table()
                .unwrap()
                .is_empty()
        });
        let shown = arguments_of_all_processes().unwrap();
        assert!(shown.contains(started), "no `{started}`: {shown}");
        product.assert_no_secret("the arguments of the processes", &shown);
        drop(lock);
        let report = product.finish(running).document();
        let id = report["snapshot_id"].as_str().unwrap();
        let dumped = restic
            .dump(id, "/tmp/customer-backup-7/customer_7.sql")
            .unwrap();
        assert!(comparable(&dumped) == comparable(&dump));

        // What hangs behind a prefix ends in time as well, and so does what is asked to.
        let before = Unchanged::of(&product);
        let lock = product
            .bed
            .mariadb()
            .lock_table("customer_7.z_last")
            .unwrap();
        let mut command = product.command("--json backup 7 --type db");
        command.env("BACKUP__CUSTOMER_DATABASE__DUMP_TIMEOUT", "1s");
        assert_says(
            &product.run_command(command),
            1,
            &["dump of the database customer_7 failed"],
        );
        drop(lock);
        before.assert(&product);
    }
    // A prefix that is not there is a matter of the configuration.
    fs::write(
        &file,
        tcp.replace(
            &endpoint,
            &(endpoint.clone() + "exec = [\"no-such-program\"]\n"),
        ),
    )
    .unwrap();
    assert_says(&product.run("--json backup 7"), 2, &["no-such-program"]);
}

#[test]
fn damage_is_found_and_only_dead_locks_are_removed() {
    let mut product = product();
    let customer = product.add_customer(7).unwrap();
    fill_database(&product, &customer);
    product.run("backup 7").done();
    add_noise(&customer, "noise", MIB);
    product.run("backup 7").done();
    let sound = product.run("--json check --read-data").document();
    assert_eq!(sound["success"], true, "{sound}");
    assert_eq!(sound["repositories"][0]["report"]["snapshots"], 2);
    assert_eq!(sound["repositories"][0]["report"]["data_read"], true);
    assert!(
        product
            .run("check")
            .done()
            .contains("manual: 2 snapshots, no errors")
    );

    let find = |kind: &str| -> Vec<PathBuf> {
        let directory = product.bed.manual_repository().join(kind);
        let found = Command::new("find")
            .arg(directory)
            .args(["-type", "f"])
            .output()
            .unwrap();
        String::from_utf8(found.stdout)
            .unwrap()
            .lines()
            .map(PathBuf::from)
            .collect()
    };
    let largest = find("data")
        .into_iter()
        .max_by_key(|path| fs::metadata(path).unwrap().len())
        .unwrap();
    let damage = |path: &Path, change: &dyn Fn(&mut Vec<u8>)| {
        let good = fs::read(path).unwrap();
        let mut bad = good.clone();
        change(&mut bad);
        fs::write(path, bad).unwrap();
        good
    };
    // One bit in the middle shows when all is read.
    let good = damage(&largest, &|pack| pack[100_000] ^= 1);
    assert_eq!(product.run("check").code, Some(0));
    let outcome = product.run("--json check --read-data");
    assert_eq!(outcome.code, Some(1));
    let document: Value = serde_json::from_str(&outcome.stdout).unwrap();
    assert_eq!(document["success"], false);
    let errors = document["repositories"][0]["report"]["errors"]
        .as_array()
        .unwrap();
    assert!(!errors.is_empty() && outcome.messages().contains("error: manual: "));
    fs::write(&largest, &good).unwrap();

    // What is missing or short shows without that.
    for change in [
        &(|pack: &mut Vec<u8>| pack.truncate(1000)) as &dyn Fn(&mut Vec<u8>),
        &|_| (),
    ] {
        let good = damage(&largest, change);
        if good.len() == fs::read(&largest).unwrap().len() {
            fs::remove_file(&largest).unwrap();
        }
        let outcome = product.run("--json check");
        assert_eq!(outcome.code, Some(1), "{}", outcome.messages());
        fs::write(&largest, &good).unwrap();
    }
    // One damaged snapshot keeps nobody from his backups; a damaged index does, for what it knew would be stored and counted
    // as lost. With either, a prune would remove what is needed.
    for (kind, backup) in [("snapshots", 0), ("index", 1)] {
        let path = find(kind).remove(0);
        let good = damage(&path, &|file| file.truncate(20));
        let outcome = product.run("--json check");
        assert_eq!(outcome.code, Some(1), "{kind}: {}", outcome.messages());
        let outcome = product.run("--json backup 7");
        assert_eq!(outcome.code, Some(backup), "{kind}: {}", outcome.messages());
        let packs = find("data").len();
        let outcome = product.run("--json prune");
        assert_eq!(outcome.code, Some(1), "{kind}: {}", outcome.messages());
        assert_eq!(packs, find("data").len(), "{kind}");
        fs::write(&path, &good).unwrap();
    }
    assert_sound(&product);

    // Two locks of restic: the owner of one lives.
    let restic = product.bed.restic().unwrap();
    let mut held: Vec<_> = (0..2)
        .map(|_| {
            let mut backup = restic.command(["backup", "--stdin"]);
            let mut child = backup
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            begin_to_read(&mut child);
            child
        })
        .collect();
    let mut killed = held.remove(0);
    killed.kill().unwrap();
    killed.wait().unwrap();
    let unlocked = product.run("--json unlock").document();
    let removed = unlocked["removed"][0]["lock"].as_str().unwrap();
    assert!(
        removed.contains(&format!("process {} ", killed.id())),
        "{removed}"
    );
    assert_eq!(
        unlocked["left"][0]["lock"]["pid"],
        held[0].id(),
        "{unlocked}"
    );
    assert_eq!(product.repository_files("locks").len(), 1);
    held[0].kill().unwrap();
    held[0].wait().unwrap();
    assert!(
        product
            .run("unlock")
            .done()
            .contains("1 stale locks removed")
    );
    assert!(product.repository_files("locks").is_empty());
}

/// Until restic reads its input, which is more than a pipe holds: then it has looked for others' locks once more after it had written its own, and keeps that.
fn begin_to_read(restic: &mut Child) {
    let input = restic.stdin.as_mut().unwrap();
    input.write_all(&vec![b'x'; 1 << 20]).unwrap();
}

/// What runs with a repository for each customer, over SFTP.
struct EachHasOwn {
    product: Product,
    shops: PathBuf,
}

impl EachHasOwn {
    fn new(product: Product) -> Self {
        let shops = product.bed.scratch().join("backup-server/shops");
        Self { product, shops }
    }

    #[track_caller]
    fn run(&self, line: &str) -> Outcome {
        let place = self.product.bed.sshd().location(&self.shops);
        let mut command = self.product.command(line);
        command.env(
            "BACKUP__REPOSITORIES__MANUAL__LOCATION",
            format!("{place}/{{customer}}"),
        );
        self.product.run_command(command)
    }

    fn repository(&self, id: u32) -> PathBuf {
        self.shops.join(format!("customer-{id}"))
    }

    fn restic(&self, id: u32) -> Restic {
        Restic::new(self.repository(id), self.product.bed.manual_password()).unwrap()
    }

    /// The customers whose repositories are in a document, with what it says of each.
    fn of_customers(document: &Value, key: &str) -> Vec<(u64, Value)> {
        document["repositories"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|one| Some((one["customer"].as_u64()?, one[key].clone())))
            .collect()
    }
}

#[test]
fn every_customer_can_have_a_repository_of_his_own_in_nobody_elses_way() {
    let mut product = product();
    for id in [7, 8] {
        let customer = product.add_customer(id).unwrap();
        add_noise(&customer, "uploads.bin", 400_000);
    }
    let mut world = EachHasOwn::new(product);
    // A disk that is not mounted there would look like this.
    let place = world.shops.display().to_string();
    assert_says(
        &world.run("backup 7"),
        1,
        &[place.as_str(), "mount it", "`init`"],
    );
    assert!(!world.shops.exists());
    let created = world.run("--json init").document();
    let created = EachHasOwn::of_customers(&created, "created");
    assert_eq!(created, [(7, json!(true)), (8, json!(true))]);
    // Nobody runs `init` for a new shop.
    let nine = world.product.add_customer(9).unwrap();
    add_noise(&nine, "uploads.bin", 400_000);
    for id in [7, 8, 9] {
        let report = world.run(&format!("--json backup {id}")).document();
        let restic = world.restic(id);
        restic.check_read_data().unwrap();
        assert_eq!(
            ids(&restic.snapshots().unwrap()),
            [report["snapshot_id"].as_str().unwrap()]
        );
        let listed = world.run(&format!("--json list {id}")).document();
        assert_eq!(listed["manual"][0]["id"], report["snapshot_id"]);
    }
    let list = world.run("--json list 7").document();
    let backup = list["manual"][0]["id"].as_str().unwrap();
    let seven = world.product.bed.customers_root().join("customer-7");
    fs::remove_file(seven.join("wordpress/uploads.bin")).unwrap();
    world.run(&format!("restore 7 {backup} --yes")).done();
    assert!(seven.join("wordpress/uploads.bin").exists());

    let checked = world.run("--json check --read-data").document();
    assert_eq!(checked["success"], true);
    let checked = EachHasOwn::of_customers(&checked, "report");
    assert_eq!(
        checked.iter().map(|(id, _)| *id).collect::<Vec<_>>(),
        [7, 8, 9]
    );
    let pruned = world.run("--json prune").document();
    assert_eq!(pruned["customers"].as_array().unwrap().len(), 3);
    assert!(world.run("unlock").done().contains("0 stale locks"));
    world.run("sync").done();
    let checks = world.run("--json doctor").stdout;
    let checks: Value = serde_json::from_str(&checks).unwrap();
    let found = |name: &str| {
        let checks = checks["checks"].as_array().unwrap();
        let check = checks.iter().find(|check| check["name"] == name);
        check.unwrap_or_else(|| panic!("{name}: {checks:?}"))["status"].clone()
    };
    for id in [7, 8, 9] {
        assert_eq!(
            found(&format!("repositories.manual of customer {id}")),
            "ok"
        );
    }

    // Of three one is damaged and one is gone: the third one's is looked after, and the customer is told of his alone.
    fs::write(world.repository(8).join("config"), "nonsense").unwrap();
    let aside = world.shops.join("aside");
    fs::rename(world.repository(9), &aside).unwrap();
    for line in ["check", "unlock", "sync", "init"] {
        let outcome = world.run(line);
        assert_eq!(outcome.code, Some(1), "{line}: {}", outcome.messages());
        let said = outcome.messages();
        assert!(
            said.contains("customer 8 ")
                && said.contains("customer 9 ")
                && !said.contains("customer 7 "),
            "{line}: {said}"
        );
        assert!(!world.repository(9).exists(), "{line}");
    }
    assert!(world.run("check").stdout.contains("manual of customer 7: "));
    let outcome = world.run("prune");
    assert_eq!(outcome.code, Some(1));
    assert!(outcome.messages().contains("manual of customer 7: "));
    let list = world.run("list 7");
    assert_eq!((list.code, list.messages()), (Some(0), String::new()));
    world.run("backup 7").done();
    assert_says(
        &world.run("backup 9"),
        1,
        &["customer 9", "is gone", "init 9"],
    );
    assert!(!world.repository(9).exists());

    // Who is named gets a new one, and nobody else.
    assert_says(&world.run("init 5"), 2, &["no customer 5"]);
    world.run("init 9").done();
    assert_eq!(world.restic(9).snapshots().unwrap().len(), 0);
    world.run("backup 9").done();
    let list = world.run("--json list 9").document();
    assert_eq!(list["manual"].as_array().unwrap().len(), 1);
    assert_says(&world.product.run("init 9"), 2, &["share a repository"]);
}
