//! A clone beside the image that shares its bytes until one of the two is written to.
//!
//! The file system makes a clone in one step, after it has written what it had in memory, so that
//! it holds the image of one moment. It costs no room but for what is overwritten while it is kept.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use failback_vhdx::Image;

use super::{SnapshotId, SnapshotProvider};
use crate::disk::{Format, probe, vhdx_error};
use crate::error::{Error, ErrorKind, Result};
use crate::step::Step;
use crate::system::{self, Access, HostFile};

/// Clones on XFS and btrfs: `.failback-snap.JOB.NAME.IMAGE` beside the image, readable by its owner
/// alone. An image with a long name has a hash of it in that place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reflink;

impl SnapshotProvider for Reflink {
    fn create(&self, image: &Path, id: &SnapshotId, step: &Step<'_>) -> Result<PathBuf> {
        step.check()?;
        let file = HostFile::open(image, Access::Inspect)?;
        if file.is_device() {
            let message = "a block device has no clones; use snapshots of its volume manager";
            return Err(Error::new(ErrorKind::Unsupported, message).path(image));
        }
        let Names { whole, part } = Names::of(image, id)?;
        if is_there(&whole)? {
            return Ok(whole);
        }
        let made = clone_readable(&file, &part, step)?;
        if let Err(e) = made.and_then(|()| std::fs::rename(&part, &whole)) {
            // What is left of it is listed, and removed when the id is let go.
            let _left = system::remove_file(&part);
            return Err(match system::is_no_clone(&e) {
                true => {
                    let message = "the file system has no clones (XFS and btrfs have)";
                    Error::new(ErrorKind::Unsupported, message)
                        .path(image)
                        .caused_by(e)
                }
                false => Error::io(e, "clone the image").path(image),
            });
        }
        Ok(whole)
    }

    fn release(&self, image: &Path, id: &SnapshotId, step: &Step<'_>) -> Result<()> {
        step.check()?;
        let Names { whole, part } = Names::of(image, id)?;
        for path in [part, whole] {
            system::remove_file(&path)
                .map_err(|e| Error::io(e, "remove the snapshot").path(&path))?;
        }
        Ok(())
    }

    fn list(&self, image: &Path, job: &str, step: &Step<'_>) -> Result<Vec<SnapshotId>> {
        step.check()?;
        let (directory, tag) = place_of(image)?;
        let failed = |e| Error::io(e, "look for snapshots").path(&directory);
        let mut ids = Vec::new();
        for entry in directory.read_dir().map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let Some(id) = name.to_str().and_then(|name| id_in(name, &tag)) else {
                continue;
            };
            if id.job() == job {
                ids.push(id);
            }
        }
        ids.sort();
        ids.dedup();
        Ok(ids)
    }
}

/// Makes the clone, again if need be. QEMU notes in the headers of a VHDX that its log is in use a
/// moment before the log holds anything, and a clone of that moment is one that the specification
/// calls corrupt. The next moment is as good. A clone that stays so shows what the image is like,
/// and whoever opens it says so.
///
/// # Errors
/// `Io`, `Cancelled`; within, the system's error of cloning.
fn clone_readable(image: &HostFile, part: &Path, step: &Step<'_>) -> Result<io::Result<()>> {
    let failed = |e| Error::io(e, "remove what was left of a snapshot").path(part);
    let mut tries = 0..TRIES;
    loop {
        system::remove_file(part).map_err(failed)?;
        if let Err(e) = system::make_private_clone(image, part) {
            return Ok(Err(e));
        }
        let clone = Arc::new(HostFile::open_unlinked(part, Access::Inspect)?);
        let is_damaged = || match Image::inspect_within(clone.clone(), LOG_LEN_MAX) {
            Ok(_) => false,
            Err(e) => vhdx_error(&e, &clone).kind() == ErrorKind::Damaged,
        };
        let is_unlucky = probe(&clone)? == Format::Vhdx && is_damaged();
        if !is_unlucky || tries.next().is_none() {
            return Ok(Ok(()));
        }
        step.wait(PAUSE)?;
    }
}

/// Whether a file of this name is one of these clones, whole or not: it has its parent and its
/// children from the image that it was made of, and stands for nothing by itself.
pub(crate) fn is_clone_name(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    [WHOLE, PART].iter().any(|prefix| name.starts_with(prefix))
}

/// The names of one clone.
struct Names {
    whole: PathBuf,
    /// While it is made.
    part: PathBuf,
}

