//! From a disk to a stream of hashed blocks: reading and hashing on all cores, in order, in bounded
//! memory.

mod buffer;
mod pieces;
mod scan;

pub use buffer::{BufferPool, PooledBuffer};
pub(crate) use pieces::read_pieces;
pub use scan::{Keep, ReadAt, ScanCounts, Scanned, Scanner};
