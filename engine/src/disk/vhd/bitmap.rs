//! Sector bitmaps: which sectors of a stored block are this image's own. The first sector of a
//! block is the highest bit of the first byte.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;

/// The bits of one block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Bitmap(Vec<u8>);

impl Bitmap {
    /// A bitmap as it lies in the file.
    pub(super) fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether a sector is set; sectors past the end are not.
    pub(super) fn is_set(&self, sector: usize) -> bool {
        self.0
            .get(sector / 8)
            .is_some_and(|byte| byte & (0x80 >> (sector % 8)) != 0)
    }

    /// The end of the run of like bits that begins at `sector`, at most `end`.
    pub(super) fn run_end(&self, sector: usize, end: usize) -> usize {
        let is_set = self.is_set(sector);
        (sector..end)
            .find(|at| self.is_set(*at) != is_set)
            .unwrap_or(end)
    }

    /// Sets sectors; says whether that changed anything.
    pub(super) fn set(&mut self, sectors: Range<usize>) -> bool {
        let mut is_changed = false;
        for sector in sectors {
            is_changed |= !self.is_set(sector);
            self.0[sector / 8] |= 0x80 >> (sector % 8);
        }
        is_changed
    }
}

/// The bitmaps that are in memory. Those that were changed stay until they are committed; others
/// are let go when they become many. A block whose sectors are all set takes one bit.
#[derive(Debug, Default)]
pub(super) struct Bitmaps {
    full: Vec<u64>,
    loaded: HashMap<u32, Bitmap>,
    dirty: BTreeSet<u32>,
    /// Handed out by [`Bitmaps::take_dirty`] and not yet in the file.
    committing: BTreeSet<u32>,
}

impl Bitmaps {
    /// Whether all sectors of a block are known to be set, in the file as well.
    pub(super) fn is_full(&self, block: u32) -> bool {
        let [word, bit] = full_place(block);
        self.full.get(word).is_some_and(|word| word >> bit & 1 == 1)
    }

    pub(super) fn set_full(&mut self, block: u32) {
        let [word, bit] = full_place(block);
        if self.full.len() <= word {
            self.full.resize(word + 1, 0);
        }
        self.full[word] |= 1 << bit;
        self.loaded.remove(&block);
    }

    pub(super) fn loaded(&self, block: u32) -> Option<&Bitmap> {
        self.loaded.get(&block)
    }

    /// Keeps a bitmap that was read from the file, where all of `sectors` may turn out to be set.
    pub(super) fn insert(&mut self, block: u32, bitmap: Bitmap, sectors: usize) {
        if self.loaded.len() >= BITMAP_BYTES_MAX / bitmap.bytes().len() {
            let (dirty, committing) = (&self.dirty, &self.committing);
            self.loaded
                .retain(|block, _| dirty.contains(block) || committing.contains(block));
        }
        match bitmap.run_end(0, sectors) == sectors && bitmap.is_set(0) {
            true => self.set_full(block),
            false => {
                self.loaded.insert(block, bitmap);
            }
        }
    }

    /// Takes the bitmap of a block that is new in the file, where it has not been written.
    pub(super) fn insert_new(&mut self, block: u32, bitmap: Bitmap) {
        self.loaded.insert(block, bitmap);
        self.dirty.insert(block);
    }

    /// Sets sectors of a block whose bitmap is loaded; nothing to do for a full one.
    pub(super) fn set(&mut self, block: u32, sectors: Range<usize>) {
        if let Some(bitmap) = self.loaded.get_mut(&block)
            && bitmap.set(sectors)
        {
            self.dirty.insert(block);
        }
    }

    /// Whether so much waits to be committed that it should not wait longer.
    pub(super) fn is_heavy(&self, bitmap_len: usize) -> bool {
        self.dirty.len() * bitmap_len >= DIRTY_BYTES_MAX
    }

    /// Copies of all changed bitmaps, to be written.
    pub(super) fn take_dirty(&mut self) -> Vec<(u32, Bitmap)> {
        self.committing = std::mem::take(&mut self.dirty);
        let loaded = &self.loaded;
        let copy = |block: &u32| Some((*block, loaded.get(block)?.clone()));
        self.committing.iter().filter_map(copy).collect()
    }

    /// Says that what was taken is in the file, durably.
    pub(super) fn committed(&mut self, sectors_of: impl Fn(u32) -> usize) {
        for block in std::mem::take(&mut self.committing) {
            let sectors = sectors_of(block);
            let is_full =
                |bitmap: &Bitmap| bitmap.is_set(0) && bitmap.run_end(0, sectors) == sectors;
            if !self.dirty.contains(&block) && self.loaded.get(&block).is_some_and(is_full) {
                self.set_full(block);
            }
        }
    }
}

fn full_place(block: u32) -> [usize; 2] {
    [block / 64, block % 64].map(|number| usize::try_from(number).expect("32 bits"))
}

/// Bytes of bitmaps in memory, above which unchanged ones are let go: 8 GiB of disk in blocks of
/// 2 MiB.
const BITMAP_BYTES_MAX: usize = 2 << 20;
/// Bytes of changed bitmaps above which they are committed without being asked to.
const DIRTY_BYTES_MAX: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    // Goal: the bit of a sector is where Windows looks for it. Method: bytes by hand.
    #[test]
    fn the_first_sector_is_the_highest_bit() {
        let mut bitmap = Bitmap::new(vec![0x80, 0x01]);
        assert!(bitmap.is_set(0) && bitmap.is_set(15) && !bitmap.is_set(1));
        assert_eq!((bitmap.run_end(1, 16), bitmap.run_end(15, 16)), (15, 16));
        assert!(bitmap.set(1..9));
        assert!(!bitmap.set(0..9));
        assert_eq!(bitmap.bytes(), [0xff, 0x81]);
    }
}
