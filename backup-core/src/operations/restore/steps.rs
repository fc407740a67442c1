//! The steps of a restore and what undoes each.
//!
//! Everything here acts on what the journal says, so that it is the same whether this process wrote it or one that died. Every step and every undoing
//! can be repeated. Never: an act whose step is not written down; a step undone after the commit unless the journal says that the restore goes back.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use super::journal::{Ending, Journal, Reason, Step};
use super::{Found, RestoreReport};
use crate::catalog::BackupEntry;
use crate::customer::Customer;
use crate::database::{self, ImportAccount, Replaced, Server, Shadow};
use crate::error::{Error, ErrorKind, Result};
use crate::fault;
use crate::operations::Engine;
use crate::progress::{Cancel, Control, Phase};
use crate::site::{Health, Site, Staging};
use jiff::Timestamp;

/// A restore on its way, forwards or back.
pub(super) struct Restore<'a> {
    pub(super) engine: &'a Engine,
    pub(super) customer: &'a Customer,
    pub(super) site: Site,
    pub(super) control: &'a Control,
    pub(super) journal: Journal,
    /// The database server, once it was needed.
    server: RefCell<Option<Server>>,
    /// The backup, until all of it is staged.
    pub(super) found: Option<Found>,
    pub(super) staging: Option<Staging>,
    /// What this process staged.
    pub(super) shadow: Option<Shadow>,
    kept: Option<BackupEntry>,
    /// Whether no program can be left that was to stop the site: this process saw the last one end.
    has_stopped: bool,
}

impl<'a> Restore<'a> {
    pub(super) fn new(
        engine: &'a Engine,
        customer: &'a Customer,
        site: Site,
        control: &'a Control,
        journal: Journal,
    ) -> Self {
        Self {
            engine,
            customer,
            site,
            control,
            journal,
            server: RefCell::default(),
            found: None,
            staging: None,
            shadow: None,
            kept: None,
            has_stopped: false,
        }
    }

    /// From wherever the journal says that it is to its end: the site as the backup has it, or, as an error, as it was.
    pub(super) fn carry_out(&mut self) -> Result<RestoreReport> {
        let gone = contained(|| self.go_forward());
        match gone {
            Ok(()) => {}
            // It is up, and must only be opened.
            Err(error) if self.journal.record().has_begun(Step::Open) => {
                return Err(self.stuck(error));
            }
            Err(error) => return Err(self.go_back(error)),
        }
        if let Err(problem) = contained(|| self.put_away()) {
            self.warn(&format!(
                "the restore is done, but what it replaced is not put away yet: {}",
                problem.chain()
            ));
        }
        Ok(self.report())
    }

    /// Undo what the journal says was begun; the error is why.
    pub(super) fn go_back(&mut self, error: Error) -> Error {
        let error = match error.kind() {
            // Should it get stuck on its way, nobody who tells how it ended knows why it was stopped.
            ErrorKind::Cancelled if self.control.cancel.is_timed_out() => {
                Error::caused(ErrorKind::Timeout, "it took longer than it may", error)
            }
            _ => error,
        };
        tracing::error!("the restore failed and is undone: {}", error.chain());
        let noted = self.journal.note(|record| {
            record.undoing = true;
            record.reason.get_or_insert_with(|| Reason::of(&error));
        });
        if let Err(problem) = noted {
            // Without that line whoever finds the journal would go forward.
            if self.journal.record().is_committed() {
                return self.stuck(problem);
            }
            tracing::error!("{}", problem.chain());
        }
        let mut litter = Vec::new();
        match contained(|| self.undo_all(&mut litter)) {
            Err(problem) => self.stuck_after(problem, error),
            Ok(()) => {
                for problem in litter {
                    self.warn(&format!(
                        "the restore is undone, but not all of what it had staged is removed yet: {}",
                        problem.chain()
                    ));
                }
                match error.kind() {
                    // It says of a part what is not true of the whole.
                    ErrorKind::Stuck => Error::caused(
                        ErrorKind::Failed,
                        "the restore failed and was undone",
                        error,
                    ),
                    _ => error,
                }
            }
        }
    }

