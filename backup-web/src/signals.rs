//! What signals do: nothing is killed in the middle. What can be cancelled is asked to, what cannot ends by itself.

use backup_core::error::{Error, Result};
use backup_core::progress::Cancel;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::output;

/// What a command makes of SIGINT and SIGTERM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It looks at the flag between its steps, and cleans up.
    Cancels,
    /// It never looks. It may hold a lock or be in the middle of a change.
    CarriesOn,
}

/// From now on SIGINT and SIGTERM set the flag and are answered as the command really behaves, as often as they come. SIGHUP does
/// nothing: other backup programs send it to learn whether the owner of a lock lives.
pub fn cancel_on_signals(answer: Answer) -> Result<Cancel> {
    let cancel = Cancel::new();
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])
        .map_err(|e| Error::io("cannot listen to signals", e))?;
    let flag = cancel.clone();
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            for signal in signals.forever() {
                if signal == SIGHUP {
                    continue;
                }
                output::message(match answer {
                    Answer::CarriesOn => "this command cannot be cancelled: it ends by itself",
                    Answer::Cancels if flag.is_cancelled() => "still cancelling: cleaning up…",
                    Answer::Cancels => "cancelling…",
                });
                flag.cancel();
            }
        })
        .map_err(|e| Error::io("cannot start a thread", e))?;
    Ok(cancel)
}
