//! The command line of `failback job`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// A whole failback of one machine.
#[derive(Debug, Subcommand)]
pub(crate) enum JobCommand {
    /// Begin a job and run it: passes while the source runs, then it waits to be completed. A job
    /// of that name that is over makes room for it
    Start(StartArgs),
    /// Name all jobs, and where each is
    List(ListArgs),
    /// Tell how far a job is, and what can be asked of it now
    Show(JobArgs),
    /// Say what a job would do, disk by disk, and what that would cost; change nothing
    Plan(PlanArgs),
    /// Stop the source, copy the rest, start the target. Runs the job until the target waits to be
    /// accepted, and on to the deadline if there is one; where another process runs it, that one
    /// does it, and this returns at once
    Complete(CompleteArgs),
    /// Give a job up before its targets are written: all is as before the job
    Cancel(AskArgs),
    /// Accept the target: what an undo needs goes, and the job ends. Refused until all of the
    /// source was read
    Commit(AskArgs),
    /// Stop the target, bring the old disks back, start the source
    Undo(AskArgs),
    /// Try again what failed, or take up a job whose process is gone
    Resume(ResumeArgs),
    /// Print the whole report of a job as JSON, or write it as one HTML file
    Report(ReportArgs),
}

impl JobCommand {
    /// Whether documents are wanted, and none of it in words.
    pub(crate) fn is_json(&self) -> bool {
        match self {
            Self::Start(args) => args.watch.json,
            Self::List(args) => args.json,
            Self::Show(args) => args.json,
            Self::Plan(args) => args.json,
            Self::Complete(args) => args.ask.watch.json,
            Self::Cancel(args) | Self::Commit(args) | Self::Undo(args) => args.watch.json,
            Self::Resume(args) => args.ask.watch.json,
            Self::Report(args) => args.json || args.html.is_none(),
        }
    }
}

/// Where jobs are kept.
#[derive(Debug, Args)]
pub(crate) struct PlaceArgs {
    /// Where jobs and pairs are kept; default: $XDG_STATE_HOME/failback,
    /// where that is not set of root /var/lib/failback, of others ~/.local/state/failback
    #[arg(long, value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct WatchArgs {
    /// Print one JSON document
    #[arg(long)]
    pub(crate) json: bool,
    /// Add events as JSON lines to this file (- for stderr)
    #[arg(long, value_name = "FILE")]
    pub(crate) events: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct StartArgs {
    /// The job's definition, TOML
    pub(crate) definition: PathBuf,
    /// Idempotency key: the same definition with the same key is the same job, however often it is
    /// started
    #[arg(long, value_name = "TEXT")]
    pub(crate) key: Option<String>,
    /// Return once the job waits to be completed
    #[arg(long)]
    pub(crate) no_wait: bool,
    /// Go on by itself after a failure that may pass (network, space, a disk in use): after 1, 2,
    /// 4, 8 and 10 minutes, then every 30. While the machine is off on both sides, for the job, it
    /// does so without this
    #[arg(long)]
    pub(crate) retry: bool,
    #[command(flatten)]
    pub(crate) place: PlaceArgs,
    #[command(flatten)]
    pub(crate) watch: WatchArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    pub(crate) place: PlaceArgs,
    /// Print one JSON document
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct JobArgs {
    /// The job
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) place: PlaceArgs,
    /// Print one JSON document
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ReportArgs {
    /// The job
    pub(crate) name: String,
    /// Write a page that needs nothing else to be read, in place of the JSON document
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) place: PlaceArgs,
    /// Print one JSON document; so it is without --html
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    /// The job's definition, TOML
    pub(crate) definition: PathBuf,
    /// Print one JSON document
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct AskArgs {
    /// The job
    pub(crate) name: String,
    /// Go on by itself after a failure that may pass, as with `start`
    #[arg(long)]
    pub(crate) retry: bool,
    #[command(flatten)]
    pub(crate) place: PlaceArgs,
    #[command(flatten)]
    pub(crate) watch: WatchArgs,
}

#[derive(Debug, Args)]
pub(crate) struct CompleteArgs {
    #[command(flatten)]
    pub(crate) ask: AskArgs,
    /// Stand right before the target is started, with both machines off; the same command without
    /// this goes on
    #[arg(long)]
    pub(crate) hold: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ResumeArgs {
    #[command(flatten)]
    pub(crate) ask: AskArgs,
    /// Return once the job waits to be completed
    #[arg(long)]
    pub(crate) no_wait: bool,
}
