//! How a page stays true while it is looked at: one event stream while a job has no true end, a look at the status now and then otherwise.
//!
//! Only in the browser, and only while the tab is visible. Never: two streams of one tab; a page that says it is up to date while the server cannot be reached.

use leptos::prelude::*;
use serde::de::DeserializeOwned;

use crate::model::{Flash, Job};

/// What is said above every page. Outlives the pages.
#[derive(Clone, Copy)]
pub struct Notices {
    /// What became of the last action.
    pub message: RwSignal<Option<Flash>>,
    /// Whether the server answers.
    pub connected: RwSignal<bool>,
}

impl Notices {
    /// For the whole application.
    pub fn provide() {
        provide_context(Self {
            message: RwSignal::new(None),
            connected: RwSignal::new(true),
        });
    }
}

/// What a page shows of jobs, and how it is brought up to date.
#[derive(Clone, Copy)]
pub struct Live {
    /// The customer's newest jobs, newest first.
    pub jobs: RwSignal<Vec<Job>>,
    /// The one that has not ended.
    pub active: Memo<Option<Job>>,
    /// That one, or a restore that is stuck.
    pub open: Memo<Option<Job>>,
    /// Whether there is one: no other can be started then.
    pub is_busy: Memo<bool>,
    /// The job that was started on this page.
    pub started: RwSignal<Option<u64>>,
    /// What is said above the page.
    pub notices: Notices,
    #[cfg(feature = "hydrate")]
    reload: Callback<(), browser::Loading>,
}

impl Live {
    /// Keep these jobs up to date for as long as the page is shown, and the rest of it: `show` is given what is found at `address`, and returns the
    /// jobs in it.
    pub fn start<P: DeserializeOwned + 'static>(
        jobs: Vec<Job>,
        address: String,
        show: Callback<P, Vec<Job>>,
    ) -> Self {
        let jobs = RwSignal::new(jobs);
        let active = Memo::new(move |_| {
            jobs.with(|jobs| jobs.first().filter(|job| job.status.is_active()).cloned())
        });
        let open =
            Memo::new(move |_| jobs.with(|jobs| jobs.iter().find(|job| job.is_open()).cloned()));
        let live = Self {
            jobs,
            active,
            open,
            is_busy: Memo::new(move |_| open.with(Option::is_some)),
            started: RwSignal::new(None),
            notices: expect_context(),
            #[cfg(feature = "hydrate")]
            reload: browser::reload(jobs, address, show),
        };
        #[cfg(feature = "ssr")]
        let _ = (address, show);
        #[cfg(feature = "hydrate")]
        browser::run(live);
        live
    }

    /// Something was done here: show it, in the customer's other tabs too.
    pub fn changed(self) {
        #[cfg(feature = "hydrate")]
        browser::tell_other_tabs();
        self.refresh();
    }

    /// Bring everything on the page up to date.
    pub fn refresh(self) {
        #[cfg(feature = "hydrate")]
        leptos::task::spawn_local(browser::refresh(self));
    }
}

/// Go where one logs in again.
#[cfg(feature = "hydrate")]
pub fn log_in_again() {
    // Fails where there is no window any more.
    let _ = window().location().set_href("/login?problem=expired");
}

#[cfg(feature = "hydrate")]
mod browser {
    use std::cell::Cell;
    use std::future::Future;
    use std::pin::Pin;
    use std::time::Duration;

    use leptos::ev;
    use leptos::prelude::*;
    use leptos::task::spawn_local;
    use serde::Deserialize;
    use serde::de::DeserializeOwned;
    use wasm_bindgen::closure::Closure;
    use wasm_bindgen::{JsCast, JsValue};
    use web_sys::{BroadcastChannel, Event, EventSource, MessageEvent};

    use super::{Live, log_in_again};
    use crate::data::{By, PageError, fetch};
    use crate::model::{Job, JobStatus};
    use crate::words;

    /// How often the server is asked for news while there is no stream.
    const POLL: Duration = Duration::from_secs(15);
    /// Every so many polls the whole page is brought up to date: a job of another device may have come and gone.
    const POLLS_PER_REFRESH: u32 = 4;
    const RECONNECT: Duration = Duration::from_secs(5);
    /// How long a stream may be away before it counts as lost. The server ends each from time to time, and browsers wait up to 5 s before they ask again.
    const PATIENCE: Duration = Duration::from_secs(8);

