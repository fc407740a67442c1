//! The daily backup of everybody: the dumps and the directories of all customers of this server as one snapshot, laid out as the platform's own
//! script lays it out.
//!
//! The commit point is the snapshot file; forgetting old ones is a step after it, which its caller takes. Each dump and each directory is a part that is
//! in the snapshot whole or not at all. Never: a cut dump or half a directory in it; one customer's fault in the way of the others; a failure that is
//! not in the report; a dump and files of one customer with a restore between them; a customer's only backup of a day forgotten for one that lacks
//! him, or the last that there is of him; a temporary file.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::civil::Date;
use jiff::{Timestamp, Zoned};
use secrecy::SecretString;
use serde::Serialize;
use tokio::sync::OwnedMutexGuard;

use super::{Engine, Noting};
use crate::config::DailyConfig;
use crate::customer::{Customer, CustomerId};
use crate::database::{self, Dump, Endpoint, Server};
use crate::error::{Error, ErrorKind, Result};
use crate::progress::{Cancel, Control, Phase};
use crate::repository::{
    ArchiveRequest, EntryKind, Hold, Repository, Snapshot, SnapshotId, StreamSource, TreeSource,
    View,
};
use crate::site::{Claim, LastExclusive, Site};

/// The tag of the platform's daily snapshots.
const TAG: &str = "daily";

/// How often it is tried again what somebody else is using.
const PAUSE: Duration = Duration::from_millis(500);

/// Directories of nobody that are named one by one.
const NAMED: usize = 20;

/// What a daily backup saved, and what not.
#[derive(Debug, Clone, Serialize)]
pub struct DailyReport {
    /// The new snapshot.
    pub snapshot_id: SnapshotId,
    /// When it was made.
    #[serde(skip)]
    pub time: Timestamp,
    /// Customers of whom all that there is was saved.
    pub customers: u64,
    /// What could not be saved, and is not in the snapshot.
    pub failed: Vec<DailyFailure>,
    /// Regular files, dumps not counted.
    pub files: u64,
    /// Plain bytes of files and dumps.
    pub bytes: u64,
    /// Bytes that the repository grew by.
    pub bytes_added: u64,
    /// Bytes of the dumps.
    pub database_bytes: u64,
    /// The tables and views that each customer's database had while it was dumped, where that is known.
    #[serde(skip)]
    pub tables: Vec<(CustomerId, Vec<String>)>,
    /// Older daily snapshots that were forgotten.
    pub forgotten: Vec<SnapshotId>,
    /// What somebody should know although it is no failure.
    pub warnings: Vec<String>,
}

/// A part that could not be saved.
#[derive(Debug, Clone, Serialize)]
pub struct DailyFailure {
    /// Whose it is; None for what is the server's.
    pub customer: Option<CustomerId>,
    /// What of it.
    pub part: DailyPart,
    /// Why.
    pub error: String,
}

/// What a daily backup has parts of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DailyPart {
    /// All of a customer: what the platform's table says of him cannot be used.
    Customer,
    /// The dump of a customer's database.
    Database,
    /// A customer's directory.
    Files,
    /// The dump of the platform's own database.
    PlatformDatabase,
    /// A directory of `daily.paths`.
    Path,
}

impl Engine {
    /// Back up all of these customers, which are those of this server. Older snapshots stay: see [`Self::beyond_daily_retention`].
    ///
    /// An error means that there is no new snapshot. What of a single customer cannot be saved is no error but in the report. Cancelling works up to
    /// the commit.
    pub fn back_up_daily(
        &self,
        customers: Vec<(CustomerId, Result<Customer>)>,
        control: &Control,
    ) -> Result<DailyReport> {
        let (control, noting) = Noting::under(control);
        let control = &control;
        control.monitor.phase(Phase::Preparing);
        let config = self.daily_config()?;
        let plan = self.plan(config, customers, control)?;
        let repository = self.daily_repository(control)?;
        let lock = patiently(config.wait, &control.cancel, || repository.lock_shared())?;
        let parent = newest_of(&repository, &self.config.customers.root, &plan.paths)?;
        // Read the index before the first dump starts: a server gives up on a dump that nobody reads.
        drop(repository.view()?);

        control.monitor.phase(Phase::Saving);
        if let Some(bytes) = parent.as_ref().and_then(|snapshot| snapshot.bytes) {
            control.monitor.bytes_total(bytes);
        }
        let time = Zoned::now();
        let mut outcome = plan.outcome;
        let tables = plan.tables;
        let request = ArchiveRequest {
            trees: plan.trees,
            streams: plan.streams,
            paths: plan.paths.into_iter().collect(),
            tags: vec![TAG.to_owned(), time.strftime("%Y-%m-%d").to_string()],
            time: time.clone(),
            note: None,
            parent: parent.map(|snapshot| snapshot.id),
        };
        let (uncommitted, left_out) = repository.archive_what_can_be(lock, request, control)?;
        for (path, error) in left_out {
            outcome.leave_out(&path, &error, control);
        }
        outcome.require_something()?;
        outcome.judge_lacking();
        let archived = uncommitted.commit(control)?;

        for warning in &archived.warnings {
            control.monitor.warning(warning);
        }
        Ok(DailyReport {
            snapshot_id: archived.snapshot,
            time: time.timestamp(),
            customers: outcome.whole_customers(),
            failed: outcome.failed,
            files: archived.files,
            bytes: archived.bytes,
            bytes_added: archived.bytes_added,
            database_bytes: archived.stream_bytes,
            tables: std::mem::take(&mut *lock_tables(&tables)),
            forgotten: Vec::new(),
            warnings: noting.warnings(),
        })
    }

