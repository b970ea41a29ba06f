//! Reading: from a range of the disk to where its bytes are.

use std::ops::{ControlFlow, Range};

use crate::bat::{Entry, State, Stretch};
use crate::bitmap::Bitmap;
use crate::error::{Error, ErrorKind, Result};
use crate::extent::{AllocationSummary, Extent, ExtentKind, Place, Run};
use crate::geometry::BlockIndex;
use crate::image::Image;
use crate::overlay::Piece;

/// Where the bytes of a block are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    Zero,
    Parent,
    /// From this byte offset of the file on.
    Stored(u64),
    /// By sector: at this byte offset, or with the parent, as the bitmap at the other one says.
    Mixed {
        at: u64,
        bitmap_at: u64,
    },
}

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
        let mut at = range.start;
        while at < range.end {
            let block = self.geometry.block_at(at);
            let content = self.content(block)?;
            let end = self.content_end(block, content, &range)?;
            match content {
                Content::Zero => Run::push(runs, first, run(at..end, Place::Zero)),
                Content::Parent => Run::push(runs, first, run(at..end, Place::Parent)),
                Content::Stored(stored_at) => {
                    self.push_stored(block, stored_at, at..end, runs, first);
                }
                Content::Mixed {
                    at: stored_at,
                    bitmap_at,
                } => self.each_mixed(block, bitmap_at, at..end, |is_here, disk| {
                    match is_here {
                        true => self.push_stored(block, stored_at, disk, runs, first),
                        false => Run::push(runs, first, run(disk, Place::Parent)),
                    }
                    Ok(())
                })?,
            }
            at = end;
        }
        Ok(())
    }

    /// Reads the disk from byte `at` on. What was never stored reads zero, or what the parent has.
    /// A read beside a write of the same sectors may see some of it.
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
            let to = self.geometry.disk_range(block).end.min(end);
            let count = usize::try_from(to - at).expect("a part of a buffer");
            let (part, others) = rest.split_at_mut(count);
            loop {
                let ripenings = self.writing.ripenings();
                let content = self.content(block)?;
                self.read_content(block, content, at, part)?;
                // A block can lose its place while it is read, and another one get it.
                let is_settled = !self.is_writable
                    || (ripenings == self.writing.ripenings() && content == self.content(block)?);
                if is_settled {
                    break;
                }
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
        let size = self.virtual_size();
        match entry.state() {
            State::Present => self.stored_extent(at),
            State::PartiallyPresent => Ok(Extent {
                kind: ExtentKind::Data,
                end: self.geometry.disk_range(block).end,
            }),
            State::Zero => {
                self.unstored_extent(block, ExtentKind::Zero, size, |raw| raw & LOW == 2)
            }
            State::NotPresent if self.has_parent() => self.parents_extent(at),
            State::Undefined | State::Unmapped if self.has_parent() => {
                self.unstored_extent(block, ExtentKind::Absent, size, |raw| {
                    matches!(raw & LOW, 1 | 3)
                })
            }
            State::NotPresent | State::Undefined | State::Unmapped => {
                self.unstored_extent(block, ExtentKind::Absent, size, |raw| {
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
                        let entry = Entry::from_raw(*raw, self.has_parent())?;
                        if let Some(at) = entry.stored_at() {
                            self.bat.check_stored(&self.storage, block, at)?;
                        }
                        *match entry.state() {
                            State::NotPresent => &mut sum.not_present,
                            State::Undefined => &mut sum.undefined,
                            State::Zero => &mut sum.zero,
                            State::Unmapped => &mut sum.unmapped,
                            State::Present => &mut sum.present,
                            State::PartiallyPresent => &mut sum.partially_present,
                        } += 1;
                    }
                }
                Stretch::Bitmap(slot, raw) => {
                    let bitmap = self.bat.check_bitmap(&self.storage, slot, raw)?;
                    sum.bitmaps += u64::from(bitmap.is_some());
                }
            }
            Ok(ControlFlow::Continue(()))
        })?;
        sum.allocated = (sum.present + sum.partially_present) * u64::from(self.block_size());
        Ok(sum)
    }

    pub(crate) fn check_range(&self, range: &Range<u64>) -> Result<()> {
        match self.geometry.contains(range) {
            true => Ok(()),
            false => Err(past_end(range.end)),
        }
    }

    /// Where the bytes of a block are.
    pub(crate) fn content(&self, block: BlockIndex) -> Result<Content> {
        let entry = self.bat.entry(&self.storage, block)?;
        Ok(match (entry.state(), entry.stored_at()) {
            (State::PartiallyPresent, Some(at)) => Content::Mixed {
                at,
                bitmap_at: self.bat.bitmap_at(&self.storage, block)?.ok_or_else(|| {
                    let detail = "partially present block without a sector bitmap";
                    let slot = self.geometry.bitmap_slot_of(block);
                    Error::damaged("BAT entry", detail).offset(self.bat.slot_at(slot))
                })?,
            },
            (_, Some(at)) => Content::Stored(at),
            (State::NotPresent, None) if self.has_parent() => Content::Parent,
            _ => Content::Zero,
        })
    }

    /// Whether what is not stored here is with a parent, given or not.
    pub(crate) fn has_parent(&self) -> bool {
        self.geometry.has_bitmaps()
    }

    pub(crate) fn bitmap(&self, at: u64) -> Bitmap<'_> {
        Bitmap {
            at,
            pages: &self.pages,
            storage: &self.storage,
        }
    }

    /// Calls `each` with the runs of `disk`, a part of one block, that are stored here (`true`) or
    /// with the parent.
    pub(crate) fn each_mixed(
        &self,
        block: BlockIndex,
        bitmap_at: u64,
        disk: Range<u64>,
        mut each: impl FnMut(bool, Range<u64>) -> Result<()>,
    ) -> Result<()> {
        let sector = u64::from(self.logical_sector_size());
        let start = self.geometry.disk_range(block).start;
        let first_bit = self.geometry.bits_of(block).start;
        let bit = |at: u64| first_bit + (at - start) / sector;
        let last_bit = first_bit + (disk.end - start).div_ceil(sector);
        let bitmap = self.bitmap(bitmap_at);
        let mut at = disk.start;
        while at < disk.end {
            let (is_here, to) = bitmap.run(&(bit(at)..last_bit))?;
            let to = disk.end.min(start + (to - first_bit) * sector);
            each(is_here, at..to)?;
            at = to;
        }
        Ok(())
    }

    /// The end, within `range`, of what is known from one look at a block. Stretches of many
    /// blocks without a place are found at once.
    fn content_end(&self, block: BlockIndex, content: Content, range: &Range<u64>) -> Result<u64> {
        let end = self.geometry.disk_range(block).end.min(range.end);
        let is_long = range.end - end >= u64::from(self.block_size()) * WALK_BLOCKS_MIN;
        if !is_long || !matches!(content, Content::Zero | Content::Parent) {
            return Ok(end);
        }
        let run = match (content, self.has_parent()) {
            (Content::Parent, _) => {
                self.unstored_extent(block, ExtentKind::Absent, range.end, |raw| raw & LOW == 0)
            }
            (_, true) => self.unstored_extent(block, ExtentKind::Zero, range.end, |raw| {
                matches!(raw & LOW, 1..=3)
            }),
            (_, false) => {
                self.unstored_extent(block, ExtentKind::Zero, range.end, |raw| raw & LOW <= 3)
            }
        }?;
        Ok(run.end.min(range.end))
    }

    fn push_stored(
        &self,
        block: BlockIndex,
        stored_at: u64,
        disk: Range<u64>,
        runs: &mut Vec<Run>,
        first: usize,
    ) {
        let start = self.geometry.disk_range(block).start;
        let file_at = |disk_at: u64| stored_at + (disk_at - start);
        let Some(overlay) = self.storage.overlay() else {
            let at = file_at(disk.start);
            return Run::push(runs, first, run(disk, Place::File { at }));
        };
        let mut at = disk.start;
        while at < disk.end {
            let (piece, file_end) = overlay.piece(file_at(at), file_at(disk.end));
            let place = match piece {
                Piece::File => Place::File { at: file_at(at) },
                Piece::Zero | Piece::Page(..) => Place::Replayed,
            };
            let to = at + (file_end - file_at(at));
            Run::push(runs, first, run(at..to, place));
            at = to;
        }
    }

    /// Reads a part of one block from where its bytes were said to be.
    fn read_content(
        &self,
        block: BlockIndex,
        content: Content,
        at: u64,
        buf: &mut [u8],
    ) -> Result<()> {
        let start = self.geometry.disk_range(block).start;
        match content {
            Content::Zero => buf.fill(0),
            Content::Parent => self.read_parent(at, buf)?,
            Content::Stored(stored_at) => self.storage.read_at(stored_at + (at - start), buf)?,
            Content::Mixed {
                at: stored_at,
                bitmap_at,
            } => {
                let disk = at..at + buf.len() as u64;
                let mut rest = &mut *buf;
                self.each_mixed(block, bitmap_at, disk, |is_here, disk| {
                    let count = usize::try_from(disk.end - disk.start).expect("a part of a buffer");
                    let (part, others) = std::mem::take(&mut rest).split_at_mut(count);
                    rest = others;
                    match is_here {
                        true => self.storage.read_at(stored_at + (disk.start - start), part),
                        false => self.read_parent(disk.start, part),
                    }
                })?;
            }
        }
        Ok(())
    }

    /// Reads what the parent has at that place; behind its end there is nothing but zeros.
    fn read_parent(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        let Some(parent) = &self.parent else {
            let detail = "these sectors are with the parent, which was not given";
            return Err(Error::new(ErrorKind::ParentNeeded, detail).offset(at));
        };
        let there = parent
            .virtual_size()
            .saturating_sub(at)
            .min(buf.len() as u64);
        let there = usize::try_from(there).expect("a part of a buffer");
        buf[there..].fill(0);
        match there {
            0 => Ok(()),
            _ => parent.read_at(at, &mut buf[..there]),
        }
    }

    /// What the parent has at `at`, to where neither it nor this image changes its kind.
    fn parents_extent(&self, at: u64) -> Result<Extent> {
        // The parent first: how far it is the same bounds how far this image is looked at.
        let size = self.virtual_size();
        let (kind, limit) = match &self.parent {
            None => (ExtentKind::Data, size),
            Some(parent) if at < parent.virtual_size() => {
                let found = parent.extent_at(at)?;
                (found.kind, found.end.min(size))
            }
            Some(_) => (ExtentKind::Absent, size),
        };
        let block = self.geometry.block_at(at);
        let here = self.unstored_extent(block, kind, limit, |raw| raw & LOW == 0)?;
        Ok(Extent {
            kind,
            end: here.end.min(limit),
        })
    }

    /// From `block` on, blocks whose raw entries are alike: all of them up to `limit`, a byte of
    /// the disk, or so many that whoever asks again and again goes on well. `is_alike` says so of
    /// entry 0 exactly when holes of the table belong to the run.
    pub(crate) fn unstored_extent(
        &self,
        block: BlockIndex,
        kind: ExtentKind,
        limit: u64,
        is_alike: impl Fn(u64) -> bool,
    ) -> Result<Extent> {
        let mut end = self.geometry.block_count();
        let mut looked_at = 0;
        self.bat.walk(&self.storage, block, |stretch| {
            let stop = match stretch {
                Stretch::Hole(_) if is_alike(0) => None,
                Stretch::Hole(blocks) => Some(blocks.start),
                Stretch::Bitmap(..) => None,
                Stretch::Entries(first, entries) => {
                    let other = entries.iter().position(|raw| !is_alike(*raw));
                    let last = first.0 + entries.len() as u64;
                    looked_at += entries.len();
                    let is_enough = looked_at >= RUN_ENTRIES_MAX
                        || last << self.block_size().trailing_zeros() >= limit;
                    other
                        .map(|count| first.0 + count as u64)
                        .or_else(|| is_enough.then_some(last))
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
            let Content::Stored(stored_at) = self.content(block)? else {
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

fn run(disk: Range<u64>, place: Place) -> Run {
    Run { disk, place }
}

fn past_end(at: u64) -> Error {
    Error::invalid("range ends past the disk").offset(at)
}

/// State and reserved bits of a raw entry. One with reserved bits is like no other, so that a run
/// ends before it and looking it up reports the damage.
const LOW: u64 = 0xF_FFFF;
/// Questions to the file system for one answer of [`Image::extent_at`] about stored blocks.
const STORED_CALLS_MAX: usize = 256;
/// Entries of the table looked at for one run, holes not counted: 1 MiB and what was begun.
const RUN_ENTRIES_MAX: usize = 1 << 17;
/// Blocks from which on a walk over the table, which asks the file for holes and reads pieces of
/// up to 1 MiB, costs less than a look at each entry.
const WALK_BLOCKS_MIN: u64 = 1024;
