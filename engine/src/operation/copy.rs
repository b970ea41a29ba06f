//! `sync` and `verify`: open both sides, choose, run the session, report.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use failback_transport as wire;
use failback_transport::{Compress, Task, VerifyLevel};

use super::account::{new_report, tell, tell_vouched};
use super::connection::{Connection, LinkOptions};
use super::fit::check_fit;
use super::making::{wanted_disk, wished_disk};
use super::maps::{MapStanding, MapUse, carried_map, forget_liar};
use super::planning::{decide, predict, side_of_source, side_of_target};
use super::recovery::refuse_mixed_source;
use super::replacement::HostedTarget;
use super::sides::{LocalTarget, SessionOutcome, SourceSide, TargetSide, run};
use crate::abort::CancelToken;
use crate::disk::{DiskInfo, OpenOptions, open_source, refuse_same_file};
use crate::endpoint::Endpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::event::{Event, Observer};
use crate::hash::HashKind;
use crate::identity::Refusal;
use crate::map::{Audit, CarriedMap, MapStore, MapWish};
use crate::plan::{DiskRates, Objective, Strategy};
use crate::report::{Outcome, Report};
use crate::sync::{SessionOptions, SideMap, Until, map_rejected, source_mark};
use crate::units::BlockSize;

/// Whether payload is compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CompressChoice {
    /// Level 1 while that makes the copy quicker: not within one process, nor on a fast link.
    #[default]
    Auto,
    /// Never.
    Off,
    /// Zstandard of that level wherever it makes the payload shorter.
    Zstd(i8),
}

/// What `sync` needs to know.
#[derive(Clone, Debug)]
pub struct SyncRequest {
    /// The disk that is read.
    pub source: Endpoint,
    /// The disk that is made equal.
    pub target: Endpoint,
    /// How a local source is opened.
    pub source_open: OpenOptions,
    /// How a local target is opened, or made: by its suffix where no format is named.
    pub target_open: OpenOptions,
    /// Delta, full, or the engine's choice.
    pub strategy: Strategy,
    /// The hash.
    pub hash: HashKind,
    /// The unit of comparison.
    pub block_size: BlockSize,
    /// What is read back.
    pub verify: VerifyLevel,
    /// Whether payload is compressed.
    pub compress: CompressChoice,
    /// How an existing target is changed.
    pub apply: wire::Apply,
    /// What keeps the new disk until all of it is there; `None`: what can be had.
    pub container: Option<wire::Container>,
    /// Where the state of a local target, and the maps of local disks, are kept; `None`: beside
    /// each.
    pub state: Option<PathBuf>,
    /// Saved maps are believed where they may be, after this audit, and made anew; `None`: they are
    /// left alone.
    pub maps: Option<Audit>,
    /// The connections to agents; within one process there are none.
    pub link: LinkOptions,
    /// What the better strategy has less of.
    pub objective: Objective,
    /// Longest downtime, which goes before the objective.
    pub downtime_budget: Option<Duration>,
    /// Seed of the sample; `None`: one that nobody knows before.
    pub seed: Option<u64>,
    /// How far a local target goes; an agent's goes to the end.
    pub until: Until,
    /// Maps that a job carries from pass to pass; only jobs make them.
    pub carried: Option<Carried>,
}

/// The maps of a job that makes several passes.
#[derive(Clone, Debug)]
pub struct Carried {
    /// Where the map of the target as it is staged goes.
    pub(crate) target: CarriedMap,
    /// What the last pass left there.
    pub(crate) left: Option<Left>,
    /// The map of the source as it is now; counts with `left` alone.
    pub(crate) source: Option<Hinted>,
}

/// A map of the source of which not all was read.
#[derive(Clone, Debug)]
pub(crate) struct Hinted {
    /// Its root.
    pub(crate) root: String,
    /// Where it is; `None`: with the agent that serves the source.
    pub(crate) map: Option<CarriedMap>,
}

/// What a pass left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Left {
    /// Root of the target as it is staged.
    pub(crate) root: String,
    /// What tells the target, and what is staged for it, from any other state.
    pub(crate) mark: String,
}

impl Carried {
    /// The place for the next map alone.
    fn unbelieved(&self) -> Self {
        Self {
            target: self.target.clone(),
            left: None,
            source: None,
        }
    }

    /// Whether the source's map is not all read from it.
    pub(crate) fn has_hint(&self) -> bool {
        self.source.is_some()
    }

