//! What is to be done for customers: the jobs, and how workers learn of them.
//!
//! Never: a job that is known only outside of the database.

mod queue;

pub use queue::Queue;
