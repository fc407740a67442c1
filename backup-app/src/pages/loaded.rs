//! A page and what it waits for. Both pages come through here: what is generic in waiting is compiled, and loaded by browsers, once.

use leptos::prelude::*;
use leptos_router::hooks::use_params_map;
use serde::{Deserialize, Serialize};

use super::backup::Details;
use super::backups::Backups;
use super::name_page;
use crate::components::{Loading, PageProblem, at_once};
use crate::data::PageError;
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
    name_page(title);
    at_once(view! {
        <Suspense fallback=Loading>
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

#[cfg(feature = "ssr")]
async fn load(id: Option<String>) -> Result<Page, PageError> {
    use crate::data::{load_backup, load_backups};

    match id {
        None => load_backups()
            .await
            .map(|page| Page::Backups(Box::new(page))),
        Some(id) => load_backup(id)
            .await
            .map(|page| Page::Backup(Box::new(page))),
    }
}

/// The same, asked of the server.
#[cfg(feature = "hydrate")]
async fn load(id: Option<String>) -> Result<Page, PageError> {
    use crate::data::{By, LoadBackup, LoadBackups, fetch};
    use leptos::server_fn::ServerFn;
    use send_wrapper::SendWrapper;

    // There is one thread, but the resource has to be fit for many.
    SendWrapper::new(async {
        match id {
            None => fetch(LoadBackups::PATH, By::Somebody)
                .await
                .map(|page| Page::Backups(Box::new(page))),
            Some(id) => {
                let id: String = js_sys::encode_uri_component(&id).into();
                let address = [LoadBackup::PATH, "?id=", &id].concat();
                fetch(&address, By::Somebody)
                    .await
                    .map(|page| Page::Backup(Box::new(page)))
            }
        }
    })
    .await
}
