//! `init`: the repositories, and for those of the built-in configuration their password.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use backup_core::catalog::RepositoryName;
use backup_core::config::{Config, Origin, RepositoryConfig};
use backup_core::customer::CustomerId;
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::operations::{init_repository, open_storage};
use backup_core::progress::Cancel;
use backup_core::repository::Repository;
use serde_json::json;
use tokio::runtime::Runtime;

use super::Parts;
use crate::output::{self, Output};

pub fn run(
    config: Config,
    customers: &[CustomerId],
    output: Output,
    runtime: &Runtime,
    cancel: &Cancel,
) -> Result<ExitCode> {
    let each_has_own = config.repositories.manual.is_for_each_customer();
    if !each_has_own && !customers.is_empty() {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            "all customers share a repository: name none of them (with {customer} in repositories.manual.location each would have one of his own)",
        ));
    }
    let (password_file, mut done) = create_missing(&config, cancel)?;
    let mut failures = Vec::new();
    if each_has_own {
        let of_customers = create_own(config, customers, runtime, cancel)?;
        done.extend(of_customers.created);
        failures = of_customers.failures;
    }
    for failure in &failures {
        output::message(&format!("error: {failure}"));
    }
    let document: Vec<_> = done
        .iter()
        .map(|(name, location, created)| {
            let mut document = super::document_of(*name);
            document["location"] = json!(location);
            document["created"] = json!(created);
            document
        })
        .collect();
    let document = json!({ "repositories": document, "password_file_created": password_file });
    output.result(&document, || {
        let mut text = String::new();
        if let Some(path) = &password_file {
            text.push_str(&keep_a_copy(path));
            text.push('\n');
        }
        for (name, location, created) in &done {
            let what = if *created {
                "created"
            } else {
                "is there already"
            };
            let name = super::shown(*name);
            text.push_str(&format!("{name}: {location} {what}\n"));
        }
        text
    });
    Ok(match failures.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

/// Which repositories there are, where, and whether they were created.
type Created = Vec<(RepositoryName, String, bool)>;

/// Create what does not exist yet, but for what is a customer's own: also the path of the password file if it was made.
fn create_missing(config: &Config, cancel: &Cancel) -> Result<(Option<PathBuf>, Created)> {
    let password_file = create_password(config, cancel)?;
    let mut done = Vec::new();
    for (name, repository) in shared(config) {
        let created = init_repository(repository, cancel)
            .map_err(|e| e.context(format!("the {name} could not be created")))?;
        done.push((name, repository.location.clone(), created));
    }
    Ok((password_file, done))
}

/// What became of customers' own repositories.
#[derive(Default)]
struct OfCustomers {
    created: Created,
    failures: Vec<String>,
}

/// Create the repositories that customers of this server have not had yet. One that is gone is made anew where its customer is named.
fn create_own(
    config: Config,
    wanted: &[CustomerId],
    runtime: &Runtime,
    cancel: &Cancel,
) -> Result<OfCustomers> {
    let manual = config.repositories.manual.clone();
    let parts = Parts::connect(config, runtime, cancel)?;
    let (service, engine) = (&parts.service, &parts.engine);
    let all = runtime.block_on(service.repositories(engine))?;
    let here: Vec<CustomerId> = all
        .into_iter()
        .filter_map(RepositoryName::customer)
        .collect();
    if let Some(stranger) = wanted.iter().find(|customer| !here.contains(customer)) {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            format!(
                "there is no customer {stranger} on the server {} (worker.server)",
                service.config().worker.server
            ),
        ));
    }
    let mut done = OfCustomers::default();
    let mut is_unreachable = false;
    for customer in here {
        if !wanted.is_empty() && !wanted.contains(&customer) {
            continue;
        }
        let is_named = !wanted.is_empty();
        let was_unreachable = std::mem::replace(&mut is_unreachable, false);
        match runtime.block_on(service.make_repository(engine, customer, is_named)) {
            Ok(created) => {
                let name = RepositoryName::ManualOf(customer);
                let location = manual.of_customer(customer).location;
                done.created.push((name, location, created));
            }
            Err(error) => {
                is_unreachable = error.kind() == ErrorKind::Unreachable;
                if was_unreachable && is_unreachable {
                    // Two in a row: it is the server, and each of the others would be waited for.
                    return Err(error);
                }
                done.failures.push(error.chain());
            }
        }
    }
    Ok(done)
}

/// The repositories that are no single customer's.
fn shared(config: &Config) -> Vec<(RepositoryName, &RepositoryConfig)> {
    let manual = Some(&config.repositories.manual);
    let manual = manual.filter(|manual| !manual.is_for_each_customer());
    let daily = config.repositories.daily.as_ref();
    manual
        .map(|manual| (RepositoryName::Manual, manual))
        .into_iter()
        .chain(daily.map(|daily| (RepositoryName::Daily, daily)))
        .collect()
}

/// Create what does not exist yet of the built-in configuration, as soon as something is to be kept there; what to tell whoever runs this.
pub fn on_first_use(config: &Config, cancel: &Cancel) -> Result<Option<String>> {
    if config.origin != Origin::Embedded {
        return Ok(None);
    }
    let (password_file, _) = create_missing(config, cancel)?;
    Ok(password_file.map(|path| keep_a_copy(&path)))
}

/// Say what to do where the built-in configuration keeps nothing yet.
pub fn require(config: &Config) -> Result<()> {
    if config.origin != Origin::Embedded {
        return Ok(());
    }
    if config.repositories.manual.is_for_each_customer() {
        return Ok(());
    }
    let manual = open_storage(&config.repositories.manual, &Cancel::new())?;
    // What cannot be looked at is not missing.
    if matches!(Repository::exists(&*manual), Ok(false)) {
        return Err(Error::new(
            ErrorKind::Configuration,
            "there are no backups here yet, nor repositories for them: `backup CUSTOMER`, `serve` or `init` makes them",
        ));
    }
    Ok(())
}

fn keep_a_copy(password_file: &Path) -> String {
    format!(
        "password: {} created; keep a copy elsewhere, for without it no backup can be read",
        password_file.display()
    )
}

/// The path of the password file if it was made.
fn create_password(config: &Config, cancel: &Cancel) -> Result<Option<PathBuf>> {
    if config.origin != Origin::Embedded {
        return Ok(None);
    }
    for (_, repository) in shared(config) {
        // Another password would not open it, and would hide that its own is lost.
        if Repository::exists(&*open_storage(repository, cancel)?)? {
            return Ok(None);
        }
    }
    config.create_embedded_password()
}
