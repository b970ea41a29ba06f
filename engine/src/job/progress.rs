//! How far a job is, from what its disks tell: rates, time left, downtime to be expected. Pure.

use std::collections::VecDeque;

use serde::Serialize;

use crate::event::Event;

/// Rates are those of this many seconds; the range of the time left also looks at a sixth of it.
const WINDOW_SECONDS: f64 = 30.0;
/// Observations of a disk that are kept: those of a window at five a second.
const OBSERVATION_COUNT_MAX: usize = 160;
/// No time left is told that is longer than this many seconds: a hundred days.
const ETA_SECONDS_MAX: f64 = 8_640_000.0;

/// How far a job is while its disks are moved.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct JobProgress {
    /// The job.
    pub job: String,
    /// Its phase.
    pub phase: &'static str,
    /// Each disk.
    pub disks: Vec<DiskProgress>,
    /// All disks together. Its time left is that of the slowest.
    #[serde(flatten)]
    pub all: Amounts,
    /// Downtime in seconds if this pass goes on as it does and the next one is like it, or, once
    /// the source was stopped, as it will have been; `null` where that is not known.
    pub downtime: Option<f64>,
}

/// How far a disk is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DiskProgress {
    /// What it is called.
    pub disk: String,
    /// `waiting`, `copy`, `verify`, `done`.
    pub phase: &'static str,
    /// How much of it.
    #[serde(flatten)]
    pub of: Amounts,
}

/// Bytes, and what follows from them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Amounts {
    /// Bytes of the disk that were compared, or copied.
    pub scanned: u64,
    /// All of them; 0 while unknown.
    pub total: u64,
    /// Of the scanned bytes, those in blocks that are equal.
    pub matched: u64,
    /// Payload bytes that went over the link.
    pub sent: u64,
    /// Bytes that differ and are not where they are to be kept yet, as far as that is known.
    pub backlog: u64,
    /// Bytes of the disk that are done with in a second, lately.
    pub rate: f64,
    /// Seconds left in this pass; `null` where nothing can be said.
    pub eta: Option<Eta>,
}

/// Seconds left.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Eta {
    /// At the best rate seen.
    pub low: f64,
    /// At the present rate.
    pub likely: f64,
    /// At the worst rate seen.
    pub high: f64,
}

/// What is known of one disk.
#[derive(Clone, Debug)]
struct Track {
    disk: String,
    phase: &'static str,
    last: Amounts,
    /// Work done and work in all, of the present phase.
    work: (u64, u64),
    /// When, and work done by then; the first is that of the phase, the others are the newest.
    first: Option<(f64, u64)>,
    seen: VecDeque<(f64, u64)>,
}

/// Gathers the progress of the disks of a job.
#[derive(Clone, Debug)]
pub(crate) struct Tally {
    tracks: Vec<Track>,
}

impl Tally {
    pub(crate) fn new<'a>(disks: impl IntoIterator<Item = &'a str>) -> Self {
        let track = |disk: &str| Track {
            disk: disk.to_owned(),
            phase: "waiting",
            last: Amounts::default(),
            work: (0, 0),
            first: None,
            seen: VecDeque::new(),
        };
        Self {
            tracks: disks.into_iter().map(track).collect(),
        }
    }

    /// Takes in what a disk told `now`, in seconds of any clock; whether that was progress.
    pub(crate) fn hear(&mut self, disk: &str, event: &Event, now: f64) -> bool {
        let Some(track) = self.tracks.iter_mut().find(|track| track.disk == disk) else {
            return false;
        };
        match event {
            Event::Progress {
                phase,
                done,
                total,
                sent,
                differing,
                backlog,
                ..
            } => {
                track.hear((*phase, *done, *total), now);
                track.last.sent = *sent;
                track.last.backlog = *backlog;
                if *phase == "copy" {
                    track.last.scanned = (*done).min(*total);
                    track.last.total = *total;
                    track.last.matched = track.last.scanned.saturating_sub(*differing);
                } else {
                    track.last.scanned = track.last.total;
                }
                true
            }
            _ => false,
        }
    }

    /// A disk is done with.
    pub(crate) fn finish(&mut self, disk: &str, sent: u64) {
        if let Some(track) = self.tracks.iter_mut().find(|track| track.disk == disk) {
            track.phase = "done";
            track.last.sent = sent;
            track.last.scanned = track.last.total;
            track.last.backlog = 0;
        }
    }

    /// How far all are. `downtime` tells what is to be expected where this pass takes so many
    /// seconds in all, of which `elapsed` are over.
    pub(crate) fn progress(
        &self,
        (job, phase): (&str, &'static str),
        elapsed: f64,
        downtime: &dyn Fn(f64) -> Option<f64>,
    ) -> JobProgress {
        let disks: Vec<_> = self.tracks.iter().map(Track::progress).collect();
        let mut all = Amounts::default();
        for DiskProgress { of, .. } in &disks {
            all.scanned += of.scanned;
            all.total += of.total;
            all.matched += of.matched;
            all.sent += of.sent;
            all.backlog += of.backlog;
            all.rate += of.rate;
        }
        let etas: Option<Vec<Eta>> = disks.iter().map(|disk| disk.of.eta).collect();
        all.eta = etas.and_then(|etas| etas.into_iter().reduce(Eta::later));
        let in_all = all.eta.map(|eta| finite(elapsed) + eta.likely);
        let downtime = in_all.and_then(downtime).filter(|it| it.is_finite());
        JobProgress {
            job: job.to_owned(),
            phase,
            disks,
            all,
            downtime,
        }
    }
}

