//! Finding the configuration, laying its sources over each other, and judging the result.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider};
use secrecy::SecretString;
use url::Url;

use super::template::{Placeholder, Template};
use super::{
    AccessKey, CUSTOMER, Config, LoginConfig, PasswordSource, RepositoryConfig, SmtpTls, values,
};
use crate::customer::CustomerId;
use crate::error::{Error, ErrorKind, Result};
use crate::storage::Location;

const PREFIX: &str = "BACKUP__";

/// The password file of the repositories that are built in, in the data directory.
const EMBEDDED_PASSWORD: &str = "repository-password";

/// Where a [`Config`] was read from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Origin {
    /// No file: the defaults that are built in, everything under `./data`.
    #[default]
    Embedded,
    /// This file.
    File(PathBuf),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedded => f.write_str("the built-in configuration"),
            Self::File(path) => write!(f, "{}", path.display()),
        }
    }
}

/// The environment variables that a configuration is read with. Values may be secret and are never shown.
#[derive(Clone, Default)]
pub struct Environment(BTreeMap<String, String>);

impl Environment {
    /// Those of this process. Variables that are not UTF-8 are left out.
    pub fn of_process() -> Self {
        let text = |s: std::ffi::OsString| s.into_string().ok();
        Self(
            std::env::vars_os()
                .filter_map(|(name, value)| Some((text(name)?, text(value)?)))
                .collect(),
        )
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0
            .get(name)
            .map(String::as_str)
            .filter(|value| !value.is_empty())
    }

    fn secret(&self, name: &str) -> Option<SecretString> {
        self.get(name).map(SecretString::from)
    }
}

impl<N: Into<String>, V: Into<String>> FromIterator<(N, V)> for Environment {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(variables: I) -> Self {
        Self(
            variables
                .into_iter()
                .map(|(n, v)| (n.into(), v.into()))
                .collect(),
        )
    }
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.keys()).finish()
    }
}

impl Config {
    /// Read the configuration: from `file`, else the file that `SHOPHOSTING_BACKUP_CONFIG` names, else
    /// `./backup.toml`, else `/etc/shophosting/backup.toml`, else the one that is built in. Over the file lie the
    /// variables `BACKUP__SECTION__KEY`; under it the platform's `DB_HOST`, `DB_USER`, `DB_PASSWORD` and `REDIS_HOST`.
    ///
    /// [`ErrorKind::Configuration`] for anything wrong, naming the key and where it came from.
    pub fn load(file: Option<&Path>, environment: &Environment) -> Result<Self> {
        let origin = find(file, environment)?;
        let text = match &origin {
            Origin::Embedded => String::new(),
            Origin::File(path) => std::fs::read_to_string(path).map_err(|e| {
                Error::caused(
                    ErrorKind::Configuration,
                    format!("cannot read the configuration file {}: {e}", path.display()),
                    e,
                )
            })?,
        };
        Self::read(origin, &text, environment)
    }

    /// Read a configuration from the text of a file and the environment, as [`Config::load`] does.
    pub fn read(origin: Origin, text: &str, environment: &Environment) -> Result<Self> {
        let mut figment = Figment::from(Layer::of_file(&origin, text)?);
        for (name, value) in &environment.0 {
            if let Some(layer) = Layer::of_variable(name, value)? {
                figment = figment.merge(layer);
            }
        }
        for layer in fallbacks(&figment, environment)? {
            figment = figment.join(layer);
        }
        if origin == Origin::Embedded {
            figment = figment.clone().join(embedded(&figment)?);
        }
        let mut config: Self = figment.extract_lossy().map_err(explain)?;
        config.origin = origin;
        config
            .find_passwords(environment)
            .and_then(|()| config.fill_locations())
            .and_then(|()| config.judge())
            .map_err(|wrong| wrong.in_any_of(&figment))?;
        Ok(config)
    }

    /// Make the password file of the built-in configuration, with a random password, where a repository has it and it is not
    /// there; its path if it was made. With a configuration file nothing is made: there the operator names a file that he has.
    ///
    /// Call it only while there is no repository: one that is there would still need the password that is missing.
    pub fn create_embedded_password(&self) -> Result<Option<PathBuf>> {
        if self.origin != Origin::Embedded {
            return Ok(None);
        }
        let path = data_dir()?.join(EMBEDDED_PASSWORD);
        let manual = Some(&self.repositories.manual);
        let has_it = |repository: &RepositoryConfig| matches!(&repository.password, PasswordSource::File(file) if *file == path);
        if !manual
            .into_iter()
            .chain(&self.repositories.daily)
            .any(has_it)
        {
            return Ok(None);
        }
        Ok(values::create_password_file(&path)?.then_some(path))
    }

    fn find_passwords(&mut self, environment: &Environment) -> std::result::Result<(), Wrong> {
        let manual = Some(("repositories.manual", &mut self.repositories.manual));
        let daily = self
            .repositories
            .daily
            .as_mut()
            .map(|daily| ("repositories.daily", daily));
        for (section, repository) in manual.into_iter().chain(daily) {
            repository.password = password_source(
                section,
                &repository.password_file,
                &repository.password_env,
                environment,
            )?;
            if matches!(repository.password, PasswordSource::None) {
                return Err(wrong(section, "needs password_file (or password_env)"));
            }
            repository.access_key = access_key(environment);
            if repository.s3_region.is_none() && repository.is_object_storage() {
                repository.s3_region = environment.get("AWS_DEFAULT_REGION").map(str::to_owned);
            }
        }
        let database = &mut self.customer_database;
        database.password = password_source(
            "customer_database",
            &database.password_file,
            &database.password_env,
            environment,
        )?;
        let platforms = environment.secret("DB_PASSWORD");
        if let (PasswordSource::None, Some(value)) = (&database.password, &platforms) {
            database.password = PasswordSource::Environment {
                name: "DB_PASSWORD".into(),
                value: Some(value.clone()),
            };
        }
        self.database.password = platforms;
        Ok(())
    }

    /// Put into locations what differs from one hosting server to the next.
    fn fill_locations(&mut self) -> std::result::Result<(), Wrong> {
        let server = self.worker.server.clone();
        let manual = ("repositories.manual", &mut self.repositories.manual);
        let daily = self.repositories.daily.as_mut();
        for (section, repository) in
            std::iter::once(manual).chain(daily.map(|daily| ("repositories.daily", daily)))
        {
            let wrong = |reason: String| wrong(&format!("{section}.location"), &reason);
            require_place_of_customer(section, &repository.location).map_err(wrong)?;
            repository.location =
                location_of_server(&repository.location, &server).map_err(wrong)?;
        }
        Ok(())
    }

    /// What the types alone cannot say. Paths are compared by whole components.
    fn judge(&self) -> std::result::Result<(), Wrong> {
        require(
            !self.queue.name.is_empty(),
            "queue.name",
            "may not be empty",
        )?;
        require(
            !self.worker.server.is_empty(),
            "worker.server",
            "may not be empty",
        )?;
        require(
            self.worker.concurrency >= 1,
            "worker.concurrency",
            "must be at least 1",
        )?;
        for (key, duration) in [
            ("server.session_idle", self.server.session_idle),
            ("server.session_max", self.server.session_max),
            (
                "server.platform_session_max",
                self.server.platform_session_max,
            ),
        ] {
            require(duration.as_secs() >= 60, key, "must be at least 1m")?;
        }
        require(
            self.server.audit_keep.as_secs() >= 24 * 60 * 60,
            "server.audit_keep",
            "must be at least 1d",
        )?;
        for (key, duration) in [
            ("worker.lease", self.worker.lease),
            ("worker.sync_every", self.worker.sync_every),
        ] {
            require(duration.as_secs() >= 1, key, "must be at least 1s")?;
        }
        require(
            self.retention.manual >= 1,
            "retention.manual",
            "must be at least 1",
        )?;
        require(
            self.retention.pre_restore >= 1,
            "retention.pre_restore",
            "must be at least 1",
        )?;
        self.judge_login()?;
        self.judge_repositories()?;
        self.judge_customers()?;
        self.judge_customer_database()?;
        self.judge_daily()?;
        self.judge_verify()?;
        self.judge_notify()?;
        self.judge_site()
    }

    fn judge_login(&self) -> std::result::Result<(), Wrong> {
        let server = &self.server;
        for (key, is_set) in [
            (
                "server.platform_secret_key_file",
                server.platform_secret_key_file.is_some(),
            ),
            (
                "server.platform_login_url",
                server.platform_login_url.is_some(),
            ),
        ] {
            match server.login {
                LoginConfig::Platform => require(
                    is_set,
                    "server.login",
                    &format!("= \"platform\" needs {key}"),
                )?,
                // Whoever wrote it takes passwords to be switched off.
                LoginConfig::Password => {
                    require(!is_set, key, "goes with server.login = \"platform\" alone")?
                }
            }
        }
        let is_of_name = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        let name = &server.platform_cookie;
        require(
            !name.is_empty() && name.bytes().all(is_of_name),
            "server.platform_cookie",
            "must be the name of a cookie: letters, digits, `-`, `_` and `.`",
        )
    }

