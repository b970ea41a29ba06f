//! Which pieces of a disk are looked at, and what two sides' pieces say of the whole.

use std::collections::HashSet;
use std::ops::Range;

use super::cost::Change;
use super::interval::Interval;
use super::number::float;
use crate::draws::Draws;
use crate::units::{BlockSize, SUB_BLOCK_LEN};

/// Bytes of a piece: what a guest writes at once is rarely more.
pub const PIECE_LEN: u64 = 64 << 10;
/// Bytes of a span: long enough that a disk reads it as it reads a scan.
pub const SPAN_LEN: u64 = 1 << 20;
/// Most pieces: at 1,000 a share of 1 % is known to 0.6 %.
pub const PIECE_COUNT_MAX: usize = 1000;
/// Most spans: a quarter of a second of a slow disk, and what a fast one reads in some 50 ms.
pub const SPAN_COUNT_MAX: usize = 256;
/// Of what is allocated, so many parts in a hundred are read at most.
const PERCENT_MAX: u64 = 3;
/// One part in so many is read as pieces, the rest of that as spans.
const PIECES_OF_ALLOCATED: u64 = 100;
/// With fewer pieces the share that differs is known too badly to choose by (at 44, half of a disk
/// was taken for 61 %), ...
const PIECES_WANTED: u64 = 200;
/// ... so of a small disk more of it goes to pieces: up to one part in so many.
const PIECES_OF_SMALL: u64 = 50;
/// Draws for each piece that is wanted: some are drawn twice.
const DRAWS_EACH: usize = 4;
/// Pieces in a span.
const SPAN_PIECES: u64 = SPAN_LEN / PIECE_LEN;
/// Sub-blocks in a piece.
pub(super) const SUMS: usize = 16;
const _: () = assert!(SUMS as u64 * SUB_BLOCK_LEN as u64 == PIECE_LEN);
/// So many spans must speak against the assumption that changes are scattered.
const SCATTERED_WEIGHT: f64 = 4.0;

/// A sum of 16 bits for each sub-block of a piece; 0 where it holds zeros. One in 65,535 changes is
/// overlooked, which no estimate notices.
pub type PieceSums = [u16; SUMS];

/// What is to be looked at, in the order drawn: whoever has no time for all looks at the first
/// ones.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Picks {
    /// Positions in units of [`PIECE_LEN`].
    pub pieces: Vec<u32>,
    /// Positions in units of [`SPAN_LEN`].
    pub spans: Vec<u32>,
}

/// Pieces, and spans, that a sync looks at first. Reading and hashing spans is most of what that
/// costs; a dozen give a median, and pieces alone say how much differs.
const FIRST_PIECES: usize = 200;
const FIRST_SPANS: usize = 12;

impl Picks {
    /// The first of them: enough where much or little differs.
    #[must_use]
    pub fn first(&self) -> Self {
        let some = |of: &[u32], count: usize| of[..count.min(of.len())].to_vec();
        Self {
            pieces: some(&self.pieces, FIRST_PIECES),
            spans: some(&self.spans, FIRST_SPANS),
        }
    }
}

/// Draws pieces and spans from those that hold data: the same for the same seed and runs. `runs`:
/// bytes of the disk that are allocated, ascending, none overlapping.
#[must_use]
pub fn pick(seed: u64, runs: &[Range<u64>]) -> Picks {
    let allocated = Allocated::new(runs);
    let mut draws = Draws::of(seed);
    let all = allocated.count;
    let pieces = (all / PIECES_OF_SMALL).min(PIECES_WANTED);
    let pieces = pieces.max(all / PIECES_OF_ALLOCATED);
    let spans = (all * PERCENT_MAX / 100 - pieces) / SPAN_PIECES;
    let at_most = |count: u64, max: usize| usize::try_from(count).map_or(max, |it| it.min(max));
    let (pieces, spans) = (
        at_most(pieces, PIECE_COUNT_MAX),
        at_most(spans, SPAN_COUNT_MAX),
    );
    Picks {
        pieces: distinct(pieces, || allocated.nth(draws.below(allocated.count))),
        spans: distinct(spans, || {
            allocated.nth(draws.below(allocated.count)) / SPAN_PIECES
        }),
    }
}

