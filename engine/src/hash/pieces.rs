//! The pieces of a block: what two sides know of a differing block before they look at it again.
//!
//! ```text
//! block   |  piece 0  |  piece 1  |  piece 2  |  short  |       64 KiB each
//! digests      d0          d1          d2          d3           made on the way to the leaf
//! leaf    = merge(d0, d1, d2, d3)
//! ```
//! A digest of every piece comes with the leaf, at no cost: BLAKE3 is a tree whose subtree of 64
//! chunks is a piece (its chaining value; BLAKE3 paper, 2.1 and 5.1.2), and XXH3 leaves are defined
//! over the sums of pieces. So only pieces whose digests differ are read again, and a block that is
//! patched in one piece gets its new leaf by hashing that piece alone.

use std::ops::Range;

use bytes::Bytes;
use failback_transport::{PIECE_COUNT_MAX, PIECE_ID_LEN};

use super::Digest;
use crate::units::SUB_BLOCK_LEN;

/// Bytes of a piece.
pub const PIECE_LEN: usize = failback_transport::PIECE_LEN as usize;

/// Pieces of a block of `block_len` bytes.
pub(super) fn piece_count(block_len: usize) -> usize {
    block_len.div_ceil(PIECE_LEN)
}

/// Digests of all pieces of one block. Of a block of one piece it is the leaf itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pieces(pub(super) Box<[Digest]>);

impl Pieces {
    /// How they are named to the peer: the first 8 bytes of each. What only looks equal by these is
    /// found out by the digest of the patched block, and costs a resend.
    #[must_use]
    pub fn ids(&self) -> Bytes {
        self.0.iter().flat_map(id_of).collect()
    }

    /// The pieces that differ from those with the names `theirs`; all of them where the names do
    /// not tell.
    #[must_use]
    pub fn differing(&self, theirs: &[u8]) -> PieceSet {
        let all = PieceSet::first(self.0.len());
        let names = theirs.chunks_exact(PIECE_ID_LEN as usize);
        if names.len() != self.0.len() {
            return all;
        }
        let mut set = PieceSet(0);
        for (index, (mine, theirs)) in self.0.iter().zip(names).enumerate() {
            if id_of(mine) != *theirs {
                set.0 |= 1 << index;
            }
        }
        if set.0 == 0 { all } else { set }
    }

    /// Says that a piece has another digest now.
    pub fn set(&mut self, index: usize, digest: Digest) {
        self.0[index] = digest;
    }
}

fn id_of(digest: &Digest) -> [u8; PIECE_ID_LEN as usize] {
    let mut id = [0; PIECE_ID_LEN as usize];
    id.copy_from_slice(&digest.as_bytes()[..PIECE_ID_LEN as usize]);
    id
}

/// Some of the pieces of one block, never none. Their bytes stand one after the other in a buffer
/// that holds only them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PieceSet(u64);

const _: () = assert!(PIECE_COUNT_MAX == u64::BITS);

impl PieceSet {
    fn first(count: usize) -> Self {
        Self(u64::MAX >> (PIECE_COUNT_MAX as usize - count.clamp(1, PIECE_COUNT_MAX as usize)))
    }

    /// All pieces of a block of `block_len` bytes.
    #[must_use]
    pub fn all(block_len: usize) -> Self {
        Self::first(piece_count(block_len))
    }

    /// The pieces whose bits are set; `None` for none, and for one that such a block does not have.
    #[must_use]
    pub fn from_bits(bits: u64, block_len: usize) -> Option<Self> {
        let is_within = bits & !Self::all(block_len).0 == 0;
        (bits != 0 && is_within).then_some(Self(bits))
    }

    /// One bit for each piece, the first is the lowest.
    #[must_use]
    pub fn bits(self) -> u64 {
        self.0
    }

    /// How many.
    #[must_use]
    pub fn count(self) -> usize {
        self.0.count_ones() as usize
    }

