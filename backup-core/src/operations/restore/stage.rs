//! Staging: the files beside the site and the dump beside its database, both at once.
//!
//! The files mostly wait for the network and the disk, the import for the database server. Nothing that visitors see is touched. Never: one of the two
//! going on for long once the other has failed; the failure of the one told as the stop of the other.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use rustix::fs::{Mode, OFlags};

use super::Found;
use super::journal::Step;
use super::steps::{Restore, broke_off, contained, ended, import_account, nothing_to_stage};
use crate::customer::Customer;
use crate::database::{self, Inventory, Server, Shadow};
use crate::error::{Error, ErrorKind, Result};
use crate::fault;
use crate::operations::Engine;
use crate::progress::{Control, Monitor, Phase};

impl Restore<'_> {
    /// Both steps that stage.
    pub(super) fn stage(&mut self) -> Result<()> {
        for step in Step::STAGING {
            self.begin(step)?;
        }
        // Its lock on the repository goes with it.
        let Some(mut found) = self.found.take() else {
            return Err(nothing_to_stage());
        };
        let stop = self.control.cancel.child();
        found.repository = found.repository.with_stop(&stop);
        let progress = Arc::new(Progress::new(Arc::clone(&self.control.monitor)));
        let importing = match self.has_database() {
            false => None,
            true => Some(Importing {
                engine: self.engine,
                customer: self.customer,
                found: &found,
                server: self.server()?,
                control: Control {
                    monitor: Arc::clone(&progress) as _,
                    cancel: stop.clone(),
                    ..self.control.clone()
                },
            }),
        };
        let files_control = Control {
            cancel: stop.clone(),
            ..self.control.clone()
        };
        let (files, database) = thread::scope(|scope| {
            let database = importing.as_ref().map(|importing| {
                scope.spawn(|| contained(|| importing.run()).inspect_err(|_| stop.cancel()))
            });
            let files = contained(|| self.stage_files(&found, &files_control));
            match &files {
                Ok(()) => progress.show_database(database.is_some()),
                Err(_) => stop.cancel(),
            }
            let database =
                database.map(|running| running.join().unwrap_or_else(|_| Err(broke_off())));
            (files, database.transpose())
        });
        let imported = match (files, database) {
            (Ok(()), imported) => imported?,
            (Err(files), Err(error)) if error.kind() != ErrorKind::Cancelled => {
                if files.kind() != ErrorKind::Cancelled {
                    tracing::error!("the files cannot be staged either: {}", files.chain());
                }
                return Err(error);
            }
            (Err(error), _) => return Err(error),
        };
        if let Some((shadow, inventory)) = imported {
            self.shadow = Some(shadow);
            self.journal
                .note(|record| record.tables = inventory.tables + inventory.views)?;
        }
        ended(Step::StageDatabase)
    }

    fn stage_files(&mut self, found: &Found, control: &Control) -> Result<()> {
        if !found.plans.is_empty() {
            let name = self.site.new_staging_name();
            self.journal
                .note(|record| record.staging = Some(name.clone()))?;
            self.staging = Some(self.site.stage(&name)?);
            fault::point("in stage files")?;
            self.fetch_files(found, control)?;
        }
        ended(Step::StageFiles)
    }

    fn fetch_files(&mut self, found: &Found, control: &Control) -> Result<()> {
        let monitor = &control.monitor;
        monitor.phase(Phase::RestoringFiles);
        monitor.bytes_total(found.plans.iter().map(|(_, plan)| plan.bytes()).sum());
        for (site_dir, plan) in &found.plans {
            let target = open_private(&self.require_staging()?.place(site_dir)?)?;
            let live = self.site.open_site_dir(site_dir)?;
            let live = live.as_ref().map(OwnedFd::as_fd);
            found
                .repository
                .restore(plan, target.as_fd(), live, control)?;
            let Some(staging) = &self.staging else {
                return Err(nothing_to_stage());
            };
            let staged = staging.staged(&self.site, site_dir)?;
            self.journal.note(|record| record.staged.push(staged))?;
        }
        Ok(())
    }
}

/// The import of the dump.
struct Importing<'a> {
    engine: &'a Engine,
    customer: &'a Customer,
    found: &'a Found,
    server: Server,
    control: Control,
}

impl Importing<'_> {
    fn run(&self) -> Result<(Shadow, Inventory)> {
        let (found, server, control) = (self.found, &self.server, &self.control);
        let live = self.customer.db_name.as_str();
        self.tidy_up_after_others()?;
        let dump = found
            .repository
            .stream_file(&found.snapshot, &found.contents.dump, control)?;
        control.monitor.bytes_total(dump.bytes);
        let account = import_account(self.customer);
        let mut shadow = database::prepare_shadow(server, live, &account, control)?;
        fault::point("in stage database")?;
        let limit = self.engine.config.import_timeout();
        database::import(server, &mut shadow, Box::new(dump), limit, control)?;
        let inventory = database::verify(server, &shadow, control)?;
        Ok((shadow, inventory))
    }

    /// What restores whose journals are lost left in the database: nobody else is at it, for we hold the customer.
    fn tidy_up_after_others(&self) -> Result<()> {
        let (server, control) = (&self.server, &self.control);
        for left in self.engine.end_exchanges(server, self.customer, control)? {
            control.monitor.warning(&left);
        }
        database::remove_leftovers(server, self.customer.db_name.as_str(), control)?;
        Ok(())
    }
}

/// What is told of the database while the files are under way is told when they are done: there is one phase at a time.
struct Progress {
    monitor: Arc<dyn Monitor>,
    database: Mutex<OfDatabase>,
}

#[derive(Default)]
struct OfDatabase {
    is_shown: bool,
    total: u64,
    done: u64,
}

impl Progress {
    fn new(monitor: Arc<dyn Monitor>) -> Self {
        Self {
            monitor,
            database: Mutex::default(),
        }
    }

    fn show_database(&self, is_there: bool) {
        if !is_there {
            return;
        }
        let mut database = self.database();
        database.is_shown = true;
        self.monitor.phase(Phase::ImportingDatabase);
        self.monitor.bytes_total(database.total);
        self.monitor.bytes_done(database.done);
    }

    fn database(&self) -> MutexGuard<'_, OfDatabase> {
        self.database.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Monitor for Progress {
    fn bytes_total(&self, bytes: u64) {
        let mut database = self.database();
        database.total = bytes;
        if database.is_shown {
            self.monitor.bytes_total(bytes);
        }
    }

    fn bytes_done(&self, bytes: u64) {
        let mut database = self.database();
        database.done += bytes;
        if database.is_shown {
            self.monitor.bytes_done(bytes);
        }
    }

    fn warning(&self, text: &str) {
        self.monitor.warning(text);
    }
}

/// A directory in our own staging directory, where nobody else can put a link.
fn open_private(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
        .map_err(|error| Error::io(format!("cannot open {}", path.display()), error.into()))
}
