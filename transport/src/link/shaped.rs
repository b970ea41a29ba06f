//! A link that is slower than it could be: a rate for both directions, a delay for what is sent.
//!
//! ```text
//! send   -> pieces -> the rate's clock -> [ queue, due times -> carrying thread ] -> inner link
//! recv   <- the rate's clock <- pieces <- inner link
//!                                         only where there is a delay
//! ```
//! The rate is a clock: a piece of n bytes occupies the link for n / rate, and goes when that is
//! over. The delay is a queue, so that it costs time once and not for each piece: bytes wait in it
//! until they are due while others follow. To have a whole far link, shape both ends.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{Link, LinkCloser, LinkReceiver, LinkSender};

/// Lowest rate, in bytes per second: with less, keepalives would come too late.
pub const RATE_MIN: u64 = 16 << 10;

/// Longest delay: a handshake is three of them, and has to end within its limit.
pub const DELAY_MAX: Duration = Duration::from_secs(2);

/// How slow a link is made. The default leaves it as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    /// Bytes per second that this end sends, and again those that it takes; `None`: no limit. Less
    /// than [`RATE_MIN`] counts as that.
    pub bytes_per_second: Option<u64>,
    /// How much later the peer gets what this end sends; more than [`DELAY_MAX`] counts as that.
    pub delay: Duration,
}

/// `link` in that shape.
///
/// A limit alone costs no thread: whoever sends waits for its turn. A delay has a thread that ends
/// with the sending half; dropping that half waits until the queue is empty. The queue holds what
/// is on its way at that rate and delay and 1 MiB, at most 64 MiB; then [`LinkSender::send`]
/// blocks.
///
/// # Errors
///
/// Those of the system when it starts a thread.
pub fn shaped(link: Link, shape: Shape) -> io::Result<Link> {
    let rate = shape.bytes_per_second.map(|rate| rate.max(RATE_MIN));
    let delay = shape.delay.min(DELAY_MAX);
    if rate.is_none() && delay.is_zero() {
        return Ok(link);
    }
    let shared = Arc::new(Shared::default());
    let closer = Arc::new(ShapedCloser {
        shared: Arc::clone(&shared),
        inner: link.closer,
    });
    let receiver = match rate {
        // Nothing to see to: it stays what it is, stream and all.
        None => link.receiver,
        Some(rate) => Box::new(ShapedReceiver {
            inner: link.receiver,
            shared: Arc::clone(&shared),
            clock: RateClock::new(rate),
            rest: Bytes::new(),
        }),
    };
    let pace = Pace {
        shared: Arc::clone(&shared),
        clock: rate.map(RateClock::new),
    };
    let sender: Box<dyn LinkSender> = if delay.is_zero() {
        Box::new(LimitedSender {
            pace,
            inner: link.sender,
        })
    } else {
        let carrier = Builder::new().name("link delay".to_owned()).spawn({
            let mut inner = link.sender;
            move || {
                let outcome = shared.carry(&mut *inner);
                // The peer sees the end before anybody here takes it for reached.
                drop(inner);
                shared.end_carrying(outcome);
            }
        })?;
        Box::new(DelayedSender {
            pace,
            delay,
            room: room(rate, delay),
            closer: Arc::clone(&closer),
            carrier: Some(carrier),
        })
    };
    Ok(Link {
        sender,
        receiver,
        closer,
        trusted_memory: link.trusted_memory,
        peer: link.peer,
    })
}

/// Bytes that may wait in the queue: what is on its way on a link of that rate and delay, and some
/// that wait for their turn.
fn room(rate: Option<u64>, delay: Duration) -> usize {
    let Some(rate) = rate else {
        return QUEUE_LEN_MAX;
    };
    let on_their_way = u128::from(rate) * delay.as_micros() / 1_000_000;
    let on_their_way = usize::try_from(on_their_way).unwrap_or(QUEUE_LEN_MAX);
    on_their_way.saturating_add(WINDOW).min(QUEUE_LEN_MAX)
}

/// When a link of one rate is free again.
struct RateClock {
    bytes_per_second: u64,
    free_at: Option<Instant>,
}

impl RateClock {
    fn new(bytes_per_second: u64) -> Self {
        Self {
            bytes_per_second,
            free_at: None,
        }
    }

    /// Takes the link for `len` bytes, from the moment when it is free; until when.
    fn occupy(&mut self, len: usize, now: Instant) -> Instant {
        // What a late wake-up lost is made up for; an idle hour is not.
        let earliest = now.checked_sub(CREDIT).unwrap_or(now);
        let begins = self.free_at.map_or(now, |free_at| free_at.max(earliest));
        let nanos = len as u128 * 1_000_000_000 / u128::from(self.bytes_per_second);
        let ends = begins + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        self.free_at = Some(ends);
        ends
    }

