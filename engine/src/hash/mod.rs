//! Hashes of blocks and of the tree above them.
//!
//! Two kinds. BLAKE3-256 is collision resistant; each use has its own `derive_key` context, so that
//! a leaf can never be taken for a node. XXH3-128 is fast and *not* collision resistant: whoever
//! writes inside the guest can make two blocks with the same sum at will, so it is only for trusted
//! guests and reports say `non_cryptographic`.
//!
//! ```text
//! leaf = H("failback leaf 1", bytes of the block, the last one short)
//! node = H("failback node 1", left, right)           an odd one moves up unchanged
//! root = H("failback root 1", u64 disk length, u64 block size, top)     little-endian
//! ```
//! For XXH3-128 the contexts become seeds (the first 8 bytes of the BLAKE3 hash of the context,
//! little-endian) and sums are written in their canonical big-endian form; the leaf of a block of
//! more than 64 KiB is `H("failback pieces 1", sums of its pieces of 64 KiB, as leaves)`. A disk of
//! length 0 has no blocks; its root is taken over the empty `top`. Vectors: docs/formats.md.

mod pieces;

use std::fmt;

use blake3::hazmat::{self, ChainingValue, HasherExt, Mode};
pub use failback_transport::Digest;
use serde::Serialize;
use twox_hash::{XxHash3_64, XxHash3_128};

pub use pieces::{PIECE_LEN, PieceSet, Pieces};

use crate::units::{BlockSize, Geometry, SUB_BLOCK_LEN};

/// Which hash a map is made with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum HashKind {
    /// BLAKE3-256.
    #[default]
    Blake3,
    /// XXH3-128, for trusted guests only.
    Xxh3,
}

impl HashKind {
    /// Bytes of a digest.
    #[must_use]
    pub fn digest_len(self) -> usize {
        match self {
            Self::Blake3 => 32,
            Self::Xxh3 => 16,
        }
    }

    /// A digest of zero bytes: stands where a digest has its place and nobody computed one.
    #[must_use]
    pub fn zero_digest(self) -> Digest {
        match self {
            Self::Blake3 => Digest::from([0; 32]),
            Self::Xxh3 => Digest::from([0; 16]),
        }
    }

    /// The name used in reports and on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Blake3 => "blake3",
            Self::Xxh3 => "xxh3",
        }
    }
}

/// Computes digests of one kind. Cheap to clone; keys are derived once.
#[derive(Clone)]
pub struct Hasher {
    kind: HashKind,
    leaf: blake3::Hasher,
    node: blake3::Hasher,
    root: blake3::Hasher,
    leaf_key: hazmat::ContextKey,
    leaf_seed: u64,
    pieces_seed: u64,
    node_seed: u64,
    root_seed: u64,
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hasher")
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}

const LEAF_CONTEXT: &str = "failback leaf 1";
const PIECES_CONTEXT: &str = "failback pieces 1";
const NODE_CONTEXT: &str = "failback node 1";
const ROOT_CONTEXT: &str = "failback root 1";

impl Hasher {
    /// A hasher of that kind.
    #[must_use]
    pub fn new(kind: HashKind) -> Self {
        Self {
            kind,
            leaf: blake3::Hasher::new_derive_key(LEAF_CONTEXT),
            node: blake3::Hasher::new_derive_key(NODE_CONTEXT),
            root: blake3::Hasher::new_derive_key(ROOT_CONTEXT),
            leaf_key: hazmat::hash_derive_key_context(LEAF_CONTEXT),
            leaf_seed: context_seed(LEAF_CONTEXT),
            pieces_seed: context_seed(PIECES_CONTEXT),
            node_seed: context_seed(NODE_CONTEXT),
            root_seed: context_seed(ROOT_CONTEXT),
        }
    }

    /// The kind.
    #[must_use]
    pub fn kind(&self) -> HashKind {
        self.kind
    }

    /// Digest of the bytes of one block.
    #[must_use]
    pub fn leaf(&self, block: &[u8]) -> Digest {
        match self.kind {
            HashKind::Xxh3 if block.len() > PIECE_LEN => self.leaf_of(&self.pieces(block)),
            _ => self.digest(&self.leaf, self.leaf_seed, block),
        }
    }

    /// Digest of a whole block of zeros.
    #[must_use]
    pub fn zero_leaf(&self, block_size: BlockSize) -> Digest {
        self.leaf(&vec![0; block_size.len()])
    }

    /// Digests of the pieces of a block.
    #[must_use]
    pub fn pieces(&self, block: &[u8]) -> Pieces {
        let mut hasher = self.in_pieces(block.len(), 0);
        hasher.update(block);
        hasher.finish()
    }

