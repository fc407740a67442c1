//! What it shows to write a file for nothing.

use std::time::{Duration, SystemTime};

/// What trying out a storage showed, beside that a file can be published there.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Trial {
    /// The bytes that are free, where the other side tells.
    pub bytes_available: Option<u64>,
    /// Whether a file can take the place of another in one step.
    pub can_replace: bool,
    /// Whether what was written is asked to survive a power cut of the other side.
    pub can_sync: bool,
    /// How far the other side's clock is ahead of ours, in seconds; negative where it is behind. None where it does not tell.
    pub clock_ahead: Option<i64>,
}

/// How far the clock is ahead of ours that stamped a file with `stamp`, which we wrote between `before` and `after`. Stamps may be of whole seconds.
pub(super) fn clock_ahead(before: SystemTime, stamp: SystemTime, after: SystemTime) -> i64 {
    let seconds = |later: SystemTime, earlier: SystemTime| {
        let apart = later.duration_since(earlier).unwrap_or(Duration::ZERO);
        i64::try_from(apart.as_secs()).unwrap_or(i64::MAX)
    };
    seconds(stamp, after) - seconds(before, stamp)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_is_right_that_lies_between_the_two_looks_at_ours() {
        let at = |milliseconds: u64| SystemTime::UNIX_EPOCH + Duration::from_millis(milliseconds);
        for (stamp, ahead) in [
            (100_900, 0),
            (100_000, 0),
            (107_000, 0),
            (3_707_000, 3_600),
            (40_000, -60),
        ] {
            assert_eq!(
                clock_ahead(at(100_900), at(stamp), at(107_000)),
                ahead,
                "{stamp}"
            );
        }
    }
}
