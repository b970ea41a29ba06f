//! The block allocation table (section 2.5), read page by page and never held whole.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::{ControlFlow, Range};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::{Error, ErrorKind, Result};
use crate::format::{MIB, PAGE, PAGE_LEN, to_usize};
use crate::geometry::{BlockIndex, Geometry, SlotIndex};
use crate::region::Regions;
use crate::storage::Storage;

/// One entry: state in bits 0..3, 17 reserved bits, offset in MiB above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry(u64);

/// What an entry says of its block. States 4, 5 and 7 have no meaning in images without parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    NotPresent,
    Undefined,
    Zero,
    Unmapped,
    Present,
}

impl Entry {
    /// The block is zero; the offset has to be 0.
    pub(crate) const ZERO: Self = Self(2);

    /// The block lies at this byte offset of the file, a multiple of 1 MiB.
    pub(crate) fn present(at: u64) -> Self {
        debug_assert!(at.is_multiple_of(MIB) && at > 0);
        Self(at | PRESENT)
    }

    pub(crate) fn from_raw(raw: u64) -> Result<Self> {
        if raw & RESERVED_BITS != 0 {
            return Err(Error::damaged("BAT entry", "reserved bits set"));
        }
        if raw & STATE_BITS != PRESENT && raw & STATE_BITS > 3 {
            return Err(Error::damaged(
                "BAT entry",
                format!("state {}", raw & STATE_BITS),
            ));
        }
        Ok(Self(raw))
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
            _ => State::Present,
        }
    }

    /// Byte offset in the file when the block is stored there.
    pub(crate) fn stored_at(self) -> Option<u64> {
        (self.state() == State::Present).then_some(self.0 & !(STATE_BITS | RESERVED_BITS))
    }
}

/// Entries as they follow each other in the table, without those of sector bitmaps.
#[derive(Debug)]
pub(crate) enum Stretch<'a> {
    /// These blocks are in a hole of the file: all in state 0.
    Hole(Range<u64>),
    /// Raw entries of the blocks from the first one on.
    Entries(BlockIndex, &'a [u64]),
}

/// The table of one image: clean pages in a bounded cache, changed ones until they are flushed.
#[derive(Debug)]
pub(crate) struct Bat {
    geometry: Geometry,
    regions: Regions,
    pages: Mutex<Pages>,
}

type Page = [u64; PAGE_ENTRIES];

#[derive(Debug, Default)]
struct Pages {
    clean: HashMap<u64, Box<Page>>,
    /// Clean pages, oldest first.
    order: VecDeque<u64>,
    dirty: BTreeMap<u64, DirtyPage>,
    changes: u64,
}

#[derive(Clone, Debug)]
struct DirtyPage {
    entries: Arc<Page>,
    /// Number of the latest change in the page, so that a flush sees whether one came later.
    change: u64,
}

/// A changed page as it was when a flush began.
#[derive(Debug)]
pub(crate) struct PendingPage {
    page: u64,
    change: u64,
    /// Byte offset in the file.
    pub(crate) at: u64,
    pub(crate) bytes: [u8; PAGE_LEN],
}

