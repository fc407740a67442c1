//! What was measured, as tables for people and as JSON for programs.
//!
//! docs/benchmarks.md has its tables between two marks; what somebody wrote around them stays.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use xtask::machine::bytes;

use super::contenders::{Step, Taken};
use super::line::Kind;
use crate::measure::{self, Usage};

const BEGIN: &str = "<!-- measured -->\n";
const END: &str = "<!-- until here -->\n";

/// Who took it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Measured {
    Ours,
    Script,
}

impl Measured {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::Script => "script",
        }
    }
}

/// The most of the script's time that a step may take, by set and line.
const GOALS: [(&str, &str, Step, f64); 8] = [
    ("large shop", "0 ms", Step::First, 0.7),
    ("large shop", "20 ms", Step::First, 0.3),
    ("large shop", "0 ms", Step::Changed, 0.4),
    ("large shop", "20 ms", Step::Changed, 0.3),
    ("large shop", "0 ms", Step::RestoreWhole, 0.7),
    ("large shop", "20 ms", Step::RestoreWhole, 0.6),
    ("large shop", "0 ms", Step::RestoreChanged, 0.25),
    ("large shop", "20 ms", Step::RestoreChanged, 0.25),
];
const CLOSED_AT_MOST: Duration = Duration::from_secs(3);
const MEMORY_AT_MOST: u64 = 256_000_000;
const CLICK_AT_MOST: [(&str, Duration); 2] = [
    ("0 ms", Duration::from_secs(2)),
    ("20 ms", Duration::from_secs(4)),
];

type Key = (&'static str, &'static str, Step, Measured);

