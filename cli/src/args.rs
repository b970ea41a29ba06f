//! The command line.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::ErrorKind as ClapKind;
use clap::{Parser, Subcommand, ValueEnum};
use failback_engine::disk::{Format, OpenOptions};
use failback_engine::endpoint::Endpoint;
use failback_engine::hash::HashKind;
use failback_engine::map::Audit;
use failback_engine::operation::{CompressChoice, Strategy};
use failback_engine::transport::{Apply, Container, VerifyLevel};
use failback_engine::units::BlockSize;

use crate::job_args::JobCommand;
use crate::link_args::LinkArgs;
use crate::pair_command::PairCommand;
use crate::plan_args::PlanningArgs;
use crate::size;

const AFTER_HELP: &str = "\
Endpoints:
  PATH                        image file or block device; VHDX, VHD and raw are told apart by magic
  unix:///PATH/SOCKET#NAME    a grant of an agent (failback serve) behind a Unix socket
  tcp://127.0.0.1:PORT/NAME   a grant of an agent on a loopback address

Exit codes:
  0 done   1 different   2 usage   3 refused for safety   4 image damaged or unsupported
  5 peer or network   6 local I/O, no space   7 cancelled   8 final verification failed

Sizes: K, M, G, T (KiB ...) are powers of 1024.";

/// Brings virtual disks home: makes one virtual disk equal to another, sends only what differs, and
/// proves the result.
#[derive(Debug, Parser)]
#[command(name = "failback", version, after_help = AFTER_HELP, disable_help_subcommand = true)]
pub(crate) struct Args {
    /// Print diagnostics of the engine on stderr
    #[arg(
        long,
        global = true,
        value_enum,
        value_name = "LEVEL",
        hide_short_help = true
    )]
    pub(crate) log: Option<LogLevel>,

    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum LogLevel {
    Warn,
    Info,
    Debug,
}

