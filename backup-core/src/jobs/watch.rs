//! Jobs as streams of their states, for progress bars and event streams.
//!
//! However many watch, the table is asked once a second, and not at all while nobody watches.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::Stream;
use tokio::sync::watch;

use super::{Job, JobId, JobStore};
use crate::error::Result;

const PAUSE: Duration = Duration::from_secs(1);

/// Hands out streams of jobs. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Watcher {
    jobs: JobStore,
    watched: Arc<Mutex<Watched>>,
}

#[derive(Debug, Default)]
struct Watched {
    senders: HashMap<JobId, watch::Sender<Job>>,
    is_asking: bool,
}

/// The states of a job, as they come; the last one is its end, which of a stuck restore is the true one. A state that nobody looked at in time is
/// left out.
pub struct JobStream {
    inner: Pin<Box<dyn Stream<Item = Job> + Send>>,
}

impl std::fmt::Debug for JobStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JobStream")
    }
}

impl Stream for JobStream {
    type Item = Job;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Job>> {
        self.inner.as_mut().poll_next(context)
    }
}

impl Watcher {
    pub(crate) fn new(jobs: &JobStore) -> Self {
        Self {
            jobs: jobs.clone(),
            watched: Arc::default(),
        }
    }

    /// The states of a job from `now` on.
    pub(crate) fn watch(&self, now: Job) -> JobStream {
        if !now.is_open() {
            return JobStream {
                inner: Box::pin(futures_util::stream::iter([now])),
            };
        }
        let receiver = self.subscribe(now);
        let states = futures_util::stream::unfold(Some((receiver, true)), |state| async {
            let (mut receiver, is_first) = state?;
            if !is_first {
                // An error means that the job is gone from the table.
                receiver.changed().await.ok()?;
            }
            let job = receiver.borrow_and_update().clone();
            let goes_on = job.is_open();
            Some((job, goes_on.then_some((receiver, false))))
        });
        JobStream {
            inner: Box::pin(states),
        }
    }

    fn subscribe(&self, now: Job) -> watch::Receiver<Job> {
        let mut watched = self.watched();
        let receiver = watched
            .senders
            .entry(now.id)
            .or_insert_with(|| watch::Sender::new(now))
            .subscribe();
        if !watched.is_asking {
            watched.is_asking = true;
            tokio::spawn(self.clone().ask());
        }
        receiver
    }

    /// Until nobody watches any more.
    async fn ask(self) {
        loop {
            tokio::time::sleep(PAUSE).await;
            let ids: Vec<JobId> = {
                let mut watched = self.watched();
                watched
                    .senders
                    .retain(|_, sender| sender.receiver_count() > 0);
                if watched.senders.is_empty() {
                    watched.is_asking = false;
                    return;
                }
                watched.senders.keys().copied().collect()
            };
            match self.jobs.get_all(&ids).await {
                Ok(jobs) => self.tell(&ids, jobs),
                // Watchers see no change until the database is back.
                Err(e) => tracing::debug!("the watched jobs cannot be read: {}", e.chain()),
            }
        }
    }

    fn tell(&self, asked: &[JobId], jobs: Vec<Job>) {
        let mut watched = self.watched();
        let found: HashMap<JobId, Job> = jobs.into_iter().map(|job| (job.id, job)).collect();
        for id in asked {
            let Some(job) = found.get(id) else {
                watched.senders.remove(id);
                continue;
            };
            if let Some(sender) = watched.senders.get(id) {
                sender.send_if_modified(|known| {
                    let is_news = known != job;
                    if is_news {
                        *known = job.clone();
                    }
                    is_news
                });
            }
        }
    }

    fn watched(&self) -> MutexGuard<'_, Watched> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl JobStore {
    /// Those of these jobs that there are.
    pub(crate) async fn get_all(&self, ids: &[JobId]) -> Result<Vec<Job>> {
        let mut jobs = Vec::with_capacity(ids.len());
        for some in ids.chunks(500) {
            jobs.extend(self.get_some(some).await?);
        }
        Ok(jobs)
    }
}
