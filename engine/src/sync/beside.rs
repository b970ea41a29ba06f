//! A session of two disks that are open in one process: their bytes are compared, not their hashes.
//!
//! ```text
//!   worker 1..n: read both, compare piece by piece, hash the source's         in parallel
//!        -> sink: tree of the source                                          in order
//!             a piece differs -> worker 1..m: read it of both, find the pages, apply
//! ```
//! What is equal by its bytes has one hash, so only one side is hashed, and where nobody wants a
//! root neither is. What is written has the hash of the source's bytes, which were hashed again;
//! the proof reads it back as ever.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};

use failback_transport::{Apply, SourceEnd, TargetResult, Task, VerifyLevel};

use super::conclusion::{Conclusion, is_changed};
use super::map_keeper::MapKeeper;
use super::session::{Session, SideMap};
use super::target_role::InPlaceChanges;
use crate::abort::Abort;
use crate::apply::{Applier, Part};
use crate::disk::{DiskInfo, Extent, ExtentKind, Source};
use crate::error::{Error, ErrorKind, Result};
use crate::hash::{Digest, PIECE_LEN, PieceSet, Pieces, is_zero};
use crate::identity::Facts;
use crate::map::MapBuilder;
use crate::pipeline::{BufferPool, Keep, Scanned, Scanner, read_pieces};
use crate::schedule::channel::{Receiver, Sender, bounded};
use crate::schedule::{Mutex, scope};
use crate::tree::Leaf;
use crate::units::{BlockIndex, ByteOffset, SUB_BLOCK_LEN};

/// Blocks that wait for the applying threads: numbers and digests, no bytes.
const WORK_MAX: usize = 64;

/// The source, in the process of the target.
#[derive(Clone, Copy, Debug)]
pub struct Beside<'a> {
    /// The disk that is read.
    pub source: &'a dyn Source,
    /// Its side of the session, with its map.
    pub session: &'a Session,
}

impl Beside<'_> {
    /// Whether two disks can be compared this way: where a map stands for reads there are no bytes,
    /// and a full copy compares nothing.
    #[must_use]
    pub fn fits(&self, target: &SideMap) -> bool {
        let is_compared = self.session.options.task != Task::Full;
        is_compared && self.session.trusted().is_none() && target.trusted.is_none()
    }
}

/// The source, where one of the two disks has data.
#[derive(Debug)]
struct Pair<'a> {
    source: &'a dyn Source,
    target: &'a dyn Source,
}

impl Source for Pair<'_> {
    fn info(&self) -> DiskInfo {
        self.source.info()
    }

    fn read(&self, at: ByteOffset, buf: &mut [u8]) -> Result<()> {
        self.source.read(at, buf)
    }

    fn extent_at(&self, at: ByteOffset) -> Result<Extent> {
        let (a, b) = (self.source.extent_at(at)?, self.target.extent_at(at)?);
        Ok(Extent {
            end: a.end.min(b.end),
            kind: match (a.kind, b.kind) {
                (ExtentKind::Data, _) | (_, ExtentKind::Data) => ExtentKind::Data,
                (kind, _) => kind,
            },
        })
    }

    fn facts(&self) -> Result<Option<Facts>> {
        self.source.facts()
    }
}

/// A block that differs.
enum Work {
    Zero(BlockIndex),
    Data {
        block: BlockIndex,
        set: PieceSet,
        hashed: Option<(Digest, Pieces)>,
    },
}

/// See the module's head.
struct Comparison<'a> {
    session: &'a Session,
    source: &'a dyn Source,
    target: &'a dyn Source,
    applier: Option<&'a Applier<'a>>,
    is_hashed: bool,
    /// Digest of a whole block of zeros, which may be so in pieces that nobody had to read again.
    zero: Digest,
    /// Pieces that differ, of blocks that were read and are not yet in the tree.
    dirty: Mutex<HashMap<u64, u64>>,
    counts: Counts,
    abort: &'a Abort,
}

#[derive(Debug, Default)]
struct Counts {
    /// A second time; the first is in the counts of the scan.
    source_reread: AtomicU64,
    target_read: AtomicU64,
    changed: AtomicU64,
    sent: AtomicU64,
}

