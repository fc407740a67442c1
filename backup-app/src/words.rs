//! Everything that is said in words: sizes, durations, ages, times, kinds and phases.
//!
//! Pure functions of plain values, the same on the server and in the browser: what both render must be equal to the letter.
//! Never: a word that only an operator knows.

use crate::model::{Backup, Flash, Job, JobStatus, JobType, Part, Source};

const SECOND: i64 = 1000;
const MINUTE: i64 = 60 * SECOND;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;

/// A time as a calendar and a clock on the wall show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WallTime {
    /// 2026.
    pub year: i64,
    /// 1 to 12.
    pub month: u8,
    /// 1 to 31.
    pub day: u8,
    /// 0 to 23.
    pub hour: u8,
    /// 0 to 59.
    pub minute: u8,
}

impl WallTime {
    /// `Wed 18 Nov 2026, 03:12`.
    pub fn in_words(self) -> String {
        const WEEKDAYS: [&str; 7] = ["Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"];
        const MONTHS: [&str; 12] = [
            "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
        ];
        let mut words = String::with_capacity(24);
        words.push_str(WEEKDAYS[self.weekday()]);
        words.push(' ');
        words.push_str(&self.day.to_string());
        words.push(' ');
        words.push_str(MONTHS[usize::from(self.month.clamp(1, 12)) - 1]);
        words.push(' ');
        words.push_str(&self.year.to_string());
        words.push_str(", ");
        push_two_digits(&mut words, i64::from(self.hour));
        words.push(':');
        push_two_digits(&mut words, i64::from(self.minute));
        words
    }

    /// Days since Sunday (Sakamoto's congruence).
    fn weekday(self) -> usize {
        const OFFSETS: [i64; 12] = [0, 3, 2, 5, 0, 3, 5, 1, 4, 6, 2, 4];
        let year = self.year - i64::from(self.month < 3);
        let month = usize::from(self.month.clamp(1, 12)) - 1;
        let days = year + year / 4 - year / 100 + year / 400 + OFFSETS[month] + i64::from(self.day);
        usize::try_from(days.rem_euclid(7)).unwrap_or_default()
    }
}

/// `1.2 GB`: as file managers say it, in powers of a thousand.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["kB", "MB", "GB", "TB", "PB"];
    if bytes < 1000 {
        return count(bytes, "byte");
    }
    let bytes = u128::from(bytes);
    let mut scale = 1000;
    let mut unit = 0;
    // A thousand of a unit, also by rounding, is one of the next.
    while bytes + scale / 2 >= scale * 1000 && unit + 1 < UNITS.len() {
        scale *= 1000;
        unit += 1;
    }
    let tenths = to_u64((bytes * 10 + scale / 2) / scale);
    // From ten on, a tenth tells nobody anything.
    let mut words = if tenths < 100 {
        [&grouped(tenths / 10), ".", &grouped(tenths % 10)].concat()
    } else {
        grouped(to_u64((bytes + scale / 2) / scale))
    };
    words.push(' ');
    words.push_str(UNITS[unit]);
    words
}

fn to_u64(number: u128) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

/// `12 480`: thousands apart, with a space that does not break the line.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut words = String::with_capacity(digits.len() + digits.len() / 3 * 2);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            words.push('\u{202f}');
        }
        words.push(digit);
    }
    words
}

/// `1 file`, `2 files`.
pub fn count(number: u64, noun: &str) -> String {
    let mut words = grouped(number);
    words.push(' ');
    words.push_str(noun);
    if number != 1 {
        words.push('s');
    }
    words
}

/// A duration in at most two units: `45 seconds`, `3 min 20 s`, `1 h 5 min`.
pub fn duration(millis: i64) -> String {
    let seconds = (millis.max(0) + SECOND / 2) / SECOND;
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match (hours, minutes, seconds) {
        (0, 0, 0) => "less than a second".into(),
        (0, 0, 1) => "1 second".into(),
        (0, 0, seconds) => join(seconds, " seconds", 0, ""),
        (0, minutes, seconds) => join(minutes, " min", seconds, " s"),
        (hours, minutes, _) => join(hours, " h", minutes, " min"),
    }
}

