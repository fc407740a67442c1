//! The pages, one file each.

mod backup;
mod backups;
mod login;

pub use backup::BackupView;
pub use backups::BackupsView;
pub use login::LoginView;
