//! The target's hashes on their way: neighbours travel as one message.

use bytes::BytesMut;
use failback_transport::Message;

use super::outbox::Outbox;
use crate::hash::{Digest, Hasher};
use crate::tree::Leaf;
use crate::units::Geometry;

/// Hashes that travel as one message: enough to make the frame's head cheap, few enough not to keep
/// the source waiting.
const HASHES_PER_MESSAGE: usize = 32;

/// Runs of zero blocks up to this long travel as hashes: their own message would cost more.
const ZERO_RUN_MIN: u64 = 4;
/// A run of zero blocks is told after this many, so that the source can go on meanwhile.
const ZERO_RUN_MAX: u64 = 64;

/// Collects neighbouring hashes, and neighbouring zero blocks, into one message.
pub(super) struct HashBatch<'a> {
    outbox: &'a Outbox,
    /// Digest of a full block of zeros.
    zero: Digest,
    /// Blocks that are full, and so have that digest when they are zero.
    full_count: u64,
    first: u64,
    next: u64,
    hashes: BytesMut,
    /// Zero blocks before `next` that are in no message yet.
    zeros: u64,
}

impl<'a> HashBatch<'a> {
    pub(super) fn new(outbox: &'a Outbox, hasher: &Hasher, geometry: &Geometry) -> Self {
        let block_len = geometry.block_size().len();
        Self {
            outbox,
            zero: hasher.zero_leaf(geometry.block_size()),
            full_count: geometry.disk_len() / block_len as u64,
            first: 0,
            next: 0,
            hashes: BytesMut::new(),
            zeros: 0,
        }
    }

    pub(super) fn push(&mut self, leaf: Leaf, count: u64) {
        match leaf {
            Leaf::Zero => {
                self.zeros += count;
                self.next += count;
                if self.zeros >= ZERO_RUN_MAX {
                    self.flush();
                }
            }
            Leaf::Data(digest) => {
                self.settle_zeros();
                self.hashes.extend_from_slice(digest.as_bytes());
                self.next += 1;
            }
        }
        if self.hashes.len() >= HASHES_PER_MESSAGE * self.zero.as_bytes().len() {
            self.flush();
        }
    }

    pub(super) fn flush(&mut self) {
        self.settle_zeros();
        self.flush_hashes(self.next);
    }

    /// Puts the waiting zero blocks where they are cheapest.
    fn settle_zeros(&mut self) {
        let count = std::mem::take(&mut self.zeros);
        if count == 0 {
            return;
        }
        if count < ZERO_RUN_MIN && self.next <= self.full_count {
            (0..count).for_each(|_| self.hashes.extend_from_slice(self.zero.as_bytes()));
            return;
        }
        let first_block = self.next - count;
        self.flush_hashes(first_block);
        self.outbox.send(Message::ZeroBlocks { first_block, count });
        self.first = self.next;
    }

    fn flush_hashes(&mut self, end: u64) {
        if !self.hashes.is_empty() {
            self.outbox.send(Message::Hashes {
                first_block: self.first,
                hash_len: u8::try_from(self.zero.as_bytes().len()).expect("16 or 32"),
                payload: self.hashes.split().freeze(),
            });
        }
        self.first = end;
    }
}
