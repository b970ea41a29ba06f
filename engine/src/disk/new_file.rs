//! A file beside the target that is to take its place.

use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use failback_vhdx::Image;

use super::chain::open_parents;
use super::create::{Recipe, make_disk};
use super::vhd::{VhdImage, VhdKind};
use super::vhdx::convert;
use super::{Format, OpenOptions, RawDisk, Target, VhdDisk, VhdxDisk};
use crate::error::{Error, ErrorKind, Result};
use crate::state::{Container, FileMark, absolute, new_file_of};
use crate::system::{self, Access, HostFile};

/// What has which of the two names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// The file that has the target's name.
    pub target: Option<FileMark>,
    /// The file that stands beside it.
    pub beside: Option<FileMark>,
}

/// The place beside a target, the name of the target, and what can be done with the two. Nobody
/// else may use the first name; whoever calls has a lock on the job.
pub trait NewFile: Send + Sync + Debug {
    /// Makes the new disk beside the target, in place of whatever stood there: for
    /// [`Container::File`] one that reads zero, for [`Container::Clone`] one that reads as the
    /// target does.
    ///
    /// # Errors
    /// `NoSpace`, `Io`, `InUse`; `Unsupported` where it cannot be done.
    fn make(&self, container: Container) -> Result<Arc<dyn Target>>;

    /// Opens what an earlier run made; `None` when nothing is there. What the system has of it in
    /// memory is not believed.
    ///
    /// # Errors
    /// `Damaged`, `InUse`, `Io`.
    fn open(&self) -> Result<Option<Arc<dyn Target>>>;

    /// What has which name.
    ///
    /// # Errors
    /// `Io`.
    fn standing(&self) -> Result<Standing>;

    /// Swaps what has the two names in one step; where one of them is free, the other file moves
    /// there.
    ///
    /// # Errors
    /// `Io`, `Refused` when both are free.
    fn swap(&self) -> Result<()>;

    /// Removes what stands beside the target, if something does.
    ///
    /// # Errors
    /// `Io`.
    fn remove(&self) -> Result<()>;

    /// Returns once both names survive a power cut.
    ///
    /// # Errors
    /// Those of the system.
    fn sync(&self) -> std::io::Result<()>;
}

/// A new file on this host.
#[derive(Debug)]
pub struct HostNewFile {
    /// The target by its whole path.
    target: PathBuf,
    beside: PathBuf,
    /// The target as it was named.
    shown: PathBuf,
    open: OpenOptions,
    /// The target, where there is one, to be cloned and to lend its attributes.
    old: Option<Arc<HostFile>>,
    /// What a new disk has to be; `None` where none can be made.
    recipe: Option<Recipe>,
}

impl HostNewFile {
    /// In place of nothing.
    ///
    /// # Errors
    /// `Io`.
    pub(crate) fn of_missing(path: &Path, recipe: Recipe) -> Result<Self> {
        let open = OpenOptions::of_format(Some(recipe.new.format));
        Self::new(path, &open, None, Some(recipe))
    }

    /// In place of `old`, an image of `open`'s format and `len` bytes.
    ///
    /// # Errors
    /// `Damaged`, `Io`.
    pub(super) fn of_existing(
        path: &Path,
        open: &OpenOptions,
        old: Arc<HostFile>,
        len: u64,
    ) -> Result<Self> {
        let recipe = match old.is_device() {
            true => None,
            false => recipe_of(&old, open.format.unwrap_or(Format::Raw), len)?,
        };
        Self::new(path, open, Some(old), recipe)
    }

    /// To be found again, and not to be made.
    ///
    /// # Errors
    /// `Io`.
    pub(crate) fn to_find(path: &Path, open: &OpenOptions) -> Result<Self> {
        Self::new(path, open, None, None)
    }

