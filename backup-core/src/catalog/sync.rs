//! Bringing the rows in step with one repository.
//!
//! Only snapshots that are not known yet are read. Safe to repeat, to break off at any point, and from several processes at once: a
//! snapshot and its customers' rows are taken in by one transaction, by whoever is first. Never: a customer's row for what the
//! repository no longer lists; a deleted backup back again; one damaged snapshot in the way of all others.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, spawn_blocking};

use super::{
    BackupEntry, Catalog, Contents, Place, Remembered, Row, Rows, SNAPSHOTS_A_STATEMENT, Source,
    contents, delete_rows, deletions, in_list, insert_rows, of_repository, remember,
};
use crate::config::Config;
use crate::customer::{CustomerId, CustomerStore};
use crate::error::{Error, ErrorKind, Result};
use crate::repository::{Origin, Repository, Snapshot, SnapshotId, View};
use crate::store::{Inserted, Tries, values};

/// Snapshot files read at once.
const SNAPSHOTS_A_READING: usize = 256;
/// How long what is missing is remembered, in milliseconds.
const REMEMBERED_FOR: i64 = 24 * 60 * 60 * 1000;

/// What becomes of known snapshots that the repository no longer lists. Customers do not see them in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// They stay in [`Catalog::known`] for a day: a listing that lacks some must not make anybody believe that data is unused.
    Remember,
    /// They were removed on purpose: an operator says so.
    Accept,
}

/// What a sync did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct SyncReport {
    /// Snapshots taken in, those that came back included.
    pub added: u64,
    /// Snapshots that are known no longer.
    pub removed: u64,
    /// Snapshots that the repository lacks and that are still remembered.
    pub missing: u64,
    /// What could not be taken in, and why.
    pub warnings: Vec<String>,
    /// Where each customer has a repository of his own: those that could not be looked at, and why.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub failures: Vec<String>,
}

/// How it is told whose a snapshot is.
enum Ownership<'a> {
    /// By its tags; those of others than this customer, whose repository it is, are nobody's.
    Tags(Option<CustomerId>),
    /// By what its tree has where this configuration says.
    Tree(&'a Config),
}

impl Catalog {
    /// Bring the rows in step with the repository of the customers' own backups.
    ///
    /// Fails where the repository or the database cannot be reached; what was taken in until then stays.
    pub async fn sync_manual(
        &self,
        repository: &Arc<Repository>,
        missing: Missing,
    ) -> Result<SyncReport> {
        self.sync(repository, Ownership::Tags(None), missing).await
    }

    /// As [`Self::sync_manual`], with the repository of a customer's own: what is another's by its tags is shown to nobody, for he would not find it in his.
    pub(crate) async fn sync_manual_of(
        &self,
        repository: &Arc<Repository>,
        customer: CustomerId,
        missing: Missing,
    ) -> Result<SyncReport> {
        self.sync(repository, Ownership::Tags(Some(customer)), missing)
            .await
    }

    /// Bring the rows in step with the repository of the platform's daily backups. Of each the customers of the table get what it holds
    /// of them.
    ///
    /// Fails as [`Self::sync_manual`] does, and with [`ErrorKind::Busy`] where there is something new while somebody prunes.
    pub async fn sync_daily(
        &self,
        repository: &Arc<Repository>,
        config: &Config,
        missing: Missing,
    ) -> Result<SyncReport> {
        self.sync(repository, Ownership::Tree(config), missing)
            .await
    }

    async fn sync(
        &self,
        repository: &Arc<Repository>,
        ownership: Ownership<'_>,
        missing: Missing,
    ) -> Result<SyncReport> {
        let repository_id = repository.id().to_string();
        // First what is known: what is committed while the repository is listed must not look removed.
        let known = self.known_snapshots(&repository_id).await?;
        let listed = list(repository).await?;

        let lacking: Vec<SnapshotId> = known
            .keys()
            .copied()
            .filter(|id| !listed.contains(id))
            .collect();
        let shown = |id: &SnapshotId| known.get(id) == Some(&Known::Present);
        let lately: Vec<SnapshotId> = lacking.iter().copied().filter(shown).collect();
        self.hide(&repository_id, &lately).await?;
        let removed = self.drop_missing(&repository_id, &lacking, missing).await?;
        let mut report = SyncReport {
            removed,
            missing: (lacking.len() as u64).saturating_sub(removed),
            ..SyncReport::default()
        };
        let new: Vec<SnapshotId> = listed.into_iter().filter(|id| !shown(id)).collect();
        if !new.is_empty() {
            let reader = match ownership {
                Ownership::Tags(owner) => Reader::Tags(owner),
                Ownership::Tree(config) => Reader::Tree(self.layout(config).await?),
            };
            self.take_in_all(repository, &repository_id, reader, new, &mut report)
                .await?;
        }
        self.note_synced(&repository_id).await?;
        Ok(report)
    }

