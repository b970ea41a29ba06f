//! What both roles do around their own work: a thread that sends, and an end to all waiting when
//! the job is over.

use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, RecvTimeoutError};
use failback_transport::{Message, MessageReceiver, MessageSender};

use super::outbox::Outgoing;
use crate::abort::Abort;
use crate::error::{Error, Result, peer_error};

/// How often somebody looks whether the job was aborted.
const POLL: Duration = Duration::from_millis(100);
/// How long an aborted job tries to tell its peer why, before the link is cut.
const FAREWELL: Duration = Duration::from_secs(3);

/// Sends what the role queues. Whatever ends it early ends the job, and a job that was aborted ends
/// the link.
pub(super) fn pump(outgoing: Outgoing, sender: &mut MessageSender, abort: &Abort) {
    abort.guard(|| outgoing.pump(sender, abort));
    if abort.is_set() {
        abort.close_links();
    }
}

/// Cuts the link of an aborted job whose farewell does not get through. Ends when `done` does.
pub(crate) fn watch(done: &Receiver<()>, abort: &Abort) {
    let mut deadline = None;
    loop {
        match done.recv_timeout(POLL) {
            Err(RecvTimeoutError::Timeout) => {}
            _ => return,
        }
        if abort.is_set() {
            let deadline = deadline.get_or_insert_with(|| Instant::now() + FAREWELL);
            if Instant::now() >= *deadline {
                return abort.close_links();
            }
        }
    }
}

/// The next message that is about the session; a failure of the peer is an error here.
pub(super) fn receive(
    receiver: &mut MessageReceiver,
    peer: &str,
    abort: &Abort,
) -> Result<Message> {
    loop {
        // An error after the abort is only the link being closed.
        let message = receiver.recv().map_err(|e| match abort.check() {
            Ok(()) => peer_error(e),
            Err(cancelled) => cancelled,
        })?;
        match message {
            Message::KeepAlive => {}
            Message::Failure(failure) => return Err(Error::from_wire(&failure, peer)),
            message => return Ok(message),
        }
    }
}
