//! The target's hashes as the source sees them: a queue that the receiving thread fills and the
//! comparison empties in order.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use super::ledger::WINDOW;
use super::outbox::InFlight;
use crate::abort::Abort;
use crate::error::{Error, ErrorKind, Result};
use crate::hash::Digest;
use crate::schedule::channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use crate::schedule::{Condvar, Mutex};
use crate::tree::Leaf;

const POLL: Duration = Duration::from_millis(100);
/// Hashes of one message may come on top of a full window.
const IN_FLIGHT_MAX: u64 = WINDOW as u64 + failback_transport::HASH_COUNT_MAX as u64;

#[derive(Debug)]
enum Piece {
    Zeros(u64),
    Hashes(Bytes),
}

/// The filling end, owned by the receiving thread. It checks that the stream has no gap.
#[derive(Debug)]
pub(super) struct TheirHashes {
    queue: Sender<Piece>,
    in_flight: InFlight,
    reached: Reached,
    next: u64,
    total: u64,
    digest_len: usize,
}

/// Up to which block the target's hashes are here.
///
/// A source that reads further ahead than that keeps one buffer for each block: these fall out of
/// the processor's cache, which makes each read a third dearer, and nothing is won, since no block
/// can be compared before its other hash has come.
#[derive(Clone, Debug, Default)]
pub(super) struct Reached {
    inner: Arc<(Mutex<u64>, Condvar)>,
}

impl Reached {
    /// Waits until the hashes of all blocks before `block` are here, or no more come.
    ///
    /// # Errors
    /// `Cancelled`.
    pub(super) fn wait(&self, block: u64, abort: &Abort) -> Result<()> {
        let (reached, moved) = &*self.inner;
        let mut until = reached.lock().unwrap_or_else(PoisonError::into_inner);
        while *until < block {
            abort.check()?;
            let waited = moved.wait_timeout(until, POLL);
            until = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }

    fn set(&self, block: u64) {
        let (reached, moved) = &*self.inner;
        *reached.lock().unwrap_or_else(PoisonError::into_inner) = block;
        moved.notify_all();
    }
}

/// The emptying end, owned by the comparison.
#[derive(Debug)]
pub(super) struct TheirStream {
    queue: Receiver<Piece>,
    in_flight: InFlight,
    /// Digest of a full block of zeros, which is told apart from data by nothing else.
    zero: Digest,
    front: Option<Piece>,
}

/// A queue for a disk of `total` blocks.
pub(super) fn their_stream(total: u64, zero: Digest) -> (TheirHashes, TheirStream) {
    let digest_len = zero.as_bytes().len();
    let (tx, rx) = unbounded();
    let in_flight = InFlight::default();
    (
        TheirHashes {
            queue: tx,
            in_flight: in_flight.clone(),
            reached: Reached::default(),
            next: 0,
            total,
            digest_len,
        },
        TheirStream {
            queue: rx,
            in_flight,
            zero,
            front: None,
        },
    )
}

impl Drop for TheirHashes {
    // The comparison finds out why nothing comes any more.
    fn drop(&mut self) {
        self.reached.set(u64::MAX);
    }
}

impl TheirHashes {
    /// For who wants to wait for them.
    pub(super) fn reached(&self) -> Reached {
        self.reached.clone()
    }

    /// A run of zero blocks.
    ///
    /// # Errors
    /// `Protocol` for a gap, blocks past the end, or more than the window.
    pub(super) fn zeros(&mut self, first: u64, count: u64) -> Result<()> {
        self.advance(first, count, 1)?;
        drop(self.queue.send(Piece::Zeros(count)));
        self.reached.set(self.next);
        Ok(())
    }

    /// Hashes of neighbouring blocks.
    ///
    /// # Errors
    /// As [`TheirHashes::zeros`], and for hashes of another kind.
    pub(super) fn hashes(&mut self, first: u64, digest_len: usize, hashes: Bytes) -> Result<()> {
        if digest_len != self.digest_len || !hashes.len().is_multiple_of(digest_len) {
            return Err(Error::new(
                ErrorKind::Protocol,
                "peer: hashes of another kind than agreed",
            ));
        }
        let count = (hashes.len() / digest_len) as u64;
        self.advance(first, count, count)?;
        drop(self.queue.send(Piece::Hashes(hashes)));
        self.reached.set(self.next);
        Ok(())
    }

    fn advance(&mut self, first: u64, count: u64, entries: u64) -> Result<()> {
        let end = first
            .checked_add(count)
            .filter(|end| *end <= self.total && first == self.next);
        let Some(end) = end else {
            let message =
                format!("peer: hashes of {count} blocks from {first} leave a gap or the disk");
            return Err(Error::new(ErrorKind::Protocol, message));
        };
        self.next = end;
        match self.in_flight.add(entries) <= IN_FLIGHT_MAX {
            true => Ok(()),
            false => Err(Error::new(
                ErrorKind::Protocol,
                "peer: more hashes than the window allows",
            )),
        }
    }
}

impl TheirStream {
    /// What the target holds from the next block on: one block of data, or up to `limit` of zeros.
    /// Waits for it.
    ///
    /// # Errors
    /// `Protocol` when the stream ends early, `Cancelled`.
    pub(super) fn next(&mut self, limit: u64, abort: &Abort) -> Result<(Leaf, u64)> {
        let mut piece = match self.front.take() {
            Some(piece) => piece,
            None => self.wait(abort)?,
        };
        let mut is_hash = false;
        let (leaf, count, is_empty) = match &mut piece {
            Piece::Zeros(left) => {
                let count = limit.min(*left);
                *left -= count;
                (Leaf::Zero, count, *left == 0)
            }
            Piece::Hashes(left) => {
                let digest = Digest::from_slice(&left.split_to(self.zero.as_bytes().len()));
                let digest = digest.expect("the length was checked");
                is_hash = true;
                let leaf = if digest == self.zero {
                    Leaf::Zero
                } else {
                    Leaf::Data(digest)
                };
                (leaf, 1, left.is_empty())
            }
        };
        if is_empty || is_hash {
            self.in_flight.remove(1);
        }
        if !is_empty {
            self.front = Some(piece);
        }
        Ok((leaf, count))
    }

    fn wait(&self, abort: &Abort) -> Result<Piece> {
        loop {
            match self.queue.recv_timeout(POLL) {
                Ok(piece) => return Ok(piece),
                Err(RecvTimeoutError::Timeout) => abort.check()?,
                Err(RecvTimeoutError::Disconnected) => {
                    abort.check()?;
                    // The receiving thread has ended well: it was given the result, which cannot be
                    // one yet.
                    let message = "peer: a result before the end of the comparison";
                    return Err(Error::new(ErrorKind::Protocol, message));
                }
            }
        }
    }
}
