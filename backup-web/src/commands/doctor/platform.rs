//! The platform's database, and Redis.

use backup_core::catalog::Catalog;
use backup_core::config::{Config, DatabaseUrl};
use backup_core::customer::{Customer, CustomerId, CustomerStore, DatabaseName};
use backup_core::error::{Error, ErrorKind};
use backup_core::jobs::Queue;
use backup_core::store::Store;

use super::check_clock;
use super::report::Report;

const NAME: &str = "platform database";

/// What is to be known of the platform for all that follows.
#[derive(Default)]
pub(super) struct Found {
    /// The customers that can be used, of all servers.
    pub(super) customers: Vec<Customer>,
    /// The databases of all customers, also of those who cannot be used.
    pub(super) databases: Vec<DatabaseName>,
    /// The bytes of each one's largest backup, the largest first.
    pub(super) largest: Vec<(CustomerId, u64)>,
}

pub(super) async fn check(config: &Config, report: &mut Report) -> Found {
    if let DatabaseUrl::Sqlite(path) = &config.database.url
        && !path.exists()
    {
        report.warning(
            NAME,
            format!("{} does not exist yet", path.display()),
            "it is made when the first customer is added: shophosting-backup customer add",
        );
        return Found::default();
    }
    match Store::connect(config).await {
        Ok(store) => {
            let (customers, databases) = check_customers(config, &store, report).await;
            check_tables(&store, report).await;
            // Where it cannot be told, what is wrong with the tables is.
            let largest = Catalog::new(&store).largest().await.unwrap_or_default();
            check_rights(&store, report).await;
            match store.clock_ahead().await {
                Ok(ahead) => check_clock(
                    "clock of the platform database",
                    "the platform's database",
                    ahead.as_secs(),
                    report,
                ),
                Err(e) => report.error(NAME, &e, remedy(&e)),
            }
            store.close().await;
            Found {
                customers,
                databases,
                largest,
            }
        }
        Err(e) => {
            report.error(NAME, &e, remedy(&e));
            Found::default()
        }
    }
}

fn remedy(error: &Error) -> &'static str {
    match error.kind() {
        ErrorKind::Unreachable => "start that server, or correct database.url",
        ErrorKind::Refused => {
            "correct the account and its password in database.url (or DB_PASSWORD), or grant it what is named"
        }
        ErrorKind::Damaged => "bring the file back from a copy, and run shophosting-backup sync",
        _ => "correct database.url, or what is named",
    }
}

/// Those who can be used, and the databases of all.
async fn check_customers(
    config: &Config,
    store: &Store,
    report: &mut Report,
) -> (Vec<Customer>, Vec<DatabaseName>) {
    let customers = CustomerStore::new(store, config);
    let read = async {
        let listed = customers.list().await?;
        Ok::<_, Error>((listed, customers.database_names().await?))
    };
    let (listed, named) = match read.await {
        Ok(read) => read,
        Err(e) => {
            report.error(NAME, &e, remedy(&e));
            return Default::default();
        }
    };
    report.ok(
        NAME,
        format!("{}, {} customers", config.database.url, listed.len()),
    );
    let mut usable = Vec::new();
    for customer in listed {
        let found = customers.get(customer.id).await;
        match found.and_then(|found| config.site.health_url(&found).map(|_| found)) {
            Ok(found) => usable.push(found),
            Err(e) => report.warning(
                &format!("customer {}", customer.id),
                e.chain(),
                "he can be neither backed up nor restored until the platform's table is corrected",
            ),
        }
    }
    let databases = named.into_iter().map(|(_, name, _)| name).collect();
    (usable, databases)
}

async fn check_tables(store: &Store, report: &mut Report) {
    const NAME: &str = "platform tables";
    match store.versions().await {
        Ok((found, wanted)) if found == wanted => report.ok(NAME, format!("of version {found}")),
        Ok((0, _)) => report.warning(
            NAME,
            format!("{} has no tables of the backups yet", store.shown()),
            "shophosting-backup migrate, with an account that may create tables",
        ),
        Ok((found, wanted)) if found < wanted => report.failed(
            NAME,
            format!("they are of version {found}, and this program needs version {wanted}"),
            "shophosting-backup migrate",
        ),
        Ok((found, wanted)) => report.failed(
            NAME,
            format!(
                "they are of version {found}, and this program knows no more than version {wanted}"
            ),
            "use the newer program that made them",
        ),
        Err(e) => report.error(NAME, &e, remedy(&e)),
    }
}

async fn check_rights(store: &Store, report: &mut Report) {
    const NAME: &str = "rights in the platform database";
    match store.missing_rights().await {
        Ok(missing) if missing.is_empty() => report.ok(NAME, "all that are needed"),
        Ok(missing) => report.failed(
            NAME,
            format!("the account lacks {}", missing.join(", ")),
            "grant it that, as an administrator of that database: GRANT SELECT ON customers, and so on",
        ),
        Err(e) => report.error(NAME, &e, remedy(&e)),
    }
}

pub(super) async fn check_queue(config: &Config, report: &mut Report) {
    const NAME: &str = "queue.redis_url";
    let Some(url) = &config.queue.redis_url else {
        return report.ok(NAME, "none: wake-ups stay within a process");
    };
    let tried = match Queue::new(&config.queue) {
        Ok(queue) => queue.try_out(&config.worker.server).await,
        Err(e) => Err(e),
    };
    match tried {
        Ok(()) => report.ok(NAME, url.to_string()),
        Err(e) => report.error(
            NAME,
            &e,
            match e.kind() {
                ErrorKind::Unreachable => {
                    "start Redis, or correct the address: until then each job starts up to two seconds late"
                }
                ErrorKind::Refused => {
                    "correct the password in the address, or allow RPUSH, LTRIM, BLPOP, EXPIRE and TYPE on the names that begin with queue.name"
                }
                _ => "use Redis 6.0 or later, and a queue.name that nothing else has",
            },
        ),
    }
}
