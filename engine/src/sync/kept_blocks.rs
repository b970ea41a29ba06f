//! What the target has in memory of blocks that the source asked about.

use std::collections::HashMap;

use crate::apply::Kept;

/// Bytes of old blocks kept between the question for their sums and their patch.
pub(super) const KEPT_BUDGET: usize = 24 << 20;

/// What is known of wanted blocks between the question for their sums and their patch; their bytes
/// as far as there is room.
#[derive(Debug, Default)]
pub(super) struct KeptBlocks {
    blocks: HashMap<u64, Kept>,
    len: usize,
}

impl KeptBlocks {
    pub(super) fn insert(&mut self, block: u64, kept: Kept) {
        let len = kept.bytes.as_ref().map_or(0, |bytes| bytes.as_ref().len());
        let has_room = self.len + len <= KEPT_BUDGET;
        let bytes = kept.bytes.filter(|_| has_room);
        self.len += if has_room { len } else { 0 };
        self.blocks.insert(block, Kept { bytes, ..kept });
    }

    pub(super) fn remove(&mut self, block: u64) -> Option<Kept> {
        let kept = self.blocks.remove(&block)?;
        self.len -= kept.bytes.as_ref().map_or(0, |bytes| bytes.as_ref().len());
        Some(kept)
    }
}
