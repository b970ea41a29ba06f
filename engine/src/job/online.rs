//! While the source runs: preflight, the choice, passes from snapshots, waiting.

use std::time::Instant;

use super::forecast::{self, Copying, Forecast};
use super::journal::{Basis, DiskPlan, Expected, Fact, now_ms};
use super::moving::{Leg, Watch, move_all};
use super::phase::{Ask, Outcome, Way};
use super::preflight::{Finding, examine, refuse_broken};
use super::run::{Job, Run, Went};
use super::spec::{Complete, DiskSpec, JobSpec};
use crate::abort::CancelToken;
use crate::endpoint::Endpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::event::Event;
use crate::machine::Power;
use crate::operation;
use crate::plan::Strategy;
use crate::report::{CostReport, Report};
use crate::snapshot::SnapshotId;
use crate::sync::Until;

impl Job {
    pub(super) fn preflight(&mut self, run: &Run<'_>) -> Result<Went> {
        let spec = self.spec();
        let step = run.step(&spec.name, "preflight");
        self.claim(&step)?;
        // What a process that died has left; no snapshot of this job is in use now.
        for disk in &spec.disks {
            for id in self.sides.source.snapshots(disk, &step)? {
                self.sides.source.release(disk, &id, &step)?;
            }
        }
        let findings = examine(&spec, &self.sides, Some(&self.directory), &step)?;
        let refused = refuse_broken(&findings);
        for Finding {
            rule,
            disk,
            holds,
            said,
            source,
        } in findings
        {
            self.journal.note(Fact::Checked {
                rule,
                disk,
                holds,
                said,
                source,
            })?;
        }
        refused?;
        let owner = self.owner();
        spec.disks
            .iter()
            .try_for_each(|disk| owner.take(&disk.target))?;
        Ok(Went::On(Outcome::Done, None))
    }

    pub(super) fn planning(&mut self, run: &Run<'_>) -> Result<Went> {
        let spec = self.spec();
        let planned = self.choose(&spec, run);
        if matches!(planned, Ok(Went::On(Outcome::Go(Way::Delta), _))) {
            return planned;
        }
        let thawed = self.thaw(&spec, 1, run);
        let planned = planned?;
        thawed.map(|()| planned)
    }

    fn choose(&mut self, spec: &JobSpec, run: &Run<'_>) -> Result<Went> {
        let from = match (self.freeze(spec, 1, run), full_anyway(spec)) {
            // Nothing but a forecast is missed.
            (Err(error), Some(reason)) if error.kind() == ErrorKind::Unsupported => {
                run.observer.event(&Event::Warning {
                    message: "nothing can be read while the source runs, so for how long it will \
                              stand still is not known; it is not stopped before that is asked for"
                        .to_owned(),
                });
                let chosen = Fact::Chosen {
                    way: Way::Full,
                    reasons: vec![reason.to_owned()],
                    downtime: None,
                    plans: Vec::new(),
                };
                return Ok(Went::On(Outcome::Go(Way::Full), Some(chosen)));
            }
            (Err(error), None) if error.kind() == ErrorKind::Unsupported => {
                let message = format!(
                    "the source runs, and its disks cannot be frozen ({}): other snapshots, a \
                     source that is stopped first, or strategy = \"full\"",
                    error.chain()
                );
                return Err(Error::new(ErrorKind::Refused, message));
            }
            (frozen, _) => frozen?,
        };
        let mut way = Way::Full;
        let mut reasons: Vec<String> = Vec::new();
        let mut downtime: Option<f64> = None;
        let mut plans = Vec::new();
        for (disk, endpoint) in spec.disks.iter().zip(&from) {
            let leg = Leg {
                disk,
                from: endpoint.clone(),
                strategy: spec.policy.strategy,
                until: Until::Staged,
                carried: None,
                owner: Some(self.directory.clone()),
            };
            let report = operation::plan(&leg.request(spec)?, run.observer);
            refuse_failed(&report, disk)?;
            plans.push(plan_of(disk, &report));
            if report.strategy == Some("delta") {
                way = Way::Delta;
            }
            for reason in report.reasons {
                if !reasons.iter().any(|known| known == reason) {
                    reasons.push(reason.to_owned());
                }
            }
            downtime = match (downtime, report.predicted.downtime) {
                (Some(a), Some(b)) => Some(f64::max(a, b)),
                (a, b) => a.or(b),
            };
        }
        let chosen = Fact::Chosen {
            way,
            reasons,
            downtime,
            plans,
        };
        // A delta is predicted from its passes. Nothing of a full copy waits for COMMIT in a log.
        if let (Way::Full, Some(seconds)) = (way, downtime) {
            let copy = Copying {
                seconds,
                basis: Basis::Estimated,
            };
            let forecast = forecast::downtime(&spec.policy, self.fence.times(), copy, 0);
            self.journal.note(forecast.fact())?;
        }
        Ok(Went::On(Outcome::Go(way), Some(chosen)))
    }

