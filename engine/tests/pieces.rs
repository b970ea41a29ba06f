//! Goal: of blocks of many pieces only pages that differ travel, and only pieces that may differ
//! are read again. Method: random changes in blocks of every size, both roles over the loopback;
//! the pages that differ are counted by comparing the two disks.
#![allow(clippy::unwrap_used, reason = "a test states its expectations by it")]

mod kit;

use failback_engine::disk::MemoryDisk;
use failback_engine::hash::{HashKind, PIECE_LEN};
use failback_engine::sync::SessionOptions;
use failback_engine::units::BlockSize;
use kit::{Fault, Faulty, PAGE, delta, run_session};
use proptest::prelude::*;

/// A change: where, how many pages, and whether they become zero.
type Change = (usize, usize, bool);

fn changed(old: &[u8], changes: &[Change]) -> Vec<u8> {
    let mut new = old.to_vec();
    for &(at, pages, is_zero) in changes {
        let start = at % old.len() / PAGE * PAGE;
        let end = (start + pages * PAGE).min(old.len());
        for byte in &mut new[start..end] {
            *byte = if is_zero { 0 } else { byte.wrapping_add(1) };
        }
    }
    new
}

fn differing_pages(old: &[u8], new: &[u8]) -> Vec<usize> {
    let pages = old.chunks(PAGE).zip(new.chunks(PAGE)).enumerate();
    pages
        .filter(|(_, (old, new))| old != new)
        .map(|(page, _)| page)
        .collect()
}

fn options(block_size: usize, hash: HashKind) -> SessionOptions {
    SessionOptions {
        hash,
        block_size: BlockSize::new(block_size as u64).unwrap(),
        ..delta()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn only_pages_that_differ_travel(
        block_size in prop::sample::select(vec![64 << 10, 128 << 10, 256 << 10, 1 << 20]),
        hash in prop::sample::select(vec![HashKind::Blake3, HashKind::Xxh3]),
        len in 1_usize..3 << 20,
        changes in prop::collection::vec((any::<usize>(), 1_usize..40, any::<bool>()), 0..12),
    ) {
        let old: Vec<u8> = (0..len).map(|at| u8::try_from(at % 250).unwrap() + 1).collect();
        let new = changed(&old, &changes);
        let pages = differing_pages(&old, &new);
        let page_len = |page: &usize| (len - page * PAGE).min(PAGE) as u64;
        let is_zero = |page: &usize| new[page * PAGE..].iter().take(PAGE).all(|byte| *byte == 0);
        let (source, target) = (MemoryDisk::new(new.clone()), MemoryDisk::new(old));

        let ended = run_session(&source, &target, options(block_size, hash), false);

        let (end, result) = ended.target.unwrap();
        prop_assert!(result.equal);
        prop_assert_eq!(target.content(), new.clone());
        let whole_zeros = end.zeroed_blocks > 0;
        prop_assert!(end.changed_bytes >= pages.iter().map(page_len).sum::<u64>());
        if !whole_zeros {
            prop_assert_eq!(end.changed_bytes, pages.iter().map(page_len).sum::<u64>());
            let data = pages.iter().filter(|page| !is_zero(page));
            prop_assert_eq!(end.sent_bytes, data.map(page_len).sum::<u64>());
        }
    }
}

// Goal: one page costs the second read of one piece on each side, not of a block. Method: one page
// of each of 16 blocks differs; bytes read beyond one pass over each disk are counted.
#[test]
fn a_page_costs_a_piece() {
    const BLOCK: usize = 1 << 20;
    for hash in [HashKind::Blake3, HashKind::Xxh3] {
        let old = vec![3; 16 * BLOCK];
        let changes: Vec<Change> = (0..16)
            .map(|block| (block * BLOCK + block * PIECE_LEN, 1, false))
            .collect();
        let new = changed(&old, &changes);
        let (source, target) = (MemoryDisk::new(new.clone()), MemoryDisk::new(old));

        let ended = run_session(&source, &target, options(BLOCK, hash), false);

        let (end, result) = ended.target.unwrap();
        assert_eq!(target.content(), new);
        let twice = (16 * BLOCK + 16 * PIECE_LEN) as u64;
        assert_eq!((end.source_read, result.target_read), (twice, twice));
        assert_eq!((end.sent_bytes, result.written), (16 * 4096, 16 * 4096));
    }
}

// Goal: a piece of the target that is no longer what was hashed is not taken for it. Method: it
// changes once it was read, in the very piece that is patched; and in another one, which the proof
// of the whole disk has to find.
#[test]
fn a_target_that_changes_meanwhile_is_found_out() {
    const BLOCK: usize = 1 << 20;
    for changed_at in [PIECE_LEN + 9000, 9 * PIECE_LEN] {
        let old = vec![3; BLOCK];
        let new = changed(&old, &[(PIECE_LEN, 1, false)]);
        let source = MemoryDisk::new(new.clone());
        let target = Faulty::new(old, Fault::ChangesAfterRead(changed_at as u64));
        let options = SessionOptions {
            verify: failback_engine::transport::VerifyLevel::Full,
            ..options(BLOCK, HashKind::Blake3)
        };

        let ended = run_session(&source, &target, options, false);

        let is_equal = ended.target.is_ok_and(|(_, result)| result.equal);
        assert_eq!(is_equal, target.disk.content() == new, "{changed_at}");
    }
}
