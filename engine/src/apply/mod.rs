//! Where blocks are applied: checked, patched, and handed on to the stage or to the target.

mod in_place;

use std::ops::Range;

use bytes::Bytes;
use failback_transport::{Base, BlockData};

pub(crate) use in_place::InPlace;

use crate::abort::Abort;
use crate::commit::Staging;
use crate::error::{Error, ErrorKind, Result};
use crate::hash::Hasher;
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

    /// Makes a block what the source says it is. `old` reads its present content, `shown` is its
    /// present leaf where that is known.
    ///
    /// # Errors
    /// `Protocol` when the data does not fit the block or its hash, `NoSpace`, `Io`.
    pub(crate) fn block(
        &self,
        data: &BlockData,
        shown: Option<Leaf>,
        old: impl FnOnce(&mut [u8]) -> Result<()>,
    ) -> Result<Applied> {
        let block = BlockIndex(data.block);
        let parts = self.parts_of(data)?;
        let payload = unpack(data)?;
        let is_whole_run = parts.len() == 1
            && range_len(&parts[0].0) == payload.len() as u64
            && payload.len() == self.geometry.block_len(block);
        let new = match is_whole_run {
            true => payload,
            false => self.patched(data, &parts, &payload, old)?,
        };
        if self.is_hashed && self.hasher.leaf(&new) != data.new_hash {
            return match data.base {
                Base::Old => Ok(Applied::NeedsWhole),
                Base::Zero => Err(Error::new(
                    ErrorKind::Protocol,
                    "peer: block does not have the hash it was sent with",
                )
                .at(self.geometry.start_of(block).0)),
            };
        }
        let is_known_zero = shown == Some(Leaf::Zero) || self.to.is_new();
        let ranges = match (data.base, is_known_zero) {
            // Whatever was there goes, also between the runs.
            (Base::Zero, false) => vec![self.geometry.range_of(block, 1)],
            _ => joined(parts.into_iter().map(|(range, _)| range)),
        };
        match &self.to {
            Destination::InPlace(target) => target.write(block, &new, ranges, data.new_hash)?,
            Destination::Stage(stage) => {
                stage.put(block, &new, &ranges, data.new_hash, shown)?;
            }
        }
        Ok(Applied::Done)
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
    fn parts_of(&self, data: &BlockData) -> Result<Vec<(Range<ByteOffset>, bool)>> {
        let block = self.geometry.range_of(BlockIndex(data.block), 1);
        let mut parts = Vec::with_capacity(data.runs.len());
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
            parts.push((range, is_data));
        }
        match data_len == u64::from(data.raw_len) {
            true => Ok(parts),
            false => Err(
                Error::new(ErrorKind::Protocol, "peer: data does not fit its runs")
                    .at(block.start.0),
            ),
        }
    }

    fn patched(
        &self,
        data: &BlockData,
        parts: &[(Range<ByteOffset>, bool)],
        payload: &Bytes,
        old: impl FnOnce(&mut [u8]) -> Result<()>,
    ) -> Result<Bytes> {
        let block = BlockIndex(data.block);
        let start = self.geometry.start_of(block);
        let mut new = vec![0; self.geometry.block_len(block)];
        if data.base == Base::Old {
            old(&mut new)?;
        }
        let mut payload = payload.as_ref();
        for (range, is_data) in parts {
            let piece = &mut new[within(range, start)];
            match is_data {
                true => {
                    let (head, rest) = payload.split_at(piece.len());
                    piece.copy_from_slice(head);
                    payload = rest;
                }
                false => piece.fill(0),
            }
        }
        Ok(Bytes::from(new))
    }
}

/// Neighbouring ranges as one: each costs a system call.
fn joined(ranges: impl Iterator<Item = Range<ByteOffset>>) -> Vec<Range<ByteOffset>> {
    let mut all: Vec<Range<ByteOffset>> = Vec::new();
    for range in ranges {
        match all.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => all.push(range),
        }
    }
    all
}