impl LogLevel {
    pub(crate) fn filter(self) -> tracing_subscriber::filter::LevelFilter {
        use tracing_subscriber::filter::LevelFilter;
        match self {
            Self::Warn => LevelFilter::WARN,
            Self::Info => LevelFilter::INFO,
            Self::Debug => LevelFilter::DEBUG,
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Say what an image is: format, sizes, identity, allocation, log state
    Info(InfoArgs),
    /// Tell all that is wrong with the structures of an image; exit 0 sound, 1 damaged
    Check(CheckArgs),
    /// Make a new, empty image
    Create(CreateArgs),
    /// Build the checksum map of a disk; print its root and counts, and save it if asked to
    Map(MapArgs),
    /// Say what sync would do with these arguments, what it would cost, and why; change nothing
    Plan(SyncArgs),
    /// Make TARGET's content equal to SOURCE's, sending only what differs; a missing TARGET is made
    Sync(SyncArgs),
    /// Write what a differencing VHDX holds into its parent, which then is the disk
    Merge(MergeArgs),
    /// Compare the contents of two endpoints by reading both; exit 0 equal, 1 different
    Verify(VerifyArgs),
    /// Bring to its end what a sync left half done, from its state alone; no peer is needed
    Recover(RecoveryArgs),
    /// Bring back what the target of a sync had before: drop its stage, or undo what it wrote
    Rollback(RecoveryArgs),
    /// Accept the result of a sync with --keep-undo: what an undo needs goes
    Commit(RecoveryArgs),
    /// Bring a whole machine home: presync, stop, copy the rest, start, accept or undo
    #[command(subcommand)]
    Job(JobCommand),
    /// The two places of a machine: replicate the other way
    #[command(subcommand)]
    Pair(PairCommand),
    /// Run the agent: serve granted images to peers until interrupted
    Serve(ServeArgs),
}

#[derive(Debug, clap::Args)]
pub(crate) struct InfoArgs {
    /// Image file or block device
    pub(crate) image: PathBuf,
    #[command(flatten)]
    pub(crate) state: StateArgs,
    #[command(flatten)]
    pub(crate) open: OpenArgs,
    /// Print one JSON document
    #[arg(long)]
    pub(crate) json: bool,
}

/// How the one image of a command is opened.
#[derive(Debug, clap::Args)]
pub(crate) struct OpenArgs {
    /// Take the image for this format instead of going by its magic
    #[arg(long, value_name = "raw|vhdx|vhd", value_parser = parse_engine::<Format>)]
    pub(crate) format: Option<Format>,
    /// A parent of a differencing image; repeatable, nearest first
    #[arg(long = "parent", value_name = "PATH")]
    pub(crate) parents: Vec<PathBuf>,
    /// Take parents from where the images name them, inside the image's own directory only
    #[arg(long)]
    pub(crate) follow_parents: bool,
}

impl OpenArgs {
    pub(crate) fn options(&self) -> OpenOptions {
        OpenOptions {
            format: self.format,
            parents: self.parents.clone(),
            follow_parents: self.follow_parents,
            ..OpenOptions::default()
        }
    }
}

#[derive(Debug, clap::Args)]
pub(crate) struct CheckArgs {
    /// Image file or block device; it is only read
    pub(crate) image: PathBuf,
    /// The parent of a differencing image, to check that the two belong together
    #[arg(long, value_name = "IMAGE")]
    pub(crate) parent: Option<PathBuf>,
    /// Print one JSON document
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct CreateArgs {
    /// The file to make; never replaces one
    pub(crate) image: PathBuf,
    /// Size of the virtual disk; a differencing image has its parent's
    #[arg(long, value_parser = size::parse, required_unless_present = "parents")]
    pub(crate) size: Option<u64>,
    /// The parent of a differencing image, then the parent's parents; repeatable, nearest first
    #[arg(long = "parent", value_name = "PATH")]
    pub(crate) parents: Vec<PathBuf>,
    /// Take the parent's parents from where the images name them, inside its own directory only
    #[arg(long, requires = "parents")]
    pub(crate) follow_parents: bool,
    /// Format; default: by suffix (.vhdx, .vhd, .raw, .img)
    #[arg(long, value_name = "raw|vhdx|vhd", value_parser = parse_engine::<Format>)]
    pub(crate) format: Option<Format>,
    /// Space taken when written, or all at once, or for what differs from a parent only; default:
    /// differencing where a parent is named, else dynamic VHDX, fixed VHD
    #[arg(long, value_enum)]
    pub(crate) kind: Option<Kind>,
    /// Block of the image; VHDX: 1M to 256M, default 32M dynamic, 2M fixed and differencing; VHD:
    /// 4K to 256M, default 2M
    #[arg(long, value_parser = size::parse)]
    pub(crate) block_size: Option<u64>,
    /// Logical sector, 512 if not given; a differencing image has its parent's
    #[arg(long, value_name = "512|4096", value_parser = size::parse)]
    pub(crate) sector_size: Option<u64>,
    /// Print one JSON document
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    Dynamic,
    Fixed,
    Differencing,
}

#[derive(Debug, clap::Args)]
pub(crate) struct MapArgs {
    /// Image file or block device
    pub(crate) image: PathBuf,
    /// Save the map to this file
    #[arg(short, long, value_name = "FILE", conflicts_with = "save")]
    pub(crate) output: Option<PathBuf>,
    /// Save the map with the state of syncs, where the next sync finds it
    #[arg(long)]
    pub(crate) save: bool,
    #[command(flatten)]
    pub(crate) state: StateArgs,
    #[command(flatten)]
    pub(crate) open: OpenArgs,
    #[command(flatten)]
    pub(crate) hashing: HashArgs,
    #[command(flatten)]
    pub(crate) output_args: OutputArgs,
}

#[derive(Debug, clap::Args)]
pub(crate) struct SyncArgs {
    /// The disk that is read
    #[arg(value_parser = parse_engine::<Endpoint>)]
    pub(crate) source: Endpoint,
    /// The disk that is made equal
    #[arg(value_parser = parse_engine::<Endpoint>)]
    pub(crate) target: Endpoint,
    /// Delta compares and sends what differs; full sends all data and compares nothing; auto: the
    /// better one, by what a sample of both disks tells
    #[arg(long, value_enum, default_value_t = StrategyArg::Auto)]
    pub(crate) strategy: StrategyArg,
    #[command(flatten)]
    pub(crate) planning: PlanningArgs,
    /// What is read back at the end: all of the target, what was written, or nothing
    #[arg(long, value_enum, default_value_t = VerifyArg::Changed)]
    pub(crate) verify: VerifyArg,
    /// Compress payload where that makes it shorter; auto: level 1 while it makes the copy quicker
    #[arg(long, value_name = "auto|off|zstd:LEVEL", default_value = "auto")]
    #[arg(value_parser = parse_compress)]
    pub(crate) compress: CompressChoice,
    #[command(flatten)]
    pub(crate) applying: ApplyArgs,
    /// Neither believe the saved maps of the disks nor make them
    #[arg(long, conflicts_with = "audit")]
    pub(crate) no_map: bool,
    /// How closely a saved map is held against its disk before it is believed: random blocks for
    /// 20 ms, or 459 of them, which find lies about one block in a hundred 99 times of 100
    #[arg(long, value_enum, default_value_t = AuditArg::Auto)]
    pub(crate) audit: AuditArg,
    /// Write to a VHDX though an image beside it stands on it, which breaks that one
    #[arg(long)]
    pub(crate) no_sibling_check: bool,
    /// Connections to each agent that carry the sync together, 1 to 8: for long paths of which one
    /// connection does not use all
    #[arg(long, value_name = "N", default_value_t = 1)]
    #[arg(value_parser = clap::value_parser!(u8).range(1..=8))]
    pub(crate) links: u8,
    #[command(flatten)]
    pub(crate) link: LinkArgs,
    #[command(flatten)]
    pub(crate) open: SidesArgs,
    #[command(flatten)]
    pub(crate) hashing: HashArgs,
    #[command(flatten)]
    pub(crate) output_args: OutputArgs,
}

#[derive(Debug, clap::Args)]
pub(crate) struct VerifyArgs {
    /// One disk
    #[arg(value_parser = parse_engine::<Endpoint>)]
    pub(crate) a: Endpoint,
    /// The other disk
    #[arg(value_parser = parse_engine::<Endpoint>)]
    pub(crate) b: Endpoint,
    #[command(flatten)]
    pub(crate) link: LinkArgs,
    #[command(flatten)]
    pub(crate) open: SidesArgs,
    #[command(flatten)]
    pub(crate) hashing: HashArgs,
    #[command(flatten)]
    pub(crate) output_args: OutputArgs,
}

#[derive(Debug, clap::Args)]
pub(crate) struct MergeArgs {
    /// The differencing image; to be deleted afterwards, which is left to you
    pub(crate) image: PathBuf,
    /// Its parent, which is written to, then the parent's parents; repeatable, nearest first
    #[arg(
        long = "parent",
        value_name = "PATH",
        required_unless_present = "follow_parents"
    )]
    pub(crate) parents: Vec<PathBuf>,
    /// Take parents from where the images name them, inside the image's own directory only
    #[arg(long)]
    pub(crate) follow_parents: bool,
    /// Merge though another image beside the parent stands on it, which breaks that one
    #[arg(long)]
    pub(crate) no_sibling_check: bool,
    #[command(flatten)]
    pub(crate) output_args: OutputArgs,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ServeArgs {
    /// Where to listen: unix:///PATH, or tcp://127.0.0.1:PORT (port 0: any free one)
    #[arg(long, value_name = "ADDR")]
    pub(crate) listen: String,
    /// A disk that peers may use, and how; repeatable. Read-only unless :rw; max=SIZE lets a first
    /// sync make the file
    #[arg(
        long = "grant",
        value_name = "NAME=PATH[:ro|:rw[,max=SIZE]]",
        required_unless_present = "control"
    )]
    pub(crate) grants: Vec<String>,
    /// Machines that jobs of other hosts may control, and their disks, TOML. Who is in charge of
    /// them is kept in --state-dir, by default where jobs are kept
    #[arg(long, value_name = "FILE")]
    pub(crate) control: Option<PathBuf>,
    /// Take parents of differencing images from where the images name them, inside each image's
    /// own directory only
    #[arg(long)]
    pub(crate) follow_parents: bool,
    /// Let peers write to a VHDX though an image beside it stands on it, which breaks that one
    #[arg(long)]
    pub(crate) no_sibling_check: bool,
    #[command(flatten)]
    pub(crate) link: LinkArgs,
    #[command(flatten)]
    pub(crate) state: StateArgs,
    /// Print what is printed as JSON lines
    #[arg(long)]
    pub(crate) json: bool,
    /// Write events as JSON lines to this file (- for stderr)
    #[arg(long, value_name = "FILE")]
    pub(crate) events: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct HashArgs {
    /// Hash of blocks: blake3 proves equality; xxh3 is faster and only for guests that are trusted
    #[arg(long, value_enum, default_value_t = HashArg::Blake3)]
    hash: HashArg,
    /// Unit of comparison, a power of two from 64K to 4M; roots depend on it
    #[arg(long, default_value = "1M", value_parser = parse_block_size)]
    pub(crate) block_size: BlockSize,
}

impl HashArgs {
    pub(crate) fn hash(&self) -> HashKind {
        match self.hash {
            HashArg::Blake3 => HashKind::Blake3,
            HashArg::Xxh3 => HashKind::Xxh3,
        }
    }
}

/// How the two disks of a command are opened, where they are files here.
#[derive(Debug, clap::Args)]
pub(crate) struct SidesArgs {
    /// Take the first disk for this format instead of going by its magic
    #[arg(long, value_name = "raw|vhdx|vhd", value_parser = parse_engine::<Format>)]
    source_format: Option<Format>,
    /// Take the second disk for this format, or make it so
    #[arg(long, value_name = "raw|vhdx|vhd", value_parser = parse_engine::<Format>)]
    target_format: Option<Format>,
    /// A parent of the first disk, a differencing image; repeatable, nearest first
    #[arg(long = "source-parent", value_name = "PATH")]
    source_parents: Vec<PathBuf>,
    /// A parent of the second disk, a differencing image; repeatable, nearest first
    #[arg(long = "target-parent", value_name = "PATH")]
    target_parents: Vec<PathBuf>,
    /// Take parents from where the images name them, inside each image's own directory only
    #[arg(long)]
    follow_parents: bool,
}

impl SidesArgs {
    pub(crate) fn source(&self) -> OpenOptions {
        OpenOptions {
            format: self.source_format,
            parents: self.source_parents.clone(),
            follow_parents: self.follow_parents,
            ..OpenOptions::default()
        }
    }

