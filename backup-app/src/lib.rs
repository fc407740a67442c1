//! The dashboard: what a customer sees of his backups, rendered on the server and brought to life in the browser.
//!
//! Reading goes through server functions, which call [`BackupService`](backup_core::service::BackupService); acting goes through the same routes that
//! scripts use (`POST /backups/create` …), from a plain form or, where there is JavaScript, by `fetch`. Never: a page that needs
//! JavaScript to be understood; a word about another customer; a style or script inline without the nonce of the answer.

mod app;
mod clock;
mod components;
pub mod data;
mod live;
pub mod model;
mod pages;
#[cfg(feature = "ssr")]
pub mod plain;
#[cfg(feature = "ssr")]
pub mod visit;
pub mod words;

pub use app::App;
#[cfg(feature = "ssr")]
pub use app::shell;

/// Which sources this was built of: what a browser loads fits only where it is of the same.
#[cfg(feature = "ssr")]
pub const BUILD: &str = env!("BACKUP_APP_BUILD");

/// Take over the page that the server rendered.
#[cfg(feature = "hydrate")]
#[wasm_bindgen::prelude::wasm_bindgen]
pub fn hydrate() {
    console_error_panic_hook::set_once();
    leptos::mount::hydrate_body(App);
}
