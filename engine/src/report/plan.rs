//! The plan within a report.

use serde::Serialize;

use crate::operation::Measured;
use crate::plan::{Cost, Objective, Plan, Way, Wish};

/// What either strategy would cost, and what that rests on.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct PlanReport {
    /// What the better strategy has less of.
    pub objective: Objective,
    /// Longest downtime in seconds; `null`: any.
    pub downtime_budget: Option<f64>,
    /// Share by which the choice is better than the other, below 0 where it is worse; this and all
    /// below is `null` where nothing was measured.
    pub margin: Option<f64>,
    /// A delta.
    pub delta: Option<CostReport>,
    /// A full copy.
    pub full: Option<CostReport>,
    /// The pieces that both sides looked at.
    pub sample: Option<SampleReport>,
    /// What the costs were worked out from.
    pub rates: Option<RatesReport>,
}

/// What a strategy would cost.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct CostReport {
    /// Seconds from start to end.
    pub seconds: f64,
    /// Payload bytes, after compression.
    pub bytes: u64,
    /// All bytes on the link, both ways; 0 within one process.
    pub link_bytes: u64,
    /// Seconds for which the machine that uses the source stands still.
    pub downtime: f64,
}

/// A sample.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct SampleReport {
    /// The same seed draws the same pieces of the same disk.
    pub seed: u64,
    /// Pieces of 64 KiB, drawn from what the source has allocated.
    pub pieces: u64,
    /// Those that differ.
    pub differing: u64,
    /// Share of all pieces that differ: 19 of 20 such intervals hold the truth.
    pub low: f64,
    /// Its upper end.
    pub high: f64,
    /// Share of the bytes that differ, in units of 4 KiB.
    pub changed: f64,
    /// Share of the blocks that differ.
    pub blocks: f64,
}

/// Bytes per second, and bytes.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct RatesReport {
    /// Bytes that the source has allocated.
    pub source_allocated: u64,
    /// Bytes that the target has.
    pub target_allocated: u64,
    /// Whether both were counted; else they are estimates.
    pub is_whole: bool,
    /// Reading and hashing the source, measured.
    pub source_scan: f64,
    /// The target; 0 where there is none.
    pub target_scan: f64,
    /// The link, measured; `null` within one process.
    pub link: Option<f64>,
    /// Seconds there and back.
    pub round_trip: Option<f64>,
    /// Bytes after compression for each byte before; `null` without.
    pub compress_ratio: Option<f64>,
    /// Compressing, measured.
    pub compress: Option<f64>,
    /// Writing to a log beside the target, flushed. This and the three below follow from what
    /// earlier syncs saw of the target's disk, else they are assumed.
    pub log: f64,
    /// Writing to the target, flushed.
    pub write: f64,
    /// The same in blocks here and there.
    pub scattered_write: f64,
    /// Reading back from the target's medium.
    pub read_back: f64,
    /// Whether anything of that was seen.
    pub is_disk_seen: bool,
    /// Whether a delta goes to the target by way of a log.
    pub delta_is_logged: bool,
    /// Whether a full copy does.
    pub full_is_logged: bool,
}

impl PlanReport {
    pub(crate) fn new(wish: &Wish, plan: &Plan, measured: Option<&Measured>) -> Self {
        Self {
            objective: wish.objective,
            downtime_budget: wish.downtime_budget.map(|budget| budget.as_secs_f64()),
            margin: plan.margin,
            delta: measured.map(|measured| CostReport::of(&measured.costs.delta)),
            full: measured.map(|measured| CostReport::of(&measured.costs.full)),
            sample: measured.map(SampleReport::of),
            rates: measured.map(RatesReport::of),
        }
    }
}

impl CostReport {
    fn of(cost: &Cost) -> Self {
        Self {
            seconds: cost.seconds,
            bytes: cost.bytes,
            link_bytes: cost.link_bytes,
            downtime: cost.downtime,
        }
    }
}

impl SampleReport {
    fn of(measured: &Measured) -> Self {
        let found = &measured.comparison;
        Self {
            seed: measured.seed,
            pieces: found.pieces,
            differing: found.differing,
            low: found.interval.low,
            high: found.interval.high,
            changed: found.change.bytes,
            blocks: found.change.blocks,
        }
    }
}

impl RatesReport {
    fn of(measured: &Measured) -> Self {
        let facts = &measured.facts;
        let is_logged = |way| matches!(way, Way::Logged { .. });
        Self {
            source_allocated: facts.source.allocated,
            target_allocated: facts.target.allocated,
            is_whole: measured.is_whole,
            source_scan: facts.source.scan_rate,
            target_scan: match facts.target.allocated {
                0 => 0.0,
                _ => facts.target.scan_rate,
            },
            link: facts.link.map(|link| link.rate),
            round_trip: facts.link.map(|link| link.round_trip.as_secs_f64()),
            compress_ratio: facts.packing.map(|packing| packing.ratio),
            compress: facts.packing.map(|packing| packing.rate),
            log: facts.disk.log,
            write: facts.disk.write,
            scattered_write: facts.disk.scattered_write,
            read_back: facts.disk.read_back,
            is_disk_seen: !measured.seen.is_empty(),
            delta_is_logged: is_logged(facts.delta_way),
            full_is_logged: is_logged(facts.full_way),
        }
    }
}
