//! `/admin`: how all customers are, for operators. It changes nothing.

use backup_core::audit::{AuditEntry, Who};
use backup_core::jiff::Timestamp;
use backup_core::jobs::{JobStatus, JobType};
use backup_core::service::{CustomerStatus, Kept, OpenJob, Status};
use leptos::prelude::*;

use super::times::{Zone, age};
use super::{Document, activity, brand, footer};
use crate::components::{Icon, Symbol};
use crate::words;

/// How all customers are.
pub struct AdminPage<'a> {
    /// Who looks at it.
    pub operator: &'a str,
    /// The customers, those first who need a look.
    pub status: &'a Status,
    /// Those of them that are shown, by their places.
    pub shown: &'a [usize],
    /// How many match, of which as many are shown as fit.
    pub found: usize,
    /// What was searched for.
    pub search: &'a str,
    /// What was done last, newest first.
    pub activity: &'a [AuditEntry],
    /// The name of the operator's time zone.
    pub zone: &'a str,
    /// Where the style is, if there is one.
    pub stylesheet: Option<&'a str>,
}

impl AdminPage<'_> {
    /// The whole document.
    pub fn render(&self) -> String {
        let document = Document {
            title: "Operators",
            stylesheet: self.stylesheet,
        };
        document.render(|| self.body())
    }

    fn body(&self) -> impl IntoView + use<> {
        let zone = Zone::new(self.zone);
        view! {
            <header class="top">
                <div class="top-inside">
                    {brand("/admin", "Operators")}
                    <p class="who"><span class="visually-hidden">"Logged in as "</span>{self.operator.to_owned()}</p>
                    <form method="post" action="/admin/logout">
                        <button class="button quiet">"Log out"</button>
                    </form>
                </div>
            </header>
            <main id="main">
                {self.heading(&zone)}
                {self.unseen(&zone)}
                {self.search()}
                {self.customers(&zone)}
                {self.latest(&zone)}
            </main>
            {footer(&zone)}
        }
    }

    fn heading(&self, zone: &Zone) -> impl IntoView + use<> {
        let all = self.status.customers.len();
        let customers = words::count(all as u64, "customer");
        let is_good = !self.status.needs_look();
        let heading = match self.status.troubled() {
            0 if all == 0 => "There are no customers".to_owned(),
            0 => format!("All is well with {customers}"),
            1 => format!("1 of {customers} needs a look"),
            many => format!("{} of {customers} need a look", words::grouped(many as u64)),
        };
        let at = zone.in_words(self.status.at);
        view! {
            <div class="verdict" class:good=is_good>
                <Icon symbol=if is_good { Symbol::Done } else { Symbol::Failed } />
                <div>
                    <h1>{heading}</h1>
                    <p class="quiet">"As of " {at} "."</p>
                </div>
            </div>
        }
    }

    /// Workers that were not heard of.
    fn unseen(&self, zone: &Zone) -> impl IntoView + use<> {
        let now = self.status.at;
        let unseen = self.status.repositories.iter().filter(|one| one.is_unseen);
        let unseen: Vec<_> = unseen
            .map(|one| {
                let (server, source) = (one.server.clone(), one.source.clone());
                view! {
                    <li>
                        "The worker of the server " <b>{server}</b> " looked at its " {source} " repository "
                        {age(zone, now, one.synced_at)} " for the last time."
                    </li>
                }
            })
            .collect();
        (!unseen.is_empty()).then(|| {
            view! {
                <section class="message bad" aria-label="Workers that are not heard of">
                    <Icon symbol=Symbol::Failed />
                    <ul class="plain-list">{unseen}</ul>
                </section>
            }
        })
    }

    fn search(&self) -> impl IntoView + use<> {
        let search = self.search.to_owned();
        let is_searching = !search.is_empty();
        view! {
            <form class="search" method="get" action="/admin" role="search">
                <label class="field">
                    <span>"Search"<small>" number, name, or hosting server"</small></span>
                    <input type="search" name="q" value=search maxlength="100" autocomplete="off" />
                </label>
                <button class="button primary">"Search"</button>
                {is_searching.then(|| view! { <a class="button quiet" href="/admin">"Show all"</a> })}
            </form>
        }
    }

    fn customers(&self, zone: &Zone) -> impl IntoView + use<> {
        let shown = || {
            self.shown
                .iter()
                .filter_map(|place| self.status.customers.get(*place))
        };
        let now = self.status.at;
        let list = |customers: Vec<&CustomerStatus>| -> Vec<_> {
            let item = |customer: &CustomerStatus| customer_item(customer, now, zone);
            customers.into_iter().map(item).collect()
        };
        let (bad, good): (Vec<_>, Vec<_>) =
            shown().partition(|customer| !customer.problems.is_empty());
        let (bad, good) = (list(bad), list(good));
        let left_out = self.found.saturating_sub(self.shown.len());
        let is_none = self.shown.is_empty() && !self.search.is_empty();
        view! {
            {(!bad.is_empty()).then(|| view! {
                <section class="panel" aria-labelledby="bad-title">
                    <h2 id="bad-title">"Needs a look"</h2>
                    <ul class="customers">{bad}</ul>
                </section>
            })}
            {(!good.is_empty()).then(|| view! {
                <section class="panel" aria-labelledby="good-title">
                    <h2 id="good-title">"Well"</h2>
                    <ul class="customers">{good}</ul>
                </section>
            })}
            {is_none.then(|| view! {
                <section class="panel"><p class="empty">"No customer matches that."</p></section>
            })}
            {(left_out > 0).then(|| view! {
                <p class="quiet">{words::count(left_out as u64, "more customer")} " not shown: search for them."</p>
            })}
        }
    }

    fn latest(&self, zone: &Zone) -> impl IntoView + use<> {
        let entries: Vec<_> = self
            .activity
            .iter()
            .map(|entry| latest(entry, zone))
            .collect();
        (!entries.is_empty()).then(|| {
            view! {
                <section class="panel" aria-labelledby="latest-title">
                    <h2 id="latest-title">"Latest activity"</h2>
                    <ul class="deeds">{entries}</ul>
                </section>
            }
        })
    }
}

