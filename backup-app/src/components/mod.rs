//! What pages are made of.

mod ask;
mod at_once;
mod dialog;
mod form;
mod frame;
mod icon;
mod job;
mod list;
mod time;

pub use ask::{Kept, Questions};
pub use at_once::at_once;
pub use dialog::{Leave, use_ask};
#[cfg(feature = "ssr")]
pub use frame::who;
pub use frame::{Brand, Frame, Loading, PageProblem};
pub use icon::{Icon, Symbol};
pub use job::{JobCards, RecentJobs};
pub use list::{BackupList, Choices, DailyBackups, RestoreLink, WhyOff};
pub use time::{Age, When};
