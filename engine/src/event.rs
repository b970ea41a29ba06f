//! What a job tells while it runs.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::job::JobProgress;

/// Something that happened. Serialised as one JSON object with `event` as its tag; published in
/// docs/report.md.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Event {
    /// A job begins.
    Started {
        /// `sync`, `verify`, `map`.
        command: &'static str,
        /// What is read.
        source: String,
        /// What is made equal or compared; absent for `map`.
        #[serde(skip_serializing_if = "Option::is_none")]
        target: Option<String>,
    },
    /// How it will be done, and why.
    Planned {
        /// `delta` or `full`.
        strategy: &'static str,
        /// Reason codes.
        reasons: Vec<&'static str>,
    },
    /// A new phase begins.
    Phase {
        /// `plan`, `copy`, `verify`.
        phase: &'static str,
    },
    /// How far it is. Comes some times a second.
    Progress {
        /// `copy` or `verify`.
        phase: &'static str,
        /// Bytes of the disk (copy) or bytes read back (verify) done.
        done: u64,
        /// All of them; 0 while unknown.
        total: u64,
        /// Payload bytes sent so far.
        sent: u64,
        /// Bytes of the blocks that were found to differ so far; of a full copy, that it writes.
        differing: u64,
        /// Of these, the bytes that are not where they are to be kept yet.
        backlog: u64,
        /// Seconds since the job began.
        seconds: f64,
    },
    /// From here on a delta has another plan for blocks that differ.
    Replan {
        /// Byte of the disk from which on.
        from: u64,
        /// `differences`: the target is asked what of them differs; `whole`: it gets all of them.
        plan: &'static str,
        /// Reason codes.
        reasons: Vec<&'static str>,
    },
    /// Something is odd and does not stop the job.
    Warning {
        /// One line.
        message: String,
    },
    /// The job ended.
    Finished {
        /// As in the report.
        outcome: &'static str,
        /// The error, if it failed.
        #[serde(skip_serializing_if = "Option::is_none")]
        error: Option<String>,
    },
    /// A command of the operator ran for a step of a job.
    HookRan {
        /// Which one: `power`, `start`.
        hook: String,
        /// The step that it ran for.
        step: String,
        /// From its start to its end.
        seconds: f64,
        /// `exit 0`, `exit N`, `signal N`, `timeout`, `cancelled`, or `not started: ` and why.
        outcome: String,
        /// The last 4 KiB of what it said, stdout and stderr as they came; control characters
        /// escaped but for the ends of lines.
        output: String,
    },
    /// A failback job went on to another phase.
    JobPhase {
        /// The job.
        job: String,
        /// The phase.
        phase: &'static str,
        /// It failed there, and waits.
        suspended: bool,
    },
    /// How far a failback job is. Comes about once a second while disks are moved.
    JobProgress(Box<JobProgress>),
    /// Downtime to be expected if a job were completed now.
    DowntimePredicted {
        /// The job.
        job: String,
        /// The pass that it was learned from.
        pass: u32,
        /// Seconds.
        seconds: f64,
    },
    /// A job makes no further pass at once.
    PassesSettled {
        /// The job.
        job: String,
        /// `within_budget`, `nothing_changed`, `not_shrinking`, `enough_passes`.
        reason: &'static str,
    },
    /// The target of a job was started.
    Downtime {
        /// The job.
        job: String,
        /// Seconds since the source was asked to stop.
        seconds: f64,
        /// As it was expected before.
        predicted: Option<f64>,
    },
    /// Something happened to one of several disks that move at the same time.
    OfDisk {
        /// The disk.
        disk: String,
        /// What.
        of: Box<Event>,
    },
    /// An agent began to serve a peer.
    SessionStarted {
        /// The peer.
        peer: String,
        /// The grant it uses.
        grant: String,
        /// `source`, `target`.
        role: &'static str,
    },
    /// An agent ended a session.
    SessionEnded {
        /// The peer.
        peer: String,
        /// `done`, or the error.
        outcome: String,
    },
}

/// An event and its time: one line of an event file.
#[derive(Clone, Debug, Serialize)]
pub struct Stamped<'a> {
    /// Milliseconds since 1970, by the clock of the host that tells.
    pub at_ms: u64,
    /// What happened.
    #[serde(flatten)]
    pub event: &'a Event,
}

impl<'a> Stamped<'a> {
    /// It happens now.
    #[must_use]
    pub fn now(event: &'a Event) -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let at_ms = since.map_or(0, |since| {
            u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
        });
        Self { at_ms, event }
    }
}

/// Receives events, on whatever thread they happen: be quick.
pub trait Observer: Send + Sync {
    /// Something happened.
    fn event(&self, event: &Event);
}

impl<F: Fn(&Event) + Send + Sync> Observer for F {
    fn event(&self, event: &Event) {
        self(event);
    }
}

/// Ignores everything.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Observer for Silent {
    fn event(&self, _event: &Event) {}
}
