//! What a job would do: the rules of its preflight, and the plan of each disk. Changes nothing.

use serde::Serialize;

use super::moving::Leg;
use super::online::{full_anyway, snapshot_of};
use super::preflight::{Finding, examine};
use super::run::Sides;
use super::spec::{DiskSpec, JobSpec};
use crate::abort::CancelToken;
use crate::endpoint::Endpoint;
use crate::error::{ErrorKind, Result};
use crate::event::Observer;
use crate::machine::Power;
use crate::operation::{self, likely_containers};
use crate::plan::Strategy;
use crate::report::Report;
use crate::state::Container;
use crate::step::Step;
use crate::sync::Until;

/// What a job would do.
#[derive(Clone, Debug, Serialize)]
pub struct JobPlan {
    /// `failback.job_plan/1`.
    pub schema: &'static str,
    /// What the job is called.
    pub name: String,
    /// `delta` if any disk is better compared, else `full`; `null` where nothing could be planned.
    pub strategy: Option<&'static str>,
    /// What the preflight found.
    pub findings: Vec<Finding>,
    /// What the job can do without, and its operator may miss later.
    pub warnings: Vec<String>,
    /// Plans of the disks, in their order; empty when a rule does not hold.
    pub disks: Vec<Report>,
}

/// Says what a job would do. Of a machine that runs, a snapshot of each disk is made, looked at and
/// let go.
///
/// # Errors
/// Where a side cannot be asked; what is wrong with a disk is in its plan.
pub fn plan(
    spec: &JobSpec,
    sides: &Sides,
    observer: &dyn Observer,
    cancel: &CancelToken,
) -> Result<JobPlan> {
    spec.check()?;
    let step = Step {
        job: &spec.name,
        name: "plan",
        observer,
        cancel,
    };
    let findings = examine(spec, sides, None, &step)?;
    let mut disks = Vec::new();
    let is_full = full_anyway(spec).is_some();
    if findings.iter().all(|finding| finding.holds) {
        let is_on = sides.source.machine().power(&step)? == Power::On;
        for disk in &spec.disks {
            match plan_disk(spec, disk, (sides, is_on), &step) {
                // Everything is copied after the stop, however long that takes.
                Err(error) if error.kind() == ErrorKind::Unsupported && is_full => {}
                planned => disks.push(planned?),
            }
        }
    }
    let holds = findings.iter().all(|finding| finding.holds);
    let is_unseen = holds && is_full && disks.is_empty();
    let has = |strategy| {
        is_unseen && strategy == "full" || disks.iter().any(|plan| plan.strategy == Some(strategy))
    };
    Ok(JobPlan {
        schema: "failback.job_plan/1",
        name: spec.name.clone(),
        strategy: ["delta", "full"].into_iter().find(|it| has(it)),
        findings,
        warnings: warnings(spec, is_unseen),
        disks,
    })
}

fn warnings(spec: &JobSpec, is_unseen: bool) -> Vec<String> {
    let can_go_back = spec.reversed().is_ok();
    let is_described = spec.target.machine.is_some();
    let is_frozen = spec.target.snapshots.is_some();
    let warning = (can_go_back && is_described && !is_frozen).then(|| {
        "no [target.snapshots]: the way back (`pair reverse`) could not freeze the disks of a \
         machine that runs"
            .to_owned()
    });
    let logged = spec.disks.iter().filter(|disk| {
        // A full copy goes to a new file, which an undo takes away whole.
        let (of_delta, of_full) = likely_containers(&disk.target);
        let is_full = spec.policy.strategy == Strategy::Full;
        (if is_full { of_full } else { of_delta }) == Container::Log
    });
    let logged = logged.map(|disk| {
        format!(
            "{}: no clones can be made there, so once the target's guest has written to disk `{}` \
             an undo leaves the new disk in place (it is listed, and kept by `export_on_undo`)",
            disk.target.display(),
            disk.id
        )
    });
    let unseen = is_unseen.then(|| {
        "nothing can be read while the source runs: everything is copied after the stop, and for \
         how long it will stand still is not known"
            .to_owned()
    });
    warning.into_iter().chain(logged).chain(unseen).collect()
}

fn plan_disk(
    spec: &JobSpec,
    disk: &DiskSpec,
    (sides, is_on): (&Sides, bool),
    step: &Step<'_>,
) -> Result<Report> {
    if !is_on {
        return plan_from(spec, disk, spec.source_of(disk)?, step);
    }
    let source = &sides.source;
    let id = snapshot_of(spec, "plan")?;
    // What an earlier plan left is not the disk as it is.
    source.release(disk, &id, step)?;
    let frozen = source.snapshot(disk, &id, step);
    let planned = frozen.and_then(|from| plan_from(spec, disk, from, step));
    // Also when somebody wants an end of everything: it costs the source more the longer it stays.
    let last = Step {
        cancel: &CancelToken::new(),
        ..*step
    };
    let released = source.release(disk, &id, &last);
    let planned = planned?;
    released.map(|()| planned)
}

fn plan_from(spec: &JobSpec, disk: &DiskSpec, from: Endpoint, step: &Step<'_>) -> Result<Report> {
    let leg = Leg {
        disk,
        from,
        strategy: spec.policy.strategy,
        until: Until::Staged,
        carried: None,
        owner: None,
    };
    Ok(operation::plan(&leg.request(spec)?, step.observer))
}
