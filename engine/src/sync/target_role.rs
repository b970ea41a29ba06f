//! The side that is made equal: hashes its disk ahead of the comparison, applies what comes, proves
//! the result.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use failback_transport as wire;
use failback_transport::{
    Base, BlockData, Message, MessageReceiver, SourceEnd, TargetResult, Task,
};

use super::beside::{self, Beside};
use super::conclusion::{Conclusion, is_changed};
use super::descending::{answer_all, take_question};
use super::hash_batch::HashBatch;
use super::kept_blocks::{KEPT_BUDGET, KeptBlocks};
use super::ledger::Ledger;
use super::map_keeper::MapKeeper;
use super::outbox::Outbox;
use super::pack::sub_block_sums;
use super::role::{drain, pump, receive, watch};
use super::session::{Session, SessionLink};
use super::source_role::map_rejected;
use crate::abort::Abort;
use crate::apply::{Applied, Applier, Destination, InPlace, Kept};
use crate::commit::Staging;
use crate::disk::{ExtentKind, Source, Target};
use crate::error::{Error, ErrorKind, Result};
use crate::hash::{Digest, PieceSet, Pieces, is_zero};
use crate::map::descent::Question;
use crate::map::{MapBuilder, MapWriter, TrustedMap};
use crate::pipeline::{BufferPool, Keep, PooledBuffer, Scanned, Scanner, read_pieces};
use crate::plan::BlockPlan;
use crate::schedule::channel::{Receiver, Sender, bounded, unbounded};
use crate::schedule::{Condvar, Mutex, MutexGuard, scope};
use crate::state::Barriers;
use crate::tree::Leaf;
use crate::units::BlockIndex;

/// Blocks that may be announced and not yet sent: more than any honest source has buffers for.
const WANTED_MAX: u64 = 1024;
/// Bytes of work waiting for the applying threads.
const WORK_BUDGET: usize = 16 << 20;
/// Messages that wait to be sent before the scan pauses: a peer that acknowledges what it has not
/// read must not make them pile up.
const QUEUED_MAX: usize = 2048;
/// Zero blocks of a map that are told in one step.
const ZERO_RUN_MAX: u64 = 64 << 10;
/// How often a wait looks whether the job was aborted.
const POLL: Duration = Duration::from_millis(100);

/// The last step of a session that ended equal: gets the root of the new disk, and says what kept
/// that until now.
pub type Finish<'a> =
    Box<dyn FnOnce(Option<Digest>) -> Result<Option<wire::Container>> + Send + 'a>;

/// How a target is changed.
#[derive(Debug)]
pub enum Changes<'a> {
    /// Written as blocks come: it is mixed until the end.
    InPlace(InPlaceChanges<'a>),
    /// Staged, and written when everything is there. The disk of the session is the staging itself.
    Staged(&'a Staging),
}

/// What a target that is written as blocks come needs.
pub struct InPlaceChanges<'a> {
    /// The disk that is made equal.
    pub target: &'a dyn Target,
    /// It was just made: all of it reads zero.
    pub is_new: bool,
    /// What is written has to be there for the next job if this one is cut off.
    pub outlives_job: bool,
    /// All of them, but in tests.
    pub barriers: Barriers,
    /// What was found of an earlier job, as in [`TargetResult::resume_notes`].
    pub resume_notes: u8,
    /// Runs once the disk is proven and closed, before the source hears of it: gives a new disk its
    /// name.
    pub finish: Finish<'a>,
}

impl<'a> InPlaceChanges<'a> {
    /// Of a job that begins with nothing and leaves nothing to go on with.
    #[must_use]
    pub fn new(target: &'a dyn Target, is_new: bool, finish: Finish<'a>) -> Self {
        Self {
            target,
            is_new,
            outlives_job: false,
            barriers: Barriers::new(),
            resume_notes: 0,
            finish,
        }
    }
}

impl std::fmt::Debug for InPlaceChanges<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InPlaceChanges")
            .field("target", &self.target)
            .finish_non_exhaustive()
    }
}

