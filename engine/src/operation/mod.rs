//! Whole jobs on endpoints: what the command offers, for programs.

mod connection;
mod copy;
mod inspection;
mod job;
mod mapping;
mod plan;
mod relay;

pub use copy::{CompressChoice, SyncRequest, VerifyRequest, sync, verify};
pub use inspection::{ImageInfo, VhdInfo, VhdxInfo, info};
pub use mapping::{MapReport, MapRequest, map};
pub use plan::{Plan, Strategy, choose};

pub(crate) use connection::SOFTWARE;
pub(crate) use copy::new_disk;
