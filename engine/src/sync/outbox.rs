//! The sending half of a session: one queue, one thread that owns the link's sender.
//!
//! The queue itself has no bound. What may wait in it has: data holds buffers of a bounded pool,
//! answers are owed to a bounded number of questions, hashes run ahead by a bounded window. So no
//! thread that receives ever blocks on sending.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use failback_transport::{Message, MessageSender};

use super::compressor::LinkPace;
use crate::abort::Abort;
use crate::error::{Error, ErrorKind, Result, peer_error};
use crate::schedule::channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use crate::schedule::now;

/// A peer that hears nothing for a minute gives up; we speak up well before.
pub(crate) const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// How often an idle sender looks whether the job was aborted.
const POLL: Duration = Duration::from_millis(100);

/// Where all threads of a role put their messages. Dropping the last clone ends the stream.
#[derive(Clone, Debug)]
pub(crate) struct Outbox {
    queue: Sender<Message>,
    pace: LinkPace,
}

/// The other end of an [`Outbox`].
#[derive(Debug)]
pub(crate) struct Outgoing {
    queue: Receiver<Message>,
    pace: LinkPace,
}

impl Outbox {
    pub(crate) fn new() -> (Self, Outgoing) {
        let (queue, rest) = unbounded();
        let pace = LinkPace::default();
        let outbox = Self {
            queue,
            pace: pace.clone(),
        };
        (outbox, Outgoing { queue: rest, pace })
    }

    /// Messages that wait to be sent.
    pub(crate) fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Queues a message; never waits. After the end of the session it goes nowhere.
    pub(crate) fn send(&self, message: Message) {
        if let Message::Data(data) = &message {
            self.pace.queued(data.payload.len() as u64);
        }
        drop(self.queue.send(message));
    }
}

impl Outgoing {
    /// What the link takes, measured while this sends.
    pub(crate) fn pace(&self) -> LinkPace {
        self.pace.clone()
    }

    /// Sends until all outboxes are gone, or until the job is aborted: then tells the peer why, and
    /// ends.
    pub(crate) fn pump(self, link: &mut MessageSender, abort: &Abort) -> Result<()> {
        let mut last_sent = now();
        loop {
            if abort.is_set() {
                return tell_why(link, abort);
            }
            match self.queue.recv_timeout(POLL) {
                Ok(message) => {
                    self.send_all(link, message).map_err(peer_error)?;
                    last_sent = now();
                }
                Err(RecvTimeoutError::Timeout) if now() - last_sent >= KEEP_ALIVE => {
                    link.send(&Message::KeepAlive)
                        .and_then(|()| link.flush())
                        .map_err(peer_error)?;
                    last_sent = now();
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) if abort.is_set() => {
                    return tell_why(link, abort);
                }
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
        }
    }

    fn send_all(&self, link: &mut MessageSender, first: Message) -> failback_transport::Result<()> {
        self.send(link, &first)?;
        drop(first);
        while let Ok(message) = self.queue.try_recv() {
            self.send(link, &message)?;
        }
        link.flush()
    }

    fn send(&self, link: &mut MessageSender, message: &Message) -> failback_transport::Result<()> {
        match message {
            Message::Data(data) => {
                let len = data.payload.len() as u64;
                self.pace.watch(len, || link.send(message))
            }
            _ => link.send(message),
        }
    }
}

fn tell_why(link: &mut MessageSender, abort: &Abort) -> Result<()> {
    let cancelled = || Error::new(ErrorKind::Cancelled, "cancelled by the other side").to_wire();
    let failure = abort.failure().unwrap_or_else(cancelled);
    // The link may be what failed; then there is nobody to tell.
    drop(
        link.send(&Message::Failure(failure))
            .and_then(|()| link.flush()),
    );
    Ok(())
}

/// Counts hashes that are under way in one direction.
#[derive(Clone, Debug, Default)]
pub(crate) struct InFlight(Arc<AtomicU64>);

impl InFlight {
    pub(crate) fn add(&self, count: u64) -> u64 {
        self.0.fetch_add(count, Ordering::SeqCst) + count
    }

    pub(crate) fn remove(&self, count: u64) {
        self.0.fetch_sub(count, Ordering::SeqCst);
    }
}