/// Where the source of a session is.
pub enum Peer<'a> {
    /// Behind a link, with an agent or thread that plays its role.
    Link(Box<SessionLink>),
    /// In this process; [`Beside::fits`] for it.
    Beside(Beside<'a>),
}

impl From<SessionLink> for Peer<'_> {
    fn from(link: SessionLink) -> Self {
        Self::Link(Box::new(link))
    }
}

impl std::fmt::Debug for Peer<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Link(_) => "Link",
            Self::Beside(_) => "Beside",
        })
    }
}

/// Runs the target's role to its end: what the source says it did, and what this side holds now.
/// `changes` is `None` for a comparison that changes nothing. Whether the roots are equal is in the
/// result, not in the error.
///
/// # Errors
/// The first error of either side. The link is closed then.
pub fn run_target<'a>(
    session: &Session,
    disk: &dyn Source,
    changes: Option<Changes<'_>>,
    peer: impl Into<Peer<'a>>,
    abort: &Arc<Abort>,
) -> Result<(SourceEnd, TargetResult)> {
    let (applier, last_step) = match changes {
        None => (None, None),
        Some(Changes::InPlace(changes)) => {
            let target = InPlace::new(&changes, session);
            let applier = Applier::new(Destination::InPlace(target), session);
            (Some(applier), Some(changes))
        }
        Some(Changes::Staged(staging)) => {
            let applier = Applier::new(Destination::Stage(staging), session);
            (Some(applier), None)
        }
    };
    let left_open = last_step.as_ref().map(|changes| changes.target);
    let outcome = match peer.into() {
        Peer::Link(link) => over_link(session, disk, (applier.as_ref(), last_step), *link, abort),
        Peer::Beside(source) => {
            let changes = (applier.as_ref(), last_step);
            abort.guard(|| beside::run(session, disk, changes, &source, abort))
        }
    };
    if let (None, Some(Destination::Stage(staging))) = (&outcome, applier.as_ref().map(|a| &a.to)) {
        staging.keep();
    }
    if let (None, Some(target)) = (&outcome, left_open) {
        // Nobody writes any more. A VHDX is left with an empty log where that is possible; the
        // first error is the one that counts.
        drop(target.close());
    }
    abort.verdict()?;
    Ok(outcome.expect("without a verdict the role has ended well"))
}

/// The role beside a source that is behind a link; `None` after an error, which is in `abort`.
fn over_link(
    session: &Session,
    disk: &dyn Source,
    (applier, last_step): (Option<&Applier<'_>>, Option<InPlaceChanges<'_>>),
    link: SessionLink,
    abort: &Arc<Abort>,
) -> Option<(SourceEnd, TargetResult)> {
    let SessionLink {
        mut sender,
        mut receiver,
        closer,
        peer,
    } = link;
    tracing::debug!(peer, task = ?session.options.task, "session as target");
    abort.add_closer(closer);
    let (outbox, outgoing) = Outbox::new();
    let (keeper, writer) = MapKeeper::begin(session, disk, true);
    let by_tree = abort.guard(|| target_tree(session)).flatten();
    let role = Role::new(session, (disk, by_tree), applier, (outbox, writer), abort);
    let (done, is_done) = bounded::<()>(0);
    let (work, work_queue) = bounded((WORK_BUDGET / session.options.block_size.len()).max(2));
    let (questions, asked) = unbounded();
    let outcome = scope(|scope| {
        scope.spawn(|| pump(outgoing, &mut sender, abort));
        scope.spawn(move || watch(&is_done, abort));
        if session.options.task != Task::Full {
            // Counted as work: the result must not overtake the scan's last words.
            role.busy.fetch_add(1, Ordering::SeqCst);
            scope.spawn(|| {
                abort.guard(|| role.scan());
                role.finished_one();
            });
        }
        for _ in 0..session.threads + 2 {
            let queue = work_queue.clone();
            let role = &role;
            scope.spawn(move || abort.guard(|| role.work(&queue)));
        }
        drop(work_queue);
        if let Some(trusted) = by_tree {
            let outbox = role.outbox();
            scope.spawn(move || {
                abort.guard(|| answer_all(&trusted.map, &asked, &outbox, abort));
            });
        } else {
            drop(asked);
        }
        let outcome = abort.guard(|| {
            let queues = Queues { work, questions };
            let end = role.receive_all(&mut receiver, &queues, &peer)?;
            drop(queues);
            let result = role.conclude(&end, last_step)?;
            role.keep_map(keeper, &result);
            role.outbox().send(Message::Result(result.clone()));
            Ok((end, result))
        });
        role.close();
        if outcome.is_none() {
            drain(&mut receiver, abort);
        }
        drop(done);
        outcome
    });
    if outcome.is_some() {
        // The source says goodbye once it has the result; closing earlier could lose it on the way.
        drop(receiver.recv());
    }
    outcome
}

