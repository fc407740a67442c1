//! The product beside the stock restic on the same data, machine and SSH server: time, CPU and memory.
//!
//! The data are generated, the same every time, about half of the bytes compressible. What either program brings back is
//! compared with what went in: a fast restore of something else counts as a failure.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Result, ensure};
use rand::rngs::SmallRng;
use rand::{Rng, RngExt, SeedableRng};
use serde_json::{Value, json};
use xtask::machine::bytes;
use xtask::restic::Restic;
use xtask::testbed::{Customer, TestBed};
use xtask::tree::TreeImage;

use crate::demo_cli::{product_json, text};
use crate::measure::{self, Usage};

const FILES: u32 = 50_000;
const FILE_BYTES: u64 = 2 << 30;
const TABLES: u32 = 8;
const DUMP_BYTES: u64 = 500_000_000;
/// What the product may hold at once, whatever it backs up.
const MEMORY_LIMIT: u64 = 512_000_000;

/// Measure the product at `binary`, with `scale` percent of the data, `runs` times: the median counts. Writes
/// docs/benchmarks.md and .json at full scale, prints in any case.
pub fn run(binary: &Path, runs: u32, scale: u64) -> Result<()> {
    ensure!(
        runs > 0 && scale > 0,
        "at least one run with at least one percent of the data"
    );
    let bed = TestBed::start()?;
    let customer = bed.add_customer(1)?;
    println!(
        "Generating {} files and a database in {}",
        u64::from(FILES) * scale / 100,
        bed.scratch().display()
    );
    generate_files(&customer, scale)?;
    generate_database(&bed, &customer, scale)?;
    let data = Data {
        image: TreeImage::of(&customer.site())?,
        checksums: bed.table_checksums(&customer.database)?,
    };

    let (mut results, mut dump_bytes) = (Vec::new(), 0);
    for run in 1..=runs {
        println!("Run {run} of {runs}: shophosting-backup");
        let ours = measure_ours(&bed, binary, &customer, &data)?;
        println!("Run {run} of {runs}: restic");
        let (theirs, dump) = measure_restic(&bed, &customer, &data)?;
        dump_bytes = dump;
        results.push([ours, theirs]);
    }
    let report = Report::new(&data, dump_bytes, &results)?;
    println!("\n{}\n\n{}", report.data, report.table());
    if scale == 100 {
        let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
        fs::create_dir_all(&docs)?;
        fs::write(docs.join("benchmarks.md"), report.markdown())?;
        fs::write(
            docs.join("benchmarks.json"),
            format!("{:#}\n", report.json()),
        )?;
        println!("Written to docs/benchmarks.md and docs/benchmarks.json.");
    }
    let peak = report
        .steps
        .iter()
        .map(|step| step.ours.peak_memory)
        .max()
        .unwrap_or_default();
    ensure!(
        peak < MEMORY_LIMIT,
        "the product held {}: more than {}",
        bytes(peak),
        bytes(MEMORY_LIMIT)
    );
    Ok(())
}

struct Data {
    image: TreeImage,
    checksums: String,
}

/// What one program took for each of the [`STEPS`].
type Usages = [Usage; STEPS.len()];
const STEPS: [&str; 3] = ["first backup", "second backup, nothing changed", "restore"];

/// The product, by its command line alone. The restore goes over the living site, as it does for a customer.
fn measure_ours(bed: &TestBed, binary: &Path, customer: &Customer, data: &Data) -> Result<Usages> {
    if bed.manual_repository().exists() {
        fs::remove_dir_all(bed.manual_repository())?;
    }
    product_json(bed, binary, &["init"])?;
    let (first, first_usage) = product_json(bed, binary, &["backup", "1", "--type", "both"])?;
    let (_, second_usage) = product_json(bed, binary, &["backup", "1", "--type", "both"])?;
    let snapshot = text(&first, "snapshot_id")?;
    let restore = ["restore", "1", &snapshot, "--type", "both", "--yes"];
    let (_, restore_usage) = product_json(bed, binary, &restore)?;
    data.check(bed, &customer.site(), &customer.database)?;
    Ok([first_usage, second_usage, restore_usage])
}