    /// Whether maps stand for reads of both sides, given what the target is now.
    fn believed(&self, mark: Option<&str>) -> Option<&Left> {
        let left = self.left.as_ref().filter(|left| mark == Some(&left.mark))?;
        self.has_hint().then_some(left)
    }
}

impl SyncRequest {
    /// A sync with the defaults of the command.
    #[must_use]
    pub fn new(source: Endpoint, target: Endpoint) -> Self {
        Self {
            source,
            target,
            source_open: OpenOptions::default(),
            target_open: OpenOptions::default(),
            strategy: Strategy::Auto,
            hash: HashKind::Blake3,
            block_size: BlockSize::DEFAULT,
            verify: VerifyLevel::Changed,
            compress: CompressChoice::Auto,
            apply: wire::Apply::Stage,
            container: None,
            state: None,
            maps: Some(Audit::Quick),
            link: LinkOptions::default(),
            objective: Objective::Downtime,
            downtime_budget: None,
            seed: None,
            until: Until::End,
            carried: None,
        }
    }

    /// What is asked of the saved maps of both sides.
    pub(super) fn map_use(&self) -> Option<MapUse> {
        self.maps.map(|audit| MapUse {
            wish: MapWish {
                hash: self.hash,
                block_size: self.block_size,
                audit,
            },
            // All of the target is to be read; what a map says of it would only be in the way.
            trust: self.verify != VerifyLevel::Full,
        })
    }

    /// The same of a source behind an agent: in a job, what it was hinted at and nothing else.
    fn maps_of_source(&self, maps: Option<&MapUse>) -> Option<MapUse> {
        let is_hinted = |carried: &Carried| {
            let made = carried.source.as_ref();
            // The place for the next map alone says nothing against one that is there.
            let is_place = carried.left.is_none() && made.is_none();
            is_place || made.is_some_and(|made| made.map.is_none())
        };
        let may_trust = self.carried.as_ref().is_none_or(is_hinted);
        maps.map(|maps| MapUse {
            trust: maps.trust && may_trust,
            ..*maps
        })
    }

    /// An agent goes by the map that the job knows of, or by none.
    fn check_hint(&self, standing: &MapStanding) -> Result<()> {
        let hinted = self.carried.as_ref().and_then(|it| it.source.as_ref());
        match (hinted, standing.root) {
            (Some(hinted), Some(root)) if hinted.root != root.to_string() => Err(map_rejected()),
            _ => Ok(()),
        }
    }
}

/// What `verify` needs to know.
#[derive(Clone, Debug)]
pub struct VerifyRequest {
    /// One disk.
    pub a: Endpoint,
    /// The other.
    pub b: Endpoint,
    /// How `a` is opened where it is local.
    pub a_open: OpenOptions,
    /// How `b` is opened where it is local.
    pub b_open: OpenOptions,
    /// The hash.
    pub hash: HashKind,
    /// The unit of comparison.
    pub block_size: BlockSize,
    /// The connections to agents.
    pub link: LinkOptions,
}

/// Makes the target's content equal to the source's. Never panics and never prints; how it ended is
/// in the report.
#[must_use]
pub fn sync(request: &SyncRequest, observer: &dyn Observer, cancel: &CancelToken) -> Report {
    let mut report = report_of(request);
    observed(&mut report, observer, |report, started| {
        run_sync(request, report, observer, cancel, started)
    })
}

fn report_of(request: &SyncRequest) -> Report {
    new_report(
        "sync",
        &request.source,
        &request.target,
        request.hash,
        request.block_size,
    )
}

/// The same for callers that go by the error.
///
/// # Errors
/// Whatever ended it.
pub(crate) fn try_sync(
    request: &SyncRequest,
    observer: &dyn Observer,
    cancel: &CancelToken,
) -> Result<Report> {
    let mut report = report_of(request);
    let started = Instant::now();
    run_sync(request, &mut report, observer, cancel, started)?;
    report.seconds.total = started.elapsed().as_secs_f64();
    Ok(report)
}

/// Compares the contents of two disks by reading both.
#[must_use]
pub fn verify(request: &VerifyRequest, observer: &dyn Observer, cancel: &CancelToken) -> Report {
    let mut report = new_report(
        "verify",
        &request.a,
        &request.b,
        request.hash,
        request.block_size,
    );
    observed(&mut report, observer, |report, started| {
        run_verify(request, report, observer, cancel, started)
    })
}

