//! What the configuration itself says, and what of it is on this machine: files, programs, the directory of journals.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use backup_core::config::{Config, DatabaseUrl, Origin, PasswordSource, RepositoryConfig};
use backup_core::login::PlatformSessions;

use super::report::Report;
use crate::commands::repositories;

pub(super) fn check(config: &Config, report: &mut Report) {
    check_origin(config, report);
    check_public_url(config, report);
    check_login(config, report);
    check_user(report);
    check_passwords(config, report);
    check_programs(config, report);
    check_state_dir(config, report);
}

fn check_origin(config: &Config, report: &mut Report) {
    const NAME: &str = "configuration";
    let mut found = match &config.origin {
        Origin::Embedded => format!("{}, with everything in ./data", config.origin),
        Origin::File(path) => path.display().to_string(),
    };
    let variables = variables();
    if !variables.is_empty() {
        found.push_str(&format!("; from the environment: {}", variables.join(", ")));
    }
    report.ok(NAME, found);
    let in_database_url =
        matches!(&config.database.url, DatabaseUrl::MySql(url) if url.has_password());
    let in_redis_url = config
        .queue
        .redis_url
        .as_ref()
        .is_some_and(|url| url.has_password());
    if let Origin::File(path) = &config.origin
        && (in_database_url || in_redis_url)
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

/// The variables that lie over the file or under it, by their names alone.
fn variables() -> Vec<String> {
    const PLATFORMS: [&str; 4] = ["DB_HOST", "DB_USER", "DB_PASSWORD", "REDIS_HOST"];
    let mut names: Vec<String> = std::env::vars_os()
        .filter(|(_, value)| !value.is_empty())
        .filter_map(|(name, _)| name.into_string().ok())
        .filter(|name| name.starts_with("BACKUP__") || PLATFORMS.contains(&name.as_str()))
        .collect();
    names.sort();
    names
}

fn check_public_url(config: &Config, report: &mut Report) {
    const NAME: &str = "server.public_url";
    match &config.server.public_url {
        Some(url) if url.scheme() == "https" => report.ok(NAME, url.as_str()),
        Some(url) => report.warning(
            NAME,
            format!("{url} is not https: passwords and sessions go over the net for everybody to read"),
            "put the dashboard behind TLS, and write https:// here",
        ),
        None if config.origin == Origin::Embedded => {
            report.ok(NAME, "not set: the dashboard is for this machine");
        }
        None => report.warning(
            NAME,
            "it is not set: cookies go over connections without TLS, too, and which pages may send requests is guessed",
            "set it to the address that customers' browsers use",
        ),
    }
}

fn check_login(config: &Config, report: &mut Report) {
    const NAME: &str = "server.login";
    let server = &config.server;
    match (
        PlatformSessions::read(server),
        &server.platform_secret_key_file,
    ) {
        (Err(e), _) => report.error(
            NAME,
            &e,
            "write the SECRET_KEY of the platform's Flask application into that file",
        ),
        (Ok(Some(_)), Some(file)) if mode(file).is_some_and(|mode| mode & 0o004 != 0) => report
            .warning(
                NAME,
                format!(
                    "every user can read {}, and so log in as any customer",
                    file.display()
                ),
                format!("chmod o= {}", file.display()),
            ),
        (Ok(Some(_)), Some(file))
            if file.metadata().is_ok_and(|found| is_for_root_alone(&found)) =>
        {
            report.warning(
                NAME,
                format!(
                    "nobody but root can read {}, and the dashboard runs as another user",
                    file.display()
                ),
                format!(
                    "chgrp shophosting-backup {0} && chmod 640 {0}",
                    file.display()
                ),
            )
        }
        (Ok(Some(_)), Some(file)) => {
            report.ok(NAME, format!("platform, by the key in {}", file.display()));
        }
        (Ok(_), _) => report.ok(NAME, "password"),
    }
}

pub(super) fn is_for_root_alone(file: &std::fs::Metadata) -> bool {
    let is_for_group = file.gid() != 0 && file.mode() & 0o040 != 0;
    file.uid() == 0 && !is_for_group && file.mode() & 0o004 == 0
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
    for (name, repository) in repositories(config) {
        let section = format!("repositories.{name}");
        match &repository.password {
            PasswordSource::File(path) if config.origin == Origin::Embedded && !path.exists() => {
                report.warning(
                    &format!("{section} password"),
                    format!("{} does not exist yet", path.display()),
                    "it is made with the repositories, by the first backup: shophosting-backup backup CUSTOMER",
                );
            }
            source => check_password(&section, source, report),
        }
        check_ssh_files(&section, repository, report);
        check_access_key(&section, repository, report);
    }
    match &config.customer_database.password {
        PasswordSource::None => report.ok("customer_database password", "none"),
        some => check_password("customer_database", some, report),
    }
}

fn check_password(section: &str, source: &PasswordSource, report: &mut Report) {
    let name = format!("{section} password");
    match (source.read(), source) {
        (Err(e), _) => report.error(
            &name,
            &e,
            "put the password there, or correct password_file or password_env",
        ),
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

fn check_access_key(section: &str, repository: &RepositoryConfig, report: &mut Report) {
    if !repository.is_object_storage() {
        return;
    }
    let name = format!("{section} s3_key_file");
    let file = repository.s3_key_file.as_deref();
    match (repository.read_access_key(), file) {
        (Err(e), _) => report.error(
            &name,
            &e,
            "write the lines AWS_ACCESS_KEY_ID=… and AWS_SECRET_ACCESS_KEY=… into that file",
        ),
        (Ok(None), _) => report.failed(
            &name,
            "there is no access key",
            "name a file with one in s3_key_file, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        ),
        (Ok(Some(_)), Some(file)) if mode(file).is_some_and(|mode| mode & 0o004 != 0) => report
            .warning(
                &name,
                format!("every user can read {}", file.display()),
                format!("chmod 600 {}", file.display()),
            ),
        (Ok(Some(_)), Some(file)) => report.ok(&name, file.display().to_string()),
        (Ok(Some(_)), None) => report.ok(&name, "from AWS_SECRET_ACCESS_KEY"),
    }
}

fn check_ssh_files(section: &str, repository: &RepositoryConfig, report: &mut Report) {
    if let Some(key) = &repository.ssh_key {
        let name = format!("{section}.ssh_key");
        match (File::open(key), mode(key)) {
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
        match File::open(known) {
            Ok(_) => report.ok(&name, known.display().to_string()),
            Err(e) => report.failed(
                &name,
                format!("{} cannot be read: {e}", known.display()),
                "put the backup server's host key into it, as ssh-keyscan prints it and its operator confirms it",
            ),
        }
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

pub(super) fn find_program(program: &str) -> Option<PathBuf> {
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

fn check_state_dir(config: &Config, report: &mut Report) {
    const NAME: &str = "worker.state_dir";
    let dir = &config.worker.state_dir;
    let shown = dir.display();
    match dir.metadata() {
        Ok(meta) if !meta.is_dir() => report.failed(
            NAME,
            format!("{shown} is not a directory"),
            "correct worker.state_dir",
        ),
        Ok(meta) if meta.permissions().mode() & 0o022 != 0 => report.failed(
            NAME,
            format!("others than its owner can write to {shown}"),
            format!("chmod 700 {shown}"),
        ),
        Ok(_) => match try_to_write(dir) {
            Ok(()) => report.ok(NAME, shown.to_string()),
            Err(e) => report.failed(
                NAME,
                format!("{shown} cannot be written, so that every restore is refused: {e}"),
                "make room on its disk, mount it read-write, or correct worker.state_dir",
            ),
        },
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            report.ok(NAME, format!("{shown} is made when it is first needed"));
        }
        Err(e) => report.failed(NAME, format!("{shown}: {e}"), "correct worker.state_dir"),
    }
}

/// As a journal is written: a file, synced.
fn try_to_write(dir: &Path) -> io::Result<()> {
    let path = dir.join(format!(".trial-{:016x}", rand::random::<u64>()));
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)?;
    let written = file.write_all(b"a trial\n").and_then(|()| file.sync_all());
    std::fs::remove_file(&path)?;
    written
}

fn mode(path: &Path) -> Option<u32> {
    path.metadata().ok().map(|meta| meta.permissions().mode())
}
