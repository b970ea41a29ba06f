//! `map`: the checksum map of one disk, printed and, if asked for, saved.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Instant;

use serde::Serialize;

use super::job::with_progress;
use crate::abort::{Abort, CancelToken};
use crate::disk::{OpenOptions, open_source};
use crate::error::{Error, ErrorKind, Result};
use crate::event::{Event, Observer};
use crate::hash::{HashKind, Hasher};
use crate::map::{MapFile, MapWriter};
use crate::pipeline::{BufferPool, Keep, Scanned, Scanner};
use crate::sync::{SessionProgress, scan_threads};
use crate::tree::{Leaf, TreeBuilder};
use crate::units::{BlockSize, Geometry};

/// What `map` needs to know.
#[derive(Clone, Debug)]
pub struct MapRequest {
    /// The image.
    pub path: PathBuf,
    /// How it is opened.
    pub open: OpenOptions,
    /// Where to save the map.
    pub save_as: Option<PathBuf>,
    /// The hash.
    pub hash: HashKind,
    /// Bytes of a block.
    pub block_size: BlockSize,
}

/// What `failback map` prints. Fields keep their names.
#[derive(Clone, Debug, Serialize)]
pub struct MapReport {
    /// `failback.map/1`.
    pub schema: &'static str,
    /// As it was named.
    pub path: String,
    /// `raw`, `vhdx`.
    pub format: String,
    /// Bytes of the virtual disk.
    pub virtual_size: u64,
    /// The disk's identity when the map was made.
    pub identity: String,
    /// The hash.
    pub hash: HashKind,
    /// Whether equality by this map is only as good as the guest is honest.
    pub non_cryptographic: bool,
    /// Bytes of a block.
    pub root_block_size: u32,
    /// The root in hexadecimal.
    pub root: String,
    /// Blocks of the disk.
    pub blocks_total: u64,
    /// Blocks that were read and hashed.
    pub blocks_hashed: u64,
    /// Blocks known to hold nothing without a read.
    pub blocks_skipped_unallocated: u64,
    /// Blocks that hold zeros only, read or not.
    pub blocks_zero: u64,
    /// Bytes read.
    pub bytes_read: u64,
    /// The file it was saved in.
    pub saved_as: Option<String>,
    /// Seconds it took.
    pub seconds: f64,
}

/// Builds the map of a disk.
///
/// # Errors
/// Those of the disk; `Refused` when the map's name is taken by something else; `Cancelled`.
pub fn map(
    request: &MapRequest,
    observer: &dyn Observer,
    cancel: &CancelToken,
) -> Result<MapReport> {
    let started = Instant::now();
    let path = request.path.display().to_string();
    observer.event(&Event::Started {
        command: "map",
        source: path.clone(),
        target: None,
    });
    let disk = open_source(&request.path, &request.open)?;
    let info = disk.info();
    let geometry = Geometry::new(info.virtual_size, request.block_size)?;
    let hasher = Hasher::new(request.hash);
    let progress = SessionProgress::default();
    let saving = request.save_as.as_deref();
    let mut writer = saving
        .map(|path| MapWriter::create(path, geometry, request.hash))
        .transpose()?;
    let mut tree = TreeBuilder::new(&hasher, geometry);
    let mut zero_count = 0;
    let threads = scan_threads(request.block_size);
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
    with_progress(&progress, geometry.disk_len(), observer, started, || {
        scanner.run(&abort, |scanned| {
            let (leaf, count) = match scanned {
                Scanned::Zeros { count, .. } => (Leaf::Zero, count),
                Scanned::Data { digest, .. } => (Leaf::Data(digest.expect("the scan hashes")), 1),
            };
            zero_count += if leaf == Leaf::Zero { count } else { 0 };
            tree.push(leaf, count);
            writer
                .as_mut()
                .map_or(Ok(()), |writer| writer.push(leaf, count))
        })
    })?;
    let root = tree.finish();
    if let (Some(writer), Some(path)) = (writer, saving) {
        writer.finish(path, &root, &info.identity)?;
        check_saved(path, &root)?;
    }
    Ok(MapReport {
        schema: "failback.map/1",
        path,
        format: info.format,
        virtual_size: info.virtual_size,
        identity: info.identity,
        hash: request.hash,
        non_cryptographic: request.hash == HashKind::Xxh3,
        root_block_size: request.block_size.as_u32(),
        root: root.to_string(),
        blocks_total: geometry.block_count().0,
        blocks_hashed: progress.scan.hashed_blocks.load(Ordering::Relaxed),
        blocks_skipped_unallocated: progress.scan.skipped_blocks.load(Ordering::Relaxed),
        blocks_zero: zero_count,
        bytes_read: progress.scan.read_len.load(Ordering::Relaxed),
        saved_as: saving.map(|path| path.display().to_string()),
        seconds: started.elapsed().as_secs_f64(),
    })
}

/// A map that does not say what was written would be believed later: better to find that out now.
fn check_saved(path: &Path, root: &crate::hash::Digest) -> Result<()> {
    let saved = MapFile::open(path)?;
    match saved.root() == *root && saved.root_of_leaves() == *root {
        true => Ok(()),
        false => Err(Error::new(
            ErrorKind::VerifyFailed,
            "the saved map is not what was written",
        )
        .path(path)),
    }
}
