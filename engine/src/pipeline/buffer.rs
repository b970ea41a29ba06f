//! Recycled block buffers: the bound on memory, and no page faults after the first round.

use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};

use crate::abort::Abort;
use crate::error::Result;

/// A fixed number of buffers, lent one at a time.
#[derive(Clone, Debug)]
pub struct BufferPool {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    free: Receiver<Vec<u8>>,
    back: Sender<Vec<u8>>,
}

/// How often a wait looks whether the job has been aborted.
const POLL: Duration = Duration::from_millis(100);

impl BufferPool {
    /// A pool of `count` buffers. Memory is taken when a buffer is first used.
    #[must_use]
    pub fn new(count: usize) -> Self {
        let (back, free) = bounded(count);
        for _ in 0..count {
            back.send(Vec::new())
                .expect("the channel holds count buffers and its receiver is here");
        }
        Self {
            inner: Arc::new(Inner { free, back }),
        }
    }

    /// A buffer of `len` bytes with unspecified (but initialised) content. Waits for one to come
    /// back.
    ///
    /// # Errors
    /// `Cancelled` when the job was aborted meanwhile.
    pub fn take(&self, len: usize, abort: &Abort) -> Result<PooledBuffer> {
        loop {
            match self.inner.free.recv_timeout(POLL) {
                Ok(bytes) => return Ok(self.lend(bytes, len)),
                Err(RecvTimeoutError::Timeout) => abort.check()?,
                Err(RecvTimeoutError::Disconnected) => {
                    unreachable!("the pool holds a sender itself")
                }
            }
        }
    }
}

impl BufferPool {
    /// A buffer if one is free now.
    #[must_use]
    pub fn try_take(&self, len: usize) -> Option<PooledBuffer> {
        self.inner
            .free
            .try_recv()
            .ok()
            .map(|bytes| self.lend(bytes, len))
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
        // Never blocks: there are as many places as buffers.
        drop(self.pool.back.try_send(std::mem::take(&mut self.bytes)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    // Goal: memory is bounded by the pool. Method: a second take of a pool of one waits until the
    // abort.
    #[test]
    fn an_empty_pool_waits_until_aborted() {
        let abort = Abort::new();
        let pool = BufferPool::new(1);
        let held = pool.take(10, &abort).unwrap();
        abort.cancel();
        assert_eq!(
            pool.take(10, &abort).unwrap_err().kind(),
            ErrorKind::Cancelled
        );
        drop(held);
        assert_eq!(pool.take(7, &abort).unwrap().as_ref().len(), 7);
    }
}
