//! The Merkle tree over the leaves of a disk, built in one pass with a few digests of memory.
//!
//! Source: the tree of RFC 6962 without its prefixes (domains come from the hash, see
//! [`crate::hash`]): neighbours are joined level by level, an odd one moves up. That shape equals a
//! binary counter of perfect subtrees:
//!
//! ```text
//! push(leaf):      put it on a stack; while the top two are of equal height: join them
//! push_zeros(n):   append the largest perfect zero subtree that fits and is aligned; repeat
//! finish():        join the stack from the right
//! ```
//! Departure: a run of zero blocks is appended as perfect zero subtrees from a table of one digest
//! a level, so that 2^26 absent blocks cost some dozens of hashes. The short last block of a disk
//! is never part of such a run unless its own leaf is given, because a short zero block has another
//! digest than a full one.

use crate::hash::{Digest, Hasher};
use crate::units::{BlockIndex, Geometry};

/// Levels above the leaves of the largest disk in the smallest blocks (2^30), and one to spare.
const LEVEL_MAX: usize = 31;

/// What a block holds, as far as the tree is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaf {
    /// Only zeros.
    Zero,
    /// Anything else, by its digest.
    Data(Digest),
}

/// Place of a node: its level, 0 for leaves, and its index in that level from the left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// Levels above the leaves.
    pub level: u32,
    /// Nodes of this level to the left.
    pub index: u64,
}

/// How many nodes each level has, and what those over zero blocks alone are: what both ends of a
/// comparison know without a word.
#[derive(Clone, Debug)]
pub struct Shape {
    block_count: u64,
    /// Digest of a perfect subtree of full zero blocks, by height.
    zeros: Vec<Digest>,
    /// Digest of the last node of a level when it is over zero blocks alone, by level: the short
    /// last block is below it.
    last_zeros: Vec<Digest>,
}

impl Shape {
    /// The shape of the tree over a disk.
    #[must_use]
    pub fn new(hasher: &Hasher, geometry: &Geometry) -> Self {
        let zero_block = vec![0; geometry.block_size().len()];
        let mut zeros = vec![hasher.leaf(&zero_block)];
        while zeros.len() <= LEVEL_MAX {
            let below = zeros[zeros.len() - 1];
            zeros.push(hasher.node(&below, &below));
        }
        let block_count = geometry.block_count().0;
        let last = BlockIndex(block_count.saturating_sub(1));
        let mut last_zeros = vec![hasher.leaf(&zero_block[..geometry.block_len(last)])];
        let mut count = block_count;
        while count > 1 {
            let level = last_zeros.len() - 1;
            last_zeros.push(match count.is_multiple_of(2) {
                true => hasher.node(&zeros[level], &last_zeros[level]),
                false => last_zeros[level],
            });
            count = count.div_ceil(2);
        }
        Self {
            block_count,
            zeros,
            last_zeros,
        }
    }

    /// Levels, the leaves included; 0 for a disk without blocks.
    #[must_use]
    pub fn level_count(&self) -> u32 {
        match self.block_count {
            0 => 0,
            _ => u32::try_from(self.last_zeros.len()).expect("at most 31"),
        }
    }

    /// Nodes of a level.
    #[must_use]
    pub fn width(&self, level: u32) -> u64 {
        match level < self.level_count() {
            true => self.block_count.div_ceil(1 << level),
            false => 0,
        }
    }

    /// The node over all blocks; `None` for a disk without any.
    #[must_use]
    pub fn top(&self) -> Option<Place> {
        let level = self.level_count().checked_sub(1)?;
        Some(Place { level, index: 0 })
    }

    /// The two nodes below, the second of which may not be there. The node must be above the
    /// leaves.
    #[must_use]
    pub fn children(&self, place: Place) -> (Place, Option<Place>) {
        let level = place.level - 1;
        let index = place.index * 2;
        let right = Place {
            level,
            index: index + 1,
        };
        (
            Place { level, index },
            (right.index < self.width(level)).then_some(right),
        )
    }

    /// The blocks below a node.
    #[must_use]
    pub fn blocks(&self, place: Place) -> std::ops::Range<u64> {
        let first = place.index << place.level;
        first..(first + (1 << place.level)).min(self.block_count)
    }

    /// The digest of that node when all blocks below it hold zeros.
    #[must_use]
    pub fn zero(&self, place: Place) -> Digest {
        match place.index + 1 == self.width(place.level) {
            true => self.last_zeros[place.level as usize],
            false => self.zeros[place.level as usize],
        }
    }
}

/// Builds the root from leaves given in order.
#[derive(Debug)]
pub struct TreeBuilder {
    hasher: Hasher,
    geometry: Geometry,
    /// Perfect subtrees from left to right, strictly falling heights.
    stack: Vec<(u32, Digest)>,
    shape: Shape,
    next: u64,
}

/// Is told each node that is not over zero blocks alone, as soon as it is known.
type OnNode<'a> = &'a mut dyn FnMut(Place, &Digest);

