//! The commands, one file each.

pub mod backup;
pub mod cancel;
pub mod check;
pub mod customer;
pub mod daily;
pub mod doctor;
pub mod init;
pub mod jobs;
pub mod list;
pub mod migrate;
pub mod operator;
pub mod prune;
pub mod recover;
pub mod restore;
pub mod serve;
pub mod status;
pub mod sync;
pub mod unlock;
pub mod verify;
pub mod worker;

use std::sync::Arc;

use backup_core::audit::Action;
use backup_core::catalog::{Missing, RepositoryName, Source, SyncReport};
use backup_core::config::{Config, RepositoryConfig};
use backup_core::customer::CustomerId;
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::jobs::Job;
use backup_core::operations::Engine;
use backup_core::progress::{Cancel, Control};
use backup_core::repository::Repository;
use backup_core::service::{BackupService, RunHere};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::output;

/// The façade and an engine, for as long as a command runs.
struct Parts<'a> {
    runtime: &'a Runtime,
    service: BackupService,
    engine: Arc<Engine>,
}

impl<'a> Parts<'a> {
    fn connect(config: Config, runtime: &'a Runtime, cancel: &Cancel) -> Result<Self> {
        let engine = Arc::new(Engine::new(config.clone(), cancel));
        let service = runtime.block_on(BackupService::connect(config))?;
        let service = service.acting(operator::actor());
        Ok(Self {
            runtime,
            service,
            engine,
        })
    }

    /// Write down that this command is begun.
    fn note(&self, action: Action) {
        noted(self.runtime.block_on(self.service.note(action)));
    }

    /// Write down that this command is begun, of each customer whom it names.
    fn note_to(&self, customers: &[CustomerId], action: Action) {
        if customers.is_empty() {
            return self.note(action);
        }
        for customer in customers {
            let note = self.service.note_to(*customer, action);
            noted(self.runtime.block_on(note));
        }
    }

    /// The catalogue as the repositories are now, or, where they cannot be reached, as it was last.
    fn refresh(&self) -> Result<()> {
        self.refresh_by(self.service.sync(&self.engine, Missing::Remember))
    }

    /// The same for one customer, whose backups of one source may be all that is asked for: what those cannot be in is left as it is.
    fn refresh_of(&self, customer: CustomerId, source: Option<Source>) -> Result<()> {
        let (service, engine) = (&self.service, &self.engine);
        self.refresh_by(service.sync_of(engine, customer, source, Missing::Remember))
    }

    fn refresh_by(
        &self,
        sync: impl Future<Output = Result<Vec<(&'static str, SyncReport)>>>,
    ) -> Result<()> {
        init::require(self.service.config())?;
        let synced = self.runtime.block_on(sync);
        match synced {
            Ok(reports) => {
                for (_, report) in &reports {
                    for warning in report.failures.iter().chain(&report.warnings) {
                        output::message(&format!("warning: {warning}"));
                    }
                }
                Ok(())
            }
            Err(error) if matches!(error.kind(), ErrorKind::Unreachable | ErrorKind::Busy) => {
                output::message(&format!(
                    "warning: the repositories cannot be looked at, this is what was known before: {}",
                    error.chain()
                ));
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}

impl Drop for Parts<'_> {
    fn drop(&mut self) {
        self.runtime.block_on(self.service.close());
    }
}

/// What a command does is done whether or not it can be written down: nobody's backup is to wait for a list of who did what.
fn noted(result: Result<()>) {
    if let Err(error) = result {
        output::message(&format!(
            "warning: who ran this is not written down: {}",
            error.chain()
        ));
    }
}

/// What needs the database alone.
fn with_service<T>(
    config: Config,
    runtime: &Runtime,
    act: impl AsyncFnOnce(&BackupService) -> Result<T>,
) -> Result<T> {
    runtime.block_on(async {
        let service = BackupService::connect(config).await?;
        let service = service.acting(operator::actor());
        let result = act(&service).await;
        service.close().await;
        result
    })
}

/// What a job that was run on the spot gave.
fn done<T>(run: RunHere<T>) -> Result<(u64, T)> {
    match run {
        RunHere::Done { job, report } => Ok((job.get(), report)),
        RunHere::InTheWay(job) => Err(in_the_way(&job)),
    }
}

fn in_the_way(job: &Job) -> Error {
    if job.is_stuck() {
        return Error::new(
            ErrorKind::Busy,
            format!(
                "the restore of customer {} that is job {} is stuck: mend its cause, which the log names, and run `recover`",
                job.customer_id, job.id
            ),
        );
    }
    Error::new(
        ErrorKind::Busy,
        format!(
            "customer {} has a job already that has not ended: {} job {}, {}; wait for it, or `cancel {}`",
            job.customer_id, job.job_type, job.id, job.status, job.id
        ),
    )
}

/// Progress on the terminal, cancelled by signals.
fn control(cancel: &Cancel) -> Control {
    Control {
        monitor: crate::progress::monitor(),
        cancel: cancel.clone(),
        ..Control::default()
    }
}

/// Do something to each of this server's repositories; false where one customer's own could not be had, which is nothing to the others.
fn on_each_repository(
    config: Config,
    runtime: &Runtime,
    cancel: &Cancel,
    mut act: impl FnMut(RepositoryName, &Arc<Repository>) -> Result<()>,
) -> Result<bool> {
    if !config.repositories.manual.is_for_each_customer() {
        // The database is not needed for it, and may be what is gone.
        let engine = Engine::new(config, cancel);
        let open = |name| Ok((name, engine.repository(name)?));
        let names = engine.shared_repositories().into_iter();
        for (name, repository) in names.map(open).collect::<Result<Vec<_>>>()? {
            act(name, &repository)?;
        }
        return Ok(true);
    }
    let parts = Parts::connect(config, runtime, cancel)?;
    let (service, engine) = (&parts.service, &parts.engine);
    let (mut are_all_done, mut is_unreachable) = (true, false);
    for name in runtime.block_on(service.repositories(engine))? {
        let done = match runtime.block_on(service.open_repository(engine, name)) {
            Ok(Some(repository)) => act(name, &repository),
            Ok(None) => continue,
            Err(error) => Err(error),
        };
        let was_unreachable = std::mem::replace(&mut is_unreachable, false);
        if let Err(error) = done {
            is_unreachable = error.kind() == ErrorKind::Unreachable;
            if was_unreachable && is_unreachable {
                // Two in a row: it is the server, and each of the others would be waited for.
                return Err(error);
            }
            output::message(&format!("error: the {name}: {}", error.chain()));
            are_all_done = false;
        }
    }
    Ok(are_all_done)
}

/// A repository as the output names it: `manual`, `manual of customer 7` or `daily`.
fn shown(name: RepositoryName) -> String {
    match name.customer() {
        Some(customer) => format!("{} of customer {customer}", name.as_str()),
        None => name.as_str().to_owned(),
    }
}

/// The same for programs, as a document to which the rest is added.
fn document_of(name: RepositoryName) -> Value {
    let mut document = json!({ "name": name.as_str() });
    if let Some(customer) = name.customer() {
        document["customer"] = json!(customer);
    }
    document
}

/// The configured repositories by their names in the configuration.
fn repositories(config: &Config) -> Vec<(&'static str, &RepositoryConfig)> {
    let daily = config.repositories.daily.as_ref();
    std::iter::once(("manual", &config.repositories.manual))
        .chain(daily.map(|daily| ("daily", daily)))
        .collect()
}
