//! A virtual machine on its way home: a job that copies while it runs, stops it, copies the rest,
//! starts it at home, and waits to be accepted. One machine with all its disks.
//!
//! ```text
//! spec      what is to be done, as data           phase    where a job can be: pure
//! journal   what was done, durably                history  what that comes to
//! run       from phase to phase                   online, cutover, ending: the phases
//! fence     who may start the machine             host     the side of the source
//! moving    the disks, side by side               forecast the downtime to be expected: pure
//! remote    that side behind an agent              report   what is told of one
//! place     where jobs are kept, and asked
//! ```
//! Every phase can be done again: its record is written when it is over, and a process that takes a
//! job up begins with the phase that has none.

mod cutover;
mod ending;
mod fence;
mod forecast;
mod history;
mod host;
mod journal;
mod moving;
mod online;
mod phase;
mod place;
mod plan;
mod preflight;
mod remote;
mod report;
mod run;
mod span;
mod spec;
mod wiring;

pub(crate) use fence::holder;
pub use fence::{Authority, Charge, Epoch, Fence};
pub(crate) use host::prove_quiet;
pub use host::{LocalHost, SourceHost};
pub use journal::{Begun, Fact, Moved, Record};
pub use phase::{Ask, Outcome, Phase, Position, Way};
pub use place::Jobs;
pub use plan::{JobPlan, plan};
pub use preflight::Finding;
pub use remote::RemoteHost;
pub use report::{
    DeadlineReport, DiskReport, Downtime, JOB_REPORT_SCHEMA, JobFailure, JobReport, Moment,
    PassReport,
};
pub use run::{Job, Sides, Stay, ask_another, look};
pub use spec::{Complete, DiskSpec, JobSpec, MachineSpec, Policy, SideSpec, SnapshotSpec, Verify};
pub(crate) use spec::{from_toml, is_name};
pub(crate) use wiring::{machine_of_spec, snapshots_of_spec};