    fn new(
        path: &Path,
        open: &OpenOptions,
        old: Option<Arc<HostFile>>,
        recipe: Option<Recipe>,
    ) -> Result<Self> {
        let target = absolute(path)?;
        Ok(Self {
            beside: new_file_of(&target),
            target,
            shown: path.to_owned(),
            open: open.clone(),
            old,
            recipe,
        })
    }

    /// Tries whether `container` can be had here, in place of a target that is there, and says why
    /// not. Leaves nothing behind.
    ///
    /// # Errors
    /// `InUse`, `Io`.
    pub(crate) fn why_not(&self, container: Container) -> Result<Option<WhyNot>> {
        let Some(old) = &self.old else {
            return Ok(None);
        };
        let failed = |e| Error::io(e, "stat").path(&self.shown);
        if old.is_device() {
            return Ok(Some(WhyNot::Target(
                "a device has no name that another file could take",
            )));
        }
        if old.link_count().map_err(failed)? != 1 {
            return Ok(Some(WhyNot::Target(
                "the file has several names, or nobody can tell",
            )));
        }
        if system::is_mount_point(&self.target).map_err(failed)? {
            return Ok(Some(WhyNot::Target("the file is a mount point")));
        }
        if container == Container::File && self.recipe.is_none() {
            return Ok(Some(WhyNot::Target(
                "a differencing image is changed, not made anew",
            )));
        }
        // What an unfinished job has beside the target is not touched.
        let place = self.scratch();
        let Ok(scratch) = system::make_file(&place, &self.shown, Some(old)) else {
            return Ok(Some(WhyNot::Place(
                "no file with the same owner and rights can be made",
            )));
        };
        let why_not = match (container, system::try_exchange(&place)) {
            (_, Err(_)) => Some(WhyNot::Place("the file system cannot swap two names")),
            (Container::Clone, _) if system::try_clone(&scratch).is_err() => {
                Some(WhyNot::Clone("the file system cannot clone files"))
            }
            _ => None,
        };
        drop(scratch);
        let removed = system::remove_file(&place);
        removed.map_err(|e| Error::io(e, "remove a scratch file of").path(&self.shown))?;
        Ok(why_not)
    }

    /// What is made, and removed, to see what can be had here.
    fn scratch(&self) -> PathBuf {
        let mut place = self.beside.clone().into_os_string();
        place.push(".scratch");
        PathBuf::from(place)
    }

    /// Whether any of the files that are made here is there: some job could not remove it. So it is
    /// where that cannot be told.
    pub(crate) fn has_leftovers(&self) -> bool {
        let scratch = self.scratch();
        let is_there = |place: &Path| !matches!(place.try_exists(), Ok(false));
        is_there(&self.beside) || is_there(&scratch) || is_there(&system::probe_beside(&scratch))
    }

    fn open_disk(&self, file: &Arc<HostFile>) -> Result<Arc<dyn Target>> {
        let parents = || open_parents(file, &self.open, Access::Read, Access::Read);
        Ok(match self.open.format {
            Some(Format::Vhdx) => Arc::new(VhdxDisk::open_rw(file.clone(), parents()?)?),
            Some(Format::Vhd) => Arc::new(VhdDisk::open_rw(file.clone(), &parents()?)?),
            _ => Arc::new(RawDisk::open(file.clone())?),
        })
    }
}

/// Why no other file can take a target's place, in words. A report has a code for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WhyNot {
    /// The target has to stay the file or device that it is.
    Target(&'static str),
    /// Nothing can stand beside it and take its name.
    Place(&'static str),
    /// A new file could, a clone cannot.
    Clone(&'static str),
}

impl WhyNot {
    pub(crate) fn words(self) -> &'static str {
        match self {
            Self::Target(words) | Self::Place(words) | Self::Clone(words) => words,
        }
    }

    /// The reason code.
    pub(crate) fn code(self) -> &'static str {
        match self {
            Self::Target(_) => "target_not_replaceable",
            Self::Place(_) => "no_new_file",
            Self::Clone(_) => "no_clone",
        }
    }
}

