//! The target's account of every block between "hash sent" and "known for good", and the tree that
//! grows behind it.
//!
//! ```text
//!  0 ........ drained ........ compared ............ scanned ......... end
//!    in the tree   | equal unless in `changed` | hash sent, no verdict |
//! ```
//! A block below `compared` is equal unless the source announced a change of it before. Leaves go
//! to the tree in order; a block that is announced and not yet settled holds the later ones back,
//! and through the window in the end the scan. That bounds the ledger.

use std::collections::{BTreeMap, VecDeque};

use crate::error::{Error, ErrorKind, Result};
use crate::hash::{Digest, Pieces};
use crate::map::{MapBuilder, MapWriter};
use crate::tree::Leaf;

/// Entries (hashes or zero runs) that the target may be ahead of what is known for good: 16 GiB of
/// disk; 10 MiB of BLAKE3, with the pieces of each block, 35 MiB where blocks have 4 MiB.
pub(super) const WINDOW: usize = 16 << 10;
/// Changed blocks after which the source of a comparison of trees hears how far all is settled:
/// often enough to keep its window open.
const SETTLED_EVERY: u64 = 1024;
/// Blocks that arrive before earlier ones in a full copy. The source's buffers bound an honest one
/// to far less.
const AHEAD_MAX: usize = 64 << 10;

/// A run of blocks as it was scanned.
#[derive(Debug)]
struct Old {
    first: u64,
    count: u64,
    /// `None` in a full copy: nothing was read.
    leaf: Option<Leaf>,
    /// Of a block of data that was read.
    pieces: Option<Pieces>,
}

#[derive(Debug, Clone, Copy)]
struct Change {
    count: u64,
    /// `None` while the source has only announced it.
    leaf: Option<Leaf>,
}

/// See the module's head.
#[derive(Debug)]
pub(super) struct Ledger {
    tree: MapBuilder,
    old: VecDeque<Old>,
    changed: BTreeMap<u64, Change>,
    scanned: u64,
    compared: u64,
    total: u64,
    /// The source knows what the target holds without being told: it may be ahead of the scan.
    may_lead: bool,
    /// Changed blocks that went into the tree since the source was told.
    untold: u64,
}

impl Ledger {
    /// For a comparison: blocks come by [`Ledger::scanned`].
    pub(super) fn of_scan(tree: MapBuilder, total: u64) -> Self {
        Self {
            tree,
            old: VecDeque::new(),
            changed: BTreeMap::new(),
            scanned: 0,
            compared: 0,
            total,
            may_lead: false,
            untold: 0,
        }
    }

    /// For a comparison of trees: the same, and the source goes its own way. It says what it has
    /// compared and announces changes anywhere on the disk.
    pub(super) fn of_trees(tree: MapBuilder, total: u64) -> Self {
        Self {
            may_lead: true,
            ..Self::of_scan(tree, total)
        }
    }

    /// For a full copy: every block has to be settled by the source.
    pub(super) fn of_full_copy(tree: MapBuilder, total: u64) -> Self {
        let mut ledger = Self::of_scan(tree, total);
        ledger.old.push_back(Old {
            first: 0,
            count: total,
            leaf: None,
            pieces: None,
        });
        ledger.scanned = total;
        ledger.compared = 0;
        ledger
    }

    /// The next `count` blocks hold `leaf`; the digests of the pieces of one that was read.
    pub(super) fn scanned(&mut self, leaf: Leaf, count: u64, pieces: Option<Pieces>) {
        match self.old.back_mut() {
            Some(last) if leaf == Leaf::Zero && last.leaf == Some(Leaf::Zero) => {
                last.count += count;
            }
            _ => self.old.push_back(Old {
                first: self.scanned,
                count,
                leaf: Some(leaf),
                pieces,
            }),
        }
        self.scanned += count;
        if self.may_lead {
            self.drain();
        }
    }

    /// Up to where all is known for good, when it is time to tell the source of a comparison of
    /// trees.
    pub(super) fn take_news(&mut self) -> Option<u64> {
        if !self.may_lead || self.untold < SETTLED_EVERY {
            return None;
        }
        self.untold = 0;
        Some(self.tree.next().0)
    }

    /// Blocks that the source may know of.
    fn limit(&self) -> u64 {
        match self.may_lead {
            true => self.total,
            false => self.scanned,
        }
    }

