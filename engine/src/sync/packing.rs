//! The source's differing blocks on their way out: announced, waiting for sums, packed on the pool.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use failback_transport::{Digest, Message, Task};

use super::outbox::Outbox;
use super::pack::{Packed, Packer};
use super::regions::DirtyShare;
use super::session::{SessionOptions, SessionProgress};
use crate::abort::Abort;
use crate::error::Result;
use crate::pipeline::PooledBuffer;
use crate::schedule::{Condvar, Mutex, MutexGuard, Pool};

/// How often a wait looks whether the job was aborted.
const POLL: Duration = Duration::from_millis(100);
/// Blocks that may wait for sums, or to be packed. The target takes twice as many.
pub(super) const OUTSTANDING_MAX: u64 = 512;

/// A differing block that waits for the target's sub-block sums.
#[derive(Debug)]
pub(super) struct Announced {
    pub(super) digest: Digest,
    /// `None`: they were not kept, and what is needed of them is read again.
    pub(super) bytes: Option<PooledBuffer>,
}

/// By number.
pub(super) type Waiting = Mutex<HashMap<u64, Announced>>;

pub(super) fn locked(waiting: &Waiting) -> MutexGuard<'_, HashMap<u64, Announced>> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) changed: AtomicU64,
    pub(super) raw: AtomicU64,
    pub(super) sent: AtomicU64,
}

/// What every packing job needs.
#[derive(Debug)]
pub(super) struct Packing {
    pub(super) options: SessionOptions,
    pub(super) packer: Packer,
    pub(super) abort: Arc<Abort>,
    pub(super) outstanding: Outstanding,
    pub(super) counts: Counts,
    pub(super) dirty_share: DirtyShare,
    pub(super) progress: Arc<SessionProgress>,
}

/// Blocks that were announced and are not queued for sending yet.
#[derive(Debug, Default)]
pub(super) struct Outstanding {
    pub(super) count: Mutex<u64>,
    pub(super) has_sunk: Condvar,
}

impl Outstanding {
    pub(super) fn add(&self) {
        *self.count.lock().unwrap_or_else(PoisonError::into_inner) += 1;
    }

    pub(super) fn remove(&self) {
        let mut count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        *count -= 1;
        if *count == 0 || *count == OUTSTANDING_MAX - 1 {
            self.has_sunk.notify_all();
        }
    }

    pub(super) fn wait_until_none(&self, abort: &Abort) -> Result<()> {
        self.wait_until_below(1, abort)
    }

    pub(super) fn wait_until_below(&self, max: u64, abort: &Abort) -> Result<()> {
        let mut count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        while *count >= max {
            abort.check()?;
            let waited = self.has_sunk.wait_timeout(count, POLL);
            count = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        abort.check()
    }
}

/// Packs blocks on the pool; a job computes and queues, it never waits.
#[derive(Clone)]
pub(super) struct Jobs<'p> {
    pub(super) pool: &'p Pool,
    pub(super) outbox: Outbox,
    pub(super) packing: Arc<Packing>,
}

impl Jobs<'_> {
    pub(super) fn spawn(&self, pack: impl FnOnce(&Packing) -> Result<Packed> + Send + 'static) {
        let (outbox, packing) = (self.outbox.clone(), self.packing.clone());
        self.pool.spawn(move || {
            packing.abort.guard(|| {
                let packed = pack(&packing)?;
                packing.send(packed, &outbox);
                packing.outstanding.remove();
                Ok(())
            });
        });
    }
}

impl Packing {
    pub(super) fn send(
        &self,
        Packed {
            data, changed_len, ..
        }: Packed,
        outbox: &Outbox,
    ) {
        let sent = data.payload.len() as u64;
        if self.options.task != Task::Full {
            self.counts
                .changed
                .fetch_add(changed_len, Ordering::Relaxed);
            let len = self.options.block_size.len() as u64;
            self.progress.settled.fetch_add(len, Ordering::Relaxed);
        }
        self.counts
            .raw
            .fetch_add(u64::from(data.raw_len), Ordering::Relaxed);
        self.counts.sent.fetch_add(sent, Ordering::Relaxed);
        self.progress.payload.fetch_add(sent, Ordering::Relaxed);
        outbox.send(Message::Data(data));
    }
}