/// What the receiving thread hands on.
struct Queues {
    work: Sender<Work>,
    questions: Sender<Question>,
}

/// The map of the target of a session that finds out by its trees what differs.
fn target_tree(session: &Session) -> Result<Option<&TrustedMap>> {
    match session.by_tree()? {
        Some((trusted, root)) if trusted.map.root() != root => {
            Err(protocol("compares with another map than the one here"))
        }
        found => Ok(found.map(|(trusted, _)| trusted)),
    }
}

enum Work {
    /// A block, and the names of the source's pieces of it.
    Want(u64, Bytes),
    Data(BlockData),
    Zero {
        first: BlockIndex,
        count: u64,
    },
}

struct Role<'a> {
    session: &'a Session,
    disk: &'a dyn Source,
    /// The source finds out by itself what differs from this.
    by_tree: Option<&'a TrustedMap>,
    applier: Option<&'a Applier<'a>>,
    /// Taken away at the end, so that the sending thread sees the end too.
    outbox: Mutex<Option<Outbox>>,
    abort: &'a Abort,
    ledger: Mutex<Ledger>,
    /// The ledger changed: there is room for the scan, or a block is settled.
    moved: Condvar,
    kept: Mutex<KeptBlocks>,
    /// For old bytes, kept or not.
    olds: BufferPool,
    wanted: AtomicU64,
    /// Blocks whose patch did not give the right hash; the source sends them whole.
    resending: Mutex<HashSet<u64>>,
    busy: AtomicU64,
    reread: AtomicU64,
    /// Bytes that the map says what they are.
    vouched: AtomicU64,
}

