//! `failback pair`: the two places of a machine.

use clap::{Args, Subcommand};
use failback_engine::job::{Job, Sides, Stay, look, reverse_of};

use crate::job_args::{PlaceArgs, WatchArgs};
use crate::job_command::{documented, jobs, run_job};
use crate::watch::{Watchers, cancel_on_signals};

/// The two places of a machine.
#[derive(Debug, Subcommand)]
pub(crate) enum PairCommand {
    /// After a job was accepted: replicate the other way, into the disks that the machine left;
    /// only what changed since then travels. The machine moves when that job is completed, and not
    /// by itself. Not to be had where the machine came from behind an agent
    Reverse(ReverseArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ReverseArgs {
    /// The job that was accepted; the one that goes back is called NAME-reverse
    pub(crate) name: String,
    /// Return once all is replicated, and do not keep it warm
    #[arg(long)]
    pub(crate) no_wait: bool,
    #[command(flatten)]
    pub(crate) place: PlaceArgs,
    #[command(flatten)]
    pub(crate) watch: WatchArgs,
}

pub(crate) fn run(command: &PairCommand) -> anyhow::Result<u8> {
    match command {
        PairCommand::Reverse(args) => documented(args.watch.json, reverse(args)),
    }
}

fn reverse(args: &ReverseArgs) -> anyhow::Result<u8> {
    let jobs = jobs(&args.place)?;
    let spec = reverse_of(&look(&jobs, &args.name)?)?;
    let sides = Sides::of(&spec)?;
    let watchers = Watchers::new(args.watch.events.as_deref())?;
    let cancel = cancel_on_signals()?;
    let job = Job::start(&jobs, spec, None, sides)?;
    let stay = Stay {
        leaves_waiting: args.no_wait,
        ..Stay::default()
    };
    run_job(job, stay, (watchers, &cancel), args.watch.json)
}
