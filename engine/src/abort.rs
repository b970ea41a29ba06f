//! How a job ends early: the caller cancels, or the first error wins. Everybody else stops at the
//! next look.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};

use failback_transport::link::LinkCloser;

use crate::error::{Error, ErrorKind, Result};
use crate::schedule::Mutex;

/// Cancels a job from outside, from any thread, any number of times. Clones are the same token.
#[derive(Clone, Debug, Default)]
pub struct CancelToken {
    cancelled: Arc<AtomicBool>,
}

impl CancelToken {
    /// A token that is not cancelled.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Cancels. Only sets a flag: fit for a signal handler's thread.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::SeqCst);
    }

    /// The flag itself, for signal handlers that can only set one.
    #[must_use]
    pub fn flag(&self) -> Arc<AtomicBool> {
        self.cancelled.clone()
    }

    /// Whether it was cancelled.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::SeqCst)
    }
}

/// The one place where a job's first error is kept.
#[derive(Default)]
pub struct Abort {
    is_set: AtomicBool,
    cancel: CancelToken,
    peer_has_ended: AtomicBool,
    first: Mutex<Option<Error>>,
    closers: Mutex<Vec<Arc<dyn LinkCloser>>>,
}

impl std::fmt::Debug for Abort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Abort")
            .field("is_set", &self.is_set)
            .finish_non_exhaustive()
    }
}

impl Abort {
    /// Nothing has failed yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Nothing has failed yet; `cancel` ends the job from outside.
    #[must_use]
    pub fn with_cancel(cancel: &CancelToken) -> Self {
        Self {
            cancel: cancel.clone(),
            ..Self::default()
        }
    }

    /// Keeps `error` if it is the first, and stops everybody.
    pub fn fail(&self, error: Error) {
        let mut first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert(error);
        self.is_set.store(true, Ordering::SeqCst);
    }

    /// Ends the job as cancelled.
    pub fn cancel(&self) {
        self.fail(Error::new(ErrorKind::Cancelled, "cancelled"));
    }

    /// Whether the job is over.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.is_set.load(Ordering::Relaxed) || self.cancel.is_cancelled()
    }

    /// `Cancelled` once the job is over, whatever the reason: the reason itself is told once, by
    /// [`Abort::verdict`].
    ///
    /// # Errors
    /// As said.
    pub fn check(&self) -> Result<()> {
        match self.is_set() {
            false => Ok(()),
            true => Err(Error::new(ErrorKind::Cancelled, "cancelled")),
        }
    }

    /// `Cancelled` once the caller has cancelled: for work that needs no peer any more, and so does
    /// not end with the link.
    ///
    /// # Errors
    /// As said.
    pub(crate) fn check_cancelled(&self) -> Result<()> {
        match self.cancel.is_cancelled() {
            false => Ok(()),
            true => Err(Error::new(ErrorKind::Cancelled, "cancelled")),
        }
    }

    /// An abort of its own that only the same caller can cancel.
    pub(crate) fn of_same_caller(&self) -> Self {
        Self::with_cancel(&self.cancel)
    }

    /// Runs `step`; its failure ends the job. So does a panic: the other threads would wait for
    /// this one for ever.
    pub fn guard<T>(&self, step: impl FnOnce() -> Result<T>) -> Option<T> {
        let caught = catch_unwind(AssertUnwindSafe(step)).unwrap_or_else(|_| {
            Err(Error::new(
                ErrorKind::Internal,
                "a thread panicked; this is a defect of failback",
            ))
        });
        match caught {
            Ok(value) => Some(value),
            Err(error) => {
                self.fail(error);
                None
            }
        }
    }

    /// Closes `closer` when [`Abort::close_links`] is called.
    pub(crate) fn add_closer(&self, closer: Arc<dyn LinkCloser>) {
        self.closers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(closer);
    }

    /// Ends all waiting on links.
    pub(crate) fn close_links(&self) {
        for closer in self
            .closers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
        {
            closer.close();
        }
    }

    /// Whether the job ended because the peer said so, or because the link did: nobody waits for
    /// our own account then.
    pub(crate) fn is_told_by_peer(&self) -> bool {
        let first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
        let has_ended = self.peer_has_ended.load(Ordering::SeqCst);
        has_ended
            || first
                .as_ref()
                .is_some_and(|error| error.is_from_peer() || error.kind() == ErrorKind::PeerGone)
    }

    /// The peer has said that it ended, whatever ended this side.
    pub(crate) fn peer_has_ended(&self) {
        self.peer_has_ended.store(true, Ordering::SeqCst);
    }

    /// The first error in words for the peer, if there is one.
    pub(crate) fn failure(&self) -> Option<failback_transport::Failure> {
        let first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
        first.as_ref().map(Error::to_wire)
    }

    /// The verdict of the whole job. The first call takes the error away.
    ///
    /// # Errors
    /// The first error; `Cancelled` when the caller cancelled and nothing else had failed.
    pub fn verdict(&self) -> Result<()> {
        match self
            .first
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
        {
            Some(error) => Err(error),
            None => self.check(),
        }
    }
}
