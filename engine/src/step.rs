//! One step of a job, as those who do it see it.

use std::fmt;
use std::time::Duration;

use crate::abort::CancelToken;
use crate::error::{Error, ErrorKind, Result};
use crate::event::Observer;
use crate::schedule::{now, sleep};

/// One step of a job: for whom something is done, and who hears of it.
///
/// Asked twice for the same step, an implementation does it once, or again with the same effect: a
/// job that was interrupted begins again with the step that it was in.
#[derive(Clone, Copy)]
pub struct Step<'a> {
    /// The job's id.
    pub job: &'a str,
    /// What the step is called in that job: `stopping_source`.
    pub name: &'a str,
    /// Receives what happens.
    pub observer: &'a dyn Observer,
    /// Ends the step early.
    pub cancel: &'a CancelToken,
}

impl fmt::Debug for Step<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Step")
            .field("job", &self.job)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Step<'_> {
    /// Fails once the step is cancelled.
    ///
    /// # Errors
    /// `Cancelled`.
    pub fn check(&self) -> Result<()> {
        match self.cancel.is_cancelled() {
            false => Ok(()),
            true => Err(Error::new(ErrorKind::Cancelled, "cancelled")),
        }
    }

    /// Waits for so long, or until the step is cancelled.
    ///
    /// # Errors
    /// `Cancelled`.
    pub fn wait(&self, time: Duration) -> Result<()> {
        let from = now();
        loop {
            self.check()?;
            let rest = time.saturating_sub(now().saturating_duration_since(from));
            if rest.is_zero() {
                return Ok(());
            }
            sleep(rest.min(LOOK_EVERY));
        }
    }
}

/// How long a cancel may go unseen.
const LOOK_EVERY: Duration = Duration::from_millis(50);
