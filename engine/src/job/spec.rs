//! What a job is to do, as data: written by hand as TOML, or built by a program.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::profile::Profile;
use super::span;
use crate::disk::{Format, OpenOptions};
use crate::endpoint::Endpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::hook::Hook;
use crate::machine::{HookMachine, QmpMachine};
use crate::plan::{Objective, Strategy};
use crate::snapshot::HookSnapshots;
use crate::transport::{CONTROL_LIMIT_MS_MAX, VerifyLevel};

/// A failback of one virtual machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobSpec {
    /// What it is called: letters, digits, `-` and `_`, 64 at most.
    pub name: String,
    /// The two places of one machine, whatever the job is called and whichever way it goes; by
    /// default the job's name. Who may start the machine is kept for the pair.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pair: Option<String>,
    /// The side that is read, and stopped.
    pub source: SideSpec,
    /// The side that is made equal, and started. The job runs there.
    pub target: SideSpec,
    /// The machine's disks.
    #[serde(rename = "disk")]
    pub disks: Vec<DiskSpec>,
    /// How it is done.
    #[serde(default)]
    pub policy: Policy,
}

/// One side of the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SideSpec {
    /// The side's name, the same in every job of the pair; `recovery` for a source and `primary`
    /// for a target where nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub side: Option<String>,
    /// The agent that controls this side, and under which name: `tcp://127.0.0.1:9000/web`. Of a
    /// source only; what else there is to say of it, the agent's operator says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control: Option<String>,
    /// How the machine is stopped and started; `None`: by the program that embeds the engine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<MachineSpec>,
    /// How its disks are frozen while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshots: Option<SnapshotSpec>,
    /// What knows which parts of a disk changed since a snapshot; `None`: nothing does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tracker: Option<TrackerSpec>,
    /// Runs after the machine was started, and says by its exit whether it is up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe: Option<Hook>,
    /// Deletes one of its disks, `FAILBACK_IMAGE`; ends well when it is gone already. Of a source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delete_disk: Option<Hook>,
}

/// How a machine is stopped and started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum MachineSpec {
    /// QEMU with a QMP socket.
    Qmp(QmpMachine),
    /// Commands of any hypervisor.
    Hooks(HookMachine),
}

/// How a disk is frozen while its machine runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum SnapshotSpec {
    /// A clone that shares the image's blocks: XFS, btrfs.
    Reflink {},
    /// Commands.
    Hooks(HookSnapshots),
}

/// What knows which parts of a disk changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TrackerSpec {
    /// Where the bytes of clones and image lie on their device: with [`SnapshotSpec::Reflink`].
    Extents,
}

/// When all of a stopped source is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinalCopy {
    /// After the target was started, where a tracker names what changed: the downtime has only
    /// that. Nothing is accepted before all was read and found equal.
    Tracked,
    /// Before the target is started.
    Scan,
}

/// One disk of the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskSpec {
    /// What it is called; as a job's name.
    pub id: String,
    /// The image that the source runs from: a path, or a grant of an agent. Left out where an agent
    /// controls the source: it is the agent's disk of the same id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// The image that the target will run from; made where it is missing.
    pub target: PathBuf,
    /// The disk id of the target's image as `info` tells it; another disk is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
    /// Format of the source, where its magic is not to be believed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_format: Option<String>,
    /// Format of the target, where its magic or suffix is not to be believed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_format: Option<String>,
    /// Parents of differencing images are taken from where the images name them.
    #[serde(default, skip_serializing_if = "is_false")]
    pub follow_parents: bool,
    /// Images that seem to stand on one of its images do not.
    #[serde(default, skip_serializing_if = "is_false")]
    pub skip_sibling_check: bool,
}