/// The obvious way with restic: dump into a file, back up file and site; restore both into a directory, import.
/// Tells the size of the dump too.
fn measure_restic(bed: &TestBed, customer: &Customer, data: &Data) -> Result<(Usages, u64)> {
    let repository = bed.scratch().join("backup-server/restic");
    if repository.exists() {
        fs::remove_dir_all(&repository)?;
    }
    let restic = bed.restic_over_sftp(&repository, "benchmark")?;
    restic.init()?;
    let dump = bed.scratch().join("restic-dump.sql");
    let first_usage = restic_backup(bed, &restic, customer, &dump)?;
    let second_usage = restic_backup(bed, &restic, customer, &dump)?;
    let dump_bytes = fs::metadata(&dump)?.len();
    fs::remove_file(&dump)?;

    let target = bed.scratch().join("restic-target");
    let mut restore = restic.command(["restore", "latest", "--target"]);
    let (_, restored) = measure::run(restore.arg(&target))?;
    let restored_path =
        |path: &Path| -> Result<PathBuf> { Ok(target.join(path.strip_prefix("/")?)) };
    bed.mariadb()
        .sql("CREATE OR REPLACE DATABASE restic_import")?;
    let mut import = database_program(bed, "mariadb");
    import
        .arg("restic_import")
        .stdin(File::open(restored_path(&dump)?)?);
    let (_, imported) = measure::run(&mut import)?;
    data.check(bed, &restored_path(&customer.site())?, "restic_import")?;

    fs::remove_dir_all(&target)?;
    bed.mariadb().sql("DROP DATABASE restic_import")?;
    Ok((
        [first_usage, second_usage, restored.then(imported)],
        dump_bytes,
    ))
}

fn restic_backup(
    bed: &TestBed,
    restic: &Restic,
    customer: &Customer,
    dump: &Path,
) -> Result<Usage> {
    let mut program = database_program(bed, "mariadb-dump");
    program.args([
        "--single-transaction",
        "--quick",
        "--routines",
        "--triggers",
        "--events",
        "--skip-dump-date",
    ]);
    let dumped = measure::run_into(program.arg(&customer.database), File::create(dump)?)?;
    let mut backup = restic.command(["backup", "--tag", "customer-1"]);
    let (_, backed_up) = measure::run(backup.arg(dump).arg(&customer.directory))?;
    Ok(dumped.then(backed_up))
}

fn database_program(bed: &TestBed, name: &str) -> Command {
    let mut program = Command::new(name);
    program.args(["--no-defaults", "--user=root"]);
    program.arg(format!("--socket={}", bed.mariadb().socket().display()));
    program
        .env("MYSQL_PWD", bed.mariadb().root_password())
        .stdin(Stdio::null());
    program
}

impl Data {
    fn check(&self, bed: &TestBed, site: &Path, database: &str) -> Result<()> {
        let differences = self.image.differences(&TreeImage::of(site)?);
        ensure!(
            differences.is_empty(),
            "the files came back changed: {}",
            differences.join("\n")
        );
        ensure!(
            bed.table_checksums(database)? == self.checksums,
            "the tables came back changed"
        );
        Ok(())
    }
}

/// Nine files in ten are small, half of the bytes are in the rest; every second file is text, the others are noise.
fn generate_files(customer: &Customer, scale: u64) -> Result<()> {
    let mut random = SmallRng::seed_from_u64(1);
    let text = words(&mut random, 4 << 20);
    let large = u64::from(FILES) / 10;
    let small = u64::from(FILES) - large;
    for number in 0..u64::from(FILES) * scale / 100 {
        measure::check_interrupted()?;
        let directory = customer.site().join(format!(
            "wp-content/uploads/{:03}/{:02}",
            number / 1000,
            number / 100 % 10
        ));
        fs::create_dir_all(&directory)?;
        let mean = if number % 10 == 0 {
            FILE_BYTES / 2 / large
        } else {
            FILE_BYTES / 2 / small
        };
        let size = usize::try_from(random.random_range(mean / 2..mean * 3 / 2))?;
        let mut content = vec![0; size];
        if number % 2 == 0 {
            let start = random.random_range(0..text.len() - size);
            content.copy_from_slice(&text[start..start + size]);
        } else {
            random.fill_bytes(&mut content);
        }
        fs::write(directory.join(format!("file-{number}")), content)?;
    }
    Ok(())
}

fn words(random: &mut SmallRng, length: usize) -> Vec<u8> {
    let words: Vec<String> = (0..5000)
        .map(|_| {
            (0..random.random_range(2..12))
                .map(|_| char::from(random.random_range(b'a'..=b'z')))
                .collect()
        })
        .collect();
    let mut text = Vec::with_capacity(length + 16);
    while text.len() < length {
        text.extend_from_slice(words[random.random_range(0..words.len())].as_bytes());
        text.push(b' ');
    }
    text
}

