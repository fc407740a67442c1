//! What a restore is about to do, on the disk before it does it.
//!
//! One file for each restore below `worker.state_dir`, replaced as a whole and synced each time. With it alone an interrupted restore is
//! finished or undone. Never: a step begun that the file does not name; a file that is half written; one that anybody else can read, for it
//! may hold the password of the customer's database account.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

use crate::catalog::Source;
use crate::config::Config;
use crate::customer::{Customer, CustomerId};
use crate::database::Replaced;
use crate::error::{Error, ErrorKind, Result};
use crate::operations::state::make_private;
use crate::repository::{BackupType, SnapshotId};
use crate::site::{Health, Staged};

/// The directory of all journals, in `worker.state_dir`.
const DIRECTORY: &str = "restores";
const SUFFIX: &str = ".json";
const VERSION: u32 = 1;

/// The steps of a restore.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Step {
    /// Maintenance on.
    Close,
    /// The files, into the staging directory.
    StageFiles,
    /// The dump, into the shadow schema.
    StageDatabase,
    /// The site's containers.
    Stop,
    /// Files and tables change places.
    Exchange,
    /// The site's containers, and its health. That it is begun is the commit: all that was to be exchanged is.
    Start,
    /// Maintenance off.
    Open,
    /// What was replaced, as a snapshot.
    Keep,
    /// What was replaced goes.
    Remove,
}

impl Step {
    const OFFLINE: [Self; 9] = [
        Self::Close,
        Self::StageFiles,
        Self::StageDatabase,
        Self::Stop,
        Self::Exchange,
        Self::Start,
        Self::Open,
        Self::Keep,
        Self::Remove,
    ];

    const ONLINE: [Self; 9] = [
        Self::StageFiles,
        Self::StageDatabase,
        Self::Close,
        Self::Stop,
        Self::Exchange,
        Self::Start,
        Self::Open,
        Self::Keep,
        Self::Remove,
    ];

    /// What nobody notices, at once. One may have had an effect without the other.
    pub(super) const STAGING: [Self; 2] = [Self::StageFiles, Self::StageDatabase];

    /// Backwards, and first what visitors see. What is not in it cannot be undone any more.
    pub(super) const UNDOING: [Self; 6] = [
        Self::Start,
        Self::Exchange,
        Self::Stop,
        Self::Close,
        Self::StageDatabase,
        Self::StageFiles,
    ];

    /// Whether the site does without, and nobody sees whether it was undone.
    pub(super) fn is_staging(self) -> bool {
        Self::STAGING.contains(&self)
    }

    /// As messages and tests call it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Close => "close",
            Self::StageFiles => "stage files",
            Self::StageDatabase => "stage database",
            Self::Stop => "stop",
            Self::Exchange => "exchange",
            Self::Start => "start",
            Self::Open => "open",
            Self::Keep => "keep",
            Self::Remove => "remove",
        }
    }
}

/// How a restore ended, as far as the customer's site is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Ending {
    /// The site is as the backup has it.
    Restored,
    /// The site is as it was.
    Undone,
}

/// The content of a journal.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Record {
    version: u32,
    /// Where the sites are that it is about: a journal of others is none of ours.
    root: PathBuf,
    /// The job, where the restore is one.
    pub(super) job: Option<u64>,
    owner: Owner,
    pub(super) snapshot: SnapshotId,
    pub(super) source: Source,
    pub(super) restore_type: BackupType,
    pub(super) online: bool,
    /// When it began.
    pub(super) began: Timestamp,
    /// The steps that may have had an effect which is still there.
    begun: Vec<Step>,
    /// Whether it goes back.
    pub(super) undoing: bool,
    /// Why, for it may come to its end much later. Journals of earlier versions do not say.
    #[serde(default)]
    pub(super) reason: Option<Reason>,
    /// How it ended; there may be something left to tidy up.
    pub(super) ending: Option<Ending>,
    /// The schema that what is exchanged of the database goes to.
    pub(super) replaced: Option<Replaced>,
    /// The staging directory.
    pub(super) staging: Option<String>,
    /// What is staged whole in it.
    pub(super) staged: Vec<Staged>,
    /// How the site answered before it was stopped.
    pub(super) health_before: Health,
    /// The moment before the exchange.
    pub(super) exchanged: Option<Timestamp>,
    /// The snapshot of what was replaced, from just before it is written on.
    pub(super) kept: Option<SnapshotId>,
    /// What the report will say.
    pub(super) files: u64,
    pub(super) bytes: u64,
    pub(super) tables: u64,
}