pub(super) fn observed(
    report: &mut Report,
    observer: &dyn Observer,
    job: impl FnOnce(&mut Report, Instant) -> Result<()>,
) -> Report {
    let started = Instant::now();
    observer.event(&Event::Started {
        command: report.command,
        source: report.source.endpoint.clone(),
        target: Some(report.target.endpoint.clone()),
    });
    if let Err(error) = job(report, started) {
        report.fail(&error);
    }
    report.seconds.total = started.elapsed().as_secs_f64();
    observer.event(&Event::Finished {
        outcome: report.outcome.name(),
        error: report.error.as_ref().map(|error| error.message.clone()),
    });
    report.clone()
}

/// A map that turns out to lie ends a session, and all is compared in another one without it.
fn run_sync(
    request: &SyncRequest,
    report: &mut Report,
    observer: &dyn Observer,
    cancel: &CancelToken,
    started: Instant,
) -> Result<()> {
    let maps = request.map_use();
    let job = Job {
        request,
        observer,
        cancel,
        started,
    };
    match job.run(maps, report) {
        Err(error) if error.kind() == ErrorKind::MapRejected => {
            warn_of(observer, error.chain());
            report.reasons = vec![Refusal::Audit.code()];
            let paths = [
                (&request.source, request.state.as_deref()),
                (&request.target, request.state.as_deref()),
            ];
            for (endpoint, state) in paths {
                if let Endpoint::Path(path) = endpoint {
                    MapStore::of(path, state)?.remove();
                }
            }
            let untrusted = maps.map(|maps| MapUse {
                trust: false,
                ..maps
            });
            let request = SyncRequest {
                carried: request.carried.as_ref().map(Carried::unbelieved),
                ..request.clone()
            };
            Job {
                request: &request,
                ..job
            }
            .run(untrusted, report)
        }
        ended => ended,
    }
}

/// What a sync is not told again for each step.
struct Job<'a> {
    request: &'a SyncRequest,
    observer: &'a dyn Observer,
    cancel: &'a CancelToken,
    started: Instant,
}

