//! A file that is to take another one's place: made beside it, like it in all but its bytes.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Access, HostFile, platform};
use crate::error::{Error, Result};

/// Makes an empty file at `place` and locks it for writing; errors call it `shown`. What stood
/// there is gone. `like` lends it owner, rights and other attributes; without one it gets what any
/// new file gets.
///
/// # Errors
/// `InUse`, `Io`; with `like` also when an attribute cannot be kept.
pub(crate) fn make_file(
    place: &Path,
    shown: &Path,
    like: Option<&HostFile>,
) -> Result<Arc<HostFile>> {
    let failed = |what: &'static str| move |e| Error::io(e, what).path(shown);
    // Locked: the file of a job that goes on.
    drop(open_made_file(place, shown)?);
    remove_file(place).map_err(failed("remove what was left beside"))?;
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true);
    if like.is_some() {
        // Nobody is to look into it before it has the rights of the other one.
        platform::keep_private(&mut options);
    }
    let file = options
        .open(place)
        .map_err(failed("make a new file beside"))?;
    if let Some(like) = like {
        copy_attributes(like.as_file(), &file).map_err(failed("keep the attributes of"))?;
    }
    Ok(Arc::new(HostFile::adopt(file, place, shown)?))
}

/// Opens the file at `place` that an earlier run made there, and locks it for writing; `None` when
/// there is none. What the system has of it in memory is not to be believed.
///
/// # Errors
/// `InUse`, `Io`.
pub(crate) fn open_made_file(place: &Path, shown: &Path) -> Result<Option<Arc<HostFile>>> {
    let file = match platform::open(place, Access::Write, false) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io(e, "open the new file beside").path(shown)),
    };
    let file = HostFile::adopt(file, place, shown)?;
    file.forget_cache();
    Ok(Some(Arc::new(file)))
}

/// Makes `to`, which is empty, share all bytes of `from`: a clone that costs no room until one of
/// the two is written to.
///
/// # Errors
/// The system's error, for most file systems that they cannot do it.
pub(crate) fn clone_bytes(from: &HostFile, to: &HostFile) -> io::Result<()> {
    platform::clone_file(from.as_file(), to.as_file())
}

/// Makes a new file at `place`, for its owner alone, that shares all bytes of `from`, which may be
/// in use.
///
/// # Errors
/// The system's error; see [`is_no_clone`].
pub(crate) fn make_private_clone(from: &HostFile, place: &Path) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true);
    platform::keep_private(&mut options);
    platform::clone_file(from.as_file(), &options.open(place)?)
}

/// Whether an error of cloning says that files cannot be cloned there.
pub(crate) fn is_no_clone(error: &io::Error) -> bool {
    platform::is_no_clone(error)
}

/// A second name for trying, next to a first.
pub(crate) fn probe_beside(place: &Path) -> PathBuf {
    let mut probe = place.as_os_str().to_owned();
    probe.push(".probe");
    PathBuf::from(probe)
}

/// Whether files can be cloned where `scratch`, an empty file, is.
///
/// # Errors
/// The system's error, for most file systems that they cannot do it.
pub(crate) fn try_clone(scratch: &HostFile) -> io::Result<()> {
    let small = probe_beside(scratch.place());
    let small = small.as_path();
    remove_file(small)?;
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true);
    let file = options.open(small)?;
    let cloned = failback_vhdx::FileAt::write_at(&file, 0, &[1; 4096])
        .and_then(|()| platform::clone_file(&file, scratch.as_file()));
    remove_file(small)?;
    cloned
}

/// Whether a file there can likely be cloned, without trying it.
pub(crate) fn may_clone(path: &Path) -> bool {
    platform::may_clone(path)
}

/// Whether something is mounted right there: such a name cannot go to another file.
///
/// # Errors
/// The system's error.
pub(crate) fn is_mount_point(path: &Path) -> io::Result<bool> {
    platform::is_mount_point(path)
}

/// Swaps two names in one step: at every moment, power cuts included, each of them names one of the
/// two files.
///
/// # Errors
/// The system's error; `Unsupported` or `InvalidInput` where there is no such call.
pub(crate) fn exchange(a: &Path, b: &Path) -> io::Result<()> {
    platform::exchange(a, b)
}

/// Whether names can be swapped where `place` is: tried with a file that is made for it.
///
/// # Errors
/// The system's error, for most file systems that they cannot do it.
pub(crate) fn try_exchange(place: &Path) -> io::Result<()> {
    let probe = probe_beside(place);
    let probe = probe.as_path();
    remove_file(probe)?;
    File::create_new(probe)?;
    let swapped = exchange(place, probe).and_then(|()| exchange(place, probe));
    remove_file(probe)?;
    swapped
}

/// Gives the file at `place` the name `name`, which nobody may have.
///
/// # Errors
/// `AlreadyExists`, and the system's others.
pub(crate) fn give_name(place: &Path, name: &Path) -> io::Result<()> {
    let made = tempfile::TempPath::try_from_path(place)?;
    match made.persist_noclobber(name) {
        Ok(()) => Ok(()),
        Err(e) => {
            // It is kept for the next try, as every file of ours with a journal.
            e.path.keep().map_err(|e| e.error)?;
            Err(e.error)
        }
    }
}

/// Removes a file; one that is not there is removed already.
///
/// # Errors
/// The system's error.
pub(crate) fn remove_file(place: &Path) -> io::Result<()> {
    match std::fs::remove_file(place) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Owner, rights, extended attributes (with access lists and labels) and those flags of the inode
/// that say how its bytes are kept.
#[cfg(unix)]
fn copy_attributes(from: &File, to: &File) -> io::Result<()> {
    use rustix::fs::{Gid, IFlags, Uid, XattrFlags, ioctl_getflags, ioctl_setflags};
    use std::os::unix::fs::MetadataExt;

    // First: copy-on-write can only be turned off while a file is empty.
    const KEPT: IFlags = IFlags::NOCOW
        .union(IFlags::NOATIME)
        .union(IFlags::NODUMP)
        .union(IFlags::COMPRESSED);
    if let Ok(flags) = ioctl_getflags(from) {
        let wanted = flags.intersection(KEPT);
        if !wanted.is_empty() {
            let own = ioctl_getflags(to)?;
            ioctl_setflags(to, own.union(wanted))?;
        }
    }
    let (old, new) = (from.metadata()?, to.metadata()?);
    if (old.uid(), old.gid()) != (new.uid(), new.gid()) {
        let (owner, group) = (Uid::from_raw(old.uid()), Gid::from_raw(old.gid()));
        rustix::fs::fchown(to, Some(owner), Some(group))?;
    }
    to.set_permissions(old.permissions())?;
    let mut names = vec![0; rustix::fs::flistxattr_query(from).unwrap_or(0)];
    if names.is_empty() {
        return Ok(());
    }
    let len = rustix::fs::flistxattr(from, &mut names[..])?;
    for name in names[..len].split(|byte| *byte == 0) {
        if name.is_empty() {
            continue;
        }
        let mut value = vec![0; rustix::fs::fgetxattr_query(from, name)?];
        let len = match value.is_empty() {
            true => 0,
            false => rustix::fs::fgetxattr(from, name, &mut value[..])?,
        };
        rustix::fs::fsetxattr(to, name, &value[..len], XattrFlags::empty())?;
    }
    Ok(())
}

/// New files take the rights of their directory.
#[cfg(windows)]
fn copy_attributes(_from: &File, _to: &File) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}