    pub(super) fn presync(&mut self, run: &Run<'_>) -> Result<Went> {
        let spec = self.spec();
        let pass = self.next_pass();
        let started = Instant::now();
        let frozen = self.freeze(&spec, pass, run);
        let way = (Way::Delta, Until::Staged);
        let legs = frozen.and_then(|from| self.legs(&spec, from, way, run));
        let carries = |leg: &Leg<'_>| leg.carried.is_some();
        let is_tracked = legs.as_ref().is_ok_and(|legs| legs.iter().any(carries));
        let (policy, times) = (&spec.policy, self.fence.times());
        let downtime = |seconds| {
            let copy = Copying {
                seconds,
                basis: Basis::Measured,
            };
            Some(forecast::downtime(policy, times, copy, 0).seconds)
        };
        let watch = Watch {
            phase: "presync",
            downtime: &downtime,
            observer: run.observer,
        };
        let moved = legs.and_then(|legs| move_all(&spec, &legs, &watch, run.cancel));
        // What a tracker will compare with stays; the rest goes, also after an error: a snapshot
        // costs the source more the longer it stays.
        let is_kept = moved.is_ok() && is_tracked;
        let mut over = self.history().frozen();
        over.retain(|frozen| !is_kept || *frozen != pass);
        let thawed = over
            .into_iter()
            .try_for_each(|pass| self.thaw(&spec, pass, run));
        let disks = moved?;
        thawed?;
        self.journal.note(Fact::PassEnded {
            pass,
            seconds: started.elapsed().as_secs_f64(),
            disks,
        })?;
        let written = self.staged_bytes(&spec);
        let copy = Copying::like_the_last(&self.history().passes());
        let predicted = copy.map(|copy| forecast::downtime(policy, times, copy, written));
        let downtime = predicted.as_ref().map(|forecast| forecast.seconds);
        if let Some(downtime) = downtime {
            run.observer.event(&Event::DowntimePredicted {
                job: spec.name.clone(),
                pass,
                seconds: downtime,
            });
        }
        let passes = self.history().passes();
        if let Some(settled) = forecast::settled(&spec.policy, &passes, downtime) {
            run.observer.event(&Event::PassesSettled {
                job: spec.name.clone(),
                reason: settled.code(),
            });
        }
        Ok(Went::On(Outcome::Done, predicted.map(Forecast::fact)))
    }

    pub(super) fn waiting(&mut self) -> Result<Went> {
        let spec = self.spec();
        if self.wants_pass() {
            return Ok(Went::On(Outcome::PassWanted, None));
        }
        if self.completes_now() {
            return Ok(Went::On(Outcome::Asked(Ask::Complete), None));
        }
        // Nobody asked, and no further pass is worth it.
        let is_by_itself = spec.policy.complete == Complete::WhenReady;
        if is_by_itself && !is_early(&spec) && self.history().may_stop_by_itself() {
            let ask = Fact::Asked { ask: Ask::Complete };
            return Ok(Went::On(Outcome::Asked(Ask::Complete), Some(ask)));
        }
        Ok(Went::Waits)
    }

    /// Whether somebody asked for the end of the passes, and it is time.
    fn completes_now(&self) -> bool {
        let history = self.history();
        history.is_completing() && !is_early(history.spec())
    }

    /// Whether a pass is to be made before anything else is waited for.
    pub(super) fn wants_pass(&self) -> bool {
        let history = self.history();
        let policy = &history.spec().policy;
        if history.way() != Some(Way::Delta) || self.completes_now() {
            return false;
        }
        let passes = history.passes();
        if forecast::settled(policy, &passes, history.predicted()).is_none() {
            return true;
        }
        // What is left of the journal is for the way to an end.
        if self.journal.records().len() > KEEP_WARM_RECORDS_MAX {
            return false;
        }
        let last = history.facts().rev().find_map(|(at, fact)| {
            let is_pass = matches!(fact, Fact::PassEnded { .. });
            is_pass.then_some(at)
        });
        let since_ms = now_ms().saturating_sub(last.unwrap_or(0));
        u128::from(since_ms) >= policy.keep_warm.as_millis()
    }

    pub(super) fn next_pass(&self) -> u32 {
        let passes = self.history().passes();
        passes.last().map_or(1, |pass| pass.number + 1)
    }

