//! How fast the disk of a target takes bytes, as seen while they were written: a plan may not
//! write, so it goes by what earlier syncs saw.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::cost::DiskRates;
use super::survey::Timed;
use crate::schedule::now;

/// Fewer bytes say how long a flush takes, and nothing of a rate.
const LEN_MIN: u64 = 16 << 20;
/// A disk that had nothing to do for more than one part in so many was waiting for bytes: nobody
/// saw how fast it would have taken more of them, and what came one by one took longer.
const IDLE_ONE_IN: u32 = 4;
/// So many times as fast as before a disk is believed to be after one sync more: a cache may have
/// taken all of it.
const STEP_MAX: f64 = 2.0;

/// Bytes, and the time in which at least one thread worked on them.
#[derive(Debug, Default)]
pub struct Meter {
    readings: Mutex<Readings>,
}

#[derive(Clone, Debug, Default)]
struct Readings {
    bytes: u64,
    /// Time in which somebody worked.
    busy: Duration,
    /// Time in which nobody did, though the disk had nothing else to do, between the first who did
    /// and the last.
    idle: Duration,
    /// Threads at work, and at something else on the same disk.
    workers: u32,
    others: u32,
    /// When one of these changed last.
    changed: Option<Instant>,
    /// What was done does not count.
    is_void: bool,
}

/// A thread at work, until it is dropped.
#[derive(Debug)]
pub(crate) struct Working<'a> {
    meter: &'a Meter,
}

/// A thread at something else on the same disk, until it is dropped.
#[derive(Debug)]
pub(crate) struct Paused<'a> {
    meter: &'a Meter,
}

impl Readings {
    /// The time since the last change goes where it belongs.
    fn settle(&mut self, now: Instant) {
        let since = self.changed.replace(now);
        let spent = since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        match (self.workers, self.others) {
            (0, 0) => self.idle += spent,
            (0, _) => {}
            _ => self.busy += spent,
        }
    }

    fn timed(&self) -> Timed {
        Timed {
            bytes: self.bytes,
            micros: u64::try_from(self.busy.as_micros()).unwrap_or(u64::MAX),
        }
    }

    /// As [`Meter::rate_at_work`].
    fn rate_at_work(&self) -> Option<f64> {
        let is_told = self.bytes >= LEN_MIN && !self.is_void;
        self.timed().rate().filter(|_| is_told)
    }

    /// As [`Meter::rate`].
    fn rate(&self) -> Option<f64> {
        let is_kept_busy = self.idle <= (self.busy + self.idle) / IDLE_ONE_IN;
        self.rate_at_work().filter(|_| is_kept_busy)
    }
}

impl Meter {
    /// This thread begins to work.
    pub(crate) fn begin(&self) -> Working<'_> {
        self.change(|readings| readings.workers += 1);
        Working { meter: self }
    }

    /// This thread begins something else, for which the others may have to wait.
    pub(crate) fn pause(&self) -> Paused<'_> {
        self.change(|readings| readings.others += 1);
        Paused { meter: self }
    }

    /// What it reads says nothing of the disk.
    pub(crate) fn make_void(&self) {
        self.readings().is_void = true;
    }

    /// Bytes per second of a disk that was kept busy; `None` where too little was seen to tell.
    #[must_use]
    pub fn rate(&self) -> Option<f64> {
        self.readings().rate()
    }

    /// The same of work that waits for nobody, however long it did not go on.
    #[must_use]
    pub fn rate_at_work(&self) -> Option<f64> {
        self.readings().rate_at_work()
    }

    /// Other threads count from now on.
    fn change(&self, threads: impl FnOnce(&mut Readings)) {
        let now = now();
        let mut readings = self.readings();
        readings.settle(now);
        threads(&mut readings);
    }

    // Each change of it is whole.
    fn readings(&self) -> MutexGuard<'_, Readings> {
        self.readings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Working<'_> {
    /// So many bytes are done.
    pub(crate) fn add(&self, bytes: u64) {
        self.meter.readings().bytes += bytes;
    }
}

impl Drop for Working<'_> {
    fn drop(&mut self) {
        self.meter.change(|readings| readings.workers -= 1);
    }
}

impl Drop for Paused<'_> {
    fn drop(&mut self) {
        self.meter.change(|readings| readings.others -= 1);
    }
}

/// What the disk of a target does in a session.
#[derive(Debug, Default)]
pub struct Meters {
    /// Old and new bytes go to a log.
    pub log: Meter,
    /// Bytes go into a new file one after the other.
    pub write: Meter,
    /// Bytes go here and there over what is there.
    pub scattered_write: Meter,
    /// Bytes are read past the page cache.
    pub read_back: Meter,
}

