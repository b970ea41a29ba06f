//! Finds the entries of the log that have to be replayed, and replays them in memory.
//!
//! Source: MS-VHDX 2.3.3. The specification tries every place of the ring as a tail, follows
//! valid entries with rising numbers to a head, takes the run if the head's tail field points
//! into it, and prefers the highest head. This does the same in one pass:
//!
//! ```text
//! entries  = every valid entry, by place
//! next(e)  = the entry right behind e, if its number is e's plus 1
//! last(e)  = e without a next, else last(next(e))
//! active   = the e with the highest number where last(e) = e and last(entry at e.tail) = e
//! replay     from the entry at active.tail to active, nothing else
//! ```
//!
//! Departures: numbers rise along `next`, so a run that fills the whole ring ends too. Each entry
//! is checked once and checking stops after [`SCAN_FACTOR`] times the ring, so that a crafted
//! log of 1 GiB takes linear time. Cost: O(ring) bytes, O(entries) memory.

use std::collections::BTreeMap;
use std::ops::Range;

use uuid::Uuid;

use super::entry::{Descriptor, EntryHeader, restore_page};
use crate::error::{Error, ErrorKind, Result};
use crate::file::FileAt;
use crate::format::{FILE_LEN_MAX, PAGE, PAGE_LEN, to_usize};
use crate::overlay::Overlay;

/// The file as it is after replay, and how many entries were replayed.
///
/// # Errors
/// [`ErrorKind::Damaged`] when there is nothing valid to replay though the header says so,
/// [`ErrorKind::Truncated`] when the file is shorter than the log knows it to have been.
pub(crate) fn replay(
    file: &dyn FileAt,
    log: &Range<u64>,
    log_guid: Uuid,
) -> Result<(Overlay, u64)> {
    let file_len = file
        .len()
        .map_err(|error| Error::io("read file length", error))?;
    if log.is_empty() {
        return Err(Error::damaged("log", "in use, but has no space"));
    }
    if log.end > file_len {
        return Err(Error::new(ErrorKind::Truncated, "file ends before it").of("log"));
    }
    let ring = Ring {
        file,
        log: log.clone(),
    };
    let entries = scan(&ring, log_guid)?;
    let active = active_head(&entries, ring.len())
        .ok_or_else(|| Error::damaged("log", "in use, but no entry is valid").offset(log.start))?;
    let head = &entries[&active];
    if file_len < head.flushed_file_len {
        let detail = format!(
            "file had {:#x} bytes when the log was written",
            head.flushed_file_len
        );
        return Err(Error::new(ErrorKind::Truncated, detail).of("log"));
    }
    if head.last_file_len > FILE_LEN_MAX {
        return Err(Error::damaged(
            "log",
            "wants a longer file than there can be",
        ));
    }
    let mut overlay = Overlay::new(file_len);
    let mut at = head.tail;
    let mut count = 0;
    loop {
        let entry = &entries[&at];
        apply(&ring, at, entry, &mut overlay)?;
        count += 1;
        if at == active {
            break;
        }
        at = ring.wrap(at + entry.len);
    }
    overlay.grow(head.last_file_len);
    Ok((overlay, count))
}

/// All valid entries, by byte offset in the ring.
pub(crate) fn scan(ring: &Ring<'_>, log_guid: Uuid) -> Result<BTreeMap<u64, EntryHeader>> {
    let mut budget = ring.len() * SCAN_FACTOR;
    let mut entries = BTreeMap::new();
    let mut at = 0;
    while at < ring.len() {
        let mut bytes = [0; 64];
        ring.read(at, &mut bytes)?;
        if let Some(header) = EntryHeader::parse(&bytes, log_guid, ring.len()) {
            budget = budget
                .checked_sub(header.len)
                .ok_or_else(|| Error::damaged("log", "entries overlap too often"))?;
            if is_valid(ring, at, &header)? {
                entries.insert(at, header);
            }
        }
        at += PAGE;
    }
    Ok(entries)
}

/// Where the head of the active sequence is.
pub(crate) fn active_head(entries: &BTreeMap<u64, EntryHeader>, ring_len: u64) -> Option<u64> {
    let mut descending: Vec<(&u64, &EntryHeader)> = entries.iter().collect();
    descending.sort_by_key(|(at, entry)| (std::cmp::Reverse(entry.sequence), **at));
    let mut last = BTreeMap::new();
    for (at, entry) in &descending {
        let next_at = (**at + entry.len) % ring_len;
        let follows = entries
            .get(&next_at)
            .is_some_and(|next| entry.sequence.checked_add(1) == Some(next.sequence));
        // A higher number was handled before, so the last one of its run is known.
        let end = if follows { last[&next_at] } else { **at };
        last.insert(**at, end);
    }
    descending
        .into_iter()
        .find(|(at, entry)| last[*at] == **at && last.get(&entry.tail) == Some(*at))
        .map(|(at, _)| *at)
}

