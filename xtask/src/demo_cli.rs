//! The main job on real data, shown step by step: back up a shop, wreck it, restore it, prove that nothing is different; undo that; kill a restore half-way
//! and recover it.

use std::fs;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use serde_json::Value;
use xtask::machine::bytes;
use xtask::testbed::{Customer, TestBed};
use xtask::tree::TreeImage;

use crate::measure::{self, Usage};

const POSTS: u32 = 300;
const IMAGES: u32 = 60;

/// Run the demo with the product at `binary`. An error means that a promise was broken, or that we were interrupted.
pub fn run(binary: &Path) -> Result<()> {
    let mut demo = Demo { binary, step: 0 };
    println!(
        "ShopHosting Backups: one customer's shop, backed up, wrecked, restored, undone and recovered.\n"
    );
    let started = Instant::now();

    let bed = demo.step("Start a private MariaDB and a private SSH server", || {
        let bed = TestBed::start()?;
        let detail = format!(
            "in {}, on ports {} and {}",
            bed.scratch().display(),
            bed.mariadb().port(),
            bed.sshd().port()
        );
        Ok((bed, detail))
    })?;
    let shop = demo.step("Create customer 1 with a real shop", || {
        create_shop(&bed, 1)
    })?;
    let neighbour = demo.step("Create customer 12 with another", || create_shop(&bed, 12))?;
    demo.product(
        &bed,
        "Create the repositories on the SSH server",
        &["init"],
        |_| Ok(String::new()),
    )?;

    let before = demo.step("Remember what the shops look like", || {
        let before = [Evidence::of(&bed, &shop)?, Evidence::of(&bed, &neighbour)?];
        Ok((before.clone(), before[0].summary()))
    })?;

    demo.product(
        &bed,
        "Back up customer 12",
        &["backup", "12", "--type", "both"],
        backup_summary,
    )?;
    let mut snapshot = String::new();
    demo.product(
        &bed,
        "Back up customer 1, files and database",
        &["backup", "1", "--type", "both"],
        |printed| {
            snapshot = text(printed, "snapshot_id")?;
            backup_summary(printed)
        },
    )?;
    demo.product(
        &bed,
        "Back up customer 1 again, with nothing changed",
        &["backup", "1", "--type", "both"],
        backup_summary,
    )?;
    demo.product(
        &bed,
        "List the backups of customer 1",
        &["list", "1"],
        |printed| {
            let manual = printed["manual"]
                .as_array()
                .context("the list has no `manual`")?;
            ensure!(
                manual.len() == 2,
                "there should be two backups, not {}",
                manual.len()
            );
            ensure!(
                manual
                    .iter()
                    .any(|backup| backup["id"] == snapshot.as_str()),
                "the first backup is not listed"
            );
            Ok(format!(
                "the catalogue has {} backups, none of them of customer 12",
                manual.len()
            ))
        },
    )?;

    demo.step("Wreck the shop", || Ok(((), wreck(&bed, &shop)?)))?;
    demo.step("See that it is broken", || {
        let found = before[0].differences(&Evidence::of(&bed, &shop)?);
        ensure!(!found.is_empty(), "the wreck is as good as new");
        Ok(((), format!("{} differences", found.len())))
    })?;
    let wreck = Evidence::of(&bed, &shop)?;

    let restore = ["restore", "1", &snapshot, "--type", "both", "--yes"];
    let mut replaced = String::new();
    demo.product(&bed, "Restore the first backup", &restore, |printed| {
        replaced = text(printed, "kept_snapshot")?;
        Ok("what it replaced is a backup now, too".to_owned())
    })?;
    demo.product(
        &bed,
        "See what became of the jobs of customer 1",
        &["jobs", "1"],
        jobs_summary,
    )?;
    demo.step("Prove that every file and every table is as it was", || {
        before[0].same(&Evidence::of(&bed, &shop)?)?;
        before[1]
            .same(&Evidence::of(&bed, &neighbour)?)
            .context("customer 12 was changed")?;
        Ok((
            (),
            format!("{}; customer 12 untouched", before[0].summary()),
        ))
    })?;
    let undo = [
        "restore",
        "1",
        &replaced,
        "--source",
        "pre-restore",
        "--yes",
    ];
    demo.product(&bed, "Undo the restore", &undo, |_| Ok(String::new()))?;
    demo.step("See that the wreck is back as it was just before", || {
        wreck.same(&Evidence::of(&bed, &shop)?)?;
        Ok(((), "the restore lost nothing, not even that".to_owned()))
    })?;
    demo.step(
        "Restore again, killed in the middle of the exchange",
        || {
            die_in_exchange(&bed, binary, &restore)?;
            let now = Evidence::of(&bed, &shop)?;
            ensure!(
                !wreck.differences(&now).is_empty() && !before[0].differences(&now).is_empty(),
                "it was not killed half-way"
            );
            Ok(((), "kill -9: neither the wreck nor the shop".to_owned()))
        },
    )?;
    demo.product(&bed, "Recover it", &["recover"], |printed| {
        let recovery = text(&printed["restores"][0], "recovery")?;
        ensure!(recovery == "undone", "it is {recovery}");
        Ok("from its journal: what was half new is as it was".to_owned())
    })?;
    demo.step("See that the wreck is whole again", || {
        wreck.same(&Evidence::of(&bed, &shop)?)?;
        Ok(((), wreck.summary()))
    })?;
    demo.product(&bed, "Restore once more", &restore, |_| Ok(String::new()))?;
    demo.step("Prove once more that all is as it was", || {
        before[0].same(&Evidence::of(&bed, &shop)?)?;
        Ok(((), before[0].summary()))
    })?;
    demo.step(
        "Let the stock restic check and restore the same backup",
        || {
            let detail = restic_agrees(&bed, &shop, &snapshot, &before[0])?;
            Ok(((), detail))
        },
    )?;
    demo.step("Clean up", || {
        let scratch = bed.scratch().to_owned();
        drop(bed);
        ensure!(!scratch.exists(), "{} is still there", scratch.display());
        Ok(((), String::new()))
    })?;
    println!(
        "\nDone in {}: what was backed up came back, byte for byte.",
        seconds(started.elapsed())
    );
    Ok(())
}