impl TreeBuilder {
    /// An empty tree for a disk.
    #[must_use]
    pub fn new(hasher: &Hasher, geometry: Geometry) -> Self {
        Self {
            hasher: hasher.clone(),
            geometry,
            stack: Vec::new(),
            shape: Shape::new(hasher, &geometry),
            next: 0,
        }
    }

    /// The shape of the tree.
    #[must_use]
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// The block that the next push is about.
    #[must_use]
    pub fn next(&self) -> BlockIndex {
        BlockIndex(self.next)
    }

    /// Appends `count` blocks of one kind of content. `count` is 1 for data.
    ///
    /// # Panics
    /// When more blocks are pushed than the disk has; callers check indices that come from outside.
    pub fn push(&mut self, leaf: Leaf, count: u64) {
        self.push_noting(leaf, count, &mut |_, _| {});
    }

    /// As [`TreeBuilder::push`]; `on_node` is told each node that is complete then, the leaf
    /// included, unless it is over zero blocks alone.
    ///
    /// # Panics
    /// As [`TreeBuilder::push`].
    pub fn push_noting(&mut self, leaf: Leaf, count: u64, on_node: OnNode<'_>) {
        let total = self.geometry.block_count().0;
        let end = self
            .next
            .checked_add(count)
            .expect("block numbers stay below 2^31");
        assert!(
            end <= total,
            "leaf {end} is past the last of {total} blocks"
        );
        match leaf {
            Leaf::Data(digest) => {
                assert!(count == 1, "a digest stands for one block");
                self.append(0, digest, on_node);
            }
            Leaf::Zero => self.append_zeros(count, on_node),
        }
    }

    /// The root.
    ///
    /// # Panics
    /// When leaves are missing: a root over less than the disk proves nothing.
    #[must_use]
    pub fn finish(&self) -> Digest {
        self.finish_noting(&mut |_, _| {})
    }

    /// As [`TreeBuilder::finish`]; `on_node` is told the nodes that were not complete before.
    ///
    /// # Panics
    /// As [`TreeBuilder::finish`].
    #[must_use]
    pub fn finish_noting(&self, on_node: OnNode<'_>) -> Digest {
        assert_eq!(
            self.next,
            self.geometry.block_count().0,
            "every block has its leaf"
        );
        let mut nodes = self.stack.iter().rev();
        let top = nodes.next().map(|&(height, digest)| {
            let mut right = (height, digest);
            for &(height, left) in nodes {
                // An odd one moves up unchanged: it is the last node of each level on the way.
                for level in right.0 + 1..=height {
                    self.note(level, &right.1, on_node);
                }
                right = (height + 1, self.hasher.node(&left, &right.1));
                self.note(height + 1, &right.1, on_node);
            }
            right.1
        });
        self.hasher.root(&self.geometry, top.as_ref())
    }

    /// Tells the last node of a level.
    fn note(&self, level: u32, digest: &Digest, on_node: OnNode<'_>) {
        let index = self.shape.width(level) - 1;
        let place = Place { level, index };
        if *digest != self.shape.zero(place) {
            on_node(place, digest);
        }
    }

    fn append_zeros(&mut self, count: u64, on_node: OnNode<'_>) {
        let end = self.next + count;
        let is_short = |block: u64| {
            self.geometry.block_len(BlockIndex(block)) < self.geometry.block_size().len()
        };
        let full_end = if count > 0 && is_short(end - 1) {
            end - 1
        } else {
            end
        };
        while self.next < full_end {
            let height = self
                .next
                .trailing_zeros()
                .min((full_end - self.next).ilog2());
            let height = height.min(u32::try_from(LEVEL_MAX).expect("31 fits"));
            self.append(height, self.shape.zeros[height as usize], on_node);
        }
        if full_end < end {
            self.append(0, self.shape.last_zeros[0], on_node);
        }
    }