/// A running clock: `0:07`, `12:40`, `1:02:40`.
pub fn stopwatch(millis: i64) -> String {
    let seconds = millis.max(0) / SECOND;
    let mut words = String::new();
    if seconds >= 3600 {
        words.push_str(&(seconds / 3600).to_string());
        words.push(':');
        push_two_digits(&mut words, seconds / 60 % 60);
    } else {
        words.push_str(&(seconds / 60).to_string());
    }
    words.push(':');
    push_two_digits(&mut words, seconds % 60);
    words
}

/// How long something will take, as roughly as it is known.
pub fn time_left(seconds: u64) -> String {
    match seconds {
        0..=9 => "a few seconds left".into(),
        10..=54 => join_left(seconds.div_ceil(10) * 10, " seconds left"),
        55..=3569 => join_left((seconds + 30) / 60, " min left"),
        _ => join_left((seconds + 1800) / 3600, " h left"),
    }
}

/// `just now`, `12 minutes ago`, `3 hours ago`, `2 days ago`.
pub fn age(now: i64, then: i64) -> String {
    let elapsed = now - then;
    if elapsed < MINUTE {
        return "just now".into();
    }
    let (number, unit) = in_one_unit(elapsed);
    let mut words = count(number, unit);
    words.push_str(" ago");
    words
}

/// What lies between two times, after `the`: `minute`, `12 minutes`, `2 days`.
pub fn span(millis: i64) -> String {
    match in_one_unit(millis) {
        (1, unit) => unit.into(),
        (number, unit) => count(number, unit),
    }
}

fn in_one_unit(millis: i64) -> (u64, &'static str) {
    let (number, unit) = match millis {
        ..HOUR => ((millis / MINUTE).max(1), "minute"),
        HOUR..DAY => (millis / HOUR, "hour"),
        _ => (millis / DAY, "day"),
    };
    (number.unsigned_abs(), unit)
}

/// What a backup holds, or a job works on.
pub fn part(part: Part) -> &'static str {
    match part {
        Part::Both => "Database & files",
        Part::Db => "Database only",
        Part::Files => "Files only",
    }
}

/// The same in the middle of a sentence.
pub fn part_in_sentence(part: Part) -> &'static str {
    match part {
        Part::Both => "database and files",
        Part::Db => "the database",
        Part::Files => "the files",
    }
}

/// What the parts of a shop are, for somebody who never saw a database.
pub fn part_means(part: Part) -> &'static str {
    match part {
        Part::Both => "The whole shop. The right choice before an update or when in doubt.",
        Part::Db => "Products, orders, customers, texts and settings. Quick.",
        Part::Files => "Theme, plugins, pictures and other uploads.",
    }
}

/// What is in a backup of this.
pub fn part_holds(part: Part) -> &'static str {
    match part {
        Part::Both => {
            "The whole shop: products, orders, customers, settings, theme, plugins and pictures."
        }
        Part::Db => "Products, orders, customers, texts and settings. No files.",
        Part::Files => "Theme, plugins, pictures and other uploads. No orders, no customers.",
    }
}

/// Where a backup is from.
pub fn source(source: Source) -> &'static str {
    match source {
        Source::Manual => "Made by you",
        Source::Daily => "Daily backup",
        Source::PreRestore => "Made before a restore",
    }
}

/// What a job is, as a title.
pub fn job_title(job: &Job) -> &'static str {
    match (job.job_type, job.backup_type) {
        (JobType::Backup, Part::Both) => "Backup of database & files",
        (JobType::Backup, Part::Db) => "Backup of the database",
        (JobType::Backup, Part::Files) => "Backup of the files",
        (JobType::Restore, Part::Both) => "Restore of database & files",
        (JobType::Restore, Part::Db) => "Restore of the database",
        (JobType::Restore, Part::Files) => "Restore of the files",
    }
}

