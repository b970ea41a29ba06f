//! What of a differing block travels: dirty 4 KiB runs, zero runs, compressed where that is
//! shorter.

use std::ops::Range;

use bytes::Bytes;
use failback_transport::{Base, BlockData, Encoding, RunKind, SubRun};

use super::compressor::Compressor;
use crate::error::{Error, ErrorKind, Result};
use crate::hash::{Digest, PieceSet, is_zero, sub_block_sum};
use crate::pipeline::{BufferPool, PooledBuffer};
use crate::units::SUB_BLOCK_LEN;

/// What packing needs beside the block.
#[derive(Debug)]
pub(super) struct Packer {
    compressor: Compressor,
    /// For payloads that are put together. There are never more than blocks whose buffers are lent.
    joined: BufferPool,
}

impl Packer {
    /// `count` blocks may be under way.
    pub(super) fn new(compressor: Compressor, count: usize) -> Self {
        let joined = BufferPool::new(count);
        Self { compressor, joined }
    }

    /// What the link takes, in bytes per second, once that is known.
    pub(super) fn link_rate(&self) -> Option<u64> {
        self.compressor.link_rate()
    }

    fn join(&self, bytes: &[u8], runs: &[Range<usize>], len: usize) -> PooledBuffer {
        let mut joined = self.joined.take_or_new(len);
        let mut rest = joined.bytes_mut();
        for run in runs {
            let (part, behind) = rest.split_at_mut(run.len());
            part.copy_from_slice(&bytes[run.clone()]);
            rest = behind;
        }
        joined
    }
}

/// A block ready to be sent.
#[derive(Debug)]
pub(super) struct Packed {
    pub(super) data: BlockData,
    /// Bytes of the sub-blocks that differ.
    pub(super) changed_len: u64,
    /// Bytes that the whole block would be sent in, as far as it was looked at.
    pub(super) whole_len: u64,
}

/// Some pieces of a block, or all of them.
#[derive(Debug)]
pub(super) struct Held {
    /// The bytes of these pieces, one after the other.
    pub(super) bytes: PooledBuffer,
    /// Which they are.
    pub(super) pieces: PieceSet,
    /// Bytes of the whole block.
    pub(super) block_len: usize,
}

impl Held {
    /// All of a block.
    pub(super) fn whole(bytes: PooledBuffer) -> Self {
        let block_len = bytes.as_ref().len();
        Self {
            bytes,
            pieces: PieceSet::all(block_len),
            block_len,
        }
    }

    fn is_whole(&self) -> bool {
        self.bytes.as_ref().len() == self.block_len
    }

    /// Where sub-blocks are in the buffer; they must be there.
    fn place_of(&self, first: usize, count: usize) -> Range<usize> {
        let start = first * SUB_BLOCK_LEN;
        let end = (start + count * SUB_BLOCK_LEN).min(self.block_len);
        let place = self.pieces.place_of(&(start..end));
        place.expect("only what is held was asked for")
    }

    /// Bytes of the block, without sub-blocks that are held and zero.
    fn whole_len(&self) -> u64 {
        let held = self.bytes.as_ref().chunks(SUB_BLOCK_LEN);
        let zeros: usize = held.filter(|page| is_zero(page)).map(<[u8]>::len).sum();
        (self.block_len - zeros) as u64
    }

    fn sub_block(&self, index: usize) -> &[u8] {
        &self.bytes.as_ref()[self.place_of(index, 1)]
    }
}

/// Sums of all sub-blocks of the pieces in `bytes`.
pub(super) fn sub_block_sums(bytes: &[u8], seed: u64) -> Bytes {
    bytes
        .chunks(SUB_BLOCK_LEN)
        .flat_map(|piece| sub_block_sum(piece, seed).to_le_bytes())
        .collect()
}

/// What turns a block whose pieces `asked` have the sub-block sums `theirs` into the one of which
/// these pieces, or all, are `held`.
///
/// When no sum differs although the blocks do, two sums collide: then all that is held travels.
///
/// # Errors
/// `Protocol` when there are not as many sums as sub-blocks.
pub(super) fn pack_difference(
    block: u64,
    new_hash: Digest,
    held: Held,
    (asked, theirs): (PieceSet, &[u8]),
    seed: u64,
    packer: &Packer,
) -> Result<Packed> {
    let sums = theirs.chunks_exact(8);
    let wanted = asked.sub_blocks(held.block_len).count();
    if sums.len() != wanted || !sums.remainder().is_empty() {
        return Err(
            Error::new(ErrorKind::Protocol, "peer: wrong number of sub-block sums").at(block),
        );
    }
    let mut runs = Vec::new();
    for (index, sum) in asked.sub_blocks(held.block_len).zip(sums) {
        let piece = held.sub_block(index);
        if sub_block_sum(piece, seed).to_le_bytes() != *sum {
            let kind = if is_zero(piece) {
                RunKind::Zero
            } else {
                RunKind::Data
            };
            push_run(&mut runs, index, kind);
        }
    }
    if runs.is_empty() && held.is_whole() {
        return Ok(pack_whole(block, new_hash, held.bytes, packer));
    }
    if runs.is_empty() {
        let all = held.pieces.sub_blocks(held.block_len);
        all.for_each(|index| push_run(&mut runs, index, RunKind::Data));
    }
    Ok(pack(block, Base::Old, new_hash, held, runs, packer))
}

