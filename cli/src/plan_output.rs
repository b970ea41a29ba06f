//! What `plan` prints for people: both strategies side by side, and one sentence why.

use std::io::{self, Write};

use failback_engine::plan::Objective;
use failback_engine::report::{CostReport, PlanReport, Report, SampleReport};

use crate::size::show;

pub(crate) fn print(report: &Report) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let (source, target) = (&report.source.endpoint, &report.target.endpoint);
    writeln!(out, "plan: {source} -> {target}")?;
    let strategy = report.strategy.unwrap_or("none");
    writeln!(
        out,
        "  strategy   {strategy} ({})",
        report.reasons.join(", ")
    )?;
    let Some(plan) = &report.plan else {
        return out.flush();
    };
    if let (Some(delta), Some(full)) = (&plan.delta, &plan.full) {
        writeln!(
            out,
            "             {:>10} {:>10} {:>10}",
            "seconds", "downtime", "sent"
        )?;
        for (name, cost) in [("delta", delta), ("full", full)] {
            let CostReport {
                seconds, downtime, ..
            } = cost;
            let sent = show(cost.bytes);
            writeln!(
                out,
                "  {name:10} {seconds:>10.2} {downtime:>10.2} {sent:>10}"
            )?;
        }
    }
    if let Some(sample) = &plan.sample {
        write_sample(&mut out, sample)?;
    }
    writeln!(out, "  {}", why(report, plan))?;
    out.flush()
}

fn write_sample(out: &mut impl Write, sample: &SampleReport) -> io::Result<()> {
    writeln!(
        out,
        "  sample     {} of {} pieces differ: {:.1} to {:.1} % (seed {})",
        sample.differing,
        sample.pieces,
        sample.low * 100.0,
        sample.high * 100.0,
        sample.seed
    )
}

/// One sentence.
fn why(report: &Report, plan: &PlanReport) -> String {
    let strategy = match report.strategy {
        Some("full") => "A full copy",
        _ => "A delta",
    };
    let has = |reason| report.reasons.contains(&reason);
    let less = match plan.objective {
        Objective::Downtime => "downtime",
        Objective::Time => "time",
        Objective::Transfer => "bytes on the link",
    };
    match plan.margin {
        _ if has("operator_forced") => format!("{strategy}, because it was asked for."),
        _ if has("target_missing") => format!("{strategy}, because there is no target yet."),
        _ if has("downtime_budget") => format!("{strategy}, because it keeps the downtime budget."),
        _ if has("map_trusted") => {
            format!("{strategy}, because saved maps tell much of what is equal.")
        }
        Some(margin) if margin < 0.005 => {
            format!("{strategy}, because the other is not expected to need clearly less {less}.")
        }
        Some(margin) => {
            let percent = margin * 100.0;
            format!("{strategy}, because it is expected to need {percent:.0} % less {less}.")
        }
        None => format!("{strategy}, because there is too little on the disk to measure."),
    }
}
