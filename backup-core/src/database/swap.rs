//! A shadow schema takes the place of the live one, whose tables land in a third: the replaced one.
//!
//! One `RENAME TABLE` of all tables is the commit. Before it, what had to be dropped of the live schema (triggers: tables that
//! have some do not move) is put back on any failure; after it, what is not a table is made anew in the live schema, and the whole is reversed if that fails.
//! The replaced schema holds a record of both sides from before the first change on, in a table whose name, changed by the
//! commit itself and again once all is done, says where a crash left us. Whoever creates or changes views, routines, triggers or events while it is
//! under way makes it fail: what the record lacks is found before the commit and once more after it. A reversal renames the record, too, before it drops
//! anything: what is found then is the restored state's, and goes with it. What the server does not tell is in nobody's way back: it is left where it is, but for
//! what has the name of something that comes back, which goes once the tables are back. Never: a live schema between the two; what was
//! created in it since a completed swap dropped by completing that swap again, or taken into the old state by reversing it; anything dropped on the way
//! that no record has.

use std::cell::Cell;
use std::fmt;
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::database::Server;
use crate::database::accounts::{Identity, ImportAccount, grant, open_tenant, settle_account};
use crate::database::client::{
    SqlError, from_hex, hex_literal, identifier, literal, name_from_hex,
};
use crate::database::definitions::{
    As, Definition, Kind, Unread, collect, collect_what_can_be, create, drop_where, missing,
};
use crate::database::names::{
    REPLACED_MARK, is_beside, replaced_name, schemas_beside, shadow_name,
};
use crate::database::rewrite::{awake_event, unqualified_view};
use crate::database::shadow::{
    Shadow, default_charset, foreign_keys_into, remove_schema, require_same_server_run,
};
use crate::error::{Error, ErrorKind, Result};
use crate::fault;
use crate::progress::{Cancel, Control};

/// A table that somebody uses is waited for so many seconds, so many times.
const LOCK_SECONDS: u32 = 2;
const LOCK_TRIES: u32 = 5;
const LOCK_PAUSE: Duration = Duration::from_millis(200);
const BUSY: u16 = 1205;

/// A statement that a client left behind at the server is waited for so long.
const STATEMENT_SECONDS: u32 = 60;
const NO_SUCH_TABLE: u16 = 1146;

/// The record's table before the commit, once it is given up, after the commit, and once the live schema is whole.
const PENDING: &str = "~shophosting backup: pending";
const UNDOING: &str = "~shophosting backup: undoing";
const COMMITTED: &str = "~shophosting backup: committed";
pub(super) const COMPLETED: &str = "~shophosting backup: completed";

/// The same from before the first change of a reversal until the tables are back, with something behind it that is each try's own.
const REVERSING: &str = "~shophosting backup: reversing ";

/// Whether a table is the record, under whichever of its names.
fn is_record(table: &str) -> bool {
    [PENDING, UNDOING, COMMITTED, COMPLETED].contains(&table) || table.starts_with(REVERSING)
}

/// What a swap replaced: a schema with the old tables and a record of everything else. Known by its names alone, which a journal can hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Names")]
pub struct Replaced {
    live: String,
    schema: String,
}

/// A [`Replaced`] as it is read from a file, where anything may stand.
#[derive(Deserialize)]
struct Names {
    live: String,
    schema: String,
}

impl TryFrom<Names> for Replaced {
    type Error = Error;

    fn try_from(Names { live, schema }: Names) -> Result<Self> {
        if is_beside(&schema, &live, REPLACED_MARK) {
            Ok(Self { live, schema })
        } else {
            Err(Error::new(
                ErrorKind::InvalidInput,
                format!("{schema} is not a schema that a swap of {live} made"),
            ))
        }
    }
}

impl Shadow {
    /// What [`swap`] is going to replace, under the name that it will have: what a journal notes before the swap, to [`resume`] it by.
    pub fn to_be_replaced(&self) -> Replaced {
        Replaced {
            live: self.live.clone(),
            schema: replaced_name(&self.live, &self.schema),
        }
    }
}

impl Replaced {
    /// The live schema.
    pub fn live(&self) -> &str {
        &self.live
    }

    /// The schema that holds what was replaced.
    pub fn schema(&self) -> &str {
        &self.schema
    }
}

/// How far a swap came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplacedState {
    /// Not to its commit: [`resume`] undoes it.
    Pending,
    /// Past it, but what is not a table may be missing from the live schema: [`resume`] completes it, [`swap_back`] reverses it.
    Committed,
    /// To its end, and the live schema may have changed since: [`resume`] leaves it alone, [`swap_back`] reverses it,
    /// [`drop_replaced`] ends it.
    Completed,
    /// On its way back: of the live schema anything but tables may be missing. [`resume`] and [`swap_back`] bring it all the way.
    Reversing,
}

impl ReplacedState {
    /// By the record's name. A swap without a record had changed nothing yet.
    fn of(record: Option<&str>) -> Self {
        match record {
            Some(COMPLETED) => Self::Completed,
            Some(COMMITTED) => Self::Committed,
            Some(table) if table.starts_with(REVERSING) => Self::Reversing,
            _ => Self::Pending,
        }
    }
}

/// What something in a schema is, and its name.
type Named = (Kind, String);

/// What has to be known to finish a swap or to undo it.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Record {
    live: String,
    shadow: String,
    replaced: String,
    /// The live schema's character set and collation; none when there was no live schema.
    pub(super) charset: Option<(String, String)>,
    pub(super) old: Vec<Definition>,
    new: Vec<Definition>,
    /// What is in the live schema and could not be taken down: it is not dropped while anything may fail.
    #[serde(default)]
    left: Vec<Named>,
}

impl Record {
    /// Whether something of this name was in the live schema when that was looked at.
    fn has_old(&self, kind: Kind, name: &str) -> bool {
        self.old.iter().any(|one| one.is_called(kind, name))
    }

    fn has(&self, kind: Kind, name: &str) -> bool {
        self.has_old(kind, name) || self.new.iter().any(|one| one.is_called(kind, name))
    }

    fn has_left(&self, kind: Kind, name: &str) -> bool {
        self.left
            .iter()
            .any(|(one, its)| *one == kind && its == name)
    }

    /// Whether it was there just as it is now.
    fn has_unchanged(&self, now: &Definition) -> bool {
        let is_it = |one: &Definition| one.is_called(now.kind, &now.name) && one.text == now.text;
        self.old.iter().any(is_it)
    }
}

/// Put what is in the shadow schema in the place of what is in the live one. Afterwards the live schema has exactly the tables,
/// views, routines, triggers and events of the shadow, which is empty and to be discarded; on an error the live schema is as it was.
/// Cancelling works up to the commit.
///
/// # Errors
/// [`ErrorKind::Busy`] when a transaction keeps a table in use for longer than some seconds; [`ErrorKind::Failed`] when something that is no table is
/// created or changed in the live schema meanwhile; [`ErrorKind::Refused`] when a table of
/// another schema has a foreign key into the live one, or a right is missing.
pub fn swap(server: &Server, shadow: &Shadow, control: &Control) -> Result<Replaced> {
    let failed = |error: Error| match error.kind() {
        ErrorKind::Cancelled => error,
        _ => error.context(format!(
            "the database {} could not be replaced by its restored state",
            shadow.live
        )),
    };
    let cancel = &control.cancel;
    let warn = |text: &str| control.monitor.warning(text);
    let record = plan(server, shadow, cancel).map_err(failed)?;
    let swap = Swap {
        server,
        record: &record,
        is_recorded: true,
        tenant: &shadow.tenant,
        warn: &warn,
    };
    if let Err(error) = swap.up_to_commit(cancel) {
        return Err(failed(swap.after_undo(error, swap.undo())));
    }
    fault::point("in swapping, committed")?;
    swap.after_commit().map_err(failed)?;
    Ok(Replaced {
        live: record.live,
        schema: record.replaced,
    })
}

/// Everything that is looked at before anything is changed.
fn plan(server: &Server, shadow: &Shadow, cancel: &Cancel) -> Result<Record> {
    let live = &shadow.live;
    require_same_server_run(server, shadow, cancel)?;
    refuse_foreign_keys_from_outside(server, live, cancel)?;
    let charset = default_charset(server, live, cancel)?;
    let mut new = collect(server, &shadow.schema, cancel)?;
    for definition in &mut new {
        if definition.kind == Kind::Event {
            definition.text = awake_event(&definition.text).ok_or_else(|| {
                Error::new(
                    ErrorKind::Failed,
                    format!(
                        "the database server tells the event {} in an unknown way",
                        definition.name
                    ),
                )
            })?;
        }
        // Of the shadow nothing will be left, and a function in a view is told with its schema.
        if definition.kind == Kind::View
            && let Some(text) = unqualified_view(&definition.text, &[live, &shadow.schema])
        {
            definition.text = text;
        }
    }
    let old = match charset {
        Some(_) => collect(server, live, cancel)?,
        None => Vec::new(),
    };
    Ok(Record {
        live: live.clone(),
        shadow: shadow.schema.clone(),
        replaced: shadow.to_be_replaced().schema,
        charset,
        old,
        new,
        left: Vec::new(),
    })
}

