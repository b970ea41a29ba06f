//! A disk held against a map that stood for it: all of it is read.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::scanning::{Told, scan_leaves};
use crate::abort::CancelToken;
use crate::disk::{OpenOptions, Source, open_source};
use crate::error::{ErrorKind, Result};
use crate::event::Observer;
use crate::hash::{HashKind, Hasher};
use crate::map::{CarriedMap, MapBuilder, MapFile};
use crate::sync::SessionProgress;
use crate::tree::Leaf;
use crate::units::{BlockIndex, BlockSize, Geometry};

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Bytes that were read.
    pub read: u64,
    /// Whether the disk is what the map says.
    pub is_equal: bool,
    /// Blocks that are not; 0 where they are, and where the map was lost and only its root tells.
    pub differing: u64,
    /// The first of these, ascending, [`Held::NAMED_MAX`] at most.
    pub first: Vec<u64>,
}

impl Held {
    /// Blocks that are named at most.
    pub const NAMED_MAX: usize = 8;
}

/// Reads the disk at `path` and compares it with the map that has `root`, or with the root alone
/// where the map is lost.
///
/// # Errors
/// Those of the disk; `Cancelled`.
pub(crate) fn hold_against(
    path: &Path,
    open: &OpenOptions,
    (map, root): (Option<&CarriedMap>, &str),
    observer: &dyn Observer,
    cancel: &CancelToken,
) -> Result<Held> {
    let told = Told {
        started: Instant::now(),
        observer,
        cancel,
    };
    let disk = open_source(path, open)?;
    let map = match map.map(|map| map.load(root)).transpose() {
        Ok(trusted) => trusted.map(|trusted| trusted.map),
        Err(error) if matches!(error.kind(), ErrorKind::Damaged | ErrorKind::Io) => None,
        Err(error) => return Err(error),
    };
    let (mut differing, mut first) = (0, Vec::new());
    let compared = compare(disk.as_ref(), (map, root), &told, |_, block| {
        differing += 1;
        if first.len() < Held::NAMED_MAX {
            first.push(block.0);
        }
    })?;
    if !compared.is_named {
        (differing, first) = (0, Vec::new());
    }
    Ok(Held {
        read: compared.read,
        is_equal: compared.is_equal,
        differing,
        first,
    })
}

/// How a disk compares to a map.
pub(super) struct Compared {
    /// Bytes that were read.
    pub(super) read: u64,
    /// Whether it has the root.
    pub(super) is_equal: bool,
    /// Whether the blocks that differ were all named; what was named by a map that turned out to be
    /// damaged, or by none, counts for nothing.
    pub(super) is_named: bool,
}

/// Reads all of a disk, names the blocks that are not what `map` says, and tells whether it has
/// `root`.
///
/// # Errors
/// Those of the disk; `Cancelled`.
pub(super) fn compare(
    disk: &dyn Source,
    (map, root): (Option<MapFile>, &str),
    told: &Told<'_>,
    mut differs: impl FnMut(Geometry, BlockIndex) + Send,
) -> Result<Compared> {
    let disk_len = disk.info().virtual_size;
    let (geometry, hash) = match &map {
        Some(map) if map.geometry().disk_len() == disk_len => (map.geometry(), map.hash()),
        // As jobs have them.
        _ => (
            Geometry::new(disk_len, BlockSize::DEFAULT)?,
            HashKind::Blake3,
        ),
    };
    let mut map = map.filter(|map| map.geometry() == geometry);
    let hasher = Hasher::new(hash);
    let progress = SessionProgress::default();
    let mut tree = MapBuilder::new(&hasher, geometry, None);
    let mut at = 0;
    let each = |leaf: Leaf, count: u64| {
        for block in (at..at + count).map(BlockIndex) {
            let Some(known) = &map else { break };
            match known.leaf(block) {
                Ok(found) if found == Some(leaf) => {}
                Ok(_) => differs(geometry, block),
                // From here on the root alone tells.
                Err(error) => {
                    tracing::info!(error = error.chain(), "the map of a disk is damaged");
                    map = None;
                }
            }
        }
        tree.push(leaf, count);
        at += count;
        Ok(())
    };
    scan_leaves(disk, (geometry, &hasher), &progress, told, each)?;
    Ok(Compared {
        read: progress.scan.read_len.load(Ordering::Relaxed),
        is_equal: tree.finish().0.to_string() == root,
        is_named: map.is_some(),
    })
}