    /// All steps until the site is open again.
    fn go_forward(&mut self) -> Result<()> {
        if self.journal.record().ending.is_some() {
            return Ok(());
        }
        for step in self.journal.record().ahead() {
            if *step == Step::Keep {
                break;
            }
            match step {
                Step::StageFiles => self.stage()?,
                // With the files.
                Step::StageDatabase => {}
                Step::Exchange => {
                    self.ask_gate()?;
                    self.take(*step)?;
                }
                _ => self.take(*step)?,
            }
        }
        self.journal
            .note(|record| record.ending = Some(Ending::Restored))
    }

    /// The steps that no visitor notices. What fails here is left to [`Engine::recover`].
    fn put_away(&mut self) -> Result<()> {
        if self.journal.record().is_tidy() {
            self.kept = self.find_kept()?;
            return Ok(());
        }
        if self.journal.record().has_begun(Step::Remove) {
            // What is left is no longer all that was replaced.
            self.kept = self.find_kept()?;
        } else {
            self.take(Step::Keep)?;
        }
        self.take(Step::Remove)?;
        self.journal.tidied()
    }

    fn take(&mut self, step: Step) -> Result<()> {
        self.begin(step)?;
        match step {
            Step::Close => self.close(),
            Step::StageFiles | Step::StageDatabase => Err(nothing_to_stage()),
            Step::Stop => self.stop(),
            Step::Exchange => self.exchange(),
            Step::Start => self.start(),
            Step::Open => self.site.maintenance_off(),
            Step::Keep => self.keep(),
            Step::Remove => self.remove_replaced(),
        }?;
        ended(step)
    }

    /// Write down that a step is about to act.
    pub(super) fn begin(&mut self, step: Step) -> Result<()> {
        let name = step.name();
        fault::point(&format!("before {name}"))?;
        self.journal.begin(step)?;
        fault::point(&format!("at {name}"))
    }

    fn undo_all(&mut self, litter: &mut Vec<Error>) -> Result<()> {
        // A site that was put back is no longer touched.
        let is_put_back = self.journal.record().ending.is_some();
        for step in Step::UNDOING {
            if !self.journal.record().has_begun(step) || is_put_back && !step.is_staging() {
                continue;
            }
            let name = step.name();
            fault::point(&format!("before undoing {name}"))?;
            match self.undo(step) {
                Ok(()) => {}
                Err(problem) if step.is_staging() => {
                    litter.push(problem);
                    continue;
                }
                Err(problem) => return Err(problem),
            }
            fault::point(&format!("after undoing {name}"))?;
            self.note_undone(|journal| journal.undone(step));
        }
        self.note_undone(Journal::put_back);
        Ok(())
    }

    /// What is not written down is undone once more by whoever finds the journal, which changes nothing.
    fn note_undone(&mut self, note: impl FnOnce(&mut Journal) -> Result<()>) {
        if let Err(problem) = note(&mut self.journal) {
            tracing::error!("{}", problem.chain());
        }
    }

    fn undo(&mut self, step: Step) -> Result<()> {
        match step {
            Step::Start => self.stop_again(),
            Step::Exchange => self.exchange_back(),
            Step::Stop => self.start_again(),
            Step::Close => self.site.maintenance_off(),
            Step::StageDatabase => self.remove_staged_database(),
            Step::StageFiles => self.remove_staged_files(),
            // Past them there is no way back.
            Step::Open | Step::Keep | Step::Remove => Ok(()),
        }
    }

    pub(super) fn warn(&self, text: &str) {
        self.control.monitor.warning(text);
    }

    /// Whether the database server is one of the site's containers, which can be reached only while they run.
    fn database_is_in_site(&self) -> bool {
        self.engine.config.customer_database.is_in_container()
    }

