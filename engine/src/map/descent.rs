//! What differs between a map that is here and one that is elsewhere, found from the root down.
//!
//! ```text
//!   root differs --> question: the nodes 4 levels below it ------> answer, held against the root
//!        those that differ --> questions about them, neighbours in one -----> answers
//!             ... down to the leaves, which come out in disk order
//! ```
//! Pure: whoever carries questions and answers asks for the ones and gives the others. Every digest
//! is believed because its parent was, the first one because of the root, so a map elsewhere that
//! is damaged or lies is an error before anything is made of it.
//!
//! Questions are asked as soon as there are nodes to ask about, the leftmost first, and nobody
//! waits for an answer in between: a few blocks that differ cost one round trip for each [`DEPTH`]
//! levels, wherever they are. What is known and not yet given out is bounded: only [`WIDTH`]
//! differing leaves, or nodes that may come to as many, are looked for at a time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::file::{Children, MapFile, Walk};
use crate::error::{Error, ErrorKind, Result};
use crate::hash::{Digest, Hasher};
use crate::tree::{Leaf, Place, Shape};

/// Levels below a node that are asked for at once. More would save round trips and carry more
/// digests that are equal: each path down costs 2^DEPTH of them for every DEPTH levels.
pub const DEPTH: u32 = failback_transport::DESCENT_DEPTH_MAX as u32;
/// Nodes of one question.
pub const QUESTION_LEN_MAX: usize = failback_transport::NODE_COUNT_MAX as usize;
/// Questions without an answer yet: 2 MiB of answers on the way.
pub const QUESTIONS_MAX: usize = 32;
/// Leaves that are found, or may be by the questions under way, at a time. Nodes that wait to be
/// asked about come on top, at most as many for each [`DEPTH`] levels.
pub const WIDTH: usize = 8 << 10;
/// Answers that one node may come to.
const FAN: usize = 1 << DEPTH;
/// Nodes to ask about at least, where so many are needed: fewer are not worth their message.
const BATCH: usize = 64;

/// Nodes of one level, whose descendants some levels below are asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// Level of the nodes.
    pub level: u32,
    /// How many levels below them the answer lies; at most `level` and [`DEPTH`].
    pub down: u32,
    /// Their indices, ascending.
    pub indices: Vec<u64>,
}

impl Question {
    /// The answer by `map`: the digests below each node, from left to right.
    ///
    /// # Errors
    /// `Protocol` for nodes that the tree does not have, `Damaged`, `Io`.
    pub fn answer(&self, map: &MapFile) -> Result<Vec<Digest>> {
        let shape = map.shape();
        if self.level >= shape.level_count() || self.down > self.level.min(DEPTH) {
            return Err(wrong("asks for a level that the tree does not have"));
        }
        let mut digests = Vec::with_capacity(self.indices.len() << self.down);
        for &index in &self.indices {
            let place = Place {
                level: self.level,
                index,
            };
            let Some(digest) = map.node(place)? else {
                return Err(wrong("asks for a node that the tree does not have"));
            };
            map.below(place, &digest, self.down, &mut digests)?;
        }
        Ok(digests)
    }
}

/// What the two maps say of a block, where that is not the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Its number.
    pub block: u64,
    /// By the map that is here.
    pub ours: Leaf,
    /// By the one elsewhere.
    pub theirs: Leaf,
}

/// How a descent goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The next block that differs.
    Differs(Difference),
    /// An answer is missing; before this block all is known, and nothing differs that was not
    /// given out.
    Waits(u64),
    /// All is known.
    Ends,
}

/// What is known of blocks that are not equal.
#[derive(Clone, Copy, Debug)]
enum Known {
    /// Something below differs; the two nodes.
    Node {
        place: Place,
        pair: Pair,
    },
    /// The same, and it was asked what.
    Asked {
        pair: Pair,
    },
    Leaf(Pair),
    /// There are only zeros there; what there is here.
    Emptied {
        place: Place,
        ours: Digest,
    },
}

#[derive(Clone, Copy, Debug)]
struct Pair {
    ours: Digest,
    theirs: Digest,
}

/// See the module's head.
#[derive(Debug)]
pub struct Descent<'a> {
    map: &'a MapFile,
    hasher: Hasher,
    /// Root of the map elsewhere.
    root: Digest,
    /// By the first block; what is not covered is equal, or was given out.
    known: BTreeMap<u64, Known>,
    /// Those of `known` that are nodes nobody has asked about.
    ready: BTreeSet<u64>,
    asked: VecDeque<Question>,
    /// Nodes in `asked`.
    asked_count: usize,
    /// Blocks to give out before all of `known`, and the number of the next one.
    emptied: Option<(Walk<'a>, u64)>,
}