    /// Bytes that go at once: so few that a close is prompt and the flow is even, so many that the
    /// clock does not matter.
    fn piece_len(&self) -> usize {
        let len = self.bytes_per_second / PIECES_PER_SECOND;
        usize::try_from(len)
            .unwrap_or(PIECE_LEN_MAX)
            .clamp(PIECE_LEN_MIN, PIECE_LEN_MAX)
    }
}

/// What both halves, the closer and the carrying thread know of each other.
#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    is_closed: bool,
    /// Pieces and when they are due; empty where there is no delay.
    queue: VecDeque<(Instant, Vec<Bytes>)>,
    /// Bytes in the queue.
    queue_len: usize,
    /// The sending half was dropped: nothing follows what is in the queue.
    sender_left: bool,
    /// The carrying thread has ended.
    is_carried: bool,
    /// Why it has ended early.
    failure: Option<io::ErrorKind>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing below can panic halfway through a change, so a poisoned state is a good one.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(
        &self,
        state: MutexGuard<'a, State>,
        until: Option<Instant>,
    ) -> MutexGuard<'a, State> {
        let Some(until) = until else {
            let waited = self.changed.wait(state);
            return waited.unwrap_or_else(PoisonError::into_inner);
        };
        let left = until.saturating_duration_since(Instant::now());
        let waited = self.changed.wait_timeout(state, left);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Whether `until` came before the link was closed.
    fn reaches(&self, until: Instant) -> bool {
        let mut state = self.lock();
        while !state.is_closed {
            // A system sleeps no shorter than this; the clock makes up for it.
            if until <= Instant::now() + SLEEP_MIN {
                return true;
            }
            state = self.wait(state, Some(until));
        }
        false
    }

    fn close(&self) {
        let mut state = self.lock();
        state.is_closed = true;
        state.queue.clear();
        state.queue_len = 0;
        drop(state);
        self.changed.notify_all();
    }

    /// The carrying thread: hands on what is due, until nothing follows.
    fn carry(&self, inner: &mut dyn LinkSender) -> io::Result<()> {
        let mut state = self.lock();
        loop {
            if state.is_closed {
                return Ok(());
            }
            let Some(due) = state.queue.front().map(|(due, _)| *due) else {
                if state.sender_left {
                    return Ok(());
                }
                state = self.wait(state, None);
                continue;
            };
            if due > Instant::now() {
                state = self.wait(state, Some(due));
                continue;
            }
            let Some((_, piece)) = state.queue.pop_front() else {
                continue;
            };
            drop(state);
            inner.send(&piece)?;
            let len = piece.iter().map(Bytes::len).sum::<usize>();
            drop(piece);
            state = self.lock();
            state.queue_len = state.queue_len.saturating_sub(len);
            self.changed.notify_all();
        }
    }

    fn end_carrying(&self, outcome: io::Result<()>) {
        let mut state = self.lock();
        state.is_carried = true;
        state.failure = outcome.err().map(|error| error.kind());
        state.queue.clear();
        drop(state);
        self.changed.notify_all();
    }
}

/// The rate of one sending half.
struct Pace {
    shared: Arc<Shared>,
    clock: Option<RateClock>,
}

impl Pace {
    /// Calls `go` with each piece of `parts` when it is its turn.
    fn each_piece(
        &mut self,
        parts: &[Bytes],
        mut go: impl FnMut(&Shared, Vec<Bytes>, usize) -> io::Result<()>,
    ) -> io::Result<()> {
        let piece_len = self
            .clock
            .as_ref()
            .map_or(PIECE_LEN_MAX, RateClock::piece_len);
        let (mut piece, mut len) = (Vec::new(), 0);
        for part in parts {
            let mut part = part.clone();
            while !part.is_empty() {
                let taken = part.split_to(part.len().min(piece_len - len));
                len += taken.len();
                piece.push(taken);
                if len == piece_len {
                    self.wait_turn(len)?;
                    go(
                        &self.shared,
                        std::mem::take(&mut piece),
                        std::mem::take(&mut len),
                    )?;
                }
            }
        }
        if len > 0 {
            self.wait_turn(len)?;
            go(&self.shared, piece, len)?;
        }
        Ok(())
    }

