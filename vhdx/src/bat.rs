//! The block allocation table (section 2.5), read page by page and never held whole.

use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::format::{BITMAP_LEN, MIB, PAGE_LEN, to_usize};
use crate::geometry::{BlockIndex, Geometry, SlotIndex};
use crate::pages::{Page, Pages, place};
use crate::region::Regions;
use crate::storage::Storage;

/// One entry: state in bits 0..3, 17 reserved bits, offset in MiB above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry(u64);

/// What an entry says of its block. States 4 and 5 have no meaning; state 7 has one in images with
/// a parent only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    NotPresent,
    Undefined,
    Zero,
    Unmapped,
    Present,
    /// Some sectors are stored here, the others with the parent: the bitmap says which.
    PartiallyPresent,
}

impl Entry {
    /// The block is zero; the offset has to be 0.
    pub(crate) const ZERO: Self = Self(2);

    /// The block, or sector bitmap, lies at this byte offset of the file, a multiple of 1 MiB.
    pub(crate) fn present(at: u64) -> Self {
        debug_assert!(at.is_multiple_of(MIB) && at > 0);
        Self(at | PRESENT)
    }

    /// As [`present`](Self::present), for the sectors whose bits are set.
    pub(crate) fn partially_present(at: u64) -> Self {
        Self(Self::present(at).0 | PARTIALLY_PRESENT)
    }

    /// The entry of a block, in an image with or without a parent.
    pub(crate) fn from_raw(raw: u64, has_parent: bool) -> Result<Self> {
        let state = raw & STATE_BITS;
        if raw & RESERVED_BITS != 0 {
            return Err(Error::damaged("BAT entry", "reserved bits set"));
        }
        if matches!(state, 4 | 5) || (state == PARTIALLY_PRESENT && !has_parent) {
            return Err(Error::damaged("BAT entry", format!("state {state}")));
        }
        Ok(Self(raw))
    }

    /// The entry of a sector bitmap: where it lies, if there is one.
    pub(crate) fn bitmap_from_raw(raw: u64) -> Result<Option<u64>> {
        match (raw & RESERVED_BITS, raw & STATE_BITS) {
            (0, 0) => Ok(None),
            (0, PRESENT) => Ok(Some(raw & !(STATE_BITS | RESERVED_BITS))),
            (0, state) => {
                let detail = format!("state {state} of a sector bitmap");
                Err(Error::damaged("BAT entry", detail))
            }
            _ => Err(Error::damaged("BAT entry", "reserved bits set")),
        }
    }

    pub(crate) fn to_raw(self) -> u64 {
        self.0
    }

    pub(crate) fn state(self) -> State {
        match self.0 & STATE_BITS {
            0 => State::NotPresent,
            1 => State::Undefined,
            2 => State::Zero,
            3 => State::Unmapped,
            PARTIALLY_PRESENT => State::PartiallyPresent,
            _ => State::Present,
        }
    }

    /// Byte offset in the file when the block, or a part of it, is stored there.
    pub(crate) fn stored_at(self) -> Option<u64> {
        matches!(self.state(), State::Present | State::PartiallyPresent)
            .then_some(self.0 & !(STATE_BITS | RESERVED_BITS))
    }
}

/// Entries as they follow each other in the table.
#[derive(Debug)]
pub(crate) enum Stretch<'a> {
    /// These blocks are in a hole of the file: all in state 0, and so are the bitmaps among them.
    Hole(Range<u64>),
    /// Raw entries of the blocks from the first one on.
    Entries(BlockIndex, &'a [u64]),
    /// The raw entry of a sector bitmap, in the slot given; told for images with a parent only.
    Bitmap(SlotIndex, u64),
}

/// The table of one image.
#[derive(Debug)]
pub(crate) struct Bat {
    geometry: Geometry,
    regions: Regions,
    pages: Arc<Pages>,
}

impl Bat {
    /// Checks that the table fits its region and the file, and loads nothing.
    pub(crate) fn new(
        geometry: Geometry,
        regions: Regions,
        pages: Arc<Pages>,
        storage: &Storage,
    ) -> Result<Self> {
        let needed = geometry.slot_count() * 8;
        let region = &regions.bat;
        if needed > region.end - region.start {
            let detail = format!("region is smaller than the {needed} bytes needed");
            return Err(Error::damaged("BAT", detail).offset(region.start));
        }
        if region.start + needed > storage.len() {
            let error = Error::new(ErrorKind::Truncated, "file ends in it");
            return Err(error.of("BAT").offset(region.start));
        }
        Ok(Self {
            geometry,
            regions,
            pages,
        })
    }