    /// This server's daily snapshots beyond the newest of each of the last `daily.keep` days that have one, oldest first; a day is one where the snapshot was
    /// made. The one that was just made is none of them in any case: clocks go wrong. Nor is one of a day that is kept as long as it holds something that
    /// nothing newer of that day does. Whose last files or last database one of them has, the catalogue says: that one is not to be forgotten either.
    pub fn beyond_daily_retention(&self, made: SnapshotId) -> Result<Vec<SnapshotId>> {
        let keep = self.daily_config()?.keep;
        let repository = self.daily_repository(&Control::default())?;
        let own = of_this_server(&repository, &self.config.customers.root)?;
        let days: Vec<(SnapshotId, Date)> = own.iter().map(|one| (one.id, one.date)).collect();
        self.without_missed(&repository, &own, beyond(&days, keep, made))
    }

    /// This server's daily snapshots, the newest first.
    pub fn daily_snapshots(&self) -> Result<Vec<SnapshotId>> {
        let repository = self.daily_repository(&Control::default())?;
        let own = of_this_server(&repository, &self.config.customers.root)?;
        Ok(own.iter().rev().map(|one| one.id).collect())
    }

    /// Of these, without those that would be missed: somebody who could not be saved again that day has his only backup of it there.
    fn without_missed(
        &self,
        repository: &Repository,
        own: &[Snapshot],
        beyond: Vec<SnapshotId>,
    ) -> Result<Vec<SnapshotId>> {
        let is_beyond = |snapshot: &&Snapshot| beyond.contains(&snapshot.id);
        let days = |of: &dyn Fn(&&Snapshot) -> bool| -> BTreeSet<Date> {
            own.iter().filter(of).map(|one| one.date).collect()
        };
        let kept_days = days(&|one| !is_beyond(one));
        let looked_into: BTreeSet<Date> = &days(&|one: &&Snapshot| is_beyond(one)) & &kept_days;
        if looked_into.is_empty() {
            return Ok(beyond);
        }
        // What is looked into must stay.
        let _lock = repository.lock_shared()?;
        let view = repository.view()?;
        let mut missed = BTreeSet::new();
        let mut kept: Vec<(Date, BTreeSet<PathBuf>)> = Vec::new();
        for snapshot in own
            .iter()
            .rev()
            .filter(|one| looked_into.contains(&one.date))
        {
            let parts = match self.parts_in(&view, snapshot) {
                // `check` tells of it. Nothing is certain of it, so it takes the place of none, and stays.
                Err(error) if error.kind() == ErrorKind::Damaged => {
                    missed.insert(snapshot.id);
                    continue;
                }
                parts => parts?,
            };
            let is_in_another = kept
                .iter()
                .any(|(date, others)| *date == snapshot.date && parts.is_subset(others));
            if !is_beyond(&snapshot) || !is_in_another {
                missed.insert(snapshot.id);
                kept.push((snapshot.date, parts));
            }
        }
        Ok(beyond
            .into_iter()
            .filter(|id| !missed.contains(id))
            .collect())
    }

