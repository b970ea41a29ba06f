//! The progress bar: phase, bytes, rate and time left, on a terminal only.

use std::sync::Mutex;

use failback_engine::{Event, Observer};
use indicatif::{ProgressBar, ProgressStyle};

const TEMPLATE: &str =
    "{msg:7} [{bar:30}] {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} eta {eta}";
const TEMPLATE_OPEN: &str = "{msg:7} {spinner} {binary_bytes} {binary_bytes_per_sec}";

/// Draws on stderr.
#[derive(Debug)]
pub(crate) struct Bar {
    bar: Mutex<ProgressBar>,
}

impl Bar {
    /// A bar that shows once there is something to show.
    pub(crate) fn new() -> Self {
        Self {
            bar: Mutex::new(ProgressBar::hidden()),
        }
    }

    fn show(&self, phase: &'static str, done: u64, total: u64) {
        let mut bar = self
            .bar
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if bar.message() != phase {
            bar.finish_and_clear();
            *bar = ProgressBar::new(total);
            bar.set_message(phase);
        }
        let template = if total == 0 { TEMPLATE_OPEN } else { TEMPLATE };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_length(total.max(done));
        bar.set_position(done);
    }
}

impl Observer for Bar {
    fn event(&self, event: &Event) {
        match event {
            Event::Progress {
                phase, done, total, ..
            } => self.show(phase, *done, *total),
            Event::Finished { .. } => {
                self.bar
                    .lock()
                    .unwrap_or_else(std::sync::PoisonError::into_inner)
                    .finish_and_clear();
            }
            _ => {}
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar
            .get_mut()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .finish_and_clear();
    }
}
