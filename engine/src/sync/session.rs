//! What both roles of a session agree on, and the progress they share with whoever watches.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use failback_transport as wire;
use failback_transport::Message;

use super::regions::RegionPolicy;
use crate::error::{Error, ErrorKind, Result, peer_error};
use crate::hash::{Digest, HashKind, Hasher};
use crate::map::{CarriedMap, MapStore, TrustedMap};
use crate::pipeline::ScanCounts;
use crate::plan::{BlockPlan, Meters};
use crate::units::{BlockSize, Geometry};

pub use failback_transport::Task;

/// Bytes of block buffers that one side of a session uses.
const BUFFER_BUDGET: usize = 48 << 20;
/// Fewer buffers than this stall the pipeline, however large they are.
const BUFFER_COUNT_MIN: usize = 8;
/// Reading and hashing threads: more than this compete for memory bandwidth only.
const THREAD_COUNT_MAX: usize = 16;

/// A link on which both sides have shaken hands and agreed on the session.
pub struct SessionLink {
    /// Sends messages.
    pub sender: wire::MessageSender,
    /// Receives messages.
    pub receiver: wire::MessageReceiver,
    /// Ends all waiting on the link.
    pub closer: Arc<dyn wire::link::LinkCloser>,
    /// The peer in words, for errors.
    pub peer: String,
}

impl SessionLink {
    /// Sends a message now.
    ///
    /// # Errors
    /// `PeerGone`.
    pub(crate) fn say(&mut self, message: &Message) -> Result<()> {
        let sent = self.sender.send(message);
        sent.and_then(|()| self.sender.flush()).map_err(peer_error)
    }

    /// The next message that says something, within `limit` in all: a peer that only shows that it
    /// lives would else hold a place, and an open disk, for ever.
    ///
    /// # Errors
    /// The peer's failure, `PeerGone`, `Protocol`.
    pub(crate) fn hear(&mut self, limit: Duration) -> Result<Message> {
        let started = Instant::now();
        while started.elapsed() < limit {
            match self.receiver.recv().map_err(peer_error)? {
                Message::KeepAlive => {}
                Message::Failure(failure) => return Err(Error::from_wire(&failure, &self.peer)),
                message => return Ok(message),
            }
        }
        let message = "peer: says nothing but that it lives";
        Err(Error::new(ErrorKind::PeerGone, message))
    }
}

/// How far a target goes by itself once the roots agree. Its own matter: no peer asks for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Until {
    /// To the new disk, which is accepted or kept for an undo as [`SessionOptions::apply`] says.
    #[default]
    End,
    /// To `staged`: nobody else is needed, and a recovery goes on from there.
    Sealed,
    /// What differs is durable and still `staging`: another session goes on from there.
    Staged,
}

/// How a session is run.
#[derive(Clone, Copy, Debug)]
pub struct SessionOptions {
    /// Compare and send what differs, send everything, or compare only.
    pub task: Task,
    /// The hash of blocks and tree.
    pub hash: HashKind,
    /// The unit of comparison.
    pub block_size: BlockSize,
    /// What is read back at the end.
    pub verify: wire::VerifyLevel,
    /// Whether payload is compressed where that makes it shorter.
    pub compress: wire::Compress,
    /// Seed of the 64-bit sums of sub-blocks; a fresh random number for each session.
    pub sub_hash_seed: u64,
    /// How the target is changed.
    pub apply: wire::Apply,
    /// What keeps the new disk until all of it is there; `None`: the target's choice.
    pub container: Option<wire::Container>,
    /// The comparison is with what a full copy that was cut off has left.
    pub goes_on: bool,
    /// How far the target goes.
    pub until: Until,
    /// Tells the source in its present state from any other; see [`source_mark`].
    pub source_mark: u64,
    /// Root of the target's map, when both sides have one that is believed: what differs is found
    /// from the roots down. `None`: the target sends all its hashes.
    pub target_root: Option<Digest>,
    /// Whether blocks that differ may be sent whole where that is likely to be done sooner: more
    /// bytes than differ travel then.
    pub may_send_whole: bool,
}

/// A number that changes when the identity of a source does.
#[must_use]
pub fn source_mark(identity: &str) -> u64 {
    let hash = blake3::hash(identity.as_bytes());
    let mut first = [0; 8];
    first.copy_from_slice(&hash.as_bytes()[..8]);
    u64::from_le_bytes(first)
}

impl SessionOptions {
    /// The verify level as it is called on the command line.
    #[must_use]
    pub(crate) fn verify_name(&self) -> &'static str {
        match self.verify {
            wire::VerifyLevel::Full => "full",
            wire::VerifyLevel::Changed => "changed",
            wire::VerifyLevel::Off => "off",
        }
    }
}

/// A session of two disks of one length.
#[derive(Clone, Debug)]
pub struct Session {
    /// How it is run.
    pub options: SessionOptions,
    /// How the disks are cut.
    pub geometry: Geometry,
    /// The hasher of [`SessionOptions::hash`].
    pub hasher: Hasher,
    /// Reading and hashing threads of this side.
    pub threads: usize,
    /// What this side did so far.
    pub progress: Arc<SessionProgress>,
    /// The map of this side's disk.
    pub map: Arc<SideMap>,
    /// Where the plan may be changed.
    pub regions: RegionPolicy,
}

/// The saved map of the disk of one side.
#[derive(Debug, Default)]
pub struct SideMap {
    /// Stands for reads in a comparison.
    pub trusted: Option<Box<TrustedMap>>,
    /// Where the map is kept as it is at the end; `None`: nowhere.
    pub store: Option<MapStore>,
    /// Where the map goes instead, where whoever carries it on vouches for the disk: of a target
    /// that is staged and not in force yet, of a snapshot.
    pub carried: Option<CarriedMap>,
}

