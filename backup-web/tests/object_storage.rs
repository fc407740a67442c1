//! Repositories in an object store, through the program: the stock restic reads what was written there, what was wrecked comes back from there, and every
//! hosting server can have one of its own.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};
use xtask::product::{Outcome, Product, arguments_of_all_processes};
use xtask::restic::Restic;
use xtask::s3::{BUCKET, S3};
use xtask::tree::TreeImage;

/// A hosting server whose customers' backups are in a bucket, below the server's name.
struct World {
    product: Product,
    s3: S3,
}

impl World {
    fn start() -> Self {
        let s3 = S3::start().unwrap();
        let mut product = Product::start(env!("CARGO_BIN_EXE_shophosting-backup")).unwrap();
        product.keep_secret("the secret of the access key", s3.secret());
        // An address that is signed is a key, if only for minutes.
        product.keep_secret("a signed address", "X-Amz-Signature");
        // The platform's own script makes the daily one, elsewhere.
        product.init().unwrap();
        Self { product, s3 }
    }

    fn command(&self, line: &str) -> Command {
        let mut command = self.product.command(line);
        command
            .env(
                "BACKUP__REPOSITORIES__MANUAL__LOCATION",
                self.s3.location("shops/{server}/manual"),
            )
            .env(
                "BACKUP__REPOSITORIES__MANUAL__S3_KEY_FILE",
                self.s3.key_file(),
            );
        command
    }

    #[track_caller]
    fn run(&self, line: &str) -> Outcome {
        self.product.run_command(self.command(line))
    }

    #[track_caller]
    fn on(&self, server: &str, line: &str) -> Outcome {
        let mut command = self.command(line);
        command.env("BACKUP__WORKER__SERVER", server);
        self.product.run_command(command)
    }

    fn restic(&self, server: &str) -> Restic {
        Restic::new(
            self.s3.location(&format!("shops/{server}/manual")),
            self.product.bed.manual_password(),
        )
        .unwrap()
        .access_key(self.s3.key_id(), self.s3.secret())
    }

    /// How many objects there are of a kind.
    fn count(&self, server: &str, kind: &str) -> usize {
        let directory = self.s3.bucket().join("shops").join(server).join("manual");
        fs::read_dir(directory.join(kind)).map_or(0, Iterator::count)
    }
}

fn listed(outcome: &Outcome, source: &str) -> usize {
    let document: Value = outcome.document();
    document[source].as_array().unwrap().len()
}

#[test]
fn what_was_wrecked_comes_back_from_a_bucket_and_restic_reads_what_is_there() {
    let mut world = World::start();
    let customer = world.product.add_customer(7).unwrap();
    let uploads = customer.site().join("wp-content/uploads");
    fs::create_dir_all(&uploads).unwrap();
    fs::write(customer.site().join("index.php"), "<?php").unwrap();
    for n in 0..20_u8 {
        fs::write(uploads.join(format!("{n}.jpg")), vec![n; 200_000]).unwrap();
    }
    let schema = &customer.database;
    let sql = |text: &str| world.product.bed.mariadb().sql(text).unwrap();
    sql(&format!(
        "USE {schema}; CREATE TABLE orders (id INT PRIMARY KEY, total INT); INSERT INTO orders SELECT seq, seq * 7 FROM seq_1_to_500"
    ));
    let site = TreeImage::of(&customer.site()).unwrap();
    let rows = world.product.bed.table_checksums(schema).unwrap();

    world.run("backup 7").refusal(1);
    let created = world.run("--json init").document();
    assert_eq!(created["repositories"][0]["created"], true);
    let again = world.run("--json init").document();
    assert_eq!(again["repositories"][0]["created"], false);

    let report = world.run("--json backup 7").document();
    let backup = report["snapshot_id"].as_str().unwrap().to_owned();
    assert_eq!(report["warnings"], json!([]));
    assert_eq!(world.count("default", "snapshots"), 1);
    let restic = world.restic("default");
    restic.check_read_data().unwrap();
    assert_eq!(restic.snapshots().unwrap()[0]["id"], backup.as_str());
    let dump = restic
        .run([
            "dump",
            &backup,
            &format!("/tmp/customer-backup-7/{schema}.sql"),
        ])
        .unwrap();
    assert!(dump.stdout.ends_with(b"\n") && dump.stdout.windows(6).any(|w| w == b"orders"));

    fs::remove_dir_all(customer.site()).unwrap();
    fs::create_dir(customer.site()).unwrap();
    sql(&format!("DROP TABLE {schema}.orders"));
    world.run(&format!("restore 7 {backup} --yes")).done();
    let found = TreeImage::of(&customer.site()).unwrap();
    assert!(
        site.differences(&found).is_empty(),
        "{:?}",
        site.differences(&found)
    );
    assert_eq!(world.product.bed.table_checksums(schema).unwrap(), rows);

    // What is given up goes, and what stays is whole.
    for n in 0..6 {
        fs::write(customer.site().join("counter"), vec![n; 300_000]).unwrap();
        world.run("backup 7").done();
    }
    let list = world.run("--json list 7");
    assert_eq!(
        (listed(&list, "manual"), listed(&list, "pre_restore")),
        (5, 1)
    );
    world.run("prune").done();
    world.run("check --read-data").done();
    restic.check_read_data().unwrap();
    assert_eq!(world.count("default", "snapshots"), 6);
    assert_eq!(world.count("default", "locks"), 0);
    let arguments = arguments_of_all_processes().unwrap();
    world
        .product
        .assert_no_secret("the arguments of a process", &arguments);
}

