//! A link in the simulation's time: it takes a while, splits what it carries, and goes wrong.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use failback_engine::schedule::{Condvar, Dice, Mutex, MutexGuard, note, now};
use failback_engine::transport::link::{
    HANDSHAKE_LIMIT, Link, LinkCloser, LinkReceiver, LinkSender, STALL_LIMIT,
};

use crate::fault::LinkFault;

/// Bytes on their way in one direction.
const IN_FLIGHT_MAX: usize = 200 << 10;
/// Parts of these many bytes count as more, so that many short ones are bounded.
const PART_COST: usize = 64;

/// Both directions between two agents.
#[derive(Debug)]
pub(crate) struct Wire {
    state: Mutex<State>,
    moved: Condvar,
    /// The process at one end is gone. Set by whoever ends it, without waiting for anybody.
    is_dead: AtomicBool,
}

#[derive(Debug)]
struct State {
    /// By the number of the end that receives: the source has 0, the target 1.
    pipes: [Pipe; 2],
    is_cut: bool,
    dice: Dice,
    fault: Option<(usize, u64, LinkFault)>,
}

#[derive(Debug, Default)]
struct Pipe {
    parts: VecDeque<(Instant, Bytes)>,
    cost: usize,
    /// No part arrives before this.
    from: Option<Instant>,
    /// A part that arrives after the next one.
    held: Option<Bytes>,
    is_silent: bool,
    sender_left: bool,
    receiver_left: bool,
}

/// A new link: the source's end, the target's, and what lies between.
pub(crate) fn pair(dice: Dice, fault: Option<(usize, u64, LinkFault)>) -> (Link, Link, Arc<Wire>) {
    let wire = Arc::new(Wire {
        state: Mutex::new(State {
            pipes: [Pipe::default(), Pipe::default()],
            is_cut: false,
            dice,
            fault,
        }),
        moved: Condvar::new(),
        is_dead: AtomicBool::new(false),
    });
    (wire.end(0), wire.end(1), wire)
}

impl Wire {
    fn end(self: &Arc<Self>, mine: usize) -> Link {
        let half = || Half {
            wire: self.clone(),
            mine,
            limit: HANDSHAKE_LIMIT,
        };
        Link {
            sender: Box::new(Sending(half())),
            receiver: Box::new(Receiving(half())),
            closer: Arc::new(half()),
            trusted_memory: false,
            peer: format!("simulated end {mine}"),
        }
    }