/// Such a key would follow the table into the replaced schema and, later, out of existence.
fn refuse_foreign_keys_from_outside(server: &Server, live: &str, cancel: &Cancel) -> Result<()> {
    // A key of what an earlier swap replaced ends with that, or is dropped with the table that it follows.
    let outside = foreign_keys_into(server, live, cancel)?
        .into_iter()
        .find(|key| !is_beside(&key.schema, live, REPLACED_MARK));
    match outside {
        Some(key) => Err(Error::new(
            ErrorKind::Refused,
            format!(
                "the table {}.{} has a foreign key into the database {live}; drop the key first",
                key.schema, key.table
            ),
        )),
        None => Ok(()),
    }
}

/// One swap under way, or found again.
struct Swap<'a> {
    server: &'a Server,
    record: &'a Record,
    /// Whether the record is in the replaced schema, or may be: not where none was found, and this one tells of nothing.
    is_recorded: bool,
    tenant: &'a Identity,
    warn: &'a dyn Fn(&str),
}

impl Swap<'_> {
    fn up_to_commit(&self, cancel: &Cancel) -> Result<()> {
        self.write_record(cancel)?;
        let record = self.record;
        if record.charset.is_none() {
            self.server.query(
                &format!("CREATE DATABASE {};", identifier(&record.live)),
                cancel,
            )?;
        }
        self.wait_for_quiet(cancel)?;
        let tables = tables(self.server, &record.shadow, cancel)?;
        self.when_quiet(cancel, |options| {
            drop_where(
                self.server,
                &record.shadow,
                options,
                |kind, _| kind == Kind::Trigger,
                cancel,
            )?;
            // A view in the way of a table has to go before it, too. A trigger or view that came since makes the commit fail.
            self.require_recorded(cancel)?;
            let which =
                |kind, name: &str| is_in_the_way(kind, name, &tables) && record.has_old(kind, name);
            drop_where(self.server, &record.live, options, which, cancel)
        })?;
        cancel.check()?;
        // Stopping the client would not stop the server.
        self.rename(
            &record.live,
            &record.replaced,
            &record.shadow,
            &record.live,
            (PENDING, COMMITTED),
            &Cancel::new(),
        )
    }

    /// That nothing would be lost which was created or changed in the live schema since it was recorded.
    fn require_recorded(&self, cancel: &Cancel) -> Result<()> {
        let now = collect(self.server, &self.record.live, cancel)?;
        match now.iter().find(|one| !self.record.has_unchanged(one)) {
            None => Ok(()),
            Some(one) => Err(changed_meanwhile(one)),
        }
    }

    /// From the commit on there is no way out but to the end or back.
    fn after_commit(&self) -> Result<()> {
        let latecomers = self.latecomers(|now| match now.kind {
            // It is told otherwise once its tables are gone.
            Kind::View => self.record.has_old(now.kind, &now.name),
            _ => self.record.has_unchanged(now),
        });
        let taken_in = latecomers.and_then(|latecomers| {
            let first = latecomers.first().map(changed_meanwhile);
            Ok((self.take_in(latecomers, Vec::new())?, first))
        });
        let (record, changed) = match taken_in {
            Ok(taken_in) => taken_in,
            Err(error) => {
                let message = "what was created in it meanwhile cannot be looked at";
                let unknown = Error::new(ErrorKind::Failed, message);
                return Err(self.after_undo(error, Err(unknown)));
            }
        };
        let this = Swap {
            record: &record,
            ..*self
        };
        let done = match changed {
            Some(changed) => Err(changed),
            None => this.complete(),
        };
        done.map_err(|error| this.after_undo(error, this.reverse()))
    }

    /// What is in the live schema since the commit, is no table, and is not known. It was there before the commit: a trigger would not have let
    /// that pass, and came later.
    fn latecomers(&self, is_known: impl Fn(&Definition) -> bool) -> Result<Vec<Definition>> {
        let mut found = collect(self.server, &self.record.live, &Cancel::new())?;
        found.retain(|now| now.kind != Kind::Trigger && !is_known(now));
        Ok(found)
    }

    /// What whoever finds the swap committed does not know of: what can be taken down, and what cannot. What is recorded may be the old one or made anew
    /// already, nobody knows.
    fn latecomers_to_one_found(&self) -> Result<(Vec<Definition>, Vec<Named>)> {
        let record = self.record;
        let is_late = |kind, name: &str| {
            kind != Kind::Trigger && !record.has(kind, name) && !record.has_left(kind, name)
        };
        let (mut found, mut unread) =
            collect_what_can_be(self.server, &record.live, &Cancel::new())?;
        found.retain(|one| is_late(one.kind, &one.name));
        unread.retain(|one| is_late(one.kind, &one.name));
        Ok((found, self.leave(unread)))
    }

    /// Their names, for the record; somebody should know that they stay.
    fn leave(&self, unread: Vec<Unread>) -> Vec<Named> {
        let named = unread.into_iter().map(|Unread { kind, name, error }| {
            tracing::warn!("{}", error.chain());
            if !self.record.has_old(kind, &name) {
                (self.warn)(&format!(
                    "the {} {name} of the database {} cannot be read, and stays there whatever becomes of the rest",
                    kind.sql().to_lowercase(),
                    self.record.live
                ));
            }
            (kind, name)
        });
        named.collect()
    }

    /// The record with these in it, also where it is kept.
    fn take_in(&self, latecomers: Vec<Definition>, left: Vec<Named>) -> Result<Record> {
        let mut record = self.record.clone();
        if latecomers.is_empty() && left.is_empty() {
            return Ok(record);
        }
        record.left.extend(left);
        for one in latecomers {
            record
                .old
                .retain(|known| !known.is_called(one.kind, &one.name));
            record.old.push(one);
        }
        record.old.sort_by_key(|one| one.kind);
        self.write_again(&record, COMMITTED)?;
        Ok(record)
    }

    /// The record with what is in the live schema now as its new state: what the customer has created since the swap was completed is not lost where a
    /// reversal fails. What the server does not tell stays where it is, unless that is where a former table has to go.
    fn take_present(&self) -> Result<Record> {
        let cancel = &Cancel::new();
        let mut record = self.record.clone();
        let (present, unread) = collect_what_can_be(self.server, &record.live, cancel)?;
        let returning = tables(self.server, &record.replaced, cancel)?;
        if let Some(one) = unread
            .iter()
            .find(|one| is_in_the_way(one.kind, &one.name, &returning))
        {
            return Err(Error::new(
                ErrorKind::Failed,
                format!(
                    "the {} {} of the database {} is in the way of its former tables, and would be lost, for it cannot be read: drop it by hand, or mend what \
                     keeps it from being read: {}",
                    one.kind.sql().to_lowercase(),
                    one.name,
                    record.live,
                    one.error.chain()
                ),
            ));
        }
        record.new = present;
        // No server creates a view that shows what is gone.
        record
            .new
            .retain(|one| one.kind != Kind::View || !one.columns.is_empty());
        record.left = self.leave(unread);
        self.write_again(&record, COMPLETED)?;
        Ok(record)
    }

    fn write_again(&self, record: &Record, table: &str) -> Result<()> {
        self.server.change(
            &format!(
                "UPDATE {}.{} SET record = {};",
                identifier(&record.replaced),
                identifier(table),
                hex_literal(&in_bytes(record)?)
            ),
            &Cancel::new(),
        )?;
        Ok(())
    }

    /// The record, in the new replaced schema, before anything else.
    fn write_record(&self, cancel: &Cancel) -> Result<()> {
        let record = in_bytes(self.record)?;
        let schema = identifier(&self.record.replaced);
        let like = match &self.record.charset {
            Some((charset, collation)) => format!("CHARACTER SET {charset} COLLATE {collation}"),
            None => String::new(),
        };
        // The table gets its name last: what has the name is whole.
        let (draft, table) = (identifier("~draft"), identifier(PENDING));
        self.server.change(
            &format!(
                "CREATE DATABASE {schema} {like};
                 CREATE TABLE {schema}.{draft} (record LONGBLOB NOT NULL);
                 INSERT INTO {schema}.{draft} VALUES ({});
                 RENAME TABLE {schema}.{draft} TO {schema}.{table};",
                hex_literal(&record)
            ),
            cancel,
        )?;
        Ok(())
    }

    /// With a table in use we would fail later: find out while nothing is changed.
    fn wait_for_quiet(&self, cancel: &Cancel) -> Result<()> {
        let locks: Vec<String> = tables(self.server, &self.record.live, cancel)?
            .iter()
            .map(|table| {
                format!(
                    "{}.{} WRITE",
                    identifier(&self.record.live),
                    identifier(table)
                )
            })
            .collect();
        if locks.is_empty() {
            return Ok(());
        }
        self.when_quiet(cancel, |options| {
            let locked = self.server.change(
                &format!("{options}LOCK TABLES {}; UNLOCK TABLES;", locks.join(", ")),
                cancel,
            );
            match locked {
                // A table that cannot be locked for another reason (its trigger is broken) can still be moved.
                Err(error) if error.code.is_some() && error.code != Some(BUSY) => Ok(()),
                Err(error) => Err(error),
                Ok(_) => Ok(()),
            }
        })
    }

    /// Try a change that fails when a table is in use, a few times; `change` is given what makes it fail rather than hang.
    fn when_quiet(
        &self,
        cancel: &Cancel,
        change: impl Fn(&str) -> Result<(), SqlError>,
    ) -> Result<()> {
        let options = format!("SET lock_wait_timeout = {LOCK_SECONDS};\n");
        let mut tries = 1;
        loop {
            cancel.check()?;
            match change(&options) {
                Err(error) if error.code == Some(BUSY) && tries < LOCK_TRIES => tries += 1,
                result => return Ok(result?),
            }
            thread::sleep(LOCK_PAUSE);
        }
    }

    fn moves(
        &self,
        from: &str,
        to: &str,
        source: &str,
        target: &str,
        mark: (&str, &str),
        cancel: &Cancel,
    ) -> Result<String> {
        let mut moves = Vec::new();
        for (from, to) in [(from, to), (source, target)] {
            for table in tables(self.server, from, cancel)? {
                if !is_record(&table) {
                    let table = identifier(&table);
                    moves.push(format!(
                        "{}.{table} TO {}.{table}",
                        identifier(from),
                        identifier(to)
                    ));
                }
            }
        }
        let schema = identifier(&self.record.replaced);
        moves.push(format!(
            "{schema}.{} TO {schema}.{}",
            identifier(mark.0),
            identifier(mark.1)
        ));
        Ok(moves.join(", "))
    }

    /// Move all tables of `from` to `to` and then all of `source` to `target`, and rename the record, in one statement.
    fn rename(
        &self,
        from: &str,
        to: &str,
        source: &str,
        target: &str,
        mark: (&str, &str),
        cancel: &Cancel,
    ) -> Result<()> {
        let moves = self.moves(from, to, source, target, mark, cancel)?;
        let was_tried = Cell::new(false);
        self.when_quiet(cancel, |options| {
            // Somebody may have changed something while it was waited for.
            if was_tried.replace(true) && mark == (PENDING, COMMITTED) {
                self.require_recorded(cancel)?;
            }
            self.server
                .change(&format!("{options}RENAME TABLE {moves};"), cancel)
                .map(drop)
        })
    }

    /// After the commit: everything in the live schema that is not a table, anew. Can be repeated up to its own end: from then on
    /// what is there may be the customer's.
    fn complete(&self) -> Result<()> {
        let cancel = &Cancel::new();
        let record = self.record;
        let is_recorded = |kind, name: &str| record.has(kind, name) && !record.has_left(kind, name);
        drop_where(self.server, &record.live, "", is_recorded, cancel)?;
        self.open_live(cancel)?;
        let by = As::Tenant(&self.tenant.account, &self.tenant.definer);
        create(
            self.server,
            &record.live,
            &record.new,
            by,
            self.warn,
            cancel,
        )?;
        settle_account(self.server, &record.live)?;
        self.rename_record(COMMITTED, COMPLETED, cancel)
    }

    /// Nothing happens where the record has another name than `from`.
    fn rename_record(&self, from: &str, to: &str, cancel: &Cancel) -> Result<()> {
        let replaced = &self.record.replaced;
        if record_name(self.server, replaced, cancel)?.as_deref() == Some(from) {
            let (schema, from, to) = (identifier(replaced), identifier(from), identifier(to));
            self.server.query(
                &format!("RENAME TABLE {schema}.{from} TO {schema}.{to};"),
                cancel,
            )?;
        }
        Ok(())
    }

    /// The temporary account creates in the live schema, and stays the definer there.
    fn open_live(&self, cancel: &Cancel) -> Result<()> {
        if self.tenant.temporary {
            grant(self.server, self.tenant, &self.record.live, cancel)?;
        }
        Ok(())
    }

    /// Before the commit, or after its reversal: put back what is missing of the live schema, then remove the record.
    fn undo(&self) -> Result<()> {
        let cancel = &Cancel::new();
        let record = self.record;
        if self.is_committed_after_all(cancel)? {
            return self.reverse();
        }
        if !record.left.is_empty() {
            // The tables are back, so nothing can fail any more that would want it.
            let is_in_its_place =
                |kind, name: &str| record.has_left(kind, name) && record.has_old(kind, name);
            drop_where(self.server, &record.live, "", is_in_its_place, cancel)?;
        }
        match &record.charset {
            Some((charset, collation)) => {
                let lost = missing(self.server, &record.live, &record.old, cancel)?;
                if !lost.is_empty() {
                    self.open_live(cancel)?;
                    let by = As::Found(&self.tenant.account, &self.tenant.definer);
                    create(self.server, &record.live, &lost, by, self.warn, cancel)?;
                }
                let default = format!(
                    "ALTER DATABASE {} CHARACTER SET {charset} COLLATE {collation};",
                    identifier(&record.live)
                );
                if default_charset(self.server, &record.live, cancel)?
                    .is_some_and(|now| now != (charset.clone(), collation.clone()))
                {
                    self.server.query(&default, cancel)?;
                }
            }
            None => {
                self.server.query(
                    &format!("DROP DATABASE IF EXISTS {};", identifier(&record.live)),
                    cancel,
                )?;
            }
        }
        remove_schema(self.server, &record.live, &record.replaced, self.warn)
    }

    fn is_committed_after_all(&self, cancel: &Cancel) -> Result<bool> {
        give_up_commit(self.server, &self.record.replaced, cancel)?;
        let name = record_name(self.server, &self.record.replaced, cancel)?;
        if name.is_some() && !self.is_recorded {
            return Err(Error::new(
                ErrorKind::Busy,
                format!(
                    "the server is still at the swap into {}: try again",
                    self.record.replaced
                ),
            ));
        }
        Ok(ReplacedState::of(name.as_deref()) != ReplacedState::Pending)
    }

    /// After the commit: the old tables back in their place, the new ones in the shadow schema, then the undo of what comes before the commit. Can be
    /// repeated: what another try has done is not done again.
    fn reverse(&self) -> Result<()> {
        let Some((record, mark)) = self.begin_reversal()? else {
            return self.undo();
        };
        let this = Swap {
            record: &record,
            ..*self
        };
        match this.move_back(&mark) {
            Ok(()) => this.undo(),
            Err(error) => this.give_up_reversal(&mark, error),
        }
    }

    /// Say that it goes back, and under which name of the record; None where the tables are back already.
    ///
    /// A try whose process died may have left its server about to move the tables. That names the record, so it is waited for, or fails from now on.
    fn begin_reversal(&self) -> Result<Option<(Record, String)>> {
        let Some(from) = record_name(self.server, &self.record.replaced, &Cancel::new())? else {
            return Ok(None);
        };
        if [PENDING, UNDOING].contains(&from.as_str()) {
            return Ok(None);
        }
        let record = match from == COMPLETED {
            true => self.take_present()?,
            false => self.record.clone(),
        };
        let mark = format!("{REVERSING}{:08x}", rand::random::<u32>());
        let is_marked = rename_away(self.server, &record.replaced, &from, &mark, &Cancel::new())?;
        Ok(is_marked.then_some((record, mark)))
    }

    fn move_back(&self, mark: &str) -> Result<()> {
        let cancel = &Cancel::new();
        let record = self.record;
        fault::point("in reversing, marked")?;
        self.server.query(
            &format!(
                "CREATE DATABASE IF NOT EXISTS {};",
                identifier(&record.shadow)
            ),
            cancel,
        )?;
        let is_known = |kind, name: &str| !record.has_left(kind, name);
        self.when_quiet(cancel, |options| {
            drop_where(self.server, &record.live, options, is_known, cancel)
        })?;
        fault::point("in reversing, dropped")?;
        self.rename(
            &record.live,
            &record.shadow,
            &record.replaced,
            &record.live,
            (mark, PENDING),
            cancel,
        )?;
        fault::point("in reversing, moved")
    }

    /// Still the new state: then let it be that wholly.
    fn give_up_reversal(&self, mark: &str, error: Error) -> Result<()> {
        let replaced = &self.record.replaced;
        match rename_away(self.server, replaced, mark, COMMITTED, &Cancel::new()) {
            // The answer was lost, and the tables are back.
            Ok(false) => self.undo(),
            Ok(true) => Err(match self.complete() {
                Ok(()) => error,
                Err(second) => error.context(format!(
                    "and the restored state could not be completed: {}",
                    second.chain()
                )),
            }),
            Err(second) => Err(error.context(format!(
                "and the restored state could not be completed: {}",
                second.chain()
            ))),
        }
    }

    /// What to say when something failed and was, or was not, undone.
    fn after_undo(&self, error: Error, undone: Result<()>) -> Error {
        match undone {
            Ok(()) => error,
            Err(second) => Error::caused(
                ErrorKind::Stuck,
                format!(
                    "the database {} could not be brought back wholly ({}); what it was is kept in the schema {}",
                    self.record.live,
                    second.chain(),
                    self.record.replaced
                ),
                error,
            ),
        }
    }
}

