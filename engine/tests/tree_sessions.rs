//! Goal: a session that finds out by its trees what differs comes to what any other comes to, and a
//! peer that breaks the rules of it ends it. Method: disks in memory with saved maps on both sides;
//! scripted peers on one end of the loopback.
#![allow(clippy::unwrap_used, reason = "a test states its expectations by it")]

mod kit;

use std::sync::Arc;
use std::time::{Duration, Instant};

use failback_engine::disk::{Source, Target};
use failback_engine::map::Audit;
use failback_engine::sync::{
    Changes, InPlaceChanges, Session, SessionOptions, SideMap, run_source, run_target,
};
use failback_engine::transport::link::loopback;
use failback_engine::transport::{Digest, Message, SourceEnd, TargetResult};
use failback_engine::tree::Leaf;
use failback_engine::units::{BlockIndex, ByteOffset};
use failback_engine::{Abort, Error, ErrorKind, Result};
use failback_vhdx::FileAt;
use kit::stamped::{Pair, WISH, noise, save};
use kit::{BLOCK, PAGE, delta, session_link};
use proptest::prelude::*;

/// Maps of both disks as they are, believed.
fn mapped(pair: &Pair) -> [SideMap; 2] {
    [(&pair.source, 0), (&pair.target, 1)].map(|(disk, side)| {
        let store = &pair.stores[side];
        save(store, disk);
        let loaded = store.load(disk, &WISH(Audit::Quick)).unwrap();
        SideMap {
            trusted: loaded.map(Box::new),
            store: Some(store.clone()),
            carried: None,
        }
    })
}

#[derive(Clone, Debug)]
struct Edit {
    is_source: bool,
    block: prop::sample::Index,
    count: usize,
    /// `None`: zeros.
    fill: Option<u8>,
}

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let edit = (
        any::<bool>(),
        any::<prop::sample::Index>(),
        1..6_usize,
        any::<Option<u8>>(),
    );
    let edit = edit.prop_map(|(is_source, block, count, fill)| Edit {
        is_source,
        block,
        count,
        fill,
    });
    prop::collection::vec(edit, 0..12)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    // Goal: content, roots, counts and maps are those of a session that compares all hashes, and
    // only what differs is read. Method: random edits of both of two equal disks of any number of
    // blocks; a session by trees, and one without maps on copies.
    #[test]
    fn a_session_by_trees_is_a_session(
        blocks in 1..90_usize,
        tail in 0..2_usize,
        seed in any::<u64>(),
        edits in edits(),
    ) {
        let [dir, other] = [0; 2].map(|_| tempfile::tempdir().unwrap());
        let len = blocks * BLOCK - tail * 512;
        let mut bytes = noise(len, seed);
        bytes[len / 3..len / 2].fill(0);
        let pair = Pair::new(dir.path(), bytes.clone(), bytes);
        for Edit { is_source, block, count, fill } in edits {
            let disk = if is_source { &pair.source } else { &pair.target };
            for block in (block.index(blocks)..blocks).take(count) {
                let at = block * BLOCK;
                let page = vec![fill.unwrap_or(0); if fill.is_some() { PAGE } else { BLOCK }];
                let end = (at + page.len()).min(len);
                disk.disk.write(ByteOffset(at as u64), &page[..end - at]).unwrap();
            }
        }
        let contents = [&pair.source, &pair.target].map(|disk| disk.disk.content());
        let copy = Pair::new(other.path(), contents[0].clone(), contents[1].clone());

        let ended = pair.sync_with(mapped(&pair)).unwrap();
        let plain = copy.sync_with([SideMap::default(), SideMap::default()]).unwrap();

        prop_assert!(pair.target.disk.content() == contents[0]);
        prop_assert_eq!(ended.end.root, plain.end.root);
        prop_assert_eq!(ended.result.root, plain.result.root);
        let counts = |end: &SourceEnd| (end.differing_blocks, end.zeroed_blocks, end.changed_bytes);
        prop_assert_eq!(counts(&ended.end), counts(&plain.end));
        let differing = ended.end.differing_blocks * BLOCK as u64;
        prop_assert!(ended.end.source_read <= differing);
        let is_data = |block: &&[u8]| block.iter().any(|byte| *byte != 0);
        let data = contents[0].chunks(BLOCK).filter(is_data);
        let data: usize = data.map(<[u8]>::len).sum();
        prop_assert_eq!(ended.end.vouched_bytes + ended.end.source_read, data as u64);
        let map = pair.load(&pair.target, 1).expect("a map was kept");
        prop_assert_eq!(Some(map.map.root()), plain.end.root);
    }
}

