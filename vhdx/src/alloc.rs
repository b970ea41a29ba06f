//! New space for blocks. It is only ever taken at the end of the file.

use std::ops::ControlFlow;

use crate::bat::{Bat, Entry, Stretch};
use crate::error::{Error, Result};
use crate::format::{FILE_LEN_MAX, MIB, to_usize};
use crate::geometry::{BlockIndex, Geometry};
use crate::storage::Storage;

/// Where the next block goes, found once by looking at the whole BAT.
#[derive(Debug)]
pub(crate) struct Allocator {
    /// Byte offset of the next block, a multiple of 1 MiB. Nothing is at or behind it.
    next: u64,
    /// Bytes of the file before it was grown here; it is never cut below.
    len_before: u64,
    has_grown: bool,
}

impl Allocator {
    /// Looks at every entry, with one bit for each MiB of the file.
    ///
    /// # Errors
    /// [`Damaged`](crate::ErrorKind::Damaged) when two blocks overlap, or one overlaps a
    /// structure or lies past the end: writing to such an image could destroy more of it.
    pub(crate) fn scan(geometry: &Geometry, bat: &Bat, storage: &Storage) -> Result<Self> {
        let len = storage.len();
        let mut taken = vec![0_u64; to_usize(len.min(FILE_LEN_MAX).div_ceil(MIB).div_ceil(64))];
        let mut next = len;
        bat.walk(storage, BlockIndex(0), |stretch| {
            let Stretch::Entries(first, entries) = stretch else {
                return Ok(ControlFlow::Continue(()));
            };
            for (block, raw) in (first.0..).map(BlockIndex).zip(entries) {
                let Some(at) = Entry::from_raw(*raw)?.stored_at() else {
                    continue;
                };
                bat.check_stored(storage, block, at)?;
                let disk = geometry.disk_range(block);
                for mib in at / MIB..(at + (disk.end - disk.start)).div_ceil(MIB) {
                    let (word, bit) = (to_usize(mib / 64), 1 << (mib % 64));
                    let word = taken
                        .get_mut(word)
                        .ok_or_else(|| Error::unsupported("file is longer than 128 TiB"))?;
                    if *word & bit != 0 {
                        let error = Error::damaged("BAT", "two blocks share space in the file");
                        return Err(error.offset(mib * MIB));
                    }
                    *word |= bit;
                }
                next = next.max(at + u64::from(geometry.block_size()));
            }
            Ok(ControlFlow::Continue(()))
        })?;
        let regions_end = bat.regions().occupied.last().map_or(0, |range| range.end);
        let next = next.max(regions_end).next_multiple_of(MIB);
        Ok(Self {
            next,
            len_before: len,
            has_grown: false,
        })
    }

    /// Takes `len` bytes that read zero, and grows the file where it has to.
    pub(crate) fn allocate(&mut self, storage: &Storage, len: u64) -> Result<u64> {
        let at = self.next;
        let end = at.checked_add(len).filter(|end| *end <= FILE_LEN_MAX);
        let end = end.ok_or_else(|| Error::unsupported("file would be longer than 128 TiB"))?;
        let file_len = storage.len();
        if end > file_len {
            self.has_grown = true;
            storage.set_len(end.max((file_len + GROWTH_STEP).min(FILE_LEN_MAX)))?;
        }
        self.next = end;
        Ok(at)
    }

    /// How long the file has to be when nothing more is allocated.
    pub(crate) fn len_needed(&self) -> u64 {
        if self.has_grown {
            self.next.max(self.len_before)
        } else {
            self.len_before
        }
    }
}

/// The file grows by this many bytes at least, since a new length costs more than space that is
/// given back on close.
const GROWTH_STEP: u64 = 64 * MIB;