impl<'a> Role<'a> {
    fn new(
        session: &'a Session,
        (disk, by_tree): (&'a dyn Source, Option<&'a TrustedMap>),
        applier: Option<&'a Applier<'a>>,
        (outbox, writer): (Outbox, Option<MapWriter>),
        abort: &'a Abort,
    ) -> Self {
        let tree = MapBuilder::new(&session.hasher, session.geometry, writer);
        let total = session.geometry.block_count().0;
        let ledger = match session.options.task {
            Task::Full => Ledger::of_full_copy(tree, total),
            _ if by_tree.is_some() => Ledger::of_trees(tree, total),
            _ => Ledger::of_scan(tree, total),
        };
        Self {
            session,
            disk,
            by_tree,
            applier,
            outbox: Mutex::new(Some(outbox)),
            abort,
            ledger: Mutex::new(ledger),
            moved: Condvar::new(),
            kept: Mutex::default(),
            olds: BufferPool::new(KEPT_BUDGET / session.options.block_size.len() + session.threads),
            wanted: AtomicU64::new(0),
            resending: Mutex::default(),
            busy: AtomicU64::new(0),
            reread: AtomicU64::new(0),
            vouched: AtomicU64::new(0),
        }
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the ledger, and tells the source how far all is settled where that is due.
    fn note<T>(&self, change: impl FnOnce(&mut Ledger) -> T) -> T {
        let mut ledger = self.ledger();
        let changed = change(&mut ledger);
        if let Some(up_to_block) = ledger.take_news() {
            self.outbox().send(Message::Settled { up_to_block });
        }
        changed
    }

    /// What a block that is not settled held before.
    fn old_leaf(&self, block: u64) -> Result<Option<Leaf>> {
        match self.by_tree {
            None => Ok(self.ledger().old_leaf(block)),
            // The scan may not be there yet.
            Some(trusted) => {
                let leaf = trusted.map.leaf(BlockIndex(block));
                leaf.map_err(|e| map_rejected().caused_by(e))
            }
        }
    }

    /// A clone for one message; a closed one sends into nothing.
    fn outbox(&self) -> Outbox {
        let outbox = self.outbox.lock().unwrap_or_else(PoisonError::into_inner);
        outbox.clone().unwrap_or_else(|| Outbox::new().0)
    }

    fn close(&self) {
        self.outbox
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
    }

    /// Hashes the disk from start to end and tells the source, as far ahead as the window allows.
    fn scan(&self) -> Result<()> {
        let session = self.session;
        if let Some(trusted) = self.by_tree {
            return self.walk_map(trusted, None);
        }
        let outbox = self.outbox();
        let mut batch = HashBatch::new(&outbox, &session.hasher, &session.geometry);
        match session.trusted() {
            Some(trusted) => self.walk_map(trusted, Some(&mut batch))?,
            None => self.scan_disk(&mut batch)?,
        }
        batch.flush();
        outbox.send(Message::ScanEnd {
            block_count: session.geometry.block_count().0,
        });
        Ok(())
    }

    /// The map says what the disk holds: nothing is read.
    fn walk_map(&self, trusted: &TrustedMap, mut batch: Option<&mut HashBatch<'_>>) -> Result<()> {
        let geometry = &self.session.geometry;
        let mut block = 0;
        for run in trusted.map.walk()? {
            let (leaf, mut left) = run.map_err(|e| map_rejected().caused_by(e))?;
            if leaf != Leaf::Zero {
                let len = geometry.block_len(BlockIndex(block)) as u64;
                self.vouched.fetch_add(len, Ordering::Relaxed);
            }
            while left > 0 {
                // As long as a scan tells at once.
                let count = left.min(ZERO_RUN_MAX);
                self.make_room(batch.as_deref_mut())?;
                self.note(|ledger| ledger.scanned(leaf, count, None));
                if let Some(batch) = &mut batch {
                    batch.push(leaf, count);
                }
                (block, left) = (block + count, left - count);
            }
            let position = geometry.start_of(BlockIndex(block)).0;
            let counts = &self.session.progress.scan;
            counts.position.store(position, Ordering::Relaxed);
        }
        Ok(())
    }

    fn scan_disk(&self, batch: &mut HashBatch<'_>) -> Result<()> {
        let session = self.session;
        let scanner = Scanner {
            disk: self.disk,
            geometry: session.geometry,
            hasher: Some(&session.hasher),
            keep: Keep::Never,
            pool: &BufferPool::new(session.threads * 2),
            threads: session.threads,
            reader: None,
            counts: &session.progress.scan,
        };
        scanner.run(self.abort, |scanned| {
            let (leaf, count, pieces) = match scanned {
                Scanned::Zeros { count, .. } => (Leaf::Zero, count, None),
                Scanned::Data { digest, pieces, .. } => {
                    (Leaf::Data(digest.expect("a scan hashes")), 1, pieces)
                }
            };
            self.make_room(Some(batch))?;
            self.ledger().scanned(leaf, count, pieces);
            batch.push(leaf, count);
            Ok(())
        })
    }

    fn make_room(&self, mut batch: Option<&mut HashBatch<'_>>) -> Result<()> {
        let mut ledger = self.ledger();
        while !ledger.has_room() || self.outbox().queued() > QUEUED_MAX {
            // The source cannot move on without the hashes that are still here.
            if let Some(batch) = &mut batch {
                batch.flush();
            }
            self.abort.check()?;
            let waited = self.moved.wait_timeout(ledger, POLL);
            ledger = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }

    /// The receiving thread: hands work on until the source has said END and every block is
    /// settled.
    fn receive_all(
        &self,
        receiver: &mut MessageReceiver,
        queues: &Queues,
        peer: &str,
    ) -> Result<SourceEnd> {
        let end = loop {
            match receive(receiver, peer, self.abort)? {
                Message::End(end) => {
                    self.check_end()?;
                    break end;
                }
                message => self.take_in(message, queues)?,
            }
        };
        while !self.wait_settled()? {
            let message = receive(receiver, peer, self.abort)?;
            self.take_in(message, queues)?;
        }
        Ok(end)
    }

    /// END before the comparison has reached the end would leave the scan waiting for room.
    fn check_end(&self) -> Result<()> {
        let is_compared = self.ledger().is_compared() || self.session.options.task == Task::Full;
        match is_compared {
            true => Ok(()),
            false => Err(protocol("ended the stream before everything was compared")),
        }
    }

    fn take_in(&self, message: Message, queues: &Queues) -> Result<()> {
        let job = match message {
            Message::Compared { up_to_block } => {
                self.note(|ledger| ledger.compared(up_to_block))?;
                self.moved.notify_all();
                return Ok(());
            }
            Message::Want {
                block,
                asks,
                payload,
            } => {
                self.ledger().announce(block, 1)?;
                self.found_differing(block, 1);
                let old = self.old_leaf(block)?;
                if self.wanted.fetch_add(1, Ordering::SeqCst) >= WANTED_MAX {
                    return Err(protocol("asks for more blocks than it has buffers for"));
                }
                if !asks || old == Some(Leaf::Zero) {
                    return Ok(());
                }
                Work::Want(block, payload)
            }
            Message::Data(data) => {
                self.check_expected(&data)?;
                if self.session.options.task == Task::Full {
                    self.found_differing(data.block, 1);
                }
                self.session
                    .progress
                    .payload
                    .fetch_add(data.payload.len() as u64, Ordering::Relaxed);
                Work::Data(data)
            }
            Message::Zero { first_block, count } => {
                self.ledger().announce(first_block, count)?;
                self.found_differing(first_block, count);
                Work::Zero {
                    first: BlockIndex(first_block),
                    count,
                }
            }
            Message::Descend {
                level,
                down,
                payload,
            } => return take_question(&queues.questions, (level, down), &payload),
            Message::Replan {
                first_block,
                sends_whole,
            } => return self.replanned(first_block, sends_whole),
            _ => return Err(protocol("a message out of place")),
        };
        if self.applier.is_none() {
            return Err(protocol("wants to change a disk in a comparison"));
        }
        self.busy.fetch_add(1, Ordering::SeqCst);
        let sent = queues.work.send(job);
        sent.map_err(|_| Error::new(ErrorKind::Cancelled, "cancelled"))
    }

    /// For whoever watches.
    fn replanned(&self, first_block: u64, sends_whole: bool) -> Result<()> {
        let geometry = &self.session.geometry;
        if first_block >= geometry.block_count().0 {
            return Err(protocol("has a plan for a block past the end"));
        }
        let from = geometry.start_of(BlockIndex(first_block)).0;
        let plan = BlockPlan::of_wire(sends_whole);
        self.session.progress.replanned(from, plan);
        Ok(())
    }

    fn check_expected(&self, data: &BlockData) -> Result<()> {
        if data.new_hash.as_bytes().len() != self.session.options.hash.digest_len() {
            return Err(protocol("a hash of another kind than agreed"));
        }
        let mut ledger = self.ledger();
        match self.session.options.task {
            Task::Full => ledger.announce(data.block, 1).map(drop),
            _ if ledger.is_announced(data.block) => Ok(()),
            _ => Err(protocol("data for a block that was not announced")),
        }
    }

    /// Waits until nothing is left to do (true), or more has to be received (false).
    fn wait_settled(&self) -> Result<bool> {
        let mut ledger = self.ledger();
        loop {
            self.abort.check()?;
            let is_busy = self.busy.load(Ordering::SeqCst) > 0;
            if ledger.is_complete() && !is_busy {
                return Ok(true);
            }
            if !is_busy && !self.resending().is_empty() {
                return Ok(false);
            }
            if !is_busy {
                return Err(protocol("ended the stream before every block was settled"));
            }
            let waited = self.moved.wait_timeout(ledger, POLL);
            ledger = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// An applying thread.
    fn work(&self, queue: &Receiver<Work>) -> Result<()> {
        let applier = self.applier;
        for work in queue {
            self.abort.check()?;
            let applier = applier.expect("work is only queued where there is an applier");
            match work {
                Work::Want(block, names) => self.answer(block, &names)?,
                Work::Data(data) => self.apply(applier, &data)?,
                Work::Zero { first, count } => {
                    applier.zeros(first, count, self.abort)?;
                    self.note(|ledger| ledger.settle(first.0, Leaf::Zero))?;
                    self.has_settled(first.0, count);
                }
            }
            self.finished_one();
        }
        Ok(())
    }

    fn finished_one(&self) {
        // Under the ledger's lock, or a waiter could miss it between its look and its sleep.
        let ledger = self.ledger();
        self.busy.fetch_sub(1, Ordering::SeqCst);
        drop(ledger);
        self.moved.notify_all();
    }

    /// Tells the sums of what may differ from the source's pieces, which are named.
    fn answer(&self, block: u64, names: &[u8]) -> Result<()> {
        let block_len = self.session.geometry.block_len(BlockIndex(block));
        let scanned = self.ledger().take_pieces(block);
        let (set, bytes, pieces) = match scanned {
            Some(mine) => {
                let set = mine.differing(names);
                (set, self.read_pieces(block, set)?, Some(mine))
            }
            None => {
                let all = PieceSet::all(block_len);
                let (mut bytes, mine) = self.read_old(block)?;
                let set = mine.as_ref().map_or(all, |mine| mine.differing(names));
                let mut len = 0;
                for range in set.ranges(block_len) {
                    let moved = range.len();
                    bytes.bytes_mut().copy_within(range, len);
                    len += moved;
                }
                bytes.truncate(len);
                (set, bytes, mine)
            }
        };
        let payload = sub_block_sums(bytes.as_ref(), self.session.options.sub_hash_seed);
        let kept = Kept {
            set,
            bytes: Some(bytes),
            pieces,
        };
        self.kept().insert(block, kept);
        self.outbox().send(Message::SubHashes {
            block,
            pieces: set.bits(),
            payload,
        });
        Ok(())
    }

    fn read_pieces(&self, block: u64, set: PieceSet) -> Result<PooledBuffer> {
        let (geometry, index) = (&self.session.geometry, BlockIndex(block));
        let len = set.len(geometry.block_len(index));
        let mut bytes = self.olds.take_or_new(len);
        read_pieces(self.disk, geometry, index, set, bytes.bytes_mut())?;
        self.reread.fetch_add(len as u64, Ordering::Relaxed);
        Ok(bytes)
    }

    fn kept(&self) -> MutexGuard<'_, KeptBlocks> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn resending(&self) -> MutexGuard<'_, HashSet<u64>> {
        self.resending
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads a whole block, and holds it against the map where that was believed; its pieces then.
    fn read_old(&self, block: u64) -> Result<(PooledBuffer, Option<Pieces>)> {
        let (geometry, index) = (&self.session.geometry, BlockIndex(block));
        let mut buffer = self.olds.take_or_new(geometry.block_len(index));
        let bytes = buffer.bytes_mut();
        self.reread.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        self.disk.read(geometry.start_of(index), bytes)?;
        let old = match self.session.trusted() {
            Some(_) => self.old_leaf(block)?,
            None => None,
        };
        match old {
            Some(Leaf::Data(digest)) => {
                let pieces = self.session.hasher.pieces(bytes);
                match self.session.hasher.leaf_of(&pieces) == digest {
                    true => Ok((buffer, Some(pieces))),
                    false => Err(map_rejected()),
                }
            }
            Some(Leaf::Zero) if !is_zero(bytes) => Err(map_rejected()),
            _ => Ok((buffer, None)),
        }
    }

    /// A block that only the map spoke of becomes something else: what an undo brings back rests on
    /// that.
    fn check_unread(&self, block: u64, shown: Option<Leaf>) -> Result<()> {
        let range = self.session.geometry.range_of(BlockIndex(block), 1);
        let extent = self.disk.extent_at(range.start)?;
        let is_hole = extent.kind != ExtentKind::Data && extent.end >= range.end;
        if is_hole && shown == Some(Leaf::Zero) {
            return Ok(());
        }
        self.read_old(block).map(drop)
    }

    fn apply(&self, applier: &Applier<'_>, data: &BlockData) -> Result<()> {
        let block = data.block;
        let shown = self.old_leaf(block)?;
        let kept = self.kept().remove(block);
        if self.session.trusted().is_some() && data.base == Base::Zero {
            self.check_unread(block, shown)?;
        }
        let applied = applier.block(data, shown, kept, |set| match set {
            Some(set) => self.read_pieces(block, set),
            None => self.read_old(block).map(|(bytes, _)| bytes),
        })?;
        if applied == Applied::NeedsWhole {
            if !self.resending().insert(block) {
                return Err(protocol("a block does not have the hash it was sent with"));
            }
            self.outbox().send(Message::Resend { block });
            return Ok(());
        }
        self.resending().remove(&block);
        if self.session.options.task != Task::Full {
            self.wanted.fetch_sub(1, Ordering::SeqCst);
        }
        self.note(|ledger| ledger.settle(block, Leaf::Data(data.new_hash)))?;
        self.has_settled(block, 1);
        Ok(())
    }

    /// For whoever watches. A full copy compares nothing: what was announced is how far it is.
    fn found_differing(&self, block: u64, count: u64) {
        let range = self.session.geometry.range_of(BlockIndex(block), count);
        let progress = &self.session.progress;
        let len = range.end.0 - range.start.0;
        progress.differing.fetch_add(len, Ordering::Relaxed);
        if self.session.options.task == Task::Full {
            progress
                .scan
                .position
                .fetch_max(range.end.0, Ordering::Relaxed);
        }
    }

    fn has_settled(&self, block: u64, count: u64) {
        let range = self.session.geometry.range_of(BlockIndex(block), count);
        let len = range.end.0 - range.start.0;
        let settled = &self.session.progress.settled;
        settled.fetch_add(len, Ordering::Relaxed);
    }

    /// Leaves a map of what the disk is now. Before the source has its answer: whoever comes after
    /// that finds the map, and a disk that is let go of.
    fn keep_map(&self, keeper: MapKeeper<'_>, result: &TargetResult) {
        if result.equal && self.session.keeps_map() {
            let (root, writer) = self.ledger().take_map();
            keeper.keep(writer, root, self.disk, is_changed(result));
        }
    }

    /// The last steps on the target, then the verdict.
    fn conclude(
        &self,
        end: &SourceEnd,
        last_step: Option<InPlaceChanges<'_>>,
    ) -> Result<TargetResult> {
        let scan = &self.session.progress.scan;
        let known = self.session.is_hashed().then(|| self.ledger().root());
        let conclusion = Conclusion {
            session: self.session,
            to: self.applier.map(|applier| &applier.to),
            abort: self.abort,
        };
        let mut result = conclusion.conclude(known, end, last_step)?;
        let reread = self.reread.load(Ordering::Relaxed);
        result.target_read = scan.read_len.load(Ordering::Relaxed) + reread;
        result.vouched_bytes = self.vouched.load(Ordering::Relaxed).saturating_sub(reread);
        result.hashed_blocks = scan.hashed_blocks.load(Ordering::Relaxed);
        result.skipped_blocks = scan.skipped_blocks.load(Ordering::Relaxed);
        Ok(result)
    }
}

fn protocol(message: &str) -> Error {
    Error::new(ErrorKind::Protocol, format!("peer: {message}"))
}
