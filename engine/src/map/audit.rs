//! Holds a map against the disk, block by block at random.
//!
//! ```text
//! until enough were looked at, or the time is over:
//!     a random block of those that the map says hold data: read, hashed, compared
//!     a random block of all: one that the map says is zero has to be
//! ```
//! Each of the first kind is drawn from all of them alike, so that lies about a share `f` of them
//! are missed with a chance of `(1 - f)^n`. The second kind finds what was written where nothing
//! was; of a sparse disk it finds little, as most of it is empty in truth.

use std::time::{Duration, Instant};

use super::MapFile;
use super::format::GROUP_LEN;
use crate::disk::{ExtentKind, Source};
use crate::draws::Draws;
use crate::error::{ErrorKind, Result};
use crate::hash::{Hasher, is_zero};
use crate::identity::Refusal;
use crate::tree::Leaf;
use crate::units::{BlockIndex, Geometry};

/// How many blocks are looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Audit {
    /// As many as fit in 20 milliseconds.
    #[default]
    Quick,
    /// 459, which find one lie in a hundred blocks with a probability of 99 %.
    Full,
}

/// A run that finds nothing to do is to take no more than twice that.
const QUICK_TIME: Duration = Duration::from_millis(20);
/// Finds lies about one block in a hundred with a chance of 99 in 100.
const FULL_COUNT: u64 = 459;
/// The share of lies that [`miss_probability`] is about.
const LIES: f64 = 0.01;

type Judged<T> = std::result::Result<T, Refusal>;

/// Reads blocks of `disk` and holds them against `map`. How many had their hash.
///
/// # Errors
/// [`Refusal::Audit`] for one that had not, and for a disk that cannot be read there;
/// [`Refusal::Mac`] for a map that is damaged.
pub(super) fn audit(map: &MapFile, disk: &dyn Source, how: Audit) -> Judged<u64> {
    let started = Instant::now();
    let count = map.data_count();
    let block_count = map.geometry().block_count().0;
    if block_count == 0 {
        return Ok(0);
    }
    let of_map = |error: crate::Error| {
        tracing::debug!(error = error.chain(), "audit");
        match error.kind() {
            ErrorKind::Damaged => Refusal::Mac,
            _ => Refusal::Audit,
        }
    };
    let picker = Picker::new(map).map_err(of_map)?;
    let mut dice = Draws::unforeseen();
    let hasher = Hasher::new(map.hash());
    let (mut audited, mut steps) = (0, 0);
    // All of them, each once, where that is no more.
    let takes_all = how == Audit::Full && count <= FULL_COUNT;
    loop {
        let is_enough = match how {
            _ if takes_all => steps >= count.max(1),
            Audit::Full => steps >= FULL_COUNT,
            Audit::Quick => steps > 0 && started.elapsed() >= QUICK_TIME,
        };
        if is_enough {
            return Ok(audited);
        }
        if count > 0 {
            let nth = if takes_all { steps } else { dice.below(count) };
            let block = picker.nth(map, nth).map_err(of_map)?;
            let leaf = map.leaf(block).map_err(of_map)?;
            is_as_said(disk, &map.geometry(), &hasher, block, leaf)?;
            audited += 1;
        }
        let block = BlockIndex(dice.below(block_count));
        if let Some(Leaf::Zero) = map.leaf(block).map_err(of_map)? {
            is_as_said(disk, &map.geometry(), &hasher, block, Some(Leaf::Zero))?;
        }
        steps += 1;
    }
}

/// The chance that `audited` blocks drawn of `count` were all right while one in a hundred is not.
#[must_use]
pub(crate) fn miss_probability(audited: u64, count: u64) -> f64 {
    if count == 0 {
        return 0.0;
    }
    (1.0 - LIES).powi(i32::try_from(audited).unwrap_or(i32::MAX))
}

/// Whether a block has the leaf that is said of it.
fn is_as_said(
    disk: &dyn Source,
    geometry: &Geometry,
    hasher: &Hasher,
    block: BlockIndex,
    leaf: Option<Leaf>,
) -> Judged<()> {
    let failed = |error: crate::Error| {
        tracing::debug!(error = error.chain(), "audit");
        Refusal::Audit
    };
    let range = geometry.range_of(block, 1);
    if leaf == Some(Leaf::Zero) {
        let extent = disk.extent_at(range.start).map_err(failed)?;
        if extent.kind != ExtentKind::Data && extent.end >= range.end {
            return Ok(());
        }
    }
    let mut bytes = vec![0; geometry.block_len(block)];
    disk.read(range.start, &mut bytes).map_err(failed)?;
    let found = match is_zero(&bytes) {
        true => Leaf::Zero,
        false => Leaf::Data(hasher.leaf(&bytes)),
    };
    match Some(found) == leaf {
        true => Ok(()),
        false => Err(Refusal::Audit),
    }
}

/// Finds the nth data block.
struct Picker {
    /// Data blocks before each group.
    before: Vec<u64>,
}

impl Picker {
    fn new(map: &MapFile) -> Result<Self> {
        let mut sum = 0;
        let counts = map.group_counts()?;
        let before = counts.into_iter().map(|count| {
            let before = sum;
            sum += u64::from(count);
            before
        });
        Ok(Self {
            before: before.collect(),
        })
    }

    fn nth(&self, map: &MapFile, nth: u64) -> Result<BlockIndex> {
        let group = self.before.partition_point(|before| *before <= nth) - 1;
        map.data_block_of(group as u64, nth - self.before[group])
    }
}

const _: () = assert!(GROUP_LEN <= u16::MAX as u64);
