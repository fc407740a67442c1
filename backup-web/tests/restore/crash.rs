//! A restore that is killed at any instant ends, once it is recovered, with the site wholly as it was or wholly as the backup has it.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::world::{Evidence, World, names};

const DIE_AT: &str = "SHOPHOSTING_BACKUP_DIE_AT";
const FAIL_AT: &str = "SHOPHOSTING_BACKUP_FAIL_AT";

/// A shop with a backup, that has changed since.
pub struct Shop {
    pub world: World,
    pub backup: String,
    /// The site before a restore, and after it.
    pub old: Evidence,
    pub new: Evidence,
    files: PathBuf,
    dump: Vec<u8>,
}

/// What a site turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Old,
    New,
}

impl Shop {
    pub fn new() -> Self {
        Self::in_world(World::new(&[1]))
    }

    pub fn in_world(world: World) -> Self {
        let customer = world.customer(1);
        let backup = world.back_up("1");
        fs::write(customer.site().join("marker"), "live\n").unwrap();
        fs::write(customer.site().join("new"), "since the backup").unwrap();
        fs::remove_file(customer.site().join("wp-content/uploads/3.jpg")).unwrap();
        world.sql_as(
            customer,
            "INSERT INTO orders (note) VALUES ('since the backup'); CREATE TABLE since (id INT); INSERT INTO since VALUES (1);
             DROP TRIGGER leave_trace; CREATE TRIGGER other AFTER DELETE ON orders FOR EACH ROW INSERT INTO audit VALUES ('deleted');
             DROP VIEW revenue; CREATE PROCEDURE newer() SELECT 1;",
        );
        let files = world.bed.scratch().join("files");
        copy(&customer.directory, &files);
        let dump = world.bed.dump(&customer.database).unwrap();
        let evidence = world.evidence();
        let mut shop = Self {
            world,
            backup,
            old: evidence.clone(),
            new: evidence,
            files,
            dump,
        };
        shop.reset();
        shop.old = shop.world.evidence();
        shop.restore("").good();
        shop.new = shop.world.evidence();
        assert!(!shop.old.changes(&shop.new).is_empty());
        shop.reset();
        shop
    }

    fn line(&self, rest: &str) -> String {
        format!("restore 1 {} {rest} --yes", self.backup)
    }

    pub fn restore(&self, rest: &str) -> crate::world::Outcome {
        self.world.run(&self.line(rest))
    }

    /// As it was before any restore.
    pub fn reset(&self) {
        let customer = self.world.customer(1);
        fs::remove_dir_all(&customer.directory).unwrap();
        copy(&self.files, &customer.directory);
        let name = &customer.database;
        self.world
            .sql(&format!("DROP DATABASE `{name}`; CREATE DATABASE `{name}`"));
        let script = [format!("USE `{name}`;\n").as_bytes(), &self.dump].concat();
        self.world.bed.mariadb().sql_bytes(&script).unwrap();
    }

    /// Which of the two states the site is in, wholly.
    #[track_caller]
    pub fn state(&self) -> State {
        self.state_or(&self.new)
    }

    /// The same where a restore leads to another state than that of the whole backup.
    #[track_caller]
    fn state_or(&self, new: &Evidence) -> State {
        let now = self.world.evidence();
        let (from_old, from_new) = (self.old.changes(&now), new.changes(&now));
        match (from_old.is_empty(), from_new.is_empty()) {
            (true, false) => State::Old,
            (false, true) => State::New,
            _ => panic!(
                "neither the one nor the other; from the old state:\n{}\nfrom the new one:\n{}",
                from_old.join("\n"),
                from_new.join("\n")
            ),
        }
    }

    /// A restore that dies, or fails and then dies, at these points.
    #[track_caller]
    pub fn die(&self, rest: &str, fail_at: &str, die_at: &str) {
        let mut command = self.world.command(&self.line(rest));
        command.env(DIE_AT, die_at).env(FAIL_AT, fail_at);
        let ended = self.world.run_command(&mut command);
        assert_eq!(ended.status, None, "it never came to `{die_at}`: {ended:?}");
    }

    /// Recover what died; the state of the site then, of which the job tells the truth and beside which nothing is left.
    #[track_caller]
    pub fn recover(&self) -> State {
        self.recover_to(&self.new, &["interrupted"])
    }

    /// The same of what had failed before it died, and is told as that.
    #[track_caller]
    pub fn recover_failed(&self) -> State {
        self.recover_to(&self.new, &["error"])
    }

