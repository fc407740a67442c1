//! Dialogs, driven by the address: `?ask=…` opens one, so that it works without JavaScript, can be linked to, and Back closes it.

use leptos::html;
use leptos::prelude::*;
use leptos_router::NavigateOptions;
use leptos_router::hooks::{use_navigate, use_query_map};

use super::at_once::at_once;
use crate::model::Part;

/// What a page asks the customer.
#[derive(Debug, Clone, PartialEq)]
pub enum Ask {
    /// Whether to back this up.
    Backup(Part),
    /// Whether to restore the backup with this id; which part is proposed.
    Restore(String, Option<Part>),
    /// Whether to delete the backup with this id.
    Delete(String),
    /// Whether to cancel the running job.
    Cancel,
}

/// What the address asks for, on a page that may be about one backup.
pub fn use_ask(backup: Option<String>) -> Memo<Option<Ask>> {
    let query = use_query_map();
    Memo::new(move |_| {
        query.with(|query| {
            let id = || backup.clone().or_else(|| query.get("id"));
            let part = query.get("type").as_deref().and_then(part_from_word);
            match query.get_str("ask")? {
                "backup" => Some(Ask::Backup(part.unwrap_or(Part::Both))),
                "restore" => Some(Ask::Restore(id()?, part)),
                "delete" => Some(Ask::Delete(id()?)),
                "cancel" => Some(Ask::Cancel),
                _ => None,
            }
        })
    })
}

fn part_from_word(word: &str) -> Option<Part> {
    match word {
        "both" => Some(Part::Both),
        "db" => Some(Part::Db),
        "files" => Some(Part::Files),
        _ => None,
    }
}

/// As forms and addresses have it.
pub fn part_word(part: Part) -> &'static str {
    match part {
        Part::Both => "both",
        Part::Db => "db",
        Part::Files => "files",
    }
}

/// The way out of a dialog: back to the page that it was opened from.
#[derive(Clone, Copy)]
pub struct Leave {
    plain: StoredValue<String>,
    opened_here: StoredValue<bool>,
    is_open: StoredValue<bool>,
}

impl Leave {
    /// Of the page with this plain address, which asks this.
    pub fn provide(plain: String, ask: Memo<Option<Ask>>) {
        let (opened_here, is_open) = (StoredValue::new(false), StoredValue::new(false));
        // Opened by a click on this page, the page without it is one step back in the history.
        Effect::new(move |was_open: Option<bool>| {
            let asks = ask.with(Option::is_some);
            if was_open != Some(asks) {
                opened_here.set_value(asks && was_open == Some(false));
            }
            is_open.set_value(asks);
            asks
        });
        provide_context(Self {
            plain: StoredValue::new(plain),
            opened_here,
            is_open,
        });
    }

    /// The address of the page without a dialog.
    pub fn plain(self) -> String {
        self.plain.get_value()
    }
}

/// A function that closes the dialog. To be made where components are.
pub fn use_leave() -> impl Fn() + Clone + Send + Sync + 'static {
    let leave: Leave = expect_context();
    let navigate = use_navigate();
    move || {
        // Going back takes a moment: who closes it twice shall not go back twice.
        if !leave.is_open.get_value() {
            return;
        }
        leave.is_open.set_value(false);
        if leave.opened_here.get_value() {
            let _ = window().history().and_then(|history| history.back());
        } else {
            navigate(&leave.plain(), without_trace());
        }
    }
}

fn without_trace() -> NavigateOptions {
    NavigateOptions {
        replace: true,
        scroll: false,
        ..NavigateOptions::default()
    }
}

/// A question. Without JavaScript a card on top of the page; with it a modal dialog that has the focus.
#[component]
pub fn Dialog<C: IntoView + 'static>(
    /// What is asked.
    #[prop(into)]
    title: String,
    children: TypedChildren<C>,
) -> impl IntoView {
    dialog(title, at_once(children.into_inner()()))
}

fn dialog(title: String, content: AnyView) -> AnyView {
    let dialog = NodeRef::<html::Dialog>::new();
    let leave = use_leave();
    Effect::new(move |_| {
        let Some(element) = dialog.get() else { return };
        if element.open() {
            // Open so far as the server wrote it: not modal.
            let _ = element.remove_attribute("open");
        }
        let _ = element.show_modal();
    });
    // Closing gives the focus back to what opened it; removing alone would not.
    on_cleanup(move || {
        if let Some(element) = dialog.try_get_untracked().flatten() {
            element.close();
        }
    });
    let closed = move |_| {
        // Not while it is being removed: it was left already.
        let is_shown = dialog
            .try_get_untracked()
            .flatten()
            .is_some_and(|element| element.is_connected());
        if is_shown {
            leave();
        }
    };
    at_once(view! {
        <dialog class="dialog" open node_ref=dialog on:close=closed aria-labelledby="dialog-title">
            <h2 id="dialog-title">{title}</h2>
            {content}
        </dialog>
    })
}

/// The way out that changes nothing.
#[component]
pub fn CloseLink(
    /// What it is called.
    text: &'static str,
    /// Whether it has the focus first: where the other way destroys something, Enter alone shall not.
    #[prop(optional)]
    first: bool,
) -> impl IntoView {
    let context: Leave = expect_context();
    let leave = use_leave();
    view! {
        <a class="button" href=context.plain() data-noscroll autofocus=first on:click=move |event| {
            event.prevent_default();
            leave();
        }>{text}</a>
    }
}
