//! What completing a job would cost, and when another pass is not worth it. Pure.

use super::fence::Times;
use super::history::Pass;
use super::journal::{Basis, DowntimePart, Fact};
use super::spec::Policy;

/// A pass that took more than this share of the one before did not get shorter.
const SHRINKS: f64 = 0.8;
/// Passes that a job makes by itself before it waits.
const PASSES_MAX: usize = 8;
/// Bytes per second at which a stage is applied where nothing was measured.
const APPLY_RATE: f64 = 150e6;

/// Why no further pass is made at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Settled {
    /// The predicted downtime is within the budget.
    WithinBudget,
    /// The last one found nothing to copy: neither will the next, by all that is known.
    NothingChanged,
    /// Passes do not get shorter.
    NotShrinking,
    /// Enough of them.
    Enough,
}

impl Settled {
    pub(crate) fn code(self) -> &'static str {
        match self {
            Self::WithinBudget => "within_budget",
            Self::NothingChanged => "nothing_changed",
            Self::NotShrinking => "not_shrinking",
            Self::Enough => "enough_passes",
        }
    }
}

/// Seconds from the request to stop until the target runs, if that came now: the guest shuts down,
/// one more pass like the last, what is staged goes to its place unless a new file takes it, and
/// the target starts. `written` are the bytes that wait in logs.
pub(crate) fn downtime(policy: &Policy, times: Times, copy: Copying, written: u64) -> Forecast {
    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    let apply = written as f64 / APPLY_RATE;
    let part = |part: &str, seconds, basis| DowntimePart {
        part: part.to_owned(),
        seconds,
        basis,
    };
    let machine = |name, measured: Option<f64>, assumed: std::time::Duration| match measured {
        Some(seconds) => part(name, seconds, Basis::Measured),
        None => part(name, assumed.as_secs_f64(), Basis::Assumed),
    };
    let parts = vec![
        machine("stop", times.stop, policy.expected_stop),
        part("copy", copy.seconds, copy.basis),
        part("apply", apply, Basis::Assumed),
        machine("start", times.start, policy.expected_start),
    ];
    Forecast {
        seconds: parts.iter().map(|part| part.seconds).sum(),
        parts,
    }
}

/// Copying what is left once the source has stopped.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Copying {
    pub(crate) seconds: f64,
    pub(crate) basis: Basis,
}

impl Copying {
    /// It takes as long as the last pass did.
    pub(crate) fn like_the_last(passes: &[Pass]) -> Option<Self> {
        passes.last().map(|pass| Self {
            seconds: pass.seconds,
            basis: Basis::Measured,
        })
    }
}

/// A downtime to be expected.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Forecast {
    pub(crate) seconds: f64,
    pub(crate) parts: Vec<DowntimePart>,
}

impl Forecast {
    pub(crate) fn fact(self) -> Fact {
        Fact::Predicted {
            downtime: self.seconds,
            parts: self.parts,
        }
    }
}

/// Whether another pass is not worth it now.
pub(crate) fn settled(policy: &Policy, passes: &[Pass], predicted: Option<f64>) -> Option<Settled> {
    if let (Some(budget), Some(predicted)) = (policy.downtime_budget, predicted)
        && predicted <= budget.as_secs_f64()
    {
        return Some(Settled::WithinBudget);
    }
    let last = passes.last().map_or(&[][..], |pass| &pass.disks);
    if !last.is_empty() && last.iter().all(|moved| moved.changed == 0) {
        return Some(Settled::NothingChanged);
    }
    let seconds: Vec<f64> = passes.iter().map(|pass| pass.seconds).collect();
    let stays = |pair: &[f64]| pair[1] > SHRINKS * pair[0];
    let last_two = seconds.len().saturating_sub(3);
    let in_a_row = seconds[last_two..]
        .windows(2)
        .filter(|pair| stays(pair))
        .count();
    match (in_a_row, passes.len()) {
        (2.., _) => Some(Settled::NotShrinking),
        (_, PASSES_MAX..) => Some(Settled::Enough),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::job::Moved;

    fn passes(seconds: &[f64]) -> Vec<Pass> {
        let pass = |(seconds, number): (&f64, u32)| Pass {
            number,
            seconds: *seconds,
            disks: Vec::new(),
        };
        seconds.iter().zip(1..).map(pass).collect()
    }

    // Goal: passes go on as long as they help, and the reason for stopping is the true one. Method:
    // series of passes.
    #[test]
    fn passes_go_on_while_they_shrink() {
        let policy = Policy::default();
        let of = |seconds: &[f64]| settled(&policy, &passes(seconds), None);
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[100.0]), None);
        assert_eq!(of(&[100.0, 20.0, 4.0]), None);
        assert_eq!(of(&[100.0, 20.0, 19.0]), None);
        assert_eq!(of(&[100.0, 20.0, 19.0, 18.0]), Some(Settled::NotShrinking));
        assert_eq!(of(&[100.0, 20.0, 19.0, 4.0]), None);
        let halves: Vec<f64> = (0..8).map(|n| 1000.0 / f64::from(1 << n)).collect();
        assert_eq!(of(&halves), Some(Settled::Enough));
        let policy = Policy {
            downtime_budget: Some(Duration::from_secs(30)),
            ..Policy::default()
        };
        let of = |predicted| settled(&policy, &passes(&[100.0]), Some(predicted));
        assert_eq!(of(30.0), Some(Settled::WithinBudget));
        assert_eq!(of(30.1), None);
    }

    // Goal: passes do not go on over nothing, also without a budget. Method: disks that changed,
    // one that did, none that did.
    #[test]
    fn an_empty_pass_is_the_last() {
        let of = |changed: [u64; 2]| {
            let moved = |changed| Moved {
                changed,
                ..Moved::default()
            };
            let mut passes = passes(&[100.0, 20.0]);
            passes[0].disks = [1, 1].map(moved).to_vec();
            passes[1].disks = changed.map(moved).to_vec();
            settled(&Policy::default(), &passes, Some(20.0))
        };
        assert_eq!(of([4096, 4096]), None);
        assert_eq!(of([0, 4096]), None);
        assert_eq!(of([0, 0]), Some(Settled::NothingChanged));
    }

    // Goal: the forecast has every part of the downtime. Method: add one after the other.
    #[test]
    fn a_forecast_adds_up() {
        let policy = Policy {
            expected_stop: Duration::from_secs(3),
            expected_start: Duration::from_secs(1),
            ..Policy::default()
        };
        let of = |times, written| {
            let copy = Copying::like_the_last(&passes(&[10.0])).unwrap();
            downtime(&policy, times, copy, written)
        };
        assert!(Copying::like_the_last(&[]).is_none());
        let none = Times::default();
        assert_eq!(of(none, 0).seconds, 14.0);
        assert_eq!(of(none, 300_000_000).seconds, 16.0);
        let times = Times {
            stop: Some(20.0),
            start: None,
        };
        let learned = of(times, 0);
        assert_eq!(learned.seconds, 31.0);
        let bases: Vec<_> = learned.parts.iter().map(|part| part.basis.name()).collect();
        assert_eq!(bases, ["measured", "measured", "assumed", "assumed"]);
    }
}
