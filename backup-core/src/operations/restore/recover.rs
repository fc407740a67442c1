//! Restores that were interrupted: found by their journals, and finished or undone.
//!
//! Needs the journal, the site, and where tables were exchanged its database server; not the platform's database. Whoever still works on a customer holds
//! him, and is left alone. Never: a journal removed while anything of its restore is left, or while somebody has not been told how it ended.

use std::path::PathBuf;

use jiff::Timestamp;
use serde::Serialize;

use super::journal::{self, Ending, Journal, Step};
use super::steps::{Restore, import_account};
use super::{Engine, Noting, RestoreReport};
use crate::customer::{Customer, CustomerId};
use crate::database::{self, ReplacedState, Server};
use crate::error::{Error, ErrorKind, Result};
use crate::progress::Control;
use crate::site::{Claim, Site};

/// A restore that has a journal: it runs, was interrupted, is stuck, or has something left to tidy up.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Interrupted {
    /// Whose site it is.
    pub customer: CustomerId,
    /// The number of its job, where it is one.
    pub job: Option<u64>,
    /// When it began.
    pub began: Timestamp,
    /// The step that it is at, in a word or two.
    pub step: &'static str,
    /// Whether the site is up and whole, so that there is at most something to put away.
    pub is_site_open: bool,
    /// Whether it has ended and nothing of it is left but the journal.
    pub is_tidy: bool,
    /// Its journal.
    pub journal: PathBuf,
}

/// How a restore ended that was recovered.
#[derive(Debug)]
pub enum Recovered {
    /// The site is as the backup has it.
    Restored(Box<RestoreReport>),
    /// The site is as it was; why.
    Undone(Error),
    /// The site came to its end earlier, but what there is to tell of it cannot be found out now; why.
    Untold(Error),
    /// Somebody else was faster.
    Gone,
}

impl Engine {
    /// All restores of this server that have a journal, oldest first; journals that cannot be understood are errors, each naming its file.
    pub fn interrupted(&self) -> Result<Vec<Result<Interrupted>>> {
        let journals = journal::all(&self.config)?;
        let is_others = |journal: &Result<Journal>| matches!(journal, Ok(one) if !one.record().is_of(&self.config));
        Ok(journals
            .into_iter()
            .filter(|(_, journal)| !is_others(journal))
            .map(|(_, journal)| Interrupted::of(&journal?))
            .collect())
    }

    /// Finish an interrupted restore, or undo it. The journal of one that was a job's stays, to tell whoever asks next the same again, until that job's
    /// row tells it.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] while somebody is at work on the customer. [`ErrorKind::Stuck`] when it can neither be finished nor undone now: the site stays
    /// behind its maintenance page, and this can be tried again.
    pub fn recover(&self, interrupted: &Interrupted, control: &Control) -> Result<Recovered> {
        let Some(journal) = Journal::read(&interrupted.journal)? else {
            return Ok(Recovered::Gone);
        };
        let claim = self.claim_for_restore(&journal.record().customer()?)?;
        self.recover_under(&claim, interrupted, control)
    }

    /// [`Self::recover`] for a caller who holds the customer.
    pub(crate) fn recover_under(
        &self,
        _claim: &Claim,
        interrupted: &Interrupted,
        control: &Control,
    ) -> Result<Recovered> {
        // As it is now that nobody else writes it.
        let Some(journal) = Journal::read(&interrupted.journal)? else {
            return Ok(Recovered::Gone);
        };
        let customer = journal.record().customer()?;
        journal::remove_drafts(&self.config, customer.id)?;
        let site = Site::open(&self.config, &customer)?;
        let (control, noting) = Noting::under(control);
        let mut restore = Restore::new(self, &customer, site, &control, journal);
        let recovered = recover(&mut restore, &noting);
        if interrupted.job.is_none() {
            restore.remove_journal_if_tidy();
        }
        recovered
    }

    /// The journal of a customer's job, if there is one. [`ErrorKind::Damaged`] where one of his cannot be understood, which may be it.
    pub(crate) fn journal_of(&self, customer: CustomerId, job: u64) -> Result<Option<Interrupted>> {
        let found = self.interrupted_of(customer)?;
        Ok(found.into_iter().find(|one| one.job == Some(job)))
    }

