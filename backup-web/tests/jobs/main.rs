//! What jobs promise, through the program, its workers and real servers: killed, stopped, cut off and cancelled at any moment, a job
//! ends once, truthfully, and with exactly one backup or none.

mod cancel;
mod daily_work;
mod death;
mod listeners;
mod messages;
mod notify;
mod outages;
mod signals;
mod world;