    #[track_caller]
    fn recover_to(&self, new: &Evidence, failures: &[&str]) -> State {
        let document = self.world.run("recover").good();
        let state = self.state_or(new);
        match document["restores"].as_array().unwrap().as_slice() {
            // It had not begun, or it had ended.
            [] => {}
            [one] => {
                let recovery = one["recovery"].as_str().unwrap();
                let expected = match state {
                    State::Old => "undone",
                    State::New => "restored",
                };
                assert_eq!(recovery, expected);
                self.assert_told(state, failures);
            }
            more => panic!("{more:?}"),
        }
        assert_eq!(self.journals(), [] as [PathBuf; 0]);
        self.assert_nothing_beside();
        state
    }

    /// Begin to recover what died, and die here.
    #[track_caller]
    fn die_recovering(&self, point: &str) {
        let mut command = self.world.command("recover");
        command.env(DIE_AT, point);
        assert_eq!(self.world.run_command(&mut command).status, None, "{point}");
    }

    #[track_caller]
    pub fn newest_job(&self) -> Value {
        let job = self.world.platform_sql(
            "SELECT JSON_OBJECT('status', status, 'failure', failure, 'error_message', error_message,
                 'kept_snapshot', kept_snapshot, 'recovered', recovered)
             FROM customer_backup_jobs ORDER BY id DESC LIMIT 1",
        );
        serde_json::from_str(&job).unwrap()
    }

    #[track_caller]
    fn assert_told(&self, state: State, failures: &[&str]) {
        let job = self.newest_job();
        let told = job["status"].as_str().unwrap();
        match state {
            State::New => {
                assert_eq!(told, "completed", "{job}");
                let kept = job["kept_snapshot"].as_str().expect("nothing was kept");
                let newest = self.world.platform_sql(
                    "SELECT snapshot_id FROM customer_backups WHERE source = 'pre-restore'
                     AND deleted_at IS NULL ORDER BY time DESC LIMIT 1",
                );
                assert_eq!(newest.trim(), kept);
            }
            State::Old => {
                let failure = job["failure"].as_str().unwrap();
                assert!(told == "failed" && failures.contains(&failure), "{job}");
            }
        }
    }

    #[track_caller]
    pub fn assert_nothing_left(&self) {
        assert_eq!(self.journals(), [] as [PathBuf; 0]);
        self.assert_nothing_beside();
    }

    #[track_caller]
    fn assert_nothing_beside(&self) {
        assert!(!self.world.in_maintenance(self.world.customer(1)));
        assert_eq!(self.world.staging_directories(), [] as [PathBuf; 0]);
        assert_eq!(self.world.schemas_beside(), [] as [String; 0]);
    }

    /// After all of it, with the locks of the dead removed, the repository is sound.
    #[track_caller]
    pub fn assert_sound(&self) {
        self.world.run("unlock").good();
        for half_written in names(&self.world.bed.manual_repository().join("locks")) {
            // One that was being written when its writer was killed locks nothing; a prune removes it.
            let name = half_written
                .file_name()
                .unwrap()
                .to_string_lossy()
                .into_owned();
            assert!(name.starts_with(".tmp-"), "{name}");
            fs::remove_file(half_written).unwrap();
        }
        self.world.assert_nothing_left();
        self.world.run("check").good();
    }

    pub fn journals(&self) -> Vec<PathBuf> {
        names(&self.world.bed.scratch().join("state/restores"))
    }
}

fn copy(from: &std::path::Path, to: &std::path::Path) {
    let copied = Command::new("cp").arg("-aT").arg(from).arg(to).status();
    assert!(copied.unwrap().success());
}

/// Every step, before its line is in the journal, after that, and when it is done.
fn points(steps: &[&str]) -> Vec<String> {
    let when = |step: &&str| ["before", "at", "after"].map(|when| format!("{when} {step}"));
    steps.iter().flat_map(when).collect()
}

const UP_TO_EXCHANGE: [&str; 5] = ["close", "stage files", "stage database", "stop", "exchange"];
const FROM_START: [&str; 4] = ["start", "open", "keep", "remove"];

/// Killed at each of these points, a restore is undone, or carried to its end.
#[track_caller]
fn assert_ends(shop: &Shop, points: &[String], state: State) {
    for (point, rest) in points.iter().zip(["", "--online"].iter().cycle()) {
        shop.die(rest, "", point);
        assert_eq!(shop.recover(), state, "{point}");
        if state == State::New {
            let job = shop.newest_job();
            assert_eq!(job["recovered"], 1, "{job}");
            shop.reset();
        }
    }
}

