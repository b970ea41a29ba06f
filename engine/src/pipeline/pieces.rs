//! Some pieces of a block, read into a buffer that holds only them.

use crate::disk::Source;
use crate::error::Result;
use crate::hash::PieceSet;
use crate::units::{BlockIndex, Geometry};

/// Fills `bytes`, which are as many as these pieces of the block have.
///
/// # Errors
/// The disk's.
pub(crate) fn read_pieces(
    disk: &dyn Source,
    geometry: &Geometry,
    block: BlockIndex,
    set: PieceSet,
    mut bytes: &mut [u8],
) -> Result<()> {
    let start = geometry.start_of(block);
    for range in set.ranges(geometry.block_len(block)) {
        let (part, rest) = bytes.split_at_mut(range.len());
        disk.read(start.advanced(range.start as u64), part)?;
        bytes = rest;
    }
    Ok(())
}
