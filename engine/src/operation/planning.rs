//! `plan`: what a sync would do, what it would cost and why; and the same as a sync begins with it.

use std::time::Instant;

use failback_transport as wire;

use super::account::{apply_name, new_report, undo_name};
use super::connection::{Connection, Opened};
use super::copy::{SyncRequest, fresh_seed, observed, open_source_side, warn, warn_of};
use super::fit::check_fit;
use super::making::{wanted_disk, wished_disk};
use super::maps::{MapStanding, MapUse, look_at_map};
use super::measuring::{Measured, Question, Side, measure};
use super::planned::{PlannedTarget, Prospect, prospect_of};
use super::recovery::refuse_mixed_source;
use super::sides::{LocalTarget, SourceSide, TargetSide};
use crate::disk::{DiskInfo, refuse_same_file};
use crate::endpoint::Endpoint;
use crate::error::Result;
use crate::event::{Event, Observer};
use crate::identity::Refusal;
use crate::plan::{Known, Plan, SeenRates, Wish, choose};
use crate::report::{Outcome, PlanReport, Predicted, Report};

/// Says what [`sync`](super::sync) of the same request would do. Reads a small part of both disks
/// and changes nothing. Never panics and never prints; how it ended is in the report.
#[must_use]
pub fn plan(request: &SyncRequest, observer: &dyn Observer) -> Report {
    let mut report = new_report(
        "plan",
        &request.source,
        &request.target,
        request.hash,
        request.block_size,
    );
    observed(&mut report, observer, |report, started| {
        run_plan(request, report, observer, started)
    })
}

/// A target that is looked at.
enum Looked {
    Here(PlannedTarget, Prospect),
    There(Box<Connection>, Opened),
}

impl Looked {
    fn info(&self) -> DiskInfo {
        match self {
            Self::Here(target, _) => target.info(),
            Self::There(_, opened) => opened.info.clone(),
        }
    }

    fn is_new(&self) -> bool {
        match self {
            Self::Here(target, _) => target.is_new(),
            Self::There(_, opened) => opened.is_new,
        }
    }
}

fn run_plan(
    request: &SyncRequest,
    report: &mut Report,
    observer: &dyn Observer,
    started: Instant,
) -> Result<()> {
    observer.event(&Event::Phase { phase: "plan" });
    if let (Endpoint::Path(source), Endpoint::Path(target)) = (&request.source, &request.target) {
        refuse_same_file(source, target)?;
    }
    if let Endpoint::Path(path) = &request.source {
        refuse_mixed_source(path)?;
    }
    let maps = request.map_use();
    let (mut source, mut source_map) = open_source_side(
        &request.source,
        &request.source_open,
        maps.as_ref(),
        request.link,
    )?;
    report.source.describe(&source.info());
    if let (SourceSide::Local(disk, _), Endpoint::Path(path)) = (&source, &request.source) {
        source_map = look_at_map(path, request.state.as_deref(), maps.as_ref(), disk.as_ref());
    }
    let (mut target, target_map) = look(request, &source.info(), maps.as_ref())?;
    report.target.describe(&target.info());
    warn(observer, &[source.info(), target.info()]);
    check_fit(&source.info(), &target.info())?;
    let is_new = target.is_new();
    let target_side = match &mut target {
        Looked::Here(target, likely) => match target.source() {
            Some(disk) => Side::Local(disk, *likely),
            None => Side::Missing(likely.seen),
        },
        Looked::There(connection, _) => Side::Remote(connection),
    };
    let standings = (&source_map, &target_map);
    let sides = (side_of_source(&mut source), target_side);
    let measured = predict(request, sides, (is_new, true), standings)?;
    decide(
        request,
        (is_new, measured.as_ref()),
        standings,
        report,
        observer,
    );
    let mut count = |(out, back): (u64, u64)| {
        report.bytes.wire_out += out;
        report.bytes.wire_in += back;
    };
    if let SourceSide::Remote(connection, _) = source {
        count(connection.leave());
    }
    if let Looked::There(connection, _) = target {
        count(connection.leave());
    }
    report.seconds.plan = started.elapsed().as_secs_f64();
    report.outcome = Outcome::Done;
    Ok(())
}