fn before_commit() -> Vec<String> {
    let within = [
        "in close",
        "in closing",
        "in stage files",
        "in stage database",
        "in exchange",
    ];
    let mut points = points(&UP_TO_EXCHANGE);
    points.extend(within.map(str::to_owned));
    points.push("before start".into());
    points
}

fn after_commit() -> Vec<String> {
    let mut points = points(&FROM_START);
    points.retain(|point| point != "before start");
    points.extend(["start", "keep", "remove"].map(|step| format!("in {step}")));
    points
}

/// What fails, and where it dies on the way back from there.
fn while_undone() -> Vec<(&'static str, String)> {
    let steps = [
        "start",
        "exchange",
        "stop",
        "close",
        "stage database",
        "stage files",
    ];
    let when = |step: &str| ["before", "after"].map(|when| format!("{when} undoing {step}"));
    let mut points: Vec<String> = steps.into_iter().flat_map(when).collect();
    points.extend(
        [
            "in undoing start",
            "in undoing exchange, before the tables",
            "in reversing, marked",
            "in reversing, dropped",
            "in reversing, moved",
            "in removing a schema",
            "in undoing exchange",
            "in undoing exchange, before the files",
            "in undoing stop",
        ]
        .map(str::to_owned),
    );
    let mut points: Vec<_> = points
        .into_iter()
        .map(|point| ("at start", point))
        .collect();
    // What was staged alone.
    points.extend(
        ["in removing a schema", "in removing a tree"].map(|point| ("before stop", point.into())),
    );
    points
}

#[test]
fn a_restore_that_is_killed_before_its_commit_is_undone() {
    let shop = Shop::new();
    assert_ends(&shop, &before_commit(), State::Old);
    shop.assert_sound();
}

#[test]
fn a_restore_that_is_killed_after_its_commit_is_carried_to_its_end() {
    let shop = Shop::new();
    assert_ends(&shop, &after_commit(), State::New);
    shop.assert_sound();
}

#[test]
fn an_undoing_that_is_killed_is_carried_to_its_end() {
    let shop = Shop::new();
    for (number, (fail_at, point)) in while_undone().iter().enumerate() {
        let rest = ["", "--online"][number / 2 % 2];
        // Undone by itself or recovered: both where something is moved back, else in turn.
        let moves = point.contains("exchange") || point.contains("reversing");
        let starts = point.ends_with("undoing start");
        if moves || starts || number % 2 == 0 {
            shop.die(rest, fail_at, point);
            assert_eq!(shop.recover_failed(), State::Old, "{point}");
        }
        if !starts && (moves || number % 2 == 1) {
            let first = match *fail_at {
                "at start" => "before start",
                other => other,
            };
            shop.die(rest, "", first);
            shop.die_recovering(point);
            assert_eq!(shop.recover(), State::Old, "{point}");
        }
    }
}

/// Points at which it matters that the database server is away, or was started anew: the others are as anywhere else.
#[test]
fn with_its_database_in_a_container_a_restore_that_is_killed_before_its_commit_is_undone() {
    let shop = Shop::in_world(World::in_container(&[1]));
    let points = [
        "in stage database",
        "at stop",
        "at exchange",
        "in exchange",
        "in exchange, stopped",
        "after exchange",
        "before start",
    ];
    assert_ends(&shop, &points.map(str::to_owned), State::Old);
}

#[test]
fn with_its_database_in_a_container_a_restore_that_is_killed_after_its_commit_is_carried_to_its_end()
 {
    let shop = Shop::in_world(World::in_container(&[1]));
    let points = ["at start", "in start", "in keep", "in remove"];
    assert_ends(&shop, &points.map(str::to_owned), State::New);
    for point in ["in start", "in keep"] {
        shop.die("", "", "at start");
        shop.die_recovering(point);
        assert_eq!(shop.recover(), State::New, "{point}");
        shop.reset();
    }
}

