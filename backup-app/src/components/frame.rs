//! What is around every page of somebody who is logged in.

use leptos::prelude::*;

use super::at_once::at_once;
use super::icon::{Icon, Symbol};
use super::list::{UNDO, restore_address};
use crate::clock::Clock;
use crate::data::PageError;
use crate::live::Notices;
use crate::model::Viewer;

/// Header, notices and footer.
#[component]
pub fn Frame<C: IntoView + 'static>(viewer: Viewer, children: TypedChildren<C>) -> impl IntoView {
    let clock = Clock::start(&viewer);
    provide_context(clock);
    frame(viewer, clock, at_once(children.into_inner()()))
}

/// Who is logged in, and his way out, or to his account at the platform.
pub fn who(name: String, account_page: Option<String>) -> impl IntoView {
    view! {
        <p class="who"><span class="visually-hidden">"Logged in as "</span>{name}</p>
        {match account_page {
            // A page of the platform, even where it has the name of one of ours.
            Some(page) => view! { <a class="button quiet" href=page rel="external">"Your account"</a> }.into_any(),
            None => view! {
                <form method="post" action="/logout">
                    <button class="button quiet">"Log out"</button>
                </form>
            }.into_any(),
        }}
    }
}

fn frame(viewer: Viewer, clock: Clock, content: AnyView) -> impl IntoView {
    let notices: Notices = expect_context();
    if viewer.flash.is_some() {
        notices.message.set(viewer.flash);
    }
    view! {
        <header class="top">
            <div class="top-inside">
                <Brand />
                {who(viewer.name, viewer.account_page)}
            </div>
        </header>
        <main id="main">
            <div role="status">
                {move || (!notices.connected.get()).then(|| view! {
                    <p class="offline">"The connection is lost. What you see may be out of date; trying again …"</p>
                })}
            </div>
            <div role="status">
                {move || notices.message.get().filter(|message| message.success).map(|message| view! {
                    <p class="message" class:ended=message.is_end>
                        <Icon symbol=Symbol::Done />
                        <span>{message.message} " " {message.undo.map(|id| view! {
                            <a href=restore_address("/backups", &id) data-noscroll>{UNDO}</a>
                        })}</span>
                    </p>
                })}
            </div>
            {move || notices.message.get().filter(|message| !message.success).map(|message| view! {
                <p class="message bad" role="alert"><Icon symbol=Symbol::Failed /><span>{message.message}</span></p>
            })}
            {content}
        </main>
        <footer class="bottom">
            <p>"Times are those of " <span class="zone">{move || clock.zone.get()}</span> "."</p>
        </footer>
    }
}

/// Whose page this is; the way back to its beginning.
#[component]
pub fn Brand() -> impl IntoView {
    at_once(view! {
        <a class="brand" href="/backups">
            <Icon symbol=Symbol::Logo />
            <span>"ShopHosting " <b>"Backups"</b></span>
        </a>
    })
}

/// Until the data of a page is here: the frame stays, so that nothing jumps when it comes.
#[component]
pub fn Loading() -> impl IntoView {
    view! {
        <header class="top"><div class="top-inside"><Brand /></div></header>
        <main id="main" class="loading" aria-busy="true"><h1>"Loading …"</h1></main>
    }
}

/// Instead of a page that cannot be shown.
#[component]
pub fn PageProblem(problem: PageError, again: Callback<()>) -> impl IntoView {
    #[cfg(feature = "ssr")]
    crate::pages::answer_with(http_status(&problem));
    #[cfg(feature = "hydrate")]
    if problem == PageError::LoggedOut {
        crate::live::log_in_again();
    }
    let (title, text) = match problem {
        PageError::LoggedOut => (
            "You were logged out",
            "Nothing is lost: log in again and go on.",
        ),
        PageError::Unavailable | PageError::Unreachable => (
            "This page cannot be shown right now",
            "Your shop and your backups are not affected. Please try again in a minute.",
        ),
    };
    view! {
        <main id="main" class="alone">
            <Brand />
            <section class="panel">
                <h1>{title}</h1>
                <p>{text}</p>
                <p>
                    <a class="button primary" href="" on:click=move |event| {
                        event.prevent_default();
                        again.run(());
                    }>"Try again"</a>
                </p>
            </section>
        </main>
    }
}

#[cfg(feature = "ssr")]
fn http_status(problem: &PageError) -> axum::http::StatusCode {
    use axum::http::StatusCode;
    match problem {
        PageError::LoggedOut => StatusCode::UNAUTHORIZED,
        PageError::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        PageError::Unreachable => StatusCode::INTERNAL_SERVER_ERROR,
    }
}