/// What was seen of a disk, in bytes per second; `None`: not yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SeenRates {
    /// As [`DiskRates::log`].
    pub log: Option<f64>,
    /// As [`DiskRates::write`].
    pub write: Option<f64>,
    /// As [`DiskRates::scattered_write`].
    pub scattered_write: Option<f64>,
    /// As [`DiskRates::read_back`].
    pub read_back: Option<f64>,
}

impl SeenRates {
    /// What a session has seen.
    #[must_use]
    pub fn of(meters: &Meters) -> Self {
        Self {
            log: meters.log.rate(),
            write: meters.write.rate(),
            scattered_write: meters.scattered_write.rate(),
            // Nobody waits for bytes to read back.
            read_back: meters.read_back.rate_at_work(),
        }
    }

    /// Whether nothing was seen.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The same after what was seen before it. What is faster counts at once, up to a step: the
    /// disk did it. What is slower counts half, as factors go: it may have had others to serve.
    #[must_use]
    pub fn after(&self, before: &Self) -> Self {
        let joined = |new: Option<f64>, old: Option<f64>| match (new, old) {
            (Some(new), Some(old)) if new < old => Some((new * old).sqrt()),
            (Some(new), Some(old)) => Some(new.min(old * STEP_MAX)),
            (one, other) => one.or(other),
        };
        Self {
            log: joined(self.log, before.log),
            write: joined(self.write, before.write),
            scattered_write: joined(self.scattered_write, before.scattered_write),
            read_back: joined(self.read_back, before.read_back),
        }
    }

    /// What is to be reckoned with: what was seen, and for ways to write in which nobody saw the
    /// disk write, what the other ways say of it.
    #[must_use]
    pub fn rates(&self) -> DiskRates {
        let assumed = DiskRates::default();
        let factor = |seen: Option<f64>, assumed: f64| seen.map(|seen| bounded(seen) / assumed);
        let (log, write) = (
            factor(self.log, assumed.log),
            factor(self.write, assumed.write),
        );
        let scattered = factor(self.scattered_write, assumed.scattered_write);
        // Both take new space in order. Writing over space that is there says less of that: the
        // factor counts half.
        let in_order = log.or(write).or(scattered.map(f64::sqrt));
        // A disk that writes faster than one that turns has nothing to move: on such a one "here
        // and there" costs nothing.
        let share = assumed.scattered_write / assumed.write;
        let scattered = scattered.or_else(|| {
            let ordered = write.or(log)?;
            Some(ordered * (share * ordered).clamp(share, 1.0) / share)
        });
        let rate = |factor: Option<f64>, assumed: f64| bounded(factor.unwrap_or(1.0) * assumed);
        DiskRates {
            log: rate(in_order, assumed.log),
            write: rate(write.or(in_order), assumed.write),
            scattered_write: rate(scattered, assumed.scattered_write),
            read_back: bounded(self.read_back.unwrap_or(assumed.read_back)),
        }
    }
}

/// What a file or a peer says of a rate is a number, and no more than any disk does.
fn bounded(rate: f64) -> f64 {
    match rate.is_nan() {
        true => RATE_MIN,
        false => rate.clamp(RATE_MIN, RATE_MAX),
    }
}

