//! Locks, and waiting for what they guard to change.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::{self, LockResult, PoisonError, TryLockError};
use std::time::Duration;

use super::simulation::{Resource, current};

/// As [`std::sync::Mutex`].
#[derive(Debug, Default)]
pub struct Mutex<T> {
    inner: sync::Mutex<T>,
}

/// As [`std::sync::MutexGuard`].
pub struct MutexGuard<'a, T> {
    lock: &'a Mutex<T>,
    /// Taken only by what ends the guard.
    inner: Option<sync::MutexGuard<'a, T>>,
}

impl<T> Mutex<T> {
    /// A lock around `value`.
    pub const fn new(value: T) -> Self {
        let inner = sync::Mutex::new(value);
        Self { inner }
    }

    /// As [`std::sync::Mutex::lock`].
    ///
    /// # Errors
    /// The guard all the same, when a thread panicked that held it.
    pub fn lock(&self) -> LockResult<MutexGuard<'_, T>> {
        let Some(member) = current() else {
            return self.wrapped(self.inner.lock());
        };
        member.pause_rarely();
        loop {
            match self.inner.try_lock() {
                Ok(guard) => return self.wrapped(Ok(guard)),
                Err(TryLockError::Poisoned(guard)) => return self.wrapped(Err(guard)),
                Err(TryLockError::WouldBlock) => {
                    member.block(Some(self.resource()), None);
                }
            }
        }
    }

    fn wrapped<'a>(
        &'a self,
        locked: LockResult<sync::MutexGuard<'a, T>>,
    ) -> LockResult<MutexGuard<'a, T>> {
        let guard = |inner| MutexGuard {
            lock: self,
            inner: Some(inner),
        };
        match locked {
            Ok(inner) => Ok(guard(inner)),
            Err(poisoned) => Err(PoisonError::new(guard(poisoned.into_inner()))),
        }
    }

    fn resource(&self) -> Resource {
        Resource::Address(std::ptr::from_ref(&self.inner).addr())
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.inner.as_ref().expect("a guard that has not ended")
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.inner.as_mut().expect("a guard that has not ended")
    }
}

impl<T: fmt::Debug> fmt::Debug for MutexGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

impl<T> Drop for MutexGuard<'_, T> {
    fn drop(&mut self) {
        if self.inner.take().is_some()
            && let Some(member) = current()
        {
            member.wake(self.lock.resource(), usize::MAX);
        }
    }
}

/// As [`std::sync::Condvar`].
#[derive(Debug, Default)]
pub struct Condvar {
    inner: sync::Condvar,
}

/// Whether a wait ended by its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WaitTimeoutResult(bool);

impl WaitTimeoutResult {
    /// Whether it did.
    #[must_use]
    pub fn timed_out(&self) -> bool {
        self.0
    }
}

impl Condvar {
    /// One that nobody waits for.
    #[must_use]
    pub const fn new() -> Self {
        let inner = sync::Condvar::new();
        Self { inner }
    }

    /// As [`std::sync::Condvar::wait_timeout`].
    ///
    /// # Errors
    /// As [`Mutex::lock`].
    pub fn wait_timeout<'a, T>(
        &self,
        mut guard: MutexGuard<'a, T>,
        limit: Duration,
    ) -> LockResult<(MutexGuard<'a, T>, WaitTimeoutResult)> {
        let lock = guard.lock;
        let Some(member) = current() else {
            let held = guard.inner.take().expect("a guard that has not ended");
            let (held, by_time) = match self.inner.wait_timeout(held, limit) {
                Ok((held, by_time)) => (Ok(held), by_time),
                Err(poisoned) => {
                    let (held, by_time) = poisoned.into_inner();
                    (Err(PoisonError::new(held)), by_time)
                }
            };
            return with(lock.wrapped(held), WaitTimeoutResult(by_time.timed_out()));
        };
        // Nobody else runs between these two.
        drop(guard);
        let by_time = member.block(Some(self.resource()), Some(limit));
        with(lock.lock(), WaitTimeoutResult(by_time))
    }

    /// As [`std::sync::Condvar::notify_one`].
    pub fn notify_one(&self) {
        self.notify(1);
    }

    /// As [`std::sync::Condvar::notify_all`].
    pub fn notify_all(&self) {
        self.notify(usize::MAX);
    }

    fn notify(&self, count: usize) {
        match (current(), count) {
            (Some(member), _) => member.wake(self.resource(), count),
            (None, 1) => self.inner.notify_one(),
            (None, _) => self.inner.notify_all(),
        }
    }

    fn resource(&self) -> Resource {
        Resource::Address(std::ptr::from_ref(&self.inner).addr())
    }
}

fn with<T, U>(locked: LockResult<T>, more: U) -> LockResult<(T, U)> {
    match locked {
        Ok(guard) => Ok((guard, more)),
        Err(poisoned) => Err(PoisonError::new((poisoned.into_inner(), more))),
    }
}
