//! Changing the content of the disk: writes, zeros, and new places for blocks.

use std::ops::{ControlFlow, Range};
use std::sync::PoisonError;

use crate::bat::{Entry, State, Stretch};
use crate::error::{Error, ErrorKind, Result};
use crate::extent::{ExtentKind, Place};
use crate::format::BITMAP_LEN;
use crate::geometry::BlockIndex;
use crate::image::{Image, Kind};
use crate::resolve::Content;
use crate::writing::DataIdentity;

/// What a part of a block is to hold.
#[derive(Clone, Copy, Debug)]
enum Payload<'a> {
    Bytes(&'a [u8]),
    /// So many zeros.
    Zeros(u64),
}

impl Payload<'_> {
    fn len(self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Zeros(len) => len,
        }
    }
}

impl Image {
    /// Writes whole logical sectors from byte `at` of the disk on. Readers see them at once; they
    /// are durable after the next [`flush`](Self::flush). Blocks get space as needed, in gaps of
    /// the file or at its end; what else is in a new block reads zero, or what the parent has.
    ///
    /// # Errors
    /// [`ReadOnly`](ErrorKind::ReadOnly); [`InvalidArgument`](ErrorKind::InvalidArgument) for part
    /// sectors and ranges past the end; [`Damaged`](ErrorKind::Damaged) before anything is written
    /// when the BAT contradicts itself; [`Poisoned`](ErrorKind::Poisoned) after an earlier failure;
    /// [`Io`](ErrorKind::Io), which poisons.
    pub fn write_at(&self, at: u64, data: &[u8]) -> Result<()> {
        let end = at.checked_add(data.len() as u64);
        let end = end.ok_or_else(|| Error::invalid("range ends past the disk").offset(at))?;
        self.check_change(&(at..end))
            .map_err(|error| error.during("write"))?;
        if data.is_empty() {
            return Ok(());
        }
        {
            let _entered = self.writing.enter();
            self.begin(DataIdentity::New)?;
            let mut at = at;
            let mut rest = data;
            while at < end {
                let block = self.geometry.block_at(at);
                let to = self.geometry.disk_range(block).end.min(end);
                let (part, others) =
                    rest.split_at(usize::try_from(to - at).expect("a part of a buffer"));
                self.write_block(block, at, part)?;
                (rest, at) = (others, to);
            }
        }
        self.flush_if_many_pending()
    }

    /// Makes a range of whole logical sectors read zero. Whole blocks of an image that is not
    /// fixed lose their place, which is free again after the next flush; everything else is zeroed
    /// in place. Where everything reads zero already nothing is changed, except that undefined
    /// and discarded blocks become zero ones, which no reader can take for old data. In a
    /// differencing image no parent shows through.
    ///
    /// # Errors
    /// As for [`write_at`](Self::write_at).
    pub fn zero(&self, range: Range<u64>) -> Result<()> {
        self.check_change(&range)
            .map_err(|error| error.during("zero"))?;
        let mut at = range.start;
        while at < range.end {
            {
                let _entered = self.writing.enter();
                let block = self.geometry.block_at(at);
                let to = self.geometry.disk_range(block).end.min(range.end);
                self.zero_block(block, at..to)?;
                at = to;
            }
            self.flush_if_many_pending()?;
            at = self.skip_zeros(at, range.end)?;
        }
        Ok(())
    }

    /// Turns blocks whose content is undefined or was discarded (states 1 and 3) into zero ones.
    /// Both read as zeros here; another reader may take what such a block held before for its
    /// content. Where a parent's shows through, it is hidden behind zeros. Returns how many there
    /// were.
    ///
    /// # Errors
    /// As for [`write_at`](Self::write_at).
    pub fn zero_undefined(&self) -> Result<u64> {
        self.check_change(&(0..0))
            .map_err(|error| error.during("zero undefined blocks"))?;
        let mut count = 0;
        let mut next = BlockIndex(0);
        loop {
            let found = self.undefined_from(next)?;
            let Some(last) = found.last() else {
                break;
            };
            next = BlockIndex(last.0 + 1);
            for block in &found {
                self.zero(self.geometry.disk_range(*block))?;
            }
            count += found.len() as u64;
        }
        let mut ancestors = vec![self];
        while let Some(parent) = ancestors[ancestors.len() - 1].parent.as_deref() {
            count += self.hide_undefined(&ancestors, parent)?;
            ancestors.push(parent);
        }
        Ok(count)
    }

