//! Differencing images over a target: the files of the chain, and the images on them.
//!
//! ```text
//! undo.avhdx     what the target had at the places of the child    } in the state directory
//! child.avhdx    what the target becomes                           }
//! target         a VHDX, and its own parents
//! ```

use std::fmt::Debug;
use std::fs::OpenOptions as FileOptions;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};

use failback_vhdx::{FileAt, Image};

use super::chain::open_parents;
use super::{OpenOptions, vhdx_error_at};
use crate::error::{Error, Result};
use crate::schedule::{Mutex, MutexGuard};
use crate::state::{CHILD_NAME, UNDO_NAME};
use crate::system::{self, Access, FileStamp, HostFile, MediumAccess, PastCache};

/// A file with an image, which can be read past what the system has of it in memory.
pub trait ImageFile: FileAt {
    /// What errors call it.
    fn path(&self) -> &Path;

    /// As [`FileAt::read_at`], from the medium as far as [`ImageFile::medium_access`] says.
    ///
    /// # Errors
    /// Those of the system.
    fn read_past_cache(&self, at: u64, buf: &mut [u8]) -> io::Result<()>;

    /// Where [`ImageFile::read_past_cache`] reads from.
    fn medium_access(&self) -> MediumAccess;

    /// What the system notes of the file when its bytes change; `None` where it notes nothing.
    ///
    /// # Errors
    /// Those of the system.
    fn stamp(&self) -> io::Result<Option<FileStamp>> {
        Ok(None)
    }

    /// The file as its medium has it, to be read in many small pieces.
    fn past_cache(self: Arc<Self>) -> Arc<dyn FileAt>;

    /// Changes when somebody writes the file; `None` where nobody knows.
    ///
    /// # Errors
    /// Those of the system.
    fn use_mark(&self) -> io::Result<Option<String>>;
}

impl ImageFile for HostFile {
    fn path(&self) -> &Path {
        self.path()
    }

    fn read_past_cache(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        self.read_past_cache(at, buf)
    }

    fn medium_access(&self) -> MediumAccess {
        self.medium_access()
    }

    fn stamp(&self) -> io::Result<Option<FileStamp>> {
        self.stamp()
    }

    fn past_cache(self: Arc<Self>) -> Arc<dyn FileAt> {
        Arc::new(PastCache::new(self))
    }

    fn use_mark(&self) -> io::Result<Option<String>> {
        self.use_mark()
    }
}

/// An image of a job over the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// What the target becomes.
    Child,
    /// What it had; stands on the child.
    Undo,
}

impl Layer {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Child, Self::Undo];

    /// Its name in the state directory.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Child => CHILD_NAME,
            Self::Undo => UNDO_NAME,
        }
    }
}

/// The files of a target and of what stands on it. Nobody else writes any of them.
pub trait Layers: Send + Sync + Debug {
    /// The target and its parents, nearest first, for reading.
    ///
    /// # Errors
    /// `InUse`, `Refused`, `Io`.
    fn chain(&self) -> Result<Vec<Arc<dyn ImageFile>>>;

    /// The same with the target open for writing, without a moment in which another program could
    /// open it.
    ///
    /// # Errors
    /// As [`Layers::chain`], and `ReadOnly`.
    fn chain_for_writing(&self) -> Result<Vec<Arc<dyn ImageFile>>>;

    /// Makes an empty file for a layer, in place of one that is there.
    ///
    /// # Errors
    /// `Io`.
    fn make(&self, layer: Layer) -> Result<Arc<dyn ImageFile>>;

    /// The file of a layer; `None` when there is none. What the system has in memory of one that
    /// another process wrote is not believed.
    ///
    /// # Errors
    /// `Io`.
    fn open(&self, layer: Layer) -> Result<Option<Arc<dyn ImageFile>>>;
}

