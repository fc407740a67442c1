//! `/login`.

use leptos::prelude::*;
use leptos_meta::Title;

/// The page on which a customer logs in.
#[component]
pub fn LoginView() -> impl IntoView {
    view! {
        <Title text="Log in" />
        <main>
            <h1>"Log in"</h1>
            <form method="post" action="/login">
                <label>"Email" <input type="email" name="email" autocomplete="username" required /></label>
                <label>"Password" <input type="password" name="password" autocomplete="current-password" required /></label>
                <button>"Log in"</button>
            </form>
        </main>
    }
}
