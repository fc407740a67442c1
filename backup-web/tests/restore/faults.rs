//! Whatever fails beneath a restore, and at whichever step: the site ends wholly as it was or wholly as the backup has it, and its owner is told so plainly.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::Signal;
use serde_json::Value;
use xtask::mariadb::MariaDb;
use xtask::mount::Mount;
use xtask::proxy::Proxy;
use xtask::testbed::TestBed;

use crate::crash::{Shop, State};
use crate::world::{Gate, World, eventually, half_way, names, signal};

const MIB: u64 = 1 << 20;

fn line(shop: &Shop, rest: &str) -> String {
    format!("restore 1 {} {rest} --yes", shop.backup)
}

/// A command that gives up an outage soon.
fn impatient(shop: &Shop, line: &str) -> Command {
    let mut command = shop.world.command(line);
    command
        .env("BACKUP__REPOSITORIES__MANUAL__RETRY_FOR", "1s")
        .env("BACKUP__REPOSITORIES__DAILY__RETRY_FOR", "1s")
        .env("BACKUP__SITE__HEALTH_TIMEOUT", "1s");
    command
}

/// What the customer is told of the newest job, which failed; nothing of the machines is in it.
#[track_caller]
fn told(shop: &Shop, failure: &str) -> String {
    let job = shop.newest_job();
    assert_eq!(
        (&job["status"], &job["failure"]),
        (&"failed".into(), &failure.into()),
        "{job}"
    );
    let sentence = job["error_message"].as_str().unwrap();
    let is_plain = |c: char| c.is_ascii_alphabetic() || " .,'".contains(c);
    assert!(sentence.chars().all(is_plain), "{sentence}");
    sentence.to_owned()
}

/// The site is as it was, its owner is told so, and nothing is left.
#[track_caller]
fn assert_undone(shop: &Shop, reason: &str) {
    assert_eq!(shop.state(), State::Old);
    let sentence = told(shop, "error");
    assert!(
        sentence.starts_with(reason) && sentence.ends_with(" Your shop is as it was before."),
        "{sentence}"
    );
    shop.assert_nothing_left();
}

/// A program in place of `site.stop` or `site.start`.
fn hook(world: &World, command: &mut Command, action: &str, script: &str) {
    let path = world
        .bed
        .scratch()
        .join(format!("{action}-{:08x}", rand::random::<u32>()));
    xtask::script::write(&path, script).unwrap();
    let array = format!("[{:?}]", path.display().to_string());
    command.env(format!("BACKUP__SITE__{}", action.to_uppercase()), array);
}

/// The first stop, or start, of a site, held up until it is let go.
pub struct Held {
    here: PathBuf,
    go: PathBuf,
}

impl Held {
    pub fn at(world: &World, command: &mut Command, action: &str) -> Self {
        let name = |what: &str| {
            let name = format!("{what}-{:08x}", rand::random::<u32>());
            world.bed.scratch().join(name)
        };
        let held = Self {
            here: name("here"),
            go: name("go"),
        };
        let script = format!(
            ": > '{}'\nwhile [ ! -e '{}' ]; do sleep 0.02; done",
            held.here.display(),
            held.go.display()
        );
        hook(world, command, action, &script);
        held
    }

    pub fn wait(&self) {
        eventually("it comes to the site's containers", || self.has_come());
    }

    pub fn has_come(&self) -> bool {
        self.here.exists()
    }

    pub fn let_go(&self) {
        fs::write(&self.go, "").unwrap();
    }
}

fn journals(shop: &Shop) -> PathBuf {
    let directory = shop.world.bed.scratch().join("state/restores");
    fs::create_dir_all(&directory).unwrap();
    directory
}

#[test]
fn a_repository_that_is_gone_or_cut_before_the_exchange_leaves_the_site_as_it_was() {
    let mut shop = Shop::new();
    // Gone before anything is found.
    shop.world.bed.sshd_mut().stop();
    let mut command = impatient(&shop, &line(&shop, ""));
    shop.world.run_command(&mut command).failed(1);
    shop.world.bed.sshd_mut().restart().unwrap();
    assert_eq!(shop.state(), State::Old);
    shop.assert_nothing_left();

    // More of both kinds than is read at once.
    let customer = shop.world.customer(1);
    let mut bytes = vec![0; 32 << 20];
    rand::fill(&mut bytes[..]);
    fs::write(customer.site().join("large"), &bytes).unwrap();
    shop.world.sql_as(
        customer,
        "CREATE TABLE large (id INT PRIMARY KEY, noise BLOB); INSERT INTO large SELECT seq, RANDOM_BYTES(1000) FROM seq_1_to_32000",
    );
    let large = shop.world.back_up("1");
    shop.reset();
    let is_staged = || {
        let mut staged = shop.world.staging_directories().into_iter();
        staged.any(|staging| staging.join("files/wordpress/large").exists())
    };
    let is_imported = || {
        let tables = "SELECT COUNT(*) FROM information_schema.TABLES WHERE TABLE_SCHEMA LIKE 'customer\\_1\\_\\_re%' AND TABLE_NAME = 'large'";
        shop.world.sql(tables) != "0\n"
    };
    let moments: [(&str, &dyn Fn() -> bool); 2] = [("files", &is_staged), ("db", &is_imported)];
    for (part, moment) in moments {
        for online in ["", "--online"] {
            let proxy = Proxy::start(shop.world.bed.sshd().port()).unwrap();
            proxy.set_bytes_per_second(Some(2 * MIB));
            let mut command = impatient(
                &shop,
                &format!("restore 1 {large} --type {part} {online} --yes"),
            );
            shop.world.bed.through(&proxy, &mut command).unwrap();
            let child = command.spawn().unwrap();
            eventually("the restore is in the middle of it", moment);
            proxy.refuse(true);
            proxy.cut();
            shop.world.finish(child).failed(1);
            assert_undone(
                &shop,
                "The database of your shop or the backup system could not be reached.",
            );
        }
    }
}