impl NewFile for HostNewFile {
    fn make(&self, container: Container) -> Result<Arc<dyn Target>> {
        let old = self.old.as_deref();
        let file = system::make_file(&self.beside, &self.shown, old)?;
        match (container, old, self.recipe) {
            (Container::Clone, Some(old), _) => {
                let cloned = system::clone_bytes(old, &file);
                cloned.map_err(|e| Error::io(e, "clone").path(&self.shown))?;
                self.open_disk(&file)
            }
            (Container::File, _, Some(recipe)) => make_disk(file, &recipe, &self.shown),
            _ => {
                let message = "nothing says what the new file is to be";
                Err(Error::new(ErrorKind::Unsupported, message).path(&self.shown))
            }
        }
    }

    fn open(&self) -> Result<Option<Arc<dyn Target>>> {
        let file = system::open_made_file(&self.beside, &self.shown)?;
        file.map(|file| self.open_disk(&file)).transpose()
    }

    fn standing(&self) -> Result<Standing> {
        Ok(Standing {
            target: mark_of(&self.target)?,
            beside: mark_of(&self.beside)?,
        })
    }

    fn swap(&self) -> Result<()> {
        let standing = self.standing()?;
        let swapped = match (standing.target, standing.beside) {
            (Some(_), Some(_)) => system::exchange(&self.beside, &self.target),
            (None, Some(_)) => system::give_name(&self.beside, &self.target),
            (Some(_), None) => system::give_name(&self.target, &self.beside),
            (None, None) => {
                let message = "is missing, and so is the file that was to take its place";
                return Err(Error::new(ErrorKind::Refused, message).path(&self.shown));
            }
        };
        swapped.map_err(|e| Error::io(e, "give the new file the name of").path(&self.shown))
    }

    fn remove(&self) -> Result<()> {
        let removed = system::remove_file(&self.beside);
        removed.map_err(|e| Error::io(e, "remove the file beside").path(&self.shown))
    }

    fn sync(&self) -> std::io::Result<()> {
        system::sync_directory_of(&self.target)
    }
}

fn mark_of(path: &Path) -> Result<Option<FileMark>> {
    if path
        .symlink_metadata()
        .is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound)
    {
        return Ok(None);
    }
    let file = HostFile::open_unlinked(path, Access::Inspect)?;
    let failed = |e| Error::io(e, "stat").path(path);
    Ok(Some(FileMark {
        id: file.file_id().map_err(failed)?,
        content: file.content_mark().map_err(failed)?,
    }))
}

/// What a new image in place of `file` has to be: of the same kind and sizes, and for the guest the
/// same disk. `None` for a differencing one.
fn recipe_of(file: &Arc<HostFile>, format: Format, len: u64) -> Result<Option<Recipe>> {
    let raw = Recipe::raw(len);
    Ok(match format {
        Format::Vhdx => {
            let found = Image::inspect(file.clone()).map_err(|e| convert(&e, file))?;
            let mut recipe = raw.with_id(found.disk_id);
            recipe.new.format = format;
            recipe.new.sector_size = found.logical_sector_size;
            recipe.new.block_size = Some(found.block_size);
            recipe.new.is_fixed = found.kind == failback_vhdx::Kind::Fixed;
            recipe.physical_sector_size = Some(found.physical_sector_size);
            (found.kind != failback_vhdx::Kind::Differencing).then_some(recipe)
        }
        Format::Vhd => {
            let found = VhdImage::inspect(file.clone()).map_err(|e| e.path(file.path()))?;
            let mut recipe = raw.with_id(found.unique_id());
            recipe.new.format = format;
            recipe.new.block_size = found.block_size();
            recipe.new.is_fixed = found.kind() == VhdKind::Fixed;
            (found.kind() != VhdKind::Differencing).then_some(recipe)
        }
        _ => Some(raw),
    })
}