impl Job<'_> {
    fn run(&self, maps: Option<MapUse>, report: &mut Report) -> Result<()> {
        let request = self.request;
        self.observer.event(&Event::Phase { phase: "plan" });
        if let (Endpoint::Path(source), Endpoint::Path(target)) = (&request.source, &request.target)
        {
            refuse_same_file(source, target)?;
        }
        if let Endpoint::Path(path) = &request.source {
            refuse_mixed_source(path)?;
        }
        let mut opened = self.open_sides(maps.as_ref(), report)?;
        let (source_map, target_map) = opened.standings;
        let are_both_mapped = source_map.root.is_some() && target_map.root.is_some();
        // What is known without asking need not be asked, and what an earlier job left shows only
        // in the comparison. Nor has a disk to be read that a forced strategy would not read.
        let is_forced = request.strategy != Strategy::Auto;
        let measured = match are_both_mapped || opened.is_partial || is_forced {
            true => None,
            false => {
                let (source, target) = (side_of_source(&mut opened.source), &mut opened.target);
                let is_new = opened.is_new;
                let standings = (&source_map, &target_map);
                predict(
                    request,
                    (source, side_of_target(target, request)),
                    (is_new, false),
                    standings,
                )?
            }
        };
        let plan = decide(
            request,
            (opened.is_new, measured.as_ref()),
            (&source_map, &target_map),
            report,
            self.observer,
        );
        report.seconds.plan = self.started.elapsed().as_secs_f64();
        let is_known_equal =
            are_both_mapped && source_map.root == target_map.root && target_map.is_settled;
        // A seal has to be there, even where nothing differs.
        let leaves_nothing = request.until != Until::Sealed;
        if plan.task == Task::Delta && !opened.is_partial && is_known_equal && leaves_nothing {
            let wire = leave(opened.source, opened.target);
            tell_vouched(report, (&opened.standings.0, &opened.standings.1), wire);
        } else {
            let disk = measured.map(|measured| measured.facts.disk);
            self.copy(opened, (plan.task, disk), report)?;
        }
        report.outcome = match (request.until, request.verify) {
            (Until::Sealed | Until::Staged, _) => Outcome::Staged,
            (Until::End, VerifyLevel::Off) => Outcome::Unverified,
            (Until::End, _) => Outcome::Done,
        };
        Ok(())
    }

    /// Opens both; what is known of their maps is found out at the same time.
    fn open_sides(&self, maps: Option<&MapUse>, report: &mut Report) -> Result<OpenedSides> {
        let request = self.request;
        let state = request.state.as_deref();
        let maps_of_source = request.maps_of_source(maps);
        let wanted = maps_of_source.as_ref();
        let (mut source, mut source_map) =
            open_source_side(&request.source, &request.source_open, wanted, request.link)?;
        request.check_hint(&source_map)?;
        report.source.describe(&source.info());
        let info = source.info();
        let (loaded, target) = std::thread::scope(|scope| {
            let loading = match (&source, &request.source) {
                (SourceSide::Local(disk, _), Endpoint::Path(path)) => Some(scope.spawn(|| {
                    let found = super::maps::source_map(path, state, maps, disk.as_ref());
                    forget_liar(&found.0, &found.1);
                    found
                })),
                _ => None,
            };
            let target = open_target_side(request, &info, maps, self.cancel);
            let loaded = loading.map(|loading| loading.join().expect("errors are values here"));
            (loaded, target)
        });
        if let (Some((loaded, standing)), SourceSide::Local(_, map)) = (loaded, &mut source) {
            (*map, source_map) = (loaded, standing);
        }
        let carried = request.carried.as_ref();
        let hinted = carried.and_then(|carried| Some((carried, carried.source.as_ref()?)));
        if let (Some((carried, hinted)), SourceSide::Local(_, map)) = (hinted, &mut source) {
            (*map, source_map) = (SideMap::default(), MapStanding::default());
            let made = hinted.map.as_ref().map(|made| (made, &hinted.root));
            if let (Some((made, root)), true) = (made, is_carried_on(carried, &target)) {
                let (loaded, standing) = carried_map(made, Some(root))?;
                let loaded = SideMap {
                    carried: None,
                    ..loaded
                };
                (*map, source_map) = (loaded, standing);
            }
        }
        let OpenedTarget {
            side: target,
            is_new,
            is_partial,
            map: target_map,
        } = target?;
        report.target.describe(&target.info());
        warn(self.observer, &[source.info(), target.info()]);
        check_fit(&source.info(), &target.info())?;
        Ok(OpenedSides {
            source,
            target,
            is_new,
            is_partial,
            standings: (source_map, target_map),
        })
    }

    fn copy(
        &self,
        opened: OpenedSides,
        (task, disk): (Task, Option<DiskRates>),
        report: &mut Report,
    ) -> Result<()> {
        let request = self.request;
        let OpenedSides {
            source,
            target,
            is_partial,
            standings: (source_map, target_map),
            ..
        } = opened;
        // What a copy that was cut off has left is in no map.
        let is_by_tree = task == Task::Delta && !is_partial && source_map.root.is_some();
        let goes_on = is_partial && task == Task::Full && request.apply != wire::Apply::InPlace;
        let is_in_process = matches!(
            (&source, &target),
            (SourceSide::Local(..), TargetSide::Local(_))
        );
        let options = SessionOptions {
            // What an earlier full copy has sent is not sent again.
            task: if goes_on { Task::Delta } else { task },
            hash: request.hash,
            block_size: request.block_size,
            verify: request.verify,
            compress: match request.compress {
                CompressChoice::Off => Compress::Off,
                CompressChoice::Zstd(level) => Compress::Zstd(level),
                CompressChoice::Auto if is_in_process => Compress::Off,
                CompressChoice::Auto => Compress::Auto,
            },
            sub_hash_seed: fresh_seed(),
            apply: request.apply,
            container: request.container,
            goes_on,
            until: request.until,
            source_mark: source_mark(&source.info().identity),
            target_root: is_by_tree.then_some(target_map.root).flatten(),
            may_send_whole: request.objective != Objective::Transfer,
        };
        let outcome = run(
            source,
            target,
            (options, disk),
            (self.observer, self.cancel, self.started),
            &mut report.bytes,
        )?;
        tell(report, &outcome, self.started);
        check_proof(&outcome, &options)?;
        if !outcome.result.equal {
            let message = "the target's root hash is not the source's: the target is not equal";
            return Err(Error::new(ErrorKind::VerifyFailed, message));
        }
        Ok(())
    }
}

/// Both sides of a sync, and what is known of their maps.
struct OpenedSides {
    source: SourceSide,
    target: TargetSide,
    is_new: bool,
    is_partial: bool,
    standings: (MapStanding, MapStanding),
}

