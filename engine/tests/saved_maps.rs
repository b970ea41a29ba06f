//! Goal: a saved map stands for a read only where it says what a read would, and a session with
//! maps comes to what one without comes to. Method: disks in memory that keep times as files do,
//! edited at random; maps in a real directory.

#![allow(clippy::unwrap_used, reason = "a test states its expectations by it")]

mod kit;

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use failback_engine::disk::{DiskInfo, Extent, MemoryDisk, Source, Target};
use failback_engine::hash::{HashKind, Hasher};
use failback_engine::identity::{Facts, ImageFacts, Refusal};
use failback_engine::map::{Audit, MapBuilder, MapStore, MapWish, TrustedMap};
use failback_engine::sync::{
    Changes, InPlaceChanges, Session, SessionOptions, SideMap, run_source, run_target,
};
use failback_engine::system::MediumAccess;
use failback_engine::transport::link::loopback;
use failback_engine::transport::{SourceEnd, TargetResult};
use failback_engine::tree::Leaf;
use failback_engine::units::{BlockSize, ByteOffset, Geometry};
use failback_engine::{Abort, ErrorKind, Result};
use kit::{BLOCK, PAGE, delta, session_link};
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const WISH: fn(Audit) -> MapWish = |audit| MapWish {
    hash: HashKind::Blake3,
    block_size: BlockSize::new(BLOCK as u64).unwrap(),
    audit,
};

/// A disk whose file has an id, a length and times.
#[derive(Debug)]
struct Stamped {
    disk: MemoryDisk,
    id: String,
    /// Changes so far: each moves the clock of the file.
    changes: AtomicI64,
    mtime: AtomicI64,
}

impl Stamped {
    fn new(bytes: Vec<u8>, id: &str) -> Self {
        Self {
            disk: MemoryDisk::new(bytes),
            id: id.to_owned(),
            changes: AtomicI64::new(1),
            mtime: AtomicI64::new(1),
        }
    }

    fn touch(&self) {
        let now = self.changes.fetch_add(1, Ordering::SeqCst) + 1;
        self.mtime.store(now, Ordering::SeqCst);
    }

    /// As whoever edits an image and sets its times back: the time of the last change moves on.
    fn edit_and_set_back(&self, at: u64, data: &[u8]) {
        let mtime = self.mtime.load(Ordering::SeqCst);
        self.write(ByteOffset(at), data).unwrap();
        self.mtime.store(mtime, Ordering::SeqCst);
    }

    /// As bit rot, or whoever writes without a trace.
    fn rot(&self, at: u64, data: &[u8]) {
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

fn store_of(dir: &Path, name: &str) -> MapStore {
    MapStore::of(&dir.join(name), Some(&dir.join("state"))).unwrap()
}

fn geometry_of(disk: &dyn Source) -> Geometry {
    let block = BlockSize::new(BLOCK as u64).unwrap();
    Geometry::new(disk.info().virtual_size, block).unwrap()
}

/// The root by a read of all.
fn true_root(bytes: &[u8]) -> String {
    let hasher = Hasher::new(HashKind::Blake3);
    let geometry = geometry_of(&MemoryDisk::new(bytes.to_vec()));
    let mut map = MapBuilder::new(&hasher, geometry, None);
    for block in bytes.chunks(BLOCK) {
        map.push(Leaf::Data(hasher.leaf(block)), 1);
    }
    map.finish().0.to_string()
}

fn save(store: &MapStore, disk: &Stamped) {
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

fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; len];
    StdRng::seed_from_u64(seed).fill(&mut bytes[..]);
    bytes
}

// Goal: an edited image is never believed, whatever its mtime says. Method: ten thousand random
// edits with the time set back, each looked at; each may be undone by another, which does not help.
#[test]
fn ten_thousand_edits_with_times_set_back_are_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let store = store_of(dir.path(), "disk");
    let disk = Stamped::new(noise(4 * BLOCK, 1), "1:1");
    let mut rng = StdRng::seed_from_u64(2);
    save(&store, &disk);
    assert!(store.load(&disk, &WISH(Audit::Quick)).unwrap().is_some());
    for edit in 0..10_000 {
        let at = rng.random_range(0..4 * BLOCK - 8) as u64;
        disk.edit_and_set_back(at, &rng.random::<[u8; 8]>());
        let refusal = store.load(&disk, &WISH(Audit::Quick)).map(drop);
        assert_eq!(refusal, Err(Refusal::Ctime), "edit {edit} at {at}");
    }
}

