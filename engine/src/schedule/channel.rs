//! Queues between threads: crossbeam's, or in a simulation the same on its locks.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use crossbeam::channel as native;
pub use crossbeam::channel::{RecvError, RecvTimeoutError, SendError, TryRecvError};

use super::lock::{Condvar, Mutex, MutexGuard};
use super::simulation::is_simulated;

/// As [`crossbeam::channel::Sender`].
pub enum Sender<T> {
    /// Outside of a simulation.
    Native(native::Sender<T>),
    /// In one.
    Simulated(SendingEnd<T>),
}

/// As [`crossbeam::channel::Receiver`].
pub enum Receiver<T> {
    /// Outside of a simulation.
    Native(native::Receiver<T>),
    /// In one.
    Simulated(ReceivingEnd<T>),
}

/// As [`crossbeam::channel::bounded`]; in a simulation a queue without room takes nothing at all.
#[must_use]
pub fn bounded<T>(room: usize) -> (Sender<T>, Receiver<T>) {
    if is_simulated() {
        return Queue::ends(room);
    }
    let (tx, rx) = native::bounded(room);
    (Sender::Native(tx), Receiver::Native(rx))
}

/// As [`crossbeam::channel::unbounded`].
#[must_use]
pub fn unbounded<T>() -> (Sender<T>, Receiver<T>) {
    if is_simulated() {
        return Queue::ends(usize::MAX);
    }
    let (tx, rx) = native::unbounded();
    (Sender::Native(tx), Receiver::Native(rx))
}

impl<T> Sender<T> {
    /// As [`crossbeam::channel::Sender::send`].
    ///
    /// # Errors
    /// The message, when nobody will take it.
    pub fn send(&self, message: T) -> Result<(), SendError<T>> {
        match self {
            Self::Native(queue) => queue.send(message),
            Self::Simulated(end) => end.0.send(message),
        }
    }

    /// Messages that wait.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Native(queue) => queue.len(),
            Self::Simulated(end) => end.0.state().waiting.len(),
        }
    }

    /// Whether none waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<T> Receiver<T> {
    /// As [`crossbeam::channel::Receiver::recv_timeout`].
    ///
    /// # Errors
    /// When nothing came in time, or nobody is left to send.
    pub fn recv_timeout(&self, limit: Duration) -> Result<T, RecvTimeoutError> {
        match self {
            Self::Native(queue) => queue.recv_timeout(limit),
            Self::Simulated(end) => end.0.take(limit),
        }
    }

    /// As [`crossbeam::channel::Receiver::recv`].
    ///
    /// # Errors
    /// When nobody is left to send.
    pub fn recv(&self) -> Result<T, RecvError> {
        match self {
            Self::Native(queue) => queue.recv(),
            Self::Simulated(end) => end.0.take(Duration::MAX).map_err(|_| RecvError),
        }
    }

    /// As [`crossbeam::channel::Receiver::try_recv`].
    ///
    /// # Errors
    /// When nothing is there.
    pub fn try_recv(&self) -> Result<T, TryRecvError> {
        match self {
            Self::Native(queue) => queue.try_recv(),
            Self::Simulated(end) => end.0.take(Duration::ZERO).map_err(|error| match error {
                RecvTimeoutError::Timeout => TryRecvError::Empty,
                RecvTimeoutError::Disconnected => TryRecvError::Disconnected,
            }),
        }
    }

    /// Whether no message waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        match self {
            Self::Native(queue) => queue.is_empty(),
            Self::Simulated(end) => end.0.state().waiting.is_empty(),
        }
    }

    /// All that comes, until nobody is left to send.
    pub fn iter(&self) -> impl Iterator<Item = T> {
        std::iter::from_fn(|| self.recv().ok())
    }
}

impl<'a, T> IntoIterator for &'a Receiver<T> {
    type Item = T;
    type IntoIter = Box<dyn Iterator<Item = T> + 'a>;

    fn into_iter(self) -> Self::IntoIter {
        Box::new(self.iter())
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        match self {
            Self::Native(queue) => Self::Native(queue.clone()),
            Self::Simulated(end) => {
                end.0.state().senders += 1;
                Self::Simulated(SendingEnd(end.0.clone()))
            }
        }
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        match self {
            Self::Native(queue) => Self::Native(queue.clone()),
            Self::Simulated(end) => {
                end.0.state().receivers += 1;
                Self::Simulated(ReceivingEnd(end.0.clone()))
            }
        }
    }
}

impl<T> fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad("Sender { .. }")
    }
}

impl<T> fmt::Debug for Receiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad("Receiver { .. }")
    }
}

/// The filling end of a simulated queue.
pub struct SendingEnd<T>(Arc<Queue<T>>);

/// The emptying end of a simulated queue.
pub struct ReceivingEnd<T>(Arc<Queue<T>>);

impl<T> Drop for SendingEnd<T> {
    fn drop(&mut self) {
        self.0.state().senders -= 1;
        self.0.filled.notify_all();
    }
}

impl<T> Drop for ReceivingEnd<T> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.receivers -= 1;
        // What nobody takes any more is dropped now, as crossbeam does; outside of the lock, as it
        // may hold ends of other queues.
        let left = match state.receivers {
            0 => std::mem::take(&mut state.waiting),
            _ => VecDeque::new(),
        };
        drop(state);
        drop(left);
        self.0.drained.notify_all();
    }
}

/// A simulated queue.
struct Queue<T> {
    state: Mutex<State<T>>,
    room: usize,
    /// A message came, or a sender went.
    filled: Condvar,
    /// A message went, or a receiver.
    drained: Condvar,
}

struct State<T> {
    waiting: VecDeque<T>,
    senders: usize,
    receivers: usize,
}

impl<T> Queue<T> {
    fn ends(room: usize) -> (Sender<T>, Receiver<T>) {
        let queue = Arc::new(Self {
            state: Mutex::new(State {
                waiting: VecDeque::new(),
                senders: 1,
                receivers: 1,
            }),
            room,
            filled: Condvar::new(),
            drained: Condvar::new(),
        });
        (
            Sender::Simulated(SendingEnd(queue.clone())),
            Receiver::Simulated(ReceivingEnd(queue)),
        )
    }

    // Nothing below panics halfway through a change.
    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, message: T) -> Result<(), SendError<T>> {
        let mut state = self.state();
        loop {
            if state.receivers == 0 {
                return Err(SendError(message));
            }
            if state.waiting.len() < self.room {
                break;
            }
            let waited = self.drained.wait_timeout(state, Duration::MAX);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        state.waiting.push_back(message);
        drop(state);
        self.filled.notify_one();
        Ok(())
    }

    fn take(&self, limit: Duration) -> Result<T, RecvTimeoutError> {
        let mut state = self.state();
        let mut is_over = limit.is_zero();
        loop {
            if let Some(message) = state.waiting.pop_front() {
                drop(state);
                self.drained.notify_one();
                return Ok(message);
            }
            if state.senders == 0 {
                return Err(RecvTimeoutError::Disconnected);
            }
            if is_over {
                return Err(RecvTimeoutError::Timeout);
            }
            // Woken for a message that another took, it waits anew: no caller here minds.
            let waited = self.filled.wait_timeout(state, limit);
            let (again, by_time) = waited.unwrap_or_else(PoisonError::into_inner);
            (state, is_over) = (again, by_time.timed_out());
        }
    }
}
