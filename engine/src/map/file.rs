//! A saved map, read.

use std::fs::File;
use std::path::Path;

use failback_vhdx::FileAt;

use super::format::{COUNT_LEN, GROUP_LEN, HEAD_LEN, Head, Layout};
use super::window::Windows;
use crate::error::{Error, ErrorKind, Result};
use crate::hash::{Digest, HashKind, Hasher, is_zero};
use crate::identity::{Claim, Facts};
use crate::map::MapKey;
use crate::tree::{Leaf, Place, Shape};
use crate::units::{BlockIndex, Geometry};

/// A saved map. A node is believed when the path from the root to it is right; what is wrong is an
/// error of the kind `Damaged`, there and no earlier.
#[derive(Debug)]
pub struct MapFile {
    windows: Windows,
    head: Head,
    layout: Layout,
    shape: Shape,
    hasher: Hasher,
    is_authentic: bool,
}

impl MapFile {
    /// Opens a map file and reads its header. Costs the same at any size.
    ///
    /// # Errors
    /// `Damaged` when it is no map of this version, `Io`.
    pub fn open(path: &Path, key: &MapKey) -> Result<Self> {
        let damaged = |what: &str| Error::new(ErrorKind::Damaged, what.to_owned()).path(path);
        let failed = |e| Error::io(e, "open map").path(path);
        let file = File::open(path).map_err(failed)?;
        let len = FileAt::len(&file).map_err(failed)?;
        let mut bytes = vec![0; usize::try_from(len.min(HEAD_LEN)).expect("64 KiB")];
        file.read_at(0, &mut bytes).map_err(failed)?;
        let (head, is_authentic) = Head::parse(&bytes, len, key).map_err(damaged)?;
        let hasher = Hasher::new(head.hash);
        Ok(Self {
            windows: Windows::new(file, len),
            layout: Layout::new(&head.geometry, head.hash),
            shape: Shape::new(&hasher, &head.geometry),
            hasher,
            head,
            is_authentic,
        })
    }

