//! What is printed of jobs.

use std::io::Write;
use std::path::Path;

use failback_engine::ErrorKind;
use failback_engine::job::{Ask, DiskReport, Downtime, Fact, JobPlan, JobReport, Recorded, moment};
use failback_engine::report::Outcome;

use crate::output;
use crate::size::show as show_size;

/// Prints a job and says how to exit: a job that stands is a failure of its kind.
pub(crate) fn job(report: &JobReport, json: bool) -> anyhow::Result<u8> {
    output::unless_closed(match json {
        true => output::document(report),
        false => show(report),
    })?;
    let Some(error) = &report.error else {
        // The way back is done, and a disk is not what it was.
        let is_kept = |disk: &DiskReport| disk.state.as_deref() == Some("kept");
        return match report.disks.iter().find(|disk| is_kept(disk)) {
            Some(disk) => {
                if !json {
                    output::complain(&format!(
                        "disk `{}` was not brought back, and is the new one still",
                        disk.id
                    ));
                }
                Ok(output::code_of_name(ErrorKind::Refused.name()))
            }
            None => Ok(0),
        };
    };
    if !json {
        output::complain(&error.message);
    }
    Ok(output::code_of_name(&error.kind))
}

pub(crate) fn show(report: &JobReport) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    let stands = if report.suspended { ", suspended" } else { "" };
    writeln!(out, "{}: {}{stands}", report.name, report.phase)?;
    if let Some(strategy) = report.strategy {
        let reasons = report.reasons.join(", ");
        writeln!(out, "  strategy   {strategy} ({reasons})")?;
    }
    for pass in &report.passes {
        let sent: u64 = pass.disks.iter().map(|moved| moved.sent).sum();
        let (pass, seconds) = (pass.pass, pass.seconds);
        writeln!(
            out,
            "  pass {pass:<5} {seconds:.1} s, {} sent",
            show_size(sent)
        )?;
    }
    for disk in &report.disks {
        show_disk(&mut out, disk)?;
    }
    if let Some(authority) = &report.authority {
        writeln!(out, "  in charge  {authority}, epoch {}", report.epoch)?;
    }
    show_downtime(&mut out, &report.downtime)?;
    if let Some(error) = &report.error {
        let kind = &error.kind;
        let helps = match error.is_transient {
            true => "trying again may help by itself",
            false => "trying again does not help by itself",
        };
        writeln!(out, "  stands     {} ({kind}; {helps})", error.message)?;
    }
    if let Some(retry) = &report.retry {
        let (at, attempt) = (moment(retry.at_ms), retry.attempt);
        writeln!(out, "  retry      {attempt}, at {at}")?;
    }
    if let Some(deadline) = &report.deadline {
        let at = moment(deadline.at_ms);
        writeln!(out, "  deadline   {} at {at}", deadline.ask)?;
    }
    if report.allowed.contains(&Ask::Commit.name()) {
        list_releases(&mut out, report)?;
    }
    list_released(&mut out, report)?;
    if !report.allowed.is_empty() {
        let is_allowed = |ask: &Ask| report.allowed.contains(&ask.name());
        let asks = Ask::ALL.into_iter().filter(is_allowed).map(Ask::typed);
        let asks: Vec<_> = asks.collect();
        writeln!(out, "  now        {}", asks.join(", "))?;
    }
    if let Some(alone) = alone(report) {
        writeln!(out, "  process    {alone}")?;
    }
    Ok(out.flush()?)
}

fn show_disk(out: &mut impl Write, disk: &DiskReport) -> anyhow::Result<()> {
    let is_there = Path::new(&disk.target).exists();
    let none_yet = if is_there { "old" } else { "not there yet" };
    let state = disk.state.as_deref().unwrap_or(none_yet);
    let sent = show_size(disk.sent);
    let (id, target) = (&disk.id, &disk.target);
    writeln!(out, "  disk {id:<5} {target}: {state}, {sent} sent")?;
    if let Some(root) = &disk.root {
        writeln!(out, "             root {root}")?;
    }
    if let Some(lost) = disk.lost.as_ref().filter(|lost| lost.any) {
        let what = match lost.bytes {
            Some(bytes) => format!("{} of blocks", show_size(bytes)),
            None => "nobody knows where".to_owned(),
        };
        let end = match state {
            "kept" => "and kept",
            "old" => "and undone",
            _ => "which the undo takes away",
        };
        writeln!(
            out,
            "             written since it was proven, {end}: {what}"
        )?;
    }
    if disk.unread {
        writeln!(
            out,
            "             the rest of its source is being read: a commit waits for it"
        )?;
    }
    Ok(())
}

fn show_downtime(out: &mut impl Write, downtime: &Downtime) -> anyhow::Result<()> {
    let Some(predicted) = downtime.predicted else {
        if let (Some(budget), None) = (downtime.budget, downtime.measured) {
            writeln!(
                out,
                "  downtime   not known: nothing was measured; the budget is {budget:.1} s"
            )?;
        }
        return Ok(());
    };
    let measured = downtime.measured.map(|it| format!("{it:.1} s measured, "));
    let measured = measured.unwrap_or_default();
    let held = downtime
        .held
        .map(|it| format!(", {it:.1} s held on demand"));
    let held = held.unwrap_or_default();
    let budget = downtime.budget.map(|budget| {
        let is_within = if predicted <= budget {
            "within"
        } else {
            "above"
        };
        format!(", {is_within} the budget of {budget:.1} s")
    });
    let budget = budget.unwrap_or_default();
    writeln!(
        out,
        "  downtime   {measured}{predicted:.1} s predicted{budget}{held}"
    )?;
    for part in &downtime.parts {
        let (name, seconds, basis) = (&part.part, part.seconds, part.basis.name());
        let mut measured = downtime.measured_parts.iter();
        let took = measured.find(|it| it.part == *name);
        let took = took.map_or_else(String::new, |it| format!("; it took {:.1} s", it.seconds));
        writeln!(out, "    {name:<8} {seconds:.1} s, {basis}{took}")?;
    }
    Ok(())
}