struct Demo<'a> {
    binary: &'a Path,
    step: u32,
}

impl Demo<'_> {
    /// Do one step and print it with its time and what came of it.
    fn step<T>(&mut self, title: &str, action: impl FnOnce() -> Result<(T, String)>) -> Result<T> {
        self.announce(title)?;
        measure::check_interrupted()?;
        let started = Instant::now();
        match action() {
            Ok((value, detail)) => {
                println!("{:>8}", seconds(started.elapsed()));
                print_detail(&detail);
                Ok(value)
            }
            Err(error) => {
                println!("  FAILED");
                Err(error)
            }
        }
    }

    /// Run one command of the product. `detail` is given the JSON that it printed and says what to show of it.
    fn product(
        &mut self,
        bed: &TestBed,
        title: &str,
        arguments: &[&str],
        detail: impl FnOnce(&Value) -> Result<String>,
    ) -> Result<()> {
        self.announce(title)?;
        let result = product_json(bed, self.binary, arguments)
            .and_then(|(printed, usage)| Ok((detail(&printed)?, usage)));
        match result {
            Ok((detail, usage)) => {
                println!(
                    "{:>8}   {} of memory",
                    seconds(usage.time),
                    bytes(usage.peak_memory)
                );
                println!("       $ shophosting-backup {}", arguments.join(" "));
                print_detail(&detail);
                Ok(())
            }
            Err(error) => {
                println!("  FAILED");
                Err(error.context(format!("shophosting-backup {}", arguments.join(" "))))
            }
        }
    }

    fn announce(&mut self, title: &str) -> Result<()> {
        self.step += 1;
        print!("{:>3}. {title:.<62}", self.step);
        Ok(std::io::stdout().flush()?)
    }
}

