//! VHDX virtual disks, read and written safely.
//!
//! A VHDX is a file with a 1 MiB header section, a log, a metadata region, a table that says for
//! each block of the disk where it lies in the file (the BAT), and the blocks themselves:
//!
//! ```text
//! file   | 1 MiB header section    | log  | metadata | BAT        | blocks, in any order ...
//!        | id, 2 headers, 2 tables | ring | size, id | 8 B each   | 1..256 MiB each
//!
//! disk range --> Image::resolve --> Run { disk, place: File { at } | Zero | Replayed }
//!
//! write  payload, sync --> log entry, sync --> BAT in place            (Image::flush)
//! crash  at any point  --> the next open replays the log               (in memory until a write)
//! ```
//!
//! [`Image`] is the whole interface: [`Image::open`] never changes the file, not even one with a
//! log to replay; [`Image::open_rw`] changes nothing before the first write. Files come in as
//! [`FileAt`], so images in memory or under a crash test are as good as those on a disk.
//!
//! A differencing image holds what was written since its parent was frozen: [`Image::open_child`]
//! puts it on its parent, [`Image::create_child`] makes one, [`Image::merge_into_parent`] ends it.
//! The crate opens no path: parents are given by the caller and checked by GUID.
//!
//! Section numbers in the docs are those of MS-VHDX, revision 8.0.

#![forbid(unsafe_code)]

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

mod alloc;
mod bat;
mod bitmap;
mod chain;
mod change;
mod check;
mod claims;
mod create;
mod error;
mod extent;
mod file;
mod format;
mod geometry;
mod header;
mod image;
mod locator;
mod log;
mod merge;
mod metadata;
mod overlay;
mod pages;
mod proof;
mod region;
mod resolve;
mod storage;
mod writing;

pub use check::{
    BlockSummary, CheckOptions, CheckReport, CheckSummary, Finding, ParentIdentity, Severity, check,
};
pub use create::{ChildOptions, CreateOptions};
pub use error::{Error, ErrorKind, Result};
pub use extent::{AllocationSummary, Extent, ExtentKind, Place, Run};
pub use file::{CrashFile, CrashOp, Fate, FileAt, FileExtent, MemoryFile};
pub use image::{CHAIN_LEN_MAX, Description, Image, Kind, LogState, Warning, is_vhdx};
pub use locator::ParentLocator;
pub use merge::Merge;
pub use uuid::Uuid;