/// The whole block, for a target that holds zeros there or whose content does not matter. Zero
/// sub-blocks stay at home.
pub(super) fn pack_whole(
    block: u64,
    new_hash: Digest,
    bytes: PooledBuffer,
    packer: &Packer,
) -> Packed {
    let mut runs = Vec::new();
    for (index, piece) in bytes.as_ref().chunks(SUB_BLOCK_LEN).enumerate() {
        if !is_zero(piece) {
            push_run(&mut runs, index, RunKind::Data);
        }
    }
    if runs.is_empty() {
        // Zero by now: a message has to have a run.
        let count = bytes.as_ref().len().div_ceil(SUB_BLOCK_LEN);
        let count = u16::try_from(count).expect("a block has at most 1024 sub-blocks");
        runs.push(SubRun {
            first: 0,
            count,
            kind: RunKind::Zero,
        });
    }
    let held = Held::whole(bytes);
    pack(block, Base::Zero, new_hash, held, runs, packer)
}

fn push_run(runs: &mut Vec<SubRun>, index: usize, kind: RunKind) {
    let first = u16::try_from(index).expect("a block has at most 1024 sub-blocks");
    match runs.last_mut() {
        Some(last) if last.kind == kind && last.first + last.count == first => last.count += 1,
        _ => runs.push(SubRun {
            first,
            count: 1,
            kind,
        }),
    }
}

/// Keeps the block's buffer lent for as long as its payload waits to be sent: the pool bounds what
/// is under way.
struct HeldPayload<T> {
    bytes: T,
    _buffer: PooledBuffer,
}

impl<T: AsRef<[u8]>> AsRef<[u8]> for HeldPayload<T> {
    fn as_ref(&self) -> &[u8] {
        self.bytes.as_ref()
    }
}

fn pack(
    block: u64,
    base: Base,
    new_hash: Digest,
    held: Held,
    runs: Vec<SubRun>,
    packer: &Packer,
) -> Packed {
    let span = |run: &SubRun| held.place_of(run.first.into(), run.count.into());
    let whole_len = held.whole_len();
    let changed_len = runs.iter().map(|run| span(run).len() as u64).sum();
    let data_runs: Vec<_> = runs
        .iter()
        .filter(|run| run.kind == RunKind::Data)
        .map(span)
        .collect();
    let raw_len = data_runs.iter().map(Range::len).sum::<usize>();
    let bytes = held.bytes;
    let joined = match data_runs.as_slice() {
        [_one] => None,
        several => Some(packer.join(bytes.as_ref(), several, raw_len)),
    };
    let raw = joined
        .as_ref()
        .map(AsRef::as_ref)
        .unwrap_or_else(|| &bytes.as_ref()[data_runs[0].clone()]);
    let (encoding, payload) = match packer.compressor.compressed(raw) {
        Some(shorter) => (Encoding::Zstd, lasting(shorter, bytes)),
        None => (
            Encoding::Raw,
            match joined {
                Some(joined) => lasting(joined, bytes),
                // One run: the block's own buffer travels, not a copy.
                None => Bytes::from_owner(bytes).slice(data_runs[0].clone()),
            },
        ),
    };
    let raw_len = u32::try_from(raw_len).expect("a block is at most 4 MiB");
    Packed {
        whole_len,
        data: BlockData {
            block,
            base,
            new_hash,
            encoding,
            raw_len,
            runs,
            payload,
        },
        changed_len,
    }
}

fn lasting<T: AsRef<[u8]> + Send + 'static>(bytes: T, buffer: PooledBuffer) -> Bytes {
    Bytes::from_owner(HeldPayload {
        bytes,
        _buffer: buffer,
    })
}

/// The payload as it was before compression, exactly as long as the sender said.
///
/// # Errors
/// `Protocol` when it is not: the length met its limit when the message was decoded, and no more
/// than it is ever unpacked.
pub(crate) fn unpack(data: &BlockData) -> Result<Bytes> {
    let raw_len = data.raw_len as usize;
    match data.encoding {
        Encoding::Raw => Ok(data.payload.clone()),
        Encoding::Zstd => match zstd::bulk::decompress(&data.payload, raw_len) {
            Ok(raw) if raw.len() == raw_len => Ok(Bytes::from(raw)),
            _ => Err(Error::new(
                ErrorKind::Protocol,
                "peer: compressed data is not what it says",
            )
            .at(data.block)),
        },
    }
}

#[cfg(test)]
mod tests {
    use failback_transport::Compress;

    use super::super::compressor::LinkPace;
    use super::*;
    use crate::hash::{HashKind, Hasher, PIECE_LEN};
    use crate::pipeline::BufferPool;

