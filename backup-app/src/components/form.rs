//! Forms that act: plain ones that the browser posts, sent by `fetch` where there is JavaScript.

use leptos::ev::SubmitEvent;
use leptos::html;
use leptos::prelude::*;

use super::at_once::at_once;
use crate::live::Live;
use crate::model::Outcome;

/// A form that acts. What it refuses is said in it; `done` is called for what was accepted.
#[component]
pub fn ActionForm<C: IntoView + 'static>(
    /// Where it is posted.
    action: String,
    /// Whether it is being sent: buttons are off then.
    #[prop(optional)]
    sending: RwSignal<bool>,
    /// The way on after success.
    done: Callback<Outcome>,
    children: TypedChildren<C>,
) -> impl IntoView {
    form(action, sending, done, at_once(children.into_inner()()))
}

fn form(
    action: String,
    sending: RwSignal<bool>,
    done: Callback<Outcome>,
    content: AnyView,
) -> AnyView {
    let live: Live = expect_context();
    let refusal = RwSignal::new(None::<String>);
    let refused = NodeRef::<html::P>::new();
    let submit = move |event: SubmitEvent| {
        #[cfg(feature = "hydrate")]
        browser::submit(&event, live, sending, refusal, done);
        #[cfg(feature = "ssr")]
        let _ = (event, live, sending, done, refusal);
    };
    // The button that had the focus was off meanwhile.
    Effect::new(move |_| {
        if let (Some(element), true) = (refused.get(), refusal.with(Option::is_some)) {
            let _ = element.focus();
        }
    });
    at_once(view! {
        <form method="post" action=action on:submit=submit aria-busy=move || sending.get().then_some("true")>
            {content}
            {move || refusal.get().map(|refusal| view! {
                <p class="refusal" role="alert" tabindex="-1" node_ref=refused>{refusal}</p>
            })}
        </form>
    })
}

#[cfg(feature = "hydrate")]
mod browser {
    use gloo_net::http::Request;
    use leptos::ev::SubmitEvent;
    use leptos::prelude::*;
    use leptos::task::spawn_local;
    use wasm_bindgen::JsCast;
    use web_sys::{FormData, HtmlFormElement, UrlSearchParams};

    use crate::live::{Live, log_in_again};
    use crate::model::{Flash, Outcome};

    pub fn submit(
        event: &SubmitEvent,
        live: Live,
        sending: RwSignal<bool>,
        refusal: RwSignal<Option<String>>,
        done: Callback<Outcome>,
    ) {
        let Some((url, fields)) = read(event) else {
            // The browser posts it itself.
            return;
        };
        event.prevent_default();
        if sending.get_untracked() {
            return;
        }
        sending.set(true);
        refusal.set(None);
        spawn_local(async move {
            let outcome = post(&url, fields).await;
            sending.set(false);
            // The form may have been left meanwhile: then the page has to tell.
            let message = match outcome {
                Some(outcome) if outcome.success => {
                    if done.try_run(outcome).is_none() {
                        live.changed();
                    }
                    return;
                }
                Some(outcome) => outcome.message,
                None => "No answer came from the server. Look whether it has begun before you try again.".into(),
            };
            if let Some(Some(message)) = refusal.try_set(Some(message)) {
                let success = false;
                let undo = None;
                let is_end = false;
                live.notices.message.set(Some(Flash {
                    success,
                    message,
                    undo,
                    is_end,
                }));
            }
        });
    }

    fn read(event: &SubmitEvent) -> Option<(String, UrlSearchParams)> {
        let form: HtmlFormElement = event.target()?.dyn_into().ok()?;
        let fields = FormData::new_with_form(&form).ok()?;
        let fields = UrlSearchParams::new_with_str_sequence_sequence(&fields).ok()?;
        // Not `form.action`: a field may be called so.
        Some((form.get_attribute("action")?, fields))
    }

    /// None where no answer came that can be understood.
    async fn post(url: &str, fields: UrlSearchParams) -> Option<Outcome> {
        let answer = Request::post(url)
            .header("Accept", "application/json")
            .body(fields)
            .ok()?
            .send()
            .await
            .ok()?;
        if answer.status() == 401 {
            log_in_again();
        }
        answer.json().await.ok()
    }
}