impl<'a> Descent<'a> {
    /// Against a map of the same hash and geometry with that root.
    ///
    /// # Errors
    /// `Damaged` or `Io`, of the map that is here.
    pub fn new(map: &'a MapFile, root: Digest) -> Result<Self> {
        let mut descent = Self {
            map,
            hasher: Hasher::new(map.hash()),
            root,
            known: BTreeMap::new(),
            ready: BTreeSet::new(),
            asked: VecDeque::new(),
            asked_count: 0,
            emptied: None,
        };
        if let (false, Some((place, ours))) = (map.root() == root, map.top()?) {
            // The node that the other root is made of is not known, and not needed.
            let pair = Pair { ours, theirs: root };
            descent.put(0, Known::Node { place, pair });
        }
        Ok(descent)
    }

    /// What to ask now, in this order; each has its answer to come. Ask after each answer, and
    /// after steps.
    pub fn questions(&mut self) -> Vec<Question> {
        let free = QUESTIONS_MAX - self.asked.len();
        let mut count = self.room();
        if count < BATCH && count < self.ready.len() {
            // The leftmost is what everything waits for, whatever else is under way.
            let is_needed = self.ready.first() == self.known.keys().next();
            count = if is_needed { BATCH } else { 0 };
        }
        let mut questions: Vec<Question> = Vec::new();
        for first in self.ready.iter().take(count) {
            let Some(Known::Node { place, .. }) = self.known.get(first) else {
                continue;
            };
            let open = questions.iter().rposition(|question| {
                question.level == place.level && question.indices.len() < QUESTION_LEN_MAX
            });
            match open {
                Some(open) => questions[open].indices.push(place.index),
                None if questions.len() == free => break,
                None => questions.push(Question {
                    level: place.level,
                    down: down(place.level),
                    indices: vec![place.index],
                }),
            }
        }
        for question in &questions {
            self.note_asked(question);
        }
        questions
    }

    /// Takes the answer to the earliest question that has none: about the nodes of `level` from
    /// `first` on.
    ///
    /// # Errors
    /// `Protocol` when nobody asked, or for digests that are not below what the root stands for;
    /// `Damaged` or `Io`, of the map that is here.
    pub fn answer(&mut self, level: u32, first: u64, digests: &[Digest]) -> Result<()> {
        let Some(question) = self.asked.pop_front() else {
            return Err(wrong("an answer that nobody asked for"));
        };
        if question.level != level || question.indices.first() != Some(&first) {
            return Err(wrong("an answer out of order"));
        }
        self.asked_count -= question.indices.len();
        let mut rest = digests;
        for &index in &question.indices {
            let place = Place { level, index };
            let count = below(self.map.shape(), place, question.down);
            let Some((digests, after)) = rest.split_at_checked(count) else {
                return Err(wrong("an answer that is too short"));
            };
            rest = after;
            let first = self.map.shape().blocks(place).start;
            let Some(Known::Asked { pair }) = self.known.remove(&first) else {
                return Err(Error::new(ErrorKind::Internal, "a question was forgotten"));
            };
            let tree = Branch::new(&self.hasher, digests.to_vec(), question.down);
            if !self.is_believed(place, &tree, &pair) {
                return Err(wrong("nodes that are not below what their root stands for"));
            }
            let top = Pair {
                ours: pair.ours,
                theirs: tree.top(),
            };
            self.compare(place, top, &tree, place)?;
        }
        match rest.is_empty() {
            true => Ok(()),
            false => Err(wrong("an answer that is too long")),
        }
    }

    /// The next block that differs, as far as that is known.
    ///
    /// # Errors
    /// `Damaged` or `Io`, of the map that is here.
    pub fn step(&mut self) -> Result<Step> {
        loop {
            if let Some((walk, next)) = &mut self.emptied {
                match walk.next().transpose()? {
                    Some((Leaf::Zero, count)) => *next += count,
                    Some((ours, count)) => {
                        let block = *next;
                        *next += count;
                        let theirs = Leaf::Zero;
                        return Ok(Step::Differs(Difference {
                            block,
                            ours,
                            theirs,
                        }));
                    }
                    None => self.emptied = None,
                }
                continue;
            }
            let Some(first) = self.known.first_entry() else {
                return Ok(Step::Ends);
            };
            let block = *first.key();
            match *first.get() {
                Known::Node { .. } | Known::Asked { .. } => return Ok(Step::Waits(block)),
                Known::Leaf(Pair { ours, theirs }) => {
                    first.remove();
                    let [ours, theirs] = [ours, theirs].map(|digest| self.leaf(block, digest));
                    return Ok(Step::Differs(Difference {
                        block,
                        ours,
                        theirs,
                    }));
                }
                Known::Emptied { place, ours } => {
                    first.remove();
                    self.emptied = Some((self.map.walk_below(place, ours), block));
                }
            }
        }
    }

