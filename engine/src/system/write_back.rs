//! Begins early with what a flush would have to write: docs/decisions/0026.

use std::fs::File;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use super::platform;

/// Bytes of a write from which on it counts. Of small ones others may come to lie beside them.
pub(super) const LARGE_WRITE: u64 = 256 << 10;
/// Bytes that were written near each other, for which the system is asked to begin: to ask can cost
/// a look at all processors.
const ASKED_LEN: u64 = 4 << 20;
/// Writes of several threads come in no order; what lies further apart is asked for by itself.
const NEAR_LEN: u64 = 4 * ASKED_LEN;

/// What was written to a file and not yet asked for. Only a hint: nothing is durable before a
/// flush.
#[derive(Debug, Default)]
pub(super) struct WriteBack {
    unasked: Mutex<Unasked>,
}

#[derive(Debug, Default)]
struct Unasked {
    range: Range<u64>,
    bytes: u64,
}

impl WriteBack {
    /// So many bytes were written at `at`.
    pub(super) fn wrote(&self, file: &File, at: u64, len: u64) {
        if len < LARGE_WRITE {
            return;
        }
        let mut unasked = self.unasked.lock().unwrap_or_else(PoisonError::into_inner);
        let due = unasked.add(&(at..at.saturating_add(len)));
        drop(unasked);
        if let Some(range) = due {
            platform::start_write_back(file, range.start, range.end - range.start);
        }
    }
}

impl Unasked {
    /// Takes a range in; gives back one that is due.
    fn add(&mut self, written: &Range<u64>) -> Option<Range<u64>> {
        let len = written.end - written.start;
        let both = match self.bytes {
            0 => written.clone(),
            _ => self.range.start.min(written.start)..self.range.end.max(written.end),
        };
        if both.end - both.start > NEAR_LEN.max(len) {
            self.bytes = len;
            return Some(std::mem::replace(&mut self.range, written.clone()));
        }
        self.bytes += len;
        self.range = both;
        if self.bytes < ASKED_LEN {
            return None;
        }
        self.bytes = 0;
        Some(std::mem::take(&mut self.range))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    // Goal: what was written is asked for once, in pieces, in whatever order it came, and what lies
    // far away is not asked for with it. Method: blocks out of order, a jump, one long write.
    #[test]
    fn neighbours_are_asked_for_together() {
        let mut unasked = Unasked::default();
        let mut add = |block: u64, blocks: u64| {
            let due = unasked.add(&(block * MIB..(block + blocks) * MIB));
            due.map(|range| range.start / MIB..range.end / MIB)
        };
        assert_eq!([add(1, 1), add(0, 1), add(3, 1)], [None, None, None]);
        assert_eq!(add(2, 1), Some(0..4));

        assert_eq!([add(4, 1), add(5, 1)], [None, None]);
        assert_eq!(add(1000, 1), Some(4..6));
        assert_eq!([add(1001, 1), add(1002, 1)], [None, None]);
        assert_eq!(add(1003, 1), Some(1000..1004));

        assert_eq!(add(2000, 64), Some(2000..2064));
        assert_eq!(add(2064, 1), None);
    }
}