    /// The dumps, the customers' directories and the site directories in them, and the further paths that a daily snapshot holds.
    fn parts_in(&self, view: &View<'_>, snapshot: &Snapshot) -> Result<BTreeSet<PathBuf>> {
        let further = &self.daily_config()?.paths;
        let customers = &self.config.customers;
        let mut paths = Vec::new();
        for path in &snapshot.paths {
            if further.contains(path) {
                paths.push(path.clone());
            } else if *path == customers.root {
                let mut directories = view.children(snapshot, path)?;
                let is_of_customer = |name: &OsStr| name.to_str().and_then(CustomerId::from_tag);
                directories.retain(|it| it.file_name().and_then(is_of_customer).is_some());
                for directory in directories {
                    paths.extend(customers.site_dirs.iter().map(|it| directory.join(it)));
                    paths.push(directory);
                }
            } else {
                paths.extend(view.children(snapshot, path)?);
            }
        }
        let entries = view.entries(snapshot, &paths)?;
        // The restic program stores an empty file for a dump that failed.
        let is_something =
            |entry: &Option<EntryKind>| !matches!(entry, None | Some(EntryKind::File { bytes: 0 }));
        let found = paths.into_iter().zip(entries);
        Ok(found
            .filter(|(_, entry)| is_something(entry))
            .map(|(path, _)| path)
            .collect())
    }

    /// Forget a daily snapshot of this server; the id of the repository. One of somebody else stays.
    pub fn forget_daily(&self, id: &SnapshotId) -> Result<String> {
        let repository = self.daily_repository(&Control::default())?;
        let own = of_this_server(&repository, &self.config.customers.root)?;
        if own.iter().any(|snapshot| snapshot.id == *id) {
            repository.forget(&[*id])?;
        }
        Ok(repository.id())
    }

    fn daily_config(&self) -> Result<&DailyConfig> {
        self.config.daily.as_ref().ok_or_else(|| {
            Error::new(
                ErrorKind::Configuration,
                "the daily backups are the platform's own script's: switch that off, and write a section [daily] into the configuration, \
                 which may be empty",
            )
        })
    }

    fn daily_repository(&self, control: &Control) -> Result<Arc<Repository>> {
        self.daily_for(&control.cancel)?.ok_or_else(|| {
            Error::new(
                ErrorKind::Configuration,
                "there is no repository for daily backups: set repositories.daily",
            )
        })
    }

    fn plan(
        &self,
        config: &DailyConfig,
        customers: Vec<(CustomerId, Result<Customer>)>,
        control: &Control,
    ) -> Result<Plan> {
        if customers.is_empty() {
            return Err(Error::new(
                ErrorKind::NotFound,
                format!(
                    "no customer is on the server {} (worker.server), so there is nothing to back up",
                    self.config.worker.server
                ),
            ));
        }
        self.warn_of_strangers(&customers, control)?;
        let hands = Arc::new(Hands {
            // One of its own: what reads may outlive this operation, and a repository that it kept would wait for it to end.
            engine: Self::new(self.config.clone(), &self.stop),
            control: control.clone(),
            wait: config.wait,
            turn: Arc::default(),
            tables: Arc::default(),
        });
        let mut plan = Plan {
            tables: Arc::clone(&hands.tables),
            ..Plan::default()
        };
        plan.outcome.inactive = customers
            .iter()
            .filter_map(|(_, customer)| customer.as_ref().ok())
            .filter(|customer| !customer.is_active())
            .map(|customer| customer.id)
            .collect();
        plan.paths.insert(self.config.customers.root.clone());
        for (id, customer) in customers {
            match customer {
                Ok(customer) => self.plan_customer(&mut plan, &hands, customer, config, control)?,
                Err(error) => plan.outcome.fail(Some(id), DailyPart::Customer, &error),
            }
        }
        if config.platform_database {
            self.plan_platform(&mut plan, &hands, control)?;
        }
        for path in &config.paths {
            plan.paths.insert(path.clone());
            plan.outcome.expect(path, None, DailyPart::Path);
            plan.trees
                .push(TreeSource::in_place(path.clone(), Vec::new()));
        }
        Ok(plan)
    }

    fn plan_customer(
        &self,
        plan: &mut Plan,
        hands: &Arc<Hands>,
        customer: Customer,
        config: &DailyConfig,
        control: &Control,
    ) -> Result<()> {
        let id = customer.id;
        let databases = &self.config.customer_database;
        let dump = databases.daily_dump_path(id, &customer.db_name)?;
        let directory = self.config.customers.dir(id);
        let member = Arc::new(Member {
            customer,
            seen: Mutex::default(),
        });
        let platform = self.config.database.mysql();
        if platform.is_some_and(|platform| {
            platform
                .schema
                .eq_ignore_ascii_case(member.customer.db_name.as_str())
        }) {
            let error = Error::new(
                ErrorKind::Configuration,
                format!("the db_name of customer {id} is the platform's own database: correct it"),
            );
            plan.outcome.fail(Some(id), DailyPart::Database, &error);
        } else if plan.outcome.is_expected(&dump) {
            control.monitor.warning(&format!(
                "customer {id} has the database {} in common with another one: it is saved once",
                member.customer.db_name
            ));
        } else {
            let (hands, member) = (Arc::clone(hands), Arc::clone(&member));
            plan.add_dump(dump, Some(id), DailyPart::Database, move || {
                hands.dump_of(&member)
            });
        }
        plan.outcome.expect(&directory, Some(id), DailyPart::Files);
        let exclude = self.config.customers.exclude.clone();
        let hands = Arc::clone(hands);
        plan.trees.push(TreeSource {
            hold: Some(Hold::new(move || hands.claim_for_files(&member))),
            limit: Some(config.customer_timeout),
            ..TreeSource::in_place(directory, exclude)
        });
        Ok(())
    }

