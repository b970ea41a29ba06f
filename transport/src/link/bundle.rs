//! Several connections as one link, for what a single one cannot carry.
//!
//! ```text
//! send -> pieces with numbers -> [ queue ] -> a thread for each connection, as it is free
//! recv <- pieces in order <- [ those that came early ] <- a thread for each connection
//!
//! piece    0            8         12
//!          | number u64 | len u32 | bytes |       numbers from 0, each once; little-endian
//! ```
//! Numbers ascend on each connection, so the piece that is waited for never stands behind one that
//! came early, and what came early can be bounded. The bytes have their sums inside; a wrong number
//! is found here or by them.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::{HANDSHAKE_LIMIT, Link, LinkCloser, LinkReceiver, LinkSender};

/// Connections of one link at most.
pub const LINKS_MAX: usize = 8;

/// The links as one. Both ends have to do so with the two ends of the same connections, in any
/// order. Each connection has a thread for each direction; those that send end when the sending
/// half is dropped, which waits until the queue is empty, those that receive with the other half.
///
/// # Errors
///
/// `InvalidInput` for none or more than [`LINKS_MAX`]; those of the system when it starts a thread.
pub fn bundle(links: Vec<Link>) -> io::Result<Link> {
    if links.is_empty() || links.len() > LINKS_MAX {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let shared = Arc::new(Shared {
        out: Mutex::default(),
        out_changed: Condvar::new(),
        input: Mutex::new(Input {
            reading: links.len(),
            ..Input::default()
        }),
        input_changed: Condvar::new(),
        inner: links.iter().map(|link| Arc::clone(&link.closer)).collect(),
    });
    shared.out().sending = links.len();
    let peer = format!("{} by {} connections", links[0].peer, links.len());
    let mut sender = BundleSender {
        shared: Arc::clone(&shared),
        threads: Vec::new(),
    };
    let mut receiver = BundleReceiver {
        shared: Arc::clone(&shared),
        limit: HANDSHAKE_LIMIT,
        threads: Vec::new(),
    };
    for link in links {
        let (mut inner_sender, mut inner_receiver) = (link.sender, link.receiver);
        inner_receiver.set_idle_limit(LOOK_EVERY)?;
        let spawn = |name: &str| Builder::new().name(name.to_owned());
        let of_thread = Arc::clone(&shared);
        sender.threads.push(spawn("bundle send").spawn(move || {
            let outcome = of_thread.carry_out(&mut *inner_sender);
            drop(inner_sender);
            of_thread.end_sending(outcome);
        })?);
        let of_thread = Arc::clone(&shared);
        receiver.threads.push(spawn("bundle recv").spawn(move || {
            let outcome = of_thread.carry_in(inner_receiver);
            of_thread.end_reading(outcome);
        })?);
    }
    Ok(Link {
        sender: Box::new(sender),
        receiver: Box::new(receiver),
        closer: Arc::new(BundleCloser { shared }),
        trusted_memory: false,
        peer,
    })
}

struct Shared {
    out: Mutex<Out>,
    out_changed: Condvar,
    input: Mutex<Input>,
    input_changed: Condvar,
    inner: Vec<Arc<dyn LinkCloser>>,
}

/// Bytes to the peer.
#[derive(Default)]
struct Out {
    queue: VecDeque<Vec<Bytes>>,
    /// Bytes that were given and not handed to a connection.
    queued_len: usize,
    /// Number of the first piece in the queue.
    first: u64,
    is_closed: bool,
    sender_left: bool,
    /// Threads that go on.
    sending: usize,
    failure: Option<io::ErrorKind>,
}

/// Bytes from the peer.
#[derive(Default)]
struct Input {
    /// Pieces that came before their turn, by number.
    early: BTreeMap<u64, Bytes>,
    /// The number that is next.
    next: u64,
    is_closed: bool,
    receiver_left: bool,
    /// Threads that go on.
    reading: usize,
    failure: Option<io::ErrorKind>,
}

fn wait<'a, T>(changed: &Condvar, state: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
    changed.wait(state).unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    // Nothing below can panic halfway through a change, so a poisoned state is a good one.
    fn out(&self) -> MutexGuard<'_, Out> {
        self.out.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn input(&self) -> MutexGuard<'_, Input> {
        self.input.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) {
        self.out().is_closed = true;
        self.input().is_closed = true;
        self.out_changed.notify_all();
        self.input_changed.notify_all();
        self.inner.iter().for_each(|closer| closer.close());
    }

    /// A sending thread: hands pieces to its connection until nothing follows.
    fn carry_out(&self, inner: &mut dyn LinkSender) -> io::Result<()> {
        let mut out = self.out();
        loop {
            if out.is_closed || out.failure.is_some() {
                return Ok(());
            }
            let Some(piece) = out.queue.pop_front() else {
                if out.sender_left {
                    return Ok(());
                }
                out = wait(&self.out_changed, out);
                continue;
            };
            let number = out.first;
            out.first += 1;
            drop(out);
            let len = piece.iter().map(Bytes::len).sum::<usize>();
            let mut parts = Vec::with_capacity(piece.len() + 1);
            parts.push(head(number, len));
            parts.extend(piece);
            inner.send(&parts)?;
            drop(parts);
            out = self.out();
            out.queued_len = out.queued_len.saturating_sub(len);
            self.out_changed.notify_all();
        }
    }

    fn end_sending(&self, outcome: io::Result<()>) {
        let mut out = self.out();
        out.sending -= 1;
        out.failure = out.failure.or(outcome.err().map(|error| error.kind()));
        drop(out);
        self.out_changed.notify_all();
    }

    /// A receiving thread: takes pieces from its connection until that ends.
    fn carry_in(&self, inner: Box<dyn LinkReceiver>) -> io::Result<()> {
        let mut pieces = Pieces {
            shared: self,
            inner,
            rest: Bytes::new(),
        };
        while let Some(mut head) = pieces.take(HEAD_LEN, true)? {
            let (number, len) = (head.get_u64_le(), head.get_u32_le());
            let len = usize::try_from(len).unwrap_or(usize::MAX);
            if len == 0 || len > PIECE_LEN_MAX {
                return Err(io::ErrorKind::InvalidData.into());
            }
            match pieces.take(len, false)? {
                Some(bytes) => self.arrived(number, bytes)?,
                None => return Ok(()),
            }
        }
        Ok(())
    }

    fn arrived(&self, number: u64, bytes: Bytes) -> io::Result<()> {
        let mut input = self.input();
        while number.saturating_sub(input.next) >= EARLY_MAX && !input.is_over() {
            input = wait(&self.input_changed, input);
        }
        if number < input.next || input.early.insert(number, bytes).is_some() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        drop(input);
        self.input_changed.notify_all();
        Ok(())
    }

    fn end_reading(&self, outcome: io::Result<()>) {
        let mut input = self.input();
        input.reading -= 1;
        input.failure = input.failure.or(outcome.err().map(|error| error.kind()));
        drop(input);
        self.input_changed.notify_all();
    }
}

