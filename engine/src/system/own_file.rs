//! The one place that maps a file into memory.

use std::fs::File;
use std::io;

use memmap2::{Mmap, MmapOptions};

/// Maps `len` bytes from `at` on, a multiple of the page size, of a file that this program wrote
/// itself and that nobody changes in place: maps are replaced by renaming.
///
/// # Errors
/// The system's error.
#[allow(
    unsafe_code,
    reason = "mapping a file is unsafe by nature; this is the only place that does it"
)]
pub(crate) fn map_own_file(file: &File, at: u64, len: usize) -> io::Result<Mmap> {
    // SAFETY: the bytes stay as they are as long as nobody writes to or truncates the file. Map
    // files are written under another name, flushed and renamed, never changed afterwards. What can
    // still go wrong: somebody truncates the file by hand while it is mapped, and reading it ends
    // the process with SIGBUS; memory is not corrupted. Contents are checked by hashes, not trusted
    // to be valid in any other way.
    unsafe { MmapOptions::new().offset(at).len(len).map(file) }
}