    /// Nothing where the platform's database is a file.
    fn plan_platform(&self, plan: &mut Plan, hands: &Arc<Hands>, control: &Control) -> Result<()> {
        let Some(platform) = self.config.database.mysql() else {
            return Ok(());
        };
        let databases = &self.config.customer_database;
        let path = databases.daily_dump_path_of_platform(&platform.schema)?;
        let Some(path) = path.filter(|path| !plan.outcome.is_expected(path)) else {
            control.monitor.warning(&format!(
                "customer_database.daily_dump_path has no place for the dump of the platform's own database {}, so it is not saved",
                platform.schema
            ));
            return Ok(());
        };
        let endpoint = Endpoint::Host {
            host: platform.host,
            port: platform.port,
        };
        let password = platform
            .password
            .unwrap_or_else(|| SecretString::from(String::new()));
        let server = Server::new(endpoint, Vec::new(), platform.user, password);
        let hands = Arc::clone(hands);
        plan.add_dump(path, None, DailyPart::PlatformDatabase, move || {
            hands.dump_of_platform(&server, &platform.schema)
        });
        Ok(())
    }

    /// Directories that look like a customer's but are nobody's of this server are not saved: were they those of a customer who has moved, a backup of
    /// what he had here would look like his newest.
    fn warn_of_strangers(
        &self,
        customers: &[(CustomerId, Result<Customer>)],
        control: &Control,
    ) -> Result<()> {
        let root = &self.config.customers.root;
        let failed = |error: io::Error| {
            Error::caused(
                ErrorKind::Configuration,
                format!("cannot list customers.root, {}", root.display()),
                error,
            )
        };
        let known: BTreeSet<CustomerId> = customers.iter().map(|(id, _)| *id).collect();
        let mut strangers = BTreeSet::new();
        for entry in root.read_dir().map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let customer = name.to_str().and_then(CustomerId::from_tag);
            strangers.extend(customer.filter(|id| !known.contains(id)));
        }
        if strangers.is_empty() {
            return Ok(());
        }
        let names: Vec<String> = strangers.iter().take(NAMED).map(|id| id.tag()).collect();
        control.monitor.warning(&format!(
            "{} directories in {} are of no customer of this server and are not saved: {}{}",
            strangers.len(),
            root.display(),
            names.join(", "),
            if strangers.len() > NAMED { ", …" } else { "" }
        ));
        Ok(())
    }
}

/// What is to be saved.
#[derive(Default)]
struct Plan {
    trees: Vec<TreeSource>,
    streams: Vec<StreamSource>,
    /// What the snapshot will say that it holds.
    paths: BTreeSet<PathBuf>,
    outcome: Outcome,
    tables: Tables,
}

/// What customers' databases had while they were dumped, as far as they were.
type Tables = Arc<Mutex<Vec<(CustomerId, Vec<String>)>>>;

fn lock_tables(tables: &Tables) -> MutexGuard<'_, Vec<(CustomerId, Vec<String>)>> {
    tables.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Plan {
    fn add_dump(
        &mut self,
        path: PathBuf,
        customer: Option<CustomerId>,
        part: DailyPart,
        start: impl FnOnce() -> Result<Running> + Send + 'static,
    ) {
        self.outcome.expect(&path, customer, part);
        self.paths.extend(path.parent().map(Path::to_owned));
        let reader = Box::new(DailyDump::Waiting(Box::new(start)));
        self.streams.push(StreamSource { path, reader });
    }
}

/// What becomes of the parts.
#[derive(Default)]
struct Outcome {
    /// What is, as far as is known, in the snapshot, by its path.
    saved: BTreeMap<PathBuf, (Option<CustomerId>, DailyPart)>,
    /// Customers whom the platform does not serve: of them something may be missing.
    inactive: BTreeSet<CustomerId>,
    /// Parts of theirs that are not there, which is no fault if it is so of some.
    lacking: Vec<(Option<CustomerId>, DailyPart, String)>,
    failed: Vec<DailyFailure>,
}

impl Outcome {
    fn expect(&mut self, path: &Path, customer: Option<CustomerId>, part: DailyPart) {
        self.saved.insert(path.to_owned(), (customer, part));
    }

