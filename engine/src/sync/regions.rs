//! What the source has seen of the blocks lately, and what it does with those that come: whether
//! their bytes are kept, and, region by region, whether those that differ are asked about or sent
//! whole ([`plan_region`]).

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use failback_transport::{Apply, VerifyLevel};

use super::session::Session;
use crate::hash::PieceSet;
use crate::plan::{BlockPlan, DiskRates, Proof, RegionFacts, Way, float, plan_region};

/// Which of the last 64 blocks of data differed, one bit for each.
///
/// While few do, it is cheaper to read those again than to keep the bytes of all until they are
/// compared.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Recent(u64);

impl Recent {
    /// A second read costs one block a whole copy; keeping costs every block from a quarter of one
    /// to more than half, as busy as the memory is (docs/decisions/0016).
    const MANY: u32 = 24;

    pub(super) fn push(&mut self, differs: bool) {
        self.0 = self.0 << 1 | u64::from(differs);
    }

    /// Whether much of the blocks differs, where `dirty_share` 64ths of one that does are read
    /// again.
    pub(super) fn much_differs(self, dirty_share: u32) -> bool {
        self.0.count_ones() * dirty_share > Self::MANY * 64
    }
}

/// How much of a differing block differs, of the last few of them that were asked about.
#[derive(Debug)]
pub(super) struct DirtyShare {
    /// In 64ths, by pieces.
    pieces: AtomicU32,
    /// In 1024ths, by pages; those that would not travel in any case, being zero, left out.
    pages: AtomicU32,
    /// Answers so far.
    answers: AtomicU64,
}

impl Default for DirtyShare {
    /// All of the pieces, until more is known.
    fn default() -> Self {
        Self {
            pieces: AtomicU32::new(64),
            pages: AtomicU32::new(0),
            answers: AtomicU64::new(0),
        }
    }
}

impl DirtyShare {
    /// Called by one thread.
    pub(super) fn push(&self, dirty: PieceSet, block_len: usize) {
        let all = PieceSet::all(block_len).count();
        let share = u32::try_from(64 * dirty.count() / all).expect("at most 64");
        let before = self.pieces.load(Ordering::Relaxed);
        self.pieces
            .store((7 * before + share) / 8, Ordering::Relaxed);
    }

    /// So many bytes are in pages that differ, of a block that is sent whole in `whole_len`. By any
    /// thread: one that is lost to another at the same moment is missed by nobody.
    pub(super) fn push_pages(&self, changed_len: u64, whole_len: u64) {
        let share = changed_len * 1024 / whole_len.max(1);
        let share = u32::try_from(share).unwrap_or(1024).min(1024);
        let before = self.pages.load(Ordering::Relaxed);
        let next = match self.answers.fetch_add(1, Ordering::Relaxed) {
            0 => share,
            _ => (3 * before + share) / 4,
        };
        self.pages.store(next, Ordering::Relaxed);
    }

    /// Of the pieces, in 64ths.
    pub(super) fn pieces(&self) -> u32 {
        self.pieces.load(Ordering::Relaxed)
    }
}

/// How a delta is cut into regions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RegionPolicy {
    /// Bytes of a region.
    pub len: u64,
    /// What a link is taken for until its rate is known, in bytes per second; `None`: for too slow.
    pub assumed_link: Option<f64>,
    /// What the target's disk is taken for.
    pub disk: DiskRates,
    /// Answers about blocks that differ without which nothing is known.
    pub answers_min: u64,
}

impl Default for RegionPolicy {
    /// Regions in which a change of plan is worth its event, and small enough to be wrong about.
    fn default() -> Self {
        Self {
            len: 64 << 20,
            assumed_link: None,
            disk: DiskRates::default(),
            answers_min: 4,
        }
    }
}

/// Of blocks that differ and would be sent whole, one in so many is asked about all the same:
/// nothing else tells that less of them differs by now.
const ASK_ONE_IN: u64 = 8;