/// What a job that has not ended is doing.
pub fn doing(job: &Job) -> &'static str {
    if job.cancel_requested {
        return "Stopping: everything stays as it was";
    }
    if job.status == JobStatus::Pending {
        return "Waiting for its turn";
    }
    match job.phase.as_deref() {
        Some(word) => phase(word, job.backup_type),
        None => "Getting ready",
    }
}

/// A phase (`backup_core::progress::Phase`).
pub fn phase(word: &str, part: Part) -> &'static str {
    match (word, part) {
        ("preparing", _) => "Getting ready",
        ("saving", Part::Both) => "Saving database and files",
        ("saving", Part::Db) => "Saving the database",
        ("saving", Part::Files) => "Saving the files",
        ("committing", _) => "Checking what was saved",
        ("restoring_files", _) => "Fetching the files",
        ("importing_database", _) => "Fetching the database",
        ("swapping", _) => "Putting it in place",
        ("starting", _) => "Starting your shop",
        ("keeping", _) => "Saving what was replaced",
        ("cleaning_up", _) => "Tidying up",
        _ => "Working",
    }
}

/// The phases that a job goes through, in their order.
pub fn phases(job_type: JobType, part: Part) -> &'static [&'static str] {
    match (job_type, part) {
        (JobType::Backup, _) => &["preparing", "saving", "committing"],
        (JobType::Restore, Part::Both) => &[
            "preparing",
            "restoring_files",
            "importing_database",
            "swapping",
            "starting",
            "keeping",
            "cleaning_up",
        ],
        (JobType::Restore, Part::Db) => &[
            "preparing",
            "importing_database",
            "swapping",
            "starting",
            "keeping",
            "cleaning_up",
        ],
        (JobType::Restore, Part::Files) => &[
            "preparing",
            "restoring_files",
            "swapping",
            "starting",
            "keeping",
            "cleaning_up",
        ],
    }
}

/// What is said when a job is done.
pub fn done(job: &Job) -> Flash {
    let message = match (job.job_type, job.recovered) {
        (JobType::Backup, _) => "Your backup is done.".into(),
        (JobType::Restore, false) => RESTORED.into(),
        (JobType::Restore, true) => [RESTORED, " ", RECOVERED].concat(),
    };
    Flash {
        success: true,
        message,
        undo: job.kept_snapshot.clone(),
        is_end: true,
    }
}

const RESTORED: &str = "Your shop is restored and open again.";

/// Of a restore that somebody else had to finish.
pub const RECOVERED: &str = "It was interrupted and finished on its own.";

/// How a job ended, in a word or two.
pub fn ended(job: &Job) -> &'static str {
    match (job.status, job.failure.as_deref()) {
        (JobStatus::Pending, _) => "Waiting",
        (JobStatus::Running, _) => "Running",
        (JobStatus::Completed, _) => "Done",
        (JobStatus::Failed, Some("cancelled")) => "Cancelled",
        (JobStatus::Failed, Some("rolled_back")) => "Rolled back",
        (JobStatus::Failed, Some("stuck")) => "Our team has been told",
        (JobStatus::Failed, _) => "Failed",
    }
}

/// The note of a backup in a sentence about it: ` (“before the update”)`, or nothing.
pub fn note_in_sentence(backup: &Backup) -> String {
    match &backup.note {
        Some(note) => ["\u{a0}(“", note, "”)"].concat(),
        None => String::new(),
    }
}

fn join(first: i64, first_unit: &str, second: i64, second_unit: &str) -> String {
    let mut words = first.to_string();
    words.push_str(first_unit);
    if second > 0 {
        words.push(' ');
        words.push_str(&second.to_string());
        words.push_str(second_unit);
    }
    words
}

fn join_left(number: u64, rest: &str) -> String {
    let mut words = String::from("about ");
    words.push_str(&number.to_string());
    words.push_str(rest);
    words
}

