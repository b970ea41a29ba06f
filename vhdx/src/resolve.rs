//! Reading: from a range of the disk to where its bytes are.

use std::ops::{ControlFlow, Range};

use crate::bat::{Entry, State, Stretch};
use crate::error::{Error, Result};
use crate::extent::{AllocationSummary, Extent, ExtentKind, Place, Run};
use crate::geometry::BlockIndex;
use crate::image::Image;
use crate::overlay::Piece;

impl Image {
    /// Appends to `runs` where the bytes of `range` of the disk are: in order, without gaps, runs
    /// that continue each other merged. A place in the file is good until the next change of that
    /// block; whoever changes the image meanwhile keeps the two apart.
    ///
    /// # Errors
    /// [`InvalidArgument`](crate::ErrorKind::InvalidArgument) for a range past the end of the
    /// disk, [`Damaged`](crate::ErrorKind::Damaged) by entries of the BAT,
    /// [`Io`](crate::ErrorKind::Io). `runs` may then have got a part.
    pub fn resolve(&self, range: Range<u64>, runs: &mut Vec<Run>) -> Result<()> {
        self.check_range(&range)?;
        let first = runs.len();
        let overlay = self.storage.overlay();
        let mut at = range.start;
        while at < range.end {
            let block = self.geometry.block_at(at);
            let disk = self.geometry.disk_range(block);
            let end = disk.end.min(range.end);
            let Some(stored_at) = self.bat.entry(&self.storage, block)?.stored_at() else {
                Run::push(
                    runs,
                    first,
                    Run {
                        disk: at..end,
                        place: Place::Zero,
                    },
                );
                at = end;
                continue;
            };
            let file_at = |disk_at: u64| stored_at + (disk_at - disk.start);
            while at < end {
                let (place, to) = match &overlay {
                    None => (Place::File { at: file_at(at) }, end),
                    Some(overlay) => {
                        let (piece, file_end) = overlay.piece(file_at(at), file_at(end));
                        let place = match piece {
                            Piece::File => Place::File { at: file_at(at) },
                            Piece::Zero | Piece::Page(..) => Place::Replayed,
                        };
                        (place, at + (file_end - file_at(at)))
                    }
                };
                Run::push(
                    runs,
                    first,
                    Run {
                        disk: at..to,
                        place,
                    },
                );
                at = to;
            }
        }
        Ok(())
    }

    /// Reads the disk from byte `at` on. What was never stored reads zero. A read beside a write
    /// of the same sectors may see some of it.
    ///
    /// # Errors
    /// As for [`resolve`](Self::resolve); the content of `buf` is then unspecified.
    pub fn read_at(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        let end = at
            .checked_add(buf.len() as u64)
            .ok_or_else(|| past_end(at))?;
        self.check_range(&(at..end))?;
        let mut at = at;
        let mut rest = buf;
        while at < end {
            let block = self.geometry.block_at(at);
            let disk = self.geometry.disk_range(block);
            let to = disk.end.min(end);
            let count = usize::try_from(to - at).expect("a part of a buffer");
            let (part, others) = rest.split_at_mut(count);
            match self.bat.entry(&self.storage, block)?.stored_at() {
                Some(stored_at) => self.storage.read_at(stored_at + (at - disk.start), part)?,
                None => part.fill(0),
            }
            (rest, at) = (others, to);
        }
        Ok(())
    }

    /// The run of one kind that holds byte `at` of the disk, found without reading payload. Data
    /// in doubt. Long runs may be told in several pieces.
    ///
    /// # Errors
    /// As for [`resolve`](Self::resolve).
    pub fn extent_at(&self, at: u64) -> Result<Extent> {
        if at >= self.virtual_size() {
            return Err(past_end(at));
        }
        let block = self.geometry.block_at(at);
        let entry = self.bat.entry(&self.storage, block)?;
        match entry.state() {
            State::Present => self.stored_extent(at),
            State::Zero => self.unstored_extent(block, ExtentKind::Zero, |raw| raw & LOW == 2),
            State::NotPresent | State::Undefined | State::Unmapped => {
                self.unstored_extent(block, ExtentKind::Absent, |raw| {
                    matches!(raw & LOW, 0 | 1 | 3)
                })
            }
        }
    }

