//! `migrate`.

use std::process::ExitCode;

use backup_core::config::Config;
use backup_core::error::Result;
use backup_core::service::BackupService;
use tokio::runtime::Runtime;

use crate::output::Output;

pub fn run(config: &Config, output: Output, runtime: &Runtime) -> Result<ExitCode> {
    let migrated = runtime.block_on(BackupService::migrate(config))?;
    output.result(&migrated, || {
        if migrated.from == migrated.to {
            format!("the tables are of version {} already", migrated.to)
        } else {
            format!(
                "the tables are of version {} now ({} before)",
                migrated.to, migrated.from
            )
        }
    });
    Ok(ExitCode::SUCCESS)
}
