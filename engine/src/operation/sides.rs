//! A session between any two endpoints: local or remote on either side.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, RecvTimeoutError, bounded};
use failback_transport as wire;
use failback_transport::link::{IDLE_LIMIT, loopback};
use failback_transport::{Counters, Role, SourceEnd, TargetResult};

use super::connection::Connection;
use super::relay::relay;
use super::replacement::HostedTarget;
use crate::abort::{Abort, CancelToken};
use crate::disk::{DiskInfo, Source};
use crate::error::{Error, Result, peer_error};
use crate::event::{Event, Observer};
use crate::plan::DiskRates;
use crate::report::Bytes;
use crate::sync::{
    Beside, Peer, Phase, Replanned, Session, SessionLink, SessionOptions, SessionProgress, SideMap,
    run_source, run_target,
};

/// How often progress is told.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);

/// The side that is read.
pub(super) enum SourceSide {
    Local(Arc<dyn Source>, SideMap),
    Remote(Box<Connection>, DiskInfo),
}

/// The side that is made equal, or only compared.
pub(super) enum TargetSide {
    Local(LocalTarget),
    Remote(Box<Connection>, DiskInfo),
}

/// A target of this host.
pub(super) enum LocalTarget {
    /// Changed, or made.
    Hosted(HostedTarget, SideMap),
    /// Compared only.
    Compared(Arc<dyn Source>),
}

impl LocalTarget {
    fn info(&self) -> DiskInfo {
        match self {
            Self::Hosted(target, _) => target.info(),
            Self::Compared(disk) => disk.info(),
        }
    }

    fn map(&self) -> Option<&SideMap> {
        match self {
            Self::Hosted(_, map) => Some(map),
            Self::Compared(_) => None,
        }
    }
}

impl SourceSide {
    pub(super) fn info(&self) -> DiskInfo {
        match self {
            Self::Local(disk, _) => disk.info(),
            Self::Remote(_, info) => info.clone(),
        }
    }
}

impl TargetSide {
    pub(super) fn info(&self) -> DiskInfo {
        match self {
            Self::Local(target) => target.info(),
            Self::Remote(_, info) => info.clone(),
        }
    }
}

/// What a session came to.
pub(super) struct SessionOutcome {
    pub(super) end: SourceEnd,
    pub(super) result: TargetResult,
    /// Bytes on the link from this side and to it.
    pub(super) wire: (u64, u64),
    /// The target's identity afterwards, where it is local.
    pub(super) target: Option<DiskInfo>,
}

/// Runs the session, to a target whose disk is `disk` where that is known. Of one that fails,
/// `partial` tells what this side read, sent and read back.
///
/// # Errors
/// The error that began it, of whichever side.
pub(super) fn run(
    source: SourceSide,
    target: TargetSide,
    (options, disk): (SessionOptions, Option<DiskRates>),
    (observer, cancel, started): (&dyn Observer, &CancelToken, Instant),
    partial: &mut Bytes,
) -> Result<SessionOutcome> {
    let mut session = Session::new(options, source.info().virtual_size)?;
    if let Some(disk) = disk {
        session.regions.disk = disk;
    }
    let total = session.geometry.disk_len();
    // Of two sides in one process the target's progress holds the proof; the source's the scan. One
    // is enough for a bar.
    let shown = session.progress.clone();
    let is_target_here = matches!(target, TargetSide::Local(_));
    let outcome = with_progress(&shown, total, observer, started, || {
        run_sides(source, target, &session, cancel)
    });
    if outcome.is_err() {
        tell_partial(&shown, is_target_here, partial);
    }
    outcome
}

/// What this side knows of a session that did not end well.
fn tell_partial(progress: &SessionProgress, is_target_here: bool, partial: &mut Bytes) {
    let scanned = progress.scan.read_len.load(Ordering::Relaxed);
    match is_target_here {
        true => partial.target_read = scanned,
        false => partial.source_read = scanned,
    }
    partial.sent = progress.payload.load(Ordering::Relaxed);
    partial.verified = progress.verified.load(Ordering::Relaxed);
}

/// Runs `work` while the observer hears how far it is.
pub(super) fn with_progress<T>(
    progress: &SessionProgress,
    total: u64,
    observer: &dyn Observer,
    started: Instant,
    work: impl FnOnce() -> T,
) -> T {
    let (done, is_done) = bounded::<()>(0);
    std::thread::scope(|scope| {
        scope.spawn(move || tell_progress(progress, total, observer, started, &is_done));
        let outcome = work();
        drop(done);
        outcome
    })
}