const RATE_MIN: f64 = 1e5;
const RATE_MAX: f64 = 1e11;

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn readings(bytes: u64, busy_ms: u64, idle_ms: u64) -> Readings {
        Readings {
            bytes,
            busy: Duration::from_millis(busy_ms),
            idle: Duration::from_millis(idle_ms),
            ..Readings::default()
        }
    }

    fn is_near(a: f64, b: f64) -> bool {
        (a / b - 1.0).abs() < 1e-6
    }

    // Goal: the time of several threads counts once; idle is when nobody works and the disk has
    // nothing else to do. Method: changes at known times.
    #[test]
    fn time_goes_where_it_belongs() {
        let start = Instant::now();
        let mut readings = Readings::default();
        let mut at = |ms, workers, others| {
            readings.settle(start + Duration::from_millis(ms));
            (readings.workers, readings.others) = (workers, others);
            (readings.busy.as_millis(), readings.idle.as_millis())
        };
        // Before the first nobody waited.
        assert_eq!(at(500, 1, 0), (0, 0));
        assert_eq!(at(510, 2, 0), (10, 0));
        assert_eq!(at(520, 1, 0), (20, 0));
        assert_eq!(at(530, 0, 0), (30, 0));
        assert_eq!(at(540, 0, 1), (30, 10));
        assert_eq!(at(550, 0, 2), (30, 10));
        assert_eq!(at(560, 1, 2), (30, 10));
        assert_eq!(at(570, 0, 1), (40, 10));
        assert_eq!(at(580, 0, 0), (40, 10));
        assert_eq!(at(590, 1, 0), (40, 20));
    }

    // Goal: guards count threads and bytes. Method: two that overlap, and a pause.
    #[test]
    fn guards_count() {
        let meter = Meter::default();
        let (a, b) = (meter.begin(), meter.begin());
        let paused = meter.pause();
        let threads = || {
            let readings = meter.readings();
            (readings.workers, readings.others)
        };
        assert_eq!(threads(), (2, 1));
        a.add(5);
        b.add(6);
        drop((a, b, paused));
        assert_eq!(threads(), (0, 0));
        assert_eq!(meter.readings().bytes, 11);
    }

    // Goal: a rate is told only where a disk was kept busy. Method: too few bytes, a disk that
    // waited for them, work that does not count, and none of these.
    #[test]
    fn what_was_hardly_seen_is_no_rate() {
        assert_eq!(readings(16 * MIB - 1, 100, 0).rate(), None);
        assert_eq!(readings(64 * MIB, 0, 0).rate(), None);
        assert_eq!(readings(64 * MIB, 100, 35).rate(), None);
        let waited = readings(64 * MIB, 100, 35).rate_at_work().unwrap();
        let rate = readings(64 * MIB, 100, 32).rate().unwrap();
        assert!(is_near(rate, 640.0 * 1_048_576.0), "{rate}");
        assert!(is_near(rate, waited));
        let void = Readings {
            is_void: true,
            ..readings(64 * MIB, 100, 0)
        };
        assert_eq!((void.rate(), void.rate_at_work()), (None, None));
    }

    // Goal: what was not seen follows what was, each from its own kind. Method: one way seen at a
    // time, on a slow disk and a fast one; and numbers that no disk has.
    #[test]
    fn what_was_not_seen_follows_what_was() {
        const M: f64 = 1_048_576.0;
        let assumed = DiskRates::default();
        assert_eq!(SeenRates::default().rates(), assumed);
        let none = SeenRates::default();
        let write = |rate: f64| SeenRates {
            write: Some(rate * M),
            ..none
        };
        let scattered = |rate: f64| SeenRates {
            scattered_write: Some(rate * M),
            ..none
        };
        // Seen; then log, write, scattered.
        let table = [
            (write(150.0), [150.0, 150.0, 60.0]),
            (write(300.0), [300.0, 300.0, 120.0]),
            (write(600.0), [600.0, 600.0, 480.0]),
            (write(900.0), [900.0, 900.0, 900.0]),
            (scattered(30.0), [150.0, 150.0, 30.0]),
            (scattered(1920.0), [1200.0, 1200.0, 1920.0]),
        ];
        for (seen, wanted) in table {
            let rates = seen.rates();
            let found = [rates.log, rates.write, rates.scattered_write].map(|rate| rate / M);
            let is_right = found.iter().zip(wanted).all(|(a, b)| is_near(*a, b));
            assert!(is_right, "{seen:?}: {found:?}, not {wanted:?}");
        }
        let both = SeenRates {
            log: Some(500.0 * M),
            ..write(700.0)
        };
        assert!(is_near(both.rates().log, 500.0 * M));
        assert!(is_near(both.rates().write, 700.0 * M));

        for odd in [f64::NAN, f64::INFINITY, -1.0, 0.0, 1e300] {
            let odd = SeenRates {
                log: Some(odd),
                read_back: Some(odd),
                ..none
            };
            let DiskRates {
                log,
                write,
                scattered_write,
                read_back,
            } = odd.rates();
            for rate in [log, write, scattered_write, read_back] {
                assert!((RATE_MIN..=RATE_MAX).contains(&rate), "{rate}");
            }
        }
    }

    // Goal: the faster sight counts up to a step, the slower one half, and an old one stays where
    // there is no new one. Method: each.
    #[test]
    fn sights_are_joined() {
        let old = SeenRates {
            log: Some(400.0),
            write: Some(7.0),
            scattered_write: Some(2.0),
            ..SeenRates::default()
        };
        let new = SeenRates {
            log: Some(100.0),
            scattered_write: Some(5.0),
            read_back: Some(3.0),
            ..SeenRates::default()
        };
        let joined = new.after(&old);
        assert!(is_near(joined.log.unwrap(), 200.0));
        assert_eq!(joined.write, Some(7.0));
        assert_eq!(joined.scattered_write, Some(4.0));
        assert_eq!(joined.read_back, Some(3.0));
        assert!(SeenRates::default().after(&SeenRates::default()).is_empty());
    }
}