/// The same where nobody knows what is allocated: `is_data` says of a piece whether it is. Also
/// tells which share of the disk seems to be.
///
/// # Errors
/// Those of `is_data`.
pub(super) fn pick_blindly<E>(
    seed: u64,
    disk_len: u64,
    mut is_data: impl FnMut(u64) -> Result<bool, E>,
) -> Result<(Picks, f64), E> {
    let count = disk_len.div_ceil(PIECE_LEN);
    let mut draws = Draws::of(seed);
    let mut found = Vec::new();
    let tries = PIECE_COUNT_MAX * DRAWS_EACH;
    for _ in 0..tries {
        let piece = draws.below(count.max(1));
        if count > 0 && is_data(piece)? {
            found.push(piece);
        }
    }
    let share = float(found.len() as u64) / float(tries as u64);
    let (mut of_pieces, mut of_spans) = (found.iter().copied(), found.iter().rev().copied());
    let picks = Picks {
        pieces: distinct(PIECE_COUNT_MAX, || of_pieces.next().unwrap_or(u64::MAX)),
        spans: distinct(SPAN_COUNT_MAX, || {
            of_spans
                .next()
                .map_or(u64::MAX, |piece| piece / SPAN_PIECES)
        }),
    };
    Ok((picks, share))
}

/// So many different ones, or fewer where they are hard to find.
fn distinct(count: usize, mut draw: impl FnMut() -> u64) -> Vec<u32> {
    let mut seen = HashSet::with_capacity(count);
    let mut drawn = Vec::with_capacity(count);
    for _ in 0..count * DRAWS_EACH {
        if drawn.len() == count {
            break;
        }
        // Past 64 TiB: no such piece.
        let Ok(position) = u32::try_from(draw()) else {
            continue;
        };
        if seen.insert(position) {
            drawn.push(position);
        }
    }
    drawn
}

/// Pieces that hold data, by number.
struct Allocated {
    /// The number of the first piece of each run, and the run.
    runs: Vec<(u64, Range<u64>)>,
    count: u64,
}

impl Allocated {
    fn new(runs: &[Range<u64>]) -> Self {
        let (mut numbered, mut count) = (Vec::new(), 0);
        let mut next = 0;
        for run in runs {
            // Two runs may meet within a piece.
            let start = (run.start / PIECE_LEN).max(next);
            let end = run.end.div_ceil(PIECE_LEN);
            if start < end {
                numbered.push((count, start..end));
                count += end - start;
                next = end;
            }
        }
        Self {
            runs: numbered,
            count,
        }
    }

    /// `number` is below the count.
    fn nth(&self, number: u64) -> u64 {
        let after = self.runs.partition_point(|(first, _)| *first <= number);
        let (first, run) = &self.runs[after - 1];
        run.start + (number - first)
    }
}

/// What two sides' samples say.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Comparison {
    /// Pieces that both sides looked at.
    pub pieces: u64,
    /// Those that differ.
    pub differing: u64,
    /// The share of pieces that differ.
    pub interval: Interval,
    /// The same as shares of bytes.
    pub change: Change,
}

