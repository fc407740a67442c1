//! The dashboard with nothing installed and nothing configured.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use xtask::product::wait_until;

use crate::client::Client;
use crate::world::{World, address_in};

fn program(directory: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_shophosting-backup"));
    command
        .current_dir(directory)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap())
        .env("BACKUP__SERVER__LISTEN", "127.0.0.1:0");
    command
}

fn set_password(mut command: Command, line: &str, password: &str) -> Output {
    let mut child = command
        .args(line.split_whitespace())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It may refuse before it has read.
    let _ = writeln!(child.stdin.take().unwrap(), "{password}");
    child.wait_with_output().unwrap()
}

/// Ends with the test, however that ends.
struct Service(Child);

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_customer_who_was_given_a_password_logs_in_and_backs_up() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let run = |line: &str| {
        let output = program(directory).args(line.split_whitespace()).output();
        output.unwrap()
    };
    assert!(run("customer add --id 7").status.success());
    assert!(
        run("customer add --email Other@shop.example")
            .status
            .success()
    );
    let refused = [
        // No address to log in with, another's address, no such customer, too short.
        ("customer set-password 7", "correct horse", "--email"),
        (
            "customer set-password 7 --email OTHER@shop.example",
            "correct horse",
            "another customer",
        ),
        (
            "customer set-password 99 --email x@y",
            "correct horse",
            "no customer 99",
        ),
        (
            "customer set-password 7 --email a@b",
            "short",
            "8 characters",
        ),
    ];
    for (line, password, word) in refused {
        let output = set_password(program(directory), line, password);
        assert!(!output.status.success(), "{line}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(word) && !said.contains(password), "{said}");
    }
    let line = "customer set-password 7 --email Owner@shop.example";
    assert!(
        set_password(program(directory), line, "correct horse")
            .status
            .success()
    );
    let stored = fs::read(directory.join("data/backup.db")).unwrap();
    assert!(!stored.windows(13).any(|part| part == b"correct horse"));

    let site = directory.join("data/customers/customer-7/wordpress");
    fs::create_dir_all(&site).unwrap();
    fs::write(site.join("index.php"), "<?php").unwrap();
    let log = directory.join("log");
    let child = program(directory)
        .arg("serve")
        .stdin(Stdio::null())
        .stderr(File::create(&log).unwrap())
        .spawn();
    let mut service = Service(child.unwrap());
    let said = || fs::read_to_string(&log).unwrap();
    wait_until("it listens", || address_in(&said()).is_some());
    let stranger = Client::new(&address_in(&said()).unwrap());
    stranger
        .post("/login", "email=owner@shop.example&password=wrong")
        .refusal(401);
    let log_in = || stranger.post("/login", "email=owner@SHOP.example&password=correct+horse");
    let customer = stranger.with("Cookie", &log_in().is(200).cookie());
    customer
        .post("/backups/create", "backup_type=files&note=the+first")
        .is(200);
    let mut events = customer.events("/api/backups/events");
    let mut status = None;
    while let Some(job) = events.next() {
        status = Some(job["status"].clone());
    }
    // It may have been done before anybody watched.
    assert!(
        status.is_none_or(|status| status == "completed"),
        "{}",
        said()
    );
    let lists = customer.get("/api/backups").json();
    assert_eq!(lists["manual"][0]["note"], "the first", "{}", said());
    // A new password ends what the old one began.
    assert!(
        set_password(
            program(directory),
            "customer set-password 7",
            "wrong battery"
        )
        .status
        .success()
    );
    customer.get("/api/backups").refusal(401);
    log_in().refusal(401);

    let id = i32::try_from(service.0.id()).unwrap();
    kill_process(Pid::from_raw(id).unwrap(), Signal::TERM).unwrap();
    wait_until("it ends", || service.0.try_wait().unwrap().is_some());
    assert_eq!(service.0.wait().unwrap().code(), Some(0), "{}", said());
    assert!(
        !said().contains("correct horse") && !said().contains("panicked"),
        "{}",
        said()
    );
}

#[test]
fn the_passwords_of_a_platform_are_the_platforms() {
    let world = World::new([1]);
    let before = world.sql("SELECT * FROM customers");
    let command = world.product.command("");
    let output = set_password(command, "customer set-password 1", "another horse");
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("the platform's"));
    assert_eq!(world.sql("SELECT * FROM customers"), before);
}
