//! Space for new blocks: gaps in the file first, then its end.
//!
//! ```text
//! taken      one bit for each MiB of the file, found by looking at the whole BAT
//! release    a block lost its place; its space still holds what the BAT in the file points to
//! ripen      that BAT is durable without it, and no writer knows the old place: a gap
//! allocate   a gap (made zero first: it can hold old bytes) or the end (which reads zero)
//! ```

use std::ops::{ControlFlow, Range};

use crate::bat::{Bat, Entry, State, Stretch};
use crate::error::{Error, Result};
use crate::format::{BITMAP_LEN, FILE_LEN_MAX, MIB, to_usize};
use crate::geometry::{BlockIndex, Geometry, SlotIndex};
use crate::storage::Storage;

/// Which space of the file is taken.
#[derive(Debug)]
pub(crate) struct Allocator {
    /// A bit for each MiB below `next`.
    taken: MibSet,
    /// Byte offset of the end of what is taken, a multiple of 1 MiB. Nothing is at or behind it.
    next: u64,
    /// Where the search for a gap begins, in MiB.
    cursor: u64,
    /// No gap is as long, in MiB.
    longest_gap_bound: u64,
    /// Space given up, which the BAT in the file may still point to.
    released: Vec<Range<u64>>,
    /// Bytes of the file before it was grown here; it is never cut below.
    len_before: u64,
    has_grown: bool,
}

/// Space for a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Space {
    /// Byte offset in the file.
    pub(crate) at: u64,
    /// It may hold bytes of another block.
    pub(crate) is_recycled: bool,
}

impl Allocator {
    /// Looks at every entry.
    ///
    /// # Errors
    /// [`Damaged`](crate::ErrorKind::Damaged) when two blocks overlap, one overlaps a structure or
    /// lies past the end, or a partially present one has no bitmap: writing to such an image could
    /// destroy more of it.
    pub(crate) fn scan(geometry: &Geometry, bat: &Bat, storage: &Storage) -> Result<Self> {
        let mut taken = MibSet::new(storage.len())?;
        for range in &bat.regions().occupied {
            taken.insert(&(range.start..range.end.min(storage.len())));
        }
        let mut end = bat.regions().occupied.last().map_or(0, |range| range.end);
        let mut last_tail = 0..0;
        // The bitmap that partially present blocks were seen to need.
        let mut awaited: Option<SlotIndex> = None;
        bat.walk(storage, BlockIndex(0), |stretch| {
            match stretch {
                Stretch::Hole(_) => {}
                Stretch::Entries(first, entries) => {
                    for (block, raw) in (first.0..).map(BlockIndex).zip(entries) {
                        let entry = Entry::from_raw(*raw, geometry.has_bitmaps())?;
                        let Some(at) = entry.stored_at() else {
                            continue;
                        };
                        bat.check_stored(storage, block, at)?;
                        if entry.state() == State::PartiallyPresent {
                            let needed = geometry.bitmap_slot_of(block);
                            let other = awaited.replace(needed).filter(|slot| *slot != needed);
                            bitmap_found(bat, other)?;
                        }
                        let disk = geometry.disk_range(block);
                        let stored = at..at + (disk.end - disk.start);
                        taken.insert_new(&stored)?;
                        last_tail = stored.end..at + u64::from(geometry.block_size());
                        end = end.max(last_tail.end);
                    }
                }
                Stretch::Bitmap(slot, raw) => {
                    if let Some(at) = bat.check_bitmap(storage, slot, raw)? {
                        taken.insert_new(&(at..at + BITMAP_LEN))?;
                        end = end.max(at + BITMAP_LEN);
                        awaited = awaited.filter(|awaited| *awaited != slot);
                    }
                }
            }
            Ok(ControlFlow::Continue(()))
        })?;
        bitmap_found(bat, awaited)?;
        // Behind a short last block nothing has to be, and something may be; it stays untouched.
        taken.insert(&last_tail);
        let next = end.max(storage.len()).next_multiple_of(MIB);
        Ok(Self {
            cursor: 0,
            longest_gap_bound: u64::MAX,
            released: Vec::new(),
            len_before: storage.len(),
            has_grown: false,
            taken,
            next,
        })
    }

    /// Takes `len` bytes, whole MiB, and grows the file where it has to.
    pub(crate) fn allocate(&mut self, storage: &Storage, len: u64) -> Result<Space> {
        if let Some(at) = self.take_gap(len / MIB, storage.len()) {
            return Ok(Space {
                at,
                is_recycled: true,
            });
        }
        let at = self.next;
        let end = at.checked_add(len).filter(|end| *end <= FILE_LEN_MAX);
        let end = end.ok_or_else(|| Error::unsupported("file would be longer than 128 TiB"))?;
        let file_len = storage.len();
        if end > file_len {
            self.has_grown = true;
            storage.set_len(end.max((file_len + GROWTH_STEP).min(FILE_LEN_MAX)))?;
        }
        self.taken.insert(&(at..end));
        self.next = end;
        Ok(Space {
            at,
            is_recycled: false,
        })
    }

    /// The bytes lost their block. They stay taken until they are [ripe](Self::ripen).
    pub(crate) fn release(&mut self, range: Range<u64>) {
        self.released.push(range);
    }

    /// What was released so far. Once a flush that began after this is done, it can be ripened.
    pub(crate) fn take_released(&mut self) -> Vec<Range<u64>> {
        std::mem::take(&mut self.released)
    }

