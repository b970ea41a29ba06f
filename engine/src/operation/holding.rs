//! A disk held against a map that stood for it: all of it is read.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::scanning::{Told, scan_leaves};
use crate::abort::CancelToken;
use crate::disk::{OpenOptions, open_source};
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
    let (geometry, hash) = match &map {
        Some(map) => (map.geometry(), map.hash()),
        // As jobs have them.
        None => (
            Geometry::new(disk.info().virtual_size, BlockSize::DEFAULT)?,
            HashKind::Blake3,
        ),
    };
    let hasher = Hasher::new(hash);
    let progress = SessionProgress::default();
    let mut tree = MapBuilder::new(&hasher, geometry, None);
    let mut against = Against {
        map,
        differing: 0,
        first: Vec::new(),
    };
    let mut at = 0;
    scan_leaves(
        disk.as_ref(),
        (geometry, &hasher),
        &progress,
        &told,
        |leaf, count| {
            (at..at + count).for_each(|block| against.hold(block, leaf));
            tree.push(leaf, count);
            at += count;
            Ok(())
        },
    )?;
    Ok(Held {
        read: progress.scan.read_len.load(Ordering::Relaxed),
        is_equal: tree.finish().0.to_string() == root,
        differing: against.differing,
        first: against.first,
    })
}

/// What differs from a map, as far as that can be read.
struct Against {
    map: Option<MapFile>,
    differing: u64,
    first: Vec<u64>,
}

impl Against {
    fn hold(&mut self, block: u64, leaf: Leaf) {
        let Some(map) = &self.map else { return };
        match map.leaf(BlockIndex(block)) {
            Ok(found) if found == Some(leaf) => {}
            Ok(_) => {
                self.differing += 1;
                if self.first.len() < Held::NAMED_MAX {
                    self.first.push(block);
                }
            }
            // From here on the root alone tells; names that miss some would mislead.
            Err(error) => {
                tracing::info!(
                    error = error.chain(),
                    "the map that was carried on is damaged"
                );
                (self.map, self.differing, self.first) = (None, 0, Vec::new());
            }
        }
    }
}
