//! Whole jobs on endpoints: what the command offers, for programs.

mod account;
mod check;
mod connection;
mod copy;
mod existing;
mod inspection;
mod job;
mod mapping;
mod maps;
mod merge;
mod plan;
mod recovery;
mod relay;
mod replacement;

pub use check::{CheckFinding, ImageCheck, ImageSummary, check};
pub use copy::{CompressChoice, SyncRequest, VerifyRequest, sync, verify};
pub use inspection::{ImageInfo, ParentInfo, VhdInfo, VhdxInfo, info};
pub use mapping::{MapPlace, MapReport, MapRequest, map};
pub use merge::{MergeReport, merge};
pub use plan::{Plan, Strategy, choose};
pub(crate) use recovery::refuse_mixed_source;
pub use recovery::{RecoveryReport, accept, recover, roll_back};

pub use connection::LinkOptions;
pub(crate) use connection::{SOFTWARE, in_one, in_shape};
pub(crate) use copy::new_disk;
pub use maps::SideMapReport;
pub(crate) use maps::{MapUse, source_map};
pub(crate) use replacement::HostedTarget;
