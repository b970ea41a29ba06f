//! The one place that maps a file into memory.

use std::fs::File;
use std::io;
use std::ops::Range;

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

/// Makes written bytes of a file durable, and what is needed to find them, without waiting for what
/// is written elsewhere in it. Linux answers an msync(2) of a shared mapping with a sync of that
/// range of the file, whoever wrote there. No byte of the mapping is looked at, so that it may be a
/// disk: nothing can fault. `false`: it cannot be mapped, and nothing was done.
///
/// # Errors
/// Those of the sync.
pub(super) fn sync_range(file: &File, range: &Range<u64>) -> io::Result<bool> {
    let Ok(len) = usize::try_from(range.end - range.start) else {
        return Ok(false);
    };
    let mapping = MmapOptions::new()
        .offset(range.start)
        .len(len)
        .map_raw_read_only(file);
    match mapping {
        Ok(mapping) => mapping.flush().map(|()| true),
        Err(_) => Ok(false),
    }
}