#[test]
fn a_repository_that_is_gone_when_what_was_replaced_is_to_be_kept_delays_only_that() {
    let mut shop = Shop::new();
    for by_worker in [false, true] {
        let mut command = impatient(&shop, &line(&shop, ""));
        let held = Held::at(&shop.world, &mut command, "start");
        let child = command.spawn().unwrap();
        held.wait();
        shop.world.bed.sshd_mut().stop();
        held.let_go();
        let document = shop.world.finish(child).good();
        let warnings = document["warnings"].to_string();
        assert!(warnings.contains("not put away yet"), "{warnings}");
        assert!(!shop.world.in_maintenance(shop.world.customer(1)));
        assert_eq!(shop.newest_job()["status"], "completed");
        assert_eq!(
            shop.world.staging_directories().len(),
            1,
            "it is still there"
        );
        assert_ne!(shop.world.schemas_beside(), [] as [&str; 0]);

        shop.world.bed.sshd_mut().restart().unwrap();
        shop.world.run("unlock").good();
        if by_worker {
            let worker = shop.world.command("worker").spawn().unwrap();
            eventually("the worker keeps it", || shop.journals().is_empty());
            signal(&worker, Signal::TERM);
            shop.world.finish(worker);
        }
        assert_eq!(shop.recover(), State::New);
        let kept = shop.newest_job()["kept_snapshot"].clone();
        assert_eq!(shop.world.listed(1, "pre_restore")[0], kept);
        shop.reset();
    }
}

#[test]
fn a_repository_that_is_cut_while_what_was_replaced_is_being_kept_delays_only_that() {
    let shop = Shop::new();
    // More than is sent at once.
    let mut bytes = vec![0; 32 << 20];
    rand::fill(&mut bytes[..]);
    fs::write(shop.world.customer(1).site().join("large"), &bytes).unwrap();
    let large = shop.world.evidence();
    let data = shop.world.bed.manual_repository().join("data");
    let proxy = Proxy::start(shop.world.bed.sshd().port()).unwrap();
    let mut command = impatient(&shop, &line(&shop, ""));
    shop.world.bed.through(&proxy, &mut command).unwrap();
    let held = Held::at(&shop.world, &mut command, "start");
    let child = command.spawn().unwrap();
    held.wait();
    proxy.set_bytes_per_second(Some(4 * MIB));
    let before = bytes_below(&data);
    held.let_go();
    eventually("some of it is stored", || {
        bytes_below(&data) > before + 4 * MIB
    });
    proxy.refuse(true);
    proxy.cut();
    let document = shop.world.finish(child).good();
    let warnings = document["warnings"].to_string();
    assert!(warnings.contains("not put away yet"), "{warnings}");
    assert!(!shop.world.in_maintenance(shop.world.customer(1)));
    assert_eq!(shop.newest_job()["status"], "completed");
    assert_eq!(shop.world.staging_directories().len(), 1);
    assert_ne!(shop.world.schemas_beside(), [] as [&str; 0]);
    assert_eq!(
        shop.world.listed(1, "pre_restore").len(),
        1,
        "of the first restore"
    );

    assert_eq!(shop.recover(), State::New);
    let kept = shop.newest_job()["kept_snapshot"].clone();
    assert_eq!(shop.world.listed(1, "pre_restore")[0], kept);
    // All of it: back it comes.
    let kept = kept.as_str().unwrap();
    let line = format!("restore 1 {kept} --source pre-restore --yes");
    shop.world.run(&line).good();
    let changes = large.changes(&shop.world.evidence());
    assert!(changes.is_empty(), "{}", changes.join("\n"));
    shop.assert_sound();
}

fn bytes_below(directory: &Path) -> u64 {
    let sizes = names(directory).into_iter().map(|name| {
        // A temporary one may have got its name meanwhile.
        match name.symlink_metadata() {
            Ok(found) if found.is_dir() => bytes_below(&name),
            Ok(found) => found.len(),
            Err(_) => 0,
        }
    });
    sizes.sum()
}

