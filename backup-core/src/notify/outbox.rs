//! What is still to be told, as rows.
//!
//! Commit points: it is to be told once the transaction that ends its job is committed, and told once its row is gone. Who claims a row has it for a while;
//! should he die, it is due again. Never: more rows of a customer than [`WAITING_MAX`], whatever he does and whoever does not listen.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::notice::Notice;
use crate::config::{NotifyConfig, NotifyEvent};
use crate::error::{Error, ErrorKind, Result};
use crate::store::{Inserted, Store, Transaction, values};

/// What may wait of one customer in one channel: of more, the oldest is given up.
const WAITING_MAX: u32 = 100;

/// For how long a claimed row is nobody else's: longer than any delivery takes.
const LEASE: Duration = Duration::from_secs(180);

/// After how long something that nobody takes is given up.
const GIVEN_UP_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

/// The pauses between tries; the last one again and again.
const PAUSES: [Duration; 7] = [
    Duration::from_secs(60),
    Duration::from_secs(5 * 60),
    Duration::from_secs(15 * 60),
    Duration::from_secs(30 * 60),
    Duration::from_secs(60 * 60),
    Duration::from_secs(3 * 60 * 60),
    Duration::from_secs(6 * 60 * 60),
];

/// How something is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Channel {
    Webhook,
    Email,
}

impl Channel {
    fn as_str(self) -> &'static str {
        match self {
            Self::Webhook => "webhook",
            Self::Email => "email",
        }
    }
}

impl fmt::Display for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Which ends are told in which channel. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Outbox {
    wanted: Arc<[(Channel, Vec<NotifyEvent>)]>,
}

/// Something that is to be told now, and is the caller's to tell.
#[derive(Debug, Clone)]
pub(crate) struct Due {
    pub(crate) id: String,
    pub(crate) channel: Channel,
    pub(crate) customer: u32,
    pub(crate) job: u64,
    pub(crate) payload: String,
    /// How often it was tried, this time included.
    attempts: u32,
    /// For how long it had been known when it was claimed.
    age: Duration,
}

/// How many notifications ended so, since the tables were made.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct NotificationCount {
    /// `webhook` or `email`.
    pub channel: String,
    /// `sent` or `given_up`.
    pub outcome: String,
    /// How many.
    pub number: u64,
}

/// The notifications of a channel that are still to be told.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct NotificationsWaiting {
    /// `webhook` or `email`.
    pub channel: String,
    /// How many.
    pub number: u64,
    /// For how long the oldest of them waits.
    pub oldest: Duration,
}

impl Outbox {
    pub(crate) fn new(config: &NotifyConfig) -> Self {
        let webhook = config.webhook.as_ref();
        let email = config.email.as_ref();
        let wanted = webhook
            .map(|it| (Channel::Webhook, it.events.clone()))
            .into_iter()
            .chain(email.map(|it| (Channel::Email, it.events.clone())));
        Self {
            wanted: wanted.collect(),
        }
    }

    /// Whether nobody is told of anything.
    pub(crate) fn is_off(&self) -> bool {
        self.wanted.is_empty()
    }

    /// The channels that are used.
    pub(crate) fn channels(&self) -> impl Iterator<Item = Channel> {
        self.wanted.iter().map(|(channel, _)| *channel)
    }

    /// Write down what is to be told, as part of the transaction that makes it true.
    pub(crate) async fn write(&self, transaction: &mut Transaction, notice: &Notice) -> Result<()> {
        for (channel, events) in self.wanted.iter() {
            if events.contains(&notice.event) {
                make_room(transaction, *channel, notice.ended.customer_id).await?;
                insert(transaction, *channel, notice).await?;
            }
        }
        Ok(())
    }
}