    /// Nodes and leaves that are held, which is what bounds the memory of a descent.
    #[must_use]
    pub fn held(&self) -> usize {
        self.known.len()
    }

    /// Nodes that may be asked about.
    fn room(&self) -> usize {
        let found = self.known.len() - self.ready.len() - self.asked_count;
        WIDTH.saturating_sub(found + self.asked_count * FAN) / FAN
    }

    fn note_asked(&mut self, question: &Question) {
        for &index in &question.indices {
            let level = question.level;
            let first = self.map.shape().blocks(Place { level, index }).start;
            self.ready.remove(&first);
            if let Some(known) = self.known.get_mut(&first)
                && let Known::Node { pair, .. } = *known
            {
                *known = Known::Asked { pair };
            }
        }
        self.asked_count += question.indices.len();
        self.asked.push_back(question.clone());
    }

    fn is_believed(&self, place: Place, tree: &Branch, pair: &Pair) -> bool {
        match Some(place) == self.map.shape().top() {
            true => self.hasher.root(&self.map.geometry(), Some(&tree.top())) == self.root,
            false => tree.top() == pair.theirs,
        }
    }

    /// Finds what differs at and below `place`, which is in the branch over `over`.
    fn compare(&mut self, place: Place, pair: Pair, tree: &Branch, over: Place) -> Result<()> {
        if pair.ours == pair.theirs {
            return Ok(());
        }
        let shape = self.map.shape();
        let first = shape.blocks(place).start;
        let Pair { ours, theirs } = pair;
        if place.level == 0 {
            self.put(first, Known::Leaf(pair));
        } else if theirs == shape.zero(place) {
            self.put(first, Known::Emptied { place, ours });
        } else if place.level == over.level - tree.down() {
            self.put(first, Known::Node { place, pair });
        } else {
            let Children { left, right } = self.map.children(place, &ours)?;
            for (place, ours) in std::iter::once(left).chain(right) {
                let theirs = tree.node(over, place);
                self.compare(place, Pair { ours, theirs }, tree, over)?;
            }
        }
        Ok(())
    }

    fn put(&mut self, first: u64, known: Known) {
        if matches!(known, Known::Node { .. }) {
            self.ready.insert(first);
        }
        self.known.insert(first, known);
    }

    fn leaf(&self, block: u64, digest: Digest) -> Leaf {
        let place = Place {
            level: 0,
            index: block,
        };
        match digest == self.map.shape().zero(place) {
            true => Leaf::Zero,
            false => Leaf::Data(digest),
        }
    }
}

/// The part of a tree between a node and its descendants some levels below.
#[derive(Debug)]
struct Branch {
    /// The lowest level first.
    levels: Vec<Vec<Digest>>,
}

impl Branch {
    /// `lowest` are all descendants `down` levels below the node, at least one.
    fn new(hasher: &Hasher, lowest: Vec<Digest>, down: u32) -> Self {
        let mut levels = vec![lowest];
        for _ in 0..down {
            let join = |pair: &[Digest]| match pair {
                [left, right] => hasher.node(left, right),
                // An odd one moves up.
                _ => pair[0],
            };
            let above = levels[levels.len() - 1].chunks(2).map(join).collect();
            levels.push(above);
        }
        Self { levels }
    }

    fn down(&self) -> u32 {
        u32::try_from(self.levels.len() - 1).expect("at most DEPTH")
    }

    fn top(&self) -> Digest {
        self.levels[self.levels.len() - 1][0]
    }

    /// The node at `place`, which is below `over`, the place of the top.
    fn node(&self, over: Place, place: Place) -> Digest {
        let above = over.level - place.level;
        let index = place.index - (over.index << above);
        let level = &self.levels[(self.down() - above) as usize];
        level[usize::try_from(index).expect("below 2^DEPTH")]
    }
}

/// How far below nodes of that level to ask: what is left over of the height is taken at the top,
/// where nodes are few.
fn down(level: u32) -> u32 {
    match level % DEPTH {
        0 => level.min(DEPTH),
        rest => rest,
    }
}

/// How many nodes there are some levels below one.
fn below(shape: &Shape, place: Place, down: u32) -> usize {
    let first = place.index << down;
    let end = (first + (1 << down)).min(shape.width(place.level - down));
    usize::try_from(end - first).expect("at most 2^DEPTH")
}

fn wrong(message: &str) -> Error {
    Error::new(ErrorKind::Protocol, format!("peer: {message}"))
}
