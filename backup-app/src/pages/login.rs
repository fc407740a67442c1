//! `/login`.

use leptos::prelude::*;
use leptos_router::hooks::use_query_map;

use super::name_page;
use crate::components::{Icon, Symbol, at_once};

/// The page on which a customer logs in. A plain form: the browser posts it and goes where the server says.
#[component]
pub fn LoginView() -> impl IntoView {
    let query = use_query_map();
    let problem = move || query.with(|query| query.get_str("problem").and_then(in_words));
    let email = typed_email();
    let is_known = email.is_some();
    name_page(|| "Log in");
    at_once(view! {
        <main id="main" class="alone">
            <p class="brand">
                <Icon symbol=Symbol::Logo />
                <span>"ShopHosting " <b>"Backups"</b></span>
            </p>
            <section class="panel" aria-labelledby="login-title">
                <h1 id="login-title">"Log in"</h1>
                {move || problem().map(|problem| view! { <p class="refusal" role="alert">{problem}</p> })}
                <form method="post" action="/login">
                    <label class="field">
                        <span>"Email"</span>
                        <input type="email" name="email" value=email autocomplete="username" required maxlength="254" autofocus=!is_known />
                    </label>
                    <label class="field">
                        <span>"Password"</span>
                        <input type="password" name="password" autocomplete="current-password" required maxlength="1000" autofocus=is_known />
                    </label>
                    <button class="button primary wide">"Log in"</button>
                </form>
            </section>
            <p class="quiet">"Email and password are those of your hosting account."</p>
        </main>
    })
}

/// What the server writes into the form; the browser leaves it there.
fn typed_email() -> Option<String> {
    #[cfg(feature = "ssr")]
    {
        let request = use_context::<axum::http::request::Parts>()?;
        let crate::visit::TypedEmail(email) = request.extensions.get()?;
        Some(email.clone())
    }
    #[cfg(feature = "hydrate")]
    None
}

fn in_words(problem: &str) -> Option<&'static str> {
    Some(match problem {
        "wrong" => "Email or password is not right. Please try again.",
        "slow" => "Too many tries. Please wait a few minutes, then try again.",
        "inactive" => "This account is not active. Please contact support.",
        "unavailable" => "Logging in does not work right now. Please try again in a minute.",
        "expired" => "Your session has ended. Please log in again.",
        _ => return None,
    })
}
