//! What a snapshot holds of a customer, by its tree.
//!
//! Whole components of paths are compared, never a beginning: `customer-1` is not `customer-12`.

use std::path::PathBuf;

use crate::error::Result;
use crate::repository::{BackupType, EntryKind, Snapshot, View};

/// Where a customer's part of a snapshot is looked for.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    /// His directory.
    pub directory: PathBuf,
    /// The dump of his database.
    pub dump: PathBuf,
    /// Whether that path is nobody's but his. On another hosting server somebody else may have, or have had, a database of the same name: then his
    /// directory has to lie in the same snapshot.
    pub is_dump_his: bool,
}

/// What there is to restore at a [`Place`].
#[derive(Debug)]
pub(crate) struct Contents {
    /// Where the customer's directory was.
    pub directory: PathBuf,
    /// Where the dump would be.
    pub dump: PathBuf,
    /// The size of the dump, if there is one, and it is his.
    pub dump_bytes: Option<u64>,
    /// Whether his directory is there.
    pub has_directory: bool,
    /// The configured site directories that are there, relative to the customer's.
    pub site_dirs: Vec<PathBuf>,
}

impl Contents {
    /// What it is a backup of; None where of nothing.
    pub fn backup_type(&self) -> Option<BackupType> {
        BackupType::of(self.dump_bytes.is_some(), !self.site_dirs.is_empty())
    }
}

/// What a snapshot holds at each of these places. All of them at once cost few round trips.
pub(crate) fn contents(
    view: &View<'_>,
    snapshot: &Snapshot,
    site_dirs: &[PathBuf],
    places: Vec<Place>,
) -> Result<Vec<Contents>> {
    let paths: Vec<PathBuf> = places
        .iter()
        .flat_map(|place| paths(place, site_dirs))
        .collect();
    let entries = view.entries(snapshot, &paths)?;
    let entries = entries.chunks(2 + site_dirs.len());
    Ok(places
        .into_iter()
        .zip(entries)
        .map(|(place, entries)| judge(place, site_dirs, entries))
        .collect())
}

/// The dump, the directory, and the site directories in their order.
fn paths(place: &Place, site_dirs: &[PathBuf]) -> Vec<PathBuf> {
    let in_directory = |site_dir: &PathBuf| place.directory.join(site_dir);
    [place.dump.clone(), place.directory.clone()]
        .into_iter()
        .chain(site_dirs.iter().map(in_directory))
        .collect()
}

fn judge(place: Place, site_dirs: &[PathBuf], entries: &[Option<EntryKind>]) -> Contents {
    let (dump, directory, directories) = match entries {
        [dump, directory, directories @ ..] => (*dump, *directory, directories),
        _ => (None, None, entries),
    };
    let has_directory = directory == Some(EntryKind::Directory);
    Contents {
        directory: place.directory,
        dump: place.dump,
        dump_bytes: match dump {
            // The restic program stores an empty file for a dump that failed.
            Some(EntryKind::File { bytes })
                if bytes > 0 && (place.is_dump_his || has_directory) =>
            {
                Some(bytes)
            }
            _ => None,
        },
        has_directory,
        site_dirs: site_dirs
            .iter()
            .zip(directories)
            .filter(|(_, entry)| **entry == Some(EntryKind::Directory))
            .map(|(site_dir, _)| site_dir.clone())
            .collect(),
    }
}
