//! The pages, one file each.

mod backup;
mod backups;
mod loaded;
mod login;
mod missing;

use leptos::prelude::*;
use leptos_router::hooks::use_query_map;

use crate::clock;
use crate::live::Live;
use crate::model::{Job, JobStatus, Viewer};
use crate::words;

pub use loaded::PageView;
pub use login::LoginView;
pub use missing::MissingView;

/// Name a page, in its tab and in the history of the browser.
fn name_page(title: impl Fn() -> &'static str + Send + Sync + 'static) {
    let title = move || [title(), " · ShopHosting Backups"].concat();
    // Written by the server once, into the head; nothing of it is in the page itself.
    #[cfg(feature = "ssr")]
    drop(view! { <leptos_meta::Title text=title /> });
    #[cfg(feature = "hydrate")]
    Effect::new(move |_| document().set_title(&title()));
}

/// The status that the server sends a page with.
#[cfg(feature = "ssr")]
pub fn answer_with(status: axum::http::StatusCode) {
    if let Some(answer) = use_context::<leptos_axum::ResponseOptions>() {
        answer.set_status(status);
    }
}

/// In the address of a page that refreshes itself: the job that had no true end when it was shown last.
const WATCHED: &str = "watched";

/// For how long the end of a job is news.
const NEWS: i64 = 60_000;

/// Without JavaScript a page refreshes itself while a job has no true end and nobody is filling in a form on it.
fn refresh_without_script(live: Live, here: &str, asks: bool) -> impl IntoView + use<> {
    let job = live
        .open
        .with_untracked(|job| job.as_ref().map(|job| job.id));
    job.filter(|_| !asks).map(|job| {
        let refresh = [
            "<meta http-equiv=\"refresh\" content=\"5; url=",
            here,
            "?",
            WATCHED,
            "=",
            &job.to_string(),
            "\">",
        ];
        view! { <noscript inner_html=refresh.concat()></noscript> }
    })
}

/// Who looks at the page, told that the job that he watched without JavaScript is done.
fn told_of_end(mut viewer: Viewer, jobs: &[Job]) -> Viewer {
    let watched = use_query_map().with_untracked(|query| query.get(WATCHED)?.parse().ok());
    let is_news = |job: &&Job| {
        let ended = job.completed_at.as_deref().and_then(clock::parse);
        Some(job.id) == watched
            && job.status == JobStatus::Completed
            && ended.is_some_and(|ended| viewer.now - ended < NEWS)
    };
    let done = jobs.iter().find(is_news).map(words::done);
    viewer.flash = viewer.flash.or(done);
    viewer
}

#[cfg(all(test, feature = "ssr"))]
mod tests;
