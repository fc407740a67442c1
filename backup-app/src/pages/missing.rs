//! Where there is no page.

use leptos::prelude::*;

use super::name_page;
use crate::components::{Brand, at_once};

/// Says so, and leads back.
#[component]
pub fn MissingView() -> impl IntoView {
    #[cfg(feature = "ssr")]
    super::answer_with(axum::http::StatusCode::NOT_FOUND);
    name_page(|| "No such page");
    at_once(view! {
        <main id="main" class="alone">
            <Brand />
            <section class="panel">
                <h1>"There is no such page"</h1>
                <p>"Perhaps the address was mistyped."</p>
                <p><a class="button primary" href="/backups">"Go to your backups"</a></p>
            </section>
        </main>
    })
}