    pub(crate) fn regions(&self) -> &Regions {
        &self.regions
    }

    /// The entry of a block of the disk, pending changes included.
    pub(crate) fn entry(&self, storage: &Storage, block: BlockIndex) -> Result<Entry> {
        let raw = self.raw(storage, self.geometry.slot_of(block))?;
        Entry::from_raw(raw, self.geometry.has_bitmaps())
    }

    /// Where the sector bitmap of a block's chunk lies, if there is one.
    pub(crate) fn bitmap_at(&self, storage: &Storage, block: BlockIndex) -> Result<Option<u64>> {
        Entry::bitmap_from_raw(self.raw(storage, self.geometry.bitmap_slot_of(block))?)
    }

    /// Changes the entry of a block. Readers see it at once, the file with the next flush.
    pub(crate) fn set(&self, storage: &Storage, block: BlockIndex, entry: Entry) -> Result<()> {
        self.set_slot(storage, self.geometry.slot_of(block), entry)
    }

    /// As [`set`](Self::set), for the sector bitmap of a block's chunk.
    pub(crate) fn set_bitmap(
        &self,
        storage: &Storage,
        block: BlockIndex,
        entry: Entry,
    ) -> Result<()> {
        self.set_slot(storage, self.geometry.bitmap_slot_of(block), entry)
    }