#[test]
fn a_database_whose_disk_fills_up_leaves_the_site_as_it_was() {
    let disk = tempfile::tempdir().unwrap();
    let mount = Mount::tmpfs(disk.path(), "size=400m,mode=755").unwrap();
    let mariadb = MariaDb::start_in(disk.path(), &[]).unwrap();
    let shop = Shop::in_world(World::on(TestBed::start_with(mariadb).unwrap(), &[1]));
    let customer = shop.world.customer(1);
    shop.world.sql_as(
        customer,
        "CREATE TABLE large (id INT PRIMARY KEY, noise BLOB); INSERT INTO large SELECT seq, RANDOM_BYTES(1000) FROM seq_1_to_20000",
    );
    let large = shop.world.back_up("1");
    let daily = shop
        .world
        .daily_with(customer, |dump| half_way(&dump, Gate::STATEMENT));
    shop.reset();
    let filler = disk.path().join("filler");
    let fill = |left: u64| {
        let found = rustix::fs::statvfs(disk.path()).unwrap();
        let file = fs::File::create(&filler).unwrap();
        let most = found.f_bavail * found.f_frsize - left * MIB;
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, most).unwrap();
    };
    let empty = || fs::remove_file(&filler).unwrap();
    for online in ["", "--online"] {
        // Before it begins: it does not.
        fill(12);
        let line = format!("restore 1 {large} {online} --yes");
        let error = shop.world.run(&line).failed(1);
        assert!(error.contains("make room"), "{error}");
        assert!(
            error.contains(&disk.path().display().to_string()),
            "{error}"
        );
        assert_undone(&shop, "There is not enough space left.");
        empty();
        // While it is imported.
        let gate = Gate::close(&shop.world);
        let line = format!("restore 1 {daily} --source daily {online} --yes");
        let child = shop.world.command(&line).spawn().unwrap();
        gate.wait_for_import(&shop.world);
        fill(12);
        drop(gate);
        let error = shop.world.finish(child).failed(1);
        assert!(!error.contains("make room"), "{error}");
        assert_undone(&shop, "There is not enough space left.");
        empty();
    }
    shop.restore("").good();
    assert_eq!(shop.state(), State::New);
    // Two digits for each byte: there is no room for so many bytes as the dump has, but for the tables.
    fill(38);
    let document = shop.world.run(&format!("restore 1 {large} --yes")).good();
    let warnings = document["warnings"].to_string();
    assert!(warnings.contains("if that is too little"), "{warnings}");
    drop(shop);
    drop(mount);
}

/// The program of this command as it is run by a unit that leaves it few of root's rights.
fn bounded(command: &Command, without: &str) -> Command {
    let mut bounded = Command::new("setpriv");
    bounded
        .arg(format!("--bounding-set={without}"))
        .arg(command.get_program())
        .args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => bounded.env(name, value),
            None => bounded.env_remove(name),
        };
    }
    bounded.stdout(Stdio::piped()).stderr(Stdio::piped());
    bounded
}

#[test]
fn extended_attributes_that_a_worker_may_not_set_are_left_out_with_one_warning() {
    // To bind to low ports, for whoever runs it.
    const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let world = World::new(&[1]);
    let site = world.customer(1).site();
    let set = |file: &str, name: &str, value: &[u8]| {
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(site.join(file), name, value, flags).unwrap();
    };
    let has = |file: &str, name: &str| {
        let mut value = [0; 100];
        rustix::fs::getxattr(site.join(file), name, &mut value[..]).is_ok()
    };
    set("marker", "user.note", b"kept");
    set("marker", "trusted.note", b"x");
    set("marker", "security.label", b"x");
    set("wp-content", "trusted.overlay.opaque", b"y");
    let plain = world.back_up("1");
    for online in ["", "--online"] {
        let line = format!("restore 1 {plain} {online} --yes");
        let mut command = bounded(&world.command(&line), "-sys_admin,-setfcap");
        let document = world.run_command(&mut command).good();
        let warnings = document["warnings"].as_array().unwrap();
        let told = warnings.iter().filter_map(Value::as_str);
        let told: Vec<_> = told.filter(|one| one.contains("extended")).collect();
        assert!(
            matches!(told[..], [one] if one.starts_with("3 extended attributes")),
            "{warnings:?}"
        );
        assert!(has("marker", "user.note"));
        assert!(!has("marker", "trusted.note") && !has("marker", "security.label"));
        assert!(!has("wp-content", "trusted.overlay.opaque"));
    }
    // With the right to, they come back.
    let document = world.run(&format!("restore 1 {plain} --yes")).good();
    assert_eq!(document["warnings"].to_string(), "[]");
    assert!(has("marker", "trusted.note") && has("wp-content", "trusted.overlay.opaque"));

    // What gives power is not among them.
    set("marker", "security.capability", &CAPABILITY);
    let powerful = world.back_up("1");
    let line = format!("restore 1 {powerful} --yes");
    let mut command = bounded(&world.command(&line), "-sys_admin,-setfcap");
    let warnings = world.run_command(&mut command).good()["warnings"].to_string();
    assert!(warnings.contains("restore.setuid"), "{warnings}");
    assert!(!has("marker", "security.capability"));
    let mut allowed = world.command(&line);
    allowed.env("BACKUP__RESTORE__SETUID", "true");
    let mut command = bounded(&allowed, "-sys_admin,-setfcap");
    let error = world.run_command(&mut command).failed(1);
    assert!(error.contains("security.capability"), "{error}");
    world.run_command(&mut allowed).good();
    assert!(has("marker", "security.capability"));
    world.assert_nothing_left();
}