    /// Whether the scan may go on.
    pub(super) fn has_room(&self) -> bool {
        self.old.len() < WINDOW
    }

    /// Whether the source has compared everything.
    pub(super) fn is_compared(&self) -> bool {
        self.compared == self.total
    }

    /// Whether every block is known for good.
    pub(super) fn is_complete(&self) -> bool {
        self.tree.next().0 == self.total
    }

    /// The root over what the disk holds now.
    pub(super) fn root(&self) -> Digest {
        self.tree.root()
    }

    /// The same, and the map of the disk as it is now, where one was begun.
    pub(super) fn take_map(&mut self) -> (Digest, Option<MapWriter>) {
        self.tree.finish()
    }

    /// The source has compared everything below `up_to`.
    ///
    /// # Errors
    /// `Protocol` when it goes back or knows what it was not told.
    pub(super) fn compared(&mut self, up_to: u64) -> Result<()> {
        if up_to < self.compared || up_to > self.limit() {
            return Err(protocol(&format!(
                "compared up to block {up_to} out of order"
            )));
        }
        self.compared = up_to;
        self.drain();
        Ok(())
    }

    /// The source will change `count` blocks from `first` on. What the first holds now, `None` in a
    /// full copy.
    ///
    /// Called when the message is *received*: the comparison may be told to have passed these
    /// blocks before they are applied.
    ///
    /// # Errors
    /// `Protocol` for blocks that are settled, unknown, or announced twice.
    pub(super) fn announce(&mut self, first: u64, count: u64) -> Result<Option<Leaf>> {
        self.check_free(first, count)?;
        self.changed.insert(first, Change { count, leaf: None });
        Ok(self.old_leaf(first))
    }

    /// What a block that is not settled held when it was scanned.
    pub(super) fn old_leaf(&self, block: u64) -> Option<Leaf> {
        let old = self.old.get(self.place_of(block));
        old.filter(|old| old.first <= block)
            .and_then(|old| old.leaf)
    }

    /// The digests of the pieces of such a block, the first time.
    pub(super) fn take_pieces(&mut self, block: u64) -> Option<Pieces> {
        let at = self.place_of(block);
        let old = self.old.get_mut(at);
        old.filter(|old| old.first == block)
            .and_then(|old| old.pieces.take())
    }

    fn place_of(&self, block: u64) -> usize {
        self.old
            .partition_point(|old| old.first + old.count <= block)
    }

    /// Whether the source announced this very block and has not yet sent it.
    pub(super) fn is_announced(&self, block: u64) -> bool {
        self.changed
            .get(&block)
            .is_some_and(|change| change.leaf.is_none() && change.count == 1)
    }

    /// All blocks that were announced with `first` now hold `leaf`.
    ///
    /// # Errors
    /// `Protocol` when they were not announced.
    pub(super) fn settle(&mut self, first: u64, leaf: Leaf) -> Result<()> {
        match self.changed.get_mut(&first) {
            Some(change) if change.leaf.is_none() => change.leaf = Some(leaf),
            _ => {
                return Err(protocol(&format!(
                    "data for block {first}, which was not announced"
                )));
            }
        }
        self.drain();
        Ok(())
    }

    fn check_free(&self, first: u64, count: u64) -> Result<()> {
        let end = first.checked_add(count).filter(|end| *end <= self.limit());
        let Some(end) = end.filter(|_| first >= self.compared && first >= self.tree.next().0)
        else {
            return Err(protocol(&format!(
                "{count} blocks from {first} are not open to change"
            )));
        };
        let before = self.changed.range(..end).next_back();
        if before.is_some_and(|(at, change)| at + change.count > first) {
            return Err(protocol(&format!(
                "{count} blocks from {first} are changed twice"
            )));
        }
        if self.changed.len() >= AHEAD_MAX {
            return Err(protocol("too many blocks out of order"));
        }
        Ok(())
    }

