//! Bytes of the format: places, magic numbers, limits, and the structs as they lie in the file.
//!
//! All integers are little-endian; GUIDs have their first three fields little-endian. Drawn with
//! all offsets in section 2 of MS-VHDX.

use uuid::{Uuid, uuid};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes in a KiB.
pub(crate) const KIB: u64 = 1 << 10;
/// Bytes in a MiB: the alignment of everything after the header section.
pub(crate) const MIB: u64 = 1 << 20;
/// Bytes in a TiB.
pub(crate) const TIB: u64 = 1 << 40;

/// Magic number at the start of the file.
pub(crate) const FILE_MAGIC: &[u8; 8] = b"vhdxfile";
/// Bytes of the creator string, UTF-16LE, right behind the magic number.
pub(crate) const CREATOR_LEN: usize = 512;
/// Where the two headers are.
pub(crate) const HEADERS_AT: [u64; 2] = [64 * KIB, 128 * KIB];
/// Where the two region tables are.
pub(crate) const REGION_TABLES_AT: [u64; 2] = [192 * KIB, 256 * KIB];
/// Bytes of a region table and of the metadata table.
pub(crate) const TABLE_LEN: usize = 64 << 10;
/// The header section; nothing else may lie in it.
pub(crate) const HEADER_SECTION_LEN: u64 = MIB;
/// Unit of the log: its sectors and the pages it restores.
pub(crate) const PAGE_LEN: usize = 4096;
/// [`PAGE_LEN`] for offsets.
pub(crate) const PAGE: u64 = PAGE_LEN as u64;

/// Keys in a parent locator. The format allows 65535; Windows writes five.
pub(crate) const LOCATOR_PAIRS_MAX: u16 = 256;
/// The one type of parent locator there is.
pub(crate) const LOCATOR_VHDX: Uuid = uuid!("B04AEFB7-D19E-4A81-B789-25B8E9445913");

/// Largest virtual disk, by the format.
pub(crate) const VIRTUAL_SIZE_MAX: u64 = 64 * TIB;
/// Smallest and largest block, by the format; a power of two.
pub(crate) const BLOCK_SIZE_MIN: u32 = 1 << 20;
/// See [`BLOCK_SIZE_MIN`].
pub(crate) const BLOCK_SIZE_MAX: u32 = 256 << 20;
/// Entries in a region table or metadata table, by the format.
pub(crate) const TABLE_ENTRIES_MAX: u16 = 2047;
/// User items among the metadata, by the format.
pub(crate) const USER_ITEMS_MAX: usize = 1024;
/// Bytes of one metadata item, by the format.
pub(crate) const ITEM_LEN_MAX: u32 = 1 << 20;
/// Log that is replayed or written. The format allows 4 GiB; writers make 1 MiB, and scanning
/// takes time by the length.
pub(crate) const LOG_LEN_MAX: u64 = 1 << 30;
/// No file is believed to be, or made, longer: twice the largest disk. Keeps a crafted log from
/// growing the file without end.
pub(crate) const FILE_LEN_MAX: u64 = 2 * VIRTUAL_SIZE_MAX;
/// The one header version there is.
pub(crate) const HEADER_VERSION: u16 = 1;

/// Region that holds the block allocation table.
pub(crate) const REGION_BAT: Uuid = uuid!("2DC27766-F623-4200-9D64-115E9BFD4A08");
/// Region that holds the metadata.
pub(crate) const REGION_METADATA: Uuid = uuid!("8B7CA206-4790-4B9A-B8FE-575F050F886E");
/// Metadata item: block size and kind of image.
pub(crate) const ITEM_FILE_PARAMETERS: Uuid = uuid!("CAA16737-FA36-4D43-B3B6-33F0AA44E76B");
/// Metadata item: bytes of the virtual disk.
pub(crate) const ITEM_VIRTUAL_SIZE: Uuid = uuid!("2FA54224-CD1B-4876-B211-5DBED83BF4B8");
/// Metadata item: identity of the virtual disk.
pub(crate) const ITEM_DISK_ID: Uuid = uuid!("BECA12AB-B2E6-4523-93EF-C309E000C746");
/// Metadata item: bytes in a logical sector.
pub(crate) const ITEM_LOGICAL_SECTOR: Uuid = uuid!("8141BF1D-A96F-4709-BA47-F233A8FAAB5F");
/// Metadata item: bytes in a physical sector.
pub(crate) const ITEM_PHYSICAL_SECTOR: Uuid = uuid!("CDA348C7-445D-4471-9CC9-E9885251C556");
/// Metadata item: where the parent of a differencing image is.
pub(crate) const ITEM_PARENT_LOCATOR: Uuid = uuid!("A8D35F2D-B30B-454D-ABF7-D3D84834AB0C");