    /// Digest of the piece `index` of a block of `block_len` bytes.
    #[must_use]
    pub fn piece(&self, block_len: usize, index: usize, piece: &[u8]) -> Digest {
        if self.kind == HashKind::Xxh3 || block_len <= PIECE_LEN {
            return self.digest(&self.leaf, self.leaf_seed, piece);
        }
        let mut hasher = self.leaf.clone();
        hasher.set_input_offset((index * PIECE_LEN) as u64);
        Digest::from(hasher.update(piece).finalize_non_root())
    }

    /// Digest of the block that has these pieces: the same as [`Hasher::leaf`].
    #[must_use]
    pub fn leaf_of(&self, Pieces(pieces): &Pieces) -> Digest {
        match (self.kind, pieces.as_ref()) {
            (_, [only]) => *only,
            (HashKind::Blake3, pieces) => {
                let (left, right) = self.halves(pieces);
                let mode = Mode::DeriveKeyMaterial(&self.leaf_key);
                Digest::from(*hazmat::merge_subtrees_root(&left, &right, mode).as_bytes())
            }
            (HashKind::Xxh3, pieces) => {
                let sums: Vec<u8> = pieces.iter().flat_map(Digest::as_bytes).copied().collect();
                let sum = XxHash3_128::oneshot_with_seed(self.pieces_seed, &sums);
                Digest::from(sum.to_be_bytes())
            }
        }
    }

    /// BLAKE3's own tree: the left side has the largest power of two that leaves something for the
    /// right one.
    fn halves(&self, pieces: &[Digest]) -> (ChainingValue, ChainingValue) {
        let middle = 1 << (pieces.len() - 1).ilog2();
        let (left, right) = pieces.split_at(middle);
        (self.subtree(left), self.subtree(right))
    }

    fn subtree(&self, pieces: &[Digest]) -> ChainingValue {
        match pieces {
            [one] => one.as_bytes().try_into().expect("BLAKE3 has 32 bytes"),
            several => {
                let (left, right) = self.halves(several);
                let mode = Mode::DeriveKeyMaterial(&self.leaf_key);
                hazmat::merge_subtrees_non_root(&left, &right, mode)
            }
        }
    }

    /// Digests of the pieces of a block of `block_len` bytes that comes bit by bit, the first
    /// `zeros` bytes of which, a number of whole pieces, are zeros.
    #[must_use]
    pub fn in_pieces(&self, block_len: usize, zeros: usize) -> PiecesHasher<'_> {
        let mut hasher = PiecesHasher {
            hasher: self,
            block_len,
            pieces: Vec::with_capacity(pieces::piece_count(block_len).max(1)),
        };
        for _ in 0..zeros / PIECE_LEN {
            hasher.update(&ZEROS);
        }
        hasher
    }

    /// Digest of two neighbours.
    #[must_use]
    pub fn node(&self, left: &Digest, right: &Digest) -> Digest {
        let mut both = [0; 64];
        let len = self.kind.digest_len();
        both[..len].copy_from_slice(left.as_bytes());
        both[len..2 * len].copy_from_slice(right.as_bytes());
        self.digest(&self.node, self.node_seed, &both[..2 * len])
    }

    /// Digest of a whole disk; `top` is the last node, `None` for a disk of length 0.
    #[must_use]
    pub fn root(&self, geometry: &Geometry, top: Option<&Digest>) -> Digest {
        let mut input = Vec::with_capacity(48);
        input.extend_from_slice(&geometry.disk_len().to_le_bytes());
        input.extend_from_slice(&u64::from(geometry.block_size().as_u32()).to_le_bytes());
        input.extend_from_slice(top.map_or(&[], Digest::as_bytes));
        self.digest(&self.root, self.root_seed, &input)
    }

    fn digest(&self, keyed: &blake3::Hasher, seed: u64, input: &[u8]) -> Digest {
        match self.kind {
            HashKind::Blake3 => Digest::from(*keyed.clone().update(input).finalize().as_bytes()),
            HashKind::Xxh3 => {
                Digest::from(XxHash3_128::oneshot_with_seed(seed, input).to_be_bytes())
            }
        }
    }
}

static ZEROS: [u8; PIECE_LEN] = [0; PIECE_LEN];

/// Digests of pieces in the making.
#[derive(Debug)]
pub struct PiecesHasher<'a> {
    hasher: &'a Hasher,
    block_len: usize,
    pieces: Vec<Digest>,
}

impl PiecesHasher<'_> {
    /// Adds what comes next: whole pieces, but for the last one of the block.
    pub fn update(&mut self, bytes: &[u8]) {
        for piece in bytes.chunks(PIECE_LEN) {
            let index = self.pieces.len();
            self.pieces
                .push(self.hasher.piece(self.block_len, index, piece));
        }
    }

    /// The pieces, once all of the block was added.
    #[must_use]
    pub fn finish(mut self) -> Pieces {
        if self.pieces.is_empty() {
            // An empty block has a leaf, too.
            self.pieces.push(self.hasher.piece(0, 0, &[]));
        }
        Pieces(self.pieces.into_boxed_slice())
    }
}

