//! The customers' directories, what stops, starts and closes their sites, and restores that did not come to their end.

use std::collections::BTreeSet;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use backup_core::config::{Config, Origin};
use backup_core::customer::{Customer, CustomerId};
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::operations::{Engine, Interrupted};
use backup_core::process::Program;
use backup_core::progress::Cancel;
use backup_core::site::{self, Health, Maintenance, Site};

use super::configuration::find_program;
use super::customers::Customers;
use super::report::Report;
use super::{Examined, LITTLE_SPACE};

/// For a look at a customer's containers.
const COMPOSE_LIMIT: Duration = Duration::from_secs(30);

pub(super) fn check(examined: &Examined<'_>, report: &mut Report) -> Result<()> {
    let (config, customers) = (examined.config, examined.customers);
    let journals = check_interrupted(config, examined.engine, customers, report);
    check_leftovers(config, &journals, report);
    for customer in customers.all() {
        examined.cancel.check()?;
        check_site(config, examined.engine, customer, report);
    }
    for customer in customers.tried(config) {
        examined.cancel.check()?;
        check_compose(config, customer, examined.cancel, report);
        check_health(config, customer, report);
    }
    Ok(())
}

/// Where all sites are, and whether the largest of their backups could be restored there.
pub(super) fn check_root(config: &Config, largest: Option<(CustomerId, u64)>, report: &mut Report) {
    if check_directory_of_all(config, report) {
        check_ground(config, largest, report);
    }
}

