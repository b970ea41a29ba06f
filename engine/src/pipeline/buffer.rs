//! Recycled block buffers: the bound on memory, and no page faults after the first round.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use crate::error::Result;
use crate::schedule::{Condvar, Mutex};

/// A fixed number of buffers, lent one at a time. The one that came back last is lent first: it is
/// still in the cache, and buffers that are never needed are never touched.
#[derive(Clone, Debug)]
pub struct BufferPool {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    free: Mutex<Vec<Vec<u8>>>,
    /// Buffers that are kept for the next ones.
    count: usize,
    returned: Condvar,
}

/// How often a wait looks whether it is still wanted.
const POLL: Duration = Duration::from_millis(100);

impl BufferPool {
    /// A pool of `count` buffers. Memory is taken when a buffer is first used.
    #[must_use]
    pub fn new(count: usize) -> Self {
        let free = Mutex::new(vec![Vec::new(); count]);
        let returned = Condvar::new();
        Self {
            inner: Arc::new(Inner {
                free,
                count,
                returned,
            }),
        }
    }

    /// A buffer of `len` bytes with unspecified (but initialised) content. Waits for one to come
    /// back; `check` is asked now and then whether to go on waiting.
    ///
    /// # Errors
    /// That of `check`.
    pub fn take(&self, len: usize, check: impl Fn() -> Result<()>) -> Result<PooledBuffer> {
        let mut free = self
            .inner
            .free
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(bytes) = free.pop() {
                drop(free);
                return Ok(self.lend(bytes, len));
            }
            check()?;
            let waited = self.inner.returned.wait_timeout(free, POLL);
            free = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// A buffer if one is free now.
    #[must_use]
    pub fn try_take(&self, len: usize) -> Option<PooledBuffer> {
        let mut free = self
            .inner
            .free
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let bytes = free.pop()?;
        drop(free);
        Some(self.lend(bytes, len))
    }

    /// A buffer that is free now, or else a new one: it costs what new memory costs, and is let go
    /// of when the pool has as many as it was made with. Whoever takes it bounds how many there
    /// are.
    #[must_use]
    pub fn take_or_new(&self, len: usize) -> PooledBuffer {
        self.try_take(len)
            .unwrap_or_else(|| self.lend(Vec::new(), len))
    }

    fn lend(&self, mut bytes: Vec<u8>, len: usize) -> PooledBuffer {
        bytes.resize(len, 0);
        PooledBuffer {
            bytes,
            pool: self.inner.clone(),
        }
    }
}

/// A lent buffer; goes back to its pool when dropped, on whatever thread.
#[derive(Debug)]
pub struct PooledBuffer {
    bytes: Vec<u8>,
    pool: Arc<Inner>,
}

impl PooledBuffer {
    /// The bytes, to be filled.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    /// Keeps the first `len` bytes only.
    pub fn truncate(&mut self, len: usize) {
        self.bytes.truncate(len);
    }
}

impl AsRef<[u8]> for PooledBuffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for PooledBuffer {
    fn drop(&mut self) {
        let mut free = self
            .pool
            .free
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if free.len() < self.pool.count {
            free.push(std::mem::take(&mut self.bytes));
        }
        drop(free);
        self.pool.returned.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abort::Abort;
    use crate::error::ErrorKind;

    // Goal: memory is bounded by the pool. Method: a second take of a pool of one waits until the
    // abort.
    #[test]
    fn an_empty_pool_waits_until_aborted() {
        let abort = Abort::new();
        let pool = BufferPool::new(1);
        let held = pool.take(10, || abort.check()).unwrap();
        abort.cancel();
        let refused = pool.take(10, || abort.check());
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::Cancelled);
        drop(held);
        assert_eq!(pool.take(7, || abort.check()).unwrap().as_ref().len(), 7);
    }
}
