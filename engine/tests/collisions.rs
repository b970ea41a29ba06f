//! Goal: blocks that XXH3 cannot tell apart are told apart by default, and where XXH3 was asked
//! for, that is its known price. Method: pairs made by the structure of XXH3 (docs/decisions/0001),
//! at every size, as leaf and as sub-block, through whole sessions.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test states its expectations by it; bytes of a pattern"
)]

mod kit;

use failback_engine::disk::MemoryDisk;
use failback_engine::hash::{HashKind, Hasher};
use failback_engine::sync::SessionOptions;
use kit::{BLOCK, delta, run_session};
use xxhash_rust::xxh3::{xxh3_64_with_seed, xxh3_128_with_seed};

/// Words 0 and 2 of the default secret of XXH3 (its specification, "default secret").
const SECRET: [[u8; 8]; 2] = [
    [0xb8, 0xfe, 0x6c, 0x39, 0x23, 0xa4, 0x4b, 0xbe],
    [0xde, 0xd4, 0x6d, 0xe9, 0x83, 0x90, 0x97, 0xdb],
];
/// Bytes that XXH3 takes in one step.
const STRIPE: usize = 64;

/// Two different inputs of one sum. A word whose low half is that of the key adds nothing by its
/// product, and its value to a neighbour's sum: what one stripe gains another may lose.
fn pair(len: usize, seed: u64, salt: u8) -> (Vec<u8>, Vec<u8>) {
    let filler = (0..len).map(|at| (at % 251) as u8 ^ salt);
    let (mut a, mut b): (Vec<u8>, Vec<u8>) = filler.map(|byte| (byte, byte)).unzip();
    let highs = [
        (0, 0x1111_2222_u32, 7_u32),
        (2, 0x3333_4444, 7_u32.wrapping_neg()),
    ];
    for ((stripe, high, shift), key) in highs.into_iter().zip(SECRET) {
        let key = u64::from_le_bytes(key).wrapping_add(seed);
        for (block, high) in [(&mut a, high), (&mut b, high.wrapping_add(shift))] {
            let word = key & 0xffff_ffff | u64::from(high) << 32;
            block[stripe * STRIPE..][..8].copy_from_slice(&word.to_le_bytes());
        }
    }
    assert_ne!(a, b);
    (a, b)
}

/// The seed that leaves are hashed with: the first 8 bytes of the BLAKE3 hash of their context.
fn leaf_seed() -> u64 {
    let hash = blake3::hash(b"failback leaf 1");
    u64::from_le_bytes(hash.as_bytes()[..8].try_into().unwrap())
}

#[test]
fn pairs_collide_at_every_size_and_blake3_tells_them_apart() {
    let (fast, strong) = (Hasher::new(HashKind::Xxh3), Hasher::new(HashKind::Blake3));
    for len in [4 << 10, 64 << 10, 1 << 20, 2 << 20] {
        let (a, b) = pair(len, leaf_seed(), 3);
        assert_eq!(fast.leaf(&a), fast.leaf(&b), "{len}");
        assert_ne!(strong.leaf(&a), strong.leaf(&b), "{len}");
        let (a, b) = pair(len, 99, 4);
        assert_eq!(xxh3_64_with_seed(&a, 99), xxh3_64_with_seed(&b, 99));
        assert_eq!(xxh3_128_with_seed(&a, 99), xxh3_128_with_seed(&b, 99));
    }
}

/// A disk of several pairs: what the target has, and what the source has.
fn disks(seed: u64, pair_len: usize) -> (Vec<u8>, Vec<u8>) {
    let (mut target, mut source) = (Vec::new(), Vec::new());
    for salt in 0..4 {
        let (mut a, mut b) = pair(pair_len, seed, salt);
        a.resize(BLOCK, salt);
        b.resize(BLOCK, salt);
        target.extend(a);
        source.extend(b);
    }
    (target, source)
}

#[test]
fn by_default_no_such_block_is_missed() {
    let (old, new) = disks(leaf_seed(), BLOCK);
    let (source, target) = (MemoryDisk::new(new.clone()), MemoryDisk::new(old));
    let options = SessionOptions {
        hash: HashKind::Blake3,
        ..delta()
    };
    let ended = run_session(&source, &target, options, false);
    assert!(ended.target.unwrap().1.equal);
    assert_eq!(target.content(), new);
}

#[test]
fn xxh3_misses_them_as_its_report_says() {
    let (old, new) = disks(leaf_seed(), BLOCK);
    let (source, target) = (MemoryDisk::new(new), MemoryDisk::new(old.clone()));
    let options = SessionOptions {
        hash: HashKind::Xxh3,
        ..delta()
    };
    let ended = run_session(&source, &target, options, false);
    assert_eq!(ended.source.unwrap().0.differing_blocks, 0);
    assert_eq!(target.content(), old);
}

// Goal: a collision of sub-block sums costs a resend and nothing else. Method: pairs made with the
// session's own seed, which nobody can know before it.
#[test]
fn colliding_sub_blocks_are_sent_whole() {
    let options = SessionOptions {
        hash: HashKind::Blake3,
        sub_hash_seed: 4711,
        ..delta()
    };
    let (old, new) = disks(4711, 4096);
    let (source, target) = (MemoryDisk::new(new.clone()), MemoryDisk::new(old));
    let ended = run_session(&source, &target, options, false);
    assert!(ended.target.unwrap().1.equal);
    assert_eq!(target.content(), new);
}
