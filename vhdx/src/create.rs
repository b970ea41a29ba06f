//! New images: what they shall be, and how they are written (sections 2.2 to 2.6).

use std::ops::Range;
use std::sync::Arc;

use uuid::Uuid;
use zerocopy::IntoBytes;

use crate::bat::Entry;
use crate::error::{Error, Result};
use crate::file::FileAt;
use crate::format::{CREATOR_LEN, FILE_MAGIC, MIB, REGION_TABLES_AT};
use crate::geometry::{Geometry, SlotIndex};
use crate::header::{self, Header};
use crate::image::{Image, Kind};
use crate::locator::ParentLocator;
use crate::metadata::{Metadata, OtherItem};
use crate::region;

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
    /// Whether blocks are allocated now or when first written. A differencing image is made by
    /// [`Image::create_child`](crate::Image::create_child).
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
            creator: CREATOR.to_owned(),
        }
    }

    /// In bytes.
    fn block_size_or_default(&self) -> u32 {
        self.block_size.unwrap_or(match self.kind {
            Kind::Dynamic => 32 << 20,
            Kind::Fixed | Kind::Differencing => 2 << 20,
        })
    }

    fn geometry(&self) -> Result<Geometry> {
        if self.kind == Kind::Differencing {
            return Err(Error::invalid("a differencing image is made as a child"));
        }
        if !matches!(self.physical_sector_size, 512 | 4096) {
            return Err(Error::invalid(
                "physical sector size is neither 512 nor 4096",
            ));
        }
        Geometry::new(
            self.virtual_size,
            self.block_size_or_default(),
            self.logical_sector_size,
        )
        .map_err(Error::invalid)
    }
}

/// Parameters of [`Image::create_child`](crate::Image::create_child). Everything else is as with
/// the parent.
#[derive(Clone, Debug)]
pub struct ChildOptions {
    /// Bytes in a block: a power of two, 1 MiB to 256 MiB. `None` means 2 MiB, as Windows does.
    pub block_size: Option<u32>,
    /// Path of the parent from the folder of the child, as Windows writes it: `.\parent.vhdx`. It
    /// is noted in the child, and not looked at.
    pub relative_path: Option<String>,
    /// Path of the parent with its drive: `C:\disks\parent.vhdx`. It is noted in the child, and not
    /// looked at. One of the two paths has to be there.
    pub absolute_path: Option<String>,
    /// Name of the creating program, for people only; at most 255 UTF-16 units are kept.
    pub creator: String,
}

impl ChildOptions {
    /// A child that notes this relative path.
    pub fn new(relative_path: &str) -> Self {
        Self {
            block_size: None,
            relative_path: Some(relative_path.to_owned()),
            absolute_path: None,
            creator: CREATOR.to_owned(),
        }
    }
}

impl Image {
    /// Makes a new image in an empty file and opens it for writing.
    ///
    /// The file is laid out as Windows does it: log, metadata, BAT, blocks. Until everything else
    /// is durable the file does not begin like a VHDX, so that a crash leaves no half image. The
    /// space of a fixed image is really taken from the file system
    /// ([`FileAt::allocate`](crate::FileAt::allocate)).
    ///
    /// # Errors
    /// [`InvalidArgument`](crate::ErrorKind::InvalidArgument) for sizes that cannot be and for a
    /// file that is not empty, in both cases with nothing written; [`Io`](crate::ErrorKind::Io).
    pub fn create(file: Arc<dyn FileAt>, options: &CreateOptions) -> Result<Self> {
        let create = || {
            let metadata = Metadata {
                geometry: options.geometry()?,
                physical_sector_size: options.physical_sector_size,
                disk_id: options.disk_id.unwrap_or_else(Uuid::new_v4),
                kind: options.kind,
                locator: None,
                others: Vec::new(),
            };
            write_image(&*file, &metadata, &options.creator)
        };
        create().map_err(|error| error.during("create"))?;
        Self::open_rw(file)
    }

    /// Makes a differencing image in an empty file and opens it for writing. It has the content,
    /// the identity and the sectors of `parent`, and names it by its
    /// [`data_write_guid`](Self::data_write_guid): once the parent's content is changed, no child
    /// of it can be opened any more.
    ///
    /// # Errors
    /// As for [`create`](Self::create) and [`open_child`](Self::open_child);
    /// [`InvalidArgument`](crate::ErrorKind::InvalidArgument) without a path.
    pub fn create_child(
        file: Arc<dyn FileAt>,
        parent: Arc<Self>,
        options: &ChildOptions,
    ) -> Result<Self> {
        let create = || {
            let geometry = Geometry::new(
                parent.virtual_size(),
                options.block_size.unwrap_or(2 << 20),
                parent.logical_sector_size(),
            );
            let locator = ParentLocator::new(
                parent.data_write_guid(),
                options.relative_path.as_deref(),
                options.absolute_path.as_deref(),
            );
            let metadata = Metadata {
                geometry: geometry.map_err(Error::invalid)?.with_bitmaps(),
                physical_sector_size: parent.physical_sector_size(),
                disk_id: parent.disk_id(),
                kind: Kind::Differencing,
                locator: Some(locator?),
                others: parent.other_items()?,
            };
            write_image(&*file, &metadata, &options.creator)
        };
        create().map_err(|error| error.during("create"))?;
        Self::open_child_rw(file, parent)
    }

