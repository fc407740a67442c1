//! A restore that does not come to its end leaves everything as it was.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::PathBuf;

use rustix::process::Signal;
use xtask::proxy::Proxy;

use crate::world::{Gate, World, eventually, half_way, signal};

/// What is live is not what the backup has: a restore that happened would be seen.
fn live_state(world: &World) {
    let customer = world.customer(1);
    fs::write(customer.site().join("marker"), "live\n").unwrap();
    fs::write(customer.site().join("new"), "since the backup").unwrap();
    world.sql_as(
        customer,
        "INSERT INTO orders (note) VALUES ('since the backup'); CREATE TABLE since (id INT); INSERT INTO since VALUES (1)",
    );
}

#[test]
fn an_import_that_fails_half_way_leaves_everything_as_it_was() {
    let world = World::new(&[1, 12]);
    let customer = world.customer(1);
    let broken = [
        ("INSERT INTO no_such_table VALUES (1);\n", "no_such_table"),
        ("INSERT INTO orders VALUES (1, 'not closed\n", "import"),
        ("CREATE TABLE shophosting_db.pwned (id INT);\n", "denied"),
        ("USE `customer_12`;\n", "database"),
        ("SELECT 'ends here';\n-- Dump completed\n\\q\n", ""),
        ("SIGNAL SQLSTATE '45000';\n", ""),
    ];
    let mut snapshots: Vec<_> = broken
        .iter()
        .map(|(statement, said)| {
            (
                world.daily_with(customer, |dump| half_way(&dump, statement)),
                *said,
            )
        })
        .collect();
    let cut = world.daily_with(customer, |dump| dump[..dump.len() / 2].to_owned());
    snapshots.push((cut, ""));
    live_state(&world);
    let before = world.evidence();
    let mut rests = ["", "--online", "--type db"].into_iter().cycle();
    for (snapshot, said) in snapshots {
        let rest = rests.next().unwrap();
        let line = format!("restore 1 {snapshot} --source daily {rest} --yes");
        let error = world.run(&line).failed(1);
        assert!(error.contains(said), "{error}");
        assert!(!error.contains("operator"), "{error}");
        assert_eq!(
            world.stops_and_starts(),
            [] as [&str; 0],
            "it has not come to that"
        );
        world.assert_unchanged(&before);
    }
}

#[test]
fn an_import_that_is_too_slow_or_cancelled_leaves_everything_as_it_was() {
    let world = World::new(&[1]);
    let customer = world.customer(1);
    let snapshot = world.daily_with(customer, |dump| half_way(&dump, Gate::STATEMENT));
    live_state(&world);
    let before = world.evidence();
    let line = format!("restore 1 {snapshot} --source daily --yes");

    let gate = Gate::close(&world);
    let mut command = world.command(&line);
    command.env("BACKUP__CUSTOMER_DATABASE__IMPORT_TIMEOUT", "2s");
    let error = world.run_command(&mut command).failed(1);
    assert!(error.contains("longer than 2 s"), "{error}");
    world.assert_unchanged(&before);

    for (kind, times) in [(Signal::TERM, 1), (Signal::INT, 3)] {
        let child = world.command(&line).spawn().unwrap();
        gate.wait_for_import(&world);
        for _ in 0..times {
            signal(&child, kind);
        }
        let error = world.finish(child).failed(1);
        assert!(error.contains("cancelled"), "{error}");
        world.assert_unchanged(&before);
    }

    // Asked whether it lives, as restic asks the owners of locks, it goes on.
    let child = world.command(&line).spawn().unwrap();
    gate.wait_for_import(&world);
    signal(&child, Signal::HUP);
    drop(gate);
    world.finish(child).good();
    assert_eq!(
        world.stops_and_starts().len(),
        2,
        "all the others never stopped the site"
    );
}

#[test]
fn a_restore_of_files_that_is_cancelled_leaves_everything_as_it_was() {
    let world = World::new(&[1]);
    let customer = world.customer(1);
    let mut bytes = vec![0; 40 << 20];
    rand::fill(&mut bytes[..]);
    fs::write(customer.site().join("large"), &bytes).unwrap();
    let snapshot = world.back_up("1 --type files");
    live_state(&world);
    let before = world.evidence();
    let proxy = Proxy::start(world.bed.sshd().port()).unwrap();
    proxy.set_bytes_per_second(Some(4 << 20));
    let mut command = world.command(&format!("restore 1 {snapshot} --yes"));
    world.bed.through(&proxy, &mut command).unwrap();
    let child = command.spawn().unwrap();
    eventually("files are staged", || {
        let mut staged = world.staging_directories().into_iter();
        staged.any(|staging| staging.join("files/wordpress/large").exists())
    });
    signal(&child, Signal::TERM);
    let error = world.finish(child).failed(1);
    assert!(error.contains("cancelled"), "{error}");
    world.assert_unchanged(&before);
    assert_eq!(world.stops_and_starts(), [] as [&str; 0]);
}

