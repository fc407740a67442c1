//! The program is gone: what docs/operations.md tells an operator to type brings a shop back, with the stock restic alone.
//!
//! The commands are taken from the document. Only what the document itself tells its reader to change is changed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use xtask::testbed::PLATFORM_SCHEMA;
use xtask::tree::{TreeImage, build_nasty_tree};

use crate::world::World;

const SECTION: &str = "## When this program is gone: restore with plain restic";
/// What ends a line that the reader has to change.
const YOURS: &str = "   # yours";

/// The commands below each of these headings of the document, in this order, as one script.
fn script(headings: &[&str], values: &BTreeMap<&str, String>) -> String {
    let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/operations.md");
    let document = fs::read_to_string(document).unwrap();
    let (_, section) = document.split_once(SECTION).expect("the section is gone");
    let section = section.split("\n## ").next().unwrap();
    let mut script = String::new();
    for heading in headings {
        let (_, part) = section
            .split_once(&format!("\n### {heading}\n"))
            .unwrap_or_else(|| panic!("there is no heading {heading}"));
        let part = part.split("\n### ").next().unwrap();
        let blocks = part.split("\n```sh\n").skip(1);
        let before = script.len();
        for block in blocks {
            let (commands, _) = block.split_once("\n```").expect("a block has no end");
            for line in commands.lines() {
                script.push_str(&with_values(line, values));
                script.push('\n');
            }
        }
        assert!(script.len() > before, "nothing to type below {heading}");
    }
    script
}

/// `name=value   # yours` gets the value of whoever reads it; every other line is as it stands.
fn with_values(line: &str, values: &BTreeMap<&str, String>) -> String {
    let Some(assignment) = line.strip_suffix(YOURS) else {
        assert!(!line.contains("# yours"), "not understood: {line}");
        return line.to_owned();
    };
    let (left, _) = assignment.split_once('=').unwrap();
    let name = left.strip_prefix("export ").unwrap_or(left);
    let value = values.get(name).unwrap_or_else(|| panic!("no {name}"));
    format!("{left}='{value}'")
}

/// A machine on which the program never was: restic, the clients of the database, and root's own settings for `ssh` and `mariadb`.
struct Machine {
    /// The one place to find programs in.
    programs: PathBuf,
    home: PathBuf,
}

impl Machine {
    fn new(world: &World) -> Self {
        let home = world.bed.scratch().join("another-machine");
        let programs = home.join("programs");
        fs::create_dir_all(&programs).unwrap();
        // What root's `~/.ssh/config` would say: which key, which host key; and where the database server is.
        let sshd = world.bed.sshd();
        let ssh = format!(
            "exec /usr/bin/ssh -F none -o BatchMode=yes -o IdentitiesOnly=yes -o UserKnownHostsFile={} -i {} \"$@\"",
            sshd.known_hosts().display(),
            sshd.client_key().display(),
        );
        let socket = world.bed.mariadb().socket();
        let mariadb = format!("exec /usr/bin/mariadb \"$@\" --socket={}", socket.display());
        for (name, line) in [("ssh", ssh), ("mariadb", mariadb)] {
            xtask::script::write(&programs.join(name), &line).unwrap();
        }
        // On Debian root logs in to the database server by its socket.
        let password = world.bed.mariadb().root_password();
        world.sql(&format!(
            "ALTER USER root@localhost IDENTIFIED VIA mysql_native_password USING PASSWORD('{password}') OR unix_socket"
        ));
        Self { programs, home }
    }

    /// Type it; what was printed.
    #[track_caller]
    fn type_in(&self, script: &str) -> String {
        let output = Command::new("sh")
            .args(["-eu", "-c"])
            .arg(script)
            .env_clear()
            .env("PATH", format!("{}:/usr/bin:/bin", self.programs.display()))
            .env("HOME", &self.home)
            .output()
            .unwrap();
        let stdout = String::from_utf8(output.stdout).unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{script}\n{stdout}\n{stderr}");
        stdout
    }
}

