//! What somebody wrote to a disk since it was made what it was to be.

use std::path::Path;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::holding::compare;
use super::scanning::Told;
use crate::abort::CancelToken;
use crate::disk::{OpenOptions, open_source};
use crate::error::{Error, ErrorKind, Result};
use crate::event::Observer;
use crate::hash::{HashKind, Hasher};
use crate::identity::seal;
use crate::map::{Audit, CarriedMap, MapBuilder, MapFile, MapStore, MapWish};
use crate::system::{Access, HostFile};
use crate::units::BlockSize;

/// Writes to a disk, rounded to blocks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Writes {
    /// Whether anything was written.
    pub any: bool,
    /// Bytes of the blocks that were written to; `None`: the map is lost, and nobody knows.
    pub bytes: Option<u64>,
    /// The first of them: offset and length in bytes, ascending, [`Writes::RANGES_MAX`] at most.
    pub ranges: Vec<(u64, u64)>,
    /// Whether there are more.
    pub is_cut: bool,
}

impl Writes {
    /// Ranges that are named at most.
    pub const RANGES_MAX: usize = 64;

    fn add(&mut self, at: u64, len: u64) {
        *self.bytes.get_or_insert(0) += len;
        let is_full = self.ranges.len() >= Self::RANGES_MAX;
        match self.ranges.last_mut() {
            Some((from, so_far)) if *from + *so_far == at => *so_far += len,
            _ if is_full => self.is_cut = true,
            _ => self.ranges.push((at, len)),
        }
    }
}

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

/// What was written to the disk at `path`, which nobody writes to now, since it had `root`: by
/// `carried`, or the map that a sync saved. A disk that has not changed since then is not read.
///
/// # Errors
/// Those of the disk; `Cancelled`.
pub(crate) fn writes_since(
    path: &Path,
    open: &OpenOptions,
    (carried, root): (&CarriedMap, &str),
    observer: &dyn Observer,
    cancel: &CancelToken,
) -> Result<Writes> {
    let disk = open_source(path, open)?;
    let store = MapStore::of(path, None)?;
    // As jobs have them.
    let wish = MapWish {
        hash: HashKind::Blake3,
        block_size: BlockSize::DEFAULT,
        audit: Audit::Quick,
    };
    let has_root = |map: &MapFile| map.root().to_string() == root;
    let trusted = store.load(disk.as_ref(), &wish).ok().flatten();
    if trusted.is_some_and(|trusted| has_root(&trusted.map)) {
        return Ok(Writes {
            bytes: Some(0),
            ..Writes::default()
        });
    }
    let carried = carried.load(root).ok().map(|trusted| trusted.map);
    let map = carried.or_else(|| store.open().filter(has_root));
    let told = Told {
        started: Instant::now(),
        observer,
        cancel,
    };
    let mut writes = Writes::default();
    let compared = compare(disk.as_ref(), (map, root), &told, |geometry, block| {
        writes.add(geometry.start_of(block).0, geometry.block_len(block) as u64);
    })?;
    if !compared.is_named {
        // Names that miss some would mislead.
        writes = Writes::default();
    }
    Ok(Writes {
        any: !compared.is_equal,
        bytes: writes.bytes.or(compared.is_equal.then_some(0)),
        ..writes
    })
}
