//! The file as it is after replay: what all structures are read through.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use crate::error::{Error, ErrorKind, Result};
use crate::file::{FileAt, FileExtent};
use crate::overlay::{Overlay, Piece};

/// The file, the overlay of a replayed log until a writer applies it, and the known length.
///
/// All changes go through here. The first that fails poisons the storage: a second try of a
/// failed sync could succeed without the lost data, so nothing may be written any more.
#[derive(Debug)]
pub(crate) struct Storage {
    file: Arc<dyn FileAt>,
    overlay: RwLock<Option<Arc<Overlay>>>,
    /// Bytes of the file after replay, growth by this image included.
    len: AtomicU64,
    poisoned: AtomicBool,
}

impl Storage {
    pub(crate) fn new(file: Arc<dyn FileAt>, overlay: Option<Overlay>) -> Result<Self> {
        let len = file
            .len()
            .map_err(|error| Error::io("read file length", error))?;
        let len = overlay.as_ref().map_or(len, Overlay::len);
        let overlay = RwLock::new(overlay.map(Arc::new));
        Ok(Self {
            file,
            overlay,
            len: AtomicU64::new(len),
            poisoned: AtomicBool::new(false),
        })
    }

    pub(crate) fn file(&self) -> &Arc<dyn FileAt> {
        &self.file
    }

    pub(crate) fn overlay(&self) -> Option<Arc<Overlay>> {
        self.overlay
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Does in the file what the replayed log says, and returns when it is durable.
    pub(crate) fn apply_overlay(&self, overlay: &Overlay) -> Result<()> {
        overlay.apply(self)?;
        self.sync()?;
        *self.overlay.write().unwrap_or_else(PoisonError::into_inner) = None;
        Ok(())
    }

    pub(crate) fn len(&self) -> u64 {
        self.len.load(Ordering::Acquire)
    }

    /// Fails once any change has failed.
    pub(crate) fn check_poison(&self) -> Result<()> {
        match self.poisoned.load(Ordering::Acquire) {
            true => Err(Error::new(
                ErrorKind::Poisoned,
                "an earlier write or sync failed",
            )),
            false => Ok(()),
        }
    }

    pub(crate) fn set_len(&self, len: u64) -> Result<()> {
        self.change("set file length", len, |file| file.set_len(len))?;
        self.len.store(len, Ordering::Release);
        Ok(())
    }

    pub(crate) fn sync(&self) -> Result<()> {
        self.change("sync", 0, |file| file.sync())
    }

    /// As [`sync`](Self::sync), without the times of the file.
    pub(crate) fn sync_data(&self) -> Result<()> {
        self.change("sync", 0, |file| file.sync_data())
    }

    pub(crate) fn write_at(&self, at: u64, data: &[u8]) -> Result<()> {
        self.change("write", at, |file| file.write_at(at, data))
    }

    pub(crate) fn write_through(&self, at: u64, data: &[u8]) -> Result<()> {
        self.change("write and sync", at, |file| file.write_through(at, data))
    }

    pub(crate) fn zero(&self, range: Range<u64>) -> Result<()> {
        self.change("zero", range.start, |file| file.zero(range.clone()))
    }

    pub(crate) fn allocate(&self, range: Range<u64>) -> Result<()> {
        self.change("allocate", range.start, |file| file.allocate(range.clone()))
    }

    pub(crate) fn read_at(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        // Systems take offsets below 2^63 only, and call others an invalid argument.
        if at
            .checked_add(buf.len() as u64)
            .is_none_or(|end| end > self.len())
        {
            let error = io::ErrorKind::UnexpectedEof.into();
            return Err(Error::io("read", error).offset(at));
        }
        match self.overlay() {
            Some(overlay) => overlay.read_at(&*self.file, at, buf),
            None => self
                .file
                .read_at(at, buf)
                .map_err(|error| Error::io("read", error).offset(at)),
        }
    }

    /// What is known, without reading, of the bytes from `at` on: whether they are a hole, and to
    /// where in `at..end` that holds. Both lie within the file after replay.
    pub(crate) fn hole_at(&self, at: u64, end: u64) -> Result<FileExtent> {
        let mut end = end;
        if let Some(overlay) = self.overlay() {
            let (piece, piece_end) = overlay.piece(at, end);
            match piece {
                Piece::File => end = piece_end,
                Piece::Zero => {
                    return Ok(FileExtent {
                        is_hole: true,
                        end: piece_end,
                    });
                }
                Piece::Page(..) => {
                    return Ok(FileExtent {
                        is_hole: false,
                        end: piece_end,
                    });
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

    fn change(
        &self,
        op: &'static str,
        at: u64,
        call: impl FnOnce(&dyn FileAt) -> io::Result<()>,
    ) -> Result<()> {
        self.check_poison()?;
        call(&*self.file).map_err(|error| {
            self.poisoned.store(true, Ordering::Release);
            Error::new(ErrorKind::Io, "input/output error")
                .during(op)
                .offset(at)
                .caused_by(error)
        })
    }
}
