//! A VHDX image as a disk.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use failback_vhdx as format;
use failback_vhdx::{FileAt, Image, LogState, Place, Run};

use super::layers::ImageFile;
use super::on_medium;
use super::{DiskInfo, Extent, ExtentKind, Source, Target};
use crate::error::{Error, ErrorKind, Result};
use crate::identity::{Facts, ImageFacts};
use crate::system::{HostFile, MediumAccess};
use crate::units::ByteOffset;

/// A VHDX image on a file of this host, over its parents where it is a differencing one.
#[derive(Debug)]
pub struct VhdxDisk {
    image: Image,
    file: Arc<dyn ImageFile>,
    /// The files of the parents, nearest first; locked for as long as this is open.
    parents: Vec<Arc<dyn ImageFile>>,
    /// What was odd about other files that were looked at, one line each.
    notes: Vec<String>,
    /// Something was written: what leads to it has to be looked at on the medium.
    is_changed: AtomicBool,
}

impl VhdxDisk {
    /// Opens for reading, over `parents`, nearest first. A log that waits to be replayed is
    /// replayed in memory; no file is touched.
    ///
    /// # Errors
    /// `Damaged`, `Unsupported`, `Refused` when a parent is missing or not the one named, `Usage`
    /// for one too many, `Io`.
    pub fn open(file: Arc<HostFile>, parents: Vec<Arc<HostFile>>) -> Result<Self> {
        Self::open_with(file, parents, Image::open, Image::open_child)
    }

    /// Opens for reading without its parents, to look at its structure.
    ///
    /// # Errors
    /// As [`VhdxDisk::open`].
    pub fn open_detached(file: Arc<HostFile>) -> Result<Self> {
        Self::open_with(file, Vec::new(), Image::open_detached, Image::open_child)
    }

    /// Opens for writing, over `parents`, which are only read. Nothing is written before the first
    /// change.
    ///
    /// # Errors
    /// As [`VhdxDisk::open`].
    pub fn open_rw(file: Arc<HostFile>, parents: Vec<Arc<HostFile>>) -> Result<Self> {
        Self::open_with(file, parents, Image::open_rw, Image::open_child_rw)
    }

    fn open_with(
        file: Arc<HostFile>,
        parents: Vec<Arc<HostFile>>,
        open: impl FnOnce(Arc<dyn FileAt>) -> format::Result<Image>,
        open_child: impl FnOnce(Arc<dyn FileAt>, Arc<Image>) -> format::Result<Image>,
    ) -> Result<Self> {
        let image = match open_images(&parents)? {
            None => open(file.clone()),
            Some(parent) => open_child(file.clone(), parent),
        };
        Ok(Self {
            image: image.map_err(|e| convert(&e, &file))?,
            file,
            parents: of_host(parents),
            notes: Vec::new(),
            is_changed: AtomicBool::new(false),
        })
    }

    /// An image that is open, on these files: its own, then those of its parents, nearest first.
    /// `is_changed`: something was written to it already.
    ///
    /// # Panics
    /// Without a file.
    #[must_use]
    pub(crate) fn of_image(image: Image, files: Vec<Arc<dyn ImageFile>>, is_changed: bool) -> Self {
        let mut files = files.into_iter();
        Self {
            image,
            file: files.next().expect("an image has a file"),
            parents: files.collect(),
            notes: Vec::new(),
            is_changed: AtomicBool::new(is_changed),
        }
    }

    /// Makes a new image in an empty file.
    ///
    /// # Errors
    /// `Usage` for sizes that VHDX does not have, `NoSpace`, `Io`.
    pub fn create(file: Arc<HostFile>, options: &format::CreateOptions) -> Result<Self> {
        let image = Image::create(file.clone(), options).map_err(|e| convert(&e, &file))?;
        Ok(Self {
            image,
            file,
            parents: Vec::new(),
            notes: Vec::new(),
            is_changed: AtomicBool::new(true),
        })
    }

    /// Makes a differencing image in an empty file, over `parents`, nearest first.
    ///
    /// # Errors
    /// As [`VhdxDisk::create`] and [`VhdxDisk::open`].
    pub fn create_child(
        file: Arc<HostFile>,
        parents: Vec<Arc<HostFile>>,
        options: &format::ChildOptions,
    ) -> Result<Self> {
        let parent = open_images(&parents)?
            .ok_or_else(|| Error::new(ErrorKind::Usage, "a differencing image needs a parent"))?;
        let image = Image::create_child(file.clone(), parent, options);
        Ok(Self {
            image: image.map_err(|e| convert(&e, &file))?,
            file,
            parents: of_host(parents),
            notes: Vec::new(),
            is_changed: AtomicBool::new(true),
        })
    }

    /// Adds lines to the warnings of [`Source::info`].
    #[must_use]
    pub(crate) fn with_notes(self, notes: Vec<String>) -> Self {
        Self { notes, ..self }
    }

    /// Holds what leads to its bytes against its file as the medium has it.
    ///
    /// # Errors
    /// `VerifyFailed`, `Io`.
    pub(crate) fn prove_structure(&self) -> Result<()> {
        on_medium::check_vhdx(&self.image, &self.file)
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
            .chain(self.notes.iter().cloned())
            .map(|line| crate::error::one_line(&line))
            .collect()
    }

