//! `failback pair`: the two places of a machine.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use failback_engine::agent::ControlSpec;
use failback_engine::job::{Job, Sides, accepted, look, reverse_of};
use serde::Serialize;

use crate::command::control;
use crate::job_args::{PlaceArgs, WatchArgs};
use crate::job_command::{documented, jobs, run_forward, stay};
use crate::output;
use crate::watch::{Watchers, cancel_on_signals};

/// The two places of a machine.
#[derive(Debug, Subcommand)]
pub(crate) enum PairCommand {
    /// After a job was accepted: replicate the other way, into the disks that the machine left;
    /// only what changed since then travels. The machine moves when that job is completed, and not
    /// by itself. Where the machine came from behind an agent: on that agent's host, with --control
    /// and --source
    Reverse(ReverseArgs),
    /// Print the control file with which an agent on this host serves the machine that a job
    /// brought here, for a job of the host that it came from
    Control(ControlArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ReverseArgs {
    /// The job that was accepted; with --control the pair. The job that goes back is called
    /// NAME-reverse
    pub(crate) name: String,
    /// The control file with which an agent served the pair from this host, and which says what
    /// the machine and its disks are here, TOML
    #[arg(long, value_name = "FILE", requires = "source")]
    pub(crate) control: Option<PathBuf>,
    /// The agent that serves the machine where it runs now: tcp://127.0.0.1:PORT/PAIR, or
    /// unix:///PATH#PAIR
    #[arg(long, value_name = "ENDPOINT", requires = "control")]
    pub(crate) source: Option<String>,
    /// Idempotency key, as of `job start`
    #[arg(long, value_name = "TEXT")]
    pub(crate) key: Option<String>,
    /// Return once all is replicated, and do not keep it warm
    #[arg(long)]
    pub(crate) no_wait: bool,
    #[command(flatten)]
    pub(crate) place: PlaceArgs,
    #[command(flatten)]
    pub(crate) watch: WatchArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ControlArgs {
    /// The job that brought the machine here
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) place: PlaceArgs,
    /// Print one JSON document, which has the file as text
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Serialize)]
struct ControlFile<'a> {
    schema: &'static str,
    toml: &'a str,
}

pub(crate) fn run(command: &PairCommand) -> anyhow::Result<u8> {
    match command {
        PairCommand::Reverse(args) => documented(args.watch.json, reverse(args)),
        PairCommand::Control(args) => documented(args.json, print_control(args)),
    }
}

fn reverse(args: &ReverseArgs) -> anyhow::Result<u8> {
    let jobs = jobs(&args.place)?;
    let spec = match (&args.control, &args.source) {
        (Some(file), Some(source)) => control(file)?.job_back(&jobs, &args.name, source)?,
        _ => reverse_of(&look(&jobs, &args.name)?)?,
    };
    let sides = Sides::of(&spec)?;
    let watchers = Watchers::of_job(args.watch.events.as_deref())?;
    let cancel = cancel_on_signals()?;
    let job = Job::start(&jobs, spec, args.key.as_deref(), sides)?;
    run_forward(
        job,
        stay(args.no_wait, false),
        (watchers, &cancel),
        args.watch.json,
    )
}

fn print_control(args: &ControlArgs) -> anyhow::Result<u8> {
    let records = look(&jobs(&args.place)?, &args.name)?;
    let spec = accepted(&records)?;
    let text = ControlSpec::of_target(spec)?.to_toml()?;
    match args.json {
        true => output::unless_closed(output::document(&ControlFile {
            schema: "failback.control_file/1",
            toml: &text,
        }))?,
        false => output::say(text.trim_end())?,
    }
    Ok(0)
}
