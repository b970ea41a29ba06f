//! How fast the disk of a target takes bytes, as seen while they were written: a plan may not
//! write, so it goes by what earlier syncs saw.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::cost::DiskRates;
use super::number::float;
use super::survey::Timed;
use crate::schedule::now;

/// Fewer bytes say how long a flush takes, and nothing of a rate.
const LEN_MIN: u64 = 16 << 20;
/// A disk that had something to do for less of the time, in parts of four, was waiting for bytes:
/// nobody saw how fast it would have taken more of them, and what came one by one took longer.
const BUSY_MIN: u32 = 3;

/// Bytes, and the time in which at least one thread worked on them.
#[derive(Debug, Default)]
pub struct Meter {
    readings: Mutex<Readings>,
}

#[derive(Debug, Default)]
struct Readings {
    bytes: u64,
    busy: Duration,
    /// Threads at work now, and since when at least one has been.
    workers: u32,
    since: Option<Instant>,
    /// When the first one began.
    first: Option<Instant>,
    /// How long after that the last one ended.
    whole: Duration,
    /// Of that, what went to other work on the same disk.
    paused: Duration,
}

/// A thread at work, until it is dropped.
#[derive(Debug)]
pub(crate) struct Working<'a> {
    meter: &'a Meter,
}

/// A thread at other work on the same disk, until it is dropped.
#[derive(Debug)]
pub(crate) struct Paused<'a> {
    meter: &'a Meter,
    since: Instant,
}

impl Meter {
    /// This thread begins something else, for which the others may have to wait.
    pub(crate) fn pause(&self) -> Paused<'_> {
        Paused {
            meter: self,
            since: now(),
        }
    }

    /// This thread begins to work.
    pub(crate) fn begin(&self) -> Working<'_> {
        let now = now();
        let mut readings = self.readings();
        readings.workers += 1;
        readings.since.get_or_insert(now);
        readings.first.get_or_insert(now);
        Working { meter: self }
    }

    /// What it read so far.
    #[must_use]
    pub fn timed(&self) -> Timed {
        let readings = self.readings();
        Timed {
            bytes: readings.bytes,
            micros: u64::try_from(readings.busy.as_micros()).unwrap_or(u64::MAX),
        }
    }

    /// Bytes per second; `None` where too little was seen to tell.
    #[must_use]
    pub fn rate(&self) -> Option<f64> {
        let timed = self.timed();
        let readings = self.readings();
        let whole = readings.whole.saturating_sub(readings.paused);
        let is_told = timed.bytes >= LEN_MIN && readings.busy >= whole / 4 * BUSY_MIN;
        drop(readings);
        timed.rate().filter(|_| is_told)
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

impl Drop for Paused<'_> {
    fn drop(&mut self) {
        let paused = now().saturating_duration_since(self.since);
        self.meter.readings().paused += paused;
    }
}

