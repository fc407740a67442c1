//! Restore one customer.
//!
//! A list of steps ([`journal::Step`]), each written down before it acts, and each can be repeated. The commit point is the line that says that the site is being
//! started on what was exchanged: until then everything is undone, from then on it is carried to its end, by this process or, from the journal alone, by
//! the next. Never: a way out that leaves the site neither as it was nor as the backup has it, or closed, without an operator being called; what was
//! replaced destroyed before it is safe in the repository.

mod journal;
mod keep;
mod recover;
mod stage;
mod steps;

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use super::{Engine, Noting};
use crate::catalog::{BackupEntry, Contents, Place, Source, contents, no_such_backup};
use crate::customer::Customer;
use crate::database;
use crate::error::{Error, ErrorKind, Result};
use crate::progress::{Control, Phase};
use crate::repository::{
    BackupType, Lock, Origin, Owner, Repository, RestorePlan, RestoreRules, Snapshot, SnapshotId,
};
use crate::site::{Claim, Site};
use journal::{Journal, Record};
use steps::Restore;

pub use recover::{Interrupted, Recovered};

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
#[non_exhaustive]
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
    /// The backup of what was replaced; none where nothing was, and where it could not be made yet, which the warnings say.
    #[serde(rename = "kept_snapshot", serialize_with = "only_id")]
    pub kept: Option<BackupEntry>,
    /// What somebody should know although the restore is good.
    pub warnings: Vec<String>,
}

fn only_id<S: serde::Serializer>(kept: &Option<BackupEntry>, to: S) -> Result<S::Ok, S::Error> {
    kept.as_ref().map(|entry| entry.id).serialize(to)
}

impl Engine {
    /// Put a customer's files, database or both back as a backup has them. What that replaces becomes a backup of its own.
    ///
    /// An error means that the site is as it was, unless its kind is [`ErrorKind::Stuck`]: then it is behind its maintenance page, and
    /// [`Self::recover`] goes on once the cause is mended. Cancelling works up to the exchange.
    pub fn restore(
        &self,
        customer: &Customer,
        request: &RestoreRequest,
        control: &Control,
    ) -> Result<RestoreReport> {
        let claim = self.claim_for_restore(customer)?;
        self.restore_under(&claim, None, customer, request, control)
    }

    /// Of one customer one restore at a time, and no backup beside it.
    pub(crate) fn claim_for_restore(&self, customer: &Customer) -> Result<Claim> {
        Site::open(&self.config, customer)?.claim(true)
    }

    /// [`Self::restore`] for a caller who holds the customer, and may do so for longer. The journal of a restore that is a job's stays until
    /// [`Self::close_journal`].
    pub(crate) fn restore_under(
        &self,
        claim: &Claim,
        job: Option<u64>,
        customer: &Customer,
        request: &RestoreRequest,
        control: &Control,
    ) -> Result<RestoreReport> {
        let (control, noting) = Noting::under(control);
        let control = &control;
        control.monitor.phase(Phase::Preparing);
        self.end_earlier(claim, customer, control)?;
        let site = Site::open(&self.config, customer)?;
        let found = self.find(customer, &site, request, control)?;
        found.require_room(&site, customer)?;
        self.require_room_for_database(&found, &site, customer, control)?;
        let mut record = Record::new(
            &self.config,
            job,
            customer,
            found.snapshot.id,
            request.source,
            found.restore_type,
            request.online,
        );
        record.files = found.plans.iter().map(|(_, plan)| plan.files()).sum();
        record.bytes = found.plans.iter().map(|(_, plan)| plan.bytes()).sum();
        let journal = Journal::create(&self.config, record)?;
        let mut restore = Restore::new(self, customer, site, control, journal);
        restore.found = Some(found);
        let done = restore.carry_out();
        if job.is_none() {
            restore.remove_journal_if_tidy();
        }
        let mut report = done?;
        report.warnings = noting.warnings();
        Ok(report)
    }

