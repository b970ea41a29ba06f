//! Where the bytes of a virtual disk lie on the device, and what differs between two such layouts.
//!
//! ```text
//! disk   |-- A --|------ zero ------|-- B --|      VHDX: by its table; raw: the file itself
//! file         |-- B --|~~ hole ~~|-- A --|        by FIEMAP
//! device    @a0            @b0
//! layout |-- @a0 --|------ zero ------|-- @b0 --|  what is compared
//! ```
//! Two ranges that lie at the same place of the same device are the same bytes: a file system that
//! shares bytes between files writes changed ones elsewhere.

use std::ops::Range;

use failback_vhdx::{Place, Run};

use crate::system::{FilePlace, FileRun};
use crate::units::ByteOffset;

/// What a stretch of a disk holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Held {
    /// The bytes of the device from this byte on, shared with other files.
    At(u64),
    /// Zeros.
    Zero,
    /// Nobody knows: taken for changed.
    Doubt,
}

/// A stretch of a disk, which begins where the one before ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stretch {
    pub(super) end: u64,
    pub(super) held: Held,
}

/// A whole disk in stretches, the first one from 0 on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Layout {
    stretches: Vec<Stretch>,
}

impl Layout {
    /// A disk that is a file of `len` bytes with these runs, ascending and apart; holes between.
    pub(super) fn of_file(runs: &[FileRun], len: u64) -> Self {
        let mut layout = Self::default();
        layout.push_file(runs, 0..len, len);
        layout
    }

    /// A disk whose bytes lie in a file of `file_len` bytes as `places` say: in order, without
    /// gaps, from 0 on.
    pub(super) fn of_image(places: &[Run], runs: &[FileRun], file_len: u64) -> Self {
        let mut layout = Self::default();
        for Run { disk, place } in places {
            let len = disk.end - disk.start;
            match *place {
                Place::Zero => layout.push(len, Held::Zero),
                Place::File { at } => match at.checked_add(len) {
                    Some(end) => layout.push_file(runs, at..end, file_len),
                    None => layout.push(len, Held::Doubt),
                },
                Place::Replayed | Place::Parent => layout.push(len, Held::Doubt),
            }
        }
        layout
    }

    /// What these bytes of the file hold. Behind its end nothing is known.
    fn push_file(&mut self, runs: &[FileRun], bytes: Range<u64>, file_len: u64) {
        let first = runs.partition_point(|run| run.end <= bytes.start);
        let mut at = bytes.start;
        for run in &runs[first..] {
            if run.start >= bytes.end {
                break;
            }
            // The last block of a file reaches over its end.
            let (start, end) = (run.start.clamp(at, bytes.end), run.end.min(bytes.end));
            self.push_hole(at..start, file_len);
            let held = match run.place {
                FilePlace::Shared { at } => Held::At(at + (start - run.start)),
                FilePlace::Zero => Held::Zero,
                FilePlace::Unknown => Held::Doubt,
            };
            self.push(end.saturating_sub(start), held);
            at = end.max(at);
        }
        self.push_hole(at..bytes.end, file_len);
    }

    fn push_hole(&mut self, bytes: Range<u64>, file_len: u64) {
        let inside = bytes.end.min(file_len).saturating_sub(bytes.start);
        self.push(inside, Held::Zero);
        self.push(
            (bytes.end - bytes.start).saturating_sub(inside),
            Held::Doubt,
        );
    }

    fn push(&mut self, len: u64, held: Held) {
        let start = self.end();
        if len == 0 {
            return;
        }
        let last_len = match self.stretches.as_slice() {
            [.., before, last] => last.end - before.end,
            [last] => last.end,
            [] => 0,
        };
        if let Some(last) = self.stretches.last_mut() {
            let continues = match (last.held, held) {
                (Held::At(at), Held::At(next)) => at.checked_add(last_len) == Some(next),
                (last, next) => last == next,
            };
            if continues {
                last.end = start + len;
                return;
            }
        }
        self.stretches.push(Stretch {
            end: start + len,
            held,
        });
    }

    fn end(&self) -> u64 {
        self.stretches.last().map_or(0, |last| last.end)
    }
}