/// The image on the first of these files, over the others; the first alone may be open for writing.
///
/// # Errors
/// `Damaged`, `Unsupported`, `Refused` when one is not the parent of the one before, `Io`.
///
/// # Panics
/// Without a file.
pub(crate) fn open_chain(files: &[Arc<dyn ImageFile>], is_written: bool) -> Result<Image> {
    let mut below: Option<Image> = None;
    for (file, depth) in files.iter().rev().zip((0..files.len()).rev()) {
        let at = file.clone();
        let image = match (below.take(), depth == 0 && is_written) {
            (None, false) => Image::open(at),
            (None, true) => Image::open_rw(at),
            (Some(parent), false) => Image::open_child(at, Arc::new(parent)),
            (Some(parent), true) => Image::open_child_rw(at, Arc::new(parent)),
        };
        below = Some(image.map_err(|e| vhdx_error_at(&e, file.path()))?);
    }
    Ok(below.expect("a chain has a file"))
}

/// A target of this host, and a state directory, which is locked.
#[derive(Debug)]
pub(crate) struct HostLayers {
    target: Arc<HostFile>,
    open: OpenOptions,
    directory: PathBuf,
    files: Mutex<OpenFiles>,
}

/// Opened once: a lock keeps others out, and a second file of the same process as well.
#[derive(Debug, Default)]
struct OpenFiles {
    written: Option<Arc<HostFile>>,
    child: Option<Arc<HostFile>>,
    undo: Option<Arc<HostFile>>,
}

impl OpenFiles {
    fn of(&mut self, layer: Layer) -> &mut Option<Arc<HostFile>> {
        match layer {
            Layer::Child => &mut self.child,
            Layer::Undo => &mut self.undo,
        }
    }
}

impl HostLayers {
    /// Over `target`, which is open and locked; `open` says how its parents are found.
    pub(super) fn new(target: Arc<HostFile>, open: OpenOptions, directory: &Path) -> Self {
        Self {
            target,
            open,
            directory: directory.to_owned(),
            files: Mutex::default(),
        }
    }

    // Each file is set whole.
    fn files(&self) -> MutexGuard<'_, OpenFiles> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn chain_on(&self, target: Arc<HostFile>) -> Result<Vec<Arc<dyn ImageFile>>> {
        let parents = open_parents(&target, &self.open, Access::Read, Access::Read)?;
        let mut chain: Vec<Arc<dyn ImageFile>> = vec![target];
        chain.extend(
            parents
                .into_iter()
                .map(|file| -> Arc<dyn ImageFile> { file }),
        );
        Ok(chain)
    }
}

impl Layers for HostLayers {
    fn chain(&self) -> Result<Vec<Arc<dyn ImageFile>>> {
        let written = self.files().written.clone();
        self.chain_on(written.unwrap_or_else(|| self.target.clone()))
    }

    fn chain_for_writing(&self) -> Result<Vec<Arc<dyn ImageFile>>> {
        let target = {
            let mut files = self.files();
            match &files.written {
                Some(written) => written.clone(),
                None => {
                    let written = Arc::new(self.target.reopen_for_writing()?);
                    files.written = Some(written.clone());
                    written
                }
            }
        };
        self.chain_on(target)
    }

    fn make(&self, layer: Layer) -> Result<Arc<dyn ImageFile>> {
        let path = self.directory.join(layer.name());
        let failed = |e| Error::io(e, "make a differencing image").path(&path);
        let mut files = self.files();
        *files.of(layer) = None;
        system::remove_file(&path).map_err(failed)?;
        let mut options = FileOptions::new();
        options.read(true).write(true).create_new(true);
        system::keep_private(&mut options);
        let file = options.open(&path).map_err(failed)?;
        let file = Arc::new(HostFile::adopt(file, &path, &path)?);
        *files.of(layer) = Some(file.clone());
        Ok(file)
    }

    fn open(&self, layer: Layer) -> Result<Option<Arc<dyn ImageFile>>> {
        let mut files = self.files();
        let found = files.of(layer);
        if found.is_none() {
            let path = self.directory.join(layer.name());
            *found = system::open_made_file(&path, &path)?;
        }
        Ok(found.clone().map(|file| -> Arc<dyn ImageFile> { file }))
    }
}
