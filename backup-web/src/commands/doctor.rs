//! `doctor`: try every part of the configuration for real, and say how to mend what is wrong.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use backup_core::config::{Config, DatabaseUrl, Origin, PasswordSource, RepositoryConfig};
use backup_core::customer::{Customer, CustomerId, CustomerStore};
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::login::PlatformSessions;
use backup_core::operations::{Engine, open_storage};
use backup_core::progress::{Cancel, Control, Monitor};
use backup_core::repository::Repository;
use backup_core::site;
use backup_core::storage::Location;
use backup_core::store::Store;
use serde::Serialize;
use tokio::runtime::Runtime;

use crate::output::Output;

/// Less than this is worth a word.
const LITTLE_SPACE: u64 = 1 << 30;

/// The longest that passing faults of a backup server are retried here.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Status {
    Ok,
    Warning,
    Failed,
}

/// One thing that was tried.
#[derive(Debug, Serialize)]
struct Check {
    /// What was tried: mostly the key of the configuration.
    name: String,
    status: Status,
    /// What was found.
    message: String,
    /// What to do about it.
    mend: Option<String>,
}

#[derive(Debug, Default)]
struct Report(Vec<Check>);

impl Report {
    fn ok(&mut self, name: &str, message: impl Into<String>) {
        self.add(name, Status::Ok, message.into(), None);
    }

    fn warning(&mut self, name: &str, message: impl Into<String>, mend: impl Into<String>) {
        self.add(name, Status::Warning, message.into(), Some(mend.into()));
    }

    fn failed(&mut self, name: &str, message: impl Into<String>, mend: impl Into<String>) {
        self.add(name, Status::Failed, message.into(), Some(mend.into()));
    }

    /// Our own errors say what to do themselves.
    fn error(&mut self, name: &str, error: &Error) {
        self.add(name, Status::Failed, error.chain(), None);
    }

    fn add(&mut self, name: &str, status: Status, message: String, mend: Option<String>) {
        self.0.push(Check {
            name: name.to_owned(),
            status,
            message,
            mend,
        });
    }

    fn any(&self, status: Status) -> bool {
        self.0.iter().any(|check| check.status == status)
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for check in &self.0 {
            let status = match check.status {
                Status::Ok => "ok     ",
                Status::Warning => "warning",
                Status::Failed => "FAILED ",
            };
            text.push_str(&format!("{status}  {}: {}\n", check.name, check.message));
            if let Some(mend) = &check.mend {
                text.push_str(&format!("         → {mend}\n"));
            }
        }
        text
    }
}