    /// The first step: the backup is this customer's and holds what was asked for. Nothing is changed.
    fn find(
        &self,
        customer: &Customer,
        site: &Site,
        request: &RestoreRequest,
        control: &Control,
    ) -> Result<Found> {
        let mut located = self.locate(customer, request.source, &request.snapshot, control)?;
        if let Some(wanted) = request.restore_type {
            located.limit_to(wanted);
        }
        let Located {
            repository,
            lock,
            snapshot,
            contents,
            held,
        } = located;
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
            let repository = repository.with_scratch(&journal::make_directory(&self.config)?);
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
            _lock: lock,
            snapshot,
            contents,
            restore_type,
            plans,
        })
    }

    /// Databases share a file system, too. What is binary has two digits for each of its bytes in a dump, so tables take about what their dump does, or half
    /// of it; indexes come on top. Refused is what cannot fit. Where it turns out to be too little all the same, the import fails and is undone.
    fn require_room_for_database(
        &self,
        found: &Found,
        site: &Site,
        customer: &Customer,
        control: &Control,
    ) -> Result<()> {
        let Some(bytes) = found.dump_bytes() else {
            return Ok(());
        };
        let server = self.server(customer)?;
        // On another machine, in a container, or closed to us: then the import is what tells.
        let Some(disk) = database::data_disk(&server, &control.cancel) else {
            return Ok(());
        };
        let is_shared =
            std::fs::metadata(site.path()).is_ok_and(|found| found.dev() == disk.device);
        let beside = match is_shared {
            true => found.bytes_of_files(),
            false => 0,
        };
        let [least, most] = bytes_of_import(bytes).map(|bytes| bytes + beside);
        let available = disk.bytes_available;
        let what = match beside {
            0 => "database",
            _ => "files and the database",
        };
        let customer = customer.id;
        let place = disk.path.display();
        if least > available {
            return Err(Error::new(
                ErrorKind::NoSpace,
                format!(
                    "restoring the {what} of customer {customer} takes at least {least} bytes beside what is there, and {available} are free: \
                     make room on the file system of {place}, where the database server keeps its data"
                ),
            ));
        }
        if most > available {
            control.monitor.warning(&format!(
                "restoring the {what} of customer {customer} may take {most} bytes beside what is there, and {available} are free on the file system of \
                 {place}, where the database server keeps its data: if that is too little, the import fails and is undone"
            ));
        }
        Ok(())
    }

    /// A backup of this customer and what it holds of him, in a repository that is locked as for reading.
    pub(super) fn locate(
        &self,
        customer: &Customer,
        source: Source,
        id: &SnapshotId,
        control: &Control,
    ) -> Result<Located> {
        let not_found = || no_such_backup(customer.id, &id.to_string());
        let repository = match source {
            Source::Manual | Source::PreRestore => self.manual_for(customer.id, &control.cancel)?,
            Source::Daily => self.daily_for(&control.cancel)?.ok_or_else(|| {
                Error::new(
                    ErrorKind::Configuration,
                    "no daily backups are configured: set repositories.daily",
                )
            })?,
        };
        let lock = repository.lock_shared()?;
        let snapshot = repository.snapshot(id)?.ok_or_else(not_found)?;
        let config = &self.config.customer_database;
        let (is_his, dump, is_dump_his) = match source {
            Source::Manual => (
                is_own(&snapshot, customer, Origin::Manual),
                config.dump_path(customer)?,
                true,
            ),
            Source::PreRestore => (
                is_own(&snapshot, customer, Origin::PreRestore),
                config.dump_path(customer)?,
                true,
            ),
            Source::Daily => (
                snapshot.is_daily(),
                config.daily_dump_path(customer.id, &customer.db_name)?,
                config.is_daily_dump_by_number(customer.id, &customer.db_name)?,
            ),
        };
        if !is_his {
            return Err(not_found());
        }
        let directory =
            directory_in(&snapshot, customer).unwrap_or(self.config.customers.dir(customer.id));
        let site_dirs = &self.config.customers.site_dirs;
        let places = vec![Place {
            directory,
            dump,
            is_dump_his,
        }];
        let contents = contents(&repository.view()?, &snapshot, site_dirs, places)?
            .pop()
            .ok_or_else(not_found)?;
        let held = match (contents.backup_type(), source) {
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
        Ok(Located {
            repository,
            lock,
            snapshot,
            contents,
            held,
        })
    }

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

/// What the tables of a dump of so many bytes take, and a little more: where all of it is binary, and where nothing is.
fn bytes_of_import(dump: u64) -> [u64; 2] {
    [dump / 2, dump].map(|bytes| bytes + bytes / 20)
}

/// A manual or pre-restore snapshot is a customer's by its one tag.
fn is_own(snapshot: &Snapshot, customer: &Customer, origin: Origin) -> bool {
    snapshot.owner() == Some(customer.id) && snapshot.origin() == Some(origin)
}

/// A backup in its repository.
pub(super) struct Located {
    pub(super) repository: Arc<Repository>,
    /// Held while the repository is read.
    pub(super) lock: Lock,
    pub(super) snapshot: Snapshot,
    pub(super) contents: Contents,
    /// What it holds of the customer.
    pub(super) held: BackupType,
}

impl Located {
    /// Nothing but this of it, where it holds so much. What the catalogue shows of a backup is what there is for anybody: it knows all customers, and so whose a dump
    /// is if several have a database of that name.
    pub(super) fn limit_to(&mut self, shown: BackupType) {
        if !self.held.includes(shown) {
            return;
        }
        self.held = shown;
        if !shown.has_database() {
            self.contents.dump_bytes = None;
        }
        if !shown.has_files() {
            self.contents.site_dirs.clear();
        }
    }
}

/// The backup that is restored.
struct Found {
    repository: Arc<Repository>,
    /// Held while the repository is read.
    _lock: Lock,
    snapshot: Snapshot,
    contents: Contents,
    restore_type: BackupType,
    /// The site directories with what they hold, where files are restored.
    plans: Vec<(PathBuf, RestorePlan)>,
}

impl Found {
    /// The size of the dump, where the database is restored.
    fn dump_bytes(&self) -> Option<u64> {
        let is_restored = self.restore_type.has_database();
        self.contents.dump_bytes.filter(|_| is_restored)
    }

    /// What the files take on the disk, and a little more.
    fn bytes_of_files(&self) -> u64 {
        let plans = self.plans.iter();
        let files: u64 = plans.map(|(_, plan)| plan.bytes_on_disk()).sum();
        files + files / 20
    }

    /// Sites share the file system: some of it is left to the others.
    fn require_room(&self, site: &Site, customer: &Customer) -> Result<()> {
        let needed = self.bytes_of_files();
        let available = site.bytes_available()?;
        if needed > available {
            return Err(Error::new(
                ErrorKind::NoSpace,
                format!(
                    "restoring the files of customer {} takes {needed} bytes beside the present ones, and {available} are free: \
                     make room on the file system of {}",
                    customer.id,
                    site.path().display()
                ),
            ));
        }
        Ok(())
    }
}
