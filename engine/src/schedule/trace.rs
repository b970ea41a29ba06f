//! What happened in a simulation, to be compared with what happened the next time.

use std::time::Duration;

/// One thing that happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// When, in the simulation's time.
    pub at: Duration,
    /// On which thread, numbered in the order in which they began.
    pub thread: usize,
    /// What.
    pub what: &'static str,
    /// What it was about; by itself it says nothing.
    pub about: (u64, u64),
}

/// All that happened, in order. Two runs of a seed have equal traces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    /// In order.
    pub events: Vec<Event>,
    /// How long it took, in the simulation's time.
    pub time: Duration,
    /// How often a thread was chosen.
    pub steps: u64,
}

impl Trace {
    /// Where the traces part: the index, and what each has there.
    #[must_use]
    pub fn first_difference(&self, other: &Self) -> Option<(usize, [Option<Event>; 2])> {
        let len = self.events.len().max(other.events.len());
        let pair = |index: usize| [self, other].map(|trace| trace.events.get(index).copied());
        let different = |index: &usize| pair(*index)[0] != pair(*index)[1];
        (0..len).find(different).map(|index| (index, pair(index)))
    }
}
