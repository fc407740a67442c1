//! The commands, one file each.

pub mod backup;
pub mod check;
pub mod customer;
pub mod doctor;
pub mod init;
pub mod list;
pub mod prune;
pub mod restore;
pub mod unlock;

use backup_core::config::{Config, RepositoryConfig};
use backup_core::customer::{Customer, CustomerId, CustomerStore};
use backup_core::error::Result;
use backup_core::progress::{Cancel, Control};
use backup_core::store::Store;
use tokio::runtime::Runtime;

/// The customer of a command.
fn find_customer(config: &Config, id: CustomerId, runtime: &Runtime) -> Result<Customer> {
    runtime.block_on(async {
        let store = Store::connect(config).await?;
        let customer = CustomerStore::new(&store, config).get(id).await;
        store.close().await;
        customer
    })
}

/// Progress on the terminal, cancelled by signals.
fn control(cancel: &Cancel) -> Control {
    Control {
        monitor: crate::progress::monitor(),
        cancel: cancel.clone(),
        ..Control::default()
    }
}

/// The configured repositories by their names in the configuration.
fn repositories(config: &Config) -> Vec<(&'static str, &RepositoryConfig)> {
    let daily = config.repositories.daily.as_ref();
    std::iter::once(("manual", &config.repositories.manual))
        .chain(daily.map(|daily| ("daily", daily)))
        .collect()
}
