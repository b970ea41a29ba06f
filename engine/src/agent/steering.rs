//! One peer that controls a machine: questions and answers until it says goodbye.

use std::time::{Duration, Instant};

use crossbeam::channel::{RecvTimeoutError, bounded};
use failback_transport::link::IDLE_LIMIT;
use failback_transport::{ControlRequest, Message};

use super::pair::{ServedPair, Visitor};
use super::visit::{out_of_place, refuse};
use crate::abort::CancelToken;
use crate::error::{Error, ErrorKind, Result, peer_error};
use crate::event::{Event, Observer};
use crate::job::{holder, is_name};
use crate::step::Step;
use crate::sync::SessionLink;

/// Questions on one link: a job asks some tens.
const ASKS_MAX: usize = 1024;
/// How often a peer that waits hears that it is not forgotten, and one that has gone is missed.
const ALIVE_EVERY: Duration = Duration::from_secs(1);
/// How often the end of the agent is looked for.
const POLL: Duration = Duration::from_millis(50);

/// Serves a peer that asked for `pair`.
///
/// # Errors
/// What ended it, which the peer was told.
pub(super) fn steer(
    mut link: SessionLink,
    (request, pair): (ControlRequest, &ServedPair),
    observer: &dyn Observer,
    cancel: &CancelToken,
) -> Result<()> {
    let served = converse(&mut link, &request, pair, (observer, cancel));
    match served {
        Ok(()) => Ok(()),
        // It may come back to the next agent.
        Err(error) if error.kind() == ErrorKind::Cancelled => {
            let stopped = Error::new(ErrorKind::PeerGone, "the agent was stopped");
            refuse(link, stopped)
        }
        Err(error) => refuse(link, error),
    }
}

fn converse(
    link: &mut SessionLink,
    request: &ControlRequest,
    pair: &ServedPair,
    (observer, cancel): (&dyn Observer, &CancelToken),
) -> Result<()> {
    refuse_odd(&request.job, "job")?;
    let visitor = Visitor {
        job: request.job.clone(),
        epoch: request.epoch,
        holder: holder(&request.job, &request.token),
    };
    observer.event(&Event::SessionStarted {
        peer: link.peer.clone(),
        grant: request.name.clone(),
        role: "control",
    });
    link.say(&Message::Controlled(pair.info()))?;
    link.receiver
        .set_idle_limit(IDLE_LIMIT)
        .map_err(peer_error)?;
    for _ in 0..ASKS_MAX {
        let ask = match link.hear(IDLE_LIMIT)? {
            Message::Ask(ask) => ask,
            Message::Bye => return Ok(()),
            _ => return Err(out_of_place()),
        };
        refuse_odd(&ask.step, "step")?;
        let told = while_watched(link, cancel, |stop| {
            let step = Step {
                job: &visitor.job,
                name: &ask.step,
                observer,
                cancel: stop,
            };
            pair.answer(&visitor, &ask.what, &step)
        })?;
        link.say(&Message::Told(told))?;
    }
    Err(out_of_place())
}

/// Names become words of commands and names of files.
fn refuse_odd(name: &str, of: &str) -> Result<()> {
    match is_name(name) {
        true => Ok(()),
        false => {
            let shown = crate::error::one_line(name);
            let message = format!("`{shown}` is no name of a {of}");
            Err(Error::new(ErrorKind::Refused, message))
        }
    }
}

/// Does what may take long, tells the peer now and then that it goes on, and ends it when the peer
/// has gone or the agent ends.
fn while_watched<T>(
    link: &mut SessionLink,
    cancel: &CancelToken,
    work: impl FnOnce(&CancelToken) -> T,
) -> T {
    let (done, is_done) = bounded::<()>(0);
    let stop = CancelToken::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let is_done = is_done;
            let mut told = Instant::now();
            while is_done.recv_timeout(POLL) == Err(RecvTimeoutError::Timeout) {
                if cancel.is_cancelled() {
                    stop.cancel();
                }
                if told.elapsed() >= ALIVE_EVERY {
                    told = Instant::now();
                    if link.say(&Message::KeepAlive).is_err() {
                        stop.cancel();
                    }
                }
            }
        });
        let result = work(&stop);
        drop(done);
        result
    })
}