/// Run a command of the product with `--json`: the document it printed (null for none), and what it took.
pub fn product_json(bed: &TestBed, binary: &Path, arguments: &[&str]) -> Result<(Value, Usage)> {
    let (printed, usage) = measure::run(bed.product(binary).arg("--json").args(arguments))?;
    if printed.trim_ascii().is_empty() {
        return Ok((Value::Null, usage));
    }
    let document = serde_json::from_slice(&printed)
        .context("it printed something else than one JSON document")?;
    Ok((document, usage))
}

/// A text of a JSON document.
pub fn text(document: &Value, key: &str) -> Result<String> {
    document[key]
        .as_str()
        .map(str::to_owned)
        .with_context(|| format!("it printed no `{key}`"))
}

fn create_shop(bed: &TestBed, id: u32) -> Result<(Customer, String)> {
    let customer = bed.add_wordpress_customer(id, POSTS, IMAGES)?;
    let tables = bed.table_checksums(&customer.database)?.lines().count();
    let detail = format!(
        "Debian's WordPress, {tables} tables, {POSTS} posts, {IMAGES} images, a view, a trigger, a procedure"
    );
    Ok((customer, detail))
}

fn backup_summary(printed: &Value) -> Result<String> {
    let number = |key: &str| {
        printed[key]
            .as_u64()
            .with_context(|| format!("it printed no `{key}`"))
    };
    if let Some(warnings) = printed["warnings"]
        .as_array()
        .filter(|warnings| !warnings.is_empty())
    {
        bail!("there is nothing to warn of here: {warnings:?}");
    }
    let id = text(printed, "snapshot_id")?;
    Ok(format!(
        "snapshot {}: {} files, {} and a dump of {}; {} were new",
        id.get(..8).unwrap_or(&id),
        number("files")?,
        bytes(number("bytes")?),
        bytes(number("database_bytes")?),
        bytes(number("bytes_added")?),
    ))
}

/// Oldest first.
fn jobs_summary(printed: &Value) -> Result<String> {
    let jobs = printed["jobs"].as_array().context("there are no `jobs`")?;
    let lines: Vec<String> = jobs
        .iter()
        .rev()
        .map(|job| {
            let id = &job["id"];
            let [kind, status] = ["job_type", "status"].map(|key| text(job, key));
            Ok(format!("{} {id} {}", kind?, status?))
        })
        .collect::<Result<_>>()?;
    let expected = [
        "backup 2 completed",
        "backup 3 completed",
        "restore 4 completed",
    ];
    ensure!(lines == expected, "these are the jobs: {lines:?}");
    Ok(lines.join(", "))
}

/// What a customer's shop is, in full.
#[derive(Clone)]
struct Evidence {
    files: TreeImage,
    checksums: String,
    dump: Vec<u8>,
}

impl Evidence {
    fn of(bed: &TestBed, customer: &Customer) -> Result<Self> {
        Ok(Self {
            files: TreeImage::of(&customer.site())?,
            checksums: bed.table_checksums(&customer.database)?,
            dump: bed.dump(&customer.database)?,
        })
    }

    fn summary(&self) -> String {
        format!(
            "{} entries with {}, {} tables, a dump of {}",
            self.files.entries(),
            bytes(self.files.bytes()),
            self.checksums.lines().count(),
            bytes(self.dump.len() as u64)
        )
    }

    fn differences(&self, other: &Self) -> Vec<String> {
        let mut lines = self.files.differences(&other.files);
        let tables = self
            .checksums
            .lines()
            .filter(|line| !other.checksums.lines().any(|found| found == *line));
        lines.extend(tables.map(|line| format!("table {line}: missing or not the same")));
        let extra = other
            .checksums
            .lines()
            .filter(|line| !self.checksums.lines().any(|expected| expected == *line));
        lines.extend(extra.map(|line| format!("table {line}: not expected")));
        if self.dump != other.dump {
            lines.push("the dump of the database is not the same".to_owned());
        }
        lines
    }

