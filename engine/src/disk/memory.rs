//! A disk in memory: for tests, examples and embedders' own experiments.

use std::ops::Range;
use std::sync::RwLock;

use super::{DiskInfo, Extent, ExtentKind, Source, Target};
use crate::error::{Error, ErrorKind, Result};
use crate::hash::is_zero;
use crate::system::MediumAccess;
use crate::units::ByteOffset;

/// Bytes in memory, seen as a disk.
#[derive(Debug)]
pub struct MemoryDisk {
    bytes: RwLock<Vec<u8>>,
}

/// Granularity in which zeros are reported.
const EXTENT_LEN: usize = 64 << 10;

impl MemoryDisk {
    /// A disk with that content.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        Self {
            bytes: RwLock::new(bytes),
        }
    }

    /// A copy of the present content.
    #[must_use]
    pub fn content(&self) -> Vec<u8> {
        self.locked().clone()
    }

    fn locked(&self) -> std::sync::RwLockReadGuard<'_, Vec<u8>> {
        self.bytes
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn span(len: usize, at: ByteOffset, count: usize) -> Result<Range<usize>> {
        usize::try_from(at.0)
            .ok()
            .and_then(|start| Some(start..start.checked_add(count)?))
            .filter(|span| span.end <= len)
            .ok_or_else(|| Error::new(ErrorKind::Usage, "range past the end").at(at.0))
    }

    fn change(&self, at: ByteOffset, count: usize, change: impl FnOnce(&mut [u8])) -> Result<()> {
        let mut bytes = self
            .bytes
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let span = Self::span(bytes.len(), at, count)?;
        change(&mut bytes[span]);
        Ok(())
    }
}

impl Source for MemoryDisk {
    fn info(&self) -> DiskInfo {
        DiskInfo {
            format: "memory".into(),
            virtual_size: self.locked().len() as u64,
            logical_sector_size: None,
            image_block_size: None,
            identity: "memory".into(),
            warnings: Vec::new(),
        }
    }

    fn read(&self, at: ByteOffset, buf: &mut [u8]) -> Result<()> {
        let bytes = self.locked();
        let span = Self::span(bytes.len(), at, buf.len())?;
        buf.copy_from_slice(&bytes[span]);
        Ok(())
    }

    fn extent_at(&self, at: ByteOffset) -> Result<Extent> {
        let bytes = self.locked();
        let start = Self::span(bytes.len(), at, 1)?.start;
        let end = (start / EXTENT_LEN + 1)
            .saturating_mul(EXTENT_LEN)
            .min(bytes.len());
        let kind = if is_zero(&bytes[start..end]) {
            ExtentKind::Zero
        } else {
            ExtentKind::Data
        };
        Ok(Extent {
            kind,
            end: ByteOffset(end as u64),
        })
    }
}

impl Target for MemoryDisk {
    fn write(&self, at: ByteOffset, data: &[u8]) -> Result<()> {
        self.change(at, data.len(), |span| span.copy_from_slice(data))
    }

    fn zero(&self, range: Range<ByteOffset>) -> Result<()> {
        let len = usize::try_from(crate::units::range_len(&range)).unwrap_or(usize::MAX);
        self.change(range.start, len, |span| span.fill(0))
    }

    fn zero_undefined(&self) -> Result<u64> {
        Ok(0)
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn read_back(&self, at: ByteOffset, buf: &mut [u8]) -> Result<()> {
        self.read(at, buf)
    }

    fn medium(&self) -> MediumAccess {
        MediumAccess::Cache
    }

    fn mark(&self) -> Result<Option<String>> {
        Ok(None)
    }

    fn close(&self) -> Result<()> {
        Ok(())
    }
}
