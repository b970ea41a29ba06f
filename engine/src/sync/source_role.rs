//! The side that is read: hashes its disk, compares, and sends what differs.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use failback_transport::{Digest, Message, MessageReceiver, SourceEnd, TargetResult, Task};

use super::announced::{Announced, OPEN_MAX, Waiting};
use super::compressor::Compressor;
use super::map_keeper::MapKeeper;
use super::outbox::Outbox;
use super::pack::{Packed, pack_difference, pack_whole};
use super::role::{drain, pump, receive, watch};
use super::session::{Session, SessionLink, SessionOptions, SessionProgress};
use super::their_stream::{Reached, TheirHashes, TheirStream, their_stream};
use crate::abort::Abort;
use crate::disk::Source;
use crate::error::{Error, ErrorKind, Result};
use crate::hash::Hasher;
use crate::map::{MapBuilder, TrustedMap};
use crate::pipeline::{BufferPool, Keep, PooledBuffer, Scanned, Scanner};
use crate::schedule::channel::bounded;
use crate::schedule::{Condvar, Mutex, Pool, scope, with_pool};
use crate::tree::Leaf;
use crate::units::{BlockIndex, ByteOffset, Geometry, range_len};

/// How often a wait looks whether the job was aborted.
const POLL: Duration = Duration::from_millis(100);
/// Blocks of data after which the target learns how far the comparison is: often enough to keep its
/// window open.
const COMPARED_EVERY: u64 = 1024;

/// Runs the source's role to its end: what this side did, and what the target says it holds.
///
/// # Errors
/// The first error of either side. The link is closed then.
pub fn run_source(
    session: &Session,
    disk: &dyn Source,
    link: SessionLink,
    abort: &Arc<Abort>,
) -> Result<(SourceEnd, TargetResult)> {
    let SessionLink {
        mut sender,
        mut receiver,
        closer,
        peer,
    } = link;
    tracing::debug!(peer, task = ?session.options.task, "session as source");
    abort.add_closer(closer);
    let (outbox, outgoing) = Outbox::new();
    let total = session.geometry.block_count().0;
    let zero = session
        .hasher
        .leaf(&vec![0; session.geometry.block_size().len()]);
    let (hashes, theirs) = their_stream(total, zero);
    let reached = hashes.reached();
    let packing = Arc::new(Packing {
        options: session.options,
        compressor: Compressor::new(session.options.compress, outgoing.pace()),
        abort: abort.clone(),
        outstanding: Outstanding::default(),
        counts: Counts::default(),
        progress: session.progress.clone(),
    });
    let waiting = Waiting::new(session.buffer_count());
    let rereads = BufferPool::new(reread_count(session));
    let run = |pool: &Pool| {
        let (done, is_done) = bounded::<()>(0);
        scope(|scope| {
            scope.spawn(|| pump(outgoing, &mut sender, abort));
            scope.spawn(move || watch(&is_done, abort));
            let mut incoming = Incoming {
                geometry: session.geometry,
                disk,
                peer: &peer,
                waiting: &waiting,
                rereads: &rereads,
                is_map_trusted: session.trusted().is_some(),
                jobs: Jobs {
                    pool,
                    outbox: outbox.clone(),
                    packing: packing.clone(),
                },
                hashes,
            };
            let receiver = &mut receiver;
            let result = scope.spawn(move || {
                // The queue of hashes closes after the error is known, or its end would be taken
                // for the cause.
                let result = abort.guard(|| incoming.run(receiver));
                if result.is_none() {
                    drain(receiver, abort);
                }
                result
            });
            let jobs = Jobs {
                pool,
                outbox,
                packing: packing.clone(),
            };
            let end = abort.guard(|| {
                let comparison = Comparison::new(session, &waiting, theirs, jobs);
                let again = Again {
                    disk,
                    buffers: &rereads,
                    abort,
                };
                comparison.run(&reached, &again)
            });
            let result = result
                .join()
                .expect("the receiver turns its errors into values");
            drop(done);
            end.zip(result)
        })
    };
    let outcome = with_pool(session.threads, run)
        .map_err(|e| Error::new(ErrorKind::Io, "start threads").caused_by(e))?;
    abort.verdict()?;
    let (end, result) = outcome.expect("without a verdict both have ended well");
    // The peer has said all it had to say; that it may close now is a courtesy, and lost with the
    // link.
    drop(sender.send(&Message::Bye).and_then(|()| sender.flush()));
    Ok((end, result))
}