/// What may differ between two disks of the same length, in order and apart. Costs what the number
/// of stretches costs.
pub(super) fn differing(then: &Layout, now: &Layout) -> Vec<Range<ByteOffset>> {
    let mut ranges: Vec<Range<ByteOffset>> = Vec::new();
    let (mut old, mut new) = (then.stretches.iter(), now.stretches.iter());
    let (mut a, mut b) = (old.next(), new.next());
    // Where the stretch that holds `at` begins, on each side.
    let (mut a_start, mut b_start, mut at) = (0, 0, 0);
    while let (Some(then), Some(now)) = (a, b) {
        let end = then.end.min(now.end);
        let is_same = match (then.held, now.held) {
            (Held::Zero, Held::Zero) => true,
            (Held::At(a), Held::At(b)) => a + (at - a_start) == b + (at - b_start),
            _ => false,
        };
        if !is_same {
            match ranges.last_mut() {
                Some(last) if last.end.0 == at => last.end = ByteOffset(end),
                _ => ranges.push(ByteOffset(at)..ByteOffset(end)),
            }
        }
        if then.end == end {
            (a, a_start) = (old.next(), end);
        }
        if now.end == end {
            (b, b_start) = (new.next(), end);
        }
        at = end;
    }
    // One side is shorter than it said: nothing is known of the rest.
    let end = then.end().max(now.end());
    if at < end {
        match ranges.last_mut() {
            Some(last) if last.end.0 == at => last.end = ByteOffset(end),
            _ => ranges.push(ByteOffset(at)..ByteOffset(end)),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LEN: u64 = 64;

    /// What each byte holds, one by one.
    fn bytes(layout: &Layout) -> Vec<Held> {
        let mut all = Vec::new();
        for stretch in &layout.stretches {
            let start = all.len() as u64;
            all.extend((start..stretch.end).map(|at| match stretch.held {
                Held::At(place) => Held::At(place + (at - start)),
                other => other,
            }));
        }
        all
    }

    /// The same from the runs of a file, without looking for the right one.
    fn naive(runs: &[FileRun], bytes: Range<u64>, file_len: u64) -> Vec<Held> {
        let held = |at: u64| match runs.iter().find(|run| (run.start..run.end).contains(&at)) {
            None if at < file_len => Held::Zero,
            None => Held::Doubt,
            Some(run) => match run.place {
                FilePlace::Shared { at: place } => Held::At(place + (at - run.start)),
                FilePlace::Zero => Held::Zero,
                FilePlace::Unknown => Held::Doubt,
            },
        };
        bytes.map(held).collect()
    }

    fn runs() -> impl Strategy<Value = Vec<FileRun>> {
        let one = (0..4_u64, 1..9_u64, 0..4_u64, 0..5_u8);
        prop::collection::vec(one, 0..12).prop_map(|parts| {
            let mut at = 0;
            let run = |(gap, len, place, kind)| {
                let start = at + gap;
                at = start + len;
                let place = match kind {
                    0 => FilePlace::Zero,
                    1 => FilePlace::Unknown,
                    _ => FilePlace::Shared {
                        at: place * 16 + start,
                    },
                };
                FileRun {
                    start,
                    end: at,
                    place,
                }
            };
            parts.into_iter().map(run).collect()
        })
    }

    proptest! {
        // Goal: a layout says of each byte what the file's runs say. Method: byte by byte.
        #[test]
        fn files_match_naive(runs in runs(), len in 1..=LEN) {
            let layout = Layout::of_file(&runs, len);
            prop_assert_eq!(bytes(&layout), naive(&runs, 0..len, len));
        }

        // Goal: pieces of a disk that lie about in a file keep what they hold. Method: byte by
        // byte.
        #[test]
        fn images_match_naive(
            runs in runs(),
            pieces in prop::collection::vec((0..LEN, 1..9_u64, 0..4_u8), 1..9),
        ) {
            let (mut at, mut places, mut expected) = (0, Vec::new(), Vec::new());
            for (from, len, kind) in pieces {
                let place = match kind {
                    0 => Place::Zero,
                    1 => Place::Replayed,
                    _ => Place::File { at: from },
                };
                expected.extend(match place {
                    Place::Zero => vec![Held::Zero; usize::try_from(len).unwrap()],
                    Place::File { at } => naive(&runs, at..at + len, LEN),
                    _ => vec![Held::Doubt; usize::try_from(len).unwrap()],
                });
                places.push(Run { disk: at..at + len, place });
                at += len;
            }
            prop_assert_eq!(bytes(&Layout::of_image(&places, &runs, LEN)), expected);
        }

        // Goal: exactly the bytes that are not known to be the same are named, in order and apart.
        // Method: byte by byte.
        #[test]
        fn differences_match_naive(
            (then, now) in (runs(), runs()),
            lens in (1..=LEN, 1..=LEN),
        ) {
            let (then, now) = (Layout::of_file(&then, lens.0), Layout::of_file(&now, lens.1));
            let found = differing(&then, &now);
            let is_named = |at: u64| found.iter().any(|r| (r.start.0..r.end.0).contains(&at));
            let (then, now) = (bytes(&then), bytes(&now));
            for at in 0..lens.0.max(lens.1) {
                let index = usize::try_from(at).unwrap();
                let both = then.get(index).zip(now.get(index));
                let is_same = both.is_some_and(|(a, b)| a == b && *a != Held::Doubt);
                prop_assert_eq!(is_named(at), !is_same, "byte {}", at);
            }
            prop_assert!(found.iter().all(|range| range.start < range.end));
            prop_assert!(found.windows(2).all(|pair| pair[0].end < pair[1].start));
        }
    }
}
