//! The pages, one file each.

mod backup;
mod backups;
mod loaded;
mod login;
mod missing;

pub use loaded::PageView;
pub use login::LoginView;
pub use missing::MissingView;

/// The status that the server sends a page with.
#[cfg(feature = "ssr")]
pub fn answer_with(status: axum::http::StatusCode) {
    if let Some(answer) = leptos::prelude::use_context::<leptos_axum::ResponseOptions>() {
        answer.set_status(status);
    }
}

/// Without JavaScript a page refreshes itself while a job is active and nobody is filling in a form on it.
fn refresh_without_script(live: crate::live::Live, asks: bool) -> impl leptos::prelude::IntoView {
    use leptos::prelude::*;
    (live.is_busy.get_untracked() && !asks).then(|| {
        view! { <noscript inner_html="<meta http-equiv=\"refresh\" content=\"5\">"></noscript> }
    })
}

#[cfg(all(test, feature = "ssr"))]
mod tests;
