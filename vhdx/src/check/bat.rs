//! Checks every entry of the BAT that counts (section 2.5), and what space blocks take.

use std::ops::Range;

use super::findings::Findings;
use super::metadata::Disk;
use super::regions::Layout;
use super::space::Space;
use super::view::View;
use super::{CheckSummary, Severity};
use crate::error::Result;
use crate::format::{FILE_LEN_MAX, MIB, to_usize};
use crate::geometry::{BlockIndex, SlotIndex};
use crate::region::is_free;

/// Streams the table through; holes of the file are not read.
pub(super) fn check(
    view: &View<'_>,
    layout: &Layout,
    disk: &Disk,
    findings: &mut Findings,
    summary: &mut CheckSummary,
) -> Result<()> {
    let Some(region) = &layout.bat else {
        return Ok(());
    };
    if let Some(metadata) = &layout.metadata
        && metadata.start < region.end
        && region.start < metadata.end
    {
        // The overlap was told. Metadata read as entries would be a flood of nonsense.
        findings.note(BAT, region.start, "bat-not-checked", || {
            "the metadata lie over it".to_owned()
        });
        return Ok(());
    }
    let mut table = Table {
        view,
        layout,
        disk,
        bat_at: region.start,
        space: Space::new(view.len()),
        cut_block: None,
        partial: None,
        fixed_gaps: None,
        findings,
        summary,
    };
    if let Some(slot_count) = table.check_region(region) {
        table.walk(slot_count)?;
        table.finish();
    }
    Ok(())
}

struct Table<'a, 'f> {
    view: &'a View<'f>,
    layout: &'a Layout,
    disk: &'a Disk,
    /// Byte offset of the first entry in the file.
    bat_at: u64,
    space: Space,
    /// The part of the last block that lies behind the end of the disk: nobody reads it.
    cut_block: Option<Range<u64>>,
    /// Where the first entry with state 7 is in a chunk whose bitmap entry is still to come.
    partial: Option<u64>,
    /// Blocks without a place in a fixed image: where the first entry is, and how many.
    fixed_gaps: Option<(u64, u64)>,
    findings: &'a mut Findings,
    summary: &'a mut CheckSummary,
}

impl Table<'_, '_> {
    /// How many entries can be read, when region and file hold them all.
    fn check_region(&mut self, region: &Range<u64>) -> Option<u64> {
        let geometry = &self.disk.geometry;
        let slot_count = match self.disk.has_parent {
            // The last entry is that of the last chunk's bitmap.
            true => {
                let ratio = geometry.payload_slots_from(SlotIndex(0));
                geometry.block_count().div_ceil(ratio) * (ratio + 1)
            }
            false => geometry.slot_count(),
        };
        let needed = slot_count * 8;
        if needed > region.end - region.start {
            self.findings
                .error(BAT, region.start, "bat-region-small", || {
                    let len = region.end - region.start;
                    format!("its region has {len:#x} bytes, and {needed:#x} are needed")
                });
            return None;
        }
        if region.start + needed > self.view.len() {
            self.findings.error(BAT, region.start, "bat-truncated", || {
                format!("the file ends before it or in its {needed:#x} bytes")
            });
            return None;
        }
        Some(slot_count)
    }

    fn walk(&mut self, slot_count: u64) -> Result<()> {
        let mut buf = vec![0; to_usize(slot_count.min(PIECE_ENTRIES) * 8)];
        let mut slot = 0;
        while slot < slot_count {
            let at = self.slot_at(slot);
            let extent = self.view.hole_at(at, self.slot_at(slot_count))?;
            let whole = (extent.end - at) / 8;
            if extent.is_hole && whole > 0 {
                self.skip_zeros(slot, whole);
                slot += whole;
                continue;
            }
            let count = whole.clamp(1, PIECE_ENTRIES);
            let bytes = &mut buf[..to_usize(count * 8)];
            if !self.view.read_at(at, bytes)? {
                self.findings.error(BAT, at, "bat-truncated", || {
                    "the file became shorter while it was read".to_owned()
                });
                return Ok(());
            }
            let (entries, _) = bytes.as_chunks::<8>();
            for (slot, raw) in (slot..).zip(entries) {
                self.check_slot(slot, u64::from_le_bytes(*raw));
            }
            slot += count;
        }
        Ok(())
    }

