//! Which MiB of the file are in use: one bit for each.

use std::ops::Range;

use crate::format::{FILE_LEN_MAX, MIB, to_usize};

/// At most 16 MiB of bits, for the longest file there may be.
pub(super) struct Space {
    words: Vec<u64>,
    /// Whole MiB of the file that are looked at.
    mib_count: u64,
}

/// What is not in use.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unreferenced {
    pub(super) len: u64,
    pub(super) ranges: u64,
    /// Byte offset of the first range.
    pub(super) first_at: Option<u64>,
}

impl Space {
    /// For a file of `len` bytes, of which only the whole MiB count at the end.
    pub(super) fn new(len: u64) -> Self {
        let len = len.min(FILE_LEN_MAX);
        Self {
            words: vec![0; to_usize(len.div_ceil(MIB).div_ceil(64))],
            mib_count: len / MIB,
        }
    }

    /// Takes every MiB that `range` touches and gives the first offset that was taken before.
    /// What lies behind the space is not known here.
    pub(super) fn take(&mut self, range: &Range<u64>) -> Option<u64> {
        let end = range.end.div_ceil(MIB).min(self.words.len() as u64 * 64);
        let mut taken_before = None;
        let mut mib = range.start / MIB;
        while mib < end {
            let bit = mib % 64;
            let count = (64 - bit).min(end - mib);
            let mask = (u64::MAX >> (64 - count)) << bit;
            let word = &mut self.words[to_usize(mib / 64)];
            let before = *word & mask;
            if before != 0 && taken_before.is_none() {
                taken_before = Some((mib - bit + u64::from(before.trailing_zeros())) * MIB);
            }
            *word |= mask;
            mib += count;
        }
        taken_before
    }

    /// The whole MiB that nothing took.
    pub(super) fn unreferenced(&self) -> Unreferenced {
        let mut found = Unreferenced {
            len: 0,
            ranges: 0,
            first_at: None,
        };
        let mut was_free = false;
        let mut mib = 0;
        while mib < self.mib_count {
            let bit = mib % 64;
            let rest = self.words[to_usize(mib / 64)] >> bit;
            let is_free = rest & 1 == 0;
            let run = match is_free {
                true => rest.trailing_zeros(),
                false => rest.trailing_ones(),
            };
            let count = u64::from(run).min(64 - bit).min(self.mib_count - mib);
            if is_free {
                found.len += count * MIB;
                found.ranges += u64::from(!was_free);
                found.first_at.get_or_insert(mib * MIB);
            }
            was_free = is_free;
            mib += count;
        }
        found
    }
}

#[cfg(test)]
mod tests {
    // Goal: bits in words say the same as a set of MiB. Method: a naive twin over random ranges.
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn matches_naive(
            mib_count in 1..300_u64,
            ranges in proptest::collection::vec((0..300_u64, 1..90_u64), 0..8),
        ) {
            let mut space = Space::new(mib_count * MIB + 5);
            let mut naive = BTreeSet::new();
            for (start, count) in ranges {
                // The last word has bits for MiB behind the file; blocks never lie there.
                let mibs = start.min(mib_count)..(start + count).min(mib_count);
                let before = mibs.clone().find(|mib| naive.contains(mib));
                let found = space.take(&(mibs.start * MIB..mibs.end * MIB));
                prop_assert_eq!(found, before.map(|mib| mib * MIB));
                naive.extend(mibs);
            }
            let free: Vec<u64> = (0..mib_count).filter(|mib| !naive.contains(mib)).collect();
            let starts = free.iter().filter(|mib| **mib == 0 || !free.contains(&(**mib - 1)));
            let expected = Unreferenced {
                len: free.len() as u64 * MIB,
                ranges: starts.count() as u64,
                first_at: free.first().map(|mib| mib * MIB),
            };
            prop_assert_eq!(space.unreferenced(), expected);
        }
    }
}
