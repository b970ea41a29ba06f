//! What a replayed log changes, kept beside the file instead of in it.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::error::{Error, Result};
use crate::file::FileAt;
use crate::format::{PAGE, PAGE_LEN};
use crate::storage::Storage;

/// Pages and zero ranges that cover the file, and the length it would have.
///
/// Memory is bounded: at most [`PAGES_MAX`] pages and [`ZERO_RANGES_MAX`] ranges, whatever the
/// lengths of the ranges.
#[derive(Debug, Default)]
pub(crate) struct Overlay {
    /// Bytes of the file with nothing replayed.
    file_len: u64,
    /// Bytes after replay, at least `file_len`. What lies between reads zero unless covered.
    len: u64,
    /// By byte offset in the file, on page borders. Goes before `zeros`.
    pages: BTreeMap<u64, Box<[u8; PAGE_LEN]>>,
    /// Start to end on page borders; they neither touch nor overlap.
    zeros: BTreeMap<u64, u64>,
}

/// Where the bytes of a piece of the file are after replay.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Piece<'a> {
    /// In the file as ever.
    File,
    /// They are zero.
    Zero,
    /// In this page, from this byte of it on.
    Page(&'a [u8; PAGE_LEN], usize),
}

impl Overlay {
    pub(crate) fn new(file_len: u64) -> Self {
        Self {
            file_len,
            len: file_len,
            ..Self::default()
        }
    }

    /// Bytes of the file after replay.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Makes the file at least this long.
    pub(crate) fn grow(&mut self, len: u64) {
        self.len = self.len.max(len);
    }

    pub(crate) fn insert_page(&mut self, at: u64, page: Box<[u8; PAGE_LEN]>) -> Result<()> {
        if self.pages.len() >= PAGES_MAX {
            return Err(Error::unsupported(
                "log changes more pages than are kept in memory",
            ));
        }
        self.pages.insert(at, page);
        self.grow(at + PAGE);
        Ok(())
    }

    /// Later than any page put in before, so those in the range go.
    pub(crate) fn insert_zeros(&mut self, range: Range<u64>) -> Result<()> {
        let (mut start, mut end) = (range.start, range.end);
        if start == end {
            return Ok(());
        }
        let covered: Vec<u64> = self.pages.range(start..end).map(|(at, _)| *at).collect();
        for at in covered {
            self.pages.remove(&at);
        }
        while let Some((&from, &to)) = self.zeros.range(..=end).next_back() {
            if to < start {
                break;
            }
            self.zeros.remove(&from);
            (start, end) = (start.min(from), end.max(to));
        }
        if self.zeros.len() >= ZERO_RANGES_MAX {
            return Err(Error::unsupported(
                "log zeroes more ranges than are kept in memory",
            ));
        }
        self.zeros.insert(start, end);
        self.grow(end);
        Ok(())
    }

    /// What is at `at`, and where in `at..end` that stops.
    pub(crate) fn piece(&self, at: u64, end: u64) -> (Piece<'_>, u64) {
        let page_at = at / PAGE * PAGE;
        if let Some(page) = self.pages.get(&page_at) {
            let within = usize::try_from(at - page_at).expect("an offset within a page");
            return (Piece::Page(page, within), end.min(page_at + PAGE));
        }
        let next_page = self
            .pages
            .range(at..)
            .next()
            .map_or(end, |(start, _)| *start);
        let end = end.min(next_page);
        if let Some((_, zero_end)) = self.zeros.range(..=at).next_back()
            && at < *zero_end
        {
            return (Piece::Zero, end.min(*zero_end));
        }
        if at >= self.file_len {
            return (Piece::Zero, end);
        }
        let next_zero = self
            .zeros
            .range(at..)
            .next()
            .map_or(end, |(start, _)| *start);
        (Piece::File, end.min(next_zero).min(self.file_len))
    }

    /// Whether replay changed nothing in `range`.
    #[cfg(test)]
    pub(crate) fn is_untouched(&self, range: &Range<u64>) -> bool {
        let (piece, end) = self.piece(range.start, range.end);
        matches!(piece, Piece::File) && end == range.end
    }

    /// Reads the file as it is after replay.
    pub(crate) fn read_at(&self, file: &dyn FileAt, at: u64, buf: &mut [u8]) -> Result<()> {
        let end = at + buf.len() as u64;
        if end > self.len {
            return Err(Error::io("read", std::io::ErrorKind::UnexpectedEof.into()).offset(at));
        }
        let mut from = at;
        let mut rest = buf;
        while from < end {
            let (piece, to) = self.piece(from, end);
            let count = usize::try_from(to - from).expect("a part of a buffer");
            let (part, others) = rest.split_at_mut(count);
            match piece {
                Piece::File => file
                    .read_at(from, part)
                    .map_err(|error| Error::io("read", error).offset(from))?,
                Piece::Zero => part.fill(0),
                Piece::Page(page, within) => part.copy_from_slice(&page[within..within + count]),
            }
            (rest, from) = (others, to);
        }
        Ok(())
    }

    /// Does in the file what the log says. Doing it again, from any point, does the same.
    pub(crate) fn apply(&self, storage: &Storage) -> Result<()> {
        if self.file_len < self.len {
            storage.set_len(self.len)?;
        }
        for (start, end) in &self.zeros {
            storage.zero(*start..*end)?;
        }
        for (at, page) in &self.pages {
            storage.write_at(*at, &page[..])?;
        }
        Ok(())
    }
}

/// 64 MiB of pages. Logs by known writers are 1 MiB.
const PAGES_MAX: usize = 1 << 14;
/// 16 MiB or so of ranges.
const ZERO_RANGES_MAX: usize = 1 << 18;

#[cfg(test)]
mod tests {
    // Goal: later changes win and ends are right. Method: overlapping changes, read all.
    use std::sync::Arc;

    use super::*;
    use crate::file::MemoryFile;

    #[test]
    fn later_changes_hide_earlier_ones() {
        let file = MemoryFile::from_bytes(&[1; 5 * PAGE_LEN]);
        let mut overlay = Overlay::new(file.len().unwrap());
        overlay.insert_page(PAGE, Box::new([2; PAGE_LEN])).unwrap();
        overlay.insert_zeros(PAGE..3 * PAGE).unwrap();
        overlay
            .insert_page(2 * PAGE, Box::new([3; PAGE_LEN]))
            .unwrap();
        overlay.insert_zeros(3 * PAGE..4 * PAGE).unwrap();
        overlay.grow(6 * PAGE);
        let mut bytes = vec![9; 6 * PAGE_LEN];
        overlay.read_at(&file, 0, &mut bytes).unwrap();
        let firsts: Vec<u8> = bytes.chunks(PAGE_LEN).map(|page| page[7]).collect();
        assert_eq!(firsts, [1, 0, 3, 0, 1, 0]);
        assert_eq!(overlay.zeros, BTreeMap::from([(PAGE, 4 * PAGE)]));
        let file = Arc::new(file);
        overlay
            .apply(&Storage::new(file.clone(), None).unwrap())
            .unwrap();
        assert_eq!(file.to_bytes(), bytes);
    }

    #[test]
    fn huge_zero_ranges_cost_nothing() {
        let mut overlay = Overlay::new(PAGE);
        overlay.insert_zeros(0..1 << 46).unwrap();
        assert_eq!((overlay.len(), overlay.pages.len()), (1 << 46, 0));
    }
}