/// A restore at whose exchange of tables the database server is killed.
fn kill_database_at_exchange(shop: &mut Shop, command: &mut Command) -> Child {
    let held = Held::at(&shop.world, command, "stop");
    let child = command.spawn().unwrap();
    held.wait();
    let mariadb = shop.world.bed.mariadb();
    let lock = mariadb.lock_table("customer_1.orders").unwrap();
    held.let_go();
    eventually("the tables are about to be exchanged", || {
        !mariadb.waiting_for_table().unwrap().is_empty()
    });
    mariadb.signal_kill();
    drop(lock);
    shop.world.bed.mariadb_mut().kill();
    child
}

#[test]
fn a_database_server_killed_around_the_exchange_leaves_one_state_or_the_other() {
    // One that keeps what it says that it keeps, as the others of the tests need not.
    let mariadb = MariaDb::start_with(&["--innodb-flush-log-at-trx-commit=1"]).unwrap();
    let bed = TestBed::start_with(mariadb).unwrap();
    let mut shop = Shop::in_world(World::on(bed, &[1]));
    for online in ["", "--online"] {
        // Back soon.
        let mut command = shop.world.command(&line(&shop, online));
        let child = kill_database_at_exchange(&mut shop, &mut command);
        shop.world.bed.mariadb_mut().restart().unwrap();
        shop.world.finish(child).failed(1);
        assert_undone(&shop, "Something went wrong on our side.");

        // Before it: some of what was imported may be lost.
        let mut command = shop.world.command(&line(&shop, online));
        let held = Held::at(&shop.world, &mut command, "stop");
        let child = command.spawn().unwrap();
        held.wait();
        shop.world.bed.mariadb_mut().kill();
        shop.world.bed.mariadb_mut().restart().unwrap();
        held.let_go();
        let error = shop.world.finish(child).failed(1);
        assert!(error.contains("was restarted since"), "{error}");
        assert_undone(&shop, "The database of your shop");

        // After it nothing is lost.
        let mut command = shop.world.command(&line(&shop, online));
        let held = Held::at(&shop.world, &mut command, "start");
        let child = command.spawn().unwrap();
        held.wait();
        shop.world.bed.mariadb_mut().kill();
        held.let_go();
        eventually("the site is opened without the database", || {
            !shop.world.in_maintenance(shop.world.customer(1))
        });
        shop.world.bed.mariadb_mut().restart().unwrap();
        shop.world.finish(child).good();
        assert_eq!(shop.recover(), State::New);
        shop.reset();
    }
}

#[test]
fn a_database_server_that_stays_away_after_it_died_at_the_exchange_leaves_the_site_closed_until_it_is_back()
 {
    let mut shop = Shop::new();
    let mut command = impatient(&shop, &line(&shop, ""));
    let child = kill_database_at_exchange(&mut shop, &mut command);
    let error = shop.world.finish(child).failed(1);
    assert!(error.contains("run `recover`"), "{error}");
    assert!(shop.world.in_maintenance(shop.world.customer(1)));
    assert_eq!(shop.world.staging_directories().len(), 1);
    shop.world.bed.mariadb_mut().restart().unwrap();
    assert_eq!(shop.recover_failed(), State::Old);
}

#[test]
fn an_import_that_fails_at_its_last_statement_leaves_the_site_as_it_was() {
    let shop = Shop::new();
    let customer = shop.world.customer(1);
    let daily = shop.world.daily_with(customer, |dump| {
        let at = dump.rfind("-- Dump completed").unwrap();
        format!(
            "{}INSERT INTO no_such_table VALUES (1);\n{}",
            &dump[..at],
            &dump[at..]
        )
    });
    for online in ["", "--online"] {
        let line = format!("restore 1 {daily} --source daily {online} --yes");
        let error = shop.world.run(&line).failed(1);
        assert!(error.contains("no_such_table"), "{error}");
        assert_undone(&shop, "Something went wrong on our side.");
    }
}

#[test]
fn a_stop_or_start_that_hangs_is_ended_and_the_site_is_as_it_was() {
    let shop = Shop::new();
    for online in ["", "--online"] {
        for (action, failure) in [("stop", "timeout"), ("start", "rolled_back")] {
            let hangs = shop.world.bed.scratch().join("hangs");
            fs::write(&hangs, "").unwrap();
            let mut command = impatient(&shop, &line(&shop, online));
            command.env("BACKUP__SITE__COMMAND_TIMEOUT", "1s");
            let script = format!(
                "if [ -e '{0}' ]; then rm '{0}'; exec sleep 1000; fi",
                hangs.display()
            );
            hook(&shop.world, &mut command, action, &script);
            let error = shop.world.run_command(&mut command).failed(1);
            assert!(error.contains("longer than 1 s"), "{error}");
            assert_eq!(shop.state(), State::Old);
            let sentence = told(&shop, failure);
            assert!(
                sentence.ends_with("Your shop is as it was before."),
                "{sentence}"
            );
            shop.assert_nothing_left();
        }
    }
}