    fn judge_repositories(&self) -> std::result::Result<(), Wrong> {
        let manual = ("repositories.manual", &self.repositories.manual);
        let daily = self
            .repositories
            .daily
            .as_ref()
            .map(|daily| ("repositories.daily", daily));
        for (section, repository) in std::iter::once(manual).chain(daily) {
            require(
                !repository.location.trim().is_empty(),
                &format!("{section}.location"),
                "may not be empty",
            )?;
            require(
                (1..=8).contains(&repository.connections),
                &format!("{section}.connections"),
                "must be 1 to 8: an SSH server refuses more logins at once",
            )?;
            for (key, is_set) in [
                ("s3_key_file", repository.s3_key_file.is_some()),
                ("s3_region", repository.s3_region.is_some()),
                ("s3_ca_file", repository.s3_ca_file.is_some()),
            ] {
                require(
                    !is_set || repository.is_object_storage(),
                    &format!("{section}.{key}"),
                    "goes with a location of the kind `s3:` alone",
                )?;
            }
            let is_of_region = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
            require(
                repository
                    .s3_region
                    .as_deref()
                    .is_none_or(|region| !region.is_empty() && region.bytes().all(is_of_region)),
                &format!("{section}.s3_region"),
                "must be the name of a region, such as `eu-central-1`",
            )?;
        }
        if let Some(daily) = &self.repositories.daily {
            // Pruning the one by our rules would remove the backups of the other.
            require(
                daily.location.trim_end_matches('/') != manual.1.location.trim_end_matches('/'),
                "repositories.daily.location",
                "must not be that of repositories.manual",
            )?;
            require(
                !is_of_a_customer(manual.1, &daily.location),
                "repositories.daily.location",
                "must not be one that repositories.manual has for a customer",
            )?;
        }
        Ok(())
    }

    fn judge_customers(&self) -> std::result::Result<(), Wrong> {
        let customers = &self.customers;
        require(
            customers.root != Path::new("/"),
            "customers.root",
            "may not be / itself",
        )?;
        require(
            !customers.site_dirs.is_empty(),
            "customers.site_dirs",
            "may not be empty",
        )?;
        for (n, dir) in customers.site_dirs.iter().enumerate() {
            for other in customers.site_dirs.iter().skip(n + 1) {
                if dir.starts_with(other) || other.starts_with(dir) {
                    let reason = format!(
                        "`{}` and `{}` lie inside each other",
                        dir.display(),
                        other.display()
                    );
                    return Err(wrong("customers.site_dirs", &reason));
                }
            }
            if let Some(excluded) = customers
                .exclude
                .iter()
                .find(|excluded| dir.starts_with(excluded))
            {
                let reason = format!(
                    "leaves `{}` out of every backup, so that `{}` could not be restored",
                    excluded.display(),
                    dir.display()
                );
                return Err(wrong("customers.exclude", &reason));
            }
            let maintenance = &self.site.maintenance_file;
            if maintenance.starts_with(dir) || dir.starts_with(maintenance) {
                let reason = format!(
                    "must lie outside of the site directory `{}`, which a restore replaces",
                    dir.display()
                );
                return Err(wrong("site.maintenance_file", &reason));
            }
        }
        Ok(())
    }

    fn judge_customer_database(&self) -> std::result::Result<(), Wrong> {
        use Placeholder::{Database, Id};
        let database = &self.customer_database;
        require(
            !database.user.is_empty(),
            "customer_database.user",
            "may not be empty",
        )?;
        if database.socket.is_some() && (database.host.is_some() || database.port.is_some()) {
            return Err(wrong(
                "customer_database.socket",
                "goes without host and port",
            ));
        }
        require(
            database.host.as_deref() != Some(""),
            "customer_database.host",
            "may not be empty",
        )?;
        require(
            database.port != Some(0),
            "customer_database.port",
            "may not be 0",
        )?;

        only("customer_database.name", &database.name, &[Id])?;
        let own_server = database.exec.iter().any(|word| word.has(Id));
        if !database.name.has(Id) && !own_server {
            return Err(wrong(
                "customer_database.name",
                "must hold {id}, or all customers would share one database",
            ));
        }
        // What it becomes for some customer; a name that is too long for others is found when one is looked up.
        let sample = database.name.sample();
        if let Err(e) = sample.parse::<crate::customer::DatabaseName>() {
            return Err(wrong("customer_database.name", &e.to_string()));
        }

        for (n, word) in database.exec.iter().enumerate() {
            only("customer_database.exec", word, &[Id, Database])?;
            let program = n == 0;
            require(
                !word.is_empty(),
                "customer_database.exec",
                "may not hold an empty word",
            )?;
            require(
                !program || !(word.has(Id) || word.has(Database)),
                "customer_database.exec",
                "must start with a plain program name",
            )?;
        }
        for (key, template) in [
            ("customer_database.dump_path", &database.dump_path),
            (
                "customer_database.daily_dump_path",
                &database.daily_dump_path,
            ),
        ] {
            only(key, template, &[Id, Database])?;
            if !(template.has(Id) || template.has(Database)) {
                return Err(wrong(
                    key,
                    "must hold {id} or {database}, or all customers would share one dump",
                ));
            }
            let sample = template.sample();
            values::plain_absolute(&sample).map_err(|reason| wrong(key, &reason))?;
            require(!sample.ends_with('/'), key, "must be the path of a file")?;
        }
        Ok(())
    }

    fn judge_daily(&self) -> std::result::Result<(), Wrong> {
        let Some(daily) = &self.daily else {
            return Ok(());
        };
        require(
            self.repositories.daily.is_some(),
            "daily",
            "needs a repository: set repositories.daily",
        )?;
        require(daily.keep >= 1, "daily.keep", "must be at least 1")?;
        require(
            daily.customer_timeout.as_secs() >= 1,
            "daily.customer_timeout",
            "must be at least 1s",
        )?;
        let dump = self.customer_database.daily_dump_path.sample();
        let elsewhere = [self.customers.root.as_path(), Path::new(&dump)];
        for (n, path) in daily.paths.iter().enumerate() {
            let others = daily.paths.iter().skip(n + 1).map(PathBuf::as_path);
            if let Some(other) = others
                .chain(elsewhere)
                .find(|other| path.starts_with(other) || other.starts_with(path))
            {
                let reason = format!(
                    "`{}` and `{}` lie inside each other, and both are saved",
                    path.display(),
                    other.display()
                );
                return Err(wrong("daily.paths", &reason));
            }
        }
        Ok(())
    }

    fn judge_verify(&self) -> std::result::Result<(), Wrong> {
        require(
            self.verify.every.as_secs() >= 60 * 60,
            "verify.every",
            "must be at least 1h",
        )?;
        // What is tried there would be saved with the customers, or be one of them.
        let root = &self.customers.root;
        let is_apart = |dir: &PathBuf| !dir.starts_with(root) && !root.starts_with(dir);
        require(
            self.verify.dir.as_ref().is_none_or(is_apart),
            "verify.dir",
            "must lie outside of customers.root",
        )
    }

    fn judge_notify(&self) -> std::result::Result<(), Wrong> {
        const NOTHING: &str = "may not be empty: leave the section out where nobody is to be told";
        if let Some(webhook) = &self.notify.webhook {
            require(!webhook.events.is_empty(), "notify.webhook.events", NOTHING)?;
        }
        let Some(email) = &self.notify.email else {
            return Ok(());
        };
        require(!email.events.is_empty(), "notify.email.events", NOTHING)?;
        let is_host = |host: &str| !host.is_empty() && !host.contains(char::is_whitespace);
        require(
            is_host(&email.host),
            "notify.email.host",
            "must be the name or the address of a server",
        )?;
        require(email.port() != 0, "notify.email.port", "may not be 0")?;
        require(
            email.tls != SmtpTls::None || values::is_this_machine(&email.host),
            "notify.email.tls",
            "may be \"none\" for a server on this machine alone",
        )?;
        require(
            email.user.is_none() || email.password_file.is_some(),
            "notify.email.user",
            "goes with notify.email.password_file",
        )?;
        require(
            email.password_file.is_none() || email.user.is_some(),
            "notify.email.password_file",
            "goes with notify.email.user",
        )
    }

