//! Changing a VHD so that a power cut at any moment leaves an image that opens, in which every
//! sector is old or new.
//!
//! There is no log. The order of writes does it, and nothing is assumed of the medium but that a
//! sector of 512 bytes is written whole or not at all:
//!
//! ```text
//! grow      | ... blocks | footer |
//!           | ... blocks | footer |   room, reads zero   | footer |   new footer, sync
//!           the old footer is overwritten only from here on; if a crash leaves the length
//!           without the new one, the copy at the start stands in for it
//!
//! store     room that held anything before is made zero, then the block is known in memory
//! write     bytes of the block, in place; bits of the child in memory
//!
//! flush     1 sync                                  bytes are durable
//!           2 bitmaps; entries of new blocks, 512 bytes each
//!           3 sync                                  only now does anything refer to the bytes
//!
//! close     flush; footer behind the last block, sync; cut the room off, sync
//! ```
//!
//! Without step 1 an entry or a bit could reach the medium before the bytes that it uncovers.
//! Within step 2 order is of no matter: the bitmap of a new block was made zero with its room, so
//! that its entry without its bits shows what was there before, the parent.
//!
//! Footer and header keep their bytes: children know their parent by the unique id, and some by
//! the timestamp of its footer, so neither is touched to mark a change.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::SECTOR;
use super::anatomy::Anatomy;
use super::bitmap::Bitmap;
use super::footer::FOOTER_LEN;
use super::geometry::Layout;
use super::image::{Sparse, VhdImage};
use crate::disk::ExtentKind;
use crate::error::{Error, ErrorKind, Result};

/// What an image has that is open for writing.
#[derive(Debug)]
pub(super) struct Writer {
    is_poisoned: AtomicBool,
    /// Both footers were found, or made, the same.
    is_mended: AtomicBool,
    space: Mutex<Space>,
    /// Blocks that are in the table in memory and not in that of the file.
    pending: Mutex<BTreeSet<u32>>,
    /// Held by the one flush that runs.
    commit: Mutex<()>,
}

/// Room in the file of an image with a block table. All numbers are bytes from its start.
#[derive(Debug)]
struct Space {
    /// Where the next block can begin.
    end: u64,
    /// The footer at the end; `None` while it is lost.
    footer_at: Option<u64>,
    is_copy_same: bool,
    /// From here to the footer the file reads zero.
    zero_from: u64,
    /// The file is not made shorter than to end with a footer here.
    footer_at_least: u64,
}

impl Writer {
    /// A writer for an image in which nothing is wrong.
    ///
    /// # Errors
    /// `Unsupported` for a block table that does not begin with a sector: its entries could not be
    /// replaced without tearing. `Damaged` for the text of a locator that does not end before the
    /// footer: the file would grow over it, and a block there is refused when the image is opened.
    pub(super) fn new(anatomy: &Anatomy) -> Result<Self> {
        let mut end = 0;
        if let Some(blocks) = &anatomy.blocks {
            let table_at = blocks.header.table_at;
            if !table_at.is_multiple_of(SECTOR) {
                let message = "VHD block table is not aligned to a sector: not supported as target";
                return Err(Error::new(ErrorKind::Unsupported, message).at(table_at));
            }
            let limit = anatomy.content_end();
            let structures = blocks.structures();
            if let Some(outside) = structures.iter().find(|place| place.end > limit) {
                let message = format!(
                    "VHD locator ends at {:#x}, the content of the file at {limit:#x}: \
                     not taken as target",
                    outside.end
                );
                return Err(Error::new(ErrorKind::Damaged, message).at(outside.start));
            }
            let stored = blocks.table.places(blocks.layout).map(|(_, place)| place);
            // Entries past the end of the disk are not checked, and lead anywhere.
            let stored = stored.filter(|place| place.start < anatomy.file_len);
            let ends = structures.into_iter().chain(stored);
            end = ends.map(|place| place.end).max().unwrap_or(0);
        }
        Ok(Self {
            is_poisoned: AtomicBool::new(false),
            is_mended: AtomicBool::new(false),
            space: Mutex::new(Space {
                end,
                footer_at: anatomy.footer_at,
                is_copy_same: anatomy.is_copy_same,
                zero_from: anatomy.file_len,
                footer_at_least: anatomy.content_end(),
            }),
            pending: Mutex::default(),
            commit: Mutex::default(),
        })
    }

