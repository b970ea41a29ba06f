//! What differs, found from the roots of two maps down: the source asks, the target answers.
//!
//! ```text
//!   comparison: next difference <--- Descent <--- receiving thread: NODES, SETTLED
//!                                       |  DESCEND, from whichever thread made room for it
//!                                       v
//!                             target: a thread of its own, one answer after the other
//! ```
//! No hash runs ahead of the comparison here, so nothing holds the source back by itself: it
//! announces no more blocks than [`UNSETTLED_MAX`] before the target says that they are settled.

use std::collections::VecDeque;
use std::sync::PoisonError;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use failback_transport::Message;

use super::ledger::WINDOW;
use super::outbox::Outbox;
use super::session::Session;
use super::source_role::map_rejected;
use crate::abort::Abort;
use crate::error::{Error, ErrorKind, Result};
use crate::hash::Digest;
use crate::map::MapFile;
use crate::map::descent::{Descent, QUESTIONS_MAX, Question, Step};
use crate::schedule::channel::{Receiver, Sender};
use crate::schedule::{Condvar, Mutex, MutexGuard, sleep};

/// How often a wait looks whether the job was aborted.
const POLL: Duration = Duration::from_millis(100);
/// Blocks that were announced to the target and are not settled there.
const UNSETTLED_MAX: usize = WINDOW;
/// Messages that wait to be sent before no more answers are made: these are 64 KiB each, and a peer
/// may ask and not take them.
const ANSWERS_QUEUED_MAX: usize = 64;
/// How often it is looked whether the messages before have gone.
const QUEUE_POLL: Duration = Duration::from_millis(2);

/// The source's side, shared by its comparison and its receiving thread.
#[derive(Debug)]
pub(super) struct Descending<'a> {
    state: Mutex<State<'a>>,
    /// An answer has come, or blocks were settled.
    moved: Condvar,
    digest_len: usize,
    total: u64,
}

#[derive(Debug)]
struct State<'a> {
    descent: Descent<'a>,
    /// Blocks given out to be announced that are not settled, in order.
    unsettled: VecDeque<u64>,
    settled: u64,
    /// `None`: nothing more will come, and nothing is asked.
    outbox: Option<Outbox>,
}

impl<'a> Descending<'a> {
    /// Of a session that finds out by its trees what differs; `None` for any other. The first
    /// question is on its way then.
    ///
    /// # Errors
    /// As [`Session::by_tree`]; `MapRejected` for a map that is damaged.
    pub(super) fn begin(session: &'a Session, outbox: &Outbox) -> Result<Option<Self>> {
        let Some((trusted, root)) = session.by_tree()? else {
            return Ok(None);
        };
        let descending = Self {
            state: Mutex::new(State {
                descent: Descent::new(&trusted.map, root).map_err(own)?,
                unsettled: VecDeque::new(),
                settled: 0,
                outbox: Some(outbox.clone()),
            }),
            moved: Condvar::new(),
            digest_len: session.hasher.kind().digest_len(),
            total: session.geometry.block_count().0,
        };
        Self::ask(&mut descending.state());
        Ok(Some(descending))
    }

    fn state(&self) -> MutexGuard<'_, State<'a>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Under the lock: questions have to be sent in the order in which they are noted.
    fn ask(state: &mut State<'_>) {
        let Some(outbox) = &state.outbox else {
            return;
        };
        for question in state.descent.questions() {
            let indices = question.indices.iter();
            let indices = indices.map(|&index| u32::try_from(index).expect("below 2^30"));
            let level = |level: u32| u8::try_from(level).expect("at most 30");
            outbox.send(Message::Descend {
                level: level(question.level),
                down: level(question.down),
                payload: indices.flat_map(u32::to_le_bytes).collect(),
            });
        }
    }

    /// The receiving thread has an answer.
    ///
    /// # Errors
    /// `Protocol` for one that is not the next, or that the root does not stand for;
    /// `MapRejected` when the map of this side is damaged.
    pub(super) fn answer(
        &self,
        level: u8,
        first: u64,
        (digest_len, payload): (usize, &Bytes),
    ) -> Result<()> {
        let digests = payload
            .chunks_exact(self.digest_len)
            .map(Digest::from_slice);
        let digests: Option<Vec<Digest>> = digests.collect();
        let Some(digests) = digests.filter(|_| digest_len == self.digest_len) else {
            return Err(protocol("hashes of another kind than agreed"));
        };
        let mut state = self.state();
        let answered = state.descent.answer(level.into(), first, &digests);
        answered.map_err(own)?;
        Self::ask(&mut state);
        drop(state);
        self.moved.notify_all();
        Ok(())
    }

