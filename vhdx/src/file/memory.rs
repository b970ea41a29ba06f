//! A sparse file in memory, for tests and fuzzing.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::{FileAt, FileExtent};

/// A growable file in memory that holds only the 4 KiB pages ever written, so that images of
/// many TiB fit. [`Clone`] makes an independent copy of the current content; pages are shared until
/// one of the two changes them, so that it costs little.
#[derive(Debug, Default)]
pub struct MemoryFile(RwLock<Content>);

#[derive(Clone, Debug, Default)]
struct Content {
    len: u64,
    /// By page number. Bytes at and past `len` are zero.
    pages: BTreeMap<u64, Arc<[u8; PAGE]>>,
}

impl MemoryFile {
    /// An empty file.
    pub fn new() -> Self {
        Self::default()
    }

    /// A file that holds `bytes`; zero pages of it take no space.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let mut content = Content {
            len: bytes.len() as u64,
            ..Content::default()
        };
        for (page, chunk) in (0..).zip(bytes.chunks(PAGE)) {
            if chunk.iter().any(|byte| *byte != 0) {
                content.write(page * PAGE as u64, chunk);
            }
        }
        Self(RwLock::new(content))
    }

    /// The whole content. For small files.
    pub fn to_bytes(&self) -> Vec<u8> {
        let content = self.content();
        let mut bytes = vec![0; usize::try_from(content.len).expect("a small file")];
        content.read(0, &mut bytes);
        bytes
    }

    /// Bytes of memory behind the content.
    pub fn allocated(&self) -> u64 {
        (self.content().pages.len() * PAGE) as u64
    }

    // A panic elsewhere leaves whole pages at worst half copied: as a torn write would.
    fn content(&self) -> RwLockReadGuard<'_, Content> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn content_mut(&self) -> RwLockWriteGuard<'_, Content> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Clone for MemoryFile {
    fn clone(&self) -> Self {
        Self(RwLock::new(self.content().clone()))
    }
}

impl PartialEq for MemoryFile {
    /// Same length and bytes, whatever the pages behind them.
    fn eq(&self, other: &Self) -> bool {
        let (left, right) = (self.content(), other.content());
        let covered = |a: &Content, b: &Content| {
            a.pages.iter().all(|(page, bytes)| match b.pages.get(page) {
                Some(twin) => bytes == twin,
                None => bytes.iter().all(|byte| *byte == 0),
            })
        };
        left.len == right.len && covered(&left, &right) && covered(&right, &left)
    }
}

impl FileAt for MemoryFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.content().len)
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        let content = self.content();
        let end = at.checked_add(buf.len() as u64);
        if end.is_none_or(|end| end > content.len) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        content.read(at, buf);
        Ok(())
    }

    fn write_at(&self, at: u64, data: &[u8]) -> io::Result<()> {
        let end = at
            .checked_add(data.len() as u64)
            .ok_or(io::ErrorKind::FileTooLarge)?;
        let mut content = self.content_mut();
        content.write(at, data);
        content.len = content.len.max(end);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut content = self.content_mut();
        let end = content.len;
        content.zero(len..end);
        content.len = len;
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn zero(&self, range: Range<u64>) -> io::Result<()> {
        let mut content = self.content_mut();
        let end = range.end.min(content.len);
        content.zero(range.start..end);
        Ok(())
    }

    fn allocate(&self, _range: Range<u64>) -> io::Result<()> {
        // Memory is taken page by page, as it is written: nothing can be promised ahead.
        Ok(())
    }

    fn extent_at(&self, at: u64) -> io::Result<FileExtent> {
        let content = self.content();
        let mut page = at / PAGE as u64;
        if !content.pages.contains_key(&page) {
            let next = content.pages.range(page..).next();
            let end = next.map_or(content.len, |(next, _)| next * PAGE as u64);
            return Ok(FileExtent {
                is_hole: true,
                end: end.min(content.len).max(at + 1),
            });
        }
        while content.pages.contains_key(&page) {
            page += 1;
        }
        let end = (page * PAGE as u64).min(content.len).max(at + 1);
        Ok(FileExtent {
            is_hole: false,
            end,
        })
    }
}

impl Content {
    fn read(&self, at: u64, buf: &mut [u8]) {
        for (page, within, piece) in pieces(at, buf.len()) {
            match self.pages.get(&page) {
                Some(bytes) => {
                    let source = &bytes[within..within + piece.len()];
                    buf[piece].copy_from_slice(source);
                }
                None => buf[piece].fill(0),
            }
        }
    }

    fn write(&mut self, at: u64, data: &[u8]) {
        for (page, within, piece) in pieces(at, data.len()) {
            let bytes = self
                .pages
                .entry(page)
                .or_insert_with(|| Arc::new([0; PAGE]));
            Arc::make_mut(bytes)[within..within + piece.len()].copy_from_slice(&data[piece]);
        }
    }

    fn zero(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let page_len = PAGE as u64;
        let held: Vec<u64> = self
            .pages
            .range(range.start / page_len..=(range.end - 1) / page_len)
            .map(|(page, _)| *page)
            .collect();
        for page in held {
            let (start, end) = (page * page_len, (page + 1) * page_len);
            if range.start <= start && end <= range.end {
                self.pages.remove(&page);
            } else if let Some(bytes) = self.pages.get_mut(&page) {
                let from = index(range.start.max(start) - start);
                let to = index(range.end.min(end) - start);
                Arc::make_mut(bytes)[from..to].fill(0);
            }
        }
    }
}

/// Cuts `len` bytes from `at` on at page borders: page number, offset in it, part of the buffer.
fn pieces(at: u64, len: usize) -> impl Iterator<Item = (u64, usize, Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == len {
            return None;
        }
        let position = at + done as u64;
        let within = index(position % PAGE as u64);
        let count = (PAGE - within).min(len - done);
        let piece = done..done + count;
        done += count;
        Some((position / PAGE as u64, within, piece))
    })
}

/// An offset within one page, which fits any `usize`.
fn index(offset: u64) -> usize {
    usize::try_from(offset).expect("an offset within a page")
}

/// Unit of allocation in bytes.
const PAGE: usize = 4096;

#[cfg(test)]
mod tests {
    // Goal: holes, cuts and growth behave as in a real file. Method: fixed small sequences.
    use super::*;

    #[test]
    fn bytes_cut_off_do_not_come_back() {
        let file = MemoryFile::from_bytes(&[7; 5000]);
        file.set_len(4500).unwrap();
        file.set_len(9000).unwrap();
        let mut tail = [1; 4500];
        file.read_at(4500, &mut tail).unwrap();
        assert_eq!(tail, [0; 4500]);
    }

    #[test]
    fn a_read_past_the_end_is_refused() {
        let file = MemoryFile::from_bytes(&[7; 10]);
        let error = file.read_at(8, &mut [0; 3]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn extents_end_where_pages_do() {
        let file = MemoryFile::new();
        file.set_len(1 << 40).unwrap();
        file.write_at(8192, &[1; 4096]).unwrap();
        let hole = FileExtent {
            is_hole: true,
            end: 8192,
        };
        let data = FileExtent {
            is_hole: false,
            end: 12288,
        };
        assert_eq!(file.extent_at(5).unwrap(), hole);
        assert_eq!(file.extent_at(8200).unwrap(), data);
        assert_eq!(file.extent_at(12288).unwrap().end, 1 << 40);
    }
}
