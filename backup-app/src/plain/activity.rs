//! `/activity`: what was done to a customer's backups and account.

use backup_core::audit::{Action, AuditEntry, KEPT_OF_CUSTOMER, Who};
use backup_core::catalog::Source;
use backup_core::repository::BackupType;
use leptos::prelude::*;

use super::times::Zone;
use super::{Document, brand, footer, picture};
use crate::clock;
use crate::components::{Icon, Symbol, who};
use crate::visit::Visit;

/// Somebody.
const PERSON: &str =
    "M12 12a4 4 0 1 0 0-8 4 4 0 0 0 0 8M4.500 20.500c.8-3.800 3.800-6 7.500-6s6.700 2.200 7.500 6";
/// A lid over a bin.
const BIN: &str =
    "M4.500 7h15M9.500 7V4.500h5V7M6.500 7l1 13h9l1-13M10.500 11v5.500M13.500 11v5.500";
/// Round and back to where it began.
const AROUND: &str = "M4.500 12a7.500 7.500 0 1 1 2.200 5.300M4.500 20.500v-4h4";

/// One page of a customer's activity.
pub struct ActivityPage<'a> {
    /// Who looks at it.
    pub visit: &'a Visit,
    /// What was done, newest first.
    pub entries: &'a [AuditEntry],
    /// Whether these are not the newest.
    pub is_later: bool,
    /// What the next page is before, if there is one.
    pub next: Option<u64>,
    /// For how many days it is kept.
    pub days_kept: u64,
    /// Where the style is, if there is one.
    pub stylesheet: Option<&'a str>,
}

impl ActivityPage<'_> {
    /// The whole document.
    pub fn render(&self) -> String {
        let document = Document {
            title: "Activity",
            stylesheet: self.stylesheet,
        };
        document.render(|| self.body())
    }

    fn body(&self) -> impl IntoView + use<> {
        let zone = Zone::new(&self.visit.zone);
        let days: Vec<_> = days(self.entries, &zone)
            .into_iter()
            .enumerate()
            .map(|(number, (day, entries))| self.day(number, day, entries, &zone))
            .collect();
        let is_empty = days.is_empty();
        let (is_later, next) = (self.is_later, self.next);
        let nothing = match (next, is_later) {
            (Some(_), _) => "Nothing here that can be shown.",
            (None, true) => "There is nothing older.",
            (None, false) => "Nothing yet.",
        };
        let kept = crate::words::count(self.days_kept, "day");
        view! {
            {self.top()}
            <main id="main">
                <p class="way-back"><a href="/backups"><Icon symbol=Symbol::Back />"All backups"</a></p>
                <div>
                    <h1>"Activity"</h1>
                    <p class="quiet">"What was done to your backups and your account, by whom and from where. Kept for " {kept} ", and the newest " {KEPT_OF_CUSTOMER} " of a kind at most."</p>
                </div>
                {days}
                {is_empty.then(|| view! {
                    <section class="panel"><p class="empty">{nothing}</p></section>
                })}
                {(is_later || next.is_some()).then(|| view! {
                    <nav class="pages" aria-label="More activity">
                        {is_later.then(|| view! { <a class="button" href="/activity">"Newest"</a> })}
                        {next.map(|id| view! { <a class="button" href=format!("/activity?before={id}")>"Earlier"</a> })}
                    </nav>
                })}
            </main>
            {footer(&zone)}
        }
    }

    fn top(&self) -> impl IntoView + use<> {
        let Visit {
            name, account_page, ..
        } = self.visit.clone();
        view! {
            <header class="top">
                <div class="top-inside">
                    {brand("/backups", "Backups")}
                    {who(name, account_page)}
                </div>
            </header>
        }
    }

    fn day(
        &self,
        number: usize,
        day: String,
        entries: Vec<&AuditEntry>,
        zone: &Zone,
    ) -> impl IntoView + use<> {
        let id = format!("day-{number}");
        let entries: Vec<_> = entries.into_iter().map(|entry| deed(entry, zone)).collect();
        view! {
            <section class="panel" aria-labelledby=id.clone()>
                <h2 id=id.clone()>{day}</h2>
                <ul class="deeds">{entries}</ul>
            </section>
        }
    }
}

/// The entries of each day.
fn days<'e>(entries: &'e [AuditEntry], zone: &Zone) -> Vec<(String, Vec<&'e AuditEntry>)> {
    let mut days: Vec<(String, Vec<&AuditEntry>)> = Vec::new();
    for entry in entries {
        let (day, _) = zone.day_and_time(entry.at);
        match days.last_mut() {
            Some((last, entries)) if *last == day => entries.push(entry),
            _ => days.push((day, vec![entry])),
        }
    }
    days
}