async fn insert(transaction: &mut Transaction, channel: Channel, notice: &Notice) -> Result<()> {
    const INSERT: &str =
        "INSERT INTO backup_notifications (id, channel, customer_id, job_id, payload, created_at, due_at)
        VALUES (?, ?, ?, ?, ?, {now}, {now})";
    let payload = notice.payload().map_err(|e| {
        Error::caused(
            ErrorKind::Failed,
            "the end of a job cannot be put into words",
            e,
        )
    })?;
    let id = hex::encode(rand::random::<[u8; 16]>());
    let ended = &notice.ended;
    let values = values![
        id,
        channel.as_str(),
        ended.customer_id,
        ended.job_id,
        payload
    ];
    match transaction.insert(INSERT, values).await? {
        Inserted::Done(_) => Ok(()),
        Inserted::Conflict => Err(Error::new(
            ErrorKind::Failed,
            "a random number came up twice",
        )),
    }
}

async fn make_room(transaction: &mut Transaction, channel: Channel, customer: u32) -> Result<()> {
    const SURPLUS: &str =
        "SELECT id FROM backup_notifications WHERE customer_id = ? AND channel = ?
        ORDER BY created_at DESC, id DESC LIMIT 1 OFFSET ?";
    let values = values![customer, channel.as_str(), WAITING_MAX - 1];
    let surplus: Option<(String,)> = transaction.row(SURPLUS, values).await?;
    if let Some((id,)) = surplus {
        tracing::error!(customer, "{channel} {id} is given up: too many wait");
        remove(transaction, &id).await?;
        count(transaction, channel, "given_up").await?;
    }
    Ok(())
}

async fn remove(transaction: &mut Transaction, id: &str) -> Result<bool> {
    const DELETE: &str = "DELETE FROM backup_notifications WHERE id = ?";
    Ok(transaction.execute(DELETE, values![id]).await? > 0)
}

async fn count(transaction: &mut Transaction, channel: Channel, outcome: &str) -> Result<()> {
    const UPDATE: &str = "UPDATE backup_notification_counts SET number = number + 1 WHERE channel = ? AND outcome = ?";
    let values = values![channel.as_str(), outcome];
    transaction.execute(UPDATE, values).await.map(drop)
}

/// Take what is due in a channel, so that others leave it alone meanwhile.
pub(crate) async fn claim(store: &Store, channel: Channel, at_most: u32) -> Result<Vec<Due>> {
    const DUE: &str = "SELECT id, customer_id, job_id, payload, attempts, {now} - created_at FROM backup_notifications
        WHERE channel = ? AND due_at <= {now} ORDER BY due_at LIMIT ?";
    const CLAIM: &str =
        "UPDATE backup_notifications SET attempts = attempts + 1, due_at = {now} + ?
        WHERE id = ? AND attempts = ? AND due_at <= {now}";
    let rows: Vec<(String, i64, i64, String, i64, i64)> =
        store.rows(DUE, values![channel.as_str(), at_most]).await?;
    let mut claimed = Vec::new();
    for (id, customer, job, payload, attempts, age) in rows {
        let values = values![milliseconds(LEASE), id.as_str(), attempts];
        if store.execute(CLAIM, values).await? == 0 {
            // Somebody was faster.
            continue;
        }
        claimed.push(Due {
            id,
            channel,
            customer: u32::try_from(customer).unwrap_or(0),
            job: u64::try_from(job).unwrap_or(0),
            payload,
            attempts: u32::try_from(attempts).unwrap_or(0).saturating_add(1),
            age: Duration::from_millis(u64::try_from(age).unwrap_or(0)),
        });
    }
    Ok(claimed)
}

/// It was told. Whoever has claimed it meanwhile need not tell it again.
pub(crate) async fn note_sent(store: &Store, due: &Due) -> Result<()> {
    end(store, due, "sent").await
}

/// Nobody will be told.
pub(crate) async fn give_up(store: &Store, due: &Due) -> Result<()> {
    end(store, due, "given_up").await
}

