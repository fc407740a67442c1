//! Prove that a backup can be restored: restore its files to a private place, import its dump into a scratch schema, compare both with what was known
//! when it was made, and remove them.
//!
//! There is nothing to commit: whatever the way out, what was restored is removed, and what a process that died left is found by the next one by the room that it made
//! before anything else. Never: a site or a live schema touched, or a restore of the same customer hindered; a proof of something that was not read back.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use serde::Serialize;

use super::Engine;
use super::restore::Located;
use crate::catalog::{BackupEntry, Source};
use crate::customer::{Customer, CustomerId};
use crate::database::{self, Server};
use crate::error::{Error, ErrorKind, Result};
use crate::progress::{Cancel, Control, Monitor, Phase};
use crate::repository::RestoreRules;
use crate::site::{Scratch, ScratchRoom};

/// Tables that are named one by one.
const NAMED: usize = 20;

/// Of what is free a proof takes no more than this part: others write to the same disks, and nobody waits for a proof.
const SHARE: u64 = 2;

/// What was restored and found to be as it was saved.
#[derive(Debug, Clone, Copy, Default, Serialize)]
#[non_exhaustive]
pub struct Proven {
    /// Regular files.
    pub files: u64,
    /// Plain bytes of them.
    pub bytes: u64,
    /// Bytes of the dump.
    pub database_bytes: u64,
    /// Tables and views.
    pub tables: u64,
}

/// A backup that is to be proven, and what is known of it.
#[derive(Debug, Clone)]
pub(crate) struct Expected {
    pub(crate) customer: Customer,
    pub(crate) source: Source,
    pub(crate) entry: BackupEntry,
    /// What the database held when it was dumped, if that is known.
    pub(crate) tables: Option<Vec<String>>,
}

impl Engine {
    /// Take hold of the place where backups are proven.
    pub(crate) fn hold_scratch(&self) -> Result<Scratch> {
        Scratch::hold(&self.config.verify_dir())
    }

    /// Restore a backup, compare it, and remove what was restored.
    ///
    /// An error says what is wrong with the backup ([`ErrorKind::Damaged`], [`ErrorKind::NotFound`]), or what was in the way. Can be cancelled at any time.
    /// Schemas `of_customers` are not ours, whatever their names.
    pub(crate) fn prove(
        &self,
        scratch: &Scratch,
        expected: &Expected,
        of_customers: &BTreeSet<String>,
        control: &Control,
    ) -> Result<Proven> {
        let control = &Quiet::over(control);
        control.monitor.phase(Phase::Preparing);
        let mut located = self.locate(
            &expected.customer,
            expected.source,
            &expected.entry.id,
            control,
        )?;
        located.limit_to(expected.entry.backup_type);
        let room = scratch.make_room(expected.customer.id)?;
        let proven = catch_unwind(AssertUnwindSafe(|| {
            Attempt {
                engine: self,
                scratch,
                room: &room,
                located,
                expected,
                control,
            }
            .carry_out()
        }))
        .unwrap_or_else(|_| {
            Err(Error::new(
                ErrorKind::Failed,
                "the proof broke off inside the program",
            ))
        });
        control.monitor.phase(Phase::CleaningUp);
        let removed = self.remove_room(scratch, &room, &expected.customer, of_customers);
        if let Err(problem) = removed {
            tracing::warn!(
                "what was restored to prove a backup of customer {} is not all removed yet: {}",
                expected.customer.id,
                problem.chain()
            );
        }
        proven
    }

    /// Remove what was restored in a room, and the schema that is written down in it. For whoever holds the place: nobody else is at it.
    ///
    /// Whatever the customer's database is called by now, and whether or not there still is one: he says only where the server is. Where that is away, what takes
    /// room goes all the same, and the empty room stays for the next one to find.
    pub(crate) fn remove_room(
        &self,
        scratch: &Scratch,
        room: &ScratchRoom,
        customer: &Customer,
        of_customers: &BTreeSet<String>,
    ) -> Result<()> {
        scratch.empty(room)?;
        let noted = scratch.noted_schema(room)?;
        if let Some(noted) = noted.filter(|noted| !of_customers.contains(&noted.name)) {
            let server = self.server(customer)?;
            database::remove_proof(&server, &noted.name, noted.is_made)?;
        }
        scratch.remove(room)
    }

