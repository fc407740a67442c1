//! `unlock`: removes the locks whose owners are gone, in every configured repository. It needs no database but where each customer has one of his own.

use std::process::ExitCode;
use std::sync::Arc;

use backup_core::audit::Action;
use backup_core::catalog::RepositoryName;
use backup_core::config::Config;
use backup_core::error::Result;
use backup_core::progress::Cancel;
use backup_core::repository::Repository;
use backup_core::service::BackupService;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use super::{noted, with_service};
use crate::output::Output;

pub fn run(config: Config, output: Output, runtime: &Runtime, cancel: &Cancel) -> Result<ExitCode> {
    let note = async |service: &BackupService| service.note(Action::Unlock).await;
    noted(with_service(config.clone(), runtime, note));
    let mut removed = Vec::new();
    let mut left = Vec::new();
    let unlock = |name: RepositoryName, repository: &Arc<Repository>| {
        removed.extend(repository.unlock()?.into_iter().map(|lock| (name, lock)));
        left.extend(repository.locks()?.into_iter().map(|lock| (name, lock)));
        Ok(())
    };
    let are_all_done = super::on_each_repository(config, runtime, cancel, unlock)?;
    output.result(
        &json!({
            "removed": removed.iter().map(|(name, lock)| document(*name, json!(lock))).collect::<Vec<_>>(),
            "left": left.iter().map(|(name, lock)| document(*name, json!(lock))).collect::<Vec<_>>(),
        }),
        || {
            let mut text = format!("{} stale locks removed\n", removed.len());
            for (name, lock) in &left {
                let name = super::shown(*name);
                text.push_str(&format!("still in use, {name}: {lock}\n"));
            }
            text
        },
    );
    Ok(match are_all_done {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

fn document(name: RepositoryName, lock: Value) -> Value {
    let mut document = super::document_of(name);
    document["lock"] = lock;
    document
}