/// A restore whose site comes up neither with what was restored nor with what was there; it does as soon as the file that this gives is gone.
fn get_stuck(shop: &Shop) -> PathBuf {
    let broken = shop.world.bed.scratch().join("broken");
    fs::write(&broken, "").unwrap();
    let mut command = impatient(shop, &line(shop, ""));
    set_breakable(shop, &mut command);
    let error = shop.world.run_command(&mut command).failed(1);
    let [journal] = shop.journals().try_into().unwrap();
    for word in ["recover", "docker is gone", &journal.display().to_string()] {
        assert!(error.contains(word), "{word}: {error}");
    }
    assert_eq!(
        told(shop, "stuck"),
        "Something went wrong on our side and our team has been told. Please do not change anything in the meantime."
    );
    assert!(shop.world.in_maintenance(shop.world.customer(1)));
    broken
}

fn set_breakable(shop: &Shop, command: &mut Command) {
    let broken = shop.world.bed.scratch().join("broken");
    let script = format!(
        "if [ -e '{}' ]; then echo 'docker is gone' >&2; exit 1; fi",
        broken.display()
    );
    hook(&shop.world, command, "start", &script);
    // The first stop is good: there is something to start.
    let script = format!(
        "if [ -e '{0}' ] && [ -e '{0}-stopped' ]; then echo 'docker is gone' >&2; exit 1; fi\n: > '{0}-stopped'",
        broken.display()
    );
    hook(&shop.world, command, "stop", &script);
}

#[test]
fn a_restore_that_gets_stuck_stays_closed_and_names_the_way_out_which_leads_out() {
    let shop = Shop::new();
    let broken = get_stuck(&shop);
    // Nothing goes past it, and trying again changes nothing.
    let mut again = impatient(&shop, "recover");
    set_breakable(&shop, &mut again);
    let ended = shop.world.run_command(&mut again);
    assert_eq!(ended.status, Some(1));
    let error = ended.document["restores"][0]["error"].to_string();
    assert!(error.contains("docker is gone"), "{error}");
    for line in [&line(&shop, ""), &line(&shop, "--online"), "backup 1"] {
        let mut command = impatient(&shop, line);
        set_breakable(&shop, &mut command);
        let error = shop.world.run_command(&mut command).failed(1);
        assert!(error.contains("recover"), "{line}: {error}");
    }
    assert!(shop.world.in_maintenance(shop.world.customer(1)));

    fs::remove_file(&broken).unwrap();
    let document = shop.world.run("recover").good();
    assert_eq!(document["restores"][0]["recovery"], "undone");
    assert_eq!(shop.state(), State::Old);
    assert_eq!(told(&shop, "rolled_back"), ROLLED_BACK);
    shop.assert_nothing_left();
    shop.restore("").good();
    assert_eq!(shop.state(), State::New);
}

#[test]
fn a_restore_that_took_too_long_and_then_got_stuck_is_told_as_that() {
    let shop = Shop::new();
    let broken = shop.world.bed.scratch().join("broken");
    fs::write(&broken, "").unwrap();
    let mut command = impatient(&shop, &line(&shop, "--type files"));
    command.env("BACKUP__WORKER__RESTORE_TIMEOUT", "10s");
    set_breakable(&shop, &mut command);
    hook(&shop.world, &mut command, "stop", "exec sleep 1000");
    let error = shop.world.run_command(&mut command).failed(1);
    assert!(error.contains("docker is gone"), "{error}");
    assert!(error.contains("longer than it may"), "{error}");
    told(&shop, "stuck");
    fs::remove_file(&broken).unwrap();
    let document = shop.world.run("recover").good();
    assert_eq!(document["restores"][0]["recovery"], "undone");
    assert_eq!(shop.state(), State::Old);
    assert_eq!(
        told(&shop, "timeout"),
        "It took longer than it may and was stopped. Your shop is as it was before."
    );
    shop.assert_nothing_left();
}

const ROLLED_BACK: &str = "Your shop did not start with what was restored, so everything was put back. Your shop is as it was before.";

#[test]
fn a_command_ends_a_stuck_restore_whose_cause_is_mended_before_it_begins() {
    let shop = Shop::new();
    let broken = get_stuck(&shop);
    // A journal of an earlier version does not say why it went back.
    let [journal] = shop.journals().try_into().unwrap();
    let mut record: Value = serde_json::from_slice(&fs::read(&journal).unwrap()).unwrap();
    record.as_object_mut().unwrap().remove("reason").unwrap();
    fs::write(&journal, record.to_string()).unwrap();
    fs::remove_file(&broken).unwrap();
    shop.restore("").good();
    assert_eq!(shop.state(), State::New);
    shop.assert_nothing_left();
    let ends = "SELECT COALESCE(failure, status) FROM shophosting_db.customer_backup_jobs WHERE job_type = 'restore' ORDER BY id DESC LIMIT 2";
    assert_eq!(shop.world.sql(ends), "completed\ninterrupted\n");
}