#[test]
fn with_its_database_in_a_container_an_undoing_that_is_killed_is_carried_to_its_end() {
    let shop = Shop::in_world(World::in_container(&[1]));
    let points = [
        "in undoing start",
        "in undoing exchange, before the tables",
        "in reversing, dropped",
        "in undoing exchange",
        "in undoing exchange, before the files",
        "in undoing stop",
    ];
    for (point, rest) in points.iter().zip(["", "--online"].iter().cycle()) {
        shop.die(rest, "at start", point);
        assert_eq!(shop.recover_failed(), State::Old, "{point}");
    }
    // And one that dies while it is recovered.
    let points = [
        "in undoing exchange, before the tables",
        "in reversing, moved",
        "in undoing exchange, before the files",
        "after undoing exchange",
    ];
    for (point, rest) in points.iter().zip(["", "--online"].iter().cycle()) {
        shop.die(rest, "", "before start");
        shop.die_recovering(point);
        assert_eq!(shop.recover(), State::Old, "{point}");
    }
}

#[test]
fn a_step_that_fails_is_undone_with_all_before_it() {
    let shop = Shop::new();
    for point in points(&UP_TO_EXCHANGE).iter().chain(&points(&["start"])) {
        let mut command = shop.world.command(&shop.line(""));
        command.env(FAIL_AT, point);
        let error = shop.world.run_command(&mut command).failed(1);
        assert!(error.contains(point), "{error}");
        assert_eq!(shop.state(), State::Old, "{point}");
        shop.assert_nothing_left();
        let job = shop.newest_job();
        let sentence = job["error_message"].as_str().unwrap();
        assert!(
            sentence.ends_with("Your shop is as it was before."),
            "{job}"
        );
    }
    assert_eq!(
        shop.world.run("recover").good()["restores"],
        Value::Array(Vec::new())
    );
}

#[test]
fn what_fails_after_the_site_is_up_is_done_later() {
    let shop = Shop::new();
    for point in ["at keep", "in keep", "after keep", "at remove", "in remove"] {
        let mut command = shop.world.command(&shop.line(""));
        command.env(FAIL_AT, point);
        let document = shop.world.run_command(&mut command).good();
        let warnings = document["warnings"].to_string();
        assert!(warnings.contains("not put away yet"), "{warnings}");
        assert!(!shop.world.in_maintenance(shop.world.customer(1)));
        assert_eq!(shop.newest_job()["status"], "completed");
        assert_eq!(shop.recover(), State::New, "{point}");
        shop.reset();
    }
    // It is up, and cannot be opened: that is for an operator.
    let mut command = shop.world.command(&shop.line(""));
    command.env(FAIL_AT, "at open");
    let error = shop.world.run_command(&mut command).failed(1);
    assert!(error.contains("recover"), "{error}");
    assert_eq!(shop.newest_job()["failure"], "stuck");
    assert_eq!(shop.recover(), State::New);
}

/// So many random moments: a few in every run of the tests, more where the environment says so.
fn random_moments() -> u32 {
    let wanted = std::env::var("SHOPHOSTING_BACKUP_CRASHES").ok();
    wanted.map_or(30, |number| number.parse().unwrap())
}

#[test]
fn a_restore_that_is_killed_at_a_random_moment_leaves_nothing_half_done() {
    let shop = Shop::new();
    let kinds = ["", "--online", "--type db", "--type files"].map(|rest| {
        let begun = Instant::now();
        shop.restore(rest).good();
        let whole = begun.elapsed();
        let new = shop.world.evidence();
        shop.reset();
        (rest, whole, new)
    });
    let mut ended = [0, 0];
    for round in 0..random_moments() {
        let (rest, whole, new) = &kinds[round as usize % kinds.len()];
        // Half of them on the way there, the others on the way back: by itself, or recovered.
        let (mut command, moments) = match round / 4 % 4 {
            0 | 2 => (shop.world.command(&shop.line(rest)), 0.1..1.6),
            1 => {
                let mut command = shop.world.command(&shop.line(rest));
                command.env(FAIL_AT, "at start");
                (command, 0.6..2.0)
            }
            _ => {
                shop.die(rest, "", "before start");
                (shop.world.command("recover"), 0.05..1.0)
            }
        };
        let moment = Duration::from_secs_f64(whole.as_secs_f64() * rand::random_range(moments));
        let mut child = command.spawn().unwrap();
        let begun = Instant::now();
        while begun.elapsed() < moment && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        child.kill().unwrap();
        shop.world.finish(child);
        let state = shop.recover_to(new, &["interrupted", "error"]);
        ended[usize::from(state == State::New)] += 1;
        if state == State::New {
            shop.reset();
        }
    }
    shop.restore("").good();
    assert_eq!(shop.journals(), [] as [PathBuf; 0]);
    shop.assert_sound();
    println!("{} undone, {} carried to their end", ended[0], ended[1]);
}