    fn judge_site(&self) -> std::result::Result<(), Wrong> {
        for (key, command) in [
            ("site.stop", &self.site.stop),
            ("site.start", &self.site.start),
            ("site.nginx", &self.site.nginx),
        ] {
            require(
                command.iter().all(|word| !word.contains('\0')),
                key,
                "may not hold a NUL character",
            )?;
            require(
                command.first().is_none_or(|program| !program.is_empty()),
                key,
                "must start with a program",
            )?;
        }
        // A site that is stopped and cannot be started again stays down after every restore.
        if !self.site.stop.is_empty() && self.site.start.is_empty() {
            return Err(wrong(
                "site.start",
                "may not be empty while site.stop is not",
            ));
        }
        let Some(template) = &self.site.health_url else {
            return Ok(());
        };
        only(
            "site.health_url",
            template,
            &[Placeholder::Id, Placeholder::WebPort],
        )?;
        let sample = template.sample();
        let usable = Url::parse(&sample).is_ok_and(|url| url.scheme() == "http" && url.has_host());
        require(usable, "site.health_url", "must be an http:// address")
    }
}

fn find(file: Option<&Path>, environment: &Environment) -> Result<Origin> {
    const NAMING: &str = "SHOPHOSTING_BACKUP_CONFIG";
    if let Some(named) = file.or(environment.get(NAMING).map(Path::new)) {
        // One that somebody asked for must be there.
        return Ok(Origin::File(named.to_owned()));
    }
    for usual in ["backup.toml", "/etc/shophosting/backup.toml"] {
        let path = Path::new(usual);
        // One that is there but cannot be read is an error, not a reason to go on to the next.
        if path.symlink_metadata().is_ok() {
            return Ok(Origin::File(path.to_owned()));
        }
    }
    Ok(Origin::Embedded)
}

/// One source of values, and what errors call it.
struct Layer {
    source: String,
    values: Dict,
}

impl Layer {
    fn of_file(origin: &Origin, text: &str) -> Result<Self> {
        let source = origin.to_string();
        let table: toml::Table = toml::from_str(text).map_err(|e| {
            // Its own display quotes the line, which may hold a password.
            let at = e.span().map_or(0, |span| span.start);
            let line = 1 + text.bytes().take(at).filter(|b| *b == b'\n').count();
            Error::new(
                ErrorKind::Configuration,
                format!("{source}, line {line}: {}", e.message()),
            )
        })?;
        let values = Value::serialize(table)
            .ok()
            .and_then(Value::into_dict)
            .ok_or_else(|| {
                Error::new(
                    ErrorKind::Configuration,
                    format!("{source} is not a table of sections"),
                )
            })?;
        Ok(Self { source, values })
    }

    /// `BACKUP__A__B=value` as `a.b`. In brackets it is a list, in the syntax of TOML.
    fn of_variable(name: &str, value: &str) -> Result<Option<Self>> {
        let Some(key) = name.strip_prefix(PREFIX) else {
            return Ok(None);
        };
        let source = format!("the environment variable {name}");
        let key = key.to_ascii_lowercase().replace("__", ".");
        if key.split('.').any(str::is_empty) {
            return Err(Error::new(
                ErrorKind::Configuration,
                format!("{source} names no key"),
            ));
        }
        let value = if value.trim_start().starts_with('[') {
            let wrapped = format!("list = {value}");
            toml::from_str::<toml::Table>(&wrapped)
                .ok()
                .and_then(|mut table| table.remove("list"))
                .and_then(|list| Value::serialize(list).ok())
                .ok_or_else(|| {
                    let example = r#"a list is written ["like", "this"]"#;
                    Error::new(ErrorKind::Configuration, format!("{source}: {example}"))
                })?
        } else {
            Value::from(value)
        };
        Ok(Some(Self::single(source, &key, value)))
    }

    fn single(source: String, key: &str, value: Value) -> Self {
        let values = figment::util::nest(key, value)
            .into_dict()
            .unwrap_or_default();
        Self { source, values }
    }
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.source.clone())
    }

    fn data(&self) -> figment::error::Result<Map<Profile, Dict>> {
        Ok(Profile::Default.collect(self.values.clone()))
    }
}

/// The platform's own variables, for keys that nothing else sets.
fn fallbacks(figment: &Figment, environment: &Environment) -> Result<Vec<Layer>> {
    let mut layers = Vec::new();
    let mut add = |variable: &str, key: &str, value: String| {
        layers.push(Layer::single(
            format!("the environment variable {variable}"),
            key,
            Value::from(value),
        ));
    };
    if let Some(host) = environment.get("DB_HOST") {
        let mut url = platform_url("mysql://localhost/shophosting_db", "DB_HOST", host)?;
        let user = environment.get("DB_USER").unwrap_or("root");
        if url.set_username(user).is_err() {
            return Err(sentence("DB_USER", "is not a user name", None));
        }
        add("DB_HOST", "database.url", url.into());
        let elsewhere =
            ["socket", "exec"].map(|key| figment.contains(&format!("customer_database.{key}")));
        if !elsewhere.contains(&true) {
            add("DB_HOST", "customer_database.host", host.to_owned());
        }
    }
    if let Some(user) = environment.get("DB_USER") {
        add("DB_USER", "customer_database.user", user.to_owned());
    }
    if let Some(host) = environment.get("REDIS_HOST") {
        let url = platform_url("redis://localhost:6379", "REDIS_HOST", host)?;
        add("REDIS_HOST", "queue.redis_url", url.into());
    }
    Ok(layers)
}

fn platform_url(pattern: &str, variable: &str, host: &str) -> Result<Url> {
    let not_a_host = || sentence(variable, "is not a host name", None);
    let mut url = Url::parse(pattern).map_err(|_| not_a_host())?;
    url.set_host(Some(host)).map_err(|_| not_a_host())?;
    Ok(url)
}

/// Where everything is without a configuration file.
fn data_dir() -> Result<PathBuf> {
    std::path::absolute("data").map_err(|e| Error::io("cannot tell the working directory", e))
}

/// What holds without any file: everything under `./data`, nothing to install, nothing to stop or start.
fn embedded(figment: &Figment) -> Result<Layer> {
    let data = data_dir()?;
    let path = |name: &str| data.join(name).to_string_lossy().into_owned();
    let repository = |name: &str| {
        let location = (
            "location".to_owned(),
            path(&format!("repositories/{name}")).into(),
        );
        let password = ("password_file".to_owned(), path(EMBEDDED_PASSWORD).into());
        let elsewhere = figment.contains(&format!("repositories.{name}.password_env"));
        toml::Table::from_iter(std::iter::once(location).chain((!elsewhere).then_some(password)))
    };
    let section = |key: &str, value: String| {
        toml::Table::from_iter([(key.to_owned(), toml::Value::from(value))])
    };
    let table = toml::Table::from_iter([
        (
            "database".to_owned(),
            section("url", format!("sqlite://{}", path("backup.db"))).into(),
        ),
        (
            "worker".to_owned(),
            section("state_dir", path("state")).into(),
        ),
        (
            "customers".to_owned(),
            section("root", path("customers")).into(),
        ),
        (
            // A directory is all that there is of a site.
            "site".to_owned(),
            toml::Table::from_iter(
                ["stop", "start", "nginx"]
                    .map(|key| (key.to_owned(), toml::Value::Array(Vec::new()))),
            )
            .into(),
        ),
        // There is no platform whose script would make them.
        ("daily".to_owned(), toml::Table::new().into()),
        (
            "repositories".to_owned(),
            toml::Table::from_iter([
                ("manual".to_owned(), toml::Value::from(repository("manual"))),
                ("daily".to_owned(), repository("daily").into()),
            ])
            .into(),
        ),
    ]);
    let values = Value::serialize(table).ok().and_then(Value::into_dict);
    Ok(Layer {
        source: Origin::Embedded.to_string(),
        values: values.unwrap_or_default(),
    })
}

/// The location with the name of the hosting server in its place; else why not.
fn location_of_server(location: &str, server: &str) -> std::result::Result<String, String> {
    let rest = location.replace("{server}", "").replace(CUSTOMER, "");
    if let Some(at) = rest.find(['{', '}']) {
        let stray = rest[at..].split_inclusive('}').next().unwrap_or_default();
        return Err(format!(
            "cannot hold `{stray}`: there are {{server}} and {{customer}}"
        ));
    }
    if !location.contains("{server}") {
        return Ok(location.to_owned());
    }
    // A part of a path and nothing else: no way up, nothing hidden, nothing that a URL or a shell takes for something else.
    let is_of_name = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    if !server.bytes().all(is_of_name) || server.starts_with(['.', '-']) {
        return Err(format!(
            "holds {{server}}, and worker.server (`{}`) cannot be a part of a path: let it be of letters, digits, `-`, `_` and `.`",
            server.escape_debug()
        ));
    }
    Ok(location.replace("{server}", server))
}