#[test]
fn a_stuck_restore_whose_journal_is_lost_is_in_nobodys_way_once_somebody_saw_that() {
    let shop = Shop::new();
    for by_worker in [false, true] {
        let broken = get_stuck(&shop);
        for journal in shop.journals() {
            fs::remove_file(journal).unwrap();
        }
        if by_worker {
            let worker = shop.world.command("worker").spawn().unwrap();
            eventually("the worker sees it", || {
                shop.newest_job()["failure"] == "error"
            });
            signal(&worker, Signal::TERM);
            shop.world.finish(worker);
        } else {
            let ended = shop.world.run("recover");
            assert_eq!(ended.status, Some(1), "{ended:?}");
            let error = ended.document["restores"][0]["error"].to_string();
            assert!(error.contains("its journal is gone"), "{error}");
        }
        let sentence = told(&shop, "error");
        assert!(sentence.contains("we cannot tell any more"), "{sentence}");
        assert!(shop.world.in_maintenance(shop.world.customer(1)));
        // Once.
        let document = shop.world.run("recover").good();
        assert_eq!(document["restores"], Value::Array(Vec::new()));
        fs::remove_file(&broken).unwrap();
        let warnings = shop.restore("").good()["warnings"].to_string();
        assert!(warnings.contains("its journal is gone"), "{warnings}");
        assert!(!shop.world.in_maintenance(shop.world.customer(1)));
        for schema in shop.world.schemas_beside() {
            shop.world.sql(&format!("DROP DATABASE `{schema}`"));
        }
        assert_eq!(shop.state(), State::New);
        let _ = fs::remove_file(format!("{}-stopped", broken.display()));
        shop.reset();
    }
}

#[test]
fn an_exchange_of_tables_whose_journal_is_lost_is_completed_by_its_own_record() {
    let shop = Shop::new();
    let record = || {
        shop.world.sql(
            "SELECT TABLE_NAME FROM information_schema.TABLES WHERE TABLE_NAME LIKE '~shophosting backup: %'",
        )
    };
    for is_stuck in [false, true] {
        let mut dying = shop.world.command(&line(&shop, ""));
        dying.env("SHOPHOSTING_BACKUP_DIE_AT", "in swapping, committed");
        assert_eq!(shop.world.run_command(&mut dying).status, None);
        for journal in shop.journals() {
            fs::remove_file(journal).unwrap();
        }
        assert_eq!(record(), "~shophosting backup: committed\n");
        if is_stuck {
            shop.world.platform_sql(
                "UPDATE customer_backup_jobs SET status = 'failed', failure = 'stuck' WHERE status = 'running'",
            );
            let ended = shop.world.run("recover");
            assert_eq!(ended.status, Some(1), "{ended:?}");
            let error = ended.document["restores"][0]["error"].to_string();
            let mut schemas = shop.world.schemas_beside().into_iter();
            let schema = schemas.find(|schema| schema.contains("__replaced_"));
            assert!(error.contains(&schema.unwrap()), "{error}");
            assert_eq!(record(), "~shophosting backup: completed\n");
        }
        let warnings = shop.restore("").good()["warnings"].to_string();
        assert!(warnings.contains("its journal is gone"), "{warnings}");
        assert_eq!(record(), "~shophosting backup: completed\n");
        // Not that all is as it was before.
        let sentence = shop.world.platform_sql(
            "SELECT error_message FROM customer_backup_jobs WHERE failure = 'error' ORDER BY id DESC LIMIT 1",
        );
        assert!(sentence.contains("we cannot tell any more"), "{sentence}");
        for schema in shop.world.schemas_beside() {
            shop.world.sql(&format!("DROP DATABASE `{schema}`"));
        }
        for left in shop.world.staging_directories() {
            fs::remove_dir_all(left).unwrap();
        }
        assert_eq!(shop.state(), State::New);
        shop.reset();
    }
}

#[test]
fn a_stuck_restore_of_a_server_that_is_gone_is_ended_where_its_customer_is_by_now() {
    let shop = Shop::new();
    get_stuck(&shop);
    for journal in shop.journals() {
        fs::remove_file(journal).unwrap();
    }
    let recover_on = |server: &str| {
        let mut command = shop.world.command("recover");
        command.env("BACKUP__WORKER__SERVER", server);
        shop.world.run_command(&mut command)
    };
    // Where its customer is not, nobody knows whether the other server is gone.
    let nothing = Value::Array(Vec::new());
    assert_eq!(recover_on("north").good()["restores"], nothing);
    assert_eq!(shop.newest_job()["failure"], "stuck");
    shop.world.platform_sql(
        "INSERT INTO servers (id, name, hostname) VALUES (2, 'north', 'north'); UPDATE customers SET server_id = 2 WHERE id = 1",
    );
    assert_eq!(recover_on("south").good()["restores"], nothing);
    assert_eq!(shop.newest_job()["failure"], "stuck");
    let ended = recover_on("north");
    assert_eq!(ended.status, Some(1), "{ended:?}");
    let error = ended.document["restores"][0]["error"].to_string();
    assert!(error.contains("its journal is gone"), "{error}");
    let sentence = told(&shop, "error");
    assert!(sentence.contains("we cannot tell any more"), "{sentence}");
    assert_eq!(recover_on("north").good()["restores"], nothing);
    // He can start something anew there.
    let mut backup = shop.world.command("backup 1 --type files");
    backup.env("BACKUP__WORKER__SERVER", "north");
    shop.world.run_command(&mut backup).good();
}