    /// As [`Target::read_back`], from the image `level` steps down the chain.
    fn read_back_from(&self, level: usize, image: &Image, at: u64, buf: &mut [u8]) -> Result<()> {
        let file = match level.checked_sub(1) {
            None => &self.file,
            Some(parent) => &self.parents[parent],
        };
        let there = image.virtual_size().saturating_sub(at);
        let there = usize::try_from(there).map_or(buf.len(), |there| there.min(buf.len()));
        let (buf, behind) = buf.split_at_mut(there);
        // A parent can be shorter than its child.
        behind.fill(0);
        let failed = |e: format::Error| convert_at(&e, file.path());
        let mut runs = Vec::new();
        image
            .resolve(at..at + buf.len() as u64, &mut runs)
            .map_err(failed)?;
        for Run { disk, place } in runs {
            let position = |offset: u64| usize::try_from(offset - at).expect("inside the buffer");
            let piece = &mut buf[position(disk.start)..position(disk.end)];
            match (place, image.parent()) {
                (Place::File { at }, _) => file
                    .read_past_cache(at, piece)
                    .map_err(|e| Error::io(e, "read back").path(file.path()).at(at))?,
                (Place::Parent, Some(parent)) => {
                    self.read_back_from(level + 1, parent, disk.start, piece)?;
                }
                (Place::Replayed, _) => image.read_at(disk.start, piece).map_err(failed)?,
                (Place::Zero | Place::Parent, _) => piece.fill(0),
            }
        }
        Ok(())
    }

    fn converted<T>(&self, result: format::Result<T>) -> Result<T> {
        result.map_err(|e| convert_at(&e, self.file.path()))
    }
}

fn of_host(files: Vec<Arc<HostFile>>) -> Vec<Arc<dyn ImageFile>> {
    let files = files.into_iter();
    files.map(|file| -> Arc<dyn ImageFile> { file }).collect()
}

/// The nearest parent, standing on the others.
pub(crate) fn open_images(files: &[Arc<HostFile>]) -> Result<Option<Arc<Image>>> {
    let mut below: Option<Arc<Image>> = None;
    for file in files.iter().rev() {
        let image = match below {
            None => Image::open(file.clone()),
            Some(parent) => Image::open_child(file.clone(), parent),
        };
        below = Some(Arc::new(image.map_err(|e| convert(&e, file))?));
    }
    Ok(below)
}

/// The format's error as the engine's: the same text, with the file named.
pub(crate) fn convert(error: &format::Error, file: &HostFile) -> Error {
    convert_at(error, file.path())
}

/// The same, of the file at `path`.
pub(crate) fn convert_at(error: &format::Error, path: &Path) -> Error {
    convert_bare(error).path(path)
}

/// The same, of a file that the caller names or nobody knows.
pub(crate) fn convert_bare(error: &format::Error) -> Error {
    use format::ErrorKind as From;
    let kind = match error.kind() {
        From::NotVhdx | From::Damaged | From::Truncated => ErrorKind::Damaged,
        From::Unsupported => ErrorKind::Unsupported,
        From::ParentNeeded | From::WrongParent => ErrorKind::Refused,
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
    // Paths of parents come from the image.
    let text = crate::error::one_line(&text);
    Error::new(kind, text)
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

    fn facts(&self) -> Result<Option<Facts>> {
        let mut images = Vec::new();
        for file in std::iter::once(&self.file).chain(&self.parents) {
            // As the file has it now: what is in memory may be of before the last close.
            let found = Image::inspect(file.clone()).map_err(|e| convert_at(&e, file.path()))?;
            let len = found.virtual_size;
            let Some(image) = ImageFacts::of_file(file.as_ref(), "vhdx", len)? else {
                return Ok(None);
            };
            images.push(ImageFacts {
                sector_size: found.logical_sector_size,
                disk_id: found.disk_id.to_string(),
                data_write_guid: found.data_write_guid.to_string(),
                is_log_empty: found.log_state == LogState::Empty,
                header_sequence: found.sequence,
                ..image
            });
        }
        Ok(Facts::now(images))
    }
}

impl Target for VhdxDisk {
    fn write(&self, at: ByteOffset, data: &[u8]) -> Result<()> {
        self.is_changed.store(true, Ordering::Relaxed);
        self.converted(self.image.write_at(at.0, data))
    }

    fn zero(&self, range: Range<ByteOffset>) -> Result<()> {
        self.is_changed.store(true, Ordering::Relaxed);
        self.converted(self.image.zero(range.start.0..range.end.0))
    }

    fn zero_undefined(&self) -> Result<u64> {
        let zeroed = self.converted(self.image.zero_undefined())?;
        self.is_changed.fetch_or(zeroed > 0, Ordering::Relaxed);
        Ok(zeroed)
    }

    fn flush(&self) -> Result<()> {
        self.converted(self.image.flush())
    }

    fn read_back(&self, at: ByteOffset, buf: &mut [u8]) -> Result<()> {
        let end = at.0.checked_add(buf.len() as u64);
        if end.is_none_or(|end| end > self.image.virtual_size()) {
            let message = "range past the end of the disk";
            return Err(Error::new(ErrorKind::Usage, message)
                .path(self.file.path())
                .at(at.0));
        }
        self.read_back_from(0, &self.image, at.0, buf)
    }

    fn medium(&self) -> MediumAccess {
        self.file.medium_access()
    }

    fn mark(&self) -> Result<Option<String>> {
        let mark = self.file.use_mark();
        mark.map_err(|e| Error::io(e, "stat").path(self.file.path()))
    }

    fn close(&self) -> Result<()> {
        // Content can be proven through a log that a crash left; other readers want it replayed.
        let is_settled = self.image.log_state() == LogState::Empty;
        if !is_settled && !self.is_changed.load(Ordering::Relaxed) {
            self.converted(self.image.settle())?;
            self.is_changed.store(true, Ordering::Relaxed);
        }
        self.converted(self.image.close())?;
        match self.is_changed.swap(false, Ordering::Relaxed) {
            true => self.prove_structure(),
            false => Ok(()),
        }
    }
}