    /// Endpoints at which each disk stands still: snapshots of a source that runs, else the disks
    /// themselves.
    fn freeze(&mut self, spec: &JobSpec, pass: u32, run: &Run<'_>) -> Result<Vec<Endpoint>> {
        let name = snapshot_name(pass);
        let step = run.step(&spec.name, &name);
        let host = self.sides.source.clone();
        if host.machine().power(&step)? == Power::Off {
            return spec.disks.iter().map(|disk| spec.source_of(disk)).collect();
        }
        if !self.history().frozen().contains(&pass) {
            self.journal.note(Fact::PassBegins { pass })?;
        }
        let disks = spec.disks.iter();
        disks
            .map(|disk| {
                let frozen = host.snapshot(disk, &snapshot_of(spec, &name)?, &step);
                frozen.map_err(|error| match spec.source_of(disk) {
                    Ok(Endpoint::Path(path)) => error.path(&path),
                    _ => error,
                })
            })
            .collect()
    }

    /// Lets the snapshots of a pass go, also when somebody wants an end of everything.
    pub(super) fn thaw(&mut self, spec: &JobSpec, pass: u32, run: &Run<'_>) -> Result<()> {
        if !self.history().frozen().contains(&pass) {
            return Ok(());
        }
        let name = snapshot_name(pass);
        let cancel = CancelToken::new();
        let run = Run {
            cancel: &cancel,
            ..*run
        };
        let step = run.step(&spec.name, &name);
        for disk in &spec.disks {
            let source = &self.sides.source;
            source.release(disk, &snapshot_of(spec, &name)?, &step)?;
        }
        self.journal.note(Fact::Released { pass })
    }

    /// Bytes that wait in logs to be written to the targets.
    fn staged_bytes(&self, spec: &JobSpec) -> u64 {
        let of_disk = |disk: &DiskSpec| operation::standing(&disk.target, None);
        let standings = spec.disks.iter().map(of_disk);
        standings
            .filter_map(|standing| standing.ok().flatten())
            .map(|standing| standing.logged)
            .sum()
    }
}

/// Whether the moment before which nothing is stopped is still to come. A definition was checked to
/// name one that can be read.
fn is_early(spec: &JobSpec) -> bool {
    let moment = spec.not_before().ok().flatten();
    moment.is_some_and(|moment| std::time::SystemTime::now() < moment)
}

/// Records after which a job keeps warm no more. A pass has six: every 15 minutes that is nearly
/// three months. A journal can hold more than twice as many of one page.
const KEEP_WARM_RECORDS_MAX: usize = 50_000;

/// Why everything is copied after the stop whatever a look at the disks would say: its reason code.
pub(super) fn full_anyway(spec: &JobSpec) -> Option<&'static str> {
    if spec.policy.strategy == Strategy::Full {
        return Some("operator_forced");
    }
    let are_missing = spec.disks.iter().all(|disk| !disk.target.exists());
    are_missing.then_some("target_missing")
}

/// How a disk is moved: one that is not there yet is made.
pub(super) fn strategy_of(disk: &DiskSpec, way: Way) -> Strategy {
    match (way, disk.target.exists()) {
        (Way::Full, _) | (_, false) => Strategy::Full,
        (Way::Delta, true) => Strategy::Delta,
    }
}

/// The planner's numbers.
fn plan_of(disk: &DiskSpec, report: &Report) -> DiskPlan {
    let plan = report.plan.as_ref();
    let expected = |cost: CostReport| Expected {
        seconds: cost.seconds,
        bytes: cost.bytes,
        downtime: cost.downtime,
    };
    DiskPlan {
        disk: disk.id.clone(),
        strategy: report.strategy.map(str::to_owned),
        delta: plan.and_then(|plan| plan.delta).map(expected),
        full: plan.and_then(|plan| plan.full).map(expected),
        differing: plan
            .and_then(|plan| plan.sample)
            .map(|sample| (sample.low, sample.high)),
    }
}

pub(super) fn refuse_failed(report: &Report, disk: &DiskSpec) -> Result<()> {
    match &report.error {
        None => Ok(()),
        Some(error) => {
            let message = format!("disk `{}`: {}", disk.id, error.message);
            Err(Error::new(ErrorKind::of_name(error.kind), message))
        }
    }
}

pub(super) fn snapshot_name(pass: u32) -> String {
    format!("pass-{pass}")
}

pub(super) fn snapshot_of(spec: &JobSpec, name: &str) -> Result<SnapshotId> {
    SnapshotId::new(&spec.name, name)
}