    /// The target's process is gone. Never waits: whoever calls it may hold locks of an image.
    pub(crate) fn die(&self) {
        self.is_dead.store(true, Ordering::SeqCst);
        self.moved.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_gone(&self, state: &State) -> bool {
        state.is_cut || self.is_dead.load(Ordering::SeqCst)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>, limit: Duration) -> MutexGuard<'a, State> {
        let waited = self.moved.wait_timeout(state, limit);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

impl State {
    /// Sends one part on its way to `to`.
    fn send(&mut self, to: usize, part: Bytes) {
        let fault = match &mut self.fault {
            Some((pipe, left, fault)) if *pipe == to => match left {
                0 => Some(*fault),
                _ => {
                    *left -= 1;
                    None
                }
            },
            _ => None,
        };
        if fault.is_some() {
            note("link fault", (to as u64, 0));
            self.fault = None;
        }
        let pipe = &mut self.pipes[to];
        let part = match fault {
            None => part,
            Some(LinkFault::Cut) => {
                self.is_cut = true;
                return;
            }
            Some(LinkFault::Silence) => {
                pipe.is_silent = true;
                part
            }
            Some(LinkFault::Flip) => {
                let mut bytes = part.to_vec();
                let at = self.dice.index(bytes.len());
                bytes[at] ^= 1 << self.dice.below(8);
                bytes.into()
            }
            Some(LinkFault::Duplicate) => {
                self.deliver(to, &part);
                part
            }
            Some(LinkFault::Drop) => return,
            Some(LinkFault::Swap) => {
                pipe.held = Some(part);
                return;
            }
            Some(LinkFault::Delay(time)) => {
                pipe.from = Some(now() + time);
                part
            }
        };
        self.deliver(to, &part);
        if let Some(held) = self.pipes[to].held.take() {
            self.deliver(to, &held);
        }
    }

    fn deliver(&mut self, to: usize, part: &Bytes) {
        let pipe = &mut self.pipes[to];
        if pipe.is_silent || part.is_empty() {
            return;
        }
        let soon = now() + Duration::from_micros(self.dice.below(3_000));
        let at = pipe.from.map_or(soon, |from| from.max(soon));
        pipe.from = Some(at);
        let cut = match self.dice.one_in(4) {
            true => self.dice.index(part.len()),
            false => 0,
        };
        for piece in [part.slice(..cut), part.slice(cut..)] {
            if !piece.is_empty() {
                pipe.cost += piece.len() + PART_COST;
                pipe.parts.push_back((at, piece));
            }
        }
    }
}

/// What one end is made of.
struct Half {
    wire: Arc<Wire>,
    mine: usize,
    limit: Duration,
}

struct Sending(Half);

struct Receiving(Half);

impl LinkSender for Sending {
    fn send(&mut self, parts: &[Bytes]) -> io::Result<()> {
        let Half { wire, mine, .. } = &self.0;
        let to = 1 - mine;
        let until = now() + STALL_LIMIT;
        for part in parts.iter().filter(|part| !part.is_empty()) {
            let mut state = wire.state();
            loop {
                let pipe = &state.pipes[to];
                if wire.is_gone(&state) || pipe.sender_left || pipe.receiver_left {
                    return Err(io::ErrorKind::BrokenPipe.into());
                }
                if pipe.cost == 0 || pipe.cost + part.len() + PART_COST <= IN_FLIGHT_MAX {
                    break;
                }
                let left = until.saturating_duration_since(now());
                if left.is_zero() {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                state = wire.wait(state, left);
            }
            note("send", (to as u64, part.len() as u64));
            state.send(to, part.clone());
            drop(state);
            wire.moved.notify_all();
        }
        Ok(())
    }
}

impl LinkReceiver for Receiving {
    fn recv(&mut self) -> io::Result<Option<Bytes>> {
        let Half { wire, mine, limit } = &self.0;
        let until = now() + *limit;
        let mut state = wire.state();
        loop {
            if wire.is_gone(&state) {
                return Err(io::ErrorKind::ConnectionReset.into());
            }
            let present = now();
            let pipe = &mut state.pipes[*mine];
            let mut left = until.saturating_duration_since(present);
            match pipe.parts.front() {
                Some((at, _)) if *at <= present => {
                    let (_, part) = pipe.parts.pop_front().expect("it was looked at");
                    pipe.cost -= part.len() + PART_COST;
                    drop(state);
                    wire.moved.notify_all();
                    return Ok(Some(part));
                }
                Some((at, _)) => left = left.min(*at - present),
                None if pipe.sender_left || pipe.receiver_left => return Ok(None),
                None => {}
            }
            if until <= present {
                return Err(io::ErrorKind::TimedOut.into());
            }
            state = wire.wait(state, left);
        }
    }

    fn set_idle_limit(&mut self, limit: Duration) -> io::Result<()> {
        self.0.limit = limit;
        Ok(())
    }
}

impl Half {
    fn leave(&self, sends: bool, receives: bool) {
        let mut state = self.wire.state();
        state.pipes[1 - self.mine].sender_left |= sends;
        let pipe = &mut state.pipes[self.mine];
        if receives {
            pipe.receiver_left = true;
            pipe.parts.clear();
            pipe.cost = 0;
        }
        drop(state);
        self.wire.moved.notify_all();
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        self.0.leave(true, false);
    }
}

impl Drop for Receiving {
    fn drop(&mut self) {
        self.0.leave(false, true);
    }
}

impl LinkCloser for Half {
    fn close(&self) {
        self.leave(true, true);
    }
}
