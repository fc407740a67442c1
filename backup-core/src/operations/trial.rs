//! Whether a customer's database could be backed up and restored, tried without a backup and without a restore.

use super::Engine;
use crate::customer::Customer;
use crate::database::{self, Facts, ImportAccount};
use crate::error::Result;
use crate::progress::{Cancel, Control};

impl Engine {
    /// What a customer's database server and the programs for it are like.
    pub fn database_facts(&self, customer: &Customer, cancel: &Cancel) -> Result<Facts> {
        database::facts(&self.server(customer)?, cancel)
    }

    /// Try whether the account that a customer's dumps are imported as can log in; nothing where the platform has none for him.
    pub fn try_import_account(&self, customer: &Customer) -> Result<()> {
        match (&customer.db_user, &customer.db_password) {
            (Some(user), Some(password)) => {
                self.server_as(customer, user, password.clone())?.ping()
            }
            _ => Ok(()),
        }
    }

    /// The scratch schemas on a customer's database server: of a proof that is under way, or left by one.
    pub fn scratch_schemas(&self, customer: &Customer, cancel: &Cancel) -> Result<Vec<String>> {
        database::scratch_schemas(&self.server(customer)?, cancel)
    }

    /// Try whether a customer's database can be dumped, as [`database::try_dump`] does.
    pub fn try_dump(&self, customer: &Customer, control: &Control) -> Result<()> {
        let server = self.server(customer)?;
        let limit = self.config.dump_timeout();
        database::try_dump(&server, customer.db_name.as_str(), limit, control)
    }

    /// Try on a customer's database server whether what is dumped can be imported, as [`database::try_restore`] does.
    /// `may_create_accounts`: whether an account can be made for that; else it is the customer's own, if he has one.
    pub fn try_import(
        &self,
        customer: &Customer,
        may_create_accounts: bool,
        control: &Control,
    ) -> Result<()> {
        let account = match (&customer.db_user, &customer.db_password) {
            (Some(user), Some(password)) if !may_create_accounts => ImportAccount::Customer {
                user: user.clone(),
                password: password.clone(),
            },
            _ => ImportAccount::Temporary,
        };
        database::try_restore(
            &self.server(customer)?,
            customer.db_name.as_str(),
            &account,
            self.config.import_timeout(),
            control,
        )
    }
}