#[test]
fn a_backup_into_a_bucket_that_fails_leaves_no_backup_and_no_lock_and_says_why() {
    let mut world = World::start();
    let customer = world.product.add_customer(7).unwrap();
    fs::write(customer.site().join("index.php"), "<?php").unwrap();
    world.run("init").done();

    let wrong = world.product.bed.scratch().join("wrong-key");
    fs::write(
        &wrong,
        format!(
            "AWS_ACCESS_KEY_ID={}\nAWS_SECRET_ACCESS_KEY=wr0ng\n",
            world.s3.key_id()
        ),
    )
    .unwrap();
    let with = |name: &str, value: &str| {
        let mut command = world.command("backup 7");
        command.env(format!("BACKUP__REPOSITORIES__MANUAL__{name}"), value);
        let refusal = world.product.run_command(command);
        assert!(!refusal.messages().contains("wr0ng"));
        refusal.messages()
    };
    let said = with("S3_KEY_FILE", wrong.to_str().unwrap());
    assert!(said.contains("secret of the access key is wrong"), "{said}");
    let nowhere = world.s3.location("x").replace(BUCKET, "nowhere");
    let said = with("LOCATION", &nowhere);
    assert!(said.contains("there is no bucket `nowhere`"), "{said}");
    assert_eq!(world.count("default", "snapshots"), 0);
    assert_eq!(world.count("default", "locks"), 0);
    world.run("backup 7").done();
}

#[test]
fn every_hosting_server_has_its_own_repository_and_minds_that_alone() {
    let mut world = World::start();
    let [first, second] = [7, 8].map(|id| world.product.add_customer(id).unwrap());
    for customer in [&first, &second] {
        fs::write(customer.site().join("index.php"), "<?php").unwrap();
    }
    world
        .product
        .bed
        .mariadb()
        .sql(
            "USE shophosting_db; INSERT INTO servers (name, hostname) VALUES ('web-2', 'localhost');
             UPDATE customers SET server_id = LAST_INSERT_ID() WHERE id = 8;",
        )
        .unwrap();
    for (server, line) in [
        ("default", "init"),
        ("web-2", "init"),
        ("default", "backup 7"),
        ("web-2", "backup 8"),
    ] {
        world.on(server, line).done();
    }
    assert_eq!(world.count("default", "snapshots"), 1);
    assert_eq!(world.count("web-2", "snapshots"), 1);

    // A sync, a prune and a check of the one leave what the catalogue knows of the other, and its objects.
    for line in ["sync", "prune", "check", "unlock", "sync"] {
        for server in ["default", "web-2"] {
            world.on(server, line).done();
        }
    }
    for (server, line) in [("default", "--json list 7"), ("web-2", "--json list 8")] {
        assert_eq!(listed(&world.on(server, line), "manual"), 1);
        world.restic(server).check_read_data().unwrap();
    }
    assert_eq!(listed(&world.on("default", "--json list 8"), "manual"), 1);

    // What is in the one is nothing to the other: nobody restores from where it is not.
    let document = world.on("default", "--json list 7").document();
    let backup = document["manual"][0]["id"].as_str().unwrap().to_owned();
    fs::remove_file(first.site().join("index.php")).unwrap();
    world
        .on("default", &format!("restore 7 {backup} --type files --yes"))
        .done();
    assert!(first.site().join("index.php").exists());

    // A name that is no part of a path never becomes one.
    let refused = world.on("../default", "backup 7").refusal(2);
    assert!(
        refused.contains("repositories.manual.location"),
        "{refused}"
    );
}

#[test]
fn every_customer_has_his_own_repository_in_a_bucket_and_one_that_is_lost_is_not_made_anew() {
    let mut world = World::start();
    for id in [7, 8] {
        let customer = world.product.add_customer(id).unwrap();
        fs::write(customer.site().join("index.php"), "<?php").unwrap();
    }
    let run = |line: &str| {
        let mut command = world.command(line);
        command.env(
            "BACKUP__REPOSITORIES__MANUAL__LOCATION",
            world.s3.location("shops/{customer}"),
        );
        world.product.run_command(command)
    };
    // A bucket has no directories that could be missing, and nobody runs `init` for a new shop.
    for id in [7, 8] {
        run(&format!("backup {id}")).done();
        let list = run(&format!("--json list {id}"));
        assert_eq!(listed(&list, "manual"), 1);
        Restic::new(
            world.s3.location(&format!("shops/customer-{id}")),
            world.product.bed.manual_password(),
        )
        .unwrap()
        .access_key(world.s3.key_id(), world.s3.secret())
        .check_read_data()
        .unwrap();
    }
    run("check").done();

    fs::remove_dir_all(world.s3.bucket().join("shops/customer-7")).unwrap();
    let refused = run("backup 7").refusal(1);
    assert!(
        refused.contains("was there before and is gone"),
        "{refused}"
    );
    run("backup 8").done();
    run("init 7").done();
    run("backup 7").done();
}
