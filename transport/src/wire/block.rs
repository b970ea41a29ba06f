//! The content of blocks: the changed part of one, and the checks of all that names blocks.

use bytes::{Bytes, BytesMut};

use super::digest::Digest;
use super::field::{Fault, Field, HeadReader, codes, fields};
use super::limit::{
    BLOCK_COUNT_MAX, DESCENT_DEPTH_MAX, HASH_COUNT_MAX, NODE_COUNT_MAX, NODE_INDEX_LEN,
    PIECE_COUNT_MAX, PIECE_ID_LEN, PIECE_LEN, RUN_COUNT_MAX, SUB_BLOCK_LEN, SUB_HASH_LEN,
    TREE_LEVEL_MAX,
};

/// What makes one block of the target equal to the source's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockData {
    /// The block.
    pub block: u64,
    /// What the runs are laid over.
    pub base: Base,
    /// Hash of the whole block once it is patched.
    pub new_hash: Digest,
    /// How the payload is packed.
    pub encoding: Encoding,
    /// Bytes of the payload once it is unpacked: [`SUB_BLOCK_LEN`] for each sub-block of a data
    /// run. When the last run holds data it may end up to 4095 bytes early: so may a disk.
    pub raw_len: u32,
    /// The sub-blocks that change, ascending, none twice; 1 to [`RUN_COUNT_MAX`].
    pub runs: Vec<SubRun>,
    /// The bytes of the data runs, one after the other. [`Encoding::Zstd`]: shorter than `raw_len`.
    pub payload: Bytes,
}

/// What a block was before its runs are laid over it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Base {
    /// What the target holds.
    Old,
    /// Zeros.
    Zero,
}

/// How a payload is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// Not at all.
    Raw,
    /// One zstd frame.
    Zstd,
}

/// Consecutive sub-blocks of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubRun {
    /// First sub-block, counted from the start of its block.
    pub first: u16,
    /// Sub-blocks; at least 1. The run ends within the largest block.
    pub count: u16,
    /// What they become.
    pub kind: RunKind,
}

/// What sub-blocks become.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RunKind {
    /// Bytes of the payload.
    Data,
    /// Zeros.
    Zero,
}

impl BlockData {
    pub(super) fn check(&self) -> Result<(), Fault> {
        check_blocks(self.block, 1)?;
        if self.runs.is_empty() {
            return Err("block data without a run");
        }
        let mut end = 0;
        let mut data_count = 0;
        for run in &self.runs {
            if u32::from(run.first) < end || run.count == 0 {
                return Err("runs are empty or out of order");
            }
            end = u32::from(run.first) + u32::from(run.count);
            data_count += if run.kind == RunKind::Data {
                u32::from(run.count)
            } else {
                0
            };
        }
        if end > RUN_COUNT_MAX {
            return Err("runs end past the largest block");
        }
        let full_len = data_count * SUB_BLOCK_LEN;
        let ends_with_data = self
            .runs
            .last()
            .is_some_and(|run| run.kind == RunKind::Data);
        let slack = if ends_with_data { SUB_BLOCK_LEN - 1 } else { 0 };
        if self.raw_len > full_len || full_len - self.raw_len > slack {
            return Err("raw length does not fit the runs");
        }
        let payload_len = self.payload.len() as u64;
        match self.encoding {
            Encoding::Raw if payload_len != u64::from(self.raw_len) => {
                Err("payload length is not the raw length")
            }
            Encoding::Zstd if payload_len == 0 || payload_len >= u64::from(self.raw_len) => {
                Err("packed payload is not shorter than its content")
            }
            Encoding::Raw | Encoding::Zstd => Ok(()),
        }
    }
}

/// A range of blocks that lies within the largest disk and is not empty.
pub(super) fn check_blocks(first_block: u64, count: u64) -> Result<(), Fault> {
    match first_block.checked_add(count) {
        Some(end) if count > 0 && end <= BLOCK_COUNT_MAX => Ok(()),
        _ => Err("block range is empty or past the largest disk"),
    }
}

/// A place between blocks, or the end of the disk.
pub(super) fn check_block_end(end: u64) -> Result<(), Fault> {
    if end <= BLOCK_COUNT_MAX {
        Ok(())
    } else {
        Err("block count is past the largest disk")
    }
}

/// The hashes of consecutive blocks.
pub(super) fn check_hashes(first_block: u64, hash_len: u8, payload: &Bytes) -> Result<(), Fault> {
    if hash_len != 16 && hash_len != 32 {
        return Err("a hash has neither 16 nor 32 bytes");
    }
    let count = hash_count(payload, u32::from(hash_len), HASH_COUNT_MAX)?;
    check_blocks(first_block, count)
}

