//! Making a new disk: under a temporary name first, so that a failed first sync leaves no file
//! under the real one.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use failback_vhdx::{ChildOptions, CreateOptions, FileAt, Kind};
use tempfile::TempPath;
use uuid::Uuid;

use super::chain::open_parents;
use super::vhd;
use super::{Format, OpenOptions, RawDisk, Target, VhdDisk, VhdxDisk};
use crate::error::{Error, ErrorKind, Result};
use crate::system::{Access, HostFile, sync_directory_of};
use crate::units::DISK_LEN_MAX;

/// What a new disk should be.
#[derive(Clone, Copy, Debug)]
pub struct NewDisk {
    /// Raw, VHDX or VHD.
    pub format: Format,
    /// Bytes of the virtual disk.
    pub len: u64,
    /// Logical sector in bytes: 512 or 4096 in a VHDX, 512 in a VHD. Raw has none and ignores it.
    pub sector_size: u32,
    /// Block of the image format in bytes; `None` for the format's default.
    pub block_size: Option<u32>,
    /// Whether the file of a VHDX or VHD holds the whole disk at once.
    pub is_fixed: bool,
}

/// A new disk down to what only a replacement of another disk has to meet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Recipe {
    pub(crate) new: NewDisk,
    /// Physical sector of a VHDX in bytes; `None`: 4096.
    pub(super) physical_sector_size: Option<u32>,
    /// What the guest, or a child, knows the disk by; `None`: a new id.
    id: Option<Uuid>,
}

impl Recipe {
    pub(crate) fn of(new: NewDisk) -> Self {
        Self {
            new,
            physical_sector_size: None,
            id: None,
        }
    }

    /// A raw disk of `len` bytes.
    pub(super) fn raw(len: u64) -> Self {
        Self::of(NewDisk {
            format: Format::Raw,
            len,
            sector_size: vhd::SECTOR_SIZE,
            block_size: None,
            is_fixed: false,
        })
    }

    pub(super) fn with_id(self, id: Uuid) -> Self {
        Self {
            id: Some(id),
            ..self
        }
    }
}

/// A new disk that has no name yet. Dropped without [`PendingDisk::publish`], it is gone.
#[derive(Debug)]
pub struct PendingDisk {
    disk: Arc<dyn Target>,
    temporary: TempPath,
    path: PathBuf,
}

impl PendingDisk {
    /// Makes the disk beside `path`; all of it reads zero.
    ///
    /// # Errors
    /// `Usage` for a size or format that cannot be, `Refused` when `path` exists, `NoSpace`, `Io`.
    pub fn create(path: &Path, new: &NewDisk) -> Result<Self> {
        if new.len > DISK_LEN_MAX {
            let message = format!("{} bytes are more than the 64 TiB a disk can have", new.len);
            return Err(Error::new(ErrorKind::Usage, message).path(path));
        }
        refuse_existing(path)?;
        let temporary = temporary_beside(path)?;
        let (file, temporary) = temporary.into_parts();
        let file = Arc::new(HostFile::adopt(file, &temporary, path)?);
        Ok(Self {
            disk: make_disk(file, &Recipe::of(*new), path)?,
            temporary,
            path: path.to_owned(),
        })
    }

    /// The disk, to be filled.
    #[must_use]
    pub fn disk(&self) -> Arc<dyn Target> {
        self.disk.clone()
    }

    /// Gives the disk its name, durably. Close the disk first.
    ///
    /// # Errors
    /// `Refused` when somebody made a file of that name meanwhile, `Io`.
    pub fn publish(self) -> Result<()> {
        let Self {
            disk,
            temporary,
            path,
        } = self;
        temporary
            .persist_noclobber(&path)
            .map_err(|e| match e.error.kind() {
                std::io::ErrorKind::AlreadyExists => existing(&path),
                _ => Error::io(e.error, "rename the new disk to its name").path(&path),
            })?;
        // The lock is held until the name is durable: nobody may take the disk before.
        let synced =
            sync_directory_of(&path).map_err(|e| Error::io(e, "flush directory of").path(&path));
        drop(disk);
        synced
    }
}

