//! The directory that keeps what a job needs to go on: journal and stage.

use std::fmt::Debug;
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use failback_vhdx::FileAt;

use crate::error::{Error, ErrorKind, Result};
use crate::system::{self, sync_directory_of};

/// A directory of plain files, by name. Names that were made, changed or removed are durable after
/// [`sync`](Self::sync) and not before; what is in a file is the file's matter.
pub trait Folder: Send + Sync + Debug {
    /// Opens the file of that name; `None` when there is none.
    ///
    /// # Errors
    /// Those of the system.
    fn open(&self, name: &str) -> io::Result<Option<Arc<dyn FileAt>>>;

    /// Makes an empty file of that name, and empties one that is there.
    ///
    /// # Errors
    /// Those of the system.
    fn create(&self, name: &str) -> io::Result<Arc<dyn FileAt>>;

    /// Gives a file another name, in place of the file that has it.
    ///
    /// # Errors
    /// Those of the system.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file; one that is not there is removed already.
    ///
    /// # Errors
    /// Those of the system.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Returns once all names survive a power cut.
    ///
    /// # Errors
    /// Those of the system.
    fn sync(&self) -> io::Result<()>;
}

/// A directory of this host, locked for as long as this lives.
#[derive(Debug)]
pub struct HostFolder {
    path: PathBuf,
    /// Open for its lock alone.
    _lock: File,
}

impl HostFolder {
    /// The directory at `path`, made where it is missing, for this job alone.
    ///
    /// # Errors
    /// `InUse` while another job has it, `Io`.
    pub fn lock(path: &Path) -> Result<Self> {
        let failed = |what: &'static str| move |e| Error::io(e, what).path(path);
        system::create_private_directories(path).map_err(failed("make state directory"))?;
        let lock = private(&path.join(LOCK_NAME), |options| {
            options.create(true).truncate(false);
        })
        .map_err(failed("open the lock of state directory"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let message = "another job works on this target (this is its state directory)";
                return Err(Error::new(ErrorKind::InUse, message).path(path));
            }
            Err(TryLockError::Error(e)) => return Err(failed("lock state directory")(e)),
        }
        Ok(Self {
            path: path.to_owned(),
            _lock: lock,
        })
    }
}

impl HostFolder {
    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// Opens a file that only its owner may read.
fn private(path: &Path, how: impl FnOnce(&mut OpenOptions)) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    how(&mut options);
    system::keep_private(&mut options);
    options.open(path)
}

fn found<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

impl Folder for HostFolder {
    fn open(&self, name: &str) -> io::Result<Option<Arc<dyn FileAt>>> {
        let file = found(private(&self.path.join(name), |_| {}))?;
        // After a failed flush the cache can hold what the medium does not, and the next flush
        // would not write it.
        file.iter().for_each(system::forget_cache);
        Ok(file.map(|file| -> Arc<dyn FileAt> { Arc::new(file) }))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn FileAt>> {
        let file = private(&self.path.join(name), |options| {
            options.create(true).truncate(true);
        })?;
        Ok(Arc::new(file))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.path.join(from), self.path.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        found(std::fs::remove_file(self.path.join(name))).map(drop)
    }

    fn sync(&self) -> io::Result<()> {
        // The directory's own name as well: it may be as new as what is in it.
        sync_directory_of(&self.path.join(LOCK_NAME))?;
        sync_directory_of(&self.path)?;
        let above = self.path.parent().filter(|path| path.parent().is_some());
        above.map_or(Ok(()), sync_directory_of)
    }
}

const LOCK_NAME: &str = "lock";
