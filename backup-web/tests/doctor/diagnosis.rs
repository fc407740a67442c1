//! What a run of the doctor said.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

pub struct Diagnosis(Value);

/// What the doctor is called to.
pub trait Patient {
    /// The program, with all that it needs to know.
    fn product(&self) -> Command;

    /// What the doctor may not show.
    fn secrets(&self) -> Vec<&str>;

    #[track_caller]
    fn doctor(&self) -> Diagnosis {
        self.doctor_with(&[])
    }

    /// With these keys of the configuration: `SITE__STOP`.
    #[track_caller]
    fn doctor_with(&self, keys: &[(&str, &str)]) -> Diagnosis {
        let variables = keys
            .iter()
            .map(|(key, value)| (format!("BACKUP__{key}"), value));
        let diagnosis = Diagnosis::of(self.product().envs(variables));
        for secret in self.secrets() {
            diagnosis.does_not_show(secret);
        }
        diagnosis
    }
}

impl Diagnosis {
    /// Run it for all customers.
    #[track_caller]
    pub fn of(command: &mut Command) -> Self {
        Self::with(command, &[])
    }

    /// Run it. Whatever it finds, its document has the promised form, and its exit status tells whether anything failed.
    #[track_caller]
    pub fn with(command: &mut Command, more: &[&str]) -> Self {
        let output = command
            .args(["--json", "doctor"])
            .args(more)
            .output()
            .unwrap();
        let document: Value =
            serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"));
        let this = Self(document);
        for check in this.checks() {
            let text = |key: &str| check[key].as_str().unwrap_or_default();
            assert!(!text("name").is_empty() && !text("message").is_empty());
            match text("status") {
                "ok" => assert!(check["remedy"].is_null(), "{check}"),
                "warning" | "failed" => assert!(text("remedy").len() > 8, "{check}"),
                other => panic!("{other}: {check}"),
            }
        }
        let failed = this.checks().iter().any(|one| one["status"] == "failed");
        assert_eq!(this.0["success"], !failed);
        assert_eq!(output.status.code(), Some(i32::from(failed)));
        this
    }

    fn checks(&self) -> &[Value] {
        self.0["checks"].as_array().unwrap()
    }

    fn has(&self, name: &str, status: &str, words: &[&str]) -> bool {
        self.checks().iter().any(|check| {
            let message = check["message"].as_str().unwrap();
            check["name"] == name
                && check["status"] == status
                && words.iter().all(|word| message.contains(word))
        })
    }

    #[track_caller]
    fn assert_has(&self, name: &str, status: &str, words: &[&str]) -> &Self {
        assert!(
            self.has(name, status, words),
            "no {name}, {status}, {words:?}: {:#}",
            self.0
        );
        self
    }

    #[track_caller]
    pub fn fails(&self, name: &str, words: &[&str]) -> &Self {
        self.assert_has(name, "failed", words)
    }

    #[track_caller]
    pub fn warns(&self, name: &str, words: &[&str]) -> &Self {
        self.assert_has(name, "warning", words)
    }

    #[track_caller]
    pub fn finds(&self, name: &str, words: &[&str]) -> &Self {
        self.assert_has(name, "ok", words)
    }

    pub fn looks_at(&self, name: &str) -> bool {
        self.checks().iter().any(|check| check["name"] == name)
    }

    /// The names of all that it complains about.
    pub fn complaints(&self) -> BTreeSet<&str> {
        let bad = self.checks().iter().filter(|one| one["status"] != "ok");
        bad.map(|one| one["name"].as_str().unwrap()).collect()
    }

    #[track_caller]
    pub fn has_nothing_to_say(&self) {
        assert_eq!(self.complaints(), BTreeSet::new(), "{:#}", self.0);
    }

    #[track_caller]
    pub fn does_not_show(&self, secret: &str) -> &Self {
        assert!(!self.0.to_string().contains(secret));
        self
    }
}

/// All that is in a directory and below, with sizes.
pub fn listing(directory: &Path) -> BTreeSet<(PathBuf, u64)> {
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        let meta = entry.metadata().unwrap();
        match meta.is_dir() {
            true => {
                found.extend(listing(&entry.path()));
                found.insert((entry.path(), 0));
            }
            false => {
                found.insert((entry.path(), meta.len()));
            }
        }
    }
    found
}

/// A file system of its own, until it is dropped.
pub struct Mount(PathBuf);

impl Mount {
    pub fn over(place: &Path, options: &str) -> Self {
        std::fs::create_dir_all(place).unwrap();
        mount(&["-t", "tmpfs", "-o", options, "tmpfs"], place);
        Self(place.to_owned())
    }

    pub fn remount(&self, options: &str) {
        mount(&["-o", &format!("remount,{options}")], &self.0);
    }
}

fn mount(arguments: &[&str], place: &Path) {
    let mounted = Command::new("mount").args(arguments).arg(place).status();
    assert!(mounted.unwrap().success(), "this takes the right to mount");
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
