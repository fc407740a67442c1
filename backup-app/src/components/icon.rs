//! The few pictures there are: drawn here, decorative, in the colour of the text.

use leptos::prelude::*;

use crate::model::Part;

/// What a picture shows.
#[derive(Clone, Copy)]
pub enum Symbol {
    /// The product: a shop under a roof, kept safe.
    Logo,
    /// A database.
    Database,
    /// Files.
    Files,
    /// Both.
    Both,
    /// Done.
    Done,
    /// Failed.
    Failed,
    /// Cancelled, or not known.
    Stopped,
    /// Going back.
    Back,
}

impl Symbol {
    /// The picture for what a backup holds.
    pub fn of(part: Part) -> Self {
        match part {
            Part::Db => Self::Database,
            Part::Files => Self::Files,
            Part::Both => Self::Both,
        }
    }

    fn path(self) -> &'static str {
        match self {
            Self::Logo => {
                "M3.5 9.5 5 4h14l1.5 5.5M5 12.5V20h14v-7.5M3.5 9.5a2.8 2.8 0 0 0 5.6 0 2.9 2.9 0 0 0 5.8 0 2.8 2.8 0 0 0 5.6 0M9 16.2l2.2 2.1 4-4"
            }
            Self::Database => {
                "M4.5 6c0-1.7 3.4-3 7.5-3s7.5 1.3 7.5 3-3.4 3-7.5 3-7.5-1.3-7.5-3v12c0 1.7 3.4 3 7.5 3s7.5-1.3 7.5-3V6M4.5 12c0 1.7 3.4 3 7.5 3s7.5-1.3 7.5-3"
            }
            Self::Files => {
                "M3 7.5V18a2 2 0 0 0 2 2h14a2 2 0 0 0 2-2V9.500a2 2 0 0 0-2-2h-7L9.800 5H5a2 2 0 0 0-2 2.500Z"
            }
            Self::Both => {
                "M2.500 5.500c0-1.200 2.500-2.200 5.500-2.200s5.500 1 5.500 2.200-2.500 2.200-5.500 2.200-5.500-1-5.500-2.200v9c0 1.100 2 2 4.500 2.200M2.500 10c0 1 1.800 1.900 4.200 2.100M13.500 5.500v2.600M10 12.500v6.200c0 .9.700 1.600 1.600 1.600h8.300c.9 0 1.600-.7 1.600-1.600v-4.600c0-.9-.7-1.600-1.600-1.600h-4l-1.300-1.600h-3c-.9 0-1.600.700-1.600 1.600Z"
            }
            Self::Done => "m5 12.500 4.500 4.500L19 7.500",
            Self::Failed => "M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18M12 7.500V13M12 16.500v.1",
            Self::Stopped => "M6 6l12 12M18 6 6 18",
            Self::Back => "M14.500 5.500 8 12l6.500 6.500",
        }
    }
}

/// One of them.
#[component]
pub fn Icon(symbol: Symbol) -> impl IntoView {
    view! {
        <svg class="icon" viewBox="0 0 24 24" aria-hidden="true" focusable="false">
            <path d=symbol.path() />
        </svg>
    }
}
