//! The side that is read: hashes its disk, compares, and sends what differs.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use failback_transport::{Digest, Message, MessageReceiver, SourceEnd, TargetResult, Task};

use super::compressor::Compressor;
use super::descending::Descending;
use super::map_keeper::MapKeeper;
use super::outbox::Outbox;
use super::pack::{Held, Packer, pack_difference, pack_whole};
use super::packing::{
    Announced, Counts, Jobs, OUTSTANDING_MAX, Outstanding, Packing, Waiting, locked,
};
use super::regions::{DirtyShare, Recent, Regions};
use super::role::{drain, pump, receive, watch};
use super::session::{Session, SessionLink};
use super::their_stream::{Reached, TheirHashes, TheirStream, their_stream};
use crate::abort::Abort;
use crate::disk::Source;
use crate::error::{Error, ErrorKind, Result};
use crate::hash::{Hasher, PieceSet, Pieces};
use crate::map::descent::{Difference, Step};
use crate::map::{MapBuilder, TrustedMap};
use crate::pipeline::{BufferPool, Keep, PooledBuffer, Scanned, Scanner, read_pieces};
use crate::plan::{BlockPlan, float};
use crate::schedule::channel::bounded;
use crate::schedule::{Pool, scope, with_pool};
use crate::tree::Leaf;
use crate::units::{BlockIndex, ByteOffset, Geometry, range_len};

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
    let zero = session.hasher.zero_leaf(session.geometry.block_size());
    let (hashes, theirs) = their_stream(total, zero);
    let reached = hashes.reached();
    let packing = Arc::new(Packing {
        options: session.options,
        packer: Packer::new(
            Compressor::new(session.options.compress, outgoing.pace()),
            session.buffer_count(),
        ),
        abort: abort.clone(),
        outstanding: Outstanding::default(),
        counts: Counts::default(),
        dirty_share: DirtyShare::default(),
        progress: session.progress.clone(),
    });
    let waiting = Waiting::default();
    let descending = abort.guard(|| Descending::begin(session, &outbox));
    let descending = descending.flatten();
    let descending = descending.as_ref();
    // Two pools: all of the first can be in blocks that wait for the one that needs a buffer of the
    // second.
    let reread_count = (session.buffer_count() / 4).max(2);
    let rereads = BufferPool::new(reread_count);
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
                descending,
            };
            let receiver = &mut receiver;
            let result = scope.spawn(move || {
                // The queue of hashes closes after the error is known, or its end would be taken
                // for the cause.
                let result = abort.guard(|| incoming.run(receiver));
                if let Some(descending) = descending {
                    descending.close();
                }
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
                let comparison = Comparison::new(session, &waiting, (theirs, descending), jobs);
                comparison.run(disk, &reached, (&rereads, reread_count), abort)
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

/// The receiving thread.
struct Incoming<'a, 's> {
    geometry: Geometry,
    disk: &'a dyn Source,
    peer: &'a str,
    waiting: &'a Waiting,
    rereads: &'a BufferPool,
    /// What is read is held against the map.
    is_map_trusted: bool,
    jobs: Jobs<'a>,
    hashes: TheirHashes,
    descending: Option<&'a Descending<'s>>,
}

impl Incoming<'_, '_> {
    fn run(&mut self, receiver: &mut MessageReceiver) -> Result<TargetResult> {
        let resends = BufferPool::new(1);
        loop {
            let message = receive(receiver, self.peer, &self.jobs.packing.abort)?;
            match (message, self.descending) {
                (
                    Message::Hashes {
                        first_block,
                        hash_len,
                        payload,
                    },
                    None,
                ) => {
                    self.hashes
                        .hashes(first_block, usize::from(hash_len), payload)?;
                }
                (Message::ZeroBlocks { first_block, count }, None) => {
                    self.hashes.zeros(first_block, count)?;
                }
                (Message::ScanEnd { .. }, None) => {}
                (
                    Message::Nodes {
                        level,
                        first,
                        hash_len,
                        payload,
                    },
                    Some(descending),
                ) => descending.answer(level, first, (hash_len.into(), &payload))?,
                (Message::Settled { up_to_block }, Some(descending)) => {
                    descending.settled(up_to_block)?;
                }
                (
                    Message::SubHashes {
                        block,
                        pieces,
                        payload,
                    },
                    _,
                ) => self.answer(block, pieces, payload)?,
                (Message::Resend { block }, _) => self.resend(block, &resends)?,
                (Message::Result(result), _) => return Ok(result),
                _ => {
                    return Err(Error::new(
                        ErrorKind::Protocol,
                        "peer: a message out of place",
                    ));
                }
            }
        }
    }

    fn answer(&self, block: u64, pieces: u64, sums: Bytes) -> Result<()> {
        let refused = |message: &str| Error::new(ErrorKind::Protocol, format!("peer: {message}"));
        let waiting = locked(self.waiting).remove(&block);
        let Some(Announced { digest, bytes }) = waiting else {
            return Err(refused("sub-block sums nobody asked for"));
        };
        let block_len = self.geometry.block_len(BlockIndex(block));
        let Some(asked) = PieceSet::from_bits(pieces, block_len) else {
            return Err(refused("sub-block sums of no piece of the block"));
        };
        self.jobs.packing.dirty_share.push(asked, block_len);
        let held = match bytes {
            Some(bytes) => Held::whole(bytes),
            None if self.is_map_trusted => {
                let counts = &self.jobs.packing.progress.scan;
                counts.hashed_blocks.fetch_add(1, Ordering::Relaxed);
                self.read_pieces(block, PieceSet::all(block_len), block_len)?
            }
            None => self.read_pieces(block, asked, block_len)?,
        };
        let is_checked = self.is_map_trusted;
        self.jobs.spawn(move |packing| {
            if is_checked {
                let hasher = Hasher::new(packing.options.hash);
                check_leaf(&hasher, held.bytes.as_ref(), digest)?;
            }
            let asked = (asked, sums.as_ref());
            let seed = packing.options.sub_hash_seed;
            let packer = &packing.packer;
            let packed = pack_difference(block, digest, held, asked, seed, packer)?;
            let dirty_share = &packing.dirty_share;
            dirty_share.push_pages(packed.changed_len, packed.whole_len);
            Ok(packed)
        });
        Ok(())
    }

    /// Not hashed again: the target holds what it gets against the digest. The buffer comes back
    /// without this thread: it waits in what is to be sent.
    fn read_pieces(&self, block: u64, pieces: PieceSet, block_len: usize) -> Result<Held> {
        let abort = &self.jobs.packing.abort;
        let len = pieces.len(block_len);
        let mut bytes = self.rereads.take(len, || abort.check())?;
        let (index, buffer) = (BlockIndex(block), bytes.bytes_mut());
        read_pieces(self.disk, &self.geometry, index, pieces, buffer)?;
        let counts = &self.jobs.packing.progress.scan;
        counts.read_len.fetch_add(len as u64, Ordering::Relaxed);
        Ok(Held {
            bytes,
            pieces,
            block_len,
        })
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
            .spawn(move |packing| Ok(pack_whole(block, digest, bytes, &packing.packer)));
        Ok(())
    }
}

/// The comparison: this side's own scan, or its map, beside the target's stream.
struct Comparison<'a, 's> {
    session: &'a Session,
    waiting: &'a Waiting,
    theirs: TheirStream,
    /// Instead of their stream.
    descending: Option<&'a Descending<'s>>,
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
    regions: Regions,
}

/// Reads blocks whose bytes were not kept.
struct Again<'a> {
    disk: &'a dyn Source,
    buffers: &'a BufferPool,
    abort: &'a Abort,
}

impl Again<'_> {
    /// Held against the map, where that was believed so far.
    fn read(&self, session: &Session, block: BlockIndex, leaf: Digest) -> Result<PooledBuffer> {
        let len = session.geometry.block_len(block);
        let mut bytes = self.buffers.take(len, || self.abort.check())?;
        let start = session.geometry.start_of(block);
        self.disk.read(start, bytes.bytes_mut())?;
        let counts = &session.progress.scan;
        counts.read_len.fetch_add(len as u64, Ordering::Relaxed);
        if session.trusted().is_some() {
            counts.hashed_blocks.fetch_add(1, Ordering::Relaxed);
            check_leaf(&session.hasher, bytes.as_ref(), leaf)?;
        }
        Ok(bytes)
    }
}

