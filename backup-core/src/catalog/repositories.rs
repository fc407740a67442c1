//! The repositories themselves: which server has which one, and when it was last pruned.
//!
//! Never: backups shown that lie in a repository which nobody has configured any more.

use jiff::Timestamp;

use super::{Catalog, Source, unreadable};
use crate::error::{Error, ErrorKind, Result};
use crate::repository::SnapshotId;
use crate::store::values;

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
        self.remove(repository_id, &unused).await
    }

    /// When a repository was last pruned, as far as we did it.
    pub(crate) async fn pruned_at(&self, repository_id: &str) -> Result<Option<Timestamp>> {
        const QUERY: &str = "SELECT pruned_at FROM backup_repositories WHERE repository_id = ?";
        let row: Option<(Option<i64>,)> = self.store.row(QUERY, values![repository_id]).await?;
        let at = row.and_then(|(at,)| at).map(Timestamp::from_millisecond);
        at.transpose()
            .map_err(|e| unreadable(Error::caused(ErrorKind::Damaged, "a time that is none", e)))
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
