//! Sector bitmaps (section 2.5.2): which sectors of a partially present block are stored here.
//!
//! One bitmap of 1 MiB covers one chunk, 2^23 sectors; bit i, the lowest of a byte first, is
//! sector i of the chunk. A set bit means here, a clear one with the parent. Bits behind the end
//! of the disk mean nothing, and Windows sets some.

use std::ops::Range;
use std::sync::Arc;

use crate::error::Result;
use crate::format::{BITMAP_LEN, PAGE, PAGE_LEN, to_usize};
use crate::pages::{Page, Pages, place};
use crate::storage::Storage;

/// The bitmap of one chunk.
#[derive(Debug)]
pub(crate) struct Bitmap<'a> {
    /// Byte offset in the file.
    pub(crate) at: u64,
    pub(crate) pages: &'a Arc<Pages>,
    pub(crate) storage: &'a Storage,
}

impl Bitmap<'_> {
    /// What bit `bits.start` says, and where in `bits`, which is not empty, that changes.
    pub(crate) fn run(&self, bits: &Range<u64>) -> Result<(bool, u64)> {
        let mut wanted = None;
        let mut at = bits.start;
        while at < bits.end {
            let (page, within) = self.place(at);
            let last = bits.end.min(at - within as u64 + BITS_IN_PAGE);
            let count = to_usize(last - at);
            let (is_set, len) = self.pages.look(
                page,
                || self.load(page),
                |page| {
                    let is_set = wanted.unwrap_or_else(|| is_set(page, within));
                    (is_set, run_len(page, within, count, is_set))
                },
            )?;
            wanted = Some(is_set);
            at += len as u64;
            if at < last {
                break;
            }
        }
        Ok((wanted.unwrap_or(false), at))
    }

    /// Makes all of `bits` say `is_set`.
    pub(crate) fn set(&self, bits: &Range<u64>, is_set: bool) -> Result<()> {
        debug_assert!(bits.end <= BITMAP_LEN * 8);
        let mut at = bits.start;
        while at < bits.end {
            let (page, within) = self.place(at);
            let count = to_usize((bits.end - at).min(BITS_IN_PAGE - within as u64));
            let edit = |page: &mut Page| fill(page, within..within + count, is_set);
            self.pages.change(page, || self.load(page), edit)?;
            at += count as u64;
        }
        Ok(())
    }

    /// Byte offset in the file of the page with this bit, and the bit's number in it.
    fn place(&self, bit: u64) -> (u64, usize) {
        let (page, _) = place(self.at + bit / 8);
        (page, to_usize(bit % BITS_IN_PAGE))
    }

    fn load(&self, page: u64) -> Result<Box<Page>> {
        let mut bytes = Box::new([0; PAGE_LEN]);
        self.storage
            .read_at(page, &mut bytes[..])
            .map_err(|error| error.of("sector bitmap"))?;
        Ok(bytes)
    }
}

fn is_set(page: &Page, bit: usize) -> bool {
    page[bit / 8] >> (bit % 8) & 1 == 1
}

/// How many of the `count` bits from `first` on are alike.
fn run_len(page: &Page, first: usize, count: usize, alike: bool) -> usize {
    let other = if alike { u64::MAX } else { 0 };
    let (words, _) = page.as_chunks::<8>();
    let mut len = 0;
    while len < count {
        let bit = first + len;
        // The bits of this word from here on, those that differ set.
        let different = (u64::from_le_bytes(words[bit / 64]) ^ other) >> (bit % 64);
        let left = 64 - bit % 64;
        let run = (different.trailing_zeros() as usize).min(left);
        len += run;
        if run < left {
            break;
        }
    }
    len.min(count)
}

fn fill(page: &mut Page, bits: Range<usize>, is_set: bool) {
    let (first, last) = (bits.start.div_ceil(8), bits.end / 8);
    if first < last {
        page[first..last].fill(if is_set { 0xff } else { 0 });
    }
    let edges = [
        bits.start..bits.end.min(first * 8),
        bits.start.max(last * 8)..bits.end,
    ];
    for bit in edges.into_iter().flatten() {
        match is_set {
            true => page[bit / 8] |= 1 << (bit % 8),
            false => page[bit / 8] &= !(1 << (bit % 8)),
        }
    }
}

const BITS_IN_PAGE: u64 = PAGE * 8;

#[cfg(test)]
mod tests {
    // Goal: runs and changes are those of a plain list of bits. Method: random ranges, then all
    // runs, against a naive twin.
    use proptest::prelude::*;

    use super::*;
    use crate::file::{FileAt, MemoryFile};

    fn changes() -> impl Strategy<Value = Vec<(u64, u64, bool)>> {
        prop::collection::vec((0_u64..70_000, 0_u64..40_000, any::<bool>()), 1..20)
    }

    proptest! {
        #[test]
        fn matches_naive(changes in changes()) {
            let file = MemoryFile::new();
            file.set_len(2 << 20).unwrap();
            let storage = Storage::new(Arc::new(file), None).unwrap();
            let pages = Arc::new(Pages::default());
            let bitmap = Bitmap { at: 1 << 20, pages: &pages, storage: &storage };
            let mut naive = vec![false; 110_000];
            for (start, len, is_set) in changes {
                bitmap.set(&(start..start + len), is_set).unwrap();
                naive[to_usize(start)..to_usize(start + len)].fill(is_set);
            }
            let mut runs = Vec::new();
            let mut at = 0;
            while at < 110_000 {
                let (is_set, end) = bitmap.run(&(at..110_000)).unwrap();
                prop_assert!(end > at);
                runs.extend((at..end).map(|_| is_set));
                at = end;
            }
            prop_assert_eq!(runs, naive);
        }
    }
}
