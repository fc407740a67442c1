//! The names of files that are still being written.
//!
//! A file gets its final name only once it is whole; until then it has one that nobody takes for a repository file and that
//! can be told as ours, so that what a crash left behind can be removed. Never: a name of somebody else's taken for ours.

use std::time::Duration;

/// What is older than this belongs to nobody any more: no upload takes as long.
pub(super) const ABANDONED_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

const PREFIX: &str = ".tmp-";

/// A name that no other process and no other thread uses.
pub(super) fn new_name() -> String {
    format!(
        "{PREFIX}{}-{:016x}",
        std::process::id(),
        rand::random::<u64>()
    )
}

/// Whether a name is one that [`new_name`] makes.
pub(super) fn is_ours(name: &str) -> bool {
    let Some((process, random)) = name
        .strip_prefix(PREFIX)
        .and_then(|rest| rest.split_once('-'))
    else {
        return false;
    };
    !process.is_empty()
        && process.bytes().all(|b| b.is_ascii_digit())
        && random.len() == 16
        && random
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_we_make_are_ours() {
        assert!(is_ours(&new_name()));
        assert_ne!(new_name(), new_name());
        let id = "ab".repeat(32);
        for other in [
            "",
            ".tmp-",
            ".tmp-1-",
            ".tmp--0123456789abcdef",
            ".tmp-1-0123456789ABCDEF",
            "tmp-1-0123456789abcdef",
            &id,
        ] {
            assert!(!is_ours(other), "{other}");
        }
    }
}