/// Makes a disk that reads zero in an empty file; errors call it `shown`.
///
/// # Errors
/// As [`PendingDisk::create`].
pub(super) fn make_disk(
    file: Arc<HostFile>,
    recipe: &Recipe,
    shown: &Path,
) -> Result<Arc<dyn Target>> {
    let new = &recipe.new;
    Ok(match new.format {
        Format::Raw => {
            let resized = FileAt::set_len(file.as_ref(), new.len);
            resized.map_err(|e| Error::io(e, "set length").path(shown))?;
            Arc::new(RawDisk::open(file)?)
        }
        Format::Vhdx => Arc::new(VhdxDisk::create(file, &vhdx_options(recipe))?),
        Format::Vhd => Arc::new(VhdDisk::create(file, &vhd_options(recipe, shown)?)?),
        Format::Foreign(_) => {
            let message = format!(
                "making {} images is not supported in this release",
                new.format
            );
            return Err(Error::new(ErrorKind::Unsupported, message).path(shown));
        }
    })
}

/// Makes an empty disk at `path`.
///
/// # Errors
/// As [`PendingDisk::create`] and [`PendingDisk::publish`].
pub fn create(path: &Path, new: &NewDisk) -> Result<()> {
    let pending = PendingDisk::create(path, new)?;
    pending.disk().close()?;
    pending.publish()
}

/// Makes a differencing image at `path` over the parents that `options` name or let follow. It
/// notes the way to the nearest one from its own directory, on Windows its whole path as well.
///
/// # Errors
/// As [`create`] and [`open_source`](super::open_source); `Usage` without a parent, for one whose
/// name cannot be noted, and for other formats.
pub fn create_child(path: &Path, options: &OpenOptions, block_size: Option<u32>) -> Result<()> {
    refuse_existing(path)?;
    let (file, temporary) = temporary_beside(path)?.into_parts();
    let file = Arc::new(HostFile::adopt(file, &temporary, path)?);
    let named = options.parents.first().map(|parent| locate(path, parent));
    let parents = open_parents(&file, options, Access::Read, Access::Read)?;
    let named = named.transpose()?.unwrap_or_default();
    let disk: Arc<dyn Target> = match options.format {
        Some(Format::Vhdx) => Arc::new(VhdxDisk::create_child(
            file,
            parents,
            &ChildOptions {
                block_size,
                relative_path: named.relative,
                absolute_path: named.absolute,
                ..ChildOptions::new("")
            },
        )?),
        Some(Format::Vhd) => {
            let absolute = named.absolute.as_deref();
            let names = vhd::ParentNames {
                relative: named.relative.as_deref().or(absolute).unwrap_or_default(),
                absolute,
            };
            Arc::new(VhdDisk::create_child(file, &parents, names, block_size)?)
        }
        _ => {
            let message = "a differencing image is a VHDX or a VHD";
            return Err(Error::new(ErrorKind::Usage, message).path(path));
        }
    };
    disk.close()?;
    let pending = PendingDisk {
        disk,
        temporary,
        path: path.to_owned(),
    };
    pending.publish()
}

/// How a child notes its parent.
#[derive(Debug, Default)]
struct Noted {
    relative: Option<String>,
    /// On Windows only: the formats have no key for the paths of other systems.
    absolute: Option<String>,
}

fn locate(child: &Path, parent: &Path) -> Result<Noted> {
    let failed = |e| Error::io(e, "find").path(parent);
    let whole = parent.canonicalize().map_err(failed)?;
    let directory = match child.parent() {
        Some(directory) if !directory.as_os_str().is_empty() => directory,
        _ => Path::new("."),
    };
    let directory = directory.canonicalize().map_err(failed)?;
    let unfit = |why| {
        let message = format!("has a name that no image can note: {why}");
        Error::new(ErrorKind::Usage, message).path(parent)
    };
    let absolute = match cfg!(windows) {
        true => Some(whole.to_str().ok_or_else(|| unfit("it is not Unicode"))?),
        false => None,
    };
    Ok(Noted {
        relative: relative_path(&directory, &whole).map_err(unfit)?,
        absolute: absolute.map(str::to_owned),
    })
}

/// The way from a directory to a file as Windows writes it, both being whole paths. `None` from
/// one drive to another; an error says why a name on the way cannot be noted.
fn relative_path(
    directory: &Path,
    file: &Path,
) -> std::result::Result<Option<String>, &'static str> {
    let pairs = directory.components().zip(file.components());
    let common = pairs.take_while(|(a, b)| a == b).count();
    if common == 0 {
        return Ok(None);
    }
    let mut path = match directory.components().count() - common {
        0 => ".\\".to_owned(),
        ups => "..\\".repeat(ups),
    };
    for (at, name) in file.components().skip(common).enumerate() {
        let name = name.as_os_str().to_str().ok_or("it is not Unicode")?;
        if name.contains('\\') {
            return Err("it has a backslash");
        }
        path += if at > 0 { "\\" } else { "" };
        path += name;
    }
    Ok(Some(path))
}