fn deed(entry: &AuditEntry, zone: &Zone) -> impl IntoView + use<> {
    let (_, time) = zone.day_and_time(entry.at);
    let iso = clock::iso(entry.at.as_millisecond());
    let kind = match entry.action {
        Action::LoginRefused => "deed bad",
        _ if entry.who == Who::Operator => "deed operator",
        _ => "deed",
    };
    let words = sentence(entry);
    let facts = facts(entry);
    view! {
        <li class=kind>
            {symbol(entry)}
            <p>
                {words}
                {(!facts.is_empty()).then(|| view! { <small class="quiet">{facts}</small> })}
            </p>
            <time datetime=iso>{time}</time>
        </li>
    }
}

fn symbol(entry: &AuditEntry) -> AnyView {
    match entry.action {
        Action::Backup => {
            let symbol = match entry.backup_type {
                Some(BackupType::Db) => Symbol::Database,
                Some(BackupType::Files) => Symbol::Files,
                Some(BackupType::Both) | None => Symbol::Both,
            };
            view! { <Icon symbol=symbol /> }.into_any()
        }
        Action::Restore => picture(AROUND).into_any(),
        Action::Cancel | Action::Dismiss => view! { <Icon symbol=Symbol::Stopped /> }.into_any(),
        Action::Delete => picture(BIN).into_any(),
        Action::LoginRefused => view! { <Icon symbol=Symbol::Failed /> }.into_any(),
        _ => picture(PERSON).into_any(),
    }
}

/// What was done, in words for the customer to whom it was done.
pub fn sentence(entry: &AuditEntry) -> String {
    by(
        entry,
        match entry.who {
            Who::Customer => "You",
            Who::Operator => "An operator",
            Who::Service => "Our systems",
        },
    )
}

/// The same for an operator.
pub fn sentence_about(entry: &AuditEntry) -> String {
    let whom = entry.customer.map(|id| format!("Customer {id}"));
    let is_of_session = matches!(
        entry.action,
        Action::Login | Action::Logout | Action::LoginRefused
    );
    match (whom, entry.who) {
        (Some(whom), Who::Customer) if !is_of_session => by(entry, &whom),
        (Some(whom), Who::Service) => format!("{whom}: {}", by(entry, "The program")),
        (Some(whom), _) => format!("{whom}: {}", by(entry, "An operator")),
        (None, Who::Service) => by(entry, "The program"),
        (None, _) => by(entry, "An operator"),
    }
}

/// From where, and by which job.
pub fn facts(entry: &AuditEntry) -> String {
    let address = entry.address.as_ref().filter(|_| {
        // These say it themselves.
        !matches!(entry.action, Action::Login | Action::LoginRefused)
    });
    let address = address.map(|address| format!("from {address}"));
    let job = entry.job_id.map(|job| format!("job {job}"));
    [address, job]
        .into_iter()
        .flatten()
        .collect::<Vec<_>>()
        .join(" · ")
}

fn by(entry: &AuditEntry, who: &str) -> String {
    let job = if entry.source.is_some() {
        "restore"
    } else {
        "backup"
    };
    let part = part(entry.backup_type);
    let from = match &entry.address {
        Some(address) => format!(" from {address}"),
        None => String::new(),
    };
    match (entry.action, entry.source, entry.who) {
        (Action::Backup, ..) => format!("{who} started a backup of {part}"),
        (Action::Restore, Some(Source::PreRestore), _) => {
            format!("{who} started to undo a restore of {part}")
        }
        (Action::Restore, Some(Source::Daily), _) => {
            format!("{who} started a restore of {part} from a daily backup")
        }
        (Action::Restore, ..) => format!("{who} started a restore of {part}"),
        (Action::Cancel, ..) => format!("{who} cancelled a {job} of {part}"),
        (Action::Dismiss, ..) => format!("{who} put away the message of a {job} that failed"),
        (Action::Delete, _, Who::Service) => "An older backup made room for newer ones".to_owned(),
        (Action::Delete, ..) => format!("{who} deleted a backup"),
        (Action::Login, ..) => format!("Signed in{from}"),
        (Action::Logout, ..) => "Signed out".to_owned(),
        (Action::LoginRefused, ..) => format!("Somebody tried to sign in{from} and was refused"),
        (Action::Password, ..) => format!("{who} set a new password"),
        (Action::Added, ..) => format!("{who} added the account"),
        (Action::Daily, ..) => format!("{who} started the daily backup of a server"),
        (Action::Sync, ..) => format!("{who} brought the lists of backups in step"),
        (Action::Prune, ..) => format!("{who} freed space in the repositories"),
        (Action::Recover, ..) => format!("{who} looked after interrupted restores"),
        (Action::Unlock, ..) => format!("{who} removed locks that were left in the repositories"),
        (Action::Verify, ..) => format!("{who} tried whether backups can be restored"),
    }
}

fn part(part: Option<BackupType>) -> &'static str {
    match part {
        Some(BackupType::Db) => "the database",
        Some(BackupType::Files) => "the files",
        Some(BackupType::Both) | None => "files and database",
    }
}
