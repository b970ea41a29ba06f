//! The root of a whole disk, read past the page cache.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::abort::Abort;
use crate::disk::Target;
use crate::error::Result;
use crate::hash::Digest;
use crate::pipeline::{BufferPool, Keep, ScanCounts, Scanned, Scanner};
use crate::sync::Session;
use crate::tree::{Leaf, TreeBuilder};

/// Reads all of the target back: its root, and how many bytes that were.
///
/// # Errors
/// `Io`, `Damaged`, `Cancelled`.
pub(crate) fn root_of_medium(
    target: &dyn Target,
    session: &Session,
    abort: &Abort,
) -> Result<(Digest, u64)> {
    let (counts, read_len) = (ScanCounts::default(), AtomicU64::new(0));
    let progress = &session.progress;
    let read = |at, bytes: &mut [u8]| {
        target.read_back(at, bytes)?;
        read_len.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        progress
            .verified
            .fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(())
    };
    progress
        .verify_total
        .fetch_add(session.geometry.disk_len(), Ordering::Relaxed);
    let scanner = Scanner {
        disk: target,
        geometry: session.geometry,
        hasher: Some(&session.hasher),
        keep: Keep::Always,
        pool: &BufferPool::new(session.threads * 2),
        threads: session.threads,
        reader: Some(&read),
        counts: &counts,
    };
    let mut tree = TreeBuilder::new(&session.hasher, session.geometry);
    scanner.run(abort, |scanned| {
        match scanned {
            Scanned::Zeros { count, .. } => tree.push(Leaf::Zero, count),
            Scanned::Data { digest, .. } => {
                tree.push(Leaf::Data(digest.expect("a scan hashes")), 1);
            }
        }
        Ok(())
    })?;
    Ok((tree.finish(), read_len.into_inner()))
}