    pub fn run(live: Live) {
        // What is shown just came from the server.
        live.notices.connected.set(true);
        let visible = RwSignal::new(!document().hidden());
        follow_visibility(live, visible);
        follow_connection(live);
        follow_other_tabs(live);
        stream_while_active(live, visible);
        poll_while_idle(live, visible);
        tell_of_ends(live);
    }

    pub type Loading = Pin<Box<dyn Future<Output = Result<(), PageError>>>>;

    pub fn reload<P: DeserializeOwned + 'static>(
        jobs: RwSignal<Vec<Job>>,
        address: String,
        show: Callback<P, Vec<Job>>,
    ) -> Callback<(), Loading> {
        Callback::new(move |()| {
            let address = address.clone();
            Box::pin(async move {
                let page = fetch(&address, By::Page).await?;
                // The page may have been left meanwhile.
                if let Some(fresh) = show.try_run(page) {
                    jobs.set(fresh);
                }
                Ok(())
            }) as Loading
        })
    }

    pub async fn refresh(live: Live) {
        let Some(loading) = live.reload.try_run(()) else {
            return;
        };
        match loading.await {
            Ok(()) => live.notices.connected.set(true),
            Err(PageError::LoggedOut) => log_in_again(),
            Err(PageError::Unavailable | PageError::Unreachable) => {
                live.notices.connected.set(false);
            }
        }
    }

    fn follow_visibility(live: Live, visible: RwSignal<bool>) {
        let listening = window_event_listener(ev::visibilitychange, move |_| {
            let is_visible = !document().hidden();
            visible.set(is_visible);
            if is_visible {
                live.refresh();
            }
        });
        on_cleanup(move || listening.remove());
    }

    fn follow_connection(live: Live) {
        let online = window_event_listener(ev::online, move |_| live.refresh());
        let offline = window_event_listener(ev::offline, move |_| {
            live.notices.connected.set(false);
        });
        on_cleanup(move || {
            online.remove();
            offline.remove();
        });
    }

    /// The name under which the tabs of one browser hear of each other.
    const CHANNEL: &str = "backups";

    pub fn tell_other_tabs() {
        if let Ok(channel) = BroadcastChannel::new(CHANNEL) {
            // They find out by themselves, only later.
            let _ = channel.post_message(&JsValue::NULL);
            channel.close();
        }
    }

    fn follow_other_tabs(live: Live) {
        let Ok(channel) = BroadcastChannel::new(CHANNEL) else {
            return;
        };
        let on_message = Closure::<dyn Fn(Event)>::new(move |_| live.refresh());
        channel.set_onmessage(Some(on_message.as_ref().unchecked_ref()));
        let heard = StoredValue::new_local((channel, on_message));
        on_cleanup(move || heard.with_value(|(channel, _)| channel.close()));
    }

    fn stream_while_active(live: Live, visible: RwSignal<bool>) {
        let attempt = RwSignal::new(0u32);
        let stream = StoredValue::new_local(None);
        Effect::new(move |_| {
            attempt.track();
            let wanted = live.is_busy.get() && visible.get();
            // The old one is closed before the new one is opened.
            stream.set_value(None);
            if wanted {
                stream.set_value(Stream::open(live, attempt));
            }
        });
    }

    fn poll_while_idle(live: Live, visible: RwSignal<bool>) {
        let polls = Cell::new(0u32);
        let polling = set_interval_with_handle(
            move || {
                let streams =
                    live.is_busy.get_untracked() && live.notices.connected.get_untracked();
                if streams || !visible.get_untracked() {
                    return;
                }
                polls.set(polls.get() + 1);
                if polls.get().is_multiple_of(POLLS_PER_REFRESH) {
                    live.refresh();
                } else {
                    spawn_local(look_for_news(live));
                }
            },
            POLL,
        );
        if let Ok(polling) = polling {
            on_cleanup(move || polling.clear());
        }
    }

    /// Say when a job ended that was seen running or started here, however that became known.
    fn tell_of_ends(live: Live) {
        Effect::new(move |watched: Option<Option<u64>>| {
            let open = live.open.with(|job| job.as_ref().map(|job| job.id));
            let started = live.started.get();
            let watched = open.or(watched.flatten()).max(started)?;
            let ended = live.jobs.with(|jobs| {
                let job = jobs.iter().find(|job| job.id == watched)?;
                let is_done = job.status == JobStatus::Completed;
                // A failure has a card of its own.
                (!job.is_open()).then(|| is_done.then(|| words::done(job)))
            });
            let Some(message) = ended else {
                return Some(watched);
            };
            live.notices.message.set(message);
            live.started.set(None);
            live.refresh();
            None
        });
    }

    /// What `/api/backups/status` says.
    #[derive(Deserialize)]
    struct Status {
        job: Option<Job>,
        last_failed: Option<Job>,
    }

    async fn look_for_news(live: Live) {
        let status: Status = match fetch("/api/backups/status", By::Page).await {
            Ok(status) => status,
            Err(PageError::LoggedOut) => return log_in_again(),
            Err(PageError::Unavailable | PageError::Unreachable) => {
                return live.notices.connected.set(false);
            }
        };
        live.notices.connected.set(true);
        let is_news = live.jobs.try_with_untracked(|jobs| {
            let is_known = |told: &Job| {
                let mut known = jobs.iter();
                known.any(|job| {
                    job.id == told.id && job.status == told.status && job.failure == told.failure
                })
            };
            // One that is stuck ends once more, and may be told no longer then.
            let was_open = jobs.iter().any(Job::is_open);
            let mut told = status.job.iter().chain(&status.last_failed);
            let is_open = told.clone().any(Job::is_open);
            was_open != is_open || !told.all(is_known)
        });
        // The page may have been left meanwhile.
        if is_news == Some(true) {
            live.refresh();
        }
    }

    /// The one stream of this tab. Closed when dropped.
    struct Stream {
        source: EventSource,
        _on_job: Closure<dyn Fn(MessageEvent)>,
        _on_open: Closure<dyn Fn(Event)>,
        _on_error: Closure<dyn Fn(Event)>,
    }

    impl Stream {
        fn open(live: Live, attempt: RwSignal<u32>) -> Option<Self> {
            let source = EventSource::new("/api/backups/events").ok()?;
            let on_job = Closure::new(move |event: MessageEvent| {
                let told = event.data().as_string().unwrap_or_default();
                if let Ok(job) = serde_json::from_str(&told) {
                    show(live, job);
                }
            });
            let on_open = Closure::new(move |_| live.notices.connected.set(true));
            let on_error = Closure::new({
                let source = source.clone();
                move |_| match source.ready_state() {
                    EventSource::CLOSED => reopen_later(live, attempt),
                    // It tries again by itself.
                    _ => doubt(live, source.clone()),
                }
            });
            // Fails for objects that are no targets of events.
            let _ = source.add_event_listener_with_callback("job", on_job.as_ref().unchecked_ref());
            source.set_onopen(Some(on_open.as_ref().unchecked_ref()));
            source.set_onerror(Some(on_error.as_ref().unchecked_ref()));
            Some(Self {
                source,
                _on_job: on_job,
                _on_open: on_open,
                _on_error: on_error,
            })
        }
    }

    impl Drop for Stream {
        fn drop(&mut self) {
            self.source.set_onopen(None);
            self.source.set_onerror(None);
            self.source.close();
        }
    }

    /// Say that the connection is lost, unless the stream is back soon.
    fn doubt(live: Live, source: EventSource) {
        set_timeout(
            move || {
                if source.ready_state() == EventSource::CONNECTING {
                    live.notices.connected.set(false);
                }
            },
            PATIENCE,
        );
    }

    fn show(live: Live, job: Job) {
        live.jobs.update(
            |jobs| match jobs.iter_mut().find(|known| known.id == job.id) {
                Some(known) => *known = job,
                None => jobs.insert(0, job),
            },
        );
    }

    /// The server had nothing to tell, or would not: see what is true, then try again if there is still a job.
    fn reopen_later(live: Live, attempt: RwSignal<u32>) {
        set_timeout(
            move || {
                spawn_local(async move {
                    refresh(live).await;
                    attempt.update(|attempt| *attempt += 1);
                });
            },
            RECONNECT,
        );
    }
}
