//! Every state in which a power cut can leave the files of a record.
//!
//! ```text
//! for each sync of the record, and its end
//!     durable   what an earlier sync of its file covers
//!     pending   everything else before it
//!     states    durable + any subset of pending, and of its changes any 512-byte sectors
//! ```
//!
//! A power cut in the middle of `pending` leaves a subset of it, so looking right before each sync
//! looks at every prefix: a state is held against the promises of the earliest moment at which it
//! can arise as well as of the latest. Headers and log entries carry checksums, since a medium may
//! spoil the sector in which the power failed: they are cut at any byte.
//!
//! Subsets are all there are up to [`ALL_SUBSETS_MAX`] pending changes, else prefixes, all but one,
//! only one, and random ones.

use std::ops::{ControlFlow, RangeInclusive};
use std::sync::Arc;

use failback_vhdx::MemoryFile;

use crate::record::{Op, SECTOR};

/// How much is looked at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Effort {
    /// Subsets before each sync where there are too many to take all of them.
    pub(crate) subsets: usize,
    /// States with torn changes before each sync.
    pub(crate) torn: usize,
}

/// Which states are looked at.
#[derive(Clone, Debug)]
pub(crate) struct Look {
    pub(crate) effort: Effort,
    /// Those before a sync, or the end, with one of these numbers.
    pub(crate) points: RangeInclusive<usize>,
    pub(crate) seed: u64,
}

/// One state of all files.
pub(crate) struct State {
    pub(crate) files: Vec<Arc<MemoryFile>>,
    /// Changes made, at the earliest moment at which this state can arise.
    pub(crate) earliest: usize,
    /// And at the latest.
    pub(crate) latest: usize,
    /// The changes that are in the state, in part at least.
    pub(crate) kept: Vec<usize>,
    pub(crate) number: usize,
    pub(crate) seed: u64,
}

/// What became of one pending change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Kept,
    Lost,
    /// Its first so many pieces are kept.
    First(usize),
    /// Its first so many pieces are lost.
    Last(usize),
    /// Pieces by the bits of this number.
    Scattered(u64),
    /// Its first so many bytes are kept, an end in the middle of a sector. Only for changes that
    /// carry a checksum: for everything else a sector is written as a whole.
    Bytes(usize),
}

impl Fate {
    fn keeps(self, piece: usize) -> bool {
        match self {
            Self::Kept => true,
            Self::Lost => false,
            Self::First(count) => piece < count,
            Self::Last(count) => piece >= count,
            Self::Bytes(count) => piece * SECTOR < count,
            Self::Scattered(bits) => bits.rotate_left(piece as u32 / 64) >> (piece % 64) & 1 == 1,
        }
    }
}

/// Calls `visit` with state after state until it breaks; returns how many there were.
pub(crate) fn each(
    base: &[MemoryFile],
    ops: &[Op],
    look: &Look,
    visit: &mut dyn FnMut(&State) -> ControlFlow<()>,
) -> usize {
    let durable: Vec<MemoryFile> = base.to_vec();
    let mut covered: Vec<usize> = Vec::new();
    let mut pending: Vec<usize> = Vec::new();
    let mut random = Random(look.seed);
    let mut count = 0;
    let mut last_sync = 0;
    for point in 0..=ops.len() {
        let is_point = ops.get(point).is_none_or(Op::is_sync);
        if !is_point {
            pending.push(point);
            continue;
        }
        let cut = Cut {
            ops,
            durable: &durable,
            covered: &covered,
            pending: &pending,
            last_sync,
            point,
        };
        let mut choose = |fates: &[Fate], seed| {
            count += 1;
            visit(&cut.state(fates, count, seed))
        };
        if look.points.contains(&point)
            && cut
                .each_choice(look.effort, &mut random, &mut choose)
                .is_break()
        {
            break;
        }
        if let Some(sync) = ops.get(point) {
            let is_last = |op: usize| op + 1 == point;
            let (done, left) = pending
                .into_iter()
                .partition(|op| ops[*op].file == sync.file && (sync.covers_all() || is_last(*op)));
            pending = left;
            for op in &done {
                let op: &Op = &ops[*op];
                op.apply(&durable[op.file], |_| true);
            }
            covered.extend::<Vec<usize>>(done);
            last_sync = point + 1;
        }
    }
    count
}

/// The moment before one sync.
struct Cut<'a> {
    ops: &'a [Op],
    durable: &'a [MemoryFile],
    covered: &'a [usize],
    pending: &'a [usize],
    last_sync: usize,
    point: usize,
}

type Choose<'a> = dyn FnMut(&[Fate], u64) -> ControlFlow<()> + 'a;