/// File parameters bit: blocks stay allocated, which makes the image a fixed one.
pub(crate) const LEAVE_BLOCKS_ALLOCATED: u32 = 1;
/// File parameters bit: the image is a differencing one.
pub(crate) const HAS_PARENT: u32 = 2;
/// Metadata entry bit: a user item.
pub(crate) const ITEM_IS_USER: u32 = 1;
/// Metadata entry bit: belongs to the virtual disk rather than to the file.
pub(crate) const ITEM_IS_VIRTUAL_DISK: u32 = 2;
/// Metadata entry bit: who does not know the item must not open the image.
pub(crate) const ITEM_IS_REQUIRED: u32 = 4;
/// Region entry bit: who does not know the region must not open the image.
pub(crate) const REGION_IS_REQUIRED: u32 = 1;

/// A header, section 2.2.2. Written to the two places in turn.
#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RawHeader {
    /// "head".
    pub(crate) signature: [u8; 4],
    /// CRC-32C of these 4096 bytes with this field zero.
    pub(crate) checksum: U32,
    /// The valid header with the greater one is current.
    pub(crate) sequence: U64,
    /// New before the first change of any byte after each open.
    pub(crate) file_write_guid: [u8; 16],
    /// New before the first change that the user of the disk could see.
    pub(crate) data_write_guid: [u8; 16],
    /// Zero when the log is empty.
    pub(crate) log_guid: [u8; 16],
    /// 0; matters only while the log is not empty.
    pub(crate) log_version: U16,
    /// [`HEADER_VERSION`].
    pub(crate) version: U16,
    /// Bytes, a multiple of 1 MiB.
    pub(crate) log_len: U32,
    /// Byte offset in the file, a multiple of 1 MiB.
    pub(crate) log_at: U64,
    /// Zero when written, not looked at when read.
    pub(crate) reserved: [u8; 4016],
}
const _: () = assert!(size_of::<RawHeader>() == PAGE_LEN);

/// Starts a region table, section 2.2.3.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RawRegionTable {
    /// "regi".
    pub(crate) signature: [u8; 4],
    /// CRC-32C of the whole 64 KiB with this field zero.
    pub(crate) checksum: U32,
    /// At most [`TABLE_ENTRIES_MAX`].
    pub(crate) entry_count: U32,
    /// Zero.
    pub(crate) reserved: U32,
}
const _: () = assert!(size_of::<RawRegionTable>() == 16);

/// One region.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RawRegionEntry {
    /// Which one; unique in the table.
    pub(crate) guid: [u8; 16],
    /// Byte offset in the file, a multiple of 1 MiB, at least 1 MiB.
    pub(crate) at: U64,
    /// Bytes, a multiple of 1 MiB.
    pub(crate) len: U32,
    /// [`REGION_IS_REQUIRED`].
    pub(crate) flags: U32,
}
const _: () = assert!(size_of::<RawRegionEntry>() == 32);

/// Starts the metadata region, section 2.6.1.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RawMetadataTable {
    /// "metadata".
    pub(crate) signature: [u8; 8],
    /// Zero.
    pub(crate) reserved: U16,
    /// At most [`TABLE_ENTRIES_MAX`].
    pub(crate) entry_count: U16,
    /// Zero.
    pub(crate) reserved2: [u8; 20],
}
const _: () = assert!(size_of::<RawMetadataTable>() == 32);

/// One metadata item.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RawMetadataEntry {
    /// Which one; unique among user items and among the others.
    pub(crate) guid: [u8; 16],
    /// Byte offset in the metadata region, at least 64 KiB; 0 when empty.
    pub(crate) at: U32,
    /// Bytes, at most [`ITEM_LEN_MAX`].
    pub(crate) len: U32,
    /// [`ITEM_IS_USER`], [`ITEM_IS_VIRTUAL_DISK`], [`ITEM_IS_REQUIRED`].
    pub(crate) flags: U32,
    /// Zero.
    pub(crate) reserved: U32,
}
const _: () = assert!(size_of::<RawMetadataEntry>() == 32);

