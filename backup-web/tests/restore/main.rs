//! Restores through the program itself, among real servers: that what was backed up comes back, that a restore which fails
//! leaves everything as it was, and that nobody comes by it to anything that is not his.

mod world;

mod attacks;
mod crash;
mod daily;
mod disaster;
mod failures;
mod faults;
mod links;
mod migrating;
mod our_daily;
mod ownership;
mod proven;
mod recovery;
mod refusals;
mod round_trip;
mod undo;
mod visitor;