fn look(
    request: &SyncRequest,
    source: &DiskInfo,
    maps: Option<&MapUse>,
) -> Result<(Looked, MapStanding)> {
    if let Endpoint::Path(path) = &request.target {
        let wanted = || wanted_disk(request, path, source);
        let state = request.state.as_deref();
        let target = PlannedTarget::open(path, &request.target_open, state, wanted)?;
        let standing = target.standing(maps);
        return Ok((Looked::Here(target, prospect_of(path, state)), standing));
    }
    let (connection, opened) = Connection::open(
        &request.target,
        wire::Access::Plan,
        Some(wished_disk(source)),
        maps,
        request.link,
    )?;
    let standing = opened.map;
    Ok((Looked::There(Box::new(connection), opened), standing))
}

pub(super) fn side_of_source(source: &mut SourceSide) -> Side<'_> {
    match source {
        // Nothing is kept on that side.
        SourceSide::Local(disk, _) => Side::Local(&**disk, Prospect::default()),
        SourceSide::Remote(connection, _) => Side::Remote(connection),
    }
}

pub(super) fn side_of_target<'a>(target: &'a mut TargetSide, request: &SyncRequest) -> Side<'a> {
    match target {
        TargetSide::Remote(connection, _) => Side::Remote(connection),
        TargetSide::Local(LocalTarget::Compared(_)) => Side::Missing(SeenRates::default()),
        TargetSide::Local(LocalTarget::Hosted(target, _)) => {
            let Endpoint::Path(path) = &request.target else {
                return Side::Missing(SeenRates::default());
            };
            let likely = prospect_of(path, request.state.as_deref());
            match target.source() {
                Some(disk) => Side::Local(disk, likely),
                None => Side::Missing(likely.seen),
            }
        }
    }
}

/// What either strategy would cost: `is_asked` for this, or on the way to doing it; `None` where
/// measuring would take longer than doing it.
pub(super) fn predict(
    request: &SyncRequest,
    (source, target): (Side<'_>, Side<'_>),
    (is_new, is_asked): (bool, bool),
    standings: (&MapStanding, &MapStanding),
) -> Result<Option<Measured>> {
    let question = Question {
        seed: request.seed.unwrap_or_else(fresh_seed),
        is_mapped: (standings.0.root.is_some(), standings.1.root.is_some()),
        is_new,
        is_asked,
    };
    measure(source, target, &question, request)
}

/// Chooses, and tells what was chosen and why.
pub(super) fn decide(
    request: &SyncRequest,
    (is_new, measured): (bool, Option<&Measured>),
    (source_map, target_map): (&MapStanding, &MapStanding),
    report: &mut Report,
    observer: &dyn Observer,
) -> Plan {
    let wish = Wish {
        strategy: request.strategy,
        objective: request.objective,
        downtime_budget: request.downtime_budget,
    };
    let mapped = [source_map, target_map].map(|map| map.root.is_some());
    let known = Known {
        is_new,
        has_map: mapped.contains(&true),
        are_both_mapped: !mapped.contains(&false),
        costs: measured.map(|measured| measured.costs),
    };
    let plan = choose(&wish, &known);
    report.strategy = Some(plan.strategy());
    let refusals = [source_map.refusal, target_map.refusal];
    for refusal in refusals.into_iter().flatten().map(Refusal::code) {
        if !report.reasons.contains(&refusal) {
            report.reasons.push(refusal);
        }
    }
    report.reasons.extend(&plan.reasons);
    report.map.source = source_map.report(0);
    report.map.target = target_map.report(0);
    let cost = known.costs.map(|costs| *costs.of(plan.task));
    report.predicted = cost.as_ref().map(Predicted::of).unwrap_or_default();
    report.plan = Some(PlanReport::new(&wish, &plan, measured));
    observer.event(&Event::Planned {
        strategy: plan.strategy(),
        reasons: report.reasons.clone(),
    });
    if let (true, Some(cost), Some(budget)) = (plan.misses_budget, cost, wish.downtime_budget) {
        let (strategy, downtime, budget) = (plan.strategy(), cost.downtime, budget.as_secs_f64());
        let message = format!(
            "the downtime budget of {budget:.1} s will not be kept: a {strategy} is expected to \
             need {downtime:.1} s"
        );
        warn_of(observer, message);
    }
    report.apply = Some(match is_new {
        true => "new",
        false => apply_name(request.apply),
    });
    let is_kept = request.apply == wire::Apply::StageKeepUndo;
    report.undo = (!is_new || is_kept).then(|| undo_name(request.apply));
    plan
}
