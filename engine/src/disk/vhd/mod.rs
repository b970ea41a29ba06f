//! VHD images: the format before VHDX, and the one that Azure takes.
//!
//! ```text
//! fixed         | bytes of the disk                                              | footer |
//!
//! dynamic,      | copy of   | header | block table | paths of  | block | block |..| footer |
//! differencing  | footer    | 1024 B | 4 B a block | the parent|       |       |  | 512 B  |
//!
//! block         | bitmap: one bit a sector, whole sectors | bytes of the block |
//! ```
//!
//! All integers are big-endian; every disk has sectors of 512 bytes. The footer at the end counts,
//! the copy is its spare. There is no log: what a power cut leaves is up to the order of writes,
//! which [`VhdImage`] documents and keeps.
//!
//! [`VhdImage`] works on any [`failback_vhdx::FileAt`]; [`VhdDisk`] is one on a file of this host.

mod anatomy;
mod bitmap;
mod check;
mod create;
mod disk;
mod footer;
mod geometry;
mod header;
mod image;
mod table;
mod writing;

pub use check::check;
pub use create::{CreateOptions, ParentNames};
pub use disk::VhdDisk;
pub use failback_vhdx::{Finding, Severity};
pub use footer::{SizeRule, VhdKind};
pub use geometry::Chs;
pub use image::VhdImage;

/// Bytes of the logical sector of every VHD.
pub const SECTOR_SIZE: u32 = 512;
/// The same, for arithmetic with offsets.
const SECTOR: u64 = SECTOR_SIZE as u64;
/// An offset that says "nothing there".
const NO_OFFSET: u64 = u64::MAX;
/// Bytes of the largest disk that is made: the limit of Hyper-V.
pub const NEW_DISK_LEN_MAX: u64 = 2040 << 30;
/// Bytes of a block: below 4 KiB a byte of bitmap would not be filled.
const BLOCK_SIZE_MIN: u32 = 4 << 10;
/// Bytes of a block: as much as VHDX allows; bitmaps then have 64 KiB.
const BLOCK_SIZE_MAX: u32 = 256 << 20;
/// Entries of a block table: 64 MiB of memory, 2 TiB in blocks of 128 KiB. Windows makes blocks of
/// 512 KiB and 2 MiB.
const BLOCKS_MAX: u32 = 1 << 24;
/// Azure takes disks of whole MiB only.
const AZURE_UNIT: u64 = 1 << 20;
