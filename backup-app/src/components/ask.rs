//! The questions that come before anything is done: what will happen, in plain words, and the form that does it.
//!
//! Each can be understood without its page. Never: a restore or a deletion that one click does.

use leptos::either::Either;
use leptos::prelude::*;

use super::at_once::at_once;
use super::dialog::{Ask, CloseLink, Dialog, part_word, use_leave};
use super::form::ActionForm;
use super::list::why_off;
use super::time::{Age, When};
use crate::clock::{self, Clock};
use crate::live::Live;
use crate::model::{Backup, Flash, Job, JobStatus, JobType, Outcome, Part, Source};
use crate::words;

/// The longest note that fits a list.
const NOTE_MAX: &str = "200";
/// What is said of a backup that is not on the page.
const GONE: (&str, &str) = (
    "This backup is not there any more",
    "It was deleted, or newer ones took its place.",
);

/// What the address asks, if anything.
#[component]
pub fn Questions(
    ask: Memo<Option<Ask>>,
    /// The backups of the page, whatever their source.
    #[prop(into)]
    backups: Signal<Vec<Backup>>,
    /// How many backups are kept that were made of what a restore replaced.
    replaced_kept: u32,
    /// The manual backup that the next one pushes out, and how many are kept; None where the page makes none.
    #[prop(optional, into)]
    kept: Signal<Option<Kept>>,
    /// Where a deletion leads.
    #[prop(into)]
    after_delete: String,
) -> impl IntoView {
    let live: Live = expect_context();
    let find = move |id: &str| {
        backups.with_untracked(|backups| backups.iter().find(|backup| backup.id == id).cloned())
    };
    let after_delete = StoredValue::new(after_delete);
    move || {
        let ask = ask.get()?;
        // A question that is on the screen is not taken away by what happens meanwhile.
        let in_the_way = match ask {
            Ask::Cancel | Ask::Delete(_) => live.active,
            Ask::Backup(_) | Ask::Restore(..) => live.open,
        };
        Some(match (ask, in_the_way.get_untracked()) {
            (Ask::Cancel, Some(job)) => at_once(view! { <AskCancel job /> }),
            (Ask::Cancel, None) => at_once(view! {
                <NotNow title="There is nothing to cancel" reason="No backup or restore is running any more." />
            }),
            (_, Some(job)) => {
                at_once(view! { <NotNow title="Not right now" reason=why_off(&job) /> })
            }
            (Ask::Backup(part), None) => {
                at_once(view! { <AskBackup part kept=kept.get_untracked() /> })
            }
            (Ask::Restore(id, part), None) => match find(&id) {
                Some(backup) => {
                    at_once(view! { <AskRestore backup proposed=part replaced_kept /> })
                }
                None => {
                    // One that was made just now may be on its way here.
                    backups.track();
                    at_once(view! { <NotNow title=GONE.0 reason=GONE.1 /> })
                }
            },
            (Ask::Delete(id), None) => match find(&id) {
                Some(backup) if backup.source == Source::Manual => {
                    let after = after_delete.get_value();
                    at_once(view! { <AskDelete backup after /> })
                }
                _ => at_once(view! { <NotNow title=GONE.0 reason=GONE.1 /> }),
            },
        })
    }
}

/// How many manual backups there are, and what becomes of the oldest.
#[derive(Debug, Clone, PartialEq)]
pub struct Kept {
    /// How many there are.
    pub have: usize,
    /// How many are kept.
    pub most: u32,
    /// The one that the next backup pushes out.
    pub next_to_go: Option<Backup>,
}

/// After success: close the question and show what began.
fn accepted() -> Callback<Outcome> {
    let live: Live = expect_context();
    let leave = use_leave();
    Callback::new(move |outcome: Outcome| {
        live.notices.message.set(None);
        live.started.set(outcome.job_id);
        leave();
        live.changed();
    })
}

#[component]
fn AskBackup(part: Part, kept: Option<Kept>) -> impl IntoView {
    let live: Live = expect_context();
    let sending = RwSignal::new(false);
    let title = match part {
        Part::Both => "Back up database & files?",
        Part::Db => "Back up the database?",
        Part::Files => "Back up the files?",
    };
    let saved = match part {
        Part::Both => {
            "The whole shop is saved: products, orders, customers and settings, and the theme, plugins and pictures."
        }
        Part::Db => {
            "Products, orders, customers, texts and settings are saved. Theme, plugins and pictures are not."
        }
        Part::Files => {
            "Theme, plugins, pictures and other uploads are saved. Products, orders and customers are not."
        }
    };
    let took = took_last_time(live, JobType::Backup, part);
    view! {
        <Dialog title>
            <ul class="what-happens">
                <li>"Your shop stays open. Nothing in it changes."</li>
                <li>{saved}</li>
                {took.map(|took| view! { <li>"Last time it took " {took} "."</li> })}
                {kept.map(|kept| view! { <li><WhatIsKept kept /></li> })}
            </ul>
            <ActionForm action="/backups/create".into() sending done=accepted()>
                <input type="hidden" name="backup_type" value=part_word(part) />
                <label class="field">
                    <span>"Note " <small>"(optional, for yourself)"</small></span>
                    <input type="text" name="note" maxlength=NOTE_MAX autocomplete="off" placeholder="Before the update" />
                </label>
                <p class="dialog-buttons">
                    <button class="button primary" disabled=move || sending.get()>"Start the backup"</button>
                    <CloseLink text="Cancel" />
                </p>
            </ActionForm>
        </Dialog>
    }
}

