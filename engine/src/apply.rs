//! Where blocks are applied to the target: the only module that changes one.
//!
//! This release applies in place: a block is written as soon as its content is proven by its hash,
//! so an interrupted sync leaves a target that is partly new. What was written is kept in mind
//! until it has been flushed, read back past the page cache, and found to be what was sent.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use failback_transport::{Base, BlockData, Digest, VerifiedFrom, VerifyLevel};

use crate::abort::Abort;
use crate::disk::{ExtentKind, Target};
use crate::error::{Error, ErrorKind, Result};
use crate::hash::{Hasher, is_zero};
use crate::sync::{Session, SessionProgress, unpack};
use crate::system::MediumAccess;
use crate::units::{BlockIndex, ByteOffset, Geometry, SUB_BLOCK_LEN, range_len};

/// Ranges that wait for their proof; more are proven before the job goes on. 128 Ki ranges and the
/// records around them are some 10 MiB.
const UNPROVEN_MAX: usize = 128 << 10;
/// Bytes that wait for their proof before one thread proves them while the others go on: the disk
/// writes and reads back what it has during the copy, and not all of it at the end.
const UNPROVEN_LEN_MAX: u64 = 128 << 20;
/// Reading back is waiting for a device, one read at a time for each thread.
const PROOF_THREADS: usize = 8;
/// Bytes of zeros that are read back as one.
const ZERO_PIECE: usize = 1 << 20;

/// What became of a block's data.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Applied {
    /// The target holds the block that the source has.
    Done,
    /// Patching gave another block: two sub-block sums collided. Nothing was written.
    NeedsWhole,
}

/// Applies blocks and proves what it applied.
#[derive(Debug)]
pub(crate) struct Applier<'a> {
    target: &'a dyn Target,
    /// All of the target is known to read zero: it was just made.
    is_new: bool,
    geometry: Geometry,
    hasher: &'a Hasher,
    verify: VerifyLevel,
    is_hashed: bool,
    unproven: Mutex<UnprovenList>,
    progress: &'a SessionProgress,
    written: AtomicU64,
    zeroed_blocks: AtomicU64,
}

/// Changes, how many ranges they hold, and how many bytes those have.
#[derive(Debug, Default)]
struct UnprovenList {
    changes: Vec<Unproven>,
    ranges: usize,
    bytes: u64,
}

/// A change that was not read back yet.
#[derive(Debug)]
enum Unproven {
    /// A whole block, by the digest of its leaf.
    Whole(BlockIndex, Digest),
    /// Parts of one block, by one BLAKE3 over them in order.
    Parts(Vec<Range<ByteOffset>>, blake3::Hash),
    /// Blocks that must read zero.
    Zeros(Range<ByteOffset>),
}

impl<'a> Applier<'a> {
    pub(crate) fn new(target: &'a dyn Target, is_new: bool, session: &'a Session) -> Self {
        Self {
            target,
            is_new,
            geometry: session.geometry,
            hasher: &session.hasher,
            verify: session.options.verify,
            is_hashed: session.is_hashed(),
            unproven: Mutex::default(),
            progress: &session.progress,
            written: AtomicU64::new(0),
            zeroed_blocks: AtomicU64::new(0),
        }
    }