    fn sound(&self) -> Result<()> {
        match self.is_poisoned.load(Ordering::SeqCst) {
            false => Ok(()),
            true => Err(Error::new(
                ErrorKind::Io,
                "an earlier write or flush failed; nothing more is written",
            )),
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl VhdImage {
    /// Replaces the bytes from `at` on; position and length are multiples of 512.
    ///
    /// # Errors
    /// `Usage` for a range that is not the disk's, `ReadOnly`, `NoSpace`, `Io`. After the latter
    /// two the image is poisoned: each later change fails.
    pub fn write_at(&self, at: u64, data: &[u8]) -> Result<()> {
        self.change(at..self.checked_sectors(at, data.len() as u64)?, |piece| {
            let offset = |at: u64| usize::try_from(at).expect("inside the buffer");
            let bytes = &data[offset(piece.start - at)..offset(piece.end - at)];
            match self.sparse() {
                None => self.write_file(piece.start, bytes),
                Some(sparse) => {
                    let block = sparse.layout.block_of(piece.start);
                    let (entry, _) = self.stored(sparse, block)?;
                    self.write_file(sparse.file_at(entry, piece.start), bytes)?;
                    self.own(sparse, block, entry, piece)
                }
            }
        })
    }

    /// Makes `range` read zero; its ends are multiples of 512. Blocks that are not stored and read
    /// zero already stay so; stored ones keep their place, and may lose what backs it.
    ///
    /// # Errors
    /// As [`VhdImage::write_at`].
    pub fn zero(&self, range: Range<u64>) -> Result<()> {
        let len = range.end.saturating_sub(range.start);
        let end = self.checked_sectors(range.start, len)?;
        self.change(range.start..end, |piece| match self.sparse() {
            None => self.zero_file(piece),
            Some(sparse) => self.zero_in_block(sparse, piece),
        })
    }

    /// Returns once all earlier changes survive a power cut.
    ///
    /// # Errors
    /// As [`VhdImage::write_at`].
    pub fn flush(&self) -> Result<()> {
        let writer = self.writer()?;
        writer.sound()?;
        self.poisoning(writer, self.commit(writer))
    }

    /// Flushes, and gives back the room that the file was grown by in advance.
    ///
    /// # Errors
    /// As [`VhdImage::write_at`].
    pub fn close(&self) -> Result<()> {
        self.flush()?;
        let writer = self.writer()?;
        self.poisoning(writer, self.trim(writer))
    }

    fn writer(&self) -> Result<&Writer> {
        let message = "the image is open for reading only";
        let writer = self.writer.as_ref();
        writer.ok_or_else(|| Error::new(ErrorKind::ReadOnly, message))
    }

    fn poisoning(&self, writer: &Writer, result: Result<()>) -> Result<()> {
        if result.is_err() {
            writer.is_poisoned.store(true, Ordering::SeqCst);
        }
        result
    }

    fn checked_sectors(&self, at: u64, len: u64) -> Result<u64> {
        let end = self.checked(at, len)?;
        match at.is_multiple_of(SECTOR) && end.is_multiple_of(SECTOR) {
            true => Ok(end),
            false => Err(Error::new(ErrorKind::Usage, "range is not whole sectors").at(at)),
        }
    }

    /// Calls `change` for the part of `range` in each block, in order.
    fn change(&self, range: Range<u64>, change: impl Fn(Range<u64>) -> Result<()>) -> Result<()> {
        let writer = self.writer()?;
        writer.sound()?;
        self.poisoning(writer, self.mend(writer))?;
        let mut at = range.start;
        while at < range.end {
            let end = match self.sparse() {
                None => range.end,
                Some(sparse) => {
                    let block = sparse.layout.block_of(at);
                    sparse.layout.end_of(block).min(range.end)
                }
            };
            self.poisoning(writer, change(at..end))?;
            at = end;
        }
        self.commit_if_heavy(writer)
    }

    fn zero_in_block(&self, sparse: &Sparse, piece: Range<u64>) -> Result<()> {
        let block = sparse.layout.block_of(piece.start);
        let is_stored = sparse.state().table.entry(block).is_some();
        if !is_stored && self.reads_zero(&piece)? {
            return Ok(());
        }
        let (entry, is_new) = self.stored(sparse, block)?;
        if !is_new {
            let at = sparse.file_at(entry, piece.start);
            self.zero_file(at..at + (piece.end - piece.start))?;
        }
        self.own(sparse, block, entry, piece)
    }

    /// Whether a range that is not stored here is known to read zero.
    fn reads_zero(&self, range: &Range<u64>) -> Result<bool> {
        let mut at = range.start;
        while at < range.end {
            let extent = self.extent_at(at)?;
            if extent.kind == ExtentKind::Data {
                return Ok(false);
            }
            at = extent.end.0;
        }
        Ok(true)
    }

    /// The entry of a block, which is stored now if it was not, and whether that was so.
    fn stored(&self, sparse: &Sparse, block: u32) -> Result<(u32, bool)> {
        if let Some(entry) = sparse.state().table.entry(block) {
            return Ok((entry, false));
        }
        let writer = self.writer()?;
        let mut space = locked(&writer.space);
        // Another thread may have stored it meanwhile; only who holds the space does.
        if let Some(entry) = sparse.state().table.entry(block) {
            return Ok((entry, false));
        }
        let entry = self.take_room(&mut space, sparse)?;
        let at = Layout::bitmap_at(entry);
        let bitmap_len = sparse.layout.bitmap_len();
        if !sparse.is_differencing {
            self.write_file(at, &vec![0xff; bitmap_len])?;
        }
        // From here on other threads see the block: its bytes read zero already.
        let mut state = sparse.state_mut();
        match sparse.is_differencing {
            false => state.bitmaps.set_full(block),
            true => state
                .bitmaps
                .insert_new(block, Bitmap::new(vec![0; bitmap_len])),
        }
        locked(&writer.pending).insert(block);
        state.table.set(block, entry);
        Ok((entry, true))
    }

    /// Room for a block: its bytes aligned to 4 KiB as Windows has them, and zero.
    fn take_room(&self, space: &mut Space, sparse: &Sparse) -> Result<u32> {
        let bitmap_len = sparse.layout.bitmap_len() as u64;
        let stored_len = sparse.layout.stored_len();
        let at = (space.end + bitmap_len).next_multiple_of(ALIGN) - bitmap_len;
        let end = at + stored_len;
        let entry = u32::try_from(at / SECTOR).ok();
        let entry = entry.filter(|_| end / SECTOR < u64::from(u32::MAX));
        let entry = entry.ok_or_else(|| {
            let message = "the file would be longer than the 2 TiB that a block table can address";
            Error::new(ErrorKind::NoSpace, message).at(at)
        })?;
        if space.footer_at.is_none_or(|footer_at| footer_at < end) {
            let ahead = (stored_len * ROOM_BLOCKS).min(ROOM_MAX);
            self.move_footer(space, end + ahead)?;
        }
        if at < space.zero_from {
            self.zero_file(at..end.min(space.zero_from))?;
        }
        space.end = end;
        Ok(entry)
    }

    /// Grows the file so that its footer lies at `at` or, if that is no sector's start, behind it.
    fn move_footer(&self, space: &mut Space, at: u64) -> Result<()> {
        let at = at.next_multiple_of(SECTOR);
        let old_len = self.file.len().map_err(|e| Error::io(e, "read length"))?;
        let grown = self.file.set_len(at + FOOTER_LEN as u64);
        grown.map_err(|e| Error::io(e, "grow the file").at(at))?;
        self.write_file(at, self.footer.bytes())?;
        self.sync()?;
        space.footer_at = Some(at);
        space.zero_from = old_len;
        Ok(())
    }

    /// Before the first change: makes both footers the same, one after the other, so that one of
    /// them is sound at any time.
    fn mend(&self, writer: &Writer) -> Result<()> {
        if self.sparse().is_none() || writer.is_mended.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut space = locked(&writer.space);
        if !space.is_copy_same {
            self.write_file(0, self.footer.bytes())?;
            self.sync()?;
            space.is_copy_same = true;
        }
        if space.footer_at.is_none() {
            let end = self.file.len().map_err(|e| Error::io(e, "read length"))?;
            let end = end.max(space.end);
            self.move_footer(&mut space, end)?;
            space.footer_at_least = end.next_multiple_of(SECTOR);
        }
        writer.is_mended.store(true, Ordering::Release);
        Ok(())
    }

    /// Makes the sectors of a piece of one block the image's own, in memory.
    fn own(&self, sparse: &Sparse, block: u32, entry: u32, piece: Range<u64>) -> Result<()> {
        if sparse.state().bitmaps.is_full(block) {
            return Ok(());
        }
        let start = sparse.layout.start_of(block);
        let sector =
            |at: u64| usize::try_from((at - start) / SECTOR).expect("a block has few sectors");
        let mut state = sparse.state_mut();
        self.load_bitmap(sparse, &mut state, block, entry)?;
        let sectors = sector(piece.start)..sector(piece.end);
        state.bitmaps.set(block, sectors);
        Ok(())
    }

    fn commit_if_heavy(&self, writer: &Writer) -> Result<()> {
        let is_heavy = self.sparse().is_some_and(|sparse| {
            let state = sparse.state();
            state.bitmaps.is_heavy(sparse.layout.bitmap_len())
        });
        match is_heavy {
            true => self.poisoning(writer, self.commit(writer)),
            false => Ok(()),
        }
    }

    fn commit(&self, writer: &Writer) -> Result<()> {
        let Some(sparse) = self.sparse() else {
            return self.sync();
        };
        let _only_one = locked(&writer.commit);
        let (new, bitmaps) = {
            let mut state = sparse.state_mut();
            let new = std::mem::take(&mut *locked(&writer.pending));
            (new, state.bitmaps.take_dirty())
        };
        self.sync()?;
        if !new.is_empty() || !bitmaps.is_empty() {
            self.write_bitmaps(sparse, &bitmaps)?;
            self.write_entries(sparse, &new)?;
            self.sync()?;
        }
        let layout = sparse.layout;
        let mut state = sparse.state_mut();
        state.bitmaps.committed(|block| layout.sectors_of(block));
        Ok(())
    }

    fn write_bitmaps(&self, sparse: &Sparse, bitmaps: &[(u32, Bitmap)]) -> Result<()> {
        for (block, bitmap) in bitmaps {
            let entry = sparse.state().table.entry(*block);
            let entry = entry.expect("only stored blocks have a bitmap");
            self.write_file(Layout::bitmap_at(entry), bitmap.bytes())?;
        }
        Ok(())
    }

    /// Writes the sectors of the table that hold entries of `blocks`. What else they hold is taken
    /// from the file, not from memory: other threads may have stored blocks whose bytes are not
    /// durable yet.
    fn write_entries(&self, sparse: &Sparse, blocks: &BTreeSet<u32>) -> Result<()> {
        let blocks: Vec<u32> = blocks.iter().copied().collect();
        let entry_at = |block: u32| sparse.state().table.entry_at(block);
        let is_same = |a: &u32, b: &u32| entry_at(*a) / SECTOR == entry_at(*b) / SECTOR;
        for together in blocks.chunk_by(is_same) {
            let at = entry_at(together[0]) / SECTOR * SECTOR;
            let mut bytes = [0; 512];
            self.file
                .read_at(at, &mut bytes)
                .map_err(|e| Error::io(e, "read block table").at(at))?;
            for block in together {
                let entry = sparse.state().table.entry(*block);
                let entry = entry.expect("new blocks are stored");
                let offset = usize::try_from(entry_at(*block) - at).expect("below 512");
                bytes[offset..offset + 4].copy_from_slice(&entry.to_be_bytes());
            }
            self.write_file(at, &bytes)?;
        }
        Ok(())
    }

    fn trim(&self, writer: &Writer) -> Result<()> {
        if self.sparse().is_none() {
            return Ok(());
        }
        let mut space = locked(&writer.space);
        let wanted = space
            .end
            .max(space.footer_at_least)
            .next_multiple_of(SECTOR);
        if space.footer_at.is_none_or(|footer_at| footer_at <= wanted) {
            return Ok(());
        }
        self.write_file(wanted, self.footer.bytes())?;
        self.sync()?;
        let cut = self.file.set_len(wanted + FOOTER_LEN as u64);
        cut.map_err(|e| Error::io(e, "cut the file").at(wanted))?;
        space.footer_at = Some(wanted);
        space.zero_from = wanted + FOOTER_LEN as u64;
        self.sync()
    }

    fn write_file(&self, at: u64, data: &[u8]) -> Result<()> {
        let written = self.file.write_at(at, data);
        written.map_err(|e| Error::io(e, "write").at(at))
    }

    fn zero_file(&self, range: Range<u64>) -> Result<()> {
        let zeroed = self.file.zero(range.clone());
        zeroed.map_err(|e| Error::io(e, "zero").at(range.start))
    }

    fn sync(&self) -> Result<()> {
        self.file.sync().map_err(|e| Error::io(e, "flush"))
    }
}

impl Sparse {
    /// Where byte `at` of the disk lies in the file, in a block that is stored at `entry`.
    fn file_at(&self, entry: u32, at: u64) -> u64 {
        let start = self.layout.start_of(self.layout.block_of(at));
        self.layout.payload_at(entry) + (at - start)
    }
}

/// Bytes of a block begin at a multiple of this, as in images that Windows makes.
const ALIGN: u64 = 4096;
/// Blocks of room that the file is grown by ahead of need: each time costs a sync.
const ROOM_BLOCKS: u64 = 32;
/// Bytes of that room at most.
const ROOM_MAX: u64 = 64 << 20;
