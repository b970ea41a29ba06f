//! What a job did: the document that `--json` prints. Fields are published in docs/report.md and
//! keep their names.

mod plan;

use serde::Serialize;

use crate::disk::DiskInfo;
use crate::error::{Error, ErrorKind, Remedy};
use crate::hash::HashKind;
use crate::operation::SideMapReport;
use crate::plan::Cost;

pub use plan::{CostReport, PlanReport, RatesReport, SampleReport};

/// Version of the report's shape.
pub const REPORT_SCHEMA: &str = "failback.report/1";

/// How a job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The target equals the source, proven.
    Done,
    /// The target was made equal, and `--verify off` left the proof out.
    Unverified,
    /// All that the target is to become is kept beside it, proven; the target is as it was.
    Staged,
    /// The two disks are equal.
    Equal,
    /// The two disks differ.
    Different,
    /// Refused for safety; nothing was changed.
    Refused,
    /// It failed.
    Failed,
    /// It was cancelled.
    Interrupted,
}

impl Outcome {
    /// The name in reports and events.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Unverified => "unverified",
            Self::Staged => "staged",
            Self::Equal => "equal",
            Self::Different => "different",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::Interrupted => "interrupted",
        }
    }

    /// How a job that ended with `kind` ended.
    #[must_use]
    pub fn of_error(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::GeometryMismatch
            | ErrorKind::InUse
            | ErrorKind::ReadOnly
            | ErrorKind::NotGranted
            | ErrorKind::Refused => Self::Refused,
            ErrorKind::Cancelled => Self::Interrupted,
            _ => Self::Failed,
        }
    }
}

/// One side of the job.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Side {
    /// As the operator named it.
    pub endpoint: String,
    /// `raw`, `vhdx`; empty until it was opened.
    pub format: String,
    /// Bytes of the virtual disk.
    pub virtual_size: u64,
    /// Block of the image format in bytes; 0 where it has none or where the agent does not tell.
    pub block_size: u32,
    /// Changes when the image is replaced or rewritten; empty until it was opened.
    pub identity: String,
}

impl Side {
    pub(crate) fn named(endpoint: &impl ToString) -> Self {
        Self {
            endpoint: endpoint.to_string(),
            ..Self::default()
        }
    }

    pub(crate) fn describe(&mut self, info: &DiskInfo) {
        self.format.clone_from(&info.format);
        self.virtual_size = info.virtual_size;
        self.block_size = info.image_block_size.unwrap_or(0);
        self.identity.clone_from(&info.identity);
    }
}

/// Bytes.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Bytes {
    /// Read from the source.
    pub source_read: u64,
    /// Read from the target to compare and to patch; not for the proof.
    pub target_read: u64,
    /// 4 KiB sub-blocks that differed; 0 where nothing was compared.
    pub changed: u64,
    /// Payload, after compression.
    pub sent: u64,
    /// The same before compression; 0 when the job failed.
    pub sent_raw: u64,
    /// Every byte on the link, from this side.
    pub wire_out: u64,
    /// Every byte on the link, to this side.
    pub wire_in: u64,
    /// Written to the target.
    pub written: u64,
    /// Read back from the target for the proof.
    pub verified: u64,
    /// With data, and not read in this job, because a saved map vouches for them; of both disks.
    pub vouched_by_map: u64,
}

/// Blocks of the checksum map.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Blocks {
    /// Of the disk.
    pub total: u64,
    /// Of the source: read and hashed.
    pub hashed: u64,
    /// Of the source: known to hold nothing, without a read.
    pub skipped_unallocated: u64,
    /// Found different; 0 where nothing was compared.
    pub differing: u64,
    /// Of the target: held data and were made zero.
    pub zeroed: u64,
    /// Staged by an earlier run and not sent again, unless the source was changed since.
    pub resumed: u64,
}

/// Changes of plan within a delta.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Replans {
    /// How many there were; each was an event.
    pub count: u64,
    /// Regions of which blocks that differ were sent whole, and not asked about.
    pub whole_regions: u64,
    /// Bytes of these blocks.
    pub whole_bytes: u64,
    /// Reason codes of it; empty where it never came to that.
    pub reasons: Vec<&'static str>,
}

/// Root hashes in hexadecimal; `null` when not known.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Roots {
    /// Of the source.
    pub source: Option<String>,
    /// Of the target.
    pub target: Option<String>,
}

