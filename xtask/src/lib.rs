//! What the demo, the benchmarks and the tests share: private servers and real data.
//!
//! Everything starts on free ports in scratch directories and is gone when its value is dropped. It knows the product
//! only from outside: its configuration and its command line.

pub mod certificate;
pub mod dist;
pub mod host;
pub mod init;
pub mod machine;
pub mod mariadb;
pub mod mount;
pub mod nginx;
pub mod port;
mod private;
pub mod product;
pub mod proxy;
pub mod receiver;
pub mod redis;
pub mod restic;
pub mod s3;
pub mod sandbox;
pub mod script;
pub mod smtp;
pub mod sshd;
pub mod synthetic;
pub mod testbed;
pub mod tree;
pub mod unit;
