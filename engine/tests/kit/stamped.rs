//! A disk that keeps times as a file does, and its saved map.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use failback_engine::disk::{DiskInfo, Extent, MemoryDisk, Source, Target};
use failback_engine::hash::{HashKind, Hasher};
use failback_engine::identity::{Facts, ImageFacts};
use failback_engine::map::{Audit, MapBuilder, MapStore, MapWish, TrustedMap};
use failback_engine::sync::{
    Changes, InPlaceChanges, Session, SessionOptions, SideMap, run_source, run_target,
};
use failback_engine::system::MediumAccess;
use failback_engine::transport::link::loopback;
use failback_engine::transport::{SourceEnd, TargetResult};
use failback_engine::tree::Leaf;
use failback_engine::units::{BlockSize, ByteOffset, Geometry};
use failback_engine::{Abort, Result};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::{BLOCK, delta, session_link};

pub(crate) const WISH: fn(Audit) -> MapWish = |audit| MapWish {
    hash: HashKind::Blake3,
    block_size: BlockSize::new(BLOCK as u64).unwrap(),
    audit,
};

/// A disk whose file has an id, a length and times.
#[derive(Debug)]
pub(crate) struct Stamped {
    pub(crate) disk: MemoryDisk,
    id: String,
    /// Changes so far: each moves the clock of the file.
    changes: AtomicI64,
    mtime: AtomicI64,
}

impl Stamped {
    pub(crate) fn new(bytes: Vec<u8>, id: &str) -> Self {
        Self {
            disk: MemoryDisk::new(bytes),
            id: id.to_owned(),
            changes: AtomicI64::new(1),
            mtime: AtomicI64::new(1),
        }
    }

    pub(crate) fn touch(&self) {
        let now = self.changes.fetch_add(1, Ordering::SeqCst) + 1;
        self.mtime.store(now, Ordering::SeqCst);
    }

    /// As whoever edits an image and sets its times back: the time of the last change moves on.
    pub(crate) fn edit_and_set_back(&self, at: u64, data: &[u8]) {
        let mtime = self.mtime.load(Ordering::SeqCst);
        self.write(ByteOffset(at), data).unwrap();
        self.mtime.store(mtime, Ordering::SeqCst);
    }

    /// As bit rot, or whoever writes without a trace.
    pub(crate) fn rot(&self, at: u64, data: &[u8]) {
        self.disk.write(ByteOffset(at), data).unwrap();
    }
}

impl Source for Stamped {
    fn info(&self) -> DiskInfo {
        self.disk.info()
    }

    fn read(&self, at: ByteOffset, buf: &mut [u8]) -> Result<()> {
        self.disk.read(at, buf)
    }

    fn extent_at(&self, at: ByteOffset) -> Result<Extent> {
        self.disk.extent_at(at)
    }

    fn facts(&self) -> Result<Option<Facts>> {
        let len = self.disk.info().virtual_size;
        Ok(Facts::now(vec![ImageFacts {
            format: "raw".into(),
            file_id: self.id.clone(),
            file_len: len,
            mtime_ns: self.mtime.load(Ordering::SeqCst) * 1_000_003,
            ctime_ns: self.changes.load(Ordering::SeqCst) * 1_000_003,
            is_local: true,
            disk_len: len,
            sector_size: 0,
            disk_id: String::new(),
            data_write_guid: "a".into(),
            is_log_empty: true,
            header_sequence: 0,
        }]))
    }
}

impl Target for Stamped {
    fn write(&self, at: ByteOffset, data: &[u8]) -> Result<()> {
        self.touch();
        self.disk.write(at, data)
    }

    fn zero(&self, range: Range<ByteOffset>) -> Result<()> {
        self.touch();
        self.disk.zero(range)
    }

