//! The target's hashes on their way: neighbours travel as one message.

use bytes::BytesMut;
use failback_transport::Message;

use super::outbox::Outbox;
use crate::tree::Leaf;

/// Hashes that travel as one message: enough to make the frame's head cheap, few enough not to keep
/// the source waiting.
const HASHES_PER_MESSAGE: usize = 64;

/// Collects neighbouring hashes into one message.
pub(super) struct HashBatch<'a> {
    outbox: &'a Outbox,
    digest_len: usize,
    first: u64,
    next: u64,
    hashes: BytesMut,
}

impl<'a> HashBatch<'a> {
    pub(super) fn new(outbox: &'a Outbox, digest_len: usize) -> Self {
        Self {
            outbox,
            digest_len,
            first: 0,
            next: 0,
            hashes: BytesMut::new(),
        }
    }

    pub(super) fn push(&mut self, leaf: Leaf, count: u64) {
        match leaf {
            Leaf::Zero => {
                self.flush();
                self.outbox.send(Message::ZeroBlocks {
                    first_block: self.next,
                    count,
                });
                self.first += count;
            }
            Leaf::Data(digest) => self.hashes.extend_from_slice(digest.as_bytes()),
        }
        self.next += count;
        if self.hashes.len() >= HASHES_PER_MESSAGE * self.digest_len {
            self.flush();
        }
    }

    pub(super) fn flush(&mut self) {
        if !self.hashes.is_empty() {
            self.outbox.send(Message::Hashes {
                first_block: self.first,
                hash_len: u8::try_from(self.digest_len).expect("16 or 32"),
                payload: self.hashes.split().freeze(),
            });
        }
        self.first = self.next;
    }
}
