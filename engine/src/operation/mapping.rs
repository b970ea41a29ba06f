//! `map`: the checksum map of one disk, printed and, if asked for, saved.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Instant;

use serde::Serialize;

use super::scanning::{Told, scan_leaves};
use crate::abort::CancelToken;
use crate::disk::{OpenOptions, Source, open_source};
use crate::error::{Error, ErrorKind, Result};
use crate::event::{Event, Observer};
use crate::hash::{Digest, HashKind, Hasher};
use crate::identity::seal;
use crate::map::{MapBuilder, MapFile, MapKey, MapStore, MapWriter, Noted};
use crate::sync::SessionProgress;
use crate::tree::Leaf;
use crate::units::{BlockSize, Geometry};

/// Where a map is saved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum MapPlace {
    /// Nowhere.
    #[default]
    Nowhere,
    /// With the state of syncs, where a sync finds it.
    State,
    /// Under this name.
    File(PathBuf),
}

/// What `map` needs to know.
#[derive(Clone, Debug)]
pub struct MapRequest {
    /// The image.
    pub path: PathBuf,
    /// How it is opened.
    pub open: OpenOptions,
    /// Where to save the map.
    pub save: MapPlace,
    /// Where the state of syncs is kept, and the key of maps; `None`: beside the image.
    pub state: Option<PathBuf>,
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
    /// Whether a sync finds it there, and may believe it as long as nothing is changed.
    pub is_for_sync: bool,
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
    let store = MapStore::of(&request.path, request.state.as_deref())?;
    let writer = match &request.save {
        MapPlace::Nowhere => None,
        MapPlace::File(path) => Some(MapWriter::create(path, geometry, request.hash)?),
        MapPlace::State => Some(store.begin_or_fail(geometry, request.hash)?),
    };
    let mut map = MapBuilder::new(&hasher, geometry, writer);
    let mut zero_count = 0;
    let told = Told {
        started,
        observer,
        cancel,
    };
    scan_leaves(
        disk.as_ref(),
        (geometry, &hasher),
        &progress,
        &told,
        |leaf, count| {
            zero_count += if leaf == Leaf::Zero { count } else { 0 };
            map.push(leaf, count);
            Ok(())
        },
    )?;
    let (root, writer) = map.finish();
    let saved = writer.map(|writer| save(request, &store, disk.as_ref(), writer, root));
    let (saved_as, is_for_sync) = saved.transpose()?.unzip();
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
        saved_as,
        is_for_sync: is_for_sync.unwrap_or(false),
        seconds: started.elapsed().as_secs_f64(),
    })
}

/// Completes the map and reads it again. Its name, and whether a sync may use it.
fn save(
    request: &MapRequest,
    store: &MapStore,
    disk: &dyn Source,
    writer: MapWriter,
    root: Digest,
) -> Result<(String, bool)> {
    let key = store.key()?;
    // The disk was locked against writers all the time.
    let facts = seal(disk)?;
    let is_for_sync =
        request.save == MapPlace::State && request.hash == HashKind::Blake3 && facts.is_some();
    writer.finish(&Noted {
        root,
        facts,
        key: &key,
    })?;
    let path = match &request.save {
        MapPlace::File(path) => path.clone(),
        _ => store.path(),
    };
    check_saved(&path, &key, &root)?;
    Ok((path.display().to_string(), is_for_sync))
}

/// A map that does not say what was written would be believed later: better to find that out now.
fn check_saved(path: &Path, key: &MapKey, root: &Digest) -> Result<()> {
    let saved = MapFile::open(path, key)?;
    let mut blocks = 0;
    for leaf in saved.walk()? {
        blocks += leaf?.1;
    }
    let is_whole = blocks == saved.geometry().block_count().0;
    match saved.root() == *root && saved.claim().is_authentic && is_whole {
        true => Ok(()),
        false => Err(Error::new(
            ErrorKind::VerifyFailed,
            "the saved map is not what was written",
        )
        .path(path)),
    }
}