    pub(super) fn has_database(&self) -> bool {
        self.journal.record().restore_type.has_database()
    }

    pub(super) fn server(&self) -> Result<Server> {
        self.engine
            .known_server(self.customer, &mut self.server.borrow_mut())
    }

    fn live(&self) -> &str {
        self.customer.db_name.as_str()
    }

    fn account(&self) -> ImportAccount {
        import_account(self.customer)
    }

    /// The staging directory that the journal names, if it is there.
    pub(super) fn staging(&mut self) -> Result<Option<&Staging>> {
        if self.staging.is_none()
            && let Some(name) = &self.journal.record().staging
        {
            self.staging = match self.site.reopen_staging(name) {
                Ok(staging) => Some(staging),
                Err(error) if error.kind() == ErrorKind::NotFound => None,
                Err(error) => return Err(error),
            };
        }
        Ok(self.staging.as_ref())
    }

    pub(super) fn require_staging(&mut self) -> Result<&Staging> {
        self.staging()?.ok_or_else(|| {
            Error::new(
                ErrorKind::Damaged,
                "the staging directory of the restore is gone",
            )
        })
    }

    // Forwards.

    fn close(&mut self) -> Result<()> {
        self.site.maintenance_on("a backup is being restored")?;
        fault::point("in close")?;
        // Asked behind the maintenance page, as it will be asked again.
        let health = self.site.health();
        self.journal.note(|record| record.health_before = health)
    }

    fn stop(&mut self) -> Result<()> {
        // While they run, the database in one of them can be exchanged.
        match self.database_is_in_site() {
            true => {
                self.has_stopped = true;
                Ok(())
            }
            false => self.stop_site(&self.control.cancel),
        }
    }

    fn stop_site(&mut self, cancel: &Cancel) -> Result<()> {
        let stopped = self.site.stop(cancel);
        self.has_stopped = true;
        stopped
    }

    /// The program of a process that died may still be stopping the site, and would end after a start. One that is run now ends after it.
    fn start_stopped_site(&mut self) -> Result<()> {
        if !self.has_stopped && self.journal.record().has_begun(Step::Stop) {
            // It may be up and open by now, where that could not be noted.
            self.journal.begin(Step::Close)?;
            self.site.maintenance_on("a restore is being undone")?;
            if let Err(problem) = self.stop_site(&Cancel::new()) {
                // A site that does not stop may start all the same.
                self.warn(&format!(
                    "the site was not stopped once more before it is started: {}",
                    problem.chain()
                ));
            }
        }
        self.site.start()
    }

    /// Before anything of the customer's is changed.
    fn ask_gate(&self) -> Result<()> {
        self.control.cancel.check()?;
        self.control.before_commit(None)
    }

    fn exchange(&mut self) -> Result<()> {
        self.control.monitor.phase(Phase::Swapping);
        let now = Timestamp::now();
        self.journal.note(|record| record.exchanged = Some(now))?;
        if self.database_is_in_site() {
            self.exchange_database()?;
            fault::point("in exchange")?;
            self.stop_site(&Cancel::new())?;
            fault::point("in exchange, stopped")?;
            self.exchange_files()
        } else {
            self.exchange_files()?;
            fault::point("in exchange")?;
            self.exchange_database()
        }
    }

    fn exchange_files(&mut self) -> Result<()> {
        let staged = self.journal.record().staged.clone();
        if staged.is_empty() {
            return Ok(());
        }
        self.require_staging()?;
        if let Some(staging) = &self.staging {
            for (at, one) in staged.iter().enumerate() {
                if at > 0 {
                    fault::point("in exchange of files")?;
                }
                staging.swap(&self.site, one)?;
            }
        }
        Ok(())
    }

