//! The frame around every page, and which page is where.

use leptos::prelude::*;
use leptos_router::components::{FlatRoutes, Route, Router};
use leptos_router::{SsrMode, path};

use crate::live::Notices;
use crate::pages::{LoginView, MissingView, PageView};

/// The document that the server sends; with script where there is one that fits.
#[cfg(feature = "ssr")]
pub fn shell(options: LeptosOptions, has_script: bool) -> impl IntoView {
    use leptos_meta::{HashedStylesheet, MetaTags};

    // Without a bundle there is nothing to load: pages work all the same.
    let has_bundle = options.hash_files;
    view! {
        <!DOCTYPE html>
        <html lang="en">
            <head>
                {head()}
                <MetaTags />
                {has_bundle.then(|| view! { <HashedStylesheet options=options.clone() /> })}
                {has_script.then(|| view! { <HydrationScripts options=options.clone() /> })}
            </head>
            <body>
                <App />
            </body>
        </html>
    }
}

/// What is in the head of every page.
#[cfg(feature = "ssr")]
pub(crate) fn head() -> impl IntoView {
    view! {
        <meta charset="utf-8" />
        <meta name="viewport" content="width=device-width, initial-scale=1" />
        <meta name="color-scheme" content="light dark" />
        <link rel="icon" type="image/svg+xml" href="/favicon.svg" />
    }
}

/// The dashboard.
#[component]
pub fn App() -> impl IntoView {
    #[cfg(feature = "ssr")]
    leptos_meta::provide_meta_context();
    Notices::provide();
    view! {
        <Router>
            <FlatRoutes fallback=MissingView>
                <Route path=path!("/login") view=LoginView ssr=SsrMode::Async />
                <Route path=path!("/backups") view=PageView ssr=SsrMode::Async />
                <Route path=path!("/backups/:id") view=PageView ssr=SsrMode::Async />
            </FlatRoutes>
        </Router>
    }
}
