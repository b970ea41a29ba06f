//! Reads and hashes a disk from start to end.
//!
//! ```text
//! walker (under a lock): next zero run, or next block          in order, numbered
//!   worker 1..n: read, zero?, hash                             in parallel, one buffer each
//!     reorder by number -> sink(Scanned)                       in order, on one worker at a time
//! ```
//! The calling thread is one of the workers, and the sink runs on whichever has the next piece: a
//! thread of its own for it would have to be woken for each block.
//!
//! A worker takes its buffer *before* it takes a number. So the lowest number under way always has
//! a buffer, and a sink that keeps buffers slows the scan down but cannot lock it up.
//!
//! Departure from "rayon only computes": a block is hashed by the thread that read it, while it is
//! still in that core's cache. Handing it to another pool reads it from the shared cache again.

use std::collections::BTreeMap;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::buffer::{BufferPool, PooledBuffer};
use crate::abort::Abort;
use crate::disk::{ExtentKind, Source};
use crate::error::{Error, ErrorKind, Result};
use crate::hash::{Digest, Hasher, PIECE_LEN, Pieces, PiecesHasher, is_zero};
use crate::schedule::{Mutex, MutexGuard, scope, sleep};
use crate::units::{BlockIndex, ByteOffset, Geometry};

/// A piece of the stream, in disk order.
#[derive(Debug)]
pub enum Scanned {
    /// Blocks that hold only zeros.
    Zeros {
        /// First of them.
        first: BlockIndex,
        /// How many; at least 1.
        count: u64,
    },
    /// A block that holds something else.
    Data {
        /// Which.
        block: BlockIndex,
        /// Its digest; `None` when hashing was not asked for.
        digest: Option<Digest>,
        /// Digests of its pieces, likewise.
        pieces: Option<Pieces>,
        /// Its bytes, if they were to be kept.
        bytes: Option<PooledBuffer>,
    },
}

/// Whether the bytes of a block are handed on.
///
/// Whoever needs only their hash should not ask for them: then all blocks go through one small
/// buffer for each worker, which never leaves the cache of its core. Copies into many buffers in
/// turn cost a quarter more, and where the memory is busy much more (docs/decisions/0016).
#[derive(Clone, Copy, Debug)]
pub enum Keep<'a> {
    /// Of every block.
    Always,
    /// Of none.
    Never,
    /// As long as this says so.
    While(&'a AtomicBool),
}

impl Keep<'_> {
    fn is_wanted(self) -> bool {
        match self {
            Self::Always => true,
            Self::Never => false,
            Self::While(flag) => flag.load(Ordering::Relaxed),
        }
    }
}

/// What a scan did. Counts only grow; read them at any time.
#[derive(Debug, Default)]
pub struct ScanCounts {
    /// Bytes read from the disk.
    pub read_len: AtomicU64,
    /// Blocks whose content was read (and hashed, when asked for).
    pub hashed_blocks: AtomicU64,
    /// Blocks that cost no read, because the disk said they hold nothing.
    pub skipped_blocks: AtomicU64,
    /// Bytes of the disk done so far, for progress.
    pub position: AtomicU64,
}

/// Fills the buffer with the bytes from a position on.
pub type ReadAt<'a> = dyn Fn(ByteOffset, &mut [u8]) -> Result<()> + Sync + 'a;

/// Reads a disk once, in order, on several threads.
pub struct Scanner<'a> {
    /// The disk.
    pub disk: &'a dyn Source,
    /// How it is cut.
    pub geometry: Geometry,
    /// What to hash with; `None` reads only.
    pub hasher: Option<&'a Hasher>,
    /// What to do with the bytes.
    pub keep: Keep<'a>,
    /// Where buffers of kept blocks come from. More than [`Scanner::threads`], or the sink's share
    /// starves the workers.
    pub pool: &'a BufferPool,
    /// Worker threads.
    pub threads: usize,
    /// Read past the page cache with this instead of [`Source::read`]: for the full proof.
    pub reader: Option<&'a ReadAt<'a>>,
    /// What was done.
    pub counts: &'a ScanCounts,
}

