//! Within a delta: whether blocks that differ are asked about, or sent whole. Pure.
//!
//! ```text
//! for each byte of such a block     asked about                          sent whole
//!   at both ends                    pieces: read again, summed twice     -
//!   on the link                     pages that differ                    all of it
//!   kept                            pages that differ                    all of it
//! ```
//! Sending whole wins the first row and loses the pages that do not differ in the two others. Times
//! are added up, as if all were done one after the other: where both sides share a machine it is,
//! and where a link holds all up its bytes outweigh the rest anyway. What both ways have in common,
//! reading and hashing both disks, is left out.

use super::cost::{DiskRates, Proof, Way};

/// What is done with a block that differs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BlockPlan {
    /// The target is asked which pages of it differ, and gets these.
    #[default]
    Differences,
    /// The target gets all of it, unasked.
    Whole,
}

impl BlockPlan {
    /// As it travels.
    pub(crate) fn of_wire(sends_whole: bool) -> Self {
        match sends_whole {
            true => Self::Whole,
            false => Self::Differences,
        }
    }

    /// The name in events.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Differences => "differences",
            Self::Whole => "whole",
        }
    }

    /// Reason codes of a change to it.
    #[must_use]
    pub fn reasons(self) -> &'static [&'static str] {
        match self {
            Self::Differences => &["sampled_change_rate"],
            Self::Whole => &["sampled_change_rate", "link_faster_than_scan"],
        }
    }
}

/// What was seen of a region, or is assumed of it. Rates are bytes per second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RegionFacts {
    /// Share of the blocks of data that differ.
    pub differing: f64,
    /// Of a block that does: the share of its pieces of 64 KiB.
    pub pieces: f64,
    /// The share of its pages of 4 KiB; zeros do not travel and are left out.
    pub pages: f64,
    /// What the link takes; `None` while that is not known.
    pub link: Option<f64>,
    /// How fast the target's disk takes bytes.
    pub disk: DiskRates,
    /// How the target is changed.
    pub way: Way,
    /// Whether what was written is read back.
    pub proof: Proof,
}

/// Reading bytes again that were just read, on one processor.
const READ_AGAIN_RATE: f64 = 6e9;
/// Sums of pages, on one processor.
const SUM_RATE: f64 = 15e9;
/// Most of what is won that may be lost again, for it to be begun: shares are those of the last few
/// blocks, and where they change it takes some blocks until that is seen.
const LOST_MAX: f64 = 0.5;
/// With fewer blocks that differ there is next to nothing to win, and shares are old.
const DIFFERING_MIN: f64 = 0.25;

/// The plan for the next region, after one with these facts in which `before` was the plan.
#[must_use]
pub fn plan_region(before: BlockPlan, facts: &RegionFacts) -> BlockPlan {
    if facts.link.is_none() || facts.differing < DIFFERING_MIN {
        return BlockPlan::Differences;
    }
    let lost_max = match before {
        BlockPlan::Differences => LOST_MAX,
        BlockPlan::Whole => 1.0,
    };
    match facts.lost() <= facts.won() * lost_max {
        true => BlockPlan::Whole,
        false => BlockPlan::Differences,
    }
}

impl RegionFacts {
    /// Seconds that are won for each byte that is sent whole.
    fn won(&self) -> f64 {
        self.pieces * (1.0 / READ_AGAIN_RATE + 2.0 / SUM_RATE)
    }

    /// Seconds that are lost.
    fn lost(&self) -> f64 {
        (1.0 - self.pages).max(0.0) * self.byte()
    }

    /// Seconds for a byte that travels and is kept.
    fn byte(&self) -> f64 {
        let disk = &self.disk;
        let kept = match self.way {
            Way::Once => 1.0 / disk.write,
            Way::Logged { keeps_old } => {
                let copies = if keeps_old { 2.0 } else { 1.0 };
                copies / disk.log + 1.0 / disk.read_back + 1.0 / disk.scattered_write
            }
        };
        let proven = match self.proof {
            Proof::Changed => 1.0 / disk.read_back,
            Proof::Full | Proof::Off => 0.0,
        };
        self.link.map_or(0.0, |rate| 1.0 / rate) + kept + proven
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: f64 = (1_u64 << 20) as f64;

    /// All of every block differs, in place, over a link that nothing else is slower than.
    fn facts() -> RegionFacts {
        RegionFacts {
            differing: 1.0,
            pieces: 1.0,
            pages: 1.0,
            link: Some(2000.0 * MIB),
            disk: DiskRates::default(),
            way: Way::Once,
            proof: Proof::Off,
        }
    }

    // Goal: each fact decides where it should. Method: a table of one fact changed at a time, with
    // the plan that a region in which blocks were asked about is followed by.
    #[test]
    fn what_the_next_region_gets() {
        use BlockPlan::{Differences, Whole};
        let base = facts();
        let logged = Way::Logged { keeps_old: true };
        #[rustfmt::skip]
        let table = [
            ("all differs", base, Whole),
            ("little of each", RegionFacts { pages: 0.06, pieces: 0.06, ..base }, Differences),
            ("a third of each piece", RegionFacts { pages: 0.33, ..base }, Differences),
            ("few blocks", RegionFacts { differing: 0.2, ..base }, Differences),
            ("a link nobody knows", RegionFacts { link: None, ..base }, Differences),
            ("a slow link, all of it", RegionFacts { link: Some(MIB), ..base }, Whole),
            ("and most of it", RegionFacts { link: Some(MIB), pages: 0.97, ..base }, Differences),
            ("a log, most of it", RegionFacts { way: logged, pages: 0.9, ..base }, Differences),
        ];
        for (name, facts, next) in table {
            assert_eq!(plan_region(Differences, &facts), next, "{name}");
        }
    }

    // Goal: a share near the limit does not change the plan to and fro. Method: from all pages down
    // and up again; each plan holds over a range of shares.
    #[test]
    fn a_plan_outlives_small_changes() {
        let at = |pages: u32, before| {
            let facts = RegionFacts {
                pages: f64::from(pages) / 1000.0,
                ..facts()
            };
            plan_region(before, &facts)
        };
        let (whole, asked) = (BlockPlan::Whole, BlockPlan::Differences);
        let left = (0..=1000).rev().find(|pages| at(*pages, whole) == asked);
        let taken = (0..=1000).find(|pages| at(*pages, asked) == whole);
        let (left, taken) = (left.unwrap(), taken.unwrap());
        assert!(left + 20 < taken, "left at {left}, taken at {taken}");
        for pages in left + 1..taken {
            assert_eq!(at(pages, whole), whole);
            assert_eq!(at(pages, asked), asked);
        }
    }

    proptest! {
        // More that differs never speaks against sending whole, and a slower link never for it.
        #[test]
        fn it_is_monotone(
            pages in 0.0..1.0_f64,
            more in 0.0..1.0_f64,
            rate in 1e5..1e10_f64,
            slower in 0.01..1.0_f64,
        ) {
            let base = RegionFacts { pages, link: Some(rate), ..facts() };
            let changed = RegionFacts { pages: pages + (1.0 - pages) * more, ..base };
            let slow = RegionFacts { link: Some(rate * slower), ..base };
            for before in [BlockPlan::Differences, BlockPlan::Whole] {
                let plan = plan_region(before, &base);
                if plan == BlockPlan::Whole {
                    prop_assert_eq!(plan_region(before, &changed), plan);
                } else {
                    prop_assert_eq!(plan_region(before, &slow), plan);
                }
            }
        }
    }
}
