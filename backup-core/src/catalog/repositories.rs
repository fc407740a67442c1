//! The repositories themselves: which server has which one, and when it was last pruned.
//!
//! Never: backups shown that lie in a repository which nobody has configured any more.

use jiff::Timestamp;

use super::{Catalog, Rows, Source};
use crate::error::Result;
use crate::repository::SnapshotId;
use crate::store::{Inserted, values};

impl Catalog {
    /// Note that a hosting server's backups of a source are in this repository. If they were in another one before that no other server
    /// has, its backups can be restored no longer, and go. Should it come back, it is read again.
    pub(crate) async fn note_use(
        &self,
        server: &str,
        source: Source,
        repository_id: &str,
    ) -> Result<()> {
        const FORMER: &str =
            "SELECT repository_id FROM backup_repository_users WHERE server = ? AND source = ?";
        let user = values![server, source.as_str()];
        let former: Option<(String,)> = self.store.row(FORMER, user).await?;
        match former {
            Some((former,)) if former == repository_id => Ok(()),
            Some((former,)) => {
                // First, so that it is repeated if we die in between.
                self.drop_unused(server, source, &former).await?;
                const UPDATE: &str = "UPDATE backup_repository_users SET repository_id = ? WHERE server = ? AND source = ?";
                let values = values![repository_id, server, source.as_str()];
                self.store.execute(UPDATE, values).await.map(drop)
            }
            None => {
                const INSERT: &str = "INSERT INTO backup_repository_users (server, source, repository_id) VALUES (?, ?, ?)";
                let values = values![server, source.as_str(), repository_id];
                // Whoever was faster wrote the same.
                self.store.insert(INSERT, values).await.map(drop)
            }
        }
    }

    async fn drop_unused(&self, server: &str, source: Source, repository_id: &str) -> Result<()> {
        const OTHERS: &str = "SELECT COUNT(*) FROM backup_repository_users
            WHERE repository_id = ? AND NOT (server = ? AND source = ?)";
        let values = values![repository_id, server, source.as_str()];
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
        const RELEASE: &str =
            "UPDATE backup_repositories SET sampled_at = NULL WHERE repository_id = ?";
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