    /// Their numbers, ascending.
    pub fn indices(self) -> impl Iterator<Item = usize> {
        (0..PIECE_COUNT_MAX as usize).filter(move |index| self.0 >> index & 1 == 1)
    }

    /// Where each is in a block of `block_len` bytes, neighbours joined.
    #[must_use]
    pub fn ranges(self, block_len: usize) -> Vec<Range<usize>> {
        let mut ranges: Vec<Range<usize>> = Vec::new();
        for index in self.indices() {
            let start = index * PIECE_LEN;
            let end = (start + PIECE_LEN).min(block_len);
            match ranges.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ => ranges.push(start..end),
            }
        }
        ranges
    }

    /// Bytes of all of them, in a block of `block_len` bytes.
    #[must_use]
    pub fn len(self, block_len: usize) -> usize {
        self.ranges(block_len).iter().map(Range::len).sum()
    }

    /// Their sub-blocks in a block of `block_len` bytes, ascending.
    pub fn sub_blocks(self, block_len: usize) -> impl Iterator<Item = usize> {
        let ranges = self.ranges(block_len).into_iter();
        ranges.flat_map(|range| range.start / SUB_BLOCK_LEN..range.end.div_ceil(SUB_BLOCK_LEN))
    }

    /// Where a range of the block is in a buffer that holds these pieces alone; `None` when not all
    /// of it is there.
    #[must_use]
    pub fn place_of(self, range: &Range<usize>) -> Option<Range<usize>> {
        if range.is_empty() || range.end > PIECE_COUNT_MAX as usize * PIECE_LEN {
            return None;
        }
        let (first, last) = (range.start / PIECE_LEN, (range.end - 1) / PIECE_LEN);
        let wanted = Self::first(last + 1).0 >> first << first;
        if self.0 & wanted != wanted {
            return None;
        }
        let before = (self.0 & !(u64::MAX << first)).count_ones() as usize;
        let start = before * PIECE_LEN + range.start % PIECE_LEN;
        Some(start..start + range.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Goal: a buffer of some pieces is addressed right. Method: pieces 1, 2 and the short last one
    // of a block, against a block laid out whole.
    #[test]
    fn places_in_a_buffer_of_some_pieces() {
        let block_len = 4 * PIECE_LEN + 5000;
        let set = PieceSet::from_bits(0b10110, block_len).unwrap();
        let block: Vec<usize> = (0..block_len).collect();
        let ranges = set.ranges(block_len);
        assert_eq!(ranges, [PIECE_LEN..3 * PIECE_LEN, 4 * PIECE_LEN..block_len]);
        let buffer: Vec<usize> = ranges
            .iter()
            .flat_map(|r| block[r.clone()].to_vec())
            .collect();
        assert_eq!(buffer.len(), set.len(block_len));
        for range in [
            PIECE_LEN..PIECE_LEN + 1,
            2 * PIECE_LEN - 10..2 * PIECE_LEN + 10,
            3 * PIECE_LEN - 1..3 * PIECE_LEN,
            4 * PIECE_LEN + 4096..block_len,
        ] {
            let place = set.place_of(&range).unwrap();
            assert_eq!(buffer[place], block[range]);
        }
        assert_eq!(set.place_of(&(0..1)), None);
        assert_eq!(set.place_of(&(3 * PIECE_LEN - 1..3 * PIECE_LEN + 1)), None);
        assert_eq!(set.sub_blocks(block_len).last(), Some(4 * 16 + 1));
        assert_eq!(set.sub_blocks(block_len).count(), 2 * 16 + 2);
        assert_eq!(PieceSet::all(1).bits(), 1);
        assert_eq!(PieceSet::all(64 * PIECE_LEN).bits(), u64::MAX);
        assert_eq!(PieceSet::from_bits(0, block_len), None);
        assert_eq!(PieceSet::from_bits(1 << 5, block_len), None);
    }
}
