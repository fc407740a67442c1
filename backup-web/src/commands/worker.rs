//! `worker`.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use backup_core::config::Config;
use backup_core::error::{ErrorKind, Result};
use backup_core::operations::Engine;
use backup_core::progress::Cancel;
use backup_core::service::BackupService;
use backup_core::worker::Stopping;
use tokio::runtime::Runtime;
use tokio::sync::watch;

pub fn run(
    config: Config,
    runtime: &Runtime,
    stopping: watch::Receiver<Stopping>,
    cancel: &Cancel,
) -> Result<ExitCode> {
    let engine = Arc::new(Engine::new(config.clone(), cancel));
    runtime.block_on(async {
        let Some(service) = connect_patiently(config, stopping.clone()).await? else {
            return Ok(ExitCode::SUCCESS);
        };
        service.worker(engine).run(stopping).await;
        service.close().await;
        Ok(ExitCode::SUCCESS)
    })
}

/// A worker that starts with its machine may be there before the database. None: it was asked to end meanwhile.
pub async fn connect_patiently(
    config: Config,
    mut stopping: watch::Receiver<Stopping>,
) -> Result<Option<BackupService>> {
    const PAUSE: Duration = Duration::from_secs(2);
    let mut is_told = false;
    while *stopping.borrow_and_update() == Stopping::No {
        match BackupService::connect(config.clone()).await {
            Err(error) if error.kind() == ErrorKind::Unreachable => {
                if !is_told {
                    tracing::warn!("waiting for the database: {}", error.chain());
                }
                is_told = true;
            }
            other => return other.map(Some),
        }
        tokio::select! {
            () = tokio::time::sleep(PAUSE) => {}
            asked = stopping.changed() => if asked.is_err() { return Ok(None) },
        }
    }
    Ok(None)
}
