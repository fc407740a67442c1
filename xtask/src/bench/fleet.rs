//! Many small shops in one repository, with many snapshots each: what all of them together cost.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Result;
use xtask::synthetic::{self, Copies};
use xtask::testbed::TestBed;

use super::Options;
use super::data::{generate_files, generate_rows};
use super::line::{KINDS, Line};
use super::report::Report;
use crate::measure::{self, Usage};

const SHOPS: u64 = 200;
const SNAPSHOTS: u64 = 35;
const FILES: u64 = 100;
const FILE_BYTES: u64 = 2_000_000;
const DUMP_BYTES: u64 = 500_000;

/// Every shop gets a first backup by the product; the other snapshots are restic's copies of that under other times.
pub fn measure(binary: &Path, options: &Options, report: &mut Report) -> Result<()> {
    let bed = TestBed::start()?;
    let shops = (SHOPS * options.scale / 100).max(2);
    println!("fleet: {shops} shops made in {}", bed.scratch().display());
    let customers = (1..=shops)
        .map(|id| {
            let customer = bed.add_customer(u32::try_from(id)?)?;
            generate_files(&customer, FILES, FILE_BYTES)?;
            generate_rows(&bed, &customer, DUMP_BYTES)?;
            Ok(customer)
        })
        .collect::<Result<Vec<_>>>()?;
    report.describe(format!(
        "{shops} shops of {FILES} files with {} and a dump of {} each, and {SNAPSHOTS} snapshots of each in one repository",
        xtask::machine::bytes(FILE_BYTES),
        xtask::machine::bytes(DUMP_BYTES)
    ));
    let line = Line::new(KINDS[0])?;
    let run = |arguments: &[&str]| -> Result<Usage> {
        let mut command = bed.product(binary);
        line.lead("MANUAL", &bed.manual_repository(), &mut command);
        line.lead("DAILY", &bed.daily_repository(), &mut command);
        // Says that the daily backups are the product's.
        command.env("BACKUP__DAILY__KEEP", "14");
        Ok(measure::run(command.arg("--json").args(arguments))?.1)
    };
    run(&["init"])?;
    for customer in &customers {
        run(&["backup", &customer.id.to_string()])?;
    }
    synthetic::multiply_snapshots(
        &bed.manual_repository(),
        bed.manual_password(),
        SNAPSHOTS - 1,
        Copies::His,
    )?;

    for _ in 0..options.runs {
        report.of_fleet("sync", run(&["sync"])?, None);
        let list = line.restic(&bed.manual_repository(), bed.manual_password())?;
        let listed =
            measure::run(&mut list.command(["snapshots", "--json", "--tag", "customer-1"]))?;
        report.of_fleet("list", run(&["list", "1"])?, Some(listed.1));
        report.of_fleet("backup of one shop", run(&["backup", "1"])?, None);
        report.of_fleet("prune", run(&["prune"])?, None);
        let scripted = daily_script(&bed, &line)?;
        report.of_fleet("daily", run(&["daily"])?, Some(scripted));
    }
    Ok(())
}

/// All dumps into files, then one `restic backup`.
fn daily_script(bed: &TestBed, line: &Line) -> Result<Usage> {
    let repository = bed.scratch().join("backup-server/scripted-daily");
    let restic = line.restic(&repository, "benchmark")?;
    if !repository.exists() {
        restic.init()?;
    }
    let mut all = Usage::default();
    let databases = bed.mariadb().sql("SHOW DATABASES LIKE 'customer\\_%'")?;
    for database in databases.lines() {
        let mut dump = Command::new("mariadb-dump");
        dump.args([
            "--no-defaults",
            "--single-transaction",
            "--routines",
            "--triggers",
            "--user=root",
        ])
        .arg(format!("--socket={}", bed.mariadb().socket().display()))
        .arg(database)
        .env("MYSQL_PWD", bed.mariadb().root_password());
        let file = bed.daily_dumps().join(format!("{database}.sql"));
        all = all.then(measure::run_into(&mut dump, fs::File::create(file)?)?);
    }
    let mut backup = restic.command(["backup", "--tag", "daily"]);
    let (_, backed_up) = measure::run(backup.arg(bed.daily_dumps()).arg(bed.customers_root()))?;
    fs::remove_dir_all(bed.daily_dumps())?;
    fs::create_dir(bed.daily_dumps())?;
    Ok(all.then(backed_up))
}
