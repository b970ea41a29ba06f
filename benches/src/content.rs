//! Bytes like those on a virtual machine's disk. One seed, one content, on every machine.

use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};

/// The seed of all suites: results of two machines are about the same bytes.
pub const SAMPLE_SEED: u64 = 0xfa11_bac4;

/// What a piece of a disk holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Words and line ends; compresses well.
    Text,
    /// Media, archives; compresses not at all.
    Random,
    /// Nothing but zeros.
    Zero,
    /// Zeros, with one short record in every fourth page: tables that are half empty.
    Sparse,
}

/// Kinds of content a disk is made of, in the shares of a used system disk: a third of it is empty.
const MIX: [Content; 12] = [
    Content::Text,
    Content::Text,
    Content::Text,
    Content::Text,
    Content::Random,
    Content::Random,
    Content::Random,
    Content::Sparse,
    Content::Zero,
    Content::Zero,
    Content::Zero,
    Content::Zero,
];

/// Bytes of one kind in a row. Not a block size: blocks of 1 MiB hold one kind, of 4 MiB several.
const EXTENT_LEN: usize = 2 << 20;
const PAGE_LEN: usize = 4 << 10;

/// `len` bytes of a disk that holds all kinds of content, the same for the same seed.
#[must_use]
pub fn disk(len: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let mut random = SmallRng::seed_from_u64(seed);
    for extent in bytes.chunks_mut(EXTENT_LEN) {
        let content = MIX[random.random_range(0..MIX.len())];
        fill(extent, content, random.next_u64());
    }
    bytes
}

/// Fills `bytes`, which hold zeros.
pub fn fill(bytes: &mut [u8], content: Content, seed: u64) {
    let mut random = SmallRng::seed_from_u64(seed);
    match content {
        Content::Zero => {}
        Content::Random => random.fill_bytes(bytes),
        Content::Text => fill_text(bytes, &mut random),
        Content::Sparse => {
            for page in bytes.chunks_mut(PAGE_LEN).step_by(4) {
                let len = page.len().min(200);
                random.fill_bytes(&mut page[..len]);
            }
        }
    }
}

/// Gives new bytes to `share` (0 to 1) of the 64 KiB blocks of `bytes`, one page of 4 KiB in each.
/// Returns how many pages.
pub fn change_pages(bytes: &mut [u8], share: f64, seed: u64) -> usize {
    const BLOCK_LEN: usize = 64 << 10;
    let mut random = SmallRng::seed_from_u64(seed);
    let mut count = 0;
    for block in bytes.chunks_exact_mut(BLOCK_LEN) {
        if random.random_bool(share) {
            let at = random.random_range(0..BLOCK_LEN / PAGE_LEN) * PAGE_LEN;
            random.fill_bytes(&mut block[at..at + PAGE_LEN]);
            count += 1;
        }
    }
    count
}

fn fill_text(bytes: &mut [u8], random: &mut SmallRng) {
    let mut at = 0;
    while at < bytes.len() {
        // The smaller of two: low numbers are common, as a few words are in every language and log.
        let rank = random
            .random_range(0..WORDS.len())
            .min(random.random_range(0..WORDS.len()));
        let end = if random.random_ratio(1, 12) {
            b'\n'
        } else {
            b' '
        };
        for byte in WORDS[rank].bytes().chain([end]) {
            // The last word may be cut.
            if let Some(place) = bytes.get_mut(at) {
                *place = byte;
            }
            at += 1;
        }
    }
}

const WORDS: [&str; 24] = [
    "the",
    "of",
    "to",
    "on",
    "is",
    "not",
    "disk",
    "host",
    "read",
    "block",
    "error",
    "kernel",
    "daemon",
    "started",
    "session",
    "network",
    "mounted",
    "replica",
    "snapshot",
    "received",
    "0x00000000",
    "2024-01-17",
    "/var/lib/data",
    "systemd[1]:",
];

#[cfg(test)]
mod tests {
    use super::*;

    // Goal: two runs measure the same bytes. Method: make a disk twice, and once from another seed.
    #[test]
    fn seed_decides_the_content() {
        let made = disk(5 << 20, 1);
        assert_eq!(made, disk(5 << 20, 1));
        assert_ne!(made, disk(5 << 20, 2));
    }

    // Goal: the share of changed blocks is what was asked for. Method: count blocks that differ.
    #[test]
    fn pages_change_in_the_share_asked_for() {
        let old = disk(64 << 20, 1);
        let mut new = old.clone();
        let count = change_pages(&mut new, 0.1, 2);
        let blocks = old.chunks(64 << 10).zip(new.chunks(64 << 10));
        assert_eq!(blocks.filter(|(a, b)| a != b).count(), count);
        assert!((60..150).contains(&count), "{count} of 1024 blocks");
    }
}