/// The error for which a restore goes back.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Reason {
    kind: ErrorKind,
    text: String,
}

impl Reason {
    pub(super) fn of(error: &Error) -> Self {
        Self {
            kind: match error.kind() {
                // It says of a part what is not true of the whole.
                ErrorKind::Stuck => ErrorKind::Failed,
                kind => kind,
            },
            text: error.chain(),
        }
    }

    pub(super) fn error(&self) -> Error {
        Error::new(self.kind, self.text.clone())
    }
}

/// What has to be known of the customer.
#[derive(Clone, Serialize, Deserialize)]
struct Owner {
    id: u32,
    db_name: String,
    db_user: Option<String>,
    db_password: Option<String>,
    web_port: Option<u16>,
    server: String,
}

impl Record {
    pub(super) fn new(
        config: &Config,
        job: Option<u64>,
        customer: &Customer,
        snapshot: SnapshotId,
        source: Source,
        restore_type: BackupType,
        online: bool,
    ) -> Self {
        let password = customer.db_password.as_ref();
        Self {
            version: VERSION,
            root: config.customers.root.clone(),
            job,
            owner: Owner {
                id: customer.id.get(),
                db_name: customer.db_name.to_string(),
                db_user: customer.db_user.clone(),
                db_password: password.map(|word| word.expose_secret().to_owned()),
                web_port: customer.web_port,
                server: customer.server.clone(),
            },
            snapshot,
            source,
            restore_type,
            online,
            began: Timestamp::now(),
            begun: Vec::new(),
            undoing: false,
            reason: None,
            ending: None,
            staging: None,
            replaced: None,
            staged: Vec::new(),
            health_before: Health::Unknown,
            exchanged: None,
            kept: None,
            files: 0,
            bytes: 0,
            tables: 0,
        }
    }

    pub(super) fn customer(&self) -> Result<Customer> {
        let owner = &self.owner;
        Ok(Customer {
            id: self.customer_id()?,
            status: None,
            db_name: owner.db_name.parse()?,
            db_user: owner.db_user.clone(),
            db_password: owner.db_password.clone().map(SecretString::from),
            web_port: owner.web_port,
            server: owner.server.clone(),
        })
    }

    pub(super) fn is_of(&self, config: &Config) -> bool {
        self.root == config.customers.root
    }

    pub(super) fn customer_id(&self) -> Result<CustomerId> {
        CustomerId::new(self.owner.id)
    }

    pub(super) fn has_begun(&self, step: Step) -> bool {
        self.begun.contains(&step)
    }

    /// Whether the exchange is complete and was not given up: from here on the restore is carried to its end.
    pub(super) fn is_committed(&self) -> bool {
        self.has_begun(Step::Start) && !self.undoing
    }

    /// Whether the site is up, and as it was or as the backup has it.
    pub(super) fn is_site_open(&self) -> bool {
        self.ending.is_some()
            || ![Step::Close, Step::Stop, Step::Exchange, Step::Start]
                .into_iter()
                .any(|step| self.has_begun(step))
    }

    /// Whether nothing of it is left anywhere.
    pub(super) fn is_tidy(&self) -> bool {
        self.ending.is_some() && self.begun.is_empty()
    }