    /// How the disk is cut.
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        self.head.geometry
    }

    /// The hash it was made with.
    #[must_use]
    pub fn hash(&self) -> HashKind {
        self.head.hash
    }

    /// The root that the header states.
    #[must_use]
    pub fn root(&self) -> Digest {
        self.head.root
    }

    /// Leaves that are not zero.
    #[must_use]
    pub fn data_count(&self) -> u64 {
        self.head.data_count
    }

    /// Bytes of the blocks that are not zero.
    ///
    /// # Errors
    /// As [`MapFile::top`].
    pub fn data_len(&self) -> Result<u64> {
        let geometry = &self.head.geometry;
        let whole = geometry.block_size().len() as u64;
        let len = self.head.data_count.saturating_mul(whole);
        let Some(last) = geometry.block_count().0.checked_sub(1) else {
            return Ok(0);
        };
        let last = BlockIndex(last);
        let short = match self.leaf(last)? {
            Some(Leaf::Data(_)) => whole - geometry.block_len(last) as u64,
            _ => 0,
        };
        Ok(len.saturating_sub(short))
    }

    /// The disk when the map was made, as far as the header can be believed.
    #[must_use]
    pub fn facts(&self) -> Option<&Facts> {
        self.head.facts.as_ref()
    }

    /// The shape of its tree.
    #[must_use]
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// What it says it is.
    #[must_use]
    pub fn claim(&self) -> Claim<'_> {
        Claim {
            is_authentic: self.is_authentic,
            hash: self.head.hash,
            geometry: self.head.geometry,
            facts: self.facts(),
        }
    }

    /// The node over all blocks, which the root is made of; `None` for a disk without blocks.
    ///
    /// # Errors
    /// `Damaged`, `Io`.
    pub fn top(&self) -> Result<Option<(Place, Digest)>> {
        let top = match self.shape.top() {
            None => None,
            Some(place) => Some((place, self.stored(place)?)),
        };
        let digest = top.as_ref().map(|(_, digest)| digest);
        match self.hasher.root(&self.head.geometry, digest) == self.head.root {
            true => Ok(top),
            false => Err(wrong(0)),
        }
    }

    /// The nodes below one that is believed, and is above the leaves.
    ///
    /// # Errors
    /// As [`MapFile::top`].
    pub fn children(&self, place: Place, digest: &Digest) -> Result<Children> {
        let (left, right) = self.shape.children(place);
        let left = (left, self.stored(left)?);
        let right = match right {
            Some(right) => Some((right, self.stored(right)?)),
            None => None,
        };
        let above = match &right {
            Some((_, right)) => self.hasher.node(&left.1, right),
            None => left.1,
        };
        match above == *digest {
            true => Ok(Children { left, right }),
            false => Err(wrong(self.layout.place(left.0))),
        }
    }

    /// A node, believed: the path to it was checked. `None` where the tree has none.
    ///
    /// # Errors
    /// As [`MapFile::top`].
    pub fn node(&self, place: Place) -> Result<Option<Digest>> {
        if place.index >= self.shape.width(place.level) {
            return Ok(None);
        }
        let Some((mut at, mut digest)) = self.top()? else {
            return Ok(None);
        };
        while at.level > place.level {
            let is_zero = digest == self.shape.zero(at);
            if is_zero {
                return Ok(Some(self.shape.zero(place)));
            }
            let below = self.children(at, &digest)?;
            let is_right = place.index >> (at.level - 1 - place.level) & 1 == 1;
            (at, digest) = match (is_right, below.right) {
                (true, Some(right)) => right,
                _ => below.left,
            };
        }
        Ok(Some(digest))
    }

    /// What a block holds; `None` past the end.
    ///
    /// # Errors
    /// As [`MapFile::top`].
    pub fn leaf(&self, block: BlockIndex) -> Result<Option<Leaf>> {
        let place = Place {
            level: 0,
            index: block.0,
        };
        let digest = self.node(place)?;
        Ok(digest.map(|digest| self.leaf_of(place, digest)))
    }

    fn leaf_of(&self, place: Place, digest: Digest) -> Leaf {
        match digest == self.shape.zero(place) {
            true => Leaf::Zero,
            false => Leaf::Data(digest),
        }
    }

    /// All blocks in disk order.
    ///
    /// # Errors
    /// As [`MapFile::top`].
    pub fn walk(&self) -> Result<Walk<'_>> {
        Ok(Walk {
            map: self,
            stack: self.top()?.into_iter().collect(),
        })
    }

    /// The blocks below a node that is believed.
    pub(super) fn walk_below(&self, place: Place, digest: Digest) -> Walk<'_> {
        Walk {
            map: self,
            stack: vec![(place, digest)],
        }
    }

    /// Appends the nodes `down` levels below one that is believed, from left to right.
    ///
    /// # Errors
    /// As [`MapFile::top`].
    pub(super) fn below(
        &self,
        place: Place,
        digest: &Digest,
        down: u32,
        out: &mut Vec<Digest>,
    ) -> Result<()> {
        if down == 0 {
            out.push(*digest);
            return Ok(());
        }
        let Children { left, right } = self.children(place, digest)?;
        for (place, digest) in std::iter::once(left).chain(right) {
            self.below(place, &digest, down - 1, out)?;
        }
        Ok(())
    }

    /// How many data blocks each group of neighbours has.
    ///
    /// # Errors
    /// As [`MapFile::top`].
    pub(super) fn group_counts(&self) -> Result<Vec<u16>> {
        let len = self.layout.counts_len;
        let mut bytes = Vec::with_capacity(usize::try_from(len).expect("at most 2 MiB"));
        let mut at = 0;
        while at < len {
            let piece = usize::try_from((len - at).min(4096)).expect("at most 4096");
            self.windows
                .with(self.layout.counts_at + at, piece, |found| {
                    bytes.extend_from_slice(found);
                })?;
            at += piece as u64;
        }
        let counts = bytes.chunks_exact(2);
        let counts: Vec<u16> = counts
            .map(|pair| u16::from_le_bytes([pair[0], pair[1]]))
            .collect();
        let sum: u64 = counts.iter().map(|count| u64::from(*count)).sum();
        let is_right = *blake3::hash(&bytes).as_bytes() == self.head.counts_hash;
        match is_right && sum == self.head.data_count {
            true => Ok(counts),
            false => Err(wrong(self.layout.counts_at)),
        }
    }

    /// The data block with that many others before it in its group.
    ///
    /// # Errors
    /// As [`MapFile::top`].
    pub(super) fn data_block_of(&self, group: u64, mut before: u64) -> Result<BlockIndex> {
        let first = group * GROUP_LEN;
        let end = (first + GROUP_LEN).min(self.head.geometry.block_count().0);
        for index in first..end {
            let place = Place { level: 0, index };
            if self.stored(place)? == self.shape.zero(place) {
                continue;
            }
            if before == 0 {
                return Ok(BlockIndex(index));
            }
            before -= 1;
        }
        Err(wrong(self.layout.counts_at + group * COUNT_LEN))
    }

    /// A node as it stands in the file.
    fn stored(&self, place: Place) -> Result<Digest> {
        let len = self.head.hash.digest_len();
        let digest = self.windows.with(self.layout.place(place), len, |bytes| {
            match is_zero(bytes) {
                true => None,
                false => Digest::from_slice(bytes),
            }
        })?;
        Ok(digest.unwrap_or_else(|| self.shape.zero(place)))
    }
}

fn wrong(at: u64) -> Error {
    let message = "a node of the map is not the one that its root stands for";
    Error::new(ErrorKind::Damaged, message).at(at)
}

/// The nodes below a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Children {
    /// The left one.
    pub left: (Place, Digest),
    /// The right one, where there are two.
    pub right: Option<(Place, Digest)>,
}

/// Goes through the blocks of a map in order. Each node is looked at once; subtrees of zeros are
/// one step.
#[derive(Debug)]
pub struct Walk<'a> {
    map: &'a MapFile,
    /// Nodes that are believed and to be gone through, the leftmost last: at most one a level.
    stack: Vec<(Place, Digest)>,
}

impl Iterator for Walk<'_> {
    type Item = Result<(Leaf, u64)>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let (place, digest) = self.stack.pop()?;
            let leaf = self.map.leaf_of(place, digest);
            if leaf == Leaf::Zero || place.level == 0 {
                let blocks = self.map.shape.blocks(place);
                return Some(Ok((leaf, blocks.end - blocks.start)));
            }
            match self.map.children(place, &digest) {
                Ok(Children { left, right }) => {
                    self.stack.extend(right);
                    self.stack.push(left);
                }
                Err(error) => {
                    self.stack.clear();
                    return Some(Err(error));
                }
            }
        }
    }
}
