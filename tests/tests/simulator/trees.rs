//! Sessions that find out by two saved maps what differs, under many orders of their threads.

use std::path::Path;
use std::sync::Arc;

use failback_engine::Abort;
use failback_engine::disk::MemoryDisk;
use failback_engine::hash::{HashKind, Hasher, is_zero};
use failback_engine::map::{MapBuilder, MapFile, MapKey, MapWriter, Noted, TrustedMap};
use failback_engine::schedule::{Dice, scope, simulate};
use failback_engine::sync::{
    Changes, InPlaceChanges, Session, SessionOptions, SideMap, Task, Until, run_source, run_target,
};
use failback_engine::transport::{Apply, Compress, VerifyLevel};
use failback_engine::tree::Leaf;
use failback_engine::units::{BlockSize, Geometry};

use crate::content::{BLOCK, Content, changed, noise};
use crate::link;
use crate::runner::hang;
use crate::session::session_link;

const SEEDS: u64 = 300;

/// The map of a disk of that content, believed.
fn map_of(path: &Path, content: &[u8]) -> TrustedMap {
    let block = BlockSize::new(BLOCK as u64).expect("a block size");
    let geometry = Geometry::new(content.len() as u64, block).expect("a small disk");
    let (hasher, key) = (Hasher::new(HashKind::Blake3), MapKey::of([7; 32]));
    let writer = MapWriter::create(path, geometry, HashKind::Blake3).expect("a new map");
    let mut map = MapBuilder::new(&hasher, geometry, Some(writer));
    for block in content.chunks(BLOCK) {
        let leaf = match is_zero(block) {
            true => Leaf::Zero,
            false => Leaf::Data(hasher.leaf(block)),
        };
        map.push(leaf, 1);
    }
    let (root, writer) = map.finish();
    let noted = Noted {
        root,
        facts: None,
        key: &key,
    };
    let finished = writer.expect("it was begun").finish(&noted);
    finished.expect("room for the map");
    TrustedMap {
        map: MapFile::open(path, &key).expect("a sound map"),
        audited: 0,
    }
}

fn session(seed: u64, dir: &Path) {
    let mut dice = Dice::new(seed);
    let mut old = vec![0; BLOCK * (1 + dice.index(40)) - dice.index(2) * 512];
    noise(&mut dice, &mut old);
    let old: Content = Arc::new(old);
    let mut new = old.clone();
    for _ in 0..dice.index(4) {
        new = changed(&mut dice, &new);
    }
    let [theirs, ours] =
        [("old", &old), ("new", &new)].map(|(name, content)| map_of(&dir.join(name), content));
    let options = SessionOptions {
        task: Task::Delta,
        hash: HashKind::Blake3,
        block_size: BlockSize::new(BLOCK as u64).expect("a block size"),
        verify: VerifyLevel::Changed,
        compress: Compress::Off,
        sub_hash_seed: seed,
        apply: Apply::InPlace,
        container: None,
        goes_on: false,
        until: Until::End,
        source_mark: 0,
        target_root: Some(theirs.map.root()),
        may_send_whole: true,
    };
    let [ours, theirs] = [ours, theirs].map(|trusted| {
        let mut session = Session::new(options, old.len() as u64).expect("a small disk");
        session.threads = 2;
        session.with_map(SideMap {
            trusted: Some(Box::new(trusted)),
            store: None,
            carried: None,
        })
    });
    let (source, target) = (MemoryDisk::new(new.to_vec()), MemoryDisk::new(old.to_vec()));
    let (near, far, _wire) = link::pair(dice.fork(), None);
    let (near, far) = (session_link(near), session_link(far));
    let (sent, received) = scope(|scope| {
        let (ours, source) = (&ours, &source);
        let sending = scope.spawn(move || run_source(ours, source, near, &Arc::new(Abort::new())));
        let changes = InPlaceChanges::new(&target, false, Box::new(|_| Ok(None)));
        let changes = Some(Changes::InPlace(changes));
        let received = run_target(&theirs, &target, changes, far, &Arc::new(Abort::new()));
        (sending.join().expect("errors are values here"), received)
    });
    let (end, result) = received.unwrap_or_else(|error| panic!("seed {seed}: {}", error.chain()));
    assert!(sent.is_ok(), "seed {seed}");
    assert!(target.content() == *new, "seed {seed}");
    assert!(result.equal && end.root == result.root, "seed {seed}");
}

// Goal: whichever thread comes first, a session by trees ends, and ends equal. Method: the whole
// session in one process under a seed; random contents of a few blocks, some of them equal.
#[test]
fn sessions_by_trees_end_equal_under_any_order() {
    let dir = tempfile::tempdir().expect("temporary folder");
    for seed in 0..SEEDS {
        simulate(seed, hang, || session(seed, dir.path()));
    }
}