    fn exchange_database(&mut self) -> Result<()> {
        if !self.has_database() {
            return Ok(());
        }
        let Some(shadow) = &self.shadow else {
            return Err(nothing_to_stage());
        };
        let replaced = shadow.to_be_replaced();
        self.journal
            .note(|record| record.replaced = Some(replaced))?;
        database::swap(&self.server()?, shadow, self.control).map(drop)
    }

    fn start(&mut self) -> Result<()> {
        self.control.monitor.phase(Phase::Starting);
        let not_up = |error: Error| {
            Error::caused(
                ErrorKind::RolledBack,
                "the site does not come up with what was restored, so it is put back as it was",
                error,
            )
        };
        self.site.start().map_err(not_up)?;
        fault::point("in start")?;
        let before = self.journal.record().health_before;
        // Past the commit: it is carried forward, or made back if the site does not come up, but not cancelled.
        let health = self.site.wait_until_up(before, &Cancel::new());
        if let Health::Broken(status) = health.map_err(not_up)? {
            self.warn(&format!(
                "the site answers with the error {status}, as it did before"
            ));
        }
        Ok(())
    }

    fn keep(&mut self) -> Result<()> {
        self.kept = self.keep_replaced()?;
        Ok(())
    }

    fn remove_replaced(&mut self) -> Result<()> {
        self.control.monitor.phase(Phase::CleaningUp);
        if self.has_database() {
            let server = self.server()?;
            self.wait_for_database(&server)?;
            if let Some(replaced) = self.replaced(&server)? {
                database::drop_replaced(&server, &replaced, &uncancelled())?;
            }
            database::remove_leftovers(&server, self.live(), &uncancelled())?;
        }
        fault::point("in remove")?;
        self.remove_staged_files()
    }

    // Back.

    fn stop_again(&mut self) -> Result<()> {
        self.site.maintenance_on("a restore is being undone")?;
        fault::point("in undoing start")?;
        self.stop_site(&Cancel::new())
    }

    fn start_again(&mut self) -> Result<()> {
        self.start_stopped_site()?;
        fault::point("in undoing stop")?;
        let before = self.journal.record().health_before;
        if let Health::Up(_) = before
            && let Err(problem) = self.site.wait_until_up(before, &Cancel::new())
        {
            self.warn(&format!(
                "the site is as it was, but does not answer as it did: {}",
                problem.chain()
            ));
        }
        Ok(())
    }

    /// Old files over new tables would be neither the one state nor the other: the tables go first, for they can fail.
    fn exchange_back(&mut self) -> Result<()> {
        self.site.maintenance_on("a restore is being undone")?;
        if self.database_is_in_site() && self.has_database() {
            self.start_stopped_site()?;
        }
        fault::point("in undoing exchange, before the tables")?;
        self.exchange_database_back()?;
        fault::point("in undoing exchange")?;
        if self.database_is_in_site() {
            self.stop_site(&Cancel::new())?;
        }
        fault::point("in undoing exchange, before the files")?;
        self.exchange_files_back()
    }

    fn exchange_database_back(&mut self) -> Result<()> {
        if !self.has_database() {
            return Ok(());
        }
        if self.journal.record().replaced.is_none() {
            return Ok(());
        }
        let server = self.server()?;
        self.wait_for_database(&server)?;
        let Some(replaced) = self.replaced(&server)? else {
            return Ok(());
        };
        database::swap_back(&server, &replaced, &self.account(), &uncancelled()).map_err(|error| {
            error.context(format!(
                "the former tables are still in the schema {}",
                replaced.schema()
            ))
        })
    }

    /// The schema that the journal names, if it is there.
    pub(super) fn replaced(&self, server: &Server) -> Result<Option<Replaced>> {
        let Some(ours) = &self.journal.record().replaced else {
            return Ok(None);
        };
        let found = database::find_replaced(server, self.live(), &uncancelled())?;
        Ok(found
            .into_iter()
            .map(|(replaced, _)| replaced)
            .find(|replaced| replaced == ours))
    }