/// Compares the first pieces and spans of both sides, as many as both have.
#[must_use]
pub fn compare(
    (source, target): (&[PieceSums], &[PieceSums]),
    (source_spans, target_spans): (&[u32], &[u32]),
    block_size: BlockSize,
) -> Comparison {
    let (mut pieces, mut differing) = (0_u64, 0_u64);
    let (mut changed, mut sent, mut zeros) = (0_u64, 0_u64, 0_u64);
    for (new, old) in source.iter().zip(target) {
        pieces += 1;
        differing += u64::from(new != old);
        for (new, old) in new.iter().zip(old) {
            changed += u64::from(new != old);
            sent += u64::from(new != old && *new != 0);
            zeros += u64::from(*new == 0);
        }
    }
    let spans = source_spans.iter().zip(target_spans);
    let spans_differing = spans.clone().filter(|(new, old)| new != old).count() as u64;
    let of_sums = |count: u64| ratio(count, pieces * SUMS as u64);
    let share = ratio(differing, pieces);
    let in_spans = (spans_differing, spans.count() as u64);
    Comparison {
        pieces,
        differing,
        interval: Interval::of(differing, pieces),
        change: Change {
            blocks: share_of_blocks(share, in_spans, block_size),
            pieces: share,
            bytes: of_sums(changed),
            sent: of_sums(sent),
            zeros: of_sums(zeros),
        },
    }
}

fn ratio(part: u64, all: u64) -> f64 {
    match all {
        0 => 0.0,
        _ => float(part) / float(all),
    }
}

