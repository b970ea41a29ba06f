//! A VHDX image as a disk.

use std::ops::Range;
use std::sync::Arc;

use failback_vhdx as format;
use failback_vhdx::{Image, LogState, Place, Run};

use super::{DiskInfo, Extent, ExtentKind, Source, Target};
use crate::error::{Error, ErrorKind, Result};
use crate::system::{HostFile, MediumAccess};
use crate::units::ByteOffset;

/// A VHDX image on a file of this host.
#[derive(Debug)]
pub struct VhdxDisk {
    image: Image,
    file: Arc<HostFile>,
}

impl VhdxDisk {
    /// Opens for reading. A log that waits to be replayed is replayed in memory; the file is not
    /// touched.
    ///
    /// # Errors
    /// `Damaged`, `Unsupported`, `Io`.
    pub fn open(file: Arc<HostFile>) -> Result<Self> {
        let image = Image::open(file.clone()).map_err(|e| convert(&e, &file))?;
        Ok(Self { image, file })
    }

    /// Opens for writing. Nothing is written before the first change.
    ///
    /// # Errors
    /// As [`VhdxDisk::open`].
    pub fn open_rw(file: Arc<HostFile>) -> Result<Self> {
        let image = Image::open_rw(file.clone()).map_err(|e| convert(&e, &file))?;
        Ok(Self { image, file })
    }

    /// Makes a new image in an empty file.
    ///
    /// # Errors
    /// `Usage` for sizes that VHDX does not have, `NoSpace`, `Io`.
    pub fn create(file: Arc<HostFile>, options: &format::CreateOptions) -> Result<Self> {
        let image = Image::create(file.clone(), options).map_err(|e| convert(&e, &file))?;
        Ok(Self { image, file })
    }

    /// The image itself.
    #[must_use]
    pub fn image(&self) -> &Image {
        &self.image
    }

    fn warnings(&self) -> Vec<String> {
        let replayed = match self.image.log_state() {
            LogState::Replayed { entries } => Some(format!(
                "the log held {entries} entries: replayed in memory, the file was not touched"
            )),
            _ => None,
        };
        let odd = self.image.warnings().iter().map(ToString::to_string);
        odd.chain(replayed)
            .map(|line| crate::error::one_line(&line))
            .collect()
    }

    fn converted<T>(&self, result: format::Result<T>) -> Result<T> {
        result.map_err(|e| convert(&e, &self.file))
    }
}

/// The format's error as the engine's: the same text, with the file named.
pub(crate) fn convert(error: &format::Error, file: &HostFile) -> Error {
    use format::ErrorKind as From;
    let kind = match error.kind() {
        From::NotVhdx | From::Damaged | From::Truncated => ErrorKind::Damaged,
        From::Unsupported => ErrorKind::Unsupported,
        From::InvalidArgument => ErrorKind::Usage,
        From::ReadOnly => ErrorKind::ReadOnly,
        _ => ErrorKind::Io,
    };
    let source = std::error::Error::source(error).and_then(|s| s.downcast_ref::<std::io::Error>());
    let kind = match source.map(ErrorKind::of_io) {
        Some(better) if kind == ErrorKind::Io => better,
        _ => kind,
    };
    let text = match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    };
    Error::new(kind, text).path(file.path())
}

impl Source for VhdxDisk {
    fn info(&self) -> DiskInfo {
        DiskInfo {
            format: "vhdx".into(),
            virtual_size: self.image.virtual_size(),
            logical_sector_size: Some(self.image.logical_sector_size()),
            image_block_size: Some(self.image.block_size()),
            identity: format!(
                "vhdx:{}:{}",
                self.image.disk_id(),
                self.image.data_write_guid()
            ),
            warnings: self.warnings(),
        }
    }

    fn read(&self, at: ByteOffset, buf: &mut [u8]) -> Result<()> {
        self.converted(self.image.read_at(at.0, buf))
    }

    fn extent_at(&self, at: ByteOffset) -> Result<Extent> {
        let found = self.converted(self.image.extent_at(at.0))?;
        let kind = match found.kind {
            format::ExtentKind::Data => ExtentKind::Data,
            format::ExtentKind::Zero => ExtentKind::Zero,
            format::ExtentKind::Absent => ExtentKind::Absent,
        };
        Ok(Extent {
            kind,
            end: ByteOffset(found.end),
        })
    }
}

impl Target for VhdxDisk {
    fn write(&self, at: ByteOffset, data: &[u8]) -> Result<()> {
        self.converted(self.image.write_at(at.0, data))
    }

    fn zero(&self, range: Range<ByteOffset>) -> Result<()> {
        self.converted(self.image.zero(range.start.0..range.end.0))
    }

    fn flush(&self) -> Result<()> {
        self.converted(self.image.flush())
    }

    fn read_back(&self, at: ByteOffset, buf: &mut [u8]) -> Result<()> {
        let end = at.0.saturating_add(buf.len() as u64);
        let mut runs = Vec::new();
        self.converted(self.image.resolve(at.0..end, &mut runs))?;
        for Run { disk, place } in runs {
            let position = |offset: u64| usize::try_from(offset - at.0).expect("inside the buffer");
            let piece = &mut buf[position(disk.start)..position(disk.end)];
            match place {
                Place::Zero => piece.fill(0),
                Place::Replayed => self.converted(self.image.read_at(disk.start, piece))?,
                Place::File { at } => self
                    .file
                    .read_past_cache(at, piece)
                    .map_err(|e| Error::io(e, "read back").path(self.file.path()).at(at))?,
            }
        }
        Ok(())
    }

    fn medium(&self) -> MediumAccess {
        self.file.medium_access()
    }

    fn close(&self) -> Result<()> {
        self.converted(self.image.close())
    }
}
