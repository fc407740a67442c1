//! The repositories themselves: which server has which one, for all its customers or for one of them, and when it was last pruned.
//!
//! Never: backups shown that lie in a repository which nobody has configured any more; a repository that had backups taken for one that was
//! never made.

use std::fmt;

use jiff::Timestamp;

use super::{Catalog, Rows, unreadable};
use crate::customer::CustomerId;
use crate::error::{Error, ErrorKind, Result};
use crate::repository::SnapshotId;
use crate::store::{Inserted, values};

/// One of the repositories of a hosting server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RepositoryName {
    /// That of all backups that customers make.
    Manual,
    /// That of the backups that this customer makes, where each has one of his own.
    ManualOf(CustomerId),
    /// That of the daily backups.
    Daily,
}

impl RepositoryName {
    /// Its section of the configuration: `manual` or `daily`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Manual | Self::ManualOf(_) => "manual",
            Self::Daily => "daily",
        }
    }

    /// Whose it is, where it is one customer's.
    pub fn customer(self) -> Option<CustomerId> {
        match self {
            Self::ManualOf(customer) => Some(customer),
            Self::Manual | Self::Daily => None,
        }
    }

    /// As the column `source` has it, whose 16 characters are just enough: `manual`, `manual7`, `daily`.
    fn key(self) -> String {
        match self {
            Self::Manual | Self::Daily => self.as_str().to_owned(),
            Self::ManualOf(customer) => format!("manual{customer}"),
        }
    }

    fn of_key(key: &str) -> Result<Self> {
        match (key, key.strip_prefix("manual")) {
            ("daily", _) => Ok(Self::Daily),
            (_, Some("")) => Ok(Self::Manual),
            (_, Some(customer)) => Ok(Self::ManualOf(customer.parse()?)),
            (_, None) => Err(Error::new(
                ErrorKind::Damaged,
                format!("`{}` is no repository", key.escape_debug()),
            )),
        }
    }
}

impl fmt::Display for RepositoryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} repository", self.as_str())?;
        match self.customer() {
            Some(customer) => write!(f, " of customer {customer}"),
            None => Ok(()),
        }
    }
}

/// A repository that a hosting server has, as far as the catalogue knows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct InUse {
    pub(crate) name: RepositoryName,
    pub(crate) pruned_at: Option<Timestamp>,
    pub(crate) sampled_at: Option<Timestamp>,
}

impl Catalog {
    /// Note that a hosting server's backups of this name are in this repository. If they were in another one before that nobody else
    /// has, its backups can be restored no longer, and go. Should it come back, it is read again.
    ///
    /// One for all customers takes the place of those for each, and the other way round.
    pub(crate) async fn note_use(
        &self,
        server: &str,
        name: RepositoryName,
        repository_id: &str,
    ) -> Result<()> {
        const FORMER: &str = "SELECT source, repository_id FROM backup_repository_users
            WHERE server = ? AND (source = ? OR source LIKE ?)";
        let key = name.key();
        let instead_of = match name {
            RepositoryName::Manual => "manual%",
            RepositoryName::ManualOf(_) => "manual",
            RepositoryName::Daily => "daily",
        };
        let values = values![server, key.as_str(), instead_of];
        let former: Vec<(String, String)> = self.store.rows(FORMER, values).await?;
        let mut is_noted = false;
        for (noted, former) in former {
            is_noted |= noted == key;
            if noted == key && former == repository_id {
                continue;
            }
            // First, so that it is repeated if we die in between.
            if former != repository_id {
                self.drop_unused(server, &noted, &former).await?;
            }
            if noted == key {
                const UPDATE: &str = "UPDATE backup_repository_users SET repository_id = ? WHERE server = ? AND source = ?";
                let values = values![repository_id, server, noted];
                self.store.execute(UPDATE, values).await?;
            } else {
                self.delete_user(server, &noted).await?;
            }
        }
        if !is_noted {
            const INSERT: &str = "INSERT INTO backup_repository_users (server, source, repository_id) VALUES (?, ?, ?)";
            let values = values![server, key, repository_id];
            // Whoever was faster wrote the same.
            self.store.insert(INSERT, values).await?;
        }
        Ok(())
    }

