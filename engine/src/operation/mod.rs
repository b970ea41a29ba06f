//! Whole jobs on endpoints: what the command offers, for programs.

mod account;
mod check;
mod connection;
mod copy;
mod existing;
mod fit;
mod holding;
mod inspection;
mod making;
mod mapping;
mod maps;
mod measuring;
mod merge;
mod planned;
mod planning;
mod questions;
mod recovery;
mod relay;
mod replacement;
mod scanning;
mod sides;
mod since;

pub use crate::plan::{Plan, Strategy, choose};
pub use check::{CheckFinding, ImageCheck, ImageSummary, check};
pub use copy::{Carried, CompressChoice, SyncRequest, VerifyRequest, sync, verify};
pub use holding::Held;
pub(crate) use holding::hold_against;
pub use inspection::{ImageInfo, ParentInfo, VhdInfo, VhdxInfo, info};
pub(crate) use making::new_disk;
pub use mapping::{MapPlace, MapReport, MapRequest, map};
pub use merge::{MergeReport, merge};
pub use planning::plan;
pub(crate) use recovery::refuse_mixed_source;
pub use recovery::{RecoveryReport, accept, recover, roll_back};
pub(crate) use recovery::{Standing, stage_mark, standing};
pub use since::Writes;
pub(crate) use since::{keep_map, state_of, writes_since};

pub use connection::LinkOptions;
pub(crate) use connection::{SOFTWARE, call, in_one, in_shape};
pub(crate) use copy::{Hinted, Left, try_sync};
pub use maps::SideMapReport;
pub(crate) use maps::{MapStanding, MapUse, carried_map, source_map};
pub(crate) use measuring::Measured;
pub(crate) use planned::{PlannedTarget, likely_containers};
pub(crate) use replacement::HostedTarget;
