//! Bytes counted where they enter and leave the link.

use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes that went over one link, headers included; shared, and read at any time.
#[derive(Debug, Default)]
pub struct Counters {
    out: AtomicU64,
    in_: AtomicU64,
}

impl Counters {
    /// Bytes that the link took for the peer. Messages not yet flushed are not counted.
    #[must_use]
    pub fn bytes_out(&self) -> u64 {
        self.out.load(Ordering::Relaxed)
    }

    /// Bytes that came from the peer.
    #[must_use]
    pub fn bytes_in(&self) -> u64 {
        self.in_.load(Ordering::Relaxed)
    }

    pub(crate) fn add_out(&self, len: u64) {
        self.out.fetch_add(len, Ordering::Relaxed);
    }

    pub(crate) fn add_in(&self, len: u64) {
        self.in_.fetch_add(len, Ordering::Relaxed);
    }
}