fn vhdx_options(recipe: &Recipe) -> CreateOptions {
    let new = &recipe.new;
    let defaults = CreateOptions::new(new.len, Kind::Dynamic);
    CreateOptions {
        physical_sector_size: recipe
            .physical_sector_size
            .unwrap_or(defaults.physical_sector_size),
        disk_id: recipe.id,
        block_size: new.block_size,
        logical_sector_size: new.sector_size,
        kind: if new.is_fixed {
            Kind::Fixed
        } else {
            Kind::Dynamic
        },
        ..defaults
    }
}

fn vhd_options(recipe: &Recipe, path: &Path) -> Result<vhd::CreateOptions> {
    let new = &recipe.new;
    if new.sector_size != vhd::SECTOR_SIZE {
        let message = format!(
            "every VHD has sectors of 512 bytes, not {}",
            new.sector_size
        );
        return Err(Error::new(ErrorKind::Usage, message).path(path));
    }
    Ok(vhd::CreateOptions {
        block_size: new.block_size,
        unique_id: recipe.id,
        ..vhd::CreateOptions::new(new.len, new.is_fixed)
    })
}

fn refuse_existing(path: &Path) -> Result<()> {
    match path.symlink_metadata() {
        Ok(_) => Err(existing(path)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(Error::io(e, "look up").path(path)),
    }
}

fn existing(path: &Path) -> Error {
    Error::new(
        ErrorKind::Refused,
        "exists already; a new disk never replaces a file",
    )
    .path(path)
}

fn temporary_beside(path: &Path) -> Result<tempfile::NamedTempFile> {
    if path.file_name().is_none() {
        return Err(Error::new(ErrorKind::Usage, "names no file").path(path));
    }
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    let mut builder = tempfile::Builder::new();
    builder.prefix(".failback-new.");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // What any program gets that makes a file; the umask narrows it.
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    builder
        .tempfile_in(parent.unwrap_or(Path::new(".")))
        .map_err(|e| Error::io(e, "make a new file beside").path(path))
}

#[cfg(unix)]
#[cfg(test)]
mod tests {
    // Goal: a child names its parent by a path of Windows and by nothing else. Method: ways by
    // hand, and a child in another directory.
    use failback_vhdx::Image;

    use super::*;

    #[test]
    fn ways_are_written_as_windows_does() {
        let way = |from: &str, to: &str| relative_path(Path::new(from), Path::new(to));
        let rows = [
            ("/vm", "/vm/base.vhdx", ".\\base.vhdx"),
            ("/vm", "/vm/old/base.vhdx", ".\\old\\base.vhdx"),
            ("/vm/top", "/vm/base.vhdx", "..\\base.vhdx"),
            (
                "/vm/top/new",
                "/disks/base.vhdx",
                "..\\..\\..\\disks\\base.vhdx",
            ),
        ];
        for (from, to, expected) in rows {
            assert_eq!(way(from, to), Ok(Some(expected.to_owned())));
        }
        assert!(way("/vm", "/vm/a\\b.vhdx").is_err());
    }

    #[test]
    fn a_child_in_another_directory_notes_no_path_of_unix() {
        let directory = tempfile::tempdir().unwrap();
        let [parent, below] = ["base.vhdx", "top"].map(|name| directory.path().join(name));
        std::fs::create_dir(&below).unwrap();
        let new = NewDisk {
            format: Format::Vhdx,
            len: 4 << 20,
            sector_size: 512,
            block_size: None,
            is_fixed: false,
        };
        create(&parent, &new).unwrap();
        let options = OpenOptions {
            parents: vec![parent],
            ..OpenOptions::of_format(Some(Format::Vhdx))
        };
        for (child, path) in [
            (below.join("top.avhdx"), "..\\base.vhdx"),
            (directory.path().join("top.avhdx"), ".\\base.vhdx"),
        ] {
            create_child(&child, &options, None).unwrap();
            let file = Arc::new(HostFile::open(&child, Access::Inspect).unwrap());
            let locator = Image::inspect(file).unwrap().locator.unwrap();
            assert_eq!(locator.relative_path(), Some(path));
            assert_eq!(locator.absolute_win32_path(), None);
        }
    }
}