    fn is_expected(&self, path: &Path) -> bool {
        self.saved.contains_key(path)
    }

    fn fail(&mut self, customer: Option<CustomerId>, part: DailyPart, error: &Error) {
        self.failed.push(DailyFailure {
            customer,
            part,
            error: error.chain(),
        });
    }

    /// Of who is active everything has to be there. Who is not may have no database, or no directory: not yet, or no more.
    fn leave_out(&mut self, path: &Path, error: &Error, control: &Control) {
        let Some((customer, part)) = self.saved.remove(path) else {
            return;
        };
        let may_lack_it = customer.is_some_and(|id| self.inactive.contains(&id));
        if may_lack_it && error.kind() == ErrorKind::NotFound {
            control.monitor.warning(&error.chain());
            self.lacking.push((customer, part, error.chain()));
        } else {
            self.fail(customer, part, error);
        }
    }

    /// Where nobody has a directory, or nobody a database, it is not the customers who lack it: a disk that is not mounted, or an account that sees none.
    fn judge_lacking(&mut self) {
        for part in [DailyPart::Files, DailyPart::Database] {
            let is_saved = self.saved.values().any(|(_, saved)| *saved == part);
            if is_saved || self.failed.iter().any(|failure| failure.part == part) {
                continue;
            }
            let all = self
                .lacking
                .iter()
                .filter(|(_, lacking, _)| *lacking == part);
            let failures: Vec<_> = all
                .map(|(customer, part, error)| DailyFailure {
                    customer: *customer,
                    part: *part,
                    error: error.clone(),
                })
                .collect();
            // Of a single one that may well be so.
            if failures.len() > 1 {
                self.failed.extend(failures);
            }
        }
    }

    /// A snapshot without any customer would only look like a backup.
    fn require_something(&self) -> Result<()> {
        if self.saved.values().any(|(customer, _)| customer.is_some()) {
            return Ok(());
        }
        let cause = match self.failed.first() {
            Some(failure) => failure.error.as_str(),
            None => "none of them has a directory or a database",
        };
        Err(Error::new(
            ErrorKind::Failed,
            format!("nothing of any customer could be saved, so there is no daily backup: {cause}"),
        ))
    }

    fn whole_customers(&self) -> u64 {
        let mut whole: BTreeSet<CustomerId> =
            self.saved.values().filter_map(|(id, _)| *id).collect();
        for failure in &self.failed {
            if let Some(id) = failure.customer {
                whole.remove(&id);
            }
        }
        whole.len() as u64
    }
}

/// What the threads that read need.
struct Hands {
    engine: Engine,
    control: Control,
    wait: Duration,
    /// Whose dump runs: one at a time, whatever the number of threads. And where the one before was made.
    turn: Arc<tokio::sync::Mutex<Option<Server>>>,
    tables: Tables,
}

/// A customer who is saved.
struct Member {
    customer: Customer,
    seen: Mutex<Seen>,
}

/// What was seen of a customer when one of his parts was read.
#[derive(Default)]
struct Seen {
    last_exclusive: Option<LastExclusive>,
    /// He was waited for in vain, which is enough once.
    was_busy: bool,
}