    async fn known_snapshots(&self, repository_id: &str) -> Result<BTreeMap<SnapshotId, Known>> {
        const QUERY: &str =
            "SELECT snapshot_id, missing_since FROM backup_snapshots WHERE repository_id = ?";
        let rows: Vec<(String, Option<i64>)> =
            self.store.rows(QUERY, values![repository_id]).await?;
        let known = |(id, missing_since): (String, Option<i64>)| {
            let known = match missing_since {
                None => Known::Present,
                Some(_) => Known::Missing,
            };
            Ok((id.parse()?, known))
        };
        rows.into_iter().map(known).collect()
    }

    /// Where everybody's part of a daily snapshot is looked for.
    async fn layout(&self, config: &Config) -> Result<Layout> {
        let customers = CustomerStore::new(&self.store, config);
        let databases = &config.customer_database;
        let mut layout = Layout {
            site_dirs: config.customers.site_dirs.clone(),
            customers: Vec::new(),
            places: Vec::new(),
        };
        let mut claims: HashMap<PathBuf, usize> = HashMap::new();
        for (customer, database, server) in customers.database_names().await? {
            let dump = databases.daily_dump_path(customer, &database)?;
            *claims.entry(dump.clone()).or_default() += 1;
            layout.customers.push((customer, server));
            layout.places.push(Place {
                directory: config.customers.dir(customer),
                dump,
                is_dump_his: databases.is_daily_dump_by_number(customer, &database)?,
            });
        }
        for place in &mut layout.places {
            place.is_dump_his &= claims[&place.dump] == 1;
        }
        Ok(layout)
    }

    /// Customers do not see any more what is not there.
    async fn hide(&self, repository_id: &str, ids: &[SnapshotId]) -> Result<()> {
        for ids in ids.chunks(SNAPSHOTS_A_STATEMENT) {
            let mut tries = Tries::default();
            loop {
                let hidden = self.try_hide(repository_id, ids).await;
                if !tries.is_to_repeat(&hidden).await {
                    hidden?;
                    break;
                }
            }
        }
        Ok(())
    }

    async fn try_hide(&self, repository_id: &str, ids: &[SnapshotId]) -> Result<()> {
        let (places, values) = in_list(ids);
        let mut transaction = self.store.begin().await?;
        let update = format!(
            "UPDATE backup_snapshots SET missing_since = {{now}}
             WHERE repository_id = ? AND snapshot_id IN ({places}) AND missing_since IS NULL"
        );
        let newly = transaction
            .execute(&update, &of_repository(repository_id, &values))
            .await?;
        if newly > 0 {
            delete_rows(&mut transaction, ids, Rows::Undeleted).await?;
        }
        transaction.commit().await
    }

    /// Forget what is missing for good, or for too long; the number of snapshots.
    async fn drop_missing(
        &self,
        repository_id: &str,
        lacking: &[SnapshotId],
        missing: Missing,
    ) -> Result<u64> {
        let at_least = match missing {
            Missing::Remember => REMEMBERED_FOR,
            Missing::Accept => 0,
        };
        let mut dropped = 0;
        for ids in lacking.chunks(SNAPSHOTS_A_STATEMENT) {
            let mut tries = Tries::default();
            dropped += loop {
                let tried = self.try_drop_missing(repository_id, ids, at_least).await;
                if !tries.is_to_repeat(&tried).await {
                    break tried?;
                }
            };
        }
        Ok(dropped)
    }

    async fn try_drop_missing(
        &self,
        repository_id: &str,
        ids: &[SnapshotId],
        at_least: i64,
    ) -> Result<u64> {
        let (places, values) = in_list(ids);
        let mut transaction = self.store.begin().await?;
        let delete = format!(
            "DELETE FROM backup_snapshots
             WHERE repository_id = ? AND snapshot_id IN ({places}) AND missing_since <= {{now}} - ?"
        );
        let mut values = of_repository(repository_id, &values);
        values.push(at_least.into());
        let dropped = transaction.execute(&delete, &values).await?;
        if dropped > 0 {
            deletions::drop_forgotten(&mut transaction, repository_id, ids).await?;
        }
        transaction.commit().await?;
        Ok(dropped)
    }

