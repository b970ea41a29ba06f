//! Where blocks are applied: checked, patched, and handed on to the stage or to the target.

mod in_place;

use std::ops::Range;

use bytes::Bytes;
use failback_transport::{Base, BlockData};

pub(crate) use in_place::InPlace;

use crate::abort::Abort;
use crate::commit::Staging;
use crate::error::{Error, ErrorKind, Result};
use crate::hash::{Digest, Hasher, PIECE_LEN, PieceSet, Pieces};
use crate::pipeline::PooledBuffer;
use crate::sync::{Session, unpack};
use crate::tree::Leaf;
use crate::units::{BlockIndex, ByteOffset, Geometry, SUB_BLOCK_LEN, range_len};
use in_place::within;

/// What became of a block's data.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Applied {
    /// The target holds the block that the source has.
    Done,
    /// Patching gave another block: two sub-block sums collided. Nothing was written.
    NeedsWhole,
}

/// What is known of a block before it is patched.
#[derive(Debug)]
pub(crate) struct Kept {
    /// The pieces that may differ.
    pub(crate) set: PieceSet,
    /// Their bytes, unless they are to be read again.
    pub(crate) bytes: Option<PooledBuffer>,
    /// The digests of all pieces of the block, where they are known.
    pub(crate) pieces: Option<Pieces>,
}

/// A range of the disk, and what it gets.
pub(crate) type Part<'a> = (Range<ByteOffset>, &'a [u8]);

/// What is new of a block: the bytes of some of its pieces, and the digest of the whole.
struct New {
    bytes: Bytes,
    set: PieceSet,
    /// `None` where nobody wants it.
    leaf: Option<Digest>,
}

/// Where a block goes.
#[derive(Debug)]
pub(crate) enum Destination<'a> {
    /// To its place.
    InPlace(InPlace<'a>),
    /// Beside the target, until everything is there.
    Stage(&'a Staging),
}

impl Destination<'_> {
    /// Whether all of the target is known to read zero.
    fn is_new(&self) -> bool {
        match self {
            Self::InPlace(target) => target.is_new(),
            Self::Stage(_) => false,
        }
    }
}

/// Checks what comes from the peer and hands it on.
#[derive(Debug)]
pub(crate) struct Applier<'a> {
    geometry: Geometry,
    hasher: &'a Hasher,
    is_hashed: bool,
    /// Where blocks go.
    pub(crate) to: Destination<'a>,
}

impl<'a> Applier<'a> {
    pub(crate) fn new(to: Destination<'a>, session: &'a Session) -> Self {
        Self {
            geometry: session.geometry,
            hasher: &session.hasher,
            is_hashed: session.is_hashed(),
            to,
        }
    }

    /// Makes a block what the source says it is. `kept` is what is known of it, `read` reads some
    /// of its pieces as they are now, or all of it, and `shown` is its present leaf where that is
    /// known.
    ///
    /// # Errors
    /// `Protocol` when the data does not fit the block or its hash, `NoSpace`, `Io`.
    pub(crate) fn block(
        &self,
        data: &BlockData,
        shown: Option<Leaf>,
        kept: Option<Kept>,
        read: impl Fn(Option<PieceSet>) -> Result<PooledBuffer>,
    ) -> Result<Applied> {
        let block = BlockIndex(data.block);
        let runs = self.runs_of(data)?;
        let payload = unpack(data)?;
        let new = match data.base {
            Base::Old => self.patched(block, &runs, &payload, kept, read)?,
            Base::Zero => self.laid_over_zeros(block, &runs, payload),
        };
        if new.leaf.is_some_and(|leaf| leaf != data.new_hash) {
            return match data.base {
                Base::Old => Ok(Applied::NeedsWhole),
                Base::Zero => Err(Error::new(
                    ErrorKind::Protocol,
                    "peer: block does not have the hash it was sent with",
                )
                .at(self.geometry.start_of(block).0)),
            };
        }
        let runs = runs.into_iter().map(|(range, _)| range);
        let is_known_zero = shown == Some(Leaf::Zero) || self.to.is_new();
        let ranges = match (data.base, is_known_zero) {
            // Whatever was there goes, also between the runs.
            (Base::Zero, false) => vec![self.geometry.range_of(block, 1)],
            (Base::Zero, true) if self.to.is_new() => joined(runs, GAP_MAX),
            _ => joined(runs, 0),
        };
        let start = self.geometry.start_of(block);
        let parts: Vec<Part<'_>> = ranges
            .into_iter()
            .map(|range| {
                let place = new.set.place_of(&within(&range, start));
                let place = place.expect("runs lie within what was patched");
                (range, &new.bytes[place])
            })
            .collect();
        self.put(block, &parts, data.new_hash, shown)?;
        Ok(Applied::Done)
    }

