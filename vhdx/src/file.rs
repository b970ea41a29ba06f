//! The one seam to the outside: a file read and written by position.

mod crash;
mod memory;
#[cfg(unix)]
mod unix;
#[cfg(windows)]
mod windows;

use std::fmt;
use std::io;
use std::ops::Range;

pub use crash::{CrashFile, CrashOp, Fate};
pub use memory::MemoryFile;

/// A file read and written by position.
///
/// Methods take `&self` and run on many threads at once; every one of them may block. Overlapping
/// writes of two threads end in some mix of both: the caller keeps them apart. The implementation
/// checks ranges against the file, since a length known to the caller may be stale. A write that
/// a read sees is not yet durable: only [`sync`](Self::sync) and its two weaker forms promise that,
/// and after one has failed nothing is known about any write since the last one that succeeded.
pub trait FileAt: Send + Sync + fmt::Debug {
    /// Length of the file in bytes.
    ///
    /// # Errors
    /// Those of the system.
    fn len(&self) -> io::Result<u64>;

    /// Whether the file has no bytes.
    ///
    /// # Errors
    /// As for [`len`](Self::len).
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Fills the whole of `buf` from byte `at` on.
    ///
    /// # Errors
    /// `UnexpectedEof` when the file ends before `buf` is full (its content is then unspecified),
    /// else those of the system. Interrupted calls are repeated.
    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()>;

    /// Writes all of `data` from byte `at` on, however many calls that takes, and grows the file
    /// where it ends before. A gap between the old end and `at` reads zero.
    ///
    /// # Errors
    /// Those of the system; any part of `data` may then have been written.
    fn write_at(&self, at: u64, data: &[u8]) -> io::Result<()>;

    /// Cuts or grows the file to `len` bytes. New bytes read zero.
    ///
    /// # Errors
    /// Those of the system.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Returns once every earlier write and the length survive a power cut.
    ///
    /// # Errors
    /// Those of the system; what was written since the last success is then lost or not, in parts.
    fn sync(&self) -> io::Result<()>;

    /// As [`sync`](Self::sync), but that times of the file need not survive, and that it should not
    /// wait for what is written while it waits.
    ///
    /// # Errors
    /// As for [`sync`](Self::sync).
    fn sync_data(&self) -> io::Result<()> {
        self.sync()
    }

    /// Writes as [`write_at`](Self::write_at), within the length of the file, and returns once
    /// these bytes survive a power cut. It says nothing about others: where the system can make a
    /// range durable, it does not wait for what other threads write meanwhile.
    ///
    /// # Errors
    /// Those of [`write_at`](Self::write_at) and of [`sync`](Self::sync).
    fn write_through(&self, at: u64, data: &[u8]) -> io::Result<()> {
        self.write_at(at, data)?;
        self.sync()
    }

    /// Makes `range` read zero and leaves the length alone. May free the space; where that cannot
    /// be done, writes zeros in pieces of bounded size. The part of `range` past the end of the
    /// file is ignored.
    ///
    /// # Errors
    /// Those of the system; any part of `range` may then read zero.
    fn zero(&self, range: Range<u64>) -> io::Result<()>;

    /// Makes sure that the file system has space behind `range`, which lies within the file, and
    /// leaves its content alone. Where the system cannot be asked, zeros are written over what are
    /// holes.
    ///
    /// # Errors
    /// Those of the system, such as no space left.
    fn allocate(&self, range: Range<u64>) -> io::Result<()>;

    /// The run of like kind that holds byte `at`, which lies before the end of the file.
    ///
    /// Never lies in the direction that loses data: in doubt it is "data to the end of the file".
    ///
    /// # Errors
    /// Those of the system.
    fn extent_at(&self, at: u64) -> io::Result<FileExtent>;
}

/// A run of bytes of a file that all have, or all lack, space in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileExtent {
    /// No space is behind these bytes, so they read zero. `false` says nothing about content.
    pub is_hole: bool,
    /// Where the run ends, in bytes from the start of the file; greater than the offset asked for.
    pub end: u64,
}

/// Writes zeros over the holes in `range`, for files whose system cannot be asked for space.
#[cfg(unix)]
fn fill_holes(file: &(impl FileAt + ?Sized), range: Range<u64>) -> io::Result<()> {
    let mut at = range.start;
    let end = range.end.min(file.len()?);
    while at < end {
        let extent = file.extent_at(at)?;
        let to = extent.end.min(end);
        if extent.is_hole {
            write_zeros(file, at..to)?;
        }
        at = to;
    }
    Ok(())
}

/// Writes zeros over `range` in pieces, for files that cannot free space.
fn write_zeros(file: &(impl FileAt + ?Sized), range: Range<u64>) -> io::Result<()> {
    let range = range.start..range.end.min(file.len()?);
    let mut at = range.start;
    while at < range.end {
        let len = (range.end - at).min(ZEROS.len() as u64);
        file.write_at(at, &ZEROS[..usize::try_from(len).unwrap_or(ZEROS.len())])?;
        at += len;
    }
    Ok(())
}

/// One piece of [`write_zeros`]: large enough to hide the cost of a call.
static ZEROS: [u8; 1 << 18] = [0; 1 << 18];
