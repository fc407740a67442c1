//! What signals do: nothing is killed in the middle. What can be cancelled is asked to, what cannot ends by itself.

use backup_core::error::{Error, Result};
use backup_core::progress::Cancel;
use backup_core::worker::Stopping;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tokio::sync::watch;

use crate::output;

/// What a command makes of SIGINT and SIGTERM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It looks at the flag between its steps, and cleans up.
    Cancels,
    /// It waits out no outage of a backup server any more, but never looks otherwise. It may hold a lock or be in the middle of a change.
    CarriesOn,
    /// It takes no more jobs and finishes the running ones; asked again, it stops them, too.
    Finishes,
}

/// How a command learns of signals.
#[derive(Debug)]
pub struct Asked {
    /// To end what runs.
    pub cancel: Cancel,
    /// To take no more jobs.
    pub stopping: watch::Receiver<Stopping>,
}

/// From now on SIGINT and SIGTERM are answered as the command really behaves, as often as they come. SIGHUP does
/// nothing: other backup programs send it to learn whether the owner of a lock lives.
pub fn listen(answer: Answer) -> Result<Asked> {
    let (stopping, receiver) = watch::channel(Stopping::No);
    let cancel = Cancel::new();
    let flag = cancel.clone();
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])
        .map_err(|e| Error::io("cannot listen to signals", e))?;
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            for signal in signals.forever() {
                if signal == SIGHUP {
                    continue;
                }
                let is_first = *stopping.borrow() == Stopping::No;
                output::message(match answer {
                    Answer::CarriesOn => "this command cannot be cancelled: it ends by itself",
                    Answer::Cancels if is_first => "cancelling…",
                    Answer::Cancels => "still cancelling: cleaning up…",
                    Answer::Finishes if is_first => {
                        "ending: finishing the running jobs (once more to stop them)…"
                    }
                    Answer::Finishes => "stopping the running jobs…",
                });
                if answer == Answer::Finishes && is_first {
                    stopping.send_replace(Stopping::Finish);
                } else {
                    stopping.send_replace(Stopping::Abort);
                    flag.cancel();
                }
            }
        })
        .map_err(|e| Error::io("cannot start a thread", e))?;
    Ok(Asked {
        cancel,
        stopping: receiver,
    })
}
