//! The customers' databases: what dumps them, what imports them, and whether the accounts may do both.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use backup_core::config::RepositoryConfig;
use backup_core::customer::{Customer, CustomerId, DatabaseName};
use backup_core::database::Facts;
use backup_core::error::{ErrorKind, Result};
use backup_core::operations::Engine;
use backup_core::progress::{Cancel, Control, Monitor};
use backup_core::storage::Location;

use super::Examined;
use super::report::Report;

/// A dump has binary data as hexadecimal digits, two for each byte: a server that took a row of sixteen mebibytes, which is what MariaDB's
/// programs send, has to take twice as much to get it back.
const PACKET_ENOUGH: u64 = 32 << 20;

pub(super) fn check(examined: &Examined<'_>, report: &mut Report) -> Result<()> {
    let Examined {
        config,
        engine,
        customers,
        databases,
        cancel,
    } = *examined;
    let in_containers = config.customer_database.is_in_container();
    let mut stall_limits: BTreeMap<Duration, Vec<CustomerId>> = BTreeMap::new();
    let mut shared_server: Option<Facts> = None;
    for customer in customers.tried(config) {
        cancel.check()?;
        if !check_dump(engine, customer, cancel, report) {
            continue;
        }
        // One that all share is looked at once.
        let facts = match &shared_server {
            Some(facts) => facts.clone(),
            None => {
                let name = match in_containers {
                    true => format!("database server of customer {}", customer.id),
                    false => "customer_database".to_owned(),
                };
                match engine.database_facts(customer, cancel) {
                    Ok(facts) => {
                        check_facts(&name, &facts, report);
                        check_import(&name, engine, customer, &facts, cancel, report);
                        check_scratch_schemas(&name, engine, customer, databases, cancel, report);
                        if !in_containers {
                            shared_server = Some(facts.clone());
                        }
                        facts
                    }
                    Err(e) if e.kind() == ErrorKind::Cancelled => return Err(e),
                    Err(e) => {
                        report.error(&name, &e, "mend what is named");
                        continue;
                    }
                }
            }
        };
        stall_limits
            .entry(facts.write_timeout)
            .or_default()
            .push(customer.id);
    }
    for (limit, customers) in stall_limits {
        check_stall_limit(
            "manual",
            &config.repositories.manual,
            limit,
            &customers,
            report,
        );
        if let (Some(_), Some(daily)) = (&config.daily, &config.repositories.daily) {
            check_stall_limit("daily", daily, limit, &customers, report);
        }
    }
    if !in_containers {
        let ignore_case = shared_server.is_some_and(|facts| facts.names_ignore_case);
        check_that_nobody_shares(customers.all(), ignore_case, report);
    }
    Ok(())
}

/// Whether the server was reached.
fn check_dump(engine: &Engine, customer: &Customer, cancel: &Cancel, report: &mut Report) -> bool {
    let name = format!("database of customer {}", customer.id);
    let heard = Arc::new(Heard::default());
    let control = Control {
        monitor: Arc::clone(&heard) as _,
        cancel: cancel.clone(),
        ..Control::default()
    };
    let tried = engine.try_dump(customer, &control);
    let mut is_reached = true;
    match tried {
        Ok(()) => report.ok(&name, format!("{} can be dumped", customer.db_name)),
        Err(e) => {
            is_reached = !matches!(
                e.kind(),
                ErrorKind::Unreachable | ErrorKind::Configuration | ErrorKind::Cancelled
            );
            let remedy = match e.kind() {
                ErrorKind::Unreachable => {
                    "start that server, or correct customer_database; without it only files can be backed up: backup --type files"
                }
                ErrorKind::Refused => {
                    "correct customer_database.user and its password, or grant the account SELECT, SHOW VIEW, TRIGGER, EVENT and LOCK TABLES there"
                }
                ErrorKind::NotFound => {
                    "correct customers.db_name, or grant the account rights on it"
                }
                ErrorKind::Configuration => {
                    "install the client programs of that server's family, both of one, where they are run"
                }
                _ => {
                    "mend what is named: until then only files can be backed up: backup --type files"
                }
            };
            report.error(&name, &e, remedy);
        }
    }
    if is_reached && let Err(e) = engine.try_import_account(customer) {
        report.failed(
            &name,
            format!("his own account cannot log in: {}", e.chain()),
            "correct customers.db_user and customers.db_password, or his database cannot be restored",
        );
    }
    let warnings = heard.0.lock().unwrap_or_else(PoisonError::into_inner);
    for warning in warnings.iter() {
        // They say themselves what to do.
        let (found, remedy) = warning
            .rsplit_once("; ")
            .unwrap_or((warning.as_str(), "do so, or his backups lack something"));
        report.warning(&name, found, remedy);
    }
    is_reached
}

