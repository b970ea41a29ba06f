//! Goal: a saved map stands for a read only where it says what a read would, and a session with
//! maps comes to what one without comes to. Method: disks in memory that keep times as files do,
//! edited at random; maps in a real directory.

#![allow(clippy::unwrap_used, reason = "a test states its expectations by it")]

mod kit;

use failback_engine::ErrorKind;
use failback_engine::disk::Target;
use failback_engine::hash::HashKind;
use failback_engine::identity::Refusal;
use failback_engine::map::Audit;
use failback_engine::sync::SideMap;
use failback_engine::units::ByteOffset;
use kit::stamped::{Pair, Stamped, WISH, geometry_of, noise, save, store_of, true_root};
use kit::{BLOCK, PAGE};
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

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
            carried: None,
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
