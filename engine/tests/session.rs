//! Goal: after a session the target is the source, only what differs has travelled, and every fault
//! ends both roles with the error that began it. Method: both roles in this process over the
//! loopback, disks in memory, random contents and single faults; the model is `target =
//! source.clone()`.
#![allow(clippy::unwrap_used, reason = "a test states its expectations by it")]

mod kit;

use std::sync::Arc;

use failback_engine::disk::{Format, MemoryDisk, NewDisk, OpenOptions, create, open_target};
use failback_engine::hash::{HashKind, Hasher};
use failback_engine::sync::{SessionOptions, Task, Until};
use failback_engine::transport::{Apply, Compress, VerifyLevel};
use failback_engine::tree::{Leaf, TreeBuilder};
use failback_engine::units::Geometry;
use failback_engine::{Abort, ErrorKind};
use kit::{BLOCK, Endless, Fault, Faulty, PAGE, delta, run_aborting, run_session};
use proptest::prelude::*;

/// What a block holds, as a property sees it.
#[derive(Clone, Copy, Debug)]
enum Fill {
    Zero,
    Same(u8),
    Pages(u8, u8),
}

fn fills() -> impl Strategy<Value = Vec<(Fill, Fill)>> {
    let fill = prop_oneof![
        2 => Just(Fill::Zero),
        3 => any::<u8>().prop_map(Fill::Same),
        3 => (any::<u8>(), any::<u8>()).prop_map(|(a, b)| Fill::Pages(a, b)),
    ];
    // Half of the pairs are equal: that is what a delta is for.
    let pair = prop_oneof![
        fill.clone().prop_map(|fill| (fill, fill)),
        (fill.clone(), fill)
    ];
    prop::collection::vec(pair, 0..20)
}

fn block_of(fill: Fill) -> Vec<u8> {
    let mut block = vec![0; BLOCK];
    match fill {
        Fill::Zero => {}
        Fill::Same(byte) => block.fill(byte),
        Fill::Pages(seed, count) => {
            for page in 0..usize::from(count % 16) {
                let at = (usize::from(seed) * 7 + page * 5) % 16 * PAGE;
                block[at..at + PAGE].fill(seed.wrapping_add(u8::try_from(page).unwrap()));
            }
        }
    }
    block
}