/// Whether `{customer}` stands where it may, if anywhere; else why not.
fn require_place_of_customer(section: &str, location: &str) -> std::result::Result<(), String> {
    if !location.contains(CUSTOMER) {
        return Ok(());
    }
    if section != "repositories.manual" {
        return Err("cannot hold {customer}: a daily backup is one snapshot of all customers of a hosting server; {server} makes it one repository for each of these".into());
    }
    let of = |customer: &str| location.replace(CUSTOMER, customer).parse::<Location>();
    match (of("customer-1"), of("customer-2")) {
        (Ok(one), Ok(other)) if !one.differs_in_path_alone(&other) => Err(
            "holds {customer}, which has to be a part of the path: all customers' repositories are reached in the same way".into(),
        ),
        // What else is wrong with it is said by whoever opens it.
        _ => Ok(()),
    }
}

/// Whether it is where one customer's repository would be.
fn is_of_a_customer(repository: &RepositoryConfig, location: &str) -> bool {
    let customer = repository
        .location
        .split_once(CUSTOMER)
        .and_then(|(before, _)| location.strip_prefix(before))
        .and_then(|rest| rest.split('/').next())
        .and_then(CustomerId::from_tag);
    customer.is_some_and(|customer| {
        let his = repository.of_customer(customer).location;
        his.trim_end_matches('/') == location.trim_end_matches('/')
    })
}

/// That of the environment, as restic reads it.
fn access_key(environment: &Environment) -> Option<AccessKey> {
    Some(AccessKey {
        id: environment.get("AWS_ACCESS_KEY_ID")?.to_owned(),
        secret: environment.secret("AWS_SECRET_ACCESS_KEY")?,
        session_token: environment.secret("AWS_SESSION_TOKEN"),
    })
}

fn password_source(
    section: &str,
    file: &Option<PathBuf>,
    variable: &Option<String>,
    environment: &Environment,
) -> std::result::Result<PasswordSource, Wrong> {
    match (file, variable) {
        (None, None) => Ok(PasswordSource::None),
        (Some(path), None) => Ok(PasswordSource::File(path.clone())),
        (None, Some(name)) if name.is_empty() || name.contains(['=', '\0']) => Err(wrong(
            &format!("{section}.password_env"),
            "must be the name of an environment variable",
        )),
        (None, Some(name)) => Ok(PasswordSource::Environment {
            name: name.clone(),
            value: environment.secret(name),
        }),
        (Some(_), Some(_)) => Err(wrong(
            section,
            "has both password_file and password_env: leave one out",
        )),
    }
}

fn only(key: &str, template: &Template, allowed: &[Placeholder]) -> std::result::Result<(), Wrong> {
    match template.stranger(allowed) {
        Some(name) => Err(wrong(key, &format!("cannot hold {{{name}}}"))),
        None => Ok(()),
    }
}

fn require(holds: bool, key: &str, reason: &str) -> std::result::Result<(), Wrong> {
    if holds {
        Ok(())
    } else {
        Err(wrong(key, reason))
    }
}

fn wrong(key: &str, reason: &str) -> Wrong {
    Wrong {
        key: key.to_owned(),
        reason: reason.to_owned(),
    }
}

/// A key whose value makes no sense.
struct Wrong {
    key: String,
    reason: String,
}

impl Wrong {
    fn in_any_of(self, figment: &Figment) -> Error {
        sentence(&self.key, &self.reason, figment.find_metadata(&self.key))
    }
}

/// What is wrong with a value that does not even have the right type, or that is missing.
fn explain(error: figment::Error) -> Error {
    use figment::error::Kind;
    let mut key = error.path.join(".");
    let reason = match &error.kind {
        Kind::MissingField(field) => {
            if !key.is_empty() {
                key.push('.');
            }
            key.push_str(field);
            "is missing".to_owned()
        }
        Kind::UnknownField(_, known) => format!("is not a key; there are {}", known.join(", ")),
        // What was found instead is not said: it may be an address with its password in the wrong place.
        Kind::InvalidType(_, expected) | Kind::InvalidValue(_, expected)
            if expected.starts_with("struct ") =>
        {
            "is a section and must have keys of its own".to_owned()
        }
        Kind::InvalidType(_, expected) | Kind::InvalidValue(_, expected) => {
            format!("must be {expected}")
        }
        other => format!("is wrong: {other}"),
    };
    sentence(&key, &reason, error.metadata.as_ref())
}

