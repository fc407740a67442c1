//! The tables and the jobs in them: every promise on MariaDB and on SQLite, many of them with real processes.

mod active;
mod audit;
mod cancel;
mod claims;
mod contention;
mod databases;
mod disks;
mod figures;
mod leases;
mod migrate;
mod model;
mod notify;
mod processes;

use backup_core::jobs::JobId;
use proptest::prelude::*;

proptest! {
    #[test]
    fn a_job_is_named_by_digits_and_nothing_else(text in ".{0,24}") {
        let plain = (1..=18).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
        let read = text.parse::<JobId>();
        prop_assert_eq!(read.is_ok(), plain);
    }

    #[test]
    fn a_number_of_a_job_is_read_as_it_is_shown(number in 0..1_000_000_000_000_000_000_u64) {
        let id: JobId = number.to_string().parse().unwrap();
        prop_assert_eq!(id.get(), number);
        prop_assert_eq!(id.to_string(), number.to_string());
    }
}

#[test]
fn hostile_names_of_jobs_are_refused() {
    for text in [
        "",
        " 1",
        "1 ",
        "+1",
        "-1",
        "1.0",
        "1e3",
        "0x10",
        "1_000",
        "1,2",
        "1;DROP TABLE customer_backup_jobs",
        "1 OR 1=1",
        "1\0",
        "1\n",
        "../1",
        "\u{0661}",
        "\u{ff11}",
        "1000000000000000000",
        "18446744073709551616",
        "99999999999999999999999999999999999999999999",
    ] {
        let error = text.parse::<JobId>().unwrap_err();
        assert_eq!(error.kind(), backup_core::error::ErrorKind::InvalidInput);
        assert!(text.is_empty() || !error.chain().contains(text), "{error}");
    }
}