    /// In the place of a customer whom the table does not have any more: his number says where his database server was.
    pub(crate) fn former_customer(&self, id: CustomerId) -> Result<Customer> {
        Ok(Customer {
            id,
            status: None,
            db_name: self.config.customer_database.default_name(id)?,
            db_user: None,
            db_password: None,
            web_port: None,
            server: self.config.worker.server.clone(),
        })
    }
}

/// The proof of a backup, in its room.
struct Attempt<'a> {
    engine: &'a Engine,
    scratch: &'a Scratch,
    room: &'a ScratchRoom,
    located: Located,
    expected: &'a Expected,
    control: &'a Control,
}

impl Attempt<'_> {
    fn carry_out(&self) -> Result<Proven> {
        let wanted = self.expected.entry.backup_type;
        let held = self.located.held;
        if held != wanted {
            return Err(damaged(format!(
                "it holds {held} and not {wanted}, as it did when it was made"
            )));
        }
        let mut proven = Proven::default();
        if wanted.has_files() {
            self.prove_files(&mut proven)?;
            // The import needs the room, too, where the database is on the same disk.
            self.scratch.empty(self.room)?;
        }
        if wanted.has_database() {
            self.prove_database(&mut proven)?;
        }
        Ok(proven)
    }

    fn prove_files(&self, proven: &mut Proven) -> Result<()> {
        let (located, control) = (&self.located, self.control);
        control.monitor.phase(Phase::RestoringFiles);
        let notes = self.scratch.path().join(&self.room.name);
        let repository = located.repository.with_scratch(&notes);
        let plan = repository.plan_restore(
            &located.snapshot,
            &located.contents.directory,
            &RestoreRules::new(&self.engine.config.restore, &[]),
            &control.cancel,
        )?;
        if let Some(files) = self.expected.entry.files
            && files != plan.files()
        {
            return Err(damaged(format!(
                "it has {} files and not {files}, as it had when it was made",
                plan.files()
            )));
        }
        self.require_room(plan.bytes_on_disk())?;
        control.monitor.bytes_total(plan.bytes());
        let target = File::from(self.scratch.files(self.room)?);
        repository.restore(&plan, target.as_fd(), None, control)?;
        plan.check_restored(target.as_fd(), &control.cancel)?;
        proven.files = plan.files();
        proven.bytes = plan.bytes();
        Ok(())
    }

    /// Files and dump together are not to take more than may be; the dump's share is on another disk, as a rule.
    fn require_room(&self, files: u64) -> Result<()> {
        let most = self.engine.config.verify.max_bytes;
        let all = files + self.located.contents.dump_bytes.unwrap_or(0);
        if most > 0 && all > most {
            return Err(Error::new(
                ErrorKind::NoSpace,
                format!("it takes {all} bytes, and {most} may be used: raise verify.max_bytes"),
            ));
        }
        let available = self.scratch.bytes_available()?;
        if files > available / SHARE {
            return Err(Error::new(
                ErrorKind::NoSpace,
                format!(
                    "its files take {files} bytes, and no more than half of the {available} that are free is used for a proof: make room on the file system of {}, or set verify.dir",
                    self.scratch.path().display()
                ),
            ));
        }
        Ok(())
    }

    fn prove_database(&self, proven: &mut Proven) -> Result<()> {
        let (located, expected, control) = (&self.located, self.expected, self.control);
        control.monitor.phase(Phase::ImportingDatabase);
        let contents = &located.contents;
        let dump = located
            .repository
            .stream_file(&located.snapshot, &contents.dump, control)?;
        control.monitor.bytes_total(dump.bytes);
        let said = [contents.dump_bytes, expected.entry.database_bytes];
        if let Some(bytes) = said
            .into_iter()
            .flatten()
            .find(|bytes| *bytes != dump.bytes)
        {
            return Err(damaged(format!(
                "its dump has {} bytes and not {bytes}, as it had when it was made",
                dump.bytes
            )));
        }
        self.require_dump_fits(dump.bytes)?;
        proven.database_bytes = dump.bytes;
        let server = self.engine.server(&expected.customer)?;
        self.require_room_for_dump(&server, dump.bytes)?;
        let found = self
            .import_and_look(&server, Box::new(dump))
            .map_err(|error| match error.kind() {
                // The server's, and neither a lock of the repository nor a lack of the backup.
                ErrorKind::Busy | ErrorKind::NotFound => Error::caused(
                    ErrorKind::Failed,
                    "the database server did not import its dump",
                    error,
                ),
                _ => error,
            })?;
        match &expected.tables {
            Some(tables) => require_all(tables, &found)?,
            None if found.is_empty() => {
                let live = expected.customer.db_name.as_str();
                require_none(&server, live, &control.cancel)?;
            }
            // The import compared it with what the dump itself says.
            None => {}
        }
        proven.tables = found.len() as u64;
        Ok(())
    }

    fn require_dump_fits(&self, bytes: u64) -> Result<()> {
        let most = self.engine.config.verify.max_bytes;
        if most > 0 && bytes > most {
            return Err(Error::new(
                ErrorKind::NoSpace,
                format!(
                    "its dump has {bytes} bytes, and {most} may be used: raise verify.max_bytes"
                ),
            ));
        }
        Ok(())
    }

    /// Live shops write there, too.
    fn require_room_for_dump(&self, server: &Server, bytes: u64) -> Result<()> {
        // On another machine, in a container, or closed to us: then the import is what tells.
        let Some(disk) = database::data_disk(server, &self.control.cancel) else {
            return Ok(());
        };
        if bytes > disk.bytes_available / SHARE {
            return Err(Error::new(
                ErrorKind::NoSpace,
                format!(
                    "its dump has {bytes} bytes, and no more than half of what is free is used for a proof: make room on the file system of {}, where the \
                     database server keeps its data",
                    disk.path.display()
                ),
            ));
        }
        Ok(())
    }

    /// What came of the dump in a scratch schema, which is gone again.
    fn import_and_look(
        &self,
        server: &Server,
        dump: Box<dyn Read + Send>,
    ) -> Result<BTreeSet<String>> {
        let live = self.expected.customer.db_name.as_str();
        let name = database::proof_name(live);
        self.scratch.note_schema(self.room, &name)?;
        let mut schema = database::prepare_proof(server, live, &name, self.control)?;
        self.scratch.note_schema_made(self.room)?;
        let limit = self.engine.config.import_timeout();
        let found = database::import_for_proof(server, &mut schema, dump, limit, self.control);
        let discarded = database::discard_proof(server, &schema);
        if let (Ok(_), Err(problem)) = (&found, &discarded) {
            tracing::warn!("{}", problem.chain());
        }
        found
    }
}

