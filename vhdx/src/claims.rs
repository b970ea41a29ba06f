//! Who may change a block's entry: one thread at a time.

use std::collections::HashSet;
use std::sync::{Condvar, Mutex, PoisonError};

use crate::geometry::BlockIndex;

/// Blocks whose entry is being changed: one thread each, others wait.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    blocks: Mutex<HashSet<BlockIndex>>,
    released: Condvar,
}

/// Gives the block back when dropped.
pub(crate) struct Claim<'a> {
    claims: &'a Claims,
    block: BlockIndex,
}

impl Claims {
    pub(crate) fn claim(&self, block: BlockIndex) -> Claim<'_> {
        let mut blocks = self.blocks.lock().unwrap_or_else(PoisonError::into_inner);
        while !blocks.insert(block) {
            blocks = self
                .released
                .wait(blocks)
                .unwrap_or_else(PoisonError::into_inner);
        }
        Claim {
            claims: self,
            block,
        }
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut blocks = self
            .claims
            .blocks
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        blocks.remove(&self.block);
        self.claims.released.notify_all();
    }
}
