//! Progress bars, where somebody watches; warnings always.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use backup_core::progress::{Monitor, Phase};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::output;

/// The monitor for a command: bars on a terminal, else warnings only.
pub fn monitor() -> Arc<dyn Monitor> {
    if output::is_watched() {
        Arc::new(Bars::new(ProgressDrawTarget::stderr()))
    } else {
        Arc::new(Warnings)
    }
}

/// Says warnings and nothing else.
struct Warnings;

impl Monitor for Warnings {
    fn warning(&self, text: &str) {
        output::message(&format!("warning: {text}"));
    }
}

/// One line that shows the running phase.
struct Bars {
    bar: ProgressBar,
    phase: Mutex<Option<Phase>>,
}

impl Bars {
    fn new(target: ProgressDrawTarget) -> Self {
        let bar = ProgressBar::with_draw_target(None, target);
        bar.set_style(style(false));
        bar.enable_steady_tick(Duration::from_millis(200));
        Self {
            bar,
            phase: Mutex::new(None),
        }
    }
}

impl Monitor for Bars {
    fn phase(&self, phase: Phase) {
        let mut running = self.phase.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(done) = running.replace(phase)
            && done != phase
        {
            let (seconds, bytes) = (self.bar.elapsed().as_secs_f64(), self.bar.position());
            self.bar.println(match bytes {
                0 => format!("{done}: {seconds:.1} s"),
                _ => format!("{done}: {seconds:.1} s, {}", indicatif::HumanBytes(bytes)),
            });
        }
        self.bar.reset();
        self.bar.unset_length();
        self.bar.set_style(style(false));
        self.bar.set_message(phase.to_string());
    }

    fn bytes_total(&self, bytes: u64) {
        self.bar.set_length(bytes);
        self.bar.set_style(style(true));
    }

    fn bytes_done(&self, bytes: u64) {
        self.bar.inc(bytes);
    }

    fn warning(&self, text: &str) {
        self.bar
            .suspend(|| output::message(&format!("warning: {text}")));
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

fn style(total_is_known: bool) -> ProgressStyle {
    let template = if total_is_known {
        "{spinner} {msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}"
    } else {
        "{spinner} {msg} {bytes} {elapsed}"
    };
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_templates_of_the_bars_are_understood() {
        for template in [true, false] {
            let _ = style(template);
        }
        assert!(
            ProgressStyle::with_template(
                "{spinner} {msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}"
            )
            .is_ok()
        );
    }

    #[test]
    fn a_phase_starts_its_count_over() {
        let bars = Bars::new(ProgressDrawTarget::hidden());
        bars.phase(Phase::Saving);
        bars.bytes_total(10);
        bars.bytes_done(7);
        assert_eq!((bars.bar.position(), bars.bar.length()), (7, Some(10)));
        bars.phase(Phase::Committing);
        assert_eq!((bars.bar.position(), bars.bar.length()), (0, None));
        let silent = monitor();
        silent.phase(Phase::Saving);
    }
}
