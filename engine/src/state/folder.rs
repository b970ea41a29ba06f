//! The directory that keeps what a job needs to go on: journal and stage.

use std::fmt::Debug;
use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use failback_vhdx::FileAt;

use super::lock::{DirectoryLock, LOCK_NAME};
use super::place::DIRECTORY_NAME;
use crate::error::{Error, ErrorKind, Result};
use crate::system::{self, sync_directory_of};

/// A directory of plain files, by name. Names that were made, changed or removed are durable after
/// [`sync`](Self::sync) and not before; what is in a file is the file's matter.
pub trait Folder: Send + Sync + Debug {
    /// Opens the file of that name; `None` when there is none. What the system has of it in memory
    /// and on the medium as well is read from the medium from here on, by whoever has it open.
    ///
    /// # Errors
    /// Those of the system.
    fn open(&self, name: &str) -> io::Result<Option<Arc<dyn FileAt>>>;

    /// Of the file of that name, what the system has in memory from byte `from` on and on the
    /// medium as well is read from the medium from here on. Whether there is such a file.
    ///
    /// # Errors
    /// Those of the system.
    fn forget(&self, name: &str, from: u64) -> io::Result<bool>;

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

    /// Where others look first for what is kept here; `None` when that is here.
    fn elsewhere(&self) -> Option<Elsewhere<'_>>;
}

/// The way from where the state of a target is looked for to where it is.
#[derive(Clone, Copy, Debug)]
pub struct Elsewhere<'a> {
    /// Where it is.
    pub here: &'a str,
    /// Where it is looked for.
    pub place: &'a dyn Folder,
}

/// A directory of this host, locked for as long as this lives.
#[derive(Debug)]
pub struct HostFolder {
    path: PathBuf,
    /// Where others look first, and the path of this for them; `None` when that is here.
    elsewhere: Option<(Box<Self>, String)>,
    _lock: DirectoryLock,
}

impl HostFolder {
    /// The directory at `path`, made where it is missing, for this job alone.
    ///
    /// # Errors
    /// `InUse` while another job has it; `Refused` when others could have written there; `Io`.
    pub fn lock(path: &Path) -> Result<Self> {
        Self::lock_for(path, "works on this target (this is its state directory)")
    }

    /// The same, where `doing` is what the process does that has it already.
    ///
    /// # Errors
    /// As [`HostFolder::lock`].
    pub(crate) fn lock_for(path: &Path, doing: &str) -> Result<Self> {
        system::create_private_directories(path)
            .map_err(|e| Error::io(e, "make state directory").path(path))?;
        refuse_foreign(path)?;
        Ok(Self {
            path: path.to_owned(),
            elsewhere: None,
            _lock: DirectoryLock::take(path, doing)?,
        })
    }

    /// Whether a process has the directory at `path` locked now. Changes nothing; a hint.
    pub(crate) fn is_locked(path: &Path) -> bool {
        DirectoryLock::is_taken(path)
    }
}

impl HostFolder {
    /// The same for a state that others look for in `place` first.
    ///
    /// # Errors
    /// As [`HostFolder::lock`]; `Usage` for a path that cannot be noted there.
    pub(super) fn lock_elsewhere(path: &Path, place: Self) -> Result<Self> {
        let folder = Self::lock(path)?;
        let here = path
            .canonicalize()
            .map_err(|e| Error::io(e, "look up state directory").path(path))?;
        let here = here.into_os_string().into_string().map_err(|_| {
            let message = "has a name that no marker can note: it is not Unicode";
            Error::new(ErrorKind::Usage, message).path(path)
        })?;
        Ok(Self {
            elsewhere: Some((Box::new(place), here)),
            ..folder
        })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// Whoever can write there can say what becomes of the target.
fn refuse_foreign(path: &Path) -> Result<()> {
    let above = path
        .parent()
        .filter(|above| above.ends_with(DIRECTORY_NAME));
    for directory in [Some(path), above].into_iter().flatten() {
        let is_private = system::is_private_directory(directory);
        if !is_private.map_err(|e| Error::io(e, "stat").path(directory))? {
            let message = "is no directory of this user alone (owner, mode 0700), as the state of \
                           a target has to be";
            return Err(Error::new(ErrorKind::Refused, message).path(directory));
        }
    }
    Ok(())
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
        file.iter().for_each(|file| system::forget_cache(file, 0));
        Ok(file.map(|file| -> Arc<dyn FileAt> { Arc::new(file) }))
    }

    fn forget(&self, name: &str, from: u64) -> io::Result<bool> {
        let file = found(private(&self.path.join(name), |_| {}))?;
        file.iter()
            .for_each(|file| system::forget_cache(file, from));
        Ok(file.is_some())
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
    fn elsewhere(&self) -> Option<Elsewhere<'_>> {
        let (place, here) = self.elsewhere.as_ref()?;
        Some(Elsewhere {
            here,
            place: place.as_ref(),
        })
    }
}

#[cfg(unix)]
#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, symlink};

    // Goal: nobody else says what becomes of a target. Method: a directory, or the one above, that
    // others may write to; a link in the place of a file of the state.
    #[test]
    fn what_others_can_change_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(DIRECTORY_NAME).join("disk");
        let kind = || HostFolder::lock(&path).map(drop).map_err(|e| e.kind());
        assert_eq!(kind(), Ok(()));
        for open in [path.as_path(), path.parent().unwrap()] {
            fs::set_permissions(open, Permissions::from_mode(0o770)).unwrap();
            assert_eq!(kind(), Err(ErrorKind::Refused));
            fs::set_permissions(open, Permissions::from_mode(0o700)).unwrap();
        }
        let elsewhere = dir.path().join("elsewhere");
        fs::write(&elsewhere, b"kept").unwrap();
        symlink(&elsewhere, path.join("stage")).unwrap();

        let folder = HostFolder::lock(&path).unwrap();

        assert!(folder.open("stage").is_err());
        assert!(folder.create("stage").is_err());
        assert_eq!(fs::read(&elsewhere).unwrap(), b"kept");
    }
}
