//! A VHD image as a disk.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::SECTOR_SIZE;
use super::create::{CreateOptions, ParentNames};
use super::image::{Place, Run, VhdImage};
use crate::disk::on_medium::not_as_written;
use crate::disk::{DiskInfo, Extent, Source, Target};
use crate::error::{Error, ErrorKind, Result};
use crate::identity::{Facts, ImageFacts};
use crate::system::{HostFile, MediumAccess, PastCache};
use crate::units::ByteOffset;

/// A VHD image on a file of this host.
#[derive(Debug)]
pub struct VhdDisk {
    image: VhdImage,
    file: Arc<HostFile>,
    identity: String,
    /// Something was written: what leads to it has to be looked at on the medium.
    is_changed: AtomicBool,
}

impl VhdDisk {
    /// Opens for reading, a differencing disk over `parents`, nearest first. No file is touched.
    ///
    /// # Errors
    /// As [`VhdImage::open`] and [`VhdImage::open_child`], with the file named.
    pub fn open(file: Arc<HostFile>, parents: &[Arc<HostFile>]) -> Result<Self> {
        let image = match open_images(parents)? {
            None => VhdImage::open(file.clone()),
            Some(parent) => VhdImage::open_child(file.clone(), parent),
        };
        Self::over(image, file)
    }

    /// Opens for writing, a differencing disk over `parents`, which are only read. Nothing is
    /// written before the first change.
    ///
    /// # Errors
    /// As [`VhdDisk::open`].
    pub fn open_rw(file: Arc<HostFile>, parents: &[Arc<HostFile>]) -> Result<Self> {
        let image = match open_images(parents)? {
            None => VhdImage::open_rw(file.clone()),
            Some(parent) => VhdImage::open_child_rw(file.clone(), parent),
        };
        Self::over(image, file)
    }

    /// Opens to look at structures, a differencing disk without its parent.
    ///
    /// # Errors
    /// As [`VhdImage::inspect`], with the file named.
    pub fn inspect(file: Arc<HostFile>) -> Result<Self> {
        Self::over(VhdImage::inspect(file.clone()), file)
    }

    /// Makes a new image in an empty file.
    ///
    /// # Errors
    /// As [`VhdImage::create`], with the file named.
    pub fn create(file: Arc<HostFile>, options: &CreateOptions) -> Result<Self> {
        Self::over(VhdImage::create(file.clone(), options), file)
    }

    /// Makes a differencing image in an empty file, over `parents`, nearest first.
    ///
    /// # Errors
    /// As [`VhdImage::create_child`], with the file named; `Usage` without a parent.
    pub fn create_child(
        file: Arc<HostFile>,
        parents: &[Arc<HostFile>],
        names: ParentNames<'_>,
        block_size: Option<u32>,
    ) -> Result<Self> {
        let parent = open_images(parents)?
            .ok_or_else(|| Error::new(ErrorKind::Usage, "a differencing image needs a parent"))?;
        let image = VhdImage::create_child(file.clone(), parent, names, block_size);
        Self::over(image, file)
    }

    /// The image itself.
    #[must_use]
    pub fn image(&self) -> &VhdImage {
        &self.image
    }

    /// A VHD has no field that every writer changes, so its state is that of its file.
    fn over(image: Result<VhdImage>, file: Arc<HostFile>) -> Result<Self> {
        let image = image.map_err(|e| e.path(file.path()))?;
        let state = file
            .identity()
            .map_err(|e| Error::io(e, "stat").path(file.path()))?;
        Ok(Self {
            identity: format!("vhd:{}:{state}", image.unique_id()),
            image,
            file,
            is_changed: AtomicBool::new(false),
        })
    }

