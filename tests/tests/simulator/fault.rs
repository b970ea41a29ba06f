//! What is to go wrong, and when.

use std::time::Duration;

use failback_engine::schedule::Dice;

use crate::world::TARGET;

/// How a change fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// No room; nor is there for what comes after it.
    Full,
    /// The medium says that it failed.
    Error,
}

/// How a medium says that it did what it did not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lie {
    /// Nothing was written.
    Lost,
    /// It was written elsewhere.
    Misdirected,
    /// Only the first half was written.
    Torn,
}

/// What goes wrong on a host. Numbers count down.
#[derive(Clone, Debug, Default)]
pub(crate) struct HostFaults {
    /// Changes until the process dies in the midst of one.
    pub(crate) dies_in: Option<u64>,
    /// Changes until one fails.
    pub(crate) fails_in: Option<(u64, Failure)>,
    /// Reads until one fails.
    pub(crate) read_fails_in: Option<u64>,
    /// Writes to the target until one is a lie.
    pub(crate) lies_in: Option<(u64, Lie)>,
    /// Calls until one panics.
    pub(crate) panics_in: Option<u64>,
    /// The one that was.
    pub(crate) lied: Option<Lie>,
    /// There is no room any more.
    pub(crate) is_full: bool,
}

impl HostFaults {
    pub(crate) fn is_death_due(&mut self) -> bool {
        is_due(&mut self.dies_in)
    }

    pub(crate) fn is_read_due(&mut self) -> bool {
        is_due(&mut self.read_fails_in)
    }

    pub(crate) fn failure_due(&mut self, takes_room: bool) -> Option<Failure> {
        if self.is_full && takes_room {
            return Some(Failure::Full);
        }
        let (left, failure) = self.fails_in?;
        if left > 0 {
            self.fails_in = Some((left - 1, failure));
            return None;
        }
        self.fails_in = None;
        let is_full = failure == Failure::Full;
        self.is_full |= is_full;
        // What takes no room does not fail for want of it.
        (takes_room || !is_full).then_some(failure)
    }

    pub(crate) fn lie_due(&mut self, file: usize, is_write: bool) -> Option<Lie> {
        if file != TARGET || !is_write {
            return None;
        }
        let (left, lie) = self.lies_in?;
        if left > 0 {
            self.lies_in = Some((left - 1, lie));
            return None;
        }
        self.lies_in = None;
        self.lied = Some(lie);
        Some(lie)
    }
}

/// Counts down; whether it is the one.
pub(crate) fn is_due(left: &mut Option<u64>) -> bool {
    match left {
        None => false,
        Some(0) => {
            *left = None;
            true
        }
        Some(left) => {
            *left -= 1;
            false
        }
    }
}

/// What a planted panic says.
pub(crate) const PLANTED: &str = "planted panic";

/// What a link does to what is sent, once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LinkFault {
    /// Both ends find it gone, and what was on its way is lost.
    Cut,
    /// Nothing arrives any more, and nobody is told.
    Silence,
    /// One bit arrives changed.
    Flip,
    /// A part arrives twice.
    Duplicate,
    /// A part does not arrive.
    Drop,
    /// A part arrives after the one that was sent after it.
    Swap,
    /// A part, and all after it, arrive so much later.
    Delay(Duration),
}

impl LinkFault {
    pub(crate) fn any(dice: &mut Dice) -> Self {
        match dice.below(10) {
            0..4 => Self::Cut,
            4 => Self::Silence,
            5 => Self::Flip,
            6 => Self::Duplicate,
            7 => Self::Drop,
            8 => Self::Swap,
            _ => Self::Delay(Duration::from_millis(dice.below(30_000))),
        }
    }
}

/// Everything that goes wrong in one session.
#[derive(Clone, Debug, Default)]
pub(crate) struct Faults {
    pub(crate) host: HostFaults,
    /// After so many parts in the direction of the source (0) or the target (1).
    pub(crate) link: Option<(usize, u64, LinkFault)>,
    /// The source's disk changes after so many reads of it.
    pub(crate) source_changes_in: Option<u64>,
    /// A read of the source panics.
    pub(crate) source_panics_in: Option<u64>,
    /// A read of the source fails.
    pub(crate) source_fails_in: Option<u64>,
    /// Somebody cancels the source's side (0) or the target's (1) then.
    pub(crate) cancel: Option<(usize, Duration)>,
}

impl Faults {
    /// What the dice say: one thing mostly, sometimes two. A medium lies only where that is wanted.
    pub(crate) fn any(dice: &mut Dice, may_lie: bool) -> Self {
        let mut faults = Self::default();
        let count = [0, 1, 1, 1, 1, 2][dice.index(6)];
        for _ in 0..count {
            faults.add(dice);
        }
        if may_lie && dice.one_in(2) {
            let lie = [Lie::Lost, Lie::Misdirected, Lie::Torn][dice.index(3)];
            faults.host.lies_in = Some((dice.below(12), lie));
        }
        faults
    }

    fn add(&mut self, dice: &mut Dice) {
        match dice.below(16) {
            0..6 => self.host.dies_in = Some(changes(dice)),
            6..9 => {
                let failure = [Failure::Full, Failure::Error][dice.index(2)];
                self.host.fails_in = Some((changes(dice), failure));
            }
            9 => self.host.read_fails_in = Some(dice.below(100)),
            10..13 => {
                let limit = 1 << (1 + dice.below(5));
                let parts = dice.below(limit);
                self.link = Some((dice.index(2), parts, LinkFault::any(dice)));
            }
            13 => self.source_changes_in = Some(dice.below(14)),
            14 => self.source_fails_in = Some(dice.below(24)),
            _ => {
                let after = Duration::from_micros(dice.below(60_000));
                self.cancel = Some((dice.index(2), after));
            }
        }
    }
}

/// Of a sync's few dozen changes; the first ones and the last ones are as likely to be met.
fn changes(dice: &mut Dice) -> u64 {
    let limit = 1 << (2 + dice.below(5));
    dice.below(limit)
}
