//! What the next opening will find.
//!
//! An open image knows from memory where its blocks are. A medium that lost a write of the BAT, of
//! the log or of a header, or put it elsewhere, is not noticed by reading payload at those places.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::file::FileAt;
use crate::image::Image;

/// Bytes of the disk that are looked at as one: what bounds the memory.
const PIECE: u64 = 1 << 36;

impl Image {
    /// Opens `file`, which gives what the medium holds, and compares what it says with what this
    /// image knows: GUIDs, and the place of every byte of the disk. For a flushed image that nobody
    /// changes meanwhile. Reads no payload.
    ///
    /// # Errors
    /// [`Damaged`](crate::ErrorKind::Damaged) where they differ, with the offset on the disk;
    /// those of [`open_detached`](Self::open_detached) and [`resolve`](Self::resolve).
    pub fn prove_structure(&self, file: Arc<dyn FileAt>) -> Result<()> {
        let found = Self::open_detached(file)?;
        let told = |image: &Self| {
            let guids = (image.file_write_guid(), image.data_write_guid());
            (guids, image.disk_id(), image.virtual_size())
        };
        if told(self) != told(&found) {
            let detail = "the medium does not hold what was written";
            return Err(Error::damaged("header", detail));
        }
        let mut at = 0;
        let (mut known, mut there) = (Vec::new(), Vec::new());
        while at < self.virtual_size() {
            let end = self.virtual_size().min(at + PIECE);
            self.resolve(at..end, &mut known)?;
            found.resolve(at..end, &mut there)?;
            if known != there {
                let mut pairs = known.iter().zip(&there);
                let first = pairs.find(|(known, there)| known != there);
                let detail = "the medium does not hold what was written";
                let offset = first.map_or(at, |(known, _)| known.disk.start);
                return Err(Error::damaged(
                    "BAT",
                    format!("{detail} of disk offset {offset:#x}"),
                ));
            }
            known.clear();
            there.clear();
            at = end;
        }
        Ok(())
    }
}
