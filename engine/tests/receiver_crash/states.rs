//! Every state in which a power cut can leave a host.
//!
//! ```text
//! for each sync of the record, and its end
//!     durable   what an earlier sync of its file, or of the names, covers
//!     pending   everything else before it
//!     states    durable + any subset of pending writes, torn at 512 bytes
//!                       + the first so many of the pending changes of names of each directory,
//!                         which a file system keeps in order
//! ```
//! Subsets are all there are up to 12 pending changes, else none, all, prefixes, all but one, only
//! one, and random ones. A state counts once, however it is reached.

use std::collections::HashSet;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::world::{Host, Op};

/// As many pending changes have all their subsets looked at.
const ALL_SUBSETS_MAX: usize = 12;

/// How much is looked at before each sync.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Effort {
    /// Random subsets, where there are too many to take all.
    pub(crate) subsets: usize,
    /// Random subsets with torn writes.
    pub(crate) torn: usize,
    /// All subsets are taken up to so many of them.
    pub(crate) all_max: usize,
}

/// A state, and when it can arise.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) host: Host,
    /// Changes that were made when the power failed.
    pub(crate) made: usize,
    /// For messages.
    pub(crate) kept: Vec<usize>,
}

/// Hands every distinct state to `look`; how many there were. Ends early when `look` says so.
pub(crate) fn each(
    base: &Host,
    ops: &[Op],
    effort: Effort,
    seed: u64,
    look: impl FnMut(State) -> bool,
) -> usize {
    each_from(0, base, ops, effort, seed, look)
}

/// The same of a power cut after so many changes.
pub(crate) fn each_from(
    from: usize,
    base: &Host,
    ops: &[Op],
    effort: Effort,
    seed: u64,
    mut look: impl FnMut(State) -> bool,
) -> usize {
    let mut seen = HashSet::new();
    let mut rng = StdRng::seed_from_u64(seed);
    for made in from..=ops.len() {
        if made < ops.len() && !ops[made].is_sync() {
            continue;
        }
        let (durable, pending) = split(&ops[..made]);
        let mut start = base.copied();
        for file in ops.iter().filter_map(Op::file) {
            while start.files.len() <= file {
                start.files.push(std::sync::Arc::default());
            }
        }
        for index in &durable {
            start.apply(&ops[*index], |_| true);
        }
        for fates in all_fates(&pending, effort, &mut rng) {
            let mut signature = Signature::default();
            durable
                .iter()
                .for_each(|index| signature.add(*index, u64::MAX));
            let mut kept = Vec::new();
            let mut lost_in = HashSet::new();
            for (index, bits) in pending.iter().zip(fates) {
                // A file system keeps changes of names in a directory in order.
                let directory = ops[*index].directory();
                if bits == 0 {
                    lost_in.extend(directory);
                }
                if bits == 0 || directory.is_some_and(|of| lost_in.contains(of)) {
                    continue;
                }
                signature.add(*index, bits);
                kept.push((*index, bits));
            }
            // Before anything is made of it: many are reached in several ways.
            if !seen.insert(signature.0) {
                continue;
            }
            let mut host = start.copied();
            for (index, bits) in &kept {
                host.apply(&ops[*index], |piece| bits >> (piece % 64) & 1 == 1);
            }
            let kept = kept.into_iter().map(|(index, _)| index).collect();
            if !look(State { host, made, kept }) {
                return seen.len();
            }
        }
    }
    seen.len()
}

/// What is durable for certain after these changes, and what is not.
fn split(ops: &[Op]) -> (Vec<usize>, Vec<usize>) {
    (0..ops.len())
        .filter(|index| !ops[*index].is_sync())
        .partition(|index| {
            ops[index + 1..]
                .iter()
                .any(|later| match ops[*index].file() {
                    Some(_) => later.covers(&ops[*index]),
                    None => later.is_sync() && later.directory() == ops[*index].directory(),
                })
        })
}

/// For each state, of each pending change the pieces that are kept, by bits.
fn all_fates(pending: &[usize], effort: Effort, rng: &mut StdRng) -> Vec<Vec<u64>> {
    let count = pending.len();
    let kept = |is_kept: bool| if is_kept { u64::MAX } else { 0 };
    let mut all = Vec::new();
    if count <= ALL_SUBSETS_MAX && 1 << count <= effort.all_max {
        for subset in 0..1_u64 << count {
            all.push((0..count).map(|bit| kept(subset >> bit & 1 == 1)).collect());
        }
    } else {
        for prefix in 0..=count {
            all.push((0..count).map(|index| kept(index < prefix)).collect());
        }
        for one in 0..count {
            all.push((0..count).map(|index| kept(index != one)).collect());
            all.push((0..count).map(|index| kept(index == one)).collect());
        }
        for _ in 0..effort.subsets {
            let often = rng.random_range(0.05..0.95);
            all.push((0..count).map(|_| kept(rng.random_bool(often))).collect());
        }
    }
    for _ in 0..effort.torn * usize::from(count > 0) {
        let mut fates: Vec<u64> = (0..count).map(|_| kept(rng.random_bool(0.7))).collect();
        for _ in 0..rng.random_range(1..=2) {
            let torn = rng.random_range(0..count);
            fates[torn] = match rng.random_range(0..3) {
                0 => (1 << rng.random_range(0..63)) - 1,
                1 => u64::MAX << rng.random_range(1..63),
                _ => rng.random(),
            };
        }
        all.push(fates);
    }
    all
}

/// What of a record is in a state, as a number.
#[derive(Debug, Default)]
struct Signature(u128);

impl Signature {
    fn add(&mut self, index: usize, bits: u64) {
        let mut input = [0; 16];
        input[..8].copy_from_slice(&(index as u64).to_le_bytes());
        input[8..].copy_from_slice(&bits.to_le_bytes());
        self.0 = self.0.wrapping_add(xxhash_rust::xxh3::xxh3_128(&input));
    }
}