    /// As [`crate::disk::on_medium`] says: the image is opened once more, as its medium has it,
    /// and has to lead to the same places.
    fn check_medium(&self) -> Result<()> {
        let failed = |e: Error| match e.kind() {
            ErrorKind::Io => e.path(self.file.path()),
            _ => not_as_written(self.file.path(), &e.to_string(), 0),
        };
        let past = PastCache::new(self.file.clone());
        let theirs = VhdImage::inspect(Arc::new(past)).map_err(failed)?;
        let ids = |image: &VhdImage| {
            let sizes = (image.virtual_size(), image.block_size());
            (image.unique_id(), image.parent_id(), image.kind(), sizes)
        };
        let is_odd = |odd: &String| !self.image.warnings().contains(odd);
        if ids(&theirs) != ids(&self.image) || theirs.warnings().iter().any(is_odd) {
            return Err(not_as_written(
                self.file.path(),
                "its footer or header is not",
                0,
            ));
        }
        let mut at = 0;
        while at < self.image.virtual_size() {
            let len = CHECK_WINDOW.min(self.image.virtual_size() - at);
            let ours = self.named(self.image.resolve(at, len))?;
            if theirs.resolve(at, len).map_err(failed)? != ours {
                return Err(not_as_written(
                    self.file.path(),
                    "its block table is not",
                    at,
                ));
            }
            at += len;
        }
        Ok(())
    }

    fn named<T>(&self, result: Result<T>) -> Result<T> {
        result.map_err(|e| e.path(self.file.path()))
    }
}

/// Bytes of the disk that are looked at together: bounds the list of runs.
const CHECK_WINDOW: u64 = 1 << 30;

/// The nearest parent, standing on the others.
fn open_images(files: &[Arc<HostFile>]) -> Result<Option<Arc<VhdImage>>> {
    let mut below: Option<Arc<VhdImage>> = None;
    for file in files.iter().rev() {
        let image = match below {
            None => VhdImage::open(file.clone()),
            Some(parent) => VhdImage::open_child(file.clone(), parent),
        };
        below = Some(Arc::new(image.map_err(|e| e.path(file.path()))?));
    }
    Ok(below)
}

impl Source for VhdDisk {
    fn info(&self) -> DiskInfo {
        DiskInfo {
            format: "vhd".into(),
            virtual_size: self.image.virtual_size(),
            logical_sector_size: Some(SECTOR_SIZE),
            image_block_size: self.image.block_size(),
            identity: self.identity.clone(),
            warnings: self.image.warnings().to_vec(),
        }
    }

    fn read(&self, at: ByteOffset, buf: &mut [u8]) -> Result<()> {
        self.named(self.image.read_at(at.0, buf))
    }

    fn extent_at(&self, at: ByteOffset) -> Result<Extent> {
        self.named(self.image.extent_at(at.0))
    }

    fn facts(&self) -> Result<Option<Facts>> {
        if self.image.parent_id().is_some() {
            // Which files its content comes from is not kept here.
            return Ok(None);
        }
        let len = self.image.virtual_size();
        let image = ImageFacts::of_file(self.file.as_ref(), "vhd", len)?;
        Ok(image.and_then(|image| {
            Facts::now(vec![ImageFacts {
                sector_size: SECTOR_SIZE,
                disk_id: self.image.unique_id().to_string(),
                ..image
            }])
        }))
    }
}

impl Target for VhdDisk {
    fn write(&self, at: ByteOffset, data: &[u8]) -> Result<()> {
        self.is_changed.store(true, Ordering::Relaxed);
        self.named(self.image.write_at(at.0, data))
    }

    fn zero(&self, range: Range<ByteOffset>) -> Result<()> {
        self.is_changed.store(true, Ordering::Relaxed);
        self.named(self.image.zero(range.start.0..range.end.0))
    }

    fn zero_undefined(&self) -> Result<u64> {
        // A VHD stores a block or does not: nothing in it is undefined.
        Ok(0)
    }

    fn flush(&self) -> Result<()> {
        self.named(self.image.flush())
    }

    fn read_back(&self, at: ByteOffset, buf: &mut [u8]) -> Result<()> {
        let runs = self.named(self.image.resolve(at.0, buf.len() as u64))?;
        for Run { disk, place } in runs {
            let position = |offset: u64| usize::try_from(offset - at.0).expect("inside the buffer");
            let piece = &mut buf[position(disk.start)..position(disk.end)];
            match place {
                Place::Zero => piece.fill(0),
                // The parent is not written to: what its file gives is what it gave before.
                Place::Parent => self.named(self.image.read_at(disk.start, piece))?,
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

    fn mark(&self) -> Result<Option<String>> {
        let mark = self.file.use_mark();
        mark.map_err(|e| Error::io(e, "stat").path(self.file.path()))
    }

    fn close(&self) -> Result<()> {
        self.named(self.image.close())?;
        match self.is_changed.swap(false, Ordering::Relaxed) {
            true => self.check_medium(),
            false => Ok(()),
        }
    }
}