// Goal: what no fact shows is found by the audit. Method: one block of a hundred is changed without
// a trace; a full audit looks at all of so few.
#[test]
fn what_leaves_no_trace_is_found_by_the_audit() {
    let dir = tempfile::tempdir().unwrap();
    let store = store_of(dir.path(), "disk");
    let disk = Stamped::new(noise(100 * BLOCK, 3), "1:1");
    save(&store, &disk);
    let trusted = store.load(&disk, &WISH(Audit::Full)).unwrap().unwrap();
    assert_eq!(trusted.audited, 100);
    disk.rot(77 * BLOCK as u64 + 5, b"rot");
    let refusal = store.load(&disk, &WISH(Audit::Full)).map(drop);
    assert_eq!(refusal, Err(Refusal::Audit));
}

// Goal: without the key, or with another, no map is believed. Method: the key is removed; a job
// makes a new one.
#[test]
fn without_its_key_a_map_is_not_believed() {
    let dir = tempfile::tempdir().unwrap();
    let store = store_of(dir.path(), "disk");
    let disk = Stamped::new(noise(BLOCK, 4), "1:1");
    save(&store, &disk);
    std::fs::remove_file(dir.path().join("state/map.key")).unwrap();
    let refusal = || store.load(&disk, &WISH(Audit::Quick)).map(drop);
    assert_eq!(refusal(), Err(Refusal::Mac));
    store.key().unwrap();
    assert_eq!(refusal(), Err(Refusal::Mac));
}

// Goal: a job that makes a map keeps others from doing so, and what a dead one left is no map.
// Method: two at once; half a map under the temporary name.
#[test]
fn one_map_is_made_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let store = store_of(dir.path(), "disk");
    let disk = Stamped::new(noise(BLOCK, 5), "1:1");
    let geometry = geometry_of(&disk);
    let first = store.begin_or_fail(geometry, HashKind::Blake3).unwrap();
    let second = store.begin_or_fail(geometry, HashKind::Blake3).unwrap_err();
    assert_eq!(second.kind(), ErrorKind::InUse);
    drop(first);
    std::fs::write(store.path().with_extension("new"), b"half a map").unwrap();
    assert!(store.load(&disk, &WISH(Audit::Quick)).unwrap().is_none());
    save(&store, &disk);
    assert!(store.load(&disk, &WISH(Audit::Quick)).unwrap().is_some());
}

struct Pair {
    source: Stamped,
    target: Stamped,
    stores: [MapStore; 2],
}

/// What a session of a pair came to.
struct Ended {
    end: SourceEnd,
    result: TargetResult,
}

impl Pair {
    fn new(dir: &Path, source: Vec<u8>, target: Vec<u8>) -> Self {
        Self {
            source: Stamped::new(source, "1:1"),
            target: Stamped::new(target, "2:2"),
            stores: ["source", "target"].map(|name| store_of(dir, name)),
        }
    }

    fn load(&self, disk: &Stamped, store: usize) -> Option<TrustedMap> {
        let loaded = self.stores[store].load(disk, &WISH(Audit::Quick));
        loaded.ok().flatten()
    }

    /// Runs a session with the maps as far as they are believed.
    fn sync(&self) -> Result<Ended> {
        let maps = [(&self.source, 0), (&self.target, 1)].map(|(disk, store)| SideMap {
            trusted: self.load(disk, store).map(Box::new),
            store: Some(self.stores[store].clone()),
        });
        self.sync_with(maps)
    }