impl Hands {
    fn dump_of(&self, member: &Member) -> Result<Running> {
        let mut turn = self.wait_for_turn()?;
        let claim = match self.claim(member) {
            Ok((_, claim)) => Some(claim),
            // A database alone needs no directory.
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let server = self.engine.known_server(&member.customer, &mut turn)?;
        let dump = self
            .engine
            .start_dump(&server, &member.customer, &self.control)?;
        let whose = (member.customer.id, Arc::clone(&self.tables));
        Running::new(dump, claim, turn, Some(whose))
    }

    fn dump_of_platform(&self, server: &Server, schema: &str) -> Result<Running> {
        let turn = self.wait_for_turn()?;
        let limit = self.engine.config().dump_timeout();
        let dump = database::dump(server, schema, limit, &self.control)?;
        Running::new(dump, None, turn, None)
    }

    fn claim_for_files(&self, member: &Member) -> Result<Claim> {
        let (site, claim) = self.claim(member)?;
        let site_dirs = &self.engine.config().customers.site_dirs;
        if site.present_dirs(site_dirs)?.is_empty() {
            self.control.monitor.warning(&format!(
                "{} has none of the directories that hold a site (customers.site_dirs)",
                site.path().display()
            ));
        }
        Ok(claim)
    }

    /// A restore would exchange files and tables under us, or has left them half-way.
    fn claim(&self, member: &Member) -> Result<(Site, Claim)> {
        let id = member.customer.id;
        let site = Site::open(self.engine.config(), &member.customer)?;
        let mut seen = member.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let wait = match seen.was_busy {
            true => Duration::ZERO,
            false => self.wait,
        };
        let claim =
            patiently(wait, &self.control.cancel, || site.claim(false)).inspect_err(|_| {
                seen.was_busy = true;
            })?;
        self.engine.require_no_interrupted_restore(id)?;
        let now = claim.last_exclusive()?;
        match seen.last_exclusive.replace(now) {
            Some(before) if before != now => Err(Error::new(
                ErrorKind::Busy,
                format!(
                    "customer {id} was restored after one half of him was saved and before this one, so that they would not belong together"
                ),
            )),
            _ => Ok((site, claim)),
        }
    }

    fn wait_for_turn(&self) -> Result<OwnedMutexGuard<Option<Server>>> {
        let turn = Arc::clone(&self.turn).blocking_lock_owned();
        self.control.cancel.check()?;
        Ok(turn)
    }
}

/// A dump that starts when it is first read: many wait for their turn, and a server gives up on one that nobody reads. Only one that is proven to be
/// whole has an end; any other has an error.
enum DailyDump {
    Waiting(Box<dyn FnOnce() -> Result<Running> + Send>),
    Running(Running),
    Whole,
    Failed,
}

struct Running {
    reader: Box<dyn Read + Send>,
    dump: Dump,
    read: u64,
    /// Whose it is, and where it is written down what there was.
    whose: Option<(CustomerId, Tables)>,
    _claim: Option<Claim>,
    _turn: OwnedMutexGuard<Option<Server>>,
}

impl Running {
    fn new(
        mut dump: Dump,
        claim: Option<Claim>,
        turn: OwnedMutexGuard<Option<Server>>,
        whose: Option<(CustomerId, Tables)>,
    ) -> Result<Self> {
        let reader = dump
            .take_reader()
            .ok_or_else(|| Error::new(ErrorKind::Failed, "the dump has no output"))?;
        Ok(Self {
            reader,
            dump,
            read: 0,
            whose,
            _claim: claim,
            _turn: turn,
        })
    }

    fn finish(self) -> Result<()> {
        let report = self.dump.finish()?;
        if report.bytes != self.read {
            return Err(Error::new(
                ErrorKind::Damaged,
                format!(
                    "the dump has {} bytes but {} were read",
                    report.bytes, self.read
                ),
            ));
        }
        if let (Some((customer, all)), Some(tables)) = (self.whose, report.tables) {
            lock_tables(&all).push((customer, tables));
        }
        Ok(())
    }
}

impl Read for DailyDump {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let mut running = match std::mem::replace(self, Self::Failed) {
            Self::Waiting(start) => start().map_err(io::Error::other)?,
            Self::Running(running) => running,
            Self::Whole => {
                *self = Self::Whole;
                return Ok(0);
            }
            Self::Failed => return Err(io::Error::other("the dump has failed")),
        };
        match running.reader.read(buffer) {
            Ok(0) => {
                running.finish().map_err(io::Error::other)?;
                *self = Self::Whole;
                Ok(0)
            }
            Ok(count) => {
                running.read += count as u64;
                *self = Self::Running(running);
                Ok(count)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                *self = Self::Running(running);
                Err(error)
            }
            // Its own error says more than that of its pipe.
            Err(_) => match running.finish() {
                Err(cause) => Err(io::Error::other(cause)),
                Ok(()) => Err(io::Error::other("the dump ended in an error")),
            },
        }
    }
}

/// Try again what is in somebody else's way, for so long.
fn patiently<T>(
    limit: Duration,
    cancel: &Cancel,
    mut attempt: impl FnMut() -> Result<T>,
) -> Result<T> {
    let began = Instant::now();
    loop {
        match attempt() {
            Err(error) if error.kind() == ErrorKind::Busy && began.elapsed() < limit => {
                cancel.check()?;
                std::thread::sleep(PAUSE.min(limit));
            }
            other => return other,
        }
    }
}

/// The daily snapshots of this server's customers, oldest first. Others have jobs with the same tag, too, and may have them on this host.
fn of_this_server(repository: &Repository, root: &Path) -> Result<Vec<Snapshot>> {
    let mut snapshots = repository.snapshots()?;
    snapshots.retain(|snapshot| {
        snapshot.is_daily()
            && snapshot.is_from_here()
            && snapshot.paths.iter().any(|path| path == root)
            && snapshot.owner().is_none()
            && snapshot.origin().is_none()
    });
    Ok(snapshots)
}

