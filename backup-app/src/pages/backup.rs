//! `/backups/{id}`.

use leptos::prelude::*;
use leptos_meta::Title;
use leptos_router::hooks::use_params_map;

use crate::data::load_backup;

/// One backup.
#[component]
pub fn BackupView() -> impl IntoView {
    let params = use_params_map();
    let page = Resource::new(
        move || params.read().get("id").unwrap_or_default(),
        load_backup,
    );
    view! {
        <Title text="Backup" />
        <main>
            <h1>"Backup"</h1>
            <Suspense>
                {move || Suspend::new(async move {
                    page.await.ok().map(|page| view! { <p>{page.backup.map(|backup| backup.id)}</p> })
                })}
            </Suspense>
        </main>
    }
}