/// Whether these tables cannot be moved to, or from, where this is.
fn is_in_the_way(kind: Kind, name: &str, tables: &[String]) -> bool {
    kind == Kind::Trigger || kind == Kind::View && tables.iter().any(|table| table == name)
}

fn in_bytes(record: &Record) -> Result<Vec<u8>> {
    serde_json::to_vec(record)
        .map_err(|error| Error::caused(ErrorKind::Failed, "the swap cannot be recorded", error))
}

fn changed_meanwhile(what: &Definition) -> Error {
    Error::new(
        ErrorKind::Failed,
        format!(
            "the {} {} was created or changed while the database was being replaced, so that it would be lost; try again when nobody does that",
            what.kind.sql().to_lowercase(),
            what.name
        ),
    )
}

/// Tables and sequences.
fn tables(server: &Server, schema: &str, cancel: &Cancel) -> Result<Vec<String>> {
    let rows = server.query(
        &format!(
            "SELECT HEX(TABLE_NAME) FROM information_schema.TABLES WHERE TABLE_SCHEMA = {} AND TABLE_TYPE <> 'VIEW' ORDER BY TABLE_NAME;",
            literal(schema)
        ),
        cancel,
    )?;
    rows.iter().map(|row| name_from_hex(row.first())).collect()
}

