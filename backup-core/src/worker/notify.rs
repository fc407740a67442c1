//! Tells that jobs have ended, beside everything else that a worker does.
//!
//! Each channel has a task of its own, each notification its own deadline, and what is told is claimed first. Dying anywhere in it means that something is
//! told once more. Never: a job that waits for a receiver; a notification dropped without a line in the log.

use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinSet;

use super::upkeep::{AFTER_FAULT, begin_again};
use super::{POLL, Stopping};
use crate::config::Config;
use crate::customer::{CustomerId, CustomerStore};
use crate::error::{Error, ErrorKind, Result};
use crate::notify::{self, Channel, Due, Mail, Outbox, Refusal};
use crate::store::Store;

/// What is told at once in a channel: a receiver that hangs holds up so many others at most.
const AT_ONCE: usize = 4;

/// How long the end of a worker waits for what is being told.
const GRACE: Duration = Duration::from_secs(3);

/// For how long it is tried to write down that something was told, while the database is away.
const PATIENCE: Duration = Duration::from_secs(60);

/// The pause before the database is tried again.
const PAUSE: Duration = Duration::from_millis(500);

/// Tells what is to be told. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Notifier {
    pub(super) config: std::sync::Arc<Config>,
    pub(super) outbox: Outbox,
    pub(super) store: Store,
    pub(super) customers: CustomerStore,
}

impl Notifier {
    /// Until it is asked to end.
    pub(super) async fn keep_running(self, stopping: watch::Receiver<Stopping>) {
        let mut channels = JoinSet::new();
        for channel in self.outbox.channels() {
            let (this, stopping) = (self.clone(), stopping.clone());
            channels.spawn(async move {
                begin_again("the telling of ends", AFTER_FAULT, || {
                    this.clone().run(channel, stopping.clone())
                })
                .await;
            });
        }
        channels.join_all().await;
    }

    async fn run(self, channel: Channel, mut stopping: watch::Receiver<Stopping>) {
        let mut telling = JoinSet::new();
        let mut is_away = false;
        loop {
            // Before the last look, which finds the ends of the last jobs.
            let is_last = *stopping.borrow_and_update() != Stopping::No;
            match self.claim(channel, telling.len()).await {
                Ok(claimed) => {
                    is_away = false;
                    for due in claimed {
                        telling.spawn(self.clone().tell(due));
                    }
                }
                Err(error) if is_away => drop(error),
                Err(error) => {
                    is_away = true;
                    tracing::warn!("no {channel} can be sent now: {}", error.chain());
                }
            }
            if is_last {
                break;
            }
            tokio::select! {
                () = tokio::time::sleep(POLL) => {}
                Some(told) = telling.join_next() => {
                    if let Err(error) = told {
                        tracing::error!("a {channel} broke off inside the program: {error}");
                    }
                }
                asked = stopping.changed() => if asked.is_err() { return },
            }
        }
        // Whatever is not done then is due again once it is nobody's any more.
        let finished = async { while telling.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(GRACE, finished).await;
    }

    async fn claim(&self, channel: Channel, busy: usize) -> Result<Vec<Due>> {
        let free = AT_ONCE.saturating_sub(busy);
        match u32::try_from(free) {
            Ok(free) if free > 0 => notify::claim(&self.store, channel, free).await,
            _ => Ok(Vec::new()),
        }
    }

    async fn tell(self, due: Due) {
        let (id, channel, customer, job) = (&due.id, due.channel, due.customer, due.job);
        let refusal = match due.is_stale() {
            true => Some(Refusal::Final(Error::new(
                ErrorKind::Timeout,
                "nobody told it in time",
            ))),
            false => self.try_to_tell(&due).await.err(),
        };
        let settled = match refusal {
            None => {
                tracing::info!(job, customer, "{channel} {id} sent");
                self.patiently(|| notify::note_sent(&self.store, &due))
                    .await
            }
            Some(refusal) => {
                let (error, pause) = match refusal {
                    Refusal::Passing(error) => (error, due.pause()),
                    Refusal::Final(error) => (error, None),
                };
                match pause {
                    Some(pause) => {
                        let seconds = pause.as_secs();
                        tracing::warn!(
                            job,
                            customer,
                            "{channel} {id} is not sent, and tried again in {seconds} s: {}",
                            error.chain()
                        );
                        self.patiently(|| notify::put_off(&self.store, &due, pause))
                            .await
                    }
                    None => {
                        tracing::error!(
                            job,
                            customer,
                            "{channel} {id} is given up: {}",
                            error.chain()
                        );
                        self.patiently(|| notify::give_up(&self.store, &due)).await
                    }
                }
            }
        };
        if let Err(error) = settled {
            tracing::warn!(
                job,
                customer,
                "what became of {channel} {id} cannot be written down, so it may be sent once more: {}",
                error.chain()
            );
        }
    }

    async fn try_to_tell(&self, due: &Due) -> std::result::Result<(), Refusal> {
        let notify = &self.config.notify;
        match (due.channel, &notify.webhook, &notify.email) {
            (Channel::Webhook, Some(webhook), _) => {
                notify::post(webhook, &due.id, &due.payload).await
            }
            (Channel::Email, _, Some(email)) => {
                let unknown = |what: &str| Refusal::Final(Error::new(ErrorKind::NotFound, what));
                let id = CustomerId::new(due.customer).map_err(Refusal::Final)?;
                let contact = self.customers.contact(id).await.map_err(Refusal::Passing)?;
                let contact =
                    contact.ok_or_else(|| unknown("there is no such customer any more"))?;
                let address = contact
                    .email
                    .ok_or_else(|| unknown("the customer has no email address"))?;
                let mail = Mail {
                    id: &due.id,
                    payload: &due.payload,
                    address: &address,
                    domain: contact.domain.as_deref(),
                    dashboard: self.config.server.public_url.as_ref(),
                };
                mail.send(email).await
            }
            (channel, ..) => Err(Refusal::Passing(Error::new(
                ErrorKind::Configuration,
                format!("notify.{channel} is not configured here"),
            ))),
        }
    }

    /// Once more while the database is away, for as long as the claim lasts.
    async fn patiently<F: Future<Output = Result<()>>>(&self, act: impl Fn() -> F) -> Result<()> {
        let since = Instant::now();
        loop {
            match act().await {
                Err(error)
                    if matches!(error.kind(), ErrorKind::Unreachable | ErrorKind::Busy)
                        && since.elapsed() < PATIENCE =>
                {
                    tokio::time::sleep(PAUSE).await;
                }
                other => return other,
            }
        }
    }
}
