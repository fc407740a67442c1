//! Running one program at a time, watched: how long, how much CPU, how much memory. Stops it when we are interrupted.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};

/// The unit of CPU times in /proc, the same on every Linux that Debian runs on.
const USER_HZ: u32 = 100;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Ask the running task to end: its running program is terminated, and no further one starts.
pub fn interrupt() {
    INTERRUPTED.store(true, Ordering::Release);
}

/// An error once [`interrupt`] was called.
pub fn check_interrupted() -> Result<()> {
    ensure!(!INTERRUPTED.load(Ordering::Acquire), "interrupted");
    Ok(())
}

/// What running a program took.
#[derive(Debug, Clone, Copy, Default)]
pub struct Usage {
    /// By the clock on the wall.
    pub time: Duration,
    /// User and system time of the program and of the children it waited for.
    pub cpu: Duration,
    /// The most bytes of memory that the program itself held at once.
    pub peak_memory: u64,
}

impl Usage {
    /// One after the other.
    pub fn then(self, next: Self) -> Self {
        Self {
            time: self.time + next.time,
            cpu: self.cpu + next.cpu,
            peak_memory: self.peak_memory.max(next.peak_memory),
        }
    }
}

/// Run a program that must succeed; what it printed on standard output, and what it took. The caller chooses its
/// standard input.
pub fn run(command: &mut Command) -> Result<(Vec<u8>, Usage)> {
    let mut printed = tempfile::tempfile()?;
    let usage = run_into(command, printed.try_clone()?)?;
    let mut output = Vec::new();
    printed.seek(SeekFrom::Start(0))?;
    printed.read_to_end(&mut output)?;
    Ok((output, usage))
}

/// [`run`] with standard output into a file.
pub fn run_into(command: &mut Command, output: File) -> Result<Usage> {
    check_interrupted()?;
    let program = command.get_program().to_string_lossy().into_owned();
    let mut complaints = tempfile::tempfile()?;
    let started = Instant::now();
    let mut child = command
        .stdout(output)
        .stderr(complaints.try_clone()?)
        .spawn()
        .with_context(|| format!("cannot run {program}"))?;
    let (status, mut usage) = watch(&mut child)?;
    usage.time = started.elapsed();
    check_interrupted()?;
    if !status.success() {
        let mut said = Vec::new();
        complaints.seek(SeekFrom::Start(0))?;
        complaints.read_to_end(&mut said)?;
        bail!(
            "{program} failed ({status}): {}",
            String::from_utf8_lossy(&said).trim()
        );
    }
    Ok(usage)
}

fn watch(child: &mut Child) -> Result<(ExitStatus, Usage)> {
    let pid = i32::try_from(child.id())
        .ok()
        .and_then(Pid::from_raw)
        .context("a process without an id")?;
    let mut usage = Usage::default();
    let mut terminated = None;
    // Ended but not waited for, a process has no memory any more but still tells its CPU time. The peak only grows:
    // what it grew by in the last few milliseconds is all that can be missed.
    let ended = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    while rustix::process::waitid(WaitId::Pid(pid), ended)?.is_none() {
        usage.peak_memory = peak_memory(pid).unwrap_or(usage.peak_memory);
        if check_interrupted().is_err() {
            let since = *terminated.get_or_insert_with(Instant::now);
            let patient = since.elapsed() < Duration::from_secs(15);
            let _ = rustix::process::kill_process(
                pid,
                if patient { Signal::TERM } else { Signal::KILL },
            );
        }
        thread::sleep(Duration::from_millis(5));
    }
    usage.cpu = cpu_time(pid)?;
    Ok((child.wait()?, usage))
}

fn peak_memory(pid: Pid) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kibibytes * 1024)
}

fn cpu_time(pid: Pid) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()))?;
    // After the name in brackets, which may hold anything: fields 3 and on, of which 14 to 17 are times.
    let (_, fields) = stat
        .rsplit_once(')')
        .context("/proc/PID/stat has changed its form")?;
    let times = fields
        .split_whitespace()
        .skip(11)
        .take(4)
        .map(str::parse::<u64>);
    let ticks: u64 = times.sum::<Result<u64, _>>()?;
    Ok(Duration::from_secs(ticks) / USER_HZ)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_cpu_and_memory_are_measured() {
        let work = "$held = str_repeat('x', 200000000);
            do { $cpu = getrusage(); } while ($cpu['ru_utime.tv_sec'] + $cpu['ru_utime.tv_usec'] / 1e6 < 0.3);
            echo strlen($held) ? \"7\\n\" : '';";
        let (output, usage) =
            run(Command::new("php").args(["-d", "memory_limit=-1", "-r", work])).unwrap();
        assert_eq!(output, b"7\n");
        assert!(usage.cpu >= Duration::from_millis(280), "{usage:?}");
        assert!(usage.time >= usage.cpu / 2, "{usage:?}");
        assert!(
            (200_000_000..400_000_000).contains(&usage.peak_memory),
            "{usage:?}"
        );
    }

    #[test]
    fn a_failure_tells_what_the_program_said() {
        let error =
            run(Command::new("sh").args(["-c", "echo it went wrong >&2; exit 3"])).unwrap_err();
        assert!(error.to_string().contains("it went wrong"), "{error}");
    }
}