/// Runs the session to its end. `disk` is the target as it is, or as an earlier run left it.
///
/// # Errors
/// The first error of either disk.
pub(super) fn run(
    session: &Session,
    disk: &dyn Source,
    (applier, last_step): (Option<&Applier<'_>>, Option<InPlaceChanges<'_>>),
    beside: &Beside<'_>,
    abort: &Arc<Abort>,
) -> Result<(SourceEnd, TargetResult)> {
    let options = &session.options;
    let is_proven = options.verify != VerifyLevel::Off || options.apply != Apply::InPlace;
    let (keeper, writer) = MapKeeper::begin(session, disk, true);
    let (source_keeper, source_writer) = MapKeeper::begin(beside.session, beside.source, false);
    let map = |writer| MapBuilder::new(&session.hasher, session.geometry, writer);
    let comparison = Comparison {
        session,
        source: beside.source,
        target: disk,
        applier,
        is_hashed: is_proven || options.task == Task::Compare,
        zero: session.hasher.zero_leaf(session.geometry.block_size()),
        dirty: Mutex::default(),
        counts: Counts::default(),
        abort,
    };
    let mut trees = Trees {
        source: map(source_writer),
        target: map(writer),
        differing: 0,
        zeroed: 0,
    };
    comparison.compare(&mut trees)?;
    let end = comparison.end(&trees);
    let root = comparison.is_hashed.then(|| trees.target.root());
    let conclusion = Conclusion {
        session,
        to: applier.map(|applier| &applier.to),
        abort,
    };
    let mut result = conclusion.conclude(root, &end, last_step)?;
    // Two contents may have one XXH3 sum; these were seen to differ.
    result.equal &= applier.is_some() || trees.differing == 0;
    comparison.tell(&mut result);
    if let (true, Some(root)) = (result.equal, root) {
        keeper.keep(trees.target.finish().1, root, disk, is_changed(&result));
        source_keeper.keep(trees.source.finish().1, root, beside.source, false);
    }
    Ok((end, result))
}

/// The trees of both disks: the target's as it will be, or in a comparison as it is.
struct Trees {
    source: MapBuilder,
    target: MapBuilder,
    differing: u64,
    zeroed: u64,
}

impl Trees {
    fn push(&mut self, leaf: Leaf, count: u64) {
        self.source.push(leaf, count);
        self.target.push(leaf, count);
    }
}

