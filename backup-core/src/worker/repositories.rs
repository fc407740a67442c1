//! Which repositories the upkeep of a hosting server is for: the ones of the configuration, or one for each of its customers.
//!
//! Opening one of many costs a third of a second and a connection, so the catalogue is asked first which ones have anything to be done. Never: a
//! repository that was lost made anew by itself.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;

use super::upkeep::blocking;
use crate::catalog::{Catalog, InUse, RepositoryName};
use crate::customer::{CustomerId, CustomerStore};
use crate::error::{Error, ErrorKind, Result};
use crate::operations::Engine;
use crate::progress::Cancel;
use crate::repository::Repository;

/// Who wants the repository of a customer's own to be made, and so what may be missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wish {
    /// A backup, with nobody there to look: the place of all of them has to be there.
    Backup,
    /// An operator, for all who have none yet.
    Init,
    /// An operator, for this customer: also if there was one that is lost, or that stays on another hosting server.
    InitNamed,
}

/// Whether the server is away on which customers' own repositories are. Two of them in a row that cannot be reached say so: each takes as long as
/// faults are retried, and one alone may be that one's.
#[derive(Debug, Default)]
pub(super) struct Away {
    in_a_row: u32,
}

impl Away {
    pub(super) fn concerns(&self, name: RepositoryName) -> bool {
        self.in_a_row > 1 && name.customer().is_some()
    }

    pub(super) fn note<T>(&mut self, name: RepositoryName, outcome: &Result<T>) {
        if name.customer().is_none() {
            return;
        }
        self.in_a_row = match outcome {
            Err(error) if error.kind() == ErrorKind::Unreachable => self.in_a_row + 1,
            _ => 0,
        };
    }
}

/// The repositories of the engine's hosting server.
#[derive(Debug, Clone)]
pub(crate) struct Repositories {
    pub(crate) engine: Arc<Engine>,
    pub(crate) catalog: Catalog,
    pub(crate) customers: CustomerStore,
}

impl Repositories {
    /// All of them. Of customers' own also those that are not made yet.
    pub(crate) async fn all(&self) -> Result<Vec<RepositoryName>> {
        let mut all = self.of_customers().await?;
        all.extend(self.engine.shared_repositories());
        Ok(all)
    }

    /// Those of customers of their own; none where all share one.
    pub(crate) async fn of_customers(&self) -> Result<Vec<RepositoryName>> {
        if !self.engine.each_has_own() {
            return Ok(Vec::new());
        }
        let customers = self.customers.of_server(self.server()).await?;
        let name = |(customer, _)| RepositoryName::ManualOf(customer);
        Ok(customers.into_iter().map(name).collect())
    }

    /// Of these, the ones to which something was last done before a moment, as far as can be told without opening them: first those that have waited
    /// the longest, so that whoever does not come to the end begins with the others the next time.
    pub(crate) async fn due(
        &self,
        names: Vec<RepositoryName>,
        since: Timestamp,
        last_done: impl Fn(&InUse) -> Option<Timestamp>,
    ) -> Result<Vec<RepositoryName>> {
        let in_use = self.catalog.in_use(self.server()).await?;
        let last_done: BTreeMap<RepositoryName, Option<Timestamp>> = in_use
            .iter()
            .map(|one| (one.name, last_done(one)))
            .collect();
        let is_due = |name: &RepositoryName| match last_done.get(name) {
            Some(at) => at.is_none_or(|at| at < since) || name.customer().is_none(),
            // A customer's own that is not known was never made.
            None => name.customer().is_none(),
        };
        let mut due: Vec<RepositoryName> = names.into_iter().filter(is_due).collect();
        due.sort_by_key(|name| last_done.get(name).copied().flatten());
        Ok(due)
    }

    /// None: it is a customer's own, and was never made. One that was, and is gone, is [`ErrorKind::NotFound`].
    pub(crate) async fn open(&self, name: RepositoryName) -> Result<Option<Arc<Repository>>> {
        self.open_for(name, &Cancel::new()).await
    }

    /// As [`Self::open`], for one operation: once `cancel` is set, it waits out no outage.
    async fn open_for(
        &self,
        name: RepositoryName,
        cancel: &Cancel,
    ) -> Result<Option<Arc<Repository>>> {
        let (engine, cancel) = (Arc::clone(&self.engine), cancel.clone());
        let opened = blocking(move || engine.repository_for(name, &cancel)).await;
        match (opened, name.customer()) {
            (Err(error), Some(customer)) if error.kind() == ErrorKind::NotFound => {
                match self.catalog.has_used(self.server(), name).await? {
                    true => Err(self.engine.lost(customer, error)),
                    false => Ok(None),
                }
            }
            (opened, _) => opened.map(Some),
        }
    }

