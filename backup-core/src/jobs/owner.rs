//! Who runs a job: one process of one machine, told so exactly that its death can be told, too.
//!
//! A lease says that an owner has been silent for too long; this says at once that he cannot speak any more. Never: a process of another machine or
//! container taken for dead, or another process with the same number for the one that is gone.

use std::fs;

use rustix::io::Errno;
use rustix::process::{Pid, getpid, test_kill_process};

/// What a name in the table holds at most.
const CHARACTERS_MAX: usize = 128;

/// Of the random digits that tell the claims of one process apart, with their `#`.
const NONCE_CHARACTERS: usize = 9;

/// The name of this process: `host:boot:namespace:pid:start`.
pub(crate) fn of_this_process() -> String {
    let pid = getpid().as_raw_nonzero();
    name_of(getpid()).unwrap_or_else(|| format!("{}:?:?:{pid}:?", host()))
}

/// The name of an owner in one of his claims, `name#nonce`: whether a claim came through whose answer was lost can be told by it.
pub(crate) fn of_claim(name: &str) -> String {
    format!("{name}#{:08x}", rand::random::<u32>())
}

/// Whether the process of this name, in whatever claim, is surely gone. Only of processes that we would see if they were there.
pub(crate) fn is_dead(name: &str) -> bool {
    let name = name.rsplit_once('#').map_or(name, |(name, _nonce)| name);
    let Some((pid, start)) = own_place().and_then(|here| {
        let process = name.strip_prefix(&here)?.strip_prefix(':')?;
        let (pid, start) = process.split_once(':')?;
        let pid = pid.parse().ok().and_then(Pid::from_raw)?;
        Some((pid, start.parse::<u64>().ok()?))
    }) else {
        return false;
    };
    if test_kill_process(pid) == Err(Errno::SRCH) {
        return true;
    }
    // What cannot be read may be hidden, or this process has too many files open.
    match life_of(pid) {
        Some(Life::Since(now)) => now != start,
        Some(Life::Over) => true,
        None => false,
    }
}

fn name_of(pid: Pid) -> Option<String> {
    let Life::Since(start) = life_of(pid)? else {
        return None;
    };
    let name = format!("{}:{}:{start}", own_place()?, pid.as_raw_nonzero());
    (name.chars().count() + NONCE_CHARACTERS <= CHARACTERS_MAX).then_some(name)
}

enum Life {
    /// When the process was started, in ticks since the machine was.
    Since(u64),
    /// It was killed and not yet waited for, and will do nothing any more.
    Over,
}

/// None: nothing is known.
fn life_of(pid: Pid) -> Option<Life> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    // The second field is a name in parentheses, and may hold anything.
    let after_name = stat.rsplit_once(')')?.1;
    let mut fields = after_name.split_ascii_whitespace();
    if matches!(fields.next()?, "Z" | "X") {
        return Some(Life::Over);
    }
    fields.nth(18)?.parse().ok().map(Life::Since)
}

/// Where this process is, as far as it sees others: `host:boot:namespace`.
fn own_place() -> Option<String> {
    Some(format!("{}:{}:{}", host(), own_boot()?, own_namespace()?))
}

/// Two machines may have one name. This one has another boot from its next start on, and then the lease has to tell.
fn own_boot() -> Option<String> {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let digits = id.get(..8)?;
    digits
        .bytes()
        .all(|b| b.is_ascii_hexdigit())
        .then(|| digits.to_owned())
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
    fn each_claim_of_a_process_has_a_name_of_its_own_that_dies_with_it() {
        let own = of_this_process();
        let claims = [of_claim(&own), of_claim(&own)];
        assert_ne!(claims[0], claims[1]);
        for claim in &claims {
            assert!(!is_dead(claim), "{claim}");
            assert!(claim.chars().count() <= CHARACTERS_MAX, "{claim}");
        }
        let (rest, start) = own.rsplit_once(':').unwrap();
        let start: u64 = start.parse().unwrap();
        assert!(is_dead(&of_claim(&format!("{rest}:{}", start - 1))));
        assert_eq!(of_claim("").chars().count(), NONCE_CHARACTERS);
    }

    #[test]
    fn nothing_is_said_of_processes_elsewhere() {
        let own = of_this_process();
        let parts: Vec<&str> = own.rsplitn(5, ':').collect();
        let [start, pid, namespace, boot, host] = parts[..] else {
            panic!("{own}");
        };
        assert!(is_dead(&format!("{host}:{boot}:{namespace}:4194303:1")));
        for name in [
            format!("elsewhere:{boot}:{namespace}:4194303:1"),
            format!("{host}:00000000:{namespace}:4194303:1"),
            format!("{host}:{boot}:1:{pid}:1"),
            format!("{host}:{boot}:{namespace}:4194303"),
            format!("{host}:{boot}:{namespace}:none:1"),
            format!("{host}:{boot}:{namespace}:4194303:?"),
            format!("{host}:{boot}:{namespace}:{pid}:{start}:1"),
            format!("{host}:?:?:4194303:1"),
            "me".to_owned(),
            String::new(),
        ] {
            assert!(!is_dead(&name), "{name}");
        }
    }
}