impl Names {
    fn of(image: &Path, id: &SnapshotId) -> Result<Self> {
        let (directory, tag) = place_of(image)?;
        let name = |prefix: &str| directory.join(format!("{prefix}{id}.{tag}"));
        Ok(Self {
            whole: name(WHOLE),
            part: name(PART),
        })
    }
}

/// The directory in which the image really lies, and what stands for its name.
fn place_of(image: &Path) -> Result<(PathBuf, String)> {
    let failed = |e| Error::io(e, "look for snapshots of").path(image);
    let place = match image.canonicalize() {
        // Its snapshots may be there still.
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            std::path::absolute(image).map_err(failed)?
        }
        place => place.map_err(failed)?,
    };
    let (Some(directory), Some(name)) = (place.parent(), place.file_name()) else {
        return Err(Error::new(ErrorKind::Refused, "is no file").path(image));
    };
    let tag = match name.to_str().filter(|name| name.len() <= TAG_LEN_MAX) {
        Some(name) => name.to_owned(),
        None => {
            let hash = blake3::hash(name.as_encoded_bytes()).to_hex();
            let suffix = Path::new(name).extension().and_then(OsStr::to_str);
            let suffix = suffix
                .filter(|suffix| suffix.len() <= SUFFIX_LEN_MAX)
                .unwrap_or("img");
            format!("{}.{suffix}", &hash[..32])
        }
    };
    Ok((directory.to_owned(), tag))
}

/// The id that a file of this name has, if it is a clone of the image with that tag.
fn id_in(name: &str, tag: &str) -> Option<SnapshotId> {
    let rest = name
        .strip_prefix(WHOLE)
        .or_else(|| name.strip_prefix(PART))?;
    let rest = rest.strip_suffix(tag)?.strip_suffix('.')?;
    let (job, name) = rest.split_once('.')?;
    SnapshotId::new(job, name).ok()
}

/// Whether a clone is there.
fn is_there(whole: &Path) -> Result<bool> {
    match whole.symlink_metadata() {
        Ok(found) if found.is_file() => Ok(true),
        Ok(_) => {
            let message = "is in the place of a snapshot, and no file";
            Err(Error::new(ErrorKind::Refused, message).path(whole))
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(Error::io(e, "look for the snapshot").path(whole)),
    }
}

const WHOLE: &str = ".failback-snap.";
const PART: &str = ".failback-part.";
/// Bytes of an image's name that go into that of a clone: with both parts of an id the name has at
/// most 250, and file systems take 255.
const TAG_LEN_MAX: usize = 100;
const SUFFIX_LEN_MAX: usize = 8;
/// Moments that are tried, a second in all: few are unlucky, even while QEMU allocates blocks.
const TRIES: u32 = 50;
/// Between them: some turns of the log.
const PAUSE: Duration = Duration::from_millis(20);
/// Bytes of a log in use that is looked at for that; writers make 1 MiB.
const LOG_LEN_MAX: u64 = 16 << 20;

#[cfg(unix)]
#[cfg(test)]
mod tests {
    use super::*;

    // Goal: a name says which image, job and snapshot, and no other image's name is taken for it.
    // Method: there and back, with a tag that ends like another.
    #[test]
    fn names_lead_back_to_ids() {
        let dir = tempfile::tempdir().unwrap();
        let id = SnapshotId::new("job-1", "pass_2").unwrap();
        let long = format!("{}.vhdx", "x".repeat(200));
        for image in ["web.vhdx", "b.web.vhdx", "disk", long.as_str()] {
            let path = dir.path().join(image);
            let names = Names::of(&path, &id).unwrap();
            let (_, tag) = place_of(&path).unwrap();
            for made in [&names.whole, &names.part] {
                let name = made.file_name().unwrap().to_str().unwrap();
                assert!(name.len() < 255);
                assert_eq!(id_in(name, &tag), Some(id.clone()));
                assert_eq!(id_in(name, "other.vhdx"), None);
                assert!(is_clone_name(OsStr::new(name)));
                let suffix = path.extension().or(Some(OsStr::new("disk")));
                assert_eq!(made.extension(), suffix);
            }
        }
        let name = ".failback-snap.job-1.pass_2.b.web.vhdx";
        assert_eq!(id_in(name, "web.vhdx"), None, "of b.web.vhdx");
        assert!(!is_clone_name(OsStr::new("web.vhdx")));
    }
}
