//! What somebody wrote to a disk since it was made what it was to be.

use std::path::Path;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::holding::compare;
use super::scanning::Told;
use crate::abort::CancelToken;
use crate::disk::{OpenOptions, open_source};
use crate::error::Result;
use crate::event::Observer;
use crate::hash::HashKind;
use crate::map::{Audit, CarriedMap, MapFile, MapStore, MapWish};
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