// Goal: a map that is damaged after it was believed ends the session as a map that lies, on either
// side, and nothing wrong is made of it. Method: a byte of the leaf beside one that differs.
#[test]
fn a_damaged_node_on_the_way_rejects_the_map() {
    for side in [0, 1] {
        let dir = tempfile::tempdir().unwrap();
        let bytes = noise(70 * BLOCK, 3);
        let pair = Pair::new(dir.path(), bytes.clone(), bytes.clone());
        pair.source
            .disk
            .write(ByteOffset(40 * BLOCK as u64), b"new")
            .unwrap();
        let maps = mapped(&pair);
        let map = &maps[side].trusted.as_ref().unwrap().map;
        let Some(Leaf::Data(leaf)) = map.leaf(BlockIndex(41)).unwrap() else {
            panic!("a block of data")
        };
        let path = pair.stores[side].path();
        let saved = std::fs::read(&path).unwrap();
        let at = saved.windows(32).position(|bytes| bytes == leaf.as_bytes());
        let at = at.unwrap();
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        FileAt::write_at(&file, at as u64, &[saved[at] ^ 1]).unwrap();

        let ended = pair.sync_with(maps);

        assert_eq!(ended.map(drop).unwrap_err().kind(), ErrorKind::MapRejected);
    }
}

const BLOCKS: usize = 40;

/// A role under test whose disk has a map, against a peer that says `script` and waits. What was
/// sent to the peer comes with the error.
fn against(is_source: bool, root: Option<Digest>, script: &[Message]) -> (Error, Vec<Message>) {
    let dir = tempfile::tempdir().unwrap();
    let bytes = noise(BLOCKS * BLOCK, 5);
    let pair = Pair::new(dir.path(), bytes.clone(), bytes.clone());
    let [source, target] = mapped(&pair);
    let ours = target.trusted.as_ref().unwrap().map.root();
    let options = SessionOptions {
        target_root: Some(root.unwrap_or(ours)),
        ..delta()
    };
    let len = pair.source.info().virtual_size;
    let session = Session::new(options, len).unwrap();
    let session = session.with_map(if is_source { source } else { target });
    let (ended, heard) = converse(script, |link| match is_source {
        true => run_source(&session, &pair.source, link, &Arc::new(Abort::new())),
        false => {
            let finish = Box::new(|_| Ok(None));
            let changes = Changes::InPlace(InPlaceChanges::new(&pair.target, false, finish));
            let abort = Arc::new(Abort::new());
            run_target(&session, &pair.target, Some(changes), link, &abort)
        }
    });
    assert!(
        pair.target.disk.content() == bytes,
        "the target was changed"
    );
    (ended.unwrap_err(), heard)
}

fn converse(
    script: &[Message],
    role: impl FnOnce(failback_engine::sync::SessionLink) -> Result<(SourceEnd, TargetResult)>,
) -> (Result<(SourceEnd, TargetResult)>, Vec<Message>) {
    let started = Instant::now();
    let (near, far) = loopback::pair();
    let (mut peer, near) = (session_link(far), session_link(near));
    let ended = std::thread::scope(|scope| {
        let heard = scope.spawn(move || {
            let mut heard = Vec::new();
            for (index, message) in script.iter().enumerate() {
                let sent = peer.sender.send(message);
                if sent.and_then(|()| peer.sender.flush()).is_err() {
                    break;
                }
                // An answer that waits to be sent goes under when the next message ends the job.
                let is_asked = matches!(message, Message::Descend { .. });
                while is_asked
                    && index + 1 < script.len()
                    && !matches!(heard.last(), Some(Message::Nodes { .. }))
                {
                    heard.push(peer.receiver.recv().unwrap());
                }
            }
            while let Ok(message) = peer.receiver.recv() {
                let is_last = matches!(message, Message::Failure(_));
                heard.push(message);
                if is_last {
                    break;
                }
            }
            heard
        });
        let ended = role(near);
        (ended, heard.join().unwrap())
    });
    assert!(
        started.elapsed() < Duration::from_secs(10),
        "a bad peer is not waited for"
    );
    ended
}