/// See the module's head.
#[derive(Debug)]
pub(super) struct Regions {
    policy: RegionPolicy,
    /// Blocks of a region.
    block_count: u64,
    may_send_whole: bool,
    way: Way,
    proof: Proof,
    plan: BlockPlan,
    current: u64,
    /// Blocks of data in the present region, and how many of them differ.
    seen: (u64, u64),
    sent_since_asked: u64,
    pub(super) counts: RegionCounts,
    last_whole: Option<u64>,
}

/// What came of it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct RegionCounts {
    pub(super) replans: u64,
    pub(super) whole_regions: u64,
    pub(super) whole_bytes: u64,
}

impl Regions {
    pub(super) fn new(session: &Session) -> Self {
        let options = &session.options;
        let block_len = options.block_size.len() as u64;
        Self {
            policy: session.regions,
            block_count: (session.regions.len / block_len).max(1),
            // A map that is believed is held against what is read on the way.
            may_send_whole: options.may_send_whole && session.trusted().is_none(),
            way: match options.apply {
                Apply::InPlace => Way::Once,
                // Where it is a clone or a new file instead, more could be sent whole: only the
                // target knows.
                Apply::Stage | Apply::StageKeepUndo => Way::Logged { keeps_old: true },
                Apply::StageNoUndo => Way::Logged { keeps_old: false },
            },
            proof: match options.verify {
                VerifyLevel::Changed => Proof::Changed,
                VerifyLevel::Full => Proof::Full,
                VerifyLevel::Off => Proof::Off,
            },
            plan: BlockPlan::default(),
            current: 0,
            seen: (0, 0),
            sent_since_asked: 0,
            counts: RegionCounts::default(),
            last_whole: None,
        }
    }

    /// The comparison comes to `block`, which has data: the plan from here on, where that is
    /// another one. `link` is what the link takes, in bytes per second, where that is known.
    pub(super) fn enter(
        &mut self,
        block: u64,
        dirty: &DirtyShare,
        link: Option<f64>,
    ) -> Option<BlockPlan> {
        let region = block / self.block_count;
        if !self.may_send_whole || region == self.current {
            return None;
        }
        self.current = region;
        let (blocks, differing) = std::mem::take(&mut self.seen);
        let share = |part: f64, all: f64| if all > 0.0 { part / all } else { 0.0 };
        let known = dirty.answers.load(Ordering::Relaxed) >= self.policy.answers_min;
        let facts = RegionFacts {
            differing: share(float(differing), float(blocks)),
            pieces: f64::from(dirty.pieces()) / 64.0,
            pages: f64::from(dirty.pages.load(Ordering::Relaxed)) / 1024.0,
            link: link.or(self.policy.assumed_link).filter(|_| known),
            disk: self.policy.disk,
            way: self.way,
            proof: self.proof,
        };
        let next = plan_region(self.plan, &facts);
        if next == self.plan {
            return None;
        }
        tracing::debug!(block, ?facts, plan = next.name(), "replan");
        self.plan = next;
        self.sent_since_asked = 0;
        self.counts.replans += 1;
        Some(next)
    }

    /// A block of data was compared.
    pub(super) fn compared(&mut self, differs: bool) {
        self.seen.0 += 1;
        self.seen.1 += u64::from(differs);
    }

    /// Whether blocks that differ are sent whole.
    pub(super) fn sends_whole(&self) -> bool {
        self.plan == BlockPlan::Whole
    }

    /// Whether the next block that differs, of `len` bytes, is asked about.
    pub(super) fn asks(&mut self, len: u64) -> bool {
        if self.plan == BlockPlan::Differences || self.sent_since_asked + 1 >= ASK_ONE_IN {
            self.sent_since_asked = 0;
            return true;
        }
        self.sent_since_asked += 1;
        self.counts.whole_bytes += len;
        if self.last_whole.replace(self.current) != Some(self.current) {
            self.counts.whole_regions += 1;
        }
        false
    }
}
