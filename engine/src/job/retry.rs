//! When a job that stands for a reason that may pass goes on by itself.

use std::time::Duration;

use super::history::History;
use super::journal::{Fact, now_ms};
use super::run::Stay;

/// Minutes that a job waits before each try, and then before every further one.
const MINUTES: [u64; 5] = [1, 2, 4, 8, 10];
const MINUTES_AFTER: u64 = 30;

/// The time by which a suspended job waits.
pub trait Clock: Send + Sync + std::fmt::Debug {
    /// Milliseconds since 1970.
    fn now_ms(&self) -> u64;

    /// Lets so much time go by.
    fn pause(&self, time: Duration);
}

/// The host's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostClock;

impl Clock for HostClock {
    fn now_ms(&self) -> u64 {
        now_ms()
    }

    fn pause(&self, time: Duration) {
        std::thread::sleep(time);
    }
}

/// How long is waited before this attempt, the first being 1.
pub(crate) fn delay(attempt: u32) -> Duration {
    let number = usize::try_from(attempt.saturating_sub(1)).unwrap_or(usize::MAX);
    Duration::from_mins(MINUTES.get(number).copied().unwrap_or(MINUTES_AFTER))
}

/// The next try of a job that stands: a time that is noted already, or the attempt that is to be
/// noted. `None` for one that does not go on by itself.
pub(crate) enum Next {
    /// Milliseconds since 1970.
    At(u64),
    /// Its number.
    Attempt(u32),
}

/// Whether a job that stands goes on by itself, as its caller wants it to.
pub(crate) fn is_wanted(history: History<'_>, stay: Stay) -> bool {
    let is_wanted = stay.retries || (stay.retries_while_off && is_off(history));
    is_wanted && next(history).is_some()
}

/// Whether the source is stopped for the job, or is being stopped, and the target was not started.
fn is_off(history: History<'_>) -> bool {
    history.is_off()
}

pub(crate) fn next(history: History<'_>) -> Option<Next> {
    if let Some((at_ms, _)) = history.retry() {
        return Some(Next::At(at_ms));
    }
    // Nothing is worth more tries than starting what nobody runs.
    let is_worth_it = history.is_giving_back() && history.is_off();
    match history.failure()? {
        Fact::Failed { is_transient, .. } if *is_transient || is_worth_it => {
            Some(Next::Attempt(history.retries() + 1))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Goal: the waits are those that were promised. Method: all of them.
    #[test]
    fn waits_grow_and_then_stay() {
        let minutes: Vec<_> = (1..=8).map(|it| delay(it).as_secs() / 60).collect();
        assert_eq!(minutes, [1, 2, 4, 8, 10, 30, 30, 30]);
        assert_eq!(delay(u32::MAX).as_secs(), 1800);
    }
}