/// Prints what a commit takes away, before it does.
pub(crate) fn releases(report: &JobReport) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    list_releases(&mut out, report)?;
    Ok(out.flush()?)
}

/// What became of what a commit was to let go of, item by item.
fn list_released(out: &mut impl Write, report: &JobReport) -> anyhow::Result<()> {
    let facts = report.timeline.iter().filter_map(|it| it.fact.as_ref());
    for fact in facts {
        if let Fact::Item { item, said } = fact
            && item.starts_with("delete")
        {
            writeln!(out, "  commit     {item}: {said}")?;
        }
    }
    Ok(())
}

fn list_releases(out: &mut impl Write, report: &JobReport) -> anyhow::Result<()> {
    for what in &report.commit_releases {
        writeln!(out, "  commit     takes away {what}")?;
    }
    Ok(())
}

/// What to do about a job that is not over, and that nobody works on.
fn alone(report: &JobReport) -> Option<String> {
    let is_over = matches!(report.phase, "finished" | "undone" | "cancelled");
    let name = &report.name;
    if report.held {
        let said = format!("held, both machines are off: `failback job complete {name}`");
        return Some(said);
    }
    let next = match report.phase {
        // Nothing is left to do but to say so; a resume sees to deadlines and scans.
        "commit_pending" if !report.suspended && report.allowed.contains(&"commit") => {
            format!("`failback job commit {name}`, or `undo`; `resume` keeps its deadline")
        }
        _ => format!("`failback job resume {name}`"),
    };
    (report.worked_on == Some(false) && !is_over).then(|| format!("no process works on it: {next}"))
}

/// How far the disks are, as the process that moves them told it last; nothing where none move.
pub(crate) fn progress(report: &JobReport, events: &[Recorded]) -> anyhow::Result<()> {
    let newest_first = events.iter().rev();
    let is_of_now = |it: &&Recorded| it.kind == "job_progress" && it.event["phase"] == report.phase;
    let Some(told) = newest_first.clone().find(is_of_now) else {
        return Ok(());
    };
    // What was told before the phase began is about an earlier pass.
    let began = newest_first.clone().find(|it| it.kind == "job_phase");
    if report.suspended || began.is_some_and(|began| began.at_ms > told.at_ms) {
        return Ok(());
    }
    let mut out = std::io::stdout().lock();
    let all = ("all", told.event.get("phase"), &told.event);
    let disks = told.event["disks"].as_array().into_iter().flatten();
    let disks = disks.map(|of| (of["disk"].as_str().unwrap_or("?"), of.get("phase"), of));
    for (name, phase, of) in disks.chain([all]) {
        let bytes = |name: &str| show_size(of[name].as_u64().unwrap_or(0));
        let phase = phase.and_then(|phase| phase.as_str()).unwrap_or("?");
        let eta = |name: &str| of["eta"][name].as_f64();
        let left = match (eta("low"), eta("likely"), eta("high")) {
            (Some(low), Some(likely), Some(high)) => {
                format!(", {likely:.0} s left ({low:.0} to {high:.0})")
            }
            _ => String::new(),
        };
        writeln!(
            out,
            "  progress   {name}: {phase}, {} of {}, {} equal, {} sent, {} waiting{left}",
            bytes("scanned"),
            bytes("total"),
            bytes("matched"),
            bytes("sent"),
            bytes("backlog")
        )?;
    }
    if let Some(downtime) = told.event["downtime"].as_f64() {
        writeln!(out, "  downtime   {downtime:.1} s expected now")?;
    }
    Ok(out.flush()?)
}

pub(crate) fn list(reports: &[JobReport]) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    for report in reports {
        let stands = if report.suspended { ", suspended" } else { "" };
        let disks = report.disks.len();
        let (name, phase) = (&report.name, report.phase);
        let alone = alone(report).map_or_else(String::new, |alone| format!("; {alone}"));
        let why = report.error.as_ref();
        let why = why.map_or_else(String::new, |error| format!(" ({})", error.message));
        writeln!(out, "{name:<24} {phase}{stands}{why}, {disks} disks{alone}")?;
    }
    Ok(out.flush()?)
}

pub(crate) fn plan(plan: &JobPlan, json: bool) -> anyhow::Result<u8> {
    output::unless_closed(match json {
        true => output::document(plan),
        false => print_plan(plan),
    })?;
    let is_planned = plan
        .disks
        .iter()
        .all(|report| report.outcome == Outcome::Done);
    let holds = plan.findings.iter().all(|finding| finding.holds);
    Ok(if is_planned && holds { 0 } else { 3 })
}

fn print_plan(plan: &JobPlan) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "{}: {}",
        plan.name,
        plan.strategy.unwrap_or("no strategy")
    )?;
    for finding in &plan.findings {
        let holds = if finding.holds { "ok " } else { "NOT" };
        let (rule, disk, said) = (&finding.rule, &finding.disk, &finding.said);
        writeln!(out, "  {holds} {rule} {disk}: {said}")?;
        if let Some(source) = &finding.source {
            writeln!(out, "      by {source}")?;
        }
    }
    for warning in &plan.warnings {
        writeln!(out, "  warning: {warning}")?;
    }
    out.flush()?;
    drop(out);
    for report in &plan.disks {
        output::report(report, false)?;
    }
    Ok(())
}