impl Drop for Working<'_> {
    fn drop(&mut self) {
        let now = now();
        let mut readings = self.meter.readings();
        readings.workers -= 1;
        if let Some(first) = readings.first {
            readings.whole = readings.whole.max(now.saturating_duration_since(first));
        }
        if readings.workers == 0
            && let Some(since) = readings.since.take()
        {
            readings.busy += now.saturating_duration_since(since);
        }
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
            read_back: meters.read_back.rate(),
        }
    }

    /// Whether nothing was seen.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The same after what was seen before it. What is faster counts at once: the disk did it. What
    /// is slower counts half, as factors go: a disk may have been waiting, or have had a bad day.
    #[must_use]
    pub fn after(&self, before: &Self) -> Self {
        let middle = |new: Option<f64>, old: Option<f64>| match (new, old) {
            (Some(new), Some(old)) if new < old => Some((new * old).sqrt()),
            (one, other) => one.or(other),
        };
        Self {
            log: middle(self.log, before.log),
            write: middle(self.write, before.write),
            scattered_write: middle(self.scattered_write, before.scattered_write),
            read_back: middle(self.read_back, before.read_back),
        }
    }

    /// What is to be reckoned with. How a disk writes in a way in which nobody saw it write is
    /// taken from the ways that were seen: it is taken to be as many times as fast as what is
    /// assumed of a disk of which nothing is known.
    #[must_use]
    pub fn rates(&self) -> DiskRates {
        let assumed = DiskRates::default();
        let seen = [
            (self.log, assumed.log),
            (self.write, assumed.write),
            (self.scattered_write, assumed.scattered_write),
        ];
        let logs = seen
            .iter()
            .filter_map(|(seen, assumed)| Some((bounded((*seen)?) / assumed).ln()));
        let count = logs.clone().count();
        let factor = match count {
            0 => 1.0,
            _ => (logs.sum::<f64>() / float(count as u64)).exp(),
        };
        let or = |seen: Option<f64>, assumed: f64| bounded(seen.unwrap_or(assumed * factor));
        DiskRates {
            log: or(self.log, assumed.log),
            write: or(self.write, assumed.write),
            scattered_write: or(self.scattered_write, assumed.scattered_write),
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

    fn meter(bytes: u64, busy_ms: u64, whole_ms: u64) -> Meter {
        let readings = Readings {
            bytes,
            busy: Duration::from_millis(busy_ms),
            whole: Duration::from_millis(whole_ms),
            ..Readings::default()
        };
        Meter {
            readings: Mutex::new(readings),
        }
    }

    fn is_near(a: f64, b: f64) -> bool {
        (a / b - 1.0).abs() < 1e-6
    }

    // Goal: the time of several threads counts once, and not while nobody works. Method: two that
    // overlap, then a wait, then one.
    #[test]
    fn time_is_that_of_whoever_works() {
        let meter = Meter::default();
        let started = Instant::now();
        let (a, b) = (meter.begin(), meter.begin());
        std::thread::sleep(Duration::from_millis(20));
        a.add(5);
        drop(a);
        b.add(6);
        drop(b);
        let both = started.elapsed();
        let busy = Duration::from_micros(meter.timed().micros);
        assert!(
            (Duration::from_millis(20)..=both).contains(&busy),
            "{busy:?}"
        );
        assert_eq!(meter.timed().bytes, 11);

        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(Duration::from_micros(meter.timed().micros), busy);
        drop(meter.begin());
        let readings = meter.readings();
        assert!(readings.whole >= Duration::from_millis(40));
        assert!(readings.busy < readings.whole - Duration::from_millis(19));
    }

    // Goal: a rate is told only where a disk was seen at work. Method: too few bytes, a disk that
    // waited for them, one that did something else meanwhile, and none of these.
    #[test]
    fn what_was_hardly_seen_is_no_rate() {
        assert_eq!(meter(16 * MIB - 1, 100, 100).rate(), None);
        assert_eq!(meter(64 * MIB, 99, 132 + 4).rate(), None);
        let paused = meter(64 * MIB, 99, 132 + 4);
        drop(paused.pause());
        assert_eq!(paused.rate(), None);
        let at_work = paused.pause();
        std::thread::sleep(Duration::from_millis(5));
        drop(at_work);
        assert!(paused.rate().is_some());
        let rate = meter(64 * MIB, 100, 132).rate().unwrap();
        assert!(is_near(rate, 640.0 * 1_048_576.0), "{rate}");
        assert_eq!(meter(64 * MIB, 0, 0).rate(), None);
    }

    // Goal: what was not seen follows what was. Method: nothing, one rate, two that differ, and
    // numbers that no disk has.
    #[test]
    fn what_was_not_seen_follows_what_was() {
        let assumed = DiskRates::default();
        assert_eq!(SeenRates::default().rates(), assumed);

        let fast = SeenRates {
            scattered_write: Some(assumed.scattered_write * 4.0),
            ..SeenRates::default()
        };
        let rates = fast.rates();
        assert!(is_near(rates.write, assumed.write * 4.0));
        assert!(is_near(rates.log, assumed.log * 4.0));
        assert_eq!(rates.read_back, assumed.read_back);

        let both = SeenRates {
            write: Some(assumed.write * 9.0),
            ..fast
        };
        assert!(is_near(both.rates().log, assumed.log * 6.0));
        assert!(is_near(both.rates().write, assumed.write * 9.0));

        for odd in [f64::NAN, f64::INFINITY, -1.0, 0.0, 1e300] {
            let odd = SeenRates {
                log: Some(odd),
                read_back: Some(odd),
                ..SeenRates::default()
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

    // Goal: the faster sight counts, the slower one half, and an old one stays where there is no
    // new one. Method: each.
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
        assert_eq!(joined.scattered_write, Some(5.0));
        assert_eq!(joined.read_back, Some(3.0));
        assert!(SeenRates::default().after(&SeenRates::default()).is_empty());
    }
}