async fn end(store: &Store, due: &Due, outcome: &str) -> Result<()> {
    let mut transaction = store.begin().await?;
    if remove(&mut transaction, &due.id).await? {
        count(&mut transaction, due.channel, outcome).await?;
    }
    transaction.commit().await
}

/// It is tried again after a pause, unless somebody else has it by now.
pub(crate) async fn put_off(store: &Store, due: &Due, pause: Duration) -> Result<()> {
    const UPDATE: &str =
        "UPDATE backup_notifications SET due_at = {now} + ? WHERE id = ? AND attempts = ?";
    let values = values![milliseconds(pause), due.id.as_str(), due.attempts];
    store.execute(UPDATE, values).await.map(drop)
}

/// How many were sent and given up.
pub(crate) async fn counts(store: &Store) -> Result<Vec<NotificationCount>> {
    const QUERY: &str =
        "SELECT channel, outcome, number FROM backup_notification_counts ORDER BY channel, outcome";
    let rows: Vec<(String, String, i64)> = store.rows(QUERY, &[]).await?;
    let count = |(channel, outcome, number): (String, String, i64)| NotificationCount {
        channel,
        outcome,
        number: u64::try_from(number).unwrap_or(0),
    };
    Ok(rows.into_iter().map(count).collect())
}

/// How many wait, and for how long; no channel of which none does.
pub(crate) async fn waiting(store: &Store) -> Result<Vec<NotificationsWaiting>> {
    const QUERY: &str = "SELECT channel, COUNT(*), {now} - MIN(created_at) FROM backup_notifications GROUP BY channel ORDER BY channel";
    let rows: Vec<(String, i64, i64)> = store.rows(QUERY, &[]).await?;
    let waiting = |(channel, number, oldest): (String, i64, i64)| NotificationsWaiting {
        channel,
        number: u64::try_from(number).unwrap_or(0),
        oldest: Duration::from_millis(u64::try_from(oldest).unwrap_or(0)),
    };
    Ok(rows.into_iter().map(waiting).collect())
}

impl Due {
    /// How long to wait before the next try; None where there shall be none.
    pub(crate) fn pause(&self) -> Option<Duration> {
        let tried = usize::try_from(self.attempts).unwrap_or(usize::MAX);
        let pause = PAUSES[tried.clamp(1, PAUSES.len()) - 1];
        let left = GIVEN_UP_AFTER
            .checked_sub(self.age)
            .filter(|left| !left.is_zero())?;
        Some(pause.min(left))
    }

    /// Whether it is news no more: workers, or this channel, were off for days.
    pub(crate) fn is_stale(&self) -> bool {
        self.age > GIVEN_UP_AFTER * 2
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn due(attempts: u32, age: Duration) -> Due {
        Due {
            id: "id".into(),
            channel: Channel::Webhook,
            customer: 7,
            job: 1,
            payload: String::new(),
            attempts,
            age,
        }
    }

    #[test]
    fn pauses_grow_and_the_last_try_is_a_day_after_the_end() {
        let (mut age, mut pauses, mut attempts) = (Duration::ZERO, Vec::new(), 1);
        while let Some(pause) = due(attempts, age).pause() {
            pauses.push(pause);
            age += pause;
            attempts += 1;
        }
        assert_eq!(age, GIVEN_UP_AFTER);
        assert_eq!(pauses[0], Duration::from_secs(60));
        let (_, growing) = pauses.split_last().unwrap();
        assert!(growing.is_sorted() && growing.len() >= 8, "{pauses:?}");
        assert!(
            pauses
                .iter()
                .all(|pause| *pause <= Duration::from_secs(6 * 60 * 60))
        );
        // However often it was tried, and however long nobody was there to do so.
        assert!(due(u32::MAX, Duration::ZERO).pause().is_some());
        assert_eq!(due(1, GIVEN_UP_AFTER * 3).pause(), None);
        assert!(due(1, GIVEN_UP_AFTER * 3).is_stale());
        assert!(!due(9, GIVEN_UP_AFTER).is_stale());
    }
}