    fn zero_undefined(&self) -> Result<u64> {
        Ok(0)
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn read_back(&self, at: ByteOffset, buf: &mut [u8]) -> Result<()> {
        self.disk.read_back(at, buf)
    }

    fn medium(&self) -> MediumAccess {
        MediumAccess::Cache
    }

    fn mark(&self) -> Result<Option<String>> {
        Ok(None)
    }

    fn close(&self) -> Result<()> {
        Ok(())
    }
}

pub(crate) fn store_of(dir: &Path, name: &str) -> MapStore {
    MapStore::of(&dir.join(name), Some(&dir.join("state"))).unwrap()
}

pub(crate) fn geometry_of(disk: &dyn Source) -> Geometry {
    let block = BlockSize::new(BLOCK as u64).unwrap();
    Geometry::new(disk.info().virtual_size, block).unwrap()
}

/// The root by a read of all.
pub(crate) fn true_root(bytes: &[u8]) -> String {
    let hasher = Hasher::new(HashKind::Blake3);
    let geometry = geometry_of(&MemoryDisk::new(bytes.to_vec()));
    let mut map = MapBuilder::new(&hasher, geometry, None);
    for block in bytes.chunks(BLOCK) {
        map.push(Leaf::Data(hasher.leaf(block)), 1);
    }
    map.finish().0.to_string()
}

pub(crate) fn save(store: &MapStore, disk: &Stamped) {
    let hasher = Hasher::new(HashKind::Blake3);
    let geometry = geometry_of(disk);
    let writer = store.begin_or_fail(geometry, HashKind::Blake3).unwrap();
    let mut map = MapBuilder::new(&hasher, geometry, Some(writer));
    for block in disk.disk.content().chunks(BLOCK) {
        map.push(Leaf::Data(hasher.leaf(block)), 1);
    }
    let (root, writer) = map.finish();
    let facts = disk.facts().unwrap().unwrap();
    store.keep(writer.unwrap(), root, facts).unwrap();
}

pub(crate) fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; len];
    StdRng::seed_from_u64(seed).fill(&mut bytes[..]);
    bytes
}

/// Two disks and their maps.
pub(crate) struct Pair {
    pub(crate) source: Stamped,
    pub(crate) target: Stamped,
    pub(crate) stores: [MapStore; 2],
}

/// What a session of a pair came to.
pub(crate) struct Ended {
    pub(crate) end: SourceEnd,
    pub(crate) result: TargetResult,
}

impl Pair {
    pub(crate) fn new(dir: &Path, source: Vec<u8>, target: Vec<u8>) -> Self {
        Self {
            source: Stamped::new(source, "1:1"),
            target: Stamped::new(target, "2:2"),
            stores: ["source", "target"].map(|name| store_of(dir, name)),
        }
    }

    pub(crate) fn load(&self, disk: &Stamped, store: usize) -> Option<TrustedMap> {
        let loaded = self.stores[store].load(disk, &WISH(Audit::Quick));
        loaded.ok().flatten()
    }

    /// Runs a session with the maps as far as they are believed.
    pub(crate) fn sync(&self) -> Result<Ended> {
        let maps = [(&self.source, 0), (&self.target, 1)].map(|(disk, store)| SideMap {
            trusted: self.load(disk, store).map(Box::new),
            store: Some(self.stores[store].clone()),
            carried: None,
        });
        self.sync_with(maps)
    }

    pub(crate) fn sync_with(&self, [source, target]: [SideMap; 2]) -> Result<Ended> {
        let (near, far) = loopback::pair();
        let (near, far) = (session_link(near), session_link(far));
        // As a client does it.
        let mapped = [&source, &target].map(|side| side.trusted.as_ref());
        let target_root = match mapped {
            [Some(_), Some(target)] => Some(target.map.root()),
            _ => None,
        };
        let session = |map| {
            let options = SessionOptions {
                target_root,
                ..delta()
            };
            let len = self.source.info().virtual_size;
            Session::new(options, len).unwrap().with_map(map)
        };
        let (from, to) = (session(source), session(target));
        std::thread::scope(|scope| {
            let abort = Arc::new(Abort::new());
            let sending = scope.spawn(move || run_source(&from, &self.source, near, &abort));
            let finish = Box::new(|_| Ok(None));
            let changes = Changes::InPlace(InPlaceChanges::new(&self.target, false, finish));
            let abort = Arc::new(Abort::new());
            let received = run_target(&to, &self.target, Some(changes), far, &abort);
            match (sending.join().unwrap(), received) {
                (Ok((end, result)), Ok(_)) => Ok(Ended { end, result }),
                (Err(a), Err(b)) if a.is_from_peer() => Err(b),
                (Err(error), _) | (_, Err(error)) => Err(error),
            }
        })
    }
}