    /// Moves everything that is known for good into the tree.
    fn drain(&mut self) {
        while let Some(old) = self.old.front_mut() {
            let moved = match self.changed.first_key_value() {
                Some((&first, &change)) if first == old.first => match change.leaf {
                    Some(leaf) => {
                        // The rest may not be scanned yet.
                        let count = change.count.min(self.scanned - first);
                        self.changed.pop_first();
                        if count < change.count {
                            let rest = change.count - count;
                            self.changed.insert(
                                first + count,
                                Change {
                                    count: rest,
                                    ..change
                                },
                            );
                        }
                        self.tree.push(leaf, count);
                        self.untold += count;
                        count
                    }
                    None => return,
                },
                next_change => {
                    let until =
                        next_change.map_or(self.compared, |(&first, _)| first.min(self.compared));
                    let equal = (old.first + old.count).min(until).saturating_sub(old.first);
                    match old.leaf {
                        Some(leaf) if equal > 0 => self.tree.push(leaf, equal),
                        _ => return,
                    }
                    equal
                }
            };
            self.skip(moved);
        }
    }

    /// Drops the first `count` blocks of `old`; a change may cover several of its runs.
    fn skip(&mut self, mut count: u64) {
        while count > 0 {
            let front = self
                .old
                .front_mut()
                .expect("changes lie within scanned blocks");
            let taken = front.count.min(count);
            front.first += taken;
            front.count -= taken;
            count -= taken;
            if front.count == 0 {
                self.old.pop_front();
            }
        }
    }
}

fn protocol(message: &str) -> Error {
    Error::new(ErrorKind::Protocol, format!("peer: {message}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::{HashKind, Hasher};
    use crate::units::{BlockSize, Geometry};

    fn ledger(blocks: u64, is_full: bool) -> Ledger {
        let geometry = Geometry::new(blocks << 20, BlockSize::DEFAULT).unwrap();
        let tree = MapBuilder::new(&Hasher::new(HashKind::Xxh3), geometry, None);
        match is_full {
            true => Ledger::of_full_copy(tree, blocks),
            false => Ledger::of_scan(tree, blocks),
        }
    }

    fn leaf(byte: u8) -> Leaf {
        Leaf::Data(Digest::from([byte; 16]))
    }

    // Goal: the root is over the changed disk, whatever order the answers come in. Method: one
    // block late, one zero run over several scanned runs, against a ledger that is told everything
    // in order.
    #[test]
    fn changes_out_of_order_give_the_root_of_the_result() {
        let mut late = ledger(6, false);
        late.scanned(leaf(1), 1, None);
        late.scanned(Leaf::Zero, 2, None);
        late.scanned(leaf(4), 1, None);
        late.scanned(leaf(5), 1, None);
        late.scanned(leaf(6), 1, None);
        assert_eq!(late.announce(1, 1).unwrap(), Some(Leaf::Zero));
        late.announce(3, 2).unwrap();
        late.compared(6).unwrap();
        late.settle(3, Leaf::Zero).unwrap();
        assert!(!late.is_complete());
        late.settle(1, leaf(9)).unwrap();
        assert!(late.is_complete());

        let mut plain = ledger(6, true);
        let result = [
            leaf(1),
            leaf(9),
            Leaf::Zero,
            Leaf::Zero,
            Leaf::Zero,
            leaf(6),
        ];
        for (block, leaf) in result.into_iter().enumerate() {
            plain.announce(block as u64, 1).unwrap();
            plain.settle(block as u64, leaf).unwrap();
        }
        assert_eq!(late.root(), plain.root());
    }

    // Goal: a hostile source cannot have blocks changed that were not compared, or twice. Method:
    // each misuse once.
    #[test]
    fn misuse_by_the_peer_is_refused() {
        let mut ledger = ledger(4, false);
        ledger.scanned(leaf(1), 1, None);
        ledger.scanned(leaf(2), 1, None);
        assert!(ledger.announce(2, 1).is_err());
        assert!(ledger.compared(3).is_err());
        assert!(ledger.settle(0, leaf(7)).is_err());
        ledger.announce(1, 1).unwrap();
        assert!(ledger.announce(1, 1).is_err());
        assert!(ledger.announce(0, 2).is_err());
        assert!(ledger.announce(0, u64::MAX).is_err());
        ledger.compared(2).unwrap();
        assert!(ledger.compared(1).is_err());
        assert!(ledger.announce(0, 1).is_err());
        ledger.settle(1, leaf(7)).unwrap();
        assert!(ledger.settle(1, leaf(7)).is_err());
    }
}
