//! A page and what it waits for. Both pages come through here: what is generic in waiting is compiled, and loaded by browsers, once.

use leptos::prelude::*;
use leptos_meta::Title;
use leptos_router::hooks::use_params_map;
use serde::{Deserialize, Serialize};

use super::backup::Details;
use super::backups::Backups;
use crate::components::{PageProblem, at_once};
use crate::data::{PageError, load_backup, load_backups};
use crate::model::{BackupPage, BackupsPage};

/// What a page shows.
#[derive(Clone, Serialize, Deserialize)]
enum Page {
    Backups(Box<BackupsPage>),
    Backup(Box<BackupPage>),
}

/// `/backups`, or `/backups/{id}` where the address has an id.
#[component]
pub fn PageView() -> impl IntoView {
    let params = use_params_map();
    // Counted, not owned by the page: the title is asked for when the server may be done with the page.
    let id = ArcMemo::new(move |_| params.read().get("id"));
    let asked = id.clone();
    let page = Resource::new(move || asked.get(), load);
    let again = Callback::new(move |()| page.refetch());
    let title = move || {
        if id.with(Option::is_some) {
            "Backup"
        } else {
            "Backups"
        }
    };
    at_once(view! {
        <Title text=title />
        <Suspense fallback=|| {
            view! { <main id="main" class="loading" aria-busy="true">"Loading …"</main> }
        }>
            {move || Suspend::new(async move {
                match page.await {
                    Ok(Page::Backups(page)) => at_once(view! { <Backups page=*page /> }),
                    Ok(Page::Backup(page)) => at_once(view! { <Details page=*page /> }),
                    Err(problem) => at_once(view! { <PageProblem problem again /> }),
                }
            })}
        </Suspense>
    })
}

async fn load(id: Option<String>) -> Result<Page, PageError> {
    match id {
        None => load_backups()
            .await
            .map(|page| Page::Backups(Box::new(page))),
        Some(id) => load_backup(id)
            .await
            .map(|page| Page::Backup(Box::new(page))),
    }
}
