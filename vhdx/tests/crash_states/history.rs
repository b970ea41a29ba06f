//! What each sector of a disk may read as after a power cut.

use std::collections::BTreeMap;
use std::ops::Range;

use failback_vhdx::Image;

use crate::record::SECTOR;
use crate::states::State;

/// Sectors that are watched, what they held before the session, and what happened to them. Times
/// are counts of recorded changes; sectors have 512 bytes, whatever the disk says.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    before: BTreeMap<u64, u8>,
    /// By sector: when a change began, and what it left there.
    changes: BTreeMap<u64, Vec<(usize, u8)>>,
    /// When each flush returned.
    flushes: Vec<usize>,
    /// When each close returned.
    closes: Vec<usize>,
}

impl History {
    /// Watches these sectors, which read through `image` as they do before the session.
    pub(crate) fn new(sectors: impl IntoIterator<Item = u64>, image: &Image) -> Self {
        let mut history = Self::default();
        for sector in sectors {
            let mut bytes = [0; SECTOR];
            image
                .read_at(sector * SECTOR as u64, &mut bytes)
                .expect("a sound image");
            history.before.insert(sector, bytes[0]);
            history.changes.insert(sector, Vec::new());
        }
        history
    }

    /// These sectors are about to be changed.
    pub(crate) fn change(&mut self, started: usize, sectors: &Range<u64>, byte: u8) {
        for (_, changes) in self.changes.range_mut(sectors.clone()) {
            changes.push((started, byte));
        }
    }

    pub(crate) fn flush(&mut self, done: usize) {
        self.flushes.push(done);
    }

    pub(crate) fn close(&mut self, done: usize) {
        self.flushes.push(done);
        self.closes.push(done);
    }

    /// Whether a close had returned and nothing was changed since, in the moment of the cut.
    pub(crate) fn is_at_rest(&self, state: &State) -> bool {
        let between = state.earliest..=state.latest;
        self.closes.iter().any(|close| between.contains(close))
    }

    /// Holds every watched sector against what it may be.
    ///
    /// Returns whether some sector reads otherwise than before the session.
    pub(crate) fn check(&self, image: &Image, state: &State) -> Result<bool, String> {
        let mut is_changed = false;
        let mut buf = Vec::new();
        let mut sectors = self.before.keys().copied().peekable();
        while let Some(first) = sectors.next() {
            let mut end = first + 1;
            while sectors.next_if_eq(&end).is_some() {
                end += 1;
            }
            buf.resize(usize::try_from(end - first).unwrap_or(0) * SECTOR, 0);
            image
                .read_at(first * SECTOR as u64, &mut buf)
                .map_err(|error| format!("sector {first}: {error}"))?;
            for (sector, bytes) in (first..end).zip(buf.chunks(SECTOR)) {
                let byte = bytes[0];
                if bytes.iter().any(|other| *other != byte) {
                    return Err(format!("sector {sector} is torn"));
                }
                is_changed |= byte != self.before[&sector];
                for cut in [state.earliest, state.latest] {
                    if !self.allows(sector, cut, byte) {
                        return Err(format!("sector {sector} reads {byte} at {cut}"));
                    }
                }
            }
        }
        Ok(is_changed)
    }

    /// What the last flush made durable, or some change begun after that.
    fn allows(&self, sector: u64, cut: usize, byte: u8) -> bool {
        let flushed = self.flushes.iter().rev().find(|done| **done <= cut);
        let flushed = flushed.copied().unwrap_or(0);
        let changes = &self.changes[&sector];
        let durable = changes.iter().rev().find(|(began, _)| *began < flushed);
        let durable = durable.map_or(self.before[&sector], |(_, durable)| *durable);
        let mut later = changes
            .iter()
            .filter(|(began, _)| (flushed..cut).contains(began));
        byte == durable || later.any(|(_, later)| *later == byte)
    }
}
