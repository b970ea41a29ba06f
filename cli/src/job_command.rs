//! `failback job`: arguments to a job, one call, output.

use std::path::{Path, PathBuf};

use anyhow::Context;
use failback_engine::job::{
    Ask, Job, JobReport, JobSpec, Jobs, Phase, Sides, Stay, ask_another, events, look,
};
use failback_engine::{CancelToken, Error, ErrorKind};
use serde::Serialize;

use crate::job_args::{
    AskArgs, JobArgs, JobCommand, ListArgs, PlaceArgs, PlanArgs, ReportArgs, StartArgs,
};
use crate::job_output;
use crate::output;
use crate::watch::{Watchers, cancel_on_signals};

/// What is printed with `--json` when there is no job to tell of.
#[derive(Serialize)]
struct Failure<'a> {
    schema: &'static str,
    error: Why<'a>,
}

#[derive(Serialize)]
struct Why<'a> {
    kind: &'a str,
    message: String,
    is_transient: bool,
}

pub(crate) fn run(command: &JobCommand) -> anyhow::Result<u8> {
    documented(command.is_json(), dispatch(command))
}

/// The same result, of which a document was printed when it is an error.
pub(crate) fn documented(json: bool, result: anyhow::Result<u8>) -> anyhow::Result<u8> {
    if let (true, Err(error)) = (json, &result) {
        let known = error.downcast_ref::<Error>();
        let printed = output::document(&Failure {
            schema: "failback.job_error/1",
            error: Why {
                kind: known.map_or(ErrorKind::Io, Error::kind).name(),
                message: known.map_or_else(|| format!("{error:#}"), Error::chain),
                is_transient: known.is_some_and(Error::is_transient),
            },
        });
        output::unless_closed(printed)?;
    }
    result
}

fn dispatch(command: &JobCommand) -> anyhow::Result<u8> {
    match command {
        JobCommand::Start(args) => start(args),
        JobCommand::List(args) => list(args),
        JobCommand::Show(args) => show(args),
        JobCommand::Report(args) => report(args),
        JobCommand::Plan(args) => plan(args),
        JobCommand::Complete(args) => {
            let wanted = match args.hold {
                true => Ask::Hold,
                false => Ask::Complete,
            };
            ask(&args.ask, wanted, stay(false, args.ask.retry))
        }
        JobCommand::Cancel(args) => ask(args, Ask::Cancel, stay(false, args.retry)),
        JobCommand::Commit(args) => {
            if !args.watch.json {
                let report = jobs(&args.place)?.report(&args.name)?;
                output::unless_closed(job_output::releases(&report))?;
            }
            ask(args, Ask::Commit, stay(false, args.retry))
        }
        JobCommand::Undo(args) => ask(args, Ask::Undo, stay(false, args.retry)),
        JobCommand::Resume(args) => ask(&args.ask, Ask::Resume, stay(args.no_wait, args.ask.retry)),
    }
}

/// How long a command stays with its job. A machine that is off on both sides waits for nobody to
/// type something.
pub(crate) fn stay(leaves_waiting: bool, retries: bool) -> Stay {
    Stay {
        leaves_waiting,
        retries,
        retries_while_off: true,
    }
}

fn start(args: &StartArgs) -> anyhow::Result<u8> {
    let jobs = jobs(&args.place)?;
    let spec = definition(&args.definition)?;
    let sides = Sides::of(&spec)?;
    let watchers = Watchers::of_job(args.watch.events.as_deref())?;
    let cancel = cancel_on_signals()?;
    let job = Job::start(&jobs, spec, args.key.as_deref(), sides)?;
    let stay = stay(args.no_wait, args.retry);
    run_forward(job, stay, (watchers, &cancel), args.watch.json)
}

/// Runs a job that is to come to its end; one that is given up meanwhile, by somebody else or by
/// its deadline, is not what was asked for.
pub(crate) fn run_forward(
    job: Job,
    stay: Stay,
    watched: (Watchers, &CancelToken),
    json: bool,
) -> anyhow::Result<u8> {
    let (code, phase) = run_to_rest(job, stay, watched, json)?;
    let is_given_up = matches!(phase, Phase::Cancelled | Phase::Undone);
    Ok(if is_given_up && code == 0 {
        output::code_of_name(ErrorKind::Cancelled.name())
    } else {
        code
    })
}

fn ask(args: &AskArgs, ask: Ask, stay: Stay) -> anyhow::Result<u8> {
    let jobs = jobs(&args.place)?;
    let cancel = cancel_on_signals()?;
    let spec = JobReport::spec_of(&look(&jobs, &args.name)?);
    let sides = Sides::of(&spec)?;
    let mut job = match Job::open(&jobs, &args.name, sides) {
        Err(error) if error.kind() == ErrorKind::InUse && jobs.is_worked_on(&args.name)? => {
            // The process that runs it does it.
            let report = ask_another(&jobs, &args.name, ask, &cancel)?;
            return job_output::job(&report, args.watch.json);
        }
        opened => opened?,
    };
    // Taking up a job whose process is gone is no more than running it.
    let is_taken_up = ask == Ask::Resume && !job.position().is_suspended;
    if !is_taken_up {
        job.ask(ask)?;
    }
    let watched = (Watchers::of_job(args.watch.events.as_deref())?, &cancel);
    match ask {
        Ask::Cancel | Ask::Undo => {
            run_to_rest(job, stay, watched, args.watch.json).map(|(code, _)| code)
        }
        _ => run_forward(job, stay, watched, args.watch.json),
    }
}