/// Where the walker stands.
struct Walker {
    next: BlockIndex,
    number: u64,
    /// The extent that was looked up last: everything up to `.0` is of kind `.1`.
    extent: Option<(ByteOffset, ExtentKind)>,
}

enum Job {
    Zeros { first: BlockIndex, count: u64 },
    Read { block: BlockIndex },
}

/// Zero runs are cut here, so that a walk over an empty disk shows progress and sees an abort.
const ZERO_RUN_MAX: u64 = 1 << 24;
/// Pieces that may be done before an earlier one; each is some dozens of bytes.
const AHEAD_MAX: u64 = 4096;
/// Bytes of a block that are read at once when they are not kept: two such buffers, as two disks of
/// one process need, fit into the own cache of a core of a server (docs/decisions/0016).
const STEP_LEN: usize = 8 * PIECE_LEN;
/// Such a wait is rare and long: one read hangs.
const AHEAD_POLL: Duration = Duration::from_millis(5);

impl Scanner<'_> {
    /// Runs to the end and hands everything to `sink`, in order, on one thread at a time.
    ///
    /// # Errors
    /// The disk's or the sink's first error; `Cancelled` after an abort.
    pub fn run(&self, abort: &Abort, sink: impl FnMut(Scanned) -> Result<()> + Send) -> Result<()> {
        let walker = Mutex::new(Walker {
            next: BlockIndex(0),
            number: 0,
            extent: None,
        });
        let stop = Abort::new();
        let order = Order::new(sink);
        scope(|scope| {
            let work = || {
                stop.guard(|| self.work(&walker, abort, &stop, &order));
            };
            for _ in 1..self.threads {
                scope.spawn(work);
            }
            work();
        });
        stop.verdict()?;
        abort.check()
    }

    fn work<S: FnMut(Scanned) -> Result<()>>(
        &self,
        walker: &Mutex<Walker>,
        abort: &Abort,
        stop: &Abort,
        order: &Order<S>,
    ) -> Result<()> {
        // Whichever ends first: the job, or this scan by another worker's error.
        let check = || stop.check().and_then(|()| abort.check());
        let mut step = Vec::new();
        loop {
            check()?;
            let buffer = match self.keep.is_wanted() {
                false => None,
                true => Some(self.pool.take(self.geometry.block_size().len(), check)?),
            };
            order.wait_for_room(check)?;
            let next = walker
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .advance(self)?;
            let Some((number, job)) = next else {
                return Ok(());
            };
            let scanned = match job {
                Job::Zeros { first, count } => {
                    self.counts
                        .skipped_blocks
                        .fetch_add(count, Ordering::Relaxed);
                    Scanned::Zeros { first, count }
                }
                Job::Read { block } => match buffer {
                    None => self.read_by_steps(block, &mut step)?,
                    Some(buffer) => self.read(block, buffer)?,
                },
            };
            order.put(number, scanned, check)?;
        }
    }

    fn read(&self, block: BlockIndex, mut bytes: PooledBuffer) -> Result<Scanned> {
        bytes.truncate(self.geometry.block_len(block));
        self.read_at(self.geometry.start_of(block), bytes.bytes_mut())?;
        self.counts.hashed_blocks.fetch_add(1, Ordering::Relaxed);
        if is_zero(bytes.as_ref()) {
            return Ok(Scanned::Zeros {
                first: block,
                count: 1,
            });
        }
        let hashed = self.hasher.map(|hasher| {
            let pieces = hasher.pieces(bytes.as_ref());
            (hasher.leaf_of(&pieces), pieces)
        });
        let (digest, pieces) = hashed.unzip();
        Ok(Scanned::Data {
            block,
            digest,
            pieces,
            bytes: Some(bytes),
        })
    }

    fn read_by_steps(&self, block: BlockIndex, step: &mut Vec<u8>) -> Result<Scanned> {
        let len = self.geometry.block_len(block);
        let mut start = self.geometry.start_of(block);
        let mut zeros = 0;
        let mut hashing: Option<PiecesHasher<'_>> = None;
        let mut left = len;
        while left > 0 {
            step.resize(left.min(STEP_LEN), 0);
            self.read_at(start, step)?;
            start = start.advanced(step.len() as u64);
            left -= step.len();
            match (&mut hashing, self.hasher) {
                (Some(hashing), _) => hashing.update(step),
                (None, _) if zeros + left + step.len() == len && is_zero(step) => {
                    zeros += step.len();
                }
                (None, Some(hasher)) => hashing.insert(hasher.in_pieces(len, zeros)).update(step),
                (None, None) => {}
            }
        }
        self.counts.hashed_blocks.fetch_add(1, Ordering::Relaxed);
        if zeros == len {
            return Ok(Scanned::Zeros {
                first: block,
                count: 1,
            });
        }
        let pieces = hashing.map(PiecesHasher::finish);
        let leaf = |pieces: &Pieces| self.hasher.map(|hasher| hasher.leaf_of(pieces));
        Ok(Scanned::Data {
            block,
            digest: pieces.as_ref().and_then(leaf),
            pieces,
            bytes: None,
        })
    }

    fn read_at(&self, at: ByteOffset, buf: &mut [u8]) -> Result<()> {
        match self.reader {
            Some(reader) => reader(at, buf)?,
            None => self.disk.read(at, buf)?,
        }
        self.counts
            .read_len
            .fetch_add(buf.len() as u64, Ordering::Relaxed);
        Ok(())
    }
}

