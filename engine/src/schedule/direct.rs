//! What ships: the primitives themselves.

use std::time::Instant;

use rayon::{ThreadBuilder, ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder};
use uuid::Uuid;

pub(crate) use crossbeam::channel;
pub(crate) use std::sync::{Condvar, Mutex, MutexGuard};
pub(crate) use std::thread::{scope, sleep};

/// Threads that compute; a job on them never waits.
pub(crate) type Pool = ThreadPool;

/// Runs `body` beside a pool of so many threads, which end before this does.
///
/// # Errors
/// Those of the system.
pub(crate) fn with_pool<R>(
    threads: usize,
    body: impl FnOnce(&Pool) -> R,
) -> Result<R, ThreadPoolBuildError> {
    let threads = ThreadPoolBuilder::new().num_threads(threads);
    threads.build_scoped(ThreadBuilder::run, body)
}

/// The present moment.
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// An id that nobody else has.
pub(crate) fn random_id() -> Uuid {
    Uuid::new_v4()
}