    fn other_items(&self) -> Result<Vec<OtherItem>> {
        Metadata::read_others(&self.storage, &self.bat.regions().metadata)
    }
}

fn write_image(file: &dyn FileAt, metadata: &Metadata, creator: &str) -> Result<()> {
    let io = |error| Error::io("create", error);
    let geometry = &metadata.geometry;
    if !file.is_empty().map_err(io)? {
        return Err(Error::invalid("file is not empty"));
    }
    let bat = BAT_AT..BAT_AT + (geometry.slot_count() * 8).next_multiple_of(MIB);
    let payload_len = match metadata.kind {
        Kind::Dynamic | Kind::Differencing => 0,
        Kind::Fixed => geometry.block_count() * u64::from(geometry.block_size()),
    };
    file.set_len(bat.end + payload_len).map_err(io)?;
    if metadata.kind == Kind::Fixed {
        file.allocate(bat.end..bat.end + payload_len).map_err(io)?;
        write_fixed_bat(file, geometry, &bat)?;
    }
    file.write_at(METADATA.start, &metadata.encode())
        .map_err(io)?;
    let regions = region::encode(&bat, &METADATA);
    for at in REGION_TABLES_AT {
        file.write_at(at, &regions).map_err(io)?;
    }
    file.sync().map_err(io)?;
    let header = Header {
        sequence: 1,
        file_write_guid: Uuid::new_v4(),
        data_write_guid: Uuid::new_v4(),
        log_guid: Uuid::nil(),
        log: LOG,
    };
    for (at, raw) in header::pair(&header) {
        file.write_at(at, raw.as_bytes()).map_err(io)?;
    }
    file.write_at(0, &encode_file_id(creator)).map_err(io)?;
    file.sync().map_err(io)
}

/// Gives each block its place, in order, behind the table.
fn write_fixed_bat(file: &dyn FileAt, geometry: &Geometry, bat: &Range<u64>) -> Result<()> {
    let block_size = u64::from(geometry.block_size());
    let mut at = bat.start;
    let mut bytes = Vec::new();
    for slot in 0..geometry.slot_count() {
        let raw = geometry.block_of(SlotIndex(slot)).map_or(0, |block| {
            Entry::present(bat.end + block.0 * block_size).to_raw()
        });
        bytes.extend_from_slice(&raw.to_le_bytes());
        if bytes.len() == PIECE_LEN || slot + 1 == geometry.slot_count() {
            file.write_at(at, &bytes)
                .map_err(|error| Error::io("create", error).offset(at))?;
            at += bytes.len() as u64;
            bytes.clear();
        }
    }
    Ok(())
}

fn encode_file_id(creator: &str) -> Vec<u8> {
    let mut bytes = FILE_MAGIC.to_vec();
    let units = creator.encode_utf16().take(CREATOR_LEN / 2 - 1);
    bytes.extend(units.flat_map(u16::to_le_bytes));
    bytes.resize(FILE_MAGIC.len() + CREATOR_LEN, 0);
    bytes
}

/// Who makes images, unless the caller says otherwise.
const CREATOR: &str = concat!("failback ", env!("CARGO_PKG_VERSION"));
/// Where Windows puts the log.
const LOG: Range<u64> = MIB..2 * MIB;
/// Where Windows puts the metadata region.
const METADATA: Range<u64> = 2 * MIB..3 * MIB;
/// Where Windows puts the BAT.
const BAT_AT: u64 = 3 * MIB;
/// Bytes of the BAT written at once.
const PIECE_LEN: usize = 1 << 20;

#[cfg(test)]
mod tests {
    // Goal: what was asked for is what is opened. Method: create in memory, open again.
    use super::*;
    use crate::file::MemoryFile;

    #[test]
    fn opens_as_asked_for() {
        let disk_id = Uuid::from_u128(77);
        let options = CreateOptions {
            block_size: Some(1 << 20),
            logical_sector_size: 4096,
            disk_id: Some(disk_id),
            creator: "t\u{e9}st".to_owned(),
            ..CreateOptions::new(5 * MIB, Kind::Fixed)
        };
        let image = Image::create(Arc::new(MemoryFile::new()), &options).unwrap();
        assert_eq!(
            (image.virtual_size(), image.block_size()),
            (5 * MIB, 1 << 20)
        );
        assert_eq!(
            (image.logical_sector_size(), image.physical_sector_size()),
            (4096, 4096)
        );
        assert_eq!((image.disk_id(), image.kind()), (disk_id, Kind::Fixed));
        assert_eq!(image.creator(), "t\u{e9}st");
        assert_eq!(image.file().len().unwrap(), 9 * MIB);
    }

    #[test]
    fn a_file_with_content_is_left_alone() {
        let file = Arc::new(MemoryFile::from_bytes(&[1]));
        let options = CreateOptions::new(MIB, Kind::Dynamic);
        let error = Image::create(file.clone(), &options).unwrap_err();
        assert_eq!(error.kind(), crate::ErrorKind::InvalidArgument);
        assert_eq!(file.to_bytes(), [1]);
    }
}