    /// The steps from the last one that was begun on, which is repeated.
    pub(super) fn ahead(&self) -> &'static [Step] {
        let all: &[Step] = match self.online {
            true => &Step::ONLINE,
            false => &Step::OFFLINE,
        };
        let last = all.iter().rposition(|step| self.has_begun(*step));
        &all[last.unwrap_or(0)..]
    }

    /// The step that it is at, for a message.
    pub(super) fn at(&self) -> &'static str {
        self.ahead()
            .iter()
            .find(|step| self.has_begun(**step))
            .map_or("the beginning", |step| step.name())
    }
}

/// The journal of one restore.
#[derive(Clone)]
pub(super) struct Journal {
    path: PathBuf,
    record: Record,
}

impl Journal {
    /// A new one. Nothing may have been done yet.
    pub(super) fn create(config: &Config, record: Record) -> Result<Self> {
        let directory = make_directory(config)?;
        let name = format!(
            "customer-{}-{:016x}{SUFFIX}",
            record.owner.id,
            rand::random::<u64>()
        );
        let journal = Self {
            path: directory.join(name),
            record,
        };
        journal.write_first()?;
        journal.sync()?;
        Ok(journal)
    }

    /// As it is on the disk; None where it ended.
    pub(super) fn read(path: &Path) -> Result<Option<Self>> {
        let damaged = |why: String| {
            Error::new(
                ErrorKind::Damaged,
                format!(
                    "the journal {} cannot be understood ({why}): look at the site of the customer in its name, then move the file away",
                    path.display()
                ),
            )
        };
        let content = match std::fs::read(path) {
            Ok(content) => content,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => {
                let message = format!("cannot read the journal {}", path.display());
                return Err(Error::io(message, e));
            }
        };
        // The cause would quote the content, with the password in it.
        let record: Record = serde_json::from_slice(&content)
            .map_err(|e| damaged(format!("line {}, column {}", e.line(), e.column())))?;
        if record.version != VERSION {
            return Err(damaged(format!("it is of the version {}", record.version)));
        }
        Ok(Some(Self {
            path: path.to_owned(),
            record,
        }))
    }

    fn draft(&self) -> PathBuf {
        self.path.with_extension("draft")
    }

