//! What both roles do around their own work: a thread that sends, and an end to all waiting when
//! the job is over.

use std::time::Duration;

use failback_transport::{Message, MessageReceiver, MessageSender};

use super::outbox::Outgoing;
use crate::abort::Abort;
use crate::error::{Error, Result, peer_error};
use crate::schedule::channel::{Receiver, RecvTimeoutError};
use crate::schedule::{now, sleep};

/// How often somebody looks whether the job was aborted.
const POLL: Duration = Duration::from_millis(100);
/// How long an aborted job tries to tell its peer why, before the link is cut.
const FAREWELL: Duration = Duration::from_secs(3);
/// How long a broken link waits for the peer's reason, which may have arrived before the break.
const GRACE: Duration = Duration::from_millis(500);
const GRACE_POLL: Duration = Duration::from_millis(10);

/// Sends what the role queues; whatever ends it early ends the job.
///
/// A job that fails by itself leaves the link open when it has told the peer why: closing a socket
/// with unread input can destroy what is still on its way out. The peer closes, or [`watch`] does.
pub(super) fn pump(outgoing: Outgoing, sender: &mut MessageSender, abort: &Abort) {
    if let Err(error) = outgoing.pump(sender, abort) {
        // The peer that stopped taking may have said why: the receiving thread will tell.
        let deadline = now() + GRACE;
        while !abort.is_set() && now() < deadline {
            sleep(GRACE_POLL);
        }
        abort.fail(error);
        abort.close_links();
    } else if abort.is_told_by_peer() {
        abort.close_links();
    }
}

/// Takes what the peer still sends after this side has failed, until the link is closed. It is
/// closed at once when the peer knows: it was the one that said so.
pub(super) fn drain(receiver: &mut MessageReceiver, abort: &Abort) {
    while !abort.is_told_by_peer() {
        match receiver.recv() {
            Ok(Message::Failure(_)) => abort.peer_has_ended(),
            Ok(_) => {}
            Err(_) => return,
        }
    }
    abort.close_links();
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
            let deadline = deadline.get_or_insert_with(|| now() + FAREWELL);
            if now() >= *deadline {
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
            Message::Failure(failure) => {
                abort.peer_has_ended();
                return Err(Error::from_wire(&failure, peer));
            }
            message => return Ok(message),
        }
    }
}
