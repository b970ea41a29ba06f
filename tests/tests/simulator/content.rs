//! What disks hold.

use std::sync::Arc;

use failback_engine::hash::{HashKind, Hasher, is_zero};
use failback_engine::schedule::Dice;
use failback_engine::tree::{Leaf, TreeBuilder};
use failback_engine::units::{BlockSize, Geometry};

/// Blocks of the map: small, so that small disks have many.
pub(crate) const BLOCK: usize = 64 << 10;
const PAGE: usize = 4096;

/// A disk's bytes.
pub(crate) type Content = Arc<Vec<u8>>;

/// Bytes that look like nothing else.
pub(crate) fn noise(dice: &mut Dice, bytes: &mut [u8]) {
    for piece in bytes.chunks_mut(8) {
        let number = dice.next_u64().to_le_bytes();
        piece.copy_from_slice(&number[..piece.len()]);
    }
}

/// The same disk with some places changed.
pub(crate) fn changed(dice: &mut Dice, content: &Content) -> Content {
    let mut bytes = content.to_vec();
    for _ in 0..1 + dice.below(8) {
        change(dice, &mut bytes);
    }
    Arc::new(bytes)
}

/// One place: whole blocks, a part of one, a few pages; noise, zeros, one byte, or a copy.
fn change(dice: &mut Dice, bytes: &mut [u8]) {
    let (start, len) = match dice.below(4) {
        0 => (dice.index(bytes.len()) / BLOCK * BLOCK, BLOCK),
        1 => {
            let start = dice.index(bytes.len()) / BLOCK * BLOCK;
            (start, BLOCK * (1 + dice.index(4)))
        }
        2 => {
            let start = dice.index(bytes.len()) / PAGE * PAGE;
            (start, PAGE * (1 + dice.index(3)))
        }
        _ => (dice.index(bytes.len()), 1 + dice.index(9000)),
    };
    let end = (start + len).min(bytes.len());
    match dice.below(5) {
        0 => bytes[start..end].fill(0),
        1 => bytes[start] ^= 1 << dice.below(8),
        2 => {
            let from = dice.index(bytes.len() - (end - start) + 1);
            bytes.copy_within(from..from + (end - start), start);
        }
        _ => noise(dice, &mut bytes[start..end]),
    }
}

/// What a disk may have become: each block is that of one of these.
#[derive(Clone, Debug)]
pub(crate) struct Goal(pub(crate) Vec<Content>);

impl Goal {
    /// Whether `seen` is it.
    pub(crate) fn admits(&self, seen: &[u8]) -> bool {
        let is_whole = self.0.iter().any(|content| content.as_slice() == seen);
        is_whole || self.0.len() > 1 && is_made_of(seen, &self.0, BLOCK)
    }
}

/// Whether each piece of so many bytes is that of one of `contents`.
pub(crate) fn is_made_of(seen: &[u8], contents: &[Content], len: usize) -> bool {
    let mut pieces = (0..).map(|n| n * len).zip(seen.chunks(len));
    pieces.all(|(at, piece)| {
        let mut contents = contents.iter();
        contents.any(|content| content.get(at..at + piece.len()) == Some(piece))
    })
}

/// The first byte that differs.
pub(crate) fn first_difference(seen: &[u8], expected: &[u8]) -> Option<usize> {
    seen.iter().zip(expected).position(|(a, b)| a != b)
}

/// The root over a disk of that content, counted anew.
pub(crate) fn root_of(content: &[u8], hash: HashKind) -> String {
    let block_size = BlockSize::new(BLOCK as u64).expect("a block size");
    let geometry = Geometry::new(content.len() as u64, block_size).expect("a small disk");
    let hasher = Hasher::new(hash);
    let mut tree = TreeBuilder::new(&hasher, geometry);
    for block in content.chunks(BLOCK) {
        match is_zero(block) {
            true => tree.push(Leaf::Zero, 1),
            false => tree.push(Leaf::Data(hasher.leaf(block)), 1),
        }
    }
    tree.finish().to_string()
}
