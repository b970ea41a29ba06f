//! An open image.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use uuid::Uuid;

use crate::error::{Error, Result};
use crate::extent::{AllocationSummary, Extent, Run};
use crate::file::FileAt;
use crate::options::CreateOptions;

/// An open VHDX image. All methods take `&self` and may be called from many threads at once.
///
/// Dropping an image that was written and not [closed](Self::close) writes nothing: what was
/// flushed is in the file or its log, and the next open replays the log.
#[derive(Debug)]
pub struct Image {
    file: Arc<dyn FileAt>,
}

/// Whether blocks are allocated at creation or when first written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Every block has its place from the start.
    Fixed,
    /// A block gets a place when it is first written.
    Dynamic,
}

/// What opening found in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogState {
    /// Nothing: the image was closed cleanly.
    Empty,
    /// The log in the file had to be replayed, which was done in memory.
    Replayed {
        /// How many log entries were replayed.
        entries: u64,
    },
}

/// Something wrong that did not keep the image from being opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Warning {
    /// Only the header at this byte offset of the file is damaged.
    HeaderDamaged {
        /// 64 KiB or 128 KiB.
        at: u64,
    },
    /// Only the region table at this byte offset of the file is damaged.
    RegionTableDamaged {
        /// 192 KiB or 256 KiB.
        at: u64,
    },
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HeaderDamaged { at } => {
                write!(f, "header at {at:#x} is damaged, the other is used")
            }
            Self::RegionTableDamaged { at } => {
                write!(f, "region table at {at:#x} is damaged, the other is used")
            }
        }
    }
}

/// Whether a file that begins with these bytes says it is a VHDX; 8 bytes are enough.
pub fn is_vhdx(first_bytes: &[u8]) -> bool {
    first_bytes.starts_with(b"vhdxfile")
}

fn soon() -> Error {
    Error::unsupported("not built yet")
}

#[expect(missing_docs, reason = "placeholder while the parts are built")]
impl Image {
    pub fn open(_file: Arc<dyn FileAt>) -> Result<Self> {
        Err(soon())
    }
    pub fn open_rw(_file: Arc<dyn FileAt>) -> Result<Self> {
        Err(soon())
    }
    pub fn create(_file: Arc<dyn FileAt>, options: &CreateOptions) -> Result<Self> {
        options.check()?;
        Err(soon())
    }
    pub fn virtual_size(&self) -> u64 {
        0
    }
    pub fn block_size(&self) -> u32 {
        0
    }
    pub fn logical_sector_size(&self) -> u32 {
        0
    }
    pub fn physical_sector_size(&self) -> u32 {
        0
    }
    pub fn disk_id(&self) -> Uuid {
        Uuid::nil()
    }
    pub fn data_write_guid(&self) -> Uuid {
        Uuid::nil()
    }
    pub fn file_write_guid(&self) -> Uuid {
        Uuid::nil()
    }
    pub fn kind(&self) -> Kind {
        Kind::Fixed
    }
    pub fn creator(&self) -> String {
        String::new()
    }
    pub fn log_state(&self) -> LogState {
        LogState::Empty
    }
    pub fn sequence(&self) -> u64 {
        0
    }
    pub fn warnings(&self) -> &[Warning] {
        &[]
    }
    pub fn resolve(&self, _range: Range<u64>, runs: &mut Vec<Run>) -> Result<()> {
        let _ = Run::push;
        runs.clear();
        Err(soon())
    }
    pub fn extent_at(&self, _at: u64) -> Result<Extent> {
        Err(soon())
    }
    pub fn read_at(&self, _at: u64, _buf: &mut [u8]) -> Result<()> {
        Err(soon())
    }
    pub fn write_at(&self, _at: u64, _data: &[u8]) -> Result<()> {
        Err(soon())
    }
    pub fn zero(&self, _range: Range<u64>) -> Result<()> {
        Err(soon())
    }
    pub fn flush(&self) -> Result<()> {
        Err(soon())
    }
    pub fn close(&self) -> Result<()> {
        Err(soon())
    }
    pub fn file(&self) -> &Arc<dyn FileAt> {
        &self.file
    }
    pub fn scan_allocation(&self) -> Result<AllocationSummary> {
        Err(soon())
    }
}
