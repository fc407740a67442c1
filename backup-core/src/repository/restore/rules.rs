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
    /// Some, and who the snapshot says owns the directory that is restored: he takes the place of anybody else.
    Only {
        /// These users.
        users: BTreeSet<u32>,
        /// These groups.
        groups: BTreeSet<u32>,
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

    /// As an operator configured it. These own what the site is now.
    pub fn new(config: &RestoreConfig, present: &[Owner]) -> Self {
        let owners = match &config.owners {
            OwnersConfig::Any => OwnerRule::Any,
            OwnersConfig::Only(ids) => {
                let ids = || ids.iter().copied();
                OwnerRule::Only {
                    users: ids().chain(present.iter().map(|one| one.user)).collect(),
                    groups: ids().chain(present.iter().map(|one| one.group)).collect(),
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
    /// Who is to own what a snapshot says these own, below a directory that it says `top` owns.
    pub(super) fn judge(&self, user: Option<u32>, group: Option<u32>, top: Owner) -> Owner {
        let (user, group) = (user.unwrap_or(top.user), group.unwrap_or(top.group));
        match self {
            Self::Any => Owner { user, group },
            Self::Only { users, groups } => Owner {
                user: if users.contains(&user) {
                    user
                } else {
                    top.user
                },
                group: if groups.contains(&group) {
                    group
                } else {
                    top.group
                },
            },
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
        let owners = "entries were restored as the site directory's owner's instead of somebody's in the backup who owns none of this site";
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