#[derive(Debug, Default)]
struct Counts {
    changed: AtomicU64,
    raw: AtomicU64,
    sent: AtomicU64,
}

/// What every packing job needs.
#[derive(Debug)]
struct Packing {
    options: SessionOptions,
    compressor: Compressor,
    abort: Arc<Abort>,
    outstanding: Outstanding,
    counts: Counts,
    progress: Arc<SessionProgress>,
}

/// Blocks that were announced and are not queued for sending yet.
#[derive(Debug, Default)]
struct Outstanding {
    count: Mutex<u64>,
    /// There are none any more, or no longer too many.
    is_less: Condvar,
}

impl Outstanding {
    fn add(&self) {
        *self.count.lock().unwrap_or_else(PoisonError::into_inner) += 1;
    }

    /// Adds one as soon as there are fewer than the target has to take.
    fn add_within_limit(&self, abort: &Abort) -> Result<()> {
        let mut count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        while *count >= OPEN_MAX as u64 {
            abort.check()?;
            let waited = self.is_less.wait_timeout(count, POLL);
            count = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        *count += 1;
        Ok(())
    }

    fn remove(&self) {
        let mut count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        *count -= 1;
        if *count == 0 || *count + 1 == OPEN_MAX as u64 {
            self.is_less.notify_all();
        }
    }

    fn wait_until_none(&self, abort: &Abort) -> Result<()> {
        let mut count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        while *count > 0 {
            abort.check()?;
            let waited = self.is_less.wait_timeout(count, POLL);
            count = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        abort.check()
    }
}

/// Packs blocks on the pool; a job computes and queues, it never waits.
#[derive(Clone)]
struct Jobs<'p> {
    pool: &'p Pool,
    outbox: Outbox,
    packing: Arc<Packing>,
}

impl Jobs<'_> {
    fn spawn(&self, pack: impl FnOnce(&Packing) -> Result<Packed> + Send + 'static) {
        let (outbox, packing) = (self.outbox.clone(), self.packing.clone());
        self.pool.spawn(move || {
            packing.abort.guard(|| {
                let packed = pack(&packing)?;
                packing.send(packed, &outbox);
                packing.outstanding.remove();
                Ok(())
            });
        });
    }
}

impl Packing {
    fn send(&self, Packed { data, changed_len }: Packed, outbox: &Outbox) {
        let sent = data.payload.len() as u64;
        if self.options.task != Task::Full {
            self.counts
                .changed
                .fetch_add(changed_len, Ordering::Relaxed);
        }
        self.counts
            .raw
            .fetch_add(u64::from(data.raw_len), Ordering::Relaxed);
        self.counts.sent.fetch_add(sent, Ordering::Relaxed);
        self.progress.payload.fetch_add(sent, Ordering::Relaxed);
        outbox.send(Message::Data(data));
    }
}

/// The receiving thread.
struct Incoming<'a> {
    geometry: Geometry,
    disk: &'a dyn Source,
    peer: &'a str,
    waiting: &'a Waiting,
    /// For blocks that are read again. None of them waits for the target in these.
    rereads: &'a BufferPool,
    /// What is read is held against the map.
    is_map_trusted: bool,
    jobs: Jobs<'a>,
    hashes: TheirHashes,
}