/// How a job is done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// Delta, full, or the better one.
    pub strategy: Strategy,
    /// What the better one has less of.
    pub optimize: Objective,
    /// Longest downtime.
    #[serde(with = "span::optional", skip_serializing_if = "Option::is_none")]
    pub downtime_budget: Option<Duration>,
    /// What is read back of the targets.
    pub verify: Verify,
    /// When all of the stopped source is read.
    pub final_copy: FinalCopy,
    /// How long the guest may take to shut down.
    #[serde(with = "span")]
    pub stop_timeout: Duration,
    /// How long it is expected to take, for the prediction of the downtime.
    #[serde(with = "span")]
    pub expected_stop: Duration,
    /// How long the target is expected to take to start, likewise.
    #[serde(with = "span")]
    pub expected_start: Duration,
    /// Take the power away from a guest that does not shut down.
    pub force_stop: bool,
    /// When the source is stopped.
    pub complete: Complete,
    /// Not before this moment, RFC 3339 in UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub complete_at: Option<String>,
    /// Time between passes while the job waits, at least 10 seconds.
    #[serde(with = "span")]
    pub keep_warm: Duration,
    /// Accept the target so long after it was started.
    #[serde(with = "span::optional", skip_serializing_if = "Option::is_none")]
    pub commit_after: Option<Duration>,
    /// Go back to the source so long after the target was started.
    #[serde(with = "span::optional", skip_serializing_if = "Option::is_none")]
    pub undo_after: Option<Duration>,
    /// Where a target's disks that its guest wrote to are copied before an undo takes them away.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub export_on_undo: Option<PathBuf>,
    /// Once accepted, the machine of the source is deleted; its disks stay.
    pub delete_source_machine: bool,
    /// Once accepted, the disks of the source are deleted by its `delete_disk`: a later way back is
    /// a full copy.
    pub delete_source_disks: bool,
    /// The platform whose limits are held against the disks, `azure-hyperv/2020-01`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            strategy: Strategy::Auto,
            optimize: Objective::Downtime,
            downtime_budget: None,
            verify: Verify::Changed,
            final_copy: FinalCopy::Tracked,
            stop_timeout: Duration::from_mins(5),
            expected_stop: Duration::from_secs(10),
            expected_start: Duration::from_secs(5),
            force_stop: false,
            complete: Complete::Manual,
            complete_at: None,
            keep_warm: Duration::from_mins(15),
            commit_after: None,
            undo_after: None,
            export_on_undo: None,
            delete_source_machine: false,
            delete_source_disks: false,
            profile: None,
        }
    }
}

/// What is read back of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verify {
    /// All of it.
    Full,
    /// What was written.
    Changed,
    /// Nothing.
    Off,
}

impl Verify {
    /// As sessions call it.
    #[must_use]
    pub fn level(self) -> VerifyLevel {
        match self {
            Self::Full => VerifyLevel::Full,
            Self::Changed => VerifyLevel::Changed,
            Self::Off => VerifyLevel::Off,
        }
    }
}

/// When the source is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Complete {
    /// When somebody asks for it.
    Manual,
    /// When the predicted downtime is within the budget; without one when it does not shrink any
    /// more.
    WhenReady,
}

