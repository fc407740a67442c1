//! `/backups`.

use leptos::prelude::*;
use leptos_meta::Title;

use crate::data::load_backups;

/// The customer's backups.
#[component]
pub fn BackupsView() -> impl IntoView {
    let page = Resource::new(|| (), |()| load_backups());
    view! {
        <Title text="Backups" />
        <main>
            <h1>"Backups"</h1>
            <Suspense>
                {move || Suspend::new(async move {
                    page.await.ok().map(|page| view! { <p>{page.manual.len()} " of " {page.kept} " kept"</p> })
                })}
            </Suspense>
        </main>
    }
}