    async fn take_in_all(
        &self,
        repository: &Arc<Repository>,
        repository_id: &str,
        reader: Reader,
        new: Vec<SnapshotId>,
        report: &mut SyncReport,
    ) -> Result<()> {
        // One is read while another is written; no more are held in memory.
        let (sender, mut receiver) = mpsc::channel(1);
        let reading = {
            let repository = Arc::clone(repository);
            spawn_blocking(move || reader.read(&repository, &new, &sender))
        };
        let mut taken_in = Vec::new();
        let mut of_others = 0_u64;
        while let Some(found) = receiver.recv().await {
            match found {
                Found::Snapshot(id, rows) => {
                    if self.take_in(repository_id, &id, &rows).await? {
                        taken_in.push(id);
                    }
                }
                Found::OfAnother(id) => {
                    if self.take_in(repository_id, &id, &[]).await? {
                        taken_in.push(id);
                        of_others += 1;
                    }
                }
                Found::Damaged(warning) => report.warnings.push(warning),
            }
        }
        finished(reading).await?;
        if of_others > 0 {
            let warning = format!(
                "{of_others} new snapshots in the repository are another customer's by their tags, and are shown to nobody: find out who brought them there"
            );
            // The next sync knows them, and says nothing.
            tracing::warn!("{}: {warning}", repository.location());
            report.warnings.push(warning);
        }
        report.added = taken_in.len() as u64;
        if taken_in.is_empty() {
            return Ok(());
        }
        // What was forgotten, and removed from the catalogue, between our reading and our writing is back in it now.
        let listed = list(repository).await?;
        taken_in.retain(|id| !listed.contains(id));
        report.added -= taken_in.len() as u64;
        self.remove(repository_id, &taken_in).await
    }

    /// Take in one backup of a customer, as a sync would that comes to it.
    pub(crate) async fn take_in_own(
        &self,
        repository_id: &str,
        customer: CustomerId,
        origin: Origin,
        entry: &BackupEntry,
    ) -> Result<()> {
        let row = Row {
            customer,
            source: origin.into(),
            entry: entry.clone(),
        };
        self.take_in(repository_id, &entry.id, &[row])
            .await
            .map(drop)
    }

    /// False where others have taken it in.
    async fn take_in(&self, repository_id: &str, id: &SnapshotId, rows: &[Row]) -> Result<bool> {
        let mut tries = Tries::default();
        loop {
            let taken_in = self.try_take_in(repository_id, id, rows).await;
            if !tries.is_to_repeat(&taken_in).await {
                return taken_in;
            }
        }
    }

    async fn try_take_in(
        &self,
        repository_id: &str,
        id: &SnapshotId,
        rows: &[Row],
    ) -> Result<bool> {
        let mut transaction = self.store.begin().await?;
        match remember(&mut transaction, repository_id, id).await? {
            Remembered::Already => return Ok(false),
            Remembered::New | Remembered::Again => {}
        }
        if !deletions::is_marked(&mut transaction, id).await? {
            insert_rows(&mut transaction, rows).await?;
        }
        transaction.commit().await?;
        Ok(true)
    }

    async fn note_synced(&self, repository_id: &str) -> Result<()> {
        const UPDATE: &str =
            "UPDATE backup_repositories SET synced_at = {now} WHERE repository_id = ?";
        const INSERT: &str =
            "INSERT INTO backup_repositories (repository_id, synced_at) VALUES (?, {now})";
        let values = values![repository_id];
        if self.store.execute(UPDATE, values).await? == 0 {
            // Whoever was faster wrote the same.
            match self.store.insert(INSERT, values).await? {
                Inserted::Done(_) | Inserted::Conflict => {}
            }
        }
        Ok(())
    }
}

/// What is known of a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    Present,
    /// The last listing lacked it.
    Missing,
}

/// Where the customers' parts of a daily snapshot are.
struct Layout {
    site_dirs: Vec<PathBuf>,
    /// With the number of the hosting server.
    customers: Vec<(CustomerId, Option<i64>)>,
    /// In the order of the customers.
    places: Vec<Place>,
}

/// What was found out of a snapshot.
enum Found {
    Snapshot(SnapshotId, Vec<Row>),
    /// It is in the repository of a customer's own, and not his.
    OfAnother(SnapshotId),
    Damaged(String),
}

/// Reads snapshots and tells whose they are.
enum Reader {
    Tags(Option<CustomerId>),
    Tree(Layout),
}

impl Reader {
    /// Blocks. Ends early when nobody listens any more.
    fn read(
        &self,
        repository: &Repository,
        new: &[SnapshotId],
        found: &mpsc::Sender<Found>,
    ) -> Result<()> {
        match self {
            Self::Tags(owner) => each(repository, new, found, |snapshot| {
                let rows = own_row(snapshot);
                let is_his = |row: &Row| owner.is_none_or(|owner| row.customer == owner);
                Ok(match rows.iter().all(is_his) {
                    true => Found::Snapshot(snapshot.id, rows),
                    false => Found::OfAnother(snapshot.id),
                })
            }),
            Self::Tree(layout) => {
                // The platform prunes: what is looked into must stay.
                let _lock = repository.lock_shared()?;
                let view = repository.view()?;
                each(repository, new, found, |snapshot| {
                    let rows = layout.rows(&view, snapshot)?;
                    Ok(Found::Snapshot(snapshot.id, rows))
                })
            }
        }
    }
}