/// What was expected before the job; `null` where nothing was measured.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Predicted {
    /// Seconds, without those of the plan.
    pub seconds: Option<f64>,
    /// Payload bytes, after compression.
    pub bytes: Option<u64>,
    /// Seconds for which the machine that uses the source stands still.
    pub downtime: Option<f64>,
}

impl Predicted {
    pub(crate) fn of(cost: &Cost) -> Self {
        Self {
            seconds: Some(cost.seconds),
            bytes: Some(cost.bytes),
            downtime: Some(cost.downtime),
        }
    }
}

/// Durations.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Seconds {
    /// All of it.
    pub total: f64,
    /// Opening, connecting, choosing.
    pub plan: f64,
    /// Comparing and copying.
    pub copy: f64,
    /// Flushing, reading back, closing.
    pub verify: f64,
}

/// What became of the saved maps of the two disks.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Maps {
    /// Of the source.
    pub source: SideMapReport,
    /// Of the target.
    pub target: SideMapReport,
}

/// Why it failed.
#[derive(Clone, Debug, Serialize)]
pub struct Failure {
    /// [`ErrorKind::name`].
    pub kind: &'static str,
    /// One line.
    pub message: String,
    /// The file, where one is to blame.
    pub path: Option<String>,
    /// Byte offset in it.
    pub offset: Option<u64>,
}

/// The report of `sync` and `verify`.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// [`REPORT_SCHEMA`].
    pub schema: &'static str,
    /// `sync`, `plan` or `verify`.
    pub command: &'static str,
    /// How it ended.
    pub outcome: Outcome,
    /// `delta`, `full`; `null` for `verify` and when it was not chosen yet.
    pub strategy: Option<&'static str>,
    /// Reason codes of the choice.
    pub reasons: Vec<&'static str>,
    /// What was read.
    pub source: Side,
    /// What was made equal, or compared.
    pub target: Side,
    /// Bytes.
    pub bytes: Bytes,
    /// Blocks.
    pub blocks: Blocks,
    /// The hash.
    pub hash: HashKind,
    /// Whether equality is stated by a hash that only accidents, not attackers, respect.
    pub non_cryptographic: bool,
    /// Block of the map in bytes; the root depends on it.
    pub root_block_size: u32,
    /// Root hashes.
    pub root: Roots,
    /// Where the proof read from: `medium`, `cache`, `server`; `null` without a proof.
    pub verified_from: Option<&'static str>,
    /// How the target was changed: `stage`, `in_place`, or `new` for one that was missing; `null`
    /// for `verify`, and when it failed before.
    pub apply: Option<&'static str>,
    /// What kept the new disk until all was there: `log`, `file`, `clone`; `null` when nothing
    /// differed, in place, and for `verify`.
    pub stage: Option<&'static str>,
    /// How long the old disk can be restored: `until_verified`, `kept`, `none`; `null` where there
    /// was none.
    pub undo: Option<&'static str>,
    /// What was expected.
    pub predicted: Predicted,
    /// What either strategy would cost, and what that rests on; `null` for `verify`, and when it
    /// failed before the choice.
    pub plan: Option<PlanReport>,
    /// Changes of plan while a delta ran.
    pub replans: Replans,
    /// Durations.
    pub seconds: Seconds,
    /// The saved maps of the two disks.
    pub map: Maps,
    /// Why it failed; `null` when it did not.
    pub error: Option<Failure>,
    /// The error itself, for callers of the library.
    #[serde(skip)]
    pub(crate) error_kind: Option<ErrorKind>,
    /// Its way out, for callers of the library.
    #[serde(skip)]
    pub(crate) remedy: Option<Remedy>,
}

impl Report {
    /// Kind of the error, if it failed.
    #[must_use]
    pub fn error_kind(&self) -> Option<ErrorKind> {
        self.error_kind
    }

    /// What can be asked for instead, if it failed and there is something.
    #[must_use]
    pub fn remedy(&self) -> Option<Remedy> {
        self.remedy
    }

    pub(crate) fn fail(&mut self, error: &Error) {
        self.outcome = Outcome::of_error(error.kind());
        self.error_kind = Some(error.kind());
        self.remedy = error.remedy();
        self.error = Some(Failure {
            kind: error.kind().name(),
            message: error.chain(),
            path: error.file().map(|path| path.display().to_string()),
            offset: error.offset(),
        });
    }
}
