//! `list`.

use std::process::ExitCode;

use backup_core::catalog::BackupEntry;
use backup_core::config::Config;
use backup_core::customer::CustomerId;
use backup_core::error::{ErrorKind, Result};
use backup_core::progress::Cancel;
use indicatif::HumanBytes;
use jiff::tz::TimeZone;
use tokio::runtime::Runtime;

use super::Parts;
use crate::output::Output;

pub fn run(
    config: Config,
    customer: CustomerId,
    output: Output,
    runtime: &Runtime,
    cancel: &Cancel,
) -> Result<ExitCode> {
    let parts = Parts::connect(config, runtime, cancel)?;
    // What is wrong with his row is in the way of a restore, but not of a look.
    match runtime.block_on(parts.service.customers().get(customer)) {
        Err(error) if error.kind() != ErrorKind::Configuration => return Err(error),
        _ => {}
    }
    parts.refresh_of(customer, None)?;
    let list = runtime.block_on(parts.service.list(customer))?;
    output.result(&list, || {
        let mut text = String::new();
        for (title, entries) in [
            ("manual", &list.manual),
            ("daily", &list.daily),
            ("pre-restore", &list.pre_restore),
        ] {
            if !entries.is_empty() {
                text.push_str(&format!("{title}:\n"));
                text.extend(entries.iter().map(line));
            }
        }
        if text.is_empty() {
            text.push_str(&format!("customer {customer} has no backups"));
        }
        text
    });
    Ok(ExitCode::SUCCESS)
}

fn line(entry: &BackupEntry) -> String {
    let time = entry.time.to_zoned(TimeZone::system());
    let bytes = entry
        .bytes
        .map_or_else(|| "-".to_owned(), |bytes| HumanBytes(bytes).to_string());
    format!(
        "  {}  {}  {:<5}  {bytes:>12}  {}\n",
        &entry.id.to_string()[..8],
        time.strftime("%Y-%m-%d %H:%M:%S"),
        entry.backup_type.to_string(),
        entry.note.as_deref().unwrap_or("").escape_debug(),
    )
}