    fn append(&mut self, mut height: u32, mut digest: Digest, on_node: OnNode<'_>) {
        let first = self.next;
        self.next += 1 << height;
        let mut tell = |height: u32, digest: &Digest| {
            let place = Place {
                level: height,
                index: first >> height,
            };
            if *digest != self.shape.zero(place) {
                on_node(place, digest);
            }
        };
        tell(height, &digest);
        while let Some(&(left_height, left)) = self.stack.last() {
            if left_height != height {
                break;
            }
            self.stack.pop();
            digest = self.hasher.node(&left, &digest);
            height += 1;
            tell(height, &digest);
        }
        self.stack.push((height, digest));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::hash::HashKind;
    use crate::units::BlockSize;

    /// The definition, level by level, nothing clever.
    fn naive_root(hasher: &Hasher, geometry: &Geometry, disk: &[u8]) -> Digest {
        let mut level: Vec<Digest> = disk
            .chunks(geometry.block_size().len())
            .map(|block| hasher.leaf(block))
            .collect();
        while level.len() > 1 {
            level = level
                .chunks(2)
                .map(|pair| {
                    pair.get(1)
                        .map_or(pair[0], |right| hasher.node(&pair[0], right))
                })
                .collect();
        }
        hasher.root(geometry, level.first())
    }

    fn streamed_root(hasher: &Hasher, geometry: Geometry, disk: &[u8], join_zeros: bool) -> Digest {
        let mut tree = TreeBuilder::new(hasher, geometry);
        let mut zeros = 0;
        for block in disk.chunks(geometry.block_size().len()) {
            if join_zeros && crate::hash::is_zero(block) {
                zeros += 1;
                continue;
            }
            tree.push(Leaf::Zero, zeros);
            zeros = 0;
            tree.push(Leaf::Data(hasher.leaf(block)), 1);
        }
        tree.push(Leaf::Zero, zeros);
        tree.finish()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        // Goal: the one-pass tree is the tree of the definition. Method: random patterns of zero
        // and data blocks, a short tail, both kinds.
        #[test]
        fn matches_naive(
            pattern in prop::collection::vec(any::<Option<u8>>(), 0..24),
            tail in 0usize..3,
        ) {
            let block = BlockSize::new(64 << 10).unwrap();
            let mut disk: Vec<u8> = Vec::new();
            for fill in pattern {
                disk.extend(std::iter::repeat_n(fill.unwrap_or(0), block.len()));
            }
            disk.extend(std::iter::repeat_n(0, tail * 512));
            let geometry = Geometry::new(disk.len() as u64, block).unwrap();
            for kind in [HashKind::Blake3, HashKind::Xxh3] {
                let hasher = Hasher::new(kind);
                let expected = naive_root(&hasher, &geometry, &disk);
                prop_assert_eq!(streamed_root(&hasher, geometry, &disk, true), expected);
                prop_assert_eq!(streamed_root(&hasher, geometry, &disk, false), expected);
            }
        }
    }

    // Goal: roots are those of docs/formats.md, for ever. Method: numbers from tests/vectors.py,
    // which shares no code with this.
    #[test]
    fn published_vectors() {
        let pattern: Vec<u8> = (0..(3 << 20) + 512)
            .map(|at| u8::try_from(at % 251).unwrap())
            .collect();
        let vectors: [(&[u8], u64, HashKind, &str); 8] = [
            (
                &[],
                1 << 20,
                HashKind::Blake3,
                "7ca8adfcf9b4f9b020856b96d63f3d3b0070ea46445e87f252ca04f3ef54fa2e",
            ),
            (
                &[],
                1 << 20,
                HashKind::Xxh3,
                "7b91986cf1659d1d5a255c064a460e1c",
            ),
            (
                b"hello",
                1 << 20,
                HashKind::Blake3,
                "d3a58931bd3053c193ef91c70f9c05b33a091ffe326e8cbf22c0b44915c211bf",
            ),
            (
                b"hello",
                1 << 20,
                HashKind::Xxh3,
                "e23f9d23cf58c31e002f30da6c7a79e2",
            ),
            (
                &pattern,
                1 << 20,
                HashKind::Blake3,
                "3ff86d14760720da8680994a308c0fd0c1e1638ded62b07d69fc55d0af09bd31",
            ),
            (
                &pattern,
                1 << 20,
                HashKind::Xxh3,
                "ddfb941028b3a9fae3b4b3787a544ca4",
            ),
            (
                &pattern,
                64 << 10,
                HashKind::Blake3,
                "f464bc4f21a1e26ccc6ed64d23c82aa2c6e14526d2c5cc8c3f5cd6405eabfa15",
            ),
            (
                &pattern,
                64 << 10,
                HashKind::Xxh3,
                "a415aac7301e392622253834cc80ee78",
            ),
        ];
        for (disk, block, kind, root) in vectors {
            let geometry =
                Geometry::new(disk.len() as u64, BlockSize::new(block).unwrap()).unwrap();
            let hasher = Hasher::new(kind);
            assert_eq!(
                streamed_root(&hasher, geometry, disk, true).to_string(),
                root
            );
        }
        let tebibyte = Geometry::new(1 << 40, BlockSize::DEFAULT).unwrap();
        let zeros = [
            (
                HashKind::Blake3,
                "203ff51f19317ce9b259b4c756dc45342c913e56f260fc2bf5949a450a46dfc7",
            ),
            (HashKind::Xxh3, "b167c6e66dbadcb6f7c01b6d8ad1e326"),
        ];
        for (kind, root) in zeros {
            let mut tree = TreeBuilder::new(&Hasher::new(kind), tebibyte);
            tree.push(Leaf::Zero, 1 << 20);
            assert_eq!(tree.finish().to_string(), root);
        }
    }

    // Goal: an empty 64 TiB disk costs hashes per level, not per block. Method: build it in one
    // push.
    #[test]
    fn a_huge_zero_disk_is_one_push() {
        let geometry = Geometry::new(64 << 40, BlockSize::DEFAULT).unwrap();
        let hasher = Hasher::new(HashKind::Blake3);
        let mut whole = TreeBuilder::new(&hasher, geometry);
        whole.push(Leaf::Zero, geometry.block_count().0);
        let mut parts = TreeBuilder::new(&hasher, geometry);
        parts.push(Leaf::Zero, 12_345);
        parts.push(Leaf::Zero, geometry.block_count().0 - 12_345);
        assert_eq!(whole.finish(), parts.finish());
    }
}