    fn sync_with(&self, [source, target]: [SideMap; 2]) -> Result<Ended> {
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

#[derive(Clone, Debug)]
struct Edit {
    is_source: bool,
    block: usize,
    fill: Option<u8>,
}

fn edits() -> impl Strategy<Value = Vec<Vec<Edit>>> {
    let edit =
        (any::<bool>(), 0..BLOCKS, any::<Option<u8>>()).prop_map(|(is_source, block, fill)| Edit {
            is_source,
            block,
            fill,
        });
    prop::collection::vec(prop::collection::vec(edit, 0..6), 1..6)
}

const BLOCKS: usize = 13;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    // Goal: a session with maps gives the root and the content of one without, and leaves maps that
    // say what the disks hold. Method: some rounds of random edits of both sides, each followed by
    // a session that believes what it may; roots by a read of all.
    #[test]
    fn maps_change_nothing_but_the_cost(
        rounds in edits(),
        tail in 0usize..2,
        seed in any::<u64>(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let len = (BLOCKS - 1) * BLOCK + BLOCK - tail * 512;
        let mut target = noise(len, seed);
        target[..5 * BLOCK].fill(0);
        let pair = Pair::new(dir.path(), noise(len, seed ^ 1), target);
        for round in rounds {
            for Edit { is_source, block, fill } in round {
                let disk = if is_source { &pair.source } else { &pair.target };
                let at = block * BLOCK;
                let page = vec![fill.unwrap_or(0); if fill.is_some() { PAGE } else { BLOCK }];
                let end = (at + page.len()).min(len);
                disk.write(ByteOffset(at as u64), &page[..end - at]).unwrap();
            }
            let ended = pair.sync().unwrap();

            let content = pair.source.disk.content();
            prop_assert!(pair.target.disk.content() == content);
            prop_assert!(ended.result.equal);
            let root = true_root(&content);
            prop_assert_eq!(ended.end.root.map(|root| root.to_string()), Some(root.clone()));
            prop_assert_eq!(ended.result.root.map(|root| root.to_string()), Some(root.clone()));
            for (disk, store) in [(&pair.source, 0), (&pair.target, 1)] {
                let map = pair.load(disk, store).expect("a map was kept");
                prop_assert_eq!(map.map.root().to_string(), root.clone());
            }
        }
    }
}

// Goal: a side whose map is believed is not read but where it differs. Method: a session that makes
// the maps, then one page changed in the source: the target is believed; then one in the target.
#[test]
fn only_the_changed_side_and_what_differs_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let len = 40 * BLOCK;
    let pair = Pair::new(dir.path(), noise(len, 7), noise(len, 8));
    pair.sync().unwrap();
    let (whole, block) = (len as u64, BLOCK as u64);

    pair.source
        .write(ByteOffset(9 * block), &[1; PAGE])
        .unwrap();
    let first = pair.sync().unwrap();
    pair.target
        .write(ByteOffset(3 * block), &[2; PAGE])
        .unwrap();
    let second = pair.sync().unwrap();
    let third = pair.sync().unwrap();

    // What differs is read again: its bytes were not kept.
    assert_eq!(first.end.source_read, whole + block);
    assert_eq!(first.result.target_read, block);
    assert_eq!(first.result.vouched_bytes, whole - block);
    assert_eq!(second.end.source_read, block);
    assert_eq!(second.end.vouched_bytes, whole - block);
    assert_eq!(second.result.target_read, whole + block);
    assert_eq!((third.end.source_read, third.result.target_read), (0, 0));
    assert_eq!(
        third.end.vouched_bytes + third.result.vouched_bytes,
        2 * whole
    );
}

// Goal: a map that lies about a block that differs is found out by the session, on either side, and
// the same session without it comes right. Method: rot behind maps that are believed.
#[test]
fn a_lie_about_a_differing_block_ends_the_session() {
    for rots_source in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let len = 600 * BLOCK;
        let pair = Pair::new(dir.path(), noise(len, 9), noise(len, 9));
        pair.sync().unwrap();
        // Loaded while they still tell the truth.
        let side = match rots_source {
            true => pair.load(&pair.source, 0),
            false => pair.load(&pair.target, 1),
        };
        assert!(side.is_some(), "a map was kept");
        let lying = SideMap {
            trusted: side.map(Box::new),
            store: None,
        };
        let (rotten, other) = match rots_source {
            true => (&pair.source, &pair.target),
            false => (&pair.target, &pair.source),
        };
        rotten.rot(50 * BLOCK as u64, b"rot");
        other
            .disk
            .write(ByteOffset(50 * BLOCK as u64), b"new")
            .unwrap();
        let ended = pair.sync_with(match rots_source {
            true => [lying, SideMap::default()],
            false => [SideMap::default(), lying],
        });
        let again = pair.sync_with([SideMap::default(), SideMap::default()]);

        assert_eq!(ended.map(drop).unwrap_err().kind(), ErrorKind::MapRejected);
        assert!(again.unwrap().result.equal);
        assert!(pair.source.disk.content() == pair.target.disk.content());
    }
}
