//! Figures of the whole catalogue, for a monitoring that asks every few seconds.
//!
//! Never: a look at each of hundreds of thousands of rows; the index `backups_of_source` ends with what is asked for.

use jiff::Timestamp;

use super::{Catalog, Source};
use crate::customer::CustomerId;
use crate::error::Result;
use crate::store::values;

pub(super) const NEWEST: &str =
    "SELECT MAX(time) FROM customer_backups WHERE source = ? AND deleted_at IS NULL";
// Of those that one customer each has: whether they are looked at at all. What is wrong with a single one is no fault of the worker.
const SYNCS: &str = "SELECT server, source, MAX(synced_at)
    FROM (SELECT u.server, CASE WHEN u.source = 'daily' THEN 'daily' ELSE 'manual' END AS source, r.synced_at
        FROM backup_repository_users u JOIN backup_repositories r ON r.repository_id = u.repository_id
        WHERE r.synced_at IS NOT NULL) found
    GROUP BY server, source ORDER BY server, source";

const SAMPLES: &str = "SELECT server, source, MAX(sampled_at), CAST(SUM(sample_errors) AS SIGNED)
    FROM (SELECT u.server, CASE WHEN u.source = 'daily' THEN 'daily' ELSE 'manual' END AS source, r.sampled_at, r.sample_errors
        FROM backup_repository_users u JOIN backup_repositories r ON r.repository_id = u.repository_id
        WHERE r.sampled_at IS NOT NULL AND r.sample_errors IS NOT NULL) found
    GROUP BY server, source ORDER BY server, source";

/// What was found when some packs of a hosting server's repository were read; of all its customers' together, where each has one.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Sampled {
    /// The hosting server.
    pub server: String,
    /// Which of its repositories: `manual` or `daily`.
    pub source: String,
    /// When that was.
    pub at: Timestamp,
    /// How many of them were damaged.
    pub errors: u64,
}

const HELD: &str = "SELECT b.customer_id, b.source, b.time, k.newest_files, k.newest_database, b.bytes, k.count, CAST(k.bytes AS SIGNED), CAST(k.added AS SIGNED)
    FROM customer_backups b JOIN (SELECT customer_id, source, MAX(time) AS newest, COUNT(*) AS count,
            MAX(CASE WHEN backup_type <> 'db' THEN time END) AS newest_files,
            MAX(CASE WHEN backup_type <> 'files' THEN time END) AS newest_database,
            COALESCE(SUM(bytes), 0) AS bytes, COALESCE(SUM(bytes_added), 0) AS added
        FROM customer_backups WHERE deleted_at IS NULL GROUP BY customer_id, source) k
    ON k.customer_id = b.customer_id AND k.source = b.source AND k.newest = b.time
    WHERE b.deleted_at IS NULL";

/// Customer, source, the times of the newest, of the newest with files and with a dump, the bytes of the newest, and of all: how many, their bytes, and what
/// was added for them.
type HeldRow = (
    i64,
    String,
    i64,
    Option<i64>,
    Option<i64>,
    Option<i64>,
    i64,
    i64,
    i64,
);

/// What there is of a customer from one source.
#[derive(Debug, Clone)]
pub(crate) struct Held {
    pub(crate) customer: CustomerId,
    pub(crate) source: Source,
    pub(crate) newest: Timestamp,
    pub(crate) newest_files: Option<Timestamp>,
    pub(crate) newest_database: Option<Timestamp>,
    pub(crate) newest_bytes: Option<u64>,
    pub(crate) count: u64,
    pub(crate) bytes: u64,
    pub(crate) bytes_added: u64,
}

/// When a hosting server's repository was last looked at, or any of those of its customers, where each has one.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Synced {
    /// The hosting server.
    pub server: String,
    /// Which of its repositories: `manual` or `daily`.
    pub source: String,
    /// When the catalogue was last brought in step with it.
    pub at: Timestamp,
}

impl Catalog {
    /// When the newest backup of each source was made, of whichever customer; a source that has none is left out.
    pub(crate) async fn newest(&self) -> Result<Vec<(Source, Timestamp)>> {
        let mut newest = Vec::new();
        for source in [Source::Manual, Source::Daily, Source::PreRestore] {
            let values = values![source.as_str()];
            let row: Option<(Option<i64>,)> = self.store.row(NEWEST, values).await?;
            let time = row.and_then(|(time,)| Timestamp::from_millisecond(time?).ok());
            newest.extend(time.map(|time| (source, time)));
        }
        Ok(newest)
    }

    /// When some packs of the repositories were last read; one of which none ever were is left out.
    pub(crate) async fn samples(&self) -> Result<Vec<Sampled>> {
        let rows: Vec<(String, String, i64, i64)> = self.store.rows(SAMPLES, &[]).await?;
        let sampled = |(server, source, at, errors): (String, String, i64, i64)| {
            Some(Sampled {
                server,
                source,
                at: Timestamp::from_millisecond(at).ok()?,
                errors: u64::try_from(errors).unwrap_or(0),
            })
        };
        Ok(rows.into_iter().filter_map(sampled).collect())
    }

    /// What there is of every customer from every source; who has nothing is left out.
    pub(crate) async fn held(&self) -> Result<Vec<Held>> {
        let rows: Vec<HeldRow> = self.store.rows(HELD, &[]).await?;
        let number = |number: i64| u64::try_from(number).unwrap_or(0);
        let time = |at: Option<i64>| Timestamp::from_millisecond(at?).ok();
        let held = |row: HeldRow| {
            let (customer, source, newest, files, database, bytes, count, all, added) = row;
            Some(Held {
                customer: CustomerId::new(u32::try_from(customer).ok()?).ok()?,
                source: source.parse().ok()?,
                newest: Timestamp::from_millisecond(newest).ok()?,
                newest_files: time(files),
                newest_database: time(database),
                newest_bytes: bytes.map(number),
                count: number(count),
                bytes: number(all),
                bytes_added: number(added),
            })
        };
        Ok(rows.into_iter().filter_map(held).collect())
    }

    /// When the repositories were last looked at; one that never was is left out.
    pub(crate) async fn syncs(&self) -> Result<Vec<Synced>> {
        let rows: Vec<(String, String, i64)> = self.store.rows(SYNCS, &[]).await?;
        let synced = |(server, source, at): (String, String, i64)| {
            Some(Synced {
                server,
                source,
                at: Timestamp::from_millisecond(at).ok()?,
            })
        };
        Ok(rows.into_iter().filter_map(synced).collect())
    }
}
