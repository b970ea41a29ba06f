//! A virtual machine on its way home: a job that copies while it runs, stops it, copies the rest,
//! starts it at home, and waits to be accepted. One machine with all its disks.
//!
//! ```text
//! spec      what is to be done, as data           phase    where a job can be: pure
//! journal   what was done, durably                history  what that comes to
//! run       from phase to phase                   online, cutover, ending: the phases
//! fence, charge: who may start the machine        host     the side of the source
//! moving    the disks, side by side               forecast the downtime to be expected: pure
//! remote    that side behind an agent
//! hints     what of a disk need not be read     losing  what an undo takes away
//! unchanged that disks are what was proven
//! paths     that an operator wrote
//! place     where jobs are kept, and asked        report   what is told of one
//! asking    from outside the process      overlap  what jobs must not share
//! retry     when one that stands goes on by itself
//! profile   what a platform can take, as data
//! page      the report as HTML
//! progress  of all disks: pure                    recording  events, in a file of the job
//! ```
//! Every phase can be done again: its record is written when it is over, and a process that takes a
//! job up begins with the phase that has none.

mod asking;
mod charge;
mod cutover;
mod ending;
mod fence;
mod forecast;
mod hints;
mod history;
mod host;
mod journal;
mod losing;
mod moving;
mod online;
mod overlap;
mod page;
mod paths;
mod phase;
mod place;
mod plan;
mod preflight;
pub mod profile;
mod progress;
mod recording;
mod remote;
mod report;
mod retry;
mod reverse;
mod run;
mod span;
mod spec;
mod unchanged;
mod wiring;

pub use asking::{ask_another, look};
pub use fence::{Authority, Charge, Epoch, Fence, Times};
pub(crate) use fence::{holder, refuse_far_ahead};
pub use host::{Hint, HintBase, LocalHost, SourceHost};
pub(crate) use host::{Tracked, delete_disk, prove_quiet};
pub use journal::{Basis, Begun, DiskPlan, DowntimePart, Expected, Fact, Moved, Record};
pub use page::PAGE_LEN_MAX;
pub(crate) use paths::{from_base, of_side, refuse_relative};
pub use phase::{Ask, Outcome, Phase, Position, Way};
pub use place::Jobs;
pub use plan::{JobPlan, plan};
pub use preflight::Finding;
pub use progress::{Amounts, DiskProgress, Eta, JobProgress};
pub use recording::{EVENTS_LEN_MAX, EVENTS_NAME, Recorded, events};
pub use remote::RemoteHost;
pub use report::{
    DeadlineReport, DiskReport, Downtime, JOB_REPORT_SCHEMA, JobFailure, JobReport, Moment,
    PassReport, RetryReport, moment,
};
pub use retry::{Clock, HostClock};
pub(crate) use reverse::reverse_name;
pub use reverse::{accepted, reverse_of};
pub use run::{Job, Sides, Stay};
pub use spec::{
    Complete, DiskSpec, FinalCopy, JobSpec, MachineSpec, Policy, SideSpec, SnapshotSpec,
    TrackerSpec, Verify,
};
pub(crate) use spec::{from_toml, is_name};
pub(crate) use wiring::{machine_of_spec, snapshots_of_spec, tracker_of_spec};
