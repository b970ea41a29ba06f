//! The way back to another host: the job runs there, beside the disks that the machine left, and an
//! agent answers for the machine here.

use super::control_spec::{ControlSpec, PairDiskSpec, PairSpec};
use crate::error::{Error, ErrorKind, Result, one_line};
use crate::job::{DiskSpec, JobSpec, Jobs, SideSpec, reverse_name};

impl ControlSpec {
    /// What an agent on this host serves once the job brought its machine here: the target as the
    /// job knew it.
    ///
    /// # Errors
    /// `Usage` where a program controls the machine: no file says how.
    pub fn of_target(job: &JobSpec) -> Result<Self> {
        let side = &job.target;
        let machine = side.machine.clone().ok_or_else(|| {
            let message = "a program controls the target's machine: no control file says how";
            Error::new(ErrorKind::Usage, message)
        })?;
        let disk = |disk: &DiskSpec| PairDiskSpec {
            id: disk.id.clone(),
            path: disk.target.clone(),
            format: disk.target_format.clone(),
            follow_parents: disk.follow_parents,
            skip_sibling_check: disk.skip_sibling_check,
        };
        let pair = PairSpec {
            side: job.side_of_target().to_owned(),
            machine,
            snapshots: side.snapshots.clone(),
            tracker: side.tracker,
            probe: side.probe.clone(),
            delete_disk: side.delete_disk.clone(),
            disks: job.disks.iter().map(disk).collect(),
        };
        Ok(Self {
            pairs: [(job.pair_name().to_owned(), pair)].into(),
        })
    }

    /// The same as text.
    ///
    /// # Errors
    /// `Usage` for what no TOML can have.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self).map_err(|error| {
            let message = format!("no control file can say it: {error}");
            Error::new(ErrorKind::Usage, message)
        })
    }

    /// The job that brings the machine of `pair` back to this host, which handed it over before:
    /// from the agent at `control`, into the disks that it left. It moves nothing by itself, and
    /// deletes nothing.
    ///
    /// # Errors
    /// `Usage` for a pair that the file does not have; `Refused` where the machine was not handed
    /// over, by what is kept in `jobs`; `Damaged`, `Io`.
    pub fn job_back(&self, jobs: &Jobs, pair: &str, control: &str) -> Result<JobSpec> {
        let here = self.pairs.get(pair).ok_or_else(|| {
            let message = format!("the control file has no pair `{}`", one_line(pair));
            Error::new(ErrorKind::Usage, message)
        })?;
        let refused = |why: String| {
            let message = format!("the machine of pair `{pair}` was not handed over: {why}");
            Error::new(ErrorKind::Refused, message)
        };
        let now = jobs.epoch(pair)?;
        let now = now.ok_or_else(|| refused("no job ever moved it".to_owned()))?;
        let there = match now.authority {
            Some(side) if side != here.side => side,
            Some(side) => return Err(refused(format!("`{side}`, this side, is in charge"))),
            None => return Err(refused("it is on its way".to_owned())),
        };
        let disk = |disk: &PairDiskSpec| DiskSpec {
            target_format: disk.format.clone(),
            follow_parents: disk.follow_parents,
            skip_sibling_check: disk.skip_sibling_check,
            ..DiskSpec::new(&disk.id, &disk.path)
        };
        let spec = JobSpec {
            pair: Some(pair.to_owned()),
            source: SideSpec {
                side: Some(there),
                control: Some(control.to_owned()),
                ..SideSpec::default()
            },
            target: SideSpec {
                side: Some(here.side.clone()),
                machine: Some(here.machine.clone()),
                snapshots: here.snapshots.clone(),
                tracker: here.tracker,
                probe: here.probe.clone(),
                delete_disk: here.delete_disk.clone(),
                control: None,
            },
            disks: here.disks.iter().map(disk).collect(),
            ..JobSpec::new(reverse_name(pair))
        };
        spec.check()?;
        Ok(spec)
    }
}