#[test]
fn what_was_staged_makes_room_for_the_journal_that_undoes_it() {
    let mut world = World::new(&[]);
    let root = world.bed.customers_root();
    let _mount = Mount::tmpfs(&root, "size=40m").unwrap();
    world.customers.push(world.bed.add_customer(1).unwrap());
    let customer = world.customer(1);
    let mut bytes = vec![0; 10 << 20];
    rand::fill(&mut bytes[..]);
    fs::write(customer.site().join("large"), &bytes).unwrap();
    fs::write(customer.site().join("marker"), "shop 1\n").unwrap();
    let snapshot = world.back_up("1");
    fs::remove_file(customer.site().join("large")).unwrap();
    fs::write(customer.site().join("marker"), "live\n").unwrap();
    let before = world.evidence();
    // Journals and sites are on the same disk.
    let state = root.join("state");
    let with_state = |line: &str| {
        let mut command = world.command(line);
        command.env("BACKUP__WORKER__STATE_DIR", &state);
        command
    };
    let filler = root.join("filler");
    for point in ["after stage files", "before stop"] {
        let mut dying = with_state(&format!("restore 1 {snapshot} --yes"));
        dying.env("SHOPHOSTING_BACKUP_DIE_AT", point);
        let ended = world.run_command(&mut dying);
        assert_eq!(ended.status, None, "{ended:?}");
        assert!(!world.staging_directories().is_empty());
        // Whoever else writes there takes all the room that was left.
        let mut file = fs::File::create(&filler).unwrap();
        while file.write_all(&[b'x'; 4096]).is_ok() {}
        let document = world.run_command(&mut with_state("recover")).good();
        assert_eq!(document["restores"][0]["recovery"], "undone");
        assert!(fs::metadata(&filler).unwrap().len() > 10 << 20);
        fs::remove_file(&filler).unwrap();
        world.run("unlock").good();
        world.assert_unchanged(&before);
    }
}

#[test]
fn a_stop_that_outlives_its_process_does_not_stop_the_site_after_it_was_put_back() {
    let shop = Shop::new();
    let place = shop.world.bed.scratch().join("containers");
    fs::create_dir(&place).unwrap();
    let file = |name: &str| place.join(name);
    for online in ["", "--online"] {
        for name in ["stops", "go", "state"] {
            let _ = fs::remove_file(file(name));
        }
        // As with real containers: who stops them when somebody else is at it ends after him.
        let slow = |line: &str| {
            let mut command = shop.world.command(line);
            let stop = format!(
                "cd '{}'; echo stop >> stops; exec 9> lock; flock 9; while [ ! -e go ]; do sleep 0.02; done; echo down > state",
                place.display()
            );
            hook(&shop.world, &mut command, "stop", &stop);
            let start = format!("echo up > '{}'", file("state").display());
            hook(&shop.world, &mut command, "start", &start);
            command
        };
        let stops = || fs::read_to_string(file("stops")).unwrap_or_default();
        let mut child = slow(&line(&shop, online)).spawn().unwrap();
        eventually("the site is being stopped", || stops() == "stop\n");
        child.kill().unwrap();
        shop.world.finish(child);
        let recovery = slow("recover").spawn().unwrap();
        eventually("it is stopped once more", || stops() == "stop\nstop\n");
        fs::write(file("go"), "").unwrap();
        let document = shop.world.finish(recovery).good();
        assert_eq!(document["restores"][0]["recovery"], "undone");
        assert_eq!(fs::read_to_string(file("state")).unwrap(), "up\n");
        assert_eq!(shop.state(), State::Old);
        shop.assert_nothing_left();
    }
}

#[test]
fn a_worker_goes_on_with_a_stuck_restore_once_its_cause_is_mended() {
    let shop = Shop::new();
    let broken = get_stuck(&shop);
    let stuck = shop.newest_job()["id"].clone();
    let tries = shop.world.bed.scratch().join("tries");
    let mut command = impatient(&shop, "worker");
    command.env("SHOPHOSTING_BACKUP_PATIENCE", "3");
    for action in ["stop", "start"] {
        let script = format!(
            "echo {action} >> '{}'\nif [ -e '{}' ]; then exit 1; fi",
            tries.display(),
            broken.display()
        );
        hook(&shop.world, &mut command, action, &script);
    }
    let worker = command.spawn().unwrap();
    eventually("the worker tries, in vain", || tries.exists());
    assert_eq!(shop.newest_job()["failure"], "stuck");
    fs::remove_file(&broken).unwrap();
    eventually("it tries again", || shop.journals().is_empty());
    signal(&worker, Signal::TERM);
    shop.world.finish(worker);
    assert_eq!(shop.state(), State::Old);
    let job = shop.newest_job();
    assert_eq!(
        (&job["id"], &job["failure"]),
        (&stuck, &"rolled_back".into()),
        "{job}"
    );
    assert_eq!(told(&shop, "rolled_back"), ROLLED_BACK);
    shop.assert_nothing_left();
}

