//! Every leaf of a disk, in order: all of it is read that can hold data.

use std::time::Instant;

use super::sides::with_progress;
use crate::abort::{Abort, CancelToken};
use crate::disk::Source;
use crate::error::Result;
use crate::event::Observer;
use crate::hash::Hasher;
use crate::pipeline::{BufferPool, Keep, Scanned, Scanner};
use crate::sync::{SessionProgress, scan_threads};
use crate::tree::Leaf;
use crate::units::Geometry;

/// Whom a scan tells, and who ends it.
pub(super) struct Told<'a> {
    pub(super) started: Instant,
    pub(super) observer: &'a dyn Observer,
    pub(super) cancel: &'a CancelToken,
}

/// Calls `each` with every leaf of `disk` and how many blocks in a row have it: only zeros come
/// more than one at a time.
///
/// # Errors
/// Those of the disk and of `each`; `Cancelled`.
pub(super) fn scan_leaves(
    disk: &dyn Source,
    (geometry, hasher): (Geometry, &Hasher),
    progress: &SessionProgress,
    told: &Told<'_>,
    mut each: impl FnMut(Leaf, u64) -> Result<()> + Send,
) -> Result<()> {
    let threads = scan_threads(geometry.block_size());
    let pool = BufferPool::new(threads * 2);
    let scanner = Scanner {
        disk,
        geometry,
        hasher: Some(hasher),
        keep: Keep::Never,
        pool: &pool,
        threads,
        reader: None,
        counts: &progress.scan,
    };
    let abort = Abort::with_cancel(told.cancel);
    let len = geometry.disk_len();
    with_progress(progress, len, told.observer, told.started, || {
        scanner.run(&abort, |scanned| match scanned {
            Scanned::Zeros { count, .. } => each(Leaf::Zero, count),
            Scanned::Data { digest, .. } => each(Leaf::Data(digest.expect("the scan hashes")), 1),
        })
    })
}