fn options() -> impl Strategy<Value = SessionOptions> {
    let task = prop_oneof![3 => Just(Task::Delta), 1 => Just(Task::Full)];
    let hash = prop_oneof![Just(HashKind::Blake3), Just(HashKind::Xxh3)];
    let compress = prop_oneof![
        Just(Compress::Off),
        Just(Compress::Auto),
        Just(Compress::Zstd(1))
    ];
    let verify = prop_oneof![
        Just(VerifyLevel::Full),
        Just(VerifyLevel::Changed),
        Just(VerifyLevel::Off)
    ];
    (task, hash, compress, verify, any::<u64>()).prop_map(
        |(task, hash, compress, verify, sub_hash_seed)| SessionOptions {
            task,
            hash,
            compress,
            verify,
            sub_hash_seed,
            apply: Apply::InPlace,
            container: None,
            goes_on: false,
            until: Until::End,
            source_mark: 0,
            target_root: None,
            may_send_whole: false,
            ..delta()
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    // apply(diff(a, b), b) == a, with the root of the definition, and again without a byte of
    // payload.
    #[test]
    fn the_target_becomes_the_source(pairs in fills(), tail in 0usize..9000, options in options()) {
        let mut source: Vec<u8> = pairs.iter().flat_map(|(a, _)| block_of(*a)).collect();
        let mut target: Vec<u8> = pairs.iter().flat_map(|(_, b)| block_of(*b)).collect();
        source.extend(block_of(Fill::Pages(3, 2)).into_iter().take(tail));
        target.extend(block_of(Fill::Pages(9, 3)).into_iter().take(tail));
        let (from, to) = (MemoryDisk::new(source.clone()), MemoryDisk::new(target));
        let ended = run_session(&from, &to, options, false);
        let (end, result) = ended.source.unwrap();
        prop_assert_eq!(ended.target.unwrap(), (end.clone(), result.clone()));
        prop_assert!(result.equal);
        prop_assert_eq!(to.content(), source.clone());
        let is_hashed = options.task != Task::Full || options.verify != VerifyLevel::Off;
        prop_assert_eq!(result.root.is_some(), is_hashed);
        prop_assert_eq!(end.root, result.root);

        let again = run_session(&from, &to, SessionOptions { task: Task::Delta, ..options }, false);
        let (end, result) = again.source.unwrap();
        prop_assert_eq!((end.sent_bytes, result.written), (0, 0));
        let geometry = Geometry::new(source.len() as u64, options.block_size).unwrap();
        let hasher = Hasher::new(options.hash);
        let mut tree = TreeBuilder::new(&hasher, geometry);
        source.chunks(BLOCK).for_each(|block| tree.push(Leaf::Data(hasher.leaf(block)), 1));
        prop_assert_eq!(end.root, Some(tree.finish()));
    }
}

fn disk(blocks: usize) -> Vec<u8> {
    (0..blocks * BLOCK)
        .map(|at| u8::try_from(at / PAGE % 251).unwrap() | 1)
        .collect()
}

#[test]
fn one_dirty_page_costs_one_page() {
    let mut source = disk(32);
    let target = MemoryDisk::new(source.clone());
    source[17 * BLOCK + 3 * PAGE + 9] ^= 0xff;
    let (end, result) = run_session(&MemoryDisk::new(source), &target, delta(), false)
        .source
        .unwrap();
    assert_eq!(
        (end.sent_bytes, end.changed_bytes, end.differing_blocks),
        (PAGE as u64, PAGE as u64, 1)
    );
    assert_eq!(
        (result.written, result.verified),
        (PAGE as u64, PAGE as u64)
    );
}

#[test]
fn a_comparison_counts_and_changes_nothing() {
    let mut source = disk(8);
    let target = MemoryDisk::new(source.clone());
    source[BLOCK..2 * BLOCK].fill(0);
    source[5 * BLOCK] ^= 1;
    let options = SessionOptions {
        task: Task::Compare,
        ..delta()
    };
    let (end, result) = run_session(&MemoryDisk::new(source), &target, options, false)
        .source
        .unwrap();
    assert_eq!(
        (end.differing_blocks, end.sent_bytes, result.equal),
        (2, 0, false)
    );
    assert_eq!(target.content(), disk(8));
}

#[test]
fn a_new_target_is_not_written_where_the_source_is_zero() {
    let mut source = vec![0; 16 * BLOCK];
    source[4 * BLOCK + PAGE..4 * BLOCK + 2 * PAGE].fill(7);
    let target = MemoryDisk::new(vec![0; 16 * BLOCK]);
    let options = SessionOptions {
        task: Task::Full,
        ..delta()
    };
    let (_, result) = run_session(&MemoryDisk::new(source.clone()), &target, options, true)
        .source
        .unwrap();
    assert_eq!(result.written, PAGE as u64);
    assert_eq!(target.content(), source);
}

fn kinds_after(source: &Faulty, target: &Faulty) -> (ErrorKind, ErrorKind) {
    let ended = run_session(source, target, delta(), false);
    (
        ended.source.unwrap_err().kind(),
        ended.target.unwrap_err().kind(),
    )
}

fn sound(bytes: Vec<u8>) -> Faulty {
    Faulty::new(bytes, Fault::ReadError(u64::MAX))
}

#[test]
fn an_unreadable_source_fails_both_sides_as_io() {
    let source = Faulty::new(disk(64), Fault::ReadError(40 * BLOCK as u64));
    assert_eq!(
        kinds_after(&source, &sound(vec![1; 64 * BLOCK])),
        (ErrorKind::Io, ErrorKind::Io)
    );
}

#[test]
fn an_unreadable_target_fails_both_sides_as_io() {
    let target = Faulty::new(vec![1; 64 * BLOCK], Fault::ReadError(40 * BLOCK as u64));
    assert_eq!(
        kinds_after(&sound(disk(64)), &target),
        (ErrorKind::Io, ErrorKind::Io)
    );
}

#[test]
fn a_full_target_fails_both_sides_as_no_space() {
    let target = Faulty::new(vec![1; 64 * BLOCK], Fault::WriteFull(30 * BLOCK as u64));
    assert_eq!(
        kinds_after(&sound(disk(64)), &target),
        (ErrorKind::NoSpace, ErrorKind::NoSpace)
    );
}

#[test]
fn a_failed_flush_is_never_done() {
    let target = Faulty::new(vec![1; 4 * BLOCK], Fault::FlushError);
    assert_eq!(
        kinds_after(&sound(disk(4)), &target),
        (ErrorKind::Io, ErrorKind::Io)
    );
}

#[test]
fn a_medium_that_holds_something_else_is_found() {
    let target = Faulty::new(
        vec![1; 8 * BLOCK],
        Fault::ReadBackLies(5 * BLOCK as u64 + 77),
    );
    assert_eq!(
        kinds_after(&sound(disk(8)), &target),
        (ErrorKind::VerifyFailed, ErrorKind::VerifyFailed)
    );
}

// The block differs from its hash by the time it is patched: the patch gives a third block, which
// must not be written.
#[test]
fn a_block_that_changed_behind_our_back_is_sent_whole() {
    let mut source = disk(8);
    let target = Faulty::new(
        source.clone(),
        Fault::ChangesAfterRead(3 * BLOCK as u64 + 5 * PAGE as u64),
    );
    source[3 * BLOCK] ^= 0x40;
    // The second read (for the sums) sees the change; hide it by changing after the first read
    // only, and patch from old.
    let ended = run_session(&MemoryDisk::new(source.clone()), &target, delta(), false);
    assert!(ended.source.unwrap().1.equal);
    assert_eq!(target.disk.content(), source);
}

#[test]
fn cancelling_ends_both_sides() {
    let abort = Arc::new(Abort::new());
    abort.cancel();
    let started = std::time::Instant::now();
    let ended = run_aborting(
        &sound(disk(64)),
        &sound(vec![1; 64 * BLOCK]),
        delta(),
        false,
        &abort,
    );
    assert_eq!(ended.source.unwrap_err().kind(), ErrorKind::Cancelled);
    assert!(ended.target.is_err());
    assert!(
        started.elapsed().as_secs() < 2,
        "nobody waits for the other to hang up"
    );
}

// A zero run that waits for its end would hold back everything after it, past the ledger's limit.
#[test]
fn a_full_copy_of_one_zero_and_very_many_data_blocks() {
    let disk = Endless {
        blocks: 66_000,
        is_zero: |block| block == 0,
    };
    let options = SessionOptions {
        task: Task::Full,
        verify: VerifyLevel::Off,
        ..delta()
    };
    let (_, result) = run_session(&disk, &disk, options, false).source.unwrap();
    assert!(result.equal);
    assert_eq!(result.written, 65_999 * BLOCK as u64);
}

// Written zeros between data cost no more than data: the bound on the link holds for any content.
#[test]
fn alternating_zero_blocks_stay_cheap_on_the_link() {
    let disk = Endless {
        blocks: 4096,
        is_zero: |block| block % 2 == 0,
    };
    let options = SessionOptions {
        hash: HashKind::Xxh3,
        ..delta()
    };
    let ended = run_session(&disk, &disk, options, false);
    assert!(ended.source.unwrap().1.equal);
    let bytes_per_block = ended.wire_out as f64 / 4096.0;
    assert!(
        bytes_per_block < 18.0,
        "{bytes_per_block} bytes for each block"
    );
}

// A link that drops in the middle leaves an image that other readers can open: no log to replay.
#[test]
fn a_failed_session_leaves_a_vhdx_with_an_empty_log() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("target.vhdx");
    let new = NewDisk {
        format: Format::Vhdx,
        len: 1024 * BLOCK as u64,
        sector_size: 512,
        block_size: Some(1 << 20),
        is_fixed: false,
    };
    create(&path, &new).unwrap();
    let target = open_target(&path, &OpenOptions::default()).unwrap();
    // So late that the target has begun long before.
    let source = Faulty::new(disk(1024), Fault::ReadError(1000 * BLOCK as u64));
    assert!(
        run_session(&source, target.as_ref(), delta(), false)
            .target
            .is_err()
    );
    drop(target);
    let info = failback_engine::operation::info(&path, &OpenOptions::default(), None).unwrap();
    let vhdx = info.vhdx.unwrap();
    assert!(
        vhdx.blocks_allocated > 0,
        "something was written before the fault"
    );
    assert_eq!(vhdx.log, "empty");
}
