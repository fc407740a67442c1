//! Who recovers a restore that died: a command without the platform's database, a worker when it starts, and one that runs already.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command};

use rustix::process::Signal;
use serde_json::Value;
use xtask::proxy::Proxy;

use crate::crash::{Shop, State};
use crate::faults::Held;
use crate::world::{eventually, signal};

/// Nobody listens there.
fn without_database(command: &mut Command) -> &mut Command {
    let nowhere = "mysql://shophosting_app@127.0.0.1:9/shophosting_db";
    command.env("BACKUP__DATABASE__URL", nowhere)
}

fn end(shop: &Shop, worker: Child) {
    signal(&worker, Signal::TERM);
    shop.world.finish(worker);
}

#[test]
fn without_the_platforms_database_a_site_is_recovered_and_its_job_tells_it_once_that_is_back() {
    let shop = Shop::new();
    for (point, state, recovery) in [
        ("in stage database", State::Old, "undone"),
        ("in exchange", State::Old, "undone"),
        ("at start", State::New, "restored"),
        ("in keep", State::New, "restored"),
    ] {
        for rest in ["", "--online"] {
            shop.die(rest, "", point);
            // However often.
            for _ in 0..2 {
                let mut command = shop.world.command("recover");
                let document = shop
                    .world
                    .run_command(without_database(&mut command))
                    .good();
                assert_eq!(document["restores"][0]["recovery"], recovery, "{document}");
                assert_eq!(shop.state(), state, "{point}");
            }
            assert_eq!(shop.newest_job()["status"], "running");
            assert_eq!(shop.journals().len(), 1, "nobody could be told yet");
            assert_eq!(shop.recover(), state, "{point}");
            let job = shop.newest_job();
            let expected = match state {
                State::Old => "failed",
                State::New => "completed",
            };
            assert_eq!(job["status"], expected, "{job}");
            shop.reset();
        }
    }
}

#[test]
fn a_worker_recovers_what_was_interrupted_before_it_started_and_while_it_runs() {
    let shop = Shop::new();
    for (point, state) in [("in exchange", State::Old), ("at start", State::New)] {
        for runs_already in [false, true] {
            let start = || shop.world.command("worker").spawn().unwrap();
            let early = runs_already.then(start);
            shop.die("", "", point);
            let worker = early.unwrap_or_else(start);
            eventually("the worker recovers it", || shop.journals().is_empty());
            end(&shop, worker);
            assert_eq!(shop.state(), state, "{point}");
            let job = shop.newest_job();
            match state {
                State::Old => assert_eq!(job["failure"], "interrupted", "{job}"),
                State::New => assert_eq!(job["status"], "completed", "{job}"),
            }
            shop.assert_nothing_left();
            shop.reset();
        }
    }
}

#[test]
fn a_worker_recovers_sites_while_the_platforms_database_is_away_and_tells_it_once_that_is_back() {
    let shop = Shop::new();
    let proxy = Proxy::start(shop.world.bed.mariadb().port()).unwrap();
    let mut command = shop.world.command("worker");
    let url = format!(
        "mysql://shophosting_app@127.0.0.1:{}/shophosting_db",
        proxy.port()
    );
    command.env("BACKUP__DATABASE__URL", url);
    let worker = command.spawn().unwrap();
    // It is there.
    shop.die("", "", "in stage files");
    eventually("the worker recovers it", || shop.journals().is_empty());
    for (point, state, ending) in [
        ("in exchange", State::Old, "undone"),
        ("at start", State::New, "restored"),
    ] {
        proxy.refuse(true);
        proxy.cut();
        shop.die("", "", point);
        eventually("the worker recovers it", || {
            // Beside it may be the one that is about to take its place.
            let journals = shop.journals();
            let is_whole = |path: &&PathBuf| path.extension().is_some_and(|it| it == "json");
            let journal = journals.iter().find(is_whole).unwrap();
            let record: Value = serde_json::from_slice(&fs::read(journal).unwrap()).unwrap();
            record["ending"] == ending && record["begun"] == Value::Array(Vec::new())
        });
        assert_eq!(shop.state(), state, "{point}");
        assert_eq!(shop.newest_job()["status"], "running");
        proxy.refuse(false);
        eventually("it tells it", || shop.journals().is_empty());
        let job = shop.newest_job();
        match state {
            State::Old => assert_eq!(job["failure"], "interrupted", "{job}"),
            State::New => assert_eq!(job["status"], "completed", "{job}"),
        }
        shop.assert_nothing_left();
    }
    end(&shop, worker);
}

#[test]
fn a_restore_that_somebody_is_at_work_on_is_left_to_him_and_nothing_is_left_to_recover() {
    let shop = Shop::new();
    let line = format!("restore 1 {} --yes", shop.backup);
    let mut command = shop.world.command(&line);
    let held = Held::at(&shop.world, &mut command, "stop");
    let child = command.spawn().unwrap();
    held.wait();
    for is_away in [false, true] {
        let mut command = shop.world.command("recover");
        if is_away {
            without_database(&mut command);
        }
        let document = shop.world.run_command(&mut command).good();
        assert_eq!(document["restores"][0]["recovery"], "in_use", "{document}");
        assert_eq!(shop.newest_job()["status"], "running");
    }
    held.let_go();
    shop.world.finish(child).good();
    assert_eq!(shop.state(), State::New);
    shop.assert_nothing_left();
}

#[test]
fn what_recover_could_not_do_is_no_success_with_and_without_the_platforms_database() {
    let mut shop = Shop::new();
    shop.die("", "", "at start");
    let mut command = shop.world.command("recover");
    shop.world
        .run_command(without_database(&mut command))
        .good();
    assert_eq!(shop.state(), State::New);
    // The site is whole, but what was kept of it is not known without the repository.
    shop.world.bed.sshd_mut().stop();
    for is_away in [false, true] {
        let mut command = shop.world.command("recover");
        command.env("BACKUP__REPOSITORIES__MANUAL__RETRY_FOR", "1s");
        if is_away {
            without_database(&mut command);
        }
        let ended = shop.world.run_command(&mut command);
        assert_eq!(ended.status, Some(1), "{ended:?}");
        let error = ended.document["restores"][0]["error"].to_string();
        assert!(error.contains("cannot be looked for now"), "{error}");
        assert_eq!(shop.newest_job()["status"], "running");
    }
    shop.world.bed.sshd_mut().restart().unwrap();
    assert_eq!(shop.recover(), State::New);
}
