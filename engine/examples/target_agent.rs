//! `target_agent STATE ADDRESS NAME=IMAGE...`: embeds the engine at home. Brings machines home from
//! the `source_agent` at ADDRESS, all at the same time, each to an old image that is here, and
//! prints a line for each. Killed and started again, it goes on where it was.

#![allow(clippy::print_stdout, reason = "what it is asked for")]

mod hypervisor;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use failback_engine::job::{
    Ask, Complete, Job, JobReport, JobSpec, Jobs, Policy, RemoteHost, Sides, Stay,
};
use failback_engine::{CancelToken, Error, ErrorKind, Event, Result};
use hypervisor::ImageMachine;

/// One machine, from the first pass to the end.
fn bring_home(
    jobs: &Jobs,
    address: &str,
    (name, image): (&str, &Path),
    cancel: &CancelToken,
) -> Result<JobReport> {
    let control = format!("{address}/{name}");
    let mut spec = JobSpec::new(name).agent_disk("os", image).policy(Policy {
        complete: Complete::WhenReady,
        downtime_budget: Some(Duration::from_mins(1)),
        commit_after: Some(Duration::from_millis(100)),
        ..Policy::default()
    });
    spec.source.control = Some(control.clone());
    let sides = Sides {
        source: Arc::new(RemoteHost::new(control.parse()?, spec.side_of_source())?),
        target: Arc::new(ImageMachine::of(image)),
    };

    // By its key a job that was begun is taken up, and not begun twice.
    let mut job = Job::start(jobs, spec, Some("first"), sides)?;
    if job.position().is_suspended {
        job.ask(Ask::Resume)?;
    }
    let tell = |event: &Event| {
        if let Event::JobPhase { job, phase, .. } = event {
            println!("{job}: {phase}");
        }
    };
    job.run(Stay::default(), &tell, cancel)?;
    Ok(job.report())
}

fn main() -> Result<()> {
    let usage = || Error::new(ErrorKind::Usage, "target_agent STATE ADDRESS NAME=IMAGE...");
    let mut args = std::env::args().skip(1);
    let (state, address) = (
        args.next().ok_or_else(usage)?,
        args.next().ok_or_else(usage)?,
    );
    let machines: Vec<String> = args.collect();
    let machines: Option<Vec<_>> = machines.iter().map(|one| one.split_once('=')).collect();
    let machines = machines.ok_or_else(usage)?;

    let jobs = Jobs::below(Path::new(&state));
    // A service would cancel it on SIGTERM: every job stops at once, and goes on at the next start.
    let cancel = CancelToken::new();
    let ended: Vec<Result<JobReport>> = std::thread::scope(|scope| {
        let running: Vec<_> = machines
            .iter()
            .map(|(name, image)| {
                let (jobs, address, cancel) = (&jobs, &address, &cancel);
                let machine = (*name, Path::new(*image));
                scope.spawn(move || bring_home(jobs, address, machine, cancel))
            })
            .collect();
        let joined = running.into_iter().map(std::thread::ScopedJoinHandle::join);
        joined
            .map(|ended| ended.expect("a job returns its errors"))
            .collect()
    });
    let mut is_home = true;
    for report in ended {
        let report = report?;
        let why = report.error.as_ref().map_or("", |error| &error.message);
        let seconds = report.downtime.measured.unwrap_or_default();
        println!(
            "{}: {} after a downtime of {seconds:.2} s {why}",
            report.name, report.phase
        );
        is_home &= report.phase == "finished";
    }
    match is_home {
        true => Ok(()),
        false => Err(Error::new(ErrorKind::Refused, "not all of them are home")),
    }
}