pub fn run(
    config: &Config,
    output: Output,
    runtime: &Runtime,
    cancel: &Cancel,
) -> Result<ExitCode> {
    let mut report = Report::default();
    check_configuration(config, &mut report);
    check_login(config, &mut report);
    check_user(&mut report);
    check_programs(config, &mut report);
    check_state_dir(config, &mut report);
    cancel.check()?;
    // From here on in the order in which somebody who begins needs them.
    let customers = runtime.block_on(check_platform_database(config, &mut report));
    check_customers_root(config, &mut report);
    cancel.check()?;
    check_customer_databases(config, &customers, cancel, &mut report);
    cancel.check()?;
    check_passwords(config, &mut report);
    check_repository(
        "repositories.manual",
        &config.repositories.manual,
        true,
        cancel,
        &mut report,
    );
    cancel.check()?;
    if let Some(daily) = &config.repositories.daily {
        let is_ours = config.origin == Origin::Embedded;
        check_repository("repositories.daily", daily, is_ours, cancel, &mut report);
    }

    let good = !report.any(Status::Failed);
    output.result(
        &serde_json::json!({ "success": good, "checks": report.0 }),
        || report.text(),
    );
    Ok(if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn check_configuration(config: &Config, report: &mut Report) {
    const NAME: &str = "configuration";
    match &config.origin {
        Origin::Embedded => report.ok(
            NAME,
            format!("{}, with everything in ./data", config.origin),
        ),
        Origin::File(path) => report.ok(NAME, path.display().to_string()),
    }
    if let (Origin::File(path), DatabaseUrl::MySql(url)) = (&config.origin, &config.database.url)
        && url.has_password()
        && mode(path).is_some_and(|mode| mode & 0o004 != 0)
    {
        report.warning(
            NAME,
            format!(
                "{} holds a password, and every user can read it",
                path.display()
            ),
            format!(
                "chmod 600 {}, or move the password to DB_PASSWORD",
                path.display()
            ),
        );
    }
}

fn check_login(config: &Config, report: &mut Report) {
    const NAME: &str = "server.login";
    let server = &config.server;
    match (
        PlatformSessions::read(server),
        &server.platform_secret_key_file,
    ) {
        (Err(e), _) => report.error(NAME, &e),
        (Ok(Some(_)), Some(file)) if mode(file).is_some_and(|mode| mode & 0o004 != 0) => report
            .warning(
                NAME,
                format!(
                    "every user can read {}, and so log in as any customer",
                    file.display()
                ),
                format!("chmod o= {}", file.display()),
            ),
        (Ok(Some(_)), Some(file)) => {
            report.ok(NAME, format!("platform, by the key in {}", file.display()))
        }
        (Ok(_), _) => report.ok(NAME, "password"),
    }
}

fn check_user(report: &mut Report) {
    let root = std::fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0);
    if root {
        report.ok("user", "root");
    } else {
        report.warning(
            "user",
            "this does not run as root",
            "a restore gives files back to their owners, which only root can do: run it as root",
        );
    }
}

fn check_passwords(config: &Config, report: &mut Report) {
    let repositories = &config.repositories;
    let daily = repositories
        .daily
        .as_ref()
        .map(|daily| ("repositories.daily", daily));
    for (name, repository) in
        std::iter::once(("repositories.manual", &repositories.manual)).chain(daily)
    {
        match &repository.password {
            PasswordSource::File(path) if config.origin == Origin::Embedded && !path.exists() => {
                report.warning(
                    &format!("{name} password"),
                    format!("{} does not exist yet", path.display()),
                    "it is made with the repositories, by the first backup: shophosting-backup backup CUSTOMER",
                );
            }
            source => check_password(name, source, report),
        }
        check_ssh_files(name, repository, report);
    }
    match &config.customer_database.password {
        PasswordSource::None => report.ok("customer_database password", "none"),
        some => check_password("customer_database", some, report),
    }
}

fn check_password(section: &str, source: &PasswordSource, report: &mut Report) {
    let name = format!("{section} password");
    match (source.read(), source) {
        (Err(e), _) => report.error(&name, &e),
        (Ok(_), PasswordSource::File(path)) if source.is_world_readable() => report.warning(
            &name,
            format!("every user can read {}", path.display()),
            format!("chmod 600 {}", path.display()),
        ),
        (Ok(_), PasswordSource::File(path)) => report.ok(&name, path.display().to_string()),
        (Ok(_), PasswordSource::Environment { name: variable, .. }) => {
            report.ok(&name, format!("from {variable}"))
        }
        (Ok(_), PasswordSource::None) => report.ok(&name, "none"),
    }
}

fn check_ssh_files(section: &str, repository: &RepositoryConfig, report: &mut Report) {
    if let Some(key) = &repository.ssh_key {
        let name = format!("{section}.ssh_key");
        match (std::fs::File::open(key), mode(key)) {
            (Err(e), _) => report.failed(
                &name,
                format!("{} cannot be read: {e}", key.display()),
                "make a key with ssh-keygen and let the backup server know it",
            ),
            (Ok(_), Some(mode)) if mode & 0o077 != 0 => report.warning(
                &name,
                format!("others can read {}", key.display()),
                format!("chmod 600 {}", key.display()),
            ),
            _ => report.ok(&name, key.display().to_string()),
        }
    }
    if let Some(known) = &repository.known_hosts {
        let name = format!("{section}.known_hosts");
        match std::fs::File::open(known) {
            Ok(_) => report.ok(&name, known.display().to_string()),
            Err(e) => report.failed(
                &name,
                format!("{} cannot be read: {e}", known.display()),
                "put the backup server's host key into it, as ssh-keyscan prints it and its operator confirms it",
            ),
        }
    }
}

fn check_customers_root(config: &Config, report: &mut Report) {
    const NAME: &str = "customers.root";
    let root = &config.customers.root;
    let shown = root.display();
    let meta = match root.metadata() {
        Ok(meta) if meta.is_dir() => meta,
        Ok(_) => {
            return report.failed(
                NAME,
                format!("{shown} is not a directory"),
                "correct customers.root",
            );
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound && config.origin == Origin::Embedded => {
            return report.warning(
                NAME,
                format!("{shown} does not exist yet"),
                "add a customer, and it is said where his files belong: shophosting-backup customer add",
            );
        }
        Err(e) => {
            return report.failed(
                NAME,
                format!("{shown}: {e}"),
                format!("mkdir -p {shown}, or correct customers.root"),
            );
        }
    };
    if meta.permissions().mode() & 0o022 != 0 {
        report.failed(
            NAME,
            format!("others than its owner can write to {shown}, and so put a link in the place of a customer's directory"),
            format!("chmod go-w {shown}"),
        );
    } else {
        report.ok(
            NAME,
            format!("{shown}, {} customers", customers_in(root).count()),
        );
    }
    let elsewhere = customers_in(root).find(|(_, path)| {
        path.symlink_metadata()
            .is_ok_and(|dir| dir.dev() != meta.dev())
    });
    if let Some((customer, path)) = elsewhere {
        report.warning(
            NAME,
            format!("{} is on another file system than {shown}", path.display()),
            format!("the files of customer {customer} cannot be restored there: keep all customers on one file system"),
        );
    }
    match site::try_exchange(config) {
        Ok(space) if space < LITTLE_SPACE => report.warning(
            "space for restores",
            format!("{} MiB are free in {shown}", space >> 20),
            "a restore needs as much room as the files of the site take: make some",
        ),
        Ok(space) => report.ok(
            "space for restores",
            format!("{} GiB are free in {shown}", space >> 30),
        ),
        Err(e) => report.error("exchange of directories", &e),
    }
    match site::leftovers(config) {
        Ok(found) => {
            for leftover in found.iter().filter(|leftover| !leftover.in_use) {
                report.warning(
                    "interrupted restores",
                    format!("a restore of customer {} was killed and left {}", leftover.customer, leftover.path.display()),
                    "look at that site: when it is whole, remove the directory; else what it was before is in there",
                );
            }
        }
        Err(e) => report.error("interrupted restores", &e),
    }
}

fn customers_in(root: &Path) -> impl Iterator<Item = (CustomerId, PathBuf)> {
    let entries = std::fs::read_dir(root).into_iter().flatten().flatten();
    entries.filter_map(|entry| {
        Some((
            CustomerId::from_tag(entry.file_name().to_str()?)?,
            entry.path(),
        ))
    })
}

fn check_state_dir(config: &Config, report: &mut Report) {
    const NAME: &str = "worker.state_dir";
    let dir = &config.worker.state_dir;
    match (dir.metadata(), mode(dir)) {
        (Ok(meta), _) if !meta.is_dir() => {
            report.failed(
                NAME,
                format!("{} is not a directory", dir.display()),
                "correct worker.state_dir",
            );
        }
        (Ok(_), Some(mode)) if mode & 0o022 != 0 => report.failed(
            NAME,
            format!("others than its owner can write to {}", dir.display()),
            format!("chmod 700 {}", dir.display()),
        ),
        (Ok(_), _) => report.ok(NAME, dir.display().to_string()),
        (Err(e), _) if e.kind() == std::io::ErrorKind::NotFound => {
            report.ok(
                NAME,
                format!("{} is made when it is first needed", dir.display()),
            );
        }
        (Err(e), _) => report.failed(
            NAME,
            format!("{}: {e}", dir.display()),
            "correct worker.state_dir",
        ),
    }
}

fn check_programs(config: &Config, report: &mut Report) {
    let database = &config.customer_database;
    match database.exec_program() {
        Some(program) => check_program("customer_database.exec", &[&program], report),
        None => {
            check_program("dump program", &["mariadb-dump", "mysqldump"], report);
            check_program("database client", &["mariadb", "mysql"], report);
        }
    }
    for (name, command) in [
        ("site.stop", &config.site.stop),
        ("site.start", &config.site.start),
    ] {
        match command.first() {
            Some(program) => check_program(name, &[program], report),
            None => report.ok(name, "nothing to run"),
        }
    }
}

fn check_program(name: &str, any_of: &[&str], report: &mut Report) {
    match any_of.iter().find_map(|program| find_program(program)) {
        Some(path) => report.ok(name, path.display().to_string()),
        None => report.failed(
            name,
            format!("there is no program {}", any_of.join(" or ")),
            "install it, or correct the configuration",
        ),
    }
}

fn find_program(program: &str) -> Option<PathBuf> {
    let search = std::env::var_os("PATH").unwrap_or_default();
    let places: Vec<PathBuf> = if program.contains('/') {
        vec![PathBuf::from(program)]
    } else {
        std::env::split_paths(&search)
            .map(|dir| dir.join(program))
            .collect()
    };
    places.into_iter().find(|path| {
        path.metadata()
            .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    })
}

/// Gives the customers that can be used.
async fn check_platform_database(config: &Config, report: &mut Report) -> Vec<Customer> {
    const NAME: &str = "platform database";
    let mut usable = Vec::new();
    if let DatabaseUrl::Sqlite(path) = &config.database.url
        && !path.exists()
    {
        report.warning(
            NAME,
            format!("{} does not exist yet", path.display()),
            "it is made when the first customer is added: shophosting-backup customer add",
        );
        return usable;
    }
    let store = match Store::connect(config).await {
        Ok(store) => store,
        Err(e) => {
            report.error(NAME, &e);
            return usable;
        }
    };
    let customers = CustomerStore::new(&store, config);
    match customers.list().await {
        Err(e) => report.error(NAME, &e),
        Ok(listed) => {
            report.ok(
                NAME,
                format!("{}, {} customers", config.database.url, listed.len()),
            );
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
        }
    }
    store.close().await;
    if !config.customer_database.is_in_container() {
        check_that_nobody_shares(&usable, report);
    }
    usable
}

/// Two customers with one database would get each other's backups.
fn check_that_nobody_shares(customers: &[Customer], report: &mut Report) {
    let mut owners = BTreeMap::new();
    for customer in customers {
        if let Some(other) = owners.insert(&customer.db_name, customer.id) {
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

/// Dumps are started, for customers whose files are on this server.
fn check_customer_databases(
    config: &Config,
    customers: &[Customer],
    cancel: &Cancel,
    report: &mut Report,
) {
    const TRIED_MAX: usize = 20;
    let engine = Engine::new(config.clone(), cancel);
    let mut stall_limits: BTreeMap<Duration, Vec<CustomerId>> = BTreeMap::new();
    let here = customers
        .iter()
        .filter(|customer| config.customers.dir(customer.id).is_dir());
    for customer in here.take(TRIED_MAX) {
        let name = format!("database of customer {}", customer.id);
        let heard = Arc::new(Heard::default());
        let control = Control {
            monitor: Arc::clone(&heard) as _,
            cancel: cancel.clone(),
            ..Control::default()
        };
        let tried = engine.try_dump(customer, &control).and_then(|()| {
            let limit = engine.dump_stall_limit(customer)?;
            stall_limits.entry(limit).or_default().push(customer.id);
            Ok(())
        });
        match tried {
            Ok(()) => report.ok(&name, format!("{} can be dumped", customer.db_name)),
            Err(e) if e.kind() == ErrorKind::Unreachable => report.failed(
                &name,
                e.chain(),
                "start that server, or correct customer_database; without it only files can be backed up: backup --type files",
            ),
            Err(e) => report.error(&name, &e),
        }
        if let Err(e) = engine.try_import_account(customer) {
            report.failed(
                &name,
                format!("his own account cannot log in: {}", e.chain()),
                "correct customers.db_user and customers.db_password, or his database cannot be restored",
            );
        }
        let warnings = heard.0.lock().unwrap_or_else(PoisonError::into_inner);
        for warning in warnings.iter() {
            report.warning(&name, warning.clone(), "his backups would lack something");
        }
    }
    for (limit, customers) in stall_limits {
        check_stall_limit(&config.repositories.manual, limit, &customers, report);
    }
}

/// While an upload is retried, the dump that feeds it waits, and the database server does not wait for ever. Dumps go into this
/// one repository only.
fn check_stall_limit(
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
            format!("a dump may wait {seconds} s for the repository"),
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
             (repositories.manual.retry_for): a backup over such an outage fails with error 2013",
            limit.as_secs()
        ),
        format!(
            "SET GLOBAL net_write_timeout = {needed} there, and net_write_timeout = {needed} under [mysqld] in its my.cnf; \
             or lower repositories.manual.retry_for"
        ),
    );
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

/// Reach it, open it and, where it is ours to write, write to it: a lock that is removed at once.
fn check_repository(
    name: &str,
    config: &RepositoryConfig,
    ours: bool,
    cancel: &Cancel,
    report: &mut Report,
) {
    let mut config = config.clone();
    // Somebody waits for the answer.
    config.retry_for = config.retry_for.min(PATIENCE);
    match try_repository(&config, ours, cancel) {
        Ok(None) => report.warning(
            name,
            format!("there is no repository at {} yet", config.location),
            if ours {
                "create it: shophosting-backup init"
            } else {
                "the platform's own script makes it; remove the section if there are no daily backups"
            },
        ),
        Ok(Some(found)) => {
            report.ok(name, format!("{}, {} backups", config.location, found.snapshots));
            for lock in found.stale {
                report.warning(
                    name,
                    format!("{lock}: it is in the way"),
                    "when nothing runs any more, remove it: shophosting-backup unlock",
                );
            }
        }
        Err(e) if e.kind() == ErrorKind::Busy => report.warning(name, e.chain(), "try again when that is done"),
        Err(e) => report.error(name, &e),
    }
}

struct Found {
    snapshots: usize,
    stale: Vec<String>,
}

fn try_repository(config: &RepositoryConfig, ours: bool, cancel: &Cancel) -> Result<Option<Found>> {
    let storage = open_storage(config, cancel)?;
    if !Repository::exists(&*storage)? {
        return Ok(None);
    }
    let repository = Repository::open(storage, &config.read_password()?)?;
    let locks = repository.locks()?;
    let stale: Vec<_> = locks
        .iter()
        .filter(|lock| lock.is_stale())
        .map(ToString::to_string)
        .collect();
    if ours && stale.is_empty() {
        drop(repository.lock_shared()?);
    }
    let snapshots = repository.snapshots()?.len();
    Ok(Some(Found { snapshots, stale }))
}

fn mode(path: &Path) -> Option<u32> {
    path.metadata().ok().map(|meta| meta.permissions().mode())
}