fn check_facts(name: &str, facts: &Facts, report: &mut Report) {
    let programs = format!("{name} programs");
    if facts.is_other_family {
        report.failed(
            &programs,
            format!(
                "the server is {}, and its dumps would be made by {}, of the other family",
                facts.server, facts.program
            ),
            "install mariadb-dump and mariadb for MariaDB, or mysqldump and mysql of MySQL for MySQL",
        );
    } else if facts.is_program_older {
        report.warning(
            &programs,
            format!(
                "the server is {}, and its dumps are made by {}, which is older and may not know all that it has",
                facts.server, facts.program
            ),
            "install the client programs of the server's version",
        );
    } else {
        report.ok(
            &programs,
            format!("server {}, dumps by {}", facts.server, facts.program),
        );
    }
    let rights = format!("{name} rights");
    for missing in &facts.missing_rights {
        report.warning(
            &rights,
            format!("the account lacks {}: {}", missing.right, missing.effect),
            format!("GRANT {} ON *.* to the account", missing.right),
        );
    }
    if facts.missing_rights.is_empty() {
        report.ok(&rights, "all on the server that restores make use of");
    }
    let packet = format!("{name} max_allowed_packet");
    let mebibytes = facts.max_allowed_packet >> 20;
    if facts.max_allowed_packet < PACKET_ENOUGH {
        report.warning(
            &packet,
            format!(
                "the server takes no statement of more than {mebibytes} MiB, and a dump has binary data at twice its size: \
                 a row of more than {} MiB of it is backed up, but cannot be restored",
                mebibytes / 2
            ),
            "SET GLOBAL max_allowed_packet = 67108864 there, and max_allowed_packet = 64M under [mysqld] in its my.cnf",
        );
    } else {
        report.ok(&packet, format!("{mebibytes} MiB"));
    }
}

/// For real: with a small schema of our own, beside that of the customer.
fn check_import(
    name: &str,
    engine: &Engine,
    customer: &Customer,
    facts: &Facts,
    cancel: &Cancel,
    report: &mut Report,
) {
    let name = format!("{name} import");
    let control = Control {
        cancel: cancel.clone(),
        ..Control::default()
    };
    match engine.try_import(customer, facts.may_create_accounts(), &control) {
        Ok(()) => report.ok(
            &name,
            "a small schema was dumped and imported, and came back whole",
        ),
        Err(e) => report.error(
            &name,
            &e,
            format!(
                "grant the account of customer_database all rights on the customers' schemas and on those whose names begin with theirs \
                 (as of `{}\\_\\_%`), WITH GRANT OPTION, and CREATE USER; or mend what is named: until then no database can be restored",
                customer.db_name.as_str().replace('_', "\\_")
            ),
        ),
    }
}

/// What is a customer's is no scratch schema, whatever its name: some servers keep names in another case than the table.
fn check_scratch_schemas(
    name: &str,
    engine: &Engine,
    customer: &Customer,
    databases: &[DatabaseName],
    cancel: &Cancel,
    report: &mut Report,
) {
    let name = format!("{name} scratch schemas");
    let is_scratch = |schema: &String| {
        !databases
            .iter()
            .any(|database| database.as_str().eq_ignore_ascii_case(schema))
    };
    let found = engine.scratch_schemas(customer, cancel).map(|mut found| {
        found.retain(is_scratch);
        found
    });
    match found {
        Ok(none) if none.is_empty() => report.ok(&name, "none"),
        Ok(found) => report.warning(
            &name,
            format!("there are schemas of proofs: {}", found.join(", ")),
            "if none is under way now, run verify, which removes what one left; drop by hand what is there after that",
        ),
        Err(e) => report.error(&name, &e, "mend what is named"),
    }
}

/// While an upload is retried, the dump that feeds it waits, and the database server does not wait for ever.
fn check_stall_limit(
    which: &str,
    repository: &RepositoryConfig,
    limit: Duration,
    customers: &[CustomerId],
    report: &mut Report,
) {
    const NAME: &str = "net_write_timeout";
    let is_local = repository
        .location
        .parse()
        .is_ok_and(|location: Location| location.is_local());
    let retry_for = repository.retry_for;
    if is_local || retry_for <= limit {
        let seconds = limit.as_secs();
        return report.ok(
            NAME,
            format!("a dump may wait {seconds} s for the repository repositories.{which}"),
        );
    }
    let of_whom = match customers {
        [one] => format!("customer {one}"),
        several => format!("{} customers", several.len()),
    };
    let needed = retry_for.as_secs_f64().ceil();
    report.warning(
        NAME,
        format!(
            "the database server of {of_whom} drops a dump that waits for longer than {} s, but an upload may be retried for {needed} s \
             (repositories.{which}.retry_for): a backup over such an outage fails with error 2013",
            limit.as_secs()
        ),
        format!(
            "SET GLOBAL net_write_timeout = {needed} there, and net_write_timeout = {needed} under [mysqld] in its my.cnf; \
             or lower repositories.{which}.retry_for"
        ),
    );
}

/// Two customers with one database would get each other's backups.
fn check_that_nobody_shares(customers: &[Customer], ignore_case: bool, report: &mut Report) {
    let mut owners = BTreeMap::new();
    for customer in customers {
        let database = match ignore_case {
            true => customer.db_name.as_str().to_lowercase(),
            false => customer.db_name.to_string(),
        };
        if let Some(other) = owners.insert(database, customer.id) {
            report.failed(
                &format!("customer {}", customer.id),
                format!(
                    "customer {other} has the same database, {}",
                    customer.db_name
                ),
                "correct customers.db_name: each would back up and restore the other's shop",
            );
        }
    }
}

/// Remembers warnings.
#[derive(Default)]
struct Heard(Mutex<Vec<String>>);

impl Monitor for Heard {
    fn warning(&self, text: &str) {
        let mut heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        heard.push(text.to_owned());
    }
}