fn ask(level: u8, down: u8, indices: &[u32]) -> Message {
    Message::Descend {
        level,
        down,
        payload: indices.iter().flat_map(|i| i.to_le_bytes()).collect(),
    }
}

// Goal: a source that asks for what there is not, or claims what it cannot know, is refused; what
// it asked before is answered. Method: each rule broken once.
#[test]
fn a_source_that_breaks_the_rules() {
    let refused = |script: &[Message]| {
        let (error, heard) = against(false, None, script);
        assert_eq!(error.kind(), ErrorKind::Protocol, "{}", error.chain());
        heard
    };
    // 40 blocks: levels 0 to 6.
    let heard = refused(&[ask(6, 4, &[0]), ask(7, 4, &[0])]);
    let is_answer = |message: &Message| match message {
        Message::Nodes {
            level: 6, payload, ..
        } => payload.len() == 10 * 32,
        _ => false,
    };
    assert!(heard.iter().any(is_answer), "{heard:?}");
    refused(&[ask(3, 3, &[5])]);
    refused(&[ask(0, 0, &[40])]);
    refused(&[Message::Compared { up_to_block: 41 }]);
    refused(&[Message::Zero {
        first_block: 39,
        count: 2,
    }]);
    refused(&[Message::Want {
        block: 40,
        asks: true,
        payload: Vec::new().into(),
    }]);
    refused(&[Message::Nodes {
        level: 0,
        first: 0,
        hash_len: 32,
        payload: vec![0; 32].into(),
    }]);
    refused(&[Message::Settled { up_to_block: 0 }]);
    refused(&[
        Message::Compared { up_to_block: 40 },
        Message::Compared { up_to_block: 39 },
    ]);
    refused(&[Message::End(SourceEnd::default())]);
}

// Goal: a target that answers with what its root does not stand for, or unasked, is refused.
// Method: each rule broken once, by a target whose root is said to be another.
#[test]
fn a_target_that_breaks_the_rules() {
    let nodes = |level, first, hash_len: u8, count: usize| Message::Nodes {
        level,
        first,
        hash_len,
        payload: vec![1; count * usize::from(hash_len)].into(),
    };
    let root = Some(Digest::from([3; 32]));
    for script in [
        &[nodes(6, 0, 32, 10)][..],
        &[nodes(6, 0, 16, 10)],
        &[nodes(6, 0, 32, 9)],
        &[nodes(5, 0, 32, 10)],
        &[nodes(5, 1, 32, 10)],
        &[Message::Settled { up_to_block: 41 }],
        &[
            Message::Settled { up_to_block: 2 },
            Message::Settled { up_to_block: 1 },
        ],
        &[Message::ScanEnd { block_count: 40 }],
        &[Message::ZeroBlocks {
            first_block: 0,
            count: 40,
        }],
        &[Message::Hashes {
            first_block: 0,
            hash_len: 32,
            payload: vec![1; 32].into(),
        }],
        &[ask(6, 2, &[0])],
        &[Message::Result(TargetResult::default())],
    ] {
        let (error, _) = against(true, root, script);
        assert_eq!(error.kind(), ErrorKind::Protocol, "{script:?}");
    }
    let unasked = [nodes(6, 0, 32, 10)];
    assert_eq!(against(true, None, &unasked).0.kind(), ErrorKind::Protocol);
}

// Goal: who is to compare trees and has no believed map, or another than is meant, ends the session
// before anything is made of it. Method: both.
#[test]
fn trees_without_their_map_are_refused() {
    let (error, _) = against(false, Some(Digest::from([3; 32])), &[]);
    assert_eq!(error.kind(), ErrorKind::Protocol);
    let options = SessionOptions {
        target_root: Some(Digest::from([3; 32])),
        ..delta()
    };
    let disk = failback_engine::disk::MemoryDisk::new(noise(3 * BLOCK, 7));
    for is_source in [true, false] {
        let session = Session::new(options, 3 * BLOCK as u64).unwrap();
        let abort = Arc::new(Abort::new());
        let (ended, _) = converse(&[], |link| match is_source {
            true => run_source(&session, &disk, link, &abort),
            false => {
                let finish = Box::new(|_| Ok(None));
                let changes = Changes::InPlace(InPlaceChanges::new(&disk, false, finish));
                run_target(&session, &disk, Some(changes), link, &abort)
            }
        });
        assert_eq!(ended.unwrap_err().kind(), ErrorKind::Protocol);
    }
}
