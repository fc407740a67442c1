//! Restore one customer.
//!
//! The commit point is the exchange ([`Restore::swap_files`], [`Restore::swap_database`]): until then the site has not changed, and everything
//! staged is removed on the way out. If the site does not come up afterwards, the exchange is made back. Never: what was replaced destroyed before the
//! site is up; a way out that leaves maintenance on or the site stopped.

use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use serde::Serialize;

use super::{Engine, Noting};
use crate::catalog::{Contents, Place, Source, contents, is_daily, no_such_backup};
use crate::customer::Customer;
use crate::database::{self, ImportAccount, Replaced, ReplacedState, Server, Shadow};
use crate::error::{Error, ErrorKind, Result};
use crate::progress::{Cancel, Control, Phase};
use crate::repository::{
    BackupType, Lock, Origin, Owner, Repository, RestorePlan, RestoreRules, Snapshot, SnapshotId,
};
use crate::site::{self, Claim, Health, Site, Staged, Staging};

/// What to restore.
#[derive(Debug, Clone, Copy)]
pub struct RestoreRequest {
    /// The backup's full id.
    pub snapshot: SnapshotId,
    /// Where it is looked for.
    pub source: Source,
    /// What of it is restored; None: all that it holds of the customer.
    pub restore_type: Option<BackupType>,
    /// Whether the site stays up until the exchange.
    pub online: bool,
}

/// What was restored.
#[derive(Debug, Clone, Serialize)]
pub struct RestoreReport {
    /// From which snapshot.
    pub snapshot_id: SnapshotId,
    /// What of it.
    pub restore_type: BackupType,
    /// Regular files.
    pub files: u64,
    /// Plain bytes of files and dump.
    pub bytes: u64,
    /// Tables and views.
    pub tables: u64,
    /// What somebody should know although the restore is good.
    pub warnings: Vec<String>,
}

impl Engine {
    /// Put a customer's files, database or both back as a backup has them.
    ///
    /// An error means that the site is as it was, unless it says otherwise. Cancelling works up to the exchange.
    pub fn restore(
        &self,
        customer: &Customer,
        request: &RestoreRequest,
        control: &Control,
    ) -> Result<RestoreReport> {
        let claim = self.claim_for_restore(customer)?;
        self.restore_under(&claim, customer, request, control)
    }

    /// Of one customer one restore at a time, and no backup beside it.
    pub(crate) fn claim_for_restore(&self, customer: &Customer) -> Result<Claim> {
        Site::open(&self.config, customer)?.claim(true)
    }

    /// [`Self::restore`] for a caller who holds the customer, and may do so for longer.
    pub(crate) fn restore_under(
        &self,
        _claim: &Claim,
        customer: &Customer,
        request: &RestoreRequest,
        control: &Control,
    ) -> Result<RestoreReport> {
        let (control, noting) = Noting::under(control);
        let control = &control;
        control.monitor.phase(Phase::Preparing);
        let site = Site::open(&self.config, customer)?;
        let found = self.find(customer, &site, request, control)?;
        let mut restore = Restore {
            engine: self,
            customer,
            site,
            request,
            control,
            found,
            health_before: Health::Unknown,
            maintenance: false,
            staging: None,
            staged: Vec::new(),
            database: None,
            tables: 0,
            stopped: false,
            may_exchange: false,
            files_swapped: false,
            replaced: None,
            is_stopped_for_sure: true,
        };
        restore.check_room()?;
        let proceeded = catch_unwind(AssertUnwindSafe(|| restore.proceed())).unwrap_or_else(|_| {
            Err(Error::new(
                ErrorKind::Failed,
                "the restore broke off inside the program",
            ))
        });
        match proceeded {
            Ok(()) => {
                restore.remove_replaced();
                Ok(restore.report(&noting))
            }
            Err(error) => Err(restore.undo(error)),
        }
    }