    /// Gives released space back: nothing in the file points to it any more.
    pub(crate) fn ripen(&mut self, released: Vec<Range<u64>>) {
        for range in released {
            self.taken.remove(&range);
            self.longest_gap_bound = u64::MAX;
        }
    }

    /// How long the file has to be when nothing more is allocated.
    pub(crate) fn len_needed(&self) -> u64 {
        if self.has_grown {
            self.next.max(self.len_before)
        } else {
            self.len_before
        }
    }

    /// The first gap of `count` MiB from the cursor on, around the end.
    fn take_gap(&mut self, count: u64, file_len: u64) -> Option<u64> {
        if count >= self.longest_gap_bound {
            return None;
        }
        // A last part of a MiB holds what is not known here, and stays as it is.
        let end = self.next.min(file_len) / MIB;
        let found = self
            .taken
            .gap(self.cursor..end, count)
            .or_else(|| self.taken.gap(0..end, count));
        let Some(mib) = found else {
            self.longest_gap_bound = count;
            return None;
        };
        self.cursor = mib + count;
        self.taken.insert(&(mib * MIB..(mib + count) * MIB));
        Some(mib * MIB)
    }
}

/// Fails when a bitmap that is needed was not found.
fn bitmap_found(bat: &Bat, awaited: Option<SlotIndex>) -> Result<()> {
    match awaited {
        None => Ok(()),
        Some(slot) => {
            let detail = "partially present blocks without a sector bitmap";
            Err(Error::damaged("BAT entry", detail).offset(bat.slot_at(slot)))
        }
    }
}

/// A set of whole MiB of a file, a bit for each.
#[derive(Debug)]
struct MibSet(Vec<u64>);

impl MibSet {
    /// Empty, for a file of `len` bytes.
    fn new(len: u64) -> Result<Self> {
        if len > FILE_LEN_MAX {
            return Err(Error::unsupported("file is longer than 128 TiB"));
        }
        Ok(Self(vec![0; to_usize(len.div_ceil(MIB).div_ceil(64))]))
    }

    fn has(&self, mib: u64) -> bool {
        self.0
            .get(to_usize(mib / 64))
            .is_some_and(|word| word >> (mib % 64) & 1 == 1)
    }

    fn insert(&mut self, range: &Range<u64>) {
        for mib in mibs(range) {
            let word = to_usize(mib / 64);
            if word >= self.0.len() {
                self.0.resize(word + 1, 0);
            }
            self.0[word] |= 1 << (mib % 64);
        }
    }

    /// Inserts what must not be there yet.
    fn insert_new(&mut self, range: &Range<u64>) -> Result<()> {
        if let Some(twice) = mibs(range).find(|mib| self.has(*mib)) {
            let error = Error::damaged("BAT", "two blocks share space in the file");
            return Err(error.offset(twice * MIB));
        }
        self.insert(range);
        Ok(())
    }

    /// Removes the whole MiB of `range` and its last part.
    fn remove(&mut self, range: &Range<u64>) {
        for mib in mibs(range) {
            if let Some(word) = self.0.get_mut(to_usize(mib / 64)) {
                *word &= !(1 << (mib % 64));
            }
        }
    }

    /// The first `count` MiB of `within` that follow each other and are not in the set.
    fn gap(&self, within: Range<u64>, count: u64) -> Option<u64> {
        let mut first = within.start;
        let mut at = within.start;
        while at < within.end {
            let full = self.0.get(to_usize(at / 64)) == Some(&u64::MAX);
            if full && at.is_multiple_of(64) {
                at += 64;
                first = at;
                continue;
            }
            at += 1;
            if self.has(at - 1) {
                first = at;
            } else if at - first == count {
                return Some(first);
            }
        }
        None
    }
}

fn mibs(range: &Range<u64>) -> Range<u64> {
    range.start / MIB..range.end.div_ceil(MIB)
}

/// The file grows by this many bytes at least, since a new length costs more than space that is
/// given back on close.
const GROWTH_STEP: u64 = 64 * MIB;

#[cfg(test)]
mod tests {
    // Goal: gaps are found where they are and used once. Method: sets by hand.
    use super::*;

    fn set(taken: &[u64]) -> MibSet {
        let mut set = MibSet::new(200 * MIB).unwrap();
        for mib in taken {
            set.insert(&(mib * MIB..(mib + 1) * MIB));
        }
        set
    }

    #[test]
    fn gaps_are_as_long_as_asked_for() {
        let set = set(&[0, 1, 4, 6, 7, 8, 12]);
        assert_eq!(set.gap(0..13, 1), Some(2));
        assert_eq!(set.gap(0..13, 2), Some(2));
        assert_eq!(set.gap(0..13, 3), Some(9));
        assert_eq!(set.gap(0..13, 4), None);
        assert_eq!(set.gap(5..13, 1), Some(5));
    }

    #[test]
    fn full_words_are_passed_over() {
        let mut set = set(&[]);
        set.insert(&(0..130 * MIB));
        assert_eq!(set.gap(0..200, 3), Some(130));
    }

    #[test]
    fn nothing_goes_in_twice() {
        let mut set = set(&[3]);
        assert!(set.insert_new(&(2 * MIB..4 * MIB)).is_err());
        assert!(set.insert_new(&(4 * MIB..5 * MIB + 1)).is_ok());
        assert!(set.has(5));
    }
}
