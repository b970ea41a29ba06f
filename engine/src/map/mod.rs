//! The checksum map of a disk: one digest for each block and the root over all of them.

mod format;

pub use format::{MAP_MAGIC, MapFile, MapWriter};
