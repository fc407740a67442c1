//! What the doctor says. Never: a complaint without what to do about it.

use backup_core::error::Error;
use serde::Serialize;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Status {
    Ok,
    Warning,
    Failed,
}

/// One thing that was tried.
#[derive(Debug, Serialize)]
pub(super) struct Check {
    /// What was tried: mostly the key of the configuration.
    name: String,
    status: Status,
    /// What was found.
    message: String,
    /// What to do about it; None where all is well.
    remedy: Option<String>,
}

#[derive(Debug, Default)]
pub(super) struct Report(Vec<Check>);

impl Report {
    pub(super) fn ok(&mut self, name: &str, message: impl Into<String>) {
        self.add(name, Status::Ok, message.into(), None);
    }

    pub(super) fn warning(
        &mut self,
        name: &str,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.add(name, Status::Warning, message.into(), Some(remedy.into()));
    }

    pub(super) fn failed(
        &mut self,
        name: &str,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.add(name, Status::Failed, message.into(), Some(remedy.into()));
    }

    pub(super) fn error(&mut self, name: &str, error: &Error, remedy: impl Into<String>) {
        self.failed(name, error.chain(), remedy);
    }

    fn add(&mut self, name: &str, status: Status, message: String, remedy: Option<String>) {
        self.0.push(Check {
            name: name.to_owned(),
            status,
            message,
            remedy,
        });
    }

    pub(super) fn any_failed(&self) -> bool {
        self.0.iter().any(|check| check.status == Status::Failed)
    }

    pub(super) fn checks(&self) -> &[Check] {
        &self.0
    }

    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        for check in &self.0 {
            let status = match check.status {
                Status::Ok => "ok     ",
                Status::Warning => "warning",
                Status::Failed => "FAILED ",
            };
            text.push_str(&format!("{status}  {}: {}\n", check.name, check.message));
            if let Some(remedy) = &check.remedy {
                text.push_str(&format!("         → {remedy}\n"));
            }
        }
        text
    }
}