/// What the next backup does to those before it.
#[component]
fn WhatIsKept(kept: Kept) -> impl IntoView {
    let most = words::count(kept.most.into(), "backup");
    match kept.next_to_go {
        Some(oldest) => Either::Left(view! {
            "The newest " {most} " of yours are kept. You have them all, so the oldest is deleted: "
            <b><When time=oldest.time /></b> ", " {words::part_in_sentence(oldest.holds)} {words::note_in_sentence(&oldest)} "."
        }),
        None => Either::Right(view! {
            "The newest " {most} " of yours are kept. You have " {words::grouped(kept.have as u64)} ": none is deleted."
        }),
    }
}

#[component]
fn AskRestore(backup: Backup, proposed: Option<Part>, replaced_kept: u32) -> impl IntoView {
    let live: Live = expect_context();
    let sending = RwSignal::new(false);
    let time = backup.time;
    let choices = restorable(backup.holds);
    let proposed = proposed
        .filter(|part| choices.contains(part))
        .unwrap_or(backup.holds);
    let took = took_last_time(live, JobType::Restore, proposed);
    let clock: Clock = expect_context();
    let since = move || words::span(clock.now.get() - time);
    let action = ["/backups/", &backup.id, "/restore"].concat();
    let choice_items = choices.iter().map(move |&part| {
        view! {
            <label class="pick">
                <input type="radio" name="restore_type" value=part_word(part) checked=part == proposed required />
                <span>
                    <b>{restore_name(part)}</b>
                    <small>{restore_means(part)}</small>
                </span>
            </label>
        }
    });
    // What a restore replaced is there to undo it.
    let undoes = backup.source == Source::PreRestore;
    let (title, button) = match undoes {
        true => ("Undo the restore?", "Undo the restore"),
        false => ("Restore this backup?", "Restore now"),
    };
    view! {
        <Dialog title>
            <p class="dialog-about">
                <b><When time /></b> " " <Age time />
                <span>{words::part(backup.holds)} {backup.bytes.map(|bytes| [" · ", &words::size(bytes)].concat())}</span>
                {backup.note.clone().map(|note| view! { <span class="backup-note">{note}</span> })}
            </p>
            <ActionForm action sending done=accepted()>
                <fieldset class="picks">
                    <legend>"What to restore"</legend>
                    {choice_items.collect_view()}
                </fieldset>
                <ul class="what-happens grave">
                    {undoes.then(|| view! {
                        <li>"What you choose goes back to how it was then, the moment before that restore."</li>
                    })}
                    {backup.holds.has_database().then(|| view! {
                        <li class="for-database">
                            <strong>"Orders placed in the " {since} " since then will be lost."</strong>
                            {(!undoes).then_some(" Orders, customers, products and settings go back to how they were then.")}
                        </li>
                    })}
                    {backup.holds.has_files().then(|| view! {
                        <li class="for-files">
                            <strong>"Pictures uploaded since then will be lost."</strong>
                            {(!undoes).then_some(" Theme, plugins and pictures go back to how they were then.")}
                        </li>
                    })}
                </ul>
                <ul class="what-else">
                    <li>"You can undo it: what is replaced becomes a backup. The newest " {words::grouped(replaced_kept.into())} " of those are kept."</li>
                    <li class="for-closed">
                        "Visitors see a maintenance page from the start"
                        {backup.holds.has_database().then(|| view! {
                            <span class="for-database">", so that nobody orders what would be lost"</span>
                        })}
                        "."
                    </li>
                    {took.map(|took| view! { <li>"Last time a restore took " {took} "."</li> })}
                    <li>"If it fails, your shop is put back exactly as it is now. Should even that fail, visitors keep seeing the maintenance page, and our team is told."</li>
                </ul>
                <label class="check">
                    <input type="checkbox" name="online" value="true" />
                    <span>
                        "Keep my shop online while the backup is prepared"
                        <small>
                            "Visitors see the maintenance page only while it is put in place. "
                            {backup.holds.has_database().then(|| view! {
                                <span class="for-database">"Orders placed until then are lost with the rest, unless you undo the restore."</span>
                            })}
                        </small>
                    </span>
                </label>
                <Confirmation />
                <p class="dialog-buttons">
                    <button class="button danger" disabled=move || sending.get()>{button}</button>
                    <CloseLink text="Cancel" />
                </p>
            </ActionForm>
        </Dialog>
    }
}

