//! When a repository was last pruned, so that of many workers one does it.

use jiff::Timestamp;

use super::{Catalog, unreadable};
use crate::error::{Error, ErrorKind, Result};
use crate::store::values;

impl Catalog {
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