impl Cut<'_> {
    fn each_choice(
        &self,
        effort: Effort,
        random: &mut Random,
        choose: &mut Choose<'_>,
    ) -> ControlFlow<()> {
        let count = self.pending.len();
        let is_kept = |is_kept| if is_kept { Fate::Kept } else { Fate::Lost };
        if count <= ALL_SUBSETS_MAX {
            for subset in 0..1_u64 << count {
                let fates: Vec<Fate> = (0..count)
                    .map(|op| is_kept(subset >> op & 1 == 1))
                    .collect();
                choose(&fates, subset)?;
            }
        } else {
            let mut left = effort.subsets;
            for shape in 0..3 {
                for chosen in 0..=count {
                    let fate = |op| match shape {
                        0 => op < chosen,
                        1 => op != chosen,
                        _ => op == chosen,
                    };
                    let fates: Vec<Fate> = (0..count).map(|op| is_kept(fate(op))).collect();
                    choose(&fates, 0)?;
                    left = left.saturating_sub(1);
                }
            }
            for _ in 0..left {
                let seed = random.0;
                let fates: Vec<Fate> = (0..count).map(|_| is_kept(random.below(2) == 1)).collect();
                choose(&fates, seed)?;
            }
        }
        self.each_tear(effort.torn, random, choose)
    }

    /// One torn change at a time, then all at once.
    fn each_tear(
        &self,
        torn: usize,
        random: &mut Random,
        choose: &mut Choose<'_>,
    ) -> ControlFlow<()> {
        let pieces = |op: &usize| self.ops[*op].piece_count();
        let all: usize = self.pending.iter().map(pieces).filter(|n| *n > 1).sum();
        if all == 0 {
            return ControlFlow::Continue(());
        }
        // Three parts: single tears with the others kept, with the others lost, and random ones.
        let step = (all * 4).div_ceil(torn).max(1);
        for (op, pending) in self.pending.iter().enumerate() {
            for piece in (1..pieces(pending)).step_by(step) {
                for (others, tear) in [
                    (Fate::Kept, Fate::First(piece)),
                    (Fate::Lost, Fate::First(piece)),
                    (Fate::Kept, Fate::Last(piece)),
                    (Fate::Lost, Fate::Last(piece)),
                ] {
                    let mut fates = vec![others; self.pending.len()];
                    fates[op] = tear;
                    choose(&fates, 0)?;
                }
            }
        }
        for others in [Fate::Kept, Fate::Lost] {
            for count in SPOILT {
                let summed = |op: &usize| self.ops[*op].has_checksum();
                let fate = |op| {
                    if summed(op) {
                        Fate::Bytes(count)
                    } else {
                        others
                    }
                };
                let fates: Vec<Fate> = self.pending.iter().map(fate).collect();
                choose(&fates, 0)?;
            }
        }
        for _ in 0..torn / 2 {
            let seed = random.0;
            let fates: Vec<Fate> = self
                .pending
                .iter()
                .map(|op| random.fate(&self.ops[*op]))
                .collect();
            choose(&fates, seed)?;
        }
        ControlFlow::Continue(())
    }

    fn state(&self, fates: &[Fate], number: usize, seed: u64) -> State {
        let files: Vec<MemoryFile> = self.durable.to_vec();
        let mut kept = self.covered.to_vec();
        let mut earliest = self.last_sync;
        for (op, fate) in self.pending.iter().zip(fates) {
            let change = &self.ops[*op];
            if !(0..change.piece_count()).any(|piece| fate.keeps(piece)) {
                continue;
            }
            match fate {
                Fate::Bytes(count) => change.apply_first(&files[change.file], *count),
                _ => change.apply(&files[change.file], |piece| fate.keeps(piece)),
            }
            kept.push(*op);
            earliest = earliest.max(op + 1);
        }
        State {
            files: files.into_iter().map(Arc::new).collect(),
            earliest,
            latest: self.point,
            kept,
            number,
            seed,
        }
    }
}

/// A small generator of numbers: xorshift64*.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 32) % limit
    }

    fn fate(&mut self, op: &Op) -> Fate {
        let pieces = op.piece_count() as u64;
        match self.below(5) {
            0 => Fate::Kept,
            1 => Fate::Lost,
            2 if op.has_checksum() => Fate::Bytes(self.index(pieces * SECTOR as u64)),
            3 => Fate::Scattered(self.next()),
            _ => Fate::First(self.index(pieces + 1)),
        }
    }

    fn index(&mut self, limit: u64) -> usize {
        usize::try_from(self.below(limit.max(1))).expect("below the length of a change")
    }
}

/// Pending changes of which every subset is taken: 4,096 of them.
const ALL_SUBSETS_MAX: usize = 12;
/// Bytes of a header or log entry that reached the medium: up to the sequence number, and up to the
/// GUIDs.
const SPOILT: [usize; 2] = [16, 40];
