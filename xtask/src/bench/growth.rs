//! What a small shop costs in a repository that grows: with the number of blobs, and with the number of snapshots.

use std::path::Path;

use anyhow::Result;
use xtask::synthetic::{self, Copies};
use xtask::testbed::TestBed;

use super::Options;
use super::contenders::{Contender, Ours, Script, Step};
use super::data::Shop;
use super::line::{KINDS, Line};
use super::report::{Measured, Report};

const BY_BLOBS: &str = "blobs";
const BLOBS: [u64; 3] = [10_000, 100_000, 1_000_000];
const SNAPSHOTS: [u64; 3] = [100, 1_000, 10_000];
/// Nothing that these do depends on what is not there.
const STEPS: [Step; 5] = [
    Step::Unchanged,
    Step::List,
    Step::Sync,
    Step::RestoreUnchanged,
    Step::RestoreFiles,
];

pub fn measure(binary: &Path, options: &Options, report: &mut Report) -> Result<()> {
    for (axis, sizes) in [(BY_BLOBS, BLOBS), ("snapshots", SNAPSHOTS)] {
        let bed = TestBed::start()?;
        let shop = Shop::small(&bed, options.scale.min(20))?;

        let line = Line::new(KINDS[0])?;
        let mut ours = Ours::new(&bed, binary, &line);
        let mut script = Script::new(&bed, &shop.customer, &line)?.without_prune();
        let contenders: [(Measured, &mut dyn Contender, &str); 2] = [
            (Measured::Ours, &mut ours, bed.manual_password()),
            (Measured::Script, &mut script, super::contenders::PASSWORD),
        ];
        for (who, contender, password) in contenders {
            println!("growth with {axis}: {}", who.name());
            contender.begin()?;
            contender.take(Step::First)?;
            let mut size = 1;
            for wanted in sizes {
                let wanted = (wanted * options.scale / 100).max(size + 1);
                let repository = contender.repository();
                if axis == BY_BLOBS {
                    synthetic::add_blobs(repository, password, wanted - size)?;
                } else {
                    let copies = (wanted / size).max(2) - 1;
                    synthetic::multiply_snapshots(repository, password, copies, Copies::Others)?;
                }
                size = wanted;
                for step in STEPS {
                    step.prepare(&bed, &shop)?;
                    let (usage, _) = contender.take(step)?;
                    report.grown(axis, size, step, who, usage);
                }
            }
        }
    }
    Ok(())
}
