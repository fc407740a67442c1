//! The commands, one file each.

pub mod customer;
pub mod doctor;