    /// Whether anything may still bring this job's restore to its true end: a journal of it, also one of sites that the configuration names no longer. The
    /// error says that this cannot be known.
    pub(crate) fn has_journal_of(&self, customer: CustomerId, job: u64) -> Result<bool> {
        for (path, journal) in journal::all(&self.config)? {
            match journal {
                Ok(journal) if journal.record().job == Some(job) => return Ok(true),
                Ok(_) => {}
                Err(error) if journal::is_of(&path, customer) => return Err(error),
                Err(_) => {}
            }
        }
        Ok(false)
    }

    /// Whether the directory of journals is there. Where a restore was once it is; where it is not, another place may be in its place: not mounted
    /// yet, or configured otherwise.
    pub(crate) fn has_journals(&self) -> bool {
        journal::directory(&self.config).is_dir()
    }

    /// The job's row tells how it ended: its journal goes. False where there is something left to tidy up, and it stays.
    pub(crate) fn close_journal(&self, interrupted: &Interrupted) -> Result<bool> {
        match Journal::read(&interrupted.journal)? {
            Some(journal) if !journal.record().is_tidy() => Ok(false),
            Some(journal) => journal.remove().map(|()| true),
            None => Ok(true),
        }
    }

    /// Before a new restore: what earlier ones of the customer left is brought to its end, or in the way.
    pub(super) fn end_earlier(
        &self,
        claim: &Claim,
        customer: &Customer,
        control: &Control,
    ) -> Result<()> {
        journal::remove_drafts(&self.config, customer.id)?;
        // What is done of them is no progress of this one.
        let quiet = Control {
            cancel: control.cancel.clone(),
            ..Control::default()
        };
        for interrupted in self.interrupted_of(customer.id)? {
            let recovered = self.recover_under(claim, &interrupted, &quiet);
            let is_tidy = Journal::read(&interrupted.journal)?
                .is_none_or(|journal| journal.record().is_tidy());
            match recovered {
                Err(error) => return Err(error.context("an earlier restore has to end first")),
                Ok(_) if !is_tidy => {
                    return Err(Error::new(
                        ErrorKind::Busy,
                        format!(
                            "what an earlier restore of customer {} replaced has to be put away first, which does not work now: run `recover`, and see its warnings",
                            customer.id
                        ),
                    ));
                }
                Ok(_) => {}
            }
        }
        Ok(())
    }

    /// A backup of a site that a restore left half-way would be no backup.
    pub(in crate::operations) fn require_no_interrupted_restore(
        &self,
        customer: CustomerId,
    ) -> Result<()> {
        let found = self.interrupted_of(customer)?;
        match found.into_iter().find(|one| !one.is_site_open) {
            None => Ok(()),
            Some(one) => Err(Error::new(
                ErrorKind::Busy,
                format!(
                    "a restore of customer {customer} was interrupted at the step `{}` and has to end first: run `recover`",
                    one.step
                ),
            )),
        }
    }

    /// Restores whose journals are gone may have left exchanges of tables half-way: each has a record of its own, by which it is undone, or completed where the tables
    /// are exchanged. What is to be said of those whose replaced state is still there. For whoever holds the customer and knows that none of them has a
    /// journal.
    pub(super) fn end_exchanges(
        &self,
        server: &Server,
        customer: &Customer,
        control: &Control,
    ) -> Result<Vec<String>> {
        let live = customer.db_name.as_str();
        let mut left = Vec::new();
        for (replaced, state) in database::find_replaced(server, live, control)? {
            let schema = replaced.schema();
            if state != ReplacedState::Completed {
                database::resume(server, &replaced, &import_account(customer), control).map_err(|error| {
                    error.context(format!(
                        "an earlier restore of {live} was interrupted while it exchanged the tables, its journal is gone, and it cannot be brought to its end by \
                         its record in the schema {schema}: mend the cause, or drop that schema once nothing in it is wanted"
                    ))
                })?;
            }
            if matches!(state, ReplacedState::Committed | ReplacedState::Completed) {
                left.push(format!(
                    "an earlier restore of {live} was interrupted, and its journal is gone; what it replaced may still be in the schema {schema}: look into it, then \
                     drop it"
                ));
            }
        }
        Ok(left)
    }

