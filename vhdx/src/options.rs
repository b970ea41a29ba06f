//! What a new image shall be.

use uuid::Uuid;

use crate::error::{Error, Result};
use crate::image::Kind;

/// Parameters of [`Image::create`](crate::Image::create).
#[derive(Clone, Debug)]
pub struct CreateOptions {
    /// Size of the virtual disk in bytes: a multiple of the logical sector, 1 sector to 64 TiB.
    pub virtual_size: u64,
    /// Bytes in a block: a power of two, 1 MiB to 256 MiB. `None` means 32 MiB for a dynamic
    /// image and 2 MiB for a fixed one, as Windows does.
    pub block_size: Option<u32>,
    /// Bytes in a sector as the guest addresses it: 512 or 4096.
    pub logical_sector_size: u32,
    /// Bytes in a sector as the medium is said to have: 512 or 4096.
    pub physical_sector_size: u32,
    /// Whether blocks are allocated now or when first written.
    pub kind: Kind,
    /// Identity of the virtual disk (SCSI page 83); `None` means a random one.
    pub disk_id: Option<Uuid>,
    /// Name of the creating program, for people only; at most 255 UTF-16 units are kept.
    pub creator: String,
}

impl CreateOptions {
    /// A disk of `virtual_size` bytes with 512-byte logical and 4096-byte physical sectors.
    pub fn new(virtual_size: u64, kind: Kind) -> Self {
        Self {
            virtual_size,
            block_size: None,
            logical_sector_size: 512,
            physical_sector_size: 4096,
            kind,
            disk_id: None,
            creator: concat!("failback ", env!("CARGO_PKG_VERSION")).to_owned(),
        }
    }

    /// The block size in bytes, default applied.
    pub(crate) fn block_size_or_default(&self) -> u32 {
        self.block_size.unwrap_or(match self.kind {
            Kind::Dynamic => 32 << 20,
            Kind::Fixed => 2 << 20,
        })
    }

    pub(crate) fn check(&self) -> Result<()> {
        let _ = self.block_size_or_default();
        if self.virtual_size == 0 {
            return Err(Error::invalid("virtual size is zero"));
        }
        Ok(())
    }
}