impl JobSpec {
    /// A job with the defaults, that still wants disks.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            pair: None,
            source: SideSpec::default(),
            target: SideSpec::default(),
            disks: Vec::new(),
            policy: Policy::default(),
        }
    }

    /// The same with one more disk.
    #[must_use]
    pub fn disk(mut self, id: &str, source: impl Into<String>, target: impl Into<PathBuf>) -> Self {
        self.disks.push(DiskSpec {
            source: Some(source.into()),
            ..DiskSpec::new(id, target)
        });
        self
    }

    /// The same with one more disk, which is that of the agent that controls the source.
    #[must_use]
    pub fn agent_disk(mut self, id: &str, target: impl Into<PathBuf>) -> Self {
        self.disks.push(DiskSpec::new(id, target));
        self
    }

    /// The same with another policy.
    #[must_use]
    pub fn policy(self, policy: Policy) -> Self {
        Self { policy, ..self }
    }

    /// Reads a job that was written as TOML, with whole paths.
    ///
    /// # Errors
    /// `Usage` with the line that is wrong.
    pub fn from_toml(text: &str) -> Result<Self> {
        let spec: Self = from_toml(text, "job definition")?;
        spec.check()?;
        Ok(spec)
    }

    /// The same, with relative paths taken from `base`, which is absolute.
    ///
    /// # Errors
    /// As [`JobSpec::from_toml`].
    pub fn from_toml_at(text: &str, base: &Path) -> Result<Self> {
        let spec: Self = from_toml(text, "job definition")?;
        let spec = spec.with_paths_from(base)?;
        spec.check()?;
        Ok(spec)
    }

    /// Whether it makes sense by itself. Its paths are whole: nothing depends on where a process
    /// stands.
    ///
    /// # Errors
    /// `Usage`.
    pub fn check(&self) -> Result<()> {
        let usage = |message: String| Err(Error::new(ErrorKind::Usage, message));
        let ids = self.disks.iter().map(|disk| &disk.id);
        for name in [&self.name].into_iter().chain(&self.pair).chain(ids) {
            if !is_name(name) {
                let shown = crate::error::one_line(name);
                return usage(format!(
                    "`{shown}` is no name: 1 to 64 letters, digits, `-` and `_`"
                ));
            }
        }
        if self.disks.is_empty() {
            return usage("a job needs at least one disk".to_owned());
        }
        for (at, disk) in self.disks.iter().enumerate() {
            let before = &self.disks[..at];
            if before.iter().any(|other| other.id == disk.id) {
                return usage(format!("two disks are called `{}`", disk.id));
            }
            if before.iter().any(|other| other.target == disk.target) {
                return usage(format!("disk `{}`: its target is another disk's", disk.id));
            }
            let is_same = |other: &DiskSpec| other.source == disk.source;
            if disk.source.is_some() && before.iter().any(is_same) {
                return usage(format!("disk `{}`: its source is another disk's", disk.id));
            }
            self.source_of(disk)?;
            disk.open(disk.source_format.as_deref())?;
            disk.open(disk.target_format.as_deref())?;
        }
        self.check_control()?;
        self.refuse_relative_paths()?;
        let policy = &self.policy;
        if policy.commit_after.is_some() && policy.undo_after.is_some() {
            return usage("commit_after and undo_after exclude each other".to_owned());
        }
        if policy.keep_warm < KEEP_WARM_MIN {
            return usage("keep_warm: no less than 10s, each pass reads the disks".to_owned());
        }
        self.not_before().map(drop)?;
        if let Some(profile) = &policy.profile {
            Profile::named(profile)?;
        }
        match self.side_of_source() == self.side_of_target() {
            true => usage("source and target are the same side".to_owned()),
            false => Ok(()),
        }
    }

    /// What an agent's operator says is not said here.
    fn check_control(&self) -> Result<()> {
        let usage = |message: &str| Err(Error::new(ErrorKind::Usage, message));
        if self.target.control.is_some() {
            return usage("[target] control: the job runs on the side of its targets");
        }
        let Some(endpoint) = self.control()? else {
            return Ok(());
        };
        if endpoint.name() != Some(self.pair_name()) {
            let (name, pair) = (endpoint.name().unwrap_or_default(), self.pair_name());
            let name = crate::error::one_line(name);
            return usage(&format!(
                "[source] control is of pair `{name}`, the job of `{pair}`"
            ));
        }
        let source = &self.source;
        let says_how = source.machine.is_some() || source.snapshots.is_some();
        let says_more = source.probe.is_some() || source.delete_disk.is_some();
        if says_how || says_more || source.tracker.is_some() {
            return usage(
                "[source] control: its machine, snapshots, tracker, hooks are the agent's",
            );
        }
        let says_more = |disk: &&DiskSpec| disk.source.is_some() || disk.source_format.is_some();
        if let Some(disk) = self.disks.iter().find(says_more) {
            let id = &disk.id;
            return usage(&format!(
                "disk `{id}`: its source is the agent's disk of that id"
            ));
        }
        match self.policy.stop_timeout.as_millis() > u128::from(CONTROL_LIMIT_MS_MAX) {
            true => usage("stop_timeout: an agent waits for a day at most"),
            false => Ok(()),
        }
    }

    /// The agent that controls the source; `None`: it is on this host.
    ///
    /// # Errors
    /// `Usage` for what is no grant of an agent.
    pub fn control(&self) -> Result<Option<Endpoint>> {
        let control = self.source.control.as_deref();
        match control.map(str::parse).transpose()? {
            Some(Endpoint::Path(path)) => {
                let message = "[source] control: a path has no agent";
                Err(Error::new(ErrorKind::Usage, message).path(&path))
            }
            endpoint => Ok(endpoint),
        }
    }

    /// Where a disk is read while its machine does not run.
    ///
    /// # Errors
    /// `Usage`.
    pub fn source_of(&self, disk: &DiskSpec) -> Result<Endpoint> {
        match self.control()? {
            Some(agent) => {
                let name = format!("{}/{}", agent.name().unwrap_or_default(), disk.id);
                Ok(agent.with_name(name))
            }
            None => disk.endpoint(),
        }
    }

    /// The pair.
    #[must_use]
    pub fn pair_name(&self) -> &str {
        self.pair.as_deref().unwrap_or(&self.name)
    }

    /// What the source's side is called.
    #[must_use]
    pub fn side_of_source(&self) -> &str {
        self.source.side.as_deref().unwrap_or("recovery")
    }

    /// What the target's side is called.
    #[must_use]
    pub fn side_of_target(&self) -> &str {
        self.target.side.as_deref().unwrap_or("primary")
    }

    /// The moment before which the source is not stopped.
    ///
    /// # Errors
    /// `Usage` for what is none.
    pub fn not_before(&self) -> Result<Option<std::time::SystemTime>> {
        let Some(text) = &self.policy.complete_at else {
            return Ok(None);
        };
        humantime::parse_rfc3339(text).map(Some).map_err(|e| {
            let message = "complete_at: not a moment such as 2026-11-29T22:00:00Z";
            Error::new(ErrorKind::Usage, message).caused_by(e)
        })
    }
}

