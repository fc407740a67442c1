//! The repositories that the configuration names, opened when they are first needed and then kept.
//!
//! Where each customer has one of his own, only so many of these are kept: an index in memory and connections of its own are the price of each. Never:
//! one customer's repository that is away, gone or damaged in the way of another's; a repository made where one was before, unless somebody says so.

use std::sync::{Arc, Mutex, PoisonError};

use secrecy::SecretString;

use super::state::directory_of_copies;
use super::{Engine, init_repository, location, open_storage_for, storage_options};
use crate::catalog::RepositoryName;
use crate::config::RepositoryConfig;
use crate::customer::CustomerId;
use crate::error::{Error, ErrorKind, Result};
use crate::progress::Cancel;
use crate::repository::Repository;
use crate::storage::{self, Storage};

/// Customers' repositories that are kept open. What uses one that is kept no longer has it as long as it needs it.
const OPEN_MAX: usize = 16;

/// A repository once it was opened.
pub(super) type Kept = Mutex<Option<Repository>>;

/// Where the backups are that customers make.
#[derive(Debug)]
pub(super) enum Manual {
    /// All in one repository.
    Shared(Kept),
    /// Each customer's in one of his own. The one that was used last comes last.
    OfEach(Mutex<Vec<(CustomerId, Arc<Kept>)>>),
}

impl Manual {
    pub(super) fn new(config: &RepositoryConfig) -> Self {
        match config.is_for_each_customer() {
            true => Self::OfEach(Mutex::default()),
            false => Self::Shared(Mutex::default()),
        }
    }
}

impl Engine {
    /// Whether each customer's own backups are in a repository of his own.
    pub fn each_has_own(&self) -> bool {
        matches!(self.manual, Manual::OfEach(_))
    }

    /// What the repository is called in which this customer's own backups are.
    pub fn name_of_manual(&self, customer: CustomerId) -> RepositoryName {
        match &self.manual {
            Manual::Shared(_) => RepositoryName::Manual,
            Manual::OfEach(_) => RepositoryName::ManualOf(customer),
        }
    }

    /// The repositories of the configuration, without those that are customers' own.
    pub fn shared_repositories(&self) -> Vec<RepositoryName> {
        let manual = (!self.each_has_own()).then_some(RepositoryName::Manual);
        let daily = self.config.repositories.daily.as_ref();
        manual
            .into_iter()
            .chain(daily.map(|_| RepositoryName::Daily))
            .collect()
    }

    /// The repository of this name. [`ErrorKind::NotFound`] where there is none yet, and [`ErrorKind::Configuration`] where none is configured.
    pub fn repository(&self, name: RepositoryName) -> Result<Arc<Repository>> {
        self.repository_for(name, &Cancel::new())
    }

    /// As [`Self::repository`], for one operation: once `cancel` is set, it waits out no outage.
    pub(crate) fn repository_for(
        &self,
        name: RepositoryName,
        cancel: &Cancel,
    ) -> Result<Arc<Repository>> {
        match name {
            RepositoryName::Manual => match &self.manual {
                Manual::Shared(kept) => self.open_shared(kept, cancel),
                Manual::OfEach(_) => Err(no_customer(&self.config.repositories.manual)),
            },
            RepositoryName::ManualOf(customer) => self.manual_for(customer, cancel),
            RepositoryName::Daily => self.daily_for(cancel)?.ok_or_else(|| {
                Error::new(
                    ErrorKind::Configuration,
                    "there is no repository for daily backups: set repositories.daily",
                )
            }),
        }
    }

    /// The repository of the backups that customers make. [`ErrorKind::Configuration`] where each has one of his own.
    pub fn manual(&self) -> Result<Arc<Repository>> {
        self.repository(RepositoryName::Manual)
    }

    /// The repository of the backups that a customer makes: his own, or that of all.
    pub fn manual_of(&self, customer: CustomerId) -> Result<Arc<Repository>> {
        self.manual_for(customer, &Cancel::new())
    }

    /// As [`Self::manual_of`], for one operation: once `cancel` is set, it waits out no outage.
    pub(crate) fn manual_for(
        &self,
        customer: CustomerId,
        cancel: &Cancel,
    ) -> Result<Arc<Repository>> {
        match &self.manual {
            Manual::Shared(kept) => self.open_shared(kept, cancel),
            Manual::OfEach(opened) => self.open_own(&keep_open(opened, customer), customer, cancel),
        }
    }

    /// The repository of the platform's daily backups; None where none is configured.
    pub fn daily(&self) -> Result<Option<Arc<Repository>>> {
        self.daily_for(&Cancel::new())
    }

    pub(super) fn daily_for(&self, cancel: &Cancel) -> Result<Option<Arc<Repository>>> {
        let config = self.config.repositories.daily.as_ref();
        config
            .map(|config| self.open_once(&self.daily, config, cancel))
            .transpose()
    }

    /// Make the repository of a customer's own; false where there is one already. Whether there was one before, only the catalogue knows.
    pub fn create_manual_of(&self, customer: CustomerId) -> Result<bool> {
        let config = self.config.repositories.manual.of_customer(customer);
        init_repository(&config, &self.stop)
    }

