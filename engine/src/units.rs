//! Positions and sizes. [`Geometry`] is the only place that turns blocks into bytes and back.

use std::fmt;
use std::ops::Range;

use crate::error::{Error, ErrorKind, Result};

/// Position in a virtual disk, in bytes from its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteOffset(pub u64);

impl ByteOffset {
    /// The position `len` bytes further on. Saturates: a position past the end is refused by
    /// whoever uses it.
    #[must_use]
    pub fn advanced(self, len: u64) -> Self {
        Self(self.0.saturating_add(len))
    }
}

impl fmt::Display for ByteOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// Bytes in `range`; 0 when it is empty or reversed.
#[must_use]
pub fn range_len(range: &Range<ByteOffset>) -> u64 {
    range.end.0.saturating_sub(range.start.0)
}

/// Position of a block in the virtual disk, counted from 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockIndex(pub u64);

impl fmt::Display for BlockIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A number of blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockCount(pub u64);

/// Bytes of a block of the checksum map: a power of two in
/// [`BlockSize::MIN`]..=[`BlockSize::MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockSize(u32);

impl BlockSize {
    /// 64 KiB: below it the hashes of an unchanged disk cost more than 0.05 % of its size on the
    /// wire.
    pub const MIN: u32 = 64 << 10;
    /// 4 MiB: the largest piece that is held, framed and hashed as one.
    pub const MAX: u32 = 4 << 20;
    /// 1 MiB.
    pub const DEFAULT: Self = Self(1 << 20);

    /// A block size of `len` bytes.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] unless `len` is a power of two within the limits.
    pub fn new(len: u64) -> Result<Self> {
        match u32::try_from(len) {
            Ok(small) if small.is_power_of_two() && (Self::MIN..=Self::MAX).contains(&small) => {
                Ok(Self(small))
            }
            _ => Err(Error::new(
                ErrorKind::Usage,
                format!("block size {len} is not a power of two between 64 KiB and 4 MiB"),
            )),
        }
    }

    /// Bytes.
    #[must_use]
    pub fn len(self) -> usize {
        self.0 as usize
    }

    /// Bytes, as it stands in messages and files.
    #[must_use]
    pub fn as_u32(self) -> u32 {
        self.0
    }

    /// Always false; a block holds bytes.
    #[must_use]
    pub fn is_empty(self) -> bool {
        false
    }
}

/// Bytes of a sub-block, the unit that is compared inside a differing block.
pub const SUB_BLOCK_LEN: usize = 4096;

/// The largest disk: 64 TiB, the limit of VHDX.
pub const DISK_LEN_MAX: u64 = 64 << 40;

/// A disk cut into blocks. The last block is short when the length is not a multiple.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    len: u64,
    block: BlockSize,
}

impl Geometry {
    /// `len` bytes in blocks of `block`.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for a disk over [`DISK_LEN_MAX`].
    pub fn new(len: u64, block: BlockSize) -> Result<Self> {
        if len > DISK_LEN_MAX {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("a disk of {len} bytes is larger than 64 TiB"),
            ));
        }
        Ok(Self { len, block })
    }

    /// Bytes of the disk.
    #[must_use]
    pub fn disk_len(&self) -> u64 {
        self.len
    }

    /// The block size.
    #[must_use]
    pub fn block_size(&self) -> BlockSize {
        self.block
    }

    /// How many blocks there are, the short last one included.
    #[must_use]
    pub fn block_count(&self) -> BlockCount {
        BlockCount(self.len.div_ceil(u64::from(self.block.0)))
    }

    /// The block that holds `offset`, or `None` past the end: offsets come from peers and images.
    #[must_use]
    pub fn block_at(&self, offset: ByteOffset) -> Option<BlockIndex> {
        (offset.0 < self.len).then(|| BlockIndex(offset.0 / u64::from(self.block.0)))
    }

    /// First byte of `block`; the end of the disk for an index past the last one.
    #[must_use]
    pub fn start_of(&self, block: BlockIndex) -> ByteOffset {
        ByteOffset(
            block
                .0
                .saturating_mul(u64::from(self.block.0))
                .min(self.len),
        )
    }

    /// The bytes of `count` blocks from `first` on, cut at the end of the disk.
    #[must_use]
    pub fn range_of(&self, first: BlockIndex, count: u64) -> Range<ByteOffset> {
        self.start_of(first)..self.start_of(BlockIndex(first.0.saturating_add(count)))
    }

    /// Bytes of `block`: the block size, less for a short last block, 0 past the end.
    #[must_use]
    pub fn block_len(&self, block: BlockIndex) -> usize {
        let range = self.range_of(block, 1);
        usize::try_from(range_len(&range)).expect("a block is at most 4 MiB")
    }

    /// How many whole blocks `[at, end)` covers from the block boundary `at` on; the short last
    /// block counts when `end` is the end of the disk.
    #[must_use]
    pub fn whole_blocks(&self, at: BlockIndex, end: ByteOffset) -> u64 {
        let stop = if end.0 >= self.len {
            self.block_count().0
        } else {
            end.0 / u64::from(self.block.0)
        };
        stop.saturating_sub(at.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Goal: the short tail is neither lost nor stretched. Method: lengths around a block boundary.
    #[test]
    fn short_last_block_has_its_own_length() {
        let geometry = Geometry::new((1 << 20) + 512, BlockSize::DEFAULT).unwrap();
        assert_eq!(geometry.block_count(), BlockCount(2));
        assert_eq!(geometry.block_len(BlockIndex(0)), 1 << 20);
        assert_eq!(geometry.block_len(BlockIndex(1)), 512);
        assert_eq!(geometry.block_len(BlockIndex(2)), 0);
        assert_eq!(
            geometry.block_at(ByteOffset((1 << 20) + 511)),
            Some(BlockIndex(1))
        );
        assert_eq!(geometry.block_at(ByteOffset((1 << 20) + 512)), None);
    }

    // Goal: the tail is only "whole" when the range reaches the end. Method: ends one byte apart.
    #[test]
    fn whole_blocks_counts_the_tail_only_at_the_end() {
        let geometry = Geometry::new((2 << 20) + 512, BlockSize::DEFAULT).unwrap();
        assert_eq!(
            geometry.whole_blocks(BlockIndex(0), ByteOffset((2 << 20) + 511)),
            2
        );
        assert_eq!(
            geometry.whole_blocks(BlockIndex(0), ByteOffset((2 << 20) + 512)),
            3
        );
        assert_eq!(geometry.whole_blocks(BlockIndex(1), ByteOffset(1 << 20)), 0);
    }

    // Goal: only the documented sizes are block sizes. Method: each limit and its neighbours.
    #[test]
    fn block_sizes_outside_the_limits_are_refused() {
        assert!(BlockSize::new(64 << 10).is_ok());
        assert!(BlockSize::new(4 << 20).is_ok());
        assert!(BlockSize::new(32 << 10).is_err());
        assert!(BlockSize::new(8 << 20).is_err());
        assert!(BlockSize::new(3 << 20).is_err());
        assert!(BlockSize::new(1 << 40).is_err());
    }
}