#[test]
fn a_database_server_that_dies_during_the_import_leaves_the_site_as_it_was_and_nothing_once_it_is_back()
 {
    let mut world = World::new(&[1]);
    let snapshot = world.daily_with(world.customer(1), |dump| half_way(&dump, Gate::STATEMENT));
    live_state(&world);
    let before = world.evidence();
    let line = format!("restore 1 {snapshot} --source daily --yes");
    let gate = Gate::close(&world);
    let child = world.command(&line).spawn().unwrap();
    gate.wait_for_import(&world);
    gate.lose();
    world.bed.mariadb_mut().kill();
    let error = world.finish(child).failed(1);
    assert!(error.contains("import"), "{error}");
    world.bed.mariadb_mut().restart().unwrap();
    let after = world.evidence();
    let staged = world.schemas_beside();
    assert_eq!(staged.len(), 1);
    before.assert_same_but(
        &after,
        &[&format!("the database {}", staged[0]), "accounts"],
    );
    assert!(!world.in_maintenance(world.customer(1)));
    assert_eq!(world.staging_directories(), [] as [PathBuf; 0]);
    assert_eq!(world.stops_and_starts(), [] as [&str; 0]);

    // What could not be removed without the server is removed once it is back.
    let document = world.run("recover").good();
    assert_eq!(document["restores"][0]["recovery"], "undone");
    world.assert_unchanged(&before);
    assert_eq!(
        world.run("recover").good()["restores"],
        serde_json::json!([])
    );
    world.run(&line).good();
    world.assert_nothing_left();
}

#[test]
fn a_killed_restore_changes_nothing_and_the_next_one_removes_what_it_left() {
    let world = World::new(&[1]);
    let customer = world.customer(1);
    let good = world.back_up("1");
    let goal = world.evidence();
    let snapshot = world.daily_with(customer, |dump| half_way(&dump, Gate::STATEMENT));
    live_state(&world);
    let before = world.evidence();
    let line = format!("restore 1 {snapshot} --source daily --yes");
    let gate = Gate::close(&world);
    let child = world.command(&line).spawn().unwrap();
    gate.wait_for_import(&world);

    // Meanwhile no other restore of this customer comes to anything, and it takes nothing away from the first.
    for part in ["db", "files", "both"] {
        let error = world
            .run(&format!("restore 1 {good} --type {part} --yes"))
            .failed(1);
        assert!(
            error.contains("customer 1 has a job already that has not ended: restore job"),
            "{error}"
        );
        assert!(world.in_maintenance(customer));
    }

    signal(&child, Signal::KILL);
    assert_eq!(world.finish(child).status, None);
    drop(gate);
    eventually("the import ends without its program", || {
        world.sql("SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE DB LIKE '%restore%'")
            == "0\n"
    });
    let staged = world.schemas_beside();
    assert_eq!(staged.len(), 1);
    assert_eq!(world.staging_directories().len(), 1);
    before.assert_same_but(
        &world.evidence(),
        &[
            &format!("the database {}", staged[0]),
            "accounts",
            "customer 1: \".maintenance\": not expected",
        ],
    );
    assert_eq!(world.stops_and_starts(), [] as [&str; 0]);

    world.run("unlock").good();
    world.run(&format!("restore 1 {good} --yes")).good();
    world.assert_unchanged(&goal);
}

#[test]
fn a_site_that_does_not_stop_or_start_is_put_back_as_it_was() {
    let world = World::new(&[1, 12]);
    let snapshot = world.back_up("1");
    live_state(&world);
    let before = world.evidence();
    for online in ["", "--online"] {
        let line = format!("restore 1 {snapshot} {online} --yes");
        world.let_fail("stop");
        let error = world.run(&line).failed(1);
        assert!(
            error.contains("could not be stopped") && error.contains("do not listen"),
            "{error}"
        );
        world.assert_unchanged(&before);
        // A stop that failed may have stopped half of it.
        assert_eq!(
            world.stops_and_starts(),
            ["stop, maintenance on, live", "start, maintenance on, live"]
        );

        world.let_fail("start");
        let error = world.run(&line).failed(1);
        assert!(error.contains("could not be started"), "{error}");
        world.assert_unchanged(&before);
        assert_eq!(
            world.stops_and_starts(),
            [
                "stop, maintenance on, live",
                "start, maintenance on, shop 1",
                // A start that failed may have started half of it.
                "stop, maintenance on, shop 1",
                "start, maintenance on, live"
            ]
        );
    }
}

#[test]
fn a_site_that_does_not_come_up_is_put_back_as_it_was() {
    let world = World::new(&[1]);
    let customer = world.customer(1);
    let snapshot = world.back_up("1");
    live_state(&world);
    let before = world.evidence();
    // A site that works as it is and not as the backup has it.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let marker = customer.site().join("marker");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut request = [0; 512];
            let _ = stream.read(&mut request);
            let state = fs::read_to_string(&marker).unwrap_or_default();
            let answer = if state == "live\n" {
                "200 OK"
            } else {
                "500 Broken"
            };
            let _ = write!(stream, "HTTP/1.1 {answer}\r\nContent-Length: 0\r\n\r\n");
        }
    });
    for online in ["", "--online"] {
        let mut command = world.command(&format!("restore 1 {snapshot} {online} --yes"));
        command
            .env("BACKUP__SITE__HEALTH_URL", &url)
            .env("BACKUP__SITE__HEALTH_TIMEOUT", "1s");
        let error = world.run_command(&mut command).failed(1);
        assert!(error.contains("error 500"), "{error}");
        assert!(!error.contains("operator"), "{error}");
        world.assert_unchanged(&before);
        assert_eq!(
            world.stops_and_starts(),
            [
                "stop, maintenance on, live",
                "start, maintenance on, shop 1",
                "stop, maintenance on, shop 1",
                "start, maintenance on, live"
            ]
        );
    }
    // A restore of what works comes to its end.
    let good = world.back_up("1");
    fs::write(customer.site().join("new"), "other").unwrap();
    let mut command = world.command(&format!("restore 1 {good} --yes"));
    command.env("BACKUP__SITE__HEALTH_URL", &url);
    world.run_command(&mut command).good();
    world.assert_unchanged(&before);
}