impl Comparison<'_> {
    fn compare(&self, trees: &mut Trees) -> Result<()> {
        let (work, queue) = bounded(WORK_MAX);
        scope(|scope| {
            if self.applier.is_some() {
                for _ in 0..self.session.threads {
                    let queue = queue.clone();
                    scope.spawn(move || self.abort.guard(|| self.apply_all(&queue)));
                }
            }
            drop(queue);
            self.abort.guard(|| self.scan(trees, &work));
            drop(work);
        });
        self.abort.verdict()
    }

    fn scan(&self, trees: &mut Trees, work: &Sender<Work>) -> Result<()> {
        let pair = Pair {
            source: self.source,
            target: self.target,
        };
        let scratch = BufferPool::new(self.session.threads);
        let read = |at: ByteOffset, buf: &mut [u8]| {
            let mut theirs = scratch.take(buf.len(), || self.abort.check())?;
            self.read_both(at, buf, theirs.bytes_mut())
        };
        let scanner = Scanner {
            disk: &pair,
            geometry: self.session.geometry,
            hasher: self.is_hashed.then_some(&self.session.hasher),
            keep: Keep::Never,
            pool: &BufferPool::new(0),
            threads: self.session.threads,
            reader: Some(&read),
            counts: &self.session.progress.scan,
        };
        scanner.run(self.abort, |scanned| self.take_in(scanned, trees, work))
    }

    /// Reads a part of one block of both disks, and notes the pieces that differ.
    fn read_both(&self, at: ByteOffset, ours: &mut [u8], theirs: &mut [u8]) -> Result<()> {
        self.source.read(at, ours)?;
        self.target.read(at, theirs)?;
        let counts = &self.counts;
        counts
            .target_read
            .fetch_add(theirs.len() as u64, Ordering::Relaxed);
        let geometry = &self.session.geometry;
        let block = geometry.block_at(at).expect("within the disk");
        let within = usize::try_from(at.0 - geometry.start_of(block).0).expect("within a block");
        let pieces = ours.chunks(PIECE_LEN).zip(theirs.chunks(PIECE_LEN));
        let mut bits = 0;
        for (index, (ours, theirs)) in pieces.enumerate() {
            if ours != theirs {
                bits |= 1_u64 << (within / PIECE_LEN + index);
            }
        }
        if bits != 0 {
            let mut dirty = self.dirty.lock().unwrap_or_else(PoisonError::into_inner);
            *dirty.entry(block.0).or_default() |= bits;
        }
        Ok(())
    }

    fn take_dirty(&self, block: BlockIndex) -> Option<PieceSet> {
        let mut dirty = self.dirty.lock().unwrap_or_else(PoisonError::into_inner);
        let bits = dirty.remove(&block.0)?;
        PieceSet::from_bits(bits, self.session.geometry.block_len(block))
    }

    fn take_in(&self, scanned: Scanned, trees: &mut Trees, work: &Sender<Work>) -> Result<()> {
        let (block, leaf, count, hashed) = match scanned {
            Scanned::Zeros { first, count } => (first, Leaf::Zero, count, None),
            Scanned::Data {
                block,
                digest,
                pieces,
                ..
            } => {
                // Nobody looks at it in a session without hashes.
                let leaf = digest.unwrap_or_else(|| self.session.options.hash.zero_digest());
                (block, Leaf::Data(leaf), 1, digest.zip(pieces))
            }
        };
        // Runs of several blocks are zeros that nobody had to read, on both sides.
        let Some(set) = self.take_dirty(block) else {
            if self.is_hashed {
                trees.push(leaf, count);
            }
            return Ok(());
        };
        trees.differing += 1;
        let len = self.session.geometry.block_len(block) as u64;
        let differing = &self.session.progress.differing;
        differing.fetch_add(len, Ordering::Relaxed);
        trees.zeroed += u64::from(leaf == Leaf::Zero);
        if self.applier.is_none() {
            trees.source.push(leaf, 1);
            let target = self.target_leaf(block, set, hashed.map(|(_, pieces)| pieces))?;
            trees.target.push(target, 1);
            return Ok(());
        }
        if self.is_hashed {
            trees.push(leaf, 1);
        }
        let job = match leaf {
            Leaf::Zero => Work::Zero(block),
            Leaf::Data(_) => Work::Data { block, set, hashed },
        };
        work.send(job)
            .map_err(|_| Error::new(ErrorKind::Cancelled, "cancelled"))
    }

    /// What the target holds, where a comparison changes nothing.
    fn target_leaf(
        &self,
        block: BlockIndex,
        set: PieceSet,
        pieces: Option<Pieces>,
    ) -> Result<Leaf> {
        let block_len = self.session.geometry.block_len(block);
        // Of a block that is zero in the source nothing is known.
        let set = if pieces.is_some() {
            set
        } else {
            PieceSet::all(block_len)
        };
        let bytes = self.read_target(block, set)?;
        Ok(match pieces {
            Some(pieces) => self.old_leaf(block, set, &bytes, pieces),
            None => Leaf::Data(self.session.hasher.leaf(&bytes)),
        })
    }

    /// The leaf of a block that has `old` where the one with `pieces` has something else.
    fn old_leaf(&self, block: BlockIndex, set: PieceSet, old: &[u8], mut pieces: Pieces) -> Leaf {
        let block_len = self.session.geometry.block_len(block);
        if set == PieceSet::all(block_len) && is_zero(old) {
            return Leaf::Zero;
        }
        let hasher = &self.session.hasher;
        for (index, piece) in set.indices().zip(old.chunks(PIECE_LEN)) {
            pieces.set(index, hasher.piece(block_len, index, piece));
        }
        match hasher.leaf_of(&pieces) {
            zero if zero == self.zero && block_len == self.session.geometry.block_size().len() => {
                Leaf::Zero
            }
            leaf => Leaf::Data(leaf),
        }
    }

    fn read_source(&self, block: BlockIndex, set: PieceSet) -> Result<Vec<u8>> {
        self.read_again(self.source, block, set, &self.counts.source_reread)
    }

    fn read_target(&self, block: BlockIndex, set: PieceSet) -> Result<Vec<u8>> {
        self.read_again(self.target, block, set, &self.counts.target_read)
    }

    fn read_again(
        &self,
        disk: &dyn Source,
        block: BlockIndex,
        set: PieceSet,
        count: &AtomicU64,
    ) -> Result<Vec<u8>> {
        let geometry = &self.session.geometry;
        let mut bytes = vec![0; set.len(geometry.block_len(block))];
        read_pieces(disk, geometry, block, set, &mut bytes)?;
        count.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(bytes)
    }

    /// An applying thread.
    fn apply_all(&self, queue: &Receiver<Work>) -> Result<()> {
        let applier = self.applier.expect("only started where there is one");
        for work in queue {
            self.abort.check()?;
            let (Work::Zero(block) | Work::Data { block, .. }) = work;
            let len = self.session.geometry.block_len(block) as u64;
            match work {
                Work::Zero(block) => {
                    self.counts.changed.fetch_add(len, Ordering::Relaxed);
                    applier.zeros(block, 1, self.abort)?;
                }
                Work::Data { block, set, hashed } => self.apply(applier, block, set, hashed)?,
            }
            let settled = &self.session.progress.settled;
            settled.fetch_add(len, Ordering::Relaxed);
        }
        Ok(())
    }

    fn apply(
        &self,
        applier: &Applier<'_>,
        block: BlockIndex,
        set: PieceSet,
        hashed: Option<(Digest, Pieces)>,
    ) -> Result<()> {
        let block_len = self.session.geometry.block_len(block);
        let start = self.session.geometry.start_of(block);
        let new = self.read_source(block, set)?;
        let old = self.read_target(block, set)?;
        let mut shown = None;
        let mut digest = self.session.options.hash.zero_digest();
        if let Some((leaf, pieces)) = hashed {
            digest = leaf;
            if self.old_leaf(block, set, &new, pieces.clone()) != Leaf::Data(leaf) {
                let message = "the source changed while it was read";
                return Err(Error::new(ErrorKind::VerifyFailed, message).at(start.0));
            }
            let old = self.old_leaf(block, set, &old, pieces);
            if old == Leaf::Data(leaf) {
                let message = "the two disks have different bytes with one hash: XXH3 is not for \
                               guests that may have made them so";
                return Err(Error::new(ErrorKind::VerifyFailed, message).at(start.0));
            }
            shown = Some(old);
        }
        let (ranges, changed, sent) = differing_pages(set, block_len, &new, &old);
        let parts: Vec<Part<'_>> = ranges
            .into_iter()
            .map(|range| {
                let place = set.place_of(&range).expect("pages lie within these pieces");
                let at = |within: usize| start.advanced(within as u64);
                (at(range.start)..at(range.end), &new[place])
            })
            .collect();
        self.counts.changed.fetch_add(changed, Ordering::Relaxed);
        self.counts.sent.fetch_add(sent, Ordering::Relaxed);
        self.session
            .progress
            .payload
            .fetch_add(sent, Ordering::Relaxed);
        match parts.is_empty() {
            // Somebody else made them equal meanwhile; the proof tells whether that lasts.
            true => Ok(()),
            false => applier.put(block, &parts, digest, shown),
        }
    }

    fn end(&self, trees: &Trees) -> SourceEnd {
        let scan = &self.session.progress.scan;
        let counts = &self.counts;
        let sent = counts.sent.load(Ordering::Relaxed);
        SourceEnd {
            root: self.is_hashed.then(|| trees.source.root()),
            source_read: scan.read_len.load(Ordering::Relaxed)
                + counts.source_reread.load(Ordering::Relaxed),
            hashed_blocks: scan.hashed_blocks.load(Ordering::Relaxed),
            skipped_blocks: scan.skipped_blocks.load(Ordering::Relaxed),
            differing_blocks: trees.differing,
            zeroed_blocks: trees.zeroed,
            changed_bytes: counts.changed.load(Ordering::Relaxed),
            raw_bytes: sent,
            sent_bytes: sent,
            ..SourceEnd::default()
        }
    }

    fn tell(&self, result: &mut TargetResult) {
        let scan = &self.session.progress.scan;
        result.target_read = self.counts.target_read.load(Ordering::Relaxed);
        result.hashed_blocks = scan.hashed_blocks.load(Ordering::Relaxed);
        result.skipped_blocks = scan.skipped_blocks.load(Ordering::Relaxed);
    }
}

/// Where pages differ, neighbours joined; bytes of all of them, and of those that are not zero.
fn differing_pages(
    set: PieceSet,
    block_len: usize,
    new: &[u8],
    old: &[u8],
) -> (Vec<Range<usize>>, u64, u64) {
    let mut ranges: Vec<Range<usize>> = Vec::new();
    let (mut changed, mut sent) = (0, 0);
    let pages = new.chunks(SUB_BLOCK_LEN).zip(old.chunks(SUB_BLOCK_LEN));
    for (index, (new, old)) in set.sub_blocks(block_len).zip(pages) {
        if new == old {
            continue;
        }
        changed += new.len() as u64;
        sent += if is_zero(new) { 0 } else { new.len() as u64 };
        let start = index * SUB_BLOCK_LEN;
        let end = start + new.len();
        match ranges.last_mut() {
            Some(last) if last.end == start => last.end = end,
            _ => ranges.push(start..end),
        }
    }
    (ranges, changed, sent)
}