    fn same(&self, other: &Self) -> Result<()> {
        let lines = self.differences(other);
        ensure!(
            lines.is_empty(),
            "{} differences, such as:\n  {}",
            lines.len(),
            lines[..lines.len().min(20)].join("\n  ")
        );
        Ok(())
    }
}

/// A restore that is killed as by `kill -9` when the files are exchanged and the tables are not.
fn die_in_exchange(bed: &TestBed, binary: &Path, arguments: &[&str]) -> Result<()> {
    let output = bed
        .product(binary)
        .args(arguments)
        .env("SHOPHOSTING_BACKUP_DIE_AT", "in exchange")
        .output()?;
    ensure!(
        output.status.signal() == Some(Signal::KILL.as_raw()),
        "it ended otherwise ({}): {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

fn wreck(bed: &TestBed, customer: &Customer) -> Result<String> {
    let site = customer.site();
    fs::remove_dir_all(site.join("wp-content"))?;
    fs::remove_file(site.join("wp-config.php"))?;
    fs::write(site.join("index.php"), "<?php echo 'you have been hacked';")?;
    fs::write(
        site.join("wp-includes/backdoor.php"),
        "<?php system($_GET['c']);",
    )?;
    bed.sql_as(
        customer,
        "DROP TABLE wp_posts, wp_options, shop_order_lines; DROP PROCEDURE shop_count;
         UPDATE shop_orders SET total = 0; CREATE TABLE ransom_note (text TEXT); INSERT INTO ransom_note VALUES ('pay')",
    )?;
    Ok(
        "wp-content and wp-config.php deleted, index.php overwritten, a backdoor added;\n\
        three tables and a procedure dropped, one table zeroed, one table added"
            .to_owned(),
    )
}

/// The stock program finds nothing wrong with the repository, and what it restores is the same too.
fn restic_agrees(
    bed: &TestBed,
    customer: &Customer,
    snapshot: &str,
    expected: &Evidence,
) -> Result<String> {
    let restic = bed.restic()?;
    restic.check_read_data()?;
    let target = bed.scratch().join("restored-by-restic");
    restic.restore(snapshot, &target)?;
    let restored = |path: &Path| -> Result<PathBuf> { Ok(target.join(path.strip_prefix("/")?)) };
    let differences = expected
        .files
        .differences(&TreeImage::of(&restored(&customer.site())?)?);
    ensure!(
        differences.is_empty(),
        "restic restored something else: {}",
        differences.join("\n")
    );

    let dump = restored(Path::new(&format!(
        "/tmp/customer-backup-{}/{}.sql",
        customer.id, customer.database
    )))?;
    bed.mariadb().sql("CREATE DATABASE restored_by_restic")?;
    let mut import = Command::new("mariadb");
    import.args([
        "--no-defaults",
        "--comments",
        "--binary-mode",
        "--user=root",
    ]);
    import
        .arg(format!("--socket={}", bed.mariadb().socket().display()))
        .arg("restored_by_restic");
    import
        .env("MYSQL_PWD", bed.mariadb().root_password())
        .stdin(fs::File::open(dump)?);
    measure::run(&mut import)?;
    let checksums = bed.table_checksums("restored_by_restic")?;
    ensure!(
        checksums == expected.checksums,
        "the tables that restic brought back are not the same"
    );
    let (version, _) = measure::run(Command::new("restic").arg("version"))?;
    let version = String::from_utf8_lossy(&version);
    let version = version
        .split_whitespace()
        .nth(1)
        .unwrap_or("of unknown version");
    Ok(format!(
        "restic {version}: no errors were found; files and tables are the same"
    ))
}

fn print_detail(detail: &str) {
    for line in detail.lines() {
        println!("       {line}");
    }
}

fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}