    /// The first step: the backup is this customer's and holds what was asked for. Nothing is changed.
    fn find(
        &self,
        customer: &Customer,
        site: &Site,
        request: &RestoreRequest,
        control: &Control,
    ) -> Result<Found> {
        let not_found = || no_such_backup(customer.id, &request.snapshot.to_string());
        let repository = match request.source {
            Source::Manual | Source::PreRestore => self.manual_for(&control.cancel)?,
            Source::Daily => self.daily_for(&control.cancel)?.ok_or_else(|| {
                Error::new(
                    ErrorKind::Configuration,
                    "no daily backups are configured: set repositories.daily",
                )
            })?,
        };
        let lock = repository.lock_shared()?;
        let snapshot = repository
            .snapshot(&request.snapshot)?
            .ok_or_else(not_found)?;
        let config = &self.config.customer_database;
        let (is_his, dump) = match request.source {
            Source::Manual => (
                is_own(&snapshot, customer, Origin::Manual),
                config.dump_path(customer)?,
            ),
            Source::PreRestore => (
                is_own(&snapshot, customer, Origin::PreRestore),
                config.dump_path(customer)?,
            ),
            Source::Daily => (
                is_daily(&snapshot),
                config.daily_dump_path(customer.id, &customer.db_name)?,
            ),
        };
        if !is_his {
            return Err(not_found());
        }
        let directory =
            directory_in(&snapshot, customer).unwrap_or(self.config.customers.dir(customer.id));
        let site_dirs = &self.config.customers.site_dirs;
        let places = vec![Place { directory, dump }];
        let contents = contents(&repository.view()?, &snapshot, site_dirs, places)?
            .pop()
            .ok_or_else(not_found)?;
        let held = match (contents.backup_type(), request.source) {
            (Some(held), _) => held,
            (None, Source::Daily) => return Err(not_found()),
            (None, Source::Manual | Source::PreRestore) => {
                return Err(Error::new(
                    ErrorKind::NotFound,
                    format!(
                        "the backup {} holds neither a dump nor a site directory where the configuration says \
                         (customers.site_dirs, customer_database.dump_path): restore it by hand with restic",
                        snapshot.id
                    ),
                ));
            }
        };
        let restore_type = request.restore_type.unwrap_or(held);
        if !held.includes(restore_type) {
            return Err(Error::new(
                ErrorKind::NotFound,
                format!(
                    "the backup {} holds {held}, not {restore_type}",
                    snapshot.id
                ),
            ));
        }
        let mut plans = Vec::new();
        if restore_type.has_files() {
            let rules = self.rules(site)?;
            for site_dir in &contents.site_dirs {
                let plan = repository.plan_restore(
                    &snapshot,
                    &contents.directory.join(site_dir),
                    &rules,
                    &control.cancel,
                )?;
                plans.push((site_dir.clone(), plan));
            }
        }
        Ok(Found {
            repository,
            lock: Some(lock),
            snapshot,
            contents,
            restore_type,
            plans,
        })
    }
}

impl Engine {
    /// What may be restored into a site: nothing that belongs to others than those it belongs to.
    fn rules(&self, site: &Site) -> Result<RestoreRules> {
        let dirs = self.config.customers.site_dirs.iter().map(PathBuf::as_path);
        let mut present = Vec::new();
        for dir in dirs.chain([Path::new("")]) {
            let owner = site.owner(dir)?;
            present.extend(owner.map(|(user, group)| Owner { user, group }));
        }
        Ok(RestoreRules::new(&self.config.restore, &present))
    }
}

/// Where the customer's directory was when a snapshot of ours was made: it says so itself.
fn directory_in(snapshot: &Snapshot, customer: &Customer) -> Option<PathBuf> {
    let tag = customer.id.tag();
    let is_his = |path: &&PathBuf| path.file_name() == Some(tag.as_ref());
    snapshot.paths.iter().find(is_his).cloned()
}

/// A manual or pre-restore snapshot is a customer's by its one tag.
fn is_own(snapshot: &Snapshot, customer: &Customer, origin: Origin) -> bool {
    snapshot.owner() == Some(customer.id) && snapshot.origin() == Some(origin)
}

/// The backup that is restored.
struct Found {
    repository: Arc<Repository>,
    /// Held while the repository is read.
    lock: Option<Lock>,
    snapshot: Snapshot,
    contents: Contents,
    restore_type: BackupType,
    /// The site directories with what they hold, where files are restored.
    plans: Vec<(PathBuf, RestorePlan)>,
}

/// The customer's database in its shadow schema.
struct StagedDatabase {
    server: Server,
    account: ImportAccount,
    shadow: Shadow,
}

impl StagedDatabase {
    fn discard(&self) -> Result<()> {
        database::discard(&self.server, self.shadow.live(), self.shadow.schema())
    }
}

