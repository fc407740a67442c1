//! Whose sites are looked at.

use backup_core::config::Config;
use backup_core::customer::{Customer, CustomerId};

use super::TRIED_MAX;
use super::report::Report;

/// The customers of this server that can be used.
pub(super) struct Customers(Vec<Customer>);

impl Customers {
    /// Of those that were found in the platform's table, the ones of this server; only one of them where one is named.
    pub(super) fn choose(
        config: &Config,
        found: Vec<Customer>,
        only: Option<CustomerId>,
        report: &mut Report,
    ) -> Self {
        let server = &config.worker.server;
        let mut chosen = found;
        chosen.retain(|customer| customer.server == *server);
        if let Some(only) = only {
            chosen.retain(|customer| customer.id == only);
            if chosen.is_empty() {
                report.failed(
                    "customers",
                    format!("there is no customer {only} of the server {server} that can be used"),
                    "see his row in the platform's table, and worker.server",
                );
            }
        } else if chosen.len() > TRIED_MAX {
            report.ok(
                "customers",
                format!(
                    "{}; programs, database and address of {TRIED_MAX} of them are tried, those of another by --customer",
                    chosen.len()
                ),
            );
        }
        Self(chosen)
    }

    pub(super) fn all(&self) -> &[Customer] {
        &self.0
    }

    pub(super) fn find(&self, id: CustomerId) -> Option<&Customer> {
        self.0.iter().find(|customer| customer.id == id)
    }

    /// Those who have a directory here, as many as are tried.
    pub(super) fn tried<'a>(&'a self, config: &'a Config) -> impl Iterator<Item = &'a Customer> {
        let here = move |customer: &&Customer| config.customers.dir(customer.id).is_dir();
        self.0.iter().filter(here).take(TRIED_MAX)
    }
}