impl Eta {
    fn later(self, other: Self) -> Self {
        Self {
            low: self.low.max(other.low),
            likely: self.likely.max(other.likely),
            high: self.high.max(other.high),
        }
    }
}

impl Track {
    fn hear(&mut self, (phase, done, total): (&'static str, u64, u64), now: f64) {
        if self.phase != phase {
            self.phase = phase;
            self.first = None;
            self.seen.clear();
        }
        self.work = (done.min(total), total);
        if !now.is_finite() {
            return;
        }
        self.first.get_or_insert((now, self.work.0));
        self.seen.push_back((now, self.work.0));
        while self.seen.len() > OBSERVATION_COUNT_MAX {
            self.seen.pop_front();
        }
    }

    fn progress(&self) -> DiskProgress {
        let rate = self.rate(WINDOW_SECONDS);
        let is_done = self.phase == "done";
        DiskProgress {
            disk: self.disk.clone(),
            phase: self.phase,
            of: Amounts {
                rate: if is_done { 0.0 } else { rate.unwrap_or(0.0) },
                eta: self.eta(),
                ..self.last
            },
        }
    }

    /// Bytes of work in a second over the last `window` seconds; `None` where no time went by.
    fn rate(&self, window: f64) -> Option<f64> {
        let newest = *self.seen.back()?;
        let mut in_window = self.seen.iter().filter(|(at, _)| newest.0 - at <= window);
        let oldest = *in_window.next()?;
        rate_between(oldest, newest)
    }

    fn eta(&self) -> Option<Eta> {
        let (done, total) = self.work;
        if self.phase == "done" {
            return Some(Eta {
                low: 0.0,
                likely: 0.0,
                high: 0.0,
            });
        }
        // In a copy, what was found and is on its way still has to come.
        let backlog = if self.phase == "copy" {
            self.last.backlog
        } else {
            0
        };
        let left = float(total.saturating_sub(done).saturating_add(backlog));
        let whole = rate_between(self.first?, *self.seen.back()?);
        let lately = self.rate(WINDOW_SECONDS);
        let rates = [whole, lately, self.rate(WINDOW_SECONDS / 6.0)];
        let rates = rates.into_iter().flatten().filter(|rate| *rate > 0.0);
        let (slow, fast) = rates.fold((f64::INFINITY, 0.0), |(slow, fast): (f64, f64), rate| {
            (slow.min(rate), fast.max(rate))
        });
        if total == 0 || fast <= 0.0 {
            return None;
        }
        let rate = lately.filter(|rate| *rate > 0.0).unwrap_or(slow);
        let seconds = |rate: f64| finite(left / rate).min(ETA_SECONDS_MAX);
        Some(Eta {
            low: seconds(fast),
            likely: seconds(rate),
            high: seconds(slow),
        })
    }
}

fn rate_between(from: (f64, u64), to: (f64, u64)) -> Option<f64> {
    let seconds = to.0 - from.0;
    (seconds > 0.0).then(|| finite(float(to.1.saturating_sub(from.1)) / seconds))
}

/// JSON has no other numbers.
fn finite(value: f64) -> f64 {
    if value.is_finite() { value } else { 0.0 }
}

#[expect(clippy::cast_precision_loss, reason = "an estimate")]
fn float(value: u64) -> f64 {
    value as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn told(phase: &'static str, (done, total): (u64, u64), differing: u64) -> Event {
        Event::Progress {
            phase,
            done,
            total,
            sent: differing / 2,
            differing,
            backlog: differing / 4,
            seconds: 0.0,
        }
    }

    fn progress(tally: &Tally, elapsed: f64) -> JobProgress {
        tally.progress(("web", "presync"), elapsed, &|seconds| Some(seconds + 15.0))
    }

    // Goal: counts add up, rates and time left are those of the disks, and the downtime follows.
    // Method: two disks, one of them twice as fast.
    #[test]
    fn a_job_is_the_sum_of_its_disks() {
        let mut tally = Tally::new(["os", "data"]);
        for second in 0..=10_u32 {
            let (now, done) = (f64::from(second), u64::from(second) * MIB);
            assert!(tally.hear("os", &told("copy", (done, 100 * MIB), MIB), now));
            assert!(tally.hear("data", &told("copy", (2 * done, 100 * MIB), 0), now));
        }
        let found = progress(&tally, 10.0);
        assert_eq!((found.all.scanned, found.all.total), (30 * MIB, 200 * MIB));
        assert_eq!(found.all.matched, 29 * MIB);
        assert_eq!((found.all.sent, found.all.backlog), (MIB / 2, MIB / 4));
        assert!((found.all.rate - float(3 * MIB)).abs() < 1.0);
        let eta = found.all.eta.unwrap();
        assert!((eta.likely - 90.25).abs() < 0.01, "{eta:?}");
        assert!(eta.low <= eta.likely && eta.likely <= eta.high);
        assert!((found.downtime.unwrap() - 115.25).abs() < 0.01);
    }

    // Goal: a range that holds both what was and what is. Method: a disk that slows down.
    #[test]
    fn a_changing_rate_widens_the_range() {
        let mut tally = Tally::new(["os"]);
        let mut done = 0;
        for second in 0..=60_u32 {
            done += if second < 50 { 10 * MIB } else { MIB };
            tally.hear(
                "os",
                &told("copy", (done, 1000 * MIB), 0),
                f64::from(second),
            );
        }
        let eta = progress(&tally, 60.0).all.eta.unwrap();
        assert!(eta.high > 400.0 && eta.low < 70.0, "{eta:?}");
        assert!(eta.low < eta.likely && eta.likely < eta.high, "{eta:?}");
    }

    // Goal: sensible at the ends: no number that JSON does not have. Method: nothing told, one
    // disk of two, no time gone by, no bytes, clocks that stand or go back, all done.
    #[test]
    fn ends_are_sensible() {
        let mut tally = Tally::new(["os", "data"]);
        assert_eq!(progress(&tally, 0.0).all, Amounts::default());
        tally.hear("os", &told("copy", (0, 0), 0), 1.0);
        tally.hear("os", &told("copy", (0, 0), 0), 1.0);
        tally.hear("os", &told("copy", (5, 10), u64::MAX), 0.5);
        tally.hear("os", &told("copy", (5, 10), 0), f64::NAN);
        let found = progress(&tally, f64::NAN);
        assert_eq!((found.all.eta, found.downtime), (None, None));
        assert!(!serde_json::to_string(&found).unwrap().contains("NaN"));
        // It stands still: nobody knows for how long.
        for second in 2..50_u32 {
            tally.hear("os", &told("copy", (5, 10), 0), f64::from(second));
        }
        assert_eq!(progress(&tally, 60.0).all.eta, None);
        tally.hear("os", &told("verify", (0, 4), 0), 61.0);
        let os = &progress(&tally, 61.0).disks[0];
        assert_eq!((os.phase, os.of.scanned, os.of.eta), ("verify", 10, None));
        tally.finish("os", 7);
        tally.finish("data", 0);
        let found = progress(&tally, 70.0);
        assert_eq!((found.all.sent, found.all.backlog), (7, 0));
        assert_eq!(found.all.eta.unwrap().high, 0.0);
        assert_eq!(found.downtime, Some(85.0));
        assert!(!tally.hear("os", &Event::Phase { phase: "copy" }, 80.0));
    }
}