/// Starts a parent locator, section 2.6.2.6.1.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RawLocator {
    /// [`LOCATOR_VHDX`].
    pub(crate) kind: [u8; 16],
    /// Zero.
    pub(crate) reserved: U16,
    /// At most [`LOCATOR_PAIRS_MAX`] here.
    pub(crate) pair_count: U16,
}
const _: () = assert!(size_of::<RawLocator>() == 20);

/// One key and its value, section 2.6.2.6.2. Both are UTF-16LE without an end mark.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RawLocatorEntry {
    /// Byte offset of the key in the item, greater than 0.
    pub(crate) key_at: U32,
    /// Byte offset of the value in the item, greater than 0.
    pub(crate) value_at: U32,
    /// Bytes, even, greater than 0.
    pub(crate) key_len: U16,
    /// Bytes, even, greater than 0.
    pub(crate) value_len: U16,
}
const _: () = assert!(size_of::<RawLocatorEntry>() == 12);

/// Starts a log entry, section 2.3.1.1.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RawLogHeader {
    /// "loge".
    pub(crate) signature: [u8; 4],
    /// CRC-32C of the whole entry with this field zero.
    pub(crate) checksum: U32,
    /// Bytes of the entry, a multiple of 4 KiB.
    pub(crate) entry_len: U32,
    /// Byte offset in the log of the oldest entry still needed, a multiple of 4 KiB.
    pub(crate) tail: U32,
    /// Greater than 0, and by one greater than in the entry before.
    pub(crate) sequence: U64,
    /// How many descriptors follow; may be none.
    pub(crate) descriptor_count: U32,
    /// Zero.
    pub(crate) reserved: U32,
    /// Equal to that of the current header, or the entry is an old one.
    pub(crate) log_guid: [u8; 16],
    /// Bytes the file certainly had when this was written; shorter means truncated.
    pub(crate) flushed_file_len: U64,
    /// Bytes the file must have after replay.
    pub(crate) last_file_len: U64,
}
const _: () = assert!(size_of::<RawLogHeader>() == 64);

/// A log descriptor, sections 2.3.1.2 and 2.3.1.3, for zeros or for one page.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RawDescriptor {
    /// "zero" or "desc".
    pub(crate) signature: [u8; 4],
    /// For a page: its last 4 bytes, as they are.
    pub(crate) trailing: [u8; 4],
    /// For a page: its first 8 bytes, as they are. For zeros: how many, a multiple of 4 KiB.
    pub(crate) leading: [u8; 8],
    /// Byte offset in the file, a multiple of 4 KiB.
    pub(crate) at: U64,
    /// That of the entry.
    pub(crate) sequence: U64,
}
const _: () = assert!(size_of::<RawDescriptor>() == 32);

/// A log data sector, section 2.3.1.4: the middle of a page between two halves of a number.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RawDataSector {
    /// "data".
    pub(crate) signature: [u8; 4],
    /// High half of the entry's sequence number.
    pub(crate) sequence_high: U32,
    /// Bytes 8..4092 of the page.
    pub(crate) middle: [u8; 4084],
    /// Low half of the entry's sequence number.
    pub(crate) sequence_low: U32,
}
const _: () = assert!(size_of::<RawDataSector>() == PAGE_LEN);

/// CRC-32C of a structure with its checksum field, bytes 4..8, taken as zero.
pub(crate) fn checksum(bytes: &[u8]) -> u32 {
    let (head, rest) = bytes.split_at(4);
    let crc = crc32c::crc32c_append(crc32c::crc32c(head), &[0; 4]);
    crc32c::crc32c_append(crc, &rest[4..])
}

/// Writes the checksum of a structure into its bytes 4..8.
pub(crate) fn seal(bytes: &mut [u8]) {
    let sum = checksum(bytes);
    bytes[4..8].copy_from_slice(&sum.to_le_bytes());
}

/// Bytes 4..8 as the checksum they are.
pub(crate) fn is_sealed(bytes: &[u8]) -> bool {
    bytes[4..8] == checksum(bytes).to_le_bytes()
}

/// `value` as an index into memory. Everything passed here was compared with a limit below 4 GiB.
pub(crate) fn to_usize(value: u64) -> usize {
    usize::try_from(value).expect("a length below 4 GiB")
}