/// Runs a job and prints it; how to exit, and where it rests.
fn run_to_rest(
    mut job: Job,
    stay: Stay,
    (watchers, cancel): (Watchers, &CancelToken),
    json: bool,
) -> anyhow::Result<(u8, Phase)> {
    let ended = job.run(stay, &watchers, cancel);
    drop(watchers);
    if let Err(error) = ended {
        return Err(interrupted(error, &job));
    }
    let report = JobReport {
        // This one is about to end.
        worked_on: Some(false),
        ..job.report()
    };
    Ok((job_output::job(&report, json)?, job.position().phase))
}

/// An error of running the job; of one that a signal ended, how the job is left.
fn interrupted(error: Error, job: &Job) -> anyhow::Error {
    if error.kind() != ErrorKind::Cancelled {
        return error.into();
    }
    let report = job.report();
    let (name, phase) = (&report.name, report.phase);
    let back = report
        .allowed
        .iter()
        .find(|ask| matches!(**ask, "cancel" | "undo"));
    let back = back.map(|ask| format!(", `failback job {ask} {name}` goes back"));
    let off = match report.off {
        true => "; the machine is off on both sides",
        false => "",
    };
    let message = format!(
        "stopped by a signal; the job is in {phase}{off}: `failback job resume {name}` goes on{}",
        back.unwrap_or_default()
    );
    Error::new(ErrorKind::Cancelled, message).into()
}

#[derive(Serialize)]
struct Listed {
    schema: &'static str,
    jobs: Vec<JobReport>,
}

fn list(args: &ListArgs) -> anyhow::Result<u8> {
    let jobs = jobs(&args.place)?;
    let mut reports = Vec::new();
    for name in jobs.names()? {
        match jobs.report(&name) {
            Ok(report) => reports.push(report),
            // A start that a crash ended before there was a job.
            Err(error) if error.kind() == ErrorKind::Refused => {}
            // One that cannot be read must not hide the others.
            Err(error) => output::note(&format!("warning: job `{name}`: {}", error.chain())),
        }
    }
    match args.json {
        true => output::unless_closed(output::document(&Listed {
            schema: "failback.jobs/1",
            jobs: reports,
        }))?,
        false => output::unless_closed(job_output::list(&reports))?,
    }
    Ok(0)
}

fn show(args: &JobArgs) -> anyhow::Result<u8> {
    let jobs = jobs(&args.place)?;
    let report = jobs.report(&args.name)?;
    match args.json {
        true => output::unless_closed(output::document(&report))?,
        false => {
            let events = events(&jobs, &args.name)?;
            let printed = job_output::show(&report);
            output::unless_closed(printed.and_then(|()| job_output::progress(&report, &events)))?;
        }
    }
    Ok(0)
}

fn report(args: &ReportArgs) -> anyhow::Result<u8> {
    let jobs = jobs(&args.place)?;
    let report = jobs.report(&args.name)?;
    if let Some(path) = &args.html {
        let page = report.to_html(&events(&jobs, &args.name)?);
        std::fs::write(path, page).map_err(|e| Error::io(e, "write the page").path(path))?;
    }
    if args.json || args.html.is_none() {
        output::unless_closed(output::document(&report))?;
    }
    Ok(0)
}

fn plan(args: &PlanArgs) -> anyhow::Result<u8> {
    let spec = definition(&args.definition)?;
    let sides = Sides::of(&spec)?;
    let cancel = cancel_on_signals()?;
    let watchers = Watchers::new(None)?;
    let plan = failback_engine::job::plan(&spec, &sides, &watchers, &cancel);
    drop(watchers);
    job_output::plan(&plan?, args.json)
}

fn definition(path: &Path) -> anyhow::Result<JobSpec> {
    let text = std::fs::read_to_string(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::InvalidData => {
            Error::new(ErrorKind::Usage, "is no text, and so no job definition").path(path)
        }
        _ => Error::io(e, "read job definition").path(path),
    })?;
    let spec = JobSpec::from_toml_at(&text, &current_directory()?);
    Ok(spec.map_err(|error| error.path(path))?)
}

pub(crate) fn jobs(place: &PlaceArgs) -> anyhow::Result<Jobs> {
    let root = match &place.state_dir {
        Some(directory) => current_directory()?.join(directory),
        None => default_root()?,
    };
    Ok(Jobs::below(&root))
}

/// What relative paths on the command line, and in files that it names, are taken from.
pub(crate) fn current_directory() -> anyhow::Result<PathBuf> {
    std::env::current_dir().context("look up the current directory")
}

/// Of root it is where a system keeps state, of others where the user does.
pub(crate) fn default_root() -> anyhow::Result<PathBuf> {
    let of_system = PathBuf::from("/var/lib/failback");
    let is_set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    // A relative one counts for nothing, by its specification.
    let state = is_set("XDG_STATE_HOME").map(PathBuf::from);
    if let Some(state) = state.filter(|state| state.is_absolute()) {
        return Ok(state.join("failback"));
    }
    match is_set("HOME").map(PathBuf::from) {
        Some(home) if home != Path::new("/root") => Ok(home.join(".local/state/failback")),
        Some(_) => Ok(of_system),
        None => Err(Error::new(
            ErrorKind::Usage,
            "no HOME is set: name a --state-dir",
        ))
        .context("where jobs are kept"),
    }
}