impl DiskSpec {
    /// A disk with the defaults, that still wants a source unless an agent has it.
    #[must_use]
    pub fn new(id: &str, target: impl Into<PathBuf>) -> Self {
        Self {
            id: id.to_owned(),
            source: None,
            target: target.into(),
            identity: None,
            source_format: None,
            target_format: None,
            follow_parents: false,
            skip_sibling_check: false,
        }
    }

    /// Where the source is, as it is written here.
    ///
    /// # Errors
    /// `Usage`.
    pub fn endpoint(&self) -> Result<Endpoint> {
        match &self.source {
            Some(source) => source.parse(),
            None => {
                let message = format!("disk `{}` has no source", self.id);
                Err(Error::new(ErrorKind::Usage, message))
            }
        }
    }

    /// How one of its images is opened, of that format.
    ///
    /// # Errors
    /// `Usage` for a format that is none.
    pub fn open(&self, format: Option<&str>) -> Result<OpenOptions> {
        let format: Option<Format> = format.map(str::parse).transpose()?;
        Ok(OpenOptions {
            format,
            follow_parents: self.follow_parents,
            skip_sibling_check: self.skip_sibling_check,
            ..OpenOptions::default()
        })
    }
}

/// Reads what an operator wrote; `what` is what it is called to him.
///
/// # Errors
/// `Usage` with the line that is wrong.
pub(crate) fn from_toml<T: serde::de::DeserializeOwned>(text: &str, what: &str) -> Result<T> {
    toml::from_str(text).map_err(|e| {
        let said = crate::error::one_line(e.message());
        let before = e.span().and_then(|span| text.get(..span.start));
        let line = before.map(|before| before.matches('\n').count() + 1);
        let line = line.map(|line| format!(" (line {line})"));
        let message = format!("{what}: {said}{}", line.unwrap_or_default());
        Error::new(ErrorKind::Usage, message)
    })
}

/// Names become names of files, and words of commands.
pub(crate) fn is_name(text: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    (1..=NAME_LEN_MAX).contains(&text.len()) && text.chars().all(is_plain)
}

/// Passes that follow each other sooner are one that never ends.
const KEEP_WARM_MIN: Duration = Duration::from_secs(10);
/// Bytes of a name.
pub(super) const NAME_LEN_MAX: usize = 64;

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "the signature is serde's"
)]
fn is_false(value: &bool) -> bool {
    !value
}

#[cfg(unix)]
#[cfg(test)]
mod tests {
    use super::*;

    // Goal: a job that waits does not read its disks without pause. Method: the shortest pause, and
    // one below it.
    #[test]
    fn a_job_pauses_between_passes() {
        let kind = |keep_warm| {
            let spec = JobSpec::new("web").disk("os", "/cloud/os.raw", "/vm/os.raw");
            let policy = Policy {
                keep_warm,
                ..Policy::default()
            };
            spec.policy(policy).check().map_err(|error| error.kind())
        };
        assert_eq!(kind(Duration::from_secs(10)), Ok(()));
        assert_eq!(kind(Duration::from_millis(9_999)), Err(ErrorKind::Usage));
        assert_eq!(kind(Duration::ZERO), Err(ErrorKind::Usage));
    }
}
