//! A disk that nobody writes to: what tells its state, and the map that is left with it.

use std::path::Path;

use crate::disk::{OpenOptions, open_source};
use crate::error::{Error, ErrorKind, Result};
use crate::hash::Hasher;
use crate::identity::seal;
use crate::map::{CarriedMap, MapBuilder, MapStore};
use crate::system::{Access, HostFile};

/// What tells an image, which nobody has open for writing, in this state from any other: what it
/// says of itself, when its file was changed, and of a device how much was ever written to it.
///
/// # Errors
/// `InUse` when somebody has it open for writing; `Damaged`, `Io`.
pub(crate) fn state_of(image: &Path, open: &OpenOptions) -> Result<String> {
    // Open for reading it shares the image with other readers and with no writer.
    let disk = open_source(image, open)?;
    let identity = disk.info().identity;
    // A GUID says what the last writer called it; its file may have been exchanged, or written to
    // by somebody who knows no GUIDs.
    let file = HostFile::open(image, Access::Read)?;
    let failed = |e| Error::io(e, "look up").path(image);
    let changed = file.content_mark().map_err(failed)?;
    Ok(match file.sectors_written().map_err(failed)? {
        Some(sectors) => format!("{identity} {changed} written:{sectors}"),
        None => format!("{identity} {changed}"),
    })
}

/// Leaves `map`, which has the root, as the saved map of the disk at `path`, whose content it is as
/// long as [`state_of`] it is `identity`: the next sync need not read it.
///
/// # Errors
/// `Refused` where the disk has changed; `Damaged` for a map that has not that root, and why it
/// cannot be kept.
pub(crate) fn keep_map(
    path: &Path,
    open: &OpenOptions,
    (map, root): (&CarriedMap, &str),
    identity: &str,
) -> Result<()> {
    let trusted = map.load(root)?;
    let map = trusted.map;
    let disk = open_source(path, open)?;
    let facts = seal(disk.as_ref())?;
    // After the facts were taken: a change since then makes them those of another disk.
    let is_same = state_of(path, open)? == identity;
    let Some(facts) = facts.filter(|_| is_same) else {
        let message = "is not what it was when its machine was stopped, or nothing tells";
        return Err(Error::new(ErrorKind::Refused, message).path(path));
    };
    let store = MapStore::of(path, None)?;
    let hasher = Hasher::new(map.hash());
    let writer = store.begin_or_fail(map.geometry(), map.hash())?;
    let mut kept = MapBuilder::new(&hasher, map.geometry(), Some(writer));
    for run in map.walk()? {
        let (leaf, count) = run?;
        kept.push(leaf, count);
    }
    let (root, writer) = kept.finish();
    match writer {
        Some(writer) => store.keep(writer, root, facts),
        None => Ok(()),
    }
}
