//! Opening a path as source or target.

use std::path::Path;
use std::sync::Arc;

use super::probe::{Format, decide};
use super::{RawDisk, Source, Target, VhdDisk, VhdxDisk};
use crate::error::{Error, ErrorKind, Result};
use crate::system::{Access, HostFile};

/// Opens `path` for reading, in `format` when one is named, else by its magic.
///
/// # Errors
/// `InUse`, `Damaged`, `Unsupported`, `Refused`, `Io`.
pub fn open_source(path: &Path, format: Option<Format>) -> Result<Arc<dyn Source>> {
    let file = Arc::new(HostFile::open(path, Access::Read)?);
    match decide(&file, format)? {
        Format::Vhdx => Ok(Arc::new(VhdxDisk::open(file)?)),
        Format::Vhd => Ok(Arc::new(VhdDisk::open(file)?)),
        _ => Ok(Arc::new(RawDisk::open(file)?)),
    }
}

/// Opens `path` for writing and locks it. Not one byte changes before the first write.
///
/// # Errors
/// As [`open_source`], and `ReadOnly`.
pub fn open_target(path: &Path, format: Option<Format>) -> Result<Arc<dyn Target>> {
    let file = Arc::new(HostFile::open(path, Access::Write)?);
    match decide(&file, format)? {
        Format::Vhdx => Ok(Arc::new(VhdxDisk::open_rw(file)?)),
        Format::Vhd => Ok(Arc::new(VhdDisk::open_rw(file)?)),
        _ => Ok(Arc::new(RawDisk::open(file)?)),
    }
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
