//! The product beside the script that it replaces, and beside restic alone, on the same data, machine and lines: time, CPU, memory,
//! bytes over the wire, requests, and disk.
//!
//! Everything is real but the length of the line: MariaDB, OpenSSH, restic. What either brings back is compared with what went in: a
//! fast restore of something else counts as a failure.

mod click;
mod contenders;
mod data;
mod fleet;
mod growth;
mod line;
mod report;

use std::path::Path;

use anyhow::{Context, Result, ensure};
use xtask::testbed::TestBed;

use contenders::{Contender, Ours, Script, Step, Taken, take_through};
use data::Shop;
use line::{KINDS, Line};
use report::{Measured, Report};

/// What to measure.
pub struct Options {
    /// The median of so many counts.
    pub runs: u32,
    /// Of the data, in percent. The documents are written at full scale alone.
    pub scale: u64,
    /// Names of [`SETS`]; empty for all.
    pub sets: Vec<String>,
}

const SETS: [&str; 4] = ["small", "large", "fleet", "growth"];

/// Measure the product at `binary`.
pub fn run(binary: &Path, options: &Options) -> Result<()> {
    ensure!(
        options.runs > 0 && options.scale > 0,
        "at least one run with at least one percent of the data"
    );
    let strange = options.sets.iter().find(|set| !SETS.contains(&&***set));
    ensure!(
        strange.is_none(),
        "{} is none of {}",
        strange.map_or("", String::as_str),
        SETS.join(", ")
    );
    let wanted = |set: &str| options.sets.is_empty() || options.sets.iter().any(|one| one == set);
    let mut report = Report::new(options.runs)?;
    if wanted("small") {
        measure_shop(binary, options, "small shop", Shop::small, &mut report)?;
    }
    if wanted("large") {
        measure_shop(binary, options, "large shop", Shop::large, &mut report)?;
    }
    if wanted("fleet") {
        fleet::measure(binary, options, &mut report)?;
    }
    if wanted("growth") {
        growth::measure(binary, options, &mut report)?;
    }
    println!("\n{}", report.markdown());
    if options.scale == 100 {
        report.write(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs"))?;
        println!("Written to docs/benchmarks.md and docs/benchmarks.json.");
    }
    Ok(())
}

/// All steps of both, in turn, as often as is wanted, on every kind of line; requests once.
fn measure_shop(
    binary: &Path,
    options: &Options,
    name: &'static str,
    make: fn(&TestBed, u64) -> Result<Shop>,
    report: &mut Report,
) -> Result<()> {
    let bed = TestBed::start()?;
    println!("{name}: made in {}", bed.scratch().display());
    let shop = make(&bed, options.scale)?;
    report.describe(name, shop.describe(&bed)?);
    for kind in KINDS {
        let line = Line::new(kind)?;
        for run in 1..=options.runs {
            for (who, results) in both(&bed, binary, &shop, &line, |who| {
                println!(
                    "{name}, {}, run {run} of {}: {who}",
                    kind.name, options.runs
                );
            })? {
                for (step, taken) in results {
                    report.add(name, kind, step, who, taken);
                }
            }
        }
    }
    if name == "small shop" {
        let line = Line::counting()?;
        for (who, results) in both(&bed, binary, &shop, &line, |who| {
            println!("{name}, requests: {who}");
        })? {
            for (step, taken) in results {
                report.count(step, who, taken.requests.context("nobody counted")?);
            }
        }
        // Last, for it leaves the shop changed.
        for kind in KINDS
            .into_iter()
            .filter(|kind| kind.bytes_per_second.is_none())
        {
            let times = click::measure(&bed, binary, &shop, &Line::new(kind)?)?;
            report.clicked(kind, times);
        }
    }
    Ok(())
}

type Results = Vec<(Measured, Vec<(Step, Taken)>)>;

fn both(
    bed: &TestBed,
    binary: &Path,
    shop: &Shop,
    line: &Line,
    tell: impl Fn(&str),
) -> Result<Results> {
    let mut ours = Ours::new(bed, binary, line);
    let mut script = Script::new(bed, &shop.customer, line)?;
    let contenders: [(Measured, &mut dyn Contender); 2] =
        [(Measured::Ours, &mut ours), (Measured::Script, &mut script)];
    contenders
        .into_iter()
        .map(|(who, contender)| {
            tell(who.name());
            Ok((who, take_through(bed, shop, line, contender)?))
        })
        .collect()
}