    pub(super) fn record(&self) -> &Record {
        &self.record
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Write down that a step is about to act.
    pub(super) fn begin(&mut self, step: Step) -> Result<()> {
        if self.record.has_begun(step) {
            return Ok(());
        }
        self.note(|record| record.begun.push(step))
    }

    /// Write down that nothing of a step is left.
    pub(super) fn undone(&mut self, step: Step) -> Result<()> {
        self.note(|record| record.begun.retain(|begun| *begun != step))
    }

    /// Write down that the site is as it was. Of what visitors could have noticed nothing is left then, whether that could be noted each time or not.
    pub(super) fn put_back(&mut self) -> Result<()> {
        self.note(|record| {
            record.ending = Some(Ending::Undone);
            record.begun.retain(|step| step.is_staging());
        })
    }

    /// Write down how it ended, and that nothing is left of it.
    pub(super) fn tidied(&mut self) -> Result<()> {
        self.note(|record| record.begun.clear())
    }

    /// Find out whether it can be written.
    pub(super) fn probe(&mut self) -> Result<()> {
        self.note(|_| {})
    }

    /// Change it, on the disk first.
    pub(super) fn note(&mut self, change: impl FnOnce(&mut Record)) -> Result<()> {
        let mut record = self.record.clone();
        change(&mut record);
        self.write(&record)?;
        // It has its name: whether that would survive a power cut or not, it is what others find.
        self.record = record;
        self.sync()
    }

    /// Without a name until it is whole: who is killed meanwhile leaves nothing behind, for nobody would look for what has no journal.
    fn write_first(&self) -> Result<()> {
        let unnamed = self.path.parent().and_then(|directory| {
            let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
            rustix::fs::open(directory, flags, Mode::RUSR | Mode::WUSR).ok()
        });
        // Not every file system has such files.
        let Some(unnamed) = unnamed.map(File::from) else {
            return self.write(&self.record);
        };
        let content = self.content(&self.record)?;
        (&unnamed)
            .write_all(&content)
            .and_then(|()| unnamed.sync_all())
            .map_err(|e| self.not_written(e))?;
        match name(&unnamed, &self.path) {
            // Some file systems do not take down what is in a file as long as it has no name.
            Ok(()) => unnamed.sync_all().map_err(|e| self.not_written(e)),
            Err(_) => self.write(&self.record),
        }
    }

    fn content(&self, record: &Record) -> Result<Vec<u8>> {
        serde_json::to_vec_pretty(record).map_err(|e| self.not_written(e.into()))
    }

    fn not_written(&self, error: std::io::Error) -> Error {
        Error::io(
            format!("cannot write the journal {}", self.path.display()),
            error,
        )
    }

    fn write(&self, record: &Record) -> Result<()> {
        let content = self.content(record)?;
        let draft = self.draft();
        let written = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
            .open(&draft)
            .and_then(|mut file| {
                file.write_all(&content)?;
                file.sync_all()
            })
            .and_then(|()| std::fs::rename(&draft, &self.path));
        if written.is_err() {
            // Best effort: nobody reads it.
            let _ = std::fs::remove_file(&draft);
        }
        written.map_err(|e| self.not_written(e))
    }

    fn sync(&self) -> Result<()> {
        self.sync_directory().map_err(|e| self.not_written(e))
    }

    /// The restore has ended and all who have to know do.
    pub(super) fn remove(self) -> Result<()> {
        std::fs::remove_file(&self.path)
            .and_then(|()| self.sync_directory())
            .map_err(|e| {
                Error::io(
                    format!("cannot remove the journal {}", self.path.display()),
                    e,
                )
            })
    }

    fn sync_directory(&self) -> std::io::Result<()> {
        match self.path.parent() {
            Some(directory) => File::open(directory)?.sync_all(),
            None => Ok(()),
        }
    }
}

/// Give an unnamed file its name, which nothing else has.
fn name(file: &File, path: &Path) -> std::io::Result<()> {
    let descriptor = format!("/proc/self/fd/{}", file.as_raw_fd());
    rustix::fs::linkat(CWD, descriptor, CWD, path, AtFlags::SYMLINK_FOLLOW)?;
    Ok(())
}

/// All journals, oldest first, with those that cannot be understood.
pub(super) fn all(config: &Config) -> Result<Vec<(PathBuf, Result<Journal>)>> {
    let directory = directory(config);
    let failed =
        |e: std::io::Error| Error::io(format!("cannot look at {}", directory.display()), e);
    let entries = match std::fs::read_dir(&directory) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(failed(e)),
    };
    make_private(&directory)?;
    let mut journals = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        if path.to_string_lossy().ends_with(SUFFIX)
            && let Some(journal) = Journal::read(&path).transpose()
        {
            journals.push((path, journal));
        }
    }
    let began = |journal: &Result<Journal>| journal.as_ref().ok().map(|one| one.record.began);
    journals.sort_by_key(|(_, journal)| began(journal));
    Ok(journals)
}

/// What processes left of a customer's journals that died while they wrote. Only for who holds him.
pub(super) fn remove_drafts(config: &Config, customer: CustomerId) -> Result<()> {
    let directory = directory(config);
    let failed =
        |e: std::io::Error| Error::io(format!("cannot tidy up {}", directory.display()), e);
    let entries = match std::fs::read_dir(&directory) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(failed(e)),
    };
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        if is_of(&path, customer) && path.extension().is_some_and(|it| it == "draft") {
            std::fs::remove_file(&path).map_err(failed)?;
        }
    }
    Ok(())
}

/// Whether a journal is a customer's, by its name.
pub(super) fn is_of(path: &Path, customer: CustomerId) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.starts_with(&format!("{}-", customer.tag()))
}

pub(super) fn directory(config: &Config) -> PathBuf {
    config.worker.state_dir.join(DIRECTORY)
}

/// The directory, which is there then, and only ours: who could write here could have root exchange files for him.
pub(super) fn make_directory(config: &Config) -> Result<PathBuf> {
    let directory = directory(config);
    make_private(&directory)?;
    Ok(directory)
}
