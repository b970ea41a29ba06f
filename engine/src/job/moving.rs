//! The disks of a job on their way: side by side, each by a sync that stops short of COMMIT.

use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::journal::Moved;
use super::progress::Tally;
use super::spec::{DiskSpec, JobSpec};
use crate::abort::CancelToken;
use crate::disk::OpenOptions;
use crate::endpoint::Endpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::event::{Event, Observer};
use crate::operation::{Carried, SyncRequest, stage_mark, try_sync};
use crate::plan::Strategy;
use crate::report::Report;
use crate::sync::Until;
use crate::transport::Apply;

/// One disk, and where its bytes come from now.
#[derive(Debug)]
pub(super) struct Leg<'a> {
    pub(super) disk: &'a DiskSpec,
    pub(super) from: Endpoint,
    pub(super) strategy: Strategy,
    pub(super) until: Until,
    /// Maps that are carried from pass to pass.
    pub(super) carried: Option<Carried>,
    /// The directory of the job in whose name the target is changed; `None`: it is not.
    pub(super) owner: Option<PathBuf>,
}

impl Leg<'_> {
    /// The sync that moves it. Alike in every pass, so that each goes on from the one before.
    ///
    /// # Errors
    /// `Usage`.
    pub(super) fn request(&self, spec: &JobSpec) -> Result<SyncRequest> {
        let policy = &spec.policy;
        let disk = self.disk;
        Ok(SyncRequest {
            source_open: disk.open(disk.source_format.as_deref())?,
            target_open: OpenOptions {
                owner: self.owner.clone(),
                ..disk.open(disk.target_format.as_deref())?
            },
            strategy: self.strategy,
            verify: policy.verify.level(),
            apply: Apply::StageKeepUndo,
            objective: policy.optimize,
            downtime_budget: policy.downtime_budget,
            until: self.until,
            carried: self.carried.clone(),
            ..SyncRequest::new(self.from.clone(), Endpoint::Path(disk.target.clone()))
        })
    }
}

/// Moves all of them, some at the same time. The first error ends the others, and is the one told.
///
/// # Errors
/// Those of a sync.
pub(super) fn move_all(
    spec: &JobSpec,
    legs: &[Leg<'_>],
    watch: &Watch<'_>,
    cancel: &CancelToken,
) -> Result<Vec<Moved>> {
    let requests: Result<Vec<_>> = legs.iter().map(|leg| leg.request(spec)).collect();
    let requests = requests?;
    let first_error: Mutex<Option<Error>> = Mutex::default();
    let stop = CancelToken::new();
    let told = Told::new(&spec.name, legs, watch);
    let next = AtomicUsize::new(0);
    let moved: Mutex<Vec<(usize, Moved)>> = Mutex::default();
    std::thread::scope(|scope| {
        let workers = AT_ONCE.min(legs.len());
        let running: Vec<_> = (0..workers)
            .map(|_| {
                scope.spawn(|| {
                    while !stop.is_cancelled() {
                        let at = next.fetch_add(1, Ordering::Relaxed);
                        let Some(leg) = legs.get(at) else { return };
                        match move_one(leg, &requests[at], &told, &stop) {
                            Ok(one) => lock(&moved).push((at, one)),
                            Err(error) => {
                                lock(&first_error).get_or_insert(error);
                                stop.cancel();
                            }
                        }
                    }
                })
            })
            .collect();
        while !running
            .iter()
            .all(std::thread::ScopedJoinHandle::is_finished)
        {
            if cancel.is_cancelled() {
                stop.cancel();
            }
            std::thread::sleep(POLL);
        }
    });
    if let Some(error) = lock(&first_error).take() {
        return Err(error);
    }
    let mut moved = std::mem::take(&mut *lock(&moved));
    if moved.len() < legs.len() {
        return Err(Error::new(ErrorKind::Cancelled, "cancelled"));
    }
    moved.sort_by_key(|(at, _)| *at);
    Ok(moved.into_iter().map(|(_, moved)| moved).collect())
}

fn move_one(
    leg: &Leg<'_>,
    request: &SyncRequest,
    told: &Told<'_>,
    stop: &CancelToken,
) -> Result<Moved> {
    let of_disk = OfDisk {
        disk: &leg.disk.id,
        to: told,
    };
    let target = &leg.disk.target;
    let moved = try_sync(request, &of_disk, stop).and_then(|report| {
        let mark = match leg.until {
            Until::Staged => stage_mark(target, &request.target_open, None, stop)?,
            Until::Sealed | Until::End => None,
        };
        Ok(Moved {
            mark,
            ..moved_of(leg, &report)
        })
    });
    let moved = moved.map_err(|error| error.path(target))?;
    told.finished(&leg.disk.id, moved.sent);
    Ok(moved)
}

fn moved_of(leg: &Leg<'_>, report: &Report) -> Moved {
    let has_hint = leg.carried.as_ref().is_some_and(Carried::has_hint);
    Moved {
        disk: leg.disk.id.clone(),
        hinted: has_hint && report.map.source.is_trusted(),
        root: report.root.target.clone(),
        changed: report.bytes.changed,
        sent: report.bytes.sent,
        source_read: report.bytes.source_read,
        wire: report.bytes.wire_out + report.bytes.wire_in,
        seconds: report.seconds.total,
        // The job forces the way that it chose; who chose that is told with the choice.
        reasons: (report.reasons.iter())
            .filter(|reason| **reason != "operator_forced")
            .map(ToString::to_string)
            .collect(),
        mark: None,
    }
}

/// Who watches disks that move.
pub(super) struct Watch<'a> {
    /// The job's phase.
    pub(super) phase: &'static str,
    /// Seconds of downtime to be expected where moving the disks takes so many seconds.
    pub(super) downtime: &'a (dyn Fn(f64) -> Option<f64> + Sync),
    pub(super) observer: &'a dyn Observer,
}

