//! A file as its medium has it, for readers of an image format.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use failback_vhdx::{FileAt, FileExtent};

use super::HostFile;

/// A [`HostFile`] read past the page cache, where the system can do that. It cannot be changed.
///
/// Tables are read in small pieces one after the other, so a window of the file is kept: what it
/// shows is as old as the first read in it. To be made after a flush, and dropped before a change.
#[derive(Debug)]
pub(crate) struct PastCache {
    file: Arc<HostFile>,
    window: Mutex<Window>,
}

#[derive(Debug, Default)]
struct Window {
    at: u64,
    bytes: Vec<u8>,
}

/// Bytes of the window, and what its start is a multiple of.
const WINDOW_LEN: u64 = 256 << 10;

impl PastCache {
    pub(crate) fn new(file: Arc<HostFile>) -> Self {
        Self {
            file,
            window: Mutex::default(),
        }
    }
}

impl Window {
    fn part(&self, at: u64, len: usize) -> Option<&[u8]> {
        let from = usize::try_from(at.checked_sub(self.at)?).ok()?;
        self.bytes.get(from..from.checked_add(len)?)
    }

    fn load(&mut self, file: &HostFile, at: u64) -> io::Result<()> {
        self.bytes.clear();
        self.at = at / WINDOW_LEN * WINDOW_LEN;
        let len = file.len()?.saturating_sub(self.at).min(WINDOW_LEN);
        let mut bytes = vec![0; usize::try_from(len).expect("at most a window")];
        file.read_past_cache(self.at, &mut bytes)?;
        self.bytes = bytes;
        Ok(())
    }
}

impl FileAt for PastCache {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        // A load that failed leaves an empty window: none is half filled.
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        if window.part(at, buf.len()).is_none() {
            let is_within = (at % WINDOW_LEN).saturating_add(buf.len() as u64) <= WINDOW_LEN;
            if !is_within {
                return self.file.read_past_cache(at, buf);
            }
            window.load(&self.file, at)?;
        }
        let part = window.part(at, buf.len());
        buf.copy_from_slice(part.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, _at: u64, _data: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn set_len(&self, _len: u64) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn zero(&self, _range: Range<u64>) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn allocate(&self, _range: Range<u64>) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn extent_at(&self, at: u64) -> io::Result<FileExtent> {
        self.file.extent_at(at)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::system::Access;

    // Goal: the window gives the file's bytes at every edge, and nothing past its end. Method:
    // reads around window and end, compared with the bytes written.
    #[test]
    fn reads_match_the_file() {
        let window = usize::try_from(WINDOW_LEN).unwrap();
        let bytes: Vec<u8> = (0..2 * window + 5000)
            .map(|at| u8::try_from(at % 251).unwrap())
            .collect();
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&bytes).unwrap();
        file.as_file().sync_all().unwrap();
        let opened = HostFile::open(file.path(), Access::Inspect).unwrap();
        let past = PastCache::new(Arc::new(opened));
        let ranges = [
            (0, 1),
            (window - 7, 7),
            (window - 7, 8),
            (1, 2 * window),
            (2 * window + 4999, 1),
            (bytes.len() - 4096, 4096),
        ];
        for (at, len) in ranges {
            let mut buf = vec![0; len];
            past.read_at(at as u64, &mut buf).unwrap();
            assert_eq!(buf, bytes[at..at + len], "{at} {len}");
        }
        let mut buf = [0; 2];
        let error = past.read_at(bytes.len() as u64 - 1, &mut buf).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
