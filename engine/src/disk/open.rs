//! Opening a path as source or target.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use failback_vhdx::Image;

use super::chain::open_parents;
use super::probe::{Format, decide};
use super::siblings::refuse_children;
use super::vhdx::convert;
use super::{RawDisk, Source, Target, VhdDisk, VhdxDisk};
use crate::error::{Error, ErrorKind, Result};
use crate::system::{Access, HostFile};

/// How an image is to be opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpenOptions {
    /// Its format; `None`: by its magic.
    pub format: Option<Format>,
    /// The parents of a differencing image, nearest first.
    pub parents: Vec<PathBuf>,
    /// Whether parents that are not named are taken from where the images say they are: by their
    /// relative path, inside the directory of the image alone.
    pub follow_parents: bool,
    /// Whether a target is written though another image may stand on it.
    pub skip_sibling_check: bool,
    /// The directory of the failback job in whose name a target is changed; `None`: in nobody's,
    /// and one that a job has is refused.
    pub owner: Option<PathBuf>,
}

impl OpenOptions {
    /// By this format, or by magic; without parents.
    #[must_use]
    pub fn of_format(format: Option<Format>) -> Self {
        Self {
            format,
            ..Self::default()
        }
    }
}

/// Opens `path` for reading.
///
/// # Errors
/// `InUse`, `Damaged`, `Unsupported`, `Refused`, `Io`.
pub fn open_source(path: &Path, options: &OpenOptions) -> Result<Arc<dyn Source>> {
    let file = Arc::new(HostFile::open(path, Access::Read)?);
    let format = decide(&file, options.format)?;
    refuse_needless_parents(path, format, options)?;
    match format {
        Format::Vhdx => {
            let parents = open_parents(&file, options, Access::Read, Access::Read)?;
            Ok(Arc::new(VhdxDisk::open(file, parents)?))
        }
        Format::Vhd => {
            let parents = open_parents(&file, options, Access::Read, Access::Read)?;
            Ok(Arc::new(VhdDisk::open(file, &parents)?))
        }
        _ => Ok(Arc::new(RawDisk::open(file)?)),
    }
}

/// Opens `path` for writing and locks it. Not one byte changes before the first write.
///
/// # Errors
/// As [`open_source`], and `ReadOnly`; `Refused` for a VHDX that an image beside it names as its
/// parent.
pub fn open_target(path: &Path, options: &OpenOptions) -> Result<Arc<dyn Target>> {
    open_target_file(Arc::new(HostFile::open(path, Access::Write)?), options)
}

/// The same of a disk that an earlier run worked on: the very file of that id, `disk_len` bytes
/// long, looked at once it is open and locked, as a name can go to another file at any moment. What
/// the system has of it in memory is not believed.
///
/// # Errors
/// As [`open_target`]; `Refused` for another one.
pub(crate) fn open_known_target(
    path: &Path,
    options: &OpenOptions,
    file_id: &str,
    disk_len: u64,
) -> Result<Arc<dyn Target>> {
    let file = Arc::new(HostFile::open(path, Access::Write)?);
    let id = file.file_id();
    if id.map_err(|e| Error::io(e, "stat").path(path))? != file_id {
        return Err(another_file(path));
    }
    file.forget_cache();
    let target = open_target_file(file, options)?;
    match target.info().virtual_size == disk_len {
        true => Ok(target),
        false => Err(another_file(path)),
    }
}

/// Why a file is not the target of an earlier run.
pub(crate) fn another_file(path: &Path) -> Error {
    let message = "is another file than the one that the state is about, or has another length";
    Error::new(ErrorKind::Refused, message).path(path)
}

fn open_target_file(file: Arc<HostFile>, options: &OpenOptions) -> Result<Arc<dyn Target>> {
    let format = decide(&file, options.format)?;
    refuse_needless_parents(file.path(), format, options)?;
    match format {
        Format::Vhdx => Ok(Arc::new(open_vhdx_target(file, options)?)),
        Format::Vhd => {
            let parents = open_parents(&file, options, Access::Read, Access::Read)?;
            Ok(Arc::new(VhdDisk::open_rw(file, &parents)?))
        }
        _ => Ok(Arc::new(RawDisk::open(file)?)),
    }
}

fn open_vhdx_target(file: Arc<HostFile>, options: &OpenOptions) -> Result<VhdxDisk> {
    let parents = open_parents(&file, options, Access::Read, Access::Read)?;
    let mut notes = Vec::new();
    if !options.skip_sibling_check {
        let found = Image::inspect(file.clone()).map_err(|e| convert(&e, &file))?;
        notes = refuse_children(&file, &found, &[])?;
    }
    Ok(VhdxDisk::open_rw(file, parents)?.with_notes(notes))
}

pub(super) fn refuse_needless_parents(
    path: &Path,
    format: Format,
    options: &OpenOptions,
) -> Result<()> {
    if options.parents.is_empty() || format != Format::Raw {
        return Ok(());
    }
    let message = "a raw disk has no parent, yet one was named";
    Err(Error::new(ErrorKind::Usage, message).path(path))
}

/// Refuses two names of one file: the lock would say "in use", which sends an operator looking for
/// another program.
///
/// # Errors
/// `Refused`.
pub(crate) fn refuse_same_file(source: &Path, target: &Path) -> Result<()> {
    let (Ok(a), Ok(b)) = (
        HostFile::open(source, Access::Inspect),
        HostFile::open(target, Access::Inspect),
    ) else {
        return Ok(());
    };
    match a.is_same_file(&b) {
        false => Ok(()),
        true => {
            Err(Error::new(ErrorKind::Refused, "source and target are the same file").path(target))
        }
    }
}

// On Windows `std` has no file id: two files of one moment are told apart by nothing.
#[cfg(unix)]
#[cfg(test)]
mod tests {
    use super::*;

    // Goal: a roll-back never opens another disk than the one it is about for writing. Method: the
    // right file, another one, and the right one with another length.
    #[test]
    fn a_known_target_is_that_file_and_that_long() {
        let dir = tempfile::tempdir().unwrap();
        let [file, other] = ["file", "other"].map(|name| dir.path().join(name));
        std::fs::write(&file, [0; 8192]).unwrap();
        std::fs::write(&other, []).unwrap();
        let options = OpenOptions::of_format(Some(Format::Raw));
        let id = HostFile::open(&file, Access::Inspect).map(|file| file.file_id().unwrap());
        let id = id.unwrap();
        let open = |path: &Path, len| open_known_target(path, &options, &id, len);
        let kind = |opened: Result<_>| opened.map(drop).unwrap_err().kind();

        assert!(open(&file, 8192).is_ok());
        assert_eq!(kind(open(&other, 0)), ErrorKind::Refused);
        assert_eq!(kind(open(&file, 4096)), ErrorKind::Refused);
    }
}