/// A restore on its way, with everything that would have to be undone.
struct Restore<'a> {
    engine: &'a Engine,
    customer: &'a Customer,
    site: Site,
    request: &'a RestoreRequest,
    control: &'a Control,
    found: Found,
    health_before: Health,
    maintenance: bool,
    staging: Option<Staging>,
    staged: Vec<Staged>,
    database: Option<StagedDatabase>,
    tables: u64,
    stopped: bool,
    /// Whether the gate let us through: it is asked before the first exchange, and once.
    may_exchange: bool,
    /// Set before the first exchange: each can be made back whether or not it was made.
    files_swapped: bool,
    replaced: Option<Replaced>,
    /// Whether nothing of the site can run on what was restored.
    is_stopped_for_sure: bool,
}

impl Restore<'_> {
    fn proceed(&mut self) -> Result<()> {
        self.staging = Some(self.site.stage()?);
        self.remove_leftover_files();
        if !self.request.online {
            self.maintenance_on()?;
        }
        self.stage_files()?;
        self.stage_database()?;
        self.found.lock = None;
        self.maintenance_on()?;
        // Asked behind the maintenance page, as it will be asked again.
        self.health_before = self.site.health();
        if self.database_is_in_site() {
            self.swap_database()?;
        }
        self.stop()?;
        self.swap_files()?;
        if !self.database_is_in_site() {
            self.swap_database()?;
        }
        self.start()?;
        self.maintenance_off()
    }

    /// Whether the database server is one of the site's containers, which can be reached only while they run.
    fn database_is_in_site(&self) -> bool {
        self.engine.config.customer_database.is_in_container()
    }

    fn warn(&self, text: &str) {
        self.control.monitor.warning(text);
    }

    fn check_room(&self) -> Result<()> {
        // Sites share the file system: some of it is left to the others.
        let files: u64 = self
            .found
            .plans
            .iter()
            .map(|(_, plan)| plan.bytes_on_disk())
            .sum();
        let needed = files + files / 20;
        let available = self.site.bytes_available()?;
        if needed > available {
            return Err(Error::new(
                ErrorKind::NoSpace,
                format!(
                    "restoring the files of customer {} takes {needed} bytes beside the present ones, and {available} are free: \
                     make room on the file system of {}",
                    self.customer.id,
                    self.site.path().display()
                ),
            ));
        }
        Ok(())
    }

    /// What an earlier restore staged before it was killed is of no use. What it replaced may be the only copy.
    fn remove_leftover_files(&mut self) {
        let config = &self.engine.config;
        let found = site::leftovers(config).unwrap_or_else(|problem| {
            self.warn(&problem.chain());
            Vec::new()
        });
        let of_customer = |leftover: &site::Leftover| leftover.customer == self.customer.id;
        for leftover in found.iter().filter(|one| of_customer(one) && !one.in_use) {
            if leftover.exchanged {
                self.warn(&format!(
                    "an earlier restore was interrupted: what it replaced is still in {}",
                    leftover.path.display()
                ));
            } else if let Err(problem) = site::remove_leftover(config, leftover) {
                self.warn(&problem.chain());
            }
        }
    }

    fn maintenance_on(&mut self) -> Result<()> {
        if !self.maintenance {
            self.maintenance = true;
            self.site.maintenance_on("a backup is being restored")?;
        }
        Ok(())
    }

    fn stage_files(&mut self) -> Result<()> {
        if self.found.plans.is_empty() {
            return Ok(());
        }
        self.control.monitor.phase(Phase::RestoringFiles);
        self.control
            .monitor
            .bytes_total(self.found.plans.iter().map(|(_, plan)| plan.bytes()).sum());
        let Some(staging) = &self.staging else {
            return Ok(());
        };
        for (site_dir, plan) in &self.found.plans {
            let target = open_private(&staging.place(site_dir)?)?;
            self.found
                .repository
                .restore(plan, target.as_fd(), None, self.control)?;
            self.staged.push(staging.staged(&self.site, site_dir)?);
        }
        Ok(())
    }

    fn stage_database(&mut self) -> Result<()> {
        if !self.found.restore_type.has_database() {
            return Ok(());
        }
        self.control.monitor.phase(Phase::ImportingDatabase);
        let server = self.engine.server(self.customer)?;
        let live = self.customer.db_name.as_str();
        let account = match (&self.customer.db_user, &self.customer.db_password) {
            (Some(user), Some(password)) => ImportAccount::Customer {
                user: user.clone(),
                password: password.clone(),
            },
            _ => ImportAccount::Temporary,
        };
        self.tidy_up_after_others(&server, live, &account)?;
        let Found {
            repository,
            snapshot,
            contents,
            ..
        } = &self.found;
        let dump = repository.stream_file(snapshot, &contents.dump, self.control)?;
        self.control.monitor.bytes_total(dump.bytes);
        let shadow = database::prepare_shadow(&server, live, &account, self.control)?;
        let staged = self.database.insert(StagedDatabase {
            server,
            account,
            shadow,
        });
        let limit = self.engine.config.import_timeout();
        database::import(
            &staged.server,
            &mut staged.shadow,
            Box::new(dump),
            limit,
            self.control,
        )?;
        let inventory = database::verify(&staged.server, &staged.shadow, self.control)?;
        self.tables = inventory.tables + inventory.views;
        Ok(())
    }

    /// What a killed restore of this customer left in the database: nobody else is at it, for we hold the staging directory.
    fn tidy_up_after_others(
        &mut self,
        server: &Server,
        live: &str,
        account: &ImportAccount,
    ) -> Result<()> {
        for (replaced, state) in database::find_replaced(server, live, self.control)? {
            if state == ReplacedState::Pending {
                database::resume(server, &replaced, account, self.control)?;
                continue;
            }
            self.warn(&format!(
                "an earlier restore of {live} was interrupted; what it replaced may still be in the schema {}",
                replaced.schema()
            ));
        }
        database::remove_leftovers(server, live, self.control)?;
        Ok(())
    }

    fn stop(&mut self) -> Result<()> {
        self.stopped = true;
        self.site.stop(&self.control.cancel)
    }

    /// The commit, with [`Self::swap_database`]: up to the first of them nothing of the customer's has changed.
    fn swap_files(&mut self) -> Result<()> {
        self.control.monitor.phase(Phase::Swapping);
        if self.staged.is_empty() {
            return Ok(());
        }
        self.ask_gate()?;
        if let Some(staging) = &self.staging {
            self.files_swapped = true;
            for staged in &self.staged {
                staging.swap(&self.site, staged)?;
            }
        }
        Ok(())
    }

    fn swap_database(&mut self) -> Result<()> {
        self.control.monitor.phase(Phase::Swapping);
        if self.database.is_some() {
            self.ask_gate()?;
        }
        if let Some(StagedDatabase { server, shadow, .. }) = &self.database {
            self.replaced = Some(database::swap(server, shadow, self.control)?);
        }
        Ok(())
    }

    /// Before the first exchange, of files or of tables.
    fn ask_gate(&mut self) -> Result<()> {
        if !self.may_exchange {
            self.control.cancel.check()?;
            self.control.before_commit(None)?;
            self.may_exchange = true;
        }
        Ok(())
    }

    fn start(&mut self) -> Result<()> {
        self.control.monitor.phase(Phase::Starting);
        // Half of it may run when the command fails.
        self.stopped = false;
        self.site.start()?;
        // Past the commit: it is carried forward, or made back if the site does not come up, but not cancelled.
        if let Health::Broken(status) = self
            .site
            .wait_until_up(self.health_before, &Cancel::new())?
        {
            self.warn(&format!(
                "the site answers with the error {status}, as it did before"
            ));
        }
        Ok(())
    }

    fn maintenance_off(&mut self) -> Result<()> {
        if self.maintenance {
            self.site.maintenance_off()?;
            self.maintenance = false;
        }
        Ok(())
    }

    /// The restore is done: what cannot be removed now is in nobody's way.
    fn remove_replaced(&mut self) {
        self.control.monitor.phase(Phase::CleaningUp);
        let mut problems = Vec::new();
        if let Some(staging) = self.staging.take() {
            problems.extend(staging.remove().err());
        }
        if let Some(database) = self.database.take() {
            problems.extend(self.wait_for_database(&database.server).err());
            if let Some(replaced) = self.replaced.take() {
                problems.extend(
                    database::drop_replaced(&database.server, &replaced, &Control::default()).err(),
                );
            }
            problems.extend(database.discard().err());
        }
        for problem in problems {
            self.warn(&format!(
                "the restore is done, but not tidied up: {}",
                problem.chain()
            ));
        }
    }

    fn report(&self, noting: &Noting) -> RestoreReport {
        RestoreReport {
            snapshot_id: self.found.snapshot.id,
            restore_type: self.found.restore_type,
            files: self.found.plans.iter().map(|(_, plan)| plan.files()).sum(),
            bytes: self.found.plans.iter().map(|(_, plan)| plan.bytes()).sum(),
            tables: self.tables,
            warnings: noting.warnings(),
        }
    }

    /// Everything back as it was, in the reverse order; gives the error to report.
    fn undo(mut self, error: Error) -> Error {
        tracing::error!("the restore failed and is undone: {}", error.chain());
        let mut problems = Vec::new();
        self.swap_back(&mut problems);
        if self.stopped {
            match self.site.start() {
                Ok(()) => self.stopped = false,
                Err(problem) => problems.push(problem),
            }
        }
        if self.maintenance {
            if self.stopped {
                // A page that says so is better than a site that is down without a word.
                problems.push(Error::new(
                    ErrorKind::Failed,
                    "the site is still stopped, so its maintenance page was left on: start it, then remove the maintenance file",
                ));
            } else {
                problems.extend(self.site.maintenance_off().err());
            }
        }
        self.remove_staged(&mut problems);
        if problems.is_empty() {
            return error;
        }
        let problems: Vec<String> = problems.iter().map(Error::chain).collect();
        Error::caused(
            ErrorKind::Stuck,
            format!(
                "the restore failed, and undoing it needs an operator ({})",
                problems.join("; ")
            ),
            error,
        )
    }

    fn swap_back(&mut self, problems: &mut Vec<Error>) {
        if !self.files_swapped && self.replaced.is_none() {
            return;
        }
        if self.database_is_in_site() {
            self.swap_database_back(problems);
            self.stop_again(problems);
        } else {
            self.stop_again(problems);
            self.swap_database_back(problems);
        }
        // Old files over new tables would be neither the one state nor the other.
        if self.replaced.is_none() {
            self.swap_files_back(problems);
        }
    }

    /// It may have been started on what was restored, and not have come up.
    fn stop_again(&mut self, problems: &mut Vec<Error>) {
        if !self.stopped {
            self.stopped = true;
            if let Err(problem) = self.site.stop(&Cancel::new()) {
                self.is_stopped_for_sure = false;
                problems.push(problem);
            }
        }
    }

    fn swap_database_back(&mut self, problems: &mut Vec<Error>) {
        let (Some(database), Some(replaced)) = (&self.database, &self.replaced) else {
            return;
        };
        if self.database_is_in_site() && self.stopped {
            problems.extend(self.site.start().err());
            self.stopped = false;
        }
        let swapped_back = self.wait_for_database(&database.server).and_then(|()| {
            database::swap_back(
                &database.server,
                replaced,
                &database.account,
                &Control::default(),
            )
        });
        match swapped_back {
            Ok(()) => self.replaced = None,
            Err(problem) => problems.push(problem.context(format!(
                "the former tables are still in the schema {}",
                replaced.schema()
            ))),
        }
    }

    fn swap_files_back(&mut self, problems: &mut Vec<Error>) {
        let Some(staging) = &self.staging else { return };
        if !self.files_swapped {
            return;
        }
        for staged in self.staged.iter().rev() {
            if let Err(problem) = staging.swap_back(&self.site, staged) {
                problems.push(problem.context(format!(
                    "the former files are still in {}",
                    staging.path().display()
                )));
                return;
            }
        }
        self.files_swapped = false;
    }

    /// A server in one of the site's containers needs a while after their start; any other may be away for a moment.
    fn wait_for_database(&self, server: &Server) -> Result<()> {
        const PAUSE: Duration = Duration::from_millis(250);
        let deadline = Instant::now() + self.engine.config.site.health_timeout;
        loop {
            match server.ping() {
                Ok(()) => return Ok(()),
                Err(error) if Instant::now() > deadline => {
                    return Err(error);
                }
                Err(_) => std::thread::sleep(PAUSE),
            }
        }
    }

    /// Only what is surely not the customer's only copy.
    fn remove_staged(&mut self, problems: &mut Vec<Error>) {
        if !self.files_swapped
            && self.is_stopped_for_sure
            && let Some(staging) = self.staging.take()
        {
            problems.extend(staging.remove().err());
        }
        if self.replaced.is_none()
            && let Some(database) = self.database.take()
        {
            problems.extend(database.discard().err());
        }
    }
}

/// A directory in our own staging directory, where nobody else can put a link.
fn open_private(path: &std::path::Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
        .map_err(|error| Error::io(format!("cannot open {}", path.display()), error.into()))
}