impl<'a, 's> Comparison<'a, 's> {
    fn new(
        session: &'a Session,
        waiting: &'a Waiting,
        (theirs, descending): (TheirStream, Option<&'a Descending<'s>>),
        jobs: Jobs<'a>,
    ) -> Self {
        Self {
            session,
            waiting,
            theirs,
            descending,
            jobs,
            tree: MapBuilder::new(&session.hasher, session.geometry, None),
            zeros: 0..0,
            compared: 0,
            told: 0,
            differing: 0,
            zeroed: 0,
            recent: Recent::default(),
            regions: Regions::new(session),
            vouched: 0,
        }
    }

    fn run(
        mut self,
        disk: &dyn Source,
        reached: &Reached,
        (rereads, reread_count): (&BufferPool, usize),
        abort: &Abort,
    ) -> Result<SourceEnd> {
        let session = self.session;
        abort.check()?;
        // A disk whose map is believed has no other.
        let (keeper, writer) = match &session.map.trusted {
            None => MapKeeper::begin(session, disk, false),
            Some(_) => MapKeeper::begin_none(session),
        };
        self.tree = MapBuilder::new(&session.hasher, session.geometry, writer);
        let pool = BufferPool::new(session.buffer_count() - reread_count);
        let again = Again {
            disk,
            buffers: rereads,
            abort,
        };
        match (session.trusted(), self.descending) {
            (Some(trusted), Some(descending)) => self.descend(trusted, descending, &again)?,
            (Some(trusted), None) => self.compare_map(trusted, &again)?,
            (None, _) => self.scan(&pool, reached, &again)?,
        }
        self.announce_zeros();
        self.tell_compared();
        // Every block that was announced is on its way then: the counts are final, and END comes
        // after all data.
        self.jobs.packing.outstanding.wait_until_none(abort)?;
        let end = self.end();
        let Self {
            jobs,
            mut tree,
            descending,
            ..
        } = self;
        jobs.outbox.send(Message::End(end.clone()));
        if let (Some(root), None) = (end.root, descending) {
            keeper.keep(tree.finish().1, root, disk, false);
        }
        Ok(end)
    }

