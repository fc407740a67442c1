//! `/backups/{id}`.

use leptos::either::Either;
use leptos::prelude::*;
use leptos::server_fn::ServerFn;

use super::{refresh_without_script, told_of_end};
use crate::clock::{self, Clock};
use crate::components::{
    Age, Frame, Icon, JobCards, Leave, Questions, RestoreLink, Symbol, When, WhyOff, at_once,
    use_ask,
};
use crate::data::LoadBackup;
use crate::live::Live;
use crate::model::{Backup, BackupPage, Job, JobStatus, JobType, Source};
use crate::words;

/// The page with its data.
#[component]
pub fn Details(page: BackupPage) -> impl IntoView {
    // Of what is shown, the jobs alone can change. They are found under any number, that of a backup that is gone, too.
    let id = page.backup.as_ref().map(|backup| backup.id.as_str());
    let address = [LoadBackup::PATH, "?id=", id.unwrap_or_default()].concat();
    let show = Callback::new(|fresh: BackupPage| fresh.jobs);
    let viewer = told_of_end(page.viewer, &page.jobs);
    let live = Live::start(page.jobs, address, show);
    provide_context(live);
    // What was said on the page before was about something else.
    live.notices.message.set(None);
    let content = match page.backup {
        Some(backup) => {
            let here = ["/backups/", &backup.id].concat();
            let ask = use_ask(Some(backup.id.clone()));
            Leave::provide(here.clone(), ask);
            let asked = vec![backup.clone()];
            let replaced_kept = page.replaced_kept;
            Either::Left(move || {
                view! {
                    {refresh_without_script(live, &here, ask.with_untracked(Option::is_some))}
                    <Questions ask backups=asked.clone() replaced_kept after_delete="/backups" />
                    <JobCards here=here.clone() />
                    <Facts backup=backup.clone() here=here.clone() />
                }
            })
        }
        None => {
            #[cfg(feature = "ssr")]
            super::answer_with(axum::http::StatusCode::NOT_FOUND);
            Either::Right(|| {
                view! {
                    <section class="panel">
                        <h1>"There is no such backup"</h1>
                        <p>"It was deleted, newer ones took its place, or the address is not right."</p>
                        <p><a class="button primary" href="/backups">"Go to your backups"</a></p>
                    </section>
                }
            })
        }
    };
    view! {
        <Frame viewer>
            <p class="way-back"><a href="/backups"><Icon symbol=Symbol::Back />"All backups"</a></p>
            {match content {
                Either::Left(content) => Either::Left(content()),
                Either::Right(content) => Either::Right(content()),
            }}
        </Frame>
    }
}

#[component]
fn Facts(backup: Backup, here: String) -> impl IntoView {
    let time = backup.time;
    let delete = (backup.source == Source::Manual).then(|| [here.as_str(), "?ask=delete"].concat());
    let live: Live = expect_context();
    at_once(view! {
        <section class="panel details" aria-labelledby="details-title">
            <div class="details-head">
                <Icon symbol=Symbol::of(backup.holds) />
                <div>
                    <h1 id="details-title"><When time /></h1>
                    <p class="quiet">{words::source(backup.source)} " · " {words::part(backup.holds)} " · " <Age time /></p>
                </div>
            </div>
            {backup.note.clone().map(|note| view! { <p class="backup-note">{note}</p> })}
            <dl class="facts">
                <Fact name="Holds" value=words::part_holds(backup.holds) />
                <Number name="Size" number=backup.bytes words=words::size />
                <Number name="Of that, the database" number=backup.database_bytes.filter(|_| backup.holds.has_files()) words=words::size />
                <Number name="Files" number=backup.files words=words::grouped />
                <Number name="New since the backup before" number=backup.bytes_added words=words::size />
                <Fact name="Kept" value=kept(backup.source) />
                {backup.proven.map(|time| view! {
                    <div>
                        <dt>"Proven restorable"</dt>
                        <dd><When time /> ", by restoring it apart from your shop."</dd>
                    </div>
                })}
                <Restores id=backup.id.clone() />
                <MadeBy id=backup.id.clone() />
                <div>
                    <dt>"Reference"</dt>
                    <dd><code>{backup.id.clone()}</code><br /><small class="quiet">"Support may ask you for it."</small></dd>
                </div>
            </dl>
            <div class="details-actions">
                <RestoreLink id=backup.id.clone() page=here.clone() time />
                {delete.map(|delete| move || if live.active.with(Option::is_some) {
                    Either::Left(view! { <button class="button quiet" disabled aria-describedby="why-off">"Delete …"</button> })
                } else {
                    Either::Right(view! { <a class="button quiet" href=delete.clone() data-noscroll>"Delete …"</a> })
                })}
                <WhyOff />
            </div>
        </section>
    })
}

/// How long a backup is kept.
fn kept(source: Source) -> &'static str {
    match source {
        Source::Manual => "Until newer ones of yours take its place, or you delete it.",
        Source::Daily => "Until it is too old; a new one is made every night.",
        Source::PreRestore => "Until newer ones of its kind take its place.",
    }
}

/// When this backup was restored, as far back as jobs are known.
#[component]
fn Restores(id: String) -> impl IntoView {
    let live: Live = expect_context();
    let clock: Clock = expect_context();
    let times = Memo::new(move |_| {
        let is_one = |job: &&Job| {
            job.job_type == JobType::Restore
                && job.status == JobStatus::Completed
                && job.snapshot_id.as_deref() == Some(&id)
        };
        live.jobs.with(|jobs| {
            let ended = jobs
                .iter()
                .filter(is_one)
                .filter_map(|job| clock::parse(job.completed_at.as_deref()?));
            ended.collect::<Vec<_>>()
        })
    });
    move || {
        let last = times.get().first().copied()?;
        Some(view! {
            <div>
                <dt>"Last restored"</dt>
                <dd>{clock.in_words(last)}</dd>
            </div>
        })
    }
}

/// The restore that made this backup of what it replaced, as far back as jobs are known.
#[component]
fn MadeBy(id: String) -> impl IntoView {
    let live: Live = expect_context();
    let title = live.jobs.with_untracked(|jobs| {
        let made = |job: &&Job| job.kept_snapshot.as_deref() == Some(&id);
        jobs.iter().find(made).map(words::job_title)
    });
    title.map(|title| view! { <Fact name="Made before" value=title /> })
}

#[component]
fn Fact(name: &'static str, value: &'static str) -> impl IntoView {
    view! { <div><dt>{name}</dt><dd>{value}</dd></div> }
}

/// Left out where it is not known.
#[component]
fn Number(name: &'static str, number: Option<u64>, words: fn(u64) -> String) -> impl IntoView {
    number.map(|number| view! { <div><dt>{name}</dt><dd>{words(number)}</dd></div> })
}
