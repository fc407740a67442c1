//! What a customer can put into his database to reach beyond it, and what a watcher on the host could learn meanwhile.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

use xtask::testbed::Customer;

use crate::world::{Gate, World, half_way};

/// SQL by a customer's own account, comments kept, `;` no end of a statement.
fn sql_with_comments(world: &World, customer: &Customer, statement: &str) {
    let mut client = Command::new("mariadb")
        .args([
            "--no-defaults",
            "--comments",
            "--binary-mode",
            "--delimiter=$$",
        ])
        .arg(format!(
            "--socket={}",
            world.bed.mariadb().socket().display()
        ))
        .arg(format!("--user={}", customer.user))
        .arg(&customer.database)
        .env("MYSQL_PWD", &customer.password)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = client.stdin.take().unwrap();
    write!(stdin, "{statement}\n$$\n").unwrap();
    drop(stdin);
    assert!(client.wait().unwrap().success(), "{statement}");
}

/// What ends a comment that the dump program puts around a definition, and then does harm.
fn escape(world: &World) -> String {
    let pwned = world.bed.scratch().join("pwned");
    format!(
        "1 /* x */ + length('*/ */ ;;\ncreate table shophosting_db.pwned (id int) ;;\ndelete from customer_12.order_lines ;;\n\
         drop table customer_12.order_lines ;;\n\\! touch {0}\nsystem touch {0}\n;;\n/*')",
        pwned.display()
    )
}

#[test]
fn a_definition_that_escapes_from_its_comment_reaches_nothing_outside() {
    let world = World::new(&[1, 12]);
    let customer = world.customer(1);
    let escape = escape(&world);
    let definitions = [
        (
            "trigger",
            format!("CREATE TRIGGER attack BEFORE INSERT ON orders FOR EACH ROW SET @a = {escape}"),
        ),
        (
            "view",
            format!("CREATE VIEW attack AS SELECT {escape} AS a"),
        ),
        (
            "procedure",
            format!("CREATE PROCEDURE attack() BEGIN SET @a = {escape}; END"),
        ),
        (
            "function",
            format!("CREATE FUNCTION attack() RETURNS INT RETURN {escape}"),
        ),
    ];
    for (kind, definition) in definitions {
        sql_with_comments(&world, customer, &definition);
        let daily = world.daily_with(customer, |dump| dump);
        let manual = world.back_up("1 --type db");
        if kind == "trigger" {
            show_that_the_attack_is_real(&world, customer);
        }
        world.sql_as(customer, "INSERT INTO audit VALUES ('since the backup')");
        assert_confined(&world, customer, &daily, "daily");
        assert_confined(&world, customer, &manual, "manual");
        world.sql_as(customer, &format!("DROP {kind} IF EXISTS attack"));
    }
    // The dump program itself would hang on an event like that.
    let event = format!(
        "DELIMITER ;;\n/*!50106 CREATE*/ /*!50117 DEFINER=`customer_1`@`%`*/ /*!50106 EVENT `attack` ON SCHEDULE EVERY 1 DAY \
         STARTS '2026-11-22 00:00:00' ON COMPLETION NOT PRESERVE ENABLE DO SET @a = {escape} */ ;;\nDELIMITER ;\n"
    );
    let daily = world.daily_with(customer, |dump| half_way(&dump, &event));
    assert_confined(&world, customer, &daily, "daily");
}

/// Restore it: whatever comes of that, nothing outside of the customer's own schema changes and no command is run.
fn assert_confined(world: &World, customer: &Customer, snapshot: &str, source: &str) {
    let before = world.evidence();
    let line = format!("restore 1 {snapshot} --source {source} --type db --yes");
    let outcome = world.run(&line);
    if outcome.status == Some(0) {
        before.assert_others_same(&world.evidence(), customer);
        world.assert_nothing_left();
    } else {
        outcome.failed(1);
        world.assert_unchanged(&before);
    }
    assert!(
        !world.bed.scratch().join("pwned").exists(),
        "a command was run"
    );
}

