//! Jobs: the one that runs, the one that just failed, and those before.

use leptos::either::Either;
use leptos::html;
use leptos::prelude::*;

use super::at_once::at_once;
use super::form::ActionForm;
use super::icon::{Icon, Symbol};
use super::list::{UNDO, restore_address};
use super::time::Age;
use crate::clock::{self, Clock};
use crate::live::Live;
use crate::model::{Job, JobStatus, JobType, Outcome};
use crate::words;

/// How many of the past jobs are shown at once.
const RECENT: usize = 6;

/// The running job, one that is stuck, or the newest one if it failed and was not dismissed.
#[component]
pub fn JobCards(
    /// Where the page is that this is on.
    here: String,
) -> impl IntoView {
    let live: Live = expect_context();
    // Only a change of the job makes a new card; progress is told within it.
    let active = Memo::new(move |_| live.active.with(|job| job.as_ref().map(|job| job.id)));
    let failed = Memo::new(move |_| {
        live.jobs.with(|jobs| {
            let is_news = |job: &&Job| job.status == JobStatus::Failed && !job.dismissed;
            let mut stuck = jobs.iter().filter(|job| job.is_stuck());
            let told = stuck.next().or_else(|| jobs.first().filter(is_news));
            told.cloned()
        })
    });
    let here = StoredValue::new(here);
    at_once(view! {
        {move || active.get().map(|_| view! { <RunningJob here=here.get_value() /> })}
        {move || failed.get().map(|job| view! { <FailedJob job /> })}
    })
}

#[component]
fn RunningJob(here: String) -> impl IntoView {
    let live: Live = expect_context();
    let clock: Clock = expect_context();
    let of = move |read: fn(&Job) -> String| {
        Memo::new(move |_| {
            live.active
                .with(|job| job.as_ref().map(read).unwrap_or_default())
        })
    };
    let title = of(|job| words::job_title(job).into());
    let doing = of(|job| words::doing(job).into());
    let amount = of(amount);
    let left = of(time_left);
    let elapsed = Memo::new(move |_| {
        let begun = live.active.with(|job| begun(job.as_ref()?));
        begun.map(|begun| words::stopwatch(clock.now.get() - begun))
    });
    let meanwhile = of(|job| meanwhile(job).into());
    let can_cancel = Memo::new(move |_| {
        live.active.with(|job| {
            job.as_ref()
                .is_some_and(|job| job.cancellable && !job.cancel_requested)
        })
    });
    // Whoever started it is led to it: the button that he pressed is off now.
    let heading = NodeRef::<html::H2>::new();
    let is_started_here = live
        .active
        .with_untracked(|job| job.as_ref().map(|job| job.id) == live.started.get_untracked());
    Effect::new(move |_| {
        if let (Some(heading), true) = (heading.get(), is_started_here) {
            // Fails for what cannot have the focus.
            let _ = heading.focus();
        }
    });
    let cancel_link = [here.as_str(), "?ask=cancel"].concat();
    at_once(view! {
        <section class="job" aria-labelledby="job-title">
            <div class="job-head">
                <h2 id="job-title" tabindex="-1" node_ref=heading>{title}</h2>
                <p class="job-clock"><span class="visually-hidden">"Running for "</span>{elapsed}</p>
            </div>
            <p class="job-doing" role="status">{doing}</p>
            <JobProgress />
            <p class="job-figures">
                <span>{amount}</span>
                <span>{left}</span>
            </p>
            <JobSteps />
            <div class="job-foot">
                <p>{meanwhile}</p>
                {move || can_cancel.get().then(|| view! {
                    <a class="button" href=cancel_link.clone() data-noscroll>"Cancel …"</a>
                })}
            </div>
        </section>
    })
}

/// The bar: filled as far as is known, moving where nothing is.
#[component]
fn JobProgress() -> impl IntoView {
    let live: Live = expect_context();
    // In thousandths, so that a tick that moves nothing draws nothing.
    let done = Memo::new(move |_| {
        live.active.with(|job| {
            let job = job.as_ref()?;
            let total = total(job)?;
            let done = u128::from(job.bytes_done) * 1000 / u128::from(total);
            u32::try_from(done).ok()
        })
    });
    view! {
        {move || match done.get() {
            Some(done) => Either::Left(view! {
                <progress class="bar" max="1000" value=done.to_string() aria-label="Progress of this step"></progress>
            }),
            None => Either::Right(view! {
                <progress class="bar" aria-label="Progress of this step, not known yet"></progress>
            }),
        }}
    }
}

