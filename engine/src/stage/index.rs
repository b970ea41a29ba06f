//! Which record of the stage counts for each staged block. In memory, and so of limited size.

use std::collections::BTreeMap;

use super::record::{PAGE_LEN, Record};
use crate::error::{Error, ErrorKind, Result};
use crate::units::{BlockIndex, BlockSize, DISK_LEN_MAX};

/// Staged blocks of one stage: 4 TiB that differ in blocks of 1 MiB, 16 TiB in the largest blocks.
/// An entry takes up to [`ENTRY_BYTES`], so that the index takes at most 116 MiB of the 256 MiB
/// that a side may use; buffers and image tables take less than the rest.
pub(super) const STAGED_BLOCKS_MAX: u64 = 4 << 20;
/// Bytes of an entry of a tree that grew in ascending order, the worst: its nodes are half full.
/// Measured; 24 in random order.
const ENTRY_BYTES: u64 = 29;
const _: () = assert!(STAGED_BLOCKS_MAX * ENTRY_BYTES <= 116 << 20);
/// A block of any disk by a number of 32 bits.
const _: () = assert!(DISK_LEN_MAX / BlockSize::MIN as u64 <= u32::MAX as u64);

/// See the module's head.
#[derive(Debug)]
pub(super) struct Index {
    live: BTreeMap<u32, Place>,
    /// Bytes of the records that count.
    live_len: u64,
    max: u64,
}

impl Default for Index {
    fn default() -> Self {
        Self::with_max(STAGED_BLOCKS_MAX)
    }
}

/// Where a record begins, in pages, and below it how many it has: 48 bits and 16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place(u64);

const COUNT_BITS: u32 = 16;

impl Place {
    fn of(record: &Record) -> Self {
        let pages = (record.end() - record.at) / PAGE_LEN;
        // A record holds its header, its runs and a block twice.
        assert!(pages < 1 << COUNT_BITS, "a record of at most 16 MiB");
        Self((record.at / PAGE_LEN) << COUNT_BITS | pages)
    }

    fn at(self) -> u64 {
        (self.0 >> COUNT_BITS) * PAGE_LEN
    }

    fn len(self) -> u64 {
        (self.0 & ((1 << COUNT_BITS) - 1)) * PAGE_LEN
    }
}

impl Index {
    /// For so many blocks.
    pub(super) fn with_max(max: u64) -> Self {
        Self {
            live: BTreeMap::new(),
            live_len: 0,
            max,
        }
    }

    /// # Errors
    /// `Refused` when one more block is too much.
    pub(super) fn check_room(&self, block: u64) -> Result<()> {
        let is_known = || self.find(BlockIndex(block)).is_some();
        match self.count() < self.max || is_known() {
            true => Ok(()),
            false => {
                let message = format!(
                    "more than {} blocks differ, and a stage keeps no more in memory; larger \
                     blocks are fewer, and a new target or one written in place needs no stage",
                    self.max
                );
                Err(Error::new(ErrorKind::Refused, message))
            }
        }
    }

    /// From here on this record counts for its block, or, when it is a drop, none does.
    pub(super) fn add(&mut self, record: &Record) {
        let key = key_of(record.block).expect("checked against the geometry");
        let before = match record.is_drop {
            true => self.live.remove(&key),
            false => {
                let place = Place::of(record);
                self.live_len += place.len();
                self.live.insert(key, place)
            }
        };
        self.live_len -= before.map_or(0, Place::len);
    }

    /// Where the record of a block begins.
    pub(super) fn find(&self, block: BlockIndex) -> Option<u64> {
        let key = key_of(block.0)?;
        self.live.get(&key).map(|place| place.at())
    }

    /// The first staged block from `block` on.
    pub(super) fn next_from(&self, block: BlockIndex) -> Option<BlockIndex> {
        let next = self.live.range(key_of(block.0)?..).next();
        next.map(|(key, _)| BlockIndex((*key).into()))
    }

    /// Takes the first block out.
    pub(super) fn take_first(&mut self) -> Option<BlockIndex> {
        let (key, place) = self.live.pop_first()?;
        self.live_len -= place.len();
        Some(BlockIndex(key.into()))
    }

    /// Bytes of all records that count.
    pub(super) fn live_len(&self) -> u64 {
        self.live_len
    }

    /// Staged blocks.
    pub(super) fn count(&self) -> u64 {
        self.live.len() as u64
    }
}

fn key_of(block: u64) -> Option<u32> {
    u32::try_from(block).ok()
}