    fn wait_turn(&mut self, len: usize) -> io::Result<()> {
        let now = Instant::now();
        let until = self
            .clock
            .as_mut()
            .map_or(now, |clock| clock.occupy(len, now));
        match self.shared.reaches(until) {
            true => Ok(()),
            false => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }
}

/// A rate and no delay.
struct LimitedSender {
    pace: Pace,
    inner: Box<dyn LinkSender>,
}

impl LinkSender for LimitedSender {
    fn send(&mut self, parts: &[Bytes]) -> io::Result<()> {
        let inner = &mut self.inner;
        self.pace
            .each_piece(parts, |_, piece, _| inner.send(&piece))
    }
}

/// A delay, and perhaps a rate.
struct DelayedSender {
    pace: Pace,
    delay: Duration,
    /// Bytes that may wait in the queue.
    room: usize,
    closer: Arc<ShapedCloser>,
    carrier: Option<JoinHandle<()>>,
}

impl LinkSender for DelayedSender {
    fn send(&mut self, parts: &[Bytes]) -> io::Result<()> {
        let (delay, room) = (self.delay, self.room);
        self.pace.each_piece(parts, |shared, piece, len| {
            let due = Instant::now() + delay;
            // A slice would keep all of its block, and with it a buffer that somebody waits for.
            let copied = piece.iter().map(|part| Bytes::copy_from_slice(part));
            let copied = copied.collect();
            drop(piece);
            let mut state = shared.lock();
            loop {
                if let Some(kind) = state.failure {
                    return Err(kind.into());
                }
                if state.is_closed || state.is_carried {
                    return Err(io::ErrorKind::BrokenPipe.into());
                }
                if state.queue_len == 0 || state.queue_len + len <= room {
                    break;
                }
                state = shared.wait(state, None);
            }
            state.queue_len += len;
            state.queue.push_back((due, copied));
            drop(state);
            shared.changed.notify_all();
            Ok(())
        })
    }
}

impl Drop for DelayedSender {
    fn drop(&mut self) {
        let shared = &self.pace.shared;
        let until = Instant::now() + self.delay + LINGER;
        let mut state = shared.lock();
        state.sender_left = true;
        shared.changed.notify_all();
        while !state.is_carried && Instant::now() < until {
            state = shared.wait(state, Some(until));
        }
        let is_carried = state.is_carried;
        drop(state);
        if !is_carried {
            // The peer takes nothing.
            self.closer.close();
        }
        if let Some(carrier) = self.carrier.take() {
            // It has no panic to tell of but one of the inner link.
            drop(carrier.join());
        }
    }
}

/// A rate for what comes: the inner link holds back what is not taken.
struct ShapedReceiver {
    inner: Box<dyn LinkReceiver>,
    shared: Arc<Shared>,
    clock: RateClock,
    /// What came and has not had its turn.
    rest: Bytes,
}

impl LinkReceiver for ShapedReceiver {
    fn recv(&mut self) -> io::Result<Option<Bytes>> {
        if self.rest.is_empty() {
            match self.inner.recv()? {
                Some(bytes) => self.rest = bytes,
                None => return Ok(None),
            }
        }
        let len = self.rest.len().min(self.clock.piece_len());
        let until = self.clock.occupy(len, Instant::now());
        Ok(self.shared.reaches(until).then(|| self.rest.split_to(len)))
    }

    fn set_idle_limit(&mut self, limit: Duration) -> io::Result<()> {
        self.inner.set_idle_limit(limit)
    }
}

struct ShapedCloser {
    shared: Arc<Shared>,
    inner: Arc<dyn LinkCloser>,
}

impl LinkCloser for ShapedCloser {
    fn close(&self) {
        self.shared.close();
        self.inner.close();
    }
}

/// Bytes that may wait in the queue beyond those that are on their way.
const WINDOW: usize = 1 << 20;

/// Most bytes in a queue.
const QUEUE_LEN_MAX: usize = 64 << 20;

const PIECES_PER_SECOND: u64 = 50;
const PIECE_LEN_MIN: usize = 1 << 10;
const PIECE_LEN_MAX: usize = 256 << 10;

/// How far a clock that was not used in time may catch up.
const CREDIT: Duration = Duration::from_millis(10);

/// Waits shorter than this are left out.
const SLEEP_MIN: Duration = Duration::from_micros(200);

/// How long a dropped sender waits, beyond the delay, for a peer that takes nothing.
const LINGER: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    // Goal: bytes take their time one after the other, a late caller catches up a little, an idle
    // one does not. Method: a clock of 1000 bytes per second at stated moments.
    #[test]
    fn a_clock_is_occupied_by_one_piece_after_the_other() {
        let begin = Instant::now() + Duration::from_secs(1);
        let at = |millis| begin + Duration::from_millis(millis);
        let mut clock = RateClock::new(1000);
        assert_eq!(clock.occupy(100, at(0)), at(100));
        assert_eq!(clock.occupy(100, at(0)), at(200), "behind the first");
        assert_eq!(
            clock.occupy(100, at(205)),
            at(300),
            "late by less than the credit"
        );
        assert_eq!(clock.occupy(100, at(1010)), at(1100), "idle for long");
    }

    // Goal: memory is bounded for any shape. Method: the queue's room for shapes at the edges.
    #[test]
    fn the_queue_is_bounded() {
        let delay = Duration::from_millis(100);
        assert_eq!(room(Some(20 << 20), delay), (2 << 20) + WINDOW);
        assert_eq!(room(Some(u64::MAX), DELAY_MAX), QUEUE_LEN_MAX);
        assert_eq!(room(None, delay), QUEUE_LEN_MAX);
    }
}