/// The hashes of the sub-blocks of some pieces of one block. Only the last piece of a block may be
/// short, which one that is depends on the disk.
pub(super) fn check_sub_hashes(block: u64, pieces: u64, payload: &Bytes) -> Result<(), Fault> {
    check_blocks(block, 1)?;
    let count = hash_count(payload, SUB_HASH_LEN, RUN_COUNT_MAX)?;
    let whole = u64::from(PIECE_LEN / SUB_BLOCK_LEN);
    match count.div_ceil(whole) == u64::from(pieces.count_ones()) {
        true => Ok(()),
        false => Err("sub-block hashes do not fit their pieces"),
    }
}

/// The names of the pieces of one block, where there are any.
pub(super) fn check_want(block: u64, asks: bool, payload: &Bytes) -> Result<(), Fault> {
    check_blocks(block, 1)?;
    match (asks, payload.is_empty()) {
        (_, true) => Ok(()),
        (false, false) => Err("names of pieces that nobody asks about"),
        (true, false) => hash_count(payload, PIECE_ID_LEN, PIECE_COUNT_MAX).map(drop),
    }
}

/// The indices of nodes of one level, and how far below them the answer lies.
pub(super) fn check_descend(level: u8, down: u8, payload: &Bytes) -> Result<(), Fault> {
    if level > TREE_LEVEL_MAX || down > level.min(DESCENT_DEPTH_MAX) {
        return Err("level is out of range");
    }
    hash_count(payload, NODE_INDEX_LEN, NODE_COUNT_MAX)?;
    let mut next = 0;
    for index in payload.chunks_exact(NODE_INDEX_LEN as usize) {
        let index = u32::from_le_bytes(index.try_into().expect("cut to 4 bytes"));
        if u64::from(index) < next {
            return Err("nodes are out of order");
        }
        next = u64::from(index) + 1;
    }
    match next <= BLOCK_COUNT_MAX >> level {
        true => Ok(()),
        false => Err("node is past the largest disk"),
    }
}

/// The digests below nodes of one level.
pub(super) fn check_nodes(
    level: u8,
    first: u64,
    hash_len: u8,
    payload: &Bytes,
) -> Result<(), Fault> {
    if level > TREE_LEVEL_MAX || first >= BLOCK_COUNT_MAX >> level {
        return Err("node is past the largest disk");
    }
    if hash_len != 16 && hash_len != 32 {
        return Err("a hash has neither 16 nor 32 bytes");
    }
    hash_count(payload, u32::from(hash_len), HASH_COUNT_MAX).map(drop)
}

fn hash_count(payload: &Bytes, hash_len: u32, count_max: u32) -> Result<u64, Fault> {
    let (len, hash_len) = (payload.len() as u64, u64::from(hash_len));
    let count = len / hash_len;
    if len % hash_len != 0 || count == 0 || count > u64::from(count_max) {
        return Err("hash list is empty, too long or cut");
    }
    Ok(count)
}

/// The fields of a [`BlockData`] that stand in the head.
pub(super) fn put_block_data(data: &BlockData, out: &mut BytesMut) {
    data.block.put(out);
    data.base.put(out);
    data.new_hash.put(out);
    data.encoding.put(out);
    data.raw_len.put(out);
    u16::try_from(data.runs.len())
        .expect("runs were checked against RUN_COUNT_MAX")
        .put(out);
    data.runs.iter().for_each(|run| run.put(out));
}

pub(super) fn take_block_data(
    input: &mut HeadReader<'_>,
    payload: Bytes,
) -> Result<BlockData, Fault> {
    let block = Field::take(input)?;
    let base = Field::take(input)?;
    let new_hash = Field::take(input)?;
    let encoding = Field::take(input)?;
    let raw_len = Field::take(input)?;
    let run_count = u16::take(input)?;
    if u32::from(run_count) > RUN_COUNT_MAX {
        return Err("too many runs");
    }
    let runs = (0..run_count)
        .map(|_| SubRun::take(input))
        .collect::<Result<_, _>>()?;
    Ok(BlockData {
        block,
        base,
        new_hash,
        encoding,
        raw_len,
        runs,
        payload,
    })
}

fields!(SubRun { first, count, kind });
codes!(Base { Old = 0, Zero = 1 });
codes!(Encoding { Raw = 0, Zstd = 1 });
codes!(RunKind { Data = 0, Zero = 1 });