    fn scan(&mut self, pool: &BufferPool, reached: &Reached, again: &Again<'_>) -> Result<()> {
        let session = self.session;
        let Again { disk, abort, .. } = *again;
        let keeps = AtomicBool::new(false);
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
                Task::Delta => Keep::While(&keeps),
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
                let dirty_share = self.jobs.packing.dirty_share.pieces();
                let much_differs = self.recent.much_differs(dirty_share);
                let keeps_all = much_differs || self.regions.sends_whole();
                keeps.store(keeps_all, Ordering::Relaxed);
                Ok(())
            }
        })
    }

    /// Both maps say what the disks hold; only what differs is looked at.
    fn descend(
        &mut self,
        trusted: &TrustedMap,
        descending: &Descending<'_>,
        again: &Again<'_>,
    ) -> Result<()> {
        let total = self.session.geometry.block_count().0;
        let data_len = trusted.map.data_len();
        self.vouched = data_len.map_err(|e| map_rejected().caused_by(e))?;
        loop {
            if descending.is_full() {
                // The target settles nothing that it has not heard of.
                self.announce_zeros();
                self.tell_compared();
                descending.wait_for_room(again.abort)?;
            }
            match descending.next(self.compared, again.abort)? {
                Step::Differs(difference) => {
                    self.advance(difference.block - self.compared);
                    self.take_in(difference, again)?;
                    self.advance(1);
                }
                Step::Waits(block) => self.advance(block - self.compared),
                Step::Ends => {
                    self.advance(total - self.compared);
                    return Ok(());
                }
            }
            self.tell_position();
        }
    }

    /// The next block, which differs.
    fn take_in(&mut self, difference: Difference, again: &Again<'_>) -> Result<()> {
        match difference.ours {
            Leaf::Zero => self.make_zero(1),
            Leaf::Data(digest) => {
                let block = BlockIndex(difference.block);
                self.vouched -= self.session.geometry.block_len(block) as u64;
                self.differs(block, (digest, None), None, difference.theirs, again)?;
            }
        }
        Ok(())
    }

    fn tell_position(&self) {
        let session = self.session;
        let position = session.geometry.start_of(BlockIndex(self.compared)).0;
        let counts = &session.progress.scan;
        counts.position.store(position, Ordering::Relaxed);
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
                        self.differs(block, (digest, None), None, theirs, again)?;
                    }
                    self.advance(1);
                }
            }
            self.tell_position();
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
                pieces,
                bytes,
            } => {
                let digest = digest.expect("a comparison hashes");
                self.tree.push(Leaf::Data(digest), 1);
                self.enter_region(block);
                let (theirs, _) = self.theirs.next(1, again.abort)?;
                let is_equal = theirs == Leaf::Data(digest);
                self.recent.push(!is_equal);
                self.regions.compared(!is_equal);
                if !is_equal {
                    self.differs(block, (digest, pieces), bytes, theirs, again)?;
                }
                self.advance(1);
            }
        }
        Ok(())
    }

    /// The plan may be another one from here on.
    fn enter_region(&mut self, block: BlockIndex) {
        let packing = &self.jobs.packing;
        let link = packing.packer.link_rate().map(float);
        let Some(plan) = self.regions.enter(block.0, &packing.dirty_share, link) else {
            return;
        };
        let from = self.session.geometry.start_of(block).0;
        self.session.progress.replanned(from, plan);
        self.jobs.outbox.send(Message::Replan {
            first_block: block.0,
            sends_whole: plan == BlockPlan::Whole,
        });
    }

    fn differs(
        &mut self,
        block: BlockIndex,
        (digest, pieces): (Digest, Option<Pieces>),
        bytes: Option<PooledBuffer>,
        theirs: Leaf,
        again: &Again<'_>,
    ) -> Result<()> {
        self.differing += 1;
        let len = self.session.geometry.block_len(block) as u64;
        let differing = &self.session.progress.differing;
        differing.fetch_add(len, Ordering::Relaxed);
        if self.session.options.task == Task::Compare {
            return Ok(());
        }
        let outstanding = &self.jobs.packing.outstanding;
        outstanding.wait_until_below(OUTSTANDING_MAX, again.abort)?;
        outstanding.add();
        let number = block.0;
        // Nothing has to be asked about zeros.
        let asks = theirs != Leaf::Zero && self.regions.asks(len);
        let want = Message::Want {
            block: number,
            asks,
            payload: pieces
                .filter(|_| asks)
                .map_or_else(Bytes::new, |pieces| pieces.ids()),
        };
        if !asks {
            let bytes = match bytes {
                Some(bytes) => bytes,
                None => again.read(self.session, block, digest)?,
            };
            self.jobs.outbox.send(want);
            self.jobs
                .spawn(move |packing| Ok(pack_whole(number, digest, bytes, &packing.packer)));
            return Ok(());
        }
        locked(self.waiting).insert(number, Announced { digest, bytes });
        self.jobs.outbox.send(want);
        Ok(())
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
                ..
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
                self.jobs
                    .spawn(move |packing| Ok(pack_whole(block, digest, bytes, &packing.packer)));
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
        let known = self.descending.and(self.session.trusted());
        SourceEnd {
            root: match known {
                Some(trusted) => Some(trusted.map.root()),
                None => is_whole.then(|| self.tree.root()),
            },
            source_read: scan.read_len.load(Ordering::Relaxed),
            hashed_blocks: scan.hashed_blocks.load(Ordering::Relaxed),
            skipped_blocks: scan.skipped_blocks.load(Ordering::Relaxed),
            differing_blocks: self.differing,
            zeroed_blocks: self.zeroed,
            changed_bytes: counts.changed.load(Ordering::Relaxed),
            raw_bytes: counts.raw.load(Ordering::Relaxed),
            sent_bytes: counts.sent.load(Ordering::Relaxed),
            vouched_bytes: self.vouched,
            replans: self.regions.counts.replans,
            whole_regions: self.regions.counts.whole_regions,
            whole_bytes: self.regions.counts.whole_bytes,
        }
    }
}

/// What a map that was believed says of a block has to be so.
fn check_leaf(hasher: &Hasher, bytes: &[u8], leaf: Digest) -> Result<()> {
    match hasher.leaf(bytes) == leaf {
        true => Ok(()),
        false => Err(map_rejected()),
    }
}

/// What a job ends with when a map that was believed is found to lie: it is run again without.
pub(crate) fn map_rejected() -> Error {
    let message = "the saved map of the disk is not what the disk holds (map_rejected:audit)";
    Error::new(ErrorKind::MapRejected, message)
}
