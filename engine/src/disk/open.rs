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
    let file = Arc::new(HostFile::open(path, Access::Write)?);
    let format = decide(&file, options.format)?;
    refuse_needless_parents(path, format, options)?;
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
