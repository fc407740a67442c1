//! Telling that a job has ended: a webhook, and the customer himself by email.
//!
//! What is to be told is written in the transaction that ends the job (`outbox`), and told by a worker at least once: each time under the same id, so that
//! a receiver can see repeats. Never: a receiver in the way of a job; anything secret, or a customer's own words, in what is told; a message over a
//! connection that others can read.

mod email;
mod notice;
mod outbox;
mod tls;
mod webhook;

use crate::config::{EmailConfig, WebhookConfig};
use crate::error::{Error, Result};

pub(crate) use email::Mail;
pub(crate) use notice::{Ended, Notice, done};
pub(crate) use outbox::{Channel, Due, Outbox};
pub use outbox::{NotificationCount, NotificationsWaiting};
pub(crate) use outbox::{claim, counts, give_up, note_sent, put_off, waiting};
pub(crate) use webhook::post;

/// Why something was not taken.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// It may be taken another time.
    Passing(Error),
    /// It will never be.
    Final(Error),
}

/// Try a webhook without telling it anything: its secret, and a connection.
pub async fn try_webhook(config: &WebhookConfig) -> Result<()> {
    webhook::try_out(config).await
}

/// Try an SMTP server without giving it a mail: a connection, its greeting, and the login.
pub async fn try_email(config: &EmailConfig) -> Result<()> {
    email::try_out(config).await
}