/// Share of the blocks that differ, where that share of the pieces does. Changes may be scattered,
/// then a block has the chances of all its pieces, or lie together. Which of it shows in how many
/// of the spans differ: as if they had so many pieces that go their own ways, 1 to 16. Of blocks of
/// another size it is taken to grow with the same power of the length.
fn share_of_blocks(share: f64, (hits, spans): (u64, u64), block_size: BlockSize) -> f64 {
    if share <= 0.0 || share >= 1.0 {
        return share;
    }
    let of_pieces = |count: f64| 1.0 - (1.0 - share).powf(count);
    let scattered = of_pieces(float(SPAN_PIECES));
    let in_spans = (float(hits) + SCATTERED_WEIGHT * scattered) / (float(spans) + SCATTERED_WEIGHT);
    let in_spans = in_spans.clamp(share, scattered);
    let own_ways = ((1.0 - in_spans).ln() / (1.0 - share).ln()).clamp(1.0, float(SPAN_PIECES));
    let power = own_ways.ln() / float(SPAN_PIECES).ln();
    let pieces = float(block_size.len() as u64) / float(PIECE_LEN);
    of_pieces(pieces.powf(power))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    // Goal: a sample can be drawn again, and lies in what is allocated. Method: runs that begin and
    // end within pieces; the same seed and another.
    #[test]
    fn picks_depend_on_seed_and_runs_alone() {
        let runs = [
            MIB + 512..400 * MIB,
            400 * MIB + 512..400 * MIB + 1024,
            2048 * MIB..4096 * MIB,
        ];
        let picks = pick(7, &runs);
        assert_eq!(picks, pick(7, &runs));
        assert_ne!(picks, pick(8, &runs));
        assert_eq!(picks.pieces.len(), 391);
        assert_eq!(picks.spans.len(), 48);
        let is_in = |at: u64, len: u64| runs.iter().any(|run| run.start < at + len && at < run.end);
        assert!(
            picks
                .pieces
                .iter()
                .all(|at| is_in(u64::from(*at) * PIECE_LEN, PIECE_LEN))
        );
        assert!(
            picks
                .spans
                .iter()
                .all(|at| is_in(u64::from(*at) * SPAN_LEN, SPAN_LEN))
        );
    }

    // Goal: no more than 3 % is read, and never more than the limits. Method: sizes from nothing to
    // the largest disk.
    #[test]
    fn a_sample_is_small() {
        for shift in [0, 16, 20, 26, 30, 36, 46] {
            let len = (1_u64 << shift) - 1;
            let picks = pick(1, std::slice::from_ref(&(0..len)));
            let (pieces, spans) = (picks.pieces.len() as u64, picks.spans.len() as u64);
            assert!(
                pieces * PIECE_LEN + spans * SPAN_LEN <= len * 3 / 100 + 1,
                "{len}"
            );
            assert!(pieces <= 1000 && spans <= 256);
        }
        assert_eq!(pick(1, &[]), Picks::default());
    }

    // Goal: of a small disk enough is looked at to choose by, and a scan is timed all the same.
    // Method: sizes from the smallest that is sampled on.
    #[test]
    fn a_small_disk_gives_more_pieces() {
        for (mib, wanted) in [
            (96, (30, 1)),
            (280, (89, 2)),
            (1024, (200, 18)),
            (4096, (655, 81)),
        ] {
            let picks = pick(1, std::slice::from_ref(&(0..mib * MIB)));
            assert_eq!((picks.pieces.len(), picks.spans.len()), wanted, "{mib} MiB");
        }
    }

    // Goal: the interval holds the truth as often as it says. Method: 400 seeded samples of a disk
    // of 4 GiB of which a known share of pieces differs, for several shares; 19 of 20 with some
    // slack.
    #[test]
    fn the_truth_is_in_the_interval() {
        let disk = std::slice::from_ref(&(0..4096 * MIB));
        for percent in [1_u64, 10, 50, 90] {
            let held = (0..400)
                .filter(|seed| {
                    // Which pieces differ is drawn anew each time, too.
                    let is_changed =
                        |piece: u32| Draws::of(u64::from(piece) << 20 | seed).below(100) < percent;
                    let picks = pick(*seed, disk);
                    let hits = picks
                        .pieces
                        .iter()
                        .filter(|piece| is_changed(**piece))
                        .count();
                    let interval = Interval::of(hits as u64, picks.pieces.len() as u64);
                    let truth = float(percent) / 100.0;
                    (interval.low..=interval.high).contains(&truth)
                })
                .count();
            assert!(held >= 365, "{held} of 400 at {percent} %");
        }
    }

    // Goal: shares are counted in the right unit. Method: four pieces: equal, one page changed, one
    // page zeroed, all changed.
    #[test]
    fn comparison_counts_pages() {
        let old = [[5; SUMS]; 4];
        let mut new = old;
        new[1][0] = 6;
        new[2][3] = 0;
        new[3] = [9; SUMS];
        let found = compare((&new, &old), (&[], &[]), BlockSize::new(64 << 10).unwrap());
        assert_eq!((found.pieces, found.differing), (4, 3));
        let all = 4.0 * SUMS as f64;
        assert!((found.change.bytes - 18.0 / all).abs() < 1e-9);
        assert!((found.change.sent - 17.0 / all).abs() < 1e-9);
        assert!((found.change.zeros - 1.0 / all).abs() < 1e-9);
        assert!((found.change.blocks - 0.75).abs() < 1e-9);
    }

    // Goal: a side that had less time decides how much is compared. Method: sides of two lengths.
    #[test]
    fn the_shorter_side_decides() {
        let found = compare(
            (&[[1; SUMS]; 3], &[[2; SUMS]; 2]),
            (&[1], &[]),
            BlockSize::DEFAULT,
        );
        assert_eq!((found.pieces, found.differing), (2, 2));
        let none = compare((&[], &[]), (&[], &[]), BlockSize::DEFAULT);
        assert_eq!((none.pieces, none.change.blocks), (0, 0.0));
    }

    // Goal: blocks that differ are more the more changes are scattered and the longer blocks are.
    // Method: 5 % of pieces; spans that say scattered, and together; three block sizes.
    #[test]
    fn share_of_blocks_follows_the_spans() {
        let size = |len| BlockSize::new(len).unwrap();
        let scattered = (56, 100);
        let together = (5, 100);
        let at = |spans, len| share_of_blocks(0.05, spans, size(len));
        assert!((at(scattered, 1 << 20) - 0.56).abs() < 0.02);
        assert!((at(together, 1 << 20) - 0.07).abs() < 0.02);
        assert!((at(scattered, 64 << 10) - 0.05).abs() < 1e-9);
        assert!(at(scattered, 4 << 20) > 0.9);
        assert!(at(together, 4 << 20) < 0.12);
        assert_eq!(share_of_blocks(0.0, (0, 10), BlockSize::DEFAULT), 0.0);
        assert_eq!(share_of_blocks(1.0, (10, 10), BlockSize::DEFAULT), 1.0);
    }
}
