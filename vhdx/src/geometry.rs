//! Sizes of the virtual disk, and the arithmetic between its blocks and the slots of the BAT.

use std::ops::Range;

use crate::format::{BLOCK_SIZE_MAX, BLOCK_SIZE_MIN, VIRTUAL_SIZE_MAX};

/// Position of a block in the virtual disk, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct BlockIndex(pub(crate) u64);

/// Position of an entry in the BAT, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SlotIndex(pub(crate) u64);

/// Sizes of the virtual disk. Only this converts between bytes, blocks and slots.
///
/// After each `chunk_ratio` block entries the BAT has one entry for a sector bitmap, also in
/// images that have no such bitmaps (section 2.5). Those blocks and that bitmap are a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    /// 1 sector to 64 TiB, whole sectors.
    virtual_size: u64,
    /// log2 of the bytes in a block: 20..=28.
    block_shift: u32,
    /// 512 or 4096.
    sector_size: u32,
    /// log2 of the block entries between two bitmap entries: 4..=15.
    chunk_shift: u32,
    /// Whether the image is a differencing one: its last chunk has a bitmap entry, too.
    has_bitmaps: bool,
}

impl Geometry {
    /// Checks the numbers; what is wrong with them is the error.
    pub(crate) fn new(
        virtual_size: u64,
        block_size: u32,
        sector_size: u32,
    ) -> Result<Self, &'static str> {
        if !matches!(sector_size, 512 | 4096) {
            return Err("logical sector size is neither 512 nor 4096");
        }
        let sizes = BLOCK_SIZE_MIN..=BLOCK_SIZE_MAX;
        if !block_size.is_power_of_two() || !sizes.contains(&block_size) {
            return Err("block size is not a power of two from 1 MiB to 256 MiB");
        }
        if virtual_size == 0 || virtual_size > VIRTUAL_SIZE_MAX {
            return Err("virtual size is zero or above 64 TiB");
        }
        if !virtual_size.is_multiple_of(u64::from(sector_size)) {
            return Err("virtual size is not a whole number of sectors");
        }
        let block_shift = block_size.trailing_zeros();
        let chunk_shift = CHUNK_SECTORS_SHIFT + sector_size.trailing_zeros() - block_shift;
        Ok(Self {
            virtual_size,
            block_shift,
            sector_size,
            chunk_shift,
            has_bitmaps: false,
        })
    }

    /// The same sizes in a differencing image.
    pub(crate) fn with_bitmaps(self) -> Self {
        Self {
            has_bitmaps: true,
            ..self
        }
    }

    pub(crate) fn has_bitmaps(&self) -> bool {
        self.has_bitmaps
    }

    pub(crate) fn virtual_size(&self) -> u64 {
        self.virtual_size
    }

    pub(crate) fn block_size(&self) -> u32 {
        1 << self.block_shift
    }

    pub(crate) fn sector_size(&self) -> u32 {
        self.sector_size
    }

    /// How many blocks the disk has; the last may be cut by the end of the disk.
    pub(crate) fn block_count(&self) -> u64 {
        self.virtual_size.div_ceil(u64::from(self.block_size()))
    }

    /// How many entries of the BAT count. Those behind have to be ignored.
    pub(crate) fn slot_count(&self) -> u64 {
        let last = BlockIndex(self.block_count() - 1);
        match self.has_bitmaps {
            true => self.bitmap_slot_of(last).0 + 1,
            false => self.slot_of(last).0 + 1,
        }
    }

    /// The block that holds byte `at` of the disk.
    pub(crate) fn block_at(&self, at: u64) -> BlockIndex {
        BlockIndex(at >> self.block_shift)
    }

    /// Bytes of the disk in a block; shorter than a block at the end of the disk.
    pub(crate) fn disk_range(&self, block: BlockIndex) -> Range<u64> {
        let start = block.0 << self.block_shift;
        start..self.virtual_size.min(start + u64::from(self.block_size()))
    }

    /// The entry of a block.
    pub(crate) fn slot_of(&self, block: BlockIndex) -> SlotIndex {
        SlotIndex(block.0 + (block.0 >> self.chunk_shift))
    }

    /// The entry of the sector bitmap that covers a block.
    pub(crate) fn bitmap_slot_of(&self, block: BlockIndex) -> SlotIndex {
        let ratio = 1 << self.chunk_shift;
        SlotIndex((block.0 >> self.chunk_shift) * (ratio + 1) + ratio)
    }

    /// The bits of a block in its chunk's sector bitmap, one for each sector.
    pub(crate) fn bits_of(&self, block: BlockIndex) -> Range<u64> {
        let sectors = u64::from(self.block_size() / self.sector_size);
        let first = (block.0 & ((1 << self.chunk_shift) - 1)) * sectors;
        first..first + sectors
    }

    /// The block of an entry, or `None` for that of a sector bitmap.
    pub(crate) fn block_of(&self, slot: SlotIndex) -> Option<BlockIndex> {
        let ratio = 1 << self.chunk_shift;
        let (chunk, within) = (slot.0 / (ratio + 1), slot.0 % (ratio + 1));
        (within < ratio).then(|| BlockIndex((chunk << self.chunk_shift) + within))
    }

    /// The first block whose entry is at `slot` or behind; may be one past the last.
    pub(crate) fn block_from(&self, slot: SlotIndex) -> BlockIndex {
        self.block_of(slot)
            .or_else(|| self.block_of(SlotIndex(slot.0 + 1)))
            .expect("two bitmap entries never follow each other")
    }

    /// How many block entries follow each other from `slot` on before a bitmap entry; 0 for one.
    pub(crate) fn payload_slots_from(&self, slot: SlotIndex) -> u64 {
        let ratio = 1 << self.chunk_shift;
        ratio - slot.0 % (ratio + 1)
    }

    /// Whether `range` is not backwards and ends within the disk.
    pub(crate) fn contains(&self, range: &Range<u64>) -> bool {
        range.start <= range.end && range.end <= self.virtual_size
    }
}