impl Session {
    /// A session over disks of `disk_len` bytes.
    ///
    /// # Errors
    /// `Unsupported` for a disk over 64 TiB.
    pub fn new(options: SessionOptions, disk_len: u64) -> Result<Self> {
        Ok(Self {
            options,
            geometry: Geometry::new(disk_len, options.block_size)?,
            hasher: Hasher::new(options.hash),
            threads: scan_threads(options.block_size),
            progress: Arc::default(),
            map: Arc::default(),
            regions: RegionPolicy::default(),
        })
    }

    /// The same with a map of this side's disk.
    #[must_use]
    pub fn with_map(self, map: SideMap) -> Self {
        Self {
            map: Arc::new(map),
            ..self
        }
    }

    /// Whether a map of the disk as it is in the end is worth keeping: one that is proven, and
    /// with a hash that proves.
    pub(crate) fn keeps_map(&self) -> bool {
        let options = &self.options;
        let has_place = match options.until {
            Until::End => self.map.store.is_some() || self.map.carried.is_some(),
            // Until then a target is not what its leaves say.
            Until::Sealed | Until::Staged => self.map.carried.is_some(),
        };
        has_place
            && options.hash == HashKind::Blake3
            && options.task != Task::Compare
            && options.verify != wire::VerifyLevel::Off
    }

    /// What stands for reads of this side's disk, in a comparison.
    pub(crate) fn trusted(&self) -> Option<&TrustedMap> {
        let trusted = self.map.trusted.as_deref();
        trusted.filter(|_| self.options.task != Task::Full)
    }

    /// The map of this side's disk and the root of the target's, where what differs is found from
    /// the roots down.
    ///
    /// # Errors
    /// `Protocol` when that is wanted and no map of this disk is believed: the client knew better
    /// when it opened the disk, and the other side waits for no hashes.
    pub(crate) fn by_tree(&self) -> Result<Option<(&TrustedMap, Digest)>> {
        let Some(root) = self.options.target_root else {
            return Ok(None);
        };
        let trusted = self.trusted();
        match trusted.filter(|_| self.options.task == Task::Delta) {
            Some(trusted) => Ok(Some((trusted, root))),
            None => {
                let message = "peer: wants trees compared, and there is no map to be believed";
                Err(Error::new(ErrorKind::Protocol, message))
            }
        }
    }

    /// Whether blocks are hashed: always, but for a full copy that nobody wants proven.
    #[must_use]
    pub fn is_hashed(&self) -> bool {
        !(self.options.task == Task::Full && self.options.verify == wire::VerifyLevel::Off)
    }

    /// How many block buffers one side may hold.
    pub(crate) fn buffer_count(&self) -> usize {
        let fitting = BUFFER_BUDGET / self.options.block_size.len();
        fitting.max(BUFFER_COUNT_MIN).max(self.threads + 2)
    }
}

/// Threads that read and hash a disk in blocks of that size: what there is, as far as their buffers
/// fit the budget.
pub(crate) fn scan_threads(block_size: BlockSize) -> usize {
    let cores = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    cores
        .min(BUFFER_BUDGET / block_size.len() / 2)
        .clamp(2, THREAD_COUNT_MAX)
}

/// Where a session stands. Written by the roles, read by whoever draws a progress bar.
#[derive(Debug, Default)]
pub struct SessionProgress {
    /// The scan of this side.
    pub scan: ScanCounts,
    /// Payload bytes sent or received.
    pub payload: AtomicU64,
    /// Bytes of the blocks that were found to differ, or that a full copy has to write.
    pub differing: AtomicU64,
    /// Of these, the bytes that this side is done with.
    pub settled: AtomicU64,
    /// Bytes read back for the proof.
    pub verified: AtomicU64,
    /// Bytes that the proof has to read back, once they are known.
    pub verify_total: AtomicU64,
    /// How fast the target's disk was.
    pub meters: Meters,
    phase: AtomicU8,
    /// Changes of plan that nobody was told of yet.
    replans: Mutex<VecDeque<Replanned>>,
}

/// Changes of plan that wait to be told: more than regions are walked over between two looks. A
/// peer that says more has its older ones dropped.
const REPLANS_MAX: usize = 1024;

/// The plan for blocks that differ was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replanned {
    /// Byte of the disk from which on.
    pub from: u64,
    /// The plan.
    pub plan: BlockPlan,
}

/// What a session is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Comparing and copying.
    Copy,
    /// Reading back.
    Verify,
}

impl SessionProgress {
    /// The present phase.
    #[must_use]
    pub fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Relaxed) {
            0 => Phase::Copy,
            _ => Phase::Verify,
        }
    }

    /// Bytes that differ and are not where they are to be kept yet, as far as this side knows.
    #[must_use]
    pub fn backlog(&self) -> u64 {
        let settled = self.settled.load(Ordering::Relaxed);
        self.differing
            .load(Ordering::Relaxed)
            .saturating_sub(settled)
    }

    /// The plan is another one from the byte `from` on.
    pub(crate) fn replanned(&self, from: u64, plan: BlockPlan) {
        let mut replans = self.replans.lock().unwrap_or_else(PoisonError::into_inner);
        if replans.len() == REPLANS_MAX {
            replans.pop_front();
        }
        replans.push_back(Replanned { from, plan });
    }

    /// The next change of plan that nobody was told of.
    #[must_use]
    pub fn take_replan(&self) -> Option<Replanned> {
        let mut replans = self.replans.lock().unwrap_or_else(PoisonError::into_inner);
        replans.pop_front()
    }

    pub(crate) fn enter_verify(&self) {
        self.phase.store(1, Ordering::Relaxed);
    }
}