/// Read these snapshots and send on what `look` finds out of each.
fn each(
    repository: &Repository,
    ids: &[SnapshotId],
    found: &mpsc::Sender<Found>,
    look: impl Fn(&Snapshot) -> Result<Found>,
) -> Result<()> {
    for ids in ids.chunks(SNAPSHOTS_A_READING) {
        let read = repository.read_snapshots(ids)?;
        let damaged = read
            .damaged
            .iter()
            .map(|id| Found::Damaged(format!("the snapshot {id} is damaged: run `check`")));
        let snapshots = read.snapshots.iter().map(|snapshot| match look(snapshot) {
            // Not remembered: it is looked into again next time, for what it lacks may be brought back.
            Err(error) if error.kind() == ErrorKind::Damaged => Ok(Found::Damaged(format!(
                "the snapshot {} cannot be looked into: run `check`: {}",
                snapshot.id,
                error.chain()
            ))),
            other => other,
        });
        for each in damaged.map(Ok).chain(snapshots) {
            if found.blocking_send(each?).is_err() {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// The one row of a snapshot of ours; none for what is nobody's.
fn own_row(snapshot: &Snapshot) -> Vec<Row> {
    let row = |customer, origin: Origin, backup_type| Row {
        customer,
        source: origin.into(),
        entry: BackupEntry {
            id: snapshot.id,
            time: snapshot.time,
            backup_type,
            note: snapshot.note.clone(),
            bytes: snapshot.bytes,
            bytes_added: snapshot.bytes_added,
            // Only its own job knows.
            database_bytes: None,
            files: snapshot.files,
            proven_at: None,
        },
    };
    let whose = snapshot.owner().zip(snapshot.origin());
    whose
        .zip(snapshot.backup_type())
        .map(|((customer, origin), backup_type)| row(customer, origin, backup_type))
        .into_iter()
        .collect()
}

impl Layout {
    /// A row for everybody of whom a daily snapshot holds something.
    fn rows(&self, view: &View<'_>, snapshot: &Snapshot) -> Result<Vec<Row>> {
        if !snapshot.is_daily() {
            return Ok(Vec::new());
        }
        let mut held = contents(view, snapshot, &self.site_dirs, self.places.clone())?;
        self.deny_dumps_of_others(&mut held);
        let row = |((customer, _), held): (&(CustomerId, Option<i64>), Contents)| {
            Some(Row {
                customer: *customer,
                source: Source::Daily,
                entry: BackupEntry {
                    id: snapshot.id,
                    time: snapshot.time,
                    backup_type: held.backup_type()?,
                    // What it says is the platform's, and of all customers together.
                    note: None,
                    bytes: None,
                    bytes_added: None,
                    database_bytes: held.dump_bytes,
                    files: None,
                    proven_at: None,
                },
            })
        };
        Ok(self.customers.iter().zip(held).filter_map(row).collect())
    }

    /// Of several customers with a database of the same name on different hosting servers only one server's have it in this snapshot. It has directories
    /// of more than one of them where somebody's stayed behind when he moved: then the server is the one that most directories are of.
    fn deny_dumps_of_others(&self, held: &mut [Contents]) {
        let servers = || self.customers.iter().map(|(_, server)| *server);
        let mut claims: HashMap<PathBuf, BTreeSet<Option<i64>>> = HashMap::new();
        let mut directories: BTreeMap<Option<i64>, usize> = BTreeMap::new();
        for (server, held) in servers().zip(held.iter()) {
            if held.dump_bytes.is_some() {
                claims.entry(held.dump.clone()).or_default().insert(server);
            }
            *directories.entry(server).or_default() += usize::from(held.has_directory);
        }
        let most = directories.values().copied().max();
        let mut first = directories
            .iter()
            .filter(|(_, count)| Some(**count) == most);
        let maker = match (first.next(), first.next()) {
            (Some((server, _)), None) => Some(*server),
            // Nobody can tell.
            _ => None,
        };
        for (server, held) in servers().zip(held.iter_mut()) {
            let is_disputed = claims
                .get(&held.dump)
                .is_some_and(|servers| servers.len() > 1);
            if is_disputed && maker != Some(server) {
                held.dump_bytes = None;
            }
        }
    }
}

async fn list(repository: &Arc<Repository>) -> Result<BTreeSet<SnapshotId>> {
    let repository = Arc::clone(repository);
    finished(spawn_blocking(move || repository.snapshot_ids())).await
}

/// A panic is an error.
async fn finished<T>(reading: JoinHandle<Result<T>>) -> Result<T> {
    reading.await.unwrap_or_else(|error| {
        Err(Error::caused(
            ErrorKind::Failed,
            "the reading of the repository broke off inside the program",
            error,
        ))
    })
}