/// The steps of the job: which are behind it, which it is at, which are to come.
#[component]
fn JobSteps() -> impl IntoView {
    let live: Live = expect_context();
    let at = Memo::new(move |_| {
        live.active.with(|job| {
            let job = job.as_ref()?;
            let phases = words::phases(job.job_type, job.backup_type);
            let at = job.phase.as_deref()?;
            let at = phases.iter().position(|phase| *phase == at);
            Some((job.job_type, job.backup_type, at.unwrap_or_default()))
        })
    });
    view! {
        {move || at.get().map(|(job_type, part, at)| {
            let steps = words::phases(job_type, part).iter().enumerate();
            let steps = steps.map(|(place, phase)| view! {
                <li
                    class:done=place < at
                    aria-current=(place == at).then_some("step")
                >{words::phase(phase, part)}</li>
            });
            view! { <ol class="steps">{steps.collect_view()}</ol> }
        })}
    }
}

fn begun(job: &Job) -> Option<i64> {
    let begun = job.started_at.as_deref().or(job.created_at.as_deref())?;
    clock::parse(begun)
}

/// The bytes to do, unless more than that is done already: then it was a guess, and nobody knows.
fn total(job: &Job) -> Option<u64> {
    job.bytes_total
        .filter(|total| *total > 0 && *total >= job.bytes_done)
}

/// `340 MB of 1.2 GB · 24 MB/s`.
fn amount(job: &Job) -> String {
    if job.bytes_done == 0 {
        return String::new();
    }
    let mut words = words::size(job.bytes_done);
    if let Some(total) = total(job) {
        words.push_str(" of ");
        words.push_str(&words::size(total));
    }
    if let Some(rate) = job.bytes_per_second.filter(|rate| *rate > 0) {
        words.push_str(" · ");
        words.push_str(&words::size(rate));
        words.push_str("/s");
    }
    words
}

fn time_left(job: &Job) -> String {
    let left = || {
        // Where all bytes are done, what is left is not theirs.
        let left = Some(total(job)? - job.bytes_done).filter(|left| *left > 0)?;
        let rate = job.bytes_per_second.filter(|rate| *rate > 0)?;
        Some(words::time_left(left / rate))
    };
    left().unwrap_or_default()
}

/// What the job means for the shop while it runs.
fn meanwhile(job: &Job) -> &'static str {
    match job.job_type {
        JobType::Backup => {
            "Your shop stays open. You can close this page: the backup goes on without it."
        }
        JobType::Restore if job.phase.as_deref() == Some("cleaning_up") => {
            "Your shop is open again. What is left is to tidy up."
        }
        JobType::Restore if job.phase.as_deref() == Some("keeping") => {
            "Your shop is back online. What was replaced is being saved, so that you can undo this."
        }
        JobType::Restore
            if job.online && matches!(job.phase.as_deref(), Some("swapping" | "starting")) =>
        {
            "Visitors see a maintenance page for a moment."
        }
        JobType::Restore if job.online => {
            "Your shop stays open until everything is ready. You can close this page: the restore goes on without it."
        }
        JobType::Restore if job.status == JobStatus::Pending => {
            "Visitors see a maintenance page as soon as it starts. You can close this page: the restore goes on without it."
        }
        JobType::Restore => {
            "Visitors see a maintenance page until it is done. You can close this page: the restore goes on without it."
        }
    }
}

#[component]
fn FailedJob(job: Job) -> impl IntoView {
    let live: Live = expect_context();
    let ended = job.completed_at.as_deref().and_then(clock::parse);
    let was_cancelled = job.failure.as_deref() == Some("cancelled");
    let is_stuck = job.is_stuck();
    let title = match (job.job_type, job.failure.as_deref()) {
        (JobType::Backup, Some("cancelled")) => "The backup was cancelled",
        (JobType::Backup, _) => "The backup failed",
        (JobType::Restore, Some("cancelled")) => "The restore was cancelled",
        (JobType::Restore, Some("rolled_back")) => "The restore was rolled back",
        (JobType::Restore, Some("interrupted")) => "The restore was interrupted",
        (JobType::Restore, Some("stuck")) => "The restore needs our help",
        (JobType::Restore, _) => "The restore failed",
    };
    let reason = job
        .error_message
        .clone()
        .filter(|_| !was_cancelled && !is_stuck)
        .or_else(|| is_stuck.then(|| STUCK.into()))
        .unwrap_or_else(|| left_as_it_is(job.job_type, was_cancelled).into());
    let action = ["/backups/jobs/", &job.id.to_string(), "/dismiss"].concat();
    let done = Callback::new(move |_: Outcome| {
        live.notices.message.set(None);
        live.changed();
    });
    at_once(view! {
        <section class="failed" class:calm=was_cancelled aria-labelledby="failed-title">
            <Icon symbol=if was_cancelled { Symbol::Stopped } else { Symbol::Failed } />
            <div class="failed-what">
                // Without the age: what an alert holds is read aloud whenever it changes.
                <div role="alert">
                    <h2 id="failed-title">{title}</h2>
                    <p>{reason}</p>
                </div>
                <p class="quiet">{words::job_title(&job)} {ended.map(|time| view! { ", " <Age time /> })}</p>
            </div>
            // The shop is closed until it is over: that stays in sight.
            {(!is_stuck).then(|| view! {
                <ActionForm action done>
                    <button class="button">"Dismiss"</button>
                </ActionForm>
            })}
        </section>
    })
}