    /// Visits the entries of all blocks from `first` on, pending changes included, until told to
    /// stop. Holes of the file are not read. Entries are raw: states and offsets unchecked.
    pub(crate) fn walk(
        &self,
        storage: &Storage,
        first: BlockIndex,
        mut visit: impl FnMut(Stretch<'_>) -> Result<ControlFlow<()>>,
    ) -> Result<()> {
        let slot_count = self.geometry.slot_count();
        let mut slot = self.geometry.slot_of(first);
        let mut buf = Vec::new();
        let mut piece = WALK_ENTRIES_FIRST;
        while slot.0 < slot_count {
            let (dirty, clean_end) = self.dirty_at(slot, slot_count);
            let end = if let Some(page) = dirty {
                let (_, within) = place(self.slot_at(slot));
                buf.clear();
                buf.extend(entries(&page[within..]));
                let end = slot_count.min(slot.0 + buf.len() as u64);
                buf.truncate(to_usize(end - slot.0));
                if self.visit_entries(slot, &buf, &mut visit)?.is_break() {
                    return Ok(());
                }
                end
            } else {
                let at = self.slot_at(slot);
                let extent = storage.hole_at(at, self.slot_at(SlotIndex(clean_end)))?;
                let whole = (extent.end - at) / 8;
                if extent.is_hole && whole > 0 {
                    let end = SlotIndex(slot.0 + whole);
                    let [first, last] = [slot, end].map(|slot| {
                        let block = self.geometry.block_from(slot).0;
                        block.min(self.geometry.block_count())
                    });
                    if first < last && visit(Stretch::Hole(first..last))?.is_break() {
                        return Ok(());
                    }
                    end.0
                } else {
                    let count = whole.clamp(1, piece);
                    piece = (piece * 4).min(WALK_ENTRIES);
                    read_entries(storage, at, to_usize(count), &mut buf)?;
                    if self.visit_entries(slot, &buf, &mut visit)?.is_break() {
                        return Ok(());
                    }
                    slot.0 + count
                }
            };
            slot = SlotIndex(end);
        }
        Ok(())
    }

    /// Checks a stored block: inside the file, outside of every structure.
    ///
    /// Of the last block only the part that belongs to the disk has to be in the file: QEMU ends
    /// fixed images there.
    pub(crate) fn check_stored(&self, storage: &Storage, block: BlockIndex, at: u64) -> Result<()> {
        let disk = self.geometry.disk_range(block);
        let end = at.checked_add(disk.end - disk.start);
        let damaged = |detail| {
            let slot = self.slot_at(self.geometry.slot_of(block));
            Err(Error::damaged("BAT entry", detail).offset(slot))
        };
        match end {
            Some(end) if end <= storage.len() => {}
            _ => return damaged("block lies past the end of the file"),
        }
        match self.is_free(at, self.geometry.block_size().into()) {
            true => Ok(()),
            false => damaged("block lies over a structure of the image"),
        }
    }

    /// Checks the entry of a sector bitmap like that of a block, and says where the bitmap lies.
    pub(crate) fn check_bitmap(
        &self,
        storage: &Storage,
        slot: SlotIndex,
        raw: u64,
    ) -> Result<Option<u64>> {
        let place = |error: Error| error.offset(self.slot_at(slot));
        let Some(at) = Entry::bitmap_from_raw(raw).map_err(place)? else {
            return Ok(None);
        };
        if at
            .checked_add(BITMAP_LEN)
            .is_none_or(|end| end > storage.len())
        {
            let detail = "sector bitmap lies past the end of the file";
            return Err(place(Error::damaged("BAT entry", detail)));
        }
        match self.is_free(at, BITMAP_LEN) {
            true => Ok(Some(at)),
            false => {
                let detail = "sector bitmap lies over a structure of the image";
                Err(place(Error::damaged("BAT entry", detail)))
            }
        }
    }

    fn is_free(&self, at: u64, len: u64) -> bool {
        self.regions.is_free(&(at..at + len))
    }

    fn visit_entries(
        &self,
        slot: SlotIndex,
        raw: &[u64],
        visit: &mut impl FnMut(Stretch<'_>) -> Result<ControlFlow<()>>,
    ) -> Result<ControlFlow<()>> {
        let mut slot = slot;
        let mut raw = raw;
        while let Some(first) = raw.first() {
            let Some(block) = self.geometry.block_of(slot) else {
                if self.geometry.has_bitmaps() && visit(Stretch::Bitmap(slot, *first))?.is_break() {
                    return Ok(ControlFlow::Break(()));
                }
                (slot, raw) = (SlotIndex(slot.0 + 1), &raw[1..]);
                continue;
            };
            let count = self.geometry.payload_slots_from(slot).min(raw.len() as u64);
            let (entries, rest) = raw.split_at(to_usize(count));
            // In the last chunk there can be entries of blocks behind the end of the disk.
            let there = self.geometry.block_count().saturating_sub(block.0);
            let there = &entries[..to_usize(there.min(count))];
            if !there.is_empty() && visit(Stretch::Entries(block, there))?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
            (slot, raw) = (SlotIndex(slot.0 + count), rest);
        }
        Ok(ControlFlow::Continue(()))
    }

    /// The changed page that holds `slot`, or the slot where the next changed page begins.
    fn dirty_at(&self, slot: SlotIndex, slot_count: u64) -> (Option<Arc<Page>>, u64) {
        let (page, _) = place(self.slot_at(slot));
        match self.pages.dirty_from(page) {
            Some((found, dirty)) if found == page => (Some(dirty), slot_count),
            Some((next, _)) if next < self.regions.bat.end => {
                let next = (next - self.regions.bat.start) / 8;
                (None, slot_count.min(next))
            }
            _ => (None, slot_count),
        }
    }

    fn raw(&self, storage: &Storage, slot: SlotIndex) -> Result<u64> {
        let (page, within) = place(self.slot_at(slot));
        let look =
            |page: &Page| u64::from_le_bytes(page[within..within + 8].try_into().expect("8 bytes"));
        self.pages.look(page, || self.load(storage, page), look)
    }

    fn set_slot(&self, storage: &Storage, slot: SlotIndex, entry: Entry) -> Result<()> {
        let (page, within) = place(self.slot_at(slot));
        let edit = |page: &mut Page| {
            page[within..within + 8].copy_from_slice(&entry.to_raw().to_le_bytes());
        };
        self.pages.change(page, || self.load(storage, page), edit)
    }

    /// Reads the page of the table at this byte offset of the file and checks its entries.
    fn load(&self, storage: &Storage, page_at: u64) -> Result<Box<Page>> {
        let mut page = Box::new([0; PAGE_LEN]);
        // The file may end behind the last entry, before the page does.
        let there = storage.len().saturating_sub(page_at) / 8 * 8;
        let there = to_usize(there.min(PAGE_LEN as u64));
        storage
            .read_at(page_at, &mut page[..there])
            .map_err(|error| error.of("BAT"))?;
        let first = (page_at - self.regions.bat.start) / 8;
        for (slot, raw) in (first..self.geometry.slot_count()).zip(entries(&page[..])) {
            self.check_entry(storage, SlotIndex(slot), raw)?;
        }
        Ok(page)
    }

    /// Checks one entry by itself: state, reserved bits, place.
    fn check_entry(&self, storage: &Storage, slot: SlotIndex, raw: u64) -> Result<()> {
        let Some(block) = self.geometry.block_of(slot) else {
            // Without a parent the entries of bitmaps mean nothing.
            if self.geometry.has_bitmaps() {
                self.check_bitmap(storage, slot, raw)?;
            }
            return Ok(());
        };
        if block.0 >= self.geometry.block_count() {
            return Ok(());
        }
        let entry = Entry::from_raw(raw, self.geometry.has_bitmaps());
        match entry
            .map_err(|error| error.offset(self.slot_at(slot)))?
            .stored_at()
        {
            Some(at) => self.check_stored(storage, block, at),
            None => Ok(()),
        }
    }

    /// Byte offset in the file of an entry.
    pub(crate) fn slot_at(&self, slot: SlotIndex) -> u64 {
        self.regions.bat.start + slot.0 * 8
    }
}

fn read_entries(storage: &Storage, at: u64, count: usize, buf: &mut Vec<u64>) -> Result<()> {
    let mut bytes = vec![0; count * 8];
    storage
        .read_at(at, &mut bytes)
        .map_err(|error| error.of("BAT"))?;
    buf.clear();
    buf.extend(entries(&bytes));
    Ok(())
}

fn entries(bytes: &[u8]) -> impl Iterator<Item = u64> {
    let (entries, _) = bytes.as_chunks::<8>();
    entries.iter().map(|entry| u64::from_le_bytes(*entry))
}

const STATE_BITS: u64 = 0b111;
const RESERVED_BITS: u64 = 0xF_FFF8;
const PRESENT: u64 = 6;
const PARTIALLY_PRESENT: u64 = 7;
/// Entries read at first by a walk, 4 KiB: many walks end soon.
const WALK_ENTRIES_FIRST: u64 = 1 << 9;
/// Entries read at once by a long walk: 1 MiB.
const WALK_ENTRIES: u64 = 1 << 17;

#[cfg(test)]
mod tests {
    // Goal: entries with no meaning are refused. Method: one of each.
    use super::*;

    #[test]
    fn states_without_meaning_are_refused() {
        let states = [0, 1, 2, 3, 6].map(|raw| Entry::from_raw(raw, false).unwrap().state());
        let known = [
            State::NotPresent,
            State::Undefined,
            State::Zero,
            State::Unmapped,
            State::Present,
        ];
        assert_eq!(states, known);
        assert!(
            [4, 5, 7, 8, 1 << 19]
                .iter()
                .all(|raw| Entry::from_raw(*raw, false).is_err())
        );
    }

    #[test]
    fn only_a_child_can_be_partially_present() {
        assert!(Entry::from_raw(5 << 20 | 7, false).is_err());
        let entry = Entry::from_raw(5 << 20 | 7, true).unwrap();
        assert_eq!(entry, Entry::partially_present(5 << 20));
        assert_eq!(entry.state(), State::PartiallyPresent);
    }

    #[test]
    fn a_sector_bitmap_is_there_or_not() {
        assert_eq!(Entry::bitmap_from_raw(0).unwrap(), None);
        assert_eq!(Entry::bitmap_from_raw(5 << 20 | 6).unwrap(), Some(5 << 20));
        assert!(
            [1, 2, 3, 7, 14]
                .iter()
                .all(|raw| Entry::bitmap_from_raw(*raw).is_err())
        );
    }

    #[test]
    fn an_anchor_is_no_place() {
        let unmapped = Entry::from_raw(5 << 20 | 3, false).unwrap();
        assert_eq!(unmapped.stored_at(), None);
        assert_eq!(Entry::present(5 << 20).stored_at(), Some(5 << 20));
    }
}