    /// Whether a hosting server has had a repository of this name: then it was made, and there may be backups in it.
    pub(crate) async fn has_used(&self, server: &str, name: RepositoryName) -> Result<bool> {
        const QUERY: &str =
            "SELECT repository_id FROM backup_repository_users WHERE server = ? AND source = ?";
        let row: Option<(String,)> = self.store.row(QUERY, values![server, name.key()]).await?;
        Ok(row.is_some())
    }

    /// Another hosting server that has had a repository of this name.
    pub(crate) async fn other_user(
        &self,
        server: &str,
        name: RepositoryName,
    ) -> Result<Option<String>> {
        const QUERY: &str = "SELECT server FROM backup_repository_users
            WHERE server <> ? AND source = ? ORDER BY server";
        let row: Option<(String,)> = self.store.row(QUERY, values![server, name.key()]).await?;
        Ok(row.map(|(other,)| other))
    }

    /// The repositories that a hosting server has.
    pub(crate) async fn in_use(&self, server: &str) -> Result<Vec<InUse>> {
        const QUERY: &str = "SELECT u.source, r.pruned_at, r.sampled_at FROM backup_repository_users u
            LEFT JOIN backup_repositories r ON r.repository_id = u.repository_id WHERE u.server = ?";
        let rows: Vec<(String, Option<i64>, Option<i64>)> =
            self.store.rows(QUERY, values![server]).await?;
        let time = |at: Option<i64>| Timestamp::from_millisecond(at?).ok();
        let read = |(key, pruned_at, sampled_at): (String, Option<i64>, Option<i64>)| {
            Ok(InUse {
                name: RepositoryName::of_key(&key).map_err(unreadable)?,
                pruned_at: time(pruned_at),
                sampled_at: time(sampled_at),
            })
        };
        rows.into_iter().map(read).collect()
    }

    /// A customer is not on this hosting server any more, and his repository not its business: his backups go, unless it is the same where he is now.
    /// If he has had none there yet, it stays what it is until then; None: he is nowhere.
    pub(crate) async fn note_left(
        &self,
        server: &str,
        customer: CustomerId,
        now_on: Option<&str>,
    ) -> Result<()> {
        const FORMER: &str =
            "SELECT repository_id FROM backup_repository_users WHERE server = ? AND source = ?";
        let name = RepositoryName::ManualOf(customer);
        let key = name.key();
        if let Some(now_on) = now_on
            && !self.has_used(now_on, name).await?
            && !self.has_used(now_on, RepositoryName::Manual).await?
        {
            return Ok(());
        }
        let former: Option<(String,)> = self
            .store
            .row(FORMER, values![server, key.as_str()])
            .await?;
        if let Some((former,)) = former {
            self.drop_unused(server, &key, &former).await?;
        }
        self.delete_user(server, &key).await
    }

    /// The customers of a hosting server where each has a repository of his own, in which something was deleted and is not forgotten yet.
    pub(crate) async fn with_deletions(&self, server: &str) -> Result<Vec<CustomerId>> {
        const QUERY: &str = "SELECT DISTINCT u.source FROM customer_backups b
            JOIN backup_snapshots s ON s.snapshot_id = b.snapshot_id
            JOIN backup_repository_users u ON u.repository_id = s.repository_id
            WHERE b.source IN ('manual', 'pre-restore') AND b.deleted_at > 0 AND u.server = ?";
        let rows: Vec<(String,)> = self.store.rows(QUERY, values![server]).await?;
        let mut customers = Vec::new();
        for (key,) in rows {
            let name = RepositoryName::of_key(&key).map_err(unreadable)?;
            customers.extend(name.customer());
        }
        Ok(customers)
    }

    async fn delete_user(&self, server: &str, key: &str) -> Result<()> {
        const DELETE: &str = "DELETE FROM backup_repository_users WHERE server = ? AND source = ?";
        let values = values![server, key];
        self.store.execute(DELETE, values).await.map(drop)
    }

    async fn drop_unused(&self, server: &str, key: &str, repository_id: &str) -> Result<()> {
        const OTHERS: &str = "SELECT COUNT(*) FROM backup_repository_users
            WHERE repository_id = ? AND NOT (server = ? AND source = ?)";
        let values = values![repository_id, server, key];
        let users: Option<(i64,)> = self.store.row(OTHERS, values).await?;
        if users.is_some_and(|(users,)| users > 0) {
            return Ok(());
        }
        let unused: Vec<SnapshotId> = self.known(repository_id).await?.into_iter().collect();
        tracing::warn!(
            "the repository {repository_id} is configured nowhere any more: its {} snapshots are shown no longer",
            unused.len()
        );
        self.remove_rows(repository_id, &unused, Rows::Undeleted)
            .await
    }

