//! Threads that end before the one that began them.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{self, PoisonError};
use std::thread;

use super::simulation::current;

/// As [`std::thread::Scope`].
#[derive(Debug)]
pub struct Scope<'scope, 'env: 'scope> {
    inner: &'scope thread::Scope<'scope, 'env>,
    /// Threads of the simulation that were begun here.
    begun: sync::Mutex<Vec<usize>>,
}

/// As [`std::thread::ScopedJoinHandle`].
#[derive(Debug)]
pub struct ScopedJoinHandle<'scope, T> {
    inner: thread::ScopedJoinHandle<'scope, T>,
    number: Option<usize>,
}

/// As [`std::thread::scope`].
pub fn scope<'env, T>(body: impl for<'scope> FnOnce(&Scope<'scope, 'env>) -> T) -> T {
    thread::scope(|inner| {
        let begun = sync::Mutex::default();
        let scope = Scope { inner, begun };
        let Some(member) = current() else {
            return body(&scope);
        };
        let ended = catch_unwind(AssertUnwindSafe(|| body(&scope)));
        // Who waits for a real thread would keep all others from running.
        let begun = scope.begun.into_inner();
        for number in begun.unwrap_or_else(PoisonError::into_inner) {
            member.wait_for(number);
        }
        ended.unwrap_or_else(|panic| resume_unwind(panic))
    })
}

impl<'scope> Scope<'scope, '_> {
    /// As [`std::thread::Scope::spawn`].
    pub fn spawn<T: Send + 'scope>(
        &self,
        body: impl FnOnce() -> T + Send + 'scope,
    ) -> ScopedJoinHandle<'scope, T> {
        let Some(member) = current() else {
            let inner = self.inner.spawn(body);
            return ScopedJoinHandle {
                inner,
                number: None,
            };
        };
        let new = member.begin_thread();
        let number = new.number();
        let mut begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        begun.push(number);
        drop(begun);
        let inner = self.inner.spawn(move || new.run(body));
        member.pause_rarely();
        ScopedJoinHandle {
            inner,
            number: Some(number),
        }
    }
}

impl<T> ScopedJoinHandle<'_, T> {
    /// As [`std::thread::ScopedJoinHandle::join`].
    ///
    /// # Errors
    /// What the thread panicked with.
    pub fn join(self) -> thread::Result<T> {
        if let (Some(member), Some(number)) = (current(), self.number) {
            member.wait_for(number);
        }
        self.inner.join()
    }
}
