//! Whoever visits a shop while it is restored sees the old shop, then the page that says so, then the new shop: never a mix of both, and never an error.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use xtask::sandbox::{Options, Owner, Sandbox};

const VISITORS: usize = 4;

/// Shows of which state the files are, and of which the tables.
const PAGE: &str = "<?php
$files = trim(file_get_contents(__DIR__ . '/state.txt'));
$database = new mysqli('127.0.0.1', '{user}', '{password}', '{database}', {port});
$tables = $database->query('SELECT state FROM state')->fetch_row()[0];
echo \"files $files, tables $tables\";
";

#[derive(Debug, Clone, PartialEq, Eq)]
enum Sight {
    Old,
    /// The maintenance page, with all that tells programs to come back and to keep nothing.
    Closed,
    New,
    Other(String),
}

fn look(address: &str) -> Sight {
    let mut answer = String::new();
    let asked = TcpStream::connect(address).and_then(|mut connection| {
        write!(
            connection,
            "GET /state.php HTTP/1.0\r\nHost: {address}\r\n\r\n"
        )?;
        connection.read_to_string(&mut answer)
    });
    if let Err(error) = asked {
        return Sight::Other(error.to_string());
    }
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let has = |line: &str| head.lines().any(|one| one.eq_ignore_ascii_case(line));
    match (head.split(' ').nth(1), body) {
        (Some("200"), "files old, tables old") => Sight::Old,
        (Some("200"), "files new, tables new") => Sight::New,
        (Some("503"), page)
            if has("Retry-After: 120")
                && has("Cache-Control: no-store")
                && page.contains("back in a few minutes") =>
        {
            Sight::Closed
        }
        _ => Sight::Other(answer),
    }
}

/// What somebody saw who looked again and again, and when it began and ended each time that it was something else.
fn visit(address: &str, done: &AtomicBool, came: &AtomicBool) -> Vec<(Sight, Instant)> {
    let mut seen: Vec<(Sight, Instant)> = Vec::new();
    let mut is_last = false;
    loop {
        let sight = look(address);
        if seen.last().is_none_or(|(last, _)| *last != sight) {
            seen.push((sight, Instant::now()));
        }
        came.store(true, Ordering::Relaxed);
        if is_last {
            return seen;
        }
        // Once more after the end: that is the new shop.
        is_last = done.load(Ordering::Relaxed);
    }
}

struct Shop<'a> {
    sandbox: &'a Sandbox,
    owner: &'a Owner,
}

impl Shop<'_> {
    fn set(&self, state: &str) {
        let customer = &self.owner.customer;
        fs::write(customer.site().join("state.txt"), state).unwrap();
        let sql = format!("REPLACE INTO state VALUES (1, '{state}')");
        self.sandbox.bed().sql_as(customer, &sql).unwrap();
    }

    /// Back up the new state with so many megabytes of media; the id.
    fn back_up(&self, megabytes: usize) -> String {
        let media = self.owner.customer.site().join("media");
        let _ = fs::remove_dir_all(&media);
        fs::create_dir(&media).unwrap();
        let mut bytes = vec![0; 1 << 20];
        for number in 0..megabytes {
            rand::fill(&mut bytes[..]);
            fs::write(media.join(number.to_string()), &bytes).unwrap();
        }
        self.set("new");
        let document = self.sandbox.run("--json backup 1").unwrap();
        fs::remove_dir_all(media).unwrap();
        let document: serde_json::Value = serde_json::from_str(&document).unwrap();
        document["snapshot_id"].as_str().unwrap().to_owned()
    }

    /// Restore it among visitors; for how long a visitor saw the maintenance page, at most.
    fn restore_among_visitors(&self, snapshot: &str, rest: &str) -> Duration {
        let _ = fs::remove_dir_all(self.owner.customer.site().join("media"));
        self.set("old");
        let address = self.owner.shop.trim_start_matches("http://");
        let done = AtomicBool::new(false);
        let came: [AtomicBool; VISITORS] = std::array::from_fn(|_| AtomicBool::new(false));
        let seen: Vec<_> = std::thread::scope(|scope| {
            let visitors: Vec<_> = came
                .iter()
                .map(|came| scope.spawn(|| visit(address, &done, came)))
                .collect();
            crate::world::eventually("all visitors are there", || {
                came.iter().all(|one| one.load(Ordering::Relaxed))
            });
            let restored = self
                .sandbox
                .run(&format!("restore 1 {snapshot} {rest} --yes"));
            done.store(true, Ordering::Relaxed);
            let seen = visitors.into_iter().map(|one| one.join().unwrap());
            let seen = seen.collect();
            restored.unwrap();
            seen
        });
        let windows = seen.iter().map(|seen| {
            let sights: Vec<_> = seen.iter().map(|(sight, _)| sight.clone()).collect();
            assert_eq!(sights, [Sight::Old, Sight::Closed, Sight::New]);
            seen[2].1 - seen[1].1
        });
        windows.max().unwrap()
    }
}

fn write_page(sandbox: &Sandbox, owner: &Owner) {
    let customer = &owner.customer;
    let page = PAGE
        .replace("{user}", &customer.user)
        .replace("{password}", &customer.password)
        .replace("{database}", &customer.database)
        .replace("{port}", &sandbox.bed().mariadb().port().to_string());
    fs::write(customer.site().join("state.php"), page).unwrap();
    sandbox
        .bed()
        .sql_as(
            customer,
            "CREATE TABLE state (id INT PRIMARY KEY, state VARCHAR(3))",
        )
        .unwrap();
}

/// Of the larger shop.
fn megabytes() -> usize {
    let wanted = std::env::var("SHOPHOSTING_BACKUP_VISIT_MB").ok();
    wanted.map_or(200, |number| number.parse().unwrap())
}

#[test]
fn visitors_see_the_old_shop_the_maintenance_page_and_the_new_shop_and_nothing_else() {
    let options = Options {
        port: None,
        customers: vec![1],
        posts: 5,
        images: 2,
        daily: 0,
    };
    let binary = Path::new(env!("CARGO_BIN_EXE_shophosting-backup"));
    let sandbox = Sandbox::start(binary, &options, |_| Ok(())).unwrap();
    let [owner] = sandbox.owners() else {
        panic!("one owner was asked for")
    };
    write_page(&sandbox, owner);
    let shop = Shop {
        sandbox: &sandbox,
        owner,
    };
    let small = shop.back_up(10);
    shop.restore_among_visitors(&small, "");
    let of_small = shop.restore_among_visitors(&small, "--online");
    let large = shop.back_up(megabytes());
    let of_large = shop.restore_among_visitors(&large, "--online");
    println!(
        "closed with --online: {of_small:.2?} for a shop of 10 MB, {of_large:.2?} for one of {} MB",
        megabytes()
    );
    // A machine may be busier the one time than the other.
    assert!(
        of_large < of_small * 2 + Duration::from_secs(1),
        "the larger the shop, the longer it is closed: {of_small:?}, {of_large:?}"
    );
}