/// Rows of about a kilobyte: hexadecimal digits, which compress to half, and plain words.
fn generate_database(bed: &TestBed, customer: &Customer, scale: u64) -> Result<()> {
    const ROW_BYTES: u64 = 1_180;
    let rows = DUMP_BYTES * scale / 100 / ROW_BYTES / u64::from(TABLES);
    for table in 0..TABLES {
        measure::check_interrupted()?;
        let digits: Vec<_> = (0..7)
            .map(|part| format!("SHA2(CONCAT(seq, '-{table}-{part}'), 512)"))
            .collect();
        bed.mariadb().sql(&format!(
            "USE {};
             CREATE TABLE articles_{table} (id INT PRIMARY KEY, title VARCHAR(100) NOT NULL, price DECIMAL(10,2),
                 changed DATETIME, body TEXT NOT NULL, KEY (title));
             INSERT INTO articles_{table} SELECT seq, CONCAT('Article ', MD5(seq)), seq / 100,
                 FROM_UNIXTIME(1700000000 + seq), CONCAT({}, REPEAT('a shop full of good things ', 6)) FROM seq_1_to_{rows}",
            customer.database,
            digits.join(", ")
        ))?;
    }
    Ok(())
}

struct Report {
    data: String,
    machine: String,
    runs: usize,
    steps: Vec<Step>,
}

struct Step {
    name: &'static str,
    ours: Usage,
    restic: Usage,
}

impl Report {
    fn new(data: &Data, dump_bytes: u64, results: &[[Usages; 2]]) -> Result<Self> {
        let steps = STEPS.iter().enumerate().map(|(step, name)| Step {
            name,
            ours: median(results.iter().map(|run| run[0][step]).collect()),
            restic: median(results.iter().map(|run| run[1][step]).collect()),
        });
        let data = format!(
            "{} files and directories with {}, and a database with a dump of {}",
            data.image.entries(),
            bytes(data.image.bytes()),
            bytes(dump_bytes)
        );
        Ok(Self {
            data,
            machine: machine()?,
            runs: results.len(),
            steps: steps.collect(),
        })
    }

    fn table(&self) -> String {
        let mut text = String::from(
            "| | ours | restic | time | memory ours | memory restic | CPU ours | CPU restic |\n|---|---|---|---|---|---|---|---|\n",
        );
        for Step { name, ours, restic } in &self.steps {
            let seconds = |time: std::time::Duration| format!("{:.1} s", time.as_secs_f64());
            let ratio = ours.time.as_secs_f64() / restic.time.as_secs_f64();
            let _ = writeln!(
                text,
                "| {name} | {} | {} | {ratio:.2}× | {} | {} | {} | {} |",
                seconds(ours.time),
                seconds(restic.time),
                bytes(ours.peak_memory),
                bytes(restic.peak_memory),
                seconds(ours.cpu),
                seconds(restic.cpu),
            );
        }
        text
    }

    fn markdown(&self) -> String {
        format!(
            "# Benchmarks\n\nWritten by `make bench`; run it on your own machine, the ratios matter more than the seconds.\n\n\
             - Data: {}; half of the bytes compressible.\n- Machine: {}.\n- Runs: {}; the median.\n\
             - Both over SFTP to the same private SSH server, without delay. What came back was compared with what went in.\n\n{}\n\
             *restic* is the obvious script: `mariadb-dump` into a file, `restic backup` of file and site; `restic restore` into a\n\
             new directory, `mariadb <` the file into an empty schema. Ours restores over the living site: staged, imported into a\n\
             shadow schema, then swapped. Memory is the most that the program itself held; CPU includes its children.\n",
            self.data,
            self.machine,
            self.runs,
            self.table()
        )
    }

    fn json(&self) -> Value {
        let usage = |usage: &Usage| {
            json!({
                "seconds": usage.time.as_secs_f64(),
                "cpu_seconds": usage.cpu.as_secs_f64(),
                "peak_memory_bytes": usage.peak_memory,
            })
        };
        let steps = self.steps.iter().map(|step| {
            json!({"name": step.name, "ours": usage(&step.ours), "restic": usage(&step.restic)})
        });
        json!({"data": self.data, "machine": self.machine, "runs": self.runs, "steps": steps.collect::<Vec<_>>()})
    }
}

fn median(mut usages: Vec<Usage>) -> Usage {
    usages.sort_by_key(|usage| usage.time);
    usages[usages.len() / 2]
}

fn machine() -> Result<String> {
    let (version, _) = measure::run(Command::new("restic").arg("version"))?;
    let version = String::from_utf8_lossy(&version);
    Ok(format!(
        "{}, {}",
        xtask::machine::describe()?,
        version.split(" compiled").next().unwrap_or(&version).trim()
    ))
}