/// log2 of the sectors that one sector bitmap block covers.
const CHUNK_SECTORS_SHIFT: u32 = 23;

#[cfg(test)]
mod tests {
    // Goal: slot arithmetic fits files that Windows wrote and has an inverse. Method: known
    // totals, then every block around the ends of chunks.
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn totals_are_those_of_files_by_windows() {
        let slots = |size, block| Geometry::new(size, block, 512).unwrap().slot_count();
        assert_eq!(slots(10 << 30, 32 << 20), 322);
        assert_eq!(slots(127 << 30, 32 << 20), 4095);
        assert_eq!(slots(64 << 40, 1 << 20), 67_125_247);
    }

    #[test]
    fn slots_and_blocks_are_inverse_across_chunks() {
        for (sector, ratio) in [(512, 4096_u64), (4096, 32768)] {
            let geometry = Geometry::new(3 * ratio * MIB, 1 << 20, sector).unwrap();
            let mut blocks = Vec::new();
            for slot in 0..geometry.slot_count() {
                blocks.extend(geometry.block_of(SlotIndex(slot)));
            }
            assert!(blocks.iter().copied().eq((0..3 * ratio).map(BlockIndex)));
            assert!(
                blocks
                    .iter()
                    .all(|b| geometry.block_of(geometry.slot_of(*b)) == Some(*b))
            );
            assert_eq!(geometry.block_of(SlotIndex(ratio)), None);
            assert_eq!(geometry.payload_slots_from(SlotIndex(ratio)), 0);
            assert_eq!(geometry.payload_slots_from(SlotIndex(ratio - 1)), 1);
        }
    }

    #[test]
    fn a_differencing_image_ends_with_a_bitmap_entry() {
        // As in a child by Windows: two blocks of 2 MiB, bitmap entry 2048.
        let geometry = Geometry::new(4 * MIB, 2 << 20, 512).unwrap().with_bitmaps();
        assert_eq!(geometry.slot_count(), 2049);
        assert_eq!(geometry.bitmap_slot_of(BlockIndex(1)), SlotIndex(2048));
        assert_eq!(geometry.bits_of(BlockIndex(1)), 4096..8192);
        let many = Geometry::new(5 << 40, 256 << 20, 4096)
            .unwrap()
            .with_bitmaps();
        assert_eq!(many.slot_count(), 160 * 129);
        assert_eq!(many.bitmap_slot_of(BlockIndex(128)), SlotIndex(257));
        assert_eq!(many.bits_of(BlockIndex(129)), 65536..131_072);
    }

    #[test]
    fn the_last_block_may_be_short() {
        let geometry = Geometry::new(3 * MIB + 512, 1 << 20, 512).unwrap();
        assert_eq!(geometry.block_count(), 4);
        assert_eq!(geometry.disk_range(BlockIndex(3)), 3 * MIB..3 * MIB + 512);
    }
}
