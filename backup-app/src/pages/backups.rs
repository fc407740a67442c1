//! `/backups`.

use leptos::either::Either;
use leptos::prelude::*;
use leptos::server_fn::ServerFn;

use super::{refresh_without_script, told_of_end};
use crate::components::{
    BackupList, Choices, DailyBackups, Frame, JobCards, Kept, Leave, Questions, RecentJobs,
    at_once, use_ask,
};
use crate::data::LoadBackups;
use crate::live::Live;
use crate::model::{Backup, BackupsPage};
use crate::words;

/// Where it is.
const HERE: &str = "/backups";

/// The page with its data.
#[component]
pub fn Backups(page: BackupsPage) -> impl IntoView {
    let viewer = told_of_end(page.viewer.clone(), &page.jobs);
    let jobs = page.jobs.clone();
    let replaced_kept = page.replaced_kept;
    let page = RwSignal::new(page);
    let show = Callback::new(move |fresh: BackupsPage| {
        let jobs = fresh.jobs.clone();
        page.set(fresh);
        jobs
    });
    let live = Live::start(jobs, LoadBackups::PATH.into(), show);
    provide_context(live);
    let ask = use_ask(None);
    Leave::provide(HERE.into(), ask);

    let manual = Memo::new(move |_| page.with(|page| page.manual.clone()));
    let pre_restore = Memo::new(move |_| page.with(|page| page.pre_restore.clone()));
    let daily = Memo::new(move |_| page.with(|page| page.daily.clone()));
    let all = Memo::new(move |_| {
        page.with(|page| [&page.manual[..], &page.pre_restore, &page.daily].concat())
    });
    let kept = Memo::new(move |_| page.with(kept));
    let days = Memo::new(move |_| page.with(|page| page.daily_days));
    let has_daily = Memo::new(move |_| page.with(|page| page.has_daily));
    let has_pre_restore = Memo::new(move |_| pre_restore.with(|list| !list.is_empty()));
    view! {
        <Frame viewer>
            {refresh_without_script(live, HERE, ask.with_untracked(Option::is_some))}
            <h1 class="visually-hidden">"Backups of your shop"</h1>
            <Questions ask backups=all replaced_kept kept=Signal::derive(move || Some(kept.get())) after_delete=HERE />
            <JobCards here=HERE.into() />
            <Choices />
            <div class="columns">
                <div class="column">
                    <ManualBackups manual kept />
                    {move || has_pre_restore.get().then(|| view! {
                        <section class="panel" aria-labelledby="before-title">
                            <div class="section-head">
                                <h2 id="before-title">"Made before a restore"</h2>
                                <p class="quiet">"Restore one, and that restore is undone. The newest " {words::grouped(replaced_kept.into())} " are kept."</p>
                            </div>
                            <BackupList backups=pre_restore />
                        </section>
                    })}
                    {move || has_daily.get().then(|| view! { <DailyBackups backups=daily days /> })}
                </div>
                <RecentJobs />
            </div>
        </Frame>
    }
}

fn kept(page: &BackupsPage) -> Kept {
    let have = page.manual.len();
    let is_full = u64::try_from(have).is_ok_and(|have| have >= u64::from(page.kept));
    Kept {
        have,
        most: page.kept,
        next_to_go: page.manual.last().filter(|_| is_full).cloned(),
    }
}

#[component]
fn ManualBackups(manual: Memo<Vec<Backup>>, kept: Memo<Kept>) -> impl IntoView {
    let has_any = Memo::new(move |_| manual.with(|manual| !manual.is_empty()));
    let next_to_go = Signal::derive(move || {
        kept.with(|kept| kept.next_to_go.as_ref().map(|backup| backup.id.clone()))
    });
    let count = move || {
        kept.with(|kept| {
            [
                &words::grouped(kept.have as u64),
                " of ",
                &words::grouped(kept.most.into()),
                " kept",
            ]
            .concat()
        })
    };
    let rule = move || {
        if kept.with(|kept| kept.next_to_go.is_some()) {
            "A new one takes the place of the oldest."
        } else {
            "They stay until newer ones take their place."
        }
    };
    at_once(view! {
        <section class="panel" aria-labelledby="manual-title">
            <div class="section-head">
                <h2 id="manual-title">"Your backups"</h2>
                <p class="quiet"><b>{count}</b> " " {rule}</p>
            </div>
            {move || if has_any.get() {
                Either::Left(view! { <BackupList backups=manual next_to_go /> })
            } else {
                Either::Right(view! { <p class="empty">"None yet. Make your first one above: your shop stays open meanwhile."</p> })
            }}
        </section>
    })
}