/// Unchanged files need not be read again: they are as in this one. As restic has it: one of this server and of the same paths.
fn newest_of(
    repository: &Repository,
    root: &Path,
    paths: &BTreeSet<PathBuf>,
) -> Result<Option<Snapshot>> {
    let wanted: BTreeSet<&PathBuf> = paths.iter().collect();
    let has_them = |snapshot: &Snapshot| snapshot.paths.iter().collect::<BTreeSet<_>>() == wanted;
    let mut newest_first = of_this_server(repository, root)?.into_iter().rev();
    Ok(newest_first.find(has_them))
}

/// Of snapshots with their days, oldest first, those that restic would forget with `--keep-daily`.
fn beyond(snapshots: &[(SnapshotId, Date)], keep: u32, made: SnapshotId) -> Vec<SnapshotId> {
    let mut left = keep;
    let mut last = None;
    let mut beyond = Vec::new();
    for (id, day) in snapshots.iter().rev() {
        if left > 0 && last != Some(*day) {
            left -= 1;
            last = Some(*day);
        } else if *id != made {
            beyond.push(*id);
        }
    }
    beyond.reverse();
    beyond
}

#[cfg(test)]
mod tests {
    use jiff::ToSpan;
    use jiff::tz::{Offset, TimeZone};
    use rand::rngs::SmallRng;
    use rand::{RngExt, SeedableRng};
    use serde_json::Value;
    use xtask::restic::Restic;

    use super::*;
    use crate::repository::hostname;
    use crate::storage;

    fn id(number: u8) -> SnapshotId {
        format!("{number:064x}").parse().unwrap()
    }

    /// One of each letter's day, oldest first.
    fn of_days(days: &str) -> Vec<(SnapshotId, Date)> {
        let day = |letter: u8| jiff::civil::date(2026, 1, i8::try_from(letter - b'a' + 1).unwrap());
        days.bytes()
            .enumerate()
            .map(|(number, letter)| (id(u8::try_from(number).unwrap()), day(letter)))
            .collect()
    }

    #[test]
    fn the_newest_of_each_of_the_newest_days_stays() {
        for (days, keep, forgotten) in [
            ("", 3, &[][..]),
            ("abc", 3, &[]),
            ("abcd", 3, &[0]),
            ("aabbcc", 3, &[0, 2, 4]),
            ("aabbcc", 2, &[0, 1, 2, 4]),
            // Days without one do not count.
            ("ahz", 3, &[]),
            // Those who travel may come to a day twice.
            ("abab", 3, &[0]),
            ("aaaa", 30, &[0, 1, 2]),
        ] {
            let snapshots = of_days(days);
            let forgotten: Vec<SnapshotId> = forgotten.iter().copied().map(id).collect();
            let made = snapshots.last().map_or(id(99), |(id, _)| *id);
            assert_eq!(beyond(&snapshots, keep, made), forgotten, "{days}, {keep}");
        }
        // The clock had been wrong: the one that was just made looks like the oldest.
        assert_eq!(beyond(&of_days("abcd"), 2, id(0)), [id(1)]);
    }

    /// Who lacks this part, or has it, or cannot be saved; whose failures are told in the end.
    fn told_of(part: DailyPart, lack: &[u32], have: &[u32], active: &[u32]) -> Vec<u32> {
        let control = Control::default();
        let customer = |number: u32| CustomerId::new(number).unwrap();
        let path = |number: u32| PathBuf::from(format!("/{number}"));
        let mut outcome = Outcome {
            inactive: lack.iter().copied().map(customer).collect(),
            ..Outcome::default()
        };
        for number in [lack, have, active].concat() {
            outcome.expect(&path(number), Some(customer(number)), part);
        }
        for number in [lack, active].concat() {
            let error = Error::new(ErrorKind::NotFound, format!("{number} has none"));
            outcome.leave_out(&path(number), &error, &control);
        }
        outcome.judge_lacking();
        let failures = outcome.failed.iter();
        failures
            .map(|failure| {
                assert_eq!(failure.part, part);
                assert!(failure.error.contains("has none"));
                failure.customer.unwrap().get()
            })
            .collect()
    }

    #[test]
    fn what_nobody_has_is_not_theirs_to_lack_and_who_is_active_lacks_nothing_unsaid() {
        for part in [DailyPart::Files, DailyPart::Database] {
            // Not yet, or no more: such customers there are.
            assert!(told_of(part, &[1, 2], &[3], &[]).is_empty());
            assert!(told_of(part, &[1], &[], &[]).is_empty());
            // A disk that is not mounted, an account that sees no database.
            assert_eq!(told_of(part, &[1, 2], &[], &[]), [1, 2]);
            // Of whom the platform serves, everything has to be there. That says it for the others, too.
            assert_eq!(told_of(part, &[], &[1], &[2]), [2]);
            assert_eq!(told_of(part, &[1, 3], &[], &[2]), [2]);
        }
    }