impl Incoming<'_> {
    fn run(&mut self, receiver: &mut MessageReceiver) -> Result<TargetResult> {
        let resends = BufferPool::new(1);
        loop {
            match receive(receiver, self.peer, &self.jobs.packing.abort)? {
                Message::Hashes {
                    first_block,
                    hash_len,
                    payload,
                } => {
                    self.hashes
                        .hashes(first_block, usize::from(hash_len), payload)?;
                }
                Message::ZeroBlocks { first_block, count } => {
                    self.hashes.zeros(first_block, count)?;
                }
                Message::ScanEnd { .. } => {}
                Message::SubHashes { block, payload } => self.answer(block, payload)?,
                Message::Resend { block } => self.resend(block, &resends)?,
                Message::Result(result) => return Ok(result),
                _ => {
                    return Err(Error::new(
                        ErrorKind::Protocol,
                        "peer: a message out of place",
                    ));
                }
            }
        }
    }

    fn answer(&self, block: u64, sums: Bytes) -> Result<()> {
        let Some(announced) = self.waiting.take(block) else {
            return Err(Error::new(
                ErrorKind::Protocol,
                "peer: sub-block sums nobody asked for",
            ));
        };
        let Announced { digest, bytes, .. } = announced;
        let is_checked = bytes.is_none() && self.is_map_trusted;
        let bytes = match bytes {
            Some(bytes) => bytes,
            None => self.read_again(block)?,
        };
        self.jobs.spawn(move |packing| {
            let options = &packing.options;
            // Without a map it is not hashed again: the target holds what it gets against the
            // digest.
            if is_checked && Hasher::new(options.hash).leaf(bytes.as_ref()) != digest {
                return Err(map_rejected());
            }
            pack_difference(
                block,
                digest,
                bytes,
                &sums,
                options.sub_hash_seed,
                &packing.compressor,
            )
        });
        Ok(())
    }

    /// Waits for a buffer. Those that are out are being packed or sent, and the target takes what
    /// is sent whether or not this side takes its answers.
    fn read_again(&self, block: u64) -> Result<PooledBuffer> {
        let packing = &self.jobs.packing;
        let index = BlockIndex(block);
        let len = self.geometry.block_len(index);
        let mut bytes = self.rereads.take(len, || packing.abort.check())?;
        self.disk
            .read(self.geometry.start_of(index), bytes.bytes_mut())?;
        let counts = &packing.progress.scan;
        counts.read_len.fetch_add(len as u64, Ordering::Relaxed);
        if self.is_map_trusted {
            counts.hashed_blocks.fetch_add(1, Ordering::Relaxed);
        }
        Ok(bytes)
    }

    /// Reads the block again: its buffer is long gone, and a second read is cheaper than keeping
    /// all of them. A buffer of the pool would not do, since those may all wait for this very
    /// thread.
    fn resend(&self, block: u64, buffers: &BufferPool) -> Result<()> {
        let index = BlockIndex(block);
        let len = self.geometry.block_len(index);
        if len == 0 {
            return Err(Error::new(
                ErrorKind::Protocol,
                "peer: asks for a block past the end",
            ));
        }
        let mut bytes = buffers.take(len, || self.jobs.packing.abort.check())?;
        self.disk
            .read(self.geometry.start_of(index), bytes.bytes_mut())?;
        let hasher = Hasher::new(self.jobs.packing.options.hash);
        let digest = hasher.leaf(bytes.as_ref());
        self.jobs.packing.outstanding.add();
        self.jobs
            .spawn(move |packing| Ok(pack_whole(block, digest, bytes, &packing.compressor)));
        Ok(())
    }
}

/// The comparison: this side's own scan, or its map, beside the target's stream.
struct Comparison<'a> {
    session: &'a Session,
    waiting: &'a Waiting,
    theirs: TheirStream,
    jobs: Jobs<'a>,
    tree: MapBuilder,
    /// Blocks to become zero that were not announced yet: neighbours travel as one message.
    zeros: Range<u64>,
    compared: u64,
    told: u64,
    differing: u64,
    zeroed: u64,
    /// Bytes that were not read, since the map says what they are.
    vouched: u64,
    recent: Recent,
}

