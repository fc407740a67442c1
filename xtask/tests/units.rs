//! The units of systemd: without a fault, and as closed as they are said to be.

use std::fs;
use std::path::{Path, PathBuf};

use xtask::host::Host;
use xtask::unit::Unit;

/// The worst that a service may be rated, in tenths, where 100 is a service without any protection.
const WORST: [(&str, u32); 3] = [
    ("shophosting-backup-daily.service", 39),
    ("shophosting-backup-web.service", 19),
    ("shophosting-backup-worker.service", 39),
];

fn deployed() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/systemd")
}

fn names() -> Vec<String> {
    let entries = fs::read_dir(deployed()).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// A machine with the units, and a program where they look for one.
fn host() -> Host {
    let host = Host::start(&[(&deployed(), "/opt/units")]).unwrap();
    let install = "install -m 644 * /etc/systemd/system/\ninstall -m 755 /bin/true /usr/bin/shophosting-backup";
    host.shell("/opt/units", install).unwrap();
    host
}

/// Whether `systemd-analyze` was content, and all that it said.
fn analyze(host: &Host, arguments: &[&str]) -> (bool, String) {
    let output = host
        .command("systemd-analyze")
        .args(arguments)
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8_lossy(&said).into_owned(),
    )
}

#[test]
fn systemd_has_nothing_to_say_against_any_unit() {
    let host = host();
    let names = names();
    assert_eq!(names.len(), 4, "{names:?}");
    for name in names {
        let unit = format!("/etc/systemd/system/{name}");
        let (is_content, said) = analyze(&host, &["verify", &unit]);
        assert!(is_content && said.is_empty(), "{name}: {said}");
    }
    // A key that is misspelt is only warned of.
    let misspelt = "[Service]\nExecStart=/usr/bin/shophosting-backup\nProtectSytem=strict\n";
    host.write("/etc/systemd/system/misspelt.service", "644", misspelt)
        .unwrap();
    let (_, said) = analyze(&host, &["verify", "/etc/systemd/system/misspelt.service"]);
    assert!(said.contains("ProtectSytem"), "{said}");
}

#[test]
fn every_service_is_as_closed_as_it_can_be() {
    let host = host();
    let services: Vec<_> = names()
        .into_iter()
        .filter(|name| name.ends_with(".service"))
        .collect();
    assert_eq!(services, WORST.map(|(name, _)| name));
    for (name, worst) in WORST {
        let unit = format!("/etc/systemd/system/{name}");
        let threshold = format!("--threshold={worst}");
        let rate = |unit: &str| analyze(&host, &["security", "--offline=true", &threshold, unit]);
        let (is_closed, said) = rate(&unit);
        assert!(is_closed, "{name} is rated worse than {worst}: {said}");
        // The same program without what closes it in.
        let program = host.read(&unit).unwrap();
        let program = program
            .lines()
            .find(|line| line.starts_with("ExecStart="))
            .unwrap();
        let open = format!("/etc/systemd/system/open-{name}");
        host.write(&open, "644", &format!("[Service]\n{program}\n"))
            .unwrap();
        let (is_closed, said) = rate(&open);
        assert!(!is_closed, "{said}");
    }
}

#[test]
fn no_service_is_ended_in_the_middle_of_a_restore_or_started_again_on_a_wrong_configuration() {
    let unit = |name: &str| Unit::parse(&fs::read_to_string(deployed().join(name)).unwrap());
    let worker = unit("shophosting-backup-worker.service");
    assert_eq!(worker.words("KillMode"), ["mixed"]);
    assert_eq!(worker.words("TimeoutStopSec"), ["infinity"]);
    for name in [
        "shophosting-backup-web.service",
        "shophosting-backup-worker.service",
    ] {
        assert_eq!(unit(name).words("Restart"), ["always"]);
        assert_eq!(unit(name).words("RestartPreventExitStatus"), ["2"]);
    }
}
