//! The project's own tasks: demonstrations and benchmarks. Each needs the built binary of the product and takes root.

mod bench;
mod bench_web;
mod demo;
mod demo_cli;
mod end2end;
mod measure;

use std::env;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc;
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

const USAGE: &str = "\
usage: cargo run -p xtask -- TASK [--binary FILE]

  demo              the dashboard with two real shops, at http://127.0.0.1:3000, until Ctrl-C
  demo-cli          back up a real shop, wreck it, restore it, prove that it is the same
  end2end [--playwright ARGUMENTS]
                    drive a real browser against all of it
  screenshots       pictures of every page and state, in target/screenshots
  bench [--runs N] [--scale PERCENT] [--sets 'small shop,large shop,fleet,growth'] [--lines '0 ms,20 ms,100 Mbit/s']
                    beside the script that it replaces and the stock restic; writes docs/benchmarks.md
  dist              the archive that operators install, in target/dist
  bench-web         how fast the dashboard answers with 10,000 customers; what 500 event streams cost

  --binary FILE     the product; default: the one that cargo built for the task";

fn main() -> ExitCode {
    match run_interruptibly(task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\n{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn task() -> Result<()> {
    let mut arguments = env::args().skip(1);
    let Some(task) = arguments.next() else {
        bail!("{USAGE}")
    };
    let (mut binary, mut runs, mut scale) = (None, 3, 100);
    let (mut playwright, mut sets, mut lines) = (String::new(), Vec::new(), Vec::new());
    while let Some(option) = arguments.next() {
        let value = arguments
            .next()
            .with_context(|| format!("{option} takes a value\n\n{USAGE}"))?;
        match option.as_str() {
            "--binary" => binary = Some(PathBuf::from(value)),
            "--lines" => lines = value.split(',').map(str::to_owned).collect(),
            "--sets" => sets = value.split(',').map(str::to_owned).collect(),
            "--playwright" => playwright = value,
            "--runs" => runs = value.parse().context("--runs takes a number")?,
            "--scale" => scale = value.parse().context("--scale takes a percentage")?,
            _ => bail!("{option} is unknown\n\n{USAGE}"),
        }
    }
    match task.as_str() {
        "demo" => demo::run(&product(binary, "debug")?),
        "demo-cli" => demo_cli::run(&product(binary, "debug")?),
        "end2end" => end2end::run(
            &product(binary, "debug")?,
            &["end2end", "interrupted", "away"],
            &playwright,
        ),
        "screenshots" => end2end::run(&product(binary, "debug")?, &["screenshots"], &playwright),
        "dist" => dist(&product(binary, "release")?),
        "bench-web" => bench_web::run(&product(binary, "release")?),
        "bench" => bench::run(
            &product(binary, "release")?,
            &bench::Options {
                runs,
                scale,
                sets,
                lines,
            },
        ),
        _ => bail!("{task} is unknown\n\n{USAGE}"),
    }
}

/// Of the built workspace.
fn dist(binary: &Path) -> Result<()> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .canonicalize()?;
    let target = workspace.join("target");
    let archive = xtask::dist::pack(
        &workspace,
        binary,
        &target.join("site"),
        &target.join("dist"),
    )?;
    println!("{}", archive.file.display());
    Ok(())
}

/// The product's binary: the given one, or what cargo built into the target directory that we run from.
fn product(given: Option<PathBuf>, profile: &str) -> Result<PathBuf> {
    let binary = match given {
        Some(binary) => binary,
        None => {
            let own = env::current_exe()?;
            let target = own
                .ancestors()
                .nth(2)
                .context("this program is not in a target directory")?;
            target.join(profile).join("shophosting-backup")
        }
    };
    ensure!(
        binary.exists(),
        "{} is not there: `make demo`, `make bench` and `make dist` build it",
        binary.display()
    );
    Ok(binary)
}

/// Run a task so that Ctrl-C ends it like a failure does: what it started is stopped and removed.
fn run_interruptibly(task: fn() -> Result<()>) -> Result<()> {
    enum Event {
        Signal,
        Done(Result<()>),
    }
    let (events, received) = mpsc::channel();
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    let signal_events = events.clone();
    thread::spawn(move || {
        for _ in signals.forever() {
            // Nobody listens once the task is done.
            let _ = signal_events.send(Event::Signal);
        }
    });
    let worker = thread::spawn(move || {
        let _ = events.send(Event::Done(task()));
    });
    loop {
        match received.recv() {
            Ok(Event::Signal) => {
                eprintln!("\nInterrupted: cleaning up.");
                measure::interrupt();
            }
            Ok(Event::Done(result)) => {
                let _ = worker.join();
                // Once interrupted, what failed for that reason is of no interest.
                return result.or_else(|error| measure::check_interrupted().and(Err(error)));
            }
            Err(_) => bail!("the task ended without a result"),
        }
    }
}