#[test]
fn without_a_place_for_its_journal_nothing_is_begun() {
    let shop = Shop::new();
    shop.world.stops_and_starts();
    let directory = journals(&shop);
    for options in ["size=64k,mode=700,ro", "size=4k,mode=700"] {
        let mount = Mount::tmpfs(&directory, options).unwrap();
        if !options.ends_with("ro") {
            fs::write(directory.join("filler"), [0; 4096]).unwrap();
        }
        for online in ["", "--online"] {
            let error = shop.restore(online).failed(1);
            assert!(error.contains("cannot write the journal"), "{error}");
            assert_eq!(shop.state(), State::Old);
            assert_eq!(shop.world.stops_and_starts(), [] as [&str; 0]);
            assert!(told(&shop, "error").ends_with(" Your shop is as it was before."));
            shop.world.assert_nothing_left();
        }
        drop(mount);
    }
    // Nor where others could write it.
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o777)).unwrap();
    let error = shop.restore("").failed(1);
    assert!(error.contains("open to nobody but the user"), "{error}");
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o700)).unwrap();
    assert_eq!(shop.state(), State::Old);
    shop.assert_nothing_left();
}

#[test]
fn a_journal_that_can_be_written_no_more_is_gone_by_as_it_is() {
    let shop = Shop::new();
    let directory = journals(&shop);
    for online in ["", "--online"] {
        for (held_at, end) in [("stop", State::Old), ("start", State::New)] {
            let mount = Mount::tmpfs(&directory, "size=64k,mode=700").unwrap();
            let mut command = impatient(&shop, &line(&shop, online));
            let held = Held::at(&shop.world, &mut command, held_at);
            let child = command.spawn().unwrap();
            held.wait();
            mount.remount("ro").unwrap();
            held.let_go();
            let error = shop.world.finish(child).failed(1);
            assert!(error.contains("journal"), "{error}");
            let is_closed = shop.world.in_maintenance(shop.world.customer(1));
            if end == State::New {
                assert!(is_closed, "nobody knows yet which it will be");
                told(&shop, "stuck");
            } else {
                assert!(!is_closed);
                assert!(told(&shop, "error").ends_with(" Your shop is as it was before."));
            }
            // What cannot be written down is not done again and again to a site that may be up.
            shop.world.stops_and_starts();
            for _ in 0..2 {
                let ended = shop.world.run("recover");
                assert_eq!(ended.status, Some(1), "{ended:?}");
                let error = ended.document["restores"][0]["error"].to_string();
                assert!(error.contains("the site is left as it is"), "{error}");
                assert_eq!(shop.world.stops_and_starts(), [] as [&str; 0]);
                assert_eq!(shop.world.in_maintenance(shop.world.customer(1)), is_closed);
            }
            mount.remount("rw").unwrap();
            let document = shop.world.run("recover").good();
            assert_eq!(document["restores"].as_array().unwrap().len(), 1);
            assert_eq!(shop.state(), end);
            shop.assert_nothing_left();
            drop(mount);
            shop.reset();
        }
    }
}

#[test]
fn a_damaged_journal_is_in_the_way_of_its_own_customer_alone() {
    let world = World::new(&[1, 12]);
    let (of_one, of_twelve) = (world.back_up("1"), world.back_up("12"));
    let before = world.evidence();
    // Twelve's is interrupted, one's is damaged.
    let mut command = world.command(&format!("restore 12 {of_twelve} --yes"));
    command.env("SHOPHOSTING_BACKUP_DIE_AT", "in exchange");
    assert_eq!(world.run_command(&mut command).status, None);
    let directory = world.bed.scratch().join("state/restores");
    let damaged = directory.join("customer-1-0123456789abcdef.json");
    for content in ["", "{\"version\": 1", "{\"version\": 9}", "\0\0\0\0"] {
        fs::write(&damaged, content).unwrap();
        let ended = world.run("recover");
        assert_eq!(ended.status, Some(1));
        let restores = ended.document["restores"].as_array().unwrap().clone();
        let errors: Vec<_> = restores
            .iter()
            .filter_map(|one| one["error"].as_str())
            .collect();
        assert!(
            matches!(errors[..], [error] if error.contains(&damaged.display().to_string())),
            "{errors:?}"
        );
        // The other one is recovered all the same, the first time.
        let recovered = restores.iter().filter(|one| one["recovery"] == "undone");
        assert_eq!(recovered.count(), usize::from(content.is_empty()));
        let error = world.run(&format!("restore 1 {of_one} --yes")).failed(1);
        assert!(error.contains(&damaged.display().to_string()), "{error}");
        world.run(&format!("restore 12 {of_twelve} --yes")).good();
    }
    assert_eq!(names(&directory), std::slice::from_ref(&damaged));
    fs::remove_file(&damaged).unwrap();
    world.run("unlock").good();
    world.run(&format!("restore 1 {of_one} --yes")).good();
    world.assert_unchanged(&before);
    assert_eq!(
        world.run("recover").good()["restores"],
        Value::Array(Vec::new())
    );
}