    /// Passes over `count` entries that are all 0.
    fn skip_zeros(&mut self, slot: u64, count: u64) {
        let geometry = &self.disk.geometry;
        let until_bitmap = geometry.payload_slots_from(SlotIndex(slot));
        let end = geometry.block_from(SlotIndex(slot + count)).0;
        let first = geometry.block_from(SlotIndex(slot)).0;
        let blocks = end.min(geometry.block_count()).saturating_sub(first);
        self.summary.blocks.not_present += blocks;
        if blocks > 0 {
            self.count_gaps(slot, blocks);
        }
        if until_bitmap < count {
            self.end_chunk(slot + until_bitmap, false);
        }
    }

    fn check_slot(&mut self, slot: u64, raw: u64) {
        match self.disk.geometry.block_of(SlotIndex(slot)) {
            // A chunk that is not full has entries without a block in a differencing image.
            Some(block) if block.0 >= self.disk.geometry.block_count() => {}
            Some(block) => self.check_block(slot, block, raw),
            None => self.check_bitmap(slot, raw),
        }
    }

    fn check_block(&mut self, slot: u64, block: BlockIndex, raw: u64) {
        let (state, offset) = (raw & STATE_BITS, raw & !LOW_BITS);
        let blocks = &mut self.summary.blocks;
        *match state {
            0 => &mut blocks.not_present,
            1 => &mut blocks.undefined,
            2 => &mut blocks.zero,
            3 => &mut blocks.unmapped,
            6 => &mut blocks.present,
            7 => &mut blocks.partial,
            _ => &mut blocks.invalid,
        } += 1;
        if raw == 0 {
            self.count_gaps(slot, 1);
            return;
        }
        self.check_reserved(slot, raw, Severity::Error);
        match state {
            6 => self.check_stored(slot, block, offset),
            7 if self.disk.has_parent => {
                self.check_stored(slot, block, offset);
                self.partial.get_or_insert(self.bat_at + slot * 8);
            }
            0..=3 => {
                self.count_gaps(slot, 1);
                if matches!(state, 0 | 2) && offset != 0 {
                    self.check_no_offset(slot, state, offset);
                }
            }
            _ => {
                let at = self.slot_at(slot);
                self.findings.error(ENTRY, at, "bat-state", || {
                    format!("block {}: state {state} means nothing here", block.0)
                });
            }
        }
    }

    /// States 0 and 2 have no place. Some readers fail at a zero block with one.
    fn check_no_offset(&mut self, slot: u64, state: u64, offset: u64) {
        let at = self.slot_at(slot);
        let severity = match state {
            2 => Severity::Warning,
            _ => Severity::Note,
        };
        self.findings
            .add(severity, ENTRY, at, "bat-offset-unused", || {
                format!("state {state} with the offset {offset:#x}")
            });
    }

    fn check_reserved(&mut self, slot: u64, raw: u64, severity: Severity) {
        if raw & LOW_BITS & !STATE_BITS != 0 {
            let at = self.slot_at(slot);
            self.findings.add(severity, ENTRY, at, "bat-reserved", || {
                format!("reserved bits are set in {raw:#x}")
            });
        }
    }

    /// Of the last block only what belongs to the disk has to be in the file: QEMU ends fixed
    /// images there.
    fn check_stored(&mut self, slot: u64, block: BlockIndex, offset: u64) {
        let disk = self.disk.geometry.disk_range(block);
        let whole = offset.saturating_add(self.disk.geometry.block_size().into());
        let used = offset..offset.saturating_add(disk.end - disk.start);
        if self.check_place(slot, &used, &(offset..whole)) && used.end < whole {
            self.cut_block = Some(used.end..whole);
        }
    }