    pub(crate) fn target(&self, skip_sibling_check: bool) -> OpenOptions {
        OpenOptions {
            format: self.target_format,
            parents: self.target_parents.clone(),
            follow_parents: self.follow_parents,
            skip_sibling_check,
            ..OpenOptions::default()
        }
    }
}

#[derive(Debug, clap::Args)]
pub(crate) struct OutputArgs {
    /// Print the report as one JSON document
    #[arg(long)]
    pub(crate) json: bool,
    /// Write events as JSON lines to this file (- for stderr)
    #[arg(long, value_name = "FILE")]
    pub(crate) events: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum HashArg {
    Blake3,
    Xxh3,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum StrategyArg {
    Auto,
    Delta,
    Full,
}

impl StrategyArg {
    pub(crate) fn strategy(self) -> Strategy {
        match self {
            Self::Auto => Strategy::Auto,
            Self::Delta => Strategy::Delta,
            Self::Full => Strategy::Full,
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum AuditArg {
    Auto,
    Full,
}

impl AuditArg {
    pub(crate) fn audit(self) -> Audit {
        match self {
            Self::Auto => Audit::Quick,
            Self::Full => Audit::Full,
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum VerifyArg {
    Full,
    Changed,
    Off,
}

impl VerifyArg {
    pub(crate) fn level(self) -> VerifyLevel {
        match self {
            Self::Full => VerifyLevel::Full,
            Self::Changed => VerifyLevel::Changed,
            Self::Off => VerifyLevel::Off,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ApplyArg {
    Stage,
    InPlace,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum StageArg {
    Auto,
    Log,
    File,
    Clone,
    Child,
}

/// How an existing target is changed.
#[derive(Debug, clap::Args)]
pub(crate) struct ApplyArgs {
    /// Stage: the target stays as it is until everything is there, and can be restored until it is
    /// proven. In place: written as blocks come; when it is interrupted the target is mixed until
    /// the same command has run to its end
    #[arg(long, value_enum, default_value_t = ApplyArg::Stage)]
    apply: ApplyArg,
    /// What keeps the new disk until all of it is there: a log of changes beside the target; a new
    /// file that takes its place, for a full copy; a clone that shares the target's bytes and takes
    /// its place (XFS, btrfs); a differencing child of a VHDX, which is merged into it. Auto: file
    /// or clone where they can be had, else the log
    #[arg(long, value_enum, default_value_t = StageArg::Auto)]
    stage: StageArg,
    /// Keep what the target had until `failback commit TARGET` accepts the new disk, or `failback
    /// rollback TARGET` brings the old one back
    #[arg(long, conflicts_with = "no_undo")]
    keep_undo: bool,
    /// Do not keep what the target had: less room, and no way back once the target is written
    #[arg(long)]
    no_undo: bool,
    #[command(flatten)]
    pub(crate) state: StateArgs,
}

impl ApplyArgs {
    /// `None` for wishes that contradict each other.
    /// `None`: the target's choice.
    pub(crate) fn container(&self) -> Option<Container> {
        match self.stage {
            StageArg::Auto => None,
            StageArg::Log => Some(Container::Log),
            StageArg::File => Some(Container::File),
            StageArg::Clone => Some(Container::Clone),
            StageArg::Child => Some(Container::Child),
        }
    }

    pub(crate) fn apply(&self) -> Option<Apply> {
        match (self.apply, self.keep_undo, self.no_undo) {
            (ApplyArg::InPlace, false, _) => Some(Apply::InPlace),
            (ApplyArg::InPlace, true, _) => None,
            (ApplyArg::Stage, true, _) => Some(Apply::StageKeepUndo),
            (ApplyArg::Stage, false, true) => Some(Apply::StageNoUndo),
            (ApplyArg::Stage, false, false) => Some(Apply::Stage),
        }
    }
}

/// Where state is kept.
#[derive(Debug, clap::Args)]
pub(crate) struct StateArgs {
    /// Keep the state of syncs (stage, undo, journal) below this directory; default: .failback
    /// beside a file, /var/lib/failback for a device
    #[arg(long, value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
}

/// `recover`, `rollback`, `commit`.
#[derive(Debug, clap::Args)]
pub(crate) struct RecoveryArgs {
    /// The target of the sync: image file or block device
    pub(crate) target: PathBuf,
    #[command(flatten)]
    pub(crate) state: StateArgs,
    /// Print one JSON document
    #[arg(long)]
    pub(crate) json: bool,
}

fn parse_engine<T: std::str::FromStr<Err = failback_engine::Error>>(
    text: &str,
) -> Result<T, String> {
    text.parse()
        .map_err(|error: failback_engine::Error| error.chain())
}

fn parse_block_size(text: &str) -> Result<BlockSize, String> {
    BlockSize::new(size::parse(text)?).map_err(|error| error.chain())
}

fn parse_compress(text: &str) -> Result<CompressChoice, String> {
    match text {
        "auto" => Ok(CompressChoice::Auto),
        "off" => Ok(CompressChoice::Off),
        _ => {
            let level = text
                .strip_prefix("zstd:")
                .and_then(|level| level.parse().ok());
            let level = level.filter(|level| (1..=19).contains(level));
            level
                .map(CompressChoice::Zstd)
                .ok_or_else(|| "known: auto, off, zstd:1 ... zstd:19".to_owned())
        }
    }
}

/// Prints help where it was asked for; an error becomes one line, as all errors are.
pub(crate) fn explain(error: &clap::Error) -> ExitCode {
    match error.kind() {
        ClapKind::DisplayHelp | ClapKind::DisplayVersion => {
            // Nobody is there to hear of a closed stdout.
            drop(error.print());
            ExitCode::SUCCESS
        }
        ClapKind::DisplayHelpOnMissingArgumentOrSubcommand | ClapKind::MissingSubcommand => {
            crate::output::complain(
                "a command is missing: info, check, create, map, plan, sync, merge, verify, \
                 recover, rollback, commit, job, pair, serve; see --help",
            );
            ExitCode::from(crate::output::EXIT_USAGE)
        }
        _ => {
            let text = error.render().to_string();
            let usage = text.split("\n\n").next().unwrap_or_default();
            let line = usage.split_whitespace().collect::<Vec<_>>().join(" ");
            let line = line.strip_prefix("error: ").unwrap_or(&line);
            crate::output::complain(&format!("{line}; see failback --help"));
            ExitCode::from(crate::output::EXIT_USAGE)
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    // Goal: the definition is consistent. Method: clap's own check.
    #[test]
    fn command_line_is_consistent() {
        Args::command().debug_assert();
    }

    // Goal: what has no meaning is refused. Method: values at and past the edges.
    #[test]
    fn compression_levels() {
        assert_eq!(parse_compress("zstd:19"), Ok(CompressChoice::Zstd(19)));
        for text in ["zstd", "zstd:0", "zstd:20", "gzip", "zstd:-1"] {
            assert!(parse_compress(text).is_err(), "{text}");
        }
    }
}