/// The name of the record in a replaced schema, which says how far a swap came.
///
/// What a server is just renaming may be missing from its list of tables, and a client that was killed may have left it at that. So there is none only
/// where there is none once nothing is under way.
fn record_name(server: &Server, replaced: &str, cancel: &Cancel) -> Result<Option<String>> {
    let listed = || -> Result<_> {
        let tables = tables(server, replaced, cancel)?;
        Ok(tables.into_iter().find(|table| is_record(table)))
    };
    match listed()? {
        None if wait_for_statements(server, replaced, cancel)? => listed(),
        name => Ok(name),
    }
}

/// Wait for all that the server does in a schema; false where there is no such schema.
fn wait_for_statements(server: &Server, schema: &str, cancel: &Cancel) -> Result<bool> {
    let Some((charset, collation)) = default_charset(server, schema, cancel)? else {
        return Ok(false);
    };
    // Nothing is changed by it, but nothing else goes on in the schema meanwhile.
    let waited = server.change(
        &format!(
            "SET lock_wait_timeout = {STATEMENT_SECONDS}; ALTER DATABASE {} CHARACTER SET {charset} COLLATE {collation};",
            identifier(schema)
        ),
        cancel,
    );
    match waited {
        // What it was at may have been to drop it.
        Err(_) if default_charset(server, schema, cancel)?.is_none() => Ok(false),
        waited => Ok(waited.map(|_| true)?),
    }
}

/// The swaps of `live` whose replaced state is still there, with how far they came: what a crash, or a restore that was not ended, left.
///
/// # Errors
/// What the server says.
pub fn find_replaced(
    server: &Server,
    live: &str,
    control: &Control,
) -> Result<Vec<(Replaced, ReplacedState)>> {
    let mut found = Vec::new();
    for schema in schemas_beside(server, live, REPLACED_MARK, &control.cancel)? {
        let name = record_name(server, &schema, &control.cancel)?;
        let state = ReplacedState::of(name.as_deref());
        let replaced = Replaced {
            live: live.to_owned(),
            schema,
        };
        found.push((replaced, state));
    }
    Ok(found)
}

/// Bring a swap that a crash interrupted to an end: undo it if it had not come to its commit or was being reversed, complete it if it had, and leave it
/// alone if it was complete. Can be repeated, and for a swap that was never begun. Gives the state that it was found in; that of one that was undone
/// is [`Pending`](ReplacedState::Pending) for ever. Views, routines and events that the swap does not know of stay where one is completed.
///
/// # Errors
/// As [`swap`].
pub fn resume(
    server: &Server,
    replaced: &Replaced,
    account: &ImportAccount,
    control: &Control,
) -> Result<ReplacedState> {
    let name = record_name(server, &replaced.schema, &control.cancel)?;
    let state = ReplacedState::of(name.as_deref());
    if state == ReplacedState::Completed {
        return Ok(state);
    }
    let goes_back = state != ReplacedState::Committed;
    with_record(
        server,
        replaced,
        account,
        goes_back,
        control,
        |swap, state| {
            match state {
                ReplacedState::Pending => swap.undo()?,
                ReplacedState::Committed => swap.complete()?,
                ReplacedState::Reversing => swap.reverse()?,
                ReplacedState::Completed => {}
            }
            Ok(state)
        },
    )
}

/// Reverse a swap: the live schema is again as it was, with its views, routines, triggers and events. What was restored is gone.
///
/// # Errors
/// As [`swap`]; then the restored state stays, whole.
pub fn swap_back(
    server: &Server,
    replaced: &Replaced,
    account: &ImportAccount,
    control: &Control,
) -> Result<()> {
    with_record(server, replaced, account, true, control, |swap, state| {
        match state {
            ReplacedState::Pending => swap.undo()?,
            ReplacedState::Committed | ReplacedState::Completed | ReplacedState::Reversing => {
                swap.reverse()?;
            }
        }
        remove_schema(
            swap.server,
            &swap.record.live,
            &swap.record.shadow,
            swap.warn,
        )
    })
}

/// A client that was killed may have left its server at the commit, or about to begin it. Both name the record: so either that is waited for, or it
/// fails from now on.
fn give_up_commit(server: &Server, replaced: &str, cancel: &Cancel) -> Result<()> {
    let is_pending = tables(server, replaced, cancel)?
        .iter()
        .any(|table| table == PENDING);
    if is_pending {
        rename_away(server, replaced, PENDING, UNDOING, cancel)?;
    }
    Ok(())
}

