//! Times in the zone of who reads a page.

use backup_core::jiff::Timestamp;
use leptos::prelude::*;

use crate::clock;
use crate::words;

/// The zone in which a page tells times.
#[derive(Clone)]
pub struct Zone(String);

impl Zone {
    pub fn new(name: &str) -> Self {
        Self(name.to_owned())
    }

    pub fn name(&self) -> &str {
        &self.0
    }

    /// `Sat 28 Nov 2026` and `14:02`.
    pub fn day_and_time(&self, at: Timestamp) -> (String, String) {
        let words = self.in_words(at);
        match words.split_once(", ") {
            Some((day, time)) => (day.to_owned(), time.to_owned()),
            None => (words, String::new()),
        }
    }

    /// `Sat 28 Nov 2026, 14:02`.
    pub fn in_words(&self, at: Timestamp) -> String {
        clock::wall_time(at.as_millisecond(), &self.0).in_words()
    }
}

/// How long ago that was; the time itself is what the mouse finds.
pub fn age(zone: &Zone, now: Timestamp, at: Timestamp) -> impl IntoView + use<> {
    let words = words::age(now.as_millisecond(), at.as_millisecond());
    let iso = clock::iso(at.as_millisecond());
    view! { <time datetime=iso title=zone.in_words(at)>{words}</time> }
}
