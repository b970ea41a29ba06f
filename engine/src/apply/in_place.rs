//! Blocks written to the target at once: a new disk that has not its name yet, or an old one where
//! somebody asked for it, since an interrupted sync leaves it partly new.
//!
//! What was written is kept in mind until it has been flushed, read back past the page cache, and
//! found to be what was sent.

use std::ops::Range;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use failback_transport::{Container, Digest, VerifiedFrom, VerifyLevel};

use super::Part;
use crate::abort::Abort;
use crate::disk::{ExtentKind, Target};
use crate::error::{Error, ErrorKind, Result};
use crate::hash::{Hasher, is_zero};
use crate::plan::{Meter, Working};
use crate::schedule::{Mutex, scope};
use crate::state::{Barrier, Barriers, FlushWindow};
use crate::sync::{InPlaceChanges, Session, SessionProgress, Task};
use crate::system::MediumAccess;
use crate::units::{BlockIndex, ByteOffset, Geometry, range_len};

/// Ranges that wait for their proof; more are proven before the job goes on. 128 Ki ranges and the
/// records around them are some 10 MiB.
const UNPROVEN_MAX: usize = 128 << 10;
/// Bytes that wait for their proof before one thread proves them while the others go on: the disk
/// writes and reads back what it has during the copy, and not all of it at the end.
const UNPROVEN_LEN_MAX: u64 = 64 << 20;
/// Reading back is waiting for a device, one read at a time for each thread.
const PROOF_THREADS: usize = 8;
/// Bytes of zeros that are read back as one.
const ZERO_PIECE: usize = 1 << 20;

/// Writes blocks and proves what it wrote.
#[derive(Debug)]
pub(crate) struct InPlace<'a> {
    target: &'a dyn Target,
    /// All of the target is known to read zero: it was just made.
    is_new: bool,
    /// What is written is an example of that: to a new file in order, or here and there over what
    /// is there.
    meter: Option<&'a Meter>,
    geometry: Geometry,
    hasher: &'a Hasher,
    verify: VerifyLevel,
    is_hashed: bool,
    barriers: Barriers,
    /// Where what a job wrote has to outlive it.
    window: Option<Box<FlushWindow>>,
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

impl<'a> InPlace<'a> {
    pub(crate) fn new(changes: &InPlaceChanges<'a>, session: &'a Session) -> Self {
        Self {
            target: changes.target,
            is_new: changes.is_new,
            meter: meter(changes, session),
            geometry: session.geometry,
            hasher: &session.hasher,
            verify: session.options.verify,
            is_hashed: session.is_hashed(),
            barriers: changes.barriers,
            window: changes
                .outlives_job
                .then(|| Box::new(FlushWindow::new(changes.barriers.window()))),
            unproven: Mutex::default(),
            progress: &session.progress,
            written: AtomicU64::new(0),
            zeroed_blocks: AtomicU64::new(0),
        }
    }

    /// Whether all of the target is known to read zero.
    pub(super) fn is_new(&self) -> bool {
        self.is_new
    }

    /// Bytes written so far.
    pub(crate) fn written_len(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Blocks that were made zero so far.
    pub(crate) fn zeroed_count(&self) -> u64 {
        self.zeroed_blocks.load(Ordering::Relaxed)
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
    /// As [`InPlace::prove`].
    pub(crate) fn finish(&self) -> Result<()> {
        // The source has zeros where the target reads zeros: after this every other reader of the
        // target does, too.
        let blocks = self.target.zero_undefined()?;
        tracing::debug!(blocks, "undefined blocks of the target made zero");
        // Before the proof: nothing is written behind it.
        let closing = self.writing();
        self.target.close()?;
        drop(closing);
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
        let flushing = self.writing();
        self.barriers
            .pass(Barrier::NewFile, || self.target.flush())?;
        drop(flushing);
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
        let reading = self.progress.meters.read_back.begin();
        let paused = self.meter.map(Meter::pause);
        reading.add(total);
        scope(|scope| {
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
        drop((reading, paused));
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

    /// Writes `parts` of a block, which then has the digest `digest`.
    ///
    /// # Errors
    /// `NoSpace`, `Io`, as [`InPlace::prove`].
    pub(super) fn write(
        &self,
        block: BlockIndex,
        parts: &[Part<'_>],
        digest: Digest,
    ) -> Result<()> {
        let writing = self.writing();
        let mut len = 0;
        for (range, bytes) in parts {
            self.target.write(range.start, bytes)?;
            len += bytes.len();
        }
        self.written.fetch_add(len as u64, Ordering::Relaxed);
        writing.iter().for_each(|writing| writing.add(len as u64));
        self.flush_window(len as u64)?;
        drop(writing);
        if self.verify != VerifyLevel::Changed {
            // Nobody reads back just these, so nobody needs their sum.
            return Ok(());
        }
        let is_whole = len == self.geometry.block_len(block);
        self.remember(match is_whole && self.is_hashed {
            true => Unproven::Whole(block, digest),
            false => {
                let mut sum = blake3::Hasher::new();
                for (_, bytes) in parts {
                    sum.update(bytes);
                }
                let ranges = parts.iter().map(|(range, _)| range.clone()).collect();
                Unproven::Parts(ranges, sum.finalize())
            }
        })
    }

    /// This thread writes.
    fn writing(&self) -> Option<Working<'_>> {
        self.meter.map(Meter::begin)
    }

    /// Makes durable what was written, once it is a window.
    fn flush_window(&self, written: u64) -> Result<()> {
        let flush = || self.barriers.pass(Barrier::Window, || self.target.flush());
        match &self.window {
            Some(window) => window.add(written, flush),
            None => Ok(()),
        }
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

/// The meter that tells of writes of this kind. A full copy that is gone on with, one over a disk
/// that is there, and a child are none that a plan reckons with.
fn meter<'a>(changes: &InPlaceChanges<'_>, session: &'a Session) -> Option<&'a Meter> {
    let (options, meters) = (&session.options, &session.progress.meters);
    let is_odd = options.goes_on || options.container == Some(Container::Child);
    match (changes.is_new, options.task) {
        _ if is_odd => None,
        (true, _) => Some(&meters.write),
        (false, Task::Delta) => Some(&meters.scattered_write),
        (false, _) => None,
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
pub(super) fn within(range: &Range<ByteOffset>, start: ByteOffset) -> Range<usize> {
    let index =
        |at: ByteOffset| usize::try_from(at.0 - start.0).expect("ranges lie within their block");
    index(range.start)..index(range.end)
}
