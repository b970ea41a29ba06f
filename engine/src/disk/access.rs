//! A target that is only read until its time has come.

use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use failback_vhdx::Image;

use super::chain::open_parents;
use super::layers::HostLayers;
use super::open::refuse_needless_parents;
use super::probe::{Format, decide};
use super::siblings::refuse_children;
use super::vhdx::convert;
use super::{DiskInfo, HostNewFile, OpenOptions, RawDisk, Source, Target, VhdDisk, VhdxDisk};
use crate::error::{Error, Result};
use crate::system::{Access, HostFile};

/// How a target is reached that must not be open for writing before its time.
pub trait TargetAccess: Send + Sync + Debug {
    /// The disk as it is, read-only; nobody else can write it.
    fn source(&self) -> &dyn Source;

    /// What tells this very file, in the state it is in, from any other.
    ///
    /// # Errors
    /// `Io`.
    fn identity(&self) -> Result<String>;

    /// What tells this very file from any other, whatever state it is in.
    ///
    /// # Errors
    /// `Io`.
    fn file_id(&self) -> Result<String>;

    /// Bytes that the target can still grow by; `None` where nobody knows.
    ///
    /// # Errors
    /// `Io`.
    fn room(&self) -> Result<Option<u64>>;

    /// Whether it could be opened for writing, without doing it.
    ///
    /// # Errors
    /// `ReadOnly`.
    fn check_writable(&self) -> Result<()>;

    /// Opens the same disk for writing, without a moment in which another program could. After it
    /// the read-only disk is not to be used any more.
    ///
    /// # Errors
    /// `InUse`, `ReadOnly`, `Damaged`, `Io`.
    fn open_for_writing(&self) -> Result<Arc<dyn Target>>;
}

/// A target on a file or block device of this host.
#[derive(Debug)]
pub struct HostTarget {
    file: Arc<HostFile>,
    path: PathBuf,
    options: OpenOptions,
    format: Format,
    disk: Arc<dyn Source>,
}

impl HostTarget {
    /// Opens `path` for reading, in a way that keeps everybody else out.
    ///
    /// # Errors
    /// As [`open_target`](super::open_target).
    pub fn open(path: &Path, options: &OpenOptions) -> Result<Self> {
        let file = Arc::new(HostFile::open(path, Access::Stage)?);
        let format = decide(&file, options.format)?;
        refuse_needless_parents(path, format, options)?;
        let parents = || open_parents(&file, options, Access::Read, Access::Read);
        let disk: Arc<dyn Source> = match format {
            Format::Vhdx => {
                let mut notes = Vec::new();
                if !options.skip_sibling_check {
                    let found = Image::inspect(file.clone()).map_err(|e| convert(&e, &file))?;
                    notes = refuse_children(&file, &found, &[])?;
                }
                Arc::new(VhdxDisk::open(file.clone(), parents()?)?.with_notes(notes))
            }
            Format::Vhd => Arc::new(VhdDisk::open(file.clone(), &parents()?)?),
            _ => Arc::new(RawDisk::open(file.clone())?),
        };
        Ok(Self {
            file,
            path: path.to_owned(),
            options: options.clone(),
            format,
            disk,
        })
    }

    /// The place beside it, where a new file can stand that is to take its place.
    ///
    /// # Errors
    /// `Damaged`, `Io`.
    pub(crate) fn new_file(&self) -> Result<HostNewFile> {
        let open = OpenOptions {
            format: Some(self.format),
            ..self.options.clone()
        };
        let len = self.disk.info().virtual_size;
        HostNewFile::of_existing(&self.path, &open, self.file.clone(), len)
    }

    /// Where a child of it can be kept, in `directory`; `None` for a disk that has none.
    pub(crate) fn layers(&self, directory: &Path) -> Option<HostLayers> {
        let open = OpenOptions {
            format: Some(self.format),
            ..self.options.clone()
        };
        let is_vhdx = self.format == Format::Vhdx;
        is_vhdx.then(|| HostLayers::new(self.file.clone(), open, directory))
    }

    /// What it is.
    #[must_use]
    pub fn info(&self) -> DiskInfo {
        self.disk.info()
    }
}

impl TargetAccess for HostTarget {
    fn source(&self) -> &dyn Source {
        self.disk.as_ref()
    }

    fn identity(&self) -> Result<String> {
        let identity = self.file.identity();
        identity.map_err(|e| Error::io(e, "stat").path(&self.path))
    }

    fn file_id(&self) -> Result<String> {
        let id = self.file.file_id();
        id.map_err(|e| Error::io(e, "stat").path(&self.path))
    }

    fn room(&self) -> Result<Option<u64>> {
        match self.file.is_device() {
            true => Ok(None),
            false => {
                let room = self.file.room();
                room.map_err(|e| Error::io(e, "ask for free space").path(&self.path))
            }
        }
    }

    fn check_writable(&self) -> Result<()> {
        self.file.check_writable()
    }

    fn open_for_writing(&self) -> Result<Arc<dyn Target>> {
        let file = Arc::new(self.file.reopen_for_writing()?);
        let parents = || open_parents(&file, &self.options, Access::Read, Access::Read);
        Ok(match self.format {
            Format::Vhdx => Arc::new(VhdxDisk::open_rw(file.clone(), parents()?)?),
            Format::Vhd => Arc::new(VhdDisk::open_rw(file.clone(), &parents()?)?),
            _ => Arc::new(RawDisk::open(file.clone())?),
        })
    }
}
