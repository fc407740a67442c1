//! Who runs a job: one process of one machine, told so exactly that its death can be told, too.
//!
//! A lease says that an owner has been silent for too long; this says at once that he cannot speak any more. Never: a process of another machine or
//! container taken for dead, or another process with the same number for the one that is gone.

use std::fs;

use rustix::process::{Pid, getpid};

/// What a name in the table holds at most.
const CHARACTERS_MAX: usize = 128;

/// The name of this process: `host:namespace:pid:start`.
pub(crate) fn of_this_process() -> String {
    name_of(getpid()).unwrap_or_else(|| format!("{}:?:{}:?", host(), getpid().as_raw_nonzero()))
}

/// Whether the process of this name is surely gone. Only of processes that we would see if they were there.
pub(crate) fn is_dead(name: &str) -> bool {
    let mut parts = name.rsplitn(4, ':');
    let (Some(_start), Some(pid), Some(namespace), Some(its_host)) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return false;
    };
    if its_host != host() || own_namespace().as_deref() != Some(namespace) {
        return false;
    }
    let pid = pid.parse().ok().and_then(Pid::from_raw);
    pid.is_some_and(|pid| name_of(pid).is_none_or(|now| now != name))
}

/// None where there is no such process.
fn name_of(pid: Pid) -> Option<String> {
    let start = start_of(pid)?;
    let namespace = own_namespace()?;
    let name = format!("{}:{namespace}:{}:{start}", host(), pid.as_raw_nonzero());
    (name.chars().count() <= CHARACTERS_MAX).then_some(name)
}

/// When a process was started, in ticks since the machine was.
fn start_of(pid: Pid) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    // The second field is a name in parentheses, and may hold anything.
    let after_name = stat.rsplit_once(')')?.1;
    let mut fields = after_name.split_ascii_whitespace();
    // One that was killed and not yet waited for will do nothing any more.
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18).map(str::to_owned)
}

/// The process numbers that we see are those of this namespace.
fn own_namespace() -> Option<String> {
    let link = fs::read_link("/proc/self/ns/pid").ok()?;
    let digits: String = link
        .to_string_lossy()
        .chars()
        .filter(char::is_ascii_digit)
        .collect();
    Some(digits).filter(|digits| !digits.is_empty())
}

fn host() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .chars()
        .take(64)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_dead_when_it_is_gone_and_only_then() {
        let own = of_this_process();
        assert!(!is_dead(&own), "{own}");
        let mut child = std::process::Command::new("sleep")
            .arg("1000")
            .spawn()
            .unwrap();
        let pid = Pid::from_child(&child);
        let name = name_of(pid).unwrap();
        assert!(!is_dead(&name), "{name}");
        child.kill().unwrap();
        // Dead before its parent has asked for it.
        while !is_dead(&name) {
            std::thread::yield_now();
        }
        child.wait().unwrap();
        assert!(is_dead(&name), "{name}");
    }

    #[test]
    fn another_process_with_the_number_of_a_dead_one_is_not_it() {
        let own = of_this_process();
        let (rest, start) = own.rsplit_once(':').unwrap();
        let start: u64 = start.parse().unwrap();
        assert!(is_dead(&format!("{rest}:{}", start - 1)));
    }

    #[test]
    fn nothing_is_said_of_processes_elsewhere() {
        let own = of_this_process();
        let (host, rest) = own.split_once(':').unwrap();
        let (namespace, process) = rest.split_once(':').unwrap();
        for name in [
            format!("elsewhere:{namespace}:4194303:1"),
            format!("{host}:1:{process}"),
            format!("{host}:{namespace}:4194303"),
            format!("{host}:{namespace}:none:1"),
            "me".to_owned(),
            String::new(),
        ] {
            assert!(!is_dead(&name), "{name}");
        }
    }
}