/// Whether checksum and all descriptors and data sectors of the entry are right.
fn is_valid(ring: &Ring<'_>, at: u64, header: &EntryHeader) -> Result<bool> {
    let mut crc = 0;
    let mut done = 0;
    let mut piece = vec![0; to_usize(header.len.min(PIECE_LEN))];
    while done < header.len {
        let count = to_usize((header.len - done).min(PIECE_LEN));
        ring.read(at + done, &mut piece[..count])?;
        if done == 0 {
            piece[4..8].fill(0);
        }
        crc = crc32c::crc32c_append(crc, &piece[..count]);
        done += count as u64;
    }
    if crc != header.checksum {
        return Ok(false);
    }
    let mut pages = 0;
    let mut fits = true;
    visit(ring, at, header, |descriptor, _| {
        match descriptor {
            Some(Descriptor::Page { .. }) => pages += 1,
            Some(Descriptor::Zeros(_)) => {}
            None => fits = false,
        }
        Ok(fits && pages <= header.data_sectors())
    })?;
    Ok(fits && pages == header.data_sectors())
}

/// Puts what a valid entry asks for into the overlay.
fn apply(ring: &Ring<'_>, at: u64, header: &EntryHeader, overlay: &mut Overlay) -> Result<()> {
    visit(ring, at, header, |descriptor, data_at| {
        let descriptor = descriptor.ok_or_else(|| changed(at))?;
        descriptor.check(&ring.log)?;
        match descriptor {
            Descriptor::Zeros(range) => overlay.insert_zeros(range)?,
            Descriptor::Page {
                at: page_at,
                leading,
                trailing,
            } => {
                let mut sector = [0; PAGE_LEN];
                ring.read(data_at, &mut sector)?;
                let page = restore_page(&sector, header.sequence, leading, trailing);
                overlay.insert_page(page_at, page.ok_or_else(|| changed(at))?)?;
            }
        }
        Ok(true)
    })
}

fn changed(at: u64) -> Error {
    Error::damaged("log entry", "data sector or descriptor of another entry").offset(at)
}

/// Calls `each` with every descriptor and the ring offset of its data sector, until it says
/// `false`.
pub(crate) fn visit(
    ring: &Ring<'_>,
    at: u64,
    header: &EntryHeader,
    mut each: impl FnMut(Option<Descriptor>, u64) -> Result<bool>,
) -> Result<()> {
    let mut data_at = at + header.descriptor_sectors() * PAGE;
    let mut left = header.descriptor_count;
    for sector in 0..header.descriptor_sectors() {
        let mut bytes = [0; PAGE_LEN];
        ring.read(at + sector * PAGE, &mut bytes)?;
        let first = if sector == 0 { 64 } else { 0 };
        for raw in bytes[first..]
            .chunks_exact(32)
            .take(to_usize(left.min(128)))
        {
            let descriptor = Descriptor::parse(raw, header.sequence);
            let is_page = matches!(descriptor, Some(Descriptor::Page { .. }));
            if !each(descriptor, data_at)? {
                return Ok(());
            }
            data_at += if is_page { PAGE } else { 0 };
            left -= 1;
        }
    }
    Ok(())
}

/// The log as a ring of bytes.
pub(crate) struct Ring<'a> {
    pub(crate) file: &'a dyn FileAt,
    /// Not empty, inside the file.
    pub(crate) log: Range<u64>,
}

impl Ring<'_> {
    pub(crate) fn len(&self) -> u64 {
        self.log.end - self.log.start
    }

    pub(crate) fn wrap(&self, at: u64) -> u64 {
        at % self.len()
    }

    /// Reads from ring offset `at`, which may be past the end, around the end.
    pub(crate) fn read(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        let at = self.wrap(at);
        let first = buf.len().min(to_usize(self.len() - at));
        let (head, wrapped) = buf.split_at_mut(first);
        for (part, from) in [(head, self.log.start + at), (wrapped, self.log.start)] {
            self.file
                .read_at(from, part)
                .map_err(|error| Error::io("read log", error).of("log").offset(from))?;
        }
        Ok(())
    }
}

/// Bytes checked per byte of ring. Entries of a sound log do not overlap; remains of older rounds
/// of the ring can, a few times.
const SCAN_FACTOR: u64 = 8;
/// Bytes read at once while checking.
const PIECE_LEN: u64 = 256 << 10;

#[cfg(test)]
mod tests {
    // Goal: exactly the active sequence is replayed. Method: write entries at chosen places of a
    // small ring and look which pages the overlay holds.
    use super::super::entry::{EntryFields, encode};
    use super::*;
    use crate::file::MemoryFile;

    const MIB: u64 = 1 << 20;
    const GUID: Uuid = Uuid::from_u128(42);

    struct Log(MemoryFile);