    /// Zeroes here what is undefined in `parent` and shows through all images `above` it.
    fn hide_undefined(&self, above: &[&Self], parent: &Self) -> Result<u64> {
        let mut count = 0;
        let mut next = BlockIndex(0);
        loop {
            let found = parent.undefined_from(next)?;
            let Some(last) = found.last() else {
                return Ok(count);
            };
            next = BlockIndex(last.0 + 1);
            for block in found {
                let disk = parent.geometry.disk_range(block);
                let mut seen = Vec::from([disk]);
                for image in above {
                    seen = image.falls_through(&seen)?;
                }
                count += u64::from(!seen.is_empty());
                for range in seen {
                    self.zero(range)?;
                }
            }
        }
    }

    /// The parts of these ranges that are with the parent.
    fn falls_through(&self, ranges: &[Range<u64>]) -> Result<Vec<Range<u64>>> {
        let mut runs = Vec::new();
        for range in ranges {
            let end = range.end.min(self.virtual_size());
            if range.start < end {
                self.resolve(range.start..end, &mut runs)?;
            }
        }
        let parents = runs.into_iter().filter(|run| run.place == Place::Parent);
        Ok(parents.map(|run| run.disk).collect())
    }

    /// Whether the image can be changed at all, and there.
    pub(crate) fn check_change(&self, range: &Range<u64>) -> Result<()> {
        if !self.is_writable {
            return Err(Error::new(
                ErrorKind::ReadOnly,
                "image was opened for reading",
            ));
        }
        self.storage.check_poison()?;
        self.check_range(range)?;
        let sector = u64::from(self.logical_sector_size());
        match range.start.is_multiple_of(sector) && range.end.is_multiple_of(sector) {
            true => Ok(()),
            false => Err(Error::invalid("not whole sectors").offset(range.start)),
        }
    }

    fn write_block(&self, block: BlockIndex, at: u64, data: &[u8]) -> Result<()> {
        let within = at - self.geometry.disk_range(block).start;
        if let Content::Stored(stored_at) = self.content(block)? {
            return self.storage.write_at(stored_at + within, data);
        }
        let _claim = self.writing.claims.claim(block);
        self.put(block, at, Payload::Bytes(data))
    }

    /// Changes a part of a claimed block, and gives it a place where it has none. The entry and
    /// the bits of the bitmap follow the payload: once a flush can see them, the payload is
    /// written and will be synced first.
    fn put(&self, block: BlockIndex, at: u64, payload: Payload<'_>) -> Result<()> {
        let disk = self.geometry.disk_range(block);
        let within = at - disk.start;
        let is_whole = payload.len() == disk.end - disk.start;
        let stored_at = match self.content(block)? {
            Content::Stored(stored_at) => return self.put_payload(stored_at + within, payload),
            Content::Mixed { at: stored_at, .. } => {
                self.put_payload(stored_at + within, payload)?;
                stored_at
            }
            Content::Zero | Content::Parent => self.put_new(within, payload)?,
        };
        match self.content(block)? {
            Content::Mixed { bitmap_at, .. } if !is_whole => {
                self.set_bits(block, bitmap_at, at, payload.len())
            }
            Content::Parent if !is_whole => {
                let bitmap_at = self.bitmap_for(block)?;
                // Bits of a block that has no place can be left from a change that a power cut
                // undid.
                let all = self.geometry.bits_of(block);
                self.bitmap(bitmap_at).set(&all, false)?;
                self.set_bits(block, bitmap_at, at, payload.len())?;
                let entry = Entry::partially_present(stored_at);
                self.bat.set(&self.storage, block, entry)
            }
            _ => self
                .bat
                .set(&self.storage, block, Entry::present(stored_at)),
        }
    }

    /// Writes a part of a block to new space and returns where that is; the rest of it is zero.
    fn put_new(&self, within: u64, payload: Payload<'_>) -> Result<u64> {
        let block_size = u64::from(self.block_size());
        let space = self.allocate(block_size)?;
        if space.is_recycled && !matches!(payload, Payload::Bytes(_) if payload.len() == block_size)
        {
            self.storage.zero(space.at..space.at + block_size)?;
        }
        if self.kind == Kind::Fixed {
            // QEMU makes fixed images whose blocks get their place late.
            self.storage.allocate(space.at..space.at + block_size)?;
        }
        match payload {
            Payload::Bytes(bytes) => self.storage.write_at(space.at + within, bytes)?,
            Payload::Zeros(_) => {}
        }
        Ok(space.at)
    }

    fn put_payload(&self, at: u64, payload: Payload<'_>) -> Result<()> {
        match payload {
            Payload::Bytes(bytes) => self.storage.write_at(at, bytes),
            Payload::Zeros(len) => self.storage.zero(at..at + len),
        }
    }

