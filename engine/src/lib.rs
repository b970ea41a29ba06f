//! Makes one virtual disk equal to another across a network: sends only what differs, and proves
//! the result.
//!
//! ```text
//!   operation   jobs on endpoints: sync, verify, map, info    agent   serves granted disks
//!       |                                                        |
//!       +--> sync: the source's and the target's role over a link <--+
//!              |            |                 |
//!           pipeline      tree              apply    the only module that changes a target
//!       read, zero?, hash  root over all    write, flush, read back
//!              |
//!            disk: raw file, block device, VHDX, VHD, memory --> system: locks, direct reads
//! ```
//! The library prints nothing, installs no signal handler or logger, and leaves no thread behind. A
//! job is started by one call, watched through an [`Observer`], and ended early by a
//! [`CancelToken`].

mod abort;
pub mod agent;
mod apply;
pub mod commit;
pub mod disk;
mod draws;
pub mod endpoint;
mod error;
mod event;
pub mod hash;
pub mod hook;
pub mod identity;
pub mod job;
pub mod machine;
pub mod map;
pub mod operation;
pub mod pipeline;
pub mod plan;
pub mod report;
#[cfg(feature = "simulate")]
pub mod schedule;
#[cfg(not(feature = "simulate"))]
mod schedule;
pub mod snapshot;
mod stage;
pub mod state;
pub mod step;
pub mod sync;
pub mod system;
pub mod track;
pub mod tree;
pub mod units;
mod verify;

pub use abort::{Abort, CancelToken};
pub use error::{Error, ErrorKind, Remedy, Result, one_line};
pub use event::{Event, Observer, Silent, Stamped};
pub use failback_transport as transport;
pub use step::Step;
