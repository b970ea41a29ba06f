//! A tree that is kept as a file while it grows, where somebody wants it kept.

use crate::hash::{Digest, Hasher};
use crate::map::MapWriter;
use crate::tree::{Leaf, TreeBuilder};
use crate::units::{BlockIndex, Geometry};

/// Takes leaves in disk order; gives the root, and the file if there is to be one.
#[derive(Debug)]
pub struct MapBuilder {
    tree: TreeBuilder,
    writer: Option<MapWriter>,
}

impl MapBuilder {
    /// For a disk; `writer` is for the same one.
    #[must_use]
    pub fn new(hasher: &Hasher, geometry: Geometry, writer: Option<MapWriter>) -> Self {
        Self {
            tree: TreeBuilder::new(hasher, geometry),
            writer,
        }
    }

    /// The block that the next push is about.
    #[must_use]
    pub fn next(&self) -> BlockIndex {
        self.tree.next()
    }

    /// Appends `count` blocks of one kind of content, 1 for data. A file that cannot be written is
    /// given up; the root is not.
    ///
    /// # Panics
    /// As [`TreeBuilder::push`].
    pub fn push(&mut self, leaf: Leaf, count: u64) {
        match &mut self.writer {
            None => self.tree.push(leaf, count),
            Some(writer) => self.tree.push_noting(leaf, count, &mut |place, digest| {
                writer.note(place, digest);
            }),
        }
    }

    /// The root, and the file with all nodes, not yet named.
    ///
    /// # Panics
    /// When leaves are missing.
    #[must_use]
    pub fn finish(&mut self) -> (Digest, Option<MapWriter>) {
        match self.writer.take() {
            None => (self.tree.finish(), None),
            Some(mut writer) => {
                let root = self.tree.finish_noting(&mut |place, digest| {
                    writer.note(place, digest);
                });
                (root, Some(writer))
            }
        }
    }

    /// The root alone; the file, if there is one, waits for [`MapBuilder::finish`].
    ///
    /// # Panics
    /// When leaves are missing.
    #[must_use]
    pub fn root(&self) -> Digest {
        self.tree.finish()
    }
}
