//! What of a tenant's tree may come back: nothing that gives him power over the machine it is restored on.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::config::{OwnersConfig, RestoreConfig};

/// Which entries of a snapshot are restored as it says, and how much of it.
#[derive(Debug, Clone)]
pub struct RestoreRules {
    /// Whether device nodes are restored. Otherwise they are left out.
    pub devices: bool,
    /// Whether files get their setuid and setgid bits and their capabilities.
    pub setuid: bool,
    /// Who may own what is restored.
    pub owners: OwnerRule,
    /// The most that may be planned at once: files, directories, links and everything else. 0: any number.
    pub max_files: u64,
    /// The most bytes that their contents may have together. 0: any number.
    pub max_bytes: u64,
}

/// Who may own what is restored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OwnerRule {
    /// Whoever the snapshot says.
    Any,
    /// Some.
    Only {
        /// These users.
        users: BTreeSet<u32>,
        /// These groups.
        groups: BTreeSet<u32>,
        /// Takes the place of a user or a group that may not.
        otherwise: Owner,
    },
}

/// A user and a group, by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// The user.
    pub user: u32,
    /// The group.
    pub group: u32,
}

impl RestoreRules {
    /// As the snapshot says, whatever it says: for one whose content is trusted.
    pub fn everything() -> Self {
        Self {
            devices: true,
            setuid: true,
            owners: OwnerRule::Any,
            max_files: 0,
            max_bytes: 0,
        }
    }

    /// As an operator configured it. `owner` takes the place of whoever may own nothing; he and `others` may besides those that the
    /// configuration names.
    pub fn new(config: &RestoreConfig, owner: Owner, others: &[Owner]) -> Self {
        let owners = match &config.owners {
            OwnersConfig::Any => OwnerRule::Any,
            OwnersConfig::Only(ids) => {
                let present = || others.iter().chain([&owner]);
                let ids = || ids.iter().copied();
                OwnerRule::Only {
                    users: ids().chain(present().map(|one| one.user)).collect(),
                    groups: ids().chain(present().map(|one| one.group)).collect(),
                    otherwise: owner,
                }
            }
        };
        Self {
            devices: config.devices,
            setuid: config.setuid,
            owners,
            max_files: config.max_files,
            max_bytes: config.max_bytes,
        }
    }
}

impl OwnerRule {
    /// Who is to own what a snapshot says these own.
    pub(super) fn judge(&self, user: Option<u32>, group: Option<u32>) -> Owner {
        let (users, groups, otherwise) = match self {
            Self::Any => {
                return Owner {
                    user: user.unwrap_or(0),
                    group: group.unwrap_or(0),
                };
            }
            Self::Only {
                users,
                groups,
                otherwise,
            } => (users, groups, otherwise),
        };
        Owner {
            user: user
                .filter(|id| users.contains(id))
                .unwrap_or(otherwise.user),
            group: group
                .filter(|id| groups.contains(id))
                .unwrap_or(otherwise.group),
        }
    }
}

/// What the rules changed, counted, with the first of each.
#[derive(Debug, Default)]
pub(super) struct Changes {
    pub devices: Tally,
    pub setuid: Tally,
    pub owners: Tally,
}

/// How many, and which was the first.
#[derive(Debug, Default)]
pub(super) struct Tally {
    count: u64,
    first: PathBuf,
}

impl Tally {
    pub(super) fn add(&mut self, path: impl FnOnce() -> PathBuf) {
        if self.count == 0 {
            self.first = path();
        }
        self.count += 1;
    }
}

impl Changes {
    /// One sentence for each kind that occurred.
    pub(super) fn warnings(&self) -> Vec<String> {
        let sentence = |tally: &Tally, what: &str, key: &str| {
            let Tally { count, first } = tally;
            let first = shown(first);
            (*count > 0).then(|| {
                format!("{count} {what} (the first: {first}); what may be is configured by {key}")
            })
        };
        let devices = "device nodes of the backup were not restored";
        let setuid = "files were restored without the setuid or setgid bit, or the capabilities, that they have in the backup";
        let owners = "entries were restored with the site's owner instead of one in the backup who is none of this site's";
        [
            sentence(&self.devices, devices, "restore.devices"),
            sentence(&self.setuid, setuid, "restore.setuid"),
            sentence(&self.owners, owners, "restore.owners"),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

/// A tenant chose it: it may be long, and hold anything.
pub(super) fn shown(path: &Path) -> String {
    const LONGEST: usize = 200;
    let text = path.to_string_lossy();
    let mut shown: String = text
        .chars()
        .take(LONGEST)
        .flat_map(char::escape_debug)
        .collect();
    if text.chars().nth(LONGEST).is_some() {
        shown.push('…');
    }
    shown
}