    fn check_bitmap(&mut self, slot: u64, raw: u64) {
        let (state, offset) = (raw & STATE_BITS, raw & !LOW_BITS);
        let at = self.slot_at(slot);
        if !self.disk.has_parent {
            if raw != 0 {
                self.findings.warning(ENTRY, at, "bat-bitmap-unused", || {
                    format!("entry {raw:#x} for a sector bitmap, and there are none")
                });
            }
            return;
        }
        self.check_reserved(slot, raw, Severity::Error);
        match state {
            0 => {}
            6 => {
                self.summary.bitmap_blocks += 1;
                let range = offset..offset.saturating_add(MIB);
                self.check_place(slot, &range, &range);
            }
            _ => self.findings.error(ENTRY, at, "bat-state", || {
                format!("state {state} means nothing for a sector bitmap")
            }),
        }
        self.end_chunk(slot, state == 6);
    }

    /// At the bitmap entry of a chunk: a block that is stored in part needs the bitmap.
    fn end_chunk(&mut self, slot: u64, has_bitmap: bool) {
        let Some(partial_at) = self.partial.take() else {
            return;
        };
        if !has_bitmap {
            let at = self.slot_at(slot);
            self.findings.error(ENTRY, at, "bat-bitmap-missing", || {
                format!("no sector bitmap, and the block of the entry at {partial_at:#x} needs it")
            });
        }
    }

    /// Checks where a block lies. `used` has to be in the file, `whole` outside of structures.
    fn check_place(&mut self, slot: u64, used: &Range<u64>, whole: &Range<u64>) -> bool {
        let at = self.slot_at(slot);
        let place = used.start;
        let is_inside = used.end <= self.view.len();
        if !is_inside {
            let len = self.view.len();
            self.findings.error(ENTRY, at, "bat-past-end", || {
                format!("block at {place:#x} lies past the end of the file, {len:#x}")
            });
        }
        let is_free = is_free(&self.layout.occupied, whole);
        if !is_free {
            self.findings.error(ENTRY, at, "bat-over-structure", || {
                format!("block at {place:#x} lies over a structure of the image")
            });
        }
        if !is_inside || !is_free {
            return false;
        }
        if used.end > FILE_LEN_MAX {
            self.findings.error(ENTRY, at, "bat-beyond-limit", || {
                format!("block at {place:#x} lies where no file is believed to reach")
            });
            return false;
        }
        if let Some(taken) = self.space.take(used) {
            self.findings.error(ENTRY, at, "bat-shared-space", || {
                format!("block at {place:#x} shares the MiB at {taken:#x} with another")
            });
        }
        true
    }

    fn count_gaps(&mut self, slot: u64, count: u64) {
        if self.disk.is_fixed && !self.disk.has_parent {
            let at = self.slot_at(slot);
            self.fixed_gaps.get_or_insert((at, 0)).1 += count;
        }
    }

    fn finish(&mut self) {
        if let Some((at, count)) = self.fixed_gaps {
            self.findings.warning(BAT, at, "fixed-unallocated", || {
                format!("the image is fixed, yet {count} blocks have no place")
            });
        }
        for range in self.layout.occupied.iter().chain(&self.cut_block) {
            self.space.take(range);
        }
        let free = self.space.unreferenced();
        self.summary.unreferenced_len = free.len;
        self.summary.unreferenced_ranges = free.ranges;
        if free.len > 0 {
            self.findings
                .note("file", free.first_at, "unreferenced-space", || {
                    format!(
                        "{} bytes in {} ranges are not in use",
                        free.len, free.ranges
                    )
                });
        }
    }

    /// Byte offset of an entry in the file.
    fn slot_at(&self, slot: u64) -> u64 {
        self.bat_at + slot * 8
    }
}

const STATE_BITS: u64 = 0b111;
/// State and reserved bits; above them is the offset.
const LOW_BITS: u64 = MIB - 1;
/// Entries read at once: 1 MiB.
const PIECE_ENTRIES: u64 = 1 << 17;
const BAT: &str = "BAT";
const ENTRY: &str = "BAT entry";
