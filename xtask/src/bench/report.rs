//! What was measured, as tables for people and as JSON for programs.
//!
//! docs/benchmarks.md has the tables of each set of data between two marks, docs/benchmarks.json has them under its name; what was measured of other sets,
//! and what somebody wrote around the marks, stays.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use xtask::machine::bytes;

use super::contenders::{Step, Taken};
use super::line::Kind;
use crate::measure::{self, Usage};

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

/// The most of the script's time that a step may take with the large shop, by line.
const GOALS: [(&str, Step, f64); 8] = [
    ("0 ms", Step::First, 0.7),
    ("20 ms", Step::First, 0.3),
    ("0 ms", Step::Changed, 0.4),
    ("20 ms", Step::Changed, 0.3),
    ("0 ms", Step::RestoreWhole, 0.7),
    ("20 ms", Step::RestoreWhole, 0.6),
    ("0 ms", Step::RestoreChanged, 0.25),
    ("20 ms", Step::RestoreChanged, 0.25),
];
const CLOSED_AT_MOST: Duration = Duration::from_secs(3);
const MEMORY_AT_MOST: u64 = 256_000_000;
const CLICK_AT_MOST: [(&str, Duration); 2] = [
    ("0 ms", Duration::from_secs(2)),
    ("20 ms", Duration::from_secs(4)),
];

type Key = (&'static str, Step, Measured);

/// Of one set of data.
pub struct Report {
    set: &'static str,
    machine: String,
    runs: u32,
    data: Option<String>,
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
    pub fn new(set: &'static str, runs: u32) -> Result<Self> {
        let (version, _) = measure::run(Command::new("restic").arg("version"))?;
        let version = String::from_utf8_lossy(&version);
        Ok(Self {
            set,
            machine: format!(
                "{}, {}",
                xtask::machine::describe()?,
                version.split(" compiled").next().unwrap_or(&version).trim()
            ),
            runs,
            data: None,
            lines: Vec::new(),
            taken: BTreeMap::new(),
            requests: BTreeMap::new(),
            clicks: Vec::new(),
            fleet: Vec::new(),
            growth: Vec::new(),
        })
    }

    pub fn describe(&mut self, data: String) {
        self.data = Some(data);
    }

    pub fn add(&mut self, kind: Kind, step: Step, who: Measured, taken: Taken) {
        if !self.lines.contains(&kind.name) {
            self.lines.push(kind.name);
        }
        let key = (kind.name, step, who);
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

    /// Replace what the documents say of this set.
    pub fn write(&self, docs: &Path) -> Result<()> {
        let path = docs.join("benchmarks.md");
        let text = fs::read_to_string(&path)?;
        let begin = format!("<!-- measured: {} -->\n", self.set);
        let lost = || format!("docs/benchmarks.md has lost the marks of the {}", self.set);
        let (before, rest) = text.split_once(&begin).with_context(lost)?;
        let (_, after) = rest.split_once(END).with_context(lost)?;
        fs::write(
            &path,
            [before, &begin, &self.markdown(), END, after].concat(),
        )?;
        let path = docs.join("benchmarks.json");
        let mut json = match fs::read(&path) {
            Ok(json) => serde_json::from_slice(&json)?,
            Err(error) if error.kind() == ErrorKind::NotFound => json!({}),
            Err(error) => return Err(error.into()),
        };
        json[self.set] = self.json();
        Ok(fs::write(path, format!("{json:#}\n"))?)
    }

    pub fn markdown(&self) -> String {
        let mut text = format!(
            "- Machine: {}.\n- Runs: {}; the median.\n",
            self.machine, self.runs
        );
        if let Some(data) = &self.data {
            let _ = writeln!(text, "- Data: {data}.");
        }
        self.write_goals(&mut text);
        for line in &self.lines {
            self.write_steps(&mut text, line);
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

    fn ratio(&self, line: &'static str, step: Step) -> Option<f64> {
        let [ours, script] = [Measured::Ours, Measured::Script]
            .map(|who| Some(self.median((line, step, who))?.all.time.as_secs_f64()));
        Some(ours? / script?)
    }

    fn write_goals(&self, text: &mut String) {
        let mut rows = Vec::new();
        for (line, step, most) in GOALS.into_iter().filter(|_| self.set == "large shop") {
            if let Some(ratio) = self.ratio(line, step) {
                let what = format!("{}, {line}", step.name());
                rows.push((
                    what,
                    format!("≤ {most}"),
                    format!("{ratio:.2}"),
                    ratio <= most,
                ));
            }
        }
        let ours = || self.taken.iter().filter(|(key, _)| key.2 == Measured::Ours);
        let closed = ours().filter(|(key, _)| key.1 == Step::RestoreOnline);
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
                    format!("from click to completed, 1 % changed, {line}"),
                    format!("≤ {}", seconds(*most)),
                    seconds(*time),
                    time <= most,
                ));
            }
        }
        if rows.is_empty() {
            return;
        }
        text.push_str("\n### Goals\n\n| | goal | measured | |\n|---|---|---|---|\n");
        for (what, goal, measured, is_met) in rows {
            let verdict = if is_met { "met" } else { "**not met**" };
            let _ = writeln!(text, "| {what} | {goal} | {measured} | {verdict} |");
        }
    }

    fn write_steps(&self, text: &mut String, line: &'static str) {
        let mut rows = String::new();
        for step in Step::ALL {
            let [ours, script] =
                [Measured::Ours, Measured::Script].map(|who| self.median((line, step, who)));
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
                "\n### {line}\n\n\
                 | | ours | script | restic in it | ours ÷ script | CPU | memory | over the wire | extra disk | offline |\n\
                 |---|---|---|---|---|---|---|---|---|---|\n{rows}"
            );
        }
    }

    fn write_requests(&self, text: &mut String) {
        if self.requests.is_empty() {
            return;
        }
        text.push_str(
            "\n### Requests to the backup server\n\n| | ours | script |\n|---|---|---|\n",
        );
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
            "\n### 0 ms\n\n| | ours | memory | script | memory |\n|---|---|---|---|---|\n",
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
            "\n### {axis}\n\n| | {axis} | ours | memory | script | memory |\n|---|---|---|---|---|---|\n"
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
            let (line, step, who) = key;
            Some(json!({
                "line": line, "step": step.name(), "who": who.name(),
                "usage": usage(&taken.all),
                "restic_seconds": taken.restic.map(|usage| usage.time.as_secs_f64()),
                "bytes_sent": taken.sent, "bytes_received": taken.received,
                "extra_disk_bytes": taken.disk, "offline_seconds": taken.closed.as_secs_f64(),
                "requests": self.requests.get(&(*step, *who)),
            }))
        });
        let fleet = self.fleet.iter().map(|(name, ours, script)| {
            json!({"step": name, "ours": middle(ours).map(|one| usage(&one)), "script": middle(script).map(|one| usage(&one))})
        });
        json!({
            "machine": self.machine, "runs": self.runs,
            "data": self.data,
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