/// Reads blocks whose bytes were not kept.
struct Again<'a> {
    disk: &'a dyn Source,
    buffers: &'a BufferPool,
    abort: &'a Abort,
}

impl Again<'_> {
    fn read(&self, session: &Session, block: BlockIndex) -> Result<PooledBuffer> {
        let len = session.geometry.block_len(block);
        let mut bytes = self.buffers.take(len, || self.abort.check())?;
        let start = session.geometry.start_of(block);
        self.disk.read(start, bytes.bytes_mut())?;
        let counts = &session.progress.scan;
        counts.read_len.fetch_add(len as u64, Ordering::Relaxed);
        Ok(bytes)
    }
}

/// Buffers for blocks that are read again. A pool of its own: all of the scan's can be in blocks
/// that wait for the one that needs a buffer now.
fn reread_count(session: &Session) -> usize {
    (session.buffer_count() / 4).max(2)
}

/// Which of the last 64 blocks of data differed, one bit for each.
///
/// While few do, it is cheaper to read those again than to keep the bytes of all until they are
/// compared.
#[derive(Clone, Copy, Debug, Default)]
struct Recent(u64);

impl Recent {
    /// A second read costs one block a whole copy; keeping costs every block from a quarter of one
    /// to more than half, as busy as the memory is (docs/decisions/0016).
    const MANY: u32 = 24;

    fn push(&mut self, differs: bool) {
        self.0 = self.0 << 1 | u64::from(differs);
    }

    fn many_differ(self) -> bool {
        self.0.count_ones() > Self::MANY
    }
}

impl<'a> Comparison<'a> {
    fn new(
        session: &'a Session,
        waiting: &'a Waiting,
        theirs: TheirStream,
        jobs: Jobs<'a>,
    ) -> Self {
        Self {
            session,
            waiting,
            theirs,
            jobs,
            tree: MapBuilder::new(&session.hasher, session.geometry, None),
            zeros: 0..0,
            compared: 0,
            told: 0,
            differing: 0,
            zeroed: 0,
            recent: Recent::default(),
            vouched: 0,
        }
    }

    fn run(mut self, reached: &Reached, again: &Again<'_>) -> Result<SourceEnd> {
        let session = self.session;
        let Again { disk, abort, .. } = *again;
        // A disk whose map is believed has no other.
        let (keeper, writer) = match &session.map.trusted {
            None => MapKeeper::begin(session, disk, false),
            Some(_) => MapKeeper::begin_none(session),
        };
        self.tree = MapBuilder::new(&session.hasher, session.geometry, writer);
        let pool = BufferPool::new(session.buffer_count() - reread_count(session));
        match session.trusted() {
            Some(trusted) => self.compare_map(trusted, again)?,
            None => self.scan(&pool, reached, again)?,
        }
        self.announce_zeros();
        self.tell_compared();
        // Every block that was announced is on its way then: the counts are final, and END comes
        // after all data.
        self.jobs.packing.outstanding.wait_until_none(abort)?;
        let end = self.end();
        let Self { jobs, mut tree, .. } = self;
        jobs.outbox.send(Message::End(end.clone()));
        if let Some(root) = end.root {
            keeper.keep(tree.finish().1, root, disk, false);
        }
        Ok(end)
    }

