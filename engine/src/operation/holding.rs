//! A disk held against a map that stood for it: all of it is read.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::job::with_progress;
use crate::abort::{Abort, CancelToken};
use crate::disk::{OpenOptions, open_source};
use crate::error::Result;
use crate::event::Observer;
use crate::hash::Hasher;
use crate::map::CarriedMap;
use crate::pipeline::{BufferPool, Keep, Scanned, Scanner};
use crate::sync::{SessionProgress, scan_threads};
use crate::tree::Leaf;
use crate::units::BlockIndex;

/// Reads the disk at `path` and compares it with a map that has `root`. The bytes read, and the
/// blocks that differ, ascending.
///
/// # Errors
/// Those of the disk; `Damaged` for a map that is not that one; `Cancelled`.
pub(crate) fn hold_against(
    path: &Path,
    open: &OpenOptions,
    (map, root): (&CarriedMap, &str),
    observer: &dyn Observer,
    cancel: &CancelToken,
) -> Result<(u64, Vec<u64>)> {
    let started = Instant::now();
    let map = map.load(root)?.map;
    let disk = open_source(path, open)?;
    let geometry = map.geometry();
    let hasher = Hasher::new(map.hash());
    let progress = SessionProgress::default();
    let threads = scan_threads(geometry.block_size());
    let pool = BufferPool::new(threads * 2);
    let scanner = Scanner {
        disk: disk.as_ref(),
        geometry,
        hasher: Some(&hasher),
        keep: Keep::Never,
        pool: &pool,
        threads,
        reader: None,
        counts: &progress.scan,
    };
    let abort = Abort::with_cancel(cancel);
    let mut differing = Vec::new();
    let mut at = 0;
    with_progress(&progress, geometry.disk_len(), observer, started, || {
        scanner.run(&abort, |scanned| {
            let (leaf, count) = match scanned {
                Scanned::Zeros { count, .. } => (Leaf::Zero, count),
                Scanned::Data { digest, .. } => (Leaf::Data(digest.expect("the scan hashes")), 1),
            };
            for block in at..at + count {
                if map.leaf(BlockIndex(block))? != Some(leaf) {
                    differing.push(block);
                }
            }
            at += count;
            Ok(())
        })
    })?;
    Ok((progress.scan.read_len.load(Ordering::Relaxed), differing))
}
