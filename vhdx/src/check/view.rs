//! The file as it is after replay in memory, for reading only.

use std::io;

use crate::error::{Error, ErrorKind, Result};
use crate::file::{FileAt, FileExtent};
use crate::overlay::{Overlay, Piece};

pub(super) struct View<'a> {
    file: &'a dyn FileAt,
    overlay: Option<Overlay>,
    len: u64,
}

impl<'a> View<'a> {
    /// The file without any replay; `len` is its length in bytes.
    pub(super) fn new(file: &'a dyn FileAt, len: u64) -> Self {
        Self {
            file,
            overlay: None,
            len,
        }
    }

    pub(super) fn replayed(file: &'a dyn FileAt, overlay: Overlay) -> Self {
        Self {
            file,
            len: overlay.len(),
            overlay: Some(overlay),
        }
    }

    /// Bytes of the file after replay.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Fills `buf`; `false` when the file ends before that.
    pub(super) fn read_at(&self, at: u64, buf: &mut [u8]) -> Result<bool> {
        match &self.overlay {
            Some(overlay) if at.checked_add(buf.len() as u64).is_some() => {
                is_there(overlay.read_at(self.file, at, buf))
            }
            Some(_) => Ok(false),
            None => read_file(self.file, at, buf),
        }
    }

    /// Whether the bytes from `at` on are a hole, and to where in `at..end` that holds. Both lie
    /// within the file after replay.
    pub(super) fn hole_at(&self, at: u64, end: u64) -> Result<FileExtent> {
        let mut end = end;
        if let Some(overlay) = &self.overlay {
            let (piece, piece_end) = overlay.piece(at, end);
            end = piece_end;
            match piece {
                Piece::File => {}
                Piece::Zero | Piece::Page(..) => {
                    let is_hole = matches!(piece, Piece::Zero);
                    return Ok(FileExtent { is_hole, end });
                }
            }
        }
        let extent = self.file.extent_at(at);
        let extent = extent.map_err(|error| Error::io("find hole", error).offset(at))?;
        // A file may not answer with no progress; whatever it says, go on by a byte.
        Ok(FileExtent {
            end: extent.end.min(end).max(at + 1),
            ..extent
        })
    }
}

/// Fills `buf` from the file as it is; `false` when the file ends before that.
pub(super) fn read_file(file: &dyn FileAt, at: u64, buf: &mut [u8]) -> Result<bool> {
    let len = file
        .len()
        .map_err(|error| Error::io("read file length", error))?;
    // Systems take offsets below 2^63 only, and call others an invalid argument.
    if at.checked_add(buf.len() as u64).is_none_or(|end| end > len) {
        return Ok(false);
    }
    match file.read_at(at, buf) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(Error::io("read", error).offset(at)),
    }
}

/// Turns the end of the file into `false`, and leaves other errors.
fn is_there(result: Result<()>) -> Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::Truncated => Ok(false),
        Err(error) => Err(error),
    }
}