    fn scan(&mut self, pool: &BufferPool, reached: &Reached, again: &Again<'_>) -> Result<()> {
        let session = self.session;
        let Again { disk, abort, .. } = *again;
        let many_differ = AtomicBool::new(false);
        let lead = session.threads as u64;
        let read = |at: ByteOffset, buf: &mut [u8]| {
            if session.options.task != Task::Full {
                let block = session.geometry.block_at(at).map_or(0, |block| block.0);
                reached.wait((block + 1).saturating_sub(lead), abort)?;
            }
            disk.read(at, buf)
        };
        let scanner = Scanner {
            disk,
            geometry: session.geometry,
            hasher: session.is_hashed().then_some(&session.hasher),
            keep: match session.options.task {
                Task::Delta => Keep::While(&many_differ),
                Task::Compare | Task::Map => Keep::Never,
                Task::Full => Keep::Always,
            },
            pool,
            threads: session.threads,
            reader: Some(&read),
            counts: &session.progress.scan,
        };
        scanner.run(abort, |scanned| match session.options.task {
            Task::Full => self.send_unseen(scanned),
            _ => {
                self.compare(scanned, again)?;
                many_differ.store(self.recent.many_differ(), Ordering::Relaxed);
                Ok(())
            }
        })
    }

    /// The map says what the disk holds; only what differs is read, and held against it.
    fn compare_map(&mut self, trusted: &TrustedMap, again: &Again<'_>) -> Result<()> {
        let session = self.session;
        for run in trusted.map.walk()? {
            let (leaf, count) = run.map_err(|e| map_rejected().caused_by(e))?;
            let block = BlockIndex(self.compared);
            match leaf {
                Leaf::Zero => self.compare(
                    Scanned::Zeros {
                        first: block,
                        count,
                    },
                    again,
                )?,
                Leaf::Data(digest) => {
                    self.tree.push(leaf, 1);
                    let (theirs, _) = self.theirs.next(1, again.abort)?;
                    let len = session.geometry.block_len(block);
                    if theirs == leaf {
                        self.vouched += len as u64;
                    } else {
                        self.differs(block, digest, None, theirs, again)?;
                    }
                    self.advance(1);
                }
            }
            session.progress.scan.position.store(
                session.geometry.start_of(BlockIndex(self.compared)).0,
                Ordering::Relaxed,
            );
        }
        Ok(())
    }

    fn compare(&mut self, scanned: Scanned, again: &Again<'_>) -> Result<()> {
        match scanned {
            Scanned::Zeros { mut count, .. } => {
                self.tree.push(Leaf::Zero, count);
                while count > 0 {
                    let (theirs, run) = self.theirs.next(count, again.abort)?;
                    if theirs != Leaf::Zero {
                        self.make_zero(run);
                    }
                    self.advance(run);
                    count -= run;
                }
            }
            Scanned::Data {
                block,
                digest,
                bytes,
            } => {
                let digest = digest.expect("a comparison hashes");
                self.tree.push(Leaf::Data(digest), 1);
                let (theirs, _) = self.theirs.next(1, again.abort)?;
                let is_equal = theirs == Leaf::Data(digest);
                self.recent.push(!is_equal);
                if !is_equal {
                    self.differs(block, digest, bytes, theirs, again)?;
                }
                self.advance(1);
            }
        }
        Ok(())
    }

    fn differs(
        &mut self,
        block: BlockIndex,
        digest: Digest,
        bytes: Option<PooledBuffer>,
        theirs: Leaf,
        again: &Again<'_>,
    ) -> Result<()> {
        self.differing += 1;
        if self.session.options.task == Task::Compare {
            return Ok(());
        }
        self.jobs
            .packing
            .outstanding
            .add_within_limit(again.abort)?;
        let number = block.0;
        if theirs != Leaf::Zero {
            self.waiting.add(number, digest, bytes, again.abort)?;
            self.jobs.outbox.send(Message::Want { block: number });
            return Ok(());
        }
        let bytes = match bytes {
            Some(bytes) => bytes,
            None => self.read_mapped(block, digest, again)?,
        };
        self.jobs.outbox.send(Message::Want { block: number });
        self.jobs
            .spawn(move |packing| Ok(pack_whole(number, digest, bytes, &packing.compressor)));
        Ok(())
    }