/// What the database had while it was dumped.
fn require_all(tables: &[String], found: &BTreeSet<String>) -> Result<()> {
    let missing: Vec<&str> = tables
        .iter()
        .map(String::as_str)
        .filter(|table| !found.contains(*table))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(damaged(format!(
        "its dump lacks {} of the {} tables that the database had when it was made: {}{}",
        missing.len(),
        tables.len(),
        missing[..missing.len().min(NAMED)].join(", "),
        if missing.len() > NAMED { ", …" } else { "" }
    )))
}

/// A dump without a table is a good one of an empty database, and what an account gets that may see no table. Where nobody wrote down which it was, the
/// database of today is all that there is to ask.
fn require_none(server: &Server, live: &str, cancel: &Cancel) -> Result<()> {
    if database::has_tables(server, live, cancel)? {
        return Err(Error::new(
            ErrorKind::Failed,
            "its dump has no table, and the database has some today: whether it had none then nobody wrote down",
        ));
    }
    Ok(())
}

fn damaged(message: String) -> Error {
    Error::new(ErrorKind::Damaged, message)
}

/// What a restore would warn of (an owner that is replaced, a device that is left out) says nothing of whether the backup is whole.
struct Quiet(Arc<dyn Monitor>);

impl Quiet {
    fn over(control: &Control) -> Control {
        Control {
            monitor: Arc::new(Self(Arc::clone(&control.monitor))),
            ..control.clone()
        }
    }
}

impl Monitor for Quiet {
    fn phase(&self, phase: Phase) {
        self.0.phase(phase);
    }
    fn bytes_total(&self, bytes: u64) {
        self.0.bytes_total(bytes);
    }
    fn bytes_done(&self, bytes: u64) {
        self.0.bytes_done(bytes);
    }
    fn files_done(&self, files: u64) {
        self.0.files_done(files);
    }
}