/// Says how far all disks are, at most once a second and when one is done.
struct Told<'a> {
    job: &'a str,
    watch: &'a Watch<'a>,
    started: Instant,
    tally: Mutex<(Tally, Option<Instant>)>,
}

impl<'a> Told<'a> {
    fn new(job: &'a str, legs: &[Leg<'_>], watch: &'a Watch<'a>) -> Self {
        let tally = Tally::new(legs.iter().map(|leg| leg.disk.id.as_str()));
        Self {
            job,
            watch,
            started: Instant::now(),
            tally: Mutex::new((tally, None)),
        }
    }

    fn hear(&self, disk: &str, event: &Event) {
        let mut tally = lock(&self.tally);
        let now = self.started.elapsed().as_secs_f64();
        let is_progress = tally.0.hear(disk, event, now);
        let is_due = tally.1.is_none_or(|last| last.elapsed() >= PROGRESS_EVERY);
        if is_progress && is_due {
            self.tell(&mut tally);
        }
    }

    fn finished(&self, disk: &str, sent: u64) {
        let mut tally = lock(&self.tally);
        tally.0.finish(disk, sent);
        self.tell(&mut tally);
    }

    // Under the lock, or an older state could be told after a newer one.
    fn tell(&self, (tally, last): &mut (Tally, Option<Instant>)) {
        *last = Some(Instant::now());
        let elapsed = self.started.elapsed().as_secs_f64();
        let about = (self.job, self.watch.phase);
        let progress = tally.progress(about, elapsed, self.watch.downtime);
        let event = Event::JobProgress(Box::new(progress));
        self.watch.observer.event(&event);
    }
}

/// Says of which disk it is.
struct OfDisk<'a> {
    disk: &'a str,
    to: &'a Told<'a>,
}

impl Observer for OfDisk<'_> {
    fn event(&self, event: &Event) {
        self.to.watch.observer.event(&Event::OfDisk {
            disk: self.disk.to_owned(),
            of: Box::new(event.clone()),
        });
        self.to.hear(self.disk, event);
    }
}

// A panic while it is held would have ended the thread before it could store anything half.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Disks that move at the same time: each has threads and buffers of its own, and an agent has room
/// for 16 peers.
const AT_ONCE: usize = 8;
/// How often it is told how far all disks are.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);
/// How often a wait looks whether it is over.
const POLL: Duration = Duration::from_millis(5);
