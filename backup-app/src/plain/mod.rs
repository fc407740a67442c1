//! Pages that the server renders alone: no script, no hydration, so that they cost the bundle nothing.
//!
//! They have the style of the other pages, and say times as those do. Never: a part that does nothing without JavaScript.

mod activity;
mod admin;
mod times;

use leptos::prelude::*;

pub use activity::{ActivityPage, sentence};
pub use admin::{AdminLoginPage, AdminPage};
use times::Zone;

use crate::app::head;
use crate::components::{Icon, Symbol};

/// What is around the content of a page.
struct Document<'a> {
    /// In the tab of the browser.
    title: &'a str,
    /// Where the style is, if there is one.
    stylesheet: Option<&'a str>,
}

impl Document<'_> {
    /// The whole document, its body made by `body`.
    fn render<V: IntoView + 'static>(self, body: impl FnOnce() -> V) -> String {
        let title = [self.title, " · ShopHosting Backups"].concat();
        let stylesheet = self.stylesheet.map(str::to_owned);
        // What a view may ask for while it is made ends with it.
        let owner = Owner::new();
        let html = owner.with(|| {
            view! {
                <html lang="en">
                    <head>
                        {head()}
                        {stylesheet.map(|place| view! { <link rel="stylesheet" href=place /> })}
                        <title>{title}</title>
                    </head>
                    <body>{body()}</body>
                </html>
            }
            .to_html()
        });
        ["<!DOCTYPE html>", &html, "\n"].concat()
    }
}

/// Whose pages these are, and what they are of.
fn brand(href: &'static str, of: &'static str) -> impl IntoView {
    view! {
        <a class="brand" href=href>
            <Icon symbol=Symbol::Logo />
            <span>"ShopHosting " <b>{of}</b></span>
        </a>
    }
}

/// In which zone times are told.
fn footer(zone: &Zone) -> impl IntoView + use<> {
    let zone = zone.name().to_owned();
    view! {
        <footer class="bottom">
            <p>"Times are those of " <span class="zone">{zone}</span> "."</p>
        </footer>
    }
}

/// A picture that is on these pages alone.
fn picture(path: &'static str) -> impl IntoView {
    view! {
        <svg class="icon" viewBox="0 0 24 24" aria-hidden="true" focusable="false">
            <path d=path />
        </svg>
    }
}