    /// Reads a block whose bytes were not kept, and holds it against the map where one is believed.
    fn read_mapped(
        &self,
        block: BlockIndex,
        digest: Digest,
        again: &Again<'_>,
    ) -> Result<PooledBuffer> {
        let session = self.session;
        let bytes = again.read(session, block)?;
        if session.trusted().is_some() {
            if session.hasher.leaf(bytes.as_ref()) != digest {
                return Err(map_rejected());
            }
            let counts = &session.progress.scan;
            counts.hashed_blocks.fetch_add(1, Ordering::Relaxed);
        }
        Ok(bytes)
    }

    /// A full copy: nothing is known about the target, and nothing is asked.
    fn send_unseen(&mut self, scanned: Scanned) -> Result<()> {
        match scanned {
            Scanned::Zeros { count, .. } => {
                if self.session.is_hashed() {
                    self.tree.push(Leaf::Zero, count);
                }
                self.make_zero(count);
                self.compared += count;
            }
            Scanned::Data {
                block,
                digest,
                bytes,
            } => {
                if let Some(digest) = digest {
                    self.tree.push(Leaf::Data(digest), 1);
                }
                let bytes = bytes.expect("a full copy keeps them");
                // Nobody looks at it in a session without hashes; the message has a place for one
                // all the same.
                let digest = digest.unwrap_or_else(|| self.session.options.hash.zero_digest());
                // What came before first: the target holds back what is out of order, within a
                // limit.
                self.announce_zeros();
                self.compared += 1;
                self.jobs.packing.outstanding.add();
                let block = block.0;
                self.jobs.spawn(move |packing| {
                    Ok(pack_whole(block, digest, bytes, &packing.compressor))
                });
            }
        }
        Ok(())
    }

    fn make_zero(&mut self, count: u64) {
        if self.session.options.task != Task::Full {
            let range = self
                .session
                .geometry
                .range_of(BlockIndex(self.compared), count);
            self.jobs
                .packing
                .counts
                .changed
                .fetch_add(range_len(&range), Ordering::Relaxed);
            self.differing += count;
            self.zeroed += count;
        }
        if self.session.options.task == Task::Compare {
            return;
        }
        if self.zeros.end != self.compared {
            self.announce_zeros();
            self.zeros = self.compared..self.compared;
        }
        self.zeros.end += count;
    }

    fn announce_zeros(&mut self) {
        let Range { start, end } = std::mem::take(&mut self.zeros);
        if start < end {
            self.jobs.outbox.send(Message::Zero {
                first_block: start,
                count: end - start,
            });
        }
    }

    fn advance(&mut self, count: u64) {
        self.compared += count;
        if self.compared - self.told >= COMPARED_EVERY {
            self.announce_zeros();
            self.tell_compared();
        }
    }

    fn tell_compared(&mut self) {
        if self.session.options.task != Task::Full {
            self.told = self.compared;
            self.jobs.outbox.send(Message::Compared {
                up_to_block: self.compared,
            });
        }
    }

    fn end(&self) -> SourceEnd {
        let scan = &self.session.progress.scan;
        let counts = &self.jobs.packing.counts;
        let total = self.session.geometry.block_count().0;
        let is_whole = self.tree.next().0 == total && self.session.is_hashed();
        SourceEnd {
            root: is_whole.then(|| self.tree.root()),
            source_read: scan.read_len.load(Ordering::Relaxed),
            hashed_blocks: scan.hashed_blocks.load(Ordering::Relaxed),
            skipped_blocks: scan.skipped_blocks.load(Ordering::Relaxed),
            differing_blocks: self.differing,
            zeroed_blocks: self.zeroed,
            changed_bytes: counts.changed.load(Ordering::Relaxed),
            raw_bytes: counts.raw.load(Ordering::Relaxed),
            sent_bytes: counts.sent.load(Ordering::Relaxed),
            vouched_bytes: self.vouched,
        }
    }
}

/// What a job ends with when a map that was believed is found to lie: it is run again without.
pub(super) fn map_rejected() -> Error {
    let message = "the saved map of the disk is not what the disk holds (map_rejected:audit)";
    Error::new(ErrorKind::MapRejected, message)
}
