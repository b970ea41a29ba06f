//! Fuzz targets as plain functions.
//!
//! Each takes any bytes and must neither panic nor hang nor take memory without bound; besides,
//! each has an oracle that says what a right answer is. `fuzz_targets/` holds the shims for
//! cargo-fuzz, `corpus/TARGET/` small inputs that `tests/replay.rs` runs on stable.
//!
//! ```text
//!   vhdx_open         a whole file     opens or not; reads the same twice, never past the end
//!   vhdx_log_replay   a log            replay in memory == replay on disk; opening changes nothing
//!   vhdx_metadata     tables and items  description == image; locators only in children
//!   vhdx_write        steps             what was written is read, also after reopening and replay
//!   vhd_disk          edits and steps  a VHD reads what was written, also after reopening
//!   gpt_mbr           a disk's start   few partitions, none without a table
//!   wire_frames       a byte stream    decoded at once == decoded in pieces; encodes to itself
//! ```
//!
//! A checksum stops nearly every mutated input at the door, so a flag at the start of the input
//! asks to repair the sums first.
#![forbid(unsafe_code)]

mod image;
mod log;
mod metadata;
mod partitions;
mod sparse;
mod sums;
mod vhd;
mod wire;
mod write;

pub use image::vhdx_open;
pub use log::vhdx_log_replay;
pub use metadata::vhdx_metadata;
pub use partitions::gpt_mbr;
pub use sparse::{pack, unpack};
pub use vhd::vhd_disk;
pub use wire::wire_frames;
pub use write::vhdx_write;
