//! Parts of a map file in memory, a bounded number of them.

use std::fs::File;
use std::sync::{Mutex, PoisonError};

use memmap2::Mmap;

use crate::error::{Error, ErrorKind, Result};
use crate::system::map_own_file;

/// Bytes of a window; digests do not cross its end.
const WINDOW_LEN: u64 = 256 << 10;
/// A walk is at one place of each of up to 31 levels, and at the table of counts.
const WINDOW_COUNT_MAX: usize = 40;

/// A file that is mapped where it is looked at: a map of 4 GiB that is walked from end to end is
/// never in memory as a whole.
#[derive(Debug)]
pub(super) struct Windows {
    file: File,
    len: u64,
    /// By number, the one used last in front.
    mapped: Mutex<Vec<(u64, Mmap)>>,
}

impl Windows {
    /// Over the first `len` bytes of `file`, which are there.
    pub(super) fn new(file: File, len: u64) -> Self {
        Self {
            file,
            len,
            mapped: Mutex::default(),
        }
    }

    /// Looks at `len` bytes from `at` on, which lie within one window.
    ///
    /// # Errors
    /// `Damaged` past the end, `Io`.
    pub(super) fn with<T>(&self, at: u64, len: usize, look: impl FnOnce(&[u8]) -> T) -> Result<T> {
        let past_end = || Error::new(ErrorKind::Damaged, "map ends early").at(at);
        let number = at / WINDOW_LEN;
        let mut mapped = self.mapped.lock().unwrap_or_else(PoisonError::into_inner);
        match mapped.iter().position(|(found, _)| *found == number) {
            Some(0) => {}
            Some(position) => mapped[..=position].rotate_right(1),
            None => {
                let start = number * WINDOW_LEN;
                let rest = self.len.checked_sub(start).filter(|rest| *rest > 0);
                let rest = rest.ok_or_else(past_end)?.min(WINDOW_LEN);
                let rest = usize::try_from(rest).expect("at most 256 KiB");
                let window = map_own_file(&self.file, start, rest);
                let window = window.map_err(|e| Error::io(e, "map").at(start))?;
                mapped.truncate(WINDOW_COUNT_MAX - 1);
                mapped.insert(0, (number, window));
            }
        }
        let within = usize::try_from(at % WINDOW_LEN).expect("below 256 KiB");
        let bytes = mapped[0].1.get(within..within + len);
        bytes.map(look).ok_or_else(past_end)
    }
}