/// The word that nobody types by accident.
#[component]
fn Confirmation() -> impl IntoView {
    view! {
        <label class="field">
            <span>"Type " <kbd>"RESTORE"</kbd> " to confirm"</span>
            <input
                class="confirmation" type="text" name="confirmation"
                required pattern="RESTORE" title="RESTORE, in capital letters"
                autocomplete="off" autocapitalize="characters" spellcheck="false" maxlength="20"
            />
        </label>
    }
}

#[component]
fn AskDelete(backup: Backup, after: String) -> impl IntoView {
    let live: Live = expect_context();
    let sending = RwSignal::new(false);
    let navigate = leptos_router::hooks::use_navigate();
    let action = ["/backups/", &backup.id, "/delete"].concat();
    let done = Callback::new(move |outcome: Outcome| {
        live.notices.message.set(Some(Flash {
            success: true,
            message: outcome.message,
            undo: None,
            is_end: false,
        }));
        live.changed();
        navigate(&after, leptos_router::NavigateOptions::default());
    });
    view! {
        <Dialog title="Delete this backup?">
            <p class="dialog-about">
                <b><When time=backup.time /></b> " " <Age time=backup.time />
                <span>{words::part(backup.holds)}</span>
                {backup.note.clone().map(|note| view! { <span class="backup-note">{note}</span> })}
            </p>
            <ul class="what-happens grave">
                <li>"Nobody can restore it any more. This cannot be undone."</li>
                <li>"Your shop does not change. Your other backups stay."</li>
            </ul>
            <ActionForm action sending done>
                <input type="hidden" name="confirmation" value="DELETE" />
                <p class="dialog-buttons">
                    <button class="button danger" disabled=move || sending.get()>"Delete for good"</button>
                    <CloseLink text="Keep it" first=true />
                </p>
            </ActionForm>
        </Dialog>
    }
}

#[component]
fn AskCancel(job: Job) -> impl IntoView {
    let live: Live = expect_context();
    let leave = use_leave();
    let sending = RwSignal::new(false);
    let id = job.id;
    let action = ["/backups/jobs/", &id.to_string(), "/cancel"].concat();
    let is_active = Memo::new(move |_| {
        live.active
            .with(|job| job.as_ref().is_some_and(|job| job.id == id))
    });
    // What ended is not asked about any more: the page tells how it ended.
    Effect::new(move |_| {
        if !is_active.get() {
            leave();
        }
    });
    let (title, left, stop, keep) = match job.job_type {
        JobType::Backup => (
            "Cancel the backup?",
            "No backup is made. Your shop and your other backups stay as they are.",
            "Cancel the backup",
            "Let it run",
        ),
        JobType::Restore => (
            "Cancel the restore?",
            "Your shop stays as it was before the restore. Once the backup is being put in place it cannot be cancelled any more.",
            "Cancel the restore",
            "Let it run",
        ),
    };
    view! {
        <Dialog title>
            <p>{left}</p>
            <ActionForm action sending done=accepted()>
                <p class="dialog-buttons">
                    <button class="button danger" disabled=move || sending.get()>{stop}</button>
                    <CloseLink text=keep first=true />
                </p>
            </ActionForm>
        </Dialog>
    }
}

#[component]
fn NotNow(title: &'static str, reason: &'static str) -> impl IntoView {
    view! {
        <Dialog title>
            <p>{reason}</p>
            <p class="dialog-buttons"><CloseLink text="Close" /></p>
        </Dialog>
    }
}

/// What can be restored of a backup that holds this.
fn restorable(holds: Part) -> &'static [Part] {
    match holds {
        Part::Both => &[Part::Both, Part::Db, Part::Files],
        Part::Db => &[Part::Db],
        Part::Files => &[Part::Files],
    }
}

fn restore_name(part: Part) -> &'static str {
    match part {
        Part::Both => "The whole shop",
        Part::Db => "Database only",
        Part::Files => "Files only",
    }
}

fn restore_means(part: Part) -> &'static str {
    match part {
        Part::Both => "Database and files together.",
        Part::Db => "Orders, products, settings. Files stay as they are.",
        Part::Files => "Theme, plugins, pictures. Orders stay as they are.",
    }
}

/// How long the newest job of the kind took that was done.
fn took_last_time(live: Live, job_type: JobType, part: Part) -> Option<String> {
    live.jobs.with_untracked(|jobs| {
        let alike = |job: &&Job| {
            job.job_type == job_type
                && job.backup_type == part
                && job.status == JobStatus::Completed
        };
        let job = jobs.iter().find(alike)?;
        let begun = clock::parse(job.started_at.as_deref()?)?;
        let ended = clock::parse(job.completed_at.as_deref()?)?;
        Some(words::duration(ended - begun))
    })
}
