//! Times as customers read them.

use leptos::prelude::*;

use crate::clock::{Clock, iso};
use crate::words;

/// A time in the customer's own zone.
#[component]
pub fn When(
    /// Milliseconds since 1970, UTC.
    time: i64,
) -> impl IntoView {
    let clock: Clock = expect_context();
    view! { <time datetime=iso(time)>{move || clock.in_words(time)}</time> }
}

/// How long ago that was.
#[component]
pub fn Age(
    /// Milliseconds since 1970, UTC.
    time: i64,
) -> impl IntoView {
    let clock: Clock = expect_context();
    let age = Memo::new(move |_| words::age(clock.now.get(), time));
    view! { <span class="age">{age}</span> }
}
