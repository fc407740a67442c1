//! What can be said on the command line.

use std::path::PathBuf;

use backup_core::catalog;
use backup_core::config::Sample;
use backup_core::customer::{CustomerId, DatabaseName};
use backup_core::jobs::JobId;
use backup_core::repository::BackupType;
use clap::{Args, Parser, Subcommand, ValueEnum};

/// Back up and restore the shops of a web-hosting company.
///
/// Exit status: 0 done, 1 failed (nothing changed unless it says so), 2 wrong usage or configuration.
#[derive(Debug, Parser)]
#[command(name = "shophosting-backup", version, arg_required_else_help = true)]
pub struct Cli {
    /// The configuration file [default: $SHOPHOSTING_BACKUP_CONFIG, ./backup.toml, /etc/shophosting/backup.toml, or
    /// the built-in configuration]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Print one JSON document on standard output; messages still go to standard error
    #[arg(long, global = true)]
    pub json: bool,

    /// Write the log, too, as JSON: one object a line
    #[arg(long, global = true)]
    pub log_json: bool,

    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Answer HTTP requests; with --worker, and without a configuration file always, run jobs as well
    Serve {
        /// Run the jobs of this server, too
        #[arg(long)]
        worker: bool,
    },
    /// Run the jobs of this server until SIGTERM: then finish the running ones and take no more
    Worker,
    /// Create or upgrade the tables in the platform's database
    Migrate,
    /// Create the repositories that do not exist yet
    Init {
        /// Where each customer has a repository of his own: of these customers, also if it was there before and is gone for good
        #[arg(value_name = "CUSTOMER")]
        customers: Vec<CustomerId>,
    },
    /// Back up a customer's files and database
    Backup(BackupArgs),
    /// Back up all customers of this server as one daily snapshot, and forget the daily ones that are too old; exit status 1 if
    /// something could not be saved
    Daily,
    /// Put a customer's site back to what a backup holds
    Restore(RestoreArgs),
    /// List a customer's backups
    List {
        /// The customer's number
        customer: CustomerId,
    },
    /// List the newest jobs
    Jobs {
        /// Of this customer only
        customer: Option<CustomerId>,
    },
    /// Show how the customers of this server are, what is wrong first; exit status 0: nothing needs a look, 3: something does
    Status {
        /// Those of every hosting server
        #[arg(long)]
        all: bool,
    },
    /// Cancel a job that waits, or that runs and has not come to its commit yet
    Cancel {
        /// The job's number
        job: JobId,
    },
    /// Bring the catalogue in step with the repositories
    Sync,
    /// Finish or undo restores that a crash interrupted; a worker does so by itself
    Recover,
    /// Free the space of backups that were forgotten, in the repositories that are ours; nothing else may use them meanwhile
    Prune,
    /// Check that the repositories are whole
    Check {
        /// Read all data, too, not only what describes it
        #[arg(long)]
        read_data: bool,
        /// Read some of the data: a share of it, as in 5%, or a part, n/t
        #[arg(long, value_name = "SUBSET", conflicts_with = "read_data")]
        read_data_subset: Option<Sample>,
    },
    /// Prove that the newest backups can be restored: restore each to a private place and a scratch schema, compare it, and remove it again; exit status 1
    /// if one cannot
    Verify {
        /// Of these customers only
        #[arg(value_name = "CUSTOMER")]
        customers: Vec<CustomerId>,
    },
    /// Remove locks that dead processes left in the repositories
    Unlock,
    /// Try every part of the configuration; say what is wrong and how to mend it
    Doctor {
        /// Of the customers, this one alone
        #[arg(long, value_name = "N")]
        customer: Option<CustomerId>,
    },
    /// Print the line of an operator for server.admins_file; the password is asked for on the terminal or read from standard input
    OperatorLine {
        /// What he is called
        name: String,
    },
    /// Customers of the embedded store
    #[command(subcommand)]
    Customer(CustomerCommand),
}

#[derive(Debug, Args)]
pub struct BackupArgs {
    /// The customer's number
    pub customer: CustomerId,
    /// What to back up
    #[arg(long = "type", value_enum, default_value_t = Part::Both, value_name = "TYPE")]
    pub part: Part,
    /// A few words for the list of backups
    #[arg(long, value_name = "TEXT")]
    pub note: Option<String>,
}

#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// The customer's number
    pub customer: CustomerId,
    /// The id of the backup, as `list` shows it
    pub snapshot: String,
    /// What to restore [default: all that the backup holds]
    #[arg(long = "type", value_enum, value_name = "TYPE")]
    pub part: Option<Part>,
    /// Which backups the id is one of
    #[arg(long, value_enum, default_value_t = Source::Manual)]
    pub source: Source,
    /// Leave the site up until the moment of the exchange
    #[arg(long)]
    pub online: bool,
    /// Yes, replace what is there now
    #[arg(long, required = true)]
    pub yes: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// The database
    Db,
    /// The files
    Files,
    /// Database and files
    Both,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Source {
    /// Made by hand
    Manual,
    /// Made every day by the platform
    Daily,
    /// Made of what an earlier restore replaced
    PreRestore,
}