fn sentence(key: &str, reason: &str, source: Option<&Metadata>) -> Error {
    let place = source
        .map(|source| format!(" (in {})", source.name))
        .unwrap_or_default();
    Error::new(
        ErrorKind::Configuration,
        format!("configuration: {key} {reason}{place}"),
    )
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;
    use crate::config::{DatabaseUrl, OwnersConfig};

    /// The example of the contract, word for word.
    const EXAMPLE: &str = r#"
[server]
listen = "127.0.0.1:3000"
public_url = "https://shophosting.example"     # for Origin checks and Secure cookies
[database]                                      # the platform's database: customers, jobs, catalogue
url = "mysql://shophosting_app@localhost/shophosting_db"   # or sqlite:///var/lib/…/backup.db; DB_PASSWORD may supply the password
[queue]
redis_url = "redis://127.0.0.1:6379"            # absent: embedded queue
name = "backups"
[worker]
server = "default"                              # which hosting server this worker serves
concurrency = 2
state_dir = "/var/lib/shophosting-backup"       # restore journals; root only
backup_timeout = "10m"
restore_timeout = "20m"
[repositories.manual]
location = "sftp:sh-backup@203.0.113.5:/home/sh-backup/manual-backups"   # restic's syntax: sftp:user@host:/path, sftp://user@host:port//path, /local/path, and object storage
password_file = "/opt/shophosting/.manual-restic-password"
ssh_key = "/root/.ssh/id_ed25519"               # sftp only; also: known_hosts, connections
[repositories.daily]
location = "sftp:sh-backup@203.0.113.5:/home/sh-backup/backups"
password_file = "/root/.restic-password"
[customers]
root = "/var/customers"                         # customer N lives in {root}/customer-N
site_dirs = ["wordpress", "volumes/files"]      # what a files restore replaces: those that the snapshot has
exclude = ["mysql", "redis", "volumes/db", "logs", ".maintenance"]
[customer_database]
name = "customer_{id}"
host = "localhost"                              # or socket = "…", port = 3306
user = "shophosting_app"
password_env = "DB_PASSWORD"                    # or password_file
# imports run as the customer's own account (customers.db_user, db_password); where the platform has none, as a
# temporary account confined to the shadow schema. Definers: the customer's own account is kept, any other becomes it, with a warning
exec = []                                       # prefix for a server in a container: ["docker", "exec", "-i", "customer-{id}-db"]
dump_path = "/tmp/customer-backup-{id}/{database}.sql"          # path inside manual snapshots
daily_dump_path = "/tmp/shophosting-db-dumps/{database}.sql"    # path inside daily snapshots
[site]
stop = ["docker", "compose", "stop"]            # run in the customer's directory, no shell; [] = nothing to stop
start = ["docker", "compose", "up", "-d"]
health_url = "http://127.0.0.1:{web_port}/"     # optional
maintenance_file = ".maintenance"
[retention]
manual = 5                                      # newest kept per customer, whatever their type
pre_restore = 3
daily_shown = "30d"
"#;

    const SMALLEST: &str = r#"
[database]
url = "sqlite:///var/lib/backup.db"
[repositories.manual]
location = "/srv/backup"
password_file = "/root/.password"
"#;

    fn read(text: &str, environment: &[(&str, &str)]) -> Result<Config> {
        let environment = environment
            .iter()
            .map(|(n, v)| (n.to_string(), v.to_string()))
            .collect();
        Config::read(Origin::File("/etc/backup.toml".into()), text, &environment)
    }

    fn refusal(text: &str, environment: &[(&str, &str)]) -> String {
        let error = read(text, environment).expect_err(text);
        assert_eq!(error.kind(), ErrorKind::Configuration);
        error.chain()
    }

    fn customer(id: u32) -> crate::customer::Customer {
        crate::customer::Customer {
            id: crate::customer::CustomerId::new(id).unwrap(),
            status: None,
            db_name: format!("customer_{id}").parse().unwrap(),
            db_user: None,
            db_password: None,
            web_port: Some(8007),
            server: "default".into(),
        }
    }

    #[test]
    fn the_example_of_the_contract_is_read_as_it_says() {
        let config = read(EXAMPLE, &[("DB_PASSWORD", "s3cret")]).unwrap();
        assert_eq!(
            config.database.url.to_string(),
            "mysql://shophosting_app@localhost/shophosting_db"
        );
        assert_eq!(
            config.database.password.as_ref().unwrap().expose_secret(),
            "s3cret"
        );
        let database = &config.customer_database;
        assert_eq!(
            database.password.read().unwrap().unwrap().expose_secret(),
            "s3cret"
        );
        let seven = customer(7);
        assert_eq!(
            database.default_name(seven.id).unwrap().as_str(),
            "customer_7"
        );
        assert_eq!(
            database.dump_path(&seven).unwrap(),
            Path::new("/tmp/customer-backup-7/customer_7.sql")
        );
        assert_eq!(
            database.daily_dump_path(seven.id, &seven.db_name).unwrap(),
            Path::new("/tmp/shophosting-db-dumps/customer_7.sql")
        );
        assert!(!database.is_in_container());
        let health = config.site.health_url(&seven).unwrap().unwrap();
        assert_eq!(health.as_str(), "http://127.0.0.1:8007/");
        assert_eq!(
            config.customers.dir(seven.id),
            Path::new("/var/customers/customer-7")
        );
        assert_eq!(config.worker.backup_timeout.as_secs(), 600);
        assert_eq!(config.import_timeout().as_secs(), 1200);
        assert_eq!(config.worker.lease.as_secs(), 60);
        assert_eq!(config.worker.sync_every.as_secs(), 300);
        assert_eq!(config.worker.prune_at, None);
        assert_eq!(config.retention.daily_shown.as_secs(), 30 * 86_400);
        assert_eq!(config.repositories.manual.connections, 2);
        assert!(!format!("{config:?}").contains("s3cret"));
    }

    #[test]
    fn what_the_example_says_of_customers_is_the_default_too() {
        let small = read(SMALLEST, &[]).unwrap();
        let example = read(EXAMPLE, &[]).unwrap();
        assert_eq!(
            format!("{:?}", small.customers),
            format!("{:?}", example.customers)
        );
        assert_eq!(
            format!("{:?}", small.retention),
            format!("{:?}", example.retention)
        );
        assert_eq!(
            format!("{:?}", small.worker),
            format!("{:?}", example.worker)
        );
        assert_eq!(small.site.stop, example.site.stop);
        assert_eq!(small.site.start, example.site.start);
        let (small, example) = (small.customer_database, example.customer_database);
        assert_eq!(
            (small.name, small.dump_path, small.daily_dump_path),
            (example.name, example.dump_path, example.daily_dump_path)
        );
    }

    const IN_A_BUCKET: &str = r#"
[database]
url = "sqlite:///var/lib/backup.db"
[repositories.manual]
location = "s3:https://s3.example.com/backups/{server}"
password_file = "/root/.password"
"#;

    #[test]
    fn an_access_key_comes_from_its_file_or_from_the_variables_that_restic_reads() {
        let variables = [
            ("AWS_ACCESS_KEY_ID", "AKID"),
            ("AWS_SECRET_ACCESS_KEY", "s3cret"),
            ("AWS_DEFAULT_REGION", "eu-central-1"),
        ];
        let config = read(IN_A_BUCKET, &variables).unwrap();
        let repository = &config.repositories.manual;
        let key = repository.read_access_key().unwrap().unwrap();
        assert_eq!(
            (key.id.as_str(), key.secret.expose_secret()),
            ("AKID", "s3cret")
        );
        assert_eq!(repository.s3_region.as_deref(), Some("eu-central-1"));
        assert!(!format!("{config:?}").contains("s3cret"));

        let none = read(IN_A_BUCKET, &variables[..1]).unwrap();
        let none = none.repositories.manual.read_access_key().unwrap();
        assert!(none.is_none());

        let text =
            IN_A_BUCKET.to_owned() + "s3_key_file = '/nonexistent'\ns3_region = 'eu-west-1'\n";
        let config = read(&text, &variables).unwrap();
        let repository = &config.repositories.manual;
        assert_eq!(repository.s3_region.as_deref(), Some("eu-west-1"));
        let error = repository.read_access_key().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Configuration);

        // They are nothing to a repository elsewhere.
        let config = read(SMALLEST, &variables).unwrap();
        let repository = &config.repositories.manual;
        assert!(repository.read_access_key().unwrap().is_none());
        assert!(repository.s3_region.is_none());
        let refused = refusal(&(SMALLEST.to_owned() + "s3_region = 'eu-west-1'"), &[]);
        assert!(
            refused.contains("repositories.manual.s3_region"),
            "{refused}"
        );
    }

    #[test]
    fn every_hosting_server_can_have_a_repository_of_its_own() {
        let at = |location: &str, server: &str| {
            let variables = [
                ("BACKUP__REPOSITORIES__MANUAL__LOCATION", location),
                ("BACKUP__WORKER__SERVER", server),
            ];
            read(SMALLEST, &variables).map(|config| config.repositories.manual.location)
        };
        for (location, filled) in [
            ("/srv/{server}/backup", "/srv/web-1/backup"),
            ("sftp:u@h:/srv/{server}", "sftp:u@h:/srv/web-1"),
            ("s3:https://h/b/{server}", "s3:https://h/b/web-1"),
            ("/srv/{server}/{server}", "/srv/web-1/web-1"),
            ("/srv/backup", "/srv/backup"),
        ] {
            assert_eq!(at(location, "web-1").unwrap(), filled);
        }
        for server in [
            "..",
            ".",
            "a/b",
            "-x",
            "a b",
            "a%2fb",
            "ä",
            "{customer}",
            "{server}",
        ] {
            let refused = at("/srv/{server}", server).unwrap_err().chain();
            assert!(
                refused.contains("repositories.manual.location"),
                "{refused}"
            );
            // Where it stands nowhere it is anybody's business.
            at("/srv/backup", server).unwrap();
        }
        for location in ["/srv/{id}", "/srv/{server", "/srv/}", "/srv/{server}}"] {
            let refused = at(location, "web-1").unwrap_err().chain();
            assert!(
                refused.contains("there are {server} and {customer}"),
                "{refused}"
            );
        }
    }

    #[test]
    fn every_customer_can_have_a_repository_of_his_own() {
        let at = |location: &str, daily: &str| {
            let variables = [
                ("BACKUP__REPOSITORIES__MANUAL__LOCATION", location),
                ("BACKUP__REPOSITORIES__DAILY__LOCATION", daily),
                ("BACKUP__REPOSITORIES__DAILY__PASSWORD_FILE", "/p"),
                ("BACKUP__WORKER__SERVER", "web-1"),
            ];
            read(SMALLEST, &variables).map(|config| config.repositories.manual)
        };
        let seven = CustomerId::new(7).unwrap();
        for (location, his) in [
            ("/srv/{customer}", "/srv/customer-7"),
            ("/srv/{server}/{customer}/b", "/srv/web-1/customer-7/b"),
            ("sftp:u@h:{customer}", "sftp:u@h:customer-7"),
            (
                "sftp://u@h:2222//srv/{customer}",
                "sftp://u@h:2222//srv/customer-7",
            ),
            ("s3:https://h/b/x-{customer}", "s3:https://h/b/x-customer-7"),
            ("/srv/{customer}/{customer}", "/srv/customer-7/customer-7"),
        ] {
            let manual = at(location, "/srv/daily").unwrap();
            assert!(manual.is_for_each_customer(), "{location}");
            let of_seven = manual.of_customer(seven);
            assert_eq!(of_seven.location, his);
            assert!(!of_seven.is_for_each_customer());
        }
        let shared = at("/srv/{server}", "/srv/daily").unwrap();
        assert!(!shared.is_for_each_customer());
        assert_eq!(shared.of_customer(seven).location, "/srv/web-1");

        // As anything but a part of the path it would be another account, machine or bucket.
        for location in [
            "sftp:{customer}@h:/srv",
            "sftp:u@{customer}:/srv",
            "sftp://u@{customer}.h//srv",
            "s3:https://{customer}.h/b/x",
            "s3:https://h/{customer}",
            "s3:https://h/{customer}/x",
        ] {
            let refused = at(location, "/srv/daily").unwrap_err().chain();
            assert!(
                refused.contains("repositories.manual.location")
                    && refused.contains("part of the path"),
                "{location}: {refused}"
            );
        }
        // One snapshot of all customers is nobody's.
        let refused = at("/srv/manual", "/srv/{customer}").unwrap_err().chain();
        assert!(
            refused.contains("repositories.daily.location")
                && refused.contains("one snapshot of all customers"),
            "{refused}"
        );
        for daily in ["/srv/customer-7", "/srv/customer-7/"] {
            let refused = at("/srv/{customer}", daily).unwrap_err().chain();
            assert!(refused.contains("for a customer"), "{refused}");
        }
        for daily in ["/srv/customer-07", "/srv/customer-7/daily", "/srv/customer"] {
            at("/srv/{customer}", daily).unwrap();
        }
    }

    #[test]
    fn any_key_is_set_by_the_environment() {
        let config = read(
            EXAMPLE,
            &[
                ("BACKUP__REPOSITORIES__MANUAL__LOCATION", "/srv/elsewhere"),
                ("BACKUP__REPOSITORIES__MANUAL__CONNECTIONS", "3"),
                ("BACKUP__WORKER__CONCURRENCY", "4"),
                ("BACKUP__WORKER__SERVER", "1"),
                ("BACKUP__WORKER__BACKUP_TIMEOUT", "90s"),
                ("BACKUP__WORKER__LEASE", "1s"),
                ("BACKUP__WORKER__PRUNE_AT", "03:30"),
                ("BACKUP__SITE__STOP", r#"["docker", "stop", "a b"]"#),
                ("BACKUP__SITE__START", "['true']"),
                ("BACKUP__CUSTOMER_DATABASE__PORT", "3307"),
                ("BACKUP_UNRELATED", "x"),
            ],
        )
        .unwrap();
        assert_eq!(config.repositories.manual.location, "/srv/elsewhere");
        assert_eq!(config.repositories.manual.connections, 3);
        assert_eq!(config.worker.concurrency, 4);
        assert_eq!(config.worker.server, "1");
        assert_eq!(config.worker.backup_timeout.as_secs(), 90);
        assert_eq!(config.worker.lease.as_secs(), 1);
        assert_eq!(config.worker.prune_at, Some(jiff::civil::time(3, 30, 0, 0)));
        assert_eq!(config.site.stop, ["docker", "stop", "a b"]);
        assert_eq!(config.site.start, ["true"]);
        assert_eq!(config.customer_database.port, Some(3307));
    }

    #[test]
    fn nothing_that_gives_power_over_the_server_is_restored_unless_configured() {
        let small = read(SMALLEST, &[]).unwrap().restore;
        assert!(!small.devices && !small.setuid);
        assert_eq!(small.owners, OwnersConfig::Only(Vec::new()));
        assert_eq!((small.max_files, small.max_bytes), (1_500_000, 0));
        let owners = |value: &str| {
            let variables = [("BACKUP__RESTORE__OWNERS", value)];
            read(SMALLEST, &variables).unwrap().restore.owners
        };
        assert_eq!(owners("any"), OwnersConfig::Any);
        assert_eq!(owners("[33, 1000]"), OwnersConfig::Only(vec![33, 1000]));
    }

    #[test]
    fn customers_log_in_by_password_unless_the_platform_is_configured_whole() {
        let server = read(SMALLEST, &[]).unwrap().server;
        assert_eq!(server.login, LoginConfig::Password);
        let platform = [
            ("BACKUP__SERVER__LOGIN", "platform"),
            ("BACKUP__SERVER__PLATFORM_SECRET_KEY_FILE", "/etc/key"),
            (
                "BACKUP__SERVER__PLATFORM_LOGIN_URL",
                "https://shop.example/login",
            ),
        ];
        let server = read(SMALLEST, &platform).unwrap().server;
        assert_eq!(server.login, LoginConfig::Platform);
        assert_eq!(server.platform_cookie, "session");
        assert_eq!(server.platform_session_max.as_secs(), 31 * 86400);
    }

    #[test]
    fn the_platforms_variables_fill_what_nothing_else_sets() {
        const NO_DATABASE: &str =
            "[repositories.manual]\nlocation = '/srv/b'\npassword_file = '/p'\n";
        let platform = [
            ("DB_HOST", "db.internal"),
            ("DB_USER", "app"),
            ("DB_PASSWORD", "s3cret"),
            ("REDIS_HOST", "cache"),
        ];
        let config = read(NO_DATABASE, &platform).unwrap();
        assert_eq!(
            config.database.url.to_string(),
            "mysql://app@db.internal/shophosting_db"
        );
        assert_eq!(
            config.queue.redis_url.unwrap().to_string(),
            "redis://cache:6379"
        );
        assert_eq!(config.customer_database.host(), "db.internal");
        assert_eq!(config.customer_database.user, "app");
        assert!(config.customer_database.password.read().unwrap().is_some());

        let config = read(EXAMPLE, &platform).unwrap();
        assert_eq!(
            config.database.url.to_string(),
            "mysql://shophosting_app@localhost/shophosting_db"
        );
        assert_eq!(config.customer_database.host(), "localhost");
        assert_eq!(
            config.queue.redis_url.unwrap().to_string(),
            "redis://127.0.0.1:6379"
        );

        let socket = format!("{NO_DATABASE}[customer_database]\nsocket = '/run/my.sock'\n");
        assert_eq!(
            read(&socket, &platform).unwrap().customer_database.host,
            None
        );
        assert!(refusal(NO_DATABASE, &[("DB_HOST", "a/b c")]).contains("DB_HOST"));
    }

    #[test]
    fn without_a_file_everything_is_under_data() {
        let config = Config::read(Origin::Embedded, "", &Environment::default()).unwrap();
        let data = std::env::current_dir().unwrap().join("data");
        assert_eq!(
            config.repositories.manual.location,
            data.join("repositories/manual").to_str().unwrap()
        );
        assert!(config.repositories.daily.is_some());
        assert_eq!(config.customers.root, data.join("customers"));
        assert_eq!(config.worker.state_dir, data.join("state"));
        assert!(config.site.stop.is_empty() && config.site.start.is_empty());
        assert!(config.site.nginx.is_empty());
        assert!(
            matches!(config.database.url, DatabaseUrl::Sqlite(path) if path == data.join("backup.db"))
        );

        let environment = [
            ("BACKUP__REPOSITORIES__MANUAL__PASSWORD_ENV", "PW"),
            ("PW", "s3cret"),
        ]
        .into_iter()
        .collect();
        let config = Config::read(Origin::Embedded, "", &environment).unwrap();
        assert_eq!(
            config
                .repositories
                .manual
                .read_password()
                .unwrap()
                .expose_secret(),
            "s3cret"
        );
    }

    #[test]
    fn with_a_file_nothing_goes_where_nobody_chose() {
        let text = refusal("[database]\nurl = 'sqlite:///b.db'\n", &[]);
        assert!(text.contains("repositories is missing"), "{text}");
        let text = refusal(
            "[database]\nurl = 'sqlite:///b.db'\n[repositories.manual]\nlocation = '/r'\n",
            &[],
        );
        assert!(
            text.contains("repositories.manual") && text.contains("password_file"),
            "{text}"
        );
        let text = refusal(
            "[repositories.manual]\nlocation = '/r'\npassword_file = '/p'\n",
            &[],
        );
        assert!(text.contains("database is missing"), "{text}");
    }

    /// A section `[daily]` with its repository.
    macro_rules! daily {
        ($lines:literal) => {
            concat!(
                "[repositories.daily]\nlocation = '/d'\npassword_file = '/p'\n[daily]\n",
                $lines
            )
        };
    }

    #[test]
    fn the_daily_backups_are_ours_if_the_section_is_there() {
        let daily = |text: &str| read(&format!("{SMALLEST}{text}"), &[]).unwrap().daily;
        let absent = "[repositories.daily]\nlocation = '/d'\npassword_file = '/p'\n";
        assert!(daily(absent).is_none());
        let empty = daily(daily!("")).unwrap();
        assert_eq!((empty.keep, empty.platform_database), (30, true));
        assert!(empty.paths.is_empty());
        assert_eq!(empty.customer_timeout.as_secs(), 3600);
        let set = daily(daily!("keep = 7\npaths = ['/etc/nginx/sites-available']")).unwrap();
        assert_eq!(set.keep, 7);
        assert_eq!(set.paths, [Path::new("/etc/nginx/sites-available")]);
    }

    macro_rules! webhook {
        ($url:literal, $more:literal) => {
            concat!(
                "[notify.webhook]\nurl = '",
                $url,
                "'\nsecret_file = '/s'\n",
                $more
            )
        };
    }

    macro_rules! email {
        ($host:literal, $more:literal) => {
            concat!(
                "[notify.email]\nhost = '",
                $host,
                "'\nfrom = 'B <b@p.example>'\n",
                $more
            )
        };
    }

    #[test]
    fn nobody_is_told_of_jobs_unless_a_section_is_there() {
        let notify = |text: &str| read(&format!("{SMALLEST}{text}"), &[]).unwrap().notify;
        let none = notify("");
        assert!(none.webhook.is_none() && none.email.is_none());
        for url in [
            "https://p.example/h",
            "http://localhost:1/",
            "http://127.0.0.9/",
            "http://[::1]/",
        ] {
            let lines = format!("[notify.webhook]\nurl = '{url}'\nsecret_file = '/s'\n");
            assert_eq!(notify(&lines).webhook.unwrap().events.len(), 7);
        }
        let ports = [
            ("", 465),
            ("tls = 'starttls'", 587),
            ("tls = 'none'", 25),
            ("port = 7", 7),
        ];
        for (more, port) in ports {
            let lines = format!("{}{more}", email!("localhost", ""));
            assert_eq!(notify(&lines).email.unwrap().port(), port);
        }
        // Of what he cancelled himself nobody writes to a customer unasked.
        let events = notify(email!("h", "")).email.unwrap().events;
        let words: Vec<&str> = events.into_iter().map(|event| event.as_str()).collect();
        let expected = [
            "backup.failed",
            "restore.completed",
            "restore.failed",
            "restore.stuck",
        ];
        assert_eq!(words, expected);
    }

    #[test]
    fn the_platforms_database_is_where_its_address_says() {
        let config = read(EXAMPLE, &[("DB_PASSWORD", "s3cret")]).unwrap();
        let platform = config.database.mysql().unwrap();
        assert_eq!(
            (
                platform.host.as_str(),
                platform.port,
                platform.user.as_str()
            ),
            ("localhost", None, "shophosting_app")
        );
        assert_eq!(platform.schema, "shophosting_db");
        assert_eq!(platform.password.unwrap().expose_secret(), "s3cret");
        let path = config
            .customer_database
            .daily_dump_path_of_platform("shophosting_db");
        let expected = Path::new("/tmp/shophosting-db-dumps/shophosting_db.sql");
        assert_eq!(path.unwrap().unwrap(), expected);
        assert!(read(SMALLEST, &[]).unwrap().database.mysql().is_none());
    }

    #[test]
    fn every_refusal_names_the_key_and_where_it_came_from() {
        let cases = [
            ("server.listne", "[server]\nlistne = 'x'"),
            ("server.listen", "[server]\nlisten = 'everywhere'"),
            ("server.public_url", "[server]\npublic_url = 'shop'"),
            ("server.public_url", "[server]\npublic_url = 'ftp://shop'"),
            ("server.session_idle", "[server]\nsession_idle = '59s'"),
            ("server.metrics_listen", "[server]\nmetrics_listen = 9100"),
            ("server.session_max", "[server]\nsession_max = '24'"),
            ("server.audit_keep", "[server]\naudit_keep = '23h'"),
            ("server.admins_file", "[server]\nadmins_file = 'admins'"),
            ("server.login", "[server]\nlogin = 'otp'"),
            ("server.login", "[server]\nlogin = 'platform'"),
            (
                "server.login",
                "[server]\nlogin = 'platform'\nplatform_secret_key_file = '/k'",
            ),
            (
                "server.login",
                "[server]\nlogin = 'platform'\nplatform_login_url = 'https://p'",
            ),
            (
                "server.platform_secret_key_file",
                "[server]\nplatform_secret_key_file = '/k'",
            ),
            (
                "server.platform_secret_key_file",
                "[server]\nplatform_secret_key_file = 'k'",
            ),
            (
                "server.platform_login_url",
                "[server]\nplatform_login_url = 'https://p'",
            ),
            (
                "server.platform_login_url",
                "[server]\nplatform_login_url = 'javascript:alert(1)'",
            ),
            ("server.platform_cookie", "[server]\nplatform_cookie = ''"),
            (
                "server.platform_cookie",
                "[server]\nplatform_cookie = 'a=b'",
            ),
            (
                "server.platform_session_max",
                "[server]\nplatform_session_max = '59s'",
            ),
            ("sevrer", "[sevrer]\nlisten = '127.0.0.1:1'"),
            ("queue.redis_url", "[queue]\nredis_url = 'http://x'"),
            ("queue.redis_url", "[queue]\nredis_url = 'rediss://h'"),
            ("queue.redis_url", "[queue]\nredis_url = 'redis://h/two'"),
            ("queue.redis_url", "[queue]\nredis_url = 'redis://s3cret@h'"),
            ("queue.redis_url", "[queue]\nredis_url = 'unix://'"),
            ("queue.name", "[queue]\nname = ''"),
            ("restore.devices", "[restore]\ndevices = 'some'"),
            ("restore.owners", "[restore]\nowners = 'all'"),
            ("restore.owners", "[restore]\nowners = 33"),
            ("restore.owners", "[restore]\nowners = ['www-data']"),
            ("restore.owners", "[restore]\nowners = [-1]"),
            ("restore.max_files", "[restore]\nmax_files = -1"),
            ("worker.concurrency", "[worker]\nconcurrency = 0"),
            ("worker.concurrency", "[worker]\nconcurrency = 'two'"),
            ("worker.concurrency", "[worker]\nconcurrency = -1"),
            ("worker.server", "[worker]\nserver = ''"),
            ("worker.state_dir", "[worker]\nstate_dir = 'state'"),
            ("worker.state_dir", "[worker]\nstate_dir = '/var/../etc'"),
            ("worker.backup_timeout", "[worker]\nbackup_timeout = '10'"),
            ("worker.backup_timeout", "[worker]\nbackup_timeout = 10"),
            ("worker.restore_timeout", "[worker]\nrestore_timeout = '0s'"),
            ("worker.lease", "[worker]\nlease = '999ms'"),
            ("worker.lease", "[worker]\nlease = 60"),
            ("worker.sync_every", "[worker]\nsync_every = '0s'"),
            ("worker.sync_every", "[worker]\nsync_every = '500ms'"),
            ("worker.prune_at", "[worker]\nprune_at = 'never'"),
            ("worker.prune_at", "[worker]\nprune_at = ''"),
            ("worker.prune_at", "[worker]\nprune_at = '3:30'"),
            ("worker.prune_at", "[worker]\nprune_at = '24:00'"),
            ("worker.prune_at", "[worker]\nprune_at = '03:30:15'"),
            ("worker.prune_at", "[worker]\nprune_at = 330"),
            (
                "repositories.daily.location",
                "[repositories.daily]\nlocation = ''\npassword_file = '/p'",
            ),
            (
                "repositories.daily.location",
                "[repositories.daily]\nlocation = '/srv/backup/'\npassword_file = '/p'",
            ),
            (
                "repositories.daily.connections",
                "[repositories.daily]\nlocation = '/d'\npassword_file = '/p'\nconnections = 9",
            ),
            (
                "repositories.daily.retry_for",
                "[repositories.daily]\nlocation = '/d'\npassword_file = '/p'\nretry_for = 'long'",
            ),
            (
                "repositories.daily.password_file",
                "[repositories.daily]\nlocation = '/d'\npassword_file = 'p'",
            ),
            (
                "repositories.daily.password_env",
                "[repositories.daily]\nlocation = '/d'\npassword_env = ''",
            ),
            (
                "repositories.daily",
                "[repositories.daily]\nlocation = '/d'\npassword_file = '/p'\npassword_env = 'P'",
            ),
            (
                "repositories.daily",
                "[repositories.daily]\nlocation = '/d'",
            ),
            (
                "repositories.weekly",
                "[repositories.weekly]\nlocation = '/d'",
            ),
            ("customers.root", "[customers]\nroot = '/'"),
            ("customers.root", "[customers]\nroot = 'customers'"),
            ("customers.site_dirs", "[customers]\nsite_dirs = []"),
            (
                "customers.site_dirs",
                "[customers]\nsite_dirs = ['/wordpress']",
            ),
            (
                "customers.site_dirs",
                "[customers]\nsite_dirs = ['../customer-2']",
            ),
            (
                "customers.site_dirs",
                "[customers]\nsite_dirs = ['a', 'a/b']",
            ),
            (
                "customers.site_dirs",
                "[customers]\nsite_dirs = ['a', 'b', 'a']",
            ),
            (
                "customers.site_dirs",
                "[customers]\nsite_dirs = 'wordpress'",
            ),
            ("customers.exclude", "[customers]\nexclude = ['wordpress']"),
            ("customers.exclude", "[customers]\nexclude = ['volumes']"),
            (
                "customer_database.name",
                "[customer_database]\nname = 'customers'",
            ),
            (
                "customer_database.name",
                "[customer_database]\nname = 'x{web_port}'",
            ),
            (
                "customer_database.name",
                "[customer_database]\nname = '{id}/x'",
            ),
            (
                "customer_database.name",
                "[customer_database]\nname = 'customer_{'",
            ),
            ("customer_database.host", "[customer_database]\nhost = ''"),
            ("customer_database.port", "[customer_database]\nport = 0"),
            (
                "customer_database.port",
                "[customer_database]\nport = 70000",
            ),
            (
                "customer_database.socket",
                "[customer_database]\nsocket = '/s'\nhost = 'h'",
            ),
            ("customer_database.user", "[customer_database]\nuser = ''"),
            (
                "customer_database.exec",
                "[customer_database]\nexec = ['docker', '{user}']",
            ),
            (
                "customer_database.exec",
                "[customer_database]\nexec = ['{id}']",
            ),
            (
                "customer_database.exec",
                "[customer_database]\nexec = ['docker', '']",
            ),
            (
                "customer_database.dump_path",
                "[customer_database]\ndump_path = '/tmp/dump.sql'",
            ),
            (
                "customer_database.dump_path",
                "[customer_database]\ndump_path = 'tmp/{id}.sql'",
            ),
            (
                "customer_database.dump_path",
                "[customer_database]\ndump_path = '/tmp/{id}/../x.sql'",
            ),
            (
                "customer_database.dump_path",
                "[customer_database]\ndump_path = '/tmp/{id}/'",
            ),
            (
                "customer_database.daily_dump_path",
                "[customer_database]\ndaily_dump_path = '/tmp/{web_port}'",
            ),
            (
                "customer_database.dump_timeout",
                "[customer_database]\ndump_timeout = '-1s'",
            ),
            (
                "customer_database.password",
                "[customer_database]\npassword = 's3cret'",
            ),
            ("site.stop", "[site]\nstop = 'docker compose stop'"),
            ("site.stop", "[site]\nstop = ['']"),
            ("site.start", "[site]\nstart = []"),
            ("site.nginx", "[site]\nnginx = ['']"),
            (
                "site.health_url",
                "[site]\nhealth_url = 'https://127.0.0.1/'",
            ),
            (
                "site.health_url",
                "[site]\nhealth_url = '127.0.0.1:{web_port}'",
            ),
            (
                "site.health_url",
                "[site]\nhealth_url = 'http://{database}/'",
            ),
            ("site.maintenance_file", "[site]\nmaintenance_file = '../x'"),
            (
                "site.maintenance_file",
                "[site]\nmaintenance_file = 'wordpress/.maintenance'",
            ),
            ("site.command_timeout", "[site]\ncommand_timeout = '0m'"),
            ("retention.manual", "[retention]\nmanual = 0"),
            ("retention.pre_restore", "[retention]\npre_restore = 0"),
            (
                "retention.daily_shown",
                "[retention]\ndaily_shown = 'always'",
            ),
            ("daily", "[daily]"),
            ("daily.keep", daily!("keep = 0")),
            ("daily.path", daily!("path = ['/etc']")),
            ("daily.paths", daily!("paths = ['etc']")),
            ("daily.paths", daily!("paths = ['/etc', '/etc/nginx']")),
            ("daily.paths", daily!("paths = ['/var']")),
            (
                "daily.paths",
                daily!("paths = ['/var/customers/customer-1']"),
            ),
            ("daily.paths", daily!("paths = ['/tmp']")),
            ("daily.wait", daily!("wait = 'long'")),
            (
                "daily.customer_timeout",
                daily!("customer_timeout = '999ms'"),
            ),
            ("verify.hours", "[verify]\nhours = '02:00'"),
            ("verify.hours", "[verify]\nhours = '2:00-5:00'"),
            ("verify.hours", "[verify]\nhours = '02:00-24:00'"),
            ("verify.hours", "[verify]\nhours = '02:00-02:00'"),
            ("verify.every", "[verify]\nevery = '59m'"),
            ("verify.dir", "[verify]\ndir = 'scratch'"),
            ("verify.dir", "[verify]\ndir = '/var/customers/customer-1'"),
            ("verify.max_bytes", "[verify]\nmax_bytes = -1"),
            ("verify.timeout", "[verify]\ntimeout = '0s'"),
            (
                "verify.read_data_subset",
                "[verify]\nread_data_subset = '5'",
            ),
            (
                "verify.read_data_subset",
                "[verify]\nread_data_subset = '3/2'",
            ),
            ("notify.webhok", "[notify.webhok]"),
            ("notify.webhook.url", "[notify.webhook]\nsecret_file = '/s'"),
            (
                "notify.webhook.secret_file",
                "[notify.webhook]\nurl = 'https://h'",
            ),
            (
                "notify.webhook.url",
                webhook!("http://platform.example/hooks", ""),
            ),
            (
                "notify.webhook.url",
                webhook!("http://127.0.0.1.example/hooks", ""),
            ),
            ("notify.webhook.url", webhook!("https://u:s3cret@h/", "")),
            ("notify.webhook.url", webhook!("ftp://localhost/", "")),
            (
                "notify.webhook.events",
                webhook!("https://h/", "events = []"),
            ),
            (
                "notify.webhook.events",
                webhook!("https://h/", "events = ['backup.done']"),
            ),
            ("notify.email.from", "[notify.email]\nhost = 'h'"),
            (
                "notify.email.from",
                "[notify.email]\nhost = 'h'\nfrom = 'nobody'",
            ),
            (
                "notify.email.from",
                "[notify.email]\nhost = 'h'\nfrom = \"a@b\\r\\nBcc: c@d\"",
            ),
            ("notify.email.host", email!("", "")),
            ("notify.email.port", email!("h", "port = 0")),
            ("notify.email.port", email!("h", "port = 65536")),
            ("notify.email.tls", email!("h", "tls = 'sometimes'")),
            ("notify.email.tls", email!("smtp.example", "tls = 'none'")),
            ("notify.email.user", email!("h", "user = 'u'")),
            (
                "notify.email.password_file",
                email!("h", "password_file = '/p'"),
            ),
            (
                "notify.email.password_file",
                email!("h", "user = 'u'\npassword_file = 'p'"),
            ),
            ("notify.email.events", email!("h", "events = []")),
        ];
        for (key, lines) in cases {
            let text = refusal(&format!("{SMALLEST}{lines}\n"), &[]);
            assert!(
                text.contains(&format!("configuration: {key}")),
                "{lines}: {text}"
            );
            assert!(text.contains("/etc/backup.toml"), "{lines}: {text}");
            assert!(!text.contains("s3cret"), "{lines}: {text}");
        }
    }

    #[test]
    fn a_refused_variable_is_named() {
        for (name, value) in [
            ("BACKUP__WORKER__CONCURRENCY", "two"),
            ("BACKUP__WORKER__CONCURENCY", "2"),
            ("BACKUP__SITE__STOP", "[docker"),
            ("BACKUP__SITE__STOP", "docker"),
            ("BACKUP__", "x"),
            ("BACKUP__SITE____STOP", "x"),
            ("BACKUP__RETENTION__MANUAL", "0"),
        ] {
            let text = refusal(SMALLEST, &[(name, value)]);
            assert!(text.contains(name), "{name}: {text}");
        }
    }

    #[test]
    fn no_slip_in_the_file_makes_a_password_public() {
        for lines in [
            "[queue]\nredis_url = 'redis://:s3cret@h:port'",
            "[queue]\nredis_url = 'redis://:s3cret@h",
            "[queue]\nredis_url = 'redis//:s3cret@h'",
            "[queue]\nredis_url = ['redis://:s3cret@h']",
            "[queue]\nredis_url = 'rediss://:s3cret@h'",
            "[queue]\nredis_url = 'redis://:s3cret@h/x'",
            "[queue]\nredis_url = 'unix:///s?pass=s3cret&db=x'",
            "[queue]\nredis_url = 'unix://h/s?pass=s3cret'",
            "[queue]\nredis_url = 'redis://:s3cret@h'\nredis_url = 'redis://:s3cret@h'",
        ] {
            let text = refusal(&format!("{SMALLEST}{lines}\n"), &[]);
            assert!(!text.contains("s3cret"), "{text}");
        }
        for variable in [
            "BACKUP__DATABASE__URL",
            "BACKUP__DATABASE",
            "BACKUP__QUEUE",
            "BACKUP__WORKER__CONCURRENCY",
        ] {
            let text = refusal(SMALLEST, &[(variable, "mysql:/u:s3cret@h/d")]);
            assert!(!text.contains("s3cret"), "{text}");
            assert!(text.contains(variable), "{text}");
        }
    }

    #[test]
    fn a_file_that_is_not_toml_is_refused_with_the_line() {
        let text = refusal("[database]\nurl = \n", &[]);
        assert!(text.contains("/etc/backup.toml, line 2"), "{text}");
    }

    #[test]
    fn a_file_that_was_asked_for_must_be_there() {
        let error = Config::load(
            Some(Path::new("/nowhere/backup.toml")),
            &Environment::default(),
        )
        .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Configuration);
        assert!(error.to_string().contains("/nowhere/backup.toml"));
        let environment = [("SHOPHOSTING_BACKUP_CONFIG", "/nowhere/else.toml")]
            .into_iter()
            .collect();
        let error = Config::load(None, &environment).unwrap_err();
        assert!(error.to_string().contains("/nowhere/else.toml"));
    }

    #[test]
    fn a_path_for_a_hostile_name_cannot_be_rendered() {
        let config = read(EXAMPLE, &[]).unwrap();
        assert!(
            "../../etc"
                .parse::<crate::customer::DatabaseName>()
                .is_err()
        );
        let mut shop = customer(7);
        shop.web_port = None;
        let error = config.site.health_url(&shop).unwrap_err();
        assert!(error.to_string().contains("web_port of customer 7"));
    }
}