fn push_two_digits(words: &mut String, number: i64) {
    if number < 10 {
        words.push('0');
    }
    words.push_str(&number.to_string());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_said_as_file_managers_say_them() {
        for (bytes, words) in [
            (0, "0 bytes"),
            (1, "1 byte"),
            (999, "999 bytes"),
            (1000, "1.0 kB"),
            (1949, "1.9 kB"),
            (9_949, "9.9 kB"),
            (9_960, "10 kB"),
            (12_700, "13 kB"),
            (999_499, "999 kB"),
            (999_999, "1.0 MB"),
            (1_234_567_890, "1.2 GB"),
            (45_600_000_000, "46 GB"),
            (u64::MAX, "18\u{202f}447 PB"),
        ] {
            assert_eq!(size(bytes), words, "{bytes}");
        }
    }

    #[test]
    fn durations_are_said_in_at_most_two_units() {
        for (millis, words) in [
            (-5, "less than a second"),
            (1_000, "1 second"),
            (45_400, "45 seconds"),
            (60_000, "1 min"),
            (200_000, "3 min 20 s"),
            (3_600_000, "1 h"),
            (3_912_000, "1 h 5 min"),
        ] {
            assert_eq!(duration(millis), words, "{millis}");
        }
    }

    #[test]
    fn a_stopwatch_never_shows_a_lone_digit_of_seconds() {
        for (millis, words) in [
            (-1, "0:00"),
            (7_900, "0:07"),
            (760_000, "12:40"),
            (3_760_000, "1:02:40"),
        ] {
            assert_eq!(stopwatch(millis), words, "{millis}");
        }
    }

    #[test]
    fn ages_are_rounded_down_so_that_nothing_is_older_than_it_is() {
        for (elapsed, words) in [
            (-HOUR, "just now"),
            (59 * SECOND, "just now"),
            (MINUTE, "1 minute ago"),
            (HOUR - 1, "59 minutes ago"),
            (HOUR, "1 hour ago"),
            (DAY - 1, "23 hours ago"),
            (DAY, "1 day ago"),
            (12 * DAY + 23 * HOUR, "12 days ago"),
        ] {
            assert_eq!(age(elapsed, 0), words, "{elapsed}");
        }
    }

    #[test]
    fn a_span_of_one_is_said_without_a_number() {
        for (millis, words) in [
            (0, "minute"),
            (2 * MINUTE, "2 minutes"),
            (HOUR, "hour"),
            (51 * HOUR, "2 days"),
        ] {
            assert_eq!(span(millis), words, "{millis}");
        }
    }

    #[test]
    fn time_left_is_as_rough_as_it_is_known() {
        for (seconds, words) in [
            (0, "a few seconds left"),
            (11, "about 20 seconds left"),
            (54, "about 60 seconds left"),
            (89, "about 1 min left"),
            (3569, "about 59 min left"),
            (3570, "about 1 h left"),
        ] {
            assert_eq!(time_left(seconds), words, "{seconds}");
        }
    }

    #[test]
    fn times_have_the_right_day_of_the_week() {
        let time = |year, month, day| {
            WallTime {
                year,
                month,
                day,
                hour: 3,
                minute: 7,
            }
            .in_words()
        };
        assert_eq!(time(2026, 11, 18), "Wed 18 Nov 2026, 03:07");
        assert_eq!(time(2024, 2, 29), "Thu 29 Feb 2024, 03:07");
        assert_eq!(time(2000, 1, 1), "Sat 1 Jan 2000, 03:07");
    }

    #[test]
    fn every_phase_of_the_engine_has_words() {
        use backup_core::progress::Phase;
        let known = [
            Phase::Preparing,
            Phase::Saving,
            Phase::Committing,
            Phase::RestoringFiles,
            Phase::ImportingDatabase,
            Phase::Swapping,
            Phase::Starting,
            Phase::Keeping,
            Phase::CleaningUp,
        ];
        for phase in known {
            assert_ne!(super::phase(phase.as_str(), Part::Both), "Working");
        }
        for job_type in [JobType::Backup, JobType::Restore] {
            for part in [Part::Db, Part::Files, Part::Both] {
                for word in phases(job_type, part) {
                    assert!(Phase::from_word(word).is_some(), "{word}");
                }
            }
        }
    }
}