/// Whether it is there.
fn check_directory_of_all(config: &Config, report: &mut Report) -> bool {
    const NAME: &str = "customers.root";
    let root = &config.customers.root;
    let shown = root.display();
    let meta = match root.metadata() {
        Ok(meta) if meta.is_dir() => meta,
        Ok(_) => {
            report.failed(
                NAME,
                format!("{shown} is not a directory"),
                "correct customers.root",
            );
            return false;
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound && config.origin == Origin::Embedded => {
            report.warning(
                NAME,
                format!("{shown} does not exist yet"),
                "add a customer, and it is said where his files belong: shophosting-backup customer add",
            );
            return false;
        }
        Err(e) => {
            report.failed(
                NAME,
                format!("{shown}: {e}"),
                format!("mkdir -p {shown}, or correct customers.root"),
            );
            return false;
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
    true
}

fn customers_in(root: &Path) -> impl Iterator<Item = (CustomerId, std::path::PathBuf)> {
    let entries = std::fs::read_dir(root).into_iter().flatten().flatten();
    entries.filter_map(|entry| {
        Some((
            CustomerId::from_tag(entry.file_name().to_str()?)?,
            entry.path(),
        ))
    })
}

fn check_ground(config: &Config, largest: Option<(CustomerId, u64)>, report: &mut Report) {
    const SPACE: &str = "space for restores";
    const EXCHANGE: &str = "exchange of directories";
    let shown = config.customers.root.display();
    match site::try_exchange(config) {
        Ok(ground) => {
            let copies = match ground.has_reflinks {
                true => "copies can share their blocks there",
                false => "each copy takes room of its own there",
            };
            report.ok(EXCHANGE, format!("works; {copies}"));
            if let Some((customer, bytes)) = largest
                && bytes > ground.bytes_available
            {
                report.failed(
                    SPACE,
                    format!(
                        "{} MiB are free in {shown}, and the largest backup, of customer {customer}, has {} MiB: it cannot be restored",
                        ground.bytes_available >> 20,
                        bytes >> 20
                    ),
                    "make room there",
                );
            } else if ground.bytes_available < LITTLE_SPACE {
                report.warning(
                    SPACE,
                    format!("{} MiB are free in {shown}", ground.bytes_available >> 20),
                    "a restore needs as much room as the files of the site take: make some",
                );
            } else {
                report.ok(
                    SPACE,
                    format!("{} GiB are free in {shown}", ground.bytes_available >> 30),
                );
            }
        }
        Err(e) => report.error(
            EXCHANGE,
            &e,
            match e.kind() {
                ErrorKind::Refused => {
                    "chown root: and chmod 700 the directory that is named, once it is clear who opened it"
                }
                ErrorKind::NoSpace => "make room there",
                _ => {
                    "keep customers.root on a file system that can exchange two directories, such as ext4, xfs or btrfs, mounted read-write"
                }
            },
        ),
    }
}

/// Restores that have a journal; whose they are.
fn check_interrupted(
    config: &Config,
    engine: &Engine,
    customers: &Customers,
    report: &mut Report,
) -> BTreeSet<CustomerId> {
    const NAME: &str = "interrupted restores";
    let mut whose = BTreeSet::new();
    let found = match engine.interrupted() {
        Ok(found) => found,
        Err(e) => {
            report.error(
                NAME,
                &e,
                "chown root: and chmod 700 the directory that is named, once it is clear who opened it",
            );
            return whose;
        }
    };
    for one in found {
        match one {
            Ok(one) => {
                whose.insert(one.customer);
                if !is_at_work(config, customers, one.customer) {
                    tell_interrupted(NAME, &one, report);
                }
            }
            Err(e) => report.error(
                NAME,
                &e,
                "look at that customer's site, is it up, old or new, and then move the file away",
            ),
        }
    }
    if whose.is_empty() {
        report.ok(NAME, "none");
    }
    whose
}

fn tell_interrupted(name: &str, one: &Interrupted, report: &mut Report) {
    let (customer, began, step) = (one.customer, one.began, one.step);
    if one.is_site_open {
        report.warning(
            name,
            format!("the restore of customer {customer} of {began} has ended, but not all of it is put away (step `{step}`)"),
            "shophosting-backup recover, or wait a minute for the worker",
        );
    } else {
        report.failed(
            name,
            format!("the restore of customer {customer} of {began} was interrupted or is stuck at the step `{step}`, and his site is closed"),
            "mend what the log says of it, then shophosting-backup recover",
        );
    }
}

/// Whether a restore of his runs just now.
fn is_at_work(config: &Config, customers: &Customers, id: CustomerId) -> bool {
    let Some(customer) = customers.find(id) else {
        return false;
    };
    let claimed = Site::open(config, customer).and_then(|site| site.claim(false).map(drop));
    claimed.is_err_and(|e| e.kind() == ErrorKind::Busy)
}

/// What killed restores left of which no journal tells.
fn check_leftovers(config: &Config, journals: &BTreeSet<CustomerId>, report: &mut Report) {
    const NAME: &str = "interrupted restores";
    match site::leftovers(config) {
        Ok(found) => {
            let unknown = |leftover: &&site::Leftover| {
                !leftover.in_use && !journals.contains(&leftover.customer)
            };
            for leftover in found.iter().filter(unknown) {
                report.warning(
                    NAME,
                    format!(
                        "a restore of customer {} was killed and left {}",
                        leftover.customer,
                        leftover.path.display()
                    ),
                    "look at that site: when it is whole, remove the directory; else what it was before is in there",
                );
            }
        }
        // Of a root that is not there, and of a place that is open to others, is told already.
        Err(e) if matches!(e.kind(), ErrorKind::Configuration | ErrorKind::Refused) => {}
        Err(e) => report.error(NAME, &e, "mend what is named"),
    }
}

fn check_site(config: &Config, engine: &Engine, customer: &Customer, report: &mut Report) {
    let name = format!("site of customer {}", customer.id);
    let site = match Site::open(config, customer) {
        Ok(site) => site,
        Err(e) if e.kind() == ErrorKind::NotFound => {
            if customer.is_active() {
                report.warning(
                    &name,
                    e.chain(),
                    "bring his directory back (restore needs it to be there, empty or not), or correct customers.root or worker.server",
                );
            }
            return;
        }
        // Of the root itself is told already.
        Err(e) if e.kind() == ErrorKind::Configuration => return,
        Err(e) => {
            return report.error(
                &name,
                &e,
                "see who put it there, and put his own directory in its place",
            );
        }
    };
    check_directory(config, customer, &site, &name, report);
    match leftover_maintenance(engine, customer, &site) {
        Ok(Maintenance::Off) => {}
        Ok(Maintenance::Ours) => report.failed(
            &name,
            format!(
                "{} keeps it closed, and no restore is under way that would open it",
                site.path().join(&config.site.maintenance_file).display()
            ),
            "look whether the site is whole, then remove that file",
        ),
        Ok(Maintenance::Others) => report.warning(
            &name,
            format!(
                "{} keeps it closed, which is not of a restore: none will open it",
                site.path().join(&config.site.maintenance_file).display()
            ),
            "remove that file, unless somebody wants the site closed",
        ),
        Err(e) => report.error(&name, &e, "mend what is named"),
    }
}

fn check_directory(
    config: &Config,
    customer: &Customer,
    site: &Site,
    name: &str,
    report: &mut Report,
) {
    let site_dirs = &config.customers.site_dirs;
    let listed: Vec<_> = site_dirs
        .iter()
        .map(|dir| dir.display().to_string())
        .collect();
    match site.present_dirs(site_dirs) {
        Ok(present) if present.is_empty() && customer.is_active() => report.warning(
            name,
            format!(
                "{} has none of {}, so that no file of it can be backed up; links do not count",
                site.path().display(),
                listed.join(", ")
            ),
            "put his files there, or correct customers.site_dirs",
        ),
        Ok(_) => {}
        Err(e) => report.error(name, &e, "mend what is named"),
    }
    let is_open_to_all = site
        .path()
        .symlink_metadata()
        .is_ok_and(|meta| meta.permissions().mode() & 0o002 != 0);
    if is_open_to_all {
        report.warning(
            name,
            format!(
                "every user of this machine can write to {}",
                site.path().display()
            ),
            format!("chmod o-w {}", site.path().display()),
        );
    } else if let Ok(Some((user, group))) = site.owner(Path::new("")) {
        report.ok(
            name,
            format!("{}, of {user}:{group}", site.path().display()),
        );
    }
}

/// Whether a site is closed that no restore will open. A restore has its journal before it closes the site, and until it has opened it.
fn leftover_maintenance(
    engine: &Engine,
    customer: &Customer,
    site: &Site,
) -> Result<Maintenance, Error> {
    if site.maintenance()? == Maintenance::Off {
        return Ok(Maintenance::Off);
    }
    let has_journal = |one: &Result<Interrupted>| match one {
        Ok(one) => one.customer == customer.id,
        // It may be his.
        Err(_) => true,
    };
    if engine.interrupted()?.iter().any(has_journal) {
        return Ok(Maintenance::Off);
    }
    // It may have ended meanwhile.
    site.maintenance()
}

/// Whether docker understands what it is to stop and to start. Nothing is stopped, nothing is started.
fn check_compose(config: &Config, customer: &Customer, cancel: &Cancel, report: &mut Report) {
    let Some(look) = look_at_compose(&config.site.start) else {
        return;
    };
    // That there is no such program is told already.
    if look
        .first()
        .is_none_or(|program| find_program(program).is_none())
    {
        return;
    }
    let name = format!("containers of customer {}", customer.id);
    let dir = config.customers.dir(customer.id);
    let looked =
        Program::new(&look).and_then(|program| program.dir(&dir).run(COMPOSE_LIMIT, cancel));
    match looked {
        Ok(()) => report.ok(&name, format!("`{}` is content", look.join(" "))),
        Err(e) if e.kind() == ErrorKind::Cancelled => {}
        Err(e) => report.error(
            &name,
            &e,
            format!(
                "mend the compose file in {}, or install docker's compose plugin: nothing of his can be stopped or started",
                dir.display()
            ),
        ),
    }
}

/// The words that let compose read its file: those of `site.start` up to its verb.
fn look_at_compose(start: &[String]) -> Option<Vec<String>> {
    let program = Path::new(start.first()?).file_name()?.to_str()?;
    let is_compose =
        program == "docker-compose" || start.iter().skip(1).any(|word| word == "compose");
    let verb = start
        .iter()
        .position(|word| matches!(word.as_str(), "up" | "start" | "restart" | "create"))?;
    let before = start.get(..verb)?;
    let look = before.iter().cloned();
    is_compose.then(|| {
        look.chain(["config".to_owned(), "--quiet".to_owned()])
            .collect()
    })
}

fn check_health(config: &Config, customer: &Customer, report: &mut Report) {
    if !customer.is_active() {
        return;
    }
    let Ok(site) = Site::open(config, customer) else {
        return;
    };
    let name = format!("site.health_url of customer {}", customer.id);
    match site.health() {
        Health::Unknown => {}
        Health::Up(status) => report.ok(&name, format!("answers with {status}")),
        Health::Broken(status) => report.warning(
            &name,
            format!("the site answers with the error {status}: a restore cannot tell whether it comes up"),
            "mend the site, if it is not closed by hand, or correct site.health_url",
        ),
        Health::Silent => report.failed(
            &name,
            "the site does not answer: each restore would be put back, as one that does not come up",
            "start the site, or correct site.health_url and his web_port",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compose_is_looked_at_with_the_options_that_it_is_started_with() {
        let look = |line: &str| {
            let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
            look_at_compose(&words).map(|words| words.join(" "))
        };
        for (start, looks) in [
            (
                "docker compose up -d",
                Some("docker compose config --quiet"),
            ),
            (
                "/usr/bin/docker compose -f site.yml up -d",
                Some("/usr/bin/docker compose -f site.yml config --quiet"),
            ),
            (
                "docker-compose start",
                Some("docker-compose config --quiet"),
            ),
            ("docker start shop", None),
            ("true", None),
        ] {
            assert_eq!(look(start).as_deref(), looks, "{start}");
        }
        assert_eq!(look_at_compose(&[]), None);
    }
}