/// An import as an administrator would do it does the harm: without this, the test above would prove nothing.
fn show_that_the_attack_is_real(world: &World, customer: &Customer) {
    let mariadb = world.bed.mariadb();
    let dump = world.bed.dump(&customer.database).unwrap();
    world.sql("CREATE DATABASE naive; CREATE DATABASE kept; RENAME TABLE customer_12.order_lines TO kept.order_lines");
    let mut client = Command::new("mariadb")
        .args(["--no-defaults", "--user=root", "--force", "naive"])
        .arg(format!("--socket={}", mariadb.socket().display()))
        .env("MYSQL_PWD", mariadb.root_password())
        .stdin(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let _ = client.stdin.take().unwrap().write_all(&dump);
    client.wait().unwrap();
    let tables = world.sql("SHOW TABLES FROM shophosting_db");
    world.sql("DROP DATABASE naive; RENAME TABLE kept.order_lines TO customer_12.order_lines; DROP DATABASE kept");
    assert!(tables.contains("pwned"), "{tables}");
    world.sql("DROP TABLE shophosting_db.pwned");
    let _ = fs::remove_file(world.bed.scratch().join("pwned"));
}

#[test]
fn a_dump_full_of_orders_to_the_client_program_reaches_nothing_outside() {
    let world = World::new(&[1, 12]);
    let customer = world.customer(1);
    let scratch = world.bed.scratch().display().to_string();
    let secret = format!("{scratch}/daily-repository-password");
    for order in [
        format!("\\! touch {scratch}/pwned\n"),
        format!("tee {scratch}/pwned\nSELECT 1;\n"),
        format!("source {secret}\n"),
        format!("CREATE TABLE leak (x TEXT); LOAD DATA LOCAL INFILE '{secret}' INTO TABLE leak;\n"),
        format!("CREATE TABLE leak (x TEXT); LOAD DATA INFILE '{secret}' INTO TABLE leak;\n"),
        format!("SELECT 1 INTO OUTFILE '{scratch}/pwned';\n"),
        "connect customer_12\nDROP TABLE order_lines;\n".to_owned(),
        "\\u customer_12\nDROP TABLE order_lines;\n".to_owned(),
        "SELECT * FROM customer_12.orders;\n".to_owned(),
        "CREATE TABLE stolen AS SELECT * FROM shophosting_db.customers;\n".to_owned(),
        "CREATE USER thief; GRANT ALL ON *.* TO thief;\n".to_owned(),
        "SET GLOBAL event_scheduler = ON;\n".to_owned(),
        "CREATE DEFINER=`root`@`localhost` PROCEDURE thief() SQL SECURITY DEFINER SELECT * FROM customer_12.orders;\n".to_owned(),
    ] {
        let before = world.evidence();
        let snapshot = world.daily_with(customer, |dump| half_way(&dump, &order));
        let line = format!("restore 1 {snapshot} --source daily --type db --yes");
        let outcome = world.run(&line);
        assert!(!world.bed.scratch().join("pwned").exists(), "{order}");
        if outcome.status == Some(0) {
            before.assert_others_same(&world.evidence(), customer);
            world.assert_nothing_left();
            let stolen = world.run("backup 1 --type db").good();
            assert!(stolen["database_bytes"].as_u64() > Some(0));
            let dump = String::from_utf8(world.bed.dump("customer_1").unwrap()).unwrap();
            assert!(!dump.contains("shop 12") && !dump.contains("DEFINER=`root`"), "{order}");
            assert!(!dump.contains(&world.secrets()[3]), "{order}");
        } else {
            outcome.failed(1);
            world.assert_unchanged(&before);
        }
    }
}

#[test]
fn definers_of_others_become_the_customers_account_with_a_warning() {
    let world = World::new(&[1]);
    let customer = world.customer(1);
    let own = world.bed.dump(&customer.database).unwrap();
    world.sql(
        "USE customer_1; DROP VIEW revenue; DROP PROCEDURE count_orders; DROP TRIGGER leave_trace; DROP EVENT tidy;
         CREATE DEFINER=`root`@`localhost` VIEW revenue AS SELECT SUM(total) AS total FROM orders;
         CREATE DEFINER=`shophosting_app`@`%` PROCEDURE count_orders(OUT n INT) SELECT COUNT(*) INTO n FROM orders;
         CREATE DEFINER=`root`@`localhost` TRIGGER leave_trace AFTER UPDATE ON orders FOR EACH ROW INSERT INTO audit VALUES (CONCAT('changed ', NEW.id));
         CREATE DEFINER=`root`@`localhost` EVENT tidy ON SCHEDULE EVERY 1 DAY DO DELETE FROM audit;",
    );
    let before = world.evidence();
    let snapshot = world.back_up("1 --type db");
    let report = world.run(&format!("restore 1 {snapshot} --yes")).good();
    let warnings = report["warnings"].to_string();
    assert!(
        warnings.contains("`customer_1`@`%` becomes the definer in place of")
            && warnings.contains("root@localhost")
            && warnings.contains("shophosting_app@%"),
        "{warnings}"
    );
    before.assert_others_same(&world.evidence(), customer);
    let starts = |dump: Vec<u8>| {
        let text = String::from_utf8(dump).unwrap();
        let lines = text.lines().filter(|line| !line.contains("STARTS"));
        lines.collect::<Vec<_>>().join("\n")
    };
    assert_eq!(
        starts(world.bed.dump(&customer.database).unwrap()),
        starts(own)
    );
    // What is his own calls for no warning.
    let snapshot = world.back_up("1 --type db");
    let report = world.run(&format!("restore 1 {snapshot} --yes")).good();
    assert_eq!(report["warnings"], serde_json::json!([]));
}

#[test]
fn nobody_who_watches_a_restore_sees_a_password() {
    let world = World::new(&[1]);
    let customer = world.customer(1);
    let snapshot = world.daily_with(customer, |dump| half_way(&dump, Gate::STATEMENT));
    for own_account in [true, false] {
        if !own_account {
            world.sql("UPDATE shophosting_db.customers SET db_user = NULL, db_password = NULL");
        }
        let gate = Gate::close(&world);
        let mut command = world.command(&format!("restore 1 {snapshot} --source daily --yes"));
        let log = world.bed.scratch().join("log");
        command.stderr(fs::File::create(&log).unwrap());
        let child = command.env("RUST_LOG", "trace").spawn().unwrap();
        gate.wait_for_import(&world);
        let mut seen = 0;
        let mariadb = world.bed.mariadb();
        // Other tests import as well.
        let here = [
            format!("--socket={}", mariadb.socket().display()),
            format!("--port={}", mariadb.port()),
        ];
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Ok(line) = fs::read(entry.path().join("cmdline")) else {
                continue;
            };
            let line = String::from_utf8_lossy(&line).into_owned();
            let is_here = here.iter().any(|option| line.contains(option));
            seen += usize::from(is_here && line.contains("customer_1__restore_"));
            for secret in world.secrets() {
                assert!(
                    !line.contains(&secret),
                    "a secret is in the arguments of a program"
                );
            }
        }
        assert_eq!(seen, 1, "the import was not looked at");
        drop(gate);
        world.finish(child).good();
        let log = fs::read(&log).unwrap();
        let log = String::from_utf8_lossy(&log);
        assert!(log.contains("TRACE"), "it was not asked to log");
        for secret in world.secrets() {
            assert!(!log.contains(&secret), "a secret is in the log");
        }
        world.assert_nothing_left();
    }
}