impl Input {
    /// Nobody wants more.
    fn is_over(&self) -> bool {
        self.is_closed || self.receiver_left || self.failure.is_some()
    }
}

fn head(number: u64, len: usize) -> Bytes {
    let mut head = BytesMut::with_capacity(HEAD_LEN);
    head.put_u64_le(number);
    head.put_u32_le(u32::try_from(len).expect("a piece is at most PIECE_LEN_MAX"));
    head.freeze()
}

/// Reads one connection in pieces.
struct Pieces<'a> {
    shared: &'a Shared,
    inner: Box<dyn LinkReceiver>,
    rest: Bytes,
}

impl Pieces<'_> {
    /// The next `len` bytes, at most [`PIECE_LEN_MAX`]. `None`: nobody wants more, or the
    /// connection has ended where it may.
    fn take(&mut self, len: usize, may_end: bool) -> io::Result<Option<Bytes>> {
        if self.rest.len() >= len {
            return Ok(Some(self.rest.split_to(len)));
        }
        let mut taken = BytesMut::with_capacity(len);
        taken.extend_from_slice(&std::mem::take(&mut self.rest));
        while taken.len() < len {
            match self.inner.recv() {
                Ok(Some(mut bytes)) => {
                    let missing = bytes.len().min(len - taken.len());
                    taken.extend_from_slice(&bytes.split_to(missing));
                    self.rest = bytes;
                }
                Ok(None) if may_end && taken.is_empty() => return Ok(None),
                Ok(None) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Err(error) if is_idle(&error) => {
                    if self.shared.input().is_over() {
                        return Ok(None);
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Some(taken.freeze()))
    }
}

fn is_idle(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock
    )
}

struct BundleSender {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl BundleSender {
    fn queue(&self, piece: Vec<Bytes>, len: usize) -> io::Result<()> {
        let mut out = self.shared.out();
        loop {
            if let Some(kind) = out.failure {
                return Err(kind.into());
            }
            if out.is_closed {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            if out.queued_len == 0 || out.queued_len + len <= QUEUE_LEN_MAX {
                break;
            }
            out = wait(&self.shared.out_changed, out);
        }
        out.queued_len += len;
        out.queue.push_back(piece);
        drop(out);
        self.shared.out_changed.notify_all();
        Ok(())
    }
}

impl LinkSender for BundleSender {
    fn send(&mut self, parts: &[Bytes]) -> io::Result<()> {
        let (mut piece, mut len) = (Vec::new(), 0);
        for part in parts {
            let mut part = part.clone();
            while !part.is_empty() {
                let taken = part.split_to(part.len().min(PIECE_LEN_MAX - len));
                len += taken.len();
                piece.push(taken);
                if len == PIECE_LEN_MAX {
                    self.queue(std::mem::take(&mut piece), std::mem::take(&mut len))?;
                }
            }
        }
        match len {
            0 => Ok(()),
            _ => self.queue(piece, len),
        }
    }
}

impl Drop for BundleSender {
    fn drop(&mut self) {
        let until = Instant::now() + LINGER;
        let shared = &self.shared;
        let mut out = shared.out();
        out.sender_left = true;
        shared.out_changed.notify_all();
        while out.sending > 0 && out.failure.is_none() && Instant::now() < until {
            let left = until.saturating_duration_since(Instant::now());
            let waited = shared.out_changed.wait_timeout(out, left);
            out = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        let is_sent = out.sending == 0;
        drop(out);
        if !is_sent {
            // The peer takes nothing, or is gone.
            shared.close();
        }
        for thread in self.threads.drain(..) {
            // It has no panic to tell of but one of the inner link.
            drop(thread.join());
        }
    }
}

struct BundleReceiver {
    shared: Arc<Shared>,
    limit: Duration,
    threads: Vec<JoinHandle<()>>,
}

impl LinkReceiver for BundleReceiver {
    fn recv(&mut self) -> io::Result<Option<Bytes>> {
        let until = Instant::now() + self.limit;
        let mut input = self.shared.input();
        loop {
            if input.is_closed {
                return Ok(None);
            }
            let next = input.next;
            if let Some(bytes) = input.early.remove(&next) {
                input.next += 1;
                drop(input);
                self.shared.input_changed.notify_all();
                return Ok(Some(bytes));
            }
            if let Some(kind) = input.failure {
                return Err(kind.into());
            }
            if input.reading == 0 {
                return match input.early.is_empty() {
                    true => Ok(None),
                    false => Err(io::ErrorKind::UnexpectedEof.into()),
                };
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let waited = self.shared.input_changed.wait_timeout(input, left);
            input = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn set_idle_limit(&mut self, limit: Duration) -> io::Result<()> {
        self.limit = limit;
        Ok(())
    }
}

impl Drop for BundleReceiver {
    fn drop(&mut self) {
        self.shared.input().receiver_left = true;
        self.shared.input_changed.notify_all();
        for thread in self.threads.drain(..) {
            // It has no panic to tell of but one of the inner link.
            drop(thread.join());
        }
    }
}

struct BundleCloser {
    shared: Arc<Shared>,
}

impl LinkCloser for BundleCloser {
    fn close(&self) {
        self.shared.close();
    }
}

const HEAD_LEN: usize = 12;

/// Bytes of a piece at most: so many that a header does not matter, so few that a block uses
/// several connections.
const PIECE_LEN_MAX: usize = 256 << 10;

/// Bytes that wait for a connection.
const QUEUE_LEN_MAX: usize = 4 << 20;

/// Pieces that may come before their turn: 16 MiB.
const EARLY_MAX: u64 = 64;

/// How often a receiving thread looks whether anybody wants what it waits for.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// How long a dropped sender waits for a peer that takes nothing.
const LINGER: Duration = Duration::from_secs(5);
