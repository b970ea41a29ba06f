//! What the next opening will find.
//!
//! An open image knows from memory where its blocks are. A medium that lost a write of the BAT, of
//! the log or of a header, or put it elsewhere, is not noticed by reading payload at those places.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::file::FileAt;
use crate::image::{Image, LogState};

/// Bytes of the disk that are looked at as one: what bounds the list of runs.
const PIECE: u64 = 1 << 36;

impl Image {
    /// Opens `file`, which gives what the medium holds, as another program will, and compares what
    /// it says with what this image knows: GUIDs, sizes, an empty log, and the place of every byte
    /// of the disk. For a closed image. Reads no payload; the cost follows the table. Extents would
    /// be cheaper, but where the file has a hole they go by the file and not by memory.
    ///
    /// # Errors
    /// [`Damaged`](crate::ErrorKind::Damaged) where they differ, with the offset on the disk;
    /// those of [`open_detached`](Self::open_detached) and [`resolve`](Self::resolve).
    pub fn prove_structure(&self, file: Arc<dyn FileAt>) -> Result<()> {
        let found = Self::open_detached(file)?;
        let told = |image: &Self| {
            let guids = [
                image.file_write_guid(),
                image.data_write_guid(),
                image.disk_id(),
            ];
            (guids, image.virtual_size(), image.block_size())
        };
        let is_new = |warning| !self.warnings().contains(warning);
        if told(self) != told(&found) || found.warnings().iter().any(is_new) {
            return Err(not_as_written("header", "it"));
        }
        if found.log_state() != LogState::Empty {
            return Err(not_as_written("log", "an end of it"));
        }
        let mut at = 0;
        let (mut known, mut there) = (Vec::new(), Vec::new());
        while at < self.virtual_size() {
            let end = self.virtual_size().min(at.saturating_add(PIECE));
            known.clear();
            there.clear();
            self.resolve(at..end, &mut known)?;
            found.resolve(at..end, &mut there)?;
            if known != there {
                let mut pairs = known.iter().zip(&there);
                let first = pairs.find(|(known, there)| known != there);
                let offset = first.map_or(at, |(known, _)| known.disk.start);
                return Err(not_as_written("BAT", &format!("disk offset {offset:#x}")));
            }
            at = end;
        }
        Ok(())
    }
}

fn not_as_written(structure: &'static str, of: &str) -> Error {
    let detail = format!("the medium does not hold what was written of {of}");
    Error::damaged(structure, detail)
}