impl Walker {
    fn advance(&mut self, scan: &Scanner<'_>) -> Result<Option<(u64, Job)>> {
        let geometry = &scan.geometry;
        if self.next.0 >= geometry.block_count().0 {
            return Ok(None);
        }
        let first = self.next;
        let at = geometry.start_of(first);
        let count = geometry
            .whole_blocks(first, self.zeros_from(scan.disk, at, geometry)?)
            .min(ZERO_RUN_MAX);
        let (job, taken) = match count {
            0 => (Job::Read { block: first }, 1),
            _ => (Job::Zeros { first, count }, count),
        };
        self.next = BlockIndex(first.0 + taken);
        scan.counts
            .position
            .store(geometry.start_of(self.next).0, Ordering::Relaxed);
        self.number += 1;
        Ok(Some((self.number - 1, job)))
    }

    /// Where the run of zeros that begins at `at` ends; `at` itself when there is none.
    /// Neighbouring extents are joined until the run is decided.
    fn zeros_from(
        &mut self,
        disk: &dyn Source,
        at: ByteOffset,
        geometry: &Geometry,
    ) -> Result<ByteOffset> {
        let limit = at.advanced(ZERO_RUN_MAX * geometry.block_size().len() as u64);
        let mut end = at;
        while end.0 < geometry.disk_len() && end < limit {
            let (until, kind) = match self.extent {
                Some((until, kind)) if until > end => (until, kind),
                _ => {
                    let found = disk.extent_at(end)?;
                    if found.end <= end {
                        let message = "the disk reports an extent without length";
                        return Err(Error::new(ErrorKind::Io, message).at(end.0));
                    }
                    self.extent = Some((found.end, found.kind));
                    (found.end, found.kind)
                }
            };
            if kind == ExtentKind::Data {
                break;
            }
            end = until;
        }
        Ok(end)
    }
}

/// Puts the results back into order.
struct Order<S> {
    early: Mutex<Early>,
    sink: Mutex<S>,
    started: AtomicU64,
    delivered: AtomicU64,
}

/// What is done before its turn.
struct Early {
    pieces: BTreeMap<u64, Scanned>,
    next: u64,
    /// A worker runs the sink; it takes along what comes meanwhile.
    is_delivering: bool,
}

impl<S: FnMut(Scanned) -> Result<()>> Order<S> {
    fn new(sink: S) -> Self {
        Self {
            early: Mutex::new(Early {
                pieces: BTreeMap::new(),
                next: 0,
                is_delivering: false,
            }),
            sink: Mutex::new(sink),
            started: AtomicU64::new(0),
            delivered: AtomicU64::new(0),
        }
    }