/// Whether what a job carries on stands for reads of the target, and not a map that a sync saved.
fn is_carried_on(carried: &Carried, target: &Result<OpenedTarget>) -> bool {
    let left = carried.left.as_ref().map(|left| &left.root);
    let root = target.as_ref().ok().and_then(|target| target.map.root);
    left.is_some() && left == root.map(|root| root.to_string()).as_ref()
}

/// Lets go of both sides without a session. Bytes on the links, from this side and to it.
fn leave(source: SourceSide, target: TargetSide) -> (u64, u64) {
    let from = match source {
        SourceSide::Remote(connection, _) => connection.leave(),
        SourceSide::Local(..) => (0, 0),
    };
    let to = match target {
        TargetSide::Remote(connection, _) => connection.leave(),
        TargetSide::Local(_) => (0, 0),
    };
    (from.0 + to.0, from.1 + to.1)
}

fn run_verify(
    request: &VerifyRequest,
    report: &mut Report,
    observer: &dyn Observer,
    cancel: &CancelToken,
    started: Instant,
) -> Result<()> {
    observer.event(&Event::Phase { phase: "plan" });
    let (a, _) = open_source_side(&request.a, &request.a_open, None, request.link)?;
    report.source.describe(&a.info());
    let b = match open_source_side(&request.b, &request.b_open, None, request.link)?.0 {
        SourceSide::Local(disk, _) => TargetSide::Local(LocalTarget::Compared(disk)),
        SourceSide::Remote(connection, info) => TargetSide::Remote(connection, info),
    };
    report.target.describe(&b.info());
    warn(observer, &[a.info(), b.info()]);
    if a.info().virtual_size != b.info().virtual_size {
        // Unlike a sync, a comparison has an answer here.
        report.reasons.push("geometry_mismatch");
        report.outcome = Outcome::Different;
        return Ok(());
    }
    let options = SessionOptions {
        task: Task::Compare,
        hash: request.hash,
        block_size: request.block_size,
        verify: VerifyLevel::Full,
        compress: Compress::Off,
        sub_hash_seed: 0,
        apply: wire::Apply::InPlace,
        container: None,
        goes_on: false,
        until: Until::End,
        source_mark: 0,
        target_root: None,
        may_send_whole: false,
    };
    report.seconds.plan = started.elapsed().as_secs_f64();
    let outcome = run(
        a,
        b,
        (options, None),
        (observer, cancel, started),
        &mut report.bytes,
    )?;
    tell(report, &outcome, started);
    report.bytes.verified = outcome.result.target_read;
    let is_equal = outcome.result.equal && are_roots_equal(&outcome, &options);
    report.outcome = if is_equal {
        Outcome::Equal
    } else {
        Outcome::Different
    };
    Ok(())
}

/// Whether both sides state the same root. Only where nobody wanted a proof may there be none.
fn are_roots_equal(outcome: &SessionOutcome, options: &SessionOptions) -> bool {
    let may_be_unknown = options.verify == VerifyLevel::Off;
    match (outcome.end.root, outcome.result.root) {
        (None, None) => may_be_unknown,
        (source, target) => source == target,
    }
}

/// The target's word that all is well is not enough: it may be the one that errs.
fn check_proof(outcome: &SessionOutcome, options: &SessionOptions) -> Result<()> {
    let (written, verified) = (outcome.result.written, outcome.result.verified);
    if outcome.result.equal && !are_roots_equal(outcome, options) {
        let message = "the target claims to be equal, and its root hash is not the source's";
        return Err(Error::new(ErrorKind::VerifyFailed, message));
    }
    if options.verify != VerifyLevel::Off && verified < written {
        let message = format!("{written} bytes were written and only {verified} were read back");
        return Err(Error::new(ErrorKind::VerifyFailed, message));
    }
    Ok(())
}

pub(super) fn warn(observer: &dyn Observer, disks: &[DiskInfo]) {
    for message in disks.iter().flat_map(|disk| disk.warnings.clone()) {
        warn_of(observer, message);
    }
}

pub(super) fn warn_of(observer: &dyn Observer, message: String) {
    tracing::warn!(message);
    observer.event(&Event::Warning { message });
}

/// Opens a disk to be read. The map of one that is here is not looked for yet.
pub(super) fn open_source_side(
    endpoint: &Endpoint,
    options: &OpenOptions,
    maps: Option<&MapUse>,
    link: LinkOptions,
) -> Result<(SourceSide, MapStanding)> {
    match endpoint {
        Endpoint::Path(path) => {
            let disk = open_source(path, options)?;
            let side = SourceSide::Local(disk, SideMap::default());
            Ok((side, MapStanding::default()))
        }
        remote => {
            let (connection, opened) =
                Connection::open(remote, wire::Access::Read, None, maps, link)?;
            let side = SourceSide::Remote(Box::new(connection), opened.info);
            Ok((side, opened.map))
        }
    }
}

