//! Whether a block is compressed: as asked for, or while that makes the copy quicker.
//!
//! ```text
//! saved time = len x (1 - ratio) / rate of the link
//! spent time = len / rate of zstd on one core
//! it pays    while saved > 1.25 x spent
//! ```
//! The rate of the link is what it took while the sending thread was held up by it: a link that
//! never holds it up is fast, whatever it could carry. Until more went than a kernel's buffers
//! take, the rate is not known, and blocks are packed far ahead of what is sent: what waits to be
//! sent loses no time by being compressed. The cost is counted as if all work were done
//! one after the other: cores that compress are missed where blocks are hashed.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use failback_transport::Compress;

use crate::schedule::now;

/// Payload shorter than this is not worth a compressor's start.
const LEN_MIN: usize = 512;
/// What Auto compresses at: higher levels cost more time than they save bytes.
const AUTO_LEVEL: i8 = 1;
/// Of blocks that are not compressed, one in so many is tried where it might pay.
const TRY_ONE_IN: u64 = 16;
/// What has to be saved of what is spent, in fourths: the peer spends some too.
const MARGIN_FOURTHS: u128 = 5;
/// Bytes on the link until which its rate is not believed.
const UNKNOWN_LEN: u64 = 16 << 20;
/// Bytes that wait to be sent, from which on a link of unknown rate is taken for slow.
const BACKLOG_LEN: u64 = 4 << 20;
/// Bytes that are compressed in any case before the rate is known.
const BLIND_LEN: u64 = 4 << 20;
/// A sending thread that was held up for less says nothing yet.
const HELD_UP_MIN: Duration = Duration::from_millis(5);
/// Bytes per second below which a rate is believed at once.
const SLOW_RATE: u64 = 100 << 20;
/// Bytes after which older ones count half.
const FORGET_LEN: u64 = 4 << 20;
/// What one write costs on any link: with small messages nothing else would be seen.
const WRITE_COST: Duration = Duration::from_micros(50);
/// zstd's level 1 on one core until it was measured, in bytes per second.
const ZSTD_RATE: u64 = 400 << 20;

/// What the link took and how long that held up the sending thread.
#[derive(Clone, Debug, Default)]
pub(crate) struct LinkPace(Arc<Mutex<Pace>>);

#[derive(Clone, Copy, Debug, Default)]
struct Pace {
    len: u64,
    nanos: u64,
    /// All bytes since the session began.
    total: u64,
    /// When the write began that is under way.
    since: Option<Instant>,
    /// Bytes that wait to be sent.
    backlog: u64,
}

/// What is known of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LinkRate {
    Unknown,
    /// Too few bytes to tell how slow.
    Slow,
    /// Bytes per second.
    Known(u64),
}

impl LinkPace {
    /// So many bytes wait to be sent.
    pub(crate) fn queued(&self, len: u64) {
        self.pace().backlog += len;
    }

    /// Does a write of `len` bytes that were queued.
    pub(crate) fn watch<T>(&self, len: u64, write: impl FnOnce() -> T) -> T {
        let since = now();
        self.pace().since = Some(since);
        let done = write();
        self.pace().wrote(len, now() - since);
        done
    }

    fn rate(&self) -> LinkRate {
        self.pace().rate(now())
    }

    fn pace(&self) -> MutexGuard<'_, Pace> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pace {
    fn rate(&self, now: Instant) -> LinkRate {
        // The write that is under way counts, or a link that stands still would not be noticed.
        let under_way = self
            .since
            .map_or(0, |since| nanos(now.saturating_duration_since(since)));
        let held_up = self.nanos.saturating_add(under_way);
        let rate = rate(self.len, held_up);
        if self.total >= UNKNOWN_LEN {
            return LinkRate::Known(rate);
        }
        let is_slow = held_up >= nanos(HELD_UP_MIN) && rate < SLOW_RATE;
        match is_slow || self.backlog >= BACKLOG_LEN {
            true => LinkRate::Slow,
            false => LinkRate::Unknown,
        }
    }

