//! Delta or full: what each would cost, and the choice.
//!
//! ```text
//! survey   one side: what is allocated, which pieces to look at (by a seed); what these hold, how
//!          fast they are read and hashed                                               reads
//! sample   both sides' pieces: how much differs, and how sure that is                  pure
//! seen     how fast a target's disk took bytes, seen by syncs for the plans after them
//! on_wire  picks and readings as messages
//! cost     seconds, bytes and downtime of either strategy                              pure
//! choice   what the operator asked for, and the better one                             pure
//! region   within a delta: whether blocks that differ are asked about or sent whole    pure
//! ```
//! The measurements are the engine's, the numbers are seconds and bytes per second in `f64`:
//! nothing that is decided here can make a result wrong, only slow.

mod choice;
mod cost;
mod interval;
mod number;
mod on_wire;
mod region;
mod sample;
mod seen;
mod survey;

pub use choice::{Costs, Known, Objective, Plan, Strategy, Wish, choose};
pub use cost::{
    Change, Cost, DiskRates, Facts, LinkFacts, Packing, Proof, SideFacts, Way, delta, full,
};
pub use interval::Interval;
pub(crate) use number::float;
pub(crate) use on_wire::probe_payload;
pub use region::{BlockPlan, RegionFacts, plan_region};
pub use sample::{
    Comparison, PIECE_COUNT_MAX, PIECE_LEN, Picks, PieceSums, SPAN_COUNT_MAX, SPAN_LEN, compare,
    pick,
};
pub(crate) use seen::Working;
pub use seen::{Meter, Meters, SeenRates};
pub use survey::{Patience, Reading, Survey, SurveyTask, Timed, read_sample, survey};
