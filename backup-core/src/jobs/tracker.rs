//! Counts what a running job does, for whoever writes it down.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::Progress;
use crate::progress::{Monitor, Phase};

/// A monitor that counts, and passes everything on to another one.
pub(crate) struct Tracker {
    inner: Arc<dyn Monitor>,
    done: AtomicU64,
    files: AtomicU64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    phase: Option<Phase>,
    total: Option<u64>,
    /// When the rate was last computed, from which count.
    measured: Option<(Instant, u64)>,
    rate: Option<f64>,
}

impl Tracker {
    pub(crate) fn over(inner: Arc<dyn Monitor>) -> Self {
        Self {
            inner,
            done: AtomicU64::new(0),
            files: AtomicU64::new(0),
            state: Mutex::default(),
        }
    }

    /// How far it is now. The rate is of the time since the last call, smoothed.
    pub(crate) fn progress(&self) -> Progress {
        const WEIGHT_OF_NEW: f64 = 0.4;
        let mut state = self.state();
        let (now, done) = (Instant::now(), self.done.load(Ordering::Relaxed));
        if let Some((then, before)) = state.measured {
            let seconds = now.duration_since(then).as_secs_f64();
            if seconds > 0.0 {
                #[allow(clippy::cast_precision_loss)]
                let newest = done.saturating_sub(before) as f64 / seconds;
                state.rate = Some(state.rate.map_or(newest, |rate| {
                    rate * (1.0 - WEIGHT_OF_NEW) + newest * WEIGHT_OF_NEW
                }));
            }
        }
        state.measured = Some((now, done));
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let bytes_per_second = state.rate.map(|rate| rate as u64);
        Progress {
            phase: state.phase,
            bytes_done: done,
            // It was a guess that was too low: nobody knows.
            bytes_total: state.total.filter(|total| *total >= done),
            files_done: self.files.load(Ordering::Relaxed),
            bytes_per_second,
        }
    }

    /// Whether the operation does more than look.
    pub(crate) fn has_begun(&self) -> bool {
        !matches!(self.state().phase, None | Some(Phase::Preparing))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Monitor for Tracker {
    fn phase(&self, phase: Phase) {
        {
            let mut state = self.state();
            *state = State {
                phase: Some(phase),
                ..State::default()
            };
            self.done.store(0, Ordering::Relaxed);
            self.files.store(0, Ordering::Relaxed);
        }
        self.inner.phase(phase);
    }

    fn bytes_total(&self, bytes: u64) {
        self.state().total = Some(bytes);
        self.inner.bytes_total(bytes);
    }

    fn bytes_done(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
        self.inner.bytes_done(bytes);
    }

    fn files_done(&self, files: u64) {
        self.files.fetch_add(files, Ordering::Relaxed);
        self.inner.files_done(files);
    }

    fn warning(&self, text: &str) {
        self.inner.warning(text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::NoMonitor;

    #[test]
    fn a_phase_counts_for_itself_and_never_more_than_all() {
        let tracker = Tracker::over(Arc::new(NoMonitor));
        tracker.phase(Phase::Saving);
        tracker.bytes_total(10);
        tracker.bytes_done(10);
        tracker.files_done(2);
        let progress = tracker.progress();
        assert_eq!(progress.phase, Some(Phase::Saving));
        assert_eq!((progress.bytes_done, progress.bytes_total), (10, Some(10)));
        tracker.bytes_done(15);
        let progress = tracker.progress();
        assert_eq!((progress.bytes_done, progress.bytes_total), (25, None));
        assert_eq!(progress.files_done, 2);
        tracker.phase(Phase::Committing);
        let progress = tracker.progress();
        assert_eq!((progress.bytes_done, progress.bytes_total), (0, None));
    }
}