#[test]
fn with_the_words_of_the_document_plain_restic_brings_files_and_tables_back() {
    let world = World::new(&[7, 70]);
    world.run("migrate").good();
    let customer = world.customer(7);
    build_nasty_tree(&customer.site().join("nasty")).unwrap();
    let image = || TreeImage::of(&customer.site()).unwrap();
    let compose = customer.directory.join("docker-compose.yml");
    let composed = fs::read(&compose).unwrap();
    let tables = || world.bed.dump(&customer.database).unwrap();

    // Two states, one in each repository; and backups of another whose number begins alike.
    let manual = (image(), tables(), world.back_up("7"));
    let of_another = world.back_up("70");
    fs::write(customer.site().join("marker"), "a day later").unwrap();
    world.sql_as(
        customer,
        "DROP EVENT tidy; DELETE FROM orders WHERE id > 40; CREATE TABLE later (id INT)",
    );
    let daily = world.bed.back_up_daily("2026-01-31").unwrap();
    let daily = (image(), tables(), daily);
    let platform = world.bed.dump(PLATFORM_SCHEMA).unwrap();
    let neighbour = |world: &World| {
        (
            TreeImage::of(&world.customer(70).directory).unwrap(),
            world.bed.dump("customer_70").unwrap(),
        )
    };
    let neighbours = neighbour(&world);

    // The password of each repository is all that was kept.
    let kept = |name: &str| {
        let kept = world.bed.scratch().join(format!("kept-{name}"));
        let file = format!("{name}-repository-password");
        fs::copy(world.bed.scratch().join(file), &kept).unwrap();
        kept.display().to_string()
    };
    let machine = Machine::new(&world);
    let target = machine.home.join("restored");
    let mut values = BTreeMap::from([
        ("RESTIC_REPOSITORY", String::new()),
        ("RESTIC_PASSWORD_FILE", String::new()),
        ("snapshot", String::new()),
        ("customer", "7".into()),
        ("database", customer.database.clone()),
        ("root", world.bed.customers_root().display().to_string()),
        ("target", target.display().to_string()),
        ("dumps", world.bed.daily_dumps().display().to_string()),
        ("db_user", customer.user.clone()),
        ("db_password", customer.password.clone()),
    ]);
    let over_sftp = world.bed.sshd().location(&world.bed.manual_repository());
    let in_directory = world.bed.daily_repository().display().to_string();
    for (heading, name, repository, (image_then, tables_then, snapshot)) in [
        ("The customer's own backups", "manual", over_sftp, manual),
        ("A daily backup", "daily", in_directory, daily),
    ] {
        fs::remove_dir_all(&customer.directory).unwrap();
        world.sql("DROP DATABASE customer_7; DROP USER customer_7@'%'");
        let _ = fs::remove_dir_all(&target);

        values.insert("RESTIC_REPOSITORY", repository);
        values.insert("RESTIC_PASSWORD_FILE", kept(name));
        values.insert("snapshot", snapshot[..8].to_owned());
        let headings = [
            "The values",
            heading,
            "Put the files in their place",
            "Import the database",
        ];
        let printed = machine.type_in(&script(&headings, &values));

        assert!(printed.contains(&snapshot[..8]), "{printed}");
        assert!(!printed.contains(&of_another[..8]), "{printed}");
        let differences = image_then.differences(&image());
        assert!(differences.is_empty(), "{name}: {differences:#?}");
        assert_eq!(fs::read(&compose).unwrap(), composed, "{name}");
        // The platform's script dumps no events; at its time there were none.
        assert!(tables() == tables_then, "tables are not what they were");
        if name == "daily" {
            world.sql(&format!("DROP DATABASE {PLATFORM_SCHEMA}"));
            machine.type_in(&script(
                &["The values", "The platform's own database"],
                &values,
            ));
            assert!(world.bed.dump(PLATFORM_SCHEMA).unwrap() == platform);
        }
        assert!(neighbour(&world) == neighbours, "another customer changed");
    }

    // The program is back.
    world.sql(&format!(
        "USE {PLATFORM_SCHEMA}; DROP TABLE customer_backup_jobs, customer_backups, backup_snapshots, backup_repositories,
             backup_repository_users, backup_sessions, backup_audit, backup_migrations"
    ));
    world.run("migrate").good();
    world.run("sync").good();
    let [listed] = &world.listed(7, "manual")[..] else {
        panic!("the backup is not in the list");
    };
    assert_eq!(world.listed(7, "daily").len(), 1);
    world.run(&format!("restore 7 {listed} --yes")).good();
    assert_eq!(
        fs::read(customer.site().join("marker")).unwrap(),
        b"shop 7\n"
    );
}

/// What docs/operations.md says of a damaged repository.
#[test]
fn a_damaged_repository_is_repaired_with_restic_and_the_next_backup() {
    let world = World::new(&[7]);
    let customer = world.customer(7);
    let before = world.evidence();
    let old = world.back_up("7");
    let repository = world.bed.manual_repository();
    let restic = world.bed.restic().unwrap();
    let files = |directory: &str| {
        let mut found = walk(&repository.join(directory));
        found.sort_by_key(|path| fs::metadata(path).unwrap().len());
        found
    };
    let check = |status: i32| {
        let outcome = world.run("check --read-data");
        assert_eq!(outcome.status, Some(status), "{outcome:?}");
    };
    check(0);

    // A pack: what needs it cannot be restored, and nothing of the site changes.
    let pack = files("data").pop().unwrap();
    let mut bytes = fs::read(&pack).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&pack, bytes).unwrap();
    check(1);
    fs::remove_dir_all(customer.site().join("wp-content")).unwrap();
    let wrecked = world.evidence();
    let error = world.run(&format!("restore 7 {old} --yes")).failed(1);
    assert!(!error.is_empty());
    world.assert_unchanged(&wrecked);
    // The site as it was is there to fill the gap.
    for number in 0..5 {
        let uploads = customer.site().join("wp-content/uploads");
        fs::create_dir_all(&uploads).unwrap();
        let picture = format!("7-{number} ").repeat(30_000);
        fs::write(uploads.join(format!("{number}.jpg")), picture).unwrap();
    }
    fs::remove_file(&pack).unwrap();
    restic.run(["rebuild-index"]).unwrap();
    check(1);
    world.back_up("7");
    check(0);
    restic.check_read_data().unwrap();

    // An index file: nothing is stored while it is damaged, and nothing is lost.
    let index = files("index").pop().unwrap();
    fs::write(&index, "damaged").unwrap();
    world.run("backup 7").failed(1);
    fs::remove_file(&index).unwrap();
    restic.run(["rebuild-index"]).unwrap();
    check(0);

    // `config`: no new one is made beside backups; a copy is all that it takes.
    let config = fs::read(repository.join("config")).unwrap();
    fs::remove_file(repository.join("config")).unwrap();
    let error = world.run("init").failed(1);
    assert!(error.contains("manual"), "{error}");
    fs::write(repository.join("config"), config).unwrap();

    // The old backup is whole again.
    world.run(&format!("restore 7 {old} --yes")).good();
    before.assert_same_but(&world.evidence(), &[]);
}

fn walk(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(walk(&path));
        } else {
            found.push(path);
        }
    }
    found
}