impl From<Part> for BackupType {
    fn from(part: Part) -> Self {
        match part {
            Part::Db => Self::Db,
            Part::Files => Self::Files,
            Part::Both => Self::Both,
        }
    }
}

impl From<Source> for catalog::Source {
    fn from(source: Source) -> Self {
        match source {
            Source::Manual => Self::Manual,
            Source::Daily => Self::Daily,
            Source::PreRestore => Self::PreRestore,
        }
    }
}

#[derive(Debug, Subcommand)]
pub enum CustomerCommand {
    /// Add a customer
    Add(AddArgs),
    /// List all customers
    List,
    /// Give a customer a password for the dashboard, asked for on the terminal or read from standard input
    SetPassword(SetPasswordArgs),
}

#[derive(Debug, Args)]
pub struct SetPasswordArgs {
    /// The customer's number
    pub customer: CustomerId,
    /// The address that he logs in with [default: as it is]
    #[arg(long)]
    pub email: Option<String>,
}

#[derive(Debug, Args)]
pub struct AddArgs {
    /// The customer's number [default: the next]
    #[arg(long, value_name = "N")]
    pub id: Option<CustomerId>,
    /// The address that he logs in to the dashboard with
    #[arg(long)]
    pub email: Option<String>,
    /// The domain of the shop
    #[arg(long)]
    pub domain: Option<String>,
    /// The name of the shop's database [default: as customer_database.name has it]
    #[arg(long, value_name = "NAME")]
    pub db_name: Option<DatabaseName>,
    /// The customer's own account at the database server, which restored dumps are imported as
    #[arg(long, value_name = "USER", requires = "db_password_file")]
    pub db_user: Option<String>,
    /// A file that holds the password of that account
    #[arg(long, value_name = "FILE", requires = "db_user")]
    pub db_password_file: Option<PathBuf>,
    /// The local port that the shop answers on
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub web_port: Option<u16>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(std::iter::once("shophosting-backup").chain(line.split_whitespace()))
    }

    #[test]
    fn the_commands_of_the_contract_are_understood() {
        Cli::command().debug_assert();
        for line in [
            "init",
            "migrate",
            "serve",
            "serve --worker",
            "serve --log-json",
            "worker",
            "jobs",
            "jobs 7",
            "status",
            "status --all --json",
            "operator-line ops",
            "cancel 12",
            "sync",
            "daily",
            "daily --json",
            "backup 7",
            "backup 7 --type db --note x",
            "--config /etc/x.toml --json list 7",
            "list 7 --json",
            "restore 7 abcdef01 --yes",
            "restore 7 abcdef01 --type files --source pre-restore --online --yes",
            "prune",
            "check --read-data",
            "check --read-data-subset 5%",
            "check --read-data-subset 1/12",
            "verify",
            "verify 7 12 --json",
            "unlock",
            "doctor",
            "doctor --customer 7",
            "customer add",
            "customer add --id 7 --db-user u --db-password-file /f --web-port 8007",
            "customer list",
            "customer set-password 7",
            "customer set-password 7 --email a@b",
        ] {
            parse(line).unwrap_or_else(|e| panic!("{line}: {e}"));
        }
    }

    #[test]
    fn what_makes_no_sense_is_a_usage_error() {
        for line in [
            "",
            "backup",
            "backup 0",
            "backup 07",
            "backup -1",
            "backup customer-7",
            "backup 7 --type everything",
            "restore 7",
            "restore 7 abcdef01",
            "restore 7 abcdef01 --yes --source weekly",
            "customer add --db-password secret",
            "customer add --db-user u",
            "customer set-password",
            "customer set-password 7 secret",
            "customer add --web-port 0",
            "customer add --db-name a/b",
            "jobs all",
            "status 7",
            "operator-line",
            "operator-line ops secret",
            "daily 7",
            "cancel",
            "cancel x",
            "cancel -1",
            "check --read-data-subset 5",
            "check --read-data --read-data-subset 5%",
            "verify all",
            "frobnicate",
        ] {
            let error = parse(line).expect_err(line);
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }

    #[test]
    fn a_backup_is_of_both_parts_unless_told() {
        let Command::Backup(args) = parse("backup 7").unwrap().command else {
            panic!("not a backup")
        };
        assert_eq!(
            (args.customer.get(), args.part, args.note),
            (7, Part::Both, None)
        );
        let Command::Restore(args) = parse("restore 7 ab --yes").unwrap().command else {
            panic!("not a restore")
        };
        assert_eq!(
            (args.customer.get(), args.part, args.source),
            (7, None, Source::Manual)
        );
        assert_eq!(
            (args.snapshot.as_str(), args.online, args.yes),
            ("ab", false, true)
        );
    }
}
