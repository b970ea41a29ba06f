//! Receive buffers that are used again once nobody holds a slice of them.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

/// A few buffers that were filled and handed out. Taking one again saves the page faults and the
/// clearing that new memory costs, which are dearer than the copy from the kernel.
#[derive(Debug, Default)]
pub(crate) struct RecycledBuffers {
    kept: VecDeque<Bytes>,
    /// Bytes in `kept`.
    len: usize,
}

/// Bytes that are kept at most: half of what two sides may have in flight.
const KEPT_LEN_MAX: usize = 32 << 20;

/// Lengths are rounded up to a multiple of this, so that buffers fit payloads of similar length.
const ROUND_LEN: usize = 64 << 10;

impl RecycledBuffers {
    /// A buffer of at least `len` bytes, with any content. `len` met its limit.
    pub(crate) fn take(&mut self, len: usize) -> BytesMut {
        let fits = |buf: &Bytes| buf.len() >= len && buf.len() <= 2 * len.max(ROUND_LEN);
        let free = self
            .kept
            .iter()
            .position(|buf| fits(buf) && buf.is_unique());
        let reused = free
            .and_then(|index| self.kept.remove(index))
            .and_then(|buf| {
                self.len -= buf.len();
                buf.try_into_mut().ok()
            });
        reused.unwrap_or_else(|| BytesMut::zeroed(len.next_multiple_of(ROUND_LEN)))
    }

    /// The first `len` bytes of a buffer for others to keep; it is taken again when they let go.
    pub(crate) fn hand_out(&mut self, buf: BytesMut, len: usize) -> Bytes {
        let buf = buf.freeze();
        let slice = buf.slice(..len);
        self.len += buf.len();
        self.kept.push_back(buf);
        while self.len > KEPT_LEN_MAX {
            self.len -= self.kept.pop_front().map_or(0, |oldest| oldest.len());
        }
        slice
    }
}
