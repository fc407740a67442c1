//! `unlock`: removes the locks whose owners are gone, in every configured repository. It needs no database.

use std::process::ExitCode;

use backup_core::audit::Action;
use backup_core::config::Config;
use backup_core::error::Result;
use backup_core::operations::Engine;
use backup_core::progress::Cancel;
use backup_core::service::BackupService;
use serde_json::json;
use tokio::runtime::Runtime;

use super::{noted, with_service};
use crate::output::Output;

pub fn run(config: Config, output: Output, runtime: &Runtime, cancel: &Cancel) -> Result<ExitCode> {
    let note = async |service: &BackupService| service.note(Action::Unlock).await;
    noted(with_service(config.clone(), runtime, note));
    let engine = Engine::new(config, cancel);
    let mut repositories = vec![("manual", engine.manual()?)];
    repositories.extend(engine.daily()?.map(|daily| ("daily", daily)));
    let mut removed = Vec::new();
    let mut left = Vec::new();
    for (name, repository) in &repositories {
        removed.extend(repository.unlock()?.into_iter().map(|lock| (*name, lock)));
        left.extend(repository.locks()?.into_iter().map(|lock| (*name, lock)));
    }
    output.result(
        &json!({
            "removed": removed.iter().map(|(name, lock)| json!({ "name": name, "lock": lock })).collect::<Vec<_>>(),
            "left": left.iter().map(|(name, lock)| json!({ "name": name, "lock": lock })).collect::<Vec<_>>(),
        }),
        || {
            let mut text = format!("{} stale locks removed\n", removed.len());
            for (name, lock) in &left {
                text.push_str(&format!("still in use, {name}: {lock}\n"));
            }
            text
        },
    );
    Ok(ExitCode::SUCCESS)
}