    /// Make the repository of a customer's own, where he has none.
    ///
    /// False where there is one. The commit point is that of [`Repository::init`].
    pub(crate) async fn make(
        &self,
        customer: CustomerId,
        wish: Wish,
        cancel: &Cancel,
    ) -> Result<bool> {
        let name = RepositoryName::ManualOf(customer);
        match self.open_for(name, cancel).await {
            Ok(Some(_)) => return Ok(false),
            Ok(None) => {}
            Err(error) if wish == Wish::InitNamed && error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        cancel.check()?;
        if wish != Wish::InitNamed {
            self.require_none_elsewhere(customer).await?;
        }
        if wish == Wish::Backup {
            self.require_place(customer, cancel).await?;
        }
        let engine = Arc::clone(&self.engine);
        let made = blocking(move || engine.create_manual_of(customer)).await;
        let made = match made {
            // Somebody else was faster.
            Err(error) if error.kind() == ErrorKind::Busy => false,
            other => other?,
        };
        let engine = Arc::clone(&self.engine);
        let id = blocking(move || Ok(engine.manual_of(customer)?.id())).await?;
        // Before anything is in it: from here on it is known to have been there.
        self.catalog.note_use(self.server(), name, &id).await?;
        Ok(made)
    }

    /// What he had on another hosting server, and what cannot be reached from here, would be shown no longer.
    async fn require_none_elsewhere(&self, customer: CustomerId) -> Result<()> {
        let name = RepositoryName::ManualOf(customer);
        match self.catalog.other_user(self.server(), name).await? {
            None => Ok(()),
            Some(other) => Err(Error::new(
                ErrorKind::Failed,
                format!(
                    "customer {customer} has a repository on the server {other} that is not where his would be here: bring it here, or, if he shall begin anew, run `init {customer}`"
                ),
            )),
        }
    }

    async fn require_place(&self, customer: CustomerId, cancel: &Cancel) -> Result<()> {
        let in_use = self.catalog.in_use(self.server()).await?;
        let mut others = in_use.iter().filter_map(|one| one.name.customer());
        let holds_some = others.any(|other| other != customer);
        let (engine, cancel) = (Arc::clone(&self.engine), cancel.clone());
        blocking(move || engine.require_place_of_customers(holds_some, &cancel)).await
    }

    /// The repositories of customers who are none of these any more are not looked after here. Who has come since these were listed stays.
    pub(crate) async fn forget_all_but(&self, names: &[RepositoryName]) -> Result<()> {
        let stay: BTreeSet<&RepositoryName> = names.iter().collect();
        for one in self.catalog.in_use(self.server()).await? {
            let Some(customer) = one.name.customer().filter(|_| !stay.contains(&one.name)) else {
                continue;
            };
            let now_on = match self.customers.get(customer).await {
                Ok(found) if found.server == self.server() => continue,
                Ok(found) => Some(found.server),
                Err(error) if error.kind() == ErrorKind::NotFound => None,
                // Nobody can tell where he is.
                Err(error) if error.kind() == ErrorKind::Configuration => continue,
                Err(error) => return Err(error),
            };
            self.catalog
                .note_left(self.server(), customer, now_on.as_deref())
                .await?;
        }
        Ok(())
    }

    fn server(&self) -> &str {
        &self.engine.config().worker.server
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Environment, Origin};
    use crate::customer::{DEFAULT_SERVER, NewCustomer};
    use crate::store::Store;

    #[tokio::test(flavor = "multi_thread")]
    async fn who_has_come_since_the_customers_were_listed_is_not_forgotten() {
        let scratch = tempfile::tempdir().unwrap();
        let text = format!(
            "[database]\nurl = 'sqlite://{}/backup.db'\n\
             [repositories.manual]\nlocation = '/r/{{customer}}'\npassword_file = '/p'\n",
            scratch.path().display()
        );
        let origin = Origin::File("test".into());
        let config = Config::read(origin, &text, &Environment::default()).unwrap();
        let store = Store::connect(&config).await.unwrap();
        store.migrate().await.unwrap();
        let repositories = Repositories {
            catalog: Catalog::new(&store),
            customers: CustomerStore::new(&store, &config),
            engine: Arc::new(Engine::new(config, &Cancel::new())),
        };
        let name = |number| RepositoryName::ManualOf(CustomerId::new(number).unwrap());
        let (here, nowhere) = (name(1), name(2));
        let new = NewCustomer {
            id: here.customer(),
            ..NewCustomer::default()
        };
        repositories.customers.add(&new).await.unwrap();
        let catalog = &repositories.catalog;
        for (name, digit) in [(here, "1"), (nowhere, "2")] {
            let id = digit.repeat(64);
            let noted = catalog.note_use(DEFAULT_SERVER, name, &id).await;
            noted.unwrap();
        }
        repositories.forget_all_but(&[]).await.unwrap();
        assert!(catalog.has_used(DEFAULT_SERVER, here).await.unwrap());
        assert!(!catalog.has_used(DEFAULT_SERVER, nowhere).await.unwrap());
    }

    #[test]
    fn one_that_cannot_be_reached_is_not_the_server_and_two_in_a_row_are() {
        let name = |number| RepositoryName::ManualOf(CustomerId::new(number).unwrap());
        let unreachable = || Err::<(), _>(Error::new(ErrorKind::Unreachable, "away"));
        let mut away = Away::default();
        away.note(name(1), &unreachable());
        assert!(!away.concerns(name(2)));
        away.note(
            name(2),
            &Err::<(), _>(Error::new(ErrorKind::Damaged, "his")),
        );
        away.note(name(3), &unreachable());
        assert!(!away.concerns(name(4)));
        away.note(RepositoryName::Daily, &Ok(()));
        away.note(name(4), &unreachable());
        assert!(away.concerns(name(5)));
        // It is elsewhere, as a rule.
        assert!(!away.concerns(RepositoryName::Daily));
        away.note(name(5), &Ok(()));
        assert!(!away.concerns(name(6)));
    }
}
