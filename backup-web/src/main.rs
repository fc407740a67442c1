//! `shophosting-backup`: the command line. Puts the parts together and knows nothing of how they work.

mod args;
mod commands;
mod http;
mod output;
mod progress;
mod signals;

use std::process::ExitCode;

use backup_core::config::{Config, Environment};
use backup_core::error::{Error, Result};
use clap::Parser;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing_subscriber::EnvFilter;

use args::{Cli, Command, CustomerCommand};
use output::Output;
use signals::Answer;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(refusal) => {
            let json = std::env::args_os().any(|arg| arg == "--json");
            return output::usage(&refusal, json);
        }
    };
    let output = Output::new(cli.json);
    start_logging(&cli.command, cli.log_json);
    allow_many_open_files();
    run(cli, output).unwrap_or_else(|error| output.failure(&error))
}

fn run(cli: Cli, output: Output) -> Result<ExitCode> {
    let signals::Asked { cancel, stopping } = signals::listen(answer_to_signals(&cli.command))?;
    let config = Config::load(cli.config.as_deref(), &Environment::of_process())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|e| Error::io("cannot start the runtime", e))?;
    match cli.command {
        Command::Serve { worker } => {
            commands::serve::run(config, worker, &runtime, stopping, &cancel)
        }
        Command::Worker => commands::worker::run(config, &runtime, stopping, &cancel),
        Command::Migrate => commands::migrate::run(&config, output, &runtime),
        Command::Init { customers } => {
            commands::init::run(config, &customers, output, &runtime, &cancel)
        }
        Command::Backup(args) => commands::backup::run(config, args, output, &runtime, &cancel),
        Command::Daily => commands::daily::run(config, output, &runtime, &cancel),
        Command::Restore(args) => commands::restore::run(config, args, output, &runtime, &cancel),
        Command::List { customer } => {
            commands::list::run(config, customer, output, &runtime, &cancel)
        }
        Command::Jobs { customer } => commands::jobs::run(config, customer, output, &runtime),
        Command::Status { all } => commands::status::run(config, all, output, &runtime),
        Command::OperatorLine { name } => commands::operator::line(&name, output),
        Command::Cancel { job } => commands::cancel::run(config, job, output, &runtime),
        Command::Sync => commands::sync::run(config, output, &runtime, &cancel),
        Command::Recover => commands::recover::run(config, output, &runtime, &cancel),
        Command::Prune => commands::prune::run(config, output, &runtime, &cancel),
        Command::Check {
            read_data,
            read_data_subset,
        } => commands::check::run(
            config,
            read_data,
            read_data_subset,
            output,
            &runtime,
            &cancel,
        ),
        Command::Verify { customers } => {
            commands::verify::run(config, &customers, output, &runtime, &cancel)
        }
        Command::Unlock => commands::unlock::run(config, output, &runtime, &cancel),
        Command::Doctor { customer } => {
            commands::doctor::run(&config, customer, output, &runtime, &cancel)
        }
        Command::Customer(CustomerCommand::Add(args)) => {
            commands::customer::add(&config, args, output, &runtime)
        }
        Command::Customer(CustomerCommand::List) => {
            commands::customer::list(&config, output, &runtime)
        }
        Command::Customer(CustomerCommand::SetPassword(args)) => {
            commands::customer::set_password(&config, &args, output, &runtime)
        }
    }
}

/// Those that look at the flag between their steps cancel.
fn answer_to_signals(command: &Command) -> Answer {
    match command {
        Command::Backup(_)
        | Command::Daily
        | Command::Restore(_)
        | Command::Verify { .. }
        | Command::Doctor { .. } => Answer::Cancels,
        Command::Serve { .. } | Command::Worker => Answer::Finishes,
        Command::Migrate
        | Command::Init { .. }
        | Command::List { .. }
        | Command::Jobs { .. }
        | Command::Status { .. }
        | Command::OperatorLine { .. }
        | Command::Cancel { .. }
        | Command::Sync
        | Command::Recover
        | Command::Prune
        | Command::Check { .. }
        | Command::Unlock
        | Command::Customer(_) => Answer::CarriesOn,
    }
}

/// A deep directory tree holds a descriptor for every level; the usual limit of 1,024 is for programs that use `select`.
fn allow_many_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(e) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!("the limit of open files cannot be raised: {e}");
    }
}

/// The log goes to standard error; `RUST_LOG` says how much of it.
fn start_logging(command: &Command, as_json: bool) {
    // What rustic_core warns of and carries on with, our own code judges and reports.
    let usual = match command {
        Command::Serve { .. } | Command::Worker => "info,rustic_core=error,sqlx=warn,russh=warn",
        // What fails is told as the command's own result.
        _ => "warn,rustic_core=error,backup_core::worker::run=off,backup_core::worker::recover=off",
    };
    // Requests to an object store have their signature in the address, which ureq would log whole. What fails of them our own code tells.
    let without_addresses = |wanted: &str| format!("{wanted},ureq=off,ureq_proto=off");
    let usual = || EnvFilter::new(without_addresses(usual));
    let filter = match std::env::var("RUST_LOG") {
        Ok(wanted) if !wanted.is_empty() => EnvFilter::try_new(without_addresses(&wanted))
            .unwrap_or_else(|e| {
                output::message(&format!("warning: RUST_LOG is not understood: {e}"));
                usual()
            }),
        _ => usual(),
    };
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    if as_json {
        log.json().init();
    } else {
        log.with_ansi(output::is_watched()).init();
    }
}