    fn wrote(&mut self, len: u64, took: Duration) {
        self.since = None;
        self.backlog = self.backlog.saturating_sub(len);
        self.total = self.total.saturating_add(len);
        self.len = self.len.saturating_add(len);
        let held_up = nanos(took.saturating_sub(WRITE_COST));
        self.nanos = self.nanos.saturating_add(held_up);
        while self.len > FORGET_LEN {
            self.len /= 2;
            self.nanos /= 2;
        }
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Bytes per second, at least 1.
fn rate(len: u64, nanos: u64) -> u64 {
    let rate = u128::from(len) * 1_000_000_000 / u128::from(nanos.max(1));
    u64::try_from(rate).unwrap_or(u64::MAX).max(1)
}

/// Compresses what is to be sent, or leaves it.
#[derive(Debug)]
pub(super) struct Compressor {
    wish: Compress,
    link: LinkPace,
    known: Mutex<Known>,
}

/// What was measured of compression.
#[derive(Clone, Copy, Debug)]
struct Known {
    /// Bytes per second on one core.
    zstd_rate: u64,
    /// Bytes that are left of 1024.
    left_of_1024: u64,
    /// Blocks that were not compressed, one after the other.
    left_out: u64,
    /// Bytes compressed so far.
    tried_len: u64,
}

impl Compressor {
    pub(super) fn new(wish: Compress, link: LinkPace) -> Self {
        Self {
            wish,
            link,
            known: Mutex::new(Known::new()),
        }
    }

    /// What the link takes, in bytes per second, once that is known.
    pub(super) fn link_rate(&self) -> Option<u64> {
        match self.link.rate() {
            LinkRate::Known(rate) => Some(rate),
            LinkRate::Unknown | LinkRate::Slow => None,
        }
    }

    /// `raw` in fewer bytes; `None`: it is sent as it is.
    pub(super) fn compressed(&self, raw: &[u8]) -> Option<Vec<u8>> {
        if raw.len() < LEN_MIN {
            return None;
        }
        let level = match self.wish {
            Compress::Off => return None,
            Compress::Zstd(level) => return shorter(raw, level),
            Compress::Auto => AUTO_LEVEL,
        };
        let link_rate = self.link.rate();
        if !self.known().is_next(link_rate) {
            return None;
        }
        let begun = now();
        let packed = shorter(raw, level);
        let took = now() - begun;
        let left = packed.as_ref().map_or(raw.len(), Vec::len);
        self.known().learn(raw.len(), left, took);
        packed
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn shorter(raw: &[u8], level: i8) -> Option<Vec<u8>> {
    let packed = zstd::bulk::compress(raw, i32::from(level)).ok()?;
    (packed.len() < raw.len()).then_some(packed)
}

impl Known {
    fn new() -> Self {
        Self {
            zstd_rate: ZSTD_RATE,
            left_of_1024: 512,
            left_out: 0,
            tried_len: 0,
        }
    }

    /// Whether the next block is compressed, on a link of that rate.
    fn is_next(&mut self, link_rate: LinkRate) -> bool {
        let link_rate = match link_rate {
            LinkRate::Known(rate) => rate,
            LinkRate::Slow => return true,
            LinkRate::Unknown => return self.tried_len < BLIND_LEN,
        };
        let is_tried = self.left_out + 1 >= TRY_ONE_IN && pays(link_rate, self.zstd_rate, 0);
        if pays(link_rate, self.zstd_rate, self.left_of_1024) || is_tried {
            self.left_out = 0;
            return true;
        }
        self.left_out = self.left_out.saturating_add(1);
        false
    }

    /// `len` bytes became `left` ones.
    fn learn(&mut self, len: usize, left: usize, took: Duration) {
        let (len, left) = (len as u64, left as u64);
        self.tried_len = self.tried_len.saturating_add(len);
        let measured = rate(len, nanos(took));
        // A thread that was not let run says little, so one measurement counts for little.
        self.zstd_rate = mean(self.zstd_rate, measured, 7).max(1);
        let left_of_1024 = u64::try_from(u128::from(left) * 1024 / u128::from(len.max(1)));
        self.left_of_1024 = mean(self.left_of_1024, left_of_1024.unwrap_or(1024), 1);
    }
}

/// The mean of so many `old` and one `new`.
fn mean(old: u64, new: u64, old_count: u64) -> u64 {
    let sum = u128::from(old) * u128::from(old_count) + u128::from(new);
    u64::try_from(sum / u128::from(old_count + 1)).unwrap_or(u64::MAX)
}

/// Whether more time is saved on the link than spent on compressing, by the margin. Rates in bytes
/// per second.
fn pays(link_rate: u64, zstd_rate: u64, left_of_1024: u64) -> bool {
    let gone = u128::from(1024_u64.saturating_sub(left_of_1024));
    gone * u128::from(zstd_rate) * 4 > u128::from(link_rate) * 1024 * MARGIN_FOURTHS
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1_000_000;

    // Goal: the rule is the one above. Method: rates of known links and processors.
    #[test]
    fn it_pays_on_slow_links_and_for_data_that_shrinks() {
        let rows = [
            ("20 MB/s, half", 20 * MB, 400 * MB, 512, true),
            ("20 MB/s, nothing gained", 20 * MB, 400 * MB, 1024, false),
            ("20 MB/s, 3 %", 20 * MB, 400 * MB, 993, false),
            ("1 MB/s, 3 %", MB, 400 * MB, 993, true),
            ("1 Gbit/s, half", 120 * MB, 400 * MB, 512, true),
            ("1 Gbit/s, a tenth", 120 * MB, 400 * MB, 922, false),
            ("10 Gbit/s, to nothing", 1200 * MB, 400 * MB, 0, false),
            ("it grew", MB, 400 * MB, 2000, false),
        ];
        for (name, link_rate, zstd_rate, left, expected) in rows {
            assert_eq!(pays(link_rate, zstd_rate, left), expected, "{name}");
        }
    }

    /// Of `count` blocks that shrink to so much, how many are compressed.
    fn compressed(known: &mut Known, link_rate: u64, left_of_1024: usize, count: usize) -> usize {
        let block = (0..count).filter(|_| {
            let is_next = known.is_next(LinkRate::Known(link_rate));
            if is_next {
                let took = Duration::from_secs_f64(1024.0 / (400 * MB) as f64);
                known.learn(1024, left_of_1024, took);
            }
            is_next
        });
        block.count()
    }

    // Goal: on a fast link nothing is compressed, not even tried; on a slow one all that shrinks,
    // and of the rest one in sixteen.
    #[test]
    fn what_does_not_pay_is_tried_now_and_then() {
        let mut known = Known::new();
        assert_eq!(compressed(&mut known, 2000 * MB, 512, 1000), 0);
        assert_eq!(compressed(&mut known, 20 * MB, 512, 1000), 1000);
        let tried = compressed(&mut known, 20 * MB, 1024, 1600);
        assert!((100..=110).contains(&tried), "{tried} of 1600");
        // The data shrinks again: found within two trials.
        let again = compressed(&mut known, 20 * MB, 400, 1000);
        assert!(again >= 1000 - 2 * 16, "{again} of 1000");
    }

    // Goal: the link is known by what it took lately. Method: a fast start, as a kernel's buffer
    // gives it, and a slow rest.
    #[test]
    fn the_pace_follows_the_link() {
        let (begin, mut pace) = (Instant::now(), Pace::default());
        let known = |pace: &Pace| match pace.rate(begin) {
            LinkRate::Known(rate) => rate,
            other => panic!("{other:?}"),
        };
        pace.wrote(UNKNOWN_LEN / 2, Duration::from_millis(1));
        assert_eq!(pace.rate(begin), LinkRate::Unknown);
        pace.backlog = BACKLOG_LEN;
        assert_eq!(pace.rate(begin), LinkRate::Slow);
        pace.backlog = 0;
        pace.since = Some(begin);
        let rates = [0, 100].map(|millis| pace.rate(begin + Duration::from_millis(millis)));
        assert_eq!(rates, [LinkRate::Unknown, LinkRate::Slow]);
        pace.wrote(UNKNOWN_LEN, Duration::from_millis(1));
        assert!(known(&pace) > 500 * MB);
        (0..16).for_each(|_| pace.wrote(1 << 20, Duration::from_millis(50)));
        assert!((20 * MB..24 * MB).contains(&known(&pace)), "{pace:?}");
        (0..1000).for_each(|_| pace.wrote(1 << 20, Duration::from_micros(40)));
        assert!(known(&pace) > 2000 * MB, "writes that cost what any does");
    }

    // Goal: nothing is ever sent in more bytes than it has. Method: bytes that do not shrink, for
    // each wish.
    #[test]
    fn nothing_grows() {
        let mut dice = blake3::Hasher::new().finalize_xof();
        let mut noise = vec![0; 64 << 10];
        dice.fill(&mut noise);
        for wish in [Compress::Off, Compress::Zstd(1), Compress::Auto] {
            let compressor = Compressor::new(wish, LinkPace::default());
            assert_eq!(compressor.compressed(&noise), None);
            let zeros = compressor.compressed(&[0; 64 << 10]);
            assert_eq!(zeros.is_some(), wish != Compress::Off);
        }
    }
}
