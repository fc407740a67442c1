//! Back up and restore the shops of a web-hosting company: jobs, the catalogue of backups, and the engine.
//!
//! A shop is a directory of files and a MySQL database. Repositories are in the format of restic, so that the stock program can restore all of
//! it, too. This is the library behind the program `shophosting-backup`; other services use it the same way.
//!
//! # Where to begin
//!
//! [`service::BackupService`] is all that most callers need. It queues backups and restores, lists them, cancels them and tells their progress,
//! with a database and nothing else at hand: no repository, no password of one.
//!
//! ```no_run
//! use std::sync::Arc;
//!
//! use backup_core::config::{Config, Environment};
//! use backup_core::operations::{BackupRequest, Engine};
//! use backup_core::progress::Cancel;
//! use backup_core::repository::BackupType;
//! use backup_core::service::BackupService;
//! use backup_core::worker::Stopping;
//!
//! # async fn example() -> backup_core::error::Result<()> {
//! let config = Config::load(None, &Environment::of_process())?;
//! let service = BackupService::connect(config.clone()).await?;
//! let request = BackupRequest { backup_type: BackupType::Both, note: None };
//! service.create_backup("7".parse()?, &request).await?;
//!
//! // Here, or in another process on another machine: whoever has an engine can run the jobs.
//! let engine = Arc::new(Engine::new(config, &Cancel::new()));
//! let (stop, stopping) = tokio::sync::watch::channel(Stopping::No);
//! let worker = tokio::spawn(service.worker(engine).run(stopping));
//! # stop.send_replace(Stopping::Finish);
//! # worker.await.ok();
//! # Ok(())
//! # }
//! ```
//!
//! `examples/quickstart.rs` goes from a configuration made in the program to a restored site, and shows the rooms below as well: a directory and
//! the output of any dump command as one snapshot, without customers and jobs. The [`guide`] goes on from there: sources and storages of one's own,
//! progress, cancelling, errors.
//!
//! # The rooms
//!
//! Each knows rooms below it and none above.
//!
//! - [`service`]: the façade. [`worker`]: runs jobs, and may die at any instruction.
//! - [`operations`]: a backup and a restore as lists of steps, each with one commit point. They block.
//! - [`audit`]: who did what, from where and when, as rows.
//! - [`login`]: whose a password is. [`session`]: who is logged in, as rows.
//! - [`jobs`]: the table of jobs, with leases and wake-ups. [`catalog`]: which backups exist, as rows.
//! - [`notify`]: telling that a job has ended, by webhook and email.
//! - [`database`]: dumps, and imports that cannot reach beyond their schema. [`site`]: a customer's directory, stopped, exchanged, started.
//! - [`repository`]: the restic format: save, list, restore, forget, prune. [`storage`]: where its files are.
//! - [`store`]: the SQL database, MySQL or SQLite. [`process`]: the one way to run a program.
//! - [`config`], [`customer`], [`error`], [`progress`]: the ground floor. Every failure is an [`error::Error`], one sentence for an operator with its
//!   cause; every operation is watched and stopped by a [`progress::Control`].
#![deny(missing_docs)]

#[doc = include_str!("../README.md")]
pub mod guide {}

// Part of this crate's interface: a caller needs them in the same versions.
pub use {bytes, jiff, secrecy, url};

pub mod audit;
pub mod catalog;
pub mod config;
pub mod customer;
pub mod database;
pub mod error;
mod fault;
pub mod jobs;
pub mod login;
pub mod notify;
pub mod operations;
pub mod process;
pub mod progress;
pub mod repository;
pub mod service;
pub mod session;
pub mod site;
pub mod storage;
pub mod store;
pub mod worker;