    fn ids(snapshots: &Value) -> BTreeSet<String> {
        let snapshots = snapshots.as_array().map_or(&[][..], Vec::as_slice);
        let id = |snapshot: &Value| snapshot["id"].as_str().unwrap().to_owned();
        snapshots.iter().map(id).collect()
    }

    #[test]
    fn restic_would_keep_the_same() {
        let root = Path::new("/var/customers");
        let scratch = tempfile::tempdir().unwrap();
        let location = storage::Location::from(&*scratch.path().join("repository"));
        let storage = storage::open(&location, &Default::default()).unwrap();
        let repository = Repository::init(storage, &"password".to_owned().into()).unwrap();
        let restic = Restic::new(scratch.path().join("repository"), "password").unwrap();
        let mut random = SmallRng::seed_from_u64(7);
        let begin: Zoned = "2026-02-20T12:00:00+00:00[UTC]".parse().unwrap();
        for number in 0..40 {
            let hours = random.random_range(-11..=13);
            let zone = TimeZone::fixed(Offset::from_hours(hours).unwrap());
            let minutes = random.random_range(0..12 * 24 * 60);
            let time = begin.checked_add(i64::from(minutes).minutes()).unwrap();
            // Others' snapshots are nothing to it.
            let tags = match number % 8 {
                7 => &["xdaily"][..],
                _ => &["daily", "2026-02-20"],
            };
            let request = ArchiveRequest {
                trees: Vec::new(),
                streams: vec![StreamSource {
                    path: "/tmp/x.sql".into(),
                    reader: Box::new(&b"x"[..]),
                }],
                paths: vec![root.into(), format!("/path/{}", number % 2).into()],
                tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
                time: time.with_time_zone(zone),
                note: None,
                parent: None,
            };
            let lock = repository.lock_shared().unwrap();
            let control = Control::default();
            let uncommitted = repository.archive(lock, request, &control).unwrap();
            uncommitted.commit(&control).unwrap();
        }
        let own = of_this_server(&repository, root).unwrap();
        let days: Vec<(SnapshotId, Date)> = own.iter().map(|one| (one.id, one.date)).collect();
        let made = days.last().unwrap().0;
        let mut forgets_some = 0;
        assert_eq!(own.len(), 35);
        for keep in [1, 2, 3, 5, 8, 11, 12, 13, 14, 30] {
            let ours: BTreeSet<String> = beyond(&days, keep, made)
                .iter()
                .map(SnapshotId::to_string)
                .collect();
            let policy = format!("--keep-daily={keep}");
            let host = format!("--host={}", hostname());
            let arguments = [
                "forget",
                "--dry-run",
                "--json",
                "--tag=daily",
                "--group-by=host",
            ];
            let output = restic
                .run(
                    arguments
                        .into_iter()
                        .chain([host.as_str(), policy.as_str()]),
                )
                .unwrap();
            let groups: Value = serde_json::from_slice(&output.stdout).unwrap();
            let [group] = groups.as_array().unwrap().as_slice() else {
                panic!("{groups}")
            };
            let theirs = ids(&group["remove"]);
            let mut kept: BTreeSet<String> = ours.difference(&theirs).cloned().collect();
            // Since 0.16 restic keeps the very oldest, too, while there are days left.
            kept.remove(&days[0].0.to_string());
            assert!(kept.is_empty(), "{keep}: restic keeps {kept:?}");
            assert!(theirs.is_subset(&ours), "{keep}: {theirs:?}, {ours:?}");
            forgets_some += usize::from(!ours.is_empty());
        }
        assert!(forgets_some > 5);
    }

    #[test]
    fn what_is_busy_is_waited_for_and_not_longer_than_that() {
        let cancel = Cancel::new();
        let busy = || Error::new(ErrorKind::Busy, "somebody is at it");
        let mut tries = 0;
        let free_at_last = || {
            tries += 1;
            if tries < 3 { Err(busy()) } else { Ok(tries) }
        };
        let limit = Duration::from_millis(40);
        assert_eq!(patiently(limit * 1000, &cancel, free_at_last).unwrap(), 3);
        let error = patiently(limit, &cancel, || Err::<(), _>(busy())).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Busy);
        let other = || Err::<(), _>(Error::new(ErrorKind::Failed, "it is broken"));
        assert_eq!(
            patiently(limit * 1000, &cancel, other).unwrap_err().kind(),
            ErrorKind::Failed
        );
        cancel.cancel();
        let error = patiently(limit * 1000, &cancel, || Err::<(), _>(busy())).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Cancelled);
    }
}
