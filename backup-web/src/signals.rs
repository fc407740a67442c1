//! What signals do: they ask, and never kill in the middle of something.

use backup_core::error::{Error, Result};
use backup_core::progress::Cancel;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::output;

/// From now on SIGINT and SIGTERM set the flag, as often as they come: what runs ends by itself, after it has cleaned up.
/// SIGHUP does nothing: other backup programs send it to learn whether the owner of a lock lives.
pub fn cancel_on_signals() -> Result<Cancel> {
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
                output::message(if flag.is_cancelled() {
                    "still cancelling: cleaning up…"
                } else {
                    "cancelling…"
                });
                flag.cancel();
            }
        })
        .map_err(|e| Error::io("cannot start a thread", e))?;
    Ok(cancel)
}