pub struct Report {
    machine: String,
    runs: u32,
    data: Vec<(&'static str, String)>,
    lines: Vec<&'static str>,
    taken: BTreeMap<Key, Vec<Taken>>,
    requests: BTreeMap<(Step, Measured), u64>,
    clicks: Vec<(&'static str, Duration)>,
    fleet: Vec<(&'static str, Vec<Usage>, Vec<Usage>)>,
    growth: Vec<Grown>,
}

/// What a step took in a repository of that size.
struct Grown {
    axis: &'static str,
    size: u64,
    step: Step,
    who: Measured,
    usage: Usage,
}

impl Report {
    pub fn new(runs: u32) -> Result<Self> {
        let (version, _) = measure::run(Command::new("restic").arg("version"))?;
        let version = String::from_utf8_lossy(&version);
        Ok(Self {
            machine: format!(
                "{}, {}",
                xtask::machine::describe()?,
                version.split(" compiled").next().unwrap_or(&version).trim()
            ),
            runs,
            data: Vec::new(),
            lines: Vec::new(),
            taken: BTreeMap::new(),
            requests: BTreeMap::new(),
            clicks: Vec::new(),
            fleet: Vec::new(),
            growth: Vec::new(),
        })
    }

    pub fn describe(&mut self, set: &'static str, data: String) {
        self.data.push((set, data));
    }

    pub fn add(&mut self, set: &'static str, kind: Kind, step: Step, who: Measured, taken: Taken) {
        if !self.lines.contains(&kind.name) {
            self.lines.push(kind.name);
        }
        let key = (set, kind.name, step, who);
        self.taken.entry(key).or_default().push(taken);
    }

    pub fn count(&mut self, step: Step, who: Measured, requests: u64) {
        self.requests.insert((step, who), requests);
    }

    pub fn clicked(&mut self, kind: Kind, mut times: Vec<Duration>) {
        times.sort_unstable();
        self.clicks.push((kind.name, times[times.len() / 2]));
    }

    /// Of ours, and of the script's where it has that.
    pub fn of_fleet(&mut self, name: &'static str, ours: Usage, script: Option<Usage>) {
        if !self.fleet.iter().any(|row| row.0 == name) {
            self.fleet.push((name, Vec::new(), Vec::new()));
        }
        if let Some(row) = self.fleet.iter_mut().find(|row| row.0 == name) {
            row.1.push(ours);
            row.2.extend(script);
        }
    }

    pub fn grown(
        &mut self,
        axis: &'static str,
        size: u64,
        step: Step,
        who: Measured,
        usage: Usage,
    ) {
        self.growth.push(Grown {
            axis,
            size,
            step,
            who,
            usage,
        });
    }

    /// Replace what is between the marks in docs/benchmarks.md, and docs/benchmarks.json.
    pub fn write(&self, docs: &Path) -> Result<()> {
        let path = docs.join("benchmarks.md");
        let text = fs::read_to_string(&path)?;
        let (before, rest) = text
            .split_once(BEGIN)
            .context("docs/benchmarks.md has lost its marks")?;
        let (_, after) = rest
            .split_once(END)
            .context("docs/benchmarks.md has lost its marks")?;
        fs::write(
            &path,
            [before, BEGIN, &self.markdown(), END, after].concat(),
        )?;
        let json = format!("{:#}\n", self.json());
        Ok(fs::write(docs.join("benchmarks.json"), json)?)
    }

    pub fn markdown(&self) -> String {
        let mut text = format!(
            "- Machine: {}.\n- Runs: {}; the median.\n",
            self.machine, self.runs
        );
        for (set, data) in &self.data {
            let _ = writeln!(text, "- {set}: {data}.");
        }
        self.write_goals(&mut text);
        for (set, _) in &self.data {
            for line in &self.lines {
                self.write_steps(&mut text, set, line);
            }
        }
        self.write_requests(&mut text);
        self.write_fleet(&mut text);
        for axis in ["blobs", "snapshots"] {
            self.write_growth(&mut text, axis);
        }
        text
    }

    fn median(&self, key: Key) -> Option<Taken> {
        let mut taken = self.taken.get(&key)?.clone();
        taken.sort_by_key(|one| one.all.time);
        taken.get(taken.len() / 2).copied()
    }

    fn ratio(&self, set: &'static str, line: &'static str, step: Step) -> Option<f64> {
        let [ours, script] = [Measured::Ours, Measured::Script]
            .map(|who| Some(self.median((set, line, step, who))?.all.time.as_secs_f64()));
        Some(ours? / script?)
    }

    fn write_goals(&self, text: &mut String) {
        let mut rows = Vec::new();
        for (set, line, step, most) in GOALS {
            if let Some(ratio) = self.ratio(set, line, step) {
                let what = format!("{}, {set}, {line}", step.name());
                rows.push((
                    what,
                    format!("≤ {most}"),
                    format!("{ratio:.2}"),
                    ratio <= most,
                ));
            }
        }
        let ours = || self.taken.iter().filter(|(key, _)| key.3 == Measured::Ours);
        let closed = ours().filter(|(key, _)| key.2 == Step::RestoreOnline);
        if let Some(closed) = closed
            .flat_map(|(_, taken)| taken)
            .map(|one| one.closed)
            .max()
        {
            rows.push((
                "offline with `--online`, the longest".into(),
                format!("≤ {}", seconds(CLOSED_AT_MOST)),
                seconds(closed),
                closed <= CLOSED_AT_MOST,
            ));
        }
        if let Some(memory) = ours()
            .flat_map(|(_, taken)| taken)
            .map(|one| one.all.peak_memory)
            .max()
        {
            rows.push((
                "memory, the most".into(),
                format!("≤ {}", bytes(MEMORY_AT_MOST)),
                bytes(memory),
                memory <= MEMORY_AT_MOST,
            ));
        }
        for (line, time) in &self.clicks {
            let goal = CLICK_AT_MOST.iter().find(|(name, _)| name == line);
            if let Some((_, most)) = goal {
                rows.push((
                    format!("from click to completed, small shop, 1 % changed, {line}"),
                    format!("≤ {}", seconds(*most)),
                    seconds(*time),
                    time <= most,
                ));
            }
        }
        if rows.is_empty() {
            return;
        }
        text.push_str("\n## Goals\n\n| | goal | measured | |\n|---|---|---|---|\n");
        for (what, goal, measured, is_met) in rows {
            let verdict = if is_met { "met" } else { "**not met**" };
            let _ = writeln!(text, "| {what} | {goal} | {measured} | {verdict} |");
        }
    }

    fn write_steps(&self, text: &mut String, set: &'static str, line: &'static str) {
        let mut rows = String::new();
        for step in Step::ALL {
            let [ours, script] =
                [Measured::Ours, Measured::Script].map(|who| self.median((set, line, step, who)));
            let (Some(ours), Some(script)) = (ours, script) else {
                continue;
            };
            let _ = writeln!(
                rows,
                "| {} | {} | {} | {} | **{:.2}** | {} / {} | {} / {} | {} / {} | {} / {} | {} / {} |",
                step.name(),
                seconds(ours.all.time),
                seconds(script.all.time),
                script
                    .restic
                    .map_or_else(String::new, |usage| seconds(usage.time)),
                ours.all.time.as_secs_f64() / script.all.time.as_secs_f64(),
                seconds(ours.all.cpu),
                seconds(script.all.cpu),
                bytes(ours.all.peak_memory),
                bytes(script.all.peak_memory),
                bytes(ours.sent + ours.received),
                bytes(script.sent + script.received),
                bytes(ours.disk),
                bytes(script.disk),
                seconds(ours.closed),
                seconds(script.closed),
            );
        }
        if !rows.is_empty() {
            let _ = write!(
                text,
                "\n## {set}, {line}\n\n\
                 | | ours | script | restic in it | ours ÷ script | CPU | memory | over the wire | extra disk | offline |\n\
                 |---|---|---|---|---|---|---|---|---|---|\n{rows}"
            );
        }
    }

    fn write_requests(&self, text: &mut String) {
        if self.requests.is_empty() {
            return;
        }
        text.push_str("\n## Requests to the backup server, small shop\n\n| | ours | script |\n|---|---|---|\n");
        for step in Step::ALL {
            let [ours, script] = [Measured::Ours, Measured::Script].map(|who| {
                let number = self.requests.get(&(step, who));
                number.map_or_else(String::new, u64::to_string)
            });
            let _ = writeln!(text, "| {} | {ours} | {script} |", step.name());
        }
    }

    fn write_fleet(&self, text: &mut String) {
        if self.fleet.is_empty() {
            return;
        }
        text.push_str(
            "\n## fleet, 0 ms\n\n| | ours | memory | script | memory |\n|---|---|---|---|---|\n",
        );
        for (name, ours, script) in &self.fleet {
            let [ours, script] = [ours, script].map(|usages| {
                middle(usages).map_or_else(
                    || " | ".to_owned(),
                    |usage| format!("{} | {}", seconds(usage.time), bytes(usage.peak_memory)),
                )
            });
            let _ = writeln!(text, "| {name} | {ours} | {script} |");
        }
    }

    /// A table, and a plot of the steps that have to do with the repository.
    fn write_growth(&self, text: &mut String, axis: &str) {
        let grown: Vec<&Grown> = self.growth.iter().filter(|one| one.axis == axis).collect();
        let mut sizes: Vec<u64> = grown.iter().map(|one| one.size).collect();
        sizes.sort_unstable();
        sizes.dedup();
        if sizes.is_empty() {
            return;
        }
        let of = |size: u64, step: Step, who: Measured| {
            let found = grown
                .iter()
                .find(|one| (one.size, one.step, one.who) == (size, step, who));
            found.map(|one| one.usage)
        };
        let _ = write!(
            text,
            "\n## A small shop in a repository that grows: {axis}\n\n| | {axis} | ours | memory | script | memory |\n|---|---|---|---|---|---|\n"
        );
        for step in Step::ALL {
            for &size in &sizes {
                let cells = [Measured::Ours, Measured::Script].map(|who| {
                    of(size, step, who).map_or_else(String::new, |usage| {
                        format!("{} | {}", seconds(usage.time), bytes(usage.peak_memory))
                    })
                });
                if cells.iter().all(|cell| !cell.is_empty()) {
                    let _ = writeln!(text, "| {} | {size} | {} |", step.name(), cells.join(" | "));
                }
            }
        }
        let series = |step: Step, who: Measured| {
            let points = sizes.iter().filter_map(|&size| of(size, step, who));
            let points: Vec<String> = points
                .map(|usage| format!("{:.2}", usage.time.as_secs_f64()))
                .collect();
            points.join(", ")
        };
        let ticks: Vec<String> = sizes.iter().map(u64::to_string).collect();
        let _ = write!(
            text,
            "\nSeconds of a backup without changes: ours, and the script's:\n\n```mermaid\nxychart-beta\n    x-axis \"{axis}\" [{}]\n    \
             y-axis \"seconds\"\n    line [{}]\n    line [{}]\n```\n",
            ticks.join(", "),
            series(Step::Unchanged, Measured::Ours),
            series(Step::Unchanged, Measured::Script),
        );
    }

    fn json(&self) -> Value {
        let steps = self.taken.keys().filter_map(|key| {
            let taken = self.median(*key)?;
            let (set, line, step, who) = key;
            Some(json!({
                "set": set, "line": line, "step": step.name(), "who": who.name(),
                "usage": usage(&taken.all),
                "restic_seconds": taken.restic.map(|usage| usage.time.as_secs_f64()),
                "bytes_sent": taken.sent, "bytes_received": taken.received,
                "extra_disk_bytes": taken.disk, "offline_seconds": taken.closed.as_secs_f64(),
                "requests": (*set == "small shop").then(|| self.requests.get(&(*step, *who))).flatten(),
            }))
        });
        let fleet = self.fleet.iter().map(|(name, ours, script)| {
            json!({"step": name, "ours": middle(ours).map(|one| usage(&one)), "script": middle(script).map(|one| usage(&one))})
        });
        json!({
            "machine": self.machine, "runs": self.runs,
            "data": self.data.iter().map(|(set, data)| json!({"set": set, "data": data})).collect::<Vec<_>>(),
            "steps": steps.collect::<Vec<_>>(),
            "clicks": self.clicks.iter().map(|(line, time)| json!({"line": line, "seconds": time.as_secs_f64()})).collect::<Vec<_>>(),
            "fleet": fleet.collect::<Vec<_>>(),
            "growth": self.growth.iter().map(|one| json!({
                "axis": one.axis, "size": one.size, "step": one.step.name(), "who": one.who.name(), "usage": usage(&one.usage),
            })).collect::<Vec<_>>(),
        })
    }
}

fn middle(usages: &[Usage]) -> Option<Usage> {
    let mut usages = usages.to_vec();
    usages.sort_by_key(|usage| usage.time);
    usages.get(usages.len() / 2).copied()
}

fn usage(usage: &Usage) -> Value {
    json!({
        "seconds": usage.time.as_secs_f64(),
        "cpu_seconds": usage.cpu.as_secs_f64(),
        "peak_memory_bytes": usage.peak_memory,
    })
}

fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}
