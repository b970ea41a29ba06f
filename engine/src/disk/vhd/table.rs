//! The block table: for each block of the disk the sector of the file at which it is stored.

use std::ops::Range;

use failback_vhdx::{FileAt, Finding};

use super::check;
use super::geometry::Layout;
use super::header::Header;
use crate::error::{Error, Result};

/// The entry of a block that is not stored.
pub(super) const UNUSED: u32 = u32::MAX;

/// A block table in memory: 4 bytes a block, at most `BLOCKS_MAX` of them, and only as many as the
/// file really holds.
#[derive(Debug)]
pub(super) struct Table {
    at: u64,
    entries: Vec<u32>,
    /// Entries that are not [`UNUSED`].
    used: u64,
}

impl Table {
    /// Reads the table that `header` points to, which was checked to lie in the file.
    ///
    /// # Errors
    /// `Io`.
    pub(super) fn load(file: &dyn FileAt, header: &Header) -> Result<Self> {
        let len = usize::try_from(header.entry_count).expect("bounded by the header");
        let mut entries = Vec::with_capacity(len);
        let mut piece = vec![0; LOAD_PIECE.min(len * 4)];
        while entries.len() < len {
            let count = (piece.len() / 4).min(len - entries.len());
            let at = header.table_at + entries.len() as u64 * 4;
            let bytes = &mut piece[..count * 4];
            file.read_at(at, bytes)
                .map_err(|e| Error::io(e, "read block table").at(at))?;
            let numbers = bytes.chunks_exact(4);
            entries.extend(
                numbers.map(|four| u32::from_be_bytes(four.try_into().expect("chunks of four"))),
            );
        }
        let used = entries.iter().filter(|entry| **entry != UNUSED).count() as u64;
        Ok(Self {
            at: header.table_at,
            entries,
            used,
        })
    }

    /// The sector at which a block is stored; `None`: it is not.
    pub(super) fn entry(&self, block: u32) -> Option<u32> {
        let entry = self.entries.get(usize::try_from(block).ok()?)?;
        (*entry != UNUSED).then_some(*entry)
    }

    /// Says that a block is stored from now on.
    pub(super) fn set(&mut self, block: u32, entry: u32) {
        let place = usize::try_from(block)
            .ok()
            .and_then(|at| self.entries.get_mut(at));
        *place.expect("the table covers the disk") = entry;
        self.used += 1;
    }

    /// Where the entry of a block lies in the file.
    pub(super) fn entry_at(&self, block: u32) -> u64 {
        self.at + u64::from(block) * 4
    }

    /// Blocks that are stored, those past the end of the disk counted.
    pub(super) fn used_count(&self) -> u64 {
        self.used
    }

    /// Used entries of blocks from `count` on, past the end of the disk.
    pub(super) fn used_past(&self, count: u64) -> u64 {
        let skipped = usize::try_from(count).unwrap_or(usize::MAX);
        let rest = self.entries.iter().skip(skipped);
        rest.filter(|entry| **entry != UNUSED).count() as u64
    }

    /// The first stored block from `block` on and before `end`, or `end`; sooner where that is far:
    /// whoever asks again and again goes on well.
    pub(super) fn next_used(&self, block: u32, end: u32) -> u32 {
        let end = end.min(block.saturating_add(RUN_BLOCKS_MAX));
        (block..end)
            .find(|block| self.entry(*block).is_some())
            .unwrap_or(end)
    }

    /// Each stored block with the range of the file that it takes, bitmap included.
    pub(super) fn places(&self, layout: Layout) -> impl Iterator<Item = (u32, Range<u64>)> + '_ {
        (0_u32..)
            .zip(&self.entries)
            .filter(|(_, entry)| **entry != UNUSED)
            .map(move |(block, entry)| {
                let at = Layout::bitmap_at(*entry);
                (block, at..at + layout.stored_len())
            })
    }

    /// Checks each entry of a block of the disk: stored inside the file, beside `structures`, and
    /// beside every other block. Sorting finds overlaps; 8 bytes a stored block.
    pub(super) fn find_faults(
        &self,
        layout: Layout,
        structures: &[Range<u64>],
        limit: u64,
        findings: &mut Vec<Finding>,
    ) {
        let mut faults = Faults {
            table: self,
            found: 0,
            findings,
        };
        let disk_end = u32::try_from(layout.block_count()).unwrap_or(u32::MAX);
        let mut stored = Vec::with_capacity(usize::try_from(self.used).unwrap_or(0));
        for (block, place) in self.places(layout) {
            if block >= disk_end {
                break;
            }
            // The rest of a last block in part is nobody's.
            let used = layout.end_of(block) - layout.start_of(block);
            let end = place.start + layout.bitmap_len() as u64 + used;
            if end > limit {
                faults.add(block, "block-past-end", || {
                    format!("ends at {end:#x}, the content of the file at {limit:#x}")
                });
            }
            let is_over = |other: &&Range<u64>| other.start < end && place.start < other.end;
            if let Some(other) = structures.iter().find(is_over) {
                faults.add(block, "block-over-structure", || {
                    format!("lies over the structure at {:#x}", other.start)
                });
            }
            stored.push((place.start / super::SECTOR) << 32 | u64::from(block));
        }
        stored.sort_unstable();
        let stored_sectors = layout.stored_len() / super::SECTOR;
        for pair in stored.windows(2) {
            let [first, second] = [pair[0] >> 32, pair[1] >> 32];
            if second - first < stored_sectors {
                let block = u32::try_from(pair[1] & u64::from(u32::MAX)).expect("lower half");
                faults.add(block, "block-overlap", || {
                    let other = pair[0] & u64::from(u32::MAX);
                    format!("lies over block {other} at sector {first:#x}")
                });
            }
        }
        faults.end();
    }
}

/// Findings of a table, bounded: a hostile one has millions of bad entries.
struct Faults<'a> {
    table: &'a Table,
    found: usize,
    findings: &'a mut Vec<Finding>,
}

impl Faults<'_> {
    fn add(&mut self, block: u32, rule: &'static str, detail: impl FnOnce() -> String) {
        self.found += 1;
        if self.found <= FINDINGS_MAX {
            let detail = format!("block {block} {}", detail());
            let at = self.table.entry_at(block);
            self.findings
                .push(check::error("block table", at, rule, detail));
        }
    }

    fn end(self) {
        if self.found > FINDINGS_MAX {
            let detail = format!("{} further bad entries", self.found - FINDINGS_MAX);
            let rule = "blocks-not-listed";
            self.findings
                .push(check::error("block table", self.table.at, rule, detail));
        }
    }
}

/// Bytes read at once.
const LOAD_PIECE: usize = 1 << 20;
/// Bad entries that are told one by one.
const FINDINGS_MAX: usize = 1000;

/// Blocks looked at for one run: the largest disk in the usual blocks of 2 MiB.
const RUN_BLOCKS_MAX: u32 = 1 << 21;