    fn buffer(bytes: &[u8]) -> PooledBuffer {
        let mut buffer = BufferPool::new(1).take(bytes.len(), || Ok(())).unwrap();
        buffer.bytes_mut().copy_from_slice(bytes);
        buffer
    }

    fn packer(wish: Compress) -> Packer {
        Packer::new(Compressor::new(wish, LinkPace::default()), 1)
    }

    fn leaf(bytes: &[u8]) -> Digest {
        Hasher::new(HashKind::Blake3).leaf(bytes)
    }

    // Goal: only dirty pages travel, zeros as runs. Method: one page changed, one zeroed, in a
    // short last block.
    #[test]
    fn dirty_pages_and_zero_runs() {
        let old = vec![7; 5 * SUB_BLOCK_LEN + 100];
        let mut new = old.clone();
        new[SUB_BLOCK_LEN] = 8;
        new[3 * SUB_BLOCK_LEN..].fill(0);
        let sums = sub_block_sums(&old, 42);
        let held = Held::whole(buffer(&new));
        let asked = (held.pieces, sums.as_ref());
        let packed =
            pack_difference(9, leaf(&new), held, asked, 42, &packer(Compress::Off)).unwrap();
        assert_eq!(
            packed.data.runs,
            [
                SubRun {
                    first: 1,
                    count: 1,
                    kind: RunKind::Data
                },
                SubRun {
                    first: 3,
                    count: 3,
                    kind: RunKind::Zero
                },
            ]
        );
        assert_eq!(packed.data.payload, new[SUB_BLOCK_LEN..2 * SUB_BLOCK_LEN]);
        assert_eq!(packed.changed_len, 3 * SUB_BLOCK_LEN as u64 + 100);
        // Three pages are not zero.
        assert_eq!(packed.whole_len, 3 * SUB_BLOCK_LEN as u64);
    }

    // Goal: a collision of sub-block sums loses nothing. Method: claim the new block's own sums for
    // the old one.
    #[test]
    fn equal_sums_of_a_differing_block_send_all_of_it() {
        let new = vec![3; 2 * SUB_BLOCK_LEN];
        let sums = sub_block_sums(&new, 1);
        let held = Held::whole(buffer(&new));
        let asked = (held.pieces, sums.as_ref());
        let packed =
            pack_difference(0, leaf(&new), held, asked, 1, &packer(Compress::Off)).unwrap();
        assert_eq!(packed.data.base, Base::Zero);
        assert_eq!(packed.data.payload.len(), new.len());
    }

    // Goal: the same runs come of pieces alone as of the whole block. Method: a page at the end of
    // one piece and the start of the next, and one in the short last piece.
    #[test]
    fn pieces_give_the_runs_of_the_block() {
        let old = vec![7; 3 * PIECE_LEN + 5000];
        let mut new = old.clone();
        for at in [2 * PIECE_LEN - 1, 2 * PIECE_LEN, old.len() - 1] {
            new[at] = 8;
        }
        let asked = PieceSet::from_bits(0b1110, new.len()).unwrap();
        let in_pieces = |block: &[u8]| -> Vec<u8> {
            let ranges = asked.ranges(block.len()).into_iter();
            ranges.flat_map(|range| block[range].to_vec()).collect()
        };
        let pack_held = |held, sums: &[u8]| {
            pack_difference(
                0,
                leaf(&new),
                held,
                (asked, sums),
                1,
                &packer(Compress::Off),
            )
        };
        let sums = sub_block_sums(&in_pieces(&old), 1);
        let of_pieces = |sums: &[u8]| {
            let held = Held {
                bytes: buffer(&in_pieces(&new)),
                pieces: asked,
                block_len: new.len(),
            };
            pack_held(held, sums)
        };

        let whole = pack_held(Held::whole(buffer(&new)), &sums).unwrap().data;

        assert_eq!(whole.runs.len(), 2);
        assert_eq!(of_pieces(&sums).unwrap().data, whole);
        // All sums collide: what is held travels.
        let collided = of_pieces(&sub_block_sums(&in_pieces(&new), 1))
            .unwrap()
            .data;
        assert_eq!(collided.base, Base::Old);
        assert_eq!(collided.payload, in_pieces(&new));
        assert!(of_pieces(&sums[8..]).is_err());
    }

    // Goal: compression is used where it helps and a lie about its length is found. Method: a
    // compressible page.
    #[test]
    fn compressed_payload_unpacks_to_its_stated_length_only() {
        let new = vec![9; 4 * SUB_BLOCK_LEN];
        let mut packed = pack_whole(0, leaf(&new), buffer(&new), &packer(Compress::Zstd(1))).data;
        assert_eq!(packed.encoding, Encoding::Zstd);
        assert_eq!(unpack(&packed).unwrap(), new);
        packed.raw_len -= 1;
        assert!(unpack(&packed).is_err());
        packed.raw_len += 2;
        assert!(unpack(&packed).is_err());
    }
}
