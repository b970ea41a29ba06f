//! Whether what a job goes over after a crash is its own.
//!
//! A file or device is found again by what it is called, and that can be another one by then, or
//! somebody wrote to it. Before a pass over the target is made once more, each of its places is
//! read:
//!
//! ```text
//! each sector of a run     has its old bytes or its new ones: a pass that was cut off, or torn
//! the rest of the block    makes the digest that the block was to have, with the runs laid over it
//! ```
//! Where the old bytes were not kept (`--no-undo`, or rot): the block is the old one, or some
//! sector of it is new already. Foreign bytes in a run beside such a sector are not seen then.

use super::finish::{Direction, Finisher, Job, content, has_leaf};
use super::used::lay_over;
use crate::disk::{Source, Target};
use crate::error::{Error, ErrorKind, Result};
use crate::hash::is_zero;
use crate::stage::{Record, StageLog};
use crate::state::Word;
use crate::units::ByteOffset;

/// Bytes that a medium writes whole or not at all; no sector is smaller.
const SECTOR_LEN: usize = 512;

/// What the runs of a record hold on one of the two disks: zeros, or their bytes in order.
type Runs = Option<Vec<u8>>;

impl Finisher<'_> {
    /// Refuses to go over bytes that are not the job's. For a pass that an earlier process began,
    /// and before anything is written: it reads every staged block.
    ///
    /// # Errors
    /// `Refused` with the place; `Damaged`, `Io`, `Cancelled`.
    pub(super) fn refuse_foreign(
        &self,
        target: &dyn Target,
        job: &Job,
        way: Direction,
    ) -> Result<()> {
        // Where the old bytes go, the new disk may have been used before the roll-back began.
        let may_be_used = job.journal().word() == Word::RollingBack;
        for block in job.stage.blocks() {
            self.abort.check_cancelled()?;
            let Some(record) = job.stage.find(block)? else {
                continue;
            };
            let start = self.session.geometry.start_of(block);
            let mut bytes = vec![0; self.session.geometry.block_len(block)];
            if !read(target, start, &mut bytes)? {
                continue;
            }
            let (leaf, other) = match way {
                Direction::New => (record.new_leaf, Direction::Old),
                Direction::Old => (record.old_leaf, Direction::New),
            };
            let wanted = runs_of(&job.stage, &record, way)?;
            let other = known(&job.stage, &record, other)?;
            let foreign = match other {
                _ if may_be_used => None,
                Some(other) => first_foreign(&record, &bytes, &wanted, &other),
                None => self.is_untouched_or_begun(&record, &bytes, &wanted, way),
            };
            if let Some(within) = foreign {
                return Err(not_ours(start.advanced(within)));
            }
            lay_over(&record, &mut bytes, wanted.as_ref());
            if leaf.is_some_and(|leaf| !has_leaf(&self.session.hasher, &bytes, leaf)) {
                return Err(not_ours(start));
            }
        }
        Ok(())
    }

    /// Without the bytes of the other disk: where the block is neither that disk's, nor begun.
    fn is_untouched_or_begun(
        &self,
        record: &Record,
        block: &[u8],
        wanted: &Runs,
        way: Direction,
    ) -> Option<u64> {
        let other = match way {
            Direction::New => record.old_leaf,
            Direction::Old => record.new_leaf,
        };
        let is_other = other.is_none_or(|leaf| has_leaf(&self.session.hasher, block, leaf));
        let is_begun = || sectors(record, block, wanted).any(|(_, has, gets)| has_bytes(has, gets));
        (!is_other && !is_begun()).then(|| record.runs.first().map_or(0, |run| run.start.into()))
    }
}

/// Reads a block of the target; whether that was possible. A sector that was torn can be unreadable
/// until it is written again, and holds nobody's bytes.
fn read(target: &dyn Target, at: ByteOffset, bytes: &mut [u8]) -> Result<bool> {
    match Source::read(target, at, bytes) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::Io => {
            tracing::warn!(error = error.chain(), "not readable, and written anew");
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

fn runs_of(stage: &StageLog, record: &Record, way: Direction) -> Result<Runs> {
    let (is_zero, bytes) = content(stage, record, way)?;
    Ok((!is_zero).then_some(bytes))
}

/// The same, unless it was not kept or has rotted: the half that is needed is enough.
fn known(stage: &StageLog, record: &Record, way: Direction) -> Result<Option<Runs>> {
    match runs_of(stage, record, way) {
        Ok(runs) => Ok(Some(runs)),
        Err(error) if matches!(error.kind(), ErrorKind::Refused | ErrorKind::Damaged) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Where in the block the first sector is that has the bytes of neither.
fn first_foreign(record: &Record, block: &[u8], one: &Runs, other: &Runs) -> Option<u64> {
    let of_one = sectors(record, block, one);
    let mut both = of_one.zip(sectors(record, block, other));
    both.find(|((_, has, one), (_, _, other))| !has_bytes(has, *one) && !has_bytes(has, *other))
        .map(|((at, ..), _)| at)
}

/// Of each sector of the runs: where it is in the block, what it holds, and its bytes in `runs`.
fn sectors<'a>(
    record: &'a Record,
    block: &'a [u8],
    runs: &'a Runs,
) -> impl Iterator<Item = (u64, &'a [u8], Option<&'a [u8]>)> {
    let mut taken = 0;
    record.runs.iter().flat_map(move |run| {
        let held = &block[run.start as usize..run.end as usize];
        let from = taken;
        taken += held.len();
        let pieces = held.chunks(SECTOR_LEN).enumerate();
        pieces.map(move |(piece, has)| {
            let at = piece * SECTOR_LEN;
            let bytes = runs.as_deref();
            let bytes = bytes.map(|bytes| &bytes[from + at..][..has.len()]);
            (u64::from(run.start) + at as u64, has, bytes)
        })
    })
}

fn has_bytes(has: &[u8], bytes: Option<&[u8]>) -> bool {
    bytes.map_or_else(|| is_zero(has), |bytes| has == bytes)
}

fn not_ours(at: ByteOffset) -> Error {
    let message = "has bytes that are neither the old disk's nor the new one's: somebody else \
                   wrote to it, or it is another disk; nothing was written over them";
    Error::new(ErrorKind::Refused, message).at(at.0)
}