/// A target that is open.
struct OpenedTarget {
    side: TargetSide,
    is_new: bool,
    is_partial: bool,
    map: MapStanding,
}

/// Opens the target, or prepares one in the source's measure when it does not exist.
fn open_target_side(
    request: &SyncRequest,
    source: &DiskInfo,
    maps: Option<&MapUse>,
    cancel: &CancelToken,
) -> Result<OpenedTarget> {
    if let Endpoint::Path(path) = &request.target {
        let wanted = || wanted_disk(request, path, source);
        let state = request.state.as_deref();
        let target = HostedTarget::open(path, &request.target_open, state, wanted, cancel)?;
        let (map, standing) = match &request.carried {
            None => target.map(path, state, maps),
            Some(carried) => match carried.believed(target.mark()?.as_deref()) {
                Some(left) => carried_map(&carried.target, Some(&left.root))?,
                // What stands for the disk may do so here as well; the next one is the job's.
                None => {
                    let (found, standing) = target.map(path, state, maps);
                    let map = SideMap {
                        store: None,
                        carried: Some(carried.target.clone()),
                        ..found
                    };
                    (map, standing)
                }
            },
        };
        return Ok(OpenedTarget {
            is_new: target.is_new(),
            is_partial: target.is_partial(),
            side: TargetSide::Local(LocalTarget::Hosted(target, map)),
            map: standing,
        });
    }
    let (connection, opened) = Connection::open(
        &request.target,
        wire::Access::Write,
        Some(wished_disk(source)),
        maps,
        request.link,
    )?;
    Ok(OpenedTarget {
        side: TargetSide::Remote(Box::new(connection), opened.info),
        is_new: opened.is_new,
        is_partial: opened.is_partial,
        map: opened.map,
    })
}

/// A seed that nobody can know before the session: the random bits of a fresh UUID.
pub(super) fn fresh_seed() -> u64 {
    let (high, low) = uuid::Uuid::new_v4().as_u64_pair();
    high ^ low.rotate_left(32)
}

#[cfg(test)]
mod tests {
    use failback_transport::{Digest, SourceEnd, TargetResult};

    use super::*;

    fn outcome(source: Option<u8>, target: Option<u8>, verified: u64) -> SessionOutcome {
        let root = |byte: Option<u8>| byte.map(|byte| Digest::from([byte; 32]));
        let end = SourceEnd {
            root: root(source),
            ..SourceEnd::default()
        };
        let written = 4096;
        let root = root(target);
        let result = TargetResult {
            root,
            equal: true,
            written,
            verified,
            ..TargetResult::default()
        };
        SessionOutcome {
            end,
            result,
            wire: (0, 0),
            target: None,
        }
    }

    fn options(task: Task, verify: VerifyLevel) -> SessionOptions {
        SessionOptions {
            task,
            hash: HashKind::Blake3,
            block_size: BlockSize::DEFAULT,
            verify,
            compress: Compress::Off,
            sub_hash_seed: 0,
            apply: wire::Apply::InPlace,
            container: None,
            goes_on: false,
            until: Until::End,
            source_mark: 0,
            target_root: None,
            may_send_whole: false,
        }
    }

    // Goal: a target's word is not believed against the roots, nor without a proof of its size.
    // Method: targets that all claim to be equal.
    #[test]
    fn a_claim_without_a_proof_is_no_success() {
        let changed = options(Task::Delta, VerifyLevel::Changed);
        let blind = options(Task::Full, VerifyLevel::Off);
        let is_proven = |outcome: SessionOutcome, options| check_proof(&outcome, &options).is_ok();
        assert!(is_proven(outcome(Some(1), Some(1), 4096), changed));
        assert!(!is_proven(outcome(Some(1), Some(1), 4095), changed));
        assert!(!is_proven(outcome(Some(1), Some(2), 4096), changed));
        assert!(!is_proven(outcome(Some(1), None, 4096), changed));
        assert!(!is_proven(outcome(None, None, 4096), changed));
        assert!(is_proven(outcome(None, None, 0), blind));
        assert!(!is_proven(outcome(Some(1), None, 0), blind));
    }
}
