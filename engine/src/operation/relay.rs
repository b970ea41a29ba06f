//! Both disks are behind agents: their messages pass through here, changes of plan are told, and
//! the closing words are kept for the report.

use std::sync::Arc;

use failback_transport::{Message, MessageReceiver, MessageSender, SourceEnd, TargetResult};

use crate::abort::Abort;
use crate::error::{Error, ErrorKind, Result, peer_error};
use crate::plan::BlockPlan;
use crate::schedule::channel::bounded;
use crate::sync::{Session, SessionLink, watch};
use crate::units::BlockIndex;

/// Messages read from one side and not yet taken by the other.
const QUEUE: usize = 16;

/// Carries a session between the agent that plays the source and the one that plays the target.
///
/// # Errors
/// The first error of either side.
pub(super) fn relay(
    source: SessionLink,
    target: SessionLink,
    session: &Session,
    abort: &Arc<Abort>,
) -> Result<(SourceEnd, TargetResult)> {
    abort.add_closer(source.closer);
    abort.add_closer(target.closer);
    let (mut to_source, mut from_source) = (source.sender, source.receiver);
    let (mut to_target, mut from_target) = (target.sender, target.receiver);
    let (done, is_done) = bounded::<()>(0);
    let (end, result) = std::thread::scope(|scope| {
        scope.spawn(move || watch(&is_done, abort));
        let end = scope.spawn(|| {
            carry(
                &mut from_source,
                &mut to_target,
                &source.peer,
                abort,
                |message| match message {
                    Message::End(end) => Some(end.clone()),
                    Message::Replan {
                        first_block,
                        sends_whole,
                    } => {
                        tell_replan(session, *first_block, *sends_whole);
                        None
                    }
                    _ => None,
                },
            )
        });
        let result = carry(
            &mut from_target,
            &mut to_source,
            &target.peer,
            abort,
            |message| match message {
                Message::Result(result) => Some(result.clone()),
                _ => None,
            },
        );
        let end = end.join().expect("errors are values here");
        drop(done);
        (end, result)
    });
    abort.verdict()?;
    end.zip(result)
        .ok_or_else(|| Error::new(ErrorKind::Protocol, "peer: ended without a result"))
}

/// The target's agent refuses a block that there is not.
fn tell_replan(session: &Session, first_block: u64, sends_whole: bool) {
    if first_block < session.geometry.block_count().0 {
        let from = session.geometry.start_of(BlockIndex(first_block)).0;
        session
            .progress
            .replanned(from, BlockPlan::of_wire(sends_whole));
    }
}

/// Carries one direction until its side closes, says goodbye, or fails; then the other direction
/// ends by itself.
fn carry<T: Send>(
    from: &mut MessageReceiver,
    to: &mut MessageSender,
    peer: &str,
    abort: &Abort,
    last_word: impl Fn(&Message) -> Option<T> + Send,
) -> Option<T> {
    let (queue, queued) = bounded::<Message>(QUEUE);
    std::thread::scope(|scope| {
        // Ends with this closure, and then the sending thread does too.
        let queue = queue;
        scope.spawn(move || {
            while let Ok(message) = queued.recv() {
                let is_drained = queued.is_empty();
                let sent = to
                    .send(&message)
                    .and_then(|()| if is_drained { to.flush() } else { Ok(()) });
                if abort.guard(|| sent.map_err(peer_error)).is_none() {
                    return abort.close_links();
                }
            }
        });
        let mut found = None;
        loop {
            match from.recv() {
                Ok(message) => {
                    found = found.or_else(|| last_word(&message));
                    let is_last = matches!(message, Message::Bye | Message::Result(_));
                    if let Message::Failure(failure) = &message {
                        abort.fail(Error::from_wire(failure, peer));
                    }
                    let is_over = queue.send(message).is_err() || is_last || abort.is_set();
                    if is_over {
                        return found;
                    }
                }
                Err(error) => {
                    // After a cancel the link's end is only its consequence.
                    abort.fail(abort.check().err().unwrap_or_else(|| peer_error(error)));
                    abort.close_links();
                    return found;
                }
            }
        }
    })
}