impl Bat {
    /// Checks that the table fits its region and the file, and loads nothing.
    pub(crate) fn new(geometry: Geometry, regions: Regions, storage: &Storage) -> Result<Self> {
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
            pages: Mutex::default(),
        })
    }

    pub(crate) fn regions(&self) -> &Regions {
        &self.regions
    }

    /// The entry of a block of the disk, pending changes included.
    pub(crate) fn entry(&self, storage: &Storage, block: BlockIndex) -> Result<Entry> {
        let slot = self.geometry.slot_of(block);
        let (page, within) = place(slot);
        let mut pages = self.pages();
        if let Some(dirty) = pages.dirty.get(&page) {
            return Entry::from_raw(dirty.entries[within]);
        }
        if let Some(clean) = pages.clean.get(&page) {
            return Entry::from_raw(clean[within]);
        }
        let entries = self.load(storage, page)?;
        let raw = entries[within];
        pages.keep(page, entries);
        Entry::from_raw(raw)
    }

    /// Changes the entry of a block. Readers see it at once, the file with the next flush.
    pub(crate) fn set(&self, storage: &Storage, block: BlockIndex, entry: Entry) -> Result<()> {
        let (page, within) = place(self.geometry.slot_of(block));
        let mut pages = self.pages();
        pages.changes += 1;
        let change = pages.changes;
        if !pages.dirty.contains_key(&page) {
            let entries = match pages.clean.get(&page) {
                Some(clean) => clean.clone(),
                None => self.load(storage, page)?,
            };
            pages.dirty.insert(
                page,
                DirtyPage {
                    entries: Arc::from(entries),
                    change,
                },
            );
        }
        let dirty = pages.dirty.get_mut(&page).expect("put there just now");
        Arc::make_mut(&mut dirty.entries)[within] = entry.to_raw();
        dirty.change = change;
        Ok(())
    }

    pub(crate) fn dirty_count(&self) -> usize {
        self.pages().dirty.len()
    }

    /// The changed pages as they are now.
    pub(crate) fn pending(&self) -> Vec<PendingPage> {
        let pages = self.pages();
        let pending = pages.dirty.iter().map(|(&page, dirty)| PendingPage {
            page,
            change: dirty.change,
            at: self.regions.bat.start + page * PAGE,
            bytes: to_bytes(&dirty.entries),
        });
        pending.collect()
    }

    /// These pages are durable in the file; those changed again since stay pending.
    pub(crate) fn flushed(&self, written: &[PendingPage]) {
        let mut pages = self.pages();
        for done in written {
            if pages
                .dirty
                .get(&done.page)
                .is_some_and(|dirty| dirty.change == done.change)
                && let Some(dirty) = pages.dirty.remove(&done.page)
            {
                pages.keep(done.page, Box::new(*dirty.entries));
            }
        }
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
        while slot.0 < slot_count {
            let (dirty, clean_end) = self.dirty_at(slot, slot_count);
            let end = if let Some(page) = dirty {
                let (number, within) = place(slot);
                let end = slot_count.min((number + 1) * PAGE_ENTRIES as u64);
                let raw = &page[within..within + to_usize(end - slot.0)];
                if self.visit_entries(slot, raw, &mut visit)?.is_break() {
                    return Ok(());
                }
                end
            } else {
                let at = self.slot_at(slot);
                let extent = storage.hole_at(at, self.slot_at(SlotIndex(clean_end)))?;
                let whole = (extent.end - at) / 8;
                if extent.is_hole && whole > 0 {
                    let end = SlotIndex(slot.0 + whole);
                    let blocks = self.geometry.block_from(slot).0..self.geometry.block_from(end).0;
                    if visit(Stretch::Hole(blocks))?.is_break() {
                        return Ok(());
                    }
                    end.0
                } else {
                    let count = whole.clamp(1, WALK_ENTRIES);
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
        match self
            .regions
            .is_free(&(at..at + u64::from(self.geometry.block_size())))
        {
            true => Ok(()),
            false => damaged("block lies over a structure of the image"),
        }
    }

    fn visit_entries(
        &self,
        slot: SlotIndex,
        raw: &[u64],
        visit: &mut impl FnMut(Stretch<'_>) -> Result<ControlFlow<()>>,
    ) -> Result<ControlFlow<()>> {
        let mut slot = slot;
        let mut raw = raw;
        while !raw.is_empty() {
            let count = self.geometry.payload_slots_from(slot).min(raw.len() as u64);
            let (entries, rest) = raw.split_at(to_usize(count));
            if let (Some(block), true) = (self.geometry.block_of(slot), count > 0)
                && visit(Stretch::Entries(block, entries))?.is_break()
            {
                return Ok(ControlFlow::Break(()));
            }
            // An entry of a sector bitmap says nothing here and is passed over.
            let skipped = usize::from(count == 0);
            raw = &rest[skipped..];
            slot = SlotIndex(slot.0 + count + skipped as u64);
        }
        Ok(ControlFlow::Continue(()))
    }

    /// The changed page that holds `slot`, or the slot where the next changed page begins.
    fn dirty_at(&self, slot: SlotIndex, slot_count: u64) -> (Option<Arc<Page>>, u64) {
        let (page, _) = place(slot);
        let pages = self.pages();
        match pages.dirty.range(page..).next() {
            Some((&found, dirty)) if found == page => (Some(dirty.entries.clone()), slot_count),
            Some((&next, _)) => (None, slot_count.min(next * PAGE_ENTRIES as u64)),
            None => (None, slot_count),
        }
    }

    fn load(&self, storage: &Storage, page: u64) -> Result<Box<Page>> {
        let at = self.regions.bat.start + page * PAGE;
        let mut buf = Vec::new();
        // The file may end behind the last entry, before the page does.
        let count = (storage.len().saturating_sub(at) / 8).min(PAGE_ENTRIES as u64);
        read_entries(storage, at, to_usize(count), &mut buf)?;
        buf.resize(PAGE_ENTRIES, 0);
        let first = page * PAGE_ENTRIES as u64;
        for (slot, raw) in (first..self.geometry.slot_count()).zip(&buf) {
            let Some(block) = self.geometry.block_of(SlotIndex(slot)) else {
                continue;
            };
            let entry = Entry::from_raw(*raw)
                .map_err(|error| error.offset(self.slot_at(SlotIndex(slot))))?;
            if let Some(at) = entry.stored_at() {
                self.check_stored(storage, block, at)?;
            }
        }
        Ok(buf
            .into_boxed_slice()
            .try_into()
            .expect("a page of entries"))
    }

    /// Byte offset in the file of an entry.
    fn slot_at(&self, slot: SlotIndex) -> u64 {
        self.regions.bat.start + slot.0 * 8
    }

    fn pages(&self) -> MutexGuard<'_, Pages> {
        // Nothing between two changes of the maps can panic.
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pages {
    fn keep(&mut self, page: u64, entries: Box<Page>) {
        if self.clean.len() >= CLEAN_PAGES_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.clean.remove(&oldest);
        }
        if self.clean.insert(page, entries).is_none() {
            self.order.push_back(page);
        }
    }
}

fn place(slot: SlotIndex) -> (u64, usize) {
    let entries = PAGE_ENTRIES as u64;
    (slot.0 / entries, to_usize(slot.0 % entries))
}

fn read_entries(storage: &Storage, at: u64, count: usize, buf: &mut Vec<u64>) -> Result<()> {
    let mut bytes = vec![0; count * 8];
    storage
        .read_at(at, &mut bytes)
        .map_err(|error| error.of("BAT"))?;
    buf.clear();
    let (entries, _) = bytes.as_chunks::<8>();
    buf.extend(entries.iter().map(|entry| u64::from_le_bytes(*entry)));
    Ok(())
}

fn to_bytes(page: &Page) -> [u8; PAGE_LEN] {
    let mut bytes = [0; PAGE_LEN];
    for (slot, entry) in bytes.chunks_exact_mut(8).zip(page) {
        slot.copy_from_slice(&entry.to_le_bytes());
    }
    bytes
}

const STATE_BITS: u64 = 0b111;
const RESERVED_BITS: u64 = 0xF_FFF8;
const PRESENT: u64 = 6;
/// Entries in a page of the file.
const PAGE_ENTRIES: usize = PAGE_LEN / 8;
/// 16 MiB of unchanged pages: they map 2 TiB at 1 MiB blocks, 64 TiB at 32 MiB.
const CLEAN_PAGES_MAX: usize = 4096;
/// Entries read at once by a walk: 1 MiB.
const WALK_ENTRIES: u64 = 1 << 17;

#[cfg(test)]
mod tests {
    // Goal: entries with no meaning are refused. Method: one of each.
    use super::*;

    #[test]
    fn states_without_meaning_are_refused() {
        let states = [0, 1, 2, 3, 6].map(|raw| Entry::from_raw(raw).unwrap().state());
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
                .all(|raw| Entry::from_raw(*raw).is_err())
        );
    }

    #[test]
    fn an_anchor_is_no_place() {
        assert_eq!(Entry::from_raw(5 << 20 | 3).unwrap().stored_at(), None);
        assert_eq!(Entry::present(5 << 20).stored_at(), Some(5 << 20));
    }
}