fn customer_item(customer: &CustomerStatus, now: Timestamp, zone: &Zone) -> impl IntoView + use<> {
    let name = customer
        .name
        .clone()
        .unwrap_or_else(|| "no name".to_owned());
    let server = customer.server.clone().unwrap_or_else(|| "?".to_owned());
    let state = customer.status.clone().filter(|_| !customer.is_active());
    let problems: Vec<_> = customer
        .problems
        .iter()
        .map(|problem| view! { <li>{capital(&customer.sentence(*problem, now))} "."</li> })
        .collect();
    let kept = customer.manual.bytes + customer.pre_restore.bytes;
    view! {
        <li class="customer">
            <div class="customer-who">
                <h3>{name}</h3>
                <p class="quiet">{format!("Customer {} on {server}", customer.customer_id)}</p>
                {state.map(|state| view! { <p><span class="tag">{state}</span></p> })}
            </div>
            {(!problems.is_empty()).then(|| view! { <ul class="problems">{problems}</ul> })}
            <dl class="figures">
                <div><dt>"Own backup"</dt><dd>{newest(&customer.manual, now, zone)}</dd></div>
                <div><dt>"Daily backup"</dt><dd>{newest(&customer.daily, now, zone)}</dd></div>
                <div><dt>"Failed since"</dt><dd>{words::grouped(customer.failures)}</dd></div>
                <div><dt>"Now"</dt><dd>{customer.job.as_ref().map_or_else(|| "nothing".to_owned(), doing)}</dd></div>
                <div><dt>"Kept"</dt><dd>{words::size(kept)}</dd></div>
                <div><dt>"Last proven"</dt><dd>{match customer.last_proven {
                    Some(at) => age(zone, now, at).into_any(),
                    None => "never".into_any(),
                }}</dd></div>
            </dl>
        </li>
    }
}

fn newest(kept: &Kept, now: Timestamp, zone: &Zone) -> impl IntoView + use<> {
    let size = kept
        .newest_bytes
        .map(|bytes| format!(", {}", words::size(bytes)));
    match kept.newest {
        Some(newest) => view! { {age(zone, now, newest)} {size} }.into_any(),
        None => "none".into_any(),
    }
}

fn doing(job: &OpenJob) -> String {
    let what = match job.job_type {
        JobType::Backup => "backup",
        JobType::Restore => "restore",
    };
    let how = match job.status {
        _ if job.is_stuck => "is stuck",
        JobStatus::Pending => "waits",
        _ => "runs",
    };
    format!("{what} {} {how}", job.id)
}

fn latest(entry: &AuditEntry, zone: &Zone) -> impl IntoView + use<> {
    let who = match (entry.who, &entry.name) {
        (Who::Operator, Some(name)) => format!("operator {name}"),
        (who, _) => who.as_str().to_owned(),
    };
    let facts = activity::facts(entry);
    let facts = [format!("by {who}"), facts]
        .into_iter()
        .filter(|fact| !fact.is_empty());
    let facts = facts.collect::<Vec<_>>().join(" · ");
    let request = entry.request_id.clone();
    view! {
        <li class="deed" class:operator=entry.who == Who::Operator>
            <p>
                {activity::sentence_about(entry)}
                <small class="quiet">{facts} {request.map(|id| view! { " · request " <code>{id}</code> })}</small>
            </p>
            <time>{zone.in_words(entry.at)}</time>
        </li>
    }
}

/// A sentence begins with a capital.
fn capital(sentence: &str) -> String {
    let mut letters = sentence.chars();
    match letters.next() {
        Some(first) => first.to_uppercase().chain(letters).collect(),
        None => String::new(),
    }
}

/// Where an operator logs in.
pub struct AdminLoginPage<'a> {
    /// Why he was not let in just before.
    pub problem: Option<&'static str>,
    /// Where the style is, if there is one.
    pub stylesheet: Option<&'a str>,
}

impl AdminLoginPage<'_> {
    /// The whole document.
    pub fn render(&self) -> String {
        let problem = self.problem;
        let document = Document {
            title: "Operators",
            stylesheet: self.stylesheet,
        };
        document.render(move || view! {
            <main id="main" class="alone">
                <p class="brand">
                    <Icon symbol=Symbol::Logo />
                    <span>"ShopHosting " <b>"Operators"</b></span>
                </p>
                <section class="panel" aria-labelledby="login-title">
                    <h1 id="login-title">"Log in"</h1>
                    {problem.map(|problem| view! { <p class="refusal" role="alert">{problem}</p> })}
                    <form method="post" action="/admin/login">
                        <label class="field">
                            <span>"Name"</span>
                            <input name="name" autocomplete="username" required maxlength="32" autocapitalize="none" autofocus />
                        </label>
                        <label class="field">
                            <span>"Password"</span>
                            <input type="password" name="password" autocomplete="current-password" required maxlength="1000" />
                        </label>
                        <button class="button primary wide">"Log in"</button>
                    </form>
                </section>
                <p class="quiet">"For operators alone. Customers log in "<a href="/login">"to their own backups"</a>"."</p>
            </main>
        })
    }
}
