//! Cylinders, heads and sectors of a disk, and how a block of the image is cut.

use super::SECTOR;

/// The geometry that a footer states: what a BIOS of the nineties would have seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chs {
    /// Cylinders, at most 65,535.
    pub cylinders: u16,
    /// Heads, at most 16.
    pub heads: u8,
    /// Sectors of a track, at most 255.
    pub sectors: u8,
}

impl Chs {
    /// The largest geometry there is: 127.5 GiB. It also stands for everything above.
    pub const MAX: Self = Self {
        cylinders: 65_535,
        heads: 16,
        sectors: 255,
    };

    /// The geometry for a disk of `len` bytes, as the appendix of the VHD specification computes
    /// it. It often covers a few sectors less than the disk has.
    ///
    /// Above 31.5 GiB tracks have 255 sectors. Below, the first of 17, 31 and 63 sectors a track
    /// is taken that needs at most 1,024 cylinders; 63 is taken even when it needs more.
    #[must_use]
    pub fn for_len(len: u64) -> Self {
        let total = (len / SECTOR).min(Self::MAX.len() / SECTOR);
        let (sectors, heads) = if total >= 65_535 * 16 * 63 {
            (255, 16)
        } else {
            let tracks = total / 17;
            let heads = tracks.div_ceil(1024).max(4);
            if heads <= 16 && tracks < heads * 1024 {
                (17, heads)
            } else if total / 31 < 16 * 1024 {
                (31, 16)
            } else {
                (63, 16)
            }
        };
        let narrow = |number: u64| u8::try_from(number).unwrap_or(u8::MAX);
        Self {
            cylinders: u16::try_from(total / sectors / heads).unwrap_or(u16::MAX),
            heads: narrow(heads),
            sectors: narrow(sectors),
        }
    }

    /// Bytes that it covers.
    #[must_use]
    pub fn len(self) -> u64 {
        u64::from(self.cylinders) * u64::from(self.heads) * u64::from(self.sectors) * SECTOR
    }

    /// Whether it covers nothing.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }
}

/// How a dynamic or differencing disk is cut into blocks. The only place that turns offsets of the
/// disk into blocks, and entries of the block table into offsets of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// Bytes of the disk.
    pub(super) len: u64,
    /// Bytes of a block, a power of two in `BLOCK_SIZE_MIN..=BLOCK_SIZE_MAX`.
    pub(super) block_size: u32,
}

impl Layout {
    /// Blocks that the disk needs; the last one may be used in part.
    pub(super) fn block_count(self) -> u64 {
        self.len.div_ceil(self.block_size.into())
    }

    /// The block that holds byte `at` of the disk, which lies inside it.
    pub(super) fn block_of(self, at: u64) -> u32 {
        u32::try_from(at / u64::from(self.block_size)).expect("the block table was bounded")
    }

    /// First byte of a block in the disk.
    pub(super) fn start_of(self, block: u32) -> u64 {
        u64::from(block) * u64::from(self.block_size)
    }

    /// One past the last byte of a block in the disk.
    pub(super) fn end_of(self, block: u32) -> u64 {
        (self.start_of(block) + u64::from(self.block_size)).min(self.len)
    }

    /// Sectors of the disk in a block.
    pub(super) fn sectors_of(self, block: u32) -> usize {
        let len = self.end_of(block).saturating_sub(self.start_of(block));
        usize::try_from(len / SECTOR).expect("a block has at most 2^19 sectors")
    }

    /// Bytes of the sector bitmap before each block: one bit a sector, whole sectors.
    pub(super) fn bitmap_len(self) -> usize {
        usize::try_from((u64::from(self.block_size) / SECTOR / 8).next_multiple_of(SECTOR))
            .expect("at most 64 KiB")
    }

    /// Bytes of a block with its bitmap.
    pub(super) fn stored_len(self) -> u64 {
        self.bitmap_len() as u64 + u64::from(self.block_size)
    }

    /// Where the bitmap of a block lies in the file.
    pub(super) fn bitmap_at(entry: u32) -> u64 {
        u64::from(entry) * SECTOR
    }

    /// Where the bytes of a block begin in the file.
    pub(super) fn payload_at(self, entry: u32) -> u64 {
        Self::bitmap_at(entry) + self.bitmap_len() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    // Goal: the geometry is what others compute. Method: sizes and geometries of images that
    // Windows 10 and Hyper-V 2012 R2 wrote, and the edges of the algorithm.
    #[test]
    fn geometry_is_that_of_windows() {
        for (len, chs) in [
            (4 << 20, (120, 4, 17)),
            (136_365_211_648, (65_278, 16, 255)),
            (2040 * GIB, (65_535, 16, 255)),
            (10 << 20, (301, 4, 17)),
            (512, (0, 4, 17)),
        ] {
            let found = Chs::for_len(len);
            assert_eq!((found.cylinders, found.heads, found.sectors), chs, "{len}");
        }
    }

    // Goal: a geometry never covers more than the disk. Method: sizes around each switch.
    #[test]
    fn geometry_never_exceeds_the_disk() {
        let edges = [17, 31, 63, 255].map(|sectors| sectors * 16 * 1024 * 512);
        for edge in edges.into_iter().chain([31 * GIB, 32 * GIB, 127 * GIB]) {
            for len in [edge - 512, edge, edge + 512] {
                let covered = Chs::for_len(len).len();
                assert!(covered <= len && len - covered < 16 * 255 * 512, "{len}");
            }
        }
    }

    // Goal: a bitmap has a bit for each sector and fills sectors. Method: the smallest, the usual
    // and the largest block.
    #[test]
    fn bitmaps_fill_sectors() {
        for (block_size, len) in [
            (4096, 512),
            (2 << 20, 512),
            (4 << 20, 1024),
            (256 << 20, 65_536),
        ] {
            let layout = Layout {
                len: GIB,
                block_size,
            };
            assert_eq!(layout.bitmap_len(), len);
        }
    }
}
