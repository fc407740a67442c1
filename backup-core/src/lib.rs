//! The engine of ShopHosting Backups: back up and restore the shops of a web-hosting company.
#![deny(missing_docs)]

pub mod catalog;
pub mod config;
pub mod customer;
pub mod database;
pub mod error;
pub mod jobs;
pub mod operations;
pub mod process;
pub mod progress;
pub mod repository;
pub mod service;
pub mod site;
pub mod storage;
pub mod store;
pub mod worker;
