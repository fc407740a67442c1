//! `customer add`, `customer list` and `customer set-password`. Never: a password in an argument, or seen on the terminal.

use std::io::{self, BufRead, IsTerminal, Stdin};
use std::process::ExitCode;

use backup_core::config::{Config, PasswordSource};
use backup_core::customer::{CustomerId, CustomerStore, NewCustomer};
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::login::hash_password;
use backup_core::store::Store;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use secrecy::{ExposeSecret, SecretString};
use serde_json::json;
use tokio::runtime::Runtime;

use super::operator;
use crate::args::{AddArgs, SetPasswordArgs};
use crate::output::{self, Output};

pub fn add(config: &Config, args: AddArgs, output: Output, runtime: &Runtime) -> Result<ExitCode> {
    let password = args
        .db_password_file
        .map_or(PasswordSource::None, PasswordSource::File);
    let new = NewCustomer {
        id: args.id,
        email: args.email,
        domain: args.domain,
        db_name: args.db_name,
        db_user: args.db_user,
        db_password: password.read()?,
        web_port: args.web_port,
    };
    let id = runtime.block_on(async {
        let store = Store::connect(config).await?;
        let added = customers(&store, config).add(&new).await;
        store.close().await;
        added
    })?;
    output.result(&json!({ "customer_id": id }), || {
        next_steps(config, id, new.email.is_some())
    });
    Ok(ExitCode::SUCCESS)
}

/// What is done to them is written down as the caller's.
fn customers(store: &Store, config: &Config) -> CustomerStore {
    CustomerStore::new(store, config).acting(operator::actor())
}

/// What a customer is of no use without.
fn next_steps(config: &Config, id: CustomerId, has_email: bool) -> String {
    let dir = config.customers.dir(id);
    let sites: Vec<_> = config
        .customers
        .site_dirs
        .iter()
        .map(|site| dir.join(site).display().to_string())
        .collect();
    let email = if has_email { "" } else { " --email ADDRESS" };
    format!(
        "customer {id}\n\
         the files of the shop belong into {}\n\
         to let him log in to the dashboard: shophosting-backup customer set-password {id}{email}",
        sites.join(" or "),
    )
}

pub fn list(config: &Config, output: Output, runtime: &Runtime) -> Result<ExitCode> {
    let customers = runtime.block_on(async {
        let store = Store::connect(config).await?;
        let listed = CustomerStore::new(&store, config).list().await;
        store.close().await;
        listed
    })?;
    output.result(&json!({ "customers": customers }), || {
        let mut text = String::new();
        for customer in &customers {
            let status = customer.status.as_deref().unwrap_or("-");
            let name = customer.name.as_deref().unwrap_or("-");
            let email = customer.email.as_deref().unwrap_or("-");
            text.push_str(&format!(
                "{:>8}  {status:<12}  {:<30}  {}\n",
                customer.id,
                name.escape_debug().to_string(),
                email.escape_debug()
            ));
        }
        text
    });
    Ok(ExitCode::SUCCESS)
}

pub fn set_password(
    config: &Config,
    args: &SetPasswordArgs,
    output: Output,
    runtime: &Runtime,
) -> Result<ExitCode> {
    let hash = hash_password(&read_password()?)?;
    runtime.block_on(async {
        let store = Store::connect(config).await?;
        let set = customers(&store, config)
            .set_password(args.customer, args.email.as_deref(), hash.expose_secret())
            .await;
        store.close().await;
        set
    })?;
    output.result(&json!({ "customer_id": args.customer }), || {
        format!("customer {} has a new password", args.customer)
    });
    Ok(ExitCode::SUCCESS)
}

/// A line of standard input; at a terminal unseen, and twice.
pub fn read_password() -> Result<SecretString> {
    const SHORTEST: usize = 8;
    let stdin = io::stdin();
    let password = if stdin.is_terminal() {
        let _unseen = Unseen::at(&stdin)?;
        output::message("password:");
        let first = read_line(&stdin)?;
        output::message("the same again:");
        if read_line(&stdin)?.expose_secret() != first.expose_secret() {
            return Err(invalid("the two are not the same"));
        }
        first
    } else {
        read_line(&stdin)?
    };
    if password.expose_secret().chars().count() < SHORTEST {
        return Err(invalid("a password has at least 8 characters"));
    }
    Ok(password)
}

fn read_line(stdin: &Stdin) -> Result<SecretString> {
    let mut line = String::new();
    stdin
        .lock()
        .read_line(&mut line)
        .map_err(|e| Error::io("cannot read the password", e))?;
    Ok(line.trim_end_matches(['\r', '\n']).into())
}

fn invalid(message: &str) -> Error {
    Error::new(ErrorKind::InvalidInput, message)
}

/// Nothing that is typed is shown, until this is dropped.
struct Unseen<'a> {
    terminal: &'a Stdin,
    before: Termios,
}

impl<'a> Unseen<'a> {
    fn at(terminal: &'a Stdin) -> Result<Self> {
        let failed = |e: rustix::io::Errno| Error::io("cannot ask at this terminal", e.into());
        let before = tcgetattr(terminal).map_err(failed)?;
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO);
        tcsetattr(terminal, OptionalActions::Flush, &silent).map_err(failed)?;
        Ok(Self { terminal, before })
    }
}

impl Drop for Unseen<'_> {
    fn drop(&mut self) {
        if let Err(e) = tcsetattr(self.terminal, OptionalActions::Flush, &self.before) {
            output::message(&format!("warning: the terminal stays silent: {e}"));
        }
    }
}