    fn exchange_files_back(&mut self) -> Result<()> {
        let staged = self.journal.record().staged.clone();
        if staged.is_empty() {
            return Ok(());
        }
        self.staging()?;
        let Some(staging) = &self.staging else {
            return Ok(());
        };
        for one in staged.iter().rev() {
            staging.swap_back(&self.site, one).map_err(|error| {
                error.context(format!(
                    "the former files are still in {}",
                    staging.path().display()
                ))
            })?;
        }
        Ok(())
    }

    pub(super) fn remove_staged_database(&mut self) -> Result<()> {
        if !self.has_database() {
            return Ok(());
        }
        let server = self.server()?;
        // Any other is not worth a wait.
        if self.database_is_in_site() {
            self.wait_for_database(&server)?;
        }
        database::remove_leftovers(&server, self.live(), &uncancelled()).map(drop)
    }

    pub(super) fn remove_staged_files(&mut self) -> Result<()> {
        self.staging()?;
        self.staging.take().map_or(Ok(()), Staging::remove)
    }

    /// A server in one of the site's containers needs a while after their start; any other may be away for a moment.
    pub(super) fn wait_for_database(&self, server: &Server) -> Result<()> {
        const PAUSE: Duration = Duration::from_millis(250);
        let deadline = Instant::now() + self.engine.config.site.health_timeout;
        loop {
            match server.ping() {
                Ok(()) => return Ok(()),
                Err(error) if Instant::now() > deadline || self.engine.stop.is_cancelled() => {
                    return Err(error);
                }
                Err(_) => std::thread::sleep(PAUSE),
            }
        }
    }

    // Ends.

    fn report(&self) -> RestoreReport {
        let record = self.journal.record();
        RestoreReport {
            snapshot_id: record.snapshot,
            restore_type: record.restore_type,
            files: record.files,
            bytes: record.bytes,
            tables: record.tables,
            kept: self.kept.clone(),
            warnings: Vec::new(),
        }
    }

    pub(super) fn remove_journal_if_tidy(self) {
        if self.journal.record().is_tidy()
            && let Err(problem) = self.journal.remove()
        {
            tracing::warn!("{}", problem.chain());
        }
    }

    fn stuck(&self, problem: Error) -> Error {
        let way = match self.journal.record().undoing {
            true => "cannot be undone",
            false => "cannot be finished",
        };
        Error::caused(
            ErrorKind::Stuck,
            format!(
                "the restore of customer {} {way} at the step `{}`: an operator has to mend the cause, then run `recover`, as a worker does every minute; \
                 until then the site's maintenance page stays on, and nothing is removed (journal {})",
                self.customer.id,
                self.journal.record().at(),
                self.journal.path().display()
            ),
            problem,
        )
    }

    fn stuck_after(&self, problem: Error, error: Error) -> Error {
        self.stuck(problem.context(format!("after it had failed ({})", error.chain())))
    }
}

/// What breaks off inside the program is a failure like any other.
pub(super) fn contained<T>(act: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(act)).unwrap_or_else(|_| Err(broke_off()))
}

pub(super) fn broke_off() -> Error {
    Error::new(
        ErrorKind::Failed,
        "the restore broke off inside the program",
    )
}

pub(super) fn ended(step: Step) -> Result<()> {
    fault::point(&format!("after {}", step.name()))
}

pub(super) fn import_account(customer: &Customer) -> ImportAccount {
    match (&customer.db_user, &customer.db_password) {
        (Some(user), Some(password)) => ImportAccount::Customer {
            user: user.clone(),
            password: password.clone(),
        },
        _ => ImportAccount::Temporary,
    }
}

/// What an operation has to come to an end that is no longer the caller's to stop.
fn uncancelled() -> Control {
    Control::default()
}

pub(super) fn nothing_to_stage() -> Error {
    Error::new(
        ErrorKind::Failed,
        "the restore lacks what it should have staged",
    )
}