/// Give the record another name, so that no statement moves tables any more that names it by this one. One that is at it is waited for: then it is made,
/// and this is false.
fn rename_away(
    server: &Server,
    replaced: &str,
    from: &str,
    to: &str,
    cancel: &Cancel,
) -> Result<bool> {
    let (schema, from, to) = (identifier(replaced), identifier(from), identifier(to));
    let renamed = server.change(
        &format!(
            "SET lock_wait_timeout = {STATEMENT_SECONDS}; RENAME TABLE {schema}.{from} TO {schema}.{to};"
        ),
        cancel,
    );
    match renamed {
        Ok(_) => Ok(true),
        Err(error) if error.code == Some(NO_SUCH_TABLE) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn with_record<T>(
    server: &Server,
    replaced: &Replaced,
    account: &ImportAccount,
    goes_back: bool,
    control: &Control,
    act: impl FnOnce(&Swap<'_>, ReplacedState) -> Result<T>,
) -> Result<T> {
    let cancel = &control.cancel;
    let warn = |text: &str| control.monitor.warning(text);
    give_up_commit(server, &replaced.schema, cancel)?;
    let found = find_record(server, &replaced.schema, cancel)?;
    let is_recorded = found.is_some();
    let state = ReplacedState::of(found.as_ref().map(|(name, _)| name.as_str()));
    let record = match found {
        Some((_, record)) => record,
        // It did not come to recording anything, so it changed nothing either.
        None => {
            let (live, schema) = (&replaced.live, &replaced.schema);
            let charset = default_charset(server, live, cancel)?;
            Record {
                live: live.clone(),
                shadow: shadow_name(live, schema),
                replaced: schema.clone(),
                charset,
                old: Vec::new(),
                new: Vec::new(),
                left: Vec::new(),
            }
        }
    };
    let tenant = match open_tenant(server, &replaced.live, account, cancel) {
        // What comes back keeps its definers, and most of it may need none that can log in.
        Err(error) if goes_back && error.kind() == ErrorKind::Refused => {
            warn(&format!(
                "the database {} is brought back without its customer's own account: {}",
                replaced.live,
                error.chain()
            ));
            open_tenant(server, &replaced.live, &ImportAccount::Temporary, cancel)
                .map_err(|_| error)?
        }
        opened => opened?,
    };
    let mut swap = Swap {
        server,
        record: &record,
        is_recorded,
        tenant: &tenant,
        warn: &warn,
    };
    let taken_in;
    // Who completes it for want of a journal may do so long after: what he does not know of may be the customer's work of weeks, and stays.
    if state == ReplacedState::Committed && goes_back {
        let (latecomers, left) = swap.latecomers_to_one_found()?;
        taken_in = swap.take_in(latecomers, left)?;
        swap.record = &taken_in;
    }
    let result = act(&swap, state);
    let settled = settle_account(server, &replaced.live);
    result.and_then(|value| settled.map(|()| value))
}

/// The record, and its name.
fn find_record(
    server: &Server,
    replaced: &str,
    cancel: &Cancel,
) -> Result<Option<(String, Record)>> {
    for _ in 0..LOCK_TRIES {
        let Some(name) = record_name(server, replaced, cancel)? else {
            return Ok(None);
        };
        if let Some(record) = read_record(server, replaced, &name, cancel)? {
            return Ok(Some((name, record)));
        }
        // It has another name by now where the server was still at giving it that.
        thread::sleep(LOCK_PAUSE);
    }
    Err(Error::new(
        ErrorKind::Damaged,
        format!("the record of the swap in {replaced} is listed but is not there"),
    ))
}

/// None where no record has this name.
fn read_record(
    server: &Server,
    schema: &str,
    table: &str,
    cancel: &Cancel,
) -> Result<Option<Record>> {
    let damaged = |message: &str| {
        Error::new(
            ErrorKind::Damaged,
            format!("the record of the swap in {schema} {message}"),
        )
    };
    let read = server.change(
        &format!(
            "SELECT HEX(record) FROM {}.{};",
            identifier(schema),
            identifier(table)
        ),
        cancel,
    );
    let rows = match read {
        Err(error) if error.code == Some(NO_SUCH_TABLE) => return Ok(None),
        rows => rows?,
    };
    let json = from_hex(rows.first().and_then(|row| row.first()))?;
    let record = serde_json::from_slice(&json).map_err(|_| damaged("cannot be read"))?;
    Ok(Some(record))
}

/// End a swap for good: what it replaced is deleted. There is no way back after it. Safe to repeat.
///
/// # Errors
/// [`ErrorKind::InvalidInput`] when the swap did not come to its end, for then its record is needed; what the server says.
pub fn drop_replaced(server: &Server, replaced: &Replaced, control: &Control) -> Result<()> {
    let Replaced { live, schema } = replaced;
    let known = schemas_beside(server, live, REPLACED_MARK, &control.cancel)?;
    if !is_beside(schema, live, REPLACED_MARK) || !known.contains(schema) {
        return Ok(());
    }
    check_completed(server, schema, &control.cancel)?;
    remove_schema(server, live, schema, &|text| control.monitor.warning(text))
}

fn check_completed(server: &Server, schema: &str, cancel: &Cancel) -> Result<()> {
    match ReplacedState::of(record_name(server, schema, cancel)?.as_deref()) {
        ReplacedState::Completed => Ok(()),
        ReplacedState::Pending | ReplacedState::Committed | ReplacedState::Reversing => {
            Err(not_completed(schema))
        }
    }
}

fn not_completed(schema: &str) -> Error {
    Error::new(
        ErrorKind::InvalidInput,
        format!(
            "the swap that made {schema} was interrupted; it has to be completed or undone first"
        ),
    )
}

/// The record of a swap that came to its end.
pub(super) fn completed_record(
    server: &Server,
    replaced: &Replaced,
    cancel: &Cancel,
) -> Result<Record> {
    let Replaced { live, schema } = replaced;
    let known = schemas_beside(server, live, REPLACED_MARK, cancel)?;
    if !known.contains(schema) {
        return Err(Error::new(
            ErrorKind::NotFound,
            format!("the schema {schema}, which a swap made, is no longer there"),
        ));
    }
    check_completed(server, schema, cancel)?;
    read_record(server, schema, COMPLETED, cancel)?.ok_or_else(|| not_completed(schema))
}

impl fmt::Display for Replaced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.schema)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use secrecy::SecretString;
    use xtask::mariadb::MariaDb;

    use super::*;
    use crate::database::{
        Endpoint, discard, dump, dump_replaced, import, prepare_shadow, remove_leftovers,
    };

    const LIMIT: Duration = Duration::from_secs(120);
    const LIVE: &str = "customer_7";

    struct Bed {
        mariadb: MariaDb,
        server: Server,
        account: ImportAccount,
        control: Control,
    }

    impl Bed {
        /// A customer with a backup and a schema that has changed since.
        fn new() -> (Self, Vec<u8>) {
            let mariadb = MariaDb::start().unwrap();
            let password = SecretString::from(mariadb.root_password());
            let server = Server::new(
                Endpoint::Socket(mariadb.socket()),
                Vec::new(),
                "root",
                password,
            );
            let definer = "DEFINER = customer_7@'%'";
            mariadb
                .sql(&format!(
                    "CREATE DATABASE customer_7; CREATE USER customer_7@'%' IDENTIFIED BY 'x'; GRANT ALL ON `customer\\_7`.* TO customer_7@'%';
                     USE customer_7; CREATE TABLE a (i INT); CREATE TABLE b (i INT); INSERT INTO a VALUES (1);
                     CREATE {definer} TRIGGER ta BEFORE INSERT ON a FOR EACH ROW SET @a = 1 /* note */;
                     CREATE {definer} VIEW va AS SELECT * FROM a; CREATE {definer} PROCEDURE p() SELECT 1;
                     CREATE {definer} EVENT e ON SCHEDULE EVERY 1 DAY STARTS '2035-01-01 00:00:00' DO SET @a = 1;"
                ))
                .unwrap();
            let bed = Self {
                mariadb,
                server,
                account: ImportAccount::Customer {
                    user: LIVE.to_owned(),
                    password: SecretString::from("x"),
                },
                control: Control::default(),
            };
            let backup = bed.dump();
            bed.mariadb
                .sql(&format!(
                    "USE customer_7; DROP TABLE b; DROP VIEW va; CREATE {definer} VIEW b AS SELECT 1 AS x; INSERT INTO a VALUES (2);
                     CREATE {definer} TRIGGER tb AFTER INSERT ON a FOR EACH ROW SET @b = 1; CREATE {definer} PROCEDURE p2() SELECT 2;"
                ))
                .unwrap();
            (bed, backup)
        }

        fn dump(&self) -> Vec<u8> {
            let mut dump = dump(&self.server, LIVE, LIMIT, &self.control).unwrap();
            let mut bytes = Vec::new();
            dump.take_reader().unwrap().read_to_end(&mut bytes).unwrap();
            dump.finish().unwrap();
            bytes
        }

        fn staged(&self, backup: &[u8]) -> Shadow {
            let mut shadow =
                prepare_shadow(&self.server, LIVE, &self.account, &self.control).unwrap();
            let reader = Box::new(std::io::Cursor::new(backup.to_vec()));
            import(&self.server, &mut shadow, reader, LIMIT, &self.control).unwrap();
            shadow
        }

        /// Run a swap up to where `crash` leaves it, and find it again as one would after a crash.
        fn interrupted(
            &self,
            backup: &[u8],
            crash: impl Fn(&Swap<'_>),
        ) -> (Replaced, ReplacedState) {
            let shadow = self.staged(backup);
            let record = plan(&self.server, &shadow, &self.control.cancel).unwrap();
            let swap = Swap {
                server: &self.server,
                record: &record,
                is_recorded: true,
                tenant: &shadow.tenant,
                warn: &|text| panic!("{text}"),
            };
            crash(&swap);
            let mut found = find_replaced(&self.server, LIVE, &self.control).unwrap();
            assert_eq!(found.len(), 1);
            assert_eq!(found[0].0, shadow.to_be_replaced());
            found.remove(0)
        }

        fn resume(&self, replaced: &Replaced) {
            resume(&self.server, replaced, &self.account, &self.control).unwrap();
        }

        fn resume_or_reverse(&self, replaced: &Replaced) {
            swap_back(&self.server, replaced, &self.account, &self.control).unwrap();
        }

        fn state(&self, replaced: &Replaced) -> ReplacedState {
            let found = find_replaced(&self.server, LIVE, &self.control).unwrap();
            let (_, state) = found.iter().find(|(one, _)| one == replaced).unwrap();
            *state
        }

        fn assert_live(&self, expected: &[u8]) {
            assert_eq!(
                String::from_utf8_lossy(&self.dump()),
                String::from_utf8_lossy(expected)
            );
        }

        fn assert_nothing_left(&self) {
            remove_leftovers(&self.server, LIVE, &self.control).unwrap();
            assert_eq!(
                self.mariadb.sql("SHOW DATABASES LIKE 'customer%'").unwrap(),
                "customer_7\n"
            );
            assert_eq!(
                self.mariadb.sql("SELECT COUNT(*) FROM mysql.db").unwrap(),
                "1\n"
            );
            let temporary = "SELECT User FROM mysql.global_priv WHERE User LIKE 'shb%'";
            assert_eq!(self.mariadb.sql(temporary).unwrap(), "");
        }
    }

    #[test]
    fn a_swap_that_was_interrupted_before_its_commit_is_undone() {
        let (bed, backup) = Bed::new();
        let before = bed.dump();
        let cancel = Cancel::new();
        let crashes: [&dyn Fn(&Swap<'_>); 5] = [
            // The schema is there, its record is not.
            &|swap| {
                drop(
                    swap.server
                        .query(
                            &format!("CREATE DATABASE {};", identifier(&swap.record.replaced)),
                            &cancel,
                        )
                        .unwrap(),
                )
            },
            &|swap| swap.write_record(&cancel).unwrap(),
            // Half of what has to go is gone.
            &|swap| {
                swap.write_record(&cancel).unwrap();
                drop_where(
                    swap.server,
                    LIVE,
                    "",
                    |kind, name| kind == Kind::Trigger && name == "ta",
                    &cancel,
                )
                .unwrap();
            },
            &|swap| {
                swap.write_record(&cancel).unwrap();
                drop_where(
                    swap.server,
                    LIVE,
                    "",
                    |kind, name| kind == Kind::Trigger || name == "b",
                    &cancel,
                )
                .unwrap();
            },
            // A reversal that had moved the tables back and not put back the rest.
            &|swap| {
                swap.up_to_commit(&cancel).unwrap();
                swap.complete().unwrap();
                let (_, mark) = swap.begin_reversal().unwrap().unwrap();
                swap.move_back(&mark).unwrap();
            },
        ];
        for crash in crashes {
            let (replaced, state) = bed.interrupted(&backup, crash);
            assert_eq!(state, ReplacedState::Pending);
            let dropped = drop_replaced(&bed.server, &replaced, &bed.control);
            assert_eq!(dropped.unwrap_err().kind(), ErrorKind::InvalidInput);
            let dumped = dump_replaced(&bed.server, &replaced, LIMIT, &bed.control);
            assert_eq!(dumped.unwrap_err().kind(), ErrorKind::InvalidInput);
            bed.resume(&replaced);
            bed.assert_live(&before);
            bed.assert_nothing_left();
        }
    }

    #[test]
    fn a_swap_that_was_interrupted_after_its_commit_is_completed_or_reversed() {
        let (bed, backup) = Bed::new();
        let before = bed.dump();
        let cancel = Cancel::new();
        let crashes: [&dyn Fn(&Swap<'_>); 3] = [
            &|swap| swap.up_to_commit(&cancel).unwrap(),
            &|swap| {
                swap.up_to_commit(&cancel).unwrap();
                drop_where(swap.server, LIVE, "", |kind, _| kind == Kind::View, &cancel).unwrap();
            },
            // All is created, and what says so is not yet written.
            &|swap| {
                swap.up_to_commit(&cancel).unwrap();
                swap.complete().unwrap();
                swap.rename_record(COMPLETED, COMMITTED, &cancel).unwrap();
            },
        ];
        for crash in crashes {
            let (replaced, state) = bed.interrupted(&backup, crash);
            assert_eq!(state, ReplacedState::Committed);
            let dropped = drop_replaced(&bed.server, &replaced, &bed.control);
            assert_eq!(dropped.unwrap_err().kind(), ErrorKind::InvalidInput);
            let dumped = dump_replaced(&bed.server, &replaced, LIMIT, &bed.control);
            assert_eq!(dumped.unwrap_err().kind(), ErrorKind::InvalidInput);
            bed.resume(&replaced);
            bed.assert_live(&backup);
            assert_eq!(bed.state(&replaced), ReplacedState::Completed);
            bed.resume(&replaced);
            bed.assert_live(&backup);
            swap_back(&bed.server, &replaced, &bed.account, &bed.control).unwrap();
            bed.assert_live(&before);
            bed.assert_nothing_left();
        }
    }

    #[test]
    fn a_reversal_that_dies_and_is_repeated_brings_all_of_the_old_state_back_and_nothing_of_the_new_one()
     {
        let (bed, backup) = Bed::new();
        let cancel = Cancel::new();
        let of_the_old =
            "USE customer_7; CREATE DEFINER = customer_7@'%' VIEW late AS SELECT 1 AS x;
             CREATE DEFINER = customer_7@'%' PROCEDURE late() SELECT 1;";
        let of_the_new = |name: &str| {
            let daily = "ON SCHEDULE EVERY 1 DAY STARTS '2035-01-01 00:00:00' DO SET @a = 1";
            format!(
                "USE customer_7; CREATE TABLE t_{name} (i INT); CREATE VIEW v_{name} AS SELECT * FROM a; CREATE FUNCTION f_{name}() RETURNS INT RETURN 1;
                 CREATE TRIGGER r_{name} BEFORE DELETE ON a FOR EACH ROW SET @a = 1; CREATE EVENT e_{name} {daily};"
            )
        };
        let before = bed.dump();
        bed.mariadb.sql(of_the_old).unwrap();
        let with_late = bed.dump();
        bed.mariadb
            .sql("USE customer_7; DROP VIEW late; DROP PROCEDURE late;")
            .unwrap();
        let drop_all = |swap: &Swap<'_>| {
            drop_where(swap.server, LIVE, "", |_, _| true, &cancel).unwrap();
        };
        // Marked, and half of it, and all but the tables done.
        let deaths: [&dyn Fn(&Swap<'_>); 3] = [
            &|_| {},
            &|swap| {
                drop_where(swap.server, LIVE, "", |kind, _| kind == Kind::View, &cancel).unwrap();
            },
            &drop_all,
        ];
        for (death, by_resuming) in deaths.into_iter().zip([false, true, false]) {
            for is_completed in [true, false] {
                let (replaced, state) = bed.interrupted(&backup, |swap| {
                    swap.up_to_commit(&cancel).unwrap();
                    match is_completed {
                        true => swap.complete().unwrap(),
                        false => drop(bed.mariadb.sql(of_the_old).unwrap()),
                    }
                });
                let expected = match is_completed {
                    true => &before,
                    false => &with_late,
                };
                if is_completed {
                    assert_eq!(state, ReplacedState::Completed);
                    bed.assert_live(&backup);
                    bed.mariadb.sql(&of_the_new("since")).unwrap();
                } else {
                    assert_eq!(state, ReplacedState::Committed);
                }
                with_record(
                    &bed.server,
                    &replaced,
                    &bed.account,
                    true,
                    &bed.control,
                    |swap, _| {
                        swap.begin_reversal()?.unwrap();
                        death(swap);
                        Ok(())
                    },
                )
                .unwrap();
                assert_eq!(bed.state(&replaced), ReplacedState::Reversing);
                let dropped = drop_replaced(&bed.server, &replaced, &bed.control);
                assert_eq!(dropped.unwrap_err().kind(), ErrorKind::InvalidInput);
                // The restored site goes on until it is closed again.
                bed.mariadb.sql(&of_the_new("later")).unwrap();
                match by_resuming {
                    true => bed.resume(&replaced),
                    false => bed.resume_or_reverse(&replaced),
                }
                bed.assert_live(expected);
                bed.assert_nothing_left();
                // As it was when it began.
                if !is_completed {
                    bed.mariadb
                        .sql("USE customer_7; DROP VIEW late; DROP PROCEDURE late;")
                        .unwrap();
                }
            }
        }
    }

    #[test]
    fn a_reversal_that_fails_leaves_all_of_the_new_state_also_what_came_since() {
        let (bed, backup) = Bed::new();
        let before = bed.dump();
        let shadow = bed.staged(&backup);
        let replaced = swap(&bed.server, &shadow, &bed.control).unwrap();
        bed.mariadb
            .sql(
                "USE customer_7; CREATE DEFINER = customer_7@'%' VIEW since AS SELECT 1 AS x;
                 CREATE DEFINER = customer_7@'%' PROCEDURE since() SELECT 1; DROP VIEW va;
                 CREATE DEFINER = customer_7@'%' TRIGGER since BEFORE DELETE ON a FOR EACH ROW SET @a = 1;",
            )
            .unwrap();
        let changed = bed.dump();
        // In the way of the restored table.
        let in_the_way = format!("{}.a", identifier(shadow.schema()));
        bed.mariadb
            .sql(&format!(
                "CREATE DATABASE IF NOT EXISTS {}; CREATE TABLE {in_the_way} (i INT)",
                identifier(shadow.schema())
            ))
            .unwrap();
        swap_back(&bed.server, &replaced, &bed.account, &bed.control).unwrap_err();
        bed.assert_live(&changed);
        assert_eq!(bed.state(&replaced), ReplacedState::Completed);
        bed.mariadb
            .sql(&format!("DROP TABLE {in_the_way}"))
            .unwrap();
        swap_back(&bed.server, &replaced, &bed.account, &bed.control).unwrap();
        bed.assert_live(&before);
        bed.assert_nothing_left();
    }

    /// Two views that show each other, in place of a table: no server tells what they are.
    fn circle(one: &str, other: &str) -> String {
        format!(
            "USE customer_7; DROP TABLE IF EXISTS {one}; CREATE TABLE {one} (i INT); CREATE VIEW {other} AS SELECT * FROM {one};
             CREATE VIEW turning AS SELECT * FROM {other}; DROP TABLE {one}; RENAME TABLE turning TO {one};"
        )
    }

    #[test]
    fn what_cannot_be_read_bars_no_way_back_and_is_not_lost_where_that_fails() {
        let (bed, backup) = Bed::new();
        let before = bed.dump();
        let has_views = |expected: &str| {
            let views = "SELECT TABLE_NAME FROM information_schema.TABLES WHERE TABLE_SCHEMA = 'customer_7' AND TABLE_TYPE = 'VIEW' ORDER BY 1";
            assert_eq!(bed.mariadb.sql(views).unwrap(), expected);
        };
        for dies in [false, true] {
            let shadow = bed.staged(&backup);
            let replaced = swap(&bed.server, &shadow, &bed.control).unwrap();
            // One of them has the name of a view that comes back.
            bed.mariadb.sql(&circle("b", "around")).unwrap();
            let since =
                "USE customer_7; CREATE DEFINER = customer_7@'%' PROCEDURE since() SELECT 1;";
            bed.mariadb.sql(since).unwrap();
            let in_the_way = format!("{}.a", identifier(shadow.schema()));
            bed.mariadb
                .sql(&format!(
                    "CREATE DATABASE IF NOT EXISTS {}; CREATE TABLE {in_the_way} (i INT)",
                    identifier(shadow.schema())
                ))
                .unwrap();
            swap_back(&bed.server, &replaced, &bed.account, &bed.control).unwrap_err();
            assert_eq!(bed.state(&replaced), ReplacedState::Completed);
            has_views("around\nb\nva\n");
            bed.mariadb
                .sql(&format!("CALL customer_7.since(); DROP TABLE {in_the_way}"))
                .unwrap();
            if dies {
                // The tables are back, and nothing else is.
                let account = &bed.account;
                with_record(
                    &bed.server,
                    &replaced,
                    account,
                    true,
                    &bed.control,
                    |swap, _| {
                        let (record, mark) = swap.begin_reversal()?.unwrap();
                        let this = Swap {
                            record: &record,
                            ..*swap
                        };
                        this.move_back(&mark)
                    },
                )
                .unwrap();
                has_views("around\nb\n");
                assert_eq!(bed.state(&replaced), ReplacedState::Pending);
            }
            swap_back(&bed.server, &replaced, &bed.account, &bed.control).unwrap();
            has_views("around\nb\n");
            bed.mariadb.sql("DROP VIEW customer_7.around").unwrap();
            bed.assert_live(&before);
            bed.assert_nothing_left();
        }
    }

    #[test]
    fn an_account_of_the_customer_that_cannot_log_in_bars_no_way_back() {
        let (bed, backup) = Bed::new();
        let before = bed.dump();
        let nobody = |password: &str| ImportAccount::Customer {
            user: LIVE.to_owned(),
            password: SecretString::from(password),
        };
        let expired = "SET GLOBAL disconnect_on_expired_password = OFF; ALTER USER customer_7@'%' PASSWORD EXPIRE";
        for (barring, password) in [
            ("DO 0", "wrong"),
            ("ALTER USER customer_7@'%' ACCOUNT LOCK", "x"),
            (expired, "x"),
        ] {
            let shadow = bed.staged(&backup);
            let replaced = swap(&bed.server, &shadow, &bed.control).unwrap();
            bed.mariadb.sql(barring).unwrap();
            swap_back(&bed.server, &replaced, &nobody(password), &bed.control).unwrap();
            bed.assert_live(&before);
            bed.assert_nothing_left();
            bed.mariadb
                .sql("ALTER USER customer_7@'%' IDENTIFIED BY 'x' ACCOUNT UNLOCK")
                .unwrap();
        }
    }

    #[test]
    fn what_cannot_be_read_and_is_in_the_way_of_a_table_stays_with_all_the_rest() {
        let (bed, backup) = Bed::new();
        let shadow = bed.staged(&backup);
        let replaced = swap(&bed.server, &shadow, &bed.control).unwrap();
        bed.mariadb.sql(&circle("a", "around")).unwrap();
        let tables = || bed.mariadb.sql("SHOW FULL TABLES FROM customer_7").unwrap();
        let present = tables();
        let error = swap_back(&bed.server, &replaced, &bed.account, &bed.control).unwrap_err();
        assert!(error.to_string().contains("the view a"), "{error}");
        assert_eq!(tables(), present);
        assert_eq!(bed.state(&replaced), ReplacedState::Completed);
        bed.mariadb.sql("DROP VIEW customer_7.a").unwrap();
        swap_back(&bed.server, &replaced, &bed.account, &bed.control).unwrap();
    }

    #[test]
    fn what_came_before_a_commit_and_cannot_be_read_stays_whichever_way_it_goes() {
        let (bed, backup) = Bed::new();
        let before = bed.dump();
        for goes_back in [true, false] {
            let (replaced, state) = bed.interrupted(&backup, |swap| {
                swap.up_to_commit(&Cancel::new()).unwrap();
                bed.mariadb.sql(&circle("late", "around")).unwrap();
            });
            assert_eq!(state, ReplacedState::Committed);
            match goes_back {
                true => bed.resume_or_reverse(&replaced),
                false => bed.resume(&replaced),
            }
            bed.mariadb
                .sql("DROP VIEW customer_7.late; DROP VIEW customer_7.around;")
                .unwrap();
            bed.assert_live(if goes_back { &before } else { &backup });
        }
    }

    #[test]
    fn a_move_back_that_the_server_is_still_at_is_waited_for_before_it_is_repeated() {
        let (bed, backup) = Bed::new();
        let before = bed.dump();
        let cancel = Cancel::new();
        // It comes to the record last, or holds others when it comes to it; and more than once, for it may be at any point when it is met.
        for holds_record in [false, true].repeat(3) {
            let begun = std::cell::RefCell::new((String::new(), String::new()));
            let (replaced, state) = bed.interrupted(&backup, |swap| {
                swap.up_to_commit(&cancel).unwrap();
                swap.complete().unwrap();
                let (_, mark) = swap.begin_reversal().unwrap().unwrap();
                drop_where(swap.server, LIVE, "", |_, _| true, &cancel).unwrap();
                let Record {
                    shadow, replaced, ..
                } = swap.record;
                let moves = swap
                    .moves(LIVE, shadow, replaced, LIVE, (&mark, PENDING), &cancel)
                    .unwrap();
                *begun.borrow_mut() = (mark, moves);
            });
            assert_eq!(state, ReplacedState::Reversing);
            let (mark, moves) = begun.into_inner();
            let held = match holds_record {
                true => format!("{}.{}", replaced.schema(), identifier(&mark)),
                false => format!("{LIVE}.a"),
            };
            let lock = bed.mariadb.lock_table(&held).unwrap();
            let statement = format!("RENAME TABLE {}", moves);
            thread::scope(|scope| {
                let orphan = scope.spawn(|| bed.mariadb.sql(&statement));
                while bed.mariadb.waiting_for_table().unwrap().is_empty() {
                    thread::yield_now();
                }
                let reversed = scope.spawn(|| bed.resume_or_reverse(&replaced));
                drop(lock);
                // It was made, or it came too late.
                drop(orphan.join().unwrap());
                reversed.join().unwrap();
            });
            bed.assert_live(&before);
            bed.assert_nothing_left();
        }
    }

    #[test]
    fn a_swap_that_was_not_begun_can_be_resumed_by_its_name_and_does_nothing() {
        let (bed, backup) = Bed::new();
        let before = bed.dump();
        let shadow = bed.staged(&backup);
        let journal = serde_json::to_string(&shadow.to_be_replaced()).unwrap();
        let replaced: Replaced = serde_json::from_str(&journal).unwrap();
        for _ in 0..2 {
            let state = resume(&bed.server, &replaced, &bed.account, &bed.control).unwrap();
            assert_eq!(state, ReplacedState::Pending);
            bed.assert_live(&before);
        }
        drop_replaced(&bed.server, &replaced, &bed.control).unwrap();
        // It was only staged, and still can be swapped in.
        assert_eq!(swap(&bed.server, &shadow, &bed.control).unwrap(), replaced);
        bed.assert_live(&backup);
        let replaced: Replaced = serde_json::from_str(&journal).unwrap();
        swap_back(&bed.server, &replaced, &bed.account, &bed.control).unwrap();
        bed.assert_live(&before);
        bed.assert_nothing_left();
    }

    #[test]
    fn a_name_from_a_file_that_no_swap_would_make_is_refused() {
        for schema in ["mysql", "customer_7", "customer_77__replaced_00c0ffee"] {
            let file = format!(r#"{{"live": "customer_7", "schema": "{schema}"}}"#);
            serde_json::from_str::<Replaced>(&file).unwrap_err();
        }
    }

    #[test]
    fn a_commit_that_the_server_is_still_at_is_waited_for_before_it_is_undone() {
        let (bed, backup) = Bed::new();
        let before = bed.dump();
        let cancel = Cancel::new();
        // A table that is not moved first, so that the statement holds others when it comes to it.
        for held in ["a", "b"] {
            let moves = std::cell::RefCell::new(String::new());
            let (replaced, state) = bed.interrupted(&backup, |swap| {
                swap.write_record(&cancel).unwrap();
                drop_where(swap.server, LIVE, "", |_, _| true, &cancel).unwrap();
                let Record {
                    shadow, replaced, ..
                } = swap.record;
                drop_where(
                    swap.server,
                    shadow,
                    "",
                    |kind, _| kind == Kind::Trigger,
                    &cancel,
                )
                .unwrap();
                let mark = (PENDING, COMMITTED);
                *moves.borrow_mut() = swap
                    .moves(LIVE, replaced, shadow, LIVE, mark, &cancel)
                    .unwrap();
            });
            assert_eq!(state, ReplacedState::Pending);
            let schema = if held == "a" { LIVE } else { replaced.schema() };
            let table = if held == "a" { "a" } else { PENDING };
            let lock = bed
                .mariadb
                .lock_table(&format!("{schema}.`{table}`"))
                .unwrap();
            let statement = format!("RENAME TABLE {}", moves.into_inner());
            thread::scope(|scope| {
                let orphan = scope.spawn(|| bed.mariadb.sql(&statement));
                while bed.mariadb.waiting_for_table().unwrap().is_empty() {
                    thread::yield_now();
                }
                let undone = scope.spawn(|| bed.resume_or_reverse(&replaced));
                drop(lock);
                // It was made, or it came too late.
                drop(orphan.join().unwrap());
                undone.join().unwrap();
            });
            bed.assert_live(&before);
            bed.assert_nothing_left();
        }
    }

    #[test]
    fn what_was_added_since_a_swap_was_completed_is_not_dropped_by_resuming_it() {
        let (bed, backup) = Bed::new();
        let before = bed.dump();
        for put_back in [true, false] {
            let shadow = bed.staged(&backup);
            let replaced = swap(&bed.server, &shadow, &bed.control).unwrap();
            assert_eq!(bed.state(&replaced), ReplacedState::Completed);
            bed.mariadb
                .sql(
                    "USE customer_7; CREATE VIEW since AS SELECT 1 AS x; CREATE PROCEDURE since() SELECT 1;
                     CREATE TRIGGER since BEFORE DELETE ON a FOR EACH ROW SET @a = 1; DROP VIEW va;
                     CREATE EVENT since ON SCHEDULE EVERY 1 DAY STARTS '2035-01-01 00:00:00' DO SET @a = 1;",
                )
                .unwrap();
            let changed = bed.dump();
            // Nothing is done, so nobody's password is needed.
            let nobody = ImportAccount::Customer {
                user: LIVE.to_owned(),
                password: SecretString::from("wrong"),
            };
            let state = resume(&bed.server, &replaced, &nobody, &bed.control).unwrap();
            assert_eq!(state, ReplacedState::Completed);
            bed.assert_live(&changed);
            if put_back {
                swap_back(&bed.server, &replaced, &bed.account, &bed.control).unwrap();
                bed.assert_live(&before);
            } else {
                drop_replaced(&bed.server, &replaced, &bed.control).unwrap();
                bed.assert_live(&changed);
            }
            bed.assert_nothing_left();
        }
    }

    /// Statements that create or change something which is no table, each with the way back from it.
    fn changes(now: u32, before: u32) -> [[String; 2]; 7] {
        let create = "CREATE OR REPLACE DEFINER = customer_7@'%'";
        let created = |what: &str, rest: &str| {
            [
                format!("{create} {what} late_{now} {rest}"),
                format!("DROP {what} late_{now}"),
            ]
        };
        let changed = |what: &str| [now, before].map(|number| format!("{create} {what} {number}"));
        // Triggers of one table and one time would be in another order.
        let time = if before == 1 { "BEFORE" } else { "AFTER" };
        let daily = "ON SCHEDULE EVERY 1 DAY STARTS '2035-01-01 00:00:00' DO SET @a = 1";
        [
            created("VIEW", "AS SELECT * FROM a"),
            created("PROCEDURE", "() SELECT 1"),
            created("EVENT", daily),
            created(
                "TRIGGER",
                &format!("{time} DELETE ON a FOR EACH ROW SET @a = 1"),
            ),
            changed("PROCEDURE p() SELECT"),
            changed("VIEW b AS SELECT 1 AS x,"),
            changed("TRIGGER tb AFTER INSERT ON a FOR EACH ROW SET @b ="),
        ]
    }

    #[test]
    fn what_is_created_or_changed_during_a_swap_makes_it_fail_and_is_not_lost() {
        let (bed, backup) = Bed::new();
        let cancel = Cancel::new();
        let sql = |text: &str| bed.mariadb.sql(&format!("USE customer_7; {text}")).unwrap();
        sql("CREATE OR REPLACE DEFINER = customer_7@'%' VIEW b AS SELECT 1 AS x, 1");
        let mut at_first = bed.dump();
        // Just before it is looked for, and just after that.
        for (before, now, is_after) in [(1, 10, false), (10, 20, true)] {
            for [change, back] in changes(now, before) {
                sql(&change);
                let expected = bed.dump();
                assert_ne!(expected, at_first, "{change}");
                sql(&back);
                let shadow = bed.staged(&backup);
                let record = plan(&bed.server, &shadow, &cancel).unwrap();
                let swap = Swap {
                    server: &bed.server,
                    record: &record,
                    is_recorded: true,
                    tenant: &shadow.tenant,
                    warn: &|text| panic!("{text}"),
                };
                if is_after {
                    swap.write_record(&cancel).unwrap();
                    let drop = |schema: &str, which: fn(Kind, &str) -> bool| {
                        drop_where(&bed.server, schema, "", which, &cancel).unwrap();
                    };
                    drop(&record.shadow, |kind, _| kind == Kind::Trigger);
                    drop(LIVE, |kind, name| kind == Kind::Trigger || name == "b");
                    sql(&change);
                    let (shadow, replaced) = (&record.shadow, &record.replaced);
                    let mark = (PENDING, COMMITTED);
                    match swap.rename(LIVE, replaced, shadow, LIVE, mark, &cancel) {
                        Ok(()) => {
                            let error = swap.after_commit().unwrap_err();
                            assert_eq!(error.kind(), ErrorKind::Failed, "{change}: {error:?}");
                        }
                        Err(_) => swap.undo().unwrap(),
                    }
                } else {
                    sql(&change);
                    let error = swap.up_to_commit(&cancel).unwrap_err();
                    assert_eq!(error.kind(), ErrorKind::Failed, "{change}: {error:?}");
                    swap.undo().unwrap();
                }
                bed.assert_live(&expected);
                bed.assert_nothing_left();
                at_first = expected;
            }
        }
        let shadow = bed.staged(&backup);
        let replaced = swap(&bed.server, &shadow, &bed.control).unwrap();
        bed.assert_live(&backup);
        drop_replaced(&bed.server, &replaced, &bed.control).unwrap();
        bed.assert_nothing_left();
    }

    #[test]
    fn what_was_created_just_before_a_commit_after_which_all_died_goes_back_with_the_rest_and_is_never_dropped()
     {
        let (bed, backup) = Bed::new();
        let cancel = Cancel::new();
        let [[view, _], [procedure, _], [event, _], ..] = changes(10, 1);
        let late = format!("USE customer_7; {view}; {procedure}; {event};");
        let drop_late =
            "USE customer_7; DROP VIEW late_10; DROP PROCEDURE late_10; DROP EVENT late_10;";
        bed.mariadb.sql(&late).unwrap();
        let expected = bed.dump();
        for goes_back in [true, false] {
            bed.mariadb.sql(drop_late).unwrap();
            let (replaced, state) = bed.interrupted(&backup, |swap| {
                swap.up_to_commit(&cancel).unwrap();
                bed.mariadb.sql(&late).unwrap();
            });
            assert_eq!(state, ReplacedState::Committed);
            if goes_back {
                bed.resume_or_reverse(&replaced);
                bed.assert_live(&expected);
                bed.assert_nothing_left();
            } else {
                bed.resume(&replaced);
                // It is all there: what is not cannot be dropped.
                bed.mariadb.sql(drop_late).unwrap();
                bed.assert_live(&backup);
            }
        }
    }

    #[test]
    fn a_server_that_dies_during_a_swap_has_either_state_and_never_both() {
        let (mut bed, backup) = Bed::new();
        let before = bed.dump();
        for milliseconds in [0, 30, 60, 90, 120, 180, 250] {
            let shadow = bed.staged(&backup);
            thread::scope(|scope| {
                let swap = scope.spawn(|| swap(&bed.server, &shadow, &bed.control));
                thread::sleep(Duration::from_millis(milliseconds));
                bed.mariadb.signal_kill();
                drop(swap.join().unwrap());
            });
            bed.mariadb.kill();
            bed.mariadb.restart().unwrap();
            let found = find_replaced(&bed.server, LIVE, &bed.control).unwrap();
            match found.as_slice() {
                [] => bed.assert_live(&before),
                [(replaced, ReplacedState::Pending)] => {
                    bed.resume(replaced);
                    bed.assert_live(&before);
                }
                [(replaced, ReplacedState::Committed | ReplacedState::Completed)] => {
                    bed.resume(replaced);
                    bed.assert_live(&backup);
                    swap_back(&bed.server, replaced, &bed.account, &bed.control).unwrap();
                    bed.assert_live(&before);
                }
                more => panic!("{more:?}"),
            }
            discard(&bed.server, LIVE, shadow.schema()).unwrap();
            bed.assert_nothing_left();
        }
    }
}