    impl Log {
        fn new() -> Self {
            let file = MemoryFile::new();
            file.set_len(8 * MIB).unwrap();
            Self(file)
        }

        /// One page of `fill` at 4 MiB + `fill` pages, in an entry at this ring offset.
        fn put(&self, at: u64, sequence: u64, tail: u64, fill: u8) {
            let fields = EntryFields {
                log_guid: GUID,
                sequence,
                tail,
                flushed_file_len: 8 * MIB,
                last_file_len: 8 * MIB,
            };
            let bytes = encode(
                &fields,
                &[(4 * MIB + u64::from(fill) * PAGE, &[fill; PAGE_LEN])],
            );
            for (sector, bytes) in (0..).zip(bytes.chunks(PAGE_LEN)) {
                self.0
                    .write_at(MIB + (at + sector * PAGE) % MIB, bytes)
                    .unwrap();
            }
        }

        /// The fills of the pages that replay restores.
        fn replayed(&self) -> Result<Vec<u8>> {
            let (overlay, _) = replay(&self.0, &(MIB..2 * MIB), GUID)?;
            let restored = |fill: &u8| {
                let at = 4 * MIB + u64::from(*fill) * PAGE;
                !overlay.is_untouched(&(at..at + PAGE))
            };
            Ok((1..255).filter(restored).collect())
        }
    }

    #[test]
    fn only_what_the_heads_tail_covers_is_replayed() {
        let log = Log::new();
        log.put(0, 10, 0, 1);
        log.put(8192, 11, 0, 2);
        log.put(16384, 12, 8192, 3);
        assert_eq!(log.replayed().unwrap(), [2, 3]);
    }

    #[test]
    fn the_highest_head_wins() {
        let log = Log::new();
        log.put(0, 90, 0, 1);
        log.put(40960, 7, 40960, 2);
        assert_eq!(log.replayed().unwrap(), [1]);
    }

    #[test]
    fn a_head_whose_tail_is_elsewhere_does_not_count() {
        let log = Log::new();
        log.put(0, 90, 81920, 1);
        log.put(40960, 7, 40960, 2);
        assert_eq!(log.replayed().unwrap(), [2]);
    }

    #[test]
    fn entries_go_around_the_end() {
        let log = Log::new();
        log.put(MIB - 12288, 5, MIB - 12288, 1);
        log.put(MIB - 4096, 6, MIB - 12288, 2);
        log.put(4096, 7, MIB - 12288, 3);
        assert_eq!(log.replayed().unwrap(), [1, 2, 3]);
    }

    #[test]
    fn a_run_that_fills_the_ring_ends() {
        let log = Log::new();
        for index in 0..128 {
            log.put(
                index * 8192,
                100 + index,
                0,
                u8::try_from(index + 1).unwrap(),
            );
        }
        assert_eq!(log.replayed().unwrap().len(), 128);
    }

    #[test]
    fn a_torn_entry_is_not_replayed() {
        let log = Log::new();
        log.put(0, 10, 0, 1);
        log.put(8192, 11, 0, 2);
        log.0.write_at(MIB + 8192 + 5000, &[1]).unwrap();
        assert_eq!(log.replayed().unwrap(), [1]);
    }

    #[test]
    fn an_empty_log_in_use_is_damage() {
        assert_eq!(
            Log::new().replayed().unwrap_err().kind(),
            ErrorKind::Damaged
        );
    }

    #[test]
    fn a_file_shorter_than_the_log_knows_is_truncated() {
        let log = Log::new();
        log.put(0, 10, 0, 1);
        log.0.set_len(7 * MIB).unwrap();
        assert_eq!(log.replayed().unwrap_err().kind(), ErrorKind::Truncated);
    }

    #[test]
    fn headers_and_log_are_no_targets() {
        for at in [64 << 10, MIB + 4096, FILE_LEN_MAX] {
            let log = Log::new();
            let fields = EntryFields {
                log_guid: GUID,
                sequence: 1,
                tail: 0,
                flushed_file_len: 0,
                last_file_len: 0,
            };
            log.0
                .write_at(MIB, &encode(&fields, &[(at, &[1; PAGE_LEN])]))
                .unwrap();
            assert_eq!(log.replayed().unwrap_err().kind(), ErrorKind::Damaged);
        }
    }

    #[test]
    fn overlapping_giants_hit_the_budget() {
        let log = Log::new();
        for at in 0..256_u64 {
            let fields = EntryFields {
                log_guid: GUID,
                sequence: 1,
                tail: 0,
                flushed_file_len: 0,
                last_file_len: 0,
            };
            let mut bytes = encode(&fields, &[]);
            bytes[8..12].copy_from_slice(&(1_u32 << 20).to_le_bytes());
            log.0.write_at(MIB + at * PAGE, &bytes).unwrap();
        }
        assert_eq!(log.replayed().unwrap_err().kind(), ErrorKind::Damaged);
    }
}