    /// Hands on what a block becomes, which is known to be right: `parts` are what differs from
    /// what is there, whose leaf is `shown`.
    ///
    /// # Errors
    /// `NoSpace`, `Io`.
    pub(crate) fn put(
        &self,
        block: BlockIndex,
        parts: &[Part<'_>],
        new_leaf: Digest,
        shown: Option<Leaf>,
    ) -> Result<()> {
        match &self.to {
            Destination::InPlace(target) => target.write(block, parts, new_leaf),
            Destination::Stage(stage) => stage.put(block, parts, new_leaf, shown),
        }
    }

    /// Makes `count` blocks from `first` on read zero. Space that reads zero already is left alone.
    ///
    /// # Errors
    /// `NoSpace`, `Io`.
    pub(crate) fn zeros(&self, first: BlockIndex, count: u64, abort: &Abort) -> Result<()> {
        match &self.to {
            Destination::InPlace(target) => target.zeros(first, count, abort),
            Destination::Stage(stage) => stage.put_zeros(first, count, abort),
        }
    }

    /// The ranges of the disk that the runs name, each with whether it carries data; checked
    /// against the block.
    fn runs_of(&self, data: &BlockData) -> Result<Vec<(Range<ByteOffset>, bool)>> {
        let block = self.geometry.range_of(BlockIndex(data.block), 1);
        let mut runs = Vec::with_capacity(data.runs.len());
        let mut data_len = 0;
        for run in &data.runs {
            let start = block
                .start
                .advanced(u64::from(run.first) * SUB_BLOCK_LEN as u64);
            let end = start.advanced(u64::from(run.count) * SUB_BLOCK_LEN as u64);
            if end.0 >= block.end.0 + SUB_BLOCK_LEN as u64 || start >= block.end {
                return Err(
                    Error::new(ErrorKind::Protocol, "peer: data past the end of a block")
                        .at(start.0),
                );
            }
            let range = start..end.min(block.end);
            let is_data = run.kind == failback_transport::RunKind::Data;
            data_len += if is_data { range_len(&range) } else { 0 };
            runs.push((range, is_data));
        }
        match data_len == u64::from(data.raw_len) {
            true => Ok(runs),
            false => Err(
                Error::new(ErrorKind::Protocol, "peer: data does not fit its runs")
                    .at(block.start.0),
            ),
        }
    }

    fn laid_over_zeros(
        &self,
        block: BlockIndex,
        runs: &[(Range<ByteOffset>, bool)],
        payload: Bytes,
    ) -> New {
        let block_len = self.geometry.block_len(block);
        let set = PieceSet::all(block_len);
        let is_whole = runs.len() == 1
            && range_len(&runs[0].0) == payload.len() as u64
            && payload.len() == block_len;
        let bytes = match is_whole {
            true => payload,
            false => {
                let mut bytes = vec![0; block_len];
                lay(
                    &mut bytes,
                    set,
                    self.geometry.start_of(block),
                    runs,
                    &payload,
                );
                Bytes::from(bytes)
            }
        };
        let leaf = self.is_hashed.then(|| self.hasher.leaf(&bytes));
        New { bytes, set, leaf }
    }

    /// Of a block whose pieces have known digests only those are hashed that are changed.
    fn patched(
        &self,
        block: BlockIndex,
        runs: &[(Range<ByteOffset>, bool)],
        payload: &Bytes,
        kept: Option<Kept>,
        read: impl Fn(Option<PieceSet>) -> Result<PooledBuffer>,
    ) -> Result<New> {
        let block_len = self.geometry.block_len(block);
        let start = self.geometry.start_of(block);
        let all = PieceSet::all(block_len);
        // A peer may change more than it asked for.
        let fits = |set: PieceSet| {
            let mut ranges = runs.iter().map(|(range, _)| within(range, start));
            ranges.all(|range| set.place_of(&range).is_some())
        };
        let (set, bytes, pieces) = match kept.filter(|kept| fits(kept.set)) {
            Some(kept) if kept.pieces.is_some() || kept.set == all => {
                let bytes = kept.bytes.map_or_else(|| read(Some(kept.set)), Ok)?;
                (kept.set, bytes, kept.pieces)
            }
            _ => (all, read(None)?, None),
        };
        let mut bytes = bytes;
        lay(bytes.bytes_mut(), set, start, runs, payload);
        let leaf = match (self.is_hashed, pieces) {
            (false, _) => None,
            (true, None) => Some(self.hasher.leaf(bytes.as_ref())),
            (true, Some(mut pieces)) => {
                let hashed = set.indices().zip(bytes.as_ref().chunks(PIECE_LEN));
                for (index, piece) in hashed {
                    pieces.set(index, self.hasher.piece(block_len, index, piece));
                }
                Some(self.hasher.leaf_of(&pieces))
            }
        };
        let bytes = Bytes::from_owner(bytes);
        Ok(New { bytes, set, leaf })
    }
}

/// Lays runs over the bytes of these pieces of the block at `start`.
fn lay(
    bytes: &mut [u8],
    set: PieceSet,
    start: ByteOffset,
    runs: &[(Range<ByteOffset>, bool)],
    mut payload: &[u8],
) {
    for (range, is_data) in runs {
        let place = set.place_of(&within(range, start));
        let piece = &mut bytes[place.expect("runs lie within these pieces")];
        match is_data {
            true => {
                let (head, rest) = payload.split_at(piece.len());
                piece.copy_from_slice(head);
                payload = rest;
            }
            false => piece.fill(0),
        }
    }
}

/// Neighbouring ranges as one: each costs a system call, and its own place on the medium. Gaps up
/// to `gap_max` bytes, which are zero, go with them as long as no range has more in gaps than
/// in what it was joined from: space is taken twice at most.
fn joined(ranges: impl Iterator<Item = Range<ByteOffset>>, gap_max: u64) -> Vec<Range<ByteOffset>> {
    let mut all: Vec<Range<ByteOffset>> = Vec::new();
    let (mut data, mut gaps) = (0, 0);
    for range in ranges {
        let len = range_len(&range);
        if let Some(last) = all.last_mut() {
            let gap = range_len(&(last.end..range.start));
            if gap <= gap_max && gaps + gap <= data {
                last.end = range.end;
                (data, gaps) = (data + len, gaps + gap);
                continue;
            }
        }
        (data, gaps) = (len, 0);
        all.push(range);
    }
    all
}

/// Zeros between two ranges of a new file up to which they are written: a file system has more to
/// do with so small a hole than with the bytes.
const GAP_MAX: u64 = 32 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: u64 = 1 << 10;