    /// As [`Self::end_exchanges`], unless a journal may be of one of them: then they are ended with that.
    pub(crate) fn end_exchanges_of_lost(&self, customer: &Customer) -> Result<Vec<String>> {
        match self.interrupted_of(customer.id)?.is_empty() {
            true => self.end_exchanges(&self.server(customer)?, customer, &Control::default()),
            false => Ok(Vec::new()),
        }
    }

    /// Of a journal that cannot be understood, its name tells whose it is.
    fn interrupted_of(&self, customer: CustomerId) -> Result<Vec<Interrupted>> {
        let mut found = Vec::new();
        for (path, journal) in journal::all(&self.config)? {
            match journal {
                Ok(journal) if journal.record().is_of(&self.config) => {
                    found.push(Interrupted::of(&journal)?);
                }
                Ok(_) => {}
                Err(error) if journal::is_of(&path, customer) => return Err(error),
                Err(_) => {}
            }
        }
        found.retain(|one| one.customer == customer);
        Ok(found)
    }
}

impl Interrupted {
    fn of(journal: &Journal) -> Result<Self> {
        let record = journal.record();
        Ok(Self {
            customer: record.customer_id()?,
            job: record.job,
            began: record.began,
            step: record.at(),
            is_site_open: record.is_site_open(),
            is_tidy: record.is_tidy(),
            journal: journal.path().to_owned(),
        })
    }
}

/// What fills the disk of the journal may be what it has staged: that goes first, as long as none of it is the site's.
fn require_writable(restore: &mut Restore<'_>) -> Result<()> {
    let Err(problem) = restore.journal.probe() else {
        return Ok(());
    };
    let record = restore.journal.record();
    if record.has_begun(Step::Exchange) || record.has_begun(Step::Start) {
        return Err(problem);
    }
    for removed in [
        restore.remove_staged_files(),
        restore.remove_staged_database(),
    ] {
        if let Err(problem) = removed {
            tracing::error!("{}", problem.chain());
        }
    }
    restore.journal.probe()
}

fn recover(restore: &mut Restore<'_>, noting: &Noting) -> Result<Recovered> {
    let record = restore.journal.record();
    let interrupted = format!(
        "the restore of customer {} was interrupted at the step `{}`",
        restore.customer.id,
        record.at()
    );
    let undone = format!("{interrupted} and is undone");
    let reason = match &record.reason {
        Some(reason) => reason.error().context(undone),
        None => Error::new(ErrorKind::Interrupted, undone),
    };
    // What cannot be written down would be done once more by each who finds it, and a site that is up again be closed each time.
    let is_to_be_touched = record.ending.is_none() && !record.is_site_open();
    if is_to_be_touched && let Err(problem) = require_writable(restore) {
        return Err(Error::caused(
            ErrorKind::Stuck,
            format!(
                "{interrupted}, and its journal cannot be written: the site is left as it is; make room for {}, or make it writable, \
                 then run `recover`, as a worker does every minute",
                restore.journal.path().display()
            ),
            problem,
        ));
    }
    let record = restore.journal.record();
    let done = match record.ending {
        Some(Ending::Restored) if record.is_tidy() => {
            // Whoever is told must be told of it, too.
            if let Err(error) = restore.find_kept() {
                let message = "the backup of what was replaced cannot be looked for now";
                return Ok(Recovered::Untold(error.context(message)));
            }
            restore.carry_out()
        }
        Some(Ending::Restored) => restore.carry_out(),
        None if record.is_committed() => restore.carry_out(),
        Some(Ending::Undone) | None => Err(restore.go_back(reason)),
    };
    let warnings = noting.warnings();
    for warning in &warnings {
        tracing::warn!(customer = %restore.customer.id, "{warning}");
    }
    match done {
        Ok(mut report) => {
            report.warnings = warnings;
            Ok(Recovered::Restored(Box::new(report)))
        }
        Err(error) if error.kind() == ErrorKind::Stuck => Err(error),
        Err(error) => Ok(Recovered::Undone(error)),
    }
}
