//! The catalogue in numbers, for whoever watches the service.

use jiff::Timestamp;

use super::{Catalog, Source};
use crate::error::Result;

/// The backups of one source, of all customers.
#[derive(Debug, Clone)]
pub struct SourceFigures {
    /// Where they are from.
    pub source: Source,
    /// How many there are: one of a customer is one.
    pub count: u64,
    /// When the newest was made.
    pub newest: Option<Timestamp>,
    /// Plain bytes, of those of which it is known.
    pub bytes: u64,
    /// Bytes that the repository grew by, of those of which it is known.
    pub bytes_added: u64,
}

impl Catalog {
    /// What there is of each source.
    pub async fn figures(&self) -> Result<Vec<SourceFigures>> {
        const QUERY: &str = "SELECT source, COUNT(*), CAST(MAX(time) AS SIGNED), CAST(SUM(COALESCE(bytes, 0)) AS SIGNED),
                CAST(SUM(COALESCE(bytes_added, 0)) AS SIGNED)
            FROM customer_backups GROUP BY source";
        let rows: Vec<(String, i64, i64, i64, i64)> = self.store.rows(QUERY, &[]).await?;
        let number = |number: i64| u64::try_from(number).unwrap_or(0);
        let figures =
            |(source, count, newest, bytes, bytes_added): (String, i64, i64, i64, i64)| {
                Some(SourceFigures {
                    source: source.parse().ok()?,
                    count: number(count),
                    newest: Timestamp::from_millisecond(newest).ok(),
                    bytes: number(bytes),
                    bytes_added: number(bytes_added),
                })
            };
        Ok(rows.into_iter().filter_map(figures).collect())
    }
}