    /// Take it upon oneself to prune a repository that was not pruned since a moment: true for one of many. Who cannot do it gives it back.
    pub(crate) async fn claim_prune(&self, repository_id: &str, since: Timestamp) -> Result<bool> {
        const UPDATE: &str = "UPDATE backup_repositories SET pruned_at = {now}
            WHERE repository_id = ? AND COALESCE(pruned_at, 0) < ?";
        const INSERT: &str =
            "INSERT INTO backup_repositories (repository_id, pruned_at) VALUES (?, {now})";
        let values = values![repository_id, since.as_millisecond()];
        if self.store.execute(UPDATE, values).await? > 0 {
            return Ok(true);
        }
        let inserted = self.store.insert(INSERT, values![repository_id]).await?;
        Ok(matches!(inserted, Inserted::Done(_)))
    }

    /// Give a prune back that was not done.
    pub(crate) async fn release_prune(&self, repository_id: &str) -> Result<()> {
        const UPDATE: &str =
            "UPDATE backup_repositories SET pruned_at = NULL WHERE repository_id = ?";
        self.store
            .execute(UPDATE, values![repository_id])
            .await
            .map(drop)
    }

    /// Whether a repository was pruned since a moment, or somebody is about to do it.
    pub(crate) async fn is_pruned_since(
        &self,
        repository_id: &str,
        since: Timestamp,
    ) -> Result<bool> {
        const QUERY: &str =
            "SELECT COALESCE(pruned_at, 0) FROM backup_repositories WHERE repository_id = ?";
        let row: Option<(i64,)> = self.store.row(QUERY, values![repository_id]).await?;
        Ok(row.is_some_and(|(at,)| at >= since.as_millisecond()))
    }

    /// Take it upon oneself to read some packs of a repository of which none were read since a moment: true for one of many.
    pub(crate) async fn claim_sample(&self, repository_id: &str, since: Timestamp) -> Result<bool> {
        const UPDATE: &str = "UPDATE backup_repositories SET sampled_at = {now}
            WHERE repository_id = ? AND COALESCE(sampled_at, 0) < ?";
        const INSERT: &str =
            "INSERT INTO backup_repositories (repository_id, sampled_at) VALUES (?, {now})";
        let values = values![repository_id, since.as_millisecond()];
        if self.store.execute(UPDATE, values).await? > 0 {
            return Ok(true);
        }
        let inserted = self.store.insert(INSERT, values![repository_id]).await?;
        Ok(matches!(inserted, Inserted::Done(_)))
    }

    /// Write down how many packs of a sample were damaged; None: it was not read to its end, and is claimed by nobody any more.
    pub(crate) async fn note_sample(&self, repository_id: &str, errors: Option<u64>) -> Result<()> {
        const DONE: &str = "UPDATE backup_repositories SET sampled_at = {now}, sample_errors = ? WHERE repository_id = ?";
        // What an earlier one found stays said.
        const RELEASE: &str = "UPDATE backup_repositories
            SET sampled_at = CASE WHEN sample_errors IS NULL THEN NULL ELSE 0 END WHERE repository_id = ?";
        match errors {
            Some(errors) => {
                self.store
                    .execute(DONE, values![errors, repository_id])
                    .await
            }
            None => self.store.execute(RELEASE, values![repository_id]).await,
        }
        .map(drop)
    }

    /// Note that a repository was pruned just now.
    pub(crate) async fn note_pruned(&self, repository_id: &str) -> Result<()> {
        const UPDATE: &str =
            "UPDATE backup_repositories SET pruned_at = {now} WHERE repository_id = ?";
        const INSERT: &str =
            "INSERT INTO backup_repositories (repository_id, pruned_at) VALUES (?, {now})";
        let values = values![repository_id];
        if self.store.execute(UPDATE, values).await? == 0 {
            // Whoever was faster wrote the same.
            self.store.insert(INSERT, values).await?;
        }
        Ok(())
    }
}