    fn set_bits(&self, block: BlockIndex, bitmap_at: u64, at: u64, len: u64) -> Result<()> {
        let sector = u64::from(self.logical_sector_size());
        let first = self.geometry.bits_of(block).start;
        let first = first + (at - self.geometry.disk_range(block).start) / sector;
        let bits = first..first + len / sector;
        self.bitmap(bitmap_at).set(&bits, true)
    }

    /// Where the bitmap of a block's chunk is; a new one says "with the parent" throughout.
    fn bitmap_for(&self, block: BlockIndex) -> Result<u64> {
        let bitmaps = &self.writing.bitmaps;
        let _one = bitmaps.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = self.bat.bitmap_at(&self.storage, block)? {
            return Ok(at);
        }
        let space = self.allocate(BITMAP_LEN)?;
        if space.is_recycled {
            self.storage.zero(space.at..space.at + BITMAP_LEN)?;
        }
        let entry = Entry::present(space.at);
        self.bat.set_bitmap(&self.storage, block, entry)?;
        Ok(space.at)
    }

    fn zero_block(&self, block: BlockIndex, range: Range<u64>) -> Result<()> {
        let _claim = self.writing.claims.claim(block);
        let disk = self.geometry.disk_range(block);
        let is_whole = range == disk;
        let entry = self.bat.entry(&self.storage, block)?;
        let has_parent = self.has_parent();
        match (entry.state(), entry.stored_at()) {
            (State::Zero, _) => return Ok(()),
            (State::NotPresent, _) if !has_parent => return Ok(()),
            _ => self.begin(DataIdentity::New)?,
        }
        match (entry.state(), entry.stored_at()) {
            (State::Present, Some(at)) if !is_whole || self.kind == Kind::Fixed => {
                let at = at + (range.start - disk.start);
                let zeroed = at..at + (range.end - range.start);
                self.storage.zero(zeroed.clone())?;
                match self.kind {
                    // Zeroing may have given back space that a fixed image keeps.
                    Kind::Fixed => self.storage.allocate(zeroed),
                    Kind::Dynamic | Kind::Differencing => Ok(()),
                }
            }
            (State::NotPresent | State::PartiallyPresent, _) if !is_whole => {
                self.put(block, range.start, Payload::Zeros(range.end - range.start))
            }
            (_, stored_at) => {
                self.bat.set(&self.storage, block, Entry::ZERO)?;
                let stored = stored_at.map(|at| at..at + (disk.end - disk.start));
                if let (Some(stored), Some(allocator)) = (stored, self.writing.allocator().as_mut())
                {
                    allocator.release(stored);
                }
                Ok(())
            }
        }
    }

    /// Where, from `at` on and at most to `end`, the first block is that does not simply read zero
    /// by its state. Looks at the table only where many blocks are to come.
    fn skip_zeros(&self, at: u64, end: u64) -> Result<u64> {
        if end - at < u64::from(self.block_size()) * SKIP_BLOCKS_MIN {
            return Ok(at);
        }
        let block = self.geometry.block_at(at);
        let has_parent = self.has_parent();
        let is_zero = |raw: u64| match raw & 0xF_FFFF {
            0 => !has_parent,
            2 => true,
            _ => false,
        };
        let state = self.bat.entry(&self.storage, block)?;
        if !is_zero(state.to_raw()) {
            return Ok(at);
        }
        let run = self.unstored_extent(block, ExtentKind::Zero, end, is_zero)?;
        Ok(run.end.min(end))
    }

    /// The next blocks at or behind `from` in state 1 or 3, in order; none when there are no more.
    fn undefined_from(&self, from: BlockIndex) -> Result<Vec<BlockIndex>> {
        let mut found = Vec::new();
        if from.0 >= self.geometry.block_count() {
            return Ok(found);
        }
        self.bat.walk(&self.storage, from, |stretch| {
            if let Stretch::Entries(first, entries) = stretch {
                let blocks = (first.0..).map(BlockIndex).zip(entries);
                let undefined = blocks.filter(|(_, raw)| matches!(**raw & 0b111, 1 | 3));
                found.extend(undefined.map(|(block, _)| block));
            }
            Ok(match found.len() < UNDEFINED_FOUND_MAX {
                true => ControlFlow::Continue(()),
                false => ControlFlow::Break(()),
            })
        })?;
        Ok(found)
    }
}

/// Undefined blocks found at once, 512 KiB, give or take what one look at the table shows.
const UNDEFINED_FOUND_MAX: usize = 1 << 16;
/// Blocks from which on a walk over the table costs less than a look at each entry.
const SKIP_BLOCKS_MIN: u64 = 1024;