fn context_seed(context: &str) -> u64 {
    let hash = blake3::hash(context.as_bytes());
    let mut first = [0; 8];
    first.copy_from_slice(&hash.as_bytes()[..8]);
    u64::from_le_bytes(first)
}

/// 64-bit sum of one sub-block, seeded anew for every session.
///
/// It only decides which 4 KiB pieces of a *differing* block travel. The whole patched block is
/// checked against its own digest, so a collision costs a resend and is never missed.
#[must_use]
pub fn sub_block_sum(sub_block: &[u8], seed: u64) -> u64 {
    XxHash3_64::oneshot_with_seed(seed, sub_block)
}

/// Whether every byte is zero.
///
/// Sub-blocks are folded without a branch, which the compiler turns into vector code, and the first
/// that is not zero ends the scan: on data the cost is one sub-block at most.
#[must_use]
pub fn is_zero(bytes: &[u8]) -> bool {
    bytes
        .chunks(SUB_BLOCK_LEN)
        .all(|chunk| chunk.iter().fold(0, |all, byte| all | byte) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    // Goal: no byte is overlooked (bdsync #39). Method: one non-zero byte at each position around
    // every chunk edge.
    #[test]
    fn one_byte_anywhere_is_not_zero() {
        let mut bytes = vec![0; 3 * SUB_BLOCK_LEN + 17];
        assert!(is_zero(&bytes));
        for at in 0..bytes.len() {
            bytes[at] = 0x80;
            assert!(!is_zero(&bytes), "byte {at}");
            bytes[at] = 0;
        }
        assert!(is_zero(&[]));
    }

    // Goal: leaf, node and root are different functions. Method: the same 64 bytes through each.
    #[test]
    fn leaf_and_node_are_separate_domains() {
        for kind in [HashKind::Blake3, HashKind::Xxh3] {
            let hasher = Hasher::new(kind);
            let a = hasher.leaf(b"a");
            let both = [a.as_bytes(), a.as_bytes()].concat();
            assert_ne!(hasher.leaf(&both), hasher.node(&a, &a));
        }
    }

    // Goal: a leaf is the same however it is made: at once, of pieces, of a patched piece. Method:
    // blocks of every shape of tree, around the edges of pieces; one piece changed.
    #[test]
    fn leaves_of_pieces_are_leaves() {
        let lens = (0..=17).flat_map(|pieces| {
            [0, 1, 1023, 1024, 1025, PIECE_LEN - 1].map(|more| pieces * PIECE_LEN + more)
        });
        for (kind, len) in lens.flat_map(|len| [(HashKind::Blake3, len), (HashKind::Xxh3, len)]) {
            let hasher = Hasher::new(kind);
            let mut block: Vec<u8> = (0..=250).cycle().take(len).collect();
            let mut pieces = hasher.pieces(&block);
            assert_eq!(
                hasher.leaf_of(&pieces),
                hasher.leaf(&block),
                "{kind:?} {len}"
            );
            let at = len / 2;
            let index = at / PIECE_LEN;
            let Some(byte) = block.get_mut(at) else {
                continue;
            };
            *byte ^= 1;
            assert_ne!(
                hasher.leaf_of(&pieces),
                hasher.leaf(&block),
                "{kind:?} {len}"
            );
            let changed = hasher.pieces(&block);
            assert_eq!(changed.differing(&pieces.ids()).bits(), 1 << index);
            let piece = block.chunks(PIECE_LEN).nth(index).unwrap();
            pieces.set(index, hasher.piece(len, index, piece));
            assert_eq!(pieces, changed);
            assert_eq!(
                hasher.leaf_of(&pieces),
                hasher.leaf(&block),
                "{kind:?} {len}"
            );
        }
    }

    // Goal: the definition in the module's head is what is computed. Method: BLAKE3's own
    // interface, step by step.
    #[test]
    fn blake3_root_follows_its_definition() {
        let hasher = Hasher::new(HashKind::Blake3);
        let geometry = Geometry::new(5, BlockSize::DEFAULT).unwrap();
        let leaf = blake3::derive_key("failback leaf 1", b"hello");
        let mut input = 5_u64.to_le_bytes().to_vec();
        input.extend(1_048_576_u64.to_le_bytes());
        input.extend(leaf);
        let expected = blake3::derive_key("failback root 1", &input);
        assert_eq!(
            hasher
                .root(&geometry, Some(&hasher.leaf(b"hello")))
                .as_bytes(),
            expected.as_slice()
        );
    }
}
