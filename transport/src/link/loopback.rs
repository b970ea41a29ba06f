//! Two ends in one process. Memory is handed over, not copied.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{HANDSHAKE_LIMIT, Link, LinkCloser, LinkReceiver, LinkSender};

/// Bytes on their way in one direction: a few of the largest blocks, so that both sides keep busy.
pub const IN_FLIGHT_MAX: usize = 16 << 20;

/// What a part counts beside its bytes, so that many short ones are bounded, too.
const PART_COST: usize = 64;

/// The two ends of a new link. Both may be used by threads of this process only.
#[must_use]
pub fn pair() -> (Link, Link) {
    let (there, back) = (Arc::new(Pipe::default()), Arc::new(Pipe::default()));
    (end(&there, &back), end(&back, &there))
}

fn end(out: &Arc<Pipe>, input: &Arc<Pipe>) -> Link {
    Link {
        sender: Box::new(LoopbackSender {
            pipe: Arc::clone(out),
        }),
        receiver: Box::new(LoopbackReceiver {
            pipe: Arc::clone(input),
            limit: HANDSHAKE_LIMIT,
        }),
        closer: Arc::new(LoopbackCloser {
            out: Arc::clone(out),
            input: Arc::clone(input),
        }),
        trusted_memory: true,
        peer: "loopback".to_owned(),
    }
}

/// One direction.
#[derive(Default)]
struct Pipe {
    state: Mutex<State>,
    /// Signalled when parts came or the sender left.
    filled: Condvar,
    /// Signalled when parts went or the receiver left.
    drained: Condvar,
}

#[derive(Default)]
struct State {
    parts: VecDeque<Bytes>,
    /// Cost of `parts`; above [`IN_FLIGHT_MAX`] only by one part.
    cost: usize,
    /// No more parts come; those that are there are still received.
    sender_left: bool,
    /// No more parts are taken.
    receiver_left: bool,
}

impl Pipe {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing below can panic halfway through a change, so a poisoned state is a good one.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn leave_sender(&self) {
        self.lock().sender_left = true;
        self.filled.notify_all();
        self.drained.notify_all();
    }

    fn leave_receiver(&self) {
        let mut state = self.lock();
        state.receiver_left = true;
        state.parts.clear();
        state.cost = 0;
        drop(state);
        self.filled.notify_all();
        self.drained.notify_all();
    }
}

struct LoopbackSender {
    pipe: Arc<Pipe>,
}

impl LinkSender for LoopbackSender {
    fn send(&mut self, parts: &[Bytes]) -> io::Result<()> {
        for part in parts.iter().filter(|part| !part.is_empty()) {
            let cost = part.len() + PART_COST;
            let mut state = self.pipe.lock();
            loop {
                if state.sender_left || state.receiver_left {
                    return Err(io::ErrorKind::BrokenPipe.into());
                }
                if state.cost == 0 || state.cost + cost <= IN_FLIGHT_MAX {
                    break;
                }
                state = self
                    .pipe
                    .drained
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            state.cost += cost;
            state.parts.push_back(part.clone());
            drop(state);
            self.pipe.filled.notify_one();
        }
        Ok(())
    }
}

impl Drop for LoopbackSender {
    fn drop(&mut self) {
        self.pipe.leave_sender();
    }
}

struct LoopbackReceiver {
    pipe: Arc<Pipe>,
    limit: Duration,
}

impl LinkReceiver for LoopbackReceiver {
    fn recv(&mut self) -> io::Result<Option<Bytes>> {
        let begun = Instant::now();
        let mut state = self.pipe.lock();
        loop {
            if let Some(part) = state.parts.pop_front() {
                state.cost -= part.len() + PART_COST;
                drop(state);
                self.pipe.drained.notify_one();
                return Ok(Some(part));
            }
            if state.sender_left || state.receiver_left {
                return Ok(None);
            }
            let left = self.limit.saturating_sub(begun.elapsed());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let waited = self.pipe.filled.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn set_idle_limit(&mut self, limit: Duration) -> io::Result<()> {
        self.limit = limit;
        Ok(())
    }
}

impl Drop for LoopbackReceiver {
    fn drop(&mut self) {
        self.pipe.leave_receiver();
    }
}

struct LoopbackCloser {
    out: Arc<Pipe>,
    input: Arc<Pipe>,
}

impl LinkCloser for LoopbackCloser {
    fn close(&self) {
        self.out.leave_sender();
        self.input.leave_receiver();
    }
}