    /// Bytes written so far.
    pub(crate) fn written_len(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Blocks that were made zero so far.
    pub(crate) fn zeroed_count(&self) -> u64 {
        self.zeroed_blocks.load(Ordering::Relaxed)
    }

    /// Makes a block what the source says it is. `old` reads its present content, `was_zero` when
    /// that is known to be zeros.
    ///
    /// # Errors
    /// `Protocol` when the data does not fit the block or its hash, `NoSpace`, `Io`.
    pub(crate) fn block(
        &self,
        data: &BlockData,
        was_zero: bool,
        old: impl FnOnce(&mut [u8]) -> Result<()>,
    ) -> Result<Applied> {
        let block = BlockIndex(data.block);
        let parts = self.parts_of(data)?;
        let payload = unpack(data)?;
        let is_whole_run = parts.len() == 1
            && range_len(&parts[0].0) == payload.len() as u64
            && payload.len() == self.geometry.block_len(block);
        let new = match is_whole_run {
            true => payload,
            false => self.patched(data, &parts, &payload, old)?,
        };
        if self.is_hashed && self.hasher.leaf(&new) != data.new_hash {
            return match data.base {
                Base::Old => Ok(Applied::NeedsWhole),
                Base::Zero => Err(Error::new(
                    ErrorKind::Protocol,
                    "peer: block does not have the hash it was sent with",
                )
                .at(self.geometry.start_of(block).0)),
            };
        }
        let is_known_zero = was_zero || self.is_new;
        let ranges = match (data.base, is_known_zero) {
            // Whatever was there goes, also between the runs.
            (Base::Zero, false) => vec![self.geometry.range_of(block, 1)],
            _ => joined(parts.into_iter().map(|(range, _)| range)),
        };
        self.write(block, &new, ranges, data.new_hash)?;
        Ok(Applied::Done)
    }

    /// Makes `count` blocks from `first` on read zero. Space that reads zero already is left alone.
    ///
    /// # Errors
    /// `NoSpace`, `Io`.
    pub(crate) fn zeros(&self, first: BlockIndex, count: u64, abort: &Abort) -> Result<()> {
        if self.is_new {
            return Ok(());
        }
        let whole = self.geometry.range_of(first, count);
        let mut at = whole.start;
        while at < whole.end {
            abort.check()?;
            let extent = self.target.extent_at(at)?;
            let end = extent.end.min(whole.end);
            if extent.kind == ExtentKind::Data {
                self.target.zero(at..end)?;
                let blocks =
                    range_len(&(at..end)).div_ceil(self.geometry.block_size().len() as u64);
                self.zeroed_blocks.fetch_add(blocks, Ordering::Relaxed);
                self.remember(Unproven::Zeros(at..end))?;
            }
            at = end;
        }
        Ok(())
    }

    /// Does what is left to do once all blocks are there, and proves the rest.
    ///
    /// # Errors
    /// As [`Applier::prove`].
    pub(crate) fn finish(&self) -> Result<()> {
        // The source has zeros where the target reads zeros: after this every other reader of the
        // target does, too.
        let blocks = self.target.zero_undefined()?;
        tracing::debug!(blocks, "undefined blocks of the target made zero");
        self.prove()
    }

    /// Flushes, and reads back everything that was changed and not yet proven.
    ///
    /// # Errors
    /// `VerifyFailed` with the offset when the target does not hold what was sent, `Io`.
    pub(crate) fn prove(&self) -> Result<()> {
        let unproven =
            std::mem::take(&mut *self.unproven.lock().unwrap_or_else(PoisonError::into_inner))
                .changes;
        self.target.flush()?;
        tracing::debug!(changes = unproven.len(), "flushed; reading back");
        if self.verify == VerifyLevel::Off {
            return Ok(());
        }
        let total = unproven
            .iter()
            .map(|change| change.len(&self.geometry))
            .sum();
        self.progress
            .verify_total
            .fetch_add(total, Ordering::Relaxed);
        let next = AtomicUsize::new(0);
        let failed = Abort::new();
        std::thread::scope(|scope| {
            for _ in 0..PROOF_THREADS.min(unproven.len()) {
                scope.spawn(|| {
                    failed.guard(|| {
                        while let Some(change) = unproven.get(next.fetch_add(1, Ordering::Relaxed))
                        {
                            failed.check()?;
                            self.prove_one(change)?;
                        }
                        Ok(())
                    });
                });
            }
        });
        failed.verdict()
    }

    /// Where the proof reads from.
    pub(crate) fn verified_from(&self) -> VerifiedFrom {
        match (self.verify, self.target.medium()) {
            (VerifyLevel::Off, _) => VerifiedFrom::None,
            (_, MediumAccess::Medium) => VerifiedFrom::Medium,
            (_, MediumAccess::Cache) => VerifiedFrom::Cache,
            (_, MediumAccess::Server) => VerifiedFrom::Server,
        }
    }

    /// The ranges of the disk that the runs name, each with whether it carries data; checked
    /// against the block.
    fn parts_of(&self, data: &BlockData) -> Result<Vec<(Range<ByteOffset>, bool)>> {
        let block = self.geometry.range_of(BlockIndex(data.block), 1);
        let mut parts = Vec::with_capacity(data.runs.len());
        let mut data_len = 0;
        for run in &data.runs {
            let start = block
                .start
                .advanced(u64::from(run.first) * SUB_BLOCK_LEN as u64);
            let end = start.advanced(u64::from(run.count) * SUB_BLOCK_LEN as u64);
            if end.0 >= block.end.0 + SUB_BLOCK_LEN as u64 || start >= block.end {
                return Err(
                    Error::new(ErrorKind::Protocol, "peer: data past the end of a block")
                        .at(start.0),
                );
            }
            let range = start..end.min(block.end);
            let is_data = run.kind == failback_transport::RunKind::Data;
            data_len += if is_data { range_len(&range) } else { 0 };
            parts.push((range, is_data));
        }
        match data_len == u64::from(data.raw_len) {
            true => Ok(parts),
            false => Err(
                Error::new(ErrorKind::Protocol, "peer: data does not fit its runs")
                    .at(block.start.0),
            ),
        }
    }

    fn patched(
        &self,
        data: &BlockData,
        parts: &[(Range<ByteOffset>, bool)],
        payload: &Bytes,
        old: impl FnOnce(&mut [u8]) -> Result<()>,
    ) -> Result<Bytes> {
        let block = BlockIndex(data.block);
        let start = self.geometry.start_of(block);
        let mut new = vec![0; self.geometry.block_len(block)];
        if data.base == Base::Old {
            old(&mut new)?;
        }
        let mut payload = payload.as_ref();
        for (range, is_data) in parts {
            let piece = &mut new[within(range, start)];
            match is_data {
                true => {
                    let (head, rest) = payload.split_at(piece.len());
                    piece.copy_from_slice(head);
                    payload = rest;
                }
                false => piece.fill(0),
            }
        }
        Ok(Bytes::from(new))
    }

    fn write(
        &self,
        block: BlockIndex,
        new: &[u8],
        ranges: Vec<Range<ByteOffset>>,
        digest: Digest,
    ) -> Result<()> {
        let start = self.geometry.start_of(block);
        for range in &ranges {
            self.target.write(range.start, &new[within(range, start)])?;
            self.written.fetch_add(range_len(range), Ordering::Relaxed);
        }
        let is_whole = ranges.iter().map(range_len).sum::<u64>() == new.len() as u64;
        self.remember(match is_whole && self.is_hashed {
            true => Unproven::Whole(block, digest),
            false => {
                let mut sum = blake3::Hasher::new();
                for range in &ranges {
                    sum.update(&new[within(range, start)]);
                }
                Unproven::Parts(ranges, sum.finalize())
            }
        })
    }

    fn remember(&self, change: Unproven) -> Result<()> {
        // With `Full` the whole target is read back at the end, with these ranges in it.
        if self.verify != VerifyLevel::Changed {
            return Ok(());
        }
        let mut list = self.unproven.lock().unwrap_or_else(PoisonError::into_inner);
        list.bytes += change.len(&self.geometry);
        list.ranges += match &change {
            Unproven::Parts(ranges, _) => ranges.len(),
            _ => 1,
        };
        match (list.changes.last_mut(), change) {
            (Some(Unproven::Zeros(last)), Unproven::Zeros(next)) if last.end == next.start => {
                last.end = next.end;
            }
            (_, change) => list.changes.push(change),
        }
        let is_full = list.ranges >= UNPROVEN_MAX || list.bytes >= UNPROVEN_LEN_MAX;
        drop(list);
        if is_full { self.prove() } else { Ok(()) }
    }

    fn prove_one(&self, change: &Unproven) -> Result<()> {
        let verified = |len: u64| self.progress.verified.fetch_add(len, Ordering::Relaxed);
        let is_as_sent = match change {
            Unproven::Whole(block, digest) => {
                let mut bytes = vec![0; self.geometry.block_len(*block)];
                self.target
                    .read_back(self.geometry.start_of(*block), &mut bytes)?;
                verified(bytes.len() as u64);
                self.hasher.leaf(&bytes) == *digest
            }
            Unproven::Parts(ranges, sum) => {
                let mut seen = blake3::Hasher::new();
                for range in ranges {
                    let len = usize::try_from(range_len(range)).expect("part of a block");
                    let mut bytes = vec![0; len];
                    self.target.read_back(range.start, &mut bytes)?;
                    verified(bytes.len() as u64);
                    seen.update(&bytes);
                }
                seen.finalize() == *sum
            }
            Unproven::Zeros(range) => self.is_zero_on_medium(range)?,
        };
        match is_as_sent {
            true => Ok(()),
            false => {
                let message =
                    "what was read back is not what was written: the target is not to be trusted";
                Err(Error::new(ErrorKind::VerifyFailed, message).at(change.start(&self.geometry).0))
            }
        }
    }

    fn is_zero_on_medium(&self, range: &Range<ByteOffset>) -> Result<bool> {
        let mut at = range.start;
        let mut bytes = Vec::new();
        while at < range.end {
            let extent = self.target.extent_at(at)?;
            let end = extent
                .end
                .min(range.end)
                .min(at.advanced(match extent.kind {
                    ExtentKind::Data => ZERO_PIECE as u64,
                    _ => u64::MAX,
                }));
            if extent.kind == ExtentKind::Data {
                bytes.resize(
                    usize::try_from(range_len(&(at..end))).expect("at most a piece"),
                    0,
                );
                self.target.read_back(at, &mut bytes)?;
                self.progress
                    .verified
                    .fetch_add(bytes.len() as u64, Ordering::Relaxed);
                if !is_zero(&bytes) {
                    return Ok(false);
                }
            }
            at = end;
        }
        Ok(true)
    }
}

impl Unproven {
    fn start(&self, geometry: &Geometry) -> ByteOffset {
        match self {
            Self::Whole(block, _) => geometry.start_of(*block),
            Self::Parts(ranges, _) => ranges.first().map_or(ByteOffset(0), |range| range.start),
            Self::Zeros(range) => range.start,
        }
    }

    fn len(&self, geometry: &Geometry) -> u64 {
        match self {
            Self::Whole(block, _) => geometry.block_len(*block) as u64,
            Self::Parts(ranges, _) => ranges.iter().map(range_len).sum(),
            Self::Zeros(_) => 0,
        }
    }
}

/// `range` of the disk as indices into a block that starts at `start`.
fn within(range: &Range<ByteOffset>, start: ByteOffset) -> Range<usize> {
    let index =
        |at: ByteOffset| usize::try_from(at.0 - start.0).expect("ranges lie within their block");
    index(range.start)..index(range.end)
}

/// Neighbouring ranges as one: each costs a system call.
fn joined(ranges: impl Iterator<Item = Range<ByteOffset>>) -> Vec<Range<ByteOffset>> {
    let mut all: Vec<Range<ByteOffset>> = Vec::new();
    for range in ranges {
        match all.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => all.push(range),
        }
    }
    all
}