fn run_sides(
    source: SourceSide,
    target: TargetSide,
    session: &Session,
    cancel: &CancelToken,
) -> Result<SessionOutcome> {
    let abort = || Arc::new(Abort::with_cancel(cancel));
    match (source, target) {
        (SourceSide::Local(source, map), TargetSide::Local(target)) => {
            run_local((source.as_ref(), map), target, session, &abort)
        }
        (SourceSide::Local(source, map), TargetSide::Remote(connection, _)) => {
            let (link, counters) = connection.start(&session.options, Role::Target)?;
            let session = session.clone().with_map(map);
            let (end, result) = run_source(&session, source.as_ref(), link, &abort())?;
            Ok(SessionOutcome {
                end,
                result,
                wire: count(&counters),
                target: None,
            })
        }
        (SourceSide::Remote(connection, _), TargetSide::Local(target)) => {
            let (link, counters) = connection.start(&session.options, Role::Source)?;
            let (end, result, info) = play_target(session, target, link.into(), &abort())?;
            Ok(SessionOutcome {
                end,
                result,
                wire: count(&counters),
                target: Some(info),
            })
        }
        (SourceSide::Remote(source, _), TargetSide::Remote(target, _)) => {
            let (to_source, source_counters) = source.start(&session.options, Role::Source)?;
            let (to_target, target_counters) = target.start(&session.options, Role::Target)?;
            let (end, result) = relay(to_source, to_target, session, &abort())?;
            let (a, b) = (count(&source_counters), count(&target_counters));
            Ok(SessionOutcome {
                end,
                result,
                wire: (a.0 + b.0, a.1 + b.1),
                target: None,
            })
        }
    }
}

/// Both disks in this process: beside each other, or where a map stands for one of them, both roles
/// over a link that hands memory over.
fn run_local(
    (source, map): (&dyn Source, SideMap),
    target: LocalTarget,
    session: &Session,
    abort: &dyn Fn() -> Arc<Abort>,
) -> Result<SessionOutcome> {
    let mut source_session =
        Session::new(session.options, session.geometry.disk_len())?.with_map(map);
    source_session.regions = session.regions;
    let beside = Beside {
        source,
        session: &source_session,
    };
    if beside.fits(target.map().unwrap_or(&SideMap::default())) {
        let (end, result, info) = play_target(session, target, Peer::Beside(beside), &abort())?;
        return Ok(SessionOutcome {
            end,
            result,
            wire: (0, 0),
            target: Some(info),
        });
    }
    let (near, far) = loopback::pair();
    let (near, counters) = in_process(near)?;
    let (far, _) = in_process(far)?;
    let (source_abort, target_abort) = (abort(), abort());
    let (sent, received) = std::thread::scope(|scope| {
        let sending = scope.spawn(|| run_source(&source_session, source, near, &source_abort));
        let received = play_target(session, target, far.into(), &target_abort);
        (
            sending.join().expect("a role turns its errors into values"),
            received,
        )
    });
    match (sent, received) {
        (Ok((end, _)), Ok((_, result, info))) => Ok(SessionOutcome {
            end,
            result,
            wire: count(&counters),
            target: Some(info),
        }),
        (Err(a), Err(b)) => Err(Error::first_cause(a, b)),
        (Err(error), Ok(_)) | (Ok(_), Err(error)) => Err(error),
    }
}

fn play_target(
    session: &Session,
    target: LocalTarget,
    peer: Peer<'_>,
    abort: &Arc<Abort>,
) -> Result<(SourceEnd, TargetResult, DiskInfo)> {
    match target {
        LocalTarget::Compared(disk) => {
            let (end, result) = run_target(session, disk.as_ref(), None, peer, abort)?;
            Ok((end, result, disk.info()))
        }
        LocalTarget::Hosted(target, map) => target.run(&session.clone().with_map(map), peer, abort),
    }
}

fn in_process(link: failback_transport::link::Link) -> Result<(SessionLink, Arc<Counters>)> {
    let peer = link.peer.clone();
    let (sender, mut receiver, closer, counters) = wire::split(link);
    receiver.set_idle_limit(IDLE_LIMIT).map_err(peer_error)?;
    Ok((
        SessionLink {
            sender,
            receiver,
            closer,
            peer,
        },
        counters,
    ))
}

fn count(counters: &Counters) -> (u64, u64) {
    (counters.bytes_out(), counters.bytes_in())
}

fn tell_progress(
    progress: &SessionProgress,
    total: u64,
    observer: &dyn Observer,
    started: Instant,
    done: &Receiver<()>,
) {
    use Ordering::Relaxed;
    let mut last = None;
    while matches!(
        done.recv_timeout(PROGRESS_EVERY),
        Err(RecvTimeoutError::Timeout)
    ) {
        tell_replans(progress, observer);
        let phase = progress.phase();
        let (name, at, of) = match phase {
            Phase::Copy => ("copy", progress.scan.position.load(Relaxed), total),
            Phase::Verify => (
                "verify",
                progress.verified.load(Relaxed),
                progress.verify_total.load(Relaxed),
            ),
        };
        if last.replace(phase) != Some(phase) {
            observer.event(&Event::Phase { phase: name });
        }
        let (sent, seconds) = (
            progress.payload.load(Relaxed),
            started.elapsed().as_secs_f64(),
        );
        observer.event(&Event::Progress {
            phase: name,
            done: at,
            total: of,
            sent,
            differing: progress.differing.load(Relaxed),
            backlog: progress.backlog(),
            seconds,
        });
    }
    tell_replans(progress, observer);
}

fn tell_replans(progress: &SessionProgress, observer: &dyn Observer) {
    while let Some(Replanned { from, plan }) = progress.take_replan() {
        observer.event(&Event::Replan {
            from,
            plan: plan.name(),
            reasons: plan.reasons().to_vec(),
        });
    }
}
