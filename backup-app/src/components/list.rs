//! Lists of backups, and what can be done with one.

use leptos::either::Either;
use leptos::prelude::*;

use super::at_once::at_once;
use super::dialog::part_word;
use super::icon::{Icon, Symbol};
use super::time::{Age, When};
use crate::clock::Clock;
use crate::live::Live;
use crate::model::{Backup, Job, JobType, Part};
use crate::words;

/// How many daily backups are shown at once.
const LATEST: usize = 7;

/// What can be backed up.
#[component]
pub fn Choices() -> impl IntoView {
    let live: Live = expect_context();
    let choice = move |part: Part| {
        let inside = move || {
            view! {
                <Icon symbol=Symbol::of(part) />
                <span class="choice-name">{words::part(part)}</span>
                <span class="choice-means">{words::part_means(part)}</span>
            }
        };
        let href = ["/backups?ask=backup&type=", part_word(part)].concat();
        move || {
            if live.is_busy.get() {
                Either::Left(view! {
                    <button class="choice" disabled aria-describedby="why-off">{inside()}</button>
                })
            } else {
                Either::Right(
                    view! { <a class="choice" href=href.clone() data-noscroll>{inside()}</a> },
                )
            }
        }
    };
    at_once(view! {
        <section class="create" aria-labelledby="create-title">
            <div class="section-head">
                <h2 id="create-title">"Make a backup"</h2>
                <WhyOff />
            </div>
            <div class="choices">
                {choice(Part::Both)} {choice(Part::Db)} {choice(Part::Files)}
            </div>
        </section>
    })
}

/// Why nothing can be started now.
#[component]
pub fn WhyOff() -> impl IntoView {
    let live: Live = expect_context();
    let reason = Memo::new(move |_| live.open.with(|job| job.as_ref().map(why_off)));
    view! { <p id="why-off" class="why-off">{reason}</p> }
}

/// Why nothing can be started while this job has no true end.
pub fn why_off(job: &Job) -> &'static str {
    match job.job_type {
        _ if job.is_stuck() => {
            "Our team is still looking after your last restore. You can start the next thing when your shop is open again."
        }
        JobType::Backup => "A backup is running. You can start the next thing when it is done.",
        JobType::Restore => "A restore is running. You can start the next thing when it is done.",
    }
}

/// Backups, newest first.
#[component]
pub fn BackupList(
    #[prop(into)] backups: Signal<Vec<Backup>>,
    /// The one that the next backup pushes out.
    #[prop(optional, into)]
    next_to_go: Signal<Option<String>>,
) -> impl IntoView {
    view! {
        <ul class="backups">
            {move || {
                let items = backups.get().into_iter();
                items.map(|backup| view! { <BackupItem backup next_to_go /> }).collect_view()
            }}
        </ul>
    }
}

/// One backup of a list.
#[component]
fn BackupItem(
    backup: Backup,
    #[prop(optional, into)] next_to_go: Signal<Option<String>>,
) -> impl IntoView {
    let details = ["/backups/", &backup.id].concat();
    let time = backup.time;
    let id = StoredValue::new(backup.id.clone());
    let goes_next = Memo::new(move |_| {
        next_to_go.with(|next| {
            next.as_deref()
                .is_some_and(|next| id.with_value(|id| id == next))
        })
    });
    at_once(view! {
        <li class="backup">
            <Icon symbol=Symbol::of(backup.holds) />
            <div class="backup-what">
                <p class="backup-when"><When time /> " " <Age time /></p>
                <p class="backup-facts">
                    <span>{words::part(backup.holds)}</span>
                    {backup.bytes.map(|bytes| view! { <span>{words::size(bytes)}</span> })}
                    {move || goes_next.get().then(|| view! { <span class="tag">"goes next"</span> })}
                </p>
                {backup.note.clone().map(|note| view! { <p class="backup-note">{note}</p> })}
            </div>
            <p class="backup-actions">
                <RestoreLink id=backup.id.clone() page="/backups" time />
                <a class="button quiet" href=details>
                    "Details" <About time />
                </a>
            </p>
        </li>
    })
}

/// Which backup a button is about, for those who hear one button after the other.
#[component]
fn About(time: i64) -> impl IntoView {
    let clock: Clock = expect_context();
    view! {
        <span class="visually-hidden">" of the backup of " {move || clock.in_words(time)}</span>
    }
}

/// Opens the question whether to restore; off while a job has no true end.
#[component]
pub fn RestoreLink(
    id: String,
    /// The page that asks.
    #[prop(into)]
    page: String,
    time: i64,
) -> impl IntoView {
    let live: Live = expect_context();
    let href = restore_address(&page, &id);
    move || {
        if live.is_busy.get() {
            Either::Left(view! {
                <button class="button" disabled aria-describedby="why-off">"Restore …" <About time /></button>
            })
        } else {
            Either::Right(view! {
                <a class="button" href=href.clone() data-noscroll>"Restore …" <About time /></a>
            })
        }
    }
}

/// What the link says that leads to the question whether to undo a restore.
pub const UNDO: &str = "Undo this restore …";

/// Where a page asks whether to restore a backup.
pub fn restore_address(page: &str, id: &str) -> String {
    [page, "?ask=restore&id=", id].concat()
}

/// The platform's backups: those of the last days at once, the others on demand.
#[component]
pub fn DailyBackups(
    #[prop(into)] backups: Signal<Vec<Backup>>,
    /// How far back they go.
    #[prop(into)]
    days: Signal<u64>,
) -> impl IntoView {
    let latest = Memo::new(move |_| {
        backups.with(|backups| backups.iter().take(LATEST).cloned().collect::<Vec<_>>())
    });
    let earlier = Memo::new(move |_| {
        backups.with(|backups| backups.iter().skip(LATEST).cloned().collect::<Vec<_>>())
    });
    let has_any = Memo::new(move |_| backups.with(|backups| !backups.is_empty()));
    let has_earlier = Memo::new(move |_| earlier.with(|earlier| !earlier.is_empty()));
    let clock: Clock = expect_context();
    let summary = move || {
        earlier.with(|earlier| {
            let oldest = earlier.last().map(|oldest| clock.in_words(oldest.time));
            [
                &words::count(earlier.len() as u64, "earlier backup"),
                ", back to ",
                &oldest.unwrap_or_default(),
            ]
            .concat()
        })
    };
    at_once(view! {
        <section class="panel" aria-labelledby="daily-title">
            <div class="section-head">
                <h2 id="daily-title">"Daily backups"</h2>
                {move || has_any.get().then(|| view! {
                    <p class="quiet">"Made for you every night, kept for " {words::count(days.get(), "day")} "."</p>
                })}
            </div>
            {move || if has_any.get() {
                Either::Left(view! { <BackupList backups=latest /> })
            } else {
                Either::Right(view! { <p class="empty">"None yet. Those that are made for you at night are listed here."</p> })
            }}
            {move || has_earlier.get().then(|| view! {
                <details class="more">
                    <summary>{summary}</summary>
                    <BackupList backups=earlier />
                </details>
            })}
        </section>
    })
}
