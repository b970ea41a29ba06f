//! The other direction, once a machine has come home: from where it runs now to where it ran
//! before, whose disks are as they were when it was stopped.

use super::history::History;
use super::journal::Record;
use super::phase::Phase;
use super::spec::{Complete, DiskSpec, JobSpec, NAME_LEN_MAX, Policy, SideSpec};
use crate::endpoint::Endpoint;
use crate::error::{Error, ErrorKind, Result};

/// What the name of a job that goes the other way ends with.
const SUFFIX: &str = "-reverse";

impl JobSpec {
    /// The job that goes the other way. Only what changed since the source was stopped differs; a
    /// disk that is gone there is made anew. It moves nothing by itself, and deletes nothing.
    ///
    /// # Errors
    /// `Refused` where a source is behind an agent: its disks cannot be written to from here, and
    /// the job runs over there (`ControlSpec::job_back`).
    pub fn reversed(&self) -> Result<Self> {
        if self.control()?.is_some() {
            let pair = self.pair_name();
            let message = format!(
                "the machine came from behind an agent: its disks cannot be written to from here. \
                 Serve what `failback pair control {}` prints, and run `failback pair reverse \
                 {pair} --control FILE --source ADDRESS/{pair}` on that host",
                self.name
            );
            return Err(Error::new(ErrorKind::Refused, message));
        }
        let side = |of: &SideSpec, name: &str| SideSpec {
            side: Some(name.to_owned()),
            ..of.clone()
        };
        let disks: Result<Vec<_>> = self.disks.iter().map(reversed_disk).collect();
        Ok(Self {
            name: reverse_name(&self.name),
            pair: Some(self.pair_name().to_owned()),
            source: side(&self.target, self.side_of_target()),
            target: side(&self.source, self.side_of_source()),
            disks: disks?,
            policy: reversed_policy(&self.policy),
        })
    }
}

/// What the job that goes the other way is called.
pub(crate) fn reverse_name(name: &str) -> String {
    let keep = NAME_LEN_MAX - SUFFIX.len();
    match name.strip_suffix(SUFFIX) {
        Some(base) => base.to_owned(),
        None => name[..name.len().min(keep)].to_owned() + SUFFIX,
    }
}

/// How to copy, and how long to be patient, stays. When the machine moves, and what becomes of it
/// then, was said of the way home alone, and so were the limits of that place and how long its
/// machines take.
fn reversed_policy(policy: &Policy) -> Policy {
    let default = Policy::default();
    Policy {
        complete: Complete::Manual,
        complete_at: None,
        commit_after: None,
        undo_after: None,
        export_on_undo: None,
        delete_source_machine: false,
        delete_source_disks: false,
        profile: None,
        expected_stop: default.expected_stop,
        expected_start: default.expected_start,
        ..policy.clone()
    }
}

fn reversed_disk(disk: &DiskSpec) -> Result<DiskSpec> {
    let Endpoint::Path(target) = disk.endpoint()? else {
        let message = format!(
            "disk `{}` came from an agent: it cannot go back there",
            disk.id
        );
        return Err(Error::new(ErrorKind::Refused, message));
    };
    let source = disk.target.to_str().ok_or_else(|| {
        let message = "has a name that no definition can have: it is not Unicode";
        Error::new(ErrorKind::Usage, message).path(&disk.target)
    })?;
    Ok(DiskSpec {
        source: Some(source.to_owned()),
        target,
        identity: None,
        source_format: disk.target_format.clone(),
        target_format: disk.source_format.clone(),
        ..disk.clone()
    })
}

/// The job that takes a machine back to where the job of these records brought it from.
///
/// # Errors
/// `Refused` unless that job was accepted.
pub fn reverse_of(records: &[Record]) -> Result<JobSpec> {
    accepted(records)?.reversed()
}

/// What the job of these records was, which was accepted.
///
/// # Errors
/// `Refused` unless it was.
pub fn accepted(records: &[Record]) -> Result<&JobSpec> {
    let history = History(records);
    let phase = history.position().phase;
    match phase {
        Phase::Finished => Ok(history.spec()),
        _ => {
            let name = &history.spec().name;
            let message = format!(
                "job `{name}` is {}: the other way begins when it is accepted",
                phase.name()
            );
            Err(Error::new(ErrorKind::Refused, message))
        }
    }
}

#[cfg(unix)]
#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    // Goal: the way back begins nothing by itself: the machine stays where it came to, and no
    // machine is deleted, until somebody asks for that. Method: a job that does all of it by
    // itself, reversed.
    #[test]
    fn the_way_back_does_nothing_by_itself() {
        let mut spec = JobSpec::new("web").disk("os", "/cloud/os.raw", "/vm/os.raw");
        spec.policy = Policy {
            complete: Complete::WhenReady,
            complete_at: Some("2026-11-29T22:00:00Z".to_owned()),
            commit_after: Some(Duration::from_secs(1)),
            delete_source_machine: true,
            profile: Some("azure-hyperv/2020-01".to_owned()),
            expected_stop: Duration::from_secs(90),
            stop_timeout: Duration::from_secs(7),
            force_stop: true,
            ..Policy::default()
        };
        let mut undone = spec.clone();
        undone.policy.commit_after = None;
        undone.policy.undo_after = Some(Duration::from_secs(1));

        for spec in [spec, undone] {
            let back = spec.reversed().unwrap();

            back.check().unwrap();
            let wanted = Policy {
                stop_timeout: Duration::from_secs(7),
                force_stop: true,
                ..Policy::default()
            };
            assert_eq!(back.policy, wanted);
        }
    }
}
