//! `recover`.

use std::process::ExitCode;
use std::sync::Arc;

use backup_core::audit::Action;
use backup_core::config::Config;
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::operations::{Engine, Interrupted, Recovered};
use backup_core::progress::{Cancel, Control};
use backup_core::service::BackupService;
use backup_core::worker::Recovery;
use serde::Serialize;
use tokio::runtime::Runtime;

use super::operator;
use crate::output::{self, Output};

#[derive(Serialize)]
struct Document {
    restores: Vec<Line>,
}

/// One restore, and what became of it.
#[derive(Serialize)]
struct Line {
    #[serde(flatten)]
    interrupted: Option<Interrupted>,
    recovery: Option<Recovery>,
    error: Option<String>,
}

pub fn run(config: Config, output: Output, runtime: &Runtime, cancel: &Cancel) -> Result<ExitCode> {
    let engine = Arc::new(Engine::new(config.clone(), cancel));
    let lines = match runtime.block_on(BackupService::connect(config)) {
        Ok(service) => {
            let service = service.acting(operator::actor());
            super::noted(runtime.block_on(service.note(Action::Recover)));
            let recovered = runtime.block_on(service.recover(&engine));
            runtime.block_on(service.close());
            recovered?
        }
        Err(error) if error.kind() == ErrorKind::Unreachable => {
            output::message(&format!(
                "warning: jobs and lists will tell how these ended once a worker, or `recover`, reaches the database: {}",
                error.chain()
            ));
            without_database(&engine)?
        }
        Err(error) => return Err(error),
    };
    let lines: Vec<Line> = lines.into_iter().map(Line::of).collect();
    let is_done = lines.iter().all(|line| line.error.is_none());
    let document = Document { restores: lines };
    output.result(&document, || document.text());
    Ok(match is_done {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

type Outcome = (Option<Interrupted>, Result<Recovery>);

/// The journals are enough for the sites.
fn without_database(engine: &Engine) -> Result<Vec<Outcome>> {
    let recover = |interrupted: Interrupted| {
        let recovered = match engine.recover(&interrupted, &Control::default()) {
            Ok(Recovered::Restored(_)) => Ok(Recovery::Restored),
            Ok(Recovered::Undone(_)) => Ok(Recovery::Undone),
            Ok(Recovered::Gone) => Ok(Recovery::InUse),
            Ok(Recovered::Untold(error)) => Err(error),
            Err(error) if error.kind() == ErrorKind::Busy => Ok(Recovery::InUse),
            Err(error) => Err(error),
        };
        (Some(interrupted), recovered)
    };
    let found = engine.interrupted()?;
    let mut outcomes: Vec<Outcome> = found
        .into_iter()
        .map(|found| found.map_or_else(|error| (None, Err(error)), recover))
        .collect();
    for left in engine.interrupted()?.into_iter().flatten() {
        let of_it = |(one, outcome): &&mut Outcome| {
            let is_it = one.as_ref().is_some_and(|one| one.journal == left.journal);
            is_it && matches!(outcome, Ok(Recovery::Restored | Recovery::Undone)) && !left.is_tidy
        };
        if let Some((_, outcome)) = outcomes.iter_mut().find(of_it) {
            *outcome = Err(Error::new(
                ErrorKind::Failed,
                "the site is up and whole, but not all that is beside it is put away yet: see the warnings",
            ));
        }
    }
    Ok(outcomes)
}

impl Line {
    fn of((interrupted, recovery): Outcome) -> Self {
        let (recovery, error) = match recovery {
            Ok(recovery) => (Some(recovery), None),
            Err(error) => (None, Some(Error::chain(&error))),
        };
        Self {
            interrupted,
            recovery,
            error,
        }
    }
}

impl Document {
    fn text(&self) -> String {
        if self.restores.is_empty() {
            return "no restore was interrupted".to_owned();
        }
        let lines: Vec<String> = self.restores.iter().map(Line::text).collect();
        lines.join("\n")
    }
}

impl Line {
    fn text(&self) -> String {
        let restore = match &self.interrupted {
            Some(one) => format!("the restore of customer {} of {}", one.customer, one.began),
            None => "a restore".to_owned(),
        };
        match (self.recovery, &self.error) {
            (_, Some(error)) => format!("{restore}: {error}"),
            (Some(Recovery::Restored), _) => {
                format!("{restore}: finished, the site is as the backup has it")
            }
            (Some(Recovery::Undone), _) => format!("{restore}: undone, the site is as it was"),
            (Some(Recovery::InUse) | None, _) => {
                format!("{restore}: somebody is at work on the customer, nothing is done")
            }
        }
    }
}