    /// A block of zeros gives its buffer back at once, so the pool alone does not bound how far the
    /// others run ahead of a slow read.
    fn wait_for_room(&self, check: impl Fn() -> Result<()>) -> Result<()> {
        let (started, delivered) = (&self.started, &self.delivered);
        while started.load(Ordering::Relaxed) > delivered.load(Ordering::Relaxed) + AHEAD_MAX {
            check()?;
            sleep(AHEAD_POLL);
        }
        started.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Adds a piece, and hands on what has its turn, unless somebody does so already. An error
    /// leaves it so that nobody does any more.
    fn put(&self, number: u64, scanned: Scanned, check: impl Fn() -> Result<()>) -> Result<()> {
        {
            let mut early = self.early();
            early.pieces.insert(number, scanned);
            if early.is_delivering {
                return Ok(());
            }
            early.is_delivering = true;
        }
        let mut sink = self.sink.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(scanned) = self.take_next() {
            check()?;
            sink(scanned)?;
        }
        Ok(())
    }

    /// The piece that has its turn; `None` ends the delivery.
    fn take_next(&self) -> Option<Scanned> {
        let mut early = self.early();
        let next = early.next;
        let scanned = early.pieces.remove(&next);
        match scanned {
            Some(_) => {
                early.next += 1;
                self.delivered.store(early.next, Ordering::Relaxed);
            }
            None => early.is_delivering = false,
        }
        scanned
    }

    fn early(&self) -> MutexGuard<'_, Early> {
        self.early.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::MemoryDisk;
    use crate::hash::HashKind;
    use crate::tree::{Leaf, TreeBuilder};
    use crate::units::BlockSize;

    fn scan(
        disk: &MemoryDisk,
        threads: usize,
        keep: Keep<'_>,
    ) -> (Vec<(u64, u64)>, Digest, ScanCounts) {
        let len = disk.info().virtual_size;
        let geometry = Geometry::new(len, BlockSize::new(64 << 10).unwrap()).unwrap();
        let hasher = Hasher::new(HashKind::Blake3);
        let counts = ScanCounts::default();
        let scanner = Scanner {
            disk,
            geometry,
            hasher: Some(&hasher),
            keep,
            pool: &BufferPool::new(threads + 1),
            threads,
            reader: None,
            counts: &counts,
        };
        let mut order = Vec::new();
        let mut tree = TreeBuilder::new(&hasher, geometry);
        scanner
            .run(&Abort::new(), |scanned| {
                match scanned {
                    Scanned::Zeros { first, count } => {
                        order.push((first.0, count));
                        tree.push(Leaf::Zero, count);
                    }
                    Scanned::Data { block, digest, .. } => {
                        order.push((block.0, 1));
                        tree.push(Leaf::Data(digest.unwrap()), 1);
                    }
                }
                Ok(())
            })
            .unwrap();
        (order, tree.finish(), counts)
    }

    fn striped() -> Vec<u8> {
        let mut bytes = vec![0; (64 << 10) * 40 + 512];
        for block in [0, 1, 7, 8, 39, 40] {
            bytes[block * (64 << 10) + 11] = u8::try_from(block).unwrap() + 1;
        }
        bytes
    }

    // Goal: the stream is gapless and in order whatever the threads do. Method: one and four
    // threads, same result.
    #[test]
    fn every_block_once_and_in_order() {
        let disk = MemoryDisk::new(striped());
        let (order, root, counts) = scan(&disk, 4, Keep::Always);
        let mut next = 0;
        for (first, count) in order {
            assert_eq!(first, next);
            next += count;
        }
        assert_eq!(next, 41);
        assert_eq!(root, scan(&disk, 1, Keep::Always).1);
        assert_eq!(counts.hashed_blocks.into_inner(), 6);
        assert_eq!(counts.skipped_blocks.into_inner(), 35);
    }

    // Goal: a block has the same leaf whether its bytes are kept or not. Method: data in one piece
    // of a block of many pieces, first, in the middle, last, and none.
    #[test]
    fn pieces_and_whole_blocks_agree() {
        for kind in [HashKind::Blake3, HashKind::Xxh3] {
            for at in [Some(0), Some(STEP_LEN), Some(3 * STEP_LEN + 9), None] {
                let mut bytes = vec![0; 3 * STEP_LEN + 10];
                at.into_iter().for_each(|at| bytes[at] = 1);
                let disk = MemoryDisk::new(bytes);
                let len = disk.info().virtual_size;
                let geometry = Geometry::new(len, BlockSize::DEFAULT).unwrap();
                let hasher = Hasher::new(kind);
                let root = |keep| {
                    let mut tree = TreeBuilder::new(&hasher, geometry);
                    let scanner = Scanner {
                        disk: &disk,
                        geometry,
                        hasher: Some(&hasher),
                        keep,
                        pool: &BufferPool::new(2),
                        threads: 1,
                        reader: None,
                        counts: &ScanCounts::default(),
                    };
                    let sink = |scanned| {
                        match scanned {
                            Scanned::Zeros { count, .. } => tree.push(Leaf::Zero, count),
                            Scanned::Data { digest, bytes, .. } => {
                                assert_eq!(bytes.is_some(), matches!(keep, Keep::Always));
                                tree.push(Leaf::Data(digest.unwrap()), 1);
                            }
                        }
                        Ok(())
                    };
                    scanner.run(&Abort::new(), sink).unwrap();
                    tree.finish()
                };

                assert_eq!(root(Keep::Always), root(Keep::Never), "{at:?}");
            }
        }
    }

    /// Waits, then fails, at one block; everything else is fine.
    #[derive(Debug)]
    struct SlowFailure(MemoryDisk);

    impl Source for SlowFailure {
        fn info(&self) -> crate::disk::DiskInfo {
            self.0.info()
        }

        fn read(&self, at: ByteOffset, buf: &mut [u8]) -> Result<()> {
            if at == ByteOffset(0) {
                sleep(Duration::from_millis(300));
                return Err(Error::new(ErrorKind::Io, "bad sector").at(0));
            }
            self.0.read(at, buf)
        }

        fn extent_at(&self, at: ByteOffset) -> Result<crate::disk::Extent> {
            self.0.extent_at(at)
        }
    }

    // Goal: an error ends the scan also when all buffers wait for the failed block. Method: the
    // first of 64 blocks fails late, the others fill the pool meanwhile.
    #[test]
    fn a_late_error_does_not_strand_the_other_workers() {
        let disk = SlowFailure(MemoryDisk::new(vec![7; 64 * (64 << 10)]));
        let geometry =
            Geometry::new(disk.info().virtual_size, BlockSize::new(64 << 10).unwrap()).unwrap();
        let scanner = Scanner {
            disk: &disk,
            geometry,
            hasher: None,
            keep: Keep::Always,
            pool: &BufferPool::new(8),
            threads: 4,
            reader: None,
            counts: &ScanCounts::default(),
        };
        let failed = scanner.run(&Abort::new(), |_| Ok(()));
        assert_eq!(failed.unwrap_err().message(), "bad sector");
    }

    // Goal: a sink's error ends the scan with all threads joined. Method: fail at the first piece.
    #[test]
    fn an_error_of_the_sink_ends_the_scan() {
        let disk = MemoryDisk::new(striped());
        let geometry =
            Geometry::new(disk.info().virtual_size, BlockSize::new(64 << 10).unwrap()).unwrap();
        let scanner = Scanner {
            disk: &disk,
            geometry,
            hasher: None,
            keep: Keep::Always,
            pool: &BufferPool::new(5),
            threads: 4,
            reader: None,
            counts: &ScanCounts::default(),
        };
        let failed = scanner.run(&Abort::new(), |_| Err(Error::new(ErrorKind::Io, "sink")));
        assert_eq!(failed.unwrap_err().message(), "sink");
    }
}
