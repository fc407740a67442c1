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
use line::{KINDS, Kind, Line};
use report::{Measured, Report};

/// What to measure.
pub struct Options {
    /// The median of so many counts.
    pub runs: u32,
    /// Of the data, in percent. The documents are written at full scale alone.
    pub scale: u64,
    /// Names of [`SETS`]; empty for all.
    pub sets: Vec<String>,
    /// Names of [`KINDS`]; empty for all.
    pub lines: Vec<String>,
}

impl Options {
    fn lines(&self) -> impl Iterator<Item = Kind> {
        let is_wanted =
            |kind: &Kind| self.lines.is_empty() || self.lines.iter().any(|one| one == kind.name);
        KINDS.into_iter().filter(is_wanted)
    }

    fn require_known(&self) -> Result<()> {
        ensure!(
            self.runs > 0 && self.scale > 0,
            "at least one run with at least one percent of the data"
        );
        let lines = KINDS.map(|kind| kind.name);
        for (wanted, known) in [(&self.sets, SETS.as_slice()), (&self.lines, &lines)] {
            let strange = wanted.iter().find(|one| !known.contains(&&***one));
            ensure!(
                strange.is_none(),
                "{} is none of {}",
                strange.map_or("", String::as_str),
                known.join(", ")
            );
        }
        Ok(())
    }
}

const SETS: [&str; 4] = ["small shop", "large shop", "fleet", "growth"];

/// Measure the product at `binary`. Each set of data is written down when it is through: what comes after it may break off.
pub fn run(binary: &Path, options: &Options) -> Result<()> {
    options.require_known()?;
    let is_wanted =
        |set: &&str| options.sets.is_empty() || options.sets.iter().any(|one| one == set);
    for set in SETS.into_iter().filter(is_wanted) {
        let mut report = Report::new(set, options.runs)?;
        match set {
            "fleet" => fleet::measure(binary, options, &mut report)?,
            "growth" => growth::measure(binary, options, &mut report)?,
            shop => measure_shop(binary, options, shop, &mut report)?,
        }
        println!("\n## {set}\n\n{}", report.markdown());
        if options.scale == 100 {
            report.write(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs"))?;
            println!("Written to docs/benchmarks.md and docs/benchmarks.json.");
        }
    }
    Ok(())
}

/// All steps of both, in turn, as often as is wanted, on every kind of line; requests once.
fn measure_shop(binary: &Path, options: &Options, name: &str, report: &mut Report) -> Result<()> {
    let bed = TestBed::start()?;
    println!("{name}: made in {}", bed.scratch().display());
    let is_small = name == "small shop";
    let shop = match is_small {
        true => Shop::small(&bed, options.scale)?,
        false => Shop::large(&bed, options.scale)?,
    };
    report.describe(shop.describe(&bed)?);
    for kind in options.lines() {
        let line = Line::new(kind)?;
        for run in 1..=options.runs {
            for (who, results) in both(&bed, binary, &shop, &line, |who| {
                println!(
                    "{name}, {}, run {run} of {}: {who}",
                    kind.name, options.runs
                );
            })? {
                for (step, taken) in results {
                    report.add(kind, step, who, taken);
                }
            }
        }
    }
    if is_small {
        let line = Line::counting()?;
        for (who, results) in both(&bed, binary, &shop, &line, |who| {
            println!("{name}, requests: {who}");
        })? {
            for (step, taken) in results {
                report.count(step, who, taken.requests.context("nobody counted")?);
            }
        }
        // Last, for it leaves the shop changed.
        for kind in options
            .lines()
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
