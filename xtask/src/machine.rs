//! The machine that benchmarks run on, and its numbers for people.

use std::fs;

use anyhow::{Context, Result};

/// Processor and memory, as a benchmark's report says them.
pub fn describe() -> Result<String> {
    let cpu = fs::read_to_string("/proc/cpuinfo")?;
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .unwrap_or(" : unknown processor");
    let cores = std::thread::available_parallelism()?;
    let memory = fs::read_to_string("/proc/meminfo")?;
    let memory = memory
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB"));
    let kibibytes: u64 = memory.context("/proc/meminfo has no MemTotal")?.parse()?;
    Ok(format!(
        "{cores} cores ({}), {} of memory",
        model.trim_start_matches([' ', '\t', ':']),
        bytes(kibibytes * 1024)
    ))
}

/// A number of bytes for people.
pub fn bytes(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.2} GB", bytes as f64 / 1e9),
    }
}