const STUCK: &str = "Our team has been told and takes care of it. Your shop shows its maintenance page until then; please do not change anything in it.";

/// What a job that failed left behind, where its title has said why or nobody did.
fn left_as_it_is(job_type: JobType, was_cancelled: bool) -> &'static str {
    match (job_type, was_cancelled) {
        (JobType::Backup, _) => "Your shop and your other backups are as they were.",
        (JobType::Restore, true) => "Your shop is as it was before.",
        (JobType::Restore, false) => "Please contact support: they can see why.",
    }
}

/// What was done before.
#[component]
pub fn RecentJobs() -> impl IntoView {
    let live: Live = expect_context();
    // Of the active job its number alone: progress changes nothing here.
    let known = Memo::new(move |_| {
        live.jobs.with(|jobs| {
            let ended = jobs.iter().filter(|job| !job.status.is_active());
            let newest = jobs.first().map(|job| job.id);
            // Of those that were done the newest alone: to undo one before it would undo that one, too.
            let restored =
                |job: &&Job| job.job_type == JobType::Restore && job.status == JobStatus::Completed;
            let undoable = jobs.iter().find(restored).map(|job| job.id);
            (ended.cloned().collect::<Vec<_>>(), newest, undoable)
        })
    });
    at_once(view! {
        <section class="panel recent" aria-labelledby="recent-title">
            <h2 id="recent-title">"Recent activity"</h2>
            {move || {
                let (mut shown, newest, undoable) = known.get();
                let older = shown.split_off(shown.len().min(RECENT));
                if shown.is_empty() {
                    return Either::Left(view! { <p class="empty">"Nothing yet. Backups and restores that you start are listed here."</p> });
                }
                Either::Right(view! {
                    <ul class="jobs">{job_items(shown, newest, undoable)}</ul>
                    {(!older.is_empty()).then(|| view! {
                        <details class="more">
                            <summary>{words::grouped(older.len() as u64)} " more"</summary>
                            <ul class="jobs">{job_items(older, newest, undoable)}</ul>
                        </details>
                    })}
                })
            }}
            // A page of the server alone: the router has none of this name.
            <p class="all-activity"><a href="/activity" rel="external">"All activity"</a></p>
        </section>
    })
}

fn job_items(jobs: Vec<Job>, newest: Option<u64>, undoable: Option<u64>) -> impl IntoView {
    let items = jobs.into_iter().map(|job| {
        let is_newest = newest == Some(job.id);
        let undo = job
            .kept_snapshot
            .clone()
            .filter(|_| undoable == Some(job.id));
        view! { <JobItem job is_newest undo /> }
    });
    items.collect_view()
}

#[component]
fn JobItem(
    job: Job,
    is_newest: bool,
    /// The backup that undoes it.
    undo: Option<String>,
) -> impl IntoView {
    let live: Live = expect_context();
    let ended_at = job.completed_at.as_deref().and_then(clock::parse);
    let took = begun(&job)
        .zip(ended_at)
        .map(|(begun, ended)| words::duration(ended - begun));
    let (class, symbol) = match (job.status, job.failure.as_deref()) {
        (JobStatus::Completed, _) => ("job-item good", Symbol::Done),
        (JobStatus::Failed, Some("cancelled")) => ("job-item", Symbol::Stopped),
        _ => ("job-item bad", Symbol::Failed),
    };
    // A failure that is news is told on top of the page.
    let is_told = job.failure.as_deref() == Some("cancelled") || (is_newest && !job.dismissed);
    let reason = job
        .error_message
        .clone()
        .filter(|_| !is_told)
        .or_else(|| job.recovered.then(|| words::RECOVERED.into()));
    at_once(view! {
        <li class=class>
            <Icon symbol />
            <div>
                <p>{words::job_title(&job)}</p>
                <p class="quiet">
                    {words::ended(&job)}
                    {ended_at.map(|time| view! { " " <Age time /> })}
                    {took.map(|took| [" · took ", &took].concat())}
                </p>
                {reason.map(|reason| view! { <p class="quiet reason">{reason}</p> })}
                {undo.map(|id| move || (!live.is_busy.get()).then(|| view! {
                    <p><a href=restore_address("/backups", &id) data-noscroll>{UNDO}</a></p>
                }))}
            </div>
        </li>
    })
}