    /// The target has settled all blocks below `up_to`.
    ///
    /// # Errors
    /// `Protocol` when it goes back or leaves the disk.
    pub(super) fn settled(&self, up_to: u64) -> Result<()> {
        let mut state = self.state();
        if up_to < state.settled || up_to > self.total {
            return Err(protocol("settled blocks out of order"));
        }
        state.settled = up_to;
        while state.unsettled.front().is_some_and(|block| *block < up_to) {
            state.unsettled.pop_front();
        }
        drop(state);
        self.moved.notify_all();
        Ok(())
    }

    /// Nothing more will come: whoever waits finds out why.
    pub(super) fn close(&self) {
        self.state().outbox = None;
        self.moved.notify_all();
    }

    /// Whether blocks have to be settled before the next one. What is announced and compared must
    /// be told before that is waited for.
    pub(super) fn is_full(&self) -> bool {
        self.state().unsettled.len() >= UNSETTLED_MAX
    }

    /// Waits until there is room for one more.
    ///
    /// # Errors
    /// `Cancelled`, `Protocol`.
    pub(super) fn wait_for_room(&self, abort: &Abort) -> Result<()> {
        let mut state = self.state();
        while state.unsettled.len() >= UNSETTLED_MAX {
            state = self.wait(state, abort)?;
        }
        Ok(())
    }

    /// The next step, once it is further than `reached`.
    ///
    /// # Errors
    /// `MapRejected` when the map of this side is damaged, `Cancelled`, `Protocol`.
    pub(super) fn next(&self, reached: u64, abort: &Abort) -> Result<Step> {
        let mut state = self.state();
        loop {
            let step = state.descent.step().map_err(own)?;
            Self::ask(&mut state);
            match step {
                Step::Waits(block) if block <= reached => state = self.wait(state, abort)?,
                Step::Differs(difference) => {
                    state.unsettled.push_back(difference.block);
                    return Ok(step);
                }
                Step::Waits(_) | Step::Ends => return Ok(step),
            }
        }
    }

    fn wait<'g>(
        &self,
        state: MutexGuard<'g, State<'a>>,
        abort: &Abort,
    ) -> Result<MutexGuard<'g, State<'a>>> {
        abort.check()?;
        if state.outbox.is_none() {
            return Err(protocol("a result before the end of the comparison"));
        }
        let waited = self.moved.wait_timeout(state, POLL);
        Ok(waited.unwrap_or_else(PoisonError::into_inner).0)
    }
}

/// The target's receiving thread hands a question on.
///
/// # Errors
/// `Protocol` for more of them than an honest source has under way.
pub(super) fn take_question(
    questions: &Sender<Question>,
    (level, down): (u8, u8),
    payload: &Bytes,
) -> Result<()> {
    if questions.len() >= QUESTIONS_MAX {
        return Err(protocol("asks for more nodes than it may"));
    }
    let (indices, _) = payload.as_chunks::<4>();
    let question = Question {
        level: level.into(),
        down: down.into(),
        indices: indices
            .iter()
            .map(|index| u32::from_le_bytes(*index).into())
            .collect(),
    };
    // Nobody takes it where there is no map, or where the job has failed.
    let sent = questions.send(question);
    sent.map_err(|_| protocol("a message out of place"))
}

/// The target's answering thread.
///
/// # Errors
/// `Protocol` for nodes that there are not, `MapRejected` when the map is damaged, `Cancelled`.
pub(super) fn answer_all(
    map: &MapFile,
    questions: &Receiver<Question>,
    outbox: &Outbox,
    abort: &Abort,
) -> Result<()> {
    for question in questions {
        while outbox.queued() > ANSWERS_QUEUED_MAX {
            abort.check()?;
            sleep(QUEUE_POLL);
        }
        abort.check()?;
        let digests = question.answer(map).map_err(own)?;
        let mut payload = BytesMut::new();
        digests
            .iter()
            .for_each(|digest| payload.extend_from_slice(digest.as_bytes()));
        outbox.send(Message::Nodes {
            level: u8::try_from(question.level).expect("a level of a tree"),
            first: question.indices[0],
            hash_len: u8::try_from(map.hash().digest_len()).expect("16 or 32"),
            payload: payload.freeze(),
        });
    }
    Ok(())
}

/// A map that was believed and cannot be read is one that lies: the job is run again without.
fn own(error: Error) -> Error {
    match error.kind() {
        ErrorKind::Protocol | ErrorKind::Internal => error,
        _ => map_rejected().caused_by(error),
    }
}

fn protocol(message: &str) -> Error {
    Error::new(ErrorKind::Protocol, format!("peer: {message}"))
}