    /// Counts the blocks by state. Looks at the whole BAT, except holes.
    ///
    /// # Errors
    /// [`Damaged`](crate::ErrorKind::Damaged) by any entry, [`Io`](crate::ErrorKind::Io).
    pub fn scan_allocation(&self) -> Result<AllocationSummary> {
        let mut sum = AllocationSummary::default();
        self.bat.walk(&self.storage, BlockIndex(0), |stretch| {
            match stretch {
                Stretch::Hole(blocks) => sum.not_present += blocks.end - blocks.start,
                Stretch::Entries(first, entries) => {
                    for (block, raw) in (first.0..).map(BlockIndex).zip(entries) {
                        let entry = Entry::from_raw(*raw)?;
                        if let Some(at) = entry.stored_at() {
                            self.bat.check_stored(&self.storage, block, at)?;
                        }
                        *match entry.state() {
                            State::NotPresent => &mut sum.not_present,
                            State::Undefined => &mut sum.undefined,
                            State::Zero => &mut sum.zero,
                            State::Unmapped => &mut sum.unmapped,
                            State::Present => &mut sum.present,
                        } += 1;
                    }
                }
            }
            Ok(ControlFlow::Continue(()))
        })?;
        sum.allocated = sum.present * u64::from(self.block_size());
        Ok(sum)
    }

    pub(crate) fn check_range(&self, range: &Range<u64>) -> Result<()> {
        match self.geometry.contains(range) {
            true => Ok(()),
            false => Err(past_end(range.end)),
        }
    }

    /// From `block` on, all blocks whose raw entries are alike. `is_alike` says so of entry 0
    /// exactly when holes of the table belong to the run.
    fn unstored_extent(
        &self,
        block: BlockIndex,
        kind: ExtentKind,
        is_alike: impl Fn(u64) -> bool,
    ) -> Result<Extent> {
        let mut end = self.geometry.block_count();
        self.bat.walk(&self.storage, block, |stretch| {
            let stop = match stretch {
                Stretch::Hole(_) if is_alike(0) => None,
                Stretch::Hole(blocks) => Some(blocks.start),
                Stretch::Entries(first, entries) => {
                    let other = entries.iter().position(|raw| !is_alike(*raw));
                    other.map(|count| first.0 + count as u64)
                }
            };
            let Some(stop) = stop else {
                return Ok(ControlFlow::Continue(()));
            };
            end = stop;
            Ok(ControlFlow::Break(()))
        })?;
        // The entry can have changed since it was looked at: the block itself always counts.
        let last = BlockIndex(end.max(block.0 + 1) - 1);
        Ok(Extent {
            kind,
            end: self.geometry.disk_range(last).end,
        })
    }

    /// From a byte in a stored block on: data, or zero where the file has a hole.
    fn stored_extent(&self, at: u64) -> Result<Extent> {
        let mut found: Option<Extent> = None;
        let mut at = at;
        for _ in 0..STORED_CALLS_MAX {
            let block = self.geometry.block_at(at);
            let Some(stored_at) = self.bat.entry(&self.storage, block)?.stored_at() else {
                break;
            };
            let disk = self.geometry.disk_range(block);
            let file_at = stored_at + (at - disk.start);
            let file_end = stored_at + (disk.end - disk.start);
            let extent = self.storage.hole_at(file_at, file_end)?;
            let kind = if extent.is_hole {
                ExtentKind::Zero
            } else {
                ExtentKind::Data
            };
            if found.is_some_and(|found| found.kind != kind) {
                break;
            }
            at += extent.end - file_at;
            found = Some(Extent { kind, end: at });
            if at == self.virtual_size() {
                break;
            }
        }
        Ok(found.unwrap_or(Extent {
            kind: ExtentKind::Data,
            end: at + 1,
        }))
    }
}

fn past_end(at: u64) -> Error {
    Error::invalid("range ends past the disk").offset(at)
}

/// State and reserved bits of a raw entry. One with reserved bits is like no other, so that a run
/// ends before it and looking it up reports the damage.
const LOW: u64 = 0xF_FFFF;
/// Questions to the file system for one answer of [`Image::extent_at`] about stored blocks.
const STORED_CALLS_MAX: usize = 256;