    /// In KiB, start and end.
    fn joined_kib(ranges: &[(u64, u64)], gap_max: u64) -> Vec<(u64, u64)> {
        let ranges = ranges.iter();
        let ranges = ranges.map(|(start, end)| ByteOffset(start * KIB)..ByteOffset(end * KIB));
        let all = joined(ranges, gap_max * KIB).into_iter();
        all.map(|range| (range.start.0 / KIB, range.end.0 / KIB))
            .collect()
    }

    // Goal: ranges that are near each other become one, and zeros never take more space than data.
    // Method: gaps of all kinds, with and without leave to take them in.
    #[test]
    fn small_gaps_go_with_their_neighbours() {
        let tables = [(0, 4), (8, 12), (16, 20)];
        assert_eq!(joined_kib(&tables, 0), tables);
        assert_eq!(joined_kib(&tables, 32), [(0, 20)]);
        assert_eq!(joined_kib(&[(0, 4), (4, 8)], 0), [(0, 8)]);

        let far = [(0, 64), (96, 100), (133, 140)];
        assert_eq!(joined_kib(&far, 32), [(0, 100), (133, 140)]);
        let sparse = [(0, 4), (12, 16), (20, 24)];
        assert_eq!(joined_kib(&sparse, 32), [(0, 4), (12, 24)]);
        let enough = [(0, 8), (12, 16), (24, 28)];
        assert_eq!(joined_kib(&enough, 32), [(0, 28)]);
        let too_little = [(0, 8), (12, 16), (25, 28)];
        assert_eq!(joined_kib(&too_little, 32), [(0, 16), (25, 28)]);
    }
}