    /// That the directory is there that holds customers' repositories, and is not empty if it `holds_some`: where a disk is not mounted, one would be
    /// made on another disk.
    pub(crate) fn require_place_of_customers(
        &self,
        holds_some: bool,
        cancel: &Cancel,
    ) -> Result<()> {
        let config = &self.config.repositories.manual;
        let Some(directory) = config.directory_of_customers()? else {
            return Ok(());
        };
        let options = storage_options(config, &self.stop, cancel)?;
        match storage::has_directory(&directory, !holds_some, &options)? {
            true => Ok(()),
            false => Err(Error::new(
                ErrorKind::Failed,
                format!(
                    "the directory of the customers' repositories, {directory}, is not there{}: mount it, or run `init` if it shall be a new one",
                    if holds_some { " or is empty" } else { "" }
                ),
            )),
        }
    }

    /// That a customer's repository was there, and by this error is not any more.
    pub(crate) fn lost(&self, customer: CustomerId, error: Error) -> Error {
        let config = self.config.repositories.manual.of_customer(customer);
        error.context(format!(
            "the repository of customer {customer} at {} was there before and is gone: bring it back; if it is gone for good, `init {customer}` makes a new one",
            config.location
        ))
    }

    fn open_shared(&self, kept: &Kept, cancel: &Cancel) -> Result<Arc<Repository>> {
        self.open_once(kept, &self.config.repositories.manual, cancel)
    }

    fn open_own(
        &self,
        kept: &Kept,
        customer: CustomerId,
        cancel: &Cancel,
    ) -> Result<Arc<Repository>> {
        let mut kept = cancel.lock(kept)?;
        // An object store has no directory whose lack would be noticed: a backup into what is gone would seem to be one.
        let is_there = match kept.as_ref() {
            Some(repository) => repository.with_stop(cancel).is_there()?,
            None => true,
        };
        if !is_there {
            *kept = None;
        }
        let config = self.config.repositories.manual.of_customer(customer);
        let open = |storage: Arc<dyn Storage>, password: &SecretString| {
            // Whether there has to be one is not known here: no advice to make another in the place of one that is lost.
            Repository::open_if_there(storage, password, cancel)?.ok_or_else(|| {
                Error::new(
                    ErrorKind::NotFound,
                    format!(
                        "there is none at {}; if there was one, bring it back",
                        config.location
                    ),
                )
            })
        };
        self.open_once_by(&mut kept, &config, cancel, open)
            .map_err(|error| {
                error.context(format!(
                    "the repository of customer {customer} cannot be opened"
                ))
            })
    }

    fn open_once(
        &self,
        kept: &Kept,
        config: &RepositoryConfig,
        cancel: &Cancel,
    ) -> Result<Arc<Repository>> {
        let mut kept = cancel.lock(kept)?;
        self.open_once_by(&mut kept, config, cancel, |storage, password| {
            let opened = Repository::open_with_stop(storage, password, cancel)?;
            // A large index takes longer to bring here than the backup of a small shop; a customer's own is small.
            let copies = match location(config)?.is_local() {
                true => None,
                false => directory_of_copies(&self.config),
            };
            Ok(match copies {
                Some(directory) => opened.with_copies(&directory),
                None => opened,
            })
        })
    }

    fn open_once_by(
        &self,
        kept: &mut Option<Repository>,
        config: &RepositoryConfig,
        cancel: &Cancel,
        open: impl FnOnce(Arc<dyn Storage>, &SecretString) -> Result<Repository>,
    ) -> Result<Arc<Repository>> {
        if let Some(repository) = kept.as_ref() {
            return Ok(repository.with_stop(cancel));
        }
        let storage = open_storage_for(config, &self.stop, cancel)?;
        let password = config.read_password()?;
        let repository = open(storage, &password)?;
        let opened = repository.with_stop(cancel);
        *kept = Some(repository);
        Ok(opened)
    }
}

/// A customer's place among those that are kept; the one that was not used for the longest time makes room for it.
fn keep_open(opened: &Mutex<Vec<(CustomerId, Arc<Kept>)>>, customer: CustomerId) -> Arc<Kept> {
    let mut opened = opened.lock().unwrap_or_else(PoisonError::into_inner);
    let at = opened.iter().position(|(owner, _)| *owner == customer);
    let kept = at.map_or_else(Arc::default, |at| opened.remove(at).1);
    opened.push((customer, Arc::clone(&kept)));
    let excess = opened.len().saturating_sub(OPEN_MAX);
    opened.drain(..excess);
    kept
}

/// That a location is not one until it is said whose.
pub(super) fn no_customer(config: &RepositoryConfig) -> Error {
    Error::new(
        ErrorKind::Configuration,
        format!(
            "{} is a repository for each customer: say of whom",
            config.location
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_that_were_used_last_are_kept_open() {
        let opened = Mutex::default();
        let of = |number: usize| {
            let number = u32::try_from(number).unwrap();
            keep_open(&opened, CustomerId::new(number).unwrap())
        };
        let first = of(1);
        for number in 2..=OPEN_MAX {
            of(number);
        }
        assert!(Arc::ptr_eq(&first, &of(1)));
        let second = of(2);
        let third = Arc::downgrade(&of(3));
        for number in 1..OPEN_MAX {
            of(100 + number);
        }
        // The third is the last one that there is still room for.
        assert!(third.upgrade().is_some());
        assert!(!Arc::ptr_eq(&first, &of(1)));
        assert!(third.upgrade().is_none());
        // Whoever uses one keeps it.
        assert!(!Arc::ptr_eq(&second, &of(2)));
        assert_eq!(opened.lock().unwrap().len(), OPEN_MAX);
    }
}
